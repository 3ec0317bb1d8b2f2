//! `ExplainRelease`: everything that keeps a release from its next exposure.

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
use crate::apply::dependency::Locked;
use crate::apply::exposure::{self, Increase, Passage};
use crate::domain::blocker::Blocker;
use crate::domain::component::Component;
use crate::domain::release::{Facts, Release, Risk, Submission};
use crate::domain::rollout;
use crate::rpc::{App, absent};
use crate::store;

/// Everything that keeps a release from the environment, or, without one, from any.
async fn blockers(
    db: &mut PgConnection,
    actor: &Actor,
    locked: &Locked,
    component: &Component,
    release: &Release,
    facts: &Facts,
    environment: Option<&EnvironmentId>,
) -> Result<Vec<Blocker>, Failure> {
    let Some(environment) = environment else {
        return Ok(release.state_hold().into_iter().chain(release.holds(facts)).collect());
    };
    let tenant = &actor.tenant;
    let found = store::environment::find(db, tenant, environment).await?;
    let found = found.ok_or_else(|| absent(Reason::EnvironmentNotFound, "environment", environment))?;
    let (id, version) = (release.id, &release.version);
    let increase = Increase { component, environment: &found, release: id, version, locked };
    let Passage { blockers: on_the_way, overrides: _ } = exposure::outlook(db, actor, &increase).await?;
    let route = store::route::lock(db, tenant, &component.name, environment).await?;
    let stable = route.and_then(|route| route.stable);
    let earlier = store::rollout::find_under_way(db, tenant, &component.name, environment).await?;
    let mut blockers = rollout::blockers(environment, release, stable.as_ref(), earlier);
    blockers.extend(on_the_way);
    blockers.extend(apply::dependency::promotion_blocker(db, actor, release, &found).await?);
    blockers.extend(apply::evidence_blockers(db, tenant, release, &found).await?);
    blockers.extend(release.holds(facts));
    Ok(blockers)
}

impl App {
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
        let locked = apply::dependency::lock_needed(&mut tx, &actor.tenant, id.uuid()).await?;
        let component = store::component::lock_of_release(&mut tx, &actor.tenant, id).await?;
        let component = component.ok_or_else(|| no_release(&id))?;
        let release = store::release::lock(&mut tx, &actor.tenant, id).await?;
        let release = release.ok_or_else(|| no_release(&id))?;
        let approval = ApprovalId::new(actor.now, self.entropy.bytes());
        let (release, facts) = apply::look(&mut tx, &actor, &component, release, approval).await?;
        let blockers =
            blockers(&mut tx, &actor, &locked, &component, &release, &facts, environment.as_ref()).await?;
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
