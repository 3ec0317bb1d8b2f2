use proptest::prelude::*;
use shared::time::at;

use super::*;
use crate::domain::release;

pub(crate) fn release(is_approved: bool) -> Release {
    let release = release::tests::draft();
    let submission = release::tests::submission(0);
    let state = if is_approved { release::State::Approved(submission) } else { release::State::Draft };
    Release { id: ReleaseId::new(at(1), [1; 10]), state, ..release }
}

pub(crate) fn stable() -> ServedRelease {
    ServedRelease { id: ReleaseId::new(at(0), [9; 10]), version: "1.0".to_owned() }
}

pub(crate) fn asked(steps: Vec<i32>, plan: Plan) -> Asked {
    Asked {
        id: RolloutId::new(at(2), [2; 10]),
        environment: "prod".parse().unwrap(),
        steps: Steps::asked(steps).unwrap(),
        plan,
        assignment: Assignment::NewVisits,
        starter: "s".to_owned(),
    }
}

pub(crate) fn running(steps: Vec<i32>, plan: Plan) -> Rollout {
    let mut decisions = Rollout::start(asked(steps, plan), &release(true), Some(stable()), at(3));
    assert_eq!(decisions.len(), 1);
    decisions.remove(0).rollout
}

fn drains() -> Plan {
    Plan { drain_deadline: Some(TimeDelta::minutes(5)), ..Plan::default() }
}

fn pause(cause: Cause) -> Pause {
    Pause { cause, principal: "p".to_owned(), reason: "why".to_owned(), at: at(4) }
}

/// One in each state.
pub(crate) fn in_state(name: &str) -> Rollout {
    let rollout = running(vec![1000], drains());
    let waiting =
        || Rollout::wait(asked(vec![1000], drains()), &release(true), vec![Kind::Window], at(3)).rollout;
    let back = || rollout.clone().roll_back("why".to_owned(), at(4)).unwrap().rollout;
    let draining = || {
        let last = rollout.clone().advance(at(4)).unwrap().rollout;
        last.advance(at(5)).unwrap().rollout
    };
    let rollout = match name {
        "WAITING" => waiting(),
        "RUNNING" => rollout,
        "PAUSED" => rollout.pause(pause(Cause::Requested)).unwrap().unwrap().rollout,
        "DRAINING" => draining(),
        "SUCCEEDED" => draining().succeed(at(6)).unwrap().rollout,
        "ROLLING_BACK" => back(),
        "ROLLBACK_FAILED" => back().fail(at(5)).unwrap().rollout,
        "ROLLED_BACK" => back().confirm(at(6)).unwrap().rollout,
        "CANCELLED" => waiting().roll_back("why".to_owned(), at(4)).unwrap().rollout,
        "SUPERSEDED" => waiting().supersede(rollout.id, at(4)).unwrap().rollout,
        _ => panic!("{name}"),
    };
    assert_eq!(rollout.state.name(), name);
    rollout
}

const STATES: [&str; 10] = [
    "WAITING",
    "RUNNING",
    "PAUSED",
    "DRAINING",
    "SUCCEEDED",
    "ROLLING_BACK",
    "ROLLBACK_FAILED",
    "ROLLED_BACK",
    "CANCELLED",
    "SUPERSEDED",
];

/// Events by name, and what comes of them; none where nothing does.
fn after(rollout: Rollout, event: &str) -> Option<Decision> {
    match event {
        "begin" => {
            let is_waiting = matches!(rollout.state, State::Waiting { .. });
            let begun = is_waiting.then(|| rollout.begin(&release(true), Some(stable()), at(7)));
            begun.and_then(|decisions| decisions.into_iter().next())
        }
        "advance" => rollout.advance(at(7)).ok(),
        "pause" => rollout.pause(pause(Cause::Requested)).ok().flatten(),
        "resume" => rollout.resume("p", "go".to_owned(), at(7)).ok(),
        "succeed" => rollout.succeed(at(7)).ok(),
        "roll back" => rollout.roll_back("again".to_owned(), at(7)),
        "confirm" => rollout.confirm(at(7)),
        "fail" => rollout.fail(at(7)).ok(),
        "resolve" => rollout.resolve(at(7)).ok(),
        "supersede" => rollout.clone().supersede(rollout.id, at(7)).ok(),
        _ => panic!("{event}"),
    }
}

/// The state machine of the anchors' §2.5: rows are states, and what an event leads to from each of those that it concerns.
#[test]
fn every_event_does_in_every_state_what_the_table_says() {
    for (event, leads) in [
        ("begin", vec![("WAITING", "RUNNING")]),
        ("advance", vec![("RUNNING", "RUNNING")]),
        ("pause", vec![("RUNNING", "PAUSED")]),
        ("resume", vec![("PAUSED", "RUNNING")]),
        ("succeed", vec![("DRAINING", "SUCCEEDED")]),
        (
            "roll back",
            vec![
                ("WAITING", "CANCELLED"),
                ("RUNNING", "ROLLING_BACK"),
                ("PAUSED", "ROLLING_BACK"),
                ("DRAINING", "ROLLING_BACK"),
            ],
        ),
        ("confirm", vec![("ROLLING_BACK", "ROLLED_BACK")]),
        ("fail", vec![("ROLLING_BACK", "ROLLBACK_FAILED")]),
        ("resolve", vec![("ROLLBACK_FAILED", "ROLLED_BACK")]),
        ("supersede", vec![("WAITING", "SUPERSEDED")]),
    ] {
        for state in STATES {
            let expected = leads.iter().find(|(from, _)| *from == state).map(|(_, to)| *to);
            let next = after(in_state(state), event);
            assert_eq!(next.as_ref().map(|next| next.rollout.state.name()), expected, "{event} in {state}");
            assert!(next.is_none_or(|next| next.from == Some(state)));
        }
    }
}

#[test]
fn the_last_step_drains_or_has_succeeded() {
    let everyone = |plan| running(vec![1000], plan).advance(at(4)).unwrap().rollout;
    assert_eq!(
        everyone(Plan::default()).advance(at(5)).unwrap().rollout.state,
        State::Succeeded { at: at(5) }
    );
    assert_eq!(everyone(drains()).advance(at(5)).unwrap().rollout.state, State::Draining { since: at(5) });
}

#[test]
fn the_first_release_and_a_rollout_without_steps_go_to_everyone_at_once() {
    for (steps, stable) in [(vec![1000], None), (vec![], None), (vec![], Some(stable()))] {
        let decisions = Rollout::start(asked(steps, Plan::default()), &release(true), stable, at(3));
        let told: Vec<_> = decisions.iter().map(|decision| (decision.kind, decision.from)).collect();
        assert_eq!(told, [("rollout.started", None), ("rollout.succeeded", Some("RUNNING"))]);
        let last = &decisions[1].rollout;
        assert_eq!((last.exposure_bps, last.row_version), (EVERYONE_BPS, 2));
    }
}

#[test]
fn an_executor_makes_room_before_anybody_is_exposed() {
    let plan = Plan { needs_executor: true, ..Plan::default() };
    let deploying = running(vec![1000], plan);
    assert_eq!((deploying.exposure_bps, deploying.state.phase()), (0, Some(Phase::Deploying)));
    deploying.clone().advance(at(4)).unwrap_err();
    let exposed = deploying.expose(at(4)).unwrap().rollout;
    assert_eq!((exposed.exposure_bps, exposed.state.phase()), (1000, Some(Phase::Exposing)));
    let next = exposed.advance(at(5)).unwrap().rollout;
    assert_eq!((next.step, next.exposure_bps, next.state.phase()), (1, 1000, Some(Phase::Deploying)));
}

#[test]
fn harm_is_written_down_once_and_cleared_by_name() {
    let harm = |finding: &str| Harm {
        guard: "checkout".to_owned(),
        finding: finding.to_owned(),
        at: at(4),
        cleared: None,
    };
    let rollout = running(vec![1000], Plan::default()).with_harm(harm("a")).with_harm(harm("b"));
    assert_eq!(rollout.harms, [harm("a")]);
    let paused = rollout.pause(pause(Cause::Harm)).unwrap().unwrap().rollout;
    let resumed = paused.resume("idp|eve", "a false alarm".to_owned(), at(9)).unwrap();
    assert_eq!(resumed.reason.as_deref(), Some("a false alarm"));
    let word = resumed.rollout.harms[0].cleared.as_ref().unwrap();
    assert_eq!((word.by.as_str(), word.at), ("idp|eve", at(9)));
    let again = resumed.rollout.pause(pause(Cause::Requested)).unwrap().unwrap().rollout;
    let still = again.resume("idp|bob", "me, too".to_owned(), at(10)).unwrap().rollout;
    assert_eq!(still.harms[0].cleared.as_ref().unwrap().by, "idp|eve");
}

#[test]
fn what_has_succeeded_is_taken_back_by_a_rollout_of_its_own() {
    let brought = in_state("SUCCEEDED");
    let new = RolloutId::new(at(9), [7; 10]);
    let back = brought.take_back(new, "why".to_owned(), "s".to_owned(), at(9));
    assert_eq!((back.kind, back.from), ("rollout.rollback_started", None));
    let rollout = back.rollout;
    assert_eq!((rollout.id, rollout.mode), (new, Mode::Rollback { of: brought.id }));
    assert_eq!(
        (rollout.exposure_bps, rollout.release, rollout.previous),
        (0, brought.release, Some(stable()))
    );
    assert_eq!(rollout.state, State::RollingBack { reason: "why".to_owned(), since: at(9) });
}

#[test]
fn all_blockers_are_named_at_once_unless_it_serves_already() {
    let earlier = RolloutId::new(at(1), [5; 10]);
    let release = release(false);
    let held = Blocker {
        kind: Kind::Window,
        subject: "wnd_1".to_owned(),
        description: "frozen".to_owned(),
        lifted_by: "its end".to_owned(),
        next_open: Some(at(9)),
    };
    let environment = "prod".parse().unwrap();
    let named = |stable: Option<&ServedRelease>| {
        let blockers = blockers(&environment, &release, stable, Some(earlier), vec![held.clone()]);
        blockers
            .into_iter()
            .map(|blocker| (blocker.kind, blocker.subject))
            .collect::<Vec<_>>()
    };
    let expected = [
        (Kind::State, release.id.to_string()),
        (Kind::EarlierRollout, earlier.to_string()),
        (Kind::Window, "wnd_1".to_owned()),
    ];
    assert_eq!(named(None), expected);
    let same = ServedRelease { id: release.id, version: "1.1".to_owned() };
    assert_eq!(named(Some(&same)), [(Kind::State, release.id.to_string())]);
}

proptest! {
    /// I3, I7, I13.
    #[test]
    fn forward_exposure_rises_backward_it_is_0_and_the_end_is_the_end(
        steps in proptest::collection::btree_set(1_i32..10_000, 1..8),
        needs_executor: bool,
        events in proptest::collection::vec(0_usize..13, 0..32),
    ) {
        const EVENTS: [&str; 9] =
            ["begin", "pause", "resume", "succeed", "confirm", "fail", "resolve", "supersede", "roll back"];
        let plan = Plan { needs_executor, ..drains() };
        let mut rollout = running(steps.into_iter().collect(), plan);
        for event in events {
            let before = rollout.clone();
            let next = match EVENTS.get(event) {
                Some(event) => after(before, event),
                None if event % 2 == 0 => before.clone().expose(at(8)).or_else(|_| before.bake(at(8))).ok(),
                None => before.advance(at(8)).ok(),
            };
            if rollout.state.is_exposing() {
                prop_assert!(rollout.clone().roll_back("why".to_owned(), at(8)).is_some());
            }
            let Some(Decision { rollout: next, from, .. }) = next else { continue };
            prop_assert!(rollout.state.ended_at().is_none(), "left {}", rollout.state.name());
            prop_assert_eq!(from, Some(rollout.state.name()));
            prop_assert_eq!(next.row_version, rollout.row_version + 1);
            if next.state.rollback_reason().is_some() {
                prop_assert_eq!(next.exposure_bps, 0);
            } else {
                prop_assert!(next.exposure_bps >= rollout.exposure_bps);
            }
            rollout = next;
        }
    }
}
