//! How a release looks to people: a line of a list, what came of a command, and everything that a voter wants to know.

use console::{Style, style};
use serde_json::Value;
use shared::pb::release::{
    AuditEvent, AuditVerdict, Change, Commit, Evidence, EvidenceOutcome, ListAuditRequest,
    ListEvidenceRequest, Release, ReleaseState, Reversibility, Risk, Vote,
};

use super::explain;
use crate::client::ReleaseClients;
use crate::error::Error;
use crate::output::{self, Output, instant, short};
use crate::term;

/// Commits that are told one by one.
const COMMITS_TOLD: usize = 20;
/// As much of a hash as people read.
const SHA_TOLD: usize = 12;
/// Pieces of evidence that are told.
const EVIDENCE_MAX: i32 = 200;

/// A line for each, or that sentence where there is none.
pub(crate) fn list(releases: &[Release], none: &str) {
    let row = |release: &Release| {
        let for_it = release.votes.iter().filter(|vote| vote.approve).count();
        [
            release.component.clone(),
            release.version.clone(),
            standing(release),
            release.risk.as_ref().map_or_else(|| "-".to_owned(), band),
            format!("{for_it}/{}", release.quorum),
            release.author.clone(),
            instant(release.create_time),
        ]
    };
    let rows: Vec<_> = releases.iter().map(row).collect();
    output::table(["COMPONENT", "VERSION", "STATE", "RISK", "VOTES", "AUTHOR", "CREATED"], &rows, none);
}

/// Where it stands after a command, and what it waits for.
pub(crate) async fn outcome(
    clients: &mut ReleaseClients,
    release: &Release,
    output: Output,
) -> Result<(), Error> {
    if output.json {
        return output::json("tandem.release.v1.Release", release);
    }
    head(release);
    governance(release);
    waits(clients, release).await
}

/// Everything about it that whoever votes on it asks for.
pub(crate) async fn page(
    clients: &mut ReleaseClients,
    release: &Release,
    output: Output,
) -> Result<(), Error> {
    if output.json {
        return output::json("tandem.release.v1.Release", release);
    }
    head(release);
    ending(clients, release).await?;
    written(release);
    evidence(clients, release).await?;
    governance(release);
    waits(clients, release).await
}

fn head(release: &Release) {
    let Release { component, version, author, editors, submitter, snapshot_digest, .. } = release;
    term::say(format_args!("{component} {version}: {}", standing(release)));
    term::say(format_args!("  {} by {author}, {}", release.release_id, instant(release.create_time)));
    tell("edited by", &editors.join(", "));
    if !submitter.is_empty() {
        term::say(format_args!(
            "  revision {} submitted by {submitter}, {}; snapshot {snapshot_digest}",
            release.revision,
            instant(release.submit_time)
        ));
    }
    if let Some(quarantine) = &release.quarantine {
        let when = instant(quarantine.quarantine_time);
        term::say(format_args!("  quarantined by {}, {when}: {}", quarantine.principal, quarantine.reason));
    }
}

/// A line of its own for what there is; what has lines stands below its name.
fn tell(name: &str, text: &str) {
    match text.trim_end() {
        "" => {}
        text if text.contains('\n') => {
            term::say(format_args!("  {name}:"));
            for line in text.lines() {
                term::say(format_args!("    {line}"));
            }
        }
        text => term::say(format_args!("  {name}: {text}")),
    }
}

fn written(release: &Release) {
    tell("notes", &release.notes);
    tell("artifact", &release.artifact_digest);
    let Some(change) = &release.change else { return };
    tell("changes", &size(change).join(", "));
    tell("undone", undone(change));
    tell("rollback plan", &change.rollback_plan);
    tell("change ticket", &change.change_ticket);
    tell("work items", &change.work_items.join(", "));
    if change.is_unplanned {
        let incident = if change.incident.is_empty() { "an incident" } else { &change.incident };
        tell("unplanned, because of", incident);
    }
    if !change.commits.is_empty() {
        tell("commits", &commits(&change.commits));
    }
}

fn size(change: &Change) -> Vec<String> {
    let mut size = Vec::new();
    if change.changed_lines > 0 {
        size.push(format!("{} lines", change.changed_lines));
    }
    size.extend(change.components_touched.clone());
    let parts = [
        (change.has_schema_migration, "a database schema"),
        (change.has_config_change, "configuration"),
        (change.hotfix_line, "an older line of versions"),
    ];
    size.extend(parts.into_iter().filter(|(is_so, _)| *is_so).map(|(_, what)| what.to_owned()));
    size
}

fn undone(change: &Change) -> &'static str {
    match change.reversibility() {
        Reversibility::Unspecified => "",
        Reversibility::Irreversible => "not in every step",
        Reversibility::Redeploy => "by deploying the release before it",
        Reversibility::VariantSwitch => "at once, as the release before it runs beside it",
    }
}

fn commits(commits: &[Commit]) -> String {
    let line = |commit: &Commit| {
        let sha: String = commit.sha.chars().take(SHA_TOLD).collect();
        format!("\n{sha} {} {}", commit.author, instant(commit.commit_time))
    };
    let told: String = commits.iter().take(COMMITS_TOLD).map(line).collect();
    let left = commits.get(COMMITS_TOLD..).unwrap_or_default();
    if left.is_empty() {
        return told.trim_start().to_owned() + "\n";
    }
    let authors: std::collections::BTreeSet<_> = left.iter().map(|commit| commit.author.as_str()).collect();
    format!("{}\nand {} more by {}", told.trim_start(), left.len(), Vec::from_iter(authors).join(", "))
}

/// The last word of each suite on its artifact.
async fn evidence(clients: &mut ReleaseClients, release: &Release) -> Result<(), Error> {
    if release.artifact_digest.is_empty() {
        return Ok(());
    }
    for evidence in counting(clients, release).await? {
        let Evidence { suite, evidence_id, producer, review, .. } = &evidence;
        let kind = short(evidence.kind().as_str_name(), "EVIDENCE_KIND_");
        let what = if suite.is_empty() { kind.to_owned() } else { format!("{kind} of suite {suite}") };
        let outcome = match evidence.outcome() {
            EvidenceOutcome::Passed => style("passed").green(),
            EvidenceOutcome::Failed => style("failed").red(),
            EvidenceOutcome::Unspecified => style("unknown to this version of tandem"),
        };
        let by = review
            .as_ref()
            .map_or_else(|| format!("by {producer}"), |review| format!("by {}", review.reviewer));
        let when = instant(evidence.produce_time);
        term::say(format_args!("  evidence: {what} {outcome}, {by}, {when} ({evidence_id})"));
    }
    Ok(())
}

/// Evidence on its artifact that counts.
async fn counting(clients: &mut ReleaseClients, release: &Release) -> Result<Vec<Evidence>, Error> {
    let request = ListEvidenceRequest {
        component: release.component.clone(),
        artifact_digest: release.artifact_digest.clone(),
        counting_only: true,
        page_size: EVIDENCE_MAX,
        ..ListEvidenceRequest::default()
    };
    Ok(clients.evidence.list_evidence(request).await?.into_inner().evidence)
}

fn governance(release: &Release) {
    let Release { risk, approval, approval_policy, quorum, votes, .. } = release;
    tell("approval policy", approval_policy);
    if let Some(risk) = risk {
        show_risk(risk);
    }
    if let Some(approval) = approval {
        let until = approval.expire_time.map(|time| format!(" until {}", instant(Some(time))));
        term::say(format_args!(
            "  approved ({}) {}{}",
            short(approval.kind().as_str_name(), "APPROVAL_KIND_"),
            instant(approval.approve_time),
            until.unwrap_or_default()
        ));
    }
    if *quorum > 0 || !votes.is_empty() {
        let none = if votes.is_empty() { " none" } else { "" };
        term::say(format_args!("  votes, of {quorum} needed:{none}"));
    }
    for vote in votes {
        let Vote { voter, approve, groups, reason, .. } = vote;
        let said = if *approve { style("for").green() } else { style("against").red() };
        let groups = if groups.is_empty() { "no group".to_owned() } else { groups.join(", ") };
        let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        let when = instant(vote.vote_time);
        term::say(format_args!("    {voter} (of {groups}) {said}, {when}{why}"));
    }
}

/// Why it is as risky as it is, the weightiest first.
pub(super) fn show_risk(risk: &Risk) {
    let advice = if risk.is_binding { "" } else { ", as advice" };
    term::say(format_args!(
        "  risk {}{advice}: likely by {:.0} %, at {:.2} of the worst cost",
        band(risk),
        risk.likelihood * 100.0,
        risk.impact
    ));
    if !risk.floor.is_empty() {
        term::say(format_args!("    not lower, because of {}", risk.floor));
    }
    let mut factors: Vec<_> = risk.factors.iter().filter(|factor| factor.contribution != 0.0).collect();
    factors.sort_by(|a, b| b.contribution.abs().total_cmp(&a.contribution.abs()));
    for factor in factors {
        term::say(format_args!("    {} {:+.2} ({:.2})", factor.name, factor.contribution, factor.value));
    }
}

/// What is still missing of what was handed in. A draft waits for its author, and what ended for nothing.
async fn waits(clients: &mut ReleaseClients, release: &Release) -> Result<(), Error> {
    let is_waiting = match release.state() {
        ReleaseState::Assessing | ReleaseState::PendingApproval => true,
        ReleaseState::Approved | ReleaseState::Active | ReleaseState::Released => release.approval.is_none(),
        ReleaseState::Unspecified
        | ReleaseState::Draft
        | ReleaseState::Rejected
        | ReleaseState::Cancelled
        | ReleaseState::Abandoned
        | ReleaseState::RolledBack
        | ReleaseState::Superseded => false,
    };
    if !is_waiting {
        return Ok(());
    }
    let blockers = explain::ask(clients, &release.release_id, "").await?.blockers;
    if !blockers.is_empty() {
        term::say("  waits, because");
        explain::tell(&blockers, release, "    ");
    }
    Ok(())
}

/// Who ended it, and why: the release does not say, the audit trail does. Of a rejection, the vote says so.
async fn ending(clients: &mut ReleaseClients, release: &Release) -> Result<(), Error> {
    let kind = match release.state() {
        ReleaseState::Cancelled => "release.cancelled",
        ReleaseState::Abandoned => "release.abandoned",
        ReleaseState::RolledBack => "release.rolled_back",
        ReleaseState::Superseded => "release.superseded",
        ReleaseState::Unspecified
        | ReleaseState::Draft
        | ReleaseState::Assessing
        | ReleaseState::PendingApproval
        | ReleaseState::Approved
        | ReleaseState::Active
        | ReleaseState::Released
        | ReleaseState::Rejected => return Ok(()),
    };
    let request = ListAuditRequest {
        subject: release.release_id.clone(),
        kinds: vec![kind.to_owned()],
        verdict: AuditVerdict::Allow.into(),
        page_size: 1,
        ..ListAuditRequest::default()
    };
    let events = clients.audit.list_audit(request).await?.into_inner().events;
    // Where events are deleted after a time, there may be none left.
    let Some(AuditEvent { principal, occur_time, record, .. }) = events.into_iter().next() else {
        return Ok(());
    };
    let record: Value = serde_json::from_str(&record).unwrap_or_default();
    let reason = record["data"]["reason"].as_str();
    let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
    let state = short(release.state().as_str_name(), "RELEASE_STATE_");
    term::say(format_args!("  {state} by {principal}, {}{reason}", instant(occur_time)));
    Ok(())
}

/// State and quarantine, in the colour of what they mean.
pub(super) fn standing(release: &Release) -> String {
    let name = short(release.state().as_str_name(), "RELEASE_STATE_");
    let colour = match release.state() {
        ReleaseState::Approved | ReleaseState::Active | ReleaseState::Released => Style::new().green(),
        ReleaseState::Assessing | ReleaseState::PendingApproval => Style::new().yellow(),
        ReleaseState::Rejected | ReleaseState::RolledBack => Style::new().red(),
        ReleaseState::Draft
        | ReleaseState::Cancelled
        | ReleaseState::Abandoned
        | ReleaseState::Superseded
        | ReleaseState::Unspecified => Style::new(),
    };
    let name = colour.apply_to(name);
    if release.quarantine.is_some() {
        format!("{name} {}", style("QUARANTINED").red())
    } else {
        name.to_string()
    }
}

fn band(risk: &Risk) -> String {
    let name = short(risk.band().as_str_name(), "RISK_BAND_");
    format!("{name} {}", risk.score)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_commits_the_rest_is_told_by_its_authors() {
        let commit = |author: &str| Commit {
            sha: "0123456789abcdef".to_owned(),
            author: author.to_owned(),
            commit_time: None,
        };
        assert_eq!(commits(&[commit("ann")]), "0123456789ab ann -\n");
        let mut many = vec![commit("ann"); COMMITS_TOLD];
        many.extend([commit("cy"), commit("bo"), commit("cy")]);
        let told = commits(&many);
        assert_eq!(told.lines().count(), COMMITS_TOLD + 1);
        assert!(told.ends_with("\nand 3 more by bo, cy"), "{told}");
    }

    #[test]
    fn only_what_a_change_does_is_told() {
        assert!(size(&Change::default()).is_empty());
        let change = Change { changed_lines: 7, has_config_change: true, ..Change::default() };
        assert_eq!(size(&change), ["7 lines", "configuration"]);
    }
}
