//! Rollouts that go on by themselves: steps that are watched, waits, pauses, deadlines and drains.

use chrono::TimeDelta;
use shared::pb::release as pb;
use shared::pb::release::{DeadlineAction, PauseCause, RolloutState, StepPhase};
use shared::time::duration_to_proto;
use tonic::Code;

use crate::harness::shop::{
    advance, advance_rollout, create_catalog, create_release, get_rollout, ship, start as rollout_of, submit,
};
use crate::harness::{Answer as _, Caller, Stack, eventually, person};
use crate::window::{create_window, today};

const BAKE: TimeDelta = TimeDelta::minutes(10);

pub(crate) async fn start() -> (Stack, Caller) {
    let stack = Stack::releases();
    let caller = stack.caller(&person("ada"));
    create_catalog(&caller).await;
    ship(&caller, "1.0", &[]).await;
    (stack, caller)
}

pub(crate) fn span(span: TimeDelta) -> Option<prost_types::Duration> {
    span.to_std().ok().map(duration_to_proto)
}

/// Steps are watched for ten minutes each.
pub(crate) fn baked() -> pb::RolloutPlan {
    pb::RolloutPlan { min_bake: span(BAKE), ..Default::default() }
}

/// An approved release of this version, going by this plan.
pub(crate) async fn ship_by(
    caller: &Caller,
    version: &str,
    steps: &[i32],
    plan: pb::RolloutPlan,
) -> pb::Rollout {
    let release = submit(caller, &create_release(caller, version).await).await;
    let request = pb::StartRolloutRequest { plan: Some(plan), ..rollout_of(&release, steps) };
    caller.rollouts().start_rollout(request).await.answer().rollout.unwrap()
}

/// Until the rollout is in this state.
pub(crate) async fn reaches(caller: &Caller, rollout: &pb::Rollout, state: RolloutState) -> pb::Rollout {
    eventually("the state of the rollout", || async {
        let found = get_rollout(caller, rollout).await;
        (found.state() == state).then_some(found)
    })
    .await
}

async fn reaches_step(caller: &Caller, rollout: &pb::Rollout, step: i32) -> pb::Rollout {
    eventually("the step of the rollout", || async {
        let found = get_rollout(caller, rollout).await;
        (found.step == step).then_some(found)
    })
    .await
}

fn pause(rollout: &pb::Rollout) -> pb::PauseRolloutRequest {
    let (rollout_id, reason) = (rollout.rollout_id.clone(), "lunch".to_owned());
    pb::PauseRolloutRequest { rollout_id, reason, ..Default::default() }
}

pub(crate) fn resume(rollout: &pb::Rollout) -> pb::ResumeRolloutRequest {
    let (rollout_id, reason) = (rollout.rollout_id.clone(), "we are back".to_owned());
    pb::ResumeRolloutRequest { rollout_id, reason, ..Default::default() }
}

fn skip(rollout: &pb::Rollout) -> pb::SkipStepRequest {
    let (rollout_id, reason) = (rollout.rollout_id.clone(), "it is urgent".to_owned());
    pb::SkipStepRequest { rollout_id, reason, ..Default::default() }
}

#[tokio::test]
async fn a_rollout_with_a_bake_time_goes_on_by_itself() {
    let (stack, caller) = start().await;
    let rollout = ship_by(&caller, "1.1", &[1000, 5000], baked()).await;
    assert_eq!((rollout.state(), rollout.phase()), (RolloutState::Running, StepPhase::Baking));
    for step in 1..3 {
        stack.advance(BAKE);
        reaches_step(&caller, &rollout, step).await;
    }
    stack.advance(BAKE);
    assert_eq!(reaches(&caller, &rollout, RolloutState::Succeeded).await.exposure_bps, 10_000);
}

#[tokio::test]
async fn who_does_not_wait_for_the_bake_says_why() {
    let (_stack, caller) = start().await;
    let rollout = ship_by(&caller, "1.1", &[1000], baked()).await;
    let refused = caller.rollouts().advance_rollout(advance(&rollout)).await;
    let refused = refused.refused(Code::FailedPrecondition, "ROLLOUT_BLOCKED");
    assert!(refused.message().contains("held back"), "{}", refused.message());
    let wordless = pb::SkipStepRequest { reason: String::new(), ..skip(&rollout) };
    caller
        .rollouts()
        .skip_step(wordless)
        .await
        .refused(Code::InvalidArgument, "FIELD_INVALID");
    let skipped = caller.rollouts().skip_step(skip(&rollout)).await.answer().rollout.unwrap();
    assert_eq!((skipped.step, skipped.exposure_bps), (1, 10_000));
}

#[tokio::test]
async fn i17_what_waits_begins_once_nothing_holds_it_back_and_a_newer_one_takes_its_place() {
    let (stack, caller) = start().await;
    create_window(&caller, today()).await;
    let wait = |release: &pb::Release| pb::StartRolloutRequest { wait: true, ..rollout_of(release, &[1000]) };
    let first = submit(&caller, &create_release(&caller, "1.1").await).await;
    let second = submit(&caller, &create_release(&caller, "1.2").await).await;
    let refused = caller.rollouts().start_rollout(rollout_of(&first, &[1000])).await;
    refused.refused(Code::FailedPrecondition, "ROLLOUT_WINDOW_CLOSED");
    let older = caller.rollouts().start_rollout(wait(&first)).await.answer().rollout.unwrap();
    assert_eq!((older.state(), older.exposure_bps), (RolloutState::Waiting, 0));
    assert_eq!(older.waiting_for, ["WINDOW"]);
    let newer = caller.rollouts().start_rollout(wait(&second)).await.answer().rollout.unwrap();
    let older = get_rollout(&caller, &older).await;
    assert_eq!((older.state(), &older.superseded_by), (RolloutState::Superseded, &newer.rollout_id));
    caller
        .rollouts()
        .advance_rollout(advance(&newer))
        .await
        .refused(Code::FailedPrecondition, "ROLLOUT_WRONG_STATE");
    let stop = pb::StopTheLineRequest { reason: "fire".to_owned(), ..Default::default() };
    caller.windows().stop_the_line(stop).await.answer();
    eventually("what it waits for now", || async {
        let found = get_rollout(&caller, &newer).await;
        (found.waiting_for == ["LINE", "WINDOW"]).then_some(())
    })
    .await;
    let resume = pb::ResumeTheLineRequest { reason: "it is out".to_owned(), ..Default::default() };
    caller.windows().resume_the_line(resume).await.answer();
    stack.advance(TimeDelta::days(1));
    let running = reaches(&caller, &newer, RolloutState::Running).await;
    assert_eq!((running.exposure_bps, running.previous_version.as_str()), (1000, "1.0"));
    assert!(!running.approval_id.is_empty());
}

#[tokio::test]
async fn what_waits_for_a_release_that_ends_is_given_up() {
    let (_stack, caller) = start().await;
    let draft = create_release(&caller, "1.1").await;
    let request = pb::StartRolloutRequest { wait: true, ..rollout_of(&draft, &[]) };
    let rollout = caller.rollouts().start_rollout(request).await.answer().rollout.unwrap();
    assert_eq!(rollout.state(), RolloutState::Waiting);
    let cancel = pb::CancelReleaseRequest {
        release_id: draft.release_id,
        reason: "no".to_owned(),
        ..Default::default()
    };
    caller.releases().cancel_release(cancel).await.answer();
    let given_up = reaches(&caller, &rollout, RolloutState::Cancelled).await;
    assert!(given_up.rollback_reason.contains("CANCELLED"), "{}", given_up.rollback_reason);
}

#[tokio::test]
async fn a_paused_rollout_stays_where_it_is_until_it_is_resumed() {
    let (stack, caller) = start().await;
    let rollout = ship_by(&caller, "1.1", &[1000], baked()).await;
    let paused = caller.rollouts().pause_rollout(pause(&rollout)).await.answer().rollout.unwrap();
    let why = paused.pause.clone().unwrap();
    assert_eq!((paused.state(), paused.exposure_bps), (RolloutState::Paused, 1000));
    assert_eq!((why.cause(), why.reason.as_str()), (PauseCause::Requested, "lunch"));
    let again = caller.rollouts().pause_rollout(pause(&rollout)).await.answer().rollout.unwrap();
    assert_eq!(again, paused);
    caller
        .rollouts()
        .advance_rollout(advance(&rollout))
        .await
        .refused(Code::FailedPrecondition, "ROLLOUT_WRONG_STATE");
    stack.advance(BAKE);
    let resumed = caller
        .rollouts()
        .resume_rollout(resume(&rollout))
        .await
        .answer()
        .rollout
        .unwrap();
    // Its step is watched anew.
    assert_eq!(
        (resumed.state(), resumed.phase(), resumed.step),
        (RolloutState::Running, StepPhase::Baking, 0)
    );
    caller
        .rollouts()
        .resume_rollout(resume(&rollout))
        .await
        .refused(Code::FailedPrecondition, "ROLLOUT_WRONG_STATE");
    stack.advance(BAKE);
    reaches_step(&caller, &rollout, 1).await;
}

#[tokio::test]
async fn at_the_deadline_of_a_step_happens_what_the_plan_says() {
    for (action, state) in [
        (DeadlineAction::Unspecified, RolloutState::Paused),
        (DeadlineAction::Advance, RolloutState::Succeeded),
        (DeadlineAction::RollBack, RolloutState::RolledBack),
    ] {
        let (stack, caller) = start().await;
        let guards = vec![pb::Guard { name: "checkout".to_owned(), ..Default::default() }];
        let plan = pb::RolloutPlan {
            step_deadline: span(TimeDelta::hours(1)),
            at_deadline: action.into(),
            guards,
            ..baked()
        };
        // Before everyone gets it the guard is asked whether it is safe; without a visit it cannot tell.
        let rollout = ship_by(&caller, "1.1", &[1000], plan).await;
        stack.advance(TimeDelta::hours(1));
        if action == DeadlineAction::Advance {
            reaches_step(&caller, &rollout, 1).await;
            stack.advance(BAKE);
        }
        let ended = reaches(&caller, &rollout, state).await;
        if state == RolloutState::Paused {
            assert_eq!(ended.pause.unwrap().cause(), PauseCause::NoData);
        }
    }
}

#[tokio::test]
async fn a_watch_of_a_rollout_tells_of_every_change_until_it_is_final() {
    let (_stack, caller) = start().await;
    let rollout = ship(&caller, "1.1", &[1000]).await;
    let request = pb::WatchRolloutRequest { rollout_id: rollout.rollout_id.clone() };
    let mut stream = caller.rollouts().watch_rollout(request).await.answer();
    let first = stream.message().await.unwrap().unwrap().rollout.unwrap();
    assert_eq!((first.step, first.state()), (0, RolloutState::Running));
    advance_rollout(&caller, &rollout).await;
    advance_rollout(&caller, &rollout).await;
    let mut states = Vec::new();
    while let Some(told) = stream.message().await.unwrap() {
        states.push(told.rollout.unwrap().state());
    }
    assert_eq!(states.last(), Some(&RolloutState::Succeeded));
    let nobodys = pb::WatchRolloutRequest { rollout_id: rollout.release_id.replace("rel_", "rlo_") };
    caller
        .rollouts()
        .watch_rollout(nobodys)
        .await
        .refused(Code::NotFound, "ROLLOUT_NOT_FOUND");
}
