//! `tandem replay --break-canary`: what it says at its end is measured on a running stack, and it says so where it cannot
//! measure.

use std::fs::File;
use std::time::Duration;

use serde_json::Value;
use shared::pb::release::{ListRolloutsRequest, RolloutState};

use crate::harness::Stack;
use crate::process::{self, poll, said};

const REPLAY_LIMIT: Duration = Duration::from_mins(5);
const LIMIT: Duration = Duration::from_secs(30);

async fn rollouts(stack: &Stack) -> Vec<(String, RolloutState)> {
    let request =
        ListRolloutsRequest { component: "storefront".to_owned(), ..ListRolloutsRequest::default() };
    let answer = stack.rollouts().list_rollouts(stack.ask(request)).await;
    let rollouts = answer.expect("rollouts are listed").into_inner().rollouts;
    rollouts
        .into_iter()
        .map(|rollout| (rollout.version.clone(), rollout.state()))
        .collect()
}

#[tokio::test]
async fn broken_canary_goes_back_by_itself_and_nobody_loses_anything() {
    let stack = Stack::start("break", &[]);
    let unwatched = ["ship", "storefront", "1.1", "--canary", "50%"];
    let output = process::run(&mut stack.tandem(&unwatched), LIMIT);
    assert!(output.status.success(), "{}", said(&output));
    let output = process::run(&mut stack.tandem(&["replay", "--quick", "--break-canary"]), LIMIT);
    assert_eq!(output.status.code(), Some(2), "nobody would notice: {}", said(&output));
    assert!(
        said(&output).contains("storefront 1.1") && said(&output).contains("no guard"),
        "{}",
        said(&output)
    );
    let back = ["rollout", "back", "storefront", "--reason", "nobody watches it"];
    let output = process::run(&mut stack.tandem(&back), LIMIT);
    assert!(output.status.success(), "{}", said(&output));

    let output = process::run(&mut stack.tandem(&["replay", "--quick", "--break-canary"]), REPLAY_LIMIT);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let last = text.lines().last().expect("it says something");
    let number = |part: &str, before: &str, after: &str| -> f64 {
        let number = part.strip_prefix(before).and_then(|part| part.strip_suffix(after));
        number
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("{part} in {last}"))
    };
    let [failures, back, zeros @ ..] = &last.split("; ").collect::<Vec<_>>()[..] else { panic!("{last}") };
    assert!(number(failures, "HARM after ", " failures") >= 4.0, "{last}");
    assert!(number(back, "rolled back in ", " s") < 15.0, "{last}");
    assert_eq!(zeros, ["open checkouts moved 0", "cart lines lost 0", "logins lost 0"]);
    let open = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("checkouts open meanwhile"));
    assert_eq!(open.map(str::trim), Some("8"), "{text}");
    let ended = [("1.2", RolloutState::RolledBack), ("1.1", RolloutState::RolledBack)];
    let ended = ended.map(|(version, state)| (version.to_owned(), state));
    assert_eq!(rollouts(&stack).await[..2], ended);
}

/// Two shoppers at a time who look at every page are too few for the guard to be sure by when Ctrl-C comes.
#[tokio::test]
async fn replay_that_is_interrupted_before_harm_has_not_shown_any() {
    let mut stack = Stack::start("unbroken", &[]);
    let shipped = ["ship", "storefront", "1.1", "--canary", "10%", "--guard", "checkout"];
    let output = process::run(&mut stack.tandem(&shipped), LIMIT);
    assert!(output.status.success(), "{}", said(&output));
    let log = |name| File::create(stack.path(name)).expect("a file is made");
    let mut command = stack.tandem(&["replay", "--break-canary", "--json", "--concurrency", "2"]);
    let mut replay = stack.folder.spawn(command.stdout(log("replay.out")).stderr(log("replay.err")));
    let told = poll(LIMIT, || stack.log("replay.err").contains("failures on 1.1").then_some(()));
    assert!(told.is_some(), "no word of how it goes: {}", stack.log("replay.err"));
    process::signal("INT", replay.id());
    let status = stack.folder.wait(&mut replay, LIMIT).expect("it ends");
    assert_eq!(status.code(), Some(1));
    let summary: Value = serde_json::from_str(&stack.log("replay.out")).expect("a summary in JSON");
    assert_eq!(summary["canary"]["is_harm"], false, "{summary}");
    assert_eq!(summary["promises"]["lines_missing"], 0, "{summary}");
    assert_eq!(rollouts(&stack).await[0], ("1.1".to_owned(), RolloutState::Running));
    assert!(stack.interrupt().success());

    let output = process::run(&mut stack.tandem(&["replay", "--quick", "--break-canary"]), LIMIT);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("no stack runs"), "{}", said(&output));
}
