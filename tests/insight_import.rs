//! `ImportHistory`: the past of real projects gives the figures that can be read off their files, once however often and by
//! however many it is imported, and bad records are named.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use chrono::{DateTime, TimeDelta, TimeZone as _, Utc};
use serde_json::Value;
use shared::issuer::Grant;
use shared::pb::release as pb;
use shared::time::{Time, to_proto};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::shop::{
    create_catalog, create_component, create_release, draft, request_id, ship, submit,
};
use crate::harness::{Answer as _, Caller, ENVIRONMENT, Stack, person, workload};
use crate::insight::{asked, metrics, ratio};

fn lines(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/releases").join(name);
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn time(value: &Value) -> Time {
    DateTime::parse_from_rfc3339(value.as_str().unwrap()).unwrap().to_utc()
}

fn commits(line: &Value) -> Vec<Time> {
    line["commit_times"].as_array().unwrap().iter().map(time).collect()
}

fn number(line: &Value, name: &str) -> i32 {
    i32::try_from(line[name].as_i64().unwrap()).unwrap()
}

/// Greater in the order of versions; the files have none but numbers.
fn version(line: &Value, name: &str) -> Vec<u64> {
    line[name]
        .as_str()
        .unwrap()
        .split('.')
        .map(|part| part.parse().unwrap())
        .collect()
}

/// When the fix of a version was begun and when it was out, if a next one of its line came within three days, was begun after
/// it and was at least half made of fixes and reverts.
fn mended(line: &Value, all: &[Value]) -> Option<(Time, Time)> {
    let out = time(&line["released_at"]);
    let of_line = all.iter().filter(|next| {
        next["previous"] == line["version"] && version(next, "version") > version(line, "version")
    });
    let fixes = of_line.filter_map(|next| {
        let at = time(&next["released_at"]);
        let begun = commits(next).into_iter().filter(|commit| *commit > out).min()?;
        let mending = number(next, "fix_commits") + number(next, "revert_commits");
        let is_fix = out < at && at <= out + TimeDelta::hours(72) && mending * 2 >= number(next, "commits");
        is_fix.then_some((begun, at))
    });
    fixes.min_by_key(|(_, at)| *at)
}

fn record(line: &Value, all: &[Value]) -> pb::PastDeployment {
    let before = all.iter().find(|other| other["version"] == line["previous"]);
    let mends =
        before.filter(|before| mended(before, all).is_some_and(|(_, at)| at == time(&line["released_at"])));
    let mended = mended(line, all);
    pb::PastDeployment {
        version: line["version"].as_str().unwrap().to_owned(),
        deploy_time: Some(to_proto(time(&line["released_at"]))),
        commit_times: commits(line).into_iter().map(to_proto).collect(),
        author_count: number(line, "authors"),
        lines_added: number(line, "insertions"),
        lines_deleted: number(line, "deletions"),
        files_changed: number(line, "files_changed"),
        failure_time: mended.map(|(begun, _)| to_proto(begun)),
        recovery_time: mended.map(|(_, at)| to_proto(at)),
        is_unplanned: mends.is_some(),
        incident: mends.map_or_else(String::new, |other| format!("mends {}", other["version"])),
        ..Default::default()
    }
}

fn import(records: &[pb::PastDeployment]) -> pb::ImportHistoryRequest {
    pb::ImportHistoryRequest {
        component: "storefront".to_owned(),
        environment: ENVIRONMENT.to_owned(),
        records: records.to_vec(),
        ..Default::default()
    }
}

/// How many were new and how many were known.
async fn imported(caller: &Caller, request: pb::ImportHistoryRequest) -> (i64, i64) {
    let answer = caller.insight().import_history(request).await.answer();
    (answer.imported_count, answer.known_count)
}

async fn start() -> (Stack, Caller) {
    let stack = Stack::releases();
    let caller = stack.caller(&person("ada"));
    create_catalog(&caller).await;
    (stack, caller)
}

/// The durations' spread in microseconds, by counting: those of which so many are not greater.
fn spread(durations: &[TimeDelta]) -> (i64, i64, i64) {
    let mut count_of = BTreeMap::<i64, usize>::new();
    for duration in durations {
        *count_of.entry(duration.num_microseconds().unwrap()).or_default() += 1;
    }
    let least_of = |needed: usize| {
        let mut seen = 0;
        *count_of
            .iter()
            .find(|(_, count)| {
                seen += **count;
                seen >= needed
            })
            .unwrap()
            .0
    };
    let n = durations.len();
    let median = i64::midpoint(least_of(n.div_ceil(2)), least_of(n / 2 + 1));
    (median, least_of(n - n / 10), i64::try_from(n).unwrap())
}

fn shown(spread: &pb::Spread) -> (i64, i64, i64) {
    let micros =
        |duration: prost_types::Duration| duration.seconds * 1_000_000 + i64::from(duration.nanos) / 1000;
    (micros(spread.median.unwrap()), micros(spread.p90.unwrap()), spread.count)
}

/// Seven days each, from the first instant on; the days that have a release, of the median week.
fn median_days(at: &[Time], start: Time, end: Time) -> usize {
    let weeks = usize::try_from((end - start).num_weeks()).unwrap();
    let mut days = vec![BTreeSet::new(); weeks];
    for at in at {
        if let Some(week) = days.get_mut(usize::try_from((*at - start).num_weeks()).unwrap()) {
            week.insert(at.format("%F").to_string());
        }
    }
    let mut counts: Vec<_> = days.iter().map(BTreeSet::len).collect();
    *counts.select_nth_unstable(weeks / 2).1
}

#[tokio::test]
async fn real_histories_give_the_figures_that_their_files_do() {
    for (name, failures) in [("linkerd2-proxy.jsonl", 2), ("unleash.jsonl", 0)] {
        let (_stack, caller) = start().await;
        let all = lines(name);
        let mut records: Vec<_> = all.iter().map(|line| record(line, &all)).collect();
        // The last ones first.
        records.reverse();
        for batch in records.chunks(70) {
            assert_eq!(imported(&caller, import(batch)).await, (i64::try_from(batch.len()).unwrap(), 0));
        }
        let (start, end) = (
            Utc.with_ymd_and_hms(2023, 1, 1, 0, 0, 0).unwrap(),
            Utc.with_ymd_and_hms(2026, 12, 28, 0, 0, 0).unwrap(),
        );
        let found = metrics(&caller, Some(start), Some(end)).await;

        let at: Vec<_> = all.iter().map(|line| time(&line["released_at"])).collect();
        let lead: Vec<_> = all
            .iter()
            .flat_map(|line| commits(line).into_iter().map(|commit| time(&line["released_at"]) - commit))
            .collect();
        assert_eq!(shown(&found.change_lead_time.unwrap()), spread(&lead), "{name}");
        let frequency = found.deployment_frequency.unwrap();
        assert_eq!(frequency.deployments, 195);
        let days = f64::from(u32::try_from((end - start).num_days()).unwrap());
        assert!((frequency.per_day.unwrap() - 195.0 / days).abs() < 1e-9, "{frequency:?}");
        let pace = match median_days(&at, start, end) {
            0 => pb::DeploymentPace::Monthly,
            1 | 2 => pb::DeploymentPace::Weekly,
            _ => pb::DeploymentPace::Daily,
        };
        assert_eq!(frequency.pace(), pace, "{name}");
        let mended: Vec<_> = all.iter().filter_map(|line| mended(line, &all)).collect();
        let count = i64::try_from(mended.len()).unwrap();
        assert!(failures == 0 || failures == count, "{name} {count}");
        assert_eq!(found.change_fail_rate, Some(ratio(count, 195)), "{name}");
        let recovery: Vec<_> = mended.iter().map(|(begun, at)| *at - *begun).collect();
        assert_eq!(shown(&found.failed_deployment_recovery_time.unwrap()), spread(&recovery), "{name}");
        let fixes: BTreeSet<_> = mended.iter().map(|(_, at)| *at).collect();
        let rework = i64::try_from(fixes.len()).unwrap();
        assert_eq!(found.deployment_rework_rate, Some(ratio(rework, 195)), "{name}");
        assert_eq!((found.rollbacks, found.caught_in_canary, found.approval_wait_time), (0, 0, None));
    }
}

/// A deployment of this version, so many hours ago.
fn past(stack: &Stack, version: &str, hours: i64) -> pb::PastDeployment {
    pb::PastDeployment {
        version: version.to_owned(),
        deploy_time: Some(to_proto(stack.now() - TimeDelta::hours(hours))),
        ..Default::default()
    }
}

async fn deployments(caller: &Caller) -> i64 {
    metrics(caller, None, None).await.deployment_frequency.unwrap().deployments
}

#[tokio::test]
async fn what_was_imported_is_known_again() {
    let (stack, caller) = start().await;
    let back = pb::PastDeployment { is_rollback: true, ..past(&stack, "1.0", 5) };
    let again = pb::PastDeployment { is_rollback: true, ..past(&stack, "1.0", 3) };
    let records = [past(&stack, "1.0", 9), past(&stack, "1.1", 8), back, again];
    assert_eq!(imported(&caller, import(&records[..1])).await, (1, 0));
    assert_eq!(imported(&caller, import(&records)).await, (3, 1));
    let before = metrics(&caller, None, None).await;
    assert_eq!((before.deployment_frequency.unwrap().deployments, before.rollbacks), (2, 2));
    // Told otherwise it stays as it was.
    let other =
        pb::PastDeployment { failure_time: past(&stack, "", 1).deploy_time, ..past(&stack, "1.1", 2) };
    assert_eq!(imported(&caller, import(&[other])).await, (0, 1));
    assert_eq!(metrics(&caller, None, None).await, before);
}

#[tokio::test]
async fn what_is_only_looked_at_is_not_kept() {
    let (stack, caller) = start().await;
    let looked = pb::ImportHistoryRequest {
        validate_only: true,
        request_id: request_id(1),
        ..import(&[past(&stack, "1.0", 9)])
    };
    assert_eq!(imported(&caller, looked.clone()).await, (1, 0));
    assert_eq!(imported(&caller, looked).await, (1, 0));
    assert_eq!(deployments(&caller).await, 0);
}

#[tokio::test]
async fn of_callers_who_import_at_once_one_does() {
    let (stack, caller) = start().await;
    let replica = stack.release_svc(&crate::harness::Options::default());
    let records: Vec<_> = (0..200).map(|n| past(&stack, &format!("1.{n}"), n)).collect();
    let there = caller.at_release(&replica);
    let answers = tokio::join!(
        imported(&caller, import(&records)),
        imported(&there, import(&records[50..])),
        imported(&caller, import(&records[..150])),
    );
    let sum = |of: fn((i64, i64)) -> i64| of(answers.0) + of(answers.1) + of(answers.2);
    assert_eq!((sum(|it| it.0), sum(|it| it.1)), (200, 300));
    stack.advance(TimeDelta::seconds(1));
    assert_eq!(deployments(&caller).await, 200);
}

#[tokio::test]
async fn a_period_of_more_than_can_be_read_is_refused_and_the_rest_is_whole() {
    let (stack, caller) = start().await;
    let hours: Vec<_> = (0..10_500).collect();
    for batch in hours.chunks(500) {
        let records: Vec<_> = batch.iter().map(|hours| past(&stack, &hours.to_string(), *hours)).collect();
        assert_eq!(imported(&caller, import(&records)).await, (500, 0));
    }
    stack.advance(TimeDelta::seconds(1));
    let since = |hours| Some(stack.now() - TimeDelta::hours(hours));
    let refused = caller.insight().get_delivery_metrics(asked(since(10_400), None)).await;
    let status = refused.refused(Code::InvalidArgument, "FIELD_INVALID");
    assert!(status.message().starts_with("start_time: must be "), "{}", status.message());
    let found = metrics(&caller, since(9_000), None).await;
    assert_eq!(found.deployment_frequency.unwrap().deployments, 9_000);
}

#[tokio::test]
async fn a_version_of_the_past_is_no_release_and_new_ones_follow_it() {
    let (stack, caller) = start().await;
    let records = [past(&stack, "2.0.3", 9), past(&stack, "1.9", 8), past(&stack, "nightly", 7)];
    imported(&caller, import(&records)).await;
    let releases = caller.releases().list_releases(pb::ListReleasesRequest::default()).await;
    assert_eq!(releases.answer().releases, []);
    for (late, last) in [("1.0", "2.0.3"), ("2.0.3", "2.0.3"), ("2.0.2", "2.0.3"), ("1.9.0", "1.9")] {
        let refused = caller.releases().create_release(draft(late)).await;
        let status = refused.refused(Code::FailedPrecondition, "RELEASE_VERSION_NOT_GREATER");
        assert_eq!(status.get_details_error_info().unwrap().metadata["last_version"], last, "{late}");
        assert_eq!(status.message().contains("hotfix_line"), late == "1.0", "{status:?}");
    }
    create_release(&caller, "1.9.1").await;
    // What was rolled out here is not told again from outside.
    ship(&caller, "2.0.4", &[]).await;
    assert_eq!(imported(&caller, import(&[past(&stack, "2.0.4", 9), past(&stack, "0.9", 9)])).await, (1, 1));
    stack.advance(TimeDelta::seconds(1));
    assert_eq!(deployments(&caller).await, 5);
}

#[tokio::test]
async fn a_draft_is_not_stranded_by_a_past_that_is_imported_after_it() {
    let (stack, caller) = start().await;
    let draft = create_release(&caller, "1.0").await;
    imported(&caller, import(&[past(&stack, "2.0", 9)])).await;
    submit(&caller, &draft).await;
}

#[tokio::test]
async fn another_tenants_history_is_another_one() {
    let (stack, caller) = start().await;
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..person("ada") });
    let records = [past(&stack, "1.0", 9)];
    let refused = acme.insight().import_history(import(&records)).await;
    refused.refused(Code::NotFound, "COMPONENT_NOT_FOUND");
    let refused = acme.insight().get_delivery_metrics(asked(None, None)).await;
    refused.refused(Code::NotFound, "COMPONENT_NOT_FOUND");
    create_catalog(&acme).await;
    assert_eq!(imported(&caller, import(&records)).await, (1, 0));
    assert_eq!((deployments(&caller).await, deployments(&acme).await), (1, 0));
    assert_eq!(imported(&acme, import(&records)).await, (1, 0));
}

#[tokio::test]
async fn only_who_may_imports() {
    let (stack, caller) = start().await;
    let owned = pb::Component {
        component: "ledger".to_owned(),
        owner_groups: vec!["payments".to_owned()],
        ..Default::default()
    };
    let payments = stack.caller(&Grant { groups: vec!["payments".to_owned()], ..person("eve") });
    create_component(&payments, owned).await;
    let records = [past(&stack, "1.0", 9)];
    let request = pb::ImportHistoryRequest { component: "ledger".to_owned(), ..import(&records) };
    let refused = caller.insight().import_history(request.clone()).await;
    refused.refused(Code::PermissionDenied, "CALLER_NOT_OWNER");
    assert_eq!(imported(&payments, request).await, (1, 0));
    let reader = stack.caller(&Grant { scope: "insight.read".to_owned(), ..workload("reader") });
    let refused = reader.insight().import_history(import(&records)).await;
    refused.refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
    let nowhere = pb::ImportHistoryRequest { environment: "nowhere".to_owned(), ..import(&records) };
    let refused = caller.insight().import_history(nowhere).await;
    refused.refused(Code::NotFound, "ENVIRONMENT_NOT_FOUND");
}

#[tokio::test]
async fn a_record_that_cannot_be_is_named_and_takes_the_others_with_it() {
    let (stack, caller) = start().await;
    let good = past(&stack, "1.0", 9);
    let base = past(&stack, "1.1", 5);
    let ago = |hours| past(&stack, "", hours).deploy_time;
    let absurd = prost_types::Timestamp { seconds: i64::MAX, nanos: 0 };
    let bad: Vec<(&str, pb::PastDeployment)> = vec![
        ("version", pb::PastDeployment { version: String::new(), ..base.clone() }),
        ("version", pb::PastDeployment { version: "1\n2".to_owned(), ..base.clone() }),
        ("version", pb::PastDeployment { version: "1".repeat(129), ..base.clone() }),
        ("version", good.clone()),
        ("deploy_time", pb::PastDeployment { deploy_time: None, ..base.clone() }),
        ("deploy_time", pb::PastDeployment { deploy_time: ago(-1), ..base.clone() }),
        ("deploy_time", pb::PastDeployment { deploy_time: Some(absurd), ..base.clone() }),
        (
            "deploy_time",
            pb::PastDeployment {
                deploy_time: Some(prost_types::Timestamp { seconds: -1, nanos: 0 }),
                ..base.clone()
            },
        ),
        ("commit_times", pb::PastDeployment { commit_times: vec![absurd; 201], ..base.clone() }),
        (
            "commit_times[1]",
            pb::PastDeployment { commit_times: vec![ago(6).unwrap(), ago(-6).unwrap()], ..base.clone() },
        ),
        ("author_count", pb::PastDeployment { author_count: -1, ..base.clone() }),
        ("lines_added", pb::PastDeployment { lines_added: i32::MIN, ..base.clone() }),
        ("lines_deleted", pb::PastDeployment { lines_deleted: -1, ..base.clone() }),
        ("files_changed", pb::PastDeployment { files_changed: -1, ..base.clone() }),
        ("failure_time", pb::PastDeployment { failure_time: ago(6), ..base.clone() }),
        ("failure_time", pb::PastDeployment { failure_time: ago(4), is_rollback: true, ..base.clone() }),
        ("recovery_time", pb::PastDeployment { recovery_time: ago(4), ..base.clone() }),
        ("recovery_time", pb::PastDeployment { failure_time: ago(3), recovery_time: ago(4), ..base.clone() }),
        ("incident", pb::PastDeployment { incident: "x".repeat(201), ..base }),
    ];
    for (field, record) in bad {
        let refused = caller.insight().import_history(import(&[good.clone(), record])).await;
        let status = refused.refused(Code::InvalidArgument, "FIELD_INVALID");
        let named = format!("records[1].{field}: ");
        assert!(status.message().starts_with(&named), "{named} in {}", status.message());
    }
    let many = vec![good; 501];
    let refused = caller.insight().import_history(import(&many)).await;
    refused.refused(Code::InvalidArgument, "FIELD_INVALID");
    let refused = caller.insight().import_history(pb::ImportHistoryRequest::default()).await;
    refused.refused(Code::InvalidArgument, "FIELD_INVALID");
    assert_eq!(deployments(&caller).await, 0);
}
