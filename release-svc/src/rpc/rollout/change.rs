//! What people and programs ask of rollouts.

use shared::id::{ApprovalId, EnvironmentId, ReleaseId, RolloutId, WindowOverrideId};
use shared::mutation::{Begun, Call, Mutation};
use shared::parse::{etag, parse, text_of};
use shared::pb::release as pb;
use shared::status::{Failure, Reason, Refusal};
use tonic::Request;

use super::convert::{parse_assignment, parse_plan};
use super::{lock, no_environment, no_rollout};
use crate::apply::dependency::{Locked, lock_needed};
use crate::apply::exposure::{Increase, Passage};
use crate::apply::{self, Holds};
use crate::domain::blocker::{self, Kind};
use crate::domain::rollout::{Asked, Cause, Decision, Pause, Rollout, State, Steps, control};
use crate::rpc::App;
use crate::rpc::release::{REASON_MAX, look};
use crate::store;

/// Starts a rollout under the locks of the component and of what it needs, or lets it wait.
async fn start(
    app: &App,
    work: &mut Mutation,
    release: ReleaseId,
    asked: Asked,
    wait: bool,
) -> Result<Rollout, Failure> {
    let locked = lock_needed(&mut work.tx, &work.actor.tenant, release.uuid()).await?;
    let (component, release, facts) = look(app, work, release).await?;
    work.caller.require_owner(&component.owner_groups)?;
    let (tenant, now) = (work.actor.tenant.clone(), work.now);
    let found = store::environment::find(&mut work.tx, &tenant, &asked.environment).await?;
    let environment = found.ok_or_else(|| no_environment(&asked.environment))?;
    let increase = Increase {
        component: &component,
        environment: &environment,
        release: &release,
        facts: &facts,
        locked: Some(&locked),
    };
    let (db, actor) = (&mut work.tx, &work.actor);
    let Holds { blockers, overrides, stable } = apply::holds_begin(db, actor, &increase).await?;
    let serves = stable.as_ref().is_some_and(|stable| stable.id == release.id);
    let can_wait = wait && !release.state.is_final() && !serves;
    let begins = blockers.is_empty();
    if !can_wait {
        blocker::require_none(blockers.clone())?;
    }
    let before = store::rollout::live::find_waiting(db, &tenant, &component.name, &environment.name).await?;
    if let Some(before) = before
        && let Some(waiting) = store::rollout::lock(db, &tenant, before).await?
    {
        let superseded = waiting.supersede(asked.id, now)?;
        apply::rollout(db, actor, &superseded, &[]).await?;
    }
    if begins {
        let asked = Asked { plan: asked.plan.deployed_by(&environment), ..asked };
        let decisions = Rollout::start(asked, &release, stable, now);
        return apply::go_on(db, actor, decisions, &overrides).await;
    }
    let decision = Rollout::wait(asked, &release, blocker::kinds(&blockers), now);
    apply::rollout(db, actor, &decision, &[]).await?;
    Ok(decision.rollout)
}

/// Goes to the next step; with a reason also where it was not watched enough.
async fn advance(
    app: &App,
    work: &mut Mutation,
    id: RolloutId,
    sent_etag: &str,
    skips: Option<String>,
) -> Result<Rollout, Failure> {
    let locked = lock_needed(&mut work.tx, &work.actor.tenant, id.uuid()).await?;
    let rollout = lock(work, id).await?;
    etag(sent_etag, rollout.mark())?;
    let seen = apply::control::observed(&mut work.tx, &work.actor, &rollout).await?;
    let mut blockers = control::holds(&rollout, &seen, work.now);
    if skips.is_some() {
        // Harm is not skipped.
        let is_harm = seen.guards.iter().any(|watched| control::is_harmful(&rollout, watched));
        blockers.retain(|blocker| blocker.kind != Kind::Bake && (is_harm || blocker.kind != Kind::Guard));
    }
    // What an executor works at is told as such, not as a wrong state.
    blocker::require_none(blockers)?;
    let decision = Decision { reason: skips, ..rollout.clone().advance(work.now)? };
    let overrides = require_open(app, work, &locked, &rollout).await?;
    apply::go_on(&mut work.tx, &work.actor, [decision], &overrides).await
}

/// Refuses an increase that something holds back; answers the overrides that it goes by.
async fn require_open(
    app: &App,
    work: &mut Mutation,
    locked: &Locked,
    rollout: &Rollout,
) -> Result<Vec<WindowOverrideId>, Failure> {
    let approval = ApprovalId::new(work.now, app.entropy.bytes());
    let (db, actor) = (&mut work.tx, &work.actor);
    let Passage { blockers, overrides } =
        apply::holds_increase(db, actor, locked, rollout, approval, &app.authenticator).await?;
    blocker::require_none(blockers)?;
    Ok(overrides)
}

/// After harm, whoever goes on is a person who had no part in the release.
async fn require_clearance(app: &App, work: &mut Mutation, rollout: &Rollout) -> Result<(), Failure> {
    work.caller.require_person()?;
    let (_, release, facts) = look(app, work, rollout.release.id).await?;
    let (tenant, principal) = (&work.actor.tenant, &work.actor.principal);
    let person = apply::person_of(&mut work.tx, tenant, principal).await?;
    let authors = release.authors(&facts.people);
    if authors.contains(&person) || authors.contains(principal) {
        let text = "after harm, a rollout is resumed by somebody who had no part in the release";
        return Err(Refusal::new(Reason::SodViolation, text).into());
    }
    Ok(())
}

impl App {
    pub(super) async fn start_rollout(
        &self,
        request: Request<pb::StartRolloutRequest>,
    ) -> Result<pb::StartRolloutResponse, Failure> {
        let (call, message) = Call::of(request, "StartRollout", |message| &mut message.request_id)?;
        let pb::StartRolloutRequest {
            release_id,
            environment,
            step_exposures_bps,
            assignment_policy,
            plan,
            wait,
            request_id: _,
        } = message;
        let release = parse("release_id", &release_id)?;
        let environment: EnvironmentId = parse("environment", &environment)?;
        let steps =
            Steps::asked(step_exposures_bps).map_err(|error| Refusal::field("step_exposures_bps", error))?;
        let assignment = parse_assignment(assignment_policy)?;
        let plan = parse_plan(plan)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let id = RolloutId::new(work.now, self.entropy.bytes());
        let starter = work.actor.principal.clone();
        let asked = Asked { id, environment, steps, plan, assignment, starter };
        let rollout = start(self, &mut work, release, asked, wait).await?;
        work.answer(pb::StartRolloutResponse { rollout: Some((&rollout).into()) }).await
    }

    pub(super) async fn advance_rollout(
        &self,
        request: Request<pb::AdvanceRolloutRequest>,
    ) -> Result<pb::AdvanceRolloutResponse, Failure> {
        let (call, message) = Call::of(request, "AdvanceRollout", |message| &mut message.request_id)?;
        let pb::AdvanceRolloutRequest { rollout_id, etag, request_id: _ } = message;
        let id = parse("rollout_id", &rollout_id)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let rollout = advance(self, &mut work, id, &etag, None).await?;
        work.answer(pb::AdvanceRolloutResponse { rollout: Some((&rollout).into()) })
            .await
    }

    pub(super) async fn skip_step(
        &self,
        request: Request<pb::SkipStepRequest>,
    ) -> Result<pb::SkipStepResponse, Failure> {
        let (call, message) = Call::of(request, "SkipStep", |message| &mut message.request_id)?;
        let pb::SkipStepRequest { rollout_id, reason, etag, request_id: _ } = message;
        let id = parse("rollout_id", &rollout_id)?;
        let reason = text_of("reason", reason, 1, REASON_MAX)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let rollout = advance(self, &mut work, id, &etag, Some(reason)).await?;
        work.answer(pb::SkipStepResponse { rollout: Some((&rollout).into()) }).await
    }

    pub(super) async fn pause_rollout(
        &self,
        request: Request<pb::PauseRolloutRequest>,
    ) -> Result<pb::PauseRolloutResponse, Failure> {
        let (call, message) = Call::of(request, "PauseRollout", |message| &mut message.request_id)?;
        let pb::PauseRolloutRequest { rollout_id, reason, request_id: _ } = message;
        let id = parse("rollout_id", &rollout_id)?;
        let reason = text_of("reason", reason, 1, REASON_MAX)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let rollout = lock(&mut work, id).await?;
        let principal = work.actor.principal.clone();
        let pause = Pause { cause: Cause::Requested, principal, reason, at: work.now };
        let paused = match rollout.clone().pause(pause)? {
            Some(decision) => {
                apply::rollout(&mut work.tx, &work.actor, &decision, &[]).await?;
                decision.rollout
            }
            None => rollout,
        };
        work.answer(pb::PauseRolloutResponse { rollout: Some((&paused).into()) }).await
    }

    pub(super) async fn resume_rollout(
        &self,
        request: Request<pb::ResumeRolloutRequest>,
    ) -> Result<pb::ResumeRolloutResponse, Failure> {
        let (call, message) = Call::of(request, "ResumeRollout", |message| &mut message.request_id)?;
        let pb::ResumeRolloutRequest { rollout_id, reason, etag: sent_etag, request_id: _ } = message;
        let id: RolloutId = parse("rollout_id", &rollout_id)?;
        let reason = text_of("reason", reason, 1, REASON_MAX)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let locked = lock_needed(&mut work.tx, &work.actor.tenant, id.uuid()).await?;
        let rollout = lock(&mut work, id).await?;
        etag(&sent_etag, rollout.mark())?;
        if let State::Paused { pause: Pause { cause: Cause::Harm, .. }, .. } = &rollout.state {
            require_clearance(self, &mut work, &rollout).await?;
        }
        let decision = rollout.clone().resume(&work.actor.principal, reason, work.now)?;
        let overrides = require_open(self, &mut work, &locked, &rollout).await?;
        let resumed = apply::go_on(&mut work.tx, &work.actor, [decision], &overrides).await?;
        work.answer(pb::ResumeRolloutResponse { rollout: Some((&resumed).into()) })
            .await
    }

    pub(super) async fn roll_back_rollout(
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
        let tenant = work.actor.tenant.clone();
        let found = store::rollout::find(&mut work.tx, &tenant, id).await?;
        let found = found.ok_or_else(|| no_rollout(id))?;
        let component = store::component::find(&mut work.tx, &tenant, &found.component).await?;
        let component = component.ok_or_else(|| no_rollout(id))?;
        work.caller.require_owner(&component.owner_groups)?;
        let back = apply::roll_back(&mut work.tx, &work.actor, &found, (reason, None), &self.entropy).await?;
        work.answer(pb::RollBackRolloutResponse {
            rollout: Some((&back.rollout).into()),
            cascaded: back.cascaded.iter().map(Into::into).collect(),
            warnings: back.warnings,
        })
        .await
    }

    pub(super) async fn resolve_rollout(
        &self,
        request: Request<pb::ResolveRolloutRequest>,
    ) -> Result<pb::ResolveRolloutResponse, Failure> {
        let (call, message) = Call::of(request, "ResolveRollout", |message| &mut message.request_id)?;
        let pb::ResolveRolloutRequest { rollout_id, reason, request_id: _ } = message;
        call.caller.require_person()?;
        let id = parse("rollout_id", &rollout_id)?;
        let reason = text_of("reason", reason, 1, REASON_MAX)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let rollout = lock(&mut work, id).await?;
        let decision = Decision { reason: Some(reason), ..rollout.resolve(work.now)? };
        apply::rollout(&mut work.tx, &work.actor, &decision, &[]).await?;
        work.answer(pb::ResolveRolloutResponse { rollout: Some((&decision.rollout).into()) })
            .await
    }
}
