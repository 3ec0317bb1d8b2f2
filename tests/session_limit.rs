//! How many sessions a subject may have at a touchpoint: what happens to one too many, and to which one.

use chrono::TimeDelta;
use futures_util::future::join_all;
use prost_types::value::Kind;
use shared::pb::session as pb;
use shared::pb::session::SessionLimitAction::{EvictLeastRecent, Reject};
use shared::pb::session::Verdict;
use sqlx::Connection as _;
use tonic::Code;

use crate::harness::shop::{create_session, create_touchpoint, session_id, validate, validate_strong, web};
use crate::harness::trust::{
    authenticate, authentication, get, identity, limited, log_in, logout, own_sessions, persist, set_policy,
    start_with, subject,
};
use crate::harness::{Answer as _, Options, Watch, reason_of};

fn creation(touchpoint: &str) -> pb::CreateSessionRequest {
    pb::CreateSessionRequest {
        touchpoint: touchpoint.to_owned(),
        subject: Some(subject("lena")),
        ..Default::default()
    }
}

#[tokio::test]
async fn one_too_many_is_refused_until_another_ends_or_runs_out() {
    let (stack, caller) = start_with(limited(2, Reject)).await;
    create_touchpoint(&caller, pb::Touchpoint { touchpoint: "app".to_owned(), ..web() }).await;
    let (_, first) = log_in(&caller, "lena").await;
    let (_, second) = log_in(&caller, "lena").await;
    let (session, third) = create_session(&caller).await;
    let login = authentication(&third, identity("lena", 1));
    let refused = caller.sessions().authenticate_session(login.clone()).await;
    refused.refused(Code::ResourceExhausted, "SESSION_LIMIT_REACHED");
    let refused = caller.sessions().create_session(creation("web")).await;
    refused.refused(Code::ResourceExhausted, "SESSION_LIMIT_REACHED");
    assert_eq!(get(&caller, &session).await, session);
    for token in [&first, &second, &third] {
        assert_eq!(validate(&caller, token).await.verdict(), Verdict::Active);
    }
    caller.sessions().create_session(creation("app")).await.answer();
    caller.sessions().revoke_session(logout(&first)).await.answer();
    caller.sessions().authenticate_session(login).await.answer();
    stack.advance(TimeDelta::minutes(31));
    caller.sessions().create_session(creation("web")).await.answer();
}

#[tokio::test]
async fn who_is_in_already_is_not_one_more() {
    for action in [Reject, EvictLeastRecent] {
        let (stack, caller) = start_with(limited(3, action)).await;
        let mut tokens = vec![];
        for _ in 0..3 {
            tokens.push(log_in(&caller, "lena").await.1);
            stack.advance(TimeDelta::seconds(2));
        }
        set_policy(&caller, limited(1, action)).await;
        let (session, token) = authenticate(&caller, &tokens[1], identity("lena", 2)).await;
        assert_eq!(session.assurance.unwrap().level, 2, "{action:?}");
        for token in [&tokens[0], &token, &tokens[2]] {
            assert_eq!(validate(&caller, token).await.verdict(), Verdict::Active, "{action:?}");
        }
    }
}

#[tokio::test]
async fn the_one_seen_least_recently_ends_also_by_what_is_not_written_yet() {
    let (stack, caller) = start_with(limited(3, EvictLeastRecent)).await;
    let mut devices = vec![];
    for _ in 0..3 {
        devices.push(log_in(&caller, "lena").await);
        stack.advance(TimeDelta::seconds(2));
    }
    // Somebody holds the rows of two, so that what is seen of them stays in memory.
    let mut db = stack.database.connect().await;
    let mut held = db.begin().await.unwrap();
    for (session, _) in [&devices[0], &devices[2]] {
        let lock = "select from session.sessions where session_id = $1 for no key update";
        let id = session_id(session).uuid();
        sqlx::query(lock).bind(id).execute(&mut *held).await.unwrap();
    }
    for (_, token) in [&devices[2], &devices[0]] {
        assert_eq!(validate(&caller, token).await.verdict(), Verdict::Active);
        stack.advance(TimeDelta::seconds(2));
    }
    let mut events = Watch::open(caller.session_events()).await;
    let (_, token) = create_session(&caller).await;
    let login = authentication(&token, identity("lena", 1));
    let done = caller.sessions().authenticate_session(login).await.answer();
    held.rollback().await.unwrap();
    let (gone, gone_token) = &devices[1];
    assert_eq!(done.evicted_session_ids, std::slice::from_ref(&gone.session_id));
    let event = events.next_of("session.revoked").await;
    assert_eq!(event.subject, gone.session_id);
    let reason = event.data.unwrap().fields["reason"].kind.clone();
    assert_eq!(reason, Some(Kind::StringValue("EVICTED".to_owned())));
    assert_eq!(validate(&caller, gone_token).await.verdict(), Verdict::Revoked);
    assert_eq!(get(&caller, gone).await.revoke_reason(), pb::RevokeReason::Evicted);
    for (_, token) in [&devices[0], &devices[2]] {
        assert_eq!(validate_strong(&caller, token).await.verdict(), Verdict::Active);
    }
    // And so it is for a session that is made for the subject.
    stack.advance(TimeDelta::seconds(2));
    for token in [&devices[2].1, &done.session_token] {
        assert_eq!(validate(&caller, token).await.verdict(), Verdict::Active);
    }
    caller.sessions().create_session(creation("web")).await.answer();
    assert_eq!(validate(&caller, &devices[0].1).await.verdict(), Verdict::Revoked);
    assert_eq!(own_sessions(&caller, &done.session_token).await.len(), 3);
}

#[tokio::test]
async fn logins_at_once_keep_to_the_limit_together() {
    for action in [Reject, EvictLeastRecent] {
        let (stack, caller) = start_with(limited(2, action)).await;
        let replica = stack.session_svc(&Options::default());
        let callers = [caller.clone(), caller.at_session(&replica)];
        let login = async |n: usize| {
            let caller = &callers[n % 2];
            let (_, token) = create_session(caller).await;
            let request = authentication(&token, identity("lena", 1));
            persist(|| async { caller.sessions().authenticate_session(request.clone()).await }).await
        };
        let (won, lost): (Vec<_>, Vec<_>) =
            join_all((0..10).map(login)).await.into_iter().partition(Result::is_ok);
        assert_eq!(won.len(), if action == Reject { 2 } else { 10 });
        for status in lost.into_iter().map(Result::unwrap_err) {
            assert_eq!(reason_of(&status), "SESSION_LIMIT_REACHED");
        }
        let mut live = 0;
        for done in won.into_iter().map(Result::unwrap) {
            let verdict = validate_strong(&caller, &done.session_token).await.verdict();
            live += usize::from(verdict == Verdict::Active);
        }
        assert_eq!(live, 2, "{action:?}");
    }
}
