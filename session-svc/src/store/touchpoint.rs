//! `session.touchpoints`.

use std::time::Duration;

use shared::id::{TenantId, TouchpointId};
use shared::time::Time;
use sqlx::PgConnection;

use crate::domain::abandonment::CartPolicy;
use crate::domain::session::{RevokeReason, Timeouts};
use crate::domain::touchpoint::{LimitAction, SessionLimit, SessionPolicy, Touchpoint};
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
    remember_idle_timeout_secs: Option<i32>,
    remember_absolute_lifetime_secs: Option<i32>,
    level_2_max_age_secs: i32,
    level_3_max_age_secs: i32,
    session_limit: Option<i32>,
    session_limit_action: Option<String>,
    rotation_grace_secs: i32,
    allowed_issuers: Vec<String>,
    cart_idle_after_secs: i32,
    cart_abandoned_after_secs: i32,
    cart_lost_after_secs: i32,
    cart_checkout_timeout_secs: i32,
    session_epoch: i32,
    sessions_revoked_at: Option<Time>,
    sessions_revoke_reason: Option<String>,
    created_at: Time,
    version: i64,
}

impl Row {
    /// The cart policy, or which column is corrupt.
    fn cart_policy(&self) -> Result<CartPolicy, &'static str> {
        Ok(CartPolicy {
            idle_after: secs(self.cart_idle_after_secs, "cart_idle_after_secs")?,
            abandoned_after: secs(self.cart_abandoned_after_secs, "cart_abandoned_after_secs")?,
            lost_after: secs(self.cart_lost_after_secs, "cart_lost_after_secs")?,
            checkout_timeout: secs(self.cart_checkout_timeout_secs, "cart_checkout_timeout_secs")?,
        })
    }

    /// The policy, or which column is corrupt.
    fn policy(&self) -> Result<SessionPolicy, &'static str> {
        let remember_me = match (self.remember_idle_timeout_secs, self.remember_absolute_lifetime_secs) {
            (Some(idle), Some(absolute)) => Some(Timeouts {
                idle: secs(idle, "remember_idle_timeout_secs")?,
                absolute: secs(absolute, "remember_absolute_lifetime_secs")?,
            }),
            _ => None,
        };
        let session_limit = match (self.session_limit, self.session_limit_action.as_deref()) {
            (None, _) => None,
            (Some(max), action) => Some(SessionLimit {
                max: max.try_into().map_err(|_| "session_limit")?,
                action: match action {
                    Some("REJECT") => LimitAction::Reject,
                    Some("EVICT_LEAST_RECENT") => LimitAction::EvictLeastRecent,
                    _ => return Err("session_limit_action"),
                },
            }),
        };
        let staleness_bound = u64::try_from(self.staleness_bound_ms).map_err(|_| "staleness_bound_ms")?;
        Ok(SessionPolicy {
            timeouts: Timeouts {
                idle: secs(self.idle_timeout_secs, "idle_timeout_secs")?,
                absolute: secs(self.absolute_lifetime_secs, "absolute_lifetime_secs")?,
            },
            remember_me,
            visit_gap: secs(self.visit_gap_secs, "visit_gap_secs")?,
            staleness_bound: Duration::from_millis(staleness_bound),
            outage_bound: secs(self.outage_bound_secs, "outage_bound_secs")?,
            level_2_max_age: secs(self.level_2_max_age_secs, "level_2_max_age_secs")?,
            level_3_max_age: secs(self.level_3_max_age_secs, "level_3_max_age_secs")?,
            session_limit,
            rotation_grace: secs(self.rotation_grace_secs, "rotation_grace_secs")?,
            allowed_issuers: self.allowed_issuers.clone(),
        })
    }
}

fn secs(secs: i32, column: &'static str) -> Result<Duration, &'static str> {
    u64::try_from(secs).map(Duration::from_secs).map_err(|_| column)
}

impl TryFrom<Row> for Touchpoint {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let bad = |column| corrupt("touchpoints", column, &row.touchpoint_id);
        let components = row.components.iter().map(|name| name.parse().map_err(|_| bad("components")));
        let revoked = row.sessions_revoked_at.zip(row.sessions_revoke_reason.as_deref());
        let reason = |name| RevokeReason::from_name(name).ok_or_else(|| bad("sessions_revoke_reason"));
        Ok(Self {
            id: row.touchpoint_id.parse().map_err(|_| bad("touchpoint_id"))?,
            group: row.group_id.parse().map_err(|_| bad("group_id"))?,
            components: components.collect::<sqlx::Result<_>>()?,
            policy: row.policy().map_err(bad)?,
            cart_policy: row.cart_policy().map_err(bad)?,
            session_epoch: row.session_epoch,
            sessions_revoked: revoked
                .map(|(at, name)| Ok::<_, sqlx::Error>((at, reason(name)?)))
                .transpose()?,
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
            visit_gap_secs, staleness_bound_ms, outage_bound_secs, remember_idle_timeout_secs,
            remember_absolute_lifetime_secs, level_2_max_age_secs, level_3_max_age_secs, session_limit, session_limit_action,
            rotation_grace_secs, allowed_issuers, cart_idle_after_secs, cart_abandoned_after_secs, cart_lost_after_secs,
            cart_checkout_timeout_secs, session_epoch, sessions_revoked_at, sessions_revoke_reason, created_at, version
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
            visit_gap_secs, staleness_bound_ms, outage_bound_secs, remember_idle_timeout_secs,
            remember_absolute_lifetime_secs, level_2_max_age_secs, level_3_max_age_secs, session_limit, session_limit_action,
            rotation_grace_secs, allowed_issuers, cart_idle_after_secs, cart_abandoned_after_secs, cart_lost_after_secs,
            cart_checkout_timeout_secs, session_epoch, sessions_revoked_at, sessions_revoke_reason, created_at, version
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
            idle_timeout_secs, absolute_lifetime_secs, visit_gap_secs, staleness_bound_ms, outage_bound_secs, created_at, version,
            remember_idle_timeout_secs, remember_absolute_lifetime_secs, level_2_max_age_secs, level_3_max_age_secs,
            session_limit, session_limit_action, rotation_grace_secs, allowed_issuers, cart_idle_after_secs,
            cart_abandoned_after_secs, cart_lost_after_secs, cart_checkout_timeout_secs)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24,
            $25)
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
        columns.remember_idle_timeout_secs,
        columns.remember_absolute_lifetime_secs,
        columns.level_2_max_age_secs,
        columns.level_3_max_age_secs,
        columns.session_limit,
        columns.session_limit_action,
        columns.rotation_grace_secs,
        &touchpoint.policy.allowed_issuers,
        columns.cart_idle_after_secs,
        columns.cart_abandoned_after_secs,
        columns.cart_lost_after_secs,
        columns.cart_checkout_timeout_secs,
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
            absolute_lifetime_secs = $8, visit_gap_secs = $9, staleness_bound_ms = $10, outage_bound_secs = $11, version = $12,
            remember_idle_timeout_secs = $13, remember_absolute_lifetime_secs = $14, level_2_max_age_secs = $15,
            level_3_max_age_secs = $16, session_limit = $17, session_limit_action = $18, rotation_grace_secs = $19,
            allowed_issuers = $20, cart_idle_after_secs = $21, cart_abandoned_after_secs = $22, cart_lost_after_secs = $23,
            cart_checkout_timeout_secs = $24
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
        columns.remember_idle_timeout_secs,
        columns.remember_absolute_lifetime_secs,
        columns.level_2_max_age_secs,
        columns.level_3_max_age_secs,
        columns.session_limit,
        columns.session_limit_action,
        columns.rotation_grace_secs,
        &touchpoint.policy.allowed_issuers,
        columns.cart_idle_after_secs,
        columns.cart_abandoned_after_secs,
        columns.cart_lost_after_secs,
        columns.cart_checkout_timeout_secs,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Revokes every session made so far at a touchpoint, or at all of the tenant's; answers which touchpoints there are. Rows
/// are locked in key order.
#[tracing::instrument(name = "db.touchpoint.revoke_sessions", skip_all)]
pub async fn revoke_sessions(
    db: &mut PgConnection,
    tenant: &TenantId,
    touchpoint: Option<&TouchpointId>,
    at: Time,
    reason: RevokeReason,
) -> sqlx::Result<Vec<TouchpointId>> {
    let names = sqlx::query_scalar!(
        "with locked as (
            select touchpoint_id
            from session.touchpoints
            where tenant_id = $1 and ($2::text is null or touchpoint_id = $2)
            order by touchpoint_id
            for update
        )
        update session.touchpoints touchpoint
        set session_epoch = session_epoch + 1, sessions_revoked_at = $3, sessions_revoke_reason = $4
        from locked
        where touchpoint.tenant_id = $1 and touchpoint.touchpoint_id = locked.touchpoint_id
        returning touchpoint.touchpoint_id",
        tenant.as_str(),
        touchpoint.map(TouchpointId::as_str),
        at,
        reason.name(),
    )
    .fetch_all(db)
    .await?;
    let parse = |name: String| name.parse().map_err(|_| corrupt("touchpoints", "touchpoint_id", &name));
    names.into_iter().map(parse).collect()
}

struct Columns {
    components: Vec<String>,
    idle_timeout_secs: i32,
    absolute_lifetime_secs: i32,
    visit_gap_secs: i32,
    staleness_bound_ms: i32,
    outage_bound_secs: i32,
    remember_idle_timeout_secs: Option<i32>,
    remember_absolute_lifetime_secs: Option<i32>,
    level_2_max_age_secs: i32,
    level_3_max_age_secs: i32,
    session_limit: Option<i32>,
    session_limit_action: Option<&'static str>,
    rotation_grace_secs: i32,
    cart_idle_after_secs: i32,
    cart_abandoned_after_secs: i32,
    cart_lost_after_secs: i32,
    cart_checkout_timeout_secs: i32,
}

impl Columns {
    /// The policy's limits keep all of these well within 32 bits.
    fn of(touchpoint: &Touchpoint) -> Self {
        let secs = |duration: Duration| i32::try_from(duration.as_secs()).unwrap_or(i32::MAX);
        let (policy, carts) = (&touchpoint.policy, &touchpoint.cart_policy);
        Self {
            components: touchpoint.components.iter().map(ToString::to_string).collect(),
            idle_timeout_secs: secs(policy.timeouts.idle),
            absolute_lifetime_secs: secs(policy.timeouts.absolute),
            visit_gap_secs: secs(policy.visit_gap),
            staleness_bound_ms: i32::try_from(policy.staleness_bound.as_millis()).unwrap_or(i32::MAX),
            outage_bound_secs: secs(policy.outage_bound),
            remember_idle_timeout_secs: policy.remember_me.map(|timeouts| secs(timeouts.idle)),
            remember_absolute_lifetime_secs: policy.remember_me.map(|timeouts| secs(timeouts.absolute)),
            level_2_max_age_secs: secs(policy.level_2_max_age),
            level_3_max_age_secs: secs(policy.level_3_max_age),
            session_limit: policy.session_limit.map(|limit| limit.max.into()),
            session_limit_action: policy.session_limit.map(|limit| match limit.action {
                LimitAction::Reject => "REJECT",
                LimitAction::EvictLeastRecent => "EVICT_LEAST_RECENT",
            }),
            rotation_grace_secs: secs(policy.rotation_grace),
            cart_idle_after_secs: secs(carts.idle_after),
            cart_abandoned_after_secs: secs(carts.abandoned_after),
            cart_lost_after_secs: secs(carts.lost_after),
            cart_checkout_timeout_secs: secs(carts.checkout_timeout),
        }
    }
}
