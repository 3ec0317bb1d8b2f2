//! `RolloutService`: releases into environments, step by step, and back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shared::auth::Caller;
use shared::id::{ComponentId, EnvironmentId, ReleaseId, RolloutId};
use shared::mutation::Mutation;
use shared::page::{self, List};
use shared::parse::{at_most, known, optional, parse};
use shared::pb::release as pb;
use shared::pb::release::rollout_service_server::RolloutService;
use shared::status::{Failure, Reason, Refusal};
use tonic::{Request, Response, Status};

use super::release::no_release;
use super::{App, absent, before, state_names};
use crate::apply;
use crate::domain::dependency::Unmet;
use crate::domain::rollout::Rollout;
use crate::store;
use crate::store::rollout::Filter;

mod change;
mod convert;
mod guard;
mod hold;
mod watch;

pub(super) use convert::assignment_to_proto;
pub(super) use guard::kind_to_proto;

/// Most releases that are planned at once.
const PLANNED_MAX: usize = 100;

impl From<&Unmet> for pb::DependencyConflict {
    fn from(unmet: &Unmet) -> Self {
        Self {
            component: unmet.component.to_string(),
            dependency: unmet.on.to_string(),
            constraint: unmet.constraint.to_string(),
            found_version: unmet.found.as_ref().map(ToString::to_string).unwrap_or_default(),
            description: unmet.to_string(),
        }
    }
}

fn no_rollout(id: RolloutId) -> Refusal {
    absent(Reason::RolloutNotFound, "rollout", &id)
}

/// The rollout, locked after its component, if the caller may change it.
async fn lock(work: &mut Mutation, id: RolloutId) -> Result<Rollout, Failure> {
    let tenant = &work.actor.tenant;
    let component = store::component::lock_of_rollout(&mut work.tx, tenant, id).await?;
    let component = component.ok_or_else(|| no_rollout(id))?;
    work.caller.require_owner(&component.owner_groups)?;
    let rollout = store::rollout::lock(&mut work.tx, tenant, id).await?;
    Ok(rollout.ok_or_else(|| no_rollout(id))?)
}

fn no_environment(name: &EnvironmentId) -> Refusal {
    absent(Reason::EnvironmentNotFound, "environment", name)
}

impl App {
    async fn get_rollout(
        &self,
        request: Request<pb::GetRolloutRequest>,
    ) -> Result<pb::GetRolloutResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::GetRolloutRequest { rollout_id } = request.into_inner();
        let id = parse("rollout_id", &rollout_id)?;
        let mut db = self.db.connection().await?;
        let (rollout, report) = watch::report(&mut db, &caller.tenant, id, self.clock.now()).await?;
        Ok(pb::GetRolloutResponse { rollout: Some((&rollout).into()), report: Some(report) })
    }

    async fn list_rollouts(
        &self,
        request: Request<pb::ListRolloutsRequest>,
    ) -> Result<pb::ListRolloutsResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::ListRolloutsRequest { component, environment, states, page_size, page_token } =
            request.into_inner();
        let states = state_names("states", &states, |number| {
            known::<pb::RolloutState>("states", number).map(|state| state.as_str_name())
        })?;
        let text = format!("{component}|{environment}|{}", states.join(","));
        let filter = Filter {
            component: optional("component", &component)?,
            environment: optional::<EnvironmentId>("environment", &environment)?,
            states,
        };
        let list = List { name: "ListRollouts", tenant: &caller.tenant, filter: &text };
        let (size, before) = (page::size(page_size)?, before(list.after(&self.keys, &page_token)?)?);
        let mut db = self.db.connection().await?;
        let mut rows = store::rollout::list(&mut db, &caller.tenant, &filter, before, size + 1).await?;
        let next_page_token =
            list.cut(&self.keys, &mut rows, size, self.clock.now(), |(seq, _)| seq.to_string())?;
        Ok(pb::ListRolloutsResponse {
            rollouts: rows.iter().map(|(_, rollout)| rollout.into()).collect(),
            next_page_token,
        })
    }

    async fn plan_rollouts(
        &self,
        request: Request<pb::PlanRolloutsRequest>,
    ) -> Result<pb::PlanRolloutsResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::PlanRolloutsRequest { release_ids, environment } = request.into_inner();
        at_most("release_ids", &release_ids, PLANNED_MAX)?;
        let ids = release_ids.iter().map(|id| parse("release_ids", id));
        let ids = ids.collect::<Result<BTreeSet<ReleaseId>, _>>()?;
        let environment = parse("environment", &environment)?;
        let tenant = &caller.tenant;
        let mut db = self.db.connection().await?;
        let found = store::environment::find(&mut db, tenant, &environment).await?;
        found.ok_or_else(|| no_environment(&environment))?;
        let uuids: Vec<_> = ids.iter().map(|id| id.uuid()).collect();
        let releases = store::dependency::list_planned(&mut db, tenant, &uuids).await?;
        let (mut planned, mut by_component) = (BTreeMap::new(), BTreeMap::new());
        for (id, component, version) in releases {
            if let Some(other) = by_component.insert(component.clone(), id) {
                let text = format!("{other} and {id} are both of {component}");
                return Err(Refusal::field("release_ids", text).into());
            }
            planned.insert(component, version);
        }
        let is_found = |id: &&ReleaseId| by_component.values().any(|found| found == *id);
        if let Some(id) = ids.iter().find(|id| !is_found(id)) {
            return Err(no_release(id).into());
        }
        let plan = apply::dependency::plan(&mut db, tenant, &planned, &environment).await?;
        let named = |wave: &Vec<ComponentId>| {
            wave.iter()
                .filter_map(|name| by_component.get(name))
                .map(ToString::to_string)
                .collect()
        };
        let waves = plan.waves.iter().map(|wave| pb::RolloutWave { release_ids: named(wave) });
        Ok(pb::PlanRolloutsResponse {
            waves: waves.collect(),
            conflicts: plan.conflicts.iter().map(Into::into).collect(),
        })
    }
}

/// The application behind the generated trait, which wants it cloned into streams.
pub(super) struct Rollouts(pub Arc<App>);

#[tonic::async_trait]
impl RolloutService for Rollouts {
    type WatchRolloutStream = watch::Stream;

    async fn start_rollout(
        &self,
        request: Request<pb::StartRolloutRequest>,
    ) -> Result<Response<pb::StartRolloutResponse>, Status> {
        Ok(Response::new(self.0.start_rollout(request).await?))
    }

    async fn get_rollout(
        &self,
        request: Request<pb::GetRolloutRequest>,
    ) -> Result<Response<pb::GetRolloutResponse>, Status> {
        Ok(Response::new(self.0.get_rollout(request).await?))
    }

    async fn list_rollouts(
        &self,
        request: Request<pb::ListRolloutsRequest>,
    ) -> Result<Response<pb::ListRolloutsResponse>, Status> {
        Ok(Response::new(self.0.list_rollouts(request).await?))
    }

    async fn advance_rollout(
        &self,
        request: Request<pb::AdvanceRolloutRequest>,
    ) -> Result<Response<pb::AdvanceRolloutResponse>, Status> {
        Ok(Response::new(self.0.advance_rollout(request).await?))
    }

    async fn roll_back_rollout(
        &self,
        request: Request<pb::RollBackRolloutRequest>,
    ) -> Result<Response<pb::RollBackRolloutResponse>, Status> {
        Ok(Response::new(self.0.roll_back_rollout(request).await?))
    }

    async fn skip_step(
        &self,
        request: Request<pb::SkipStepRequest>,
    ) -> Result<Response<pb::SkipStepResponse>, Status> {
        Ok(Response::new(self.0.skip_step(request).await?))
    }

    async fn pause_rollout(
        &self,
        request: Request<pb::PauseRolloutRequest>,
    ) -> Result<Response<pb::PauseRolloutResponse>, Status> {
        Ok(Response::new(self.0.pause_rollout(request).await?))
    }

    async fn resume_rollout(
        &self,
        request: Request<pb::ResumeRolloutRequest>,
    ) -> Result<Response<pb::ResumeRolloutResponse>, Status> {
        Ok(Response::new(self.0.resume_rollout(request).await?))
    }

    async fn resolve_rollout(
        &self,
        request: Request<pb::ResolveRolloutRequest>,
    ) -> Result<Response<pb::ResolveRolloutResponse>, Status> {
        Ok(Response::new(self.0.resolve_rollout(request).await?))
    }

    async fn lift_hold(
        &self,
        request: Request<pb::LiftHoldRequest>,
    ) -> Result<Response<pb::LiftHoldResponse>, Status> {
        Ok(Response::new(self.0.lift_hold(request).await?))
    }

    async fn watch_rollout(
        &self,
        request: Request<pb::WatchRolloutRequest>,
    ) -> Result<Response<Self::WatchRolloutStream>, Status> {
        Ok(Response::new(watch::open(&self.0, request).await?))
    }

    async fn plan_rollouts(
        &self,
        request: Request<pb::PlanRolloutsRequest>,
    ) -> Result<Response<pb::PlanRolloutsResponse>, Status> {
        Ok(Response::new(self.0.plan_rollouts(request).await?))
    }
}
