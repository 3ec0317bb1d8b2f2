//! A server from its first to its last call: listens, tells its health, stops taking calls when told to, lets those in
//! flight finish, and gives up on them after a while.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::auth::Authenticator;
use crate::config::{LogFormat, Problems, ServiceArgs};
use crate::db::{Db, DbError};
use crate::edge::{Edge, EdgeLayer, Limits, NoScope};
use crate::feed::Feed;
use crate::keys::Keys;
use crate::pb;
use crate::telemetry;
use crate::time::Clock;
use crate::tls::Tls;

/// Largest message that is taken in.
pub const MESSAGE_MAX_BYTES: usize = 1024 * 1024;
/// Health says `NOT_SERVING` when the database was away for so long.
const HEALTH_GRACE: Duration = Duration::from_secs(5);
/// PostgreSQL's notices are about what migrations found done already.
const LOGS: &str = "info,sqlx::postgres::notice=warn";
/// For connections to close once their last call is answered.
const FAREWELL: Duration = Duration::from_secs(2);
const PING_INTERVAL: Duration = Duration::from_secs(1);
const PING_LIMIT: Duration = Duration::from_secs(3);
const CLOCK_INTERVAL: Duration = Duration::from_secs(10);
const CERTIFICATE_INTERVAL: Duration = Duration::from_mins(1);

/// Why a service ended without being told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The port.
    #[error("cannot listen on {0}: {1}. Stop what uses the port, or choose another with --listen")]
    Listen(SocketAddr, std::io::Error),
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The protos.
    #[error(transparent)]
    Scope(#[from] NoScope),
    /// The network.
    #[error("the server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// A file.
    #[error("cannot write {0}: {1}")]
    File(std::path::PathBuf, std::io::Error),
    /// Reflection.
    #[error("reflection failed: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// How a service is told to stop, and what it waits for then.
#[derive(Clone, Default)]
pub struct Lifecycle {
    /// Cancelled when the service shall stop.
    pub stop: CancellationToken,
    /// Cancelled when no call is left, for what must outlive the calls.
    pub drained: CancellationToken,
    /// Calls and streams.
    pub calls: TaskTracker,
    /// Workers.
    pub workers: TaskTracker,
}

/// What a service brings to be served.
pub struct Served {
    /// Full names of its services.
    pub services: &'static [&'static str],
    /// The services.
    pub routes: Routes,
    /// Who may call.
    pub authenticator: Arc<Authenticator>,
    /// Keys of ours, kept up with while it serves.
    pub keys: Arc<Keys>,
    /// Its certificate; without one it speaks plain text.
    pub tls: Option<Tls>,
    /// Tells the time.
    pub clock: Clock,
    /// Its database, which its health depends on.
    pub db: Db,
    /// Whether to answer reflection.
    pub reflection: bool,
    /// What it takes at once, and of each caller.
    pub limits: Limits,
    /// Patience on shutdown.
    pub drain: Duration,
}

/// Takes the port.
pub async fn listen(address: SocketAddr, address_file: Option<&Path>) -> Result<TcpListener, ServeError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| ServeError::Listen(address, error))?;
    let address = listener.local_addr().map_err(|error| ServeError::Listen(address, error))?;
    if let Some(path) = address_file {
        // Whoever waits for the file must never see half of it.
        let partial = path.with_extension("partial");
        let written =
            std::fs::write(&partial, address.to_string()).and_then(|()| std::fs::rename(&partial, path));
        written.map_err(|error| ServeError::File(path.to_owned(), error))?;
    }
    tracing::info!(%address, "listening");
    Ok(listener)
}

/// Serves until told to stop, then drains.
pub async fn serve(served: Served, listener: TcpListener, lifecycle: &Lifecycle) -> Result<(), ServeError> {
    let Served { services, routes, authenticator, tls, keys, clock, db, reflection, limits, drain } = served;
    let tls = tls.map(Arc::new);
    let edge = Edge::new(
        services,
        Arc::clone(&authenticator),
        tls.clone(),
        clock.clone(),
        limits,
        MESSAGE_MAX_BYTES,
        lifecycle.calls.clone(),
    )?;
    let (health, health_service) = tonic_health::server::health_reporter();
    let mut routes = routes.add_service(health_service);
    if reflection {
        routes = routes
            .add_service(describe(services).build_v1()?)
            .add_service(describe(services).build_v1alpha()?);
    }
    report_health(&health, services, ServingStatus::Serving).await;
    let monitor =
        monitor(health.clone(), services, db, clock.clone(), tls.clone(), lifecycle.drained.clone());
    lifecycle.workers.spawn(monitor);
    lifecycle.workers.spawn(authenticator.follow(clock, lifecycle.drained.clone()));
    lifecycle.workers.spawn(keys.follow(lifecycle.drained.clone()));

    let builder = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .tcp_nodelay(true)
        .max_concurrent_streams(Some(1024))
        .layer(EdgeLayer(Arc::new(edge)))
        .add_routes(routes);
    let (incoming, stop) = (TcpIncoming::from(listener).with_nodelay(Some(true)), lifecycle.stop.cancelled());
    let mut serving = match tls {
        Some(tls) => builder.serve_with_incoming_shutdown(tls.accept(incoming), stop).boxed(),
        None => builder.serve_with_incoming_shutdown(incoming, stop).boxed(),
    };
    let outcome = tokio::select! {
        biased; // told to stop, a server without connections has ended, too, and work of callers who hung up may be left
        () = lifecycle.stop.cancelled() => {
            tracing::info!("stopping: no new calls");
            report_health(&health, services, ServingStatus::NotServing).await;
            drain_calls(serving, &lifecycle.calls, drain).await
        }
        outcome = &mut serving => outcome,
    };
    lifecycle.drained.cancel();
    lifecycle.workers.close();
    if tokio::time::timeout(Duration::from_secs(5), lifecycle.workers.wait())
        .await
        .is_err()
    {
        tracing::warn!(workers = lifecycle.workers.len(), "workers did not stop in time");
    }
    Ok(outcome?)
}

/// Reflection of these services and of health.
fn describe(services: &[&'static str]) -> tonic_reflection::server::Builder<'static> {
    let builder = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // So that clients by reflection can read the details of errors.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .with_service_name("grpc.health.v1.Health");
    services.iter().fold(builder, |builder, name| builder.with_service_name(*name))
}

/// Waits until no call is left, and then a little for callers to hear the goodbye; one that has frozen never does.
async fn drain_calls<E>(
    mut serving: impl Future<Output = Result<(), E>> + Unpin,
    calls: &TaskTracker,
    patience: Duration,
) -> Result<(), E> {
    calls.close();
    let all_done = async {
        tokio::select! {
            outcome = &mut serving => {
                calls.wait().await;
                outcome
            }
            () = async { calls.wait().await; tokio::time::sleep(FAREWELL).await } => Ok(()),
        }
    };
    tokio::time::timeout(patience, all_done).await.unwrap_or_else(|_| {
        tracing::warn!(
            seconds = patience.as_secs(),
            calls = calls.len(),
            "calls still in flight are given up"
        );
        Ok(())
    })
}

/// Keeps health, the clock and our certificate up to date.
async fn monitor(
    health: HealthReporter,
    services: &'static [&'static str],
    db: Db,
    clock: Clock,
    tls: Option<Arc<Tls>>,
    stop: CancellationToken,
) {
    let (mut seen_at, mut clock_at, mut certificate_at) = (Instant::now(), None::<Instant>, Instant::now());
    let mut is_serving = true;
    loop {
        // The server's own limits do not help where it does not answer at all.
        let asked = tokio::time::timeout(PING_LIMIT, async {
            if clock_at.is_none_or(|at| at.elapsed() >= CLOCK_INTERVAL) {
                db.read_clock(&clock).await.map(|_| clock_at = Some(Instant::now()))
            } else {
                db.ping().await
            }
        });
        let is_there = matches!(asked.await, Ok(Ok(())));
        if is_there {
            seen_at = Instant::now();
        }
        let shall_serve = seen_at.elapsed() < HEALTH_GRACE && !stop.is_cancelled();
        if shall_serve != is_serving {
            let status = if shall_serve { ServingStatus::Serving } else { ServingStatus::NotServing };
            tracing::warn!(serving = shall_serve, "health changed");
            report_health(&health, services, status).await;
            is_serving = shall_serve;
        }
        if certificate_at.elapsed() >= CERTIFICATE_INTERVAL {
            if let Some(tls) = &tls {
                tls.refresh();
            }
            certificate_at = Instant::now();
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PING_INTERVAL) => {}
        }
    }
}

async fn report_health(health: &HealthReporter, services: &[&str], status: ServingStatus) {
    for name in services.iter().chain(&[""]) {
        health.set_service_status(*name, status).await;
    }
}

/// Tells metrics how many connections are open and idle.
pub fn observe_pool(db: &Db) {
    let meter = opentelemetry::global::meter("tandem");
    let (open, idle) = (db.clone(), db.clone());
    let _ = meter
        .u64_observable_gauge("tandem.db.connections.open")
        .with_callback(move |gauge| gauge.observe(open.connections().0.into(), &[]))
        .build();
    let _ = meter
        .u64_observable_gauge("tandem.db.connections.idle")
        .with_callback(move |gauge| gauge.observe(idle.connections().1 as u64, &[]))
        .build();
}

/// Tells metrics how far the feed is behind.
pub fn observe_feed(feed: &Arc<Feed>, clock: &Clock) {
    let (feed, clock) = (Arc::downgrade(feed), clock.clone());
    let _ = opentelemetry::global::meter("tandem")
        .f64_observable_gauge("tandem.feed.lag")
        .with_unit("s")
        .with_callback(move |gauge| {
            if let Some(feed) = feed.upgrade() {
                gauge.observe((clock.now() - feed.polled_at()).as_seconds_f64(), &[]);
            }
        })
        .build();
}

/// Runs a service as a process: telemetry, settings, signals, exit code. Settings that cannot be used exit with 2.
pub async fn run<C>(
    name: &'static str,
    args: &ServiceArgs,
    config: Result<C, Problems>,
    service: impl AsyncFnOnce(C, &Lifecycle) -> Result<(), ServeError>,
) -> ExitCode {
    let mut problems = Problems::default();
    let logs = problems.optional("TANDEM_LOG", Some(args.log.as_deref().unwrap_or(LOGS)));
    let format = problems.optional("TANDEM_LOG_FORMAT", args.log_format.as_deref());
    let config = match problems.and(config) {
        Ok(config) => config,
        Err(problems) => return refuse(&problems),
    };
    let (logs, format) = (logs.unwrap_or_default(), format.unwrap_or(LogFormat::Text));
    let guard = match telemetry::init(name, logs, format, crate::config::exports_telemetry()) {
        Ok(guard) => guard,
        Err(error) => return refuse(&error),
    };
    let lifecycle = Lifecycle::default();
    let stop = lifecycle.stop.clone();
    let with_stdin = args.stop_with_stdin;
    lifecycle.workers.spawn(async move {
        tokio::select! {
            () = stop_signal(with_stdin) => stop.cancel(),
            () = stop.cancelled() => {}
        }
    });
    let outcome = service(config, &lifecycle).await;
    lifecycle.stop.cancel();
    // The exporters block while they flush.
    let _ = tokio::task::spawn_blocking(|| guard.flush()).await;
    match outcome {
        Ok(()) | Err(ServeError::Db(DbError::Stopped)) => ExitCode::SUCCESS,
        Err(error) => refuse(&error),
    }
}

#[expect(clippy::print_stderr, reason = "the last words of the process, also where logs are off")]
fn refuse(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("{error}");
    ExitCode::from(2)
}

/// Waits for SIGTERM, SIGINT, or, where the parent asked for it, the end of standard input.
pub async fn stop_signal(with_stdin: bool) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    let Ok(mut interrupt) = signal(SignalKind::interrupt()) else { return };
    // A thread of its own: tokio's would keep the process from ending before the input does.
    let (open, mut stdin) = tokio::sync::mpsc::channel::<()>(1);
    let kept_open = if with_stdin {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            drop(open);
        });
        None
    } else {
        Some(open)
    };
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM"),
        _ = interrupt.recv() => tracing::info!("SIGINT"),
        _ = stdin.recv() => tracing::info!("standard input closed"),
    }
    drop(kept_open);
}
