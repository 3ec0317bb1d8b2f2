//! How long carts are kept: empty, anonymous and owned ones after their last change, and what ended after its end.

use tonic::Code;

use crate::abandonment::start;
use crate::harness::carts::{DAY, HOUR, add, by_id, find, kinds, pass, see};
use crate::harness::shop::{
    add_line, begin_checkout, completion, create_session, create_touchpoint, owner, seconds, web,
};
use crate::harness::trust::{authenticate, identity};
use crate::harness::{Answer as _, Caller, assert_refused};
use chrono::TimeDelta;
use shared::pb::session as pb;
use shared::pb::session::CartState;

const SECOND: TimeDelta = TimeDelta::seconds(1);

async fn state(caller: &Caller, cart: &pb::Cart) -> CartState {
    see(caller, cart).await.state()
}

async fn is_gone(caller: &Caller, cart: &pb::Cart) -> bool {
    match find(caller, cart).await {
        Ok(_) => false,
        Err(status) => {
            assert_refused(&status, Code::NotFound, "CART_NOT_FOUND");
            true
        }
    }
}

#[tokio::test]
async fn an_empty_cart_goes_after_six_hours() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let cart = add_line(&caller, &token, "85123A", 1).await;
    // Found abandoned, then come back to and emptied.
    pass(&stack, HOUR * 5).await;
    let remove = pb::RemoveCartLineRequest {
        owner: Some(by_id(&cart)),
        currency_code: "EUR".to_owned(),
        line_id: cart.lines[0].line_id.clone(),
        request_id: String::new(),
    };
    caller.carts().remove_cart_line(remove).await.answer();
    pass(&stack, HOUR * 6 - SECOND).await;
    assert_eq!(state(&caller, &cart).await, CartState::Active);
    pass(&stack, SECOND).await;
    let ended = see(&caller, &cart).await;
    assert_eq!(ended.state(), CartState::Expired);
    assert_eq!(kinds(&stack, &cart).await, ["cart.abandoned", "cart.recovered", "cart.expired"]);
    // What ended is not changed any more: there is a new one from now on.
    let next = add(&caller, &cart, 1).await;
    assert_ne!(next.cart_id, cart.cart_id);
    pass(&stack, DAY * 30 - SECOND).await;
    assert_eq!(see(&caller, &cart).await, ended);
    pass(&stack, SECOND).await;
    assert!(is_gone(&caller, &cart).await);
}

#[tokio::test]
async fn an_anonymous_cart_goes_after_30_days_and_a_subjects_after_90() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let anonymous = add_line(&caller, &token, "85123A", 1).await;
    // Nothing but the login tells that this one is a subject's: it is not changed after that.
    let (_, token) = create_session(&caller).await;
    let owned = add_line(&caller, &token, "85123A", 1).await;
    authenticate(&caller, &token, identity("lena", 1)).await;
    pass(&stack, HOUR).await;
    pass(&stack, DAY * 30 - HOUR - SECOND).await;
    assert_eq!(state(&caller, &anonymous).await, CartState::Active);
    pass(&stack, SECOND).await;
    assert_eq!(state(&caller, &anonymous).await, CartState::Expired);
    assert_eq!(state(&caller, &owned).await, CartState::Active);
    assert_eq!(kinds(&stack, &owned).await, ["cart.abandoned", "cart.lost"]);
    pass(&stack, DAY * 60 - SECOND).await;
    assert!(is_gone(&caller, &anonymous).await);
    assert_eq!(state(&caller, &owned).await, CartState::Active);
    pass(&stack, SECOND).await;
    assert_eq!(state(&caller, &owned).await, CartState::Expired);
    assert_eq!(kinds(&stack, &owned).await, ["cart.abandoned", "cart.lost", "cart.expired"]);
    pass(&stack, DAY * 30).await;
    assert!(is_gone(&caller, &owned).await);
}

#[tokio::test]
async fn a_cart_in_checkout_does_not_go() {
    let (stack, caller) = start().await;
    let patient = pb::CartPolicy {
        lost_after: Some(seconds(90 * 86_400)),
        checkout_timeout: Some(seconds(90 * 86_400)),
        ..pb::CartPolicy::default()
    };
    create_touchpoint(
        &caller,
        pb::Touchpoint { touchpoint: "slow".to_owned(), cart_policy: Some(patient), ..web() },
    )
    .await;
    let request = pb::CreateSessionRequest { touchpoint: "slow".to_owned(), ..Default::default() };
    let token = caller.sessions().create_session(request).await.answer().session_token;
    let cart = add_line(&caller, &token, "85123A", 1).await;
    begin_checkout(&caller, &token).await;
    pass(&stack, HOUR).await;
    pass(&stack, DAY * 90 - HOUR - SECOND).await;
    assert_eq!(state(&caller, &cart).await, CartState::Checkout);
    assert_eq!(kinds(&stack, &cart).await, ["cart.abandoned"]);
    pass(&stack, SECOND).await;
    assert_eq!(state(&caller, &cart).await, CartState::Expired);
    let expected = ["cart.abandoned", "cart.checkout_failed", "cart.lost", "cart.expired"];
    assert_eq!(kinds(&stack, &cart).await, expected);
}

#[tokio::test]
async fn orders_are_kept_for_90_days_and_merged_carts_for_30() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let (_, token) = authenticate(&caller, &token, identity("lena", 1)).await;
    let order = add_line(&caller, &token, "85123A", 1).await;
    let (_, guest) = create_session(&caller).await;
    let merged = add_line(&caller, &guest, "71053", 1).await;
    pass(&stack, TimeDelta::minutes(20)).await;
    authenticate(&caller, &guest, identity("lena", 1)).await;
    begin_checkout(&caller, &token).await;
    let request = pb::CompleteCheckoutRequest { owner: Some(owner(&token)), ..completion(&token, "order-1") };
    caller.carts().complete_checkout(request).await.answer();
    pass(&stack, HOUR).await;
    pass(&stack, DAY * 30 - HOUR - SECOND).await;
    assert_eq!(state(&caller, &merged).await, CartState::Merged);
    pass(&stack, SECOND).await;
    assert!(is_gone(&caller, &merged).await);
    pass(&stack, DAY * 60 - SECOND).await;
    assert_eq!(state(&caller, &order).await, CartState::Ordered);
    pass(&stack, SECOND).await;
    assert!(is_gone(&caller, &order).await);
    assert_eq!(stack.database.count("select count(*) from session.carts").await, 0);
}
