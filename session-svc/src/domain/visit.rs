//! Visits and the releases that they are pinned to.
//!
//! A pin is made when a visit begins and lives as long as it does. Precedence: a withdrawn release lets go of everyone but
//! an open checkout; then the pin stands; only where there is none does the hash decide.

use std::collections::BTreeMap;

use shared::id::{ComponentId, ReleaseId, RolloutId, SessionId};
use shared::time::Time;

/// A run of activity with no idle gap.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Visit {
    /// When it began.
    pub started_at: Time,
    /// The release of each component.
    pub pins: Pins,
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
    /// Rolled back: nobody may stay on them but to end a checkout.
    pub withdrawn: Vec<ReleaseId>,
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
}

/// What decides about a visit's pins besides its session.
pub struct Routing<'a> {
    /// The touchpoint's components.
    pub components: &'a [ComponentId],
    /// Finds a component's route.
    pub route: &'a dyn Fn(&ComponentId) -> Option<std::sync::Arc<Route>>,
    /// Whether release-svc was heard of within the exposure lease; without it nobody new goes to a canary.
    pub may_expose: bool,
}

/// Pins of a visit that begins. `before` are those of the session's last visit: who was on the canary of a rollout that
/// still runs stays there, so that nobody goes back and forth.
pub fn begin(session: SessionId, before: &Pins, routing: &Routing<'_>) -> Pins {
    let pinned = routing.components.iter().filter_map(|component| {
        let route = (routing.route)(component)?;
        let arm_before = before.get(component).and_then(|pin| pin.arm);
        Some((component.clone(), assign(session, &route, arm_before, routing.may_expose)?))
    });
    pinned.collect()
}

/// Pins of a visit that goes on.
pub fn keep(session: SessionId, pins: &Pins, in_checkout: bool, routing: &Routing<'_>) -> Pins {
    let mut kept = Pins::new();
    for component in routing.components {
        let pin = match ((routing.route)(component), pins.get(component)) {
            (None, pin) => pin.cloned(),
            (Some(route), None) => assign(session, &route, None, routing.may_expose),
            (Some(_), Some(pin)) if in_checkout => Some(pin.clone()),
            (Some(route), Some(pin)) => Some(go_on(session, &route, pin, routing.may_expose)),
        };
        kept.extend(pin.map(|pin| (component.clone(), pin)));
    }
    kept
}

fn go_on(session: SessionId, route: &Route, pin: &Pin, may_expose: bool) -> Pin {
    let pin = if route.withdrawn.contains(&pin.release.id) { let_go(route, pin) } else { pin.clone() };
    let concerns_running = route.rollout.as_ref().is_some_and(|rollout| rollout.is_all_sessions);
    let assigned = concerns_running.then(|| assign(session, route, pin.arm, may_expose)).flatten();
    match assigned {
        // A visit that runs may only move onto the canary; whatever else the hash says, it stays.
        Some(Pin { release, arm: Some((rollout, Arm::Canary)) }) => {
            Pin { release, arm: Some((rollout, Arm::Canary)) }
        }
        _ => pin,
    }
}

/// Off a withdrawn release, onto the stable one: the control of the rollout that it was, unless another one runs by now.
fn let_go(route: &Route, pin: &Pin) -> Pin {
    let Some(release) = route.stable.clone().filter(|stable| !route.withdrawn.contains(&stable.id)) else {
        return pin.clone();
    };
    let is_other = |id| route.rollout.as_ref().is_some_and(|rollout| rollout.id != id);
    let arm = pin
        .arm
        .filter(|(rollout, _)| !is_other(*rollout))
        .map(|(rollout, _)| (rollout, Arm::Control));
    Pin { release, arm }
}

fn assign(
    session: SessionId,
    route: &Route,
    before: Option<(RolloutId, Arm)>,
    may_expose: bool,
) -> Option<Pin> {
    let Some(rollout) = route
        .rollout
        .as_ref()
        .filter(|rollout| !route.withdrawn.contains(&rollout.release.id))
    else {
        return Some(Pin { release: route.stable.clone()?, arm: None });
    };
    let was_canary = before == Some((rollout.id, Arm::Canary));
    let is_canary = was_canary || (may_expose && bucket(&rollout.salt, session) < rollout.exposure_bps);
    match (&route.stable, is_canary) {
        (_, true) => Some(Pin { release: rollout.release.clone(), arm: Some((rollout.id, Arm::Canary)) }),
        (Some(stable), false) => Some(Pin { release: stable.clone(), arm: Some((rollout.id, Arm::Control)) }),
        (None, false) => None,
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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shared::time::at;
    use std::sync::Arc;

    const STABLE: u128 = 1;
    const CANARY: u128 = 2;

    fn release(n: u128) -> Release {
        Release { id: ReleaseId::from_uuid(uuid::Uuid::from_u128(n)), version: format!("1.{n}") }
    }

    fn route(exposure_bps: u32, is_all_sessions: bool) -> Route {
        let id = RolloutId::from_uuid(uuid::Uuid::from_u128(9));
        let rollout =
            Rollout { id, release: release(CANARY), exposure_bps, salt: "s".into(), is_all_sessions };
        Route { revision: 1, stable: Some(release(STABLE)), rollout: Some(rollout), withdrawn: vec![] }
    }

    fn session(n: u32) -> SessionId {
        SessionId::new(at(i64::from(n)), [7; 10])
    }

    fn shop() -> ComponentId {
        "shop".parse().unwrap()
    }

    fn with<T>(route: &Route, may_expose: bool, f: impl FnOnce(&Routing<'_>) -> T) -> T {
        let route = Arc::new(route.clone());
        f(&Routing { components: &[shop()], route: &move |_| Some(Arc::clone(&route)), may_expose })
    }

    fn served(pins: &Pins) -> Option<ReleaseId> {
        pins.get(&shop()).map(|pin| pin.release.id)
    }

    /// flagd's own test bed, gherkin/targeting.feature: `fractional-flag` with four variants of weight 25, and
    /// `fractional-flag-shorthand` with two of weight 1.
    #[test]
    fn the_hash_is_flagds_fractional_v2() {
        let hash = |key: &str| murmur3::murmur3_32(&mut key.as_bytes(), 0).unwrap();
        let suits = ["clubs", "diamonds", "hearts", "spades"];
        for (name, hashed, suit) in [
            ("jack", 2_682_799_072, "hearts"),
            ("queen", 4_278_517_551, "spades"),
            ("ten", 801_845_258, "clubs"),
            ("nine", 1_406_129_861, "diamonds"),
            ("3", 604_371_928, "clubs"),
        ] {
            let key = format!("fractional-flag{name}");
            assert_eq!((hash(&key), suits[scale(&key, 100) as usize / 25]), (hashed, suit), "{name}");
        }
        for (name, hashed, side) in
            [("jon@company.com", 618_039_204, "heads"), ("jane@company.com", 2_316_038_310, "tails")]
        {
            let key = format!("fractional-flag-shorthand{name}");
            assert_eq!((hash(&key), ["heads", "tails"][scale(&key, 2) as usize]), (hashed, side), "{name}");
        }
        for (key, hashed) in [
            ("ejOoVL", 0_u32),
            ("bY9fO-", 1),
            ("SI7p-", 2_147_483_647),
            ("6LvT0", 2_147_483_648),
            ("ceQdGm", u32::MAX),
        ] {
            assert_eq!(hash(key), hashed);
        }
    }

    #[test]
    fn a_running_visit_is_left_alone_by_new_visits_and_moved_once_by_all_sessions() {
        let before =
            with(&Route { rollout: None, ..route(0, false) }, true, |r| begin(session(1), &Pins::new(), r));
        let after = |route: &Route| with(route, true, |r| keep(session(1), &before, false, r));
        assert_eq!(served(&after(&route(10_000, false))), Some(release(STABLE).id));
        assert_eq!(served(&after(&route(10_000, true))), Some(release(CANARY).id));
    }

    #[test]
    fn a_withdrawn_release_lets_go_of_everyone_but_an_open_checkout() {
        let pins = with(&route(10_000, false), true, |r| begin(session(1), &Pins::new(), r));
        let back = Route { rollout: None, withdrawn: vec![release(CANARY).id], ..route(0, false) };
        let moved = |in_checkout| with(&back, true, |r| keep(session(1), &pins, in_checkout, r));
        assert_eq!(served(&moved(true)), Some(release(CANARY).id));
        assert_eq!(served(&moved(false)), Some(release(STABLE).id));
        assert_eq!(moved(false)[&shop()].arm.map(|(_, arm)| arm), Some(Arm::Control));
    }

    #[test]
    fn who_is_let_go_while_another_rollout_runs_is_no_control_of_the_old_one_and_moves_once() {
        let pins = with(&route(10_000, false), true, |r| begin(session(1), &Pins::new(), r));
        let next = |is_all_sessions| {
            let id = RolloutId::from_uuid(uuid::Uuid::from_u128(10));
            let next =
                Rollout { id, release: release(3), exposure_bps: 10_000, salt: "t".into(), is_all_sessions };
            Route { rollout: Some(next), withdrawn: vec![release(CANARY).id], ..route(0, false) }
        };
        let kept = with(&next(false), true, |r| keep(session(1), &pins, false, r));
        assert_eq!(kept[&shop()], Pin { release: release(STABLE), arm: None });
        let moved = with(&next(true), true, |r| keep(session(1), &pins, false, r));
        assert_eq!(served(&moved), Some(release(3).id));
        assert_eq!(with(&next(true), true, |r| keep(session(1), &moved, false, r)), moved);
    }

    #[test]
    fn without_the_lease_nobody_new_goes_to_the_canary_and_nobody_leaves_it() {
        let pins = with(&route(10_000, false), true, |r| begin(session(1), &Pins::new(), r));
        let (new, old) = with(&route(10_000, false), false, |r| {
            (begin(session(2), &Pins::new(), r), begin(session(1), &pins, r))
        });
        assert_eq!(served(&new), Some(release(STABLE).id));
        assert_eq!(served(&old), Some(release(CANARY).id));
    }

    #[test]
    fn a_first_release_waits_for_its_exposure() {
        let first = Route { stable: None, ..route(0, false) };
        assert_eq!(with(&first, true, |r| begin(session(1), &Pins::new(), r)), Pins::new());
    }

    proptest! {
        #[test]
        fn exposure_that_grows_moves_nobody_off_the_canary(n: u32, low in 0_u32..=10_000, more in 0_u32..=10_000) {
            let arm = |bps: u32| with(&route(bps.min(10_000), false), true, |r| served(&begin(session(n), &Pins::new(), r)));
            if arm(low) == Some(release(CANARY).id) {
                prop_assert_eq!(arm(low + more), Some(release(CANARY).id));
            }
        }

        #[test]
        fn the_share_of_sessions_on_the_canary_is_the_exposure(bps in 0_u32..=10_000) {
            let on_canary = (0..4000).filter(|n| bucket("salt", session(*n)) < bps).count();
            let expected = 4000.0 * f64::from(bps) / 10_000.0;
            // Five standard deviations of a binomial.
            let slack = 5.0 * (expected * (1.0 - f64::from(bps) / 10_000.0)).sqrt() + 1.0;
            prop_assert!((f64::from(u32::try_from(on_canary).unwrap()) - expected).abs() <= slack);
        }

        #[test]
        fn what_goes_on_is_pinned_as_before(n: u32, bps in 0_u32..=10_000, later in 0_u32..=10_000) {
            let pins = with(&route(bps, false), true, |r| begin(session(n), &Pins::new(), r));
            prop_assert_eq!(with(&route(later, false), true, |r| keep(session(n), &pins, false, r)), pins);
        }
    }
}
