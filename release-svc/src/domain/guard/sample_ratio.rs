//! Whether units came as planned: a release that loses its units, or a count that misses some, makes arms differ that
//! would not. A Bayes factor of the planned shares against any others, by a Dirichlet prior about the plan (M. Lindon,
//! A. Malek, 2022; optimizely/ssrm), which under the plan reaches 1/alpha with a chance of at most alpha, ever.

use super::{StepCounts, real};

/// How close to the plan other shares are expected, in units. At a share of a tenth the loss of half of the canary's units
/// shows after about 400 units, of a tenth after about 11,000; with ten times more the first, with ten times less the second
/// would take longer.
const CONCENTRATION: f64 = 100.0;

/// `ln` of the Bayes factor. Every step is tried against its own share, with a prior of its own: under the plan each factor
/// is expected to stay as it is with every unit, whichever step that is in, and so does their product.
pub fn ln_mismatch(counts: &[StepCounts]) -> f64 {
    let of = |step: &StepCounts| {
        step.share().map_or(0.0, |share| {
            let shares = [share, 1.0 - share];
            ln_bayes_factor(
                [step.canary.units, step.control.units],
                shares,
                shares.map(|p| CONCENTRATION * p),
            )
        })
    };
    counts.iter().map(of).sum()
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
