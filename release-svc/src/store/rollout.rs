//! Rollouts.

use shared::id::{ApprovalId, ComponentId, EnvironmentId, ReleaseId, RolloutId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

use super::corrupt;
use crate::domain::blocker::Kind;
use crate::domain::rollout::{Assignment, Decision, Mode, Phase, Rollout, ServedRelease, State, Steps};

pub mod live;

struct Row {
    rollout_id: RolloutId,
    seq: i64,
    mode: String,
    rollback_of: Option<RolloutId>,
    component: ComponentId,
    environment: EnvironmentId,
    release_id: ReleaseId,
    semver: String,
    previous_release_id: Option<ReleaseId>,
    previous_semver: Option<String>,
    state: String,
    phase: Option<String>,
    entered_at: Option<Time>,
    step_exposures_bps: Vec<i32>,
    plan: String,
    step: i32,
    exposure_bps: i32,
    assignment_policy: String,
    waiting_for: Vec<String>,
    pause: Option<String>,
    harms: String,
    mismatched_at: Option<Time>,
    step_began_at: Option<Time>,
    rollback_reason: Option<String>,
    superseded_by: Option<RolloutId>,
    starter: String,
    started_at: Time,
    ended_at: Option<Time>,
    approval_id: Option<ApprovalId>,
    version: i64,
}

fn phase_of(name: Option<&str>) -> Option<Phase> {
    let Some(name) = name else { return Some(Phase::Exposing) };
    [Phase::Deploying, Phase::Exposing, Phase::Baking]
        .into_iter()
        .find(|phase| phase.name() == name)
}

/// The state of a row; none where its columns contradict each other.
fn state_of(row: &mut Row) -> Option<State> {
    let since = row.entered_at.unwrap_or(row.started_at);
    let reason = row.rollback_reason.take();
    let kind_of = |name: &String| Kind::ALL.into_iter().find(|kind| kind.name() == name);
    Some(match (row.state.as_str(), reason, row.ended_at) {
        ("WAITING", None, None) => {
            // A newer version may know of more.
            State::Waiting { since, reasons: row.waiting_for.iter().filter_map(kind_of).collect() }
        }
        ("RUNNING", None, None) => State::Running { phase: phase_of(row.phase.as_deref())?, since },
        ("PAUSED", None, None) => State::Paused {
            phase: phase_of(row.phase.as_deref())?,
            pause: serde_json::from_str(row.pause.as_deref()?).ok()?,
        },
        ("DRAINING", None, None) => State::Draining { since },
        ("SUCCEEDED", None, Some(at)) => State::Succeeded { at },
        ("ROLLING_BACK", Some(reason), None) => State::RollingBack { reason, since },
        ("ROLLBACK_FAILED", Some(reason), None) => State::RollbackFailed { reason, since },
        ("ROLLED_BACK", Some(reason), Some(at)) => State::RolledBack { reason, at },
        ("CANCELLED", Some(reason), Some(at)) => State::Cancelled { reason, at },
        ("SUPERSEDED", None, Some(at)) => State::Superseded { by: row.superseded_by?, at },
        _ => return None,
    })
}

fn mode_of(name: &str, of: Option<RolloutId>) -> Option<Mode> {
    match (name, of) {
        ("FORWARD", None) => Some(Mode::Forward),
        ("ROLLBACK", Some(of)) => Some(Mode::Rollback { of }),
        _ => None,
    }
}

/// The assignment policy of that name.
pub(super) fn assignment_of(name: &str) -> Option<Assignment> {
    [Assignment::NewVisits, Assignment::AllSessions]
        .into_iter()
        .find(|policy| policy.name() == name)
}

impl TryFrom<Row> for Rollout {
    type Error = sqlx::Error;

    fn try_from(mut row: Row) -> sqlx::Result<Self> {
        let id = row.rollout_id;
        let entered_at = row.entered_at.unwrap_or(row.started_at);
        let broken = |column| corrupt("rollouts", column, &id);
        let state = state_of(&mut row).ok_or_else(|| broken("state"))?;
        let previous = row.previous_release_id.zip(row.previous_semver);
        Ok(Self {
            id,
            mode: mode_of(&row.mode, row.rollback_of).ok_or_else(|| broken("mode"))?,
            component: row.component,
            environment: row.environment,
            release: ServedRelease { id: row.release_id, version: row.semver },
            previous: previous.map(|(id, version)| ServedRelease { id, version }),
            steps: Steps::stored(row.step_exposures_bps),
            plan: serde_json::from_str(&row.plan).map_err(|_| broken("plan"))?,
            step: usize::try_from(row.step).map_err(|_| broken("step"))?,
            exposure_bps: row.exposure_bps,
            assignment: assignment_of(&row.assignment_policy).ok_or_else(|| broken("assignment_policy"))?,
            state,
            // An older version that went on to the step did not write down when.
            step_began_at: row.step_began_at.unwrap_or(entered_at),
            harms: serde_json::from_str(&row.harms).map_err(|_| broken("harms"))?,
            mismatched_at: row.mismatched_at,
            starter: row.starter,
            started_at: row.started_at,
            approval: row.approval_id,
            row_version: row.version,
        })
    }
}

/// The columns that transitions change.
struct Changing {
    state: &'static str,
    phase: Option<&'static str>,
    waiting_for: Vec<String>,
    pause: Option<String>,
    harms: String,
    superseded_by: Option<Uuid>,
}

impl Changing {
    fn of(rollout: &Rollout) -> sqlx::Result<Self> {
        let json = |error| sqlx::Error::Encode(Box::new(error));
        let (mut waiting_for, mut pause, mut superseded_by) = (Vec::new(), None, None);
        match &rollout.state {
            State::Waiting { reasons, .. } => {
                waiting_for = reasons.iter().map(|kind| kind.name().to_owned()).collect();
            }
            State::Paused { pause: why, .. } => pause = Some(serde_json::to_string(why).map_err(json)?),
            State::Superseded { by, .. } => superseded_by = Some(by.uuid()),
            State::Running { .. }
            | State::Draining { .. }
            | State::Succeeded { .. }
            | State::RollingBack { .. }
            | State::RollbackFailed { .. }
            | State::RolledBack { .. }
            | State::Cancelled { .. } => {}
        }
        Ok(Self {
            state: rollout.state.name(),
            phase: rollout.state.phase().map(Phase::name),
            waiting_for,
            pause,
            harms: serde_json::to_string(&rollout.harms).map_err(json)?,
            superseded_by,
        })
    }
}

/// A new rollout. One that exposes anybody needs a release that may be exposed: it is approved, by an approval of it that
/// stands, not quarantined, and made since the last rollback there, unless that holds nothing any more.
#[tracing::instrument(name = "db.rollout.insert", skip_all)]
pub async fn insert(db: &mut PgConnection, tenant: &TenantId, rollout: &Rollout) -> sqlx::Result<bool> {
    let previous = rollout.previous.as_ref();
    let Changing { state, phase, waiting_for, .. } = Changing::of(rollout)?;
    let of = match rollout.mode {
        Mode::Forward => None,
        Mode::Rollback { of } => Some(of.uuid()),
    };
    let plan = serde_json::to_string(&rollout.plan).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    let done = sqlx::query!(
        "insert into release.rollouts
            (tenant_id, rollout_id, component, environment, release_id, semver, previous_release_id, previous_semver,
            state, step_exposures_bps, step, exposure_bps, assignment_policy, starter, started_at, version, approval_id,
            mode, rollback_of, plan, phase, entered_at, waiting_for, rollback_reason, step_begins)
        select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24,
            array[$25::timestamptz]
        where $9 in ('WAITING', 'ROLLING_BACK') or exists (
            select
            from release.approvals approval
            join release.releases release using (tenant_id, release_id, revision)
            where tenant_id = $1 and approval_id = $17 and release_id = $5 and ended_at is null
                and coalesce(expires_at > $15, true) and quarantined_at is null
                and release.state in ('APPROVED', 'ACTIVE', 'RELEASED')
                and not exists (
                    select
                    from release.holds hold
                    where hold.tenant_id = $1 and hold.component = $3 and hold.environment = $4
                        and hold.since > release.created_at
                )
        )",
        tenant.as_str(),
        rollout.id.uuid(),
        rollout.component.as_str(),
        rollout.environment.as_str(),
        rollout.release.id.uuid(),
        rollout.release.version,
        previous.map(|previous| previous.id.uuid()),
        previous.map(|previous| previous.version.as_str()),
        state,
        rollout.steps.as_slice(),
        step(rollout),
        rollout.exposure_bps,
        rollout.assignment.name(),
        rollout.starter,
        rollout.started_at,
        rollout.row_version,
        rollout.approval.map(ApprovalId::uuid) as Option<Uuid>,
        rollout.mode.name(),
        of,
        plan,
        phase,
        rollout.state.since(),
        &waiting_for,
        rollout.state.rollback_reason(),
        rollout.step_began_at,
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
            previous_release_id as "previous_release_id: ReleaseId", previous_semver, state, phase, entered_at,
            step_exposures_bps, plan, step, exposure_bps, assignment_policy, waiting_for, pause, harms,
            mismatched_at, step_begins[step + 1] as step_began_at, rollback_reason, superseded_by as "superseded_by: RolloutId", starter, started_at, ended_at,
            approval_id as "approval_id: ApprovalId", mode, rollback_of as "rollback_of: RolloutId", version
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
            previous_release_id as "previous_release_id: ReleaseId", previous_semver, state, phase, entered_at,
            step_exposures_bps, plan, step, exposure_bps, assignment_policy, waiting_for, pause, harms,
            mismatched_at, step_begins[step + 1] as step_began_at, rollback_reason, superseded_by as "superseded_by: RolloutId", starter, started_at, ended_at,
            approval_id as "approval_id: ApprovalId", mode, rollback_of as "rollback_of: RolloutId", version
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

/// The rollout of a component that is under way in an environment, the one that goes back first.
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
        where tenant_id = $1 and component = $2 and environment = $3
            and state in ('RUNNING', 'PAUSED', 'DRAINING', 'ROLLING_BACK', 'ROLLBACK_FAILED')
        order by mode desc
        limit 1"#,
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
            previous_release_id as "previous_release_id: ReleaseId", previous_semver, state, phase, entered_at,
            step_exposures_bps, plan, step, exposure_bps, assignment_policy, waiting_for, pause, harms,
            mismatched_at, step_begins[step + 1] as step_began_at, rollback_reason, superseded_by as "superseded_by: RolloutId", starter, started_at, ended_at,
            approval_id as "approval_id: ApprovalId", mode, rollback_of as "rollback_of: RolloutId", version
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
/// gains any while its release is quarantined; what waited begins under an approval that stands, and where no rollback holds it.
#[tracing::instrument(name = "db.rollout.update", skip_all)]
pub async fn update(db: &mut PgConnection, tenant: &TenantId, decision: &Decision) -> sqlx::Result<bool> {
    let Decision { rollout, from, kind: _, reason: _ } = decision;
    let Changing { state, phase, waiting_for, pause, harms, superseded_by } = Changing::of(rollout)?;
    let plan = serde_json::to_string(&rollout.plan).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    let previous = rollout.previous.as_ref();
    let done = sqlx::query!(
        "update release.rollouts
        set state = $4, step = $5, exposure_bps = $6, rollback_reason = $7, ended_at = $8, version = $9, phase = $10,
            entered_at = $11, waiting_for = $12, pause = $13, harms = $14, superseded_by = $15, previous_release_id = $16,
            previous_semver = $17, step_exposures_bps = $18, started_at = $19, approval_id = $20, plan = $21,
            mismatched_at = $22, step_begins[$5 + 1] = $23
        where tenant_id = $1 and rollout_id = $2 and state = $3 and version + 1 = $9
            and state not in ('SUCCEEDED', 'ROLLED_BACK', 'CANCELLED', 'SUPERSEDED')
            and ($4 in ('ROLLING_BACK', 'ROLLBACK_FAILED', 'ROLLED_BACK') or (exposure_bps <= $6 and step <= $5))
            and (exposure_bps >= $6 or not exists (
                select
                from release.releases release
                where release.tenant_id = $1 and release.release_id = rollouts.release_id
                    and quarantined_at is not null
            ))
            and ($3 <> 'WAITING' or $4 <> 'RUNNING' or exists (
                select
                from release.approvals approval
                join release.releases release using (tenant_id, release_id, revision)
                where tenant_id = $1 and approval_id = $20 and release_id = rollouts.release_id
                    and approval.ended_at is null and coalesce(expires_at > $19, true) and quarantined_at is null
                    and release.state in ('APPROVED', 'ACTIVE', 'RELEASED')
                    and not exists (
                        select
                        from release.holds hold
                        where hold.tenant_id = $1 and hold.component = rollouts.component
                            and hold.environment = rollouts.environment and hold.since > release.created_at
                    )
            ))",
        tenant.as_str(),
        rollout.id.uuid(),
        *from,
        state,
        step(rollout),
        rollout.exposure_bps,
        rollout.state.rollback_reason(),
        rollout.state.ended_at(),
        rollout.row_version,
        phase,
        rollout.state.since(),
        &waiting_for,
        pause,
        harms,
        superseded_by,
        previous.map(|previous| previous.id.uuid()),
        previous.map(|previous| previous.version.as_str()),
        rollout.steps.as_slice(),
        rollout.started_at,
        rollout.approval.map(ApprovalId::uuid) as Option<Uuid>,
        plan,
        rollout.mismatched_at,
        rollout.step_began_at,
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
        where rollout.tenant_id = $1 and rollout.component = $2
            and rollout.state in ('SUCCEEDED', 'ROLLED_BACK') and rollout.ended_at is not null
        order by rollout.seq desc
        limit $3"#,
        tenant.as_str(),
        component.as_str(),
        limit,
    )
    .fetch_all(db)
    .await
}

fn step(rollout: &Rollout) -> i32 {
    i32::try_from(rollout.step).unwrap_or(i32::MAX)
}
