//! What waits for a freeze to end goes at that instant, and nothing waits for ever: by the threads that told of tools that
//! polled, got stuck or lost count. The clock begins on 2027-01-15 at 08:00 UTC.

use std::slice::from_ref;

use chrono::TimeDelta;
use shared::pb::release as pb;
use shared::time::to_proto;
use tonic::Code;

use crate::harness::shop::{create_release, seconds, start as rollout_of, submit};
use crate::harness::{Answer as _, Caller, assert_refused};
use crate::window::{about_storefront, create_window, creation, evaluate, freeze, start, today};

/// An environment behind the first one, where releases go that were a success there for an hour.
async fn create_prod(caller: &Caller) {
    let requirements = pb::EnvironmentRequirements {
        requires_promotion: true,
        min_bake: Some(seconds(3600)),
        ..Default::default()
    };
    let environment = pb::Environment {
        environment: "prod".to_owned(),
        promotion_order: 10,
        requirements: Some(requirements),
        ..Default::default()
    };
    let request = pb::CreateEnvironmentRequest { environment: Some(environment), ..Default::default() };
    caller.catalog().create_environment(request).await.answer();
}

/// kargo 6360 and 4586: soaks that counted from the wrong stage, and promotions that waited for the next poll afterwards.
#[tokio::test]
async fn kargo_6360_a_soak_goes_on_through_a_freeze_and_what_waited_for_both_goes_at_once() {
    let (stack, caller) = start().await;
    create_prod(&caller).await;
    let of_prod = |start: &str, end: &str| {
        let environments = vec!["prod".to_owned()];
        let scope = Some(pb::WindowScope { environments, ..Default::default() });
        pb::Window { scope, ..freeze(start, end) }
    };
    create_window(&caller, of_prod("2027-01-15T08:30:00", "2027-01-15T10:00:00")).await;
    let release = submit(&caller, &create_release(&caller, "1.0").await).await;
    stack.advance(TimeDelta::minutes(15));
    caller.rollouts().start_rollout(rollout_of(&release, &[])).await.answer();
    let to_prod = async || {
        caller
            .rollouts()
            .start_rollout(pb::StartRolloutRequest {
                environment: "prod".to_owned(),
                ..rollout_of(&release, &[])
            })
            .await
    };
    // Its soak began with its success in the other environment, not with its approval.
    stack.advance(TimeDelta::minutes(59));
    assert_refused(&to_prod().await.unwrap_err(), Code::FailedPrecondition, "ROLLOUT_BLOCKED");
    stack.advance(TimeDelta::minutes(1));
    assert_refused(&to_prod().await.unwrap_err(), Code::FailedPrecondition, "ROLLOUT_WINDOW_CLOSED");
    let opens = evaluate(
        &caller,
        pb::EvaluateWindowsRequest { environment: "prod".to_owned(), ..about_storefront() },
    )
    .await
    .next_open_time;
    assert_eq!(opens, Some(to_proto("2027-01-15T10:00:00Z".parse().unwrap())));
    stack.advance(TimeDelta::minutes(45) - TimeDelta::microseconds(1));
    assert_refused(&to_prod().await.unwrap_err(), Code::FailedPrecondition, "ROLLOUT_WINDOW_CLOSED");
    stack.advance(TimeDelta::microseconds(1));
    to_prod().await.answer();
}

/// argo-rollouts 3316 and kargo 2661: what was stuck because whoever worked on it was gone.
#[tokio::test]
async fn argo_rollouts_3316_a_calendar_whose_holder_is_gone_holds_nobody() {
    let (stack, caller) = start().await;
    let mut holder = stack.database.connect().await;
    let lock = "begin; select from release.calendars where tenant_id = 'shop' for update";
    create_window(&caller, freeze("2030-01-01T00:00:00", "2030-01-02T00:00:00")).await;
    sqlx::raw_sql(lock).execute(&mut holder).await.unwrap();
    let release = submit(&caller, &create_release(&caller, "1.0").await).await;
    let refused = caller.rollouts().start_rollout(rollout_of(&release, &[])).await;
    refused.refused(Code::Aborted, "CONCURRENT_CHANGE");
    let refused = caller.windows().create_window(creation(today())).await;
    refused.refused(Code::Aborted, "CONCURRENT_CHANGE");
    // Its process dies, and nobody has to clean up. What was refused never happens.
    drop(holder);
    caller.rollouts().start_rollout(rollout_of(&release, &[])).await.answer();
    let all = caller.windows().list_windows(pb::ListWindowsRequest::default()).await.answer();
    assert_eq!(all.windows.len(), 1);
}

/// kargo 2795: what an older version had stored did not go on after an upgrade.
#[tokio::test]
async fn kargo_2795_what_an_older_version_stored_holds_and_is_lifted() {
    let (stack, caller) = start().await;
    let model = create_window(&caller, today()).await;
    let mut db = stack.database.connect().await;
    // As the version before this one wrote them, which knew no proposals and no end of an override before its time.
    let rows = "
        insert into release.windows
            (tenant_id, window_id, name, effect, actions, tiers, components, environments, regions, time_zone, starts_at,
            ends_at, local_start, local_end, rrule, duration_secs, over_at, reason, is_peak, creator, created_at, version)
        select tenant_id, '0194c0de-0000-7000-8000-000000000001', 'older', effect, actions, tiers, components, environments,
            regions, time_zone, starts_at, ends_at, local_start, local_end, rrule, duration_secs, over_at, reason, is_peak,
            creator, created_at, 7
        from release.windows;
        insert into release.window_overrides
            (tenant_id, window_override_id, window_id, component, environment, reason, creator, created_at, ends_at)
        select tenant_id, window_id, window_id, 'storefront', 'local', 'why', creator, created_at,
            created_at + interval '2 hours'
        from release.windows";
    sqlx::raw_sql(rows).execute(&mut db).await.unwrap();
    let all = caller
        .windows()
        .list_windows(pb::ListWindowsRequest::default())
        .await
        .answer()
        .windows;
    let older = all.iter().find(|window| window.name == "older").unwrap();
    assert_eq!((all.len(), older.etag.as_str(), &older.schedule), (2, "v7", &model.schedule));
    assert!(!older.is_pending && older.proposed.is_none());
    let lifted = evaluate(&caller, about_storefront()).await;
    assert!(lifted.is_open && lifted.window_override_ids.len() == 2);
    let window_id = older.window_id.clone();
    let request = pb::ListWindowOverridesRequest { window_id, ..Default::default() };
    let found = caller.windows().list_window_overrides(request).await.answer().window_overrides;
    let [of_older] = found.as_slice() else { panic!("{found:?}") };
    let (window_override_id, reason) = (of_older.window_override_id.clone(), "over".to_owned());
    let request = pb::EndWindowOverrideRequest { window_override_id, reason, ..Default::default() };
    caller.windows().end_window_override(request).await.answer();
    let held = evaluate(&caller, about_storefront()).await;
    let ids: Vec<_> = held.windows.into_iter().map(|window| window.window_id).collect();
    assert_eq!(ids, from_ref(&older.window_id));
}
