//! The facts that governance goes by, read in the transaction that acts on them.

use std::collections::HashMap;

use shared::id::{ApprovalId, TenantId};
use shared::mutation::Actor;
use shared::status::Failure;
use shared::time::Time;
use sqlx::PgConnection;

use crate::domain::approval::Owners;
use crate::domain::component::{Component, Tier};
use crate::domain::policy::Terms;
use crate::domain::release::{Facts, Release};
use crate::domain::risk::{
    self, Calendar, Features, Floors, Impact, Prior, Reversibility, Weights, assess, is_hurried,
};
use crate::domain::snapshot::{Change, People};
use crate::store;
use crate::store::rollout::Ended;

/// What a component has in common with its present and its past.
const HISTORY_MAX: i64 = 200;
const RECENT_DAYS: i64 = 7;

/// Which human being each identity is of. A principal without an alias is one of its own.
#[expect(clippy::unused_async, reason = "identity aliases are read here as soon as the catalogue has them")]
async fn people(
    _db: &mut PgConnection,
    _tenant: &TenantId,
    identities: &[String],
) -> Result<People, Failure> {
    let person = |identity: &String| identity.contains('|').then(|| identity.clone());
    let people: HashMap<_, _> =
        identities.iter().map(|identity| (identity.clone(), person(identity))).collect();
    Ok(People::new(people))
}

/// The human being that a principal is.
pub(crate) async fn person_of(
    db: &mut PgConnection,
    tenant: &TenantId,
    principal: &str,
) -> Result<String, Failure> {
    let people = people(db, tenant, &[principal.to_owned()]).await?;
    Ok(people.person(principal).unwrap_or(principal).to_owned())
}

/// What is so now of a release that is, or is about to be, submitted under these terms.
pub(crate) async fn facts(
    db: &mut PgConnection,
    actor: &Actor,
    component: &Component,
    release: &Release,
    terms: &Terms,
    approval_id: ApprovalId,
) -> Result<Facts, Failure> {
    let (tenant, now) = (&actor.tenant, actor.now);
    let submitter = release
        .state
        .submission()
        .map_or(actor.principal.as_str(), |of| of.submitter.as_str());
    let people = people(db, tenant, &release.identities(submitter)).await?;
    let history = store::rollout::list_ended(db, tenant, &component.name, HISTORY_MAX).await?;
    let lacking_evidence: Vec<_> = terms.rules.required_evidence.iter().map(lacking).collect();
    let suites = u32::try_from(terms.rules.required_evidence.len()).unwrap_or(u32::MAX);
    let risk_facts = risk_facts(release, &history, suites, suites, now);
    let deployments: Vec<_> = history
        .iter()
        .filter(|ended| !ended.is_rolled_back)
        .map(|ended| (ended.at, false))
        .collect();
    let reversibility = release.change.reversibility;
    let assessment = assess(
        Prior::of(&deployments, now),
        &Features::of(&risk_facts),
        Impact { tier: Tier::Two, calendar: Calendar::Normal, reversibility },
        &Weights::of_version(terms.rules.weights_version).unwrap_or_default(),
        terms.rules.score_bands(),
        &Floors {
            has_irreversible_step: reversibility == Reversibility::Irreversible,
            data_scopes: Vec::new(),
        },
    );
    let owners = Owners { groups: component.owner_groups.clone(), business_groups: Vec::new() };
    Ok(Facts { now, assessment, lacking_evidence, people, owners, approval_id })
}

/// That evidence which is asked for does not stand.
fn lacking(required: &crate::domain::policy::Requirement) -> String {
    let suite =
        if required.suite.is_empty() { String::new() } else { format!(" of suite {}", required.suite) };
    format!("no {}{suite} stands on the artifact, as its policy asks for", required.kind)
}

fn risk_facts(release: &Release, history: &[Ended], required: u32, lacking: u32, now: Time) -> risk::Facts {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
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
        suites_required: required,
        suites_passed: required - lacking,
        is_rehearsed: false,
    }
}

/// When the first commit of a change was made.
fn began_at(change: &Change) -> Option<Time> {
    change.commits.iter().map(|commit| commit.at).min()
}
