//! How rollouts go: what becomes of the sessions that chance dealt an arm of theirs, and what that is booked under.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use shared::id::RolloutId;

use super::visit::{Arm, Pins};

/// A checkout failed, or was abandoned.
pub const CHECKOUT: Guard = Guard(Cow::Borrowed("checkout"));
/// An order was placed.
pub const PURCHASE: Guard = Guard(Cow::Borrowed("purchase"));

/// The name of an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard(Cow<'static, str>);

/// Not the name of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 63 lower-case letters, digits, `_` and `-`, starting with a letter")]
pub struct Malformed;

impl Guard {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Guard {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let is_inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
        let is_guard = (1..=63).contains(&text.len())
            && text.as_bytes()[0].is_ascii_lowercase()
            && text.bytes().all(is_inner);
        if is_guard { Ok(Self(text.to_owned().into())) } else { Err(Malformed) }
    }
}

/// A rollout that asks for an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asking {
    /// Which.
    pub rollout: RolloutId,
    /// Its present step.
    pub step: i32,
    /// Whether it moves visits that run.
    pub is_all_sessions: bool,
}

/// What an outcome of a session is booked under, if the session is a unit of the rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Booking {
    /// The rollout.
    pub rollout: RolloutId,
    /// Step and arm; none stands for those of the enrolment.
    pub at: Option<(i32, Arm)>,
}

/// Where a rollout leaves running visits alone, an outcome is of the arm that the session was dealt, in the step in which it
/// was. Where it moves them, it is of the arm that the session is on, in the present step; a session that is on neither has
/// none.
pub fn book(asking: &Asking, pins: &Pins) -> Option<Booking> {
    let rollout = asking.rollout;
    if !asking.is_all_sessions {
        return Some(Booking { rollout, at: None });
    }
    let arm = pins.values().filter_map(|pin| pin.arm).find(|(of, _)| *of == rollout);
    arm.map(|(_, arm)| Booking { rollout, at: Some((asking.step, arm)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::visit::{Pin, Release};
    use shared::id::ReleaseId;
    use uuid::Uuid;

    #[test]
    fn names_of_guards_are_short_and_plain() {
        for good in ["checkout", "slow-page_2", "a", &"a".repeat(63)] {
            assert!(good.parse::<Guard>().is_ok(), "{good}");
        }
        for bad in ["", "A", "1a", "-a", "a b", "ä", &"a".repeat(64)] {
            assert_eq!(bad.parse::<Guard>(), Err(Malformed), "{bad}");
        }
    }

    #[test]
    fn outcomes_are_booked_where_they_happen_only_by_rollouts_that_move_running_visits() {
        let rollout = RolloutId::from_uuid(Uuid::from_u128(1));
        let release = Release { id: ReleaseId::from_uuid(Uuid::from_u128(2)), version: "2".to_owned() };
        let on = |arm| Pins::from([("shop".parse().unwrap(), Pin { release: release.clone(), arm })]);
        let asking = |is_all_sessions| Asking { rollout, step: 3, is_all_sessions };
        let (canary, nowhere) = (on(Some((rollout, Arm::Canary))), on(None));
        assert_eq!(book(&asking(false), &nowhere), Some(Booking { rollout, at: None }));
        assert_eq!(book(&asking(true), &canary), Some(Booking { rollout, at: Some((3, Arm::Canary)) }));
        assert_eq!(book(&asking(true), &nowhere), None);
    }
}
