//! Components.

use shared::id::{ApprovalPolicyId, ComponentId, ReleaseId, RolloutId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;

use super::corrupt;
use crate::domain::component::{Component, DataScope, Kind, Tier};

/// Constraints that callers' input may break.
pub const COMPONENT_KEY: &str = "components_pkey";
pub const COMPONENT_POLICY_KEY: &str = "components_approval_policy_fkey";

struct Row {
    component: ComponentId,
    display_name: String,
    owner_groups: Vec<String>,
    business_owner_groups: Vec<String>,
    approval_policy: ApprovalPolicyId,
    tier: String,
    kind: String,
    data_scopes: Vec<String>,
    created_at: Time,
    version: i64,
}

impl TryFrom<Row> for Component {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let broken = |column| corrupt("components", column, &row.component);
        let scopes = row.data_scopes.iter().map(|name| DataScope::from_name(name));
        Ok(Self {
            tier: Tier::from_name(&row.tier).ok_or_else(|| broken("tier"))?,
            kind: Kind::from_name(&row.kind).ok_or_else(|| broken("kind"))?,
            data_scopes: scopes.collect::<Option<_>>().ok_or_else(|| broken("data_scopes"))?,
            name: row.component,
            display_name: row.display_name,
            owner_groups: row.owner_groups,
            business_owner_groups: row.business_owner_groups,
            approval_policy: row.approval_policy,
            created_at: row.created_at,
            row_version: row.version,
        })
    }
}

fn scope_names(component: &Component) -> Vec<String> {
    component.data_scopes.iter().map(|scope| scope.name().to_owned()).collect()
}

#[tracing::instrument(name = "db.component.insert", skip_all)]
pub async fn insert(db: &mut PgConnection, tenant: &TenantId, component: &Component) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into release.components
            (tenant_id, component, display_name, owner_groups, business_owner_groups, approval_policy, tier, kind,
            data_scopes, created_at, version)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        tenant.as_str(),
        component.name.as_str(),
        component.display_name,
        &component.owner_groups,
        &component.business_owner_groups,
        component.approval_policy.as_str(),
        component.tier.name(),
        component.kind.name(),
        &scope_names(component),
        component.created_at,
        component.row_version,
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
    let row = sqlx::query_as!(
        Row,
        r#"select component as "component: ComponentId", display_name, owner_groups, business_owner_groups,
            approval_policy as "approval_policy: ApprovalPolicyId", tier, kind, data_scopes, created_at, version
        from release.components
        where tenant_id = $1 and component = $2"#,
        tenant.as_str(),
        name.as_str(),
    )
    .fetch_optional(db)
    .await?;
    row.map(TryInto::try_into).transpose()
}

#[tracing::instrument(name = "db.component.lock", skip_all)]
pub async fn lock(
    db: &mut PgConnection,
    tenant: &TenantId,
    name: &ComponentId,
) -> sqlx::Result<Option<Component>> {
    let row = sqlx::query_as!(
        Row,
        r#"select component as "component: ComponentId", display_name, owner_groups, business_owner_groups,
            approval_policy as "approval_policy: ApprovalPolicyId", tier, kind, data_scopes, created_at, version
        from release.components
        where tenant_id = $1 and component = $2
        for no key update"#,
        tenant.as_str(),
        name.as_str(),
    )
    .fetch_optional(db)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// Locks the named components, in the order of their names, which everybody keeps who locks more than one. Those that
/// are not there are left out.
#[tracing::instrument(name = "db.component.lock_named", skip_all)]
pub async fn lock_named(
    db: &mut PgConnection,
    tenant: &TenantId,
    names: &[String],
) -> sqlx::Result<Vec<Component>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select component as "component: ComponentId", display_name, owner_groups, business_owner_groups,
            approval_policy as "approval_policy: ApprovalPolicyId", tier, kind, data_scopes, created_at, version
        from release.components
        where tenant_id = $1 and component = any($2)
        order by component collate "C"
        limit cardinality($2)
        for no key update"#,
        tenant.as_str(),
        names,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// As [`lock_named`], whatever else is in their rows.
#[tracing::instrument(name = "db.component.lock_names", skip_all)]
pub async fn lock_names(db: &mut PgConnection, tenant: &TenantId, names: &[String]) -> sqlx::Result<()> {
    sqlx::query!(
        r#"select component
        from release.components
        where tenant_id = $1 and component = any($2)
        order by component collate "C"
        limit cardinality($2)
        for no key update"#,
        tenant.as_str(),
        names,
    )
    .fetch_all(db)
    .await
    .map(drop)
}

/// Locks the component that the release is of. None where there is no such release.
#[tracing::instrument(name = "db.component.lock_of_release", skip_all)]
pub async fn lock_of_release(
    db: &mut PgConnection,
    tenant: &TenantId,
    release: ReleaseId,
) -> sqlx::Result<Option<Component>> {
    let row = sqlx::query_as!(
        Row,
        r#"select component as "component: ComponentId", display_name, owner_groups, business_owner_groups,
            approval_policy as "approval_policy: ApprovalPolicyId", tier, kind, data_scopes, created_at, version
        from release.components
        where tenant_id = $1
            and component = (select component from release.releases where tenant_id = $1 and release_id = $2)
        for no key update"#,
        tenant.as_str(),
        release.uuid(),
    )
    .fetch_optional(db)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// Locks the component that the rollout is of. None where there is no such rollout.
#[tracing::instrument(name = "db.component.lock_of_rollout", skip_all)]
pub async fn lock_of_rollout(
    db: &mut PgConnection,
    tenant: &TenantId,
    rollout: RolloutId,
) -> sqlx::Result<Option<Component>> {
    let row = sqlx::query_as!(
        Row,
        r#"select component as "component: ComponentId", display_name, owner_groups, business_owner_groups,
            approval_policy as "approval_policy: ApprovalPolicyId", tier, kind, data_scopes, created_at, version
        from release.components
        where tenant_id = $1
            and component = (select component from release.rollouts where tenant_id = $1 and rollout_id = $2)
        for no key update"#,
        tenant.as_str(),
        rollout.uuid(),
    )
    .fetch_optional(db)
    .await?;
    row.map(TryInto::try_into).transpose()
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
    let rows = sqlx::query_as!(
        Row,
        r#"select component as "component: ComponentId", display_name, owner_groups, business_owner_groups,
            approval_policy as "approval_policy: ApprovalPolicyId", tier, kind, data_scopes, created_at, version
        from release.components
        where tenant_id = $1 and component > $2
        order by component
        limit $3"#,
        tenant.as_str(),
        after,
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Writes the settings of the version before this one.
#[tracing::instrument(name = "db.component.update", skip_all)]
pub async fn update(db: &mut PgConnection, tenant: &TenantId, component: &Component) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update release.components
        set display_name = $3, owner_groups = $4, business_owner_groups = $5, approval_policy = $6, tier = $7,
            kind = $8, data_scopes = $9, version = $10
        where tenant_id = $1 and component = $2 and version + 1 = $10",
        tenant.as_str(),
        component.name.as_str(),
        component.display_name,
        &component.owner_groups,
        &component.business_owner_groups,
        component.approval_policy.as_str(),
        component.tier.name(),
        component.kind.name(),
        &scope_names(component),
        component.row_version,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}
