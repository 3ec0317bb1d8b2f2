//! Transitions of rollouts, and what holds them back. The caller has locked the rollout's component; for what raises exposure
//! also what that needs.

use serde_json::{Value, json};
use shared::auth::Authenticator;
use shared::id::{ApprovalId, ComponentId, EnvironmentId, ReleaseId, RolloutId, WindowOverrideId};
use shared::mutation::Actor;
use shared::secret::Entropy;
use shared::status::Failure;
use shared::telemetry;
use sqlx::{Connection as _, PgConnection};

use super::dependency::{self, Locked};
use super::exposure::{self, Increase, Passage};
use super::{expect_written, if_readable, is_unreadable, look, release, task, tell};
use crate::domain::blocker::Blocker;
use crate::domain::hold::Hold;
use crate::domain::release::{Ending, Quarantine, Release};
use crate::domain::rollout::{self, Decision, Harm, Mode, Phase, Rollout, ServedRelease, State};
use crate::domain::route::Route;
use crate::store;
use crate::store::rollout::live::Which;

/// Releases that one success supersedes at most; the next one takes the rest.
const REPLACED_MAX: i64 = 100;

/// A transition of a rollout; with it the route's next revision, and what it means to the release and to those it replaces.
/// The event names the overrides of windows that it goes by.
pub(crate) async fn rollout(
    db: &mut PgConnection,
    actor: &Actor,
    decision: &Decision,
    overrides: &[WindowOverrideId],
) -> Result<(), Failure> {
    let Decision { rollout, from, kind, reason } = decision;
    let tenant = &actor.tenant;
    match from {
        None => expect_written(store::rollout::insert(db, tenant, rollout).await?)?,
        Some(_) => expect_written(store::rollout::update(db, tenant, decision).await?)?,
    }
    let (component, environment) = (&rollout.component, &rollout.environment);
    let route = store::route::lock(db, tenant, component, environment).await?;
    let route = route.unwrap_or_else(|| Route::empty(tenant.clone(), component.clone(), environment.clone()));
    let next = route.after(rollout, telemetry::trace_parent());
    if let Some(next) = &next {
        expect_written(store::route::upsert(db, next).await?)?;
    }
    let rollback_of = match rollout.mode {
        Mode::Forward => None,
        Mode::Rollback { of } => Some(of.to_string()),
    };
    let data = json!({
        "rollout_id": rollout.id.to_string(),
        "mode": rollout.mode.name(),
        "rollback_of": rollback_of,
        "component": component.as_str(),
        "environment": environment.as_str(),
        "release_id": rollout.release.id.to_string(),
        "version": rollout.release.version,
        "previous_release_id": rollout.previous.as_ref().map(|previous| previous.id.to_string()),
        "from": from,
        "to": rollout.state.name(),
        "phase": rollout.state.phase().map(Phase::name),
        "step": rollout.step,
        "exposure_bps": rollout.exposure_bps,
        "reason": reason,
        "route_revision": next.as_ref().map_or(route.revision, |next| next.revision),
        "window_override_ids": overrides.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "approval_id": rollout.approval.map(|id| id.to_string()),
    });
    tell(db, actor, kind, rollout.id.to_string(), data).await?;
    follow(db, actor, rollout).await?;
    task::follow(db, actor, rollout).await
}

/// What a rollout's state means to releases.
async fn follow(db: &mut PgConnection, actor: &Actor, rollout: &Rollout) -> Result<(), Failure> {
    let id = rollout.release.id;
    match &rollout.state {
        State::Running { .. } => match locked_release(db, actor, id).await?.expose() {
            Some(decision) => release(db, actor, &decision, serde_json::Map::new()).await,
            None => Ok(()),
        },
        State::RolledBack { .. } => settle(db, actor, id, Ending::RolledBack).await,
        State::Succeeded { .. } => {
            settle(db, actor, id, Ending::Superseded).await?;
            // Also those that were replaced before and waited for this environment.
            let (tenant, component) = (&actor.tenant, &rollout.component);
            for id in store::release::list_replaced(db, tenant, component, id, REPLACED_MAX).await? {
                settle(db, actor, id, Ending::Superseded).await?;
            }
            Ok(())
        }
        State::Waiting { .. }
        | State::Paused { .. }
        | State::Draining { .. }
        | State::RollingBack { .. }
        | State::RollbackFailed { .. }
        | State::Cancelled { .. }
        | State::Superseded { .. } => Ok(()),
    }
}

async fn settle(db: &mut PgConnection, actor: &Actor, id: ReleaseId, ending: Ending) -> Result<(), Failure> {
    let locked = locked_release(db, actor, id).await?;
    let standing = store::release::standing(db, &actor.tenant, &locked.component, id).await?;
    match locked.settle(standing, ending) {
        Some(decision) => release(db, actor, &decision, serde_json::Map::new()).await,
        None => Ok(()),
    }
}

async fn locked_release(db: &mut PgConnection, actor: &Actor, id: ReleaseId) -> Result<Release, Failure> {
    let release = store::release::lock(db, &actor.tenant, id).await?;
    release.ok_or_else(|| Failure::Bug(format!("release {id} of a rollout is not there")))
}

/// What holds a release back from beginning in an environment.
pub(crate) struct Holds {
    pub(crate) blockers: Vec<Blocker>,
    /// Those that it goes by if nothing does.
    pub(crate) overrides: Vec<WindowOverrideId>,
    pub(crate) stable: Option<ServedRelease>,
}

/// Marks a release as bad whose component is locked.
pub(crate) async fn quarantine(
    db: &mut PgConnection,
    actor: &Actor,
    id: ReleaseId,
    reason: String,
) -> Result<(), Failure> {
    let quarantine = Quarantine { reason, by: actor.principal.clone(), at: actor.now };
    match locked_release(db, actor, id).await?.quarantine(quarantine) {
        Some(decision) => release(db, actor, &decision, serde_json::Map::new()).await,
        None => Ok(()),
    }
}

/// Everything that holds a locked release back from beginning in an environment.
pub(crate) async fn holds_begin(
    db: &mut PgConnection,
    actor: &Actor,
    increase: &Increase<'_>,
) -> Result<Holds, Failure> {
    let (tenant, name, environment) = (&actor.tenant, &increase.component.name, &increase.environment.name);
    let Passage { blockers, overrides } = exposure::first_step(db, actor, increase).await?;
    let route = store::route::lock(db, tenant, name, environment).await?;
    let stable = route.and_then(|route| route.stable);
    let earlier = store::rollout::find_under_way(db, tenant, name, environment).await?;
    let blockers = rollout::blockers(environment, increase.release, stable.as_ref(), earlier, blockers);
    Ok(Holds { blockers, overrides, stable })
}

/// Carries out what takes a rollout further; the rollout after it. Where no session service can know of it, its step is
/// watched at once.
pub(crate) async fn go_on(
    db: &mut PgConnection,
    actor: &Actor,
    decisions: impl IntoIterator<Item = Decision>,
    overrides: &[WindowOverrideId],
) -> Result<Rollout, Failure> {
    let mut last = None;
    for decision in decisions {
        rollout(db, actor, &decision, overrides).await?;
        last = Some(decision.rollout);
    }
    let last = last.ok_or_else(|| Failure::Bug("a rollout went on without a decision".to_owned()))?;
    let is_exposing = last.state.phase() == Some(Phase::Exposing);
    if !is_exposing || !is_applied(db, actor, &last).await? {
        return Ok(last);
    }
    let baking = last.bake(actor.now)?;
    rollout(db, actor, &baking, &[]).await?;
    Ok(baking.rollout)
}

/// Everything that holds back the next step of a rollout that is under way, and the overrides that it goes by if nothing
/// does.
pub(crate) async fn holds_increase(
    db: &mut PgConnection,
    actor: &Actor,
    locked: &Locked,
    rollout: &Rollout,
    approval_id: ApprovalId,
    authenticator: &Authenticator,
) -> Result<Passage, Failure> {
    let (tenant, environment) = (&actor.tenant, &rollout.environment);
    let gone = || Failure::Bug(format!("component or environment of rollout {} is not there", rollout.id));
    let component = store::component::lock_of_rollout(db, tenant, rollout.id)
        .await?
        .ok_or_else(gone)?;
    let environment = store::environment::find(db, tenant, environment).await?.ok_or_else(gone)?;
    let found = locked_release(db, actor, rollout.release.id).await?;
    let (release, facts) = look(db, actor, &component, found, approval_id, authenticator).await?;
    let increase = Increase {
        component: &component,
        environment: &environment,
        release: &release,
        facts: &facts,
        locked: Some(locked),
    };
    exposure::next_step(db, actor, &increase, rollout).await
}

/// What a rollback did.
pub(crate) struct Back {
    /// What takes the release back: the rollout itself, or one of mode ROLLBACK.
    pub(crate) rollout: Rollout,
    /// Rollouts of components that depend on it, rolled back before it, in this order.
    pub(crate) cascaded: Vec<Rollout>,
    pub(crate) warnings: Vec<String>,
}

/// Takes exposure of a rollout's release to 0, whatever state it is in, after those of components that cannot do with what
/// comes back. Takes the locks itself.
pub(crate) async fn roll_back(
    db: &mut PgConnection,
    actor: &Actor,
    rollout: &Rollout,
    (reason, harm): (String, Option<Harm>),
    entropy: &Entropy,
) -> Result<Back, Failure> {
    let tenant = &actor.tenant;
    let (cascade, mut warnings) = dependency::lock_cascade(db, tenant, rollout).await?;
    let locked = store::rollout::lock(db, tenant, rollout.id).await?;
    let rollout = locked.ok_or_else(|| Failure::Bug(format!("rollout {} is gone", rollout.id)))?;
    let rollout = with_harm(db, actor, rollout, harm).await?;
    let has_succeeded = matches!(rollout.state, State::Succeeded { .. });
    if has_succeeded && !serves(db, actor, &rollout).await? {
        let Rollout { component, environment, release, .. } = &rollout;
        warnings = vec![format!(
            "{component} {} does not serve {environment} any more; roll back what does",
            release.version
        )];
        return Ok(Back { rollout, cascaded: Vec::new(), warnings });
    }
    if !has_succeeded && !rollout.state.is_exposing() {
        let rollout = back(db, actor, rollout, reason).await?;
        return Ok(Back { rollout, cascaded: Vec::new(), warnings: Vec::new() });
    }
    warnings.extend(warn_of_previous(db, actor, &rollout).await?);
    let (mut cascaded, left) = dependency::roll_back_first(db, actor, &cascade, &rollout, entropy).await?;
    warnings.extend(left);
    let rollout = if has_succeeded {
        let (mut taken, left) = take_back(db, actor, &rollout, &reason, entropy).await?;
        let last = taken.pop();
        cascaded.extend(taken);
        warnings.extend(left);
        last.ok_or_else(|| Failure::Bug(format!("rollout {} was not taken back", rollout.id)))?
    } else {
        back(db, actor, rollout, reason).await?
    };
    let hold = Hold::of(&rollout, actor.now);
    store::hold::upsert(db, tenant, &hold).await?;
    Ok(Back { rollout, cascaded, warnings })
}

/// Takes exposure of a locked rollout that has not succeeded to 0; the rollout after it.
pub(super) async fn back(
    db: &mut PgConnection,
    actor: &Actor,
    taken: Rollout,
    reason: String,
) -> Result<Rollout, Failure> {
    let Some(decision) = taken.clone().roll_back(reason, actor.now) else { return Ok(taken) };
    rollout(db, actor, &decision, &[]).await?;
    confirm_readable(db, actor, decision.rollout).await
}

/// The same for what is under way of a locked component, if anything is.
pub(super) async fn back_under_way(
    db: &mut PgConnection,
    actor: &Actor,
    (component, environment): (&ComponentId, &EnvironmentId),
    reason: &str,
) -> Result<Option<Rollout>, Failure> {
    let id = store::rollout::find_under_way(db, &actor.tenant, component, environment).await?;
    let Some(id) = id else { return Ok(None) };
    let found = store::rollout::lock(db, &actor.tenant, id).await?;
    match found.filter(|rollout| rollout.state.is_exposing()) {
        Some(rollout) => Ok(Some(back(db, actor, rollout, reason.to_owned()).await?)),
        None => Ok(None),
    }
}

/// Takes back what a locked rollout brought, which has succeeded and serves, after what is under way on top of it, which
/// has no ground to stand on; the last of the rollouts is the one that does it. Says if what is under way cannot be read and
/// so goes on.
pub(super) async fn take_back(
    db: &mut PgConnection,
    actor: &Actor,
    succeeded: &Rollout,
    reason: &str,
    entropy: &Entropy,
) -> Result<(Vec<Rollout>, Option<String>), Failure> {
    let Rollout { component, environment, release, .. } = succeeded;
    let why = format!("{component} {} is rolled back", release.version);
    let mut part = db.begin().await?;
    let upper = back_under_way(&mut part, actor, (component, environment), &why).await;
    let (upper, warning) = match if_readable(part, upper).await? {
        Ok(upper) => (upper, None),
        Err(error) => {
            let text = format!(
                "what is under way of {component} in {environment} cannot be read and goes on: {error}"
            );
            (None, Some(text))
        }
    };
    let id = RolloutId::new(actor.now, entropy.bytes());
    let decision = succeeded.take_back(id, reason.to_owned(), actor.principal.clone(), actor.now);
    rollout(db, actor, &decision, &[]).await?;
    let back = confirm_readable(db, actor, decision.rollout).await?;
    Ok((upper.into_iter().chain([back]).collect(), warning))
}

/// The rollout with the harm that leads to its next transition, which is told where it is new.
pub(super) async fn with_harm(
    db: &mut PgConnection,
    actor: &Actor,
    rollout: Rollout,
    harm: Option<Harm>,
) -> Result<Rollout, Failure> {
    let Some(harm) = harm.filter(|harm| rollout.harms.iter().all(|known| known.guard != harm.guard)) else {
        return Ok(rollout);
    };
    tell(db, actor, "rollout.harm_found", rollout.id.to_string(), finding(&rollout, Some(&harm))).await?;
    Ok(rollout.with_harm(harm))
}

/// Keeps what guards found of a locked rollout that leads to no transition of it; false if it is another one by now.
pub(super) async fn note(
    db: &mut PgConnection,
    actor: &Actor,
    found: Rollout,
    harms: &[Harm],
    is_mismatch: bool,
) -> Result<bool, Failure> {
    let noted = found.with_findings(harms.to_vec(), is_mismatch, actor.now);
    if !store::rollout::live::update_findings(db, &actor.tenant, &noted).await? {
        return Ok(false);
    }
    for harm in harms {
        tell(db, actor, "rollout.harm_found", noted.id.to_string(), finding(&noted, Some(harm))).await?;
    }
    if is_mismatch {
        tell(db, actor, "rollout.mismatch_found", noted.id.to_string(), finding(&noted, None)).await?;
    }
    Ok(true)
}

fn finding(of: &Rollout, harm: Option<&Harm>) -> Value {
    json!({
        "rollout_id": of.id.to_string(),
        "component": of.component.as_str(),
        "environment": of.environment.as_str(),
        "release_id": of.release.id.to_string(),
        "version": of.release.version,
        "step": of.step,
        "guard": harm.map(|harm| harm.guard.as_str()),
        "finding": harm.map(|harm| harm.finding.as_str()),
    })
}

/// Whether the release of a rollout that has succeeded serves everyone, by it.
async fn serves(db: &mut PgConnection, actor: &Actor, rollout: &Rollout) -> Result<bool, Failure> {
    let Rollout { component, environment, release, .. } = rollout;
    let route = store::route::lock(db, &actor.tenant, component, environment).await?;
    Ok(route
        .and_then(|route| route.stable)
        .is_some_and(|stable| stable.id == release.id))
}

async fn warn_of_previous(
    db: &mut PgConnection,
    actor: &Actor,
    rollout: &Rollout,
) -> Result<Option<String>, Failure> {
    let component = &rollout.component;
    let Some(previous) = &rollout.previous else {
        let text = format!("{component} had no release before; visits that begin get none");
        return Ok(Some(text));
    };
    let release = match store::release::find(db, &actor.tenant, previous.id).await {
        Err(error) if is_unreadable(&error) => {
            return Ok(Some(format!(
                "whether {component} {}, which serves from now on, is quarantined cannot be read: {error}",
                previous.version
            )));
        }
        found => found?,
    };
    let quarantine = release.and_then(|release| release.quarantine);
    Ok(quarantine.map(|quarantine| {
        let (version, reason) = (&previous.version, quarantine.reason);
        format!("{component} {version}, which serves from now on, is quarantined: {reason}")
    }))
}

/// Ends a locked rollback if every session service acts on exposure 0; the rollout after it. Where no session service can
/// know of the rollout, nobody has to confirm it. While a watch is just opening it is not known who acts on what; then the
/// controller ends the rollback later.
pub(super) async fn confirm(
    db: &mut PgConnection,
    actor: &Actor,
    taken: Rollout,
) -> Result<Rollout, Failure> {
    let Some(decision) = taken.clone().confirm(actor.now) else { return Ok(taken) };
    if !is_applied(db, actor, &taken).await? {
        return Ok(taken);
    }
    rollout(db, actor, &decision, &[]).await?;
    Ok(decision.rollout)
}

/// As [`confirm`]; but a release that cannot be read keeps nothing from going back.
async fn confirm_readable(db: &mut PgConnection, actor: &Actor, taken: Rollout) -> Result<Rollout, Failure> {
    let mut part = db.begin().await?;
    let done = confirm(&mut part, actor, taken.clone()).await;
    Ok(if_readable(part, done).await?.unwrap_or(taken))
}

/// Whether every session service acts on a rollout's route, and will until this transaction ends.
pub(super) async fn is_applied(
    db: &mut PgConnection,
    actor: &Actor,
    rollout: &Rollout,
) -> Result<bool, Failure> {
    if !store::route::try_hold_watches(db, &rollout.environment).await? {
        return Ok(false);
    }
    let (began_at, margin) = (super::lease_began_at(actor.now), super::margin_secs());
    let only = Which::Only(&actor.tenant, rollout.id);
    let live = store::rollout::live::list_live(db, began_at, margin, only, 1).await?;
    Ok(live.first().is_some_and(|live| live.is_applied))
}
