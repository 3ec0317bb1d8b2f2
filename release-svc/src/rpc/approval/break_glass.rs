//! Approving alone, and what somebody else says of that.

use serde_json::Map;
use shared::auth::Caller;
use shared::id::BreakGlassId;
use shared::mutation::{Begun, Call, Mutation};
use shared::page::{self, List};
use shared::parse::{etag, known, parse, text_of};
use shared::pb::release as pb;
use shared::status::{Failure, Reason, Refusal};
use shared::time::{Time, to_proto};
use tonic::Request;

use crate::apply::{self, expect_written};
use crate::domain::approval::Basis;
use crate::domain::break_glass::{BreakGlass, Review, State, Verdict};
use crate::domain::release::Release;
use crate::rpc::release::{REASON_MAX, look};
use crate::rpc::{App, absent, before, unmapped};
use crate::store;

fn to_proto_at(used: &BreakGlass, now: Time) -> pb::BreakGlass {
    let review = used.review.as_ref();
    let state = match used.state(now) {
        State::UnderReview => pb::BreakGlassState::UnderReview,
        State::Overdue => pb::BreakGlassState::Overdue,
        State::Reviewed(Verdict::Accepted) => pb::BreakGlassState::Accepted,
        State::Reviewed(Verdict::Violation) => pb::BreakGlassState::Violation,
    };
    pb::BreakGlass {
        break_glass_id: used.id.to_string(),
        release_id: used.release.to_string(),
        revision: used.revision,
        principal: used.principal.clone(),
        reason: used.reason.clone(),
        use_time: Some(to_proto(used.used_at)),
        due_time: Some(to_proto(used.due_at)),
        state: state.into(),
        reviewer: review.map(|review| review.reviewer.clone()).unwrap_or_default(),
        review_reason: review.map(|review| review.reason.clone()).unwrap_or_default(),
        review_time: review.map(|review| to_proto(review.at)),
    }
}

/// Approves a release alone, unless the caller owes a review that is overdue, or the release was approved so before
/// and that was a violation.
async fn break_glass(
    work: &mut Mutation,
    id: BreakGlassId,
    reason: String,
    (release, facts): (Release, &crate::domain::release::Facts),
) -> Result<(BreakGlass, Release), Failure> {
    let (tenant, principal) = (work.actor.tenant.clone(), work.actor.principal.clone());
    let person = apply::person_of(&mut work.tx, &tenant, &principal).await?;
    let who = (person.as_str(), principal.as_str());
    if let Some(overdue) = store::break_glass::find_overdue(&mut work.tx, &tenant, who, work.now).await? {
        let text = format!("break-glass {overdue} of the caller's is to be reviewed first");
        let refusal = Refusal::new(Reason::BreakGlassReviewOverdue, text);
        return Err(refusal.with("break_glass_id", overdue).into());
    }
    let violation = store::break_glass::find_violation(&mut work.tx, &tenant, release.id).await?;
    if let Some(violation) = violation {
        let text = format!(
            "break-glass {violation} on release {} was a violation, which stands: what approves it now is votes",
            release.id,
        );
        return Err(Refusal::new(Reason::BreakGlassReviewed, text)
            .with("break_glass_id", violation)
            .into());
    }
    let due = release
        .state
        .submission()
        .map(|submission| submission.terms().rules.review_due());
    let due_at = due.map_or(work.now, |due| work.now + due);
    let revision = release.revision;
    let decision = release.break_glass(id, due_at, facts)?;
    let used = BreakGlass {
        id,
        release: decision.release.id,
        revision,
        principal,
        person,
        reason: reason.clone(),
        used_at: work.now,
        due_at,
        review: None,
        row_version: 1,
    };
    expect_written(store::break_glass::insert(&mut work.tx, &tenant, &used).await?)?;
    let more = [
        ("break_glass_id".to_owned(), id.to_string().into()),
        ("reason".to_owned(), reason.into()),
        ("due_at".to_owned(), due_at.to_rfc3339().into()),
    ];
    apply::release(&mut work.tx, &work.actor, &decision, Map::from_iter(more)).await?;
    Ok((used, decision.release))
}

/// Takes a review in. After a violation no break-glass approves the release any more, neither this one nor a later one.
async fn review(
    app: &App,
    work: &mut Mutation,
    id: BreakGlassId,
    verdict: Verdict,
    reason: String,
) -> Result<BreakGlass, Failure> {
    let (tenant, principal) = (work.actor.tenant.clone(), work.actor.principal.clone());
    let missing = || absent(Reason::BreakGlassNotFound, "break-glass", &id);
    let used = store::break_glass::find(&mut work.tx, &tenant, id).await?.ok_or_else(missing)?;
    let (_, release, facts) = look(app, work, used.release).await?;
    let used = store::break_glass::find(&mut work.tx, &tenant, id).await?.ok_or_else(missing)?;
    let submitter = release
        .state
        .submission()
        .map_or(&release.author, |submission| &submission.submitter);
    let unknown = facts.people.unmapped(&release.identities(submitter));
    let person = apply::person_of(&mut work.tx, &tenant, &principal).await?;
    let review = Review { verdict, reviewer: principal, person, reason, at: work.now };
    let now_person = apply::person_of(&mut work.tx, &tenant, &used.principal).await?;
    let reviewed = used.review(review.clone(), &now_person, &release.authors(&facts.people))?;
    if !unknown.is_empty() {
        return Err(unmapped(&unknown).into());
    }
    expect_written(store::break_glass::review(&mut work.tx, &tenant, id, &review).await?)?;
    apply::tell_review(&mut work.tx, &work.actor, &reviewed).await?;
    let rests_on_one = release
        .approval
        .as_ref()
        .is_some_and(|approval| matches!(approval.basis, Basis::BreakGlass(_)));
    if rests_on_one && verdict == Verdict::Violation {
        apply::release(&mut work.tx, &work.actor, &release.lapse(), Map::new()).await?;
    }
    Ok(reviewed)
}

impl App {
    pub(super) async fn use_break_glass(
        &self,
        request: Request<pb::UseBreakGlassRequest>,
    ) -> Result<pb::UseBreakGlassResponse, Failure> {
        let (call, message) = Call::of(request, "UseBreakGlass", |message| &mut message.request_id)?;
        let pb::UseBreakGlassRequest { release_id, reason, etag: sent_etag, request_id: _ } = message;
        let release = parse("release_id", &release_id)?;
        let reason = text_of("reason", reason, 1, REASON_MAX)?;
        call.caller.require_person()?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let (_, release, facts) = look(self, &mut work, release).await?;
        etag(&sent_etag, release.row_version)?;
        let id = BreakGlassId::new(work.now, self.entropy.bytes());
        let (used, release) = break_glass(&mut work, id, reason, (release, &facts)).await?;
        let break_glass = Some(to_proto_at(&used, work.now));
        work.answer(pb::UseBreakGlassResponse { break_glass, release: Some((&release).into()) })
            .await
    }

    pub(super) async fn review_break_glass(
        &self,
        request: Request<pb::ReviewBreakGlassRequest>,
    ) -> Result<pb::ReviewBreakGlassResponse, Failure> {
        let (call, message) = Call::of(request, "ReviewBreakGlass", |message| &mut message.request_id)?;
        let pb::ReviewBreakGlassRequest { break_glass_id, verdict, reason, request_id: _ } = message;
        let id = parse("break_glass_id", &break_glass_id)?;
        let verdict = match known("verdict", verdict)? {
            pb::BreakGlassVerdict::Violation => Verdict::Violation,
            pb::BreakGlassVerdict::Accepted | pb::BreakGlassVerdict::Unspecified => Verdict::Accepted,
        };
        let reason = text_of("reason", reason, 1, REASON_MAX)?;
        call.caller.require_person()?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let reviewed = review(self, &mut work, id, verdict, reason).await?;
        let break_glass = Some(to_proto_at(&reviewed, work.now));
        work.answer(pb::ReviewBreakGlassResponse { break_glass }).await
    }

    pub(super) async fn list_break_glasses(
        &self,
        request: Request<pb::ListBreakGlassesRequest>,
    ) -> Result<pb::ListBreakGlassesResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::ListBreakGlassesRequest { open_only, page_size, page_token } = request.into_inner();
        let filter = open_only.to_string();
        let list = List { name: "ListBreakGlasses", tenant: &caller.tenant, filter: &filter };
        let (size, before) = (page::size(page_size)?, before(list.after(&self.keys, &page_token)?)?);
        let now = self.clock.now();
        let mut db = self.db.connection().await?;
        let mut rows = store::break_glass::list(&mut db, &caller.tenant, open_only, before, size + 1).await?;
        let next_page_token = list.cut(&self.keys, &mut rows, size, now, |(seq, _)| seq.to_string())?;
        Ok(pb::ListBreakGlassesResponse {
            break_glasses: rows.iter().map(|(_, used)| to_proto_at(used, now)).collect(),
            next_page_token,
        })
    }
}
