//! One call: its deadline, and trying again for as long as that can help.
//!
//! An attempt that broke may have happened. Trying it again is safe because every change carries a `request_id`, and an
//! attempt always sends the same request.

use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use shared::secret::Entropy;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

use super::report::Tally;

/// How long an attempt may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// For how long a call is tried again; a service or PostgreSQL that was killed is back by then.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Reason given to a failure that no service of ours answered.
const NO_ANSWER: &str = "NO_ANSWER";

/// Makes calls, one at a time, and counts what happens.
pub(crate) struct Caller {
    rng: StdRng,
    patience: Duration,
    pub(crate) tally: Tally,
}

/// A call that was given up, or was refused for good.
#[derive(Debug, thiserror::Error)]
#[error("{method}: {reason}: {message}")]
pub(crate) struct Refused {
    pub(crate) method: &'static str,
    /// As in `ErrorInfo`.
    pub(crate) reason: String,
    pub(crate) message: String,
}

impl Caller {
    /// The rng spreads retries.
    pub(crate) fn new(rng: StdRng) -> Self {
        Self { rng, patience: PATIENCE, tally: Tally::default() }
    }

    /// True as often as that.
    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        self.rng.random_bool(probability)
    }

    /// Sends a request until it is answered, refused for good, or [`PATIENCE`] ends. What it took, retries included, is
    /// the latency that is counted; a refusal is counted by whoever did not expect it.
    pub(crate) async fn call<Q: Clone, A>(
        &mut self,
        method: &'static str,
        request: Q,
        send: impl AsyncFn(Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Refused> {
        let begin = Instant::now();
        let mut pause = PAUSE_MIN;
        loop {
            let mut attempt = Request::new(request.clone());
            attempt.set_timeout(DEADLINE);
            // The deadline is the services' to keep; the rest is for one that hangs.
            let answer = tokio::time::timeout(DEADLINE + Duration::from_secs(1), send(attempt)).await;
            let status = match answer {
                Ok(Ok(answer)) => {
                    self.tally.took(method, begin.elapsed());
                    return Ok(answer.into_inner());
                }
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("nothing came, not even that the deadline has passed"),
            };
            let reason = reason(&status);
            match retry_after(&status) {
                Some(least) if begin.elapsed() < self.patience => {
                    self.tally.retried(&reason);
                    let jitter = self.rng.random_range(0.5..1.0);
                    tokio::time::sleep(least.max(pause.mul_f64(jitter))).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                _ => return Err(Refused { method, reason, message: status.message().to_owned() }),
            }
        }
    }
}

/// A fresh `request_id`.
pub(crate) fn request_id(entropy: &Entropy) -> String {
    uuid::Builder::from_random_bytes(entropy.bytes()).into_uuid().to_string()
}

fn reason(status: &Status) -> String {
    status
        .get_details_error_info()
        .map_or_else(|| NO_ANSWER.to_owned(), |info| info.reason)
}

/// The least to wait before trying again; `None` where that cannot help. What has no reason is not of a service of ours:
/// the connection broke, or the deadline passed on the way.
fn retry_after(status: &Status) -> Option<Duration> {
    let Some(info) = status.get_details_error_info() else { return Some(Duration::ZERO) };
    let advised = status.get_details_retry_info().and_then(|info| info.retry_delay);
    let passes = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Aborted)
        && info.reason != "ETAG_MISMATCH";
    if passes { Some(advised.unwrap_or_default()) } else { advised }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use shared::status::{Reason, Refusal};
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const ADVICE: Duration = Duration::from_millis(600);

    fn caller() -> Caller {
        Caller::new(StdRng::seed_from_u64(1))
    }

    #[tokio::test]
    async fn what_passes_is_tried_again_with_the_same_request() {
        let statuses = [
            Status::unknown("transport error"),
            Refusal::new(Reason::StorageUnavailable, "").into_status(),
            Refusal::new(Reason::ConcurrentChange, "").into_status(),
            Refusal::new(Reason::DeadlinePassed, "").into_status(),
            Refusal::new(Reason::Overloaded, "").retry_after(ADVICE).into_status(),
        ];
        let attempts = AtomicU32::new(0);
        let mut caller = caller();
        let begin = Instant::now();
        let answer = caller.call("Do", 7, async |request| {
            assert_eq!(request.get_ref(), &7);
            let attempt = attempts.fetch_add(1, Ordering::Relaxed) as usize;
            statuses
                .get(attempt)
                .map_or_else(|| Ok(Response::new(8)), |status| Err(status.clone()))
        });
        assert_eq!(answer.await.expect("is answered in the end"), 8);
        assert_eq!(attempts.into_inner(), 6);
        assert!(begin.elapsed() >= ADVICE, "the service's advice is kept");
        assert_eq!(caller.tally.retries.values().sum::<u64>(), 5);
    }

    #[tokio::test]
    async fn what_does_not_pass_is_refused_at_once() {
        for reason in
            [Reason::FieldInvalid, Reason::EtagMismatch, Reason::CartLimit, Reason::CallerScopeMissing]
        {
            let refuse = async |_| Err::<Response<()>, _>(Refusal::new(reason, "").into_status());
            let mut caller = caller();
            let refused = caller.call("Do", (), refuse).await.expect_err("is refused");
            assert_eq!(refused.reason, shared::status::name(reason));
            assert!(caller.tally.retries.is_empty());
        }
    }

    #[tokio::test]
    async fn patience_ends() {
        let attempts = AtomicU32::new(0);
        let fail = async |_| {
            attempts.fetch_add(1, Ordering::Relaxed);
            Err::<Response<()>, _>(Refusal::new(Reason::StorageUnavailable, "").into_status())
        };
        let mut caller = Caller { patience: 3 * PAUSE_MIN, ..caller() };
        let refused = caller.call("Do", (), fail).await.expect_err("is given up");
        assert_eq!(refused.reason, "STORAGE_UNAVAILABLE");
        assert!((3..=4).contains(&attempts.into_inner()));
    }
}
