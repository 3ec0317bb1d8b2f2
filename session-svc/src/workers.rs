//! Work beside requests.

use std::time::Duration;

use serde_json::{Value, json};
use shared::id::{SessionId, TenantId};
use shared::outbox::Event;
use shared::replay;
use shared::status::is_away;
use shared::time::Time;

use crate::OUTBOX;
use crate::rpc::App;
use crate::store;
use crate::store::session::Touch;
use crate::touches::BATCH;

/// Twice the rate that idle deadlines allow for (`SessionPolicy::flush_interval`).
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(500);
/// How often answered requests are looked through.
pub const PURGE_INTERVAL: Duration = Duration::from_mins(1);
const PURGE_BATCH: i64 = 1000;

/// Writes what validations saw. A batch that fails goes row by row, so that one row that somebody holds keeps back none but
/// itself; it is tried again with the next pass.
pub async fn flush_touches(app: &App) -> sqlx::Result<u64> {
    let touches = app.touches.pending();
    let mut outcome = Ok(touches.len() as u64);
    for batch in touches.chunks(BATCH) {
        match flush_batch(app, batch).await {
            Ok(()) => {}
            Err(error) if is_away(&error) => return Err(error),
            Err(_) => {
                for touch in batch {
                    if let Err(error) = flush_batch(app, std::slice::from_ref(touch)).await {
                        outcome = Err(error);
                    }
                }
            }
        }
    }
    outcome
}

async fn flush_batch(app: &App, batch: &[Touch]) -> sqlx::Result<()> {
    let now = app.clock.now();
    let mut tx = app.db.begin(None).await?;
    let changed = store::session::touch(&mut tx, batch).await?;
    for (tenant, session) in &changed {
        OUTBOX.append(&mut tx, &pinned(tenant, *session, now)).await?;
    }
    tx.commit().await?;
    for key in changed {
        app.sessions.invalidate(&key);
    }
    app.touches.written(batch);
    Ok(())
}

/// A visit has other pins than before: every replica reads the session anew.
pub fn pinned(tenant: &TenantId, session: SessionId, at: Time) -> Event {
    system(tenant, "session.pinned", session.to_string(), json!({}), at)
}

/// Something that nobody in particular did.
pub fn system(tenant: &TenantId, kind: &'static str, subject: String, data: Value, at: Time) -> Event {
    Event { tenant: tenant.clone(), kind, subject, principal: "system".to_owned(), at, data }
}

/// Forgets answers to requests that nobody may repeat any more.
pub async fn purge_requests(app: &App) -> sqlx::Result<u64> {
    let before = app.clock.now() - replay::RETENTION;
    let mut purged = 0;
    loop {
        let count = OUTBOX
            .purge_requests(&mut *app.db.connection().await?, before, PURGE_BATCH)
            .await?;
        purged += count;
        if count < PURGE_BATCH.unsigned_abs() {
            return Ok(purged);
        }
    }
}
