//! Carries decisions out: the guarded write, what follows from it elsewhere, and one event for each transition, in the
//! caller's transaction. Both `rpc` and `workers` get here, so that a transition is the same whoever caused it.

use serde_json::{Map, Value, json};
use shared::auth::Authenticator;
use shared::id::{ApprovalId, EnvironmentId};
use shared::mutation::Actor;
use shared::status::{Failure, Reason, Refusal};
use shared::time::Time;
use sqlx::{PgConnection, Postgres, Transaction};

use crate::domain::break_glass::BreakGlass;
use crate::domain::component::{Component, DataScope, Environment};
use crate::domain::dependency::Dependency;
use crate::domain::hold::Hold;
use crate::domain::identity::IdentityAlias;
use crate::domain::policy::ApprovalPolicy;
use crate::domain::release::{self, Facts, Release};
use crate::store::observed::Place;
use crate::{EXPOSURE_LEASE, OUTBOX, REPLICA_MARGIN, store};

pub(crate) mod control;
pub(crate) mod dependency;
pub(crate) mod exposure;
mod facts;
pub(crate) mod observation;
mod rollout;
mod task;

pub(crate) use facts::{awaiting, evidence_blockers, facts, person_of, require_another};
pub(crate) use rollout::{Holds, go_on, holds_begin, holds_increase, quarantine, roll_back, rollout};
pub(crate) use task::task;

/// A write found its row changed, which the row locks should have kept from happening.
pub(crate) fn expect_written(is_written: bool) -> Result<(), Failure> {
    if is_written {
        return Ok(());
    }
    Err(Refusal::new(Reason::ConcurrentChange, "another change was in the way; try again").into())
}

/// Whether a row is corrupt, or a newer version's.
const fn is_unreadable(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. })
}

/// Ends a part of a rollback. Where a row of it cannot be read, the part is left out, and the rollback goes on without it.
async fn if_readable<T>(
    part: Transaction<'_, Postgres>,
    done: Result<T, Failure>,
) -> Result<Result<T, sqlx::Error>, Failure> {
    match done {
        Ok(done) => {
            part.commit().await?;
            Ok(Ok(done))
        }
        Err(Failure::Storage(error)) if is_unreadable(&error) => {
            part.rollback().await?;
            tracing::error!(%error, "a part of a rollback is left out, as a row cannot be read");
            Ok(Err(error))
        }
        Err(failure) => Err(failure),
    }
}

async fn tell(
    db: &mut PgConnection,
    actor: &Actor,
    kind: &'static str,
    subject: String,
    data: Value,
) -> sqlx::Result<()> {
    OUTBOX.append(db, &actor.event(kind, subject, data)).await
}

/// Tells of a component that was made or changed.
pub(crate) async fn tell_component(
    db: &mut PgConnection,
    actor: &Actor,
    kind: &'static str,
    component: &Component,
    dependencies: &[Dependency],
) -> sqlx::Result<()> {
    let scopes: Vec<_> = component.data_scopes.iter().copied().map(DataScope::name).collect();
    let dependencies = dependencies.iter().map(|dependency| {
        json!({
            "component": dependency.on.as_str(),
            "environment": dependency.environment.as_ref().map(EnvironmentId::as_str),
            "constraint": dependency.constraint.as_str(),
        })
    });
    let data = json!({
        "component": component.name.as_str(),
        "owner_groups": component.owner_groups,
        "business_owner_groups": component.business_owner_groups,
        "approval_policy": component.approval_policy.as_str(),
        "tier": component.tier.name(),
        "kind": component.kind.name(),
        "data_scopes": scopes,
        "dependencies": dependencies.collect::<Vec<_>>(),
    });
    tell(db, actor, kind, component.name.to_string(), data).await
}

/// Tells that what a rollback left behind was lifted.
pub(crate) async fn tell_lifted(
    db: &mut PgConnection,
    actor: &Actor,
    hold: &Hold,
    reason: &str,
) -> sqlx::Result<()> {
    let data = json!({
        "rollout_id": hold.rollout.to_string(),
        "component": hold.component.as_str(),
        "environment": hold.environment.as_str(),
        "version": hold.version,
        "since": hold.since,
        "reason": reason,
    });
    tell(db, actor, "rollout.hold_lifted", hold.rollout.to_string(), data).await
}

/// Tells that other versions of a component were found running than those that should.
pub(crate) async fn tell_drift(
    db: &mut PgConnection,
    actor: &Actor,
    place: &Place<'_>,
    wanted: &[String],
    found: &[String],
) -> sqlx::Result<()> {
    let data = json!({
        "component": place.component.as_str(),
        "environment": place.environment.as_str(),
        "wanted_versions": wanted,
        "observed_versions": found,
    });
    tell(db, actor, "component.drift_observed", place.component.to_string(), data).await
}

/// Tells of an environment that was made or changed.
pub(crate) async fn tell_environment(
    db: &mut PgConnection,
    actor: &Actor,
    kind: &'static str,
    environment: &Environment,
) -> sqlx::Result<()> {
    let requirements = &environment.requirements;
    let data = json!({
        "environment": environment.name.as_str(),
        "promotion_order": environment.promotion_order,
        "region": environment.region,
        "is_production": environment.is_production,
        "requires_promotion": requirements.requires_promotion,
        "min_bake_seconds": requirements.min_bake.num_seconds(),
        "required_evidence": requirements.evidence,
        "needs_executor": environment.needs_executor,
    });
    tell(db, actor, kind, environment.name.to_string(), data).await
}

/// Tells of another name of a person, but not of an address, which events would keep for ever.
pub(crate) async fn tell_alias(
    db: &mut PgConnection,
    actor: &Actor,
    kind: &'static str,
    alias: &IdentityAlias,
) -> sqlx::Result<()> {
    let name = &alias.alias;
    let data = json!({
        "person": alias.person.as_str(),
        "alias": (!name.is_mail()).then(|| name.as_str()),
    });
    tell(db, actor, kind, alias.person.as_str().to_owned(), data).await
}

/// Tells of an approval policy that was made or changed.
pub(crate) async fn tell_policy(
    db: &mut PgConnection,
    actor: &Actor,
    kind: &'static str,
    policy: &ApprovalPolicy,
) -> sqlx::Result<()> {
    let data = json!({
        "approval_policy": policy.name.as_str(),
        "profile": policy.terms.profile.name(),
        "quorum": policy.terms.quorum,
        "version": policy.row_version,
        "proposed_version": policy.proposed.as_ref().map(|proposed| proposed.version),
    });
    tell(db, actor, kind, policy.name.to_string(), data).await
}

/// Tells of a review of a break-glass.
pub(crate) async fn tell_review(db: &mut PgConnection, actor: &Actor, used: &BreakGlass) -> sqlx::Result<()> {
    let data = json!({
        "break_glass_id": used.id.to_string(),
        "release_id": used.release.to_string(),
        "verdict": used.review.as_ref().map(|review| review.verdict.name()),
        "reason": used.review.as_ref().map(|review| review.reason.as_str()),
    });
    tell(db, actor, "break_glass.reviewed", used.id.to_string(), data).await
}

/// Tells of a draft that was made.
pub(crate) async fn tell_draft(db: &mut PgConnection, actor: &Actor, release: &Release) -> sqlx::Result<()> {
    let data = release_data(release, None, Map::new());
    tell(db, actor, "release.created", release.id.to_string(), data).await
}

/// A transition of a release. `more` goes into the event.
pub(crate) async fn release(
    db: &mut PgConnection,
    actor: &Actor,
    decision: &release::Decision,
    more: Map<String, Value>,
) -> Result<(), Failure> {
    expect_written(store::release::update(db, &actor.tenant, decision).await?)?;
    let release = &decision.release;
    if decision.was_approved != release.approval {
        if let Some(ended) = &decision.was_approved {
            expect_written(store::approval::end(db, &actor.tenant, ended.id, actor.now).await?)?;
        }
        if let Some(approval) = &release.approval {
            store::approval::insert(db, &actor.tenant, release, approval).await?;
        }
    }
    let data = release_data(release, Some(decision.from), more);
    tell(db, actor, decision.kind, release.id.to_string(), data).await?;
    Ok(())
}

/// The release as the facts of now make it, with these facts. The caller has locked it after its component. What follows
/// from facts is nobody's doing.
pub(crate) async fn look(
    db: &mut PgConnection,
    actor: &Actor,
    component: &Component,
    found: Release,
    approval_id: ApprovalId,
    authenticator: &Authenticator,
) -> Result<(Release, Facts), Failure> {
    let facts = facts(db, actor, component, &found, &found.terms(), approval_id, authenticator).await?;
    let system = Actor { principal: "system".to_owned(), ..actor.clone() };
    let seen = reassess(db, &system, found, &facts).await?;
    Ok((seen, facts))
}

/// Carries out what the facts make of a release.
pub(crate) async fn reassess(
    db: &mut PgConnection,
    actor: &Actor,
    mut found: Release,
    facts: &Facts,
) -> Result<Release, Failure> {
    for decision in found.clone().reassess(facts) {
        release(db, actor, &decision, Map::new()).await?;
        found = decision.release;
    }
    Ok(found)
}

fn release_data(release: &Release, from: Option<&str>, more: Map<String, Value>) -> Value {
    let mut data = more;
    data.insert("release_id".to_owned(), release.id.to_string().into());
    data.insert("component".to_owned(), release.component.as_str().into());
    data.insert("version".to_owned(), release.version.as_str().into());
    data.insert("from".to_owned(), from.into());
    data.insert("to".to_owned(), release.state.name().into());
    data.insert("revision".to_owned(), release.revision.into());
    if let Some(submission) = release.state.submission() {
        data.insert("band".to_owned(), submission.band.name().into());
        data.insert("quorum".to_owned(), submission.quorum.into());
    }
    if let Some(approval) = &release.approval {
        data.insert("approval_id".to_owned(), approval.id.to_string().into());
        data.insert("basis".to_owned(), approval.basis.name().into());
    }
    Value::Object(data)
}

/// Replicas that were last seen before this instant have no exposure lease any more. What renews a lease is sent up to
/// [`REPLICA_MARGIN`] after its replica was seen.
pub(crate) fn lease_began_at(now: Time) -> Time {
    now - EXPOSURE_LEASE - REPLICA_MARGIN
}

/// [`REPLICA_MARGIN`] as PostgreSQL takes it.
pub(crate) fn margin_secs() -> f64 {
    REPLICA_MARGIN.as_seconds_f64()
}
