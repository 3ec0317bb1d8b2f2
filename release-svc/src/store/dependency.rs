//! What components need of each other.

use shared::id::{ComponentId, EnvironmentId, TenantId};
use sqlx::PgConnection;

use super::corrupt;
use crate::domain::dependency::{Dependency, Edge};

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
