//! Rollouts brought to any state, each of a component of its own, under a policy with votes, in an environment where an
//! executor and a session service do their part: the test is both, so that nothing goes on before it says so.

use chrono::TimeDelta;
use shared::pb::release as pb;
use shared::pb::release::watch_routes_response::Message;
use shared::pb::release::{GovernanceProfile, RolloutState, StepPhase};
use shared::time::{duration_to_proto, to_proto};
use sqlx::Row as _;
use uuid::Uuid;

use super::govern::{Size, approve, change, govern, hand_in};
use super::shop::{create_component, get_rollout, roll_back, seconds, start};
use super::{Answer as _, Caller, ENVIRONMENT, Options, Stack, eventually, person, system};
use crate::window::{create_window, today};

/// Longer than a rollback waits for session services.
const TOO_LONG: TimeDelta = TimeDelta::minutes(15);

/// A state of a rollout, or a phase of RUNNING.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    /// For the end of a freeze of its component.
    Waiting,
    /// Nobody is exposed yet.
    Deploying,
    Exposing,
    Baking,
    /// While an executor makes room for the second step; some are exposed.
    Paused,
    Draining,
    Succeeded,
    RollbackFailed,
    RollingBack,
    RolledBack,
    Cancelled,
    Superseded,
}

/// Every state. What fails by time comes before what must not.
pub(crate) const EVERYWHERE: [At; 12] = [
    At::Waiting,
    At::Deploying,
    At::Exposing,
    At::Baking,
    At::Paused,
    At::Draining,
    At::Succeeded,
    At::RollbackFailed,
    At::RollingBack,
    At::RolledBack,
    At::Cancelled,
    At::Superseded,
];

/// The environment, and those who work in it.
pub(crate) struct Fleet {
    pub(crate) stack: Stack,
    /// The author of every release.
    pub(crate) author: Caller,
    /// Approves what the author hands in.
    pub(crate) boss: Caller,
    pub(crate) service: Caller,
    table_epoch: String,
    /// For how long steps are watched; else they go on when they are told to.
    min_bake: Option<TimeDelta>,
}

impl Fleet {
    pub(crate) async fn start(min_bake: Option<TimeDelta>) -> Self {
        let (stack, author) = govern(GovernanceProfile::Standard).await;
        let environment = pb::Environment {
            environment: ENVIRONMENT.to_owned(),
            needs_executor: Some(true),
            ..Default::default()
        };
        let request = pb::UpdateEnvironmentRequest { environment: Some(environment), ..Default::default() };
        author.catalog().update_environment(request).await.answer();
        let (boss, service) = (stack.caller(&person("boss")), stack.caller(&system("session-svc")));
        let table_epoch = watch(&stack, &service).await;
        Self { stack, author, boss, service, table_epoch, min_bake }
    }

    /// Kills release-svc midway in whatever it is at, and starts another one.
    pub(crate) fn kill(&mut self) {
        drop(self.stack.release.take());
        let next = self.stack.release_svc(&Options::default());
        for caller in [&mut self.author, &mut self.boss, &mut self.service] {
            *caller = caller.at_release(&next);
        }
        self.stack.release = Some(next);
    }

    pub(crate) async fn get(&self, rollout: &pb::Rollout) -> pb::Rollout {
        get_rollout(&self.author, rollout).await
    }

    /// Brings a rollout of version 1.1 to the state where rollbacks begin that lead to this one; 1.0 serves everyone before.
    pub(crate) async fn bring(&self, component: &str, at: At) -> pb::Rollout {
        let approval_policy = "by-risk".to_owned();
        let named = pb::Component { component: component.to_owned(), approval_policy, ..Default::default() };
        create_component(&self.author, named).await;
        let first = self.approved(component, "1.0").await;
        let first = self.begin(start(&first, &[])).await;
        self.expose(&first).await;
        self.reaches(&first, RolloutState::Succeeded).await;
        let release = self.approved(component, "1.1").await;
        let plan = pb::RolloutPlan {
            min_bake: self.min_bake.and_then(|bake| bake.to_std().ok()).map(duration_to_proto),
            drain_deadline: Some(seconds(30 * 86_400)),
            ..Default::default()
        };
        let request = pb::StartRolloutRequest { plan: Some(plan), ..start(&release, &[1000]) };
        match at {
            At::Waiting | At::Cancelled | At::Superseded => {
                let components = vec![component.to_owned()];
                let scope = Some(pb::WindowScope { components, ..Default::default() });
                create_window(&self.author, pb::Window { scope, ..today() }).await;
                self.begin(pb::StartRolloutRequest { wait: true, ..request }).await
            }
            At::Deploying => self.begin(request).await,
            At::Exposing => {
                let rollout = self.begin(request).await;
                self.work(&rollout).await
            }
            At::Baking | At::RollbackFailed | At::RollingBack | At::RolledBack => {
                let rollout = self.begin(request).await;
                self.expose(&rollout).await
            }
            At::Paused => {
                let rollout = self.begin(request).await;
                self.expose(&rollout).await;
                self.advance(&rollout).await;
                self.pause(&rollout).await
            }
            At::Draining | At::Succeeded => {
                let rollout = self.begin(request).await;
                self.expose(&rollout).await;
                self.advance(&rollout).await;
                self.expose(&rollout).await;
                let draining = self.advance(&rollout).await;
                if at == At::Draining { draining } else { self.drain(&rollout).await }
            }
        }
    }

    /// The rest of the way for states that come of a rollback, or of a newer rollout.
    pub(crate) async fn finish(&self, rollout: &pb::Rollout, at: At) -> pb::Rollout {
        match at {
            At::RollbackFailed => {
                roll_back(&self.author, rollout).await;
                self.stack.advance(TOO_LONG);
                self.reaches(rollout, RolloutState::RollbackFailed).await
            }
            At::RollingBack | At::Cancelled => roll_back(&self.author, rollout).await,
            At::RolledBack => {
                roll_back(&self.author, rollout).await;
                self.confirm(rollout).await;
                self.reaches(rollout, RolloutState::RolledBack).await
            }
            At::Superseded => {
                let newer = hand_in(&self.author, draft(&rollout.component, "1.2")).await;
                self.begin(pb::StartRolloutRequest { wait: true, ..start(&newer, &[]) }).await;
                self.get(rollout).await
            }
            At::Waiting
            | At::Deploying
            | At::Exposing
            | At::Baking
            | At::Paused
            | At::Draining
            | At::Succeeded => self.get(rollout).await,
        }
    }

    /// A release that somebody else has approved.
    async fn approved(&self, component: &str, version: &str) -> pb::Release {
        let release = hand_in(&self.author, draft(component, version)).await;
        approve(&self.boss, &release).await
    }

    async fn begin(&self, request: pb::StartRolloutRequest) -> pb::Rollout {
        self.author.rollouts().start_rollout(request).await.answer().rollout.unwrap()
    }

    /// Until the rollout is in this state.
    pub(crate) async fn reaches(&self, rollout: &pb::Rollout, state: RolloutState) -> pb::Rollout {
        eventually("the state of the rollout", || async {
            let found = self.get(rollout).await;
            (found.state() == state).then_some(found)
        })
        .await
    }

    /// An executor takes the next task of a component, for an hour, if there is one.
    pub(crate) async fn lease(&self, component: &str) -> Option<(pb::Task, i64)> {
        let request = pb::LeaseTaskRequest {
            environment: ENVIRONMENT.to_owned(),
            components: vec![component.to_owned()],
            lease: Some(seconds(3600)),
            wait: None,
        };
        let leased = self.author.executors().lease_task(request).await.answer();
        leased.task.map(|task| (task, leased.fencing_token))
    }

    /// Makes room for the present step.
    pub(crate) async fn work(&self, rollout: &pb::Rollout) -> pb::Rollout {
        let (task, fencing_token) = self.lease(&rollout.component).await.expect("a task");
        let request = pb::ReportTaskRequest {
            task_id: task.task_id,
            fencing_token,
            outcome: pb::TaskOutcome::Done.into(),
            message: String::new(),
        };
        self.author.executors().report_task(request).await.answer();
        eventually("the end of the task to be taken in", || async {
            let found = self.get(rollout).await;
            (found.phase() != StepPhase::Deploying).then_some(found)
        })
        .await
    }

    /// The session service acts on the component's newest route.
    pub(crate) async fn confirm(&self, rollout: &pb::Rollout) {
        let request = self.applied(rollout).await;
        self.service.routing().report_applied(request).await.answer();
    }

    /// What the session service says of that.
    pub(crate) async fn applied(&self, rollout: &pb::Rollout) -> pb::ReportAppliedRequest {
        let sql = "select revision from release.routes where component = $1";
        let mut db = self.stack.database.connect().await;
        let row = sqlx::query(sql).bind(&rollout.component).fetch_one(&mut db).await.unwrap();
        let (tenant, component) = ("shop".to_owned(), rollout.component.clone());
        pb::ReportAppliedRequest {
            environment: ENVIRONMENT.to_owned(),
            replica_id: Uuid::from_u128(1).to_string(),
            table_epoch: self.table_epoch.clone(),
            routes: vec![pb::AppliedRoute { tenant, component, revision: row.get("revision") }],
        }
    }

    /// The executor and the session service do their part for the present step.
    async fn expose(&self, rollout: &pb::Rollout) -> pb::Rollout {
        self.work(rollout).await;
        self.confirm(rollout).await;
        eventually("the step to be acted on", || async {
            let found = self.get(rollout).await;
            (found.phase() != StepPhase::Exposing).then_some(found)
        })
        .await
    }

    async fn advance(&self, rollout: &pb::Rollout) -> pb::Rollout {
        super::shop::advance_rollout(&self.author, rollout).await
    }

    pub(crate) async fn pause(&self, rollout: &pb::Rollout) -> pb::Rollout {
        let (rollout_id, reason) = (rollout.rollout_id.clone(), "lunch".to_owned());
        let request = pb::PauseRolloutRequest { rollout_id, reason, ..Default::default() };
        self.author.rollouts().pause_rollout(request).await.answer().rollout.unwrap()
    }

    /// No visit is left on what the rollout replaces.
    pub(crate) async fn drain(&self, rollout: &pb::Rollout) -> pb::Rollout {
        let visits = pb::VisitCounts { count_time: Some(to_proto(self.stack.now())), canary: 3, control: 0 };
        let signals = pb::RolloutSignals {
            tenant: "shop".to_owned(),
            rollout_id: rollout.rollout_id.clone(),
            counts: vec![],
            visits: Some(visits),
        };
        let request = pb::ReportSignalsRequest {
            environment: ENVIRONMENT.to_owned(),
            source_id: "sessions".to_owned(),
            source_epoch: "1".to_owned(),
            rollouts: vec![signals],
        };
        self.service.routing().report_signals(request).await.answer();
        self.reaches(rollout, RolloutState::Succeeded).await
    }

    /// Each transition of the rollout was told once.
    pub(crate) async fn assert_told_once(&self, rollout: &pb::Rollout) {
        let mut db = self.stack.database.connect().await;
        let sql = "select version = (select count(*) from release.events where subject = $1 and kind like 'rollout.%'
                and data::jsonb ? 'to')
            from release.rollouts where 'rlo_' || replace(rollout_id::text, '-', '') = $1";
        let is_told: bool = sqlx::query_scalar(sql)
            .bind(&rollout.rollout_id)
            .fetch_one(&mut db)
            .await
            .unwrap();
        assert!(is_told, "{rollout:?}");
    }

    /// The trail has no gap, and its chain holds.
    pub(crate) async fn assert_trail_holds(&self) {
        let events = crate::audit::list_all(&self.author).await;
        assert!(events.iter().map(|event| event.seq).eq((1..).take(events.len())), "gaps");
        let checked = crate::audit::verify(&self.author, "").await;
        assert_eq!(checked, Ok(i64::try_from(events.len()).unwrap()));
    }
}

/// Opens the watch of a session service that is heard of for good, whatever the clock does; answers the epoch that it saw.
async fn watch(stack: &Stack, service: &Caller) -> String {
    let request = pb::WatchRoutesRequest {
        environment: ENVIRONMENT.to_owned(),
        replica_id: Uuid::from_u128(1).to_string(),
    };
    let mut stream = service.routing().watch_routes(request).await.answer();
    let first = stream.message().await.unwrap().unwrap();
    assert!(matches!(first.message, Some(Message::Snapshot(_))), "{first:?}");
    let sql = "update release.route_replicas set seen_at = '2100-01-01'";
    sqlx::query(sql).execute(&mut stack.database.connect().await).await.unwrap();
    first.table_epoch
}

fn draft(component: &str, version: &str) -> pb::CreateReleaseRequest {
    pb::CreateReleaseRequest { component: component.to_owned(), ..change(version, Size::Small, &[]) }
}
