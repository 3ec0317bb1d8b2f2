//! Whether exposure may be raised now. Only what raises it asks; a rollback never does.
//!
//! The answer holds until the end of the transaction, as the tenant's calendar is shared until then.

use shared::id::{ReleaseId, WindowOverrideId};
use shared::mutation::Actor;
use shared::status::Failure;
use sqlx::PgConnection;

use crate::domain::blocker::{Blocker, Kind};
use crate::domain::component::{Component, Environment};
use crate::domain::window::{self, Action, Effect, Held, Stop, Target};
use crate::store;

/// What shall be exposed to more, where.
pub(crate) struct Increase<'a> {
    pub(crate) component: &'a Component,
    pub(crate) environment: &'a Environment,
    pub(crate) release: ReleaseId,
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
        tier: None,
        environment: environment.map(|environment| environment.name.as_str()),
        region: None,
        release,
    }
}

/// What a rollout of the component does.
pub(crate) const fn actions(_component: &Component) -> &'static [Action] {
    &[Action::Deploy, Action::Expose]
}

/// Looks at the line and the windows. The caller has locked the component.
pub(crate) async fn passage(
    db: &mut PgConnection,
    actor: &Actor,
    increase: &Increase<'_>,
) -> Result<Passage, Failure> {
    let (tenant, now) = (&actor.tenant, actor.now);
    let stop = store::calendar::share(db, tenant).await?;
    let windows = store::window::list_live(db, tenant, now).await?;
    let overrides = store::window::list_overrides(db, tenant, now).await?;
    let verdict =
        window::evaluate(&windows, &overrides, now, actions(increase.component), &increase.target());
    let mut blockers: Vec<_> = stop.as_ref().map(stopped).into_iter().collect();
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
