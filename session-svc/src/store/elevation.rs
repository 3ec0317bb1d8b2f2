//! `session.elevations`.

use shared::id::{SessionId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;

use crate::domain::elevation::{Digest, Elevation, State};
use crate::domain::token::ElevationToken;
use crate::store::corrupt;

/// Locks a session against other grants and against revocation; false if it was revoked.
#[tracing::instrument(name = "db.elevation.lock_session", skip_all)]
pub async fn lock_session(db: &mut PgConnection, tenant: &TenantId, id: SessionId) -> sqlx::Result<bool> {
    let row = sqlx::query_scalar!(
        "select session_id from session.sessions
        where tenant_id = $1 and session_id = $2 and revoked_at is null
        for no key update",
        tenant.as_str(),
        id.uuid(),
    )
    .fetch_optional(db)
    .await?;
    Ok(row.is_some())
}

/// Holds a session as it is until the transaction ends; others may hold it, too.
#[tracing::instrument(name = "db.elevation.hold_session", skip_all)]
pub async fn hold_session(db: &mut PgConnection, tenant: &TenantId, id: SessionId) -> sqlx::Result<()> {
    sqlx::query_scalar!(
        "select session_id from session.sessions where tenant_id = $1 and session_id = $2 for share",
        tenant.as_str(),
        id.uuid(),
    )
    .fetch_optional(db)
    .await
    .map(drop)
}

/// Deletes a locked session's elevations whose time ended before an instant; answers how many can still be redeemed.
#[tracing::instrument(name = "db.elevation.purge", skip_all)]
pub async fn purge(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: SessionId,
    now: Time,
    before: Time,
) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"with purged as (
            delete from session.elevations
            where tenant_id = $1 and session_id = $2 and expires_at < $4
        )
        select count(*) as "open!"
        from session.elevations
        where tenant_id = $1 and session_id = $2 and redeemed_at is null and expires_at > $3"#,
        tenant.as_str(),
        id.uuid(),
        now,
        before,
    )
    .fetch_one(db)
    .await
}

/// Adds what a token gives leave for.
#[tracing::instrument(name = "db.elevation.insert", skip_all)]
pub async fn insert(
    db: &mut PgConnection,
    tenant: &TenantId,
    token: &ElevationToken,
    elevation: &Elevation,
) -> sqlx::Result<()> {
    let Elevation { action, digest, expires_at, state: _ } = elevation;
    let hash = token.hash();
    sqlx::query!(
        "insert into session.elevations (tenant_id, session_id, token_hash, action, detail_hash, expires_at)
        values ($1, $2, $3, $4, $5, $6)",
        tenant.as_str(),
        token.session_id().uuid(),
        hash.bytes(),
        action.as_str(),
        digest.bytes(),
        expires_at,
    )
    .execute(db)
    .await
    .map(drop)
}

/// What a token gives leave for.
#[tracing::instrument(name = "db.elevation.find", skip_all)]
pub async fn find(
    db: &mut PgConnection,
    tenant: &TenantId,
    token: &ElevationToken,
) -> sqlx::Result<Option<Elevation>> {
    let (id, hash) = (token.session_id(), token.hash());
    let row = sqlx::query!(
        r#"select action, detail_hash, expires_at, redeemed_at is not null as "is_redeemed!"
        from session.elevations
        where tenant_id = $1 and session_id = $2 and token_hash = $3"#,
        tenant.as_str(),
        id.uuid(),
        hash.bytes(),
    )
    .fetch_optional(db)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let digest = row.detail_hash.try_into().map_err(|_| bad("detail_hash", id))?;
    Ok(Some(Elevation {
        action: row.action.parse().map_err(|_| bad("action", id))?,
        digest: Digest::from_stored(digest),
        expires_at: row.expires_at,
        state: if row.is_redeemed { State::Redeemed } else { State::Granted },
    }))
}

/// Uses a token's leave up; false if it was used or is over. Of any number that try at once, one succeeds.
#[tracing::instrument(name = "db.elevation.redeem", skip_all)]
pub async fn redeem(
    db: &mut PgConnection,
    tenant: &TenantId,
    token: &ElevationToken,
    now: Time,
) -> sqlx::Result<bool> {
    let hash = token.hash();
    let done = sqlx::query!(
        "update session.elevations
        set redeemed_at = $4
        where tenant_id = $1 and session_id = $2 and token_hash = $3 and redeemed_at is null and expires_at > $4",
        tenant.as_str(),
        token.session_id().uuid(),
        hash.bytes(),
        now,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

fn bad(column: &str, id: SessionId) -> sqlx::Error {
    corrupt("elevations", column, &id)
}
