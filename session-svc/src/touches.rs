//! What validations saw, gathered in memory and written in sorted batches off the request path.
//!
//! Until a touch is written, this is where its session's last-seen time and visit are to be read from, too: a load from
//! the database is older.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::TimeDelta;
use shared::id::{SessionId, TenantId};
use shared::time::Time;

use crate::domain::session::Session;
use crate::store::visit::{Beginning, Touch};

const SHARDS: usize = 64;
const SHARD_MAX: usize = 16_384;
/// Longer than an outage of the database that sessions outlive by what is in memory.
const KEPT: TimeDelta = TimeDelta::hours(2);
/// Touches written in one transaction.
pub const BATCH: usize = 2000;

type Key = (TenantId, SessionId);

/// Touches that are not written yet, or being written.
pub struct Touches {
    shards: Box<[Mutex<HashMap<Key, Touch>>]>,
}

impl Default for Touches {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Touches {
    /// Notes that a session was seen, and the visit that began by it.
    pub fn note(&self, tenant: &TenantId, session: SessionId, now: Time, visit: Option<Beginning>) {
        let mut shard = self.shard(session);
        let is_full = shard.len() >= SHARD_MAX;
        match shard.entry((tenant.clone(), session)) {
            Entry::Occupied(mut touch) => {
                let touch = touch.get_mut();
                touch.seen_at = touch.seen_at.max(now);
                if let Some(mut begun) = visit {
                    // Of several that came after what the row has, none of the units are written. One that came after
                    // something else was replaced by another replica.
                    if let Some(before) = touch.visit.take().filter(|before| before.stored == begun.stored) {
                        begun.units.splice(0..0, before.units);
                    }
                    touch.visit = Some(begun);
                }
            }
            // Only while the database is away for long: better to lose a last-seen time than the memory.
            Entry::Vacant(_) if is_full => {}
            Entry::Vacant(place) => {
                place.insert(Touch { tenant: tenant.clone(), session, seen_at: now, visit });
            }
        }
    }

    /// What is not written yet of a session. To be taken *before* its row is read: what is gone from here by then is in
    /// the row.
    pub fn peek(&self, tenant: &TenantId, session: SessionId) -> Option<Touch> {
        self.shard(session).get(&(tenant.clone(), session)).cloned()
    }

    /// Notes that the row has the session's visit by now.
    pub fn moved(&self, tenant: &TenantId, session: SessionId) {
        if let Some(touch) = self.shard(session).get_mut(&(tenant.clone(), session)) {
            touch.visit = None;
        }
    }

    /// A copy of what is to be written, in key order. What could not be written for long is of no row any more.
    pub fn pending(&self, now: Time) -> Vec<Touch> {
        let mut touches = Vec::new();
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.retain(|_, touch| now < touch.seen_at + KEPT);
            touches.extend(shard.values().cloned());
        }
        touches.sort_by(|a, b| (&a.tenant, a.session).cmp(&(&b.tenant, b.session)));
        touches
    }

    /// Forgets what was written, but for what changed meanwhile.
    pub fn written<'a>(&self, touches: impl Iterator<Item = &'a &'a Touch>) {
        for touch in touches {
            let mut shard = self.shard(touch.session);
            let key = (touch.tenant.clone(), touch.session);
            let Some(current) = shard.get_mut(&key) else { continue };
            if current.seen_at == touch.seen_at && current.visit == touch.visit {
                shard.remove(&key);
            } else if let (Some(begun), Some(written)) = (&mut current.visit, &touch.visit) {
                begun.stored = written.visit.clone();
                if begun.visit == written.visit {
                    current.visit = None;
                }
            }
        }
    }

    fn shard(&self, session: SessionId) -> MutexGuard<'_, HashMap<Key, Touch>> {
        // The last bytes of a UUID version 7 are random.
        lock(&self.shards[usize::from(session.uuid().as_bytes()[15]) % SHARDS])
    }
}

impl Touch {
    /// Brings what was read up to what was seen.
    pub fn overlay(&self, session: &mut Session) {
        session.last_seen_at = session.last_seen_at.max(self.seen_at);
        if let Some(begun) = &self.visit
            && begun.stored == session.visit
        {
            session.visit = begun.visit.clone();
        }
    }
}

fn lock(shard: &Mutex<HashMap<Key, Touch>>) -> MutexGuard<'_, HashMap<Key, Touch>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
