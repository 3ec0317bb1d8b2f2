//! `ApprovalService`: votes. Asks for no owner group, as who approves is meant to be somebody else.

use serde_json::Map;
use shared::auth::Caller;
use shared::db::broken_constraint;
use shared::id::{ApprovalId, ReleaseId};
use shared::mutation::{Actor, Begun, Call, Mutation};
use shared::page::{self, List};
use shared::parse::{etag, optional, parse, text_of};
use shared::pb::release as pb;
use shared::pb::release::approval_service_server::ApprovalService;
use shared::status::{Failure, Reason, Refusal};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::release::{REASON_MAX, because, look};
use super::{App, parsed};
use crate::apply::{self, expect_written};
use crate::domain::approval::{Vote, VoteRefused};
use crate::domain::release::Release;
use crate::domain::risk::Band;
use crate::domain::snapshot::Digest;
use crate::store;

mod break_glass;

/// A vote as it was sent.
struct Ballot {
    release: ReleaseId,
    approve: bool,
    reason: String,
    etag: String,
    snapshot_digest: Option<Digest>,
}

/// Counts a vote under the release's lock.
async fn vote(app: &App, work: &mut Mutation, ballot: Ballot) -> Result<Release, Failure> {
    let Ballot { release: id, approve, reason, etag: sent_etag, snapshot_digest } = ballot;
    let (_, release, facts) = look(app, work, id).await?;
    let submission = release.state.submission();
    let present = submission.and_then(|submission| submission.snapshot.as_ref());
    if snapshot_digest.is_some_and(|asked| present.is_none_or(|present| present.digest != asked)) {
        let text = "the release was revised since it was read; read it again";
        return Err(Refusal::new(Reason::EtagMismatch, text)
            .with("revision", release.revision)
            .into());
    }
    etag(&sent_etag, release.row_version)?;
    let band = submission.map_or(Band::Low, |submission| submission.band);
    let rule = submission.map(|submission| submission.terms().rule(band));
    let vote = Vote {
        voter: work.actor.principal.clone(),
        person: apply::person_of(&mut work.tx, &work.actor.tenant, &work.actor.principal).await?,
        groups: work.caller.groups(),
        band,
        approve,
        reason: reason.clone(),
        at: work.now,
        expires_at: rule.and_then(|rule| rule.expiry(work.now)),
    };
    let decision = release.clone().vote(vote.clone(), &facts)?;
    let vote_id = Uuid::from_bytes(app.entropy.bytes());
    let inserted =
        store::approval::insert_vote(&mut work.tx, &work.actor.tenant, &release, &vote, vote_id).await;
    expect_written(inserted.map_err(|error| match broken_constraint(&error) {
        Some(store::approval::VOTE_KEY) => VoteRefused::Again(vote.voter.clone()).into(),
        Some(_) | None => Failure::from(error),
    })?)?;
    let more = [
        ("approve".to_owned(), approve.into()),
        ("reason".to_owned(), reason.into()),
        ("groups".to_owned(), vote.groups.into()),
    ];
    apply::release(&mut work.tx, &work.actor, &decision, Map::from_iter(more)).await?;
    Ok(decision.release)
}

/// Takes the caller's vote back, and what follows from that.
async fn withdraw(app: &App, work: &mut Mutation, id: ReleaseId, reason: String) -> Result<Release, Failure> {
    let (_, release, facts) = look(app, work, id).await?;
    if !release.state.takes_votes() {
        return Err(release.wrong_state().into());
    }
    let tenant = work.actor.tenant.clone();
    let person = apply::person_of(&mut work.tx, &tenant, &work.actor.principal).await?;
    let decision = release.clone().withdraw_vote(&person).ok_or_else(|| {
        let text = format!("the caller has no vote on revision {} of {id}", release.revision);
        Refusal::new(Reason::VoteNotFound, text)
    })?;
    let is_written =
        store::approval::end_vote(&mut work.tx, &tenant, &release, &person, None, "WITHDRAWN", work.now)
            .await?;
    expect_written(is_written)?;
    apply::release(&mut work.tx, &work.actor, &decision, because(reason)).await?;
    apply::reassess(&mut work.tx, &work.actor, decision.release, &facts).await
}

impl App {
    async fn approve_release(
        &self,
        request: Request<pb::ApproveReleaseRequest>,
    ) -> Result<pb::ApproveReleaseResponse, Failure> {
        let (call, message) = Call::of(request, "ApproveRelease", |message| &mut message.request_id)?;
        let pb::ApproveReleaseRequest { release_id, reason, etag, request_id: _, snapshot_digest } = message;
        let release = parse("release_id", &release_id)?;
        let reason = text_of("reason", reason, 0, REASON_MAX)?;
        let snapshot_digest = optional("snapshot_digest", &snapshot_digest)?;
        call.caller.require_person()?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let ballot = Ballot { release, approve: true, reason, etag, snapshot_digest };
        let release = vote(self, &mut work, ballot).await?;
        work.answer(pb::ApproveReleaseResponse { release: Some((&release).into()) })
            .await
    }

    async fn reject_release(
        &self,
        request: Request<pb::RejectReleaseRequest>,
    ) -> Result<pb::RejectReleaseResponse, Failure> {
        let (call, message) = Call::of(request, "RejectRelease", |message| &mut message.request_id)?;
        let pb::RejectReleaseRequest { release_id, reason, etag, request_id: _, snapshot_digest } = message;
        let release = parse("release_id", &release_id)?;
        let reason = text_of("reason", reason, 1, REASON_MAX)?;
        let snapshot_digest = optional("snapshot_digest", &snapshot_digest)?;
        call.caller.require_person()?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let ballot = Ballot { release, approve: false, reason, etag, snapshot_digest };
        let release = vote(self, &mut work, ballot).await?;
        work.answer(pb::RejectReleaseResponse { release: Some((&release).into()) })
            .await
    }

    async fn withdraw_vote(
        &self,
        request: Request<pb::WithdrawVoteRequest>,
    ) -> Result<pb::WithdrawVoteResponse, Failure> {
        let (call, message) = Call::of(request, "WithdrawVote", |message| &mut message.request_id)?;
        let pb::WithdrawVoteRequest { release_id, reason, request_id: _ } = message;
        let id = parse("release_id", &release_id)?;
        let reason = text_of("reason", reason, 0, REASON_MAX)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let release = withdraw(self, &mut work, id, reason).await?;
        work.answer(pb::WithdrawVoteResponse { release: Some((&release).into()) }).await
    }

    async fn list_pending_for_me(
        &self,
        request: Request<pb::ListPendingForMeRequest>,
    ) -> Result<pb::ListPendingForMeResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::ListPendingForMeRequest { page_size, page_token } = request.into_inner();
        caller.require_person()?;
        let list = List { name: "ListPendingForMe", tenant: &caller.tenant, filter: &caller.principal };
        let (size, after) = (page::size(page_size)?, list.after(&self.keys, &page_token)?);
        let after = parsed(after)?.unwrap_or(0);
        let (tenant, now) = (&caller.tenant, self.clock.now());
        let mut db = self.db.connection().await?;
        let person = apply::person_of(&mut db, tenant, &caller.principal).await?;
        let names = [caller.principal.clone(), person.clone()];
        let mut rows = store::release::list_pending(&mut db, tenant, &names, after, size + 1).await?;
        let next_page_token = list.cut(&self.keys, &mut rows, size, now, |(seq, _)| seq.to_string())?;
        let vote = Vote {
            voter: caller.principal.clone(),
            person,
            groups: caller.groups(),
            // Whatever band a release is in.
            band: Band::Critical,
            approve: true,
            reason: String::new(),
            at: now,
            expires_at: None,
        };
        let actor = Actor { tenant: tenant.clone(), principal: caller.principal.clone(), now };
        let approval = ApprovalId::new(now, self.entropy.bytes());
        let found = rows.into_iter().map(|(_, release)| release).collect();
        let awaiting = apply::awaiting(&mut db, &actor, found, &vote, approval, &self.authenticator).await?;
        Ok(pb::ListPendingForMeResponse {
            releases: awaiting.iter().map(Into::into).collect(),
            next_page_token,
        })
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

    async fn withdraw_vote(
        &self,
        request: Request<pb::WithdrawVoteRequest>,
    ) -> Result<Response<pb::WithdrawVoteResponse>, Status> {
        Ok(Response::new(self.withdraw_vote(request).await?))
    }

    async fn list_pending_for_me(
        &self,
        request: Request<pb::ListPendingForMeRequest>,
    ) -> Result<Response<pb::ListPendingForMeResponse>, Status> {
        Ok(Response::new(self.list_pending_for_me(request).await?))
    }

    async fn use_break_glass(
        &self,
        request: Request<pb::UseBreakGlassRequest>,
    ) -> Result<Response<pb::UseBreakGlassResponse>, Status> {
        Ok(Response::new(self.use_break_glass(request).await?))
    }

    async fn review_break_glass(
        &self,
        request: Request<pb::ReviewBreakGlassRequest>,
    ) -> Result<Response<pb::ReviewBreakGlassResponse>, Status> {
        Ok(Response::new(self.review_break_glass(request).await?))
    }

    async fn list_break_glasses(
        &self,
        request: Request<pb::ListBreakGlassesRequest>,
    ) -> Result<Response<pb::ListBreakGlassesResponse>, Status> {
        Ok(Response::new(self.list_break_glasses(request).await?))
    }
}
