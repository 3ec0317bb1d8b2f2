//! `LiftHold`: a person's word that what was made before a rollback may go out after it.

use shared::mutation::{Begun, Call};
use shared::parse::{parse, text_of};
use shared::pb::release as pb;
use shared::status::Failure;
use tonic::Request;

use super::lock;
use crate::apply;
use crate::rpc::App;
use crate::rpc::release::REASON_MAX;
use crate::store;

impl App {
    pub(super) async fn lift_hold(
        &self,
        request: Request<pb::LiftHoldRequest>,
    ) -> Result<pb::LiftHoldResponse, Failure> {
        let (call, message) = Call::of(request, "LiftHold", |message| &mut message.request_id)?;
        let pb::LiftHoldRequest { rollout_id, reason, request_id: _ } = message;
        call.caller.require_person()?;
        let id = parse("rollout_id", &rollout_id)?;
        let reason = text_of("reason", reason, 1, REASON_MAX)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let rollout = lock(&mut work, id).await?;
        let (db, actor) = (&mut work.tx, &work.actor);
        let (component, environment) = (&rollout.component, &rollout.environment);
        let hold = store::hold::find(db, &actor.tenant, component, environment).await?;
        let lifted = hold.is_some();
        if let Some(hold) = hold {
            store::hold::delete(db, &actor.tenant, &hold).await?;
            apply::tell_lifted(db, actor, &hold, &reason).await?;
        }
        work.answer(pb::LiftHoldResponse { rollout: Some((&rollout).into()), lifted })
            .await
    }
}
