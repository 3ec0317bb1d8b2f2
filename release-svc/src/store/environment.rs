//! Environments.

use chrono::TimeDelta;
use shared::id::{ComponentId, EnvironmentId, ReleaseId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;

use super::corrupt;
use crate::domain::component::{Environment, Requirements, Stay};
use crate::domain::evidence::{Kind, Requirement};

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

impl TryFrom<Row> for Environment {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let evidence = row.required_evidence.iter().map(|text| {
            let (kind, suite) = text.split_once('/').unwrap_or((text, ""));
            let kind = Kind::from_name(kind)
                .ok_or_else(|| corrupt("environments", "required_evidence", &row.environment))?;
            Ok(Requirement { kind, suite: suite.to_owned() })
        });
        let evidence = evidence.collect::<sqlx::Result<_>>()?;
        Ok(Self {
            name: row.environment,
            display_name: row.display_name,
            promotion_order: row.promotion_order,
            region: Some(row.region).filter(|region| !region.is_empty()),
            is_production: row.is_production,
            requirements: Requirements {
                requires_promotion: row.requires_promotion,
                min_bake: TimeDelta::seconds(row.min_bake_seconds),
                evidence,
            },
            needs_executor: row.needs_executor,
            created_at: row.created_at,
            row_version: row.version,
        })
    }
}

fn evidence_texts(requirements: &Requirements) -> Vec<String> {
    let text = |Requirement { kind, suite }: &Requirement| match suite.as_str() {
        "" => kind.name().to_owned(),
        suite => format!("{}/{suite}", kind.name()),
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
    row.map(TryInto::try_into).transpose()
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
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Whether some environment after this place in the order asks for promotion from the one before it.
#[tracing::instrument(name = "db.environment.is_before_promotion", skip_all)]
pub async fn is_before_promotion(
    db: &mut PgConnection,
    tenant: &TenantId,
    promotion_order: i32,
) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (
            select
            from release.environments
            where tenant_id = $1 and promotion_order > $2 and requires_promotion
        ) as "is_before!""#,
        tenant.as_str(),
        promotion_order,
    )
    .fetch_one(db)
    .await
}

/// Of the environments before one, in the order of promotion, that serve a component: the last, or the last ones where
/// several share a place, and how the release served everyone there, if it did.
#[tracing::instrument(name = "db.environment.list_before", skip_all)]
pub async fn list_before(
    db: &mut PgConnection,
    tenant: &TenantId,
    environment: &Environment,
    component: &ComponentId,
    release: ReleaseId,
) -> sqlx::Result<Vec<(EnvironmentId, Option<Stay>)>> {
    let rows = sqlx::query!(
        r#"with serving as (
            select environment, promotion_order
            from release.environments
            join release.routes using (tenant_id, environment)
            where tenant_id = $1 and component = $2 and stable_release_id is not null and promotion_order < $3
        )
        select serving.environment as "environment: EnvironmentId", stay.ended_at as "since?",
            next.ended_at as "replaced_at?", next.semver as "replaced_by?"
        from serving
        left join lateral (
            select seq, ended_at
            from release.rollouts
            where tenant_id = $1 and component = $2 and environment = serving.environment and release_id = $4
                and state = 'SUCCEEDED'
            order by seq desc
            limit 1
        ) stay on true
        left join lateral (
            select ended_at, semver
            from release.rollouts
            where tenant_id = $1 and component = $2 and environment = serving.environment and seq > stay.seq
                and state = 'SUCCEEDED'
            order by seq
            limit 1
        ) next on true
        where promotion_order = (select max(promotion_order) from serving)
        order by serving.environment
        limit 100"#,
        tenant.as_str(),
        component.as_str(),
        environment.promotion_order,
        release.uuid(),
    )
    .fetch_all(db)
    .await?;
    let stays = rows.into_iter().map(|row| {
        let broken = |_| corrupt("rollouts", "semver", &row.environment);
        let version = row.replaced_by.map(|text| text.parse().map_err(broken)).transpose()?;
        let stay = row.since.map(|since| Stay { since, replaced: version.zip(row.replaced_at) });
        Ok((row.environment, stay))
    });
    stays.collect()
}

/// Keeps the environment as it is until the end of the transaction.
#[tracing::instrument(name = "db.environment.share", skip_all)]
pub async fn share(
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
        for share"#,
        tenant.as_str(),
        name.as_str(),
    )
    .fetch_optional(db)
    .await?;
    row.map(TryInto::try_into).transpose()
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
    row.map(TryInto::try_into).transpose()
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
