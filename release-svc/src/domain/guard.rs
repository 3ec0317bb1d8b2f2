//! What a rollout must not make worse: outcomes of enrolled units, counted per step and arm, and what the counts prove.
//! A verdict holds however often one looks and whenever one stops, and whatever the rate of all does over the day. It
//! rests on exact tests of whole numbers; no data proves nothing.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::domain::rollout::EVERYONE_BPS;

mod e_process;
mod interval;
mod sample_ratio;
mod stored;
#[cfg(test)]
mod tests;

pub use interval::{Estimate, Interval, estimate};
pub use sample_ratio::ln_mismatch;

/// Chance that a rollout whose canary is no worse than tolerated is ever judged HARM, by any of its guards.
pub const ALPHA: f64 = 0.01;
/// Chance that a guard whose canary is unacceptable is ever judged SAFE. Guards do not share it: a rollout goes on when all
/// of them are SAFE, so that the one in question has to err itself.
pub const BETA: f64 = 0.05;
/// From such odds on against the planned shares, units are not assigned or not counted as planned.
const MISMATCH_MIN: f64 = 100.0;
/// Most guards of a rollout.
pub const GUARDS_MAX: usize = 16;
/// Most characters of a name.
const NAME_MAX: usize = 63;

/// An outcome that a rollout is judged by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    pub name: Name,
    pub rule: Rule,
    pub mode: Mode,
    /// What part of [`ALPHA`] it gets, beside the weights of the others; at least 1.
    pub weight: u32,
}

/// Those of one rollout.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<stored::Stored>", into = "Vec<stored::Stored>")]
pub struct Guards(Vec<Guard>);

/// What an outcome is called: `checkout` and `purchase` are counted from carts, any other is recorded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// What is done about HARM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Mode {
    Observe,
    Pause,
    Rollback,
}

/// What is counted of units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Kind {
    /// Those that failed: more of them are worse.
    Failure,
    /// Those that succeeded: fewer of them are worse.
    Success,
}

/// What counts, and how far the canary's rate of it, divided by control's, may be off. Ratios are in basis points: 12500
/// is a quarter more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    kind: Kind,
    /// HARM is that the ratio is worse than this.
    tolerated_bps: i32,
    /// SAFE is that the ratio is better than this.
    unacceptable_bps: i32,
}

/// The counts of a guard in one step of a rollout, from its beginning until now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepCounts {
    /// Share of the units that are assigned to the canary.
    pub canary_bps: i32,
    pub canary: Tally,
    pub control: Tally,
}

/// The units of one arm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Those that were enrolled.
    pub units: u64,
    /// Those of them that failed or succeeded, by the kind of the guard.
    pub events: u64,
}

/// What the counts prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The canary is worse than tolerated. Latched.
    Harm,
    /// It is better than unacceptable, by what is known now.
    Safe,
    Inconclusive,
}

/// The greatest evidence there ever was. Between looks it is kept whether that proved something, so that what was proved
/// stays proved.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Peaks {
    /// Of harm, as long as the units were balanced.
    pub ln_harm: f64,
    /// That the units are not balanced.
    pub ln_mismatch: f64,
}

/// A verdict and what it rests on. Evidence is the logarithm of an e-value, the factor by which a bet against what is to be
/// disproved has grown; it is proved from a threshold on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judgement {
    pub verdict: Verdict,
    /// That the ratio is worse than tolerated.
    pub ln_harm: f64,
    /// From where on that is HARM.
    pub ln_harm_min: f64,
    /// That the ratio is better than unacceptable.
    pub ln_safe: f64,
    /// From where on that is SAFE.
    pub ln_safe_min: f64,
    /// That the units are not balanced.
    pub ln_mismatch: f64,
    /// With this look.
    pub peaks: Peaks,
}

/// The text is no name of a guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be 1 to {NAME_MAX} lower-case letters, digits, hyphens and underscores, starting with a letter"
)]
pub struct BadName;

/// The ratios are no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRule {
    #[error("of failures must rise: 10000 <= tolerated < unacceptable <= 100000")]
    Failure,
    #[error("of successes must fall: 10000 >= tolerated > unacceptable >= 2000")]
    Success,
}

/// The guards are none for a rollout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadGuards {
    #[error("must have at most {GUARDS_MAX} elements")]
    TooMany,
    #[error("must name {0} once")]
    Twice(Name),
    #[error("must give {0} a weight of at least 1")]
    Weightless(Name),
}

impl Guards {
    pub fn new(guards: Vec<Guard>) -> Result<Self, BadGuards> {
        if guards.len() > GUARDS_MAX {
            return Err(BadGuards::TooMany);
        }
        let mut names = HashSet::new();
        for guard in &guards {
            if !names.insert(&guard.name) {
                return Err(BadGuards::Twice(guard.name.clone()));
            }
            if guard.weight == 0 {
                return Err(BadGuards::Weightless(guard.name.clone()));
            }
        }
        Ok(Self(guards))
    }

    pub fn as_slice(&self) -> &[Guard] {
        &self.0
    }

    /// Each with its part of [`ALPHA`]. Those that only observe get theirs, too, so that they say what they would have done.
    pub fn with_alpha(&self) -> impl Iterator<Item = (&Guard, f64)> {
        let total: f64 = self.0.iter().map(|guard| f64::from(guard.weight)).sum();
        self.0.iter().map(move |guard| (guard, ALPHA * f64::from(guard.weight) / total))
    }
}

impl Rule {
    /// Without ratios, the canary should be no worse at all, and a quarter more failures or a fifth fewer successes would
    /// be unacceptable.
    pub fn new(
        kind: Kind,
        tolerated_bps: Option<i32>,
        unacceptable_bps: Option<i32>,
    ) -> Result<Self, BadRule> {
        let tolerated_bps = tolerated_bps.unwrap_or(EVERYONE_BPS);
        match kind {
            Kind::Failure => {
                let unacceptable_bps = unacceptable_bps.unwrap_or(12_500);
                let rises = EVERYONE_BPS <= tolerated_bps
                    && tolerated_bps < unacceptable_bps
                    && unacceptable_bps <= 100_000;
                rises
                    .then_some(Self { kind, tolerated_bps, unacceptable_bps })
                    .ok_or(BadRule::Failure)
            }
            Kind::Success => {
                let unacceptable_bps = unacceptable_bps.unwrap_or(8_000);
                let falls = EVERYONE_BPS >= tolerated_bps
                    && tolerated_bps > unacceptable_bps
                    && unacceptable_bps >= 2_000;
                falls
                    .then_some(Self { kind, tolerated_bps, unacceptable_bps })
                    .ok_or(BadRule::Success)
            }
        }
    }

    pub fn kind(self) -> Kind {
        self.kind
    }

    pub fn tolerated_bps(self) -> i32 {
        self.tolerated_bps
    }

    pub fn unacceptable_bps(self) -> i32 {
        self.unacceptable_bps
    }

    /// Judges at a level of error for HARM, given what came before. While units are not balanced nothing is proved but what
    /// was before, as then the arms differ by more than the release.
    pub fn judge(self, alpha: f64, counts: &[StepCounts], before: Peaks) -> Judgement {
        let (ln_harm, ln_safe, ln_mismatch) =
            (self.ln_harm(counts), self.ln_safe(counts), ln_mismatch(counts));
        let (ln_harm_min, ln_safe_min) = (-alpha.ln(), -BETA.ln());
        let mut peaks = Peaks { ln_mismatch: before.ln_mismatch.max(ln_mismatch), ..before };
        if !peaks.is_mismatch() {
            peaks.ln_harm = before.ln_harm.max(ln_harm);
        }
        let verdict = if peaks.ln_harm >= ln_harm_min {
            Verdict::Harm
        } else if ln_safe >= ln_safe_min && !peaks.is_mismatch() {
            Verdict::Safe
        } else {
            Verdict::Inconclusive
        };
        Judgement { verdict, ln_harm, ln_harm_min, ln_safe, ln_safe_min, ln_mismatch, peaks }
    }
}

impl Peaks {
    /// What is left of earlier looks: at least so much as proved harm at this level of error, and that units are not
    /// balanced, where they did.
    pub fn of_found(harm_at: Option<f64>, is_mismatch: bool) -> Self {
        let ln_harm = harm_at.map_or(0.0, |alpha| -alpha.ln());
        Self { ln_harm, ln_mismatch: if is_mismatch { MISMATCH_MIN.ln() } else { 0.0 } }
    }

    /// Units were not assigned or not counted as planned.
    pub fn is_mismatch(self) -> bool {
        self.ln_mismatch >= MISMATCH_MIN.ln()
    }
}

impl Judgement {
    /// Always-valid p-value: were the canary no worse than tolerated, evidence as great as there ever was would come up with
    /// at most this chance, however often one looks. It is not the chance that the canary is no worse; nothing here is, as
    /// that would depend on what one believed before.
    pub fn p_value(&self) -> f64 {
        (-self.peaks.ln_harm).exp().min(1.0)
    }
}

impl StepCounts {
    /// The canary's share, unless the step has one arm only and says nothing.
    fn share(&self) -> Option<f64> {
        let is_split = 0 < self.canary_bps && self.canary_bps < EVERYONE_BPS;
        is_split.then(|| f64::from(self.canary_bps) / f64::from(EVERYONE_BPS))
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53, and then good for 15 digits")]
fn real(count: u64) -> f64 {
    count as f64
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        let is_name = text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.len() <= NAME_MAX
            && text.bytes().all(is_plain);
        is_name.then(|| Self(text.to_owned())).ok_or(BadName)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
