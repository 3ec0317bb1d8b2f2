//! `release.signal_counts` and `release.visit_counts`: what session services counted of rollouts.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use shared::id::{EnvironmentId, RolloutId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

use super::corrupt;
use crate::domain::rollout::Plan;
use crate::domain::signal::{COUNTS_MAX, Count, Scope};

/// A database that counts, since it was restored last.
pub struct Source {
    pub environment: EnvironmentId,
    pub id: String,
    pub epoch: String,
}

/// What one count is of. Their order is that of the rows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub tenant: TenantId,
    pub rollout: RolloutId,
    pub step: i32,
    pub is_canary: bool,
    /// Empty for units.
    pub guard: String,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interest {
    All(Scope),
    /// It has ended; but a release of it is retired only once no visit is on it.
    Visits,
    Nothing,
}

/// What is still to be counted of rollouts of this environment; of those that are not there, nothing.
#[tracing::instrument(name = "db.signal.list_interests", skip_all)]
pub async fn list_interests(
    db: &mut PgConnection,
    environment: &EnvironmentId,
    rollouts: &BTreeSet<(TenantId, RolloutId)>,
) -> sqlx::Result<HashMap<(TenantId, RolloutId), Interest>> {
    let (tenants, ids): (Vec<_>, Vec<_>) =
        rollouts.iter().map(|(tenant, id)| (tenant.to_string(), id.uuid())).unzip();
    let rows = sqlx::query!(
        r#"select tenant_id as "tenant_id: TenantId", rollout_id as "rollout_id: RolloutId",
            ended_at is null as "is_live!", exists (
                select
                from release.tasks task
                where task.tenant_id = rollout.tenant_id and counted_rollout_id = rollout.rollout_id
                    and task.state in ('QUEUED', 'LEASED')
            ) as "is_waited_for!", cardinality(step_exposures_bps) as "steps!", plan
        from release.rollouts rollout
        where environment = $1 and (tenant_id, rollout_id) in (select * from unnest($2::text[], $3::uuid[]))
        limit cardinality($3::uuid[])"#,
        environment.as_str(),
        &tenants,
        &ids,
    )
    .fetch_all(db)
    .await?;
    let interests = rows.into_iter().map(|row| {
        let id = row.rollout_id;
        let interest = if row.is_live {
            match (serde_json::from_str::<Plan>(&row.plan), usize::try_from(row.steps)) {
                (Ok(plan), Ok(steps)) => Interest::All(Scope { steps, guards: plan.guards }),
                // What cannot be read keeps back no report of the others.
                _ => Interest::Visits,
            }
        } else if row.is_waited_for {
            Interest::Visits
        } else {
            Interest::Nothing
        };
        Ok(((row.tenant_id, id), interest))
    });
    interests.collect()
}

/// Takes counts in; smaller ones of the same epoch change nothing.
#[tracing::instrument(name = "db.signal.upsert_counts", skip_all)]
pub async fn upsert_counts(
    db: &mut PgConnection,
    source: &Source,
    counts: &BTreeMap<Place, i64>,
) -> sqlx::Result<()> {
    let (mut tenants, mut rollouts, mut steps) = (Vec::new(), Vec::new(), Vec::new());
    let (mut are_canary, mut guards, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
    for (Place { tenant, rollout, step, is_canary, guard }, number) in counts {
        tenants.push(tenant.to_string());
        rollouts.push(rollout.uuid());
        steps.push(*step);
        are_canary.push(*is_canary);
        guards.push(guard.clone());
        numbers.push(*number);
    }
    sqlx::query!(
        "insert into release.signal_counts as known
            (tenant_id, rollout_id, source_id, step, is_canary, guard, source_epoch, count)
        select tenant, rollout, $1, step, is_canary, guard, $2, count
        from unnest($3::text[], $4::uuid[], $5::integer[], $6::boolean[], $7::text[], $8::bigint[])
            as told (tenant, rollout, step, is_canary, guard, count)
        on conflict (tenant_id, rollout_id, source_id, step, is_canary, guard) do update
        set source_epoch = excluded.source_epoch, count = excluded.count
        where known.source_epoch <> excluded.source_epoch or known.count < excluded.count",
        source.id,
        source.epoch,
        &tenants,
        &rollouts,
        &steps,
        &are_canary,
        &guards,
        &numbers,
    )
    .execute(db)
    .await
    .map(drop)
}

/// Takes counts of live visits in, unless later ones are known.
#[tracing::instrument(name = "db.signal.upsert_visits", skip_all)]
pub async fn upsert_visits(
    db: &mut PgConnection,
    source: &Source,
    visits: &BTreeMap<(TenantId, RolloutId), Visits>,
) -> sqlx::Result<()> {
    let (mut tenants, mut rollouts, mut times) = (Vec::new(), Vec::new(), Vec::new());
    let (mut canary, mut control) = (Vec::new(), Vec::new());
    for ((tenant, rollout), visits) in visits {
        tenants.push(tenant.to_string());
        rollouts.push(rollout.uuid());
        times.push(visits.counted_at);
        canary.push(visits.canary);
        control.push(visits.control);
    }
    sqlx::query!(
        "insert into release.visit_counts as known (tenant_id, rollout_id, source_id, counted_at, canary, control)
        select tenant, rollout, $1, counted_at, canary, control
        from unnest($2::text[], $3::uuid[], $4::timestamptz[], $5::bigint[], $6::bigint[])
            as told (tenant, rollout, counted_at, canary, control)
        on conflict (tenant_id, rollout_id, source_id) do update
        set counted_at = excluded.counted_at, canary = excluded.canary, control = excluded.control
        where known.counted_at < excluded.counted_at",
        source.id,
        &tenants,
        &rollouts,
        &times,
        &canary,
        &control,
    )
    .execute(db)
    .await
    .map(drop)
}

/// All that was counted of these rollouts, summed over sources, each in its present epoch. There are no more counts than
/// [`COUNTS_MAX`] of a rollout, as no others are taken in.
#[tracing::instrument(name = "db.signal.list_counts", skip_all)]
pub async fn list_counts(
    db: &mut PgConnection,
    tenants: &[String],
    rollouts: &[Uuid],
) -> sqlx::Result<Vec<(RolloutId, Count)>> {
    let limit = i64::try_from(rollouts.len() * COUNTS_MAX).unwrap_or(i64::MAX);
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
