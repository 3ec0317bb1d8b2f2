//! Rollouts and their plans, as on the wire.

use chrono::TimeDelta;
use shared::parse::{duration, etag_of, known_or_default};
use shared::pb::release as pb;
use shared::status::Refusal;
use shared::time::{duration_to_proto, to_proto};

use super::guard;
use crate::domain::blocker::Kind;
use crate::domain::rollout::{
    Assignment, AtDeadline, Cause, Harm, Mode, Pause, Phase, Plan, RollbackPolicy, Rollout, State,
};

/// Longest span that a plan may name.
const SPAN_MAX: TimeDelta = TimeDelta::days(30);

impl From<&Rollout> for pb::Rollout {
    fn from(rollout: &Rollout) -> Self {
        let previous = rollout.previous.as_ref();
        let (mode, rollback_of) = match rollout.mode {
            Mode::Forward => (pb::RolloutMode::Forward, String::new()),
            Mode::Rollback { of } => (pb::RolloutMode::Rollback, of.to_string()),
        };
        let (mut waiting_for, mut pause, mut superseded_by) = (Vec::new(), None, String::new());
        match &rollout.state {
            State::Waiting { reasons, .. } => {
                waiting_for = reasons.iter().copied().map(Kind::name).map(str::to_owned).collect();
            }
            State::Paused { pause: why, .. } => pause = Some(why.into()),
            State::Superseded { by, .. } => superseded_by = by.to_string(),
            State::Running { .. }
            | State::Draining { .. }
            | State::Succeeded { .. }
            | State::RollingBack { .. }
            | State::RollbackFailed { .. }
            | State::RolledBack { .. }
            | State::Cancelled { .. } => {}
        }
        let is_running = matches!(rollout.state, State::Running { .. });
        let phase = rollout.state.phase().filter(|_| is_running);
        Self {
            rollout_id: rollout.id.to_string(),
            component: rollout.component.to_string(),
            environment: rollout.environment.to_string(),
            release_id: rollout.release.id.to_string(),
            version: rollout.release.version.clone(),
            previous_release_id: previous.map(|previous| previous.id.to_string()).unwrap_or_default(),
            previous_version: previous.map(|previous| previous.version.clone()).unwrap_or_default(),
            state: state_to_proto(&rollout.state).into(),
            step_exposures_bps: rollout.steps.as_slice().to_vec(),
            step: i32::try_from(rollout.step).unwrap_or(i32::MAX),
            exposure_bps: rollout.exposure_bps,
            assignment_policy: assignment_to_proto(rollout.assignment).into(),
            rollback_reason: rollout.state.rollback_reason().unwrap_or_default().to_owned(),
            starter: rollout.starter.clone(),
            start_time: Some(to_proto(rollout.started_at)),
            end_time: rollout.state.ended_at().map(to_proto),
            etag: etag_of(rollout.mark()),
            approval_id: rollout.approval.map(|id| id.to_string()).unwrap_or_default(),
            mode: mode.into(),
            plan: Some((&rollout.plan).into()),
            phase: phase.map_or(pb::StepPhase::Unspecified, phase_to_proto).into(),
            phase_start_time: Some(to_proto(rollout.state.since())),
            waiting_for,
            pause,
            harms: rollout.harms.iter().map(Into::into).collect(),
            rollback_of,
            superseded_by,
        }
    }
}

const fn state_to_proto(state: &State) -> pb::RolloutState {
    match state {
        State::Waiting { .. } => pb::RolloutState::Waiting,
        State::Running { .. } => pb::RolloutState::Running,
        State::Paused { .. } => pb::RolloutState::Paused,
        State::Draining { .. } => pb::RolloutState::Draining,
        State::Succeeded { .. } => pb::RolloutState::Succeeded,
        State::RollingBack { .. } => pb::RolloutState::RollingBack,
        State::RollbackFailed { .. } => pb::RolloutState::RollbackFailed,
        State::RolledBack { .. } => pb::RolloutState::RolledBack,
        State::Cancelled { .. } => pb::RolloutState::Cancelled,
        State::Superseded { .. } => pb::RolloutState::Superseded,
    }
}

const fn phase_to_proto(phase: Phase) -> pb::StepPhase {
    match phase {
        Phase::Deploying => pb::StepPhase::Deploying,
        Phase::Exposing => pb::StepPhase::Exposing,
        Phase::Baking => pb::StepPhase::Baking,
    }
}

impl From<&Pause> for pb::RolloutPause {
    fn from(Pause { cause, principal, reason, at }: &Pause) -> Self {
        let cause = match cause {
            Cause::Requested => pb::PauseCause::Requested,
            Cause::Harm => pb::PauseCause::Harm,
            Cause::Inconclusive => pb::PauseCause::Inconclusive,
            Cause::NoData => pb::PauseCause::NoData,
            Cause::SampleRatio => pb::PauseCause::SampleRatio,
            Cause::Deadline => pb::PauseCause::Deadline,
        };
        Self {
            cause: cause.into(),
            principal: principal.clone(),
            reason: reason.clone(),
            pause_time: Some(to_proto(*at)),
        }
    }
}

impl From<&Harm> for pb::RolloutHarm {
    fn from(Harm { guard, finding, at, cleared }: &Harm) -> Self {
        let word = cleared.as_ref();
        Self {
            guard: guard.clone(),
            finding: finding.clone(),
            find_time: Some(to_proto(*at)),
            cleared_by: word.map(|word| word.by.clone()).unwrap_or_default(),
            clear_reason: word.map(|word| word.reason.clone()).unwrap_or_default(),
            clear_time: word.map(|word| to_proto(word.at)),
        }
    }
}

impl From<&Plan> for pb::RolloutPlan {
    fn from(plan: &Plan) -> Self {
        let span = |span: Option<TimeDelta>| Some(duration_to_proto(span?.to_std().ok()?));
        let at_deadline = match plan.at_deadline {
            AtDeadline::Pause => pb::DeadlineAction::Pause,
            AtDeadline::Advance => pb::DeadlineAction::Advance,
            AtDeadline::RollBack => pb::DeadlineAction::RollBack,
        };
        let rollback_policy = match plan.rollback_policy {
            RollbackPolicy::Finish => pb::RollbackPolicy::Finish,
            RollbackPolicy::Migrate => pb::RollbackPolicy::Migrate,
            RollbackPolicy::End => pb::RollbackPolicy::End,
        };
        Self {
            min_bake: span(plan.min_bake),
            step_deadline: span(plan.step_deadline),
            at_deadline: at_deadline.into(),
            guards: plan.guards.as_slice().iter().map(Into::into).collect(),
            rollback_policy: rollback_policy.into(),
            drain_deadline: span(plan.drain_deadline),
        }
    }
}

fn parse_span(field: &str, span: Option<prost_types::Duration>) -> Result<Option<TimeDelta>, Refusal> {
    let Some(span) = duration(field, span)? else { return Ok(None) };
    let span = TimeDelta::from_std(span)
        .ok()
        .filter(|span| *span <= SPAN_MAX && span.subsec_nanos() == 0);
    span.map(Some)
        .ok_or_else(|| Refusal::field(field, "must be whole seconds, at most 30 days"))
}

/// A plan as asked for; whether an executor is needed is the environment's to say.
pub(super) fn parse_plan(plan: Option<pb::RolloutPlan>) -> Result<Plan, Refusal> {
    let pb::RolloutPlan { min_bake, step_deadline, at_deadline, guards, rollback_policy, drain_deadline } =
        plan.unwrap_or_default();
    let at_deadline = match known_or_default("plan.at_deadline", at_deadline)? {
        pb::DeadlineAction::Unspecified | pb::DeadlineAction::Pause => AtDeadline::Pause,
        pb::DeadlineAction::Advance => AtDeadline::Advance,
        pb::DeadlineAction::RollBack => AtDeadline::RollBack,
    };
    let rollback_policy = match known_or_default("plan.rollback_policy", rollback_policy)? {
        pb::RollbackPolicy::Finish => RollbackPolicy::Finish,
        pb::RollbackPolicy::Unspecified | pb::RollbackPolicy::Migrate => RollbackPolicy::Migrate,
        pb::RollbackPolicy::End => RollbackPolicy::End,
    };
    let min_bake = parse_span("plan.min_bake", min_bake)?;
    let step_deadline = parse_span("plan.step_deadline", step_deadline)?;
    if step_deadline.is_some() && step_deadline <= min_bake {
        return Err(Refusal::field(
            "plan.step_deadline",
            "must be longer than min_bake, which is waited for in any case",
        ));
    }
    Ok(Plan {
        min_bake,
        step_deadline,
        at_deadline,
        guards: guard::parse(guards)?,
        rollback_policy,
        drain_deadline: parse_span("plan.drain_deadline", drain_deadline)?,
        ..Plan::default()
    })
}

pub(in crate::rpc) const fn assignment_to_proto(assignment: Assignment) -> pb::AssignmentPolicy {
    match assignment {
        Assignment::NewVisits => pb::AssignmentPolicy::NewVisits,
        Assignment::AllSessions => pb::AssignmentPolicy::AllSessions,
    }
}

pub(super) fn parse_assignment(number: i32) -> Result<Assignment, Refusal> {
    Ok(match known_or_default("assignment_policy", number)? {
        pb::AssignmentPolicy::Unspecified | pb::AssignmentPolicy::NewVisits => Assignment::NewVisits,
        pb::AssignmentPolicy::AllSessions => Assignment::AllSessions,
    })
}
