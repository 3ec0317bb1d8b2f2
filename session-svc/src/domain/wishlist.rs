//! Wishlists: sets of articles, whom they are shown to, and who of those buys what.

use shared::id::{SessionId, ShopperId, WishlistId};
use shared::time::Time;

use super::cart::Currency;
use super::token::TokenHash;

/// Most wishlists of a shopper.
pub const WISHLISTS_MAX: usize = 50;
/// Most items of a wishlist.
pub const ITEMS_MAX: usize = 200;
/// Most guests who buy of one item.
pub const GUESTS_MAX: usize = 50;

/// Articles that a shopper would like to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wishlist {
    /// Its id.
    pub id: WishlistId,
    /// Whose.
    pub shopper: ShopperId,
    /// What a list of lists shows.
    pub title: Title,
    /// Who may see it.
    pub visibility: Visibility,
    /// In the order they were first added; one a sku.
    pub items: Vec<Item>,
    /// Fields that a newer build gave its content.
    pub newer: Vec<u8>,
    /// When it was made.
    pub created_at: Time,
    /// When its owner last changed it.
    pub updated_at: Time,
    /// Rises with every change.
    pub version: i64,
}

/// What a list of lists shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Title {
    /// As its owner calls it.
    pub name: String,
    /// Whether its owner is not told who buys what.
    pub hides_guests: bool,
    /// Fields that a newer build gave it.
    pub newer: Vec<u8>,
}

/// Who may see a list besides its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visibility {
    /// Nobody.
    Private,
    /// Whoever has the token.
    Shared(Share),
    /// They, and whoever knows its id.
    Public(Share),
}

/// What a share token is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Of the token.
    pub hash: TokenHash,
    /// What the token is derived from, with the ring's key.
    pub salt: Vec<u8>,
}

impl Visibility {
    /// As it is stored.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Private => "PRIVATE",
            Self::Shared(_) => "SHARED",
            Self::Public(_) => "PUBLIC",
        }
    }

    /// Its token, if it has one.
    pub fn share(&self) -> Option<&Share> {
        match self {
            Self::Private => None,
            Self::Shared(share) | Self::Public(share) => Some(share),
        }
    }
}

/// One article.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Stock keeping unit.
    pub sku: String,
    /// At least 1.
    pub desired_quantity: i32,
    /// Number of the API's enum, higher for more.
    pub priority: i32,
    /// The owner's words.
    pub note: String,
    /// When the note was last changed; none where there never was one.
    pub noted_at: Option<Time>,
    /// Of one, in minor units, when it was added.
    pub price: Option<(Currency, i64)>,
    /// When it was first added.
    pub added_at: Time,
    /// Numbers of the API's enum.
    pub notify_on: Vec<i32>,
    /// Who buys it; one a guest.
    pub guests: Vec<Guest>,
    /// Fields that a newer build gave it.
    pub newer: Vec<u8>,
}

/// Somebody who buys an article.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// As which shopper they said so.
    pub shopper: ShopperId,
    /// In which session, which stays the same when they log in.
    pub session: Option<SessionId>,
    /// At least 1.
    pub quantity: i32,
    /// What they call themselves.
    pub name: String,
    /// When they last said so.
    pub noted_at: Time,
    /// Fields that a newer build gave it.
    pub newer: Vec<u8>,
}

impl Guest {
    /// Whether the two are known to be the same person.
    pub fn is(&self, shopper: ShopperId, session: Option<SessionId>) -> bool {
        self.shopper == shopper || session.is_some() && self.session == session
    }
}

/// What an owner changes about an item; what is none stays.
#[derive(Debug, Clone, Default)]
pub struct ItemChange {
    /// How many are wished for.
    pub desired_quantity: Option<i32>,
    /// How much.
    pub priority: Option<i32>,
    /// What they say about it.
    pub note: Option<String>,
    /// What they want to be told of.
    pub notify_on: Option<Vec<i32>>,
}

/// Why a wishlist cannot change so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such item.
    #[error("the wishlist has no such article")]
    NoSuchItem,
    /// Others buy it.
    #[error("others buy so many of it that {open} are open")]
    Taken {
        /// So many nobody buys yet.
        open: i32,
    },
    /// Too much.
    #[error("at most {max} {limit}")]
    Limit {
        /// Of what.
        limit: &'static str,
        /// How many.
        max: usize,
    },
}

impl Item {
    /// How many guests buy.
    pub fn noted_quantity(&self) -> i32 {
        sum(self.guests.iter())
    }

    /// How many nobody buys yet.
    pub fn open_quantity(&self) -> i32 {
        (self.desired_quantity - self.noted_quantity()).max(0)
    }

    fn change(&mut self, change: ItemChange, now: Time) {
        let ItemChange { desired_quantity, priority, note, notify_on } = change;
        self.desired_quantity = desired_quantity.unwrap_or(self.desired_quantity);
        self.priority = priority.unwrap_or(self.priority);
        if let Some(note) = note.filter(|note| *note != self.note) {
            self.note = note;
            self.noted_at = Some(now);
        }
        self.notify_on = notify_on.unwrap_or_else(|| std::mem::take(&mut self.notify_on));
    }

    /// Takes over what the same article on another list has: the newest note, the earliest addition, and the more of all
    /// else.
    fn merge(&mut self, theirs: Self) {
        let Self {
            sku: _,
            desired_quantity,
            priority,
            note,
            noted_at,
            price,
            added_at,
            notify_on,
            guests,
            newer,
        } = theirs;
        self.desired_quantity = self.desired_quantity.max(desired_quantity);
        self.priority = self.priority.max(priority);
        if (noted_at, &note) > (self.noted_at, &self.note) {
            (self.note, self.noted_at) = (note, noted_at);
        }
        if added_at < self.added_at {
            (self.added_at, self.price) = (added_at, price);
        }
        self.notify_on.extend(notify_on);
        self.notify_on.sort_unstable();
        self.notify_on.dedup();
        for guest in guests {
            let same = self.guests.iter_mut().find(|own| own.is(guest.shopper, guest.session));
            match same {
                Some(own) if own.noted_at < guest.noted_at => *own = guest,
                Some(_) => {}
                None => self.guests.push(guest),
            }
        }
        if self.newer.is_empty() {
            self.newer = newer;
        }
    }
}

impl Wishlist {
    /// Puts an article on the list. If it is there already, it keeps when and at which price it was added, and its guests.
    pub fn add(&mut self, item: Item, now: Time) -> Result<(), Refused> {
        if let Some(own) = self.items.iter_mut().find(|own| own.sku == item.sku) {
            let change = ItemChange {
                desired_quantity: Some(item.desired_quantity),
                priority: Some(item.priority),
                note: Some(item.note),
                notify_on: Some(item.notify_on),
            };
            own.change(change, now);
        } else {
            if self.items.len() >= ITEMS_MAX {
                return Err(Refused::Limit { limit: "items", max: ITEMS_MAX });
            }
            self.items.push(item);
        }
        self.updated_at = now;
        Ok(())
    }

    /// Changes an article.
    pub fn change(&mut self, sku: &str, change: ItemChange, now: Time) -> Result<(), Refused> {
        self.item(sku)?.change(change, now);
        self.updated_at = now;
        Ok(())
    }

    /// Takes an article off.
    pub fn remove(&mut self, sku: &str, now: Time) -> Result<(), Refused> {
        let at = self.items.iter().position(|item| item.sku == sku);
        self.items.remove(at.ok_or(Refused::NoSuchItem)?);
        self.updated_at = now;
        Ok(())
    }

    /// Notes how many of an article a guest buys, in place of what they noted before: no more than others leave open, though
    /// they may always buy fewer than before.
    pub fn note_interest(&mut self, sku: &str, guest: Guest) -> Result<(), Refused> {
        let item = self.item(sku)?;
        let (own, others): (Vec<_>, Vec<_>) = item
            .guests
            .iter()
            .cloned()
            .partition(|other| other.is(guest.shopper, guest.session));
        let open = (item.desired_quantity - sum(others.iter())).max(0);
        if guest.quantity > open.max(sum(own.iter())) {
            return Err(Refused::Taken { open });
        }
        if guest.quantity > 0 && others.len() >= GUESTS_MAX {
            return Err(Refused::Limit { limit: "guests", max: GUESTS_MAX });
        }
        item.guests = others;
        if guest.quantity > 0 {
            item.guests.push(guest);
        }
        Ok(())
    }

    /// Takes over the items of another list, as far as there is room; what finds none is left there.
    pub fn merge(&mut self, theirs: &mut Self, now: Time) {
        for item in std::mem::take(&mut theirs.items) {
            if let Some(own) = self.items.iter_mut().find(|own| own.sku == item.sku) {
                own.merge(item);
            } else if self.items.len() < ITEMS_MAX {
                self.items.push(item);
            } else {
                theirs.items.push(item);
            }
        }
        if self.newer.is_empty() {
            self.newer.clone_from(&theirs.newer);
        }
        self.updated_at = now;
    }

    fn item(&mut self, sku: &str) -> Result<&mut Item, Refused> {
        self.items.iter_mut().find(|item| item.sku == sku).ok_or(Refused::NoSuchItem)
    }
}

/// Quantities are at most a million each and guests few, so this does not overflow.
fn sum<'a>(guests: impl Iterator<Item = &'a Guest>) -> i32 {
    guests.map(|guest| guest.quantity).sum()
}

#[cfg(test)]
mod tests;
