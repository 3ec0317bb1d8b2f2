//! Bad tokens: of another kind, cut short, with a bit flipped, of another tenant or touchpoint. None is a bug, none does
//! anything, and an answer does not tell an unknown session from a wrong secret.

use session_svc::domain::token::{ElevationToken, RecoveryToken, SessionToken};
use shared::id::{SessionId, ShopperId};
use shared::issuer::Grant;
use shared::pb::session as pb;
use shared::pb::session::Verdict;
use shared::time::at;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::harness::shop::{create_touchpoint, session_id, validate_strong, validation, web};
use crate::harness::trust::{
    assertion, authentication, elevation, end_own, get, identity, log_in, logout, rotation, setting, start,
};
use crate::harness::{Answer as _, Caller, START, workload};

/// What every rpc that takes a session token, and may be called without knowing the session, says to one.
async fn said_to(caller: &Caller, token: &str) -> [String; 9] {
    let list = pb::ListSessionsRequest { session_token: token.to_owned(), ..Default::default() };
    let report = pb::ReportLeakedTokenRequest { token: token.to_owned(), ..Default::default() };
    let mut sessions = caller.sessions();
    [
        told(sessions.validate_session(validation(token, pb::Consistency::Strong)).await),
        told(sessions.authenticate_session(authentication(token, identity("lena", 1))).await),
        told(sessions.rotate_session(rotation(token)).await),
        told(sessions.revoke_session(logout(token)).await),
        told(sessions.list_sessions(list).await),
        told(sessions.update_session_attributes(setting(token, "colour", "blue")).await),
        told(sessions.grant_elevation(elevation(token)).await),
        told(sessions.issue_assertion(assertion(token)).await),
        told(sessions.report_leaked_token(report).await),
    ]
}

/// All of an answer that a caller can see, but for what names the call itself.
fn told<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, Status>) -> String {
    match answer {
        Ok(answer) => format!("{:?}", answer.into_inner()),
        Err(status) => {
            let mut info = status.get_details_error_info().expect("every refusal has a reason");
            info.metadata.remove("trace_id");
            let mut metadata: Vec<_> = info.metadata.into_iter().collect();
            metadata.sort();
            assert!(!matches!(status.code(), Code::Internal | Code::Unknown), "{status:?}");
            format!("{:?} {} {} {metadata:?}", status.code(), status.message(), info.reason)
        }
    }
}

/// A session of a subject, the answers to its tokens' forgeries, and that it lives on.
async fn assert_all_unknown(tokens: impl IntoIterator<Item = String>) {
    let (_stack, caller) = start().await;
    let (session, token) = log_in(&caller, "lena").await;
    let nobodys = SessionToken::new(SessionId::new(at(START), [5; 10]), [6; 32]).expose();
    let unknown = said_to(&caller, &nobodys).await;
    assert!(unknown[0].contains("SessionUnknown") && unknown[1].contains("SESSION_UNKNOWN"), "{unknown:?}");
    for bad in tokens {
        assert_eq!(said_to(&caller, &bad).await, unknown, "{bad:?}");
    }
    assert_eq!(get(&caller, &session).await, session, "nothing touched it");
    assert_eq!(validate_strong(&caller, &token).await.verdict(), Verdict::Active);
}

/// A token as the services make them.
fn sample() -> String {
    SessionToken::new(SessionId::new(at(START), [1; 10]), [2; 32]).expose()
}

#[tokio::test]
async fn tokens_of_another_kind_are_of_no_session() {
    let id = SessionId::new(at(START), [1; 10]);
    let elevation = ElevationToken::new(id, [2; 32]).expose();
    let recovery = RecoveryToken::new(ShopperId::from_uuid(id.uuid()), [2; 32]).expose();
    let texts = [
        elevation.clone(),
        recovery,
        elevation.replace("tde_", "tds_").to_uppercase(),
        id.to_string(),
        id.uuid().to_string(),
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJsZW5hIn0.".to_owned(),
        format!("Bearer {}", sample()),
        format!(" {}", sample()),
        format!("{}\n", sample()),
        format!("{}=", sample()),
        sample().replace("tds_", "TDS_"),
        "tds_".to_owned() + &"\u{e9}".repeat(71),
        "\u{0}".repeat(75),
        "x".repeat(100_000),
        "' or 1=1 --".to_owned(),
    ];
    assert_all_unknown(texts).await;
}

#[tokio::test]
async fn a_token_cut_short_anywhere_is_of_no_session() {
    let token = sample();
    assert_all_unknown((1..token.len()).map(|length| token[..length].to_owned())).await;
}

/// The session's own token with any byte changed, so that only the change is wrong with it.
#[tokio::test]
async fn a_token_with_a_flipped_bit_is_of_no_session() {
    let (_stack, caller) = start().await;
    let (session, token) = log_in(&caller, "lena").await;
    let nobodys = SessionToken::new(SessionId::new(at(START), [5; 10]), [6; 32]).expose();
    let unknown = said_to(&caller, &nobodys).await;
    for i in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        // The eighth bit would make it no text at all.
        bytes[i] ^= 1 << (i % 7);
        let flipped = String::from_utf8(bytes).unwrap();
        assert_eq!(said_to(&caller, &flipped).await, unknown, "byte {i}");
    }
    // Below the encoding, with the checksum mended: the id, and the secret.
    let (id, secret) =
        (session_id(&session).uuid().as_u128(), *SessionToken::parse(&token).unwrap().secret());
    for i in 0..128 {
        let id = SessionId::from_uuid(Uuid::from_u128(id ^ (1 << i)));
        let forged = SessionToken::new(id, secret).expose();
        assert_eq!(said_to(&caller, &forged).await, unknown, "bit {i} of the id");
    }
    for i in 0..256 {
        let mut secret = secret;
        secret[i / 8] ^= 1 << (i % 8);
        let forged = SessionToken::new(session_id(&session), secret).expose();
        assert_eq!(said_to(&caller, &forged).await, unknown, "bit {i} of the secret");
    }
    assert_eq!(get(&caller, &session).await, session, "nothing touched it");
}

#[tokio::test]
async fn a_wrong_secret_and_an_unknown_session_are_answered_alike() {
    let (stack, caller) = start().await;
    let (session, token) = log_in(&caller, "lena").await;
    let forged = SessionToken::new(session_id(&session), [6; 32]).expose();
    let nobodys = SessionToken::new(SessionId::new(at(START), [5; 10]), [6; 32]).expose();
    assert_eq!(said_to(&caller, &forged).await, said_to(&caller, &nobodys).await);
    // Nor does an ended session's id say that it is one.
    caller.sessions().revoke_session(logout(&token)).await.answer();
    assert_eq!(said_to(&caller, &forged).await, said_to(&caller, &nobodys).await);
    // Nor another tenant's.
    let other = stack.caller(&Grant { tenant: "other".to_owned(), ..workload("storefront") });
    create_touchpoint(&other, web()).await;
    let (_, theirs) = log_in(&other, "lena").await;
    assert_eq!(said_to(&caller, &theirs).await, said_to(&caller, &nobodys).await);
    assert_eq!(validate_strong(&other, &theirs).await.verdict(), Verdict::Active);
}

#[tokio::test]
async fn a_caller_of_another_touchpoint_can_do_nothing_with_a_token() {
    let (stack, caller) = start().await;
    create_touchpoint(&caller, pb::Touchpoint { touchpoint: "pos".to_owned(), ..web() }).await;
    let (session, token) = log_in(&caller, "lena").await;
    let touchpoints = Some(vec!["pos".to_owned()]);
    let till = stack.caller(&Grant { touchpoints, ..workload("till") });
    let mut sessions = till.sessions();
    let at_pos = pb::ValidateSessionRequest {
        touchpoint: "pos".to_owned(),
        ..validation(&token, pb::Consistency::Strong)
    };
    let answer = sessions.validate_session(at_pos).await.answer();
    assert_eq!((answer.verdict(), answer.session), (Verdict::WrongTouchpoint, None));
    let list = pb::ListSessionsRequest { session_token: token.clone(), ..Default::default() };
    for status in [
        sessions
            .validate_session(validation(&token, pb::Consistency::Strong))
            .await
            .unwrap_err(),
        sessions.rotate_session(rotation(&token)).await.unwrap_err(),
        sessions
            .authenticate_session(authentication(&token, identity("lena", 1)))
            .await
            .unwrap_err(),
        sessions.revoke_session(logout(&token)).await.unwrap_err(),
        sessions.revoke_session(end_own(&token, &session)).await.unwrap_err(),
        sessions.list_sessions(list).await.unwrap_err(),
    ] {
        crate::harness::assert_refused(&status, Code::PermissionDenied, "CALLER_TOUCHPOINT_REFUSED");
    }
    assert_eq!(get(&caller, &session).await, session, "nothing touched it");
}
