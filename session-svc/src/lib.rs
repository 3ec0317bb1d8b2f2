//! session-svc: what a shopper, a clerk or a shipment is in the middle of.
//!
//! Floors, each using those under it: `rpc` and `workers`, `store`, `domain`. Beside them the hot path's mechanisms:
//! `cache`, `touches`, `routes`; and `link`, the way to release-svc.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::TimeDelta;
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
use tokio::sync::Notify;

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
    pub mod lineage;
    pub mod merge;
    pub mod preferences;
    pub mod recovery;
    pub mod session;
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
use domain::session::Session;
pub use kinds::KINDS;
use rpc::App;
use rpc::cart::batch::{Answer, Question, change_all};
use store::session::Loaded;

/// The schema's history.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();
/// Events and answered requests.
pub static OUTBOX: Outbox = shared::outbox!("session", KINDS);

const SERVICES: &[&str] = &[
    "tandem.session.v1.SessionService",
    "tandem.session.v1.TouchpointService",
    "tandem.session.v1.CartService",
    "tandem.session.v1.ShopperService",
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
        started_at: clock.now(),
        purged_until: AtomicI64::new(clock.now().timestamp_micros()),
        carts_looked_at_until: AtomicI64::new(clock.now().timestamp_micros()),
        shoppers_looked_at_until: AtomicI64::new(clock.now().timestamp_micros()),
    });
    db::once_there(&lifecycle.stop, async || {
        db.read_clock(&clock).await?;
        feed.begin().await?;
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
    let (walking, stop) = (Arc::clone(app), lifecycle.stop.clone());
    lifecycle.workers.spawn(async move {
        let pass = || workers::purge_sessions(&walking);
        worker::run("purge_sessions", workers::WALK_INTERVAL, &Notify::new(), &stop, pass).await;
    });
    let (looking, stop) = (Arc::clone(app), lifecycle.stop.clone());
    lifecycle.workers.spawn(async move {
        let pass = || workers::carts::look_at_carts(&looking);
        worker::run("look_at_carts", workers::carts::INTERVAL, &Notify::new(), &stop, pass).await;
    });
    let (looking, stop) = (Arc::clone(app), lifecycle.stop.clone());
    lifecycle.workers.spawn(async move {
        let pass = || workers::shoppers::look_at_shoppers(&looking);
        worker::run("look_at_shoppers", workers::shoppers::INTERVAL, &Notify::new(), &stop, pass).await;
    });
    let (purging, stop) = (Arc::clone(app), lifecycle.stop.clone());
    lifecycle.workers.spawn(async move {
        let pass = || workers::purge_requests(&purging);
        worker::run("purge_requests", workers::PURGE_INTERVAL, &Notify::new(), &stop, pass).await;
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

/// As [`loads`].
fn creations(db: &Db) -> Batcher<(TenantId, Session), ()> {
    let db = db.clone();
    Batcher::new("session_creations", move |sessions: Arc<[(TenantId, Session)]>| {
        let db = db.clone();
        async move {
            let rows: Vec<_> = sessions.iter().map(|(tenant, session)| (tenant, session, None)).collect();
            store::session::insert(&mut *db.connection().await?, &rows).await?;
            Ok(vec![(); sessions.len()])
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
