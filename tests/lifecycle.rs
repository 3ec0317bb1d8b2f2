//! Load, deadlines, and the end: nobody waits without limit, and nothing that was begun is left half done.

use std::time::{Duration, Instant};

use shared::edge::Limits;
use shared::pb::session as pb;
use shared::pb::session::Verdict;
use sqlx::Connection as _;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use crate::harness::shop::{
    add_line, create_session, create_touchpoint, get_cart, line, validate, validation, web,
};
use crate::harness::{
    Answer as _, Caller, Options, Stack, Watch, assert_refused, eventually, reason_of, workload,
};

async fn start() -> (Stack, Caller, String) {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    let (_, token) = create_session(&caller).await;
    add_line(&caller, &token, "85123A", 1).await;
    (stack, caller, token)
}

/// Connections that are in a transaction, the asking one aside.
async fn in_transaction(stack: &Stack) -> i64 {
    let mut db = stack.database.connect().await;
    let sql = "select count(*) from pg_stat_activity where datname = current_database() \
               and pid <> pg_backend_pid() and xact_start is not null and application_name = 'session-svc'";
    sqlx::query_scalar(sql).fetch_one(&mut db).await.unwrap()
}

#[tokio::test]
async fn beyond_its_places_a_server_refuses_at_once_and_says_when_to_try_again() {
    let (mut stack, _, token) = start().await;
    stack.stop_session().await;
    let limits = Options::default().limits;
    let session =
        stack.session_svc(&Options { limits: Limits { in_flight: 1, ..limits }, ..Options::default() });
    stack.session = Some(session);
    let caller = stack.caller(&workload("storefront"));
    let mut lock = stack.database.connect().await;
    let mut held = lock.begin().await.unwrap();
    sqlx::query("select from session.carts for update")
        .execute(&mut *held)
        .await
        .unwrap();
    let (waiting, also) = (caller.clone(), token.clone());
    let slow = async move { waiting.carts().add_cart_line(line(&also, "71053", 1)).await };
    let refused = async {
        eventually("the first call's wait", || async { (in_transaction(&stack).await > 0).then_some(()) })
            .await;
        let began = Instant::now();
        let request = validation(&token, pb::Consistency::Bounded);
        let status = caller
            .sessions()
            .validate_session(request)
            .await
            .refused(Code::ResourceExhausted, "OVERLOADED");
        assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
        assert!(began.elapsed() < Duration::from_millis(500));
        held.rollback().await.unwrap();
    };
    let (slow, ()) = tokio::join!(slow, refused);
    slow.answer();
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active, "there is room again");
}

#[tokio::test]
async fn a_deadline_bounds_the_statement_and_leaves_no_transaction_open() {
    let (stack, caller, token) = start().await;
    let mut lock = stack.database.connect().await;
    let mut held = lock.begin().await.unwrap();
    sqlx::query("select from session.carts for update")
        .execute(&mut *held)
        .await
        .unwrap();
    let began = Instant::now();
    let status = loop {
        let mut request = Request::new(line(&token, "71053", 1));
        request.metadata_mut().insert("grpc-timeout", "200m".parse().unwrap());
        let status = caller.carts().add_cart_line(request).await.unwrap_err();
        // The client keeps the time, too; now and then it is first, and what the server said is not seen.
        if !reason_of(&status).is_empty() || began.elapsed() > Duration::from_secs(10) {
            break status;
        }
    };
    assert_refused(&status, Code::DeadlineExceeded, "DEADLINE_PASSED");
    eventually("the end of the transaction", || async { (in_transaction(&stack).await == 0).then_some(()) })
        .await;
    held.rollback().await.unwrap();
    assert_eq!(get_cart(&caller, &token).await.lines.len(), 1, "what was told to be unknown did not happen");
}

#[tokio::test]
async fn a_lock_that_is_not_given_back_is_another_change_in_the_way() {
    let (stack, caller, token) = start().await;
    let mut lock = stack.database.connect().await;
    let mut held = lock.begin().await.unwrap();
    sqlx::query("select from session.carts for update")
        .execute(&mut *held)
        .await
        .unwrap();
    let refused = caller.carts().add_cart_line(line(&token, "71053", 1)).await;
    let status = refused.refused(Code::Aborted, "CONCURRENT_CHANGE");
    assert!(status.get_details_retry_info().is_some());
    held.rollback().await.unwrap();
    add_line(&caller, &token, "71053", 1).await;
}

#[tokio::test]
async fn a_caller_who_hangs_up_leaves_no_change_half_done() {
    let (stack, caller, token) = start().await;
    let mut lock = stack.database.connect().await;
    for n in 0..5 {
        let mut held = lock.begin().await.unwrap();
        sqlx::query("select from session.carts for update")
            .execute(&mut *held)
            .await
            .unwrap();
        let mut carts = caller.carts();
        let call = carts.add_cart_line(line(&token, &format!("sku-{n}"), 1));
        assert!(
            tokio::time::timeout(Duration::from_millis(100), call).await.is_err(),
            "it waits, and is dropped"
        );
        held.commit().await.unwrap();
    }
    eventually("the end of the transactions", || async { (in_transaction(&stack).await == 0).then_some(()) })
        .await;
    let mut db = stack.database.connect().await;
    let events = "select count(*) from session.events where kind = 'cart.line_added'";
    let events: i64 = sqlx::query_scalar(events).fetch_one(&mut db).await.unwrap();
    let lines = get_cart(&caller, &token).await.lines.len();
    assert_eq!(usize::try_from(events).unwrap(), lines, "a line and its event, or neither");
    add_line(&caller, &token, "last", 1).await;
}

#[tokio::test]
async fn a_stop_lets_calls_finish_tells_streams_to_reconnect_and_loses_nothing() {
    let (mut stack, caller, token) = start().await;
    let mut watch = Watch::open(caller.session_events()).await;
    let mut lock = stack.database.connect().await;
    let mut held = lock.begin().await.unwrap();
    sqlx::query("select from session.carts for update")
        .execute(&mut *held)
        .await
        .unwrap();
    let (waiting, also) = (caller.clone(), token.clone());
    let in_flight = async move { waiting.carts().add_cart_line(line(&also, "71053", 1)).await };
    let stopping = async {
        eventually("the call's wait", || async { (in_transaction(&stack).await > 0).then_some(()) }).await;
        stack.session.as_ref().unwrap().tell_to_stop();
        let status = watch.try_next().await.unwrap_err();
        assert_refused(&status, Code::Unavailable, "SHUTTING_DOWN");
        held.commit().await.unwrap();
    };
    let (in_flight, ()) = tokio::join!(in_flight, stopping);
    in_flight.answer();
    drop(watch);
    stack.stop_session().await;
    let session = stack.session_svc(&Options::default());
    stack.session = Some(session);
    let caller = stack.caller(&workload("storefront"));
    assert_eq!(get_cart(&caller, &token).await.lines.len(), 2);
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
}

#[tokio::test]
async fn what_was_seen_last_is_written_before_the_end() {
    let (mut stack, caller, token) = start().await;
    stack.advance(chrono::TimeDelta::minutes(29));
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
    stack.stop_session().await;
    stack.advance(chrono::TimeDelta::minutes(29));
    let session = stack.session_svc(&Options::default());
    stack.session = Some(session);
    let caller = stack.caller(&workload("storefront"));
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
}

#[tokio::test]
async fn a_service_waits_for_a_database_that_is_not_there_yet() {
    let mut stack = Stack::prepare();
    stack.database.set_open(false);
    let session = stack.session_svc(&Options::default());
    stack.session = Some(session);
    tokio::time::sleep(Duration::from_millis(300)).await;
    stack.database.set_open(true);
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
}
