//! `release.observed_versions`: what executors found running, and what should run.

use shared::id::{ComponentId, EnvironmentId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;

/// A component somewhere.
pub struct Place<'a> {
    pub component: &'a ComponentId,
    pub environment: &'a EnvironmentId,
}

/// Versions that must run, as visits are put on them; and those that may beside them, as they are being deployed, are what a
/// rollback leads to, or wait to be retired.
#[tracing::instrument(name = "db.observed.list_expected", skip_all)]
pub async fn list_expected(
    db: &mut PgConnection,
    tenant: &TenantId,
    place: &Place<'_>,
) -> sqlx::Result<(Vec<String>, Vec<String>)> {
    let rows = sqlx::query!(
        r#"with stable as (
            select stable_release_id, stable_semver, rollout_semver, exposure_bps
            from release.routes
            where tenant_id = $1 and component = $2 and environment = $3
        ), moving as (
            select release_id, semver, previous_semver, state
            from release.rollouts
            where tenant_id = $1 and component = $2 and environment = $3 and (
                state in ('RUNNING', 'PAUSED', 'DRAINING', 'ROLLING_BACK', 'ROLLBACK_FAILED')
                or state = 'SUCCEEDED' and release_id = (select stable_release_id from stable)
            )
        )
        select semver as "semver!", bool_or(is_wanted) as "is_wanted!"
        from (
            select stable_semver, true from stable
            union all
            select rollout_semver, exposure_bps > 0 from stable
            union all
            select semver, false from moving
            union all
            select previous_semver, false from moving
            union all
            select release.semver, false
            from release.tasks task
            join release.releases release using (tenant_id, release_id)
            where tenant_id = $1 and task.component = $2 and environment = $3 and task.state in ('QUEUED', 'LEASED')
        ) as expected (semver, is_wanted)
        where semver is not null
        group by semver
        order by semver
        limit 100"#,
        tenant.as_str(),
        place.component.as_str(),
        place.environment.as_str(),
    )
    .fetch_all(db)
    .await?;
    let (mut wanted, mut tolerated) = (Vec::new(), Vec::new());
    for row in rows {
        if row.is_wanted { wanted.push(row.semver) } else { tolerated.push(row.semver) }
    }
    Ok((wanted, tolerated))
}

/// Takes in what was found; says whether it is something else than before.
#[tracing::instrument(name = "db.observed.upsert", skip_all)]
pub async fn upsert(
    db: &mut PgConnection,
    tenant: &TenantId,
    place: &Place<'_>,
    (versions, is_drift): (&[String], bool),
    (observer, now): (&str, Time),
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "insert into release.observed_versions as known
            (tenant_id, component, environment, versions, is_drift, observer, observed_at)
        values ($1, $2, $3, $4, $5, $6, $7)
        on conflict (tenant_id, component, environment) do update
        set versions = excluded.versions, is_drift = excluded.is_drift, observer = excluded.observer,
            observed_at = excluded.observed_at
        where (known.versions, known.is_drift) is distinct from (excluded.versions, excluded.is_drift)",
        tenant.as_str(),
        place.component.as_str(),
        place.environment.as_str(),
        versions,
        is_drift,
        observer,
        now,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}
