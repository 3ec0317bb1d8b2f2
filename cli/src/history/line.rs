//! A line of the file: what it says, and what is concluded where it only counts fixes and reverts, as the public history
//! of a repository does.

use std::collections::HashMap;

use chrono::TimeDelta;
use release_svc::domain::version::Version;
use serde::Deserialize;
use shared::pb::release::PastDeployment;
use shared::time::{Time, to_proto};

/// Commits of one record that the service takes; of more, the newest count.
const COMMITS_MAX: usize = 200;
/// A version that comes so soon after the one before it may be its fix.
const MENDED_WITHIN: TimeDelta = TimeDelta::days(3);

/// One deployment.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    /// In the file, from 1.
    #[serde(skip)]
    pub(super) number: usize,
    version: String,
    #[serde(alias = "released_at")]
    deployed_at: Time,
    #[serde(default)]
    commit_times: Vec<Time>,
    #[serde(default, alias = "authors")]
    author_count: i32,
    #[serde(default, alias = "insertions")]
    lines_added: i32,
    #[serde(default, alias = "deletions")]
    lines_deleted: i32,
    #[serde(default)]
    files_changed: i32,
    #[serde(default)]
    is_rollback: bool,
    failed_at: Option<Time>,
    recovered_at: Option<Time>,
    #[serde(default)]
    is_unplanned: bool,
    #[serde(default)]
    incident: String,
    /// The version that the counts are from.
    previous: Option<String>,
    #[serde(default)]
    commits: u32,
    #[serde(default)]
    fix_commits: u32,
    #[serde(default)]
    revert_commits: u32,
}

/// What the file calls a field of a record.
pub(super) fn key(field: &str) -> &str {
    match field.split('[').next() {
        Some("deploy_time") => "deployed_at",
        Some("failure_time") => "failed_at",
        Some("recovery_time") => "recovered_at",
        Some(same) => same,
        None => field,
    }
}

/// Reads all lines; empty ones are none. The error begins with the number of its line.
pub(super) fn read(text: &str) -> Result<Vec<Line>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let read = lines.map(|(i, line)| {
        let line = serde_json::from_str(line).map_err(|error| {
            // Of a line by itself it is always the first.
            let text = error.to_string();
            let why = text.rsplit_once(" at line ").map_or(text.as_str(), |(why, _)| why);
            format!("{}:{}: {why}", i + 1, error.column())
        })?;
        Ok(Line { number: i + 1, ..line })
    });
    read.collect()
}

/// Concludes from counts of fixes and reverts which versions had failed, and how many: those that the next version of
/// their line followed soon, begun after them and at least half of it fixes or reverts. That one is their rework.
pub(super) fn conclude(mut lines: Vec<Line>) -> (Vec<Line>, usize) {
    let places: HashMap<_, _> = lines
        .iter()
        .enumerate()
        .map(|(place, line)| (line.version.clone(), place))
        .collect();
    let mut mended: HashMap<usize, (Time, usize)> = HashMap::new();
    for (place, fix) in lines.iter().enumerate() {
        let Some(&broken) = fix.previous.as_ref().and_then(|previous| places.get(previous)) else { continue };
        let Some(noticed_at) = lines.get(broken).and_then(|broken| fix.begun_to_mend(broken)) else {
            continue;
        };
        let is_sooner = |(_, other): &(Time, usize)| fix.deployed_at < lines[*other].deployed_at;
        if mended.get(&broken).is_none_or(is_sooner) {
            mended.insert(broken, (noticed_at, place));
        }
    }
    let count = mended.len();
    for (broken, (noticed_at, fix)) in mended {
        lines[broken].failed_at = Some(noticed_at);
        lines[broken].recovered_at = Some(lines[fix].deployed_at);
        lines[fix].is_unplanned = true;
        if lines[fix].incident.is_empty() {
            lines[fix].incident = format!("mends {}", lines[broken].version);
        }
    }
    (lines, count)
}

impl Line {
    /// When work on it began, if it looks like a fix of what was deployed before it.
    fn begun_to_mend(&self, broken: &Self) -> Option<Time> {
        let passed = self.deployed_at - broken.deployed_at;
        let is_soon = passed > TimeDelta::zero() && passed <= MENDED_WITHIN;
        let is_fix = self.commits > 0 && 2 * (self.fix_commits + self.revert_commits) >= self.commits;
        let (version, before) = (self.version.parse::<Version>().ok()?, broken.version.parse().ok()?);
        if broken.failed_at.is_some() || !is_soon || !is_fix || version <= before {
            return None;
        }
        let after = self.commit_times.iter().filter(|commit| **commit > broken.deployed_at);
        after.min().copied().map(|noticed_at| noticed_at.min(self.deployed_at))
    }

    /// As the service takes it.
    pub(super) fn to_record(&self) -> PastDeployment {
        let mut commits = self.commit_times.clone();
        commits.sort_unstable_by_key(|commit| std::cmp::Reverse(*commit));
        commits.truncate(COMMITS_MAX);
        PastDeployment {
            version: self.version.clone(),
            deploy_time: Some(to_proto(self.deployed_at)),
            commit_times: commits.into_iter().map(to_proto).collect(),
            author_count: self.author_count,
            lines_added: self.lines_added,
            lines_deleted: self.lines_deleted,
            files_changed: self.files_changed,
            is_rollback: self.is_rollback,
            failure_time: self.failed_at.map(to_proto),
            recovery_time: self.recovered_at.map(to_proto),
            is_unplanned: self.is_unplanned,
            incident: self.incident.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn shipped(name: &str) -> Vec<Line> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/releases").join(name);
        read(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn failed(lines: &[Line]) -> Vec<&str> {
        lines
            .iter()
            .filter(|line| line.failed_at.is_some())
            .map(|line| line.version.as_str())
            .collect()
    }

    #[test]
    fn of_a_public_history_those_failed_that_a_fix_followed_soon() {
        let (lines, count) = conclude(shipped("linkerd2-proxy.jsonl"));
        assert_eq!((lines.len(), count), (195, 2));
        assert_eq!(failed(&lines), ["2.263.0", "2.305.0"]);
        let (lines, count) = conclude(shipped("unleash.jsonl"));
        assert_eq!(lines.len(), 195);
        assert_eq!(count, failed(&lines).len());
        let of = |version: &str| lines.iter().find(|line| line.version == version).unwrap().to_record();
        // One fix and one revert of three commits, within two hours.
        let (broken, fix) = (of("7.0.2"), of("7.0.3"));
        assert_eq!(broken.recovery_time, fix.deploy_time);
        assert!(fix.is_unplanned && fix.incident == "mends 7.0.2");
        // Later in time and fixes, too, but of an older line.
        assert!(!of("4.21.3").is_unplanned);
    }

    #[test]
    fn what_a_line_says_itself_is_not_concluded() {
        let line = |version: &str, day: u32, more: &str| {
            format!(r#"{{"version":"{version}","deployed_at":"2026-01-{day:02}T12:00:00+01:00"{more}}}"#)
        };
        let fix = r#","previous":"1.0","commits":2,"fix_commits":1,"commit_times":["2026-01-02T00:00:00Z"]"#;
        let failed = r#","failed_at":"2026-01-01T12:00:00Z""#;
        for (first, second, concluded) in [
            (line("1.0", 1, ""), line("1.1", 2, fix), 1),
            (line("1.0", 1, failed), line("1.1", 2, fix), 0),
            (line("1.0", 1, ""), line("1.1", 5, fix), 0),
            (line("1.0", 1, ""), line("0.9", 2, fix), 0),
            (line("1.0", 1, ""), line("1.1", 2, &fix.replace("2026-01-02", "2026-01-01")), 0),
            (line("1.0", 1, ""), line("1.1", 2, &fix.replace("\"commits\":2", "\"commits\":3")), 0),
        ] {
            let lines = read(&format!("{first}\n\n{second}\n")).unwrap();
            assert_eq!((lines[0].number, lines[1].number), (1, 3));
            assert_eq!(conclude(lines).1, concluded, "{second}");
        }
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named() {
        for (text, number) in [
            ("{}", "1:2: missing field `version`"),
            ("\n{\"version\":\"1\",\"deployed_at\":\"noon\"}", "2:35: "),
            (
                r#"{"version":"1","deployed_at":"2026-01-01T00:00:00Z","revret":1}"#,
                "1:60: unknown field `revret`",
            ),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.starts_with(number) && !said.contains("at line"), "{said}");
        }
    }
}
