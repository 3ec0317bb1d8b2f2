//! `ApprovalService`: votes. Asks for no owner group, as who approves is meant to be somebody else.

use serde_json::Map;
use shared::db::broken_constraint;
use shared::id::ReleaseId;
use shared::mutation::{Begun, Call, Mutation};
use shared::parse::{etag, parse, text_of};
use shared::pb::release as pb;
use shared::pb::release::approval_service_server::ApprovalService;
use shared::status::Failure;
use tonic::{Request, Response, Status};

use super::App;
use super::release::{REASON_MAX, lock};
use crate::apply::{self, expect_written};
use crate::domain::release::{Release, Vote, VoteRefused};
use crate::store;

/// A vote as it was sent.
struct Ballot {
    release: ReleaseId,
    approve: bool,
    reason: String,
    etag: String,
}

/// Counts a vote under the release's lock.
async fn vote(work: &mut Mutation, ballot: Ballot) -> Result<Release, Failure> {
    let Ballot { release: id, approve, reason, etag: sent_etag } = ballot;
    let (_, release) = lock(work, id).await?;
    etag(&sent_etag, release.row_version)?;
    let vote = Vote { voter: work.actor.principal.clone(), approve, reason: reason.clone(), at: work.now };
    let decision = release.vote(vote.clone())?;
    let inserted = store::release::insert_vote(&mut work.tx, &work.actor.tenant, id, &vote).await;
    expect_written(inserted.map_err(|error| match broken_constraint(&error) {
        Some(store::release::VOTE_KEY) => VoteRefused::Again(vote.voter.clone()).into(),
        Some(_) | None => Failure::from(error),
    })?)?;
    let more = [("approve".to_owned(), approve.into()), ("reason".to_owned(), reason.into())];
    apply::release(&mut work.tx, &work.actor, &decision, Map::from_iter(more)).await?;
    Ok(decision.release)
}

impl App {
    async fn approve_release(
        &self,
        request: Request<pb::ApproveReleaseRequest>,
    ) -> Result<pb::ApproveReleaseResponse, Failure> {
        let (call, message) = Call::of(request, "ApproveRelease", |message| &mut message.request_id)?;
        let pb::ApproveReleaseRequest { release_id, reason, etag, request_id: _ } = message;
        let release = parse("release_id", &release_id)?;
        let reason = text_of("reason", reason, 0, REASON_MAX)?;
        call.caller.require_person()?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let release = vote(&mut work, Ballot { release, approve: true, reason, etag }).await?;
        work.answer(pb::ApproveReleaseResponse { release: Some((&release).into()) })
            .await
    }

    async fn reject_release(
        &self,
        request: Request<pb::RejectReleaseRequest>,
    ) -> Result<pb::RejectReleaseResponse, Failure> {
        let (call, message) = Call::of(request, "RejectRelease", |message| &mut message.request_id)?;
        let pb::RejectReleaseRequest { release_id, reason, etag, request_id: _ } = message;
        let release = parse("release_id", &release_id)?;
        let reason = text_of("reason", reason, 1, REASON_MAX)?;
        call.caller.require_person()?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let release = vote(&mut work, Ballot { release, approve: false, reason, etag }).await?;
        work.answer(pb::RejectReleaseResponse { release: Some((&release).into()) })
            .await
    }
}

#[tonic::async_trait]
impl ApprovalService for App {
    async fn approve_release(
        &self,
        request: Request<pb::ApproveReleaseRequest>,
    ) -> Result<Response<pb::ApproveReleaseResponse>, Status> {
        Ok(Response::new(self.approve_release(request).await?))
    }

    async fn reject_release(
        &self,
        request: Request<pb::RejectReleaseRequest>,
    ) -> Result<Response<pb::RejectReleaseResponse>, Status> {
        Ok(Response::new(self.reject_release(request).await?))
    }
}
