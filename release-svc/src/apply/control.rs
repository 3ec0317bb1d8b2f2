//! The controller: takes rollouts as far as they go by themselves. Any number of replicas run it side by side. What is to be
//! done is looked at for all rollouts at once, and decided anew for each under its locks, in a transaction of its own; so a
//! crash anywhere leaves a rollout before or after a transition, and whoever looks next goes on.

use shared::auth::Authenticator;
use shared::db::Db;
use shared::id::{ApprovalId, RolloutId, TenantId};
use shared::mutation::Actor;
use shared::secret::Entropy;
use shared::status::{Failure, is_away};
use shared::time::{Clock, Time};
use sqlx::{Connection as _, PgConnection};

use super::dependency::{self, Locked};
use super::exposure::{Increase, Passage};
use super::observation::{self, Seen};
use super::rollout::{Holds, back, confirm, is_applied, note, with_harm};
use super::{go_on, holds_begin, holds_increase, look, rollout as transition};
use crate::domain::blocker::{self, Blocker};
use crate::domain::rollout::control::{Next, decide, look_again};
use crate::domain::rollout::{Harm, Pause, Rollout};
use crate::store;
use crate::store::rollout::live::{Held, Which};

pub(crate) use super::observation::observed;

/// Rollouts that are looked at together.
const PAGE: usize = 200;
/// Rollouts that a pass tries to raise at most, so that it comes back before long to what protects visits.
const RAISES_MAX: usize = 100;
/// Transitions that one look makes at most: a step may be exposed, watched and left at once.
const MOVES_MAX: u64 = 4;

/// A rollout that has something to do.
struct Due {
    tenant: TenantId,
    id: RolloutId,
    next: Next,
}

/// Whether something waits for those who hold its locks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    None,
    Some,
}

/// What the controller works with.
pub(crate) struct Controller<'a> {
    pub(crate) db: &'a Db,
    pub(crate) clock: &'a Clock,
    pub(crate) entropy: &'a Entropy,
    pub(crate) authenticator: &'a Authenticator,
}

impl Controller<'_> {
    /// Takes every rollout as far as it goes now; says how many transitions that were. What takes exposure away or keeps it
    /// comes before what raises it, of all rollouts. Nothing waits long for what somebody else has locked, but for what takes
    /// exposure away, once all that nobody has locked is done.
    pub(crate) async fn pass(&self) -> sqlx::Result<u64> {
        let mut due = self.due().await?;
        due.sort_by_key(|due| due.next.urgency());
        let mut raising = due.split_off(due.partition_point(|due| !due.next.raises()));
        let going_on = due.split_off(due.partition_point(|due| due.next.protects()));
        if raising.len() > RAISES_MAX {
            // By chance, so that those that cannot be raised keep none of the others from it for ever.
            let chance = usize::from(u16::from_be_bytes(self.entropy.bytes()));
            let count = raising.len();
            raising.rotate_left(chance % count);
            raising.truncate(RAISES_MAX);
        }
        let (mut count, mut locked) = self.drive_all(due, Patience::None).await?;
        locked.retain(|due| matches!(due.next, Next::RollBack(..)));
        for (due, patience) in
            [(locked, Patience::Some), (going_on, Patience::None), (raising, Patience::None)]
        {
            count += self.drive_all(due, patience).await?.0;
        }
        Ok(count)
    }

    /// Goes on with each; says how many transitions that were, and of which somebody else held the locks.
    async fn drive_all(&self, all: Vec<Due>, patience: Patience) -> sqlx::Result<(u64, Vec<Due>)> {
        let (mut count, mut locked) = (0, Vec::new());
        for due in all {
            let Due { tenant, id, next } = &due;
            match Box::pin(self.drive(tenant, *id, next, patience)).await {
                Ok(moves) => count += moves,
                Err(Failure::Storage(error)) if is_away(&error) => return Err(error),
                Err(Failure::Storage(error)) if is_locked(&error) && patience == Patience::None => {
                    tracing::debug!(%tenant, rollout = %id, "rollout left alone, as somebody holds its locks");
                    locked.push(due);
                }
                // What is wrong with one does not keep the others from going on.
                Err(failure) => {
                    tracing::warn!(%tenant, rollout = %id, error = ?failure, "rollout not taken further");
                }
            }
        }
        Ok((count, locked))
    }

    /// The same for one rollout that something has just happened to.
    #[tracing::instrument(name = "rollout.control", skip_all, fields(rollout = %id))]
    pub(crate) async fn look_at(&self, tenant: &TenantId, id: RolloutId) -> Result<u64, Failure> {
        let mut db = self.db.connection().await?;
        let next = next_of(&mut db, tenant, id, self.clock.now()).await?;
        drop(db);
        match next {
            Some(found) => Box::pin(self.drive(tenant, id, &found.next, Patience::Some)).await,
            None => Ok(0),
        }
    }

    /// Rollouts that have something to do, but for those that are held back still. Takes as many statements for many as for
    /// one.
    async fn due(&self) -> sqlx::Result<Vec<Due>> {
        let now = self.clock.now();
        let mut db = self.db.connection().await?;
        let (mut due, mut after) = (Vec::new(), None);
        loop {
            let which = Which::After(after.as_ref().map(|(tenant, id)| (tenant, *id)));
            let page = observation::live(&mut db, which, PAGE, now).await?;
            let is_last = page.len() < PAGE;
            after = page.last().map(|(live, _)| (live.tenant.clone(), live.id));
            due.extend(page.into_iter().filter_map(|(live, seen)| {
                let Seen { rollout, around, .. } = seen?;
                let next = decide(&rollout, &around, now)?;
                let is_held = next.raises() && live.is_held(now);
                (!is_held).then_some(Due { tenant: live.tenant, id: live.id, next })
            }));
            if is_last {
                return Ok(due);
            }
        }
    }

    /// Goes on with one, beginning with what was seen to be next.
    async fn drive(
        &self,
        tenant: &TenantId,
        id: RolloutId,
        first: &Next,
        patience: Patience,
    ) -> Result<u64, Failure> {
        let mut next = Some(first.clone());
        let mut moves = 0;
        // In a pass what raises exposure has its turn once everything else is done.
        let is_due = |next: &Next| first.raises() || !next.raises() || patience == Patience::Some;
        while let Some(seen) = next.filter(|next| moves < MOVES_MAX && is_due(next)) {
            let actor =
                Actor { tenant: tenant.clone(), principal: "system".to_owned(), now: self.clock.now() };
            let mut tx = self.db.begin(None).await?;
            if patience == Patience::None {
                store::rollout::live::hurry(&mut tx).await?;
            }
            let is_done = self.carry_out(&mut tx, &actor, id, &seen).await?;
            // Also what was noted of what holds it back.
            tx.commit().await?;
            if !is_done {
                break;
            }
            moves += 1;
            let mut db = self.db.connection().await?;
            next = next_of(&mut db, tenant, id, self.clock.now()).await?.map(|found| found.next);
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
        let is_rollback = matches!(seen, Next::RollBack(..));
        let locked = if seen.raises() {
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
        let Some(found) = next_of(db, tenant, id, now).await? else { return Ok(false) };
        let rollout = found.rollout.clone();
        let decision = match (found.next.clone(), locked) {
            (Next::Begin, Some(locked)) => return self.begin(db, actor, &locked, found).await,
            (Next::Expose | Next::Advance, Some(locked)) => {
                return self.increase(db, actor, &locked, found).await;
            }
            (Next::RollBack(reason, harm), None) if is_rollback => {
                return self.take_back(db, actor, &rollout, reason, harm).await;
            }
            (Next::Pause(cause, reason, harm), None) => {
                let principal = actor.principal.clone();
                let rollout = with_harm(db, actor, rollout, harm).await?;
                rollout.pause(Pause { cause, principal, reason, at: now })?
            }
            (Next::Note(harms, is_mismatch), None) => {
                return note(db, actor, rollout, &harms, is_mismatch).await;
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
        Found { rollout, next: _, told }: Found,
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
        hold(db, actor, &rollout, &blockers, told).await?;
        Ok(false)
    }

    /// Raises exposure, unless something holds it back. The end of a rollout that everyone sees raises nothing.
    async fn increase(
        &self,
        db: &mut PgConnection,
        actor: &Actor,
        locked: &Locked,
        Found { rollout, next, told }: Found,
    ) -> Result<bool, Failure> {
        let approval = ApprovalId::new(actor.now, self.entropy.bytes());
        let Passage { blockers, overrides } =
            holds_increase(db, actor, locked, &rollout, approval, self.authenticator).await?;
        if !blockers.is_empty() {
            hold(db, actor, &rollout, &blockers, told).await?;
            return Ok(false);
        }
        let decision =
            if next == Next::Expose { rollout.expose(actor.now)? } else { rollout.advance(actor.now)? };
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
            let mut part = db.begin().await?;
            let done = super::quarantine(&mut part, actor, id, reason).await;
            // Nobody new is exposed to it, in any case.
            drop(super::if_readable(part, done).await?);
        }
        Ok(true)
    }
}

/// Notes what holds a rollout back, so that it is left alone until that may have lifted.
async fn hold(
    db: &mut PgConnection,
    actor: &Actor,
    rollout: &Rollout,
    blockers: &[Blocker],
    told: Option<i64>,
) -> sqlx::Result<()> {
    let look_at = look_again(blockers, actor.now);
    let held = Held { reasons: &blocker::kinds(blockers), told, look_at };
    store::rollout::live::update_held(db, &actor.tenant, rollout.id, &held).await
}

/// Somebody else held a lock for longer than was waited.
fn is_locked(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| code == "55P03")
}

/// What a rollout does by itself now.
struct Found {
    rollout: Rollout,
    next: Next,
    /// The end of the tenant's audit trail.
    told: Option<i64>,
}

/// None where it does nothing.
async fn next_of(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: RolloutId,
    now: Time,
) -> sqlx::Result<Option<Found>> {
    let mut seen = observation::live(db, Which::Only(tenant, id), 1, now).await?;
    Ok(seen.pop().and_then(|(live, seen)| {
        let Seen { rollout, around, .. } = seen?;
        let next = decide(&rollout, &around, now)?;
        Some(Found { rollout, next, told: live.told })
    }))
}
