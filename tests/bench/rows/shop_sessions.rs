//! What a guard makes of the sessions of a real shop, replayed through both services with a canary that sells less.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use shared::pb::release::{
    ArmReport, GuardReport, Rollout, RolloutPlan, RolloutState, StepPhase, Verdict as Said,
};
use shared::pb::session::Arm;

use crate::Outcome;
use crate::load::{self, Turn};
use crate::page::{Bound, Section, Verdict, count, figure};
use crate::release::{Pipeline, watched_by};
use crate::shopper::Storefront;
use crate::stand::{Stand, note};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/online_shoppers_intention.csv");
const COMPONENT: &str = "storefront";
/// In which the canary sells less, in per cent.
const LOWERED: [u32; 4] = [0, 10, 25, 50];
/// Visits between two looks.
const BATCH: usize = 500;
const IN_FLIGHT: usize = 32;
const LIMIT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(50);

/// What came of a replay.
struct Replayed {
    lowered: u32,
    visits: u64,
    guard: GuardReport,
    /// From when the last visits were over until the rollout was back.
    back: Option<Duration>,
}

pub(super) async fn shop_sessions(stand: &Stand) -> Outcome<Section> {
    let bought = Arc::new(bought(stand)?);
    let mut replays = vec![];
    for lowered in LOWERED {
        note(&format!("  {lowered} % fewer purchases on the canary"));
        replays.push(replay(stand, &bought, lowered).await?);
    }
    let mut body = "| purchases on the canary | verdict | visits | control | canary | difference, per cent of visits | back after s |\n\
                    |---|---|---|---|---|---|---|\n"
        .to_owned();
    for replayed in &replays {
        writeln!(body, "{}", replayed.line())?;
    }
    let harms = |lowered: u32| {
        let is_harm = |it: &&Replayed| it.lowered == lowered && it.guard.verdict() == Said::Harm;
        if replays.iter().any(|it| is_harm(&it)) { 1.0 } else { 0.0 }
    };
    Ok(Section {
        title: "Sessions of a real shop, and a canary that sells less",
        goal: "the verdict, and the visits that it took; a canary that sells as much is not called HARM, one that sells half is",
        method: format!(
            "The {} sessions of a shop's year (tests/data), each a session at session-svc in the order of the file, with a cart and \
             an order where the file has a purchase. A canary gets half of the visits; of those of its visits that would have bought, \
             so many per cent do not. Guard `purchase` of mode ROLLBACK with its defaults, looked at after every {BATCH} visits, until \
             it says HARM or the file ends. Both services, their databases and the report between them are the real ones.",
            count(bought.len() as u64)
        ),
        body,
        verdicts: vec![
            Verdict::value("0 % fewer: HARM", harms(0), "times", Bound::AtMost(0.0)),
            Verdict::value("50 % fewer: HARM", harms(50), "times", Bound::AtLeast(1.0)),
        ],
    })
}

impl Replayed {
    fn line(&self) -> String {
        let Self { lowered, visits, guard, back } = self;
        let arm = |arm: &Option<ArmReport>| {
            arm.map_or_else(
                || "-".to_owned(),
                |it| format!("{} of {}", count_of(it.outcomes), count_of(it.units)),
            )
        };
        let percent = |share: Option<f64>| {
            share.map_or_else(|| "-".to_owned(), |share| format!("{:+.1}", share * 100.0))
        };
        let (difference, low, high) =
            (percent(guard.difference), percent(guard.difference_low), percent(guard.difference_high));
        let back = back.map_or_else(|| "-".to_owned(), |back| figure(back.as_secs_f64()));
        let verdict = guard.verdict().as_str_name().trim_start_matches("VERDICT_");
        format!(
            "| {lowered} % fewer | {verdict} | {} | {} | {} | {difference} [{low}, {high}] | {back} |",
            count(*visits),
            arm(&guard.control),
            arm(&guard.canary)
        )
    }
}

fn count_of(number: i64) -> String {
    count(number.unsigned_abs())
}

/// Of each session of the file, whether it bought.
fn bought(stand: &Stand) -> Outcome<Vec<bool>> {
    let mut reader = csv::Reader::from_path(FILE)?;
    let revenue = reader
        .headers()?
        .iter()
        .position(|name| name == "Revenue")
        .ok_or("no column Revenue")?;
    let rows = reader.records().map(|row| Outcome::Ok(row?.get(revenue) == Some("1")));
    let rows = rows.collect::<Outcome<Vec<_>>>()?;
    let most = usize::try_from(stand.plan.scaled(rows.len() as u64))?;
    Ok(rows.into_iter().take(most).collect())
}

/// A pair of its own: what one replay quarantines is not the next one's business.
async fn replay(stand: &Stand, bought: &Arc<Vec<bool>>, lowered: u32) -> Outcome<Replayed> {
    let names = [format!("shop_release_{lowered}"), format!("shop_session_{lowered}")];
    let release_svc = stand.release_svc(&stand.database.create(&names[0]).await?).await?;
    let session_svc = stand
        .session_svc_beside(&release_svc, &stand.database.create(&names[1]).await?)
        .await?;
    let pipeline = Pipeline::open(stand, &release_svc).await?;
    pipeline.create_component(0, COMPONENT.to_owned()).await?;
    pipeline.ship(COMPONENT, "1.0", vec![], RolloutPlan::default()).await?;
    let storefront = Storefront::open(stand, &session_svc, COMPONENT).await?;
    until("a visit on 1.0", async || Ok((!storefront.visit(0).await?.pins.is_empty()).then_some(()))).await?;
    let rollout = pipeline.ship(COMPONENT, "1.1", vec![5_000], watched_by("purchase")).await?;
    until("the canary", async || {
        let rollout = pipeline
            .rollout(0, rollout.rollout_id.clone())
            .await?
            .rollout
            .unwrap_or_default();
        Ok((rollout.phase() == StepPhase::Baking).then_some(()))
    })
    .await?;
    let replayed = visits(&pipeline, &rollout, &storefront, bought, lowered).await?;
    session_svc.stop().await?;
    release_svc.stop().await?;
    for name in names {
        stand.database.forget(&name).await?;
    }
    Ok(replayed)
}

async fn visits(
    pipeline: &Pipeline,
    rollout: &Rollout,
    storefront: &Storefront,
    bought: &Arc<Vec<bool>>,
    lowered: u32,
) -> Outcome<Replayed> {
    let (mut done, orders) = (0, Arc::new(AtomicI64::new(0)));
    loop {
        let (first, last) = (done, (done + BATCH).min(bought.len()));
        let (from, storefront, bought_by) = (first as u64, storefront.clone(), Arc::clone(bought));
        let placed = Arc::clone(&orders);
        let call = move |Turn { worker, number }| {
            let (storefront, bought, placed) =
                (storefront.clone(), Arc::clone(&bought_by), Arc::clone(&placed));
            async move {
                let number = from + number;
                let visit = storefront.visit(worker).await?;
                let is_canary = visit.pins.iter().any(|pin| pin.arm() == Arm::Canary);
                // A row's draw is the same in every run.
                let is_lost = is_canary && StdRng::seed_from_u64(number).random_range(0..100) < lowered;
                if bought[usize::try_from(number)?] && !is_lost {
                    storefront.buy(worker, &visit.session_token, number).await?;
                    placed.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }
        };
        load::each((last - first) as u64, IN_FLIGHT, call).await?;
        done = last;
        let counted = Instant::now();
        let (units, guard) = until("the counts of these visits", async || {
            let answer = pipeline.rollout(0, rollout.rollout_id.clone()).await?;
            let guard = answer.report.unwrap_or_default().guards.into_iter().next();
            let guard = guard.ok_or("no guard in the report")?;
            let [units, outcomes] = [|arm: &ArmReport| arm.units, |arm: &ArmReport| arm.outcomes]
                .map(|of| [&guard.control, &guard.canary].into_iter().flatten().map(of).sum::<i64>());
            let is_all = units >= i64::try_from(done)? && outcomes >= orders.load(Ordering::Relaxed);
            let is_over = answer.rollout.unwrap_or_default().state() != RolloutState::Running;
            Ok((is_all || is_over).then_some((units, guard)))
        })
        .await?;
        let is_harm = guard.verdict() == Said::Harm;
        if is_harm || done == bought.len() {
            let back = if is_harm { Some(is_back(pipeline, rollout, counted).await?) } else { None };
            return Ok(Replayed { lowered, visits: units.unsigned_abs(), guard, back });
        }
    }
}

async fn is_back(pipeline: &Pipeline, rollout: &Rollout, since: Instant) -> Outcome<Duration> {
    until("the rollback", async || {
        let rollout = pipeline
            .rollout(0, rollout.rollout_id.clone())
            .await?
            .rollout
            .unwrap_or_default();
        Ok((rollout.state() == RolloutState::RolledBack).then(|| since.elapsed()))
    })
    .await
}

async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Outcome<Option<T>>) -> Outcome<T> {
    let began = Instant::now();
    while began.elapsed() < LIMIT {
        if let Some(found) = probe().await? {
            return Ok(found);
        }
        tokio::time::sleep(POLL).await;
    }
    Err(format!("{what} did not come within {LIMIT:?}").into())
}
