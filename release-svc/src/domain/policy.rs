//! What a release needs before it may be rolled out, as a team sets it.

use shared::id::ApprovalPolicyId;
use shared::time::Time;

/// The approval policy that every tenant has: profile STARTER, quorum 0.
pub const STARTER_POLICY: &str = "starter";

/// What a release needs before it may be rolled out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApprovalPolicy {
    pub name: ApprovalPolicyId,
    pub profile: Profile,
    /// How many people must approve.
    pub quorum: i32,
    pub created_at: Time,
    pub row_version: i64,
}

/// A named set of governance rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// For a team that begins: any quorum, and risk is advice.
    Starter,
}

impl ApprovalPolicy {
    /// Whether it is the one that every tenant has without making it.
    pub fn is_given(name: &ApprovalPolicyId) -> bool {
        name.as_str() == STARTER_POLICY
    }
}
