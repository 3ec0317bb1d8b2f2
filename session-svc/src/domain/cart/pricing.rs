//! What prices are made by: pinned for a visit, so that pages, wishlist and cart agree on them.

use shared::id::SessionId;
use shared::time::Time;

/// Price list, promotions, and where they hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pricing {
    /// The shop's price list.
    pub price_list: String,
    /// Promotions that apply, in the shop's order.
    pub promotions: Vec<String>,
    /// ISO 3166-1 alpha-2, of the country that is sold to.
    pub country: Option<String>,
    /// The store that is sold from.
    pub store: Option<String>,
    /// Until when the prices are promised.
    pub expires_at: Time,
    /// Where it was pinned, if by a session.
    pub pin: Option<Pin>,
    /// What a newer release stored with it.
    pub newer: Vec<u8>,
}

/// Who pinned it, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// The session.
    pub session: SessionId,
    /// When.
    pub at: Time,
}

/// A session that is visiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visiting {
    /// Which.
    pub session: SessionId,
    /// When its visit began.
    pub since: Time,
}

impl Pricing {
    /// Whether it holds for whoever asks. It lasts no longer than the visit in which it was pinned, which only the session
    /// that pinned it can tell; others take it until it expires.
    pub fn holds(&self, asks: Option<Visiting>, now: Time) -> bool {
        let is_of_earlier_visit = match (self.pin, asks) {
            (Some(pin), Some(asks)) => pin.session == asks.session && pin.at < asks.since,
            _ => false,
        };
        !is_of_earlier_visit && now < self.expires_at
    }
}
