//! `EventService`, the same in both services: first what the outbox holds after the resume token, then the feed.
//!
//! A watcher that falls behind is cut off with a reason, never buffered without end. It may see an event twice, never
//! miss one: its token names the snapshots it has read, not an id.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::Stream;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use crate::auth::Caller;
use crate::feed::{Batch, Feed, Heard};
use crate::id::TenantId;
use crate::keys::Keys;
use crate::outbox::{Page, Stored};
use crate::pb::common as pb;
use crate::pb::common::event_service_server::EventService;
use crate::pb::common::watch_events_response::Message;
use crate::secret::sha256;
use crate::snapshot::Cursor;
use crate::status::{Failure, Reason, Refusal};
use crate::time::{Clock, Time, to_proto};
use crate::{json, parse};

const HEARTBEAT: Duration = Duration::from_secs(10);
/// Responses a stream holds for its reader, and for how long it waits when they are full.
const BUFFER: usize = 64;
const READER_PATIENCE: Duration = Duration::from_secs(10);

/// Answers `EventService`.
pub struct Events {
    feed: Arc<Feed>,
    keys: Arc<Keys>,
    clock: Clock,
    stop: CancellationToken,
    tasks: TaskTracker,
}

struct Filter {
    tenant: TenantId,
    types: Vec<String>,
    subject: String,
    /// The database that the stream is of; positions in another mean nothing in it.
    cluster: String,
}

impl Filter {
    fn passes(&self, event: &Stored) -> bool {
        event.tenant == self.tenant
            && is_of(&event.kind, &self.types)
            && (self.subject.is_empty() || event.subject == self.subject)
    }
}

/// Whether a kind of events is one of these: equal, or beginning with one that ends in a dot. Of none means of all.
pub(crate) fn is_of(kind: &str, types: &[String]) -> bool {
    let matches =
        |wanted: &String| kind == wanted || (wanted.ends_with('.') && kind.starts_with(wanted.as_str()));
    types.is_empty() || types.iter().any(matches)
}

type Sender = mpsc::Sender<Result<pb::WatchEventsResponse, Status>>;

/// Why a stream ended.
enum End {
    ReaderGone,
    Because(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Because(failure)
    }
}

impl From<sqlx::Error> for End {
    fn from(error: sqlx::Error) -> Self {
        Self::Because(error.into())
    }
}

/// Why a reader that falls behind is cut off.
pub fn too_slow() -> Refusal {
    Refusal::new(Reason::ReaderTooSlow, "the reader did not keep up; reconnect")
}

/// Events may have been lost between the reader's position and the present.
fn expired() -> Refusal {
    let text = "the position is of another database, of before a failover that may have lost events, or of before events that \
                are no longer kept: watch without a token, and read the objects anew after its first response";
    Refusal::new(Reason::ResumeTokenExpired, text)
}

impl Events {
    /// Watches of one service.
    pub fn new(
        feed: Arc<Feed>,
        keys: Arc<Keys>,
        clock: Clock,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> Self {
        Self { feed, keys, clock, stop, tasks }
    }

    /// The database as it stands in resume tokens.
    fn cluster(&self) -> String {
        URL_SAFE_NO_PAD.encode(&sha256(&[self.feed.cluster().as_bytes()])[..9])
    }

    fn context<'a>(&self, tenant: &'a TenantId) -> [&'a [u8]; 3] {
        [b"resume", self.feed.schema().as_bytes(), tenant.as_str().as_bytes()]
    }

    fn open(&self, tenant: &TenantId, cluster: &str, token: &str) -> Result<Cursor, Refusal> {
        let invalid =
            || Refusal::new(Reason::ResumeTokenInvalid, "not a resume token of this service and tenant");
        let bytes = self.keys.load().open(&self.context(tenant), token).ok_or_else(invalid)?;
        let text = String::from_utf8(bytes).map_err(|_| invalid())?;
        let (of, cursor) = text.split_once('@').ok_or_else(invalid)?;
        if of != cluster {
            return Err(expired());
        }
        cursor.parse().map_err(|_| invalid())
    }

    async fn stream(self: Arc<Self>, filter: Filter, cursor: Option<Cursor>, sender: Sender) {
        let end = tokio::select! {
            end = self.follow(&filter, cursor, &sender) => end,
            () = self.stop.cancelled() => {
                Err(End::Because(Refusal::new(Reason::ShuttingDown, "the server is stopping; reconnect").into()))
            }
        };
        if let Err(End::Because(failure)) = end {
            // A reader that went away needs no reason.
            let _ = tokio::time::timeout(READER_PATIENCE, sender.send(Err(failure.into()))).await;
        }
    }

    async fn follow(&self, filter: &Filter, cursor: Option<Cursor>, sender: &Sender) -> Result<(), End> {
        // Listening begins before the reading, so that nothing falls between the two.
        let mut heard = self.feed.subscribe();
        if self.cluster() != filter.cluster {
            return Err(Failure::from(expired()).into());
        }
        let mut cursor = match cursor {
            Some(cursor) => cursor,
            None => self.feed.present().await?,
        };
        self.send(sender, filter, Message::Heartbeat(pb::Heartbeat::default()), &cursor)
            .await?;
        loop {
            // What is left of a page that the token names ends in the past; listening goes on from the present.
            let is_present = cursor.page.is_none();
            let page = self.feed.page(&cursor, Some(&filter.tenant)).await?;
            let Page { events, upto, is_last, .. } = page.ok_or_else(|| Failure::from(expired()))?;
            let batch = Batch { events, upto, is_last, complete_until: Time::default() };
            cursor = self.deliver(&batch, filter, cursor, sender).await?;
            if is_last && is_present {
                break;
            }
        }
        let mut heard_at = tokio::time::Instant::now();
        loop {
            let heard = match heard.recv().await {
                Ok(heard) => heard,
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    return Err(Failure::from(too_slow()).into());
                }
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            };
            let Heard::Batch(batch) = &*heard else { return Err(Failure::from(expired()).into()) };
            cursor = self.deliver(batch, filter, cursor, sender).await?;
            if batch.is_last && heard_at.elapsed() >= HEARTBEAT {
                let heartbeat = pb::Heartbeat {
                    complete_until: Some(to_proto(batch.complete_until.min(self.clock.now()))),
                };
                self.send(sender, filter, Message::Heartbeat(heartbeat), &cursor).await?;
                heard_at = tokio::time::Instant::now();
            }
        }
    }

    /// Sends what the cursor has not seen of the batch; answers where that leads.
    async fn deliver(
        &self,
        batch: &Batch,
        filter: &Filter,
        mut cursor: Cursor,
        sender: &Sender,
    ) -> Result<Cursor, End> {
        let from = cursor.page.as_ref().map_or(i64::MIN, |(_, id)| *id);
        let resumes_page = cursor.page.as_ref().is_some_and(|(upto, _)| *upto == batch.upto);
        for event in &batch.events {
            let is_read = cursor.base.sees(event.xid) || (resumes_page && event.id <= from);
            if is_read {
                continue;
            }
            cursor.page = Some((batch.upto.clone(), event.id));
            if filter.passes(event) {
                self.send(sender, filter, Message::Event(event_to_proto(event)), &cursor)
                    .await?;
            }
        }
        if batch.is_last {
            let is_later = batch.upto.covers(&cursor.base);
            cursor = Cursor::after(if is_later { batch.upto.clone() } else { cursor.base });
        }
        Ok(cursor)
    }

    async fn send(
        &self,
        sender: &Sender,
        filter: &Filter,
        message: Message,
        cursor: &Cursor,
    ) -> Result<(), End> {
        let position = format!("{}@{cursor}", filter.cluster);
        let resume_token = self
            .keys
            .load()
            .seal(&self.context(&filter.tenant), position.as_bytes(), self.clock.now())
            .map_err(Failure::from)?;
        let response = pb::WatchEventsResponse { message: Some(message), resume_token };
        match tokio::time::timeout(READER_PATIENCE, sender.send(Ok(response))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::ReaderGone),
            Err(_) => Err(Failure::from(too_slow()).into()),
        }
    }
}

/// [`Events`] behind the generated trait, which wants to be cloned into streams.
pub struct EventRpc(pub Arc<Events>);

#[tonic::async_trait]
impl EventService for EventRpc {
    type WatchEventsStream = Pin<Box<dyn Stream<Item = Result<pb::WatchEventsResponse, Status>> + Send>>;

    async fn watch_events(
        &self,
        request: Request<pb::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let caller = Caller::of(&request).map_err(Failure::from)?;
        caller.require_unlimited().map_err(Failure::from)?;
        let pb::WatchEventsRequest { resume_token, types, subject } = request.into_inner();
        parse::at_most("types", &types, 32).map_err(Failure::from)?;
        // A type of a newer release may be asked for after a rollback: then there is none of it, and no error.
        if let Some(n) = types.iter().position(|wanted| !wanted.contains('.')) {
            let text = "must be a type of events, such as `cart.merged`, or how several begin, with the dot";
            return Err(Failure::from(Refusal::field(format!("types[{n}]"), text)).into());
        }
        let cluster = self.0.cluster();
        let cursor = match resume_token.as_str() {
            "" => None,
            token => Some(self.0.open(&caller.tenant, &cluster, token).map_err(Failure::from)?),
        };
        let (sender, receiver) = mpsc::channel(BUFFER);
        let filter = Filter { tenant: caller.tenant.clone(), types, subject, cluster };
        self.0.tasks.spawn(Arc::clone(&self.0).stream(filter, cursor, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn list_event_types(
        &self,
        _: Request<pb::ListEventTypesRequest>,
    ) -> Result<Response<pb::ListEventTypesResponse>, Status> {
        let event_types = self.0.feed.kinds().into_iter().map(|(kind, description)| pb::EventType {
            r#type: kind.to_owned(),
            description: description.to_owned(),
        });
        Ok(Response::new(pb::ListEventTypesResponse { event_types: event_types.collect() }))
    }
}

fn event_to_proto(event: &Stored) -> pb::Event {
    let at: Time = event.at;
    pb::Event {
        event_id: event.id.to_string(),
        r#type: event.kind.clone(),
        subject: event.subject.clone(),
        occur_time: Some(to_proto(at)),
        principal: event.principal.clone(),
        data: Some(json::to_struct(&event.data)),
        trace_parent: event.trace_parent.clone(),
    }
}
