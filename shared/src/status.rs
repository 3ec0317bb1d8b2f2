//! Failures: a [`Reason`] each, which alone decides the gRPC code, with the details of `google.rpc.Status`.
//!
//! Domain errors become [`Failure`] in each service's `rpc.rs`; here a `Failure` becomes a `Status`, and an unexpected one
//! is logged, once.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

pub use crate::pb::common::Reason;

/// The `domain` of every `ErrorInfo`.
pub const DOMAIN: &str = "tandem";

/// Why a call did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The caller is told why.
    #[error("{}", .0.message)]
    Refused(Box<Refusal>),
    /// The database failed or is away.
    #[error("storage failed")]
    Storage(#[from] sqlx::Error),
    /// What is stored, or a rule of ours, is broken; the text is for the log only.
    #[error("{0}")]
    Bug(String),
}

/// An answer that says no, and what to do about it.
#[derive(Debug)]
pub struct Refusal {
    reason: Reason,
    message: String,
    metadata: Vec<(&'static str, String)>,
    fields: Vec<(String, String)>,
    blockers: Vec<Blocker>,
    retry_after: Option<Duration>,
}

/// One thing that holds an object back: a `google.rpc.PreconditionFailure.Violation`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// `STATE`, `EARLIER_ROLLOUT`, `APPROVAL`, ...
    pub kind: &'static str,
    /// What holds.
    pub subject: String,
    /// Why, as a sentence.
    pub description: String,
}

impl Refusal {
    /// A refusal with a sentence for a person.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            metadata: Vec::new(),
            fields: Vec::new(),
            blockers: Vec::new(),
            retry_after: None,
        }
    }

    /// A field that is wrong, and how.
    pub fn field(name: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        let name = name.into();
        let mut refusal = Self::new(Reason::FieldInvalid, format!("{name}: {problem}"));
        refusal.metadata.push(("field", name.clone()));
        refusal.fields.push((name, problem.to_string()));
        refusal
    }

    /// Adds a machine-readable part of the message.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl std::fmt::Display) -> Self {
        self.metadata.push((key, value.to_string()));
        self
    }

    /// Adds what holds the object back.
    #[must_use]
    pub fn blocked_by(mut self, blockers: impl IntoIterator<Item = Blocker>) -> Self {
        self.blockers.extend(blockers);
        self
    }

    /// Says that trying again after so long can help.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// Why.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// With its code and details.
    pub fn into_status(self) -> Status {
        let Self { reason, message, metadata, fields, blockers, retry_after } = self;
        let mut details = ErrorDetails::new();
        details.set_error_info(
            name(reason),
            DOMAIN,
            metadata
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect::<std::collections::HashMap<_, _>>(),
        );
        for (field, problem) in fields {
            details.add_bad_request_violation(field, problem);
        }
        for Blocker { kind, subject, description } in blockers {
            details.add_precondition_failure_violation(kind, subject, description);
        }
        if let Some(delay) = retry_after {
            details.set_retry_info(Some(delay));
        }
        Status::with_error_details(code(reason), message, details)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}

impl From<crate::keyring::KeyRingError> for Failure {
    fn from(error: crate::keyring::KeyRingError) -> Self {
        Self::Bug(error.to_string())
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let refusal = match failure {
            Failure::Refused(refusal) => *refusal,
            Failure::Storage(error) => storage_refusal(&error).unwrap_or_else(|| internal(&error)),
            Failure::Bug(text) => internal(&text),
        };
        refusal.into_status()
    }
}

/// The name on the wire.
pub fn name(reason: Reason) -> &'static str {
    reason.as_str_name().trim_start_matches("REASON_")
}

/// What a database error means to a caller; `None` where it means a bug.
///
/// Codes: PostgreSQL documentation, appendix A.
fn storage_refusal(error: &sqlx::Error) -> Option<Refusal> {
    let unavailable = || {
        tracing::debug!(error = %error, "storage unavailable");
        Refusal::new(Reason::StorageUnavailable, "the database cannot be reached")
            .retry_after(Duration::from_millis(500))
    };
    if matches!(
        error,
        sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Tls(_)
            | sqlx::Error::BeginFailed
    ) {
        return Some(unavailable());
    }
    let code = error.as_database_error()?.code()?;
    match &*code {
        "40001" | "40P01" | "55P03" => Some(
            Refusal::new(Reason::ConcurrentChange, "another change was in the way")
                .retry_after(Duration::from_millis(50)),
        ),
        "57014" => Some(Refusal::new(Reason::DeadlinePassed, "the statement took longer than allowed")),
        "53100" | "53200" | "53300" | "53400" | "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "25P04" |
        // What is refused while connecting: no such database, or one that takes no connections.
        "3D000" | "55000" => Some(unavailable()),
        code if code.starts_with("08") || code.starts_with("28") => Some(unavailable()),
        _ => None,
    }
}

/// Whether a database error means that the database is away, not that something is wrong with the statement.
pub fn is_away(error: &sqlx::Error) -> bool {
    storage_refusal(error).is_some_and(|refusal| refusal.reason == Reason::StorageUnavailable)
}

fn internal(error: &dyn std::fmt::Display) -> Refusal {
    let trace_id = crate::telemetry::current_trace_id();
    tracing::error!(error = %error, trace_id, "internal error");
    Refusal::new(Reason::Internal, "an internal error, which the server's log explains")
        .with("trace_id", trace_id)
}

/// The code of a reason, the same everywhere.
#[expect(clippy::too_many_lines, reason = "a table with a line for each reason")]
pub const fn code(reason: Reason) -> Code {
    use Reason as R;
    match reason {
        R::CallerCredentialMissing
        | R::CallerCredentialMalformed
        | R::CallerCredentialExpired
        | R::CallerCredentialNotYetValid
        | R::CallerIssuerUnknown
        | R::CallerAudienceWrong
        | R::CallerKeyUnknown
        | R::CallerSignatureInvalid
        | R::CallerAlgorithmRefused
        | R::CallerTenantRefused
        | R::CallerCertificateUnknown => Code::Unauthenticated,
        R::CallerScopeMissing
        | R::CallerNotOwner
        | R::CallerTouchpointRefused
        | R::CallerNotAPerson
        | R::SodViolation
        | R::EvidenceReviewNotOwn => Code::PermissionDenied,
        R::FieldInvalid
        | R::RequestUndecodable
        | R::PageTokenInvalid
        | R::ResumeTokenInvalid
        | R::IdTokenInvalid => Code::InvalidArgument,
        R::RequestTooLarge
        | R::Overloaded
        | R::CallerRateLimited
        | R::ReaderTooSlow
        | R::CartLimit
        | R::SessionLimitReached
        | R::AttributeLimit
        | R::ElevationLimit
        | R::WishlistLimit
        | R::ShopperLimit
        | R::DependencyLimit
        | R::WebhookLimit
        | R::KillLimit
        | R::EvidenceLimit
        | R::WindowLimit => Code::ResourceExhausted,
        R::MethodUnknown => Code::Unimplemented,
        R::RequestIdReused
        | R::TouchpointExists
        | R::ComponentExists
        | R::EnvironmentExists
        | R::ApprovalPolicyExists
        | R::ReleaseExists
        | R::VoteExists => Code::AlreadyExists,
        R::EtagMismatch | R::ConcurrentChange | R::AttributeChanged => Code::Aborted,
        R::DeadlinePassed => Code::DeadlineExceeded,
        R::StorageUnavailable | R::ShuttingDown | R::KeysUnavailable => Code::Unavailable,
        R::Cancelled => Code::Cancelled,
        R::Internal | R::Unspecified => Code::Internal,
        R::TouchpointNotFound
        | R::SessionNotFound
        | R::CartNotFound
        | R::CartLineNotFound
        | R::WishlistNotFound
        | R::WishlistItemNotFound
        | R::ComponentNotFound
        | R::EnvironmentNotFound
        | R::ApprovalPolicyNotFound
        | R::IdentityAliasNotFound
        | R::ReleaseNotFound
        | R::RolloutNotFound
        | R::EvidenceNotFound
        | R::VoteNotFound
        | R::BreakGlassNotFound
        | R::WebhookNotFound
        | R::WindowNotFound
        | R::WindowOverrideNotFound
        | R::TaskNotFound => Code::NotFound,
        R::ResumeTokenExpired
        | R::SessionUnknown
        | R::SessionIdleExpired
        | R::SessionExpired
        | R::SessionRevoked
        | R::SessionHasNoShopper
        | R::SessionTokenSuperseded
        | R::SessionAssuranceTooLow
        | R::SessionAuthenticationTooOld
        | R::SessionAnonymous
        | R::SessionSubjectDiffers
        | R::SubjectDisabled
        | R::IdTokenIssuerRefused
        | R::IdTokenAudienceWrong
        | R::IdTokenExpired
        | R::IdTokenNonceWrong
        | R::IdTokenReplayed
        | R::ElevationUnknown
        | R::ElevationExpired
        | R::ElevationRedeemed
        | R::ElevationMismatch
        | R::CartWrongState
        | R::CartEmpty
        | R::CartCurrencyMismatch
        | R::CartMergeFinal
        | R::WishlistItemTaken
        | R::ShopperMerged
        | R::IdentityAliasChained
        | R::DependencyCycle
        | R::ReleaseWrongState
        | R::ReleaseVersionNotGreater
        | R::ReleaseIncomplete
        | R::ReleaseExposed
        | R::CommitterUnmapped
        | R::BreakGlassReviewed
        | R::BreakGlassReviewOverdue
        | R::ProposalNotPending
        | R::ApprovalPolicyLaxer
        | R::RolloutWrongState
        | R::RolloutBlocked
        | R::CartRecoveryUnknown
        | R::CartRecoveryExpired
        | R::CartRecoveryRedeemed
        | R::CartRecoveryRevoked
        | R::CartRecoverySubjectDiffers
        | R::WebhookTargetRefused
        | R::EvidenceRevoked
        | R::RolloutWindowClosed
        | R::LineStopped
        | R::TaskLeaseLost => Code::FailedPrecondition,
    }
}

/// Gives an error that tonic made itself the reason that it lacks. Errors of ours have one and pass.
pub fn with_reason(status: Status, limit_bytes: usize) -> Status {
    if status.get_details_error_info().is_some() {
        return status;
    }
    let text = status.message();
    let reason = match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => {
            let refusal = Refusal::new(
                Reason::RequestTooLarge,
                format!("the message is larger than {limit_bytes} bytes"),
            );
            return refusal.with("limit_bytes", limit_bytes).into_status();
        }
        Code::Unimplemented => Reason::MethodUnknown,
        Code::DeadlineExceeded => Reason::DeadlinePassed,
        Code::Cancelled if text.contains("imeout") => Reason::DeadlinePassed,
        Code::Cancelled => Reason::Cancelled,
        Code::Unavailable => Reason::ShuttingDown,
        Code::Internal | Code::InvalidArgument | Code::Unknown => Reason::RequestUndecodable,
        Code::Ok
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::DataLoss
        | Code::Unauthenticated => Reason::Internal,
    };
    let message = if reason == Reason::MethodUnknown && text.is_empty() { "no such method" } else { text };
    Refusal::new(reason, message).into_status()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_caller_reasons_are_unauthenticated() {
        for number in 0..200 {
            let Ok(reason) = Reason::try_from(number) else { continue };
            if code(reason) == Code::Unauthenticated {
                assert!(name(reason).starts_with("CALLER_"), "{reason:?}");
            }
        }
    }

    #[test]
    fn the_docs_list_every_reason_with_its_code() {
        let docs = include_str!("../../docs/errors.md");
        for reason in (1..200).filter_map(|number| Reason::try_from(number).ok()) {
            let code = format!("{:?}", code(reason)).chars().fold(String::new(), |mut text, c| {
                if c.is_ascii_uppercase() && !text.is_empty() {
                    text.push('_');
                }
                text.push(c.to_ascii_uppercase());
                text
            });
            let row = format!("| `{}` | `{code}` |", name(reason));
            assert!(docs.contains(&row), "{row}");
        }
    }

    #[test]
    fn a_refusal_carries_its_reason_fields_and_metadata() {
        let status = Refusal::field("quantity", "must be at least 1").into_status();
        let details = status.get_error_details();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("FIELD_INVALID"));
        assert_eq!(details.bad_request().map(|bad| bad.field_violations.len()), Some(1));
    }

    #[test]
    fn tonics_own_errors_get_a_reason() {
        for (from, to) in [
            (
                Status::internal("failed to decode Protobuf message"),
                (Code::InvalidArgument, "REQUEST_UNDECODABLE"),
            ),
            (
                Status::out_of_range("message length too large"),
                (Code::ResourceExhausted, "REQUEST_TOO_LARGE"),
            ),
            (Status::unimplemented(""), (Code::Unimplemented, "METHOD_UNKNOWN")),
            (Status::cancelled("Timeout expired"), (Code::DeadlineExceeded, "DEADLINE_PASSED")),
        ] {
            let status = with_reason(from, 9);
            let reason = status.get_details_error_info().map(|info| info.reason);
            assert_eq!((status.code(), reason.as_deref()), (to.0, Some(to.1)));
        }
    }
}
