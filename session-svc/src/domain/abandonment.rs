//! What becomes of a cart by time alone: idle, abandoned, lost, expired and at last deleted. Everything is counted from the
//! shopper's last change. Nothing here waits: [`look`] says what is due at an instant, however late that is, and when to
//! look again.

use std::time::Duration;

use chrono::TimeDelta;
use shared::time::Time;

use super::cart::{Cart, State};
use super::touchpoint::BadPolicy;

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
/// For so long a cart without lines is kept. No cart that is not abandoned stays unseen for longer, as any may be emptied.
const EMPTY_KEPT: TimeDelta = TimeDelta::hours(6);
/// The same, with lines, of a shopper whom no subject has.
const ANONYMOUS_KEPT: TimeDelta = TimeDelta::days(30);
/// The same, of a subject's.
const OWNED_KEPT: TimeDelta = TimeDelta::days(90);
/// For so long orders are kept, whose request ids the next cart takes over.
const ORDERED_KEPT: TimeDelta = TimeDelta::days(90);
/// For so long what ended without an order can still be read.
const ENDED_KEPT: TimeDelta = TimeDelta::days(30);

/// When a cart counts as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CartPolicy {
    /// As idle.
    pub idle_after: Duration,
    /// As abandoned.
    pub abandoned_after: Duration,
    /// As lost.
    pub lost_after: Duration,
    /// When a checkout that nobody ended fails.
    pub checkout_timeout: Duration,
}

impl Default for CartPolicy {
    /// What most platforms do: 30 minutes, an hour and 30 days.
    fn default() -> Self {
        Self::new(HOUR)
    }
}

impl CartPolicy {
    /// The least `idle_after` that a policy may have: nothing is due of a new cart before.
    pub const IDLE_MIN: Duration = MINUTE;

    /// With what goes with `abandoned_after` where nothing else is asked for.
    pub fn new(abandoned_after: Duration) -> Self {
        let idle_after = Duration::from_secs(abandoned_after.as_secs() / 2);
        Self { idle_after, abandoned_after, lost_after: 30 * DAY, checkout_timeout: DAY }
    }

    /// Checks every limit.
    pub fn check(self) -> Result<Self, BadPolicy> {
        let bad = |field, problem| Err(BadPolicy { field, problem });
        let is_whole = |duration: Duration| duration.subsec_nanos() == 0;
        if !(10 * MINUTE..=DAY).contains(&self.abandoned_after) || !is_whole(self.abandoned_after) {
            return bad("abandoned_after", "must be 10 minutes to 24 hours, in whole seconds");
        }
        if !(Self::IDLE_MIN..self.abandoned_after).contains(&self.idle_after) || !is_whole(self.idle_after) {
            return bad(
                "idle_after",
                "must be at least 1 minute and less than abandoned_after, in whole seconds",
            );
        }
        if !(DAY..=90 * DAY).contains(&self.lost_after) || !is_whole(self.lost_after) {
            return bad("lost_after", "must be 1 to 90 days, in whole seconds");
        }
        let is_between = (self.abandoned_after..=self.lost_after).contains(&self.checkout_timeout);
        if !is_between || !is_whole(self.checkout_timeout) {
            let problem = "must be at least abandoned_after and at most lost_after, in whole seconds";
            return bad("checkout_timeout", problem);
        }
        Ok(self)
    }
}

/// What a shopper left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A cart with lines.
    Cart,
    /// A checkout that nobody ended.
    Checkout,
}

impl Kind {
    /// What is left if the shopper of this open cart goes now.
    pub fn of(cart: &Cart) -> Self {
        if matches!(cart.state, State::Checkout { .. }) { Self::Checkout } else { Self::Cart }
    }

    /// As it is stored and told.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cart => "CART",
            Self::Checkout => "CHECKOUT",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Cart, Self::Checkout].into_iter().find(|kind| kind.name() == name)
    }
}

/// Whether a cart is abandoned: a flag beside its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abandonment {
    /// Rises when an abandoned cart is come back to. The flag is raised at most once in each.
    pub epoch: i32,
    /// The flag.
    pub raised: Option<Raised>,
    /// When it was last lowered.
    pub recovered_at: Option<Time>,
}

/// A flag that is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raised {
    /// What was left.
    pub kind: Kind,
    /// Since when.
    pub at: Time,
    /// Since when the cart is lost, if it is.
    pub lost_at: Option<Time>,
}

impl Default for Abandonment {
    fn default() -> Self {
        Self { epoch: 1, raised: None, recovered_at: None }
    }
}

impl Abandonment {
    /// The shopper came back: lowers the flag and opens a new epoch. Answers the flag, if it was up.
    pub fn recover(&mut self, now: Time) -> Option<Raised> {
        let raised = self.raised.take()?;
        self.epoch += 1;
        self.recovered_at = Some(now);
        Some(raised)
    }
}

/// Something that is due of a cart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// It is idle.
    Idle,
    /// It is abandoned.
    Abandoned(Kind),
    /// Its checkout fails.
    CheckoutTimedOut,
    /// It is lost.
    Lost,
    /// It ends.
    Expired,
}

/// When to look at a cart again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Then.
    At(Time),
    /// Never: it is to be deleted.
    Delete,
}

/// What [`look`] finds besides the cart itself.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    /// When the cart was last found idle.
    pub idle_at: Option<Time>,
    /// Whether its shopper is a subject's.
    pub is_owned: bool,
}

/// What is due of a cart by now, in the order that it happened in, and when to look again.
pub fn look(cart: &Cart, around: Circumstances, policy: &CartPolicy, now: Time) -> (Vec<Due>, Next) {
    let kept = match &cart.state {
        State::Active | State::Checkout { .. } => return look_at_open(cart, around, policy, now),
        State::Ordered { .. } => ORDERED_KEPT,
        State::Merged { .. } | State::Discarded => ENDED_KEPT,
        // The look that ended it said when to look again: now.
        State::Expired => return (vec![], Next::Delete),
    };
    let until = cart.updated_at + kept;
    (vec![], if until <= now { Next::Delete } else { Next::At(until) })
}

fn look_at_open(cart: &Cart, around: Circumstances, policy: &CartPolicy, now: Time) -> (Vec<Due>, Next) {
    let since = cart.updated_at;
    let (mut due, mut next) = (vec![], None);
    // Whether an instant has come; if not, it is one to look again at.
    let mut has_come = |instant: Time| {
        if instant > now {
            next = Some(next.map_or(instant, |next: Time| next.min(instant)));
        }
        instant <= now
    };
    let is_paying = matches!(cart.state, State::Checkout { .. });
    let raised = cart.abandonment.raised;
    let mut is_abandoned = raised.is_some();
    if !is_abandoned && cart.has_goods() {
        if has_come(since + policy.abandoned_after) {
            due.push(Due::Abandoned(Kind::of(cart)));
            is_abandoned = true;
        } else if around.idle_at.is_none_or(|at| at <= since) && has_come(since + policy.idle_after) {
            due.push(Due::Idle);
        }
    }
    let is_open_checkout = is_paying && !has_come(since + policy.checkout_timeout);
    if is_paying && !is_open_checkout {
        due.push(Due::CheckoutTimedOut);
    }
    let expires = !is_open_checkout && has_come(since + kept(cart, around));
    let is_lost = raised.is_some_and(|raised| raised.lost_at.is_some());
    if is_abandoned && !is_lost && (has_come(since + policy.lost_after) || expires) {
        due.push(Due::Lost);
    }
    if expires {
        due.push(Due::Expired);
        return (due, Next::At(now + ENDED_KEPT));
    }
    if !is_abandoned {
        has_come(now + EMPTY_KEPT);
    }
    // What is neither abandoned nor expired has an instant ahead, and what is abandoned expires.
    (due, Next::At(next.unwrap_or(now + EMPTY_KEPT)))
}

/// For how long after its last change an open cart is kept.
fn kept(cart: &Cart, around: Circumstances) -> TimeDelta {
    match (cart.lines.is_empty(), around.is_owned) {
        (true, _) => EMPTY_KEPT,
        (false, false) => ANONYMOUS_KEPT,
        (false, true) => OWNED_KEPT,
    }
}

#[cfg(test)]
mod tests {
    use super::{Due::*, *};
    use crate::domain::cart::Line;
    use crate::domain::cart::tests::{cart, line};
    use proptest::prelude::*;
    use shared::time::at;

    const MIN: i64 = 60;
    const DAYS: i64 = 86_400;
    const NEW: Circumstances = Circumstances { idle_at: None, is_owned: false };
    const OWNED: Circumstances = Circumstances { idle_at: None, is_owned: true };

    fn full() -> Cart {
        Cart { lines: vec![line(1, 2, 255)], ..cart() }
    }

    fn paying() -> Cart {
        Cart { state: State::Checkout { session: None }, ..full() }
    }

    fn raised(cart: Cart, lost: bool) -> Cart {
        let raised = Raised { kind: Kind::Cart, at: at(60 * MIN), lost_at: lost.then(|| at(30 * DAYS)) };
        Cart { abandonment: Abandonment { raised: Some(raised), ..Abandonment::default() }, ..cart }
    }

    /// The carts were last changed at 0.
    #[test]
    fn what_is_due_and_when_to_look_again() {
        let idle = Circumstances { idle_at: Some(at(30 * MIN)), ..NEW };
        let idle_before = Circumstances { idle_at: Some(at(-1)), ..NEW };
        let cases = [
            ("new", full(), NEW, 0, vec![], 30 * MIN),
            ("not yet idle", full(), NEW, 30 * MIN - 1, vec![], 30 * MIN),
            ("idle", full(), NEW, 30 * MIN, vec![Idle], 60 * MIN),
            ("idle once", full(), idle, 30 * MIN, vec![], 60 * MIN),
            ("idle again", full(), idle_before, 30 * MIN, vec![Idle], 60 * MIN),
            ("abandoned", full(), idle, 60 * MIN, vec![Abandoned(Kind::Cart)], 30 * DAYS),
            ("abandoned once", raised(full(), false), idle, 61 * MIN, vec![], 30 * DAYS),
            ("abandoned checkout", paying(), idle, 60 * MIN, vec![Abandoned(Kind::Checkout)], DAYS),
            ("no way on", raised(paying(), false), idle, DAYS, vec![CheckoutTimedOut], 30 * DAYS),
            ("lost", raised(full(), false), OWNED, 30 * DAYS, vec![Lost], 90 * DAYS),
            ("lost once", raised(full(), true), OWNED, 31 * DAYS, vec![], 90 * DAYS),
            ("gone, owned", raised(full(), true), OWNED, 90 * DAYS, vec![Expired], 120 * DAYS),
            ("gone, anonymous", raised(full(), false), NEW, 30 * DAYS, vec![Lost, Expired], 60 * DAYS),
            ("empty", cart(), NEW, 60 * MIN, vec![], 360 * MIN),
            ("gone, empty", cart(), OWNED, 360 * MIN, vec![Expired], 30 * DAYS + 360 * MIN),
            (
                "nobody looked for long",
                paying(),
                NEW,
                31 * DAYS,
                vec![Abandoned(Kind::Checkout), CheckoutTimedOut, Lost, Expired],
                61 * DAYS,
            ),
        ];
        for (name, cart, around, now, due, next) in cases {
            let expected = (due, Next::At(at(next)));
            assert_eq!(look(&cart, around, &CartPolicy::default(), at(now)), expected, "{name}");
        }
    }

    #[test]
    fn what_is_saved_for_later_nobody_left_behind() {
        let saved = Line { saved_for_later: true, ..line(1, 2, 255) };
        let cart = Cart { lines: vec![saved.clone()], ..cart() };
        let look = |cart: &Cart, now| look(cart, NEW, &CartPolicy::default(), at(now)).0;
        assert_eq!(look(&cart, 29 * DAYS), []);
        assert_eq!(look(&cart, 30 * DAYS), [Expired], "it is not empty either");
        let both = Cart { lines: vec![saved, line(2, 1, 255)], ..cart };
        assert_eq!(look(&both, 2 * 60 * MIN), [Abandoned(Kind::Cart)]);
    }

    #[test]
    fn what_ended_is_deleted_in_time_and_nothing_else_is_due_of_it() {
        let ordered = State::Ordered { order_ref: "o".to_owned() };
        let merged = State::Merged { into: full().id, merge: None };
        for (state, days) in [(ordered, 90), (merged, 30), (State::Discarded, 30)] {
            let cart = Cart { state, ..raised(full(), false) };
            let look = |now| look(&cart, NEW, &CartPolicy::default(), now);
            assert_eq!(look(at(days * DAYS - 1)), (vec![], Next::At(at(days * DAYS))));
            assert_eq!(look(at(days * DAYS)), (vec![], Next::Delete));
        }
        let expired = Cart { state: State::Expired, ..full() };
        assert_eq!(look(&expired, OWNED, &CartPolicy::default(), at(0)), (vec![], Next::Delete));
    }

    #[test]
    fn a_recovery_lowers_the_flag_and_opens_an_epoch_once() {
        let mut abandonment = raised(full(), true).abandonment;
        let flag = abandonment.raised;
        assert_eq!(abandonment.recover(at(9)), flag);
        assert_eq!(abandonment, Abandonment { epoch: 2, raised: None, recovered_at: Some(at(9)) });
        assert_eq!(abandonment.recover(at(10)), None);
        assert_eq!(abandonment.recovered_at, Some(at(9)));
    }

    #[test]
    fn policies_that_contradict_themselves_are_refused() {
        let base = CartPolicy::default();
        assert_eq!(base.check(), Ok(base));
        for least in [10 * MINUTE, DAY] {
            assert_eq!(CartPolicy::new(least).check(), Ok(CartPolicy::new(least)));
        }
        for (field, policy) in [
            ("abandoned_after", CartPolicy::new(Duration::from_secs(599))),
            ("abandoned_after", CartPolicy::new(DAY + Duration::from_secs(1))),
            ("abandoned_after", CartPolicy::new(HOUR + Duration::from_millis(1))),
            ("idle_after", CartPolicy { idle_after: HOUR, ..base }),
            ("idle_after", CartPolicy { idle_after: Duration::from_secs(59), ..base }),
            ("lost_after", CartPolicy { lost_after: HOUR, ..base }),
            ("lost_after", CartPolicy { lost_after: 91 * DAY, ..base }),
            ("checkout_timeout", CartPolicy { checkout_timeout: MINUTE, ..base }),
            ("checkout_timeout", CartPolicy { checkout_timeout: 31 * DAY, ..base }),
        ] {
            assert_eq!(policy.check().map_err(|bad| bad.field), Err(field));
        }
    }

    proptest! {
        /// However late and however often someone looks, each thing comes once, and the cart is deleted in the end.
        #[test]
        fn looking_again_when_told_to_sees_everything_once(delays in proptest::collection::vec(0_i64..40 * DAYS, 0..20), is_paying: bool) {
            let (mut cart, mut around, mut now) = (if is_paying { paying() } else { full() }, NEW, at(0));
            let (mut seen, mut delays) = (vec![], delays.into_iter());
            loop {
                let (due, next) = look(&cart, around, &CartPolicy::default(), now);
                for due in &due {
                    match due {
                        Idle => around.idle_at = Some(now),
                        Abandoned(_) => cart = raised(cart, false),
                        CheckoutTimedOut => cart.state = State::Active,
                        Lost => cart = raised(cart, true),
                        Expired => cart.state = State::Expired,
                    }
                }
                seen.extend(due);
                let Next::At(next) = next else { break };
                prop_assert!(next > now, "it goes on");
                now = next + TimeDelta::seconds(delays.next().unwrap_or(0));
            }
            let count = |kind: fn(&Due) -> bool| seen.iter().filter(|due| kind(due)).count();
            prop_assert!(count(|due| *due == Idle) <= 1);
            prop_assert_eq!(count(|due| matches!(due, Abandoned(_))), 1);
            prop_assert_eq!(count(|due| *due == CheckoutTimedOut), usize::from(is_paying));
            prop_assert_eq!(count(|due| *due == Lost), 1);
            prop_assert_eq!(count(|due| *due == Expired), 1);
        }
    }
}
