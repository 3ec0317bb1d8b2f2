//! `release.tasks`: what executors are to do. Their rows are locked after everything that hangs on a component.

use shared::id::{ComponentId, EnvironmentId, ReleaseId, RolloutId, TaskId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

use super::corrupt;
use super::signal::Source;
use crate::domain::rollout::Rollout;
use crate::domain::rollout::control::TaskEnd;
use crate::domain::task::{Decision, Kind, New, RETIRE_AFTER, State, Task};

struct Row {
    task_id: TaskId,
    seq: i64,
    kind: String,
    component: ComponentId,
    environment: EnvironmentId,
    rollout_id: RolloutId,
    step: i32,
    release_id: ReleaseId,
    semver: String,
    artifact_digest: Option<String>,
    exposure_bps: i32,
    state: String,
    not_before: Time,
    fencing_token: i64,
    failures: i32,
    executor: Option<String>,
    lease_ends_at: Option<Time>,
    message: String,
    created_at: Time,
    ended_at: Option<Time>,
}

fn state_of(row: &Row) -> Option<State> {
    Some(match (row.state.as_str(), row.lease_ends_at, row.ended_at) {
        ("QUEUED", None, None) => State::Queued,
        ("LEASED", Some(until), None) => State::Leased { until },
        ("DONE", None, Some(at)) => State::Done { at },
        ("FAILED", None, Some(at)) => State::Failed { at },
        ("CANCELLED", None, Some(at)) => State::Cancelled { at },
        _ => return None,
    })
}

impl TryFrom<Row> for Task {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let broken = |column| corrupt("tasks", column, &row.task_id);
        let kind = [Kind::Expose, Kind::Retire].into_iter().find(|kind| kind.name() == row.kind);
        Ok(Self {
            id: row.task_id,
            kind: kind.ok_or_else(|| broken("kind"))?,
            state: state_of(&row).ok_or_else(|| broken("state"))?,
            step: usize::try_from(row.step).map_err(|_| broken("step"))?,
            component: row.component,
            environment: row.environment,
            rollout: row.rollout_id,
            release: row.release_id,
            version: row.semver,
            artifact_digest: row.artifact_digest,
            exposure_bps: row.exposure_bps,
            not_before: row.not_before,
            token: row.fencing_token,
            failures: row.failures,
            executor: row.executor,
            message: row.message,
            created_at: row.created_at,
        })
    }
}

/// A new task; false where the rollout's step has one of the kind, or, to retire a release, where nothing was deployed of it
/// since that was asked before.
#[tracing::instrument(name = "db.task.insert", skip_all)]
pub async fn insert(
    db: &mut PgConnection,
    tenant: &TenantId,
    rollout: &Rollout,
    new: &New,
) -> sqlx::Result<bool> {
    let New { id, kind, release, exposure_bps, idle, now } = new;
    let done = sqlx::query!(
        "insert into release.tasks
            (tenant_id, task_id, kind, component, environment, rollout_id, step, release_id, exposure_bps, state, not_before,
            fencing_token, failures, message, counted_rollout_id, counted_since, forced_at, created_at)
        select $1, $2, $3, $4, $5, $6, $7, $8, $9, 'QUEUED', $13, 0, 0, '', $10, $11, $12, $13
        where $3 = 'EXPOSE' or not exists (
            select
            from release.tasks known
            where tenant_id = $1 and release_id = $8 and environment = $5 and kind = 'RETIRE'
                and state in ('QUEUED', 'LEASED', 'DONE') and not exists (
                    select
                    from release.tasks later
                    where later.tenant_id = $1 and later.release_id = $8 and later.environment = $5
                        and later.kind = 'EXPOSE' and later.seq > known.seq
                )
        )
        on conflict on constraint tasks_step_key do nothing",
        tenant.as_str(),
        id.uuid(),
        kind.name(),
        rollout.component.as_str(),
        rollout.environment.as_str(),
        rollout.id.uuid(),
        i32::try_from(rollout.step).unwrap_or(i32::MAX),
        release.uuid(),
        exposure_bps,
        idle.as_ref().map(|idle| idle.rollout.uuid()),
        idle.as_ref().map(|idle| idle.since),
        idle.as_ref().map(|idle| idle.forced_at),
        now,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

#[tracing::instrument(name = "db.task.lock", skip_all)]
pub async fn lock(db: &mut PgConnection, tenant: &TenantId, id: TaskId) -> sqlx::Result<Option<Task>> {
    let row = sqlx::query_as!(
        Row,
        r#"select task_id as "task_id: TaskId", task.seq, kind, task.component as "component: ComponentId",
            environment as "environment: EnvironmentId", rollout_id as "rollout_id: RolloutId", step,
            release_id as "release_id: ReleaseId", semver, artifact_digest, exposure_bps, task.state, not_before,
            fencing_token, failures, executor, lease_ends_at, message, task.created_at, ended_at
        from release.tasks task
        join release.releases release using (tenant_id, release_id)
        where tenant_id = $1 and task_id = $2
        for no key update of task"#,
        tenant.as_str(),
        id.uuid(),
    )
    .fetch_optional(db)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// What somebody who asks for a task may have.
pub struct Wanted<'a> {
    pub environment: &'a EnvironmentId,
    /// Of these components; empty for all.
    pub components: &'a [String],
    /// Groups that the caller is in.
    pub groups: &'a [String],
}

/// Locks the oldest task that is free, passing over what others have locked. A release is retired once every session
/// service that was there in the last day has counted no live visit on it, or when its time is over.
#[tracing::instrument(name = "db.task.lock_next", skip_all)]
pub async fn lock_next(
    db: &mut PgConnection,
    tenant: &TenantId,
    wanted: &Wanted<'_>,
    now: Time,
) -> sqlx::Result<Option<TaskId>> {
    sqlx::query_scalar!(
        r#"select task_id as "task_id: TaskId"
        from release.tasks task
        join release.components component using (tenant_id, component)
        where tenant_id = $1 and task.environment = $2
            and (cardinality($3::text[]) = 0 or component = any($3))
            and (cardinality(owner_groups) = 0 or owner_groups && $4)
            and (state = 'QUEUED' or state = 'LEASED' and lease_ends_at <= $5)
            and not_before <= $5
            and (
                task.kind = 'EXPOSE' or forced_at <= $5
                or not exists (
                    select
                    from release.signal_sources source
                    left join release.visit_counts counted
                        on counted.tenant_id = $1 and counted.rollout_id = counted_rollout_id
                        and counted.source_id = source.source_id
                    where source.environment = $2 and source.seen_at > $6
                        and (
                            coalesce(counted.counted_at < counted_since, true)
                            or case when task.rollout_id = counted_rollout_id then canary else control end > 0
                        )
                )
                and not exists (
                    select
                    from release.route_replicas replica
                    where replica.environment = $2 and replica.seen_at > $6 and not exists (
                        select from release.signal_sources source where source.environment = $2 and source.seen_at > $6
                    )
                )
            )
        order by task.seq
        limit 1
        for no key update of task skip locked"#,
        tenant.as_str(),
        wanted.environment.as_str(),
        wanted.components,
        wanted.groups,
        now,
        now - RETIRE_AFTER,
    )
    .fetch_optional(db)
    .await
}

/// A rollout that has ended, and whose last visits on one of its releases a task waits for.
pub struct Awaited {
    pub tenant: String,
    pub component: String,
    pub rollout: RolloutId,
    pub release: ReleaseId,
    pub previous: Option<ReleaseId>,
}

/// Those of which a source has yet to tell that no visit is left, oldest first. A visit that begins gets another release,
/// so none comes after that.
#[tracing::instrument(name = "db.task.list_awaited", skip_all)]
pub async fn list_awaited(
    db: &mut PgConnection,
    source: &Source,
    now: Time,
    limit: i64,
) -> sqlx::Result<Vec<Awaited>> {
    sqlx::query_as!(
        Awaited,
        r#"select rollout.tenant_id as tenant, rollout.component, rollout.rollout_id as "rollout: RolloutId",
            rollout.release_id as "release: ReleaseId", previous_release_id as "previous: ReleaseId"
        from release.tasks task
        join release.rollouts rollout
            on rollout.tenant_id = task.tenant_id and rollout.rollout_id = counted_rollout_id
        where task.environment = $1 and task.state in ('QUEUED', 'LEASED') and forced_at > $3 and not exists (
            select
            from release.visit_counts counted
            where counted.tenant_id = task.tenant_id and counted.rollout_id = counted_rollout_id
                and counted.source_id = $2 and counted.counted_at >= counted_since
                and case when task.rollout_id = counted_rollout_id then canary else control end = 0
        )
        group by rollout.tenant_id, rollout.rollout_id
        order by min(task.seq)
        limit $4"#,
        source.environment.as_str(),
        source.id,
        now,
        limit,
    )
    .fetch_all(db)
    .await
}

/// Open tasks of a kind for a release in an environment.
#[tracing::instrument(name = "db.task.list_open", skip_all)]
pub async fn list_open(
    db: &mut PgConnection,
    tenant: &TenantId,
    environment: &EnvironmentId,
    release: ReleaseId,
    kind: Kind,
) -> sqlx::Result<Vec<TaskId>> {
    sqlx::query_scalar!(
        r#"select task_id as "task_id: TaskId"
        from release.tasks
        where tenant_id = $1 and environment = $2 and release_id = $3 and kind = $4 and state in ('QUEUED', 'LEASED')
        order by seq
        limit 100"#,
        tenant.as_str(),
        environment.as_str(),
        release.uuid(),
        kind.name(),
    )
    .fetch_all(db)
    .await
}

/// Carries a change out, if the task still is where it was when it was decided and nobody else has been handed it since.
#[tracing::instrument(name = "db.task.update", skip_all)]
pub async fn update(db: &mut PgConnection, tenant: &TenantId, decision: &Decision) -> sqlx::Result<bool> {
    let Decision { task, from, token, kind: _ } = decision;
    let lease_ends_at = match task.state {
        State::Leased { until } => Some(until),
        State::Queued | State::Done { .. } | State::Failed { .. } | State::Cancelled { .. } => None,
    };
    let done = sqlx::query!(
        "update release.tasks
        set state = $5, not_before = $6, fencing_token = $7, failures = $8, executor = $9, lease_ends_at = $10,
            message = $11, ended_at = $12
        where tenant_id = $1 and task_id = $2 and state = $3 and fencing_token = $4",
        tenant.as_str(),
        task.id.uuid(),
        from,
        token,
        task.state.name(),
        task.not_before,
        task.token,
        task.failures,
        task.executor,
        lease_ends_at,
        task.message,
        task.state.ended_at(),
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// What became of the tasks for the present steps of these rollouts, of whichever tenants, where they have ended.
#[tracing::instrument(name = "db.task.list_ends", skip_all)]
pub async fn list_ends(
    db: &mut PgConnection,
    tenants: &[String],
    rollouts: &[Uuid],
) -> sqlx::Result<Vec<(RolloutId, TaskEnd)>> {
    let rows = sqlx::query!(
        r#"select rollout_id as "rollout_id: RolloutId", task.state = 'DONE' as "is_done!", message
        from release.tasks task
        join release.rollouts rollout using (tenant_id, rollout_id, step)
        where (tenant_id, rollout_id) in (select * from unnest($1::text[], $2::uuid[]))
            and kind = 'EXPOSE' and task.state in ('DONE', 'FAILED')
        limit cardinality($2::uuid[])"#,
        tenants,
        rollouts,
    )
    .fetch_all(db)
    .await?;
    let end = |is_done, message| if is_done { TaskEnd::Done } else { TaskEnd::Failed(message) };
    Ok(rows
        .into_iter()
        .map(|row| (row.rollout_id, end(row.is_done, row.message)))
        .collect())
}

/// What a list is narrowed by; empty selects all.
pub struct Filter {
    pub component: Option<ComponentId>,
    pub environment: Option<EnvironmentId>,
    /// As of `now`.
    pub states: Vec<String>,
}

/// Newest first, made before `before`, each with what the next page begins before.
#[tracing::instrument(name = "db.task.list", skip_all)]
pub async fn list(
    db: &mut PgConnection,
    tenant: &TenantId,
    filter: &Filter,
    now: Time,
    (before, limit): (i64, i64),
) -> sqlx::Result<Vec<(i64, Task)>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select task_id as "task_id: TaskId", task.seq, kind, task.component as "component: ComponentId",
            environment as "environment: EnvironmentId", rollout_id as "rollout_id: RolloutId", step,
            release_id as "release_id: ReleaseId", semver, artifact_digest, exposure_bps, task.state, not_before,
            fencing_token, failures, executor, lease_ends_at, message, task.created_at, ended_at
        from release.tasks task
        join release.releases release using (tenant_id, release_id)
        where tenant_id = $1
            and ($2::text is null or task.component = $2)
            and ($3::text is null or environment = $3)
            and (
                cardinality($4::text[]) = 0
                or case when lease_ends_at <= $5 then 'QUEUED' else task.state end = any($4)
            )
            and task.seq < $6
        order by task.seq desc
        limit $7"#,
        tenant.as_str(),
        filter.component.as_ref().map(ComponentId::as_str),
        filter.environment.as_ref().map(EnvironmentId::as_str),
        &filter.states,
        now,
        before,
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(|row| Ok((row.seq, row.try_into()?))).collect()
}
