//! Delivery metrics as `InsightService` tells them: of live rollouts, driven with the clock, and of periods and places where
//! there is nothing to tell.

use chrono::TimeDelta;
use shared::issuer::Grant;
use shared::pb::release as pb;
use shared::pb::release::window_override::Subject;
use shared::pb::release::{DeploymentPace, RolloutState};
use shared::time::{Time, to_proto};
use tonic::Code;
use uuid::Uuid;

use crate::harness::shop::{
    advance_rollout, create_catalog, create_policy, create_release, get_rollout, roll_back, ship,
    start as rollout_of, submit,
};
use crate::harness::{Answer as _, Caller, ENVIRONMENT, Stack, eventually, person, system, workload};
use crate::window::{create_window, deletion, freeze, lift, today, update};

pub(crate) fn asked(start: Option<Time>, end: Option<Time>) -> pb::GetDeliveryMetricsRequest {
    pb::GetDeliveryMetricsRequest {
        component: "storefront".to_owned(),
        start_time: start.map(to_proto),
        end_time: end.map(to_proto),
        environments: vec![],
    }
}

pub(crate) async fn metrics(caller: &Caller, start: Option<Time>, end: Option<Time>) -> pb::DeliveryMetrics {
    let answer = caller.insight().get_delivery_metrics(asked(start, end)).await;
    answer.answer().metrics.unwrap()
}

pub(crate) fn ratio(numerator: i64, denominator: i64) -> pb::Ratio {
    pb::Ratio { numerator, denominator }
}

fn spread(median: i64, p90: i64, count: i64) -> pb::Spread {
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    pb::Spread { median: seconds(median), p90: seconds(p90), count }
}

async fn start() -> (Stack, Caller) {
    let stack = Stack::releases();
    let caller = stack.caller(&person("ada"));
    create_catalog(&caller).await;
    (stack, caller)
}

/// A session service that knows of what runs now, and is not heard of again.
async fn mute_replica(stack: &Stack) {
    let request = pb::ReportAppliedRequest {
        environment: ENVIRONMENT.to_owned(),
        replica_id: Uuid::from_u128(7).to_string(),
        table_epoch: "unknown".to_owned(),
        routes: vec![],
    };
    let replica = stack.caller(&system("session-svc"));
    replica.routing().report_applied(request).await.answer();
}

#[tokio::test]
async fn figures_are_those_of_the_rollouts_that_were_driven() {
    let (stack, caller) = start().await;
    let began = stack.now();
    ship(&caller, "1.0", &[]).await;
    stack.advance(TimeDelta::days(1));
    // Taken back in time.
    let canary = ship(&caller, "1.1", &[1000]).await;
    stack.advance(TimeDelta::hours(1));
    roll_back(&caller, &canary).await;
    stack.advance(TimeDelta::days(1));
    // Taken back too late, which ends when the lease of the session service does.
    let failed = ship(&caller, "1.2", &[1000, 10_000]).await;
    advance_rollout(&caller, &failed).await;
    mute_replica(&stack).await;
    stack.advance(TimeDelta::minutes(2));
    assert_eq!(roll_back(&caller, &failed).await.state(), RolloutState::RollingBack);
    let running = metrics(&caller, Some(began), Some(stack.now() + TimeDelta::days(1))).await;
    assert_eq!(running.end_time, Some(to_proto(stack.now())), "the period ends now at the latest");
    stack.advance(TimeDelta::minutes(30));
    eventually("the end of the rollback", || async {
        (get_rollout(&caller, &failed).await.state() == RolloutState::RolledBack).then_some(())
    })
    .await;
    stack.advance(TimeDelta::days(1));
    ship(&caller, "1.3", &[]).await;
    stack.advance(TimeDelta::days(11));

    let found = metrics(&caller, Some(began), None).await;
    assert_eq!(
        (found.component.as_str(), found.environments.as_slice()),
        ("storefront", &[ENVIRONMENT.to_owned()][..])
    );
    let frequency = found.deployment_frequency.unwrap();
    assert_eq!((frequency.deployments, frequency.pace()), (3, DeploymentPace::Weekly));
    let days = (stack.now() - began).as_seconds_f64() / 86_400.0;
    assert!((frequency.per_day.unwrap() - 3.0 / days).abs() < 1e-9, "{frequency:?}");
    assert!((frequency.per_week.unwrap() - 21.0 / days).abs() < 1e-9, "{frequency:?}");
    assert_eq!(found.change_fail_rate, Some(ratio(1, 3)));
    assert_eq!(found.failed_deployment_recovery_time, Some(spread(1800, 1800, 1)));
    assert_eq!(found.deployment_rework_rate, Some(ratio(0, 3)));
    assert_eq!((found.caught_in_canary, found.rollbacks), (1, 2));
    // Nobody said what these releases are made of, and no window denies anything.
    assert_eq!((found.change_lead_time, found.freeze_backlog), (None, None));
    // Standard changes wait for nobody.
    assert_eq!(found.approval_wait_time, Some(spread(0, 0, 4)));
}

#[tokio::test]
async fn periods_are_half_open_and_what_is_not_there_is_not_0() {
    let (stack, caller) = start().await;
    stack.advance(TimeDelta::hours(1));
    let deployed = stack.now();
    ship(&caller, "1.0", &[]).await;
    stack.advance(TimeDelta::hours(1));
    let count = async |start, end| {
        let found = metrics(&caller, Some(start), Some(end)).await;
        found.deployment_frequency.unwrap().deployments
    };
    let second = TimeDelta::seconds(1);
    assert_eq!(count(deployed, deployed + second).await, 1);
    assert_eq!(count(deployed - second, deployed).await, 0);
    assert_eq!(count(deployed + second, stack.now()).await, 0);
    let empty = metrics(&caller, Some(deployed - second), Some(deployed)).await;
    let expected = pb::DeliveryMetrics {
        component: "storefront".to_owned(),
        environments: vec![ENVIRONMENT.to_owned()],
        start_time: Some(to_proto(deployed - second)),
        end_time: Some(to_proto(deployed)),
        deployment_frequency: Some(pb::DeploymentFrequency::default()),
        ..Default::default()
    };
    assert_eq!(empty, expected);
    let default = metrics(&caller, None, None).await;
    assert_eq!(default.start_time, Some(to_proto(stack.now() - TimeDelta::days(90))));
    assert_eq!(default.end_time, Some(to_proto(stack.now())));
}

#[tokio::test]
async fn approvals_are_waited_for() {
    let (stack, ada) = start().await;
    create_policy(&ada, "two-eyes", 1).await;
    let component = pb::Component {
        component: "storefront".to_owned(),
        approval_policy: "two-eyes".to_owned(),
        ..Default::default()
    };
    let request = pb::UpdateComponentRequest { component: Some(component), request_id: String::new() };
    ada.catalog().update_component(request).await.answer();
    let bob = stack.caller(&person("bob"));
    for (version, hours) in [("1.0", 1), ("1.1", 5), ("1.2", 3)] {
        let release = submit(&ada, &create_release(&ada, version).await).await;
        stack.advance(TimeDelta::hours(hours));
        let request = pb::ApproveReleaseRequest { release_id: release.release_id, ..Default::default() };
        bob.approvals().approve_release(request).await.answer();
    }
    submit(&ada, &create_release(&ada, "1.3").await).await;
    stack.advance(TimeDelta::hours(1));
    let found = metrics(&ada, None, None).await;
    assert_eq!(found.approval_wait_time, Some(spread(3 * 3600, 5 * 3600, 3)));
    assert_eq!(found.change_fail_rate, None);
}

#[tokio::test]
async fn environments_that_are_named_are_all_that_count() {
    let (stack, caller) = start().await;
    let environment = Some(pb::Environment { environment: "staging".to_owned(), ..Default::default() });
    let request = pb::CreateEnvironmentRequest { environment, request_id: String::new() };
    caller.catalog().create_environment(request).await.answer();
    let release = submit(&caller, &create_release(&caller, "1.0").await).await;
    let to_staging =
        pb::StartRolloutRequest { environment: "staging".to_owned(), ..rollout_of(&release, &[]) };
    caller.rollouts().start_rollout(to_staging).await.answer();
    stack.advance(TimeDelta::hours(1));
    for (environments, deployments) in
        [(&[][..], 1), (&["staging"], 1), (&[ENVIRONMENT], 0), (&["staging", ENVIRONMENT], 1)]
    {
        let environments = environments.iter().map(ToString::to_string).collect();
        let request = pb::GetDeliveryMetricsRequest { environments, ..asked(None, None) };
        let found = caller.insight().get_delivery_metrics(request).await.answer().metrics.unwrap();
        assert_eq!(found.deployment_frequency.unwrap().deployments, deployments);
    }
}

#[tokio::test]
async fn questions_that_make_no_sense_are_refused() {
    let (stack, caller) = start().await;
    let now = stack.now();
    let ask = async |request| caller.insight().get_delivery_metrics(request).await;
    let of = |component: &str, environments: &[&str]| pb::GetDeliveryMetricsRequest {
        component: component.to_owned(),
        environments: environments.iter().map(ToString::to_string).collect(),
        ..asked(None, None)
    };
    for request in [
        of("No Name", &[]),
        of("storefront", &["No Name"]),
        of("storefront", &[ENVIRONMENT; 33]),
        asked(Some(now), None),
        asked(Some(now + TimeDelta::days(1)), Some(now + TimeDelta::days(2))),
        asked(Some(now - TimeDelta::days(1)), Some(now - TimeDelta::days(2))),
        pb::GetDeliveryMetricsRequest {
            start_time: Some(prost_types::Timestamp { seconds: i64::MIN, nanos: -1 }),
            ..of("storefront", &[])
        },
    ] {
        ask(request).await.refused(Code::InvalidArgument, "FIELD_INVALID");
    }
    ask(of("nothing", &[])).await.refused(Code::NotFound, "COMPONENT_NOT_FOUND");
    ask(of("storefront", &["nowhere"]))
        .await
        .refused(Code::NotFound, "ENVIRONMENT_NOT_FOUND");
    // From the year 1 on is fine.
    ask(asked(Some(Time::UNIX_EPOCH - TimeDelta::days(719_162)), None))
        .await
        .answer();
    let stranger = stack.caller(&Grant { scope: "release.read".to_owned(), ..workload("reader") });
    let refused = stranger.insight().get_delivery_metrics(asked(None, None)).await;
    refused.refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
}

/// The freeze backlog of everything until now.
async fn backlog(caller: &Caller) -> Option<i64> {
    metrics(caller, None, None).await.freeze_backlog
}

#[tokio::test]
async fn what_is_done_to_a_window_rewrites_no_backlog() {
    let (stack, caller) = start().await;
    submit(&caller, &create_release(&caller, "1.0").await).await;
    assert_eq!(backlog(&caller).await, None);
    stack.advance(TimeDelta::hours(1));
    // It covers the hours before it was made, too, but nothing was denied then.
    let window = create_window(&caller, today()).await;
    assert_eq!(backlog(&caller).await, None);
    let before = stack.now();
    stack.advance(TimeDelta::hours(1));
    assert_eq!(backlog(&caller).await, Some(1));
    // A change counts from then on: the hour in which it denied stays.
    let later = freeze("2027-01-20T00:00:00", "2027-01-21T00:00:00");
    let later = pb::Window { window_id: window.window_id.clone(), ..later };
    caller.windows().update_window(update(later)).await.answer();
    stack.advance(TimeDelta::hours(1));
    assert_eq!(backlog(&caller).await, Some(1));
    let after = metrics(&caller, Some(stack.now() - TimeDelta::minutes(30)), None).await;
    assert_eq!(after.freeze_backlog, None);
    caller.windows().delete_window(deletion(&window)).await.answer();
    assert_eq!(backlog(&caller).await, Some(1));
    let hour = metrics(&caller, Some(before), Some(before + TimeDelta::hours(1))).await;
    assert_eq!(hour.freeze_backlog, Some(1));
    // On the 20th there is no window.
    stack.advance(TimeDelta::days(5));
    let day = metrics(&caller, Some(stack.now() - TimeDelta::days(1)), None).await;
    assert_eq!(day.freeze_backlog, None);
}

#[tokio::test]
async fn a_release_that_goes_by_an_override_is_not_held() {
    let (stack, caller) = start().await;
    let window = create_window(&caller, today()).await;
    let urgent = create_release(&caller, "1.0").await;
    let request = lift(&window, stack.now() + TimeDelta::hours(1));
    let window_override = request.window_override.map(|lifted| pb::WindowOverride {
        subject: Some(Subject::ReleaseId(urgent.release_id.clone())),
        ..lifted
    });
    let request = pb::OverrideWindowRequest { window_override, request_id: String::new() };
    caller.windows().override_window(request).await.answer();
    let urgent = submit(&caller, &urgent).await;
    stack.advance(TimeDelta::minutes(30));
    caller.rollouts().start_rollout(rollout_of(&urgent, &[])).await.answer();
    stack.advance(TimeDelta::hours(1));
    assert_eq!(backlog(&caller).await, Some(0));
    // Others are, and so would it have been after the override.
    submit(&caller, &create_release(&caller, "1.1").await).await;
    stack.advance(TimeDelta::hours(1));
    assert_eq!(backlog(&caller).await, Some(1));
}
