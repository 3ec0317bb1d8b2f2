//! Whether strong validation slows down as sessions and tenants grow.

use shared::pb::session::Consistency;

use crate::Outcome;
use crate::page::{Bound, Section, Verdict, count, table};
use crate::population::Size;
use crate::rounds::{Measure, Rounds, Variant};
use crate::rows::validate::validations;
use crate::shop::Shop;
use crate::stand::Stand;

const IN_FLIGHT: usize = 32;
const SIZES: [u64; 3] = [100_000, 1_000_000, 5_000_000];
const TENANTS: u64 = 10_000;

pub(super) async fn growth(stand: &Stand) -> Outcome<Section> {
    let plan = stand.plan;
    let sizes = if plan.large { &SIZES[..] } else { &SIZES[..2] };
    let many = usize::try_from(plan.scaled(TENANTS))?;
    let mut shops = vec![];
    for sessions in sizes.iter().map(|size| plan.scaled(*size)) {
        for tenants in [1, many] {
            let size = Size { sessions, tenants, staleness: None };
            let shop = Shop::open(stand, &format!("growth_{sessions}_{tenants}"), size).await?;
            // A caller's token is verified once in five minutes: here before, as it would be where callers go on calling.
            shop.warm(tenants as u64).await?;
            let of = if tenants == 1 {
                "one tenant".to_owned()
            } else {
                format!("{} tenants", count(tenants as u64))
            };
            shops.push((format!("{} sessions of {of}", count(sessions)), shop));
        }
    }
    let variants: Vec<Variant> = shops
        .iter()
        .map(|(name, shop)| validations(name, &shop.client, IN_FLIGHT, Consistency::Strong))
        .collect();
    let rounds = Rounds::run(stand, &variants).await?;
    let mut verdicts = vec![];
    for variant in 1..shops.len() {
        let what = format!("{} to {}", shops[variant].0, shops[0].0);
        let throughput = rounds.ratio(variant, 0, Measure::RATE);
        let p99 = rounds.ratio(variant, 0, |run| run.p99);
        let noise = (rounds.noise(Measure::RATE), rounds.noise(|run| run.p99));
        verdicts.push(Verdict::ratio(&format!("calls/s, {what}"), throughput, Bound::AtLeast(0.85), noise.0));
        verdicts.push(Verdict::ratio(&format!("p99, {what}"), p99, Bound::AtMost(1.5), noise.1));
    }
    for (_, shop) in shops {
        shop.close(stand).await?;
    }
    Ok(Section {
        title: "Growth",
        goal: "100 k to 5 M sessions: strong validate throughput at least 0.85x, p99 at most 1.5x; one tenant or ten thousand \
               alike",
        method: format!(
            "{IN_FLIGHT} in flight, `CONSISTENCY_STRONG`, sessions chosen uniformly from tables just written, so that \
             they are in memory as far as there is memory. Every size has a database and a session-svc of its own, which all \
             run side by side. Every tenant's caller called before, so that its token is known.{}",
            if plan.large { "" } else { " 5 M sessions were not measured in this run (`--large`)." }
        ),
        body: table(&rounds),
        verdicts,
    })
}
