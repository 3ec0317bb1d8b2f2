//! Webhooks: the events of one service, posted to receivers of its tenants.
//!
//! `fan_out` makes a delivery of every event that a webhook asks for, exactly one. Deliveries of one webhook about one
//! subject form a lane: only the first of them is under way, so they arrive in order, while lanes go side by side. A lane is
//! leased to whoever sends, and the lease ends by itself: a replica that dies keeps nothing, and no two send at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::TimeDelta;
use opentelemetry::metrics::Counter;
use sqlx::AssertSqlSafe;
use tokio::sync::{Notify, Semaphore};
use tokio_util::task::TaskTracker;

use crate::db::Db;
use crate::id::WebhookId;
use crate::keys::Keys;
use crate::outbox::{Kind, Outbox};
use crate::secret::Entropy;
use crate::serve::Lifecycle;
use crate::time::Clock;
use crate::worker;

mod cloud_event;
mod delivery;
mod dispatch;
mod fan_out;
mod guard;
mod lane;
mod log;
mod registration;
mod rpc;
mod sender;

pub use guard::{Guard, Networks};
pub use rpc::WebhookRpc;
use sender::Sender;

/// Kinds of events about webhooks themselves.
pub const KINDS: &[Kind] = &[
    ("webhook.created", "A webhook was made."),
    ("webhook.dead_lettered", "A delivery was given up after 24 hours of attempts; it can be replayed."),
    ("webhook.deleted", "A webhook was deleted."),
    (
        "webhook.disabled",
        "A webhook was disabled because its receiver answered 410, or failed for five days.",
    ),
    ("webhook.replayed", "Deliveries of a webhook are made again."),
    ("webhook.secret_rotated", "A webhook got a new secret."),
    ("webhook.updated", "A webhook was changed, enabled or disabled by a caller."),
];

const INTERVAL: Duration = Duration::from_millis(500);
const PURGE_INTERVAL: Duration = Duration::from_mins(1);
/// Requests under way at once, of one replica.
const SLOTS: usize = 64;
/// Beside those, requests to try a webhook out.
const PINGS: usize = 16;

/// The webhooks of one service.
pub struct Webhooks {
    outbox: &'static Outbox,
    db: Db,
    clock: Clock,
    entropy: Entropy,
    keys: Arc<Keys>,
    sender: Sender,
    /// Something may be due.
    nudge: Notify,
    slots: Arc<Semaphore>,
    pings: Semaphore,
    /// Requests under way, so that one slow receiver does not take all slots.
    busy: Mutex<HashMap<WebhookId, i64>>,
    /// Where requests run, so that shutdown waits for them.
    tasks: TaskTracker,
    /// For how long what was last sent had been due, in microseconds.
    lag: AtomicI64,
    attempts: Counter<u64>,
}

impl Webhooks {
    /// The webhooks of the outbox's service, which may be sent where `guard` lets them.
    pub fn new(
        outbox: &'static Outbox,
        db: &Db,
        clock: &Clock,
        entropy: &Entropy,
        keys: &Arc<Keys>,
        guard: Guard,
        lifecycle: &Lifecycle,
    ) -> Arc<Self> {
        Arc::new(Self {
            outbox,
            db: db.clone(),
            clock: clock.clone(),
            entropy: entropy.clone(),
            keys: Arc::clone(keys),
            sender: Sender::new(guard),
            nudge: Notify::new(),
            slots: Arc::new(Semaphore::new(SLOTS)),
            pings: Semaphore::new(PINGS),
            busy: Mutex::default(),
            tasks: lifecycle.calls.clone(),
            lag: AtomicI64::new(0),
            attempts: opentelemetry::global::meter("tandem")
                .u64_counter("tandem.webhook.attempts")
                .build(),
        })
    }

    fn observe(self: &Arc<Self>) {
        let watched = Arc::downgrade(self);
        let _ = opentelemetry::global::meter("tandem")
            .f64_observable_gauge("tandem.webhook.lag")
            .with_unit("s")
            .with_callback(move |gauge| {
                if let Some(webhooks) = watched.upgrade() {
                    let lag = TimeDelta::microseconds(webhooks.lag.load(Ordering::Relaxed));
                    gauge.observe(lag.as_seconds_f64(), &[]);
                }
            })
            .build();
    }

    /// Tells and sends until told to stop.
    pub fn spawn(self: &Arc<Self>, lifecycle: &Lifecycle) {
        self.observe();
        let (webhooks, stop) = (Arc::clone(self), lifecycle.stop.clone());
        lifecycle.workers.spawn(async move {
            let pass = || webhooks.fan_out();
            worker::run("webhook_fan_out", INTERVAL, &Notify::new(), &stop, pass).await;
        });
        let (webhooks, stop) = (Arc::clone(self), lifecycle.stop.clone());
        lifecycle.workers.spawn(async move {
            let pass = || webhooks.dispatch();
            worker::run("webhook_dispatch", INTERVAL, &webhooks.nudge, &stop, pass).await;
        });
        let (webhooks, stop) = (Arc::clone(self), lifecycle.stop.clone());
        lifecycle.workers.spawn(async move {
            let pass = || webhooks.purge();
            worker::run("webhook_purge", PURGE_INTERVAL, &Notify::new(), &stop, pass).await;
        });
    }

    /// A statement on the service's schema, which stands in it as `{s}`.
    fn sql(&self, statement: &'static str) -> AssertSqlSafe<String> {
        // The schema is a literal of the service's code.
        AssertSqlSafe(statement.replace("{s}", self.outbox.schema))
    }
}
