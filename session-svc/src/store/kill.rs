//! `session.kills`: releases that are stopped here, and who may still be writing as if they were not.

use std::collections::HashSet;

use shared::id::{ReleaseId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::kill::Kill;
use crate::store::corrupt;

/// More than all tenants together have.
const ALL_MAX: i64 = 100_000;

struct Row {
    tenant_id: String,
    release_id: Uuid,
    component_id: String,
    principal: String,
    reason: String,
    killed_at: Time,
    reported_at: Option<Time>,
}

impl TryFrom<Row> for Kill {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let component = row.component_id.parse();
        Ok(Self {
            component: component.map_err(|_| corrupt("kills", "component_id", &row.release_id))?,
            release: ReleaseId::from_uuid(row.release_id),
            principal: row.principal,
            reason: row.reason,
            at: row.killed_at,
            reported_at: row.reported_at,
        })
    }
}

/// Stops a release; false if it is stopped already.
#[tracing::instrument(name = "db.kill.insert", skip_all)]
pub async fn insert(db: &mut PgConnection, tenant: &TenantId, kill: &Kill) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "insert into session.kills (tenant_id, release_id, component_id, principal, reason, killed_at)
        values ($1, $2, $3, $4, $5, $6)
        on conflict do nothing",
        tenant.as_str(),
        kill.release.uuid(),
        kill.component.as_str(),
        kill.principal,
        kill.reason,
        kill.at,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Finds one.
#[tracing::instrument(name = "db.kill.find", skip_all)]
pub async fn find(
    db: &mut PgConnection,
    tenant: &TenantId,
    release: ReleaseId,
) -> sqlx::Result<Option<Kill>> {
    let row = sqlx::query_as!(
        Row,
        "select tenant_id, release_id, component_id, principal, reason, killed_at, reported_at
        from session.kills
        where tenant_id = $1 and release_id = $2",
        tenant.as_str(),
        release.uuid(),
    )
    .fetch_optional(db)
    .await?;
    row.map(Kill::try_from).transpose()
}

/// How many a tenant has.
#[tracing::instrument(name = "db.kill.count", skip_all)]
pub async fn count(db: &mut PgConnection, tenant: &TenantId) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "count!" from session.kills where tenant_id = $1"#,
        tenant.as_str()
    )
    .fetch_one(db)
    .await
}

/// Takes one back; answers it.
#[tracing::instrument(name = "db.kill.delete", skip_all)]
pub async fn delete(
    db: &mut PgConnection,
    tenant: &TenantId,
    release: ReleaseId,
) -> sqlx::Result<Option<Kill>> {
    let row = sqlx::query_as!(
        Row,
        "delete from session.kills
        where tenant_id = $1 and release_id = $2
        returning tenant_id, release_id, component_id, principal, reason, killed_at, reported_at",
        tenant.as_str(),
        release.uuid(),
    )
    .fetch_optional(db)
    .await?;
    row.map(Kill::try_from).transpose()
}

/// A tenant's after an id, by id.
#[tracing::instrument(name = "db.kill.list", skip_all)]
pub async fn list(
    db: &mut PgConnection,
    tenant: &TenantId,
    after: ReleaseId,
    limit: i64,
) -> sqlx::Result<Vec<Kill>> {
    let rows = sqlx::query_as!(
        Row,
        "select tenant_id, release_id, component_id, principal, reason, killed_at, reported_at
        from session.kills
        where tenant_id = $1 and release_id > $2
        order by release_id
        limit $3",
        tenant.as_str(),
        after.uuid(),
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(Kill::try_from).collect()
}

/// Every release that is stopped, of all tenants.
#[tracing::instrument(name = "db.kill.all", skip_all)]
pub async fn all(db: &mut PgConnection) -> sqlx::Result<HashSet<(TenantId, ReleaseId)>> {
    let rows = sqlx::query!("select tenant_id, release_id from session.kills limit $1", ALL_MAX)
        .fetch_all(db)
        .await?;
    let key = |tenant: String, release: Uuid| {
        let tenant = tenant.parse().map_err(|_| corrupt("kills", "tenant_id", &release))?;
        Ok((tenant, ReleaseId::from_uuid(release)))
    };
    rows.into_iter().map(|row| key(row.tenant_id, row.release_id)).collect()
}

/// Those that release-svc took no note of yet, oldest first, after one of them.
#[tracing::instrument(name = "db.kill.unreported", skip_all)]
pub async fn unreported(
    db: &mut PgConnection,
    after: Option<&(TenantId, Kill)>,
    limit: i64,
) -> sqlx::Result<Vec<(TenantId, Kill)>> {
    let rows = sqlx::query_as!(
        Row,
        "select tenant_id, release_id, component_id, principal, reason, killed_at, reported_at
        from session.kills
        where reported_at is null
            and ($1::timestamptz is null or (killed_at, tenant_id, release_id) > ($1, $2::text, $3::uuid))
        order by killed_at, tenant_id, release_id
        limit $4",
        after.map(|(_, kill)| kill.at),
        after.map(|(tenant, _)| tenant.as_str()),
        after.map(|(_, kill)| kill.release.uuid()),
        limit,
    )
    .fetch_all(db)
    .await?;
    let read = |row: Row| {
        let tenant = row
            .tenant_id
            .parse()
            .map_err(|_| corrupt("kills", "tenant_id", &row.release_id))?;
        Ok((tenant, Kill::try_from(row)?))
    };
    rows.into_iter().map(read).collect()
}

/// release-svc took note of it.
#[tracing::instrument(name = "db.kill.reported", skip_all)]
pub async fn reported(
    db: &mut PgConnection,
    tenant: &TenantId,
    release: ReleaseId,
    now: Time,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update session.kills set reported_at = $3 where tenant_id = $1 and release_id = $2 and reported_at is null",
        tenant.as_str(),
        release.uuid(),
        now,
    )
    .execute(db)
    .await
    .map(drop)
}

/// The transactions that write sessions now. Their statements may have begun before a kill that has just committed, and
/// so not see it; every later one does, as the lock on the table comes before a statement's snapshot.
#[tracing::instrument(name = "db.kill.writers", skip_all)]
pub async fn writers(db: &mut PgConnection) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"select virtualtransaction as "transaction!" from pg_locks
        where relation = 'session.sessions'::regclass and mode = 'RowExclusiveLock' and granted
            and database = (select oid from pg_database where datname = current_database())
        limit 10000"#
    )
    .fetch_all(db)
    .await
}

/// Those of these transactions that still write sessions.
#[tracing::instrument(name = "db.kill.still_writing", skip_all)]
pub async fn still_writing(db: &mut PgConnection, writers: &[String]) -> sqlx::Result<Vec<String>> {
    let writing: HashSet<_> = self::writers(db).await?.into_iter().collect();
    Ok(writers.iter().filter(|writer| writing.contains(*writer)).cloned().collect())
}
