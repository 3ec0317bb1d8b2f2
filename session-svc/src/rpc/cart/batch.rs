//! Changes of carts, many in one transaction: what is asked for while one runs goes with the next. Each is decided as by
//! itself, in the order that they came. A batch waits for no lock, so that nobody holds up another's cart; what it cannot do,
//! whoever asked does alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use shared::db::Db;
use shared::id::{GroupId, LineId, ShopperId, TenantId};
use shared::outbox::Event;
use shared::status::{Failure, Reason, Refusal};
use shared::telemetry;

use super::{Intent, Moment};
use crate::OUTBOX;
use crate::domain::cart::{Cart, Currency};
use crate::rpc::App;
use crate::store;
use crate::store::cart::Place;

/// A change, and what it was asked in.
#[derive(Clone)]
pub struct Question {
    intent: Arc<Intent>,
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
    /// Asks for a change.
    pub(super) async fn change_together(
        &self,
        intent: &Arc<Intent>,
        moment: Moment,
    ) -> Result<Answer, Failure> {
        let trace_parent = telemetry::trace_parent();
        Ok(self
            .cart_changes
            .ask(Question { intent: Arc::clone(intent), moment, trace_parent })
            .await?)
    }
}

/// Makes changes, in their order.
pub async fn change_all(db: &Db, questions: &[Question]) -> sqlx::Result<Vec<Answer>> {
    let mut places: HashMap<Where<'_>, &TenantId> = HashMap::new();
    for Question { intent, .. } in questions {
        places.entry(intent.place()).or_insert_with(|| intent.tenant());
    }
    let place = |(&(shopper, group, currency), &tenant)| Place { tenant, shopper, group, currency };
    let sought: Vec<_> = places.iter().map(place).collect();
    let mut tx = db.begin(None).await?;
    let mut locked = HashMap::new();
    // One that cannot be read is seen to alone.
    for cart in store::cart::batch::lock_free(&mut tx, &sought).await?.into_iter().flatten() {
        let key = (cart.shopper, cart.group.clone(), cart.currency);
        locked.insert(key, Locked { version: cart.version, cart: Arc::new(cart) });
    }
    let (mut answers, mut events) = (vec![], vec![]);
    for Question { intent, moment, trace_parent } in questions {
        let (shopper, group, currency) = intent.place();
        let is_its = places.get(&(shopper, group, currency)) == Some(&intent.tenant());
        let there = locked.get_mut(&(shopper, group.clone(), currency)).filter(|_| is_its);
        let Some(there) = there.filter(|there| !intent.needs_more_of(&there.cart)) else {
            answers.push(Answer::Alone);
            continue;
        };
        answers.push(match decide(intent, moment, &there.cart) {
            Decided::Answer(answer) => answer,
            Decided::Made(cart, line, mut event) => {
                event.trace_parent.clone_from(trace_parent);
                events.push(event);
                there.cart = cart;
                Answer::Made(Arc::clone(&there.cart), line)
            }
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
        store::cart::batch::update(&mut tx, &changed).await?;
        OUTBOX.append_all(&mut tx, &events).await?;
    }
    tx.commit().await?;
    Ok(answers)
}

enum Decided {
    Answer(Answer),
    Made(Arc<Cart>, Option<LineId>, Event),
}

fn decide(intent: &Intent, moment: &Moment, before: &Arc<Cart>) -> Decided {
    Decided::Answer(match intent.made_before(before) {
        Err(refusal) => Answer::Refused(refusal.into()),
        Ok(Some(applied)) => Answer::Made(Arc::clone(before), applied.line),
        Ok(None) if intent.change.deadline.is_some_and(|deadline| deadline <= Instant::now()) => {
            let text = "the caller's deadline passed; nothing happened";
            Answer::Refused(Refusal::new(Reason::DeadlinePassed, text).into())
        }
        Ok(None) => match intent.make(before, moment) {
            Err(failure) => Answer::Refused(failure),
            Ok((cart, outcome)) if outcome.does_more() || cart.has_goods() && !before.has_goods() => {
                Answer::Alone
            }
            Ok((cart, outcome)) => {
                let event = intent.event(&cart, &outcome);
                return Decided::Made(Arc::new(cart), outcome.line, event);
            }
        },
    })
}
