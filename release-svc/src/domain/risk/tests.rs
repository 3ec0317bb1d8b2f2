use proptest::prelude::*;
use shared::time::at;

use super::*;

const NOW: i64 = 1_800_000_000;
const DAY: i64 = 86_400;

/// A change that adds nothing to the prior.
const PLAIN: Facts = Facts {
    changed_lines: 0,
    services_touched: 0,
    author_deployments: 10,
    has_schema_migration: false,
    has_config_change: false,
    recent_incidents: 0,
    is_hurried: false,
    suites_required: 5,
    suites_passed: 0,
    is_rehearsed: false,
};

fn impact(tier: Tier, calendar: Calendar, reversibility: Reversibility) -> Impact {
    Impact { tier, calendar, reversibility }
}

fn assessed(prior: Prior, facts: Facts, impact: Impact) -> Assessment {
    let (weights, bands) = (Weights::default(), Bands::default());
    assess(prior, &Features::of(&facts), impact, &weights, bands, &Floors::default())
}

#[test]
fn the_formula_gives_its_check_vectors() {
    use Calendar::{Normal, Peak};
    use Reversibility::{Irreversible, Redeploy, VariantSwitch};
    let unknown = Prior::of(&[], at(NOW));
    let history: Vec<_> = (0..20).map(|i| (at(NOW), i < 4)).collect();
    let shaky = Prior::of(&history, at(NOW));
    assert!((unknown.0 - 0.10).abs() < 1e-12 && (shaky.0 - 0.15).abs() < 1e-12);
    let done = Facts { suites_passed: 5, ..PLAIN };
    let rehearsed = Facts { is_rehearsed: true, ..done };
    let large = Facts { changed_lines: 500, services_touched: 2, author_deployments: 2, ..rehearsed };
    let schema = Facts {
        changed_lines: 1000,
        services_touched: 3,
        author_deployments: 5,
        has_schema_migration: true,
        suites_passed: 4,
        ..PLAIN
    };
    for (prior, facts, impact, score, band) in [
        (unknown, rehearsed, impact(Tier::One, Normal, VariantSwitch), 4, Band::Low),
        (
            unknown,
            Facts { changed_lines: 100, ..done },
            impact(Tier::Two, Normal, Redeploy),
            10,
            Band::Medium,
        ),
        (shaky, large, impact(Tier::One, Normal, Redeploy), 36, Band::High),
        (unknown, schema, impact(Tier::One, Peak, Irreversible), 100, Band::Critical),
    ] {
        let assessment = assessed(prior, facts, impact);
        assert_eq!((assessment.score, assessment.band), (score, band), "{assessment:?}");
    }
}

#[test]
fn bands_begin_at_their_thresholds() {
    let bands = Bands::default();
    for (score, band) in [
        (0, Band::Low),
        (9, Band::Low),
        (10, Band::Medium),
        (29, Band::Medium),
        (30, Band::High),
        (59, Band::High),
        (60, Band::Critical),
        (100, Band::Critical),
    ] {
        assert_eq!(bands.of(score), band, "{score}");
    }
    assert_eq!(Bands::new(10, 30, 60), Ok(bands));
    for (medium, high, critical) in [(31, 30, 60), (10, 61, 60), (10, 30, 101)] {
        assert_eq!(Bands::new(medium, high, critical), Err(BadBands));
    }
}

#[test]
fn floors_raise_a_band_and_never_lower_one() {
    let cheap = impact(Tier::Four, Calendar::Normal, Reversibility::VariantSwitch);
    let dear = impact(Tier::One, Calendar::Peak, Reversibility::Irreversible);
    let personal = Floor::DataScope(DataScope::Personal);
    let risky = Facts { changed_lines: 9999, services_touched: 5, author_deployments: 0, ..PLAIN };
    for (facts, impact, has_irreversible_step, scopes, band, floor) in [
        (PLAIN, cheap, false, vec![], Band::Low, None),
        (PLAIN, cheap, false, vec![DataScope::Personal], Band::Medium, Some(personal)),
        (PLAIN, cheap, true, vec![DataScope::Personal], Band::High, Some(Floor::IrreversibleStep)),
        (risky, dear, true, vec![DataScope::Card], Band::Critical, None),
    ] {
        let floors = Floors { has_irreversible_step, data_scopes: scopes };
        let prior = Prior::of(&[], at(NOW));
        let features = Features::of(&facts);
        let found = assess(prior, &features, impact, &Weights::default(), Bands::default(), &floors);
        assert_eq!((found.band, found.floor), (band, floor), "{found:?}");
    }
}

#[test]
fn a_deployment_counts_half_after_90_days() {
    let failed_once = |days: i64| Prior::of(&[(at(NOW - days * DAY), true)], at(NOW)).0;
    assert!((failed_once(0) - 3.0 / 21.0).abs() < 1e-12);
    assert!((failed_once(90) - 2.5 / 20.5).abs() < 1e-12);
    assert!((failed_once(180) - 2.25 / 20.25).abs() < 1e-12);
    // A clock behind the one that wrote the deployment down.
    assert!((failed_once(-1) - failed_once(0)).abs() < 1e-12);
}

#[test]
fn only_what_is_faster_than_nine_tenths_is_hurried() {
    let hours = |range: std::ops::RangeInclusive<i64>| range.map(TimeDelta::hours).collect::<Vec<_>>();
    assert!(is_hurried(TimeDelta::minutes(59), &hours(1..=10)));
    assert!(!is_hurried(TimeDelta::hours(1), &hours(1..=10)));
    assert!(is_hurried(TimeDelta::hours(1), &hours(1..=11)));
    assert!(!is_hurried(TimeDelta::zero(), &hours(1..=9)), "too few to say");
}

#[test]
fn predictions_are_judged_by_their_squared_error() {
    assert_eq!(brier(&[]), None);
    assert_eq!(brier(&[(1.0, true), (0.0, false)]), Some(0.0));
    assert_eq!(brier(&[(1.0, false), (0.0, true)]), Some(1.0));
    assert_eq!(brier(&[(0.5, true), (0.5, false), (0.0, false), (0.0, false)]), Some(0.125));
}

#[test]
fn no_suites_asked_for_are_no_evidence() {
    let facts = Facts { suites_required: 0, suites_passed: 0, ..PLAIN };
    assert!(Features::of(&facts).0.evidence.abs() < f64::EPSILON);
}

#[test]
fn names_read_back_what_they_write() {
    assert!(Band::ALL.into_iter().all(|band| Band::from_name(band.name()) == Some(band)));
    let kinds = Reversibility::ALL;
    assert!(
        kinds
            .into_iter()
            .all(|kind| Reversibility::from_name(kind.name()) == Some(kind))
    );
    for (tier, name) in
        [(Tier::One, "TIER_1"), (Tier::Two, "TIER_2"), (Tier::Three, "TIER_3"), (Tier::Four, "TIER_4")]
    {
        assert_eq!((tier.name(), Tier::from_name(name)), (name, Some(tier)));
    }
    for (scope, name) in
        [(DataScope::Card, "CARD"), (DataScope::Ledger, "LEDGER"), (DataScope::Personal, "PERSONAL")]
    {
        assert_eq!((scope.name(), DataScope::from_name(name)), (name, Some(scope)));
    }
    assert_eq!(
        (Tier::from_name("TIER_5"), DataScope::from_name("card"), Band::from_name("")),
        (None, None, None)
    );
}

prop_compose! {
    fn facts()(
        (changed_lines, services_touched, author_deployments) in (any::<u32>(), any::<u32>(), any::<u32>()),
        (schema, config, hurried, rehearsed) in any::<(bool, bool, bool, bool)>(),
        (recent_incidents, suites_required, suites_passed) in (0_u32..4, any::<u32>(), any::<u32>()),
        scale in 0_u32..32,
    ) -> Facts {
        // Small numbers as often as large ones.
        let small = |number: u32| number >> scale;
        Facts {
            changed_lines: small(changed_lines),
            services_touched: small(services_touched),
            author_deployments: small(author_deployments),
            has_schema_migration: schema,
            has_config_change: config,
            recent_incidents,
            is_hurried: hurried,
            suites_required: small(suites_required),
            suites_passed: small(suites_passed),
            is_rehearsed: rehearsed,
        }
    }
}

fn impacts() -> impl Strategy<Value = Impact> {
    let tier = prop::sample::select(vec![Tier::One, Tier::Two, Tier::Three, Tier::Four]);
    let calendar = prop::sample::select(vec![Calendar::Normal, Calendar::Peak]);
    (tier, calendar, prop::sample::select(Reversibility::ALL.to_vec()))
        .prop_map(|(tier, calendar, reversibility)| impact(tier, calendar, reversibility))
}

fn histories() -> impl Strategy<Value = Vec<(Time, bool)>> {
    let deployment = (-10_000_i64..2, any::<bool>()).prop_map(|(day, failed)| (at(NOW + day * DAY), failed));
    prop::collection::vec(deployment, 0..300)
}

/// The same change, riskier in one thing.
fn riskier(facts: Facts) -> [Facts; 9] {
    [
        Facts { changed_lines: facts.changed_lines.saturating_add(1000), ..facts },
        Facts { services_touched: facts.services_touched.saturating_add(1), ..facts },
        Facts { author_deployments: facts.author_deployments.saturating_sub(1), ..facts },
        Facts { has_schema_migration: true, ..facts },
        Facts { has_config_change: true, ..facts },
        Facts { recent_incidents: facts.recent_incidents + 1, ..facts },
        Facts { is_hurried: true, ..facts },
        Facts { suites_passed: facts.suites_passed.saturating_sub(1), ..facts },
        Facts { is_rehearsed: false, ..facts },
    ]
}

proptest! {
    #[test]
    fn an_assessment_is_in_range_and_explains_itself(
        history in histories(), facts in facts(), impact in impacts(),
    ) {
        let found = assessed(Prior::of(&history, at(NOW)), facts, impact);
        prop_assert!(found.score <= 100);
        prop_assert!(0.0 < found.likelihood && found.likelihood < 1.0);
        prop_assert!(found.factors.iter().all(|factor| (0.0..=1.0).contains(&factor.value)));
        let log_odds: f64 = found.factors.iter().map(|factor| factor.contribution).sum();
        prop_assert!((log_odds - (found.likelihood / (1.0 - found.likelihood)).ln()).abs() < 1e-9);
        let product: f64 = found.multipliers.iter().map(|multiplier| multiplier.value).product();
        prop_assert!((product - found.impact).abs() < 1e-12);
    }

    #[test]
    fn what_is_riskier_scores_no_lower(history in histories(), facts in facts(), impact in impacts()) {
        let prior = Prior::of(&history, at(NOW));
        let before = assessed(prior, facts, impact);
        for worse in riskier(facts) {
            let after = assessed(prior, worse, impact);
            prop_assert!(after.likelihood >= before.likelihood, "{worse:?}");
            prop_assert!((after.score, after.band) >= (before.score, before.band), "{worse:?}");
        }
        let mut failed_more = history;
        failed_more.push((at(NOW), true));
        prop_assert!(assessed(Prior::of(&failed_more, at(NOW)), facts, impact).likelihood >= before.likelihood);
    }

    #[test]
    fn a_higher_score_is_in_no_lower_band(
        mut thresholds in prop::array::uniform3(0_u8..=100), low in 0_u8..=100, high in 0_u8..=100,
    ) {
        thresholds.sort_unstable();
        let bands = Bands::new(thresholds[0], thresholds[1], thresholds[2]).unwrap();
        prop_assert!(bands.of(low.min(high)) <= bands.of(low.max(high)));
    }
}
