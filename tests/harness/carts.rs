//! What tests of carts by time are written in: the workers have looked, what they told, and the cart as anyone may see it.

use chrono::TimeDelta;
use shared::pb::session as pb;
use shared::pb::session::shopper_selector::Owner;
use sqlx::PgConnection;

use super::shop::{owner, seconds};
use super::{Answer as _, Caller, Stack, eventually};

pub(crate) const MINUTE: TimeDelta = TimeDelta::minutes(1);
pub(crate) const HOUR: TimeDelta = TimeDelta::hours(1);
pub(crate) const DAY: TimeDelta = TimeDelta::days(1);

/// Waits until no cart is due by the present clock.
pub(crate) async fn looked(stack: &Stack) {
    let db = tokio::sync::Mutex::new(stack.database.connect().await);
    eventually("a look at the carts", || async {
        let due = "select count(*) from session.carts where due_at <= $1";
        let due: i64 = sqlx::query_scalar(due)
            .bind(stack.now())
            .fetch_one(&mut *db.lock().await)
            .await
            .unwrap();
        (due == 0).then_some(())
    })
    .await;
}

/// Moves the clock on, and waits until the carts were looked at.
pub(crate) async fn pass(stack: &Stack, by: TimeDelta) {
    stack.advance(by);
    looked(stack).await;
}

/// Whoever may name shoppers sees this cart, also when no session does any more.
pub(crate) fn by_id(cart: &pb::Cart) -> pb::ShopperSelector {
    let shopper = pb::ShopperRef {
        shopper_id: cart.shopper_id.clone(),
        touchpoint_group: cart.touchpoint_group.clone(),
    };
    pb::ShopperSelector { owner: Some(Owner::Shopper(shopper)) }
}

/// The cart in whatever state.
pub(crate) async fn find(caller: &Caller, cart: &pb::Cart) -> Result<pb::Cart, tonic::Status> {
    let request = pb::GetCartRequest {
        owner: Some(by_id(cart)),
        currency_code: String::new(),
        cart_id: cart.cart_id.clone(),
    };
    let found = caller.carts().get_cart(request).await?;
    Ok(found.into_inner().cart.unwrap())
}

pub(crate) async fn see(caller: &Caller, cart: &pb::Cart) -> pb::Cart {
    find(caller, cart).await.unwrap()
}

/// So many more of an article, by whoever may name shoppers.
pub(crate) async fn add(caller: &Caller, cart: &pb::Cart, quantity: i32) -> pb::Cart {
    let request =
        pb::AddCartLineRequest { owner: Some(by_id(cart)), ..super::shop::line("", "85123A", quantity) };
    caller.carts().add_cart_line(request).await.answer().cart.unwrap()
}

/// What was told of a cart by time or by coming back, in order; its data beside.
pub(crate) async fn told(stack: &Stack, cart: &pb::Cart) -> Vec<(String, serde_json::Value)> {
    let mut db: PgConnection = stack.database.connect().await;
    let kinds = "select kind, data from session.events
        where subject = $1 and kind in ('cart.idle', 'cart.abandoned', 'cart.recovered', 'cart.lost', 'cart.expired',
            'cart.checkout_failed')
        order by event_id";
    let rows: Vec<(String, String)> =
        sqlx::query_as(kinds).bind(&cart.cart_id).fetch_all(&mut db).await.unwrap();
    rows.into_iter()
        .map(|(kind, data)| (kind, serde_json::from_str(&data).unwrap()))
        .collect()
}

/// The same without the data.
pub(crate) async fn kinds(stack: &Stack, cart: &pb::Cart) -> Vec<String> {
    told(stack, cart).await.into_iter().map(|(kind, _)| kind).collect()
}

pub(crate) fn reachable(granted: bool) -> pb::CartContact {
    let consent = Some(pb::ContactConsent { granted, policy_version: "2027-01".to_owned() });
    pb::CartContact { channels: vec![pb::ContactChannel::Email.into()], consent }
}

pub(crate) fn contact(token: &str, contact: pb::CartContact) -> pb::SetCartContactRequest {
    pb::SetCartContactRequest {
        owner: Some(owner(token)),
        currency_code: "EUR".to_owned(),
        contact: Some(contact),
        request_id: String::new(),
    }
}

pub(crate) fn cart_policy(abandoned_after: TimeDelta) -> pb::CartPolicy {
    pb::CartPolicy {
        abandoned_after: Some(seconds(abandoned_after.num_seconds())),
        ..pb::CartPolicy::default()
    }
}
