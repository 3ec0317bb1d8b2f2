//! The walk over all sessions that takes out those long dead. Only one replica walks at a time, in key order and small
//! steps; where it is stands in the database, so that the next one goes on from there.

use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

/// Where the walk is.
#[derive(Debug, Clone)]
pub struct Position {
    /// The last tenant seen; empty at the start.
    pub tenant: String,
    /// Its last session seen.
    pub session: Uuid,
    /// When this walk began.
    pub began_at: Time,
}

/// What one step of the walk did.
#[derive(Debug)]
pub struct Step {
    /// Sessions deleted.
    pub deleted: u64,
    /// Where it got to; none at the end.
    pub reached: Option<(String, Uuid)>,
}

/// When a walk last reached the end.
#[tracing::instrument(name = "db.purge.completed_at", skip_all)]
pub async fn completed_at(db: &mut PgConnection) -> sqlx::Result<Option<Time>> {
    let found = sqlx::query_scalar!("select completed_at from session.purge_walk")
        .fetch_optional(db)
        .await?;
    Ok(found.flatten())
}

/// Takes the walk up; `None` while another replica has it.
#[tracing::instrument(name = "db.purge.lock", skip_all)]
pub async fn lock(db: &mut PgConnection, now: Time) -> sqlx::Result<Option<Position>> {
    sqlx::query!(
        "insert into session.purge_walk (tenant_id, session_id, began_at) values ('', $1, $2) on conflict do nothing",
        Uuid::nil(),
        now,
    )
    .execute(&mut *db)
    .await?;
    sqlx::query_as!(
        Position,
        "select tenant_id as tenant, session_id as session, began_at
        from session.purge_walk
        for update skip locked",
    )
    .fetch_optional(db)
    .await
}

/// Looks at the next sessions, and deletes those that ended before `before`, with what belongs to them. A session that
/// somebody holds is left for the next walk.
#[tracing::instrument(name = "db.purge.step", skip_all)]
pub async fn step(
    db: &mut PgConnection,
    position: &Position,
    before: Time,
    limit: i64,
) -> sqlx::Result<Step> {
    let row = sqlx::query!(
        r#"with page as materialized (
            select tenant_id, session_id
            from session.sessions
            where (tenant_id, session_id) > ($1, $2)
            order by tenant_id, session_id
            limit $3
        ), dead as materialized (
            select session.tenant_id, session.session_id
            from page
            join session.sessions session using (tenant_id, session_id)
            join session.touchpoints touchpoint using (tenant_id, touchpoint_id)
            where session.revoked_at < $4
                or session.absolute_deadline < $4
                or session.epoch < touchpoint.session_epoch and touchpoint.sessions_revoked_at < $4
                or session.last_seen_at < $4::timestamptz - make_interval(secs => 1 + case
                    when session.is_remembered
                    then coalesce(touchpoint.remember_idle_timeout_secs, touchpoint.idle_timeout_secs)
                    else touchpoint.idle_timeout_secs end)
            order by session.tenant_id, session.session_id
            for update of session skip locked
        ), attributes as (
            delete from session.attributes attribute using dead
            where attribute.tenant_id = dead.tenant_id and attribute.session_id = dead.session_id
        ), elevations as (
            delete from session.elevations elevation using dead
            where elevation.tenant_id = dead.tenant_id and elevation.session_id = dead.session_id
        ), enrolments as (
            delete from session.enrolments enrolment using dead
            where enrolment.tenant_id = dead.tenant_id and enrolment.session_id = dead.session_id
        ), redeals as (
            delete from session.redeals redeal using dead
            where redeal.tenant_id = dead.tenant_id and redeal.session_id = dead.session_id
        ), outcomes as (
            delete from session.outcomes outcome using dead
            where outcome.tenant_id = dead.tenant_id and outcome.session_id = dead.session_id
        ), deleted as (
            delete from session.sessions session using dead
            where session.tenant_id = dead.tenant_id and session.session_id = dead.session_id
            returning 1
        ), reached as (
            select tenant_id, session_id from page order by tenant_id desc, session_id desc limit 1
        )
        select (select count(*) from deleted) as "deleted!", (select count(*) from page) as "seen!",
            (select tenant_id from reached) as tenant_id, (select session_id from reached) as session_id"#,
        position.tenant,
        position.session,
        limit,
        before,
    )
    .fetch_one(db)
    .await?;
    let reached = row.tenant_id.zip(row.session_id).filter(|_| row.seen == limit);
    Ok(Step { deleted: row.deleted.unsigned_abs(), reached })
}

/// Leaves the walk where it got to.
#[tracing::instrument(name = "db.purge.advance", skip_all)]
pub async fn advance(db: &mut PgConnection, tenant: &str, session: Uuid) -> sqlx::Result<()> {
    sqlx::query!("update session.purge_walk set tenant_id = $1, session_id = $2", tenant, session)
        .execute(db)
        .await
        .map(drop)
}

/// The walk reached the end; the next one begins at the start, not before `next_at`.
#[tracing::instrument(name = "db.purge.complete", skip_all)]
pub async fn complete(db: &mut PgConnection, now: Time, next_at: Time) -> sqlx::Result<()> {
    sqlx::query!(
        "update session.purge_walk set tenant_id = '', session_id = $1, began_at = $2, completed_at = $3",
        Uuid::nil(),
        next_at,
        now,
    )
    .execute(db)
    .await
    .map(drop)
}

/// Deletes ID tokens that nobody would take any more; says how many.
#[tracing::instrument(name = "db.purge.id_tokens", skip_all)]
pub async fn id_tokens(db: &mut PgConnection, before: Time, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query!(
        "delete from session.id_tokens
        where (tenant_id, digest) in (
            select tenant_id, digest from session.id_tokens
            where expires_at < $1
            order by expires_at
            limit $2
            for update skip locked
        )",
        before,
        limit,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}
