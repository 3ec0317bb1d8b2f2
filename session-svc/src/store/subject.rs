//! `session.subjects`.

use shared::id::{SessionId, ShopperId, TenantId, TouchpointId};
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

/// A known identity, locked.
#[derive(Debug)]
pub struct Known {
    /// Their shopper on every device.
    pub shopper: Option<ShopperId>,
    /// Since when they may have no session.
    pub disabled_at: Option<Time>,
}

struct Row {
    shopper_id: Option<Uuid>,
    disabled_at: Option<Time>,
}

/// Locks a subject, which is made known by that. To be done before its carts and sessions are locked.
#[tracing::instrument(name = "db.subject.lock", skip_all)]
pub async fn lock(
    db: &mut PgConnection,
    tenant: &TenantId,
    digest: &[u8; 32],
    now: Time,
) -> sqlx::Result<Known> {
    let known = sqlx::query_as!(
        Row,
        "select shopper_id, disabled_at from session.subjects where tenant_id = $1 and subject_digest = $2 for update",
        tenant.as_str(),
        digest,
    )
    .fetch_optional(&mut *db)
    .await?;
    // The update that changes nothing takes the lock, and answers the row whoever made it.
    let row = match known {
        Some(row) => row,
        None => {
            sqlx::query_as!(
                Row,
                "insert into session.subjects (tenant_id, subject_digest, created_at)
                values ($1, $2, $3)
                on conflict (tenant_id, subject_digest) do update set created_at = session.subjects.created_at
                returning shopper_id, disabled_at",
                tenant.as_str(),
                digest,
                now,
            )
            .fetch_one(db)
            .await?
        }
    };
    Ok(Known { shopper: row.shopper_id.map(ShopperId::from_uuid), disabled_at: row.disabled_at })
}

/// Gives a locked subject its shopper.
#[tracing::instrument(name = "db.subject.set_shopper", skip_all)]
pub async fn set_shopper(
    db: &mut PgConnection,
    tenant: &TenantId,
    digest: &[u8; 32],
    shopper: ShopperId,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update session.subjects set shopper_id = $3
        where tenant_id = $1 and subject_digest = $2 and shopper_id is null",
        tenant.as_str(),
        digest,
        shopper.uuid(),
    )
    .execute(db)
    .await
    .map(drop)
}

/// Which of these shoppers are subjects'.
#[tracing::instrument(name = "db.subject.owned", skip_all, fields(count = shoppers.len()))]
pub async fn owned(
    db: &mut PgConnection,
    shoppers: &[(&TenantId, ShopperId)],
) -> sqlx::Result<Vec<ShopperId>> {
    sqlx::query_scalar!(
        r#"select distinct subject.shopper_id as "shopper_id!: ShopperId"
        from unnest($1::text[], $2::uuid[]) as shopper (tenant_id, shopper_id)
        join session.subjects subject using (tenant_id, shopper_id)"#,
        &shoppers.iter().map(|(tenant, _)| tenant.to_string()).collect::<Vec<_>>(),
        &shoppers.iter().map(|(_, shopper)| shopper.uuid()).collect::<Vec<_>>(),
    )
    .fetch_all(db)
    .await
}

/// Disables or enables a locked subject.
#[tracing::instrument(name = "db.subject.set_disabled", skip_all)]
pub async fn set_disabled(
    db: &mut PgConnection,
    tenant: &TenantId,
    digest: &[u8; 32],
    disabled_at: Option<Time>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update session.subjects set disabled_at = $3 where tenant_id = $1 and subject_digest = $2",
        tenant.as_str(),
        digest,
        disabled_at,
    )
    .execute(db)
    .await
    .map(drop)
}

/// Which of a subject's sessions at a touchpoint live.
pub struct Living<'a> {
    /// Where.
    pub touchpoint: &'a TouchpointId,
    /// Those of a lower epoch are revoked.
    pub epoch: i32,
    /// Seen after this instant, where they are not to be remembered.
    pub seen_after: Time,
    /// Seen after this instant, where they are.
    pub remembered_seen_after: Time,
    /// Not past their absolute deadline at this instant.
    pub now: Time,
}

/// A locked subject's live sessions at a touchpoint, and when each was seen as far as that is written.
#[tracing::instrument(name = "db.subject.live_sessions", skip_all)]
pub async fn live_sessions(
    db: &mut PgConnection,
    tenant: &TenantId,
    digest: &[u8; 32],
    living: &Living<'_>,
) -> sqlx::Result<Vec<(SessionId, Time)>> {
    let rows = sqlx::query!(
        "select session_id, last_seen_at
        from session.sessions
        where tenant_id = $1 and subject_digest = $2 and touchpoint_id = $3 and revoked_at is null and epoch >= $4
            and absolute_deadline > $5 and last_seen_at > case when is_remembered then $6::timestamptz else $7 end",
        tenant.as_str(),
        digest,
        living.touchpoint.as_str(),
        living.epoch,
        living.now,
        living.remembered_seen_after,
        living.seen_after,
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (SessionId::from_uuid(row.session_id), row.last_seen_at))
        .collect())
}
