//! Whether units came as planned: a release that loses its units, or a count that misses some, makes arms differ that
//! would not. A Bayes factor of the planned shares against any others, by a Dirichlet prior about the plan (M. Lindon,
//! A. Malek, 2022; optimizely/ssrm), which under the plan reaches 1/alpha with a chance of at most alpha, ever.

use super::{StepCounts, real};

/// How close to the plan other shares are expected, in units. At a share of a tenth the loss of half of the canary's units
/// shows after about 400 units, of a tenth after about 11,000; with ten times more the first, with ten times less the second
/// would take longer.
const CONCENTRATION: f64 = 100.0;

/// `ln` of the Bayes factor of the step that is furthest off. Every step is tried against its own share, with a prior of its
/// own. A unit may be dealt anew in the next step, where its arm goes by the one before, so the factors are no independent
/// ones to be multiplied. Instead the nth step has 1/(n(n+1)) of alpha, which add up to no more than all of it however many
/// come.
pub fn ln_mismatch(counts: &[StepCounts]) -> f64 {
    let of = |step: &StepCounts| {
        let share = step.share()?;
        let shares = [share, 1.0 - share];
        let units = [step.canary.units, step.control.units];
        Some(ln_bayes_factor(units, shares, shares.map(|p| CONCENTRATION * p)))
    };
    let nth = (1_u32..).map(f64::from);
    let tried = counts.iter().filter_map(of).zip(nth);
    tried
        .map(|(ln_factor, n)| ln_factor - (n * (n + 1.0)).ln())
        .reduce(f64::max)
        .unwrap_or(0.0)
}

/// Of units in arms against their shares, by the prior's parameters.
pub(super) fn ln_bayes_factor<const N: usize>(units: [u64; N], shares: [f64; N], prior: [f64; N]) -> f64 {
    let units = units.map(real);
    let after: [f64; N] = std::array::from_fn(|arm| prior[arm] + units[arm]);
    let ln_planned: f64 = units.iter().zip(shares).map(|(units, share)| units * share.ln()).sum();
    ln_beta(after) - ln_beta(prior) - ln_planned
}

/// `ln` of the beta function of so many parameters.
fn ln_beta<const N: usize>(parameters: [f64; N]) -> f64 {
    parameters.iter().map(|a| libm::lgamma(*a)).sum::<f64>() - libm::lgamma(parameters.iter().sum())
}
