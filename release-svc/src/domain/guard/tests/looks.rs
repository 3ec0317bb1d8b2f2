//! Tests at scheduled looks, by the recursion of P. Armitage and others (Repeated significance tests on accumulating data,
//! 1969): the density of a sum that has not been stopped is carried from look to look. What it says of well-known tests is
//! in the literature, so it is believed of ours.

use super::*;

/// Points on which a density is known; even, for Simpson's rule.
const POINTS: u32 = 400;

/// Chance that a sum of standard normal steps is ever beyond its bound at a look, each bound in deviations of the sum then.
fn stopped(bounds: &[f64]) -> f64 {
    let mut points = vec![(0.0, 1.0)];
    for (look, bound) in (1_u32..).zip(bounds) {
        let end = bound * f64::from(look).sqrt();
        let step = 2.0 * end / f64::from(POINTS);
        points = (0..=POINTS)
            .map(|n| {
                let at = f64::from(n) * step - end;
                let simpson = if n == 0 || n == POINTS { 1.0 } else { f64::from(2 + n % 2 * 2) } / 3.0;
                let density: f64 = points.iter().map(|(from, mass)| mass * normal(at - from)).sum();
                (at, density * simpson * step)
            })
            .collect();
    }
    1.0 - points.iter().map(|(_, mass)| mass).sum::<f64>()
}

fn normal(z: f64) -> f64 {
    (-z * z / 2.0).exp() / std::f64::consts::TAU.sqrt()
}

/// By the same paper: looking again at a test of 5 % until it says something.
#[test]
fn looking_again_is_as_wrong_as_published() {
    for (looks, published) in
        [(1, 0.050), (2, 0.083), (3, 0.107), (4, 0.126), (5, 0.142), (10, 0.193), (20, 0.248), (50, 0.320)]
    {
        assert_close(stopped(&vec![1.959_964; looks]), published, 6e-4);
    }
}

#[test]
fn pocock_and_obrien_fleming_stop_as_often_as_published() {
    for (looks, constant) in [(2_u32, 2.178), (3, 2.289), (4, 2.361), (5, 2.413), (10, 2.555)] {
        assert_close(stopped(&vec![constant; looks as usize]), 0.05, 2e-4);
    }
    for (looks, constant) in [(2_u32, 1.977), (3, 2.004), (4, 2.024), (5, 2.040), (10, 2.087)] {
        let bounds: Vec<f64> = (1..=looks)
            .map(|look| constant * f64::from(looks).sqrt() / f64::from(look).sqrt())
            .collect();
        assert_close(stopped(&bounds), 0.05, 2e-4);
    }
}

/// Ours, every hundred units up to 5000, where a test of 5 % that is looked at as often is wrong in 32 %.
#[test]
fn the_interval_of_the_difference_misses_less_often_than_it_says_at_all_looks_together() {
    let bounds: Vec<f64> = (1_u32..=50)
        .map(|look| f64::from(look) * 100.0)
        .map(|units| interval::boundary(units, interval::mixture(5_000.0)) / units.sqrt())
        .collect();
    let chance = stopped(&bounds);
    assert!((0.01..0.05).contains(&chance), "{chance}");
}
