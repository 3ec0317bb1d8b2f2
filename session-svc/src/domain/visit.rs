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

impl Visit {
    /// Whether a rollout has to do with what it is on and its row is not. That is written before anyone is told: else another
    /// replica, with another exposure or without the lease, could decide otherwise.
    pub fn is_dealt_beyond(&self, stored: &Self) -> bool {
        let mut components = self.pins.keys().chain(stored.pins.keys());
        components.any(|component| {
            let (now, then) = (self.pins.get(component), stored.pins.get(component));
            now != then && now.into_iter().chain(then).any(|pin| pin.arm.is_some())
        })
    }
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
    /// In which step chance dealt that last. None where the session is no unit of the rollout, or where that deals each
    /// session once.
    pub dealt_step: Option<i32>,
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

/// A session that chance dealt a rollout's arm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// By which.
    pub rollout: RolloutId,
    /// During which step.
    pub step: i32,
    /// Which.
    pub arm: Arm,
    /// Whether the rollout deals anew in each step.
    pub is_all_sessions: bool,
}

/// What a session is in from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    /// The visit; the one before, where nothing changed.
    pub visit: Visit,
    /// What was dealt to the session by it. What it is already, it stays.
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
        let pinned = before.pins.get(component);
        let Assigned { pin, unit } = match pinned.filter(|_| !begins) {
            Some(pin) => routing.keep(session, component, pin, is_held, &before.left),
            None => match (routing.route)(component) {
                Some(route) => routing.assign(session, &route, pinned, begins, &before.left),
                None => continue,
            },
        };
        units.extend(unit);
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

/// What a visit is served of a component, and what was dealt to its session by that.
struct Assigned {
    pin: Option<Pin>,
    unit: Option<Unit>,
}

impl From<Option<Pin>> for Assigned {
    fn from(pin: Option<Pin>) -> Self {
        Self { pin, unit: None }
    }
}

impl Pin {
    fn dealt_by(&self, rollout: RolloutId) -> Option<i32> {
        self.dealt_step.filter(|_| self.arm.is_some_and(|(of, _)| of == rollout))
    }
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
    ) -> Assigned {
        let is_killed = (self.is_killed)(pin.release.id);
        let Some(route) = (self.route)(component) else { return (!is_killed).then(|| pin.clone()).into() };
        if is_killed || route.ended.contains(&pin.release.id) {
            return self.let_go(&route, pin).into();
        }
        if is_held {
            return Some(pin.clone()).into();
        }
        let is_withdrawn = route.withdrawn.contains(&pin.release.id);
        let moved = if is_withdrawn { self.let_go(&route, pin) } else { None };
        let pin = moved.unwrap_or_else(|| pin.clone());
        match &route.rollout {
            Some(rollout) if rollout.is_all_sessions => self.deal_again(session, &route, rollout, pin, left),
            Some(_) | None => Some(pin).into(),
        }
    }

    /// A visit that runs may only move onto the canary; whatever else the hash says, it stays. Of a session that is a unit
    /// either is as much of a deal as its first one.
    fn deal_again(
        &self,
        session: SessionId,
        route: &Route,
        rollout: &Rollout,
        pin: Pin,
        left: &[RolloutId],
    ) -> Assigned {
        let dealt_step = pin.dealt_by(rollout.id);
        let Assigned { pin: assigned, unit } =
            self.assign(session, route, Some(&pin), dealt_step.is_some(), left);
        // A replica that lags behind deals nothing anew.
        let unit = unit.filter(|unit| dealt_step.is_none_or(|dealt| dealt < unit.step));
        let canary = assigned.filter(|assigned| matches!(assigned.arm, Some((_, Arm::Canary))));
        let dealt_step = unit.as_ref().map(|unit| unit.step).or(pin.dealt_step);
        Assigned { pin: Some(canary.unwrap_or(Pin { dealt_step, ..pin })), unit }
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
        Some(Pin { release: release.clone(), arm, dealt_step: None })
    }

    fn stable<'r>(&self, route: &'r Route) -> Option<&'r Release> {
        let stable = route.stable.as_ref()?;
        (!(self.is_killed)(stable.id) && !route.ended.contains(&stable.id)).then_some(stable)
    }

    /// `counts` where the session may become a unit, or is one.
    fn assign(
        &self,
        session: SessionId,
        route: &Route,
        before: Option<&Pin>,
        counts: bool,
        left: &[RolloutId],
    ) -> Assigned {
        let on_stable = |arm, dealt_step| {
            let release = self.stable(route)?.clone();
            Some(Pin { release, arm, dealt_step })
        };
        let may_go_to = |id: ReleaseId| !route.withdrawn.contains(&id) && !(self.is_killed)(id);
        let Some(rollout) = route.rollout.as_ref().filter(|rollout| may_go_to(rollout.release.id)) else {
            return on_stable(None, None).into();
        };
        let by_hash = bucket(&rollout.salt, session) < rollout.exposure_bps;
        let was_canary = before.is_some_and(|pin| pin.arm == Some((rollout.id, Arm::Canary)));
        let may_return = !left.contains(&rollout.id);
        let is_canary = may_return && (was_canary && rollout.exposure_bps > 0 || self.may_expose && by_hash);
        // Whom the lease, or an earlier visit, sent elsewhere than the hash would was not dealt an arm by chance; and at
        // exposure 0 there is no chance.
        let by_chance = counts
            && self.may_expose
            && may_return
            && rollout.exposure_bps > 0
            && is_canary == by_hash
            && (is_canary || self.stable(route).is_some());
        let arm = if is_canary { Arm::Canary } else { Arm::Control };
        let &Rollout { id, step, is_all_sessions, .. } = rollout;
        let unit = by_chance.then_some(Unit { rollout: id, step, arm, is_all_sessions });
        let dealt_before = before.and_then(|pin| pin.dealt_by(id));
        let dealt_step =
            if by_chance && is_all_sessions { dealt_before.max(Some(step)) } else { dealt_before };
        let pin = if is_canary {
            Some(Pin { release: rollout.release.clone(), arm: Some((id, arm)), dealt_step })
        } else {
            on_stable(Some((id, arm)), dealt_step)
        };
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
