//! OWASP ASVS 5.0, chapters V9, self-contained tokens, and what V8, V11 and V16 ask of a session service. The self-contained
//! tokens here are those that callers show. docs/security.md has the table.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::TimeDelta;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, encode};
use prost::Message as _;
use serde_json::json;
use session_svc::domain::token::{ElevationToken, SessionToken, TokenHash};
use shared::issuer::Grant;
use shared::pb::session as pb;
use shared::pb::session::Verdict;
use tonic::Code;

use crate::auth::{claims, header, key, list_with, other_key, write_issuer};
use crate::harness::shop::{
    add_line, create_session, create_touchpoint, revoke, seconds, session_id, validate, validate_strong,
    validation, web,
};
use crate::harness::trust::{
    assertion, authenticate, disabling, elevation, end_own, identity, log_in, logout, refusals, rotate,
    set_policy, start,
};
use crate::harness::{Answer as _, Options, Stack, Watch, reason_of, workload};

#[tokio::test]
async fn asvs_9_1_1_a_token_with_any_byte_changed_is_refused() {
    let (stack, caller) = start().await;
    let token = encode(&header(), &claims(&json!({})), &key(&stack)).unwrap();
    list_with(&caller, &token).await.answer();
    for i in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[i] = if bytes[i] == b'A' { b'B' } else { b'A' };
        let status = list_with(&caller, &String::from_utf8(bytes).unwrap()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "byte {i}");
    }
    // Ours, as a service checks them that has our keys.
    let (_, session_token) = log_in(&caller, "lena").await;
    let issued = caller
        .sessions()
        .issue_assertion(assertion(&session_token))
        .await
        .answer()
        .assertion;
    let keys = caller
        .sessions()
        .get_assertion_keys(pb::GetAssertionKeysRequest {})
        .await
        .answer();
    let keys: JwkSet = serde_json::from_str(&keys.jwks_json).unwrap();
    let check = |assertion: &str| {
        let kid = jsonwebtoken::decode_header(assertion).ok()?.kid?;
        let key = DecodingKey::from_jwk(keys.find(&kid)?).unwrap();
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&["ledger"]);
        // The tests' clock is not the machine's.
        validation.validate_exp = false;
        jsonwebtoken::decode::<serde_json::Value>(assertion, &key, &validation).ok()
    };
    assert!(check(&issued).is_some());
    for i in 0..issued.len() {
        let mut bytes = issued.clone().into_bytes();
        bytes[i] = if bytes[i] == b'A' { b'B' } else { b'A' };
        assert!(check(&String::from_utf8(bytes).unwrap()).is_none(), "byte {i}");
    }
}

#[tokio::test]
async fn asvs_9_1_2_only_the_keys_own_algorithm_is_taken() {
    let (stack, caller) = start().await;
    let (key, good) = (key(&stack), claims(&json!({})));
    let jwk = Jwk::from_encoding_key(&key, Algorithm::EdDSA).unwrap();
    let public = serde_json::to_value(&jwk).unwrap()["x"].as_str().unwrap().to_owned();
    let unsigned = |alg: &str| {
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.", part(json!({"alg": alg, "typ": "at+jwt", "kid": "local"})), part(good.clone()))
    };
    let hmac = |algorithm, secret: &[u8]| {
        let header = Header { alg: algorithm, ..header() };
        encode(&header, &good, &EncodingKey::from_secret(secret)).unwrap()
    };
    for token in [
        unsigned("none"),
        unsigned("None"),
        hmac(Algorithm::HS256, public.as_bytes()),
        hmac(Algorithm::HS256, &URL_SAFE_NO_PAD.decode(&public).unwrap()),
        hmac(Algorithm::HS512, public.as_bytes()),
    ] {
        list_with(&caller, &token)
            .await
            .refused(Code::Unauthenticated, "CALLER_ALGORITHM_REFUSED");
    }
}

#[tokio::test]
async fn asvs_9_1_3_no_key_is_taken_from_a_token() {
    let (stack, caller) = start().await;
    let other = other_key(&stack);
    let jwk = Some(Jwk::from_encoding_key(&other, Algorithm::EdDSA).unwrap());
    let url = Some("http://127.0.0.1:1/keys.json".to_owned());
    for header in
        [Header { jwk, ..header() }, Header { jku: url.clone(), ..header() }, Header { x5u: url, ..header() }]
    {
        let token = encode(&header, &claims(&json!({})), &other).unwrap();
        list_with(&caller, &token)
            .await
            .refused(Code::Unauthenticated, "CALLER_SIGNATURE_INVALID");
    }
}

#[tokio::test]
async fn asvs_9_2_1_the_span_of_a_token_is_kept_to_with_five_seconds_leeway() {
    let (stack, caller) = start().await;
    let (key, now) = (key(&stack), stack.now().timestamp());
    for (claim, reason) in [
        (json!({"exp": now - 6}), Some("CALLER_CREDENTIAL_EXPIRED")),
        (json!({"exp": now - 4}), None),
        (json!({"nbf": now + 6}), Some("CALLER_CREDENTIAL_NOT_YET_VALID")),
        (json!({"nbf": now + 5}), None),
    ] {
        let answer = list_with(&caller, &encode(&header(), &claims(&claim), &key).unwrap()).await;
        assert_eq!(answer.err().map(|status| reason_of(&status)).as_deref(), reason, "{claim}");
    }
}

#[tokio::test]
async fn asvs_9_2_2_a_token_of_one_kind_is_no_token_of_another() {
    let (stack, caller) = start().await;
    let (session, token) = log_in(&caller, "lena").await;
    create_session(&caller).await;
    let request = pb::ListSessionsRequest { page_size: 1, ..Default::default() };
    let page = caller.sessions().list_sessions(request).await.answer().next_page_token;
    let resume = Watch::open(caller.session_events()).await.token;
    // Were kinds not told apart, this would be the session's own secret.
    let secret = *SessionToken::parse(&token).unwrap().secret();
    let twin = ElevationToken::new(session_id(&session), secret).expose();
    let granted = caller
        .sessions()
        .grant_elevation(elevation(&token))
        .await
        .answer()
        .elevation_token;
    let issued = caller.sessions().issue_assertion(assertion(&token)).await.answer().assertion;
    let access = stack.token(&workload("storefront"));
    let cart = add_line(&caller, &token, "85123A", 1).await;
    let request = pb::CreateCartRecoveryRequest {
        shopper_id: cart.shopper_id,
        cart_id: cart.cart_id,
        ..Default::default()
    };
    let recovery = caller.carts().create_cart_recovery(request).await.answer().recovery_token;
    for other in [&token, &page, &resume, &twin, &issued, &access, &recovery] {
        let elevation_token = other.clone();
        let request = pb::RedeemElevationRequest {
            elevation_token,
            action: "payment.create".to_owned(),
            ..Default::default()
        };
        let refused = caller.sessions().redeem_elevation(request).await;
        refused.refused(Code::FailedPrecondition, "ELEVATION_UNKNOWN");
    }
    for other in [&token, &page, &resume, &twin, &granted, &issued, &access] {
        let request = pb::RedeemCartRecoveryRequest {
            recovery_token: other.clone(),
            session_token: token.clone(),
            ..Default::default()
        };
        let refused = caller.carts().redeem_cart_recovery(request).await;
        refused.refused(Code::FailedPrecondition, "CART_RECOVERY_UNKNOWN");
    }
    for other in [&page, &resume, &twin, &granted, &issued, &access, &recovery] {
        assert_eq!(validate(&caller, other).await.verdict(), Verdict::SessionUnknown);
        for status in refusals(&caller, other, &session).await {
            assert_eq!(reason_of(&status), "SESSION_UNKNOWN");
        }
    }
    for other in [&token, &page, &resume, &granted, &issued, &recovery] {
        let status = list_with(&caller, other).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
    }
    for page_token in [&token, &resume, &granted, &issued, &access, &recovery] {
        let request = pb::ListSessionsRequest { page_token: page_token.clone(), ..Default::default() };
        let refused = caller.sessions().list_sessions(request).await;
        refused.refused(Code::InvalidArgument, "PAGE_TOKEN_INVALID");
    }
}

#[tokio::test]
async fn asvs_9_2_3_a_token_for_another_audience_is_refused() {
    let (stack, caller) = start().await;
    for audience in [json!("elsewhere"), json!(["elsewhere", "nowhere"]), json!([])] {
        let claims = claims(&json!({"aud": audience}));
        let token = encode(&header(), &claims, &key(&stack)).unwrap();
        let status = list_with(&caller, &token).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{audience}");
    }
    create_touchpoint(&caller, pb::Touchpoint { touchpoint: "pos".to_owned(), ..web() }).await;
    let (_, token) = create_session(&caller).await;
    for touchpoint in ["pos", "", "Web"] {
        let touchpoint = touchpoint.to_owned();
        let request =
            pb::ValidateSessionRequest { touchpoint, ..validation(&token, pb::Consistency::Bounded) };
        let answer = caller.sessions().validate_session(request).await;
        let verdict = answer.map(|answer| answer.into_inner().verdict());
        assert!(!matches!(verdict, Ok(Verdict::Active)), "{verdict:?}");
    }
}

#[tokio::test]
async fn asvs_9_2_4_a_tenants_token_is_nothing_at_another_tenant() {
    let mut stack = Stack::prepare();
    let jwks = std::fs::read_to_string(stack.folder().join("issuers.json")).unwrap();
    let issuers: serde_json::Value = serde_json::from_str(&jwks).unwrap();
    let mut keys = issuers[0].clone();
    keys["tenants"] = json!(["shop", "depot"]);
    write_issuer(&stack, &keys);
    stack.session = Some(stack.session_svc(&Options::default()));
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    let (session, token) = create_session(&caller).await;
    let depot = stack.caller(&Grant { tenant: "depot".to_owned(), ..workload("storefront") });
    create_touchpoint(&depot, web()).await;
    for answer in [validate(&depot, &token).await, validate_strong(&depot, &token).await] {
        assert_eq!(answer.verdict(), Verdict::SessionUnknown);
    }
    for status in refusals(&depot, &token, &session).await {
        assert_eq!(reason_of(&status), "SESSION_UNKNOWN");
    }
    let foreign = encode(&header(), &claims(&json!({"tenant": "elsewhere"})), &key(&stack)).unwrap();
    list_with(&caller, &foreign)
        .await
        .refused(Code::Unauthenticated, "CALLER_TENANT_REFUSED");
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
}

#[tokio::test]
async fn asvs_8_2_2_another_tenants_sessions_are_not_there_and_are_left_alone() {
    let (stack, caller) = start().await;
    let (session, token) = log_in(&caller, "lena").await;
    let other = stack.caller(&Grant { tenant: "other".to_owned(), ..workload("storefront") });
    create_touchpoint(&other, web()).await;
    let mut sessions = other.sessions();
    let read = pb::GetSessionRequest { session_id: session.session_id.clone() };
    sessions.get_session(read).await.refused(Code::NotFound, "SESSION_NOT_FOUND");
    let (_, theirs) = log_in(&other, "lena").await;
    let taking = sessions.revoke_session(end_own(&theirs, &session)).await;
    taking.refused(Code::NotFound, "SESSION_NOT_FOUND");
    assert_eq!(sessions.revoke_session(logout(&token)).await.answer().session, None);
    assert_eq!(sessions.disable_subject(disabling("lena")).await.answer().revoked_count, 1);
    let reason = pb::RevokeReason::Admin.into();
    let request =
        pb::RevokeTouchpointSessionsRequest { touchpoint: "web".to_owned(), reason, ..Default::default() };
    sessions.revoke_touchpoint_sessions(request).await.answer();
    let request = pb::RevokeTenantSessionsRequest { reason, ..Default::default() };
    sessions.revoke_tenant_sessions(request).await.answer();
    let listed = sessions.list_sessions(pb::ListSessionsRequest::default()).await.answer();
    assert_eq!(listed.sessions, []);
    for answer in [validate(&caller, &token).await, validate_strong(&caller, &token).await] {
        assert_eq!(answer.verdict(), Verdict::Active);
    }
    log_in(&caller, "lena").await;
}

#[tokio::test]
async fn asvs_8_3_2_a_change_of_what_a_session_may_is_seen_by_the_next_validation() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let (_, token) = authenticate(&caller, &token, identity("lena", 2)).await;
    let verdict = async || {
        let validation = validation(&token, pb::Consistency::Bounded);
        let request = pb::ValidateSessionRequest { required_assurance: 2, ..validation };
        caller.sessions().validate_session(request).await.answer().verdict()
    };
    assert_eq!(verdict().await, Verdict::Active);
    stack.advance(TimeDelta::minutes(2));
    assert_eq!(verdict().await, Verdict::Active);
    let minute = Some(seconds(60));
    let stricter =
        pb::SessionPolicy { level_2_max_age: minute, level_3_max_age: minute, ..Default::default() };
    set_policy(&caller, stricter).await;
    assert_eq!(verdict().await, Verdict::AuthenticationTooOld);
    set_policy(&caller, pb::SessionPolicy::default()).await;
    assert_eq!(verdict().await, Verdict::Active);
    caller.sessions().disable_subject(disabling("lena")).await.answer();
    assert_eq!(verdict().await, Verdict::Revoked);
}

#[test]
fn asvs_11_2_4_secrets_are_compared_in_constant_time() {
    let hash = |byte| TokenHash::from_stored([byte; 32]);
    assert!(hash(1) == hash(1) && hash(1) != hash(2));
    // That `==` is crate `subtle`'s, and no derived one, shows in the source only: times are for benchmarks.
    let source = include_str!("../session-svc/src/domain/token.rs");
    let (before, _) = source.split_once("pub struct TokenHash").unwrap();
    let derived = before.rsplit("#[derive(").next().unwrap();
    assert!(source.contains("self.0.ct_eq(&other.0).into()") && !derived.contains("PartialEq"));
}

#[tokio::test]
async fn asvs_11_5_1_every_bit_of_a_secret_is_random() {
    let (_stack, caller) = start().await;
    let mut ones = [0_u32; 256];
    for _ in 0..400 {
        let (_, token) = create_session(&caller).await;
        let secret = *SessionToken::parse(&token).unwrap().secret();
        for (bit, ones) in ones.iter_mut().enumerate() {
            *ones += u32::from(secret[bit / 8] >> (bit % 8) & 1);
        }
    }
    // A UUID's version and variant would stand out at 0 or 400; 200 is expected, and ten is a standard deviation.
    assert!(ones.iter().all(|ones| (140..=260).contains(ones)), "{ones:?}");
}

#[tokio::test]
async fn asvs_16_2_5_no_refusal_and_no_event_shows_a_token() {
    let (stack, caller) = start().await;
    let mut watch = Watch::open(caller.session_events()).await;
    let (_, anonymous) = create_session(&caller).await;
    let (session, first) = authenticate(&caller, &anonymous, identity("lena", 1)).await;
    let second = rotate(&caller, &first).await;
    validate(&caller, &second).await;
    let tokens = [anonymous, first, second];
    stack.advance(TimeDelta::minutes(5));
    let mut said = vec![];
    for token in [&tokens[0], &tokens[1], "tds_nonsense"] {
        for status in refusals(&caller, token, &session).await {
            said.push(format!("{status:?} {}", String::from_utf8_lossy(status.details())));
        }
    }
    let mut kinds = vec![];
    while kinds.last().is_none_or(|kind| kind != "session.revoked") {
        let event = watch.next().await;
        said.push(format!("{event:?} {}", String::from_utf8_lossy(&event.encode_to_vec())));
        kinds.push(event.r#type);
    }
    for kind in ["session.authenticated", "session.rotated", "session.token_used", "session.revoked"] {
        assert!(kinds.iter().any(|found| found == kind), "{kinds:?} lack {kind}");
    }
    said.push(stack.database.dump().await);
    let said = said.join("\n");
    assert!(said.contains("STALE_LINEAGE") && said.contains("ORPHAN"));
    for token in &tokens {
        assert!(!said.contains(&token[28..68]), "a secret was told");
    }
}

#[tokio::test]
async fn asvs_16_5_3_without_the_database_nobody_is_let_in_and_nobody_logged_out() {
    let (stack, caller) = start().await;
    set_policy(&caller, pb::SessionPolicy { outage_bound: Some(seconds(60)), ..Default::default() }).await;
    let (known, cached) = create_session(&caller).await;
    let (ended, revoked) = create_session(&caller).await;
    let (_, uncached) = create_session(&caller).await;
    validate(&caller, &cached).await;
    revoke(&caller, &ended).await;
    stack.database.set_open(false);
    for elapsed in [0, 2, 30, 70] {
        stack.advance(TimeDelta::seconds(elapsed));
        for token in [&cached, &revoked, &uncached] {
            for consistency in [pb::Consistency::Bounded, pb::Consistency::Strong] {
                let answer = caller.sessions().validate_session(validation(token, consistency)).await;
                match answer {
                    Ok(answer) => {
                        let answer = answer.into_inner();
                        assert_eq!((answer.verdict(), token), (Verdict::Active, &cached));
                        assert_eq!(answer.session.unwrap().session_id, known.session_id);
                        assert!(elapsed < 60 && consistency == pb::Consistency::Bounded);
                    }
                    Err(status) => {
                        let found = (status.code(), reason_of(&status));
                        assert_eq!(found, (Code::Unavailable, "STORAGE_UNAVAILABLE".to_owned()));
                    }
                }
            }
        }
        for status in refusals(&caller, &cached, &known).await {
            assert_eq!(reason_of(&status), "STORAGE_UNAVAILABLE");
        }
    }
    stack.database.set_open(true);
}
