//! A release that was taken back goes on running until its last visit has ended, and no longer: session services count its
//! visits for as long as an executor waits for that.

use chrono::TimeDelta;
use shared::pb::release as pb;
use shared::pb::release::{RolloutState, TaskKind};
use shared::pb::session::Arm;
use shared::time::to_proto;

use crate::executor::{deploy, need_executor, start, try_lease, work};
use crate::harness::shop::{
    add_line, begin_checkout, complete_checkout, create_session_with_pins, pin, roll_back, ship,
};
use crate::harness::{Answer as _, Caller, ENVIRONMENT, Stack, eventually, person, system};
use crate::rollout_control::reaches;
use crate::visit::served;

/// A visit on the canary, once the link has told of it.
async fn canary(caller: &Caller) -> String {
    eventually("a visit on the canary", || async {
        let created = create_session_with_pins(caller).await;
        (pin(&created.pins).1 == Arm::Canary).then_some(created.session_token)
    })
    .await
}

/// Waits until so many visits on what was taken back were counted since then.
async fn counted(stack: &Stack, canary: i64) {
    let counted = "select coalesce(max(canary), -1) from release.visit_counts \
                   join release.tasks on counted_rollout_id = visit_counts.rollout_id and counted_at > counted_since";
    eventually("the count", || async {
        stack.advance(TimeDelta::milliseconds(100));
        (stack.database.count(counted).await == canary).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_was_taken_back_is_retired_as_soon_as_its_last_visit_has_ended() {
    let (mut stack, caller) = crate::routing::start().await;
    need_executor(&caller).await;
    let rollout = ship(&caller, "1.1", &[9000]).await;
    work(&caller, TaskKind::Expose, "1.1").await;
    let paying = canary(&caller).await;
    add_line(&caller, &paying, "85123A", 1).await;
    begin_checkout(&caller, &paying).await;
    let began = stack.now();
    roll_back(&caller, &rollout).await;
    reaches(&caller, &rollout, RolloutState::RolledBack).await;
    // Those that only looked around are over before long; the checkout holds its visit.
    stack.advance(TimeDelta::minutes(6));
    counted(&stack, 1).await;
    assert_eq!(try_lease(&caller).await, None);
    // Whoever counts may be another one by now.
    stack.stop_session().await;
    stack.session = Some(stack.session_svc(&stack.linked()));
    let caller = stack.caller(&person("ada"));
    stack.advance(TimeDelta::minutes(6));
    assert_eq!(served(&caller, &paying).await.0, "1.1");
    counted(&stack, 1).await;
    assert_eq!(try_lease(&caller).await, None);
    complete_checkout(&caller, &paying, "order-1").await;
    assert_eq!(served(&caller, &paying).await.0, "1.0");
    counted(&stack, 0).await;
    work(&caller, TaskKind::Retire, "1.1").await;
    assert!(stack.now() - began < TimeDelta::minutes(20));
}

/// What a source is asked for when it reports this.
async fn asked(stack: &Stack, source_id: &str, rollouts: Vec<pb::RolloutSignals>) -> Vec<pb::AwaitedVisits> {
    let request = pb::ReportSignalsRequest {
        environment: ENVIRONMENT.to_owned(),
        source_id: source_id.to_owned(),
        source_epoch: "1".to_owned(),
        rollouts,
    };
    let system = stack.caller(&system("session-svc"));
    system.routing().report_signals(request).await.answer().awaited
}

/// So many visits on a rollout's release, counted now.
fn visits(stack: &Stack, rollout: &pb::Rollout, canary: i64) -> Vec<pb::RolloutSignals> {
    let visits = pb::VisitCounts { count_time: Some(to_proto(stack.now())), canary, control: 7 };
    let signals = pb::RolloutSignals {
        tenant: "shop".to_owned(),
        rollout_id: rollout.rollout_id.clone(),
        counts: vec![],
        visits: Some(visits),
    };
    vec![signals]
}

#[tokio::test]
async fn every_source_is_asked_for_the_last_visits_until_it_has_told_of_none() {
    let (stack, caller) = start().await;
    let first = deploy(&caller, "1.0").await;
    let rollout = ship(&caller, "1.1", &[1000]).await;
    work(&caller, TaskKind::Expose, "1.1").await;
    for source in ["one", "two"] {
        assert_eq!(asked(&stack, source, visits(&stack, &rollout, 0)).await, [], "it is under way");
    }
    stack.advance(TimeDelta::seconds(5));
    roll_back(&caller, &rollout).await;
    let expected = [pb::AwaitedVisits {
        tenant: "shop".to_owned(),
        component: "storefront".to_owned(),
        rollout_id: rollout.rollout_id.clone(),
        release_id: rollout.release_id.clone(),
        previous_release_id: first.release_id,
    }];
    stack.advance(TimeDelta::seconds(5));
    assert_eq!(asked(&stack, "one", vec![]).await, expected);
    assert_eq!(asked(&stack, "one", visits(&stack, &rollout, 1)).await, expected);
    assert_eq!(asked(&stack, "two", visits(&stack, &rollout, 0)).await, []);
    assert_eq!(try_lease(&caller).await, None);
    stack.advance(TimeDelta::seconds(5));
    assert_eq!(asked(&stack, "one", visits(&stack, &rollout, 0)).await, []);
    work(&caller, TaskKind::Retire, "1.1").await;
}

#[tokio::test]
async fn nobody_is_asked_for_longer_than_a_release_is_kept_running() {
    let (stack, caller) = start().await;
    deploy(&caller, "1.0").await;
    let rollout = ship(&caller, "1.1", &[1000]).await;
    work(&caller, TaskKind::Expose, "1.1").await;
    roll_back(&caller, &rollout).await;
    assert_eq!(asked(&stack, "one", vec![]).await.len(), 1);
    stack.advance(TimeDelta::hours(24));
    assert_eq!(asked(&stack, "one", vec![]).await, []);
}
