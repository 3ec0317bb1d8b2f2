//! When to start again what has died: at once at first, more slowly when that does not help, and not for ever.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

const DELAY_MIN: Duration = Duration::from_millis(500);
const DELAY_MAX: Duration = Duration::from_secs(10);
/// Who lived longer than this did come up.
const CAME_UP: Duration = Duration::from_secs(5);
const DEATHS_MAX: usize = 10;
const DEATHS_WITHIN: Duration = Duration::from_mins(1);

/// Deaths of late.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    deaths: VecDeque<Instant>,
    delay: Duration,
}

impl Restarts {
    /// How long to wait before the next start, after a death at `now` of what was started at `born`; `None` where
    /// starting again does not help.
    pub(super) fn after(&mut self, born: Instant, now: Instant) -> Option<Duration> {
        self.deaths.retain(|death| now - *death < DEATHS_WITHIN);
        self.deaths.push_back(now);
        if self.deaths.len() >= DEATHS_MAX {
            return None;
        }
        let did_come_up = now - born >= CAME_UP;
        self.delay = if did_come_up { DELAY_MIN } else { (self.delay * 2).clamp(DELAY_MIN, DELAY_MAX) };
        Some(self.delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_a_limit_and_begin_anew_for_who_came_up() {
        let mut restarts = Restarts::default();
        let mut now = Instant::now();
        for millis in [500, 1000, 2000, 4000, 8000, 10_000, 10_000] {
            assert_eq!(restarts.after(now, now), Some(Duration::from_millis(millis)));
        }
        let born = now;
        now += Duration::from_secs(5);
        assert_eq!(restarts.after(born, now), Some(DELAY_MIN));
    }

    #[test]
    fn ten_deaths_within_a_minute_are_enough_and_old_ones_are_forgotten() {
        let mut restarts = Restarts::default();
        let mut now = Instant::now();
        for _ in 0..30 {
            assert!(restarts.after(now, now).is_some());
            now += Duration::from_secs(7);
        }
        let mut restarts = Restarts::default();
        assert_eq!((0..30).take_while(|_| restarts.after(now, now).is_some()).count(), DEATHS_MAX - 1);
    }
}
