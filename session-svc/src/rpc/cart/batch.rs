//! Changes of carts, many in one transaction: what is asked for while one runs goes with the next. Each is decided as by
//! itself, in the order that they came. A batch waits for no lock, so that nobody holds up another's cart; what it cannot do,
//! whoever asked does alone.

use std::collections::HashMap;
use std::sync::Arc;

use shared::db::Db;
use shared::id::{GroupId, LineId, ShopperId, TenantId};
use shared::telemetry;
use tracing::Instrument as _;

use super::{Moment, Wish};
use crate::OUTBOX;
use crate::domain::cart::{Cart, Currency};
use crate::rpc::App;
use crate::store;
use crate::store::cart::Place;
use shared::status::Failure;

/// A change, and what it was asked in.
#[derive(Clone)]
pub struct Question {
    wish: Arc<Wish>,
    moment: Moment,
    trace_parent: String,
}

/// What became of a change.
pub enum Answer {
    /// It was made, now or before: the cart after it, and the line that it was about.
    Made(Arc<Cart>, Option<LineId>),
    /// It was refused.
    Refused(Failure),
    /// It takes more than a batch does.
    Alone,
}

/// Where an open cart may be. Whose tenant's, a batch knows.
type Where<'a> = (ShopperId, &'a GroupId, Currency);

/// A locked cart, and what it was.
struct Locked {
    cart: Arc<Cart>,
    version: i64,
}

impl App {
    /// Asks for a change. Once asked it is made, even if nobody waits for the answer any more: those who are in the same
    /// batch do.
    pub(super) async fn change_together(&self, wish: &Arc<Wish>, moment: Moment) -> Result<Answer, Failure> {
        let trace_parent = telemetry::trace_parent();
        let question = Question { wish: Arc::clone(wish), moment, trace_parent };
        let changes = Arc::clone(&self.cart_changes);
        let asked = tokio::spawn(async move { changes.ask(question).await }.in_current_span());
        Ok(asked.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))?)
    }
}

/// Makes changes, in their order.
pub async fn change_all(db: &Db, questions: &[Question]) -> sqlx::Result<Vec<Answer>> {
    let mut places: HashMap<Where<'_>, &TenantId> = HashMap::new();
    for Question { wish, .. } in questions {
        places.entry(wish.place()).or_insert(wish.tenant());
    }
    let place = |(&(shopper, group, currency), &tenant)| Place { tenant, shopper, group, currency };
    let sought: Vec<_> = places.iter().map(place).collect();
    let mut tx = db.begin(None).await?;
    let mut locked = HashMap::new();
    // One that cannot be read is seen to alone.
    for cart in store::cart::lock_free(&mut tx, &sought).await?.into_iter().flatten() {
        let key = (cart.shopper, cart.group.clone(), cart.currency);
        locked.insert(key, Locked { version: cart.version, cart: Arc::new(cart) });
    }
    let (mut answers, mut events) = (vec![], vec![]);
    for Question { wish, moment, trace_parent } in questions {
        let (shopper, group, currency) = wish.place();
        let is_its = places.get(&(shopper, group, currency)) == Some(&wish.tenant());
        let there = locked.get_mut(&(shopper, group.clone(), currency)).filter(|_| is_its);
        // Whose shopper comes back is told of.
        let Some(there) = there.filter(|there| there.cart.abandonment.raised.is_none()) else {
            answers.push(Answer::Alone);
            continue;
        };
        answers.push(match wish.made_before(&there.cart) {
            Err(refusal) => Answer::Refused(refusal.into()),
            Ok(Some(line)) => Answer::Made(Arc::clone(&there.cart), line),
            Ok(None) => match wish.make(&there.cart, moment) {
                Err(failure) => Answer::Refused(failure),
                Ok((cart, outcome)) => {
                    let mut event = wish.event(&cart, &outcome);
                    event.trace_parent.clone_from(trace_parent);
                    events.push(event);
                    there.cart = Arc::new(cart);
                    Answer::Made(Arc::clone(&there.cart), outcome.line)
                }
            },
        });
    }
    let changed = locked.into_values().filter(|there| there.cart.version != there.version);
    let changed: Vec<_> = changed
        .filter_map(|Locked { cart, version }| {
            let tenant = *places.get(&(cart.shopper, &cart.group, cart.currency))?;
            Some((tenant, version, cart))
        })
        .collect();
    if !changed.is_empty() {
        store::cart::update_all(&mut tx, &changed).await?;
        OUTBOX.append_all(&mut tx, &events).await?;
    }
    tx.commit().await?;
    Ok(answers)
}
