//! Windows and overrides. Whoever writes one has locked the tenant's calendar.

use chrono::{NaiveDateTime, TimeDelta};
use shared::id::{ReleaseId, TenantId, WindowId, WindowOverrideId};
use shared::time::Time;
use sqlx::PgConnection;

use super::corrupt;
use crate::domain::window::{
    Action, Effect, Override, OverrideSubject, Parts, Schedule, Scope, Span, Terms, Window,
};

/// Constraints that callers' input may break.
pub const OVERRIDE_COMPONENT_KEY: &str = "window_overrides_component_fkey";
pub const OVERRIDE_ENVIRONMENT_KEY: &str = "window_overrides_environment_fkey";
pub const OVERRIDE_RELEASE_KEY: &str = "window_overrides_release_fkey";
/// Windows that a tenant has at most at a time, but for those that are over.
pub const WINDOWS_MAX: i64 = 200;
/// Windows that are looked at for an instant at most; more than [`WINDOWS_MAX`], as those of the past count, too.
const LIVE_MAX: i64 = 1000;
/// Overrides that count at a time at most; the newest do.
const OVERRIDES_MAX: i64 = 1000;

struct Row {
    window_id: WindowId,
    name: String,
    effect: String,
    actions: Vec<String>,
    tiers: Vec<String>,
    components: Vec<String>,
    environments: Vec<String>,
    regions: Vec<String>,
    time_zone: String,
    starts_at: Option<Time>,
    ends_at: Option<Time>,
    local_start: Option<NaiveDateTime>,
    local_end: Option<NaiveDateTime>,
    rrule: Option<String>,
    duration_secs: Option<i64>,
    reason: String,
    is_peak: bool,
    creator: String,
    created_at: Time,
    deleted_at: Option<Time>,
    version: i64,
}

impl TryFrom<Row> for Window {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let id = row.window_id;
        let broken = |column| corrupt("windows", column, &id);
        let effect = [Effect::Deny, Effect::Allow]
            .into_iter()
            .find(|effect| effect.name() == row.effect);
        let action = |name: &String| Action::ALL.into_iter().find(|action| action.name() == *name);
        let actions: Option<_> = row.actions.iter().map(action).collect();
        let parts = Parts {
            starts_at: row.starts_at,
            ends_at: row.ends_at,
            local_start: row.local_start,
            local_end: row.local_end,
            rule: row.rrule,
            duration: row.duration_secs.map(TimeDelta::seconds),
        };
        Ok(Self {
            id,
            terms: Terms {
                name: row.name,
                effect: effect.ok_or_else(|| broken("effect"))?,
                actions: actions.ok_or_else(|| broken("actions"))?,
                scope: Scope {
                    tiers: row.tiers,
                    components: row.components,
                    environments: row.environments,
                    regions: row.regions,
                },
                zone: row.time_zone.parse().map_err(|_| broken("time_zone"))?,
                schedule: Schedule::stored(parts).ok_or_else(|| broken("rrule"))?,
                reason: row.reason,
                is_peak: row.is_peak,
            },
            creator: row.creator,
            created_at: row.created_at,
            deleted_at: row.deleted_at,
            row_version: row.version,
        })
    }
}

#[tracing::instrument(name = "db.window.insert", skip_all)]
pub async fn insert(db: &mut PgConnection, tenant: &TenantId, window: &Window) -> sqlx::Result<()> {
    let Parts { starts_at, ends_at, local_start, local_end, rule, duration } = window.terms.schedule.parts();
    sqlx::query!(
        "insert into release.windows
            (tenant_id, window_id, name, effect, actions, tiers, components, environments, regions, time_zone, starts_at,
            ends_at, local_start, local_end, rrule, duration_secs, over_at, reason, is_peak, creator, created_at, version)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)",
        tenant.as_str(),
        window.id.uuid(),
        window.terms.name,
        window.terms.effect.name(),
        &action_names(window),
        &window.terms.scope.tiers,
        &window.terms.scope.components,
        &window.terms.scope.environments,
        &window.terms.scope.regions,
        window.terms.zone.name(),
        starts_at,
        ends_at,
        local_start,
        local_end,
        rule,
        duration.map(|duration| duration.num_seconds()),
        window.over_at(),
        window.terms.reason,
        window.terms.is_peak,
        window.creator,
        window.created_at,
        window.row_version,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Writes a window over the version before this one.
#[tracing::instrument(name = "db.window.update", skip_all)]
pub async fn update(db: &mut PgConnection, tenant: &TenantId, window: &Window) -> sqlx::Result<bool> {
    let Parts { starts_at, ends_at, local_start, local_end, rule, duration } = window.terms.schedule.parts();
    let done = sqlx::query!(
        "update release.windows
        set name = $3, effect = $4, actions = $5, tiers = $6, components = $7, environments = $8, regions = $9,
            time_zone = $10, starts_at = $11, ends_at = $12, local_start = $13, local_end = $14, rrule = $15,
            duration_secs = $16, over_at = $17, reason = $18, is_peak = $19, deleted_at = $20, version = $21
        where tenant_id = $1 and window_id = $2 and version + 1 = $21 and deleted_at is null",
        tenant.as_str(),
        window.id.uuid(),
        window.terms.name,
        window.terms.effect.name(),
        &action_names(window),
        &window.terms.scope.tiers,
        &window.terms.scope.components,
        &window.terms.scope.environments,
        &window.terms.scope.regions,
        window.terms.zone.name(),
        starts_at,
        ends_at,
        local_start,
        local_end,
        rule,
        duration.map(|duration| duration.num_seconds()),
        window.over_at(),
        window.terms.reason,
        window.terms.is_peak,
        window.deleted_at,
        window.row_version,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Also one that is deleted.
#[tracing::instrument(name = "db.window.find", skip_all)]
pub async fn find(db: &mut PgConnection, tenant: &TenantId, id: WindowId) -> sqlx::Result<Option<Window>> {
    let row = sqlx::query_as!(
        Row,
        r#"select window_id as "window_id: WindowId", name, effect, actions, tiers, components, environments, regions,
            time_zone, starts_at, ends_at, local_start, local_end, rrule, duration_secs, reason, is_peak, creator,
            created_at, deleted_at, version
        from release.windows
        where tenant_id = $1 and window_id = $2"#,
        tenant.as_str(),
        id.uuid(),
    )
    .fetch_optional(db)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// Newest first, beginning before `before`.
#[tracing::instrument(name = "db.window.list", skip_all)]
pub async fn list(
    db: &mut PgConnection,
    tenant: &TenantId,
    with_deleted: bool,
    before: Option<WindowId>,
    limit: i64,
) -> sqlx::Result<Vec<Window>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select window_id as "window_id: WindowId", name, effect, actions, tiers, components, environments, regions,
            time_zone, starts_at, ends_at, local_start, local_end, rrule, duration_secs, reason, is_peak, creator,
            created_at, deleted_at, version
        from release.windows
        where tenant_id = $1 and ($2 or deleted_at is null) and ($3::uuid is null or window_id < $3)
        order by window_id desc
        limit $4"#,
        tenant.as_str(),
        with_deleted,
        before.map(WindowId::uuid),
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// All that may hold at `at` or later.
#[tracing::instrument(name = "db.window.list_live", skip_all)]
pub async fn list_live(db: &mut PgConnection, tenant: &TenantId, at: Time) -> sqlx::Result<Vec<Window>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select window_id as "window_id: WindowId", name, effect, actions, tiers, components, environments, regions,
            time_zone, starts_at, ends_at, local_start, local_end, rrule, duration_secs, reason, is_peak, creator,
            created_at, deleted_at, version
        from release.windows
        where tenant_id = $1 and deleted_at is null and (over_at is null or over_at > $2)
        order by window_id desc
        limit $3"#,
        tenant.as_str(),
        at,
        LIVE_MAX,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// How many windows may still hold, but for this one.
#[tracing::instrument(name = "db.window.count_others", skip_all)]
pub async fn count_others(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: WindowId,
    at: Time,
) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "count!"
        from release.windows
        where tenant_id = $1 and window_id <> $2 and deleted_at is null and (over_at is null or over_at > $3)"#,
        tenant.as_str(),
        id.uuid(),
        at,
    )
    .fetch_one(db)
    .await
}

/// The first of these components that is not there.
#[tracing::instrument(name = "db.window.missing_component", skip_all)]
pub async fn missing_component(
    db: &mut PgConnection,
    tenant: &TenantId,
    names: &[String],
) -> sqlx::Result<Option<String>> {
    let missing = sqlx::query_scalar!(
        r#"select name as "name!"
        from unnest($2::text[]) name
        where not exists (select from release.components where tenant_id = $1 and component = name)
        limit 1"#,
        tenant.as_str(),
        names,
    );
    missing.fetch_optional(db).await
}

/// The first of these environments that is not there.
#[tracing::instrument(name = "db.window.missing_environment", skip_all)]
pub async fn missing_environment(
    db: &mut PgConnection,
    tenant: &TenantId,
    names: &[String],
) -> sqlx::Result<Option<String>> {
    let missing = sqlx::query_scalar!(
        r#"select name as "name!"
        from unnest($2::text[]) name
        where not exists (select from release.environments where tenant_id = $1 and environment = name)
        limit 1"#,
        tenant.as_str(),
        names,
    );
    missing.fetch_optional(db).await
}

#[tracing::instrument(name = "db.window_override.insert", skip_all)]
pub async fn insert_override(
    db: &mut PgConnection,
    tenant: &TenantId,
    lifted: &Override,
) -> sqlx::Result<()> {
    let Override { id, window, subject, reason, creator, span } = lifted;
    let (component, environment, release) = match subject {
        OverrideSubject::Place { component, environment } => (Some(component), Some(environment), None),
        OverrideSubject::Release(release) => (None, None, Some(release.uuid())),
    };
    sqlx::query!(
        "insert into release.window_overrides
            (tenant_id, window_override_id, window_id, component, environment, release_id, reason, creator, created_at,
            ends_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        tenant.as_str(),
        id.uuid(),
        window.uuid(),
        component,
        environment,
        release,
        reason,
        creator,
        span.start,
        span.end,
    )
    .execute(db)
    .await?;
    Ok(())
}

struct OverrideRow {
    window_override_id: WindowOverrideId,
    window_id: WindowId,
    component: Option<String>,
    environment: Option<String>,
    release_id: Option<ReleaseId>,
    reason: String,
    creator: String,
    created_at: Time,
    ends_at: Time,
}

impl TryFrom<OverrideRow> for Override {
    type Error = sqlx::Error;

    fn try_from(row: OverrideRow) -> sqlx::Result<Self> {
        let subject = match (row.component.zip(row.environment), row.release_id) {
            (Some((component, environment)), None) => OverrideSubject::Place { component, environment },
            (None, Some(release)) => OverrideSubject::Release(release),
            _ => return Err(corrupt("window_overrides", "release_id", &row.window_override_id)),
        };
        Ok(Self {
            id: row.window_override_id,
            window: row.window_id,
            subject,
            reason: row.reason,
            creator: row.creator,
            span: Span { start: row.created_at, end: row.ends_at },
        })
    }
}

/// Those that count at `at`, newest first.
#[tracing::instrument(name = "db.window_override.list", skip_all)]
pub async fn list_overrides(
    db: &mut PgConnection,
    tenant: &TenantId,
    at: Time,
) -> sqlx::Result<Vec<Override>> {
    let rows = sqlx::query_as!(
        OverrideRow,
        r#"select window_override_id as "window_override_id: WindowOverrideId", window_id as "window_id: WindowId",
            component, environment, release_id as "release_id: ReleaseId", reason, creator, created_at, ends_at
        from release.window_overrides
        where tenant_id = $1 and created_at <= $2 and ends_at > $2
        order by window_override_id desc
        limit $3"#,
        tenant.as_str(),
        at,
        OVERRIDES_MAX,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

fn action_names(window: &Window) -> Vec<String> {
    window.terms.actions.iter().map(|action| action.name().to_owned()).collect()
}
