//! Visits and the releases that they are pinned to.
//!
//! A pin is made when a visit begins and lives as long as it does. Precedence: a killed release, or one whose visits are to
//! end, lets go of everyone; then whatever holds the visit holds it; then a withdrawn release lets go; then the pin stands;
//! only where there is none does the hash decide. Nobody who left a canary comes back to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use shared::id::{ComponentId, ReleaseId, RolloutId, SessionId};
use shared::time::Time;

/// Rollouts that a session remembers to have left; those that it left last.
const LEFT_MAX: usize = 8;

/// A run of activity with no idle gap.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Visit {
    /// When it began.
    pub started_at: Time,
    /// The release of each component.
    pub pins: Pins,
    /// Rollouts whose canary the session was taken off, in this visit or an earlier one, newest last.
    pub left: Vec<RolloutId>,
}

/// Releases by component.
pub type Pins = BTreeMap<ComponentId, Pin>;

/// The release of one component that a visit is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// Which.
    pub release: Release,
    /// Which side of which rollout that is, where one assigned it.
    pub arm: Option<(RolloutId, Arm)>,
}

/// A side of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arm {
    /// What was there before.
    Control,
    /// What is being rolled out.
    Canary,
}

/// A release that can be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Its id.
    pub id: ReleaseId,
    /// Its version.
    pub version: String,
}

/// What an environment serves of one component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Rises with every change within one table epoch.
    pub revision: i64,
    /// For visits that no rollout concerns.
    pub stable: Option<Release>,
    /// Under way.
    pub rollout: Option<Rollout>,
    /// Rolled back: nobody may stay on them but while something holds the visit.
    pub withdrawn: Vec<ReleaseId>,
    /// Those of them whose visits end with their next call, whatever holds them.
    pub ended: Vec<ReleaseId>,
}

/// A rollout under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollout {
    /// Its id.
    pub id: RolloutId,
    /// What is being rolled out.
    pub release: Release,
    /// Share of visits, 0 to 10000.
    pub exposure_bps: u32,
    /// Goes before the session id into the hash.
    pub salt: String,
    /// Whether visits that run already are assigned, too.
    pub is_all_sessions: bool,
    /// What is assigned now is booked under this.
    pub step: i32,
    /// The outcomes that it asks for, by name.
    pub guards: Vec<String>,
}

/// What decides about a visit's pins besides its session.
pub struct Routing<'a> {
    /// The touchpoint's components.
    pub components: &'a [ComponentId],
    /// Finds a component's route.
    pub route: &'a dyn Fn(&ComponentId) -> Option<Arc<Route>>,
    /// Whether a release was stopped here.
    pub is_killed: &'a dyn Fn(ReleaseId) -> bool,
    /// Whether release-svc was heard of within the exposure lease; without it nobody new goes to a canary.
    pub may_expose: bool,
}

/// A session in whose visit a rollout's arm was dealt by chance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// By which.
    pub rollout: RolloutId,
    /// During which step.
    pub step: i32,
    /// Which.
    pub arm: Arm,
}

/// What a session is in from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    /// The visit; the one before, where nothing changed.
    pub visit: Visit,
    /// What the session becomes by it, where it is not one yet.
    pub units: Vec<Unit>,
}

/// The visit of a session that is seen now. `before` is its last one, `is_over` whether the gap since is too long for it to
/// go on, `is_held` whether a checkout or its caller holds it on its releases. Who was on the canary of a rollout that still
/// exposes anyone is there in the next visit, too, so that nobody goes back and forth.
pub fn next(
    session: SessionId,
    before: &Visit,
    is_over: bool,
    is_held: bool,
    now: Time,
    routing: &Routing<'_>,
) -> Next {
    let is_new = is_over || routing.ends(&before.pins);
    let begins = is_new && !is_held;
    let (mut pins, mut units) = (Pins::new(), vec![]);
    for component in routing.components {
        let Some(pin) = before.pins.get(component).filter(|_| !begins) else {
            let arm = before.pins.get(component).and_then(|pin| pin.arm);
            let Some(route) = (routing.route)(component) else { continue };
            let assigned = routing.assign(session, &route, arm, &before.left);
            units.extend(assigned.unit.filter(|_| begins));
            pins.extend(assigned.pin.map(|pin| (component.clone(), pin)));
            continue;
        };
        let pin = routing.keep(session, component, pin, is_held, &before.left);
        pins.extend(pin.map(|pin| (component.clone(), pin)));
    }
    let left = left(before, &pins);
    let started_at = if is_new { now } else { before.started_at };
    Next { visit: Visit { started_at, pins, left }, units }
}

/// With the rollouts whose canary the session was on and is on no longer.
fn left(before: &Visit, pins: &Pins) -> Vec<RolloutId> {
    let mut left = before.left.clone();
    for (component, pin) in &before.pins {
        let stays = pins.get(component).is_some_and(|now| now.release == pin.release);
        if let Some((rollout, Arm::Canary)) = pin.arm
            && !stays
            && !left.contains(&rollout)
        {
            left.push(rollout);
        }
    }
    let excess = left.len().saturating_sub(LEFT_MAX);
    left.split_off(excess)
}

/// What a visit that begins is served of a component, and what its session becomes by it.
struct Assigned {
    pin: Option<Pin>,
    unit: Option<Unit>,
}

impl Routing<'_> {
    /// Whether a visit ends with this call, as a release of it does.
    fn ends(&self, pins: &Pins) -> bool {
        self.components.iter().any(|component| {
            let pinned = pins.get(component).map(|pin| pin.release.id);
            pinned.is_some_and(|id| (self.route)(component).is_some_and(|route| route.ended.contains(&id)))
        })
    }

    fn keep(
        &self,
        session: SessionId,
        component: &ComponentId,
        pin: &Pin,
        is_held: bool,
        left: &[RolloutId],
    ) -> Option<Pin> {
        let is_killed = (self.is_killed)(pin.release.id);
        let Some(route) = (self.route)(component) else { return (!is_killed).then(|| pin.clone()) };
        if is_killed || route.ended.contains(&pin.release.id) {
            return self.let_go(&route, pin);
        }
        if is_held {
            return Some(pin.clone());
        }
        let is_withdrawn = route.withdrawn.contains(&pin.release.id);
        let moved = if is_withdrawn { self.let_go(&route, pin) } else { None };
        let pin = moved.unwrap_or_else(|| pin.clone());
        let concerns_running = route.rollout.as_ref().is_some_and(|rollout| rollout.is_all_sessions);
        let assigned = if concerns_running { self.assign(session, &route, pin.arm, left).pin } else { None };
        // A visit that runs may only move onto the canary; whatever else the hash says, it stays.
        let canary = assigned.filter(|assigned| matches!(assigned.arm, Some((_, Arm::Canary))));
        Some(canary.unwrap_or(pin))
    }

    /// Off a release, onto the stable one: the control of the rollout that it was, unless another one runs by now. None
    /// where there is no other to go to.
    fn let_go(&self, route: &Route, pin: &Pin) -> Option<Pin> {
        let release = self.stable(route).filter(|stable| !route.withdrawn.contains(&stable.id))?;
        let is_other = |id| route.rollout.as_ref().is_some_and(|rollout| rollout.id != id);
        let arm = pin
            .arm
            .filter(|(rollout, _)| !is_other(*rollout))
            .map(|(rollout, _)| (rollout, Arm::Control));
        Some(Pin { release: release.clone(), arm })
    }

    fn stable<'r>(&self, route: &'r Route) -> Option<&'r Release> {
        let stable = route.stable.as_ref()?;
        (!(self.is_killed)(stable.id) && !route.ended.contains(&stable.id)).then_some(stable)
    }

    fn assign(
        &self,
        session: SessionId,
        route: &Route,
        before: Option<(RolloutId, Arm)>,
        left: &[RolloutId],
    ) -> Assigned {
        let stable = self.stable(route);
        let on_stable = |arm| stable.map(|release| Pin { release: release.clone(), arm });
        let may_go_to = |id: ReleaseId| !route.withdrawn.contains(&id) && !(self.is_killed)(id);
        let Some(rollout) = route.rollout.as_ref().filter(|rollout| may_go_to(rollout.release.id)) else {
            return Assigned { pin: on_stable(None), unit: None };
        };
        let by_hash = bucket(&rollout.salt, session) < rollout.exposure_bps;
        let was_canary = before == Some((rollout.id, Arm::Canary)) && rollout.exposure_bps > 0;
        let may_return = !left.contains(&rollout.id);
        let is_canary = may_return && (was_canary || (self.may_expose && by_hash));
        let arm = if is_canary { Arm::Canary } else { Arm::Control };
        let pin = if is_canary {
            Some(Pin { release: rollout.release.clone(), arm: Some((rollout.id, arm)) })
        } else {
            on_stable(Some((rollout.id, arm)))
        };
        // Whom the lease, or an earlier visit, sent elsewhere than the hash would was not dealt an arm by chance; and at
        // exposure 0 there is no chance.
        let by_chance = self.may_expose
            && may_return
            && rollout.exposure_bps > 0
            && is_canary == by_hash
            && pin.is_some();
        let unit = by_chance.then_some(Unit { rollout: rollout.id, step: rollout.step, arm });
        Assigned { pin, unit }
    }
}

/// Place of a session on the scale of 0 to 9999, by flagd's "fractional v2": `murmur3_x86_32` of the key with seed 0,
/// times the sum of the weights, shifted right by 32. The canary comes first, so it only ever gains while its weight grows.
pub fn bucket(salt: &str, session: SessionId) -> u32 {
    scale(&format!("{salt}{session}"), 10_000)
}

fn scale(key: &str, weights: u32) -> u32 {
    let hash = murmur3::murmur3_32(&mut key.as_bytes(), 0).unwrap_or(0);
    u32::try_from((u64::from(hash) * u64::from(weights)) >> 32).unwrap_or(0)
}

#[cfg(test)]
mod tests;
