//! All that a shopper has, in one statement: so it is of one instant, and takes one round trip.

use shared::id::{GroupId, ShopperId, TenantId};
use sqlx::PgConnection;

use super::{cart, history, preferences, wishlist};
use crate::domain::cart::Cart;
use crate::domain::history::History;
use crate::domain::preferences::Preferences;
use crate::domain::wishlist::Wishlist;

/// Most carts that are read.
const CARTS_MAX: i64 = 50;

/// What a shopper has.
#[derive(Debug, Default)]
pub struct Context {
    /// Open ones, by id.
    pub carts: Vec<Cart>,
    /// By id.
    pub wishlists: Vec<Wishlist>,
    /// With consent.
    pub preferences: Preferences,
    /// Whether it may be shown, consent decides.
    pub history: History,
}

/// What a shopper has; of carts, only those of `group`, if there is one given.
#[tracing::instrument(name = "db.context.find", skip_all)]
pub async fn find(
    db: &mut PgConnection,
    tenant: &TenantId,
    shopper: ShopperId,
    group: Option<&GroupId>,
) -> sqlx::Result<Context> {
    // Each row is of one table only; none of the joins joins anything.
    let rows = sqlx::query!(
        r#"select
            s.preferences as "preferences?", s.preferences_version as "preferences_version?",
            s.preferences_updated_at as "preferences_updated_at?", s.history as "history?",
            c.cart_id as "cart_id?", c.group_id as "group_id?", c.currency_code as "currency_code?",
            c.state as "state?", c.content as "cart_content?", c.checkout_session_id as "checkout_session_id?",
            c.created_at as "cart_created_at?", c.updated_at as "cart_updated_at?", c.version as "cart_version?",
            c.touchpoint_id as "touchpoint_id?", c.activity_epoch as "activity_epoch?", c.abandoned_at as "abandoned_at?",
            c.abandoned_kind as "abandoned_kind?", c.lost_at as "lost_at?", c.recovered_at as "recovered_at?",
            w.wishlist_id as "wishlist_id?", w.visibility as "visibility?", w.share_hash as "share_hash?",
            w.share_salt as "share_salt?", w.title as "title?", w.content as "wishlist_content?",
            w.item_count as "item_count?", w.created_at as "wishlist_created_at?",
            w.updated_at as "wishlist_updated_at?", w.version as "wishlist_version?"
        from (
            select preferences, preferences_version, preferences_updated_at, history
            from session.shoppers
            where tenant_id = $1 and shopper_id = $2
        ) s
        full join (
            select cart_id, group_id, currency_code, state, content, checkout_session_id, created_at, updated_at, version,
                touchpoint_id, activity_epoch, abandoned_at, abandoned_kind, lost_at, recovered_at
            from session.carts
            where tenant_id = $1 and shopper_id = $2 and state in ('ACTIVE', 'CHECKOUT')
                and ($3::text is null or group_id = $3)
            order by cart_id
            limit $4
        ) c on false
        full join (
            select wishlist_id, visibility, share_hash, share_salt, title, content, item_count, created_at, updated_at,
                version
            from session.wishlists
            where tenant_id = $1 and shopper_id = $2
        ) w on false
        order by c.cart_id, w.wishlist_id"#,
        tenant.as_str(),
        shopper.uuid(),
        group.map(GroupId::as_str),
        CARTS_MAX,
    )
    .fetch_all(db)
    .await?;
    let mut context = Context::default();
    for row in rows {
        if let Some(version) = row.preferences_version {
            let (stored, updated_at) = (row.preferences.as_deref(), row.preferences_updated_at);
            context.preferences = preferences::read(stored, version, updated_at, shopper)?;
            context.history = history::read(row.history.as_deref(), shopper)?;
        }
        let cart = || {
            Some(cart::Row {
                shopper_id: shopper.uuid(),
                cart_id: row.cart_id?,
                group_id: row.group_id?,
                currency_code: row.currency_code?,
                state: row.state?,
                content: row.cart_content?,
                order_ref: None,
                checkout_session_id: row.checkout_session_id,
                merged_into_cart_id: None,
                merge_record: None,
                created_at: row.cart_created_at?,
                updated_at: row.cart_updated_at?,
                version: row.cart_version?,
                touchpoint_id: row.touchpoint_id,
                activity_epoch: row.activity_epoch?,
                abandoned_at: row.abandoned_at,
                abandoned_kind: row.abandoned_kind,
                lost_at: row.lost_at,
                recovered_at: row.recovered_at,
            })
        };
        let wishlist = || {
            Some(wishlist::Row {
                shopper_id: shopper.uuid(),
                wishlist_id: row.wishlist_id?,
                visibility: row.visibility?,
                share_hash: row.share_hash,
                share_salt: row.share_salt,
                title: row.title?,
                content: row.wishlist_content?,
                item_count: row.item_count?,
                created_at: row.wishlist_created_at?,
                updated_at: row.wishlist_updated_at?,
                version: row.wishlist_version?,
            })
        };
        context.carts.extend(cart().map(Cart::try_from).transpose()?);
        context.wishlists.extend(wishlist().map(Wishlist::try_from).transpose()?);
    }
    Ok(context)
}
