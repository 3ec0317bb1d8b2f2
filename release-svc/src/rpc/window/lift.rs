//! Overrides: a person's word, with a reason, that a window does not hold for one thing and a while.

use serde_json::{Value, json};
use shared::auth::Caller;
use shared::db::broken_constraint;
use shared::id::{ComponentId, EnvironmentId, WindowId, WindowOverrideId};
use shared::mutation::{Begun, Call};
use shared::page::{self, List};
use shared::parse::{optional, parse, required, text_of};
use shared::pb::release as pb;
use shared::pb::release::window_override::Subject;
use shared::status::{Failure, Reason, Refusal};
use shared::time::Time;
use tonic::Request;

use super::convert::parse_time;
use super::{live, no_window};
use crate::apply::expect_written;
use crate::domain::window::{Ending, OVERRIDE_MAX, Override, OverrideSubject, Span};
use crate::rpc::release::{REASON_MAX, no_release};
use crate::rpc::{App, absent, parsed};
use crate::store;
use crate::store::window_override::{COMPONENT_KEY, ENVIRONMENT_KEY, RELEASE_KEY};

/// What a person asks for.
struct Asked {
    window: WindowId,
    subject: OverrideSubject,
    reason: String,
    end: Time,
}

fn parse_override(lifted: Option<pb::WindowOverride>) -> Result<Asked, Refusal> {
    let pb::WindowOverride {
        window_override_id: _,
        window_id,
        subject,
        reason,
        end_time,
        creator: _,
        create_time: _,
        ender: _,
        end_reason: _,
    } = required("window_override", lifted)?;
    let subject = match required("window_override.subject", subject)? {
        Subject::Place(pb::WindowPlace { component, environment }) => OverrideSubject::Place {
            component: parse::<ComponentId>("window_override.place.component", &component)?.to_string(),
            environment: parse::<EnvironmentId>("window_override.place.environment", &environment)?
                .to_string(),
        },
        Subject::ReleaseId(id) => OverrideSubject::Release(parse("window_override.release_id", &id)?),
    };
    Ok(Asked {
        window: parse("window_override.window_id", &window_id)?,
        subject,
        reason: text_of("window_override.reason", reason, 1, REASON_MAX)?,
        end: parse_time("window_override.end_time", end_time)?,
    })
}

/// What events tell of an override.
fn told(lifted: &Override, reason: &str) -> Value {
    let (component, environment, release) = match &lifted.subject {
        OverrideSubject::Place { component, environment } => (Some(component), Some(environment), None),
        OverrideSubject::Release(release) => (None, None, Some(release.to_string())),
    };
    json!({
        "window_id": lifted.window.to_string(),
        "window_override_id": lifted.id.to_string(),
        "component": component,
        "environment": environment,
        "release_id": release,
        "reason": reason,
    })
}

/// What a write that broke a constraint means.
fn override_failure(subject: &OverrideSubject, error: sqlx::Error) -> Failure {
    match (broken_constraint(&error), subject) {
        (Some(COMPONENT_KEY), OverrideSubject::Place { component, .. }) => {
            absent(Reason::ComponentNotFound, "component", component).into()
        }
        (Some(ENVIRONMENT_KEY), OverrideSubject::Place { environment, .. }) => {
            absent(Reason::EnvironmentNotFound, "environment", environment).into()
        }
        (Some(RELEASE_KEY), OverrideSubject::Release(release)) => no_release(release).into(),
        (Some(_) | None, OverrideSubject::Place { .. } | OverrideSubject::Release(_)) => error.into(),
    }
}

impl App {
    pub(super) async fn override_window(
        &self,
        request: Request<pb::OverrideWindowRequest>,
    ) -> Result<pb::OverrideWindowResponse, Failure> {
        let (call, message) = Call::of(request, "OverrideWindow", |message| &mut message.request_id)?;
        let pb::OverrideWindowRequest { window_override, request_id: _ } = message;
        let Asked { window, subject, reason, end } = parse_override(window_override)?;
        call.caller.require_person()?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        if end <= work.now || end > work.now + OVERRIDE_MAX {
            return Err(Refusal::field("window_override.end_time", "must be within the next 24 hours").into());
        }
        store::calendar::lock(&mut work.tx, &work.actor.tenant).await?;
        if live(&mut work, window).await?.is_pending() {
            return Err(no_window(window).into());
        }
        let lifted = Override {
            id: WindowOverrideId::new(work.now, self.entropy.bytes()),
            window,
            subject,
            reason,
            creator: work.actor.principal.clone(),
            span: Span { start: work.now, end },
            ending: None,
        };
        let inserted = store::window_override::insert(&mut work.tx, &work.actor.tenant, &lifted).await;
        inserted.map_err(|error| override_failure(&lifted.subject, error))?;
        let mut data = told(&lifted, &lifted.reason);
        data["ends_at"] = json!(lifted.span.end);
        work.tell("window.overridden", window.to_string(), data);
        work.answer(pb::OverrideWindowResponse { window_override: Some((&lifted).into()) })
            .await
    }

    pub(super) async fn list_window_overrides(
        &self,
        request: Request<pb::ListWindowOverridesRequest>,
    ) -> Result<pb::ListWindowOverridesResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::ListWindowOverridesRequest { window_id, show_ended, page_size, page_token } =
            request.into_inner();
        let window: Option<WindowId> = optional("window_id", &window_id)?;
        let now = self.clock.now();
        let filter = format!("{window_id} {show_ended}");
        let list = List { name: "ListWindowOverrides", tenant: &caller.tenant, filter: &filter };
        let (size, before) = (page::size(page_size)?, list.after(&self.keys, &page_token)?);
        let before = parsed(before)?;
        let ending_after = (!show_ended).then_some(now);
        let mut db = self.db.connection().await?;
        let mut rows =
            store::window_override::list(&mut db, &caller.tenant, window, ending_after, before, size + 1)
                .await?;
        let next_page_token = list.cut(&self.keys, &mut rows, size, now, |row| row.id.to_string())?;
        let window_overrides = rows.iter().map(Into::into).collect();
        Ok(pb::ListWindowOverridesResponse { window_overrides, next_page_token })
    }

    pub(super) async fn end_window_override(
        &self,
        request: Request<pb::EndWindowOverrideRequest>,
    ) -> Result<pb::EndWindowOverrideResponse, Failure> {
        let (call, message) = Call::of(request, "EndWindowOverride", |message| &mut message.request_id)?;
        let pb::EndWindowOverrideRequest { window_override_id, reason, request_id: _ } = message;
        let id: WindowOverrideId = parse("window_override_id", &window_override_id)?;
        let reason = text_of("reason", reason, 1, REASON_MAX)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let tenant = work.actor.tenant.clone();
        store::calendar::lock(&mut work.tx, &tenant).await?;
        let stored = store::window_override::find(&mut work.tx, &tenant, id).await?;
        let mut lifted =
            stored.ok_or_else(|| absent(Reason::WindowOverrideNotFound, "window override", &id))?;
        if lifted.span.end > work.now {
            let ending = Ending { ender: work.actor.principal.clone(), reason };
            lifted = lifted.ended(work.now, ending.clone());
            expect_written(store::window_override::end(&mut work.tx, &tenant, &lifted, &ending).await?)?;
            let data = told(&lifted, &ending.reason);
            work.tell("window.override_ended", lifted.window.to_string(), data);
        }
        work.answer(pb::EndWindowOverrideResponse { window_override: Some((&lifted).into()) })
            .await
    }
}
