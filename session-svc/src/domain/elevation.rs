//! Leave to do one thing once: an action, and to what exactly, which is known here by a digest alone.

use std::str::FromStr;

use chrono::TimeDelta;
use shared::secret::sha256;
use shared::time::Time;
use subtle::ConstantTimeEq as _;

use super::token::ElevationToken;

const ACTION_MAX: usize = 64;
/// Most elevations of one session that can still be redeemed.
pub const OPEN_MAX: i64 = 64;
/// For how long after its time an elevation is still known as expired or used.
pub const KEPT: TimeDelta = TimeDelta::hours(1);

/// The name of something that can be done, such as `payment.create`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action(String);

/// No name of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 64 lower-case letters, digits, `.`, `_` or `-`")]
pub struct BadAction;

/// SHA-256 of the token's secret, an action and its detail. Details may be personal: they are not kept, and none can be
/// found out by trying without the token.
#[derive(Debug, Clone, Copy)]
pub struct Digest([u8; 32]);

/// Leave that was granted.
#[derive(Debug)]
pub struct Elevation {
    /// What may be done.
    pub action: Action,
    /// That, and to what exactly.
    pub digest: Digest,
    /// It is good until then.
    pub expires_at: Time,
    /// Whether it was used.
    pub state: State,
}

/// Whether an elevation was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It was not.
    Granted,
    /// It was, and is good for nothing any more.
    Redeemed,
}

/// Why an elevation does not allow what is about to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It was used.
    #[error("the elevation was used")]
    Redeemed,
    /// Its time is over.
    #[error("the elevation's time is over")]
    Expired,
    /// It is for something else, for which it stays good.
    #[error("the elevation is for another action or detail")]
    Mismatch,
}

impl Action {
    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Action {
    type Err = BadAction;

    fn from_str(text: &str) -> Result<Self, BadAction> {
        let is_part = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        let is_name = (1..=ACTION_MAX).contains(&text.len()) && text.bytes().all(is_part);
        if is_name { Ok(Self(text.to_owned())) } else { Err(BadAction) }
    }
}

impl Digest {
    /// Of an action, and to what exactly, under the token that gives leave for it.
    pub fn of(token: &ElevationToken, action: &Action, detail: &str) -> Self {
        Self(sha256(&[b"deed", token.secret(), action.0.as_bytes(), detail.as_bytes()]))
    }

    /// As it was stored.
    pub fn from_stored(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// As it is stored.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Eq for Digest {}

impl PartialEq for Digest {
    /// In constant time.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Elevation {
    /// Uses it up for what is about to be done.
    pub fn redeem(self, asked: &Digest, now: Time) -> Result<Self, Refused> {
        match self.state {
            State::Redeemed => Err(Refused::Redeemed),
            State::Granted if now >= self.expires_at => Err(Refused::Expired),
            State::Granted if self.digest != *asked => Err(Refused::Mismatch),
            State::Granted => Ok(Self { state: State::Redeemed, ..self }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::id::SessionId;
    use shared::time::at;

    fn token(secret: u8) -> ElevationToken {
        ElevationToken::new(SessionId::new(at(0), [3; 10]), [secret; 32])
    }

    fn digest(action: &str, detail: &str) -> Digest {
        Digest::of(&token(9), &action.parse().unwrap(), detail)
    }

    fn elevation(state: State) -> Elevation {
        let action = "payment.create".parse().unwrap();
        let digest = Digest::of(&token(9), &action, "120.00 EUR");
        Elevation { digest, action, expires_at: at(100), state }
    }

    #[test]
    fn an_elevation_is_good_once_in_time_and_for_its_own_thing() {
        let own = digest("payment.create", "120.00 EUR");
        let cases = [
            (State::Granted, own, 99, None),
            (State::Granted, own, 100, Some(Refused::Expired)),
            (State::Redeemed, own, 99, Some(Refused::Redeemed)),
            (State::Redeemed, own, 100, Some(Refused::Redeemed)),
            (State::Granted, digest("payment.create", "121.00 EUR"), 99, Some(Refused::Mismatch)),
            (State::Granted, digest("payment.create", ""), 99, Some(Refused::Mismatch)),
            (State::Granted, digest("payment.refund", "120.00 EUR"), 99, Some(Refused::Mismatch)),
            (State::Granted, digest("payment.create1", "20.00 EUR"), 99, Some(Refused::Mismatch)),
        ];
        for (state, asked, now, refused) in cases {
            let redeemed = elevation(state).redeem(&asked, at(now));
            assert_eq!(redeemed.as_ref().err().copied(), refused, "{state:?} at {now}");
            assert!(redeemed.is_err() || redeemed.is_ok_and(|it| it.state == State::Redeemed));
        }
    }

    #[test]
    fn the_same_thing_has_another_digest_under_another_token() {
        let action = "payment.create".parse().unwrap();
        let under = |secret| Digest::of(&token(secret), &action, "120.00 EUR");
        assert!(under(9) == under(9) && under(9) != under(8));
    }

    #[test]
    fn names_of_actions_are_plain() {
        let (longest, too_long) = ("a".repeat(64), "a".repeat(65));
        for good in ["a", "payment.create", "e-mail_2", longest.as_str()] {
            assert!(good.parse::<Action>().is_ok(), "{good}");
        }
        for bad in ["", "Payment", "pay ment", "zahlung.prüfen", "a\0", "a\n", too_long.as_str()] {
            assert_eq!(bad.parse::<Action>(), Err(BadAction), "{bad:?}");
        }
    }
}
