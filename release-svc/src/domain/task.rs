//! What an executor is to do for a rollout. Whoever has a task proves it with the token that it was handed out with, so that
//! one who was taken for dead can do no harm. Whether a lease has run out is decided when the task is looked at.

use chrono::TimeDelta;
use shared::id::{ComponentId, EnvironmentId, ReleaseId, RolloutId, TaskId};
use shared::time::Time;

use crate::domain::rollout::{EVERYONE_BPS, Mode, Phase, Rollout, State as RolloutState};

/// How long a task waits after a failure.
const RETRY_AFTER: TimeDelta = TimeDelta::seconds(30);
/// After so many failures it is given up.
const FAILURES_MAX: i32 = 3;
/// For so long at most visits keep a release running that gets no new ones.
pub const RETIRE_AFTER: TimeDelta = TimeDelta::hours(24);

/// A task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    pub id: TaskId,
    pub kind: Kind,
    pub component: ComponentId,
    pub environment: EnvironmentId,
    pub rollout: RolloutId,
    pub step: usize,
    pub release: ReleaseId,
    pub version: String,
    pub artifact_digest: Option<String>,
    pub exposure_bps: i32,
    pub state: State,
    /// Not handed out earlier.
    pub not_before: Time,
    /// Counts how often it was handed out; the newest is that of whoever has it.
    pub token: i64,
    pub failures: i32,
    /// `issuer|sub` of whoever has it, or had it last.
    pub executor: Option<String>,
    /// Of the last report.
    pub message: String,
    pub created_at: Time,
}

/// A task to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct New {
    pub id: TaskId,
    pub kind: Kind,
    pub release: ReleaseId,
    pub exposure_bps: i32,
    /// Of RETIRE.
    pub idle: Option<Idle>,
    pub now: Time,
}

/// How it is known that no visit needs a release any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idle {
    /// Whose live visits tell: on its own release where it is what asks for the task, else on what it replaced.
    pub rollout: RolloutId,
    /// Older counts do not tell.
    pub since: Time,
    /// From then on nobody asks.
    pub forced_at: Time,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The release runs, and is ready for its share.
    Expose,
    /// The release need not run any more.
    Retire,
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Queued,
    /// Somebody's until then.
    Leased {
        until: Time,
    },
    Done {
        at: Time,
    },
    Failed {
        at: Time,
    },
    Cancelled {
        at: Time,
    },
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Failed,
    /// Given back.
    Returned,
}

/// The task is not there to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("somebody has task {0}, or it is not due")]
pub struct NotFree(pub TaskId);

/// Who says something of a task does not have it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("task {0} was handed out again, has ended, or is not needed any more")]
pub struct LeaseLost(pub TaskId);

/// A change of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub task: Task,
    /// The state before it.
    pub from: &'static str,
    /// The token before it.
    pub token: i64,
    /// What its event is called; none where nothing but the lease's end changed.
    pub kind: Option<&'static str>,
}

impl Task {
    /// Hands it out.
    pub fn lease(self, executor: String, until: Time, now: Time) -> Result<Decision, NotFree> {
        if self.state_at(now) != State::Queued || now < self.not_before {
            return Err(NotFree(self.id));
        }
        let (from, token) = (self.state.name(), self.token);
        let leased =
            Self { state: State::Leased { until }, token: token + 1, executor: Some(executor), ..self };
        Ok(Decision { task: leased, from, token, kind: Some("task.leased") })
    }

    /// Keeps it, also after its lease ran out, if nobody else has taken it since.
    pub fn renew(self, token: i64, until: Time) -> Result<Decision, LeaseLost> {
        let State::Leased { .. } = self.state else { return Err(LeaseLost(self.id)) };
        if token != self.token {
            return Err(LeaseLost(self.id));
        }
        Ok(self.passed_to(State::Leased { until }, None))
    }

    /// Takes in how an attempt ended. None where that was reported before.
    pub fn report(
        self,
        token: i64,
        outcome: Outcome,
        message: String,
        now: Time,
    ) -> Result<Option<Decision>, LeaseLost> {
        if token != self.token {
            return Err(LeaseLost(self.id));
        }
        match (self.state, outcome) {
            (State::Leased { .. }, _) => {}
            (State::Done { .. }, Outcome::Done)
            | (State::Failed { .. }, Outcome::Failed)
            | (State::Queued, Outcome::Failed | Outcome::Returned)
                if token > 0 =>
            {
                return Ok(None);
            }
            _ => return Err(LeaseLost(self.id)),
        }
        let said = Self { message, ..self };
        Ok(Some(match outcome {
            Outcome::Done => said.passed_to(State::Done { at: now }, Some("task.done")),
            Outcome::Returned => said.passed_to(State::Queued, Some("task.requeued")),
            Outcome::Failed => {
                let failures = said.failures + 1;
                let failed = Self { failures, not_before: now + RETRY_AFTER, ..said };
                if failures < FAILURES_MAX {
                    failed.passed_to(State::Queued, Some("task.requeued"))
                } else {
                    failed.passed_to(State::Failed { at: now }, Some("task.failed"))
                }
            }
        }))
    }

    /// Gives it up, as nobody needs it any more. None where it has ended.
    pub fn cancel(self, now: Time) -> Option<Decision> {
        let is_open = matches!(self.state, State::Queued | State::Leased { .. });
        is_open.then(|| self.passed_to(State::Cancelled { at: now }, Some("task.cancelled")))
    }

    /// Where it stands at an instant: a lease that has run out is none.
    pub fn state_at(&self, now: Time) -> State {
        let has_run_out = matches!(self.state, State::Leased { until } if until <= now);
        if has_run_out { State::Queued } else { self.state }
    }

    fn passed_to(self, state: State, kind: Option<&'static str>) -> Decision {
        let (from, token) = (self.state.name(), self.token);
        Decision { task: Self { state, ..self }, from, token, kind }
    }
}

/// What a rollout asks of executors, being where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// A release is to be ready for this share of visits.
    Expose { release: ReleaseId, exposure_bps: i32 },
    /// The rollout's release is not needed any more.
    RetireOwn,
    /// What this release replaced is not needed any more: a rollback leads to this one.
    RetireBefore(ReleaseId),
}

impl Idle {
    /// Of a release that was just taken back.
    pub fn of_own(rollout: &Rollout, now: Time) -> Self {
        Self { rollout: rollout.id, since: now, forced_at: now + RETIRE_AFTER }
    }

    /// Of what a rollout that has succeeded replaced. Where it drained, what was counted then holds: no new visit came.
    pub fn of_replaced(rollout: &Rollout) -> Self {
        let ended_at = rollout.state.since();
        let drained = rollout.plan.drain_deadline.unwrap_or_default();
        Self { rollout: rollout.id, since: ended_at - drained, forced_at: ended_at + RETIRE_AFTER }
    }
}

impl Order {
    /// None where it asks for nothing.
    pub fn of(rollout: &Rollout) -> Option<Self> {
        if !rollout.plan.needs_executor {
            return None;
        }
        match (&rollout.state, rollout.mode, &rollout.previous) {
            (RolloutState::Running { phase: Phase::Deploying, .. }, ..) => Some(Self::Expose {
                release: rollout.release.id,
                exposure_bps: rollout.steps.exposure_bps(rollout.step),
            }),
            // It may have been retired since; nothing waits for it.
            (RolloutState::RollingBack { .. }, Mode::Rollback { .. }, Some(previous)) => {
                Some(Self::Expose { release: previous.id, exposure_bps: EVERYONE_BPS })
            }
            (RolloutState::RolledBack { .. }, ..) => Some(Self::RetireOwn),
            (RolloutState::Succeeded { .. }, _, Some(previous)) => Some(Self::RetireBefore(previous.id)),
            _ => None,
        }
    }

    /// Whether a rollout has left what it asked executors to make room for.
    pub const fn is_void(rollout: &Rollout) -> bool {
        matches!((&rollout.state, rollout.mode), (RolloutState::RollingBack { .. }, Mode::Forward))
    }
}

/// Whether what runs is not what should: `wanted` must, and beside it nothing may but what is `tolerated`.
pub fn is_drift(wanted: &[String], tolerated: &[String], running: &[String]) -> bool {
    let is_missing = wanted.iter().any(|version| !running.contains(version));
    let is_stray = |version| !wanted.contains(version) && !tolerated.contains(version);
    is_missing || running.iter().any(is_stray)
}

impl Kind {
    /// As on the wire, without its prefix, and in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Expose => "EXPOSE",
            Self::Retire => "RETIRE",
        }
    }
}

impl State {
    /// As on the wire, without its prefix, and in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "QUEUED",
            Self::Leased { .. } => "LEASED",
            Self::Done { .. } => "DONE",
            Self::Failed { .. } => "FAILED",
            Self::Cancelled { .. } => "CANCELLED",
        }
    }

    /// When it ended.
    pub const fn ended_at(self) -> Option<Time> {
        match self {
            Self::Done { at } | Self::Failed { at } | Self::Cancelled { at } => Some(at),
            Self::Queued | Self::Leased { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests;
