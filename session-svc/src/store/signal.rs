//! How rollouts go: `session.enrolments`, `session.redeals` and `session.outcomes`, and what this database is called in
//! reports.

use shared::id::{RolloutId, SessionId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::signal::Guard;
use crate::domain::visit::{Arm, Unit};

pub mod scan;
pub mod sum;

/// What was dealt to a session.
#[derive(Debug, Clone)]
pub struct Deal<'a> {
    /// Whose.
    pub tenant: &'a TenantId,
    /// To which.
    pub session: SessionId,
    /// What.
    pub unit: &'a Unit,
    /// When.
    pub at: Time,
}

/// Writes deals down, each once: the first of a session and rollout enrols it, those of later steps go beside that where the
/// rollout deals anew. Belongs into the transaction that writes the pins, after them, as their row's lock keeps two from
/// being first.
#[tracing::instrument(name = "db.signal.enrol", skip_all)]
pub async fn enrol(db: &mut PgConnection, deals: &[Deal<'_>]) -> sqlx::Result<()> {
    if deals.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "with dealt as materialized (
            select *
            from unnest($1::text[], $2::uuid[], $3::uuid[], $4::integer[], $5::boolean[], $6::boolean[], $7::timestamptz[])
                as dealt (tenant_id, session_id, rollout_id, step, is_canary, is_all_sessions, dealt_at)
        ), enrolled as (
            insert into session.enrolments (tenant_id, session_id, rollout_id, step, is_canary, enrolled_at)
            select distinct on (tenant_id, session_id, rollout_id)
                tenant_id, session_id, rollout_id, step, is_canary, dealt_at
            from dealt
            order by tenant_id, session_id, rollout_id, step
            on conflict do nothing
        )
        insert into session.redeals (tenant_id, session_id, rollout_id, step, is_canary, dealt_at)
        select tenant_id, session_id, rollout_id, step, is_canary, dealt_at
        from dealt
        where is_all_sessions and exists (
            select from (
                select tenant_id, session_id, rollout_id, step from session.enrolments
                union all
                select tenant_id, session_id, rollout_id, step from dealt
            ) earlier
            where earlier.tenant_id = dealt.tenant_id and earlier.session_id = dealt.session_id
                and earlier.rollout_id = dealt.rollout_id and earlier.step < dealt.step
        )
        on conflict do nothing",
        &deals.iter().map(|deal| deal.tenant.to_string()).collect::<Vec<_>>(),
        &deals.iter().map(|deal| deal.session.uuid()).collect::<Vec<_>>(),
        &deals.iter().map(|deal| deal.unit.rollout.uuid()).collect::<Vec<_>>(),
        &deals.iter().map(|deal| deal.unit.step).collect::<Vec<_>>(),
        &deals.iter().map(|deal| deal.unit.arm == Arm::Canary).collect::<Vec<_>>(),
        &deals.iter().map(|deal| deal.unit.is_all_sessions).collect::<Vec<_>>(),
        &deals.iter().map(|deal| deal.at).collect::<Vec<_>>(),
    )
    .execute(db)
    .await
    .map(drop)
}

/// Books an outcome under what was dealt to the session last, as far as it is a unit of these rollouts and has none of this
/// guard yet; answers of how many it is one.
#[tracing::instrument(name = "db.signal.record", skip_all)]
pub async fn record(
    db: &mut PgConnection,
    tenant: &TenantId,
    session: SessionId,
    guard: &Guard,
    rollouts: &[RolloutId],
    now: Time,
) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"with dealt as (
            select rollout_id, step, is_canary
            from session.enrolments
            where tenant_id = $1 and session_id = $2 and rollout_id = any($4)
            union all
            select rollout_id, step, is_canary
            from session.redeals
            where tenant_id = $1 and session_id = $2 and rollout_id = any($4)
        ), unit as materialized (
            select distinct on (rollout_id) rollout_id, step, is_canary from dealt order by rollout_id, step desc
        ), recorded as (
            insert into session.outcomes (tenant_id, session_id, rollout_id, guard, step, is_canary, occurred_at)
            select $1, $2, rollout_id, $3, step, is_canary, $5 from unit
            on conflict do nothing
        )
        select count(*) as "count!" from unit"#,
        tenant.as_str(),
        session.uuid(),
        guard.as_str(),
        &rollouts.iter().map(|rollout| rollout.uuid()).collect::<Vec<_>>(),
        now,
    )
    .fetch_one(db)
    .await
}

/// What this database is called in reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Drawn once.
    pub id: Uuid,
    /// The microsecond in which its present life began: sorts as the lives do.
    pub epoch: String,
}

/// Reads it, or names it `drawn`. On another server, or after a failover, which the server's own name tells, begins an
/// epoch.
#[tracing::instrument(name = "db.signal.source", skip_all)]
pub async fn source(db: &mut PgConnection, cluster: &str, drawn: Uuid, now: Time) -> sqlx::Result<Source> {
    sqlx::query!(
        "insert into session.signal_source as source (source_id, cluster, epoch) values ($1, $2, $3)
        on conflict (is_only) do update set cluster = excluded.cluster, epoch = excluded.epoch
        where source.cluster <> excluded.cluster",
        drawn,
        cluster,
        format!("{:020}", now.timestamp_micros()),
    )
    .execute(&mut *db)
    .await?;
    sqlx::query_as!(Source, "select source_id as id, epoch from session.signal_source")
        .fetch_one(db)
        .await
}
