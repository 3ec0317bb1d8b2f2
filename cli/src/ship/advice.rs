//! What a release waits for that was shipped, and the commands that bring it on: evidence and whom committers are, then
//! votes, then the same command again. Who votes and for which group is an example where the rules leave it open.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use release_svc::domain::identity::{Alias, is_principal};
use serde_json::{Value, json};
use shared::pb::release::{
    ApprovalRules, Component, EvidenceOutcome, EvidenceRequirement, GetApprovalPolicyRequest,
    GetComponentRequest, GetEnvironmentRequest, ListIdentityAliasesRequest, Release,
};

use crate::client::ReleaseClients;
use crate::error::Error;
use crate::release::{explain, show};
use crate::term;
use crate::up::hints::Shell;

/// Aliases of one page.
const ALIASES_MAX: i32 = 1000;
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
    let blockers = explain::ask(clients, release, environment).await?.blockers;
    term::say(format_args!("{} {} waits, because", release.component, release.version));
    explain::tell(&blockers, release, "  ");
    let rules = rules(clients, release).await?;
    let is_held_by = |kind: &str| blockers.iter().any(|blocker| blocker.r#type == kind);
    if is_held_by("EVIDENCE") {
        term::say("as soon as they are true, hand in as evidence:");
        for body in missing_evidence(clients, release, environment, &rules).await? {
            let method = "tandem.release.v1.EvidenceService/SubmitEvidence";
            term::say(format_args!("  {}", shell.call(address, method, &body.to_string())));
        }
    }
    let strangers = strangers(clients, release).await?;
    if !strangers.is_empty() {
        term::say("say who committed, such as:");
    }
    for alias in strangers {
        let person = principal(release, alias.split('@').next().unwrap_or_default());
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

/// Names of committers that are nobody's. While there are any, nobody votes.
async fn strangers(clients: &mut ReleaseClients, release: &Release) -> Result<BTreeSet<String>, Error> {
    let commits = release.change.iter().flat_map(|change| &change.commits);
    let names = commits.map(|commit| commit.author.as_str()).filter(|name| !is_principal(name));
    let mut strangers: BTreeSet<_> = names.map(Alias::folded).collect();
    let mut page_token = String::new();
    while !strangers.is_empty() {
        let request =
            ListIdentityAliasesRequest { person: String::new(), page_size: ALIASES_MAX, page_token };
        let page = clients.catalog.list_identity_aliases(request).await?.into_inner();
        for known in &page.identity_aliases {
            strangers.remove(&known.alias);
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    Ok(strangers)
}

/// A `SubmitEvidenceRequest` for all that policy and environment ask for and that does not stand.
async fn missing_evidence(
    clients: &mut ReleaseClients,
    release: &Release,
    environment: &str,
    rules: &ApprovalRules,
) -> Result<Vec<Value>, Error> {
    let request = GetEnvironmentRequest { environment: environment.to_owned() };
    let environment = clients.catalog.get_environment(request).await?.into_inner().environment;
    let requirements = environment.and_then(|environment| environment.requirements);
    let mut required = requirements.unwrap_or_default().required_evidence;
    required.extend(rules.required_evidence.iter().cloned());
    let standing = show::counting(clients, release).await?;
    required.retain(|EvidenceRequirement { kind, suite }| {
        !standing.iter().any(|evidence| {
            evidence.outcome() == EvidenceOutcome::Passed
                && evidence.kind().as_str_name().ends_with(kind)
                && (suite.is_empty() || *suite == evidence.suite)
        })
    });
    Ok(required.iter().map(|required| evidence(release, required)).collect())
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
}
