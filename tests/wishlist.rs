//! Wishlists, as their owners keep them: each change once, none lost between two tabs, and nothing in them that has no
//! business there.

use chrono::TimeDelta;
use futures_util::future::join_all;
use shared::pb::common::Money;
use shared::pb::session as pb;
use shared::pb::session::shopper_selector::Owner;
use shared::time::to_proto;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::harness::shop::{create_session, create_touchpoint, euros, owner, revoke, web};
use crate::harness::{Answer as _, Caller, Stack, Watch, workload};

pub(crate) async fn start() -> (Stack, Caller, String) {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    let (_, token) = create_session(&caller).await;
    (stack, caller, token)
}

/// A shopper by id.
pub(crate) fn shopper(shopper_id: &str) -> pb::ShopperSelector {
    let shopper = pb::ShopperRef { shopper_id: shopper_id.to_owned(), touchpoint_group: String::new() };
    pb::ShopperSelector { owner: Some(Owner::Shopper(shopper)) }
}

pub(crate) fn creation(token: &str, name: &str) -> pb::CreateWishlistRequest {
    let (owner, name) = (Some(owner(token)), name.to_owned());
    pb::CreateWishlistRequest { owner, name, ..Default::default() }
}

pub(crate) async fn create_wishlist(caller: &Caller, token: &str, name: &str) -> pb::Wishlist {
    let made = caller.shoppers().create_wishlist(creation(token, name)).await;
    made.answer().wishlist.unwrap()
}

pub(crate) async fn get_wishlist(caller: &Caller, token: &str, list: &pb::Wishlist) -> pb::Wishlist {
    let request = pb::GetWishlistRequest { owner: Some(owner(token)), wishlist_id: list.wishlist_id.clone() };
    caller.shoppers().get_wishlist(request).await.answer().wishlist.unwrap()
}

pub(crate) async fn list_wishlists(caller: &Caller, owner: pb::ShopperSelector) -> Vec<pb::Wishlist> {
    let request = pb::ListWishlistsRequest { owner: Some(owner) };
    caller.shoppers().list_wishlists(request).await.answer().wishlists
}

pub(crate) fn item(token: &str, list: &pb::Wishlist, sku: &str) -> pb::AddWishlistItemRequest {
    pb::AddWishlistItemRequest {
        owner: Some(owner(token)),
        wishlist_id: list.wishlist_id.clone(),
        sku: sku.to_owned(),
        desired_quantity: 1,
        ..Default::default()
    }
}

pub(crate) async fn add_item(caller: &Caller, token: &str, list: &pb::Wishlist, sku: &str) -> pb::Wishlist {
    let added = caller.shoppers().add_wishlist_item(item(token, list, sku)).await;
    added.answer().wishlist.unwrap()
}

pub(crate) fn skus(list: &pb::Wishlist) -> Vec<&str> {
    list.items.iter().map(|item| item.sku.as_str()).collect()
}

fn id(n: u128) -> String {
    Uuid::from_u128(n).to_string()
}

fn update(token: &str, list: &pb::Wishlist, name: &str) -> pb::UpdateWishlistRequest {
    pb::UpdateWishlistRequest {
        owner: Some(owner(token)),
        wishlist_id: list.wishlist_id.clone(),
        name: Some(name.to_owned()),
        ..Default::default()
    }
}

fn deletion(token: &str, list: &pb::Wishlist) -> pb::DeleteWishlistRequest {
    pb::DeleteWishlistRequest {
        owner: Some(owner(token)),
        wishlist_id: list.wishlist_id.clone(),
        ..Default::default()
    }
}

fn change(token: &str, list: &pb::Wishlist, sku: &str) -> pb::UpdateWishlistItemRequest {
    pb::UpdateWishlistItemRequest {
        owner: Some(owner(token)),
        wishlist_id: list.wishlist_id.clone(),
        sku: sku.to_owned(),
        ..Default::default()
    }
}

fn removal(token: &str, list: &pb::Wishlist, sku: &str) -> pb::RemoveWishlistItemRequest {
    pb::RemoveWishlistItemRequest {
        owner: Some(owner(token)),
        wishlist_id: list.wishlist_id.clone(),
        sku: sku.to_owned(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_list_is_kept_from_its_first_article_until_it_is_deleted() {
    let (stack, caller, token) = start().await;
    let mut events = Watch::open(caller.session_events()).await;
    let made = create_wishlist(&caller, &token, "Birthday").await;
    assert_eq!(
        (made.visibility(), made.items.len(), &*made.etag),
        (pb::WishlistVisibility::Private, 0, "v1")
    );
    let first = stack.now();
    let lamp = pb::AddWishlistItemRequest {
        desired_quantity: 2,
        note: "the red one".to_owned(),
        price: Some(euros(255)),
        notify_on: vec![2, 1, 2],
        ..item(&token, &made, "lamp")
    };
    caller.shoppers().add_wishlist_item(lamp).await.answer();
    stack.advance(TimeDelta::minutes(1));
    // Added again: when and at which price it was wished for first stays.
    let again = pb::AddWishlistItemRequest {
        priority: pb::WishlistPriority::High.into(),
        price: Some(euros(999)),
        ..item(&token, &made, "lamp")
    };
    caller.shoppers().add_wishlist_item(again).await.answer();
    stack.advance(TimeDelta::minutes(1));
    let noted = stack.now();
    let changed = pb::UpdateWishlistItemRequest {
        note: Some("the blue one".to_owned()),
        notify_on: Some(pb::WishlistNotifications { values: vec![1] }),
        ..change(&token, &made, "lamp")
    };
    let list = caller.shoppers().update_wishlist_item(changed).await.answer().wishlist.unwrap();
    let expected = pb::WishlistItem {
        sku: "lamp".to_owned(),
        desired_quantity: 1,
        priority: pb::WishlistPriority::High.into(),
        note: "the blue one".to_owned(),
        note_time: Some(to_proto(noted)),
        price_at_add: Some(euros(255)),
        add_time: Some(to_proto(first)),
        notify_on: vec![1],
        ..Default::default()
    };
    assert_eq!((list.items.as_slice(), &*list.etag), ([expected].as_slice(), "v4"));
    add_item(&caller, &token, &made, "rug").await;
    caller
        .shoppers()
        .remove_wishlist_item(removal(&token, &made, "lamp"))
        .await
        .answer();
    let renamed = caller.shoppers().update_wishlist(update(&token, &made, "Christmas")).await;
    let renamed = renamed.answer().wishlist.unwrap();
    assert_eq!((&*renamed.name, skus(&renamed)), ("Christmas", vec!["rug"]));
    assert_eq!(get_wishlist(&caller, &token, &made).await, renamed);
    let listed = list_wishlists(&caller, owner(&token)).await;
    assert_eq!(
        listed,
        [pb::Wishlist { items: vec![], ..renamed }],
        "a list of lists shows how many, not what"
    );
    caller.shoppers().delete_wishlist(deletion(&token, &made)).await.answer();
    assert_eq!(list_wishlists(&caller, owner(&token)).await, []);
    for kind in [
        "created",
        "item_added",
        "item_added",
        "item_updated",
        "item_added",
        "item_removed",
        "updated",
        "deleted",
    ] {
        let event = events.next_of(&format!("wishlist.{kind}")).await;
        let told = format!("{:?}", event.data);
        assert_eq!(event.subject, made.wishlist_id);
        assert!(
            told.contains(&made.shopper_id) && !told.contains("blue") && !told.contains("Christmas"),
            "{told}"
        );
    }
}

#[tokio::test]
async fn what_two_tabs_add_at_once_is_all_there() {
    let (_stack, caller, token) = start().await;
    let list = create_wishlist(&caller, &token, "Birthday").await;
    let names: Vec<_> = (0..16).map(|n| format!("sku-{n:02}")).collect();
    join_all(names.iter().map(|sku| add_item(&caller, &token, &list, sku))).await;
    let after = get_wishlist(&caller, &token, &list).await;
    let mut there = skus(&after);
    there.sort_unstable();
    assert_eq!((there, &*after.etag), (names.iter().map(String::as_str).collect(), "v17"));
}

#[tokio::test]
async fn bad_input_is_refused_with_its_field_named() {
    let (_stack, caller, token) = start().await;
    let list = create_wishlist(&caller, &token, "Birthday").await;
    let list_bad = pb::Wishlist { wishlist_id: "crt_1".to_owned(), ..Default::default() };
    let name = |name: &str| caller_name(&caller, creation(&token, name));
    let add = |request| caller_add(&caller, request);
    let plain = || item(&token, &list, "lamp");
    let note = |note: &str| pb::AddWishlistItemRequest { note: note.to_owned(), ..plain() };
    let price = |code: &str, minor_units| {
        let price = Some(Money { currency_code: code.to_owned(), minor_units });
        pb::AddWishlistItemRequest { price, ..plain() }
    };
    let table: [(&str, Result<Response<()>, Status>); 23] = [
        ("name", name("").await),
        ("name", name(&"x".repeat(101)).await),
        ("name", name("a\u{0}b").await),
        ("name", name("two\nlines").await),
        ("name", name("4111 1111 1111 1111").await),
        ("note", add(note(&"x".repeat(501))).await),
        ("note", add(note("bell \u{7}")).await),
        ("note", add(note("pay with 5555-5555-5555-4444")).await),
        ("sku", add(item(&token, &list, "")).await),
        ("sku", add(item(&token, &list, "a\tb")).await),
        ("sku", add(item(&token, &list, &"x".repeat(65))).await),
        ("wishlist_id", add(item(&token, &list_bad, "lamp")).await),
        ("desired_quantity", add(pb::AddWishlistItemRequest { desired_quantity: -1, ..plain() }).await),
        (
            "desired_quantity",
            add(pb::AddWishlistItemRequest { desired_quantity: 1_000_001, ..plain() }).await,
        ),
        ("priority", add(pb::AddWishlistItemRequest { priority: 9, ..plain() }).await),
        ("notify_on", add(pb::AddWishlistItemRequest { notify_on: vec![0], ..plain() }).await),
        ("notify_on", add(pb::AddWishlistItemRequest { notify_on: vec![1, 9], ..plain() }).await),
        ("notify_on", add(pb::AddWishlistItemRequest { notify_on: vec![1; 17], ..plain() }).await),
        ("price.currency_code", add(price("euro", 1)).await),
        ("price.minor_units", add(price("EUR", -1)).await),
        ("price.minor_units", add(price("EUR", i64::MAX)).await),
        ("request_id", add(pb::AddWishlistItemRequest { request_id: "1".to_owned(), ..plain() }).await),
        ("owner", add(pb::AddWishlistItemRequest { owner: None, ..plain() }).await),
    ];
    for (field, outcome) in table {
        let status = outcome.refused(Code::InvalidArgument, "FIELD_INVALID");
        let fields = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(fields[0].field, field, "{}", status.message());
    }
    // The same digits as an article's number are fine, and so is a note of several lines.
    let fine = pb::AddWishlistItemRequest {
        note: "size M\n\u{e4}\u{1f381}".to_owned(),
        ..item(&token, &list, "4111111111111111")
    };
    add(fine).await.answer();
    assert_eq!(skus(&get_wishlist(&caller, &token, &list).await), ["4111111111111111"]);
}

async fn caller_name(caller: &Caller, request: pb::CreateWishlistRequest) -> Result<Response<()>, Status> {
    caller.shoppers().create_wishlist(request).await.map(|answer| answer.map(drop))
}

async fn caller_add(caller: &Caller, request: pb::AddWishlistItemRequest) -> Result<Response<()>, Status> {
    caller
        .shoppers()
        .add_wishlist_item(request)
        .await
        .map(|answer| answer.map(drop))
}

#[tokio::test]
async fn limits_are_named_when_they_are_reached() {
    let (_stack, caller, token) = start().await;
    let limit = |status: &Status| {
        let metadata = status.get_details_error_info().unwrap().metadata;
        (metadata["limit"].clone(), metadata["max"].clone())
    };
    let list = create_wishlist(&caller, &token, "0").await;
    for n in 1..50 {
        create_wishlist(&caller, &token, &n.to_string()).await;
    }
    let made = caller.shoppers().create_wishlist(creation(&token, "one more")).await;
    let status = made.refused(Code::ResourceExhausted, "WISHLIST_LIMIT");
    assert_eq!(limit(&status), ("wishlists".to_owned(), "50".to_owned()));
    for n in 0..200 {
        add_item(&caller, &token, &list, &n.to_string()).await;
    }
    let added = caller.shoppers().add_wishlist_item(item(&token, &list, "one more")).await;
    let status = added.refused(Code::ResourceExhausted, "WISHLIST_LIMIT");
    assert_eq!(limit(&status), ("items".to_owned(), "200".to_owned()));
    let mut noted = 0;
    let refused = loop {
        let note = Some("\u{1f381}".repeat(500));
        let request = pb::UpdateWishlistItemRequest { note, ..change(&token, &list, &noted.to_string()) };
        match caller.shoppers().update_wishlist_item(request).await {
            Ok(_) => noted += 1,
            refused @ Err(_) => break refused,
        }
    };
    let status = refused.refused(Code::ResourceExhausted, "SHOPPER_LIMIT");
    assert_eq!(limit(&status), ("section_bytes".to_owned(), "65536".to_owned()));
    assert!((20..33).contains(&noted), "{noted}");
    let after = get_wishlist(&caller, &token, &list).await;
    assert_eq!(after.items.iter().filter(|item| !item.note.is_empty()).count(), noted);
}

#[tokio::test]
async fn what_changed_since_it_was_read_is_not_overwritten() {
    let (_stack, caller, token) = start().await;
    let seen = create_wishlist(&caller, &token, "Birthday").await;
    let now = add_item(&caller, &token, &seen, "lamp").await;
    let stale = seen.etag.clone();
    let renaming = pb::UpdateWishlistRequest { etag: stale.clone(), ..update(&token, &seen, "Other") };
    let status = caller
        .shoppers()
        .update_wishlist(renaming)
        .await
        .refused(Code::Aborted, "ETAG_MISMATCH");
    assert_eq!(status.get_details_error_info().unwrap().metadata["etag"], now.etag);
    let changing = pb::UpdateWishlistItemRequest {
        desired_quantity: Some(7),
        etag: stale.clone(),
        ..change(&token, &seen, "lamp")
    };
    caller
        .shoppers()
        .update_wishlist_item(changing)
        .await
        .refused(Code::Aborted, "ETAG_MISMATCH");
    let deleting = pb::DeleteWishlistRequest { etag: stale, ..deletion(&token, &seen) };
    caller
        .shoppers()
        .delete_wishlist(deleting)
        .await
        .refused(Code::Aborted, "ETAG_MISMATCH");
    assert_eq!(get_wishlist(&caller, &token, &seen).await, now);
    let deleting = pb::DeleteWishlistRequest { etag: now.etag, ..deletion(&token, &seen) };
    caller.shoppers().delete_wishlist(deleting).await.answer();
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let (_stack, caller, token) = start().await;
    let list = create_wishlist(&caller, &token, "Birthday").await;
    let gone = create_wishlist(&caller, &token, "Gone").await;
    caller.shoppers().delete_wishlist(deletion(&token, &gone)).await.answer();
    let (_, others) = create_session(&caller).await;
    let mut shoppers = caller.shoppers();
    for (token, list) in [(&token, &gone), (&others, &list)] {
        let named =
            pb::GetWishlistRequest { owner: Some(owner(token)), wishlist_id: list.wishlist_id.clone() };
        shoppers.get_wishlist(named).await.refused(Code::NotFound, "WISHLIST_NOT_FOUND");
        let added = shoppers.add_wishlist_item(item(token, list, "lamp")).await;
        added.refused(Code::NotFound, "WISHLIST_NOT_FOUND");
        let deleted = shoppers.delete_wishlist(deletion(token, list)).await;
        deleted.refused(Code::NotFound, "WISHLIST_NOT_FOUND");
    }
    let changed = shoppers.update_wishlist_item(change(&token, &list, "lamp")).await;
    changed.refused(Code::NotFound, "WISHLIST_ITEM_NOT_FOUND");
    let removed = shoppers.remove_wishlist_item(removal(&token, &list, "lamp")).await;
    removed.refused(Code::NotFound, "WISHLIST_ITEM_NOT_FOUND");
}

#[tokio::test]
async fn a_change_with_a_request_id_happens_once() {
    let (_stack, caller, token) = start().await;
    let create = |name: &str| pb::CreateWishlistRequest { request_id: id(1), ..creation(&token, name) };
    let made =
        join_all((0..3).map(|_| async { caller.shoppers().create_wishlist(create("a")).await.answer() }))
            .await;
    let list = made[0].wishlist.clone().unwrap();
    assert!(made.iter().all(|again| again.wishlist.as_ref() == Some(&list)));
    assert_eq!(list_wishlists(&caller, owner(&token)).await.len(), 1);
    let reused = caller.shoppers().create_wishlist(create("b")).await;
    reused.refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
    let remove = pb::RemoveWishlistItemRequest { request_id: id(2), ..removal(&token, &list, "lamp") };
    add_item(&caller, &token, &list, "lamp").await;
    caller.shoppers().remove_wishlist_item(remove.clone()).await.answer();
    // Another shopper's id of the same number is another request, but of the same caller: with another body.
    let (other, others) = create_session(&caller).await;
    let theirs = pb::RemoveWishlistItemRequest { owner: Some(owner(&others)), ..remove.clone() };
    caller
        .shoppers()
        .remove_wishlist_item(theirs)
        .await
        .refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
    // Repeated it says how things stand, also after the article came back and the session ended.
    let now = add_item(&caller, &token, &list, "lamp").await;
    let session = caller
        .sessions()
        .list_sessions(pb::ListSessionsRequest::default())
        .await
        .answer()
        .sessions;
    let session = session
        .into_iter()
        .find(|session| session.session_id != other.session_id)
        .unwrap();
    revoke(&caller, &session).await;
    let again = caller.shoppers().remove_wishlist_item(remove).await.answer();
    assert_eq!(again.wishlist, Some(now));
    let fresh = pb::RemoveWishlistItemRequest { request_id: id(3), ..removal(&token, &list, "lamp") };
    let status = caller.shoppers().remove_wishlist_item(fresh).await;
    status.refused(Code::FailedPrecondition, "SESSION_REVOKED");
}

#[tokio::test]
async fn shoppers_are_named_by_id_with_the_scope_for_it_only() {
    let (stack, caller, token) = start().await;
    let list = create_wishlist(&caller, &token, "Birthday").await;
    assert_eq!(list_wishlists(&caller, shopper(&list.shopper_id)).await.len(), 1);
    let plain = stack.caller(&shared::issuer::Grant {
        scope: "shopper.read shopper.write".to_owned(),
        ..workload("kiosk")
    });
    let request = pb::ListWishlistsRequest { owner: Some(shopper(&list.shopper_id)) };
    plain
        .shoppers()
        .list_wishlists(request.clone())
        .await
        .refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
    assert_eq!(list_wishlists(&plain, owner(&token)).await.len(), 1);
    let limited = stack
        .caller(&shared::issuer::Grant { touchpoints: Some(vec!["web".to_owned()]), ..workload("limited") });
    let status = limited.shoppers().list_wishlists(request).await;
    status.refused(Code::PermissionDenied, "CALLER_TOUCHPOINT_REFUSED");
    let reader =
        stack.caller(&shared::issuer::Grant { scope: "shopper.read".to_owned(), ..workload("reader") });
    let status = reader.shoppers().create_wishlist(creation(&token, "x")).await;
    status.refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
}
