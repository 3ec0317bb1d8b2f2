//! How long what shoppers have is kept: a subject's for good, others' after the last change, and what a login emptied after
//! the login.

use chrono::TimeDelta;
use futures_util::future::join;
use serde_json::json;
use shared::id::ShopperId;
use shared::pb::session as pb;
use tonic::Code;

use crate::browsing::{look_at, looked, start, told, visitor, wait};
use crate::harness::carts::{DAY, MINUTE};
use crate::harness::shop::{create_session, owner};
use crate::harness::trust::{authenticate, identity, log_in};
use crate::harness::{Answer as _, Stack, eventually};
use crate::preferences::{consenting, get_preferences, set_locale};
use crate::wishlist::{add_item, create_wishlist, list_wishlists, shopper};
use crate::wishlist_share::{look_by, share};

const SECOND: TimeDelta = TimeDelta::seconds(1);

async fn exists(stack: &Stack, shopper_id: &str) -> bool {
    let id: ShopperId = shopper_id.parse().unwrap();
    sqlx::query_scalar("select exists (select from session.shoppers where shopper_id = $1)")
        .bind(id)
        .fetch_one(&mut stack.database.connect().await)
        .await
        .unwrap()
}

#[tokio::test]
async fn an_anonymous_shopper_goes_90_days_after_the_last_change_with_all_they_had() {
    let (stack, caller) = start().await;
    let (id, token) = visitor(&caller).await;
    set_locale(&caller, owner(&token), "de").await;
    look_at(&caller, &token, "lamp").await;
    let wishes = create_wishlist(&caller, &token, "Birthday").await;
    let (untouched, _) = visitor(&caller).await;
    wait(&stack, MINUTE * 10).await;
    add_item(&caller, &token, &wishes, "lamp").await;
    wait(&stack, DAY * 90 - MINUTE * 10 - SECOND).await;
    // Reading is no activity.
    assert_eq!(list_wishlists(&caller, shopper(&untouched)).await.len(), 0);
    get_preferences(&caller, shopper(&untouched)).await;
    assert!(exists(&stack, &untouched).await);
    wait(&stack, SECOND).await;
    assert!(!exists(&stack, &untouched).await);
    assert_eq!(list_wishlists(&caller, shopper(&id)).await.len(), 1, "an article was added later");
    wait(&stack, MINUTE * 10).await;
    assert!(!exists(&stack, &id).await);
    assert_eq!(stack.database.count("select count(*) from session.wishlists").await, 0);
    let (kind, data) = told(&stack, &id).await.pop().unwrap();
    assert_eq!((kind.as_str(), data), ("shopper.expired", json!({"reason": "INACTIVE"})));
    // Whoever comes back begins anew, also by consent.
    let gone = get_preferences(&caller, shopper(&id)).await;
    assert_eq!((gone.preferences.unwrap().locale.as_str(), gone.consents.len()), ("", 0));
    set_locale(&caller, shopper(&id), "fr").await;
    assert!(exists(&stack, &id).await);
}

#[tokio::test]
async fn what_a_subject_has_stays() {
    let (stack, caller) = start().await;
    let (id, token) = visitor(&caller).await;
    create_wishlist(&caller, &token, "Birthday").await;
    // Nothing but the login tells that this one is a subject's: it is not changed after that.
    let (_, token) = visitor(&caller).await;
    create_wishlist(&caller, &token, "Christmas").await;
    let (session, _) = authenticate(&caller, &token, identity("lena", 1)).await;
    wait(&stack, DAY * 200).await;
    assert!(!exists(&stack, &id).await);
    assert!(exists(&stack, &session.shopper_id).await);
    assert_eq!(list_wishlists(&caller, shopper(&session.shopper_id)).await.len(), 1);
}

#[tokio::test]
async fn what_a_login_emptied_goes_after_30_days_unless_tokens_name_it() {
    let (stack, caller) = start().await;
    let hers = log_in(&caller, "lena").await.0.shopper_id;
    let (plain, token) = visitor(&caller).await;
    authenticate(&caller, &token, identity("lena", 1)).await;
    wait(&stack, DAY * 30 - SECOND).await;
    assert!(exists(&stack, &plain).await);
    caller
        .shoppers()
        .update_consent(consenting(shopper(&plain), pb::ConsentPurpose::Marketing, true))
        .await
        .refused(Code::FailedPrecondition, "SHOPPER_MERGED");
    wait(&stack, SECOND).await;
    assert!(!exists(&stack, &plain).await);
    let (kind, data) = told(&stack, &plain).await.pop().unwrap();
    assert_eq!((kind.as_str(), data), ("shopper.expired", json!({"reason": "MERGED"})));
    // A list that is shown goes on being shown by the token that was handed out before the login.
    let (named, token) = visitor(&caller).await;
    let wishes = create_wishlist(&caller, &token, "Birthday").await;
    let share_token = share(&caller, &token, &wishes).await;
    authenticate(&caller, &token, identity("lena", 1)).await;
    wait(&stack, DAY * 100).await;
    assert!(exists(&stack, &named).await);
    look_by(&caller, &share_token).await;
    let unshare = pb::UnshareWishlistRequest {
        owner: Some(shopper(&hers)),
        wishlist_id: wishes.wishlist_id.clone(),
        request_id: String::new(),
    };
    caller.shoppers().unshare_wishlist(unshare).await.answer();
    wait(&stack, DAY * 31).await;
    assert!(!exists(&stack, &named).await);
}

/// As rows are that an earlier binary made: due at once, and of no known activity, which is counted from the first look.
#[tokio::test]
async fn rows_of_an_earlier_binary_are_kept_from_when_they_are_first_seen() {
    let (stack, caller) = start().await;
    let (id, _) = visitor(&caller).await;
    stack.advance(DAY * 89);
    let before = "update session.shoppers set due_at = default, active_at = null";
    sqlx::query(before).execute(&mut stack.database.connect().await).await.unwrap();
    looked(&stack).await;
    wait(&stack, DAY * 90 - SECOND).await;
    assert!(exists(&stack, &id).await);
    wait(&stack, SECOND).await;
    assert!(!exists(&stack, &id).await);
}

/// A change that is under way when the row is due keeps it.
#[tokio::test]
async fn a_login_under_way_keeps_what_it_is_about_to_own() {
    let (stack, caller) = start().await;
    let (id, _) = visitor(&caller).await;
    wait(&stack, DAY * 89).await;
    let (session, token) = create_session(&caller).await;
    let mine: ShopperId = id.parse().unwrap();
    let theirs: ShopperId = session.shopper_id.parse().unwrap();
    // The session is the old shopper's, as that of a browser is that only read for so long.
    sqlx::query("update session.sessions set shopper_id = $1 where shopper_id = $2")
        .bind(mine)
        .bind(theirs)
        .execute(&mut stack.database.connect().await)
        .await
        .unwrap();
    let slow = "create function public.slow() returns trigger language plpgsql as $$
            begin
                if new.shopper_id is not null then perform pg_sleep(1.5); end if;
                return new;
            end $$;
        create trigger slow before update on session.subjects for each row execute function public.slow()";
    sqlx::raw_sql(slow).execute(&mut stack.database.connect().await).await.unwrap();
    let due_midway = async {
        eventually("that the login is midway", async || {
            let sleeping = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'
                and datname = current_database()";
            (stack.database.count(sleeping).await == 1).then_some(())
        })
        .await;
        stack.advance(DAY);
    };
    join(authenticate(&caller, &token, identity("lena", 1)), due_midway).await;
    looked(&stack).await;
    assert!(exists(&stack, &id).await);
}
