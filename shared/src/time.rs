//! Time as a value. Only `rpc` and `workers` ask the [`Clock`], once a request or pass.
//!
//! The system clock is the monotonic clock brought to the database's, which is measured anew now and then, so that
//! replicas agree and a change of the host's clock moves nobody's deadline.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

/// An instant, whole microseconds, as PostgreSQL keeps it.
pub type Time = DateTime<Utc>;

/// The instant so many seconds after 1970.
pub fn at(seconds: i64) -> Time {
    DateTime::from_timestamp(seconds, 0).unwrap_or_default()
}

/// Microseconds since 1970 to an instant; out of range is 1970.
pub fn from_micros(micros: i64) -> Time {
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}

/// A sample of the database's clock that took longer to come says too little about when it was read.
const ROUND_TRIP_MAX: Duration = Duration::from_millis(200);
/// A clock that is ahead goes slower by one part in so many until it is not. A lease of minutes that is measured with it is
/// off by seconds, which leases allow for.
const SLEW: i64 = 32;

/// Tells the time. Clones share it.
#[derive(Clone)]
pub struct Clock(Arc<Source>);

enum Source {
    System {
        anchor: Instant,
        course: RwLock<Course>,
    },
    /// Microseconds since 1970.
    Fake(AtomicI64),
}

/// How the system clock goes, in microseconds. It never goes back: where it is found to be ahead it goes slower.
#[derive(Clone, Copy)]
struct Course {
    /// Since the anchor, when the clock took this course.
    from: i64,
    /// What it showed then, since 1970.
    shown: i64,
    /// How far it was ahead then.
    ahead: i64,
    /// Whether a database was asked yet.
    is_measured: bool,
}

impl Course {
    fn at(&self, elapsed: i64) -> i64 {
        let passed = elapsed - self.from;
        self.shown + passed - self.ahead.min(passed / SLEW)
    }

    /// The course from `elapsed` on, when the truth was found to be `truth`.
    fn corrected(&self, elapsed: i64, truth: i64) -> Self {
        let shown = self.at(elapsed).max(truth);
        Self { from: elapsed, shown, ahead: shown - truth, is_measured: true }
    }
}

impl Clock {
    /// The host's clock, until [`Clock::adjust`] brings it to the database's.
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the host")]
    pub fn system() -> Self {
        let course = Course { from: 0, shown: Utc::now().timestamp_micros(), ahead: 0, is_measured: false };
        Self(Arc::new(Source::System { anchor: Instant::now(), course: RwLock::new(course) }))
    }

    /// A clock that stands still until it is moved.
    pub fn fake(now: Time) -> Self {
        Self(Arc::new(Source::Fake(AtomicI64::new(now.timestamp_micros()))))
    }

    /// The present instant, never before one that was told earlier.
    pub fn now(&self) -> Time {
        let micros = match &*self.0 {
            Source::System { anchor, course } => {
                // Read under the lock, so that it is after the beginning of the course.
                let course = course.read().unwrap_or_else(PoisonError::into_inner);
                course.at(micros(anchor.elapsed()))
            }
            Source::Fake(now) => now.load(Ordering::SeqCst),
        };
        from_micros(micros)
    }

    /// Takes in that the database read `now` between `sent` and this moment, unless that was too long. A fake clock stays
    /// as it is.
    pub fn adjust(&self, sent: Instant, now: Time) {
        let Source::System { anchor, course } = &*self.0 else { return };
        let mut course = course.write().unwrap_or_else(PoisonError::into_inner);
        let round_trip = sent.elapsed();
        if course.is_measured && round_trip > ROUND_TRIP_MAX {
            tracing::debug!(?round_trip, "a sample of the database's clock was not taken");
            return;
        }
        let truth = now.timestamp_micros() + micros(round_trip / 2);
        *course = course.corrected(micros(anchor.elapsed()), truth);
    }

    /// Moves a fake clock on.
    ///
    /// # Panics
    /// On the system clock, which only time moves.
    pub fn advance(&self, by: chrono::TimeDelta) {
        match &*self.0 {
            Source::System { .. } => panic!("the system clock cannot be moved"),
            Source::Fake(now) => now.fetch_add(by.num_microseconds().unwrap_or(0), Ordering::SeqCst),
        };
    }
}

fn micros(elapsed: Duration) -> i64 {
    i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX)
}

/// To the wire.
pub fn to_proto(time: Time) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.timestamp(),
        nanos: i32::try_from(time.timestamp_subsec_nanos()).unwrap_or(0),
    }
}

/// From the wire, to whole microseconds; `None` for what is no instant between the years 1 and 9999.
pub fn from_proto(time: prost_types::Timestamp) -> Option<Time> {
    let nanos = u32::try_from(time.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    let in_range = (-62_135_596_800..253_402_300_800).contains(&time.seconds);
    in_range
        .then(|| DateTime::from_timestamp(time.seconds, nanos / 1000 * 1000))
        .flatten()
}

/// To the wire.
pub fn duration_to_proto(duration: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(duration).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_survive_the_wire_to_the_microsecond() {
        let time = from_micros(1_700_000_000_123_456);
        assert_eq!(from_proto(to_proto(time)), Some(time));
    }

    #[test]
    fn impossible_instants_are_refused() {
        for (seconds, nanos) in
            [(i64::MAX, 0), (i64::MIN, 0), (0, -1), (0, 1_000_000_000), (253_402_300_800, 0)]
        {
            assert_eq!(from_proto(prost_types::Timestamp { seconds, nanos }), None);
        }
    }

    #[test]
    fn the_system_clock_follows_the_database() {
        let clock = Clock::system();
        clock.adjust(Instant::now(), at(4_000_000_000));
        assert!((clock.now() - at(4_000_000_000)).num_seconds() < 60);
    }

    #[test]
    fn a_clock_that_is_ahead_goes_slower_and_never_back() {
        let mut course = Course { from: 0, shown: 1_000_000, ahead: 0, is_measured: true };
        let mut last = 0;
        for elapsed in (0..200_000_000).step_by(10_000) {
            if elapsed == 10_000_000 {
                // Two seconds ahead, as it turns out.
                course = course.corrected(elapsed, 1_000_000 + elapsed - 2_000_000);
            }
            let now = course.at(elapsed);
            assert!(now > last, "{now} after {last}");
            last = now;
        }
        assert_eq!(course.at(10_000_000), 11_000_000, "no step");
        assert_eq!(course.at(10_000_000 + 2_000_000 * SLEW - SLEW), 9_000_001 + 2_000_000 * SLEW - SLEW);
        assert_eq!(course.at(200_000_000), 199_000_000, "caught up");
        // Behind, it is put right at once.
        assert_eq!(course.corrected(200_000_000, 250_000_000).at(200_000_001), 250_000_001);
    }

    #[test]
    fn a_sample_that_took_long_counts_only_as_the_first() {
        let clock = Clock::system();
        let Some(sent) = Instant::now().checked_sub(ROUND_TRIP_MAX * 2) else { return };
        clock.adjust(sent, at(4_000_000_000));
        assert!(clock.now() > at(4_000_000_000));
        clock.adjust(sent, at(5_000_000_000));
        assert!(clock.now() < at(4_100_000_000));
    }
}
