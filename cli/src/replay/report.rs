//! What happened, counted by each worker and added up. `summary` says it to people and programs.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use shared::pb::session::{Arm, ReleasePin};

use super::call::Refused;

/// Most lines that are listed one by one.
const LISTED_MAX: usize = 10;

/// What one worker counted.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) shop: Shop,
    pub(crate) releases: Releases,
    pub(crate) promises: Promises,
    /// By component, version and arm.
    pub(crate) visits: BTreeMap<(String, String, &'static str), u64>,
    /// Changes of a pin within a visit, to be explained when all is done.
    pub(crate) moves: BTreeMap<Move, u64>,
    /// Microseconds by method.
    pub(crate) latencies: BTreeMap<&'static str, Histogram<u64>>,
    pub(crate) retries: BTreeMap<String, u64>,
    /// By method and reason: how many, and what the first one said.
    pub(crate) errors: BTreeMap<(&'static str, String), (u64, String)>,
}

/// What shoppers did, as far as it was acknowledged.
#[derive(Debug, Default, Clone, Serialize)]
pub(crate) struct Shop {
    pub(crate) sessions: u64,
    pub(crate) pages: u64,
    pub(crate) carts: u64,
    pub(crate) lines: u64,
    pub(crate) purchases: u64,
    /// Checkouts that ended without an order.
    pub(crate) failures: u64,
    /// In pence.
    pub(crate) purchased_minor_units: i64,
    /// Verdicts given while the database was away.
    pub(crate) degraded: u64,
}

/// What became of the release history.
#[derive(Debug, Default, Clone, Serialize)]
pub(crate) struct Releases {
    pub(crate) entered: u64,
    pub(crate) approved: u64,
    pub(crate) rolled_out: u64,
    pub(crate) rolled_back: u64,
    /// Versions of an older line than the newest, where a new line must be greater than all.
    pub(crate) refused: u64,
}

/// What must not happen: all of it counts to zero, or the replay has failed.
#[derive(Debug, Default, Clone, Serialize)]
pub(crate) struct Promises {
    /// Live sessions that were said not to be, or not to be those of who had logged in.
    pub(crate) false_logouts: u64,
    /// Visits whose release changed though nothing was rolled back.
    pub(crate) version_flips: u64,
    /// Visits whose release changed between the begin and the end of a checkout.
    pub(crate) checkouts_moved: u64,
    /// Acknowledged orders that are none.
    pub(crate) orders_missing: u64,
    /// Acknowledged lines that are not in the cart, or not as they were acknowledged.
    pub(crate) lines_missing: u64,
    /// Lines, or pieces of one, that nobody asked for.
    pub(crate) lines_unexpected: u64,
    /// The first of the lines and orders above, in words.
    pub(crate) listed: Vec<String>,
}

/// A change of what a visit is pinned to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Move {
    pub(crate) component: String,
    pub(crate) from: Pin,
    /// `None` where the component is served no more.
    pub(crate) to: Option<Pin>,
    pub(crate) in_checkout: bool,
}

/// What a visit is pinned to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pin {
    pub(crate) version: String,
    pub(crate) arm: Arm,
    pub(crate) release_id: String,
    pub(crate) rollout_id: String,
}

impl From<ReleasePin> for Pin {
    fn from(pin: ReleasePin) -> Self {
        let arm = pin.arm();
        let ReleasePin { component: _, version, release_id, arm: _, rollout_id } = pin;
        Self { version, arm, release_id, rollout_id }
    }
}

impl Pin {
    /// Whether a visit that goes from one to the other sees another release or arm.
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        (&self.version, self.arm, &self.release_id) == (&other.version, other.arm, &other.release_id)
    }
}

impl Tally {
    /// A call was answered.
    pub(crate) fn took(&mut self, method: &'static str, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.latencies.entry(method).or_insert_with(histogram).saturating_record(micros);
    }

    /// A call is tried again.
    pub(crate) fn retried(&mut self, reason: &str) {
        *self.retries.entry(reason.to_owned()).or_default() += 1;
    }

    /// Something was refused that should not have been.
    pub(crate) fn failed(&mut self, refused: Refused) {
        let Refused { method, reason, message } = refused;
        self.errors.entry((method, reason)).or_insert((0, message)).0 += 1;
    }

    /// A visit sees a component for the first time.
    pub(crate) fn visited(&mut self, component: &str, pin: &Pin) {
        let arm = match pin.arm {
            Arm::Unspecified => "-",
            Arm::Control => "control",
            Arm::Canary => "canary",
        };
        *self.visits.entry((component.to_owned(), pin.version.clone(), arm)).or_default() += 1;
    }

    /// Adds what another counted.
    pub(crate) fn add(&mut self, other: Self) {
        let Self { shop, releases, promises, visits, moves, latencies, retries, errors } = other;
        self.shop.add(&shop);
        self.releases.add(&releases);
        self.promises.add(promises);
        add_counts(&mut self.visits, visits);
        add_counts(&mut self.moves, moves);
        add_counts(&mut self.retries, retries);
        for (key, (count, message)) in errors {
            self.errors.entry(key).or_insert((0, message)).0 += count;
        }
        for (method, times) in latencies {
            let sum = self.latencies.entry(method).or_insert_with(histogram);
            sum.add(times).expect("all have the same bounds");
        }
    }
}

/// From a microsecond to a minute, longer than any call is tried, to one part in a hundred.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 2).expect("the bounds are in order")
}

fn add_counts<K: Ord>(sum: &mut BTreeMap<K, u64>, more: BTreeMap<K, u64>) {
    for (key, count) in more {
        *sum.entry(key).or_default() += count;
    }
}

impl Shop {
    fn add(&mut self, other: &Self) {
        self.sessions += other.sessions;
        self.pages += other.pages;
        self.carts += other.carts;
        self.lines += other.lines;
        self.purchases += other.purchases;
        self.failures += other.failures;
        self.purchased_minor_units += other.purchased_minor_units;
        self.degraded += other.degraded;
    }
}

impl Releases {
    fn add(&mut self, other: &Self) {
        self.entered += other.entered;
        self.approved += other.approved;
        self.rolled_out += other.rolled_out;
        self.rolled_back += other.rolled_back;
        self.refused += other.refused;
    }
}

impl Promises {
    fn add(&mut self, other: Self) {
        self.false_logouts += other.false_logouts;
        self.version_flips += other.version_flips;
        self.checkouts_moved += other.checkouts_moved;
        self.orders_missing += other.orders_missing;
        self.lines_missing += other.lines_missing;
        self.lines_unexpected += other.lines_unexpected;
        self.listed.extend(other.listed);
        self.listed.truncate(LISTED_MAX);
    }

    /// Puts one into words, as long as there are few.
    pub(crate) fn list(&mut self, line: String) {
        if self.listed.len() < LISTED_MAX {
            self.listed.push(line);
        }
    }

    /// Whether all were kept.
    pub(crate) fn are_kept(&self) -> bool {
        self.named().iter().all(|(_, count)| *count == 0)
    }

    /// Each with its name.
    pub(crate) fn named(&self) -> [(&'static str, u64); 6] {
        [
            ("false logouts", self.false_logouts),
            ("version flips", self.version_flips),
            ("open checkouts moved", self.checkouts_moved),
            ("orders missing", self.orders_missing),
            ("lines missing", self.lines_missing),
            ("lines unexpected", self.lines_unexpected),
        ]
    }
}
