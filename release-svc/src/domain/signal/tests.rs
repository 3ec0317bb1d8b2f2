use shared::time::at;

use super::*;
use crate::domain::guard::{Guards, Kind, Mode, Rule};
use crate::domain::rollout::{Harm, Plan, tests as rollouts};

fn rollout() -> Rollout {
    let guard = |name: &str| Guard {
        name: name.parse().unwrap(),
        rule: Rule::new(Kind::Failure, None, None).unwrap(),
        mode: Mode::Rollback,
        weight: 1,
    };
    let guards = Guards::new(vec![guard("checkout"), guard("slow")]).unwrap();
    rollouts::running(vec![1000], Plan { guards, ..Plan::default() })
}

fn count(is_canary: bool, guard: Option<&str>, number: u64) -> Count {
    Count { step: 0, is_canary, guard: guard.map(str::to_owned), number }
}

#[test]
fn each_guard_reads_its_own_outcomes_of_everyones_units() {
    let counts = [
        count(true, None, 100),
        count(false, None, 900),
        count(true, Some("checkout"), 20),
        count(false, Some("checkout"), 40),
        count(false, Some("slow"), 3),
    ];
    let readings = read(&rollout(), &counts);
    let tallies: Vec<_> = readings
        .iter()
        .map(|reading| (reading.counts[0].canary, reading.counts[0].control))
        .collect();
    let tally = |units, events| Tally { units, events };
    assert_eq!(tallies, [(tally(100, 20), tally(900, 40)), (tally(100, 0), tally(900, 3))]);
    // ln E 10.555066 of the anchors, against ln 200, as two guards share one in a hundred.
    assert_eq!(readings[0].judgement.verdict, Verdict::Harm);
    assert_eq!(readings[1].judgement.verdict, Verdict::Inconclusive);
    let watched = Watched::from(&readings[0]);
    assert!(watched.has_data && !watched.is_mismatch);
    assert!(
        watched
            .finding
            .starts_with("20 of 100 visits on the new release, 40 of 900 on the old one; p = ")
    );
}

#[test]
fn what_was_found_stays_found_whatever_is_counted_later() {
    let found = Harm { guard: "slow".to_owned(), finding: "f".to_owned(), at: at(9), cleared: None };
    let rollout = rollout().with_harm(found);
    let watched: Vec<_> = read(&rollout, &[]).iter().map(Watched::from).collect();
    assert_eq!(watched[0].verdict, Verdict::Inconclusive);
    assert_eq!((watched[1].verdict, watched[1].is_mismatch), (Verdict::Harm, false));
    let rollout = rollout.with_findings(vec![], true, at(10));
    let readings = read(&rollout, &[count(true, None, 100), count(false, None, 900)]);
    assert!(readings.iter().all(|reading| Watched::from(reading).is_mismatch));
    assert_eq!(readings[1].judgement.verdict, Verdict::Harm);
}

#[test]
fn a_rollout_is_counted_by_its_own_steps_and_guards() {
    let rollout = rollout();
    let scope = Scope { steps: rollout.steps.as_slice().len(), guards: rollout.plan.guards };
    let has = |step, guard| scope.has(step, guard);
    assert!(has(0, None) && has(1, Some("slow")) && has(0, Some("checkout")));
    assert!(!has(2, None) && !has(2, Some("slow")) && !has(0, Some("slower")));
}

#[test]
fn without_counts_every_guard_is_inconclusive() {
    for watched in read(&rollout(), &[]).iter().map(Watched::from) {
        assert_eq!((watched.verdict, watched.has_data), (Verdict::Inconclusive, false));
    }
}
