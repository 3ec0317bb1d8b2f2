//! `CartService`: each change locks the cart, decides, and writes cart and event in one transaction. The cart is locked
//! before the session whose visit a checkout holds.

use std::sync::Arc;
use std::time::Instant;

use prost::Message;
use serde_json::{Value, json};
use shared::auth::Caller;
use shared::db::Tx;
use shared::edge::Deadline;
use shared::id::{CartId, GroupId, LineId, SessionId, ShopperId, TenantId};
use shared::mutation::Actor;
use shared::outbox::Event;
use shared::parse::{optional, parse};
use shared::pb::session as pb;
use shared::replay::{parse_request_id, reused};
use shared::secret::sha256;
use shared::status::{Failure, Reason, Refusal};
use shared::time::Time;
use tonic::Request;
use uuid::Uuid;

use self::batch::Answer;
use self::convert::{cart_to_proto, empty_cart};
use super::shopper::Shopper;
use super::visit::outcome::record;
use super::{App, abandonment, overtaken};
use crate::OUTBOX;
use crate::domain::cart::{Applied, Cart, Currency, Line, Visiting};
use crate::domain::signal::Guard;
use crate::domain::visit::Visit;
use crate::store;
use crate::store::cart::{Key, Place};

pub mod batch;
mod checkout;
mod code;
pub(super) mod convert;
mod line;
mod service;
mod undo;

/// One change of a cart, as it was asked for.
struct Change {
    caller: Arc<Caller>,
    deadline: Option<Instant>,
    kind: &'static str,
    /// Whether it makes a cart where there is none.
    makes_cart: bool,
    /// The order that a repetition is answered with, if there is one by then.
    order_ref: Option<String>,
    owner: Option<pb::ShopperSelector>,
    request_id: Option<Uuid>,
    /// First half of SHA-256 of kind and body: what a repetition must equal.
    body_hash: [u8; 16],
    /// Whether it does more than change the cart.
    goes_alone: bool,
}

impl Change {
    /// Takes the owner, which may be a credential, and the request's id out; the rest is the body.
    fn of<T: Message>(
        request: Request<T>,
        kind: &'static str,
        parts: fn(&mut T) -> (&mut Option<pb::ShopperSelector>, &mut String),
    ) -> Result<(Self, T), Refusal> {
        let (caller, deadline) = (Caller::of(&request)?, Deadline::of(&request));
        let mut message = request.into_inner();
        let (owner, request_id) = parts(&mut message);
        let (owner, request_id) = (owner.take(), parse_request_id(&std::mem::take(request_id))?);
        let hash = sha256(&[kind.as_bytes(), &message.encode_to_vec()]);
        let mut body_hash = [0; 16];
        body_hash.copy_from_slice(&hash[..16]);
        let change = Self {
            caller,
            deadline,
            kind,
            makes_cart: false,
            order_ref: None,
            owner,
            request_id,
            body_hash,
            goes_alone: false,
        };
        Ok((change, message))
    }

    /// As it goes where it does more than change the cart.
    fn alone(self) -> Self {
        Self { goes_alone: true, ..self }
    }
}

/// A change, and whose cart it is of.
pub struct Intent {
    change: Change,
    shopper: Shopper,
    currency: Currency,
    now: Time,
    decide: Box<Decide>,
}

/// Changes an open cart; where it refuses, the cart may be anything.
type Decide = dyn Fn(&mut Cart, &Moment) -> Result<Outcome, Failure> + Send + Sync;

impl Intent {
    fn tenant(&self) -> &TenantId {
        &self.change.caller.tenant
    }

    fn place(&self) -> (ShopperId, &GroupId, Currency) {
        (self.shopper.id, &self.shopper.group, self.currency)
    }

    /// Whether to change this cart takes more than writing it: its shopper comes back to it, or another policy is its from
    /// now on.
    fn needs_more_of(&self, cart: &Cart) -> bool {
        let touchpoint = self.shopper.touchpoint().map(|touchpoint| &touchpoint.id);
        cart.abandonment.raised.is_some() || touchpoint.is_some_and(|id| Some(id) != cart.touchpoint.as_ref())
    }

    fn actor(&self) -> Actor {
        let principal = self.change.caller.principal.clone();
        Actor { tenant: self.tenant().clone(), principal, now: self.now }
    }

    /// The change as the cart knows it, if it was made before.
    fn made_before<'a>(&self, cart: &'a Cart) -> Result<Option<&'a Applied>, Refusal> {
        let Some((id, applied)) = self.change.request_id.and_then(|id| Some((id, cart.applied(id)?))) else {
            return Ok(None);
        };
        if applied.body_hash == self.change.body_hash { Ok(Some(applied)) } else { Err(reused(id)) }
    }

    /// The open cart after the change, and what else it does.
    fn make(&self, cart: &Cart, moment: &Moment) -> Result<(Cart, Outcome), Failure> {
        let mut cart = cart.clone();
        let outcome = (self.decide)(&mut cart, moment)?;
        let (line, body_hash) = (outcome.line, self.change.body_hash);
        if let Some(request_id) = self.change.request_id {
            cart.remember(Applied { request_id, body_hash, line, newer: vec![] });
        }
        if let Some(touchpoint) = self.shopper.touchpoint() {
            cart.touchpoint = Some(touchpoint.id.clone());
        }
        cart.version += 1;
        Ok((cart, outcome))
    }

    fn event(&self, cart: &Cart, outcome: &Outcome) -> Event {
        let mut data = outcome.data.clone();
        data["shopper_id"] = cart.shopper.to_string().into();
        if let Some(line) = outcome.line {
            data["line_id"] = line.to_string().into();
        }
        let held = if outcome.holds { self.shopper.session_id() } else { outcome.lets_go };
        if let Some(session) = held {
            data["session_id"] = session.to_string().into();
        }
        self.actor().event(self.change.kind, cart.id.to_string(), data)
    }
}

/// When something is asked, and by which visit, if by any.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    now: Time,
    visiting: Option<Visiting>,
}

impl Moment {
    pub(super) fn of<G>(shopper: &Shopper<G>, visit: Option<&Visit>, now: Time) -> Self {
        let visiting = shopper.session_id().zip(visit);
        let visiting = visiting.map(|(session, visit)| Visiting { session, since: visit.started_at });
        Self { now, visiting }
    }
}

/// What a change did besides changing the cart.
#[derive(Default)]
struct Outcome {
    /// The line that it was about.
    line: Option<LineId>,
    data: Value,
    /// Whether the visit of the shopper's session is held from now on.
    holds: bool,
    /// Lets go of the visit of this session.
    lets_go: Option<SessionId>,
    /// Lines that are in the shopper's next cart.
    saved: Vec<Line>,
    /// What rollouts may ask about.
    guard: Option<Guard>,
}

impl Outcome {
    fn does_more(&self) -> bool {
        self.holds || self.lets_go.is_some() || !self.saved.is_empty() || self.guard.is_some()
    }
}

impl App {
    async fn get_cart(&self, request: Request<pb::GetCartRequest>) -> Result<pb::GetCartResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::GetCartRequest { owner, currency_code, cart_id } = request.into_inner();
        let now = self.clock.now();
        let id = optional::<CartId>("cart_id", &cart_id)?;
        let currency = if id.is_none() { Some(parse("currency_code", &currency_code)?) } else { None };
        let shopper = self.known_shopper(&caller, owner, now).await?;
        let visit = self.require_live_shopper(&caller.tenant, &shopper, now)?;
        let moment = Moment::of(&shopper, visit.as_ref(), now);
        let mut db = self.db.connection().await?;
        let cart = match (id, currency) {
            (Some(id), _) => {
                let cart = store::cart::find(&mut db, &caller.tenant, shopper.id, id).await?;
                let cart = cart.filter(|cart| cart.group == shopper.group);
                cart_to_proto(&cart.ok_or_else(|| no_cart().with("cart_id", id))?, &moment)
            }
            (None, Some(currency)) => {
                let place =
                    Place { tenant: &caller.tenant, shopper: shopper.id, group: &shopper.group, currency };
                let cart = store::cart::find_open(&mut db, &place).await?;
                cart.map_or_else(|| empty_cart(&place), |cart| cart_to_proto(&cart, &moment))
            }
            (None, None) => return Err(no_cart().into()),
        };
        Ok(pb::GetCartResponse { cart: Some(cart) })
    }

    /// Makes one change, once: answers the cart after it, and the line that it was about.
    async fn change_cart(
        &self,
        mut change: Change,
        currency: &str,
        decide: impl Fn(&mut Cart, &Moment) -> Result<Outcome, Failure> + Send + Sync + 'static,
    ) -> Result<(pb::Cart, Option<LineId>), Failure> {
        let (currency, now): (Currency, _) = (parse("currency_code", currency)?, self.clock.now());
        let owner = change.owner.take();
        let shopper = if change.goes_alone {
            self.shopper(&change.caller, owner, now).await?
        } else {
            self.known_shopper(&change.caller, owner, now).await?
        };
        let intent = Arc::new(Intent { change, shopper, currency, now, decide: Box::new(decide) });
        let Intent { change, shopper, .. } = &*intent;
        let is_live = self.require_live_shopper(intent.tenant(), shopper, now);
        // A login takes request ids along: whoever has a token of before shall not be answered with the subject's cart.
        if shopper.has_superseded_token() {
            is_live?;
            return Box::pin(self.change_alone(&intent)).await;
        }
        if let (Ok(visit), false) = (is_live, change.goes_alone) {
            let moment = Moment::of(shopper, visit.as_ref(), now);
            match self.change_together(&intent, moment).await? {
                Answer::Made(cart, line) => return Ok((cart_to_proto(&cart, &moment), line)),
                Answer::Refused(failure) => return Err(failure),
                Answer::Alone => {}
            }
        }
        // In a box, so that a change that goes with others does not carry its room.
        Box::pin(self.change_alone(&intent)).await
    }

    /// As [`App::change_cart`], in a transaction of its own.
    async fn change_alone(&self, intent: &Intent) -> Result<(pb::Cart, Option<LineId>), Failure> {
        let Intent { change, shopper, currency, now, .. } = intent;
        let (tenant, now) = (intent.tenant(), *now);
        let place = Place { tenant, shopper: shopper.id, group: &shopper.group, currency: *currency };
        let mut tx = self.db.begin(change.deadline).await?;
        let cart = self.lock_cart(&mut tx, &place, shopper, change, now).await?;
        if let Some(applied) = intent.made_before(&cart)? {
            let (line, moment) = (applied.line, Moment::of(shopper, None, now));
            // The next cart knows what the order knew.
            let order = match &change.order_ref {
                Some(order_ref) => store::cart::find_ordered(&mut tx, &place, order_ref).await?,
                None => None,
            };
            return Ok((cart_to_proto(&order.unwrap_or(cart), &moment), line));
        }
        let visit = self.require_live_shopper(tenant, shopper, now)?;
        // The last one that ended stands in for a cart only to answer what was asked before.
        if !cart.state.is_open() {
            return Err(no_cart().into());
        }
        let moment = Moment::of(shopper, visit.as_ref(), now);
        let before = cart;
        let (mut cart, outcome) = intent.make(&before, &moment)?;
        let line = outcome.line;
        // The look at a new one is set already.
        let is_first = cart.has_goods() && !before.has_goods() && before.version > 1;
        if is_first || intent.needs_more_of(&before) {
            let key = Key { tenant: tenant.clone(), shopper: cart.shopper, cart: cart.id };
            store::abandonment::put_off(&mut tx, &[key], shopper.first_look(now)).await?;
        }
        self.write_change(tx, intent, visit, &mut cart, outcome).await?;
        Ok((cart_to_proto(&cart, &moment), line))
    }

    /// Writes a changed cart, what the change did besides, and its event.
    async fn write_change(
        &self,
        mut tx: Tx,
        intent: &Intent,
        visit: Option<Visit>,
        cart: &mut Cart,
        outcome: Outcome,
    ) -> Result<(), Failure> {
        let (tenant, shopper) = (intent.tenant(), &intent.shopper);
        if !store::cart::update(&mut tx, tenant, cart).await? {
            return Err(overtaken());
        }
        let event = intent.event(cart, &outcome);
        let Outcome { holds, lets_go, saved, guard, .. } = outcome;
        if holds && let (Some((seen, _)), Some(visit)) = (&shopper.named_by, &visit) {
            let id = seen.session.id;
            if !store::visit::hold(&mut tx, tenant, id, cart.id, &seen.stored, visit).await? {
                return Err(overtaken());
            }
            self.enrol(&mut tx, (tenant, id), &seen.stored, &[], visit.started_at).await?;
        }
        if let (Some(guard), Some(session)) = (guard, lets_go.or_else(|| shopper.session_id())) {
            record(&self.routes, &mut tx, tenant, session, &guard, intent.now).await?;
        }
        if let Some(session) = lets_go {
            store::visit::release_hold(&mut tx, tenant, session, cart.id).await?;
        }
        OUTBOX.append(&mut tx, &event).await?;
        let actor = intent.actor();
        if !saved.is_empty() {
            self.continue_cart(&mut tx, &actor, cart, saved).await?;
        }
        if cart.updated_at == intent.now {
            abandonment::recover(&mut tx, &actor, cart).await?;
        }
        tx.commit().await?;
        if let Some(session) = if holds { shopper.session_id() } else { lets_go } {
            if holds {
                self.touches.moved(tenant, session);
            }
            self.sessions.invalidate(&(tenant.clone(), session));
        }
        Ok(())
    }

    /// The next cart after an order, with what was saved for later.
    async fn continue_cart(
        &self,
        tx: &mut Tx,
        actor: &Actor,
        ordered: &Cart,
        lines: Vec<Line>,
    ) -> Result<(), Failure> {
        let next = Cart {
            lines,
            applied: ordered.applied.clone(),
            ..self.new_cart(ordered.shopper, ordered.group.clone(), ordered.currency, actor.now)
        };
        if !store::cart::insert(tx, &actor.tenant, &next, actor.now).await? {
            return Err(overtaken());
        }
        let data = json!({"shopper_id": next.shopper.to_string(), "from_cart_id": ordered.id.to_string()});
        Ok(OUTBOX
            .append(tx, &actor.event("cart.continued", next.id.to_string(), data))
            .await?)
    }

    /// The open cart, locked. Where there is none, and a login did not just take `session` to another shopper, it is the
    /// one that [`App::make_cart`] answers, which makes one if it is told when to look at it first.
    async fn lock_cart(
        &self,
        tx: &mut Tx,
        place: &Place<'_>,
        shopper: &Shopper,
        change: &Change,
        now: Time,
    ) -> Result<Cart, Failure> {
        if let Some(cart) = store::cart::lock_open(tx, place).await? {
            return Ok(cart);
        }
        let cart = self.make_cart(tx, place, shopper, change, now).await?;
        // A login merges the carts that it finds, then waits for whoever was here first and looks again.
        if let Some(session) = shopper.session_id()
            && !store::session::stays_of(tx, place.tenant, session, place.shopper).await?
        {
            // Whoever tries again shall not be told so from memory.
            self.sessions.invalidate(&(place.tenant.clone(), session));
            return Err(overtaken());
        }
        cart.ok_or_else(|| no_cart().into())
    }

    /// A new cart, for a change that makes one; it inherits the request ids of the shopper's last cart, so that a change
    /// repeated later is still known. What the last cart knows, and any other change, gets that cart.
    async fn make_cart(
        &self,
        tx: &mut Tx,
        place: &Place<'_>,
        shopper: &Shopper,
        change: &Change,
        now: Time,
    ) -> Result<Option<Cart>, Failure> {
        let last = store::cart::find_last_ended(tx, place).await?;
        let is_known = |cart: &Cart| change.request_id.is_some_and(|id| cart.applied(id).is_some());
        if !change.makes_cart || last.as_ref().is_some_and(is_known) {
            return Ok(last);
        }
        let applied = last.map(|cart| cart.applied).unwrap_or_default();
        let cart = Cart { applied, ..self.new_cart(place.shopper, place.group.clone(), place.currency, now) };
        if store::cart::insert(tx, place.tenant, &cart, shopper.first_look(now)).await? {
            return Ok(Some(cart));
        }
        // Somebody else made it at the same time and has committed.
        let cart = store::cart::lock_open(tx, place).await?;
        cart.ok_or_else(overtaken).map(Some)
    }

    fn new_cart(&self, shopper: ShopperId, group: GroupId, currency: Currency, now: Time) -> Cart {
        Cart::new(CartId::new(now, self.entropy.bytes()), shopper, group, currency, now)
    }
}

pub(super) fn no_cart() -> Refusal {
    Refusal::new(Reason::CartNotFound, "there is no such cart")
}
