//! One reader of the outbox a process: it polls, invalidates what is cached, and hands every batch to whoever listens.
//!
//! Polling, not NOTIFY: a NOTIFY takes PostgreSQL's commit lock and ends group commit. After a failover commits may be gone
//! that were handed on, and others may never have been seen: the feed starts again at the present and says so.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::db::Db;
use crate::id::TenantId;
use crate::outbox::{Kind, Outbox, Page, Stored, parse};
use crate::snapshot::{Cursor, Snapshot};
use crate::time::{Clock, Time, from_micros};
use crate::worker::catch;

const POLL_INTERVAL: Duration = Duration::from_millis(25);
const POLL_LIMIT: Duration = Duration::from_secs(5);
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How often to ask whether the database is still the same, besides after every error.
const CLUSTER_INTERVAL: Duration = Duration::from_secs(10);
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

/// What the feed tells.
#[derive(Debug)]
pub enum Heard {
    /// Events, or that there were none.
    Batch(Batch),
    /// The database is another one, or has lost commits: whatever was learnt of it before is to be read anew.
    Restarted,
}

/// How far the feed is.
struct Reader {
    /// `None` where it has to start again.
    cursor: Option<Cursor>,
    /// When the database was last seen to be the same.
    checked_at: Option<Instant>,
}

/// The outbox as it happens.
pub struct Feed {
    outbox: &'static Outbox,
    db: Db,
    heard: broadcast::Sender<Arc<Heard>>,
    /// The database that is read, as [`Db::cluster`] names it.
    cluster: RwLock<Arc<str>>,
    polled_at: AtomicI64,
    start: Mutex<Option<Cursor>>,
}

impl Feed {
    /// A feed that nobody runs yet.
    pub fn new(outbox: &'static Outbox, db: Db) -> Self {
        Self {
            outbox,
            db,
            heard: broadcast::Sender::new(BACKLOG),
            cluster: RwLock::new(Arc::from("")),
            polled_at: AtomicI64::new(i64::MIN),
            start: Mutex::default(),
        }
    }

    /// Fixes where the feed begins. To be done before anything is cached, so that nothing that changes it is missed.
    pub async fn begin(&self) -> sqlx::Result<()> {
        let cursor = self.locate().await?;
        *self.start.lock().unwrap_or_else(PoisonError::into_inner) = Some(cursor);
        Ok(())
    }

    /// The present, in the database that is there now.
    async fn locate(&self) -> sqlx::Result<Cursor> {
        let cluster = self.db.cluster().await?;
        let cursor = self.present().await?;
        *self.cluster.write().unwrap_or_else(PoisonError::into_inner) = cluster.into();
        Ok(cursor)
    }

    /// The database that is read. It changes before [`Heard::Restarted`] is heard.
    pub fn cluster(&self) -> Arc<str> {
        Arc::clone(&self.cluster.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Names the service whose events these are.
    pub(crate) fn schema(&self) -> &'static str {
        self.outbox.schema
    }

    /// Every kind of event, by name.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        self.outbox.kinds()
    }

    /// What is heard from now on. Empty batches come, too: they say that nothing happened.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Heard>> {
        self.heard.subscribe()
    }

    /// When the last completed poll began: all that was committed before has been handed on.
    pub fn polled_at(&self) -> Time {
        from_micros(self.polled_at.load(Ordering::Acquire).max(0))
    }

    /// Polls until told to stop. `apply` takes in what is heard before anyone is told that the poll is complete.
    pub async fn run(&self, clock: &Clock, stop: &CancellationToken, mut apply: impl FnMut(&Heard)) {
        let cursor = self.start.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut reader = Reader { cursor, checked_at: None };
        loop {
            let began = clock.now();
            // The server's own limits do not help where it does not answer at all.
            let poll = tokio::time::timeout(POLL_LIMIT, self.poll(&mut reader, began, &mut apply));
            let pause = match catch(poll).await.map(|polled| polled.unwrap_or(Err(sqlx::Error::PoolTimedOut)))
            {
                Ok(Ok(())) => {
                    self.polled_at.fetch_max(began.timestamp_micros(), Ordering::AcqRel);
                    POLL_INTERVAL
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "outbox not readable");
                    // Whoever answers next may be another.
                    reader.checked_at = None;
                    RETRY_INTERVAL
                }
                Err(panicked) => {
                    tracing::error!(%panicked, "feed panicked; it reads the same again");
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
        reader: &mut Reader,
        began: Time,
        apply: &mut impl FnMut(&Heard),
    ) -> sqlx::Result<()> {
        if reader.checked_at.is_none_or(|at| at.elapsed() >= CLUSTER_INTERVAL) {
            if *self.cluster() != *self.db.cluster().await? {
                reader.cursor = None;
            }
            reader.checked_at = Some(Instant::now());
        }
        loop {
            let Some(cursor) = reader.cursor.clone() else {
                let cursor = self.locate().await?;
                tracing::warn!("the database is another one or has lost commits: everything is read anew");
                self.tell(Heard::Restarted, apply);
                reader.cursor = Some(cursor);
                continue;
            };
            let Some(page) = self.page(&cursor, None).await? else {
                reader.cursor = None;
                continue;
            };
            let (next, is_last) = (page.end(cursor), page.is_last);
            let Page { events, upto, .. } = page;
            self.tell(Heard::Batch(Batch { events, upto, is_last, complete_until: began }), apply);
            reader.cursor = Some(next);
            if is_last {
                return Ok(());
            }
        }
    }

    fn tell(&self, heard: Heard, apply: &mut impl FnMut(&Heard)) {
        apply(&heard);
        // Nobody may be listening.
        let _ = self.heard.send(Arc::new(heard));
    }

    /// The position right after everything that is committed now.
    pub async fn present(&self) -> sqlx::Result<Cursor> {
        let mut connection = self.db.connection().await?;
        let snapshot: String = sqlx::query_scalar("select pg_current_snapshot()::text")
            .fetch_one(&mut *connection)
            .await?;
        Ok(Cursor::after(parse(&snapshot)?))
    }

    /// The next events after `cursor`; `None` where some are gone that it has not seen.
    pub(crate) async fn page(
        &self,
        cursor: &Cursor,
        tenant: Option<&TenantId>,
    ) -> sqlx::Result<Option<Page>> {
        let mut connection = self.db.connection().await?;
        let page = self.outbox.read(&mut connection, cursor, tenant, PAGE, &self.cluster()).await?;
        Ok(page.follows(cursor).then_some(page))
    }
}
