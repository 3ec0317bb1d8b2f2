//! Evidence about the ratio of rates, from which arm each event is in. Given that a unit has an event, it is a canary with
//! a chance that follows from the canary's share and the ratio alone, whatever the rate is: `share r / (share r + 1 -
//! share)`. So the likelihood of one ratio over another's is an e-process, and so is a mixture of these (M. Lindon,
//! A. Malek, Anytime-valid inference for multinomial count data, 2022): its chance of ever reaching 1/alpha is at most alpha.

use super::{Kind, Rule, StepCounts, real};

/// What more failures are tried with.
const MORE_FAILURES: [f64; 6] = [1.25, 1.5, 2.0, 3.0, 5.0, 10.0];
/// What fewer successes are tried with.
const FEWER_SUCCESSES: [f64; 6] = [0.9, 0.8, 0.67, 0.5, 0.33, 0.2];
/// What is not unacceptable is tried with: no change, and a change for the better. Each row is the other with the arms
/// exchanged, which turns a ratio into its reciprocal and the default limit of 1.25 into 0.8.
const FINE_FAILURES: [f64; 2] = [1.0, 0.8];
const FINE_SUCCESSES: [f64; 2] = [1.0, 1.25];

impl Rule {
    /// `ln E` against a ratio that is tolerated: by the expectation's growing with the true ratio, against any better one,
    /// too. Only ratios worse than tolerated are tried, as others would not be evidence of harm. The mildest of them is off
    /// by a quarter (a tenth of successes), so that what is off by less than about half of that never adds up to harm.
    pub fn ln_harm(self, counts: &[StepCounts]) -> f64 {
        let tolerated = ratio(self.tolerated_bps);
        match self.kind {
            Kind::Failure => ln_e(counts, tolerated, MORE_FAILURES.iter().filter(|r| **r > tolerated)),
            Kind::Success => ln_e(counts, tolerated, FEWER_SUCCESSES.iter().filter(|r| **r < tolerated)),
        }
    }

    /// `ln E` against a ratio that is unacceptable, or any worse one.
    pub fn ln_safe(self, counts: &[StepCounts]) -> f64 {
        let fine = match self.kind {
            Kind::Failure => FINE_FAILURES,
            Kind::Success => FINE_SUCCESSES,
        };
        ln_e(counts, ratio(self.unacceptable_bps), fine.iter())
    }
}

fn ratio(bps: i32) -> f64 {
    f64::from(bps) / 10_000.0
}

/// Of a null ratio against others of equal weight, at least one.
fn ln_e<'a>(counts: &[StepCounts], null: f64, others: impl Iterator<Item = &'a f64>) -> f64 {
    let at_null = ln_likelihood(counts, null);
    ln_mean_exp(&others.map(|r| ln_likelihood(counts, *r) - at_null).collect::<Vec<_>>())
}

/// Of a ratio, up to a summand that is the same for all.
pub(super) fn ln_likelihood(counts: &[StepCounts], ratio: f64) -> f64 {
    let of = |step: &StepCounts| {
        step.share().map_or(0.0, |share| {
            let (canary, control) = (real(step.canary.events), real(step.control.events));
            canary * ratio.ln() - (canary + control) * (share * (ratio - 1.0)).ln_1p()
        })
    };
    counts.iter().map(of).sum()
}

/// `ln` of the mean of exponentials, which alone would overflow.
pub(super) fn ln_mean_exp(logs: &[f64]) -> f64 {
    let max = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logs.iter().map(|log| (log - max).exp()).sum();
    max + (sum / real(logs.len() as u64)).ln()
}
