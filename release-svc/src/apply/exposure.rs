//! Whether exposure may be raised now. Only what raises it asks; a rollback never does.
//!
//! The answer holds until the end of the transaction, as the tenant's calendar is shared until then.

use shared::id::{ReleaseId, WindowOverrideId};
use shared::mutation::Actor;
use shared::status::Failure;
use sqlx::PgConnection;

use super::dependency::{self, Locked};
use crate::domain::blocker::{Blocker, Kind};
use crate::domain::component::{self, Component, Environment};
use crate::domain::version::Version;
use crate::domain::window::{self, Action, Effect, Held, Stop, Target};
use crate::store;

/// What shall be exposed to more, where.
pub(crate) struct Increase<'a> {
    pub(crate) component: &'a Component,
    pub(crate) environment: &'a Environment,
    pub(crate) release: ReleaseId,
    pub(crate) version: &'a Version,
    /// The component, and what it needs.
    pub(crate) locked: &'a Locked,
}

/// What holds it back, and the overrides that it goes by if nothing does.
pub(crate) struct Passage {
    pub(crate) blockers: Vec<Blocker>,
    pub(crate) overrides: Vec<WindowOverrideId>,
}

impl<'a> Increase<'a> {
    /// What windows see of it.
    fn target(&self) -> Target<'a> {
        target(Some(self.component), Some(self.environment), Some(self.release))
    }
}

/// What windows see of a component, an environment and a release.
pub(crate) fn target<'a>(
    component: Option<&'a Component>,
    environment: Option<&'a Environment>,
    release: Option<ReleaseId>,
) -> Target<'a> {
    Target {
        component: component.map(|component| component.name.as_str()),
        tier: component.map(|component| component.tier.name()),
        environment: environment.map(|environment| environment.name.as_str()),
        region: environment.and_then(|environment| environment.region.as_deref()),
        release,
    }
}

/// What a rollout of the component does.
pub(crate) const fn actions(component: &Component) -> &'static [Action] {
    match component.kind {
        component::Kind::Schema => &[Action::Deploy, Action::Expose, Action::Schema],
        component::Kind::Service
        | component::Kind::App
        | component::Kind::MlModel
        | component::Kind::MobileApp => &[Action::Deploy, Action::Expose],
    }
}

/// Looks at dependencies, the line and the windows.
pub(crate) async fn passage(
    db: &mut PgConnection,
    actor: &Actor,
    increase: &Increase<'_>,
) -> Result<Passage, Failure> {
    let stop = store::calendar::share(db, &actor.tenant).await?;
    look(db, actor, increase, stop).await
}

/// The same for whoever only wants to know: it keeps nobody from stopping the line, and may be untrue a moment later.
pub(crate) async fn outlook(
    db: &mut PgConnection,
    actor: &Actor,
    increase: &Increase<'_>,
) -> Result<Passage, Failure> {
    let stop = store::calendar::find_stop(db, &actor.tenant).await?;
    look(db, actor, increase, stop).await
}

async fn look(
    db: &mut PgConnection,
    actor: &Actor,
    increase: &Increase<'_>,
    stop: Option<Stop>,
) -> Result<Passage, Failure> {
    let (tenant, now) = (&actor.tenant, actor.now);
    let Increase { component, environment, version, locked, .. } = increase;
    let of = (&component.name, *version);
    let mut blockers = dependency::blockers(db, tenant, locked, of, &environment.name).await?;
    let windows = store::window::list_live(db, tenant, now).await?;
    let overrides = store::window_override::list_live(db, tenant, now).await?;
    let verdict =
        window::evaluate(&windows, &overrides, now, actions(increase.component), &increase.target());
    blockers.extend(stop.as_ref().map(stopped));
    blockers.extend(
        verdict
            .blockers
            .iter()
            .map(|held| Blocker { next_open: verdict.next_open, ..closed(held) }),
    );
    Ok(Passage { blockers, overrides: verdict.overrides })
}

/// The line, as it holds back.
pub(crate) fn stopped(stop: &Stop) -> Blocker {
    let Stop { at: _, stopper, reason } = stop;
    Blocker {
        kind: Kind::Line,
        subject: "line".to_owned(),
        description: format!("{stopper} stopped the line: {reason}"),
        lifted_by: "ResumeTheLine".to_owned(),
        next_open: None,
    }
}

/// A window, as it holds back.
pub(crate) fn closed(held: &Held) -> Blocker {
    let Held { id, name, effect, zone, until } = held;
    let until = until.map(|until| until.with_timezone(zone).to_rfc3339());
    let description = match (effect, until) {
        (Effect::Deny, Some(until)) => format!("window {name} denies it until {until} ({zone})"),
        (Effect::Deny, None) => format!("window {name} denies it for more than a year"),
        (Effect::Allow, Some(until)) => format!("window {name} allows it only from {until} ({zone}) on"),
        (Effect::Allow, None) => format!("window {name} allows it only at other times"),
    };
    let lifted_by = "its time, or OverrideWindow by a person with scope window.override";
    let lifted_by = lifted_by.to_owned();
    Blocker { kind: Kind::Window, subject: id.to_string(), description, lifted_by, next_open: None }
}
