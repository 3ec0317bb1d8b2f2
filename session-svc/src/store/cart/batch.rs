//! Many carts in one statement.

use std::sync::Arc;

use shared::id::TenantId;
use sqlx::PgConnection;

use super::{Key, Place, Row, content};
use crate::domain::cart::Cart;

/// Those of the carts that are there, of any tenants, each as far as it can be read; in no order.
#[tracing::instrument(name = "db.cart.batch.find", skip_all, fields(count = keys.len()))]
pub async fn find(db: &mut PgConnection, keys: &[Key]) -> sqlx::Result<Vec<sqlx::Result<Cart>>> {
    let rows = sqlx::query_as!(
        Row,
        "select cart.shopper_id, cart.cart_id, group_id, currency_code, state, content, order_ref, checkout_session_id,
            merged_into_cart_id, merge_record, created_at, updated_at, version, touchpoint_id, activity_epoch, abandoned_at,
            abandoned_kind, lost_at, recovered_at
        from unnest($1::text[], $2::uuid[], $3::uuid[]) as key (tenant_id, shopper_id, cart_id)
        join session.carts cart using (tenant_id, shopper_id, cart_id)",
        &keys.iter().map(|key| key.tenant.to_string()).collect::<Vec<_>>(),
        &keys.iter().map(|key| key.shopper.uuid()).collect::<Vec<_>>(),
        &keys.iter().map(|key| key.cart.uuid()).collect::<Vec<_>>(),
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(Cart::try_from).collect())
}

/// The open carts of these places that nobody else holds, locked, each as far as it can be read; in no order.
#[tracing::instrument(name = "db.cart.batch.lock_free", skip_all, fields(count = places.len()))]
pub async fn lock_free(db: &mut PgConnection, places: &[Place<'_>]) -> sqlx::Result<Vec<sqlx::Result<Cart>>> {
    let rows = sqlx::query_as!(
        Row,
        "select cart.shopper_id, cart_id, cart.group_id, cart.currency_code, state, content, order_ref, checkout_session_id,
            merged_into_cart_id, merge_record, created_at, updated_at, version, touchpoint_id, activity_epoch, abandoned_at,
            abandoned_kind, lost_at, recovered_at
        from unnest($1::text[], $2::uuid[], $3::text[], $4::text[]) as place (tenant_id, shopper_id, group_id, currency_code)
        join session.carts cart on cart.tenant_id = place.tenant_id and cart.shopper_id = place.shopper_id
            and cart.group_id = place.group_id and cart.currency_code = place.currency_code
            and cart.state in ('ACTIVE', 'CHECKOUT')
        for update of cart skip locked",
        &places.iter().map(|place| place.tenant.to_string()).collect::<Vec<_>>(),
        &places.iter().map(|place| place.shopper.uuid()).collect::<Vec<_>>(),
        &places.iter().map(|place| place.group.to_string()).collect::<Vec<_>>(),
        &places.iter().map(|place| place.currency.as_str().to_owned()).collect::<Vec<_>>(),
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(Cart::try_from).collect())
}

/// As [`super::update`], for many that stay in their state, each of the version given with it; fails where one has another.
#[tracing::instrument(name = "db.cart.batch.update", skip_all, fields(count = carts.len()))]
pub async fn update(db: &mut PgConnection, carts: &[(&TenantId, i64, Arc<Cart>)]) -> sqlx::Result<()> {
    let contents = carts.iter().map(|(_, _, cart)| content::write(cart));
    let touchpoint = |cart: &Cart| cart.touchpoint.as_ref().map(|touchpoint| touchpoint.as_str().to_owned());
    let done = sqlx::query!(
        "update session.carts cart
        set content = change.content, updated_at = change.updated_at, version = change.version,
            touchpoint_id = change.touchpoint_id
        from unnest($1::text[], $2::uuid[], $3::uuid[], $4::bigint[], $5::text[], $6::bytea[], $7::timestamptz[],
            $8::bigint[], $9::text[]) as change (tenant_id, shopper_id, cart_id, seen_version, state, content, updated_at,
            version, touchpoint_id)
        where cart.tenant_id = change.tenant_id and cart.shopper_id = change.shopper_id and cart.cart_id = change.cart_id
            and cart.version = change.seen_version and cart.state = change.state",
        &carts.iter().map(|(tenant, ..)| tenant.to_string()).collect::<Vec<_>>(),
        &carts.iter().map(|(_, _, cart)| cart.shopper.uuid()).collect::<Vec<_>>(),
        &carts.iter().map(|(_, _, cart)| cart.id.uuid()).collect::<Vec<_>>(),
        &carts.iter().map(|(_, version, _)| *version).collect::<Vec<_>>(),
        &carts.iter().map(|(_, _, cart)| cart.state.name().to_owned()).collect::<Vec<_>>(),
        &contents.collect::<sqlx::Result<Vec<_>>>()?,
        &carts.iter().map(|(_, _, cart)| cart.updated_at).collect::<Vec<_>>(),
        &carts.iter().map(|(_, _, cart)| cart.version).collect::<Vec<_>>(),
        &carts.iter().map(|(_, _, cart)| touchpoint(cart)).collect::<Vec<_>>() as &[Option<String>],
    )
    .execute(db)
    .await?;
    // They are locked, so that nobody else changes them.
    if done.rows_affected() == carts.len() as u64 { Ok(()) } else { Err(sqlx::Error::RowNotFound) }
}
