//! session-svc: what a shopper, a clerk or a shipment is in the middle of.
//!
//! Floors, each using those under it: `rpc` and `workers`, `store`, `domain`. Beside them the hot path's mechanisms:
//! `cache`, `touches`, `routes`; and `link`, the way to release-svc.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use shared::db::{self, Db};
use shared::feed::Feed;
use shared::id::{SessionId, TenantId};
use shared::outbox::Outbox;
use shared::retention::Retention;
use shared::secret::Entropy;
use shared::serve::{self, Lifecycle, ServeError, Served};
use shared::time::{Clock, from_micros};
use shared::watch::Events;
use shared::webhook::{Guard, Webhooks};
use shared::worker;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Notify};

pub mod domain {
    //! The rules, pure: no I/O, no clock, no randomness, no wire types.
    pub mod abandonment;
    pub mod assurance;
    pub mod attribute;
    pub mod browsing;
    pub mod card_number;
    pub mod cart;
    pub mod consent;
    pub mod contact;
    pub mod elevation;
    pub mod history;
    pub mod kill;
    pub mod lineage;
    pub mod merge;
    pub mod preferences;
    pub mod recovery;
    pub mod session;
    pub mod signal;
    pub mod token;
    pub mod touchpoint;
    pub mod visit;
    pub mod wishlist;
}
pub mod batch;
pub mod cache;
pub mod config;
mod kinds;
pub mod known;
pub mod link;
pub mod routes;
pub mod rpc;
pub mod store;
pub mod touches;
pub mod workers;

use batch::Batcher;
pub use config::{Args, Config};
pub use kinds::KINDS;
use rpc::cart::batch::{Answer, Question, change_all};
use rpc::{App, Creation};
use store::session::Loaded;
use store::session::create;
use workers::carts::look_at_carts;
use workers::shoppers::look_at_shoppers;
use workers::signals;

/// The schema's history.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();
/// Events and answered requests.
pub static OUTBOX: Outbox = shared::outbox!("session", KINDS);

const SERVICES: &[&str] = &[
    "tandem.session.v1.SessionService",
    "tandem.session.v1.TouchpointService",
    "tandem.session.v1.CartService",
    "tandem.session.v1.ShopperService",
    "tandem.session.v1.VisitService",
    "tandem.common.v1.EventService",
    "tandem.common.v1.WebhookService",
];
const SESSIONS_CACHED: u64 = 100_000;
const TOUCHPOINTS_CACHED: u64 = 10_000;
/// Where the configuration does not say; a watcher may be away for so long.
const EVENT_RETENTION: TimeDelta = TimeDelta::hours(72);

/// The service as a process: `session-svc`, `tandem serve session`.
pub async fn run(args: Args) -> ExitCode {
    let service_args = args.service.clone();
    serve::run("session-svc", &service_args, args.parse(), async |config: Config, lifecycle: &Lifecycle| {
        let listener = serve::listen(config.service.listen, config.service.address_file.as_deref()).await?;
        serve(config, listener, Clock::system(), Entropy::system(), lifecycle).await
    })
    .await
}

/// Serves until told to stop.
pub async fn serve(
    config: Config,
    listener: TcpListener,
    clock: Clock,
    entropy: Entropy,
    lifecycle: &Lifecycle,
) -> Result<(), ServeError> {
    let Config { service, environment, identity_providers, assertion_issuer, link } = config;
    let url = service.database_url.expose();
    let db = Db::new(url, service.database_connections, "session-svc")?;
    db::prepare(&db, url, &MIGRATOR, &lifecycle.stop).await?;
    let feed = Arc::new(Feed::new(&OUTBOX, db.clone()));
    let keys = Arc::new(service.keys);
    let app = Arc::new(App {
        db: db.clone(),
        clock: clock.clone(),
        entropy,
        keys: Arc::clone(&keys),
        identity_providers: identity_providers.map(Arc::new),
        assertion_issuer,
        feed: Arc::clone(&feed),
        sessions: cache::Cache::new(SESSIONS_CACHED),
        loads: loads(&db),
        creations: creations(&db),
        cart_changes: cart_changes(&db),
        touchpoints: cache::Cache::new(TOUCHPOINTS_CACHED),
        touches: touches::Touches::default(),
        routes: routes::RouteTable::default(),
        kills_changed: Notify::new(),
        kills_reading: Mutex::new(()),
        started_at: clock.now(),
        purged_until: AtomicI64::new(clock.now().timestamp_micros()),
        carts_looked_at_until: AtomicI64::new(clock.now().timestamp_micros()),
        shoppers_looked_at_until: AtomicI64::new(clock.now().timestamp_micros()),
    });
    db::once_there(&lifecycle.stop, async || {
        db.read_clock(&clock).await?;
        feed.begin().await?;
        app.load_kills().await?;
        link::load(&app, &environment).await
    })
    .await?;
    observe(&app);
    spawn_workers(&app, lifecycle);
    if let Some(link) = link {
        let (app, stop) = (Arc::clone(&app), lifecycle.stop.clone());
        lifecycle
            .workers
            .spawn(async move { link::run(&app, link, environment, &stop).await });
    }
    let keep = service.event_retention.unwrap_or(EVENT_RETENTION);
    Retention::spawn(&OUTBOX, &db, &feed, &clock, keep, lifecycle);
    let guard = Guard::new(service.webhook_networks);
    let webhooks = Webhooks::new(&OUTBOX, &db, &clock, &app.entropy, &keys, guard, lifecycle);
    webhooks.spawn(lifecycle);
    let events =
        Events::new(feed, Arc::clone(&keys), clock.clone(), lifecycle.stop.clone(), lifecycle.calls.clone());
    let routes = rpc::routes(&app, events, webhooks);
    let served = Served {
        services: SERVICES,
        routes,
        authenticator: Arc::new(service.authenticator),
        keys,
        tls: service.tls,
        clock,
        db: db.clone(),
        reflection: service.reflection,
        limits: service.limits,
        drain: service.drain,
    };
    let outcome = serve::serve(served, listener, lifecycle).await;
    // What the last calls saw.
    if let Err(error) = workers::flush_touches(&app).await {
        tracing::warn!(%error, "last touches not written");
    }
    db.close().await;
    outcome
}

fn spawn_workers(app: &Arc<App>, lifecycle: &Lifecycle) {
    if let Some(providers) = &app.identity_providers {
        let follow = Arc::clone(providers).follow(app.clock.clone(), lifecycle.stop.clone());
        lifecycle.workers.spawn(follow);
    }
    let (feeding, stop) = (Arc::clone(app), lifecycle.drained.clone());
    lifecycle.workers.spawn(async move {
        feeding.feed.run(&feeding.clock, &stop, |heard| feeding.apply(heard)).await;
    });
    let (flushing, stop) = (Arc::clone(app), lifecycle.drained.clone());
    lifecycle.workers.spawn(async move {
        let pass = || workers::flush_touches(&flushing);
        worker::run("flush_touches", workers::FLUSH_INTERVAL, &Notify::new(), &stop, pass).await;
    });
    let (reading, stop) = (Arc::clone(app), lifecycle.stop.clone());
    lifecycle.workers.spawn(async move {
        let pass = || reading.load_kills();
        worker::run("read_kills", signals::KILLS_INTERVAL, &reading.kills_changed, &stop, pass).await;
    });
    let (walking, stop) = (Arc::clone(app), lifecycle.stop.clone());
    let scanner = signals::Scanner::new(uuid::Builder::from_random_bytes(app.entropy.bytes()).into_uuid());
    lifecycle.workers.spawn(async move {
        let pass = || scanner.pass(&walking);
        worker::run("scan_visits", signals::SCAN_INTERVAL, &Notify::new(), &stop, pass).await;
    });
    let every = |name, interval, pass| every(app, lifecycle, name, interval, pass);
    every("purge_sessions", workers::WALK_INTERVAL, |app| workers::purge_sessions(app).boxed());
    every("look_at_carts", workers::carts::INTERVAL, |app| look_at_carts(app).boxed());
    every("look_at_shoppers", workers::shoppers::INTERVAL, |app| look_at_shoppers(app).boxed());
    every("add_up_signals", signals::ADD_INTERVAL, |app| signals::add_up(app).boxed());
    every("forget_signals", workers::PURGE_INTERVAL, |app| signals::forget_signals(app).boxed());
    every("purge_requests", workers::PURGE_INTERVAL, |app| workers::purge_requests(app).boxed());
}

/// Work beside requests that needs nothing but the application.
type Pass = fn(&App) -> BoxFuture<'_, sqlx::Result<u64>>;

/// Runs a pass now and then until told to stop.
fn every(app: &Arc<App>, lifecycle: &Lifecycle, name: &'static str, interval: Duration, pass: Pass) {
    let (app, stop) = (Arc::clone(app), lifecycle.stop.clone());
    lifecycle.workers.spawn(async move {
        worker::run(name, interval, &Notify::new(), &stop, || pass(&app)).await;
    });
}

/// One statement at a time: in that time the next batch gathers.
fn loads(db: &Db) -> Batcher<(TenantId, SessionId), Option<Loaded>> {
    let db = db.clone();
    Batcher::new("session_loads", move |keys: Arc<[_]>| {
        let db = db.clone();
        async move { store::session::find_many(&mut *db.connection().await?, &keys).await }
    })
}

/// As [`loads`]; whether each was made.
fn creations(db: &Db) -> Batcher<Creation, bool> {
    let db = db.clone();
    Batcher::new("session_creations", move |creations: Arc<[Creation]>| {
        let db = db.clone();
        async move {
            let new: Vec<_> = creations.iter().map(Creation::row).collect();
            create::insert(&mut *db.connection().await?, &new).await
        }
    })
}

/// As [`loads`], a transaction.
fn cart_changes(db: &Db) -> Batcher<Question, Answer> {
    let db = db.clone();
    Batcher::new("cart_changes", move |questions: Arc<[Question]>| {
        let db = db.clone();
        async move { change_all(&db, &questions).await }
    })
}

/// Gauges that are read when metrics are exported.
fn observe(app: &Arc<App>) {
    let meter = opentelemetry::global::meter("tandem");
    let watched = Arc::downgrade(app);
    let cached = move |gauge: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
        if let Some(app) = watched.upgrade() {
            gauge.observe(app.sessions.entry_count(), &[]);
        }
    };
    meter
        .u64_observable_gauge("tandem.cache.sessions")
        .with_callback(cached)
        .build();
    observe_lag(app, "tandem.purge.lag", |app| &app.purged_until);
    observe_lag(app, "tandem.carts.lag", |app| &app.carts_looked_at_until);
    observe_lag(app, "tandem.shoppers.lag", |app| &app.shoppers_looked_at_until);
    serve::observe_pool(&app.db);
    serve::observe_feed(&app.feed, &app.clock);
}

/// How long ago a piece of background work was last done with everything.
fn observe_lag(app: &Arc<App>, name: &'static str, until: fn(&App) -> &AtomicI64) {
    let watched = Arc::downgrade(app);
    let lag = move |gauge: &dyn opentelemetry::metrics::AsyncInstrument<f64>| {
        if let Some(app) = watched.upgrade() {
            let until = from_micros(until(&app).load(Ordering::Relaxed));
            gauge.observe((app.clock.now() - until).as_seconds_f64(), &[]);
        }
    };
    opentelemetry::global::meter("tandem")
        .f64_observable_gauge(name)
        .with_unit("s")
        .with_callback(lag)
        .build();
}
