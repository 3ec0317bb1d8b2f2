//! What the shop says of its shoppers, and who lists their abandoned carts.

use shared::issuer::Grant;
use shared::pb::session as pb;
use shared::pb::session::{AbandonmentKind, CartState};
use shared::time::from_proto;
use tonic::Code;
use uuid::Uuid;

use crate::abandonment::{set_contact, start};
use crate::harness::carts::{HOUR, MINUTE, add, contact, find, pass, reachable};
use crate::harness::shop::{add_line, begin_checkout, create_session, euros};
use crate::harness::{Answer as _, Caller, workload};

async fn list(caller: &Caller, request: pb::ListAbandonedCartsRequest) -> Vec<pb::AbandonedCart> {
    caller.carts().list_abandoned_carts(request).await.answer().carts
}

#[tokio::test]
async fn contact_is_kept_once_and_bad_input_names_its_field() {
    let (_stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    caller
        .carts()
        .set_cart_contact(contact(&token, reachable(true)))
        .await
        .refused(Code::NotFound, "CART_NOT_FOUND");
    let cart = add_line(&caller, &token, "85123A", 2).await;
    let request_id = Uuid::from_u128(1).to_string();
    let twice = vec![
        pb::ContactChannel::Sms.into(),
        pb::ContactChannel::Email.into(),
        pb::ContactChannel::Sms.into(),
    ];
    let both = pb::CartContact { channels: twice, consent: None };
    let request = pb::SetCartContactRequest { request_id, ..contact(&token, both) };
    let first = caller.carts().set_cart_contact(request.clone()).await.answer();
    let known = first.contact.clone().unwrap();
    assert_eq!((first.cart_id.as_str(), known.channels), (cart.cart_id.as_str(), vec![1, 2]));
    set_contact(&caller, &token, pb::CartContact::default()).await;
    assert_eq!(caller.carts().set_cart_contact(request.clone()).await.answer(), first);
    let other = pb::SetCartContactRequest { contact: Some(reachable(true)), ..request };
    caller
        .carts()
        .set_cart_contact(other)
        .await
        .refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
    let consent = |policy_version: &str| {
        let consent = pb::ContactConsent { granted: true, policy_version: policy_version.to_owned() };
        pb::CartContact { consent: Some(consent), ..reachable(true) }
    };
    let channels = |channels: &[i32]| pb::CartContact { channels: channels.to_vec(), ..reachable(true) };
    for (field, bad) in [
        ("contact.channels", channels(&[0])),
        ("contact.channels", channels(&[99])),
        ("contact.channels", channels(&[1, 1, 1, 1, 1])),
        ("contact.consent.policy_version", consent("")),
        ("contact.consent.policy_version", consent("a\0b")),
        ("contact.consent.policy_version", consent(&"a".repeat(65))),
    ] {
        let refused = caller.carts().set_cart_contact(contact(&token, bad)).await;
        let status = refused.refused(Code::InvalidArgument, "FIELD_INVALID");
        assert!(status.message().starts_with(field), "{}", status.message());
    }
}

#[tokio::test]
async fn abandoned_carts_are_listed_in_their_order_and_by_filter() {
    let (stack, caller) = start().await;
    let everything = pb::ListAbandonedCartsRequest::default;
    let mut carts = vec![];
    for n in 0..5 {
        let (_, token) = create_session(&caller).await;
        carts.push(add_line(&caller, &token, "85123A", n + 1).await);
        if n % 2 == 0 {
            set_contact(&caller, &token, reachable(n > 0)).await;
        }
        if n == 3 {
            begin_checkout(&caller, &token).await;
        }
        pass(&stack, MINUTE).await;
    }
    assert_eq!(list(&caller, everything()).await, []);
    let mut abandoned_at = vec![];
    pass(&stack, MINUTE * 55).await;
    for _ in 0..5 {
        abandoned_at.push(stack.now());
        pass(&stack, MINUTE).await;
    }
    let ids = |found: &[pb::AbandonedCart]| -> Vec<usize> {
        let position =
            |found: &pb::AbandonedCart| carts.iter().position(|cart| cart.cart_id == found.cart_id);
        found.iter().map(|found| position(found).unwrap()).collect()
    };
    let all = list(&caller, everything()).await;
    assert_eq!(ids(&all), [0, 1, 2, 3, 4]);
    assert_eq!((all[1].total.clone(), all[1].line_count), (Some(euros(510)), 1));
    assert_eq!((all[3].state(), all[0].state()), (CartState::Checkout, CartState::Active));
    let since = all[2].abandonment.unwrap().abandon_time;
    assert_eq!(from_proto(since.unwrap()).unwrap(), abandoned_at[2]);
    for (filter, expected) in [
        (pb::ListAbandonedCartsRequest { since, ..everything() }, vec![2, 3, 4]),
        (pb::ListAbandonedCartsRequest { kind: AbandonmentKind::Checkout.into(), ..everything() }, vec![3]),
        (
            pb::ListAbandonedCartsRequest { kind: AbandonmentKind::Cart.into(), ..everything() },
            vec![0, 1, 2, 4],
        ),
        (pb::ListAbandonedCartsRequest { kind: AbandonmentKind::Browse.into(), ..everything() }, vec![]),
        (pb::ListAbandonedCartsRequest { contactable: Some(true), ..everything() }, vec![2, 4]),
        (pb::ListAbandonedCartsRequest { contactable: Some(false), ..everything() }, vec![0, 1, 3]),
        (pb::ListAbandonedCartsRequest { touchpoint_group: "app".to_owned(), ..everything() }, vec![]),
    ] {
        assert_eq!(ids(&list(&caller, filter.clone()).await), expected, "{filter:?}");
    }
    let mut paged = vec![];
    let mut request = pb::ListAbandonedCartsRequest { page_size: 2, ..everything() };
    loop {
        let page = caller.carts().list_abandoned_carts(request.clone()).await.answer();
        paged.extend(ids(&page.carts));
        if page.next_page_token.is_empty() {
            break;
        }
        // Who comes back is not shown any more, and moves no page.
        if paged.len() == 2 {
            add(&caller, &carts[1], 1).await;
            add(&caller, &carts[2], 1).await;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(paged, [0, 1, 3, 4]);
    let other = pb::ListAbandonedCartsRequest { contactable: Some(true), ..request };
    caller
        .carts()
        .list_abandoned_carts(other)
        .await
        .refused(Code::InvalidArgument, "PAGE_TOKEN_INVALID");
}

#[tokio::test]
async fn the_list_is_for_those_who_may_see_every_shoppers_carts() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let cart = add_line(&caller, &token, "85123A", 1).await;
    pass(&stack, HOUR).await;
    let request = pb::ListAbandonedCartsRequest::default;
    assert_eq!(list(&caller, request()).await.len(), 1);
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..workload("storefront") });
    assert_eq!(list(&acme, request()).await, []);
    let till = stack.caller(&Grant { touchpoints: Some(vec!["web".to_owned()]), ..workload("till") });
    let refused = till.carts().list_abandoned_carts(request()).await;
    refused.refused(Code::PermissionDenied, "CALLER_TOUCHPOINT_REFUSED");
    let shop =
        stack.caller(&Grant { scope: "cart.read cart.write shopper.any".to_owned(), ..workload("shop") });
    let refused = shop.carts().list_abandoned_carts(request()).await;
    refused.refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
    for (field, bad) in [
        ("page_size", pb::ListAbandonedCartsRequest { page_size: -1, ..request() }),
        ("kind", pb::ListAbandonedCartsRequest { kind: 9, ..request() }),
        ("touchpoint_group", pb::ListAbandonedCartsRequest { touchpoint_group: "W".to_owned(), ..request() }),
        (
            "since",
            pb::ListAbandonedCartsRequest {
                since: Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }),
                ..request()
            },
        ),
    ] {
        let refused = caller.carts().list_abandoned_carts(bad).await;
        let status = refused.refused(Code::InvalidArgument, "FIELD_INVALID");
        assert!(status.message().starts_with(field), "{}", status.message());
    }
    assert!(find(&acme, &cart).await.is_err());
}
