//! Logging in, again, and stepping up on a caller's word: what it binds, for how long, how surely, with which token; and
//! that of several at once one is it.

use chrono::TimeDelta;
use futures_util::future::join_all;
use shared::pb::session as pb;
use shared::pb::session::authenticate_session_request::Proof;
use shared::pb::session::{Advice, Consistency, TokenGrade, Verdict};
use shared::time::to_proto;
use tonic::Code;
use uuid::Uuid;

use crate::harness::shop::{
    add_line, create_session, get_cart, seconds, validate, validate_strong, validation,
};
use crate::harness::trust::{
    authenticate, authentication, disabling, ends_at, get, grade_of, identity, log_in, own_sessions, persist,
    rotate, rotation, set_policy, short, start, start_with, subject,
};
use crate::harness::{Answer as _, Caller, Options, assert_refused, reason_of};

fn creation(sub: &str) -> pb::CreateSessionRequest {
    pb::CreateSessionRequest {
        touchpoint: "web".to_owned(),
        subject: Some(subject(sub)),
        ..Default::default()
    }
}

/// The verdict where this is asked of the authentication, from memory and from the database, which must agree.
async fn demand(
    caller: &Caller,
    token: &str,
    level: i32,
    max_age: Option<i64>,
) -> pb::ValidateSessionResponse {
    let ask = async |consistency| {
        let request = pb::ValidateSessionRequest {
            required_assurance: level,
            max_authentication_age: max_age.map(seconds),
            ..validation(token, consistency)
        };
        caller.sessions().validate_session(request).await.answer()
    };
    let (read, known) = (ask(Consistency::Strong).await, ask(Consistency::Bounded).await);
    assert_eq!((known.verdict(), &known.step_up), (read.verdict(), &read.step_up));
    read
}

#[tokio::test]
async fn a_login_leaves_no_token_of_before_alive() {
    let (stack, caller) = start().await;
    let replica = stack.session_svc(&Options::default());
    let other = caller.at_session(&replica);
    let (session, first) = create_session(&caller).await;
    let second = rotate(&caller, &first).await;
    assert_eq!(validate(&caller, &second).await.verdict(), Verdict::Active, "and so it is in use");
    let third = rotate(&caller, &second).await;
    let (bound, token) = authenticate(&caller, &second, identity("lena", 1)).await;
    assert_eq!((&bound.session_id, &bound.shopper_id), (&session.session_id, &session.shopper_id));
    for dead in [&first, &second, &third] {
        for answer in [validate(&caller, dead).await, validate_strong(&other, dead).await] {
            let found = (answer.verdict(), answer.token_grade(), answer.advice());
            assert_eq!(found, (Verdict::TokenSuperseded, TokenGrade::Orphan, Advice::CreateSession));
        }
        let refused = caller.sessions().rotate_session(rotation(dead)).await;
        let status = refused.refused(Code::FailedPrecondition, "SESSION_TOKEN_SUPERSEDED");
        assert_eq!(grade_of(&status), "ORPHAN");
    }
    for answer in [validate(&caller, &token).await, validate_strong(&other, &token).await] {
        assert_eq!((answer.verdict(), answer.token_grade()), (Verdict::Active, TokenGrade::Current));
    }
}

#[tokio::test]
async fn every_authentication_sets_the_absolute_deadline_anew_and_never_beyond_the_providers() {
    let (stack, caller) = start().await;
    let (session, token) = create_session(&caller).await;
    let day = TimeDelta::hours(24);
    assert_eq!(ends_at(&session), stack.now() + day);
    stack.advance(TimeDelta::minutes(10));
    let (session, token) = authenticate(&caller, &token, identity("lena", 1)).await;
    assert_eq!(ends_at(&session), stack.now() + day);
    let end = stack.now() + TimeDelta::minutes(25);
    let bounded = pb::AssertedIdentity { session_end_time: Some(to_proto(end)), ..identity("lena", 2) };
    let (session, token) = authenticate(&caller, &token, bounded).await;
    assert_eq!(ends_at(&session), end);
    stack.advance(TimeDelta::minutes(5));
    let token = rotate(&caller, &token).await;
    let answer = validate(&caller, &token).await;
    assert_eq!(ends_at(&answer.session.unwrap()), end, "use moves none");
    let (session, token) = authenticate(&caller, &token, identity("lena", 1)).await;
    assert_eq!(ends_at(&session), stack.now() + day, "the provider has a session without end by now");
    stack.advance(end - stack.now());
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
}

#[tokio::test]
async fn what_the_provider_says_of_times_must_make_sense() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let (now, later) = (Some(to_proto(stack.now())), Some(to_proto(stack.now() + TimeDelta::seconds(1))));
    for bad in [
        pb::AssertedIdentity { session_end_time: now, ..identity("lena", 1) },
        pb::AssertedIdentity { authenticate_time: later, ..identity("lena", 1) },
        identity("lena", 0),
        identity("lena", 4),
    ] {
        let refused = caller.sessions().authenticate_session(authentication(&token, bad)).await;
        refused.refused(Code::InvalidArgument, "FIELD_INVALID");
    }
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
}

#[tokio::test]
async fn a_level_is_asked_for_stepped_up_to_and_falls_with_age() {
    let policy = pb::SessionPolicy {
        level_2_max_age: Some(seconds(600)),
        level_3_max_age: Some(seconds(300)),
        ..Default::default()
    };
    let (stack, caller) = start_with(policy).await;
    let (_, token) = create_session(&caller).await;
    let answer = demand(&caller, &token, 1, None).await;
    let nobody = pb::StepUp { required_assurance: 1, ..Default::default() };
    assert_eq!((answer.verdict(), answer.step_up), (Verdict::AssuranceTooLow, Some(nobody)));
    let (_, token) = authenticate(&caller, &token, identity("lena", 1)).await;
    let answer = demand(&caller, &token, 2, None).await;
    let proved = Some(to_proto(stack.now()));
    let step_up =
        pb::StepUp { required_assurance: 2, assurance: 1, authenticate_time: proved, ..Default::default() };
    assert_eq!((answer.verdict(), answer.step_up), (Verdict::AssuranceTooLow, Some(step_up)));
    assert_eq!((answer.advice(), answer.session), (Advice::StepUp, None));
    assert_eq!(demand(&caller, &token, 1, None).await.verdict(), Verdict::Active);

    let (session, token) = authenticate(&caller, &token, identity("lena", 2)).await;
    let fall = stack.now() + TimeDelta::seconds(600);
    assert_eq!(session.assurance.unwrap().level_end_time, Some(to_proto(fall)));
    assert_eq!(demand(&caller, &token, 2, None).await.verdict(), Verdict::Active);
    stack.advance(TimeDelta::seconds(599));
    assert_eq!(demand(&caller, &token, 2, None).await.verdict(), Verdict::Active);
    assert_eq!(demand(&caller, &token, 3, None).await.verdict(), Verdict::AssuranceTooLow);
    stack.advance(TimeDelta::seconds(1));
    let answer = demand(&caller, &token, 2, None).await;
    assert_eq!((answer.verdict(), answer.advice()), (Verdict::AuthenticationTooOld, Advice::StepUp));
    assert_eq!(answer.step_up.unwrap().assurance, 1, "what is left of it");
    assert_eq!(demand(&caller, &token, 1, None).await.verdict(), Verdict::Active);
    let (_, token) = authenticate(&caller, &token, identity("lena", 2)).await;
    assert_eq!(demand(&caller, &token, 2, None).await.verdict(), Verdict::Active);
}

#[tokio::test]
async fn an_authentication_can_be_asked_to_be_recent() {
    let (stack, caller) = start().await;
    let (_, token) = log_in(&caller, "lena").await;
    stack.advance(TimeDelta::seconds(300));
    assert_eq!(demand(&caller, &token, 0, Some(300)).await.verdict(), Verdict::Active);
    stack.advance(TimeDelta::seconds(1));
    let answer = demand(&caller, &token, 0, Some(300)).await;
    assert_eq!(answer.verdict(), Verdict::AuthenticationTooOld);
    assert_eq!(answer.step_up.unwrap().max_authentication_age, Some(seconds(300)));
    let an_hour_ago = Some(to_proto(stack.now() - TimeDelta::hours(1)));
    let at_the_provider = pb::AssertedIdentity { authenticate_time: an_hour_ago, ..identity("lena", 1) };
    let (_, token) = authenticate(&caller, &token, at_the_provider).await;
    let answer = demand(&caller, &token, 0, Some(300)).await;
    assert_eq!(answer.verdict(), Verdict::AuthenticationTooOld, "a login is as old as its authentication");
    let (_, token) = authenticate(&caller, &token, identity("lena", 1)).await;
    assert_eq!(demand(&caller, &token, 0, Some(300)).await.verdict(), Verdict::Active);
}

#[tokio::test]
async fn a_session_keeps_its_subject() {
    let (_stack, caller) = start().await;
    let (session, token) = log_in(&caller, "lena").await;
    let refused = caller
        .sessions()
        .authenticate_session(authentication(&token, identity("max", 3)))
        .await;
    refused.refused(Code::FailedPrecondition, "SESSION_SUBJECT_DIFFERS");
    assert_eq!(get(&caller, &session).await, session);
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
}

#[tokio::test]
async fn a_repetition_gets_the_same_token_and_another_login_under_its_id_none() {
    let (_stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let request_id = Uuid::from_u128(7).to_string();
    let request = pb::AuthenticateSessionRequest {
        request_id: request_id.clone(),
        ..authentication(&token, identity("lena", 1))
    };
    let at_once =
        (0..8).map(|_| async { caller.sessions().authenticate_session(request.clone()).await.answer() });
    let answers = join_all(at_once).await;
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    let again = caller.sessions().authenticate_session(request.clone()).await.answer();
    assert_eq!(again, answers[0]);
    let strategy = pb::MergeStrategy::Max.into();
    for other in [
        pb::AuthenticateSessionRequest {
            proof: Some(Proof::Asserted(identity("max", 1))),
            ..request.clone()
        },
        pb::AuthenticateSessionRequest {
            proof: Some(Proof::Asserted(identity("lena", 2))),
            ..request.clone()
        },
        pb::AuthenticateSessionRequest { merge_strategy: strategy, ..request.clone() },
    ] {
        let refused = caller.sessions().authenticate_session(other).await;
        refused.refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
    }
    assert_eq!(validate_strong(&caller, &again.session_token).await.verdict(), Verdict::Active);
}

#[tokio::test]
async fn of_several_logins_of_a_session_at_once_one_wins_and_its_token_alone_lives() {
    let (stack, caller) = start().await;
    let replica = stack.session_svc(&Options::default());
    let callers = [caller.clone(), caller.at_session(&replica)];
    for round in 0..10 {
        let (session, token) = create_session(&caller).await;
        let login = async |n: usize| {
            let request = authentication(&token, identity(&format!("subject-{round}-{n}"), 1));
            callers[n % 2].sessions().authenticate_session(request).await
        };
        let (won, lost): (Vec<_>, Vec<_>) =
            join_all((0..6).map(login)).await.into_iter().partition(Result::is_ok);
        assert_eq!(won.len(), 1, "{lost:?}");
        for status in lost.into_iter().map(Result::unwrap_err) {
            match reason_of(&status).as_str() {
                "CONCURRENT_CHANGE" => assert_eq!(status.code(), Code::Aborted),
                _ => assert_refused(&status, Code::FailedPrecondition, "SESSION_TOKEN_SUPERSEDED"),
            }
        }
        let won = won.into_iter().map(Result::unwrap).next().unwrap().into_inner();
        assert_eq!(get(&caller, &session).await.subject, won.session.unwrap().subject);
        for caller in &callers {
            assert_eq!(validate_strong(caller, &won.session_token).await.verdict(), Verdict::Active);
            assert_eq!(validate_strong(caller, &token).await.verdict(), Verdict::TokenSuperseded);
        }
    }
}

#[tokio::test]
async fn more_logins_than_connections_by_tokens_just_handed_out_do_not_wait_for_each_other() {
    let (_stack, caller) = start().await;
    let sessions = join_all((0..64).map(async |n| {
        let (_, old) = create_session(&caller).await;
        (format!("subject-{n}"), rotate(&caller, &old).await, old)
    }))
    .await;
    let logins = sessions
        .iter()
        .map(|(sub, token, _)| authenticate(&caller, token, identity(sub, 1)));
    for ((_, token), (_, child, old)) in join_all(logins).await.iter().zip(&sessions) {
        assert_eq!(validate_strong(&caller, token).await.verdict(), Verdict::Active);
        for dead in [child, old] {
            assert_eq!(validate_strong(&caller, dead).await.token_grade(), TokenGrade::Orphan);
        }
    }
}

#[tokio::test]
async fn a_disabled_subject_neither_logs_in_nor_gets_a_session_until_it_is_enabled() {
    let (_stack, caller) = start().await;
    let (_, before) = log_in(&caller, "lena").await;
    let done = caller.sessions().disable_subject(disabling("lena")).await.answer();
    assert_eq!(done.revoked_count, 1);
    let (_, token) = create_session(&caller).await;
    let login = authentication(&token, identity("lena", 1));
    let refused = caller.sessions().authenticate_session(login.clone()).await;
    refused.refused(Code::FailedPrecondition, "SUBJECT_DISABLED");
    let refused = caller.sessions().create_session(creation("lena")).await;
    refused.refused(Code::FailedPrecondition, "SUBJECT_DISABLED");
    let request = pb::EnableSubjectRequest { subject: Some(subject("lena")), ..Default::default() };
    caller.sessions().enable_subject(request).await.answer();
    caller.sessions().authenticate_session(login).await.answer();
    caller.sessions().create_session(creation("lena")).await.answer();
    assert_eq!(validate(&caller, &before).await.verdict(), Verdict::Revoked, "what ended stays ended");
}

#[tokio::test]
async fn a_session_is_remembered_as_long_as_its_last_login_says() {
    let (stack, caller) = start_with(short()).await;
    let (_, token) = create_session(&caller).await;
    let remembering = |token: &str, remember_me| pb::AuthenticateSessionRequest {
        remember_me,
        ..authentication(token, identity("lena", 1))
    };
    let refused = caller.sessions().authenticate_session(remembering(&token, true)).await;
    refused.refused(Code::InvalidArgument, "FIELD_INVALID");
    let request = pb::CreateSessionRequest { remember_me: true, ..creation("lena") };
    let refused = caller.sessions().create_session(request).await;
    refused.refused(Code::InvalidArgument, "FIELD_INVALID");

    let (day, month) = (seconds(24 * 3600), seconds(30 * 24 * 3600));
    let remember_me = Some(pb::RememberMe { idle_timeout: Some(day), absolute_lifetime: Some(month) });
    set_policy(&caller, pb::SessionPolicy { remember_me, ..short() }).await;
    let done = caller.sessions().authenticate_session(remembering(&token, true)).await.answer();
    let (session, token) = (done.session.unwrap(), done.session_token);
    assert!(session.remember_me);
    assert_eq!(ends_at(&session), stack.now() + TimeDelta::days(30));
    stack.advance(TimeDelta::hours(23));
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
    let done = caller
        .sessions()
        .authenticate_session(remembering(&token, false))
        .await
        .answer();
    let (session, token) = (done.session.unwrap(), done.session_token);
    assert!(!session.remember_me);
    assert_eq!(ends_at(&session), stack.now() + TimeDelta::minutes(5));
    stack.advance(TimeDelta::seconds(61));
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::IdleExpired);
}

#[tokio::test]
async fn a_subject_is_one_shopper_on_every_device() {
    let (_stack, caller) = start().await;
    let (phone, on_phone) = log_in(&caller, "lena").await;
    add_line(&caller, &on_phone, "85123A", 2).await;
    let (laptop, on_laptop) = log_in(&caller, "lena").await;
    let third = caller.sessions().create_session(creation("lena")).await.answer();
    assert_eq!(laptop.shopper_id, phone.shopper_id);
    assert_eq!(third.session.unwrap().shopper_id, phone.shopper_id);
    let cart = get_cart(&caller, &on_phone).await;
    for token in [&on_laptop, &third.session_token] {
        assert_eq!(get_cart(&caller, token).await, cart);
    }
    assert_eq!(own_sessions(&caller, &on_laptop).await.len(), 3);
    // Two devices that a subject comes in by at the same time are one shopper, too.
    let both = join_all((0..2).map(async |_| {
        let (_, token) = create_session(&caller).await;
        let login = || async {
            caller
                .sessions()
                .authenticate_session(authentication(&token, identity("max", 1)))
                .await
        };
        persist(login).await.unwrap().session.unwrap().shopper_id
    }))
    .await;
    assert_eq!(both[0], both[1]);
}
