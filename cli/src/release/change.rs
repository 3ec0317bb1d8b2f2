//! What a draft says of its change, as options of the command.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use shared::pb::release::{Change, Commit, Reversibility};
use shared::time::{Time, to_proto};

use super::Named;
use crate::error::Error;

/// A draft.
#[derive(Debug, clap::Args)]
pub(crate) struct Draft {
    /// What changes for people
    #[arg(long, value_name = "TEXT")]
    pub(super) notes: Option<String>,
    /// The artifact's digest, `sha256:` and 64 hexadecimal digits
    #[arg(long = "digest", value_name = "DIGEST")]
    pub(super) artifact_digest: Option<String>,
    #[command(flatten)]
    pub(super) change: ChangeArgs,
    #[command(flatten)]
    pub(super) named: Named,
}

/// What is changed, and how it is undone.
#[derive(Debug, Default, clap::Args)]
pub(super) struct ChangeArgs {
    /// File with a commit a line, as `git log --format='%H %ae %cI'` writes them; - for standard input
    #[arg(long, value_name = "FILE")]
    commits: Option<PathBuf>,
    /// Lines added, changed and deleted
    #[arg(long, value_name = "COUNT")]
    lines: Option<i32>,
    /// A component or service that it touches; may be given again
    #[arg(long, value_name = "NAME")]
    touches: Vec<String>,
    /// It changes a database schema
    #[arg(long)]
    schema_migration: bool,
    /// It changes configuration
    #[arg(long)]
    config_change: bool,
    /// How it is undone
    #[arg(long, value_enum, value_name = "HOW")]
    reversibility: Option<Undoing>,
    /// What to do when it fails
    #[arg(long, value_name = "TEXT")]
    rollback_plan: Option<String>,
    /// The change ticket, as an id or a URL
    #[arg(long, value_name = "TICKET")]
    change_ticket: Option<String>,
    /// A work item, as an id or a URL; may be given again
    #[arg(long, value_name = "ITEM")]
    work_item: Vec<String>,
    /// The incident that it follows from, which makes it unplanned
    #[arg(long, value_name = "INCIDENT")]
    incident: Option<String>,
    /// It mends a line of versions that newer lines have passed
    #[arg(long)]
    hotfix_line: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Undoing {
    /// A step of it cannot be undone
    Irreversible,
    /// By deploying the release before it
    Redeploy,
    /// At once, as the release before it runs beside it
    VariantSwitch,
}

impl ChangeArgs {
    /// The change with what was named in place of what was there.
    pub(super) fn fill(self, before: Option<Change>) -> Result<Change, Error> {
        let mut change = before.unwrap_or_default();
        if let Some(file) = &self.commits {
            change.commits = read_commits(file)?;
        }
        if let Some(lines) = self.lines {
            change.changed_lines = lines;
        }
        if !self.touches.is_empty() {
            change.components_touched = self.touches;
        }
        change.has_schema_migration |= self.schema_migration;
        change.has_config_change |= self.config_change;
        if let Some(undoing) = self.reversibility {
            change.set_reversibility(match undoing {
                Undoing::Irreversible => Reversibility::Irreversible,
                Undoing::Redeploy => Reversibility::Redeploy,
                Undoing::VariantSwitch => Reversibility::VariantSwitch,
            });
        }
        if let Some(plan) = self.rollback_plan {
            change.rollback_plan = plan;
        }
        if let Some(ticket) = self.change_ticket {
            change.change_ticket = ticket;
        }
        if !self.work_item.is_empty() {
            change.work_items = self.work_item;
        }
        if let Some(incident) = self.incident {
            change.is_unplanned = true;
            change.incident = incident;
        }
        change.hotfix_line |= self.hotfix_line;
        Ok(change)
    }
}

/// Whether anything is said of it.
pub(super) fn has_change(change: &Change) -> bool {
    *change != Change::default()
}

fn read_commits(file: &Path) -> Result<Vec<Commit>, Error> {
    let unreadable = |error| Error::Unusable(format!("--commits {}: {error}", file.display()));
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map_err(unreadable)?;
    } else {
        text = std::fs::read_to_string(file).map_err(unreadable)?;
    }
    let commits = parse_commits(&text)?;
    if commits.is_empty() {
        // A range that was mistyped would leave out whoever must not vote.
        return Err(Error::Unusable(format!("--commits {}: there are no commits in it", file.display())));
    }
    Ok(commits)
}

fn parse_commits(text: &str) -> Result<Vec<Commit>, Error> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let commits = lines.map(|(number, line)| {
        let bad = |what: &str| Error::Unusable(format!("--commits, line {}: {what}", number + 1));
        let mut words = line.split_whitespace();
        let (Some(sha), Some(author), Some(time), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(bad(
                "must be a hash, an author and a time, as `git log --format='%H %ae %cI'` writes them",
            ));
        };
        let time = chrono::DateTime::parse_from_rfc3339(time)
            .map_err(|_| bad("the time must be in RFC 3339, as %cI writes it"))?;
        let commit_time = Some(to_proto(Time::from(time)));
        Ok(Commit { sha: sha.to_owned(), author: author.to_owned(), commit_time })
    });
    commits.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_are_read_as_git_writes_them() {
        let commits = parse_commits("abc1 ann@example.com 2026-11-23T15:59:59+01:00\n\n").unwrap();
        let [commit] = commits.as_slice() else { panic!("{commits:?}") };
        assert_eq!((commit.sha.as_str(), commit.author.as_str()), ("abc1", "ann@example.com"));
        assert_eq!(commit.commit_time.as_ref().map(|time| time.seconds), Some(1_795_445_999));
    }

    #[test]
    fn a_line_that_is_no_commit_is_named() {
        for (text, told) in [("abc1 ann", "line 1"), ("a b 2026-11-23T15:59:59Z\na b yesterday", "line 2")] {
            let refused = parse_commits(text).unwrap_err().to_string();
            assert!(refused.contains(told), "{refused}");
        }
    }

    #[test]
    fn what_is_not_named_stays() {
        let before = Change { changed_lines: 7, rollback_plan: "redeploy".to_owned(), ..Change::default() };
        let args = ChangeArgs { incident: Some("INC-1".to_owned()), lines: Some(9), ..ChangeArgs::default() };
        let change = args.fill(Some(before)).unwrap();
        assert_eq!((change.changed_lines, change.rollback_plan.as_str()), (9, "redeploy"));
        assert!(change.is_unplanned && has_change(&change) && !has_change(&Change::default()));
    }
}
