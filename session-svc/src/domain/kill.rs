//! Releases that are stopped where the visits are.

use shared::id::{ComponentId, ReleaseId};
use shared::time::Time;

/// Releases of one tenant that may be stopped at once: all of them are in memory.
pub const KILLS_MAX: i64 = 1000;

/// A release that is stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    /// Of which component.
    pub component: ComponentId,
    /// Which.
    pub release: ReleaseId,
    /// Who stopped it: `issuer|sub`.
    pub principal: String,
    /// Why.
    pub reason: String,
    /// When.
    pub at: Time,
    /// When release-svc took note of it.
    pub reported_at: Option<Time>,
}
