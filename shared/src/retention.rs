//! Events are kept for a while and then deleted, the oldest first and in small batches. What was deleted is written down,
//! so that a reader who has not seen all of it is told, and never misses an event in silence.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::Notify;

use crate::db::Db;
use crate::feed::Feed;
use crate::outbox::Outbox;
use crate::serve::Lifecycle;
use crate::time::{Clock, Time, from_micros};
use crate::worker;

const INTERVAL: Duration = Duration::from_secs(2);
const BATCH: i64 = 500;
/// In one pass, so that it ends: at most 5,000 events a second and replica.
const BATCHES: usize = 20;

/// Deletes the events of one service.
pub struct Retention {
    outbox: &'static Outbox,
    db: Db,
    feed: Arc<Feed>,
    clock: Clock,
    keep: TimeDelta,
    /// When all was last deleted that was to be, in microseconds since 1970, as far as is known here.
    completed_at: AtomicI64,
}

impl Retention {
    /// Keeps events for so long, until told to stop.
    pub fn spawn(
        outbox: &'static Outbox,
        db: &Db,
        feed: &Arc<Feed>,
        clock: &Clock,
        keep: TimeDelta,
        lifecycle: &Lifecycle,
    ) {
        let retention = Arc::new(Self {
            outbox,
            db: db.clone(),
            feed: Arc::clone(feed),
            clock: clock.clone(),
            keep,
            completed_at: AtomicI64::new(clock.now().timestamp_micros()),
        });
        retention.observe();
        let stop = lifecycle.stop.clone();
        lifecycle.workers.spawn(async move {
            worker::run("purge_events", INTERVAL, &Notify::new(), &stop, || retention.pass()).await;
        });
    }

    async fn pass(&self) -> sqlx::Result<u64> {
        let now = self.clock.now();
        let mut deleted = 0;
        for _ in 0..BATCHES {
            // Whoever else is at it goes on.
            let Some(count) = self.batch(now).await? else { break };
            deleted += count.unsigned_abs();
            if count < BATCH {
                self.completed_at.store(now.timestamp_micros(), Ordering::Relaxed);
                break;
            }
        }
        Ok(deleted)
    }

    async fn batch(&self, now: Time) -> sqlx::Result<Option<i64>> {
        let mut tx = self.db.begin(None).await?;
        let cluster = self.feed.cluster();
        let count = self.outbox.purge_events(&mut tx, now - self.keep, BATCH, &cluster).await?;
        tx.commit().await?;
        Ok(count)
    }

    fn observe(self: &Arc<Self>) {
        let watched = Arc::downgrade(self);
        let _ = opentelemetry::global::meter("tandem")
            .f64_observable_gauge("tandem.events.purge_lag")
            .with_unit("s")
            .with_callback(move |gauge| {
                if let Some(retention) = watched.upgrade() {
                    let until = from_micros(retention.completed_at.load(Ordering::Relaxed));
                    gauge.observe((retention.clock.now() - until).as_seconds_f64(), &[]);
                }
            })
            .build();
    }
}
