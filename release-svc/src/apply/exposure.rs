//! Whether exposure may be raised now. Only what raises it asks, and `ExplainRelease`; a rollback never does.
//!
//! Under locks the answer holds until the end of the transaction, as the environment and the tenant's calendar are shared
//! until then.

use shared::id::{ReleaseId, WindowOverrideId};
use shared::mutation::Actor;
use shared::status::Failure;
use sqlx::PgConnection;

use super::dependency::{self, Locked};
use crate::domain::blocker::{Blocker, Kind};
use crate::domain::component::{self, Component, Environment};
use crate::domain::release::{Facts, Release};
use crate::domain::rollout::{EVERYONE_BPS, Rollout};
use crate::domain::window::{self, Action, Effect, Held, Stop, Target};
use crate::store;

/// What shall be exposed to more, where.
pub(crate) struct Increase<'a> {
    pub(crate) component: &'a Component,
    pub(crate) environment: &'a Environment,
    /// As the facts make it.
    pub(crate) release: &'a Release,
    pub(crate) facts: &'a Facts,
    /// The component, and what it needs. None for whoever only wants to know: that keeps nobody from stopping the line,
    /// and may be untrue a moment later.
    pub(crate) locked: Option<&'a Locked>,
}

/// What holds it back, and the overrides that it goes by if nothing does.
#[derive(Default)]
pub(crate) struct Passage {
    pub(crate) blockers: Vec<Blocker>,
    pub(crate) overrides: Vec<WindowOverrideId>,
}

impl<'a> Increase<'a> {
    /// What windows see of it.
    fn target(&self) -> Target<'a> {
        target(Some(self.component), Some(self.environment), Some(self.release.id))
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

/// What keeps a release from its first exposure in an environment, beside what is exposed there.
pub(crate) async fn first_step(
    db: &mut PgConnection,
    actor: &Actor,
    increase: &Increase<'_>,
) -> Result<Passage, Failure> {
    let environment = &kept(db, actor, increase).await?;
    let increase = &Increase { environment, ..*increase };
    let Increase { release, facts, .. } = *increase;
    let mut passage = passage(db, actor, increase).await?;
    let promotion = dependency::promotion_blocker(db, actor, release, environment).await?;
    passage.blockers.extend(promotion);
    let hold = store::hold::find(db, &actor.tenant, &increase.component.name, &environment.name).await?;
    passage.blockers.extend(hold.and_then(|hold| hold.blocker(release)));
    passage.blockers.extend(super::evidence_blockers(release, facts, environment));
    passage.blockers.extend(release.holds(facts));
    Ok(passage)
}

/// What keeps a rollout of the release from its next step. Where that exposes nobody more, nothing does.
pub(crate) async fn next_step(
    db: &mut PgConnection,
    actor: &Actor,
    increase: &Increase<'_>,
    rollout: &Rollout,
) -> Result<Passage, Failure> {
    if rollout.exposure_bps == EVERYONE_BPS {
        return Ok(Passage::default());
    }
    let environment = &kept(db, actor, increase).await?;
    let increase = &Increase { environment, ..*increase };
    let Increase { release, facts, .. } = *increase;
    let mut passage = passage(db, actor, increase).await?;
    let began_under = match rollout.approval {
        Some(id) => store::approval::find(db, &actor.tenant, id).await?,
        None => None,
    };
    passage.blockers.extend(super::evidence_blockers(release, facts, environment));
    passage.blockers.extend(release.holds_under(began_under.as_ref(), facts));
    Ok(passage)
}

/// The environment as it stays until the end of the transaction, where what is answered shall hold until then. What was read
/// before may have changed since.
async fn kept(db: &mut PgConnection, actor: &Actor, increase: &Increase<'_>) -> Result<Environment, Failure> {
    let environment = increase.environment;
    if increase.locked.is_none() {
        return Ok(environment.clone());
    }
    let found = store::environment::share(db, &actor.tenant, &environment.name).await?;
    found.ok_or_else(|| Failure::Bug(format!("environment {} is not there any more", environment.name)))
}

/// Looks at dependencies, the line and the windows.
async fn passage(db: &mut PgConnection, actor: &Actor, increase: &Increase<'_>) -> Result<Passage, Failure> {
    let (tenant, now) = (&actor.tenant, actor.now);
    let Increase { component, environment, release, locked, .. } = *increase;
    let stop = match locked {
        Some(_) => store::calendar::share(db, tenant).await?,
        None => store::calendar::find_stop(db, tenant).await?,
    };
    let of = (&component.name, &release.version);
    let mut blockers = dependency::blockers(db, tenant, locked, of, &environment.name).await?;
    let windows = store::window::list_live(db, tenant, now).await?;
    let overrides = store::window_override::list_live(db, tenant, now).await?;
    let verdict = window::evaluate(&windows, &overrides, now, actions(component), &increase.target());
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
