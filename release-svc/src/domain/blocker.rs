//! What holds a release or rollout back: each thing with its kind, so that a program can tell them apart, and with who or
//! what lifts it, so that a person knows where to turn. Everything that asks collects all of them before it refuses.

use shared::time::Time;

/// One thing that holds back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    pub kind: Kind,
    /// Id or name of what holds.
    pub subject: String,
    /// Why, as a sentence without a full stop.
    pub description: String,
    /// Who or what lifts it, as a sentence without a full stop.
    pub lifted_by: String,
    /// When it lifts by itself, where that is known.
    pub next_open: Option<Time>,
}

/// What sort of thing holds back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Approval,
    /// The step was not watched for long enough.
    Bake,
    Dependency,
    /// Another rollout of the component in this environment is not finished.
    EarlierRollout,
    Evidence,
    /// An executor is at work.
    Executor,
    /// A guard cannot tell, or visits are dealt wrongly.
    Guard,
    /// The component was rolled back there, and the release was made before.
    Hold,
    /// Nothing of the tenant's is exposed further until a person resumes it.
    Line,
    Quarantine,
    State,
    Window,
}

/// Everything that holds a rollout back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the rollout is held back")]
pub struct Blocked(pub Vec<Blocker>);

impl Kind {
    pub const ALL: [Self; 12] = [
        Self::Approval,
        Self::Bake,
        Self::Dependency,
        Self::EarlierRollout,
        Self::Evidence,
        Self::Executor,
        Self::Guard,
        Self::Hold,
        Self::Line,
        Self::Quarantine,
        Self::State,
        Self::Window,
    ];

    /// As on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Approval => "APPROVAL",
            Self::Bake => "BAKE",
            Self::Dependency => "DEPENDENCY",
            Self::EarlierRollout => "EARLIER_ROLLOUT",
            Self::Evidence => "EVIDENCE",
            Self::Executor => "EXECUTOR",
            Self::Guard => "GUARD",
            Self::Hold => "HOLD",
            Self::Line => "LINE",
            Self::Quarantine => "QUARANTINE",
            Self::State => "STATE",
            Self::Window => "WINDOW",
        }
    }
}

/// Passes only without blockers.
pub fn require_none(blockers: Vec<Blocker>) -> Result<(), Blocked> {
    if blockers.is_empty() { Ok(()) } else { Err(Blocked(blockers)) }
}

/// What sorts of things hold back, each once.
pub fn kinds(blockers: &[Blocker]) -> Vec<Kind> {
    let mut kinds: Vec<_> = blockers.iter().map(|blocker| blocker.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}
