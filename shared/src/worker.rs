//! Work beside requests: passes that run now and then, or at once when nudged. A pass takes no input, is idempotent, and
//! is not retried: the next one is the retry, after a panic, too.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Longer than any pass takes against a database that answers.
const PASS_LIMIT: Duration = Duration::from_mins(1);

/// What a piece of work said when it panicked.
#[derive(Debug, thiserror::Error)]
#[error("panicked: {0}")]
pub struct Panicked(String);

impl From<Box<dyn Any + Send>> for Panicked {
    fn from(said: Box<dyn Any + Send>) -> Self {
        let text = said.downcast_ref::<String>().map(String::as_str);
        Self(
            text.or_else(|| said.downcast_ref::<&str>().copied())
                .unwrap_or("no text")
                .to_owned(),
        )
    }
}

/// The outcome of a piece of work. What it left half done when it panicked must do no harm.
pub async fn catch<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(Panicked::from)
}

/// Runs `pass` every `interval`, jittered by a tenth so that replicas drift apart, and when nudged, until told to stop.
/// A pass says how much it did.
pub async fn run<F>(
    name: &'static str,
    interval: Duration,
    nudge: &Notify,
    stop: &CancellationToken,
    mut pass: impl FnMut() -> F,
) where
    F: Future<Output = Result<u64, sqlx::Error>>,
{
    let passes: Counter<u64> = opentelemetry::global::meter("tandem")
        .u64_counter("tandem.worker.passes")
        .build();
    let items: Counter<u64> = opentelemetry::global::meter("tandem")
        .u64_counter("tandem.worker.items")
        .build();
    let mut round = 0_u32;
    while !stop.is_cancelled() {
        // Listening begins before the pass looks, so that no nudge falls between the two.
        let nudged = nudge.notified();
        let worker = KeyValue::new("worker", name);
        let finished = catch(tokio::time::timeout(PASS_LIMIT, async { pass().await })).await;
        let outcome = match finished.map(|in_time| in_time.unwrap_or(Err(sqlx::Error::PoolTimedOut))) {
            Ok(Ok(count)) => {
                if count > 0 {
                    tracing::debug!(worker = name, count, "pass");
                }
                items.add(count, std::slice::from_ref(&worker));
                "ok"
            }
            Err(panicked) => {
                tracing::error!(worker = name, %panicked, "pass panicked; the next one runs all the same");
                "panic"
            }
            Ok(Err(error)) => {
                tracing::warn!(worker = name, %error, "pass failed");
                "error"
            }
        };
        passes.add(1, &[worker, KeyValue::new("outcome", outcome)]);
        round = round.wrapping_add(1);
        let jitter = interval / 100 * (round % 11);
        tokio::select! {
            () = stop.cancelled() => {}
            () = nudged => {}
            () = tokio::time::sleep(interval * 19 / 20 + jitter) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn after_a_panic_the_next_pass_runs() {
        let (passes, stop) = (AtomicU32::new(0), CancellationToken::new());
        let pass = || {
            let pass = passes.fetch_add(1, Ordering::Relaxed);
            assert_ne!(pass, 0, "before there is a future");
            let stop = stop.clone();
            async move {
                assert_ne!(pass, 1, "midway");
                stop.cancel();
                Ok(1)
            }
        };
        run("test", Duration::from_millis(1), &Notify::new(), &stop, pass).await;
        assert_eq!(passes.into_inner(), 3);
    }

    #[tokio::test]
    async fn what_a_panic_said_is_kept() {
        let said = |panicked: Result<(), Panicked>| panicked.unwrap_err().to_string();
        assert_eq!(said(catch(async { panic!("plainly") }).await), "panicked: plainly");
        let n = 7;
        assert_eq!(said(catch(async { panic!("with {n}") }).await), "panicked: with 7");
    }
}
