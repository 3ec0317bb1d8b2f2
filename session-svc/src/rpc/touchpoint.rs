//! `TouchpointService`.

use serde_json::json;
use shared::auth::Caller;
use shared::id::TouchpointId;
use shared::mutation::{Begun, Call, Mutation};
use shared::page::{self, List};
use shared::parse::{at_most, etag, etag_of, line, parse, required};
use shared::pb::session as pb;
use shared::pb::session::touchpoint_service_server::TouchpointService;
use shared::status::{Failure, Reason, Refusal};
use shared::time::{Time, to_proto};
use tonic::{Request, Response, Status};

use super::policy::{cart_policy_from_proto, cart_policy_to_proto, policy_from_proto, policy_to_proto};
use super::{App, no_touchpoint, overtaken};
use crate::domain::touchpoint::Touchpoint;
use crate::store;

const COMPONENTS_MAX: usize = 32;

impl App {
    async fn create_touchpoint(
        &self,
        request: Request<pb::CreateTouchpointRequest>,
    ) -> Result<pb::CreateTouchpointResponse, Failure> {
        let (call, message) = Call::of(request, "CreateTouchpoint", |message| &mut message.request_id)?;
        let pb::CreateTouchpointRequest { touchpoint, request_id: _ } = message;
        let (touchpoint, _) = touchpoint_from_proto(touchpoint)?;
        call.caller.require_touchpoint(&touchpoint.id)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let touchpoint = Touchpoint { created_at: work.now, ..touchpoint };
        let tenant = work.actor.tenant.clone();
        if !store::touchpoint::insert(&mut work.tx, &tenant, &touchpoint).await? {
            let text = format!("there is a touchpoint {} already", touchpoint.id);
            return Err(Refusal::new(Reason::TouchpointExists, text)
                .with("touchpoint", &touchpoint.id)
                .into());
        }
        tell(&mut work, "touchpoint.created", &touchpoint);
        let answer = pb::CreateTouchpointResponse { touchpoint: Some((&touchpoint).into()) };
        let answer = work.answer(answer).await?;
        self.touchpoints.invalidate(&(tenant, touchpoint.id));
        Ok(answer)
    }

    async fn get_touchpoint(
        &self,
        request: Request<pb::GetTouchpointRequest>,
    ) -> Result<pb::GetTouchpointResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::GetTouchpointRequest { touchpoint } = request.into_inner();
        let id: TouchpointId = parse("touchpoint", &touchpoint)?;
        caller.require_touchpoint(&id)?;
        let touchpoint = self.required_touchpoint(&caller.tenant, &id, true, self.clock.now()).await?;
        Ok(pb::GetTouchpointResponse { touchpoint: Some((&touchpoint.entry.value).into()) })
    }

    async fn list_touchpoints(
        &self,
        request: Request<pb::ListTouchpointsRequest>,
    ) -> Result<pb::ListTouchpointsResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::ListTouchpointsRequest { page_size, page_token } = request.into_inner();
        let list = List { name: "ListTouchpoints", tenant: &caller.tenant, filter: "" };
        let (size, after) = (page::size(page_size)?, list.after(&self.keys, &page_token)?);
        let mut db = self.db.connection().await?;
        let after = after.as_deref().unwrap_or_default();
        let mut rows = store::touchpoint::list(&mut db, &caller.tenant, after, size + 1).await?;
        let next_page_token =
            list.cut(&self.keys, &mut rows, size, self.clock.now(), |touchpoint| touchpoint.id.to_string())?;
        let visible = rows
            .iter()
            .filter(|touchpoint| caller.require_touchpoint(&touchpoint.id).is_ok());
        Ok(pb::ListTouchpointsResponse { touchpoints: visible.map(Into::into).collect(), next_page_token })
    }

    async fn update_touchpoint(
        &self,
        request: Request<pb::UpdateTouchpointRequest>,
    ) -> Result<pb::UpdateTouchpointResponse, Failure> {
        let (call, message) = Call::of(request, "UpdateTouchpoint", |message| &mut message.request_id)?;
        let pb::UpdateTouchpointRequest { touchpoint, request_id: _ } = message;
        let (touchpoint, sent_etag) = touchpoint_from_proto(touchpoint)?;
        call.caller.require_touchpoint(&touchpoint.id)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let tenant = work.actor.tenant.clone();
        let current = store::touchpoint::find(&mut work.tx, &tenant, &touchpoint.id).await?;
        let current = current.ok_or_else(|| no_touchpoint(&touchpoint.id))?;
        etag(&sent_etag, current.version)?;
        let touchpoint = Touchpoint {
            created_at: current.created_at,
            version: current.version + 1,
            session_epoch: current.session_epoch,
            sessions_revoked: current.sessions_revoked,
            ..touchpoint
        };
        if !store::touchpoint::update(&mut work.tx, &tenant, &touchpoint).await? {
            return Err(overtaken());
        }
        tell(&mut work, "touchpoint.updated", &touchpoint);
        let answer = pb::UpdateTouchpointResponse { touchpoint: Some((&touchpoint).into()) };
        let answer = work.answer(answer).await?;
        self.touchpoints.invalidate(&(tenant, touchpoint.id));
        Ok(answer)
    }
}

fn tell(work: &mut Mutation, kind: &'static str, touchpoint: &Touchpoint) {
    work.tell(kind, touchpoint.id.to_string(), json!({"etag": etag_of(touchpoint.version)}));
}

/// From the wire, with the etag that was sent.
fn touchpoint_from_proto(touchpoint: Option<pb::Touchpoint>) -> Result<(Touchpoint, String), Refusal> {
    let pb::Touchpoint {
        touchpoint,
        display_name,
        group,
        components,
        session_policy,
        has_shoppers,
        create_time: _,
        etag,
        cart_policy,
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
        cart_policy: cart_policy_from_proto(cart_policy.unwrap_or_default())?,
        has_shoppers,
        session_epoch: 0,
        sessions_revoked: None,
        created_at: Time::default(),
        version: 1,
    };
    Ok((touchpoint, etag))
}

impl From<&Touchpoint> for pb::Touchpoint {
    fn from(touchpoint: &Touchpoint) -> Self {
        Self {
            touchpoint: touchpoint.id.to_string(),
            display_name: touchpoint.display_name.clone(),
            group: touchpoint.group.to_string(),
            components: touchpoint.components.iter().map(ToString::to_string).collect(),
            session_policy: Some(policy_to_proto(&touchpoint.policy)),
            has_shoppers: touchpoint.has_shoppers,
            create_time: Some(to_proto(touchpoint.created_at)),
            etag: etag_of(touchpoint.version),
            cart_policy: Some(cart_policy_to_proto(&touchpoint.cart_policy)),
        }
    }
}

#[tonic::async_trait]
impl TouchpointService for App {
    async fn create_touchpoint(
        &self,
        request: Request<pb::CreateTouchpointRequest>,
    ) -> Result<Response<pb::CreateTouchpointResponse>, Status> {
        Ok(Response::new(self.create_touchpoint(request).await?))
    }

    async fn get_touchpoint(
        &self,
        request: Request<pb::GetTouchpointRequest>,
    ) -> Result<Response<pb::GetTouchpointResponse>, Status> {
        Ok(Response::new(self.get_touchpoint(request).await?))
    }

    async fn list_touchpoints(
        &self,
        request: Request<pb::ListTouchpointsRequest>,
    ) -> Result<Response<pb::ListTouchpointsResponse>, Status> {
        Ok(Response::new(self.list_touchpoints(request).await?))
    }

    async fn update_touchpoint(
        &self,
        request: Request<pb::UpdateTouchpointRequest>,
    ) -> Result<Response<pb::UpdateTouchpointResponse>, Status> {
        Ok(Response::new(self.update_touchpoint(request).await?))
    }
}
