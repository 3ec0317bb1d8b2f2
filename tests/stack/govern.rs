//! A release from draft to approved by command: what keeps it is told in sentences, people vote, and programs get JSON.

use std::fs;
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

async fn create_ledger(stack: &Observed) {
    let policy = ApprovalPolicy {
        approval_policy: "by-risk".to_owned(),
        profile: GovernanceProfile::Standard.into(),
        ..ApprovalPolicy::default()
    };
    let request = CreateApprovalPolicyRequest { approval_policy: Some(policy), request_id: String::new() };
    let made = stack.catalog().create_approval_policy(stack.ask(request)).await;
    made.expect("a policy is made");
    let component = Component {
        component: "ledger".to_owned(),
        approval_policy: "by-risk".to_owned(),
        ..Component::default()
    };
    let request = CreateComponentRequest { component: Some(component), request_id: String::new() };
    let made = stack.catalog().create_component(stack.ask(request)).await;
    made.expect("a component is made");
}

#[tokio::test]
async fn a_release_goes_from_draft_to_approved_by_command() {
    let stack = Observed::stack();
    create_ledger(&stack).await;
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
    assert_eq!(output.trim(), "nothing waits for your vote");
    let (code, output) = of("cancel", &["--reason", "not this week"]);
    assert!(code == Some(0) && output.contains("CANCELLED"), "{output}");
}
