//! One release moving into one environment, in steps. Forward, exposure only rises; backward, it goes to 0 at once, and
//! nothing may stand in the way of that.
//!
//! What was rolled out to its end is taken back by a rollout of its own, of mode [`Mode::Rollback`].

use chrono::TimeDelta;
use shared::id::{ApprovalId, ComponentId, EnvironmentId, ReleaseId, RolloutId};
use shared::time::Time;

use crate::domain::blocker::{Blocker, Kind};
use crate::domain::release::Release;

pub mod control;
mod plan;
mod state;

pub use plan::{AtDeadline, BadSteps, Plan, RollbackPolicy, STEPS_MAX, Steps};
pub use state::{Cause, Harm, Pause, Phase, State};

/// Everyone, in basis points.
pub const EVERYONE_BPS: i32 = 10_000;
/// How long session services may take to confirm exposure 0 before a person is asked to look.
pub const CONFIRM_DEADLINE: TimeDelta = TimeDelta::minutes(15);

/// A rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollout {
    pub id: RolloutId,
    pub mode: Mode,
    pub component: ComponentId,
    pub environment: EnvironmentId,
    pub release: ServedRelease,
    /// What it replaces, and what comes back when it is rolled back.
    pub previous: Option<ServedRelease>,
    pub steps: Steps,
    pub plan: Plan,
    /// Index of the present step, or of the one it ended at.
    pub step: usize,
    /// Share of visits that session services are told to put on the release.
    pub exposure_bps: i32,
    pub assignment: Assignment,
    pub state: State,
    /// When its present step began, or was resumed: what the step's deadline counts from.
    pub step_began_at: Time,
    /// What guards found, each once, those that only observe, too. Stays for ever.
    pub harms: Vec<Harm>,
    /// When its visits were first found not to be dealt as planned. Stays for ever.
    pub mismatched_at: Option<Time>,
    /// `issuer|sub`.
    pub starter: String,
    pub started_at: Time,
    /// The one that stood when it began; none where it still waits, where it goes back, or where an older version of Tandem
    /// started it.
    pub approval: Option<ApprovalId>,
    pub row_version: i64,
}

/// Which way a rollout goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Forward,
    /// Takes back what this one brought.
    Rollback {
        of: RolloutId,
    },
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

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    pub id: RolloutId,
    pub environment: EnvironmentId,
    /// None goes to everyone at once.
    pub steps: Option<Steps>,
    pub plan: Plan,
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
    /// Why, where somebody said so.
    pub reason: Option<String>,
}

impl Rollout {
    /// One that waits for whatever holds it back.
    pub fn wait(asked: Asked, release: &Release, reasons: Vec<Kind>, now: Time) -> Decision {
        let rollout = Self {
            id: asked.id,
            mode: Mode::Forward,
            component: release.component.clone(),
            environment: asked.environment,
            release: ServedRelease { id: release.id, version: release.version.to_string() },
            previous: None,
            plan: Plan { at_once: asked.steps.is_none(), ..asked.plan },
            steps: asked.steps.unwrap_or_else(Steps::at_once),
            step: 0,
            exposure_bps: 0,
            assignment: asked.assignment,
            state: State::Waiting { since: now, reasons },
            step_began_at: now,
            harms: Vec::new(),
            mismatched_at: None,
            starter: asked.starter,
            started_at: now,
            approval: None,
            row_version: 1,
        };
        Decision { rollout, from: None, kind: "rollout.waiting", reason: None }
    }

    /// Begins one that nothing holds back, at its first step. Without a `stable` release there is nothing to compare with,
    /// so the first goes to everyone at once.
    pub fn start(asked: Asked, release: &Release, stable: Option<ServedRelease>, now: Time) -> Vec<Decision> {
        let waiting = Self::wait(asked, release, Vec::new(), now).rollout;
        let mut decisions = waiting.begin(release, stable, now);
        for (decision, row_version) in decisions.iter_mut().zip(1..) {
            decision.rollout.row_version = row_version;
        }
        if let Some(first) = decisions.first_mut() {
            first.from = None;
        }
        decisions
    }

    /// Begins one that waited and that nothing holds back any more.
    pub fn begin(self, release: &Release, stable: Option<ServedRelease>, now: Time) -> Vec<Decision> {
        let at_once = self.plan.at_once || stable.is_none();
        let steps = if at_once { Steps::at_once() } else { self.steps };
        let phase = if self.plan.needs_executor { Phase::Deploying } else { Phase::Exposing };
        let begun = Self {
            previous: stable,
            exposure_bps: if self.plan.needs_executor { 0 } else { steps.exposure_bps(0) },
            steps,
            approval: release.approval.as_ref().map(|approval| approval.id),
            started_at: now,
            step_began_at: now,
            ..self
        };
        let has_nothing_to_watch = at_once && begun.plan.waits_for_nothing();
        let started = begun.passed_to(State::Running { phase, since: now }, "rollout.started");
        if !has_nothing_to_watch {
            return vec![started];
        }
        let ended = started
            .rollout
            .clone()
            .passed_to(State::Succeeded { at: now }, "rollout.succeeded");
        vec![started, ended]
    }

    /// Shows an executor's room to session services.
    pub fn expose(self, now: Time) -> Result<Decision, WrongState> {
        let State::Running { phase: Phase::Deploying, .. } = self.state else {
            return Err(self.wrong_state());
        };
        let exposed = Self { exposure_bps: self.steps.exposure_bps(self.step), ..self };
        Ok(exposed.passed_to(State::Running { phase: Phase::Exposing, since: now }, "rollout.exposed"))
    }

    /// Takes in that every session service acts on the step.
    pub fn bake(self, now: Time) -> Result<Decision, WrongState> {
        let State::Running { phase: Phase::Exposing, .. } = self.state else {
            return Err(self.wrong_state());
        };
        Ok(self.passed_to(State::Running { phase: Phase::Baking, since: now }, "rollout.baking"))
    }

    /// Goes to the next step; from the last one it drains, or has succeeded where nothing is to be waited for.
    pub fn advance(self, now: Time) -> Result<Decision, WrongState> {
        let State::Running { phase: Phase::Exposing | Phase::Baking, .. } = self.state else {
            return Err(self.wrong_state());
        };
        if self.steps.is_last(self.step) {
            let drains = self.plan.drain_deadline.is_some() && self.previous.is_some();
            return Ok(if drains {
                self.passed_to(State::Draining { since: now }, "rollout.draining")
            } else {
                self.passed_to(State::Succeeded { at: now }, "rollout.succeeded")
            });
        }
        let step = self.step + 1;
        let (phase, exposure_bps) = if self.plan.needs_executor {
            (Phase::Deploying, self.exposure_bps)
        } else {
            (Phase::Exposing, self.steps.exposure_bps(step))
        };
        let next = Self { step, exposure_bps, step_began_at: now, ..self };
        Ok(next.passed_to(State::Running { phase, since: now }, "rollout.advanced"))
    }

    /// Ends the wait for visits on the old release.
    pub fn succeed(self, now: Time) -> Result<Decision, WrongState> {
        let State::Draining { .. } = self.state else { return Err(self.wrong_state()) };
        Ok(self.passed_to(State::Succeeded { at: now }, "rollout.succeeded"))
    }

    /// Keeps it at its exposure. None where it is kept already.
    pub fn pause(self, pause: Pause) -> Result<Option<Decision>, WrongState> {
        if let State::Paused { .. } = self.state {
            return Ok(None);
        }
        let State::Running { phase, .. } = self.state else { return Err(self.wrong_state()) };
        Ok(Some(self.passed_to(State::Paused { phase, pause }, "rollout.paused")))
    }

    /// Goes on with the phase that it was in, from its beginning; the step's deadline begins anew, too. Whoever resumes after harm has cleared the guard.
    pub fn resume(self, by: &str, reason: String, now: Time) -> Result<Decision, WrongState> {
        let State::Paused { phase, pause } = &self.state else { return Err(self.wrong_state()) };
        // What was applied may have changed meanwhile; it is asked again.
        let phase = if *phase == Phase::Deploying { Phase::Deploying } else { Phase::Exposing };
        let harms = self.harms.iter().cloned();
        let harms = if pause.cause == Cause::Harm {
            harms.map(|harm| harm.clear(by, &reason, now)).collect()
        } else {
            harms.collect()
        };
        let cleared = Self { harms, step_began_at: now, ..self };
        let resumed = cleared.passed_to(State::Running { phase, since: now }, "rollout.resumed");
        Ok(Decision { reason: Some(reason), ..resumed })
    }

    /// Takes exposure to 0, or gives it up where nobody is exposed. None where that was done before, or where it has ended.
    pub fn roll_back(self, reason: String, now: Time) -> Option<Decision> {
        match self.state {
            State::Waiting { .. } => {
                Some(self.passed_to(State::Cancelled { reason, at: now }, "rollout.cancelled"))
            }
            State::Running { .. } | State::Paused { .. } | State::Draining { .. } => {
                let back = Self { exposure_bps: 0, ..self };
                Some(back.passed_to(State::RollingBack { reason, since: now }, "rollout.rollback_started"))
            }
            State::RollingBack { .. }
            | State::RollbackFailed { .. }
            | State::Succeeded { .. }
            | State::RolledBack { .. }
            | State::Cancelled { .. }
            | State::Superseded { .. } => None,
        }
    }

    /// The rollout that takes this one back, which has succeeded and still serves.
    pub fn take_back(&self, id: RolloutId, reason: String, starter: String, now: Time) -> Decision {
        let rollout = Self {
            id,
            mode: Mode::Rollback { of: self.id },
            steps: Steps::at_once(),
            step: 0,
            exposure_bps: 0,
            state: State::RollingBack { reason: reason.clone(), since: now },
            step_began_at: now,
            harms: Vec::new(),
            mismatched_at: None,
            starter,
            started_at: now,
            approval: None,
            row_version: 1,
            ..self.clone()
        };
        Decision { rollout, from: None, kind: "rollout.rollback_started", reason: Some(reason) }
    }

    /// Gives the place of one that waits to a newer one.
    pub fn supersede(self, by: RolloutId, now: Time) -> Result<Decision, WrongState> {
        let State::Waiting { .. } = self.state else { return Err(self.wrong_state()) };
        Ok(self.passed_to(State::Superseded { by, at: now }, "rollout.superseded"))
    }

    /// Takes in that every session service acts on exposure 0. None where there is nothing to confirm.
    pub fn confirm(self, now: Time) -> Option<Decision> {
        let State::RollingBack { reason, .. } = &self.state else { return None };
        let reason = reason.clone();
        Some(self.passed_to(State::RolledBack { reason, at: now }, "rollout.rolled_back"))
    }

    /// Gives up waiting for the confirmation, and asks for a person.
    pub fn fail(self, now: Time) -> Result<Decision, WrongState> {
        let State::RollingBack { reason, .. } = &self.state else { return Err(self.wrong_state()) };
        let failed = State::RollbackFailed { reason: reason.clone(), since: now };
        Ok(self.passed_to(failed, "rollout.rollback_failed"))
    }

    /// Takes a person's word that a failed rollback is done.
    pub fn resolve(self, now: Time) -> Result<Decision, WrongState> {
        let State::RollbackFailed { reason, .. } = &self.state else { return Err(self.wrong_state()) };
        let reason = reason.clone();
        Ok(self.passed_to(State::RolledBack { reason, at: now }, "rollout.resolved"))
    }

    /// Writes down what a guard found, once; the transition that it leads to comes with it.
    #[must_use]
    pub fn with_harm(mut self, found: Harm) -> Self {
        if self.harms.iter().all(|harm| harm.guard != found.guard) {
            self.harms.push(found);
        }
        self
    }

    /// Writes down what was found of its visits, which is no transition.
    #[must_use]
    pub fn with_findings(self, harms: Vec<Harm>, is_mismatch: bool, now: Time) -> Self {
        let noted = harms.into_iter().fold(self, Self::with_harm);
        Self { mismatched_at: noted.mismatched_at.or_else(|| is_mismatch.then_some(now)), ..noted }
    }

    fn passed_to(self, state: State, kind: &'static str) -> Decision {
        let (from, reason) = (Some(self.state.name()), state.reason().map(str::to_owned));
        Decision { rollout: Self { state, row_version: self.row_version + 1, ..self }, from, kind, reason }
    }

    /// Changes with state and step.
    pub fn mark(&self) -> i64 {
        self.state.mark(self.step)
    }

    pub fn wrong_state(&self) -> WrongState {
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

impl Mode {
    /// As on the wire, without its prefix, and in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forward => "FORWARD",
            Self::Rollback { .. } => "ROLLBACK",
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

#[cfg(test)]
pub(crate) mod tests;
