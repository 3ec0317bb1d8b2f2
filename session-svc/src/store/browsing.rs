//! What time makes of `session.shoppers`: which are due, what they left, and what became of them.

use shared::id::{ShopperId, TenantId, TouchpointId};
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{cart, corrupt, preferences};
use crate::domain::browsing::{Browsing, Raised};
use crate::domain::cart::Cart;
use crate::domain::consent::Consents;
use crate::domain::contact::Channel;

/// What a shopper looked at and left, and where.
#[derive(Debug)]
pub struct Left {
    /// What is known of it.
    pub browsing: Browsing,
    /// Where they last looked, as far as a session did.
    pub touchpoint: Option<TouchpointId>,
}

/// A shopper who is due.
#[derive(Debug)]
pub struct Found {
    /// Whose tenant's.
    pub tenant: TenantId,
    /// Which.
    pub shopper: ShopperId,
    /// What they left.
    pub left: Left,
    /// When anything of theirs was last changed; none where nobody wrote that down yet.
    pub active_at: Option<Time>,
    /// Whether a login emptied it.
    pub is_merged: bool,
    /// What they agreed to, as far as it can be read.
    pub consents: sqlx::Result<Consents>,
}

/// What became of a shopper in this epoch, all at one instant.
#[derive(Debug)]
pub struct Fate {
    /// Whose tenant's.
    pub tenant: TenantId,
    /// Which.
    pub shopper: ShopperId,
    /// The epoch that it was decided on.
    pub epoch: i32,
    /// When they are due next.
    pub due_at: Time,
    /// Whether they took something.
    pub is_taken: bool,
    /// Whether they were found gone.
    pub is_abandoned: bool,
    /// Whether they were found lost.
    pub is_lost: bool,
}

/// What else has to be known of a shopper.
#[derive(Debug)]
pub struct Around {
    /// When they last ordered.
    pub ordered_at: Option<Time>,
    /// Where the shop has an address, as it last said of a cart of theirs.
    pub channels: Vec<Channel>,
    /// Whether tokens may be in use that name a merged one: the shopper it went into shows a list older than that.
    pub is_named: bool,
}

/// An article was looked at.
#[derive(Debug)]
pub struct Look {
    /// When.
    pub at: Time,
    /// Where, as far as a session did.
    pub touchpoint: Option<TouchpointId>,
    /// Nothing becomes of it before.
    pub due_at: Time,
}

struct Row {
    touchpoint_id: Option<String>,
    browsed_at: Option<Time>,
    browse_epoch: i32,
    browse_abandoned_at: Option<Time>,
    browse_lost_at: Option<Time>,
}

impl Row {
    fn read(self, shopper: &dyn std::fmt::Display) -> sqlx::Result<Left> {
        let touchpoint = self.touchpoint_id.as_deref().map(str::parse).transpose();
        let touchpoint = touchpoint.map_err(|_| corrupt("shoppers", "touchpoint_id", shopper))?;
        let raised = self.browse_abandoned_at.map(|at| Raised { at, lost_at: self.browse_lost_at });
        let browsing = Browsing { epoch: self.browse_epoch, looked_at: self.browsed_at, raised };
        Ok(Left { browsing, touchpoint })
    }
}

/// Locks shoppers who are due, those first who are due longest. Whom somebody else holds stays for the next time. What an
/// earlier binary forgot the history of was not looked at.
#[tracing::instrument(name = "db.browsing.lock_due", skip_all)]
pub async fn lock_due(db: &mut PgConnection, now: Time, limit: i64) -> sqlx::Result<Vec<Found>> {
    let rows = sqlx::query!(
        "select tenant_id, shopper_id, active_at, merged_into_shopper_id, preferences, touchpoint_id, browse_epoch,
            case when history is not null then browsed_at end as browsed_at, browse_abandoned_at, browse_lost_at
        from session.shoppers
        where due_at <= $1
        order by due_at
        limit $2
        for update skip locked",
        now,
        limit,
    )
    .fetch_all(db)
    .await?;
    let found = rows.into_iter().map(|row| {
        let shopper = ShopperId::from_uuid(row.shopper_id);
        let preferences = preferences::read(row.preferences.as_deref(), 0, None, shopper);
        let left = Row {
            touchpoint_id: row.touchpoint_id,
            browsed_at: row.browsed_at,
            browse_epoch: row.browse_epoch,
            browse_abandoned_at: row.browse_abandoned_at,
            browse_lost_at: row.browse_lost_at,
        };
        Ok(Found {
            tenant: row.tenant_id.parse().map_err(|_| corrupt("shoppers", "tenant_id", &shopper))?,
            shopper,
            left: left.read(&shopper)?,
            active_at: row.active_at,
            is_merged: row.merged_into_shopper_id.is_some(),
            consents: preferences.map(|preferences| preferences.consents),
        })
    });
    found.collect()
}

/// The open carts of shoppers, each as far as it can be read; in no order.
#[tracing::instrument(name = "db.browsing.carts", skip_all, fields(count = shoppers.len()))]
pub async fn carts(
    db: &mut PgConnection,
    shoppers: &[(&TenantId, ShopperId)],
) -> sqlx::Result<Vec<(ShopperId, sqlx::Result<Cart>)>> {
    let (tenants, ids) = columns(shoppers);
    let rows = sqlx::query_as!(
        cart::Row,
        "select carts.shopper_id, cart_id, group_id, currency_code, state, content, order_ref, checkout_session_id,
            merged_into_cart_id, merge_record, created_at, updated_at, version, touchpoint_id, activity_epoch, abandoned_at,
            abandoned_kind, lost_at, recovered_at
        from unnest($1::text[], $2::uuid[]) as shopper (tenant_id, shopper_id)
        join session.carts using (tenant_id, shopper_id)
        where state in ('ACTIVE', 'CHECKOUT')",
        &tenants,
        &ids,
    )
    .fetch_all(db)
    .await?;
    let read = |row: cart::Row| (ShopperId::from_uuid(row.shopper_id), Cart::try_from(row));
    Ok(rows.into_iter().map(read).collect())
}

/// What else has to be known of each of these shoppers, in their order.
#[tracing::instrument(name = "db.browsing.around", skip_all, fields(count = shoppers.len()))]
pub async fn around(db: &mut PgConnection, shoppers: &[(&TenantId, ShopperId)]) -> sqlx::Result<Vec<Around>> {
    let (tenants, ids) = columns(shoppers);
    let rows = sqlx::query!(
        r#"select (
                select max(updated_at) from session.carts cart
                where cart.tenant_id = key.tenant_id and cart.shopper_id = key.shopper_id and state = 'ORDERED'
            ) as ordered_at, (
                select contact_channels from session.carts cart
                where cart.tenant_id = key.tenant_id and cart.shopper_id = key.shopper_id and contact_channels <> '{}'
                order by updated_at desc
                limit 1
            ) as channels, exists (
                select from session.shoppers source
                join session.wishlists list
                    on list.tenant_id = source.tenant_id and list.shopper_id = source.merged_into_shopper_id
                where source.tenant_id = key.tenant_id and source.shopper_id = key.shopper_id
                    and list.visibility <> 'PRIVATE' and list.created_at <= coalesce(source.active_at, list.created_at)
            ) as "is_named!"
        from unnest($1::text[], $2::uuid[]) with ordinality as key (tenant_id, shopper_id, position)
        order by position"#,
        &tenants,
        &ids,
    )
    .fetch_all(db)
    .await?;
    let channels = |names: Vec<String>| names.iter().filter_map(|name| Channel::from_name(name)).collect();
    let around = rows.into_iter().map(|row| Around {
        ordered_at: row.ordered_at,
        channels: row.channels.map(channels).unwrap_or_default(),
        is_named: row.is_named,
    });
    Ok(around.collect())
}

/// Writes what became of locked shoppers, as far as no flag is raised twice; answers the positions of those that it wrote.
#[tracing::instrument(name = "db.browsing.write", skip_all, fields(count = fates.len()))]
pub async fn write(db: &mut PgConnection, fates: &[Fate], now: Time) -> sqlx::Result<Vec<usize>> {
    let keys: Vec<_> = fates.iter().map(|fate| (&fate.tenant, fate.shopper)).collect();
    let (tenants, ids) = columns(&keys);
    let written = sqlx::query_scalar!(
        r#"update session.shoppers shopper
        set due_at = fate.due_at,
            active_at = coalesce(shopper.active_at, $8),
            browsed_at = case when not fate.is_taken then shopper.browsed_at end,
            browse_epoch = shopper.browse_epoch
                + case when fate.is_taken and shopper.browse_abandoned_at is not null then 1 else 0 end,
            browse_abandoned_at = case when fate.is_taken then null when fate.is_abandoned then $8
                else shopper.browse_abandoned_at end,
            browse_lost_at = case when fate.is_taken then null when fate.is_lost then $8 else shopper.browse_lost_at end
        from unnest($1::text[], $2::uuid[], $3::integer[], $4::timestamptz[], $5::boolean[], $6::boolean[],
            $7::boolean[]) with ordinality as fate (tenant_id, shopper_id, epoch, due_at, is_taken, is_abandoned, is_lost,
            position)
        where shopper.tenant_id = fate.tenant_id and shopper.shopper_id = fate.shopper_id
            and shopper.browse_epoch = fate.epoch
            and (not fate.is_abandoned or shopper.browse_abandoned_at is null)
            and (not fate.is_lost or shopper.browse_lost_at is null)
        returning position as "position!""#,
        &tenants,
        &ids,
        &fates.iter().map(|fate| fate.epoch).collect::<Vec<_>>(),
        &fates.iter().map(|fate| fate.due_at).collect::<Vec<_>>(),
        &fates.iter().map(|fate| fate.is_taken).collect::<Vec<_>>(),
        &fates.iter().map(|fate| fate.is_abandoned).collect::<Vec<_>>(),
        &fates.iter().map(|fate| fate.is_lost).collect::<Vec<_>>(),
        now,
    )
    .fetch_all(db)
    .await?;
    Ok(positions(written))
}

/// Deletes locked shoppers whom no subject has, with all that they have; answers the positions of those that it deleted.
#[tracing::instrument(name = "db.browsing.delete", skip_all, fields(count = shoppers.len()))]
pub async fn delete(db: &mut PgConnection, shoppers: &[(&TenantId, ShopperId)]) -> sqlx::Result<Vec<usize>> {
    let (tenants, ids) = columns(shoppers);
    let deleted = sqlx::query_scalar!(
        r#"with deleted as (
            delete from session.shoppers shopper
            using unnest($1::text[], $2::uuid[]) with ordinality as key (tenant_id, shopper_id, position)
            where shopper.tenant_id = key.tenant_id and shopper.shopper_id = key.shopper_id
                and not exists (
                    select from session.subjects subject
                    where subject.tenant_id = key.tenant_id and subject.shopper_id = key.shopper_id)
            returning key.tenant_id, key.shopper_id, key.position
        ), lists as (
            delete from session.wishlists list using deleted
            where list.tenant_id = deleted.tenant_id and list.shopper_id = deleted.shopper_id
        )
        select position as "position!" from deleted"#,
        &tenants,
        &ids,
    )
    .fetch_all(db)
    .await?;
    Ok(positions(deleted))
}

/// What a shopper left; none where there is no such shopper.
#[tracing::instrument(name = "db.browsing.find", skip_all)]
pub async fn find(
    db: &mut PgConnection,
    tenant: &TenantId,
    shopper: ShopperId,
) -> sqlx::Result<Option<Left>> {
    sqlx::query_as!(
        Row,
        "select touchpoint_id, browsed_at, browse_epoch, browse_abandoned_at, browse_lost_at
        from session.shoppers
        where tenant_id = $1 and shopper_id = $2",
        tenant.as_str(),
        shopper.uuid(),
    )
    .fetch_optional(db)
    .await?
    .map(|row| row.read(&shopper))
    .transpose()
}

/// A locked shopper looked at something: lowers the flag and opens the next epoch, if it was up. Answers what they had left
/// before; none if they looked at something later than that.
#[tracing::instrument(name = "db.browsing.look", skip_all)]
pub async fn look(
    db: &mut PgConnection,
    tenant: &TenantId,
    shopper: ShopperId,
    look: &Look,
) -> sqlx::Result<Option<Left>> {
    sqlx::query_as!(
        Row,
        "with before as (
            select touchpoint_id, browsed_at, browse_epoch, browse_abandoned_at, browse_lost_at
            from session.shoppers
            where tenant_id = $1 and shopper_id = $2
        )
        update session.shoppers shopper
        set browsed_at = $3, touchpoint_id = coalesce($4, shopper.touchpoint_id), due_at = least(shopper.due_at, $5),
            browse_epoch = shopper.browse_epoch + case when shopper.browse_abandoned_at is null then 0 else 1 end,
            browse_abandoned_at = null, browse_lost_at = null
        from before
        where shopper.tenant_id = $1 and shopper.shopper_id = $2 and shopper.merged_into_shopper_id is null
            and (shopper.browsed_at is null or shopper.browsed_at < $3)
        returning before.touchpoint_id, before.browsed_at, before.browse_epoch, before.browse_abandoned_at,
            before.browse_lost_at",
        tenant.as_str(),
        shopper.uuid(),
        look.at,
        look.touchpoint.as_ref().map(TouchpointId::as_str),
        look.due_at,
    )
    .fetch_optional(db)
    .await?
    .map(|row| row.read(&shopper))
    .transpose()
}

fn columns(shoppers: &[(&TenantId, ShopperId)]) -> (Vec<String>, Vec<Uuid>) {
    shoppers
        .iter()
        .map(|(tenant, shopper)| (tenant.to_string(), shopper.uuid()))
        .unzip()
}

fn positions(ordinals: Vec<i64>) -> Vec<usize> {
    ordinals
        .into_iter()
        .filter_map(|ordinal| usize::try_from(ordinal - 1).ok())
        .collect()
}
