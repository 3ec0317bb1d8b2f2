//! `session.id_tokens`.

use shared::id::TenantId;
use shared::time::Time;
use sqlx::PgConnection;

/// Notes that an ID token was used, until nobody would take it anyway; false if it was used before.
#[tracing::instrument(name = "db.id_token.insert", skip_all)]
pub async fn insert(
    db: &mut PgConnection,
    tenant: &TenantId,
    digest: &[u8; 32],
    expires_at: Time,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "insert into session.id_tokens (tenant_id, digest, expires_at) values ($1, $2, $3)
        on conflict (tenant_id, digest) do nothing",
        tenant.as_str(),
        digest,
        expires_at,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}
