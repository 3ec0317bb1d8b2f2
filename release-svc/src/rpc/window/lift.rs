//! Overrides: a person's word, with a reason, that a window does not hold for one thing and a while.

use serde_json::json;
use shared::db::broken_constraint;
use shared::id::{ComponentId, EnvironmentId, WindowId, WindowOverrideId};
use shared::mutation::{Begun, Call};
use shared::parse::{parse, required, text_of};
use shared::pb::release as pb;
use shared::pb::release::window_override::Subject;
use shared::status::{Failure, Reason, Refusal};
use shared::time::Time;
use tonic::Request;

use super::convert::parse_time;
use super::live;
use crate::domain::window::{OVERRIDE_MAX, Override, OverrideSubject, Span};
use crate::rpc::release::{REASON_MAX, no_release};
use crate::rpc::{App, absent};
use crate::store;
use crate::store::window::{OVERRIDE_COMPONENT_KEY, OVERRIDE_ENVIRONMENT_KEY, OVERRIDE_RELEASE_KEY};

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

/// What a write that broke a constraint means.
fn override_failure(subject: &OverrideSubject, error: sqlx::Error) -> Failure {
    match (broken_constraint(&error), subject) {
        (Some(OVERRIDE_COMPONENT_KEY), OverrideSubject::Place { component, .. }) => {
            absent(Reason::ComponentNotFound, "component", component).into()
        }
        (Some(OVERRIDE_ENVIRONMENT_KEY), OverrideSubject::Place { environment, .. }) => {
            absent(Reason::EnvironmentNotFound, "environment", environment).into()
        }
        (Some(OVERRIDE_RELEASE_KEY), OverrideSubject::Release(release)) => no_release(release).into(),
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
        live(&mut work, window).await?;
        let lifted = Override {
            id: WindowOverrideId::new(work.now, self.entropy.bytes()),
            window,
            subject,
            reason,
            creator: work.actor.principal.clone(),
            span: Span { start: work.now, end },
        };
        let inserted = store::window::insert_override(&mut work.tx, &work.actor.tenant, &lifted).await;
        inserted.map_err(|error| override_failure(&lifted.subject, error))?;
        let (component, environment, release) = match &lifted.subject {
            OverrideSubject::Place { component, environment } => (Some(component), Some(environment), None),
            OverrideSubject::Release(release) => (None, None, Some(release.to_string())),
        };
        let data = json!({
            "window_id": window.to_string(),
            "window_override_id": lifted.id.to_string(),
            "component": component,
            "environment": environment,
            "release_id": release,
            "reason": lifted.reason,
            "ends_at": lifted.span.end,
        });
        work.tell("window.overridden", window.to_string(), data);
        work.answer(pb::OverrideWindowResponse { window_override: Some((&lifted).into()) })
            .await
    }
}
