//! OWASP ASVS 5.0, V7.4 and V7.5: how sessions end, and what a session must show before it changes anything that counts.
//! docs/security.md has the table.

use chrono::TimeDelta;
use futures_util::StreamExt as _;
use futures_util::stream;
use session_svc::domain::token::SessionToken;
use shared::pb::session as pb;
use shared::pb::session::revoke_session_request::Target;
use shared::pb::session::revoke_subject_sessions_request::Target as SubjectTarget;
use shared::pb::session::{SessionState, Verdict};
use shared::time::from_proto;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::shop::{
    create_session, create_touchpoint, line, revoke, seconds, session_id, validate, validation, web,
};
use crate::harness::trust::{
    BEYOND_BOUND, authenticate, authentication, disabling, elevation, end_own, identity, log_in, logout,
    logout_everywhere, mint, own_sessions, start, subject,
};
use crate::harness::{Answer as _, Options, Watch};

#[tokio::test]
async fn asvs_7_4_1_a_revoked_session_is_good_for_nothing_on_any_replica() {
    let (stack, caller) = start().await;
    let replica = stack.session_svc(&Options::default());
    let other = caller.at_session(&replica);
    for _ in 0..20 {
        let (session, token) = create_session(&caller).await;
        assert_eq!(validate(&other, &token).await.verdict(), Verdict::Active, "it is in the other's cache");
        let writing = async {
            for n in 0..5 {
                let line = line(&token, &format!("sku-{n}"), 1);
                let _ = other.carts().add_cart_line(line).await;
                validate(&other, &token).await;
            }
        };
        tokio::join!(writing, async { revoke(&caller, &session).await });
        assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Revoked, "at once");
        stack.advance(BEYOND_BOUND);
        assert_eq!(validate(&other, &token).await.verdict(), Verdict::Revoked, "within the bound");
        let line = line(&token, "late", 1);
        let refused = other.carts().add_cart_line(line).await;
        refused.refused(Code::FailedPrecondition, "SESSION_REVOKED");
    }
}

#[tokio::test]
async fn asvs_7_4_2_a_disabled_subject_has_no_session_and_gets_none() {
    let (_stack, caller) = start().await;
    let mint = async |count| {
        let attempts = stream::iter(0..count).map(async |_| {
            let request = pb::CreateSessionRequest {
                touchpoint: "web".to_owned(),
                subject: Some(subject("lena")),
                ..Default::default()
            };
            let made = caller.sessions().create_session(request).await.ok()?;
            Some(made.into_inner().session_token)
        });
        attempts
            .buffer_unordered(16)
            .filter_map(async |made| made)
            .collect::<Vec<_>>()
            .await
    };
    let mut tokens: Vec<String> = mint(100).await;
    let disabling = async { caller.sessions().disable_subject(disabling("lena")).await.answer() };
    let (disabled, meanwhile) = tokio::join!(disabling, mint(100));
    assert!(disabled.revoked_count >= 100, "{disabled:?}");
    tokens.extend(meanwhile);
    for token in &tokens {
        assert_eq!(validate(&caller, token).await.verdict(), Verdict::Revoked);
    }
    assert_eq!(mint(1).await, Vec::<String>::new());
    let (_, anonymous) = create_session(&caller).await;
    let refused = caller
        .sessions()
        .authenticate_session(authentication(&anonymous, identity("lena", 1)))
        .await;
    refused.refused(Code::FailedPrecondition, "SUBJECT_DISABLED");
}

#[tokio::test]
async fn asvs_7_4_3_after_a_change_of_a_factor_every_other_session_can_be_ended() {
    let (_stack, caller) = start().await;
    let (_, phone) = log_in(&caller, "lena").await;
    let (_, till) = log_in(&caller, "lena").await;
    let (_, laptop) = log_in(&caller, "lena").await;
    let (_, strangers) = log_in(&caller, "max").await;
    let mut watch = Watch::open(caller.session_events()).await;
    let ended = caller
        .sessions()
        .revoke_subject_sessions(logout_everywhere(&laptop, true))
        .await
        .answer();
    assert_eq!(ended.revoked_count, 2);
    for _ in 0..2 {
        let event = watch.next_of("session.revoked").await;
        assert!(format!("{event:?}").contains("CREDENTIAL_CHANGED"), "{event:?}");
    }
    for (token, verdict) in [
        (&phone, Verdict::Revoked),
        (&till, Verdict::Revoked),
        (&laptop, Verdict::Active),
        (&strangers, Verdict::Active),
    ] {
        assert_eq!(validate(&caller, token).await.verdict(), verdict);
    }
}

#[tokio::test]
async fn asvs_7_4_4_a_logout_always_succeeds_and_can_be_repeated() {
    let (_stack, caller) = start().await;
    let (session, token) = create_session(&caller).await;
    let once = caller.sessions().revoke_session(logout(&token)).await.answer();
    assert_eq!(once, caller.sessions().revoke_session(logout(&token)).await.answer());
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Revoked);
    let forged = SessionToken::new(session_id(&session), [7; 32]).expose();
    for unknown in ["", "nonsense", &forged] {
        let answer = caller.sessions().revoke_session(logout(unknown)).await.answer();
        assert_eq!(answer, pb::RevokeSessionResponse::default());
    }
}

#[tokio::test]
async fn asvs_7_4_5_an_administrator_ends_one_users_sessions_or_all_there_are() {
    let (stack, caller) = start().await;
    create_touchpoint(&caller, pb::Touchpoint { touchpoint: "pos".to_owned(), ..web() }).await;
    let (_, lenas) = log_in(&caller, "lena").await;
    let request = pb::RevokeSubjectSessionsRequest {
        target: Some(SubjectTarget::Subject(subject("lena"))),
        reason: pb::RevokeReason::Admin.into(),
        ..Default::default()
    };
    assert_eq!(caller.sessions().revoke_subject_sessions(request).await.answer().revoked_count, 1);
    assert_eq!(validate(&caller, &lenas).await.verdict(), Verdict::Revoked);

    let tokens = mint(&caller, 500).await;
    let untouched = "select count(*) from session.sessions where revoked_at is null";
    let before = stack.database.count(untouched).await;
    let reason = pb::RevokeReason::Compromised.into();
    let request = pb::RevokeTenantSessionsRequest { reason, ..Default::default() };
    caller.sessions().revoke_tenant_sessions(request).await.answer();
    assert_eq!(stack.database.count(untouched).await, before, "no row a session: the cost is one epoch");
    let verdicts = stream::iter(&tokens).map(|token| validate(&caller, token)).buffer_unordered(32);
    let alive = verdicts
        .filter(|answer| std::future::ready(answer.verdict() != Verdict::Revoked))
        .count();
    assert_eq!(alive.await, 0);
    let (_, later) = create_session(&caller).await;
    assert_eq!(validate(&caller, &later).await.verdict(), Verdict::Active);
}

#[tokio::test]
async fn asvs_7_5_1_a_stale_authentication_does_not_do_where_a_fresh_one_is_asked_for() {
    let (stack, caller) = start().await;
    let (_, token) = log_in(&caller, "lena").await;
    let (other, _) = log_in(&caller, "lena").await;
    let request = |token: &str| pb::ValidateSessionRequest {
        required_assurance: 1,
        max_authentication_age: Some(seconds(300)),
        ..validation(token, pb::Consistency::Bounded)
    };
    let fresh = caller.sessions().validate_session(request(&token)).await.answer();
    assert_eq!(fresh.verdict(), Verdict::Active);
    stack.advance(TimeDelta::seconds(301));
    let stale = caller.sessions().validate_session(request(&token)).await.answer();
    assert_eq!((stale.verdict(), stale.advice()), (Verdict::AuthenticationTooOld, pb::Advice::StepUp));
    let step_up = stale.step_up.unwrap();
    assert_eq!((step_up.required_assurance, step_up.assurance), (1, 1));
    assert_eq!((stale.session, step_up.max_authentication_age), (None, Some(seconds(300))));
    let aged = |token: &str| {
        let mut request = end_own(token, &other);
        if let Some(Target::OwnSession(own)) = &mut request.target {
            own.max_authentication_age = Some(seconds(300));
        }
        request
    };
    let refused = caller.sessions().revoke_session(aged(&token)).await;
    let status = refused.refused(Code::FailedPrecondition, "SESSION_AUTHENTICATION_TOO_OLD");
    assert_eq!(status.get_details_error_info().unwrap().metadata["advice"], "STEP_UP");
    let (_, token) = authenticate(&caller, &token, identity("lena", 1)).await;
    caller.sessions().revoke_session(aged(&token)).await.answer();
}

#[tokio::test]
async fn asvs_7_5_2_a_user_sees_and_ends_their_own_sessions_and_no_others() {
    use prost::Message as _;
    let (stack, caller) = start().await;
    let request = pb::CreateSessionRequest {
        touchpoint: "web".to_owned(),
        device: "Lena's phone".to_owned(),
        place: "Lyon, FR".to_owned(),
        ..Default::default()
    };
    let created = caller.sessions().create_session(request).await.answer();
    let (phone, at_phone) = authenticate(&caller, &created.session_token, identity("lena", 1)).await;
    stack.advance(TimeDelta::seconds(1));
    let (laptop, at_laptop) = log_in(&caller, "lena").await;
    let (strangers, at_strangers) = log_in(&caller, "max").await;
    let listed = own_sessions(&caller, &at_laptop).await;
    let ids: Vec<_> = listed.iter().map(|session| (&session.session_id, session.is_current)).collect();
    assert_eq!(ids, [(&phone.session_id, false), (&laptop.session_id, true)]);
    assert_eq!((listed[0].device.as_str(), listed[0].place.as_str()), ("Lena's phone", "Lyon, FR"));
    let seen = from_proto(listed[0].last_seen_time.unwrap()).unwrap();
    assert!(from_proto(listed[0].create_time.unwrap()).unwrap() <= seen);
    for session in &listed {
        let bytes = session.encode_to_vec();
        for token in [&at_phone, &at_laptop] {
            let secret = SessionToken::parse(token).unwrap();
            for hidden in [secret.secret().as_slice(), secret.hash().bytes(), token.as_bytes()] {
                assert!(!bytes.windows(hidden.len()).any(|window| window == hidden));
            }
        }
    }
    let refused = caller.sessions().revoke_session(end_own(&at_laptop, &strangers)).await;
    refused.refused(Code::NotFound, "SESSION_NOT_FOUND");
    let ended = caller.sessions().revoke_session(end_own(&at_laptop, &phone)).await.answer();
    assert_eq!(ended.session.unwrap().state(), SessionState::Revoked);
    assert_eq!(validate(&caller, &at_phone).await.verdict(), Verdict::Revoked);
    assert_eq!(validate(&caller, &at_strangers).await.verdict(), Verdict::Active);
    let (_, anonymous) = create_session(&caller).await;
    let refused = caller.sessions().revoke_session(end_own(&anonymous, &laptop)).await;
    refused.refused(Code::FailedPrecondition, "SESSION_ANONYMOUS");
}

#[tokio::test]
async fn asvs_7_5_3_leave_for_one_action_is_for_that_action_once() {
    let (stack, caller) = start().await;
    let (_, token) = log_in(&caller, "lena").await;
    let grant = |token: &str, required_assurance| pb::GrantElevationRequest {
        required_assurance,
        max_authentication_age: Some(seconds(60)),
        ttl: Some(seconds(30)),
        ..elevation(token)
    };
    let mut sessions = caller.sessions();
    let refused = sessions.grant_elevation(grant(&token, 2)).await;
    refused.refused(Code::FailedPrecondition, "SESSION_ASSURANCE_TOO_LOW");
    let (session, token) = authenticate(&caller, &token, identity("lena", 2)).await;
    let granted = sessions.grant_elevation(grant(&token, 2)).await.answer().elevation_token;
    let redeem = |action: &str, detail: &str| pb::RedeemElevationRequest {
        elevation_token: granted.clone(),
        action: action.to_owned(),
        detail: detail.to_owned(),
        ..Default::default()
    };
    let good = redeem("payment.create", "120.00 EUR to FR76");
    for other in
        [redeem("payment.cancel", "120.00 EUR to FR76"), redeem("payment.create", "120.00 EUR to DE89")]
    {
        let refused = sessions.redeem_elevation(other).await;
        refused.refused(Code::FailedPrecondition, "ELEVATION_MISMATCH");
    }
    let redeemed = sessions.redeem_elevation(good.clone()).await.answer().session.unwrap();
    assert_eq!(redeemed.session_id, session.session_id);
    let replayed = sessions.redeem_elevation(good).await;
    replayed.refused(Code::FailedPrecondition, "ELEVATION_REDEEMED");

    let late = sessions.grant_elevation(grant(&token, 2)).await.answer().elevation_token;
    let unused = sessions.grant_elevation(grant(&token, 2)).await.answer().elevation_token;
    let with = |elevation_token| pb::RedeemElevationRequest {
        elevation_token,
        ..redeem("payment.create", "120.00 EUR to FR76")
    };
    sessions.revoke_session(logout(&token)).await.answer();
    let refused = sessions.redeem_elevation(with(unused)).await;
    refused.refused(Code::FailedPrecondition, "SESSION_REVOKED");
    let (_, token) = create_session(&caller).await;
    let (_, token) = authenticate(&caller, &token, identity("lena", 2)).await;
    stack.advance(TimeDelta::seconds(61));
    let refused = sessions.grant_elevation(grant(&token, 2)).await;
    refused.refused(Code::FailedPrecondition, "SESSION_AUTHENTICATION_TOO_OLD");
    let refused = sessions.redeem_elevation(with(late)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "of an ended session, and too late");
}
