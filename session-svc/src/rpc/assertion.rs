//! `IssueAssertion` and `GetAssertionKeys`: who a session is of, signed, for services that check it without asking.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use shared::auth::Caller;
use shared::id::TenantId;
use shared::jws::ASSERTION;
use shared::parse::line;
use shared::pb::session as pb;
use shared::status::Failure;
use shared::time::{Time, at, to_proto};
use tonic::Request;
use uuid::Uuid;

use super::convert::{parse_requirement, parse_ttl};
use super::{App, live};
use crate::domain::session::Session;
use crate::domain::touchpoint::Touchpoint;

const TTL_DEFAULT: Duration = Duration::from_mins(1);
const TTL_MAX: Duration = Duration::from_mins(5);

impl App {
    pub(super) async fn issue_assertion(
        &self,
        request: Request<pb::IssueAssertionRequest>,
    ) -> Result<pb::IssueAssertionResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::IssueAssertionRequest {
            session_token,
            audience,
            ttl,
            required_assurance,
            max_authentication_age,
        } = request.into_inner();
        let audience = line("audience", audience, 1, 255)?;
        let ttl = parse_ttl(ttl, TTL_DEFAULT, TTL_MAX)?;
        let requirement = parse_requirement(required_assurance, max_authentication_age)?;
        let now = self.clock.now();
        let (session, touchpoint) = self.live_session(&caller, &session_token, now).await?;
        let touchpoint = &touchpoint.value;
        live::require(&requirement, &session, touchpoint, now)?;
        let end = (now + ttl)
            .min(session.absolute_deadline)
            .min(session.idle_deadline(touchpoint));
        // A JWT knows whole seconds only.
        let end = at(end.timestamp());
        let mut claims = claims_of(&session, touchpoint, now);
        claims["iss"] = self.assertion_issuer_of(&caller.tenant).into();
        claims["aud"] = audience.into();
        claims["jti"] = Uuid::from_bytes(self.entropy.bytes()).simple().to_string().into();
        claims["exp"] = end.timestamp().into();
        claims["stale_until"] = end.timestamp().into();
        let assertion = ASSERTION.sign(&self.keys.load(), now, &claims)?;
        Ok(pb::IssueAssertionResponse {
            assertion: assertion.expose().clone(),
            expire_time: Some(to_proto(end)),
        })
    }

    /// All tenants' assertions are signed with one key, so each tenant has an issuer of its own.
    fn assertion_issuer_of(&self, tenant: &TenantId) -> String {
        format!("{}/{tenant}", self.assertion_issuer)
    }

    pub(super) fn get_assertion_keys(
        &self,
        request: &Request<pb::GetAssertionKeysRequest>,
    ) -> Result<pb::GetAssertionKeysResponse, Failure> {
        Caller::of(request)?;
        let jwks = ASSERTION.jwks(&self.keys.load())?;
        let jwks_json = serde_json::to_string(&jwks).map_err(|error| Failure::Bug(error.to_string()))?;
        Ok(pb::GetAssertionKeysResponse { jwks_json })
    }
}

/// What there is to say of a session. What an anonymous one has not is left out.
fn claims_of(session: &Session, touchpoint: &Touchpoint, now: Time) -> Value {
    let pins = session.visit.pins.iter();
    let releases: BTreeMap<_, _> = pins
        .map(|(component, pin)| (component.as_str(), &pin.release.version))
        .collect();
    let subject = session.subject();
    let done = session.identity.as_ref().map(|identity| &identity.authentication);
    let mut claims = json!({
        "sub": subject.map(|subject| &subject.sub),
        "sub_iss": subject.map(|subject| &subject.issuer),
        "sid": session.id.to_string(),
        "shopper": session.shopper.map(|shopper| shopper.to_string()),
        "touchpoint": session.touchpoint.as_str(),
        "iat": now.timestamp(),
        "nbf": now.timestamp(),
        "acr_level": done.map(|done| done.level_at(&touchpoint.policy, now).0.number()),
        "acr": done.and_then(|done| done.acr.as_ref()),
        "amr": done.map(|done| &done.amr).filter(|amr| !amr.is_empty()),
        "auth_time": done.map(|done| done.at.timestamp()),
        "releases": releases,
    });
    if let Some(claims) = claims.as_object_mut() {
        claims.retain(|_, value| !value.is_null());
    }
    claims
}
