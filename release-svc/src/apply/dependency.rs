//! What components need of each other, held against what environments serve, under the locks that keep it true: whoever
//! exposes more of a component holds its row and the rows of all that it needs, so that neither they move nor does
//! anybody begin to depend on it meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use shared::id::{ComponentId, EnvironmentId, RolloutId, TenantId};
use shared::mutation::Actor;
use shared::secret::Entropy;
use shared::status::{Failure, Reason, Refusal};
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use super::rollout::back_under_way;
use super::{if_readable, is_unreadable};
use crate::domain::blocker::{Blocker, Kind};
use crate::domain::component::Environment;
use crate::domain::dependency::{self, Cascade, Edge, Serving, Unmet};
use crate::domain::release::Release;
use crate::domain::rollout::{Rollout, ServedRelease, State};
use crate::domain::version::Version;
use crate::store;
use crate::store::dependency::EDGES_MAX;

/// How often a rollback looks for dependants that were started while it waited for locks.
const LOCKING_ROUNDS: usize = 5;

/// Components whose rows this transaction has locked.
pub(crate) struct Locked(Vec<ComponentId>);

/// Locks the component of a release or rollout and what it needs. First thing, as rows of components come first.
pub(crate) async fn lock_needed(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: Uuid,
) -> Result<Locked, Failure> {
    Ok(Locked(store::dependency::lock_needed(db, tenant, id).await?))
}

fn named(edges: &[Edge]) -> Vec<String> {
    let names = edges.iter().flat_map(|edge| [&edge.component, &edge.needs.on]);
    let names: BTreeSet<_> = names.map(ToString::to_string).collect();
    names.into_iter().collect()
}

async fn serving(
    db: &mut PgConnection,
    tenant: &TenantId,
    edges: &[Edge],
    environment: &EnvironmentId,
) -> sqlx::Result<Serving> {
    if edges.is_empty() {
        return Ok(Serving::new());
    }
    let served = store::dependency::serving(db, tenant, &named(edges), Some(environment)).await?;
    Ok(served.into_values().next().unwrap_or_default())
}

/// Dependencies that keep more visits of an environment from this version of a component. Without locks they may change
/// meanwhile.
pub(crate) async fn blockers(
    db: &mut PgConnection,
    tenant: &TenantId,
    locked: Option<&Locked>,
    (component, version): (&ComponentId, &Version),
    environment: &EnvironmentId,
) -> Result<Vec<Blocker>, Failure> {
    let edges = store::dependency::list_beside(db, tenant, &[component.to_string()], EDGES_MAX).await?;
    let mut needed = edges.iter().filter(|edge| edge.component == *component);
    if locked.is_some_and(|locked| needed.any(|edge| !locked.0.contains(&edge.needs.on))) {
        let text = "what the component needs has just changed; try again";
        return Err(Refusal::new(Reason::ConcurrentChange, text).into());
    }
    let serving = serving(db, tenant, &edges, environment).await?;
    let unmet = dependency::hold(component, version, &edges, environment, &serving);
    let blockers = unmet.into_iter().map(|unmet| Blocker {
        kind: Kind::Dependency,
        subject: if unmet.component == *component {
            unmet.on.to_string()
        } else {
            unmet.component.to_string()
        },
        description: format!("{unmet} in {environment}"),
        lifted_by: "a release that fits both, rolled out there first; PlanRollouts gives the order"
            .to_owned(),
        next_open: None,
    });
    Ok(blockers.collect())
}

/// What keeps a release from an environment that asks for its success elsewhere.
pub(crate) async fn promotion_blocker(
    db: &mut PgConnection,
    actor: &Actor,
    release: &Release,
    environment: &Environment,
) -> Result<Option<Blocker>, Failure> {
    if !environment.requirements.requires_promotion {
        return Ok(None);
    }
    let tenant = &actor.tenant;
    let before =
        store::environment::list_before(db, tenant, environment, &release.component, release.id).await?;
    let hold = environment.requirements.promotion_hold(&release.version, &before, actor.now);
    Ok(hold.map(|(description, next_open)| Blocker {
        kind: Kind::State,
        subject: release.id.to_string(),
        description,
        lifted_by: "a rollout of it that has succeeded there for as long".to_owned(),
        next_open,
    }))
}

/// Sentences about what does not hold of a component where it is exposed.
pub(crate) async fn warnings(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: &ComponentId,
) -> Result<Vec<String>, Failure> {
    let edges = store::dependency::list_of(db, tenant, &[component.to_string()], EDGES_MAX).await?;
    if edges.is_empty() {
        return Ok(Vec::new());
    }
    let everywhere = store::dependency::serving(db, tenant, &named(&edges), None).await?;
    let unmet = everywhere.iter().flat_map(|(environment, serving)| {
        let unmet = dependency::unmet(component, &edges, environment, serving);
        unmet.into_iter().map(move |unmet| format!("{unmet} in {environment}"))
    });
    Ok(unmet.collect())
}

/// Locks the component of a rollout that is about to go back with those that have to go back before it; says which those
/// are, and in sentences what will not hold. Nothing of this refuses: where what others need cannot be read, it goes back alone.
///
/// Who they are is read before they are locked, and again under the locks: as nobody starts a dependant without the
/// lock of what it needs, those that are found then are all. Others than are locked need locks in the order of names,
/// too, so everything is let go and locked anew, with them.
pub(crate) async fn lock_cascade(
    db: &mut PgConnection,
    tenant: &TenantId,
    rollout: &Rollout,
) -> Result<(Cascade, Vec<String>), Failure> {
    let environment = &rollout.environment;
    let mut names = BTreeSet::from([rollout.component.to_string()]);
    let mut rounds = 0;
    loop {
        let seen = readable(cascade(db, tenant, rollout.id).await, environment)?.0;
        names.extend(seen.before.iter().map(ToString::to_string));
        let mut locking = db.begin().await?;
        store::component::lock_names(&mut locking, tenant, &Vec::from_iter(names.clone())).await?;
        let (mut found, unread) = readable(cascade(&mut locking, tenant, rollout.id).await, environment)?;
        let missed: Vec<_> = found.before.extract_if(.., |name| !names.contains(name.as_str())).collect();
        rounds += 1;
        if !missed.is_empty() && rounds < LOCKING_ROUNDS {
            locking.rollback().await?;
            continue;
        }
        locking.commit().await?;
        let missed = missed
            .iter()
            .map(|name| format!("{name} was just started in {environment} and goes on"));
        let unmet = found.unmet.iter().map(|unmet| format!("{unmet} in {environment}"));
        let warnings = unmet.chain(missed).chain(unread).collect();
        return Ok((found, warnings));
    }
}

/// What cannot be read is told of instead.
fn readable(
    found: Result<Cascade, Failure>,
    environment: &EnvironmentId,
) -> Result<(Cascade, Option<String>), Failure> {
    match found {
        Ok(cascade) => Ok((cascade, None)),
        Err(Failure::Storage(error)) if is_unreadable(&error) => {
            let text = format!("what depends on it in {environment} cannot be read and stays: {error}");
            tracing::error!(%error, "dependants of what is rolled back cannot be read");
            Ok((Cascade::default(), Some(text)))
        }
        Err(failure) => Err(failure),
    }
}

/// What has succeeded goes back to what it replaced, as does what came after it; what is under way leaves what is there.
async fn cascade(db: &mut PgConnection, tenant: &TenantId, id: RolloutId) -> Result<Cascade, Failure> {
    let rollout = store::rollout::find(db, tenant, id).await?;
    let rollout = rollout.ok_or_else(|| Failure::Bug(format!("rollout {id} is gone")))?;
    let Rollout { component, environment, .. } = &rollout;
    let edges = store::dependency::list_leading_to(db, tenant, component, EDGES_MAX).await?;
    let serving = serving(db, tenant, &edges, environment).await?;
    let State::Succeeded { .. } = rollout.state else {
        let stable = serving.get(component).and_then(|served| served.stable.as_ref());
        let of = (component, stable);
        return Ok(dependency::cascade(of, &edges, environment, &serving, &BTreeMap::new()));
    };
    let came = store::dependency::came_since(db, tenant, &named(&edges), environment, id).await?;
    let version = |served: &ServedRelease| served.version.parse::<Version>();
    let previous = rollout.previous.as_ref().map(version).transpose();
    let previous =
        previous.map_err(|_| Failure::Bug(format!("what rollout {id} replaced has no version")))?;
    Ok(dependency::cascade((component, previous.as_ref()), &edges, environment, &serving, &came))
}

/// Rolls back what has to go back before a rollout does, under its locks; says what that was, and in sentences what cannot be
/// read and so stays.
pub(crate) async fn roll_back_first(
    db: &mut PgConnection,
    actor: &Actor,
    cascade: &Cascade,
    cause: &Rollout,
    entropy: &Entropy,
) -> Result<(Vec<Rollout>, Vec<String>), Failure> {
    let environment = &cause.environment;
    let reason = format!("{} {} is rolled back ({})", cause.component, cause.release.version, cause.id);
    let (mut rolled_back, mut left) = (Vec::new(), Vec::new());
    for component in &cascade.before {
        let mut part = db.begin().await?;
        let done = if let Some(id) = cascade.succeeded.get(component) {
            take_back(&mut part, actor, *id, &reason, entropy).await
        } else {
            let of = (component, environment);
            let back = back_under_way(&mut part, actor, of, &reason).await;
            back.map(|back| (Vec::from_iter(back), None))
        };
        match if_readable(part, done).await? {
            Ok((done, warning)) => {
                rolled_back.extend(done);
                left.extend(warning);
            }
            Err(error) => {
                left.push(format!("{component} cannot be read in {environment} and stays: {error}"));
            }
        }
    }
    Ok((rolled_back, left))
}

async fn take_back(
    db: &mut PgConnection,
    actor: &Actor,
    id: RolloutId,
    reason: &str,
    entropy: &Entropy,
) -> Result<(Vec<Rollout>, Option<String>), Failure> {
    match store::rollout::lock(db, &actor.tenant, id).await? {
        Some(rollout) => super::rollout::take_back(db, actor, &rollout, reason, entropy).await,
        None => Ok((Vec::new(), None)),
    }
}

/// In which order to roll out, and what would not hold afterwards.
pub(crate) struct Plan {
    pub(crate) waves: Vec<Vec<ComponentId>>,
    pub(crate) conflicts: Vec<Unmet>,
}

/// Plans the rollouts of these versions in an environment.
pub(crate) async fn plan(
    db: &mut PgConnection,
    tenant: &TenantId,
    planned: &BTreeMap<ComponentId, Version>,
    environment: &EnvironmentId,
) -> sqlx::Result<Plan> {
    let names: Vec<_> = planned.keys().map(ToString::to_string).collect();
    let edges = store::dependency::list_beside(db, tenant, &names, EDGES_MAX).await?;
    let serving = serving(db, tenant, &edges, environment).await?;
    Ok(Plan {
        waves: dependency::waves(&planned.keys().cloned().collect(), &edges, environment),
        conflicts: dependency::conflicts(planned, &edges, environment, &serving),
    })
}
