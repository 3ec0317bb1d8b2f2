//! Windows, with the change of each that waits for its second person. Whoever writes one has locked the tenant's calendar.

use chrono::NaiveDateTime;
use shared::id::{TenantId, WindowId};
use shared::time::Time;
use sqlx::PgConnection;

use super::{corrupt, window_proposal};
use crate::domain::window::{Corrupt, Record, Window};

/// Windows that a tenant has at most at a time, but for those that are over.
pub const WINDOWS_MAX: i64 = 200;
/// Windows that are looked at for an instant at most; more than [`WINDOWS_MAX`], as those of the past count, too.
const LIVE_MAX: i64 = 1000;

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
        let record = Record {
            name: row.name,
            effect: row.effect,
            actions: row.actions,
            tiers: row.tiers,
            components: row.components,
            environments: row.environments,
            regions: row.regions,
            time_zone: row.time_zone,
            starts_at: row.starts_at,
            ends_at: row.ends_at,
            local_start: row.local_start,
            local_end: row.local_end,
            rule: row.rrule,
            duration_secs: row.duration_secs,
            reason: row.reason,
            is_peak: row.is_peak,
        };
        Ok(Self {
            id,
            terms: record.try_into().map_err(|Corrupt(field)| corrupt("windows", field, &id))?,
            creator: row.creator,
            created_at: row.created_at,
            deleted_at: row.deleted_at,
            row_version: row.version,
            proposed: None,
        })
    }
}

#[tracing::instrument(name = "db.window.insert", skip_all)]
pub async fn insert(db: &mut PgConnection, tenant: &TenantId, window: &Window) -> sqlx::Result<()> {
    let record = Record::from(&window.terms);
    sqlx::query!(
        "insert into release.windows
            (tenant_id, window_id, name, effect, actions, tiers, components, environments, regions, time_zone, starts_at,
            ends_at, local_start, local_end, rrule, duration_secs, over_at, reason, is_peak, creator, created_at, deleted_at,
            version)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23)",
        tenant.as_str(),
        window.id.uuid(),
        record.name,
        record.effect,
        &record.actions,
        &record.tiers,
        &record.components,
        &record.environments,
        &record.regions,
        record.time_zone,
        record.starts_at,
        record.ends_at,
        record.local_start,
        record.local_end,
        record.rule,
        record.duration_secs,
        window.over_at(),
        record.reason,
        record.is_peak,
        window.creator,
        window.created_at,
        window.deleted_at,
        window.row_version,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Writes a window over the version before this one.
#[tracing::instrument(name = "db.window.update", skip_all)]
pub async fn update(db: &mut PgConnection, tenant: &TenantId, window: &Window) -> sqlx::Result<bool> {
    let record = Record::from(&window.terms);
    let done = sqlx::query!(
        "update release.windows
        set name = $3, effect = $4, actions = $5, tiers = $6, components = $7, environments = $8, regions = $9,
            time_zone = $10, starts_at = $11, ends_at = $12, local_start = $13, local_end = $14, rrule = $15,
            duration_secs = $16, over_at = $17, reason = $18, is_peak = $19, deleted_at = $20, version = $21
        where tenant_id = $1 and window_id = $2 and version + 1 = $21",
        tenant.as_str(),
        window.id.uuid(),
        record.name,
        record.effect,
        &record.actions,
        &record.tiers,
        &record.components,
        &record.environments,
        &record.regions,
        record.time_zone,
        record.starts_at,
        record.ends_at,
        record.local_start,
        record.local_end,
        record.rule,
        record.duration_secs,
        window.over_at(),
        record.reason,
        record.is_peak,
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
    .fetch_optional(&mut *db)
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(window_proposal::put_on(db, tenant, vec![row.try_into()?]).await?.pop())
}

/// Newest first, beginning before `before`. Those that wait for their second person are not deleted.
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
        where tenant_id = $1 and ($3::uuid is null or window_id < $3)
            and ($2 or deleted_at is null or (window_id, version) in (
                select window_id, version from release.window_proposals where tenant_id = $1 and change = 'CREATE'
            ))
        order by window_id desc
        limit $4"#,
        tenant.as_str(),
        with_deleted,
        before.map(WindowId::uuid),
        limit,
    )
    .fetch_all(&mut *db)
    .await?;
    let windows = rows.into_iter().map(TryInto::try_into).collect::<sqlx::Result<_>>()?;
    window_proposal::put_on(db, tenant, windows).await
}

/// All that may hold at `at` or later, without what waits for a second person.
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
