//! What shoppers have, on the wire.

use std::time::Duration;

use shared::id::{SessionId, ShopperId};
use shared::parse::etag_of;
use shared::pb::common::Money;
use shared::pb::session as pb;
use shared::time::{duration_to_proto, to_proto};

use crate::domain::consent::{Consents, Decision};
use crate::domain::history::Entry;
use crate::domain::preferences::{Key, Preferences};
use crate::domain::wishlist::{Guest, Item, Visibility, Wishlist};
use crate::store::wishlist::Summary;

impl From<&Wishlist> for pb::Wishlist {
    /// As its owner sees it.
    fn from(list: &Wishlist) -> Self {
        let visibility = match list.visibility {
            Visibility::Private => pb::WishlistVisibility::Private,
            Visibility::Shared(_) => pb::WishlistVisibility::Shared,
            Visibility::Public(_) => pb::WishlistVisibility::Public,
        };
        let hides_guests = list.title.hides_guests;
        Self {
            wishlist_id: list.id.to_string(),
            shopper_id: list.shopper.to_string(),
            name: list.title.name.clone(),
            visibility: visibility.into(),
            hide_guests: hides_guests,
            items: list.items.iter().map(|item| item_to_proto(item, hides_guests)).collect(),
            item_count: i32::try_from(list.items.len()).unwrap_or(i32::MAX),
            create_time: Some(to_proto(list.created_at)),
            update_time: Some(to_proto(list.updated_at)),
            etag: etag_of(list.version),
        }
    }
}

impl From<&Summary> for pb::Wishlist {
    fn from(summary: &Summary) -> Self {
        Self { item_count: summary.item_count, ..(&summary.wishlist).into() }
    }
}

fn item_to_proto(item: &Item, hides_guests: bool) -> pb::WishlistItem {
    let guest = |guest: &Guest| pb::WishlistGuest {
        guest_name: guest.name.clone(),
        quantity: guest.quantity,
        note_time: Some(to_proto(guest.noted_at)),
    };
    let price = item.price.as_ref();
    pb::WishlistItem {
        sku: item.sku.clone(),
        desired_quantity: item.desired_quantity,
        priority: item.priority,
        note: item.note.clone(),
        note_time: item.noted_at.map(to_proto),
        price_at_add: price.map(|(currency, minor_units)| Money {
            currency_code: currency.as_str().to_owned(),
            minor_units: *minor_units,
        }),
        add_time: Some(to_proto(item.added_at)),
        notify_on: item.notify_on.clone(),
        noted_quantity: item.noted_quantity(),
        guests: if hides_guests { vec![] } else { item.guests.iter().map(guest).collect() },
    }
}

/// A list as guests see it, and this one of them.
pub(super) fn shared_to_proto(
    list: &Wishlist,
    guest: Option<(ShopperId, Option<SessionId>)>,
) -> pb::SharedWishlist {
    let item = |item: &Item| {
        let is_own = |other: &&Guest| guest.is_some_and(|(shopper, session)| other.is(shopper, session));
        pb::SharedWishlistItem {
            sku: item.sku.clone(),
            desired_quantity: item.desired_quantity,
            priority: item.priority,
            note: item.note.clone(),
            open_quantity: item.open_quantity(),
            own_quantity: item.guests.iter().filter(is_own).map(|own| own.quantity).sum(),
        }
    };
    pb::SharedWishlist { name: list.title.name.clone(), items: list.items.iter().map(item).collect() }
}

impl From<&Preferences> for pb::Preferences {
    fn from(preferences: &Preferences) -> Self {
        let one = |key| preferences.values(key).first().cloned().unwrap_or_default();
        let numbers = |key| preferences.values(key).iter().filter_map(|text| text.parse().ok()).collect();
        Self {
            locale: one(Key::Locale),
            currency_code: one(Key::Currency),
            country_code: one(Key::Country),
            store_id: one(Key::Store),
            time_zone: one(Key::TimeZone),
            theme: one(Key::Theme).parse().unwrap_or_default(),
            accessibility_needs: numbers(Key::AccessibilityNeeds),
            notification_channels: numbers(Key::NotificationChannels),
            update_time: preferences.updated_at.map(to_proto),
            etag: etag_of(preferences.version),
        }
    }
}

impl From<&Decision> for pb::Consent {
    fn from(decision: &Decision) -> Self {
        Self {
            purpose: decision.purpose.0,
            granted: decision.is_granted,
            policy_version: decision.policy_version.clone(),
            decide_time: Some(to_proto(decision.at)),
        }
    }
}

/// What stands.
pub(super) fn standing_to_proto(consents: &Consents) -> Vec<pb::Consent> {
    consents.standing().into_iter().map(Into::into).collect()
}

impl From<&Entry> for pb::HistoryEntry {
    fn from(entry: &Entry) -> Self {
        let dwell = Duration::from_millis(u64::try_from(entry.dwell_ms).unwrap_or(0));
        Self {
            kind: entry.kind,
            r#ref: entry.reference.clone(),
            time: Some(to_proto(entry.at)),
            dwell: Some(duration_to_proto(dwell)),
        }
    }
}
