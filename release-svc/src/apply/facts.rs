//! The facts that governance goes by, read in the transaction that acts on them.

use chrono::TimeDelta;
use shared::auth::Authenticator;
use shared::id::{ApprovalId, TenantId};
use shared::mutation::Actor;
use shared::status::{Failure, Reason, Refusal};
use shared::time::Time;
use sqlx::PgConnection;

use super::exposure;
use crate::domain::approval::{Owners, Vote};
use crate::domain::blocker::{Blocker, Kind};
use crate::domain::component::{Component, Environment};
use crate::domain::evidence::{self, Evidence, Requirement, Review, Standing};
use crate::domain::identity::is_by;
use crate::domain::policy::Terms;
use crate::domain::release::{Facts, Release};
use crate::domain::risk::{
    self, Band, Calendar, Features, Floors, Impact, Prior, Reversibility, Weights, assess, is_hurried,
};
use crate::domain::snapshot::{Change, People};
use crate::domain::window;
use crate::store;
use crate::store::evidence::Filter;
use crate::store::rollout::Ended;

/// Rollouts of a component's past that are looked at.
const HISTORY_MAX: i64 = 200;
const RECENT_DAYS: i64 = 7;
/// Older deployments weigh less than one in two hundred.
const PRIOR_DAYS: i64 = 720;
/// As much as there may be of a component's artifact.
const EVIDENCE_MAX: i64 = 1000;
/// Events of either sort that the prior is made of; what is older weighs little.
const PRIOR_EVENTS_MAX: i64 = 1000;

/// Which human being each identity is of. A principal without an alias is one of its own, if such a one may call;
/// anybody may name others.
async fn people(
    db: &mut PgConnection,
    tenant: &TenantId,
    authenticator: &Authenticator,
    identities: &[String],
) -> Result<People, Failure> {
    let mut persons = store::identity::persons(db, tenant, identities).await?;
    for (name, person) in &mut persons {
        person.take_if(|person| person == name && !authenticator.admits(name, tenant));
    }
    Ok(People::new(persons))
}

/// What is known of a release's artifact now.
async fn evidence_on(
    db: &mut PgConnection,
    tenant: &TenantId,
    release: &Release,
) -> Result<Vec<Evidence>, Failure> {
    let Some(digest) = &release.artifact_digest else { return Ok(Vec::new()) };
    // All of it: which of a suite is the last one is for the domain to say, once the authors' own are out.
    let filter = Filter {
        component: Some(&release.component),
        artifact_digest: Some(digest),
        kinds: &[],
        counting_only: false,
    };
    let found = store::evidence::list(db, tenant, filter, i64::MAX, EVIDENCE_MAX).await?;
    Ok(found.into_iter().map(|(_, evidence)| evidence).collect())
}

fn reviewer(evidence: &Evidence) -> Option<&str> {
    evidence.review.as_ref().map(Review::reviewer)
}

/// Evidence that is asked for and does not stand, a phrase each.
fn lacking(release: &Release, required: &[Requirement], evidence: &[Evidence]) -> Vec<String> {
    let named = |Requirement { kind, suite }: &Requirement| match suite.as_str() {
        "" => kind.name().to_owned(),
        suite => format!("{} of suite {suite}", kind.name()),
    };
    let Some(digest) = &release.artifact_digest else {
        let none = |required| format!("no {} can stand, as the release names no artifact", named(required));
        return required.iter().map(none).collect();
    };
    let Standing { passed: _, missing, failed } = evidence::standing(digest, required, evidence);
    let missing = missing
        .iter()
        .map(|required| format!("no {} stands on the artifact", named(required)));
    let failed = failed
        .iter()
        .map(|required| format!("{} failed on the artifact", named(required)));
    missing.chain(failed).collect()
}

/// Evidence that an environment asks for beside the policy, and that does not stand.
pub(crate) fn evidence_blockers(release: &Release, facts: &Facts, environment: &Environment) -> Vec<Blocker> {
    let blocker = |lacking| Blocker {
        kind: Kind::Evidence,
        subject: release.id.to_string(),
        description: format!("{lacking}, as {} asks for", environment.name),
        lifted_by: "SubmitEvidence".to_owned(),
        next_open: None,
    };
    let lacking = lacking(release, &environment.requirements.evidence, &facts.evidence);
    lacking.into_iter().map(blocker).collect()
}

/// The human being that a principal is.
pub(crate) async fn person_of(
    db: &mut PgConnection,
    tenant: &TenantId,
    principal: &str,
) -> Result<String, Failure> {
    let persons = store::identity::persons(db, tenant, &[principal.to_owned()]).await?;
    Ok(persons.into_values().flatten().next().unwrap_or_else(|| principal.to_owned()))
}

/// Refuses whoever proposed a change, as principal and person of then, under whatever name; else the confirmer's person.
pub(crate) async fn require_another(
    db: &mut PgConnection,
    tenant: &TenantId,
    [author, then]: [&str; 2],
    confirmer: &str,
) -> Result<String, Failure> {
    let now = person_of(db, tenant, author).await?;
    let person = person_of(db, tenant, confirmer).await?;
    if is_by([author, then, &now], [confirmer, &person]) {
        let text = "whoever proposed a change does not confirm it";
        return Err(Refusal::new(Reason::SodViolation, text).into());
    }
    Ok(person)
}

/// Of these releases, as the facts of now make them, those that wait for votes and that this one would bring nearer to their
/// approval. Nothing of that is written down.
pub(crate) async fn awaiting(
    db: &mut PgConnection,
    actor: &Actor,
    releases: Vec<Release>,
    vote: &Vote,
    approval_id: ApprovalId,
    authenticator: &Authenticator,
) -> Result<Vec<Release>, Failure> {
    let mut awaiting = Vec::new();
    for found in releases {
        let terms = found.terms();
        if Band::ALL.iter().all(|band| terms.rule(*band).quorum == 0) {
            continue;
        }
        let component = store::component::find(db, &actor.tenant, &found.component).await?;
        let component = component.ok_or_else(|| {
            Failure::Bug(format!("component {} of a release is not there", found.component))
        })?;
        let facts = facts(db, actor, &component, &found, &terms, approval_id, authenticator).await?;
        let decisions = found.clone().reassess(&facts);
        let seen = decisions.into_iter().next_back().map_or(found, |decision| decision.release);
        if seen.would_count(vote, &facts) {
            awaiting.push(seen);
        }
    }
    Ok(awaiting)
}

/// What is so now of a release that is, or is about to be, submitted under these terms.
pub(crate) async fn facts(
    db: &mut PgConnection,
    actor: &Actor,
    component: &Component,
    release: &Release,
    terms: &Terms,
    approval_id: ApprovalId,
    authenticator: &Authenticator,
) -> Result<Facts, Failure> {
    let (tenant, now) = (&actor.tenant, actor.now);
    let submitter = release
        .state
        .submission()
        .map_or(actor.principal.as_str(), |of| of.submitter.as_str());
    let mut evidence = evidence_on(db, tenant, release).await?;
    let authors = release.identities(submitter);
    let voters = release.votes.iter().map(|vote| vote.voter.as_str());
    let others = voters.chain(evidence.iter().filter_map(reviewer)).map(str::to_owned);
    let caller = actor.principal.clone();
    let names: Vec<_> = authors.iter().cloned().chain(others).chain([caller]).collect();
    let people = people(db, tenant, authenticator, &names).await?;
    // A review by one of the release's authors, under whatever name, counts for nothing.
    let is_author = |reviewer: &str| {
        let person = people.person(reviewer);
        person.is_none() || authors.iter().any(|author| people.person(author) == person)
    };
    evidence.retain(|evidence| !reviewer(evidence).is_some_and(is_author));
    let history = store::rollout::list_ended(db, tenant, &component.name, HISTORY_MAX).await?;
    let asked = &terms.rules.required_evidence;
    let lacking_evidence = lacking(release, asked, &evidence);
    let digest = release.artifact_digest.as_ref();
    let is_rehearsed = digest.is_some_and(|digest| evidence::is_rehearsed(digest, &evidence, now));
    let risk_facts = risk::Facts {
        suites_required: count(asked.len()),
        suites_passed: count(asked.len() - lacking_evidence.len()),
        is_rehearsed,
        ..risk_facts(release, &history, now)
    };
    let windows = store::window::list_live(db, tenant, now).await?;
    let target = exposure::target(Some(component), None, Some(release.id));
    let calendar = if window::is_peak(&windows, now, &target) { Calendar::Peak } else { Calendar::Normal };
    let production = store::insight::production(db, tenant).await?;
    let since = now - TimeDelta::days(PRIOR_DAYS);
    let (past, _) =
        store::insight::history(db, tenant, &component.name, &production, since, PRIOR_EVENTS_MAX).await?;
    let reversibility = release.change.reversibility;
    let assessment = assess(
        Prior::of(&past.outcomes(), now),
        &Features::of(&risk_facts),
        Impact { tier: component.tier, calendar, reversibility },
        &Weights::of_version(terms.rules.weights_version).unwrap_or_default(),
        terms.rules.score_bands(),
        &Floors {
            has_irreversible_step: reversibility == Reversibility::Irreversible,
            data_scopes: component.data_scopes.clone(),
        },
    );
    let owners = Owners {
        groups: component.owner_groups.clone(),
        business_groups: component.business_owner_groups.clone(),
    };
    Ok(Facts { now, assessment, evidence, lacking_evidence, people, owners, approval_id })
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// What the change and the past of its component say.
fn risk_facts(release: &Release, history: &[Ended], now: Time) -> risk::Facts {
    let change = &release.change;
    let is_by_author = |ended: &&Ended| !ended.is_rolled_back && ended.author == release.author;
    let is_recent = |ended: &&Ended| ended.is_rolled_back && (now - ended.at).num_days() < RECENT_DAYS;
    let earlier: Vec<_> = history
        .iter()
        .filter_map(|ended| Some(ended.at - began_at(&serde_json::from_str(&ended.change).ok()?)?))
        .collect();
    risk::Facts {
        changed_lines: change.changed_lines,
        services_touched: count(change.components_touched.len()),
        author_deployments: count(history.iter().filter(is_by_author).count()),
        has_schema_migration: change.has_schema_migration,
        has_config_change: change.touches_config,
        recent_incidents: count(history.iter().filter(is_recent).count()),
        is_hurried: began_at(change).is_some_and(|began| is_hurried(now - began, &earlier)),
        ..risk::Facts::default()
    }
}

/// When the first commit of a change was made.
fn began_at(change: &Change) -> Option<Time> {
    change.commits.iter().map(|commit| commit.at).min()
}
