//! What a cart carries besides articles and quantities: attributes, fulfilment, what is saved for later, codes, prices of the
//! day and the pricing of the visit; and how it ends other than by an order.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use futures_util::future::join_all;
use shared::pb::session as pb;
use shared::pb::session::{CartState, Fulfilment};
use shared::time::to_proto;
use tonic::Code;

use crate::harness::shop::{
    add_line, begin_checkout, cart_of, complete_checkout, completion, create_session, create_touchpoint,
    euros, fill, get_cart, line, owner, quantities, request_id, validate, web,
};
use crate::harness::{Answer as _, Caller, Stack, Watch, workload};

async fn start() -> (Stack, Caller, String) {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    let (_, token) = create_session(&caller).await;
    (stack, caller, token)
}

async fn save(
    caller: &Caller,
    token: &str,
    line: &pb::CartLine,
    saved_for_later: bool,
) -> pb::MoveCartLineResponse {
    let request = pb::MoveCartLineRequest {
        owner: Some(owner(token)),
        currency_code: "EUR".to_owned(),
        line_id: line.line_id.clone(),
        saved_for_later,
        request_id: String::new(),
    };
    caller.carts().move_cart_line(request).await.answer()
}

fn pin(stack: &Stack, token: &str, price_list: &str, minutes: i64) -> pb::PinPricingContextRequest {
    let context = pb::PricingContext {
        price_list: price_list.to_owned(),
        promotions: vec!["advent".to_owned(), "3-for-2".to_owned()],
        country_code: "AT".to_owned(),
        store_id: "wien-1".to_owned(),
        expire_time: Some(to_proto(stack.now() + TimeDelta::minutes(minutes))),
    };
    pb::PinPricingContextRequest {
        owner: Some(owner(token)),
        currency_code: "EUR".to_owned(),
        pricing_context: Some(context),
        ..Default::default()
    }
}

fn price_list(cart: &pb::Cart) -> &str {
    cart.pricing_context.as_ref().map_or("", |context| &context.price_list)
}

#[tokio::test]
async fn a_line_is_what_was_chosen_and_how_it_comes() {
    let (_stack, caller, token) = start().await;
    let engraved = |text: &str| pb::AddCartLineRequest {
        attributes: BTreeMap::from([("engraving".to_owned(), text.to_owned())]),
        catalogue_version: "2026-11".to_owned(),
        source: "search".to_owned(),
        ..line(&token, "ring", 1)
    };
    let picked_up = |store: &str| pb::AddCartLineRequest {
        fulfilment: Fulfilment::Pickup.into(),
        store_id: store.to_owned(),
        ..line(&token, "ring", 1)
    };
    let in_store = pb::AddCartLineRequest { fulfilment: Fulfilment::Store.into(), ..line(&token, "ring", 1) };
    let shipped = pb::AddCartLineRequest { fulfilment: Fulfilment::Ship.into(), ..line(&token, "ring", 1) };
    let kinds = [engraved("A"), engraved("B"), picked_up("berlin"), picked_up("wien"), in_store, shipped];
    for _ in 0..2 {
        for kind in &kinds {
            caller.carts().add_cart_line(kind.clone()).await.answer();
        }
    }
    let cart = add_line(&caller, &token, "ring", 1).await;
    let found: Vec<_> = cart.lines.iter().map(|line| line.quantity).collect();
    assert_eq!(found, [2, 2, 2, 2, 2, 3], "unspecified is shipped");
    assert_eq!((cart.total, cart.minor_unit_digits), (Some(euros(13 * 255)), 2));
    let first = &cart.lines[0];
    assert_eq!(first.attributes["engraving"], "A");
    assert_eq!((&*first.catalogue_version, &*first.source), ("2026-11", "search"));
    assert_eq!((cart.lines[2].fulfilment(), &*cart.lines[2].store_id), (Fulfilment::Pickup, "berlin"));
}

#[tokio::test]
async fn what_is_saved_for_later_is_in_the_cart_after_the_order() {
    let (_stack, caller, token) = start().await;
    let cart = add_line(&caller, &token, "now", 2).await;
    let cart = add_line(&caller, &token, "later", 3)
        .await
        .lines
        .into_iter()
        .chain(cart.lines)
        .collect::<Vec<_>>();
    let later = cart.iter().find(|line| line.sku == "later").unwrap();
    let saved = save(&caller, &token, later, true).await.cart.unwrap();
    assert_eq!((quantities(&saved), saved.total.clone()), (vec![("now", 2)], Some(euros(510))));
    begin_checkout(&caller, &token).await;
    let mut events = Watch::open(caller.session_events()).await;
    let request = pb::CompleteCheckoutRequest { request_id: request_id(1), ..completion(&token, "order-1") };
    let order = caller.carts().complete_checkout(request.clone()).await.answer().cart.unwrap();
    assert_eq!((order.state(), order.lines.len(), &order.total), (CartState::Ordered, 1, &saved.total));
    let next = get_cart(&caller, &token).await;
    assert_eq!((next.state(), next.lines.len(), next.lines[0].saved_for_later), (CartState::Active, 1, true));
    assert_eq!(events.next_of("cart.checkout_completed").await.subject, order.cart_id);
    assert_eq!(events.next_of("cart.continued").await.subject, next.cart_id);
    // The next cart is there already; whoever lost the answer still gets the order.
    assert_eq!(caller.carts().complete_checkout(request).await.answer().cart, Some(order.clone()));
    let back = save(&caller, &token, &next.lines[0], false).await;
    assert_eq!(quantities(&back.cart.unwrap()), [("later", 3)]);
    begin_checkout(&caller, &token).await;
    complete_checkout(&caller, &token, "order-2").await;
    assert_eq!(get_cart(&caller, &token).await.cart_id, "", "nothing was saved for the one after");
    assert_eq!(cart_of(&caller, &order).await, order);
}

#[tokio::test]
async fn nothing_but_saved_lines_is_no_purchase() {
    let (_stack, caller, token) = start().await;
    let cart = add_line(&caller, &token, "later", 3).await;
    save(&caller, &token, &cart.lines[0], true).await;
    let request = crate::harness::shop::checkout(&token);
    caller
        .carts()
        .begin_checkout(request)
        .await
        .refused(Code::FailedPrecondition, "CART_EMPTY");
}

#[tokio::test]
async fn codes_are_there_once_in_the_order_they_were_applied() {
    let (_stack, caller, token) = start().await;
    let apply = |code: &str| pb::ApplyCartCodeRequest {
        owner: Some(owner(&token)),
        currency_code: "EUR".to_owned(),
        code: code.to_owned(),
        request_id: String::new(),
    };
    let cart = caller.carts().apply_cart_code(apply("SÜSS10")).await.answer().cart.unwrap();
    assert_eq!((cart.state(), cart.lines.len()), (CartState::Active, 0), "a code can come before an article");
    join_all((0..6).map(|n| {
        let (caller, request) = (caller.clone(), apply(&format!("code-{}", n / 2)));
        async move { caller.carts().apply_cart_code(request).await.answer() }
    }))
    .await;
    let mut codes = get_cart(&caller, &token).await.codes;
    assert_eq!(codes.remove(0), "SÜSS10");
    codes.sort();
    assert_eq!(codes, ["code-0", "code-1", "code-2"]);
    for _ in 0..2 {
        let pb::ApplyCartCodeRequest { owner, currency_code, code, request_id } = apply("code-1");
        let request = pb::RemoveCartCodeRequest { owner, currency_code, code, request_id };
        let cart = caller.carts().remove_cart_code(request).await.answer().cart.unwrap();
        assert_eq!(cart.codes.len(), 3);
    }
    for n in 3..20 {
        caller.carts().apply_cart_code(apply(&format!("code-{n}"))).await.answer();
    }
    let refused = caller.carts().apply_cart_code(apply("one too many")).await;
    refused.refused(Code::ResourceExhausted, "CART_LIMIT");
}

#[tokio::test]
async fn a_back_ends_prices_are_no_activity_of_the_shoppers() {
    let (stack, caller, token) = start().await;
    fill(&caller, &token, &[("a", 2), ("b", 1)]).await;
    let cart = get_cart(&caller, &token).await;
    stack.advance(TimeDelta::minutes(10));
    let price = |line_id: &str, minor_units, currency: &str| pb::CartLinePrice {
        line_id: line_id.to_owned(),
        unit_price: Some(shared::pb::common::Money { currency_code: currency.to_owned(), minor_units }),
    };
    let gone = cart.lines[0].line_id.replace(|c: char| c.is_ascii_digit(), "7");
    let refresh = |prices| pb::RefreshCartPricesRequest {
        owner: Some(owner(&token)),
        currency_code: "EUR".to_owned(),
        prices,
        catalogue_version: "v8".to_owned(),
        request_id: String::new(),
    };
    let request = refresh(vec![price(&cart.lines[0].line_id, 199, "EUR"), price(&gone, 1, "EUR")]);
    let fresh = caller.carts().refresh_cart_prices(request).await.answer().cart.unwrap();
    assert_eq!(fresh.total, Some(euros(2 * 199 + 255)));
    assert_eq!((&*fresh.lines[0].catalogue_version, &*fresh.lines[1].catalogue_version), ("v8", ""));
    assert_eq!(fresh.lines[0].price_observe_time, Some(to_proto(stack.now())));
    assert_eq!(fresh.update_time, cart.update_time);
    let status = caller
        .carts()
        .refresh_cart_prices(refresh(vec![price(&cart.lines[0].line_id, 199, "USD")]))
        .await
        .refused(Code::FailedPrecondition, "CART_CURRENCY_MISMATCH");
    assert!(status.message().contains("USD") && status.message().contains("EUR"), "{}", status.message());
    begin_checkout(&caller, &token).await;
    let refused = caller.carts().refresh_cart_prices(refresh(vec![])).await;
    refused.refused(Code::FailedPrecondition, "CART_WRONG_STATE");
}

#[tokio::test]
async fn the_first_pricing_of_a_visit_stays_until_it_is_replaced_or_over() {
    let (stack, caller, token) = start().await;
    let pinned = join_all((0..6).map(|n| {
        let (caller, request) = (caller.clone(), pin(&stack, &token, &format!("list-{n}"), 60));
        async move { caller.carts().pin_pricing_context(request).await.answer().cart.unwrap() }
    }))
    .await;
    let first = get_cart(&caller, &token).await;
    let context = first.pricing_context.clone().unwrap();
    assert_eq!((&*context.country_code, &*context.store_id, context.promotions.len()), ("AT", "wien-1", 2));
    assert!(pinned.iter().all(|cart| cart.pricing_context == first.pricing_context), "all pages agree");
    let replacing = pb::PinPricingContextRequest { replace: true, ..pin(&stack, &token, "b2b", 60) };
    caller.carts().pin_pricing_context(replacing).await.answer();
    assert_eq!(price_list(&get_cart(&caller, &token).await), "b2b");
    // Still the visit.
    stack.advance(TimeDelta::minutes(25));
    assert_eq!(price_list(&add_line(&caller, &token, "a", 1).await), "b2b");
    // The quote is over, the visit not.
    stack.advance(TimeDelta::minutes(20));
    validate(&caller, &token).await;
    stack.advance(TimeDelta::minutes(20));
    assert_eq!(price_list(&get_cart(&caller, &token).await), "");
    caller
        .carts()
        .pin_pricing_context(pin(&stack, &token, "retail", 600))
        .await
        .answer();
    assert_eq!(price_list(&get_cart(&caller, &token).await), "retail");
}

#[tokio::test]
async fn a_pricing_ends_with_the_visit() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    let policy = pb::SessionPolicy {
        idle_timeout: Some(crate::harness::shop::seconds(7200)),
        visit_gap: Some(crate::harness::shop::seconds(600)),
        ..Default::default()
    };
    create_touchpoint(&caller, pb::Touchpoint { session_policy: Some(policy), ..web() }).await;
    let (_, token) = create_session(&caller).await;
    caller
        .carts()
        .pin_pricing_context(pin(&stack, &token, "retail", 600))
        .await
        .answer();
    assert_eq!(price_list(&get_cart(&caller, &token).await), "retail");
    stack.advance(TimeDelta::minutes(11));
    assert_eq!(price_list(&get_cart(&caller, &token).await), "");
    let cart = caller
        .carts()
        .pin_pricing_context(pin(&stack, &token, "sale", 600))
        .await
        .answer()
        .cart
        .unwrap();
    assert_eq!(price_list(&cart), "sale");
}

#[tokio::test]
async fn a_cart_is_thrown_away_once_and_the_next_one_is_empty() {
    let (_stack, caller, token) = start().await;
    let seen = add_line(&caller, &token, "a", 1).await;
    let cart = add_line(&caller, &token, "b", 1).await;
    let discard = |etag: &str, id: String| pb::DiscardCartRequest {
        owner: Some(owner(&token)),
        currency_code: "EUR".to_owned(),
        etag: etag.to_owned(),
        request_id: id,
    };
    let stale = caller.carts().discard_cart(discard(&seen.etag, String::new())).await;
    stale.refused(Code::Aborted, "ETAG_MISMATCH");
    for _ in 0..2 {
        let request = discard(&cart.etag, request_id(1));
        let gone = caller.carts().discard_cart(request).await.answer().cart.unwrap();
        assert_eq!((gone.state(), &gone.cart_id), (CartState::Discarded, &cart.cart_id));
    }
    let again = caller.carts().discard_cart(discard("", request_id(2))).await;
    again.refused(Code::NotFound, "CART_NOT_FOUND");
    assert_eq!(get_cart(&caller, &token).await.lines, []);
    let next = add_line(&caller, &token, "c", 1).await;
    assert_ne!(next.cart_id, cart.cart_id);
    assert_eq!(cart_of(&caller, &cart).await.state(), CartState::Discarded);
}

#[tokio::test]
async fn a_currency_has_the_digits_of_its_minor_unit() {
    let (_stack, caller, token) = start().await;
    for (currency, digits) in [("JPY", 0), ("EUR", 2), ("KWD", 3)] {
        let mut request = line(&token, "a", 1);
        currency.clone_into(&mut request.unit_price.as_mut().unwrap().currency_code);
        let cart = caller.carts().add_cart_line(request).await.answer().cart.unwrap();
        assert_eq!((&*cart.currency_code, cart.minor_unit_digits), (currency, digits));
    }
}
