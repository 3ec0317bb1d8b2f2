//! What a rollback leaves behind: releases that were made before it do not go out after it, until a person says so.

use chrono::TimeDelta;
use shared::pb::release as pb;
use shared::pb::release::RolloutState;
use shared::time::to_proto;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::govern::blockers;
use crate::harness::shop::{
    create_release, get_release, get_rollout, roll_back, ship, start as rollout_of, submit,
};
use crate::harness::{Answer as _, Caller, ENVIRONMENT, Stack, eventually, person, system, workload};
use crate::rollout_control::{reaches, start};

async fn approved(caller: &Caller, version: &str) -> pb::Release {
    submit(caller, &create_release(caller, version).await).await
}

fn lift(rollout: &pb::Rollout) -> pb::LiftHoldRequest {
    let reason = "it had nothing to do with it".to_owned();
    pb::LiftHoldRequest { rollout_id: rollout.rollout_id.clone(), reason, ..Default::default() }
}

/// A canary that is rolled back a second after everything else.
async fn after_a_rollback() -> (Stack, Caller, pb::Release, pb::Rollout) {
    let (stack, caller) = start().await;
    let bad = ship(&caller, "1.1", &[1000]).await;
    let before = approved(&caller, "1.2").await;
    stack.advance(TimeDelta::seconds(1));
    roll_back(&caller, &bad).await;
    (stack, caller, before, bad)
}

#[tokio::test]
async fn what_was_made_before_a_rollback_is_held_and_what_is_made_since_goes() {
    let (_stack, caller, before, bad) = after_a_rollback().await;
    let held = caller.rollouts().start_rollout(rollout_of(&before, &[1000])).await;
    let held = held.refused(Code::FailedPrecondition, "ROLLOUT_BLOCKED");
    let violations = held.get_details_precondition_failure().unwrap().violations;
    let found: Vec<_> = violations.iter().map(|it| (it.r#type.as_str(), it.subject.as_str())).collect();
    assert_eq!(found, [("HOLD", bad.rollout_id.as_str())]);
    assert_eq!(blockers(&caller, &before).await, ["HOLD"]);
    let since = ship(&caller, "1.3", &[1000]).await;
    assert_eq!(since.state(), RolloutState::Running);
}

#[tokio::test]
async fn only_a_person_lifts_a_hold_and_what_waits_for_it_begins() {
    let (stack, caller, before, bad) = after_a_rollback().await;
    let request = pb::StartRolloutRequest { wait: true, ..rollout_of(&before, &[1000]) };
    let waiting = caller.rollouts().start_rollout(request).await.answer().rollout.unwrap();
    assert_eq!((waiting.state(), &*waiting.waiting_for), (RolloutState::Waiting, &["HOLD".to_owned()][..]));
    let machine = stack.caller(&workload("pipeline"));
    let refused = machine.rollouts().lift_hold(lift(&bad)).await;
    refused.refused(Code::PermissionDenied, "CALLER_NOT_A_PERSON");
    let ops = stack.caller(&person("olga"));
    assert!(ops.rollouts().lift_hold(lift(&waiting)).await.answer().lifted);
    reaches(&caller, &waiting, RolloutState::Running).await;
    assert!(!ops.rollouts().lift_hold(lift(&bad)).await.answer().lifted);
}

#[tokio::test]
async fn a_start_takes_the_place_of_what_waits() {
    let (_stack, caller, before, bad) = after_a_rollback().await;
    let request = pb::StartRolloutRequest { wait: true, ..rollout_of(&before, &[]) };
    let waiting = caller.rollouts().start_rollout(request).await.answer().rollout.unwrap();
    let since = ship(&caller, "1.3", &[1000]).await;
    let superseded = get_rollout(&caller, &waiting).await;
    assert_eq!(
        (superseded.state(), &superseded.superseded_by),
        (RolloutState::Superseded, &since.rollout_id)
    );
    assert_eq!(get_rollout(&caller, &bad).await.state(), RolloutState::RolledBack);
}

#[tokio::test]
async fn what_session_services_stop_is_quarantined_wherever_it_stands() {
    let (stack, caller) = start().await;
    let approved = approved(&caller, "1.1").await;
    let shipped = ship(&caller, "1.2", &[1000]).await;
    let service = stack.caller(&system("session-svc"));
    let kill = |release_id: &str| pb::ReleaseKill {
        tenant: "shop".to_owned(),
        component: "storefront".to_owned(),
        release_id: release_id.to_owned(),
        principal: "idp|ops".to_owned(),
        reason: "prices are wrong".to_owned(),
        kill_time: Some(to_proto(stack.now())),
    };
    let unknown = "rel_01a20697000070008000000000000000";
    let kills = [&approved.release_id, unknown, &shipped.release_id].map(kill).to_vec();
    let request = pb::ReportKillsRequest { environment: ENVIRONMENT.to_owned(), kills };
    service.routing().report_kills(request).await.answer();
    eventually("the rollback", || async {
        (get_rollout(&caller, &shipped).await.state() == RolloutState::RolledBack).then_some(())
    })
    .await;
    let of = |id: &str| pb::Release { release_id: id.to_owned(), ..Default::default() };
    for id in [&approved.release_id, &shipped.release_id] {
        let quarantine = get_release(&caller, &of(id)).await.quarantine.unwrap();
        assert_eq!(quarantine.principal, "idp|ops");
        assert!(quarantine.reason.ends_with("prices are wrong"), "{}", quarantine.reason);
    }
}
