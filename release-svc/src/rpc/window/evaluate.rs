//! `EvaluateWindows`: the rules that rollouts follow, asked without one.

use chrono::SecondsFormat;
use chrono_tz::Tz;
use shared::auth::Caller;
use shared::id::{ComponentId, EnvironmentId, ReleaseId, TenantId};
use shared::parse::optional;
use shared::pb::release as pb;
use shared::status::{Failure, Reason, Refusal};
use shared::time::{Time, to_proto};
use sqlx::PgConnection;
use tonic::Request;

use super::convert::{effect_to_proto, line_to_proto, parse_actions, parse_time};
use crate::apply::exposure;
use crate::domain::blocker::Blocker;
use crate::domain::component::{Component, Environment};
use crate::domain::window::{self, Action, Held, Verdict};
use crate::rpc::release::no_release;
use crate::rpc::{App, absent};
use crate::store;

/// What is asked about, as far as it was said.
struct Subject {
    component: Option<Component>,
    environment: Option<Environment>,
    release: Option<ReleaseId>,
}

/// Reads what is asked about. A release stands for its component.
async fn find_subject(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: Option<ComponentId>,
    environment: Option<EnvironmentId>,
    release: Option<ReleaseId>,
) -> Result<Subject, Failure> {
    let component = match release {
        None => component,
        Some(id) => {
            let found = store::release::find(db, tenant, id).await?;
            let of_release = found.ok_or_else(|| no_release(&id))?.component;
            if component.is_some_and(|component| component != of_release) {
                return Err(Refusal::field("component", "must be the release's or empty").into());
            }
            Some(of_release)
        }
    };
    let component = match component {
        None => None,
        Some(name) => {
            let found = store::component::find(db, tenant, &name).await?;
            Some(found.ok_or_else(|| absent(Reason::ComponentNotFound, "component", &name))?)
        }
    };
    let environment = match environment {
        None => None,
        Some(name) => {
            let found = store::environment::find(db, tenant, &name).await?;
            Some(found.ok_or_else(|| absent(Reason::EnvironmentNotFound, "environment", &name))?)
        }
    };
    Ok(Subject { component, environment, release })
}

fn shown(at: Time, zone: Tz) -> String {
    at.with_timezone(&zone).to_rfc3339_opts(SecondsFormat::Secs, false)
}

fn closed_window(held: &Held, at: Time) -> pb::ClosedWindow {
    let Held { id, name, effect, zone, until } = held;
    pb::ClosedWindow {
        window_id: id.to_string(),
        name: name.clone(),
        effect: effect_to_proto(*effect).into(),
        time_zone: zone.name().to_owned(),
        until_time: until.map(to_proto),
        local_until: until.map(|until| shown(until, *zone)).unwrap_or_default(),
        local_time: shown(at, *zone),
    }
}

impl App {
    pub(super) async fn evaluate_windows(
        &self,
        request: Request<pb::EvaluateWindowsRequest>,
    ) -> Result<pb::EvaluateWindowsResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::EvaluateWindowsRequest { time, actions, component, environment, release_id } =
            request.into_inner();
        let at = time.map_or_else(|| Ok(self.clock.now()), |time| parse_time("time", Some(time)))?;
        let actions = match parse_actions("actions", &actions)? {
            asked if asked.is_empty() => vec![Action::Deploy, Action::Expose],
            asked => asked,
        };
        let component = optional("component", &component)?;
        let environment = optional("environment", &environment)?;
        let release = optional("release_id", &release_id)?;
        let (tenant, mut db) = (&caller.tenant, self.db.connection().await?);
        let subject = find_subject(&mut db, tenant, component, environment, release).await?;
        let stop = store::calendar::find_stop(&mut db, tenant).await?;
        let windows = store::window::list_live(&mut db, tenant, at).await?;
        let overrides = store::window_override::list_live(&mut db, tenant, at).await?;
        drop(db);
        let Subject { component, environment, release } = &subject;
        let target = exposure::target(component.as_ref(), environment.as_ref(), *release);
        let Verdict { blockers: held, overrides: lifted, next_open } =
            window::evaluate(&windows, &overrides, at, &actions, &target);
        let is_open = held.is_empty() && stop.is_none();
        let next_close = is_open
            .then(|| window::next_close(&windows, &overrides, at, &actions, &target))
            .flatten();
        let closed = held.iter().map(|held| Blocker { next_open, ..exposure::closed(held) });
        let blockers = stop.as_ref().map(exposure::stopped).into_iter().chain(closed);
        Ok(pb::EvaluateWindowsResponse {
            is_open,
            blockers: blockers.map(Into::into).collect(),
            windows: held.iter().map(|held| closed_window(held, at)).collect(),
            next_open_time: next_open.filter(|_| stop.is_none()).map(to_proto),
            next_close_time: next_close.map(to_proto),
            window_override_ids: lifted.iter().map(ToString::to_string).collect(),
            time: Some(to_proto(at)),
            line: Some(line_to_proto(stop.as_ref())),
            is_peak: window::is_peak(&windows, at, &target),
        })
    }
}
