//! `session.routes` and `session.route_table`: the last routes that release-svc told of.

use shared::id::{ComponentId, EnvironmentId, ReleaseId, RolloutId, TenantId};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::visit::{Release, Rollout, Route};
use crate::store::corrupt;

struct Row {
    tenant_id: String,
    component_id: String,
    revision: i64,
    stable_release_id: Option<Uuid>,
    stable_version: Option<String>,
    rollout_id: Option<Uuid>,
    canary_release_id: Option<Uuid>,
    canary_version: Option<String>,
    exposure_bps: i32,
    salt: String,
    is_all_sessions: bool,
    withdrawn_release_ids: Vec<Uuid>,
    ended_release_ids: Vec<Uuid>,
    step: i32,
    guards: Vec<String>,
}

/// Routes as they were kept, and the epoch of their revisions.
pub struct Kept {
    /// Of release-svc's database.
    pub epoch: String,
    /// Of all tenants.
    pub routes: Vec<(TenantId, ComponentId, Route)>,
}

/// Every route, with the epoch that their revisions are of; `None` if there never was a table of this environment.
#[tracing::instrument(name = "db.route.load", skip_all)]
pub async fn load(db: &mut PgConnection, environment: &EnvironmentId) -> sqlx::Result<Option<Kept>> {
    let epoch = sqlx::query_scalar!(
        "select table_epoch from session.route_table where environment_id = $1",
        environment.as_str()
    )
    .fetch_optional(&mut *db)
    .await?;
    let Some(epoch) = epoch else { return Ok(None) };
    let rows = sqlx::query_as!(
        Row,
        "select tenant_id, component_id, revision, stable_release_id, stable_version, rollout_id, canary_release_id,
            canary_version, exposure_bps, salt, is_all_sessions, withdrawn_release_ids, ended_release_ids, step, guards
        from session.routes"
    )
    .fetch_all(db)
    .await?;
    Ok(Some(Kept { epoch, routes: rows.into_iter().map(read).collect::<sqlx::Result<_>>()? }))
}

/// Begins a table: forgets what was known of another environment or epoch.
#[tracing::instrument(name = "db.route.begin", skip_all)]
pub async fn begin(db: &mut PgConnection, environment: &EnvironmentId, epoch: &str) -> sqlx::Result<()> {
    let known = sqlx::query!(
        "select 1 as known from session.route_table where environment_id = $1 and table_epoch = $2",
        environment.as_str(),
        epoch,
    )
    .fetch_optional(&mut *db)
    .await?;
    if known.is_none() {
        sqlx::query!("delete from session.routes").execute(&mut *db).await?;
        sqlx::query!("delete from session.route_table").execute(&mut *db).await?;
        sqlx::query!(
            "insert into session.route_table (environment_id, table_epoch) values ($1, $2)
            on conflict (environment_id) do update set table_epoch = excluded.table_epoch",
            environment.as_str(),
            epoch,
        )
        .execute(db)
        .await?;
    }
    Ok(())
}

/// Forgets the routes of a table that are not among these.
#[tracing::instrument(name = "db.route.retain", skip_all)]
pub async fn retain(db: &mut PgConnection, keys: &[(TenantId, ComponentId)]) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from session.routes route
        where not exists (
            select from unnest($1::text[], $2::text[]) as kept (tenant_id, component_id)
            where kept.tenant_id = route.tenant_id and kept.component_id = route.component_id
        )",
        &keys.iter().map(|(tenant, _)| tenant.to_string()).collect::<Vec<_>>(),
        &keys.iter().map(|(_, component)| component.to_string()).collect::<Vec<_>>(),
    )
    .execute(db)
    .await
    .map(drop)
}

/// Keeps a route unless a later revision is kept already; the same one again, as an earlier build may have kept less of it.
#[tracing::instrument(name = "db.route.save", skip_all)]
pub async fn save(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: &ComponentId,
    route: &Route,
) -> sqlx::Result<()> {
    let rollout = route.rollout.as_ref();
    let ids = |releases: &[ReleaseId]| releases.iter().map(|id| id.uuid()).collect::<Vec<_>>();
    sqlx::query!(
        "insert into session.routes (tenant_id, component_id, revision, stable_release_id, stable_version, rollout_id,
            canary_release_id, canary_version, exposure_bps, salt, is_all_sessions, withdrawn_release_ids,
            ended_release_ids, step, guards)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
        on conflict (tenant_id, component_id) do update
        set revision = excluded.revision, stable_release_id = excluded.stable_release_id,
            stable_version = excluded.stable_version, rollout_id = excluded.rollout_id,
            canary_release_id = excluded.canary_release_id, canary_version = excluded.canary_version,
            exposure_bps = excluded.exposure_bps, salt = excluded.salt, is_all_sessions = excluded.is_all_sessions,
            withdrawn_release_ids = excluded.withdrawn_release_ids, ended_release_ids = excluded.ended_release_ids,
            step = excluded.step, guards = excluded.guards
        where session.routes.revision <= excluded.revision",
        tenant.as_str(),
        component.as_str(),
        route.revision,
        route.stable.as_ref().map(|stable| stable.id.uuid()),
        route.stable.as_ref().map(|stable| stable.version.as_str()),
        rollout.map(|rollout| rollout.id.uuid()),
        rollout.map(|rollout| rollout.release.id.uuid()),
        rollout.map(|rollout| rollout.release.version.as_str()),
        rollout.map_or(0, |rollout| i32::try_from(rollout.exposure_bps).unwrap_or(0)),
        rollout.map_or("", |rollout| rollout.salt.as_str()),
        rollout.is_some_and(|rollout| rollout.is_all_sessions),
        &ids(&route.withdrawn),
        &ids(&route.ended),
        rollout.map_or(0, |rollout| rollout.step),
        rollout.map_or(&[][..], |rollout| &rollout.guards),
    )
    .execute(db)
    .await
    .map(drop)
}

fn read(row: Row) -> sqlx::Result<(TenantId, ComponentId, Route)> {
    let bad = |column| corrupt("routes", column, &row.component_id);
    let release = |id: Option<Uuid>, version: Option<String>| {
        id.zip(version)
            .map(|(id, version)| Release { id: ReleaseId::from_uuid(id), version })
    };
    let exposure_bps = u32::try_from(row.exposure_bps).map_err(|_| bad("exposure_bps"))?;
    let rollout = match (row.rollout_id, release(row.canary_release_id, row.canary_version)) {
        (Some(id), Some(release)) => Some(Rollout {
            id: RolloutId::from_uuid(id),
            release,
            exposure_bps,
            salt: row.salt,
            is_all_sessions: row.is_all_sessions,
            step: row.step,
            guards: row.guards,
        }),
        (None, None) => None,
        _ => return Err(bad("rollout_id")),
    };
    let ids = |ids: Vec<Uuid>| ids.into_iter().map(ReleaseId::from_uuid).collect();
    let route = Route {
        revision: row.revision,
        stable: release(row.stable_release_id, row.stable_version),
        rollout,
        withdrawn: ids(row.withdrawn_release_ids),
        ended: ids(row.ended_release_ids),
    };
    let tenant = row.tenant_id.parse().map_err(|_| bad("tenant_id"))?;
    Ok((tenant, row.component_id.parse().map_err(|_| bad("component_id"))?, route))
}
