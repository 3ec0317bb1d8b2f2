//! Carts: line operations, checkout, exact totals, and each change once.

use shared::id::{CartId, GroupId, LineId, SessionId, ShopperId, TouchpointId};
use shared::time::Time;
use uuid::Uuid;

use super::abandonment::Abandonment;

/// Most lines of a cart.
pub const LINES_MAX: usize = 200;
/// Most of one article.
pub const QUANTITY_MAX: i32 = 1_000_000;
/// Highest price of one; with the limits above no total overflows an `i64`.
pub const UNIT_PRICE_MAX: i64 = 10_000_000_000;
/// Request ids that a cart remembers.
const REQUESTS_MAX: usize = 64;

/// Three upper-case letters (ISO 4217).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Currency(String);

/// Not a currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be an ISO 4217 code: three upper-case letters")]
pub struct NotACurrency;

impl std::str::FromStr for Currency {
    type Err = NotACurrency;

    fn from_str(text: &str) -> Result<Self, NotACurrency> {
        let is_code = text.len() == 3 && text.bytes().all(|b| b.is_ascii_uppercase());
        is_code.then(|| Self(text.to_owned())).ok_or(NotACurrency)
    }
}

impl Currency {
    /// The code.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a shopper means to buy.
#[derive(Debug, Clone)]
pub struct Cart {
    /// Its id.
    pub id: CartId,
    /// Whose.
    pub shopper: ShopperId,
    /// Shared by which touchpoints.
    pub group: GroupId,
    /// Of all prices.
    pub currency: Currency,
    /// Where it stands.
    pub state: State,
    /// In the order they were first added.
    pub lines: Vec<Line>,
    /// Changes with an id, oldest first.
    pub applied: Vec<Applied>,
    /// When the first line was added.
    pub created_at: Time,
    /// When the shopper last changed it. Changes that are not the shopper's leave it.
    pub updated_at: Time,
    /// Rises with every change.
    pub version: i64,
    /// Where the shopper last changed it, as far as a session did.
    pub touchpoint: Option<TouchpointId>,
    /// Whether it is abandoned.
    pub abandonment: Abandonment,
}

/// Where a cart stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The shopper is shopping.
    Active,
    /// Being paid.
    Checkout {
        /// The session whose visit it holds, if it began with one.
        session: Option<SessionId>,
    },
    /// Paid. Final.
    Ordered {
        /// The order's number in the shop.
        order_ref: String,
    },
    /// Went into another cart when its shopper logged in. Final.
    Merged {
        /// Which; the same id where it only changed its shopper.
        into: CartId,
    },
    /// Nobody came back to it. Final.
    Expired,
}

/// So many of one article at one price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its id.
    pub id: LineId,
    /// Stock keeping unit.
    pub sku: String,
    /// 1 to [`QUANTITY_MAX`].
    pub quantity: i32,
    /// Of one, in minor units; 0 to [`UNIT_PRICE_MAX`].
    pub unit_price: i64,
    /// When that price was shown.
    pub price_observed_at: Time,
    /// When it was first added.
    pub created_at: Time,
}

impl Line {
    /// Whether quantities of the two add up: the same article at the same price.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.sku == other.sku && self.unit_price == other.unit_price
    }
}

/// A change that was made, by the id it came with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The request's id.
    pub request_id: Uuid,
    /// First half of the hash of method and body.
    pub body_hash: [u8; 16],
    /// The line that it was about.
    pub line: Option<LineId>,
}

/// Why a cart cannot change so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is not in the state that this asks for.
    #[error("the cart is {0}")]
    WrongState(&'static str),
    /// No such line.
    #[error("the cart has no such line")]
    NoSuchLine,
    /// Nothing in it.
    #[error("an empty cart cannot be checked out")]
    Empty,
    /// Too much in it.
    #[error("a cart takes at most {max} {limit}")]
    Limit {
        /// Of what.
        limit: &'static str,
        /// How many.
        max: i64,
    },
}

impl State {
    /// As the API names it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Checkout { .. } => "CHECKOUT",
            Self::Ordered { .. } => "ORDERED",
            Self::Merged { .. } => "MERGED",
            Self::Expired => "EXPIRED",
        }
    }
}

impl Cart {
    /// Adds so many to the line of the same article and price, or as a new line; answers which.
    pub fn add(&mut self, line: Line, now: Time) -> Result<LineId, Refused> {
        self.require_active()?;
        let id = if let Some(same) = self.lines.iter_mut().find(|other| other.is_same_as(&line)) {
            same.quantity = same
                .quantity
                .checked_add(line.quantity)
                .filter(|sum| *sum <= QUANTITY_MAX)
                .ok_or(TOO_MANY)?;
            same.price_observed_at = line.price_observed_at;
            same.id
        } else {
            if self.lines.len() >= LINES_MAX {
                return Err(Refused::Limit { limit: "lines", max: 200 });
            }
            let id = line.id;
            self.lines.push(line);
            id
        };
        self.updated_at = now;
        Ok(id)
    }

    /// Sets a line's quantity.
    pub fn set_quantity(&mut self, id: LineId, quantity: i32, now: Time) -> Result<(), Refused> {
        self.require_active()?;
        self.lines
            .iter_mut()
            .find(|line| line.id == id)
            .ok_or(Refused::NoSuchLine)?
            .quantity = quantity;
        self.updated_at = now;
        Ok(())
    }

    /// Takes a line out.
    pub fn remove(&mut self, id: LineId, now: Time) -> Result<(), Refused> {
        self.require_active()?;
        let at = self.lines.iter().position(|line| line.id == id).ok_or(Refused::NoSuchLine)?;
        self.lines.remove(at);
        self.updated_at = now;
        Ok(())
    }

    /// Freezes the cart; `session` is whose visit it holds.
    pub fn begin_checkout(&mut self, session: Option<SessionId>, now: Time) -> Result<(), Refused> {
        self.require_active()?;
        if self.lines.is_empty() {
            return Err(Refused::Empty);
        }
        self.state = State::Checkout { session };
        self.updated_at = now;
        Ok(())
    }

    /// Turns it into an order; answers the session that it held.
    pub fn complete_checkout(&mut self, order_ref: String, now: Time) -> Result<Option<SessionId>, Refused> {
        let session = self.require_checkout()?;
        self.state = State::Ordered { order_ref };
        self.updated_at = now;
        Ok(session)
    }

    /// Opens it again; answers the session that it held.
    pub fn fail_checkout(&mut self, now: Time) -> Result<Option<SessionId>, Refused> {
        let session = self.require_checkout()?;
        self.state = State::Active;
        self.updated_at = now;
        Ok(session)
    }

    /// Sum of quantity times price: at most 200 * 10^6 * 10^10, which an `i64` holds.
    pub fn total(&self) -> i64 {
        self.lines.iter().map(|line| i64::from(line.quantity) * line.unit_price).sum()
    }

    /// The change that came with this id, if it is remembered.
    pub fn applied(&self, request_id: Uuid) -> Option<&Applied> {
        self.applied.iter().find(|applied| applied.request_id == request_id)
    }

    /// Remembers a change, and forgets the oldest beyond 64.
    pub fn remember(&mut self, applied: Applied) {
        self.applied.push(applied);
        let excess = self.applied.len().saturating_sub(REQUESTS_MAX);
        self.applied.drain(..excess);
    }

    /// Remembers the changes of another cart beside its own. Of too many, the newest of each stay, so that neither cart
    /// forgets all of them.
    pub fn remember_all(&mut self, theirs: &[Applied]) {
        let own = std::mem::take(&mut self.applied);
        let of_age = |age| [theirs.iter().rev().nth(age), own.iter().rev().nth(age)];
        let newest = (0..REQUESTS_MAX).flat_map(of_age).flatten().take(REQUESTS_MAX);
        self.applied = newest.cloned().collect();
        self.applied.reverse();
    }

    fn require_active(&self) -> Result<(), Refused> {
        match &self.state {
            State::Active => Ok(()),
            State::Checkout { .. } | State::Ordered { .. } | State::Merged { .. } | State::Expired => {
                Err(Refused::WrongState(self.state.name()))
            }
        }
    }

    fn require_checkout(&self) -> Result<Option<SessionId>, Refused> {
        match &self.state {
            State::Checkout { session } => Ok(*session),
            State::Active | State::Ordered { .. } | State::Merged { .. } | State::Expired => {
                Err(Refused::WrongState(self.state.name()))
            }
        }
    }
}

const TOO_MANY: Refused = Refused::Limit { limit: "of one article", max: 1_000_000 };

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use shared::time::at;

    pub(in crate::domain) fn cart() -> Cart {
        Cart {
            id: CartId::new(at(0), [0; 10]),
            shopper: ShopperId::new(at(0), [0; 10]),
            group: "web".parse().unwrap(),
            currency: "EUR".parse().unwrap(),
            state: State::Active,
            lines: vec![],
            applied: vec![],
            created_at: at(0),
            updated_at: at(0),
            version: 1,
            touchpoint: None,
            abandonment: Abandonment::default(),
        }
    }

    pub(in crate::domain) fn line(n: u8, quantity: i32, unit_price: i64) -> Line {
        let (id, sku) = (LineId::new(at(0), [n; 10]), format!("sku-{n}"));
        Line { id, sku, quantity, unit_price, price_observed_at: at(0), created_at: at(0) }
    }

    #[test]
    fn the_same_article_at_the_same_price_is_one_line() {
        let mut cart = cart();
        let first = cart.add(line(1, 2, 255), at(1)).unwrap();
        assert_eq!(cart.add(Line { id: LineId::new(at(5), [9; 10]), ..line(1, 3, 255) }, at(2)), Ok(first));
        cart.add(Line { id: LineId::new(at(5), [8; 10]), ..line(1, 1, 300) }, at(3))
            .unwrap();
        assert_eq!(cart.lines.iter().map(|line| line.quantity).collect::<Vec<_>>(), [5, 1]);
        assert_eq!(cart.total(), 5 * 255 + 300);
    }

    #[test]
    fn every_operation_has_its_states() {
        type Op = fn(&mut Cart) -> Result<(), Refused>;
        let ops: [(&str, Op, [bool; 3]); 6] = [
            ("add", |cart| cart.add(line(2, 1, 1), at(9)).map(drop), [true, false, false]),
            ("set", |cart| cart.set_quantity(line(1, 1, 1).id, 7, at(9)), [true, false, false]),
            ("remove", |cart| cart.remove(line(1, 1, 1).id, at(9)), [true, false, false]),
            ("begin", |cart| cart.begin_checkout(None, at(9)), [true, false, false]),
            ("complete", |cart| cart.complete_checkout("o".into(), at(9)).map(drop), [false, true, false]),
            ("fail", |cart| cart.fail_checkout(at(9)).map(drop), [false, true, false]),
        ];
        let states =
            [State::Active, State::Checkout { session: None }, State::Ordered { order_ref: "o".into() }];
        for (name, op, allowed) in ops {
            for (state, allowed) in states.iter().zip(allowed) {
                let mut cart = Cart { state: state.clone(), lines: vec![line(1, 1, 1)], ..cart() };
                let outcome = op(&mut cart);
                assert_eq!(outcome.is_ok(), allowed, "{name} in {state:?}");
                if !allowed {
                    assert_eq!(outcome, Err(Refused::WrongState(state.name())));
                    assert_eq!((cart.lines.len(), cart.updated_at), (1, at(0)), "a refusal changes nothing");
                }
            }
        }
    }

    #[test]
    fn limits_hold() {
        let mut cart = cart();
        for n in 0..200 {
            cart.add(line(n, 1, 1), at(1)).unwrap();
        }
        assert_eq!(cart.add(line(200, 1, 1), at(1)), Err(Refused::Limit { limit: "lines", max: 200 }));
        assert_eq!(cart.add(line(1, QUANTITY_MAX, 1), at(1)), Err(TOO_MANY));
        assert_eq!(cart.begin_checkout(None, at(1)), Ok(()));
    }

    #[test]
    fn an_empty_cart_is_not_checked_out() {
        assert_eq!(cart().begin_checkout(None, at(1)), Err(Refused::Empty));
    }

    #[test]
    fn the_largest_cart_has_an_exact_total() {
        let lines = (0..200).map(|n| line(n, QUANTITY_MAX, UNIT_PRICE_MAX)).collect();
        assert_eq!(Cart { lines, ..cart() }.total(), 2_000_000_000_000_000_000);
    }

    #[test]
    fn of_two_carts_changes_the_newest_of_each_are_remembered() {
        let changes = |range: std::ops::Range<u128>| -> Vec<_> {
            let applied = |n| Applied { request_id: Uuid::from_u128(n), body_hash: [0; 16], line: None };
            range.map(applied).collect()
        };
        let remembered = |own, theirs| {
            let mut cart = Cart { applied: changes(own), ..cart() };
            cart.remember_all(&changes(theirs));
            let mut ids: Vec<_> = cart.applied.iter().map(|applied| applied.request_id.as_u128()).collect();
            ids.sort_unstable();
            ids
        };
        let ids = |a: std::ops::Range<u128>, b| a.chain(b).collect::<Vec<u128>>();
        assert_eq!(remembered(0..3, 100..102), ids(0..3, 100..102));
        assert_eq!(remembered(0..64, 100..110), ids(10..64, 100..110));
        assert_eq!(remembered(0..64, 100..164), ids(32..64, 132..164));
    }

    #[test]
    fn currencies_are_three_letters() {
        for bad in ["", "eur", "EURO", "E1R", "ÄÖ"] {
            assert_eq!(bad.parse::<Currency>(), Err(NotACurrency), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn additions_from_several_tabs_are_all_there_in_any_order(adds in proptest::collection::vec((0_u8..5, 1_i32..50), 0..40), seed: u64) {
            let sum = |adds: &[(u8, i32)]| {
                let mut cart = cart();
                for (n, quantity) in adds {
                    cart.add(line(*n, *quantity, 10), at(1)).unwrap();
                }
                let mut lines: Vec<_> = cart.lines.into_iter().map(|line| (line.sku, line.quantity)).collect();
                lines.sort();
                lines
            };
            let mut shuffled = adds.clone();
            let len = shuffled.len().max(1);
            shuffled.rotate_left(usize::try_from(seed % len as u64).unwrap());
            shuffled.reverse();
            prop_assert_eq!(sum(&adds), sum(&shuffled));
        }
    }
}
