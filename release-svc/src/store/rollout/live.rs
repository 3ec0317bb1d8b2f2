//! Rollouts that are not final, for whoever takes them further.

use shared::id::{ApprovalId, ComponentId, EnvironmentId, ReleaseId, RolloutId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

use super::Row;
use crate::domain::blocker::Kind;
use crate::domain::rollout::Rollout;

/// The rollout of a component that waits for an environment.
#[tracing::instrument(name = "db.rollout.find_waiting", skip_all)]
pub async fn find_waiting(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: &ComponentId,
    environment: &EnvironmentId,
) -> sqlx::Result<Option<RolloutId>> {
    sqlx::query_scalar!(
        r#"select rollout_id as "rollout_id: RolloutId"
        from release.rollouts
        where tenant_id = $1 and component = $2 and environment = $3 and state = 'WAITING'"#,
        tenant.as_str(),
        component.as_str(),
        environment.as_str(),
    )
    .fetch_optional(db)
    .await
}

/// The newest rollout that puts visits of an environment on a release, or has put them there.
#[tracing::instrument(name = "db.rollout.find_exposing", skip_all)]
pub async fn find_exposing(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: &ComponentId,
    environment: &EnvironmentId,
    release: ReleaseId,
) -> sqlx::Result<Option<RolloutId>> {
    sqlx::query_scalar!(
        r#"select rollout_id as "rollout_id: RolloutId"
        from release.rollouts
        where tenant_id = $1 and component = $2 and environment = $3 and release_id = $4
            and state in ('RUNNING', 'PAUSED', 'DRAINING', 'SUCCEEDED')
        order by seq desc
        limit 1"#,
        tenant.as_str(),
        component.as_str(),
        environment.as_str(),
        release.uuid(),
    )
    .fetch_optional(db)
    .await
}

/// Rollouts of the named components whose environment's session services are to confirm their route, in the order in which
/// their components are to be locked. Of two of one component that of mode ROLLBACK comes first: its end leaves the route
/// as it is, which that of the other one changes again.
#[tracing::instrument(name = "db.rollout.list_unconfirmed", skip_all)]
pub async fn list_unconfirmed(
    db: &mut PgConnection,
    environment: &EnvironmentId,
    tenants: &[String],
    components: &[String],
) -> sqlx::Result<Vec<(TenantId, RolloutId)>> {
    let rows = sqlx::query!(
        r#"select tenant_id as "tenant_id: TenantId", rollout_id as "rollout_id: RolloutId"
        from release.rollouts
        where environment = $1
            and (state = 'ROLLING_BACK' or state = 'RUNNING' and coalesce(phase, 'EXPOSING') = 'EXPOSING')
            and (tenant_id, component) in (select * from unnest($2::text[], $3::text[]))
        order by tenant_id, component, mode desc
        limit 2 * cardinality($2::text[])"#,
        environment.as_str(),
        tenants,
        components,
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.tenant_id, row.rollout_id)).collect())
}

/// A rollout that goes on by itself, as far as its surroundings are concerned.
pub struct Live {
    pub tenant: TenantId,
    pub id: RolloutId,
    /// Every session service acts on its route.
    pub is_applied: bool,
    /// The end of its tenant's audit trail.
    pub told: Option<i64>,
    /// Where it was when something was last seen to hold the rollout back.
    held: Option<i64>,
    look_at: Option<Time>,
}

impl Live {
    /// Whether what held it back holds it still, for all that was told and for all that time does.
    pub fn is_held(&self, now: Time) -> bool {
        self.held == self.told && self.look_at.is_some_and(|at| now < at)
    }
}

/// Which of those that go on by themselves.
#[derive(Clone, Copy)]
pub enum Which<'a> {
    Only(&'a TenantId, RolloutId),
    /// A page of every tenant's, the first one or that behind a rollout.
    After(Option<(&'a TenantId, RolloutId)>),
}

/// Rollouts that go on by themselves, in the order of their keys. A route is acted on by all where every replica that
/// may put visits on the rollout's release has applied its present revision: that is one that was seen since
/// `lease_began_at`, and, where nobody knew of the release before, since the rollout started (less `margin_secs`, as a
/// replica with an open watch is written down only now and then). What a rollback of mode ROLLBACK takes back was everyone's
/// before it started, so that of such a one every replica counts.
///
/// The present revision is that of the rollout's last step back or forward, or a later one.
#[tracing::instrument(name = "db.rollout.list_live", skip_all)]
pub async fn list_live(
    db: &mut PgConnection,
    lease_began_at: Time,
    margin_secs: f64,
    which: Which<'_>,
    limit: i64,
) -> sqlx::Result<Vec<Live>> {
    let (only, after) = match which {
        Which::Only(tenant, id) => (Some((tenant, id)), None),
        Which::After(after) => (None, after),
    };
    let rows = sqlx::query!(
        r#"select rollout.tenant_id as "tenant_id: TenantId", rollout.rollout_id as "rollout_id: RolloutId",
            not exists (
                select
                from release.routes route
                join release.route_replicas replica using (environment)
                left join release.routes_applied applied
                    on applied.tenant_id = rollout.tenant_id and applied.component = rollout.component
                    and applied.environment = replica.environment and applied.replica_id = replica.replica_id
                where route.tenant_id = rollout.tenant_id and route.component = rollout.component
                    and route.environment = rollout.environment
                    and replica.seen_at >= greatest(
                        $1, case rollout.mode when 'FORWARD' then rollout.started_at - make_interval(secs => $2) end
                    )
                    and coalesce(applied.revision, 0) < route.revision
            ) as "is_applied!", head.seq as "told?", held_seq, look_at
        from release.rollouts rollout
        left join release.audit_heads head using (tenant_id)
        where rollout.state in ('WAITING', 'RUNNING', 'PAUSED', 'DRAINING', 'ROLLING_BACK')
            and ($3::text is null or rollout.tenant_id = $3 and rollout.rollout_id = $4)
            and ($5::text is null or (rollout.tenant_id, rollout.rollout_id) > ($5, $6::uuid))
        order by rollout.tenant_id, rollout.rollout_id
        limit $7"#,
        lease_began_at,
        margin_secs,
        only.map(|(tenant, _)| tenant.as_str()),
        only.map(|(_, id)| id.uuid()),
        after.map(|(tenant, _)| tenant.as_str()),
        after.map(|(_, id)| id.uuid()),
        limit,
    )
    .fetch_all(db)
    .await?;
    let live = rows.into_iter().map(|row| Live {
        tenant: row.tenant_id,
        id: row.rollout_id,
        is_applied: row.is_applied,
        told: row.told,
        held: row.held_seq,
        look_at: row.look_at,
    });
    Ok(live.collect())
}

/// These rollouts, of whichever tenants. Those that are not there are left out, and so are those that cannot be read, as by
/// an older version that runs beside a newer one: they keep nobody from the others.
#[tracing::instrument(name = "db.rollout.list_named", skip_all)]
pub async fn list_named(
    db: &mut PgConnection,
    tenants: &[String],
    ids: &[Uuid],
) -> sqlx::Result<Vec<Rollout>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select rollout_id as "rollout_id: RolloutId", seq, component as "component: ComponentId",
            environment as "environment: EnvironmentId", release_id as "release_id: ReleaseId", semver,
            previous_release_id as "previous_release_id: ReleaseId", previous_semver, state, phase, entered_at,
            step_exposures_bps, plan, step, exposure_bps, assignment_policy, waiting_for, pause, harms,
            mismatched_at, step_begins[step + 1] as step_began_at, rollback_reason, superseded_by as "superseded_by: RolloutId", starter, started_at, ended_at,
            approval_id as "approval_id: ApprovalId", mode, rollback_of as "rollback_of: RolloutId", version
        from release.rollouts
        where (tenant_id, rollout_id) in (select * from unnest($1::text[], $2::uuid[]))
        limit cardinality($2::uuid[])"#,
        tenants,
        ids,
    )
    .fetch_all(db)
    .await?;
    let read = |row: Row| {
        row.try_into()
            .inspect_err(|error| tracing::warn!(%error, "rollout passed over"))
            .ok()
    };
    Ok(rows.into_iter().filter_map(read).collect())
}

/// Writes down what was found of a rollout's visits, unless a transition came in between.
#[tracing::instrument(name = "db.rollout.update_findings", skip_all)]
pub async fn update_findings(
    db: &mut PgConnection,
    tenant: &TenantId,
    rollout: &Rollout,
) -> sqlx::Result<bool> {
    let harms = serde_json::to_string(&rollout.harms);
    let done = sqlx::query!(
        "update release.rollouts set harms = $4, mismatched_at = $5
        where tenant_id = $1 and rollout_id = $2 and version = $3",
        tenant.as_str(),
        rollout.id.uuid(),
        rollout.row_version,
        harms.map_err(|error| sqlx::Error::Encode(Box::new(error)))?,
        rollout.mismatched_at,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// What held a rollout back when it was looked at.
pub struct Held<'a> {
    pub reasons: &'a [Kind],
    /// The end of the tenant's audit trail, read before the look.
    pub told: Option<i64>,
    pub look_at: Time,
}

/// Notes what holds a rollout back, which is no transition of it.
#[tracing::instrument(name = "db.rollout.update_held", skip_all)]
pub async fn update_held(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: RolloutId,
    held: &Held<'_>,
) -> sqlx::Result<()> {
    let names: Vec<_> = held.reasons.iter().map(|kind| kind.name().to_owned()).collect();
    sqlx::query!(
        "update release.rollouts
        set waiting_for = case state when 'WAITING' then $3 else waiting_for end, held_seq = $4, look_at = $5
        where tenant_id = $1 and rollout_id = $2",
        tenant.as_str(),
        id.uuid(),
        &names,
        held.told,
        held.look_at,
    )
    .execute(db)
    .await
    .map(drop)
}

/// Makes this transaction wait for nobody's locks for long.
#[tracing::instrument(name = "db.rollout.hurry", skip_all)]
pub async fn hurry(db: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!("set local lock_timeout = 50").execute(db).await.map(drop)
}
