//! Touchpoints and the policy of their sessions.

use std::time::Duration;

use shared::id::{ComponentId, GroupId, TouchpointId};
use shared::time::Time;

const MINUTE: Duration = Duration::from_mins(1);
const DAY: Duration = Duration::from_hours(24);

/// One way in.
#[derive(Debug, Clone)]
pub struct Touchpoint {
    /// Its name.
    pub id: TouchpointId,
    /// What people call it.
    pub display_name: String,
    /// Those it shares carts with.
    pub group: GroupId,
    /// What its visits are pinned to releases of; sorted, each once.
    pub components: Vec<ComponentId>,
    /// How long its sessions live.
    pub policy: SessionPolicy,
    /// Whether sessions have a shopper.
    pub has_shoppers: bool,
    /// When it was made.
    pub created_at: Time,
    /// Rises with every update.
    pub version: i64,
}

/// How long sessions live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionPolicy {
    /// Longest without a validation.
    pub idle_timeout: Duration,
    /// Longest at all.
    pub absolute_lifetime: Duration,
    /// Longest gap within a visit.
    pub visit_gap: Duration,
    /// Oldest that a cached verdict may be.
    pub staleness_bound: Duration,
    /// Oldest while the database is away.
    pub outage_bound: Duration,
}

/// A policy that contradicts itself or goes too far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct BadPolicy {
    /// The field of the proto.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl Default for SessionPolicy {
    /// NIST SP 800-63B-4 for AAL2 (24 h) and the OWASP session cheat sheet for low risk (30 min).
    fn default() -> Self {
        Self {
            idle_timeout: 30 * MINUTE,
            absolute_lifetime: DAY,
            visit_gap: 30 * MINUTE,
            staleness_bound: Duration::from_secs(1),
            outage_bound: Duration::ZERO,
        }
    }
}

impl SessionPolicy {
    /// Checks every limit.
    pub fn check(self) -> Result<Self, BadPolicy> {
        let bad = |field, problem| Err(BadPolicy { field, problem });
        let is_whole = |duration: Duration| duration.subsec_nanos() == 0;
        if !(MINUTE..=90 * DAY).contains(&self.idle_timeout) || !is_whole(self.idle_timeout) {
            return bad("idle_timeout", "must be 1 minute to 90 days, in whole seconds");
        }
        if self.absolute_lifetime < self.idle_timeout {
            return bad("absolute_lifetime", "must be at least the idle timeout");
        }
        if self.absolute_lifetime > 400 * DAY || !is_whole(self.absolute_lifetime) {
            return bad("absolute_lifetime", "must be at most 400 days, in whole seconds");
        }
        if !(MINUTE..=DAY).contains(&self.visit_gap) || !is_whole(self.visit_gap) {
            return bad("visit_gap", "must be 1 minute to 24 hours, in whole seconds");
        }
        if self.staleness_bound > MINUTE || !self.staleness_bound.subsec_nanos().is_multiple_of(1_000_000) {
            return bad("staleness_bound", "must be at most 60 seconds, in whole milliseconds");
        }
        if self.outage_bound > 60 * MINUTE || !is_whole(self.outage_bound) {
            return bad("outage_bound", "must be at most 1 hour, in whole seconds");
        }
        Ok(self)
    }

    /// How far the stored last-seen time may be behind: touches are written in batches.
    pub fn flush_interval(&self) -> Duration {
        (self.idle_timeout / 8).min(Duration::from_secs(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_policy_is_allowed() {
        assert_eq!(SessionPolicy::default().check(), Ok(SessionPolicy::default()));
    }

    #[test]
    fn policies_that_contradict_themselves_are_refused() {
        let base = SessionPolicy::default();
        let cases = [
            ("idle_timeout", SessionPolicy { idle_timeout: Duration::ZERO, ..base }),
            ("idle_timeout", SessionPolicy { idle_timeout: 91 * DAY, ..base }),
            ("idle_timeout", SessionPolicy { idle_timeout: Duration::from_millis(60_500), ..base }),
            ("absolute_lifetime", SessionPolicy { absolute_lifetime: MINUTE, ..base }),
            ("absolute_lifetime", SessionPolicy { absolute_lifetime: 401 * DAY, ..base }),
            ("visit_gap", SessionPolicy { visit_gap: Duration::ZERO, ..base }),
            ("staleness_bound", SessionPolicy { staleness_bound: 2 * MINUTE, ..base }),
            ("outage_bound", SessionPolicy { outage_bound: DAY, ..base }),
        ];
        for (field, policy) in cases {
            assert_eq!(policy.check().map_err(|bad| bad.field), Err(field));
        }
    }
}
