//! `VisitService`: visits held on their releases, and the sessions that its requests name.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use shared::auth::Caller;
use shared::id::{SessionId, TenantId};
use shared::mutation::{Begun, Call, Mutation};
use shared::parse::{line, parse, required};
use shared::pb::session as pb;
use shared::pb::session::session_selector::Session as Named;
use shared::status::Failure;
use shared::time::{Time, to_proto};
use tonic::Request;

use super::convert::{parse_ttl, pins_to_proto};
use super::live::Seen;
use super::session::no_session;
use super::{App, overtaken};
use crate::cache::Entry;
use crate::domain::lineage::Presented;
use crate::domain::touchpoint::Touchpoint;
use crate::domain::visit::Visit;
use crate::store;

mod kill;
pub(crate) mod outcome;
mod service;

const TTL_DEFAULT: Duration = Duration::from_mins(30);
const TTL_MAX: Duration = Duration::from_hours(4);
/// Longest reason.
const REASON_MAX: usize = 500;

/// A session that a request names; whether it lives is not asked yet.
struct Selected {
    seen: Seen,
    touchpoint: Arc<Entry<Touchpoint>>,
    by_token: bool,
}

impl App {
    /// Finds the session, and leaves its id in the place of its token: what a repetition must equal holds no credential.
    async fn select(
        &self,
        caller: &Caller,
        selector: &mut Option<pb::SessionSelector>,
        now: Time,
    ) -> Result<Selected, Failure> {
        let named = required("session", selector.take().and_then(|selector| selector.session))?;
        let (seen, touchpoint, by_token) = match named {
            Named::SessionToken(token) => {
                let (seen, touchpoint) = self.session_of(caller, &token, now).await?;
                (seen, touchpoint, true)
            }
            Named::SessionId(text) => {
                let id: SessionId = parse("session.session_id", &text)?;
                let touch = self.touches.peek(&caller.tenant, id);
                let found =
                    store::session::find(&mut *self.db.connection().await?, &caller.tenant, id).await?;
                let session = found.ok_or_else(|| no_session(id))?;
                caller.require_touchpoint(&session.touchpoint)?;
                let touchpoint = self
                    .required_touchpoint(&caller.tenant, &session.touchpoint, false, now)
                    .await?;
                let seen = Seen::new(session, Presented::Current { has_child: false }, touch.as_ref(), now);
                (seen, touchpoint.entry, false)
            }
        };
        let id = Named::SessionId(seen.session.id.to_string());
        *selector = Some(pb::SessionSelector { session: Some(id) });
        Ok(Selected { seen, touchpoint, by_token })
    }

    /// The visit that a live session is in. By token that is activity, and may begin one; by id it is the last one.
    fn visit_of(&self, tenant: &TenantId, selected: &Selected, now: Time) -> Result<Visit, Failure> {
        let Selected { seen, touchpoint, by_token } = selected;
        if *by_token {
            return self.require_live(tenant, seen, &touchpoint.value, now);
        }
        seen.session.standing(&touchpoint.value, now)?;
        Ok(seen.session.visit.clone())
    }

    async fn hold_pin(
        &self,
        mut request: Request<pb::HoldPinRequest>,
    ) -> Result<pb::HoldPinResponse, Failure> {
        let caller = Caller::of(&request)?;
        require_any(&caller, request.get_ref().session.as_ref())?;
        let reason = line("reason", request.get_ref().reason.clone(), 1, REASON_MAX)?;
        let ttl = parse_ttl(request.get_ref().ttl, TTL_DEFAULT, TTL_MAX)?;
        let selected = self.select(&caller, &mut request.get_mut().session, self.clock.now()).await?;
        let (call, _) = Call::of(request, "HoldPin", |message| &mut message.request_id)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let (tenant, id, until) = (&caller.tenant, selected.seen.session.id, work.now + ttl);
        let visit = self.visit_of(tenant, &selected, work.now)?;
        let stored = &selected.seen.stored;
        if !store::visit::hold_pin(&mut work.tx, tenant, id, (until, &reason), stored, &visit).await? {
            return Err(overtaken());
        }
        self.enrol(&mut work.tx, (tenant, id), stored, &[], visit.started_at).await?;
        work.tell("session.pin_held", id.to_string(), json!({"reason": reason, "hold_end_time": until}));
        let (pins, hold_end_time) = (pins_to_proto(&visit.pins), Some(to_proto(until)));
        let answer = work.answer(pb::HoldPinResponse { pins, hold_end_time }).await?;
        self.touches.moved(tenant, id);
        self.sessions.invalidate(&(tenant.clone(), id));
        Ok(answer)
    }

    async fn release_pin(
        &self,
        mut request: Request<pb::ReleasePinRequest>,
    ) -> Result<pb::ReleasePinResponse, Failure> {
        let caller = Caller::of(&request)?;
        require_any(&caller, request.get_ref().session.as_ref())?;
        let selected = self.select(&caller, &mut request.get_mut().session, self.clock.now()).await?;
        let (call, _) = Call::of(request, "ReleasePin", |message| &mut message.request_id)?;
        let mut work: Box<Mutation> = match self.begin(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let (tenant, id) = (&caller.tenant, selected.seen.session.id);
        self.visit_of(tenant, &selected, work.now)?;
        if store::visit::release_pin(&mut work.tx, tenant, id, work.now).await? {
            work.tell("session.pin_released", id.to_string(), json!({}));
        }
        let answer = work.answer(pb::ReleasePinResponse {}).await?;
        self.sessions.invalidate(&(tenant.clone(), id));
        Ok(answer)
    }
}

/// To change a session whose token one does not have takes a scope of its own.
fn require_any(caller: &Caller, selector: Option<&pb::SessionSelector>) -> Result<(), Failure> {
    match selector.and_then(|selector| selector.session.as_ref()) {
        Some(Named::SessionId(_)) => Ok(caller.require_scope("session.any")?),
        Some(Named::SessionToken(_)) | None => Ok(()),
    }
}
