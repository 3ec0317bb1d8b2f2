//! Environments.

use chrono::TimeDelta;
use shared::auth::Caller;
use shared::db::broken_constraint;
use shared::id::EnvironmentId;
use shared::mutation::{Begun, Call};
use shared::page::{self, List};
use shared::parse::{duration, etag, etag_of, line, optional, parse, required, within};
use shared::pb::release as pb;
use shared::status::{Failure, Reason, Refusal};
use shared::time::to_proto;
use tonic::Request;

use super::care::{require_environment_held, require_same_requirements};
use super::parse_evidence;
use super::policy::POLICY_SCOPE;
use crate::apply::{self, expect_written};
use crate::domain::component::{Environment, Requirements};
use crate::rpc::{App, absent};
use crate::store;
use crate::store::environment::ENVIRONMENT_KEY;

const BAKE_MAX: TimeDelta = TimeDelta::days(30);

/// What people set in an environment.
struct Settings {
    name: EnvironmentId,
    display_name: String,
    promotion_order: i32,
    region: Option<String>,
    /// None leaves it as it is.
    is_production: Option<bool>,
    requirements: Requirements,
    /// None leaves it as it is.
    needs_executor: Option<bool>,
    etag: String,
}

fn parse_environment(environment: Option<pb::Environment>) -> Result<Settings, Refusal> {
    let pb::Environment {
        environment: name,
        display_name,
        promotion_order,
        create_time: _,
        etag,
        region,
        is_production,
        requirements,
        needs_executor,
    } = required("environment", environment)?;
    // A region is no object, but its label has the form of names.
    let region = optional::<EnvironmentId>("environment.region", &region)?;
    Ok(Settings {
        name: parse("environment.environment", &name)?,
        display_name: line("environment.display_name", display_name, 0, 200)?,
        promotion_order: within("environment.promotion_order", promotion_order, 0, 1000)?,
        region: region.map(|region| region.to_string()),
        is_production,
        requirements: parse_requirements(requirements.unwrap_or_default())?,
        needs_executor,
        etag,
    })
}

fn parse_requirements(requirements: pb::EnvironmentRequirements) -> Result<Requirements, Refusal> {
    let field = |name: &str| format!("environment.requirements.{name}");
    let pb::EnvironmentRequirements { requires_promotion, min_bake, required_evidence } = requirements;
    let bake = duration(&field("min_bake"), min_bake)?.unwrap_or_default();
    let min_bake = TimeDelta::from_std(bake).ok().filter(|bake| *bake <= BAKE_MAX);
    let min_bake = min_bake.ok_or_else(|| Refusal::field(field("min_bake"), "must be at most 30 days"))?;
    if min_bake.subsec_nanos() != 0 {
        return Err(Refusal::field(field("min_bake"), "must be whole seconds"));
    }
    if !requires_promotion && !min_bake.is_zero() {
        return Err(Refusal::field(field("min_bake"), "is only for what requires promotion"));
    }
    let evidence = parse_evidence(&field("required_evidence"), required_evidence)?;
    Ok(Requirements { requires_promotion, min_bake, evidence })
}

impl From<&Requirements> for pb::EnvironmentRequirements {
    fn from(requirements: &Requirements) -> Self {
        let Requirements { requires_promotion, min_bake, evidence } = requirements;
        let min_bake = prost_types::Duration { seconds: min_bake.num_seconds(), nanos: 0 };
        Self {
            requires_promotion: *requires_promotion,
            min_bake: (min_bake.seconds > 0).then_some(min_bake),
            required_evidence: evidence.iter().map(Into::into).collect(),
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
            region: environment.region.clone().unwrap_or_default(),
            is_production: Some(environment.is_production),
            requirements: Some((&environment.requirements).into()),
            needs_executor: Some(environment.needs_executor),
        }
    }
}

fn no_environment(name: &EnvironmentId) -> Refusal {
    absent(Reason::EnvironmentNotFound, "environment", name)
}

impl App {
    pub(super) async fn create_environment(
        &self,
        request: Request<pb::CreateEnvironmentRequest>,
    ) -> Result<pb::CreateEnvironmentResponse, Failure> {
        let (call, message) = Call::of(request, "CreateEnvironment", |message| &mut message.request_id)?;
        let pb::CreateEnvironmentRequest { environment, request_id: _ } = message;
        let settings = parse_environment(environment)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let environment = Environment {
            name: settings.name,
            display_name: settings.display_name,
            promotion_order: settings.promotion_order,
            region: settings.region,
            is_production: settings.is_production.unwrap_or(true),
            requirements: settings.requirements,
            needs_executor: settings.needs_executor.unwrap_or(false),
            created_at: work.now,
            row_version: 1,
        };
        // What succeeds in the new one may then be promoted without having been where it had to be before.
        let order = environment.promotion_order;
        if store::environment::is_before_promotion(&mut work.tx, &work.actor.tenant, order).await? {
            work.caller.require_scope(POLICY_SCOPE)?;
        }
        let inserted = store::environment::insert(&mut work.tx, &work.actor.tenant, &environment).await;
        inserted.map_err(|error| match broken_constraint(&error) {
            Some(ENVIRONMENT_KEY) => {
                let text = format!("there is an environment {} already", environment.name);
                Refusal::new(Reason::EnvironmentExists, text).into()
            }
            Some(_) | None => Failure::from(error),
        })?;
        apply::tell_environment(&mut work.tx, &work.actor, "environment.created", &environment).await?;
        work.answer(pb::CreateEnvironmentResponse { environment: Some((&environment).into()) })
            .await
    }

    pub(super) async fn get_environment(
        &self,
        request: Request<pb::GetEnvironmentRequest>,
    ) -> Result<pb::GetEnvironmentResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::GetEnvironmentRequest { environment } = request.into_inner();
        let name = parse("environment", &environment)?;
        let mut db = self.db.connection().await?;
        let found = store::environment::find(&mut db, &caller.tenant, &name).await?;
        let found = found.ok_or_else(|| no_environment(&name))?;
        Ok(pb::GetEnvironmentResponse { environment: Some((&found).into()) })
    }

    pub(super) async fn list_environments(
        &self,
        request: Request<pb::ListEnvironmentsRequest>,
    ) -> Result<pb::ListEnvironmentsResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::ListEnvironmentsRequest { page_size, page_token } = request.into_inner();
        let list = List { name: "ListEnvironments", tenant: &caller.tenant, filter: "" };
        let (size, after) = (page::size(page_size)?, list.after(&self.keys, &page_token)?);
        let after = after.unwrap_or_default();
        let mut db = self.db.connection().await?;
        let mut rows = store::environment::list(&mut db, &caller.tenant, &after, size + 1).await?;
        let next_page_token =
            list.cut(&self.keys, &mut rows, size, self.clock.now(), |row| row.name.to_string())?;
        Ok(pb::ListEnvironmentsResponse {
            environments: rows.iter().map(Into::into).collect(),
            next_page_token,
        })
    }

    pub(super) async fn update_environment(
        &self,
        request: Request<pb::UpdateEnvironmentRequest>,
    ) -> Result<pb::UpdateEnvironmentResponse, Failure> {
        let (call, message) = Call::of(request, "UpdateEnvironment", |message| &mut message.request_id)?;
        let pb::UpdateEnvironmentRequest { environment, request_id: _ } = message;
        let settings = parse_environment(environment)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let tenant = &work.actor.tenant;
        let stored = store::environment::lock(&mut work.tx, tenant, &settings.name).await?;
        let stored = stored.ok_or_else(|| no_environment(&settings.name))?;
        etag(&settings.etag, stored.row_version)?;
        let environment = Environment {
            name: settings.name,
            display_name: settings.display_name,
            promotion_order: settings.promotion_order,
            region: settings.region,
            is_production: settings.is_production.unwrap_or(stored.is_production),
            requirements: settings.requirements,
            needs_executor: settings.needs_executor.unwrap_or(stored.needs_executor),
            created_at: stored.created_at,
            row_version: stored.row_version + 1,
        };
        if !environment.asks_as(&stored) {
            work.caller.require_scope(POLICY_SCOPE)?;
        }
        require_same_requirements(&mut work, &stored, &environment).await?;
        require_environment_held(&mut work, &stored, &environment).await?;
        let tenant = &work.actor.tenant;
        expect_written(store::environment::update(&mut work.tx, tenant, &environment).await?)?;
        apply::tell_environment(&mut work.tx, &work.actor, "environment.updated", &environment).await?;
        work.answer(pb::UpdateEnvironmentResponse { environment: Some((&environment).into()) })
            .await
    }
}
