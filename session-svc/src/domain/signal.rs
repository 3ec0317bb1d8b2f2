//! How rollouts go: what becomes of the sessions that chance dealt an arm of theirs.
//!
//! An outcome is booked under the step in which its session was dealt an arm last, with the arm that it was dealt then, and
//! units are counted by the same rule: so each arm has the step's share of both. A visit that is held, or was not seen since
//! the step changed, keeps the earlier deal; booked in the present step, such visits would be too many on control, and leaving
//! out just those that would have moved would make them too few.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use shared::id::{ComponentId, ReleaseId, RolloutId};

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

/// A rollout whose live visits are counted, under way or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// Of which component.
    pub component: ComponentId,
    /// Which.
    pub rollout: RolloutId,
    /// What it rolls out, or rolled out.
    pub release: ReleaseId,
    /// What that replaces, if anything.
    pub previous: Option<ReleaseId>,
}

impl Counted {
    /// The side that a visit is on, by its release alone: one from before the rollout is on the old release as those are
    /// that the rollout left there.
    pub fn side(&self, pins: &Pins) -> Option<Arm> {
        let pinned = pins.get(&self.component)?.release.id;
        if pinned == self.release {
            Some(Arm::Canary)
        } else {
            (Some(pinned) == self.previous).then_some(Arm::Control)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_guards_are_short_and_plain() {
        for good in ["checkout", "slow-page_2", "a", &"a".repeat(63)] {
            assert!(good.parse::<Guard>().is_ok(), "{good}");
        }
        for bad in ["", "A", "1a", "-a", "a b", "ä", &"a".repeat(64)] {
            assert_eq!(bad.parse::<Guard>(), Err(Malformed), "{bad}");
        }
    }
}
