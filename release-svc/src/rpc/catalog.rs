//! `CatalogService`: components, environments and approval policies.

use shared::auth::Caller;
use shared::db::broken_constraint;
use shared::id::{ApprovalPolicyId, ComponentId, TenantId};
use shared::mutation::{Actor, Begun, Call};
use shared::page::{self, List};
use shared::parse::{at_most, etag, etag_of, known, line, optional, parse, required, within};
use shared::pb::release as pb;
use shared::pb::release::catalog_service_server::CatalogService;
use shared::status::{Failure, Reason, Refusal};
use shared::time::{Time, to_proto};
use sqlx::PgConnection;
use tonic::{Request, Response, Status};

use super::{App, absent};
use crate::apply::{self, expect_written};
use crate::domain::component::{ApprovalPolicy, Component, Environment, Profile, STARTER_POLICY};
use crate::store;
use crate::store::component::{COMPONENT_KEY, COMPONENT_POLICY_KEY, ENVIRONMENT_KEY, POLICY_KEY};

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

fn parse_environment(environment: Option<pb::Environment>) -> Result<Environment, Refusal> {
    let pb::Environment { environment: name, display_name, promotion_order, create_time: _, etag: _ } =
        required("environment", environment)?;
    Ok(Environment {
        name: parse("environment.environment", &name)?,
        display_name: line("environment.display_name", display_name, 0, 200)?,
        promotion_order: within("environment.promotion_order", promotion_order, 0, 1000)?,
        created_at: Time::default(),
        row_version: 1,
    })
}

/// What people set in an approval policy.
fn parse_policy(policy: Option<pb::ApprovalPolicy>) -> Result<(ApprovalPolicy, String), Refusal> {
    let pb::ApprovalPolicy { approval_policy: name, profile, quorum, create_time: _, etag } =
        required("approval_policy", policy)?;
    let profile = match known("approval_policy.profile", profile)? {
        pb::GovernanceProfile::Starter | pb::GovernanceProfile::Unspecified => Profile::Starter,
    };
    let policy = ApprovalPolicy {
        name: parse("approval_policy.approval_policy", &name)?,
        profile,
        quorum: within("approval_policy.quorum", quorum, 0, 10)?,
        created_at: Time::default(),
        row_version: 1,
    };
    Ok((policy, etag))
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

impl From<&Environment> for pb::Environment {
    fn from(environment: &Environment) -> Self {
        Self {
            environment: environment.name.to_string(),
            display_name: environment.display_name.clone(),
            promotion_order: environment.promotion_order,
            create_time: Some(to_proto(environment.created_at)),
            etag: etag_of(environment.row_version),
        }
    }
}

impl From<&ApprovalPolicy> for pb::ApprovalPolicy {
    fn from(policy: &ApprovalPolicy) -> Self {
        let profile = match policy.profile {
            Profile::Starter => pb::GovernanceProfile::Starter,
        };
        Self {
            approval_policy: policy.name.to_string(),
            profile: profile.into(),
            quorum: policy.quorum,
            create_time: Some(to_proto(policy.created_at)),
            etag: etag_of(policy.row_version),
        }
    }
}

/// Makes the policy that every tenant has when it is first asked for.
async fn give_policy(db: &mut PgConnection, actor: &Actor, name: &ApprovalPolicyId) -> Result<(), Failure> {
    let Actor { tenant, now, .. } = actor;
    if !ApprovalPolicy::is_given(name) || !store::component::insert_starter_policy(db, tenant, *now).await? {
        return Ok(());
    }
    if let Some(policy) = store::component::find_policy(db, tenant, name).await? {
        apply::tell_policy(db, actor, "approval_policy.created", &policy).await?;
    }
    Ok(())
}

fn no_policy(name: &ApprovalPolicyId) -> Refusal {
    absent(Reason::ApprovalPolicyNotFound, "approval policy", name)
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
    async fn create_component(
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

    async fn get_component(
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

    async fn list_components(
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

    async fn update_component(
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

    async fn create_environment(
        &self,
        request: Request<pb::CreateEnvironmentRequest>,
    ) -> Result<pb::CreateEnvironmentResponse, Failure> {
        let (call, message) = Call::of(request, "CreateEnvironment", |message| &mut message.request_id)?;
        let pb::CreateEnvironmentRequest { environment, request_id: _ } = message;
        let environment = parse_environment(environment)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let environment = Environment { created_at: work.now, ..environment };
        let inserted =
            store::component::insert_environment(&mut work.tx, &work.actor.tenant, &environment).await;
        inserted.map_err(|error| match broken_constraint(&error) {
            Some(ENVIRONMENT_KEY) => {
                let text = format!("there is an environment {} already", environment.name);
                Refusal::new(Reason::EnvironmentExists, text).into()
            }
            Some(_) | None => Failure::from(error),
        })?;
        apply::tell_environment(&mut work.tx, &work.actor, &environment).await?;
        work.answer(pb::CreateEnvironmentResponse { environment: Some((&environment).into()) })
            .await
    }

    async fn get_environment(
        &self,
        request: Request<pb::GetEnvironmentRequest>,
    ) -> Result<pb::GetEnvironmentResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::GetEnvironmentRequest { environment } = request.into_inner();
        let name = parse("environment", &environment)?;
        let mut db = self.db.connection().await?;
        let found = store::component::find_environment(&mut db, &caller.tenant, &name).await?;
        let found = found.ok_or_else(|| absent(Reason::EnvironmentNotFound, "environment", &name))?;
        Ok(pb::GetEnvironmentResponse { environment: Some((&found).into()) })
    }

    async fn list_environments(
        &self,
        request: Request<pb::ListEnvironmentsRequest>,
    ) -> Result<pb::ListEnvironmentsResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::ListEnvironmentsRequest { page_size, page_token } = request.into_inner();
        let list = List { name: "ListEnvironments", tenant: &caller.tenant, filter: "" };
        let (size, after) = (page::size(page_size)?, list.after(&self.keys, &page_token)?);
        let after = after.unwrap_or_default();
        let mut db = self.db.connection().await?;
        let mut rows = store::component::list_environments(&mut db, &caller.tenant, &after, size + 1).await?;
        let next_page_token =
            list.cut(&self.keys, &mut rows, size, self.clock.now(), |row| row.name.to_string())?;
        Ok(pb::ListEnvironmentsResponse {
            environments: rows.iter().map(Into::into).collect(),
            next_page_token,
        })
    }

    async fn create_approval_policy(
        &self,
        request: Request<pb::CreateApprovalPolicyRequest>,
    ) -> Result<pb::CreateApprovalPolicyResponse, Failure> {
        let (call, message) = Call::of(request, "CreateApprovalPolicy", |message| &mut message.request_id)?;
        let pb::CreateApprovalPolicyRequest { approval_policy, request_id: _ } = message;
        let (policy, _) = parse_policy(approval_policy)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let exists = || {
            let text = format!("there is an approval policy {} already", policy.name);
            Refusal::new(Reason::ApprovalPolicyExists, text)
        };
        if ApprovalPolicy::is_given(&policy.name) {
            return Err(exists().into());
        }
        let policy = ApprovalPolicy { created_at: work.now, ..policy.clone() };
        store::component::insert_policy(&mut work.tx, &work.actor.tenant, &policy)
            .await
            .map_err(|error| match broken_constraint(&error) {
                Some(POLICY_KEY) => exists().into(),
                Some(_) | None => Failure::from(error),
            })?;
        apply::tell_policy(&mut work.tx, &work.actor, "approval_policy.created", &policy).await?;
        work.answer(pb::CreateApprovalPolicyResponse { approval_policy: Some((&policy).into()) })
            .await
    }

    async fn get_approval_policy(
        &self,
        request: Request<pb::GetApprovalPolicyRequest>,
    ) -> Result<pb::GetApprovalPolicyResponse, Failure> {
        let (caller, deadline) = (Caller::of(&request)?, shared::edge::Deadline::of(&request));
        let pb::GetApprovalPolicyRequest { approval_policy } = request.into_inner();
        let name = parse("approval_policy", &approval_policy)?;
        let tenant: TenantId = caller.tenant.clone();
        let actor = Actor { tenant, principal: caller.principal.clone(), now: self.clock.now() };
        let mut tx = self.db.begin(deadline).await?;
        give_policy(&mut tx, &actor, &name).await?;
        let found = store::component::find_policy(&mut tx, &actor.tenant, &name).await?;
        tx.commit().await?;
        let found = found.ok_or_else(|| no_policy(&name))?;
        Ok(pb::GetApprovalPolicyResponse { approval_policy: Some((&found).into()) })
    }

    async fn update_approval_policy(
        &self,
        request: Request<pb::UpdateApprovalPolicyRequest>,
    ) -> Result<pb::UpdateApprovalPolicyResponse, Failure> {
        let (call, message) = Call::of(request, "UpdateApprovalPolicy", |message| &mut message.request_id)?;
        let pb::UpdateApprovalPolicyRequest { approval_policy, request_id: _ } = message;
        let (asked, sent_etag) = parse_policy(approval_policy)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let tenant = &work.actor.tenant;
        give_policy(&mut work.tx, &work.actor, &asked.name).await?;
        let stored = store::component::lock_policy(&mut work.tx, tenant, &asked.name).await?;
        let stored = stored.ok_or_else(|| no_policy(&asked.name))?;
        etag(&sent_etag, stored.row_version)?;
        let policy =
            ApprovalPolicy { created_at: stored.created_at, row_version: stored.row_version + 1, ..asked };
        expect_written(store::component::update_policy(&mut work.tx, tenant, &policy).await?)?;
        apply::tell_policy(&mut work.tx, &work.actor, "approval_policy.updated", &policy).await?;
        work.answer(pb::UpdateApprovalPolicyResponse { approval_policy: Some((&policy).into()) })
            .await
    }
}

#[tonic::async_trait]
impl CatalogService for App {
    async fn create_component(
        &self,
        request: Request<pb::CreateComponentRequest>,
    ) -> Result<Response<pb::CreateComponentResponse>, Status> {
        Ok(Response::new(self.create_component(request).await?))
    }

    async fn get_component(
        &self,
        request: Request<pb::GetComponentRequest>,
    ) -> Result<Response<pb::GetComponentResponse>, Status> {
        Ok(Response::new(self.get_component(request).await?))
    }

    async fn list_components(
        &self,
        request: Request<pb::ListComponentsRequest>,
    ) -> Result<Response<pb::ListComponentsResponse>, Status> {
        Ok(Response::new(self.list_components(request).await?))
    }

    async fn update_component(
        &self,
        request: Request<pb::UpdateComponentRequest>,
    ) -> Result<Response<pb::UpdateComponentResponse>, Status> {
        Ok(Response::new(self.update_component(request).await?))
    }

    async fn create_environment(
        &self,
        request: Request<pb::CreateEnvironmentRequest>,
    ) -> Result<Response<pb::CreateEnvironmentResponse>, Status> {
        Ok(Response::new(self.create_environment(request).await?))
    }

    async fn get_environment(
        &self,
        request: Request<pb::GetEnvironmentRequest>,
    ) -> Result<Response<pb::GetEnvironmentResponse>, Status> {
        Ok(Response::new(self.get_environment(request).await?))
    }

    async fn list_environments(
        &self,
        request: Request<pb::ListEnvironmentsRequest>,
    ) -> Result<Response<pb::ListEnvironmentsResponse>, Status> {
        Ok(Response::new(self.list_environments(request).await?))
    }

    async fn create_approval_policy(
        &self,
        request: Request<pb::CreateApprovalPolicyRequest>,
    ) -> Result<Response<pb::CreateApprovalPolicyResponse>, Status> {
        Ok(Response::new(self.create_approval_policy(request).await?))
    }

    async fn get_approval_policy(
        &self,
        request: Request<pb::GetApprovalPolicyRequest>,
    ) -> Result<Response<pb::GetApprovalPolicyResponse>, Status> {
        Ok(Response::new(self.get_approval_policy(request).await?))
    }

    async fn update_approval_policy(
        &self,
        request: Request<pb::UpdateApprovalPolicyRequest>,
    ) -> Result<Response<pb::UpdateApprovalPolicyResponse>, Status> {
        Ok(Response::new(self.update_approval_policy(request).await?))
    }
}
