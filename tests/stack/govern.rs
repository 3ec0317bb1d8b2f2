//! A release from draft to approved by command: what keeps it is told in sentences, people vote, and programs get JSON. What
//! a command says to run next works.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use shared::pb::release::{
    ApprovalPolicy, Component, CreateApprovalPolicyRequest, CreateComponentRequest, GovernanceProfile,
};

use crate::observed::Observed;
use crate::process::{self, said};

const LIMIT: Duration = Duration::from_mins(1);

fn run(stack: &Observed, arguments: &[&str]) -> (Option<i32>, String) {
    let output = process::run(&mut stack.tandem(arguments), LIMIT);
    (output.status.code(), said(&output))
}

fn json(stack: &Observed, arguments: &[&str]) -> Value {
    let output = process::run(&mut stack.tandem(arguments), LIMIT);
    serde_json::from_slice(&output.stdout).expect("JSON on standard output")
}

/// A component that is approved by risk.
async fn create(stack: &Observed, name: &str) {
    let approval_policy = format!("{name}-by-risk");
    let policy = ApprovalPolicy {
        approval_policy: approval_policy.clone(),
        profile: GovernanceProfile::Standard.into(),
        ..ApprovalPolicy::default()
    };
    let request = CreateApprovalPolicyRequest { approval_policy: Some(policy), request_id: String::new() };
    let made = stack.catalog().create_approval_policy(stack.ask(request)).await;
    made.expect("a policy is made");
    let component = Component { component: name.to_owned(), approval_policy, ..Component::default() };
    let request = CreateComponentRequest { component: Some(component), request_id: String::new() };
    let made = stack.catalog().create_component(stack.ask(request)).await;
    made.expect("a component is made");
}

#[tokio::test]
async fn a_release_goes_from_draft_to_approved_by_command() {
    let stack = Observed::stack();
    create(&stack, "ledger").await;
    let commits = stack.path("commits");
    fs::write(&commits, "c0ffee tandem-local|ada 2026-11-01T12:00:00+01:00\n").expect("a file is written");
    let commits = commits.to_str().expect("a path of ours");
    let named = ["ledger", "1.0", "--sub", "ada"];
    let of = |command: &'static str, more: &[&'static str]| {
        run(&stack, &[&["release", command], &named[..], more].concat())
    };
    let digest = format!("sha256:{}", "0a".repeat(32));
    let drafted = [
        "release",
        "create",
        "ledger",
        "1.0",
        "--sub",
        "ada",
        "--commits",
        commits,
        "--lines",
        "1000",
        "--digest",
        &digest,
        "--notes",
        "Books close faster",
    ];
    let (code, output) = run(&stack, &drafted);
    assert!(code == Some(0) && output.contains("ledger 1.0: DRAFT"), "{output}");
    let (code, output) = of("submit", &[]);
    assert!(code == Some(1) && output.contains("RELEASE_INCOMPLETE"), "{output}");
    let (code, output) = of("edit", &["--rollback-plan", "deploy 0.9"]);
    assert!(code == Some(0) && output.contains("DRAFT"), "{output}");
    let (code, output) = of("submit", &[]);
    assert!(code == Some(0) && output.contains("PENDING_APPROVAL"), "{output}");
    let (_, output) = of("explain", &["--environment", "local"]);
    assert!(output.contains("cannot go to local yet") && output.contains("APPROVAL"), "{output}");
    assert!(!output.contains('\u{1b}'), "no colours where nobody looks: {output:?}");
    let explained = json(&stack, &["release", "explain", "ledger", "1.0", "--json"]);
    assert_eq!(explained["release"]["state"], "RELEASE_STATE_PENDING_APPROVAL", "{explained}");
    let score = explained["risk"]["score"].as_i64().expect("a score");

    let (code, output) = run(&stack, &["approve", "release", "ledger", "1.0", "--sub", "ada"]);
    assert!(code == Some(1) && output.contains("SOD_VIOLATION"), "{output}");
    let (_, output) = run(&stack, &["approve", "pending", "--sub", "alice"]);
    assert!(output.starts_with("COMPONENT") && output.contains("ledger"), "{output}");
    for (who, group) in [("alice", "dev"), ("bob", "ops")] {
        let arguments = ["approve", "release", "ledger", "1.0", "--sub", who, "--group", group];
        let (code, output) = run(&stack, &arguments);
        assert_eq!(code, Some(0), "{output}");
    }
    let (_, output) = run(&stack, &["release", "list", "ledger"]);
    assert!(output.contains("APPROVED") && output.contains(&format!(" {score}")), "{output}");
    let (_, output) = run(&stack, &["approve", "pending", "--sub", "alice"]);
    assert!(!output.contains("ledger"), "{output}");
    let (code, output) = of("cancel", &["--reason", "not this week"]);
    assert!(code == Some(0) && output.contains("CANCELLED"), "{output}");
    let (_, output) = of("show", &[]);
    for part in [
        "CANCELLED by tandem-local|ada",
        ": not this week",
        "notes: Books close faster",
        &digest,
        "commits: c0ffee tandem-local|ada",
        "rollback plan: deploy 0.9",
        "tandem-local|bob (of ops) for",
    ] {
        assert!(output.contains(part), "{part} in\n{output}");
    }
}

#[tokio::test]
async fn what_ship_says_to_run_brings_a_release_out() {
    let stack = Observed::stack();
    create(&stack, "vault").await;
    let ship = |more: &[&str]| run(&stack, &[&["ship", "vault", "1.0", "--canary", "10%"], more].concat());
    let (code, output) = ship(&["--lines", "1000"]);
    assert!(
        code == Some(1) && output.contains("again with --rollback-plan TEXT --digest sha256:HEX"),
        "{output}"
    );
    let digest = format!("sha256:{}", "0b".repeat(32));
    let (code, output) = ship(&["--rollback-plan", "deploy 0.9", "--digest", &digest]);
    assert!(code == Some(3) && output.contains("of 2 groups, as HIGH asks for"), "{output}");
    // People of one group are enough by number alone.
    for who in ["carol", "dave"] {
        let (_, output) =
            run(&stack, &["approve", "release", "vault", "1.0", "--sub", who, "--group", "dev"]);
        assert!(output.contains("waits, because"), "{output}");
    }
    let (code, output) = ship(&[]);
    assert!(code == Some(3) && output.contains("Those who approved it are of dev."), "{output}");
    let lines: Vec<_> = output.lines().filter(|line| line.contains("approve release")).collect();
    assert!(lines.len() == 1 && lines[0].ends_with("--group ops"), "{output}");
    let pasted = process::run(Command::new("bash").args(["-ec", &lines.join("\n")]), LIMIT);
    assert!(pasted.status.success(), "{}", said(&pasted));
    let (code, output) = ship(&[]);
    assert!(code == Some(0) && output.contains("--canary is left aside"), "{output}");
}

#[tokio::test]
async fn an_edit_takes_back_what_it_names_and_changes_something() {
    let stack = Observed::stack();
    create(&stack, "safe").await;
    let of =
        |command: &str, more: &[&str]| run(&stack, &[&["release", command, "safe", "1.0"], more].concat());
    let written = ["--schema-migration", "--incident", "INC-7", "--work-item", "W-1"];
    let (code, output) = of("create", &written);
    assert_eq!(code, Some(0), "{output}");
    for nothing in [&[][..], &written[..], &["--no-hotfix-line"][..]] {
        let (code, output) = of("edit", &[nothing, &["--sub", "eve"]].concat());
        assert!(code == Some(2) && output.contains("changes nothing"), "{output}");
    }
    let (_, output) = of("show", &[]);
    assert!(
        output.contains("a database schema") && output.contains("unplanned, because of: INC-7"),
        "{output}"
    );
    let (code, _) = of("edit", &["--no-schema-migration", "--incident", "", "--work-item", ""]);
    assert_eq!(code, Some(0));
    let (_, output) = of("show", &[]);
    for gone in ["a database schema", "INC-7", "W-1", "eve"] {
        assert!(!output.contains(gone), "{gone} in\n{output}");
    }
}

#[tokio::test]
async fn a_debt_is_told_by_what_it_was_made_for() {
    let stack = Observed::stack();
    create(&stack, "till").await;
    let digest = format!("sha256:{}", "0c".repeat(32));
    let shipped =
        ["ship", "till", "1.0", "--lines", "1000", "--rollback-plan", "deploy 0.9", "--digest", &digest];
    let (code, output) = run(&stack, &shipped);
    assert_eq!(code, Some(3), "{output}");
    let (code, output) = run(&stack, &["approve", "break-glass", "till", "1.0", "--reason", "it burns"]);
    assert!(code == Some(0) && output.contains("for till 1.0"), "{output}");
    let (_, output) = run(&stack, &["approve", "debts"]);
    let debt = output.lines().find(|line| line.contains("till")).expect("a debt");
    assert!(output.starts_with("ID") && debt.contains("1.0") && debt.ends_with("it burns"), "{output}");
    let id = debt.split_whitespace().next().expect("its id");
    let review = ["approve", "review", id, "accepted", "--sub", "bob", "--reason", "it did"];
    let (code, output) = run(&stack, &review);
    assert!(code == Some(0) && output.contains("till 1.0; ACCEPTED by tandem-local|bob: it did"), "{output}");
    let debts = json(&stack, &["approve", "debts", "--json"]);
    let debts = debts.as_array().expect("an array");
    assert!(debts.iter().all(|debt| debt["breakGlassId"] != id), "{debts:?}");
}

#[test]
fn what_is_not_there_is_said_not_to_be() {
    let stack = Observed::stack();
    let (code, output) = run(&stack, &["release", "list", "nope"]);
    assert!(code == Some(1) && output.contains("COMPONENT_NOT_FOUND"), "{output}");
    let rejected = ["release", "list", "storefront", "--state", "rejected"];
    let (code, output) = run(&stack, &rejected);
    assert_eq!((code, output.trim()), (Some(0), "storefront has no release in such a state"));
    assert_eq!(json(&stack, &[&rejected[..], &["--json"]].concat()), Value::Array(Vec::new()));
    let (code, output) = run(&stack, &["audit", "verify", "--tenant", "shpo"]);
    assert!(code == Some(1) && output.contains("tenant shpo has no events"), "{output}");
    let (code, output) = run(&stack, &["audit", "verify"]);
    assert!(code == Some(0) && output.contains("events hold"), "{output}");
}
