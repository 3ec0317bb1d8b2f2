//! `ValidateSession` from memory, and from the database.

use std::fmt::Write as _;
use std::time::Duration;

use shared::pb::session::Consistency;

use crate::Outcome;
use crate::client::Client;
use crate::load;
use crate::page::{Bound, Section, Verdict, count, table};
use crate::pgbench::Pgbench;
use crate::population::Size;
use crate::rounds::{Measure, Rounds, Variant};
use crate::shop::Shop;
use crate::stand::Stand;

/// All that the cache holds.
pub(super) const SESSIONS: u64 = 100_000;
const IN_FLIGHT: [usize; 2] = [32, 256];

/// Validations of uniformly chosen sessions.
pub(super) fn validations(
    name: &str,
    client: &Client,
    in_flight: usize,
    consistency: Consistency,
) -> Variant {
    let client = client.clone();
    Variant::new(name, Some(client.pid), move |time| {
        let client = client.clone();
        load::closed(in_flight, time, move |turn| {
            let client = client.clone();
            async move { client.validate(turn, consistency).await }
        })
    })
}

pub(super) async fn cached(stand: &Stand) -> Outcome<Section> {
    let size = Size { sessions: stand.plan.scaled(SESSIONS), tenants: 1, staleness: None };
    let shop = Shop::open(stand, "validate_cached", size).await?;
    let (constant, same) = shop.constant(stand).await?;
    shop.warm(size.sessions).await?;
    let (mut body, mut verdicts) = (String::new(), vec![]);
    for in_flight in IN_FLIGHT {
        let variants = [
            validations("session-svc", &shop.client, in_flight, Consistency::Bounded),
            validations("constant answer", &same, in_flight, Consistency::Bounded),
        ];
        let rounds = Rounds::run(stand, &variants).await?;
        let _ = writeln!(body, "{in_flight} in flight:\n\n{}", table(&rounds));
        verdicts.push(Verdict::ratio(
            &format!("{in_flight} in flight, of the constant answer"),
            rounds.ratio(0, 1, Measure::RATE),
            Bound::AtLeast(0.9),
            rounds.noise(Measure::RATE),
        ));
    }
    constant.stop().await?;
    shop.close(stand).await?;
    Ok(Section {
        title: "Validate, cached",
        goal: "at least 0.90x the constant answer",
        method: format!(
            "Default consistency; {} sessions, all of them validated once before, chosen uniformly. The constant answer is the \
             same rpc behind the same layers, giving one and the same real answer without any work. The comparisons with \
             other products are not part of this run.",
            count(size.sessions)
        ),
        body,
        verdicts,
    })
}

pub(super) async fn strong(stand: &Stand) -> Outcome<Section> {
    let size = Size { sessions: stand.plan.scaled(SESSIONS), tenants: 1, staleness: None };
    let shop = Shop::open(stand, "validate_strong", size).await?;
    let exact = Size { staleness: Some(Duration::ZERO), ..size };
    let exact = Shop::open(stand, "validate_exact", exact).await?;
    let (constant, same) = shop.constant(stand).await?;
    let (one_query, one) = shop.one_query(stand).await?;
    let pgbench = Pgbench::prepare(stand, &shop.url, size.sessions).await?;
    let (mut body, mut verdicts) = (String::new(), vec![]);
    for (in_flight, of_constant, of_one_query) in [(32, 0.5, 1.5), (256, 0.7, 2.5)] {
        let validate = |name, client, consistency| validations(name, client, in_flight, consistency);
        let variants = [
            validate("STRONG", &shop.client, Consistency::Strong),
            validate("staleness bound 0", &exact.client, Consistency::Bounded),
            validate("constant answer", &same, Consistency::Strong),
            validate("one query a call", &one, Consistency::Strong),
            pgbench.selecting(),
        ];
        let rounds = Rounds::run(stand, &variants).await?;
        let _ = writeln!(body, "{in_flight} in flight:\n\n{}", table(&rounds));
        for (way, name) in [(0, "STRONG"), (1, "staleness bound 0")] {
            for (to, of, goal) in
                [(2, "the constant answer", of_constant), (3, "one query a call", of_one_query)]
            {
                let what = format!("{in_flight} in flight, {name}, of {of}");
                let ratio = rounds.ratio(way, to, Measure::RATE);
                verdicts.push(Verdict::ratio(
                    &what,
                    ratio,
                    Bound::AtLeast(goal),
                    rounds.noise(Measure::RATE),
                ));
            }
        }
    }
    for server in [constant, one_query] {
        server.stop().await?;
    }
    exact.close(stand).await?;
    shop.close(stand).await?;
    Ok(Section {
        title: "Validate, from the database",
        goal: "at 32 / 256 in flight at least 0.50x / 0.70x the constant answer and 1.5x / 2.5x one query a call",
        method: format!(
            "{} sessions, chosen uniformly; read with `CONSISTENCY_STRONG`, and by default consistency at a touchpoint whose \
             staleness bound is 0. One query a call is the same rpc with a plain `select` by primary key on a pooled \
             connection, no cache, no batch, and no last-seen time written. pgbench selects one row by primary key a round \
             trip. The comparisons with other products are not part of this run.",
            count(size.sessions)
        ),
        body,
        verdicts,
    })
}
