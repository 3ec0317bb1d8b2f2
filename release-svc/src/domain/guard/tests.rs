use proptest::prelude::*;

use super::*;

mod exact;
mod looks;

fn rule(kind: Kind) -> Rule {
    Rule::new(kind, None, None).unwrap()
}

/// Share of the canary in basis points, its events, and those of control.
fn events((canary_bps, canary, control): (i32, u64, u64)) -> StepCounts {
    let tally = |events| Tally { units: 0, events };
    StepCounts { canary_bps, canary: tally(canary), control: tally(control) }
}

fn units(canary_bps: i32, canary: u64, control: u64) -> StepCounts {
    let tally = |units| Tally { units, events: 0 };
    StepCounts { canary_bps, canary: tally(canary), control: tally(control) }
}

/// Units and events of the canary, then of control.
fn outcomes(canary_bps: i32, canary: (u64, u64), control: (u64, u64)) -> StepCounts {
    let tally = |(units, events)| Tally { units, events };
    StepCounts { canary_bps, canary: tally(canary), control: tally(control) }
}

#[track_caller]
fn assert_close(is: f64, should: f64, within: f64) {
    assert!((is - should).abs() <= within, "{is} is not {should}");
}

/// Worked out apart from this code.
#[test]
fn evidence_is_what_the_formulas_say() {
    let failures = |tolerated| Rule::new(Kind::Failure, Some(tolerated), None).unwrap();
    for (tolerated, steps, ln_harm) in [
        (10_000, &[(1_000, 10, 40)][..], 1.362_352),
        (10_000, &[(1_000, 20, 40)], 10.555_066),
        (12_000, &[(1_000, 20, 40)], 8.096_793),
        (10_000, &[(5_000, 40, 20)], 2.367_505),
        (10_000, &[(5_000, 20, 20)], -1.514_112),
        (10_000, &[(500, 4, 36), (2_500, 30, 40)], 4.741_813),
        (10_000, &[], 0.0),
    ] {
        let counts: Vec<_> = steps.iter().copied().map(events).collect();
        assert_close(failures(tolerated).ln_harm(&counts), ln_harm, 1e-6);
    }
    for (step, ln_safe) in [((5_000, 200, 200), 1.871_431), ((5_000, 60, 40), -2.247_363)] {
        assert_close(failures(10_000).ln_safe(&[events(step)]), ln_safe, 1e-6);
    }
}

/// By hand: `E = (e(.9) + e(.8) + e(.67) + e(.5) + e(.33) + e(.2)) / 6`, where at equal shares 3 successes of the canary and
/// 9 of control have `e(r) = r^3 / ((1 + r) / 2)^12`.
#[test]
fn fewer_successes_are_harm() {
    let e = |r: f64| r.powi(3) / f64::midpoint(1.0, r).powi(12);
    let mean = [0.9, 0.8, 0.67, 0.5, 0.33, 0.2].map(e).iter().sum::<f64>() / 6.0;
    assert_close(rule(Kind::Success).ln_harm(&[events((5_000, 3, 9))]), mean.ln(), 1e-12);
}

#[test]
fn only_ratios_worse_than_tolerated_are_evidence_of_harm() {
    let failures = Rule::new(Kind::Failure, Some(20_000), Some(30_000)).unwrap();
    let e = |r: f64| (r / 2.0).powi(6) / ((1.0 + r) / 3.0).powi(8);
    let mean = [3.0, 5.0, 10.0].map(e).iter().sum::<f64>() / 3.0;
    assert_close(failures.ln_harm(&[events((5_000, 6, 2))]), mean.ln(), 1e-12);
}

/// optimizely/ssrm's own test: the planned shares, a flat prior, and units in arms 1, 2, 1, 2, 3.
#[test]
fn the_sample_ratio_is_tested_as_published() {
    let ln_factor = sample_ratio::ln_bayes_factor([2, 2, 1], [0.4, 0.4, 0.2], [1.0; 3]);
    assert_close(ln_factor, -6.445_719_8 + 5.274_600_8, 1e-6);
    assert_close(ln_factor.exp(), 0.310_020, 1e-6);
}

#[test]
fn what_is_not_balanced_is_not_judged_and_what_was_proved_stays() {
    let failing = outcomes(5_000, (1_000, 90), (1_000, 10));
    let lost = outcomes(5_000, (1_000, 90), (2_000, 10));
    let failures = rule(Kind::Failure);
    let harm = failures.judge(ALPHA, &[failing], Peaks::default());
    assert_eq!(harm.verdict, Verdict::Harm);
    assert!(harm.ln_harm > harm.ln_harm_min && harm.p_value() < ALPHA && !harm.peaks.is_mismatch());

    let unbalanced = failures.judge(ALPHA, &[lost], Peaks::default());
    assert_eq!(unbalanced.verdict, Verdict::Inconclusive);
    assert!(unbalanced.peaks.is_mismatch() && unbalanced.peaks.ln_harm.abs() < f64::EPSILON);
    // Balance that comes back later does not undo that, as nobody knows why.
    assert_eq!(failures.judge(ALPHA, &[failing], unbalanced.peaks).verdict, Verdict::Inconclusive);
    assert_eq!(failures.judge(ALPHA, &[lost], harm.peaks).verdict, Verdict::Harm);

    let fine = outcomes(5_000, (9_000, 400), (9_000, 400));
    let later = failures.judge(ALPHA, &[fine], harm.peaks);
    assert!(later.ln_safe > later.ln_safe_min && later.ln_harm < 0.0);
    assert_eq!((later.verdict, later.peaks.ln_harm), (Verdict::Harm, harm.peaks.ln_harm));
    assert_eq!(failures.judge(ALPHA, &[fine], Peaks::default()).verdict, Verdict::Safe);
    assert_eq!(failures.judge(ALPHA, &[], Peaks::default()).verdict, Verdict::Inconclusive);
}

#[test]
fn one_arm_alone_says_nothing() {
    for canary_bps in [0, 10_000] {
        let step = outcomes(canary_bps, (1_000, 900), (10, 1));
        for kind in [Kind::Failure, Kind::Success] {
            assert!(rule(kind).ln_harm(&[step]).abs() < f64::EPSILON);
            assert!(rule(kind).ln_safe(&[step]).abs() < f64::EPSILON);
        }
        assert!(ln_mismatch(&[step]).abs() < f64::EPSILON);
        assert_eq!(estimate(&[step]), None);
    }
}

/// gostevehoward/confseq, `test/uniform_boundaries_unittest.cpp`: two-sided normal mixture at a variance of 100.
#[test]
fn the_boundary_is_that_of_confseq() {
    let mixture = interval::mixture(100.0);
    assert_close(mixture, 12.600_56, 1e-5);
    assert_close(interval::boundary(100.0, mixture), 30.352_09, 1e-5);
}

/// growthbook, `packages/stats/tests/frequentist/test_tests.py`: relative difference of 1396 of 3000 and 2422 of 3461, whose
/// deviation is by the delta method.
#[test]
fn the_boundary_is_that_of_growthbook() {
    let (base, more): (f64, f64) = (1_396.0 / 3_000.0, 2_422.0 / 3_461.0);
    let variance = more * (1.0 - more) / 3_461.0 / base.powi(2)
        + base * (1.0 - base) / 3_000.0 * more.powi(2) / base.powi(4);
    let units: f64 = 3_000.0 + 3_461.0;
    let half = (variance * units).sqrt() * interval::boundary(units, interval::mixture(5_000.0)) / units;
    assert_close(more / base - 1.0, 0.503_86, 1e-5);
    assert_close(more / base - 1.0 - half, 0.400_98, 1e-5);
    assert_close(more / base - 1.0 + half, 0.606_75, 1e-5);
}

#[test]
fn rates_are_compared_within_steps() {
    // Twice as many fail in the second step, in both arms.
    let counts = [outcomes(1_000, (1_000, 10), (9_000, 90)), outcomes(5_000, (5_000, 100), (5_000, 100))];
    let all = estimate(&counts).unwrap();
    assert_close(all.canary, 0.015, 1e-12);
    assert_close(all.control, 0.015, 1e-12);
    assert!(all.difference.low < 0.0 && all.difference.high > 0.0);
    let ratio = all.ratio.unwrap();
    assert_close(ratio.estimate, 1.0, 1e-9);
    assert!(ratio.low < 1.0 && ratio.high > 1.0);

    let worse = estimate(&[outcomes(5_000, (5_000, 400), (5_000, 200))]).unwrap();
    assert_close(worse.difference.estimate, 0.04, 1e-12);
    assert!(worse.difference.low > 0.0);
    let ratio = worse.ratio.unwrap();
    assert_close(ratio.estimate, 2.0, 1e-9);
    assert!(ratio.low > 1.4 && ratio.high < 2.8, "{ratio:?}");
}

#[test]
fn few_events_are_told_with_wide_intervals() {
    let none = estimate(&[outcomes(1_000, (10, 0), (90, 0))]).unwrap();
    assert_eq!(none.ratio, None);
    assert!(none.difference.low < -0.1 && none.difference.high > 0.1, "{none:?}");
    let one_sided = estimate(&[outcomes(1_000, (10, 3), (90, 0))]).unwrap().ratio.unwrap();
    assert!(one_sided.estimate.is_infinite() && one_sided.high.is_infinite());
    assert!(one_sided.low > 0.5 && one_sided.low < 30.0, "{one_sided:?}");
    let other = estimate(&[outcomes(5_000, (10, 0), (10, 3))]).unwrap().ratio.unwrap();
    assert!(other.low.abs() < f64::EPSILON && other.estimate.abs() < f64::EPSILON);
    assert!(other.high > 1.0 && other.high.is_finite(), "{other:?}");
    assert_eq!(estimate(&[outcomes(5_000, (10, 0), (0, 0))]), None);
}

#[test]
fn guards_share_the_chance_of_error_by_weight() {
    let guard = |name: &str, weight| Guard {
        name: name.parse().unwrap(),
        rule: rule(Kind::Failure),
        mode: Mode::Rollback,
        weight,
    };
    let alphas = |guards: Vec<Guard>| -> Vec<f64> {
        Guards::new(guards).unwrap().with_alpha().map(|(_, alpha)| alpha).collect()
    };
    assert_eq!(alphas(vec![guard("payment", 1)]), [0.01]);
    for (is, should) in alphas(vec![guard("a", 1), guard("b", 3)]).into_iter().zip([0.002_5, 0.007_5]) {
        assert_close(is, should, 1e-15);
    }
    let refused = |guards| Guards::new(guards).unwrap_err();
    assert_eq!(refused(vec![guard("a", 1), guard("a", 2)]), BadGuards::Twice("a".parse().unwrap()));
    assert_eq!(refused(vec![guard("a", 0)]), BadGuards::Weightless("a".parse().unwrap()));
    let many = (0..17).map(|n| guard(&format!("g{n}"), 1)).collect();
    assert_eq!(refused(many), BadGuards::TooMany);
}

#[test]
fn rules_have_their_bounds_and_names_their_form() {
    for (kind, tolerated, unacceptable, is_rule) in [
        (Kind::Failure, 10_000, 10_001, true),
        (Kind::Failure, 99_999, 100_000, true),
        (Kind::Failure, 9_999, 12_500, false),
        (Kind::Failure, 12_500, 12_500, false),
        (Kind::Failure, 12_500, 100_001, false),
        (Kind::Success, 10_000, 9_999, true),
        (Kind::Success, 2_001, 2_000, true),
        (Kind::Success, 10_001, 8_000, false),
        (Kind::Success, 8_000, 8_000, false),
        (Kind::Success, 8_000, 1_999, false),
    ] {
        let rule = Rule::new(kind, Some(tolerated), Some(unacceptable));
        assert_eq!(rule.is_ok(), is_rule, "{kind:?} {tolerated} {unacceptable}");
        if let Ok(rule) = rule {
            // Something is left to try.
            assert!(rule.ln_harm(&[events((5_000, 9, 3))]).is_finite());
        }
    }
    let longest = format!("a{}", "b".repeat(62));
    for name in ["checkout", "scan-to_ship2", &longest] {
        assert_eq!(name.parse::<Name>().unwrap().as_str(), name);
    }
    for name in ["", "2nd", "-a", "_a", "Checkout", "a b", "\u{e9}t\u{e9}", &format!("{longest}b")] {
        assert_eq!(name.parse::<Name>(), Err(BadName), "{name}");
    }
}

fn any_step() -> impl Strategy<Value = StepCounts> {
    let count = || prop_oneof![0_u64..200, 0..=1_u64 << 53];
    (0..=10_000_i32, [count(), count(), count(), count()]).prop_map(|(canary_bps, [a, b, c, d])| {
        outcomes(canary_bps, (a.max(b), a.min(b)), (c.max(d), c.min(d)))
    })
}

fn small_step() -> impl Strategy<Value = StepCounts> {
    (0..=10_000_i32, 0_u64..300, 0_u64..300).prop_map(events)
}

proptest! {
    #[test]
    fn nothing_is_ever_nan(counts in prop::collection::vec(any_step(), 0..8)) {
        for kind in [Kind::Failure, Kind::Success] {
            let judgement = rule(kind).judge(ALPHA, &counts, Peaks::default());
            prop_assert!(judgement.ln_harm.is_finite() && judgement.ln_safe.is_finite());
            prop_assert!(judgement.ln_mismatch.is_finite() && (0.0..=1.0).contains(&judgement.p_value()));
        }
        if let Some(Estimate { canary, control, difference, ratio }) = estimate(&counts) {
            prop_assert!((0.0..=1.0).contains(&canary) && (0.0..=1.0).contains(&control));
            prop_assert!(difference.low <= difference.estimate && difference.estimate <= difference.high);
            if let Some(ratio) = ratio {
                prop_assert!(0.0 <= ratio.low && ratio.low <= ratio.estimate && ratio.estimate <= ratio.high, "{ratio:?}");
            }
        }
    }

    /// Units of steps with one share are those of one step, in whatever order they came.
    #[test]
    fn order_does_not_matter(
        canary_bps in 1..10_000_i32,
        parts in prop::collection::vec((0_u64..50, 0_u64..50), 1..6),
        more in prop::collection::vec(small_step(), 0..4),
    ) {
        let sum = |of: fn(&(u64, u64)) -> u64| parts.iter().map(of).sum();
        let whole: Vec<_> = std::iter::once(events((canary_bps, sum(|part| part.0), sum(|part| part.1))))
            .chain(more.clone())
            .collect();
        let split: Vec<_> = more
            .into_iter()
            .chain(parts.iter().rev().map(|(canary, control)| events((canary_bps, *canary, *control))))
            .collect();
        for kind in [Kind::Failure, Kind::Success] {
            prop_assert!((rule(kind).ln_harm(&whole) - rule(kind).ln_harm(&split)).abs() < 1e-9);
            prop_assert!((rule(kind).ln_safe(&whole) - rule(kind).ln_safe(&split)).abs() < 1e-9);
        }
    }

    /// One failure more in the canary is more harm and less safe, one more in control the reverse; so, too, one success less.
    #[test]
    fn evidence_grows_with_what_is_worse(canary_bps in 1..10_000_i32, canary in 0_u64..300, control in 0_u64..300) {
        let at = |canary, control| [events((canary_bps, canary, control))];
        let (base, more, other) = (at(canary, control), at(canary + 1, control), at(canary, control + 1));
        let (failure, success) = (rule(Kind::Failure), rule(Kind::Success));
        prop_assert!(failure.ln_harm(&other) < failure.ln_harm(&base) && failure.ln_harm(&base) < failure.ln_harm(&more));
        prop_assert!(failure.ln_safe(&more) < failure.ln_safe(&base));
        prop_assert!(success.ln_harm(&more) < success.ln_harm(&base) && success.ln_harm(&base) < success.ln_harm(&other));
        prop_assert!(success.ln_safe(&base) < success.ln_safe(&more));
    }

    /// Fewer successes of the canary are more of control: SAFE of one kind is SAFE of the other, the arms exchanged.
    #[test]
    fn safe_is_the_same_for_both_kinds_with_the_arms_exchanged(counts in prop::collection::vec(small_step(), 0..5)) {
        let exchanged: Vec<_> = counts
            .iter()
            .map(|step| StepCounts { canary_bps: 10_000 - step.canary_bps, canary: step.control, control: step.canary })
            .collect();
        let (failure, success) = (rule(Kind::Failure), rule(Kind::Success));
        prop_assert!((failure.ln_safe(&counts) - success.ln_safe(&exchanged)).abs() < 1e-9);
    }

    #[test]
    fn a_verdict_of_harm_is_never_taken_back(looks in prop::collection::vec(any_step(), 1..10)) {
        let (mut peaks, mut was_harm) = (Peaks::default(), false);
        for look in looks {
            let judgement = rule(Kind::Failure).judge(ALPHA, &[look], peaks);
            prop_assert!(!was_harm || judgement.verdict == Verdict::Harm);
            prop_assert!(judgement.peaks.ln_harm >= peaks.ln_harm && judgement.peaks.ln_mismatch >= peaks.ln_mismatch);
            (peaks, was_harm) = (judgement.peaks, judgement.verdict == Verdict::Harm);
        }
    }

    /// Balanced units are in balance, and one arm without any is not.
    #[test]
    fn the_sample_ratio_is_off_when_an_arm_is_missing(canary_bps in 500..9_500_i32, n in 1_u64..1_000) {
        let share = u64::try_from(canary_bps).unwrap();
        let balanced = units(canary_bps, share * n, (10_000 - share) * n);
        prop_assert!(ln_mismatch(&[balanced]) < 0.0);
        prop_assert!(ln_mismatch(&[units(canary_bps, 0, 10_000 * n)]) > 100.0_f64.ln());
    }
}
