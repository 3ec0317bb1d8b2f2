//! Executors: a step waits for whoever deploys it, tasks are one executor's at a time, and nothing that is taken back waits.
//! Here the test is the executor.

use chrono::TimeDelta;
use futures_util::future::join_all;
use release_svc::domain::task::Outcome;
use release_svc::store;
use shared::id::{TaskId, TenantId};
use shared::issuer::Grant;
use shared::pb::release as pb;
use shared::pb::release::{RolloutState, StepPhase, TaskKind, TaskOutcome, TaskState};
use sqlx::Connection as _;
use tokio::time::{Duration, timeout};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::shop::{
    advance, advance_rollout, create_catalog, create_component, create_release, get_rollout, roll_back,
    seconds, ship, start as rollout_of, submit,
};
use crate::harness::{Answer as _, Caller, ENVIRONMENT, Options, Stack, eventually, person, workload};

/// The catalogue with an environment that needs an executor.
pub(crate) async fn start() -> (Stack, Caller) {
    let stack = Stack::releases();
    let caller = stack.caller(&person("ada"));
    create_catalog(&caller).await;
    need_executor(&caller).await;
    (stack, caller)
}

pub(crate) async fn need_executor(caller: &Caller) {
    let environment = pb::Environment {
        environment: ENVIRONMENT.to_owned(),
        needs_executor: Some(true),
        ..Default::default()
    };
    let request = pb::UpdateEnvironmentRequest { environment: Some(environment), ..Default::default() };
    let stored = caller.catalog().update_environment(request).await.answer().environment;
    assert_eq!(stored.unwrap().needs_executor, Some(true));
}

fn asking() -> pb::LeaseTaskRequest {
    pb::LeaseTaskRequest { environment: ENVIRONMENT.to_owned(), ..Default::default() }
}

pub(crate) async fn try_lease(caller: &Caller) -> Option<(pb::Task, i64)> {
    let answer = caller.executors().lease_task(asking()).await.answer();
    Some((answer.task?, answer.fencing_token))
}

async fn lease(caller: &Caller) -> (pb::Task, i64) {
    try_lease(caller).await.expect("a task")
}

fn renewal(task: &pb::Task, fencing_token: i64) -> pb::RenewTaskRequest {
    pb::RenewTaskRequest { task_id: task.task_id.clone(), fencing_token, lease: Some(seconds(60)) }
}

fn saying(task: &pb::Task, fencing_token: i64, outcome: TaskOutcome) -> pb::ReportTaskRequest {
    let message = "disk full".to_owned();
    pb::ReportTaskRequest { task_id: task.task_id.clone(), fencing_token, outcome: outcome.into(), message }
}

async fn report(caller: &Caller, (task, token): &(pb::Task, i64), outcome: TaskOutcome) -> pb::Task {
    let answer = caller.executors().report_task(saying(task, *token, outcome)).await.answer();
    answer.task.unwrap()
}

/// Does the next task, which is this one.
pub(crate) async fn work(caller: &Caller, kind: TaskKind, version: &str) -> pb::Task {
    let leased = lease(caller).await;
    assert_eq!((leased.0.kind(), leased.0.version.as_str()), (kind, version));
    report(caller, &leased, TaskOutcome::Done).await
}

/// Shipped to everyone.
pub(crate) async fn deploy(caller: &Caller, version: &str) -> pb::Rollout {
    let rollout = ship(caller, version, &[]).await;
    work(caller, TaskKind::Expose, version).await;
    let rollout = get_rollout(caller, &rollout).await;
    assert_eq!(rollout.state(), RolloutState::Succeeded);
    rollout
}

async fn tasks(caller: &Caller, states: &[TaskState]) -> Vec<pb::Task> {
    let states = states.iter().map(|state| (*state).into()).collect();
    let request = pb::ListTasksRequest { states, ..Default::default() };
    caller.executors().list_tasks(request).await.answer().tasks
}

/// What session services count of a rollout's release; whether they need not any more.
async fn count(stack: &Stack, rollout: &pb::Rollout, canary: i64) -> bool {
    let system = stack.caller(&crate::harness::system("session-svc"));
    let visits =
        pb::VisitCounts { count_time: Some(shared::time::to_proto(stack.now())), canary, control: 7 };
    let signals = pb::RolloutSignals {
        tenant: "shop".to_owned(),
        rollout_id: rollout.rollout_id.clone(),
        counts: vec![],
        visits: Some(visits),
    };
    let request = pb::ReportSignalsRequest {
        environment: ENVIRONMENT.to_owned(),
        source_id: "one".to_owned(),
        source_epoch: "1".to_owned(),
        rollouts: vec![signals],
    };
    let answer = system.routing().report_signals(request).await.answer();
    answer.ended_rollout_ids == [rollout.rollout_id.as_str()]
}

#[tokio::test]
async fn a_step_is_exposed_as_soon_as_its_task_is_done() {
    let (_stack, caller) = start().await;
    let first = ship(&caller, "1.0", &[]).await;
    assert_eq!((first.phase(), first.exposure_bps), (StepPhase::Deploying, 0));
    let leased = lease(&caller).await;
    let (task, token) = &leased;
    assert_eq!((task.kind(), task.state(), *token), (TaskKind::Expose, TaskState::Leased, 1));
    assert_eq!((task.version.as_str(), task.exposure_bps, task.attempts), ("1.0", 10_000, 1));
    assert_eq!((&task.rollout_id, &task.release_id), (&first.rollout_id, &first.release_id));
    assert_eq!(try_lease(&caller).await, None);
    assert_eq!(report(&caller, &leased, TaskOutcome::Done).await.state(), TaskState::Done);
    assert_eq!(get_rollout(&caller, &first).await.state(), RolloutState::Succeeded);

    let rollout = ship(&caller, "1.1", &[1000]).await;
    let refused = caller.rollouts().advance_rollout(advance(&rollout)).await;
    let status = refused.refused(Code::FailedPrecondition, "ROLLOUT_BLOCKED");
    assert_eq!(status.get_details_precondition_failure().unwrap().violations[0].r#type, "EXECUTOR");
    assert_eq!(work(&caller, TaskKind::Expose, "1.1").await.exposure_bps, 1000);
    let exposed = get_rollout(&caller, &rollout).await;
    assert_eq!((exposed.phase(), exposed.exposure_bps), (StepPhase::Baking, 1000));
    let next = advance_rollout(&caller, &rollout).await;
    assert_eq!((next.phase(), next.step, next.exposure_bps), (StepPhase::Deploying, 1, 1000));
    assert_eq!(work(&caller, TaskKind::Expose, "1.1").await.exposure_bps, 10_000);
    assert_eq!(get_rollout(&caller, &rollout).await.exposure_bps, 10_000);
    assert_eq!(advance_rollout(&caller, &rollout).await.state(), RolloutState::Succeeded);
}

#[tokio::test]
async fn whoever_waits_gets_a_task_as_it_is_made_and_of_many_one() {
    let (stack, caller) = start().await;
    let replica = stack.release_svc(&Options::default());
    let there = caller.at_release(&replica);
    let waiting = [&caller, &there, &caller, &there].map(|caller| async {
        let request = pb::LeaseTaskRequest { wait: Some(seconds(3)), ..asking() };
        caller.executors().lease_task(request).await.answer().task
    });
    let (leased, _) = tokio::join!(join_all(waiting), async {
        tokio::time::sleep(Duration::from_millis(200)).await; // they have begun to wait
        ship(&caller, "1.0", &[]).await
    });
    assert_eq!(leased.iter().flatten().count(), 1, "{leased:?}");
}

#[tokio::test]
async fn a_lease_that_runs_out_goes_to_the_next_who_asks_and_a_stale_report_is_refused() {
    let (stack, caller) = start().await;
    let (one, two) = (stack.caller(&workload("one")), stack.caller(&workload("two")));
    ship(&caller, "1.0", &[]).await;
    let (task, stale) = lease(&one).await;
    assert!(task.executor.ends_with("|one"), "{}", task.executor);
    stack.advance(TimeDelta::seconds(29));
    one.executors().renew_task(renewal(&task, stale)).await.answer();
    stack.advance(TimeDelta::seconds(59));
    assert_eq!(try_lease(&two).await, None);
    stack.advance(TimeDelta::seconds(1));
    assert_eq!(tasks(&caller, &[TaskState::Queued]).await.len(), 1, "decided as it is read");
    // Nobody has asked yet, so that it is still the first one's.
    one.executors().renew_task(renewal(&task, stale)).await.answer();
    stack.advance(TimeDelta::seconds(61));
    let (again, token) = lease(&two).await;
    assert_eq!((again.task_id.as_str(), token, again.attempts), (task.task_id.as_str(), 2, 2));
    assert!(again.executor.ends_with("|two"), "{}", again.executor);
    for stale in [stale, 0, 3] {
        let refused = one.executors().renew_task(renewal(&task, stale)).await;
        refused.refused(Code::FailedPrecondition, "TASK_LEASE_LOST");
        for outcome in [TaskOutcome::Done, TaskOutcome::Failed, TaskOutcome::Returned] {
            let refused = one.executors().report_task(saying(&task, stale, outcome)).await;
            refused.refused(Code::FailedPrecondition, "TASK_LEASE_LOST");
        }
    }
    let done = report(&two, &(task.clone(), token), TaskOutcome::Done).await;
    assert_eq!(report(&two, &(task.clone(), token), TaskOutcome::Done).await, done, "said again");
    let refused = two.executors().report_task(saying(&task, token, TaskOutcome::Failed)).await;
    refused.refused(Code::FailedPrecondition, "TASK_LEASE_LOST");
}

/// On two connections: what was decided with a token is not written once a newer one was handed out.
#[tokio::test]
async fn i16_of_two_who_had_the_task_only_the_newest_writes() {
    let (stack, caller) = start().await;
    ship(&caller, "1.0", &[]).await;
    let (task, token) = lease(&caller).await;
    let (tenant, id): (TenantId, TaskId) = ("shop".parse().unwrap(), task.task_id.parse().unwrap());
    let (mut one, mut two) = (stack.database.connect().await, stack.database.connect().await);
    let held = store::task::lock(&mut one, &tenant, id).await.unwrap().unwrap();
    stack.advance(TimeDelta::seconds(31));
    let now = stack.now();
    let mut newer = two.begin().await.unwrap();
    let handed_on = store::task::lock(&mut newer, &tenant, id).await.unwrap().unwrap();
    let handed_on = handed_on.lease("two".to_owned(), now + TimeDelta::seconds(30), now).unwrap();
    assert!(store::task::update(&mut newer, &tenant, &handed_on).await.unwrap());
    let stale = held.report(token, Outcome::Done, String::new(), now).unwrap().unwrap();
    {
        let writing = store::task::update(&mut one, &tenant, &stale);
        tokio::pin!(writing);
        assert!(timeout(Duration::from_millis(100), &mut writing).await.is_err(), "it waits for the other");
        newer.commit().await.unwrap();
        assert!(!writing.await.unwrap());
    }
    let stored = store::task::lock(&mut one, &tenant, id).await.unwrap().unwrap();
    assert_eq!((stored.token, stored.executor.as_deref()), (2, Some("two")));
}

#[tokio::test]
async fn a_task_that_fails_for_the_third_time_rolls_its_rollout_back() {
    let (stack, caller) = start().await;
    deploy(&caller, "1.0").await;
    let rollout = ship(&caller, "1.1", &[1000]).await;
    for attempt in 1..=3 {
        let leased = lease(&caller).await;
        assert_eq!(leased.1, attempt);
        let failed = report(&caller, &leased, TaskOutcome::Failed).await;
        let expected = if attempt == 3 { TaskState::Failed } else { TaskState::Queued };
        assert_eq!((failed.state(), failed.message.as_str()), (expected, "disk full"));
        stack.advance(TimeDelta::seconds(29));
        assert_eq!(tasks(&caller, &[TaskState::Leased]).await, []);
        if attempt < 3 {
            assert_eq!(try_lease(&caller).await, None, "it rests");
            stack.advance(TimeDelta::seconds(1));
        }
    }
    let back = get_rollout(&caller, &rollout).await;
    assert_eq!((back.state(), back.exposure_bps), (RolloutState::RolledBack, 0));
    assert_eq!(back.rollback_reason, "the executor failed: disk full");
}

#[tokio::test]
async fn a_task_that_is_given_back_is_free_at_once() {
    let (_stack, caller) = start().await;
    ship(&caller, "1.0", &[]).await;
    for _ in 0..4 {
        let leased = lease(&caller).await;
        assert_eq!(report(&caller, &leased, TaskOutcome::Returned).await.state(), TaskState::Queued);
    }
    work(&caller, TaskKind::Expose, "1.0").await;
}

#[tokio::test]
async fn a_rollback_does_not_wait_for_an_executor_and_takes_its_task_away() {
    let (_stack, caller) = start().await;
    deploy(&caller, "1.0").await;
    let rollout = ship(&caller, "1.1", &[1000]).await;
    let (task, token) = lease(&caller).await;
    assert_eq!(roll_back(&caller, &rollout).await.state(), RolloutState::RolledBack);
    assert_eq!(tasks(&caller, &[TaskState::Cancelled]).await[0].task_id, task.task_id);
    let lost = caller.executors().renew_task(renewal(&task, token)).await;
    lost.refused(Code::FailedPrecondition, "TASK_LEASE_LOST");
    let lost = caller.executors().report_task(saying(&task, token, TaskOutcome::Done)).await;
    lost.refused(Code::FailedPrecondition, "TASK_LEASE_LOST");
    assert_eq!(get_rollout(&caller, &rollout).await.state(), RolloutState::RolledBack);
    work(&caller, TaskKind::Retire, "1.1").await;
    assert_eq!(try_lease(&caller).await, None);
}

#[tokio::test]
async fn what_was_taken_back_is_retired_once_no_visit_is_on_it() {
    let (stack, caller) = start().await;
    deploy(&caller, "1.0").await;
    let rollout = ship(&caller, "1.1", &[1000]).await;
    work(&caller, TaskKind::Expose, "1.1").await;
    count(&stack, &rollout, 0).await;
    stack.advance(TimeDelta::seconds(5));
    roll_back(&caller, &rollout).await;
    assert_eq!(try_lease(&caller).await, None, "that count is older");
    stack.advance(TimeDelta::seconds(5));
    assert!(!count(&stack, &rollout, 2).await);
    assert_eq!(try_lease(&caller).await, None);
    stack.advance(TimeDelta::seconds(5));
    assert!(!count(&stack, &rollout, 0).await);
    work(&caller, TaskKind::Retire, "1.1").await;
    assert!(count(&stack, &rollout, 0).await, "nobody waits for more");
}

#[tokio::test]
async fn visits_keep_a_release_running_for_a_day_at_most() {
    let (stack, caller) = start().await;
    deploy(&caller, "1.0").await;
    let rollout = ship(&caller, "1.1", &[1000]).await;
    work(&caller, TaskKind::Expose, "1.1").await;
    count(&stack, &rollout, 1).await;
    roll_back(&caller, &rollout).await;
    stack.advance(TimeDelta::seconds(86_399));
    count(&stack, &rollout, 1).await;
    assert_eq!(try_lease(&caller).await, None);
    stack.advance(TimeDelta::seconds(1));
    work(&caller, TaskKind::Retire, "1.1").await;
}

#[tokio::test]
async fn what_a_rollback_leads_to_keeps_running_and_what_was_retired_comes_back() {
    let (_stack, caller) = start().await;
    deploy(&caller, "1.0").await;
    let second = deploy(&caller, "1.1").await;
    assert_eq!(try_lease(&caller).await, None, "1.0 is what 1.1 goes back to");
    let third = ship(&caller, "1.2", &[]).await;
    work(&caller, TaskKind::Expose, "1.2").await;
    let (retiring, token) = lease(&caller).await;
    assert_eq!((retiring.kind(), retiring.version.as_str()), (TaskKind::Retire, "1.0"));
    let back = roll_back(&caller, &third).await;
    assert_eq!(
        (back.rollback_of.as_str(), back.state()),
        (third.rollout_id.as_str(), RolloutState::RolledBack)
    );
    assert_eq!(work(&caller, TaskKind::Expose, "1.1").await.exposure_bps, 10_000);
    work(&caller, TaskKind::Retire, "1.2").await;
    // 1.0 is needed again, whoever is about to retire it.
    assert_eq!(roll_back(&caller, &second).await.state(), RolloutState::RolledBack);
    let lost = caller
        .executors()
        .report_task(saying(&retiring, token, TaskOutcome::Done))
        .await;
    lost.refused(Code::FailedPrecondition, "TASK_LEASE_LOST");
    work(&caller, TaskKind::Expose, "1.0").await;
    work(&caller, TaskKind::Retire, "1.1").await;
    assert_eq!(try_lease(&caller).await, None);
}

#[tokio::test]
async fn a_rollout_that_waited_goes_by_what_the_environment_says_as_it_begins() {
    let stack = Stack::releases();
    let caller = stack.caller(&person("ada"));
    create_catalog(&caller).await;
    ship(&caller, "1.0", &[]).await;
    let running = ship(&caller, "1.1", &[1000]).await;
    let release = submit(&caller, &create_release(&caller, "1.2").await).await;
    let request = pb::StartRolloutRequest { wait: true, ..rollout_of(&release, &[1000]) };
    let waiting = caller.rollouts().start_rollout(request).await.answer().rollout.unwrap();
    assert_eq!(waiting.state(), RolloutState::Waiting);
    need_executor(&caller).await;
    roll_back(&caller, &running).await;
    eventually("the end of the wait", || async {
        (get_rollout(&caller, &waiting).await.phase() == StepPhase::Deploying).then_some(())
    })
    .await;
    assert_eq!(try_lease(&caller).await.unwrap().0.rollout_id, waiting.rollout_id);
}

#[tokio::test]
async fn a_drift_is_told_of_once_for_each_set_of_versions() {
    let (_stack, caller) = start().await;
    deploy(&caller, "1.0").await;
    ship(&caller, "1.1", &[1000]).await;
    let observe = async |versions: &[&str]| {
        let request = pb::ReportObservedRequest {
            environment: ENVIRONMENT.to_owned(),
            component: "storefront".to_owned(),
            versions: versions.iter().map(|version| (*version).to_owned()).collect(),
        };
        let answer = caller.executors().report_observed(request).await.answer();
        assert_eq!(answer.wanted_versions, ["1.0"]);
        let told = crate::audit::list_all(&caller).await;
        let told = told.iter().filter(|event| event.kind == "component.drift_observed");
        (answer.is_drift, told.count())
    };
    assert_eq!(observe(&["1.0"]).await, (false, 0));
    assert_eq!(observe(&["1.0", "1.1"]).await, (false, 0), "1.1 is being deployed");
    assert_eq!(observe(&["1.0", "0.9"]).await, (true, 1));
    assert_eq!(observe(&["0.9", "1.0"]).await, (true, 1));
    assert_eq!(observe(&[]).await, (true, 2));
    assert_eq!(observe(&["1.0"]).await, (false, 2));
    assert_eq!(observe(&["0.9", "1.0"]).await, (true, 3), "again, after it was gone");
}

#[tokio::test]
async fn executors_deploy_what_their_groups_own() {
    let (stack, caller) = start().await;
    let component = pb::Component {
        component: "ledger".to_owned(),
        owner_groups: vec!["finance".to_owned()],
        ..Default::default()
    };
    let owner = stack.caller(&Grant { groups: vec!["finance".to_owned()], ..person("fin") });
    create_component(&owner, component).await;
    let draft = pb::CreateReleaseRequest {
        component: "ledger".to_owned(),
        version: "1.0".to_owned(),
        ..Default::default()
    };
    let release = owner.releases().create_release(draft).await.answer().release.unwrap();
    let release = submit(&owner, &release).await;
    owner.rollouts().start_rollout(rollout_of(&release, &[])).await.answer();
    assert_eq!(try_lease(&caller).await, None);
    let named = pb::LeaseTaskRequest { components: vec!["ledger".to_owned()], ..asking() };
    let refused = caller.executors().lease_task(named.clone()).await;
    refused.refused(Code::PermissionDenied, "CALLER_NOT_OWNER");
    let leased = owner.executors().lease_task(named).await.answer();
    let task = leased.task.unwrap();
    let refused = caller.executors().renew_task(renewal(&task, leased.fencing_token)).await;
    refused.refused(Code::PermissionDenied, "CALLER_NOT_OWNER");
    let other = pb::LeaseTaskRequest { components: vec!["storefront".to_owned()], ..asking() };
    report(&owner, &(task, leased.fencing_token), TaskOutcome::Returned).await;
    assert_eq!(owner.executors().lease_task(other).await.answer().task, None);
    let powerless = stack.caller(&Grant { scope: "rollout.read".to_owned(), ..workload("one") });
    let refused = powerless.executors().lease_task(asking()).await;
    refused.refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let (_stack, caller) = start().await;
    ship(&caller, "1.0", &[]).await;
    let nowhere = pb::LeaseTaskRequest { environment: "nowhere".to_owned(), ..asking() };
    let refused = caller.executors().lease_task(nowhere).await;
    refused.refused(Code::NotFound, "ENVIRONMENT_NOT_FOUND");
    let nothing = pb::LeaseTaskRequest { components: vec!["nothing".to_owned()], ..asking() };
    let refused = caller.executors().lease_task(nothing).await;
    refused.refused(Code::NotFound, "COMPONENT_NOT_FOUND");
    for bad in [
        pb::LeaseTaskRequest { lease: Some(seconds(4)), ..asking() },
        pb::LeaseTaskRequest { lease: Some(seconds(3601)), ..asking() },
        pb::LeaseTaskRequest { lease: Some(seconds(-1)), ..asking() },
        pb::LeaseTaskRequest { wait: Some(seconds(31)), ..asking() },
        pb::LeaseTaskRequest { environment: String::new(), ..asking() },
        pb::LeaseTaskRequest { components: vec!["storefront".to_owned(); 101], ..asking() },
        pb::LeaseTaskRequest { components: vec!["No".to_owned()], ..asking() },
    ] {
        caller
            .executors()
            .lease_task(bad)
            .await
            .refused(Code::InvalidArgument, "FIELD_INVALID");
    }
    let (task, token) = lease(&caller).await;
    let unsaid = saying(&task, token, TaskOutcome::Unspecified);
    let long = pb::ReportTaskRequest { message: "x".repeat(1001), ..saying(&task, token, TaskOutcome::Done) };
    for bad in [unsaid, long] {
        caller
            .executors()
            .report_task(bad)
            .await
            .refused(Code::InvalidArgument, "FIELD_INVALID");
    }
    let unknown = pb::Task { task_id: format!("tsk_{}", "0".repeat(32)), ..task.clone() };
    let refused = caller.executors().renew_task(renewal(&unknown, token)).await;
    refused.refused(Code::NotFound, "TASK_NOT_FOUND");
    let many = pb::ReportObservedRequest {
        environment: ENVIRONMENT.to_owned(),
        component: "storefront".to_owned(),
        versions: (0..17).map(|n| n.to_string()).collect(),
    };
    caller
        .executors()
        .report_observed(many)
        .await
        .refused(Code::InvalidArgument, "FIELD_INVALID");
}
