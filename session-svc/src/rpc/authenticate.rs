//! `AuthenticateSession`: who a session is of, how surely, with which token from now on, and with whose cart. One transaction.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use serde_json::json;
use shared::auth::Caller;
use shared::id::SessionId;
use shared::id_token::{IdToken, Refused};
use shared::mutation::{Begun, Call, Mutation};
use shared::parse::{at_most, known_or_default, line, required, within};
use shared::pb::session as pb;
use shared::pb::session::authenticate_session_request::Proof;
use shared::replay::Replayed;
use shared::status::{Failure, Reason, Refusal};
use shared::time::{Time, from_proto};
use tonic::Request;

use super::convert::{parse_subject, pins_to_proto, session_to_proto, without_person};
use super::live::{Seen, name_session};
use super::session::require_remembering;
use super::shopper::merge::Login;
use super::{App, overtaken, shopper};
use crate::cache::Entry;
use crate::domain::assurance::{Authentication, Level};
use crate::domain::lineage::Presented;
use crate::domain::merge::Strategy;
use crate::domain::session::{Identity, Session, Subject};
use crate::domain::touchpoint::Touchpoint;
use crate::store;

/// An identity that was proved.
struct Proved {
    identity: Identity,
    /// The identity provider's session ends then.
    session_end: Option<Time>,
    /// What it was proved with, to be used once, and until when anyone would take it.
    id_token: Option<([u8; 32], Time)>,
}

impl App {
    pub(super) async fn authenticate_session(
        &self,
        mut request: Request<pb::AuthenticateSessionRequest>,
    ) -> Result<pb::AuthenticateSessionResponse, Failure> {
        let caller = Caller::of(&request)?;
        // What a repetition must equal names the session, whose token may be another by then, and the same proof.
        let token = name_session(&mut request.get_mut().session_token);
        let proof = required("proof", request.get_ref().proof.clone())?;
        let (call, message) = Call::of(request, "AuthenticateSession", |m| &mut m.request_id)?;
        let strategy: pb::MergeStrategy = known_or_default("merge_strategy", message.merge_strategy)?;
        let now = self.clock.now();
        let proved = self.prove(&caller, proof, now).await;
        let (seen, touchpoint) = self.session_of(&caller, &token, now).await?;
        let id = seen.session.id;
        require_remembering(&touchpoint.value, message.remember_me)?;
        let work = match self.begin(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => return self.repeat_authentication(&caller, id, before).await,
        };
        self.log_in(work, seen, &touchpoint, proved?, strategy.into(), message.remember_me)
            .await
    }

    /// Who it is, by an ID token or on the caller's word.
    async fn prove(&self, caller: &Caller, proof: Proof, now: Time) -> Result<Proved, Failure> {
        match proof {
            Proof::IdToken(proof) => self.prove_by_id_token(caller, &proof, now).await,
            Proof::Asserted(asserted) => {
                caller.require_scope("session.assert")?;
                Ok(asserted_identity(asserted, now)?)
            }
        }
    }

    async fn log_in(
        &self,
        mut work: Box<Mutation>,
        seen: Seen,
        touchpoint: &Arc<Entry<Touchpoint>>,
        proved: Proved,
        strategy: Strategy,
        is_remembered: bool,
    ) -> Result<pb::AuthenticateSessionResponse, Failure> {
        let Proved { identity, session_end, id_token } = proved;
        let (tenant, now, touchpoint) = (work.actor.tenant.clone(), work.now, &touchpoint.value);
        let visit = self.require_live(&tenant, &seen, touchpoint, now)?;
        let before = seen.session;
        if before.subject().is_some_and(|subject| *subject != identity.subject) {
            let text = "the session is of another subject: revoke it and make a new one";
            return Err(Refusal::new(Reason::SessionSubjectDiffers, text).into());
        }
        let digest = self.subject_digest(&tenant, &identity.subject)?;
        let admitted = self
            .admit(&mut work, touchpoint, &identity.subject, &digest, Some(before.id))
            .await?;
        if let Some((token, expires_at)) = id_token
            && !store::id_token::insert(&mut work.tx, &tenant, &token, expires_at).await?
        {
            return Err(Refusal::new(Reason::IdTokenReplayed, "the ID token was used before").into());
        }
        let owner = self.shopper_of(&mut work, &digest, &admitted, before.shopper).await?;
        let (mut merges, mut shopper_merge) = (vec![], None);
        if let (Some(from), Some(into)) = (before.shopper, owner)
            && from != into
        {
            let login = Login { session: before.id, from, into };
            let has_more = shopper::merge::lock(&mut work, &login).await?;
            merges = self.merge_carts(&mut work, before.id, from, into, strategy).await?;
            if strategy != Strategy::None {
                shopper_merge = shopper::merge::merge(&mut work, &login, has_more).await?;
            }
        }
        let evicted = self.evict(&mut work, admitted.excess).await?;
        let salt = self.new_salt()?;
        let token = self.session_token(&tenant, before.id, &salt)?;
        let lifetime = now + touchpoint.policy.timeouts(is_remembered).absolute;
        let level = identity.authentication.level.number();
        let after = Session {
            lineage: before.lineage.clone().cut_off(token.hash()),
            shopper: owner,
            identity: Some(identity.into()),
            is_remembered,
            absolute_deadline: session_end.map_or(lifetime, |end| lifetime.min(end)),
            last_seen_at: before.last_seen_at.max(now),
            visit,
            ..before.clone()
        };
        if !store::session::authenticate(&mut work.tx, &tenant, &before, &after, &digest).await? {
            return Err(overtaken());
        }
        let data = json!({"touchpoint": after.touchpoint.as_str(), "assurance_level": level});
        work.tell("session.authenticated", after.id.to_string(), data);
        let answer = pb::AuthenticateSessionResponse {
            session: Some(session_to_proto(&after, touchpoint, now)),
            session_token: String::new(),
            pins: pins_to_proto(&after.visit.pins),
            cart_merges: merges,
            evicted_session_ids: evicted.iter().map(SessionId::to_string).collect(),
            shopper_merge,
        };
        let person = answer.session.as_ref().map(without_person);
        let kept = pb::AuthenticateSessionResponse { session: person, ..answer.clone() };
        work.answer_without_secret(kept, Some(&salt)).await?;
        self.forget(&tenant, &evicted);
        self.forget(&tenant, &[after.id]);
        Ok(pb::AuthenticateSessionResponse { session_token: token.expose(), ..answer })
    }

    /// The answer given before, with its token derived again, and the person from the session's row.
    async fn repeat_authentication(
        &self,
        caller: &Caller,
        id: SessionId,
        before: Replayed<pb::AuthenticateSessionResponse>,
    ) -> Result<pb::AuthenticateSessionResponse, Failure> {
        let Replayed { answer, salt } = before;
        let token = self.session_token(&caller.tenant, id, salt.as_deref().unwrap_or_default())?;
        // Whoever answered before may have been another replica: here, too, the old token is dead from now on.
        self.forget(&caller.tenant, &[id]);
        let (seen, _) = self.session_of(caller, &token.expose(), self.clock.now()).await?;
        if let Presented::Superseded(grade) = seen.presented {
            return Err(grade.into());
        }
        let session = self.with_person(caller, id, answer.session).await?;
        Ok(pb::AuthenticateSessionResponse { session, session_token: token.expose(), ..answer })
    }
}

impl App {
    async fn prove_by_id_token(
        &self,
        caller: &Caller,
        proof: &pb::IdTokenProof,
        now: Time,
    ) -> Result<Proved, Failure> {
        let pb::IdTokenProof { id_token, nonce } = proof;
        let unconfigured =
            || Refusal::new(Reason::IdTokenIssuerRefused, "no identity provider is configured");
        let providers = self.identity_providers.as_ref().ok_or_else(unconfigured)?;
        let nonce = Some(nonce.as_str()).filter(|nonce| !nonce.is_empty());
        let verified = providers.verify(&caller.tenant, id_token, nonce, now).await;
        let IdToken {
            issuer,
            sub,
            auth_time,
            assurance_level,
            acr,
            amr,
            upstream_session,
            session_expiry,
            expires_at,
            digest,
        } = verified.map_err(refused)?;
        // No leeway here: the session would have ended by then.
        if session_expiry.is_some_and(|end| end <= now) {
            return Err(refused(Refused::Expired).into());
        }
        let level = Level::from_number(assurance_level.into()).unwrap_or(Level::One);
        let authentication = Authentication { at: auth_time, level, acr, amr, upstream_session };
        let identity = Identity { subject: Subject { issuer, sub }, authentication };
        // Longer than any clock's leeway lets it be taken again.
        let id_token = Some((digest, expires_at + TimeDelta::minutes(1)));
        Ok(Proved { identity, session_end: session_expiry, id_token })
    }
}

fn refused(refused: Refused) -> Refusal {
    let (reason, problem) = match refused {
        Refused::Malformed => (Reason::IdTokenInvalid, "MALFORMED"),
        Refused::KeyUnknown => (Reason::IdTokenInvalid, "KEY_UNKNOWN"),
        Refused::AlgorithmRefused => (Reason::IdTokenInvalid, "ALGORITHM_REFUSED"),
        Refused::SignatureInvalid => (Reason::IdTokenInvalid, "SIGNATURE_INVALID"),
        Refused::IssuerUnknown => (Reason::IdTokenIssuerRefused, "ISSUER_UNKNOWN"),
        Refused::TenantRefused => (Reason::IdTokenIssuerRefused, "TENANT_REFUSED"),
        Refused::AudienceWrong => (Reason::IdTokenAudienceWrong, "AUDIENCE_WRONG"),
        Refused::Expired => (Reason::IdTokenExpired, "EXPIRED"),
        Refused::NotYetValid => (Reason::IdTokenExpired, "NOT_YET_VALID"),
        Refused::TooOld => (Reason::IdTokenExpired, "TOO_OLD"),
        Refused::NonceWrong => (Reason::IdTokenNonceWrong, "NONCE_WRONG"),
        Refused::KeysUnavailable => {
            return Refusal::new(Reason::KeysUnavailable, refused.to_string())
                .retry_after(Duration::from_secs(1));
        }
    };
    Refusal::new(reason, refused.to_string()).with("problem", problem)
}

fn asserted_identity(asserted: pb::AssertedIdentity, now: Time) -> Result<Proved, Refusal> {
    let pb::AssertedIdentity { subject, level, acr, amr, authenticate_time, session_end_time } = asserted;
    let subject = parse_subject("asserted.subject", required("asserted.subject", subject)?)?;
    let level = Level::from_number(within("asserted.level", level, 1, 3)?).unwrap_or(Level::One);
    at_most("asserted.amr", &amr, 16)?;
    let amr = amr.into_iter().map(|method| line("asserted.amr", method, 1, 32));
    let instant = |field, time: Option<prost_types::Timestamp>| {
        let bad = || Refusal::field(field, "is no instant");
        time.map(|time| from_proto(time).ok_or_else(bad)).transpose()
    };
    let at = instant("asserted.authenticate_time", authenticate_time)?.unwrap_or(now);
    if at > now {
        return Err(Refusal::field("asserted.authenticate_time", "must not be in the future"));
    }
    let session_end = instant("asserted.session_end_time", session_end_time)?;
    if session_end.is_some_and(|end| end <= now) {
        return Err(Refusal::field("asserted.session_end_time", "must be in the future"));
    }
    let authentication = Authentication {
        at,
        level,
        acr: Some(line("asserted.acr", acr, 0, 255)?).filter(|acr| !acr.is_empty()),
        amr: amr.collect::<Result<_, _>>()?,
        upstream_session: None,
    };
    Ok(Proved { identity: Identity { subject, authentication }, session_end, id_token: None })
}
