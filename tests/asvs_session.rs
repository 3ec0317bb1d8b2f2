//! OWASP ASVS 5.0, V7.1 to V7.3 and V7.6: what a session is, how long it lives, and who it is of. docs/security.md has the
//! table.

use std::collections::HashSet;

use chrono::TimeDelta;
use session_svc::domain::token::SessionToken;
use shared::pb::session as pb;
use shared::pb::session::{SessionLimitAction, SessionState, Verdict};
use shared::time::to_proto;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::shop::{
    add_line, create_session, seconds, session_id, validate, validate_strong, validation, web,
};
use crate::harness::trust::{
    FLUSH, IDLE, authenticate, authentication, ends_at, get, identity, limited, log_in, mint, own_sessions,
    rotate, rotation, short, start, start_with, subject,
};
use crate::harness::{Answer as _, Watch, workload};

#[tokio::test]
async fn asvs_7_1_1_the_policy_that_is_read_is_the_one_that_is_kept() {
    let (stack, caller) = start_with(short()).await;
    let request = pb::GetTouchpointRequest { touchpoint: "web".to_owned() };
    let touchpoint = caller.touchpoints().get_touchpoint(request).await.answer().touchpoint.unwrap();
    let policy = touchpoint.session_policy.unwrap();
    assert_eq!(policy.level_2_max_age, Some(seconds(24 * 3600)), "defaults are shown, too");
    assert_eq!(policy.level_3_max_age, Some(seconds(12 * 3600)));
    let (idle, absolute) = (policy.idle_timeout.unwrap().seconds, policy.absolute_lifetime.unwrap().seconds);
    let (left, used) = (create_session(&caller).await, create_session(&caller).await);
    for second in 1..=absolute {
        stack.advance(TimeDelta::seconds(1));
        let state = get(&caller, &left.0).await.state();
        if second < absolute {
            let is_idle = second > idle;
            assert_eq!(state == SessionState::IdleExpired, is_idle, "after {second} s: {state:?}");
        }
        let verdict = validate(&caller, &used.1).await.verdict();
        assert_eq!(verdict == Verdict::Expired, second >= absolute, "after {second} s: {verdict:?}");
    }
}

#[tokio::test]
async fn asvs_7_1_2_one_session_too_many_does_what_the_policy_says() {
    let (stack, caller) = start_with(limited(2, SessionLimitAction::Reject)).await;
    let (_, first) = log_in(&caller, "lena").await;
    stack.advance(TimeDelta::seconds(1));
    log_in(&caller, "lena").await;
    let (_, anonymous) = create_session(&caller).await;
    let third = authentication(&anonymous, identity("lena", 1));
    let refused = caller.sessions().authenticate_session(third.clone()).await;
    let status = refused.refused(Code::ResourceExhausted, "SESSION_LIMIT_REACHED");
    assert_eq!(status.get_details_error_info().unwrap().metadata["max"], "2");
    log_in(&caller, "max").await;

    let mut watch = Watch::open(caller.session_events()).await;
    let (touchpoint, policy) = ("web".to_owned(), limited(2, SessionLimitAction::EvictLeastRecent));
    let touchpoint = pb::Touchpoint { touchpoint, session_policy: Some(policy), ..web() };
    let request = pb::UpdateTouchpointRequest { touchpoint: Some(touchpoint), ..Default::default() };
    caller.touchpoints().update_touchpoint(request).await.answer();
    let answer = caller.sessions().authenticate_session(third).await.answer();
    let evicted = watch.next_of("session.revoked").await;
    assert_eq!(answer.evicted_session_ids, std::slice::from_ref(&evicted.subject));
    assert_eq!(validate(&caller, &first).await.verdict(), Verdict::Revoked, "the least recently seen");
    assert_eq!(own_sessions(&caller, &answer.session_token).await.len(), 2);
}

#[tokio::test]
async fn asvs_7_1_3_what_the_identity_provider_says_of_its_session_is_kept_and_kept_to() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let (began, end) = (stack.now() - TimeDelta::minutes(10), stack.now() + TimeDelta::minutes(20));
    let upstream = pb::AssertedIdentity {
        authenticate_time: Some(to_proto(began)),
        session_end_time: Some(to_proto(end)),
        ..identity("lena", 2)
    };
    let (session, token) = authenticate(&caller, &token, upstream).await;
    assert_eq!(session.subject, Some(subject("lena")), "`iss` and `sub`");
    let assurance = session.assurance.clone().unwrap();
    assert_eq!(assurance.authenticate_time, Some(to_proto(began)), "`auth_time`");
    assert_eq!(ends_at(&session), end);
    stack.advance(end - stack.now());
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Expired);
}

#[tokio::test]
async fn asvs_7_2_1_only_the_service_decides_what_a_token_is_worth() {
    let (_stack, caller) = start().await;
    let (session, token) = create_session(&caller).await;
    // Well-formed, with the right id: only the secret is not the session's.
    let forged = SessionToken::new(session_id(&session), [7; 32]).expose();
    for i in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[i] = if bytes[i] == b'A' { b'B' } else { b'A' };
        let tampered = String::from_utf8(bytes).unwrap();
        assert_eq!(validate(&caller, &tampered).await.verdict(), Verdict::SessionUnknown, "{i}");
    }
    for consistency in [pb::Consistency::Unspecified, pb::Consistency::Bounded, pb::Consistency::Strong] {
        for include_attributes in [false, true] {
            let request =
                pb::ValidateSessionRequest { include_attributes, ..validation(&forged, consistency) };
            let answer = caller.sessions().validate_session(request).await.answer();
            assert_eq!((answer.verdict(), answer.session), (Verdict::SessionUnknown, None));
        }
    }
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
}

#[tokio::test]
async fn asvs_7_2_2_every_session_has_a_token_of_its_own_and_no_static_secret_is_one() {
    let (stack, caller) = start().await;
    let tokens = mint(&caller, 2000).await;
    let distinct: HashSet<_> = tokens.iter().map(|token| &token[28..]).collect();
    assert_eq!(distinct.len(), tokens.len());
    let access = stack.token(&workload("storefront"));
    let ring = std::fs::read_to_string(stack.keyring()).unwrap();
    let words = ring.split(|c: char| !(c.is_ascii_alphanumeric() || "-_+/=".contains(c)));
    for secret in words.filter(|word| word.len() > 20).chain([access.as_str()]) {
        for text in [secret.to_owned(), format!("tds_{secret}"), format!("tds_{secret:A<71.71}")] {
            assert_eq!(validate_strong(&caller, &text).await.verdict(), Verdict::SessionUnknown);
        }
    }
}

#[tokio::test]
async fn asvs_7_2_3_a_token_is_a_reference_of_256_random_bits_that_is_hashed_at_rest() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let (stack, caller) = start().await;
    let tokens = mint(&caller, 2000).await;
    let mut seen = [0_u32; 256];
    for token in &tokens {
        let bytes = URL_SAFE_NO_PAD.decode(token.strip_prefix("tds_").unwrap()).unwrap();
        assert_eq!((token.len(), bytes.len()), (75, 1 + 16 + 32 + 4));
        for byte in &bytes[17..49] {
            seen[usize::from(*byte)] += 1;
        }
    }
    // 64000 bytes, 250 of each expected. Of 255 degrees of freedom, 400 is beyond any luck.
    let squares: f64 = seen.iter().map(|count| (f64::from(*count) - 250.0).powi(2)).sum();
    assert!(squares / 250.0 < 400.0, "{squares}");
    let dump = stack.database.dump().await;
    assert!(dump.len() > tokens.len() * 64, "the dump holds what is stored");
    for token in &tokens {
        let secret = SessionToken::parse(token).unwrap();
        let hex = secret.secret()[..8]
            .iter()
            .fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        assert!(!dump.contains(&token[28..68]) && !dump.contains(&hex), "a secret is stored");
    }
}

#[tokio::test]
async fn asvs_7_2_4_an_authentication_replaces_the_token_without_any_grace() {
    let (_stack, caller) = start().await;
    let (_, anonymous) = create_session(&caller).await;
    let unused = rotate(&caller, &anonymous).await;
    let (_, first) = authenticate(&caller, &anonymous, identity("lena", 1)).await;
    let (session, second) = authenticate(&caller, &first, identity("lena", 2)).await;
    let (_, third) = authenticate(&caller, &second, identity("lena", 2)).await;
    for dead in [&anonymous, &unused, &first, &second] {
        for answer in [validate(&caller, dead).await, validate_strong(&caller, dead).await] {
            assert_eq!(answer.verdict(), Verdict::TokenSuperseded);
            assert_eq!(answer.token_grade(), pb::TokenGrade::Orphan);
            assert_eq!(answer.session, None);
        }
    }
    let alive = validate(&caller, &third).await;
    assert_eq!(alive.verdict(), Verdict::Active, "an orphan is no theft");
    assert_eq!(alive.session.unwrap().session_id, session.session_id);
}

#[tokio::test]
async fn asvs_7_3_1_an_idle_session_ends_and_reading_it_is_not_activity() {
    let (stack, caller) = start_with(short()).await;
    let (session, token) = create_session(&caller).await;
    stack.advance(IDLE * 3 / 4);
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
    let reads = 5;
    for _ in 0..reads {
        stack.advance((IDLE + FLUSH) / reads);
        get(&caller, &session).await;
        let request = pb::ListSessionsRequest::default();
        caller.sessions().list_sessions(request).await.answer();
    }
    for answer in [validate(&caller, &token).await, validate_strong(&caller, &token).await] {
        assert_eq!(answer.verdict(), Verdict::IdleExpired);
    }
}

#[tokio::test]
async fn asvs_7_3_2_no_use_moves_the_absolute_deadline() {
    let (stack, caller) = start_with(short()).await;
    let (session, mut token) = log_in(&caller, "lena").await;
    let end = ends_at(&session);
    while end - stack.now() > TimeDelta::seconds(30) {
        stack.advance(TimeDelta::seconds(30));
        add_line(&caller, &token, "85123A", 1).await;
        token = rotate(&caller, &token).await;
        let found = validate(&caller, &token).await;
        assert_eq!((found.verdict(), ends_at(&found.session.unwrap())), (Verdict::Active, end));
    }
    stack.advance(end - stack.now());
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Expired);
    let refused = caller
        .sessions()
        .authenticate_session(authentication(&token, identity("lena", 1)))
        .await;
    refused.refused(Code::FailedPrecondition, "SESSION_EXPIRED");
}

#[tokio::test]
async fn asvs_7_6_1_the_earlier_of_policy_and_identity_provider_ends_a_session() {
    let (stack, caller) = start_with(short()).await;
    let policys = stack.now() + TimeDelta::seconds(300);
    for (upstream, end) in [(None, 300), (Some(100), 100), (Some(4000), 300)] {
        let (_, token) = create_session(&caller).await;
        let session_end_time = upstream.map(|after| to_proto(stack.now() + TimeDelta::seconds(after)));
        let upstream = pb::AssertedIdentity { session_end_time, ..identity("lena", 1) };
        let (session, _) = authenticate(&caller, &token, upstream).await;
        assert_eq!(ends_at(&session), policys - TimeDelta::seconds(300 - end));
    }
    let (_, token) = create_session(&caller).await;
    let session_end_time = Some(to_proto(stack.now()));
    let over = pb::AssertedIdentity { session_end_time, ..identity("lena", 1) };
    let refused = caller.sessions().authenticate_session(authentication(&token, over)).await;
    refused.refused(Code::InvalidArgument, "FIELD_INVALID");
}

#[tokio::test]
async fn asvs_7_6_2_nothing_but_an_explicit_call_makes_a_session_or_logs_one_in() {
    let (stack, caller) = start().await;
    let (session, token) = create_session(&caller).await;
    assert_eq!((session.subject, session.assurance), (None, None));
    let count = "select count(*) from session.sessions";
    let unknown = SessionToken::new(session_id(&create_session(&caller).await.0), [7; 32]).expose();
    let before = stack.database.count(count).await;
    for text in ["", "nonsense", &unknown] {
        assert_eq!(validate(&caller, text).await.verdict(), Verdict::SessionUnknown);
        let refused = caller.sessions().rotate_session(rotation(text)).await;
        refused.refused(Code::FailedPrecondition, "SESSION_UNKNOWN");
    }
    assert_eq!(stack.database.count(count).await, before);
    add_line(&caller, &token, "85123A", 1).await;
    let found = validate(&caller, &rotate(&caller, &token).await).await.session.unwrap();
    assert_eq!((found.subject, found.assurance), (None, None), "a cart binds nobody");
}
