//! `CartService`: each change locks the cart, decides, and writes cart and event in one transaction. The cart is locked
//! before the session whose visit a checkout holds.

use std::sync::Arc;
use std::time::Instant;

use prost::Message;
use serde_json::{Value, json};
use shared::auth::Caller;
use shared::db::Tx;
use shared::edge::Deadline;
use shared::id::{CartId, GroupId, LineId, SessionId, ShopperId};
use shared::outbox::Event;
use shared::parse::{etag, etag_of, known, line, optional, parse, required, within};
use shared::pb::common::Money;
use shared::pb::session as pb;
use shared::pb::session::cart_owner::Owner;
use shared::pb::session::cart_service_server::CartService;
use shared::replay::{parse_request_id, reused};
use shared::secret::sha256;
use shared::status::{Failure, Reason, Refusal};
use shared::time::{Time, to_proto};
use tonic::{Request, Response, Status};

use super::{App, cart_refused, ended, overtaken};
use crate::OUTBOX;
use crate::domain::cart::{Applied, Cart, Currency, Line, QUANTITY_MAX, State, UNIT_PRICE_MAX};
use crate::domain::session::Ended;
use crate::store;
use crate::store::cart::Place;

/// Answers `CartService`.
pub struct CartRpc(pub Arc<App>);

/// Whose cart, and at which touchpoints.
struct Shopper {
    id: ShopperId,
    group: GroupId,
    /// The session that named it.
    session: Option<SessionId>,
}

/// One change of a cart.
struct Change<'a> {
    kind: &'static str,
    owner: Option<pb::CartOwner>,
    currency: &'a str,
    request_id: &'a str,
    /// SHA-256 of method and body, without request id and owner.
    body_hash: [u8; 32],
    /// Whether the first such change makes the cart.
    makes_cart: bool,
    deadline: Option<Instant>,
}

/// What a change did to the cart besides changing it.
#[derive(Default)]
struct Outcome {
    line: Option<LineId>,
    data: Value,
    /// Holds the visit of this session from now on.
    holds: Option<SessionId>,
    /// Lets go of the visit of this session.
    lets_go: Option<SessionId>,
}

impl App {
    async fn shopper(
        &self,
        caller: &Caller,
        owner: Option<pb::CartOwner>,
        now: Time,
    ) -> Result<Shopper, Failure> {
        match required("owner", required("owner", owner)?.owner)? {
            Owner::SessionToken(token) => {
                let (session, touchpoint) = self.live_session(caller, &token, now).await?;
                let text = "the session's touchpoint has no shoppers, hence no cart";
                let id = session.shopper.ok_or_else(|| Refusal::new(Reason::SessionHasNoShopper, text))?;
                Ok(Shopper { id, group: touchpoint.value.group.clone(), session: Some(session.id) })
            }
            Owner::Shopper(pb::ShopperRef { shopper_id, touchpoint_group }) => {
                caller.require_scope("shopper.any")?;
                let id = parse("owner.shopper.shopper_id", &shopper_id)?;
                Ok(Shopper {
                    id,
                    group: parse("owner.shopper.touchpoint_group", &touchpoint_group)?,
                    session: None,
                })
            }
        }
    }

    async fn get_cart(
        &self,
        caller: &Caller,
        request: pb::GetCartRequest,
    ) -> Result<pb::GetCartResponse, Failure> {
        let pb::GetCartRequest { owner, currency_code, cart_id } = request;
        let id: Option<CartId> = optional("cart_id", &cart_id)?;
        let currency: Option<Currency> = match id {
            Some(_) => optional("currency_code", &currency_code)?,
            None => Some(parse("currency_code", &currency_code)?),
        };
        let shopper = self.shopper(caller, owner, self.clock.now()).await?;
        let mut db = self.db.connection().await?;
        let cart = match (id, currency) {
            (Some(id), _) => {
                let cart = store::cart::find(&mut db, &caller.tenant, shopper.id, id).await?;
                let cart = cart.filter(|cart| cart.group == shopper.group);
                cart_to_proto(&cart.ok_or_else(|| no_cart().with("cart_id", id))?)
            }
            (None, Some(currency)) => {
                let place = Place {
                    tenant: &caller.tenant,
                    shopper: shopper.id,
                    group: &shopper.group,
                    currency: &currency,
                };
                let cart = store::cart::find_open(&mut db, &place).await?;
                cart.map_or_else(|| empty_cart(&shopper, &currency), |cart| cart_to_proto(&cart))
            }
            (None, None) => return Err(Failure::Bug("neither cart nor currency".to_owned())),
        };
        Ok(pb::GetCartResponse { cart: Some(cart) })
    }

    /// Makes one change, once: answers the cart after it, and the line of an addition.
    async fn change_cart(
        &self,
        caller: &Caller,
        change: Change<'_>,
        decide: impl FnOnce(&mut Cart, &Shopper, Time) -> Result<Outcome, Failure> + Send,
    ) -> Result<(Cart, Option<LineId>), Failure> {
        let currency: Currency = parse("currency_code", change.currency)?;
        let request_id = parse_request_id(change.request_id)?;
        let now = self.clock.now();
        let shopper = self.shopper(caller, change.owner, now).await?;
        let place =
            Place { tenant: &caller.tenant, shopper: shopper.id, group: &shopper.group, currency: &currency };
        let mut tx = self.db.begin(change.deadline).await?;
        let (mut cart, is_new) = self.lock_cart(&mut tx, &place, change.makes_cart, now).await?;
        let body_hash = *change
            .body_hash
            .first_chunk()
            .ok_or_else(|| Failure::Bug("a short hash".to_owned()))?;
        if let Some(id) = request_id
            && let Some(applied) = cart.applied(id)
        {
            if applied.body_hash != body_hash {
                return Err(reused(id).into());
            }
            let line = applied.line;
            return Ok((cart, line));
        }
        let outcome = decide(&mut cart, &shopper, now)?;
        if let Some(request_id) = request_id {
            cart.remember(Applied { request_id, body_hash, line: outcome.line });
        }
        let is_written = if is_new {
            store::cart::insert(&mut tx, &caller.tenant, &cart).await?
        } else {
            cart.version += 1;
            store::cart::update(&mut tx, &caller.tenant, &cart).await?
        };
        if !is_written {
            return Err(overtaken());
        }
        if let Some(session) = outcome.holds
            && !store::session::hold(&mut tx, &caller.tenant, session, cart.id).await?
        {
            return Err(ended(Ended::Revoked).into());
        }
        if let Some(session) = outcome.lets_go {
            store::session::release_hold(&mut tx, &caller.tenant, session, cart.id).await?;
        }
        let held = outcome.holds.or(outcome.lets_go);
        OUTBOX
            .append(&mut tx, &event(caller, change.kind, &cart, now, outcome.data, held))
            .await?;
        tx.commit().await?;
        if let Some(session) = held {
            self.sessions.invalidate(&(caller.tenant.clone(), session));
        }
        Ok((cart, outcome.line))
    }

    /// The open cart, locked; or a new one, not yet stored, which inherits the request ids of the shopper's last order, so
    /// that a change repeated after the order is still known. Without either, the last order itself answers what is
    /// repeated.
    async fn lock_cart(
        &self,
        tx: &mut Tx,
        place: &Place<'_>,
        makes_cart: bool,
        now: Time,
    ) -> Result<(Cart, bool), Failure> {
        if let Some(cart) = store::cart::lock_open(tx, place).await? {
            return Ok((cart, false));
        }
        let last = store::cart::find_last_ordered(tx, place).await?;
        if !makes_cart {
            return last.map(|cart| (cart, false)).ok_or_else(|| no_cart().into());
        }
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
        };
        Ok((cart, true))
    }

    async fn add_cart_line(
        &self,
        caller: &Caller,
        deadline: Option<Instant>,
        request: pb::AddCartLineRequest,
    ) -> Result<pb::AddCartLineResponse, Failure> {
        let body = pb::AddCartLineRequest { owner: None, request_id: String::new(), ..request.clone() };
        let pb::AddCartLineRequest { owner, sku, quantity, unit_price, request_id } = request;
        let sku = line("sku", sku, 1, 64)?;
        let quantity = within("quantity", quantity, 1, QUANTITY_MAX)?;
        let Money { currency_code, minor_units } = required("unit_price", unit_price)?;
        let unit_price = within("unit_price.minor_units", minor_units, 0, UNIT_PRICE_MAX)?;
        let change = Change {
            makes_cart: true,
            ..change("cart.line_added", owner, &currency_code, &request_id, &body, deadline)
        };
        let id_bytes = self.entropy.bytes();
        let (cart, line) = self
            .change_cart(caller, change, |cart, _, now| {
                let id = LineId::new(now, id_bytes);
                let added = Line {
                    id,
                    sku: sku.clone(),
                    quantity,
                    unit_price,
                    price_observed_at: now,
                    created_at: now,
                };
                let line = cart.add(added, now).map_err(|refused| cart_refused(&refused))?;
                let data = json!({"line_id": line.to_string(), "sku": sku, "quantity": quantity});
                Ok(Outcome { line: Some(line), data, ..Outcome::default() })
            })
            .await?;
        let line_id = line.map(|line| line.to_string()).unwrap_or_default();
        Ok(pb::AddCartLineResponse { cart: Some(cart_to_proto(&cart)), line_id })
    }

    async fn set_cart_line_quantity(
        &self,
        caller: &Caller,
        deadline: Option<Instant>,
        request: pb::SetCartLineQuantityRequest,
    ) -> Result<pb::SetCartLineQuantityResponse, Failure> {
        let body =
            pb::SetCartLineQuantityRequest { owner: None, request_id: String::new(), ..request.clone() };
        let pb::SetCartLineQuantityRequest { owner, currency_code, line_id, quantity, request_id } = request;
        let id = parse("line_id", &line_id)?;
        let quantity = within("quantity", quantity, 1, QUANTITY_MAX)?;
        let change = change("cart.line_set", owner, &currency_code, &request_id, &body, deadline);
        let (cart, _) = self
            .change_cart(caller, change, |cart, _, now| {
                require_open(cart)?;
                cart.set_quantity(id, quantity, now).map_err(|refused| cart_refused(&refused))?;
                Ok(Outcome { data: json!({"line_id": line_id, "quantity": quantity}), ..Outcome::default() })
            })
            .await?;
        Ok(pb::SetCartLineQuantityResponse { cart: Some(cart_to_proto(&cart)) })
    }

    async fn remove_cart_line(
        &self,
        caller: &Caller,
        deadline: Option<Instant>,
        request: pb::RemoveCartLineRequest,
    ) -> Result<pb::RemoveCartLineResponse, Failure> {
        let body = pb::RemoveCartLineRequest { owner: None, request_id: String::new(), ..request.clone() };
        let pb::RemoveCartLineRequest { owner, currency_code, line_id, request_id } = request;
        let id = parse("line_id", &line_id)?;
        let change = change("cart.line_removed", owner, &currency_code, &request_id, &body, deadline);
        let (cart, _) = self
            .change_cart(caller, change, |cart, _, now| {
                require_open(cart)?;
                cart.remove(id, now).map_err(|refused| cart_refused(&refused))?;
                Ok(Outcome { data: json!({"line_id": line_id}), ..Outcome::default() })
            })
            .await?;
        Ok(pb::RemoveCartLineResponse { cart: Some(cart_to_proto(&cart)) })
    }

    async fn begin_checkout(
        &self,
        caller: &Caller,
        deadline: Option<Instant>,
        request: pb::BeginCheckoutRequest,
    ) -> Result<pb::BeginCheckoutResponse, Failure> {
        let body = pb::BeginCheckoutRequest { owner: None, request_id: String::new(), ..request.clone() };
        let pb::BeginCheckoutRequest { owner, currency_code, etag: seen, request_id } = request;
        let change = change("cart.checkout_begun", owner, &currency_code, &request_id, &body, deadline);
        let (cart, _) = self
            .change_cart(caller, change, |cart, shopper, now| {
                require_open(cart)?;
                etag(&seen, cart.version)?;
                cart.begin_checkout(shopper.session, now)
                    .map_err(|refused| cart_refused(&refused))?;
                Ok(Outcome { holds: shopper.session, data: json!({}), ..Outcome::default() })
            })
            .await?;
        Ok(pb::BeginCheckoutResponse { cart: Some(cart_to_proto(&cart)) })
    }

    async fn complete_checkout(
        &self,
        caller: &Caller,
        deadline: Option<Instant>,
        request: pb::CompleteCheckoutRequest,
    ) -> Result<pb::CompleteCheckoutResponse, Failure> {
        let body = pb::CompleteCheckoutRequest { owner: None, request_id: String::new(), ..request.clone() };
        let pb::CompleteCheckoutRequest { owner, currency_code, order_ref, request_id } = request;
        let order_ref = line("order_ref", order_ref, 1, 128)?;
        let change = change("cart.checkout_completed", owner, &currency_code, &request_id, &body, deadline);
        let (cart, _) = self
            .change_cart(caller, change, |cart, _, now| {
                require_open(cart)?;
                let data = json!({"order_ref": order_ref, "total_minor_units": cart.total(), "currency_code": cart.currency.as_str()});
                let lets_go = cart.complete_checkout(order_ref, now).map_err(|refused| cart_refused(&refused))?;
                Ok(Outcome { data, lets_go, ..Outcome::default() })
            })
            .await?;
        Ok(pb::CompleteCheckoutResponse { cart: Some(cart_to_proto(&cart)) })
    }

    async fn fail_checkout(
        &self,
        caller: &Caller,
        deadline: Option<Instant>,
        request: pb::FailCheckoutRequest,
    ) -> Result<pb::FailCheckoutResponse, Failure> {
        let body = pb::FailCheckoutRequest { owner: None, request_id: String::new(), ..request.clone() };
        let pb::FailCheckoutRequest { owner, currency_code, reason, request_id } = request;
        let reason: pb::CheckoutFailure = known("reason", reason)?;
        let change = change("cart.checkout_failed", owner, &currency_code, &request_id, &body, deadline);
        let (cart, _) = self
            .change_cart(caller, change, |cart, _, now| {
                require_open(cart)?;
                let lets_go = cart.fail_checkout(now).map_err(|refused| cart_refused(&refused))?;
                Ok(Outcome { lets_go, data: json!({"reason": reason.as_str_name()}), ..Outcome::default() })
            })
            .await?;
        Ok(pb::FailCheckoutResponse { cart: Some(cart_to_proto(&cart)) })
    }
}

fn change<'a>(
    kind: &'static str,
    owner: Option<pb::CartOwner>,
    currency: &'a str,
    request_id: &'a str,
    body: &impl Message,
    deadline: Option<Instant>,
) -> Change<'a> {
    let body_hash = sha256(&[kind.as_bytes(), &body.encode_to_vec()]);
    Change { kind, owner, currency, request_id, body_hash, makes_cart: false, deadline }
}

/// The last order stands in for a cart only to answer what was asked before.
fn require_open(cart: &Cart) -> Result<(), Failure> {
    match cart.state {
        State::Active | State::Checkout { .. } => Ok(()),
        State::Ordered { .. } => Err(no_cart().into()),
    }
}

fn no_cart() -> Refusal {
    Refusal::new(Reason::CartNotFound, "there is no such cart")
}

fn event(
    caller: &Caller,
    kind: &'static str,
    cart: &Cart,
    at: Time,
    mut data: Value,
    session: Option<SessionId>,
) -> Event {
    data["shopper_id"] = cart.shopper.to_string().into();
    if let Some(session) = session {
        data["session_id"] = session.to_string().into();
    }
    let (tenant, principal) = (caller.tenant.clone(), caller.principal.clone());
    Event { tenant, kind, subject: cart.id.to_string(), principal, at, data }
}

fn empty_cart(shopper: &Shopper, currency: &Currency) -> pb::Cart {
    pb::Cart {
        shopper_id: shopper.id.to_string(),
        touchpoint_group: shopper.group.to_string(),
        currency_code: currency.as_str().to_owned(),
        state: pb::CartState::Active.into(),
        total: Some(money(currency, 0)),
        ..pb::Cart::default()
    }
}

fn money(currency: &Currency, minor_units: i64) -> Money {
    Money { currency_code: currency.as_str().to_owned(), minor_units }
}

fn cart_to_proto(cart: &Cart) -> pb::Cart {
    let (state, order_ref) = match &cart.state {
        State::Active => (pb::CartState::Active, ""),
        State::Checkout { .. } => (pb::CartState::Checkout, ""),
        State::Ordered { order_ref } => (pb::CartState::Ordered, order_ref.as_str()),
    };
    let line = |line: &Line| pb::CartLine {
        line_id: line.id.to_string(),
        sku: line.sku.clone(),
        quantity: line.quantity,
        unit_price: Some(money(&cart.currency, line.unit_price)),
        price_observe_time: Some(to_proto(line.price_observed_at)),
        create_time: Some(to_proto(line.created_at)),
    };
    pb::Cart {
        cart_id: cart.id.to_string(),
        shopper_id: cart.shopper.to_string(),
        touchpoint_group: cart.group.to_string(),
        currency_code: cart.currency.as_str().to_owned(),
        state: state.into(),
        lines: cart.lines.iter().map(line).collect(),
        total: Some(money(&cart.currency, cart.total())),
        create_time: Some(to_proto(cart.created_at)),
        update_time: Some(to_proto(cart.updated_at)),
        order_ref: order_ref.to_owned(),
        etag: etag_of(cart.version),
    }
}

#[tonic::async_trait]
impl CartService for CartRpc {
    async fn get_cart(
        &self,
        request: Request<pb::GetCartRequest>,
    ) -> Result<Response<pb::GetCartResponse>, Status> {
        let caller = Caller::of(&request).map_err(Failure::from)?;
        Ok(Response::new(self.0.get_cart(&caller, request.into_inner()).await?))
    }

    async fn add_cart_line(
        &self,
        request: Request<pb::AddCartLineRequest>,
    ) -> Result<Response<pb::AddCartLineResponse>, Status> {
        let (caller, deadline) = (Caller::of(&request).map_err(Failure::from)?, Deadline::of(&request));
        Ok(Response::new(self.0.add_cart_line(&caller, deadline, request.into_inner()).await?))
    }

    async fn set_cart_line_quantity(
        &self,
        request: Request<pb::SetCartLineQuantityRequest>,
    ) -> Result<Response<pb::SetCartLineQuantityResponse>, Status> {
        let (caller, deadline) = (Caller::of(&request).map_err(Failure::from)?, Deadline::of(&request));
        Ok(Response::new(self.0.set_cart_line_quantity(&caller, deadline, request.into_inner()).await?))
    }

    async fn remove_cart_line(
        &self,
        request: Request<pb::RemoveCartLineRequest>,
    ) -> Result<Response<pb::RemoveCartLineResponse>, Status> {
        let (caller, deadline) = (Caller::of(&request).map_err(Failure::from)?, Deadline::of(&request));
        Ok(Response::new(self.0.remove_cart_line(&caller, deadline, request.into_inner()).await?))
    }

    async fn begin_checkout(
        &self,
        request: Request<pb::BeginCheckoutRequest>,
    ) -> Result<Response<pb::BeginCheckoutResponse>, Status> {
        let (caller, deadline) = (Caller::of(&request).map_err(Failure::from)?, Deadline::of(&request));
        Ok(Response::new(self.0.begin_checkout(&caller, deadline, request.into_inner()).await?))
    }

    async fn complete_checkout(
        &self,
        request: Request<pb::CompleteCheckoutRequest>,
    ) -> Result<Response<pb::CompleteCheckoutResponse>, Status> {
        let (caller, deadline) = (Caller::of(&request).map_err(Failure::from)?, Deadline::of(&request));
        Ok(Response::new(self.0.complete_checkout(&caller, deadline, request.into_inner()).await?))
    }

    async fn fail_checkout(
        &self,
        request: Request<pb::FailCheckoutRequest>,
    ) -> Result<Response<pb::FailCheckoutResponse>, Status> {
        let (caller, deadline) = (Caller::of(&request).map_err(Failure::from)?, Deadline::of(&request));
        Ok(Response::new(self.0.fail_checkout(&caller, deadline, request.into_inner()).await?))
    }
}
