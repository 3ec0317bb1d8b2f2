//! `session.shoppers`: the rows that whoever changes anything that shoppers have, but carts, locks first.

use shared::id::{ShopperId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;

/// Locks a shopper, whose row is made where there is none. Answers whose what they had is, if it is another's by now.
#[tracing::instrument(name = "db.shopper.lock", skip_all)]
pub async fn lock(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: ShopperId,
    now: Time,
) -> sqlx::Result<Option<ShopperId>> {
    if let Some(row) = lock_row(&mut *db, tenant, id).await? {
        return Ok(row);
    }
    sqlx::query!(
        "insert into session.shoppers (tenant_id, shopper_id, preferences_version, created_at)
        values ($1, $2, 0, $3)
        on conflict (tenant_id, shopper_id) do nothing",
        tenant.as_str(),
        id.uuid(),
        now,
    )
    .execute(&mut *db)
    .await?;
    lock_row(db, tenant, id).await?.ok_or(sqlx::Error::RowNotFound)
}

async fn lock_row(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: ShopperId,
) -> sqlx::Result<Option<Option<ShopperId>>> {
    let row = sqlx::query_scalar!(
        "select merged_into_shopper_id from session.shoppers
        where tenant_id = $1 and shopper_id = $2
        for update",
        tenant.as_str(),
        id.uuid(),
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|into| into.map(ShopperId::from_uuid)))
}

/// Locks those of two shoppers that have rows, in key order, so that two logins never wait for each other in a circle.
#[tracing::instrument(name = "db.shopper.lock_both", skip_all)]
pub async fn lock_both(
    db: &mut PgConnection,
    tenant: &TenantId,
    ids: [ShopperId; 2],
) -> sqlx::Result<Vec<ShopperId>> {
    let rows = sqlx::query_scalar!(
        "select shopper_id from session.shoppers
        where tenant_id = $1 and shopper_id = any($2)
        order by shopper_id
        for update",
        tenant.as_str(),
        &ids.map(ShopperId::uuid),
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(ShopperId::from_uuid).collect())
}

/// Whether a shopper has a row.
#[tracing::instrument(name = "db.shopper.exists", skip_all)]
pub async fn exists(db: &mut PgConnection, tenant: &TenantId, id: ShopperId) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (select from session.shoppers where tenant_id = $1 and shopper_id = $2) as "exists!""#,
        tenant.as_str(),
        id.uuid(),
    )
    .fetch_one(db)
    .await
}

/// Empties a locked shopper, whose state another has from now on; false if it was another's before.
#[tracing::instrument(name = "db.shopper.set_merged", skip_all)]
pub async fn set_merged(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: ShopperId,
    into: ShopperId,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update session.shoppers
        set merged_into_shopper_id = $3, preferences = null, marketing_consent = null, history = null
        where tenant_id = $1 and shopper_id = $2 and merged_into_shopper_id is null",
        tenant.as_str(),
        id.uuid(),
        into.uuid(),
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}
