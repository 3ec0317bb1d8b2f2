//! Routes, and the session services that act on them.

use shared::id::{ComponentId, EnvironmentId, ReleaseId, RolloutId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

use super::corrupt;
use super::rollout::assignment_of;
use crate::domain::rollout::ServedRelease;
use crate::domain::route::{Route, RoutedRollout};

struct Row {
    tenant_id: TenantId,
    component: ComponentId,
    environment: EnvironmentId,
    revision: i64,
    stable_release_id: Option<ReleaseId>,
    stable_semver: Option<String>,
    rollout_id: Option<RolloutId>,
    rollout_release_id: Option<ReleaseId>,
    rollout_semver: Option<String>,
    exposure_bps: Option<i32>,
    assignment_policy: Option<String>,
    withdrawn_release_ids: Vec<ReleaseId>,
    ended_release_ids: Vec<ReleaseId>,
    step: i32,
    guards: String,
    trace_parent: String,
}

impl TryFrom<Row> for Route {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let served = |id: Option<ReleaseId>, version: Option<String>| {
            id.zip(version).map(|(id, version)| ServedRelease { id, version })
        };
        let broken = |column| corrupt("routes", column, &row.component);
        let assignment = row
            .assignment_policy
            .map(|name| assignment_of(&name).ok_or_else(|| broken("assignment_policy")))
            .transpose()?;
        let guards = serde_json::from_str(&row.guards).map_err(|_| broken("guards"))?;
        let release = served(row.rollout_release_id, row.rollout_semver);
        let rollout = match (row.rollout_id, release, row.exposure_bps, assignment) {
            (Some(id), Some(release), Some(exposure_bps), Some(assignment)) => {
                Some(RoutedRollout { id, release, exposure_bps, assignment, step: row.step, guards })
            }
            (_, _, _, _) => None,
        };
        Ok(Self {
            tenant: row.tenant_id,
            component: row.component,
            environment: row.environment,
            revision: row.revision,
            stable: served(row.stable_release_id, row.stable_semver),
            rollout,
            withdrawn: row.withdrawn_release_ids,
            ended: row.ended_release_ids,
            trace_parent: row.trace_parent,
        })
    }
}

#[tracing::instrument(name = "db.route.lock", skip_all)]
pub async fn lock(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: &ComponentId,
    environment: &EnvironmentId,
) -> sqlx::Result<Option<Route>> {
    let row = sqlx::query_as!(
        Row,
        r#"select tenant_id as "tenant_id: TenantId", component as "component: ComponentId",
            environment as "environment: EnvironmentId", revision,
            stable_release_id as "stable_release_id: ReleaseId", stable_semver, rollout_id as "rollout_id: RolloutId",
            rollout_release_id as "rollout_release_id: ReleaseId", rollout_semver, exposure_bps, assignment_policy,
            withdrawn_release_ids as "withdrawn_release_ids: Vec<ReleaseId>",
            ended_release_ids as "ended_release_ids: Vec<ReleaseId>", step, guards, trace_parent
        from release.routes
        where tenant_id = $1 and component = $2 and environment = $3
        for no key update"#,
        tenant.as_str(),
        component.as_str(),
        environment.as_str(),
    )
    .fetch_optional(db)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// Every tenant's routes of an environment.
#[tracing::instrument(name = "db.route.list", skip_all)]
pub async fn list(
    db: &mut PgConnection,
    environment: &EnvironmentId,
    limit: i64,
) -> sqlx::Result<Vec<Route>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select tenant_id as "tenant_id: TenantId", component as "component: ComponentId",
            environment as "environment: EnvironmentId", revision,
            stable_release_id as "stable_release_id: ReleaseId", stable_semver, rollout_id as "rollout_id: RolloutId",
            rollout_release_id as "rollout_release_id: ReleaseId", rollout_semver, exposure_bps, assignment_policy,
            withdrawn_release_ids as "withdrawn_release_ids: Vec<ReleaseId>",
            ended_release_ids as "ended_release_ids: Vec<ReleaseId>", step, guards, trace_parent
        from release.routes
        where environment = $1
        order by tenant_id, component
        limit $2"#,
        environment.as_str(),
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// The named routes of an environment.
#[tracing::instrument(name = "db.route.list_named", skip_all)]
pub async fn list_named(
    db: &mut PgConnection,
    environment: &EnvironmentId,
    tenants: &[String],
    components: &[String],
) -> sqlx::Result<Vec<Route>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select tenant_id as "tenant_id: TenantId", component as "component: ComponentId",
            environment as "environment: EnvironmentId", revision,
            stable_release_id as "stable_release_id: ReleaseId", stable_semver, rollout_id as "rollout_id: RolloutId",
            rollout_release_id as "rollout_release_id: ReleaseId", rollout_semver, exposure_bps, assignment_policy,
            withdrawn_release_ids as "withdrawn_release_ids: Vec<ReleaseId>",
            ended_release_ids as "ended_release_ids: Vec<ReleaseId>", step, guards, trace_parent
        from release.routes
        where environment = $1
            and (tenant_id, component) in (select * from unnest($2::text[], $3::text[]))
        limit cardinality($2::text[])"#,
        environment.as_str(),
        tenants,
        components,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Writes the revision that follows the stored one, or the first.
#[tracing::instrument(name = "db.route.upsert", skip_all)]
pub async fn upsert(db: &mut PgConnection, route: &Route) -> sqlx::Result<bool> {
    let (stable, rollout) = (route.stable.as_ref(), route.rollout.as_ref());
    let guards = rollout.map(|rollout| &rollout.guards).cloned().unwrap_or_default();
    let guards = serde_json::to_string(&guards).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    let uuids = |ids: &[ReleaseId]| ids.iter().map(|id| id.uuid()).collect::<Vec<Uuid>>();
    let done = sqlx::query!(
        "insert into release.routes
            (tenant_id, component, environment, revision, stable_release_id, stable_semver, rollout_id,
            rollout_release_id, rollout_semver, exposure_bps, assignment_policy, withdrawn_release_ids, trace_parent,
            ended_release_ids, step, guards)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
        on conflict (tenant_id, component, environment) do update
        set revision = excluded.revision, stable_release_id = excluded.stable_release_id,
            stable_semver = excluded.stable_semver, rollout_id = excluded.rollout_id,
            rollout_release_id = excluded.rollout_release_id, rollout_semver = excluded.rollout_semver,
            exposure_bps = excluded.exposure_bps, assignment_policy = excluded.assignment_policy,
            withdrawn_release_ids = excluded.withdrawn_release_ids, trace_parent = excluded.trace_parent,
            ended_release_ids = excluded.ended_release_ids, step = excluded.step, guards = excluded.guards
        where release.routes.revision = excluded.revision - 1",
        route.tenant.as_str(),
        route.component.as_str(),
        route.environment.as_str(),
        route.revision,
        stable.map(|stable| stable.id.uuid()),
        stable.map(|stable| stable.version.as_str()),
        rollout.map(|rollout| rollout.id.uuid()),
        rollout.map(|rollout| rollout.release.id.uuid()),
        rollout.map(|rollout| rollout.release.version.as_str()),
        rollout.map(|rollout| rollout.exposure_bps),
        rollout.map(|rollout| rollout.assignment.name()),
        &uuids(&route.withdrawn),
        route.trace_parent,
        &uuids(&route.ended),
        rollout.map_or(0, |rollout| rollout.step),
        guards,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Writes down that a replica is there.
#[tracing::instrument(name = "db.route_replica.upsert", skip_all)]
pub async fn upsert_replica(
    db: &mut PgConnection,
    environment: &EnvironmentId,
    replica: Uuid,
    now: Time,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into release.route_replicas (environment, replica_id, seen_at)
        values ($1, $2, $3)
        on conflict (environment, replica_id) do update
        set seen_at = greatest(release.route_replicas.seen_at, excluded.seen_at)",
        environment.as_str(),
        replica,
        now,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// For a watch that opens: makes [`try_hold_watches`] of others wait for this transaction to end.
#[tracing::instrument(name = "db.route_replica.enter", skip_all)]
pub async fn enter_watch(db: &mut PgConnection, environment: &EnvironmentId) -> sqlx::Result<()> {
    sqlx::query!(
        "select pg_advisory_xact_lock_shared(hashtextextended('release.watch ' || $1, 0))",
        environment.as_str(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Keeps watches of an environment from opening until this transaction ends, so that whoever is not written down as a
/// replica now will see what it commits. False, at once, where one is opening right now.
#[tracing::instrument(name = "db.route_replica.try_hold", skip_all)]
pub async fn try_hold_watches(db: &mut PgConnection, environment: &EnvironmentId) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select pg_try_advisory_xact_lock(hashtextextended('release.watch ' || $1, 0)) as "is_held!""#,
        environment.as_str(),
    )
    .fetch_one(db)
    .await
}

/// What a replica says it acts on; no route is named twice.
pub struct Applied {
    pub tenants: Vec<String>,
    pub components: Vec<String>,
    pub revisions: Vec<i64>,
}

/// Writes down what a replica acts on. Routes that are not there and revisions that have not been made are left out.
#[tracing::instrument(name = "db.route_applied.upsert", skip_all)]
pub async fn upsert_applied(
    db: &mut PgConnection,
    environment: &EnvironmentId,
    replica: Uuid,
    applied: &Applied,
    now: Time,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into release.routes_applied (tenant_id, component, environment, replica_id, revision, applied_at)
        select tenant_id, component, environment, $2, told.revision, $6
        from unnest($3::text[], $4::text[], $5::bigint[]) as told (tenant_id, component, revision)
        join release.routes route using (tenant_id, component)
        where route.environment = $1 and told.revision <= route.revision
        order by tenant_id, component
        on conflict (tenant_id, component, environment, replica_id) do update
        set revision = excluded.revision, applied_at = excluded.applied_at
        where release.routes_applied.revision < excluded.revision",
        environment.as_str(),
        replica,
        &applied.tenants,
        &applied.components,
        &applied.revisions,
        now,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Forgets replicas that were last seen before `before`, and what they acted on; says how many.
#[tracing::instrument(name = "db.route_replica.delete", skip_all)]
pub async fn delete_replicas(db: &mut PgConnection, before: Time, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        "delete from release.route_replicas
        where (environment, replica_id) in (
            select environment, replica_id from release.route_replicas
            where seen_at < $1 limit $2 for update skip locked
        )",
        before,
        limit,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}
