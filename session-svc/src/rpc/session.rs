//! `SessionService`.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use shared::auth::Caller;
use shared::id::{SessionId, ShopperId};
use shared::keyring::Purpose;
use shared::mutation::{Begun, Call};
use shared::page::{self, List};
use shared::parse::{known, line, optional, parse, required};
use shared::pb::session as pb;
use shared::pb::session::revoke_session_request::Target;
use shared::pb::session::session_service_server::SessionService;
use shared::replay::Replayed;
use shared::status::{Failure, Reason, Refusal};
use shared::time::{Time, to_proto};
use tonic::{Request, Response, Status};

use super::{App, no_touchpoint};
use crate::domain::session::{Ended, RevokeReason, Session, State, Subject};
use crate::domain::token::SessionToken;
use crate::domain::touchpoint::{SessionPolicy, Touchpoint};
use crate::domain::visit::{self, Arm, Pins, Visit};
use crate::store;

/// Bytes that a token's secret is derived from, with a key of the ring.
const SALT: usize = 16;

impl App {
    async fn create_session(
        &self,
        request: Request<pb::CreateSessionRequest>,
    ) -> Result<pb::CreateSessionResponse, Failure> {
        let (call, message) = Call::of(request, "CreateSession", |message| &mut message.request_id)?;
        let pb::CreateSessionRequest { touchpoint, subject, device, request_id: _ } = message;
        let touchpoint = parse("touchpoint", &touchpoint)?;
        let subject = subject.map(parse_subject).transpose()?;
        let device = Some(line("device", device, 0, 120)?).filter(|device| !device.is_empty());
        let caller = Arc::clone(&call.caller);
        caller.require_touchpoint(&touchpoint)?;
        if subject.is_some() {
            caller.require_scope("session.assert")?;
        }
        let found = self
            .required_touchpoint(&caller.tenant, &touchpoint, false, self.clock.now())
            .await?;
        let touchpoint = &found.entry.value;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => return self.repeat_creation(&caller, before, subject, device),
        };
        let id = SessionId::new(work.now, self.entropy.bytes());
        let salt = self.new_salt()?;
        let token = self.derive_token(&caller, id, &salt)?;
        let session = self.new_session(&caller, touchpoint, id, &token, work.now);
        let session = Session { subject, device, ..session };
        let digest = session
            .subject
            .as_ref()
            .map(|subject| self.subject_digest(&caller, subject))
            .transpose()?;
        let digest = digest.as_ref().map(<[u8; 32]>::as_slice);
        store::session::insert(&mut work.tx, &caller.tenant, &session, digest).await?;
        // An anonymous session is one insert and no event, so that bots stay cheap.
        if session.subject.is_some() {
            let data = json!({"touchpoint": session.touchpoint.as_str()});
            work.tell("session.created", id.to_string(), data).await?;
        }
        let proto = session_to_proto(&session, &touchpoint.policy, work.now);
        let pins = pins_to_proto(&session.visit.pins);
        let kept = pb::CreateSessionResponse {
            session: Some(without_person(&proto)),
            session_token: String::new(),
            pins: pins.clone(),
        };
        work.answer_without_secret(kept, Some(&salt)).await?;
        Ok(pb::CreateSessionResponse { session: Some(proto), session_token: token.expose(), pins })
    }

    fn new_session(
        &self,
        caller: &Caller,
        touchpoint: &Touchpoint,
        id: SessionId,
        token: &SessionToken,
        now: Time,
    ) -> Session {
        let pins = self.routes.with(&caller.tenant, &touchpoint.components, now, |routing| {
            visit::begin(id, &Pins::new(), routing)
        });
        Session {
            id,
            touchpoint: touchpoint.id.clone(),
            token_hash: token.hash(),
            // Until someone logs in, a session's shopper is nobody else's.
            shopper: touchpoint.has_shoppers.then(|| ShopperId::from_uuid(id.uuid())),
            subject: None,
            device: None,
            created_at: now,
            last_seen_at: now,
            absolute_deadline: now + touchpoint.policy.absolute_lifetime,
            visit: Visit { started_at: now, pins },
            in_checkout: false,
            state: State::Open,
        }
    }

    /// The answer given before, with its token derived again, and the person from the request, which is the same.
    fn repeat_creation(
        &self,
        caller: &Caller,
        before: Replayed<pb::CreateSessionResponse>,
        subject: Option<Subject>,
        device: Option<String>,
    ) -> Result<pb::CreateSessionResponse, Failure> {
        let Replayed { answer, salt } = before;
        let broken = || Failure::Bug("a kept answer without a session".to_owned());
        let session = answer.session.ok_or_else(broken)?;
        let id = session.session_id.parse().map_err(|_| broken())?;
        let token = self.derive_token(caller, id, salt.as_deref().unwrap_or_default())?;
        let subject = subject.map(subject_to_proto);
        let session = pb::Session { subject, device: device.unwrap_or_default(), ..session };
        Ok(pb::CreateSessionResponse {
            session: Some(session),
            session_token: token.expose(),
            pins: answer.pins,
        })
    }

    /// The answer given before, with the person from the session's row.
    async fn repeat_revocation(
        &self,
        caller: &Caller,
        id: SessionId,
        answer: pb::RevokeSessionResponse,
    ) -> Result<pb::RevokeSessionResponse, Failure> {
        let row = store::session::find(&mut *self.db.connection().await?, &caller.tenant, id).await?;
        let (subject, device) = row.map(|session| (session.subject, session.device)).unwrap_or_default();
        let (subject, device) = (subject.map(subject_to_proto), device.unwrap_or_default());
        let session = answer.session.map(|session| pb::Session { subject, device, ..session });
        Ok(pb::RevokeSessionResponse { session })
    }

    /// Key id and random bytes: all that must be kept to make the same secret again.
    fn new_salt(&self) -> Result<Vec<u8>, Failure> {
        let key = self.keys.load().current(Purpose::Token, self.clock.now())?;
        Ok([&key.to_be_bytes()[..], &self.entropy.bytes::<SALT>()].concat())
    }

    fn derive_token(&self, caller: &Caller, id: SessionId, salt: &[u8]) -> Result<SessionToken, Failure> {
        let uuid = id.uuid();
        let parts: [&[u8]; 4] = [b"session", caller.tenant.as_str().as_bytes(), uuid.as_bytes(), salt];
        let key = salt.first_chunk().map(|id| u32::from_be_bytes(*id));
        let secret = key.and_then(|key| self.keys.load().mac(Purpose::Token, key, &parts));
        let secret = secret
            .ok_or_else(|| Failure::Bug("the ring lacks the key that a token was derived with".to_owned()))?;
        Ok(SessionToken::new(id, secret))
    }

    /// A subject's pseudonym.
    fn subject_digest(&self, caller: &Caller, subject: &Subject) -> Result<[u8; 32], Failure> {
        let parts: [&[u8]; 3] =
            [caller.tenant.as_str().as_bytes(), subject.issuer.as_bytes(), subject.sub.as_bytes()];
        let keys = self.keys.load();
        let key = keys.current(Purpose::SubjectDigest, self.clock.now())?;
        keys.mac(Purpose::SubjectDigest, key, &parts)
            .ok_or_else(|| Failure::Bug("no subject-digest key".to_owned()))
    }

    async fn get_session(
        &self,
        request: Request<pb::GetSessionRequest>,
    ) -> Result<pb::GetSessionResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::GetSessionRequest { session_id } = request.into_inner();
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
        request: Request<pb::ListSessionsRequest>,
    ) -> Result<pb::ListSessionsResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::ListSessionsRequest { touchpoint, subject, include_ended, page_size, page_token } =
            request.into_inner();
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
            .map(|subject| self.subject_digest(&caller, subject))
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
        let next_page_token =
            list.cut(&self.keys, &mut sessions, size, now, |session| session.id.to_string())?;
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
        mut request: Request<pb::RevokeSessionRequest>,
    ) -> Result<pb::RevokeSessionResponse, Failure> {
        let caller = Caller::of(&request)?;
        let (id, hash) = match required("target", request.get_mut().target.take())? {
            Target::SessionToken(text) => {
                let unknown = |_| Refusal::new(Reason::SessionNotFound, "not a session's token");
                let token = SessionToken::parse(&text).map_err(unknown)?;
                (token.session_id(), Some(token.hash()))
            }
            Target::SessionId(text) => {
                caller.require_scope("session.any")?;
                (parse("session_id", &text)?, None)
            }
        };
        // What a repetition must equal names the session, and holds no credential.
        request.get_mut().target = Some(Target::SessionId(id.to_string()));
        let (call, message) = Call::of(request, "RevokeSession", |message| &mut message.request_id)?;
        let reason: pb::RevokeReason = known("reason", message.reason)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => return self.repeat_revocation(&caller, id, before.answer).await,
        };
        let session = store::session::find(&mut work.tx, &caller.tenant, id).await?;
        let session = session.filter(|session| hash.is_none_or(|hash| session.token_hash == hash));
        let session = session.ok_or_else(|| no_session(id))?;
        caller.require_touchpoint(&session.touchpoint)?;
        let touchpoint = store::touchpoint::find(&mut work.tx, &caller.tenant, &session.touchpoint).await?;
        let touchpoint = touchpoint.ok_or_else(|| no_touchpoint(&session.touchpoint))?;
        let now = work.now;
        let revoked = session.clone().revoke(now, reason_to_domain(reason));
        let session = match (&session.state, &revoked.state) {
            (State::Open, State::Revoked { at, reason: why }) => {
                if store::session::revoke(&mut work.tx, &caller.tenant, id, *at, *why).await? {
                    let data = json!({"reason": reason.as_str_name()});
                    work.tell("session.revoked", id.to_string(), data).await?;
                    revoked
                } else {
                    // Somebody else was first: their revocation stands.
                    let first = store::session::find(&mut work.tx, &caller.tenant, id).await?;
                    first.ok_or_else(|| no_session(id))?
                }
            }
            _ => session,
        };
        let session = session_to_proto(&session, &touchpoint.policy, now);
        let kept = pb::RevokeSessionResponse { session: Some(without_person(&session)) };
        work.answer(kept).await?;
        // The feed tells the other replicas; here it must hold before the caller hears of it.
        self.sessions.invalidate(&(caller.tenant.clone(), id));
        Ok(pb::RevokeSessionResponse { session: Some(session) })
    }
}

/// What may be kept to answer a repetition with: records of requests hold no personal data.
fn without_person(session: &pb::Session) -> pb::Session {
    pb::Session { subject: None, device: String::new(), ..session.clone() }
}

fn no_session(id: SessionId) -> Refusal {
    Refusal::new(Reason::SessionNotFound, "there is no such session").with("session_id", id)
}

fn subject_to_proto(subject: Subject) -> pb::Subject {
    let Subject { issuer, sub } = subject;
    pb::Subject { issuer, sub }
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
pub(super) fn session_to_proto(session: &Session, policy: &SessionPolicy, now: Time) -> pb::Session {
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
pub(super) fn pins_to_proto(pins: &Pins) -> Vec<pb::ReleasePin> {
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
impl SessionService for App {
    async fn create_session(
        &self,
        request: Request<pb::CreateSessionRequest>,
    ) -> Result<Response<pb::CreateSessionResponse>, Status> {
        Ok(Response::new(self.create_session(request).await?))
    }

    async fn validate_session(
        &self,
        request: Request<pb::ValidateSessionRequest>,
    ) -> Result<Response<pb::ValidateSessionResponse>, Status> {
        Ok(Response::new(self.validate(request).await?))
    }

    async fn get_session(
        &self,
        request: Request<pb::GetSessionRequest>,
    ) -> Result<Response<pb::GetSessionResponse>, Status> {
        Ok(Response::new(self.get_session(request).await?))
    }

    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Result<Response<pb::ListSessionsResponse>, Status> {
        Ok(Response::new(self.list_sessions(request).await?))
    }

    async fn revoke_session(
        &self,
        request: Request<pb::RevokeSessionRequest>,
    ) -> Result<Response<pb::RevokeSessionResponse>, Status> {
        Ok(Response::new(self.revoke_session(request).await?))
    }
}
