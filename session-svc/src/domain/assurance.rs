//! How surely a subject is who it claims to be: levels 1 to 3 as in NIST SP 800-63B-4. A level is reached by an
//! authentication and falls again as that ages.

use std::time::Duration;

use shared::time::Time;

use super::session::Identity;
use super::touchpoint::SessionPolicy;

/// A level of assurance, in rising order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// One factor.
    One,
    /// Two factors, or a passkey.
    Two,
    /// A hardware authenticator that phishing does not reach.
    Three,
}

impl Level {
    /// 1 to 3.
    pub fn from_number(number: i32) -> Option<Self> {
        match number {
            1 => Some(Self::One),
            2 => Some(Self::Two),
            3 => Some(Self::Three),
            _ => None,
        }
    }

    /// 1 to 3.
    pub fn number(self) -> i16 {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Three => 3,
        }
    }
}

/// An authentication that took place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentication {
    /// When the subject proved itself, which may be before it logged in here.
    pub at: Time,
    /// The level reached.
    pub level: Level,
    /// The class that the identity provider named.
    pub acr: Option<String>,
    /// The methods that it named (RFC 8176).
    pub amr: Vec<String>,
    /// `sid` of its own session.
    pub upstream_session: Option<String>,
}

/// What a caller asks of an authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Requirement {
    /// The least level, if any.
    pub level: Option<Level>,
    /// The longest that it may lie back, if that matters.
    pub max_age: Option<Duration>,
}

/// What is lacking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lacking {
    /// The level was never reached.
    #[error("the session's assurance is too low: have the subject step up")]
    Level,
    /// It was, but too long ago.
    #[error("the session was authenticated too long ago: have the subject authenticate again")]
    Age,
}

impl Authentication {
    /// The level that holds at `now`, and when it falls; `None` where it stays.
    pub fn level_at(&self, policy: &SessionPolicy, now: Time) -> (Level, Option<Time>) {
        let (three, two) = (self.at + policy.level_3_max_age, self.at + policy.level_2_max_age);
        match self.level {
            Level::Three if now < three => (Level::Three, Some(three)),
            Level::Two | Level::Three if now < two => (Level::Two, Some(two)),
            Level::One | Level::Two | Level::Three => (Level::One, None),
        }
    }
}

impl Requirement {
    /// Whether the identity that is logged in, if any, meets it.
    pub fn check(
        &self,
        identity: Option<&Identity>,
        policy: &SessionPolicy,
        now: Time,
    ) -> Result<(), Lacking> {
        if *self == Self::default() {
            return Ok(());
        }
        let authentication = &identity.ok_or(Lacking::Level)?.authentication;
        if self.level.is_some_and(|level| authentication.level < level) {
            return Err(Lacking::Level);
        }
        let has_fallen = self.level.is_some_and(|level| authentication.level_at(policy, now).0 < level);
        let is_old = self.max_age.is_some_and(|age| now > authentication.at + age);
        if has_fallen || is_old { Err(Lacking::Age) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::session::Subject;
    use shared::time::at;

    const HOUR: i64 = 3600;

    fn identity(level: Level) -> Identity {
        Identity {
            subject: Subject { issuer: "idp".to_owned(), sub: "alice".to_owned() },
            authentication: Authentication {
                at: at(0),
                level,
                acr: None,
                amr: vec![],
                upstream_session: None,
            },
        }
    }

    #[test]
    fn a_level_falls_as_the_authentication_ages() {
        let policy = SessionPolicy::default();
        let authentication = identity(Level::Three).authentication;
        for (now, level, end) in [
            (0, Level::Three, Some(at(12 * HOUR))),
            (12 * HOUR - 1, Level::Three, Some(at(12 * HOUR))),
            (12 * HOUR, Level::Two, Some(at(24 * HOUR))),
            (24 * HOUR, Level::One, None),
        ] {
            assert_eq!(authentication.level_at(&policy, at(now)), (level, end), "{now}");
        }
    }

    #[test]
    fn what_is_lacking_is_told_apart() {
        let policy = SessionPolicy::default();
        let level = |level| Requirement { level: Some(level), max_age: None };
        let age = Requirement { level: None, max_age: Some(Duration::from_mins(5)) };
        let two = identity(Level::Two);
        let check = |requirement: Requirement, identity, now| requirement.check(identity, &policy, at(now));
        assert_eq!(check(Requirement::default(), None, 0), Ok(()));
        assert_eq!(check(level(Level::One), None, 0), Err(Lacking::Level));
        assert_eq!(check(age, None, 0), Err(Lacking::Level));
        assert_eq!(check(level(Level::Two), Some(&two), 0), Ok(()));
        assert_eq!(check(level(Level::Three), Some(&two), 0), Err(Lacking::Level));
        assert_eq!(check(level(Level::Two), Some(&two), 24 * HOUR), Err(Lacking::Age));
        assert_eq!(check(age, Some(&two), 300), Ok(()));
        assert_eq!(check(age, Some(&two), 301), Err(Lacking::Age));
    }
}
