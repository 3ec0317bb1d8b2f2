use proptest::prelude::*;
use shared::time::at;

use super::*;
use crate::domain::guard::{Guard, Guards, Kind as GuardKind, Rule};
use crate::domain::rollout::tests::{in_state, release, running, stable};
use crate::domain::rollout::{Decision, Pause, Plan};

const MINUTE: i64 = 60;

fn watched(guard: &str, mode: Mode, verdict: Verdict) -> Watched {
    let (guard, finding) = (guard.to_owned(), "2 of 3".to_owned());
    Watched { guard, mode, verdict, is_mismatch: false, has_data: true, finding }
}

fn seeing(guards: Vec<Watched>) -> Observation {
    Observation { guards, ..Observation::default() }
}

fn harm_of(guard: &str) -> Harm {
    watched(guard, Mode::Pause, Verdict::Harm).harm(at(9))
}

fn pause(cause: Cause, at: Time) -> Pause {
    Pause { cause, principal: "p".to_owned(), reason: "why".to_owned(), at }
}

/// Deploying its first step from the start, which it begins at 3; watched for ten minutes, and for an hour at most.
fn deploying() -> Rollout {
    let plan = Plan {
        min_bake: Some(TimeDelta::minutes(10)),
        step_deadline: Some(TimeDelta::hours(1)),
        needs_executor: true,
        ..Plan::default()
    };
    running(vec![1000], plan)
}

fn pauses(next: Option<Next>) -> Option<Cause> {
    match next {
        Some(Next::Pause(cause, ..)) => Some(cause),
        None => None,
        Some(next) => panic!("{next:?}"),
    }
}

#[test]
fn the_deadline_of_a_step_counts_from_its_beginning_through_all_its_phases() {
    let (nothing, deadline) = (Observation::default(), 3 + 60 * MINUTE);
    let exposing = deploying().expose(at(3 + 50 * MINUTE)).unwrap().rollout;
    for rollout in [deploying(), exposing.clone()] {
        assert_eq!(pauses(decide(&rollout, &nothing, at(deadline - 1))), None);
        assert_eq!(pauses(decide(&rollout, &nothing, at(deadline))), Some(Cause::Deadline));
    }
    let unsure = seeing(vec![watched("checkout", Mode::Pause, Verdict::Inconclusive)]);
    for (baked_at, due) in [(50, 60), (55, 65)] {
        // What comes to be watched late is watched for its time all the same.
        let baking = exposing.clone().bake(at(3 + baked_at * MINUTE)).unwrap().rollout;
        assert_eq!(pauses(decide(&baking, &unsure, at(3 + due * MINUTE - 1))), None);
        assert_eq!(pauses(decide(&baking, &unsure, at(3 + due * MINUTE))), Some(Cause::Inconclusive));
    }
    let paused = exposing
        .clone()
        .pause(pause(Cause::Deadline, at(deadline)))
        .unwrap()
        .unwrap()
        .rollout;
    let resumed = paused.resume("idp|eve", "on".to_owned(), at(2 * deadline)).unwrap().rollout;
    let advanced = exposing.advance(at(2 * deadline)).unwrap().rollout;
    for rollout in [resumed, advanced] {
        let due = 2 * deadline + 60 * MINUTE;
        assert_eq!(pauses(decide(&rollout, &nothing, at(due - 1))), None);
        assert_eq!(pauses(decide(&rollout, &nothing, at(due))), Some(Cause::Deadline));
    }
}

#[test]
fn a_pause_lasts_until_a_person_ends_it() {
    let paused = deploying().pause(pause(Cause::Requested, at(9))).unwrap().unwrap().rollout;
    assert_eq!(decide(&paused, &Observation::default(), at(365 * 24 * 60 * MINUTE)), None);
}

#[test]
fn what_is_proved_is_noted_once_where_it_leads_to_nothing() {
    let seen = seeing(vec![watched("slow", Mode::Observe, Verdict::Harm)]);
    let rollout = deploying();
    let Some(Next::Note(harms, false)) = decide(&rollout, &seen, at(9)) else { panic!() };
    let noted = rollout.with_findings(harms, false, at(9));
    assert_eq!(noted.harms.len(), 1);
    assert_eq!(decide(&noted, &seen, at(10)), None);
    let mismatch = Watched { is_mismatch: true, ..watched("slow", Mode::Observe, Verdict::Harm) };
    let seen = seeing(vec![mismatch]);
    assert_eq!(decide(&noted, &seen, at(11)), Some(Next::Note(vec![], true)));
    let noted = noted.with_findings(vec![], true, at(11)).with_findings(vec![], true, at(12));
    assert_eq!(noted.mismatched_at, Some(at(11)));
    assert_eq!(decide(&noted, &seen, at(13)), None);
}

#[test]
fn harm_that_is_found_in_a_pause_pauses_again_whoever_resumes() {
    let seen = seeing(vec![watched("slow", Mode::Pause, Verdict::Harm)]);
    let paused = deploying().pause(pause(Cause::Requested, at(9))).unwrap().unwrap().rollout;
    let Some(Next::Note(harms, _)) = decide(&paused, &seen, at(10)) else { panic!() };
    let noted = paused.with_findings(harms, false, at(10));
    let resumed = noted.resume("idp|ada", "lunch is over".to_owned(), at(11)).unwrap().rollout;
    assert_eq!(pauses(decide(&resumed, &seen, at(12))), Some(Cause::Harm));
}

#[test]
fn what_protects_visits_comes_before_what_exposes_more_of_them() {
    let back = Next::RollBack("why".to_owned(), None);
    let kept = Next::Pause(Cause::Harm, "why".to_owned(), None);
    let order = [back, kept, Next::Bake, Next::Expose];
    assert!(order.is_sorted_by_key(Next::urgency));
    assert!(
        [Next::Begin, Next::Expose, Next::Advance]
            .iter()
            .all(|next| next.raises() && next.urgency() == 3)
    );
    for next in [Next::Confirm, Next::Fail, Next::Note(vec![], true)] {
        assert!(!next.raises() && next.urgency() == 1, "{next:?}");
    }
}

#[test]
fn what_is_held_back_is_looked_at_when_the_first_thing_lifts_and_before_long() {
    let held = |next_open| Blocker {
        kind: Kind::Window,
        subject: "s".to_owned(),
        description: "d".to_owned(),
        lifted_by: "l".to_owned(),
        next_open,
    };
    let look = |opens: &[Option<i64>]| {
        let blockers: Vec<_> = opens.iter().map(|open| held(open.map(at))).collect();
        look_again(&blockers, at(100))
    };
    assert_eq!(look(&[None]), at(115));
    assert_eq!(look(&[Some(107), None, Some(103)]), at(103));
    assert_eq!(look(&[Some(100), Some(90), Some(3000)]), at(115));
}

/// Something that happens to a rollout.
#[derive(Debug, Clone)]
enum Happening {
    /// The controller looks until nothing is left to do.
    Look {
        is_applied: bool,
        task: Option<TaskEnd>,
        verdicts: [u8; 3],
        is_mismatch: bool,
    },
    Minutes(i64),
    Advance,
    Pause,
    Resume(u8),
    RollBack,
}

fn happening() -> impl Strategy<Value = Happening> {
    let task =
        prop_oneof![Just(None), Just(Some(TaskEnd::Done)), Just(Some(TaskEnd::Failed("f".to_owned())))];
    let look = (any::<bool>(), task, [0_u8..8, 0_u8..8, 0_u8..8], prop::bool::weighted(0.1));
    prop_oneof![
        8 => look.prop_map(|(is_applied, task, verdicts, is_mismatch)| {
            Happening::Look { is_applied, task, verdicts, is_mismatch }
        }),
        4 => (1_i64..90).prop_map(Happening::Minutes),
        1 => Just(Happening::Advance),
        1 => Just(Happening::Pause),
        3 => (0_u8..4).prop_map(Happening::Resume),
        1 => Just(Happening::RollBack),
    ]
}

const GUARDS: [(&str, Mode); 3] =
    [("seen", Mode::Observe), ("slow", Mode::Pause), ("checkout", Mode::Rollback)];

struct World {
    rollout: Rollout,
    now: Time,
}

impl World {
    fn new(needs_executor: bool) -> Self {
        let guard = |(name, mode): (&str, Mode)| {
            let rule = Rule::new(GuardKind::Failure, None, None).unwrap();
            Guard { name: name.parse().unwrap(), rule, mode, weight: 1 }
        };
        let plan = Plan {
            min_bake: Some(TimeDelta::minutes(10)),
            step_deadline: Some(TimeDelta::hours(1)),
            drain_deadline: Some(TimeDelta::minutes(30)),
            guards: Guards::new(GUARDS.map(guard).to_vec()).unwrap(),
            needs_executor,
            ..Plan::default()
        };
        Self { rollout: running(vec![1000, 5000], plan), now: at(3) }
    }

    /// What guards make of what is counted now; what was found stays found.
    fn seen(
        &self,
        is_applied: bool,
        task: Option<TaskEnd>,
        verdicts: [u8; 3],
        is_mismatch: bool,
    ) -> Observation {
        let guards = GUARDS.iter().zip(verdicts).map(|((guard, mode), verdict)| {
            let is_found = self.rollout.harms.iter().any(|harm| harm.guard == *guard);
            let verdict = match verdict {
                _ if is_found => Verdict::Harm,
                0 => Verdict::Harm,
                1..4 => Verdict::Inconclusive,
                _ => Verdict::Safe,
            };
            let is_mismatch = is_mismatch || self.rollout.mismatched_at.is_some();
            Watched { is_mismatch, ..watched(guard, *mode, verdict) }
        });
        Observation { is_applied, task, guards: guards.collect(), old_visits: Some(0) }
    }

    fn happen(&mut self, happening: Happening) {
        let rollout = self.rollout.clone();
        let next = match happening {
            Happening::Minutes(minutes) => {
                self.now += TimeDelta::minutes(minutes);
                None
            }
            Happening::Look { is_applied, task, verdicts, is_mismatch } => {
                // Of each step one phase after the other, so that it comes to an end.
                for _ in 0..32 {
                    let seen = self.seen(is_applied, task.clone(), verdicts, is_mismatch);
                    let Some(next) = decide(&self.rollout, &seen, self.now) else { return };
                    self.rollout = carried_out(self.rollout.clone(), next, self.now);
                }
                panic!("it goes on for ever: {:?}", self.rollout)
            }
            Happening::Advance => rollout.advance(self.now).ok(),
            Happening::Pause => rollout.pause(pause(Cause::Requested, self.now)).ok().flatten(),
            Happening::Resume(person) => {
                rollout.resume(&format!("idp|{person}"), "on".to_owned(), self.now).ok()
            }
            Happening::RollBack => rollout.roll_back("why".to_owned(), self.now),
        };
        if let Some(Decision { rollout, .. }) = next {
            self.rollout = rollout;
        }
    }
}

/// As the controller does it, where nothing holds it back.
fn carried_out(rollout: Rollout, next: Next, now: Time) -> Rollout {
    let decision = match next {
        Next::Begin => rollout.begin(&release(true), Some(stable()), now).pop(),
        Next::Expose => rollout.expose(now).ok(),
        Next::Bake => rollout.bake(now).ok(),
        Next::Advance => rollout.advance(now).ok(),
        Next::Pause(cause, _, harm) => harm
            .into_iter()
            .fold(rollout, Rollout::with_harm)
            .pause(pause(cause, now))
            .ok()
            .flatten(),
        Next::RollBack(reason, harm) => {
            harm.into_iter().fold(rollout, Rollout::with_harm).roll_back(reason, now)
        }
        Next::Note(harms, is_mismatch) => return rollout.with_findings(harms, is_mismatch, now),
        Next::Succeed => rollout.succeed(now).ok(),
        Next::Confirm => rollout.confirm(now),
        Next::Fail => rollout.fail(now).ok(),
    };
    decision.expect("what is next can be done").rollout
}

proptest! {
    /// Liveness, too: what goes back is at 0 and ends, whether it is confirmed or not.
    #[test]
    fn i7_whatever_happened_exposure_can_be_taken_away(
        needs_executor: bool,
        happenings in prop::collection::vec(happening(), 0..40),
    ) {
        let mut world = World::new(needs_executor);
        for happening in happenings {
            let before = world.rollout.clone();
            world.happen(happening);
            let (rollout, now) = (world.rollout.clone(), world.now);
            if rollout.exposure_bps < before.exposure_bps {
                prop_assert!(rollout.state.rollback_reason().is_some() && rollout.exposure_bps == 0);
            }
            if !rollout.state.is_exposing() {
                continue;
            }
            let back = rollout.roll_back("why".to_owned(), now).expect("it goes back").rollout;
            prop_assert_eq!(back.exposure_bps, 0);
            for (is_applied, end) in [(true, "ROLLED_BACK"), (false, "ROLLBACK_FAILED")] {
                let seen = Observation { is_applied, ..Observation::default() };
                let next = decide(&back, &seen, now + CONFIRM_DEADLINE).expect("it ends");
                prop_assert_eq!(carried_out(back.clone(), next, now).state.name(), end);
            }
        }
    }

    #[test]
    fn i15_harm_is_latched_and_cleared_by_a_named_person_with_a_reason_only(
        needs_executor: bool,
        happenings in prop::collection::vec(happening(), 0..40),
    ) {
        let mut world = World::new(needs_executor);
        for happening in happenings {
            let before = world.rollout.clone();
            let (is_look, is_resume) =
                (matches!(happening, Happening::Look { .. }), matches!(happening, Happening::Resume(_)));
            world.happen(happening);
            let rollout = &world.rollout;
            for (known, was) in rollout.harms.iter().zip(&before.harms) {
                prop_assert_eq!((&known.guard, &known.finding, known.at), (&was.guard, &was.finding, was.at));
                if known.cleared != was.cleared {
                    prop_assert!(is_resume && was.cleared.is_none());
                    let word = known.cleared.as_ref().expect("nothing takes a clearance back");
                    prop_assert!(word.by.starts_with("idp|") && !word.reason.is_empty());
                }
            }
            prop_assert!(rollout.harms.len() >= before.harms.len());
            prop_assert!(before.mismatched_at.is_none() || rollout.mismatched_at == before.mismatched_at);
            let stands = |mode| {
                let mut found = rollout.harms.iter().filter(|harm| harm.cleared.is_none());
                found.any(|harm| GUARDS.contains(&(harm.guard.as_str(), mode)))
            };
            if is_look {
                prop_assert!(!stands(Mode::Pause) || rollout.state.name() != "RUNNING");
                prop_assert!(!stands(Mode::Rollback) || !rollout.state.is_exposing());
            }
        }
    }
}

#[test]
fn what_has_ended_does_nothing_more() {
    let seen = seeing(vec![watched("checkout", Mode::Rollback, Verdict::Harm)]);
    for state in ["SUCCEEDED", "ROLLED_BACK", "CANCELLED", "SUPERSEDED"] {
        assert_eq!(decide(&in_state(state), &seen, at(1_000_000)), None, "{state}");
    }
    let known = in_state("RUNNING").with_harm(harm_of("checkout"));
    assert!(matches!(decide(&known, &seen, at(9)), Some(Next::RollBack(..))));
}
