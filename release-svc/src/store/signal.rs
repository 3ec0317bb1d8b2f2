//! `release.signal_counts` and `release.visit_counts`: what session services counted of rollouts.

use shared::id::{EnvironmentId, RolloutId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

use super::corrupt;
use crate::domain::signal::Count;

/// A database that counts, since it was restored last.
pub struct Source {
    pub environment: EnvironmentId,
    pub id: String,
    pub epoch: String,
}

/// Counts of a rollout, by column; each place once.
pub struct Counts {
    pub rollout: RolloutId,
    pub steps: Vec<i32>,
    pub are_canary: Vec<bool>,
    /// Empty for units.
    pub guards: Vec<String>,
    pub numbers: Vec<i64>,
}

impl Counts {
    pub const fn of(rollout: RolloutId) -> Self {
        Self { rollout, steps: Vec::new(), are_canary: Vec::new(), guards: Vec::new(), numbers: Vec::new() }
    }
}

/// Live visits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visits {
    pub counted_at: Time,
    pub canary: i64,
    pub control: i64,
}

/// Takes in that a source is there; false where it speaks of an epoch that is past. Its row is locked until the end of the
/// transaction, so that no two epochs report at once.
#[tracing::instrument(name = "db.signal.enter", skip_all)]
pub async fn enter(db: &mut PgConnection, source: &Source, now: Time) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "insert into release.signal_sources as source (environment, source_id, source_epoch, seen_at)
        values ($1, $2, $3, $4)
        on conflict (environment, source_id) do update
        set source_epoch = $3, seen_at = greatest(source.seen_at, $4),
            past_epochs = case when source.source_epoch = $3 then source.past_epochs
                else array_append(source.past_epochs, source.source_epoch) end
        where $3 <> all (source.past_epochs)",
        source.environment.as_str(),
        source.id,
        source.epoch,
        now,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// What is still to be counted of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    All,
    /// It has ended; but a release of it is retired only once no visit is on it.
    Visits,
    Nothing,
}

/// What is still to be counted of a rollout of this environment.
#[tracing::instrument(name = "db.signal.interest", skip_all)]
pub async fn interest(
    db: &mut PgConnection,
    tenant: &TenantId,
    environment: &EnvironmentId,
    rollout: RolloutId,
) -> sqlx::Result<Interest> {
    let row = sqlx::query!(
        r#"select ended_at is null as "is_live!", exists (
            select
            from release.tasks
            where tenant_id = $1 and counted_rollout_id = $2 and state in ('QUEUED', 'LEASED')
        ) as "is_waited_for!"
        from release.rollouts
        where tenant_id = $1 and rollout_id = $2 and environment = $3"#,
        tenant.as_str(),
        rollout.uuid(),
        environment.as_str(),
    )
    .fetch_optional(db)
    .await?;
    Ok(match row {
        Some(row) if row.is_live => Interest::All,
        Some(row) if row.is_waited_for => Interest::Visits,
        Some(_) | None => Interest::Nothing,
    })
}

/// Takes counts in; smaller ones of the same epoch change nothing.
#[tracing::instrument(name = "db.signal.upsert_counts", skip_all)]
pub async fn upsert_counts(
    db: &mut PgConnection,
    tenant: &TenantId,
    source: &Source,
    counts: &Counts,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into release.signal_counts as known
            (tenant_id, rollout_id, source_id, step, is_canary, guard, source_epoch, count)
        select $1, $2, $3, step, is_canary, guard, $4, count
        from unnest($5::integer[], $6::boolean[], $7::text[], $8::bigint[]) as told (step, is_canary, guard, count)
        order by step, is_canary, guard
        on conflict (tenant_id, rollout_id, source_id, step, is_canary, guard) do update
        set source_epoch = excluded.source_epoch, count = excluded.count
        where known.source_epoch <> excluded.source_epoch or known.count < excluded.count",
        tenant.as_str(),
        counts.rollout.uuid(),
        source.id,
        source.epoch,
        &counts.steps,
        &counts.are_canary,
        &counts.guards,
        &counts.numbers,
    )
    .execute(db)
    .await
    .map(drop)
}

/// Takes a count of live visits in, unless a later one is known.
#[tracing::instrument(name = "db.signal.upsert_visits", skip_all)]
pub async fn upsert_visits(
    db: &mut PgConnection,
    tenant: &TenantId,
    source: &Source,
    rollout: RolloutId,
    visits: &Visits,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into release.visit_counts as known (tenant_id, rollout_id, source_id, counted_at, canary, control)
        values ($1, $2, $3, $4, $5, $6)
        on conflict (tenant_id, rollout_id, source_id) do update
        set counted_at = excluded.counted_at, canary = excluded.canary, control = excluded.control
        where known.counted_at < excluded.counted_at",
        tenant.as_str(),
        rollout.uuid(),
        source.id,
        visits.counted_at,
        visits.canary,
        visits.control,
    )
    .execute(db)
    .await
    .map(drop)
}

/// What was counted of these rollouts, summed over sources, each in its present epoch.
#[tracing::instrument(name = "db.signal.list_counts", skip_all)]
pub async fn list_counts(
    db: &mut PgConnection,
    tenants: &[String],
    rollouts: &[Uuid],
    limit: i64,
) -> sqlx::Result<Vec<(RolloutId, Count)>> {
    let rows = sqlx::query!(
        r#"select known.rollout_id as "rollout_id: RolloutId", known.step, is_canary, guard, sum(count)::bigint as "count!"
        from release.signal_counts known
        join release.rollouts rollout using (tenant_id, rollout_id)
        join release.signal_sources source using (environment, source_id, source_epoch)
        where (known.tenant_id, known.rollout_id) in (select * from unnest($1::text[], $2::uuid[]))
        group by known.tenant_id, known.rollout_id, known.step, is_canary, guard
        limit $3"#,
        tenants,
        rollouts,
        limit,
    )
    .fetch_all(db)
    .await?;
    let read = |id: RolloutId, step: i32, is_canary, guard: String, count: i64| {
        let broken = |column| corrupt("signal_counts", column, &id);
        let count = Count {
            step: usize::try_from(step).map_err(|_| broken("step"))?,
            is_canary,
            guard: (!guard.is_empty()).then_some(guard),
            number: u64::try_from(count).map_err(|_| broken("count"))?,
        };
        Ok((id, count))
    };
    rows.into_iter()
        .map(|row| read(row.rollout_id, row.step, row.is_canary, row.guard, row.count))
        .collect()
}

/// Live visits of these rollouts, summed over the sources that are heard of since `since`, as of the oldest count. None of a
/// rollout where such a source has not counted it.
#[tracing::instrument(name = "db.signal.list_visits", skip_all)]
pub async fn list_visits(
    db: &mut PgConnection,
    tenants: &[String],
    rollouts: &[Uuid],
    since: Time,
) -> sqlx::Result<Vec<(RolloutId, Visits)>> {
    let rows = sqlx::query!(
        r#"select rollout.rollout_id as "rollout_id: RolloutId", min(counted_at) as "counted_at!",
            sum(canary)::bigint as "canary!", sum(control)::bigint as "control!"
        from release.rollouts rollout
        join release.signal_sources source using (environment)
        left join release.visit_counts counted using (tenant_id, rollout_id, source_id)
        where (tenant_id, rollout_id) in (select * from unnest($1::text[], $2::uuid[])) and source.seen_at >= $3
        group by tenant_id, rollout.rollout_id
        having count(counted_at) = count(*)
        limit cardinality($2::uuid[])"#,
        tenants,
        rollouts,
        since,
    )
    .fetch_all(db)
    .await?;
    let visits = rows.into_iter().map(|row| {
        (row.rollout_id, Visits { counted_at: row.counted_at, canary: row.canary, control: row.control })
    });
    Ok(visits.collect())
}
