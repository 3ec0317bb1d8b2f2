//! The link to release-svc: watches routes, keeps them in memory and in our database, and reports what is acted on.
//!
//! Everything works without it; the last table goes on, and only the exposure of canaries runs out.

use std::path::PathBuf;
use std::time::Duration;

use shared::id::EnvironmentId;
use shared::pb::release as pb;
use shared::pb::release::routing_service_client::RoutingServiceClient;
use shared::pb::release::watch_routes_response::Message;
use shared::status::Failure;
use shared::worker::Panicked;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tracing::Instrument as _;
use uuid::Uuid;

use self::kill::Kills;
use self::report::Reports;
use self::route::{Applied, Parsed, Unread, parse};
use crate::routes::Key;
use crate::rpc::App;
use crate::store;

mod kill;
mod report;
mod route;

/// Reports name at most so many routes.
const REPORT_MAX: usize = 1000;
/// How often there is a report, if there is something new, and how often in any case.
const INTERVAL: Duration = Duration::from_secs(2);
const INTERVAL_MAX: Duration = Duration::from_secs(15);
/// Longest that one of them takes.
const CALL_LIMIT: Duration = Duration::from_secs(5);
const SILENCE_MAX: Duration = Duration::from_secs(15);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(5);

/// Where release-svc is, and how to call it.
#[derive(Clone)]
pub struct LinkConfig {
    /// Its address.
    pub endpoint: Endpoint,
    /// File with an access token of scope `tandem.system`; read anew for every connection.
    pub token_file: PathBuf,
    /// Names this replica to release-svc, before and after a restart; drawn where there is none.
    pub replica_id: Option<Uuid>,
}

/// Why a connection ended; another one follows.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("cannot read the token file: {0}")]
    Token(#[from] std::io::Error),
    #[error("the token file holds no token")]
    NoToken,
    #[error("cannot connect: {0}")]
    Connect(#[from] tonic::transport::Error),
    #[error("release-svc answers {:?}: {}", .0.code(), .0.message())]
    Call(Box<Status>),
    #[error("nothing heard for {SILENCE_MAX:?}")]
    Silent,
    #[error("the stream ended")]
    Ended,
    #[error("routes not stored: {0}")]
    Store(#[from] sqlx::Error),
    #[error(transparent)]
    Panicked(#[from] Panicked),
    #[error("release-svc sent what makes no sense: {0}")]
    Nonsense(String),
}

impl From<Status> for Broken {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}

/// Passes the trace on, and shows the token.
#[derive(Clone)]
struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let mut request = shared::telemetry::pass_on(request)?;
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Client = RoutingServiceClient<InterceptedService<Channel, Bearer>>;

struct Link<'a> {
    app: &'a App,
    config: LinkConfig,
    environment: EnvironmentId,
    replica: Uuid,
}

/// Takes in the table that was kept when we last ran.
pub async fn load(app: &App, environment: &EnvironmentId) -> sqlx::Result<()> {
    let mut db = app.db.connection().await?;
    if let Some(store::route::Kept { epoch, routes }) = store::route::load(&mut db, environment).await? {
        tracing::info!(routes = routes.len(), "routes of the last run");
        app.routes.reset(&epoch, routes, &[]);
    }
    Ok(())
}

/// Keeps the link up until told to stop.
pub async fn run(app: &App, config: LinkConfig, environment: EnvironmentId, stop: &CancellationToken) {
    let draw = || uuid::Builder::from_random_bytes(app.entropy.bytes()).into_uuid();
    let replica = config.replica_id.unwrap_or_else(draw);
    let link = Link { app, config, environment, replica };
    let mut pause = RETRY_FIRST;
    loop {
        let began = std::time::Instant::now();
        let end = tokio::select! {
            end = shared::worker::catch(link.follow()) => end,
            () = stop.cancelled() => return,
        };
        if let Err(panicked) = &end {
            tracing::error!(%panicked, "link to release-svc panicked; it is made anew");
        }
        if let Err(broken) = end.map_err(Broken::from).flatten() {
            tracing::warn!(reason = %broken, "link to release-svc broken; the last routes go on");
        }
        pause = if began.elapsed() > SILENCE_MAX { RETRY_FIRST } else { (pause * 2).min(RETRY_LAST) };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
}

impl Link<'_> {
    /// Ends when the stream does; reports go on beside it until then.
    async fn follow(&self) -> Result<(), Broken> {
        let client = self.connect().await?;
        let reports = Reports::new(self.app, &self.environment, client.clone());
        let kills = Kills::new(self.app, &self.environment, client.clone());
        tokio::select! {
            end = self.watch(client) => end,
            never = Box::pin(reports.run()) => match never {},
            never = Box::pin(kills.run()) => match never {},
        }
    }

    async fn watch(&self, mut client: Client) -> Result<(), Broken> {
        let request = pb::WatchRoutesRequest {
            environment: self.environment.to_string(),
            replica_id: self.replica.to_string(),
        };
        let mut stream = client.watch_routes(request).await?.into_inner();
        tracing::info!("link to release-svc is up");
        loop {
            let message = tokio::time::timeout(SILENCE_MAX, stream.message())
                .await
                .map_err(|_| Broken::Silent)??;
            let pb::WatchRoutesResponse { table_epoch, exposure_lease, send_time, message } =
                message.ok_or(Broken::Ended)?;
            let routes = match message {
                Some(Message::Snapshot(snapshot)) => self.take_snapshot(&table_epoch, snapshot).await?,
                Some(Message::Route(route)) => {
                    self.take_route(&table_epoch, route).await?.into_iter().collect()
                }
                None => vec![],
            };
            self.renew_lease(send_time, exposure_lease)?;
            for (span, applied) in by_trace(routes) {
                self.report(&mut client, &table_epoch, applied).instrument(span).await?;
            }
        }
    }

    /// A message that waited on the way, or for us to wake up, must not renew more than release-svc counts on.
    fn renew_lease(
        &self,
        send_time: Option<prost_types::Timestamp>,
        lease: Option<prost_types::Duration>,
    ) -> Result<(), Broken> {
        let lease = shared::parse::duration("exposure_lease", lease);
        let lease = lease.map_err(|refusal| Broken::Nonsense(Failure::from(refusal).to_string()))?;
        let sent = send_time.and_then(shared::time::from_proto);
        let (Some(lease), Some(sent)) = (lease, sent) else {
            return Err(Broken::Nonsense("a message without lease or time".to_owned()));
        };
        self.app.routes.heard_of(sent.min(self.app.clock.now()), lease);
        Ok(())
    }

    async fn connect(&self) -> Result<Client, Broken> {
        let token = std::fs::read_to_string(&self.config.token_file)?;
        let header = format!("Bearer {}", token.trim()).parse().map_err(|_| Broken::NoToken)?;
        let channel = self.config.endpoint.connect().await?;
        Ok(RoutingServiceClient::with_interceptor(channel, Bearer(header))
            .max_decoding_message_size(64 * 1024 * 1024))
    }

    /// Routes that it lacks are gone; of one that makes no sense stays what is known.
    async fn take_snapshot(&self, epoch: &str, snapshot: pb::RouteSnapshot) -> Result<Vec<Applied>, Broken> {
        let (mut routes, mut unread) = (vec![], vec![]);
        for route in snapshot.routes {
            match parse(route) {
                Ok(parsed) => routes.push(parsed),
                Err(error) => unread.extend(lament(error)),
            }
        }
        let kept: Vec<_> = routes.iter().map(Parsed::key).chain(unread.iter().cloned()).collect();
        let mut tx = self.app.db.begin(None).await?;
        store::route::begin(&mut tx, &self.environment, epoch).await?;
        store::route::retain(&mut tx, &kept).await?;
        for Parsed { tenant, component, route, .. } in &routes {
            store::route::save(&mut tx, tenant, component, route).await?;
        }
        tx.commit().await?;
        let table = routes
            .iter()
            .map(|parsed| (parsed.tenant.clone(), parsed.component.clone(), parsed.route.clone()));
        self.app.routes.reset(epoch, table, &unread);
        Ok(routes.into_iter().map(Parsed::applied).collect())
    }

    async fn take_route(&self, epoch: &str, route: pb::Route) -> Result<Option<Applied>, Broken> {
        let parsed = match parse(route) {
            Ok(parsed) => parsed,
            Err(error) => {
                lament(error);
                return Ok(None);
            }
        };
        let span = tracing::info_span!("routes.apply", component = %parsed.component, revision = parsed.route.revision);
        shared::telemetry::continue_from(&span, parsed.trace_parent());
        let applied = async {
            let mut db = self.app.db.connection().await?;
            store::route::save(&mut db, &parsed.tenant, &parsed.component, &parsed.route).await?;
            self.app.routes.apply(epoch, &parsed.tenant, &parsed.component, &parsed.route);
            Ok::<(), sqlx::Error>(())
        };
        applied.instrument(span).await?;
        Ok(Some(parsed.applied()))
    }

    async fn report(
        &self,
        client: &mut Client,
        epoch: &str,
        routes: Vec<pb::AppliedRoute>,
    ) -> Result<(), Broken> {
        let request = pb::ReportAppliedRequest {
            environment: self.environment.to_string(),
            replica_id: self.replica.to_string(),
            table_epoch: epoch.to_owned(),
            routes,
        };
        let mut request = Request::new(request);
        request.set_timeout(CALL_LIMIT);
        client.report_applied(request).await?;
        Ok(())
    }
}

/// A route that makes no sense is not acted on, which release-svc sees by its revision not being reported; the others are.
fn lament(unread: Unread) -> Option<Key> {
    let Unread { key, why } = unread;
    tracing::error!(route = ?key, %why, "release-svc sent a route that makes no sense; what was known of it stays");
    key
}

/// One report for a single route, in the trace that made it; many routes go together, in traces of their own.
fn by_trace(mut routes: Vec<Applied>) -> Vec<(tracing::Span, Vec<pb::AppliedRoute>)> {
    if routes.len() == 1 {
        let span = tracing::info_span!("routes.report");
        shared::telemetry::continue_from(&span, &routes[0].trace_parent);
        return routes.pop().map(|applied| (span, vec![applied.route])).into_iter().collect();
    }
    let routes: Vec<_> = routes.into_iter().map(|applied| applied.route).collect();
    routes
        .chunks(REPORT_MAX)
        .map(|chunk| (tracing::info_span!("routes.report"), chunk.to_vec()))
        .collect()
}
