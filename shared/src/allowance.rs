//! What one caller may take of a server: so many calls a second, and so many streams at once.
//!
//! A verified [`Caller`] holds the [`Allowance`] of its principal, so that a call costs one atomic operation and no
//! look-up. All tokens of a principal share one.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::auth::Caller;
use crate::id::TenantId;
use crate::status::{Reason, Refusal};
use crate::time::Clock;

/// Streams that one principal may hold.
const STREAMS: usize = 100;
/// A principal beyond these begins afresh when its next token is verified.
const PRINCIPALS: u64 = 100_000;

impl governor::clock::Clock for Clock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        Duration::from_micros(self.now().timestamp_micros().unsigned_abs())
    }
}

/// What one principal may take.
pub struct Allowance {
    calls: RateLimiter<NotKeyed, InMemoryState, Clock, NoOpMiddleware<Duration>>,
    rate: NonZeroU32,
    clock: Clock,
    streams: Arc<Semaphore>,
}

impl Allowance {
    fn new(rate: NonZeroU32, clock: Clock) -> Self {
        Self {
            calls: RateLimiter::direct_with_clock(Quota::per_second(rate), clock.clone()),
            rate,
            clock,
            streams: Arc::new(Semaphore::new(STREAMS)),
        }
    }

    /// Takes a call, or says when there will be one to take.
    pub fn take_call(&self) -> Result<(), Refusal> {
        let Err(until) = self.calls.check() else { return Ok(()) };
        let text = format!("the caller makes more than {} calls a second", self.rate);
        Err(Refusal::new(Reason::CallerRateLimited, text)
            .with("calls_per_second", self.rate)
            .retry_after(until.wait_time_from(governor::clock::Clock::now(&self.clock))))
    }

    /// A place for a stream, to be kept as long as it is open; `None` where the caller has too many.
    pub fn take_stream(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.streams).try_acquire_owned().ok()
    }
}

impl fmt::Debug for Allowance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Allowance").field("rate", &self.rate).finish_non_exhaustive()
    }
}

/// Allowances by principal; asked once a token, when it was verified.
pub struct Allowances {
    by_principal: moka::sync::Cache<(TenantId, String), Arc<Allowance>>,
    rate: NonZeroU32,
    clock: Clock,
}

impl Allowances {
    /// So many calls a second for each, and as many at once.
    pub fn new(rate: NonZeroU32, clock: Clock) -> Self {
        Self { by_principal: moka::sync::Cache::new(PRINCIPALS), rate, clock }
    }

    /// The caller's.
    pub fn of<'a>(&self, caller: &'a Caller) -> &'a Allowance {
        caller.allowance.get_or_init(|| {
            let principal = (caller.tenant.clone(), caller.principal.clone());
            self.by_principal
                .get_with(principal, || Arc::new(Allowance::new(self.rate, self.clock.clone())))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::at;

    #[test]
    fn a_second_s_worth_goes_at_once_and_then_only_as_time_passes() {
        let clock = Clock::fake(at(1_800_000_000));
        let allowance = Allowance::new(NonZeroU32::new(4).unwrap(), clock.clone());
        for _ in 0..4 {
            allowance.take_call().unwrap();
        }
        let status = allowance.take_call().unwrap_err().into_status();
        let details = tonic_types::StatusExt::get_error_details(&status);
        let delay = details.retry_info().and_then(|info| info.retry_delay);
        assert_eq!(delay, Some(Duration::from_millis(250)));
        clock.advance(chrono::TimeDelta::milliseconds(249));
        assert!(allowance.take_call().is_err());
        clock.advance(chrono::TimeDelta::milliseconds(1));
        allowance.take_call().unwrap();
        assert!(allowance.take_call().is_err());
    }
}
