//! Rollouts with what surrounds them: what session services act on and count, what guards make of that, and what became of
//! executors' tasks. Read for many at once, in as many statements as for one.

use std::collections::HashMap;

use shared::id::{RolloutId, TenantId};
use shared::mutation::Actor;
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::rollout::Rollout;
use crate::domain::rollout::control::{Observation, TaskEnd};
use crate::domain::signal::{self, Count, Reading};
use crate::store;
use crate::store::rollout::live::{Live, Which};
use crate::store::signal::Visits;

/// A rollout with what surrounds it.
pub(crate) struct Seen {
    pub(crate) rollout: Rollout,
    pub(crate) around: Observation,
    /// What the guards say, in the plan's order.
    pub(crate) readings: Vec<Reading>,
    /// Live visits as they were counted last.
    pub(crate) visits: Option<Visits>,
}

/// Rollouts that go on by themselves, at most so many, in the order of their keys; nothing is seen of one that cannot be read.
pub(crate) async fn live(
    db: &mut PgConnection,
    which: Which<'_>,
    limit: usize,
    now: Time,
) -> sqlx::Result<Vec<(Live, Option<Seen>)>> {
    let (began_at, margin) = (super::lease_began_at(now), super::margin_secs());
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let live = store::rollout::live::list_live(db, began_at, margin, which, limit).await?;
    if live.is_empty() {
        return Ok(Vec::new());
    }
    let (tenants, ids): (Vec<_>, Vec<_>) =
        live.iter().map(|live| (live.tenant.to_string(), live.id.uuid())).unzip();
    let rollouts = store::rollout::live::list_named(db, &tenants, &ids).await?;
    let mut rollouts: HashMap<_, _> = rollouts.into_iter().map(|rollout| (rollout.id, rollout)).collect();
    let mut surroundings = Surroundings::read(db, &tenants, &ids, now).await?;
    let seen = live.into_iter().map(|live| {
        let rollout = rollouts.remove(&live.id);
        let seen = rollout.map(|rollout| surroundings.of(rollout, live.is_applied));
        (live, seen)
    });
    Ok(seen.collect())
}

/// One, whether it goes on or not. Who acts on its route is not asked.
pub(crate) async fn see(
    db: &mut PgConnection,
    tenant: &TenantId,
    rollout: Rollout,
    now: Time,
) -> sqlx::Result<Seen> {
    let (tenants, ids) = ([tenant.to_string()], [rollout.id.uuid()]);
    Ok(Surroundings::read(db, &tenants, &ids, now).await?.of(rollout, false))
}

/// What surrounds it. Who acts on its route is not asked.
pub(crate) async fn observed(
    db: &mut PgConnection,
    actor: &Actor,
    rollout: &Rollout,
) -> sqlx::Result<Observation> {
    Ok(see(db, &actor.tenant, rollout.clone(), actor.now).await?.around)
}

/// What is stored around rollouts, by their ids.
struct Surroundings {
    counts: HashMap<RolloutId, Vec<Count>>,
    visits: HashMap<RolloutId, Visits>,
    ends: HashMap<RolloutId, TaskEnd>,
}

impl Surroundings {
    async fn read(db: &mut PgConnection, tenants: &[String], ids: &[Uuid], now: Time) -> sqlx::Result<Self> {
        let mut counts: HashMap<_, Vec<_>> = HashMap::new();
        for (id, count) in store::signal::list_counts(db, tenants, ids).await? {
            counts.entry(id).or_default().push(count);
        }
        let visits = store::signal::list_visits(db, tenants, ids, super::lease_began_at(now)).await?;
        let ends = store::task::list_ends(db, tenants, ids).await?;
        Ok(Self { counts, visits: visits.into_iter().collect(), ends: ends.into_iter().collect() })
    }

    fn of(&mut self, rollout: Rollout, is_applied: bool) -> Seen {
        let id = rollout.id;
        let readings = signal::read(&rollout, &self.counts.remove(&id).unwrap_or_default());
        let visits = self.visits.remove(&id);
        // What was counted before it drained says nothing of what is left.
        let since = rollout.state.since();
        let around = Observation {
            is_applied,
            task: self.ends.remove(&id),
            guards: readings.iter().map(Into::into).collect(),
            old_visits: visits.filter(|visits| visits.counted_at >= since).map(|visits| visits.control),
        };
        Seen { rollout, around, readings, visits }
    }
}
