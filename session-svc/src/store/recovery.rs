//! `session.cart_recoveries`. Written after the cart is locked; a token's row is found by the shopper that it names.

use shared::id::{CartId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;

use super::cart::Key;
use crate::domain::recovery::{End, Recovery};
use crate::domain::token::RecoveryToken;
use crate::store::corrupt;

/// Locks a cart, in whatever state, against other recoveries of it; false if there is none.
#[tracing::instrument(name = "db.recovery.lock_cart", skip_all)]
pub async fn lock_cart(db: &mut PgConnection, key: &Key) -> sqlx::Result<bool> {
    let row = sqlx::query_scalar!(
        "select cart_id from session.carts
        where tenant_id = $1 and shopper_id = $2 and cart_id = $3
        for no key update",
        key.tenant.as_str(),
        key.shopper.uuid(),
        key.cart.uuid(),
    )
    .fetch_optional(db)
    .await?;
    Ok(row.is_some())
}

/// How many recoveries of a cart are open.
#[tracing::instrument(name = "db.recovery.count_open", skip_all)]
pub async fn count_open(db: &mut PgConnection, key: &Key, now: Time) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "count!"
        from session.cart_recoveries
        where tenant_id = $1 and shopper_id = $2 and cart_id = $3 and ended_at is null and expires_at > $4"#,
        key.tenant.as_str(),
        key.shopper.uuid(),
        key.cart.uuid(),
        now,
    )
    .fetch_one(db)
    .await
}

/// Adds an open one of this cart.
#[tracing::instrument(name = "db.recovery.insert", skip_all)]
pub async fn insert(
    db: &mut PgConnection,
    tenant: &TenantId,
    token: &RecoveryToken,
    cart: CartId,
    expires_at: Time,
) -> sqlx::Result<()> {
    let hash = token.hash();
    sqlx::query!(
        "insert into session.cart_recoveries (tenant_id, shopper_id, token_hash, cart_id, expires_at)
        values ($1, $2, $3, $4, $5)",
        tenant.as_str(),
        token.shopper_id().uuid(),
        hash.bytes(),
        cart.uuid(),
        expires_at,
    )
    .execute(db)
    .await
    .map(drop)
}

/// What a token gives leave for.
#[tracing::instrument(name = "db.recovery.find", skip_all)]
pub async fn find(
    db: &mut PgConnection,
    tenant: &TenantId,
    token: &RecoveryToken,
) -> sqlx::Result<Option<Recovery>> {
    let (shopper, hash) = (token.shopper_id(), token.hash());
    let row = sqlx::query!(
        r#"select cart_id as "cart: CartId", expires_at, end_reason
        from session.cart_recoveries
        where tenant_id = $1 and shopper_id = $2 and token_hash = $3"#,
        tenant.as_str(),
        shopper.uuid(),
        hash.bytes(),
    )
    .fetch_optional(db)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let bad = || corrupt("cart_recoveries", "end_reason", &shopper);
    let end = row.end_reason.map(|name| End::from_name(&name).ok_or_else(bad));
    Ok(Some(Recovery { cart: row.cart, expires_at: row.expires_at, end: end.transpose()? }))
}

/// Ends an open one; false if it ended before. Of any number that try at once, one succeeds.
#[tracing::instrument(name = "db.recovery.end", skip_all)]
pub async fn end(
    db: &mut PgConnection,
    tenant: &TenantId,
    token: &RecoveryToken,
    end: End,
    now: Time,
) -> sqlx::Result<bool> {
    let hash = token.hash();
    let done = sqlx::query!(
        "update session.cart_recoveries
        set ended_at = $4, end_reason = $5
        where tenant_id = $1 and shopper_id = $2 and token_hash = $3 and ended_at is null and expires_at > $4",
        tenant.as_str(),
        token.shopper_id().uuid(),
        hash.bytes(),
        now,
        end.name(),
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Revokes every open one of a locked cart; says how many.
#[tracing::instrument(name = "db.recovery.revoke_all", skip_all)]
pub async fn revoke_all(db: &mut PgConnection, key: &Key, now: Time) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        "update session.cart_recoveries
        set ended_at = $4, end_reason = 'REVOKED'
        where tenant_id = $1 and shopper_id = $2 and cart_id = $3 and ended_at is null and expires_at > $4",
        key.tenant.as_str(),
        key.shopper.uuid(),
        key.cart.uuid(),
        now,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}
