//! What a cart's prices are made by: codes, and the pricing that is pinned.

use serde_json::json;
use shared::parse::{at_most, line, required};
use shared::pb::session as pb;
use shared::status::{Failure, Refusal};
use shared::time::from_proto;
use tonic::Request;

use super::{Change, Moment, Outcome};
use crate::domain::cart::{Cart, Pin, Pricing};
use crate::domain::preferences;
use crate::rpc::App;
use crate::rpc::free::free_line;

/// Most promotions of a pricing context.
const PROMOTIONS_MAX: usize = 20;

impl App {
    pub(super) async fn pin_pricing_context(
        &self,
        request: Request<pb::PinPricingContextRequest>,
    ) -> Result<pb::PinPricingContextResponse, Failure> {
        let (change, message) =
            Change::of(request, "cart.pricing_pinned", |m| (&mut m.owner, &mut m.request_id))?;
        let pb::PinPricingContextRequest { currency_code, pricing_context, replace, owner: _, request_id: _ } =
            message;
        let pricing = parse_pricing(required("pricing_context", pricing_context)?)?;
        let decide = move |cart: &mut Cart, moment: &Moment| {
            if pricing.expires_at <= moment.now {
                return Err(Refusal::field("pricing_context.expire_time", "must be ahead").into());
            }
            let pinned = cart.pricing.as_ref();
            let stays = !replace && pinned.is_some_and(|pinned| pinned.holds(moment.visiting, moment.now));
            if !stays {
                let pin = moment
                    .visiting
                    .map(|visiting| Pin { session: visiting.session, at: moment.now });
                cart.pin_pricing(Pricing { pin, ..pricing.clone() })?;
            }
            Ok(Outcome { data: json!({"is_new": !stays}), ..Outcome::default() })
        };
        let change = Change { makes_cart: true, ..change };
        let (cart, _) = self.change_cart(change, &currency_code, decide).await?;
        Ok(pb::PinPricingContextResponse { cart: Some(cart) })
    }

    pub(super) async fn apply_cart_code(
        &self,
        request: Request<pb::ApplyCartCodeRequest>,
    ) -> Result<pb::ApplyCartCodeResponse, Failure> {
        let (change, message) =
            Change::of(request, "cart.code_applied", |m| (&mut m.owner, &mut m.request_id))?;
        let pb::ApplyCartCodeRequest { currency_code, code, owner: _, request_id: _ } = message;
        let code = free_line("code", code, 1, 64)?;
        let decide = move |cart: &mut Cart, moment: &Moment| {
            cart.apply_code(code.clone(), moment.now)?;
            // Which code, events do not tell: some are worth money.
            Ok(Outcome { data: json!({}), ..Outcome::default() })
        };
        let change = Change { makes_cart: true, ..change };
        let (cart, _) = self.change_cart(change, &currency_code, decide).await?;
        Ok(pb::ApplyCartCodeResponse { cart: Some(cart) })
    }

    pub(super) async fn remove_cart_code(
        &self,
        request: Request<pb::RemoveCartCodeRequest>,
    ) -> Result<pb::RemoveCartCodeResponse, Failure> {
        let (change, message) =
            Change::of(request, "cart.code_removed", |m| (&mut m.owner, &mut m.request_id))?;
        let pb::RemoveCartCodeRequest { currency_code, code, owner: _, request_id: _ } = message;
        let code = free_line("code", code, 1, 64)?;
        let decide = move |cart: &mut Cart, moment: &Moment| {
            cart.remove_code(&code, moment.now)?;
            Ok(Outcome { data: json!({}), ..Outcome::default() })
        };
        let (cart, _) = self.change_cart(change, &currency_code, decide).await?;
        Ok(pb::RemoveCartCodeResponse { cart: Some(cart) })
    }
}

fn parse_pricing(context: pb::PricingContext) -> Result<Pricing, Refusal> {
    let pb::PricingContext { price_list, promotions, country_code, store_id, expire_time } = context;
    at_most("pricing_context.promotions", &promotions, PROMOTIONS_MAX)?;
    let promotion = |(n, text)| free_line(&format!("pricing_context.promotions[{n}]"), text, 1, 64);
    let said = |text: String| Some(text).filter(|text| !text.is_empty());
    let not_a_country = |problem| Refusal::field("pricing_context.country_code", problem);
    let country = said(country_code).map(|code| preferences::country(&code)).transpose();
    let expires_at = from_proto(required("pricing_context.expire_time", expire_time)?);
    Ok(Pricing {
        price_list: free_line("pricing_context.price_list", price_list, 1, 64)?,
        promotions: promotions.into_iter().enumerate().map(promotion).collect::<Result<_, _>>()?,
        country: country.map_err(not_a_country)?,
        store: said(line("pricing_context.store_id", store_id, 0, 64)?),
        expires_at: expires_at
            .ok_or_else(|| Refusal::field("pricing_context.expire_time", "must be a valid time"))?,
        pin: None,
        newer: vec![],
    })
}
