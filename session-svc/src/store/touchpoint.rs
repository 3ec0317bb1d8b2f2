//! `session.touchpoints`.

use std::time::Duration;

use shared::id::{TenantId, TouchpointId};
use shared::time::Time;
use sqlx::PgConnection;

use crate::domain::touchpoint::{SessionPolicy, Touchpoint};
use crate::store::corrupt;

struct Row {
    touchpoint_id: String,
    display_name: String,
    group_id: String,
    components: Vec<String>,
    has_shoppers: bool,
    idle_timeout_secs: i32,
    absolute_lifetime_secs: i32,
    visit_gap_secs: i32,
    staleness_bound_ms: i32,
    outage_bound_secs: i32,
    created_at: Time,
    version: i64,
}

impl TryFrom<Row> for Touchpoint {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let bad = |column| corrupt("touchpoints", column, &row.touchpoint_id);
        let secs = |secs: i32, column| u64::try_from(secs).map(Duration::from_secs).map_err(|_| bad(column));
        let components = row.components.iter().map(|name| name.parse().map_err(|_| bad("components")));
        Ok(Self {
            id: row.touchpoint_id.parse().map_err(|_| bad("touchpoint_id"))?,
            group: row.group_id.parse().map_err(|_| bad("group_id"))?,
            components: components.collect::<sqlx::Result<_>>()?,
            policy: SessionPolicy {
                idle_timeout: secs(row.idle_timeout_secs, "idle_timeout_secs")?,
                absolute_lifetime: secs(row.absolute_lifetime_secs, "absolute_lifetime_secs")?,
                visit_gap: secs(row.visit_gap_secs, "visit_gap_secs")?,
                staleness_bound: u64::try_from(row.staleness_bound_ms)
                    .map(Duration::from_millis)
                    .map_err(|_| bad("staleness_bound_ms"))?,
                outage_bound: secs(row.outage_bound_secs, "outage_bound_secs")?,
            },
            display_name: row.display_name,
            has_shoppers: row.has_shoppers,
            created_at: row.created_at,
            version: row.version,
        })
    }
}

/// Finds one.
#[tracing::instrument(name = "db.touchpoint.find", skip_all)]
pub async fn find(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: &TouchpointId,
) -> sqlx::Result<Option<Touchpoint>> {
    sqlx::query_as!(
        Row,
        "select touchpoint_id, display_name, group_id, components, has_shoppers, idle_timeout_secs, absolute_lifetime_secs,
            visit_gap_secs, staleness_bound_ms, outage_bound_secs, created_at, version
        from session.touchpoints
        where tenant_id = $1 and touchpoint_id = $2",
        tenant.as_str(),
        id.as_str(),
    )
    .fetch_optional(db)
    .await?
    .map(Touchpoint::try_from)
    .transpose()
}

/// Those after a name, by name.
#[tracing::instrument(name = "db.touchpoint.list", skip_all)]
pub async fn list(
    db: &mut PgConnection,
    tenant: &TenantId,
    after: &str,
    limit: i64,
) -> sqlx::Result<Vec<Touchpoint>> {
    let rows = sqlx::query_as!(
        Row,
        "select touchpoint_id, display_name, group_id, components, has_shoppers, idle_timeout_secs, absolute_lifetime_secs,
            visit_gap_secs, staleness_bound_ms, outage_bound_secs, created_at, version
        from session.touchpoints
        where tenant_id = $1 and touchpoint_id > $2
        order by touchpoint_id
        limit $3",
        tenant.as_str(),
        after,
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(Touchpoint::try_from).collect()
}

/// Adds one; false if the name is taken.
#[tracing::instrument(name = "db.touchpoint.insert", skip_all)]
pub async fn insert(db: &mut PgConnection, tenant: &TenantId, touchpoint: &Touchpoint) -> sqlx::Result<bool> {
    let columns = Columns::of(touchpoint);
    let done = sqlx::query!(
        "insert into session.touchpoints (tenant_id, touchpoint_id, display_name, group_id, components, has_shoppers,
            idle_timeout_secs, absolute_lifetime_secs, visit_gap_secs, staleness_bound_ms, outage_bound_secs, created_at, version)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
        on conflict (tenant_id, touchpoint_id) do nothing",
        tenant.as_str(),
        touchpoint.id.as_str(),
        touchpoint.display_name,
        touchpoint.group.as_str(),
        &columns.components,
        touchpoint.has_shoppers,
        columns.idle_timeout_secs,
        columns.absolute_lifetime_secs,
        columns.visit_gap_secs,
        columns.staleness_bound_ms,
        columns.outage_bound_secs,
        touchpoint.created_at,
        touchpoint.version,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Replaces one of version `touchpoint.version - 1`; false if it has another.
#[tracing::instrument(name = "db.touchpoint.update", skip_all)]
pub async fn update(db: &mut PgConnection, tenant: &TenantId, touchpoint: &Touchpoint) -> sqlx::Result<bool> {
    let columns = Columns::of(touchpoint);
    let done = sqlx::query!(
        "update session.touchpoints
        set display_name = $3, group_id = $4, components = $5, has_shoppers = $6, idle_timeout_secs = $7,
            absolute_lifetime_secs = $8, visit_gap_secs = $9, staleness_bound_ms = $10, outage_bound_secs = $11, version = $12
        where tenant_id = $1 and touchpoint_id = $2 and version = $12::bigint - 1",
        tenant.as_str(),
        touchpoint.id.as_str(),
        touchpoint.display_name,
        touchpoint.group.as_str(),
        &columns.components,
        touchpoint.has_shoppers,
        columns.idle_timeout_secs,
        columns.absolute_lifetime_secs,
        columns.visit_gap_secs,
        columns.staleness_bound_ms,
        columns.outage_bound_secs,
        touchpoint.version,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

struct Columns {
    components: Vec<String>,
    idle_timeout_secs: i32,
    absolute_lifetime_secs: i32,
    visit_gap_secs: i32,
    staleness_bound_ms: i32,
    outage_bound_secs: i32,
}

impl Columns {
    /// The policy's limits keep all of these well within 32 bits.
    fn of(touchpoint: &Touchpoint) -> Self {
        let secs = |duration: Duration| i32::try_from(duration.as_secs()).unwrap_or(i32::MAX);
        let policy = &touchpoint.policy;
        Self {
            components: touchpoint.components.iter().map(ToString::to_string).collect(),
            idle_timeout_secs: secs(policy.idle_timeout),
            absolute_lifetime_secs: secs(policy.absolute_lifetime),
            visit_gap_secs: secs(policy.visit_gap),
            staleness_bound_ms: i32::try_from(policy.staleness_bound.as_millis()).unwrap_or(i32::MAX),
            outage_bound_secs: secs(policy.outage_bound),
        }
    }
}
