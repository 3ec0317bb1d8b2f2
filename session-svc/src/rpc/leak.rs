//! `ReportLeakedToken`: a token that was found where it should not be is taken out of use.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use shared::mutation::{Begun, Call, Mutation};
use shared::parse::line;
use shared::pb::session as pb;
use shared::pb::session::LeakOutcome;
use shared::status::{Failure, Refusal};
use tonic::Request;

use super::App;
use crate::domain::lineage::{Grade, Presented};
use crate::domain::recovery::End;
use crate::domain::session::RevokeReason;
use crate::domain::token::{
    ElevationToken, Kind as _, OfElevation, OfRecovery, OfSession, OfWishlist, RecoveryToken, SessionToken,
    WishlistToken,
};
use crate::store;

const FOUND_AT_MAX: usize = 255;
/// So many characters of a token's kind after its prefix are taken for a token, whole or not.
const TOKEN_PART: usize = 20;

/// A token of ours, whether or not it is good.
enum Leaked {
    Session(SessionToken),
    Elevation(ElevationToken),
    Recovery(RecoveryToken),
    Wishlist(WishlistToken),
}

impl Leaked {
    fn parse(text: &str) -> Option<Self> {
        let session = SessionToken::parse(text).map(Self::Session);
        let elevation = || ElevationToken::parse(text).map(Self::Elevation);
        let recovery = || RecoveryToken::parse(text).map(Self::Recovery);
        let wishlist = || WishlistToken::parse(text).map(Self::Wishlist);
        session
            .or_else(|_| elevation())
            .or_else(|_| recovery())
            .or_else(|_| wishlist())
            .ok()
    }

    /// Tells tokens apart, and is none.
    fn name(&self) -> String {
        let hash = match self {
            Self::Session(token) => token.hash(),
            Self::Elevation(token) => token.hash(),
            Self::Recovery(token) => token.hash(),
            Self::Wishlist(token) => token.hash(),
        };
        URL_SAFE_NO_PAD.encode(hash.bytes())
    }
}

impl App {
    /// Whoever has the token may report it, at whatever touchpoint its session is: a refusal would tell that it is one.
    pub(super) async fn report_leaked_token(
        &self,
        mut request: Request<pb::ReportLeakedTokenRequest>,
    ) -> Result<pb::ReportLeakedTokenResponse, Failure> {
        let leaked = Leaked::parse(&std::mem::take(&mut request.get_mut().token));
        // What a repetition must equal names the token, and holds no credential.
        request.get_mut().token = leaked.as_ref().map(Leaked::name).unwrap_or_default();
        let (call, message) = Call::of(request, "ReportLeakedToken", |message| &mut message.request_id)?;
        let found_at = line("found_at", message.found_at, 0, FOUND_AT_MAX)?;
        if holds_token(&found_at) {
            // Events tell of it.
            return Err(Refusal::field("found_at", "must not contain a token").into());
        }
        let Some(leaked) = leaked else { return Ok(outcome(false)) };
        let mut work = match self.begin(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let tenant = work.actor.tenant.clone();
        let (session, is_ended) = match &leaked {
            Leaked::Session(token) => {
                (Some(token.session_id()), self.end_leaked(&mut work, token, &found_at).await?)
            }
            Leaked::Elevation(token) => {
                (Some(token.session_id()), self.use_leaked_up(&mut work, token, &found_at).await?)
            }
            Leaked::Wishlist(token) => {
                let data = with_place(json!({"reason": RevokeReason::Leaked.name()}), &found_at);
                (None, self.unshare_leaked(&mut work, token, data).await?)
            }
            Leaked::Recovery(token) => (None, revoke_leaked(&mut work, token, &found_at).await?),
        };
        let answer = work.answer(outcome(is_ended)).await?;
        // Also where it lived no more: memory may not have heard of that.
        self.forget(&tenant, session.as_slice());
        Ok(answer)
    }

    /// Revokes the session of a token that works, or that its holder replaced: a thief may have been there before. What an
    /// authentication cut off gives nothing away, so that its session lives on.
    async fn end_leaked(
        &self,
        work: &mut Mutation,
        token: &SessionToken,
        found_at: &str,
    ) -> Result<bool, Failure> {
        let id = token.session_id();
        let Some((session, touchpoint)) = self.session_in(work, id).await? else { return Ok(false) };
        let presented = session.lineage.grade(token.hash(), touchpoint.policy.rotation_grace, work.now);
        let is_its = match presented {
            Presented::Current { .. } | Presented::Child | Presented::InGrace => true,
            Presented::Superseded(grade) => grade != Grade::Orphan,
            Presented::Unknown => false,
        };
        if !is_its || session.standing(&touchpoint, work.now).is_err() {
            return Ok(false);
        }
        let (tenant, now, reason) = (work.actor.tenant.clone(), work.now, RevokeReason::Leaked);
        if !store::revocation::revoke(&mut work.tx, &tenant, id, now, reason).await? {
            return Ok(false);
        }
        let data = with_place(json!({"reason": reason.name()}), found_at);
        work.tell("session.revoked", id.to_string(), data);
        Ok(true)
    }

    /// Uses an elevation up that could still be redeemed.
    async fn use_leaked_up(
        &self,
        work: &mut Mutation,
        token: &ElevationToken,
        found_at: &str,
    ) -> Result<bool, Failure> {
        let id = token.session_id();
        let Some((session, touchpoint)) = self.session_in(work, id).await? else { return Ok(false) };
        let (tenant, now) = (work.actor.tenant.clone(), work.now);
        let Some(elevation) = store::elevation::find(&mut work.tx, &tenant, token).await? else {
            return Ok(false);
        };
        let lives = session.standing(&touchpoint, now).is_ok();
        if !lives || !store::elevation::redeem(&mut work.tx, &tenant, token, now).await? {
            return Ok(false);
        }
        let data = with_place(json!({"action": elevation.action.as_str()}), found_at);
        work.tell("session.elevation_leaked", id.to_string(), data);
        Ok(true)
    }
}

/// Takes a recovery out of use that was open.
async fn revoke_leaked(work: &mut Mutation, token: &RecoveryToken, found_at: &str) -> Result<bool, Failure> {
    let (tenant, now) = (work.actor.tenant.clone(), work.now);
    let Some(recovery) = store::recovery::find(&mut work.tx, &tenant, token).await? else {
        return Ok(false);
    };
    if !store::recovery::end(&mut work.tx, &tenant, token, End::Revoked, now).await? {
        return Ok(false);
    }
    let data = with_place(json!({"shopper_id": token.shopper_id().to_string()}), found_at);
    work.tell("cart.recovery_leaked", recovery.cart.to_string(), data);
    Ok(true)
}

/// Whether a text has what looks like a token of ours in it.
fn holds_token(text: &str) -> bool {
    let is_part = |b: &u8| b.is_ascii_alphanumeric() || b"-_".contains(b);
    let begins = |prefix: &str| {
        text.match_indices(prefix).any(|(at, _)| {
            let rest = text.as_bytes().iter().skip(at + prefix.len());
            rest.take(TOKEN_PART).filter(|b| is_part(b)).count() == TOKEN_PART
        })
    };
    [OfSession::PREFIX, OfElevation::PREFIX, OfRecovery::PREFIX, OfWishlist::PREFIX]
        .into_iter()
        .any(begins)
}

fn outcome(is_ended: bool) -> pb::ReportLeakedTokenResponse {
    let outcome = if is_ended { LeakOutcome::Ended } else { LeakOutcome::NotLive };
    pb::ReportLeakedTokenResponse { outcome: outcome.into() }
}

fn with_place(mut data: Value, found_at: &str) -> Value {
    if !found_at.is_empty() {
        data["found_at"] = found_at.into();
    }
    data
}
