use super::*;
use proptest::prelude::*;
use shared::time::at;

mod dealing;

const STABLE: u128 = 1;
const CANARY: u128 = 2;

fn release(n: u128) -> Release {
    Release { id: ReleaseId::from_uuid(uuid::Uuid::from_u128(n)), version: format!("1.{n}") }
}

fn rollout(n: u128, exposure_bps: u32) -> Rollout {
    Rollout {
        id: RolloutId::from_uuid(uuid::Uuid::from_u128(n)),
        release: release(CANARY),
        exposure_bps,
        salt: "s".into(),
        is_all_sessions: false,
        step: 0,
        guards: vec![],
    }
}

fn route(exposure_bps: u32, is_all_sessions: bool) -> Route {
    let rollout = Rollout { is_all_sessions, ..rollout(9, exposure_bps) };
    Route {
        revision: 1,
        stable: Some(release(STABLE)),
        rollout: Some(rollout),
        withdrawn: vec![],
        ended: vec![],
    }
}

fn rolled_back() -> Route {
    Route { rollout: None, withdrawn: vec![release(CANARY).id], ..route(0, false) }
}

fn session(n: u32) -> SessionId {
    SessionId::new(at(i64::from(n)), [7; 10])
}

fn shop() -> ComponentId {
    "shop".parse().unwrap()
}

fn routed<T>(route: &Route, killed: &[u128], may_expose: bool, f: impl FnOnce(&Routing<'_>) -> T) -> T {
    let route = Arc::new(route.clone());
    let is_killed = |id: ReleaseId| killed.iter().any(|n| release(*n).id == id);
    let route = move |_: &ComponentId| Some(Arc::clone(&route));
    f(&Routing { components: &[shop()], route: &route, is_killed: &is_killed, may_expose })
}

fn with<T>(route: &Route, may_expose: bool, f: impl FnOnce(&Routing<'_>) -> T) -> T {
    routed(route, &[], may_expose, f)
}

/// The visit that begins after a gap.
fn begin(session: SessionId, before: &Visit, routing: &Routing<'_>) -> Visit {
    next(session, before, true, false, at(1), routing).visit
}

/// The visit that goes on, unless it ends.
fn keep(session: SessionId, visit: &Visit, is_held: bool, routing: &Routing<'_>) -> Visit {
    next(session, visit, false, is_held, at(2), routing).visit
}

/// The first visit of a session.
fn first(n: u32, route: &Route) -> Next {
    with(route, true, |r| next(session(n), &Visit::default(), true, false, at(1), r))
}

fn served(visit: &Visit) -> Option<ReleaseId> {
    visit.pins.get(&shop()).map(|pin| pin.release.id)
}

fn arm(visit: &Visit) -> Option<Arm> {
    visit.pins.get(&shop()).and_then(|pin| pin.arm).map(|(_, arm)| arm)
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
    let before = first(1, &Route { rollout: None, ..route(0, false) }).visit;
    let after = |route: &Route| with(route, true, |r| keep(session(1), &before, false, r));
    assert_eq!(after(&route(10_000, false)), before);
    assert_eq!(served(&after(&route(10_000, true))), Some(release(CANARY).id));
}

#[test]
fn a_withdrawn_release_lets_go_of_everyone_but_whom_something_holds() {
    let visit = first(1, &route(10_000, false)).visit;
    let moved = |is_held| with(&rolled_back(), true, |r| keep(session(1), &visit, is_held, r));
    assert_eq!(moved(true), visit);
    assert_eq!(served(&moved(false)), Some(release(STABLE).id));
    assert_eq!(arm(&moved(false)), Some(Arm::Control));
}

#[test]
fn a_visit_on_an_ended_release_ends_whatever_holds_it() {
    let visit = first(1, &route(10_000, false)).visit;
    let ended = Route { ended: vec![release(CANARY).id], ..rolled_back() };
    for is_held in [true, false] {
        let next = with(&ended, true, |r| keep(session(1), &visit, is_held, r));
        assert_eq!((next.started_at, served(&next)), (at(2), Some(release(STABLE).id)));
        assert_eq!(with(&ended, true, |r| next_again(&next, r)), next, "once");
    }
    let nowhere = Route { stable: None, ..ended };
    let next = with(&nowhere, true, |r| keep(session(1), &visit, true, r));
    assert_eq!(served(&next), None);
    assert_eq!(with(&nowhere, true, |r| next_again(&next, r)), next, "once");
}

fn next_again(visit: &Visit, routing: &Routing<'_>) -> Visit {
    next(session(1), visit, false, false, at(3), routing).visit
}

#[test]
fn of_a_visit_that_ends_while_held_only_what_ended_changes() {
    let (ended, other): (ComponentId, ComponentId) = ("api".parse().unwrap(), shop());
    let pin = |n| Pin { release: release(n), arm: None, dealt_step: None };
    let pins = Pins::from([(ended.clone(), pin(CANARY)), (other.clone(), pin(5))]);
    let visit = Visit { pins, ..Visit::default() };
    let gone = Arc::new(Route { ended: vec![release(CANARY).id], ..rolled_back() });
    let newer = Arc::new(Route { stable: Some(release(6)), rollout: None, ..route(0, false) });
    let components = [ended.clone(), other.clone()];
    let route = |component: &ComponentId| Some(Arc::clone(if *component == ended { &gone } else { &newer }));
    let routing = Routing { components: &components, route: &route, is_killed: &|_| false, may_expose: true };
    let on = |is_held| keep(session(1), &visit, is_held, &routing).pins;
    assert_eq!(
        (on(true)[&ended].release.clone(), on(true)[&other].release.clone()),
        (release(STABLE), release(5))
    );
    assert_eq!(on(false)[&other].release, release(6), "a new visit in every component");
}

#[test]
fn a_rollback_that_lets_visits_finish_takes_nobody_new() {
    let visit = first(1, &route(10_000, false)).visit;
    for finishing in [route(0, false), Route { rollout: None, ..route(0, false) }] {
        assert_eq!(with(&finishing, true, |r| keep(session(1), &visit, false, r)), visit);
        assert_eq!(
            served(&with(&finishing, true, |r| begin(session(1), &visit, r))),
            Some(release(STABLE).id)
        );
    }
}

#[test]
fn a_kill_lets_go_of_everyone_and_nobody_comes_back_after_it() {
    let canary = first(1, &route(10_000, true)).visit;
    let killed = |f: &dyn Fn(&Routing<'_>) -> Visit| routed(&route(10_000, true), &[CANARY], true, f);
    for is_held in [true, false] {
        let off = killed(&|r| keep(session(1), &canary, is_held, r));
        assert_eq!((served(&off), arm(&off)), (Some(release(STABLE).id), Some(Arm::Control)));
        for back in [keep(session(1), &off, false, &NOBODY), off.clone()] {
            let later = with(&route(10_000, true), true, |r| begin(session(1), &back, r));
            assert_eq!(served(&later), Some(release(STABLE).id));
        }
    }
    let begun = killed(&|r| begin(session(2), &Visit::default(), r));
    assert_eq!((served(&begun), arm(&begun)), (Some(release(STABLE).id), None));
    // The last that there is goes, too.
    let last = routed(&route(0, false), &[STABLE], true, |r| begin(session(2), &begun, r));
    assert_eq!(served(&last), None);
}

/// A table without routes.
const NOBODY: Routing<'static> =
    Routing { components: &[], route: &|_| None, is_killed: &|_| false, may_expose: false };

#[test]
fn who_is_let_go_while_another_rollout_runs_is_no_control_of_the_old_one_and_moves_once() {
    let visit = first(1, &route(10_000, false)).visit;
    let next = |is_all_sessions| {
        let next = Rollout { release: release(3), salt: "t".into(), is_all_sessions, ..rollout(10, 10_000) };
        Route { rollout: Some(next), withdrawn: vec![release(CANARY).id], ..route(0, false) }
    };
    let kept = with(&next(false), true, |r| keep(session(1), &visit, false, r));
    assert_eq!(kept.pins[&shop()], Pin { release: release(STABLE), arm: None, dealt_step: None });
    let moved = with(&next(true), true, |r| keep(session(1), &visit, false, r));
    assert_eq!(served(&moved), Some(release(3).id));
    assert_eq!(with(&next(true), true, |r| keep(session(1), &moved, false, r)), moved);
}

#[test]
fn without_the_lease_nobody_new_goes_to_the_canary_and_nobody_leaves_it() {
    let visit = first(1, &route(10_000, false)).visit;
    let (new, old) = with(&route(10_000, false), false, |r| {
        (begin(session(2), &Visit::default(), r), begin(session(1), &visit, r))
    });
    assert_eq!(served(&new), Some(release(STABLE).id));
    assert_eq!(served(&old), Some(release(CANARY).id));
}

#[test]
fn a_first_release_waits_for_its_exposure() {
    let waiting = first(1, &Route { stable: None, ..route(0, false) });
    assert_eq!((waiting.visit.pins, waiting.units), (Pins::new(), vec![]));
}

#[test]
fn only_whom_chance_dealt_an_arm_is_a_unit() {
    let step = |step, bps| {
        let rollout = Rollout { step, ..rollout(9, bps) };
        Route { rollout: Some(rollout), ..route(0, false) }
    };
    for (bps, arm) in [(10_000, Arm::Canary), (1, Arm::Control)] {
        let dealt = first(1, &step(4, bps));
        assert_eq!(dealt.units, [Unit { rollout: rollout(9, 0).id, step: 4, arm, is_all_sessions: false }]);
    }
    let none = |next: Next| assert_eq!(next.units, []);
    none(first(1, &step(0, 0)));
    none(first(1, &Route { rollout: None, ..route(0, false) }));
    let canary = first(1, &step(0, 10_000)).visit;
    let (now, gap, held) = (at(5), true, false);
    // Sent to the old release as release-svc is not heard of, or to the new one as they were there before.
    none(with(&step(0, 10_000), false, |r| next(session(2), &Visit::default(), gap, held, now, r)));
    none(with(&step(0, 1), true, |r| next(session(1), &canary, gap, held, now, r)));
    // Killed, held, or there before the rollout was.
    none(routed(&step(0, 10_000), &[CANARY], true, |r| next(session(1), &canary, gap, held, now, r)));
    none(with(&step(0, 10_000), true, |r| next(session(1), &canary, gap, true, now, r)));
    let before = first(1, &Route { rollout: None, ..route(0, false) }).visit;
    none(with(&route(10_000, true), true, |r| next(session(1), &before, false, held, now, r)));
}

/// What may happen to a session and around it.
#[derive(Debug, Clone)]
enum Happening {
    Call { is_over: bool },
    Expose(u32),
    AllSessions(bool),
    RollBack { ends: bool },
    Finish,
    Kill(bool),
    Checkout(bool),
    Lease(bool),
    NextRollout,
    Forgotten(bool),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => any::<bool>().prop_map(|is_over| Happening::Call { is_over }),
        3 => (0_u32..=10_000).prop_map(Happening::Expose),
        1 => any::<bool>().prop_map(Happening::AllSessions),
        1 => any::<bool>().prop_map(|ends| Happening::RollBack { ends }),
        1 => Just(Happening::Finish),
        2 => any::<bool>().prop_map(Happening::Kill),
        2 => any::<bool>().prop_map(Happening::Checkout),
        1 => any::<bool>().prop_map(Happening::Lease),
        1 => Just(Happening::NextRollout),
        1 => any::<bool>().prop_map(Happening::Forgotten),
    ]
}

/// A session, and what is around it.
struct World {
    route: Route,
    known: Option<Rollout>,
    killed: Vec<u128>,
    may_expose: bool,
    is_held: bool,
    rollouts: u128,
    visit: Visit,
}

impl World {
    /// The releases are numbered as their rollouts.
    fn new() -> Self {
        let route = Route { rollout: None, ..route(0, false) };
        let (killed, visit) = (vec![], Visit::default());
        let mut world =
            Self { route, known: None, killed, may_expose: true, is_held: false, rollouts: 10, visit };
        world.roll_out();
        world
    }

    fn roll_out(&mut self) {
        self.rollouts += 1;
        let n = self.rollouts;
        self.route.rollout = Some(Rollout { release: release(n), ..rollout(n, 5000) });
        self.known = None;
    }

    /// True after a call.
    fn take_in(&mut self, happening: &Happening, n: u32) -> bool {
        let canary = release(self.rollouts).id;
        match happening {
            Happening::Call { is_over } => {
                let (is_over, is_held, visit) = (*is_over, self.is_held, &self.visit);
                self.visit = routed(&self.route, &self.killed, self.may_expose, |r| {
                    next(session(n), visit, is_over, is_held, at(7), r).visit
                });
                return true;
            }
            Happening::Expose(bps) => self.change(|rollout| rollout.exposure_bps = *bps),
            Happening::AllSessions(is) => self.change(|rollout| rollout.is_all_sessions = *is),
            Happening::Finish => self.change(|rollout| rollout.exposure_bps = 0),
            Happening::RollBack { ends } => {
                self.route.rollout = None;
                self.route.withdrawn.push(canary);
                self.route.ended.extend(ends.then_some(canary));
            }
            Happening::Kill(true) => self.killed.push(self.rollouts),
            Happening::Kill(false) => self.killed.clear(),
            Happening::Checkout(is_held) => self.is_held = *is_held,
            Happening::Lease(may_expose) => self.may_expose = *may_expose,
            Happening::NextRollout => self.roll_out(),
            Happening::Forgotten(true) => self.known = self.route.rollout.take(),
            Happening::Forgotten(false) => {
                let known = self.known.take();
                self.route.rollout = self.route.rollout.take().or(known);
            }
        }
        false
    }

    fn change(&mut self, change: impl FnOnce(&mut Rollout)) {
        if let Some(rollout) = &mut self.route.rollout {
            change(rollout);
        }
    }
}

proptest! {
    /// Whatever happens around it, a session that left the canary of a rollout does not come back to it.
    #[test]
    fn i8_no_session_goes_from_a_canary_to_a_control_and_back(
        n: u32,
        happenings in prop::collection::vec(happening(), 1..60),
    ) {
        let mut world = World::new();
        let (mut on, mut left) = (None, vec![]);
        for happening in &happenings {
            if !world.take_in(happening, n) {
                continue;
            }
            let arm = world.visit.pins.get(&shop()).and_then(|pin| pin.arm);
            let canary = arm.filter(|(_, arm)| *arm == Arm::Canary).map(|(rollout, _)| rollout);
            if let Some(canary) = canary {
                prop_assert!(!left.contains(&canary), "{happenings:?}");
            }
            if let Some(before) = on.filter(|before| canary != Some(*before)) {
                let release = release(before.uuid().as_u128()).id;
                if served(&world.visit) != Some(release) {
                    left.push(before);
                }
            }
            on = canary;
        }
    }

    #[test]
    fn no_call_is_served_what_was_killed(n: u32, happenings in prop::collection::vec(happening(), 1..60)) {
        let mut world = World::new();
        for happening in &happenings {
            if world.take_in(happening, n) {
                let served = served(&world.visit).map(|id| id.uuid().as_u128());
                prop_assert!(!served.is_some_and(|id| world.killed.contains(&id)), "{happenings:?}");
            }
        }
    }

    #[test]
    fn exposure_that_grows_moves_nobody_off_the_canary(n: u32, low in 0_u32..=10_000, more in 0_u32..=10_000) {
        let served = |bps: u32| served(&first(n, &route(bps.min(10_000), false)).visit);
        if served(low) == Some(release(CANARY).id) {
            prop_assert_eq!(served(low + more), Some(release(CANARY).id));
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
        let visit = first(n, &route(bps, false)).visit;
        prop_assert_eq!(with(&route(later, false), true, |r| keep(session(n), &visit, false, r)), visit);
    }
}
