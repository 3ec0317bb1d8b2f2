//! Who may call: every way in which a credential can be wrong has its own reason, and none gets through.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use shared::issuer::{Grant, LocalIssuer};
use shared::pb;
use shared::pb::session::{
    CreateSessionRequest, ListSessionsRequest, ListTouchpointsRequest, Touchpoint, Verdict,
};
use tokio_stream::StreamExt as _;
use tonic::{Code, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_types::StatusExt as _;

use crate::harness::shop::{create_session, create_touchpoint, validate, validation, web};
use crate::harness::{Answer as _, Caller, START, Stack, raw, system, workload};

pub(crate) fn start() -> (Stack, Caller) {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("reader"));
    (stack, caller)
}

/// The stack's own issuer's key.
pub(crate) fn key(stack: &Stack) -> EncodingKey {
    EncodingKey::from_ed_pem(&std::fs::read(stack.folder().join("issuer-key.pem")).unwrap()).unwrap()
}

/// Somebody else's key.
pub(crate) fn other_key(stack: &Stack) -> EncodingKey {
    let folder = stack.folder().join("other");
    std::fs::create_dir_all(&folder).unwrap();
    LocalIssuer::open(&folder, &stack.entropy).unwrap();
    EncodingKey::from_ed_pem(&std::fs::read(folder.join("issuer-key.pem")).unwrap()).unwrap()
}

/// Trusts one issuer, whose keys are there.
pub(crate) fn write_issuer(stack: &Stack, keys: &Value) {
    let mut issuer = json!({"audience": "tandem", "tenants": ["*"]});
    issuer.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    std::fs::write(stack.folder().join("issuers.json"), json!([issuer]).to_string()).unwrap();
}

pub(crate) fn header() -> Header {
    let (typ, kid) = (Some("at+jwt".to_owned()), Some("local".to_owned()));
    Header { typ, kid, ..Header::new(Algorithm::EdDSA) }
}

/// Good claims, but for these.
pub(crate) fn claims(changed: &Value) -> Value {
    let mut claims = json!({
        "iss": "tandem-local", "aud": "tandem", "sub": "reader", "tenant": "shop", "kind": "workload",
        "scope": "touchpoint.read session.read", "exp": START + 600,
    });
    for (name, value) in changed.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

async fn list(
    caller: &Caller,
    header: Option<&str>,
) -> Result<Response<pb::session::ListTouchpointsResponse>, Status> {
    let caller = caller.with_header(header);
    caller.touchpoints().list_touchpoints(ListTouchpointsRequest::default()).await
}

pub(crate) async fn list_with(
    caller: &Caller,
    token: &str,
) -> Result<Response<pb::session::ListTouchpointsResponse>, Status> {
    list(caller, Some(&format!("Bearer {token}"))).await
}

#[tokio::test]
async fn what_is_no_credential_is_told_apart_from_a_bad_one() {
    let (stack, caller) = start();
    for header in [None, Some(""), Some("Basic dXNlcjpwYXNz"), Some("nonsense")] {
        list(&caller, header)
            .await
            .refused(Code::Unauthenticated, "CALLER_CREDENTIAL_MISSING");
    }
    let long = format!("a.{}.c", "b".repeat(9000));
    for token in ["", "nonsense", "a.b.c", "..", &long] {
        list_with(&caller, token)
            .await
            .refused(Code::Unauthenticated, "CALLER_CREDENTIAL_MALFORMED");
    }
    let token = encode(&header(), &claims(&json!({})), &key(&stack)).unwrap();
    list(&caller, Some(&format!("bearer {token}"))).await.answer();
}

#[tokio::test]
async fn every_wrong_claim_has_its_reason() {
    let (stack, caller) = start();
    let key = key(&stack);
    let cases = [
        (json!({"exp": START - 6}), "CALLER_CREDENTIAL_EXPIRED"),
        (json!({"exp": START - 5}), "CALLER_CREDENTIAL_EXPIRED"),
        (json!({"exp": "tomorrow"}), "CALLER_CREDENTIAL_MALFORMED"),
        (json!({"exp": i64::MAX}), "CALLER_CREDENTIAL_MALFORMED"),
        (json!({"nbf": START + 6}), "CALLER_CREDENTIAL_NOT_YET_VALID"),
        (json!({"aud": "elsewhere"}), "CALLER_AUDIENCE_WRONG"),
        (json!({"aud": ["elsewhere", "nowhere"]}), "CALLER_AUDIENCE_WRONG"),
        (json!({"aud": 7}), "CALLER_CREDENTIAL_MALFORMED"),
        (json!({"iss": "https://evil.example"}), "CALLER_ISSUER_UNKNOWN"),
        (json!({"iss": null}), "CALLER_CREDENTIAL_MALFORMED"),
        (json!({"tenant": null}), "CALLER_CREDENTIAL_MALFORMED"),
        (json!({"tenant": "No Tenant"}), "CALLER_CREDENTIAL_MALFORMED"),
        (json!({"sub": ""}), "CALLER_CREDENTIAL_MALFORMED"),
        (json!({"sub": null}), "CALLER_CREDENTIAL_MALFORMED"),
        (json!({"groups": "admins"}), "CALLER_CREDENTIAL_MALFORMED"),
    ];
    for (changed, reason) in cases {
        let token = encode(&header(), &claims(&changed), &key).unwrap();
        let status = list_with(&caller, &token).await.refused(Code::Unauthenticated, reason);
        assert!(!status.message().contains(&token), "{changed}");
    }
    for changed in
        // The last one is the latest time that there is.
        [
            json!({"exp": START - 4}),
            json!({"nbf": START + 5}),
            json!({"aud": ["elsewhere", "tandem"]}),
            json!({"exp": 8_210_266_876_799_i64}),
        ]
    {
        let token = encode(&header(), &claims(&changed), &key).unwrap();
        list_with(&caller, &token).await.answer();
    }
}

#[tokio::test]
async fn a_token_that_is_known_expires_all_the_same() {
    let (stack, caller) = start();
    let token = encode(&header(), &claims(&json!({})), &key(&stack)).unwrap();
    list_with(&caller, &token).await.answer();
    stack.advance(chrono::TimeDelta::seconds(606));
    list_with(&caller, &token)
        .await
        .refused(Code::Unauthenticated, "CALLER_CREDENTIAL_EXPIRED");
}

#[tokio::test]
async fn no_signature_but_the_issuers_is_taken() {
    let (stack, caller) = start();
    let (key, other) = (key(&stack), other_key(&stack));
    let good = claims(&json!({}));
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let none = |alg: &str| part(&json!({"alg": alg, "typ": "at+jwt", "kid": "local"}));
    let jwk = Jwk::from_encoding_key(&key, Algorithm::EdDSA).unwrap();
    let public = serde_json::to_value(&jwk).unwrap()["x"].as_str().unwrap().to_owned();
    let hs256 = |secret: &[u8]| {
        let header = Header { alg: Algorithm::HS256, ..header() };
        encode(&header, &good, &EncodingKey::from_secret(secret)).unwrap()
    };
    let embedded = |kid: &str| {
        let jwk = Some(Jwk::from_encoding_key(&other, Algorithm::EdDSA).unwrap());
        encode(&Header { jwk, kid: Some(kid.to_owned()), ..header() }, &good, &other).unwrap()
    };
    let signed = encode(&header(), &good, &key).unwrap();
    let parts: Vec<_> = signed.split('.').collect();
    let raised = part(&claims(&json!({"scope": "session.any"})));
    let cases = [
        (format!("{}.{}.", none("none"), part(&good)), "CALLER_ALGORITHM_REFUSED"),
        (format!("{}.{}.{}", none("NONE"), part(&good), parts[2]), "CALLER_ALGORITHM_REFUSED"),
        (format!("{}.{}.{}", none("ES512"), part(&good), parts[2]), "CALLER_ALGORITHM_REFUSED"),
        (hs256(&URL_SAFE_NO_PAD.decode(&public).unwrap()), "CALLER_ALGORITHM_REFUSED"),
        (hs256(public.as_bytes()), "CALLER_ALGORITHM_REFUSED"),
        (encode(&header(), &good, &other).unwrap(), "CALLER_SIGNATURE_INVALID"),
        (embedded("local"), "CALLER_SIGNATURE_INVALID"),
        (embedded("mine"), "CALLER_KEY_UNKNOWN"),
        (encode(&Header { kid: None, ..header() }, &good, &key).unwrap(), "CALLER_KEY_UNKNOWN"),
        (format!("{}.{raised}.{}", parts[0], parts[2]), "CALLER_SIGNATURE_INVALID"),
        (
            encode(&Header { typ: Some("JWT".to_owned()), ..header() }, &good, &key).unwrap(),
            "CALLER_CREDENTIAL_MALFORMED",
        ),
    ];
    for (token, reason) in cases {
        list_with(&caller, &token).await.refused(Code::Unauthenticated, reason);
    }
    list_with(&caller, &signed).await.answer();
}

#[tokio::test]
async fn an_issuer_speaks_for_its_own_tenants_only() {
    let mut stack = Stack::prepare();
    let issuers = json!([{"issuer": "tandem-local", "audience": "tandem", "jwks_file": "jwks.json", "tenants": ["shop"]}]);
    std::fs::write(stack.folder().join("issuers.json"), issuers.to_string()).unwrap();
    let session = stack.session_svc(&crate::harness::Options::default());
    stack.session = Some(session);
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..workload("reader") });
    let refused = acme.touchpoints().list_touchpoints(ListTouchpointsRequest::default()).await;
    refused.refused(Code::Unauthenticated, "CALLER_TENANT_REFUSED");
    let shop = stack.caller(&workload("reader"));
    shop.touchpoints()
        .list_touchpoints(ListTouchpointsRequest::default())
        .await
        .answer();
}

#[tokio::test]
async fn only_an_issuer_of_all_tenants_gives_the_scope_that_reaches_them() {
    let mut stack = Stack::prepare();
    let method = "/tandem.release.v1.RoutingService/ReportApplied";
    let system = stack.caller(&system("session-svc"));
    for (tenants, expected) in
        [(json!(["shop"]), Code::PermissionDenied), (json!(["*"]), Code::InvalidArgument)]
    {
        let issuers = json!([{"issuer": "tandem-local", "audience": "tandem", "jwks_file": "jwks.json", "tenants": tenants}]);
        std::fs::write(stack.folder().join("issuers.json"), issuers.to_string()).unwrap();
        stack.release = Some(stack.release_svc(&crate::harness::Options::default()));
        let at = system.at_release(stack.release.as_ref().unwrap());
        let status = raw::call(at.release_channel(), method, vec![]).await.unwrap_err();
        assert_eq!(status.code(), expected, "{status:?}");
    }
}

#[tokio::test]
async fn every_method_asks_for_a_credential_and_its_scope() {
    let stack = Stack::pair();
    let nobody = stack.caller(&Grant { scope: "nothing".to_owned(), ..workload("nobody") });
    for (method, scope) in pb::METHODS {
        let scope = scope.unwrap_or_else(|| panic!("{method} says no scope"));
        for channel in channels(&nobody, method) {
            let status = raw::call(channel, method, vec![])
                .await
                .refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
            assert_eq!(status.get_details_error_info().unwrap().metadata["scope"], scope, "{method}");
        }
        for channel in channels(&nobody.with_header(None), method) {
            raw::call(channel, method, vec![])
                .await
                .refused(Code::Unauthenticated, "CALLER_CREDENTIAL_MISSING");
        }
    }
}

/// Every service that answers the method.
fn channels(caller: &Caller, method: &str) -> Vec<crate::harness::caller::Authorized> {
    let (session, release) = (caller.session_channel(), caller.release_channel());
    match method {
        _ if method.starts_with("/tandem.session.") => vec![session],
        _ if method.starts_with("/tandem.release.") => vec![release],
        _ => vec![session, release],
    }
}

#[tokio::test]
async fn a_caller_who_is_limited_to_touchpoints_sees_no_other() {
    let (stack, caller) = start();
    for touchpoint in ["web", "pos"] {
        create_touchpoint(&caller, Touchpoint { touchpoint: touchpoint.to_owned(), ..web() }).await;
    }
    let (session, token) = create_session(&caller).await;
    let limited = stack.caller(&Grant { touchpoints: Some(vec!["pos".to_owned()]), ..workload("till") });
    let refused = (Code::PermissionDenied, "CALLER_TOUCHPOINT_REFUSED");
    let request = CreateSessionRequest { touchpoint: "web".to_owned(), ..Default::default() };
    limited.sessions().create_session(request).await.refused(refused.0, refused.1);
    let request = validation(&token, pb::session::Consistency::Bounded);
    limited.sessions().validate_session(request).await.refused(refused.0, refused.1);
    let request = pb::session::GetSessionRequest { session_id: session.session_id.clone() };
    limited.sessions().get_session(request).await.refused(refused.0, refused.1);
    let target = Some(pb::session::revoke_session_request::Target::SessionId(session.session_id.clone()));
    let reason = pb::session::RevokeReason::Admin.into();
    let request = pb::session::RevokeSessionRequest { target, reason, request_id: String::new() };
    limited.sessions().revoke_session(request).await.refused(refused.0, refused.1);
    let request = ListSessionsRequest { touchpoint: "web".to_owned(), ..Default::default() };
    limited.sessions().list_sessions(request).await.refused(refused.0, refused.1);
    let refused_list = limited.sessions().list_sessions(ListSessionsRequest::default()).await;
    refused_list.refused(Code::InvalidArgument, "FIELD_INVALID");
    let request = crate::harness::shop::line(&token, "85123A", 1);
    limited.carts().add_cart_line(request).await.refused(refused.0, refused.1);
    let request = pb::session::UpdateTouchpointRequest { touchpoint: Some(web()), request_id: String::new() };
    limited
        .touchpoints()
        .update_touchpoint(request)
        .await
        .refused(refused.0, refused.1);
    let request = CreateSessionRequest { touchpoint: "pos".to_owned(), ..Default::default() };
    limited.sessions().create_session(request).await.answer();
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
}

#[tokio::test]
async fn a_caller_who_is_limited_to_touchpoints_lists_no_other() {
    let (stack, caller) = start();
    for touchpoint in ["web", "pos"] {
        create_touchpoint(&caller, Touchpoint { touchpoint: touchpoint.to_owned(), ..web() }).await;
    }
    let limited = stack.caller(&Grant { touchpoints: Some(vec!["pos".to_owned()]), ..workload("till") });
    let listed = limited
        .touchpoints()
        .list_touchpoints(ListTouchpointsRequest::default())
        .await
        .answer();
    let names: Vec<_> = listed
        .touchpoints
        .iter()
        .map(|touchpoint| touchpoint.touchpoint.as_str())
        .collect();
    assert_eq!(names, ["pos"]);
}

#[tokio::test]
async fn health_needs_no_token_and_reflection_lists_what_is_served() {
    let stack = Stack::pair();
    let caller = stack.caller(&workload("reader")).with_header(None);
    for (channel, served) in [
        (caller.session_channel(), "tandem.session.v1.CartService"),
        (caller.release_channel(), "tandem.release.v1.RoutingService"),
    ] {
        for service in ["", served, "tandem.common.v1.EventService"] {
            let request = HealthCheckRequest { service: service.to_owned() };
            let status = HealthClient::new(channel.clone()).check(request).await.answer().status;
            assert_eq!(
                status,
                i32::from(tonic_health::pb::health_check_response::ServingStatus::Serving as u8)
            );
        }
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut client = ServerReflectionClient::new(channel.clone());
        let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.answer();
        let answer = answers.next().await.unwrap().unwrap().message_response;
        let Some(MessageResponse::ListServicesResponse(listed)) = answer else { panic!("{answer:?}") };
        let names: Vec<_> = listed.service.into_iter().map(|service| service.name).collect();
        assert!(names.iter().any(|name| name == served), "{names:?}");
        let refused = raw::call(channel, "/tandem.session.v1.SessionService/NoSuchMethod", vec![]).await;
        refused.refused(Code::Unimplemented, "METHOD_UNKNOWN");
    }
}
