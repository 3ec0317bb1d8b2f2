//! What session services are told of a component in an environment: the release that everyone gets, the rollout under way,
//! and what was taken back. It follows from the transitions of rollouts and from nothing else.

use shared::id::{ComponentId, EnvironmentId, ReleaseId, RolloutId, TenantId};

use crate::domain::guard::Guards;
use crate::domain::rollout::{Assignment, Mode, Phase, RollbackPolicy, Rollout, ServedRelease, State};

/// Most withdrawn releases that are told of.
const WITHDRAWN_MAX: usize = 32;

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub tenant: TenantId,
    pub component: ComponentId,
    pub environment: EnvironmentId,
    /// Rises with every change; 0 is not stored yet.
    pub revision: i64,
    pub stable: Option<ServedRelease>,
    pub rollout: Option<RoutedRollout>,
    /// Newest first. Those whose visits may finish are not among them.
    pub withdrawn: Vec<ReleaseId>,
    /// Those of them whose visits end, whatever holds them.
    pub ended: Vec<ReleaseId>,
    /// W3C trace context of what made this revision.
    pub trace_parent: String,
}

/// A rollout to assign visits by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutedRollout {
    pub id: RolloutId,
    pub release: ServedRelease,
    pub exposure_bps: i32,
    pub assignment: Assignment,
    /// Index of the present one.
    pub step: i32,
    pub guards: Guards,
}

impl Route {
    /// The route before anything was rolled out.
    pub const fn empty(tenant: TenantId, component: ComponentId, environment: EnvironmentId) -> Self {
        Self {
            tenant,
            component,
            environment,
            revision: 0,
            stable: None,
            rollout: None,
            withdrawn: Vec::new(),
            ended: Vec::new(),
            trace_parent: String::new(),
        }
    }

    /// The next revision, after a transition of a rollout; none where it tells session services nothing new. What is rolled
    /// out again is not withdrawn any more.
    pub fn after(&self, rollout: &Rollout, trace_parent: String) -> Option<Self> {
        let release = &rollout.release;
        let is_of = |routed: &RoutedRollout| routed.id == rollout.id;
        let mut next = self.clone();
        match &rollout.state {
            State::Running { .. } | State::Paused { .. } | State::Draining { .. } => {
                next.withdrawn.retain(|withdrawn| *withdrawn != release.id);
                next.rollout = Some(RoutedRollout::of(rollout));
            }
            State::Succeeded { .. } => {
                next.withdrawn.retain(|withdrawn| *withdrawn != release.id);
                next.stable = Some(release.clone());
                next.rollout = None;
            }
            State::RollingBack { .. } => {
                next.withdraw(release.id, rollout.plan.rollback_policy);
                match rollout.mode {
                    Mode::Forward => next.rollout = Some(RoutedRollout::of(rollout)),
                    Mode::Rollback { .. } => {
                        next.stable.clone_from(&rollout.previous);
                        let back = next.stable.as_ref().map(|stable| stable.id);
                        next.withdrawn.retain(|withdrawn| Some(*withdrawn) != back);
                    }
                }
            }
            State::RolledBack { .. } if next.rollout.as_ref().is_some_and(is_of) => next.rollout = None,
            State::RolledBack { .. }
            | State::RollbackFailed { .. }
            | State::Waiting { .. }
            | State::Cancelled { .. }
            | State::Superseded { .. } => {}
        }
        next.ended.retain(|ended| next.withdrawn.contains(ended));
        (next != *self).then(|| Self { revision: self.revision + 1, trace_parent, ..next })
    }

    fn withdraw(&mut self, release: ReleaseId, policy: RollbackPolicy) {
        if policy == RollbackPolicy::Finish {
            return;
        }
        self.withdrawn.insert(0, release);
        self.withdrawn.truncate(WITHDRAWN_MAX);
        if policy == RollbackPolicy::End {
            self.ended.insert(0, release);
        }
    }
}

impl RoutedRollout {
    fn of(rollout: &Rollout) -> Self {
        // While an executor makes room for a step, visits are dealt as in the one before.
        let is_ahead = rollout.state.phase() == Some(Phase::Deploying);
        let step = if is_ahead { rollout.step.saturating_sub(1) } else { rollout.step };
        Self {
            id: rollout.id,
            release: rollout.release.clone(),
            exposure_bps: rollout.exposure_bps,
            assignment: rollout.assignment,
            step: i32::try_from(step).unwrap_or(i32::MAX),
            guards: rollout.plan.guards.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::time::at;

    use super::*;
    use crate::domain::rollout::{Plan, Steps};

    fn served(number: u8) -> ServedRelease {
        ServedRelease { id: ReleaseId::new(at(0), [number; 10]), version: format!("1.{number}") }
    }

    fn rollout(release: u8, state: State) -> Rollout {
        let exposure_bps = match state.name() {
            "RUNNING" => 1000,
            "SUCCEEDED" => 10_000,
            _ => 0,
        };
        Rollout {
            id: RolloutId::new(at(0), [release; 10]),
            mode: Mode::Forward,
            component: "storefront".parse().unwrap(),
            environment: "prod".parse().unwrap(),
            release: served(release),
            previous: None,
            steps: Steps::stored(vec![1000, 10_000]),
            plan: Plan::default(),
            step: 0,
            exposure_bps,
            assignment: Assignment::NewVisits,
            state,
            step_began_at: at(0),
            harms: Vec::new(),
            mismatched_at: None,
            starter: "s".to_owned(),
            started_at: at(0),
            approval: None,
            row_version: 1,
        }
    }

    fn running(phase: Phase) -> State {
        State::Running { phase, since: at(0) }
    }

    fn back(release: u8) -> Rollout {
        rollout(release, State::RollingBack { reason: "why".to_owned(), since: at(1) })
    }

    fn empty() -> Route {
        let name = "storefront".parse().unwrap();
        Route::empty("shop".parse().unwrap(), name, "prod".parse().unwrap())
    }

    fn after(route: &Route, rollout: &Rollout) -> Route {
        route.after(rollout, String::new()).unwrap()
    }

    #[test]
    fn a_route_follows_its_rollouts() {
        let first = after(&empty(), &rollout(0, running(Phase::Exposing)));
        assert_eq!((first.revision, first.rollout.as_ref().map(|it| it.exposure_bps)), (1, Some(1000)));
        let stable = after(&first, &rollout(0, State::Succeeded { at: at(1) }));
        assert_eq!(
            (stable.revision, stable.stable.clone(), stable.rollout.clone()),
            (2, Some(served(0)), None)
        );
        let canary = after(&stable, &rollout(1, running(Phase::Exposing)));
        let zero = after(&canary, &back(1));
        assert_eq!(zero.rollout.as_ref().map(|it| it.exposure_bps), Some(0));
        assert_eq!((zero.stable.clone(), zero.withdrawn.clone()), (Some(served(0)), vec![served(1).id]));
        let ended = State::RolledBack { reason: "why".to_owned(), at: at(2) };
        let gone = after(&zero, &rollout(1, ended));
        assert_eq!((gone.revision, gone.rollout.clone()), (5, None));
        let again = after(&gone, &rollout(1, running(Phase::Exposing)));
        assert_eq!(again.withdrawn, []);
    }

    #[test]
    fn what_tells_session_services_nothing_new_is_no_revision() {
        let canary = after(&empty(), &rollout(1, running(Phase::Exposing)));
        assert_eq!(canary.after(&rollout(1, running(Phase::Baking)), "another trace".to_owned()), None);
    }

    #[test]
    fn while_an_executor_makes_room_for_a_step_visits_are_booked_in_the_one_before() {
        let step_of = |phase, step| {
            let rollout = Rollout { step, exposure_bps: 1000, ..rollout(1, running(phase)) };
            after(&empty(), &rollout).rollout.map(|routed| routed.step)
        };
        assert_eq!(step_of(Phase::Deploying, 0), Some(0));
        assert_eq!(step_of(Phase::Deploying, 1), Some(0));
        assert_eq!(step_of(Phase::Exposing, 1), Some(1));
    }

    #[test]
    fn a_rollback_does_with_visits_what_its_plan_says() {
        let back_by = |rollback_policy| {
            let plan = Plan { rollback_policy, ..Plan::default() };
            let route = after(&empty(), &Rollout { plan, ..back(1) });
            (route.withdrawn.len(), route.ended.len())
        };
        assert_eq!(back_by(RollbackPolicy::Finish), (0, 0));
        assert_eq!(back_by(RollbackPolicy::Migrate), (1, 0));
        assert_eq!(back_by(RollbackPolicy::End), (1, 1));
    }

    #[test]
    fn what_was_rolled_out_is_taken_back_to_what_was_there_before() {
        let stable = after(&empty(), &rollout(2, State::Succeeded { at: at(1) }));
        let taken = rollout(2, State::Succeeded { at: at(1) });
        let taken = Rollout { previous: Some(served(1)), ..taken };
        let back = taken.take_back(RolloutId::new(at(2), [9; 10]), "why".to_owned(), "s".to_owned(), at(2));
        let route = after(&stable, &back.rollout);
        assert_eq!(
            (route.stable, route.withdrawn, route.rollout),
            (Some(served(1)), vec![served(2).id], None)
        );
    }

    #[test]
    fn the_newest_32_withdrawn_releases_are_told_of() {
        let route = (0..40).fold(empty(), |route, release| after(&route, &back(release)));
        let expected: Vec<_> = (8..40).rev().map(|release| served(release).id).collect();
        assert_eq!(route.withdrawn, expected);
    }
}
