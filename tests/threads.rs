//! What users of other session stores complained of, each case named after the thread that tells it.

use std::time::Duration;

use chrono::TimeDelta;
use futures_util::future::join_all;
use session_svc::domain::session::RevokeReason;
use shared::pb::session as pb;
use shared::pb::session::{SessionState, TokenGrade, Verdict};
use shared::time::from_proto;
use sqlx::Connection as _;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::shop::{
    add_line, create_session, get_cart, line, revoke, validate, validate_strong, validation,
};
use crate::harness::trust::{
    authentication, disabling, get, identity, log_in, logout, logout_everywhere, own_sessions, persist,
    rotate, rotation, setting, short, start, start_with, subject,
};
use crate::harness::{Answer as _, Caller, Options, eventually, reason_of};

/// A request that began before a logout wrote its session afterwards, and the user was logged in again.
#[tokio::test]
async fn expressjs_session_632_a_logged_out_session_does_not_come_back() {
    let (stack, caller) = start().await;
    let (session, token) = log_in(&caller, "lena").await;
    add_line(&caller, &token, "85123A", 1).await;
    let mut lock = stack.database.connect().await;
    let mut held = lock.begin().await.unwrap();
    sqlx::query("select from session.carts for update")
        .execute(&mut *held)
        .await
        .unwrap();
    let slow = async { caller.carts().add_cart_line(line(&token, "71053", 1)).await };
    let leaving = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let logging_out = async { caller.sessions().revoke_session(logout(&token)).await.answer() };
        let release = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            held.rollback().await.unwrap();
        };
        tokio::join!(logging_out, release)
    };
    let _ = tokio::join!(slow, leaving);
    for answer in [validate(&caller, &token).await, validate_strong(&caller, &token).await] {
        assert_eq!(answer.verdict(), Verdict::Revoked);
    }
    assert_eq!(get(&caller, &session).await.state(), SessionState::Revoked);
}

/// A touch on the way while the session was destroyed stored it anew.
#[tokio::test]
async fn tj_connect_redis_328_a_touch_under_way_does_not_bring_a_session_back() {
    let (stack, caller) = start().await;
    let (session, token) = create_session(&caller).await;
    stack.advance(TimeDelta::minutes(1));
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active, "it is to be touched");
    caller.sessions().revoke_session(logout(&token)).await.answer();
    // Two passes of what writes touches.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(validate_strong(&caller, &token).await.verdict(), Verdict::Revoked);
    let found = get(&caller, &session).await;
    assert_eq!((found.state(), found.revoke_reason()), (SessionState::Revoked, pb::RevokeReason::Logout));
    assert_eq!(stack.database.count("select count(*) from session.sessions").await, 1);
}

/// Two tabs refreshed at once, the slower one was told of a replay, and the user was logged out.
#[tokio::test]
async fn supabase_auth_js_213_two_tabs_refresh_at_once_and_both_live_on() {
    let (stack, caller) = start().await;
    let replica = stack.session_svc(&Options::default());
    let other = caller.at_session(&replica);
    let (_, mut token) = log_in(&caller, "lena").await;
    for _ in 0..10 {
        let (left, right) = tokio::join!(rotate(&caller, &token), rotate(&other, &token));
        assert_eq!(left, right, "one parent, one child");
        let (left, right) = tokio::join!(validate(&caller, &left), validate(&other, &right));
        assert_eq!((left.verdict(), right.verdict()), (Verdict::Active, Verdict::Active));
        token = rotate(&caller, &token).await;
        stack.advance(TimeDelta::seconds(40));
    }
}

/// A focus event made every open tab refresh, the late ones with a token replaced already: all sessions were revoked as
/// stolen.
#[tokio::test]
async fn directus_22360_tabs_that_wake_up_together_are_no_theft() {
    let (stack, caller) = start().await;
    let (_, token) = log_in(&caller, "lena").await;
    let successor = rotate(&caller, &token).await;
    assert_eq!(validate(&caller, &successor).await.verdict(), Verdict::Active);
    for seconds in [0, 10, 19] {
        stack.advance(TimeDelta::seconds(seconds));
        let tabs = join_all((0..8).map(|_| rotate(&caller, &token))).await;
        assert!(tabs.iter().all(|tab| *tab == successor), "each gets what the first one got");
    }
    let late = validate_strong(&caller, &token).await;
    assert_ne!(late.token_grade(), TokenGrade::StaleLineage);
    assert_eq!(validate_strong(&caller, &successor).await.verdict(), Verdict::Active);
}

/// The browser gave the refresh up halfway: the old token was spent, and the new one never arrived.
#[tokio::test]
async fn nhost_hasura_backend_plus_220_a_lost_answer_loses_nobody() {
    let (stack, caller) = start().await;
    let (_, token) = log_in(&caller, "lena").await;
    for _ in 0..5 {
        let mut sessions = caller.sessions();
        let call = sessions.rotate_session(rotation(&token));
        // Whether or not it got there, its answer did not come back.
        let _ = tokio::time::timeout(Duration::from_millis(2), call).await;
        stack.advance(TimeDelta::minutes(10));
        assert_eq!(validate_strong(&caller, &token).await.verdict(), Verdict::Active);
    }
    let lost = rotate(&caller, &token).await;
    stack.advance(TimeDelta::minutes(10));
    assert_eq!(rotate(&caller, &token).await, lost, "the same one, however late");
    assert_eq!(validate(&caller, &lost).await.verdict(), Verdict::Active);
}

/// After each rotation requests with the token before were denied by the hundred, and nothing said why.
#[tokio::test]
async fn zitadel_11905_requests_under_way_survive_a_rotation_and_refusals_say_why() {
    let (stack, caller) = start().await;
    let (_, token) = log_in(&caller, "lena").await;
    let successor = rotate(&caller, &token).await;
    let under_way = join_all((0..20).map(|_| validate(&caller, &token)));
    let (under_way, first) = tokio::join!(under_way, validate(&caller, &successor));
    assert_eq!(first.verdict(), Verdict::Active);
    for answer in under_way {
        assert_eq!((answer.verdict(), answer.token_grade()), (Verdict::Active, TokenGrade::Replaced));
    }
    stack.advance(TimeDelta::seconds(30));
    let request = pb::ListSessionsRequest { session_token: token, ..Default::default() };
    let refused = caller.sessions().list_sessions(request).await;
    let status = refused.refused(Code::FailedPrecondition, "SESSION_TOKEN_SUPERSEDED");
    assert!(status.get_details_error_info().unwrap().metadata.contains_key("advice"));
}

/// A user was deleted, and went on refreshing in a session that was made meanwhile.
#[tokio::test]
async fn supertokens_node_150_a_disabled_subject_gets_no_sixth_session() {
    let (_stack, caller) = start().await;
    let mut tokens = vec![];
    for _ in 0..5 {
        tokens.push(log_in(&caller, "lena").await.1);
    }
    let (_, sixth) = create_session(&caller).await;
    let joining = async {
        caller
            .sessions()
            .authenticate_session(authentication(&sixth, identity("lena", 1)))
            .await
    };
    let disabling = async { caller.sessions().disable_subject(disabling("lena")).await.answer() };
    let (joined, _) = tokio::join!(joining, disabling);
    // Let in just before, it ended with the others; otherwise it was not let in.
    match joined {
        Ok(answer) => tokens.push(answer.into_inner().session_token),
        Err(status) => assert_eq!(reason_of(&status), "SUBJECT_DISABLED"),
    }
    for token in &tokens {
        let refused = caller.sessions().rotate_session(rotation(token)).await;
        refused.refused(Code::FailedPrecondition, "SESSION_REVOKED");
        assert_eq!(validate(&caller, token).await.verdict(), Verdict::Revoked);
    }
}

/// Under load, some good sessions were answered with 401 as the database was slow.
#[tokio::test]
async fn ory_kratos_4581_an_outage_is_no_logout() {
    let (stack, caller) = start().await;
    let (_, token) = log_in(&caller, "lena").await;
    let asking = async {
        let mut refused = 0;
        for _ in 0..10 {
            let calls = (0..32).map(async |_| {
                let request = validation(&token, pb::Consistency::Strong);
                match caller.sessions().validate_session(request).await {
                    Ok(answer) => {
                        assert_eq!(answer.into_inner().verdict(), Verdict::Active);
                        0
                    }
                    Err(status) => {
                        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                        1
                    }
                }
            });
            refused += join_all(calls).await.into_iter().sum::<u32>();
        }
        refused
    };
    let outage = async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        stack.database.set_open(false);
    };
    let (refused, ()) = tokio::join!(asking, outage);
    assert!(refused > 0, "there was an outage");
    stack.database.set_open(true);
    eventually("the way back", async || {
        let request = validation(&token, pb::Consistency::Strong);
        let answer = caller.sessions().validate_session(request).await.ok()?;
        (answer.into_inner().verdict() == Verdict::Active).then_some(())
    })
    .await;
}

/// A request that took long wrote its own, earlier time over a later one.
#[tokio::test]
async fn spring_session_1280_last_seen_never_goes_back() {
    let (stack, caller) = start().await;
    let replica = stack.session_svc(&Options::default());
    let other = caller.at_session(&replica);
    let (session, token) = create_session(&caller).await;
    let mut lock = stack.database.connect().await;
    let mut held = lock.begin().await.unwrap();
    sqlx::query("select from session.sessions for update")
        .execute(&mut *held)
        .await
        .unwrap();
    // What both saw waits for the row, and is written in any order.
    validate(&caller, &token).await;
    stack.advance(TimeDelta::minutes(5));
    validate(&other, &token).await;
    let latest = stack.now();
    held.rollback().await.unwrap();
    let mut before = from_proto(session.create_time.unwrap()).unwrap();
    for _ in 0..60 {
        let sql = "select last_seen_at from session.sessions";
        let seen = sqlx::query_scalar(sql).fetch_one(&mut lock).await.unwrap();
        assert!(before <= seen, "{before} and then {seen}");
        before = seen;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    eventually("the touch", async || {
        let seen = get(&other, &session).await.last_seen_time.unwrap();
        (from_proto(seen).unwrap() == latest).then_some(())
    })
    .await;
}

/// Two tabs wrote the whole session, and one of the two lines in the cart was gone.
#[tokio::test]
async fn colinmollenhour_cm_redissession_93_two_tabs_add_both_lines() {
    let (stack, caller) = start().await;
    let replica = stack.session_svc(&Options::default());
    let other = caller.at_session(&replica);
    let (_, token) = create_session(&caller).await;
    for n in 0..10 {
        let (left, right) = (format!("left-{n}"), format!("right-{n}"));
        tokio::join!(
            add_line(&caller, &token, &left, 1),
            add_line(&other, &token, &right, 1),
            add_line(&other, &token, "both", 1),
            add_line(&caller, &token, "both", 1),
        );
    }
    let lines = get_cart(&caller, &token).await.lines;
    assert_eq!(lines.len(), 21);
    assert_eq!(lines.iter().find(|line| line.sku == "both").unwrap().quantity, 20);
}

/// Expired sessions were listed for ever, and could not be deleted.
#[tokio::test]
async fn zitadel_10045_an_expired_session_is_not_listed_and_can_be_ended() {
    let (stack, caller) = start_with(short()).await;
    let (old, _) = log_in(&caller, "lena").await;
    stack.advance(TimeDelta::seconds(301));
    let (new, token) = log_in(&caller, "lena").await;
    let listed = own_sessions(&caller, &token).await;
    assert_eq!(listed.iter().map(|session| &session.session_id).collect::<Vec<_>>(), [&new.session_id]);
    assert_eq!(revoke(&caller, &old).await.revoke_reason(), pb::RevokeReason::Admin);
    assert_eq!(revoke(&caller, &old).await.state(), SessionState::Revoked);
}

/// A changed password ended the session, but not the tokens that it had been given.
#[tokio::test]
async fn zitadel_8288_every_token_of_a_session_dies_with_it() {
    let (_stack, caller) = start().await;
    let (session, first) = log_in(&caller, "lena").await;
    let second = rotate(&caller, &first).await;
    validate(&caller, &second).await;
    let third = rotate(&caller, &second).await;
    caller
        .sessions()
        .revoke_subject_sessions(logout_everywhere(&second, false))
        .await
        .answer();
    for token in [&first, &second, &third] {
        assert_eq!(validate(&caller, token).await.verdict(), Verdict::Revoked);
    }
    let reason = get(&caller, &session).await.revoke_reason();
    assert_eq!(reason.as_str_name(), format!("REVOKE_REASON_{}", RevokeReason::CredentialChanged.name()));
}

/// The list of sessions showed who was logged in to someone whose second factor was missing.
#[tokio::test]
async fn ory_kratos_3671_too_low_an_assurance_is_told_nothing_of_the_subject() {
    use prost::Message as _;
    let (_stack, caller) = start().await;
    let (_, token) = log_in(&caller, "lena").await;
    let validation = validation(&token, pb::Consistency::Strong);
    let request = pb::ValidateSessionRequest { required_assurance: 2, ..validation };
    let answer = caller.sessions().validate_session(request).await.answer();
    assert_eq!((answer.verdict(), &answer.session), (Verdict::AssuranceTooLow, &None));
    let bytes = answer.encode_to_vec();
    assert!(!bytes.windows(4).any(|window| window == subject("lena").sub.as_bytes()));
}

/// What a guest had put into the cart was gone after the login.
#[tokio::test]
async fn medusa_9755_a_guests_cart_comes_along_at_login() {
    let (_stack, caller) = start().await;
    let (_, at_home) = log_in(&caller, "lena").await;
    add_line(&caller, &at_home, "85123A", 1).await;
    let (_, guest) = create_session(&caller).await;
    add_line(&caller, &guest, "71053", 2).await;
    let request = authentication(&guest, identity("lena", 1));
    let answer = caller.sessions().authenticate_session(request).await.answer();
    assert_eq!(answer.cart_merges.len(), 1);
    let mut lines = get_cart(&caller, &answer.session_token).await.lines;
    lines.sort_by(|a, b| a.sku.cmp(&b.sku));
    assert_eq!(lines.iter().map(|line| line.sku.as_str()).collect::<Vec<_>>(), ["71053", "85123A"]);
    let at_home = get_cart(&caller, &at_home).await;
    assert_eq!(at_home.lines.len(), 2, "on every device");
}

/// Two requests that set a new attribute at once: one failed on a duplicate key.
#[tokio::test]
async fn spring_session_1213_two_requests_set_the_same_attribute_at_once() {
    let (stack, caller) = start().await;
    let replica = stack.session_svc(&Options::default());
    let other = caller.at_session(&replica);
    let (_, token) = create_session(&caller).await;
    for n in 0..10 {
        let key = format!("key-{n}");
        let set = async |caller: &Caller, value: &str| {
            let request = setting(&token, &key, value);
            persist(async || caller.sessions().update_session_attributes(request.clone()).await)
                .await
                .unwrap()
        };
        tokio::join!(set(&caller, "left"), set(&other, "right"));
    }
    let validation = validation(&token, pb::Consistency::Strong);
    let request = pb::ValidateSessionRequest { include_attributes: true, ..validation };
    let attributes = caller.sessions().validate_session(request).await.answer().attributes;
    assert_eq!(attributes.len(), 10);
    assert!(
        attributes
            .iter()
            .all(|attribute| ["left", "right"].contains(&attribute.value.as_str()))
    );
}
