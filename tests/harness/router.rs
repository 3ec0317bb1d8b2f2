//! A stand-in for release-svc as session-svc sees it: it sends the routes that a test says, and keeps what it is told.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use shared::id::{ReleaseId, RolloutId};
use shared::pb::release as pb;
use shared::pb::release::routing_service_server::{RoutingService, RoutingServiceServer};
use shared::pb::release::watch_routes_response::Message;
use shared::time::{Clock, Time, to_proto};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::shop::seconds;
use super::{Options, Stack, eventually};

/// Sends routes; dropped, it is gone.
pub(crate) struct Router {
    pub(crate) address: SocketAddr,
    told: Arc<Told>,
    _server: JoinSet<()>,
}

/// What goes back and forth.
struct Told {
    clock: Clock,
    routes: Mutex<Vec<pb::Route>>,
    changes: broadcast::Sender<Option<Message>>,
    applied: Mutex<HashMap<String, i64>>,
    signals: Mutex<Vec<pb::ReportSignalsRequest>>,
    kills: Mutex<Vec<pb::ReleaseKill>>,
    refused: Mutex<Option<pb::RoutedRelease>>,
    ended: Mutex<HashSet<String>>,
    silent_since: Mutex<Option<Time>>,
}

/// The `n`th release, of version `1.n`.
pub(crate) fn release(n: u128) -> pb::RoutedRelease {
    let id = ReleaseId::from_uuid(Uuid::from_u128(n));
    pb::RoutedRelease { release_id: id.to_string(), version: format!("1.{n}") }
}

pub(crate) fn rollout_id(n: u128) -> RolloutId {
    RolloutId::from_uuid(Uuid::from_u128(n))
}

/// `storefront` 1.0 for everyone.
pub(crate) fn stable() -> pb::Route {
    pb::Route {
        tenant: "shop".to_owned(),
        component: "storefront".to_owned(),
        stable: Some(release(0)),
        ..pb::Route::default()
    }
}

/// `storefront` 1.1 on its way, asking for these outcomes.
pub(crate) fn rolling(exposure_bps: i32, guards: &[&str]) -> pb::Route {
    let guard = |name: &&str| pb::RoutedGuard { name: (*name).to_owned(), outcome: 0 };
    let rollout = pb::RoutedRollout {
        rollout_id: rollout_id(9).to_string(),
        release: Some(release(1)),
        exposure_bps,
        salt: "salt".to_owned(),
        assignment_policy: pb::AssignmentPolicy::NewVisits.into(),
        step: 0,
        guards: guards.iter().map(guard).collect(),
    };
    pb::Route { rollout: Some(rollout), ..stable() }
}

/// The same, moving visits that run, too.
pub(crate) fn moving(route: pb::Route) -> pb::Route {
    let all = pb::AssignmentPolicy::AllSessions.into();
    with_rollout(route, |rollout| rollout.assignment_policy = all)
}

pub(crate) fn with_rollout(mut route: pb::Route, change: impl FnOnce(&mut pb::RoutedRollout)) -> pb::Route {
    change(route.rollout.as_mut().expect("a route with a rollout"));
    route
}

/// 1.1 rolled back.
pub(crate) fn rolled_back() -> pb::Route {
    pb::Route { withdrawn_release_ids: vec![release(1).release_id], ..stable() }
}

impl Router {
    pub(crate) async fn start(stack: &Stack) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let told = Arc::new(Told {
            clock: stack.clock.clone(),
            routes: Mutex::default(),
            changes: broadcast::Sender::new(1000),
            applied: Mutex::default(),
            signals: Mutex::default(),
            kills: Mutex::default(),
            refused: Mutex::default(),
            ended: Mutex::default(),
            silent_since: Mutex::default(),
        });
        let service = RoutingServiceServer::new(Service(Arc::clone(&told)));
        let server = tonic::transport::Server::builder().add_service(service);
        let serve = server.serve_with_incoming(TcpIncoming::from(listener));
        let mut server = JoinSet::new();
        server.spawn(async move { serve.await.unwrap() });
        Self { address, told, _server: server }
    }

    /// How to start a session-svc that follows it.
    pub(crate) fn linked(&self) -> Options {
        Options { release: Some(self.address), ..Options::default() }
    }

    /// Sends a route, and waits until so many replicas act on it.
    pub(crate) async fn send_to(&self, replicas: usize, route: pb::Route) {
        let route = self.keep(route);
        let revision = route.revision;
        let _ = self.told.changes.send(Some(Message::Route(route)));
        self.applied_by(replicas, revision).await;
    }

    /// The same, to one replica.
    pub(crate) async fn send(&self, route: pb::Route) {
        self.send_to(1, route).await;
    }

    /// Takes the route as the only one there is.
    fn keep(&self, route: pb::Route) -> pb::Route {
        let mut routes = self.told.routes.lock().unwrap();
        let revision = routes.iter().map(|route| route.revision).max().unwrap_or(0) + 1;
        *routes = vec![pb::Route { revision, ..route }];
        routes[0].clone()
    }

    /// Sends all routes anew: these.
    pub(crate) fn send_snapshot(&self, routes: Vec<pb::Route>) {
        let _ = self.told.changes.send(Some(Message::Snapshot(pb::RouteSnapshot { routes })));
    }

    async fn applied_by(&self, replicas: usize, revision: i64) {
        eventually("the routes to be applied", || async {
            let applied = self.told.applied.lock().unwrap();
            let there = applied.values().filter(|applied| **applied >= revision).count();
            (there >= replicas).then_some(())
        })
        .await;
    }

    /// The last that was told of every count of a rollout, by step, arm and guard.
    pub(crate) fn counts(&self, rollout: RolloutId) -> HashMap<(i32, bool, String), i64> {
        let signals = self.told.signals.lock().unwrap();
        let mut counts = HashMap::new();
        for of in signals.iter().flat_map(|report| &report.rollouts) {
            if of.rollout_id == rollout.to_string() {
                let key = |count: &pb::SignalCount| (count.step, count.is_canary, count.guard.clone());
                counts.extend(of.counts.iter().map(|count| (key(count), count.count)));
            }
        }
        counts
    }

    /// Waits until exactly these counts were told, by step, arm and guard.
    pub(crate) async fn told_of(&self, rollout: RolloutId, expected: &[(i32, bool, &str, i64)]) {
        let expected: HashMap<_, _> = expected
            .iter()
            .map(|(step, is_canary, guard, count)| ((*step, *is_canary, (*guard).to_owned()), *count))
            .collect();
        let last = Mutex::new(HashMap::new());
        let told = eventually_or(|| {
            let counts = self.counts(rollout);
            let is_told = counts == expected;
            *last.lock().unwrap() = counts;
            is_told
        });
        assert!(told.await, "told {:?}, not {expected:?}", last.lock().unwrap());
    }

    /// The live visits that were told last: canary and control.
    pub(crate) fn visits(&self, rollout: RolloutId) -> Option<(i64, i64)> {
        let signals = self.told.signals.lock().unwrap();
        let told = signals.iter().rev().flat_map(|report| &report.rollouts);
        let mut told = told.filter(|of| of.rollout_id == rollout.to_string());
        told.find_map(|of| of.visits).map(|visits| (visits.canary, visits.control))
    }

    /// Every report of signals.
    pub(crate) fn reports(&self) -> Vec<pb::ReportSignalsRequest> {
        self.told.signals.lock().unwrap().clone()
    }

    pub(crate) fn kills(&self) -> Vec<pb::ReleaseKill> {
        self.told.kills.lock().unwrap().clone()
    }

    /// Takes no kill of this release, or takes all again.
    pub(crate) fn refuse_kills(&self, of: Option<pb::RoutedRelease>) {
        *self.told.refused.lock().unwrap() = of;
    }

    /// Renews the lease no longer, as a link on which every message waits; or again.
    pub(crate) fn fall_silent(&self, is_silent: bool) {
        *self.told.silent_since.lock().unwrap() = is_silent.then(|| self.told.clock.now());
    }

    /// Wants no more reports of a rollout.
    pub(crate) fn end(&self, rollout: RolloutId) {
        self.told.ended.lock().unwrap().insert(rollout.to_string());
    }
}

/// False if it does not come about in 15 s.
async fn eventually_or(mut is_so: impl FnMut() -> bool) -> bool {
    for _ in 0..1000 {
        if is_so() {
            return true;
        }
        tokio::time::sleep(std::time::Duration::from_millis(15)).await;
    }
    false
}

struct Service(Arc<Told>);

impl Told {
    fn response(&self, message: Option<Message>) -> pb::WatchRoutesResponse {
        pb::WatchRoutesResponse {
            table_epoch: "epoch".to_owned(),
            exposure_lease: Some(seconds(300)),
            send_time: Some(to_proto(self.silent_since.lock().unwrap().unwrap_or_else(|| self.clock.now()))),
            message,
        }
    }
}

#[tonic::async_trait]
impl RoutingService for Service {
    type WatchRoutesStream = Pin<Box<dyn Stream<Item = Result<pb::WatchRoutesResponse, Status>> + Send>>;

    async fn watch_routes(
        &self,
        _: Request<pb::WatchRoutesRequest>,
    ) -> Result<Response<Self::WatchRoutesStream>, Status> {
        let told = Arc::clone(&self.0);
        let changes = tokio_stream::wrappers::BroadcastStream::new(told.changes.subscribe());
        let routes = told.routes.lock().unwrap().clone();
        let snapshot = Some(Message::Snapshot(pb::RouteSnapshot { routes }));
        let beat = tokio::time::interval(std::time::Duration::from_millis(100));
        let beats = tokio_stream::wrappers::IntervalStream::new(beat).map(|_| None);
        let messages = changes.map(|change| change.expect("a reader that keeps up")).merge(beats);
        let messages = tokio_stream::once(snapshot).chain(messages);
        Ok(Response::new(Box::pin(messages.map(move |message| Ok(told.response(message))))))
    }

    async fn report_applied(
        &self,
        request: Request<pb::ReportAppliedRequest>,
    ) -> Result<Response<pb::ReportAppliedResponse>, Status> {
        let pb::ReportAppliedRequest { replica_id, routes, .. } = request.into_inner();
        let revision = routes.iter().map(|route| route.revision).max();
        self.0
            .applied
            .lock()
            .unwrap()
            .extend(revision.map(|revision| (replica_id, revision)));
        Ok(Response::new(pb::ReportAppliedResponse {}))
    }

    async fn report_signals(
        &self,
        request: Request<pb::ReportSignalsRequest>,
    ) -> Result<Response<pb::ReportSignalsResponse>, Status> {
        self.0.signals.lock().unwrap().push(request.into_inner());
        let ended_rollout_ids = self.0.ended.lock().unwrap().iter().cloned().collect();
        Ok(Response::new(pb::ReportSignalsResponse { ended_rollout_ids, awaited: vec![] }))
    }

    async fn report_kills(
        &self,
        request: Request<pb::ReportKillsRequest>,
    ) -> Result<Response<pb::ReportKillsResponse>, Status> {
        let kills = request.into_inner().kills;
        let refused = self.0.refused.lock().unwrap().clone();
        if kills
            .iter()
            .any(|kill| refused.as_ref().is_some_and(|release| release.release_id == kill.release_id))
        {
            return Err(Status::invalid_argument("a kill that makes no sense"));
        }
        self.0.kills.lock().unwrap().extend(kills);
        Ok(Response::new(pb::ReportKillsResponse {}))
    }
}
