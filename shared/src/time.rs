//! Time as a value. Only `rpc` and `workers` ask the [`Clock`], once a request or pass.
//!
//! The system clock is the monotonic clock plus an offset to the database's, measured anew now and then, so that
//! replicas agree and a change of the host's clock moves nobody's deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

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

/// Tells the time. Clones share it.
#[derive(Clone)]
pub struct Clock(Arc<Source>);

enum Source {
    /// Microseconds to add to those since `anchor`.
    System { anchor: Instant, offset: AtomicI64 },
    /// Microseconds since 1970.
    Fake(AtomicI64),
}

impl Clock {
    /// The host's clock, until [`Clock::adjust`] brings it to the database's.
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the host")]
    pub fn system() -> Self {
        Self(Arc::new(Source::System {
            anchor: Instant::now(),
            offset: AtomicI64::new(Utc::now().timestamp_micros()),
        }))
    }

    /// A clock that stands still until it is moved.
    pub fn fake(now: Time) -> Self {
        Self(Arc::new(Source::Fake(AtomicI64::new(now.timestamp_micros()))))
    }

    /// The present instant.
    pub fn now(&self) -> Time {
        let micros = match &*self.0 {
            Source::System { anchor, offset } => offset.load(Ordering::Relaxed) + micros(anchor.elapsed()),
            Source::Fake(now) => now.load(Ordering::SeqCst),
        };
        from_micros(micros)
    }

    /// Takes in that the database read `now` between `sent` and this moment. A fake clock stays as it is.
    pub fn adjust(&self, sent: Instant, now: Time) {
        if let Source::System { anchor, offset } = &*self.0 {
            let middle = sent + sent.elapsed() / 2;
            offset.store(now.timestamp_micros() - micros(middle - *anchor), Ordering::Relaxed);
        }
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

fn micros(elapsed: std::time::Duration) -> i64 {
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
pub fn duration_to_proto(duration: std::time::Duration) -> prost_types::Duration {
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
}
