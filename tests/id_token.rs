//! Logging in by an ID token of an identity provider: who it names is bound, and nothing is for whatever is wrong with it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::TimeDelta;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use shared::pb::session as pb;
use shared::pb::session::{TokenGrade, Verdict};
use shared::time::{Time, to_proto};
use tonic::Code;
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::harness::identity::{FOREIGN_PROVIDER, KEY, NONCE, OTHER_PROVIDER, PROVIDER, id_header, login};
use crate::harness::shop::{create_session, create_touchpoint, validate, validate_strong, web};
use crate::harness::trust::{
    assertion, authentication, ends_at, get, identity, own_sessions, set_policy, subject,
};
use crate::harness::{Answer as _, Caller, Stack, Watch, assert_refused, workload};

async fn start() -> (Stack, Caller) {
    let stack = Stack::with_providers();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    (stack, caller)
}

async fn log_in(caller: &Caller, token: &str, id_token: &str) -> pb::AuthenticateSessionResponse {
    caller
        .sessions()
        .authenticate_session(login(token, id_token, NONCE))
        .await
        .answer()
}

#[tokio::test]
async fn an_id_token_says_whose_a_session_is_how_surely_and_for_how_long() {
    let (stack, caller) = start().await;
    let (session, old) = create_session(&caller).await;
    let mut events = Watch::open(caller.session_events()).await;
    let (proved, end) = (stack.now() - TimeDelta::minutes(2), stack.now() + TimeDelta::hours(8));
    let id_token = stack.id_token(&json!({
        "auth_time": proved.timestamp(), "acr": "urn:example:loa", "amr": ["pwd", "mfa"], "sid": "s-1",
        "session_expiry": end.timestamp(),
    }));
    let done = log_in(&caller, &old, &id_token).await;
    let bound = done.session.unwrap();
    assert_eq!((&bound.session_id, bound.subject.clone()), (&session.session_id, Some(subject("lena"))));
    let assurance = pb::Assurance {
        level: 2,
        authenticate_time: Some(to_proto(proved)),
        level_end_time: Some(to_proto(proved + TimeDelta::hours(24))),
        acr: "urn:example:loa".to_owned(),
        amr: vec!["pwd".to_owned(), "mfa".to_owned()],
    };
    assert_eq!((bound.assurance.clone(), ends_at(&bound)), (Some(assurance), end));
    assert_eq!(get(&caller, &session).await, bound);
    assert_eq!(events.next_of("session.authenticated").await.subject, session.session_id);
    for dead in [validate(&caller, &old).await, validate_strong(&caller, &old).await] {
        assert_eq!((dead.verdict(), dead.token_grade()), (Verdict::TokenSuperseded, TokenGrade::Orphan));
    }
    let answer = validate(&caller, &done.session_token).await;
    assert_eq!((answer.verdict(), answer.session.unwrap().subject), (Verdict::Active, bound.subject));
    let sid = "select count(*) from session.sessions where upstream_session = 's-1'";
    assert_eq!(stack.database.count(sid).await, 1);
}

/// Every ID token that is not good, with the code and the reason.
fn bad_tokens(stack: &Stack) -> Vec<(&'static str, String, Code, &'static str)> {
    use Code::{FailedPrecondition, InvalidArgument};
    let now = stack.now().timestamp();
    let (key, other) = (stack.id_key(KEY), stack.id_key("theirs"));
    let (header, good) = (id_header(KEY, Algorithm::EdDSA), stack.id_claims(&json!({})));
    let jwk = |key: &EncodingKey| Jwk::from_encoding_key(key, Algorithm::EdDSA).unwrap();
    let x = serde_json::to_value(jwk(&key)).unwrap()["x"].as_str().unwrap().to_owned();
    let public = EncodingKey::from_secret(&URL_SAFE_NO_PAD.decode(x).unwrap());
    let with_jwk = Header { jwk: Some(jwk(&other)), ..header.clone() };
    let with_jku = Header { jku: Some("https://evil.example/keys".to_owned()), ..header.clone() };
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let unsigned = format!("{}.{}.", part(&json!({"alg": "none", "kid": KEY})), part(&good));
    let typed = Header { typ: Some("at+jwt".to_owned()), ..header.clone() };
    let says = |changed: Value| stack.id_token(&changed);
    vec![
        ("expired", says(json!({"exp": now - 5})), FailedPrecondition, "ID_TOKEN_EXPIRED"),
        ("too old", says(json!({"iat": now - 301})), FailedPrecondition, "ID_TOKEN_EXPIRED"),
        ("ahead", says(json!({"nbf": now + 6})), FailedPrecondition, "ID_TOKEN_EXPIRED"),
        (
            "of a session that just ended",
            says(json!({"session_expiry": now - 1})),
            FailedPrecondition,
            "ID_TOKEN_EXPIRED",
        ),
        ("for others", says(json!({"aud": "elsewhere"})), FailedPrecondition, "ID_TOKEN_AUDIENCE_WRONG"),
        ("without nonce", says(json!({"nonce": null})), FailedPrecondition, "ID_TOKEN_NONCE_WRONG"),
        ("of another nonce", says(json!({"nonce": "other"})), FailedPrecondition, "ID_TOKEN_NONCE_WRONG"),
        (
            "of nobody known",
            says(json!({"iss": "https://evil.example"})),
            FailedPrecondition,
            "ID_TOKEN_ISSUER_REFUSED",
        ),
        (
            "of another tenant's",
            says(json!({"iss": FOREIGN_PROVIDER})),
            FailedPrecondition,
            "ID_TOKEN_ISSUER_REFUSED",
        ),
        ("unsigned", unsigned, InvalidArgument, "ID_TOKEN_INVALID"),
        (
            "HS256",
            encode(&id_header(KEY, Algorithm::HS256), &good, &public).unwrap(),
            InvalidArgument,
            "ID_TOKEN_INVALID",
        ),
        ("own jwk", encode(&with_jwk, &good, &other).unwrap(), InvalidArgument, "ID_TOKEN_INVALID"),
        ("own jku", encode(&with_jku, &good, &other).unwrap(), InvalidArgument, "ID_TOKEN_INVALID"),
        ("own kid", stack.id_token_of("theirs", &json!({})), InvalidArgument, "ID_TOKEN_INVALID"),
        ("typed as another", encode(&typed, &good, &key).unwrap(), InvalidArgument, "ID_TOKEN_INVALID"),
        ("access token", stack.token(&workload("storefront")), InvalidArgument, "ID_TOKEN_INVALID"),
        ("nothing", String::new(), InvalidArgument, "ID_TOKEN_INVALID"),
    ]
}

#[tokio::test]
async fn what_is_wrong_with_an_id_token_is_told_and_changes_nothing() {
    let (stack, caller) = start().await;
    let (session, token) = create_session(&caller).await;
    let own = caller.sessions().issue_assertion(assertion(&token)).await.answer().assertion;
    let mut cases = bad_tokens(&stack);
    cases.push(("assertion", own, Code::InvalidArgument, "ID_TOKEN_INVALID"));
    for (what, id_token, code, reason) in cases {
        let status = caller
            .sessions()
            .authenticate_session(login(&token, &id_token, NONCE))
            .await
            .expect_err(what);
        assert_refused(&status, code, reason);
    }
    for nonce in ["", "other"] {
        let request = login(&token, &stack.id_token(&json!({})), nonce);
        let refused = caller.sessions().authenticate_session(request).await;
        refused.refused(Code::FailedPrecondition, "ID_TOKEN_NONCE_WRONG");
    }
    assert_eq!(get(&caller, &session).await, session, "nothing changed");
    for table in ["select count(*) from session.subjects", "select count(*) from session.id_tokens"] {
        assert_eq!(stack.database.count(table).await, 0, "{table}");
    }
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
    log_in(&caller, &token, &stack.id_token(&json!({}))).await;
}

#[tokio::test]
async fn an_id_token_is_good_once_and_a_refused_login_does_not_use_it_up() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let id_token = stack.id_token(&json!({}));
    set_policy(
        &caller,
        pb::SessionPolicy { allowed_issuers: vec![OTHER_PROVIDER.to_owned()], ..Default::default() },
    )
    .await;
    let refused = caller.sessions().authenticate_session(login(&token, &id_token, NONCE)).await;
    refused.refused(Code::FailedPrecondition, "ID_TOKEN_ISSUER_REFUSED");
    set_policy(&caller, pb::SessionPolicy::default()).await;
    let first = log_in(&caller, &token, &id_token).await;
    let (other, stolen) = create_session(&caller).await;
    for token in [&first.session_token, &stolen] {
        let again = caller.sessions().authenticate_session(login(token, &id_token, NONCE)).await;
        again.refused(Code::FailedPrecondition, "ID_TOKEN_REPLAYED");
        assert_eq!(validate_strong(&caller, token).await.verdict(), Verdict::Active);
    }
    assert_eq!(get(&caller, &other).await.subject, None);
}

#[tokio::test]
async fn a_repetition_by_request_id_gets_the_same_token_when_the_id_token_has_long_expired() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let request_id = Uuid::from_u128(1).to_string();
    let by = |id_token: &str| pb::AuthenticateSessionRequest {
        request_id: request_id.clone(),
        ..login(&token, id_token, NONCE)
    };
    let request = by(&stack.id_token(&json!({})));
    let first = caller.sessions().authenticate_session(request.clone()).await.answer();
    stack.advance(TimeDelta::minutes(20));
    let again = caller.sessions().authenticate_session(request).await.answer();
    assert_eq!(again, first);
    let other = by(&stack.id_token(&json!({"sub": "mallory"})));
    let refused = caller.sessions().authenticate_session(other).await;
    refused.refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
    assert_eq!(validate(&caller, &first.session_token).await.verdict(), Verdict::Active);
}

#[tokio::test]
async fn a_touchpoint_lets_in_subjects_of_the_issuers_that_its_policy_names() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let allowed_issuers = vec![OTHER_PROVIDER.to_owned()];
    set_policy(&caller, pb::SessionPolicy { allowed_issuers, ..Default::default() }).await;
    for refused in
        [login(&token, &stack.id_token(&json!({})), NONCE), authentication(&token, identity("lena", 1))]
    {
        let refused = caller.sessions().authenticate_session(refused).await;
        refused.refused(Code::FailedPrecondition, "ID_TOKEN_ISSUER_REFUSED");
    }
    let request = pb::CreateSessionRequest {
        touchpoint: "web".to_owned(),
        subject: Some(subject("lena")),
        ..Default::default()
    };
    let refused = caller.sessions().create_session(request).await;
    refused.refused(Code::FailedPrecondition, "ID_TOKEN_ISSUER_REFUSED");
    let done = log_in(&caller, &token, &stack.id_token(&json!({"iss": OTHER_PROVIDER}))).await;
    assert_eq!(done.session.unwrap().subject.unwrap().issuer, OTHER_PROVIDER);
}

#[tokio::test]
async fn the_same_sub_of_two_providers_is_two_people() {
    let (stack, caller) = start().await;
    let mut logins = vec![];
    for issuer in [PROVIDER, OTHER_PROVIDER] {
        let (_, token) = create_session(&caller).await;
        let claims = json!({"iss": issuer, "sub": "lena@shop.example"});
        logins.push(log_in(&caller, &token, &stack.id_token(&claims)).await);
    }
    let sessions: Vec<_> = logins.iter().map(|login| login.session.clone().unwrap()).collect();
    assert_ne!(sessions[0].shopper_id, sessions[1].shopper_id);
    for (login, session) in logins.iter().zip(&sessions) {
        let own = own_sessions(&caller, &login.session_token).await;
        assert_eq!(own.len(), 1, "and not the other's");
        assert_eq!(own[0].session_id, session.session_id);
    }
}

#[tokio::test]
async fn a_provider_changes_its_keys_while_the_service_runs() {
    let (stack, caller) = start().await;
    let moment = TimeDelta::seconds(61);
    let try_with = async |kid: &str| {
        let (_, token) = create_session(&caller).await;
        let request = login(&token, &stack.id_token_of(kid, &json!({})), NONCE);
        caller.sessions().authenticate_session(request).await
    };
    let refused_for =
        |status: tonic::Status| status.get_details_error_info().unwrap().metadata["problem"].clone();
    let unknown = try_with("second").await.refused(Code::InvalidArgument, "ID_TOKEN_INVALID");
    assert_eq!(refused_for(unknown), "KEY_UNKNOWN");
    stack.publish_id_keys(&[KEY, "second"]);
    stack.advance(moment);
    for kid in ["second", KEY] {
        try_with(kid).await.answer();
    }
    stack.publish_id_keys(&["second", "third"]);
    stack.advance(moment);
    for kid in ["third", "second"] {
        try_with(kid).await.answer();
    }
    let retired = try_with(KEY).await.refused(Code::InvalidArgument, "ID_TOKEN_INVALID");
    assert_eq!(refused_for(retired), "KEY_UNKNOWN");
}

#[tokio::test]
async fn no_session_outlives_that_of_its_provider_whatever_comes_after() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let end: Time = stack.now() + TimeDelta::minutes(20);
    let until = json!({"session_expiry": end.timestamp(), "amr": ["mfa"]});
    let done = log_in(&caller, &token, &stack.id_token(&until)).await;
    stack.advance(TimeDelta::minutes(10));
    let done = log_in(&caller, &done.session_token, &stack.id_token(&until)).await;
    assert_eq!(ends_at(&done.session.unwrap()), end, "a step-up brings the provider's end along");
    let request = pb::RotateSessionRequest { session_token: done.session_token };
    let rotated = caller.sessions().rotate_session(request).await.answer();
    assert_eq!(rotated.session.unwrap().absolute_deadline, Some(to_proto(end)));
    stack.advance(end - stack.now() - TimeDelta::seconds(1));
    assert_eq!(validate(&caller, &rotated.session_token).await.verdict(), Verdict::Active);
    stack.advance(TimeDelta::seconds(1));
    assert_eq!(validate(&caller, &rotated.session_token).await.verdict(), Verdict::Expired);
}

#[tokio::test]
async fn without_providers_there_is_none_whose_token_is_taken() {
    let (stack, caller) = crate::harness::trust::start().await;
    let (_, token) = create_session(&caller).await;
    let refused = caller
        .sessions()
        .authenticate_session(login(&token, &stack.id_token(&json!({})), NONCE))
        .await;
    refused.refused(Code::FailedPrecondition, "ID_TOKEN_ISSUER_REFUSED");
}
