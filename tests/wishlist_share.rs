//! Wishlists that are shown to others: by which token and until when, what of them, and that two guests do not buy the
//! same.

use futures_util::future::join_all;
use session_svc::domain::token::{SessionToken, WishlistToken};
use shared::id::{SessionId, ShopperId};
use shared::issuer::Grant;
use shared::pb::session as pb;
use shared::pb::session::wishlist_share::Share;
use shared::time::at;
use sqlx::Row as _;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::harness::shop::{create_session, create_touchpoint, get_cart, owner, web};
use crate::harness::trust::{authenticate, identity};
use crate::harness::{Answer as _, Caller, START, Stack, Watch, reason_of, workload};
use crate::wishlist::{add_item, create_wishlist, get_wishlist, item, start};

fn sharing(token: &str, list: &pb::Wishlist) -> pb::ShareWishlistRequest {
    pb::ShareWishlistRequest {
        owner: Some(owner(token)),
        wishlist_id: list.wishlist_id.clone(),
        ..Default::default()
    }
}

/// Shares a list; answers its share token.
pub(crate) async fn share(caller: &Caller, token: &str, list: &pb::Wishlist) -> String {
    caller
        .shoppers()
        .share_wishlist(sharing(token, list))
        .await
        .answer()
        .share_token
}

async fn unshare(caller: &Caller, token: &str, list: &pb::Wishlist) -> pb::Wishlist {
    let request = pb::UnshareWishlistRequest {
        owner: Some(owner(token)),
        wishlist_id: list.wishlist_id.clone(),
        ..Default::default()
    };
    caller.shoppers().unshare_wishlist(request).await.answer().wishlist.unwrap()
}

fn by_token(share_token: &str) -> pb::WishlistShare {
    pb::WishlistShare { share: Some(Share::ShareToken(share_token.to_owned())) }
}

fn by_id(list: &pb::Wishlist) -> pb::WishlistShare {
    let named =
        pb::PublicWishlist { shopper_id: list.shopper_id.clone(), wishlist_id: list.wishlist_id.clone() };
    pb::WishlistShare { share: Some(Share::PublicWishlist(named)) }
}

/// What somebody sees of a list.
pub(crate) async fn look(
    caller: &Caller,
    share: pb::WishlistShare,
) -> Result<Response<pb::GetSharedWishlistResponse>, Status> {
    caller
        .shoppers()
        .get_shared_wishlist(pb::GetSharedWishlistRequest { share: Some(share), guest: None })
        .await
}

pub(crate) async fn look_by(caller: &Caller, share_token: &str) -> pb::SharedWishlist {
    look(caller, by_token(share_token)).await.answer().wishlist.unwrap()
}

fn interest(share_token: &str, guest: &str, sku: &str, quantity: i32) -> pb::NoteWishlistInterestRequest {
    pb::NoteWishlistInterestRequest {
        share: Some(by_token(share_token)),
        guest: Some(owner(guest)),
        sku: sku.to_owned(),
        quantity,
        ..Default::default()
    }
}

/// A list with two lamps on it, and its share token.
async fn shared_list(caller: &Caller, token: &str) -> (pb::Wishlist, String) {
    let list = create_wishlist(caller, token, "Birthday").await;
    let lamps = pb::AddWishlistItemRequest {
        desired_quantity: 2,
        note: "the red one".to_owned(),
        price: Some(crate::harness::shop::euros(255)),
        notify_on: vec![1],
        ..item(token, &list, "lamp")
    };
    let list = caller.shoppers().add_wishlist_item(lamps).await.answer().wishlist.unwrap();
    let share_token = share(caller, token, &list).await;
    (list, share_token)
}

#[tokio::test]
async fn guests_see_what_is_wished_for_and_nothing_else() {
    let (_stack, caller, token) = start().await;
    let (_, share_token) = shared_list(&caller, &token).await;
    let item = pb::SharedWishlistItem {
        sku: "lamp".to_owned(),
        desired_quantity: 2,
        priority: pb::WishlistPriority::Normal.into(),
        note: "the red one".to_owned(),
        open_quantity: 2,
        own_quantity: 0,
    };
    // The message has no field for an owner, a price, or other guests.
    let expected = pb::SharedWishlist { name: "Birthday".to_owned(), items: vec![item] };
    assert_eq!(look_by(&caller, &share_token).await, expected);
}

#[tokio::test]
async fn a_list_keeps_its_token_until_it_is_private_again() {
    let (stack, caller, token) = start().await;
    let (list, first) = shared_list(&caller, &token).await;
    assert!(first.starts_with("tdw_") && first.len() == 75, "{}", first.len());
    let request_id = Uuid::from_u128(1).to_string();
    let request = pb::ShareWishlistRequest { is_public: true, request_id, ..sharing(&token, &list) };
    let public = caller.shoppers().share_wishlist(request.clone()).await.answer();
    assert_eq!(caller.shoppers().share_wishlist(request.clone()).await.answer(), public);
    assert_eq!(public.share_token, first);
    assert_eq!(public.wishlist.unwrap().visibility(), pb::WishlistVisibility::Public);
    look(&caller, by_id(&list)).await.answer();
    // Shared only, it cannot be seen by its id.
    assert_eq!(share(&caller, &token, &list).await, first);
    look(&caller, by_id(&list)).await.refused(Code::NotFound, "WISHLIST_NOT_FOUND");
    look_by(&caller, &first).await;
    let private = unshare(&caller, &token, &list).await;
    assert_eq!(private.visibility(), pb::WishlistVisibility::Private);
    look(&caller, by_token(&first))
        .await
        .refused(Code::NotFound, "WISHLIST_NOT_FOUND");
    let again = caller.shoppers().share_wishlist(request).await.answer();
    assert_eq!(again.share_token, "", "a repetition shares nothing again");
    let second = share(&caller, &token, &list).await;
    assert_ne!(first, second);
    look(&caller, by_token(&first))
        .await
        .refused(Code::NotFound, "WISHLIST_NOT_FOUND");
    look_by(&caller, &second).await;
    // What is stored would not open the list.
    let secret = *WishlistToken::parse(&second).unwrap().secret();
    let mut db = stack.database.connect().await;
    for statement in [
        "select share_hash || share_salt || title || content from session.wishlists",
        "select answer from session.requests",
    ] {
        for row in sqlx::query(statement).fetch_all(&mut db).await.unwrap() {
            let stored: Option<Vec<u8>> = row.get(0);
            let stored = stored.unwrap_or_default();
            assert!(!stored.windows(32).any(|window| window == secret));
            assert!(!String::from_utf8_lossy(&stored).contains("tdw_"));
        }
    }
}

#[tokio::test]
async fn whatever_is_no_lists_token_shows_no_list() {
    let (stack, caller, token) = start().await;
    let (list, share_token) = shared_list(&caller, &token).await;
    let nobodys = WishlistToken::new(ShopperId::new(at(START), [1; 10]), [2; 32]).expose();
    let unknown = look(&caller, by_token(&nobodys))
        .await
        .refused(Code::NotFound, "WISHLIST_NOT_FOUND");
    let owned: ShopperId = list.shopper_id.parse().unwrap();
    let secret = *WishlistToken::parse(&share_token).unwrap().secret();
    let mut forged = vec![
        token.clone(),
        share_token.replace("tdw_", "tds_"),
        share_token.replace("tdw_", "tde_"),
        share_token[..74].to_owned(),
        format!("{share_token} "),
        String::new(),
        "\u{0}".repeat(75),
        // The right secret for another shopper, the right shopper with another secret, and other kinds made of both.
        WishlistToken::new(ShopperId::new(at(START), [1; 10]), secret).expose(),
        WishlistToken::new(owned, [0; 32]).expose(),
        SessionToken::new(SessionId::from_uuid(owned.uuid()), secret).expose(),
    ];
    for i in 0..share_token.len() {
        let mut bytes = share_token.clone().into_bytes();
        bytes[i] ^= 1 << (i % 7);
        forged.push(String::from_utf8(bytes).unwrap());
    }
    for bad in forged {
        let status = look(&caller, by_token(&bad))
            .await
            .refused(Code::NotFound, "WISHLIST_NOT_FOUND");
        assert_eq!(status.message(), unknown.message(), "{bad:?}");
        let noted = caller
            .shoppers()
            .note_wishlist_interest(interest(&bad, &token, "lamp", 1))
            .await;
        noted.refused(Code::NotFound, "WISHLIST_NOT_FOUND");
    }
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..workload("storefront") });
    look(&acme, by_token(&share_token))
        .await
        .refused(Code::NotFound, "WISHLIST_NOT_FOUND");
    // Nor is it good for anything else.
    let cart = pb::GetCartRequest {
        owner: Some(owner(&share_token)),
        currency_code: "EUR".to_owned(),
        ..Default::default()
    };
    caller
        .carts()
        .get_cart(cart)
        .await
        .refused(Code::FailedPrecondition, "SESSION_UNKNOWN");
    get_cart(&caller, &token).await;
    assert_eq!(look_by(&caller, &share_token).await.items[0].open_quantity, 2);
}

#[tokio::test]
async fn two_guests_do_not_buy_the_same() {
    let (_stack, caller, token) = start().await;
    let (list, share_token) = shared_list(&caller, &token).await;
    let mut events = Watch::open(caller.session_events()).await;
    let guests: Vec<String> = join_all((0..6).map(|_| create_session(&caller)))
        .await
        .into_iter()
        .map(|(_, token)| token)
        .collect();
    // Two lamps, six guests who want one at the same time.
    let noted = join_all(guests.iter().map(|guest| async {
        caller
            .shoppers()
            .note_wishlist_interest(interest(&share_token, guest, "lamp", 1))
            .await
    }))
    .await;
    let (won, beaten): (Vec<_>, Vec<_>) =
        noted.into_iter().zip(&guests).partition(|(noted, _)| noted.is_ok());
    assert_eq!((won.len(), beaten.len()), (2, 4));
    for (noted, _) in beaten {
        let status = noted.refused(Code::FailedPrecondition, "WISHLIST_ITEM_TAKEN");
        assert_eq!(status.get_details_error_info().unwrap().metadata["open_quantity"], "0");
    }
    let event = events.next_of("wishlist.interest_noted").await;
    let told = format!("{:?}", event.data);
    assert!(event.subject == list.wishlist_id && told.contains("lamp") && !told.contains("guest"), "{told}");
    let winner = won[0].1;
    let mine = won[0].0.as_ref().unwrap().get_ref().wishlist.clone().unwrap();
    assert_eq!(mine.items[0].own_quantity, 1);
    // One thinks better of it, and another may.
    let back = caller
        .shoppers()
        .note_wishlist_interest(interest(&share_token, winner, "lamp", 0))
        .await;
    assert_eq!(back.answer().wishlist.unwrap().items[0].open_quantity, 1);
    let late = create_session(&caller).await.1;
    caller
        .shoppers()
        .note_wishlist_interest(interest(&share_token, &late, "lamp", 1))
        .await
        .answer();
    assert_eq!(get_wishlist(&caller, &token, &list).await.items[0].noted_quantity, 2);
}

#[tokio::test]
async fn an_owner_may_choose_not_to_know_who_buys() {
    let (_stack, caller, token) = start().await;
    let (list, share_token) = shared_list(&caller, &token).await;
    let (_, guest) = create_session(&caller).await;
    let noting = pb::NoteWishlistInterestRequest {
        guest_name: "Uncle Bob".to_owned(),
        ..interest(&share_token, &guest, "lamp", 1)
    };
    caller.shoppers().note_wishlist_interest(noting).await.answer();
    let seen = get_wishlist(&caller, &token, &list).await;
    assert_eq!(seen.items[0].guests[0].guest_name, "Uncle Bob");
    let hide = pb::UpdateWishlistRequest {
        owner: Some(owner(&token)),
        wishlist_id: list.wishlist_id.clone(),
        hide_guests: Some(true),
        ..Default::default()
    };
    let hidden = caller.shoppers().update_wishlist(hide).await.answer().wishlist.unwrap();
    assert_eq!((hidden.items[0].guests.len(), hidden.items[0].noted_quantity), (0, 1));
    assert_eq!(hidden.name, "Birthday", "what is not given stays");
    assert_eq!(hidden.update_time, seen.update_time, "the clock stands still");
}

#[tokio::test]
async fn a_guest_is_known_again_after_logging_in() {
    let (_stack, caller, token) = start().await;
    let (_, share_token) = shared_list(&caller, &token).await;
    // The guest has an account, so that the login makes them another shopper.
    let (_, elsewhere) = create_session(&caller).await;
    authenticate(&caller, &elsewhere, identity("bob", 1)).await;
    let (_, guest) = create_session(&caller).await;
    caller
        .shoppers()
        .note_wishlist_interest(interest(&share_token, &guest, "lamp", 2))
        .await
        .answer();
    let (_, guest) = authenticate(&caller, &guest, identity("bob", 1)).await;
    let request =
        pb::GetSharedWishlistRequest { share: Some(by_token(&share_token)), guest: Some(owner(&guest)) };
    let seen = caller.shoppers().get_shared_wishlist(request).await.answer().wishlist.unwrap();
    assert_eq!((seen.items[0].own_quantity, seen.items[0].open_quantity), (2, 0));
    let fewer = caller
        .shoppers()
        .note_wishlist_interest(interest(&share_token, &guest, "lamp", 1))
        .await;
    assert_eq!(fewer.answer().wishlist.unwrap().items[0].open_quantity, 1);
}

#[tokio::test]
async fn bad_interest_is_refused_with_its_field_named() {
    let (_stack, caller, token) = start().await;
    let (_, share_token) = shared_list(&caller, &token).await;
    let (_, guest) = create_session(&caller).await;
    let plain = || interest(&share_token, &guest, "lamp", 1);
    let named =
        |guest_name: &str| pb::NoteWishlistInterestRequest { guest_name: guest_name.to_owned(), ..plain() };
    let table = [
        ("share", pb::NoteWishlistInterestRequest { share: None, ..plain() }),
        ("owner", pb::NoteWishlistInterestRequest { guest: None, ..plain() }),
        ("sku", interest(&share_token, &guest, "", 1)),
        ("quantity", interest(&share_token, &guest, "lamp", -1)),
        ("quantity", interest(&share_token, &guest, "lamp", 1_000_001)),
        ("guest_name", named("a\nb")),
        ("guest_name", named(&"x".repeat(81))),
        ("guest_name", named("Bob 4111111111111111")),
    ];
    for (field, request) in table {
        let status = caller.shoppers().note_wishlist_interest(request).await;
        let status = status.refused(Code::InvalidArgument, "FIELD_INVALID");
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, field);
    }
    let missing = caller
        .shoppers()
        .note_wishlist_interest(interest(&share_token, &guest, "rug", 1))
        .await;
    missing.refused(Code::NotFound, "WISHLIST_ITEM_NOT_FOUND");
    // A request id of one list is not good for another.
    let other = create_wishlist(&caller, &token, "Other").await;
    add_item(&caller, &token, &other, "lamp").await;
    let other = share(&caller, &token, &other).await;
    let request_id = Uuid::from_u128(1).to_string();
    let once = pb::NoteWishlistInterestRequest { request_id: request_id.clone(), ..plain() };
    let first = caller.shoppers().note_wishlist_interest(once.clone()).await.answer();
    assert_eq!(caller.shoppers().note_wishlist_interest(once).await.answer(), first);
    let reused = pb::NoteWishlistInterestRequest { request_id, ..interest(&other, &guest, "lamp", 1) };
    let status = caller.shoppers().note_wishlist_interest(reused).await.unwrap_err();
    assert_eq!(reason_of(&status), "REQUEST_ID_REUSED");
}

#[tokio::test]
async fn a_leaked_token_of_a_list_makes_the_list_private() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    let (_, token) = create_session(&caller).await;
    let (list, share_token) = shared_list(&caller, &token).await;
    let report = || pb::ReportLeakedTokenRequest { token: share_token.clone(), ..Default::default() };
    let outcome = caller.sessions().report_leaked_token(report()).await.answer().outcome();
    assert_eq!(outcome, pb::LeakOutcome::Ended);
    look(&caller, by_token(&share_token))
        .await
        .refused(Code::NotFound, "WISHLIST_NOT_FOUND");
    let now = get_wishlist(&caller, &token, &list).await;
    assert_eq!((now.visibility(), now.items.len()), (pb::WishlistVisibility::Private, 1));
    let again = caller.sessions().report_leaked_token(report()).await.answer().outcome();
    assert_eq!(again, pb::LeakOutcome::NotLive);
}
