//! Elevations: leave to do one thing once, which dies with its session.

use chrono::TimeDelta;
use futures_util::future::join_all;
use prost_types::value::Kind;
use shared::issuer::Grant;
use shared::pb::session as pb;
use shared::pb::session::authenticate_session_request::Proof;
use shared::time::from_proto;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::harness::shop::{create_session, create_touchpoint, revoke, seconds, web};
use crate::harness::{Answer as _, Caller, Options, Stack, Watch, reason_of, workload};

const ACTION: &str = "payment.create";
const DETAIL: &str = "120.00 EUR to FR7630006000011234567890189";

pub(crate) async fn start() -> (Stack, Caller) {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    (stack, caller)
}

pub(crate) fn grant(token: &str) -> pb::GrantElevationRequest {
    pb::GrantElevationRequest {
        session_token: token.to_owned(),
        action: ACTION.to_owned(),
        detail: DETAIL.to_owned(),
        ..Default::default()
    }
}

pub(crate) fn redemption(elevation: &str) -> pb::RedeemElevationRequest {
    pb::RedeemElevationRequest {
        elevation_token: elevation.to_owned(),
        action: ACTION.to_owned(),
        detail: DETAIL.to_owned(),
        request_id: String::new(),
    }
}

pub(crate) async fn granted(caller: &Caller, token: &str) -> String {
    caller.sessions().grant_elevation(grant(token)).await.answer().elevation_token
}

pub(crate) async fn redeem(
    caller: &Caller,
    request: pb::RedeemElevationRequest,
) -> Result<Response<pb::RedeemElevationResponse>, Status> {
    caller.sessions().redeem_elevation(request).await
}

/// Logs a session in at a level of assurance; answers its new token.
pub(crate) async fn log_in(caller: &Caller, token: &str, level: i32) -> String {
    let subject = pb::Subject { issuer: "https://id.example".to_owned(), sub: "lena".to_owned() };
    let asserted = pb::AssertedIdentity { subject: Some(subject), level, ..Default::default() };
    let request = pb::AuthenticateSessionRequest {
        session_token: token.to_owned(),
        proof: Some(Proof::Asserted(asserted)),
        ..Default::default()
    };
    caller.sessions().authenticate_session(request).await.answer().session_token
}

pub(crate) async fn rotate(caller: &Caller, token: &str) -> String {
    let request = pb::RotateSessionRequest { session_token: token.to_owned() };
    caller.sessions().rotate_session(request).await.answer().session_token
}

#[tokio::test]
async fn an_elevation_is_good_once_for_what_it_is_for() {
    let (stack, caller) = start().await;
    let (session, token) = create_session(&caller).await;
    let answer = caller.sessions().grant_elevation(grant(&token)).await.answer();
    assert!(answer.elevation_token.starts_with("tde_"));
    let expire_time = from_proto(answer.expire_time.unwrap()).unwrap();
    assert_eq!(expire_time, stack.now() + TimeDelta::minutes(2));
    let right = redemption(&answer.elevation_token);
    for wrong in [
        pb::RedeemElevationRequest { action: "payment.refund".to_owned(), ..right.clone() },
        pb::RedeemElevationRequest { detail: DETAIL.replace("120", "1200"), ..right.clone() },
        pb::RedeemElevationRequest { detail: String::new(), ..right.clone() },
    ] {
        redeem(&caller, wrong)
            .await
            .refused(Code::FailedPrecondition, "ELEVATION_MISMATCH");
    }
    let redeemed = redeem(&caller, right.clone()).await.answer().session.unwrap();
    assert_eq!(redeemed.session_id, session.session_id, "a mismatch uses nothing up");
    redeem(&caller, right)
        .await
        .refused(Code::FailedPrecondition, "ELEVATION_REDEEMED");
    let second = granted(&caller, &token).await;
    redeem(&caller, redemption(&second)).await.answer();
}

#[tokio::test]
async fn an_elevation_is_good_until_the_last_microsecond_of_its_time() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let request = pb::GrantElevationRequest { ttl: Some(seconds(1)), ..grant(&token) };
    let ask = async || {
        caller
            .sessions()
            .grant_elevation(request.clone())
            .await
            .answer()
            .elevation_token
    };
    let (last, late) = (ask().await, ask().await);
    stack.advance(TimeDelta::seconds(1) - TimeDelta::microseconds(1));
    redeem(&caller, redemption(&last)).await.answer();
    stack.advance(TimeDelta::microseconds(1));
    redeem(&caller, redemption(&late))
        .await
        .refused(Code::FailedPrecondition, "ELEVATION_EXPIRED");
}

#[tokio::test]
async fn an_elevation_dies_with_its_session() {
    let (stack, caller) = start().await;
    let (session, token) = create_session(&caller).await;
    let elevation = granted(&caller, &token).await;
    revoke(&caller, &session).await;
    redeem(&caller, redemption(&elevation))
        .await
        .refused(Code::FailedPrecondition, "SESSION_REVOKED");

    let (_, token) = create_session(&caller).await;
    let elevation = granted(&caller, &token).await;
    let replica = stack.session_svc(&Options::default());
    let other = caller.at_session(&replica);
    let request = pb::RevokeTouchpointSessionsRequest {
        touchpoint: "web".to_owned(),
        reason: pb::RevokeReason::Compromised.into(),
        ..Default::default()
    };
    other.sessions().revoke_touchpoint_sessions(request).await.answer();
    redeem(&caller, redemption(&elevation))
        .await
        .refused(Code::FailedPrecondition, "SESSION_REVOKED");
}

#[tokio::test]
async fn an_elevation_ends_with_its_sessions_deadlines() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    let policy = |idle, absolute| pb::SessionPolicy {
        idle_timeout: Some(seconds(idle)),
        absolute_lifetime: Some(seconds(absolute)),
        ..Default::default()
    };
    let touchpoint =
        |policy| pb::Touchpoint { touchpoint: "web".to_owned(), session_policy: Some(policy), ..web() };
    create_touchpoint(&caller, touchpoint(policy(60, 3600))).await;
    let (_, token) = create_session(&caller).await;
    let request = pb::GrantElevationRequest { ttl: Some(seconds(600)), ..grant(&token) };
    let idle = caller.sessions().grant_elevation(request).await.answer();
    stack.advance(TimeDelta::seconds(62));
    redeem(&caller, redemption(&idle.elevation_token))
        .await
        .refused(Code::FailedPrecondition, "SESSION_IDLE_EXPIRED");

    let request = pb::CreateTouchpointRequest {
        touchpoint: Some(pb::Touchpoint { touchpoint: "brief".to_owned(), ..touchpoint(policy(60, 60)) }),
        ..Default::default()
    };
    caller.touchpoints().create_touchpoint(request).await.answer();
    let request = pb::CreateSessionRequest { touchpoint: "brief".to_owned(), ..Default::default() };
    let made = caller.sessions().create_session(request).await.answer();
    let brief = caller.sessions().grant_elevation(grant(&made.session_token)).await.answer();
    assert_eq!(brief.expire_time, made.session.unwrap().absolute_deadline, "no longer than the session");
    stack.advance(TimeDelta::seconds(60));
    redeem(&caller, redemption(&brief.elevation_token))
        .await
        .refused(Code::FailedPrecondition, "SESSION_EXPIRED");
}

#[tokio::test]
async fn an_elevation_outlives_the_token_that_it_was_granted_to() {
    let (_stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let elevation = granted(&caller, &token).await;
    let next = rotate(&caller, &token).await;
    granted(&caller, &next).await;
    log_in(&caller, &next, 1).await;
    caller
        .sessions()
        .grant_elevation(grant(&next))
        .await
        .refused(Code::FailedPrecondition, "SESSION_TOKEN_SUPERSEDED");
    redeem(&caller, redemption(&elevation)).await.answer();
}

#[tokio::test]
async fn an_elevation_can_ask_for_a_fresh_and_sure_authentication() {
    let (stack, caller) = start().await;
    let (_, anonymous) = create_session(&caller).await;
    let ask = async |token: &str, required_assurance, age: Option<i64>| {
        let max_authentication_age = age.map(seconds);
        let request =
            pb::GrantElevationRequest { required_assurance, max_authentication_age, ..grant(token) };
        caller
            .sessions()
            .grant_elevation(request)
            .await
            .map_err(|status| reason_of(&status))
    };
    assert_eq!(ask(&anonymous, 1, None).await.unwrap_err(), "SESSION_ASSURANCE_TOO_LOW");
    let token = log_in(&caller, &anonymous, 2).await;
    assert!(ask(&token, 2, Some(300)).await.is_ok());
    assert_eq!(ask(&token, 3, None).await.unwrap_err(), "SESSION_ASSURANCE_TOO_LOW");
    stack.advance(TimeDelta::seconds(301));
    assert!(ask(&token, 2, None).await.is_ok());
    assert_eq!(ask(&token, 2, Some(300)).await.unwrap_err(), "SESSION_AUTHENTICATION_TOO_OLD");
}

#[tokio::test]
async fn bad_input_names_its_field() {
    let (_stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let elevation = granted(&caller, &token).await;
    let good = || grant(&token);
    let action = |action: &str| pb::GrantElevationRequest { action: action.to_owned(), ..good() };
    let ttl = |seconds, nanos| pb::GrantElevationRequest {
        ttl: Some(prost_types::Duration { seconds, nanos }),
        ..good()
    };
    let cases = [
        ("action", action("")),
        ("action", action(&"a".repeat(65))),
        ("action", action("Payment create")),
        ("action", action("payment\0")),
        ("detail", pb::GrantElevationRequest { detail: "é".repeat(4097), ..good() }),
        ("ttl", ttl(0, 0)),
        ("ttl", ttl(0, 999_999_999)),
        ("ttl", ttl(600, 1)),
        ("ttl", ttl(-1, 0)),
        ("ttl", ttl(i64::MAX, i32::MAX)),
        ("required_assurance", pb::GrantElevationRequest { required_assurance: 4, ..good() }),
        ("request_id", pb::GrantElevationRequest { request_id: "1".to_owned(), ..good() }),
    ];
    for (field, request) in cases {
        let refused = caller.sessions().grant_elevation(request).await;
        let status = refused.refused(Code::InvalidArgument, "FIELD_INVALID");
        assert!(status.message().starts_with(field), "{field}: {}", status.message());
    }
    let good = || redemption(&elevation);
    let cases = [
        ("action", pb::RedeemElevationRequest { action: String::new(), ..good() }),
        ("detail", pb::RedeemElevationRequest { detail: "d".repeat(4097), ..good() }),
    ];
    for (field, request) in cases {
        let status = redeem(&caller, request).await.refused(Code::InvalidArgument, "FIELD_INVALID");
        assert!(status.message().starts_with(field), "{field}: {}", status.message());
    }
    for detail in ["", "é\n\0", &"é".repeat(4096)] {
        let request = pb::GrantElevationRequest { detail: detail.to_owned(), ..grant(&token) };
        let elevation = caller.sessions().grant_elevation(request).await.answer().elevation_token;
        let request = pb::RedeemElevationRequest { detail: detail.to_owned(), ..redemption(&elevation) };
        redeem(&caller, request).await.answer();
    }
}

#[tokio::test]
async fn what_is_no_such_token_or_another_tenants_is_unknown() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let elevation = granted(&caller, &token).await;
    let broken = format!("{}A", &elevation[..elevation.len() - 1]);
    for bad in ["", "tde_", "nonsense", &token, &token.replace("tds_", "tde_"), &broken] {
        redeem(&caller, redemption(bad))
            .await
            .refused(Code::FailedPrecondition, "ELEVATION_UNKNOWN");
    }
    for bad in ["", &elevation, &elevation.replace("tde_", "tds_")] {
        caller
            .sessions()
            .grant_elevation(grant(bad))
            .await
            .refused(Code::FailedPrecondition, "SESSION_UNKNOWN");
    }
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..workload("storefront") });
    redeem(&acme, redemption(&elevation))
        .await
        .refused(Code::FailedPrecondition, "ELEVATION_UNKNOWN");
    acme.sessions()
        .grant_elevation(grant(&token))
        .await
        .refused(Code::FailedPrecondition, "SESSION_UNKNOWN");
    let till = stack.caller(&Grant { touchpoints: Some(vec!["pos".to_owned()]), ..workload("till") });
    redeem(&till, redemption(&elevation))
        .await
        .refused(Code::PermissionDenied, "CALLER_TOUCHPOINT_REFUSED");
    till.sessions()
        .grant_elevation(grant(&token))
        .await
        .refused(Code::PermissionDenied, "CALLER_TOUCHPOINT_REFUSED");
    redeem(&caller, redemption(&elevation)).await.answer();
}

#[tokio::test]
async fn events_name_the_action_and_no_row_holds_the_detail_or_the_token() {
    let (stack, caller) = start().await;
    let mut watch = Watch::open(caller.session_events()).await;
    let (session, token) = create_session(&caller).await;
    let request = pb::GrantElevationRequest { request_id: Uuid::from_u128(1).to_string(), ..grant(&token) };
    let elevation = caller.sessions().grant_elevation(request).await.answer().elevation_token;
    redeem(&caller, redemption(&elevation)).await.answer();
    for kind in ["session.elevation_granted", "session.elevation_redeemed"] {
        let event = watch.next_of(kind).await;
        assert_eq!(event.subject, session.session_id);
        let action = Kind::StringValue(ACTION.to_owned()).into();
        assert_eq!(event.data.unwrap().fields, [("action".to_owned(), action)].into());
    }
    let mut db = stack.database.connect().await;
    let rows = "select concat((select string_agg(e::text, '') from session.elevations e),
                              (select string_agg(r::text, '') from session.requests r),
                              (select string_agg(v::text, '') from session.events v))";
    let rows: String = sqlx::query_scalar(rows).fetch_one(&mut db).await.unwrap();
    assert!(rows.contains(ACTION));
    for secret in [DETAIL, "FR7630006000011234567890189", &elevation, &elevation[30..60]] {
        assert!(!rows.contains(secret), "{secret}");
    }
}

/// Those that time out make room, and are forgotten an hour later.
#[tokio::test]
async fn a_session_has_so_many_open_elevations_and_old_ones_are_forgotten() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let (_, other) = create_session(&caller).await;
    let others = granted(&caller, &other).await;
    let first = granted(&caller, &token).await;
    let rivals =
        join_all((0..70).map(|_| async { caller.sessions().grant_elevation(grant(&token)).await })).await;
    let (made, refused): (Vec<_>, Vec<_>) = rivals.into_iter().partition(Result::is_ok);
    assert_eq!((made.len(), refused.len()), (63, 7));
    for refused in refused {
        let status = refused.refused(Code::ResourceExhausted, "ELEVATION_LIMIT");
        let metadata = status.get_details_error_info().unwrap().metadata;
        assert_eq!((metadata["limit"].as_str(), metadata["max"].as_str()), ("open", "64"));
    }
    redeem(&caller, redemption(&others)).await.answer();
    redeem(&caller, redemption(&first)).await.answer();
    granted(&caller, &token).await;
    stack.advance(TimeDelta::minutes(2));
    granted(&caller, &token).await;
    let mut db = stack.database.connect().await;
    let mut kept = async || {
        let count = "select count(*) from session.elevations";
        sqlx::query_scalar::<_, i64>(count).fetch_one(&mut db).await.unwrap()
    };
    assert_eq!(kept().await, 67, "what timed out is still known as such");
    for _ in 0..4 {
        stack.advance(TimeDelta::minutes(20));
        granted(&caller, &token).await;
    }
    assert_eq!(kept().await, 5, "the other session's, and what is not an hour over");
}
