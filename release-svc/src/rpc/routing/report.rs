//! What session services report: what they act on, what they count, and what they stopped.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::SecondsFormat;
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
use crate::store::signal::{Interest, Place, Source, Visits};
use crate::store::task::Awaited;

/// Rollouts and kills that a report names at most.
const REPORTED_MAX: usize = 100;
const COUNTS_MAX: usize = 1000;
/// Longest name of a source or an epoch.
const NAME_MAX: usize = 128;
const REASON_MAX: usize = 1000;
/// Rollouts whose last visits are asked for at once.
const AWAITED_MAX: i64 = 1000;
/// Most that is counted of anything: sums of as many sources as there can be stay within an i64.
const COUNT_MAX: i64 = 1 << 40;
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

/// What a report of signals says, each thing once: the greatest of several counts, and the latest of visits.
#[derive(Default)]
struct Signals {
    rollouts: BTreeSet<(TenantId, RolloutId)>,
    counts: BTreeMap<Place, i64>,
    visits: BTreeMap<(TenantId, RolloutId), Visits>,
}

impl Signals {
    fn take_in(&mut self, at: usize, signals: pb::RolloutSignals) -> Result<(), Refusal> {
        let field = |name: &str| format!("rollouts[{at}].{name}");
        let pb::RolloutSignals { tenant, rollout_id, counts, visits } = signals;
        let tenant: TenantId = parse(&field("tenant"), &tenant)?;
        let rollout: RolloutId = parse(&field("rollout_id"), &rollout_id)?;
        at_most(&field("counts"), &counts, COUNTS_MAX)?;
        for (i, pb::SignalCount { step, is_canary, guard, count }) in counts.into_iter().enumerate() {
            let field = |name: &str| format!("rollouts[{at}].counts[{i}].{name}");
            let step = within(&field("step"), step, 0, STEP_MAX)?;
            let count = within(&field("count"), count, 0, COUNT_MAX)?;
            if !guard.is_empty() {
                parse::<Name>(&field("guard"), &guard)?;
            }
            let place = Place { tenant: tenant.clone(), rollout, step, is_canary, guard };
            let known = self.counts.entry(place).or_insert(count);
            *known = count.max(*known);
        }
        if let Some(visits) = visits {
            let told = parse_visits(&field("visits"), visits)?;
            let known = self.visits.entry((tenant.clone(), rollout)).or_insert(told);
            if known.counted_at < told.counted_at {
                *known = told;
            }
        }
        self.rollouts.insert((tenant, rollout));
        Ok(())
    }

    /// Leaves out what nobody asks for: what rollouts are not counted by, and those that are not.
    fn retain(&mut self, interests: &HashMap<(TenantId, RolloutId), Interest>) {
        self.counts.retain(|place, _| {
            let step = usize::try_from(place.step).unwrap_or(usize::MAX);
            let guard = Some(place.guard.as_str()).filter(|guard| !guard.is_empty());
            let interest = interests.get(&(place.tenant.clone(), place.rollout));
            matches!(interest, Some(Interest::All(scope)) if scope.has(step, guard))
        });
        let is_counted = |of: &(TenantId, RolloutId)| {
            matches!(interests.get(of), Some(Interest::All(_) | Interest::Visits))
        };
        self.visits.retain(|of, _| is_counted(of));
        self.rollouts.retain(|of| !is_counted(of));
    }
}

fn parse_visits(field: &str, visits: pb::VisitCounts) -> Result<Visits, Refusal> {
    let pb::VisitCounts { count_time, canary, control } = visits;
    Ok(Visits {
        counted_at: instant(&format!("{field}.count_time"), count_time)?,
        canary: within(&format!("{field}.canary"), canary, 0, COUNT_MAX)?,
        control: within(&format!("{field}.control"), control, 0, COUNT_MAX)?,
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
        let mut signals = Signals::default();
        for (at, of) in rollouts.into_iter().enumerate() {
            signals.take_in(at, of)?;
        }
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
        let interests =
            store::signal::list_interests(&mut tx, &source.environment, &signals.rollouts).await?;
        signals.retain(&interests);
        store::signal::upsert_counts(&mut tx, &source, &signals.counts).await?;
        store::signal::upsert_visits(&mut tx, &source, &signals.visits).await?;
        let ended_rollout_ids = signals.rollouts.iter().map(|(_, id)| id.to_string()).collect();
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
            let reason = format!(
                "stopped by session services at {}: {reason}",
                killed_at.to_rfc3339_opts(SecondsFormat::Secs, true)
            );
            let actor = Actor { tenant, principal, now: self.clock.now() };
            self.take_back_killed(&actor, &environment, &component, release, reason).await?;
        }
        Ok(pb::ReportKillsResponse {})
    }

    /// Rolls back what exposes a release that was stopped, and marks it as bad. Done again, it changes nothing.
    async fn take_back_killed(
        &self,
        actor: &Actor,
        environment: &EnvironmentId,
        component: &ComponentId,
        release: ReleaseId,
        reason: String,
    ) -> Result<(), Failure> {
        let (tenant, mut tx) = (&actor.tenant, self.db.begin(None).await?);
        let found =
            store::rollout::live::find_exposing(&mut tx, tenant, component, environment, release).await?;
        let rollout = match found {
            Some(id) => store::rollout::find(&mut tx, tenant, id).await?,
            None => None,
        };
        if let Some(rollout) = rollout {
            apply::roll_back(&mut tx, actor, &rollout, (reason.clone(), None), &self.entropy).await?;
        } else if store::component::lock_of_release(&mut tx, tenant, release).await?.is_none() {
            tracing::warn!(%tenant, %component, %release, "a release was stopped that is not known here");
            return Ok(());
        }
        apply::quarantine(&mut tx, actor, release, reason).await?;
        Ok(tx.commit().await?)
    }
}
