//! Load on a server: a closed loop, in which every caller waits for its answer before it asks again, and an open loop,
//! which keeps its rate whatever the answers do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Outcome;

/// A call is counted no longer than this, in microseconds.
const LONGEST: u64 = 60_000_000;

/// One call of a load.
#[derive(Clone, Copy)]
pub(crate) struct Turn {
    /// Who calls; chooses the connection.
    pub(crate) worker: usize,
    /// Chooses the key.
    pub(crate) number: u64,
}

/// What a load did.
pub(crate) struct Load {
    pub(crate) calls: u64,
    pub(crate) took: Duration,
    /// In microseconds; empty where the tool that made the load tells none.
    pub(crate) latencies: Histogram<u64>,
}

impl Load {
    #[expect(clippy::cast_precision_loss, reason = "a run has fewer calls than 2^52")]
    pub(crate) fn per_second(&self) -> f64 {
        self.calls as f64 / self.took.as_secs_f64()
    }

    /// The latency that this share of calls did not exceed.
    pub(crate) fn quantile(&self, share: f64) -> Option<Duration> {
        (!self.latencies.is_empty()).then(|| Duration::from_micros(self.latencies.value_at_quantile(share)))
    }
}

/// Keeps so many calls in flight for a while, with random numbers; other ones every time, so that no run profits from what
/// the one before it has read. The first error ends it.
pub(crate) async fn closed<F, Fut>(in_flight: usize, time: Duration, call: F) -> Outcome<Load>
where
    F: Fn(Turn) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Outcome<()>> + Send,
{
    static SEED: AtomicU64 = AtomicU64::new(0);
    let began = Instant::now();
    let mut workers = JoinSet::new();
    for worker in 0..in_flight {
        let call = call.clone();
        let mut rng = StdRng::seed_from_u64(SEED.fetch_add(1, Ordering::Relaxed));
        workers.spawn(async move {
            let mut latencies = histogram();
            while began.elapsed() < time {
                let sent = Instant::now();
                call(Turn { worker, number: rng.next_u64() }).await?;
                record(&mut latencies, sent);
            }
            Ok(latencies)
        });
    }
    gather(workers, began).await
}

/// Calls once for every number below `count`.
pub(crate) async fn each<F, Fut>(count: u64, in_flight: usize, call: F) -> Outcome<Load>
where
    F: Fn(Turn) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Outcome<()>> + Send,
{
    let (began, next) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let mut workers = JoinSet::new();
    for worker in 0..in_flight {
        let (call, next) = (call.clone(), Arc::clone(&next));
        workers.spawn(async move {
            let mut latencies = histogram();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(latencies);
                }
                let sent = Instant::now();
                call(Turn { worker, number }).await?;
                record(&mut latencies, sent);
            }
        });
    }
    gather(workers, began).await
}

/// Calls at a constant rate until stopped. A call's latency counts from when it was due, not from when it was sent, so that
/// a server that stalls is charged with every call that should have been made meanwhile.
pub(crate) async fn open<F, Fut>(
    per_second: f64,
    workers_max: usize,
    stop: CancellationToken,
    call: F,
) -> Outcome<Load>
where
    F: Fn(Turn) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Outcome<()>> + Send,
{
    let (began, next) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let mut workers = JoinSet::new();
    for worker in 0..workers_max {
        let (call, next, stop) = (call.clone(), Arc::clone(&next), stop.clone());
        let mut rng = StdRng::seed_from_u64(worker as u64);
        workers.spawn(async move {
            let mut latencies = histogram();
            loop {
                let turn = next.fetch_add(1, Ordering::Relaxed);
                let due = due(began, turn, per_second);
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(latencies),
                    () = tokio::time::sleep_until(due.into()) => {}
                }
                call(Turn { worker, number: rng.next_u64() }).await?;
                record(&mut latencies, due);
            }
        });
    }
    gather(workers, began).await
}

/// Calls once for every number below `count`, at a constant rate. A call's latency counts from when it was due.
pub(crate) async fn paced<F, Fut>(count: u64, per_second: f64, workers_max: usize, call: F) -> Outcome<Load>
where
    F: Fn(Turn) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Outcome<()>> + Send,
{
    let (began, next) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let mut workers = JoinSet::new();
    for worker in 0..workers_max {
        let (call, next) = (call.clone(), Arc::clone(&next));
        workers.spawn(async move {
            let mut latencies = histogram();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(latencies);
                }
                let due = due(began, number, per_second);
                tokio::time::sleep_until(due.into()).await;
                call(Turn { worker, number }).await?;
                record(&mut latencies, due);
            }
        });
    }
    gather(workers, began).await
}

#[expect(clippy::cast_precision_loss, reason = "a run has fewer calls than 2^52")]
fn due(began: Instant, turn: u64, per_second: f64) -> Instant {
    began + Duration::from_secs_f64(turn as f64 / per_second)
}

async fn gather(mut workers: JoinSet<Outcome<Histogram<u64>>>, began: Instant) -> Outcome<Load> {
    let mut latencies = histogram();
    let mut done = Vec::with_capacity(workers.len());
    while let Some(worker) = workers.join_next().await {
        done.push(worker??);
    }
    let took = began.elapsed();
    for worker in done {
        latencies.add(worker)?;
    }
    Ok(Load { calls: latencies.len(), took, latencies })
}

fn record(latencies: &mut Histogram<u64>, since: Instant) {
    latencies.saturating_record(u64::try_from(since.elapsed().as_micros()).unwrap_or(LONGEST));
}

/// Three digits of whatever was measured.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(LONGEST, 3).expect("the bounds are in order")
}
