//! `WindowService`: freeze windows, what lifts them, and the line. Every change locks the tenant's calendar first.

use shared::auth::Caller;
use shared::id::WindowId;
use shared::mutation::{Begun, Call, Mutation};
use shared::page::{self, List};
use shared::parse::{etag, parse, text_of};
use shared::pb::release as pb;
use shared::pb::release::window_service_server::WindowService;
use shared::status::{Failure, Reason, Refusal};
use tonic::{Request, Response, Status};

use super::release::REASON_MAX;
use super::{App, absent, parsed};
use crate::domain::window::{Change, Window};
use crate::store;
use crate::store::window::WINDOWS_MAX;

mod confirm;
mod convert;
mod evaluate;
mod lift;
mod line;

use confirm::{change, opens_more, propose, proposed, tell_changed};
use convert::parse_window;

fn no_window(id: WindowId) -> Refusal {
    absent(Reason::WindowNotFound, "window", &id)
}

/// The window that can be changed. The calendar is locked, so it stays as it is.
async fn live(work: &mut Mutation, id: WindowId) -> Result<Window, Failure> {
    let window = store::window::find(&mut work.tx, &work.actor.tenant, id).await?;
    Ok(window.filter(Window::is_live).ok_or_else(|| no_window(id))?)
}

/// Refuses a window about what is not there, as it would hold nothing, and one too many.
async fn admit(work: &mut Mutation, window: &Window) -> Result<(), Failure> {
    let (tenant, scope) = (&work.actor.tenant, &window.terms.scope);
    if let Some(name) = store::window::missing_component(&mut work.tx, tenant, &scope.components).await? {
        return Err(absent(Reason::ComponentNotFound, "component", &name).into());
    }
    if let Some(name) = store::window::missing_environment(&mut work.tx, tenant, &scope.environments).await? {
        return Err(absent(Reason::EnvironmentNotFound, "environment", &name).into());
    }
    let is_over = window.over_at().is_some_and(|over_at| over_at <= work.now);
    if is_over || store::window::count_others(&mut work.tx, tenant, window.id, work.now).await? < WINDOWS_MAX
    {
        return Ok(());
    }
    let text = format!("the tenant has {WINDOWS_MAX} windows that are not over, as many as it may");
    Err(Refusal::new(Reason::WindowLimit, text).with("max", WINDOWS_MAX).into())
}

impl App {
    async fn create_window(
        &self,
        request: Request<pb::CreateWindowRequest>,
    ) -> Result<pb::CreateWindowResponse, Failure> {
        let (call, message) = Call::of(request, "CreateWindow", |message| &mut message.request_id)?;
        let pb::CreateWindowRequest { window, request_id: _ } = message;
        let (terms, _, _) = parse_window(window, self.clock.now())?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        store::calendar::lock(&mut work.tx, &work.actor.tenant).await?;
        let is_pending = opens_more(&mut work, &terms).await?;
        let proposed = if is_pending { Some(proposed(&mut work, Change::Creation).await?) } else { None };
        let window = Window {
            id: WindowId::new(work.now, self.entropy.bytes()),
            terms,
            creator: work.actor.principal.clone(),
            created_at: work.now,
            deleted_at: is_pending.then_some(work.now),
            row_version: 1,
            proposed,
        };
        admit(&mut work, &window).await?;
        store::window::insert(&mut work.tx, &work.actor.tenant, &window).await?;
        match &window.proposed {
            None => tell_changed(&mut work, &window, &Change::Creation, None),
            Some(proposed) => propose(&mut work, &window, proposed).await?,
        }
        work.answer(pb::CreateWindowResponse { window: Some((&window).into()) }).await
    }

    async fn get_window(
        &self,
        request: Request<pb::GetWindowRequest>,
    ) -> Result<pb::GetWindowResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::GetWindowRequest { window_id } = request.into_inner();
        let id = parse("window_id", &window_id)?;
        let mut db = self.db.connection().await?;
        let window = store::window::find(&mut db, &caller.tenant, id).await?;
        let window = window.ok_or_else(|| no_window(id))?;
        Ok(pb::GetWindowResponse { window: Some((&window).into()) })
    }

    async fn list_windows(
        &self,
        request: Request<pb::ListWindowsRequest>,
    ) -> Result<pb::ListWindowsResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::ListWindowsRequest { show_deleted, page_size, page_token } = request.into_inner();
        let filter = show_deleted.to_string();
        let list = List { name: "ListWindows", tenant: &caller.tenant, filter: &filter };
        let (size, before) = (page::size(page_size)?, list.after(&self.keys, &page_token)?);
        let before = parsed(before)?;
        let mut db = self.db.connection().await?;
        let mut rows = store::window::list(&mut db, &caller.tenant, show_deleted, before, size + 1).await?;
        let next_page_token =
            list.cut(&self.keys, &mut rows, size, self.clock.now(), |row| row.id.to_string())?;
        Ok(pb::ListWindowsResponse { windows: rows.iter().map(Into::into).collect(), next_page_token })
    }

    async fn update_window(
        &self,
        request: Request<pb::UpdateWindowRequest>,
    ) -> Result<pb::UpdateWindowResponse, Failure> {
        let (call, message) = Call::of(request, "UpdateWindow", |message| &mut message.request_id)?;
        let pb::UpdateWindowRequest { window, request_id: _ } = message;
        let (terms, id, sent_etag) = parse_window(window, self.clock.now())?;
        let id = parse("window.window_id", &id)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        store::calendar::lock(&mut work.tx, &work.actor.tenant).await?;
        let stored = live(&mut work, id).await?;
        etag(&sent_etag, stored.row_version)?;
        admit(&mut work, &Window { terms: terms.clone(), ..stored.clone() }).await?;
        let window = change(&mut work, stored, Change::Update(Box::new(terms))).await?;
        work.answer(pb::UpdateWindowResponse { window: Some((&window).into()) }).await
    }

    async fn delete_window(
        &self,
        request: Request<pb::DeleteWindowRequest>,
    ) -> Result<pb::DeleteWindowResponse, Failure> {
        let (call, message) = Call::of(request, "DeleteWindow", |message| &mut message.request_id)?;
        let pb::DeleteWindowRequest { window_id, reason, etag: sent_etag, request_id: _ } = message;
        let id = parse("window_id", &window_id)?;
        let reason = text_of("reason", reason, 1, REASON_MAX)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        store::calendar::lock(&mut work.tx, &work.actor.tenant).await?;
        let stored = live(&mut work, id).await?;
        etag(&sent_etag, stored.row_version)?;
        let window = change(&mut work, stored, Change::Deletion { reason }).await?;
        work.answer(pb::DeleteWindowResponse { window: Some((&window).into()) }).await
    }
}

#[tonic::async_trait]
impl WindowService for App {
    async fn create_window(
        &self,
        request: Request<pb::CreateWindowRequest>,
    ) -> Result<Response<pb::CreateWindowResponse>, Status> {
        Ok(Response::new(self.create_window(request).await?))
    }

    async fn get_window(
        &self,
        request: Request<pb::GetWindowRequest>,
    ) -> Result<Response<pb::GetWindowResponse>, Status> {
        Ok(Response::new(self.get_window(request).await?))
    }

    async fn list_windows(
        &self,
        request: Request<pb::ListWindowsRequest>,
    ) -> Result<Response<pb::ListWindowsResponse>, Status> {
        Ok(Response::new(self.list_windows(request).await?))
    }

    async fn update_window(
        &self,
        request: Request<pb::UpdateWindowRequest>,
    ) -> Result<Response<pb::UpdateWindowResponse>, Status> {
        Ok(Response::new(self.update_window(request).await?))
    }

    async fn delete_window(
        &self,
        request: Request<pb::DeleteWindowRequest>,
    ) -> Result<Response<pb::DeleteWindowResponse>, Status> {
        Ok(Response::new(self.delete_window(request).await?))
    }

    async fn confirm_window(
        &self,
        request: Request<pb::ConfirmWindowRequest>,
    ) -> Result<Response<pb::ConfirmWindowResponse>, Status> {
        Ok(Response::new(self.confirm_window(request).await?))
    }

    async fn evaluate_windows(
        &self,
        request: Request<pb::EvaluateWindowsRequest>,
    ) -> Result<Response<pb::EvaluateWindowsResponse>, Status> {
        Ok(Response::new(self.evaluate_windows(request).await?))
    }

    async fn override_window(
        &self,
        request: Request<pb::OverrideWindowRequest>,
    ) -> Result<Response<pb::OverrideWindowResponse>, Status> {
        Ok(Response::new(self.override_window(request).await?))
    }

    async fn list_window_overrides(
        &self,
        request: Request<pb::ListWindowOverridesRequest>,
    ) -> Result<Response<pb::ListWindowOverridesResponse>, Status> {
        Ok(Response::new(self.list_window_overrides(request).await?))
    }

    async fn end_window_override(
        &self,
        request: Request<pb::EndWindowOverrideRequest>,
    ) -> Result<Response<pb::EndWindowOverrideResponse>, Status> {
        Ok(Response::new(self.end_window_override(request).await?))
    }

    async fn stop_the_line(
        &self,
        request: Request<pb::StopTheLineRequest>,
    ) -> Result<Response<pb::StopTheLineResponse>, Status> {
        Ok(Response::new(self.stop_the_line(request).await?))
    }

    async fn resume_the_line(
        &self,
        request: Request<pb::ResumeTheLineRequest>,
    ) -> Result<Response<pb::ResumeTheLineResponse>, Status> {
        Ok(Response::new(self.resume_the_line(request).await?))
    }
}
