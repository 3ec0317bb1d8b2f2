//! `AuthenticateSession`: anonymous sessions with a cart log in as subjects with a cart.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::{Connection as _, PgConnection};

use crate::Outcome;
use crate::load::{self, Turn};
use crate::page::{Bound, Section, Verdict, count, table};
use crate::pgbench::Pgbench;
use crate::population::{Size, token_of};
use crate::rounds::{Measure, REPEATS, Rounds, Variant};
use crate::shop::Shop;
use crate::stand::{Plan, Stand, note};

/// So many that two logins of one rarely meet.
const SUBJECTS: u64 = 10_000;
/// A session can log in from anonymous once: there have to be as many as all runs could use at this rate.
const LOGINS_A_SECOND_MAX: f64 = 5_000.0;
const IN_FLIGHT: [usize; 2] = [32, 256];
/// In flight while subjects are made.
const MAKING: usize = 32;

/// The sessions that have not logged in yet, and what became of the others.
#[derive(Default)]
struct Supply {
    next: AtomicU64,
    merged: AtomicU64,
}

pub(super) async fn authenticate(stand: &Stand) -> Outcome<Section> {
    let size = Size { sessions: supply(stand.plan), tenants: 1, staleness: None };
    let subjects = stand.plan.scaled(SUBJECTS);
    let shop = Shop::open(stand, "authenticate", size).await?;
    note(&format!("  making carts of them, and of {subjects} subjects"));
    fill_carts(&shop, subjects).await?;
    let pgbench = Pgbench::prepare(stand, &shop.url, size.sessions).await?;
    let supply = Arc::new(Supply::default());
    let logins = |in_flight| {
        let (client, supply) = (shop.client.clone(), Arc::clone(&supply));
        Variant::new(format!("AuthenticateSession, {in_flight} in flight"), Some(client.pid), move |time| {
            let (client, supply) = (client.clone(), Arc::clone(&supply));
            load::closed(in_flight, time, move |Turn { worker, number }| {
                let (client, supply) = (client.clone(), Arc::clone(&supply));
                async move {
                    let session = supply.next.fetch_add(1, Ordering::Relaxed);
                    if session >= client.population.count {
                        return Err("every session has logged in: more were measured than were made".into());
                    }
                    let turn = Turn { worker, number: session };
                    let merged = client.authenticate(turn, number % subjects).await?;
                    supply.merged.fetch_add(u64::from(merged == 1), Ordering::Relaxed);
                    Ok(())
                }
            })
        })
    };
    let variants = [logins(IN_FLIGHT[0]), logins(IN_FLIGHT[1]), pgbench.inserting()];
    let rounds = Rounds::run(stand, &variants).await?;
    shop.close(stand).await?;
    let mut verdicts = vec![supply.merged()];
    for (variant, in_flight) in IN_FLIGHT.into_iter().enumerate() {
        verdicts.push(Verdict::ratio(
            &format!("{in_flight} in flight, of pgbench insert"),
            rounds.ratio(variant, 2, Measure::RATE),
            Bound::AtLeast(0.3),
            rounds.noise(Measure::RATE),
        ));
    }
    Ok(Section {
        title: "Authenticate with merge",
        goal: "at least 0.3x pgbench insert",
        method: format!(
            "Anonymous sessions, each with a cart of one line and never used before, log in by the caller's word, level 1, as \
             one of {} subjects, chosen uniformly, who has a cart with another article; `MERGE_STRATEGY_SUM_CAPPED`, no request \
             id. So the first login of a subject adds a line to its cart, and the later ones raise that line's quantity. Every \
             login is one durable transaction with its events. pgbench inserts one row of `session.sessions` a transaction, as \
             for `CreateSession`.",
            count(subjects)
        ),
        body: table(&rounds),
        verdicts,
    })
}

impl Supply {
    #[expect(clippy::cast_precision_loss, reason = "far fewer logins than 2^52")]
    fn merged(&self) -> Verdict {
        let (merged, used) = (self.merged.load(Ordering::Relaxed), self.next.load(Ordering::Relaxed));
        let share = merged as f64 / used as f64;
        Verdict::value("logins that merged a cart", share * 100.0, "%", Bound::AtLeast(100.0))
    }
}

/// For two warm-ups, and three runs a round, each as often as it may be made again.
fn supply(plan: Plan) -> u64 {
    let runs = u32::try_from(plan.rounds * 3 * (1 + REPEATS)).unwrap_or(u32::MAX);
    let seconds = (plan.warm_up() * 2 + plan.time * runs).as_secs_f64();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number above 0")]
    let sessions = (seconds * LOGINS_A_SECOND_MAX).ceil() as u64;
    sessions
}

/// A cart through the service, and copies of it for all other sessions; then subjects with carts, through the service.
async fn fill_carts(shop: &Shop, subjects: u64) -> Outcome<()> {
    let first = Turn { worker: 0, number: 0 };
    shop.client.add_line(first, token_of(0).expose(), "guest").await?;
    shop.copy_cart().await?;
    let client = shop.client.clone();
    let make = move |turn| {
        let client = client.clone();
        async move { client.create_with_cart(turn).await }
    };
    load::each(subjects, MAKING, make).await?;
    let mut db = PgConnection::connect(&shop.url).await?;
    for sql in ["vacuum (analyze) session.carts", "vacuum (analyze) session.subjects", "checkpoint"] {
        sqlx::raw_sql(sql).execute(&mut db).await?;
    }
    db.close().await?;
    Ok(())
}
