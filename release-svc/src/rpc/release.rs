//! `ReleaseService`: from draft to approved.

use serde_json::{Map, Value, json};
use shared::auth::Caller;
use shared::db::broken_constraint;
use shared::edge::Deadline;
use shared::id::{ApprovalId, ComponentId, ReleaseId};
use shared::mutation::{Actor, Begun, Call, Mutation};
use shared::page::{self, List};
use shared::parse::{etag, known, optional, parse, required, text_of};
use shared::pb::release as pb;
use shared::pb::release::get_release_request::Name;
use shared::pb::release::release_service_server::ReleaseService;
use shared::status::{Failure, Reason, Refusal};
use sqlx::PgConnection;
use tonic::{Request, Response, Status};

pub(super) use self::change::because;
use self::message::{NOTES_MAX, parse_change};
use super::{App, absent, before, state_names};
use crate::apply;
use crate::domain::component::Component;
use crate::domain::release::{Facts, Release, Risk, State, Submission};
use crate::domain::snapshot::{Change, Snapshot};
use crate::domain::version::{Latest, Version};
use crate::store;

mod change;
mod explain;
mod message;

/// Longest reason anywhere, in characters.
pub(super) const REASON_MAX: usize = 1000;

pub(super) fn no_release(id: &dyn std::fmt::Display) -> Refusal {
    absent(Reason::ReleaseNotFound, "release", id)
}

/// The release, locked after its component.
pub(super) async fn lock(work: &mut Mutation, id: ReleaseId) -> Result<(Component, Release), Failure> {
    let tenant = &work.actor.tenant;
    let component = store::component::lock_of_release(&mut work.tx, tenant, id).await?;
    let component = component.ok_or_else(|| no_release(&id))?;
    let release = store::release::lock(&mut work.tx, tenant, id).await?;
    Ok((component, release.ok_or_else(|| no_release(&id))?))
}

/// The same for an owner of the component, who looked at this version of the release.
async fn lock_own(
    work: &mut Mutation,
    id: ReleaseId,
    sent_etag: &str,
) -> Result<(Component, Release), Failure> {
    let (component, release) = lock(work, id).await?;
    work.caller.require_owner(&component.owner_groups)?;
    etag(sent_etag, release.row_version)?;
    Ok((component, release))
}

/// The release as the facts of now make it, locked after its component.
pub(super) async fn look(
    app: &App,
    work: &mut Mutation,
    id: ReleaseId,
) -> Result<(Component, Release, Facts), Failure> {
    let (component, release) = lock(work, id).await?;
    let approval = ApprovalId::new(work.now, app.entropy.bytes());
    let (release, facts) =
        apply::look(&mut work.tx, &work.actor, &component, release, approval, &app.authenticator).await?;
    Ok((component, release, facts))
}

/// What a version must follow: of a hotfix, those of its line only. A new draft follows drafts and what was imported, too; one
/// that is submitted is not stranded by what came after it.
async fn latest(
    db: &mut PgConnection,
    caller: &Caller,
    release: &Release,
    imported: Option<Vec<Version>>,
) -> Result<Latest, Failure> {
    let Release { component, version, change, .. } = release;
    let with_drafts = imported.is_some();
    let latest = store::release::version::latest(db, &caller.tenant, component, version, with_drafts).await?;
    let latest = latest.with(version, imported.unwrap_or_default());
    Ok(if change.is_hotfix { Latest { of_all: None, ..latest } } else { latest })
}

/// What an event tells of a change.
fn told(change: &Change) -> Value {
    let times: Vec<_> = change.commits.iter().map(|commit| commit.at.to_rfc3339()).collect();
    json!({ "commit_times": times, "is_unplanned": change.is_unplanned, "incident": change.incident })
}

/// Hands a draft in under the policy of its component, and goes on as far as the facts take it.
async fn submit(
    app: &App,
    work: &mut Mutation,
    component: &Component,
    draft: Release,
) -> Result<Release, Failure> {
    let tenant = work.actor.tenant.clone();
    let policy = store::policy::find(&mut work.tx, &tenant, &component.approval_policy).await?;
    let policy = policy.ok_or_else(|| Failure::Bug(format!("component {} has no policy", component.name)))?;
    let latest = latest(&mut work.tx, &work.caller, &draft, None).await?;
    let approval = ApprovalId::new(work.now, app.entropy.bytes());
    let terms = &policy.terms;
    let facts =
        apply::facts(&mut work.tx, &work.actor, component, &draft, terms, approval, &app.authenticator)
            .await?;
    let submitter = work.actor.principal.clone();
    let (snapshot, body) = Snapshot::take(&tenant, &draft, &submitter, &policy, &facts.people)
        .map_err(|error| Failure::Bug(format!("a snapshot cannot be written: {error}")))?;
    let band = terms.band(facts.assessment.band);
    let submission = Submission {
        submitter,
        at: work.now,
        quorum: terms.rule(band).quorum,
        band,
        risk: Some(Risk::from(&facts.assessment)),
        snapshot: Some(snapshot.clone()),
    };
    let decision = draft.submit(submission, &latest)?;
    let release = &decision.release;
    store::snapshot::insert(&mut work.tx, &tenant, release, &snapshot, &body, work.now).await?;
    let more = Map::from_iter([
        ("change".to_owned(), told(&release.change)),
        ("snapshot_digest".to_owned(), snapshot.digest.as_str().into()),
        ("approval_policy".to_owned(), snapshot.policy.as_str().into()),
        ("approval_policy_version".to_owned(), snapshot.policy_version.into()),
        ("risk_score".to_owned(), facts.assessment.score.into()),
        ("risk_band".to_owned(), facts.assessment.band.name().into()),
    ]);
    apply::release(&mut work.tx, &work.actor, &decision, more).await?;
    apply::reassess(&mut work.tx, &work.actor, decision.release, &facts).await
}

/// Refuses a version that the component has.
async fn require_unused(
    db: &mut PgConnection,
    caller: &Caller,
    component: &ComponentId,
    version: &Version,
) -> Result<(), Failure> {
    match store::release::find_version(db, &caller.tenant, component, version).await? {
        Some(release) => Err(exists(&release.version, Some(&release)).into()),
        None => Ok(()),
    }
}

fn exists(version: &Version, release: Option<&Release>) -> Refusal {
    let text = format!("the component has a release {version} already");
    let refusal = Refusal::new(Reason::ReleaseExists, text).with("last_version", version);
    match release {
        Some(release) => refusal.with("release_id", release.id).with("state", release.state.name()),
        None => refusal,
    }
}

impl App {
    async fn create_release(
        &self,
        request: Request<pb::CreateReleaseRequest>,
    ) -> Result<pb::CreateReleaseResponse, Failure> {
        let (call, message) = Call::of(request, "CreateRelease", |message| &mut message.request_id)?;
        let pb::CreateReleaseRequest { component, version, artifact_digest, notes, request_id: _, change } =
            message;
        let component: ComponentId = parse("component", &component)?;
        let version: Version = parse("version", &version)?;
        let artifact_digest = optional("artifact_digest", &artifact_digest)?;
        let notes = text_of("notes", notes, 0, NOTES_MAX)?;
        let change = parse_change(change)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let tenant = &work.actor.tenant;
        // There may be many, so they are read before anybody waits for the lock.
        let imported = store::release::version::list_imported(&mut work.tx, tenant, &component).await?;
        let owner = store::component::lock(&mut work.tx, tenant, &component).await?;
        let owner = owner.ok_or_else(|| absent(Reason::ComponentNotFound, "component", &component))?;
        work.caller.require_owner(&owner.owner_groups)?;
        require_unused(&mut work.tx, &work.caller, &component, &version).await?;
        let release = Release {
            id: ReleaseId::new(work.now, self.entropy.bytes()),
            component,
            version,
            revision: 1,
            artifact_digest,
            notes,
            change,
            author: work.actor.principal.clone(),
            editors: Vec::new(),
            created_at: work.now,
            state: State::Draft,
            votes: Vec::new(),
            approval: None,
            quarantine: None,
            row_version: 1,
        };
        latest(&mut work.tx, &work.caller, &release, Some(imported))
            .await?
            .admit(&release.version)?;
        store::release::insert(&mut work.tx, tenant, &release).await.map_err(
            |error| match broken_constraint(&error) {
                Some(store::release::VERSION_KEY) => exists(&release.version, None).into(),
                Some(_) | None => Failure::from(error),
            },
        )?;
        apply::tell_draft(&mut work.tx, &work.actor, &release).await?;
        work.answer(pb::CreateReleaseResponse { release: Some((&release).into()) })
            .await
    }

    async fn get_release(
        &self,
        request: Request<pb::GetReleaseRequest>,
    ) -> Result<pb::GetReleaseResponse, Failure> {
        let (caller, deadline) = (Caller::of(&request)?, Deadline::of(&request));
        let pb::GetReleaseRequest { name } = request.into_inner();
        let tenant = &caller.tenant;
        let release = match required("name", name)? {
            Name::ReleaseId(text) => {
                let id = parse("release_id", &text)?;
                let mut db = self.db.connection().await?;
                store::release::find(&mut db, tenant, id)
                    .await?
                    .ok_or_else(|| no_release(&id))?
            }
            Name::Ref(pb::ReleaseRef { component, version }) => {
                let component = parse("ref.component", &component)?;
                let version = parse("ref.version", &version)?;
                let mut db = self.db.connection().await?;
                store::release::find_version(&mut db, tenant, &component, &version)
                    .await?
                    .ok_or_else(|| no_release(&format_args!("{version} of {component}")))?
            }
        };
        // Of a draft, and of what has ended, the facts make nothing.
        if !release.state.takes_votes() {
            return Ok(pb::GetReleaseResponse { release: Some((&release).into()) });
        }
        let actor = Actor {
            tenant: caller.tenant.clone(),
            principal: caller.principal.clone(),
            now: self.clock.now(),
        };
        let mut tx = self.db.begin(deadline).await?;
        let (_, release, _) = self.seen(&mut tx, &actor, release).await?;
        tx.commit().await?;
        Ok(pb::GetReleaseResponse { release: Some((&release).into()) })
    }

    async fn list_releases(
        &self,
        request: Request<pb::ListReleasesRequest>,
    ) -> Result<pb::ListReleasesResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::ListReleasesRequest { component, states, page_size, page_token } = request.into_inner();
        let component_id: Option<ComponentId> = optional("component", &component)?;
        let states = state_names("states", &states, |number| {
            known::<pb::ReleaseState>("states", number).map(|state| state.as_str_name())
        })?;
        let filter = format!("{component}|{}", states.join(","));
        let list = List { name: "ListReleases", tenant: &caller.tenant, filter: &filter };
        let (size, before) = (page::size(page_size)?, before(list.after(&self.keys, &page_token)?)?);
        let mut db = self.db.connection().await?;
        let component = component_id.as_ref();
        let mut rows =
            store::release::list(&mut db, &caller.tenant, component, &states, before, size + 1).await?;
        let next_page_token =
            list.cut(&self.keys, &mut rows, size, self.clock.now(), |(seq, _)| seq.to_string())?;
        Ok(pb::ListReleasesResponse {
            releases: rows.iter().map(|(_, release)| release.into()).collect(),
            next_page_token,
        })
    }

    async fn submit_release(
        &self,
        request: Request<pb::SubmitReleaseRequest>,
    ) -> Result<pb::SubmitReleaseResponse, Failure> {
        let (call, message) = Call::of(request, "SubmitRelease", |message| &mut message.request_id)?;
        let pb::SubmitReleaseRequest { release_id, etag: sent_etag, request_id: _ } = message;
        let id = parse("release_id", &release_id)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let (component, release) = lock_own(&mut work, id, &sent_etag).await?;
        let release = submit(self, &mut work, &component, release).await?;
        work.answer(pb::SubmitReleaseResponse { release: Some((&release).into()) })
            .await
    }

    async fn cancel_release(
        &self,
        request: Request<pb::CancelReleaseRequest>,
    ) -> Result<pb::CancelReleaseResponse, Failure> {
        let (call, message) = Call::of(request, "CancelRelease", |message| &mut message.request_id)?;
        let pb::CancelReleaseRequest { release_id, reason, etag: sent_etag, request_id: _ } = message;
        let id = parse("release_id", &release_id)?;
        let reason = text_of("reason", reason, 1, REASON_MAX)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let (_, release) = lock_own(&mut work, id, &sent_etag).await?;
        let decision = release.cancel()?;
        apply::release(&mut work.tx, &work.actor, &decision, because(reason)).await?;
        work.answer(pb::CancelReleaseResponse { release: Some((&decision.release).into()) })
            .await
    }
}

#[tonic::async_trait]
impl ReleaseService for App {
    async fn create_release(
        &self,
        request: Request<pb::CreateReleaseRequest>,
    ) -> Result<Response<pb::CreateReleaseResponse>, Status> {
        Ok(Response::new(self.create_release(request).await?))
    }

    async fn get_release(
        &self,
        request: Request<pb::GetReleaseRequest>,
    ) -> Result<Response<pb::GetReleaseResponse>, Status> {
        Ok(Response::new(self.get_release(request).await?))
    }

    async fn list_releases(
        &self,
        request: Request<pb::ListReleasesRequest>,
    ) -> Result<Response<pb::ListReleasesResponse>, Status> {
        Ok(Response::new(self.list_releases(request).await?))
    }

    async fn submit_release(
        &self,
        request: Request<pb::SubmitReleaseRequest>,
    ) -> Result<Response<pb::SubmitReleaseResponse>, Status> {
        Ok(Response::new(self.submit_release(request).await?))
    }

    async fn cancel_release(
        &self,
        request: Request<pb::CancelReleaseRequest>,
    ) -> Result<Response<pb::CancelReleaseResponse>, Status> {
        Ok(Response::new(self.cancel_release(request).await?))
    }

    async fn update_release(
        &self,
        request: Request<pb::UpdateReleaseRequest>,
    ) -> Result<Response<pb::UpdateReleaseResponse>, Status> {
        Ok(Response::new(self.update_release(request).await?))
    }

    async fn revise_release(
        &self,
        request: Request<pb::ReviseReleaseRequest>,
    ) -> Result<Response<pb::ReviseReleaseResponse>, Status> {
        Ok(Response::new(self.revise_release(request).await?))
    }

    async fn abandon_release(
        &self,
        request: Request<pb::AbandonReleaseRequest>,
    ) -> Result<Response<pb::AbandonReleaseResponse>, Status> {
        Ok(Response::new(self.abandon_release(request).await?))
    }

    async fn quarantine_release(
        &self,
        request: Request<pb::QuarantineReleaseRequest>,
    ) -> Result<Response<pb::QuarantineReleaseResponse>, Status> {
        Ok(Response::new(self.quarantine_release(request).await?))
    }

    async fn lift_quarantine(
        &self,
        request: Request<pb::LiftQuarantineRequest>,
    ) -> Result<Response<pb::LiftQuarantineResponse>, Status> {
        Ok(Response::new(self.lift_quarantine(request).await?))
    }

    async fn explain_release(
        &self,
        request: Request<pb::ExplainReleaseRequest>,
    ) -> Result<Response<pb::ExplainReleaseResponse>, Status> {
        Ok(Response::new(self.explain_release(request).await?))
    }
}
