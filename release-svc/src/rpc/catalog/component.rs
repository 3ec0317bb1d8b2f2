//! Components.

use shared::auth::Caller;
use shared::db::broken_constraint;
use shared::id::{ApprovalPolicyId, ComponentId};
use shared::mutation::{Begun, Call};
use shared::page::{self, List};
use shared::parse::{at_most, etag, etag_of, line, optional, parse, required};
use shared::pb::release as pb;
use shared::status::{Failure, Reason, Refusal};
use shared::time::to_proto;
use tonic::Request;

use super::policy::{give_policy, no_policy};
use crate::apply::{self, expect_written};
use crate::domain::component::Component;
use crate::domain::policy::STARTER_POLICY;
use crate::rpc::{App, absent};
use crate::store;
use crate::store::component::{COMPONENT_KEY, COMPONENT_POLICY_KEY};

/// Scope of changes to what a release needs before it may be rolled out.
const POLICY_SCOPE: &str = "policy.write";

/// What people set in a component.
struct Settings {
    name: ComponentId,
    display_name: String,
    owner_groups: Vec<String>,
    /// None leaves it as it is.
    approval_policy: Option<ApprovalPolicyId>,
    etag: String,
}

fn parse_component(component: Option<pb::Component>) -> Result<Settings, Refusal> {
    let pb::Component { component: name, display_name, owner_groups, approval_policy, create_time: _, etag } =
        required("component", component)?;
    at_most("component.owner_groups", &owner_groups, 16)?;
    let groups = owner_groups.into_iter().enumerate();
    let groups = groups.map(|(i, group)| line(&format!("component.owner_groups[{i}]"), group, 1, 200));
    Ok(Settings {
        name: parse("component.component", &name)?,
        display_name: line("component.display_name", display_name, 0, 200)?,
        owner_groups: groups.collect::<Result<_, _>>()?,
        approval_policy: optional("component.approval_policy", &approval_policy)?,
        etag,
    })
}

impl From<&Component> for pb::Component {
    fn from(component: &Component) -> Self {
        Self {
            component: component.name.to_string(),
            display_name: component.display_name.clone(),
            owner_groups: component.owner_groups.clone(),
            approval_policy: component.approval_policy.to_string(),
            create_time: Some(to_proto(component.created_at)),
            etag: etag_of(component.row_version),
        }
    }
}

/// What a write of a component that broke a constraint means.
fn component_failure(component: &Component, error: sqlx::Error) -> Failure {
    match broken_constraint(&error) {
        Some(COMPONENT_KEY) => {
            let text = format!("there is a component {} already", component.name);
            Refusal::new(Reason::ComponentExists, text).into()
        }
        Some(COMPONENT_POLICY_KEY) => no_policy(&component.approval_policy).into(),
        Some(_) | None => error.into(),
    }
}

impl App {
    pub(super) async fn create_component(
        &self,
        request: Request<pb::CreateComponentRequest>,
    ) -> Result<pb::CreateComponentResponse, Failure> {
        let (call, message) = Call::of(request, "CreateComponent", |message| &mut message.request_id)?;
        let pb::CreateComponentRequest { component, request_id: _ } = message;
        let Settings { name, display_name, owner_groups, approval_policy, etag: _ } =
            parse_component(component)?;
        let approval_policy =
            approval_policy.map_or_else(|| parse("component.approval_policy", STARTER_POLICY), Ok)?;
        call.caller.require_owner(&owner_groups)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let component = Component {
            name,
            display_name,
            owner_groups,
            approval_policy,
            created_at: work.now,
            row_version: 1,
        };
        give_policy(&mut work.tx, &work.actor, &component.approval_policy).await?;
        store::component::insert(&mut work.tx, &work.actor.tenant, &component)
            .await
            .map_err(|error| component_failure(&component, error))?;
        apply::tell_component(&mut work.tx, &work.actor, "component.created", &component).await?;
        work.answer(pb::CreateComponentResponse { component: Some((&component).into()) })
            .await
    }

    pub(super) async fn get_component(
        &self,
        request: Request<pb::GetComponentRequest>,
    ) -> Result<pb::GetComponentResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::GetComponentRequest { component } = request.into_inner();
        let name = parse("component", &component)?;
        let mut db = self.db.connection().await?;
        let found = store::component::find(&mut db, &caller.tenant, &name).await?;
        let found = found.ok_or_else(|| absent(Reason::ComponentNotFound, "component", &name))?;
        Ok(pb::GetComponentResponse { component: Some((&found).into()) })
    }

    pub(super) async fn list_components(
        &self,
        request: Request<pb::ListComponentsRequest>,
    ) -> Result<pb::ListComponentsResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::ListComponentsRequest { page_size, page_token } = request.into_inner();
        let list = List { name: "ListComponents", tenant: &caller.tenant, filter: "" };
        let (size, after) = (page::size(page_size)?, list.after(&self.keys, &page_token)?);
        let after = after.unwrap_or_default();
        let mut db = self.db.connection().await?;
        let mut rows = store::component::list(&mut db, &caller.tenant, &after, size + 1).await?;
        let next_page_token =
            list.cut(&self.keys, &mut rows, size, self.clock.now(), |row| row.name.to_string())?;
        Ok(pb::ListComponentsResponse { components: rows.iter().map(Into::into).collect(), next_page_token })
    }

    pub(super) async fn update_component(
        &self,
        request: Request<pb::UpdateComponentRequest>,
    ) -> Result<pb::UpdateComponentResponse, Failure> {
        let (call, message) = Call::of(request, "UpdateComponent", |message| &mut message.request_id)?;
        let pb::UpdateComponentRequest { component, request_id: _ } = message;
        let Settings { name, display_name, owner_groups, approval_policy, etag: sent_etag } =
            parse_component(component)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let tenant = &work.actor.tenant;
        let stored = store::component::lock(&mut work.tx, tenant, &name).await?;
        let stored = stored.ok_or_else(|| absent(Reason::ComponentNotFound, "component", &name))?;
        work.caller.require_owner(&stored.owner_groups)?;
        etag(&sent_etag, stored.row_version)?;
        let approval_policy = approval_policy.unwrap_or_else(|| stored.approval_policy.clone());
        if approval_policy != stored.approval_policy {
            work.caller.require_scope(POLICY_SCOPE)?;
        }
        let component = Component {
            name,
            display_name,
            owner_groups,
            approval_policy,
            created_at: stored.created_at,
            row_version: stored.row_version + 1,
        };
        give_policy(&mut work.tx, &work.actor, &component.approval_policy).await?;
        let is_written = store::component::update(&mut work.tx, tenant, &component)
            .await
            .map_err(|error| component_failure(&component, error))?;
        expect_written(is_written)?;
        apply::tell_component(&mut work.tx, &work.actor, "component.updated", &component).await?;
        work.answer(pb::UpdateComponentResponse { component: Some((&component).into()) })
            .await
    }
}
