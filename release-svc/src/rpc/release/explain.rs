//! `ExplainRelease`: everything that keeps a release from its next exposure, by the rules of whoever would expose it.
//! It only reads, and locks nothing unless the facts make something else of the release than was written down.

use shared::auth::Caller;
use shared::edge::Deadline;
use shared::id::{ApprovalId, EnvironmentId, ReleaseId};
use shared::mutation::Actor;
use shared::parse::{optional, parse};
use shared::pb::release as pb;
use shared::status::{Failure, Reason};
use sqlx::PgConnection;
use tonic::Request;

use super::no_release;
use crate::apply;
use crate::apply::exposure::{self, Increase};
use crate::domain::blocker::Blocker;
use crate::domain::component::Component;
use crate::domain::release::{Facts, Release, Risk, Submission};
use crate::domain::rollout::{self, control};
use crate::rpc::{App, absent};
use crate::store;

/// Everything that keeps a release from more people in the environment: from the next step of its rollout there, else
/// from the first one.
async fn blockers(
    db: &mut PgConnection,
    actor: &Actor,
    component: &Component,
    release: &Release,
    facts: &Facts,
    environment: &EnvironmentId,
) -> Result<Vec<Blocker>, Failure> {
    let (tenant, name) = (&actor.tenant, &component.name);
    let found = store::environment::find(db, tenant, environment).await?;
    let found = found.ok_or_else(|| absent(Reason::EnvironmentNotFound, "environment", environment))?;
    let increase = Increase { component, environment: &found, release, facts, locked: None };
    let under_way = store::rollout::find_under_way(db, tenant, name, environment).await?;
    if let Some(id) = under_way
        && let Some(rollout) = store::rollout::find(db, tenant, id).await?
        && rollout.release.id == release.id
        && rollout.state.is_exposing()
    {
        let seen = apply::control::observed(db, actor, &rollout).await?;
        let mut blockers = control::holds(&rollout, &seen, actor.now);
        blockers.extend(exposure::next_step(db, actor, &increase, &rollout).await?.blockers);
        return Ok(blockers);
    }
    let held = exposure::first_step(db, actor, &increase).await?.blockers;
    let routes =
        store::route::list_named(db, environment, &[tenant.to_string()], &[name.to_string()]).await?;
    let stable = routes.first().and_then(|route| route.stable.as_ref());
    Ok(rollout::blockers(environment, release, stable, under_way, held))
}

impl App {
    /// The release as the facts of now make it, with these; written down where that is something else than it was.
    pub(super) async fn seen(
        &self,
        db: &mut PgConnection,
        actor: &Actor,
        found: Release,
    ) -> Result<(Component, Release, Facts), Failure> {
        let (tenant, id) = (&actor.tenant, found.id);
        let approval = ApprovalId::new(actor.now, self.entropy.bytes());
        let component = store::component::find(db, tenant, &found.component).await?;
        let component = component.ok_or_else(|| no_release(&id))?;
        let facts =
            apply::facts(db, actor, &component, &found, &found.terms(), approval, &self.authenticator)
                .await?;
        if found.clone().reassess(&facts).is_empty() {
            return Ok((component, found, facts));
        }
        let component = store::component::lock_of_release(db, tenant, id).await?;
        let component = component.ok_or_else(|| no_release(&id))?;
        let release = store::release::lock(db, tenant, id).await?;
        let release = release.ok_or_else(|| no_release(&id))?;
        let (release, facts) =
            apply::look(db, actor, &component, release, approval, &self.authenticator).await?;
        Ok((component, release, facts))
    }

    pub(super) async fn explain_release(
        &self,
        request: Request<pb::ExplainReleaseRequest>,
    ) -> Result<pb::ExplainReleaseResponse, Failure> {
        let (caller, deadline) = (Caller::of(&request)?, Deadline::of(&request));
        let pb::ExplainReleaseRequest { release_id, environment } = request.into_inner();
        let id: ReleaseId = parse("release_id", &release_id)?;
        let environment: Option<EnvironmentId> = optional("environment", &environment)?;
        let actor = Actor {
            tenant: caller.tenant.clone(),
            principal: caller.principal.clone(),
            now: self.clock.now(),
        };
        let mut tx = self.db.begin(deadline).await?;
        let found = store::release::find(&mut tx, &actor.tenant, id).await?;
        let found = found.ok_or_else(|| no_release(&id))?;
        let (component, release, facts) = self.seen(&mut tx, &actor, found).await?;
        let blockers = match &environment {
            Some(environment) => blockers(&mut tx, &actor, &component, &release, &facts, environment).await?,
            None => release.state_hold().into_iter().chain(release.holds(&facts)).collect(),
        };
        tx.commit().await?;
        let terms = release.state.submission().map(Submission::terms);
        let risk = terms.filter(|_| !release.state.is_final()).map(|terms| pb::Risk {
            is_binding: terms.rules.risk_binding,
            ..(&Risk::from(&facts.assessment)).into()
        });
        Ok(pb::ExplainReleaseResponse {
            release: Some((&release).into()),
            risk,
            blockers: blockers.into_iter().map(Into::into).collect(),
        })
    }
}
