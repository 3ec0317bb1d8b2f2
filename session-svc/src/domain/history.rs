//! What a shopper did lately: a ring of the newest entries, in the order of their times, each thing once within half an
//! hour. Whether it may be kept at all, consent decides.

use chrono::TimeDelta;
use shared::time::Time;

/// Most entries.
pub const ENTRIES_MAX: usize = 200;
/// An entry is kept for so long.
pub const RETENTION: TimeDelta = TimeDelta::days(90);
/// The same thing done again within it is one entry.
pub const REPEAT_WITHIN: TimeDelta = TimeDelta::minutes(30);
/// Longest dwell, in milliseconds.
pub const DWELL_MAX_MS: i64 = 24 * 60 * 60 * 1000;

/// The number in the API of an article's being looked at.
pub const VIEW: i32 = 1;

/// Something that a shopper did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What, by its number in the API; the rules of what is kept look only at whether it is the same.
    pub kind: i32,
    /// To what.
    pub reference: String,
    /// When.
    pub at: Time,
    /// For how long, up to [`DWELL_MAX_MS`].
    pub dwell_ms: i64,
    /// Fields that a newer build gave it.
    pub newer: Vec<u8>,
}

impl Entry {
    fn repeats(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.reference == other.reference
            && (self.at - other.at).abs() < REPEAT_WITHIN
    }
}

/// A shopper's history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// Oldest first.
    entries: Vec<Entry>,
    /// Fields that a newer build gave it.
    pub newer: Vec<u8>,
}

impl History {
    /// As it was stored.
    pub fn from_stored(entries: Vec<Entry>, newer: Vec<u8>) -> Self {
        Self { entries, newer }
    }

    /// As it is stored, oldest first; what is too old by now may still be there.
    pub fn stored(&self) -> &[Entry] {
        &self.entries
    }

    /// Adds entries in any order, and forgets those that are too old, then the oldest of too many.
    pub fn add(&mut self, entries: impl IntoIterator<Item = Entry>, now: Time) {
        for entry in entries {
            self.add_one(entry);
        }
        self.entries.retain(|entry| is_young(entry, now));
        let excess = self.entries.len().saturating_sub(ENTRIES_MAX);
        self.entries.drain(..excess);
    }

    fn add_one(&mut self, entry: Entry) {
        let mut same: Vec<_> = self.entries.extract_if(.., |other| other.repeats(&entry)).collect();
        same.push(entry);
        let dwell = same.iter().fold(0_i64, |sum, entry| sum.saturating_add(entry.dwell_ms));
        let Some(newest) = same.into_iter().max_by_key(|entry| entry.at) else { return };
        let place = self.entries.partition_point(|other| other.at <= newest.at);
        self.entries
            .insert(place, Entry { dwell_ms: dwell.min(DWELL_MAX_MS), ..newest });
    }

    /// What is not too old, newest first.
    pub fn newest(&self, now: Time) -> impl Iterator<Item = &Entry> {
        self.entries.iter().rev().filter(move |entry| is_young(entry, now))
    }
}

/// When the last of the articles in these entries was looked at, of those that are not too old.
pub fn looked_at(entries: &[Entry], now: Time) -> Option<Time> {
    let looks = entries.iter().filter(|entry| entry.kind == VIEW && is_young(entry, now));
    looks.map(|entry| entry.at).max()
}

fn is_young(entry: &Entry, now: Time) -> bool {
    entry.at > now - RETENTION
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use shared::time::at;

    const NOW: i64 = 1_800_000_000;

    fn entry(kind: i32, reference: &str, minutes_ago: i64, dwell_ms: i64) -> Entry {
        let at = at(NOW) - TimeDelta::minutes(minutes_ago);
        Entry { kind, reference: reference.to_owned(), at, dwell_ms, newer: vec![] }
    }

    fn history(entries: impl IntoIterator<Item = Entry>) -> History {
        let mut history = History::default();
        history.add(entries, at(NOW));
        history
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let entry = (0..3, "[a-e]", 0..200_000_i64, 0..1000_i64)
            .prop_map(|(kind, reference, ago, dwell)| entry(kind, &reference, ago, dwell));
        vec(entry, 0..400)
    }

    #[test]
    fn the_same_thing_within_half_an_hour_is_the_newest_and_dwells_as_long_as_all() {
        let history = history([
            entry(1, "a", 60, 5),
            entry(1, "a", 29, 10),
            entry(1, "b", 20, 1),
            entry(2, "a", 10, 2),
            entry(1, "a", 0, 20),
        ]);
        let kept: Vec<_> = history
            .newest(at(NOW))
            .map(|entry| (entry.kind, &*entry.reference, entry.dwell_ms))
            .collect();
        assert_eq!(kept, [(1, "a", 30), (2, "a", 2), (1, "b", 1), (1, "a", 5)]);
    }

    #[test]
    fn what_comes_late_joins_what_it_lies_between() {
        let history = history([entry(1, "a", 40, 1), entry(1, "a", 0, 2), entry(1, "a", 20, 4)]);
        assert_eq!(history.stored(), [entry(1, "a", 0, 7)]);
    }

    #[test]
    fn the_last_look_is_that_at_an_article() {
        let entries = [entry(VIEW, "b", 20, 1), entry(VIEW, "a", 40, 1), entry(2, "c", 10, 1)];
        assert_eq!(looked_at(&entries, at(NOW)), Some(at(NOW) - TimeDelta::minutes(20)));
        assert_eq!(looked_at(&entries, at(NOW) + RETENTION), None);
        assert_eq!(looked_at(&entries[2..], at(NOW)), None);
    }

    #[test]
    fn nobody_dwells_longer_than_a_day() {
        let history = history([entry(1, "a", 5, DWELL_MAX_MS), entry(1, "a", 0, DWELL_MAX_MS)]);
        assert_eq!(history.stored(), [entry(1, "a", 0, DWELL_MAX_MS)]);
    }

    #[test]
    fn entries_end_after_90_days_read_or_written() {
        let day = 24 * 60;
        let old = history([entry(1, "a", 90 * day - 1, 0)]);
        assert_eq!(old.newest(at(NOW)).count(), 1);
        assert_eq!(old.newest(at(NOW) + TimeDelta::minutes(1)).count(), 0);
        assert_eq!(history([entry(1, "a", 90 * day, 0)]).stored(), []);
    }

    proptest! {
        #[test]
        fn the_ring_is_short_young_in_order_and_without_repeats(batches in vec(entries(), 1..4)) {
            let mut history = History::default();
            for batch in batches {
                history.add(batch, at(NOW));
                let kept = history.stored();
                prop_assert!(kept.len() <= ENTRIES_MAX);
                prop_assert!(kept.iter().all(|entry| entry.at > at(NOW) - RETENTION));
                prop_assert!(kept.is_sorted_by_key(|entry| entry.at));
                for (n, entry) in kept.iter().enumerate() {
                    prop_assert!(!kept[n + 1..].iter().any(|other| other.repeats(entry)));
                }
            }
        }

        #[test]
        fn what_fits_is_neither_lost_nor_made_up(entries in entries()) {
            let young: Vec<_> = entries.into_iter().filter(|entry| is_young(entry, at(NOW))).take(150).collect();
            let history = history(young.clone());
            let dwell = |entries: &[Entry]| entries.iter().map(|entry| entry.dwell_ms).sum::<i64>();
            prop_assert_eq!(dwell(history.stored()), dwell(&young));
            let newest = |entries: &[Entry]| entries.iter().map(|entry| entry.at).max();
            prop_assert_eq!(newest(history.stored()), newest(&young));
            for entry in &young {
                let is_there = |kept: &Entry| kept.kind == entry.kind && kept.reference == entry.reference && kept.at >= entry.at;
                prop_assert!(history.stored().iter().any(is_there));
            }
        }

        #[test]
        fn of_too_many_the_newest_stay(count in 201_i64..400) {
            let history = history((0..count).map(|n| entry(1, &n.to_string(), n, 0)));
            let kept: Vec<_> = history.newest(at(NOW)).map(|entry| entry.reference.clone()).collect();
            prop_assert_eq!(kept, (0..200).map(|n| n.to_string()).collect::<Vec<_>>());
        }
    }
}
