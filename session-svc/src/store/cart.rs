//! `session.carts`.

use prost::Message as _;
use shared::id::{CartId, GroupId, LineId, SessionId, ShopperId, TenantId};
use shared::pb::storage;
use shared::time::{Time, from_micros};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::cart::{Applied, Cart, Currency, Line, State};
use crate::store::corrupt;

/// Where a shopper's open cart is.
pub struct Place<'a> {
    /// The tenant.
    pub tenant: &'a TenantId,
    /// Whose.
    pub shopper: ShopperId,
    /// At which touchpoints.
    pub group: &'a GroupId,
    /// In which currency.
    pub currency: &'a Currency,
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
    pub(super) created_at: Time,
    pub(super) updated_at: Time,
    pub(super) version: i64,
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
            ("MERGED", None, Some(into)) => State::Merged { into: CartId::from_uuid(into) },
            _ => return Err(bad("state")),
        };
        let (lines, applied) = read_content(&row.content).ok_or_else(|| bad("content"))?;
        Ok(Self {
            id: CartId::from_uuid(row.cart_id),
            shopper: ShopperId::from_uuid(row.shopper_id),
            group: row.group_id.parse().map_err(|_| bad("group_id"))?,
            currency: row.currency_code.parse().map_err(|_| bad("currency_code"))?,
            state,
            lines,
            applied,
            created_at: row.created_at,
            updated_at: row.updated_at,
            version: row.version,
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
            merged_into_cart_id, created_at, updated_at, version
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
            merged_into_cart_id, created_at, updated_at, version
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
            merged_into_cart_id, created_at, updated_at, version
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
            merged_into_cart_id, created_at, updated_at, version
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

/// The last cart that was ordered there.
#[tracing::instrument(name = "db.cart.find_last_ordered", skip_all)]
pub async fn find_last_ordered(db: &mut PgConnection, place: &Place<'_>) -> sqlx::Result<Option<Cart>> {
    sqlx::query_as!(
        Row,
        "select shopper_id, cart_id, group_id, currency_code, state, content, order_ref, checkout_session_id,
            merged_into_cart_id, created_at, updated_at, version
        from session.carts
        where tenant_id = $1 and shopper_id = $2 and group_id = $3 and currency_code = $4 and state = 'ORDERED'
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

/// Adds an open cart; false if there is one by now.
#[tracing::instrument(name = "db.cart.insert", skip_all)]
pub async fn insert(db: &mut PgConnection, tenant: &TenantId, cart: &Cart) -> sqlx::Result<bool> {
    let (_, session, _) = columns(&cart.state);
    let done = sqlx::query!(
        "insert into session.carts (tenant_id, shopper_id, cart_id, group_id, currency_code, state, content,
            checkout_session_id, created_at, updated_at, version)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
        on conflict (tenant_id, shopper_id, group_id, currency_code) where state in ('ACTIVE', 'CHECKOUT') do nothing",
        tenant.as_str(),
        cart.shopper.uuid(),
        cart.id.uuid(),
        cart.group.as_str(),
        cart.currency.as_str(),
        cart.state.name(),
        write_content(cart),
        session,
        cart.created_at,
        cart.updated_at,
        cart.version,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Writes one of version `cart.version - 1`; false if it has another.
#[tracing::instrument(name = "db.cart.update", skip_all)]
pub async fn update(db: &mut PgConnection, tenant: &TenantId, cart: &Cart) -> sqlx::Result<bool> {
    let (order_ref, session, merged_into) = columns(&cart.state);
    let done = sqlx::query!(
        "update session.carts
        set state = $4, content = $5, order_ref = $6, checkout_session_id = $7, updated_at = $8, version = $9,
            merged_into_cart_id = $10
        where tenant_id = $1 and shopper_id = $2 and cart_id = $3 and version = $9::bigint - 1
            and state not in ('ORDERED', 'MERGED')",
        tenant.as_str(),
        cart.shopper.uuid(),
        cart.id.uuid(),
        cart.state.name(),
        write_content(cart),
        order_ref,
        session,
        cart.updated_at,
        cart.version,
        merged_into,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// `order_ref`, `checkout_session_id` and `merged_into_cart_id` of a state.
fn columns(state: &State) -> (Option<&str>, Option<Uuid>, Option<Uuid>) {
    match state {
        State::Active => (None, None, None),
        State::Checkout { session } => (None, session.map(SessionId::uuid), None),
        State::Ordered { order_ref } => (Some(order_ref), None, None),
        State::Merged { into } => (None, None, Some(into.uuid())),
    }
}

fn read_content(bytes: &[u8]) -> Option<(Vec<Line>, Vec<Applied>)> {
    let content = storage::CartContent::decode(bytes).ok()?;
    let line_id = |bytes: &[u8]| Some(LineId::from_uuid(Uuid::from_slice(bytes).ok()?));
    let line = |line: storage::CartLine| {
        Some(Line {
            id: line_id(&line.line_id)?,
            sku: line.sku,
            quantity: line.quantity,
            unit_price: line.unit_price_minor_units,
            price_observed_at: from_micros(line.price_observed_at_us),
            created_at: from_micros(line.created_at_us),
        })
    };
    let applied = |applied: storage::AppliedRequest| {
        Some(Applied {
            request_id: Uuid::from_slice(&applied.request_id).ok()?,
            body_hash: applied.body_hash.try_into().ok()?,
            line: if applied.line_id.is_empty() { None } else { Some(line_id(&applied.line_id)?) },
        })
    };
    let lines = content.lines.into_iter().map(line).collect::<Option<_>>()?;
    Some((lines, content.applied_requests.into_iter().map(applied).collect::<Option<_>>()?))
}

fn write_content(cart: &Cart) -> Vec<u8> {
    let line = |line: &Line| storage::CartLine {
        line_id: line.id.uuid().as_bytes().to_vec(),
        sku: line.sku.clone(),
        quantity: line.quantity,
        unit_price_minor_units: line.unit_price,
        price_observed_at_us: line.price_observed_at.timestamp_micros(),
        created_at_us: line.created_at.timestamp_micros(),
    };
    let applied = |applied: &Applied| storage::AppliedRequest {
        request_id: applied.request_id.as_bytes().to_vec(),
        body_hash: applied.body_hash.to_vec(),
        line_id: applied.line.map(|line| line.uuid().as_bytes().to_vec()).unwrap_or_default(),
    };
    let lines = cart.lines.iter().map(line).collect();
    storage::CartContent { lines, applied_requests: cart.applied.iter().map(applied).collect() }
        .encode_to_vec()
}
