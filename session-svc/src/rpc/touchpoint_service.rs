//! `TouchpointService`.

use std::sync::Arc;

use serde_json::json;
use shared::auth::Caller;
use shared::edge::Deadline;
use shared::id::TouchpointId;
use shared::outbox::Event;
use shared::page::{self, List};
use shared::parse::{at_most, duration, etag, etag_of, line, parse, required};
use shared::pb::session as pb;
use shared::pb::session::touchpoint_service_server::TouchpointService;
use shared::replay::Replay;
use shared::status::{Failure, Reason, Refusal};
use shared::time::{Time, duration_to_proto, to_proto};
use tonic::{Request, Response, Status};

use super::{App, bad_policy, no_touchpoint, overtaken};
use crate::OUTBOX;
use crate::domain::touchpoint::{SessionPolicy, Touchpoint};
use crate::store;

/// Answers `TouchpointService`.
pub struct TouchpointRpc(pub Arc<App>);

const COMPONENTS_MAX: usize = 32;

impl App {
    async fn create_touchpoint(
        &self,
        caller: &Caller,
        deadline: Option<std::time::Instant>,
        request: pb::CreateTouchpointRequest,
    ) -> Result<pb::CreateTouchpointResponse, Failure> {
        let pb::CreateTouchpointRequest { touchpoint, request_id } = request;
        let body = pb::CreateTouchpointRequest { touchpoint: touchpoint.clone(), request_id: String::new() };
        let now = self.clock.now();
        let (touchpoint, _) = touchpoint_from_proto(touchpoint, now)?;
        let replay = Replay::new(caller, "CreateTouchpoint", &request_id, &body)?;
        caller.require_touchpoint(&touchpoint.id)?;
        let mut tx = self.db.begin(deadline).await?;
        if let Some(before) = replay.claim(&OUTBOX, &mut tx, now).await? {
            return Ok(before.answer);
        }
        if !store::touchpoint::insert(&mut tx, &caller.tenant, &touchpoint).await? {
            let text = format!("there is a touchpoint {} already", touchpoint.id);
            return Err(Refusal::new(Reason::TouchpointExists, text)
                .with("touchpoint", &touchpoint.id)
                .into());
        }
        OUTBOX
            .append(&mut tx, &event(caller, "touchpoint.created", &touchpoint, now))
            .await?;
        let answer = pb::CreateTouchpointResponse { touchpoint: Some(touchpoint_to_proto(&touchpoint)) };
        replay.record(&OUTBOX, &mut tx, &answer, None).await?;
        tx.commit().await?;
        self.touchpoints.invalidate(&(caller.tenant.clone(), touchpoint.id));
        Ok(answer)
    }

    async fn get_touchpoint(
        &self,
        caller: &Caller,
        request: pb::GetTouchpointRequest,
    ) -> Result<pb::GetTouchpointResponse, Failure> {
        let pb::GetTouchpointRequest { touchpoint } = request;
        let id: TouchpointId = parse("touchpoint", &touchpoint)?;
        caller.require_touchpoint(&id)?;
        let touchpoint = self.required_touchpoint(&caller.tenant, &id, true, self.clock.now()).await?;
        Ok(pb::GetTouchpointResponse { touchpoint: Some(touchpoint_to_proto(&touchpoint.entry.value)) })
    }

    async fn list_touchpoints(
        &self,
        caller: &Caller,
        request: pb::ListTouchpointsRequest,
    ) -> Result<pb::ListTouchpointsResponse, Failure> {
        let pb::ListTouchpointsRequest { page_size, page_token } = request;
        let list = List { name: "ListTouchpoints", tenant: &caller.tenant, filter: "" };
        let (size, after) = (page::size(page_size)?, list.after(&self.keys, &page_token)?);
        let mut db = self.db.connection().await?;
        let mut rows =
            store::touchpoint::list(&mut db, &caller.tenant, after.as_deref().unwrap_or_default(), size + 1)
                .await?;
        let next_page_token =
            list.cut(&self.keys, &mut rows, size, |touchpoint| touchpoint.id.to_string())?;
        let visible = rows
            .iter()
            .filter(|touchpoint| caller.require_touchpoint(&touchpoint.id).is_ok());
        Ok(pb::ListTouchpointsResponse {
            touchpoints: visible.map(touchpoint_to_proto).collect(),
            next_page_token,
        })
    }

    async fn update_touchpoint(
        &self,
        caller: &Caller,
        deadline: Option<std::time::Instant>,
        request: pb::UpdateTouchpointRequest,
    ) -> Result<pb::UpdateTouchpointResponse, Failure> {
        let pb::UpdateTouchpointRequest { touchpoint, request_id } = request;
        let body = pb::UpdateTouchpointRequest { touchpoint: touchpoint.clone(), request_id: String::new() };
        let now = self.clock.now();
        let (touchpoint, sent_etag) = touchpoint_from_proto(touchpoint, now)?;
        let replay = Replay::new(caller, "UpdateTouchpoint", &request_id, &body)?;
        caller.require_touchpoint(&touchpoint.id)?;
        let mut tx = self.db.begin(deadline).await?;
        if let Some(before) = replay.claim(&OUTBOX, &mut tx, now).await? {
            return Ok(before.answer);
        }
        let current = store::touchpoint::find(&mut tx, &caller.tenant, &touchpoint.id)
            .await?
            .ok_or_else(|| no_touchpoint(&touchpoint.id))?;
        etag(&sent_etag, current.version)?;
        let touchpoint =
            Touchpoint { created_at: current.created_at, version: current.version + 1, ..touchpoint };
        if !store::touchpoint::update(&mut tx, &caller.tenant, &touchpoint).await? {
            return Err(overtaken());
        }
        OUTBOX
            .append(&mut tx, &event(caller, "touchpoint.updated", &touchpoint, now))
            .await?;
        let answer = pb::UpdateTouchpointResponse { touchpoint: Some(touchpoint_to_proto(&touchpoint)) };
        replay.record(&OUTBOX, &mut tx, &answer, None).await?;
        tx.commit().await?;
        self.touchpoints.invalidate(&(caller.tenant.clone(), touchpoint.id));
        Ok(answer)
    }
}

fn event(caller: &Caller, kind: &'static str, touchpoint: &Touchpoint, at: Time) -> Event {
    let (tenant, principal, subject) =
        (caller.tenant.clone(), caller.principal.clone(), touchpoint.id.to_string());
    Event { tenant, kind, subject, principal, at, data: json!({"etag": etag_of(touchpoint.version)}) }
}

/// From the wire, with the etag that was sent.
fn touchpoint_from_proto(
    touchpoint: Option<pb::Touchpoint>,
    now: Time,
) -> Result<(Touchpoint, String), Refusal> {
    let pb::Touchpoint {
        touchpoint,
        display_name,
        group,
        components,
        session_policy,
        has_shoppers,
        create_time: _,
        etag,
    } = required("touchpoint", touchpoint)?;
    let id: TouchpointId = parse("touchpoint.touchpoint", &touchpoint)?;
    at_most("touchpoint.components", &components, COMPONENTS_MAX)?;
    let components = components.iter().map(|name| parse("touchpoint.components", name));
    let mut components = components.collect::<Result<Vec<_>, _>>()?;
    components.sort();
    components.dedup();
    let group = if group.is_empty() { id.as_str() } else { &group };
    let touchpoint = Touchpoint {
        group: parse("touchpoint.group", group)?,
        id,
        display_name: line("touchpoint.display_name", display_name, 0, 200)?,
        components,
        policy: policy_from_proto(session_policy.unwrap_or_default())?,
        has_shoppers,
        created_at: now,
        version: 1,
    };
    Ok((touchpoint, etag))
}

fn policy_from_proto(policy: pb::SessionPolicy) -> Result<SessionPolicy, Refusal> {
    let pb::SessionPolicy { idle_timeout, absolute_lifetime, visit_gap, staleness_bound, outage_bound } =
        policy;
    let field = |name: &str| format!("touchpoint.session_policy.{name}");
    let or = SessionPolicy::default();
    let policy = SessionPolicy {
        idle_timeout: duration(&field("idle_timeout"), idle_timeout)?.unwrap_or(or.idle_timeout),
        absolute_lifetime: duration(&field("absolute_lifetime"), absolute_lifetime)?
            .unwrap_or(or.absolute_lifetime),
        visit_gap: duration(&field("visit_gap"), visit_gap)?.unwrap_or(or.visit_gap),
        staleness_bound: duration(&field("staleness_bound"), staleness_bound)?.unwrap_or(or.staleness_bound),
        outage_bound: duration(&field("outage_bound"), outage_bound)?.unwrap_or(or.outage_bound),
    };
    policy.check().map_err(bad_policy)
}

fn touchpoint_to_proto(touchpoint: &Touchpoint) -> pb::Touchpoint {
    let policy = &touchpoint.policy;
    pb::Touchpoint {
        touchpoint: touchpoint.id.to_string(),
        display_name: touchpoint.display_name.clone(),
        group: touchpoint.group.to_string(),
        components: touchpoint.components.iter().map(ToString::to_string).collect(),
        session_policy: Some(pb::SessionPolicy {
            idle_timeout: Some(duration_to_proto(policy.idle_timeout)),
            absolute_lifetime: Some(duration_to_proto(policy.absolute_lifetime)),
            visit_gap: Some(duration_to_proto(policy.visit_gap)),
            staleness_bound: Some(duration_to_proto(policy.staleness_bound)),
            outage_bound: Some(duration_to_proto(policy.outage_bound)),
        }),
        has_shoppers: touchpoint.has_shoppers,
        create_time: Some(to_proto(touchpoint.created_at)),
        etag: etag_of(touchpoint.version),
    }
}

#[tonic::async_trait]
impl TouchpointService for TouchpointRpc {
    async fn create_touchpoint(
        &self,
        request: Request<pb::CreateTouchpointRequest>,
    ) -> Result<Response<pb::CreateTouchpointResponse>, Status> {
        let (caller, deadline) = (Caller::of(&request).map_err(Failure::from)?, Deadline::of(&request));
        Ok(Response::new(self.0.create_touchpoint(&caller, deadline, request.into_inner()).await?))
    }

    async fn get_touchpoint(
        &self,
        request: Request<pb::GetTouchpointRequest>,
    ) -> Result<Response<pb::GetTouchpointResponse>, Status> {
        let caller = Caller::of(&request).map_err(Failure::from)?;
        Ok(Response::new(self.0.get_touchpoint(&caller, request.into_inner()).await?))
    }

    async fn list_touchpoints(
        &self,
        request: Request<pb::ListTouchpointsRequest>,
    ) -> Result<Response<pb::ListTouchpointsResponse>, Status> {
        let caller = Caller::of(&request).map_err(Failure::from)?;
        Ok(Response::new(self.0.list_touchpoints(&caller, request.into_inner()).await?))
    }

    async fn update_touchpoint(
        &self,
        request: Request<pb::UpdateTouchpointRequest>,
    ) -> Result<Response<pb::UpdateTouchpointResponse>, Status> {
        let (caller, deadline) = (Caller::of(&request).map_err(Failure::from)?, Deadline::of(&request));
        Ok(Response::new(self.0.update_touchpoint(&caller, deadline, request.into_inner()).await?))
    }
}
