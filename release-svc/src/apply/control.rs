//! The controller: takes rollouts as far as they go by themselves. Any number of replicas run it side by side. What is to be
//! done is looked at for all rollouts at once, and decided anew for each under its locks, in a transaction of its own; so a
//! crash anywhere leaves a rollout before or after a transition, and whoever looks next goes on.

use std::collections::HashMap;

use shared::auth::Authenticator;
use shared::db::Db;
use shared::id::{ApprovalId, RolloutId, TenantId};
use shared::mutation::Actor;
use shared::secret::Entropy;
use shared::status::{Failure, is_away};
use shared::time::{Clock, Time};
use sqlx::PgConnection;

use super::dependency::{self, Locked};
use super::exposure::{Increase, Passage};
use super::rollout::{Holds, back, confirm, is_applied};
use super::{go_on, holds_begin, holds_increase, look, rollout as transition};
use crate::domain::blocker;
use crate::domain::rollout::control::{Next, Observation, decide};
use crate::domain::rollout::{Harm, Pause, Rollout};
use crate::domain::signal;
use crate::store;
use crate::store::rollout::live::Live;

/// Rollouts that a pass takes on.
const BATCH: i64 = 1000;
/// Counts that a pass takes in at most: of each rollout some per step, arm and guard.
const COUNTS_MAX: i64 = 100_000;
/// Transitions that one look makes at most: a step may be exposed, watched and left at once.
const MOVES_MAX: u64 = 4;

/// What the controller works with.
pub(crate) struct Controller<'a> {
    pub(crate) db: &'a Db,
    pub(crate) clock: &'a Clock,
    pub(crate) entropy: &'a Entropy,
    pub(crate) authenticator: &'a Authenticator,
}

impl Controller<'_> {
    /// Takes every rollout as far as it goes now; says how many transitions that were.
    pub(crate) async fn pass(&self) -> sqlx::Result<u64> {
        let mut count = 0;
        for (tenant, id, next) in self.due().await? {
            match self.drive(&tenant, id, &next).await {
                Ok(moves) => count += moves,
                Err(Failure::Storage(error)) if is_away(&error) => return Err(error),
                // What is wrong with one does not keep the others from going on.
                Err(failure) => {
                    tracing::warn!(%tenant, rollout = %id, error = ?failure, "rollout not taken further");
                }
            }
        }
        Ok(count)
    }

    /// The same for one rollout that something has just happened to.
    #[tracing::instrument(name = "rollout.control", skip_all, fields(rollout = %id))]
    pub(crate) async fn look_at(&self, tenant: &TenantId, id: RolloutId) -> Result<u64, Failure> {
        let mut db = self.db.connection().await?;
        let next = next_of(&mut db, tenant, id, self.clock.now()).await?;
        drop(db);
        match next {
            Some((_, next)) => self.drive(tenant, id, &next).await,
            None => Ok(0),
        }
    }

    /// Rollouts that have something to do, and what.
    async fn due(&self) -> sqlx::Result<Vec<(TenantId, RolloutId, Next)>> {
        let now = self.clock.now();
        let mut db = self.db.connection().await?;
        let (began_at, margin) = (super::lease_began_at(now), super::margin_secs());
        let live = store::rollout::live::list_live(&mut db, began_at, margin, None, BATCH).await?;
        let seen = observe(&mut db, &live, now).await?;
        let next = live.into_iter().filter_map(|Live { tenant, id, .. }| {
            let (rollout, seen) = seen.get(&id)?;
            Some((tenant, id, decide(rollout, seen, now)?))
        });
        Ok(next.collect())
    }

    /// Goes on with one, beginning with what was seen to be next.
    async fn drive(&self, tenant: &TenantId, id: RolloutId, first: &Next) -> Result<u64, Failure> {
        let mut next = Some(first.clone());
        let mut moves = 0;
        while let Some(seen) = next.filter(|_| moves < MOVES_MAX) {
            let actor =
                Actor { tenant: tenant.clone(), principal: "system".to_owned(), now: self.clock.now() };
            let mut tx = self.db.begin(None).await?;
            let is_done = self.carry_out(&mut tx, &actor, id, &seen).await?;
            // Also what was noted of what holds it back.
            tx.commit().await?;
            if !is_done {
                break;
            }
            moves += 1;
            let mut db = self.db.connection().await?;
            next = next_of(&mut db, tenant, id, self.clock.now()).await?.map(|(_, next)| next);
        }
        Ok(moves)
    }

    /// Does what was seen to be next, if that is still so under the locks that it takes; says whether it is done.
    async fn carry_out(
        &self,
        db: &mut PgConnection,
        actor: &Actor,
        id: RolloutId,
        seen: &Next,
    ) -> Result<bool, Failure> {
        let (tenant, now) = (&actor.tenant, actor.now);
        let raises = matches!(seen, Next::Begin | Next::Expose | Next::Advance);
        let is_rollback = matches!(seen, Next::RollBack(..));
        let locked = if raises {
            Some(dependency::lock_needed(db, tenant, id.uuid()).await?)
        } else if !is_rollback && !store::component::try_lock_of_rollout(db, tenant, id).await? {
            return Ok(false);
        } else {
            None
        };
        if is_rollback {
            // Rollbacks take more locks, in their order, before they look again.
            let Some(found) = store::rollout::find(db, tenant, id).await? else { return Ok(false) };
            dependency::lock_cascade(db, tenant, &found).await?;
        }
        let Some((rollout, next)) = next_of(db, tenant, id, now).await? else { return Ok(false) };
        let decision = match (next, locked) {
            (Next::Begin, Some(locked)) => return self.begin(db, actor, &locked, rollout).await,
            (next @ (Next::Expose | Next::Advance), Some(locked)) => {
                return self.increase(db, actor, &locked, rollout, &next).await;
            }
            (Next::RollBack(reason, harm), None) if is_rollback => {
                return self.take_back(db, actor, &rollout, reason, harm).await;
            }
            (Next::Pause(cause, reason, harm), None) => {
                let principal = actor.principal.clone();
                let rollout = harm.into_iter().fold(rollout, Rollout::with_harm);
                rollout.pause(Pause { cause, principal, reason, at: now })?
            }
            (Next::Bake, None) if is_applied(db, actor, &rollout).await? => Some(rollout.bake(now)?),
            (Next::Succeed, None) => Some(rollout.succeed(now)?),
            (Next::Confirm, None) => {
                let before = rollout.row_version;
                return Ok(confirm(db, actor, rollout).await?.row_version > before);
            }
            (Next::Fail, None) => Some(rollout.fail(now)?),
            // Something else is next by now, which takes other locks.
            _ => None,
        };
        let Some(decision) = decision else { return Ok(false) };
        transition(db, actor, &decision, &[]).await?;
        Ok(true)
    }

    /// Begins what waited, unless something holds it back. What can never begin is given up.
    async fn begin(
        &self,
        db: &mut PgConnection,
        actor: &Actor,
        locked: &Locked,
        rollout: Rollout,
    ) -> Result<bool, Failure> {
        let tenant = &actor.tenant;
        let gone = || Failure::Bug(format!("what rollout {} is of is not there", rollout.id));
        let component = store::component::lock_of_rollout(db, tenant, rollout.id)
            .await?
            .ok_or_else(gone)?;
        let found = store::release::lock(db, tenant, rollout.release.id).await?.ok_or_else(gone)?;
        let approval = ApprovalId::new(actor.now, self.entropy.bytes());
        let (release, facts) = look(db, actor, &component, found, approval, self.authenticator).await?;
        let environment = store::environment::find(db, tenant, &rollout.environment)
            .await?
            .ok_or_else(gone)?;
        let increase = Increase {
            component: &component,
            environment: &environment,
            release: &release,
            facts: &facts,
            locked: Some(locked),
        };
        let Holds { blockers, overrides, stable } = holds_begin(db, actor, &increase).await?;
        let serves = stable.as_ref().is_some_and(|stable| stable.id == release.id);
        if release.state.is_final() || serves {
            let why = if serves { "it serves everyone there already" } else { release.state.name() };
            back(db, actor, rollout, format!("release {} cannot begin: {why}", release.id)).await?;
            return Ok(true);
        }
        if blockers.is_empty() {
            let plan = rollout.plan.clone().deployed_by(&environment);
            let decisions = Rollout { plan, ..rollout }.begin(&release, stable, actor.now);
            go_on(db, actor, decisions, &overrides).await?;
            return Ok(true);
        }
        // It still waits; the note of what for is no transition.
        store::rollout::live::update_waiting(db, tenant, rollout.id, &blocker::kinds(&blockers)).await?;
        Ok(false)
    }

    /// Raises exposure, unless something holds it back. The end of a rollout that everyone sees raises nothing.
    async fn increase(
        &self,
        db: &mut PgConnection,
        actor: &Actor,
        locked: &Locked,
        rollout: Rollout,
        next: &Next,
    ) -> Result<bool, Failure> {
        let approval = ApprovalId::new(actor.now, self.entropy.bytes());
        let Passage { blockers, overrides } =
            holds_increase(db, actor, locked, &rollout, approval, self.authenticator).await?;
        if !blockers.is_empty() {
            return Ok(false);
        }
        let decision =
            if *next == Next::Expose { rollout.expose(actor.now)? } else { rollout.advance(actor.now)? };
        go_on(db, actor, [decision], &overrides).await?;
        Ok(true)
    }

    /// Rolls back whose locks are held. What a guard found bad is not rolled out again before a person has looked at it.
    async fn take_back(
        &self,
        db: &mut PgConnection,
        actor: &Actor,
        rollout: &Rollout,
        reason: String,
        harm: Option<Harm>,
    ) -> Result<bool, Failure> {
        let (is_harm, id) = (harm.is_some(), rollout.release.id);
        super::roll_back(db, actor, rollout, (reason.clone(), harm), self.entropy).await?;
        if is_harm {
            super::quarantine(db, actor, id, reason).await?;
        }
        Ok(true)
    }
}

/// A rollout with what it does by itself now, if anything.
async fn next_of(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: RolloutId,
    now: Time,
) -> sqlx::Result<Option<(Rollout, Next)>> {
    let found = observe_one(db, tenant, id, now).await?;
    Ok(found.and_then(|(rollout, seen)| {
        let next = decide(&rollout, &seen, now)?;
        Some((rollout, next))
    }))
}

/// What surrounds a rollout.
pub(crate) async fn observed(
    db: &mut PgConnection,
    actor: &Actor,
    rollout: &Rollout,
) -> sqlx::Result<Observation> {
    let found = observe_one(db, &actor.tenant, rollout.id, actor.now).await?;
    Ok(found.map(|(_, seen)| seen).unwrap_or_default())
}

async fn observe_one(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: RolloutId,
    now: Time,
) -> sqlx::Result<Option<(Rollout, Observation)>> {
    let (began_at, margin) = (super::lease_began_at(now), super::margin_secs());
    let live = store::rollout::live::list_live(db, began_at, margin, Some((tenant, id)), 1).await?;
    Ok(observe(db, &live, now).await?.remove(&id))
}

/// Rollouts with what surrounds them, read at once for all.
async fn observe(
    db: &mut PgConnection,
    live: &[Live],
    now: Time,
) -> sqlx::Result<HashMap<RolloutId, (Rollout, Observation)>> {
    let (tenants, ids): (Vec<_>, Vec<_>) =
        live.iter().map(|live| (live.tenant.to_string(), live.id.uuid())).unzip();
    let is_applied: HashMap<_, _> = live.iter().map(|live| (live.id, live.is_applied)).collect();
    let rollouts = store::rollout::live::list_named(db, &tenants, &ids).await?;
    let mut counts: HashMap<_, Vec<_>> = HashMap::new();
    for (id, count) in store::signal::list_counts(db, &tenants, &ids, COUNTS_MAX).await? {
        counts.entry(id).or_default().push(count);
    }
    let visits = store::signal::list_visits(db, &tenants, &ids, super::lease_began_at(now)).await?;
    let visits: HashMap<_, _> = visits.into_iter().collect();
    let mut ends: HashMap<_, _> = store::task::list_ends(db, &tenants, &ids).await?.into_iter().collect();
    let seen = rollouts.into_iter().map(|rollout| {
        let id = rollout.id;
        let counts = counts.remove(&id).unwrap_or_default();
        let readings = signal::read(&rollout, &counts);
        // What was counted before it drained says nothing of what is left.
        let since = rollout.state.since();
        let visits = visits.get(&id).copied();
        let seen = Observation {
            is_applied: is_applied.get(&id).copied().unwrap_or(false),
            task: ends.remove(&id),
            guards: readings.iter().map(Into::into).collect(),
            old_visits: visits.filter(|visits| visits.counted_at >= since).map(|visits| visits.control),
        };
        (id, (rollout, seen))
    });
    Ok(seen.collect())
}
