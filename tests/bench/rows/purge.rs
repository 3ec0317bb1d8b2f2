//! What the purge of dead sessions costs those who validate live ones meanwhile.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use shared::pb::session::Consistency;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio_util::sync::CancellationToken;

use crate::Outcome;
use crate::cpu::Processes;
use crate::load::{self, Load, Turn};
use crate::page::{Bound, Section, Verdict, count, disturbance, figure};
use crate::population::{Size, copy_into};
use crate::rounds::{SETTLING, Spread};
use crate::shop::Shop;
use crate::stand::{Stand, note};

/// Live ones, and about as many dead.
const SESSIONS: u64 = 1_000_000;
const IN_FLIGHT: usize = 32;
/// In flight at most in the open loop.
const WORKERS: usize = 256;
/// How many runs' time is measured beside the purge, if that takes so long, and without it.
const BESIDE: u32 = 30;
const WITHOUT: u32 = 15;
const POLL: Duration = Duration::from_millis(250);
/// A walk begins when its row says so: later than any run ends, or now.
const PAUSE: &str = "insert into session.purge_walk (tenant_id, session_id, began_at)
    values ('', '00000000-0000-0000-0000-000000000000', now() + interval '1 day')
    on conflict (singleton) do update set session_id = excluded.session_id, began_at = excluded.began_at";
const BEGIN: &str = "update session.purge_walk set tenant_id = '', began_at = now(), completed_at = null";
/// Dead sessions come before all live ones, as they would have been made earlier.
const DEAD_ID: &str = "overlay(model.session_id::text placing '0001' from 1 for 4)::uuid";
const IS_DONE: &str =
    "select session_id >= '00020000-0000-0000-0000-000000000000' or completed_at is not null
    from session.purge_walk";
const LEFT: &str =
    "select count(*) from session.sessions where session_id < '00020000-0000-0000-0000-000000000000'";

/// What was seen while the load went on.
struct Part {
    name: &'static str,
    load: Load,
    /// PostgreSQL's, in seconds.
    cpu: f64,
    foreign: f64,
}

pub(super) async fn purge(stand: &Stand) -> Outcome<Section> {
    let (size, time) =
        (Size { sessions: stand.plan.scaled(SESSIONS), tenants: 1, staleness: None }, stand.plan.time);
    let shop = Shop::open(stand, "purge", size).await?;
    let mut db = PgConnection::connect(&shop.url).await?;
    sqlx::raw_sql(PAUSE).execute(&mut db).await?;
    let dead = make_dead(&mut db).await?;
    reach(&shop, stand.plan.warm_up()).await?;
    let rate = reach(&shop, time * 2).await? / 2.0;
    tokio::time::sleep(SETTLING).await;
    note(&format!("  {} dead, {rate:.0} validations a second", count(dead)));
    let idle = || async {
        tokio::time::sleep(time * WITHOUT).await;
        Ok(())
    };
    let before = Part::measure("no purge, before", stand, &shop, rate, idle()).await?;
    sqlx::raw_sql(BEGIN).execute(&mut db).await?;
    let walk = walk(&mut db, time * BESIDE);
    let beside = Part::measure("purge", stand, &shop, rate, walk).await?;
    sqlx::raw_sql(PAUSE).execute(&mut db).await?;
    let left: i64 = sqlx::query_scalar(LEFT).fetch_one(&mut db).await?;
    tokio::time::sleep(SETTLING).await;
    let after = Part::measure("no purge, after", stand, &shop, rate, idle()).await?;
    db.close().await?;
    shop.close(stand).await?;
    let deleted = dead.saturating_sub(left.unsigned_abs());
    if deleted == 0 {
        return Err("the purge deleted nothing".into());
    }
    let (body, verdicts) = judge([&before, &beside, &after], dead, deleted);
    Ok(Section {
        title: "Purge",
        goal: "of 1 M expired sessions, beside load: p99 of validate at most 1.5x",
        method: format!(
            "{} live sessions, and {} that died two days ago, which are first in the walk's order. Live ones, chosen uniformly, \
             are validated with `CONSISTENCY_STRONG` in an open loop of at most {WORKERS} in flight, at half of the rate that a \
             closed loop of {IN_FLIGHT} reached: {:?} while no walk is due, then beside the walk until no dead session is left, \
             {:?} at most, and {:?} after. Latencies count from when a call was due, to a timer's millisecond.",
            count(size.sessions),
            count(dead),
            time * WITHOUT,
            time * BESIDE,
            time * WITHOUT
        ),
        body,
        verdicts,
    })
}

/// Copies every session as one that died two days ago; says how many.
async fn make_dead(db: &mut PgConnection) -> Outcome<u64> {
    let own = [
        ("session_id", DEAD_ID),
        ("shopper_id", DEAD_ID),
        ("created_at", "model.created_at - interval '3 days'"),
        ("last_seen_at", "model.last_seen_at - interval '3 days'"),
        ("visit_started_at", "model.visit_started_at - interval '3 days'"),
        ("absolute_deadline", "model.absolute_deadline - interval '3 days'"),
    ];
    let copy = copy_into(db, "session.sessions", &own).await?;
    let sql = format!("{copy} from session.sessions model order by model.tenant_id, model.session_id");
    let dead = sqlx::query(AssertSqlSafe(sql)).execute(&mut *db).await?.rows_affected();
    for sql in ["vacuum (analyze) session.sessions", "checkpoint"] {
        sqlx::raw_sql(sql).execute(&mut *db).await?;
    }
    Ok(dead)
}

/// Validations a second in a closed loop.
async fn reach(shop: &Shop, time: Duration) -> Outcome<f64> {
    Ok(load::closed(IN_FLIGHT, time, validate(shop)).await?.per_second())
}

fn validate(
    shop: &Shop,
) -> impl Fn(Turn) -> futures_util::future::BoxFuture<'static, Outcome<()>> + Clone + Send + 'static {
    let client = shop.client.clone();
    move |turn| {
        let client = client.clone();
        Box::pin(async move { client.validate(turn, Consistency::Strong).await })
    }
}

/// Waits until the walk is past all dead sessions, but no longer than this.
async fn walk(db: &mut PgConnection, longest: Duration) -> Outcome<()> {
    let began = Instant::now();
    while began.elapsed() < longest && !sqlx::query_scalar(IS_DONE).fetch_one(&mut *db).await? {
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

impl Part {
    /// Keeps up the load until `until` is over.
    async fn measure(
        name: &'static str,
        stand: &Stand,
        shop: &Shop,
        rate: f64,
        until: impl Future<Output = Outcome<()>>,
    ) -> Outcome<Self> {
        let over = CancellationToken::new();
        let validations = load::open(rate, WORKERS, over.clone(), validate(shop));
        let waiting = async {
            let _stopped = over.drop_guard();
            until.await
        };
        let before = Processes::now()?;
        let (load, ()) = tokio::try_join!(validations, waiting)?;
        let after = Processes::now()?;
        let postgres = stand.postgres();
        Ok(Self {
            name,
            load,
            cpu: after.tree(postgres).saturating_sub(before.tree(postgres)).as_secs_f64(),
            foreign: after.foreign_since(&before),
        })
    }

    fn seconds(&self) -> f64 {
        self.load.took.as_secs_f64()
    }

    /// In milliseconds; none without calls.
    fn quantile(&self, share: f64) -> f64 {
        self.load.quantile(share).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }

    fn p99_to(&self, other: &Self) -> Option<Spread> {
        Spread::of([self.quantile(0.99) / other.quantile(0.99)])
    }
}

#[expect(clippy::cast_precision_loss, reason = "far fewer sessions than 2^52")]
fn judge(parts: [&Part; 3], dead: u64, deleted: u64) -> (String, Vec<Verdict>) {
    let [before, beside, after] = parts;
    let mut body = String::from(
        "| | validations/s | p50 ms | p99 ms | PostgreSQL, of a processor |\n|---|---|---|---|---|\n",
    );
    for part in parts {
        let _ = writeln!(
            body,
            "| {} | {} | {} | {} | {:.0} % |",
            part.name,
            figure(part.load.per_second()),
            figure(part.quantile(0.5)),
            figure(part.quantile(0.99)),
            part.cpu / part.seconds() * 100.0,
        );
    }
    let cost = beside.cpu - before.cpu / before.seconds() * beside.seconds();
    let _ = writeln!(
        body,
        "\nDeleted: {} of {} in {} s, which is {} a second, for {} us of PostgreSQL's processor time each beyond that of the \
         load. {}",
        count(deleted),
        count(dead),
        figure(beside.seconds()),
        figure(deleted as f64 / beside.seconds()),
        figure(cost * 1e6 / deleted as f64),
        disturbance(parts.map(|part| part.foreign).into_iter().fold(0.0, f64::max)),
    );
    let what = "p99 beside the purge, of that before it";
    let verdict = Verdict::ratio(what, beside.p99_to(before), Bound::AtMost(1.5), after.p99_to(before));
    (body, vec![verdict])
}
