//! Work beside requests: passes that run now and then, or at once when nudged. A pass takes no input, is idempotent, and
//! is not retried: the next one is the retry.

use std::future::Future;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Longer than any pass takes against a database that answers.
const PASS_LIMIT: Duration = Duration::from_mins(1);

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
        let finished = tokio::time::timeout(PASS_LIMIT, pass()).await;
        let outcome = match finished.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
            Ok(count) => {
                if count > 0 {
                    tracing::debug!(worker = name, count, "pass");
                }
                items.add(count, std::slice::from_ref(&worker));
                "ok"
            }
            Err(error) => {
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
