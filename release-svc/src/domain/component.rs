//! What is released and where it runs: the catalogue, which people write.

use shared::id::{ApprovalPolicyId, ComponentId, EnvironmentId};
use shared::time::Time;

/// A deployable thing that is released on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    pub name: ComponentId,
    pub display_name: String,
    /// Empty leaves it to the scopes alone.
    pub owner_groups: Vec<String>,
    pub approval_policy: ApprovalPolicyId,
    pub created_at: Time,
    pub row_version: i64,
}

/// Where components run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    pub name: EnvironmentId,
    pub display_name: String,
    /// Lowest first.
    pub promotion_order: i32,
    pub created_at: Time,
    pub row_version: i64,
}
