//! What becomes of carts by time: any replica looks at those that are due. A cart is locked before the session whose visit
//! its checkout holds, and carts in checkout are looked at one at a time, so that no two passes wait for each other.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::TimeDelta;
use serde_json::{Value, json};
use shared::db::Tx;
use shared::id::{SessionId, TenantId, TouchpointId};
use shared::outbox::Event;
use shared::pb::session::CheckoutFailure;
use shared::time::Time;

use super::system;
use crate::OUTBOX;
use crate::domain::abandonment::{CartPolicy, Circumstances, Due, Kind, Next, look};
use crate::domain::cart::{Cart, State};
use crate::domain::signal::CHECKOUT;
use crate::rpc::App;
use crate::rpc::abandonment::told;
use crate::rpc::visit::outcome::record;
use crate::store;
use crate::store::abandonment::{Fate, Found};

/// From one pass to the next.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// Carts in one transaction, and transactions in one pass.
const BATCH: i64 = 100;
const BATCHES: usize = 100;
/// A cart that cannot be read is not looked at again for so long, so that it keeps back no other.
const UNREADABLE_PAUSE: TimeDelta = TimeDelta::hours(24);

/// What was found of one cart, in one batch.
struct Looked {
    cart: Cart,
    found: Found,
    due: Vec<Due>,
    next: Next,
}

/// Looks at the carts that are due, those in checkout one by one, and the others in batches.
pub async fn look_at_carts(app: &App) -> sqlx::Result<u64> {
    let began_at = app.clock.now();
    let mut seen = 0;
    let mut is_done = true;
    for (in_checkout, limit) in [(true, 1), (false, BATCH)] {
        let mut batches = 0;
        loop {
            let count = look_at_batch(app, in_checkout, limit).await?;
            seen += count.unsigned_abs();
            batches += 1;
            if count < limit {
                break;
            }
            if batches == BATCHES {
                is_done = false;
                break;
            }
        }
    }
    if is_done {
        app.carts_looked_at_until.store(began_at.timestamp_micros(), Ordering::Relaxed);
    }
    Ok(seen)
}

/// One transaction; answers how many carts it locked. Whatever ends it midway, its carts are due as before.
async fn look_at_batch(app: &App, in_checkout: bool, limit: i64) -> sqlx::Result<i64> {
    let now = app.clock.now();
    let mut tx = app.db.begin(None).await?;
    let found = store::abandonment::lock_due(&mut tx, now, in_checkout, limit).await?;
    let count = i64::try_from(found.len()).unwrap_or(i64::MAX);
    if found.is_empty() {
        return Ok(count);
    }
    let looked = look_at(&mut tx, found, now).await?;
    let released = write(app, &mut tx, &looked, now).await?;
    tx.commit().await?;
    for (tenant, session) in released {
        app.sessions.invalidate(&(tenant, session));
    }
    Ok(count)
}

/// What is due of locked carts.
async fn look_at(tx: &mut Tx, found: Vec<Found>, now: Time) -> sqlx::Result<Vec<Looked>> {
    let keys: Vec<_> = found.iter().map(|found| found.key.clone()).collect();
    let shoppers: Vec<_> = keys.iter().map(|key| (&key.tenant, key.shopper)).collect();
    let owned = store::subject::owned(tx, &shoppers).await?;
    let mut carts = HashMap::new();
    for cart in store::cart::batch::find(tx, &keys).await? {
        match cart {
            Ok(cart) => drop(carts.insert((cart.shopper, cart.id), cart)),
            Err(error) => tracing::error!(%error, "a cart is not looked at"),
        }
    }
    let (mut looked, mut unreadable, mut policies) = (vec![], vec![], HashMap::new());
    for found in found {
        let key = &found.key;
        let Some(cart) = carts.remove(&(key.shopper, key.cart)) else {
            unreadable.push(found.key);
            continue;
        };
        let policy = policy(tx, &mut policies, &key.tenant, &cart).await?;
        let around = Circumstances { idle_at: found.idle_at, is_owned: owned.contains(&key.shopper) };
        let (due, next) = look(&cart, around, &policy, now);
        looked.push(Looked { cart, found, due, next });
    }
    if !unreadable.is_empty() {
        store::abandonment::put_off(tx, &unreadable, now + UNREADABLE_PAUSE).await?;
    }
    Ok(looked)
}

/// Of the touchpoint where the cart was last changed; where no session changed it, of the one that its group is named after,
/// if there is one.
async fn policy(
    tx: &mut Tx,
    known: &mut HashMap<(TenantId, TouchpointId), CartPolicy>,
    tenant: &TenantId,
    cart: &Cart,
) -> sqlx::Result<CartPolicy> {
    let Some(touchpoint) = cart.touchpoint.clone().or_else(|| cart.group.as_str().parse().ok()) else {
        return Ok(CartPolicy::default());
    };
    let key = (tenant.clone(), touchpoint);
    if let Some(policy) = known.get(&key) {
        return Ok(*policy);
    }
    let touchpoint = store::touchpoint::find(tx, tenant, &key.1).await?;
    let policy = touchpoint.map(|touchpoint| touchpoint.cart_policy).unwrap_or_default();
    known.insert(key, policy);
    Ok(policy)
}

/// Writes what is due, tells of it, and lets go of visits; answers of which.
async fn write(
    app: &App,
    tx: &mut Tx,
    looked: &[Looked],
    now: Time,
) -> sqlx::Result<Vec<(TenantId, SessionId)>> {
    let (mut deleted, mut lasting) = (vec![], vec![]);
    for looked in looked {
        match looked.next {
            Next::Delete => deleted.push(looked.found.key.clone()),
            Next::At(due_at) => lasting.push((looked, fate(looked, due_at))),
        }
    }
    if !deleted.is_empty() {
        store::abandonment::delete(tx, &deleted).await?;
    }
    let (lasting, fates): (Vec<_>, Vec<_>) = lasting.into_iter().unzip();
    if fates.is_empty() {
        return Ok(vec![]);
    }
    let written = store::abandonment::write(tx, &fates, now).await?;
    let (mut events, mut released) = (vec![], vec![]);
    for looked in written.into_iter().filter_map(|position| lasting.get(position)) {
        let (key, due) = (&looked.found.key, &looked.due);
        events.extend(due.iter().map(|due| event(looked, *due, now)));
        if let Some(session) = failed(&looked.cart, due) {
            record(&app.routes, tx, &key.tenant, session, &CHECKOUT, now).await?;
        }
        if let Some(session) = held(&looked.cart, due) {
            store::visit::release_hold(tx, &key.tenant, session, key.cart).await?;
            released.push((key.tenant.clone(), session));
        }
    }
    OUTBOX.append_all(tx, &events).await?;
    Ok(released)
}

fn fate(looked: &Looked, due_at: Time) -> Fate {
    let Looked { cart, found, due, next: _ } = looked;
    let (key, version) = (found.key.clone(), cart.version);
    let (is_idle, is_lost) = (due.contains(&Due::Idle), due.contains(&Due::Lost));
    let state = if due.contains(&Due::Expired) {
        Some(&State::Expired)
    } else if due.contains(&Due::CheckoutTimedOut) {
        Some(&State::Active)
    } else {
        None
    };
    Fate { key, version, due_at, is_idle, abandoned: abandoned(due), is_lost, state: state.map(State::name) }
}

fn abandoned(due: &[Due]) -> Option<Kind> {
    due.iter().find_map(|due| match due {
        Due::Abandoned(kind) => Some(*kind),
        Due::Idle | Due::CheckoutTimedOut | Due::Lost | Due::Expired => None,
    })
}

/// The session whose visit is held no longer.
fn held(cart: &Cart, due: &[Due]) -> Option<SessionId> {
    checking_out(cart).filter(|_| due.contains(&Due::CheckoutTimedOut))
}

/// The session whose checkout came to nothing.
fn failed(cart: &Cart, due: &[Due]) -> Option<SessionId> {
    let is_over = |due: &Due| matches!(due, Due::CheckoutTimedOut | Due::Abandoned(Kind::Checkout));
    checking_out(cart).filter(|_| due.iter().any(is_over))
}

/// The session whose visit the checkout holds.
fn checking_out(cart: &Cart) -> Option<SessionId> {
    match cart.state {
        State::Checkout { session } => session,
        State::Active | State::Ordered { .. } | State::Merged { .. } | State::Expired | State::Discarded => {
            None
        }
    }
}

fn event(looked: &Looked, due: Due, now: Time) -> Event {
    let Looked { cart, found, due: all, next: _ } = looked;
    let raised = || cart.abandonment.raised.map(|raised| raised.kind);
    let with_kind = |kind| told(cart, kind, &found.contact);
    let (name, data) = match due {
        Due::Idle => ("cart.idle", with_kind(Some(Kind::of(cart)))),
        Due::Abandoned(kind) => ("cart.abandoned", with_kind(Some(kind))),
        Due::CheckoutTimedOut => ("cart.checkout_failed", timed_out(cart)),
        Due::Lost => ("cart.lost", with_kind(abandoned(all).or_else(raised))),
        Due::Expired => ("cart.expired", with_kind(abandoned(all).or_else(raised))),
    };
    system(&found.key.tenant, name, cart.id.to_string(), data, now)
}

/// As `FailCheckout` tells it.
fn timed_out(cart: &Cart) -> Value {
    let reason = CheckoutFailure::TimedOut.as_str_name();
    let mut data = json!({"shopper_id": cart.shopper.to_string(), "reason": reason});
    if let State::Checkout { session: Some(session) } = cart.state {
        data["session_id"] = session.to_string().into();
    }
    data
}
