use shared::time::at;

use super::*;
use crate::domain::rollout::tests::running;
use crate::domain::rollout::{Plan, ServedRelease};

const UNTIL: i64 = 100;

fn queued() -> Task {
    Task {
        id: TaskId::new(at(0), [1; 10]),
        kind: Kind::Expose,
        component: "storefront".parse().unwrap(),
        environment: "prod".parse().unwrap(),
        rollout: RolloutId::new(at(0), [2; 10]),
        step: 0,
        release: ReleaseId::new(at(0), [3; 10]),
        version: "1.1".to_owned(),
        artifact_digest: None,
        exposure_bps: 1000,
        state: State::Queued,
        not_before: at(0),
        token: 0,
        failures: 0,
        executor: None,
        message: String::new(),
        created_at: at(0),
    }
}

fn lease(task: Task, now: i64) -> Task {
    task.lease("e".to_owned(), at(now + UNTIL), at(now)).unwrap().task
}

/// One in each state, all handed out once but the first.
fn in_state(name: &str) -> Task {
    let leased = lease(queued(), 1);
    let report = |outcome| {
        let task = leased.clone();
        task.report(1, outcome, "m".to_owned(), at(2)).unwrap().unwrap().task
    };
    let task = match name {
        "QUEUED" => queued(),
        "LEASED" => leased,
        "DONE" => report(Outcome::Done),
        "FAILED" => {
            let last = Task { failures: FAILURES_MAX - 1, ..leased };
            last.report(1, Outcome::Failed, "m".to_owned(), at(2)).unwrap().unwrap().task
        }
        "CANCELLED" => leased.cancel(at(2)).unwrap().task,
        _ => panic!("{name}"),
    };
    assert_eq!(task.state.name(), name);
    task
}

const STATES: [&str; 5] = ["QUEUED", "LEASED", "DONE", "FAILED", "CANCELLED"];

#[test]
fn a_task_is_one_executors_until_its_lease_runs_out() {
    let task = lease(queued(), 1);
    assert_eq!((task.token, task.executor.as_deref()), (1, Some("e")));
    assert_eq!(task.state_at(at(UNTIL)), State::Leased { until: at(1 + UNTIL) });
    assert_eq!(task.clone().lease("f".to_owned(), at(200), at(UNTIL)), Err(NotFree(task.id)));
    assert_eq!(task.state_at(at(1 + UNTIL)), State::Queued);
    let again = task.lease("f".to_owned(), at(300), at(1 + UNTIL)).unwrap();
    assert_eq!((again.from, again.token, again.kind), ("LEASED", 1, Some("task.leased")));
    assert_eq!((again.task.token, again.task.executor.as_deref()), (2, Some("f")));
}

#[test]
fn only_what_waits_is_handed_out() {
    for name in STATES {
        let leased = in_state(name).lease("e".to_owned(), at(10), at(3));
        assert_eq!(leased.is_ok(), name == "QUEUED", "{name}");
    }
}

#[test]
fn a_lease_is_kept_until_somebody_else_has_the_task() {
    for name in STATES {
        let renewed = in_state(name).renew(1, at(500));
        assert_eq!(renewed.is_ok(), name == "LEASED", "{name}");
    }
    let late = in_state("LEASED").renew(1, at(500)).unwrap();
    assert_eq!((late.task.state, late.kind), (State::Leased { until: at(500) }, None));
}

#[test]
fn i16_what_carries_a_stale_token_is_refused() {
    let task = lease(lease(queued(), 1), 200);
    assert_eq!(task.token, 2);
    for stale in [0, 1, 3, i64::MIN, i64::MAX] {
        assert_eq!(task.clone().renew(stale, at(400)), Err(LeaseLost(task.id)), "{stale}");
        for outcome in [Outcome::Done, Outcome::Failed, Outcome::Returned] {
            for name in STATES {
                let task = Task { token: 2, ..in_state(name) };
                let id = task.id;
                let reported = task.report(stale, outcome, String::new(), at(201));
                assert_eq!(reported, Err(LeaseLost(id)), "{name} {outcome:?} {stale}");
            }
        }
    }
}

#[test]
fn a_report_counts_once_and_only_from_whoever_has_the_task() {
    use Outcome::{Done, Failed, Returned};
    // What each state makes of each report with the newest token.
    let table = [
        ("QUEUED", [None, None, None]),
        ("LEASED", [Some("DONE"), Some("QUEUED"), Some("QUEUED")]),
        ("DONE", [Some("same"), None, None]),
        ("FAILED", [None, Some("same"), None]),
        ("CANCELLED", [None, None, None]),
    ];
    for (name, outcomes) in table {
        for (outcome, expected) in [Done, Failed, Returned].into_iter().zip(outcomes) {
            let task = in_state(name);
            let token = task.token;
            let found = task.report(token, outcome, "m".to_owned(), at(3));
            let found = found.ok().map(|decision| decision.map_or("same", |it| it.task.state.name()));
            assert_eq!(found, expected, "{name} {outcome:?}");
        }
    }
    // What went back to the queue takes the same word again, but no other.
    for outcome in [Failed, Returned] {
        let task = in_state("LEASED");
        let back = task.report(1, outcome, "m".to_owned(), at(3)).unwrap().unwrap().task;
        assert_eq!(back.clone().report(1, outcome, "m".to_owned(), at(4)), Ok(None), "{outcome:?}");
        assert!(back.report(1, Done, "m".to_owned(), at(4)).is_err(), "{outcome:?}");
    }
}

#[test]
fn a_task_fails_for_good_with_its_third_failure() {
    let mut task = queued();
    for (attempt, now) in [(1, 0), (2, 30), (3, 60)] {
        if attempt > 1 {
            assert!(task.clone().lease("e".to_owned(), at(500), at(now - 1)).is_err(), "it rests");
        }
        task = lease(task, now);
        let failed = task.report(attempt, Outcome::Failed, format!("no {attempt}"), at(now)).unwrap();
        task = failed.unwrap().task;
        assert_eq!(i64::from(task.failures), attempt);
    }
    assert_eq!((task.state, task.message.as_str()), (State::Failed { at: at(60) }, "no 3"));
}

#[test]
fn what_is_given_back_is_free_at_once_and_has_not_failed() {
    let task = in_state("LEASED")
        .report(1, Outcome::Returned, String::new(), at(2))
        .unwrap()
        .unwrap()
        .task;
    assert_eq!((task.state, task.failures), (State::Queued, 0));
    assert_eq!(lease(task, 2).token, 2);
}

#[test]
fn only_what_is_open_is_cancelled() {
    for name in STATES {
        let cancelled = in_state(name).cancel(at(3));
        assert_eq!(cancelled.is_some(), ["QUEUED", "LEASED"].contains(&name), "{name}");
    }
}

#[test]
fn a_rollout_asks_for_room_and_later_for_what_it_left_to_be_retired() {
    let plan = Plan { needs_executor: true, ..Plan::default() };
    let rollout = running(vec![1000], plan);
    let previous = rollout.previous.clone().unwrap().id;
    let asks = |rollout: &Rollout| (Order::of(rollout), Order::is_void(rollout));
    let own = rollout.release.id;
    let expose = |release, exposure_bps| Some(Order::Expose { release, exposure_bps });
    assert_eq!(asks(&rollout), (expose(own, 1000), false));
    let exposed = rollout.clone().expose(at(4)).unwrap().rollout;
    assert_eq!(asks(&exposed), (None, false));
    let next = exposed.advance(at(5)).unwrap().rollout;
    assert_eq!(asks(&next), (expose(own, EVERYONE_BPS), false));
    let last = next.clone().expose(at(6)).unwrap().rollout;
    let succeeded = last.advance(at(7)).unwrap().rollout;
    assert_eq!(asks(&succeeded), (Some(Order::RetireBefore(previous)), false));
    let back = next.roll_back("why".to_owned(), at(6)).unwrap().rollout;
    assert_eq!(asks(&back), (None, true));
    let back = back.confirm(at(7)).unwrap().rollout;
    assert_eq!(asks(&back), (Some(Order::RetireOwn), false));
    let taken = succeeded.take_back(RolloutId::new(at(8), [8; 10]), "why".to_owned(), "s".to_owned(), at(8));
    assert_eq!(asks(&taken.rollout), (expose(previous, EVERYONE_BPS), false));
}

#[test]
fn nobody_is_asked_where_no_executor_deploys() {
    let rollout = running(vec![1000], Plan::default());
    let back = rollout.clone().roll_back("why".to_owned(), at(6)).unwrap().rollout;
    let back = back.confirm(at(7)).unwrap().rollout;
    assert_eq!((Order::of(&rollout), Order::of(&back)), (None, None));
    let first = Rollout { previous: None::<ServedRelease>, ..rollout };
    assert_eq!(Order::of(&first), None);
}

#[test]
fn what_runs_drifts_where_something_is_missing_or_stray() {
    let list = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    for (wanted, tolerated, running, expected) in [
        ("", "", "", false),
        ("1.0", "", "1.0", false),
        ("1.0", "", "", true),
        ("1.0", "", "1.0 1.1", true),
        ("1.0", "1.1", "1.0 1.1", false),
        ("1.0", "1.1", "1.1", true),
        ("1.0 1.1", "", "1.1 1.0", false),
        ("", "", "9.9", true),
    ] {
        let found = is_drift(&list(wanted), &list(tolerated), &list(running));
        assert_eq!(found, expected, "{wanted:?} {tolerated:?} {running:?}");
    }
}
