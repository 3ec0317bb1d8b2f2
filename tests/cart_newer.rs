//! Two builds of the stored protos on one database, as during a rollout and after a rollback: what the newer one wrote is
//! still there after this one changed the cart, at every level, and either reads what the other wrote.

use std::collections::BTreeMap;

use prost::Message;
use shared::id::CartId;
use shared::pb::session as pb;
use shared::pb::storage;
use sqlx::PgConnection;

use crate::harness::shop::{
    add_line, begin_checkout, create_session, create_touchpoint, get_cart, known_device, line, log_in, owner,
    quantities, request_id, web,
};
use crate::harness::{Answer as _, Caller, Stack, workload};

/// `CartContent` of a release to come: more fields in every message, and a message more.
#[derive(Clone, PartialEq, Message)]
struct NewerContent {
    #[prost(message, repeated, tag = "1")]
    lines: Vec<NewerLine>,
    #[prost(message, repeated, tag = "2")]
    applied_requests: Vec<NewerApplied>,
    #[prost(string, repeated, tag = "3")]
    codes: Vec<String>,
    #[prost(message, optional, tag = "4")]
    pricing: Option<NewerPricing>,
    #[prost(message, optional, tag = "5")]
    gift: Option<Gift>,
    #[prost(fixed64, tag = "6")]
    loyalty_number: u64,
}

#[derive(Clone, PartialEq, Message)]
struct NewerLine {
    #[prost(bytes = "vec", tag = "1")]
    line_id: Vec<u8>,
    #[prost(string, tag = "2")]
    sku: String,
    #[prost(int32, tag = "3")]
    quantity: i32,
    #[prost(int64, tag = "4")]
    unit_price_minor_units: i64,
    #[prost(int64, tag = "5")]
    price_observed_at_us: i64,
    #[prost(int64, tag = "6")]
    created_at_us: i64,
    #[prost(btree_map = "string, string", tag = "7")]
    attributes: BTreeMap<String, String>,
    #[prost(int32, tag = "8")]
    fulfilment: i32,
    #[prost(string, tag = "9")]
    store_id: String,
    #[prost(string, tag = "10")]
    catalogue_version: String,
    #[prost(string, tag = "11")]
    source: String,
    #[prost(bool, tag = "12")]
    is_saved_for_later: bool,
    #[prost(message, repeated, tag = "13")]
    wrappings: Vec<Gift>,
}

#[derive(Clone, PartialEq, Message)]
struct NewerApplied {
    #[prost(bytes = "vec", tag = "1")]
    request_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    body_hash: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    line_id: Vec<u8>,
    #[prost(int64, tag = "4")]
    applied_at_us: i64,
}

#[derive(Clone, PartialEq, Message)]
struct NewerPricing {
    #[prost(string, tag = "1")]
    price_list: String,
    #[prost(string, repeated, tag = "2")]
    promotions: Vec<String>,
    #[prost(string, tag = "3")]
    country_code: String,
    #[prost(string, tag = "4")]
    store_id: String,
    #[prost(int64, tag = "5")]
    expires_at_us: i64,
    #[prost(bytes = "vec", tag = "6")]
    session_id: Vec<u8>,
    #[prost(int64, tag = "7")]
    pinned_at_us: i64,
    #[prost(string, tag = "8")]
    tax_zone: String,
}

#[derive(Clone, PartialEq, Message)]
struct Gift {
    #[prost(string, tag = "1")]
    note: String,
}

fn gift(note: &str) -> Gift {
    Gift { note: note.to_owned() }
}

/// Fulfilment of a kind to come.
const DRONE: i32 = 7;

async fn read(db: &mut PgConnection, cart: &pb::Cart) -> Vec<u8> {
    let id: CartId = cart.cart_id.parse().unwrap();
    let sql = "select content from session.carts where cart_id = $1 and state <> 'MERGED'";
    sqlx::query_scalar(sql).bind(id.uuid()).fetch_one(db).await.unwrap()
}

async fn read_as_newer(db: &mut PgConnection, cart: &pb::Cart) -> NewerContent {
    NewerContent::decode(read(db, cart).await.as_slice()).unwrap()
}

async fn write(db: &mut PgConnection, cart: &pb::Cart, content: &impl Message) {
    let id: CartId = cart.cart_id.parse().unwrap();
    let sql = "update session.carts set content = $2 where cart_id = $1";
    let done = sqlx::query(sql)
        .bind(id.uuid())
        .bind(content.encode_to_vec())
        .execute(db)
        .await
        .unwrap();
    assert_eq!(done.rows_affected(), 1);
}

async fn start() -> (Stack, Caller, String) {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    let (_, token) = create_session(&caller).await;
    (stack, caller, token)
}

/// A cart of two lines, with a code, a pricing and a remembered request.
async fn filled(stack: &Stack, caller: &Caller, token: &str) -> pb::Cart {
    let request = pb::AddCartLineRequest { request_id: request_id(1), ..line(token, "kept", 1) };
    caller.carts().add_cart_line(request).await.answer();
    let pricing_context = Some(pb::PricingContext {
        price_list: "retail".to_owned(),
        expire_time: Some(shared::time::to_proto(stack.now() + chrono::TimeDelta::hours(1))),
        ..Default::default()
    });
    let (owner, currency_code) = (Some(owner(token)), "EUR".to_owned());
    let request = pb::PinPricingContextRequest {
        owner: owner.clone(),
        currency_code: currency_code.clone(),
        pricing_context,
        ..Default::default()
    };
    caller.carts().pin_pricing_context(request).await.answer();
    let (code, request_id) = ("SUMMER".to_owned(), String::new());
    let request = pb::ApplyCartCodeRequest { owner, currency_code, code, request_id };
    caller.carts().apply_cart_code(request).await.answer();
    add_line(caller, token, "changed", 2).await
}

/// What the newer build makes of what this one wrote.
async fn write_more(db: &mut PgConnection, cart: &pb::Cart) -> NewerContent {
    let mut content = read_as_newer(db, cart).await;
    assert_eq!(
        (content.gift.as_ref(), content.lines[0].wrappings.len()),
        (None, 0),
        "an older build wrote it"
    );
    assert_eq!(
        (&*content.lines[0].sku, content.lines[1].quantity, &*content.codes[0]),
        ("kept", 2, "SUMMER")
    );
    content.gift = Some(gift("for Ann"));
    content.loyalty_number = 42;
    for (n, line) in content.lines.iter_mut().enumerate() {
        line.wrappings = vec![gift("paper"), gift(&format!("ribbon {n}"))];
    }
    content.lines[0].fulfilment = DRONE;
    "roof".clone_into(&mut content.lines[0].store_id);
    content.applied_requests[0].applied_at_us = 99;
    "AT-1".clone_into(&mut content.pricing.as_mut().unwrap().tax_zone);
    write(db, cart, &content).await;
    content
}

#[tokio::test]
async fn what_a_newer_release_stored_survives_every_change_of_an_older_one() {
    let (stack, caller, token) = start().await;
    let mut db = stack.database.connect().await;
    let cart = filled(&stack, &caller, &token).await;
    let newer = write_more(&mut db, &cart).await;
    let (owner, currency_code) = (Some(owner(&token)), "EUR".to_owned());
    let request = pb::SetCartLineQuantityRequest {
        owner: owner.clone(),
        currency_code: currency_code.clone(),
        line_id: cart.lines[1].line_id.clone(),
        quantity: 9,
        request_id: request_id(2),
    };
    caller.carts().set_cart_line_quantity(request).await.answer();
    // The same article without a wrapping is another one, for all that this build can know.
    let cart = add_line(&caller, &token, "changed", 1).await;
    assert_eq!(quantities(&cart), [("changed", 1), ("changed", 9), ("kept", 1)]);
    assert_eq!(cart.lines[0].fulfilment(), pb::Fulfilment::Unspecified, "of a kind that it does not know");
    let request = pb::RemoveCartLineRequest {
        owner,
        currency_code,
        line_id: cart.lines[2].line_id.clone(),
        request_id: String::new(),
    };
    caller.carts().remove_cart_line(request).await.answer();
    begin_checkout(&caller, &token).await;
    let mut expected = newer;
    expected.lines[1].quantity = 9;
    let found = read_as_newer(&mut db, &cart).await;
    expected.applied_requests.push(found.applied_requests[1].clone());
    assert_eq!(found, expected);
}

#[tokio::test]
async fn what_a_newer_release_stored_comes_along_into_the_subjects_cart_and_back() {
    let (stack, caller, token) = start().await;
    let mut db = stack.database.connect().await;
    let guests = filled(&stack, &caller, &token).await;
    let newer = write_more(&mut db, &guests).await;
    let known = known_device(&caller, "ann").await;
    let mine = add_line(&caller, &known, "changed", 1).await;
    let done = log_in(&caller, &token, "ann", pb::MergeStrategy::SumCapped).await;
    let merged = read_as_newer(&mut db, &mine).await;
    let came: Vec<_> = merged.lines.iter().filter(|line| !line.wrappings.is_empty()).cloned().collect();
    assert_eq!((came, merged.lines.len()), (newer.lines.clone(), 3));
    let merge = &done.cart_merges[0];
    let request = pb::UndoCartMergeRequest {
        owner: Some(owner(&done.session_token)),
        source_shopper_id: merge.source_shopper_id.clone(),
        source_cart_id: merge.source_cart_id.clone(),
        request_id: String::new(),
    };
    caller.carts().undo_cart_merge(request).await.answer();
    assert_eq!(read_as_newer(&mut db, &guests).await, newer);
}

/// The first release's rows: lines of six fields, and nothing else.
#[tokio::test]
async fn a_cart_of_the_first_release_is_read_and_changed() {
    let (stack, caller, token) = start().await;
    let mut db = stack.database.connect().await;
    let cart = add_line(&caller, &token, "85123A", 2).await;
    let now = storage::CartContent::decode(read(&mut db, &cart).await.as_slice()).unwrap();
    let then = &now.lines[0];
    let first = storage::CartLine {
        line_id: then.line_id.clone(),
        sku: then.sku.clone(),
        quantity: then.quantity,
        unit_price_minor_units: then.unit_price_minor_units,
        price_observed_at_us: then.price_observed_at_us,
        created_at_us: then.created_at_us,
        ..Default::default()
    };
    write(&mut db, &cart, &storage::CartContent { lines: vec![first], ..Default::default() }).await;
    assert_eq!(get_cart(&caller, &token).await.lines, cart.lines);
    assert_eq!(quantities(&add_line(&caller, &token, "85123A", 1).await), [("85123A", 3)]);
}

#[tokio::test]
async fn a_format_that_this_release_does_not_read_is_left_alone() {
    let (stack, caller, token) = start().await;
    let mut db = stack.database.connect().await;
    let cart = add_line(&caller, &token, "85123A", 2).await;
    let id: CartId = cart.cart_id.parse().unwrap();
    let wrapped = [&[1][..], &read(&mut db, &cart).await].concat();
    let sql = "update session.carts set content = $2 where cart_id = $1";
    sqlx::query(sql).bind(id.uuid()).bind(&wrapped).execute(&mut db).await.unwrap();
    let refused = caller.carts().add_cart_line(line(&token, "71053", 1)).await;
    refused.refused(tonic::Code::Internal, "INTERNAL");
    assert_eq!(read(&mut db, &cart).await, wrapped);
}
