//! `SetCartLineQuantity`, durable, with its event.

use serde_json::json;
use shared::pb::session as pb;

use crate::Outcome;
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
    let [updating, updating_json] =
        Pgbench::prepare_carts(stand, &shop.url, size.sessions, &as_json(&model)).await?;
    shop.warm(size.sessions).await?;
    let changes = |name: &str, in_flight: usize| {
        let (client, line_id) = (shop.client.clone(), line_id.clone());
        Variant::new(name, Some(client.pid), move |time| {
            let (client, line_id) = (client.clone(), line_id.clone());
            load::closed(in_flight, time, move |turn| {
                let (client, line_id) = (client.clone(), line_id.clone());
                async move { client.set_line(turn, &line_id).await }
            })
        })
    };
    let variants = [
        changes("SetCartLineQuantity, 32 in flight", 32),
        changes("SetCartLineQuantity, 256 in flight", 256),
        updating,
        updating_json,
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
    let body = table(&rounds);
    shop.close(stand).await?;
    Ok(Section {
        title: "Cart line change, durable, with its event",
        goal: "at 32 / 256 in flight at least 0.6x / 1.0x pgbench update (floor), 0.8x / 1.2x (stretch)",
        method: format!(
            "Each of 100,000 anonymous sessions has a cart of {LINES} lines; one, chosen uniformly, sets the quantity of a line, \
             without a request id. Cart and event are in PostgreSQL's log on disk before it is answered. pgbench writes such a \
             cart's whole content by primary key and version, one a transaction, prepared: as the bytes that are stored, and \
             as the same contents in `jsonb`. The comparisons with other products are not part of this run."
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
