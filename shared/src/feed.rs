//! One reader of the outbox a process: it polls, invalidates what is cached, and hands every batch to whoever listens.
//!
//! Polling, not NOTIFY: a NOTIFY takes PostgreSQL's commit lock and ends group commit.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::db::Db;
use crate::id::TenantId;
use crate::outbox::{Outbox, Stored};
use crate::snapshot::{Cursor, Snapshot};
use crate::time::{Clock, Time, from_micros};

const POLL_INTERVAL: Duration = Duration::from_millis(25);
const POLL_LIMIT: Duration = Duration::from_secs(5);
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
const PAGE: i64 = 500;
/// Batches a listener may lag behind before it is cut off.
const BACKLOG: usize = 1024;

/// Events that one snapshot showed beyond the one before.
#[derive(Debug)]
pub struct Batch {
    /// Of every tenant, by id.
    pub events: Vec<Stored>,
    /// The snapshot.
    pub upto: Snapshot,
    /// Whether that is all that it showed.
    pub is_last: bool,
    /// Everything committed before this instant is in this batch or an earlier one.
    pub complete_until: Time,
}

/// The outbox as it happens.
pub struct Feed {
    outbox: &'static Outbox,
    db: Db,
    batches: broadcast::Sender<Arc<Batch>>,
    polled_at: AtomicI64,
    start: Mutex<Option<Cursor>>,
}

impl Feed {
    /// A feed that nobody runs yet.
    pub fn new(outbox: &'static Outbox, db: Db) -> Self {
        Self {
            outbox,
            db,
            batches: broadcast::Sender::new(BACKLOG),
            polled_at: AtomicI64::new(i64::MIN),
            start: Mutex::default(),
        }
    }

    /// Fixes where the feed begins. To be done before anything is cached, so that nothing that changes it is missed.
    pub async fn begin(&self) -> sqlx::Result<()> {
        let cursor = self.present().await?;
        *self.start.lock().unwrap_or_else(PoisonError::into_inner) = Some(cursor);
        Ok(())
    }

    /// Names the service whose events these are.
    pub(crate) fn schema(&self) -> &'static str {
        self.outbox.schema
    }

    /// Batches from now on. Empty ones come, too: they say that nothing happened.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Batch>> {
        self.batches.subscribe()
    }

    /// When the last completed poll began: all that was committed before has been handed on.
    pub fn polled_at(&self) -> Time {
        from_micros(self.polled_at.load(Ordering::Acquire).max(0))
    }

    /// Polls until told to stop. `apply` takes in each batch before anyone is told that the poll is complete.
    pub async fn run(&self, clock: &Clock, stop: &CancellationToken, mut apply: impl FnMut(&Batch)) {
        let mut cursor = self.start.lock().unwrap_or_else(PoisonError::into_inner).take();
        loop {
            let began = clock.now();
            // The server's own limits do not help where it does not answer at all.
            let polled = tokio::time::timeout(POLL_LIMIT, self.poll(cursor.clone(), began, &mut apply)).await;
            let pause = match polled.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
                Ok(next) => {
                    cursor = Some(next);
                    self.polled_at.fetch_max(began.timestamp_micros(), Ordering::AcqRel);
                    POLL_INTERVAL
                }
                Err(error) => {
                    tracing::warn!(%error, "outbox not readable");
                    RETRY_INTERVAL
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn poll(
        &self,
        cursor: Option<Cursor>,
        began: Time,
        apply: &mut impl FnMut(&Batch),
    ) -> sqlx::Result<Cursor> {
        let mut cursor = match cursor {
            Some(cursor) => cursor,
            None => self.present().await?,
        };
        loop {
            let page = self.page(&cursor, None).await?;
            let batch = Batch { complete_until: began, ..page };
            cursor = match batch.events.last() {
                Some(event) if !batch.is_last => {
                    Cursor { base: cursor.base, page: Some((batch.upto.clone(), event.id)) }
                }
                _ => Cursor::after(batch.upto.clone()),
            };
            let is_last = batch.is_last;
            apply(&batch);
            // Nobody may be listening.
            let _ = self.batches.send(Arc::new(batch));
            if is_last {
                return Ok(cursor);
            }
        }
    }

    /// The position right after everything that is committed now.
    pub async fn present(&self) -> sqlx::Result<Cursor> {
        let mut connection = self.db.connection().await?;
        // Nothing has an id beyond the greatest, so this reads the snapshot alone.
        let (snapshot, _) = self.outbox.read(&mut connection, "1:1:", None, i64::MAX, None, 1).await?;
        Ok(Cursor::after(parse(&snapshot)?))
    }

    /// The next events after `cursor`.
    pub async fn page(&self, cursor: &Cursor, tenant: Option<&TenantId>) -> sqlx::Result<Batch> {
        let base = cursor.base.to_string();
        let (upto, after) = match &cursor.page {
            Some((upto, id)) => (Some(upto.to_string()), *id),
            None => (None, i64::MIN),
        };
        let mut connection = self.db.connection().await?;
        let (snapshot, events) = self
            .outbox
            .read(&mut connection, &base, upto.as_deref(), after, tenant, PAGE)
            .await?;
        let is_last = i64::try_from(events.len()).unwrap_or(PAGE) < PAGE;
        Ok(Batch { events, upto: parse(&snapshot)?, is_last, complete_until: from_micros(0) })
    }
}

fn parse(snapshot: &str) -> sqlx::Result<Snapshot> {
    snapshot
        .parse()
        .map_err(|error: crate::snapshot::Malformed| sqlx::Error::Decode(error.into()))
}
