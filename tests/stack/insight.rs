//! A project's past, imported by command, and what `tandem insight` makes of it.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use shared::pb::release::{Component, CreateComponentRequest};

use crate::harness::repository;
use crate::observed::Observed;
use crate::process::{self, said};

const LIMIT: Duration = Duration::from_mins(1);

fn run(stack: &Observed, arguments: &[&str]) -> (bool, String) {
    let output = process::run(&mut stack.tandem(arguments), LIMIT);
    (output.status.success(), said(&output))
}

#[tokio::test]
async fn a_history_is_imported_once_and_told_of() {
    let stack = Observed::stack();
    let component = Component { component: "proxy".to_owned(), ..Component::default() };
    let request = CreateComponentRequest { component: Some(component), request_id: String::new() };
    let created = stack.catalog().create_component(stack.ask(request)).await;
    created.expect("a component is made");
    let history = repository("tests/data/releases/linkerd2-proxy.jsonl");
    let history = history.to_str().expect("a path of ours");
    let place = ["--component", "proxy", "--environment", "local"];
    let import =
        |file: &str, more: &[&str]| run(&stack, &[&["history", "import", file], &place[..], more].concat());
    for (more, says) in [
        (&["--dry-run"][..], "195 deployments of proxy to local would be imported; 0 were known"),
        (&[], "195 deployments of proxy to local imported; 0 were known"),
        (&[], "0 deployments of proxy to local imported; 195 were known"),
    ] {
        let (is_done, output) = import(history, more);
        assert!(is_done && output.contains(says), "{says} in\n{output}");
        assert!(output.contains("2 count as failed"), "{output}");
    }

    let period = ["--since", "2023-01-01", "--until", "2026-09-01"];
    let (is_done, table) = run(&stack, &[&["insight", "proxy"], &period[..]].concat());
    assert!(is_done && table.contains("change fail rate") && table.contains("1.0 % (2 of "), "{table}");
    let output = process::run(
        stack
            .tandem(&["insight", "proxy", "--json", "--environment", "local"])
            .args(period),
        LIMIT,
    );
    let metrics: Value = serde_json::from_slice(&output.stdout).expect("JSON on standard output");
    assert_eq!(metrics["change_fail_rate"]["numerator"], 2, "{metrics}");
    assert_eq!(metrics["deployment_rework_rate"]["numerator"], 2, "{metrics}");
    assert_eq!(metrics["approval_wait_time"], Value::Null, "{metrics}");

    let (_, table) = run(&stack, &["insight", "proxy", "--since", "2026-09-01", "--until", "2026-09-02"]);
    assert!(table.contains("no deployment") && table.contains("--since 2026-08-19 shows it"), "{table}");
    let (_, table) = run(&stack, &["insight", "proxy", "--since", "2020-01-01", "--until", "2021-01-01"]);
    assert!(table.contains("no earlier deployment is known"), "{table}");

    let file = stack.path("bad.jsonl");
    let line = |version: &str, at: &str| json!({ "version": version, "deployed_at": at }).to_string();
    let lines = [line("1", "2026-01-01T00:00:00Z"), String::new(), line("2", "2999-01-01T00:00:00Z")];
    fs::write(&file, lines.join("\n")).expect("a file is written");
    let (is_done, output) = import(file.to_str().expect("a path of ours"), &[]);
    assert!(!is_done && output.contains("bad.jsonl:3: deployed_at must be"), "{output}");
}
