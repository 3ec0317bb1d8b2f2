//! `tandem release explain`: what keeps a release, in sentences, each with who or what lifts it.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use shared::pb::release::{
    Blocker, ExplainReleaseRequest, ExplainReleaseResponse, Release, ReleaseState, Vote,
};

use super::show::{show_risk, standing};
use super::{Named, find};
use crate::client::ReleaseClients;
use crate::error::Error;
use crate::output::{self, instant};
use crate::term;

/// Says what keeps the release from the environment, or, where that is empty, the release alone.
pub(super) async fn run(named: &Named, environment: &str) -> Result<(), Error> {
    let mut clients = named.common.clients(false)?;
    let release = find(&mut clients, named).await?;
    let answer = ask(&mut clients, &release.release_id, environment).await?;
    if named.common.output.json {
        return output::json("tandem.release.v1.ExplainReleaseResponse", &answer);
    }
    let ExplainReleaseResponse { release, risk, blockers } = answer;
    let release = release.unwrap_or_default();
    let to = if environment.is_empty() { String::new() } else { format!(" to {environment}") };
    let what = format!("{} {} ({})", release.component, release.version, standing(&release));
    if blockers.is_empty() && environment.is_empty() {
        term::say(format_args!(
            "{what}: nothing keeps the release itself. With --environment windows, a stopped line, dependencies and other \
             rollouts are looked at, too."
        ));
    } else if blockers.is_empty() {
        term::say(format_args!("{what}: nothing keeps it from going{to}."));
    } else {
        term::say(format_args!("{what} cannot go{to} yet:"));
    }
    tell(&blockers, &release, "  ");
    if let Some(risk) = &risk {
        show_risk(risk);
    }
    Ok(())
}

/// Everything that keeps it.
pub(crate) async fn ask(
    clients: &mut ReleaseClients,
    release_id: &str,
    environment: &str,
) -> Result<ExplainReleaseResponse, Error> {
    let (release_id, environment) = (release_id.to_owned(), environment.to_owned());
    let request = ExplainReleaseRequest { release_id, environment };
    Ok(clients.releases.explain_release(request).await?.into_inner())
}

/// A sentence or two for each, and, where votes are short of something, whom there are votes from. That a release waits needs
/// no word beside what it waits for.
pub(crate) fn tell(blockers: &[Blocker], release: &Release, indent: &str) {
    let is_waiting = matches!(release.state(), ReleaseState::Assessing | ReleaseState::PendingApproval);
    let is_state =
        |blocker: &Blocker| is_waiting && blocker.r#type == "STATE" && blocker.subject == release.release_id;
    let is_all = blockers.iter().all(is_state);
    for blocker in blockers.iter().filter(|blocker| is_all || !is_state(blocker)) {
        term::say(format_args!("{indent}{}", sentence(blocker, &release.release_id)));
    }
    let is_short_of_votes = blockers.iter().any(|blocker| blocker.r#type == "APPROVAL");
    if let Some(text) = given(&release.votes).filter(|_| is_short_of_votes) {
        term::say(format_args!("{indent}{text}"));
    }
}

/// Groups that those who approved stand for already; another vote is to be of another one.
fn given(votes: &[Vote]) -> Option<String> {
    let groups: BTreeSet<_> = votes
        .iter()
        .filter(|vote| vote.approve)
        .flat_map(|vote| &vote.groups)
        .map(String::as_str)
        .collect();
    let groups = Vec::from_iter(groups).join(", ");
    match (votes.iter().any(|vote| vote.approve), groups.as_str()) {
        (false, _) => None,
        (true, "") => Some("Those who approved it are in no group.".to_owned()),
        (true, groups) => Some(format!("Those who approved it are of {groups}.")),
    }
}

/// Rpcs by the commands that call them.
const COMMANDS: [(&str, &str); 3] = [
    ("SkipStep", "`tandem rollout skip`"),
    ("ResumeRollout", "`tandem rollout resume`"),
    ("LiftHold", "`tandem rollout lift`"),
];

fn by_command(text: &str) -> String {
    COMMANDS
        .iter()
        .fold(text.to_owned(), |text, (rpc, command)| text.replace(rpc, command))
}

/// Names what it is about, unless that is what is asked about itself.
pub(crate) fn sentence(blocker: &Blocker, about_id: &str) -> String {
    let Blocker { r#type: kind, subject, description, lifted_by, next_open_time } = blocker;
    let about = if subject == about_id { String::new() } else { format!(" {subject}") };
    let mut text = format!("{kind}{about}: {description}.");
    if !lifted_by.is_empty() {
        let _ = write!(text, " Lifted by {}.", by_command(lifted_by));
    }
    if next_open_time.is_some() {
        let _ = write!(text, " Opens {}.", instant(*next_open_time));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocker_is_told_in_sentences() {
        let blocker = Blocker {
            r#type: "WINDOW".to_owned(),
            subject: "peak".to_owned(),
            description: "the line is frozen for the peak".to_owned(),
            lifted_by: "whoever has scope window.override".to_owned(),
            next_open_time: Some(prost_types::Timestamp { seconds: 1_795_445_999, nanos: 0 }),
        };
        assert_eq!(
            sentence(&blocker, "rel_1"),
            "WINDOW peak: the line is frozen for the peak. Lifted by whoever has scope window.override. Opens \
             2026-11-23 14:59Z."
        );
        assert!(sentence(&blocker, "peak").starts_with("WINDOW: the line"));
    }

    #[test]
    fn votes_are_told_by_the_groups_that_they_stand_for() {
        let vote = |approve, groups: &[&str]| Vote {
            approve,
            groups: groups.iter().map(ToString::to_string).collect(),
            ..Vote::default()
        };
        assert_eq!(given(&[vote(false, &["ops"])]), None);
        assert_eq!(given(&[vote(true, &[])]).as_deref(), Some("Those who approved it are in no group."));
        let votes = [vote(true, &["ops"]), vote(true, &["dev", "ops"]), vote(false, &["qa"])];
        assert_eq!(given(&votes).as_deref(), Some("Those who approved it are of dev, ops."));
    }
}
