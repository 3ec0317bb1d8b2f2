//! What the rpcs share: the application's state, and the one place where domain errors get their reasons.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use prost::Message;
use shared::db::Db;
use shared::feed::{Feed, Heard};
use shared::id::{SessionId, TenantId, TouchpointId};
use shared::id_token::IdentityProviders;
use shared::keys::Keys;
use shared::mutation::{Begun, Call};
use shared::pb::common::event_service_server::EventServiceServer;
use shared::pb::common::webhook_service_server::WebhookServiceServer;
use shared::pb::session::cart_service_server::CartServiceServer;
use shared::pb::session::session_service_server::SessionServiceServer;
use shared::pb::session::shopper_service_server::ShopperServiceServer;
use shared::pb::session::touchpoint_service_server::TouchpointServiceServer;
use shared::pb::session::visit_service_server::VisitServiceServer;
use shared::secret::Entropy;
use shared::serve::MESSAGE_MAX_BYTES;
use shared::status::{Failure, Reason, Refusal};
use shared::time::{Clock, Time};
use shared::watch::{EventRpc, Events};
use shared::webhook::{WebhookRpc, Webhooks};
use tokio::sync::{Mutex, Notify};
use tonic::codec::CompressionEncoding::Gzip;
use tonic::service::Routes;

use self::cart::batch::{Answer, Question};
pub use self::session::Creation;
use crate::OUTBOX;
use crate::batch::Batcher;
use crate::cache::{Cache, Entry};
use crate::domain::cart::Refused;
use crate::domain::session::Ended;
use crate::domain::touchpoint::Touchpoint;
use crate::known::Known;
use crate::routes::RouteTable;
use crate::store;
use crate::store::session::Loaded;
use crate::touches::Touches;

pub(crate) mod abandonment;
mod admission;
mod assertion;
mod attribute;
mod authenticate;
pub mod cart;
mod convert;
mod elevation;
mod free;
mod leak;
mod live;
mod merge;
mod policy;
mod recovery;
mod revoke;
mod rotate;
mod secrets;
mod service;
mod session;
pub(crate) mod shopper;
mod touchpoint;
mod validate;
pub(crate) mod visit;

/// Everything that requests and workers share.
pub struct App {
    /// The database.
    pub db: Db,
    /// Tells the time.
    pub clock: Clock,
    /// Randomness.
    pub entropy: Entropy,
    /// Keys of ours.
    pub keys: Arc<Keys>,
    /// Whose ID tokens log subjects in.
    pub identity_providers: Option<Arc<IdentityProviders>>,
    /// How the issuers of assertions begin; the tenant follows.
    pub assertion_issuer: String,
    /// The outbox as it happens.
    pub feed: Arc<Feed>,
    /// Sessions read lately.
    pub sessions: Cache<(TenantId, SessionId), Known>,
    /// Reads sessions, many at once.
    pub loads: Batcher<(TenantId, SessionId), Option<Loaded>>,
    /// Writes new anonymous sessions, many at once.
    pub creations: Batcher<Creation, bool>,
    /// Makes changes of carts, many at once.
    pub cart_changes: Batcher<Question, Answer>,
    /// Touchpoints read lately.
    pub touchpoints: Cache<(TenantId, TouchpointId), Touchpoint>,
    /// What validations saw.
    pub touches: Touches,
    /// What visits are pinned by.
    pub routes: RouteTable,
    /// Releases may have been stopped, or may be no longer, elsewhere.
    pub kills_changed: Notify,
    /// Held while they are read, so that no reading takes the place of a later one.
    pub kills_reading: Mutex<()>,
    /// When this process began.
    pub started_at: Time,
    /// When a walk of the purge last reached the end, in microseconds since 1970, as far as is known here.
    pub purged_until: AtomicI64,
    /// When a pass here last found no cart due any more, in microseconds since 1970.
    pub carts_looked_at_until: AtomicI64,
    /// The same of shoppers.
    pub shoppers_looked_at_until: AtomicI64,
}

/// Something from the cache or the database.
pub struct Found<V> {
    /// The value.
    pub entry: Arc<Entry<V>>,
    /// It takes in everything committed before.
    pub fresh_as_of: Time,
}

/// Every service of the application.
pub fn routes(app: &Arc<App>, events: Events, webhooks: Arc<Webhooks>) -> Routes {
    let session = SessionServiceServer::from_arc(Arc::clone(app))
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .accept_compressed(Gzip)
        .send_compressed(Gzip);
    let touchpoint = TouchpointServiceServer::from_arc(Arc::clone(app))
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .accept_compressed(Gzip)
        .send_compressed(Gzip);
    let cart = CartServiceServer::from_arc(Arc::clone(app))
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .accept_compressed(Gzip)
        .send_compressed(Gzip);
    let shopper = ShopperServiceServer::from_arc(Arc::clone(app))
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .accept_compressed(Gzip)
        .send_compressed(Gzip);
    let visit = VisitServiceServer::from_arc(Arc::clone(app))
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .accept_compressed(Gzip)
        .send_compressed(Gzip);
    let event = EventServiceServer::new(EventRpc(Arc::new(events)))
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .accept_compressed(Gzip)
        .send_compressed(Gzip);
    let webhook = WebhookServiceServer::new(WebhookRpc(webhooks))
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .accept_compressed(Gzip)
        .send_compressed(Gzip);
    Routes::new(session)
        .add_service(touchpoint)
        .add_service(cart)
        .add_service(shopper)
        .add_service(visit)
        .add_service(event)
        .add_service(webhook)
}

impl App {
    /// A mutation at this instant, or what it was answered before.
    async fn begin<T: Message + Default>(&self, call: Call) -> Result<Begun<T>, Failure> {
        call.begin(&self.db, &OUTBOX, self.clock.now()).await
    }

    /// Takes in what other replicas, or other requests here, changed.
    pub fn apply(&self, heard: &Heard) {
        let Heard::Batch(batch) = heard else {
            self.sessions.clear();
            self.touchpoints.clear();
            self.kills_changed.notify_one();
            return;
        };
        for event in &batch.events {
            if event.kind.starts_with("release.") {
                self.kills_changed.notify_one();
            }
            if let Ok(touchpoint) = event.subject.parse::<TouchpointId>()
                && event.kind.starts_with("touchpoint.")
            {
                self.touchpoints.invalidate(&(event.tenant.clone(), touchpoint));
            }
            let session = event
                .data
                .get("session_id")
                .and_then(|id| id.as_str())
                .unwrap_or(&event.subject);
            if let Ok(session) = session.parse::<SessionId>() {
                self.sessions.invalidate(&(event.tenant.clone(), session));
            }
        }
    }

    /// When an entry was last known to be true.
    pub fn fresh_as_of<V>(&self, entry: &Entry<V>) -> Time {
        entry.sent_at.max(self.feed.polled_at())
    }

    /// A touchpoint, from memory where that is fresh enough by its own policy, or by `strong` not at all.
    pub async fn touchpoint(
        &self,
        tenant: &TenantId,
        id: &TouchpointId,
        strong: bool,
        now: Time,
    ) -> Result<Option<Found<Touchpoint>>, sqlx::Error> {
        let key = (tenant.clone(), id.clone());
        if let Some(entry) = self.touchpoints.get(&key).filter(|_| !strong) {
            let fresh_as_of = self.fresh_as_of(&entry);
            if is_within(fresh_as_of, now, entry.value.policy.staleness_bound) {
                return Ok(Some(Found { entry, fresh_as_of }));
            }
        }
        let ticket = self.touchpoints.ticket(&key);
        let found = store::touchpoint::find(&mut *self.db.connection().await?, tenant, id).await?;
        Ok(found.map(|value| {
            let entry = Arc::new(Entry { value, sent_at: now });
            self.touchpoints.insert(&key, ticket, Arc::clone(&entry));
            Found { entry, fresh_as_of: now }
        }))
    }

    /// A touchpoint as it was known last, whenever that was; read where it was not.
    pub async fn remembered_touchpoint(
        &self,
        tenant: &TenantId,
        id: &TouchpointId,
        now: Time,
    ) -> Result<Found<Touchpoint>, Failure> {
        match self.touchpoints.get(&(tenant.clone(), id.clone())) {
            Some(entry) => {
                let fresh_as_of = self.fresh_as_of(&entry);
                Ok(Found { entry, fresh_as_of })
            }
            None => Box::pin(self.required_touchpoint(tenant, id, true, now)).await,
        }
    }

    /// As [`App::touchpoint`], but there must be one.
    pub async fn required_touchpoint(
        &self,
        tenant: &TenantId,
        id: &TouchpointId,
        strong: bool,
        now: Time,
    ) -> Result<Found<Touchpoint>, Failure> {
        self.touchpoint(tenant, id, strong, now)
            .await?
            .ok_or_else(|| no_touchpoint(id).into())
    }
}

/// Whether something fresh as of then is fresh enough now.
pub fn is_within(fresh_as_of: Time, now: Time, bound: Duration) -> bool {
    !bound.is_zero() && now <= fresh_as_of + bound
}

/// No such touchpoint.
pub fn no_touchpoint(id: &TouchpointId) -> Refusal {
    Refusal::new(Reason::TouchpointNotFound, format!("there is no touchpoint {id}")).with("touchpoint", id)
}

/// The row changed between reading and writing, though it was locked or checked: try again.
pub fn overtaken() -> Failure {
    Refusal::new(Reason::ConcurrentChange, "another change was in the way")
        .retry_after(Duration::from_millis(50))
        .into()
}

impl From<Ended> for Refusal {
    fn from(ended: Ended) -> Self {
        let reason = match ended {
            Ended::Idle => Reason::SessionIdleExpired,
            Ended::Lifetime => Reason::SessionExpired,
            Ended::Revoked => Reason::SessionRevoked,
        };
        Self::new(reason, ended.to_string()).with("advice", "CREATE_SESSION")
    }
}

impl From<Ended> for Failure {
    fn from(ended: Ended) -> Self {
        Refusal::from(ended).into()
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused {
            Refused::WrongState(state) => Refusal::new(Reason::CartWrongState, text).with("state", state),
            Refused::NoSuchLine => Refusal::new(Reason::CartLineNotFound, text),
            Refused::Empty => Refusal::new(Reason::CartEmpty, text),
            Refused::Limit { limit, max } => {
                Refusal::new(Reason::CartLimit, text).with("limit", limit).with("max", max)
            }
        }
        .into()
    }
}
