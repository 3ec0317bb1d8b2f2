//! What tests of trust are written in: log in, rotate, log out, and set the policy that sessions are held to.

use chrono::TimeDelta;
use futures_util::{StreamExt as _, stream};
use shared::pb::session as pb;
use shared::pb::session::authenticate_session_request::Proof;
use shared::pb::session::revoke_session_request::Target;
use shared::pb::session::revoke_subject_sessions_request::Target as SubjectTarget;
use shared::time::{Time, from_proto};
use tonic::{Response, Status};
use tonic_types::StatusExt as _;

use super::shop::{create_session, create_touchpoint, line, owner, seconds, web};
use super::{Answer as _, Caller, Stack, workload};

/// The least that a policy allows.
pub(crate) const IDLE: TimeDelta = TimeDelta::minutes(1);
/// By how much an idle deadline lies later, for touches that are not written yet.
pub(crate) const FLUSH: TimeDelta = TimeDelta::seconds(1);
/// A moment more than the default staleness bound.
pub(crate) const BEYOND_BOUND: TimeDelta = TimeDelta::milliseconds(1001);

/// session-svc with touchpoint `web` under the default policy.
pub(crate) async fn start() -> (Stack, Caller) {
    start_with(pb::SessionPolicy::default()).await
}

/// The same under this policy.
pub(crate) async fn start_with(policy: pb::SessionPolicy) -> (Stack, Caller) {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, pb::Touchpoint { session_policy: Some(policy), ..web() }).await;
    (stack, caller)
}

/// Idle after a minute, over after five.
pub(crate) fn short() -> pb::SessionPolicy {
    pb::SessionPolicy {
        idle_timeout: Some(seconds(60)),
        absolute_lifetime: Some(seconds(300)),
        ..Default::default()
    }
}

/// At most so many sessions a subject.
pub(crate) fn limited(max_sessions: i32, action: pb::SessionLimitAction) -> pb::SessionPolicy {
    let limit = pb::SessionLimit { max_sessions, action: action.into() };
    pb::SessionPolicy { session_limit: Some(limit), ..Default::default() }
}

/// Replaces the policy of touchpoint `web`.
pub(crate) async fn set_policy(caller: &Caller, policy: pb::SessionPolicy) {
    let touchpoint = Some(pb::Touchpoint { session_policy: Some(policy), ..web() });
    let request = pb::UpdateTouchpointRequest { touchpoint, ..Default::default() };
    caller.touchpoints().update_touchpoint(request).await.answer();
}

pub(crate) fn subject(sub: &str) -> pb::Subject {
    pb::Subject { issuer: "https://id.example".to_owned(), sub: sub.to_owned() }
}

/// An authentication of this level, just now.
pub(crate) fn identity(sub: &str, level: i32) -> pb::AssertedIdentity {
    pb::AssertedIdentity { subject: Some(subject(sub)), level, ..Default::default() }
}

pub(crate) fn authentication(token: &str, identity: pb::AssertedIdentity) -> pb::AuthenticateSessionRequest {
    pb::AuthenticateSessionRequest {
        session_token: token.to_owned(),
        proof: Some(Proof::Asserted(identity)),
        ..Default::default()
    }
}

/// Logs a session in, again or for the first time; answers its new token.
pub(crate) async fn authenticate(
    caller: &Caller,
    token: &str,
    identity: pb::AssertedIdentity,
) -> (pb::Session, String) {
    let request = authentication(token, identity);
    let answer = caller.sessions().authenticate_session(request).await.answer();
    (answer.session.unwrap(), answer.session_token)
}

/// A new session at `web` that a subject has logged in to.
pub(crate) async fn log_in(caller: &Caller, sub: &str) -> (pb::Session, String) {
    let (_, token) = create_session(caller).await;
    authenticate(caller, &token, identity(sub, 1)).await
}

/// So many new sessions' tokens.
pub(crate) async fn mint(caller: &Caller, count: usize) -> Vec<String> {
    let made = stream::iter(0..count).map(|_| create_session(caller)).buffer_unordered(32);
    made.map(|(_, token)| token).collect().await
}

pub(crate) fn rotation(token: &str) -> pb::RotateSessionRequest {
    pb::RotateSessionRequest { session_token: token.to_owned() }
}

/// The token's successor.
pub(crate) async fn rotate(caller: &Caller, token: &str) -> String {
    caller.sessions().rotate_session(rotation(token)).await.answer().session_token
}

pub(crate) fn logout(token: &str) -> pb::RevokeSessionRequest {
    pb::RevokeSessionRequest {
        target: Some(Target::SessionToken(token.to_owned())),
        reason: pb::RevokeReason::Logout.into(),
        ..Default::default()
    }
}

/// Ends another session of the subject of this token's.
pub(crate) fn end_own(token: &str, session: &pb::Session) -> pb::RevokeSessionRequest {
    let own = pb::OwnSession {
        session_token: token.to_owned(),
        session_id: session.session_id.clone(),
        ..Default::default()
    };
    pb::RevokeSessionRequest { target: Some(Target::OwnSession(own)), ..logout(token) }
}

/// Ends the subject's sessions, but for this token's if that is to be kept.
pub(crate) fn logout_everywhere(token: &str, keep_current: bool) -> pb::RevokeSubjectSessionsRequest {
    pb::RevokeSubjectSessionsRequest {
        target: Some(SubjectTarget::SessionToken(token.to_owned())),
        keep_current,
        reason: pb::RevokeReason::CredentialChanged.into(),
        ..Default::default()
    }
}

pub(crate) fn disabling(sub: &str) -> pb::DisableSubjectRequest {
    pb::DisableSubjectRequest { subject: Some(subject(sub)), ..Default::default() }
}

/// Sets one attribute, whatever it is.
pub(crate) fn setting(token: &str, key: &str, value: &str) -> pb::UpdateSessionAttributesRequest {
    let value = Some(value.to_owned());
    let change = pb::AttributeChange { key: key.to_owned(), value, expected_version: None };
    pb::UpdateSessionAttributesRequest {
        session_token: token.to_owned(),
        changes: vec![change],
        ..Default::default()
    }
}

/// Asks for leave to pay.
pub(crate) fn elevation(token: &str) -> pb::GrantElevationRequest {
    pb::GrantElevationRequest {
        session_token: token.to_owned(),
        action: "payment.create".to_owned(),
        detail: "120.00 EUR to FR76".to_owned(),
        ..Default::default()
    }
}

/// Asks for an assertion that `ledger` shall check.
pub(crate) fn assertion(token: &str) -> pb::IssueAssertionRequest {
    pb::IssueAssertionRequest {
        session_token: token.to_owned(),
        audience: "ledger".to_owned(),
        ..Default::default()
    }
}

/// The session as the database has it. Not activity.
pub(crate) async fn get(caller: &Caller, session: &pb::Session) -> pb::Session {
    let request = pb::GetSessionRequest { session_id: session.session_id.clone() };
    caller.sessions().get_session(request).await.answer().session.unwrap()
}

/// The live sessions of whom this token's session is of.
pub(crate) async fn own_sessions(caller: &Caller, token: &str) -> Vec<pb::Session> {
    let request = pb::ListSessionsRequest { session_token: token.to_owned(), ..Default::default() };
    caller.sessions().list_sessions(request).await.answer().sessions
}

pub(crate) fn ends_at(session: &pb::Session) -> Time {
    from_proto(session.absolute_deadline.unwrap()).unwrap()
}

/// The refusals of every rpc that takes a session token.
pub(crate) async fn refusals(caller: &Caller, token: &str, session: &pb::Session) -> Vec<Status> {
    let mut sessions = caller.sessions();
    let list = pb::ListSessionsRequest { session_token: token.to_owned(), ..Default::default() };
    let cart = pb::GetCartRequest {
        owner: Some(owner(token)),
        currency_code: "EUR".to_owned(),
        ..Default::default()
    };
    vec![
        sessions.rotate_session(rotation(token)).await.unwrap_err(),
        sessions
            .authenticate_session(authentication(token, identity("lena", 1)))
            .await
            .unwrap_err(),
        sessions.revoke_session(end_own(token, session)).await.unwrap_err(),
        sessions
            .revoke_subject_sessions(logout_everywhere(token, true))
            .await
            .unwrap_err(),
        sessions.list_sessions(list).await.unwrap_err(),
        sessions
            .update_session_attributes(setting(token, "colour", "blue"))
            .await
            .unwrap_err(),
        sessions.grant_elevation(elevation(token)).await.unwrap_err(),
        sessions.issue_assertion(assertion(token)).await.unwrap_err(),
        caller.carts().get_cart(cart).await.unwrap_err(),
        caller.carts().add_cart_line(line(token, "85123A", 1)).await.unwrap_err(),
    ]
}

/// The answer of a call that may meet another one in the way, which it then makes again.
pub(crate) async fn persist<T, F>(call: impl Fn() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    loop {
        match call().await {
            Err(status) if super::reason_of(&status) == "CONCURRENT_CHANGE" => {}
            other => return other.map(Response::into_inner),
        }
    }
}

/// The grade in a refusal of a superseded token; empty in any other.
pub(crate) fn grade_of(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.and_then(|info| info.metadata.get("grade").cloned()).unwrap_or_default()
}
