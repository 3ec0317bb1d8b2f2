//! SQL of the audit trail. It is written by `release.link_event`, as transactions that tell of something commit.

use shared::id::TenantId;
use shared::time::Time;
use sqlx::PgConnection;

use crate::domain::audit::{Entry, Extent, Hash, Link, NOTHING};

/// What a list is narrowed to; what is empty or absent narrows nothing.
#[derive(Debug, Default)]
pub struct Filter {
    pub subject: Option<String>,
    pub kinds: Vec<String>,
    pub principal: Option<String>,
    pub verdict: Option<&'static str>,
    pub from: Option<Time>,
    pub before: Option<Time>,
}

/// Events with smaller numbers than `before`, newest first.
#[tracing::instrument(name = "db.audit.list", skip_all)]
pub async fn list(
    db: &mut PgConnection,
    tenant: &TenantId,
    filter: &Filter,
    before: i64,
    limit: i64,
) -> sqlx::Result<Vec<Entry>> {
    sqlx::query_as!(
        Entry,
        r#"select seq as "seq!", kind, subject, principal, occurred_at as at, verdict as "verdict!", trace_parent, data,
            record as "record!", hash as "hash!"
        from release.events
        where tenant_id = $1
            and seq < $2
            and ($3::text is null or subject = $3)
            and (cardinality($4::text[]) = 0 or kind = any($4))
            and ($5::text is null or principal = $5)
            and ($6::text is null or verdict = $6)
            and ($7::timestamptz is null or occurred_at >= $7)
            and ($8::timestamptz is null or occurred_at < $8)
        order by seq desc
        limit $9"#,
        tenant.as_str(),
        before,
        filter.subject,
        &filter.kinds,
        filter.principal,
        filter.verdict,
        filter.from,
        filter.before,
        limit,
    )
    .fetch_all(db)
    .await
}

/// What the transaction reads from now on is of one moment, so that neither a commit nor the purge comes between.
#[tracing::instrument(name = "db.audit.hold_still", skip_all)]
pub async fn hold_still(db: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!("set transaction isolation level repeatable read, read only")
        .execute(db)
        .await
        .map(drop)
}

/// Where the trail begins and ends.
#[tracing::instrument(name = "db.audit.extent", skip_all)]
pub async fn extent(db: &mut PgConnection, tenant: &TenantId) -> sqlx::Result<Extent> {
    let row = sqlx::query!(
        "select seq, hash, purged_seq, purged_hash from release.audit_heads where tenant_id = $1",
        tenant.as_str(),
    )
    .fetch_optional(db)
    .await?;
    let nothing = Link { seq: 0, hash: NOTHING };
    let Some(row) = row else { return Ok(Extent { purged: nothing, head: nothing }) };
    Ok(Extent {
        purged: Link { seq: row.purged_seq, hash: whole(&row.purged_hash)? },
        head: Link { seq: row.seq, hash: whole(&row.hash)? },
    })
}

/// The hash that an event bears.
#[tracing::instrument(name = "db.audit.find_hash", skip_all)]
pub async fn find_hash(db: &mut PgConnection, tenant: &TenantId, seq: i64) -> sqlx::Result<Option<Vec<u8>>> {
    sqlx::query_scalar!(
        r#"select hash as "hash!" from release.events where tenant_id = $1 and seq = $2"#,
        tenant.as_str(),
        seq,
    )
    .fetch_optional(db)
    .await
}

/// Whether there are events outside of a trail: beyond its end, before its beginning, or without a place in it.
#[tracing::instrument(name = "db.audit.has_strays", skip_all)]
pub async fn has_strays(db: &mut PgConnection, tenant: &TenantId, extent: &Extent) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (select from release.events where tenant_id = $1 and seq > $2)
            or exists (select from release.events where tenant_id = $1 and seq <= $3)
            or exists (select from release.events where tenant_id = $1 and seq is null) as "has_strays!""#,
        tenant.as_str(),
        extent.head.seq,
        extent.purged.seq,
    )
    .fetch_one(db)
    .await
}

/// Events from one number to another, oldest first.
#[tracing::instrument(name = "db.audit.list_from", skip_all)]
pub async fn list_from(
    db: &mut PgConnection,
    tenant: &TenantId,
    from: i64,
    to: i64,
    limit: i64,
) -> sqlx::Result<Vec<Entry>> {
    sqlx::query_as!(
        Entry,
        r#"select seq as "seq!", kind, subject, principal, occurred_at as at, verdict as "verdict!", trace_parent, data,
            record as "record!", hash as "hash!"
        from release.events
        where tenant_id = $1 and seq between $2 and $3
        order by seq
        limit $4"#,
        tenant.as_str(),
        from,
        to,
        limit,
    )
    .fetch_all(db)
    .await
}

fn whole(hash: &[u8]) -> sqlx::Result<Hash> {
    hash.try_into()
        .map_err(|_| sqlx::Error::Decode("audit_heads: a hash is not 32 bytes".into()))
}
