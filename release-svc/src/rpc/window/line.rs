//! The line: one switch that halts every increase of the tenant's.

use serde_json::json;
use shared::mutation::{Begun, Call};
use shared::parse::text_of;
use shared::pb::release as pb;
use shared::status::Failure;
use tonic::Request;

use super::convert::line_to_proto;
use crate::domain::window::Stop;
use crate::rpc::App;
use crate::rpc::release::REASON_MAX;
use crate::store;

/// What its events are about.
const SUBJECT: &str = "line";

impl App {
    pub(super) async fn stop_the_line(
        &self,
        request: Request<pb::StopTheLineRequest>,
    ) -> Result<pb::StopTheLineResponse, Failure> {
        let (call, message) = Call::of(request, "StopTheLine", |message| &mut message.request_id)?;
        let pb::StopTheLineRequest { reason, request_id: _ } = message;
        let reason = text_of("reason", reason, 1, REASON_MAX)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let tenant = &work.actor.tenant;
        let stopped = store::calendar::lock(&mut work.tx, tenant).await?;
        let stop = if let Some(stop) = stopped {
            stop
        } else {
            let stop = Stop { at: work.now, stopper: work.actor.principal.clone(), reason };
            store::calendar::update_stop(&mut work.tx, tenant, Some(&stop)).await?;
            work.tell("line.stopped", SUBJECT.to_owned(), json!({ "reason": stop.reason }));
            stop
        };
        work.answer(pb::StopTheLineResponse { line: Some(line_to_proto(Some(&stop))) })
            .await
    }

    pub(super) async fn resume_the_line(
        &self,
        request: Request<pb::ResumeTheLineRequest>,
    ) -> Result<pb::ResumeTheLineResponse, Failure> {
        let (call, message) = Call::of(request, "ResumeTheLine", |message| &mut message.request_id)?;
        let pb::ResumeTheLineRequest { reason, request_id: _ } = message;
        let reason = text_of("reason", reason, 1, REASON_MAX)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let tenant = &work.actor.tenant;
        if store::calendar::lock(&mut work.tx, tenant).await?.is_some() {
            store::calendar::update_stop(&mut work.tx, tenant, None).await?;
            work.tell("line.resumed", SUBJECT.to_owned(), json!({ "reason": reason }));
        }
        work.answer(pb::ResumeTheLineResponse { line: Some(line_to_proto(None)) }).await
    }
}
