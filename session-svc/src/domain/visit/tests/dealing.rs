//! What sessions are dealt by rollouts that move running visits: whatever happens in between, each deal is the hash's at its
//! step's exposure, and so the arms have their share of what is booked under any step.

use std::collections::BTreeMap;

use super::*;

/// A rollout to all sessions whose steps only ever expose more, and a session that it deals to.
struct Dealer {
    session: SessionId,
    route: Route,
    /// Of the steps there were.
    exposures: Vec<u32>,
    killed: Vec<u128>,
    may_expose: bool,
    is_held: bool,
    visit: Visit,
    deals: Vec<Unit>,
}

impl Dealer {
    fn new(n: u32, exposure_bps: u32) -> Self {
        Self {
            session: session(n),
            route: route(exposure_bps, true),
            exposures: vec![exposure_bps],
            killed: vec![],
            may_expose: true,
            is_held: false,
            visit: Visit::default(),
            deals: vec![],
        }
    }

    fn call(&mut self, is_over: bool) {
        let (is_held, visit) = (self.is_held, &self.visit);
        let next = routed(&self.route, &self.killed, self.may_expose, |r| {
            next(self.session, visit, is_over, is_held, at(7), r)
        });
        self.visit = next.visit;
        self.deals.extend(next.units);
    }

    fn step(&mut self, more: u32) {
        let exposure_bps = (self.exposures[self.exposures.len() - 1] + more).min(10_000);
        self.exposures.push(exposure_bps);
        let step = i32::try_from(self.exposures.len() - 1).unwrap();
        let known = self.route.rollout.take().unwrap();
        self.route.rollout = Some(Rollout { exposure_bps, step, ..known });
    }

    fn by_hash(&self, step: i32) -> Arm {
        let exposure_bps = self.exposures[usize::try_from(step).unwrap()];
        if bucket("s", self.session) < exposure_bps { Arm::Canary } else { Arm::Control }
    }
}

/// What may happen while a rollout goes up.
#[derive(Debug, Clone)]
enum Turn {
    Call { is_over: bool },
    Step(u32),
    Hold(bool),
    Lease(bool),
    Kill(bool),
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        6 => any::<bool>().prop_map(|is_over| Turn::Call { is_over }),
        3 => (0_u32..=3_000).prop_map(Turn::Step),
        2 => any::<bool>().prop_map(Turn::Hold),
        1 => any::<bool>().prop_map(Turn::Lease),
        1 => any::<bool>().prop_map(Turn::Kill),
    ]
}

proptest! {
    /// What an outcome is booked under is the last deal, so this holds of every booking, too.
    #[test]
    fn i9_every_deal_is_the_hashs_at_the_exposure_of_its_step(
        n: u32,
        first in 0_u32..=10_000,
        turns in prop::collection::vec(turn(), 1..60),
    ) {
        let mut dealer = Dealer::new(n, first);
        for turn in &turns {
            match turn {
                Turn::Call { is_over } => dealer.call(*is_over),
                Turn::Step(more) => dealer.step(*more),
                Turn::Hold(is_held) => dealer.is_held = *is_held,
                Turn::Lease(may_expose) => dealer.may_expose = *may_expose,
                Turn::Kill(true) => dealer.killed.push(CANARY),
                Turn::Kill(false) => dealer.killed.clear(),
            }
        }
        for deal in &dealer.deals {
            prop_assert_eq!(deal.arm, dealer.by_hash(deal.step), "{:?}", turns);
        }
        prop_assert!(dealer.deals.is_sorted_by_key(|deal| deal.step), "{:?}", turns);
    }

    /// Unless something came between, the last deal is of the present step, and the visit is served what it says.
    #[test]
    fn a_unit_that_is_seen_and_not_held_is_dealt_to_in_the_present_step(
        n: u32,
        first in 1_u32..=10_000,
        steps in prop::collection::vec((0_u32..=3_000, any::<bool>(), any::<bool>()), 1..8),
    ) {
        let mut dealer = Dealer::new(n, first);
        dealer.call(true);
        for (more, is_held, is_over) in steps {
            dealer.step(more);
            dealer.is_held = is_held;
            let before = dealer.deals.len();
            dealer.call(is_over);
            if is_held {
                prop_assert_eq!(dealer.deals.len(), before);
                continue;
            }
            let last = dealer.deals[dealer.deals.len() - 1].clone();
            prop_assert_eq!(last.step, dealer.route.rollout.as_ref().unwrap().step);
            prop_assert_eq!(arm(&dealer.visit), Some(last.arm));
            if !is_over {
                let (deals, visit) = (dealer.deals.len(), dealer.visit.clone());
                dealer.call(false);
                prop_assert_eq!((dealer.deals.len(), &dealer.visit), (deals, &visit), "once");
            }
        }
    }
}

/// Half of the sessions are held when the exposure rises, and so are not moved: booked in the step of then, they would be
/// too many on control.
#[test]
fn of_what_is_booked_under_a_step_the_canary_has_the_steps_share_though_many_are_held() {
    let mut booked: BTreeMap<i32, (f64, f64)> = BTreeMap::new();
    for n in 0..4000 {
        let mut dealer = Dealer::new(n, 1000);
        dealer.call(true);
        dealer.step(4000);
        dealer.is_held = n % 2 == 0;
        dealer.call(false);
        let last = &dealer.deals[dealer.deals.len() - 1];
        let (canary, all) = booked.entry(last.step).or_default();
        *canary += if last.arm == Arm::Canary { 1.0 } else { 0.0 };
        *all += 1.0;
    }
    assert_eq!(booked.len(), 2);
    for (step, share) in [(0, 0.1_f64), (1, 0.5)] {
        let (canary, all) = booked[&step];
        let slack = 5.0 * (all * share * (1.0 - share)).sqrt();
        assert!((canary - all * share).abs() <= slack, "{canary} of {all} in step {step}");
    }
}

#[test]
fn a_visit_from_before_the_rollout_moves_and_is_dealt_nothing_until_its_next_one() {
    let mut dealer = Dealer::new(1, 10_000);
    dealer.visit = first(1, &Route { rollout: None, ..route(0, true) }).visit;
    dealer.call(false);
    assert_eq!((arm(&dealer.visit), dealer.deals.len()), (Some(Arm::Canary), 0));
    dealer.step(0);
    dealer.call(false);
    assert_eq!(dealer.deals, []);
    dealer.call(true);
    assert_eq!(dealer.deals.len(), 1);
}
