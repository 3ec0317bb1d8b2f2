//! Versions that a new one must follow.

use shared::id::{ComponentId, TenantId};
use sqlx::PgConnection;

use crate::domain::version::{Latest, Version};
use crate::store::corrupt;

/// Deployments of the past that are looked at, the newest.
const IMPORTED_MAX: i64 = 10_000;

/// The greatest versions of a component, but for those that were rejected or cancelled: of all, and of the line of
/// `version`. Drafts count where somebody asks for a new version, not where one of them is submitted.
#[tracing::instrument(name = "db.release.latest", skip_all)]
pub async fn latest(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: &ComponentId,
    version: &Version,
    with_drafts: bool,
) -> sqlx::Result<Latest> {
    let row = sqlx::query!(
        r#"with counted as (
            select semver, semver_key
            from release.releases
            where tenant_id = $1 and component = $2
                and state not in ('REJECTED', 'CANCELLED')
                and ($4 or state <> 'DRAFT')
        )
        select
            (select semver from counted where starts_with(semver_key, $3) order by semver_key desc limit 1) as of_line,
            (select semver from counted order by semver_key desc limit 1) as of_all"#,
        tenant.as_str(),
        component.as_str(),
        version.line_key(),
        with_drafts,
    )
    .fetch_one(&mut *db)
    .await?;
    let parse = |text: Option<String>| {
        text.map(|text| text.parse().map_err(|_| corrupt("releases", "semver", component)))
            .transpose()
    };
    Ok(Latest { of_line: parse(row.of_line)?, of_all: parse(row.of_all)? })
}

/// Versions of a component that were deployed before anybody wrote it down here, the newest. The past may have had other
/// names for its versions; those are left out.
#[tracing::instrument(name = "db.release.list_imported", skip_all)]
pub async fn list_imported(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: &ComponentId,
) -> sqlx::Result<Vec<Version>> {
    let imported = sqlx::query_scalar!(
        r#"select data::jsonb ->> 'version' as "version!"
        from release.events
        where tenant_id = $1 and data::jsonb ->> 'component' = $2 and kind = 'history.deployment_imported'
        order by (data::jsonb ->> 'deployed_at') collate "C" desc, event_id desc
        limit $3"#,
        tenant.as_str(),
        component.as_str(),
        IMPORTED_MAX,
    )
    .fetch_all(db)
    .await?;
    Ok(imported.iter().filter_map(|text| text.parse().ok()).collect())
}
