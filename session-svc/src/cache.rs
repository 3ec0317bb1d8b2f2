//! What was read from the database and may be answered again, as long as nothing that changes it was heard of.
//!
//! A load enters only if its key was not invalidated since the load was sent, so that no slow answer brings an old state
//! back. How old an entry may be is for whoever asks to say.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shared::time::Time;

/// Counters of invalidations; keys share one now and then, which only costs an entry its place. Reading takes none of them.
const GENERATIONS: usize = 4096;

/// A bounded map of loaded values.
pub struct Cache<K, V> {
    entries: moka::sync::Cache<K, Arc<Entry<V>>>,
    generations: Box<[Mutex<u64>]>,
    hasher: RandomState,
}

/// A value and how fresh it is by itself.
pub struct Entry<V> {
    /// What was read.
    pub value: V,
    /// When the reading was sent: the value takes in everything committed before.
    pub sent_at: Time,
}

/// The state of a key when its load was sent.
#[derive(Clone, Copy)]
pub struct Ticket(u64);

impl<K: Hash + Eq + Send + Sync + Clone + 'static, V: Send + Sync + 'static> Cache<K, V> {
    /// An empty cache.
    pub fn new(capacity: u64) -> Self {
        Self {
            entries: moka::sync::Cache::builder().max_capacity(capacity).build(),
            generations: (0..GENERATIONS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
        }
    }

    /// The entry of a key, of whatever age.
    pub fn get(&self, key: &K) -> Option<Arc<Entry<V>>> {
        self.entries.get(key)
    }

    /// To be taken before a load is sent.
    pub fn ticket(&self, key: &K) -> Ticket {
        Ticket(*self.generation(key))
    }

    /// Takes a load in, unless its key was invalidated since.
    pub fn insert(&self, key: &K, ticket: Ticket, entry: Arc<Entry<V>>) {
        // Held over the insertion, so that no invalidation falls between the two and removes nothing.
        let generation = self.generation(key);
        if *generation == ticket.0 {
            self.entries.insert(key.clone(), entry);
        }
    }

    /// Forgets a key, and whatever load of it is under way.
    pub fn invalidate(&self, key: &K) {
        let mut generation = self.generation(key);
        *generation += 1;
        self.entries.invalidate(key);
    }

    /// Forgets everything, and whatever loads are under way.
    pub fn clear(&self) {
        for generation in &self.generations {
            *lock(generation) += 1;
        }
        self.entries.invalidate_all();
    }

    /// How many entries there are, roughly.
    pub fn entry_count(&self) -> u64 {
        self.entries.entry_count()
    }

    fn generation(&self, key: &K) -> MutexGuard<'_, u64> {
        let hash = self.hasher.hash_one(key);
        lock(&self.generations[usize::try_from(hash % GENERATIONS as u64).unwrap_or(0)])
    }
}

fn lock(generation: &Mutex<u64>) -> MutexGuard<'_, u64> {
    generation.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::time::at;

    fn entry(value: u32) -> Arc<Entry<u32>> {
        Arc::new(Entry { value, sent_at: at(0) })
    }

    #[test]
    fn a_load_that_was_overtaken_by_an_invalidation_does_not_enter() {
        let cache = Cache::new(10);
        let ticket = cache.ticket(&"a");
        cache.invalidate(&"a");
        cache.insert(&"a", ticket, entry(1));
        assert!(cache.get(&"a").is_none());
        cache.insert(&"a", cache.ticket(&"a"), entry(2));
        assert_eq!(cache.get(&"a").map(|entry| entry.value), Some(2));
    }

    #[test]
    fn a_cleared_cache_takes_in_no_load_that_was_under_way() {
        let cache = Cache::new(10);
        cache.insert(&"a", cache.ticket(&"a"), entry(1));
        let ticket = cache.ticket(&"b");
        cache.clear();
        cache.insert(&"b", ticket, entry(1));
        assert!(cache.get(&"a").is_none() && cache.get(&"b").is_none());
        cache.insert(&"b", cache.ticket(&"b"), entry(2));
        assert_eq!(cache.get(&"b").map(|entry| entry.value), Some(2));
    }
}
