//! Overrides of windows. Whoever writes one has locked the tenant's calendar.

use shared::id::{ReleaseId, TenantId, WindowId, WindowOverrideId};
use shared::time::Time;
use sqlx::PgConnection;

use super::corrupt;
use crate::domain::window::{Ending, Override, OverrideSubject, Span};

/// Constraints that callers' input may break.
pub const COMPONENT_KEY: &str = "window_overrides_component_fkey";
pub const ENVIRONMENT_KEY: &str = "window_overrides_environment_fkey";
pub const RELEASE_KEY: &str = "window_overrides_release_fkey";
/// Overrides that count at a time at most; the newest do.
const LIVE_MAX: i64 = 1000;

#[tracing::instrument(name = "db.window_override.insert", skip_all)]
pub async fn insert(db: &mut PgConnection, tenant: &TenantId, lifted: &Override) -> sqlx::Result<()> {
    let Override { id, window, subject, reason, creator, span, ending: _ } = lifted;
    let (component, environment, release) = match subject {
        OverrideSubject::Place { component, environment } => (Some(component), Some(environment), None),
        OverrideSubject::Release(release) => (None, None, Some(release.uuid())),
    };
    sqlx::query!(
        "insert into release.window_overrides
            (tenant_id, window_override_id, window_id, component, environment, release_id, reason, creator, created_at,
            ends_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        tenant.as_str(),
        id.uuid(),
        window.uuid(),
        component,
        environment,
        release,
        reason,
        creator,
        span.start,
        span.end,
    )
    .execute(db)
    .await?;
    Ok(())
}

struct Row {
    window_override_id: WindowOverrideId,
    window_id: WindowId,
    component: Option<String>,
    environment: Option<String>,
    release_id: Option<ReleaseId>,
    reason: String,
    creator: String,
    created_at: Time,
    ends_at: Time,
    ender: Option<String>,
    end_reason: Option<String>,
}

impl TryFrom<Row> for Override {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let subject = match (row.component.zip(row.environment), row.release_id) {
            (Some((component, environment)), None) => OverrideSubject::Place { component, environment },
            (None, Some(release)) => OverrideSubject::Release(release),
            _ => return Err(corrupt("window_overrides", "release_id", &row.window_override_id)),
        };
        Ok(Self {
            id: row.window_override_id,
            window: row.window_id,
            subject,
            reason: row.reason,
            creator: row.creator,
            span: Span { start: row.created_at, end: row.ends_at },
            ending: row.ender.zip(row.end_reason).map(|(ender, reason)| Ending { ender, reason }),
        })
    }
}

/// Those that count at `at`, newest first.
#[tracing::instrument(name = "db.window_override.list_live", skip_all)]
pub async fn list_live(db: &mut PgConnection, tenant: &TenantId, at: Time) -> sqlx::Result<Vec<Override>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select window_override_id as "window_override_id: WindowOverrideId", window_id as "window_id: WindowId",
            component, environment, release_id as "release_id: ReleaseId", reason, creator, created_at, ends_at,
            ender, end_reason
        from release.window_overrides
        where tenant_id = $1 and created_at <= $2 and ends_at > $2
        order by window_override_id desc
        limit $3"#,
        tenant.as_str(),
        at,
        LIVE_MAX,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Newest first, beginning before `before`: of one window or of all, and those only that end after an instant if one is
/// given.
#[tracing::instrument(name = "db.window_override.list", skip_all)]
pub async fn list(
    db: &mut PgConnection,
    tenant: &TenantId,
    window: Option<WindowId>,
    ending_after: Option<Time>,
    before: Option<WindowOverrideId>,
    limit: i64,
) -> sqlx::Result<Vec<Override>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select window_override_id as "window_override_id: WindowOverrideId", window_id as "window_id: WindowId",
            component, environment, release_id as "release_id: ReleaseId", reason, creator, created_at, ends_at,
            ender, end_reason
        from release.window_overrides
        where tenant_id = $1 and ($2::uuid is null or window_id = $2) and ($3::timestamptz is null or ends_at > $3)
            and ($4::uuid is null or window_override_id < $4)
        order by window_override_id desc
        limit $5"#,
        tenant.as_str(),
        window.map(WindowId::uuid),
        ending_after,
        before.map(WindowOverrideId::uuid),
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

#[tracing::instrument(name = "db.window_override.find", skip_all)]
pub async fn find(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: WindowOverrideId,
) -> sqlx::Result<Option<Override>> {
    let row = sqlx::query_as!(
        Row,
        r#"select window_override_id as "window_override_id: WindowOverrideId", window_id as "window_id: WindowId",
            component, environment, release_id as "release_id: ReleaseId", reason, creator, created_at, ends_at,
            ender, end_reason
        from release.window_overrides
        where tenant_id = $1 and window_override_id = $2"#,
        tenant.as_str(),
        id.uuid(),
    )
    .fetch_optional(db)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// Writes that somebody took it back, if it ends earlier than it did.
#[tracing::instrument(name = "db.window_override.end", skip_all)]
pub async fn end(
    db: &mut PgConnection,
    tenant: &TenantId,
    lifted: &Override,
    ending: &Ending,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update release.window_overrides
        set ends_at = $3, ender = $4, end_reason = $5
        where tenant_id = $1 and window_override_id = $2 and ends_at > $3",
        tenant.as_str(),
        lifted.id.uuid(),
        lifted.span.end,
        ending.ender,
        ending.reason,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}
