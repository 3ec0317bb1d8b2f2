//! `CreateSession`, durable.

use crate::Outcome;
use crate::load;
use crate::page::{Bound, Section, Verdict, table};
use crate::pgbench::Pgbench;
use crate::population::Size;
use crate::rounds::{Measure, Rounds, Variant};
use crate::shop::Shop;
use crate::stand::Stand;

pub(super) async fn create(stand: &Stand) -> Outcome<Section> {
    let size = Size { sessions: stand.plan.scaled(100_000), tenants: 1, staleness: None };
    let shop = Shop::open(stand, "create_session", size).await?;
    let pgbench = Pgbench::prepare(stand, &shop.url, size.sessions).await?;
    let creations = |name: &str, in_flight: usize| {
        let client = shop.client.clone();
        Variant::new(name, Some(client.pid), move |time| {
            let client = client.clone();
            load::closed(in_flight, time, move |turn| {
                let client = client.clone();
                async move { client.create(turn).await }
            })
        })
    };
    let variants = [
        creations("CreateSession, 32 in flight", 32),
        creations("CreateSession, 256 in flight", 256),
        pgbench.inserting(),
    ];
    let rounds = Rounds::run(stand, &variants).await?;
    let of_pgbench = |variant, in_flight, floor, stretch| {
        let ratio = rounds.ratio(variant, 2, Measure::RATE);
        [("floor", floor), ("stretch", stretch)].map(|(which, goal)| {
            let what = format!("{in_flight} in flight, of pgbench insert, {which}");
            Verdict::ratio(&what, ratio, Bound::AtLeast(goal), rounds.noise(Measure::RATE))
        })
    };
    let verdicts = [of_pgbench(0, 32, 0.8, 1.0), of_pgbench(1, 256, 1.25, 1.5)]
        .into_iter()
        .flatten()
        .collect();
    let body = table(&rounds);
    shop.close(stand).await?;
    Ok(Section {
        title: "Create session, durable",
        goal: "at 32 / 256 in flight at least 0.8x / 1.25x pgbench insert (floor), 1.0x / 1.5x (stretch)",
        method: "Anonymous sessions without a request id, each in PostgreSQL's log on disk before it is answered. pgbench \
                 inserts one such row a transaction, prepared, into a table with the same columns, indexes and checks. The \
                 comparison with another product is not part of this run."
            .to_owned(),
        body,
        verdicts,
    })
}
