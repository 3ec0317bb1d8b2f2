//! Every kind of event that release-svc tells of, beside those of webhooks.

use shared::outbox::Kind;

/// By name, each with what happened.
pub const KINDS: &[Kind] = &[
    ("approval_policy.created", "An approval policy was made."),
    ("approval_policy.updated", "An approval policy was changed."),
    ("component.created", "A component was made."),
    ("component.updated", "A component was changed."),
    ("environment.created", "An environment was made."),
    ("history.deployment_imported", "A deployment of the past was imported."),
    ("release.activated", "A release is being rolled out and is stable nowhere yet."),
    ("release.approved", "A release has the approvals that it needs."),
    ("release.cancelled", "A release was given up before it was exposed."),
    ("release.created", "A release was drafted."),
    ("release.rejected", "A release was voted down."),
    ("release.released", "A release is the stable one of an environment."),
    ("release.rolled_back", "A release was rolled back and is stable nowhere."),
    ("release.submitted", "A release was submitted for approval."),
    ("release.superseded", "A release is stable nowhere any more, as later ones replaced it."),
    ("release.voted", "A vote on a release was cast that did not decide."),
    ("rollout.advanced", "A rollout reached its next step."),
    ("rollout.rollback_started", "A rollback began: nobody new is exposed."),
    ("rollout.rolled_back", "A rollback is confirmed by every replica of the environment."),
    ("rollout.started", "A rollout began."),
    ("rollout.succeeded", "A rollout reached everyone."),
];
