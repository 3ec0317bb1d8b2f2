//! Environments.

use chrono::TimeDelta;
use shared::id::{ComponentId, EnvironmentId, ReleaseId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;

use crate::domain::component::{Environment, EvidenceRequirement, Requirements};

/// A constraint that callers' input may break.
pub const ENVIRONMENT_KEY: &str = "environments_pkey";

struct Row {
    environment: EnvironmentId,
    display_name: String,
    promotion_order: i32,
    region: String,
    is_production: bool,
    requires_promotion: bool,
    min_bake_seconds: i64,
    required_evidence: Vec<String>,
    needs_executor: bool,
    created_at: Time,
    version: i64,
}

impl From<Row> for Environment {
    fn from(row: Row) -> Self {
        let evidence = row.required_evidence.iter().map(|text| match text.split_once('/') {
            None => EvidenceRequirement { kind: text.clone(), suite: None },
            Some((kind, suite)) => {
                EvidenceRequirement { kind: kind.to_owned(), suite: Some(suite.to_owned()) }
            }
        });
        Self {
            name: row.environment,
            display_name: row.display_name,
            promotion_order: row.promotion_order,
            region: Some(row.region).filter(|region| !region.is_empty()),
            is_production: row.is_production,
            requirements: Requirements {
                requires_promotion: row.requires_promotion,
                min_bake: TimeDelta::seconds(row.min_bake_seconds),
                evidence: evidence.collect(),
            },
            needs_executor: row.needs_executor,
            created_at: row.created_at,
            row_version: row.version,
        }
    }
}

fn evidence_texts(requirements: &Requirements) -> Vec<String> {
    let text = |EvidenceRequirement { kind, suite }: &EvidenceRequirement| match suite {
        None => kind.clone(),
        Some(suite) => format!("{kind}/{suite}"),
    };
    requirements.evidence.iter().map(text).collect()
}

#[tracing::instrument(name = "db.environment.insert", skip_all)]
pub async fn insert(db: &mut PgConnection, tenant: &TenantId, environment: &Environment) -> sqlx::Result<()> {
    let requirements = &environment.requirements;
    sqlx::query!(
        "insert into release.environments
            (tenant_id, environment, display_name, promotion_order, region, is_production, requires_promotion,
            min_bake_seconds, required_evidence, created_at, version, needs_executor)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        tenant.as_str(),
        environment.name.as_str(),
        environment.display_name,
        environment.promotion_order,
        environment.region.as_deref().unwrap_or_default(),
        environment.is_production,
        requirements.requires_promotion,
        requirements.min_bake.num_seconds(),
        &evidence_texts(requirements),
        environment.created_at,
        environment.row_version,
        environment.needs_executor,
    )
    .execute(db)
    .await?;
    Ok(())
}

#[tracing::instrument(name = "db.environment.find", skip_all)]
pub async fn find(
    db: &mut PgConnection,
    tenant: &TenantId,
    name: &EnvironmentId,
) -> sqlx::Result<Option<Environment>> {
    let row = sqlx::query_as!(
        Row,
        r#"select environment as "environment: EnvironmentId", display_name, promotion_order, region, is_production,
            requires_promotion, min_bake_seconds, required_evidence, needs_executor, created_at, version
        from release.environments
        where tenant_id = $1 and environment = $2"#,
        tenant.as_str(),
        name.as_str(),
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(Into::into))
}

/// By name, beginning after `after`.
#[tracing::instrument(name = "db.environment.list", skip_all)]
pub async fn list(
    db: &mut PgConnection,
    tenant: &TenantId,
    after: &str,
    limit: i64,
) -> sqlx::Result<Vec<Environment>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select environment as "environment: EnvironmentId", display_name, promotion_order, region, is_production,
            requires_promotion, min_bake_seconds, required_evidence, needs_executor, created_at, version
        from release.environments
        where tenant_id = $1 and environment > $2
        order by environment
        limit $3"#,
        tenant.as_str(),
        after,
        limit,
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(Into::into).collect())
}

/// Of the environments before one, in the order of promotion, that serve a component: the last, or the last ones where
/// several share a place, and since when the release has been a success there.
#[tracing::instrument(name = "db.environment.list_before", skip_all)]
pub async fn list_before(
    db: &mut PgConnection,
    tenant: &TenantId,
    environment: &Environment,
    component: &ComponentId,
    release: ReleaseId,
) -> sqlx::Result<Vec<(EnvironmentId, Option<Time>)>> {
    let rows = sqlx::query!(
        r#"with serving as (
            select environment, promotion_order
            from release.environments
            join release.routes using (tenant_id, environment)
            where tenant_id = $1 and component = $2 and stable_release_id is not null and promotion_order < $3
        )
        select environment as "environment: EnvironmentId", (
            select max(ended_at)
            from release.rollouts rollout
            where tenant_id = $1 and component = $2 and rollout.environment = serving.environment
                and release_id = $4 and state = 'SUCCEEDED'
        ) as succeeded_at
        from serving
        where promotion_order = (select max(promotion_order) from serving)
        order by environment
        limit 100"#,
        tenant.as_str(),
        component.as_str(),
        environment.promotion_order,
        release.uuid(),
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.environment, row.succeeded_at)).collect())
}

#[tracing::instrument(name = "db.environment.lock", skip_all)]
pub async fn lock(
    db: &mut PgConnection,
    tenant: &TenantId,
    name: &EnvironmentId,
) -> sqlx::Result<Option<Environment>> {
    let row = sqlx::query_as!(
        Row,
        r#"select environment as "environment: EnvironmentId", display_name, promotion_order, region, is_production,
            requires_promotion, min_bake_seconds, required_evidence, needs_executor, created_at, version
        from release.environments
        where tenant_id = $1 and environment = $2
        for no key update"#,
        tenant.as_str(),
        name.as_str(),
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(Into::into))
}

/// Writes the settings of the version before this one.
#[tracing::instrument(name = "db.environment.update", skip_all)]
pub async fn update(
    db: &mut PgConnection,
    tenant: &TenantId,
    environment: &Environment,
) -> sqlx::Result<bool> {
    let requirements = &environment.requirements;
    let done = sqlx::query!(
        "update release.environments
        set display_name = $3, promotion_order = $4, region = $5, is_production = $6, requires_promotion = $7,
            min_bake_seconds = $8, required_evidence = $9, version = $10, needs_executor = $11
        where tenant_id = $1 and environment = $2 and version + 1 = $10",
        tenant.as_str(),
        environment.name.as_str(),
        environment.display_name,
        environment.promotion_order,
        environment.region.as_deref().unwrap_or_default(),
        environment.is_production,
        requirements.requires_promotion,
        requirements.min_bake.num_seconds(),
        &evidence_texts(requirements),
        environment.row_version,
        environment.needs_executor,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}
