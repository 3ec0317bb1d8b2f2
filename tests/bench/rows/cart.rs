//! `SetCartLineQuantity`, durable, with its event.

use std::fmt::Write as _;

use serde_json::json;
use shared::pb::session as pb;

use crate::Outcome;
use crate::client::Client;
use crate::load::{self, Turn};
use crate::page::{Bound, Section, Verdict, table};
use crate::pgbench::Pgbench;
use crate::population::{Size, token_of};
use crate::rounds::{Measure, Rounds, Variant};
use crate::shop::Shop;
use crate::stand::{Stand, note};

/// Of every cart.
const LINES: usize = 24;

pub(super) async fn cart(stand: &Stand) -> Outcome<Section> {
    let size = Size { sessions: stand.plan.scaled(100_000), tenants: 1, staleness: None };
    let shop = Shop::open(stand, "cart", size).await?;
    note(&format!("  making a cart of {LINES} lines for each"));
    let model = fill_cart(&shop).await?;
    let line_id = model.lines.first().ok_or("no line in the cart")?.line_id.clone();
    shop.copy_cart().await?;
    let [updating, updating_json, updating_16, updating_128] =
        Pgbench::prepare_carts(stand, &shop.url, size.sessions, &as_json(&model)).await?;
    let (constant, same) = shop.constant_cart(stand, model).await?;
    shop.warm(size.sessions).await?;
    let changes = |name: &str, client: &Client, in_flight: usize| {
        let (client, line_id) = (client.clone(), line_id.clone());
        Variant::new(name, Some(client.pid), move |time| {
            let (client, line_id) = (client.clone(), line_id.clone());
            load::closed(in_flight, time, move |turn| {
                let (client, line_id) = (client.clone(), line_id.clone());
                async move { client.set_line(turn, &line_id).await }
            })
        })
    };
    let variants = [
        changes("SetCartLineQuantity, 32 in flight", &shop.client, 32),
        changes("SetCartLineQuantity, 256 in flight", &shop.client, 256),
        updating,
        updating_json,
        changes("constant answer, 32 in flight", &same, 32),
        changes("constant answer, 256 in flight", &same, 256),
        updating_16,
        updating_128,
    ];
    let rounds = Rounds::run(stand, &variants).await?;
    let of_pgbench = |variant, in_flight, floor, stretch| {
        let ratio = rounds.ratio(variant, 2, Measure::RATE);
        [("floor", floor), ("stretch", stretch)].map(|(which, goal)| {
            let what = format!("{in_flight} in flight, of pgbench update, {which}");
            Verdict::ratio(&what, ratio, Bound::AtLeast(goal), rounds.noise(Measure::RATE))
        })
    };
    let verdicts = [of_pgbench(0, 32, 0.6, 0.8), of_pgbench(1, 256, 1.0, 1.2)]
        .into_iter()
        .flatten()
        .collect();
    let mut body = table(&rounds);
    for (in_flight, answering, writing) in [(32, 4, 6), (256, 5, 7)] {
        let [Some(of_answer), Some(of_write)] = [answering, writing]
            .map(|variant| rounds.ratio(variant, 2, Measure::RATE).map(|spread| spread.median))
        else {
            continue;
        };
        let both = 1.0 / (1.0 / of_answer + 1.0 / of_write);
        let _ = writeln!(
            body,
            "\n{in_flight} in flight, the constant answer is {of_answer:.2}x pgbench update, and PostgreSQL by itself {of_write:.2}x; \
             as both share the processors, no server that does nothing else can reach more than {both:.2}x."
        );
    }
    constant.stop().await?;
    shop.close(stand).await?;
    Ok(Section {
        title: "Cart line change, durable, with its event",
        goal: "at 32 / 256 in flight at least 0.6x / 1.0x pgbench update (floor), 0.8x / 1.2x (stretch)",
        method: format!(
            "Each of 100,000 anonymous sessions has a cart of {LINES} lines; one, chosen uniformly, sets the quantity of a line, \
             without a request id. Cart and event are in PostgreSQL's log on disk before it is answered. Every page of carts was logged whole once since the last checkpoint, as it is most \
             of the time. pgbench writes such a \
             cart's whole content by primary key and version, one a transaction, prepared: as the bytes that are stored, and \
             as the same contents in `jsonb`; and, as two batches would, half of the calls in flight a transaction, each with \
             its event. The constant answer is the same rpc behind the same layers, giving one and the same cart of \
             {LINES} lines without any work. The comparisons with other products are not part of this run."
        ),
        body,
        verdicts,
    })
}

/// The cart of the first session.
async fn fill_cart(shop: &Shop) -> Outcome<pb::Cart> {
    let first = Turn { worker: 0, number: 0 };
    let mut cart = pb::Cart::default();
    for n in 0..LINES {
        cart = shop
            .client
            .add_line(first, token_of(0).expose(), &format!("sku-{n:05}"))
            .await?;
    }
    Ok(cart)
}

/// What is stored of a cart, by the names of the stored message.
fn as_json(cart: &pb::Cart) -> String {
    let micros = |time: Option<prost_types::Timestamp>| {
        time.map(|time| time.seconds * 1_000_000 + i64::from(time.nanos / 1_000))
    };
    let line = |line: &pb::CartLine| {
        json!({
            "line_id": line.line_id,
            "sku": line.sku,
            "quantity": line.quantity,
            "unit_price": line.unit_price.as_ref().map(|price| price.minor_units),
            "price_observed_at_us": micros(line.price_observe_time),
            "created_at_us": micros(line.create_time),
        })
    };
    json!({"lines": cart.lines.iter().map(line).collect::<Vec<_>>()}).to_string()
}
