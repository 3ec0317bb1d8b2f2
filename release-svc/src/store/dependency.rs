//! What components need of each other.

use std::collections::BTreeMap;

use shared::id::{ComponentId, EnvironmentId, ReleaseId, RolloutId, TenantId};
use sqlx::PgConnection;
use uuid::Uuid;

use super::corrupt;
use crate::domain::dependency::{Came, Dependency, Edge, Served, Serving};
use crate::domain::version::Version;

/// Most dependencies that a tenant has.
pub const EDGES_MAX: i64 = 10_000;
/// Most routes that are looked at.
const ROUTES_MAX: i64 = 100_000;

/// Constraints that callers' input may break.
pub const DEPENDS_ON_KEY: &str = "dependencies_depends_on_fkey";
pub const DEPENDENCY_ENVIRONMENT_KEY: &str = "dependencies_environment_fkey";

struct Row {
    component: ComponentId,
    depends_on: ComponentId,
    environment: Option<EnvironmentId>,
    version_constraint: String,
}

impl TryFrom<Row> for Edge {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let constraint = row.version_constraint.parse();
        let constraint =
            constraint.map_err(|_| corrupt("dependencies", "version_constraint", &row.component))?;
        let needs = Dependency { on: row.depends_on, environment: row.environment, constraint };
        Ok(Self { component: row.component, needs })
    }
}

/// What the named components need, in order.
#[tracing::instrument(name = "db.dependency.list_of", skip_all)]
pub async fn list_of(
    db: &mut PgConnection,
    tenant: &TenantId,
    components: &[String],
    limit: i64,
) -> sqlx::Result<Vec<Edge>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select component as "component: ComponentId", depends_on as "depends_on: ComponentId",
            environment as "environment: EnvironmentId", version_constraint
        from release.dependencies
        where tenant_id = $1 and component = any($2)
        order by component collate "C", depends_on collate "C", environment collate "C" nulls first
        limit $3"#,
        tenant.as_str(),
        components,
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// What the named components need, and what others need of them.
#[tracing::instrument(name = "db.dependency.list_beside", skip_all)]
pub async fn list_beside(
    db: &mut PgConnection,
    tenant: &TenantId,
    components: &[String],
    limit: i64,
) -> sqlx::Result<Vec<Edge>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select component as "component: ComponentId", depends_on as "depends_on: ComponentId",
            environment as "environment: EnvironmentId", version_constraint
        from release.dependencies
        where tenant_id = $1 and (component = any($2) or depends_on = any($2))
        order by component collate "C", depends_on collate "C", environment collate "C" nulls first
        limit $3"#,
        tenant.as_str(),
        components,
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// What leads to a component: from its dependants, theirs, and so on.
#[tracing::instrument(name = "db.dependency.list_leading_to", skip_all)]
pub async fn list_leading_to(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: &ComponentId,
    limit: i64,
) -> sqlx::Result<Vec<Edge>> {
    let rows = sqlx::query_as!(
        Row,
        r#"with recursive reached as (
            select $2::text as component
            union
            select dependency.component
            from release.dependencies dependency
            join reached on reached.component = dependency.depends_on
            where dependency.tenant_id = $1
        )
        select component as "component: ComponentId", depends_on as "depends_on: ComponentId",
            environment as "environment: EnvironmentId", version_constraint
        from release.dependencies
        where tenant_id = $1 and depends_on in (select component from reached)
        order by component collate "C", depends_on collate "C", environment collate "C" nulls first
        limit $3"#,
        tenant.as_str(),
        component.as_str(),
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// All of a tenant's.
#[tracing::instrument(name = "db.dependency.list", skip_all)]
pub async fn list(db: &mut PgConnection, tenant: &TenantId, limit: i64) -> sqlx::Result<Vec<Edge>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select component as "component: ComponentId", depends_on as "depends_on: ComponentId",
            environment as "environment: EnvironmentId", version_constraint
        from release.dependencies
        where tenant_id = $1
        order by component collate "C", depends_on collate "C", environment collate "C" nulls first
        limit $2"#,
        tenant.as_str(),
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Makes whoever else changes dependencies of the tenant wait until this transaction ends.
#[tracing::instrument(name = "db.dependency.lock_all", skip_all)]
pub async fn lock_all(db: &mut PgConnection, tenant: &TenantId) -> sqlx::Result<()> {
    sqlx::query!(
        "select pg_advisory_xact_lock(hashtextextended('release.dependency ' || $1, 0))",
        tenant.as_str(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Locks the component of a release or rollout and what it needs, in the order of their names; says which they are.
#[tracing::instrument(name = "db.dependency.lock_needed", skip_all)]
pub async fn lock_needed(
    db: &mut PgConnection,
    tenant: &TenantId,
    release_or_rollout: Uuid,
) -> sqlx::Result<Vec<ComponentId>> {
    sqlx::query_scalar!(
        r#"with own as (
            select component from release.releases where tenant_id = $1 and release_id = $2
            union all
            select component from release.rollouts where tenant_id = $1 and rollout_id = $2
        )
        select component as "component: ComponentId"
        from release.components
        where tenant_id = $1 and component in (
            select component from own
            union all
            select depends_on from release.dependencies where tenant_id = $1 and component = (select component from own)
        )
        order by component collate "C"
        limit $3
        for no key update"#,
        tenant.as_str(),
        release_or_rollout,
        EDGES_MAX,
    )
    .fetch_all(db)
    .await
}

/// What environments serve of the named components, or one of them does.
#[tracing::instrument(name = "db.dependency.serving", skip_all)]
pub async fn serving(
    db: &mut PgConnection,
    tenant: &TenantId,
    components: &[String],
    environment: Option<&EnvironmentId>,
) -> sqlx::Result<BTreeMap<EnvironmentId, Serving>> {
    let rows = sqlx::query!(
        r#"select component as "component: ComponentId", environment as "environment: EnvironmentId", stable_semver,
            case when exposure_bps > 0 then rollout_semver end as canary_semver
        from release.routes
        where tenant_id = $1 and component = any($2) and ($3::text is null or environment = $3)
            and (stable_semver is not null or exposure_bps > 0)
        limit $4"#,
        tenant.as_str(),
        components,
        environment.map(EnvironmentId::as_str),
        ROUTES_MAX,
    )
    .fetch_all(db)
    .await?;
    let mut serving: BTreeMap<_, Serving> = BTreeMap::new();
    for row in rows {
        let broken = |column| corrupt("routes", column, &row.component);
        let version = |text: Option<String>, column| {
            text.map(|text| text.parse().map_err(|_| broken(column))).transpose()
        };
        let served = Served {
            stable: version(row.stable_semver, "stable_semver")?,
            canary: version(row.canary_semver, "rollout_semver")?,
        };
        serving.entry(row.environment).or_default().insert(row.component, served);
    }
    Ok(serving)
}

/// Of the named components, those that serve everyone in an environment by a rollout that began after this one and replaced
/// something.
#[tracing::instrument(name = "db.dependency.came_since", skip_all)]
pub async fn came_since(
    db: &mut PgConnection,
    tenant: &TenantId,
    components: &[String],
    environment: &EnvironmentId,
    after: RolloutId,
) -> sqlx::Result<BTreeMap<ComponentId, Came>> {
    let rows = sqlx::query!(
        r#"select distinct on (route.component) route.component as "component: ComponentId",
            rollout.rollout_id as "rollout_id: RolloutId", previous_semver as "previous_semver!"
        from release.routes route
        join release.rollouts rollout using (tenant_id, component, environment)
        where tenant_id = $1 and component = any($2) and environment = $3
            and rollout.release_id = route.stable_release_id and rollout.mode = 'FORWARD' and rollout.state = 'SUCCEEDED'
            and previous_semver is not null
            and (rollout.started_at, rollout.seq) > (
                select started_at, seq from release.rollouts where tenant_id = $1 and rollout_id = $4
            )
        order by route.component, rollout.seq desc
        limit cardinality($2)"#,
        tenant.as_str(),
        components,
        environment.as_str(),
        after.uuid(),
    )
    .fetch_all(db)
    .await?;
    let came = rows.into_iter().map(|row| {
        let broken = |_| corrupt("rollouts", "previous_semver", &row.rollout_id);
        Ok((
            row.component,
            Came { rollout: row.rollout_id, before: row.previous_semver.parse().map_err(broken)? },
        ))
    });
    came.collect()
}

/// Components and versions of releases; those that are not there are left out.
#[tracing::instrument(name = "db.dependency.list_planned", skip_all)]
pub async fn list_planned(
    db: &mut PgConnection,
    tenant: &TenantId,
    releases: &[Uuid],
) -> sqlx::Result<Vec<(ReleaseId, ComponentId, Version)>> {
    let rows = sqlx::query!(
        r#"select release_id as "release_id: ReleaseId", component as "component: ComponentId", semver
        from release.releases
        where tenant_id = $1 and release_id = any($2)
        limit cardinality($2)"#,
        tenant.as_str(),
        releases,
    )
    .fetch_all(db)
    .await?;
    let planned = rows.into_iter().map(|row| {
        let version = row.semver.parse().map_err(|_| corrupt("releases", "semver", &row.release_id))?;
        Ok((row.release_id, row.component, version))
    });
    planned.collect()
}

/// Forgets what a component needs.
#[tracing::instrument(name = "db.dependency.delete", skip_all)]
pub async fn delete(db: &mut PgConnection, tenant: &TenantId, component: &ComponentId) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from release.dependencies where tenant_id = $1 and component = $2",
        tenant.as_str(),
        component.as_str(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Writes what a component needs; nothing of it is there.
#[tracing::instrument(name = "db.dependency.insert", skip_all)]
pub async fn insert(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: &ComponentId,
    dependencies: &[Dependency],
) -> sqlx::Result<()> {
    let on: Vec<_> = dependencies.iter().map(|it| it.on.to_string()).collect();
    let environments: Vec<_> = dependencies
        .iter()
        .map(|it| it.environment.as_ref().map(ToString::to_string))
        .collect();
    let constraints: Vec<_> = dependencies.iter().map(|it| it.constraint.to_string()).collect();
    sqlx::query!(
        "insert into release.dependencies (tenant_id, component, depends_on, environment, version_constraint)
        select $1, $2, * from unnest($3::text[], $4::text[], $5::text[])",
        tenant.as_str(),
        component.as_str(),
        &on,
        &environments as &[Option<String>],
        &constraints,
    )
    .execute(db)
    .await?;
    Ok(())
}
