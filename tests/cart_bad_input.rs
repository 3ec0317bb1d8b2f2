//! What carts refuse, each by its reason and, where one is wrong, its field; and what only looks wrong.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use shared::pb::common::Money;
use shared::pb::session as pb;
use shared::pb::session::Fulfilment;
use shared::time::to_proto;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::shop::{
    add_line, create_session, create_touchpoint, euros, get_cart, line, owner, quantities, request_id, web,
};
use crate::harness::{Answer as _, Caller, Stack, workload};

const CARD: &str = "4111 1111 1111 1111";

async fn start() -> (Stack, Caller, String) {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    let (_, token) = create_session(&caller).await;
    (stack, caller, token)
}

fn field(status: &Status) -> String {
    status.get_details_bad_request().unwrap().field_violations[0].field.clone()
}

fn attributes(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[tokio::test]
async fn a_line_that_is_not_right_names_its_field() {
    let (_stack, caller, token) = start().await;
    let good = || line(&token, "ring", 1);
    let price = |currency: &str, minor_units| Some(Money { currency_code: currency.to_owned(), minor_units });
    let many: Vec<_> = (0..33).map(|n| (format!("name-{n}"), String::new())).collect();
    let text = |text: &str| text.to_owned();
    let table = [
        ("quantity", pb::AddCartLineRequest { quantity: 0, ..good() }),
        ("quantity", pb::AddCartLineRequest { quantity: -1, ..good() }),
        ("quantity", pb::AddCartLineRequest { quantity: i32::MAX, ..good() }),
        ("sku", pb::AddCartLineRequest { sku: text(""), ..good() }),
        ("sku", pb::AddCartLineRequest { sku: text("a\u{7}b"), ..good() }),
        ("sku", pb::AddCartLineRequest { sku: "x".repeat(65), ..good() }),
        ("unit_price", pb::AddCartLineRequest { unit_price: None, currency_code: text("EUR"), ..good() }),
        ("unit_price.minor_units", pb::AddCartLineRequest { unit_price: price("EUR", -1), ..good() }),
        ("unit_price.minor_units", pb::AddCartLineRequest { unit_price: price("EUR", i64::MAX), ..good() }),
        ("unit_price.currency_code", pb::AddCartLineRequest { unit_price: price("QQQ", 1), ..good() }),
        ("unit_price.currency_code", pb::AddCartLineRequest { unit_price: price("XAU", 1), ..good() }),
        ("currency_code", pb::AddCartLineRequest { currency_code: text("eur"), ..good() }),
        ("attributes", pb::AddCartLineRequest { attributes: attributes(&[("", "x")]), ..good() }),
        ("attributes", pb::AddCartLineRequest { attributes: attributes(&[("a\nb", "x")]), ..good() }),
        ("attributes", pb::AddCartLineRequest { attributes: attributes(&[(CARD, "x")]), ..good() }),
        ("attributes[note]", pb::AddCartLineRequest { attributes: attributes(&[("note", "\0")]), ..good() }),
        ("attributes[note]", pb::AddCartLineRequest { attributes: attributes(&[("note", CARD)]), ..good() }),
        (
            "attributes[note]",
            pb::AddCartLineRequest { attributes: attributes(&[("note", &"x".repeat(257))]), ..good() },
        ),
        ("fulfilment", pb::AddCartLineRequest { fulfilment: 99, ..good() }),
        ("store_id", pb::AddCartLineRequest { fulfilment: Fulfilment::Pickup.into(), ..good() }),
        ("store_id", pb::AddCartLineRequest { store_id: text("berlin"), ..good() }),
        ("catalogue_version", pb::AddCartLineRequest { catalogue_version: text("\r"), ..good() }),
        ("source", pb::AddCartLineRequest { source: format!("mail of {CARD}"), ..good() }),
        ("source", pb::AddCartLineRequest { source: "x".repeat(129), ..good() }),
    ];
    for (name, request) in table {
        let status = caller.carts().add_cart_line(request.clone()).await;
        let status = status.refused(Code::InvalidArgument, "FIELD_INVALID");
        assert_eq!(field(&status), name, "{}", status.message());
        assert!(!status.message().contains("4111"), "a card number is not repeated: {}", status.message());
    }
    let many = pb::AddCartLineRequest { attributes: many.into_iter().collect(), ..good() };
    let status = caller.carts().add_cart_line(many).await;
    status.refused(Code::ResourceExhausted, "CART_LIMIT");
    assert_eq!(get_cart(&caller, &token).await.cart_id, "", "nothing was made");
}

#[tokio::test]
async fn a_number_that_could_be_a_cards_is_fine_where_numbers_are_due() {
    let (_stack, caller, token) = start().await;
    // An EAN that passes the check, and begins as cards do.
    let ean = "4006381334013";
    let request = pb::AddCartLineRequest {
        sku: ean.to_owned(),
        catalogue_version: ean.to_owned(),
        attributes: attributes(&[("size", "42"), ("phone", "+43 1 4000 0")]),
        ..line(&token, "", 1)
    };
    let cart = caller.carts().add_cart_line(request).await.answer().cart.unwrap();
    assert_eq!(quantities(&cart), [(ean, 1)]);
    let request = pb::AddCartLineRequest { source: ean.to_owned(), ..line(&token, "ring", 1) };
    let status = caller
        .carts()
        .add_cart_line(request)
        .await
        .refused(Code::InvalidArgument, "FIELD_INVALID");
    assert_eq!(field(&status), "source", "in a free field it is refused");
    crate::harness::shop::begin_checkout(&caller, &token).await;
    let order = crate::harness::shop::complete_checkout(&caller, &token, "4111111111111111").await;
    assert_eq!(order.order_ref, "4111111111111111");
}

#[tokio::test]
async fn codes_and_pricing_that_are_not_right_name_their_field() {
    let (stack, caller, token) = start().await;
    for code in ["", "a\tb", CARD, &"x".repeat(65)] {
        let request = pb::ApplyCartCodeRequest {
            owner: Some(owner(&token)),
            currency_code: "EUR".to_owned(),
            code: code.to_owned(),
            request_id: String::new(),
        };
        let status = caller.carts().apply_cart_code(request).await;
        assert_eq!(field(&status.refused(Code::InvalidArgument, "FIELD_INVALID")), "code");
    }
    let good = || pb::PricingContext {
        price_list: "retail".to_owned(),
        expire_time: Some(to_proto(stack.now() + TimeDelta::hours(1))),
        ..Default::default()
    };
    let text = |text: &str| text.to_owned();
    let table = [
        ("price_list", pb::PricingContext { price_list: text(""), ..good() }),
        ("price_list", pb::PricingContext { price_list: text(CARD), ..good() }),
        ("promotions", pb::PricingContext { promotions: vec![text("p"); 21], ..good() }),
        ("promotions[1]", pb::PricingContext { promotions: vec![text("p"), text(CARD)], ..good() }),
        ("country_code", pb::PricingContext { country_code: text("QQ"), ..good() }),
        ("country_code", pb::PricingContext { country_code: text("at"), ..good() }),
        ("country_code", pb::PricingContext { country_code: text("AUT"), ..good() }),
        ("store_id", pb::PricingContext { store_id: text("a\nb"), ..good() }),
        ("expire_time", pb::PricingContext { expire_time: None, ..good() }),
        ("expire_time", pb::PricingContext { expire_time: Some(to_proto(stack.now())), ..good() }),
    ];
    for (name, context) in table {
        let request = pb::PinPricingContextRequest {
            owner: Some(owner(&token)),
            currency_code: "EUR".to_owned(),
            pricing_context: Some(context),
            ..Default::default()
        };
        let status = caller.carts().pin_pricing_context(request).await;
        let status = status.refused(Code::InvalidArgument, "FIELD_INVALID");
        assert_eq!(field(&status), format!("pricing_context.{name}"), "{}", status.message());
    }
}

#[tokio::test]
async fn a_price_in_another_currency_than_the_named_carts_is_a_mismatch() {
    let (_stack, caller, token) = start().await;
    let request = pb::AddCartLineRequest { currency_code: "USD".to_owned(), ..line(&token, "ring", 1) };
    let status = caller.carts().add_cart_line(request).await;
    let status = status.refused(Code::FailedPrecondition, "CART_CURRENCY_MISMATCH");
    let metadata = status.get_details_error_info().unwrap().metadata;
    assert_eq!((&*metadata["currency_code"], &*metadata["price_currency_code"]), ("USD", "EUR"));
    let request = pb::AddCartLineRequest { currency_code: "EUR".to_owned(), ..line(&token, "ring", 1) };
    assert_eq!(caller.carts().add_cart_line(request).await.answer().cart.unwrap().total, Some(euros(255)));
}

#[tokio::test]
async fn a_cart_has_a_limit_of_bytes_that_names_itself() {
    let (_stack, caller, token) = start().await;
    let large = |n: u32| {
        let pairs: BTreeMap<_, _> = (0..32).map(|i| (format!("name-{i}"), "ä".repeat(250))).collect();
        pb::AddCartLineRequest { attributes: pairs, ..line(&token, &format!("sku-{n}"), 1) }
    };
    caller.carts().add_cart_line(large(0)).await.answer();
    caller.carts().add_cart_line(large(1)).await.answer();
    let status = caller
        .carts()
        .add_cart_line(large(2))
        .await
        .refused(Code::ResourceExhausted, "CART_LIMIT");
    let metadata = status.get_details_error_info().unwrap().metadata;
    assert_eq!((&*metadata["limit"], &*metadata["max"]), ("bytes of lines", "45056"));
    add_line(&caller, &token, "small", 1).await;
}

#[tokio::test]
async fn a_request_id_is_of_one_change_whatever_the_order_of_its_attributes() {
    let (_stack, caller, token) = start().await;
    let names: Vec<_> = (0..32).map(|n| format!("name-{n}")).collect();
    let pairs: Vec<_> = names.iter().map(|name| (name.as_str(), "x")).collect();
    let request = pb::AddCartLineRequest {
        attributes: attributes(&pairs),
        request_id: request_id(1),
        ..line(&token, "ring", 1)
    };
    for _ in 0..3 {
        let cart = caller.carts().add_cart_line(request.clone()).await.answer().cart.unwrap();
        assert_eq!(quantities(&cart), [("ring", 1)]);
    }
    let other = pb::AddCartLineRequest { attributes: attributes(&pairs[1..]), ..request };
    caller
        .carts()
        .add_cart_line(other)
        .await
        .refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
}
