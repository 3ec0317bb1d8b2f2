//! Sessions made and read: `CreateSession`, `GetSession`, `ListSessions`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use shared::auth::Caller;
use shared::id::{SessionId, ShopperId, TenantId};
use shared::mutation::{Begun, Call};
use shared::page::{self, List};
use shared::parse::{line, optional, parse};
use shared::pb::session as pb;
use shared::replay::Replayed;
use shared::status::{Failure, Reason, Refusal};
use shared::time::Time;
use tonic::Request;

use super::convert::{parse_subject, pins_to_proto, session_to_proto, subject_to_proto, without_person};
use super::{App, overtaken};
use crate::domain::assurance::{Authentication, Level};
use crate::domain::lineage::Lineage;
use crate::domain::session::{Identity, Session, State, Subject};
use crate::domain::touchpoint::Touchpoint;
use crate::domain::visit::{self, Next, Unit, Visit};
use crate::store;
use crate::store::session::create::{self, New};

/// A new one may be tried so often, where releases are killed meanwhile.
const ATTEMPTS: u32 = 3;

/// A session that is to be made alone of what is asked, with what it becomes.
#[derive(Clone)]
pub struct Creation {
    /// Whose.
    pub tenant: TenantId,
    /// The session.
    pub session: Session,
    /// By its first visit.
    pub units: Vec<Unit>,
}

impl Creation {
    /// As it is stored.
    pub fn row(&self) -> New<'_> {
        let Self { tenant, session, units } = self;
        New { tenant, session, subject_digest: None, units }
    }
}

/// A session that was asked for.
struct Asked {
    subject: Option<Subject>,
    is_remembered: bool,
    device: Option<String>,
    place: Option<String>,
}

impl App {
    pub(super) async fn create_session(
        &self,
        request: Request<pb::CreateSessionRequest>,
    ) -> Result<pb::CreateSessionResponse, Failure> {
        let (call, message) = Call::of(request, "CreateSession", |message| &mut message.request_id)?;
        let pb::CreateSessionRequest { touchpoint, subject, device, remember_me, place, request_id: _ } =
            message;
        let touchpoint = parse("touchpoint", &touchpoint)?;
        let text = |field, text| Ok::<_, Refusal>(Some(line(field, text, 0, 120)?).filter(|t| !t.is_empty()));
        let asked = Asked {
            subject: subject.map(|subject| parse_subject("subject", subject)).transpose()?,
            is_remembered: remember_me,
            device: text("device", device)?,
            place: text("place", place)?,
        };
        let caller = Arc::clone(&call.caller);
        caller.require_touchpoint(&touchpoint)?;
        if asked.subject.is_some() {
            caller.require_scope("session.assert")?;
        }
        let found = self
            .required_touchpoint(&caller.tenant, &touchpoint, false, self.clock.now())
            .await?;
        let touchpoint = &found.entry.value;
        require_remembering(touchpoint, asked.is_remembered)?;
        if asked.subject.is_none() && !call.has_request_id() {
            return self.create_anonymous(&caller, touchpoint, &asked).await;
        }
        let mut work = match self.begin(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => return self.repeat_creation(&caller, before, asked),
        };
        let salt = self.new_salt()?;
        let id = SessionId::new(work.now, self.entropy.bytes());
        let token = self.session_token(&caller.tenant, id, &salt)?;
        let lineage = Lineage::new(token.hash());
        let (mut session, units) = self.new_session(&caller, touchpoint, id, lineage, &asked, work.now);
        let mut evicted = vec![];
        let mut digest = None;
        if let Some(subject) = &asked.subject {
            let key = self.subject_digest(&caller.tenant, subject)?;
            let admitted = self.admit(&mut work, touchpoint, subject, &key, None).await?;
            session.shopper = self.shopper_of(&mut work, &key, &admitted, session.shopper).await?;
            evicted = self.evict(&mut work, admitted.excess).await?;
            digest = Some(key);
        }
        let new =
            New { tenant: &caller.tenant, session: &session, subject_digest: digest.as_ref(), units: &units };
        if create::insert(&mut work.tx, &[new]).await? != [true] {
            return Err(overtaken());
        }
        // An anonymous session is one insert and no event, so that bots stay cheap.
        if session.identity.is_some() {
            let data = json!({"touchpoint": session.touchpoint.as_str()});
            work.tell("session.created", id.to_string(), data);
        }
        let proto = session_to_proto(&session, touchpoint, work.now);
        let pins = pins_to_proto(&session.visit.pins);
        let kept = pb::CreateSessionResponse {
            session: Some(without_person(&proto)),
            session_token: String::new(),
            pins: pins.clone(),
        };
        work.answer_without_secret(kept, Some(&salt)).await?;
        self.forget(&caller.tenant, &evicted);
        Ok(pb::CreateSessionResponse { session: Some(proto), session_token: token.expose(), pins })
    }

    /// One statement, together with whatever else is being created.
    async fn create_anonymous(
        &self,
        caller: &Caller,
        touchpoint: &Touchpoint,
        asked: &Asked,
    ) -> Result<pb::CreateSessionResponse, Failure> {
        let now = self.clock.now();
        let id = SessionId::new(now, self.entropy.bytes());
        let token = self.session_token(&caller.tenant, id, &self.new_salt()?)?;
        for _ in 0..ATTEMPTS {
            let lineage = Lineage::new(token.hash());
            let (session, units) = self.new_session(caller, touchpoint, id, lineage, asked, now);
            let answer = pb::CreateSessionResponse {
                session: Some(session_to_proto(&session, touchpoint, now)),
                session_token: token.expose(),
                pins: pins_to_proto(&session.visit.pins),
            };
            let tenant = caller.tenant.clone();
            if self.creations.ask(Creation { tenant, session, units }).await? {
                return Ok(answer);
            }
            // It would be on a release that was killed, which is not known here yet.
            self.load_kills().await?;
        }
        Err(overtaken())
    }

    fn new_session(
        &self,
        caller: &Caller,
        touchpoint: &Touchpoint,
        id: SessionId,
        lineage: Lineage,
        asked: &Asked,
        now: Time,
    ) -> (Session, Vec<Unit>) {
        let Next { visit, units } =
            self.routes.view(now).with(&caller.tenant, &touchpoint.components, |routing| {
                visit::next(id, &Visit::default(), true, false, now, routing)
            });
        let authentication =
            Authentication { at: now, level: Level::One, acr: None, amr: vec![], upstream_session: None };
        let session = Session {
            id,
            touchpoint: touchpoint.id.clone(),
            lineage,
            epoch: touchpoint.session_epoch,
            // Until someone logs in, a session's shopper is nobody else's.
            shopper: touchpoint.has_shoppers.then(|| ShopperId::from_uuid(id.uuid())),
            identity: asked
                .subject
                .clone()
                .map(|subject| Box::new(Identity { subject, authentication })),
            is_remembered: asked.is_remembered,
            device: asked.device.clone(),
            place: asked.place.clone(),
            created_at: now,
            last_seen_at: now,
            absolute_deadline: now + touchpoint.policy.timeouts(asked.is_remembered).absolute,
            visit,
            in_checkout: false,
            held_until: None,
            state: State::Open,
        };
        (session, units)
    }

    /// The answer given before, with its token derived again, and the person from the request, which is the same.
    fn repeat_creation(
        &self,
        caller: &Caller,
        before: Replayed<pb::CreateSessionResponse>,
        asked: Asked,
    ) -> Result<pb::CreateSessionResponse, Failure> {
        let Replayed { answer, salt } = before;
        let broken = || Failure::Bug("a kept answer without a session".to_owned());
        let session = answer.session.ok_or_else(broken)?;
        let id = session.session_id.parse().map_err(|_| broken())?;
        let token = self.session_token(&caller.tenant, id, salt.as_deref().unwrap_or_default())?;
        let session = pb::Session {
            subject: asked.subject.map(subject_to_proto),
            device: asked.device.unwrap_or_default(),
            place: asked.place.unwrap_or_default(),
            ..session
        };
        Ok(pb::CreateSessionResponse {
            session: Some(session),
            session_token: token.expose(),
            pins: answer.pins,
        })
    }

    pub(super) async fn get_session(
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
        Ok(pb::GetSessionResponse { session: Some(session_to_proto(&session, &touchpoint.value, now)), pins })
    }

    pub(super) async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Result<pb::ListSessionsResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::ListSessionsRequest {
            touchpoint,
            subject,
            include_ended,
            page_size,
            page_token,
            session_token,
        } = request.into_inner();
        let touchpoint = optional("touchpoint", &touchpoint)?;
        let size = page::size(page_size)?;
        let now = self.clock.now();
        let (subject, current) = self.listed_subject(&caller, subject, &session_token, now).await?;
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
            .map(|subject| self.subject_digest(&caller.tenant, subject))
            .transpose()?;
        let encoded = digest.map(|digest| URL_SAFE_NO_PAD.encode(digest));
        let filter = format!("{touchpoint:?} {encoded:?} {include_ended}");
        let list = List { name: "ListSessions", tenant: &caller.tenant, filter: &filter };
        let after = list.after(&self.keys, &page_token)?;
        let after =
            after.map_or(Ok(SessionId::from_uuid(uuid::Uuid::nil())), |id| parse("page_token", &id))?;
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
        let sessions = self.listed(&caller, sessions, include_ended, current, now).await?;
        Ok(pb::ListSessionsResponse { sessions, next_page_token })
    }

    /// Whose sessions are asked for, and which one asks.
    async fn listed_subject(
        &self,
        caller: &Caller,
        subject: Option<pb::Subject>,
        session_token: &str,
        now: Time,
    ) -> Result<(Option<Subject>, Option<SessionId>), Failure> {
        match (subject, session_token) {
            (Some(subject), "") => Ok((Some(parse_subject("subject", subject)?), None)),
            (None, "") => Ok((None, None)),
            (None, token) => {
                let (session, _) = self.live_session(caller, token, now).await?;
                Ok((Some(subject_of(&session)?.clone()), Some(session.id)))
            }
            (Some(_), _) => Err(Refusal::field("subject", "goes without session_token").into()),
        }
    }

    /// A page of sessions as it is answered. Each touchpoint is asked for once.
    async fn listed(
        &self,
        caller: &Caller,
        sessions: Vec<Session>,
        include_ended: bool,
        current: Option<SessionId>,
        now: Time,
    ) -> Result<Vec<pb::Session>, Failure> {
        let mut touchpoints = HashMap::new();
        let mut listed = Vec::with_capacity(sessions.len());
        for mut session in sessions {
            if let Some(touch) = self.touches.peek(&caller.tenant, session.id) {
                touch.overlay(&mut session);
            }
            let touchpoint = match touchpoints.entry(session.touchpoint.clone()) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => {
                    let found = self
                        .required_touchpoint(&caller.tenant, &session.touchpoint, false, now)
                        .await?;
                    new.insert(found.entry)
                }
            };
            let touchpoint = &touchpoint.value;
            if include_ended || session.standing(touchpoint, now).is_ok() {
                let is_current = current == Some(session.id);
                listed.push(pb::Session { is_current, ..session_to_proto(&session, touchpoint, now) });
            }
        }
        Ok(listed)
    }
}

/// Who is logged in; an anonymous session is refused.
pub(super) fn subject_of(session: &Session) -> Result<&Subject, Refusal> {
    let anonymous = || Refusal::new(Reason::SessionAnonymous, "nobody is logged in to the session");
    session.subject().ok_or_else(anonymous)
}

/// Refuses to remember where the touchpoint does not say for how long.
pub(super) fn require_remembering(touchpoint: &Touchpoint, is_remembered: bool) -> Result<(), Refusal> {
    if is_remembered && touchpoint.policy.remember_me.is_none() {
        return Err(Refusal::field("remember_me", "the touchpoint's session policy has none"));
    }
    Ok(())
}

/// No such session.
pub(super) fn no_session(id: SessionId) -> Refusal {
    Refusal::new(Reason::SessionNotFound, "there is no such session").with("session_id", id)
}
