//! Where a rollout stands, each state with what it knows.

use serde::{Deserialize, Serialize};
use shared::id::RolloutId;
use shared::time::Time;

use crate::domain::blocker::Kind;

/// Where a rollout stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Begins by itself once nothing holds it back; `reasons` are those of the last look.
    Waiting {
        since: Time,
        reasons: Vec<Kind>,
    },
    Running {
        phase: Phase,
        since: Time,
    },
    /// Stays at its exposure; `phase` is the one that it was in.
    Paused {
        phase: Phase,
        pause: Pause,
    },
    /// Every new visit gets it; visits on the old release are waited for.
    Draining {
        since: Time,
    },
    Succeeded {
        at: Time,
    },
    /// Nobody new is exposed; not every session service has confirmed that.
    RollingBack {
        reason: String,
        since: Time,
    },
    /// The confirmation did not come in time.
    RollbackFailed {
        reason: String,
        since: Time,
    },
    RolledBack {
        reason: String,
        at: Time,
    },
    /// Given up before anybody was exposed.
    Cancelled {
        reason: String,
        at: Time,
    },
    /// A newer one took its place while it waited.
    Superseded {
        by: RolloutId,
        at: Time,
    },
}

/// What a running rollout is at in its step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// An executor makes room; exposure is as before.
    Deploying,
    /// Session services are told.
    Exposing,
    /// All of them act on it; the step is watched.
    Baking,
}

/// Why a rollout is kept where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    pub cause: Cause,
    /// `issuer|sub`, or `system`.
    pub principal: String,
    pub reason: String,
    pub at: Time,
}

/// What makes a rollout pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Cause {
    Requested,
    Harm,
    Inconclusive,
    NoData,
    SampleRatio,
    Deadline,
}

/// A guard's finding, which nothing takes back, whatever is counted later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Harm {
    pub guard: String,
    pub finding: String,
    pub at: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleared: Option<Clearance>,
}

/// A person's word that a rollout goes on all the same. The guard only observes from then on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clearance {
    /// `issuer|sub`.
    pub by: String,
    pub reason: String,
    pub at: Time,
}

impl Harm {
    /// The finding with who cleared it; the first word stands.
    #[must_use]
    pub(super) fn clear(self, by: &str, reason: &str, at: Time) -> Self {
        let word = || Clearance { by: by.to_owned(), reason: reason.to_owned(), at };
        Self { cleared: Some(self.cleared.unwrap_or_else(word)), ..self }
    }
}

impl State {
    /// As on the wire and in the database.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Waiting { .. } => "WAITING",
            Self::Running { .. } => "RUNNING",
            Self::Paused { .. } => "PAUSED",
            Self::Draining { .. } => "DRAINING",
            Self::Succeeded { .. } => "SUCCEEDED",
            Self::RollingBack { .. } => "ROLLING_BACK",
            Self::RollbackFailed { .. } => "ROLLBACK_FAILED",
            Self::RolledBack { .. } => "ROLLED_BACK",
            Self::Cancelled { .. } => "CANCELLED",
            Self::Superseded { .. } => "SUPERSEDED",
        }
    }

    /// Another number for each.
    const fn ordinal(&self) -> i64 {
        match self {
            Self::Waiting { .. } => 0,
            Self::Running { .. } => 1,
            Self::Paused { .. } => 2,
            Self::Draining { .. } => 3,
            Self::Succeeded { .. } => 4,
            Self::RollingBack { .. } => 5,
            Self::RollbackFailed { .. } => 6,
            Self::RolledBack { .. } => 7,
            Self::Cancelled { .. } => 8,
            Self::Superseded { .. } => 9,
        }
    }

    /// The state at a step as one number, the etag: what people decide on, which phases that come by themselves leave alone.
    pub(super) fn mark(&self, step: usize) -> i64 {
        i64::try_from(step).unwrap_or(i64::MAX / 10) * 10 + self.ordinal()
    }

    /// When it ended.
    pub const fn ended_at(&self) -> Option<Time> {
        match self {
            Self::Succeeded { at }
            | Self::RolledBack { at, .. }
            | Self::Cancelled { at, .. }
            | Self::Superseded { at, .. } => Some(*at),
            Self::Waiting { .. }
            | Self::Running { .. }
            | Self::Paused { .. }
            | Self::Draining { .. }
            | Self::RollingBack { .. }
            | Self::RollbackFailed { .. } => None,
        }
    }

    /// When it was entered.
    pub const fn since(&self) -> Time {
        match self {
            Self::Waiting { since, .. }
            | Self::Running { since, .. }
            | Self::Draining { since }
            | Self::RollingBack { since, .. }
            | Self::RollbackFailed { since, .. } => *since,
            Self::Paused { pause, .. } => pause.at,
            Self::Succeeded { at }
            | Self::RolledBack { at, .. }
            | Self::Cancelled { at, .. }
            | Self::Superseded { at, .. } => *at,
        }
    }

    /// What a running or paused one is at.
    pub const fn phase(&self) -> Option<Phase> {
        if let Self::Running { phase, .. } | Self::Paused { phase, .. } = self { Some(*phase) } else { None }
    }

    /// Why it was rolled back or given up.
    pub fn rollback_reason(&self) -> Option<&str> {
        match self {
            Self::RollingBack { reason, .. }
            | Self::RollbackFailed { reason, .. }
            | Self::RolledBack { reason, .. }
            | Self::Cancelled { reason, .. } => Some(reason),
            Self::Waiting { .. }
            | Self::Running { .. }
            | Self::Paused { .. }
            | Self::Draining { .. }
            | Self::Succeeded { .. }
            | Self::Superseded { .. } => None,
        }
    }

    /// Why it stands where it does, where somebody said so.
    pub fn reason(&self) -> Option<&str> {
        if let Self::Paused { pause, .. } = self { Some(&pause.reason) } else { self.rollback_reason() }
    }

    /// Whether visits may be on the release because of it.
    pub const fn is_exposing(&self) -> bool {
        matches!(self, Self::Running { .. } | Self::Paused { .. } | Self::Draining { .. })
    }
}

impl Phase {
    /// As on the wire, without its prefix, and in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deploying => "DEPLOYING",
            Self::Exposing => "EXPOSING",
            Self::Baking => "BAKING",
        }
    }
}
