//! Carts on the wire.

use shared::id::CartId;
use shared::parse::etag_of;
use shared::pb::common::Money;
use shared::pb::session as pb;
use shared::time::to_proto;

use super::Moment;
use crate::domain::cart::{Cart, Currency, Fulfilment, Line, Pricing, State};
use crate::store::cart::Place;

/// Where nothing was put in yet.
pub(in crate::rpc) fn empty_cart(place: &Place<'_>) -> pb::Cart {
    pb::Cart {
        shopper_id: place.shopper.to_string(),
        touchpoint_group: place.group.to_string(),
        currency_code: place.currency.as_str().to_owned(),
        state: pb::CartState::Active.into(),
        total: Some(money(place.currency, 0)),
        minor_unit_digits: place.currency.digits.into(),
        ..pb::Cart::default()
    }
}

fn money(currency: Currency, minor_units: i64) -> Money {
    Money { currency_code: currency.as_str().to_owned(), minor_units }
}

/// As it is for whoever asks at that moment.
pub(in crate::rpc) fn cart_to_proto(cart: &Cart, moment: &Moment) -> pb::Cart {
    let (state, order_ref, merged_into) = match &cart.state {
        State::Active => (pb::CartState::Active, "", None),
        State::Checkout { .. } => (pb::CartState::Checkout, "", None),
        State::Ordered { order_ref } => (pb::CartState::Ordered, order_ref.as_str(), None),
        State::Merged { into, .. } => (pb::CartState::Merged, "", Some(into)),
        State::Expired => (pb::CartState::Expired, "", None),
        State::Discarded => (pb::CartState::Discarded, "", None),
    };
    let pricing = cart
        .pricing
        .as_ref()
        .filter(|pricing| pricing.holds(moment.visiting, moment.now));
    pb::Cart {
        cart_id: cart.id.to_string(),
        shopper_id: cart.shopper.to_string(),
        touchpoint_group: cart.group.to_string(),
        currency_code: cart.currency.as_str().to_owned(),
        state: state.into(),
        lines: cart.lines.iter().map(|line| line_to_proto(line, cart.currency)).collect(),
        total: Some(money(cart.currency, cart.total())),
        create_time: Some(to_proto(cart.created_at)),
        update_time: Some(to_proto(cart.updated_at)),
        order_ref: order_ref.to_owned(),
        etag: etag_of(cart.version),
        merged_into_cart_id: merged_into.map(CartId::to_string).unwrap_or_default(),
        codes: cart.codes.clone(),
        pricing_context: pricing.map(Into::into),
        minor_unit_digits: cart.currency.digits.into(),
        abandonment: Some((&cart.abandonment).into()),
    }
}

fn line_to_proto(line: &Line, currency: Currency) -> pb::CartLine {
    let (fulfilment, store) = match &line.fulfilment {
        Fulfilment::Ship => (pb::Fulfilment::Ship, ""),
        Fulfilment::Pickup { store } => (pb::Fulfilment::Pickup, store.as_str()),
        Fulfilment::Store => (pb::Fulfilment::Store, ""),
        Fulfilment::Newer(_, store) => (pb::Fulfilment::Unspecified, store.as_str()),
    };
    pb::CartLine {
        line_id: line.id.to_string(),
        sku: line.sku.clone(),
        quantity: line.quantity,
        unit_price: Some(money(currency, line.unit_price)),
        price_observe_time: Some(to_proto(line.price_observed_at)),
        create_time: Some(to_proto(line.created_at)),
        attributes: line.attributes.clone(),
        fulfilment: fulfilment.into(),
        store_id: store.to_owned(),
        catalogue_version: line.catalogue_version.clone(),
        source: line.source.clone(),
        saved_for_later: line.saved_for_later,
    }
}

impl From<&Pricing> for pb::PricingContext {
    fn from(pricing: &Pricing) -> Self {
        Self {
            price_list: pricing.price_list.clone(),
            promotions: pricing.promotions.clone(),
            country_code: pricing.country.clone().unwrap_or_default(),
            store_id: pricing.store.clone().unwrap_or_default(),
            expire_time: Some(to_proto(pricing.expires_at)),
        }
    }
}
