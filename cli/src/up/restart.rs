//! When to start again what has died: at once at first, more slowly when that does not help, and not for ever.

use std::time::Duration;

const DELAY_MIN: Duration = Duration::from_millis(500);
const DELAY_MAX: Duration = Duration::from_secs(10);
/// Who lived this long did come up.
const CAME_UP: Duration = Duration::from_secs(10);
const EARLY_DEATHS_MAX: usize = 10;

/// Early deaths in a row.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    early_deaths: usize,
    delay: Duration,
}

impl Restarts {
    /// How long to wait before the next start, after the death of what lived this long; zero where it never became
    /// ready. `None` where starting again does not help.
    pub(super) fn after(&mut self, lived: Duration) -> Option<Duration> {
        if lived >= CAME_UP {
            *self = Self::default();
        } else {
            self.early_deaths += 1;
        }
        self.delay = (self.delay * 2).clamp(DELAY_MIN, DELAY_MAX);
        (self.early_deaths < EARLY_DEATHS_MAX).then_some(self.delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_a_limit_and_begin_anew_for_who_came_up() {
        let mut restarts = Restarts::default();
        for millis in [500, 1000, 2000, 4000, 8000, 10_000, 10_000] {
            assert_eq!(restarts.after(Duration::ZERO), Some(Duration::from_millis(millis)));
        }
        assert_eq!(restarts.after(CAME_UP), Some(DELAY_MIN));
    }

    #[test]
    fn ten_early_deaths_in_a_row_are_enough_however_long_they_take() {
        for lived in [Duration::ZERO, Duration::from_millis(500), Duration::from_millis(9999)] {
            let mut restarts = Restarts::default();
            let starts = (0..30).take_while(|_| restarts.after(lived).is_some()).count();
            assert_eq!(starts, EARLY_DEATHS_MAX - 1, "for lives of {lived:?}");
        }
    }

    #[test]
    fn a_long_life_forgives_the_early_deaths_before_it() {
        let mut restarts = Restarts::default();
        for _ in 0..30 {
            for _ in 1..EARLY_DEATHS_MAX {
                assert!(restarts.after(Duration::from_millis(500)).is_some());
            }
            assert!(restarts.after(CAME_UP).is_some());
        }
    }
}
