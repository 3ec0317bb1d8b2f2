//! `ExecutorService`: what there is to deploy, for programs that deploy it. They prove with a task's token that it is theirs,
//! so their calls may be made again without a request id.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use shared::auth::Caller;
use shared::edge::Deadline;
use shared::feed::Heard;
use shared::id::{ComponentId, EnvironmentId, TaskId, TenantId};
use shared::mutation::Actor;
use shared::page::{self, List};
use shared::parse::{at_most, duration, known, optional, parse, text_of};
use shared::pb::release as pb;
use shared::pb::release::executor_service_server::ExecutorService;
use shared::status::{Failure, Reason, Refusal};
use shared::time::to_proto;
use sqlx::PgConnection;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::{Instant, sleep, sleep_until};
use tonic::{Request, Response, Status};

use super::{App, absent, before, state_names};
use crate::apply;
use crate::domain::task::{Kind, Outcome, State, Task};
use crate::store;
use crate::store::task::{Filter, Wanted};

mod observed;

/// Components that are named at once.
const COMPONENTS_MAX: usize = 100;
const LEASE: Duration = Duration::from_secs(30);
const LEASE_MIN: Duration = Duration::from_secs(5);
const LEASE_MAX: Duration = Duration::from_hours(1);
const WAIT_MAX: Duration = Duration::from_secs(30);
/// How long before the caller's deadline it is answered that there is nothing.
const HEAD_START: Duration = Duration::from_millis(500);
/// How often tasks are looked for that nothing but time makes free.
const LOOK: Duration = Duration::from_secs(1);
const MESSAGE_MAX: usize = 1000;

/// Who asks for a task, and for which.
struct Asker {
    caller: Arc<Caller>,
    environment: EnvironmentId,
    components: Vec<String>,
    lease: TimeDelta,
    deadline: Option<std::time::Instant>,
}

fn parse_lease(lease: Option<prost_types::Duration>) -> Result<TimeDelta, Refusal> {
    let lease = duration("lease", lease)?.unwrap_or(LEASE);
    let problem = || Refusal::field("lease", "must be 5 s to 1 h");
    let is_fine = (LEASE_MIN..=LEASE_MAX).contains(&lease);
    TimeDelta::from_std(lease).ok().filter(|_| is_fine).ok_or_else(problem)
}

fn parse_outcome(number: i32) -> Result<Outcome, Refusal> {
    match known::<pb::TaskOutcome>("outcome", number)? {
        pb::TaskOutcome::Done => Ok(Outcome::Done),
        pb::TaskOutcome::Failed => Ok(Outcome::Failed),
        pb::TaskOutcome::Returned => Ok(Outcome::Returned),
        pb::TaskOutcome::Unspecified => Err(Refusal::field("outcome", "is required")),
    }
}

fn to_message(task: &Task, now: shared::time::Time) -> pb::Task {
    let state = task.state_at(now);
    let lease_end = match state {
        State::Leased { until } => Some(to_proto(until)),
        State::Queued | State::Done { .. } | State::Failed { .. } | State::Cancelled { .. } => None,
    };
    let state = match state {
        State::Queued => pb::TaskState::Queued,
        State::Leased { .. } => pb::TaskState::Leased,
        State::Done { .. } => pb::TaskState::Done,
        State::Failed { .. } => pb::TaskState::Failed,
        State::Cancelled { .. } => pb::TaskState::Cancelled,
    };
    let kind = match task.kind {
        Kind::Expose => pb::TaskKind::Expose,
        Kind::Retire => pb::TaskKind::Retire,
    };
    pb::Task {
        task_id: task.id.to_string(),
        kind: kind.into(),
        component: task.component.to_string(),
        environment: task.environment.to_string(),
        rollout_id: task.rollout.to_string(),
        release_id: task.release.to_string(),
        version: task.version.clone(),
        artifact_digest: task.artifact_digest.clone().unwrap_or_default(),
        exposure_bps: task.exposure_bps,
        state: state.into(),
        executor: task.executor.clone().unwrap_or_default(),
        lease_end_time: lease_end,
        attempts: i32::try_from(task.token).unwrap_or(i32::MAX),
        message: task.message.clone(),
        create_time: Some(to_proto(task.created_at)),
    }
}

/// Refuses a caller who has no business with a component, or one that is not there.
async fn require_owned(db: &mut PgConnection, caller: &Caller, name: &ComponentId) -> Result<(), Failure> {
    let component = store::component::find(db, &caller.tenant, name).await?;
    let component = component.ok_or_else(|| absent(Reason::ComponentNotFound, "component", name))?;
    Ok(caller.require_owner(&component.owner_groups)?)
}

async fn require_environment(
    db: &mut PgConnection,
    tenant: &TenantId,
    name: &EnvironmentId,
) -> Result<(), Failure> {
    let found = store::environment::find(db, tenant, name).await?;
    found.ok_or_else(|| absent(Reason::EnvironmentNotFound, "environment", name))?;
    Ok(())
}

/// The task, locked, if the caller may work at it.
async fn lock(db: &mut PgConnection, caller: &Caller, id: TaskId) -> Result<Task, Failure> {
    let task = store::task::lock(db, &caller.tenant, id).await?;
    let task = task.ok_or_else(|| absent(Reason::TaskNotFound, "task", &id))?;
    require_owned(db, caller, &task.component).await?;
    Ok(task)
}

/// Until something happened to a task of the tenant's.
async fn news(heard: &mut Receiver<Arc<Heard>>, tenant: &TenantId) {
    loop {
        match heard.recv().await.as_deref() {
            Ok(Heard::Batch(batch)) => {
                let mut events = batch.events.iter();
                if events.any(|event| event.tenant == *tenant && event.kind.starts_with("task.")) {
                    return;
                }
            }
            Ok(Heard::Restarted) | Err(RecvError::Lagged(_)) => return,
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

impl App {
    fn actor(&self, caller: &Caller) -> Actor {
        Actor { tenant: caller.tenant.clone(), principal: caller.principal.clone(), now: self.clock.now() }
    }

    async fn lease_task(
        &self,
        request: Request<pb::LeaseTaskRequest>,
    ) -> Result<pb::LeaseTaskResponse, Failure> {
        let (caller, deadline) = (Caller::of(&request)?, Deadline::of(&request));
        let pb::LeaseTaskRequest { environment, components, lease, wait } = request.into_inner();
        let environment: EnvironmentId = parse("environment", &environment)?;
        at_most("components", &components, COMPONENTS_MAX)?;
        let names = components.iter().map(|name| parse("components", name));
        let names = names.collect::<Result<Vec<ComponentId>, _>>()?;
        let lease = parse_lease(lease)?;
        let wait = duration("wait", wait)?.unwrap_or_default();
        if wait > WAIT_MAX {
            return Err(Refusal::field("wait", "must be at most 30 s").into());
        }
        let until = Instant::now() + wait;
        let until = deadline.map_or(until, |deadline| until.min(Instant::from_std(deadline) - HEAD_START));
        let mut db = self.db.connection().await?;
        require_environment(&mut db, &caller.tenant, &environment).await?;
        for name in &names {
            require_owned(&mut db, &caller, name).await?;
        }
        drop(db);
        // Listening begins before the reading, so that nothing falls between the two.
        let mut heard = self.feed.subscribe();
        let asker = Asker { caller, environment, components, lease, deadline };
        loop {
            if let Some(task) = self.try_lease(&asker).await? {
                let message = to_message(&task, self.clock.now());
                return Ok(pb::LeaseTaskResponse { task: Some(message), fencing_token: task.token });
            }
            tokio::select! {
                () = sleep_until(until) => return Ok(pb::LeaseTaskResponse::default()),
                () = self.stop.cancelled() => {
                    return Err(Refusal::new(Reason::ShuttingDown, "the server is stopping; ask again").into());
                }
                () = sleep(LOOK) => {}
                () = news(&mut heard, &asker.caller.tenant) => {}
            }
        }
    }

    async fn try_lease(&self, asker: &Asker) -> Result<Option<Task>, Failure> {
        let Asker { caller, environment, components, lease, deadline } = asker;
        let (actor, groups) = (self.actor(caller), caller.groups());
        let wanted = Wanted { environment, components, groups: &groups };
        let mut tx = self.db.begin(*deadline).await?;
        let Some(id) = store::task::lock_next(&mut tx, &caller.tenant, &wanted, actor.now).await? else {
            return Ok(None);
        };
        let task = lock(&mut tx, caller, id).await?;
        // Free it was a moment ago, and locked it is since.
        let Ok(decision) = task.lease(actor.principal.clone(), actor.now + *lease, actor.now) else {
            return Ok(None);
        };
        apply::task(&mut tx, &actor, &decision).await?;
        tx.commit().await?;
        Ok(Some(decision.task))
    }

    async fn renew_task(
        &self,
        request: Request<pb::RenewTaskRequest>,
    ) -> Result<pb::RenewTaskResponse, Failure> {
        let (caller, deadline) = (Caller::of(&request)?, Deadline::of(&request));
        let pb::RenewTaskRequest { task_id, fencing_token, lease } = request.into_inner();
        let id = parse("task_id", &task_id)?;
        let lease = parse_lease(lease)?;
        let actor = self.actor(&caller);
        let mut tx = self.db.begin(deadline).await?;
        let task = lock(&mut tx, &caller, id).await?;
        let decision = task.renew(fencing_token, actor.now + lease)?;
        apply::task(&mut tx, &actor, &decision).await?;
        tx.commit().await?;
        Ok(pb::RenewTaskResponse { task: Some(to_message(&decision.task, actor.now)) })
    }

    async fn report_task(
        &self,
        request: Request<pb::ReportTaskRequest>,
    ) -> Result<pb::ReportTaskResponse, Failure> {
        let (caller, deadline) = (Caller::of(&request)?, Deadline::of(&request));
        let pb::ReportTaskRequest { task_id, fencing_token, outcome, message } = request.into_inner();
        let id = parse("task_id", &task_id)?;
        let outcome = parse_outcome(outcome)?;
        let message = text_of("message", message, 0, MESSAGE_MAX)?;
        let actor = self.actor(&caller);
        let mut tx = self.db.begin(deadline).await?;
        let task = lock(&mut tx, &caller, id).await?;
        let task = match task.clone().report(fencing_token, outcome, message, actor.now)? {
            Some(decision) => {
                apply::task(&mut tx, &actor, &decision).await?;
                tx.commit().await?;
                decision.task
            }
            None => task,
        };
        // What holds its rollout up now is left to the worker: the report is in.
        if task.kind == Kind::Expose
            && task.state.ended_at().is_some()
            && let Err(failure) = self.controller().look_at(&actor.tenant, task.rollout).await
        {
            tracing::warn!(rollout = %task.rollout, error = ?failure, "rollout not taken further with the report");
        }
        Ok(pb::ReportTaskResponse { task: Some(to_message(&task, actor.now)) })
    }

    async fn list_tasks(
        &self,
        request: Request<pb::ListTasksRequest>,
    ) -> Result<pb::ListTasksResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::ListTasksRequest { environment, component, states, page_size, page_token } =
            request.into_inner();
        let states = state_names("states", &states, |number| {
            known::<pb::TaskState>("states", number).map(|state| state.as_str_name())
        })?;
        let text = format!("{component}|{environment}|{}", states.join(","));
        let filter = Filter {
            component: optional("component", &component)?,
            environment: optional("environment", &environment)?,
            states,
        };
        let list = List { name: "ListTasks", tenant: &caller.tenant, filter: &text };
        let (size, before) = (page::size(page_size)?, before(list.after(&self.keys, &page_token)?)?);
        let now = self.clock.now();
        let mut db = self.db.connection().await?;
        let page = (before, size + 1);
        let mut rows = store::task::list(&mut db, &caller.tenant, &filter, now, page).await?;
        let next_page_token = list.cut(&self.keys, &mut rows, size, now, |(seq, _)| seq.to_string())?;
        let tasks = rows.iter().map(|(_, task)| to_message(task, now)).collect();
        Ok(pb::ListTasksResponse { tasks, next_page_token })
    }
}

#[tonic::async_trait]
impl ExecutorService for App {
    async fn lease_task(
        &self,
        request: Request<pb::LeaseTaskRequest>,
    ) -> Result<Response<pb::LeaseTaskResponse>, Status> {
        Ok(Response::new(self.lease_task(request).await?))
    }

    async fn renew_task(
        &self,
        request: Request<pb::RenewTaskRequest>,
    ) -> Result<Response<pb::RenewTaskResponse>, Status> {
        Ok(Response::new(self.renew_task(request).await?))
    }

    async fn report_task(
        &self,
        request: Request<pb::ReportTaskRequest>,
    ) -> Result<Response<pb::ReportTaskResponse>, Status> {
        Ok(Response::new(self.report_task(request).await?))
    }

    async fn report_observed(
        &self,
        request: Request<pb::ReportObservedRequest>,
    ) -> Result<Response<pb::ReportObservedResponse>, Status> {
        Ok(Response::new(self.report_observed(request).await?))
    }

    async fn list_tasks(
        &self,
        request: Request<pb::ListTasksRequest>,
    ) -> Result<Response<pb::ListTasksResponse>, Status> {
        Ok(Response::new(self.list_tasks(request).await?))
    }
}
