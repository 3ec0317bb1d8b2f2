//! Carts: nothing that was acknowledged is lost, whatever happens at once, and each change happens once.

use chrono::TimeDelta;
use futures_util::future::join_all;
use shared::pb::session as pb;
use shared::pb::session::shopper_selector::Owner;
use shared::pb::session::{CartState, Verdict};
use tonic::Code;

use crate::harness::shop::{
    add_line, begin_checkout, checkout, complete_checkout, completion, create_session, create_touchpoint,
    euros, get_cart, line, owner, quantities, request_id as id, revoke, validate, web,
};
use crate::harness::{Answer as _, Caller, Options, Stack, workload};

/// A shopper at `web`.
async fn start() -> (Stack, Caller, String) {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    let (_, token) = create_session(&caller).await;
    (stack, caller, token)
}

#[tokio::test]
async fn what_two_tabs_add_at_once_is_all_there() {
    let (stack, caller, token) = start().await;
    let replica = stack.session_svc(&Options::default());
    let other = caller.at_session(&replica);
    // Each of 16 tasks adds to the one line of all, and a line of its own; the first of them makes the cart.
    let adds = (0..16).map(|n| {
        let (caller, token) = (if n % 2 == 0 { caller.clone() } else { other.clone() }, token.clone());
        async move {
            add_line(&caller, &token, "shared", 1).await;
            add_line(&caller, &token, &format!("own-{n:02}"), n + 1).await;
        }
    });
    join_all(adds).await;
    let cart = get_cart(&caller, &token).await;
    let own: Vec<_> = (0..16).map(|n| (format!("own-{n:02}"), n + 1)).collect();
    let mut expected: Vec<_> = own.iter().map(|(sku, quantity)| (sku.as_str(), *quantity)).collect();
    expected.push(("shared", 16));
    assert_eq!(quantities(&cart), expected);
    assert_eq!(cart.total, Some(euros(255 * (16 + (1..=16).sum::<i64>()))));
}

#[tokio::test]
async fn a_request_id_happens_once_also_when_sent_at_once() {
    let (_stack, caller, token) = start().await;
    let request = pb::AddCartLineRequest { request_id: id(1), ..line(&token, "85123A", 2) };
    let answers = join_all((0..8).map(|_| {
        let (caller, request) = (caller.clone(), request.clone());
        async move { caller.carts().add_cart_line(request).await.answer() }
    }))
    .await;
    assert!(answers.iter().all(|answer| answer.line_id == answers[0].line_id));
    assert_eq!(quantities(&get_cart(&caller, &token).await), [("85123A", 2)]);
    let other = pb::AddCartLineRequest { quantity: 3, ..request };
    caller
        .carts()
        .add_cart_line(other)
        .await
        .refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
}

#[tokio::test]
async fn a_request_id_is_known_by_the_next_cart_after_the_order() {
    let (_stack, caller, token) = start().await;
    let add = pb::AddCartLineRequest { request_id: id(1), ..line(&token, "85123A", 2) };
    caller.carts().add_cart_line(add.clone()).await.answer();
    begin_checkout(&caller, &token).await;
    complete_checkout(&caller, &token, "order-1").await;
    // A phone that was offline sends again what is in the order already, and is answered with the order.
    let again = caller.carts().add_cart_line(add.clone()).await.answer().cart.unwrap();
    assert_eq!((again.state(), again.order_ref.as_str()), (CartState::Ordered, "order-1"));
    assert_eq!(get_cart(&caller, &token).await.lines, []);
    add_line(&caller, &token, "71053", 1).await;
    caller.carts().add_cart_line(add).await.answer();
    assert_eq!(quantities(&get_cart(&caller, &token).await), [("71053", 1)]);
}

#[tokio::test]
async fn a_change_repeated_after_its_session_has_ended_is_answered_all_the_same() {
    let (_stack, caller, token) = start().await;
    add_line(&caller, &token, "85123A", 2).await;
    begin_checkout(&caller, &token).await;
    let request = pb::CompleteCheckoutRequest { request_id: id(3), ..completion(&token, "order-1") };
    let first = caller.carts().complete_checkout(request.clone()).await.answer();
    let session = validate(&caller, &token).await.session.unwrap();
    revoke(&caller, &session).await;
    assert_eq!(caller.carts().complete_checkout(request).await.answer(), first);
    let new = pb::CompleteCheckoutRequest { request_id: id(4), ..completion(&token, "order-1") };
    caller
        .carts()
        .complete_checkout(new)
        .await
        .refused(Code::FailedPrecondition, "SESSION_REVOKED");
}

#[tokio::test]
async fn the_same_completion_twice_is_one_order() {
    let (_stack, caller, token) = start().await;
    add_line(&caller, &token, "85123A", 2).await;
    begin_checkout(&caller, &token).await;
    let request = pb::CompleteCheckoutRequest { request_id: id(2), ..completion(&token, "order-1") };
    let first = caller.carts().complete_checkout(request.clone()).await.answer().cart.unwrap();
    assert_eq!((first.state(), first.order_ref.as_str()), (CartState::Ordered, "order-1"));
    let second = caller.carts().complete_checkout(request.clone()).await.answer().cart.unwrap();
    assert_eq!(second, first);
    let other = pb::CompleteCheckoutRequest { order_ref: "order-2".to_owned(), ..request };
    caller
        .carts()
        .complete_checkout(other)
        .await
        .refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
    let without_id = completion(&token, "order-1");
    caller
        .carts()
        .complete_checkout(without_id)
        .await
        .refused(Code::NotFound, "CART_NOT_FOUND");
}

#[tokio::test]
async fn a_checkout_freezes_the_cart_until_it_fails() {
    let (_stack, caller, token) = start().await;
    caller
        .carts()
        .begin_checkout(checkout(&token))
        .await
        .refused(Code::NotFound, "CART_NOT_FOUND");
    let cart = add_line(&caller, &token, "85123A", 2).await;
    let line_id = cart.lines[0].line_id.clone();
    let frozen = begin_checkout(&caller, &token).await;
    assert_eq!((frozen.state(), &frozen.lines), (CartState::Checkout, &cart.lines));
    let (owner, currency_code) = (Some(owner(&token)), "EUR".to_owned());
    let set = pb::SetCartLineQuantityRequest {
        owner: owner.clone(),
        currency_code: currency_code.clone(),
        line_id: line_id.clone(),
        quantity: 9,
        request_id: String::new(),
    };
    let remove = pb::RemoveCartLineRequest {
        owner: owner.clone(),
        currency_code: currency_code.clone(),
        line_id,
        request_id: String::new(),
    };
    let refused = (Code::FailedPrecondition, "CART_WRONG_STATE");
    caller
        .carts()
        .add_cart_line(line(&token, "71053", 1))
        .await
        .refused(refused.0, refused.1);
    caller
        .carts()
        .set_cart_line_quantity(set.clone())
        .await
        .refused(refused.0, refused.1);
    caller
        .carts()
        .remove_cart_line(remove.clone())
        .await
        .refused(refused.0, refused.1);
    caller
        .carts()
        .begin_checkout(checkout(&token))
        .await
        .refused(refused.0, refused.1);
    let reason = pb::CheckoutFailure::PaymentDeclined.into();
    let fail = pb::FailCheckoutRequest { owner, currency_code, reason, request_id: String::new() };
    let open = caller.carts().fail_checkout(fail.clone()).await.answer().cart.unwrap();
    assert_eq!((open.state(), &open.lines), (CartState::Active, &cart.lines));
    caller.carts().fail_checkout(fail).await.refused(refused.0, refused.1);
    assert_eq!(caller.carts().set_cart_line_quantity(set).await.answer().cart.unwrap().lines[0].quantity, 9);
    let emptied = caller.carts().remove_cart_line(remove.clone()).await.answer().cart.unwrap();
    assert_eq!((emptied.lines.len(), emptied.total), (0, Some(euros(0))));
    caller
        .carts()
        .remove_cart_line(remove)
        .await
        .refused(Code::NotFound, "CART_LINE_NOT_FOUND");
    caller
        .carts()
        .begin_checkout(checkout(&token))
        .await
        .refused(Code::FailedPrecondition, "CART_EMPTY");
}

#[tokio::test]
async fn a_checkout_asks_for_the_cart_that_the_shopper_saw() {
    let (_stack, caller, token) = start().await;
    let seen = add_line(&caller, &token, "85123A", 2).await;
    let current = add_line(&caller, &token, "71053", 1).await;
    let request = |etag: &str| pb::BeginCheckoutRequest { etag: etag.to_owned(), ..checkout(&token) };
    caller
        .carts()
        .begin_checkout(request(&seen.etag))
        .await
        .refused(Code::Aborted, "ETAG_MISMATCH");
    caller.carts().begin_checkout(request(&current.etag)).await.answer();
}

#[tokio::test]
async fn of_a_completion_and_a_failure_at_once_one_happens() {
    let (_stack, caller, token) = start().await;
    for round in 0..5 {
        add_line(&caller, &token, "85123A", 1).await;
        begin_checkout(&caller, &token).await;
        let order_ref = format!("order-{round}");
        let fail = pb::FailCheckoutRequest {
            owner: Some(owner(&token)),
            currency_code: "EUR".to_owned(),
            reason: pb::CheckoutFailure::Cancelled.into(),
            request_id: String::new(),
        };
        let (mut one, mut two) = (caller.carts(), caller.carts());
        let (completed, failed) =
            tokio::join!(one.complete_checkout(completion(&token, &order_ref)), two.fail_checkout(fail));
        match (completed, failed) {
            (Ok(_), Err(status)) => crate::harness::assert_refused(&status, Code::NotFound, "CART_NOT_FOUND"),
            (Err(status), Ok(_)) => {
                crate::harness::assert_refused(&status, Code::FailedPrecondition, "CART_WRONG_STATE");
            }
            other => panic!("both or none: {other:?}"),
        }
    }
}

#[tokio::test]
async fn another_shoppers_cart_is_not_found() {
    let (_stack, caller, token) = start().await;
    let cart = add_line(&caller, &token, "85123A", 2).await;
    let (_, other) = create_session(&caller).await;
    let by_id = |token: &str| pb::GetCartRequest {
        owner: Some(owner(token)),
        currency_code: String::new(),
        cart_id: cart.cart_id.clone(),
    };
    assert_eq!(caller.carts().get_cart(by_id(&token)).await.answer().cart, Some(cart.clone()));
    caller
        .carts()
        .get_cart(by_id(&other))
        .await
        .refused(Code::NotFound, "CART_NOT_FOUND");
    assert_eq!(get_cart(&caller, &other).await.lines, []);
}

#[tokio::test]
async fn a_cart_outlives_its_session_for_those_who_may_name_the_shopper() {
    let (stack, caller, token) = start().await;
    let cart = add_line(&caller, &token, "85123A", 2).await;
    stack.advance(TimeDelta::hours(1));
    let request = pb::GetCartRequest {
        owner: Some(owner(&token)),
        currency_code: "EUR".to_owned(),
        cart_id: String::new(),
    };
    caller
        .carts()
        .get_cart(request)
        .await
        .refused(Code::FailedPrecondition, "SESSION_IDLE_EXPIRED");
    let shopper = pb::ShopperRef { shopper_id: cart.shopper_id.clone(), touchpoint_group: "web".to_owned() };
    let owner = Some(pb::ShopperSelector { owner: Some(Owner::Shopper(shopper)) });
    let request = pb::GetCartRequest { owner, currency_code: "EUR".to_owned(), cart_id: String::new() };
    assert_eq!(caller.carts().get_cart(request.clone()).await.answer().cart, Some(cart));
    let plain = stack.caller(&shared::issuer::Grant { scope: "cart.read".to_owned(), ..workload("kiosk") });
    plain
        .carts()
        .get_cart(request)
        .await
        .refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
}

#[tokio::test]
async fn a_session_that_is_no_good_has_no_cart_to_change() {
    let (_stack, caller, token) = start().await;
    caller
        .carts()
        .add_cart_line(line("nonsense", "x", 1))
        .await
        .refused(Code::FailedPrecondition, "SESSION_UNKNOWN");
    create_touchpoint(
        &caller,
        pb::Touchpoint { touchpoint: "scanner".to_owned(), has_shoppers: false, ..web() },
    )
    .await;
    let request = pb::CreateSessionRequest { touchpoint: "scanner".to_owned(), ..Default::default() };
    let scanner = caller.sessions().create_session(request).await.answer().session_token;
    let refused = caller.carts().add_cart_line(line(&scanner, "x", 1)).await;
    refused.refused(Code::FailedPrecondition, "SESSION_HAS_NO_SHOPPER");
    let session = validate(&caller, &token).await.session.unwrap();
    revoke(&caller, &session).await;
    caller
        .carts()
        .add_cart_line(line(&token, "x", 1))
        .await
        .refused(Code::FailedPrecondition, "SESSION_REVOKED");
}

#[tokio::test]
async fn currencies_have_carts_of_their_own() {
    let (_stack, caller, token) = start().await;
    add_line(&caller, &token, "85123A", 2).await;
    let mut dollars = line(&token, "85123A", 1);
    dollars.unit_price.as_mut().unwrap().currency_code = "USD".to_owned();
    let other = caller.carts().add_cart_line(dollars).await.answer().cart.unwrap();
    assert_eq!((quantities(&other), other.currency_code.as_str()), (vec![("85123A", 1)], "USD"));
    assert_eq!(quantities(&get_cart(&caller, &token).await), [("85123A", 2)]);
}

#[tokio::test]
async fn limits_are_told_apart_from_other_refusals() {
    let (_stack, caller, token) = start().await;
    add_line(&caller, &token, "85123A", 999_999).await;
    let refused = caller.carts().add_cart_line(line(&token, "85123A", 2)).await;
    refused.refused(Code::ResourceExhausted, "CART_LIMIT");
    add_line(&caller, &token, "85123A", 1).await;
    for n in 1..200 {
        add_line(&caller, &token, &format!("sku-{n}"), 1).await;
    }
    let refused = caller.carts().add_cart_line(line(&token, "one too many", 1)).await;
    refused.refused(Code::ResourceExhausted, "CART_LIMIT");
    assert_eq!(get_cart(&caller, &token).await.lines.len(), 200);
}

#[tokio::test]
async fn shopping_keeps_a_session_alive() {
    let (stack, caller, token) = start().await;
    for n in 0..3 {
        stack.advance(TimeDelta::minutes(29));
        add_line(&caller, &token, &format!("sku-{n}"), 1).await;
    }
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
}
