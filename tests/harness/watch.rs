//! Someone who watches events, and can go on where they were.

use std::time::Duration;

use shared::pb::common::event_service_client::EventServiceClient;
use shared::pb::common::watch_events_response::Message;
use shared::pb::common::{Event, WatchEventsRequest, WatchEventsResponse};
use tonic::{Status, Streaming};

use super::caller::Authorized;

/// Signs of life do not count.
const PATIENCE: Duration = Duration::from_secs(15);

/// An open watch.
pub(crate) struct Watch {
    stream: Streaming<WatchEventsResponse>,
    /// Where to go on.
    pub(crate) token: String,
}

impl Watch {
    /// Everything from now on: what happens after this returned is seen.
    pub(crate) async fn open(client: EventServiceClient<Authorized>) -> Self {
        Self::with(client, WatchEventsRequest::default()).await.unwrap()
    }

    pub(crate) async fn with(
        mut client: EventServiceClient<Authorized>,
        request: WatchEventsRequest,
    ) -> Result<Self, Status> {
        let mut stream = client.watch_events(request).await?.into_inner();
        let first = stream.message().await?.expect("a sign of life comes at once");
        assert!(matches!(first.message, Some(Message::Heartbeat(_))), "{first:?}");
        Ok(Self { stream, token: first.resume_token })
    }

    /// The next event, which must come before long.
    pub(crate) async fn next(&mut self) -> Event {
        self.try_next().await.unwrap()
    }

    /// The next event, or why the stream ended.
    pub(crate) async fn try_next(&mut self) -> Result<Event, Status> {
        let next = async {
            loop {
                let response = self.stream.message().await?.expect("streams end with a reason");
                self.token = response.resume_token;
                if let Some(Message::Event(event)) = response.message {
                    return Ok(event);
                }
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("an event before long")
    }

    /// The next event of this type.
    pub(crate) async fn next_of(&mut self, kind: &str) -> Event {
        loop {
            let event = self.next().await;
            if event.r#type == kind {
                return event;
            }
        }
    }
}
