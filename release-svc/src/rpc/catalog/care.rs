//! What one person does not make laxer by themselves where a policy takes two people to change: what a component's releases
//! need, what an environment asks for, and what windows hold.

use shared::id::TenantId;
use shared::mutation::Mutation;
use shared::status::{Failure, Reason, Refusal};
use sqlx::PgConnection;

use crate::apply::exposure::{actions, target};
use crate::domain::component::{Component, Environment};
use crate::domain::window::{Action, Target, looser};
use crate::store;

/// Where a component's policy takes two people to change, one person does not take the component to a laxer one, nor make it
/// seem to need less care.
pub(super) async fn require_same_care(
    db: &mut PgConnection,
    tenant: &TenantId,
    from: &Component,
    to: &Component,
) -> Result<(), Failure> {
    let (name, other) = (&from.approval_policy, &to.approval_policy);
    let policy = store::policy::find(db, tenant, name).await?;
    let Some(policy) = policy.filter(|policy| policy.terms.rules.two_people) else { return Ok(()) };
    let laxer = |text: String| Err(Refusal::new(Reason::ApprovalPolicyLaxer, text).into());
    if name != other {
        let other_terms = store::policy::find(db, tenant, other).await?.map(|other| other.terms);
        // One that is not there is refused as that.
        if other_terms.is_some_and(|terms| !terms.meet(&policy.terms)) {
            return laxer(format!(
                "policy {name} takes two people to change, and {other} asks for less: change {name} first"
            ));
        }
    }
    if to.needs_care_of(from) {
        return Ok(());
    }
    laxer(format!(
        "policy {name} takes two people to change, and so would a lower tier, fewer data scopes or other business owners: \
         change {name} first"
    ))
}

/// The same of an environment.
pub(super) async fn require_same_requirements(
    work: &mut Mutation,
    from: &Environment,
    to: &Environment,
) -> Result<(), Failure> {
    let tenant = &work.actor.tenant;
    if to.asks_no_less(from) || !store::window_proposal::takes_two(&mut work.tx, tenant).await? {
        return Ok(());
    }
    let text =
        "a component's policy takes two people to change, and so would an environment that asks for less";
    Err(Refusal::new(Reason::ApprovalPolicyLaxer, text).into())
}

/// Where windows take two people, one person does not take a component out of one.
pub(super) async fn require_component_held(
    work: &mut Mutation,
    from: &Component,
    to: &Component,
) -> Result<(), Failure> {
    if (from.tier, from.kind) == (to.tier, to.kind) {
        return Ok(());
    }
    let (was, is) = (target(Some(from), None, None), target(Some(to), None, None));
    require_held(work, (&was, actions(from)), (&is, actions(to))).await
}

/// The same of an environment.
pub(super) async fn require_environment_held(
    work: &mut Mutation,
    from: &Environment,
    to: &Environment,
) -> Result<(), Failure> {
    if from.region == to.region {
        return Ok(());
    }
    require_held(work, (&seen(from), &Action::ALL), (&seen(to), &Action::ALL)).await
}

/// An environment as windows see it; one without a region is in none that they name.
fn seen(environment: &Environment) -> Target<'_> {
    let region = environment.region.as_deref().unwrap_or_default();
    Target { region: Some(region), ..target(None, Some(environment), None) }
}

async fn require_held(
    work: &mut Mutation,
    from: (&Target<'_>, &[Action]),
    to: (&Target<'_>, &[Action]),
) -> Result<(), Failure> {
    let tenant = &work.actor.tenant;
    if !store::window_proposal::takes_two(&mut work.tx, tenant).await? {
        return Ok(());
    }
    store::calendar::share(&mut work.tx, tenant).await?;
    let live = store::window::list_live(&mut work.tx, tenant, work.now).await?;
    let Some(window) = looser(&live, from, to) else { return Ok(()) };
    let text = format!(
        "window {} ({}) would hold less, and windows take two people: change the window first",
        window.id, window.terms.name
    );
    Err(Refusal::new(Reason::ApprovalPolicyLaxer, text)
        .with("window_id", window.id)
        .into())
}
