//! Logging in with more than a cart: wishlists, preferences, consent and history come along, once, and whatever was
//! changed meanwhile with them.

use chrono::TimeDelta;
use futures_util::future::join_all;
use shared::pb::session as pb;
use shared::pb::session::{HistoryOutcome, MergeStrategy};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::harness::shop::{create_session, get_cart, line, owner};
use crate::harness::trust::{authentication, identity, log_in};
use crate::harness::{Answer as _, Caller, Watch, reason_of};
use crate::history::{append, list, refs, view};
use crate::preferences::{consent, get_preferences, set_locale, setting};
use crate::shopper_context::context_of;
use crate::wishlist::{
    add_item, create_wishlist, creation, get_wishlist, item, list_wishlists, shopper, skus, start,
};
use crate::wishlist_share::{look_by, share};

async fn enter(caller: &Caller, token: &str, strategy: MergeStrategy) -> pb::AuthenticateSessionResponse {
    let request = pb::AuthenticateSessionRequest {
        merge_strategy: strategy.into(),
        ..authentication(token, identity("ann", 1))
    };
    caller.sessions().authenticate_session(request).await.answer()
}

/// Ann's phone, which makes her a shopper, and her laptop, which nobody has logged in on yet: their tokens.
async fn two_devices(caller: &Caller) -> (String, String) {
    let (_, phone) = log_in(caller, "ann").await;
    let (_, laptop) = create_session(caller).await;
    (phone, laptop)
}

#[tokio::test]
async fn what_an_anonymous_shopper_has_is_the_accounts_after_login() {
    let (_stack, caller, _) = start().await;
    let (phone, laptop) = two_devices(&caller).await;
    consent(&caller, owner(&laptop), true).await;
    append(&caller, owner(&laptop), vec![view("lamp")]).await;
    set_locale(&caller, owner(&laptop), "de").await;
    let wishes = create_wishlist(&caller, &laptop, "Birthday").await;
    let wishes = add_item(&caller, &laptop, &wishes, "lamp").await;
    let mut events = Watch::open(caller.session_events()).await;
    let done = enter(&caller, &laptop, MergeStrategy::SumCapped).await;
    let merge = done.shopper_merge.unwrap();
    let session = done.session.unwrap();
    assert_eq!(
        (&merge.source_shopper_id, &merge.target_shopper_id),
        (&wishes.shopper_id, &session.shopper_id)
    );
    let moved = pb::WishlistMerge {
        source_wishlist_id: wishes.wishlist_id.clone(),
        target_wishlist_id: wishes.wishlist_id.clone(),
        left_out_items: 0,
    };
    assert_eq!(merge.wishlists, [moved]);
    // Both devices see it with their next call.
    for token in [&phone, &done.session_token] {
        let found = context_of(&caller, owner(token)).await;
        assert_eq!(
            found.wishlists,
            [pb::Wishlist { shopper_id: session.shopper_id.clone(), ..wishes.clone() }]
        );
        assert_eq!((&*found.preferences.unwrap().locale, refs(&found.history)), ("de", vec!["lamp"]));
        assert!(found.consents[0].granted);
    }
    for (kind, subject) in [
        ("wishlist.merged", &wishes.wishlist_id),
        ("preferences.changed", &session.shopper_id),
        ("consent.changed", &session.shopper_id),
        ("shopper.merged", &wishes.shopper_id),
    ] {
        assert_eq!(&events.next_of(kind).await.subject, subject, "{kind}");
    }
    // The anonymous shopper is nobody's any more.
    let by_id = shopper(&wishes.shopper_id);
    assert_eq!(list_wishlists(&caller, by_id.clone()).await, []);
    assert_eq!(list(&caller, by_id.clone()).await, []);
    let request = pb::CreateWishlistRequest { owner: Some(by_id), ..creation("", "late") };
    let status = caller.shoppers().create_wishlist(request).await;
    status.refused(Code::FailedPrecondition, "SHOPPER_MERGED");
}

#[tokio::test]
async fn private_lists_of_one_name_are_united_and_the_newest_note_wins() {
    let (stack, caller, _) = start().await;
    let (phone, laptop) = two_devices(&caller).await;
    let mine = create_wishlist(&caller, &phone, "Birthday").await;
    let theirs = create_wishlist(&caller, &laptop, "Birthday").await;
    let noted = |token: &str, list, sku: &str, note: &str| pb::AddWishlistItemRequest {
        note: note.to_owned(),
        ..item(token, list, sku)
    };
    let mut shoppers = caller.shoppers();
    shoppers.add_wishlist_item(noted(&phone, &mine, "lamp", "old")).await.answer();
    shoppers.add_wishlist_item(noted(&laptop, &theirs, "rug", "old")).await.answer();
    stack.advance(TimeDelta::seconds(1));
    shoppers
        .add_wishlist_item(noted(&laptop, &theirs, "lamp", "new"))
        .await
        .answer();
    shoppers.add_wishlist_item(noted(&phone, &mine, "rug", "new")).await.answer();
    add_item(&caller, &laptop, &theirs, "vase").await;
    let request_id = Uuid::from_u128(1).to_string();
    let request =
        pb::AuthenticateSessionRequest { request_id, ..authentication(&laptop, identity("ann", 1)) };
    let first = caller.sessions().authenticate_session(request.clone()).await.answer();
    assert_eq!(first.shopper_merge.as_ref().unwrap().wishlists[0].target_wishlist_id, mine.wishlist_id);
    let united = get_wishlist(&caller, &phone, &mine).await;
    let said: Vec<_> = united.items.iter().map(|item| (&*item.sku, &*item.note)).collect();
    assert_eq!(said, [("lamp", "new"), ("rug", "new"), ("vase", "")]);
    // Repeated, the login answers alike and changes nothing.
    let again = caller.sessions().authenticate_session(request).await.answer();
    assert_eq!(
        (again.shopper_merge, again.session_token),
        (first.shopper_merge, first.session_token.clone())
    );
    assert_eq!(list_wishlists(&caller, owner(&first.session_token)).await.len(), 1);
    assert_eq!(get_wishlist(&caller, &phone, &mine).await, united);
}

#[tokio::test]
async fn a_shared_list_stays_apart_and_its_token_good() {
    let (_stack, caller, _) = start().await;
    let (phone, laptop) = two_devices(&caller).await;
    let mine = create_wishlist(&caller, &phone, "Birthday").await;
    add_item(&caller, &phone, &mine, "secret").await;
    let theirs = create_wishlist(&caller, &laptop, "Birthday").await;
    add_item(&caller, &laptop, &theirs, "lamp").await;
    let share_token = share(&caller, &laptop, &theirs).await;
    let before = look_by(&caller, &share_token).await;
    let done = enter(&caller, &laptop, MergeStrategy::SumCapped).await;
    assert_eq!(look_by(&caller, &share_token).await, before, "what is shown is no more than before");
    assert_eq!(list_wishlists(&caller, owner(&phone)).await.len(), 2);
    // The token names whoever the list was of; both its texts open it.
    let now = share(&caller, &done.session_token, &theirs).await;
    assert_ne!(now, share_token);
    assert_eq!(look_by(&caller, &now).await, before);
    assert_eq!(look_by(&caller, &share_token).await, before);
}

#[tokio::test]
async fn of_too_much_nothing_is_lost() {
    let (stack, caller, _) = start().await;
    let (phone, laptop) = two_devices(&caller).await;
    let mine = create_wishlist(&caller, &phone, "0").await;
    for n in 0..199 {
        add_item(&caller, &phone, &mine, &n.to_string()).await;
    }
    for n in 1..49 {
        create_wishlist(&caller, &phone, &n.to_string()).await;
    }
    let full = create_wishlist(&caller, &laptop, "0").await;
    for sku in ["7", "a", "b"] {
        add_item(&caller, &laptop, &full, sku).await;
    }
    // Lists are brought oldest first.
    stack.advance(TimeDelta::milliseconds(1));
    let fits = create_wishlist(&caller, &laptop, "fits").await;
    stack.advance(TimeDelta::milliseconds(1));
    let late = create_wishlist(&caller, &laptop, "late").await;
    let done = enter(&caller, &laptop, MergeStrategy::SumCapped).await;
    let merges: Vec<_> = done.shopper_merge.unwrap().wishlists;
    let told: Vec<_> = merges
        .iter()
        .map(|merge| (&*merge.target_wishlist_id, merge.left_out_items))
        .collect();
    assert_eq!(told, [(&*mine.wishlist_id, 1), (&*fits.wishlist_id, 0), ("", 0)]);
    assert_eq!(get_wishlist(&caller, &phone, &mine).await.items.len(), 200);
    assert_eq!(list_wishlists(&caller, owner(&phone)).await.len(), 50);
    let left = context_of(&caller, shopper(&full.shopper_id)).await.wishlists;
    let left: Vec<_> = left.iter().map(|list| (&*list.wishlist_id, skus(list))).collect();
    assert_eq!(left, [(&*full.wishlist_id, vec!["b"]), (&*late.wishlist_id, vec![])]);
}

#[tokio::test]
async fn the_account_wins_but_over_what_was_set_in_this_session() {
    let (stack, caller, _) = start().await;
    let (phone, laptop) = two_devices(&caller).await;
    let set = |owner, locale: &str, zone: &str, store: &str| {
        let given = pb::Preferences {
            locale: locale.to_owned(),
            time_zone: zone.to_owned(),
            store_id: store.to_owned(),
            ..Default::default()
        };
        let fields = [("locale", locale), ("time_zone", zone), ("store_id", store)];
        let fields: Vec<_> = fields
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(field, _)| *field)
            .collect();
        caller_set(&caller, setting(owner, given, &fields))
    };
    set(owner(&phone), "de", "Europe/Zurich", "").await;
    stack.advance(TimeDelta::seconds(1));
    let guest = context_of(&caller, owner(&laptop)).await.shopper_id;
    // By id, a program guesses; in the session, the shopper says.
    set(shopper(&guest), "", "Europe/Paris", "paris-1").await;
    set(owner(&laptop), "fr", "", "").await;
    let done = enter(&caller, &laptop, MergeStrategy::SumCapped).await;
    let now = get_preferences(&caller, owner(&done.session_token)).await.preferences.unwrap();
    assert_eq!((&*now.locale, &*now.time_zone, &*now.store_id), ("fr", "Europe/Zurich", "paris-1"));
}

async fn caller_set(caller: &Caller, request: pb::UpdatePreferencesRequest) {
    caller.shoppers().update_preferences(request).await.answer();
}

#[tokio::test]
async fn the_latest_decision_stands_and_history_with_it() {
    // What was decided on the phone, then on the laptop before it logs in; whether history is kept, and of which devices.
    let table = [
        (Some(true), Some(true), vec!["laptop", "phone"]),
        (Some(true), None, vec!["phone"]),
        (None, Some(true), vec!["laptop"]),
        (Some(false), Some(true), vec!["laptop"]),
        (Some(true), Some(false), vec![]),
        (None, None, vec![]),
    ];
    for (on_phone, on_laptop, expected) in table {
        let (stack, caller, _) = start().await;
        let (phone, laptop) = two_devices(&caller).await;
        for (token, granted, reference) in [(&phone, on_phone, "phone"), (&laptop, on_laptop, "laptop")] {
            stack.advance(TimeDelta::seconds(1));
            if let Some(granted) = granted {
                consent(&caller, owner(token), granted).await;
                let outcome = append(&caller, owner(token), vec![view(reference)]).await;
                assert_eq!(outcome == HistoryOutcome::Kept, granted);
            }
        }
        enter(&caller, &laptop, MergeStrategy::SumCapped).await;
        let kept = list(&caller, owner(&phone)).await;
        assert_eq!(refs(&kept), expected, "{on_phone:?} {on_laptop:?}");
    }
    // Withdrawn on the phone after it was given on the laptop.
    let (stack, caller, _) = start().await;
    let (phone, laptop) = two_devices(&caller).await;
    consent(&caller, owner(&laptop), true).await;
    append(&caller, owner(&laptop), vec![view("laptop")]).await;
    stack.advance(TimeDelta::seconds(1));
    consent(&caller, owner(&phone), false).await;
    let done = enter(&caller, &laptop, MergeStrategy::SumCapped).await;
    assert_eq!(list(&caller, owner(&done.session_token)).await, []);
    assert!(!get_preferences(&caller, owner(&phone)).await.consents[0].granted);
}

#[tokio::test]
async fn with_strategy_none_all_of_it_stays_apart() {
    let (_stack, caller, _) = start().await;
    let (phone, laptop) = two_devices(&caller).await;
    let wishes = create_wishlist(&caller, &laptop, "Birthday").await;
    set_locale(&caller, owner(&laptop), "de").await;
    let done = enter(&caller, &laptop, MergeStrategy::None).await;
    assert_eq!(done.shopper_merge, None);
    for token in [&phone, &done.session_token] {
        let found = context_of(&caller, owner(token)).await;
        assert_eq!((found.wishlists.len(), &*found.preferences.unwrap().locale), (0, ""));
    }
    assert_eq!(list_wishlists(&caller, shopper(&wishes.shopper_id)).await.len(), 1);
}

#[tokio::test]
async fn the_first_login_keeps_the_shopper_and_has_nothing_to_bring() {
    let (_stack, caller, token) = start().await;
    let wishes = create_wishlist(&caller, &token, "Birthday").await;
    let done = enter(&caller, &token, MergeStrategy::SumCapped).await;
    assert_eq!((done.shopper_merge, done.session.unwrap().shopper_id), (None, wishes.shopper_id.clone()));
    assert_eq!(get_wishlist(&caller, &done.session_token, &wishes).await, wishes);
    // Nor has one who only has a cart.
    let (_, laptop) = create_session(&caller).await;
    caller.carts().add_cart_line(line(&laptop, "lamp", 1)).await.answer();
    let done = enter(&caller, &laptop, MergeStrategy::SumCapped).await;
    assert_eq!(done.shopper_merge, None);
    assert_eq!(get_cart(&caller, &done.session_token).await.lines.len(), 1);
}

/// Changes sent with the anonymous token while it logs in: whatever was acknowledged is on the account, and the rest was
/// told to try again.
#[tokio::test]
async fn nothing_that_was_acknowledged_while_logging_in_is_lost() {
    for round in 0..6 {
        let (_stack, caller, _) = start().await;
        let (phone, laptop) = two_devices(&caller).await;
        // In every other round the anonymous shopper has nothing yet, so that the changes make it a shopper with more.
        let list =
            if round % 2 == 0 { Some(create_wishlist(&caller, &laptop, "Birthday").await) } else { None };
        let changes = join_all((0..8).map(|n| {
            let (caller, laptop, list) = (&caller, &laptop, &list);
            async move {
                let name = format!("{n}");
                let done: Result<(), Status> = match list {
                    Some(list) => {
                        caller.shoppers().add_wishlist_item(item(laptop, list, &name)).await.map(drop)
                    }
                    None => caller.shoppers().create_wishlist(creation(laptop, &name)).await.map(drop),
                };
                (name, done)
            }
        }));
        let login = async {
            loop {
                let request = authentication(&laptop, identity("ann", 1));
                match caller.sessions().authenticate_session(request).await {
                    Ok(done) => return done.into_inner(),
                    Err(status) => assert_eq!(reason_of(&status), "CONCURRENT_CHANGE"),
                }
            }
        };
        let (changes, _) = tokio::join!(changes, login);
        let found = context_of(&caller, owner(&phone)).await;
        for (name, done) in changes {
            let is_there = match &list {
                Some(_) => found.wishlists.iter().any(|list| skus(list).contains(&&*name)),
                None => found.wishlists.iter().any(|list| list.name == name),
            };
            match done {
                Ok(()) => assert!(is_there, "round {round}: {name} was acknowledged"),
                Err(status) => {
                    let reason = reason_of(&status);
                    let expected = ["CONCURRENT_CHANGE", "SESSION_TOKEN_SUPERSEDED"];
                    assert!(expected.contains(&&*reason) && !is_there, "round {round}: {reason}");
                }
            }
        }
    }
}
