//! `session.shoppers`: the rows that whoever changes anything that shoppers have, but carts, locks first.

use shared::id::{ShopperId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;

use crate::domain::browsing::{ANONYMOUS_KEPT, MERGED_KEPT};

/// Locks a shopper, whose row is made where there is none, for a change, which is the activity that rows are kept by.
/// Answers whose what they had is, if it is another's by now; nothing may be changed then.
#[tracing::instrument(name = "db.shopper.lock", skip_all)]
pub async fn lock(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: ShopperId,
    now: Time,
) -> sqlx::Result<Option<ShopperId>> {
    if let Some(row) = lock_row(&mut *db, tenant, id, now).await? {
        return Ok(row);
    }
    sqlx::query!(
        "insert into session.shoppers (tenant_id, shopper_id, preferences_version, created_at, due_at)
        values ($1, $2, 0, $3, $4)
        on conflict (tenant_id, shopper_id) do nothing",
        tenant.as_str(),
        id.uuid(),
        now,
        now + ANONYMOUS_KEPT,
    )
    .execute(&mut *db)
    .await?;
    lock_row(db, tenant, id, now).await?.ok_or(sqlx::Error::RowNotFound)
}

async fn lock_row(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: ShopperId,
    now: Time,
) -> sqlx::Result<Option<Option<ShopperId>>> {
    let row = sqlx::query_scalar!(
        "update session.shoppers set active_at = $3
        where tenant_id = $1 and shopper_id = $2
        returning merged_into_shopper_id",
        tenant.as_str(),
        id.uuid(),
        now,
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
    now: Time,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update session.shoppers
        set merged_into_shopper_id = $3, preferences = null, marketing_consent = null, history = null, browsed_at = null,
            browse_abandoned_at = null, browse_lost_at = null, active_at = $4, due_at = least(due_at, $5)
        where tenant_id = $1 and shopper_id = $2 and merged_into_shopper_id is null",
        tenant.as_str(),
        id.uuid(),
        into.uuid(),
        now,
        now + MERGED_KEPT,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}
