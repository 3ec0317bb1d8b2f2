//! What a release waits for that was shipped, and the commands that bring it on: evidence and whom committers are, then
//! votes, then the same command again. Who votes and for which group is an example where the rules leave it open.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use release_svc::domain::release::UNKNOWN_COMMITTERS;
use serde_json::{Value, json};
use shared::pb::release::{
    ApprovalRules, Blocker, Component, EvidenceRequirement, GetApprovalPolicyRequest, GetComponentRequest,
    GetEnvironmentRequest, Release,
};

use crate::client::ReleaseClients;
use crate::error::Error;
use crate::release::explain;
use crate::term;
use crate::up::hints::Shell;

/// People that examples name.
const PEOPLE: [&str; 5] = ["alice", "bob", "carol", "dave", "erin"];
/// Groups that examples name.
const GROUPS: [&str; 5] = ["dev", "ops", "qa", "support", "security"];

/// Says what keeps it from the environment, and what to run.
pub(super) async fn tell(
    clients: &mut ReleaseClients,
    release: &Release,
    environment: &str,
    shell: &Shell,
    address: SocketAddr,
) -> Result<(), Error> {
    let blockers = explain::ask(clients, &release.release_id, environment).await?.blockers;
    term::say(format_args!("{} {} waits, because", release.component, release.version));
    explain::tell(&blockers, release, "  ");
    let rules = rules(clients, release).await?;
    let is_held_by = |kind: &str| blockers.iter().any(|blocker| blocker.r#type == kind);
    if is_held_by("EVIDENCE") {
        term::say("as soon as they are true, hand in as evidence:");
        for body in missing_evidence(clients, release, environment, &rules, &blockers).await? {
            let method = "tandem.release.v1.EvidenceService/SubmitEvidence";
            term::say(format_args!("  {}", shell.call(address, method, &body.to_string())));
        }
    }
    let strangers = strangers(&blockers);
    if !strangers.is_empty() {
        term::say("say who committed, such as:");
    }
    for alias in strangers {
        let person = likely(release, alias);
        let body = json!({ "identityAlias": { "alias": alias, "person": person } });
        let method = "tandem.release.v1.CatalogService/SetIdentityAlias";
        term::say(format_args!("  {}", shell.call(address, method, &body.to_string())));
    }
    if is_held_by("APPROVAL") {
        term::say("people who did not write it approve it, such as:");
        let request = GetComponentRequest { component: release.component.clone() };
        let component = clients.catalog.get_component(request).await?.into_inner().component;
        for (sub, group) in missing_votes(release, &rules, &component.unwrap_or_default()) {
            term::say(format_args!("  {}", shell.approve(release, sub, group.as_deref())));
        }
    }
    term::say("then run this command again");
    Ok(())
}

/// What its policy asked for when it was handed in.
async fn rules(clients: &mut ReleaseClients, release: &Release) -> Result<ApprovalRules, Error> {
    let (approval_policy, version) = (release.approval_policy.clone(), release.approval_policy_version);
    let request = GetApprovalPolicyRequest { approval_policy, version };
    let policy = clients.catalog.get_approval_policy(request).await?.into_inner().approval_policy;
    Ok(policy.and_then(|policy| policy.rules).unwrap_or_default())
}

/// Committers whom the service says that nobody knows. While there are any, nobody votes.
fn strangers(blockers: &[Blocker]) -> BTreeSet<&str> {
    let named = blockers
        .iter()
        .filter_map(|blocker| blocker.description.strip_prefix(UNKNOWN_COMMITTERS));
    named.flat_map(|names| names.split(", ")).collect()
}

/// Whom a stranger may be: the issuer that the author is of knows people by such names.
fn likely(release: &Release, stranger: &str) -> String {
    let sub = stranger.rsplit('|').next().unwrap_or_default();
    principal(release, sub.split('@').next().unwrap_or_default())
}

/// A `SubmitEvidenceRequest` for all that policy and environment ask for and that the service says does not stand.
async fn missing_evidence(
    clients: &mut ReleaseClients,
    release: &Release,
    environment: &str,
    rules: &ApprovalRules,
    blockers: &[Blocker],
) -> Result<Vec<Value>, Error> {
    let request = GetEnvironmentRequest { environment: environment.to_owned() };
    let environment = clients.catalog.get_environment(request).await?.into_inner().environment;
    let requirements = environment.and_then(|environment| environment.requirements);
    let mut required = Vec::new();
    for asked in rules
        .required_evidence
        .iter()
        .chain(&requirements.unwrap_or_default().required_evidence)
    {
        if !required.contains(asked) && is_missing(asked, blockers) {
            required.push(asked.clone());
        }
    }
    Ok(required.iter().map(|required| evidence(release, required)).collect())
}

/// Whether a blocker is about this piece of evidence.
fn is_missing(EvidenceRequirement { kind, suite }: &EvidenceRequirement, blockers: &[Blocker]) -> bool {
    let named = if suite.is_empty() { kind.clone() } else { format!("{kind} of suite {suite}") };
    blockers.iter().filter(|blocker| blocker.r#type == "EVIDENCE").any(|blocker| {
        let text = blocker.description.as_str();
        let said = text.strip_prefix("no ").unwrap_or(text).strip_prefix(&named);
        said.is_some_and(|said| {
            [" stands ", " failed ", " can stand"].iter().any(|verb| said.starts_with(verb))
        })
    })
}

fn evidence(release: &Release, EvidenceRequirement { kind, suite }: &EvidenceRequirement) -> Value {
    let mut evidence = json!({
        "component": release.component,
        "artifactDigest": release.artifact_digest,
        "kind": format!("EVIDENCE_KIND_{kind}"),
        "outcome": "EVIDENCE_OUTCOME_PASSED",
    });
    let suite = match (suite.as_str(), kind.as_str()) {
        ("", "TEST_REPORT") => "unit",
        ("", "SCAN") => "vulnerabilities",
        (suite, _) => suite,
    };
    if !suite.is_empty() {
        evidence["suite"] = suite.into();
    }
    if kind == "REVIEW" {
        let reviewers = PEOPLE.into_iter().map(|sub| principal(release, sub));
        let reviewer = reviewers.into_iter().find(|reviewer| !is_author(release, reviewer));
        evidence["review"] = json!({ "reviewer": reviewer, "authors": [release.author] });
    }
    json!({ "evidence": evidence })
}

/// Votes that are missing, each with the group that it has to stand for.
fn missing_votes(
    release: &Release,
    rules: &ApprovalRules,
    component: &Component,
) -> Vec<(&'static str, Option<String>)> {
    let band = release.risk.as_ref().filter(|_| rules.risk_binding).map(|risk| risk.band - 1);
    let band = usize::try_from(band.unwrap_or_default()).unwrap_or_default();
    let rule = rules.bands.get(band).copied().unwrap_or_default();
    let given: Vec<_> = release.votes.iter().filter(|vote| vote.approve).collect();
    let stood_for: Vec<_> = given.iter().flat_map(|vote| &vote.groups).map(String::as_str).collect();
    let owners = [
        (rule.needs_owner, &component.owner_groups),
        (rule.needs_business_owner, &component.business_owner_groups),
    ];
    let is_missing = |(is_needed, groups): &(bool, &Vec<String>)| {
        *is_needed && !groups.iter().any(|group| stood_for.contains(&group.as_str()))
    };
    let mut groups: Vec<_> = owners
        .into_iter()
        .filter(is_missing)
        .filter_map(|(_, all)| all.first())
        .cloned()
        .collect();
    // Votes may be enough by number, and still lack a group.
    let lacking = usize::try_from(release.quorum).unwrap_or_default().saturating_sub(given.len());
    let lacking = lacking.max(groups.len()).max(1);
    if rule.distinct_groups > 0 {
        groups.extend(GROUPS.into_iter().filter(|group| !stood_for.contains(group)).map(str::to_owned));
    }
    let mut groups = groups.into_iter();
    let may_vote = |sub: &&str| {
        let person = principal(release, sub);
        !is_author(release, &person) && !release.votes.iter().any(|vote| vote.voter == person)
    };
    let voters = PEOPLE.into_iter().filter(may_vote).take(lacking);
    voters.map(|sub| (sub, groups.next())).collect()
}

/// Somebody of the issuer that its author is of.
fn principal(release: &Release, sub: &str) -> String {
    let issuer = release.author.split_once('|').map_or("", |(issuer, _)| issuer);
    format!("{issuer}|{sub}")
}

fn is_author(release: &Release, person: &str) -> bool {
    let Release { author, submitter, editors, .. } = release;
    author == person || submitter == person || editors.iter().any(|editor| editor == person)
}

#[cfg(test)]
mod tests {
    use shared::pb::release::{BandRule, Vote};

    use super::*;

    fn release(quorum: i32, votes: &[(&str, &str)]) -> Release {
        let vote = |(voter, group): &(&str, &str)| Vote {
            voter: format!("tandem-local|{voter}"),
            approve: true,
            groups: vec![(*group).to_owned()],
            ..Vote::default()
        };
        let author = "tandem-local|bob".to_owned();
        Release { author, quorum, votes: votes.iter().map(vote).collect(), ..Release::default() }
    }

    #[test]
    fn votes_are_asked_of_others_and_for_groups_that_nobody_stands_for_yet() {
        let component = Component {
            owner_groups: vec!["payments".to_owned()],
            business_owner_groups: vec!["finance".to_owned()],
            ..Component::default()
        };
        let asked = |rule: BandRule, release: &Release| {
            let rules = ApprovalRules { bands: vec![rule], ..ApprovalRules::default() };
            let votes = missing_votes(release, &rules, &component).into_iter();
            votes
                .map(|(sub, group)| format!("{sub} {}", group.unwrap_or_default()))
                .collect::<Vec<_>>()
        };
        assert_eq!(asked(BandRule::default(), &release(1, &[])), ["alice "]);
        let groups = BandRule { distinct_groups: 2, ..BandRule::default() };
        assert_eq!(asked(groups, &release(2, &[])), ["alice dev", "carol ops"]);
        assert_eq!(asked(groups, &release(2, &[("alice", "dev"), ("carol", "dev")])), ["dave ops"]);
        let owners = BandRule { needs_owner: true, needs_business_owner: true, ..BandRule::default() };
        assert_eq!(asked(owners, &release(3, &[])), ["alice payments", "carol finance", "dave "]);
        assert_eq!(asked(owners, &release(3, &[("alice", "payments")])), ["carol finance", "dave "]);
    }

    #[test]
    fn a_review_is_of_somebody_else() {
        let required = EvidenceRequirement { kind: "REVIEW".to_owned(), suite: String::new() };
        let asked = evidence(&release(1, &[]), &required);
        assert_eq!(asked["evidence"]["review"]["reviewer"], "tandem-local|alice");
        assert_eq!(asked["evidence"]["review"]["authors"][0], "tandem-local|bob");
        assert_eq!(asked["evidence"]["suite"], Value::Null);
    }

    fn blocker(kind: &str, description: &str) -> Blocker {
        Blocker { r#type: kind.to_owned(), description: description.to_owned(), ..Blocker::default() }
    }

    #[test]
    fn strangers_are_those_whom_the_service_names_whatever_issuer_they_are_of() {
        let text = format!("{UNKNOWN_COMMITTERS}https://old.example|ada, bob@example.com");
        let blockers = [blocker("APPROVAL", "0 of 2 people approved it"), blocker("APPROVAL", &text)];
        let strangers = Vec::from_iter(strangers(&blockers));
        assert_eq!(strangers, ["bob@example.com", "https://old.example|ada"]);
        let likely: Vec<_> = strangers.iter().map(|name| likely(&release(1, &[]), name)).collect();
        assert_eq!(likely, ["tandem-local|bob", "tandem-local|ada"]);
    }

    #[test]
    fn evidence_is_missing_where_the_service_says_so() {
        let required =
            |kind: &str, suite: &str| EvidenceRequirement { kind: kind.to_owned(), suite: suite.to_owned() };
        for (text, kind, suite, expected) in [
            ("no SCAN stands on the artifact", "SCAN", "", true),
            ("no SCAN stands on the artifact, as production asks for", "SCAN", "", true),
            ("no SCAN of suite sast stands on the artifact", "SCAN", "", false),
            ("no SCAN of suite sast stands on the artifact", "SCAN", "sast", true),
            ("TEST_REPORT of suite unit failed on the artifact", "TEST_REPORT", "unit", true),
            ("TEST_REPORT of suite units failed on the artifact", "TEST_REPORT", "unit", false),
            ("no REVIEW can stand, as the release names no artifact", "REVIEW", "", true),
        ] {
            assert_eq!(is_missing(&required(kind, suite), &[blocker("EVIDENCE", text)]), expected, "{text}");
        }
        assert!(!is_missing(&required("SCAN", ""), &[blocker("STATE", "no SCAN stands on the artifact")]));
    }
}
