//! Sessions: when they live, when they ended, and why.

use std::time::Duration;

use shared::id::{SessionId, ShopperId, TouchpointId};
use shared::time::Time;

use super::assurance::Authentication;
use super::lineage::Lineage;
use super::touchpoint::Touchpoint;
use super::visit::Visit;

/// One device's presence at a touchpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// Its audience.
    pub touchpoint: TouchpointId,
    /// Its tokens.
    pub lineage: Lineage,
    /// The touchpoint's epoch when it was made.
    pub epoch: i32,
    /// The owner of its cart.
    pub shopper: Option<ShopperId>,
    /// Who is logged in.
    pub identity: Option<Box<Identity>>,
    /// Whether the longer timeouts apply.
    pub is_remembered: bool,
    /// What the shopper knows the device by.
    pub device: Option<String>,
    /// Roughly where it is.
    pub place: Option<String>,
    /// When it was made.
    pub created_at: Time,
    /// When it was last validated, as far as is known here.
    pub last_seen_at: Time,
    /// It ends then in any case. Set when it is made and by an authentication; nothing else moves it.
    pub absolute_deadline: Time,
    /// The present visit.
    pub visit: Visit,
    /// Whether a cart is in checkout, which holds the visit on its releases.
    pub in_checkout: bool,
    /// Until when a caller holds it there, or held it.
    pub held_until: Option<Time>,
    /// Whether it was ended.
    pub state: State,
}

/// How long a session lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Longest without a validation.
    pub idle: Duration,
    /// Longest at all.
    pub absolute: Duration,
}

impl Timeouts {
    /// How far the stored last-seen time may be behind: touches are written in batches.
    pub fn flush_interval(self) -> Duration {
        (self.idle / 8).min(Duration::from_secs(1))
    }
}

/// Who is logged in, and how that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Who.
    pub subject: Subject,
    /// The last authentication.
    pub authentication: Authentication,
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
    /// The subject had too many.
    Evicted,
    /// The subject was disabled.
    SubjectDisabled,
    /// A factor of the subject was changed.
    CredentialChanged,
    /// A token was presented whose successor had long been in use.
    StaleLineage,
    /// Its token was found where it should not be.
    Leaked,
}

impl RevokeReason {
    /// Every reason.
    pub const ALL: [Self; 8] = [
        Self::Logout,
        Self::Admin,
        Self::Compromised,
        Self::Evicted,
        Self::SubjectDisabled,
        Self::CredentialChanged,
        Self::StaleLineage,
        Self::Leaked,
    ];

    /// As it is stored, and as events and the API name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Logout => "LOGOUT",
            Self::Admin => "ADMIN",
            Self::Compromised => "COMPROMISED",
            Self::Evicted => "EVICTED",
            Self::SubjectDisabled => "SUBJECT_DISABLED",
            Self::CredentialChanged => "CREDENTIAL_CHANGED",
            Self::StaleLineage => "STALE_LINEAGE",
            Self::Leaked => "LEAKED",
        }
    }

    /// The reason of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }
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
    pub fn idle_deadline(&self, at: &Touchpoint) -> Time {
        self.idle_deadline_if_seen(self.last_seen_at, at)
    }

    /// As [`Session::idle_deadline`], if it was last seen then.
    pub fn idle_deadline_if_seen(&self, last_seen_at: Time, at: &Touchpoint) -> Time {
        let timeouts = at.policy.timeouts(self.is_remembered);
        last_seen_at + timeouts.idle + timeouts.flush_interval()
    }

    /// Whether it is good at `now`. Decided here, whatever has been purged or not.
    pub fn standing(&self, at: &Touchpoint, now: Time) -> Result<(), Ended> {
        self.standing_if_seen(self.last_seen_at, at, now)
    }

    /// As [`Session::standing`], if it was last seen then.
    pub fn standing_if_seen(&self, last_seen_at: Time, at: &Touchpoint, now: Time) -> Result<(), Ended> {
        match self.revocation(at) {
            Some(_) => Err(Ended::Revoked),
            None if now >= self.absolute_deadline => Err(Ended::Lifetime),
            None if now >= self.idle_deadline_if_seen(last_seen_at, at) => Err(Ended::Idle),
            None => Ok(()),
        }
    }

    /// When and why it was revoked, by itself or with all of its touchpoint.
    pub fn revocation(&self, at: &Touchpoint) -> Option<(Time, RevokeReason)> {
        match self.state {
            State::Revoked { at, reason } => Some((at, reason)),
            State::Open if self.epoch < at.session_epoch => {
                Some(at.sessions_revoked.unwrap_or((self.created_at, RevokeReason::Admin)))
            }
            State::Open => None,
        }
    }

    /// Whether something holds the visit on its releases.
    pub fn is_held(&self, now: Time) -> bool {
        self.in_checkout || self.held_until.is_some_and(|until| now < until)
    }

    /// Who is logged in.
    pub fn subject(&self) -> Option<&Subject> {
        self.identity.as_ref().map(|identity| &identity.subject)
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
    use crate::domain::abandonment::CartPolicy;
    use crate::domain::token::TokenHash;
    use crate::domain::touchpoint::SessionPolicy;
    use chrono::TimeDelta;
    use proptest::prelude::*;
    use shared::time::at;

    fn touchpoint() -> Touchpoint {
        Touchpoint {
            id: "web".parse().unwrap(),
            display_name: String::new(),
            group: "web".parse().unwrap(),
            components: vec![],
            policy: SessionPolicy::default(),
            cart_policy: CartPolicy::default(),
            has_shoppers: false,
            session_epoch: 0,
            sessions_revoked: None,
            created_at: at(0),
            version: 1,
        }
    }

    fn session() -> Session {
        Session {
            id: SessionId::new(at(1000), [0; 10]),
            touchpoint: "web".parse().unwrap(),
            lineage: Lineage::new(TokenHash::from_stored([0; 32])),
            epoch: 0,
            shopper: None,
            identity: None,
            is_remembered: false,
            device: None,
            place: None,
            created_at: at(1000),
            last_seen_at: at(1000),
            absolute_deadline: at(1000 + 24 * 3600),
            visit: Visit::default(),
            in_checkout: false,
            held_until: None,
            state: State::Open,
        }
    }

    #[test]
    fn the_idle_deadline_ends_a_session_to_the_microsecond() {
        let (session, touchpoint) = (session(), touchpoint());
        let end = at(1000) + touchpoint.policy.timeouts.idle + TimeDelta::seconds(1);
        assert_eq!(session.standing(&touchpoint, end - TimeDelta::microseconds(1)), Ok(()));
        assert_eq!(session.standing(&touchpoint, end), Err(Ended::Idle));
    }

    #[test]
    fn the_absolute_deadline_ends_a_session_in_use() {
        let session = Session { last_seen_at: at(1000 + 24 * 3600), ..session() };
        assert_eq!(session.standing(&touchpoint(), session.absolute_deadline), Err(Ended::Lifetime));
    }

    #[test]
    fn a_remembered_session_lives_longer_while_the_touchpoint_remembers() {
        let day = Duration::from_hours(24);
        let mut touchpoint = touchpoint();
        let session = Session { is_remembered: true, absolute_deadline: at(100 * 86_400), ..session() };
        touchpoint.policy.remember_me = Some(Timeouts { idle: 30 * day, absolute: 90 * day });
        assert_eq!(session.standing(&touchpoint, at(29 * 86_400)), Ok(()));
        touchpoint.policy.remember_me = None;
        assert_eq!(session.standing(&touchpoint, at(29 * 86_400)), Err(Ended::Idle));
    }

    #[test]
    fn a_new_epoch_of_the_touchpoint_revokes_what_was_made_before() {
        let revoked = Some((at(1500), RevokeReason::Compromised));
        let touchpoint = Touchpoint { session_epoch: 1, sessions_revoked: revoked, ..touchpoint() };
        assert_eq!(session().standing(&touchpoint, at(1500)), Err(Ended::Revoked));
        assert_eq!(session().revocation(&touchpoint), revoked);
        assert_eq!(Session { epoch: 1, ..session() }.standing(&touchpoint, at(1500)), Ok(()));
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
            let (session, touchpoint) = (Session { last_seen_at: at(seen), ..session() }, touchpoint());
            if session.standing(&touchpoint, at(now)).is_err() {
                prop_assert!(session.standing(&touchpoint, at(now + later)).is_err());
            }
        }
    }
}
