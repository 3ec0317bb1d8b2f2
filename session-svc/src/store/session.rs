//! `session.sessions`.

use shared::id::{SessionId, ShopperId, TenantId, TouchpointId};
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::assurance::{Authentication, Level};
use crate::domain::lineage::Lineage;
use crate::domain::session::{Identity, RevokeReason, Session, State, Subject};
use crate::domain::visit::Visit;
use crate::store::{corrupt, lineage, visit};

pub mod create;

struct Row {
    session_id: Uuid,
    touchpoint_id: String,
    token_hash: Vec<u8>,
    lineage: Option<Vec<u8>>,
    epoch: i32,
    shopper_id: Option<Uuid>,
    subject_issuer: Option<String>,
    subject_sub: Option<String>,
    authenticated_at: Option<Time>,
    assurance_level: Option<i16>,
    acr: Option<String>,
    amr: Option<Vec<String>>,
    upstream_session: Option<String>,
    is_remembered: bool,
    device: Option<String>,
    place: Option<String>,
    created_at: Time,
    last_seen_at: Time,
    absolute_deadline: Time,
    visit_started_at: Time,
    pins: Vec<u8>,
    in_checkout: bool,
    pin_held_until: Option<Time>,
    left_rollout_ids: Option<Vec<Uuid>>,
    revoked_at: Option<Time>,
    revoke_reason: Option<String>,
}

impl Row {
    /// Who is logged in, or that the level is none.
    fn identity(&mut self) -> Result<Option<Identity>, ()> {
        let Some((issuer, sub)) = self.subject_issuer.take().zip(self.subject_sub.take()) else {
            return Ok(None);
        };
        let authentication = Authentication {
            at: self.authenticated_at.unwrap_or(self.created_at),
            level: Level::from_number(self.assurance_level.unwrap_or(1).into()).ok_or(())?,
            acr: self.acr.take(),
            amr: self.amr.take().unwrap_or_default(),
            upstream_session: self.upstream_session.take(),
        };
        Ok(Some(Identity { subject: Subject { issuer, sub }, authentication }))
    }
}

impl TryFrom<Row> for Session {
    type Error = sqlx::Error;

    fn try_from(mut row: Row) -> sqlx::Result<Self> {
        let id = row.session_id;
        let bad = |column| corrupt("sessions", column, &id);
        let state = match (row.revoked_at, row.revoke_reason.as_deref()) {
            (None, None) => State::Open,
            (Some(at), Some(name)) => State::Revoked {
                at,
                reason: RevokeReason::from_name(name).ok_or_else(|| bad("revoke_reason"))?,
            },
            _ => return Err(bad("revoke_reason")),
        };
        Ok(Self {
            id: SessionId::from_uuid(id),
            touchpoint: row.touchpoint_id.parse().map_err(|_| bad("touchpoint_id"))?,
            lineage: lineage::read(&row.token_hash, row.lineage.as_deref()).ok_or_else(|| bad("lineage"))?,
            epoch: row.epoch,
            shopper: row.shopper_id.map(ShopperId::from_uuid),
            identity: row.identity().map_err(|()| bad("assurance_level"))?.map(Box::new),
            is_remembered: row.is_remembered,
            device: row.device,
            place: row.place,
            created_at: row.created_at,
            last_seen_at: row.last_seen_at,
            absolute_deadline: row.absolute_deadline,
            visit: Visit {
                started_at: row.visit_started_at,
                pins: visit::read_pins(&row.pins).ok_or_else(|| bad("pins"))?,
                left: visit::read_left(row.left_rollout_ids),
            },
            in_checkout: row.in_checkout,
            held_until: row.pin_held_until,
            state,
        })
    }
}

/// Finds one.
#[tracing::instrument(name = "db.session.find", skip_all)]
pub async fn find(db: &mut PgConnection, tenant: &TenantId, id: SessionId) -> sqlx::Result<Option<Session>> {
    sqlx::query_as!(
        Row,
        r#"select session_id, touchpoint_id, token_hash, lineage, epoch, shopper_id, subject_issuer, subject_sub,
            authenticated_at, assurance_level, acr, amr, upstream_session, is_remembered, device, place, created_at,
            last_seen_at, absolute_deadline, visit_started_at, pins,
            checkout_cart_ids is not null as "in_checkout!", pin_held_until, left_rollout_ids,
            revoked_at, revoke_reason
        from session.sessions
        where tenant_id = $1 and session_id = $2"#,
        tenant.as_str(),
        id.uuid(),
    )
    .fetch_optional(db)
    .await?
    .map(Session::try_from)
    .transpose()
}

/// A session, and the state of its touchpoint in the same snapshot: what is known of a touchpoint of this state is current.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The session.
    pub session: Session,
    /// Of its touchpoint.
    pub touchpoint_version: i64,
    /// Of its touchpoint.
    pub session_epoch: i32,
}

/// Finds many in one statement; answers in their order.
#[tracing::instrument(name = "db.session.find_many", skip_all, fields(count = keys.len()))]
pub async fn find_many(
    db: &mut PgConnection,
    keys: &[(TenantId, SessionId)],
) -> sqlx::Result<Vec<Option<Loaded>>> {
    let tenants: Vec<_> = keys.iter().map(|(tenant, _)| tenant.to_string()).collect();
    let ids: Vec<_> = keys.iter().map(|(_, id)| id.uuid()).collect();
    let rows = sqlx::query!(
        r#"select position as "position!", session.session_id, session.touchpoint_id, session.token_hash, session.lineage,
            session.epoch, session.shopper_id, session.subject_issuer, session.subject_sub, session.authenticated_at,
            session.assurance_level, session.acr, session.amr, session.upstream_session, session.is_remembered,
            session.device, session.place, session.created_at, session.last_seen_at, session.absolute_deadline,
            session.visit_started_at, session.pins, session.checkout_cart_ids is not null as "in_checkout!",
            session.pin_held_until, session.left_rollout_ids, session.revoked_at, session.revoke_reason, touchpoint.version, touchpoint.session_epoch
        from unnest($1::text[], $2::uuid[]) with ordinality as asked (tenant_id, session_id, position)
        join session.sessions session using (tenant_id, session_id)
        join session.touchpoints touchpoint using (tenant_id, touchpoint_id)"#,
        &tenants,
        &ids,
    )
    .fetch_all(db)
    .await?;
    let mut found = vec![None; keys.len()];
    for row in rows {
        let place = usize::try_from(row.position - 1).ok().and_then(|at| found.get_mut(at));
        let (touchpoint_version, session_epoch) = (row.version, row.session_epoch);
        let row = Row {
            session_id: row.session_id,
            touchpoint_id: row.touchpoint_id,
            token_hash: row.token_hash,
            lineage: row.lineage,
            epoch: row.epoch,
            shopper_id: row.shopper_id,
            subject_issuer: row.subject_issuer,
            subject_sub: row.subject_sub,
            authenticated_at: row.authenticated_at,
            assurance_level: row.assurance_level,
            acr: row.acr,
            amr: row.amr,
            upstream_session: row.upstream_session,
            is_remembered: row.is_remembered,
            device: row.device,
            place: row.place,
            created_at: row.created_at,
            last_seen_at: row.last_seen_at,
            absolute_deadline: row.absolute_deadline,
            visit_started_at: row.visit_started_at,
            pins: row.pins,
            in_checkout: row.in_checkout,
            pin_held_until: row.pin_held_until,
            left_rollout_ids: row.left_rollout_ids,
            revoked_at: row.revoked_at,
            revoke_reason: row.revoke_reason,
        };
        if let Some(place) = place {
            *place = Some(Loaded { session: row.try_into()?, touchpoint_version, session_epoch });
        }
    }
    Ok(found)
}

/// Which sessions to list.
pub struct Filter<'a> {
    /// Of one touchpoint.
    pub touchpoint: Option<&'a TouchpointId>,
    /// Of one subject.
    pub subject_digest: Option<&'a [u8]>,
    /// Only those neither revoked nor past their absolute deadline at this instant.
    pub live_at: Option<Time>,
}

/// Those after an id, oldest first.
#[tracing::instrument(name = "db.session.list", skip_all)]
pub async fn list(
    db: &mut PgConnection,
    tenant: &TenantId,
    filter: &Filter<'_>,
    after: SessionId,
    limit: i64,
) -> sqlx::Result<Vec<Session>> {
    let rows = match filter.subject_digest {
        Some(digest) => list_of_subject(db, tenant, filter, digest, after, limit).await?,
        None => list_of_tenant(db, tenant, filter, after, limit).await?,
    };
    rows.into_iter().map(Session::try_from).collect()
}

/// A subject's, by the index of those.
async fn list_of_subject(
    db: &mut PgConnection,
    tenant: &TenantId,
    filter: &Filter<'_>,
    digest: &[u8],
    after: SessionId,
    limit: i64,
) -> sqlx::Result<Vec<Row>> {
    sqlx::query_as!(
        Row,
        r#"select session_id, touchpoint_id, token_hash, lineage, epoch, shopper_id, subject_issuer, subject_sub,
            authenticated_at, assurance_level, acr, amr, upstream_session, is_remembered, device, place, created_at,
            last_seen_at, absolute_deadline, visit_started_at, pins,
            checkout_cart_ids is not null as "in_checkout!", pin_held_until, left_rollout_ids,
            revoked_at, revoke_reason
        from session.sessions
        where tenant_id = $1
            and session_id > $2
            and ($3::text is null or touchpoint_id = $3)
            and ($4::timestamptz is null or (revoked_at is null and absolute_deadline > $4))
            and subject_digest = $6
        order by session_id
        limit $5"#,
        tenant.as_str(),
        after.uuid(),
        filter.touchpoint.map(TouchpointId::as_str),
        filter.live_at,
        limit,
            digest,
    )
    .fetch_all(db)
    .await
}

/// A tenant's, by the primary key.
async fn list_of_tenant(
    db: &mut PgConnection,
    tenant: &TenantId,
    filter: &Filter<'_>,
    after: SessionId,
    limit: i64,
) -> sqlx::Result<Vec<Row>> {
    sqlx::query_as!(
        Row,
        r#"select session_id, touchpoint_id, token_hash, lineage, epoch, shopper_id, subject_issuer, subject_sub,
            authenticated_at, assurance_level, acr, amr, upstream_session, is_remembered, device, place, created_at,
            last_seen_at, absolute_deadline, visit_started_at, pins,
            checkout_cart_ids is not null as "in_checkout!", pin_held_until, left_rollout_ids,
            revoked_at, revoke_reason
        from session.sessions
        where tenant_id = $1
            and session_id > $2
            and ($3::text is null or touchpoint_id = $3)
            and ($4::timestamptz is null or (revoked_at is null and absolute_deadline > $4))
        order by session_id
        limit $5"#,
        tenant.as_str(),
        after.uuid(),
        filter.touchpoint.map(TouchpointId::as_str),
        filter.live_at,
        limit,
    )
    .fetch_all(db)
    .await
}

/// Writes where a session's tokens stand, unless that changed meanwhile or it was revoked; false then.
#[tracing::instrument(name = "db.session.replace_lineage", skip_all)]
pub async fn replace_lineage(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: SessionId,
    from: &Lineage,
    to: &Lineage,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update session.sessions
        set token_hash = $3, lineage = $4
        where tenant_id = $1 and session_id = $2 and token_hash = $5 and lineage is not distinct from $6
            and revoked_at is null",
        tenant.as_str(),
        id.uuid(),
        to.current.bytes(),
        lineage::write(to),
        from.current.bytes(),
        lineage::write(from),
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Writes who a session is of, its tokens, its shopper and its new absolute deadline, unless its tokens, its subject or its
/// shopper changed since `before` was read, or it was revoked; false then.
#[tracing::instrument(name = "db.session.authenticate", skip_all)]
pub async fn authenticate(
    db: &mut PgConnection,
    tenant: &TenantId,
    before: &Session,
    after: &Session,
    subject_digest: &[u8; 32],
) -> sqlx::Result<bool> {
    let Some(Identity { subject, authentication }) = after.identity.as_deref() else { return Ok(false) };
    let done = sqlx::query!(
        "update session.sessions
        set token_hash = $3, lineage = $4, shopper_id = $5, subject_digest = $6, subject_issuer = $7, subject_sub = $8,
            authenticated_at = $9, assurance_level = $10, acr = $11, amr = $12, upstream_session = $13,
            is_remembered = $14, absolute_deadline = $15, last_seen_at = greatest(last_seen_at, $16)
        where tenant_id = $1 and session_id = $2 and revoked_at is null and token_hash = $17
            and lineage is not distinct from $18 and shopper_id is not distinct from $19
            and (subject_digest is null or subject_digest = $6)",
        tenant.as_str(),
        after.id.uuid(),
        after.lineage.current.bytes(),
        lineage::write(&after.lineage),
        after.shopper.map(ShopperId::uuid),
        subject_digest,
        subject.issuer,
        subject.sub,
        authentication.at,
        authentication.level.number(),
        authentication.acr,
        &authentication.amr,
        authentication.upstream_session,
        after.is_remembered,
        after.absolute_deadline,
        after.last_seen_at,
        before.lineage.current.bytes(),
        lineage::write(&before.lineage),
        before.shopper.map(ShopperId::uuid),
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Locks a session that is of this shopper against having another, and against [`stays_of`]; false if it is not, or not any
/// more.
#[tracing::instrument(name = "db.session.lock_of", skip_all)]
pub async fn lock_of(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: SessionId,
    shopper: ShopperId,
) -> sqlx::Result<bool> {
    let row = sqlx::query_scalar!(
        "select session_id from session.sessions
        where tenant_id = $1 and session_id = $2 and shopper_id = $3
        for update",
        tenant.as_str(),
        id.uuid(),
        shopper.uuid(),
    )
    .fetch_optional(db)
    .await?;
    Ok(row.is_some())
}

/// Whether a session is of this shopper; until the transaction ends, no login takes it to another. Touches and other such
/// changes are not in the way.
#[tracing::instrument(name = "db.session.stays_of", skip_all)]
pub async fn stays_of(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: SessionId,
    shopper: ShopperId,
) -> sqlx::Result<bool> {
    let row = sqlx::query_scalar!(
        "select session_id from session.sessions
        where tenant_id = $1 and session_id = $2 and shopper_id = $3
        for key share",
        tenant.as_str(),
        id.uuid(),
        shopper.uuid(),
    )
    .fetch_optional(db)
    .await?;
    Ok(row.is_some())
}
