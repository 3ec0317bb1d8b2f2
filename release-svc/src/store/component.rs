//! The catalogue's rows: components and environments.

use shared::id::{ApprovalPolicyId, ComponentId, EnvironmentId, ReleaseId, RolloutId, TenantId};
use sqlx::PgConnection;

use crate::domain::component::{Component, Environment};

/// Constraints that callers' input may break.
pub const COMPONENT_KEY: &str = "components_pkey";
pub const COMPONENT_POLICY_KEY: &str = "components_approval_policy_fkey";
pub const ENVIRONMENT_KEY: &str = "environments_pkey";

#[tracing::instrument(name = "db.component.insert", skip_all)]
pub async fn insert(db: &mut PgConnection, tenant: &TenantId, component: &Component) -> sqlx::Result<()> {
    let Component { name, display_name, owner_groups, approval_policy, created_at, row_version } = component;
    sqlx::query!(
        "insert into release.components
            (tenant_id, component, display_name, owner_groups, approval_policy, created_at, version)
        values ($1, $2, $3, $4, $5, $6, $7)",
        tenant.as_str(),
        name.as_str(),
        display_name,
        owner_groups,
        approval_policy.as_str(),
        created_at,
        row_version,
    )
    .execute(db)
    .await?;
    Ok(())
}

#[tracing::instrument(name = "db.component.find", skip_all)]
pub async fn find(
    db: &mut PgConnection,
    tenant: &TenantId,
    name: &ComponentId,
) -> sqlx::Result<Option<Component>> {
    sqlx::query_as!(
        Component,
        r#"select component as "name: ComponentId", display_name, owner_groups,
            approval_policy as "approval_policy: ApprovalPolicyId", created_at, version as row_version
        from release.components
        where tenant_id = $1 and component = $2"#,
        tenant.as_str(),
        name.as_str(),
    )
    .fetch_optional(db)
    .await
}

#[tracing::instrument(name = "db.component.lock", skip_all)]
pub async fn lock(
    db: &mut PgConnection,
    tenant: &TenantId,
    name: &ComponentId,
) -> sqlx::Result<Option<Component>> {
    sqlx::query_as!(
        Component,
        r#"select component as "name: ComponentId", display_name, owner_groups,
            approval_policy as "approval_policy: ApprovalPolicyId", created_at, version as row_version
        from release.components
        where tenant_id = $1 and component = $2
        for no key update"#,
        tenant.as_str(),
        name.as_str(),
    )
    .fetch_optional(db)
    .await
}

/// Locks the component that the release is of. None where there is no such release.
#[tracing::instrument(name = "db.component.lock_of_release", skip_all)]
pub async fn lock_of_release(
    db: &mut PgConnection,
    tenant: &TenantId,
    release: ReleaseId,
) -> sqlx::Result<Option<Component>> {
    sqlx::query_as!(
        Component,
        r#"select component as "name: ComponentId", display_name, owner_groups,
            approval_policy as "approval_policy: ApprovalPolicyId", created_at, version as row_version
        from release.components
        where tenant_id = $1
            and component = (select component from release.releases where tenant_id = $1 and release_id = $2)
        for no key update"#,
        tenant.as_str(),
        release.uuid(),
    )
    .fetch_optional(db)
    .await
}

/// Locks the component that the rollout is of. None where there is no such rollout.
#[tracing::instrument(name = "db.component.lock_of_rollout", skip_all)]
pub async fn lock_of_rollout(
    db: &mut PgConnection,
    tenant: &TenantId,
    rollout: RolloutId,
) -> sqlx::Result<Option<Component>> {
    sqlx::query_as!(
        Component,
        r#"select component as "name: ComponentId", display_name, owner_groups,
            approval_policy as "approval_policy: ApprovalPolicyId", created_at, version as row_version
        from release.components
        where tenant_id = $1
            and component = (select component from release.rollouts where tenant_id = $1 and rollout_id = $2)
        for no key update"#,
        tenant.as_str(),
        rollout.uuid(),
    )
    .fetch_optional(db)
    .await
}

/// Locks the component that the rollout is of, without waiting; false where another transaction holds the lock or there is
/// no such rollout.
#[tracing::instrument(name = "db.component.try_lock_of_rollout", skip_all)]
pub async fn try_lock_of_rollout(
    db: &mut PgConnection,
    tenant: &TenantId,
    rollout: RolloutId,
) -> sqlx::Result<bool> {
    let row = sqlx::query!(
        "select component
        from release.components
        where tenant_id = $1
            and component = (select component from release.rollouts where tenant_id = $1 and rollout_id = $2)
        for no key update skip locked",
        tenant.as_str(),
        rollout.uuid(),
    )
    .fetch_optional(db)
    .await?;
    Ok(row.is_some())
}

/// By name, beginning after `after`.
#[tracing::instrument(name = "db.component.list", skip_all)]
pub async fn list(
    db: &mut PgConnection,
    tenant: &TenantId,
    after: &str,
    limit: i64,
) -> sqlx::Result<Vec<Component>> {
    sqlx::query_as!(
        Component,
        r#"select component as "name: ComponentId", display_name, owner_groups,
            approval_policy as "approval_policy: ApprovalPolicyId", created_at, version as row_version
        from release.components
        where tenant_id = $1 and component > $2
        order by component
        limit $3"#,
        tenant.as_str(),
        after,
        limit,
    )
    .fetch_all(db)
    .await
}

/// Writes the settings of the version before this one.
#[tracing::instrument(name = "db.component.update", skip_all)]
pub async fn update(db: &mut PgConnection, tenant: &TenantId, component: &Component) -> sqlx::Result<bool> {
    let Component { name, display_name, owner_groups, approval_policy, created_at: _, row_version } =
        component;
    let done = sqlx::query!(
        "update release.components
        set display_name = $3, owner_groups = $4, approval_policy = $5, version = $6
        where tenant_id = $1 and component = $2 and version + 1 = $6",
        tenant.as_str(),
        name.as_str(),
        display_name,
        owner_groups,
        approval_policy.as_str(),
        row_version,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

#[tracing::instrument(name = "db.environment.insert", skip_all)]
pub async fn insert_environment(
    db: &mut PgConnection,
    tenant: &TenantId,
    environment: &Environment,
) -> sqlx::Result<()> {
    let Environment { name, display_name, promotion_order, created_at, row_version } = environment;
    sqlx::query!(
        "insert into release.environments
            (tenant_id, environment, display_name, promotion_order, created_at, version)
        values ($1, $2, $3, $4, $5, $6)",
        tenant.as_str(),
        name.as_str(),
        display_name,
        promotion_order,
        created_at,
        row_version,
    )
    .execute(db)
    .await?;
    Ok(())
}

#[tracing::instrument(name = "db.environment.find", skip_all)]
pub async fn find_environment(
    db: &mut PgConnection,
    tenant: &TenantId,
    name: &EnvironmentId,
) -> sqlx::Result<Option<Environment>> {
    sqlx::query_as!(
        Environment,
        r#"select environment as "name: EnvironmentId", display_name, promotion_order, created_at,
            version as row_version
        from release.environments
        where tenant_id = $1 and environment = $2"#,
        tenant.as_str(),
        name.as_str(),
    )
    .fetch_optional(db)
    .await
}

/// By name, beginning after `after`.
#[tracing::instrument(name = "db.environment.list", skip_all)]
pub async fn list_environments(
    db: &mut PgConnection,
    tenant: &TenantId,
    after: &str,
    limit: i64,
) -> sqlx::Result<Vec<Environment>> {
    sqlx::query_as!(
        Environment,
        r#"select environment as "name: EnvironmentId", display_name, promotion_order, created_at,
            version as row_version
        from release.environments
        where tenant_id = $1 and environment > $2
        order by environment
        limit $3"#,
        tenant.as_str(),
        after,
        limit,
    )
    .fetch_all(db)
    .await
}
