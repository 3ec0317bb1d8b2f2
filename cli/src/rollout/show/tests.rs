use shared::pb::release::{Blocker, RolloutHarm, VisitCount};
use shared::time::to_proto;

use super::*;

fn at(seconds: i64) -> Time {
    Time::from_timestamp(1_795_445_940 + seconds, 0).unwrap()
}

fn rollout(state: RolloutState) -> Rollout {
    Rollout {
        rollout_id: "rlo_1".to_owned(),
        component: "storefront".to_owned(),
        environment: "local".to_owned(),
        release_id: "rel_2".to_owned(),
        version: "1.1".to_owned(),
        previous_release_id: "rel_1".to_owned(),
        previous_version: "1.0".to_owned(),
        state: state.into(),
        step_exposures_bps: vec![1000, 5000, 10_000],
        exposure_bps: 1000,
        rollback_reason: "loses orders".to_owned(),
        starter: "tandem-local|dev".to_owned(),
        start_time: Some(to_proto(at(0))),
        phase_start_time: Some(to_proto(at(0))),
        ..Rollout::default()
    }
}

fn report() -> RolloutReport {
    let guard = GuardReport {
        guard: Some(Guard { name: "checkout".to_owned(), ..Guard::default() }),
        verdict: Verdict::Inconclusive.into(),
        control: Some(ArmReport { units: 540, outcomes: 12 }),
        canary: Some(ArmReport { units: 60, outcomes: 5 }),
        difference: Some(0.0611),
        difference_low: Some(-0.012),
        difference_high: Some(0.1342),
        harm_p_value: 0.041,
        harm_alpha: 0.01,
        safe_p_value: 0.000_01,
    };
    let count = |release_id: &str, visits| VisitCount {
        release_id: release_id.to_owned(),
        visits,
        count_time: Some(to_proto(at(0))),
    };
    let blocker = Blocker {
        r#type: "BAKE".to_owned(),
        subject: "rlo_1".to_owned(),
        description: "step 1 is watched for 600 s".to_owned(),
        ..Blocker::default()
    };
    RolloutReport {
        guards: vec![guard],
        visits: vec![count("rel_2", 60), count("rel_1", 540)],
        blockers: vec![blocker],
    }
}

#[test]
fn every_state_is_a_sentence() {
    let running = rollout(RolloutState::Running);
    let steps = "10% of visits, the rest on 1.0 (step 1 of 10%, 50%, 100%)";
    assert_eq!(sentence(&running), format!("storefront 1.1 in local: {steps}"));
    let pause = RolloutPause {
        principal: "system".to_owned(),
        reason: "nobody can tell".to_owned(),
        ..RolloutPause::default()
    };
    let paused = Rollout { pause: Some(pause), ..rollout(RolloutState::Paused) };
    let said = format!("storefront 1.1 in local: paused at {steps}, by system: nobody can tell");
    assert_eq!(sentence(&paused), said);
    for (state, part) in [
        (RolloutState::Draining, "visits on 1.0 are waited for"),
        (RolloutState::Succeeded, "on every new visit"),
        (RolloutState::RollingBack, "(loses orders); not every session service"),
        (RolloutState::RollbackFailed, "`tandem rollout resolve`"),
        (RolloutState::RolledBack, "rolled back to 1.0 (loses orders); no new visit gets it"),
        (RolloutState::Cancelled, "given up before anybody was exposed (loses orders)"),
    ] {
        assert!(sentence(&rollout(state)).contains(part), "{part} in {}", sentence(&rollout(state)));
    }
}

#[test]
fn only_what_nobody_advances_is_to_be_advanced() {
    let last = Rollout { step: 2, exposure_bps: 10_000, ..rollout(RolloutState::Running) };
    assert!(sentence(&last).contains("to be advanced once more"));
    let bake = RolloutPlan {
        min_bake: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
        ..RolloutPlan::default()
    };
    let by_itself = Rollout { plan: Some(bake), ..last };
    assert!(!sentence(&by_itself).contains("advanced"), "{}", sentence(&by_itself));
}

#[test]
fn a_page_has_plan_visits_guards_and_blockers() {
    let plan = RolloutPlan {
        min_bake: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
        step_deadline: Some(prost_types::Duration { seconds: 5400, nanos: 0 }),
        at_deadline: DeadlineAction::RollBack.into(),
        ..RolloutPlan::default()
    };
    let harm = RolloutHarm {
        guard: "slow".to_owned(),
        finding: "9 of 60 against 12 of 540".to_owned(),
        cleared_by: "tandem-local|alice".to_owned(),
        clear_reason: "the network".to_owned(),
        ..RolloutHarm::default()
    };
    let rollout = Rollout {
        plan: Some(plan),
        harms: vec![harm],
        phase: StepPhase::Baking.into(),
        ..rollout(RolloutState::Running)
    };
    let page = lines(&rollout, &report(), at(190)).join("\n");
    for part in [
        "RUNNING: the step is watched, for 3m 10s",
        "plan: each step is watched for 10m; goes back after 1h 30m of a step",
        "HARM, -: slow: 9 of 60 against 12 of 540",
        "cleared by tandem-local|alice, -: the network",
        "live visits: 60 on 1.1, 540 on 1.0 (counted 2026-11-23 14:59Z)",
        "12 of 540 (2.22%)  5 of 60 (8.33%)  +6.11 (-1.20 to +13.42) points  0.0410, HARM at 0.0100  <0.0001, SAFE",
        "waits, because",
        "BAKE: step 1 is watched for 600 s.",
    ] {
        assert!(page.contains(part), "{part} in\n{page}");
    }
}

#[test]
fn a_line_does_not_change_with_the_time_alone() {
    let rollout = Rollout { phase: StepPhase::Baking.into(), ..rollout(RolloutState::Running) };
    let first = report();
    let mut later = first.clone();
    later.visits[0].count_time = Some(to_proto(at(30)));
    assert_eq!(line(&rollout, &first), line(&rollout, &later));
    assert_eq!(
        line(&rollout, &first),
        "RUNNING BAKING; step 1 of 3; exposure 10%; visits 60 on 1.1, 540 on 1.0; checkout INCONCLUSIVE 5 of 60 (8.33%) \
         against 12 of 540 (2.22%), p 0.0410; held by BAKE"
    );
    later.visits[0].visits = 61;
    assert_ne!(line(&rollout, &first), line(&rollout, &later));
    let waiting = Rollout { waiting_for: vec!["LINE".to_owned()], ..self::rollout(RolloutState::Waiting) };
    let said = line(&waiting, &RolloutReport::default());
    assert!(said.starts_with("WAITING for LINE; step 1 of 3"), "{said}");
}

#[test]
fn a_span_is_told_in_what_there_is_of_it() {
    for (seconds, said) in
        [(0, "0s"), (59, "59s"), (600, "10m"), (3661, "1h 1m 1s"), (90_000, "25h"), (-5, "0s")]
    {
        assert_eq!(span(TimeDelta::seconds(seconds)), said);
    }
}

#[test]
fn an_arm_without_visits_has_no_rate_and_no_difference() {
    assert_eq!(rate(None), "no visits");
    assert_eq!(difference(&GuardReport::default()), "-");
}
