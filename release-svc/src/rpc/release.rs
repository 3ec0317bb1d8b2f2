//! `ReleaseService`: from draft to approved.

use serde_json::Map;
use shared::auth::Caller;
use shared::db::broken_constraint;
use shared::id::{ComponentId, ReleaseId};
use shared::mutation::{Begun, Call, Mutation};
use shared::page::{self, List};
use shared::parse::{etag, etag_of, known, optional, parse, required, text_of};
use shared::pb::release as pb;
use shared::pb::release::get_release_request::Name;
use shared::pb::release::release_service_server::ReleaseService;
use shared::status::{Failure, Reason, Refusal};
use shared::time::to_proto;
use sqlx::PgConnection;
use tonic::{Request, Response, Status};

use super::{App, absent, before, state_names};
use crate::apply;
use crate::domain::component::Component;
use crate::domain::release::{Decision, Release, State, Vote};
use crate::domain::version::Version;
use crate::store;

/// Longest reason anywhere, in characters.
pub(super) const REASON_MAX: usize = 1000;
const NOTES_MAX: usize = 16_000;

impl From<&Release> for pb::Release {
    fn from(release: &Release) -> Self {
        let submission = release.state.submission();
        Self {
            release_id: release.id.to_string(),
            component: release.component.to_string(),
            version: release.version.to_string(),
            state: state_to_proto(&release.state).into(),
            artifact_digest: release.artifact_digest.as_ref().map(ToString::to_string).unwrap_or_default(),
            notes: release.notes.clone(),
            author: release.author.clone(),
            submitter: submission.map(|submission| submission.submitter.clone()).unwrap_or_default(),
            quorum: submission.map_or(0, |submission| submission.quorum),
            votes: release.votes.iter().map(Into::into).collect(),
            create_time: Some(to_proto(release.created_at)),
            submit_time: submission.map(|submission| to_proto(submission.at)),
            etag: etag_of(release.row_version),
        }
    }
}

impl From<&Vote> for pb::Vote {
    fn from(vote: &Vote) -> Self {
        Self {
            voter: vote.voter.clone(),
            approve: vote.approve,
            reason: vote.reason.clone(),
            vote_time: Some(to_proto(vote.at)),
        }
    }
}

const fn state_to_proto(state: &State) -> pb::ReleaseState {
    match state {
        State::Draft => pb::ReleaseState::Draft,
        State::PendingApproval(_) => pb::ReleaseState::PendingApproval,
        State::Approved(_) => pb::ReleaseState::Approved,
        State::Active(_) => pb::ReleaseState::Active,
        State::Released(_) => pb::ReleaseState::Released,
        State::Rejected(_) => pb::ReleaseState::Rejected,
        State::Cancelled(_) => pb::ReleaseState::Cancelled,
        State::RolledBack(_) => pb::ReleaseState::RolledBack,
        State::Superseded(_) => pb::ReleaseState::Superseded,
    }
}

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
        let pb::CreateReleaseRequest { component, version, artifact_digest, notes, request_id: _ } = message;
        let component: ComponentId = parse("component", &component)?;
        let version: Version = parse("version", &version)?;
        let artifact_digest = optional("artifact_digest", &artifact_digest)?;
        let notes = text_of("notes", notes, 0, NOTES_MAX)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let tenant = &work.actor.tenant;
        let owner = store::component::lock(&mut work.tx, tenant, &component).await?;
        let owner = owner.ok_or_else(|| absent(Reason::ComponentNotFound, "component", &component))?;
        work.caller.require_owner(&owner.owner_groups)?;
        require_unused(&mut work.tx, &work.caller, &component, &version).await?;
        store::release::latest(&mut work.tx, tenant, &component, &version, true)
            .await?
            .admit(&version)?;
        let release = Release {
            id: ReleaseId::new(work.now, self.entropy.bytes()),
            component,
            version,
            artifact_digest,
            notes,
            author: work.actor.principal.clone(),
            created_at: work.now,
            state: State::Draft,
            votes: Vec::new(),
            row_version: 1,
        };
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
        let caller = Caller::of(&request)?;
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
        let (component, release) = lock(&mut work, id).await?;
        work.caller.require_owner(&component.owner_groups)?;
        etag(&sent_etag, release.row_version)?;
        let tenant = &work.actor.tenant;
        let policy = store::policy::find(&mut work.tx, tenant, &component.approval_policy).await?;
        let policy =
            policy.ok_or_else(|| Failure::Bug(format!("component {} has no policy", component.name)))?;
        let version = &release.version;
        let latest = store::release::latest(&mut work.tx, tenant, &component.name, version, false).await?;
        let principal = work.actor.principal.clone();
        let submitted = release.submit(principal, policy.quorum, &latest, work.now)?;
        let more = Map::from_iter([("quorum".to_owned(), policy.quorum.into())]);
        apply::release(&mut work.tx, &work.actor, &submitted, more).await?;
        let approved = submitted.release.clone().approve_standard_change();
        if let Some(decision) = &approved {
            let more = Map::from_iter([("is_standard_change".to_owned(), true.into())]);
            apply::release(&mut work.tx, &work.actor, decision, more).await?;
        }
        let Decision { release, .. } = approved.unwrap_or(submitted);
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
        let (component, release) = lock(&mut work, id).await?;
        work.caller.require_owner(&component.owner_groups)?;
        etag(&sent_etag, release.row_version)?;
        let decision = release.cancel()?;
        let more = Map::from_iter([("reason".to_owned(), reason.into())]);
        apply::release(&mut work.tx, &work.actor, &decision, more).await?;
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
}
