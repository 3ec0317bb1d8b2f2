//! `InsightService`: how delivery goes, and what happened before Tandem was there.

use std::collections::{BTreeSet, HashMap};

use chrono::TimeDelta;
use prost_types::Timestamp;
use shared::auth::Caller;
use shared::edge::Deadline;
use shared::id::{ComponentId, EnvironmentId, TenantId};
use shared::mutation::{Begun, Call, Mutation};
use shared::parse::{at_most, line, parse, required, within};
use shared::pb::release as pb;
use shared::pb::release::insight_service_server::InsightService;
use shared::status::{Failure, Reason, Refusal};
use shared::time::{Time, at, duration_to_proto, from_proto, to_proto};
use sqlx::PgConnection;
use tonic::{Request, Response, Status};

use super::{App, absent};
use crate::apply::exposure;
use crate::domain::component::{Component, Environment};
use crate::domain::insight::{IMPORTED, Metrics, Pace, PastDeployment, Period, Ratio, Spread, stamp};
use crate::domain::window::{Denied, Past, Span};
use crate::store;

/// The period where none is asked for.
const PERIOD: TimeDelta = TimeDelta::days(90);
/// What happened so long before a period is looked at, too: a rollout may have begun, a release may have been submitted, what
/// is brought back may have been deployed then.
const LOOK_BACK: TimeDelta = TimeDelta::days(365);
const ENVIRONMENTS_MAX: usize = 32;
/// Environments of a tenant that are taken in at most.
const KNOWN_MAX: i64 = 1000;
/// Events of each sort that figures are made of.
const FACTS_MAX: i64 = 10_000;
const RECORDS_MAX: usize = 500;
const COMMITS_MAX: usize = 200;

fn instant(field: &str, time: Timestamp) -> Result<Time, Refusal> {
    from_proto(time).ok_or_else(|| Refusal::field(field, "must be an instant"))
}

fn parse_period(start: Option<Timestamp>, end: Option<Timestamp>, now: Time) -> Result<Period, Refusal> {
    let end = end.map_or(Ok(now), |end| instant("end_time", end))?.min(now);
    let start = start.map_or(Ok(end - PERIOD), |start| instant("start_time", start))?;
    if start >= end {
        return Err(Refusal::field("start_time", "must be before the end of the period, and before now"));
    }
    Ok(Period { start, end })
}

/// Those named, or all that are production.
async fn environments_of(
    db: &mut PgConnection,
    tenant: &TenantId,
    named: BTreeSet<EnvironmentId>,
) -> Result<BTreeSet<EnvironmentId>, Failure> {
    if named.is_empty() {
        return Ok(store::insight::production(db, tenant).await?);
    }
    for name in &named {
        require_environment(db, tenant, name).await?;
    }
    Ok(named)
}

async fn require_environment(
    db: &mut PgConnection,
    tenant: &TenantId,
    name: &EnvironmentId,
) -> Result<(), Failure> {
    let found = store::environment::find(db, tenant, name).await?;
    found
        .map(|_| ())
        .ok_or_else(|| absent(Reason::EnvironmentNotFound, "environment", name).into())
}

/// When windows, as they stood then, denied rollouts of the component in one of these environments.
fn denied(
    past: &Past,
    component: &Component,
    known: &[Environment],
    environments: &BTreeSet<EnvironmentId>,
    period: &Period,
) -> Denied {
    let targets: Vec<_> = known
        .iter()
        .filter(|environment| environments.contains(&environment.name))
        .map(|environment| exposure::target(Some(component), Some(environment), None))
        .collect();
    let within = Span { start: period.start, end: period.end };
    past.denied(exposure::actions(component), &targets, within)
}

fn spread_to_proto(spread: Spread) -> pb::Spread {
    let duration = |duration: TimeDelta| duration_to_proto(duration.to_std().unwrap_or_default());
    pb::Spread {
        median: Some(duration(spread.median)),
        p90: Some(duration(spread.p90)),
        count: number(spread.count),
    }
}

fn ratio_to_proto(ratio: Ratio) -> pb::Ratio {
    pb::Ratio { numerator: number(ratio.numerator), denominator: number(ratio.denominator) }
}

const fn pace_to_proto(pace: Pace) -> pb::DeploymentPace {
    match pace {
        Pace::Daily => pb::DeploymentPace::Daily,
        Pace::Weekly => pb::DeploymentPace::Weekly,
        Pace::Monthly => pb::DeploymentPace::Monthly,
        Pace::Rarely => pb::DeploymentPace::Rarely,
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn to_message(
    component: &ComponentId,
    environments: &BTreeSet<EnvironmentId>,
    period: &Period,
    metrics: &Metrics,
) -> pb::DeliveryMetrics {
    pb::DeliveryMetrics {
        component: component.to_string(),
        environments: environments.iter().map(ToString::to_string).collect(),
        start_time: Some(to_proto(period.start)),
        end_time: Some(to_proto(period.end)),
        change_lead_time: metrics.change_lead_time.map(spread_to_proto),
        deployment_frequency: Some(pb::DeploymentFrequency {
            deployments: number(metrics.deployments),
            per_day: metrics.per_day,
            per_week: metrics.per_day.map(|per_day| per_day * 7.0),
            pace: metrics.pace.map_or(pb::DeploymentPace::Unspecified, pace_to_proto).into(),
        }),
        failed_deployment_recovery_time: metrics.failed_deployment_recovery_time.map(spread_to_proto),
        change_fail_rate: metrics.change_fail_rate.map(ratio_to_proto),
        deployment_rework_rate: metrics.deployment_rework_rate.map(ratio_to_proto),
        caught_in_canary: number(metrics.caught_in_canary),
        rollbacks: number(metrics.rollbacks),
        approval_wait_time: metrics.approval_wait_time.map(spread_to_proto),
        freeze_backlog: metrics.freeze_backlog.map(number),
    }
}

/// One record, with the place of it in the names of its fields.
fn parse_record(
    place: usize,
    component: &ComponentId,
    environment: &EnvironmentId,
    record: pb::PastDeployment,
    now: Time,
) -> Result<PastDeployment, Refusal> {
    let field = |name: &str| format!("records[{place}].{name}");
    let past = |name: &str, time: Timestamp| {
        let time = instant(&field(name), time)?;
        if (at(0)..=now).contains(&time) {
            return Ok(time);
        }
        Err(Refusal::field(field(name), "must be an instant since 1970 and not after now"))
    };
    let later = |name: &str, time: Option<Timestamp>, than: Time| {
        let Some(time) = time else { return Ok(None) };
        match past(name, time)? {
            time if time >= than => Ok(Some(time)),
            _ => Err(Refusal::field(field(name), "must not be before what it follows")),
        }
    };
    let count = |name: &str, count: i32| within(&field(name), count, 0, i32::MAX);
    let pb::PastDeployment {
        version,
        deploy_time,
        commit_times,
        author_count,
        lines_added,
        lines_deleted,
        files_changed,
        is_rollback,
        failure_time,
        recovery_time,
        is_unplanned,
        incident,
    } = record;
    at_most(&field("commit_times"), &commit_times, COMMITS_MAX)?;
    let deployed_at = past("deploy_time", required(&field("deploy_time"), deploy_time)?)?;
    let failed_at = later("failure_time", failure_time, deployed_at)?;
    if is_rollback && failed_at.is_some() {
        return Err(Refusal::field(field("failure_time"), "must not be set for a rollback"));
    }
    if failed_at.is_none() && recovery_time.is_some() {
        return Err(Refusal::field(field("recovery_time"), "must not be set without a failure_time"));
    }
    let incident = line(&field("incident"), incident, 0, 200)?;
    Ok(PastDeployment {
        component: component.to_string(),
        environment: environment.to_string(),
        version: line(&field("version"), version, 1, 128)?,
        deployed_at,
        commit_times: commit_times
            .into_iter()
            .enumerate()
            .map(|(i, time)| past(&format!("commit_times[{i}]"), time))
            .collect::<Result<_, _>>()?,
        author_count: count("author_count", author_count)?,
        lines_added: count("lines_added", lines_added)?,
        lines_deleted: count("lines_deleted", lines_deleted)?,
        files_changed: count("files_changed", files_changed)?,
        is_rollback,
        failed_at,
        recovered_at: later("recovery_time", recovery_time, failed_at.unwrap_or(deployed_at))?,
        is_unplanned,
        incident: (!incident.is_empty()).then_some(incident),
    })
}

/// Refuses to be told of one deployment twice at once.
fn refuse_twins(records: &[PastDeployment]) -> Result<(), Refusal> {
    let mut places = HashMap::new();
    for (place, record) in records.iter().enumerate() {
        if let Some(twin) = places.insert(record.key(), place) {
            let problem = format_args!("is the same deployment as records[{twin}]");
            return Err(Refusal::field(format!("records[{place}].version"), problem));
        }
    }
    Ok(())
}

/// Leaves those that are new. The caller has locked the component.
async fn strangers(
    work: &mut Mutation,
    component: &ComponentId,
    environment: &EnvironmentId,
    mut records: Vec<PastDeployment>,
) -> Result<Vec<PastDeployment>, Failure> {
    let tenant = &work.actor.tenant;
    let keys: Vec<_> = records.iter().map(PastDeployment::key).collect();
    let imported = store::insight::list_imported(&mut work.tx, tenant, &keys).await?;
    let versions: Vec<_> = records.iter().map(|record| record.version.clone()).collect();
    let rolled_out =
        store::insight::list_rolled_out(&mut work.tx, tenant, component, environment, &versions).await?;
    records.retain(|record| !imported.contains(&record.key()) && !rolled_out.contains(&record.version));
    Ok(records)
}

impl App {
    async fn get_delivery_metrics(
        &self,
        request: Request<pb::GetDeliveryMetricsRequest>,
    ) -> Result<pb::GetDeliveryMetricsResponse, Failure> {
        let (caller, deadline) = (Caller::of(&request)?, Deadline::of(&request));
        let pb::GetDeliveryMetricsRequest { component, start_time, end_time, environments } =
            request.into_inner();
        let component = parse("component", &component)?;
        let period = parse_period(start_time, end_time, self.clock.now())?;
        at_most("environments", &environments, ENVIRONMENTS_MAX)?;
        let named = environments.iter().enumerate();
        let named = named.map(|(i, name)| parse(&format!("environments[{i}]"), name));
        let named = named.collect::<Result<BTreeSet<_>, _>>()?;
        let tenant = &caller.tenant;
        let mut tx = self.db.begin(deadline).await?;
        let found = store::component::find(&mut tx, tenant, &component).await?;
        let found = found.ok_or_else(|| absent(Reason::ComponentNotFound, "component", &component))?;
        let environments = environments_of(&mut tx, tenant, named).await?;
        let since = period.start - LOOK_BACK;
        let (history, whole_since) =
            store::insight::history(&mut tx, tenant, &component, &environments, since, FACTS_MAX).await?;
        let past = store::insight::past(&mut tx, tenant, period.start, FACTS_MAX).await?;
        let known = store::environment::list(&mut tx, tenant, "", KNOWN_MAX).await?;
        tx.commit().await?;
        if whole_since > period.start {
            let problem =
                format_args!("must be {} or later: before it too much happened", stamp(whole_since));
            return Err(Refusal::field("start_time", problem).into());
        }
        let denied = denied(&past, &found, &known, &environments, &period);
        let metrics = history.metrics(&period, &denied);
        let metrics = Some(to_message(&component, &environments, &period, &metrics));
        Ok(pb::GetDeliveryMetricsResponse { metrics })
    }

    async fn import_history(
        &self,
        request: Request<pb::ImportHistoryRequest>,
    ) -> Result<pb::ImportHistoryResponse, Failure> {
        let (call, message) = Call::of(request, "ImportHistory", |message| &mut message.request_id)?;
        let pb::ImportHistoryRequest { component, environment, records, validate_only, request_id: _ } =
            message;
        let name = parse("component", &component)?;
        let environment = parse("environment", &environment)?;
        at_most("records", &records, RECORDS_MAX)?;
        let now = self.clock.now();
        let records = records.into_iter().enumerate();
        let records = records.map(|(place, record)| parse_record(place, &name, &environment, record, now));
        let records = records.collect::<Result<Vec<_>, _>>()?;
        refuse_twins(&records)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let component = store::component::lock(&mut work.tx, &work.actor.tenant, &name).await?;
        let component = component.ok_or_else(|| absent(Reason::ComponentNotFound, "component", &name))?;
        work.caller.require_owner(&component.owner_groups)?;
        require_environment(&mut work.tx, &work.actor.tenant, &environment).await?;
        let count = records.len();
        let fresh = strangers(&mut work, &name, &environment, records).await?;
        let answer = pb::ImportHistoryResponse {
            imported_count: number(fresh.len()),
            known_count: number(count - fresh.len()),
        };
        if validate_only {
            return Ok(answer);
        }
        for record in &fresh {
            let data = serde_json::to_value(record).map_err(|error| Failure::Bug(error.to_string()))?;
            work.tell(IMPORTED, record.key(), data);
        }
        work.answer(answer).await
    }
}

#[tonic::async_trait]
impl InsightService for App {
    async fn get_delivery_metrics(
        &self,
        request: Request<pb::GetDeliveryMetricsRequest>,
    ) -> Result<Response<pb::GetDeliveryMetricsResponse>, Status> {
        Ok(Response::new(self.get_delivery_metrics(request).await?))
    }

    async fn import_history(
        &self,
        request: Request<pb::ImportHistoryRequest>,
    ) -> Result<Response<pb::ImportHistoryResponse>, Status> {
        Ok(Response::new(self.import_history(request).await?))
    }
}
