//! How rollouts go, as release-svc is told: every session that chance dealt an arm once, every outcome once, live visits, and
//! all of it exact whoever is killed meanwhile.

use chrono::TimeDelta;
use session_svc::domain::visit::bucket;
use shared::pb::release as rpb;
use shared::pb::session as pb;
use shared::pb::session::Arm;
use tonic::Code;

use crate::harness::router::{Router, moving, rolled_back, rolling, rollout_id, with_rollout};
use crate::harness::shop::{
    add_line, begin_checkout, complete_checkout, create_session, create_session_with_pins, owner, pin,
    request_id, session_id, validate, validate_strong,
};
use crate::harness::{Answer as _, Caller, eventually};
use crate::visit::{by_id, by_token, hold, served, start};

/// So many sessions that begin now, and their arms.
async fn sessions(caller: &Caller, count: usize) -> Vec<(String, Arm)> {
    let mut sessions = vec![];
    for _ in 0..count {
        let created = create_session_with_pins(caller).await;
        let arm = pin(&created.pins).1;
        let by_hash = bucket("salt", session_id(created.session.as_ref().unwrap())) < 5000;
        assert_eq!(arm == Arm::Canary, by_hash);
        sessions.push((created.session_token, arm));
    }
    sessions
}

fn count(sessions: &[(String, Arm)], arm: Arm) -> i64 {
    i64::try_from(sessions.iter().filter(|session| session.1 == arm).count()).unwrap()
}

fn outcome(session: pb::SessionSelector, guard: &str) -> pb::RecordOutcomeRequest {
    pb::RecordOutcomeRequest { session: Some(session), guard: guard.to_owned(), request_id: String::new() }
}

pub(crate) async fn record(caller: &Caller, token: &str, guard: &str) -> bool {
    caller
        .visits()
        .record_outcome(outcome(by_token(token), guard))
        .await
        .answer()
        .recorded
}

async fn fail_checkout(caller: &Caller, token: &str) {
    let request = pb::FailCheckoutRequest {
        owner: Some(owner(token)),
        currency_code: "EUR".to_owned(),
        reason: pb::CheckoutFailure::PaymentDeclined.into(),
        request_id: String::new(),
    };
    caller.carts().fail_checkout(request).await.answer();
}

async fn check_out(caller: &Caller, token: &str) {
    add_line(caller, token, "85123A", 1).await;
    begin_checkout(caller, token).await;
}

#[tokio::test]
async fn every_session_that_chance_dealt_an_arm_counts_once_and_so_does_what_becomes_of_it() {
    let (_stack, router, caller) = start().await;
    let (_, before) = create_session(&caller).await;
    router.send(rolling(5000, &["checkout", "purchase", "slow"])).await;
    let sessions = sessions(&caller, 24).await;
    let tokens = |arm| {
        let of = sessions.iter().filter(move |session| session.1 == arm);
        of.map(|session| session.0.clone()).collect::<Vec<_>>()
    };
    let (canaries, controls) = (tokens(Arm::Canary), tokens(Arm::Control));
    // One that fails twice and then buys has one outcome of each guard.
    check_out(&caller, &canaries[0]).await;
    fail_checkout(&caller, &canaries[0]).await;
    begin_checkout(&caller, &canaries[0]).await;
    fail_checkout(&caller, &canaries[0]).await;
    begin_checkout(&caller, &canaries[0]).await;
    complete_checkout(&caller, &canaries[0], "order-1").await;
    check_out(&caller, &controls[0]).await;
    complete_checkout(&caller, &controls[0], "order-2").await;
    for token in &controls[..2] {
        assert!(record(&caller, token, "slow").await);
        assert!(record(&caller, token, "slow").await, "it counts since before");
    }
    assert!(!record(&caller, &controls[0], "fast").await, "nobody asks");
    check_out(&caller, &before).await;
    complete_checkout(&caller, &before, "order-3").await;
    assert!(!record(&caller, &before, "slow").await, "chance dealt it nothing");
    let (canary, control) = (count(&sessions, Arm::Canary), count(&sessions, Arm::Control));
    let expected = [
        (0, true, "", canary),
        (0, false, "", control),
        (0, true, "checkout", 1),
        (0, true, "purchase", 1),
        (0, false, "purchase", 1),
        (0, false, "slow", 2),
    ];
    router.told_of(rollout_id(9), &expected).await;
    // Whatever the rollout does later, they are what they were.
    router.send(rolled_back()).await;
    assert_eq!(served(&caller, &canaries[0]).await.0, "1.0");
    router.told_of(rollout_id(9), &expected).await;
}

fn at_step(step: i32, route: rpb::Route) -> rpb::Route {
    with_rollout(route, |rollout| rollout.step = step)
}

/// One of them on an arm.
fn one(sessions: &[(String, Arm)], arm: Arm) -> String {
    sessions.iter().find(|session| session.1 == arm).unwrap().0.clone()
}

#[tokio::test]
async fn outcomes_are_booked_in_the_step_of_assignment() {
    let (_stack, router, caller) = start().await;
    router.send(at_step(0, rolling(5000, &["slow"]))).await;
    let early = sessions(&caller, 8).await;
    router.send(at_step(1, rolling(5000, &["slow"]))).await;
    let late = sessions(&caller, 8).await;
    for (sessions, arm) in [(&early, Arm::Canary), (&early, Arm::Control), (&late, Arm::Canary)] {
        assert!(record(&caller, &one(sessions, arm), "slow").await);
    }
    let expected = [
        (0, true, "", count(&early, Arm::Canary)),
        (0, false, "", count(&early, Arm::Control)),
        (1, true, "", count(&late, Arm::Canary)),
        (1, false, "", count(&late, Arm::Control)),
        (0, true, "slow", 1),
        (0, false, "slow", 1),
        (1, true, "slow", 1),
    ];
    router.told_of(rollout_id(9), &expected).await;
}

/// Where running visits move, too, a session is a unit of each step in which it is dealt an arm, moved by that or not; one
/// that is held, or not seen, is not, and its outcome is of the step before.
#[tokio::test]
async fn outcomes_are_booked_in_the_step_of_the_last_deal() {
    let (_stack, router, caller) = start().await;
    router.send(at_step(0, moving(rolling(5000, &["slow", "purchase"])))).await;
    let all = sessions(&caller, 24).await;
    let (canary, control) = (count(&all, Arm::Canary), count(&all, Arm::Control));
    let of = |arm| all.iter().filter(move |session| session.1 == arm).map(|session| &session.0);
    let [held, unseen, moved] = of(Arm::Control).take(3).collect::<Vec<_>>()[..] else { panic!("too few") };
    let stays = of(Arm::Canary).next().unwrap();
    check_out(&caller, held).await;
    router.send(at_step(2, moving(rolling(10_000, &["slow", "purchase"])))).await;
    for _ in 0..2 {
        assert_eq!(served(&caller, held).await.1, Arm::Control);
        assert_eq!(served(&caller, moved).await.1, Arm::Canary);
        assert_eq!(served(&caller, stays).await.1, Arm::Canary);
    }
    for token in [unseen, moved, stays] {
        assert!(record(&caller, token, "slow").await);
    }
    complete_checkout(&caller, held, "order-1").await;
    let mut expected = vec![
        (0, true, "", canary),
        (0, false, "", control),
        (2, true, "", 2),
        (2, true, "slow", 2),
        (0, false, "slow", 1),
        (0, false, "purchase", 1),
    ];
    router.told_of(rollout_id(9), &expected).await;
    // Held no longer, it is dealt an arm with its next call; what was booked stays.
    assert_eq!(served(&caller, held).await.1, Arm::Canary);
    expected[2].3 = 3;
    router.told_of(rollout_id(9), &expected).await;
}

/// A visit that a cart's change began, and that is not written yet, is a unit of its step, too.
#[tokio::test]
async fn what_a_visit_was_dealt_that_is_not_written_yet_is_not_lost_when_it_is_dealt_to_again() {
    let (stack, router, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    router.send(at_step(0, moving(rolling(5000, &[])))).await;
    stack.advance(TimeDelta::minutes(6));
    eventually("the lease after the jump of the clock", || async {
        (pin(&create_session_with_pins(&caller).await.pins).1 == Arm::Canary).then_some(())
    })
    .await;
    add_line(&caller, &token, "85123A", 1).await;
    router.send(at_step(1, moving(rolling(10_000, &[])))).await;
    assert_eq!(served(&caller, &token).await.1, Arm::Canary);
    let dealt = "select count(*) from session.redeals join session.enrolments using (tenant_id, session_id, rollout_id) \
                 where redeals.step = 1 and enrolments.step = 0";
    assert_eq!(stack.database.count(dealt).await, 1);
}

/// Nobody was answered what a replica dealt and another one had dealt by then.
#[tokio::test]
async fn what_was_dealt_by_a_visit_that_another_replica_replaced_is_no_unit() {
    let (stack, router, here) = start().await;
    let behind = Router::start(&stack).await;
    let replica = stack.session_svc(&behind.linked());
    let there = here.at_session(&replica);
    let early = [create_session(&here).await.1, create_session(&here).await.1, create_session(&here).await.1];
    stack.advance(TimeDelta::minutes(6));
    // The replicas are at different steps, as they may be for a moment.
    router.send(at_step(1, moving(rolling(10_000, &[])))).await;
    behind.send(at_step(0, moving(rolling(1, &[])))).await;
    for token in &early {
        add_line(&here, token, "85123A", 1).await;
        validate_strong(&there, token).await;
        here.visits().hold_pin(hold(by_token(token), 60)).await.answer();
    }
    let replaced = "select count(*) from session.enrolments where step = 0";
    assert!(stack.database.count(replaced).await > 0, "the first replica wrote first, each time");
    assert_eq!(stack.database.count("select count(*) from session.redeals").await, 0);
}

#[tokio::test]
async fn a_visit_that_moves_as_all_do_is_no_unit_and_its_next_one_is() {
    let (stack, router, caller) = start().await;
    let (_, running) = create_session(&caller).await;
    router.send(moving(rolling(10_000, &["slow"]))).await;
    assert_eq!(served(&caller, &running).await.1, Arm::Canary);
    assert!(!record(&caller, &running, "slow").await);
    stack.advance(TimeDelta::minutes(6));
    eventually("the lease after the jump of the clock", || async {
        (pin(&create_session_with_pins(&caller).await.pins).1 == Arm::Canary).then_some(())
    })
    .await;
    assert_eq!(served(&caller, &running).await.1, Arm::Canary);
    // Though its visit may not be written yet, it is known here.
    assert!(record(&caller, &running, "slow").await);
}

#[tokio::test]
async fn an_abandoned_checkout_is_a_failed_one() {
    let (stack, router, caller) = start().await;
    router.send(rolling(10_000, &["checkout"])).await;
    let (_, token) = create_session(&caller).await;
    check_out(&caller, &token).await;
    stack.advance(TimeDelta::minutes(59));
    stack.advance(TimeDelta::minutes(3));
    router
        .told_of(rollout_id(9), &[(0, true, "", 1), (0, true, "checkout", 1)])
        .await;
    // And stays one when it runs out.
    stack.advance(TimeDelta::hours(24));
    let failed = "select count(*) from session.events where kind = 'cart.checkout_failed'";
    eventually("the end of the checkout", || async {
        (stack.database.count(failed).await == 1).then_some(())
    })
    .await;
    router
        .told_of(rollout_id(9), &[(0, true, "", 1), (0, true, "checkout", 1)])
        .await;
}

#[tokio::test]
async fn an_outcome_is_refused_with_what_is_wrong_with_it_and_repeated_once() {
    let (_stack, router, caller) = start().await;
    router.send(rolling(10_000, &["slow"])).await;
    let (session, token) = create_session(&caller).await;
    let mut visits = caller.visits();
    for guard in ["", "Slow", "a b", &"a".repeat(64)] {
        let refused = visits.record_outcome(outcome(by_token(&token), guard)).await;
        refused.refused(Code::InvalidArgument, "FIELD_INVALID");
    }
    let nameless = pb::RecordOutcomeRequest { session: None, ..outcome(by_token(&token), "slow") };
    let refused = visits.record_outcome(nameless).await;
    refused.refused(Code::InvalidArgument, "FIELD_INVALID");
    let nobody = by_id("ses_00000000000000000000000000000000");
    let refused = visits.record_outcome(outcome(nobody, "slow")).await;
    refused.refused(Code::NotFound, "SESSION_NOT_FOUND");
    let refused = visits.record_outcome(outcome(by_token("tds_x"), "slow")).await;
    refused.refused(Code::FailedPrecondition, "SESSION_UNKNOWN");
    let once =
        pb::RecordOutcomeRequest { request_id: request_id(1), ..outcome(by_id(&session.session_id), "slow") };
    for _ in 0..2 {
        assert!(visits.record_outcome(once.clone()).await.answer().recorded);
    }
    // The token names the same session, so it is the same request.
    let by_token = pb::RecordOutcomeRequest { session: Some(by_token(&token)), ..once.clone() };
    assert!(visits.record_outcome(by_token).await.answer().recorded);
    let other = pb::RecordOutcomeRequest { guard: "fast".to_owned(), ..once };
    let refused = visits.record_outcome(other).await;
    refused.refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
}

/// Two replicas add up what either wrote; one is killed again and again.
#[tokio::test]
async fn sums_are_exact_though_replicas_are_killed_between_writing_and_adding_up() {
    let (mut stack, router, caller) = start().await;
    router.send(rolling(10_000, &["slow"])).await;
    // Adding up takes a while, so that who is killed is so midway.
    let slow = "create function session.dawdle() returns trigger language plpgsql as \
                $$ begin perform pg_sleep(0.02); return new; end $$; \
                create trigger dawdle before insert or update on session.signal_counts \
                for each row execute function session.dawdle()";
    sqlx::raw_sql(slow).execute(&mut stack.database.connect().await).await.unwrap();
    for _ in 0..6 {
        let replica = stack.session_svc(&router.linked());
        let there = caller.at_session(&replica);
        for asked in [&caller, &there, &caller, &there] {
            let (_, token) = create_session(asked).await;
            record(asked, &token, "slow").await;
        }
        // What it has not added up, somebody else does.
        drop(replica);
    }
    stack.stop_session().await;
    stack.session = Some(stack.session_svc(&router.linked()));
    // A replica that has just begun deals nobody an arm until it hears of release-svc.
    let units = stack.database.count("select count(*) from session.enrolments").await;
    let outcomes = stack.database.count("select count(*) from session.outcomes").await;
    assert!((12..=24).contains(&units) && outcomes == units, "{units} {outcomes}");
    router
        .told_of(rollout_id(9), &[(0, true, "", units), (0, true, "slow", outcomes)])
        .await;
}

#[tokio::test]
async fn live_visits_are_counted_by_the_release_that_they_are_on() {
    let (stack, router, caller) = start().await;
    let rollout = rollout_id(9);
    let visits = |canary, control| {
        let router = &router;
        async move {
            eventually("the count", || async {
                (router.visits(rollout) == Some((canary, control))).then_some(())
            })
            .await;
        }
    };
    let before = [create_session(&caller).await.1, create_session(&caller).await.1];
    router.send(rolling(10_000, &[])).await;
    let paying = create_session(&caller).await.1;
    create_session(&caller).await;
    visits(2, 2).await;
    check_out(&caller, &paying).await;
    stack.advance(TimeDelta::minutes(4));
    validate(&caller, &before[0]).await;
    stack.advance(TimeDelta::minutes(2));
    // A checkout holds its visit on the release, however long ago it was seen.
    visits(1, 1).await;
}
