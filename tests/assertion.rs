//! Assertions: checked with the published keys alone, for one audience, and good for nothing else.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use chrono::TimeDelta;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode};
use serde_json::{Value, json};
use shared::issuer::Grant;
use shared::keyring::{KeyRing, Purpose};
use shared::pb::session as pb;
use shared::pb::session::authenticate_session_request::Proof;
use shared::time::{Clock, at, to_proto};
use tonic::{Code, Response, Status};

use crate::elevation::{grant, log_in, redeem, redemption};
use crate::harness::shop::{
    create_catalog, create_session, create_session_with_pins, create_touchpoint, pin, revoke, seconds, ship,
    validate, web,
};
use crate::harness::{
    ASSERTION_ISSUER, Answer as _, Caller, Options, Stack, eventually, person, reason_of, workload,
};

const AUDIENCE: &str = "payments";
const TYPE: &str = "tandem-assertion+jwt";
const PKCS8_HEADER: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// The time is now, give or take, for those who check have no clock of ours.
async fn start(offset: TimeDelta) -> (Stack, Caller, String) {
    let mut stack = Stack::prepare();
    stack.advance(Clock::system().now() + offset - stack.now());
    stack.session = Some(stack.session_svc(&Options::default()));
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    let (_, token) = create_session(&caller).await;
    (stack, caller, token)
}

fn request(token: &str) -> pb::IssueAssertionRequest {
    pb::IssueAssertionRequest {
        session_token: token.to_owned(),
        audience: AUDIENCE.to_owned(),
        ..Default::default()
    }
}

async fn issue(
    caller: &Caller,
    request: pb::IssueAssertionRequest,
) -> Result<Response<pb::IssueAssertionResponse>, Status> {
    caller.sessions().issue_assertion(request).await
}

async fn issued(caller: &Caller, token: &str) -> String {
    issue(caller, request(token)).await.answer().assertion
}

async fn keys(caller: &Caller) -> JwkSet {
    let request = pb::GetAssertionKeysRequest {};
    let answer = caller.sessions().get_assertion_keys(request).await.answer();
    serde_json::from_str(&answer.jwks_json).unwrap()
}

/// As docs/security.md tells a service to check what it was given.
fn check(assertion: &str, keys: &JwkSet, tenant: &str, audience: &str) -> Result<Value, ErrorKind> {
    let header = decode_header(assertion).map_err(jsonwebtoken::errors::Error::into_kind)?;
    if header.typ.as_deref() != Some(TYPE) {
        return Err(ErrorKind::InvalidToken);
    }
    let jwk = header.kid.and_then(|kid| keys.find(&kid)).ok_or(ErrorKind::InvalidKeyFormat)?;
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_issuer(&[format!("{ASSERTION_ISSUER}/{tenant}")]);
    validation.set_audience(&[audience]);
    validation.set_required_spec_claims(&["iss", "aud", "exp", "nbf"]);
    validation.validate_nbf = true;
    validation.leeway = 5;
    let key = DecodingKey::from_jwk(jwk).unwrap();
    decode(assertion, &key, &validation)
        .map(|checked| checked.claims)
        .map_err(jsonwebtoken::errors::Error::into_kind)
}

#[tokio::test]
async fn an_assertion_tells_who_how_surely_where_and_on_which_releases() {
    let stack = Stack::pair();
    let caller = stack.caller(&person("ada"));
    create_touchpoint(&caller, web()).await;
    create_catalog(&caller).await;
    ship(&caller, "1.0", &[]).await;
    let made = eventually("the route", || async {
        let made = create_session_with_pins(&caller).await;
        (pin(&made.pins).0 == "1.0").then_some(made)
    })
    .await;
    let now = stack.now();
    let anonymous = claims(&issued(&caller, &made.session_token).await);
    let session = made.session.unwrap();
    let mut expected = json!({
        "iss": format!("{ASSERTION_ISSUER}/shop"), "aud": AUDIENCE, "jti": anonymous["jti"],
        "sid": session.session_id, "shopper": session.shopper_id, "touchpoint": "web",
        "iat": now.timestamp(), "nbf": now.timestamp(),
        "exp": now.timestamp() + 60, "stale_until": now.timestamp() + 60,
        "releases": {"storefront": "1.0"},
    });
    assert_eq!(anonymous, expected);

    let authenticated = now - TimeDelta::minutes(5);
    let asserted = pb::AssertedIdentity {
        subject: Some(pb::Subject { issuer: "https://id.example".to_owned(), sub: "lena".to_owned() }),
        level: 2,
        acr: "urn:mace:incommon:iap:silver".to_owned(),
        amr: vec!["pwd".to_owned(), "otp".to_owned()],
        authenticate_time: Some(to_proto(authenticated)),
        session_end_time: None,
    };
    let request = pb::AuthenticateSessionRequest {
        session_token: made.session_token,
        proof: Some(Proof::Asserted(asserted)),
        ..Default::default()
    };
    let made = caller.sessions().authenticate_session(request).await.answer();
    let known = claims(&issued(&caller, &made.session_token).await);
    assert_ne!(known["jti"], anonymous["jti"]);
    let more = json!({
        "jti": known["jti"], "sub": "lena", "sub_iss": "https://id.example", "acr_level": 2,
        "acr": "urn:mace:incommon:iap:silver", "amr": ["pwd", "otp"], "auth_time": authenticated.timestamp(),
    });
    expected.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    expected["shopper"] = made.session.unwrap().shopper_id.into();
    assert_eq!(known, expected);
}

/// Without checking anything.
fn claims(assertion: &str) -> Value {
    let part = assertion.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

#[tokio::test]
async fn an_assertion_is_checked_with_nothing_but_the_published_keys() {
    let (stack, caller, token) = start(TimeDelta::zero()).await;
    let (assertion, keys) = (issued(&caller, &token).await, keys(&caller).await);
    assert!(check(&assertion, &keys, "shop", AUDIENCE).is_ok());
    assert_eq!(check(&assertion, &keys, "shop", "refunds"), Err(ErrorKind::InvalidAudience));
    assert_eq!(check(&assertion, &keys, "acme", AUDIENCE), Err(ErrorKind::InvalidIssuer));
    assert!(check(&assertion, &JwkSet { keys: vec![] }, "shop", AUDIENCE).is_err());
    for n in 0..assertion.len() {
        let mut bytes = assertion.clone().into_bytes();
        bytes[n] = if bytes[n] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        assert!(check(&changed, &keys, "shop", AUDIENCE).is_err(), "{n}");
    }
    let parts: Vec<_> = assertion.split('.').collect();
    let none = URL_SAFE_NO_PAD.encode(json!({"alg": "none", "typ": TYPE, "kid": "k4"}).to_string());
    for signature in ["", parts[2]] {
        let unsigned = format!("{none}.{}.{signature}", parts[1]);
        assert!(check(&unsigned, &keys, "shop", AUDIENCE).is_err(), "{signature}");
    }
    let header = Header { typ: Some(TYPE.to_owned()), ..decode_header(&assertion).unwrap() };
    let signed = |header: &Header| encode(header, &claims(&assertion), &assertion_key(&stack)).unwrap();
    assert!(check(&signed(&header), &keys, "shop", AUDIENCE).is_ok(), "the key is the right one");
    for typ in [None, Some("JWT"), Some("at+jwt")] {
        let other = Header { typ: typ.map(str::to_owned), ..header.clone() };
        assert!(check(&signed(&other), &keys, "shop", AUDIENCE).is_err(), "{typ:?}");
    }
}

/// What the ring signs with.
fn assertion_key(stack: &Stack) -> EncodingKey {
    let ring: Value = serde_json::from_slice(&std::fs::read(stack.keyring()).unwrap()).unwrap();
    let mut keys = ring["keys"].as_array().unwrap().iter();
    let key = keys.find(|key| key["purpose"] == "assertion").unwrap();
    let seed = STANDARD.decode(key["secret"].as_str().unwrap()).unwrap();
    EncodingKey::from_ed_der(&[&PKCS8_HEADER[..], &seed].concat())
}

#[tokio::test]
async fn an_assertion_ends_with_its_time_and_never_after_its_session() {
    let (stack, caller, token) = start(TimeDelta::hours(-1)).await;
    let (assertion, keys) = (issued(&caller, &token).await, keys(&caller).await);
    assert_eq!(check(&assertion, &keys, "shop", AUDIENCE), Err(ErrorKind::ExpiredSignature));
    let expiry = async |ttl, token: &str| {
        let answer = issue(&caller, pb::IssueAssertionRequest { ttl, ..request(token) })
            .await
            .answer();
        let exp = claims(&answer.assertion)["exp"].as_i64().unwrap();
        assert_eq!(answer.expire_time, Some(to_proto(at(exp))));
        exp - stack.now().timestamp()
    };
    assert_eq!(expiry(None, &token).await, 60);
    assert_eq!(expiry(Some(seconds(1)), &token).await, 1);
    assert_eq!(expiry(Some(seconds(300)), &token).await, 300);
    let policy = |idle, absolute| pb::SessionPolicy {
        idle_timeout: Some(seconds(idle)),
        absolute_lifetime: Some(seconds(absolute)),
        ..Default::default()
    };
    for (name, idle, absolute, longest) in [("idle", 60, 3600, 61), ("absolute", 60, 60, 60)] {
        let session_policy = Some(policy(idle, absolute));
        create_touchpoint(&caller, pb::Touchpoint { touchpoint: name.to_owned(), session_policy, ..web() })
            .await;
        let request = pb::CreateSessionRequest { touchpoint: name.to_owned(), ..Default::default() };
        let token = caller.sessions().create_session(request).await.answer().session_token;
        assert_eq!(expiry(Some(seconds(300)), &token).await, longest, "{name}");
    }
}

/// As `tandem keys rotate` and `retire` do it. Whoever checks fetches the keys before each step and not again.
#[tokio::test]
async fn keys_are_replaced_without_a_gap() {
    let (stack, caller, token) = start(TimeDelta::seconds(-150)).await;
    let long = || pb::IssueAssertionRequest { ttl: Some(seconds(300)), ..request(&token) };
    let issued = async || issue(&caller, long()).await.answer().assertion;
    let kid = |assertion: &str| decode_header(assertion).unwrap().kid.unwrap();
    let is_good = |assertion: &str, keys: &JwkSet| check(assertion, keys, "shop", AUDIENCE).is_ok();
    let published = async |count| {
        eventually("the ring that was written", || async {
            Some(keys(&caller).await).filter(|keys| keys.keys.len() == count)
        })
        .await
    };
    let write = |ring: &KeyRing| {
        let new = stack.keyring().with_extension("new");
        std::fs::write(&new, ring.to_json().unwrap()).unwrap();
        std::fs::rename(&new, stack.keyring()).unwrap();
    };
    let (before, first_keys) = (issued().await, published(1).await);
    assert!(is_good(&before, &first_keys));

    let mut ring = KeyRing::parse(&std::fs::read_to_string(stack.keyring()).unwrap()).unwrap();
    let old = ring.current(Purpose::Assertion, stack.now()).unwrap();
    let takes_over = stack.now() + TimeDelta::minutes(2);
    let next = ring.rotate(Purpose::Assertion, takes_over, &stack.entropy).unwrap();
    write(&ring);
    let both_keys = published(2).await;
    let between = issued().await;
    assert_eq!(kid(&between), format!("k{old}"), "published, and not signing yet");
    assert!(is_good(&between, &first_keys) && is_good(&between, &both_keys));

    stack.advance(TimeDelta::minutes(2) - TimeDelta::microseconds(1));
    assert_eq!(kid(&issued().await), format!("k{old}"));
    stack.advance(TimeDelta::microseconds(1));
    let after = issued().await;
    assert_eq!(kid(&after), format!("k{next}"));
    assert!(is_good(&after, &both_keys) && is_good(&before, &both_keys));

    ring.retire(old, stack.now()).unwrap();
    write(&ring);
    let last_keys = published(1).await;
    assert!(is_good(&after, &last_keys) && is_good(&issued().await, &both_keys));
    assert!(!is_good(&before, &last_keys), "which is why one waits before one retires a key");
}

#[tokio::test]
async fn an_assertion_is_no_other_kind_of_credential() {
    let (_stack, caller, token) = start(TimeDelta::zero()).await;
    let assertion = issued(&caller, &token).await;
    assert_eq!(validate(&caller, &assertion).await.verdict(), pb::Verdict::SessionUnknown);
    issue(&caller, request(&assertion))
        .await
        .refused(Code::FailedPrecondition, "SESSION_UNKNOWN");
    caller
        .sessions()
        .grant_elevation(grant(&assertion))
        .await
        .refused(Code::FailedPrecondition, "SESSION_UNKNOWN");
    let rotation = pb::RotateSessionRequest { session_token: assertion.clone() };
    caller
        .sessions()
        .rotate_session(rotation)
        .await
        .refused(Code::FailedPrecondition, "SESSION_UNKNOWN");
    redeem(&caller, redemption(&assertion))
        .await
        .refused(Code::FailedPrecondition, "ELEVATION_UNKNOWN");
    let report = pb::ReportLeakedTokenRequest { token: assertion.clone(), ..Default::default() };
    let outcome = caller.sessions().report_leaked_token(report).await.answer().outcome();
    assert_eq!(outcome, pb::LeakOutcome::NotLive);
    let id_token = pb::IdTokenProof { id_token: assertion.clone(), nonce: String::new() };
    let login = pb::AuthenticateSessionRequest {
        session_token: token.clone(),
        proof: Some(Proof::IdToken(id_token)),
        ..Default::default()
    };
    let refused = caller.sessions().authenticate_session(login).await.unwrap_err();
    assert!(reason_of(&refused).starts_with("ID_TOKEN_"), "{refused:?}");
    let bearer = caller.with_header(Some(&format!("Bearer {assertion}")));
    issue(&bearer, request(&token))
        .await
        .refused(Code::Unauthenticated, "CALLER_ISSUER_UNKNOWN");
    assert_eq!(validate(&caller, &token).await.verdict(), pb::Verdict::Active);
}

#[tokio::test]
async fn only_of_a_live_session_that_is_sure_enough_an_assertion_is_issued() {
    let (stack, caller, token) = start(TimeDelta::zero()).await;
    let elevation = caller.sessions().grant_elevation(grant(&token)).await.answer().elevation_token;
    for bad in ["", "nonsense", &elevation] {
        issue(&caller, request(bad))
            .await
            .refused(Code::FailedPrecondition, "SESSION_UNKNOWN");
    }
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..workload("storefront") });
    issue(&acme, request(&token))
        .await
        .refused(Code::FailedPrecondition, "SESSION_UNKNOWN");
    let till = stack.caller(&Grant { touchpoints: Some(vec!["pos".to_owned()]), ..workload("till") });
    issue(&till, request(&token))
        .await
        .refused(Code::PermissionDenied, "CALLER_TOUCHPOINT_REFUSED");
    let level =
        |required_assurance, token: &str| pb::IssueAssertionRequest { required_assurance, ..request(token) };
    issue(&caller, level(1, &token))
        .await
        .refused(Code::FailedPrecondition, "SESSION_ASSURANCE_TOO_LOW");
    let token = log_in(&caller, &token, 2).await;
    issue(&caller, level(2, &token)).await.answer();
    stack.advance(TimeDelta::minutes(10));
    let fresh = pb::IssueAssertionRequest { max_authentication_age: Some(seconds(599)), ..request(&token) };
    issue(&caller, fresh)
        .await
        .refused(Code::FailedPrecondition, "SESSION_AUTHENTICATION_TOO_OLD");
    let (session, ended) = create_session(&caller).await;
    revoke(&caller, &session).await;
    issue(&caller, request(&ended))
        .await
        .refused(Code::FailedPrecondition, "SESSION_REVOKED");
}

#[tokio::test]
async fn bad_input_names_its_field() {
    let (_stack, caller, token) = start(TimeDelta::zero()).await;
    let audience =
        |audience: &str| pb::IssueAssertionRequest { audience: audience.to_owned(), ..request(&token) };
    let ttl = |seconds, nanos| {
        let ttl = Some(prost_types::Duration { seconds, nanos });
        pb::IssueAssertionRequest { ttl, ..request(&token) }
    };
    let cases = [
        ("audience", audience("")),
        ("audience", audience(&"a".repeat(256))),
        ("audience", audience("a\nb")),
        ("ttl", ttl(0, 0)),
        ("ttl", ttl(300, 1)),
        ("ttl", ttl(-1, 0)),
        ("required_assurance", pb::IssueAssertionRequest { required_assurance: -1, ..request(&token) }),
    ];
    for (field, request) in cases {
        let status = issue(&caller, request).await.refused(Code::InvalidArgument, "FIELD_INVALID");
        assert!(status.message().starts_with(field), "{field}: {}", status.message());
    }
}
