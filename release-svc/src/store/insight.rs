//! Events as facts about a component's delivery. They are read by indexes of their own, the newest first and never more
//! of either sort, live and imported, than whoever asks takes in.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use shared::id::{ComponentId, EnvironmentId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;

use super::{corrupt, window};
use crate::domain::insight::{Fact, History, stamp};
use crate::domain::window::{OVERRIDE_MAX, Past, Told};

struct Row {
    event_id: i64,
    kind: String,
    occurred_at: Time,
    data: String,
}

impl Row {
    fn into_fact(self) -> sqlx::Result<Option<(Time, Fact)>> {
        let Self { event_id, kind, occurred_at, data } = self;
        serde_json::from_str(&data)
            .and_then(|data| Fact::read(&kind, occurred_at, data))
            .map_err(|_| corrupt("events", "data", &event_id))
    }

    fn into_told(self) -> sqlx::Result<Option<(Time, Told)>> {
        let Self { event_id, kind, occurred_at, data } = self;
        let told = serde_json::from_str(&data).and_then(|data| Told::read(&kind, &data));
        let told = told.map_err(|_| corrupt("events", "data", &event_id))?;
        Ok(told.map(|told| (occurred_at, told)))
    }
}

/// What happened to a component from an instant on in these environments, or, where that is too much, from a later
/// instant, which is the second of the answer.
#[tracing::instrument(name = "db.insight.history", skip_all)]
pub async fn history(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: &ComponentId,
    environments: &BTreeSet<EnvironmentId>,
    since: Time,
    limit: i64,
) -> sqlx::Result<(History, Time)> {
    let live = live(&mut *db, tenant, component, since, limit).await?;
    let imported = imported(db, tenant, component, since, limit).await?;
    let mut whole_since = since;
    let mut facts = Vec::with_capacity(live.len() + imported.len());
    for rows in [live, imported] {
        let is_cut = i64::try_from(rows.len()).unwrap_or(limit) >= limit;
        // The oldest come last in the answer, and belong first here.
        let read: Vec<_> = rows
            .into_iter()
            .rev()
            .filter_map(|row| row.into_fact().transpose())
            .collect::<sqlx::Result<_>>()?;
        if let Some((oldest, _)) = read.first().filter(|_| is_cut) {
            // Of that instant there may be more.
            whole_since = whole_since.max(*oldest + TimeDelta::microseconds(1));
        }
        facts.extend(read);
    }
    Ok((History::of(facts, environments), whole_since))
}

async fn live(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: &ComponentId,
    since: Time,
    limit: i64,
) -> sqlx::Result<Vec<Row>> {
    sqlx::query_as!(
        Row,
        "select event_id, kind, occurred_at, data
        from release.events
        where tenant_id = $1 and data::jsonb ->> 'component' = $2 and occurred_at >= $3
            and kind in ('release.approval_lapsed', 'release.approved', 'release.cancelled', 'release.rejected',
                'release.revised', 'release.submitted', 'release.superseded', 'rollout.advanced', 'rollout.exposed', 'rollout.rollback_started',
                'rollout.rolled_back', 'rollout.started', 'rollout.succeeded')
        order by occurred_at desc, event_id desc
        limit $4",
        tenant.as_str(),
        component.as_str(),
        since,
        limit,
    )
    .fetch_all(db)
    .await
}

async fn imported(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: &ComponentId,
    since: Time,
    limit: i64,
) -> sqlx::Result<Vec<Row>> {
    sqlx::query_as!(
        Row,
        r#"select event_id, kind, occurred_at, data
        from release.events
        where tenant_id = $1 and data::jsonb ->> 'component' = $2
            and data::jsonb ->> 'deployed_at' >= $3 collate "C"
            and kind = 'history.deployment_imported'
        order by (data::jsonb ->> 'deployed_at') collate "C" desc, event_id desc
        limit $4"#,
        tenant.as_str(),
        component.as_str(),
        stamp(since),
        limit,
    )
    .fetch_all(db)
    .await
}

/// What windows said at each time since an instant, by the newest changes of them and by those overrides that may have held
/// since then. Ids are drawn under the lock of the calendar, and clocks differ: their order is that of the changes.
#[tracing::instrument(name = "db.insight.past", skip_all)]
pub async fn past(db: &mut PgConnection, tenant: &TenantId, since: Time, limit: i64) -> sqlx::Result<Past> {
    let rows = sqlx::query_as!(
        Row,
        "select event_id, kind, occurred_at, data
        from release.events
        where tenant_id = $1
            and kind in ('window.created', 'window.deleted', 'window.overridden', 'window.override_ended',
                'window.updated')
            and (kind in ('window.created', 'window.deleted', 'window.updated') or occurred_at >= $2)
        order by event_id desc
        limit $3",
        tenant.as_str(),
        since - OVERRIDE_MAX,
        limit,
    )
    .fetch_all(&mut *db)
    .await?;
    let told = rows.into_iter().rev().filter_map(|row| row.into_told().transpose());
    Ok(Past::of(told.collect::<sqlx::Result<Vec<_>>>()?, window::list_live(db, tenant, since).await?))
}

/// Environments whose rollouts count unless others are named.
#[tracing::instrument(name = "db.insight.production", skip_all)]
pub async fn production(db: &mut PgConnection, tenant: &TenantId) -> sqlx::Result<BTreeSet<EnvironmentId>> {
    let rows = sqlx::query_scalar!(
        r#"select environment as "environment: EnvironmentId"
        from release.environments
        where tenant_id = $1 and is_production
        order by environment
        limit 1000"#,
        tenant.as_str(),
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().collect())
}

/// Which of these deployments of the past, by their keys, were imported before.
#[tracing::instrument(name = "db.insight.list_imported", skip_all)]
pub async fn list_imported(
    db: &mut PgConnection,
    tenant: &TenantId,
    keys: &[String],
) -> sqlx::Result<BTreeSet<String>> {
    let subjects = sqlx::query_scalar!(
        "select subject
        from release.events
        where tenant_id = $1 and subject = any($2) and kind = 'history.deployment_imported'
        limit cardinality($2)",
        tenant.as_str(),
        keys,
    )
    .fetch_all(db)
    .await?;
    Ok(subjects.into_iter().collect())
}

/// Which of these versions of a component were rolled out to everyone in an environment here.
#[tracing::instrument(name = "db.insight.list_rolled_out", skip_all)]
pub async fn list_rolled_out(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: &ComponentId,
    environment: &EnvironmentId,
    versions: &[String],
) -> sqlx::Result<BTreeSet<String>> {
    let versions = sqlx::query_scalar!(
        "select distinct semver
        from release.rollouts
        where tenant_id = $1 and component = $2 and environment = $3 and semver = any($4)
            and state = 'SUCCEEDED'
        limit cardinality($4)",
        tenant.as_str(),
        component.as_str(),
        environment.as_str(),
        versions,
    )
    .fetch_all(db)
    .await?;
    Ok(versions.into_iter().collect())
}
