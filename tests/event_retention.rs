//! How long events are kept, and that nobody misses one in silence because it is gone.

use std::time::Duration;

use chrono::TimeDelta;
use serde_json::json;
use shared::outbox::Event;
use shared::pb::common::watch_events_response::Message;
use shared::pb::common::{WatchEventsRequest, Webhook};
use sqlx::{Connection as _, PgConnection};
use tonic::Code;

use crate::harness::hook::{arrived, create_webhook, to};
use crate::harness::{Caller, Options, Receiver, Stack, Watch, assert_refused, eventually, workload};

const COUNT: &str = "select count(*) from session.events where kind = 'test.counted'";

async fn write(stack: &Stack, db: &mut PgConnection, count: usize) {
    write_padded(stack, db, count, 0).await;
}

async fn write_padded(stack: &Stack, db: &mut PgConnection, count: usize, padding: usize) {
    let event = |n| Event {
        tenant: "shop".parse().unwrap(),
        kind: "test.counted",
        subject: "counter".to_owned(),
        principal: "system".to_owned(),
        at: stack.now(),
        data: json!({"n": n, "padding": "x".repeat(padding)}),
        trace_parent: String::new(),
    };
    let events: Vec<_> = (0..count).map(event).collect();
    session_svc::OUTBOX.append_all(db, &events).await.unwrap();
}

async fn kept(stack: &Stack, count: i64) {
    eventually("so many events are kept", || async {
        (stack.database.count(COUNT).await == count).then_some(())
    })
    .await;
}

async fn resume(caller: &Caller, token: &str) -> Result<Watch, tonic::Status> {
    let request = WatchEventsRequest { resume_token: token.to_owned(), ..WatchEventsRequest::default() };
    Watch::with(caller.session_events(), request).await
}

/// A stream says so after its first response at the latest.
async fn expired(caller: &Caller, token: &str) {
    let ended = match resume(caller, token).await {
        Ok(mut watch) => watch.try_next().await.map(|event| event.subject),
        Err(status) => Err(status),
    };
    let status = ended.expect_err("events are gone that it has not seen");
    assert_refused(&status, Code::FailedPrecondition, "RESUME_TOKEN_EXPIRED");
    assert!(status.message().contains("watch without a token"), "{}", status.message());
}

#[tokio::test]
async fn a_token_that_has_not_seen_all_that_was_deleted_has_expired_and_later_ones_go_on() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("reader"));
    let mut db = stack.database.connect().await;
    // Someone else's transaction, older than everything, must not spoil tokens.
    let mut idle = stack.database.connect().await;
    sqlx::raw_sql("begin; select pg_current_xact_id()")
        .execute(&mut idle)
        .await
        .unwrap();
    let before = Watch::open(caller.session_events()).await.token;
    write(&stack, &mut db, 600).await;
    let mut watch = resume(&caller, &before).await.unwrap();
    for _ in 0..300 {
        watch.next().await;
    }
    let midway = watch.token.clone();
    for _ in 300..600 {
        watch.next().await;
    }
    // Its events are in, and of those that follow it sees none.
    let after = Watch::open(caller.session_events()).await.token;
    stack.advance(TimeDelta::hours(71));
    write(&stack, &mut db, 5).await;
    resume(&caller, &before).await.unwrap().next().await;
    stack.advance(TimeDelta::hours(1));
    kept(&stack, 5).await;
    expired(&caller, &before).await;
    expired(&caller, &midway).await;
    let mut later = resume(&caller, &after).await.unwrap();
    for _ in 0..5 {
        later.next().await;
    }
    // A stream that is open goes on, too.
    for _ in 0..5 {
        watch.next().await;
    }
    let now = Watch::open(caller.session_events()).await.token;
    stack.advance(TimeDelta::hours(72));
    kept(&stack, 0).await;
    expired(&caller, &after).await;
    resume(&caller, &now).await.unwrap();
    drop(idle.close().await);
}

#[tokio::test]
async fn a_late_commit_of_an_old_event_is_seen_before_it_is_deleted_or_the_token_expires() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("reader"));
    let mut late = stack.database.connect().await;
    let mut late = late.begin().await.unwrap();
    write(&stack, &mut late, 1).await;
    let token = Watch::open(caller.session_events()).await.token;
    let mut db = stack.database.connect().await;
    write(&stack, &mut db, 1).await;
    let seen = {
        let mut watch = resume(&caller, &token).await.unwrap();
        watch.next().await;
        watch.token
    };
    stack.advance(TimeDelta::hours(73));
    kept(&stack, 0).await;
    // All that was deleted, it has seen; the late one is not there yet.
    resume(&caller, &seen).await.unwrap();
    late.commit().await.unwrap();
    kept(&stack, 0).await;
    eventually("the late one is deleted unseen, and said to be", || async {
        let mut watch = match resume(&caller, &seen).await {
            Ok(watch) => watch,
            Err(status) => return Some(status),
        };
        let next = tokio::time::timeout(Duration::from_millis(200), watch.try_next()).await;
        next.ok()?.err()
    })
    .await;
}

#[tokio::test]
async fn retention_is_what_is_configured_and_release_svc_keeps_its_audit_trail() {
    let mut stack = Stack::releases();
    let hour = Options { event_retention: Some(TimeDelta::hours(1)), ..Options::default() };
    stack.session = Some(stack.session_svc(&hour));
    let caller = stack.caller(&workload("ci"));
    crate::harness::shop::create_catalog(&caller).await;
    let mut db = stack.database.connect().await;
    write(&stack, &mut db, 3).await;
    stack.advance(TimeDelta::hours(1));
    kept(&stack, 0).await;
    stack.advance(TimeDelta::days(300));
    let replica = stack.release_svc(&Options::default());
    let trail = "select count(*) from release.events";
    assert!(stack.database.count(trail).await >= 3);
    let limited = stack.release_svc(&hour);
    eventually("they are deleted where that is configured", || async {
        (stack.database.count(trail).await == 0).then_some(())
    })
    .await;
    drop((replica, limited));
}

#[tokio::test]
async fn nothing_is_deleted_that_webhooks_were_not_told_of() {
    let (mut stack, receiver) = (Stack::sessions(), Receiver::start());
    let caller = stack.caller(&workload("shop-backend"));
    let mut db = stack.database.connect().await;
    create_webhook(&caller, Webhook { types: vec![], ..to(&receiver) }).await;
    // Of itself, to begin with.
    arrived(&receiver, 1).await;
    stack.stop_session().await;
    // Whoever tells stands still, and holds the cursor for it.
    let mut holder = stack.database.connect().await;
    let mut held = holder.begin().await.unwrap();
    sqlx::query("select from session.outbox_positions where name = 'fan_out' for update")
        .execute(&mut *held)
        .await
        .unwrap();
    write(&stack, &mut db, 3).await;
    stack.advance(TimeDelta::hours(73));
    stack.session = Some(stack.session_svc(&Options::default()));
    eventually("everything older is deleted", || async {
        let told = "select count(*) from session.events where kind <> 'test.counted'";
        (stack.database.count(told).await == 0).then_some(())
    })
    .await;
    assert_eq!(stack.database.count(COUNT).await, 3);
    held.rollback().await.unwrap();
    kept(&stack, 0).await;
}

/// The one test that waits: a reader is given ten seconds, which no clock of ours decides.
#[tokio::test]
async fn a_reader_that_does_not_keep_up_is_cut_off_with_a_reason() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("reader"));
    let request = WatchEventsRequest::default();
    let mut stream = caller.session_events().watch_events(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert!(matches!(first.message, Some(Message::Heartbeat(_))));
    let mut db = stack.database.connect().await;
    write_padded(&stack, &mut db, 5000, 2000).await;
    tokio::time::sleep(Duration::from_secs(12)).await;
    let (mut token, mut read) = (first.resume_token, 0);
    let status = loop {
        match stream.message().await {
            Ok(response) => {
                token = response.expect("streams end with a reason").resume_token;
                read += 1;
            }
            Err(status) => break status,
        }
    };
    assert_refused(&status, Code::ResourceExhausted, "READER_TOO_SLOW");
    assert!(read < 5000, "{read}");
    // It goes on where it was cut off.
    let mut watch = resume(&caller, &token).await.unwrap();
    for _ in read..5000 {
        watch.next().await;
    }
    let rest = tokio::time::timeout(Duration::from_millis(200), watch.try_next()).await;
    assert!(rest.is_err(), "{rest:?}");
}
