//! A rollout by command: started, held, skipped, paused, followed, and taken back, also after it has succeeded.

use std::fs::File;
use std::time::Duration;

use serde_json::Value;
use shared::pb::release::{Component, CreateComponentRequest};

use crate::observed::Observed;
use crate::process::{self, poll, said};

const LIMIT: Duration = Duration::from_mins(1);

fn run(stack: &Observed, arguments: &[&str]) -> (Option<i32>, String) {
    let output = process::run(&mut stack.tandem(arguments), LIMIT);
    (output.status.code(), said(&output))
}

fn json(stack: &Observed, arguments: &[&str]) -> Value {
    let output = process::run(&mut stack.tandem(arguments), LIMIT);
    serde_json::from_slice(&output.stdout).expect("JSON on standard output")
}

/// A component whose first release serves, and a second one that may go.
async fn prepare(stack: &Observed, name: &str) {
    let component = Component { component: name.to_owned(), ..Component::default() };
    let request = CreateComponentRequest { component: Some(component), request_id: String::new() };
    let made = stack.catalog().create_component(stack.ask(request)).await;
    made.expect("a component is made");
    for arguments in [
        &["ship", name, "1.0"][..],
        &["release", "create", name, "1.1"][..],
        &["release", "submit", name, "1.1"][..],
    ] {
        let (code, output) = run(stack, arguments);
        assert_eq!(code, Some(0), "{output}");
    }
}

#[tokio::test]
async fn a_rollout_goes_step_by_step_and_back_by_command() {
    let stack = Observed::stack();
    prepare(&stack, "kiosk").await;
    let of = |command: &str, more: &[&str]| run(&stack, &[&["rollout", command, "kiosk"], more].concat());
    let (code, output) = of("start", &[]);
    assert!(code == Some(2) && output.contains("say which version"), "{output}");
    let asked = ["1.1", "--steps", "10%,50%", "--guard", "checkout", "--guard", "slow:pause"];
    let (code, output) = of("start", &asked);
    let first = "kiosk 1.1 in local: 10% of visits, the rest on 1.0 (step 1 of 10%, 50%, 100%)";
    let own = "slow is an outcome of your own: `RecordOutcome` has to tell of it";
    assert_eq!((code, output.trim()), (Some(0), format!("{first}\n{own}").as_str()));
    let (code, output) = of("start", &asked);
    assert!(code == Some(1) && output.contains("EARLIER_ROLLOUT"), "{output}");
    for command in ["create", "submit"] {
        let (code, output) = run(&stack, &["release", command, "kiosk", "1.2"]);
        assert_eq!(code, Some(0), "{output}");
    }
    let waiting = json(&stack, &["rollout", "start", "kiosk", "1.2", "--wait", "--json"]);
    let (_, output) = run(&stack, &["rollout", "show", waiting["rolloutId"].as_str().expect("an id")]);
    assert!(output.contains("waits, because\n    EARLIER_ROLLOUT rlo_"), "{output}");

    let (code, output) = of("advance", &[]);
    assert!(code == Some(0) && output.contains("50% of visits"), "{output}");
    // Nobody was counted, so no guard is sure that everyone may see it.
    let (code, output) = of("advance", &[]);
    assert!(code == Some(1) && output.contains("GUARD checkout"), "{output}");
    let (_, output) = of("show", &[]);
    assert!(output.contains("INCONCLUSIVE") && output.contains("waits, because"), "{output}");
    assert!(!output.contains('\u{1b}'), "no colours where nobody looks: {output:?}");
    let (code, output) = of("pause", &["--reason", "somebody calls"]);
    assert!(code == Some(0) && output.contains("by tandem-local|dev: somebody calls"), "{output}");
    let (code, output) = of("skip", &["--reason", "no time"]);
    assert!(code == Some(1) && output.contains("ROLLOUT_"), "{output}");
    let (code, output) = of("resume", &["--reason", "it was nothing", "--sub", "alice"]);
    assert!(code == Some(0) && output.contains("50% of visits"), "{output}");
    let (code, output) = of("skip", &["--reason", "watched by hand"]);
    assert!(code == Some(0) && output.contains("100% of visits"), "{output}");
    let (code, output) = of("resolve", &["--reason", "too early"]);
    assert!(code == Some(1) && output.contains("ROLLOUT_WRONG_STATE"), "{output}");

    let followed = stack.path("followed");
    let out = File::create(&followed).expect("a file is made");
    let mut watch = stack.folder.spawn(stack.tandem(&["rollout", "watch", "kiosk"]).stdout(out));
    let is_followed = poll(LIMIT, || process::read(&followed).contains("RUNNING").then_some(()));
    assert!(is_followed.is_some(), "nothing is followed: {}", process::read(&followed));
    let (code, output) = of("back", &["--reason", "loses orders"]);
    let back = "kiosk 1.1 in local: rolled back to 1.0 (loses orders)";
    assert!(code == Some(0) && output.starts_with(back), "{output}");
    let end = stack.folder.wait(&mut watch, LIMIT).expect("it ends with the rollout");
    let told = process::read(&followed);
    assert_eq!(end.code(), Some(1), "{told}");
    assert!(told.lines().last().is_some_and(|line| line.starts_with(back)), "{told}");
}

#[tokio::test]
async fn what_has_succeeded_is_followed_to_its_end_and_taken_back() {
    let stack = Observed::stack();
    prepare(&stack, "booth").await;
    let started = json(&stack, &["rollout", "start", "booth", "1.1", "--json"]);
    assert_eq!(started["state"], "ROLLOUT_STATE_SUCCEEDED", "{started}");
    let id = started["rolloutId"].as_str().expect("an id");
    let (code, output) = run(&stack, &["rollout", "watch", id]);
    assert!(code == Some(0) && output.ends_with("booth 1.1 in local: on every new visit\n"), "{output}");

    let back = json(&stack, &["rollout", "back", "booth", "--reason", "too slow", "--json"]);
    assert_eq!(back["rollout"]["rollbackOf"], id, "{back}");
    assert_eq!(back["rollout"]["state"], "ROLLOUT_STATE_ROLLED_BACK", "{back}");
    let rollouts = json(&stack, &["rollout", "list", "booth", "--json"]);
    let states = rollouts.as_array().expect("an array").iter().map(|rollout| &rollout["state"]);
    let states: Vec<_> = states.collect();
    assert_eq!(states, ["ROLLOUT_STATE_ROLLED_BACK", "ROLLOUT_STATE_SUCCEEDED", "ROLLOUT_STATE_SUCCEEDED"]);
    let (code, output) = run(&stack, &["ship", "booth", "1.1"]);
    assert!(code == Some(1) && output.contains("ship a new version"), "{output}");
}

#[tokio::test]
async fn ship_passes_guards_on_and_says_how_to_follow() {
    let stack = Observed::stack();
    prepare(&stack, "stall").await;
    for (more, what) in [
        (&["--canary", "50%,10%"][..], "shares must rise"),
        (&["--canary", "10%", "--guard", "checkout", "--guard", "checkout:pause"], "may be given once"),
        (&["--environment", "elsewhere"], "ENVIRONMENT_NOT_FOUND"),
    ] {
        let (code, output) = run(&stack, &[&["ship", "stall", "1.2"], more].concat());
        assert!(code != Some(0) && output.contains(what), "{output}");
    }
    let (_, output) = run(&stack, &["release", "show", "stall", "1.2"]);
    assert!(output.contains("RELEASE_NOT_FOUND"), "nothing is written: {output}");
    let shipped = ["ship", "stall", "1.1", "--canary", "10%", "--guard", "checkout", "--bake", "10m"];
    let (code, output) = run(&stack, &shipped);
    assert!(code == Some(0) && output.contains("rollout watch stall"), "{output}");
    assert!(output.contains("goes on by itself"), "{output}");
    let shown = json(&stack, &["rollout", "show", "stall", "--json"]);
    assert_eq!(shown["rollout"]["plan"]["minBake"], "600s", "{shown}");
    assert_eq!(shown["report"]["guards"][0]["guard"]["name"], "checkout", "{shown}");
    let (_, output) = run(&stack, &shipped);
    assert!(!output.contains("under way already"), "{output}");
    let (_, output) = run(&stack, &["ship", "stall", "1.1", "--canary", "20%"]);
    assert!(output.contains("under way already"), "{output}");
}

#[test]
fn a_rollout_that_is_not_there_is_said_not_to_be() {
    let stack = Observed::stack();
    let (code, output) = run(&stack, &["rollout", "show", "nope"]);
    assert!(code == Some(1) && output.contains("COMPONENT_NOT_FOUND"), "{output}");
    let absent = format!("rlo_{}", "0".repeat(32));
    let (code, output) = run(&stack, &["rollout", "back", &absent, "--reason", "why not"]);
    assert!(code == Some(1) && output.contains("ROLLOUT_NOT_FOUND"), "{output}");
    let (code, output) = run(&stack, &["rollout", "back", "storefront"]);
    assert!(code == Some(2) && output.contains("--reason"), "{output}");
}
