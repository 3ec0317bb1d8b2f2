//! The way back: from every state, whatever else holds.

use chrono::TimeDelta;
use shared::pb::release as pb;
use shared::pb::release::{ReleaseState, RolloutMode, RolloutState};
use shared::time::to_proto;
use tonic::Code;
use uuid::Uuid;

use crate::harness::shop::{
    advance_rollout, create_release, get_release, get_rollout, roll_back, rollback, ship,
    start as rollout_of, submit,
};
use crate::harness::{Answer as _, Caller, ENVIRONMENT, Stack, eventually, system, workload};
use crate::rollout_control::{reaches, ship_by, span, start};
use crate::window::{create_window, today};

async fn state_of(caller: &Caller, rollout: &pb::Rollout) -> ReleaseState {
    let release = pb::Release { release_id: rollout.release_id.clone(), ..Default::default() };
    get_release(caller, &release).await.state()
}

/// What everyone gets now.
async fn stable(stack: &Stack) -> String {
    let caller = stack.caller(&system("session-svc"));
    let request = pb::WatchRoutesRequest {
        environment: ENVIRONMENT.to_owned(),
        replica_id: Uuid::from_u128(99).to_string(),
    };
    let mut stream = caller.routing().watch_routes(request).await.answer();
    let first = stream.message().await.unwrap().unwrap();
    let Some(pb::watch_routes_response::Message::Snapshot(snapshot)) = first.message else {
        panic!("{first:?}")
    };
    snapshot.routes[0].stable.clone().unwrap().version
}

#[tokio::test]
async fn what_has_succeeded_goes_back_in_one_call_even_in_a_freeze() {
    let (stack, caller) = start().await;
    let rollout = ship(&caller, "1.1", &[]).await;
    create_window(&caller, today()).await;
    let back = roll_back(&caller, &rollout).await;
    assert_eq!((back.mode(), &back.rollback_of), (RolloutMode::Rollback, &rollout.rollout_id));
    assert_eq!((back.state(), back.exposure_bps), (RolloutState::RolledBack, 0));
    assert_eq!(stable(&stack).await, "1.0");
    assert_eq!(state_of(&caller, &rollout).await, ReleaseState::RolledBack);
    assert_eq!(get_rollout(&caller, &rollout).await.state(), RolloutState::Succeeded);
    // Again: it serves nobody any more, which is said, and nothing changes.
    let request = pb::RollBackRolloutRequest { reason: "again".to_owned(), ..rollback(&rollout) };
    let again = caller.rollouts().roll_back_rollout(request).await.answer();
    assert!(again.warnings[0].contains("does not serve"), "{:?}", again.warnings);
    assert_eq!(stable(&stack).await, "1.0");
}

#[tokio::test]
async fn what_is_under_way_on_top_goes_back_first() {
    let (stack, caller) = start().await;
    let lower = ship(&caller, "1.1", &[]).await;
    let upper = ship(&caller, "1.2", &[1000]).await;
    let answer = caller.rollouts().roll_back_rollout(rollback(&lower)).await.answer();
    let cascaded: Vec<_> = answer.cascaded.iter().map(|rollout| rollout.rollout_id.as_str()).collect();
    assert_eq!(cascaded, [upper.rollout_id.as_str()]);
    assert_eq!(stable(&stack).await, "1.0");
    assert_eq!(get_rollout(&caller, &upper).await.state(), RolloutState::RolledBack);
}

#[tokio::test]
async fn i7_every_state_with_exposure_goes_back_in_a_freeze_with_a_stopped_line() {
    for state in [RolloutState::Running, RolloutState::Paused, RolloutState::Draining] {
        let (stack, caller) = start().await;
        let plan = pb::RolloutPlan { drain_deadline: span(TimeDelta::hours(1)), ..Default::default() };
        visits_are_counted(&stack, None).await;
        let rollout = ship_by(&caller, "1.1", &[1000], plan).await;
        if state == RolloutState::Paused {
            let (rollout_id, reason) = (rollout.rollout_id.clone(), "lunch".to_owned());
            let request = pb::PauseRolloutRequest { rollout_id, reason, ..Default::default() };
            caller.rollouts().pause_rollout(request).await.answer();
        } else if state == RolloutState::Draining {
            advance_rollout(&caller, &rollout).await;
            advance_rollout(&caller, &rollout).await;
        }
        assert_eq!(get_rollout(&caller, &rollout).await.state(), state);
        create_window(&caller, today()).await;
        let stop = pb::StopTheLineRequest { reason: "fire".to_owned(), ..Default::default() };
        caller.windows().stop_the_line(stop).await.answer();
        let back = roll_back(&caller, &rollout).await;
        assert_eq!((back.state(), back.exposure_bps), (RolloutState::RolledBack, 0), "{state:?}");
    }
}

#[tokio::test]
async fn one_that_waits_is_cancelled() {
    let (_stack, caller) = start().await;
    create_window(&caller, today()).await;
    let release = submit(&caller, &create_release(&caller, "1.1").await).await;
    let request = pb::StartRolloutRequest { wait: true, ..rollout_of(&release, &[]) };
    let rollout = caller.rollouts().start_rollout(request).await.answer().rollout.unwrap();
    let cancelled = roll_back(&caller, &rollout).await;
    assert_eq!(
        (cancelled.state(), cancelled.rollback_reason.as_str()),
        (RolloutState::Cancelled, "too many errors")
    );
}

/// A count of live visits on what a rollout replaces, as a session service tells it; without a rollout only that the
/// service is there.
async fn visits_are_counted(stack: &Stack, of: Option<(&pb::Rollout, i64)>) -> Caller {
    let caller = stack.caller(&system("session-svc"));
    let rollouts = of.into_iter().map(|(rollout, control)| pb::RolloutSignals {
        tenant: "shop".to_owned(),
        rollout_id: rollout.rollout_id.clone(),
        counts: vec![],
        visits: Some(pb::VisitCounts { count_time: Some(to_proto(stack.now())), canary: 3, control }),
    });
    let request = pb::ReportSignalsRequest {
        environment: ENVIRONMENT.to_owned(),
        source_id: "sessions".to_owned(),
        source_epoch: "1".to_owned(),
        rollouts: rollouts.collect(),
    };
    caller.routing().report_signals(request).await.answer();
    caller
}

#[tokio::test]
async fn a_drain_ends_with_the_last_visit_or_at_its_deadline() {
    for by_deadline in [false, true] {
        let (stack, caller) = start().await;
        let plan = pb::RolloutPlan { drain_deadline: span(TimeDelta::hours(1)), ..Default::default() };
        visits_are_counted(&stack, None).await;
        let rollout = ship_by(&caller, "1.1", &[1000], plan).await;
        advance_rollout(&caller, &rollout).await;
        assert_eq!(advance_rollout(&caller, &rollout).await.state(), RolloutState::Draining);
        stack.advance(TimeDelta::seconds(1));
        visits_are_counted(&stack, Some((&rollout, 2))).await;
        let request = pb::GetRolloutRequest { rollout_id: rollout.rollout_id.clone() };
        let seen = caller.rollouts().get_rollout(request).await.answer();
        assert_eq!(seen.rollout.unwrap().state(), RolloutState::Draining);
        let visits: Vec<_> = seen.report.unwrap().visits.iter().map(|visits| visits.visits).collect();
        assert_eq!(visits, [3, 2]);
        if by_deadline {
            stack.advance(TimeDelta::hours(1));
        } else {
            stack.advance(TimeDelta::seconds(1));
            visits_are_counted(&stack, Some((&rollout, 0))).await;
        }
        reaches(&caller, &rollout, RolloutState::Succeeded).await;
    }
}

#[tokio::test]
async fn a_rollback_that_nobody_confirms_fails_and_a_person_ends_it() {
    let (stack, caller) = start().await;
    let service = stack.caller(&system("session-svc"));
    let request = pb::WatchRoutesRequest {
        environment: ENVIRONMENT.to_owned(),
        replica_id: Uuid::from_u128(1).to_string(),
    };
    let _stream = service.routing().watch_routes(request).await.answer();
    let rollout = ship(&caller, "1.1", &[1000]).await;
    assert_eq!(roll_back(&caller, &rollout).await.state(), RolloutState::RollingBack);
    // The watch stays open, so that the service is heard of, but it confirms nothing.
    for _ in 0..4 {
        stack.advance(TimeDelta::minutes(4));
        eventually("a sign of life", || async {
            let sql = "select count(*) from release.route_replicas where seen_at >= $1";
            let mut db = stack.database.connect().await;
            let seen: i64 = sqlx::query_scalar(sql).bind(stack.now()).fetch_one(&mut db).await.unwrap();
            (seen == 1).then_some(())
        })
        .await;
    }
    reaches(&caller, &rollout, RolloutState::RollbackFailed).await;
    let release = submit(&caller, &create_release(&caller, "1.2").await).await;
    let refused = caller.rollouts().start_rollout(rollout_of(&release, &[])).await;
    refused.refused(Code::FailedPrecondition, "ROLLOUT_BLOCKED");
    let resolve = pb::ResolveRolloutRequest {
        rollout_id: rollout.rollout_id.clone(),
        reason: "the node is gone".to_owned(),
        ..Default::default()
    };
    let machine = stack.caller(&workload("pipeline"));
    machine
        .rollouts()
        .resolve_rollout(resolve.clone())
        .await
        .refused(Code::PermissionDenied, "CALLER_NOT_A_PERSON");
    let ended = caller
        .rollouts()
        .resolve_rollout(resolve.clone())
        .await
        .answer()
        .rollout
        .unwrap();
    assert_eq!(ended.state(), RolloutState::RolledBack);
    let again = pb::ResolveRolloutRequest { reason: "again".to_owned(), ..resolve };
    caller
        .rollouts()
        .resolve_rollout(again)
        .await
        .refused(Code::FailedPrecondition, "ROLLOUT_WRONG_STATE");
}

#[tokio::test]
async fn a_release_that_session_services_stopped_is_rolled_back() {
    for steps in [&[1000][..], &[]] {
        let (stack, caller) = start().await;
        let rollout = ship(&caller, "1.1", steps).await;
        let service = stack.caller(&system("session-svc"));
        let kill = pb::ReleaseKill {
            tenant: "shop".to_owned(),
            component: "storefront".to_owned(),
            release_id: rollout.release_id.clone(),
            principal: "idp|ops".to_owned(),
            reason: "prices are wrong".to_owned(),
            kill_time: Some(to_proto(stack.now())),
        };
        let request = pb::ReportKillsRequest { environment: ENVIRONMENT.to_owned(), kills: vec![kill] };
        service.routing().report_kills(request.clone()).await.answer();
        service.routing().report_kills(request).await.answer();
        assert_eq!(state_of(&caller, &rollout).await, ReleaseState::RolledBack);
        assert_eq!(stable(&stack).await, "1.0");
        let rollouts = caller
            .rollouts()
            .list_rollouts(pb::ListRolloutsRequest::default())
            .await
            .answer()
            .rollouts;
        let why: Vec<_> = rollouts.iter().filter(|it| !it.rollback_reason.is_empty()).collect();
        assert!(why.len() == 1 && why[0].rollback_reason.ends_with("prices are wrong"), "{why:?}");
    }
}
