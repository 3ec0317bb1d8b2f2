//! Command lines that people are told to paste work as they stand: those that `up` prints, and those of the README.

use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use crate::harness::{Stack, repository};
use crate::observed::Observed;
use crate::process::{self, said, tool};

const LIMIT: Duration = Duration::from_mins(1);

#[test]
fn lines_that_up_prints_work_as_pasted() {
    let stack = Observed::stack();
    let printed = stack.log("up.out");
    let lines = printed.lines().filter_map(|line| line.strip_prefix("  "));
    // A replay has tests of its own, and takes a minute here.
    let lines: Vec<_> = lines.filter(|line| !line.contains(" replay ")).collect();
    assert!(lines.iter().any(|line| line.contains("grpcurl")), "no grpcurl in\n{printed}");
    let Some(said) = paste(&stack, &lines.join("\n")) else { return };
    for part in ["VERDICT_ACTIVE", r#""version": "1.0""#] {
        assert!(said.contains(part), "{part} in\n{said}");
    }
}

/// And those of the pages that it leads to. Ports, folder and the command's place are those of the reader; here they are the
/// test's.
#[test]
fn grpcurl_lines_of_the_readme_work_as_pasted() {
    let stack = Observed::stack();
    let readme = process::read(&repository("README.md"));
    let mut lines = grpcurl_lines(&readme);
    assert!(!lines.is_empty(), "README.md shows no grpcurl");
    // They go on with the session of the README.
    for page in ["docs/shoppers.md", "docs/carts.md", "docs/governance.md", "docs/rollouts.md"] {
        let more = grpcurl_lines(&process::read(&repository(page)));
        assert!(!more.is_empty(), "{page} shows no grpcurl");
        lines.extend(more);
    }
    let (session, release) = (stack.session_address().to_string(), stack.release_address().to_string());
    let script = lines
        .join("\n")
        .replace("127.0.0.1:50051", &session)
        .replace("127.0.0.1:50052", &release);
    let script = script.replace("localhost:50051", &session).replace("localhost:50052", &release);
    let script = script
        .replace("./target/debug/tandem", "tandem")
        .replace("target/debug/tandem", "tandem");
    paste(&stack, &script);
}

/// Lines of code blocks that call grpcurl, with what they go on with, without the prompt.
fn grpcurl_lines(markdown: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut is_code = false;
    let mut goes_on = false;
    for line in markdown.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
            goes_on = false;
            continue;
        }
        let line = line.trim_start();
        let line = line.strip_prefix("$ ").unwrap_or(line);
        if is_code && (goes_on || line.starts_with("grpcurl ") || line.contains("$(grpcurl ")) {
            lines.push(line.to_owned());
            goes_on = line.ends_with('\\') || line.ends_with('|');
        }
    }
    lines
}

/// Runs the lines in one bash, which ends at the first that fails. `None` where there is no grpcurl.
fn paste(stack: &Stack, lines: &str) -> Option<String> {
    let grpcurl = tool("TANDEM_TEST_GRPCURL")?;
    let bin = stack.path("bin");
    let _ = std::fs::create_dir(&bin);
    for (program, name) in [(grpcurl.as_path(), "grpcurl"), (env!("CARGO_BIN_EXE_tandem").as_ref(), "tandem")]
    {
        // Another test has been here before.
        let _ = symlink(program, bin.join(name));
    }
    let path = shared::config::variable("PATH").unwrap_or_default();
    let mut bash = Command::new("bash");
    bash.args(["-euo", "pipefail", "-c", lines]);
    bash.env("PATH", format!("{}:{path}", bin.display()))
        .env("TANDEM_DATA_DIR", &stack.folder.path);
    let output = process::run(&mut bash, LIMIT);
    assert!(output.status.success(), "{}, pasted:\n{lines}\nand said:\n{}", output.status, said(&output));
    Some(said(&output))
}

#[test]
fn grpcurl_lines_are_found_with_their_prompt_and_continuation() {
    let markdown = "grpcurl no\n```sh\n$ grpcurl a \\\n  b\nother\n```\n```\nS=$(grpcurl c)\n```\n";
    assert_eq!(grpcurl_lines(markdown), ["grpcurl a \\", "b", "S=$(grpcurl c)"]);
}
