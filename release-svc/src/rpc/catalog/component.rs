//! Components.

use shared::auth::Caller;
use shared::db::broken_constraint;
use shared::id::{ApprovalPolicyId, ComponentId};
use shared::mutation::{Begun, Call, Mutation};
use shared::page::{self, List};
use shared::parse::{at_most, etag, etag_of, known, known_or_default, line, optional, parse, required};
use shared::pb::release as pb;
use shared::status::{Failure, Reason, Refusal};
use shared::time::to_proto;
use tonic::Request;

use super::care::{require_component_held, require_same_care};
use super::dependency::{parse_dependencies, replace_dependencies};
use super::policy::{POLICY_SCOPE, give_policy, no_policy};
use crate::apply::{self, expect_written};
use crate::domain::component::{Component, DataScope, Kind, Tier};
use crate::domain::dependency::{Dependency, Edge};
use crate::domain::policy::STARTER_POLICY;
use crate::rpc::{App, absent};
use crate::store;
use crate::store::component::{COMPONENT_KEY, COMPONENT_POLICY_KEY};
use crate::store::dependency::EDGES_MAX;

/// What people set in a component.
struct Settings {
    name: ComponentId,
    display_name: String,
    owner_groups: Vec<String>,
    business_owner_groups: Vec<String>,
    /// None leaves it as it is.
    approval_policy: Option<ApprovalPolicyId>,
    /// None leaves it as it is.
    tier: Option<Tier>,
    /// None leaves it as it is.
    kind: Option<Kind>,
    data_scopes: Vec<DataScope>,
    dependencies: Vec<Dependency>,
    etag: String,
}

fn parse_component(component: Option<pb::Component>) -> Result<Settings, Refusal> {
    let pb::Component {
        component: name,
        display_name,
        owner_groups,
        approval_policy,
        create_time: _,
        etag,
        tier,
        kind,
        business_owner_groups,
        data_scopes,
        dependencies,
    } = required("component", component)?;
    let name = parse("component.component", &name)?;
    at_most("component.data_scopes", &data_scopes, 16)?;
    let data_scopes = data_scopes.iter().map(|scope| parse_data_scope(*scope));
    let mut data_scopes = data_scopes.collect::<Result<Vec<_>, _>>()?;
    data_scopes.sort_unstable();
    data_scopes.dedup();
    Ok(Settings {
        display_name: line("component.display_name", display_name, 0, 200)?,
        owner_groups: groups("component.owner_groups", owner_groups)?,
        business_owner_groups: groups("component.business_owner_groups", business_owner_groups)?,
        approval_policy: optional("component.approval_policy", &approval_policy)?,
        tier: parse_tier(tier)?,
        kind: parse_kind(kind)?,
        data_scopes,
        dependencies: parse_dependencies(&name, dependencies)?,
        name,
        etag,
    })
}

fn groups(field: &str, groups: Vec<String>) -> Result<Vec<String>, Refusal> {
    at_most(field, &groups, 16)?;
    let groups = groups.into_iter().enumerate();
    groups.map(|(i, group)| line(&format!("{field}[{i}]"), group, 1, 200)).collect()
}

fn parse_tier(number: i32) -> Result<Option<Tier>, Refusal> {
    Ok(match known_or_default("component.tier", number)? {
        pb::ComponentTier::Unspecified => None,
        pb::ComponentTier::ComponentTier1 => Some(Tier::One),
        pb::ComponentTier::ComponentTier2 => Some(Tier::Two),
        pb::ComponentTier::ComponentTier3 => Some(Tier::Three),
        pb::ComponentTier::ComponentTier4 => Some(Tier::Four),
    })
}

fn parse_kind(number: i32) -> Result<Option<Kind>, Refusal> {
    Ok(match known_or_default("component.kind", number)? {
        pb::ComponentKind::Unspecified => None,
        pb::ComponentKind::Service => Some(Kind::Service),
        pb::ComponentKind::App => Some(Kind::App),
        pb::ComponentKind::MlModel => Some(Kind::MlModel),
        pb::ComponentKind::MobileApp => Some(Kind::MobileApp),
        pb::ComponentKind::Schema => Some(Kind::Schema),
    })
}

fn parse_data_scope(number: i32) -> Result<DataScope, Refusal> {
    match known("component.data_scopes", number)? {
        pb::DataScope::Card => Ok(DataScope::Card),
        pb::DataScope::Ledger => Ok(DataScope::Ledger),
        pb::DataScope::Personal | pb::DataScope::Unspecified => Ok(DataScope::Personal),
    }
}

const fn tier_to_proto(tier: Tier) -> pb::ComponentTier {
    match tier {
        Tier::One => pb::ComponentTier::ComponentTier1,
        Tier::Two => pb::ComponentTier::ComponentTier2,
        Tier::Three => pb::ComponentTier::ComponentTier3,
        Tier::Four => pb::ComponentTier::ComponentTier4,
    }
}

const fn kind_to_proto(kind: Kind) -> pb::ComponentKind {
    match kind {
        Kind::Service => pb::ComponentKind::Service,
        Kind::App => pb::ComponentKind::App,
        Kind::MlModel => pb::ComponentKind::MlModel,
        Kind::MobileApp => pb::ComponentKind::MobileApp,
        Kind::Schema => pb::ComponentKind::Schema,
    }
}

fn data_scope_to_proto(scope: DataScope) -> i32 {
    match scope {
        DataScope::Card => pb::DataScope::Card,
        DataScope::Ledger => pb::DataScope::Ledger,
        DataScope::Personal => pb::DataScope::Personal,
    }
    .into()
}

/// With what it needs of others.
fn to_message<'a>(
    component: &Component,
    dependencies: impl IntoIterator<Item = &'a Dependency>,
) -> pb::Component {
    pb::Component {
        component: component.name.to_string(),
        display_name: component.display_name.clone(),
        owner_groups: component.owner_groups.clone(),
        approval_policy: component.approval_policy.to_string(),
        create_time: Some(to_proto(component.created_at)),
        etag: etag_of(component.row_version),
        tier: tier_to_proto(component.tier).into(),
        kind: kind_to_proto(component.kind).into(),
        business_owner_groups: component.business_owner_groups.clone(),
        data_scopes: component.data_scopes.iter().map(|scope| data_scope_to_proto(*scope)).collect(),
        dependencies: dependencies.into_iter().map(Into::into).collect(),
    }
}

fn no_component(name: &ComponentId) -> Refusal {
    absent(Reason::ComponentNotFound, "component", name)
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

/// The component, locked with those that it will need.
async fn lock(
    work: &mut Mutation,
    name: &ComponentId,
    dependencies: &[Dependency],
) -> Result<Component, Failure> {
    let needed = dependencies.iter().map(|dependency| dependency.on.to_string());
    let names: Vec<_> = needed.chain([name.to_string()]).collect();
    let locked = store::component::lock_named(&mut work.tx, &work.actor.tenant, &names).await?;
    let component = locked.into_iter().find(|component| component.name == *name);
    Ok(component.ok_or_else(|| no_component(name))?)
}

impl App {
    pub(super) async fn create_component(
        &self,
        request: Request<pb::CreateComponentRequest>,
    ) -> Result<pb::CreateComponentResponse, Failure> {
        let (call, message) = Call::of(request, "CreateComponent", |message| &mut message.request_id)?;
        let pb::CreateComponentRequest { component, request_id: _ } = message;
        let settings = parse_component(component)?;
        let approval_policy = settings
            .approval_policy
            .map_or_else(|| parse("component.approval_policy", STARTER_POLICY), Ok)?;
        call.caller.require_owner(&settings.owner_groups)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let component = Component {
            name: settings.name,
            display_name: settings.display_name,
            owner_groups: settings.owner_groups,
            business_owner_groups: settings.business_owner_groups,
            approval_policy,
            tier: settings.tier.unwrap_or(Tier::Two),
            kind: settings.kind.unwrap_or(Kind::Service),
            data_scopes: settings.data_scopes,
            created_at: work.now,
            row_version: 1,
        };
        give_policy(&mut work.tx, &work.actor, &component.approval_policy).await?;
        store::component::insert(&mut work.tx, &work.actor.tenant, &component)
            .await
            .map_err(|error| component_failure(&component, error))?;
        let dependencies = settings.dependencies;
        if !dependencies.is_empty() {
            replace_dependencies(&mut work, &component.name, &dependencies).await?;
        }
        apply::tell_component(&mut work.tx, &work.actor, "component.created", &component, &dependencies)
            .await?;
        let component = Some(to_message(&component, &dependencies));
        work.answer(pb::CreateComponentResponse { component }).await
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
        let found = found.ok_or_else(|| no_component(&name))?;
        let edges = store::dependency::list_of(&mut db, &caller.tenant, &[component], EDGES_MAX).await?;
        let component = Some(to_message(&found, edges.iter().map(|edge| &edge.needs)));
        Ok(pb::GetComponentResponse { component })
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
        let names: Vec<_> = rows.iter().map(|row| row.name.to_string()).collect();
        let edges = store::dependency::list_of(&mut db, &caller.tenant, &names, EDGES_MAX).await?;
        let needs = |row: &Component| {
            let name = row.name.clone();
            edges
                .iter()
                .filter(move |edge: &&Edge| edge.component == name)
                .map(|edge| &edge.needs)
        };
        let components = rows.iter().map(|row| to_message(row, needs(row))).collect();
        Ok(pb::ListComponentsResponse { components, next_page_token })
    }

    pub(super) async fn update_component(
        &self,
        request: Request<pb::UpdateComponentRequest>,
    ) -> Result<pb::UpdateComponentResponse, Failure> {
        let (call, message) = Call::of(request, "UpdateComponent", |message| &mut message.request_id)?;
        let pb::UpdateComponentRequest { component, request_id: _ } = message;
        let settings = parse_component(component)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let stored = lock(&mut work, &settings.name, &settings.dependencies).await?;
        work.caller.require_owner(&stored.owner_groups)?;
        etag(&settings.etag, stored.row_version)?;
        let component = Component {
            name: settings.name,
            display_name: settings.display_name,
            owner_groups: settings.owner_groups,
            business_owner_groups: settings.business_owner_groups,
            approval_policy: settings.approval_policy.unwrap_or_else(|| stored.approval_policy.clone()),
            tier: settings.tier.unwrap_or(stored.tier),
            kind: settings.kind.unwrap_or(stored.kind),
            data_scopes: settings.data_scopes,
            created_at: stored.created_at,
            row_version: stored.row_version + 1,
        };
        if !component.asks_as(&stored) {
            work.caller.require_scope(POLICY_SCOPE)?;
        }
        give_policy(&mut work.tx, &work.actor, &component.approval_policy).await?;
        require_same_care(&mut work.tx, &work.actor.tenant, &stored, &component).await?;
        require_component_held(&mut work, &stored, &component).await?;
        let is_written = store::component::update(&mut work.tx, &work.actor.tenant, &component)
            .await
            .map_err(|error| component_failure(&component, error))?;
        expect_written(is_written)?;
        let dependencies = settings.dependencies;
        replace_dependencies(&mut work, &component.name, &dependencies).await?;
        let warnings = apply::dependency::warnings(&mut work.tx, &work.actor.tenant, &component.name).await?;
        apply::tell_component(&mut work.tx, &work.actor, "component.updated", &component, &dependencies)
            .await?;
        let component = Some(to_message(&component, &dependencies));
        work.answer(pb::UpdateComponentResponse { component, warnings }).await
    }
}
