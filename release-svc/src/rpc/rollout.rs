//! `RolloutService`: releases into environments, step by step, and back.

use std::collections::{BTreeMap, BTreeSet};

use shared::auth::Caller;
use shared::id::{ComponentId, EnvironmentId, ReleaseId, RolloutId, WindowOverrideId};
use shared::mutation::{Begun, Call, Mutation};
use shared::page::{self, List};
use shared::parse::{at_most, etag, etag_of, known, known_or_default, optional, parse, text_of};
use shared::pb::release as pb;
use shared::pb::release::rollout_service_server::RolloutService;
use shared::status::{Failure, Reason, Refusal};
use shared::time::to_proto;
use tonic::{Request, Response, Status};

use super::release::{REASON_MAX, look, no_release};
use super::{App, absent, before, state_names};
use crate::apply;
use crate::apply::dependency::Locked;
use crate::apply::exposure::{self, Increase, Passage};
use crate::domain::blocker;
use crate::domain::dependency::Unmet;
use crate::domain::rollout::{Assignment, Plan, Rollout, State, Steps};
use crate::store;
use crate::store::rollout::Filter;

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

impl From<&Rollout> for pb::Rollout {
    fn from(rollout: &Rollout) -> Self {
        let previous = rollout.previous.as_ref();
        Self {
            rollout_id: rollout.id.to_string(),
            component: rollout.component.to_string(),
            environment: rollout.environment.to_string(),
            release_id: rollout.release.id.to_string(),
            version: rollout.release.version.clone(),
            previous_release_id: previous.map(|previous| previous.id.to_string()).unwrap_or_default(),
            previous_version: previous.map(|previous| previous.version.clone()).unwrap_or_default(),
            state: state_to_proto(&rollout.state).into(),
            step_exposures_bps: rollout.steps.as_slice().to_vec(),
            step: i32::try_from(rollout.step).unwrap_or(i32::MAX),
            exposure_bps: rollout.exposure_bps(),
            assignment_policy: assignment_to_proto(rollout.assignment).into(),
            rollback_reason: rollout.state.rollback_reason().unwrap_or_default().to_owned(),
            starter: rollout.starter.clone(),
            start_time: Some(to_proto(rollout.started_at)),
            end_time: rollout.state.ended_at().map(to_proto),
            etag: etag_of(rollout.row_version),
            approval_id: rollout.approval.map(|id| id.to_string()).unwrap_or_default(),
        }
    }
}

const fn state_to_proto(state: &State) -> pb::RolloutState {
    match state {
        State::Running => pb::RolloutState::Running,
        State::Succeeded { .. } => pb::RolloutState::Succeeded,
        State::RollingBack { .. } => pb::RolloutState::RollingBack,
        State::RolledBack { .. } => pb::RolloutState::RolledBack,
    }
}

pub(super) const fn assignment_to_proto(assignment: Assignment) -> pb::AssignmentPolicy {
    match assignment {
        Assignment::NewVisits => pb::AssignmentPolicy::NewVisits,
        Assignment::AllSessions => pb::AssignmentPolicy::AllSessions,
    }
}

fn parse_assignment(number: i32) -> Result<Assignment, Refusal> {
    Ok(match known_or_default("assignment_policy", number)? {
        pb::AssignmentPolicy::Unspecified | pb::AssignmentPolicy::NewVisits => Assignment::NewVisits,
        pb::AssignmentPolicy::AllSessions => Assignment::AllSessions,
    })
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

/// Refuses an increase that something holds back; answers the overrides that it goes by. The component is locked.
async fn require_open(
    app: &App,
    work: &mut Mutation,
    locked: &Locked,
    rollout: &Rollout,
) -> Result<Vec<WindowOverrideId>, Failure> {
    let environment = &rollout.environment;
    let found = store::environment::find(&mut work.tx, &work.actor.tenant, environment).await?;
    let found =
        found.ok_or_else(|| Failure::Bug(format!("a rollout is in {environment}, which is not there")))?;
    let (component, release, facts) = look(app, work, rollout.release.id).await?;
    let (component, release, facts) = (&component, &release, &facts);
    let increase = Increase { component, environment: &found, release, facts, locked: Some(locked) };
    let passage = exposure::next_step(&mut work.tx, &work.actor, &increase, rollout).await?;
    blocker::require_none(passage.blockers)?;
    Ok(passage.overrides)
}

fn no_environment(name: &EnvironmentId) -> Refusal {
    absent(Reason::EnvironmentNotFound, "environment", name)
}

/// Starts a rollout under the locks of the component and of what it needs.
async fn start(app: &App, work: &mut Mutation, release: ReleaseId, plan: Plan) -> Result<Rollout, Failure> {
    let locked = apply::dependency::lock_needed(&mut work.tx, &work.actor.tenant, release.uuid()).await?;
    let (component, release, facts) = look(app, work, release).await?;
    work.caller.require_owner(&component.owner_groups)?;
    let (tenant, environment) = (&work.actor.tenant, &plan.environment);
    let found = store::environment::find(&mut work.tx, tenant, environment).await?;
    let found = found.ok_or_else(|| no_environment(environment))?;
    let increase = Increase {
        component: &component,
        environment: &found,
        release: &release,
        facts: &facts,
        locked: Some(&locked),
    };
    let Passage { blockers, overrides } = exposure::first_step(&mut work.tx, &work.actor, &increase).await?;
    let route = store::route::lock(&mut work.tx, tenant, &component.name, environment).await?;
    let stable = route.and_then(|route| route.stable);
    let earlier = store::rollout::find_under_way(&mut work.tx, tenant, &component.name, environment).await?;
    let decisions = Rollout::start(plan, &release, stable, earlier, blockers, work.now)?;
    for decision in &decisions {
        apply::rollout(&mut work.tx, &work.actor, decision, &overrides).await?;
    }
    let last = decisions.into_iter().next_back();
    last.map(|decision| decision.rollout)
        .ok_or_else(|| Failure::Bug("a rollout started without a decision".to_owned()))
}

/// Rolls a rollout back, and before it those of components that cannot do with what it goes back to.
async fn roll_back(
    work: &mut Mutation,
    id: RolloutId,
    reason: String,
) -> Result<pb::RollBackRolloutResponse, Failure> {
    let tenant = work.actor.tenant.clone();
    let Rollout { component, environment, .. } = store::rollout::find(&mut work.tx, &tenant, id)
        .await?
        .ok_or_else(|| no_rollout(id))?;
    let (before, mut warnings) =
        apply::dependency::lock_cascade(&mut work.tx, &tenant, &component, &environment).await?;
    let rollout = lock(work, id).await?;
    if rollout.state != State::Running {
        let again = apply::roll_back(&mut work.tx, &work.actor, rollout.clone(), reason).await?;
        let rollout = Some((&again.unwrap_or(rollout)).into());
        return Ok(pb::RollBackRolloutResponse { rollout, ..Default::default() });
    }
    if let Some(previous) = &rollout.previous
        && let Some(release) = store::release::find(&mut work.tx, &tenant, previous.id).await?
        && let Some(quarantine) = release.quarantine
    {
        let version = &previous.version;
        warnings.push(format!(
            "{component} {version}, which serves from now on, is quarantined: {}",
            quarantine.reason
        ));
    }
    let cascaded = apply::dependency::roll_back_first(&mut work.tx, &work.actor, &before, &rollout).await?;
    let back = apply::roll_back(&mut work.tx, &work.actor, rollout.clone(), reason).await?;
    Ok(pb::RollBackRolloutResponse {
        rollout: Some((&back.unwrap_or(rollout)).into()),
        cascaded: cascaded.iter().map(Into::into).collect(),
        warnings,
    })
}

impl App {
    async fn start_rollout(
        &self,
        request: Request<pb::StartRolloutRequest>,
    ) -> Result<pb::StartRolloutResponse, Failure> {
        let (call, message) = Call::of(request, "StartRollout", |message| &mut message.request_id)?;
        let pb::StartRolloutRequest {
            release_id,
            environment,
            step_exposures_bps,
            assignment_policy,
            request_id: _,
        } = message;
        let release = parse("release_id", &release_id)?;
        let environment = parse("environment", &environment)?;
        let steps =
            Steps::asked(step_exposures_bps).map_err(|error| Refusal::field("step_exposures_bps", error))?;
        let assignment = parse_assignment(assignment_policy)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let id = RolloutId::new(work.now, self.entropy.bytes());
        let starter = work.actor.principal.clone();
        let plan = Plan { id, environment, steps, assignment, starter };
        let rollout = start(self, &mut work, release, plan).await?;
        work.answer(pb::StartRolloutResponse { rollout: Some((&rollout).into()) }).await
    }

    async fn get_rollout(
        &self,
        request: Request<pb::GetRolloutRequest>,
    ) -> Result<pb::GetRolloutResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::GetRolloutRequest { rollout_id } = request.into_inner();
        let id = parse("rollout_id", &rollout_id)?;
        let mut db = self.db.connection().await?;
        let rollout = store::rollout::find(&mut db, &caller.tenant, id).await?;
        let rollout = rollout.ok_or_else(|| no_rollout(id))?;
        Ok(pb::GetRolloutResponse { rollout: Some((&rollout).into()) })
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

    async fn advance_rollout(
        &self,
        request: Request<pb::AdvanceRolloutRequest>,
    ) -> Result<pb::AdvanceRolloutResponse, Failure> {
        let (call, message) = Call::of(request, "AdvanceRollout", |message| &mut message.request_id)?;
        let pb::AdvanceRolloutRequest { rollout_id, etag: sent_etag, request_id: _ } = message;
        let id: RolloutId = parse("rollout_id", &rollout_id)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let locked = apply::dependency::lock_needed(&mut work.tx, &work.actor.tenant, id.uuid()).await?;
        let rollout = lock(&mut work, id).await?;
        etag(&sent_etag, rollout.row_version)?;
        let decision = rollout.clone().advance(work.now)?;
        let overrides = require_open(self, &mut work, &locked, &rollout).await?;
        apply::rollout(&mut work.tx, &work.actor, &decision, &overrides).await?;
        work.answer(pb::AdvanceRolloutResponse { rollout: Some((&decision.rollout).into()) })
            .await
    }

    async fn roll_back_rollout(
        &self,
        request: Request<pb::RollBackRolloutRequest>,
    ) -> Result<pb::RollBackRolloutResponse, Failure> {
        let (call, message) = Call::of(request, "RollBackRollout", |message| &mut message.request_id)?;
        let pb::RollBackRolloutRequest { rollout_id, reason, request_id: _ } = message;
        let id = parse("rollout_id", &rollout_id)?;
        let reason = text_of("reason", reason, 1, REASON_MAX)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let answer = roll_back(&mut work, id, reason).await?;
        work.answer(answer).await
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

#[tonic::async_trait]
impl RolloutService for App {
    async fn start_rollout(
        &self,
        request: Request<pb::StartRolloutRequest>,
    ) -> Result<Response<pb::StartRolloutResponse>, Status> {
        Ok(Response::new(self.start_rollout(request).await?))
    }

    async fn get_rollout(
        &self,
        request: Request<pb::GetRolloutRequest>,
    ) -> Result<Response<pb::GetRolloutResponse>, Status> {
        Ok(Response::new(self.get_rollout(request).await?))
    }

    async fn list_rollouts(
        &self,
        request: Request<pb::ListRolloutsRequest>,
    ) -> Result<Response<pb::ListRolloutsResponse>, Status> {
        Ok(Response::new(self.list_rollouts(request).await?))
    }

    async fn advance_rollout(
        &self,
        request: Request<pb::AdvanceRolloutRequest>,
    ) -> Result<Response<pb::AdvanceRolloutResponse>, Status> {
        Ok(Response::new(self.advance_rollout(request).await?))
    }

    async fn roll_back_rollout(
        &self,
        request: Request<pb::RollBackRolloutRequest>,
    ) -> Result<Response<pb::RollBackRolloutResponse>, Status> {
        Ok(Response::new(self.roll_back_rollout(request).await?))
    }

    async fn plan_rollouts(
        &self,
        request: Request<pb::PlanRolloutsRequest>,
    ) -> Result<Response<pb::PlanRolloutsResponse>, Status> {
        Ok(Response::new(self.plan_rollouts(request).await?))
    }
}
