//! The rollout of what is shipped: which one says where the release stands, how one is started, and what is to be done with
//! it.

use std::process::ExitCode;

use shared::pb::release::{
    Guard, ListRolloutsRequest, Rollout, RolloutState, StartRolloutRequest, StepPhase,
};

use super::{ENVIRONMENT, Plan, WAITS, request_id};
use crate::client::ReleaseClients;
use crate::error::Error;
use crate::percent::Percent;
use crate::rollout::plan::watching;
use crate::term;
use crate::up::hints::Shell;

/// States in which visits get the release.
pub(crate) const EXPOSED: [RolloutState; 4] =
    [RolloutState::Running, RolloutState::Paused, RolloutState::Draining, RolloutState::Succeeded];
/// Rollouts that are looked at for what visits get.
const LOOKED_AT: i32 = 200;

/// The newest rollout of a component in an environment that is in one of these states, or in any where none is named.
pub(crate) async fn newest(
    clients: &mut ReleaseClients,
    component: &str,
    environment: &str,
    states: &[RolloutState],
) -> Result<Option<Rollout>, Error> {
    let request = ListRolloutsRequest {
        component: component.to_owned(),
        environment: environment.to_owned(),
        states: states.iter().map(|state| (*state).into()).collect(),
        page_size: 1,
        page_token: String::new(),
    };
    let rollouts = clients.rollouts.list_rollouts(request).await?.into_inner().rollouts;
    Ok(rollouts.into_iter().next())
}

/// The rollout that says where the release stands. None where it was taken back, or where visits get another one since:
/// then it takes a new rollout. Beside it the id of the newest of all.
pub(super) async fn under_way(
    clients: &mut ReleaseClients,
    plan: &Plan,
    release_id: &str,
) -> Result<(Option<Rollout>, String), Error> {
    let request = ListRolloutsRequest {
        component: plan.component.clone(),
        environment: plan.environment.clone(),
        page_size: LOOKED_AT,
        ..ListRolloutsRequest::default()
    };
    let rollouts = clients.rollouts.list_rollouts(request).await?.into_inner().rollouts;
    let newest = rollouts.first().map(|rollout| rollout.rollout_id.clone());
    Ok((standing(&rollouts, release_id).cloned(), newest.unwrap_or_default()))
}

/// Of rollouts, newest first: the newest if it is of the release and not final, else the one by which visits get it. What was
/// taken back has left the one before it in place.
fn standing<'a>(rollouts: &'a [Rollout], release_id: &str) -> Option<&'a Rollout> {
    let newest = rollouts
        .first()
        .filter(|newest| newest.end_time.is_none() && newest.release_id == release_id);
    let serving = || {
        let is_taken_back = |id: &str| rollouts.iter().any(|rollout| rollout.rollback_of == id);
        let mut serving = rollouts
            .iter()
            .filter(|rollout| EXPOSED.contains(&rollout.state()) && !is_taken_back(&rollout.rollout_id));
        serving.next().filter(|rollout| rollout.release_id == release_id)
    };
    newest.or_else(serving)
}

/// The newest rollout before it tells this start from an earlier one that was taken back since.
pub(super) async fn start(
    clients: &mut ReleaseClients,
    plan: &Plan,
    release_id: String,
    newest: &str,
) -> Result<Rollout, Error> {
    let steps = plan.steps.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let policy = plan.assignment.as_str_name();
    let watching = watching(&plan.guards, plan.bake);
    let watched = format!("{watching:?}");
    let request = StartRolloutRequest {
        request_id: request_id(&["start", &release_id, newest, &plan.environment, &steps, policy, &watched]),
        release_id,
        environment: plan.environment.clone(),
        step_exposures_bps: plan.steps.clone(),
        assignment_policy: plan.assignment.into(),
        plan: Some(watching),
        wait: false,
    };
    let answer = clients.rollouts.start_rollout(request).await?;
    Ok(answer.into_inner().rollout.unwrap_or_default())
}

/// Whether what was started goes by at least what is asked for now.
pub(super) fn goes_by_what_is_asked(rollout: &Rollout, plan: &Plan) -> bool {
    let goes_by = rollout.plan.clone().unwrap_or_default();
    let asked = watching(&plan.guards, plan.bake);
    let is_watched = |guard: &Guard| {
        let mut watched = goes_by.guards.iter();
        watched.any(|other| other.name == guard.name && other.mode == guard.mode)
    };
    rollout.step_exposures_bps.starts_with(&plan.steps)
        && asked.guards.iter().all(is_watched)
        && (asked.min_bake.is_none() || asked.min_bake == goes_by.min_bake)
}

pub(super) fn tell(rollout: &Rollout, environment: &str, shell: &Shell) -> Result<ExitCode, Error> {
    let Rollout { component, version, .. } = rollout;
    let place = if environment == ENVIRONMENT { "" } else { &format!(" --environment {environment}") };
    let of = |command: &str, more: &str| shell.tandem(&format!("rollout {command} {component}{place}{more}"));
    let follow = || term::say(format_args!("follow: {}", of("watch", "")));
    match rollout.state() {
        RolloutState::Running | RolloutState::Draining => {
            let share = Percent(rollout.exposure_bps);
            term::say(format_args!("{component} {version} is on {share} of visits in {environment}"));
            follow();
            let goes_on = rollout.plan.as_ref().is_some_and(|plan| plan.min_bake.is_some());
            if rollout.phase() == StepPhase::Deploying {
                term::say(format_args!("next: an executor in {environment} makes room for it"));
            } else if goes_on {
                term::say("next: it goes on by itself");
            } else {
                term::say(format_args!("next: {}", of("advance", "")));
            }
            term::say(format_args!("  or: {}", of("back", " --reason 'a look around'")));
            Ok(ExitCode::SUCCESS)
        }
        RolloutState::Paused => {
            let reason = rollout.pause.as_ref().map_or("", |pause| &pause.reason);
            term::say(format_args!("{component} {version} is paused in {environment}: {reason}"));
            follow();
            Ok(ExitCode::from(WAITS))
        }
        RolloutState::Waiting => {
            let reasons = rollout.waiting_for.join(", ");
            term::say(format_args!("{component} {version} waits in {environment} for {reasons}"));
            follow();
            Ok(ExitCode::from(WAITS))
        }
        RolloutState::Succeeded => {
            term::say(format_args!("{component} {version} is on every new visit in {environment}"));
            term::say(format_args!("back: {}", of("back", " --reason 'it broke'")));
            Ok(ExitCode::SUCCESS)
        }
        RolloutState::Unspecified
        | RolloutState::RollingBack
        | RolloutState::RollbackFailed
        | RolloutState::RolledBack
        | RolloutState::Cancelled
        | RolloutState::Superseded => Err(Error::Failed(format!(
            "{component} {version} is being rolled back in {environment}: ship a new version"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout(id: &str, release: &str, state: RolloutState, rollback_of: &str) -> Rollout {
        let has_ended = [RolloutState::Succeeded, RolloutState::RolledBack].contains(&state);
        Rollout {
            rollout_id: id.to_owned(),
            release_id: release.to_owned(),
            state: state.into(),
            rollback_of: rollback_of.to_owned(),
            end_time: has_ended.then(prost_types::Timestamp::default),
            ..Rollout::default()
        }
    }

    #[test]
    fn what_was_taken_back_leaves_what_was_before_it_in_place() {
        use RolloutState::{Paused, RolledBack, RollingBack, Succeeded};
        let first = rollout("1", "a", Succeeded, "");
        let id = |rollouts: &[Rollout], release| {
            standing(rollouts, release)
                .map(|rollout| rollout.rollout_id.clone())
                .unwrap_or_default()
        };
        let canary = rollout("2", "b", RolledBack, "");
        assert_eq!(id(&[canary.clone(), first.clone()], "a"), "1");
        assert_eq!(id(&[canary, first.clone()], "b"), "");
        let second = rollout("2", "b", Succeeded, "");
        assert_eq!(id(&[second.clone(), first.clone()], "a"), "");
        let back = rollout("3", "b", RolledBack, "2");
        assert_eq!(id(&[back.clone(), second.clone(), first.clone()], "a"), "1");
        assert_eq!(id(&[back, second, first.clone()], "b"), "");
        for state in [Paused, RollingBack] {
            assert_eq!(id(&[rollout("4", "c", state, ""), first.clone()], "c"), "4");
        }
    }
}
