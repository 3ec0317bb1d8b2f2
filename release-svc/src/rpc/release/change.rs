//! What changes a release beside its way to approval: edits, revisions, quarantine, and giving it up.

use serde_json::{Map, Value};
use shared::mutation::{Begun, Call};
use shared::parse::{etag, optional, parse, text_of};
use shared::pb::release as pb;
use shared::status::Failure;
use tonic::Request;

use super::message::{NOTES_MAX, parse_change};
use super::{REASON_MAX, lock, lock_own, look};
use crate::apply;
use crate::domain::release::Quarantine;
use crate::rpc::App;
use crate::store;

impl App {
    pub(super) async fn update_release(
        &self,
        request: Request<pb::UpdateReleaseRequest>,
    ) -> Result<pb::UpdateReleaseResponse, Failure> {
        let (call, message) = Call::of(request, "UpdateRelease", |message| &mut message.request_id)?;
        let pb::UpdateReleaseRequest {
            release_id,
            artifact_digest,
            notes,
            change,
            etag: sent_etag,
            request_id: _,
        } = message;
        let id = parse("release_id", &release_id)?;
        let artifact_digest = optional("artifact_digest", &artifact_digest)?;
        let notes = text_of("notes", notes, 0, NOTES_MAX)?;
        let change = parse_change(change)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let (_, release) = lock_own(&mut work, id, &sent_etag).await?;
        let editor = work.actor.principal.clone();
        let decision = release.edit(editor, artifact_digest, notes, change)?;
        apply::release(&mut work.tx, &work.actor, &decision, Map::new()).await?;
        work.answer(pb::UpdateReleaseResponse { release: Some((&decision.release).into()) })
            .await
    }

    pub(super) async fn revise_release(
        &self,
        request: Request<pb::ReviseReleaseRequest>,
    ) -> Result<pb::ReviseReleaseResponse, Failure> {
        let (call, message) = Call::of(request, "ReviseRelease", |message| &mut message.request_id)?;
        let pb::ReviseReleaseRequest { release_id, reason, etag: sent_etag, request_id: _ } = message;
        let id = parse("release_id", &release_id)?;
        let reason = text_of("reason", reason, 1, REASON_MAX)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let (component, release, _) = look(self, &mut work, id).await?;
        work.caller.require_owner(&component.owner_groups)?;
        etag(&sent_etag, release.row_version)?;
        let decision = release.revise(work.actor.principal.clone())?;
        store::approval::invalidate_votes(&mut work.tx, &work.actor.tenant, id, work.now).await?;
        apply::release(&mut work.tx, &work.actor, &decision, because(reason)).await?;
        work.answer(pb::ReviseReleaseResponse { release: Some((&decision.release).into()) })
            .await
    }

    pub(super) async fn abandon_release(
        &self,
        request: Request<pb::AbandonReleaseRequest>,
    ) -> Result<pb::AbandonReleaseResponse, Failure> {
        let (call, message) = Call::of(request, "AbandonRelease", |message| &mut message.request_id)?;
        let pb::AbandonReleaseRequest { release_id, reason, etag: sent_etag, request_id: _ } = message;
        let id = parse("release_id", &release_id)?;
        let reason = text_of("reason", reason, 1, REASON_MAX)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let (component, release) = lock_own(&mut work, id, &sent_etag).await?;
        let standing =
            store::release::standing(&mut work.tx, &work.actor.tenant, &component.name, id).await?;
        let decision = release.abandon(standing)?;
        apply::release(&mut work.tx, &work.actor, &decision, because(reason)).await?;
        work.answer(pb::AbandonReleaseResponse { release: Some((&decision.release).into()) })
            .await
    }

    pub(super) async fn quarantine_release(
        &self,
        request: Request<pb::QuarantineReleaseRequest>,
    ) -> Result<pb::QuarantineReleaseResponse, Failure> {
        let (call, message) = Call::of(request, "QuarantineRelease", |message| &mut message.request_id)?;
        let pb::QuarantineReleaseRequest { release_id, reason, request_id: _ } = message;
        let id = parse("release_id", &release_id)?;
        let reason = text_of("reason", reason, 1, REASON_MAX)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let (_, mut release) = lock(&mut work, id).await?;
        let by = work.actor.principal.clone();
        let quarantine = Quarantine { reason: reason.clone(), by, at: work.now };
        if let Some(decision) = release.clone().quarantine(quarantine) {
            apply::release(&mut work.tx, &work.actor, &decision, because(reason)).await?;
            release = decision.release;
        }
        work.answer(pb::QuarantineReleaseResponse { release: Some((&release).into()) })
            .await
    }

    pub(super) async fn lift_quarantine(
        &self,
        request: Request<pb::LiftQuarantineRequest>,
    ) -> Result<pb::LiftQuarantineResponse, Failure> {
        let (call, message) = Call::of(request, "LiftQuarantine", |message| &mut message.request_id)?;
        let pb::LiftQuarantineRequest { release_id, reason, request_id: _ } = message;
        let id = parse("release_id", &release_id)?;
        let reason = text_of("reason", reason, 1, REASON_MAX)?;
        call.caller.require_person()?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let (_, mut release) = lock(&mut work, id).await?;
        if let Some(decision) = release.clone().lift_quarantine() {
            apply::release(&mut work.tx, &work.actor, &decision, because(reason)).await?;
            release = decision.release;
        }
        work.answer(pb::LiftQuarantineResponse { release: Some((&release).into()) })
            .await
    }
}

/// A reason, for an event.
pub(in crate::rpc) fn because(reason: String) -> Map<String, Value> {
    Map::from_iter([("reason".to_owned(), reason.into())])
}
