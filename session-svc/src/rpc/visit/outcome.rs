//! `RecordOutcome`, and how carts tell theirs: what becomes of a session, for the rollouts that ask.

use shared::auth::Caller;
use shared::id::{SessionId, TenantId};
use shared::mutation::{Begun, Call};
use shared::parse::parse;
use shared::pb::session as pb;
use shared::status::Failure;
use shared::time::Time;
use sqlx::PgConnection;
use tonic::Request;

use crate::domain::signal::Guard;
use crate::routes::RouteTable;
use crate::rpc::{App, overtaken};
use crate::{store, workers};

/// Books an outcome of a session, in the transaction of what came about; true if a rollout counts it. Where none asks for it,
/// it costs nothing.
pub(crate) async fn record(
    routes: &RouteTable,
    db: &mut PgConnection,
    tenant: &TenantId,
    session: SessionId,
    guard: &Guard,
    now: Time,
) -> sqlx::Result<bool> {
    let asking = routes.asking(tenant, guard.as_str());
    if asking.is_empty() {
        return Ok(false);
    }
    Ok(store::signal::record(db, tenant, session, guard, &asking, now).await? > 0)
}

impl App {
    pub(super) async fn record_outcome(
        &self,
        mut request: Request<pb::RecordOutcomeRequest>,
    ) -> Result<pb::RecordOutcomeResponse, Failure> {
        let caller = Caller::of(&request)?;
        let guard: Guard = parse("guard", &request.get_ref().guard)?;
        let selected = self.select(&caller, &mut request.get_mut().session, self.clock.now()).await?;
        let (call, _) = Call::of(request, "RecordOutcome", |message| &mut message.request_id)?;
        let (tenant, id) = (&caller.tenant, selected.seen.session.id);
        // What its visit makes the session comes before what becomes of it.
        if let Some(touch) = self.touches.peek(tenant, id).filter(|touch| touch.visit.is_some()) {
            workers::flush_batch(self, &[&touch]).await?;
            // Somebody else writes the session just now.
            if self.touches.peek(tenant, id).is_some_and(|touch| touch.visit.is_some()) {
                return Err(overtaken());
            }
        }
        let mut work = match self.begin(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let recorded = record(&self.routes, &mut work.tx, tenant, id, &guard, work.now).await?;
        work.answer(pb::RecordOutcomeResponse { recorded }).await
    }
}
