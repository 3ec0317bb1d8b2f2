//! Sessions: made, validated, ended, listed; and that nothing but the clock and a revocation ends one.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::TimeDelta;
use shared::pb::session as pb;
use shared::pb::session::revoke_session_request::Target;
use shared::pb::session::{SessionState, Verdict};
use shared::time::from_proto;
use tonic::Code;

use crate::harness::shop::{
    create_session, create_touchpoint, revoke, seconds, validate, validate_strong, validation, web,
};
use crate::harness::{Answer as _, Caller, Options, Stack, Watch, eventually, workload};

async fn start() -> (Stack, Caller) {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    (stack, caller)
}

fn subject(sub: &str) -> pb::Subject {
    pb::Subject { issuer: "https://id.example".to_owned(), sub: sub.to_owned() }
}

async fn log_in(caller: &Caller, sub: &str) -> pb::CreateSessionResponse {
    let request = pb::CreateSessionRequest {
        touchpoint: "web".to_owned(),
        subject: Some(subject(sub)),
        device: "Lena's phone".to_owned(),
        ..Default::default()
    };
    caller.sessions().create_session(request).await.answer()
}

#[tokio::test]
async fn a_new_session_is_good_and_says_until_when() {
    let (stack, caller) = start().await;
    let (session, token) = create_session(&caller).await;
    assert_eq!((token.len(), &token[..4]), (75, "tds_"));
    let deadline = |time: Option<prost_types::Timestamp>| from_proto(time.unwrap()).unwrap() - stack.now();
    assert_eq!(deadline(session.idle_deadline), TimeDelta::minutes(30) + TimeDelta::seconds(1));
    assert_eq!(deadline(session.absolute_deadline), TimeDelta::hours(24));
    for verdict in [validate(&caller, &token).await, validate_strong(&caller, &token).await] {
        assert_eq!(verdict.verdict(), Verdict::Active);
        assert_eq!(verdict.session.map(|session| session.session_id), Some(session.session_id.clone()));
        assert!(!verdict.degraded);
    }
}

#[tokio::test]
async fn the_idle_deadline_ends_a_session_to_the_microsecond() {
    let (stack, caller) = start().await;
    let (session, token) = create_session(&caller).await;
    let idle = from_proto(session.idle_deadline.unwrap()).unwrap();
    stack.advance(idle - stack.now() - TimeDelta::microseconds(1));
    // Read, not seen: the validation that proves it alive would move the deadline.
    assert_eq!(get(&caller, &session).await.state(), SessionState::Active);
    stack.advance(TimeDelta::microseconds(1));
    assert_eq!(get(&caller, &session).await.state(), SessionState::IdleExpired);
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::IdleExpired);
    assert_eq!(validate_strong(&caller, &token).await.verdict(), Verdict::IdleExpired);
}

#[tokio::test]
async fn the_last_microsecond_of_idleness_can_be_used() {
    let (stack, caller) = start().await;
    let (session, token) = create_session(&caller).await;
    let idle = from_proto(session.idle_deadline.unwrap()).unwrap();
    stack.advance(idle - stack.now() - TimeDelta::microseconds(1));
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
    stack.advance(TimeDelta::minutes(30));
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active, "activity moved the deadline");
}

#[tokio::test]
async fn the_absolute_deadline_ends_a_session_in_use_to_the_microsecond() {
    let (stack, caller) = start().await;
    let (session, token) = create_session(&caller).await;
    let end = from_proto(session.absolute_deadline.unwrap()).unwrap();
    while end - stack.now() > TimeDelta::minutes(20) {
        stack.advance(TimeDelta::minutes(20));
        assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
    }
    stack.advance(end - stack.now() - TimeDelta::microseconds(1));
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
    stack.advance(TimeDelta::microseconds(1));
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Expired);
    assert_eq!(get(&caller, &session).await.state(), SessionState::Expired);
}

#[tokio::test]
async fn a_session_seen_by_one_replica_does_not_run_out_on_another() {
    let (stack, caller) = start().await;
    let replica = stack.session_svc(&Options::default());
    let other = caller.at_session(&replica);
    let (_, token) = create_session(&caller).await;
    for _ in 0..3 {
        stack.advance(TimeDelta::minutes(29));
        assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
        eventually("the touch", || async { (last_seen(&stack).await == stack.now()).then_some(()) }).await;
    }
    assert_eq!(validate_strong(&other, &token).await.verdict(), Verdict::Active);
}

async fn last_seen(stack: &Stack) -> shared::time::Time {
    let mut db = stack.database.connect().await;
    sqlx::query_scalar("select last_seen_at from session.sessions")
        .fetch_one(&mut db)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_revoked_session_is_refused_at_once_by_the_replica_that_revoked_it() {
    let (_stack, caller) = start().await;
    let (session, token) = create_session(&caller).await;
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active, "it is in the cache");
    let revoked = revoke(&caller, &session).await;
    assert_eq!((revoked.state(), revoked.revoke_reason()), (SessionState::Revoked, pb::RevokeReason::Admin));
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Revoked);
    assert_eq!(validate_strong(&caller, &token).await.verdict(), Verdict::Revoked);
    assert_eq!(revoke(&caller, &session).await, revoked, "again is the same");
}

#[tokio::test]
async fn a_revoked_session_is_refused_by_another_replica_through_the_feed() {
    let (stack, caller) = start().await;
    let replica = stack.session_svc(&Options::default());
    let other = caller.at_session(&replica);
    let (session, token) = create_session(&caller).await;
    assert_eq!(validate(&other, &token).await.verdict(), Verdict::Active, "it is in the other's cache");
    revoke(&caller, &session).await;
    // The clock stands still, so only the feed can end what is cached.
    eventually("the revocation", || async {
        (validate(&other, &token).await.verdict() == Verdict::Revoked).then_some(())
    })
    .await;
    assert_eq!(validate_strong(&other, &token).await.verdict(), Verdict::Revoked);
}

#[tokio::test]
async fn strong_reads_what_bounded_may_have_missed() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
    // Behind the feed's back: no event tells of it.
    let mut db = stack.database.connect().await;
    let sql = "update session.sessions set revoked_at = last_seen_at, revoke_reason = 'ADMIN'";
    sqlx::query(sql).execute(&mut db).await.unwrap();
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active, "a cached verdict will do");
    assert_eq!(validate_strong(&caller, &token).await.verdict(), Verdict::Revoked);
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Revoked, "what was read is known now");
}

#[tokio::test]
async fn without_a_staleness_bound_every_verdict_is_read() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    let session_policy = Some(pb::SessionPolicy { staleness_bound: Some(seconds(0)), ..Default::default() });
    create_touchpoint(&caller, pb::Touchpoint { session_policy, ..web() }).await;
    let (_, token) = create_session(&caller).await;
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
    let mut db = stack.database.connect().await;
    let sql = "update session.sessions set revoked_at = last_seen_at, revoke_reason = 'ADMIN'";
    sqlx::query(sql).execute(&mut db).await.unwrap();
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Revoked);
}

#[tokio::test]
async fn another_touchpoints_session_is_told_apart() {
    let (_stack, caller) = start().await;
    create_touchpoint(&caller, pb::Touchpoint { touchpoint: "pos".to_owned(), ..web() }).await;
    let (_, token) = create_session(&caller).await;
    let request = pb::ValidateSessionRequest {
        touchpoint: "pos".to_owned(),
        ..validation(&token, pb::Consistency::Bounded)
    };
    let verdict = caller.sessions().validate_session(request).await.answer();
    assert_eq!((verdict.verdict(), verdict.session), (Verdict::WrongTouchpoint, None));
    let request = pb::ValidateSessionRequest {
        touchpoint: "nowhere".to_owned(),
        ..validation(&token, pb::Consistency::Bounded)
    };
    caller
        .sessions()
        .validate_session(request)
        .await
        .refused(Code::NotFound, "TOUCHPOINT_NOT_FOUND");
}

#[tokio::test]
async fn whatever_is_no_sessions_token_is_an_unknown_session_and_no_error() {
    let (_stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let (_, other) = create_session(&caller).await;
    // The other's secret behind this one's id would need the checksum; a flipped character breaks it.
    let mixed = format!("{}{}", &token[..40], &other[40..]);
    for bad in [
        "",
        "tds_",
        "nonsense",
        &token[..74],
        &token.to_uppercase(),
        &mixed,
        &"x".repeat(10_000),
        "tds_\u{0}",
    ] {
        for consistency in [pb::Consistency::Bounded, pb::Consistency::Strong] {
            let verdict = caller.sessions().validate_session(validation(bad, consistency)).await.answer();
            assert_eq!((verdict.verdict(), verdict.session), (Verdict::SessionUnknown, None), "{bad:.80}");
        }
    }
}

#[tokio::test]
async fn a_database_that_is_away_is_never_a_verdict() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
    stack.database.set_open(false);
    stack.advance(TimeDelta::seconds(2));
    for consistency in [pb::Consistency::Strong, pb::Consistency::Bounded] {
        let refused = caller.sessions().validate_session(validation(&token, consistency)).await;
        refused.refused(Code::Unavailable, "STORAGE_UNAVAILABLE");
    }
    let request = pb::CreateSessionRequest { touchpoint: "web".to_owned(), ..Default::default() };
    caller
        .sessions()
        .create_session(request)
        .await
        .refused(Code::Unavailable, "STORAGE_UNAVAILABLE");
    stack.database.set_open(true);
    eventually("the way back", || async {
        let verdict = caller
            .sessions()
            .validate_session(validation(&token, pb::Consistency::Strong))
            .await
            .ok()?;
        (verdict.into_inner().verdict() == Verdict::Active).then_some(())
    })
    .await;
}

#[tokio::test]
async fn within_the_outage_bound_the_last_verdict_is_given_and_flagged() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    let session_policy = Some(pb::SessionPolicy { outage_bound: Some(seconds(60)), ..Default::default() });
    let mut watch = Watch::open(caller.session_events()).await;
    create_touchpoint(&caller, pb::Touchpoint { session_policy, ..web() }).await;
    // What the feed tells of later would forget what is remembered. The first event may be read beside the feed; with
    // the second, the feed has told of the first.
    watch.next_of("touchpoint.created").await;
    create_touchpoint(&caller, pb::Touchpoint { touchpoint: "other".to_owned(), ..web() }).await;
    watch.next_of("touchpoint.created").await;
    let (_, token) = create_session(&caller).await;
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
    stack.database.set_open(false);
    stack.advance(TimeDelta::seconds(59));
    let verdict = validate(&caller, &token).await;
    assert_eq!((verdict.verdict(), verdict.degraded), (Verdict::Active, true));
    stack.advance(TimeDelta::seconds(2));
    let request = validation(&token, pb::Consistency::Bounded);
    caller
        .sessions()
        .validate_session(request)
        .await
        .refused(Code::Unavailable, "STORAGE_UNAVAILABLE");
}

#[tokio::test]
async fn a_logout_by_token_ends_the_session_of_that_token_only() {
    let (_stack, caller) = start().await;
    let (session, token) = create_session(&caller).await;
    let (_, other) = create_session(&caller).await;
    let logout = |token: &str| pb::RevokeSessionRequest {
        target: Some(Target::SessionToken(token.to_owned())),
        reason: pb::RevokeReason::Logout.into(),
        request_id: String::new(),
    };
    let ended = caller.sessions().revoke_session(logout(&token)).await.answer().session.unwrap();
    assert_eq!((ended.session_id, ended.state), (session.session_id, SessionState::Revoked.into()));
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Revoked);
    assert_eq!(validate(&caller, &other).await.verdict(), Verdict::Active);
    let nothing = caller.sessions().revoke_session(logout("nonsense")).await.answer();
    assert_eq!(nothing.session, None, "a logout always succeeds");
}

#[tokio::test]
async fn sessions_are_listed_by_subject_and_touchpoint_without_those_that_ended() {
    let (stack, caller) = start().await;
    let (lena, _) = (log_in(&caller, "lena").await.session.unwrap(), log_in(&caller, "max").await);
    stack.advance(TimeDelta::milliseconds(5));
    let second = log_in(&caller, "lena").await.session.unwrap();
    create_session(&caller).await;
    let list = async |subject: Option<pb::Subject>, include_ended| {
        let request = pb::ListSessionsRequest { subject, include_ended, ..Default::default() };
        let listed = caller.sessions().list_sessions(request).await.answer();
        listed
            .sessions
            .into_iter()
            .map(|session| session.session_id)
            .collect::<Vec<_>>()
    };
    let (first, second) = (lena.session_id.clone(), second.session_id);
    assert_eq!(list(Some(subject("lena")), false).await, [first.clone(), second.clone()]);
    assert_eq!(list(None, false).await.len(), 4);
    revoke(&caller, &lena).await;
    assert_eq!(list(Some(subject("lena")), false).await, std::slice::from_ref(&second));
    assert_eq!(list(Some(subject("lena")), true).await, [first.clone(), second.clone()]);
    stack.advance(TimeDelta::minutes(31));
    assert_eq!(
        list(Some(subject("lena")), false).await,
        Vec::<String>::new(),
        "idle ones are hidden unpurged"
    );
    assert_eq!(list(Some(subject("nobody")), true).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_list_goes_on_page_by_page_for_a_subject_at_a_touchpoint_too() {
    let (_stack, caller) = start().await;
    let mut made = vec![];
    for _ in 0..3 {
        made.push(log_in(&caller, "lena").await.session.unwrap().session_id);
        log_in(&caller, "max").await;
    }
    made.sort();
    let list = async |touchpoint: &str, page_token: String| {
        let request = pb::ListSessionsRequest {
            touchpoint: touchpoint.to_owned(),
            subject: Some(subject("lena")),
            page_size: 2,
            page_token,
            ..Default::default()
        };
        let page = caller.sessions().list_sessions(request).await.answer();
        let ids: Vec<_> = page.sessions.into_iter().map(|session| session.session_id).collect();
        (ids, page.next_page_token)
    };
    for touchpoint in ["", "web"] {
        let (first, next) = list(touchpoint, String::new()).await;
        let (second, end) = list(touchpoint, next).await;
        assert_eq!(([first, second].concat(), end.as_str()), (made.clone(), ""), "{touchpoint}");
    }
    assert_eq!(list("pos", String::new()).await, (vec![], String::new()));
}

#[tokio::test]
async fn only_a_caller_who_may_vouch_for_it_binds_a_subject() {
    let (stack, caller) = start().await;
    assert_eq!(log_in(&caller, "lena").await.session.unwrap().subject, Some(subject("lena")));
    let scope = "session.write".to_owned();
    let plain = stack.caller(&shared::issuer::Grant { scope, ..workload("kiosk") });
    let request = pb::CreateSessionRequest {
        touchpoint: "web".to_owned(),
        subject: Some(subject("lena")),
        ..Default::default()
    };
    plain
        .sessions()
        .create_session(request)
        .await
        .refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
}

#[tokio::test]
async fn no_secret_is_in_the_database() {
    let (stack, caller) = start().await;
    let request = pb::CreateSessionRequest {
        touchpoint: "web".to_owned(),
        request_id: uuid::Uuid::from_u128(7).to_string(),
        ..Default::default()
    };
    let token = caller.sessions().create_session(request).await.answer().session_token;
    crate::harness::shop::add_line(&caller, &token, "85123A", 1).await;
    let secret = URL_SAFE_NO_PAD.decode(&token[4..]).unwrap()[17..49].to_vec();
    let hex = format!("{:032x}", u128::from_be_bytes(*secret.first_chunk().unwrap()));
    let dump = stack.database.dump().await;
    assert!(dump.contains("cart.line_added"), "the dump holds what is stored");
    for trace in [&token[..], &token[28..70], &hex[..]] {
        assert!(!dump.contains(trace), "a secret is stored");
    }
}

#[tokio::test]
async fn a_session_that_is_revoked_while_it_is_being_validated_stays_revoked() {
    let (_stack, caller) = start().await;
    for _ in 0..20 {
        let (session, token) = create_session(&caller).await;
        let validating = async {
            for _ in 0..5 {
                validate(&caller, &token).await;
            }
        };
        tokio::join!(validating, revoke(&caller, &session));
        assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Revoked);
    }
    // Touches of before the revocation are written after it, and bring nothing back.
    tokio::time::sleep(Duration::from_millis(600)).await;
    let request = pb::ListSessionsRequest::default();
    assert_eq!(caller.sessions().list_sessions(request).await.answer().sessions, []);
}

async fn get(caller: &Caller, session: &pb::Session) -> pb::Session {
    let request = pb::GetSessionRequest { session_id: session.session_id.clone() };
    caller.sessions().get_session(request).await.answer().session.unwrap()
}
