//! Components that were rolled back. Whoever writes or goes by one has locked its component.

use shared::id::{ComponentId, EnvironmentId, RolloutId, TenantId};
use sqlx::PgConnection;

use crate::domain::hold::Hold;

/// Holds from now on, in the place of what an earlier rollback left.
#[tracing::instrument(name = "db.hold.upsert", skip_all)]
pub async fn upsert(db: &mut PgConnection, tenant: &TenantId, hold: &Hold) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into release.holds (tenant_id, component, environment, rollout_id, semver, since)
        values ($1, $2, $3, $4, $5, $6)
        on conflict (tenant_id, component, environment) do update
        set rollout_id = excluded.rollout_id, semver = excluded.semver, since = excluded.since",
        tenant.as_str(),
        hold.component.as_str(),
        hold.environment.as_str(),
        hold.rollout.uuid(),
        hold.version,
        hold.since,
    )
    .execute(db)
    .await
    .map(drop)
}

#[tracing::instrument(name = "db.hold.find", skip_all)]
pub async fn find(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: &ComponentId,
    environment: &EnvironmentId,
) -> sqlx::Result<Option<Hold>> {
    sqlx::query_as!(
        Hold,
        r#"select component as "component: ComponentId", environment as "environment: EnvironmentId",
            rollout_id as "rollout: RolloutId", semver as version, since
        from release.holds
        where tenant_id = $1 and component = $2 and environment = $3"#,
        tenant.as_str(),
        component.as_str(),
        environment.as_str(),
    )
    .fetch_optional(db)
    .await
}

/// Lifts it.
#[tracing::instrument(name = "db.hold.delete", skip_all)]
pub async fn delete(db: &mut PgConnection, tenant: &TenantId, hold: &Hold) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from release.holds where tenant_id = $1 and component = $2 and environment = $3",
        tenant.as_str(),
        hold.component.as_str(),
        hold.environment.as_str(),
    )
    .execute(db)
    .await
    .map(drop)
}
