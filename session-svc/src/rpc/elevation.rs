//! `GrantElevation` and `RedeemElevation`: leave to do one thing, given to a session and used up by whoever does it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use shared::auth::Caller;
use shared::mutation::{Begun, Call};
use shared::parse::parse;
use shared::pb::session as pb;
use shared::status::{Failure, Reason, Refusal};
use shared::time::to_proto;
use tonic::Request;

use super::convert::{parse_requirement, parse_ttl, session_to_proto, without_person};
use super::{App, live};
use crate::domain::elevation::{Action, Digest, Elevation, KEPT, OPEN_MAX, Refused, State};
use crate::domain::session::Ended;
use crate::domain::token::ElevationToken;
use crate::store;

const DETAIL_MAX: usize = 4096;
const TTL_DEFAULT: Duration = Duration::from_mins(2);
const TTL_MAX: Duration = Duration::from_mins(10);

impl App {
    pub(super) async fn grant_elevation(
        &self,
        mut request: Request<pb::GrantElevationRequest>,
    ) -> Result<pb::GrantElevationResponse, Failure> {
        let caller = Caller::of(&request)?;
        let token = std::mem::take(&mut request.get_mut().session_token);
        let (seen, touchpoint) = self.session_of(&caller, &token, self.clock.now()).await?;
        let id = seen.session.id;
        // What a repetition must equal names the session, and holds no credential.
        request.get_mut().session_token = id.to_string();
        let (call, message) = Call::of(request, "GrantElevation", |message| &mut message.request_id)?;
        let action = parse_deed(&message.action, &message.detail)?;
        let requirement = parse_requirement(message.required_assurance, message.max_authentication_age)?;
        let ttl = parse_ttl(message.ttl, TTL_DEFAULT, TTL_MAX)?;
        let mut work = match self.begin::<pb::GrantElevationResponse>(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => {
                let salt = before.salt.unwrap_or_default();
                let elevation_token = self.elevation_token(&caller.tenant, id, &salt)?.expose();
                return Ok(pb::GrantElevationResponse { elevation_token, ..before.answer });
            }
        };
        let touchpoint = &touchpoint.value;
        self.require_live(&caller.tenant, &seen, touchpoint, work.now)?;
        live::require(&requirement, &seen.session, touchpoint, work.now)?;
        if !store::elevation::lock_session(&mut work.tx, &caller.tenant, id).await? {
            return Err(Ended::Revoked.into());
        }
        let open =
            store::elevation::purge(&mut work.tx, &caller.tenant, id, work.now, work.now - KEPT).await?;
        if open >= OPEN_MAX {
            return Err(too_many().into());
        }
        let salt = self.new_salt()?;
        let token = self.elevation_token(&caller.tenant, id, &salt)?;
        // It cannot be redeemed after the session's end, so it does not claim to.
        let expires_at = (work.now + ttl).min(seen.session.absolute_deadline);
        let digest = Digest::of(&token, &action, &message.detail);
        let elevation = Elevation { action, digest, expires_at, state: State::Granted };
        store::elevation::insert(&mut work.tx, &caller.tenant, &token, &elevation).await?;
        let data = json!({"action": elevation.action.as_str()});
        work.tell("session.elevation_granted", id.to_string(), data);
        let expire_time = Some(to_proto(expires_at));
        let kept = pb::GrantElevationResponse { elevation_token: String::new(), expire_time };
        let kept = work.answer_without_secret(kept, Some(&salt)).await?;
        Ok(pb::GrantElevationResponse { elevation_token: token.expose(), ..kept })
    }

    /// Not activity: who redeems need not be who has the session.
    pub(super) async fn redeem_elevation(
        &self,
        mut request: Request<pb::RedeemElevationRequest>,
    ) -> Result<pb::RedeemElevationResponse, Failure> {
        let caller = Caller::of(&request)?;
        let text = std::mem::take(&mut request.get_mut().elevation_token);
        let token = ElevationToken::parse(&text).map_err(|_| unknown())?;
        let id = token.session_id();
        // What a repetition must equal tells tokens apart, and is none.
        request.get_mut().elevation_token = URL_SAFE_NO_PAD.encode(token.hash().bytes());
        let action = parse_deed(&request.get_ref().action, &request.get_ref().detail)?;
        let asked = Digest::of(&token, &action, &request.get_ref().detail);
        // Nor does it hold a detail that could be guessed.
        request.get_mut().detail = URL_SAFE_NO_PAD.encode(asked.bytes());
        let (call, _) = Call::of(request, "RedeemElevation", |message| &mut message.request_id)?;
        let mut work = match self.begin::<pb::RedeemElevationResponse>(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => {
                if let Some(session) = &before.answer.session {
                    caller.require_touchpoint(&parse("touchpoint", &session.touchpoint)?)?;
                }
                let session = self.with_person(&caller, id, before.answer.session).await?;
                return Ok(pb::RedeemElevationResponse { session });
            }
        };
        let elevation = store::elevation::find(&mut work.tx, &caller.tenant, &token).await?;
        let elevation = elevation.ok_or_else(unknown)?;
        // Whoever revokes it waits for this, or was there before and is seen.
        store::elevation::hold_session(&mut work.tx, &caller.tenant, id).await?;
        let (session, touchpoint) = self.session_in(&mut work, id).await?.ok_or_else(unknown)?;
        caller.require_touchpoint(&session.touchpoint)?;
        session.standing(&touchpoint, work.now)?;
        let elevation = elevation.redeem(&asked, work.now)?;
        if !store::elevation::redeem(&mut work.tx, &caller.tenant, &token, work.now).await? {
            // Somebody else did, since it was read.
            return Err(Refused::Redeemed.into());
        }
        let data = json!({"action": elevation.action.as_str()});
        work.tell("session.elevation_redeemed", id.to_string(), data);
        let session = session_to_proto(&session, &touchpoint, work.now);
        let kept = pb::RedeemElevationResponse { session: Some(without_person(&session)) };
        work.answer(kept).await?;
        Ok(pb::RedeemElevationResponse { session: Some(session) })
    }
}

/// What is done. Any text that is not too long is a detail, as none is kept.
fn parse_deed(action: &str, detail: &str) -> Result<Action, Refusal> {
    let action = parse("action", action)?;
    if detail.chars().count() > DETAIL_MAX {
        return Err(Refusal::field("detail", format_args!("must have at most {DETAIL_MAX} characters")));
    }
    Ok(action)
}

fn too_many() -> Refusal {
    Refusal::new(
        Reason::ElevationLimit,
        format!("the session has {OPEN_MAX} elevations that can be redeemed"),
    )
    .with("limit", "open")
    .with("max", OPEN_MAX)
}

fn unknown() -> Refusal {
    Refusal::new(Reason::ElevationUnknown, "the token is of no elevation")
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let reason = match refused {
            Refused::Redeemed => Reason::ElevationRedeemed,
            Refused::Expired => Reason::ElevationExpired,
            Refused::Mismatch => Reason::ElevationMismatch,
        };
        Refusal::new(reason, refused.to_string()).into()
    }
}
