//! What the services share: the application's state, the frame of every mutation, and what each domain error means to a
//! caller.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::str::FromStr;
use std::sync::Arc;

use chrono::SecondsFormat;
use prost::Message;
use shared::auth::Authenticator;
use shared::db::Db;
use shared::feed::Feed;
use shared::keys::Keys;
use shared::mutation::{Begun, Call};
use shared::parse::at_most;
use shared::pb::common::event_service_server::EventServiceServer;
use shared::pb::common::webhook_service_server::WebhookServiceServer;
use shared::pb::release::approval_service_server::ApprovalServiceServer;
use shared::pb::release::audit_service_server::AuditServiceServer;
use shared::pb::release::catalog_service_server::CatalogServiceServer;
use shared::pb::release::evidence_service_server::EvidenceServiceServer;
use shared::pb::release::executor_service_server::ExecutorServiceServer;
use shared::pb::release::insight_service_server::InsightServiceServer;
use shared::pb::release::release_service_server::ReleaseServiceServer;
use shared::pb::release::rollout_service_server::RolloutServiceServer;
use shared::pb::release::routing_service_server::RoutingServiceServer;
use shared::pb::release::window_service_server::WindowServiceServer;
use shared::secret::Entropy;
use shared::serve::MESSAGE_MAX_BYTES;
use shared::status::{Blocker, Failure, Reason, Refusal};
use shared::time::Clock;
use shared::watch::{EventRpc, Events};
use shared::webhook::{WebhookRpc, Webhooks};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::service::Routes;

use crate::OUTBOX;
use crate::apply::control::Controller;
use crate::domain::approval::VoteRefused;
use crate::domain::blocker::{Blocked, Blocker as Hold, Kind};
use crate::domain::break_glass::ReviewRefused;
use crate::domain::release::{AbandonRefused, SubmitRefused, WrongState as WrongReleaseState};
use crate::domain::rollout::WrongState as WrongRolloutState;
use crate::domain::task::LeaseLost;
use crate::domain::version::NotGreater;

mod approval;
mod audit;
mod catalog;
mod denial;
mod evidence;
mod executor;
mod insight;
mod release;
mod rollout;
mod routing;
mod window;

/// Full names of what is served.
pub const SERVICES: &[&str] = &[
    "tandem.release.v1.CatalogService",
    "tandem.release.v1.ReleaseService",
    "tandem.release.v1.ApprovalService",
    "tandem.release.v1.EvidenceService",
    "tandem.release.v1.RolloutService",
    "tandem.release.v1.ExecutorService",
    "tandem.release.v1.RoutingService",
    "tandem.release.v1.AuditService",
    "tandem.release.v1.WindowService",
    "tandem.release.v1.InsightService",
    "tandem.common.v1.EventService",
    "tandem.common.v1.WebhookService",
];

/// What calls and workers share.
pub struct App {
    pub db: Db,
    pub keys: Arc<Keys>,
    /// Who may call, which says whose names are known.
    pub authenticator: Arc<Authenticator>,
    pub clock: Clock,
    pub entropy: Entropy,
    pub feed: Arc<Feed>,
    /// Cancelled when streams shall end.
    pub stop: CancellationToken,
    /// Where streams run, so that shutdown waits for them.
    pub calls: TaskTracker,
}

impl App {
    pub(crate) fn controller(&self) -> Controller<'_> {
        let Self { db, clock, entropy, authenticator, .. } = self;
        Controller { db, clock, entropy, authenticator }
    }
}

/// Every service of the application.
pub fn routes(app: &Arc<App>, webhooks: Arc<Webhooks>) -> Routes {
    let events = Events::new(
        Arc::clone(&app.feed),
        Arc::clone(&app.keys),
        app.clock.clone(),
        app.stop.clone(),
        app.calls.clone(),
    );
    let catalog = CatalogServiceServer::from_arc(Arc::clone(app))
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .accept_compressed(Gzip)
        .send_compressed(Gzip);
    let release = ReleaseServiceServer::from_arc(Arc::clone(app))
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .accept_compressed(Gzip)
        .send_compressed(Gzip);
    let approval = ApprovalServiceServer::from_arc(Arc::clone(app))
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .accept_compressed(Gzip)
        .send_compressed(Gzip);
    let evidence = EvidenceServiceServer::from_arc(Arc::clone(app))
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .accept_compressed(Gzip)
        .send_compressed(Gzip);
    let rollout = RolloutServiceServer::new(rollout::Rollouts(Arc::clone(app)))
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .accept_compressed(Gzip)
        .send_compressed(Gzip);
    let executor = ExecutorServiceServer::from_arc(Arc::clone(app))
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .accept_compressed(Gzip)
        .send_compressed(Gzip);
    let routing = RoutingServiceServer::new(routing::Routing(Arc::clone(app)))
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .accept_compressed(Gzip)
        .send_compressed(Gzip);
    let audit = AuditServiceServer::from_arc(Arc::clone(app))
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .accept_compressed(Gzip)
        .send_compressed(Gzip);
    let window = WindowServiceServer::from_arc(Arc::clone(app))
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .accept_compressed(Gzip)
        .send_compressed(Gzip);
    let insight = InsightServiceServer::from_arc(Arc::clone(app))
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
    Routes::new(catalog)
        .add_service(release)
        .add_service(approval)
        .add_service(evidence)
        .add_service(rollout)
        .add_service(executor)
        .add_service(routing)
        .add_service(audit)
        .add_service(window)
        .add_service(insight)
        .add_service(event)
        .add_service(webhook)
        .into_axum_router()
        .layer(denial::DenialLayer(Arc::clone(app)))
        .into()
}

impl App {
    /// A mutation at this instant, or what it was answered before.
    async fn begin<T: Message + Default>(&self, call: Call) -> Result<Begun<T>, Failure> {
        call.begin(&self.db, &OUTBOX, self.clock.now()).await
    }
}

fn absent(reason: Reason, what: &str, name: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(reason, format!("there is no {what} {name}"))
}

impl From<NotGreater> for Failure {
    fn from(error: NotGreater) -> Self {
        Refusal::new(Reason::ReleaseVersionNotGreater, error.to_string())
            .with("last_version", error.last())
            .into()
    }
}

impl From<WrongReleaseState> for Failure {
    fn from(error: WrongReleaseState) -> Self {
        let text = error.to_string();
        let blocker = Blocker { kind: "STATE", subject: error.id.to_string(), description: text.clone() };
        Refusal::new(Reason::ReleaseWrongState, text)
            .with("state", error.state)
            .blocked_by([blocker])
            .into()
    }
}

impl From<SubmitRefused> for Failure {
    fn from(error: SubmitRefused) -> Self {
        match error {
            SubmitRefused::State(error) => error.into(),
            SubmitRefused::Version(error) => error.into(),
            SubmitRefused::Incomplete(field) => {
                let text = format!("the approval policy asks for {field}");
                Refusal::new(Reason::ReleaseIncomplete, text).with("field", field).into()
            }
        }
    }
}

impl From<AbandonRefused> for Failure {
    fn from(error: AbandonRefused) -> Self {
        let text = error.to_string();
        match error {
            AbandonRefused::State(error) => error.into(),
            AbandonRefused::Exposed(_) => Refusal::new(Reason::ReleaseExposed, text).into(),
        }
    }
}

impl From<ReviewRefused> for Failure {
    fn from(error: ReviewRefused) -> Self {
        let text = error.to_string();
        match error {
            ReviewRefused::Own => Refusal::new(Reason::SodViolation, text).into(),
            ReviewRefused::Again(_) => Refusal::new(Reason::BreakGlassReviewed, text).into(),
        }
    }
}

impl From<VoteRefused> for Failure {
    fn from(error: VoteRefused) -> Self {
        let text = error.to_string();
        match error {
            VoteRefused::Own => Refusal::new(Reason::SodViolation, text).into(),
            VoteRefused::State(error) => error.into(),
            VoteRefused::Again(voter) => Refusal::new(Reason::VoteExists, text).with("voter", voter).into(),
            VoteRefused::Unmapped(committers) => unmapped(&committers).into(),
        }
    }
}

impl From<WrongRolloutState> for Failure {
    fn from(error: WrongRolloutState) -> Self {
        let text = error.to_string();
        let blocker = Blocker { kind: "STATE", subject: error.id.to_string(), description: text.clone() };
        Refusal::new(Reason::RolloutWrongState, text)
            .with("state", error.state)
            .blocked_by([blocker])
            .into()
    }
}

impl From<LeaseLost> for Failure {
    fn from(error: LeaseLost) -> Self {
        Refusal::new(Reason::TaskLeaseLost, error.to_string()).into()
    }
}

/// Whoever approves must be known to be none of those who wrote it.
fn unmapped(committers: &[String]) -> Refusal {
    let committers = committers.join(", ");
    Refusal::new(Reason::CommitterUnmapped, format!("nobody knows who committed as {committers}"))
        .with("committers", committers)
}

/// Where one kind of thing alone holds back, its own reason says so.
impl From<Blocked> for Failure {
    fn from(Blocked(holds): Blocked) -> Self {
        let kinds: BTreeSet<_> = holds.iter().map(|hold| hold.kind).collect();
        let reason = match kinds.first() {
            Some(Kind::Line) if kinds.len() == 1 => Reason::LineStopped,
            Some(Kind::Window) if kinds.len() == 1 => Reason::RolloutWindowClosed,
            Some(_) | None => Reason::RolloutBlocked,
        };
        let sentences: Vec<_> = holds.iter().map(|hold| hold.description.as_str()).collect();
        let text = format!("the rollout is held back: {}", sentences.join("; "));
        Refusal::new(reason, text)
            .blocked_by(holds.into_iter().map(Blocker::from))
            .into()
    }
}

impl From<Hold> for Blocker {
    fn from(hold: Hold) -> Self {
        let Hold { kind, subject, mut description, lifted_by, next_open } = hold;
        if let Some(time) = next_open {
            let time = time.to_rfc3339_opts(SecondsFormat::Secs, true);
            let _ = write!(description, "; may go from {time} on");
        }
        Self { kind: kind.name(), subject, description: format!("{description}; lifted by {lifted_by}") }
    }
}

/// Names, without the enum's prefix, of the states that a list is narrowed to; sorted, so that their order does not
/// matter to page tokens.
fn state_names(
    field: &str,
    numbers: &[i32],
    name: impl Fn(i32) -> Result<&'static str, Refusal>,
) -> Result<Vec<String>, Refusal> {
    at_most(field, numbers, 32)?;
    let names = numbers.iter().map(|number| {
        let name = name(*number)?;
        Ok(name.split_once("_STATE_").map_or(name, |(_, short)| short).to_owned())
    });
    let names: BTreeSet<_> = names.collect::<Result<_, Refusal>>()?;
    Ok(names.into_iter().collect())
}

/// Where the next page of a list begins that is ordered by falling numbers.
fn before(key: Option<String>) -> Result<i64, Refusal> {
    Ok(parsed(key)?.unwrap_or(i64::MAX))
}

/// The key that a page token holds.
fn parsed<Key: FromStr>(key: Option<String>) -> Result<Option<Key>, Refusal> {
    let invalid = |_| Refusal::new(Reason::PageTokenInvalid, "not a page token of this list");
    key.map(|key| key.parse().map_err(invalid)).transpose()
}
