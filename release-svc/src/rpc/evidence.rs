//! `EvidenceService`: what was found out about artifacts. Every change holds the component's lock, as what a release may
//! do hangs on its evidence.

use chrono::TimeDelta;
use serde_json::{Value, json};
use shared::auth::Caller;
use shared::id::{ComponentId, EvidenceId};
use shared::mutation::{Begun, Call};
use shared::page::{self, List};
use shared::parse::{at_most, known, line, optional, parse, required, text_of, within};
use shared::pb::release as pb;
use shared::pb::release::evidence_service_server::EvidenceService;
use shared::status::{Failure, Reason, Refusal};
use shared::time::{Time, from_proto, to_proto};
use tonic::{Request, Response, Status};

use super::release::REASON_MAX;
use super::{App, absent, before};
use crate::apply::expect_written;
use crate::domain::evidence::{AlreadyRevoked, Counts, Evidence, Kind, Review, Revocation};
use crate::domain::snapshot::Digest;
use crate::store;
use crate::store::evidence::Filter;

const SUITE_MAX: usize = 100;
const URL_MAX: usize = 2000;
const SUMMARY_MAX: usize = 2000;
const COUNT_MAX: i32 = 1_000_000_000;
const PERSON_MAX: usize = 200;
const AUTHORS_MAX: usize = 50;
const STATEMENT_MAX_BYTES: usize = 65_536;
const PRODUCE_TIME: &str = "evidence.produce_time";
/// So far ahead of ours may a producer's clock be; what it says is taken for now.
const CLOCK_SKEW: TimeDelta = TimeDelta::minutes(1);
/// About one artifact of a component.
const EVIDENCE_MAX: i64 = 1000;

/// Evidence as it was sent.
struct Report {
    component: ComponentId,
    artifact_digest: Digest,
    kind: Kind,
    suite: String,
    has_passed: bool,
    counts: Counts,
    url: String,
    summary: String,
    review: Option<Review>,
    statement: Option<Statement>,
    /// None is now.
    produced_at: Option<Time>,
}

struct Statement {
    media_type: String,
    content: Vec<u8>,
}

impl From<&Evidence> for pb::Evidence {
    /// Without its statement's content, which is long.
    fn from(evidence: &Evidence) -> Self {
        let Counts { passed, failed, skipped } = evidence.counts;
        let outcome =
            if evidence.has_passed { pb::EvidenceOutcome::Passed } else { pb::EvidenceOutcome::Failed };
        let statement = evidence.statement_type.clone().map(|media_type| pb::EvidenceStatement {
            media_type,
            content: Vec::new(),
            verified: false,
        });
        Self {
            evidence_id: evidence.id.to_string(),
            component: evidence.component.to_string(),
            artifact_digest: evidence.artifact_digest.to_string(),
            kind: kind_to_proto(evidence.kind).into(),
            suite: evidence.suite.clone(),
            outcome: outcome.into(),
            counts: Some(pb::EvidenceCounts { passed, failed, skipped }),
            url: evidence.url.clone(),
            summary: evidence.summary.clone(),
            review: evidence.review.as_ref().map(Into::into),
            statement,
            produce_time: Some(to_proto(evidence.produced_at)),
            producer: evidence.producer.clone(),
            create_time: Some(to_proto(evidence.submitted_at)),
            revocation: evidence.revocation.as_ref().map(Into::into),
        }
    }
}

impl From<&Review> for pb::Review {
    fn from(review: &Review) -> Self {
        Self { reviewer: review.reviewer().to_owned(), authors: review.authors().to_vec() }
    }
}

impl From<&Revocation> for pb::EvidenceRevocation {
    fn from(revocation: &Revocation) -> Self {
        let Revocation { by, at, reason } = revocation;
        Self { revoker: by.clone(), reason: reason.clone(), revoke_time: Some(to_proto(*at)) }
    }
}

impl From<AlreadyRevoked> for Failure {
    fn from(error: AlreadyRevoked) -> Self {
        Refusal::new(Reason::EvidenceRevoked, error.to_string()).into()
    }
}

const fn kind_to_proto(kind: Kind) -> pb::EvidenceKind {
    match kind {
        Kind::TestReport => pb::EvidenceKind::TestReport,
        Kind::Review => pb::EvidenceKind::Review,
        Kind::Scan => pb::EvidenceKind::Scan,
        Kind::RollbackRehearsal => pb::EvidenceKind::RollbackRehearsal,
    }
}

fn parse_kind(field: &str, number: i32) -> Result<Kind, Refusal> {
    match known(field, number)? {
        pb::EvidenceKind::TestReport => Ok(Kind::TestReport),
        pb::EvidenceKind::Review => Ok(Kind::Review),
        pb::EvidenceKind::Scan => Ok(Kind::Scan),
        pb::EvidenceKind::RollbackRehearsal => Ok(Kind::RollbackRehearsal),
        pb::EvidenceKind::Unspecified => Err(Refusal::field(field, "must be specified")),
    }
}

fn parse_report(evidence: Option<pb::Evidence>, caller: &Caller) -> Result<Report, Refusal> {
    let pb::Evidence {
        evidence_id: _,
        component,
        artifact_digest,
        kind,
        suite,
        outcome,
        counts,
        url,
        summary,
        review,
        statement,
        produce_time,
        producer: _,
        create_time: _,
        revocation: _,
    } = required("evidence", evidence)?;
    let kind = parse_kind("evidence.kind", kind)?;
    let has_passed =
        known::<pb::EvidenceOutcome>("evidence.outcome", outcome)? == pb::EvidenceOutcome::Passed;
    Ok(Report {
        component: parse("evidence.component", &component)?,
        artifact_digest: parse("evidence.artifact_digest", &artifact_digest)?,
        kind,
        suite: line("evidence.suite", suite, usize::from(kind.needs_suite()), SUITE_MAX)?,
        has_passed,
        counts: parse_counts(counts.unwrap_or_default(), has_passed)?,
        url: parse_url(url)?,
        summary: text_of("evidence.summary", summary, 0, SUMMARY_MAX)?,
        review: parse_review(kind, review, caller)?,
        statement: statement.map(parse_statement).transpose()?,
        produced_at: produce_time.map(parse_produced).transpose()?,
    })
}

fn parse_counts(counts: pb::EvidenceCounts, has_passed: bool) -> Result<Counts, Refusal> {
    let pb::EvidenceCounts { passed, failed, skipped } = counts;
    let counts = Counts {
        passed: within("evidence.counts.passed", passed, 0, COUNT_MAX)?,
        failed: within("evidence.counts.failed", failed, 0, COUNT_MAX)?,
        skipped: within("evidence.counts.skipped", skipped, 0, COUNT_MAX)?,
    };
    if has_passed && counts.failed > 0 {
        return Err(Refusal::field("evidence.counts.failed", "must be 0 where the outcome is PASSED"));
    }
    Ok(counts)
}

/// People click on it, so it is of the web and nothing else.
fn parse_url(url: String) -> Result<String, Refusal> {
    let url = line("evidence.url", url, 0, URL_MAX)?;
    if url.is_empty() || url.starts_with("https://") || url.starts_with("http://") {
        return Ok(url);
    }
    Err(Refusal::field("evidence.url", "must begin with https:// or http://"))
}

fn parse_review(kind: Kind, review: Option<pb::Review>, caller: &Caller) -> Result<Option<Review>, Refusal> {
    let review = match (kind == Kind::Review, review) {
        (true, review) => required("evidence.review", review)?,
        (false, None) => return Ok(None),
        (false, Some(_)) => return Err(Refusal::field("evidence.review", "must be unset but for REVIEW")),
    };
    let pb::Review { reviewer, authors } = review;
    let reviewer = if reviewer.is_empty() && caller.is_person { caller.principal.clone() } else { reviewer };
    let reviewer = line("evidence.review.reviewer", reviewer, 1, PERSON_MAX)?;
    if authors.is_empty() {
        return Err(Refusal::field("evidence.review.authors", "must not be empty"));
    }
    at_most("evidence.review.authors", &authors, AUTHORS_MAX)?;
    let authors = authors.into_iter().enumerate();
    let authors =
        authors.map(|(i, author)| line(&format!("evidence.review.authors[{i}]"), author, 1, PERSON_MAX));
    let authors = authors.collect::<Result<_, _>>()?;
    if caller.is_person && reviewer != caller.principal {
        let text = "a person reports their own reviews only";
        return Err(Refusal::new(Reason::EvidenceReviewNotOwn, text).with("reviewer", reviewer));
    }
    let review = Review::new(reviewer, authors);
    review
        .map(Some)
        .map_err(|error| Refusal::field("evidence.review.reviewer", error))
}

fn parse_statement(statement: pb::EvidenceStatement) -> Result<Statement, Refusal> {
    let pb::EvidenceStatement { media_type, content, verified: _ } = statement;
    let media_type = line("evidence.statement.media_type", media_type, 1, 100)?;
    if (1..=STATEMENT_MAX_BYTES).contains(&content.len()) {
        return Ok(Statement { media_type, content });
    }
    let problem = format_args!("must have 1 to {STATEMENT_MAX_BYTES} bytes");
    Err(Refusal::field("evidence.statement.content", problem))
}

fn parse_produced(time: prost_types::Timestamp) -> Result<Time, Refusal> {
    from_proto(time).ok_or_else(|| Refusal::field(PRODUCE_TIME, "must be a time of the years 1 to 9999"))
}

/// When it was produced: never in the future, which would outdo whatever comes next.
fn produced(at: Option<Time>, now: Time) -> Result<Time, Refusal> {
    match at {
        Some(at) if at > now + CLOCK_SKEW => Err(Refusal::field(PRODUCE_TIME, "must not be in the future")),
        Some(at) => Ok(at.min(now)),
        None => Ok(now),
    }
}

fn no_evidence(id: EvidenceId) -> Refusal {
    absent(Reason::EvidenceNotFound, "evidence", &id)
}

/// What its events tell.
fn data(evidence: &Evidence) -> Value {
    json!({
        "evidence_id": evidence.id.to_string(),
        "artifact_digest": evidence.artifact_digest.as_str(),
        "component": evidence.component.as_str(),
        "kind": evidence.kind.name(),
        "suite": evidence.suite,
        "passed": evidence.has_passed,
    })
}

impl App {
    async fn submit_evidence(
        &self,
        request: Request<pb::SubmitEvidenceRequest>,
    ) -> Result<pb::SubmitEvidenceResponse, Failure> {
        let (call, message) = Call::of(request, "SubmitEvidence", |message| &mut message.request_id)?;
        let pb::SubmitEvidenceRequest { evidence, request_id: _ } = message;
        let report = parse_report(evidence, &call.caller)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let Report { component, artifact_digest, kind, suite, has_passed, counts, .. } = report;
        let (tenant, now) = (&work.actor.tenant, work.now);
        let locked = store::component::lock(&mut work.tx, tenant, &component).await?;
        locked.ok_or_else(|| absent(Reason::ComponentNotFound, "component", &component))?;
        if store::evidence::count(&mut work.tx, tenant, &component, &artifact_digest).await? >= EVIDENCE_MAX {
            let text = "the artifact has as much evidence as it may";
            return Err(Refusal::new(Reason::EvidenceLimit, text).with("max", EVIDENCE_MAX).into());
        }
        let evidence = Evidence {
            id: EvidenceId::new(now, self.entropy.bytes()),
            component,
            artifact_digest,
            kind,
            suite,
            has_passed,
            counts,
            url: report.url,
            summary: report.summary,
            review: report.review,
            statement_type: report.statement.as_ref().map(|statement| statement.media_type.clone()),
            producer: work.actor.principal.clone(),
            produced_at: produced(report.produced_at, now)?,
            submitted_at: now,
            revocation: None,
        };
        let statement = report.statement.as_ref().map(|statement| statement.content.as_slice());
        store::evidence::insert(&mut work.tx, tenant, &evidence, statement).await?;
        work.tell("evidence.submitted", evidence.id.to_string(), data(&evidence));
        work.answer(pb::SubmitEvidenceResponse { evidence: Some((&evidence).into()) })
            .await
    }

    async fn get_evidence(
        &self,
        request: Request<pb::GetEvidenceRequest>,
    ) -> Result<pb::GetEvidenceResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::GetEvidenceRequest { evidence_id } = request.into_inner();
        let id = parse("evidence_id", &evidence_id)?;
        let mut db = self.db.connection().await?;
        let found = store::evidence::find(&mut db, &caller.tenant, id).await?;
        let mut evidence = pb::Evidence::from(&found.ok_or_else(|| no_evidence(id))?);
        if let Some(statement) = &mut evidence.statement {
            let content = store::evidence::find_statement(&mut db, &caller.tenant, id).await?;
            statement.content = content.unwrap_or_default();
        }
        Ok(pb::GetEvidenceResponse { evidence: Some(evidence) })
    }

    async fn list_evidence(
        &self,
        request: Request<pb::ListEvidenceRequest>,
    ) -> Result<pb::ListEvidenceResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::ListEvidenceRequest {
            component,
            artifact_digest,
            kinds,
            counting_only,
            page_size,
            page_token,
        } = request.into_inner();
        at_most("kinds", &kinds, 32)?;
        let kinds = kinds.into_iter().map(|kind| Ok(parse_kind("kinds", kind)?.name().to_owned()));
        let mut kinds = kinds.collect::<Result<Vec<_>, Refusal>>()?;
        kinds.sort_unstable();
        kinds.dedup();
        let filter = format!("{component}|{artifact_digest}|{}|{counting_only}", kinds.join(","));
        let list = List { name: "ListEvidence", tenant: &caller.tenant, filter: &filter };
        let component: Option<ComponentId> = optional("component", &component)?;
        let artifact_digest: Option<Digest> = optional("artifact_digest", &artifact_digest)?;
        let filter = Filter {
            component: component.as_ref(),
            artifact_digest: artifact_digest.as_ref(),
            kinds: &kinds,
            counting_only,
        };
        let (size, before) = (page::size(page_size)?, before(list.after(&self.keys, &page_token)?)?);
        let mut db = self.db.connection().await?;
        let mut rows = store::evidence::list(&mut db, &caller.tenant, filter, before, size + 1).await?;
        let next_page_token =
            list.cut(&self.keys, &mut rows, size, self.clock.now(), |(seq, _)| seq.to_string())?;
        Ok(pb::ListEvidenceResponse {
            evidence: rows.iter().map(|(_, evidence)| evidence.into()).collect(),
            next_page_token,
        })
    }

    async fn revoke_evidence(
        &self,
        request: Request<pb::RevokeEvidenceRequest>,
    ) -> Result<pb::RevokeEvidenceResponse, Failure> {
        let (call, message) = Call::of(request, "RevokeEvidence", |message| &mut message.request_id)?;
        let pb::RevokeEvidenceRequest { evidence_id, reason, request_id: _ } = message;
        let id = parse("evidence_id", &evidence_id)?;
        let reason = text_of("reason", reason, 1, REASON_MAX)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let tenant = &work.actor.tenant;
        let found = store::evidence::find(&mut work.tx, tenant, id).await?;
        let component = found.ok_or_else(|| no_evidence(id))?.component;
        store::component::lock(&mut work.tx, tenant, &component).await?;
        // Again, as another transaction may have held the lock.
        let found = store::evidence::find(&mut work.tx, tenant, id).await?;
        let revocation =
            Revocation { by: work.actor.principal.clone(), at: work.now, reason: reason.clone() };
        let evidence = found.ok_or_else(|| no_evidence(id))?.revoke(revocation.clone())?;
        expect_written(store::evidence::revoke(&mut work.tx, tenant, id, &revocation).await?)?;
        let mut data = data(&evidence);
        data["reason"] = reason.into();
        work.tell("evidence.revoked", evidence.id.to_string(), data);
        work.answer(pb::RevokeEvidenceResponse { evidence: Some((&evidence).into()) })
            .await
    }
}

#[tonic::async_trait]
impl EvidenceService for App {
    async fn submit_evidence(
        &self,
        request: Request<pb::SubmitEvidenceRequest>,
    ) -> Result<Response<pb::SubmitEvidenceResponse>, Status> {
        Ok(Response::new(self.submit_evidence(request).await?))
    }

    async fn get_evidence(
        &self,
        request: Request<pb::GetEvidenceRequest>,
    ) -> Result<Response<pb::GetEvidenceResponse>, Status> {
        Ok(Response::new(self.get_evidence(request).await?))
    }

    async fn list_evidence(
        &self,
        request: Request<pb::ListEvidenceRequest>,
    ) -> Result<Response<pb::ListEvidenceResponse>, Status> {
        Ok(Response::new(self.list_evidence(request).await?))
    }

    async fn revoke_evidence(
        &self,
        request: Request<pb::RevokeEvidenceRequest>,
    ) -> Result<Response<pb::RevokeEvidenceResponse>, Status> {
        Ok(Response::new(self.revoke_evidence(request).await?))
    }
}
