//! The invoice lines of a real shop, entered as carts by clients at once: their totals are those of the file.

use std::collections::BTreeMap;
use std::path::Path;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream;
use shared::pb::common::Money;
use shared::pb::session as pb;

use crate::harness::shop::{create_session, create_touchpoint, owner, web};
use crate::harness::{Answer as _, Caller, Options, Stack, workload};

/// One line that can be sold: not a cancellation.
struct Sold {
    sku: String,
    description: String,
    quantity: i32,
    pence: i64,
}

/// Invoices by number.
fn invoices() -> BTreeMap<String, Vec<Sold>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/online_retail_sample.csv");
    let mut invoices: BTreeMap<String, Vec<Sold>> = BTreeMap::new();
    for row in csv::Reader::from_path(path).unwrap().into_records() {
        let row = row.unwrap();
        let quantity: i32 = row[3].parse().unwrap();
        if quantity > 0 {
            let (sku, description) = (row[1].to_owned(), row[2].to_owned());
            let sold = Sold { sku, description, quantity, pence: pence(&row[5]) };
            invoices.entry(row[0].to_owned()).or_default().push(sold);
        }
    }
    invoices
}

/// `2.1` is 210.
fn pence(pounds: &str) -> i64 {
    let (whole, fraction) = pounds.split_once('.').unwrap_or((pounds, ""));
    assert!(fraction.len() <= 2, "{pounds}");
    format!("{whole}{fraction:0<2}").parse().unwrap()
}

async fn add(caller: &Caller, token: &str, sold: &Sold) {
    let request = pb::AddCartLineRequest {
        owner: Some(owner(token)),
        sku: sold.sku.clone(),
        quantity: sold.quantity,
        unit_price: Some(Money { currency_code: "GBP".to_owned(), minor_units: sold.pence }),
        attributes: BTreeMap::from([("description".to_owned(), sold.description.clone())]),
        ..pb::AddCartLineRequest::default()
    };
    caller.carts().add_cart_line(request).await.answer();
}

/// Enters an invoice from three tabs at once; answers what the cart comes to, and how many units are in it.
async fn enter(tabs: &[Caller; 3], lines: &[Sold]) -> (Money, i64) {
    let (_, token) = create_session(&tabs[0]).await;
    let shop = |(n, tab)| {
        let token = &token;
        async move {
            for sold in lines.iter().skip(n).step_by(3) {
                add(tab, token, sold).await;
            }
        }
    };
    join_all(tabs.iter().enumerate().map(shop)).await;
    let request = pb::GetCartRequest {
        owner: Some(owner(&token)),
        currency_code: "GBP".to_owned(),
        cart_id: String::new(),
    };
    let cart = tabs[0].carts().get_cart(request).await.answer().cart.unwrap();
    (cart.total.unwrap(), cart.lines.iter().map(|line| i64::from(line.quantity)).sum())
}

#[tokio::test]
async fn invoices_of_a_real_shop_come_to_the_totals_of_the_file() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    let replica = stack.session_svc(&Options::default());
    let tabs = [caller.clone(), caller.at_session(&replica), caller.clone()];
    let invoices = invoices();
    assert!(invoices.len() > 50 && invoices.values().map(Vec::len).sum::<usize>() > 900);
    let entered: Vec<_> = stream::iter(&invoices)
        .map(async |(number, lines)| (number, lines, enter(&tabs, lines).await))
        .buffer_unordered(8)
        .collect()
        .await;
    for (number, lines, (total, units)) in entered {
        let expected = lines.iter().map(|sold| i64::from(sold.quantity) * sold.pence).sum();
        assert_eq!(total, Money { currency_code: "GBP".to_owned(), minor_units: expected }, "{number}");
        assert_eq!(units, lines.iter().map(|sold| i64::from(sold.quantity)).sum::<i64>(), "{number}");
    }
}
