//! Every kind of event that release-svc tells of, beside those of webhooks.

use shared::outbox::Kind;

/// By name, each with what happened.
pub const KINDS: &[Kind] = &[
    ("approval_policy.created", "An approval policy was made."),
    ("approval_policy.proposed", "A change of an approval policy waits for its second person."),
    ("approval_policy.updated", "An approval policy was changed."),
    ("break_glass.reviewed", "Somebody said whether a break-glass was right."),
    ("component.created", "A component was made."),
    ("component.updated", "A component was changed."),
    ("environment.created", "An environment was made."),
    ("release.abandoned", "A release was given up after it was exposed."),
    ("release.activated", "A release is being rolled out and is stable nowhere yet."),
    (
        "release.approval_lapsed",
        "The approval of a release stands no more: it expired, its risk rose, or evidence or a vote was taken back.",
    ),
    ("release.approval_renewed", "A release that was exposed before has the approvals that it needs again."),
    ("release.approved", "A release has the approvals that it needs."),
    ("release.assessed", "A release has the evidence that it needs and waits for votes."),
    ("release.break_glass_used", "Somebody approved a release alone, which somebody else reviews."),
    ("release.cancelled", "A release was given up before it was exposed."),
    ("release.created", "A release was drafted."),
    ("release.quarantine_lifted", "A release is marked as bad no more."),
    ("release.quarantined", "A release was marked as bad: nobody new is exposed to it."),
    ("release.reassessed", "A release is in another band of risk."),
    ("release.rejected", "A release was voted down."),
    ("release.released", "A release is the stable one of an environment."),
    ("release.revised", "A release is a draft again, and the votes on it are void."),
    ("release.rolled_back", "A release was rolled back and is stable nowhere."),
    ("release.submitted", "A release was submitted for approval."),
    ("release.superseded", "A release is stable nowhere any more, as later ones replaced it."),
    ("release.updated", "The draft of a release was changed."),
    ("release.vote_withdrawn", "A vote on a release was taken back."),
    ("release.voted", "A vote on a release was cast that did not decide."),
    ("rollout.advanced", "A rollout reached its next step."),
    ("rollout.rollback_started", "A rollback began: nobody new is exposed."),
    ("rollout.rolled_back", "A rollback is confirmed by every replica of the environment."),
    ("rollout.started", "A rollout began."),
    ("rollout.succeeded", "A rollout reached everyone."),
];
