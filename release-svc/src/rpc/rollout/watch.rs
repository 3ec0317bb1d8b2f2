//! How a rollout goes, at once or as it goes: what is sent is what is stored, whenever an event or a report changed it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use shared::auth::Caller;
use shared::feed::Heard;
use shared::id::{RolloutId, TenantId};
use shared::parse::parse;
use shared::pb::release as pb;
use shared::status::{Failure, Reason, Refusal};
use shared::time::{Time, to_proto};
use shared::watch::too_slow;
use sqlx::PgConnection;
use tokio::sync::{broadcast, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use super::no_rollout;
use crate::apply::observation::{self, Seen};
use crate::domain::rollout::{Rollout, ServedRelease, control};
use crate::rpc::App;
use crate::store;

/// How often figures are read anew; events are told at once.
const LOOK: Duration = Duration::from_secs(1);
/// Responses a stream holds for its reader, and for how long it waits when they are full.
const BUFFER: usize = 16;
const READER_PATIENCE: Duration = Duration::from_secs(10);

pub(super) type Stream =
    Pin<Box<dyn futures_util::Stream<Item = Result<pb::WatchRolloutResponse, Status>> + Send>>;

/// A rollout and how it goes.
pub(super) async fn report(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: RolloutId,
    now: Time,
) -> Result<(Rollout, pb::RolloutReport), Failure> {
    let rollout = store::rollout::find(db, tenant, id).await?.ok_or_else(|| no_rollout(id))?;
    let Seen { rollout, around, readings, visits } = observation::see(db, tenant, rollout, now).await?;
    let visits = visits.map(|visits| {
        let of = |release: &ServedRelease, count| pb::VisitCount {
            release_id: release.id.to_string(),
            visits: count,
            count_time: Some(to_proto(visits.counted_at)),
        };
        let control = rollout.previous.as_ref().map(|previous| of(previous, visits.control));
        [Some(of(&rollout.release, visits.canary)), control]
    });
    let report = pb::RolloutReport {
        guards: readings.iter().map(Into::into).collect(),
        visits: visits.into_iter().flatten().flatten().collect(),
        blockers: control::holds(&rollout, &around, now).into_iter().map(Into::into).collect(),
    };
    Ok((rollout, report))
}

/// Opens a stream on a rollout that is there.
pub(super) async fn open(
    app: &Arc<App>,
    request: Request<pb::WatchRolloutRequest>,
) -> Result<Stream, Failure> {
    let tenant = Caller::of(&request)?.tenant.clone();
    let pb::WatchRolloutRequest { rollout_id } = request.into_inner();
    let id = parse("rollout_id", &rollout_id)?;
    let (sender, receiver) = mpsc::channel(BUFFER);
    // Listening begins before the reading, so that nothing falls between the two.
    let heard = app.feed.subscribe();
    let mut watch = Watch { app: Arc::clone(app), tenant, id, sender, sent: None };
    let first = watch.look().await?;
    app.calls.spawn(async move {
        let stop = watch.app.stop.clone();
        let end = tokio::select! {
            end = watch.follow(first, heard) => end,
            () = stop.cancelled() => {
                Err(Refusal::new(Reason::ShuttingDown, "the server is stopping; ask again").into())
            }
        };
        if let Err(failure) = end {
            let _ = timeout(READER_PATIENCE, watch.sender.send(Err(failure.into()))).await;
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

struct Watch {
    app: Arc<App>,
    tenant: TenantId,
    id: RolloutId,
    sender: mpsc::Sender<Result<pb::WatchRolloutResponse, Status>>,
    sent: Option<pb::WatchRolloutResponse>,
}

impl Watch {
    async fn look(&self) -> Result<(Rollout, pb::WatchRolloutResponse), Failure> {
        let mut db = self.app.db.connection().await?;
        let (rollout, report) = report(&mut db, &self.tenant, self.id, self.app.clock.now()).await?;
        let response = pb::WatchRolloutResponse { rollout: Some((&rollout).into()), report: Some(report) };
        Ok((rollout, response))
    }

    /// Until the rollout is final, or its reader gone.
    async fn follow(
        &mut self,
        first: (Rollout, pb::WatchRolloutResponse),
        mut heard: broadcast::Receiver<Arc<Heard>>,
    ) -> Result<(), Failure> {
        let mut look = interval_at(Instant::now() + LOOK, LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut rollout, mut response) = first;
        loop {
            if self.sent.as_ref() != Some(&response) {
                self.sent = Some(response.clone());
                match timeout(READER_PATIENCE, self.sender.send(Ok(response))).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Ok(()),
                    Err(_) => return Err(too_slow().into()),
                }
            }
            if rollout.state.ended_at().is_some() {
                return Ok(());
            }
            self.wait(&mut heard, &mut look).await?;
            (rollout, response) = self.look().await?;
        }
    }

    /// Until there may be something new.
    async fn wait(
        &self,
        heard: &mut broadcast::Receiver<Arc<Heard>>,
        look: &mut tokio::time::Interval,
    ) -> Result<(), Failure> {
        let subject = self.id.to_string();
        loop {
            tokio::select! {
                _ = look.tick() => return Ok(()),
                heard = heard.recv() => match heard.as_deref() {
                    Ok(Heard::Batch(batch)) => {
                        let is_of = |event: &&_| is_of(event, &self.tenant, &subject);
                        if batch.events.iter().find(is_of).is_some() {
                            return Ok(());
                        }
                    }
                    Ok(Heard::Restarted) | Err(broadcast::error::RecvError::Closed) => return Ok(()),
                    Err(broadcast::error::RecvError::Lagged(_)) => return Err(too_slow().into()),
                },
            }
        }
    }
}

fn is_of(event: &shared::outbox::Stored, tenant: &TenantId, subject: &str) -> bool {
    event.tenant == *tenant && event.subject == subject
}
