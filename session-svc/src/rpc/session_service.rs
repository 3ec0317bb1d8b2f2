//! `SessionService`.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use shared::auth::Caller;
use shared::edge::Deadline;
use shared::id::{SessionId, ShopperId};
use shared::keyring::Purpose;
use shared::outbox::Event;
use shared::page::{self, List};
use shared::parse::{known, line, optional, parse};
use shared::pb::session as pb;
use shared::pb::session::revoke_session_request::Target;
use shared::pb::session::session_service_server::SessionService;
use shared::replay::Replay;
use shared::status::{Failure, Reason, Refusal};
use shared::time::{Time, to_proto};
use tonic::{Request, Response, Status};

use super::{App, no_touchpoint, overtaken};
use crate::OUTBOX;
use crate::domain::session::{Ended, RevokeReason, Session, State, Subject};
use crate::domain::token::SessionToken;
use crate::domain::touchpoint::SessionPolicy;
use crate::domain::visit::{self, Arm, Pins, Visit};
use crate::store;

/// Answers `SessionService`.
pub struct SessionRpc(pub Arc<App>);

/// Bytes that a token's secret is derived from, with a key of the ring.
const SALT: usize = 16;

impl App {
    async fn create_session(
        &self,
        caller: &Caller,
        deadline: Option<std::time::Instant>,
        request: pb::CreateSessionRequest,
    ) -> Result<pb::CreateSessionResponse, Failure> {
        let body = pb::CreateSessionRequest { request_id: String::new(), ..request.clone() };
        let pb::CreateSessionRequest { touchpoint, subject, device, request_id } = request;
        let touchpoint = parse("touchpoint", &touchpoint)?;
        let subject = subject.map(parse_subject).transpose()?;
        let device = Some(line("device", device, 0, 120)?).filter(|device| !device.is_empty());
        let replay = Replay::new(caller, "CreateSession", &request_id, &body)?;
        caller.require_touchpoint(&touchpoint)?;
        if subject.is_some() {
            caller.require_scope("session.assert")?;
        }
        let now = self.clock.now();
        let touchpoint = self.required_touchpoint(&caller.tenant, &touchpoint, false, now).await?.entry;
        let touchpoint = &touchpoint.value;

        let mut tx = self.db.begin(deadline).await?;
        if let Some(before) = replay.claim::<pb::CreateSessionResponse>(&OUTBOX, &mut tx, now).await? {
            let id = before
                .answer
                .session
                .as_ref()
                .map(|session| session.session_id.as_str())
                .unwrap_or_default();
            let id = id
                .parse()
                .map_err(|_| Failure::Bug("a kept answer without a session".to_owned()))?;
            let token = self.derive_token(caller, id, before.salt.as_deref().unwrap_or_default())?;
            return Ok(pb::CreateSessionResponse { session_token: token.expose(), ..before.answer });
        }
        let id = SessionId::new(now, self.entropy.bytes());
        let salt = self.new_salt()?;
        let token = self.derive_token(caller, id, &salt)?;
        let pins = self.routes.with(&caller.tenant, &touchpoint.components, now, |routing| {
            visit::begin(id, &Pins::new(), routing)
        });
        let session = Session {
            id,
            touchpoint: touchpoint.id.clone(),
            token_hash: token.hash(),
            // Until someone logs in, a session's shopper is nobody else's.
            shopper: touchpoint.has_shoppers.then(|| ShopperId::from_uuid(id.uuid())),
            subject,
            device,
            created_at: now,
            last_seen_at: now,
            absolute_deadline: now + touchpoint.policy.absolute_lifetime,
            visit: Visit { started_at: now, pins },
            checkout: None,
            state: State::Open,
        };
        let digest = session
            .subject
            .as_ref()
            .map(|subject| self.subject_digest(caller, subject))
            .transpose()?;
        store::session::insert(&mut tx, &caller.tenant, &session, digest.as_ref().map(<[u8; 32]>::as_slice))
            .await?;
        if session.subject.is_some() {
            OUTBOX
                .append(
                    &mut tx,
                    &event(
                        caller,
                        "session.created",
                        &session,
                        now,
                        json!({"touchpoint": session.touchpoint.as_str()}),
                    ),
                )
                .await?;
        }
        let answer = pb::CreateSessionResponse {
            session: Some(session_to_proto(&session, &touchpoint.policy, now)),
            session_token: String::new(),
            pins: pins_to_proto(&session.visit.pins),
        };
        replay.record(&OUTBOX, &mut tx, &answer, Some(&salt)).await?;
        tx.commit().await?;
        Ok(pb::CreateSessionResponse { session_token: token.expose(), ..answer })
    }

    /// Key id and random bytes: all that must be kept to make the same secret again.
    fn new_salt(&self) -> Result<Vec<u8>, Failure> {
        let key = self.keys.current(Purpose::Token)?;
        Ok([&key.to_be_bytes()[..], &self.entropy.bytes::<SALT>()].concat())
    }

    fn derive_token(&self, caller: &Caller, id: SessionId, salt: &[u8]) -> Result<SessionToken, Failure> {
        let uuid = id.uuid();
        let parts: [&[u8]; 4] = [b"session", caller.tenant.as_str().as_bytes(), uuid.as_bytes(), salt];
        let key = salt.first_chunk().map(|id| u32::from_be_bytes(*id));
        let secret = key.and_then(|key| self.keys.mac(Purpose::Token, key, &parts));
        let secret = secret
            .ok_or_else(|| Failure::Bug("the ring lacks the key that a token was derived with".to_owned()))?;
        Ok(SessionToken::new(id, secret))
    }

    /// A subject's pseudonym.
    fn subject_digest(&self, caller: &Caller, subject: &Subject) -> Result<[u8; 32], Failure> {
        let parts: [&[u8]; 3] =
            [caller.tenant.as_str().as_bytes(), subject.issuer.as_bytes(), subject.sub.as_bytes()];
        let key = self.keys.current(Purpose::SubjectDigest)?;
        self.keys
            .mac(Purpose::SubjectDigest, key, &parts)
            .ok_or_else(|| Failure::Bug("no subject-digest key".to_owned()))
    }

    async fn get_session(
        &self,
        caller: &Caller,
        request: pb::GetSessionRequest,
    ) -> Result<pb::GetSessionResponse, Failure> {
        let pb::GetSessionRequest { session_id } = request;
        let (id, now) = (parse("session_id", &session_id)?, self.clock.now());
        let touch = self.touches.peek(&caller.tenant, id);
        let mut session = store::session::find(&mut *self.db.connection().await?, &caller.tenant, id)
            .await?
            .ok_or_else(|| no_session(id))?;
        if let Some(touch) = touch {
            touch.overlay(&mut session);
        }
        caller.require_touchpoint(&session.touchpoint)?;
        let touchpoint = self
            .required_touchpoint(&caller.tenant, &session.touchpoint, false, now)
            .await?
            .entry;
        let pins = pins_to_proto(&session.visit.pins);
        Ok(pb::GetSessionResponse {
            session: Some(session_to_proto(&session, &touchpoint.value.policy, now)),
            pins,
        })
    }

    async fn list_sessions(
        &self,
        caller: &Caller,
        request: pb::ListSessionsRequest,
    ) -> Result<pb::ListSessionsResponse, Failure> {
        let pb::ListSessionsRequest { touchpoint, subject, include_ended, page_size, page_token } = request;
        let touchpoint = optional("touchpoint", &touchpoint)?;
        let subject = subject.map(parse_subject).transpose()?;
        let size = page::size(page_size)?;
        match &touchpoint {
            Some(touchpoint) => caller.require_touchpoint(touchpoint)?,
            None if caller.is_limited() => {
                return Err(Refusal::field(
                    "touchpoint",
                    "is required of a caller who is limited to touchpoints",
                )
                .into());
            }
            None => {}
        }
        let digest = subject
            .as_ref()
            .map(|subject| self.subject_digest(caller, subject))
            .transpose()?;
        let encoded = digest.map(|digest| URL_SAFE_NO_PAD.encode(digest));
        let filter = format!("{touchpoint:?} {encoded:?} {include_ended}");
        let list = List { name: "ListSessions", tenant: &caller.tenant, filter: &filter };
        let after = list.after(&self.keys, &page_token)?;
        let after =
            after.map_or(Ok(SessionId::from_uuid(uuid::Uuid::nil())), |id| parse("page_token", &id))?;
        let now = self.clock.now();
        let filter = store::session::Filter {
            touchpoint: touchpoint.as_ref(),
            subject_digest: digest.as_ref().map(<[u8; 32]>::as_slice),
            live_at: (!include_ended).then_some(now),
        };
        let mut sessions =
            store::session::list(&mut *self.db.connection().await?, &caller.tenant, &filter, after, size + 1)
                .await?;
        let next_page_token = list.cut(&self.keys, &mut sessions, size, |session| session.id.to_string())?;
        let mut listed = Vec::with_capacity(sessions.len());
        for mut session in sessions {
            if let Some(touch) = self.touches.peek(&caller.tenant, session.id) {
                touch.overlay(&mut session);
            }
            let touchpoint = self
                .required_touchpoint(&caller.tenant, &session.touchpoint, false, now)
                .await?
                .entry;
            if include_ended || session.standing(&touchpoint.value.policy, now).is_ok() {
                listed.push(session_to_proto(&session, &touchpoint.value.policy, now));
            }
        }
        Ok(pb::ListSessionsResponse { sessions: listed, next_page_token })
    }

    async fn revoke_session(
        &self,
        caller: &Caller,
        deadline: Option<std::time::Instant>,
        request: pb::RevokeSessionRequest,
    ) -> Result<pb::RevokeSessionResponse, Failure> {
        let pb::RevokeSessionRequest { target, reason, request_id } = request;
        let (id, token) = match shared::parse::required("target", target)? {
            Target::SessionToken(text) => {
                let token = SessionToken::parse(&text)
                    .map_err(|_| Refusal::new(Reason::SessionNotFound, "not a session's token"))?;
                (token.session_id(), Some(token))
            }
            Target::SessionId(text) => {
                caller.require_scope("session.any")?;
                (parse("session_id", &text)?, None)
            }
        };
        let reason_sent: pb::RevokeReason = known("reason", reason)?;
        // The body without its credential.
        let body = pb::RevokeSessionRequest {
            target: Some(Target::SessionId(id.to_string())),
            reason,
            request_id: String::new(),
        };
        let replay = Replay::new(caller, "RevokeSession", &request_id, &body)?;
        let now = self.clock.now();
        let mut tx = self.db.begin(deadline).await?;
        if let Some(before) = replay.claim::<pb::RevokeSessionResponse>(&OUTBOX, &mut tx, now).await? {
            return Ok(before.answer);
        }
        let is_its_own =
            |session: &Session| token.as_ref().is_none_or(|token| session.token_hash == token.hash());
        let session = store::session::find(&mut tx, &caller.tenant, id)
            .await?
            .filter(is_its_own)
            .ok_or_else(|| no_session(id))?;
        caller.require_touchpoint(&session.touchpoint)?;
        let touchpoint = store::touchpoint::find(&mut tx, &caller.tenant, &session.touchpoint).await?;
        let touchpoint = touchpoint.ok_or_else(|| no_touchpoint(&session.touchpoint))?;
        let was_open = session.state == State::Open;
        let session = session.revoke(now, reason_to_domain(reason_sent));
        if was_open && let State::Revoked { reason, .. } = session.state {
            if !store::session::revoke(&mut tx, &caller.tenant, id, now, reason).await? {
                return Err(overtaken());
            }
            OUTBOX
                .append(
                    &mut tx,
                    &event(
                        caller,
                        "session.revoked",
                        &session,
                        now,
                        json!({"reason": reason_sent.as_str_name()}),
                    ),
                )
                .await?;
        }
        let answer =
            pb::RevokeSessionResponse { session: Some(session_to_proto(&session, &touchpoint.policy, now)) };
        replay.record(&OUTBOX, &mut tx, &answer, None).await?;
        tx.commit().await?;
        // The feed tells the other replicas; here it must hold before the caller hears of it.
        self.sessions.invalidate(&(caller.tenant.clone(), id));
        Ok(answer)
    }
}

fn event(caller: &Caller, kind: &'static str, session: &Session, at: Time, data: serde_json::Value) -> Event {
    let (tenant, principal) = (caller.tenant.clone(), caller.principal.clone());
    Event { tenant, kind, subject: session.id.to_string(), principal, at, data }
}

fn no_session(id: SessionId) -> Refusal {
    Refusal::new(Reason::SessionNotFound, "there is no such session").with("session_id", id)
}

fn parse_subject(subject: pb::Subject) -> Result<Subject, Refusal> {
    let pb::Subject { issuer, sub } = subject;
    Ok(Subject { issuer: line("subject.issuer", issuer, 1, 255)?, sub: line("subject.sub", sub, 1, 255)? })
}

fn reason_to_domain(reason: pb::RevokeReason) -> RevokeReason {
    match reason {
        pb::RevokeReason::Logout => RevokeReason::Logout,
        pb::RevokeReason::Admin | pb::RevokeReason::Unspecified => RevokeReason::Admin,
        pb::RevokeReason::Compromised => RevokeReason::Compromised,
    }
}

/// To the wire, as it stands at `now`.
pub fn session_to_proto(session: &Session, policy: &SessionPolicy, now: Time) -> pb::Session {
    let state = match session.standing(policy, now) {
        Ok(()) => pb::SessionState::Active,
        Err(Ended::Idle) => pb::SessionState::IdleExpired,
        Err(Ended::Lifetime) => pb::SessionState::Expired,
        Err(Ended::Revoked) => pb::SessionState::Revoked,
    };
    let (revoke_time, revoke_reason) = match session.state {
        State::Open => (None, pb::RevokeReason::Unspecified),
        State::Revoked { at, reason: RevokeReason::Logout } => (Some(at), pb::RevokeReason::Logout),
        State::Revoked { at, reason: RevokeReason::Admin } => (Some(at), pb::RevokeReason::Admin),
        State::Revoked { at, reason: RevokeReason::Compromised } => (Some(at), pb::RevokeReason::Compromised),
    };
    let subject = session
        .subject
        .clone()
        .map(|Subject { issuer, sub }| pb::Subject { issuer, sub });
    pb::Session {
        session_id: session.id.to_string(),
        touchpoint: session.touchpoint.to_string(),
        shopper_id: session.shopper.map(|shopper| shopper.to_string()).unwrap_or_default(),
        subject,
        state: state.into(),
        create_time: Some(to_proto(session.created_at)),
        last_seen_time: Some(to_proto(session.last_seen_at)),
        idle_deadline: Some(to_proto(session.idle_deadline(policy))),
        absolute_deadline: Some(to_proto(session.absolute_deadline)),
        visit_start_time: Some(to_proto(session.visit.started_at)),
        device: session.device.clone().unwrap_or_default(),
        revoke_reason: revoke_reason.into(),
        revoke_time: revoke_time.map(to_proto),
    }
}

/// To the wire, by component.
pub fn pins_to_proto(pins: &Pins) -> Vec<pb::ReleasePin> {
    let pin = |(component, pin): (&shared::id::ComponentId, &visit::Pin)| pb::ReleasePin {
        component: component.to_string(),
        version: pin.release.version.clone(),
        release_id: pin.release.id.to_string(),
        arm: match pin.arm {
            None => pb::Arm::Unspecified,
            Some((_, Arm::Control)) => pb::Arm::Control,
            Some((_, Arm::Canary)) => pb::Arm::Canary,
        }
        .into(),
        rollout_id: pin.arm.map(|(rollout, _)| rollout.to_string()).unwrap_or_default(),
    };
    pins.iter().map(pin).collect()
}

#[tonic::async_trait]
impl SessionService for SessionRpc {
    async fn create_session(
        &self,
        request: Request<pb::CreateSessionRequest>,
    ) -> Result<Response<pb::CreateSessionResponse>, Status> {
        let (caller, deadline) = (Caller::of(&request).map_err(Failure::from)?, Deadline::of(&request));
        Ok(Response::new(self.0.create_session(&caller, deadline, request.into_inner()).await?))
    }

    async fn validate_session(
        &self,
        request: Request<pb::ValidateSessionRequest>,
    ) -> Result<Response<pb::ValidateSessionResponse>, Status> {
        let caller = Caller::of(&request).map_err(Failure::from)?;
        Ok(Response::new(self.0.validate(&caller, request.into_inner()).await?))
    }

    async fn get_session(
        &self,
        request: Request<pb::GetSessionRequest>,
    ) -> Result<Response<pb::GetSessionResponse>, Status> {
        let caller = Caller::of(&request).map_err(Failure::from)?;
        Ok(Response::new(self.0.get_session(&caller, request.into_inner()).await?))
    }

    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Result<Response<pb::ListSessionsResponse>, Status> {
        let caller = Caller::of(&request).map_err(Failure::from)?;
        Ok(Response::new(self.0.list_sessions(&caller, request.into_inner()).await?))
    }

    async fn revoke_session(
        &self,
        request: Request<pb::RevokeSessionRequest>,
    ) -> Result<Response<pb::RevokeSessionResponse>, Status> {
        let (caller, deadline) = (Caller::of(&request).map_err(Failure::from)?, Deadline::of(&request));
        Ok(Response::new(self.0.revoke_session(&caller, deadline, request.into_inner()).await?))
    }
}
