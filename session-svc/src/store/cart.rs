//! `session.carts`.

use shared::db::broken_constraint;
use shared::id::{CartId, GroupId, SessionId, ShopperId, TenantId, TouchpointId};
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

use self::content::Content;
use crate::domain::abandonment::{Abandonment, Kind, Raised};
use crate::domain::cart::{Cart, Currency, State};
use crate::store::corrupt;

pub mod batch;
mod content;

/// Where a shopper's open cart is.
pub struct Place<'a> {
    /// The tenant.
    pub tenant: &'a TenantId,
    /// Whose.
    pub shopper: ShopperId,
    /// At which touchpoints.
    pub group: &'a GroupId,
    /// In which currency.
    pub currency: Currency,
}

/// What a cart is found by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// Whose tenant's.
    pub tenant: TenantId,
    /// Whose.
    pub shopper: ShopperId,
    /// Which.
    pub cart: CartId,
}

pub(super) struct Row {
    pub(super) shopper_id: Uuid,
    pub(super) cart_id: Uuid,
    pub(super) group_id: String,
    pub(super) currency_code: String,
    pub(super) state: String,
    pub(super) content: Vec<u8>,
    pub(super) order_ref: Option<String>,
    pub(super) checkout_session_id: Option<Uuid>,
    pub(super) merged_into_cart_id: Option<Uuid>,
    pub(super) merge_record: Option<Vec<u8>>,
    pub(super) created_at: Time,
    pub(super) updated_at: Time,
    pub(super) version: i64,
    pub(super) touchpoint_id: Option<String>,
    pub(super) activity_epoch: i32,
    pub(super) abandoned_at: Option<Time>,
    pub(super) abandoned_kind: Option<String>,
    pub(super) lost_at: Option<Time>,
    pub(super) recovered_at: Option<Time>,
}

impl TryFrom<Row> for Cart {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let bad = |column| corrupt("carts", column, &row.cart_id);
        let state = match (row.state.as_str(), row.order_ref, row.merged_into_cart_id) {
            ("ACTIVE", None, None) => State::Active,
            ("CHECKOUT", None, None) => {
                State::Checkout { session: row.checkout_session_id.map(SessionId::from_uuid) }
            }
            ("ORDERED", Some(order_ref), None) => State::Ordered { order_ref },
            ("MERGED", None, Some(into)) => {
                let merge = row.merge_record.map(|record| content::read_merge(&record).map(Box::new));
                let merge = merge.map(|merge| merge.ok_or_else(|| bad("merge_record"))).transpose()?;
                State::Merged { into: CartId::from_uuid(into), merge }
            }
            ("EXPIRED", None, None) => State::Expired,
            ("DISCARDED", None, None) => State::Discarded,
            _ => return Err(bad("state")),
        };
        let Content { lines, codes, pricing, applied, newer } =
            content::read(&row.content).ok_or_else(|| bad("content"))?;
        let touchpoint = row.touchpoint_id.as_deref().map(str::parse).transpose();
        let raised = match (row.abandoned_at, row.abandoned_kind.as_deref().map(Kind::from_name)) {
            (None, _) => None,
            (Some(at), Some(Some(kind))) => Some(Raised { kind, at, lost_at: row.lost_at }),
            (Some(_), _) => return Err(bad("abandoned_kind")),
        };
        Ok(Self {
            id: CartId::from_uuid(row.cart_id),
            shopper: ShopperId::from_uuid(row.shopper_id),
            group: row.group_id.parse().map_err(|_| bad("group_id"))?,
            currency: row.currency_code.parse().map_err(|_| bad("currency_code"))?,
            state,
            lines,
            codes,
            pricing,
            applied,
            newer,
            created_at: row.created_at,
            updated_at: row.updated_at,
            version: row.version,
            touchpoint: touchpoint.map_err(|_| bad("touchpoint_id"))?,
            abandonment: Abandonment { epoch: row.activity_epoch, raised, recovered_at: row.recovered_at },
        })
    }
}

/// The shopper's cart with this id, in any state.
#[tracing::instrument(name = "db.cart.find", skip_all)]
pub async fn find(
    db: &mut PgConnection,
    tenant: &TenantId,
    shopper: ShopperId,
    id: CartId,
) -> sqlx::Result<Option<Cart>> {
    sqlx::query_as!(
        Row,
        "select shopper_id, cart_id, group_id, currency_code, state, content, order_ref, checkout_session_id,
            merged_into_cart_id, merge_record, created_at, updated_at, version, touchpoint_id, activity_epoch, abandoned_at,
            abandoned_kind, lost_at, recovered_at
        from session.carts
        where tenant_id = $1 and shopper_id = $2 and cart_id = $3",
        tenant.as_str(),
        shopper.uuid(),
        id.uuid(),
    )
    .fetch_optional(db)
    .await?
    .map(Cart::try_from)
    .transpose()
}

/// The open cart.
#[tracing::instrument(name = "db.cart.find_open", skip_all)]
pub async fn find_open(db: &mut PgConnection, place: &Place<'_>) -> sqlx::Result<Option<Cart>> {
    sqlx::query_as!(
        Row,
        "select shopper_id, cart_id, group_id, currency_code, state, content, order_ref, checkout_session_id,
            merged_into_cart_id, merge_record, created_at, updated_at, version, touchpoint_id, activity_epoch, abandoned_at,
            abandoned_kind, lost_at, recovered_at
        from session.carts
        where tenant_id = $1 and shopper_id = $2 and group_id = $3 and currency_code = $4
            and state in ('ACTIVE', 'CHECKOUT')",
        place.tenant.as_str(),
        place.shopper.uuid(),
        place.group.as_str(),
        place.currency.as_str(),
    )
    .fetch_optional(db)
    .await?
    .map(Cart::try_from)
    .transpose()
}

/// The open cart, locked.
#[tracing::instrument(name = "db.cart.lock_open", skip_all)]
pub async fn lock_open(db: &mut PgConnection, place: &Place<'_>) -> sqlx::Result<Option<Cart>> {
    sqlx::query_as!(
        Row,
        "select shopper_id, cart_id, group_id, currency_code, state, content, order_ref, checkout_session_id,
            merged_into_cart_id, merge_record, created_at, updated_at, version, touchpoint_id, activity_epoch, abandoned_at,
            abandoned_kind, lost_at, recovered_at
        from session.carts
        where tenant_id = $1 and shopper_id = $2 and group_id = $3 and currency_code = $4
            and state in ('ACTIVE', 'CHECKOUT')
        for update",
        place.tenant.as_str(),
        place.shopper.uuid(),
        place.group.as_str(),
        place.currency.as_str(),
    )
    .fetch_optional(db)
    .await?
    .map(Cart::try_from)
    .transpose()
}

/// Every open cart of two shoppers, locked in key order, so that two logins never wait for each other in a circle. There is
/// one a group and currency.
#[tracing::instrument(name = "db.cart.lock_all_open", skip_all)]
pub async fn lock_all_open(
    db: &mut PgConnection,
    tenant: &TenantId,
    shoppers: [ShopperId; 2],
) -> sqlx::Result<Vec<Cart>> {
    let rows = sqlx::query_as!(
        Row,
        "select shopper_id, cart_id, group_id, currency_code, state, content, order_ref, checkout_session_id,
            merged_into_cart_id, merge_record, created_at, updated_at, version, touchpoint_id, activity_epoch, abandoned_at,
            abandoned_kind, lost_at, recovered_at
        from session.carts
        where tenant_id = $1 and shopper_id = any($2) and state in ('ACTIVE', 'CHECKOUT')
        order by shopper_id, cart_id
        for update",
        tenant.as_str(),
        &shoppers.map(ShopperId::uuid),
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(Cart::try_from).collect()
}

/// How many open carts a shopper has.
#[tracing::instrument(name = "db.cart.count_open", skip_all)]
pub async fn count_open(db: &mut PgConnection, tenant: &TenantId, shopper: ShopperId) -> sqlx::Result<usize> {
    let count = sqlx::query_scalar!(
        r#"select count(*) as "count!"
        from session.carts
        where tenant_id = $1 and shopper_id = $2 and state in ('ACTIVE', 'CHECKOUT')"#,
        tenant.as_str(),
        shopper.uuid(),
    )
    .fetch_one(db)
    .await?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

/// The last cart there that was ordered, thrown away or left alone.
#[tracing::instrument(name = "db.cart.find_last_ended", skip_all)]
pub async fn find_last_ended(db: &mut PgConnection, place: &Place<'_>) -> sqlx::Result<Option<Cart>> {
    sqlx::query_as!(
        Row,
        "select shopper_id, cart_id, group_id, currency_code, state, content, order_ref, checkout_session_id,
            merged_into_cart_id, merge_record, created_at, updated_at, version, touchpoint_id, activity_epoch, abandoned_at,
            abandoned_kind, lost_at, recovered_at
        from session.carts
        where tenant_id = $1 and shopper_id = $2 and group_id = $3 and currency_code = $4
            and state in ('ORDERED', 'EXPIRED', 'DISCARDED')
        order by cart_id desc
        limit 1",
        place.tenant.as_str(),
        place.shopper.uuid(),
        place.group.as_str(),
        place.currency.as_str(),
    )
    .fetch_optional(db)
    .await?
    .map(Cart::try_from)
    .transpose()
}

/// The cart that became this order there.
#[tracing::instrument(name = "db.cart.find_ordered", skip_all)]
pub async fn find_ordered(
    db: &mut PgConnection,
    place: &Place<'_>,
    order_ref: &str,
) -> sqlx::Result<Option<Cart>> {
    sqlx::query_as!(
        Row,
        "select shopper_id, cart_id, group_id, currency_code, state, content, order_ref, checkout_session_id,
            merged_into_cart_id, merge_record, created_at, updated_at, version, touchpoint_id, activity_epoch, abandoned_at,
            abandoned_kind, lost_at, recovered_at
        from session.carts
        where tenant_id = $1 and shopper_id = $2 and group_id = $3 and currency_code = $4 and state = 'ORDERED'
            and order_ref = $5
        order by cart_id desc
        limit 1",
        place.tenant.as_str(),
        place.shopper.uuid(),
        place.group.as_str(),
        place.currency.as_str(),
        order_ref,
    )
    .fetch_optional(db)
    .await?
    .map(Cart::try_from)
    .transpose()
}

/// Adds an open cart, to be looked at first at `due_at`; false if there is one by now.
#[tracing::instrument(name = "db.cart.insert", skip_all)]
pub async fn insert(
    db: &mut PgConnection,
    tenant: &TenantId,
    cart: &Cart,
    due_at: Time,
) -> sqlx::Result<bool> {
    let Columns { checkout_session, .. } = Columns::of(&cart.state)?;
    let done = sqlx::query!(
        "insert into session.carts (tenant_id, shopper_id, cart_id, group_id, currency_code, state, content,
            checkout_session_id, created_at, updated_at, version, touchpoint_id, activity_epoch, recovered_at, due_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
        on conflict (tenant_id, shopper_id, group_id, currency_code) where state in ('ACTIVE', 'CHECKOUT') do nothing",
        tenant.as_str(),
        cart.shopper.uuid(),
        cart.id.uuid(),
        cart.group.as_str(),
        cart.currency.as_str(),
        cart.state.name(),
        content::write(cart)?,
        checkout_session,
        cart.created_at,
        cart.updated_at,
        cart.version,
        cart.touchpoint.as_ref().map(TouchpointId::as_str),
        cart.abandonment.epoch,
        cart.abandonment.recovered_at,
        due_at,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Writes an open one of version `cart.version - 1`, but for its abandonment; false if it is not, or has another. Neither
/// here nor by what else a change of a line writes is an index moved.
#[tracing::instrument(name = "db.cart.update", skip_all)]
pub async fn update(db: &mut PgConnection, tenant: &TenantId, cart: &Cart) -> sqlx::Result<bool> {
    let Columns { order_ref, checkout_session, merged_into, merge_record } = Columns::of(&cart.state)?;
    let done = sqlx::query!(
        "update session.carts
        set state = $4, content = $5, order_ref = $6, checkout_session_id = $7, updated_at = $8, version = $9,
            merged_into_cart_id = $10, merge_record = $11, touchpoint_id = $12
        where tenant_id = $1 and shopper_id = $2 and cart_id = $3 and version = $9::bigint - 1
            and state in ('ACTIVE', 'CHECKOUT')",
        tenant.as_str(),
        cart.shopper.uuid(),
        cart.id.uuid(),
        cart.state.name(),
        content::write(cart)?,
        order_ref,
        checkout_session,
        cart.updated_at,
        cart.version,
        merged_into,
        merge_record,
        cart.touchpoint.as_ref().map(TouchpointId::as_str),
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The shopper's cart with this id, in any state, locked.
#[tracing::instrument(name = "db.cart.lock", skip_all)]
pub async fn lock(
    db: &mut PgConnection,
    tenant: &TenantId,
    shopper: ShopperId,
    id: CartId,
) -> sqlx::Result<Option<Cart>> {
    sqlx::query_as!(
        Row,
        "select shopper_id, cart_id, group_id, currency_code, state, content, order_ref, checkout_session_id,
            merged_into_cart_id, merge_record, created_at, updated_at, version, touchpoint_id, activity_epoch, abandoned_at,
            abandoned_kind, lost_at, recovered_at
        from session.carts
        where tenant_id = $1 and shopper_id = $2 and cart_id = $3
        for update",
        tenant.as_str(),
        shopper.uuid(),
        id.uuid(),
    )
    .fetch_optional(db)
    .await?
    .map(Cart::try_from)
    .transpose()
}

/// Opens a merged one of version `cart.version - 1` again, with its contents as they were, to be looked at at once; false if its shopper has an open
/// one of the group and currency by now.
#[tracing::instrument(name = "db.cart.reopen", skip_all)]
pub async fn reopen(db: &mut PgConnection, tenant: &TenantId, cart: &Cart) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update session.carts
        set state = 'ACTIVE', merged_into_cart_id = null, merge_record = null, updated_at = $4, version = $5,
            due_at = $4
        where tenant_id = $1 and shopper_id = $2 and cart_id = $3 and version = $5::bigint - 1 and state = 'MERGED'
            and not exists (
                select from session.carts other
                where other.tenant_id = $1 and other.shopper_id = $2 and other.group_id = $6
                    and other.currency_code = $7 and other.state in ('ACTIVE', 'CHECKOUT'))",
        tenant.as_str(),
        cart.shopper.uuid(),
        cart.id.uuid(),
        cart.updated_at,
        cart.version,
        cart.group.as_str(),
        cart.currency.as_str(),
    )
    .execute(db)
    .await;
    match done {
        Ok(done) => Ok(done.rows_affected() == 1),
        // It was made after this statement looked.
        Err(error) if broken_constraint(&error) == Some("carts_open_key") => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives a locked cart another id, and its recoveries with it.
#[tracing::instrument(name = "db.cart.rename", skip_all)]
pub async fn rename(db: &mut PgConnection, key: &Key, id: CartId) -> sqlx::Result<()> {
    sqlx::query!(
        "with recoveries as (
            update session.cart_recoveries
            set cart_id = $4
            where tenant_id = $1 and shopper_id = $2 and cart_id = $3
        )
        update session.carts
        set cart_id = $4
        where tenant_id = $1 and shopper_id = $2 and cart_id = $3",
        key.tenant.as_str(),
        key.shopper.uuid(),
        key.cart.uuid(),
        id.uuid(),
    )
    .execute(db)
    .await
    .map(drop)
}

/// What a state's evidence is in columns.
#[derive(Default)]
struct Columns<'a> {
    order_ref: Option<&'a str>,
    checkout_session: Option<Uuid>,
    merged_into: Option<Uuid>,
    merge_record: Option<Vec<u8>>,
}

impl<'a> Columns<'a> {
    fn of(state: &'a State) -> sqlx::Result<Self> {
        Ok(match state {
            State::Active | State::Expired | State::Discarded => Self::default(),
            State::Checkout { session } => {
                Self { checkout_session: session.map(SessionId::uuid), ..Self::default() }
            }
            State::Ordered { order_ref } => Self { order_ref: Some(order_ref), ..Self::default() },
            State::Merged { into, merge } => Self {
                merged_into: Some(into.uuid()),
                merge_record: merge.as_deref().map(content::write_merge).transpose()?,
                ..Self::default()
            },
        })
    }
}
