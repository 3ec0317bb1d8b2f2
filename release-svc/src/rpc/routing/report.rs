//! What session services report: what they act on, what they count, and what they stopped.

use std::collections::BTreeMap;

use prost_types::Timestamp;
use shared::edge::Deadline;
use shared::id::{ComponentId, EnvironmentId, ReleaseId, RolloutId, TenantId};
use shared::mutation::Actor;
use shared::parse::{at_most, parse, required, text_of, within};
use shared::pb::release as pb;
use shared::status::{Failure, Refusal};
use shared::time::{Time, from_proto};
use tonic::Request;
use uuid::Uuid;

use super::table_epoch;
use crate::apply;
use crate::domain::guard::Name;
use crate::rpc::App;
use crate::store;
use crate::store::route::Applied;
use crate::store::signal::{Counts, Interest, Source, Visits};
use crate::store::task::Awaited;

/// Rollouts and kills that a report names at most.
const REPORTED_MAX: usize = 100;
const COUNTS_MAX: usize = 1000;
/// Longest name of a source or an epoch.
const NAME_MAX: usize = 128;
const REASON_MAX: usize = 1000;
/// Rollouts whose last visits are asked for at once.
const AWAITED_MAX: i64 = 1000;
/// Highest index of a step.
const STEP_MAX: i32 = 32;

/// What a replica says it acts on, each route once, in the order of their keys.
fn parse_applied(routes: Vec<pb::AppliedRoute>) -> Result<Applied, Refusal> {
    at_most("routes", &routes, 1000)?;
    let mut revisions = BTreeMap::new();
    for (i, pb::AppliedRoute { tenant, component, revision }) in routes.into_iter().enumerate() {
        let tenant: TenantId = parse(&format!("routes[{i}].tenant"), &tenant)?;
        let component: ComponentId = parse(&format!("routes[{i}].component"), &component)?;
        let revision = within(&format!("routes[{i}].revision"), revision, 1, i64::MAX)?;
        let known = revisions.entry((tenant.to_string(), component.to_string())).or_insert(revision);
        *known = revision.max(*known);
    }
    let mut applied = Applied { tenants: Vec::new(), components: Vec::new(), revisions: Vec::new() };
    for ((tenant, component), revision) in revisions {
        applied.tenants.push(tenant);
        applied.components.push(component);
        applied.revisions.push(revision);
    }
    Ok(applied)
}

/// What was counted of one rollout.
fn parse_signals(
    at: usize,
    signals: pb::RolloutSignals,
) -> Result<(TenantId, Counts, Option<Visits>), Refusal> {
    let field = |name: &str| format!("rollouts[{at}].{name}");
    let pb::RolloutSignals { tenant, rollout_id, counts, visits } = signals;
    let tenant: TenantId = parse(&field("tenant"), &tenant)?;
    let rollout: RolloutId = parse(&field("rollout_id"), &rollout_id)?;
    at_most(&field("counts"), &counts, COUNTS_MAX)?;
    let mut known = BTreeMap::new();
    for (i, pb::SignalCount { step, is_canary, guard, count }) in counts.into_iter().enumerate() {
        let field = |name: &str| format!("rollouts[{at}].counts[{i}].{name}");
        let step = within(&field("step"), step, 0, STEP_MAX)?;
        let count = within(&field("count"), count, 0, i64::MAX)?;
        if !guard.is_empty() {
            parse::<Name>(&field("guard"), &guard)?;
        }
        let known = known.entry((step, is_canary, guard)).or_insert(count);
        *known = count.max(*known);
    }
    let mut counts = Counts::of(rollout);
    for ((step, is_canary, guard), count) in known {
        counts.steps.push(step);
        counts.are_canary.push(is_canary);
        counts.guards.push(guard);
        counts.numbers.push(count);
    }
    let visits = visits.map(|visits| parse_visits(&field("visits"), visits)).transpose()?;
    Ok((tenant, counts, visits))
}

fn parse_visits(field: &str, visits: pb::VisitCounts) -> Result<Visits, Refusal> {
    let pb::VisitCounts { count_time, canary, control } = visits;
    Ok(Visits {
        counted_at: instant(&format!("{field}.count_time"), count_time)?,
        canary: within(&format!("{field}.canary"), canary, 0, i64::MAX)?,
        control: within(&format!("{field}.control"), control, 0, i64::MAX)?,
    })
}

fn instant(field: &str, time: Option<Timestamp>) -> Result<Time, Refusal> {
    from_proto(required(field, time)?).ok_or_else(|| Refusal::field(field, "must be an instant"))
}

impl From<&Awaited> for pb::AwaitedVisits {
    fn from(awaited: &Awaited) -> Self {
        Self {
            tenant: awaited.tenant.clone(),
            component: awaited.component.clone(),
            rollout_id: awaited.rollout.to_string(),
            release_id: awaited.release.to_string(),
            previous_release_id: awaited.previous.map(|id| id.to_string()).unwrap_or_default(),
        }
    }
}

impl App {
    pub(super) async fn report_applied(
        &self,
        request: Request<pb::ReportAppliedRequest>,
    ) -> Result<pb::ReportAppliedResponse, Failure> {
        let deadline = Deadline::of(&request);
        let pb::ReportAppliedRequest { environment, replica_id, table_epoch: epoch, routes } =
            request.into_inner();
        let environment: EnvironmentId = parse("environment", &environment)?;
        let replica: Uuid = parse("replica_id", &replica_id)?;
        let applied = parse_applied(routes)?;
        let is_current = epoch == table_epoch(&self.db).await?;
        let now = self.clock.now();
        let mut tx = self.db.begin(deadline).await?;
        store::route::upsert_replica(&mut tx, &environment, replica, now).await?;
        let mut waiting = Vec::new();
        if is_current && !applied.tenants.is_empty() {
            store::route::upsert_applied(&mut tx, &environment, replica, &applied, now).await?;
            let Applied { tenants, components, revisions: _ } = &applied;
            waiting =
                store::rollout::live::list_unconfirmed(&mut tx, &environment, tenants, components).await?;
        }
        // Before anything is confirmed, so that of several replicas that report at once one sees what the others wrote.
        tx.commit().await?;
        for (tenant, rollout) in waiting {
            // What one component holds up is left to the worker: the replica speaks for every tenant.
            if let Err(failure) = self.controller().look_at(&tenant, rollout).await {
                tracing::warn!(%rollout, error = ?failure, "rollout not taken further with the report");
            }
        }
        Ok(pb::ReportAppliedResponse {})
    }

    pub(super) async fn report_signals(
        &self,
        request: Request<pb::ReportSignalsRequest>,
    ) -> Result<pb::ReportSignalsResponse, Failure> {
        let deadline = Deadline::of(&request);
        let pb::ReportSignalsRequest { environment, source_id, source_epoch, rollouts } =
            request.into_inner();
        let environment: EnvironmentId = parse("environment", &environment)?;
        let id = text_of("source_id", source_id, 1, NAME_MAX)?;
        let epoch = text_of("source_epoch", source_epoch, 1, NAME_MAX)?;
        at_most("rollouts", &rollouts, REPORTED_MAX)?;
        let signals = rollouts.into_iter().enumerate().map(|(at, signals)| parse_signals(at, signals));
        let signals = signals.collect::<Result<Vec<_>, _>>()?;
        let source = Source { environment, id, epoch };
        let mut tx = self.db.begin(deadline).await?;
        if !store::signal::enter(&mut tx, &source, self.clock.now()).await? {
            tracing::warn!(
                source = source.id,
                epoch = source.epoch,
                "a report of a past epoch is passed over"
            );
            return Ok(pb::ReportSignalsResponse::default());
        }
        let mut ended_rollout_ids = Vec::new();
        for (tenant, counts, visits) in &signals {
            match store::signal::interest(&mut tx, tenant, &source.environment, counts.rollout).await? {
                Interest::All => store::signal::upsert_counts(&mut tx, tenant, &source, counts).await?,
                Interest::Visits => {}
                Interest::Nothing => {
                    ended_rollout_ids.push(counts.rollout.to_string());
                    continue;
                }
            }
            if let Some(visits) = visits {
                store::signal::upsert_visits(&mut tx, tenant, &source, counts.rollout, visits).await?;
            }
        }
        let awaited = store::task::list_awaited(&mut tx, &source, self.clock.now(), AWAITED_MAX).await?;
        tx.commit().await?;
        let awaited = awaited.iter().map(Into::into).collect();
        Ok(pb::ReportSignalsResponse { ended_rollout_ids, awaited })
    }

    pub(super) async fn report_kills(
        &self,
        request: Request<pb::ReportKillsRequest>,
    ) -> Result<pb::ReportKillsResponse, Failure> {
        let pb::ReportKillsRequest { environment, kills } = request.into_inner();
        let environment: EnvironmentId = parse("environment", &environment)?;
        at_most("kills", &kills, REPORTED_MAX)?;
        for (at, kill) in kills.into_iter().enumerate() {
            let field = |name: &str| format!("kills[{at}].{name}");
            let pb::ReleaseKill { tenant, component, release_id, principal, reason, kill_time } = kill;
            let tenant: TenantId = parse(&field("tenant"), &tenant)?;
            let component: ComponentId = parse(&field("component"), &component)?;
            let release: ReleaseId = parse(&field("release_id"), &release_id)?;
            let principal = text_of(&field("principal"), principal, 1, NAME_MAX * 4)?;
            let reason = text_of(&field("reason"), reason, 1, REASON_MAX)?;
            let killed_at = instant(&field("kill_time"), kill_time)?;
            let reason = format!("stopped by session services at {}: {reason}", killed_at.to_rfc3339());
            let actor = Actor { tenant, principal, now: self.clock.now() };
            self.take_back_killed(&actor, &environment, &component, release, reason).await?;
        }
        Ok(pb::ReportKillsResponse {})
    }

    /// Rolls back what exposes a release that was stopped. Done again, it finds nothing.
    async fn take_back_killed(
        &self,
        actor: &Actor,
        environment: &EnvironmentId,
        component: &ComponentId,
        release: ReleaseId,
        reason: String,
    ) -> Result<(), Failure> {
        let mut tx = self.db.begin(None).await?;
        let found =
            store::rollout::live::find_exposing(&mut tx, &actor.tenant, component, environment, release)
                .await?;
        if let Some(id) = found
            && let Some(rollout) = store::rollout::find(&mut tx, &actor.tenant, id).await?
        {
            let new = RolloutId::new(actor.now, self.entropy.bytes());
            apply::roll_back(&mut tx, actor, &rollout, (reason, None), new).await?;
            tx.commit().await?;
        }
        Ok(())
    }
}
