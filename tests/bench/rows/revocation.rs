//! How long another replica still accepts a session that was revoked.

use std::time::{Duration, Instant};

use shared::pb::session::{Consistency, Verdict as Found};
use tokio_util::sync::CancellationToken;

use crate::Outcome;
use crate::client::Client;
use crate::cpu::Processes;
use crate::load::{self, Turn};
use crate::page::{Bound, Section, Verdict, disturbance, figure};
use crate::population::{Size, token_of};
use crate::rounds::Spread;
use crate::shop::Shop;
use crate::stand::Stand;

const WRITES_PER_SECOND: f64 = 5_000.0;
const WRITERS: usize = 256;
const REVOCATIONS: u64 = 300;
/// Who change their carts meanwhile.
const SHOPPERS: u64 = 10_000;
/// The background's own beginning is not measured.
const SETTLING: Duration = Duration::from_secs(2);
/// Of a session that B has in memory.
const LOOK: Duration = Duration::from_millis(20);

pub(super) async fn revocation(stand: &Stand) -> Outcome<Section> {
    let revocations = if stand.plan.quick { 20 } else { REVOCATIONS };
    let rate = if stand.plan.quick { WRITES_PER_SECOND / 50.0 } else { WRITES_PER_SECOND };
    let shoppers = stand.plan.scaled(SHOPPERS);
    let size = Size { sessions: revocations + shoppers, tenants: 1, staleness: None };
    let shop = Shop::open(stand, "revocation", size).await?;
    let first = Turn { worker: 0, number: 0 };
    let cart = shop.client.add_line(first, token_of(0).expose(), "sku").await?;
    let line_id = cart.lines.first().ok_or("no line in the cart")?.line_id.clone();
    shop.copy_cart().await?;
    let other = stand.session_svc(&shop.url).await?;
    let asking = Client::new(&other, &shop.client.population).await?;
    let before = Processes::now()?;
    let over = CancellationToken::new();
    let writer = shop.client.clone();
    let background = load::open(rate, WRITERS, over.clone(), move |Turn { worker, number }| {
        let (writer, line_id) = (writer.clone(), line_id.clone());
        let number = revocations + number % shoppers;
        async move { writer.set_line(Turn { worker, number }, &line_id).await }
    });
    let revoking = async {
        let _stopped = over.clone().drop_guard();
        tokio::time::sleep(SETTLING).await;
        let mut delays = vec![];
        for number in 0..revocations {
            delays.push(delay(&shop.client, &asking, number).await?);
        }
        Outcome::Ok(delays)
    };
    let (background, mut delays) = tokio::try_join!(background, revoking)?;
    let foreign = Processes::now()?.foreign_since(&before);
    other.stop().await?;
    shop.close(stand).await?;
    delays.sort_by(f64::total_cmp);
    let share = |percent: usize| delays[(delays.len() - 1) * percent / 100];
    let (p50, p99, slowest) = (share(50), share(99), share(100));
    let at = format!("at {} writes/s", figure(background.per_second()));
    let late = background.quantile(0.99).unwrap_or_default();
    Ok(Section {
        title: "Revocation seen by another replica",
        goal: "p50 at most 60 ms, p99 at most 250 ms at 5,000 writes/s",
        method: format!(
            "Two replicas on one database. {rate} lines a second are set at the first one, in carts of as many shoppers as sessions \
             are not revoked, each with its event, in an open loop of at most {WRITERS} in flight. {revocations} times a session that the second replica has \
             in memory is revoked at the first while the second is asked for it in a tight loop, by default consistency. \
             Counted is from when `RevokeSession` was answered until the first refusal was; one that came before counts as 0."
        ),
        body: format!(
            "| | p50 ms | p99 ms | greatest ms |\n|---|---|---|---|\n| delay | {} | {} | {} |\n\n\
             Writes reached: {} a second, answered within {} ms of when they were due for 99 %. {}",
            figure(p50),
            figure(p99),
            figure(slowest),
            figure(background.per_second()),
            figure(late.as_secs_f64() * 1e3),
            disturbance(foreign),
        ),
        verdicts: vec![
            Verdict::value(&format!("p50 {at}"), p50, "ms", Bound::AtMost(60.0)),
            Verdict::value(&format!("p99 {at}"), p99, "ms", Bound::AtMost(250.0)),
            Verdict::ratio(
                "writes reached, of those asked for",
                Spread::of([background.per_second() / rate]),
                Bound::AtLeast(0.99),
                None,
            ),
        ],
    })
}

/// Milliseconds from the answer to the revocation at the one until the other refuses.
async fn delay(revoking: &Client, asking: &Client, number: u64) -> Outcome<f64> {
    let turn = Turn { worker: 0, number };
    let began = Instant::now();
    while began.elapsed() < LOOK {
        asking.validate(turn, Consistency::Bounded).await?;
    }
    let refused = async {
        loop {
            let verdict = asking.verdict(turn, Consistency::Bounded).await?.verdict();
            if verdict == Found::Revoked {
                return Outcome::Ok(Instant::now());
            } else if verdict != Found::Active {
                return Err(format!("the session is {verdict:?}").into());
            }
        }
    };
    let revoked = async { revoking.revoke(turn).await.map(|()| Instant::now()) };
    let (refused, revoked) = tokio::try_join!(refused, revoked)?;
    Ok(refused.saturating_duration_since(revoked).as_secs_f64() * 1e3)
}
