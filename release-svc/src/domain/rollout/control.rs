//! What a rollout does by itself. Pure: whoever holds its row asks, and carries out what comes out; asked again, nothing
//! comes out. What holds an increase back is asked when it is carried out.

use chrono::TimeDelta;
use shared::time::Time;

use super::{AtDeadline, CONFIRM_DEADLINE, Cause, Harm, Phase, Rollout, State};
use crate::domain::blocker::{Blocker, Kind};
use crate::domain::guard::{Mode, Verdict};

/// How long something that is held back is left alone at most.
const REST: TimeDelta = TimeDelta::seconds(15);

/// What is known of a rollout's surroundings.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observation {
    /// Every session service that may know of it acts on its route.
    pub is_applied: bool,
    /// What became of the executor's task for the present step.
    pub task: Option<TaskEnd>,
    /// In the plan's order.
    pub guards: Vec<Watched>,
    /// Live visits on what it replaces; none where nobody has counted since it drains.
    pub old_visits: Option<i64>,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskEnd {
    Done,
    Failed(String),
}

/// A guard, as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Watched {
    pub guard: String,
    pub mode: Mode,
    pub verdict: Verdict,
    /// Visits are not dealt as planned, so nothing can be said.
    pub is_mismatch: bool,
    /// Whether anything was counted.
    pub has_data: bool,
    /// The figures as a sentence without a full stop.
    pub finding: String,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// If nothing holds it back.
    Begin,
    Expose,
    Bake,
    /// If nothing holds it back.
    Advance,
    Pause(Cause, String, Option<Harm>),
    RollBack(String, Option<Harm>),
    /// Harm that leads to nothing yet, and whether visits are not dealt as planned: what is proved is to stay so.
    Note(Vec<Harm>, bool),
    Succeed,
    Confirm,
    Fail,
}

impl Next {
    /// Whether more visits may get the release by it, so that it may be held back.
    pub const fn raises(&self) -> bool {
        matches!(self, Self::Begin | Self::Expose | Self::Advance)
    }

    /// Whether it takes exposure away or keeps it where it is.
    pub const fn protects(&self) -> bool {
        self.urgency() < 2
    }

    /// In which order things are done, from 0: what takes exposure away before all else, and what raises it last.
    pub const fn urgency(&self) -> u8 {
        match self {
            Self::RollBack(..) => 0,
            Self::Pause(..) | Self::Note(..) | Self::Confirm | Self::Fail => 1,
            Self::Bake | Self::Succeed => 2,
            Self::Begin | Self::Expose | Self::Advance => 3,
        }
    }
}

/// When to look again at what is held back by these: as soon as one of them lifts by itself, and before long in any case.
/// What somebody does about them is seen at once, by what it tells.
pub fn look_again(blockers: &[Blocker], now: Time) -> Time {
    let opens = blockers.iter().filter_map(|blocker| blocker.next_open);
    let soonest = opens.filter(|open| *open > now).min();
    soonest.map_or(now + REST, |open| open.min(now + REST))
}

/// What a rollout does by itself now.
pub fn decide(rollout: &Rollout, seen: &Observation, now: Time) -> Option<Next> {
    if let Some(next) = harm(rollout, seen, now).or_else(|| note(rollout, seen, now)) {
        return Some(next);
    }
    match &rollout.state {
        State::Waiting { .. } => Some(Next::Begin),
        State::Running { phase: Phase::Deploying, .. } => match &seen.task {
            Some(TaskEnd::Done) => Some(Next::Expose),
            Some(TaskEnd::Failed(why)) => Some(Next::RollBack(format!("the executor failed: {why}"), None)),
            None => late(rollout, now, "no executor had made room for the step"),
        },
        State::Running { phase: Phase::Exposing, .. } => {
            if seen.is_applied {
                return Some(Next::Bake);
            }
            late(rollout, now, "not every session service acts on the step")
        }
        State::Running { phase: Phase::Baking, since } => baked(rollout, seen, *since, now),
        State::Draining { since } => {
            let deadline = rollout.plan.drain_deadline.is_none_or(|drain| now >= *since + drain);
            (deadline || seen.old_visits == Some(0)).then_some(Next::Succeed)
        }
        State::RollingBack { since, .. } => {
            if seen.is_applied {
                return Some(Next::Confirm);
            }
            (now >= *since + CONFIRM_DEADLINE).then_some(Next::Fail)
        }
        State::Paused { .. }
        | State::RollbackFailed { .. }
        | State::Succeeded { .. }
        | State::RolledBack { .. }
        | State::Cancelled { .. }
        | State::Superseded { .. } => None,
    }
}

/// What is still to be watched before the next step of a running one, for whoever asks for it.
pub fn holds(rollout: &Rollout, seen: &Observation, now: Time) -> Vec<Blocker> {
    let mut holds = Vec::new();
    if !matches!(rollout.state, State::Running { .. }) {
        return holds;
    }
    let mut hold = |kind, subject: String, description, lifted_by: &str, next_open| {
        holds.push(Blocker { kind, subject, description, lifted_by: lifted_by.to_owned(), next_open });
    };
    let id = rollout.id.to_string();
    match (&rollout.state, rollout.plan.min_bake) {
        (State::Running { phase: Phase::Deploying, .. }, _) if seen.task.is_none() => {
            let text = format!("an executor makes room for step {}", rollout.step + 1);
            hold(Kind::Executor, id, text, "the executor's report", None);
        }
        (State::Running { phase: Phase::Exposing, .. }, Some(_)) => {
            let text = "not every session service acts on the step yet".to_owned();
            hold(Kind::Bake, id, text, "its time, or SkipStep with a reason", None);
        }
        (State::Running { phase: Phase::Baking, since }, Some(min_bake)) if now < *since + min_bake => {
            let text = format!("step {} is watched for {} s", rollout.step + 1, min_bake.num_seconds());
            hold(Kind::Bake, id, text, "its time, or SkipStep with a reason", Some(*since + min_bake));
        }
        _ => {}
    }
    for watched in seen.guards.iter().filter(|watched| is_harmful(rollout, watched)) {
        let text = format!("guard {} found harm: {}", watched.guard, watched.finding);
        hold(Kind::Guard, watched.guard.clone(), text, "ResumeRollout by a person, once it is paused", None);
    }
    for watched in unsure(rollout, seen) {
        let text = format!("guard {} cannot tell: {}", watched.guard, watched.finding);
        hold(Kind::Guard, watched.guard.clone(), text, "more visits, or SkipStep with a reason", None);
    }
    holds
}

/// Whether a guard found harm that is to be acted on. One that was cleared only observes.
pub fn is_harmful(rollout: &Rollout, watched: &Watched) -> bool {
    let found = rollout.harms.iter().find(|harm| harm.guard == watched.guard);
    let is_cleared = found.is_some_and(|harm| harm.cleared.is_some());
    watched.verdict == Verdict::Harm && watched.mode != Mode::Observe && !is_cleared
}

/// Harm acts at once, at any step.
fn harm(rollout: &Rollout, seen: &Observation, now: Time) -> Option<Next> {
    let harmful = |mode| {
        let mut guards = seen.guards.iter();
        guards.find(|watched| watched.mode == mode && is_harmful(rollout, watched))
    };
    let found = |watched: &Watched| {
        let reason = format!("guard {} found harm: {}", watched.guard, watched.finding);
        (reason, Some(watched.harm(now)))
    };
    if let Some(watched) = harmful(Mode::Rollback).filter(|_| rollout.state.is_exposing()) {
        let (reason, harm) = found(watched);
        return Some(Next::RollBack(reason, harm));
    }
    let watched = harmful(Mode::Pause).filter(|_| matches!(rollout.state, State::Running { .. }))?;
    let (reason, harm) = found(watched);
    Some(Next::Pause(Cause::Harm, reason, harm))
}

/// What is proved for the first time, and what leads to nothing now: of a guard that only observes, or of a rollout that
/// is paused or goes on no more. It may be acted on later, whatever is counted then.
fn note(rollout: &Rollout, seen: &Observation, now: Time) -> Option<Next> {
    let is_new = |watched: &&Watched| rollout.harms.iter().all(|harm| harm.guard != watched.guard);
    let harmful = seen.guards.iter().filter(|watched| watched.verdict == Verdict::Harm);
    let harms: Vec<_> = harmful.filter(is_new).map(|watched| watched.harm(now)).collect();
    let is_mismatch =
        rollout.mismatched_at.is_none() && seen.guards.iter().any(|watched| watched.is_mismatch);
    let is_news = rollout.state.ended_at().is_none() && (is_mismatch || !harms.is_empty());
    is_news.then_some(Next::Note(harms, is_mismatch))
}

impl Watched {
    fn harm(&self, at: Time) -> Harm {
        Harm { guard: self.guard.clone(), finding: self.finding.clone(), at, cleared: None }
    }
}

/// Guards that an increase waits for: at every step those of visits that are dealt wrongly; before everyone all that are not
/// sure that it is safe. SAFE at a small share of visits would take days, so earlier steps do with no harm; and once
/// everyone gets the release there is nothing left to compare with.
fn unsure<'a>(rollout: &'a Rollout, seen: &'a Observation) -> impl Iterator<Item = &'a Watched> {
    let (steps, step) = (&rollout.steps, rollout.step);
    let is_compared = !steps.is_last(step);
    let everyone_is_next = is_compared && steps.is_last(step + 1);
    seen.guards.iter().filter(move |watched| {
        let is_found = rollout.harms.iter().any(|harm| harm.guard == watched.guard);
        let is_asked = is_compared && watched.mode != Mode::Observe && !is_found;
        is_asked && (watched.is_mismatch || everyone_is_next && watched.verdict == Verdict::Inconclusive)
    })
}

fn baked(rollout: &Rollout, seen: &Observation, since: Time, now: Time) -> Option<Next> {
    // Without a bake time people go on; but where everyone was to be exposed at once, there is no step to go on to.
    let at_once = rollout.plan.at_once || rollout.previous.is_none();
    let min_bake = rollout.plan.min_bake.or_else(|| at_once.then(TimeDelta::zero));
    let mut unsure = unsure(rollout, seen).peekable();
    if min_bake.is_some_and(|bake| now >= since + bake) && unsure.peek().is_none() {
        return Some(Next::Advance);
    }
    // What takes long to be exposed is watched for its time all the same.
    let deadline = rollout.step_began_at + rollout.plan.step_deadline?;
    if now < deadline.max(since + min_bake.unwrap_or_default()) {
        return None;
    }
    let cause = if seen.guards.iter().any(|watched| watched.is_mismatch) {
        Cause::SampleRatio
    } else if seen.guards.iter().any(|watched| watched.has_data) {
        Cause::Inconclusive
    } else {
        Cause::NoData
    };
    let findings: Vec<_> = unsure
        .map(|watched| format!("{}: {}", watched.guard, watched.finding))
        .collect();
    let reason = format!("the step's deadline came, and guards cannot tell ({})", findings.join("; "));
    Some(match rollout.plan.at_deadline {
        AtDeadline::Advance if cause != Cause::SampleRatio => Next::Advance,
        AtDeadline::Pause | AtDeadline::Advance => Next::Pause(cause, reason, None),
        AtDeadline::RollBack => Next::RollBack(reason, None),
    })
}

fn late(rollout: &Rollout, now: Time, what: &str) -> Option<Next> {
    if now < rollout.step_began_at + rollout.plan.step_deadline? {
        return None;
    }
    let reason = format!("the step's deadline came, and {what}");
    Some(match rollout.plan.at_deadline {
        // Nothing can go on before that is done.
        AtDeadline::Pause | AtDeadline::Advance => Next::Pause(Cause::Deadline, reason, None),
        AtDeadline::RollBack => Next::RollBack(reason, None),
    })
}

#[cfg(test)]
mod tests;
