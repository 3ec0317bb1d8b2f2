//! Sessions in memory: what was read of one, and what was seen of it since.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use chrono::TimeDelta;
use shared::time::{Time, from_micros};

use crate::domain::session::Session;
use crate::domain::visit::Visit;

/// How far what is gathered of a session may be behind what is known here.
const NOTE_INTERVAL: TimeDelta = TimeDelta::milliseconds(200);

/// A session that was read.
pub struct Known {
    /// As it was read, with what was not written yet by then.
    pub session: Session,
    /// The visit that its row had, where that is another.
    stored: Option<Box<Visit>>,
    seen_at: AtomicI64,
    noted_at: AtomicI64,
    routed_by: AtomicU64,
}

impl Known {
    /// As it was read, which counts as no activity.
    pub fn new(session: Session, stored: Visit) -> Self {
        let seen_at = AtomicI64::new(session.last_seen_at.timestamp_micros());
        let stored = (stored != session.visit).then(|| Box::new(stored));
        Self { session, stored, seen_at, noted_at: AtomicI64::new(0), routed_by: AtomicU64::new(0) }
    }

    /// Takes another reading in; false if it tells of more than that the session was seen, and must take this one's place.
    pub fn renew(&self, session: &Session, stored: &Visit) -> bool {
        let as_seen_before = Session { last_seen_at: self.session.last_seen_at, ..session.clone() };
        if as_seen_before != self.session || stored != self.stored() {
            return false;
        }
        self.seen_at
            .fetch_max(session.last_seen_at.timestamp_micros(), Ordering::Relaxed);
        true
    }

    /// The visit that its row had.
    pub fn stored(&self) -> &Visit {
        self.stored.as_deref().unwrap_or(&self.session.visit)
    }

    /// Whether its visit may be told of before it is written.
    pub fn may_be_told(&self) -> bool {
        self.stored
            .as_deref()
            .is_none_or(|stored| !self.session.visit.is_dealt_beyond(stored))
    }

    /// When it was last seen here, or by whoever wrote it.
    pub fn last_seen_at(&self) -> Time {
        from_micros(self.seen_at.load(Ordering::Relaxed))
    }

    /// It is seen; true if that should be noted down, which it need not be each time.
    pub fn see(&self, now: Time) -> bool {
        let micros = now.timestamp_micros();
        self.seen_at.fetch_max(micros, Ordering::Relaxed);
        let noted_at = self.noted_at.load(Ordering::Relaxed);
        let is_due = now >= from_micros(noted_at) + NOTE_INTERVAL;
        // Of several at once, one notes it down.
        is_due
            && self
                .noted_at
                .compare_exchange(noted_at, micros, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Whether its pins were found to stand by this state of the routes and of the touchpoint.
    pub fn is_routed_by(&self, state: u64) -> bool {
        self.routed_by.load(Ordering::Relaxed) == state
    }

    /// Its pins stand by this state of the routes and of the touchpoint.
    pub fn routed_by(&self, state: u64) {
        self.routed_by.store(state, Ordering::Relaxed);
    }
}
