//! How rollouts go: `session.enrolments` and `session.outcomes`, their sums in `session.signal_counts`, and what this
//! database is called in reports.

use shared::id::{RolloutId, SessionId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::signal::{Booking, Guard};
use crate::domain::visit::{Arm, Pins, Unit};
use crate::store::{corrupt, visit};

pub mod scan;

/// More than all rollouts of an environment have.
const COUNTS_MAX: i64 = 100_000;

/// A session becomes what a visit of it makes it, where it is not that yet.
#[tracing::instrument(name = "db.signal.enrol", skip_all)]
pub async fn enrol(
    db: &mut PgConnection,
    tenant: &TenantId,
    session: SessionId,
    units: &[Unit],
    now: Time,
) -> sqlx::Result<()> {
    if units.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "insert into session.enrolments (tenant_id, session_id, rollout_id, step, is_canary, enrolled_at)
        select $1, $2, rollout_id, step, is_canary, $6
        from unnest($3::uuid[], $4::integer[], $5::boolean[]) as unit (rollout_id, step, is_canary)
        on conflict do nothing",
        tenant.as_str(),
        session.uuid(),
        &units.iter().map(|unit| unit.rollout.uuid()).collect::<Vec<_>>(),
        &units.iter().map(|unit| unit.step).collect::<Vec<_>>(),
        &units.iter().map(|unit| unit.arm == Arm::Canary).collect::<Vec<_>>(),
        now,
    )
    .execute(db)
    .await
    .map(drop)
}

/// The releases that the row of a session has.
#[tracing::instrument(name = "db.signal.pins", skip_all)]
pub async fn pins(
    db: &mut PgConnection,
    tenant: &TenantId,
    session: SessionId,
) -> sqlx::Result<Option<Pins>> {
    let pins = sqlx::query_scalar!(
        "select pins from session.sessions where tenant_id = $1 and session_id = $2",
        tenant.as_str(),
        session.uuid(),
    )
    .fetch_optional(db)
    .await?;
    let read = |pins: Vec<u8>| visit::read_pins(&pins).ok_or_else(|| corrupt("sessions", "pins", &session));
    pins.map(read).transpose()
}

/// Books an outcome, as far as the session is a unit and has none of this guard yet; answers of how many rollouts it is one.
#[tracing::instrument(name = "db.signal.record", skip_all)]
pub async fn record(
    db: &mut PgConnection,
    tenant: &TenantId,
    session: SessionId,
    guard: &Guard,
    bookings: &[Booking],
    now: Time,
) -> sqlx::Result<i64> {
    let places = || bookings.iter().map(|booking| booking.at);
    sqlx::query_scalar!(
        r#"with unit as materialized (
            select rollout_id, coalesce(booking.step, enrolment.step) as step,
                coalesce(booking.is_canary, enrolment.is_canary) as is_canary
            from unnest($4::uuid[], $5::integer[], $6::boolean[]) as booking (rollout_id, step, is_canary)
            join session.enrolments enrolment using (rollout_id)
            where enrolment.tenant_id = $1 and enrolment.session_id = $2
        ), recorded as (
            insert into session.outcomes (tenant_id, session_id, rollout_id, guard, step, is_canary, occurred_at)
            select $1, $2, rollout_id, $3, step, is_canary, $7 from unit
            on conflict do nothing
        )
        select count(*) as "count!" from unit"#,
        tenant.as_str(),
        session.uuid(),
        guard.as_str(),
        &bookings.iter().map(|booking| booking.rollout.uuid()).collect::<Vec<_>>(),
        &places().map(|place| place.map(|(step, _)| step)).collect::<Vec<_>>() as &[Option<i32>],
        &places().map(|place| place.map(|(_, arm)| arm == Arm::Canary)).collect::<Vec<_>>() as &[Option<bool>],
        now,
    )
    .fetch_one(db)
    .await
}

/// Adds enrolments to the sums that are not in them yet, at most `limit`, and marks them in the same transaction; says how
/// many. What another replica adds at the same time is left to it.
#[tracing::instrument(name = "db.signal.add_enrolments", skip_all)]
pub async fn add_enrolments(db: &mut PgConnection, limit: i64) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"with taken as materialized (
            select tenant_id, session_id, rollout_id
            from session.enrolments
            where not is_counted
            limit $1
            for update skip locked
        ), marked as (
            update session.enrolments enrolment
            set is_counted = true
            from taken
            where enrolment.tenant_id = taken.tenant_id and enrolment.session_id = taken.session_id
                and enrolment.rollout_id = taken.rollout_id
            returning enrolment.tenant_id, enrolment.rollout_id, step, is_canary
        ), added as (
            insert into session.signal_counts as sum (tenant_id, rollout_id, step, is_canary, guard, count)
            select tenant_id, rollout_id, step, is_canary, '', count(*)
            from marked
            group by tenant_id, rollout_id, step, is_canary
            order by tenant_id, rollout_id, step, is_canary
            on conflict (tenant_id, rollout_id, step, is_canary, guard) do update set count = sum.count + excluded.count
        )
        select count(*) as "count!" from marked"#,
        limit,
    )
    .fetch_one(db)
    .await
}

/// As [`add_enrolments`], of outcomes.
#[tracing::instrument(name = "db.signal.add_outcomes", skip_all)]
pub async fn add_outcomes(db: &mut PgConnection, limit: i64) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"with taken as materialized (
            select tenant_id, session_id, rollout_id, guard
            from session.outcomes
            where not is_counted
            limit $1
            for update skip locked
        ), marked as (
            update session.outcomes outcome
            set is_counted = true
            from taken
            where outcome.tenant_id = taken.tenant_id and outcome.session_id = taken.session_id
                and outcome.rollout_id = taken.rollout_id and outcome.guard = taken.guard
            returning outcome.tenant_id, outcome.rollout_id, step, is_canary, outcome.guard
        ), added as (
            insert into session.signal_counts as sum (tenant_id, rollout_id, step, is_canary, guard, count)
            select tenant_id, rollout_id, step, is_canary, guard, count(*)
            from marked
            group by tenant_id, rollout_id, step, is_canary, guard
            order by tenant_id, rollout_id, step, is_canary, guard
            on conflict (tenant_id, rollout_id, step, is_canary, guard) do update set count = sum.count + excluded.count
        )
        select count(*) as "count!" from marked"#,
        limit,
    )
    .fetch_one(db)
    .await
}

/// A sum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sum {
    /// Whose.
    pub tenant: TenantId,
    /// Of which rollout.
    pub rollout: RolloutId,
    /// Booked under this step.
    pub step: i32,
    /// Of the new release, or of the old one.
    pub is_canary: bool,
    /// Of outcomes of this name; of enrolments where it is empty.
    pub guard: String,
    /// How many.
    pub count: i64,
}

/// The sums that release-svc has not asked to end, those of a rollout together and in order.
#[tracing::instrument(name = "db.signal.counts", skip_all)]
pub async fn counts(db: &mut PgConnection) -> sqlx::Result<Vec<Sum>> {
    let rows = sqlx::query!(
        "select tenant_id, rollout_id, step, is_canary, guard, count
        from session.signal_counts
        where ended_at is null
        order by tenant_id, rollout_id, step, is_canary, guard
        limit $1",
        COUNTS_MAX,
    )
    .fetch_all(db)
    .await?;
    let mut counts = Vec::with_capacity(rows.len());
    for row in rows {
        let bad = || corrupt("signal_counts", "tenant_id", &row.rollout_id);
        counts.push(Sum {
            tenant: row.tenant_id.parse().map_err(|_| bad())?,
            rollout: RolloutId::from_uuid(row.rollout_id),
            step: row.step,
            is_canary: row.is_canary,
            guard: row.guard,
            count: row.count,
        });
    }
    Ok(counts)
}

/// Nobody asks for the sums of these rollouts any more.
#[tracing::instrument(name = "db.signal.end", skip_all)]
pub async fn end(db: &mut PgConnection, rollouts: &[(TenantId, RolloutId)], now: Time) -> sqlx::Result<()> {
    sqlx::query!(
        "update session.signal_counts count
        set ended_at = $3
        from unnest($1::text[], $2::uuid[]) as ended (tenant_id, rollout_id)
        where count.tenant_id = ended.tenant_id and count.rollout_id = ended.rollout_id and count.ended_at is null",
        &rollouts.iter().map(|(tenant, _)| tenant.to_string()).collect::<Vec<_>>(),
        &rollouts.iter().map(|(_, rollout)| rollout.uuid()).collect::<Vec<_>>(),
        now,
    )
    .execute(db)
    .await
    .map(drop)
}

/// Deletes what nobody has asked for, or counted, since `before`; says how much.
#[tracing::instrument(name = "db.signal.forget", skip_all)]
pub async fn forget(db: &mut PgConnection, before: Time, limit: i64) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"with counts as (
            delete from session.signal_counts
            where (tenant_id, rollout_id, step, is_canary, guard) in (
                select tenant_id, rollout_id, step, is_canary, guard
                from session.signal_counts
                where ended_at < $1
                limit $2
                for update skip locked)
            returning 1
        ), visits as (
            delete from session.visit_counts
            where (tenant_id, rollout_id) in (
                select tenant_id, rollout_id
                from session.visit_counts
                where counted_at < $1
                limit $2
                for update skip locked)
            returning 1
        )
        select (select count(*) from counts) + (select count(*) from visits) as "count!""#,
        before,
        limit,
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
