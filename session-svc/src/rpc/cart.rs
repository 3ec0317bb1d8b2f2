//! `CartService`: each change locks the cart, decides, and writes cart and event in one transaction. The cart is locked
//! before the session whose visit a checkout holds.

use std::sync::Arc;
use std::time::Instant;

use prost::Message;
use serde_json::{Value, json};
use shared::auth::Caller;
use shared::db::Tx;
use shared::edge::Deadline;
use shared::id::{CartId, LineId, SessionId};
use shared::mutation::Actor;
use shared::parse::{etag, known, line, optional, parse, required, within};
use shared::pb::common::Money;
use shared::pb::session as pb;
use shared::replay::{parse_request_id, reused};
use shared::secret::sha256;
use shared::status::{Failure, Reason, Refusal};
use shared::time::Time;
use tonic::Request;
use uuid::Uuid;

use self::convert::empty_cart;
use super::shopper::Shopper;
use super::{App, abandonment, overtaken};
use crate::OUTBOX;
use crate::domain::abandonment::Abandonment;
use crate::domain::cart::{Applied, Cart, Currency, Line, QUANTITY_MAX, State, UNIT_PRICE_MAX};
use crate::store;
use crate::store::cart::Place;

mod convert;
mod service;

/// One change of a cart, as it was asked for.
struct Change {
    caller: Arc<Caller>,
    deadline: Option<Instant>,
    kind: &'static str,
    owner: Option<pb::ShopperSelector>,
    request_id: Option<Uuid>,
    /// First half of SHA-256 of kind and body: what a repetition must equal.
    body_hash: [u8; 16],
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
        Ok((Self { caller, deadline, kind, owner, request_id, body_hash }, message))
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
}

impl App {
    async fn get_cart(&self, request: Request<pb::GetCartRequest>) -> Result<pb::GetCartResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::GetCartRequest { owner, currency_code, cart_id } = request.into_inner();
        let now = self.clock.now();
        if let Some(id) = optional::<CartId>("cart_id", &cart_id)? {
            let shopper = self.shopper(&caller, owner, now).await?;
            self.require_live_shopper(&caller.tenant, &shopper, now)?;
            let mut db = self.db.connection().await?;
            let cart = store::cart::find(&mut db, &caller.tenant, shopper.id, id).await?;
            let cart = cart.filter(|cart| cart.group == shopper.group);
            let cart = cart.ok_or_else(|| no_cart().with("cart_id", id))?;
            return Ok(pb::GetCartResponse { cart: Some((&cart).into()) });
        }
        let currency = parse("currency_code", &currency_code)?;
        let shopper = self.shopper(&caller, owner, now).await?;
        self.require_live_shopper(&caller.tenant, &shopper, now)?;
        let place =
            Place { tenant: &caller.tenant, shopper: shopper.id, group: &shopper.group, currency: &currency };
        let cart = store::cart::find_open(&mut *self.db.connection().await?, &place).await?;
        let cart = cart.map_or_else(|| empty_cart(&place), |cart| (&cart).into());
        Ok(pb::GetCartResponse { cart: Some(cart) })
    }

    /// Makes one change, once: answers the cart after it, and the line of an addition.
    async fn change_cart(
        &self,
        change: Change,
        currency: &str,
        decide: impl FnOnce(&mut Cart, &Shopper, Time) -> Result<Outcome, Failure> + Send,
    ) -> Result<(pb::Cart, Option<LineId>), Failure> {
        let Change { caller, deadline, kind, owner, request_id, body_hash } = change;
        let (currency, now): (Currency, _) = (parse("currency_code", currency)?, self.clock.now());
        let shopper = self.shopper(&caller, owner, now).await?;
        let tenant = &caller.tenant;
        // A login takes request ids along: whoever has a token of before shall not be answered with the subject's cart.
        if shopper.has_superseded_token() {
            self.require_live_shopper(tenant, &shopper, now)?;
        }
        let place = Place { tenant, shopper: shopper.id, group: &shopper.group, currency: &currency };
        let mut tx = self.db.begin(deadline).await?;
        let (session, first_look) = (shopper.session_id(), (kind == ADDED).then(|| shopper.first_look(now)));
        let mut cart = self.lock_cart(&mut tx, &place, session, first_look, request_id, now).await?;
        if let Some(id) = request_id
            && let Some(applied) = cart.applied(id)
        {
            let is_same = applied.body_hash == body_hash;
            return if is_same { Ok(((&cart).into(), applied.line)) } else { Err(reused(id).into()) };
        }
        let visit = self.require_live_shopper(tenant, &shopper, now)?;
        // The last order stands in for a cart only to answer what was asked before.
        if matches!(cart.state, State::Ordered { .. }) {
            return Err(no_cart().into());
        }
        let changed_at = cart.updated_at;
        let Outcome { line, data, holds, lets_go } = decide(&mut cart, &shopper, now)?;
        let is_activity = cart.updated_at != changed_at;
        if let Some(touchpoint) = shopper.touchpoint() {
            cart.touchpoint = Some(touchpoint.id.clone());
        }
        if let Some(request_id) = request_id {
            cart.remember(Applied { request_id, body_hash, line });
        }
        cart.version += 1;
        if !store::cart::update(&mut tx, tenant, &cart).await? {
            return Err(overtaken());
        }
        if holds
            && let (Some((seen, _)), Some(visit)) = (&shopper.named_by, &visit)
            && !store::visit::hold(&mut tx, tenant, seen.session.id, cart.id, &seen.stored, visit).await?
        {
            return Err(overtaken());
        }
        if let Some(session) = lets_go {
            store::visit::release_hold(&mut tx, tenant, session, cart.id).await?;
        }
        let actor = Actor { tenant: tenant.clone(), principal: caller.principal.clone(), now };
        let held = if holds { shopper.session_id() } else { lets_go };
        let data = event_data(data, &cart, line, held);
        OUTBOX.append(&mut tx, &actor.event(kind, cart.id.to_string(), data)).await?;
        if is_activity {
            abandonment::recover(&mut tx, &actor, &mut cart).await?;
        }
        tx.commit().await?;
        if let Some(session) = held {
            if holds {
                self.touches.moved(tenant, session);
            }
            self.sessions.invalidate(&(tenant.clone(), session));
        }
        Ok(((&cart).into(), line))
    }

    /// The open cart, locked. Where there is none, and a login did not just take `session` to another shopper, it is the
    /// one that [`App::make_cart`] answers, which makes one if it is told when to look at it first.
    async fn lock_cart(
        &self,
        tx: &mut Tx,
        place: &Place<'_>,
        session: Option<SessionId>,
        first_look: Option<Time>,
        request_id: Option<Uuid>,
        now: Time,
    ) -> Result<Cart, Failure> {
        if let Some(cart) = store::cart::lock_open(tx, place).await? {
            return Ok(cart);
        }
        let cart = self.make_cart(tx, place, first_look, request_id, now).await?;
        // A login merges the carts that it finds, then waits for whoever was here first and looks again.
        if let Some(session) = session
            && !store::session::stays_of(tx, place.tenant, session, place.shopper).await?
        {
            return Err(overtaken());
        }
        cart.ok_or_else(|| no_cart().into())
    }

    /// A new cart for an addition, which inherits the request ids of the shopper's last order, so that a change repeated
    /// later is still known. What the last order knows, and anything but an addition, gets that order.
    async fn make_cart(
        &self,
        tx: &mut Tx,
        place: &Place<'_>,
        first_look: Option<Time>,
        request_id: Option<Uuid>,
        now: Time,
    ) -> Result<Option<Cart>, Failure> {
        let last = store::cart::find_last_ordered(tx, place).await?;
        let is_known = |cart: &Cart| request_id.is_some_and(|id| cart.applied(id).is_some());
        let Some(first_look) = first_look.filter(|_| !last.as_ref().is_some_and(is_known)) else {
            return Ok(last);
        };
        let cart = Cart {
            id: CartId::new(now, self.entropy.bytes()),
            shopper: place.shopper,
            group: place.group.clone(),
            currency: place.currency.clone(),
            state: State::Active,
            lines: vec![],
            applied: last.map(|cart| cart.applied).unwrap_or_default(),
            created_at: now,
            updated_at: now,
            version: 1,
            touchpoint: None,
            abandonment: Abandonment::default(),
        };
        if store::cart::insert(tx, place.tenant, &cart, first_look).await? {
            return Ok(Some(cart));
        }
        // Somebody else made it at the same time and has committed.
        let cart = store::cart::lock_open(tx, place).await?;
        cart.ok_or_else(overtaken).map(Some)
    }

    async fn add_cart_line(
        &self,
        request: Request<pb::AddCartLineRequest>,
    ) -> Result<pb::AddCartLineResponse, Failure> {
        let (change, message) = Change::of(request, ADDED, |m| (&mut m.owner, &mut m.request_id))?;
        let pb::AddCartLineRequest { sku, quantity, unit_price, owner: _, request_id: _ } = message;
        let sku = line("sku", sku, 1, 64)?;
        let quantity = within("quantity", quantity, 1, QUANTITY_MAX)?;
        let Money { currency_code, minor_units } = required("unit_price", unit_price)?;
        let unit_price = within("unit_price.minor_units", minor_units, 0, UNIT_PRICE_MAX)?;
        let random = self.entropy.bytes();
        let decide = |cart: &mut Cart, _: &Shopper, now| {
            let data = json!({"sku": sku, "quantity": quantity});
            let id = LineId::new(now, random);
            let added = Line { id, sku, quantity, unit_price, price_observed_at: now, created_at: now };
            Ok(Outcome { line: Some(cart.add(added, now)?), data, ..Outcome::default() })
        };
        let (cart, line) = self.change_cart(change, &currency_code, decide).await?;
        let line_id = line.map(|line| line.to_string()).unwrap_or_default();
        Ok(pb::AddCartLineResponse { cart: Some(cart), line_id })
    }

    async fn set_cart_line_quantity(
        &self,
        request: Request<pb::SetCartLineQuantityRequest>,
    ) -> Result<pb::SetCartLineQuantityResponse, Failure> {
        let (change, message) = Change::of(request, "cart.line_set", |m| (&mut m.owner, &mut m.request_id))?;
        let pb::SetCartLineQuantityRequest { currency_code, line_id, quantity, owner: _, request_id: _ } =
            message;
        let id = parse("line_id", &line_id)?;
        let quantity = within("quantity", quantity, 1, QUANTITY_MAX)?;
        let decide = |cart: &mut Cart, _: &Shopper, now| {
            cart.set_quantity(id, quantity, now)?;
            Ok(Outcome { line: Some(id), data: json!({"quantity": quantity}), ..Outcome::default() })
        };
        let (cart, _) = self.change_cart(change, &currency_code, decide).await?;
        Ok(pb::SetCartLineQuantityResponse { cart: Some(cart) })
    }

    async fn remove_cart_line(
        &self,
        request: Request<pb::RemoveCartLineRequest>,
    ) -> Result<pb::RemoveCartLineResponse, Failure> {
        let (change, message) =
            Change::of(request, "cart.line_removed", |m| (&mut m.owner, &mut m.request_id))?;
        let pb::RemoveCartLineRequest { currency_code, line_id, owner: _, request_id: _ } = message;
        let id = parse("line_id", &line_id)?;
        let decide = |cart: &mut Cart, _: &Shopper, now| {
            cart.remove(id, now)?;
            Ok(Outcome { line: Some(id), data: json!({}), ..Outcome::default() })
        };
        let (cart, _) = self.change_cart(change, &currency_code, decide).await?;
        Ok(pb::RemoveCartLineResponse { cart: Some(cart) })
    }

    async fn begin_checkout(
        &self,
        request: Request<pb::BeginCheckoutRequest>,
    ) -> Result<pb::BeginCheckoutResponse, Failure> {
        let (change, message) =
            Change::of(request, "cart.checkout_begun", |m| (&mut m.owner, &mut m.request_id))?;
        let pb::BeginCheckoutRequest { currency_code, etag: seen, owner: _, request_id: _ } = message;
        let decide = |cart: &mut Cart, shopper: &Shopper, now| {
            etag(&seen, cart.version)?;
            cart.begin_checkout(shopper.session_id(), now)?;
            Ok(Outcome { holds: true, data: json!({}), ..Outcome::default() })
        };
        let (cart, _) = self.change_cart(change, &currency_code, decide).await?;
        Ok(pb::BeginCheckoutResponse { cart: Some(cart) })
    }

    async fn complete_checkout(
        &self,
        request: Request<pb::CompleteCheckoutRequest>,
    ) -> Result<pb::CompleteCheckoutResponse, Failure> {
        let (change, message) =
            Change::of(request, "cart.checkout_completed", |m| (&mut m.owner, &mut m.request_id))?;
        let pb::CompleteCheckoutRequest { currency_code, order_ref, owner: _, request_id: _ } = message;
        let order_ref = line("order_ref", order_ref, 1, 128)?;
        let decide = |cart: &mut Cart, _: &Shopper, now| {
            let (total, currency) = (cart.total(), cart.currency.as_str());
            let data = json!({"order_ref": order_ref, "total_minor_units": total, "currency_code": currency});
            let lets_go = cart.complete_checkout(order_ref, now)?;
            Ok(Outcome { data, lets_go, ..Outcome::default() })
        };
        let (cart, _) = self.change_cart(change, &currency_code, decide).await?;
        Ok(pb::CompleteCheckoutResponse { cart: Some(cart) })
    }

    async fn fail_checkout(
        &self,
        request: Request<pb::FailCheckoutRequest>,
    ) -> Result<pb::FailCheckoutResponse, Failure> {
        let (change, message) =
            Change::of(request, "cart.checkout_failed", |m| (&mut m.owner, &mut m.request_id))?;
        let pb::FailCheckoutRequest { currency_code, reason, owner: _, request_id: _ } = message;
        let reason: pb::CheckoutFailure = known("reason", reason)?;
        let decide = |cart: &mut Cart, _: &Shopper, now| {
            let lets_go = cart.fail_checkout(now)?;
            Ok(Outcome { data: json!({"reason": reason.as_str_name()}), lets_go, ..Outcome::default() })
        };
        let (cart, _) = self.change_cart(change, &currency_code, decide).await?;
        Ok(pb::FailCheckoutResponse { cart: Some(cart) })
    }
}

/// The change that makes a cart where there is none.
const ADDED: &str = "cart.line_added";

pub(super) fn no_cart() -> Refusal {
    Refusal::new(Reason::CartNotFound, "there is no such cart")
}

fn event_data(mut data: Value, cart: &Cart, line: Option<LineId>, held: Option<SessionId>) -> Value {
    data["shopper_id"] = cart.shopper.to_string().into();
    if let Some(line) = line {
        data["line_id"] = line.to_string().into();
    }
    if let Some(session) = held {
        data["session_id"] = session.to_string().into();
    }
    data
}
