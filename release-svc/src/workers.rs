//! What happens without a caller. Any number of replicas run these passes side by side: rows are locked, and what
//! another one holds is skipped.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use shared::mutation::Actor;
use shared::replay::RETENTION;
use shared::serve::Lifecycle;
use shared::status::{Failure, is_away};
use tokio::sync::Notify;

use crate::apply;
use crate::rpc::App;
use crate::{OUTBOX, store};

const CONFIRM_INTERVAL: Duration = Duration::from_secs(2);
const PURGE_INTERVAL: Duration = Duration::from_mins(1);
/// Rows a pass takes at once.
const BATCH: i64 = 1000;
/// For how long replicas that went away are remembered, for people who wonder; far longer than a lease.
const REPLICA_RETENTION: TimeDelta = TimeDelta::days(1);

/// Starts every worker.
pub fn spawn(app: &Arc<App>, lifecycle: &Lifecycle) {
    let (confirming, purging) = (Arc::clone(app), Arc::clone(app));
    lifecycle.workers.spawn(async move {
        let (nudge, pass) = (Notify::new(), || confirm_rollbacks(&confirming));
        shared::worker::run("confirm_rollbacks", CONFIRM_INTERVAL, &nudge, &confirming.stop, pass).await;
    });
    lifecycle.workers.spawn(async move {
        let (nudge, pass) = (Notify::new(), || purge(&purging));
        shared::worker::run("purge", PURGE_INTERVAL, &nudge, &purging.stop, pass).await;
    });
}

/// Ends rollbacks whose last unconfirmed replica went away, and those that were busy when their last replica reported.
pub async fn confirm_rollbacks(app: &App) -> sqlx::Result<u64> {
    let (began_at, margin) = (apply::lease_began_at(app.clock.now()), apply::margin_secs());
    let mut connection = app.db.connection().await?;
    let confirmed = store::rollout::list_confirmed(&mut connection, began_at, margin, None, BATCH).await?;
    drop(connection);
    let mut count = 0;
    for (tenant, rollout) in confirmed {
        let actor = Actor { tenant, principal: "system".to_owned(), now: app.clock.now() };
        match apply::try_confirm(&app.db, &actor, rollout).await {
            Ok(is_confirmed) => count += u64::from(is_confirmed),
            Err(Failure::Storage(error)) if is_away(&error) => return Err(error),
            // What is wrong with one does not keep the others from ending.
            Err(failure) => tracing::error!(%rollout, error = ?failure, "rollback not confirmed"),
        }
    }
    Ok(count)
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
