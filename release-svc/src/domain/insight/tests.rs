use proptest::prelude::*;
use serde_json::{Value, json};
use shared::id::{ReleaseId, WindowId, WindowOverrideId};
use shared::time::at;

use super::*;
use crate::domain::window::{Action, Denied, Past, Span, Target, Told};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// The event of this kind, so many seconds after the period began.
fn event(kind: &str, seconds: i64, data: &Value) -> (Time, Fact) {
    Fact::read(kind, at(seconds), data.clone()).unwrap().unwrap()
}

fn submitted(release: &str, seconds: i64, change: &Value) -> (Time, Fact) {
    event("release.submitted", seconds, &json!({ "release_id": release, "change": change }))
}

fn approved(release: &str, seconds: i64) -> (Time, Fact) {
    event("release.approved", seconds, &json!({ "release_id": release, "component": "storefront" }))
}

/// An event of the rollout of a release in production, whose version it is named by.
fn rollout(
    what: &str,
    release: &str,
    previous: Option<&str>,
    exposure_bps: i32,
    seconds: i64,
) -> (Time, Fact) {
    let data = json!({
        "rollout_id": format!("of-{release}"), "component": "storefront", "environment": "prod",
        "release_id": release, "version": release, "previous_release_id": previous, "exposure_bps": exposure_bps,
    });
    event(&format!("rollout.{what}"), seconds, &data)
}

/// A rollout in one step, and when.
fn shipped(release: &str, previous: Option<&str>, seconds: i64) -> Vec<(Time, Fact)> {
    vec![
        rollout("started", release, previous, 10_000, seconds),
        rollout("succeeded", release, previous, 10_000, seconds),
    ]
}

fn past(version: &str, seconds: i64) -> PastDeployment {
    PastDeployment {
        component: "storefront".to_owned(),
        environment: "prod".to_owned(),
        version: version.to_owned(),
        deployed_at: at(seconds),
        commit_times: vec![],
        author_count: 1,
        lines_added: 0,
        lines_deleted: 0,
        files_changed: 0,
        is_rollback: false,
        failed_at: None,
        recovered_at: None,
        is_unplanned: false,
        incident: None,
    }
}

fn imported(past: PastDeployment) -> (Time, Fact) {
    (past.deployed_at, Fact::Imported(past))
}

fn history(facts: Vec<(Time, Fact)>) -> History {
    History::of(facts, &BTreeSet::from(["prod".parse().unwrap()]))
}

fn days(count: i64) -> Period {
    Period { start: at(0), end: at(count * DAY) }
}

/// A window for each such beginning.
fn window_from(seconds: i64) -> String {
    WindowId::new(at(DAY + seconds), [1; 10]).to_string()
}

/// A window that was made long ago and denies everything between these seconds.
fn denying(from: i64, until: i64) -> (Time, Told) {
    let data = json!({
        "window_id": window_from(from), "name": "freeze", "effect": "DENY",
        "actions": ["DEPLOY", "EXPOSE"], "tiers": [], "components": [], "environments": [], "regions": [],
        "time_zone": "UTC", "starts_at": at(from), "ends_at": at(until), "reason": "why", "is_peak": false,
    });
    (at(-DAY), Told::read("window.created", &data).unwrap().unwrap())
}

/// What these made of a period.
fn denied(told: Vec<(Time, Told)>) -> Denied {
    let within = Span { start: at(0), end: at(DAY) };
    Past::of(told, vec![]).denied(&[Action::Expose], &[Target::default()], within)
}

fn spread(median: i64, p90: i64, count: usize) -> Spread {
    Spread { median: TimeDelta::seconds(median), p90: TimeDelta::seconds(p90), count }
}

fn ratio(numerator: usize, denominator: usize) -> Ratio {
    Ratio { numerator, denominator }
}

#[test]
fn what_was_taken_back_after_it_succeeded_has_failed_and_recovers_with_the_rollback() {
    let taken_back = |what: &str, seconds| {
        let data = json!({
            "rollout_id": "back", "rollback_of": "of-1.1", "environment": "prod", "release_id": "1.1",
            "version": "1.1", "previous_release_id": "1.0", "exposure_bps": 0,
        });
        event(&format!("rollout.{what}"), seconds, &data)
    };
    let mut facts = shipped("1.0", None, HOUR);
    facts.extend(shipped("1.1", Some("1.0"), 2 * HOUR));
    facts.push(taken_back("rollback_started", 3 * HOUR));
    facts.push(taken_back("rolled_back", 4 * HOUR));
    let history = history(facts);
    let failures: Vec<_> = history.deployments.iter().map(|deployment| deployment.failure).collect();
    let failure = Failure { detected_at: at(3 * HOUR), recovered_at: Some(at(4 * HOUR)) };
    assert_eq!(failures, [None, Some(failure)]);
    assert_eq!((history.rollbacks, history.caught), (vec![at(3 * HOUR)], vec![]));
}

#[test]
fn nothing_to_measure_is_none_and_never_0() {
    let nothing = Metrics {
        change_lead_time: None,
        deployments: 0,
        per_day: None,
        pace: None,
        failed_deployment_recovery_time: None,
        change_fail_rate: None,
        deployment_rework_rate: None,
        caught_in_canary: 0,
        rollbacks: 0,
        approval_wait_time: None,
        freeze_backlog: None,
    };
    assert_eq!(history(vec![]).metrics(&days(30), &Denied::default()), nothing);
    // As is what happened elsewhere, outside the period or to nobody's deployment.
    let elsewhere = PastDeployment { environment: "staging".to_owned(), ..past("1.0", HOUR) };
    let facts = vec![imported(elsewhere), imported(past("1.1", -1)), imported(past("1.2", 30 * DAY))];
    assert_eq!(history(facts).metrics(&days(30), &Denied::default()), nothing);
}

#[test]
fn lead_time_is_of_each_commit_to_the_first_success_with_it() {
    let change = json!({ "commit_times": ["1970-01-01T00:00:00Z", "1970-01-01T02:00:00+01:00", "1970-01-01T09:00:00Z"] });
    let mut facts = vec![submitted("a", 2 * HOUR, &change)];
    facts.extend(shipped("a", None, 8 * HOUR));
    // Another environment, later: it is no lead time, but a deployment if it counts.
    let mut second = shipped("a", None, 20 * HOUR);
    for (_, fact) in &mut second {
        if let Fact::Rollout { rollout, .. } = fact {
            rollout.environment = "prod-us".to_owned();
        }
    }
    facts.extend(second);
    let both = BTreeSet::from(["prod".parse().unwrap(), "prod-us".parse().unwrap()]);
    let metrics = History::of(facts, &both).metrics(&days(1), &Denied::default());
    // 8 h, 7 h, and a commit that the clock of its author puts after the deployment.
    assert_eq!(metrics.change_lead_time, Some(spread(7 * HOUR, 8 * HOUR, 3)));
    assert_eq!((metrics.deployments, metrics.per_day), (2, Some(2.0)));
    assert_eq!(metrics.change_fail_rate, Some(ratio(0, 2)));
}

#[test]
fn a_rollback_is_a_failure_only_after_everyone_was_exposed() {
    for (steps, deployments, caught) in [(&[1000][..], 1, 1), (&[1000, 10_000], 2, 0)] {
        let mut facts = shipped("a", None, 0);
        facts.push(rollout("started", "b", Some("a"), steps[0], HOUR));
        for bps in &steps[1..] {
            facts.push(rollout("advanced", "b", Some("a"), *bps, 2 * HOUR));
        }
        facts.push(rollout("rollback_started", "b", Some("a"), 0, 3 * HOUR));
        facts.push(rollout("rolled_back", "b", Some("a"), 0, 4 * HOUR));
        let metrics = history(facts).metrics(&days(1), &Denied::default());
        assert_eq!((metrics.deployments, metrics.caught_in_canary), (deployments, caught), "{steps:?}");
        assert_eq!(metrics.rollbacks, 1);
        assert_eq!(metrics.change_fail_rate, Some(ratio(1 - caught, deployments)));
        let recovery = (caught == 0).then(|| spread(HOUR, HOUR, 1));
        assert_eq!(metrics.failed_deployment_recovery_time, recovery);
    }
}

#[test]
fn what_was_deployed_before_and_comes_back_says_that_what_it_replaces_failed() {
    let mut facts = shipped("a", None, 0);
    facts.extend(shipped("b", Some("a"), HOUR));
    facts.push(rollout("started", "a", Some("b"), 1000, 5 * HOUR));
    facts.push(rollout("succeeded", "a", Some("b"), 10_000, 7 * HOUR));
    let metrics = history(facts).metrics(&days(1), &Denied::default());
    assert_eq!((metrics.deployments, metrics.rollbacks, metrics.caught_in_canary), (2, 1, 0));
    assert_eq!(metrics.change_fail_rate, Some(ratio(1, 2)));
    assert_eq!(metrics.failed_deployment_recovery_time, Some(spread(2 * HOUR, 2 * HOUR, 1)));
}

#[test]
fn a_return_that_is_taken_back_mends_nothing() {
    let mut facts = shipped("a", None, 0);
    facts.extend(shipped("b", Some("a"), HOUR));
    facts.push(rollout("started", "a", Some("b"), 1000, 5 * HOUR));
    facts.push(rollout("rollback_started", "a", Some("b"), 0, 6 * HOUR));
    facts.push(rollout("rolled_back", "a", Some("b"), 0, 7 * HOUR));
    let still_down = history(facts.clone()).metrics(&days(1), &Denied::default());
    assert_eq!(still_down.change_fail_rate, Some(ratio(1, 2)));
    assert_eq!(still_down.failed_deployment_recovery_time, None);
    // Nor does another one that fails itself.
    facts.push(rollout("started", "c", Some("b"), 10_000, 8 * HOUR));
    facts.push(rollout("rollback_started", "c", Some("b"), 0, 9 * HOUR));
    facts.push(rollout("rolled_back", "c", Some("b"), 0, 10 * HOUR));
    facts.extend(shipped("d", Some("b"), 12 * HOUR));
    let mended = history(facts).metrics(&days(1), &Denied::default());
    assert_eq!(mended.change_fail_rate, Some(ratio(2, 4)));
    assert_eq!(mended.failed_deployment_recovery_time, Some(spread(4 * HOUR, 7 * HOUR, 2)));
}

#[test]
fn what_an_incident_made_necessary_is_rework_and_what_it_replaces_has_failed() {
    for (change, submitted_after, rework, failed) in [
        (json!({ "is_unplanned": true, "incident": "INC-1" }), 2 * HOUR, 1, 1),
        (json!({ "is_unplanned": true, "incident": null }), 2 * HOUR, 0, 0),
        (json!({ "incident": "INC-1" }), 2 * HOUR, 0, 0),
        // The incident was there before the deployment.
        (json!({ "is_unplanned": true, "incident": "INC-1" }), -HOUR, 1, 0),
    ] {
        let mut facts = shipped("a", None, 0);
        facts.push(submitted("b", submitted_after, &change));
        facts.extend(shipped("b", Some("a"), 5 * HOUR));
        let metrics = history(facts).metrics(&days(1), &Denied::default());
        assert_eq!(metrics.deployment_rework_rate, Some(ratio(rework, 2)), "{change}");
        assert_eq!(metrics.change_fail_rate, Some(ratio(failed, 2)), "{change}");
        let recovery = (failed == 1).then(|| spread(3 * HOUR, 3 * HOUR, 1));
        assert_eq!(metrics.failed_deployment_recovery_time, recovery, "{change}");
    }
}

#[test]
fn a_failure_belongs_to_the_period_of_its_deployment() {
    let mut facts = shipped("a", None, 0);
    facts.extend(shipped("b", Some("a"), 20 * HOUR));
    facts.push(rollout("started", "a", Some("b"), 10_000, 30 * HOUR));
    facts.push(rollout("succeeded", "a", Some("b"), 10_000, 31 * HOUR));
    let history = history(facts);
    let (first, second) = (days(1), Period { start: at(DAY), end: at(2 * DAY) });
    assert_eq!(history.metrics(&first, &Denied::default()).change_fail_rate, Some(ratio(1, 2)));
    let next = history.metrics(&second, &Denied::default());
    assert_eq!((next.change_fail_rate, next.rollbacks), (None, 1));
}

#[test]
fn imported_records_speak_for_themselves() {
    let failed = PastDeployment {
        failed_at: Some(at(2 * HOUR)),
        recovered_at: Some(at(6 * HOUR)),
        commit_times: vec![at(-2 * HOUR)],
        ..past("1.0", 0)
    };
    let fix = PastDeployment {
        is_unplanned: true,
        incident: Some("INC-1".to_owned()),
        commit_times: vec![at(4 * HOUR)],
        ..past("1.1", 6 * HOUR)
    };
    let back = PastDeployment { is_rollback: true, ..past("0.9", 5 * HOUR) };
    let unmended = PastDeployment { failed_at: Some(at(9 * HOUR)), ..past("1.2", 8 * HOUR) };
    let metrics =
        history([unmended, back, fix, failed].map(imported).into()).metrics(&days(1), &Denied::default());
    assert_eq!(metrics.change_lead_time, Some(spread(2 * HOUR, 2 * HOUR, 2)));
    assert_eq!((metrics.deployments, metrics.rollbacks), (3, 1));
    assert_eq!(metrics.change_fail_rate, Some(ratio(2, 3)));
    assert_eq!(metrics.deployment_rework_rate, Some(ratio(1, 3)));
    assert_eq!(metrics.failed_deployment_recovery_time, Some(spread(4 * HOUR, 4 * HOUR, 1)));
}

#[test]
fn approval_is_waited_for_from_the_last_submission_on() {
    let facts = vec![
        submitted("a", 0, &json!({})),
        submitted("a", HOUR, &json!({})),
        approved("a", 3 * HOUR),
        submitted("b", HOUR, &json!({})),
        approved("b", 5 * HOUR),
        submitted("c", HOUR, &json!({})),
        approved("c", DAY),
        approved("unknown", HOUR),
    ];
    let metrics = history(facts).metrics(&days(1), &Denied::default());
    assert_eq!(metrics.approval_wait_time, Some(spread(3 * HOUR, 4 * HOUR, 2)));
}

#[test]
fn the_backlog_of_a_freeze_is_what_waited_during_it() {
    let facts = vec![
        approved("before", 0),
        rollout("started", "before", None, 10_000, 2 * HOUR),
        approved("during", 3 * HOUR),
        rollout("started", "during", None, 10_000, 9 * HOUR),
        approved("cancelled", HOUR),
        event("release.cancelled", 3 * HOUR, &json!({ "release_id": "cancelled" })),
        approved("waiting", HOUR),
        approved("after", 6 * HOUR),
    ];
    let history = history(facts);
    let held = |frozen: &[(i64, i64)]| {
        let freezes = frozen.iter().map(|(from, until)| denying(from * HOUR, until * HOUR)).collect();
        history.metrics(&days(1), &denied(freezes)).freeze_backlog
    };
    for (frozen, backlog) in [
        (&[][..], None),
        (&[(24, 30)], None),
        (&[(2, 6)], Some(3)),
        (&[(0, 1), (5, 6)], Some(3)),
        (&[(-5, 0), (3, 4)], Some(2)),
        (&[(20, 24)], Some(2)),
    ] {
        assert_eq!(held(frozen), backlog, "{frozen:?}");
    }
}

#[test]
fn a_release_is_not_held_while_the_freeze_is_lifted_for_it() {
    let release = ReleaseId::new(at(1), [9; 10]).to_string();
    let facts = vec![approved(&release, 2 * HOUR), approved("rel_other", 2 * HOUR)];
    let history = history(facts);
    let lifted_until = |hours: i64| {
        let data = json!({ "window_id": window_from(HOUR), "release_id": release,
            "window_override_id": WindowOverrideId::new(at(1), [1; 10]).to_string(), "ends_at": at(hours * HOUR) });
        (at(0), Told::read("window.overridden", &data).unwrap().unwrap())
    };
    for (lifted, backlog) in [(6, 1), (5, 2), (2, 2)] {
        let denied = denied(vec![denying(HOUR, 6 * HOUR), lifted_until(lifted)]);
        assert_eq!(history.metrics(&days(1), &denied).freeze_backlog, Some(backlog), "{lifted}");
    }
}

#[test]
fn pace_is_told_by_the_median_week_or_month() {
    let pace = |days_of_deployments: &[i64], length: i64| {
        let facts = days_of_deployments
            .iter()
            .enumerate()
            .map(|(i, day)| imported(past(&i.to_string(), day * DAY)));
        history(facts.collect()).metrics(&days(length), &Denied::default()).pace
    };
    assert_eq!(pace(&[0, 1, 2, 7, 8, 9], 14), Some(Pace::Daily));
    // Three on one day are one day.
    assert_eq!(pace(&[0, 0, 0, 7, 7, 7], 14), Some(Pace::Weekly));
    assert_eq!(pace(&[0, 14], 21), Some(Pace::Weekly));
    assert_eq!(pace(&[0, 40], 60), Some(Pace::Monthly));
    assert_eq!(pace(&[0], 90), Some(Pace::Rarely));
    assert_eq!(pace(&[0], 21), None);
    assert_eq!(pace(&[0], 6), None);
    assert_eq!(pace(&[], 90), None);
}

#[test]
fn spreads_are_those_computed_by_hand() {
    for (seconds, median, p90) in [
        (&[5][..], 5, 5),
        (&[4, 2], 3, 4),
        (&[9, 1, 5], 5, 9),
        (&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 5, 9),
        (&[10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 11], 6, 10),
    ] {
        let commit_times = seconds.iter().map(|seconds| at(DAY / 2 - 2 * seconds)).collect();
        let facts = vec![imported(PastDeployment { commit_times, ..past("1.0", DAY / 2) })];
        let found = history(facts).metrics(&days(1), &Denied::default()).change_lead_time;
        // Twice as long, so that halves are whole; of an even number the median is the mean.
        let doubled_median = if seconds.len() == 10 { 11 } else { 2 * median };
        assert_eq!(found, Some(spread(doubled_median, 2 * p90, seconds.len())), "{seconds:?}");
    }
}

#[test]
fn unknown_kinds_are_skipped_and_broken_data_is_not() {
    assert_eq!(Fact::read("component.created", at(0), json!({})).unwrap(), None);
    for kind in ["release.submitted", "rollout.started", IMPORTED] {
        assert!(Fact::read(kind, at(0), json!({})).is_err(), "{kind}");
    }
}

#[test]
fn what_is_imported_is_read_as_it_was_and_its_time_sorts_as_text() {
    let record =
        PastDeployment { failed_at: Some(at(7)), commit_times: vec![at(1), at(2)], ..past("1.0", 5) };
    let data = serde_json::to_value(&record).unwrap();
    assert_eq!(data["deployed_at"], "1970-01-01T00:00:05.000000Z");
    assert_eq!(Fact::read(IMPORTED, at(99), data).unwrap(), Some((at(5), Fact::Imported(record.clone()))));
    assert_eq!(record.key(), "storefront/prod/1.0");
    let back = PastDeployment { is_rollback: true, ..record };
    assert_eq!(back.key(), "storefront/prod/1.0@1970-01-01T00:00:05.000000Z");
}

proptest! {
    #[test]
    fn figures_do_not_depend_on_the_order_of_records(
        seconds in proptest::collection::vec((0..30 * DAY, 0..3 * DAY, any::<bool>()), 0..40),
        turn in 0_usize..40,
    ) {
        let records = seconds.iter().enumerate().map(|(i, (at_seconds, mend, fails))| PastDeployment {
            commit_times: vec![at(at_seconds - mend)],
            failed_at: fails.then(|| at(at_seconds + mend)),
            recovered_at: fails.then(|| at(at_seconds + 2 * mend)),
            ..past(&i.to_string(), *at_seconds)
        });
        let mut facts: Vec<_> = records.map(imported).collect();
        let (period, straight) = (days(30), history(facts.clone()));
        let len = facts.len();
        facts.rotate_left(if len == 0 { 0 } else { turn % len });
        let turned = history(facts).metrics(&period, &Denied::default());
        prop_assert_eq!(&turned, &straight.metrics(&period, &Denied::default()));
        prop_assert_eq!(turned.change_fail_rate.map(|ratio| ratio.denominator), (len > 0).then_some(len));
    }
}
