//! Chances of false alarms and of detection, exactly: whichever arm the next event is in, what came before is only how many
//! were in the canary, so the chance of every such number is carried from event to event.

use super::*;

/// Chance of having reached a threshold by each event, if what is reached depends on how many are in the canary.
fn reached(chance: f64, events: u64, is_reached: impl Fn(u64, u64) -> bool) -> Vec<f64> {
    let mut alive = vec![1.0];
    let mut total = 0.0;
    (1..=events)
        .map(|n| {
            let mut next = vec![0.0; alive.len() + 1];
            for (canary, was) in alive.iter().enumerate() {
                next[canary] += was * (1.0 - chance);
                next[canary + 1] += was * chance;
            }
            for (canary, is) in next.iter_mut().enumerate().filter(|(_, is)| **is > 0.0) {
                let canary = u64::try_from(canary).unwrap();
                if is_reached(canary, n - canary) {
                    total += std::mem::take(is);
                }
            }
            alive = next;
            total
        })
        .collect()
}

/// By each event of guards without ratios of their own, at a true ratio.
fn harm(kind: Kind, canary_bps: i32, true_ratio: f64, alpha: f64, events: u64) -> Vec<f64> {
    let share = f64::from(canary_bps) / 10_000.0;
    let chance = share * true_ratio / (share * true_ratio + 1.0 - share);
    let min = -alpha.ln();
    // From which number in the canary on it is harm (up to which, for successes), among so many events.
    let limit: Vec<u64> = (0..=events)
        .map(|n| {
            let is_harm =
                |canary: u64| rule(kind).ln_harm(&[super::events((canary_bps, canary, n - canary))]) >= min;
            let counts: Vec<u64> = (0..=n).collect();
            match kind {
                Kind::Failure => counts.partition_point(|canary| !is_harm(*canary)),
                Kind::Success => counts.partition_point(|canary| is_harm(*canary)),
            }
            .try_into()
            .unwrap()
        })
        .collect();
    reached(chance, events, |canary, control| {
        let limit = limit[usize::try_from(canary + control).unwrap()];
        match kind {
            Kind::Failure => canary >= limit,
            Kind::Success => canary < limit,
        }
    })
}

fn median(reached: &[f64]) -> usize {
    1 + reached.iter().position(|chance| *chance >= 0.5).unwrap()
}

/// Looked at after each of 2000 failures. Beside them what a simulation of the same had said, in so few runs that it is off
/// by up to a hundredth.
#[test]
fn false_alarms_stay_below_alpha_however_often_one_looks() {
    for (canary_bps, alpha, exact, simulated) in [
        (1_000, 0.05, 0.036_4, Some(0.027)),
        (5_000, 0.05, 0.043_7, Some(0.049)),
        (1_000, 0.01, 0.006_5, Some(0.007)),
        (5_000, 0.01, 0.008_6, None),
    ] {
        let chance = harm(Kind::Failure, canary_bps, 1.0, alpha, 2_000).pop().unwrap();
        assert!(chance <= alpha);
        assert_close(chance, exact, 1e-4);
        assert_close(chance, simulated.unwrap_or(exact), 0.01);
    }
    for canary_bps in [1_000, 5_000] {
        assert!(harm(Kind::Success, canary_bps, 1.0, ALPHA, 2_000).pop().unwrap() <= ALPHA);
    }
}

/// A canary that is better than tolerated alarms even less often.
#[test]
fn a_better_canary_is_harm_less_often() {
    let chance = |kind, true_ratio| harm(kind, 1_000, true_ratio, 0.05, 1_000).pop().unwrap();
    assert!(chance(Kind::Failure, 0.9) < chance(Kind::Failure, 1.0));
    assert!(chance(Kind::Success, 1.1) < chance(Kind::Success, 1.0));
}

/// Failures of both arms until HARM is more likely than not, and what simulations had said of that.
#[test]
fn harm_is_found_in_as_many_failures_as_simulations_said() {
    for (canary_bps, true_ratio, exact, simulated) in [
        (5_000, 1.5, 249, 236),
        (5_000, 2.0, 86, 78),
        (5_000, 3.0, 36, 36),
        (1_000, 1.5, 560, 569),
        (1_000, 2.0, 165, 167),
        (1_000, 3.0, 55, 50),
        (100, 2.0, 1_336, 1_338),
        (100, 3.0, 404, 413),
    ] {
        let median = median(&harm(Kind::Failure, canary_bps, true_ratio, ALPHA, 1_500));
        assert_eq!(median, exact);
        assert!(median.abs_diff(simulated) <= simulated / 9, "{median} {simulated}");
    }
}

#[test]
fn balanced_units_are_called_unbalanced_once_in_a_hundred_at_most() {
    for canary_bps in [1_000, 5_000] {
        let is_off =
            |canary, control| ln_mismatch(&[units(canary_bps, canary, control)]) >= MISMATCH_MIN.ln();
        let chance = reached(f64::from(canary_bps) / 10_000.0, 500, is_off).pop().unwrap();
        assert!((0.000_1..0.01).contains(&chance), "{chance}");
    }
}
