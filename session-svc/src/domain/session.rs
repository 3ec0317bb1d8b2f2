//! Sessions: when they live, when they ended, and why.

use shared::id::{SessionId, ShopperId, TouchpointId};
use shared::time::Time;

use super::token::TokenHash;
use super::touchpoint::SessionPolicy;
use super::visit::Visit;

/// One device's presence at a touchpoint.
#[derive(Debug, Clone)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// Its audience.
    pub touchpoint: TouchpointId,
    /// Of its token.
    pub token_hash: TokenHash,
    /// The owner of its cart.
    pub shopper: Option<ShopperId>,
    /// Who is logged in.
    pub subject: Option<Subject>,
    /// What the shopper knows the device by.
    pub device: Option<String>,
    /// When it was made.
    pub created_at: Time,
    /// When it was last validated, as far as is known here.
    pub last_seen_at: Time,
    /// It ends then in any case. Set when it is made; nothing moves it.
    pub absolute_deadline: Time,
    /// The present visit.
    pub visit: Visit,
    /// Whether a cart is in checkout, which holds the visit on its releases.
    pub in_checkout: bool,
    /// Whether it was ended.
    pub state: State,
}

/// A logged-in identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// `iss`.
    pub issuer: String,
    /// `sub`.
    pub sub: String,
}

/// Whether a session was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not by anyone; it may have run out.
    Open,
    /// For good.
    Revoked {
        /// When.
        at: Time,
        /// Why.
        reason: RevokeReason,
    },
}

/// Why a session was revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RevokeReason {
    /// The shopper logged out.
    Logout,
    /// Someone with the right to do so ended it.
    Admin,
    /// Its token was, or may have been, seen by others.
    Compromised,
}

/// Why a session is not good any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// Not validated for the idle timeout.
    #[error("the session was idle for too long")]
    Idle,
    /// Reached its absolute deadline.
    #[error("the session reached its absolute lifetime")]
    Lifetime,
    /// Revoked.
    #[error("the session was revoked")]
    Revoked,
}

impl Session {
    /// When it ends unless it is validated before. Allows for touches that are not written yet, so that no replica ends
    /// what another one saw.
    pub fn idle_deadline(&self, policy: &SessionPolicy) -> Time {
        self.last_seen_at + policy.idle_timeout + policy.flush_interval()
    }

    /// Whether it is good at `now`. Decided here, whatever has been purged or not.
    pub fn standing(&self, policy: &SessionPolicy, now: Time) -> Result<(), Ended> {
        match self.state {
            State::Revoked { .. } => Err(Ended::Revoked),
            State::Open if now >= self.absolute_deadline => Err(Ended::Lifetime),
            State::Open if now >= self.idle_deadline(policy) => Err(Ended::Idle),
            State::Open => Ok(()),
        }
    }

    /// Ends it; what was revoked stays as it was.
    #[must_use]
    pub fn revoke(self, at: Time, reason: RevokeReason) -> Self {
        match self.state {
            State::Open => Self { state: State::Revoked { at, reason }, ..self },
            State::Revoked { .. } => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeDelta;
    use proptest::prelude::*;
    use shared::time::at;

    fn session() -> Session {
        Session {
            id: SessionId::new(at(1000), [0; 10]),
            touchpoint: "web".parse().unwrap(),
            token_hash: TokenHash::from_stored([0; 32]),
            shopper: None,
            subject: None,
            device: None,
            created_at: at(1000),
            last_seen_at: at(1000),
            absolute_deadline: at(1000 + 24 * 3600),
            visit: Visit::default(),
            in_checkout: false,
            state: State::Open,
        }
    }

    #[test]
    fn the_idle_deadline_ends_a_session_to_the_microsecond() {
        let (session, policy) = (session(), SessionPolicy::default());
        let end = at(1000) + policy.idle_timeout + TimeDelta::seconds(1);
        assert_eq!(session.standing(&policy, end - TimeDelta::microseconds(1)), Ok(()));
        assert_eq!(session.standing(&policy, end), Err(Ended::Idle));
    }

    #[test]
    fn the_absolute_deadline_ends_a_session_in_use() {
        let session = Session { last_seen_at: at(1000 + 24 * 3600), ..session() };
        assert_eq!(
            session.standing(&SessionPolicy::default(), session.absolute_deadline),
            Err(Ended::Lifetime)
        );
    }

    #[test]
    fn the_first_revocation_stands() {
        let session = session()
            .revoke(at(2000), RevokeReason::Logout)
            .revoke(at(3000), RevokeReason::Admin);
        assert_eq!(session.state, State::Revoked { at: at(2000), reason: RevokeReason::Logout });
    }

    proptest! {
        #[test]
        fn a_session_that_ended_stays_ended(seen in 0_i64..200_000, now in 0_i64..200_000, later in 0_i64..200_000) {
            let session = Session { last_seen_at: at(seen), ..session() };
            let policy = SessionPolicy::default();
            if session.standing(&policy, at(now)).is_err() {
                prop_assert!(session.standing(&policy, at(now + later)).is_err());
            }
        }
    }
}
