//! The pair: what release-svc decides is what visits get, and nothing else moves them.

use chrono::TimeDelta;
use session_svc::domain::visit::bucket;
use shared::pb::release as rpb;
use shared::pb::release::{AssignmentPolicy, RolloutState};
use shared::pb::session as pb;
use shared::pb::session::{Arm, Verdict};

use crate::harness::shop::{
    add_line, advance_rollout, begin_checkout, complete_checkout, create_catalog, create_session_with_pins,
    create_touchpoint, get_rollout, pin, roll_back, seconds, session_id, ship, ship_to, validate,
    validate_strong, web,
};
use crate::harness::{Caller, Options, Stack, eventually, person};

/// Both services, linked; a touchpoint whose visits end after five minutes; and `storefront` 1.0 everywhere.
pub(crate) async fn start() -> (Stack, Caller) {
    let stack = Stack::pair();
    let caller = stack.caller(&person("ada"));
    create_catalog(&caller).await;
    let session_policy = Some(pb::SessionPolicy { visit_gap: Some(seconds(300)), ..Default::default() });
    create_touchpoint(&caller, pb::Touchpoint { session_policy, ..web() }).await;
    ship(&caller, "1.0", &[]).await;
    applied(&stack, 1).await;
    (stack, caller)
}

/// Waits until so many replicas said that they act on every route as it is.
async fn applied(stack: &Stack, replicas: i64) {
    let mut db = stack.database.connect().await;
    let behind = "select count(*) from release.routes route where route.revision > 0 and $1 > ( \
                  select count(*) from release.routes_applied applied \
                  where applied.revision = route.revision and applied.environment = route.environment \
                  and applied.component = route.component and applied.tenant_id = route.tenant_id)";
    for _ in 0..1000 {
        let behind: i64 = sqlx::query_scalar(behind).bind(replicas).fetch_one(&mut db).await.unwrap();
        if behind == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(15)).await;
    }
    panic!("routes were not applied within 15 s");
}

/// So many sessions, each with its pin.
async fn visits(caller: &Caller, count: usize) -> Vec<(pb::CreateSessionResponse, Arm)> {
    let mut visits = Vec::new();
    for _ in 0..count {
        let created = create_session_with_pins(caller).await;
        let arm = pin(&created.pins).1;
        visits.push((created, arm));
    }
    visits
}

fn hashed(rollout: &rpb::Rollout, session: &pb::CreateSessionResponse) -> u32 {
    bucket(&rollout.rollout_id, session_id(session.session.as_ref().unwrap()))
}

/// What a running visit of the arm is served now.
async fn served(caller: &Caller, visit: &pb::CreateSessionResponse) -> (String, Arm) {
    let seen = validate(caller, &visit.session_token).await;
    assert_eq!(seen.verdict(), Verdict::Active);
    let (version, arm) = pin(&seen.pins);
    (version.to_owned(), arm)
}

fn one(visits: &[(pb::CreateSessionResponse, Arm)], arm: Arm) -> &pb::CreateSessionResponse {
    &visits.iter().find(|visit| visit.1 == arm).expect("a visit of each arm").0
}

#[tokio::test]
async fn visits_are_pinned_to_what_their_environment_serves() {
    let (_stack, caller) = start().await;
    let created = create_session_with_pins(&caller).await;
    assert_eq!(pin(&created.pins), ("1.0", Arm::Unspecified));
    let seen = validate(&caller, &created.session_token).await;
    assert_eq!(seen.pins, created.pins);
}

#[tokio::test]
async fn the_canary_gets_exactly_the_sessions_that_the_hash_says() {
    let (stack, caller) = start().await;
    let rollout = ship(&caller, "1.1", &[3000]).await;
    applied(&stack, 1).await;
    let visits = visits(&caller, 400).await;
    let mut on_canary = 0;
    for (session, arm) in &visits {
        let expected =
            if hashed(&rollout, session) < 3000 { ("1.1", Arm::Canary) } else { ("1.0", Arm::Control) };
        assert_eq!((pin(&session.pins), *arm), (expected, expected.1));
        assert_eq!(session.pins[0].rollout_id, rollout.rollout_id);
        on_canary += usize::from(*arm == Arm::Canary);
    }
    let by_hash = visits.iter().filter(|(session, _)| hashed(&rollout, session) < 3000).count();
    assert_eq!(on_canary, by_hash);
    // Six standard deviations of the binomial, so that a hash that is no hash is noticed.
    assert!((65..=175).contains(&on_canary), "{on_canary}");
}

#[tokio::test]
async fn arms_are_kept_while_exposure_grows_and_the_next_visit_may_join() {
    let (stack, caller) = start().await;
    let rollout = ship(&caller, "1.1", &[2000, 6000]).await;
    applied(&stack, 1).await;
    let visits = visits(&caller, 40).await;
    advance_rollout(&caller, &rollout).await;
    applied(&stack, 1).await;
    for (session, arm) in &visits {
        assert_eq!(served(&caller, session).await.1, *arm, "a running visit stays where it is");
    }
    stack.advance(TimeDelta::minutes(6));
    eventually("the lease after the jump of the clock", || async {
        let fresh = create_session_with_pins(&caller).await;
        (hashed(&rollout, &fresh) < 6000 && pin(&fresh.pins).1 == Arm::Canary).then_some(())
    })
    .await;
    for (session, arm) in &visits {
        let expected = if hashed(&rollout, session) < 6000 { Arm::Canary } else { Arm::Control };
        assert_eq!(served(&caller, session).await.1, expected, "{arm:?} before");
    }
}

#[tokio::test]
async fn new_visits_leaves_running_visits_alone() {
    let (stack, caller) = start().await;
    let running = create_session_with_pins(&caller).await;
    ship(&caller, "1.1", &[10_000]).await;
    applied(&stack, 1).await;
    assert_eq!(served(&caller, &running).await, ("1.0".to_owned(), Arm::Unspecified));
    assert_eq!(pin(&create_session_with_pins(&caller).await.pins), ("1.1", Arm::Canary));
}

#[tokio::test]
async fn all_sessions_moves_a_running_visit_once_and_not_out_of_an_open_checkout() {
    let (stack, caller) = start().await;
    let (running, paying) =
        (create_session_with_pins(&caller).await, create_session_with_pins(&caller).await);
    add_line(&caller, &paying.session_token, "85123A", 1).await;
    begin_checkout(&caller, &paying.session_token).await;
    let rollout = ship_to(&caller, "1.1", &[9999], AssignmentPolicy::AllSessions).await;
    applied(&stack, 1).await;
    for session in [&running, &paying] {
        assert!(hashed(&rollout, session) < 9999, "these two seeds go to the canary");
    }
    assert_eq!(served(&caller, &running).await, ("1.1".to_owned(), Arm::Canary));
    assert_eq!(served(&caller, &paying).await, ("1.0".to_owned(), Arm::Unspecified));
    roll_back(&caller, &rollout).await;
    applied(&stack, 1).await;
    assert_eq!(served(&caller, &running).await, ("1.0".to_owned(), Arm::Control), "moved back once");
    complete_checkout(&caller, &paying.session_token, "order-1").await;
    assert_eq!(served(&caller, &paying).await, ("1.0".to_owned(), Arm::Unspecified));
}

#[tokio::test]
async fn a_rollback_moves_canary_visits_back_but_not_out_of_an_open_checkout() {
    let (stack, caller) = start().await;
    let rollout = ship(&caller, "1.1", &[5000]).await;
    applied(&stack, 1).await;
    let visits = visits(&caller, 30).await;
    let canaries: Vec<_> = visits
        .iter()
        .filter(|visit| visit.1 == Arm::Canary)
        .map(|visit| &visit.0)
        .collect();
    let (shopping, paying) = (canaries[0], canaries[1]);
    let cart = add_line(&caller, &paying.session_token, "85123A", 3).await;
    begin_checkout(&caller, &paying.session_token).await;
    roll_back(&caller, &rollout).await;
    applied(&stack, 1).await;
    assert_eq!(served(&caller, shopping).await, ("1.0".to_owned(), Arm::Control));
    assert_eq!(served(&caller, paying).await, ("1.1".to_owned(), Arm::Canary));
    // However long the payment takes.
    stack.advance(TimeDelta::minutes(10));
    assert_eq!(served(&caller, paying).await, ("1.1".to_owned(), Arm::Canary));
    let ordered = complete_checkout(&caller, &paying.session_token, "order-1").await;
    assert_eq!(ordered.lines, cart.lines);
    assert_eq!(served(&caller, paying).await.0, "1.0");
    assert_eq!(pin(&create_session_with_pins(&caller).await.pins).0, "1.0");
}

#[tokio::test]
async fn a_rollback_is_confirmed_by_the_link_and_waits_while_it_is_down() {
    let (mut stack, caller) = start().await;
    let rollout = ship(&caller, "1.1", &[5000]).await;
    applied(&stack, 1).await;
    stack.stop_session().await;
    assert_eq!(roll_back(&caller, &rollout).await.state(), RolloutState::RollingBack);
    let session = stack.session_svc(&stack.linked());
    stack.session = Some(session);
    let caller = stack.caller(&person("ada"));
    eventually("the new replica's report", || async {
        let mut db = stack.database.connect().await;
        let told = "select count(*) from release.routes_applied applied join release.routes using (tenant_id, component, environment, revision)";
        let told: i64 = sqlx::query_scalar(told).fetch_one(&mut db).await.unwrap();
        (told > 0).then_some(())
    })
    .await;
    assert_eq!(
        get_rollout(&caller, &rollout).await.state(),
        RolloutState::RollingBack,
        "the old replica may live"
    );
    stack.advance(TimeDelta::seconds(311));
    eventually("the end of the rollback", || async {
        (get_rollout(&caller, &rollout).await.state() == RolloutState::RolledBack).then_some(())
    })
    .await;
    let next = ship(&caller, "1.2", &[5000]).await;
    applied(&stack, 1).await;
    roll_back(&caller, &next).await;
    eventually("a rollback that the link confirms", || async {
        (get_rollout(&caller, &next).await.state() == RolloutState::RolledBack).then_some(())
    })
    .await;
}

#[tokio::test]
async fn without_release_svc_nobody_new_goes_to_the_canary_when_the_lease_is_over() {
    let (mut stack, caller) = start().await;
    let rollout = ship(&caller, "1.1", &[5000]).await;
    applied(&stack, 1).await;
    let before = visits(&caller, 20).await;
    stack.stop_release().await;
    stack.advance(TimeDelta::seconds(299));
    for (session, arm) in visits(&caller, 20).await {
        assert_eq!(arm == Arm::Canary, hashed(&rollout, &session) < 5000, "the lease still holds");
    }
    stack.advance(TimeDelta::seconds(2));
    assert!(
        visits(&caller, 20)
            .await
            .iter()
            .all(|(session, arm)| (pin(&session.pins).0, *arm) == ("1.0", Arm::Control))
    );
    // Whoever is on the canary stays, also in the next visit.
    assert_eq!(served(&caller, one(&before, Arm::Canary)).await, ("1.1".to_owned(), Arm::Canary));
    assert_eq!(served(&caller, one(&before, Arm::Control)).await, ("1.0".to_owned(), Arm::Control));
}

#[tokio::test]
async fn session_svc_goes_on_with_the_stored_table_after_a_restart_without_release_svc() {
    let (mut stack, caller) = start().await;
    let rollout = ship(&caller, "1.1", &[5000]).await;
    applied(&stack, 1).await;
    let before = visits(&caller, 20).await;
    let address = stack.stop_release().await;
    stack.stop_session().await;
    let options = Options { release: Some(address), ..Options::default() };
    let session = stack.session_svc(&options);
    stack.session = Some(session);
    let caller = stack.caller(&person("ada"));
    for (session, arm) in &before {
        assert_eq!(served(&caller, session).await.1, *arm);
    }
    assert!(visits(&caller, 10).await.iter().all(|visit| visit.1 == Arm::Control), "there is no lease yet");
    // When release-svc is back, so is the canary.
    let release = stack.release_svc(&Options { listen: address, ..Options::default() });
    stack.release = Some(release);
    eventually("the canary", || async {
        let fresh = create_session_with_pins(&caller).await;
        (hashed(&rollout, &fresh) < 5000 && pin(&fresh.pins).1 == Arm::Canary).then_some(())
    })
    .await;
}

#[tokio::test]
async fn replicas_agree_on_every_visit() {
    let (stack, caller) = start().await;
    let replica = stack.session_svc(&stack.linked());
    let other = caller.at_session(&replica);
    let rollout = ship(&caller, "1.1", &[5000]).await;
    applied(&stack, 2).await;
    for (session, arm) in visits(&caller, 20).await {
        assert_eq!(arm == Arm::Canary, hashed(&rollout, &session) < 5000);
        assert_eq!(served(&other, &session).await.1, arm);
        assert_eq!(pin(&validate_strong(&other, &session.session_token).await.pins).1, arm);
    }
}
