//! How much, for people to see: rates, their difference and their ratio, with intervals that hold at every look at once.
//! Verdicts do not rest on these.

use super::{StepCounts, Tally, e_process, real};

/// Chance that an interval ever misses.
const ALPHA: f64 = 0.05;
/// After how many units the interval of the difference is tightest. At a tenth or at ten times of that it is hardly wider.
const TUNED_FOR: f64 = 5_000.0;
/// Ratios from 1/16 to 16 are expected, this many of them to each side of 1: the next is 0.5 % greater.
const RATIOS: i32 = 512;
const LN_RATIO_MAX: f64 = 4.0 * std::f64::consts::LN_2;

/// What is known of the arms, by the steps in which both had units.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Share of units with an event. Each step weighs as many units as it had in both arms, so that what changed from step to
    /// step for everyone is no difference of arms.
    pub canary: f64,
    pub control: f64,
    /// Canary less control.
    pub difference: Interval,
    /// Canary by control; none without any event.
    pub ratio: Option<Interval>,
}

/// With 95 % confidence at all looks together, not at each.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    pub low: f64,
    pub estimate: f64,
    /// Infinite for a ratio to nothing.
    pub high: f64,
}

/// None before both arms had units in one step.
pub fn estimate(counts: &[StepCounts]) -> Option<Estimate> {
    let split: Vec<_> = counts.iter().filter(|step| step.share().is_some()).copied().collect();
    let has_both = |step: &&StepCounts| step.canary.units > 0 && step.control.units > 0;
    let both: Vec<_> = split.iter().filter(has_both).copied().collect();
    let units: f64 = both.iter().map(StepCounts::units).sum();
    let mean =
        |of: fn(&StepCounts) -> f64| both.iter().map(|step| step.units() / units * of(step)).sum::<f64>();
    let (canary, control) = (mean(|step| step.canary.rate()), mean(|step| step.control.rate()));
    (units > 0.0).then(|| Estimate {
        canary,
        control,
        difference: difference(&both, units, canary - control),
        ratio: ratio(&split),
    })
}

/// Normal mixture over the variance of all units. It is right for many units; with few events it is rather too wide, as no
/// event yet is taken for one.
fn difference(counts: &[StepCounts], units: f64, estimate: f64) -> Interval {
    let of_mean = |step: &StepCounts| {
        let weight = step.units() / units;
        weight * weight * (step.canary.variance() + step.control.variance())
    };
    let deviation = (counts.iter().map(of_mean).sum::<f64>() * units).sqrt();
    let half = deviation * boundary(units, mixture(TUNED_FOR)) / units;
    Interval { low: (estimate - half).max(-1.0), estimate, high: (estimate + half).min(1.0) }
}

/// What a sum of such a variance stays below, in size and for all time.
pub(super) fn boundary(variance: f64, mixture: f64) -> f64 {
    let total = variance + mixture;
    (total * (total / (mixture * ALPHA * ALPHA)).ln()).sqrt()
}

/// The mixture whose boundary is tightest at a variance.
pub(super) fn mixture(variance: f64) -> f64 {
    let twice = -2.0 * ALPHA.ln();
    variance / (twice + twice.ln_1p())
}

/// The ratios that the same likelihood as that of verdicts does not refute: exact for any number of events and for shares
/// that change. It does not get narrower than about one part in a hundred.
fn ratio(counts: &[StepCounts]) -> Option<Interval> {
    let events = |of: fn(&StepCounts) -> Tally| counts.iter().map(|step| real(of(step).events)).sum::<f64>();
    let (canary, control) = (events(|step| step.canary), events(|step| step.control));
    if canary + control == 0.0 {
        return None;
    }
    let ln_likelihood = |ln_ratio: f64| e_process::ln_likelihood(counts, ln_ratio.exp());
    let expected = (-RATIOS..=RATIOS).map(|n| f64::from(n) / f64::from(RATIOS) * LN_RATIO_MAX);
    let ln_mixture = e_process::ln_mean_exp(&expected.map(ln_likelihood).collect::<Vec<_>>());
    let is_refuted = |ln_ratio: f64| ln_mixture - ln_likelihood(ln_ratio) >= -ALPHA.ln();
    // Of few events in the canary, given all of them, there are rather more than at a greater ratio.
    let is_above = |ln_ratio: f64| canary < expected_canary(counts, ln_ratio.exp());
    let best = if canary == 0.0 {
        f64::NEG_INFINITY
    } else if control == 0.0 {
        f64::INFINITY
    } else {
        threshold(is_above)
    };
    let low = threshold(|ln_ratio| ln_ratio >= best || !is_refuted(ln_ratio));
    let high = threshold(|ln_ratio| ln_ratio > best && is_refuted(ln_ratio));
    Some(Interval {
        low: if canary == 0.0 { 0.0 } else { low.exp() },
        estimate: best.exp(),
        high: if control == 0.0 { f64::INFINITY } else { high.exp() },
    })
}

/// How many of all events are expected in the canary.
fn expected_canary(counts: &[StepCounts], ratio: f64) -> f64 {
    let of = |step: &StepCounts| {
        let odds = step.share().map_or(0.0, |share| share * ratio / (1.0 - share));
        (real(step.canary.events) + real(step.control.events)) * odds / (1.0 + odds)
    };
    counts.iter().map(of).sum()
}

/// From where on something holds that holds for all greater logarithms of ratios.
fn threshold(holds: impl Fn(f64) -> bool) -> f64 {
    let (mut below, mut above) = (-64.0, 64.0);
    // As close as numbers of this size are to each other.
    for _ in 0..60 {
        let middle = f64::midpoint(below, above);
        if holds(middle) {
            above = middle;
        } else {
            below = middle;
        }
    }
    above
}

impl StepCounts {
    fn units(&self) -> f64 {
        real(self.canary.units) + real(self.control.units)
    }
}

impl Tally {
    fn rate(self) -> f64 {
        real(self.events.min(self.units)) / real(self.units)
    }

    /// Of the rate, as if there were one more unit with an event and one without: where all are alike they vary, too.
    fn variance(self) -> f64 {
        let rate = (real(self.events.min(self.units)) + 1.0) / (real(self.units) + 2.0);
        rate * (1.0 - rate) / real(self.units)
    }
}
