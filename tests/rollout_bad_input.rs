//! What executors, session services and clocks do wrong to a rollout, where no other test is about it: executors that vanish,
//! counts of visits that come late or twice, and clocks of replicas that are off.

use chrono::TimeDelta;
use shared::pb::release as pb;
use shared::pb::release::{DeadlineAction, PauseCause, RolloutState, StepPhase, TaskOutcome};
use shared::time::{Clock, to_proto};
use tonic::Code;

use crate::audit::list_all;
use crate::harness::shop::{create_release, get_rollout, roll_back, start as rollout_of, submit};
use crate::harness::{Answer as _, Caller, ENVIRONMENT, Options, Service, Stack, eventually, person, system};
use crate::rollout_control::{baked, reaches, resume, ship_by, span, start};

async fn need_executor(caller: &Caller) {
    let environment = pb::Environment {
        environment: ENVIRONMENT.to_owned(),
        needs_executor: Some(true),
        ..Default::default()
    };
    let request = pb::UpdateEnvironmentRequest { environment: Some(environment), ..Default::default() };
    caller.catalog().update_environment(request).await.answer();
}

async fn lease(caller: &Caller) -> (pb::Task, i64) {
    let request = pb::LeaseTaskRequest { environment: ENVIRONMENT.to_owned(), ..Default::default() };
    let leased = caller.executors().lease_task(request).await.answer();
    (leased.task.unwrap(), leased.fencing_token)
}

fn done((task, fencing_token): &(pb::Task, i64)) -> pb::ReportTaskRequest {
    pb::ReportTaskRequest {
        task_id: task.task_id.clone(),
        fencing_token: *fencing_token,
        outcome: TaskOutcome::Done.into(),
        message: String::new(),
    }
}

#[tokio::test]
async fn an_executor_that_vanishes_is_waited_for_until_the_deadline_of_the_step() {
    for (action, state) in
        [(DeadlineAction::Pause, RolloutState::Paused), (DeadlineAction::RollBack, RolloutState::RolledBack)]
    {
        let (stack, caller) = start().await;
        need_executor(&caller).await;
        let plan = pb::RolloutPlan {
            step_deadline: span(TimeDelta::hours(1)),
            at_deadline: action.into(),
            ..Default::default()
        };
        let rollout = ship_by(&caller, "1.1", &[1000], plan).await;
        let vanished = lease(&caller).await;
        stack.advance(TimeDelta::minutes(59));
        assert_eq!(get_rollout(&caller, &rollout).await.phase(), StepPhase::Deploying);
        stack.advance(TimeDelta::minutes(1));
        let late = reaches(&caller, &rollout, state).await;
        assert_eq!(late.exposure_bps, 0);
        // It comes back, and nobody else has had its task.
        let reported = caller.executors().report_task(done(&vanished)).await;
        if state == RolloutState::RolledBack {
            reported.refused(Code::FailedPrecondition, "TASK_LEASE_LOST");
            continue;
        }
        reported.answer();
        assert_eq!(late.pause.unwrap().cause(), PauseCause::Deadline);
        caller.rollouts().resume_rollout(resume(&rollout)).await.answer();
        eventually("the step", || async {
            (get_rollout(&caller, &rollout).await.exposure_bps == 1000).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_deadline_that_the_bake_time_outlasts_is_refused() {
    let (_stack, caller) = start().await;
    let release = submit(&caller, &create_release(&caller, "1.1").await).await;
    let plan = pb::RolloutPlan { step_deadline: baked().min_bake, ..baked() };
    let request = pb::StartRolloutRequest { plan: Some(plan), ..rollout_of(&release, &[1000]) };
    let refused = caller.rollouts().start_rollout(request).await;
    refused.refused(Code::InvalidArgument, "FIELD_INVALID");
}

/// Visits on what a rollout replaces, as counted so many seconds after the start of the test; each count once.
fn visits(stack: &Stack, rollout: &pb::Rollout, counts: &[(i64, i64)]) -> pb::ReportSignalsRequest {
    let start = stack.now();
    let signals = counts.iter().map(|(second, control)| {
        let count_time = Some(to_proto(start + TimeDelta::seconds(*second)));
        pb::RolloutSignals {
            tenant: "shop".to_owned(),
            rollout_id: rollout.rollout_id.clone(),
            counts: vec![],
            visits: Some(pb::VisitCounts { count_time, canary: 3, control: *control }),
        }
    });
    pb::ReportSignalsRequest {
        environment: ENVIRONMENT.to_owned(),
        source_id: "sessions".to_owned(),
        source_epoch: "1".to_owned(),
        rollouts: signals.collect(),
    }
}

#[tokio::test]
async fn counts_of_visits_that_come_late_or_twice_end_no_drain() {
    let (stack, caller) = start().await;
    let service = stack.caller(&system("session-svc"));
    let plan = pb::RolloutPlan { drain_deadline: span(TimeDelta::hours(1)), ..baked() };
    let rollout = ship_by(&caller, "1.1", &[], plan).await;
    stack.advance(TimeDelta::minutes(10));
    reaches(&caller, &rollout, RolloutState::Draining).await;
    // From before the drain; a newer one and an older one, which comes after it; the same again.
    for counts in [&[(-1, 0)][..], &[(2, 5), (1, 0)], &[(1, 0)], &[(2, 0)]] {
        let report = visits(&stack, &rollout, counts);
        service.routing().report_signals(report).await.answer();
    }
    let request = pb::GetRolloutRequest { rollout_id: rollout.rollout_id.clone() };
    let report = caller.rollouts().get_rollout(request).await.answer().report.unwrap();
    let control: Vec<_> = report.visits.iter().map(|visits| visits.visits).collect();
    assert_eq!(control, [3, 5]);
    service
        .routing()
        .report_signals(visits(&stack, &rollout, &[(3, 0)]))
        .await
        .answer();
    reaches(&caller, &rollout, RolloutState::Succeeded).await;
}

/// One more release-svc, whose clock is off by so much, and that clock.
fn replica_off_by(stack: &mut Stack, skew: TimeDelta) -> (Service, Clock) {
    let theirs = Clock::fake(stack.now() + skew);
    let right = std::mem::replace(&mut stack.clock, theirs.clone());
    let replica = stack.release_svc(&Options::default());
    stack.clock = right;
    (replica, theirs)
}

#[tokio::test]
async fn a_replica_whose_clock_is_off_skips_no_step_and_stands_in_no_way_back() {
    for skew in [TimeDelta::hours(-1), TimeDelta::hours(1)] {
        let (mut stack, caller) = start().await;
        let (replica, theirs) = replica_off_by(&mut stack, skew);
        let there = caller.at_release(&replica);
        let rollout = ship_by(&caller, "1.1", &[1000, 5000], baked()).await;
        for step in 1..3 {
            stack.advance(TimeDelta::minutes(10));
            theirs.advance(TimeDelta::minutes(10));
            eventually("the next step", || async {
                (get_rollout(&caller, &rollout).await.step >= step).then_some(())
            })
            .await;
        }
        stack.advance(TimeDelta::minutes(10));
        theirs.advance(TimeDelta::minutes(10));
        reaches(&caller, &rollout, RolloutState::Succeeded).await;
        let told = list_all(&caller).await;
        let steps = told.iter().filter(|event| {
            event.subject == rollout.rollout_id
                && ["rollout.started", "rollout.advanced"].contains(&event.kind.as_str())
        });
        let steps: Vec<_> = steps
            .map(|event| {
                let record: serde_json::Value = serde_json::from_str(&event.record).unwrap();
                (record["data"]["step"].as_i64().unwrap(), record["data"]["exposure_bps"].as_i64().unwrap())
            })
            .collect();
        assert_eq!(steps, [(0, 1000), (1, 5000), (2, 10_000)], "off by {skew}");
        // By one clock it goes back before it began.
        let next = ship_by(&caller, "1.2", &[1000], pb::RolloutPlan::default()).await;
        let back = roll_back(&there, &next).await;
        assert_eq!((back.state(), back.exposure_bps), (RolloutState::RolledBack, 0), "off by {skew}");
        let back = roll_back(&there, &rollout).await;
        assert_eq!((back.state(), &back.rollback_of), (RolloutState::RolledBack, &rollout.rollout_id));
        let eve = stack.caller(&person("eve")).at_release(&replica);
        crate::audit::verify(&eve, "").await.unwrap();
    }
}
