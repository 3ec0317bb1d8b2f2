//! Sessions that end before their time: `revoked_at` and `revoke_reason` of `session.sessions`, written once.

use shared::id::{SessionId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;

use crate::domain::session::{RevokeReason, Session};
use crate::store::lineage;

/// Revokes one that is not; false if it was, or is not there.
#[tracing::instrument(name = "db.revocation.revoke", skip_all)]
pub async fn revoke(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: SessionId,
    at: Time,
    reason: RevokeReason,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update session.sessions
        set revoked_at = $3, revoke_reason = $4
        where tenant_id = $1 and session_id = $2 and revoked_at is null",
        tenant.as_str(),
        id.uuid(),
        at,
        reason.name(),
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Revokes one for a stale token, unless its tokens changed since it was read: then the token may be another kind of stale.
#[tracing::instrument(name = "db.revocation.revoke_stale", skip_all)]
pub async fn revoke_stale(
    db: &mut PgConnection,
    tenant: &TenantId,
    before: &Session,
    at: Time,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update session.sessions
        set revoked_at = $3, revoke_reason = 'STALE_LINEAGE'
        where tenant_id = $1 and session_id = $2 and revoked_at is null
            and token_hash = $4 and lineage is not distinct from $5",
        tenant.as_str(),
        before.id.uuid(),
        at,
        before.lineage.current.bytes(),
        lineage::write(&before.lineage),
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Revokes sessions of a subject, all but one and at most so many; answers those that were not revoked before. Rows are
/// locked in key order.
#[tracing::instrument(name = "db.revocation.revoke_subject", skip_all)]
pub async fn revoke_subject(
    db: &mut PgConnection,
    tenant: &TenantId,
    subject_digest: &[u8; 32],
    except: Option<SessionId>,
    at: Time,
    reason: RevokeReason,
    limit: i64,
) -> sqlx::Result<Vec<SessionId>> {
    let ids = sqlx::query_scalar!(
        "with locked as (
            select session_id
            from session.sessions
            where tenant_id = $1 and subject_digest = $2 and revoked_at is null
                and ($3::uuid is null or session_id <> $3)
            order by session_id
            limit $6
            for update
        )
        update session.sessions session
        set revoked_at = $4, revoke_reason = $5
        from locked
        where session.tenant_id = $1 and session.session_id = locked.session_id
        returning session.session_id",
        tenant.as_str(),
        subject_digest,
        except.map(SessionId::uuid),
        at,
        reason.name(),
        limit,
    )
    .fetch_all(db)
    .await?;
    Ok(ids.into_iter().map(SessionId::from_uuid).collect())
}

/// Every session of a subject that is there.
#[tracing::instrument(name = "db.revocation.ids_of_subject", skip_all)]
pub async fn ids_of_subject(
    db: &mut PgConnection,
    tenant: &TenantId,
    subject_digest: &[u8; 32],
) -> sqlx::Result<Vec<SessionId>> {
    let ids = sqlx::query_scalar!(
        "select session_id from session.sessions where tenant_id = $1 and subject_digest = $2",
        tenant.as_str(),
        subject_digest,
    )
    .fetch_all(db)
    .await?;
    Ok(ids.into_iter().map(SessionId::from_uuid).collect())
}
