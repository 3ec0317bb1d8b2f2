//! Leaked tokens: whoever found one takes it out of use, and learns nothing else.

use std::time::Duration;

use chrono::TimeDelta;
use prost_types::value::Kind;
use shared::issuer::Grant;
use shared::pb::session as pb;
use shared::pb::session::{LeakOutcome, Verdict};
use tonic::Code;
use uuid::Uuid;

use crate::elevation::{granted, log_in, redeem, redemption, rotate};
use crate::harness::shop::{create_session, create_touchpoint, revoke, validate, web};
use crate::harness::{Answer as _, Caller, Options, Stack, Watch, eventually, workload};

const PLACE: &str = "https://pastes.example/4711";

async fn start() -> (Stack, Caller) {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("scanner"));
    create_touchpoint(&caller, web()).await;
    (stack, caller)
}

fn found(token: &str) -> pb::ReportLeakedTokenRequest {
    pb::ReportLeakedTokenRequest {
        token: token.to_owned(),
        found_at: PLACE.to_owned(),
        request_id: String::new(),
    }
}

async fn report(caller: &Caller, token: &str) -> LeakOutcome {
    caller.sessions().report_leaked_token(found(token)).await.answer().outcome()
}

#[tokio::test]
async fn a_token_that_works_ends_its_session_wherever_the_finder_may_work() {
    let (stack, caller) = start().await;
    let mut watch = Watch::open(caller.session_events()).await;
    let till = stack.caller(&Grant { touchpoints: Some(vec!["pos".to_owned()]), ..workload("till") });
    for finder in [&caller, &till] {
        let (session, token) = create_session(&caller).await;
        assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active, "it is in the cache");
        assert_eq!(report(finder, &token).await, LeakOutcome::Ended);
        let verdict = validate(&caller, &token).await;
        assert_eq!(verdict.verdict(), Verdict::Revoked);
        assert_eq!(report(finder, &token).await, LeakOutcome::NotLive, "again is nothing");
        let event = watch.next_of("session.revoked").await;
        assert_eq!(event.subject, session.session_id);
        let text = |text: &str| Kind::StringValue(text.to_owned()).into();
        let data = [("reason".to_owned(), text("LEAKED")), ("found_at".to_owned(), text(PLACE))];
        assert_eq!(event.data.unwrap().fields, data.into());
        let request = pb::GetSessionRequest { session_id: session.session_id };
        let ended = caller.sessions().get_session(request).await.answer().session.unwrap();
        assert_eq!(ended.revoke_reason(), pb::RevokeReason::Leaked);
    }
}

#[tokio::test]
async fn every_token_of_a_rotation_ends_the_session_and_one_that_a_login_cut_off_does_not() {
    let (stack, caller) = start().await;
    // The unused child, and its parent, which works beside it.
    for leaks_child in [true, false] {
        let (_, parent) = create_session(&caller).await;
        let child = rotate(&caller, &parent).await;
        let (leaked, other) = if leaks_child { (&child, &parent) } else { (&parent, &child) };
        assert_eq!(report(&caller, leaked).await, LeakOutcome::Ended);
        assert_eq!(validate(&caller, other).await.verdict(), Verdict::Revoked);
    }
    // Within its grace, and long after.
    for wait in [Duration::from_secs(1), Duration::from_mins(5)] {
        let (_, parent) = create_session(&caller).await;
        let child = rotate(&caller, &parent).await;
        assert_eq!(validate(&caller, &child).await.verdict(), Verdict::Active);
        stack.advance(TimeDelta::from_std(wait).unwrap());
        assert_eq!(report(&caller, &parent).await, LeakOutcome::Ended, "{wait:?}");
        assert_eq!(validate(&caller, &child).await.verdict(), Verdict::Revoked);
    }
    let (_, before) = create_session(&caller).await;
    let after = log_in(&caller, &before, 1).await;
    assert_eq!(report(&caller, &before).await, LeakOutcome::NotLive);
    assert_eq!(validate(&caller, &after).await.verdict(), Verdict::Active);
}

#[tokio::test]
async fn an_elevation_that_leaked_is_used_up_and_its_session_lives_on() {
    let (_stack, caller) = start().await;
    let mut watch = Watch::open(caller.session_events()).await;
    let (session, token) = create_session(&caller).await;
    let elevation = granted(&caller, &token).await;
    assert_eq!(report(&caller, &elevation).await, LeakOutcome::Ended);
    assert_eq!(report(&caller, &elevation).await, LeakOutcome::NotLive);
    redeem(&caller, redemption(&elevation))
        .await
        .refused(Code::FailedPrecondition, "ELEVATION_REDEEMED");
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
    assert_eq!(watch.next_of("session.elevation_leaked").await.subject, session.session_id);
}

#[tokio::test]
async fn what_is_not_live_is_answered_alike_whatever_it_is() {
    let (stack, caller) = start().await;
    let (session, revoked) = create_session(&caller).await;
    let dead = granted(&caller, &revoked).await;
    revoke(&caller, &session).await;
    let (_, idle) = create_session(&caller).await;
    let expired = granted(&caller, &idle).await;
    stack.advance(TimeDelta::minutes(31));
    let (_, live) = create_session(&caller).await;
    let (_, other) = create_session(&caller).await;
    let used = granted(&caller, &live).await;
    redeem(&caller, redemption(&used)).await.answer();
    let mixed = format!("{}{}", &live[..40], &other[40..]);
    let long = "x".repeat(100_000);
    for text in ["", "tds_", "nonsense", "tde_\0", &mixed, &long, &revoked, &dead, &idle, &expired, &used] {
        assert_eq!(report(&caller, text).await, LeakOutcome::NotLive, "{text:.80}");
    }
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..workload("scanner") });
    assert_eq!(report(&acme, &live).await, LeakOutcome::NotLive);
    let elevation = granted(&caller, &live).await;
    assert_eq!(report(&acme, &elevation).await, LeakOutcome::NotLive);
    redeem(&caller, redemption(&elevation)).await.answer();
    for token in [&live, &other] {
        assert_eq!(validate(&caller, token).await.verdict(), Verdict::Active);
    }
}

#[tokio::test]
async fn a_report_reaches_the_other_replicas() {
    let (stack, caller) = start().await;
    let replica = stack.session_svc(&Options::default());
    let other = caller.at_session(&replica);
    let (_, token) = create_session(&caller).await;
    assert_eq!(validate(&other, &token).await.verdict(), Verdict::Active, "it is in the other's cache");
    assert_eq!(report(&caller, &token).await, LeakOutcome::Ended);
    eventually("the revocation", || async {
        (validate(&other, &token).await.verdict() == Verdict::Revoked).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_repeated_report_is_answered_alike() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let (_, second) = create_session(&caller).await;
    let send =
        async |request: pb::ReportLeakedTokenRequest| caller.sessions().report_leaked_token(request).await;
    let ask = pb::ReportLeakedTokenRequest { request_id: Uuid::from_u128(1).to_string(), ..found(&token) };
    for _ in 0..2 {
        assert_eq!(send(ask.clone()).await.answer().outcome(), LeakOutcome::Ended);
    }
    send(pb::ReportLeakedTokenRequest { token: second.clone(), ..ask.clone() })
        .await
        .refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
    send(pb::ReportLeakedTokenRequest { found_at: "elsewhere".to_owned(), ..ask })
        .await
        .refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
    for found_at in ["x".repeat(256), "line\nbreak".to_owned()] {
        for token in [second.as_str(), "nonsense"] {
            let request = pb::ReportLeakedTokenRequest { found_at: found_at.clone(), ..found(token) };
            send(request).await.refused(Code::InvalidArgument, "FIELD_INVALID");
        }
    }
    assert_eq!(validate(&caller, &second).await.verdict(), Verdict::Active);
    let mut db = stack.database.connect().await;
    let rows = "select concat((select string_agg(r::text, '') from session.requests r),
                              (select string_agg(v::text, '') from session.events v))";
    let rows: String = sqlx::query_scalar(rows).fetch_one(&mut db).await.unwrap();
    assert!(rows.contains(PLACE) && !rows.contains(&token) && !rows.contains("tds_"));
}

#[tokio::test]
async fn a_place_with_a_token_in_it_is_refused() {
    let (_stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let elevation = granted(&caller, &token).await;
    let send = async |found_at: String| {
        let request = pb::ReportLeakedTokenRequest { found_at, ..found("nonsense") };
        caller.sessions().report_leaked_token(request).await
    };
    let recovery = elevation.replace("tde_", "tdr_");
    for part in [&token[..], &token[..24], &elevation, &elevation[..24], &recovery[..24]] {
        send(format!("https://shop.example/tds_?t={part}&n=1"))
            .await
            .refused(Code::InvalidArgument, "FIELD_INVALID");
    }
    for place in [&token[..23], "tds_", "tde_short and then some more words", "tdr_ too"] {
        send(place.to_owned()).await.answer();
    }
}

/// The row changes without the service hearing of it.
#[tokio::test]
async fn a_report_makes_memory_forget_a_session_that_lived_no_more() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
    let mut db = stack.database.connect().await;
    sqlx::raw_sql("update session.sessions set revoked_at = created_at, revoke_reason = 'ADMIN'")
        .execute(&mut db)
        .await
        .unwrap();
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active, "it is in the cache");
    assert_eq!(report(&caller, &token).await, LeakOutcome::NotLive);
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Revoked);
}
