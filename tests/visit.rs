//! What holds a visit on its releases, what ends it all the same, and the table of routes that decides.

use chrono::TimeDelta;
use shared::issuer::Grant;
use shared::pb::release as rpb;
use shared::pb::session as pb;
use shared::pb::session::session_selector::Session as Named;
use shared::pb::session::{Arm, Verdict};
use shared::time::to_proto;
use tonic::Code;

use crate::harness::router::{Router, moving, release, rolled_back, rolling, stable, with_rollout};
use crate::harness::shop::{
    add_line, begin_checkout, complete_checkout, create_session, create_session_with_pins, create_touchpoint,
    get_cart, pin, revoke, seconds, validate, validate_strong, web,
};
use crate::harness::{Answer as _, Caller, Stack, eventually, person};

/// session-svc, linked to a stand-in that sends routes; a touchpoint whose visits end after five minutes; 1.0 everywhere.
pub(crate) async fn start() -> (Stack, Router, Caller) {
    let mut stack = Stack::prepare();
    let router = Router::start(&stack).await;
    stack.session = Some(stack.session_svc(&router.linked()));
    let caller = stack.caller(&person("ada"));
    // Visits end after five minutes, sessions not: the touches of a replica that is killed are lost with it.
    let (visit_gap, idle_timeout) = (Some(seconds(300)), Some(seconds(86_400)));
    let session_policy = Some(pb::SessionPolicy { visit_gap, idle_timeout, ..Default::default() });
    create_touchpoint(&caller, pb::Touchpoint { session_policy, ..web() }).await;
    router.send(stable()).await;
    (stack, router, caller)
}

pub(crate) fn by_token(token: &str) -> pb::SessionSelector {
    pb::SessionSelector { session: Some(Named::SessionToken(token.to_owned())) }
}

pub(crate) fn by_id(id: &str) -> pb::SessionSelector {
    pb::SessionSelector { session: Some(Named::SessionId(id.to_owned())) }
}

pub(crate) fn hold(session: pb::SessionSelector, ttl: i64) -> pb::HoldPinRequest {
    pb::HoldPinRequest {
        session: Some(session),
        reason: "a cart elsewhere".to_owned(),
        ttl: Some(seconds(ttl)),
        ..Default::default()
    }
}

async fn let_go(caller: &Caller, token: &str) {
    let request = pb::ReleasePinRequest { session: Some(by_token(token)), ..Default::default() };
    caller.visits().release_pin(request).await.answer();
}

/// What a session is served now.
pub(crate) async fn served(caller: &Caller, token: &str) -> (String, Arm) {
    let seen = validate(caller, token).await;
    assert_eq!(seen.verdict(), Verdict::Active);
    let (version, arm) = pin(&seen.pins);
    (version.to_owned(), arm)
}

fn on(version: &str, arm: Arm) -> (String, Arm) {
    (version.to_owned(), arm)
}

#[tokio::test]
async fn a_held_visit_stays_while_a_rollback_moves_the_others_until_it_is_let_go_or_its_time_is_over() {
    let (stack, router, caller) = start().await;
    router.send(rolling(10_000, &[])).await;
    let mut tokens = vec![];
    for _ in 0..4 {
        tokens.push(create_session(&caller).await.1);
    }
    for token in &tokens[..3] {
        let held = caller.visits().hold_pin(hold(by_token(token), 3600)).await.answer();
        assert_eq!(pin(&held.pins), ("1.1", Arm::Canary));
        assert_eq!(held.hold_end_time, Some(to_proto(stack.now() + TimeDelta::hours(1))));
    }
    router.send(rolled_back()).await;
    for token in &tokens[..3] {
        assert_eq!(served(&caller, token).await, on("1.1", Arm::Canary));
    }
    assert_eq!(served(&caller, &tokens[3]).await, on("1.0", Arm::Control));
    let_go(&caller, &tokens[0]).await;
    assert_eq!(served(&caller, &tokens[0]).await, on("1.0", Arm::Control));
    // A checkout holds on, whoever lets go, and so does the hold when the checkout is over.
    add_line(&caller, &tokens[1], "85123A", 1).await;
    begin_checkout(&caller, &tokens[1]).await;
    let_go(&caller, &tokens[1]).await;
    assert_eq!(served(&caller, &tokens[1]).await, on("1.1", Arm::Canary));
    add_line(&caller, &tokens[2], "85123A", 1).await;
    begin_checkout(&caller, &tokens[2]).await;
    complete_checkout(&caller, &tokens[2], "order-1").await;
    assert_eq!(served(&caller, &tokens[2]).await, on("1.1", Arm::Canary));
    // A gap is no reason to move, but the end of the time is; what is remembered of the session does not outlive it.
    stack.advance(TimeDelta::minutes(29));
    assert_eq!(served(&caller, &tokens[2]).await, on("1.1", Arm::Canary));
    stack.advance(TimeDelta::minutes(29));
    assert_eq!(served(&caller, &tokens[2]).await, on("1.1", Arm::Canary));
    stack.advance(TimeDelta::minutes(2));
    assert_eq!(served(&caller, &tokens[2]).await, on("1.0", Arm::Control));
}

#[tokio::test]
async fn a_rollout_to_all_sessions_waits_for_a_hold_of_another_replica() {
    let (stack, router, caller) = start().await;
    let replica = stack.session_svc(&router.linked());
    let other = caller.at_session(&replica);
    let (held, free) = (create_session(&caller).await, create_session(&caller).await);
    assert_eq!(served(&caller, &held.1).await, on("1.0", Arm::Unspecified));
    other.visits().hold_pin(hold(by_id(&held.0.session_id), 60)).await.answer();
    router.send_to(2, moving(rolling(10_000, &[]))).await;
    assert_eq!(served(&caller, &held.1).await, on("1.0", Arm::Unspecified));
    assert_eq!(served(&caller, &free.1).await, on("1.1", Arm::Canary));
    stack.advance(TimeDelta::seconds(61));
    assert_eq!(served(&caller, &held.1).await, on("1.1", Arm::Canary));
}

#[tokio::test]
async fn a_release_that_is_ended_ends_visits_whatever_holds_them_and_nothing_else() {
    let (stack, router, caller) = start().await;
    router.send(rolling(10_000, &[])).await;
    let (held, paying) = (create_session(&caller).await, create_session(&caller).await);
    caller.visits().hold_pin(hold(by_token(&held.1), 3600)).await.answer();
    let cart = add_line(&caller, &paying.1, "85123A", 3).await;
    begin_checkout(&caller, &paying.1).await;
    stack.advance(TimeDelta::minutes(1));
    router
        .send(rpb::Route { ended_release_ids: vec![release(1).release_id], ..rolled_back() })
        .await;
    for (session, token) in [&held, &paying] {
        let seen = validate(&caller, token).await;
        let now = seen.session.as_ref().unwrap();
        assert_eq!((pin(&seen.pins).0, &now.session_id), ("1.0", &session.session_id));
        assert_eq!(now.visit_start_time, Some(to_proto(stack.now())), "a new visit");
        // Also when it is written, and read again.
        eventually("the visit to be written", || async {
            let read = validate_strong(&caller, token).await;
            let request = pb::GetSessionRequest { session_id: session.session_id.clone() };
            let stored = caller.sessions().get_session(request).await.answer();
            (pin(&read.pins).0 == "1.0" && pin(&stored.pins).0 == "1.0").then_some(())
        })
        .await;
        assert_eq!(validate(&caller, token).await.session.unwrap().visit_start_time, now.visit_start_time);
    }
    assert_eq!(get_cart(&caller, &paying.1).await.lines, cart.lines);
    complete_checkout(&caller, &paying.1, "order-1").await;
}

#[tokio::test]
async fn a_rollback_that_lets_visits_finish_takes_nobody_new() {
    let (stack, router, caller) = start().await;
    router.send(rolling(10_000, &[])).await;
    let (_, token) = create_session(&caller).await;
    for finishing in [rolling(0, &[]), stable()] {
        router.send(finishing).await;
        assert_eq!(served(&caller, &token).await, on("1.1", Arm::Canary));
        assert_eq!(pin(&create_session_with_pins(&caller).await.pins).0, "1.0");
    }
    stack.advance(TimeDelta::minutes(6));
    assert_eq!(served(&caller, &token).await.0, "1.0");
    // Nobody comes back, whatever the rollout does later.
    router.send(rolling(10_000, &[])).await;
    stack.advance(TimeDelta::minutes(6));
    assert_eq!(served(&caller, &token).await, on("1.0", Arm::Control));
}

#[tokio::test]
async fn a_hold_is_refused_with_what_is_wrong_with_it() {
    let (stack, _router, caller) = start().await;
    let (session, token) = create_session(&caller).await;
    let mut visits = caller.visits();
    for (ttl, reason) in [(4 * 3600 + 1, "why"), (0, "why"), (60, ""), (60, "a\nb")] {
        let request = pb::HoldPinRequest { reason: reason.to_owned(), ..hold(by_token(&token), ttl) };
        visits.hold_pin(request).await.refused(Code::InvalidArgument, "FIELD_INVALID");
    }
    visits
        .hold_pin(pb::HoldPinRequest { session: None, ..hold(by_token(&token), 60) })
        .await
        .refused(Code::InvalidArgument, "FIELD_INVALID");
    let nobody = by_id("ses_00000000000000000000000000000000");
    visits
        .hold_pin(hold(nobody, 60))
        .await
        .refused(Code::NotFound, "SESSION_NOT_FOUND");
    let nobody = by_token("tds_x");
    visits
        .hold_pin(hold(nobody, 60))
        .await
        .refused(Code::FailedPrecondition, "SESSION_UNKNOWN");
    let writer = stack.caller(&Grant { scope: "session.write".to_owned(), ..person("bob") });
    let by_id = || by_id(&session.session_id);
    writer
        .visits()
        .hold_pin(hold(by_id(), 60))
        .await
        .refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
    writer.visits().hold_pin(hold(by_token(&token), 60)).await.answer();
    let request = pb::ReleasePinRequest { session: Some(by_id()), ..Default::default() };
    writer
        .visits()
        .release_pin(request)
        .await
        .refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
    revoke(&caller, &session).await;
    visits
        .hold_pin(hold(by_id(), 60))
        .await
        .refused(Code::FailedPrecondition, "SESSION_REVOKED");
}

#[tokio::test]
async fn a_route_that_makes_no_sense_stays_as_it_was_and_one_that_is_gone_is_gone() {
    let (stack, router, caller) = start().await;
    router.send(rolling(10_000, &[])).await;
    let other = rpb::Route { component: "api".to_owned(), revision: 100, ..stable() };
    let nonsense = with_rollout(rolling(10_000, &[]), |rollout| rollout.exposure_bps = 10_001);
    let nonsense = rpb::Route { revision: 99, ..nonsense };
    let nobodys = rpb::Route { tenant: "No one".to_owned(), ..stable() };
    router.send_snapshot(vec![nobodys, nonsense, other]);
    let kept = "select count(*) from session.routes where component_id = 'api' or rollout_id is not null";
    eventually("the routes that make sense", || async {
        (stack.database.count(kept).await == 2).then_some(())
    })
    .await;
    assert_eq!(pin(&create_session_with_pins(&caller).await.pins), ("1.1", Arm::Canary));
    let only = rpb::Route { component: "api".to_owned(), revision: 100, ..stable() };
    router.send_snapshot(vec![only]);
    eventually("the others to go", || async {
        let left = stack.database.count("select count(*) from session.routes").await;
        (left == 1 && create_session_with_pins(&caller).await.pins.is_empty()).then_some(())
    })
    .await;
}
