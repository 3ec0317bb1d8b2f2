//! Sessions ended: one, a subject's, a touchpoint's, the tenant's; and subjects that may have none.

use std::sync::Arc;

use serde_json::json;
use shared::auth::Caller;
use shared::id::{SessionId, TenantId, TouchpointId};
use shared::mutation::{Begun, Call, Mutation};
use shared::parse::{duration, parse, required};
use shared::pb::session as pb;
use shared::pb::session::revoke_session_request::Target;
use shared::pb::session::revoke_subject_sessions_request::Target as SubjectTarget;
use shared::status::{Failure, Refusal};
use shared::time::{Time, to_proto};
use tonic::Request;

use super::convert::{parse_reason, parse_subject, session_to_proto, subject_to_proto, without_person};
use super::live::{Seen, name_session};
use super::session::{no_session, subject_of};
use super::{App, live, no_touchpoint};
use crate::cache::Entry;
use crate::domain::assurance::Requirement;
use crate::domain::lineage::{Grade, Presented};
use crate::domain::session::{RevokeReason, Session};
use crate::domain::token::{SessionToken, TokenHash};
use crate::domain::touchpoint::Touchpoint;
use crate::store;

/// Sessions ended by one statement.
const ENDED_AT_ONCE: i64 = 2000;

/// Whose session may be ended by this call.
enum Claim {
    /// Whose token this is.
    Token(TokenHash),
    /// Anyone's of the tenant.
    Any,
    /// That of the subject whose other session asks.
    Own(pb::OwnSession),
}

/// A session whose holder asks for something; whether it lives is not asked yet.
struct Asking {
    seen: Seen,
    touchpoint: Arc<Entry<Touchpoint>>,
    requirement: Requirement,
}

impl App {
    pub(super) async fn revoke_session(
        &self,
        mut request: Request<pb::RevokeSessionRequest>,
    ) -> Result<pb::RevokeSessionResponse, Failure> {
        let caller = Caller::of(&request)?;
        let reason = parse_reason(request.get_ref().reason)?;
        let (id, claim) = match required("target", request.get_mut().target.take())? {
            Target::SessionToken(text) => match SessionToken::parse(&text) {
                Ok(token) => (token.session_id(), Claim::Token(token.hash())),
                // A logout always succeeds.
                Err(_) => return Ok(pb::RevokeSessionResponse::default()),
            },
            Target::SessionId(text) => {
                caller.require_scope("session.any")?;
                (parse("session_id", &text)?, Claim::Any)
            }
            Target::OwnSession(own) => (parse("own_session.session_id", &own.session_id)?, Claim::Own(own)),
        };
        // What a repetition must equal names the session, and holds no credential.
        request.get_mut().target = Some(Target::SessionId(id.to_string()));
        let (call, _) = Call::of(request, "RevokeSession", |message| &mut message.request_id)?;
        let asking = match &claim {
            Claim::Own(own) => Some(self.asking_for_own(&caller, own).await?),
            Claim::Token(_) | Claim::Any => None,
        };
        let mut work = match self.begin::<pb::RevokeSessionResponse>(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => {
                // Whoever answered before may have been another replica: here, too, it must hold from now on.
                self.forget(&caller.tenant, &[id]);
                let row = store::session::find(&mut *self.db.connection().await?, &caller.tenant, id).await?;
                let may_see = |row: &Session| {
                    is_claimed(row, &claim, asking.as_ref(), self.clock.now())
                        && caller.require_touchpoint(&row.touchpoint).is_ok()
                };
                let session = before.answer.session;
                let session = session.map(|kept| add_person(kept, row.filter(may_see)));
                return Ok(pb::RevokeSessionResponse { session });
            }
        };
        if let Some(asking) = &asking {
            self.require_asking(&caller, asking, work.now)?;
        }
        let session = store::session::find(&mut work.tx, &caller.tenant, id).await?;
        let session = session.filter(|session| is_claimed(session, &claim, asking.as_ref(), work.now));
        let Some(session) = session else {
            return match claim {
                Claim::Token(_) => Ok(work.answer(pb::RevokeSessionResponse::default()).await?),
                Claim::Any | Claim::Own(_) => Err(no_session(id).into()),
            };
        };
        caller.require_touchpoint(&session.touchpoint)?;
        let touchpoint = store::touchpoint::find(&mut work.tx, &caller.tenant, &session.touchpoint).await?;
        let touchpoint = touchpoint.ok_or_else(|| no_touchpoint(&session.touchpoint))?;
        let session = match session.revocation(&touchpoint) {
            Some(_) => session,
            None => self.end(&mut work, session, reason).await?,
        };
        let session = session_to_proto(&session, &touchpoint, work.now);
        let kept = pb::RevokeSessionResponse { session: Some(without_person(&session)) };
        work.answer(kept).await?;
        self.forget(&caller.tenant, &[id]);
        Ok(pb::RevokeSessionResponse { session: Some(session) })
    }

    async fn asking_for_own(&self, caller: &Caller, own: &pb::OwnSession) -> Result<Asking, Failure> {
        let pb::OwnSession { session_token, session_id: _, max_authentication_age } = own;
        let max_age = duration("own_session.max_authentication_age", *max_authentication_age)?;
        self.asking(caller, session_token, Requirement { level: None, max_age }).await
    }

    async fn asking(
        &self,
        caller: &Caller,
        token: &str,
        requirement: Requirement,
    ) -> Result<Asking, Failure> {
        let (seen, touchpoint) = self.session_of(caller, token, self.clock.now()).await?;
        subject_of(&seen.session)?;
        Ok(Asking { seen, touchpoint, requirement })
    }

    /// Only whoever holds a live session may ask; a repetition was answered before this.
    fn require_asking(&self, caller: &Caller, asking: &Asking, now: Time) -> Result<(), Failure> {
        let Asking { seen, touchpoint, requirement } = asking;
        self.require_live(&caller.tenant, seen, &touchpoint.value, now)?;
        live::require(requirement, &seen.session, &touchpoint.value, now)?;
        Ok(())
    }

    /// Revokes a session unless somebody did: their revocation stands.
    pub(super) async fn end(
        &self,
        work: &mut Mutation,
        session: Session,
        reason: RevokeReason,
    ) -> Result<Session, Failure> {
        let (tenant, id, now) = (work.actor.tenant.clone(), session.id, work.now);
        if store::revocation::revoke(&mut work.tx, &tenant, id, now, reason).await? {
            work.tell("session.revoked", id.to_string(), json!({"reason": reason.name()}));
            return Ok(session.revoke(now, reason));
        }
        let first = store::session::find(&mut work.tx, &tenant, id).await?;
        Ok(first.ok_or_else(|| no_session(id))?)
    }

    /// A kept answer's session, with the person from its row.
    pub(super) async fn with_person(
        &self,
        caller: &Caller,
        id: SessionId,
        kept: Option<pb::Session>,
    ) -> Result<Option<pb::Session>, Failure> {
        let Some(kept) = kept else { return Ok(None) };
        let row = store::session::find(&mut *self.db.connection().await?, &caller.tenant, id).await?;
        Ok(Some(add_person(kept, row)))
    }

    pub(super) async fn revoke_subject_sessions(
        &self,
        mut request: Request<pb::RevokeSubjectSessionsRequest>,
    ) -> Result<pb::RevokeSubjectSessionsResponse, Failure> {
        let caller = Caller::of(&request)?;
        caller.require_unlimited()?;
        let reason = parse_reason(request.get_ref().reason)?;
        let mut token = String::new();
        let named = match required("target", request.get_mut().target.as_mut())? {
            // What a repetition must equal names the session, and holds no credential.
            SubjectTarget::SessionToken(text) => {
                token = name_session(text);
                None
            }
            SubjectTarget::Subject(subject) => {
                caller.require_scope("session.any")?;
                Some(parse_subject("subject", subject.clone())?)
            }
        };
        let (call, message) = Call::of(request, "RevokeSubjectSessions", |m| &mut m.request_id)?;
        if message.keep_current && named.is_some() {
            return Err(Refusal::field("keep_current", "needs a session token").into());
        }
        let (subject, asking) = if let Some(subject) = named {
            (subject, None)
        } else {
            let asking = self.asking(&caller, &token, Requirement::default()).await?;
            (subject_of(&asking.seen.session)?.clone(), Some(asking))
        };
        let digest = self.subject_digest(&caller.tenant, &subject)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => {
                self.forget_subject(&caller.tenant, &digest).await?;
                return Ok(before.answer);
            }
        };
        let mut except = None;
        if let Some(asking) = asking {
            self.require_asking(&caller, &asking, work.now)?;
            except = message.keep_current.then_some(asking.seen.session.id);
        }
        store::subject::lock(&mut work.tx, &caller.tenant, &digest, work.now).await?;
        let revoked_count = self.end_all_of(&mut work, &digest, except, reason).await?;
        let answer = work.answer(pb::RevokeSubjectSessionsResponse { revoked_count }).await?;
        self.forget_subject(&caller.tenant, &digest).await?;
        Ok(answer)
    }

    /// Revokes the sessions of a locked subject, and counts them.
    async fn end_all_of(
        &self,
        work: &mut Mutation,
        digest: &[u8; 32],
        except: Option<SessionId>,
        reason: RevokeReason,
    ) -> Result<i32, Failure> {
        let (tenant, now) = (work.actor.tenant.clone(), work.now);
        let data = json!({"reason": reason.name()});
        let mut count = 0;
        loop {
            let (tx, limit) = (&mut work.tx, ENDED_AT_ONCE);
            let ended =
                store::revocation::revoke_subject(tx, &tenant, digest, except, now, reason, limit).await?;
            for id in &ended {
                work.tell("session.revoked", id.to_string(), data.clone());
            }
            count += i32::try_from(ended.len()).unwrap_or(0);
            if i64::try_from(ended.len()).unwrap_or(limit) < limit {
                return Ok(count);
            }
        }
    }

    /// Forgets every session of a subject here, whoever ended it, before the caller hears that they have ended.
    async fn forget_subject(&self, tenant: &TenantId, digest: &[u8; 32]) -> Result<(), Failure> {
        let mut db = self.db.connection().await?;
        let sessions = store::revocation::ids_of_subject(&mut db, tenant, digest).await?;
        self.forget(tenant, &sessions);
        Ok(())
    }

    pub(super) async fn revoke_touchpoint_sessions(
        &self,
        request: Request<pb::RevokeTouchpointSessionsRequest>,
    ) -> Result<pb::RevokeTouchpointSessionsResponse, Failure> {
        let (call, message) = Call::of(request, "RevokeTouchpointSessions", |m| &mut m.request_id)?;
        let touchpoint: TouchpointId = parse("touchpoint", &message.touchpoint)?;
        let reason = parse_reason(message.reason)?;
        call.caller.require_touchpoint(&touchpoint)?;
        let tenant = call.caller.tenant.clone();
        let mut work = match self.begin(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => {
                self.touchpoints.invalidate(&(tenant, touchpoint));
                return Ok(before.answer);
            }
        };
        let ended = raise_epoch(&mut work, Some(&touchpoint), reason).await?;
        if ended.is_empty() {
            return Err(no_touchpoint(&touchpoint).into());
        }
        let at = to_proto(work.now);
        let answer = pb::RevokeTouchpointSessionsResponse { revoke_time: Some(at) };
        let answer = work.answer(answer).await?;
        self.forget_touchpoints(&tenant, ended);
        Ok(answer)
    }

    pub(super) async fn revoke_tenant_sessions(
        &self,
        request: Request<pb::RevokeTenantSessionsRequest>,
    ) -> Result<pb::RevokeTenantSessionsResponse, Failure> {
        let (call, message) = Call::of(request, "RevokeTenantSessions", |m| &mut m.request_id)?;
        let reason = parse_reason(message.reason)?;
        call.caller.require_unlimited()?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => {
                self.touchpoints.clear();
                return Ok(before.answer);
            }
        };
        let ended = raise_epoch(&mut work, None, reason).await?;
        let (tenant, at) = (work.actor.tenant.clone(), to_proto(work.now));
        let answer = pb::RevokeTenantSessionsResponse { revoke_time: Some(at) };
        let answer = work.answer(answer).await?;
        self.forget_touchpoints(&tenant, ended);
        Ok(answer)
    }

    fn forget_touchpoints(&self, tenant: &TenantId, touchpoints: Vec<TouchpointId>) {
        for touchpoint in touchpoints {
            self.touchpoints.invalidate(&(tenant.clone(), touchpoint));
        }
    }

    pub(super) async fn disable_subject(
        &self,
        request: Request<pb::DisableSubjectRequest>,
    ) -> Result<pb::DisableSubjectResponse, Failure> {
        let (call, message) = Call::of(request, "DisableSubject", |m| &mut m.request_id)?;
        call.caller.require_unlimited()?;
        let subject = parse_subject("subject", required("subject", message.subject)?)?;
        let digest = self.subject_digest(&call.caller.tenant, &subject)?;
        let tenant = call.caller.tenant.clone();
        let mut work = match self.begin(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => {
                self.forget_subject(&tenant, &digest).await?;
                return Ok(before.answer);
            }
        };
        let now = work.now;
        let known = store::subject::lock(&mut work.tx, &tenant, &digest, now).await?;
        let disabled_at = known.disabled_at.unwrap_or(now);
        if known.disabled_at.is_none() {
            store::subject::set_disabled(&mut work.tx, &tenant, &digest, Some(now)).await?;
            work.tell("subject.disabled", pseudonym(&digest), json!({}));
        }
        let revoked_count = self.end_all_of(&mut work, &digest, None, RevokeReason::SubjectDisabled).await?;
        let answer = work
            .answer(pb::DisableSubjectResponse { disable_time: Some(to_proto(disabled_at)), revoked_count })
            .await?;
        self.forget_subject(&tenant, &digest).await?;
        Ok(answer)
    }

    pub(super) async fn enable_subject(
        &self,
        request: Request<pb::EnableSubjectRequest>,
    ) -> Result<pb::EnableSubjectResponse, Failure> {
        let (call, message) = Call::of(request, "EnableSubject", |m| &mut m.request_id)?;
        call.caller.require_unlimited()?;
        let subject = parse_subject("subject", required("subject", message.subject)?)?;
        let digest = self.subject_digest(&call.caller.tenant, &subject)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let (tenant, now) = (work.actor.tenant.clone(), work.now);
        let known = store::subject::lock(&mut work.tx, &tenant, &digest, now).await?;
        if known.disabled_at.is_some() {
            store::subject::set_disabled(&mut work.tx, &tenant, &digest, None).await?;
            work.tell("subject.enabled", pseudonym(&digest), json!({}));
        }
        work.answer(pb::EnableSubjectResponse {}).await
    }
}

/// Who and where, which records of requests do not hold.
fn add_person(kept: pb::Session, row: Option<Session>) -> pb::Session {
    let Some(row) = row else { return kept };
    pb::Session {
        subject: row.subject().cloned().map(subject_to_proto),
        device: row.device.unwrap_or_default(),
        place: row.place.unwrap_or_default(),
        ..kept
    }
}

/// Whether the call may end this session. A token that another has replaced ends its session, too: it was its
/// holder's; but not one that a login cut off.
fn is_claimed(session: &Session, claim: &Claim, asking: Option<&Asking>, now: Time) -> bool {
    match claim {
        Claim::Token(hash) => {
            let presented = session.lineage.grade(*hash, std::time::Duration::ZERO, now);
            !matches!(presented, Presented::Unknown | Presented::Superseded(Grade::Orphan))
        }
        Claim::Any => true,
        Claim::Own(_) => asking.is_some_and(|asking| session.subject() == asking.seen.session.subject()),
    }
}

/// Revokes every session made until now, at one touchpoint or all of them.
async fn raise_epoch(
    work: &mut Mutation,
    touchpoint: Option<&TouchpointId>,
    reason: RevokeReason,
) -> Result<Vec<TouchpointId>, Failure> {
    let (tenant, now) = (work.actor.tenant.clone(), work.now);
    let ended = store::touchpoint::revoke_sessions(&mut work.tx, &tenant, touchpoint, now, reason).await?;
    let data = json!({"reason": reason.name()});
    for id in &ended {
        work.tell("touchpoint.sessions_revoked", id.to_string(), data.clone());
    }
    Ok(ended)
}

/// As events name a subject: they hold no personal data.
fn pseudonym(digest: &[u8; 32]) -> String {
    use base64::Engine as _;
    format!("sub_{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(digest))
}
