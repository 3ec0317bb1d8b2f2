//! Carts: line operations, codes, checkout, exact totals, and each change once.
//!
//! What the shopper does sets `updated_at`; what the shop's back end does, such as refreshing prices, does not.

use shared::id::{CartId, GroupId, LineId, SessionId, ShopperId, TouchpointId};
use shared::time::Time;

use super::abandonment::Abandonment;
use super::merge::Merge;
pub use applied::Applied;
pub use currency::Currency;
pub use line::{Fulfilment, Line};
pub use pricing::{Pin, Pricing, Visiting};

mod applied;
mod currency;
mod line;
mod pricing;

/// Most lines of a cart.
pub const LINES_MAX: usize = 200;
/// Most of all lines together, in bytes as stored, at the most. With the codes, the pricing and the requests that are
/// remembered it stays within the 64 KiB of a section, and so does the record of a merge.
pub const LINES_BYTES_MAX: usize = 44 * 1024;
/// Most of one article.
pub const QUANTITY_MAX: i32 = 1_000_000;
/// Highest price of one; with the limits above no total overflows an `i64`.
pub const UNIT_PRICE_MAX: i64 = 10_000_000_000;
/// Most codes of a cart.
pub const CODES_MAX: usize = 20;

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
    /// In the order they were applied.
    pub codes: Vec<String>,
    /// What prices are made by, if that was pinned.
    pub pricing: Option<Pricing>,
    /// Changes with an id, oldest first.
    pub applied: Vec<Applied>,
    /// What a newer release stored with it.
    pub newer: Vec<u8>,
    /// When it was made.
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
    /// Went into another cart when its shopper logged in. Final, unless that is taken back.
    Merged {
        /// Which; the same id where it only changed its shopper.
        into: CartId,
        /// What that did; none where an older release did it.
        merge: Option<Box<Merge>>,
    },
    /// Nobody came back to it. Final.
    Expired,
    /// Thrown away. Final.
    Discarded,
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

const TOO_MANY_LINES: Refused = Refused::Limit { limit: "lines", max: 200 };
const TOO_MANY: Refused = Refused::Limit { limit: "of one article", max: 1_000_000 };
const TOO_MANY_BYTES: Refused = Refused::Limit { limit: "bytes of lines", max: 44 * 1024 };
const TOO_MANY_CODES: Refused = Refused::Limit { limit: "codes", max: 20 };

impl State {
    /// As the API names it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Checkout { .. } => "CHECKOUT",
            Self::Ordered { .. } => "ORDERED",
            Self::Merged { .. } => "MERGED",
            Self::Expired => "EXPIRED",
            Self::Discarded => "DISCARDED",
        }
    }

    /// Whether it can still be bought.
    pub fn is_open(&self) -> bool {
        match self {
            Self::Active | Self::Checkout { .. } => true,
            Self::Ordered { .. } | Self::Merged { .. } | Self::Expired | Self::Discarded => false,
        }
    }
}

impl Cart {
    /// A new one.
    pub fn new(id: CartId, shopper: ShopperId, group: GroupId, currency: Currency, now: Time) -> Self {
        Self {
            id,
            shopper,
            group,
            currency,
            state: State::Active,
            lines: vec![],
            codes: vec![],
            pricing: None,
            applied: vec![],
            newer: vec![],
            created_at: now,
            updated_at: now,
            version: 1,
            touchpoint: None,
            abandonment: Abandonment::default(),
        }
    }

    /// Adds so many to the same line, or as a new one; answers which.
    pub fn add(&mut self, line: Line, now: Time) -> Result<LineId, Refused> {
        self.require_active()?;
        let id = if let Some(same) = self.lines.iter_mut().find(|other| other.is_same_as(&line)) {
            same.quantity = together(same.quantity, line.quantity)?;
            same.price_observed_at = line.price_observed_at;
            // What the price is of, where that is said; an older version may be told on the way.
            if !line.catalogue_version.is_empty() {
                same.catalogue_version = line.catalogue_version;
            }
            same.id
        } else {
            if self.lines.len() >= LINES_MAX {
                return Err(TOO_MANY_LINES);
            }
            let id = line.id;
            self.lines.push(line);
            id
        };
        self.require_room()?;
        self.updated_at = now;
        Ok(id)
    }

    /// Sets a line's quantity.
    pub fn set_quantity(&mut self, id: LineId, quantity: i32, now: Time) -> Result<(), Refused> {
        self.require_active()?;
        let at = self.position(id)?;
        self.lines[at].quantity = quantity;
        self.updated_at = now;
        Ok(())
    }

    /// Takes a line out.
    pub fn remove(&mut self, id: LineId, now: Time) -> Result<(), Refused> {
        self.require_active()?;
        let at = self.position(id)?;
        self.lines.remove(at);
        self.updated_at = now;
        Ok(())
    }

    /// Saves a line for later, or brings it back; answers which line it is now, as the same one may be there already.
    pub fn move_line(&mut self, id: LineId, saved_for_later: bool, now: Time) -> Result<LineId, Refused> {
        self.require_active()?;
        let at = self.position(id)?;
        let moved = Line { saved_for_later, ..self.lines[at].clone() };
        let is_there = |line: &Line| line.id != id && line.is_same_as(&moved);
        let id = if let Some(other) = self.lines.iter().position(is_there) {
            self.lines[other].quantity = together(self.lines[other].quantity, moved.quantity)?;
            let id = self.lines[other].id;
            self.lines.remove(at);
            id
        } else {
            self.lines[at] = moved;
            id
        };
        self.updated_at = now;
        Ok(id)
    }

    /// Gives lines other prices, all of one catalogue; lines that are not there are passed over. Lines whose prices become
    /// equal stay apart, as tabs that show them name them by their ids.
    pub fn refresh_prices(
        &mut self,
        prices: &[(LineId, i64)],
        catalogue_version: &str,
        now: Time,
    ) -> Result<(), Refused> {
        self.require_active()?;
        for (id, unit_price) in prices {
            if let Some(line) = self.lines.iter_mut().find(|line| line.id == *id) {
                line.unit_price = *unit_price;
                line.price_observed_at = now;
                catalogue_version.clone_into(&mut line.catalogue_version);
            }
        }
        self.require_room()
    }

    /// Pins what prices are made by.
    pub fn pin_pricing(&mut self, pricing: Pricing) -> Result<(), Refused> {
        self.require_active()?;
        self.pricing = Some(pricing);
        Ok(())
    }

    /// Adds a code, once.
    pub fn apply_code(&mut self, code: String, now: Time) -> Result<(), Refused> {
        self.require_active()?;
        if !self.codes.contains(&code) {
            if self.codes.len() >= CODES_MAX {
                return Err(TOO_MANY_CODES);
            }
            self.codes.push(code);
        }
        self.updated_at = now;
        Ok(())
    }

    /// Takes a code out, if it is there.
    pub fn remove_code(&mut self, code: &str, now: Time) -> Result<(), Refused> {
        self.require_active()?;
        self.codes.retain(|other| other != code);
        self.updated_at = now;
        Ok(())
    }

    /// Throws it away.
    pub fn discard(&mut self, now: Time) -> Result<(), Refused> {
        self.require_active()?;
        self.state = State::Discarded;
        self.updated_at = now;
        Ok(())
    }

    /// Closes one that was left alone.
    pub fn expire(&mut self) -> Result<(), Refused> {
        self.require_active()?;
        self.state = State::Expired;
        Ok(())
    }

    /// Freezes the cart; `session` is whose visit it holds.
    pub fn begin_checkout(&mut self, session: Option<SessionId>, now: Time) -> Result<(), Refused> {
        self.require_active()?;
        if self.lines.iter().all(|line| line.saved_for_later) {
            return Err(Refused::Empty);
        }
        self.state = State::Checkout { session };
        self.updated_at = now;
        Ok(())
    }

    /// Turns it into an order, without what was saved for later; answers the session that it held, and what was saved.
    pub fn complete_checkout(
        &mut self,
        order_ref: String,
        now: Time,
    ) -> Result<(Option<SessionId>, Vec<Line>), Refused> {
        let session = self.require_checkout()?;
        self.state = State::Ordered { order_ref };
        self.updated_at = now;
        let (saved, ordered) = std::mem::take(&mut self.lines)
            .into_iter()
            .partition(|line| line.saved_for_later);
        self.lines = ordered;
        Ok((session, saved))
    }

    /// Opens it again; answers the session that it held. That the shopper gave up, they did themselves; that a payment
    /// failed, they did not.
    pub fn fail_checkout(&mut self, by_shopper: bool, now: Time) -> Result<Option<SessionId>, Refused> {
        let session = self.require_checkout()?;
        self.state = State::Active;
        if by_shopper {
            self.updated_at = now;
        }
        Ok(session)
    }

    /// Whether there is something to be bought. What is saved for later, nobody leaves behind.
    pub fn has_goods(&self) -> bool {
        self.lines.iter().any(|line| !line.saved_for_later)
    }

    /// Sum of quantity times price of what is not saved for later: at most 200 * 10^6 * 10^10, which an `i64` holds.
    pub fn total(&self) -> i64 {
        let lines = self.lines.iter().filter(|line| !line.saved_for_later);
        lines.map(|line| i64::from(line.quantity) * line.unit_price).sum()
    }

    /// Only an active cart changes but for its checkout.
    pub(super) fn require_active(&self) -> Result<(), Refused> {
        match &self.state {
            State::Active => Ok(()),
            State::Checkout { .. }
            | State::Ordered { .. }
            | State::Merged { .. }
            | State::Expired
            | State::Discarded => Err(Refused::WrongState(self.state.name())),
        }
    }

    fn require_checkout(&self) -> Result<Option<SessionId>, Refused> {
        match &self.state {
            State::Checkout { session } => Ok(*session),
            State::Active
            | State::Ordered { .. }
            | State::Merged { .. }
            | State::Expired
            | State::Discarded => Err(Refused::WrongState(self.state.name())),
        }
    }

    fn require_room(&self) -> Result<(), Refused> {
        let bytes: usize = self.lines.iter().map(Line::bytes_max).sum();
        if bytes + self.newer.len() <= LINES_BYTES_MAX { Ok(()) } else { Err(TOO_MANY_BYTES) }
    }

    fn position(&self, id: LineId) -> Result<usize, Refused> {
        self.lines.iter().position(|line| line.id == id).ok_or(Refused::NoSuchLine)
    }
}

fn together(one: i32, other: i32) -> Result<i32, Refused> {
    one.checked_add(other).filter(|sum| *sum <= QUANTITY_MAX).ok_or(TOO_MANY)
}

#[cfg(test)]
pub(super) mod tests;
