//! What happens without a caller. Any number of replicas run these passes side by side: rows are locked, and what
//! another one holds is skipped.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use shared::id::{RolloutId, TenantId};
use shared::mutation::Actor;
use shared::replay::RETENTION;
use shared::serve::Lifecycle;
use shared::status::Failure;
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

/// Ends rollbacks whose last unconfirmed replica went away; what replicas report themselves is confirmed at once.
pub async fn confirm_rollbacks(app: &App) -> sqlx::Result<u64> {
    let (began_at, margin) = (apply::lease_began_at(app.clock.now()), apply::margin_secs());
    let mut connection = app.db.connection().await?;
    let confirmed = store::rollout::list_confirmed(&mut connection, began_at, margin, None, BATCH).await?;
    drop(connection);
    let mut count = 0;
    for (tenant, rollout) in confirmed {
        match confirm(app, tenant, rollout).await {
            Ok(is_confirmed) => count += u64::from(is_confirmed),
            Err(Failure::Storage(error)) => return Err(error),
            Err(failure @ (Failure::Refused(_) | Failure::Bug(_))) => {
                tracing::error!(%rollout, error = %failure, "rollback not confirmed");
            }
        }
    }
    Ok(count)
}

#[tracing::instrument(name = "worker.confirm_rollback", skip_all, fields(%rollout))]
async fn confirm(app: &App, tenant: TenantId, rollout: RolloutId) -> Result<bool, Failure> {
    let mut tx = app.db.begin(None).await?;
    if !store::component::try_lock_of_rollout(&mut tx, &tenant, rollout).await? {
        return Ok(false);
    }
    let actor = Actor { tenant, principal: "system".to_owned(), now: app.clock.now() };
    let is_confirmed = apply::confirm(&mut tx, &actor, rollout).await?;
    tx.commit().await?;
    Ok(is_confirmed)
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
