//! Work beside requests.

use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::TimeDelta;
use serde_json::{Value, json};
use shared::id::{SessionId, TenantId};
use shared::outbox::Event;
use shared::replay;
use shared::status::is_away;
use shared::telemetry;
use shared::time::Time;

use crate::OUTBOX;
use crate::rpc::App;
use crate::store;
use crate::store::signal::Deal;
use crate::store::signal::sum::Stretch;
use crate::store::visit::{Begun, Touch};
use crate::touches::BATCH;

pub mod carts;
pub mod shoppers;
pub mod signals;

/// From one pass to the next: with what a pass takes, and `NOTE_INTERVAL`, within what idle deadlines allow for
/// (`Timeouts::flush_interval`).
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(600);
/// How often answered requests are looked through.
pub const PURGE_INTERVAL: Duration = Duration::from_mins(1);
const PURGE_BATCH: i64 = 1000;
/// How often the walk over all sessions takes some steps.
pub const WALK_INTERVAL: Duration = Duration::from_secs(1);
/// Sessions looked at in one step, and steps in one pass: at most 5,000 sessions a second and replica.
const WALK_STEP: i64 = 500;
const WALK_STEPS: usize = 10;
/// What sessions of one step were dealt by rollouts long over, deleted with it.
const UNITS_MAX: i64 = 5000;
/// For so long an ended session can still be told from one that never was.
const ENDED_RETENTION: TimeDelta = TimeDelta::hours(24);
/// From the end of one walk to the start of the next.
const WALK_PAUSE: TimeDelta = TimeDelta::minutes(1);

/// Writes what validations saw. A batch that fails goes row by row, so that one row that somebody holds keeps back none but
/// itself; it is tried again with the next pass.
pub async fn flush_touches(app: &App) -> sqlx::Result<u64> {
    let touches = app.touches.pending(app.clock.now());
    let (begun, seen): (Vec<_>, Vec<_>) = touches.iter().partition(|touch| touch.visit.is_some());
    let mut outcome = Ok(touches.len() as u64);
    for batch in begun.chunks(BATCH).chain(seen.chunks(BATCH)) {
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

/// All with a visit, or all without. What somebody else holds fails at once, or stays for the next pass.
pub async fn flush_batch(app: &App, batch: &[&Touch]) -> sqlx::Result<()> {
    if batch.iter().all(|touch| touch.visit.is_none()) {
        // A crash of PostgreSQL may take back the last of them, as one of ours does: they are a second's news.
        let mut tx = app.db.begin_relaxed().await?;
        store::visit::touch(&mut tx, batch).await?;
        tx.commit().await?;
        app.touches.written(batch.iter());
        return Ok(());
    }
    let now = app.clock.now();
    let mut tx = app.db.begin(None).await?;
    let begun = store::visit::begin_visits(&mut tx, batch, now).await?;
    let of = |begun: &Begun| batch.get(begun.position);
    let changed: Vec<_> = begun.iter().filter(|begun| begun.is_new_visit).filter_map(of).collect();
    let events: Vec<_> = changed.iter().map(|touch| pinned(&touch.tenant, touch.session, now)).collect();
    store::signal::enrol(&mut tx, &changed.iter().flat_map(|touch| dealt(touch)).collect::<Vec<_>>()).await?;
    OUTBOX.append_all(&mut tx, &events).await?;
    tx.commit().await?;
    // What was not written was decided on something that has changed.
    for touch in begun.iter().filter_map(of) {
        app.sessions.invalidate(&(touch.tenant.clone(), touch.session));
    }
    app.touches.written(begun.iter().filter_map(of));
    Ok(())
}

/// What was dealt to a session by the visit that it began.
fn dealt(touch: &Touch) -> impl Iterator<Item = Deal<'_>> {
    let Touch { tenant, session, visit, .. } = touch;
    let units = visit
        .iter()
        .flat_map(|begun| begun.units.iter().map(|unit| (unit, begun.visit.started_at)));
    units.map(|(unit, at)| Deal { tenant, session: *session, unit, at })
}

/// A visit has other pins than before: every replica reads the session anew.
pub fn pinned(tenant: &TenantId, session: SessionId, at: Time) -> Event {
    system(tenant, "session.pinned", session.to_string(), json!({}), at)
}

/// Something that nobody in particular did.
pub fn system(tenant: &TenantId, kind: &'static str, subject: String, data: Value, at: Time) -> Event {
    let (principal, trace_parent) = ("system".to_owned(), telemetry::trace_parent());
    Event { tenant: tenant.clone(), kind, subject, principal, at, data, trace_parent }
}

/// Goes on with the walk that deletes sessions long dead, and what is left of rollouts long over. Whether a session lives is
/// never asked of it.
pub async fn purge_sessions(app: &App) -> sqlx::Result<u64> {
    let now = app.clock.now();
    let completed_at = store::purge::completed_at(&mut *app.db.connection().await?).await?;
    app.purged_until
        .store(completed_at.unwrap_or(app.started_at).timestamp_micros(), Ordering::Relaxed);
    let mut deleted = 0;
    for _ in 0..WALK_STEPS {
        let mut tx = app.db.begin(None).await?;
        let Some(position) = store::purge::lock(&mut tx, now).await? else { break };
        if now < position.began_at {
            break;
        }
        let step = store::purge::step(&mut tx, &position, now - ENDED_RETENTION, WALK_STEP).await?;
        let reached = step.reached.as_ref().map(|(tenant, session)| (tenant.as_str(), *session));
        let walked = Stretch { after: (&position.tenant, position.session), until: reached };
        store::signal::sum::forget_units(&mut tx, &walked, UNITS_MAX).await?;
        let is_end = step.reached.is_none();
        match step.reached {
            Some((tenant, session)) => store::purge::advance(&mut tx, &tenant, session).await?,
            None => store::purge::complete(&mut tx, now, now + WALK_PAUSE).await?,
        }
        tx.commit().await?;
        deleted += step.deleted;
        if is_end {
            break;
        }
    }
    deleted += store::purge::id_tokens(&mut *app.db.connection().await?, now, PURGE_BATCH).await?;
    Ok(deleted)
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
