//! Carts on the wire.

use shared::id::CartId;
use shared::parse::etag_of;
use shared::pb::common::Money;
use shared::pb::session as pb;
use shared::time::to_proto;

use crate::domain::cart::{Cart, Currency, Line, State};
use crate::store::cart::Place;

/// Where nothing was put in yet.
pub(super) fn empty_cart(place: &Place<'_>) -> pb::Cart {
    pb::Cart {
        shopper_id: place.shopper.to_string(),
        touchpoint_group: place.group.to_string(),
        currency_code: place.currency.as_str().to_owned(),
        state: pb::CartState::Active.into(),
        total: Some(money(place.currency, 0)),
        ..pb::Cart::default()
    }
}

fn money(currency: &Currency, minor_units: i64) -> Money {
    Money { currency_code: currency.as_str().to_owned(), minor_units }
}

impl From<&Cart> for pb::Cart {
    fn from(cart: &Cart) -> Self {
        let (state, order_ref, merged_into) = match &cart.state {
            State::Active => (pb::CartState::Active, "", None),
            State::Checkout { .. } => (pb::CartState::Checkout, "", None),
            State::Ordered { order_ref } => (pb::CartState::Ordered, order_ref.as_str(), None),
            State::Merged { into } => (pb::CartState::Merged, "", Some(into)),
            State::Expired => (pb::CartState::Expired, "", None),
        };
        let line = |line: &Line| pb::CartLine {
            line_id: line.id.to_string(),
            sku: line.sku.clone(),
            quantity: line.quantity,
            unit_price: Some(money(&cart.currency, line.unit_price)),
            price_observe_time: Some(to_proto(line.price_observed_at)),
            create_time: Some(to_proto(line.created_at)),
        };
        Self {
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
            merged_into_cart_id: merged_into.map(CartId::to_string).unwrap_or_default(),
            abandonment: Some((&cart.abandonment).into()),
        }
    }
}
