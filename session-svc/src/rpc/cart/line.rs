//! Changes of a cart's lines.

use std::collections::BTreeMap;

use serde_json::json;
use shared::id::LineId;
use shared::parse::{at_most, known_or_default, line, parse, required, within};
use shared::pb::common::Money;
use shared::pb::session as pb;
use shared::status::{Failure, Reason, Refusal};
use tonic::Request;

use super::{Change, Moment, Outcome};
use crate::domain::cart::{Cart, Currency, Fulfilment, LINES_MAX, Line, QUANTITY_MAX, UNIT_PRICE_MAX};
use crate::rpc::App;
use crate::rpc::free::free_line;

/// Most attributes of a line.
const ATTRIBUTES_MAX: usize = 32;

impl App {
    pub(super) async fn add_cart_line(
        &self,
        request: Request<pb::AddCartLineRequest>,
    ) -> Result<pb::AddCartLineResponse, Failure> {
        let (change, message) =
            Change::of(request, "cart.line_added", |m| (&mut m.owner, &mut m.request_id))?;
        let pb::AddCartLineRequest {
            sku,
            quantity,
            unit_price,
            currency_code,
            attributes,
            fulfilment,
            store_id,
            catalogue_version,
            source,
            owner: _,
            request_id: _,
        } = message;
        let sku = line("sku", sku, 1, 64)?;
        let quantity = within("quantity", quantity, 1, QUANTITY_MAX)?;
        let unit_price = required("unit_price", unit_price)?;
        let currency: Currency = match currency_code.as_str() {
            "" => parse("unit_price.currency_code", &unit_price.currency_code)?,
            code => parse("currency_code", code)?,
        };
        let unit_price = parse_price("unit_price", Some(unit_price), currency)?;
        let attributes = parse_attributes(attributes)?;
        let fulfilment = parse_fulfilment(known_or_default("fulfilment", fulfilment)?, store_id)?;
        let catalogue_version = line("catalogue_version", catalogue_version, 0, 64)?;
        let source = free_line("source", source, 0, 128)?;
        let random = self.entropy.bytes();
        let decide = move |cart: &mut Cart, moment: &Moment| {
            let data = json!({"sku": sku, "quantity": quantity});
            let added = Line {
                id: LineId::new(moment.now, random),
                sku: sku.clone(),
                quantity,
                unit_price,
                price_observed_at: moment.now,
                created_at: moment.now,
                attributes: attributes.clone(),
                fulfilment: fulfilment.clone(),
                catalogue_version: catalogue_version.clone(),
                source: source.clone(),
                saved_for_later: false,
                newer: vec![],
            };
            Ok(Outcome { line: Some(cart.add(added, moment.now)?), data, ..Outcome::default() })
        };
        let change = Change { makes_cart: true, ..change };
        let (cart, line) = self.change_cart(change, currency.as_str(), decide).await?;
        Ok(pb::AddCartLineResponse { cart: Some(cart), line_id: text_of(line) })
    }

    pub(super) async fn set_cart_line_quantity(
        &self,
        request: Request<pb::SetCartLineQuantityRequest>,
    ) -> Result<pb::SetCartLineQuantityResponse, Failure> {
        let (change, message) = Change::of(request, "cart.line_set", |m| (&mut m.owner, &mut m.request_id))?;
        let pb::SetCartLineQuantityRequest { currency_code, line_id, quantity, owner: _, request_id: _ } =
            message;
        let id = parse("line_id", &line_id)?;
        let quantity = within("quantity", quantity, 1, QUANTITY_MAX)?;
        let decide = move |cart: &mut Cart, moment: &Moment| {
            cart.set_quantity(id, quantity, moment.now)?;
            Ok(Outcome { line: Some(id), data: json!({"quantity": quantity}), ..Outcome::default() })
        };
        let (cart, _) = self.change_cart(change, &currency_code, decide).await?;
        Ok(pb::SetCartLineQuantityResponse { cart: Some(cart) })
    }

    pub(super) async fn remove_cart_line(
        &self,
        request: Request<pb::RemoveCartLineRequest>,
    ) -> Result<pb::RemoveCartLineResponse, Failure> {
        let (change, message) =
            Change::of(request, "cart.line_removed", |m| (&mut m.owner, &mut m.request_id))?;
        let pb::RemoveCartLineRequest { currency_code, line_id, owner: _, request_id: _ } = message;
        let id = parse("line_id", &line_id)?;
        let decide = move |cart: &mut Cart, moment: &Moment| {
            cart.remove(id, moment.now)?;
            Ok(Outcome { line: Some(id), data: json!({}), ..Outcome::default() })
        };
        let (cart, _) = self.change_cart(change, &currency_code, decide).await?;
        Ok(pb::RemoveCartLineResponse { cart: Some(cart) })
    }

    pub(super) async fn move_cart_line(
        &self,
        request: Request<pb::MoveCartLineRequest>,
    ) -> Result<pb::MoveCartLineResponse, Failure> {
        let (change, message) =
            Change::of(request, "cart.line_moved", |m| (&mut m.owner, &mut m.request_id))?;
        let pb::MoveCartLineRequest { currency_code, line_id, saved_for_later, owner: _, request_id: _ } =
            message;
        let id = parse("line_id", &line_id)?;
        let decide = move |cart: &mut Cart, moment: &Moment| {
            let line = Some(cart.move_line(id, saved_for_later, moment.now)?);
            Ok(Outcome { line, data: json!({"saved_for_later": saved_for_later}), ..Outcome::default() })
        };
        let (cart, line) = self.change_cart(change, &currency_code, decide).await?;
        Ok(pb::MoveCartLineResponse { cart: Some(cart), line_id: text_of(line) })
    }

    pub(super) async fn refresh_cart_prices(
        &self,
        request: Request<pb::RefreshCartPricesRequest>,
    ) -> Result<pb::RefreshCartPricesResponse, Failure> {
        let (change, message) =
            Change::of(request, "cart.prices_refreshed", |m| (&mut m.owner, &mut m.request_id))?;
        let pb::RefreshCartPricesRequest {
            currency_code,
            prices,
            catalogue_version,
            owner: _,
            request_id: _,
        } = message;
        at_most("prices", &prices, LINES_MAX)?;
        let currency: Currency = parse("currency_code", &currency_code)?;
        let price = |(n, price): (usize, pb::CartLinePrice)| {
            let id: LineId = parse(&format!("prices[{n}].line_id"), &price.line_id)?;
            Ok((id, parse_price(&format!("prices[{n}].unit_price"), price.unit_price, currency)?))
        };
        let prices: Vec<_> = prices.into_iter().enumerate().map(price).collect::<Result<_, Refusal>>()?;
        let catalogue_version = line("catalogue_version", catalogue_version, 1, 64)?;
        let decide = move |cart: &mut Cart, moment: &Moment| {
            cart.refresh_prices(&prices, &catalogue_version, moment.now)?;
            Ok(Outcome { data: json!({"catalogue_version": catalogue_version}), ..Outcome::default() })
        };
        let (cart, _) = self.change_cart(change, &currency_code, decide).await?;
        Ok(pb::RefreshCartPricesResponse { cart: Some(cart) })
    }
}

fn text_of(line: Option<LineId>) -> String {
    line.map(|line| line.to_string()).unwrap_or_default()
}

/// In minor units of the cart's currency.
fn parse_price(field: &str, price: Option<Money>, currency: Currency) -> Result<i64, Refusal> {
    let Money { currency_code, minor_units } = required(field, price)?;
    let its: Currency = parse(&format!("{field}.currency_code"), &currency_code)?;
    if its != currency {
        let text = format!("{field}: the price is in {}, the cart in {}", its.as_str(), currency.as_str());
        return Err(Refusal::new(Reason::CartCurrencyMismatch, text)
            .with("currency_code", currency.as_str())
            .with("price_currency_code", its.as_str()));
    }
    within(&format!("{field}.minor_units"), minor_units, 0, UNIT_PRICE_MAX)
}

fn parse_attributes(attributes: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Refusal> {
    if attributes.len() > ATTRIBUTES_MAX {
        let text = format!("a line has at most {ATTRIBUTES_MAX} attributes");
        return Err(Refusal::new(Reason::CartLimit, text)
            .with("limit", "attributes of a line")
            .with("max", ATTRIBUTES_MAX));
    }
    let parse = |(name, value): (String, String)| {
        let name = free_line("attributes", name, 1, 64)?;
        let value = free_line(&format!("attributes[{name}]"), value, 0, 256)?;
        Ok((name, value))
    };
    attributes.into_iter().map(parse).collect()
}

fn parse_fulfilment(fulfilment: pb::Fulfilment, store_id: String) -> Result<Fulfilment, Refusal> {
    let min = usize::from(fulfilment == pb::Fulfilment::Pickup);
    let store = line("store_id", store_id, min, 64)?;
    match fulfilment {
        pb::Fulfilment::Pickup => Ok(Fulfilment::Pickup { store }),
        _ if !store.is_empty() => Err(Refusal::field("store_id", "must be empty but for PICKUP")),
        pb::Fulfilment::Unspecified | pb::Fulfilment::Ship => Ok(Fulfilment::Ship),
        pb::Fulfilment::Store => Ok(Fulfilment::Store),
    }
}
