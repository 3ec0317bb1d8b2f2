//! What becomes of shoppers by time: any replica looks at those who are due. It locks nothing but their rows, reads their
//! carts as they are, and writes what it finds, with its events, in one transaction.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use shared::db::Tx;
use shared::id::{ShopperId, TenantId, TouchpointId};
use shared::outbox::Event;
use shared::time::Time;

use super::system;
use crate::OUTBOX;
use crate::domain::abandonment::Next;
use crate::domain::browsing::{Circumstances, Due, Standing, look};
use crate::domain::consent::Consents;
use crate::domain::touchpoint::Touchpoint;
use crate::rpc::App;
use crate::rpc::shopper::browsing::{contact, recovered, told};
use crate::store;
use crate::store::browsing::{Around, Fate, Found};

/// From one pass to the next.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// Shoppers in one transaction, and transactions in one pass.
const BATCH: i64 = 100;
const BATCHES: usize = 100;

/// What was found of one shopper, in one batch.
struct Looked {
    found: Found,
    around: Around,
    touchpoint: Option<Touchpoint>,
    due: Vec<Due>,
    next: Next,
}

/// Looks at the shoppers who are due, in batches.
pub async fn look_at_shoppers(app: &App) -> sqlx::Result<u64> {
    let began_at = app.clock.now();
    let mut seen = 0;
    for _ in 0..BATCHES {
        let count = look_at_batch(app).await?;
        seen += count.unsigned_abs();
        if count < BATCH {
            app.shoppers_looked_at_until
                .store(began_at.timestamp_micros(), Ordering::Relaxed);
            break;
        }
    }
    Ok(seen)
}

/// One transaction; answers how many shoppers it locked. Whatever ends it midway, they are due as before.
async fn look_at_batch(app: &App) -> sqlx::Result<i64> {
    let now = app.clock.now();
    let mut tx = app.db.begin(None).await?;
    let found = store::browsing::lock_due(&mut tx, now, BATCH).await?;
    let count = i64::try_from(found.len()).unwrap_or(i64::MAX);
    if !found.is_empty() {
        let looked = look_at(&mut tx, found, now).await?;
        let mut events = write(&mut tx, &looked, now).await?;
        events.extend(delete(&mut tx, &looked, now).await?);
        OUTBOX.append_all(&mut tx, &events).await?;
        tx.commit().await?;
    }
    Ok(count)
}

/// What is due of locked shoppers.
async fn look_at(tx: &mut Tx, found: Vec<Found>, now: Time) -> sqlx::Result<Vec<Looked>> {
    let shoppers: Vec<_> = found.iter().map(|found| (&found.tenant, found.shopper)).collect();
    let owned = store::subject::owned(tx, &shoppers).await?;
    let around = store::browsing::around(tx, &shoppers).await?;
    let looking = found.iter().filter(|found| found.left.browsing.looked_at.is_some());
    let looking: Vec<_> = looking.map(|found| (&found.tenant, found.shopper)).collect();
    let with_lines = with_lines(tx, &looking).await?;
    let (mut looked, mut touchpoints) = (vec![], HashMap::new());
    for (found, around) in found.into_iter().zip(around) {
        let touchpoint = touchpoint(tx, &mut touchpoints, &found).await?;
        let standing = if found.is_merged {
            Standing::Merged { is_named: around.is_named }
        } else if owned.contains(&found.shopper) {
            Standing::Owned
        } else {
            Standing::Anonymous
        };
        let circumstances = Circumstances {
            standing,
            active_at: found.active_at.unwrap_or(now),
            has_lines: with_lines.contains(&found.shopper),
            ordered_at: around.ordered_at,
        };
        let policy = touchpoint.as_ref().map(|touchpoint| touchpoint.cart_policy).unwrap_or_default();
        let (due, next) = look(&found.left.browsing, &circumstances, &policy, now);
        looked.push(Looked { found, around, touchpoint, due, next });
    }
    Ok(looked)
}

/// Who of them has a line in an open cart that is not saved for later. A cart that cannot be read may have one.
async fn with_lines(tx: &mut Tx, shoppers: &[(&TenantId, ShopperId)]) -> sqlx::Result<HashSet<ShopperId>> {
    let mut with_lines = HashSet::new();
    for (shopper, cart) in store::browsing::carts(tx, shoppers).await? {
        let has_lines = match cart {
            Ok(cart) => cart.lines.iter().any(|line| !line.saved_for_later),
            Err(error) => {
                tracing::error!(%error, "a shopper with a cart that cannot be read");
                true
            }
        };
        if has_lines {
            with_lines.insert(shopper);
        }
    }
    Ok(with_lines)
}

/// Where they last looked at something.
async fn touchpoint(
    tx: &mut Tx,
    known: &mut HashMap<(TenantId, TouchpointId), Option<Touchpoint>>,
    found: &Found,
) -> sqlx::Result<Option<Touchpoint>> {
    let Some(id) = &found.left.touchpoint else { return Ok(None) };
    let key = (found.tenant.clone(), id.clone());
    if let Some(touchpoint) = known.get(&key) {
        return Ok(touchpoint.clone());
    }
    let touchpoint = store::touchpoint::find(tx, &found.tenant, id).await?;
    known.insert(key, touchpoint.clone());
    Ok(touchpoint)
}

/// Writes what became of those who stay; answers what is to be told.
async fn write(tx: &mut Tx, looked: &[Looked], now: Time) -> sqlx::Result<Vec<Event>> {
    let lasting = looked.iter().filter_map(|looked| match looked.next {
        Next::At(due_at) => Some((looked, fate(looked, due_at))),
        Next::Delete => None,
    });
    let (lasting, fates): (Vec<_>, Vec<_>) = lasting.unzip();
    if fates.is_empty() {
        return Ok(vec![]);
    }
    let written = store::browsing::write(tx, &fates, now).await?;
    let written = written.into_iter().filter_map(|position| lasting.get(position));
    Ok(written.flat_map(|looked| events(looked, now)).collect())
}

/// Deletes those who go; answers what is to be told.
async fn delete(tx: &mut Tx, looked: &[Looked], now: Time) -> sqlx::Result<Vec<Event>> {
    let gone: Vec<_> = looked.iter().filter(|looked| looked.next == Next::Delete).collect();
    if gone.is_empty() {
        return Ok(vec![]);
    }
    let keys: Vec<_> = gone.iter().map(|looked| (&looked.found.tenant, looked.found.shopper)).collect();
    let deleted = store::browsing::delete(tx, &keys).await?;
    let mut told = vec![];
    for looked in deleted.into_iter().filter_map(|position| gone.get(position)) {
        let Found { tenant, shopper, is_merged, .. } = &looked.found;
        let data = json!({"reason": if *is_merged { "MERGED" } else { "INACTIVE" }});
        told.extend(events(looked, now));
        told.push(system(tenant, "shopper.expired", shopper.to_string(), data, now));
    }
    Ok(told)
}

fn fate(looked: &Looked, due_at: Time) -> Fate {
    let Looked { found, due, .. } = looked;
    Fate {
        tenant: found.tenant.clone(),
        shopper: found.shopper,
        epoch: found.left.browsing.epoch,
        due_at,
        is_taken: due.contains(&Due::Taken),
        is_abandoned: due.contains(&Due::Abandoned),
        is_lost: due.contains(&Due::Lost),
    }
}

/// What is told of a shopper, in the order that it happened in.
fn events(looked: &Looked, now: Time) -> Vec<Event> {
    let Looked { found, around, touchpoint, due, next: _ } = looked;
    if due.is_empty() {
        return vec![];
    }
    let nothing = Consents::default();
    let consents = found.consents.as_ref().unwrap_or_else(|error| {
        tracing::error!(%error, "a shopper whose consent cannot be read is told of as if there were none");
        &nothing
    });
    let (contact, browsing) = (contact(around.channels.clone(), consents), &found.left.browsing);
    let group = touchpoint.as_ref().map(|touchpoint| &touchpoint.group);
    let event = |due: &Due| {
        let (kind, data) = match due {
            Due::Abandoned => ("cart.abandoned", told(found.shopper, browsing, group, &contact)),
            Due::Lost => ("cart.lost", told(found.shopper, browsing, group, &contact)),
            Due::Taken if browsing.raised.is_some() => {
                ("cart.recovered", recovered(found.shopper, browsing, group, &contact))
            }
            Due::Taken => return None,
        };
        Some(system(&found.tenant, kind, found.shopper.to_string(), data, now))
    };
    due.iter().filter_map(event).collect()
}
