//! `RoutingService`: tells session services what to serve, and hears what they act on.
//!
//! A stream begins with everything and goes on with what the feed of events says has changed, read anew: what is sent is
//! what is stored, never older than what was sent before. A reader that falls behind is cut off.

use std::collections::{BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use shared::db::Db;
use shared::feed::{Batch, Heard};
use shared::id::{ComponentId, EnvironmentId, TenantId};
use shared::parse::parse;
use shared::pb::release as pb;
use shared::pb::release::routing_service_server::RoutingService;
use shared::pb::release::watch_routes_response::Message;
use shared::secret::sha256;
use shared::status::{Failure, Reason, Refusal};
use shared::time::{duration_to_proto, to_proto};
use shared::watch::too_slow;
use tokio::sync::{broadcast, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::App;
use super::rollout::{assignment_to_proto, kind_to_proto};
use crate::domain::guard::Guard;
use crate::domain::rollout::ServedRelease;
use crate::domain::route::{Route, RoutedRollout};
use crate::{EXPOSURE_LEASE, store};

mod report;

const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
/// Responses a stream holds for its reader, and for how long it waits when they are full.
const BUFFER: usize = 64;
const READER_PATIENCE: Duration = Duration::from_secs(10);
/// Most routes of an environment, over all tenants; a snapshot is one message.
const ROUTES_MAX: i64 = 100_000;

type Sender = mpsc::Sender<Result<pb::WatchRoutesResponse, Status>>;

/// Why a stream ended.
enum End {
    ReaderGone,
    Because(Failure),
}

impl<E: Into<Failure>> From<E> for End {
    fn from(error: E) -> Self {
        Self::Because(error.into())
    }
}

impl From<&ServedRelease> for pb::RoutedRelease {
    fn from(release: &ServedRelease) -> Self {
        Self { release_id: release.id.to_string(), version: release.version.clone() }
    }
}

impl From<&Guard> for pb::RoutedGuard {
    fn from(guard: &Guard) -> Self {
        Self { name: guard.name.to_string(), outcome: kind_to_proto(guard.rule.kind()).into() }
    }
}

impl From<&RoutedRollout> for pb::RoutedRollout {
    fn from(rollout: &RoutedRollout) -> Self {
        Self {
            rollout_id: rollout.id.to_string(),
            release: Some((&rollout.release).into()),
            exposure_bps: rollout.exposure_bps,
            // Each rollout deals its visits anew, so that nobody is always among the first.
            salt: rollout.id.to_string(),
            assignment_policy: assignment_to_proto(rollout.assignment).into(),
            step: rollout.step,
            guards: rollout.guards.as_slice().iter().map(Into::into).collect(),
        }
    }
}

impl From<&Route> for pb::Route {
    fn from(route: &Route) -> Self {
        Self {
            tenant: route.tenant.to_string(),
            component: route.component.to_string(),
            revision: route.revision,
            stable: route.stable.as_ref().map(Into::into),
            rollout: route.rollout.as_ref().map(Into::into),
            withdrawn_release_ids: route.withdrawn.iter().map(ToString::to_string).collect(),
            ended_release_ids: route.ended.iter().map(ToString::to_string).collect(),
            trace_parent: route.trace_parent.clone(),
        }
    }
}

/// Names the life of the database within which revisions only rise.
async fn table_epoch(db: &Db) -> sqlx::Result<String> {
    let hash = sha256(&[b"routes", db.cluster().await?.as_bytes()]);
    Ok(format!("{:016x}", hash.first_chunk().copied().map_or(0, u64::from_be_bytes)))
}

/// One stream.
struct Watch {
    app: Arc<App>,
    environment: EnvironmentId,
    replica: Uuid,
    sender: Sender,
    table_epoch: String,
    /// When the replica was last written down.
    renewed_at: Instant,
    /// Revisions that were sent.
    sent: HashMap<(TenantId, ComponentId), i64>,
}

impl Watch {
    async fn run(mut self) {
        let stop = self.app.stop.clone();
        let end = tokio::select! {
            end = self.follow() => end,
            () = stop.cancelled() => {
                Err(Refusal::new(Reason::ShuttingDown, "the server is stopping; reconnect").into())
            }
        };
        if let Err(End::Because(failure)) = end {
            // A reader that went away needs no reason.
            let _ = timeout(READER_PATIENCE, self.sender.send(Err(failure.into()))).await;
        }
    }

    async fn follow(&mut self) -> Result<(), End> {
        // Listening begins before the reading, so that nothing falls between the two.
        let mut heard = self.app.feed.subscribe();
        self.send_snapshot().await?;
        let mut alive = interval_at(Instant::now() + SIGN_OF_LIFE, SIGN_OF_LIFE);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                heard = heard.recv() => match heard.as_deref() {
                    Ok(Heard::Batch(batch)) => self.send_changes(batch).await?,
                    Ok(Heard::Restarted) => self.send_snapshot().await?,
                    Err(broadcast::error::RecvError::Lagged(_)) => return Err(too_slow().into()),
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                },
                _ = alive.tick() => {
                    self.renew().await?;
                    self.send(None).await?;
                }
            }
        }
    }

    /// Writes down that the replica is there, unless that was done just now. What is sent is sent after it, so that a
    /// replica that may know of a rollout was seen since its start, but for [`crate::REPLICA_MARGIN`].
    async fn renew(&mut self) -> Result<(), End> {
        if self.renewed_at.elapsed() + SIGN_OF_LIFE / 10 < SIGN_OF_LIFE {
            return Ok(());
        }
        let renewed_at = Instant::now();
        let mut db = self.app.db.connection().await?;
        let now = self.app.clock.now();
        store::route::upsert_replica(&mut db, &self.environment, self.replica, now).await?;
        self.renewed_at = renewed_at;
        Ok(())
    }

    /// Writes the replica down and reads every route, in one transaction that rollbacks know of.
    async fn send_snapshot(&mut self) -> Result<(), End> {
        self.table_epoch = table_epoch(&self.app.db).await?;
        self.sent.clear();
        self.renewed_at = Instant::now();
        let mut tx = self.app.db.begin(None).await?;
        let now = self.app.clock.now();
        store::route::enter_watch(&mut tx, &self.environment).await?;
        store::route::upsert_replica(&mut tx, &self.environment, self.replica, now).await?;
        let routes = store::route::list(&mut tx, &self.environment, ROUTES_MAX + 1).await?;
        tx.commit().await?;
        if i64::try_from(routes.len()).unwrap_or(i64::MAX) > ROUTES_MAX {
            return Err(Failure::Bug(format!("environment {} has too many routes", self.environment)).into());
        }
        let snapshot = pb::RouteSnapshot { routes: routes.iter().map(Into::into).collect() };
        for route in routes {
            self.sent.insert((route.tenant, route.component), route.revision);
        }
        self.send(Some(Message::Snapshot(snapshot))).await
    }

    async fn send_changes(&mut self, batch: &Batch) -> Result<(), End> {
        let concerned = batch.events.iter().filter(|event| {
            event.kind.starts_with("rollout.") && event.data["environment"] == self.environment.as_str()
        });
        let names: BTreeSet<_> = concerned
            .filter_map(|event| {
                Some((event.tenant.to_string(), event.data["component"].as_str()?.to_owned()))
            })
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        let (tenants, components): (Vec<_>, Vec<_>) = names.into_iter().unzip();
        let mut db = self.app.db.connection().await?;
        let routes = store::route::list_named(&mut db, &self.environment, &tenants, &components).await?;
        drop(db);
        for route in routes {
            let message = Message::Route((&route).into());
            let sent = self.sent.entry((route.tenant, route.component)).or_insert(0);
            if route.revision > *sent {
                *sent = route.revision;
                self.renew().await?;
                self.send(Some(message)).await?;
            }
        }
        Ok(())
    }

    async fn send(&self, message: Option<Message>) -> Result<(), End> {
        let response = pb::WatchRoutesResponse {
            table_epoch: self.table_epoch.clone(),
            exposure_lease: Some(duration_to_proto(EXPOSURE_LEASE)),
            send_time: Some(to_proto(self.app.clock.now())),
            message,
        };
        match timeout(READER_PATIENCE, self.sender.send(Ok(response))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::ReaderGone),
            Err(_) => Err(too_slow().into()),
        }
    }
}

/// The application behind the generated trait, which wants it cloned into streams.
pub(super) struct Routing(pub Arc<App>);

#[tonic::async_trait]
impl RoutingService for Routing {
    type WatchRoutesStream = Pin<Box<dyn Stream<Item = Result<pb::WatchRoutesResponse, Status>> + Send>>;

    async fn watch_routes(
        &self,
        request: Request<pb::WatchRoutesRequest>,
    ) -> Result<Response<Self::WatchRoutesStream>, Status> {
        let pb::WatchRoutesRequest { environment, replica_id } = request.into_inner();
        let (sender, receiver) = mpsc::channel(BUFFER);
        let watch = Watch {
            app: Arc::clone(&self.0),
            environment: parse("environment", &environment).map_err(Failure::from)?,
            replica: parse("replica_id", &replica_id).map_err(Failure::from)?,
            sender,
            table_epoch: String::new(),
            renewed_at: Instant::now(),
            sent: HashMap::new(),
        };
        self.0.calls.spawn(watch.run());
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn report_applied(
        &self,
        request: Request<pb::ReportAppliedRequest>,
    ) -> Result<Response<pb::ReportAppliedResponse>, Status> {
        Ok(Response::new(self.0.report_applied(request).await?))
    }

    async fn report_signals(
        &self,
        request: Request<pb::ReportSignalsRequest>,
    ) -> Result<Response<pb::ReportSignalsResponse>, Status> {
        Ok(Response::new(self.0.report_signals(request).await?))
    }

    async fn report_kills(
        &self,
        request: Request<pb::ReportKillsRequest>,
    ) -> Result<Response<pb::ReportKillsResponse>, Status> {
        Ok(Response::new(self.0.report_kills(request).await?))
    }
}
