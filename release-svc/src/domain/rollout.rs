//! One release moving into one environment, in steps. Forward, exposure only rises; backward, it goes to 0 at once, and
//! nothing may stand in the way of that.

use shared::id::{ApprovalId, ComponentId, EnvironmentId, ReleaseId, RolloutId};
use shared::time::Time;

use crate::domain::blocker::{self, Blocked, Blocker, Kind};
use crate::domain::release::Release;

/// Everyone, in basis points.
pub const EVERYONE_BPS: i32 = 10_000;
/// Most steps that may be asked for.
const STEPS_MAX: usize = 32;

/// A rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollout {
    pub id: RolloutId,
    pub component: ComponentId,
    pub environment: EnvironmentId,
    pub release: ServedRelease,
    /// What it replaces.
    pub previous: Option<ServedRelease>,
    pub steps: Steps,
    /// Index of the present step, or of the one it ended at.
    pub step: usize,
    pub assignment: Assignment,
    pub state: State,
    /// `issuer|sub`.
    pub starter: String,
    pub started_at: Time,
    /// The one that stood then; none where an older version of Tandem started it.
    pub approval: Option<ApprovalId>,
    pub row_version: i64,
}

/// Where a rollout stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Running,
    Succeeded { at: Time },
    RollingBack { reason: String },
    RolledBack { reason: String, at: Time },
}

/// A release as environments serve it; its version as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedRelease {
    pub id: ReleaseId,
    pub version: String,
}

/// Which visits may be assigned to an arm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assignment {
    /// Those that begin after the start.
    NewVisits,
    /// Running ones, too, except while a checkout is open.
    AllSessions,
}

/// Exposures in basis points, rising to everyone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Steps(Vec<i32>);

/// The numbers are no steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSteps {
    #[error("must have at most {STEPS_MAX} elements")]
    TooMany,
    #[error("must be 1 to {EVERYONE_BPS} each")]
    OutOfRange,
    #[error("must rise from step to step")]
    NotRising,
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Plan {
    pub id: RolloutId,
    pub environment: EnvironmentId,
    /// None goes to everyone at once.
    pub steps: Option<Steps>,
    pub assignment: Assignment,
    /// `issuer|sub`.
    pub starter: String,
}

/// The rollout is in a state that does not allow it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rollout {id} is {state}")]
pub struct WrongState {
    pub id: RolloutId,
    pub state: &'static str,
}

/// A transition: the rollout after it, the name of the state before it (none for a new one), and what its event is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub rollout: Rollout,
    pub from: Option<&'static str>,
    pub kind: &'static str,
}

impl Rollout {
    /// Starts at the first step, unless something holds it back, here or elsewhere (`held`); then says all that does.
    /// Without a `stable` release there is nothing to compare with, so the first goes to everyone at once, which is two
    /// transitions.
    pub fn start(
        plan: Plan,
        release: &Release,
        stable: Option<ServedRelease>,
        earlier: Option<RolloutId>,
        held: Vec<Blocker>,
        now: Time,
    ) -> Result<Vec<Decision>, Blocked> {
        blocker::require_none(blockers(&plan.environment, release, stable.as_ref(), earlier, held))?;
        let (steps, at_once) = match plan.steps {
            Some(steps) if stable.is_some() => (steps, false),
            Some(_) | None => (Steps(vec![EVERYONE_BPS]), true),
        };
        let rollout = Self {
            id: plan.id,
            component: release.component.clone(),
            environment: plan.environment,
            release: ServedRelease { id: release.id, version: release.version.to_string() },
            previous: stable,
            steps,
            step: 0,
            assignment: plan.assignment,
            state: State::Running,
            starter: plan.starter,
            started_at: now,
            approval: release.approval.as_ref().map(|approval| approval.id),
            row_version: 1,
        };
        let started = Decision { rollout, from: None, kind: "rollout.started" };
        if !at_once {
            return Ok(vec![started]);
        }
        let succeeded = started
            .rollout
            .clone()
            .passed_to(State::Succeeded { at: now }, "rollout.succeeded");
        Ok(vec![started, succeeded])
    }

    /// Goes to the next step; after the last the rollout has succeeded.
    pub fn advance(self, now: Time) -> Result<Decision, WrongState> {
        if self.state != State::Running {
            return Err(self.wrong_state());
        }
        if self.step + 1 == self.steps.0.len() {
            return Ok(self.passed_to(State::Succeeded { at: now }, "rollout.succeeded"));
        }
        let next = Self { step: self.step + 1, ..self };
        Ok(next.passed_to(State::Running, "rollout.advanced"))
    }

    /// Takes exposure to 0. None where that was done before.
    pub fn roll_back(self, reason: String) -> Result<Option<Decision>, WrongState> {
        match self.state {
            State::Running => {
                Ok(Some(self.passed_to(State::RollingBack { reason }, "rollout.rollback_started")))
            }
            State::RollingBack { .. } | State::RolledBack { .. } => Ok(None),
            State::Succeeded { .. } => Err(self.wrong_state()),
        }
    }

    /// Takes in that every session service acts on exposure 0. None where there is nothing to confirm.
    pub fn confirm(self, now: Time) -> Option<Decision> {
        match &self.state {
            State::RollingBack { reason } => {
                let reason = reason.clone();
                Some(self.passed_to(State::RolledBack { reason, at: now }, "rollout.rolled_back"))
            }
            State::Running | State::Succeeded { .. } | State::RolledBack { .. } => None,
        }
    }

    /// Share of visits on the new release.
    pub fn exposure_bps(&self) -> i32 {
        match self.state {
            State::Running => self.steps.0.get(self.step).copied().unwrap_or(0),
            State::Succeeded { .. } => EVERYONE_BPS,
            State::RollingBack { .. } | State::RolledBack { .. } => 0,
        }
    }

    fn passed_to(self, state: State, kind: &'static str) -> Decision {
        let from = Some(self.state.name());
        Decision { rollout: Self { state, row_version: self.row_version + 1, ..self }, from, kind }
    }

    fn wrong_state(&self) -> WrongState {
        WrongState { id: self.id, state: self.state.name() }
    }
}

/// What keeps a release from starting in an environment, with what does elsewhere (`held`). Where it serves everyone
/// there is nothing to start, and nothing else matters.
pub fn blockers(
    environment: &EnvironmentId,
    release: &Release,
    stable: Option<&ServedRelease>,
    earlier: Option<RolloutId>,
    held: Vec<Blocker>,
) -> Vec<Blocker> {
    let id = release.id;
    let blocker = |kind, subject: String, description, lifted_by: &str| Blocker {
        kind,
        subject,
        description,
        lifted_by: lifted_by.to_owned(),
        next_open: None,
    };
    if stable.is_some_and(|stable| stable.id == id) {
        let text = format!("release {id} serves everyone in {environment} already");
        return vec![blocker(Kind::State, id.to_string(), text, "another release")];
    }
    let earlier = earlier.map(|rollout| {
        let text = format!("rollout {rollout} of this component is not finished here");
        blocker(Kind::EarlierRollout, rollout.to_string(), text, "the end of that rollout")
    });
    release.state_hold().into_iter().chain(earlier).chain(held).collect()
}

impl State {
    /// As on the wire and in the database.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Succeeded { .. } => "SUCCEEDED",
            Self::RollingBack { .. } => "ROLLING_BACK",
            Self::RolledBack { .. } => "ROLLED_BACK",
        }
    }

    /// When it ended.
    pub const fn ended_at(&self) -> Option<Time> {
        match self {
            Self::Succeeded { at } | Self::RolledBack { at, .. } => Some(*at),
            Self::Running | Self::RollingBack { .. } => None,
        }
    }

    /// Why it was rolled back.
    pub fn rollback_reason(&self) -> Option<&str> {
        match self {
            Self::RollingBack { reason } | Self::RolledBack { reason, .. } => Some(reason),
            Self::Running | Self::Succeeded { .. } => None,
        }
    }
}

impl Assignment {
    /// As on the wire, without its prefix, and in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NewVisits => "NEW_VISITS",
            Self::AllSessions => "ALL_SESSIONS",
        }
    }
}

impl Steps {
    /// The steps asked for, with everyone as the last; none where none were asked for.
    pub fn asked(mut exposures: Vec<i32>) -> Result<Option<Self>, BadSteps> {
        if exposures.len() > STEPS_MAX {
            return Err(BadSteps::TooMany);
        }
        if exposures.iter().any(|bps| !(1..=EVERYONE_BPS).contains(bps)) {
            return Err(BadSteps::OutOfRange);
        }
        if exposures.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(BadSteps::NotRising);
        }
        match exposures.last() {
            None => return Ok(None),
            Some(&EVERYONE_BPS) => {}
            Some(_) => exposures.push(EVERYONE_BPS),
        }
        Ok(Some(Self(exposures)))
    }

    /// Those that were stored.
    pub const fn stored(exposures: Vec<i32>) -> Self {
        Self(exposures)
    }

    pub fn as_slice(&self) -> &[i32] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::time::at;

    use super::*;
    use crate::domain::release;

    fn release(is_approved: bool) -> Release {
        let release = release::tests::draft();
        let submission = release::tests::submission(0);
        let state = if is_approved { release::State::Approved(submission) } else { release::State::Draft };
        Release { id: ReleaseId::new(at(1), [1; 10]), state, ..release }
    }

    fn stable() -> ServedRelease {
        ServedRelease { id: ReleaseId::new(at(0), [9; 10]), version: "1.0".to_owned() }
    }

    fn plan(steps: Vec<i32>) -> Plan {
        Plan {
            id: RolloutId::new(at(2), [2; 10]),
            environment: "prod".parse().unwrap(),
            steps: Steps::asked(steps).unwrap(),
            assignment: Assignment::NewVisits,
            starter: "s".to_owned(),
        }
    }

    fn running(steps: Vec<i32>) -> Rollout {
        let mut decisions =
            Rollout::start(plan(steps), &release(true), Some(stable()), None, vec![], at(3)).unwrap();
        assert_eq!(decisions.len(), 1);
        decisions.remove(0).rollout
    }

    fn in_state(name: &str) -> Rollout {
        let rollout = running(vec![1000]);
        let back = || rollout.clone().roll_back("why".to_owned()).unwrap().unwrap().rollout;
        let rollout = match name {
            "RUNNING" => rollout,
            "SUCCEEDED" => {
                rollout
                    .advance(at(4))
                    .and_then(|next| next.rollout.advance(at(5)))
                    .unwrap()
                    .rollout
            }
            "ROLLING_BACK" => back(),
            "ROLLED_BACK" => back().confirm(at(6)).unwrap().rollout,
            _ => panic!("{name}"),
        };
        assert_eq!(rollout.state.name(), name);
        rollout
    }

    #[test]
    fn every_event_does_in_every_state_what_the_table_says() {
        for (state, advanced, rolled_back, confirmed) in [
            ("RUNNING", Ok("RUNNING"), Ok(Some("ROLLING_BACK")), None),
            ("SUCCEEDED", Err("SUCCEEDED"), Err("SUCCEEDED"), None),
            ("ROLLING_BACK", Err("ROLLING_BACK"), Ok(None), Some("ROLLED_BACK")),
            ("ROLLED_BACK", Err("ROLLED_BACK"), Ok(None), None),
        ] {
            let name = |decision: Decision| decision.rollout.state.name();
            let advance = in_state(state).advance(at(7)).map(name).map_err(|error| error.state);
            assert_eq!(advance, advanced, "advance in {state}");
            let back = in_state(state).roll_back("again".to_owned());
            let back = back.map(|decision| decision.map(name)).map_err(|error| error.state);
            assert_eq!(back, rolled_back, "roll back in {state}");
            assert_eq!(in_state(state).confirm(at(7)).map(name), confirmed, "confirm in {state}");
        }
    }

    #[test]
    fn the_first_release_and_a_rollout_without_steps_go_to_everyone_at_once() {
        for (steps, stable) in [(vec![1000], None), (vec![], None), (vec![], Some(stable()))] {
            let decisions = Rollout::start(plan(steps), &release(true), stable, None, vec![], at(3)).unwrap();
            let told: Vec<_> = decisions.iter().map(|decision| (decision.kind, decision.from)).collect();
            assert_eq!(told, [("rollout.started", None), ("rollout.succeeded", Some("RUNNING"))]);
            let last = &decisions[1].rollout;
            assert_eq!((last.exposure_bps(), last.row_version), (EVERYONE_BPS, 2));
        }
    }

    #[test]
    fn all_blockers_are_named_at_once_but_where_the_release_serves_everyone() {
        let earlier = RolloutId::new(at(1), [5; 10]);
        let release = release(false);
        let same = ServedRelease { id: release.id, version: "1.1".to_owned() };
        let held = Blocker {
            kind: Kind::Window,
            subject: "wnd_1".to_owned(),
            description: "frozen".to_owned(),
            lifted_by: "its end".to_owned(),
            next_open: Some(at(9)),
        };
        let blockers = |stable| {
            let held = vec![held.clone()];
            let Blocked(blockers) =
                Rollout::start(plan(vec![]), &release, Some(stable), Some(earlier), held, at(3)).unwrap_err();
            blockers.into_iter().map(|it| (it.kind, it.subject)).collect::<Vec<_>>()
        };
        let state = (Kind::State, release.id.to_string());
        let rollout = (Kind::EarlierRollout, earlier.to_string());
        assert_eq!(blockers(stable()), [state.clone(), rollout, (Kind::Window, "wnd_1".to_owned())]);
        // What serves everyone has nowhere to go, so nothing else matters.
        assert_eq!(blockers(same), [state]);
    }

    #[test]
    fn steps_rise_to_everyone() {
        let asked = |steps: &[i32]| Steps::asked(steps.to_vec()).map(|steps| steps.map(|steps| steps.0));
        assert_eq!(asked(&[]), Ok(None));
        assert_eq!(asked(&[1000]), Ok(Some(vec![1000, EVERYONE_BPS])));
        assert_eq!(asked(&[1, EVERYONE_BPS]), Ok(Some(vec![1, EVERYONE_BPS])));
        assert_eq!(asked(&[0]), Err(BadSteps::OutOfRange));
        assert_eq!(asked(&[10_001]), Err(BadSteps::OutOfRange));
        assert_eq!(asked(&[500, 500]), Err(BadSteps::NotRising));
        assert_eq!(asked(&(1..=33).collect::<Vec<_>>()), Err(BadSteps::TooMany));
    }

    proptest! {
        #[test]
        fn forward_exposure_rises_backward_it_is_0_and_the_end_is_the_end(
            steps in proptest::collection::btree_set(1_i32..10_000, 1..8),
            events in proptest::collection::vec(0_u8..8, 0..24),
        ) {
            let mut rollout = running(steps.into_iter().collect());
            for event in events {
                let next = match event {
                    0 => rollout.clone().roll_back("why".to_owned()).ok().flatten(),
                    1 => rollout.clone().confirm(at(8)),
                    _ => rollout.clone().advance(at(8)).ok(),
                };
                let Some(Decision { rollout: next, from, .. }) = next else { continue };
                prop_assert!(rollout.state.ended_at().is_none(), "left {}", rollout.state.name());
                prop_assert_eq!(from, Some(rollout.state.name()));
                prop_assert_eq!(next.row_version, rollout.row_version + 1);
                if next.state.rollback_reason().is_some() {
                    prop_assert_eq!(next.exposure_bps(), 0);
                } else {
                    prop_assert!(next.exposure_bps() >= rollout.exposure_bps());
                }
                rollout = next;
            }
        }
    }
}
