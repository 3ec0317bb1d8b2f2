//! Touchpoints and the policy of their sessions.

use std::time::Duration;

use shared::id::{ComponentId, GroupId, TouchpointId};
use shared::time::Time;

use super::abandonment::CartPolicy;
use super::session::{RevokeReason, Timeouts};

/// Most issuers that a policy names.
const ISSUERS_MAX: usize = 32;
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
    /// When carts that were last changed here count as what.
    pub cart_policy: CartPolicy,
    /// Whether sessions have a shopper.
    pub has_shoppers: bool,
    /// Sessions of a lower epoch are revoked.
    pub session_epoch: i32,
    /// When and why that last rose.
    pub sessions_revoked: Option<(Time, RevokeReason)>,
    /// When it was made.
    pub created_at: Time,
    /// Rises with every update.
    pub version: i64,
}

/// How long sessions live, how surely their subjects are known, and how many of them there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionPolicy {
    /// Of sessions that are not to be remembered.
    pub timeouts: Timeouts,
    /// Of those that are; none where the touchpoint remembers nobody.
    pub remember_me: Option<Timeouts>,
    /// Longest gap within a visit.
    pub visit_gap: Duration,
    /// Oldest that a cached verdict may be.
    pub staleness_bound: Duration,
    /// Oldest while the database is away.
    pub outage_bound: Duration,
    /// For how long assurance level 2 holds.
    pub level_2_max_age: Duration,
    /// For how long assurance level 3 holds.
    pub level_3_max_age: Duration,
    /// Bound on one subject's sessions here.
    pub session_limit: Option<SessionLimit>,
    /// For how long a replaced token works beside its successor, and then counts as a race.
    pub rotation_grace: Duration,
    /// Whose subjects may log in; empty for everyone's.
    pub allowed_issuers: Vec<String>,
}

/// A bound on one subject's sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimit {
    /// Most live ones.
    pub max: u16,
    /// What happens beyond.
    pub action: LimitAction,
}

/// What happens when a subject logs in once too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitAction {
    /// The new login is refused.
    Reject,
    /// The session that was seen least recently ends.
    EvictLeastRecent,
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
    /// NIST SP 800-63B-4 for AAL2 and AAL3 (24 h, 12 h) and the OWASP session cheat sheet for low risk (30 min).
    fn default() -> Self {
        Self {
            timeouts: Timeouts { idle: 30 * MINUTE, absolute: DAY },
            remember_me: None,
            visit_gap: 30 * MINUTE,
            staleness_bound: Duration::from_secs(1),
            outage_bound: Duration::ZERO,
            level_2_max_age: DAY,
            level_3_max_age: DAY / 2,
            session_limit: None,
            rotation_grace: Duration::from_secs(30),
            allowed_issuers: vec![],
        }
    }
}

impl SessionPolicy {
    /// Checks every limit.
    pub fn check(self) -> Result<Self, BadPolicy> {
        let bad = |field, problem| Err(BadPolicy { field, problem });
        let is_whole = |duration: Duration| duration.subsec_nanos() == 0;
        let Timeouts { idle, absolute } = self.timeouts;
        if !(MINUTE..=90 * DAY).contains(&idle) || !is_whole(idle) {
            return bad("idle_timeout", "must be 1 minute to 90 days, in whole seconds");
        }
        if absolute < idle {
            return bad("absolute_lifetime", "must be at least the idle timeout");
        }
        if absolute > 400 * DAY || !is_whole(absolute) {
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
        self.check_trust()
    }

    fn check_trust(self) -> Result<Self, BadPolicy> {
        let bad = |field, problem| Err(BadPolicy { field, problem });
        let is_whole = |duration: Duration| duration.subsec_nanos() == 0;
        if let Some(Timeouts { idle, absolute }) = self.remember_me {
            if !(self.timeouts.idle..=90 * DAY).contains(&idle) || !is_whole(idle) {
                let problem = "must be at least that of other sessions and at most 90 days, in whole seconds";
                return bad("remember_me.idle_timeout", problem);
            }
            let least = self.timeouts.absolute.max(idle);
            if !(least..=400 * DAY).contains(&absolute) || !is_whole(absolute) {
                let problem = "must be at least that of other sessions and the idle timeout, at most 400 days, in whole seconds";
                return bad("remember_me.absolute_lifetime", problem);
            }
        }
        if !(MINUTE..=90 * DAY).contains(&self.level_2_max_age) || !is_whole(self.level_2_max_age) {
            return bad("level_2_max_age", "must be 1 minute to 90 days, in whole seconds");
        }
        if !(MINUTE..=self.level_2_max_age).contains(&self.level_3_max_age) || !is_whole(self.level_3_max_age)
        {
            return bad("level_3_max_age", "must be 1 minute to that of level 2, in whole seconds");
        }
        if self.session_limit.is_some_and(|limit| !(1..=1000).contains(&limit.max)) {
            return bad("session_limit.max_sessions", "must be 1 to 1000");
        }
        if self.rotation_grace > 5 * MINUTE || !is_whole(self.rotation_grace) {
            return bad("rotation_grace", "must be at most 5 minutes, in whole seconds");
        }
        if self.allowed_issuers.len() > ISSUERS_MAX {
            return bad("allowed_issuers", "must be at most 32");
        }
        Ok(self)
    }

    /// What holds for a session; one that is to be remembered where nobody is any more is as any other.
    pub fn timeouts(&self, is_remembered: bool) -> Timeouts {
        self.remember_me.filter(|_| is_remembered).unwrap_or(self.timeouts)
    }

    /// Whether this issuer's subjects may log in.
    pub fn allows_issuer(&self, issuer: &str) -> bool {
        self.allowed_issuers.is_empty() || self.allowed_issuers.iter().any(|allowed| allowed == issuer)
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
        let base = SessionPolicy::default;
        let timeouts = |idle, absolute| SessionPolicy { timeouts: Timeouts { idle, absolute }, ..base() };
        let remember =
            |idle, absolute| SessionPolicy { remember_me: Some(Timeouts { idle, absolute }), ..base() };
        let limit = |max| SessionPolicy {
            session_limit: Some(SessionLimit { max, action: LimitAction::Reject }),
            ..base()
        };
        let cases = [
            ("idle_timeout", timeouts(Duration::ZERO, DAY)),
            ("idle_timeout", timeouts(91 * DAY, 400 * DAY)),
            ("idle_timeout", timeouts(Duration::from_millis(60_500), DAY)),
            ("absolute_lifetime", timeouts(30 * MINUTE, MINUTE)),
            ("absolute_lifetime", timeouts(30 * MINUTE, 401 * DAY)),
            ("visit_gap", SessionPolicy { visit_gap: Duration::ZERO, ..base() }),
            ("staleness_bound", SessionPolicy { staleness_bound: 2 * MINUTE, ..base() }),
            ("outage_bound", SessionPolicy { outage_bound: DAY, ..base() }),
            ("remember_me.idle_timeout", remember(MINUTE, 30 * DAY)),
            ("remember_me.absolute_lifetime", remember(40 * DAY, 30 * DAY)),
            ("remember_me.absolute_lifetime", remember(DAY, DAY / 2)),
            ("level_2_max_age", SessionPolicy { level_2_max_age: Duration::ZERO, ..base() }),
            ("level_3_max_age", SessionPolicy { level_3_max_age: 2 * DAY, ..base() }),
            ("session_limit.max_sessions", limit(0)),
            ("session_limit.max_sessions", limit(1001)),
            ("rotation_grace", SessionPolicy { rotation_grace: DAY, ..base() }),
            ("allowed_issuers", SessionPolicy { allowed_issuers: vec![String::new(); 33], ..base() }),
        ];
        for (field, policy) in cases {
            assert_eq!(policy.check().map_err(|bad| bad.field), Err(field));
        }
    }
}
