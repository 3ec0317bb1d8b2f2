//! release-svc: how software changes reach people. Takes releases through governance and moves them into environments,
//! step by step, and tells session services which release each visit should see.
//!
//! Floors: `domain` (pure rules), `store` (all SQL), `apply` (a decision with everything that hangs on it), `rpc` and
//! `workers`. A floor uses those before it, never those after it.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use shared::db::{self, Db};
use shared::feed::Feed;
use shared::outbox::Outbox;
use shared::retention::Retention;
use shared::secret::Entropy;
use shared::serve::{Lifecycle, ServeError, Served, listen};
use shared::time::Clock;
use shared::webhook::{Guard, Webhooks};
use sqlx::migrate::Migrator;
use tokio::net::TcpListener;

mod apply;
pub mod config;
pub mod domain {
    //! What holds, without I/O, clock or chance.
    pub mod approval;
    pub mod audit;
    pub mod blocker;
    pub mod break_glass;
    pub mod component;
    pub mod dependency;
    pub mod evidence;
    pub mod guard;
    pub mod hold;
    pub mod identity;
    pub mod insight;
    pub mod policy;
    pub mod release;
    pub mod risk;
    pub mod rollout;
    pub mod route;
    pub mod signal;
    pub mod snapshot;
    pub mod task;
    pub mod version;
    pub mod window;
}
mod kinds;
pub mod rpc;
pub mod store;
pub mod workers;

pub use config::{Args, Config};
pub use kinds::KINDS;

/// The schema.
pub static MIGRATOR: Migrator = sqlx::migrate!();
/// Events and answered requests.
pub static OUTBOX: Outbox = shared::outbox!("release", KINDS);

/// Without a message of release-svc for this long, a session service assigns no visit to a canary any more. Hence a
/// replica that was not seen for so long, and [`REPLICA_MARGIN`], exposes nothing.
pub const EXPOSURE_LEASE: Duration = Duration::from_mins(5);
/// What is told to a replica is told after it was written down, at most so long before: more than the seconds between two
/// such writes, and than replicas' clocks are apart.
pub const REPLICA_MARGIN: TimeDelta = TimeDelta::seconds(10);

/// Runs the service as a process.
pub async fn run(args: Args) -> ExitCode {
    let service_args = args.service.clone();
    let service = async |config: Config, lifecycle: &Lifecycle| {
        let listener = listen(config.service.listen, config.service.address_file.as_deref()).await?;
        serve(config, listener, Clock::system(), Entropy::system(), lifecycle).await
    };
    shared::serve::run("release-svc", &service_args, args.parse(), service).await
}

/// Serves until told to stop. Waits for the database first.
pub async fn serve(
    config: Config,
    listener: TcpListener,
    clock: Clock,
    entropy: Entropy,
    lifecycle: &Lifecycle,
) -> Result<(), ServeError> {
    let Config { service } = config;
    let url = service.database_url.expose();
    let db = Db::new(url, service.database_connections, "release-svc")?;
    db::prepare(&db, url, &MIGRATOR, &lifecycle.stop).await?;
    let feed = Arc::new(Feed::new(&OUTBOX, db.clone()));
    db::once_there(&lifecycle.stop, async || {
        db.read_clock(&clock).await?;
        // Before anything is served, so that nothing falls between a watcher's snapshot and the feed's first poll.
        feed.begin().await
    })
    .await?;
    shared::serve::observe_pool(&db);
    shared::serve::observe_feed(&feed, &clock);
    let app = Arc::new(rpc::App {
        db: db.clone(),
        keys: Arc::new(service.keys),
        authenticator: Arc::new(service.authenticator),
        clock: clock.clone(),
        entropy,
        feed: Arc::clone(&feed),
        stop: lifecycle.stop.clone(),
        calls: lifecycle.calls.clone(),
    });
    workers::spawn(&app, lifecycle);
    // Without a limit they are all kept: they are the audit trail.
    if let Some(keep) = service.event_retention {
        Retention::spawn(&OUTBOX, &db, &feed, &clock, keep, lifecycle);
    }
    let guard = Guard::new(service.webhook_networks);
    let webhooks = Webhooks::new(&OUTBOX, &db, &clock, &app.entropy, &app.keys, guard, lifecycle);
    webhooks.spawn(lifecycle);
    let (feed_clock, drained) = (clock.clone(), lifecycle.drained.clone());
    lifecycle
        .workers
        .spawn(async move { feed.run(&feed_clock, &drained, |_| ()).await });

    let served = Served {
        services: rpc::SERVICES,
        routes: rpc::routes(&app, webhooks),
        authenticator: Arc::clone(&app.authenticator),
        keys: Arc::clone(&app.keys),
        tls: service.tls,
        clock,
        db: db.clone(),
        reflection: service.reflection,
        limits: service.limits,
        drain: service.drain,
    };
    let outcome = shared::serve::serve(served, listener, lifecycle).await;
    db.close().await;
    outcome
}
