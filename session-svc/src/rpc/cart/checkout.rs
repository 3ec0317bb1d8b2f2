//! The end of a cart: its checkout, or that it is thrown away.

use serde_json::json;
use shared::parse::{etag, known, line};
use shared::pb::session as pb;
use shared::status::Failure;
use tonic::Request;

use super::{Change, Moment, Outcome};
use crate::domain::cart::Cart;
use crate::domain::signal::{CHECKOUT, PURCHASE};
use crate::rpc::App;

impl App {
    pub(super) async fn begin_checkout(
        &self,
        request: Request<pb::BeginCheckoutRequest>,
    ) -> Result<pb::BeginCheckoutResponse, Failure> {
        let (change, message) =
            Change::of(request, "cart.checkout_begun", |m| (&mut m.owner, &mut m.request_id))?;
        let pb::BeginCheckoutRequest { currency_code, etag: seen, owner: _, request_id: _ } = message;
        let decide = move |cart: &mut Cart, moment: &Moment| {
            etag(&seen, cart.version)?;
            cart.begin_checkout(moment.visiting.map(|visiting| visiting.session), moment.now)?;
            Ok(Outcome { holds: true, data: json!({}), ..Outcome::default() })
        };
        let (cart, _) = self.change_cart(change.alone(), &currency_code, decide).await?;
        Ok(pb::BeginCheckoutResponse { cart: Some(cart) })
    }

    pub(super) async fn complete_checkout(
        &self,
        request: Request<pb::CompleteCheckoutRequest>,
    ) -> Result<pb::CompleteCheckoutResponse, Failure> {
        let (change, message) =
            Change::of(request, "cart.checkout_completed", |m| (&mut m.owner, &mut m.request_id))?;
        let pb::CompleteCheckoutRequest { currency_code, order_ref, owner: _, request_id: _ } = message;
        let order_ref = line("order_ref", order_ref, 1, 128)?;
        let change = Change { order_ref: Some(order_ref.clone()), ..change.alone() };
        let decide = move |cart: &mut Cart, moment: &Moment| {
            let (total, currency) = (cart.total(), cart.currency.as_str());
            let data = json!({"order_ref": order_ref, "total_minor_units": total, "currency_code": currency});
            let (lets_go, saved) = cart.complete_checkout(order_ref.clone(), moment.now)?;
            Ok(Outcome { data, lets_go, saved, guard: Some(PURCHASE), ..Outcome::default() })
        };
        let (cart, _) = self.change_cart(change, &currency_code, decide).await?;
        Ok(pb::CompleteCheckoutResponse { cart: Some(cart) })
    }

    pub(super) async fn fail_checkout(
        &self,
        request: Request<pb::FailCheckoutRequest>,
    ) -> Result<pb::FailCheckoutResponse, Failure> {
        let (change, message) =
            Change::of(request, "cart.checkout_failed", |m| (&mut m.owner, &mut m.request_id))?;
        let pb::FailCheckoutRequest { currency_code, reason, owner: _, request_id: _ } = message;
        let reason: pb::CheckoutFailure = known("reason", reason)?;
        let decide = move |cart: &mut Cart, moment: &Moment| {
            let by_shopper = reason == pb::CheckoutFailure::Cancelled;
            let lets_go = cart.fail_checkout(by_shopper, moment.now)?;
            let data = json!({"reason": reason.as_str_name()});
            Ok(Outcome { data, lets_go, guard: Some(CHECKOUT), ..Outcome::default() })
        };
        let (cart, _) = self.change_cart(change.alone(), &currency_code, decide).await?;
        Ok(pb::FailCheckoutResponse { cart: Some(cart) })
    }

    pub(super) async fn discard_cart(
        &self,
        request: Request<pb::DiscardCartRequest>,
    ) -> Result<pb::DiscardCartResponse, Failure> {
        let (change, message) = Change::of(request, "cart.discarded", |m| (&mut m.owner, &mut m.request_id))?;
        let pb::DiscardCartRequest { currency_code, etag: seen, owner: _, request_id: _ } = message;
        let decide = move |cart: &mut Cart, moment: &Moment| {
            etag(&seen, cart.version)?;
            cart.discard(moment.now)?;
            Ok(Outcome { data: json!({}), ..Outcome::default() })
        };
        let (cart, _) = self.change_cart(change.alone(), &currency_code, decide).await?;
        Ok(pb::DiscardCartResponse { cart: Some(cart) })
    }
}
