//! `session.wishlists`. Whoever writes one has locked its shopper.

use prost::Message;
use shared::id::{SessionId, ShopperId, TenantId, WishlistId};
use shared::pb::storage;
use shared::time::{Time, from_micros};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Unwritten, corrupt, section};
use crate::domain::token::TokenHash;
use crate::domain::wishlist::{Guest, Item, Share, Title, Visibility, Wishlist};

const LAST_OF_TITLE: u32 = 2;
const LAST_OF_CONTENT: u32 = 1;
const LAST_OF_ITEM: u32 = 10;
const LAST_OF_GUEST: u32 = 5;

/// As [`WISHLISTS_MAX`]: there are no more.
const LIST_MAX: i64 = 50;

pub(super) struct Row {
    pub(super) shopper_id: Uuid,
    pub(super) wishlist_id: Uuid,
    pub(super) visibility: String,
    pub(super) share_hash: Option<Vec<u8>>,
    pub(super) share_salt: Option<Vec<u8>>,
    pub(super) title: Vec<u8>,
    pub(super) content: Vec<u8>,
    pub(super) item_count: i32,
    pub(super) created_at: Time,
    pub(super) updated_at: Time,
    pub(super) version: i64,
}

impl TryFrom<Row> for Wishlist {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let bad = |column| corrupt("wishlists", column, &row.wishlist_id);
        let share = match (row.share_hash.as_deref().map(<[u8; 32]>::try_from), row.share_salt) {
            (Some(Ok(hash)), Some(salt)) => Some(Share { hash: TokenHash::from_stored(hash), salt }),
            (None, None) => None,
            _ => return Err(bad("share_hash")),
        };
        let visibility = match (row.visibility.as_str(), share) {
            ("PRIVATE", None) => Visibility::Private,
            ("SHARED", Some(share)) => Visibility::Shared(share),
            ("PUBLIC", Some(share)) => Visibility::Public(share),
            _ => return Err(bad("visibility")),
        };
        let (items, newer) = read_content(&row.content).ok_or_else(|| bad("content"))?;
        Ok(Self {
            id: WishlistId::from_uuid(row.wishlist_id),
            shopper: ShopperId::from_uuid(row.shopper_id),
            title: read_title(&row.title).ok_or_else(|| bad("title"))?,
            visibility,
            items,
            newer,
            created_at: row.created_at,
            updated_at: row.updated_at,
            version: row.version,
        })
    }
}

/// The shopper's wishlist of this id.
#[tracing::instrument(name = "db.wishlist.find", skip_all)]
pub async fn find(
    db: &mut PgConnection,
    tenant: &TenantId,
    shopper: ShopperId,
    id: WishlistId,
) -> sqlx::Result<Option<Wishlist>> {
    sqlx::query_as!(
        Row,
        "select shopper_id, wishlist_id, visibility, share_hash, share_salt, title, content, item_count, created_at,
            updated_at, version
        from session.wishlists
        where tenant_id = $1 and shopper_id = $2 and wishlist_id = $3",
        tenant.as_str(),
        shopper.uuid(),
        id.uuid(),
    )
    .fetch_optional(db)
    .await?
    .map(Wishlist::try_from)
    .transpose()
}

/// How a guest names a list.
#[derive(Debug, Clone, Copy)]
pub enum Shown {
    /// By its token's hash.
    By(TokenHash),
    /// By its id, if it is public.
    Public(WishlistId),
}

/// The list that is shown to guests under this name, which goes on naming whoever the list was of before a login.
#[tracing::instrument(name = "db.wishlist.find_shown", skip_all)]
pub async fn find_shown(
    db: &mut PgConnection,
    tenant: &TenantId,
    shopper: ShopperId,
    shown: Shown,
) -> sqlx::Result<Option<Wishlist>> {
    let (hash, id) = match shown {
        Shown::By(hash) => (Some(*hash.bytes()), None),
        Shown::Public(id) => (None, Some(id.uuid())),
    };
    sqlx::query_as!(
        Row,
        "select shopper_id, wishlist_id, visibility, share_hash, share_salt, title, content, item_count, created_at,
            updated_at, version
        from session.wishlists
        where tenant_id = $1 and (share_hash = $3 or wishlist_id = $4 and visibility = 'PUBLIC')
            and shopper_id = coalesce((
                select merged_into_shopper_id from session.shoppers where tenant_id = $1 and shopper_id = $2), $2)",
        tenant.as_str(),
        shopper.uuid(),
        hash.as_ref().map(<[u8; 32]>::as_slice),
        id,
    )
    .fetch_optional(db)
    .await?
    .map(Wishlist::try_from)
    .transpose()
}

/// All of a shopper's wishlists, oldest first.
#[tracing::instrument(name = "db.wishlist.list", skip_all)]
pub async fn list(
    db: &mut PgConnection,
    tenant: &TenantId,
    shopper: ShopperId,
) -> sqlx::Result<Vec<Wishlist>> {
    let rows = sqlx::query_as!(
        Row,
        "select shopper_id, wishlist_id, visibility, share_hash, share_salt, title, content, item_count, created_at,
            updated_at, version
        from session.wishlists
        where tenant_id = $1 and shopper_id = $2
        order by wishlist_id
        limit $3",
        tenant.as_str(),
        shopper.uuid(),
        LIST_MAX,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(Wishlist::try_from).collect()
}

/// A wishlist without its items, and how many those are.
#[derive(Debug)]
pub struct Summary {
    /// All but the items.
    pub wishlist: Wishlist,
    /// So many are left out.
    pub item_count: i32,
}

/// As [`list`], without reading items.
#[tracing::instrument(name = "db.wishlist.summarise", skip_all)]
pub async fn summarise(
    db: &mut PgConnection,
    tenant: &TenantId,
    shopper: ShopperId,
) -> sqlx::Result<Vec<Summary>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select shopper_id, wishlist_id, visibility, share_hash, share_salt, title, ''::bytea as "content!", item_count,
            created_at, updated_at, version
        from session.wishlists
        where tenant_id = $1 and shopper_id = $2
        order by wishlist_id
        limit $3"#,
        tenant.as_str(),
        shopper.uuid(),
        LIST_MAX,
    )
    .fetch_all(db)
    .await?;
    let summary = |row: Row| Ok(Summary { item_count: row.item_count, wishlist: row.try_into()? });
    rows.into_iter().map(summary).collect()
}

/// How many wishlists a shopper has.
#[tracing::instrument(name = "db.wishlist.count", skip_all)]
pub async fn count(db: &mut PgConnection, tenant: &TenantId, shopper: ShopperId) -> sqlx::Result<usize> {
    let count = sqlx::query_scalar!(
        r#"select count(*) as "count!" from session.wishlists where tenant_id = $1 and shopper_id = $2"#,
        tenant.as_str(),
        shopper.uuid(),
    )
    .fetch_one(db)
    .await?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

/// Adds a list.
#[tracing::instrument(name = "db.wishlist.insert", skip_all)]
pub async fn insert(db: &mut PgConnection, tenant: &TenantId, list: &Wishlist) -> Result<(), Unwritten> {
    let share = list.visibility.share();
    sqlx::query!(
        "insert into session.wishlists (tenant_id, shopper_id, wishlist_id, visibility, share_hash, share_salt, title,
            content, item_count, created_at, updated_at, version)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        tenant.as_str(),
        list.shopper.uuid(),
        list.id.uuid(),
        list.visibility.name(),
        share.map(|share| share.hash.bytes().as_slice()),
        share.map(|share| share.salt.as_slice()),
        write_title(&list.title)?,
        write_content(list)?,
        item_count(list),
        list.created_at,
        list.updated_at,
        list.version,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Writes one of version `list.version - 1`; false if it has another.
#[tracing::instrument(name = "db.wishlist.update", skip_all)]
pub async fn update(db: &mut PgConnection, tenant: &TenantId, list: &Wishlist) -> Result<bool, Unwritten> {
    let share = list.visibility.share();
    let done = sqlx::query!(
        "update session.wishlists
        set visibility = $4, share_hash = $5, share_salt = $6, title = $7, content = $8, item_count = $9,
            updated_at = $10, version = $11
        where tenant_id = $1 and shopper_id = $2 and wishlist_id = $3 and version = $11::bigint - 1",
        tenant.as_str(),
        list.shopper.uuid(),
        list.id.uuid(),
        list.visibility.name(),
        share.map(|share| share.hash.bytes().as_slice()),
        share.map(|share| share.salt.as_slice()),
        write_title(&list.title)?,
        write_content(list)?,
        item_count(list),
        list.updated_at,
        list.version,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Deletes one of this version; false if there is none.
#[tracing::instrument(name = "db.wishlist.delete", skip_all)]
pub async fn delete(db: &mut PgConnection, tenant: &TenantId, list: &Wishlist) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "delete from session.wishlists
        where tenant_id = $1 and shopper_id = $2 and wishlist_id = $3 and version = $4",
        tenant.as_str(),
        list.shopper.uuid(),
        list.id.uuid(),
        list.version,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

fn item_count(list: &Wishlist) -> i32 {
    i32::try_from(list.items.len()).unwrap_or(i32::MAX)
}

fn read_title(stored: &[u8]) -> Option<Title> {
    let message = section::open(stored)?;
    let storage::WishlistTitle { name, hides_guests } = storage::WishlistTitle::decode(message).ok()?;
    Some(Title { name, hides_guests, newer: section::newer(message, LAST_OF_TITLE)? })
}

fn write_title(title: &Title) -> Result<Vec<u8>, section::TooLarge> {
    let Title { name, hides_guests, newer } = title.clone();
    let mut message = storage::WishlistTitle { name, hides_guests }.encode_to_vec();
    message.extend(newer);
    section::seal(message)
}

/// The items, each still as its own message, of which the guests are read apart.
#[derive(Clone, PartialEq, Message)]
struct Encoded {
    #[prost(bytes = "vec", repeated, tag = "1")]
    items: Vec<Vec<u8>>,
}

fn read_content(stored: &[u8]) -> Option<(Vec<Item>, Vec<u8>)> {
    let message = section::open(stored)?;
    let items = Encoded::decode(message).ok()?.items;
    let items = items.iter().map(|item| read_item(item)).collect::<Option<_>>()?;
    Some((items, section::newer(message, LAST_OF_CONTENT)?))
}

fn read_item(message: &[u8]) -> Option<Item> {
    let stored = storage::WishlistItem::decode(message).ok()?;
    let price = match stored.price_currency_code.as_str() {
        "" => None,
        code => Some((code.parse().ok()?, stored.price_minor_units)),
    };
    let of_guests = section::newer_in(message, LAST_OF_ITEM, LAST_OF_GUEST)?;
    let guest = |(guest, newer): (storage::WishlistGuest, Vec<u8>)| {
        let storage::WishlistGuest { shopper_id, session_id, quantity, name, noted_at_us } = guest;
        let session = match session_id.as_slice() {
            [] => None,
            bytes => Some(SessionId::from_uuid(Uuid::from_slice(bytes).ok()?)),
        };
        let shopper = ShopperId::from_uuid(Uuid::from_slice(&shopper_id).ok()?);
        Some(Guest { shopper, session, quantity, name, noted_at: from_micros(noted_at_us), newer })
    };
    Some(Item {
        sku: stored.sku,
        desired_quantity: stored.desired_quantity,
        priority: stored.priority,
        note: stored.note,
        noted_at: (stored.noted_at_us != 0).then(|| from_micros(stored.noted_at_us)),
        price,
        added_at: from_micros(stored.added_at_us),
        notify_on: stored.notify_on,
        guests: stored.guests.into_iter().zip(of_guests).map(guest).collect::<Option<_>>()?,
        newer: section::newer(message, LAST_OF_ITEM)?,
    })
}

fn write_content(list: &Wishlist) -> Result<Vec<u8>, section::TooLarge> {
    let mut message = vec![];
    for item in &list.items {
        let (currency, minor_units) =
            item.price.as_ref().map_or(("", 0), |(code, price)| (code.as_str(), *price));
        let stored = storage::WishlistItem {
            sku: item.sku.clone(),
            desired_quantity: item.desired_quantity,
            priority: item.priority,
            note: item.note.clone(),
            noted_at_us: item.noted_at.map_or(0, |at| at.timestamp_micros()),
            price_currency_code: currency.to_owned(),
            price_minor_units: minor_units,
            added_at_us: item.added_at.timestamp_micros(),
            notify_on: item.notify_on.clone(),
            guests: vec![],
        };
        let mut rest = vec![];
        for guest in &item.guests {
            section::put(&mut rest, LAST_OF_ITEM, &write_guest(guest), &guest.newer);
        }
        rest.extend_from_slice(&item.newer);
        section::put(&mut message, 1, &stored, &rest);
    }
    message.extend_from_slice(&list.newer);
    section::seal(message)
}

fn write_guest(guest: &Guest) -> storage::WishlistGuest {
    storage::WishlistGuest {
        shopper_id: guest.shopper.uuid().as_bytes().to_vec(),
        session_id: guest.session.map(|id| id.uuid().as_bytes().to_vec()).unwrap_or_default(),
        quantity: guest.quantity,
        name: guest.name.clone(),
        noted_at_us: guest.noted_at.timestamp_micros(),
    }
}

#[cfg(test)]
mod tests {
    use super::section::last_field;
    use super::*;
    use crate::domain::wishlist::WISHLISTS_MAX;

    #[test]
    fn every_list_is_listed() {
        assert_eq!(usize::try_from(LIST_MAX), Ok(WISHLISTS_MAX));
    }

    #[test]
    fn every_field_is_known() {
        assert_eq!(LAST_OF_TITLE, last_field("WishlistTitle"));
        assert_eq!(LAST_OF_CONTENT, last_field("WishlistContent"));
        assert_eq!(LAST_OF_ITEM, last_field("WishlistItem"));
        assert_eq!(LAST_OF_GUEST, last_field("WishlistGuest"));
    }
}
