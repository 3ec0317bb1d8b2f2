//! What session services count, and what guards make of it.

use chrono::TimeDelta;
use shared::pb::release as pb;
use shared::pb::release::{GuardMode, PauseCause, RolloutState, Verdict};
use tonic::Code;

use crate::harness::shop::{get_release, get_rollout};
use crate::harness::{Answer as _, Caller, ENVIRONMENT, Stack, eventually, person, system};
use crate::rollout_control::{baked, reaches, resume, ship_by, start};

/// A rollout to a tenth that is watched by this guard.
pub(crate) async fn guarded(caller: &Caller, mode: GuardMode) -> pb::Rollout {
    let guards = vec![pb::Guard { name: "checkout".to_owned(), mode: mode.into(), ..Default::default() }];
    ship_by(caller, "1.1", &[1000], pb::RolloutPlan { guards, ..baked() }).await
}

/// Counts of the first step, of canary and control.
pub(crate) fn counts(units: [i64; 2], failures: [i64; 2]) -> Vec<pb::SignalCount> {
    let count = |is_canary, guard: &str, count| pb::SignalCount {
        step: 0,
        is_canary,
        guard: guard.to_owned(),
        count,
    };
    vec![
        count(true, "", units[0]),
        count(false, "", units[1]),
        count(true, "checkout", failures[0]),
        count(false, "checkout", failures[1]),
    ]
}

pub(crate) fn told(
    rollout: &pb::Rollout,
    source: (&str, &str),
    counts: Vec<pb::SignalCount>,
) -> pb::ReportSignalsRequest {
    let signals = pb::RolloutSignals {
        tenant: "shop".to_owned(),
        rollout_id: rollout.rollout_id.clone(),
        counts,
        visits: None,
    };
    pb::ReportSignalsRequest {
        environment: ENVIRONMENT.to_owned(),
        source_id: source.0.to_owned(),
        source_epoch: source.1.to_owned(),
        rollouts: vec![signals],
    }
}

pub(crate) async fn tell(stack: &Stack, request: pb::ReportSignalsRequest) -> pb::ReportSignalsResponse {
    stack
        .caller(&system("session-svc"))
        .routing()
        .report_signals(request)
        .await
        .answer()
}

async fn report(caller: &Caller, rollout: &pb::Rollout) -> pb::GuardReport {
    let request = pb::GetRolloutRequest { rollout_id: rollout.rollout_id.clone() };
    let report = caller.rollouts().get_rollout(request).await.answer().report.unwrap();
    report.guards.into_iter().next().unwrap()
}

/// Units and outcomes of canary and control.
async fn figures(caller: &Caller, rollout: &pb::Rollout) -> [(i64, i64); 2] {
    let report = report(caller, rollout).await;
    [report.canary.unwrap(), report.control.unwrap()].map(|arm| (arm.units, arm.outcomes))
}

/// ln E is 10.555066 for these by the anchors' §6, beyond ln 100: harm.
fn harm() -> Vec<pb::SignalCount> {
    counts([100, 900], [20, 40])
}

#[tokio::test]
async fn harm_rolls_back_at_once_and_quarantines_the_release() {
    let (stack, caller) = start().await;
    let rollout = guarded(&caller, GuardMode::Unspecified).await;
    tell(&stack, told(&rollout, ("a", "1"), counts([100, 900], [5, 40]))).await;
    assert_eq!(report(&caller, &rollout).await.verdict(), Verdict::Inconclusive);
    tell(&stack, told(&rollout, ("a", "1"), harm())).await;
    let back = reaches(&caller, &rollout, RolloutState::RolledBack).await;
    let found = &back.harms[0];
    assert_eq!(found.guard, "checkout");
    assert!(found.finding.contains("20 of 100 visits on the new release"), "{}", found.finding);
    assert!(back.rollback_reason.starts_with("guard checkout found harm"), "{}", back.rollback_reason);
    let release = pb::Release { release_id: rollout.release_id.clone(), ..Default::default() };
    assert!(get_release(&caller, &release).await.quarantine.is_some());
    let ended = tell(&stack, told(&rollout, ("a", "1"), harm())).await;
    assert_eq!(ended.ended_rollout_ids, [rollout.rollout_id]);
}

#[tokio::test]
async fn i15_harm_of_a_pausing_guard_is_cleared_by_a_named_person_who_had_no_part_in_the_release() {
    let (stack, caller) = start().await;
    let rollout = guarded(&caller, GuardMode::Pause).await;
    tell(&stack, told(&rollout, ("a", "1"), harm())).await;
    let paused = reaches(&caller, &rollout, RolloutState::Paused).await;
    assert_eq!((paused.pause.unwrap().cause(), paused.exposure_bps), (PauseCause::Harm, 1000));
    let author = caller.rollouts().resume_rollout(resume(&rollout)).await;
    author.refused(Code::PermissionDenied, "SOD_VIOLATION");
    let machine = stack.caller(&crate::harness::workload("pipeline"));
    machine
        .rollouts()
        .resume_rollout(resume(&rollout))
        .await
        .refused(Code::PermissionDenied, "CALLER_NOT_A_PERSON");
    let eve = stack.caller(&person("eve"));
    let resumed = eve.rollouts().resume_rollout(resume(&rollout)).await.answer().rollout.unwrap();
    assert_eq!(resumed.state(), RolloutState::Running);
    assert!(resumed.harms[0].cleared_by.ends_with("|eve") && resumed.harms[0].clear_reason == "we are back");
    // The guard only observes from now on: it neither pauses nor holds the step.
    assert_eq!(report(&caller, &rollout).await.verdict(), Verdict::Harm);
    stack.advance(TimeDelta::minutes(10));
    eventually("the next step", || async {
        let found = get_rollout(&caller, &rollout).await;
        (found.step == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_guard_that_observes_does_nothing_but_say_so_for_ever() {
    let (stack, caller) = start().await;
    let rollout = guarded(&caller, GuardMode::Observe).await;
    tell(&stack, told(&rollout, ("a", "1"), harm())).await;
    assert_eq!(report(&caller, &rollout).await.verdict(), Verdict::Harm);
    eventually("the note of it", || async {
        let harms = get_rollout(&caller, &rollout).await.harms;
        (harms.len() == 1 && harms[0].guard == "checkout").then_some(())
    })
    .await;
    // It stays, though by now as many fail on the one as on the other.
    tell(&stack, told(&rollout, ("a", "1"), counts([10_000, 90_000], [100, 900]))).await;
    assert_eq!(report(&caller, &rollout).await.verdict(), Verdict::Harm);
    stack.advance(TimeDelta::minutes(10));
    eventually("the next step", || async {
        let found = get_rollout(&caller, &rollout).await;
        (found.step == 1 && found.harms.len() == 1).then_some(())
    })
    .await;
    let noted = "select count(*) from release.events where kind = 'rollout.harm_found' \
                 and data::jsonb ->> 'finding' like '20 of 100 visits on the new release%'";
    assert_eq!(stack.database.count(noted).await, 1, "and the trail has it");
}

#[tokio::test]
async fn before_everyone_gets_it_a_guard_has_to_be_sure() {
    let (stack, caller) = start().await;
    let rollout = guarded(&caller, GuardMode::Rollback).await;
    tell(&stack, told(&rollout, ("a", "1"), counts([1000, 9000], [10, 90]))).await;
    stack.advance(TimeDelta::minutes(10));
    let advance = pb::AdvanceRolloutRequest { rollout_id: rollout.rollout_id.clone(), ..Default::default() };
    caller
        .rollouts()
        .advance_rollout(advance.clone())
        .await
        .refused(Code::FailedPrecondition, "ROLLOUT_BLOCKED");
    assert_eq!(report(&caller, &rollout).await.verdict(), Verdict::Inconclusive);
    tell(&stack, told(&rollout, ("a", "1"), counts([100_000, 900_000], [1000, 9000]))).await;
    assert_eq!(report(&caller, &rollout).await.verdict(), Verdict::Safe);
    eventually("the last step", || async { (get_rollout(&caller, &rollout).await.step == 1).then_some(()) })
        .await;
}

#[tokio::test]
async fn visits_that_are_dealt_wrongly_are_judged_by_nobody() {
    let (stack, caller) = start().await;
    let rollout = guarded(&caller, GuardMode::Rollback).await;
    // A half where a tenth was planned.
    tell(&stack, told(&rollout, ("a", "1"), counts([1000, 1000], [200, 40]))).await;
    assert_eq!(report(&caller, &rollout).await.verdict(), Verdict::SampleRatioMismatch);
    eventually("the note of it", || async {
        let noted = "select count(*) from release.rollouts join release.events on kind = 'rollout.mismatch_found' \
                     and data::jsonb ->> 'version' = '1.1' where mismatched_at is not null";
        (stack.database.count(noted).await == 1).then_some(())
    })
    .await;
    // What was dealt wrongly stays among the counts, also where the shares come right.
    tell(&stack, told(&rollout, ("a", "1"), counts([1000, 9000], [10, 90]))).await;
    assert_eq!(report(&caller, &rollout).await.verdict(), Verdict::SampleRatioMismatch);
    stack.advance(TimeDelta::minutes(10));
    let advance = pb::AdvanceRolloutRequest { rollout_id: rollout.rollout_id.clone(), ..Default::default() };
    caller
        .rollouts()
        .advance_rollout(advance)
        .await
        .refused(Code::FailedPrecondition, "ROLLOUT_BLOCKED");
    assert_eq!(get_rollout(&caller, &rollout).await.state(), RolloutState::Running);
}

#[tokio::test]
async fn counts_only_grow_within_an_epoch_and_add_up_over_sources() {
    let (stack, caller) = start().await;
    let rollout = guarded(&caller, GuardMode::Observe).await;
    tell(&stack, told(&rollout, ("a", "1"), counts([10, 90], [1, 2]))).await;
    // Twice, smaller, and in another order.
    for again in [counts([10, 90], [1, 2]), counts([5, 40], [0, 1])] {
        tell(&stack, told(&rollout, ("a", "1"), again)).await;
        assert_eq!(figures(&caller, &rollout).await, [(10, 1), (90, 2)]);
    }
    tell(&stack, told(&rollout, ("b", "x"), counts([1, 9], [1, 1]))).await;
    assert_eq!(figures(&caller, &rollout).await, [(11, 2), (99, 3)]);
    // The source's database was restored, and counts from what it still has; what comes late of before is passed over.
    tell(&stack, told(&rollout, ("a", "2"), counts([8, 70], [0, 1]))).await;
    assert_eq!(figures(&caller, &rollout).await, [(9, 1), (79, 2)]);
    tell(&stack, told(&rollout, ("a", "1"), counts([50, 500], [9, 9]))).await;
    assert_eq!(figures(&caller, &rollout).await, [(9, 1), (79, 2)]);
}

#[tokio::test]
async fn reports_that_make_no_sense_are_refused_and_those_of_nobodys_rollouts_passed_over() {
    let (stack, caller) = start().await;
    let rollout = guarded(&caller, GuardMode::Observe).await;
    let other = pb::Rollout { rollout_id: rollout.release_id.replace("rel_", "rlo_"), ..rollout.clone() };
    let ended = tell(&stack, told(&other, ("a", "1"), harm())).await.ended_rollout_ids;
    assert_eq!(ended, [other.rollout_id]);
    let elsewhere =
        pb::ReportSignalsRequest { environment: "staging".to_owned(), ..told(&rollout, ("a", "1"), harm()) };
    assert_eq!(tell(&stack, elsewhere).await.ended_rollout_ids, std::slice::from_ref(&rollout.rollout_id));
    let service = stack.caller(&system("session-svc"));
    let one = |step, guard: &str, count| {
        let count = pb::SignalCount { step, is_canary: true, guard: guard.to_owned(), count };
        told(&rollout, ("a", "1"), vec![count])
    };
    for bad in [one(-1, "", 1), one(0, "", -1), one(0, "Not a name", 1), told(&rollout, ("", "1"), harm())] {
        service
            .routing()
            .report_signals(bad)
            .await
            .refused(Code::InvalidArgument, "FIELD_INVALID");
    }
}

#[tokio::test]
async fn counts_of_steps_and_guards_that_a_plan_does_not_have_are_passed_over() {
    let (stack, caller) = start().await;
    let rollout = guarded(&caller, GuardMode::Observe).await;
    let stray =
        |step, guard: &str| pb::SignalCount { step, is_canary: true, guard: guard.to_owned(), count: 7 };
    let mut counts = counts([10, 90], [1, 2]);
    counts.extend([
        stray(2, ""),
        stray(2, "checkout"),
        stray(32, ""),
        stray(0, "slow"),
        stray(1, "checkout"),
    ]);
    let mut report = told(&rollout, ("a", "1"), counts);
    // The same rollout again, as of a source that cuts long reports.
    report.rollouts.push(report.rollouts[0].clone());
    assert_eq!(tell(&stack, report).await.ended_rollout_ids, Vec::<String>::new());
    assert_eq!(figures(&caller, &rollout).await, [(10, 8), (90, 2)]);
    let stored = "select count(*) from release.signal_counts";
    assert_eq!(stack.database.count(stored).await, 5);
}

#[tokio::test]
async fn guards_that_make_no_sense_are_refused() {
    let (_stack, caller) = start().await;
    let release = crate::harness::shop::create_release(&caller, "1.1").await;
    let release = crate::harness::shop::submit(&caller, &release).await;
    let guard = |name: &str| pb::Guard { name: name.to_owned(), ..Default::default() };
    for guards in [
        vec![guard("Checkout")],
        vec![guard("checkout"), guard("checkout")],
        vec![pb::Guard { tolerated_ratio_bps: 20_000, ..guard("checkout") }],
        vec![pb::Guard { weight: -1, ..guard("checkout") }],
        vec![pb::Guard { mode: 77, ..guard("checkout") }],
        (0..17).map(|n| guard(&format!("g{n}"))).collect(),
    ] {
        let plan = Some(pb::RolloutPlan { guards, ..Default::default() });
        let request = pb::StartRolloutRequest { plan, ..crate::harness::shop::start(&release, &[1000]) };
        caller
            .rollouts()
            .start_rollout(request)
            .await
            .refused(Code::InvalidArgument, "FIELD_INVALID");
    }
}
