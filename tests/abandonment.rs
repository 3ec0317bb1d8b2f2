//! Abandoned carts: when they count as such by their touchpoint's policy, what is told, and what lowers the flag.

use chrono::TimeDelta;
use serde_json::json;
use shared::pb::session as pb;
use shared::pb::session::{AbandonmentKind, CartState, CheckoutFailure};
use shared::time::to_proto;
use tonic::Code;

use crate::harness::carts::{
    DAY, HOUR, MINUTE, add, by_id, cart_policy, contact, kinds, pass, reachable, see, told,
};
use crate::harness::shop::{
    add_line, begin_checkout, completion, create_session, create_touchpoint, get_cart, owner, seconds, web,
};
use crate::harness::trust::{authenticate, identity};
use crate::harness::{Answer as _, Caller, Options, Stack, Watch, workload};
use crate::preferences::consenting;

pub(crate) async fn start() -> (Stack, Caller) {
    // Months pass in some tests, and what was told is looked at in the end.
    let year = Options { event_retention: Some(TimeDelta::days(365)), ..Options::default() };
    let stack = Stack::sessions_with(&year);
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    (stack, caller)
}

pub(crate) async fn set_contact(
    caller: &Caller,
    token: &str,
    to: pb::CartContact,
) -> pb::SetCartContactResponse {
    caller.carts().set_cart_contact(contact(token, to)).await.answer()
}

#[tokio::test]
async fn a_cart_is_idle_then_abandoned_then_lost_and_each_is_told_once() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let cart = add_line(&caller, &token, "85123A", 2).await;
    set_contact(&caller, &token, reachable(true)).await;
    let left_at = stack.now();
    pass(&stack, MINUTE * 30 - TimeDelta::seconds(1)).await;
    assert_eq!(kinds(&stack, &cart).await, [""; 0]);
    pass(&stack, TimeDelta::seconds(1)).await;
    assert_eq!(kinds(&stack, &cart).await, ["cart.idle"]);
    pass(&stack, MINUTE * 30 - TimeDelta::seconds(1)).await;
    assert_eq!(see(&caller, &cart).await.abandonment.unwrap().kind(), AbandonmentKind::Unspecified);
    pass(&stack, TimeDelta::seconds(1)).await;
    let abandoned = see(&caller, &cart).await;
    let flag = abandoned.abandonment.unwrap();
    assert_eq!(
        (flag.epoch, flag.kind(), flag.abandon_time),
        (1, AbandonmentKind::Cart, Some(to_proto(stack.now())))
    );
    assert_eq!(
        (abandoned.state(), &abandoned.etag),
        (CartState::Active, &cart.etag),
        "the cart is as it was"
    );
    assert_eq!(abandoned.update_time, Some(to_proto(left_at)));
    pass(&stack, HOUR).await;
    // Anonymous ones are kept for no longer.
    pass(&stack, DAY * 30 - HOUR * 2).await;
    let ended = see(&caller, &cart).await;
    assert_eq!(ended.state(), CartState::Expired);
    assert_eq!(ended.abandonment.unwrap().lost_time, Some(to_proto(stack.now())));
    let told = told(&stack, &cart).await;
    let names: Vec<_> = told.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(names, ["cart.idle", "cart.abandoned", "cart.lost", "cart.expired"]);
    for (_, data) in &told {
        let expected = json!({
            "shopper_id": cart.shopper_id,
            "touchpoint_group": "web",
            "state": "ACTIVE",
            "kind": "CART",
            "epoch": 1,
            "currency_code": "EUR",
            "total_minor_units": 510,
            "line_count": 1,
            "last_activity_time": "2027-01-15T08:00:00.000000Z",
            "channels": ["EMAIL"],
            "consent": {"granted": true, "policy_version": "2027-01"},
            "marketing_consent": null,
            "contactable": true,
        });
        assert_eq!(data, &expected);
    }
}

#[tokio::test]
async fn a_change_of_the_shoppers_lowers_the_flag_and_opens_an_epoch() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let cart = add_line(&caller, &token, "85123A", 2).await;
    for epoch in 1..4 {
        pass(&stack, HOUR).await;
        assert_eq!(see(&caller, &cart).await.abandonment.unwrap().epoch, epoch);
        let back = add(&caller, &cart, 1).await.abandonment.unwrap();
        let expected = pb::CartAbandonment {
            epoch: epoch + 1,
            recover_time: Some(to_proto(stack.now())),
            ..pb::CartAbandonment::default()
        };
        assert_eq!(back, expected);
        assert_eq!(see(&caller, &cart).await.abandonment, Some(back));
        // One more changes nothing of it.
        assert_eq!(add(&caller, &cart, 1).await.abandonment, Some(expected));
    }
    let told = told(&stack, &cart).await;
    let names: Vec<_> = told
        .iter()
        .map(|(kind, data)| (kind.as_str(), data["epoch"].as_i64()))
        .collect();
    let each = |epoch| [("cart.abandoned", Some(epoch)), ("cart.recovered", Some(epoch))];
    assert_eq!(names, [each(1), each(2), each(3)].concat());
    let (_, recovered) = &told[1];
    assert_eq!(recovered["abandon_time"], "2027-01-15T09:00:00.000000Z");
}

#[tokio::test]
async fn who_goes_on_is_never_idle_and_who_stops_is_idle_again() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let cart = add_line(&caller, &token, "85123A", 2).await;
    for _ in 0..4 {
        pass(&stack, MINUTE * 29).await;
        add_line(&caller, &token, "85123A", 1).await;
    }
    assert_eq!(kinds(&stack, &cart).await, [""; 0]);
    pass(&stack, MINUTE * 40).await;
    add(&caller, &cart, 1).await;
    pass(&stack, MINUTE * 40).await;
    assert_eq!(kinds(&stack, &cart).await, ["cart.idle", "cart.idle"]);
}

#[tokio::test]
async fn a_cart_that_was_emptied_and_looked_at_is_told_of_in_time_when_it_is_filled_again() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let cart = add_line(&caller, &token, "85123A", 2).await;
    let remove = pb::RemoveCartLineRequest {
        owner: Some(owner(&token)),
        currency_code: "EUR".to_owned(),
        line_id: cart.lines[0].line_id.clone(),
        request_id: String::new(),
    };
    caller.carts().remove_cart_line(remove).await.answer();
    pass(&stack, MINUTE * 31).await;
    add(&caller, &cart, 1).await;
    pass(&stack, HOUR - TimeDelta::seconds(1)).await;
    assert_eq!(kinds(&stack, &cart).await, ["cart.idle"]);
    pass(&stack, TimeDelta::seconds(1)).await;
    assert_eq!(kinds(&stack, &cart).await, ["cart.idle", "cart.abandoned"]);
}

#[tokio::test]
async fn that_a_payment_failed_is_no_coming_back_and_that_the_shopper_gave_up_is() {
    let (stack, caller) = start().await;
    for (reason, expected) in [
        (CheckoutFailure::PaymentDeclined, vec!["cart.abandoned", "cart.checkout_failed"]),
        (CheckoutFailure::Cancelled, vec!["cart.abandoned", "cart.checkout_failed", "cart.recovered"]),
    ] {
        let (_, token) = create_session(&caller).await;
        let cart = add_line(&caller, &token, "85123A", 2).await;
        begin_checkout(&caller, &token).await;
        pass(&stack, HOUR).await;
        let fail = pb::FailCheckoutRequest {
            owner: Some(by_id(&cart)),
            currency_code: "EUR".to_owned(),
            reason: reason.into(),
            request_id: String::new(),
        };
        caller.carts().fail_checkout(fail).await.answer();
        assert_eq!(kinds(&stack, &cart).await, expected, "{reason:?}");
    }
}

#[tokio::test]
async fn consent_to_marketing_counts_beside_that_of_the_cart_and_its_withdrawal_rules() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let cart = add_line(&caller, &token, "85123A", 2).await;
    let asked = pb::CartContact { consent: None, ..reachable(true) };
    for (of_cart, marketing, contactable) in [
        (asked.clone(), true, true),
        (asked, false, false),
        (reachable(true), false, false),
        (reachable(true), true, true),
    ] {
        // By id, as the session does not live for so long.
        let to = pb::SetCartContactRequest { owner: Some(by_id(&cart)), ..contact(&token, of_cart) };
        caller.carts().set_cart_contact(to).await.answer();
        let request = consenting(by_id(&cart), pb::ConsentPurpose::Marketing, marketing);
        caller.shoppers().update_consent(request).await.answer();
        pass(&stack, HOUR).await;
        let (kind, data) = told(&stack, &cart).await.pop().unwrap();
        assert_eq!((kind.as_str(), &data["contactable"]), ("cart.abandoned", &contactable.into()));
        assert_eq!(data["marketing_consent"], marketing);
        for asked in [true, false] {
            let list = pb::ListAbandonedCartsRequest { contactable: Some(asked), ..Default::default() };
            let listed = caller.carts().list_abandoned_carts(list).await.answer().carts;
            assert_eq!(listed.len(), usize::from(asked == contactable));
        }
        add(&caller, &cart, 1).await;
    }
}

#[tokio::test]
async fn an_empty_cart_and_an_order_are_not_abandoned() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let cart = add_line(&caller, &token, "85123A", 2).await;
    let (_, other) = create_session(&caller).await;
    let emptied = add_line(&caller, &other, "85123A", 2).await;
    let remove = pb::RemoveCartLineRequest {
        owner: Some(owner(&other)),
        currency_code: "EUR".to_owned(),
        line_id: emptied.lines[0].line_id.clone(),
        request_id: String::new(),
    };
    caller.carts().remove_cart_line(remove).await.answer();
    begin_checkout(&caller, &token).await;
    caller.carts().complete_checkout(completion(&token, "order-1")).await.answer();
    pass(&stack, HOUR * 2).await;
    assert_eq!(kinds(&stack, &cart).await, [""; 0]);
    assert_eq!(kinds(&stack, &emptied).await, [""; 0]);
}

#[tokio::test]
async fn a_checkout_that_nobody_ends_is_abandoned_and_later_lets_go_of_its_visit() {
    let (stack, caller) = start().await;
    let (session, token) = create_session(&caller).await;
    let cart = add_line(&caller, &token, "85123A", 2).await;
    let paying = begin_checkout(&caller, &token).await;
    pass(&stack, HOUR).await;
    let abandoned = see(&caller, &cart).await;
    assert_eq!((abandoned.state(), &abandoned.etag), (CartState::Checkout, &paying.etag));
    assert_eq!(abandoned.abandonment.unwrap().kind(), AbandonmentKind::Checkout);
    let held = "select count(*) from session.sessions where checkout_cart_ids is not null";
    assert_eq!(stack.database.count(held).await, 1);
    let mut watch = Watch::open(caller.session_events()).await;
    pass(&stack, DAY - HOUR).await;
    let open = see(&caller, &cart).await;
    assert_eq!(
        (open.state(), &open.lines, open.update_time),
        (CartState::Active, &cart.lines, paying.update_time)
    );
    assert_ne!(open.etag, paying.etag);
    assert_eq!(open.abandonment, abandoned.abandonment, "it is no activity");
    assert_eq!(stack.database.count(held).await, 0);
    let event = watch.next_of("cart.checkout_failed").await;
    assert_eq!((event.subject, event.principal.as_str()), (cart.cart_id.clone(), "system"));
    let (_, data) = told(&stack, &cart).await.pop().unwrap();
    let reason = "CHECKOUT_FAILURE_TIMED_OUT";
    let expected = json!({"shopper_id": cart.shopper_id, "reason": reason, "session_id": session.session_id});
    assert_eq!(data, expected);
    let late = pb::CompleteCheckoutRequest { owner: Some(by_id(&cart)), ..completion(&token, "order-1") };
    caller
        .carts()
        .complete_checkout(late)
        .await
        .refused(Code::FailedPrecondition, "CART_WRONG_STATE");
}

#[tokio::test]
async fn an_order_that_was_given_up_is_a_recovery() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let cart = add_line(&caller, &token, "85123A", 2).await;
    begin_checkout(&caller, &token).await;
    pass(&stack, HOUR).await;
    let complete = pb::CompleteCheckoutRequest { owner: Some(by_id(&cart)), ..completion(&token, "order-1") };
    caller.carts().complete_checkout(complete).await.answer();
    let (kind, data) = told(&stack, &cart).await.pop().unwrap();
    assert_eq!(
        (kind.as_str(), &data["kind"], &data["state"]),
        ("cart.recovered", &json!("CHECKOUT"), &json!("ORDERED"))
    );
}

#[tokio::test]
async fn the_touchpoint_where_it_was_last_changed_says_when() {
    let (stack, caller) = start().await;
    let kiosk = pb::Touchpoint {
        touchpoint: "kiosk".to_owned(),
        group: "web".to_owned(),
        cart_policy: Some(cart_policy(MINUTE * 10)),
        ..web()
    };
    let shown = create_touchpoint(&caller, kiosk).await.cart_policy.unwrap();
    assert_eq!((shown.idle_after, shown.lost_after), (Some(seconds(300)), Some(seconds(30 * 86_400))));
    let at_kiosk = async |sub: &str| {
        let request = pb::CreateSessionRequest { touchpoint: "kiosk".to_owned(), ..Default::default() };
        let token = caller.sessions().create_session(request).await.answer().session_token;
        authenticate(&caller, &token, identity(sub, 1)).await.1
    };
    let at_home = async |sub: &str| {
        let (_, token) = create_session(&caller).await;
        authenticate(&caller, &token, identity(sub, 1)).await.1
    };
    let (here, there) = (at_home("lena").await, at_kiosk("lena").await);
    add_line(&caller, &here, "85123A", 1).await;
    let goes_out = add_line(&caller, &there, "85123A", 1).await;
    let (here, there) = (at_home("max").await, at_kiosk("max").await);
    add_line(&caller, &there, "85123A", 1).await;
    let comes_home = add_line(&caller, &here, "85123A", 1).await;
    let only_out = add_line(&caller, &at_kiosk("mia").await, "85123A", 1).await;
    // The cart that was made at home is looked at in half an hour only, after which the kiosk's policy holds.
    pass(&stack, MINUTE * 10).await;
    assert_eq!(kinds(&stack, &only_out).await, ["cart.abandoned"]);
    pass(&stack, MINUTE * 20).await;
    assert_eq!(kinds(&stack, &goes_out).await, ["cart.abandoned"]);
    assert_eq!(kinds(&stack, &comes_home).await, ["cart.idle"]);
    pass(&stack, MINUTE * 30).await;
    assert_eq!(kinds(&stack, &comes_home).await, ["cart.idle", "cart.abandoned"]);
}

#[tokio::test]
async fn policies_that_contradict_themselves_are_refused_and_the_defaults_shown() {
    let (_stack, caller) = start().await;
    let get = pb::GetTouchpointRequest { touchpoint: "web".to_owned() };
    let shown = caller.touchpoints().get_touchpoint(get).await.answer().touchpoint.unwrap();
    let spans = |idle, abandoned, lost, checkout| pb::CartPolicy {
        idle_after: Some(seconds(idle)),
        abandoned_after: Some(seconds(abandoned)),
        lost_after: Some(seconds(lost)),
        checkout_timeout: Some(seconds(checkout)),
    };
    assert_eq!(shown.cart_policy, Some(spans(1800, 3600, 30 * 86_400, 86_400)));
    for (field, policy) in [
        ("idle_after", spans(3600, 3600, 86_400, 86_400)),
        ("idle_after", spans(59, 3600, 86_400, 86_400)),
        ("abandoned_after", spans(60, 599, 86_400, 86_400)),
        ("abandoned_after", spans(60, 86_401, 864_000, 864_000)),
        ("lost_after", spans(60, 3600, 3601, 3600)),
        ("lost_after", spans(60, 3600, 91 * 86_400, 86_400)),
        ("checkout_timeout", spans(60, 3600, 86_400, 3599)),
        ("checkout_timeout", spans(60, 3600, 86_400, 86_401)),
        ("abandoned_after", spans(60, -1, 86_400, 86_400)),
        ("lost_after", pb::CartPolicy { lost_after: Some(seconds(i64::MAX)), ..Default::default() }),
    ] {
        let touchpoint = Some(pb::Touchpoint { cart_policy: Some(policy), ..web() });
        let request = pb::UpdateTouchpointRequest { touchpoint, ..Default::default() };
        let refused = caller.touchpoints().update_touchpoint(request).await;
        let status = refused.refused(Code::InvalidArgument, "FIELD_INVALID");
        let named = format!("touchpoint.cart_policy.{field}");
        assert!(status.message().starts_with(&named), "{}", status.message());
    }
}

/// The anonymous cart was abandoned, and so was the subject's.
#[tokio::test]
async fn a_login_comes_back_to_what_it_brings_and_to_what_it_changes() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let (_, token) = authenticate(&caller, &token, identity("lena", 1)).await;
    let hers = add_line(&caller, &token, "85123A", 1).await;
    pass(&stack, MINUTE * 45).await;
    let (_, guest) = create_session(&caller).await;
    let anonymous = add_line(&caller, &guest, "71053", 1).await;
    set_contact(&caller, &guest, reachable(true)).await;
    pass(&stack, MINUTE * 29).await;
    get_cart(&caller, &guest).await;
    pass(&stack, MINUTE * 29).await;
    get_cart(&caller, &guest).await;
    pass(&stack, MINUTE * 2).await;
    assert_eq!(kinds(&stack, &anonymous).await, ["cart.idle", "cart.abandoned"]);
    authenticate(&caller, &guest, identity("lena", 1)).await;
    for cart in [&hers, &anonymous] {
        assert_eq!(kinds(&stack, cart).await.last().unwrap(), "cart.recovered");
        assert_eq!(see(&caller, cart).await.abandonment.unwrap().epoch, 2);
    }
    // What was known of the guest is known of her, and she may leave again.
    pass(&stack, HOUR).await;
    let (kind, data) = told(&stack, &hers).await.pop().unwrap();
    assert_eq!(
        (kind.as_str(), &data["epoch"], &data["contactable"]),
        ("cart.abandoned", &json!(2), &json!(true))
    );
}

#[tokio::test]
async fn a_cart_that_only_changes_its_shopper_takes_everything_along() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    authenticate(&caller, &token, identity("lena", 1)).await;
    let (_, guest) = create_session(&caller).await;
    let cart = add_line(&caller, &guest, "71053", 1).await;
    set_contact(&caller, &guest, reachable(true)).await;
    for _ in 0..2 {
        pass(&stack, MINUTE * 29).await;
        get_cart(&caller, &guest).await;
    }
    pass(&stack, MINUTE * 2).await;
    let (_, token) = authenticate(&caller, &guest, identity("lena", 1)).await;
    let hers = get_cart(&caller, &token).await;
    assert_eq!(hers.cart_id, cart.cart_id);
    assert_eq!(hers.abandonment.unwrap().epoch, 2);
    assert_eq!(kinds(&stack, &cart).await, ["cart.idle", "cart.abandoned", "cart.recovered"]);
    pass(&stack, HOUR).await;
    let (kind, data) = told(&stack, &cart).await.pop().unwrap();
    assert_eq!(
        (kind.as_str(), &data["epoch"], &data["channels"]),
        ("cart.abandoned", &json!(2), &json!(["EMAIL"]))
    );
    assert_eq!(data["shopper_id"], hers.shopper_id);
}
