//! What people write of a release, as options of the commands that write it.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use shared::pb::release::{Change, Commit, Release, Reversibility};
use shared::time::{Time, to_proto};

use crate::error::Error;

/// What people write of a release.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Written {
    pub(crate) artifact_digest: String,
    pub(crate) notes: String,
    pub(crate) change: Change,
}

/// The same as options. One that is not given leaves what was there.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Text {
    /// What changes for people
    #[arg(long, value_name = "TEXT")]
    notes: Option<String>,
    /// The artifact's digest, `sha256:` and 64 hexadecimal digits
    #[arg(long = "digest", value_name = "DIGEST")]
    artifact_digest: Option<String>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// What is changed, and how it is undone.
#[derive(Debug, Default, clap::Args)]
struct ChangeArgs {
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
    /// The incident that it follows from, which makes it unplanned; '' for none
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

/// What is so no more.
#[derive(Debug, clap::Args)]
pub(crate) struct Unset {
    /// It changes no database schema after all
    #[arg(long, conflicts_with = "schema_migration")]
    no_schema_migration: bool,
    /// It changes no configuration after all
    #[arg(long, conflicts_with = "config_change")]
    no_config_change: bool,
    /// It mends no older line after all
    #[arg(long, conflicts_with = "hotfix_line")]
    no_hotfix_line: bool,
}

impl From<&Release> for Written {
    fn from(release: &Release) -> Self {
        Self {
            artifact_digest: release.artifact_digest.clone(),
            notes: release.notes.clone(),
            change: release.change.clone().unwrap_or_default(),
        }
    }
}

impl Text {
    /// Nothing but notes.
    pub(crate) fn of_notes(notes: &str) -> Self {
        Self { notes: Some(notes.to_owned()), ..Self::default() }
    }

    /// What is written with what was named in place of what was there.
    pub(crate) fn fill(&self, before: Written) -> Result<Written, Error> {
        let Self { notes, artifact_digest, change } = self;
        Ok(Written {
            artifact_digest: artifact_digest.clone().unwrap_or(before.artifact_digest),
            notes: notes.clone().unwrap_or(before.notes),
            change: change.fill(before.change)?,
        })
    }
}

impl ChangeArgs {
    fn fill(&self, mut change: Change) -> Result<Change, Error> {
        let Self { commits, lines, touches, schema_migration, config_change, .. } = self;
        let Self { reversibility, rollback_plan, change_ticket, work_item, incident, hotfix_line, .. } = self;
        if let Some(file) = commits {
            change.commits = read_commits(file)?;
        }
        change.changed_lines = lines.unwrap_or(change.changed_lines);
        replace_all(&mut change.components_touched, touches);
        change.has_schema_migration |= schema_migration;
        change.has_config_change |= config_change;
        if let Some(undoing) = reversibility {
            change.set_reversibility(match undoing {
                Undoing::Irreversible => Reversibility::Irreversible,
                Undoing::Redeploy => Reversibility::Redeploy,
                Undoing::VariantSwitch => Reversibility::VariantSwitch,
            });
        }
        replace(&mut change.rollback_plan, rollback_plan.as_ref());
        replace(&mut change.change_ticket, change_ticket.as_ref());
        replace_all(&mut change.work_items, work_item);
        if let Some(incident) = incident {
            change.is_unplanned = !incident.is_empty();
            change.incident.clone_from(incident);
        }
        change.hotfix_line |= hotfix_line;
        Ok(change)
    }
}

impl Unset {
    /// Takes it back.
    pub(super) fn apply(&self, change: &mut Change) {
        change.has_schema_migration &= !self.no_schema_migration;
        change.has_config_change &= !self.no_config_change;
        change.hotfix_line &= !self.no_hotfix_line;
    }
}

fn replace(text: &mut String, named: Option<&String>) {
    if let Some(named) = named {
        text.clone_from(named);
    }
}

/// A single empty one stands for none.
fn replace_all(texts: &mut Vec<String>, named: &[String]) {
    if !named.is_empty() {
        *texts = named.iter().filter(|name| !name.is_empty()).cloned().collect();
    }
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
    use clap::Parser as _;

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

    #[derive(clap::Parser)]
    struct Edit {
        #[command(flatten)]
        text: Text,
        #[command(flatten)]
        unset: Unset,
    }

    fn edited(options: &[&str], before: &Written) -> Written {
        let Edit { text, unset } = Edit::try_parse_from(["edit"].iter().chain(options)).unwrap();
        let mut written = text.fill(before.clone()).unwrap();
        unset.apply(&mut written.change);
        written
    }

    fn everything() -> Written {
        Written {
            artifact_digest: "sha256:00".to_owned(),
            notes: "new".to_owned(),
            change: Change {
                components_touched: vec!["cart".to_owned()],
                has_schema_migration: true,
                has_config_change: true,
                hotfix_line: true,
                rollback_plan: "redeploy".to_owned(),
                change_ticket: "C-1".to_owned(),
                work_items: vec!["W-1".to_owned()],
                is_unplanned: true,
                incident: "INC-1".to_owned(),
                ..Change::default()
            },
        }
    }

    #[test]
    fn what_is_not_named_stays() {
        let before = everything();
        assert_eq!(edited(&[], &before), before);
        let change = edited(&["--lines", "9", "--work-item", "W-2", "--work-item", "W-3"], &before).change;
        assert_eq!((change.changed_lines, change.work_items.len()), (9, 2));
        assert_eq!((change.change_ticket.as_str(), change.has_config_change), ("C-1", true));
        let change = edited(&["--incident", "INC-1", "--schema-migration"], &Written::default()).change;
        assert!(change.is_unplanned && change.has_schema_migration && !change.has_config_change);
    }

    #[test]
    fn everything_can_be_taken_back() {
        let empty = ["digest", "notes", "touches", "rollback-plan", "change-ticket", "work-item", "incident"];
        let mut options: Vec<_> = empty.iter().map(|name| format!("--{name}=")).collect();
        options
            .extend(["schema-migration", "config-change", "hotfix-line"].map(|name| format!("--no-{name}")));
        let options: Vec<_> = options.iter().map(String::as_str).collect();
        assert_eq!(edited(&options, &everything()), Written::default());
        assert!(Edit::try_parse_from(["edit", "--hotfix-line", "--no-hotfix-line"]).is_err());
    }
}
