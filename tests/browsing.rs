//! Shoppers who look at articles and take none: when they count as gone, what is told, and what brings them back.

use chrono::TimeDelta;
use futures_util::future::join_all;
use serde_json::{Value, json};
use shared::pb::session as pb;

use crate::abandonment::set_contact;
use crate::harness::carts::{DAY, HOUR, MINUTE, cart_policy, kinds, pass, reachable};
use crate::harness::shop::{
    add_line, begin_checkout, complete_checkout, create_session, create_touchpoint, line, owner, seconds, web,
};
use crate::harness::trust::{authenticate, identity, log_in};
use crate::harness::{Answer as _, Caller, Options, Stack, eventually, workload};
use crate::history::{append, list, view};
use crate::preferences::{consent, consenting};
use crate::wishlist::shopper;

const SECOND: TimeDelta = TimeDelta::seconds(1);

/// Months pass in some tests, and what was told is looked at in the end.
fn year() -> Options {
    Options { event_retention: Some(TimeDelta::days(365)), ..Options::default() }
}

/// Sessions live for as long as a shopper may be away in these tests and come back.
pub(crate) async fn start() -> (Stack, Caller) {
    let stack = Stack::sessions_with(&year());
    let caller = stack.caller(&workload("storefront"));
    let patient = pb::SessionPolicy { idle_timeout: Some(seconds(86_400)), ..Default::default() };
    create_touchpoint(&caller, pb::Touchpoint { session_policy: Some(patient), ..web() }).await;
    (stack, caller)
}

/// Waits until no shopper is due by the present clock.
pub(crate) async fn looked(stack: &Stack) {
    let db = tokio::sync::Mutex::new(stack.database.connect().await);
    eventually("a look at the shoppers", || async {
        let due: i64 = sqlx::query_scalar("select count(*) from session.shoppers where due_at <= $1")
            .bind(stack.now())
            .fetch_one(&mut *db.lock().await)
            .await
            .unwrap();
        (due == 0).then_some(())
    })
    .await;
}

/// Moves the clock on, and waits until carts and shoppers were looked at.
pub(crate) async fn wait(stack: &Stack, by: TimeDelta) {
    pass(stack, by).await;
    looked(stack).await;
}

/// Somebody who lets their history be kept: their id, and their session's token.
pub(crate) async fn visitor(caller: &Caller) -> (String, String) {
    let (session, token) = create_session(caller).await;
    consent(caller, owner(&token), true).await;
    (session.shopper_id, token)
}

pub(crate) async fn look_at(caller: &Caller, token: &str, article: &str) {
    append(caller, owner(token), vec![view(article)]).await;
}

/// What was told of a shopper by time or by coming back, in order; its data beside.
pub(crate) async fn told(stack: &Stack, shopper_id: &str) -> Vec<(String, Value)> {
    let kinds = "select kind, data from session.events
        where subject = $1 and (kind like 'cart.%' or kind = 'shopper.expired')
        order by event_id";
    let mut db = stack.database.connect().await;
    let rows: Vec<(String, String)> =
        sqlx::query_as(kinds).bind(shopper_id).fetch_all(&mut db).await.unwrap();
    rows.into_iter()
        .map(|(kind, data)| (kind, serde_json::from_str(&data).unwrap()))
        .collect()
}

/// The same without the data, but for the epoch.
async fn epochs(stack: &Stack, shopper_id: &str) -> Vec<(String, i64)> {
    let told = told(stack, shopper_id).await.into_iter();
    told.map(|(kind, data)| (kind, data["epoch"].as_i64().unwrap_or_default()))
        .collect()
}

fn expected<const N: usize>(told: [(&str, i64); N]) -> Vec<(String, i64)> {
    told.map(|(kind, epoch)| (kind.to_owned(), epoch)).to_vec()
}

#[tokio::test]
async fn who_looks_and_leaves_is_abandoned_then_lost_and_each_is_told_once() {
    let (stack, caller) = start().await;
    let (id, token) = visitor(&caller).await;
    let marketing = consenting(owner(&token), pb::ConsentPurpose::Marketing, true);
    caller.shoppers().update_consent(marketing).await.answer();
    // Where they can be reached, the shop said of a cart that they emptied.
    let cart = add_line(&caller, &token, "rug", 1).await;
    set_contact(&caller, &token, reachable(false)).await;
    let remove = pb::RemoveCartLineRequest {
        owner: Some(owner(&token)),
        currency_code: "EUR".to_owned(),
        line_id: cart.lines[0].line_id.clone(),
        request_id: String::new(),
    };
    caller.carts().remove_cart_line(remove).await.answer();
    look_at(&caller, &token, "lamp").await;
    wait(&stack, MINUTE * 30).await;
    look_at(&caller, &token, "vase").await;
    wait(&stack, HOUR - SECOND).await;
    assert_eq!(epochs(&stack, &id).await, []);
    for _ in 0..3 {
        wait(&stack, SECOND).await;
    }
    let data = json!({
        "shopper_id": id,
        "touchpoint_group": "web",
        "kind": "BROWSE",
        "epoch": 1,
        "last_activity_time": "2027-01-15T08:30:00.000000Z",
        "channels": ["EMAIL"],
        "consent": {"granted": true, "policy_version": "2026-11"},
        "marketing_consent": true,
        "contactable": true,
    });
    assert_eq!(told(&stack, &id).await, [("cart.abandoned".to_owned(), data.clone())]);
    wait(&stack, DAY * 30 - HOUR - SECOND * 3).await;
    assert_eq!(told(&stack, &id).await.len(), 1);
    wait(&stack, SECOND).await;
    wait(&stack, DAY).await;
    assert_eq!(told(&stack, &id).await[1..], [("cart.lost".to_owned(), data)]);
}

#[tokio::test]
async fn looking_again_lowers_the_flag_in_the_same_transaction_and_opens_an_epoch() {
    let (stack, caller) = start().await;
    let (id, token) = visitor(&caller).await;
    look_at(&caller, &token, "lamp").await;
    wait(&stack, HOUR).await;
    // Searching is no looking at an article, and nor is what an app reports late of before.
    let searched = pb::HistoryEntry { kind: pb::HistoryKind::Search.into(), ..view("lamp") };
    let late = shared::time::to_proto(stack.now() - HOUR * 2);
    let late = pb::HistoryEntry { time: Some(late), ..view("rug") };
    append(&caller, owner(&token), vec![searched, late]).await;
    assert_eq!(epochs(&stack, &id).await, expected([("cart.abandoned", 1)]));
    look_at(&caller, &token, "vase").await;
    let both = [("cart.abandoned", 1), ("cart.recovered", 1)];
    assert_eq!(epochs(&stack, &id).await, expected(both), "no worker is waited for");
    let (_, recovered) = told(&stack, &id).await.pop().unwrap();
    assert_eq!(recovered["abandon_time"], "2027-01-15T09:00:00.000000Z");
    assert_eq!(recovered["last_activity_time"], "2027-01-15T08:00:00.000000Z");
    assert_eq!((&recovered["touchpoint_group"], &recovered["consent"]), (&json!("web"), &Value::Null));
    wait(&stack, HOUR - SECOND).await;
    assert_eq!(epochs(&stack, &id).await.len(), 2);
    wait(&stack, SECOND).await;
    assert_eq!(epochs(&stack, &id).await, expected([both[0], both[1], ("cart.abandoned", 2)]));
    // Given up for lost, they are recovered as well.
    wait(&stack, DAY * 30).await;
    append(&caller, shopper(&id), vec![view("lamp")]).await;
    let (kind, data) = told(&stack, &id).await.pop().unwrap();
    assert_eq!((kind.as_str(), &data["epoch"]), ("cart.recovered", &json!(2)));
    assert!(data["lost_time"].is_string());
}

#[tokio::test]
async fn who_fills_a_cart_or_orders_left_nothing_that_they_looked_at() {
    let (stack, caller) = start().await;
    let (filled, filling) = visitor(&caller).await;
    look_at(&caller, &filling, "lamp").await;
    let cart = add_line(&caller, &filling, "lamp", 1).await;
    let (ordered, ordering) = visitor(&caller).await;
    look_at(&caller, &ordering, "lamp").await;
    add_line(&caller, &ordering, "lamp", 1).await;
    begin_checkout(&caller, &ordering).await;
    complete_checkout(&caller, &ordering, "order-1").await;
    wait(&stack, HOUR).await;
    assert_eq!(kinds(&stack, &cart).await, ["cart.abandoned"]);
    // The cart is emptied, and is no more in the end: what was looked at before it is not left by that.
    wait(&stack, DAY * 31).await;
    assert_eq!((epochs(&stack, &filled).await, epochs(&stack, &ordered).await), (vec![], vec![]));
}

#[tokio::test]
async fn a_line_brings_a_shopper_back_and_one_saved_for_later_does_not() {
    let (stack, caller) = start().await;
    let (back, coming) = visitor(&caller).await;
    let (saver, saving) = visitor(&caller).await;
    for token in [&coming, &saving] {
        look_at(&caller, token, "lamp").await;
    }
    wait(&stack, HOUR).await;
    add_line(&caller, &coming, "lamp", 1).await;
    let cart = add_line(&caller, &saving, "lamp", 1).await;
    let later = pb::MoveCartLineRequest {
        owner: Some(owner(&saving)),
        currency_code: "EUR".to_owned(),
        line_id: cart.lines[0].line_id.clone(),
        saved_for_later: true,
        request_id: String::new(),
    };
    caller.carts().move_cart_line(later).await.answer();
    // The worker looks ten minutes after it raised the flag.
    wait(&stack, MINUTE * 10).await;
    assert_eq!(epochs(&stack, &back).await, expected([("cart.abandoned", 1), ("cart.recovered", 1)]));
    assert_eq!(epochs(&stack, &saver).await, expected([("cart.abandoned", 1)]));
    // Later the cart is abandoned, not what was looked at; after it, a new look begins a new epoch.
    wait(&stack, HOUR * 5).await;
    assert_eq!(epochs(&stack, &back).await.len(), 2);
    wait(&stack, DAY * 31).await;
    append(&caller, shopper(&back), vec![view("rug")]).await;
    wait(&stack, HOUR).await;
    assert_eq!(epochs(&stack, &back).await[2..], expected([("cart.abandoned", 2)]));
}

#[tokio::test]
async fn the_touchpoint_says_when_and_history_that_is_cleared_was_not_left() {
    let (stack, caller) = start().await;
    let quick = cart_policy(MINUTE * 10);
    let kiosk = pb::Touchpoint { touchpoint: "kiosk".to_owned(), cart_policy: Some(quick), ..web() };
    create_touchpoint(&caller, kiosk).await;
    let request = pb::CreateSessionRequest { touchpoint: "kiosk".to_owned(), ..Default::default() };
    let made = caller.sessions().create_session(request).await.answer();
    let (id, token) = (made.session.unwrap().shopper_id, made.session_token);
    consent(&caller, owner(&token), true).await;
    look_at(&caller, &token, "lamp").await;
    let (cleared, clearing) = visitor(&caller).await;
    look_at(&caller, &clearing, "lamp").await;
    wait(&stack, MINUTE * 10).await;
    assert_eq!(epochs(&stack, &id).await, expected([("cart.abandoned", 1)]));
    consent(&caller, owner(&token), false).await;
    let clear = pb::ClearHistoryRequest { owner: Some(owner(&clearing)), request_id: String::new() };
    caller.shoppers().clear_history(clear).await.answer();
    wait(&stack, DAY * 31).await;
    assert_eq!(epochs(&stack, &cleared).await, []);
    assert_eq!(epochs(&stack, &id).await.len(), 1, "history.cleared told that it ended");
    consent(&caller, shopper(&id), true).await;
    append(&caller, shopper(&id), vec![view("lamp")]).await;
    wait(&stack, MINUTE * 10).await;
    assert_eq!(epochs(&stack, &id).await[1..], expected([("cart.abandoned", 2)]));
}

#[tokio::test]
async fn who_logs_in_is_back_and_may_leave_again() {
    let (stack, caller) = start().await;
    let hers = log_in(&caller, "lena").await.0.shopper_id;
    let (guest, token) = visitor(&caller).await;
    look_at(&caller, &token, "lamp").await;
    wait(&stack, HOUR).await;
    let (_, token) = authenticate(&caller, &token, identity("lena", 1)).await;
    assert_eq!(epochs(&stack, &guest).await, expected([("cart.abandoned", 1), ("cart.recovered", 1)]));
    assert_eq!(list(&caller, owner(&token)).await.len(), 1);
    wait(&stack, HOUR - SECOND).await;
    assert_eq!(epochs(&stack, &hers).await, []);
    wait(&stack, SECOND).await;
    assert_eq!(epochs(&stack, &hers).await, expected([("cart.abandoned", 1)]));
    assert_eq!(epochs(&stack, &guest).await.len(), 2);
}

/// Writing events takes a while, so that the passes meet.
#[tokio::test]
async fn two_replicas_that_look_at_the_same_time_tell_once() {
    const VISITORS: usize = 150;
    let (mut stack, caller) = start().await;
    let visitors = join_all((0..VISITORS).map(|_| visitor(&caller))).await;
    join_all(visitors.iter().map(|(_, token)| look_at(&caller, token, "lamp"))).await;
    stack.stop_session().await;
    let slow = "create function public.slow() returns trigger language plpgsql as $$
            begin perform pg_sleep(0.05); return null; end $$;
        create trigger slow after insert on session.events for each statement execute function public.slow()";
    sqlx::raw_sql(slow).execute(&mut stack.database.connect().await).await.unwrap();
    for by in [HOUR, DAY * 30] {
        stack.advance(by);
        let replicas = [stack.session_svc(&year()), stack.session_svc(&year())];
        looked(&stack).await;
        // The one that is dropped first stops midway.
        drop(replicas);
    }
    let counts = "select kind, count(*), count(distinct subject) from session.events
        where kind in ('cart.abandoned', 'cart.lost') group by 1 order by 1";
    let counts: Vec<(String, i64, i64)> = sqlx::query_as(counts)
        .fetch_all(&mut stack.database.connect().await)
        .await
        .unwrap();
    let each = i64::try_from(VISITORS).unwrap();
    assert_eq!(counts, [("cart.abandoned".to_owned(), each, each), ("cart.lost".to_owned(), each, each)]);
}

#[tokio::test]
async fn one_currency_or_another_a_line_is_a_line() {
    let (stack, caller) = start().await;
    let (id, token) = visitor(&caller).await;
    look_at(&caller, &token, "lamp").await;
    let mut dollars = line(&token, "rug", 1);
    dollars.unit_price.as_mut().unwrap().currency_code = "USD".to_owned();
    caller.carts().add_cart_line(dollars).await.answer();
    wait(&stack, HOUR).await;
    assert_eq!(epochs(&stack, &id).await, []);
}
