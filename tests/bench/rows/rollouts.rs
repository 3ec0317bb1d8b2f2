//! What release-svc takes for many rollouts at once: the controller's pass, how soon session services hear of a change, and
//! the calls that people and pipelines make.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use shared::pb::release as pb;
use shared::pb::release::routing_service_client::RoutingServiceClient;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Request;

use crate::Outcome;
use crate::client::connect;
use crate::cpu::Processes;
use crate::load::{self, Load, Turn, histogram};
use crate::page::{Bound, Section, Verdict, count, disturbance, figure};
use crate::release::{ENVIRONMENT, Pipeline, TENANT, watched_by};
use crate::server::Server;
use crate::stand::{Stand, note};

const COMPONENTS: u64 = 1_000;
const RELEASES_EACH: u64 = 10;
const ROLLOUTS: u64 = 200;
const WATCHERS: usize = 100;
/// A caller may hold so many streams.
const WATCHERS_A_CALLER: usize = 50;
const CHANGES: usize = 50;
const IN_FLIGHT: usize = 32;
const CALLS_PER_SECOND: f64 = 50.0;
const CALLERS: usize = 16;
/// Of each rpc.
const CALLS: usize = 500;
/// Passes over which the controller's share is taken; there is one a second.
const PASSES: u32 = 20;
const SETTLING: Duration = Duration::from_secs(3);
/// What a report may name at most.
const REPORTED_MAX: usize = 100;
const HEARD_LIMIT: Duration = Duration::from_secs(30);

/// A catalogue with rollouts under way.
struct Catalogue {
    pipeline: Pipeline,
    /// By component and version.
    releases: Vec<String>,
    components: u64,
    rollouts: Vec<pb::Rollout>,
}

/// Processor time in a second.
struct Share {
    release_svc: Duration,
    postgres: Duration,
}

pub(super) async fn rollouts(stand: &Stand) -> Outcome<Section> {
    let url = stand.database.create("rollouts").await?;
    let server = stand.release_svc(&url).await?;
    note("  making components and releases");
    let mut catalogue = Catalogue::make(stand, &server).await?;
    let before = Processes::now()?;
    let idle = share(stand, &server).await?;
    note("  starting rollouts");
    catalogue.start(stand, &server).await?;
    let passing = share(stand, &server).await?;
    note("  watching routes");
    let delays = delays(stand, &server, &catalogue).await?;
    note("  calling");
    let calls = calls(&catalogue).await?;
    let foreign = Processes::now()?.foreign_since(&before);
    server.stop().await?;
    stand.database.forget("rollouts").await?;
    section(&catalogue, [&idle, &passing], &delays, &calls, foreign)
}

fn section(
    catalogue: &Catalogue,
    [idle, passing]: [&Share; 2],
    delays: &Histogram<u64>,
    calls: &[(String, Load)],
    foreign: f64,
) -> Outcome<Section> {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let mut body = "| processor time, ms a second | release-svc | PostgreSQL |\n|---|---|---|\n".to_owned();
    for (name, share) in [("no rollout under way", idle), ("all of them under way", passing)] {
        writeln!(body, "| {name} | {} | {} |", figure(ms(share.release_svc)), figure(ms(share.postgres)))?;
    }
    let at = |latencies: &Histogram<u64>, share: f64| {
        ms(Duration::from_micros(latencies.value_at_quantile(share)))
    };
    let row = |latencies: &Histogram<u64>| {
        let [p50, p99, greatest] = [0.5, 0.99, 1.0].map(|share| figure(at(latencies, share)));
        format!("{} | {p50} | {p99} | {greatest}", count(latencies.len()))
    };
    writeln!(body, "\n| | samples | p50 ms | p99 ms | greatest ms |\n|---|---|---|---|---|")?;
    writeln!(body, "| change of a route until a watcher has it | {} |", row(delays))?;
    let mut all = histogram();
    for (name, load) in calls {
        writeln!(body, "| `{name}` | {} |", row(&load.latencies))?;
        all.add(&load.latencies)?;
    }
    writeln!(body, "\n{}", disturbance(foreign))?;
    let pass = ms(passing.release_svc) + ms(passing.postgres);
    Ok(Section {
        title: "Many rollouts at once",
        goal: "1,000 components, 10,000 releases, 200 rollouts at once: a controller pass at most 100 ms of CPU, a change at 100 \
               `WatchRoutes` clients p99 at most 250 ms, governance rpcs p99 at most 20 ms",
        method: format!(
            "One release-svc with {} components of {} releases each and {} rollouts under way, each with a guard and counts of its \
             visits. The controller passes once a second; counted is all that release-svc and PostgreSQL use of the processors in {PASSES} \
             s in which nobody calls, so a pass takes no more on average. Then {WATCHERS} clients watch the routes and {CHANGES} rollouts are rolled back one by one, each \
             timed from before the call until each client has the new route. Then calls, with the clients gone, {CALLS_PER_SECOND} a \
             second in an open loop, each of another component.",
            count(catalogue.components),
            RELEASES_EACH,
            catalogue.rollouts.len()
        ),
        body,
        verdicts: vec![
            Verdict::value(
                "a second of release-svc and PostgreSQL, with its pass",
                pass,
                "ms of CPU",
                Bound::AtMost(100.0),
            ),
            Verdict::value("p99 until a watcher has a change", at(delays, 0.99), "ms", Bound::AtMost(250.0)),
            Verdict::value("p99 of all calls", at(&all, 0.99), "ms", Bound::AtMost(20.0)),
        ],
    })
}

fn name(component: u64) -> String {
    format!("component-{component}")
}

impl Catalogue {
    /// Versions of a component are made in their order.
    async fn make(stand: &Stand, server: &Server) -> Outcome<Self> {
        let components = stand.plan.scaled(COMPONENTS);
        let pipeline = Pipeline::open(stand, server).await?;
        let making = pipeline.clone();
        load::each(components, IN_FLIGHT, move |Turn { worker, number }| {
            let making = making.clone();
            async move { making.create_component(worker, name(number)).await }
        })
        .await?;
        let mut releases = vec![];
        for version in 0..RELEASES_EACH {
            let (made, mut ids) = mpsc::unbounded_channel();
            let making = pipeline.clone();
            load::each(components, IN_FLIGHT, move |Turn { worker, number }| {
                let (making, made) = (making.clone(), made.clone());
                async move {
                    let release = making.create_release(worker, name(number), format!("1.{version}")).await?;
                    Ok(made.send((number, release))?)
                }
            })
            .await?;
            let mut of_version = vec![];
            while let Some(release) = ids.recv().await {
                of_version.push(release);
            }
            of_version.sort_unstable();
            releases.extend(of_version.into_iter().map(|(_, release)| release));
        }
        Ok(Self { pipeline, releases, components, rollouts: vec![] })
    }

    fn release(&self, component: u64, version: u64) -> Outcome<String> {
        let at = usize::try_from(version * self.components + component)?;
        Ok(self.releases.get(at).ok_or("no such release")?.clone())
    }

    /// The first version of each goes to everyone, the second to one visit in ten.
    async fn start(&mut self, stand: &Stand, server: &Server) -> Outcome<()> {
        for component in 0..stand.plan.scaled(ROLLOUTS).min(self.components / 2) {
            for (version, steps) in [(0, vec![]), (1, vec![1_000, 5_000])] {
                let release = self.release(component, version)?;
                self.pipeline.submit(0, release.clone()).await?;
                let plan = if version == 0 { pb::RolloutPlan::default() } else { watched_by("checkout") };
                let rollout = self.pipeline.start(0, release, steps, plan).await?;
                if version == 1 {
                    self.rollouts.push(rollout);
                }
            }
        }
        let mut routing = RoutingServiceClient::new(connect(server.address).await?);
        for rollouts in self.rollouts.chunks(REPORTED_MAX) {
            let mut request = Request::new(pb::ReportSignalsRequest {
                environment: ENVIRONMENT.to_owned(),
                source_id: "bench".to_owned(),
                source_epoch: "1".to_owned(),
                rollouts: rollouts.iter().map(signals).collect(),
            });
            request.metadata_mut().insert("authorization", stand.system_bearer("reporter")?);
            routing.report_signals(request).await?;
        }
        Ok(())
    }
}

/// Ten thousand visits, of which two in a hundred failed at the checkout.
fn signals(rollout: &pb::Rollout) -> pb::RolloutSignals {
    let of = |guard: &str, is_canary, count| pb::SignalCount {
        step: 0,
        is_canary,
        guard: guard.to_owned(),
        count,
    };
    pb::RolloutSignals {
        tenant: TENANT.to_owned(),
        rollout_id: rollout.rollout_id.clone(),
        counts: vec![
            of("", false, 9_000),
            of("", true, 1_000),
            of("checkout", false, 180),
            of("checkout", true, 20),
        ],
        visits: None,
    }
}

/// Of a second in which nobody calls.
async fn share(stand: &Stand, server: &Server) -> Outcome<Share> {
    tokio::time::sleep(SETTLING).await;
    let before = Processes::now()?;
    tokio::time::sleep(Duration::from_secs(1) * PASSES).await;
    let after = Processes::now()?;
    let of = |pid| after.tree(pid).saturating_sub(before.tree(pid)) / PASSES;
    Ok(Share { release_svc: of(server.pid), postgres: of(stand.postgres()) })
}

/// In microseconds, of each change and each watcher.
async fn delays(stand: &Stand, server: &Server, catalogue: &Catalogue) -> Outcome<Histogram<u64>> {
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let mut watchers = JoinSet::new();
    for watcher in 0..WATCHERS {
        let channel = connect(server.address).await?;
        let mut request = Request::new(pb::WatchRoutesRequest {
            environment: ENVIRONMENT.to_owned(),
            replica_id: uuid::Uuid::from_u128(watcher as u128 + 1).to_string(),
        });
        let sub = format!("watcher-{}", watcher / WATCHERS_A_CALLER);
        request.metadata_mut().insert("authorization", stand.system_bearer(&sub)?);
        let mut stream = RoutingServiceClient::new(channel).watch_routes(request).await?.into_inner();
        // The snapshot.
        stream.message().await?;
        let heard = heard.clone();
        watchers.spawn(async move {
            while let Ok(Some(message)) = stream.message().await {
                if let Some(pb::watch_routes_response::Message::Route(route)) = message.message
                    && route.rollout.is_none_or(|rollout| rollout.exposure_bps == 0)
                    && heard.send((route.component, Instant::now())).is_err()
                {
                    return;
                }
            }
        });
    }
    tokio::time::sleep(SETTLING).await;
    let mut delays = histogram();
    for rollout in catalogue.rollouts.iter().take(CHANGES) {
        let began = Instant::now();
        catalogue.pipeline.roll_back(0, rollout.rollout_id.clone()).await?;
        let mut missing = WATCHERS;
        while missing > 0 {
            let (component, at) = tokio::time::timeout(HEARD_LIMIT, hearing.recv())
                .await?
                .ok_or("every watcher was cut off")?;
            if component == rollout.component {
                delays.saturating_record(u64::try_from(at.duration_since(began).as_micros())?);
                missing -= 1;
            }
        }
    }
    watchers.shutdown().await;
    Ok(delays)
}

/// What people and pipelines ask.
#[derive(Debug, Clone, Copy)]
enum Rpc {
    CreateRelease,
    SubmitRelease,
    StartRollout,
    ExplainRelease,
    ListReleases,
    GetRollout,
    RollBackRollout,
}

impl Rpc {
    /// Of the component, release or rollout that it is of.
    async fn call(self, pipeline: Pipeline, worker: usize, of: String) -> Outcome<()> {
        match self {
            Self::CreateRelease => pipeline.create_release(worker, of, "2.0".to_owned()).await.map(drop),
            Self::SubmitRelease => pipeline.submit(worker, of).await,
            Self::StartRollout => {
                pipeline.start(worker, of, vec![], pb::RolloutPlan::default()).await.map(drop)
            }
            Self::ExplainRelease => pipeline.explain(worker, of).await,
            Self::ListReleases => pipeline.list(worker, of).await,
            Self::GetRollout => pipeline.rollout(worker, of).await.map(drop),
            Self::RollBackRollout => pipeline.roll_back(worker, of).await,
        }
    }
}

/// Each rpc by itself, those of releases on components that have no rollout under way.
async fn calls(catalogue: &Catalogue) -> Outcome<Vec<(String, Load)>> {
    let free = (catalogue.rollouts.len() as u64..catalogue.components).take(CALLS);
    let of = |version| free.clone().map(move |component| catalogue.release(component, version));
    let first_ones = of(0).collect::<Outcome<Vec<_>>>()?;
    let last_ones = of(RELEASES_EACH - 1).collect::<Outcome<Vec<_>>>()?;
    let running = catalogue
        .rollouts
        .iter()
        .skip(CHANGES)
        .map(|it| it.rollout_id.clone())
        .collect::<Vec<_>>();
    let names = free.clone().map(name).collect::<Vec<_>>();
    let mut calls = vec![];
    for (rpc, subjects) in [
        (Rpc::CreateRelease, names.clone()),
        (Rpc::SubmitRelease, first_ones.clone()),
        (Rpc::StartRollout, first_ones),
        (Rpc::ExplainRelease, last_ones),
        (Rpc::ListReleases, names),
        (Rpc::GetRollout, running.clone()),
        (Rpc::RollBackRollout, running),
    ] {
        let (pipeline, count, subjects) =
            (catalogue.pipeline.clone(), subjects.len() as u64, Arc::new(subjects));
        let call = move |Turn { worker, number }| {
            let (pipeline, subjects) = (pipeline.clone(), Arc::clone(&subjects));
            async move {
                let of = subjects[usize::try_from(number)?].clone();
                rpc.call(pipeline, worker, of).await
            }
        };
        calls.push((format!("{rpc:?}"), load::paced(count, CALLS_PER_SECOND, CALLERS, call).await?));
    }
    Ok(calls)
}
