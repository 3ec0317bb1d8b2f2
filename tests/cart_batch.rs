//! Changes of many carts at once, which share transactions: each is answered for itself, and nobody waits for another's
//! cart.

use futures_util::future::join_all;
use shared::issuer::Grant;
use shared::pb::session as pb;
use tokio::task::JoinSet;
use tonic::Code;

use crate::harness::carts::{by_id, see};
use crate::harness::shop::{
    add_line, create_session, create_touchpoint, get_cart, line, quantities, request_id, web,
};
use crate::harness::trust::start;
use crate::harness::{Answer as _, Caller, assert_refused, reason_of, workload};

fn setting(cart: &pb::Cart, line_id: &str, quantity: i32) -> pb::SetCartLineQuantityRequest {
    pb::SetCartLineQuantityRequest {
        owner: Some(by_id(cart)),
        currency_code: "EUR".to_owned(),
        line_id: line_id.to_owned(),
        quantity,
        request_id: String::new(),
    }
}

async fn carts(caller: &Caller, count: usize) -> Vec<pb::Cart> {
    let mut carts = vec![];
    for _ in 0..count {
        let (_, token) = create_session(caller).await;
        carts.push(add_line(caller, &token, "85123A", 1).await);
    }
    carts
}

#[tokio::test]
async fn what_is_refused_is_refused_alone_and_every_other_change_is_made() {
    let (_stack, caller) = start().await;
    let carts = carts(&caller, 16).await;
    // Of each cart: a good change, one of another cart's line, and a quantity beyond the limit of a line.
    let change = async |n: usize| {
        let cart = &carts[n / 3];
        let others = &carts[(n / 3 + 1) % carts.len()].lines[0].line_id;
        let own = &cart.lines[0].line_id;
        match n % 3 {
            0 => caller.carts().set_cart_line_quantity(setting(cart, own, 7)).await.map(drop),
            1 => caller.carts().set_cart_line_quantity(setting(cart, others, 8)).await.map(drop),
            _ => {
                let beyond =
                    pb::AddCartLineRequest { owner: Some(by_id(cart)), ..line("", "85123A", 1_000_000) };
                caller.carts().add_cart_line(beyond).await.map(drop)
            }
        }
    };
    let outcomes = join_all((0..carts.len() * 3).map(change)).await;
    for (n, outcome) in outcomes.into_iter().enumerate() {
        match (n % 3, outcome) {
            (0, outcome) => outcome.unwrap(),
            (1, outcome) => assert_refused(&outcome.unwrap_err(), Code::NotFound, "CART_LINE_NOT_FOUND"),
            (_, outcome) => assert_refused(&outcome.unwrap_err(), Code::ResourceExhausted, "CART_LIMIT"),
        }
    }
    for cart in &carts {
        let after = see(&caller, cart).await;
        assert_eq!(quantities(&after), [("85123A", 7)]);
    }
}

#[tokio::test]
async fn a_cart_that_somebody_holds_holds_up_no_other() {
    let (stack, caller) = start().await;
    let carts = carts(&caller, 8).await;
    let mut holder = stack.database.connect().await;
    sqlx::raw_sql("begin").execute(&mut holder).await.unwrap();
    sqlx::query("select from session.carts where cart_id = $1 for update")
        .bind(carts[0].cart_id[4..].parse::<uuid::Uuid>().unwrap())
        .execute(&mut holder)
        .await
        .unwrap();
    let mut waiting = JoinSet::new();
    let (request, clients) = (setting(&carts[0], &carts[0].lines[0].line_id, 5), caller.carts());
    waiting.spawn(async move {
        let mut clients = clients;
        clients.set_cart_line_quantity(request).await
    });
    for cart in &carts[1..] {
        let request = setting(cart, &cart.lines[0].line_id, 6);
        let after = caller.carts().set_cart_line_quantity(request).await.answer().cart.unwrap();
        assert_eq!(quantities(&after), [("85123A", 6)]);
    }
    assert!(waiting.try_join_next().is_none(), "it waits for its cart");
    sqlx::raw_sql("rollback").execute(&mut holder).await.unwrap();
    let after = waiting.join_next().await.unwrap().unwrap().answer().cart.unwrap();
    assert_eq!(quantities(&after), [("85123A", 5)]);
}

#[tokio::test]
async fn a_request_that_is_sent_many_times_at_once_is_one_change() {
    let (_stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    add_line(&caller, &token, "85123A", 1).await;
    let send = async |quantity: i32, id: u128| {
        let request =
            pb::AddCartLineRequest { request_id: request_id(id), ..line(&token, "71053", quantity) };
        caller.carts().add_cart_line(request).await
    };
    let answers = join_all((0..24).map(|n| send(2, 1 + n % 3))).await;
    for answer in answers {
        answer.unwrap();
    }
    assert_eq!(quantities(&get_cart(&caller, &token).await), [("71053", 6), ("85123A", 1)]);
    // With another body beside it: whichever came first was made, and the other is refused.
    let (a, b) = tokio::join!(send(1, 9), send(10, 9));
    let (made, refused) = if a.is_ok() { (1, b) } else { (10, a) };
    assert_eq!(reason_of(&refused.unwrap_err()), "REQUEST_ID_REUSED");
    assert_eq!(quantities(&get_cart(&caller, &token).await), [("71053", 6 + made), ("85123A", 1)]);
}

#[tokio::test]
async fn the_same_shopper_of_two_tenants_is_two_shoppers_in_one_batch() {
    let (stack, caller) = start().await;
    let other = stack.caller(&Grant { tenant: "acme".to_owned(), ..workload("storefront") });
    create_touchpoint(&other, web()).await;
    let (_, token) = create_session(&caller).await;
    let cart = add_line(&caller, &token, "85123A", 1).await;
    let add = |caller: &Caller, sku: &str, quantity| {
        let request = pb::AddCartLineRequest { owner: Some(by_id(&cart)), ..line("", sku, quantity) };
        let mut carts = caller.carts();
        async move { carts.add_cart_line(request).await.answer() }
    };
    add(&other, "71053", 1).await;
    let ours = join_all((0..20).map(|_| add(&caller, "85123A", 1)));
    let theirs = join_all((0..20).map(|_| add(&other, "71053", 1)));
    tokio::join!(ours, theirs);
    assert_eq!(quantities(&get_cart(&caller, &token).await), [("85123A", 21)]);
    let request = pb::GetCartRequest {
        owner: Some(by_id(&cart)),
        currency_code: "EUR".to_owned(),
        ..Default::default()
    };
    let seen = other.carts().get_cart(request).await.answer().cart.unwrap();
    assert_eq!(quantities(&seen), [("71053", 21)]);
}
