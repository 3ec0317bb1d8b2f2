//! OWASP ASVS 5.0, chapter V10: session tokens are refresh tokens, and every service that asks is a confidential client.
//! docs/security.md has the table.

use chrono::TimeDelta;
use session_svc::domain::token::SessionToken;
use shared::issuer::Grant;
use shared::pb::session as pb;
use shared::pb::session::revoke_session_request::Target;
use shared::pb::session::{SessionState, Verdict};
use shared::time::to_proto;
use tonic::Code;

use crate::harness::shop::{
    create_session, create_touchpoint, session_id, validate, validate_strong, validation, web,
};
use crate::harness::trust::{
    authenticate, authentication, end_own, ends_at, get, grade_of, identity, log_in, logout, own_sessions,
    rotate, rotation, short, start, start_with, subject,
};
use crate::harness::{Answer as _, Watch, raw, reason_of, workload};

/// Whether a message holds a text.
fn holds(message: &impl prost::Message, text: &str) -> bool {
    let bytes = message.encode_to_vec();
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn asvs_10_1_1_a_token_is_answered_to_whoever_it_is_made_for_and_to_nobody_else() {
    let (_stack, caller) = start().await;
    let (session, token) = log_in(&caller, "lena").await;
    let validation = validation(&token, pb::Consistency::Strong);
    let request = pb::ValidateSessionRequest { include_attributes: true, ..validation };
    assert!(!holds(&caller.sessions().validate_session(request).await.answer(), &token[28..68]));
    let request = pb::GetSessionRequest { session_id: session.session_id.clone() };
    assert!(!holds(&caller.sessions().get_session(request).await.answer(), &token[28..68]));
    let request = pb::ListSessionsRequest { session_token: token.clone(), ..Default::default() };
    assert!(!holds(&caller.sessions().list_sessions(request).await.answer(), &token[28..68]));
    let mut sessions = caller.sessions();
    let rotated = sessions.rotate_session(rotation(&token)).await.answer();
    assert!(!holds(&rotated, &token[28..68]) && holds(&rotated, &rotated.session_token));
    let revoked = sessions.revoke_session(logout(&rotated.session_token)).await.answer();
    assert!(!holds(&revoked, &rotated.session_token[28..68]));
    let shown = format!("{rotated:?} {:?} {:?}", rotation(&token), logout(&token));
    assert!(!shown.contains(&token[4..]) && !shown.contains(&rotated.session_token[4..]), "in `Debug`");
}

#[tokio::test]
async fn asvs_10_3_1_a_validation_says_and_checks_whom_the_session_is_for() {
    let (_stack, caller) = start().await;
    create_touchpoint(&caller, pb::Touchpoint { touchpoint: "pos".to_owned(), ..web() }).await;
    let (_, token) = create_session(&caller).await;
    assert_eq!(validate(&caller, &token).await.session.unwrap().touchpoint, "web");
    for consistency in [pb::Consistency::Bounded, pb::Consistency::Strong] {
        let touchpoint = "pos".to_owned();
        let request = pb::ValidateSessionRequest { touchpoint, ..validation(&token, consistency) };
        let answer = caller.sessions().validate_session(request).await.answer();
        assert_eq!((answer.verdict(), answer.session), (Verdict::WrongTouchpoint, None));
    }
}

#[tokio::test]
async fn asvs_10_3_3_the_same_name_of_two_issuers_is_two_subjects() {
    let (_stack, caller) = start().await;
    let email = "lena@example.org";
    let (_, first) = log_in(&caller, email).await;
    let (_, anonymous) = create_session(&caller).await;
    let elsewhere = pb::Subject { issuer: "https://other.example".to_owned(), ..subject(email) };
    let other = pb::AssertedIdentity { subject: Some(elsewhere), ..identity(email, 1) };
    let (session, second) = authenticate(&caller, &anonymous, other.clone()).await;
    assert_eq!(own_sessions(&caller, &first).await.len(), 1);
    assert_eq!(own_sessions(&caller, &second).await.len(), 1);
    assert_ne!(validate(&caller, &first).await.session.unwrap().shopper_id, session.shopper_id);
    let refused = caller.sessions().authenticate_session(authentication(&first, other)).await;
    refused.refused(Code::FailedPrecondition, "SESSION_SUBJECT_DIFFERS");
    let refused = caller.sessions().revoke_session(end_own(&first, &session)).await;
    refused.refused(Code::NotFound, "SESSION_NOT_FOUND");
}

#[tokio::test]
async fn asvs_10_3_4_how_and_when_a_subject_authenticated_is_answered_and_can_be_asked_for() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let require = async |token: &str, required_assurance| {
        let validation = validation(token, pb::Consistency::Bounded);
        let request = pb::ValidateSessionRequest { required_assurance, ..validation };
        caller.sessions().validate_session(request).await.answer()
    };
    let anonymous = require(&token, 1).await;
    assert_eq!((anonymous.verdict(), anonymous.session), (Verdict::AssuranceTooLow, None));
    let passkey = pb::AssertedIdentity {
        acr: "urn:example:aal2".to_owned(),
        amr: vec!["hwk".to_owned(), "pin".to_owned()],
        ..identity("lena", 2)
    };
    let (_, token) = authenticate(&caller, &token, passkey).await;
    let assurance = require(&token, 2).await.session.unwrap().assurance.unwrap();
    assert_eq!((assurance.level, assurance.acr.as_str()), (2, "urn:example:aal2"));
    assert_eq!(assurance.amr, ["hwk", "pin"]);
    assert_eq!(assurance.authenticate_time, Some(to_proto(stack.now())));
    let lacking = require(&token, 3).await;
    assert_eq!((lacking.verdict(), lacking.advice()), (Verdict::AssuranceTooLow, pb::Advice::StepUp));
    let step_up = lacking.step_up.unwrap();
    assert_eq!((step_up.required_assurance, step_up.assurance), (3, 2));
}

#[tokio::test]
async fn asvs_10_4_5_a_replayed_token_ends_the_whole_family() {
    let (stack, caller) = start().await;
    let (session, first) = log_in(&caller, "lena").await;
    let second = rotate(&caller, &first).await;
    validate(&caller, &second).await;
    let third = rotate(&caller, &second).await;
    assert_eq!(validate(&caller, &third).await.verdict(), Verdict::Active);
    let raced = validate(&caller, &first).await;
    assert_eq!((raced.verdict(), raced.token_grade()), (Verdict::TokenSuperseded, pb::TokenGrade::Race));
    assert_eq!(raced.advice(), pb::Advice::UseNewToken);
    assert_eq!(validate_strong(&caller, &third).await.verdict(), Verdict::Active, "a race is no theft");

    stack.advance(TimeDelta::seconds(31));
    let mut watch = Watch::open(caller.session_events()).await;
    let stolen = caller.sessions().rotate_session(rotation(&first)).await;
    let status = stolen.refused(Code::FailedPrecondition, "SESSION_TOKEN_SUPERSEDED");
    assert_eq!(grade_of(&status), "STALE_LINEAGE");
    assert_eq!(validate(&caller, &third).await.verdict(), Verdict::Revoked);
    let ended = get(&caller, &session).await;
    assert_eq!(
        (ended.state(), ended.revoke_reason()),
        (SessionState::Revoked, pb::RevokeReason::StaleLineage)
    );
    assert_eq!(watch.next_of("session.revoked").await.subject, session.session_id);
}

#[tokio::test]
async fn asvs_10_4_8_rotation_does_not_move_the_deadline_of_the_family() {
    let (stack, caller) = start_with(short()).await;
    let (session, mut token) = log_in(&caller, "lena").await;
    for _ in 0..9 {
        stack.advance(TimeDelta::seconds(30));
        let request = rotation(&token);
        let answer = caller.sessions().rotate_session(request).await.answer();
        assert_eq!(answer.session.unwrap().absolute_deadline, session.absolute_deadline);
        token = answer.session_token;
    }
    stack.advance(ends_at(&session) - stack.now());
    let refused = caller.sessions().rotate_session(rotation(&token)).await;
    refused.refused(Code::FailedPrecondition, "SESSION_EXPIRED");
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Expired);
}

#[tokio::test]
async fn asvs_10_4_9_a_user_revokes_the_token_of_a_lost_device() {
    let (_stack, caller) = start().await;
    let (_, lost) = log_in(&caller, "lena").await;
    let successor = rotate(&caller, &lost).await;
    let (_, kept) = log_in(&caller, "lena").await;
    let listed = own_sessions(&caller, &kept).await;
    let device = listed.iter().find(|session| !session.is_current).unwrap();
    caller.sessions().revoke_session(end_own(&kept, device)).await.answer();
    for token in [&lost, &successor] {
        assert_eq!(validate(&caller, token).await.verdict(), Verdict::Revoked);
        let refused = caller.sessions().rotate_session(rotation(token)).await;
        refused.refused(Code::FailedPrecondition, "SESSION_REVOKED");
    }
    assert_eq!(validate(&caller, &kept).await.verdict(), Verdict::Active);
}

#[tokio::test]
async fn asvs_10_4_10_no_method_answers_a_caller_without_its_credential_and_scope() {
    let (stack, caller) = start().await;
    let nobody = caller.with_header(None);
    let weak = stack.caller(&Grant { scope: "nothing".to_owned(), ..workload("weak") });
    let methods: Vec<_> = shared::pb::METHODS
        .iter()
        .filter(|(path, scope)| path.starts_with("/tandem.session.") && scope.is_some())
        .collect();
    assert!(methods.len() > 20, "{}", methods.len());
    for (path, _) in methods {
        let refused = raw::call(nobody.session_channel(), path, vec![]).await;
        refused.refused(Code::Unauthenticated, "CALLER_CREDENTIAL_MISSING");
        let refused = raw::call(weak.session_channel(), path, vec![]).await;
        refused.refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
    }
    let scope = "session.write session.read".to_owned();
    let plain = stack.caller(&Grant { scope, ..workload("kiosk") });
    let (session, token) = create_session(&plain).await;
    let asserted = authentication(&token, identity("lena", 1));
    let by_id =
        pb::RevokeSessionRequest { target: Some(Target::SessionId(session.session_id)), ..logout(&token) };
    for refused in [
        plain.sessions().authenticate_session(asserted).await.err(),
        plain.sessions().revoke_session(by_id).await.err(),
    ] {
        assert_eq!(reason_of(&refused.unwrap()), "CALLER_SCOPE_MISSING");
    }
}

#[tokio::test]
async fn asvs_10_6_2_nobody_is_logged_out_by_a_guess() {
    let (_stack, caller) = start().await;
    let (session, token) = log_in(&caller, "lena").await;
    for n in 0..50 {
        // Knows the id, which is no secret, and guesses the rest.
        let guess = SessionToken::new(session_id(&session), [n; 32]).expose();
        let mut sessions = caller.sessions();
        assert_eq!(sessions.revoke_session(logout(&guess)).await.answer().session, None);
        let refused = sessions.revoke_session(end_own(&guess, &session)).await;
        refused.refused(Code::FailedPrecondition, "SESSION_UNKNOWN");
        assert_eq!(validate(&caller, &guess).await.verdict(), Verdict::SessionUnknown);
    }
    assert_eq!(validate_strong(&caller, &token).await.verdict(), Verdict::Active);
}
