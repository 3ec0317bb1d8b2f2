//! What session-svc keeps in memory with a full cache and many watchers, and whether that grows.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use shared::pb::common::WatchEventsRequest;
use shared::pb::common::event_service_client::EventServiceClient;
use shared::pb::session::Consistency;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Request;

use crate::Outcome;
use crate::client::connect;
use crate::cpu::{Processes, resident};
use crate::load::open;
use crate::page::{Bound, Section, Verdict, count, disturbance, figure};
use crate::population::{Size, tenant_name};
use crate::rounds::Spread;
use crate::rows::validate::SESSIONS;
use crate::shop::Shop;
use crate::stand::{Stand, note};

const STREAMS: u64 = 1_000;
/// All that one caller may hold.
const STREAMS_A_CALLER: u64 = 100;
const VALIDATIONS_PER_SECOND: f64 = 3_000.0;
/// Every one goes to every stream.
const EVENTS_PER_SECOND: f64 = 5.0;
const WORKERS: usize = 64;
const HOUR: Duration = Duration::from_hours(1);
/// Allocators do not give everything back at once.
const FLAT: f64 = 1.1;

/// What was found, in MiB.
struct Kept {
    begun: f64,
    cached: f64,
    watched: f64,
    /// One a second, under load.
    samples: Vec<f64>,
}

pub(super) async fn memory(stand: &Stand) -> Outcome<Section> {
    let size = Size { sessions: stand.plan.scaled(SESSIONS), tenants: 1, staleness: None };
    let (streams, soak) = (stand.plan.scaled(STREAMS), stand.plan.soak);
    let shop = Shop::open(stand, "memory", size).await?;
    let pid = shop.server.pid;
    let begun = mib(pid)?;
    shop.warm(size.sessions).await?;
    let cached = mib(pid)?;
    let mut watchers = watch(stand, &shop, streams).await?;
    let watched = mib(pid)?;
    note(&format!("  {cached:.0} MiB with the cache, {watched:.0} MiB with the streams; {soak:?} of load"));
    let before = Processes::now()?;
    let (samples, reached) = load(&shop, soak).await?;
    let foreign = Processes::now()?.foreign_since(&before);
    let cut = std::iter::from_fn(|| watchers.try_join_next()).count();
    drop(watchers);
    shop.close(stand).await?;
    if cut > 0 {
        return Err(format!("{cut} of {streams} streams were cut off").into());
    }
    let (table, verdicts) = Kept { begun, cached, watched, samples }.judge(size.sessions, streams, soak);
    Ok(Section {
        title: "Memory",
        goal: "at most 150 MiB resident with a cache of 100 k sessions and 1,000 watch streams; flat over an hour of load",
        method: format!(
            "Resident memory of session-svc's process, read every second during {soak:?} of load in an open loop: \
             {VALIDATIONS_PER_SECOND} validations and {EVENTS_PER_SECOND} sessions of subjects a second, the events of which go \
             to every stream. release-svc is not part of this row."
        ),
        body: format!("{table}\nReached: {} validations a second. {}", figure(reached), disturbance(foreign)),
        verdicts,
    })
}

impl Kept {
    fn judge(&self, sessions: u64, streams: u64, soak: Duration) -> (String, Vec<Verdict>) {
        let Self { begun, cached, watched, samples } = self;
        let tenth = samples.len().div_ceil(10);
        let median = |part: &[f64]| Spread::of(part.iter().copied()).map_or(f64::NAN, |spread| spread.median);
        let (first, last) = (median(&samples[..tenth]), median(&samples[samples.len() - tenth..]));
        let greatest = samples.iter().copied().fold(*watched, f64::max);
        let rows = [
            ("started, nothing cached".to_owned(), *begun),
            (format!("{} sessions cached", count(sessions)), *cached),
            (format!("and {} streams of `WatchEvents`", count(streams)), *watched),
            ("under load, first tenth of the time".to_owned(), first),
            ("under load, last tenth of the time".to_owned(), last),
            ("greatest".to_owned(), greatest),
        ];
        let mut table = "| session-svc | MiB |\n|---|---|\n".to_owned();
        for (name, mib) in rows {
            let _ = writeln!(table, "| {name} | {} |", figure(mib));
        }
        let what = "last tenth of the time to the first";
        let flat = if soak >= HOUR {
            Verdict::ratio(what, Spread::of([last / first]), Bound::AtMost(FLAT), None)
        } else {
            let grown = last / first;
            Verdict::remark(format!("{what}: {grown:.2}x; {soak:?} say nothing of an hour"))
        };
        (table, vec![Verdict::value("greatest", greatest, "MiB", Bound::AtMost(150.0)), flat])
    }
}

/// Streams in place, each read by a task that ends only with its stream.
async fn watch(stand: &Stand, shop: &Shop, streams: u64) -> Outcome<JoinSet<()>> {
    let mut watchers = JoinSet::new();
    for first in (0..streams).step_by(usize::try_from(STREAMS_A_CALLER)?) {
        let bearer = stand.bearer(&tenant_name(0), &format!("watcher-{first}"))?;
        let mut client = EventServiceClient::new(connect(shop.server.address).await?);
        for _ in first..(first + STREAMS_A_CALLER).min(streams) {
            let mut request = Request::new(WatchEventsRequest::default());
            request.metadata_mut().insert("authorization", bearer.clone());
            let mut stream = client.watch_events(request).await?.into_inner();
            stream.message().await?.ok_or("no sign of life")?;
            watchers.spawn(async move { while let Ok(Some(_)) = stream.message().await {} });
        }
    }
    Ok(watchers)
}

/// Resident memory, a sample a second, under load; and the validations a second that were reached.
async fn load(shop: &Shop, time: Duration) -> Outcome<(Vec<f64>, f64)> {
    let over = CancellationToken::new();
    let (validating, creating) = (shop.client.clone(), shop.client.clone());
    let validations = open(VALIDATIONS_PER_SECOND, WORKERS, over.clone(), move |turn| {
        let client = validating.clone();
        async move { client.validate(turn, Consistency::Bounded).await }
    });
    let events = open(EVENTS_PER_SECOND, WORKERS, over.clone(), move |turn| {
        let client = creating.clone();
        async move { client.create_bound(turn).await }
    });
    let sampling = async {
        let _stopped = over.clone().drop_guard();
        let (began, mut samples) = (Instant::now(), vec![]);
        while began.elapsed() < time {
            tokio::time::sleep(Duration::from_secs(1)).await;
            samples.push(mib(shop.server.pid)?);
        }
        Outcome::Ok(samples)
    };
    let (validations, _, samples) = tokio::try_join!(validations, events, sampling)?;
    Ok((samples, validations.per_second()))
}

#[expect(clippy::cast_precision_loss, reason = "far fewer bytes than 2^52")]
fn mib(pid: u32) -> Outcome<f64> {
    Ok(resident(pid)? as f64 / f64::from(1 << 20))
}
