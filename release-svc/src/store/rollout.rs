//! Rollouts.

use shared::id::{ApprovalId, ComponentId, EnvironmentId, ReleaseId, RolloutId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

use super::corrupt;
use crate::domain::rollout::{Assignment, Decision, Rollout, ServedRelease, State, Steps};

struct Row {
    rollout_id: RolloutId,
    seq: i64,
    component: ComponentId,
    environment: EnvironmentId,
    release_id: ReleaseId,
    semver: String,
    previous_release_id: Option<ReleaseId>,
    previous_semver: Option<String>,
    state: String,
    step_exposures_bps: Vec<i32>,
    step: i32,
    assignment_policy: String,
    rollback_reason: Option<String>,
    starter: String,
    started_at: Time,
    ended_at: Option<Time>,
    approval_id: Option<ApprovalId>,
    version: i64,
}

fn state_of(name: &str, reason: Option<String>, ended_at: Option<Time>) -> Option<State> {
    Some(match (name, reason, ended_at) {
        ("RUNNING", None, None) => State::Running,
        ("SUCCEEDED", None, Some(at)) => State::Succeeded { at },
        ("ROLLING_BACK", Some(reason), None) => State::RollingBack { reason },
        ("ROLLED_BACK", Some(reason), Some(at)) => State::RolledBack { reason, at },
        _ => return None,
    })
}

/// The assignment policy of that name.
pub(super) fn assignment_of(name: &str) -> Option<Assignment> {
    [Assignment::NewVisits, Assignment::AllSessions]
        .into_iter()
        .find(|policy| policy.name() == name)
}

impl TryFrom<Row> for Rollout {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let id = row.rollout_id;
        let broken = |column| corrupt("rollouts", column, &id);
        let previous = row.previous_release_id.zip(row.previous_semver);
        Ok(Self {
            id,
            component: row.component,
            environment: row.environment,
            release: ServedRelease { id: row.release_id, version: row.semver },
            previous: previous.map(|(id, version)| ServedRelease { id, version }),
            steps: Steps::stored(row.step_exposures_bps),
            step: usize::try_from(row.step).map_err(|_| broken("step"))?,
            assignment: assignment_of(&row.assignment_policy).ok_or_else(|| broken("assignment_policy"))?,
            state: state_of(&row.state, row.rollback_reason, row.ended_at).ok_or_else(|| broken("state"))?,
            starter: row.starter,
            started_at: row.started_at,
            approval: row.approval_id,
            row_version: row.version,
        })
    }
}

/// A new rollout, if the release may be exposed: it is approved, by an approval of it that stands, and not quarantined.
#[tracing::instrument(name = "db.rollout.insert", skip_all)]
pub async fn insert(db: &mut PgConnection, tenant: &TenantId, rollout: &Rollout) -> sqlx::Result<bool> {
    let previous = rollout.previous.as_ref();
    let done = sqlx::query!(
        "insert into release.rollouts
            (tenant_id, rollout_id, component, environment, release_id, semver, previous_release_id, previous_semver,
            state, step_exposures_bps, step, exposure_bps, assignment_policy, starter, started_at, version, approval_id)
        select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, approval_id
        from release.approvals approval
        join release.releases release using (tenant_id, release_id, revision)
        where tenant_id = $1 and approval_id = $17 and release_id = $5 and ended_at is null
            and coalesce(expires_at > $15, true) and quarantined_at is null
            and release.state in ('APPROVED', 'ACTIVE', 'RELEASED')",
        tenant.as_str(),
        rollout.id.uuid(),
        rollout.component.as_str(),
        rollout.environment.as_str(),
        rollout.release.id.uuid(),
        rollout.release.version,
        previous.map(|previous| previous.id.uuid()),
        previous.map(|previous| previous.version.as_str()),
        rollout.state.name(),
        rollout.steps.as_slice(),
        step(rollout),
        rollout.exposure_bps(),
        rollout.assignment.name(),
        rollout.starter,
        rollout.started_at,
        rollout.row_version,
        rollout.approval.map(ApprovalId::uuid) as Option<Uuid>,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

#[tracing::instrument(name = "db.rollout.find", skip_all)]
pub async fn find(db: &mut PgConnection, tenant: &TenantId, id: RolloutId) -> sqlx::Result<Option<Rollout>> {
    let row = sqlx::query_as!(
        Row,
        r#"select rollout_id as "rollout_id: RolloutId", seq, component as "component: ComponentId",
            environment as "environment: EnvironmentId", release_id as "release_id: ReleaseId", semver,
            previous_release_id as "previous_release_id: ReleaseId", previous_semver, state, step_exposures_bps, step,
            assignment_policy, rollback_reason, starter, started_at, ended_at, approval_id as "approval_id: ApprovalId",
            version
        from release.rollouts
        where tenant_id = $1 and rollout_id = $2"#,
        tenant.as_str(),
        id.uuid(),
    )
    .fetch_optional(db)
    .await?;
    row.map(TryInto::try_into).transpose()
}

#[tracing::instrument(name = "db.rollout.lock", skip_all)]
pub async fn lock(db: &mut PgConnection, tenant: &TenantId, id: RolloutId) -> sqlx::Result<Option<Rollout>> {
    let row = sqlx::query_as!(
        Row,
        r#"select rollout_id as "rollout_id: RolloutId", seq, component as "component: ComponentId",
            environment as "environment: EnvironmentId", release_id as "release_id: ReleaseId", semver,
            previous_release_id as "previous_release_id: ReleaseId", previous_semver, state, step_exposures_bps, step,
            assignment_policy, rollback_reason, starter, started_at, ended_at, approval_id as "approval_id: ApprovalId",
            version
        from release.rollouts
        where tenant_id = $1 and rollout_id = $2
        for no key update"#,
        tenant.as_str(),
        id.uuid(),
    )
    .fetch_optional(db)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// The rollout of a component that is under way in an environment.
#[tracing::instrument(name = "db.rollout.find_under_way", skip_all)]
pub async fn find_under_way(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: &ComponentId,
    environment: &EnvironmentId,
) -> sqlx::Result<Option<RolloutId>> {
    sqlx::query_scalar!(
        r#"select rollout_id as "rollout_id: RolloutId"
        from release.rollouts
        where tenant_id = $1 and component = $2 and environment = $3 and state in ('RUNNING', 'ROLLING_BACK')"#,
        tenant.as_str(),
        component.as_str(),
        environment.as_str(),
    )
    .fetch_optional(db)
    .await
}

/// What a list is narrowed by; empty selects all.
pub struct Filter {
    pub component: Option<ComponentId>,
    pub environment: Option<EnvironmentId>,
    pub states: Vec<String>,
}

/// Newest first, beginning before `before`, each with what the next page begins before.
#[tracing::instrument(name = "db.rollout.list", skip_all)]
pub async fn list(
    db: &mut PgConnection,
    tenant: &TenantId,
    filter: &Filter,
    before: i64,
    limit: i64,
) -> sqlx::Result<Vec<(i64, Rollout)>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select rollout_id as "rollout_id: RolloutId", seq, component as "component: ComponentId",
            environment as "environment: EnvironmentId", release_id as "release_id: ReleaseId", semver,
            previous_release_id as "previous_release_id: ReleaseId", previous_semver, state, step_exposures_bps, step,
            assignment_policy, rollback_reason, starter, started_at, ended_at, approval_id as "approval_id: ApprovalId",
            version
        from release.rollouts
        where tenant_id = $1
            and ($2::text is null or component = $2)
            and ($3::text is null or environment = $3)
            and (cardinality($4::text[]) = 0 or state = any($4))
            and seq < $5
        order by seq desc
        limit $6"#,
        tenant.as_str(),
        filter.component.as_ref().map(ComponentId::as_str),
        filter.environment.as_ref().map(EnvironmentId::as_str),
        &filter.states,
        before,
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(|row| Ok((row.seq, row.try_into()?))).collect()
}

/// Carries a transition out, if the rollout still is where it was when it was decided and, forward, loses no exposure, nor
/// gains any while its release is quarantined.
#[tracing::instrument(name = "db.rollout.update", skip_all)]
pub async fn update(db: &mut PgConnection, tenant: &TenantId, decision: &Decision) -> sqlx::Result<bool> {
    let Decision { rollout, from, kind: _ } = decision;
    let done = sqlx::query!(
        "update release.rollouts
        set state = $4, step = $5, exposure_bps = $6, rollback_reason = $7, ended_at = $8, version = $9
        where tenant_id = $1 and rollout_id = $2 and state = $3 and version + 1 = $9
            and state not in ('SUCCEEDED', 'ROLLED_BACK')
            and ($4 in ('ROLLING_BACK', 'ROLLED_BACK') or (exposure_bps <= $6 and step <= $5))
            and (exposure_bps >= $6 or not exists (
                select
                from release.releases release
                where release.tenant_id = $1 and release.release_id = rollouts.release_id
                    and quarantined_at is not null
            ))",
        tenant.as_str(),
        rollout.id.uuid(),
        *from,
        rollout.state.name(),
        step(rollout),
        rollout.exposure_bps(),
        rollout.state.rollback_reason(),
        rollout.state.ended_at(),
        rollout.row_version,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// A rollout that ended, and what is known of its release.
pub struct Ended {
    pub at: Time,
    pub is_rolled_back: bool,
    pub author: String,
    /// JSON.
    pub change: String,
}

/// Rollouts of a component that ended, newest first.
#[tracing::instrument(name = "db.rollout.list_ended", skip_all)]
pub async fn list_ended(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: &ComponentId,
    limit: i64,
) -> sqlx::Result<Vec<Ended>> {
    sqlx::query_as!(
        Ended,
        r#"select rollout.ended_at as "at!", rollout.state = 'ROLLED_BACK' as "is_rolled_back!", author, change
        from release.rollouts rollout
        join release.releases release using (tenant_id, release_id)
        where rollout.tenant_id = $1 and rollout.component = $2 and rollout.ended_at is not null
        order by rollout.seq desc
        limit $3"#,
        tenant.as_str(),
        component.as_str(),
        limit,
    )
    .fetch_all(db)
    .await
}

/// Rollouts of the named components that wait for the confirmation of exposure 0 in an environment, in the order in which
/// their components are to be locked.
#[tracing::instrument(name = "db.rollout.list_rolling_back", skip_all)]
pub async fn list_rolling_back(
    db: &mut PgConnection,
    environment: &EnvironmentId,
    tenants: &[String],
    components: &[String],
) -> sqlx::Result<Vec<(TenantId, RolloutId)>> {
    let rows = sqlx::query!(
        r#"select tenant_id as "tenant_id: TenantId", rollout_id as "rollout_id: RolloutId"
        from release.rollouts
        where environment = $1 and state = 'ROLLING_BACK'
            and (tenant_id, component) in (select * from unnest($2::text[], $3::text[]))
        order by tenant_id, component
        limit cardinality($2::text[])"#,
        environment.as_str(),
        tenants,
        components,
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.tenant_id, row.rollout_id)).collect())
}

/// Rollouts whose exposure 0 every session service acts on: every replica that may know of the rollout, because it was
/// seen since `lease_began_at` and since the rollout started (less `margin_secs`, as a replica with an open watch is
/// written down only now and then), has applied the present revision of the route. `only` narrows it to one rollout.
///
/// While a rollout is rolled back nothing else changes its route, so the present revision is the one with exposure 0.
#[tracing::instrument(name = "db.rollout.list_confirmed", skip_all)]
pub async fn list_confirmed(
    db: &mut PgConnection,
    lease_began_at: Time,
    margin_secs: f64,
    only: Option<RolloutId>,
    limit: i64,
) -> sqlx::Result<Vec<(TenantId, RolloutId)>> {
    let rows = sqlx::query!(
        r#"select rollout.tenant_id as "tenant_id: TenantId", rollout.rollout_id as "rollout_id: RolloutId"
        from release.rollouts rollout
        join release.routes route using (tenant_id, component, environment)
        where rollout.state = 'ROLLING_BACK' and ($3::uuid is null or rollout.rollout_id = $3)
            and not exists (
                select
                from release.route_replicas replica
                left join release.routes_applied applied
                    on applied.tenant_id = rollout.tenant_id and applied.component = rollout.component
                    and applied.environment = replica.environment and applied.replica_id = replica.replica_id
                where replica.environment = rollout.environment
                    and replica.seen_at >= greatest($1, rollout.started_at - make_interval(secs => $2))
                    and coalesce(applied.revision, 0) < route.revision
            )
        order by rollout.tenant_id, rollout.component
        limit $4"#,
        lease_began_at,
        margin_secs,
        only.map(RolloutId::uuid) as Option<Uuid>,
        limit,
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.tenant_id, row.rollout_id)).collect())
}

fn step(rollout: &Rollout) -> i32 {
    i32::try_from(rollout.step).unwrap_or(i32::MAX)
}
