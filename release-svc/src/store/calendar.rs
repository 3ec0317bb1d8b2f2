//! Each tenant's calendar: the row whose lock keeps windows, overrides and the line as they are while somebody decides by
//! them, and the switch that stops the line.

use shared::id::TenantId;
use shared::time::Time;
use sqlx::PgConnection;

use crate::domain::window::Stop;

struct StopRow {
    stopped_at: Option<Time>,
    stopper: Option<String>,
    stop_reason: Option<String>,
}

impl StopRow {
    fn stop(self) -> Option<Stop> {
        let (at, stopper, reason) = (self.stopped_at?, self.stopper?, self.stop_reason?);
        Some(Stop { at, stopper, reason })
    }
}

/// Locks the tenant's calendar for a change of its windows, overrides or line, as soon as nobody shares it. Answers whether
/// the line is stopped.
#[tracing::instrument(name = "db.calendar.lock", skip_all)]
pub async fn lock(db: &mut PgConnection, tenant: &TenantId) -> sqlx::Result<Option<Stop>> {
    let row = sqlx::query_as!(
        StopRow,
        "insert into release.calendars as calendar (tenant_id, version)
        values ($1, 1)
        on conflict (tenant_id) do update set version = calendar.version + 1
        returning stopped_at, stopper, stop_reason",
        tenant.as_str(),
    )
    .fetch_one(db)
    .await?;
    Ok(row.stop())
}

/// Keeps the tenant's windows, overrides and line as they are until the end of the transaction. Answers whether the line is
/// stopped.
#[tracing::instrument(name = "db.calendar.share", skip_all)]
pub async fn share(db: &mut PgConnection, tenant: &TenantId) -> sqlx::Result<Option<Stop>> {
    // Twice at most: a tenant's first time there is nothing to lock.
    loop {
        let row = sqlx::query_as!(
            StopRow,
            "select stopped_at, stopper, stop_reason
            from release.calendars
            where tenant_id = $1
            for share",
            tenant.as_str(),
        )
        .fetch_optional(&mut *db)
        .await?;
        if let Some(row) = row {
            return Ok(row.stop());
        }
        sqlx::query!(
            "insert into release.calendars (tenant_id, version)
            values ($1, 0)
            on conflict (tenant_id) do nothing",
            tenant.as_str(),
        )
        .execute(&mut *db)
        .await?;
    }
}

/// Whether the line is stopped.
#[tracing::instrument(name = "db.calendar.find", skip_all)]
pub async fn find_stop(db: &mut PgConnection, tenant: &TenantId) -> sqlx::Result<Option<Stop>> {
    let row = sqlx::query_as!(
        StopRow,
        "select stopped_at, stopper, stop_reason
        from release.calendars
        where tenant_id = $1",
        tenant.as_str(),
    )
    .fetch_optional(db)
    .await?;
    Ok(row.and_then(StopRow::stop))
}

/// Stops the line, or resumes it. The caller has locked the calendar.
#[tracing::instrument(name = "db.calendar.update", skip_all)]
pub async fn update_stop(db: &mut PgConnection, tenant: &TenantId, stop: Option<&Stop>) -> sqlx::Result<()> {
    sqlx::query!(
        "update release.calendars
        set stopped_at = $2, stopper = $3, stop_reason = $4
        where tenant_id = $1",
        tenant.as_str(),
        stop.map(|stop| stop.at),
        stop.map(|stop| stop.stopper.as_str()),
        stop.map(|stop| stop.reason.as_str()),
    )
    .execute(db)
    .await?;
    Ok(())
}
