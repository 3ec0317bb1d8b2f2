//! What happens without a caller. Any number of replicas run these passes side by side: rows are locked, and what
//! another one holds is skipped.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use shared::replay::RETENTION;
use shared::serve::Lifecycle;
use tokio::sync::Notify;

use crate::rpc::App;
use crate::{OUTBOX, store};

const CONTROL_INTERVAL: Duration = Duration::from_secs(1);
const PURGE_INTERVAL: Duration = Duration::from_mins(1);
/// Rows a pass takes at once.
const BATCH: i64 = 1000;
/// For how long replicas that went away are remembered, for people who wonder; far longer than a lease.
const REPLICA_RETENTION: TimeDelta = TimeDelta::days(1);

/// Starts every worker.
pub fn spawn(app: &Arc<App>, lifecycle: &Lifecycle) {
    let (controlling, purging) = (Arc::clone(app), Arc::clone(app));
    lifecycle.workers.spawn(async move {
        let (nudge, pass) = (Notify::new(), || Box::pin(control_rollouts(&controlling)));
        shared::worker::run("control_rollouts", CONTROL_INTERVAL, &nudge, &controlling.stop, pass).await;
    });
    lifecycle.workers.spawn(async move {
        let (nudge, pass) = (Notify::new(), || purge(&purging));
        shared::worker::run("purge", PURGE_INTERVAL, &nudge, &purging.stop, pass).await;
    });
}

/// Takes rollouts as far as they go by themselves.
pub async fn control_rollouts(app: &App) -> sqlx::Result<u64> {
    app.controller().pass().await
}

/// Forgets what is past its time.
pub async fn purge(app: &App) -> sqlx::Result<u64> {
    let now = app.clock.now();
    let mut connection = app.db.connection().await?;
    let mut count = store::route::delete_replicas(&mut connection, now - REPLICA_RETENTION, BATCH).await?;
    loop {
        let purged = OUTBOX.purge_requests(&mut connection, now - RETENTION, BATCH).await?;
        count += purged;
        if purged < BATCH.unsigned_abs() || app.stop.is_cancelled() {
            return Ok(count);
        }
    }
}
