//! `session.signal_counts`: units and outcomes added up in batches, and the sums that are told.

use shared::id::{RolloutId, TenantId};
use shared::time::Time;
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use crate::store::corrupt;

/// Sums read at once.
const PAGE: i64 = 10_000;

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

/// As [`add_enrolments`], of what was dealt to enrolled sessions later.
#[tracing::instrument(name = "db.signal.add_redeals", skip_all)]
pub async fn add_redeals(db: &mut PgConnection, limit: i64) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"with taken as materialized (
            select tenant_id, session_id, rollout_id, step
            from session.redeals
            where not is_counted
            limit $1
            for update skip locked
        ), marked as (
            update session.redeals redeal
            set is_counted = true
            from taken
            where redeal.tenant_id = taken.tenant_id and redeal.session_id = taken.session_id
                and redeal.rollout_id = taken.rollout_id and redeal.step = taken.step
            returning redeal.tenant_id, redeal.rollout_id, redeal.step, is_canary
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
    /// Of outcomes of this name; of units where it is empty.
    pub guard: String,
    /// How many.
    pub count: i64,
}

/// The sums that release-svc has not asked to end, those of a rollout together and in order, all of one moment: a later page
/// would have outcomes of units that an earlier one had not.
pub async fn counts(db: &mut PgConnection) -> sqlx::Result<Vec<Sum>> {
    let mut reading = db.begin_with("begin isolation level repeatable read, read only").await?;
    let mut counts = vec![];
    loop {
        let read = page(&mut reading, counts.last()).await?;
        if read.is_empty() {
            reading.rollback().await?;
            return Ok(counts);
        }
        counts.extend(read);
    }
}

/// Those after one of them.
#[tracing::instrument(name = "db.signal.counts", skip_all)]
async fn page(db: &mut PgConnection, after: Option<&Sum>) -> sqlx::Result<Vec<Sum>> {
    let rows = sqlx::query!(
        "select tenant_id, rollout_id, step, is_canary, guard, count
        from session.signal_counts
        where ended_at is null and ($1::text is null or (tenant_id, rollout_id, step, is_canary, guard)
            > ($1, $2::uuid, $3::integer, $4::boolean, $5::text))
        order by tenant_id, rollout_id, step, is_canary, guard
        limit $6",
        after.map(|sum| sum.tenant.as_str()),
        after.map(|sum| sum.rollout.uuid()),
        after.map(|sum| sum.step),
        after.map(|sum| sum.is_canary),
        after.map(|sum| sum.guard.as_str()),
        PAGE,
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

/// A stretch of sessions, by tenant and id: after the first, up to the last if there is one.
pub struct Stretch<'a> {
    /// Before it.
    pub after: (&'a str, Uuid),
    /// Its end.
    pub until: Option<(&'a str, Uuid)>,
}

/// Deletes what sessions were dealt by rollouts whose sums are forgotten, and what became of them; says of how many deals.
/// Rows that somebody holds, and those beyond `limit`, are left for the next time.
#[tracing::instrument(name = "db.signal.forget_units", skip_all)]
pub async fn forget_units(db: &mut PgConnection, of: &Stretch<'_>, limit: i64) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"with forgotten as materialized (
            select tenant_id, session_id, rollout_id
            from session.enrolments enrolment
            where (tenant_id, session_id) > ($1, $2)
                and ($3::text is null or (tenant_id, session_id) <= ($3, $4::uuid))
                and is_counted and not exists (
                    select from session.signal_counts sum
                    where sum.tenant_id = enrolment.tenant_id and sum.rollout_id = enrolment.rollout_id)
            limit $5
            for update skip locked
        ), outcomes as (
            delete from session.outcomes outcome using forgotten
            where outcome.tenant_id = forgotten.tenant_id and outcome.session_id = forgotten.session_id
                and outcome.rollout_id = forgotten.rollout_id
        ), redeals as (
            delete from session.redeals redeal using forgotten
            where redeal.tenant_id = forgotten.tenant_id and redeal.session_id = forgotten.session_id
                and redeal.rollout_id = forgotten.rollout_id
        ), deleted as (
            delete from session.enrolments enrolment using forgotten
            where enrolment.tenant_id = forgotten.tenant_id and enrolment.session_id = forgotten.session_id
                and enrolment.rollout_id = forgotten.rollout_id
            returning 1
        )
        select count(*) as "count!" from deleted"#,
        of.after.0,
        of.after.1,
        of.until.map(|(tenant, _)| tenant),
        of.until.map(|(_, session)| session),
        limit,
    )
    .fetch_one(db)
    .await
}
