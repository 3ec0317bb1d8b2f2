//! `GetShopperContext`: all that a shopper has, at once and of one instant.

use std::sync::atomic::{AtomicBool, Ordering};

use chrono::TimeDelta;
use session_svc::domain::consent::Purpose;
use session_svc::store::context;
use shared::id::{ShopperId, TenantId};
use shared::issuer::Grant;
use shared::pb::session as pb;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::shop::{
    add_line, begin_checkout, complete_checkout, create_session, create_touchpoint, get_cart, line, owner,
    web,
};
use crate::harness::{Answer as _, Caller, workload};
use crate::history::{append, refs, view};
use crate::preferences::{consent, get_preferences, set_locale};
use crate::wishlist::{add_item, create_wishlist, shopper, start};

fn asking(owner: pb::ShopperSelector) -> pb::GetShopperContextRequest {
    pb::GetShopperContextRequest { owner: Some(owner), history_size: 0 }
}

pub(crate) async fn context_of(caller: &Caller, owner: pb::ShopperSelector) -> pb::GetShopperContextResponse {
    caller.shoppers().get_shopper_context(asking(owner)).await.answer()
}

#[tokio::test]
async fn a_context_has_carts_so_that_it_takes_leave_to_read_them() {
    let (stack, _, token) = start().await;
    let grant = Grant { scope: "shopper.read".to_owned(), ..workload("recommender") };
    let refused = stack.caller(&grant).shoppers().get_shopper_context(asking(owner(&token))).await;
    refused.refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
    let grant = Grant { scope: "shopper.read cart.read".to_owned(), ..grant };
    context_of(&stack.caller(&grant), owner(&token)).await;
}

#[tokio::test]
async fn a_context_has_all_that_the_other_calls_answer() {
    let (stack, caller, token) = start().await;
    // Ids sort by when they were made.
    let later = || stack.advance(TimeDelta::milliseconds(1));
    let empty = context_of(&caller, owner(&token)).await;
    let none = Some(pb::Preferences { etag: "v0".to_owned(), ..Default::default() });
    let expected = pb::GetShopperContextResponse {
        shopper_id: empty.shopper_id.clone(),
        preferences: none,
        ..Default::default()
    };
    assert_eq!(empty, expected);
    // An order is no open cart; two currencies are two.
    add_line(&caller, &token, "ordered", 1).await;
    begin_checkout(&caller, &token).await;
    complete_checkout(&caller, &token, "order-1").await;
    add_line(&caller, &token, "lamp", 2).await;
    later();
    let mut dollars = line(&token, "rug", 1);
    dollars.unit_price.as_mut().unwrap().currency_code = "USD".to_owned();
    let dollars = caller.carts().add_cart_line(dollars).await.answer().cart.unwrap();
    let first = create_wishlist(&caller, &token, "Birthday").await;
    let first = add_item(&caller, &token, &first, "vase").await;
    later();
    let second = create_wishlist(&caller, &token, "Christmas").await;
    set_locale(&caller, owner(&token), "de-CH").await;
    consent(&caller, owner(&token), true).await;
    let views = (0..30).map(|n| view(&format!("{n:02}"))).collect();
    append(&caller, owner(&token), views).await;
    let found = context_of(&caller, owner(&token)).await;
    assert_eq!(found.carts, [get_cart(&caller, &token).await, dollars]);
    assert_eq!(found.wishlists, [first, second]);
    let preferences = get_preferences(&caller, owner(&token)).await;
    assert_eq!((found.preferences, found.consents), (preferences.preferences, preferences.consents));
    assert_eq!(refs(&found.history), (10..30).rev().map(|n| format!("{n:02}")).collect::<Vec<_>>());
    let more = pb::GetShopperContextRequest { history_size: 200, ..asking(owner(&token)) };
    assert_eq!(caller.shoppers().get_shopper_context(more).await.answer().history.len(), 30);
    for history_size in [-1, 201] {
        let bad = pb::GetShopperContextRequest { history_size, ..asking(owner(&token)) };
        let status = caller.shoppers().get_shopper_context(bad).await;
        let status = status.refused(Code::InvalidArgument, "FIELD_INVALID");
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "history_size");
    }
}

#[tokio::test]
async fn carts_are_those_of_the_group_that_is_asked_for() {
    let (_stack, caller, token) = start().await;
    create_touchpoint(&caller, pb::Touchpoint { touchpoint: "pos".to_owned(), ..web() }).await;
    let cart = add_line(&caller, &token, "lamp", 1).await;
    let of_group = |group: &str| {
        let named =
            pb::ShopperRef { shopper_id: cart.shopper_id.clone(), touchpoint_group: group.to_owned() };
        let owner = pb::shopper_selector::Owner::Shopper(named);
        context_of(&caller, pb::ShopperSelector { owner: Some(owner) })
    };
    for all in ["web", ""] {
        assert_eq!(of_group(all).await.carts, std::slice::from_ref(&cart));
    }
    assert_eq!(of_group("pos").await.carts, []);
    let (_, others) = create_session(&caller).await;
    assert_eq!(context_of(&caller, owner(&others)).await.carts, []);
}

/// While history comes and goes with consent, in transactions of their own, no reading has one without the other.
#[tokio::test]
async fn a_context_is_of_one_instant() {
    let (stack, caller, token) = start().await;
    let list = create_wishlist(&caller, &token, "Birthday").await;
    let id: ShopperId = list.shopper_id.parse().unwrap();
    let tenant: TenantId = "shop".parse().unwrap();
    let is_over = AtomicBool::new(false);
    let write = async {
        for _ in 0..15 {
            consent(&caller, shopper(&list.shopper_id), true).await;
            append(&caller, owner(&token), vec![view("lamp")]).await;
            consent(&caller, shopper(&list.shopper_id), false).await;
        }
        is_over.store(true, Ordering::Relaxed);
    };
    let read = async {
        let (mut db, mut seen) = (stack.database.connect().await, (0, 0));
        while !is_over.load(Ordering::Relaxed) {
            let found = context::find(&mut db, &tenant, id, None).await.unwrap();
            let is_granted = found.preferences.consents.grants(Purpose::PERSONALISATION);
            assert!(is_granted || found.history.stored().is_empty());
            assert_eq!(found.wishlists.len(), 1);
            let decisions = found.preferences.consents.decisions().len();
            assert_eq!(decisions % 2 == 1, is_granted);
            if is_granted { seen.0 += 1 } else { seen.1 += 1 }
        }
        assert!(seen.0 > 0 && seen.1 > 0, "{seen:?}");
    };
    tokio::join!(write, read);
}
