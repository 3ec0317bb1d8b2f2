//! `session.sessions`.

use prost::Message as _;
use shared::id::{CartId, ReleaseId, RolloutId, SessionId, TenantId, TouchpointId};
use shared::pb::storage;
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::session::{RevokeReason, Session, State, Subject};
use crate::domain::token::TokenHash;
use crate::domain::visit::{Arm, Pin, Pins, Release, Visit};
use crate::store::corrupt;

struct Row {
    session_id: Uuid,
    touchpoint_id: String,
    token_hash: Vec<u8>,
    shopper_id: Option<Uuid>,
    subject_issuer: Option<String>,
    subject_sub: Option<String>,
    device: Option<String>,
    created_at: Time,
    last_seen_at: Time,
    absolute_deadline: Time,
    visit_started_at: Time,
    pins: Vec<u8>,
    in_checkout: bool,
    revoked_at: Option<Time>,
    revoke_reason: Option<String>,
}

impl TryFrom<Row> for Session {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let bad = |column| corrupt("sessions", column, &row.session_id);
        let state = match (row.revoked_at, row.revoke_reason.as_deref()) {
            (None, None) => State::Open,
            (Some(at), Some("LOGOUT")) => State::Revoked { at, reason: RevokeReason::Logout },
            (Some(at), Some("ADMIN")) => State::Revoked { at, reason: RevokeReason::Admin },
            (Some(at), Some("COMPROMISED")) => State::Revoked { at, reason: RevokeReason::Compromised },
            _ => return Err(bad("revoke_reason")),
        };
        let token_hash: [u8; 32] = row.token_hash.as_slice().try_into().map_err(|_| bad("token_hash"))?;
        let subject = row
            .subject_issuer
            .zip(row.subject_sub)
            .map(|(issuer, sub)| Subject { issuer, sub });
        Ok(Self {
            id: SessionId::from_uuid(row.session_id),
            touchpoint: row.touchpoint_id.parse().map_err(|_| bad("touchpoint_id"))?,
            token_hash: TokenHash::from_stored(token_hash),
            shopper: row.shopper_id.map(shared::id::ShopperId::from_uuid),
            subject,
            device: row.device,
            created_at: row.created_at,
            last_seen_at: row.last_seen_at,
            absolute_deadline: row.absolute_deadline,
            visit: Visit {
                started_at: row.visit_started_at,
                pins: read_pins(&row.pins).ok_or_else(|| bad("pins"))?,
            },
            in_checkout: row.in_checkout,
            state,
        })
    }
}

/// Finds one.
#[tracing::instrument(name = "db.session.find", skip_all)]
pub async fn find(db: &mut PgConnection, tenant: &TenantId, id: SessionId) -> sqlx::Result<Option<Session>> {
    sqlx::query_as!(
        Row,
        r#"select session_id, touchpoint_id, token_hash, shopper_id, subject_issuer, subject_sub, device, created_at,
            last_seen_at, absolute_deadline, visit_started_at, pins,
            checkout_cart_ids is not null as "in_checkout!", revoked_at, revoke_reason
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
    let rows = sqlx::query_as!(
        Row,
        r#"select session_id, touchpoint_id, token_hash, shopper_id, subject_issuer, subject_sub, device, created_at,
            last_seen_at, absolute_deadline, visit_started_at, pins,
            checkout_cart_ids is not null as "in_checkout!", revoked_at, revoke_reason
        from session.sessions
        where tenant_id = $1
            and session_id > $2
            and ($3::text is null or touchpoint_id = $3)
            and ($4::bytea is null or subject_digest = $4)
            and ($5::timestamptz is null or (revoked_at is null and absolute_deadline > $5))
        order by session_id
        limit $6"#,
        tenant.as_str(),
        after.uuid(),
        filter.touchpoint.map(TouchpointId::as_str),
        filter.subject_digest,
        filter.live_at,
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(Session::try_from).collect()
}

/// Adds one.
#[tracing::instrument(name = "db.session.insert", skip_all)]
pub async fn insert(
    db: &mut PgConnection,
    tenant: &TenantId,
    session: &Session,
    subject_digest: Option<&[u8]>,
) -> sqlx::Result<()> {
    let subject = session.subject.as_ref();
    sqlx::query!(
        "insert into session.sessions (tenant_id, session_id, touchpoint_id, token_hash, shopper_id, subject_digest,
            subject_issuer, subject_sub, device, created_at, last_seen_at, absolute_deadline, visit_started_at, pins)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        tenant.as_str(),
        session.id.uuid(),
        session.touchpoint.as_str(),
        session.token_hash.bytes(),
        session.shopper.map(shared::id::ShopperId::uuid),
        subject_digest,
        subject.map(|subject| subject.issuer.as_str()),
        subject.map(|subject| subject.sub.as_str()),
        session.device,
        session.created_at,
        session.last_seen_at,
        session.absolute_deadline,
        session.visit.started_at,
        write_pins(&session.visit.pins),
    )
    .execute(db)
    .await
    .map(drop)
}

/// Revokes one that is not; false if it was, or is not there.
#[tracing::instrument(name = "db.session.revoke", skip_all)]
pub async fn revoke(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: SessionId,
    at: Time,
    reason: RevokeReason,
) -> sqlx::Result<bool> {
    let reason = match reason {
        RevokeReason::Logout => "LOGOUT",
        RevokeReason::Admin => "ADMIN",
        RevokeReason::Compromised => "COMPROMISED",
    };
    let done = sqlx::query!(
        "update session.sessions
        set revoked_at = $3, revoke_reason = $4
        where tenant_id = $1 and session_id = $2 and revoked_at is null",
        tenant.as_str(),
        id.uuid(),
        at,
        reason,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Holds a session for a cart in checkout, in the visit that it is in and on the releases of that visit, which its row may
/// not have yet; false if the session was revoked, or is in another visit by now.
#[tracing::instrument(name = "db.session.hold", skip_all)]
pub async fn hold(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: SessionId,
    cart: CartId,
    stored: &Visit,
    visit: &Visit,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update session.sessions
        set checkout_cart_ids = array_append(array_remove(checkout_cart_ids, $3), $3), visit_started_at = $4, pins = $5
        where tenant_id = $1 and session_id = $2 and revoked_at is null
            and (visit_started_at = $6 and pins = $7 or visit_started_at = $4 and pins = $5)",
        tenant.as_str(),
        id.uuid(),
        cart.uuid(),
        visit.started_at,
        write_pins(&visit.pins),
        stored.started_at,
        write_pins(&stored.pins),
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Lets go of a visit, as far as this cart holds it.
#[tracing::instrument(name = "db.session.release_hold", skip_all)]
pub async fn release_hold(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: SessionId,
    cart: CartId,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update session.sessions
        set checkout_cart_ids = nullif(array_remove(checkout_cart_ids, $3), '{}')
        where tenant_id = $1 and session_id = $2 and $3 = any(checkout_cart_ids)",
        tenant.as_str(),
        id.uuid(),
        cart.uuid(),
    )
    .execute(db)
    .await
    .map(drop)
}

/// Puts a running visit on other releases, unless it changed or a checkout holds it; false then.
#[tracing::instrument(name = "db.session.move_visit", skip_all)]
pub async fn move_visit(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: SessionId,
    from: &Visit,
    to: &Visit,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update session.sessions
        set visit_started_at = $3, pins = $4
        where tenant_id = $1 and session_id = $2 and visit_started_at = $5 and pins = $6
            and checkout_cart_ids is null and revoked_at is null",
        tenant.as_str(),
        id.uuid(),
        to.started_at,
        write_pins(&to.pins),
        from.started_at,
        write_pins(&from.pins),
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// What validations saw of a session since it was last written.
#[derive(Debug, Clone)]
pub struct Touch {
    /// Whose.
    pub tenant: TenantId,
    /// Which.
    pub session: SessionId,
    /// Last validation.
    pub seen_at: Time,
    /// The visit as it was answered, and the one that it replaces; none where nothing but the time changed.
    pub visit: Option<(Visit, Visit)>,
}

/// Writes touches; answers the sessions whose visit changed. Rows are locked in key order, so that two that write the
/// same sessions never wait for each other in a circle; what is revoked, or was seen later, stays.
#[tracing::instrument(name = "db.session.touch", skip_all, fields(count = touches.len()))]
pub async fn touch(db: &mut PgConnection, touches: &[Touch]) -> sqlx::Result<Vec<(TenantId, SessionId)>> {
    let tenants: Vec<_> = touches.iter().map(|touch| touch.tenant.to_string()).collect();
    let sessions: Vec<_> = touches.iter().map(|touch| touch.session.uuid()).collect();
    let seen: Vec<_> = touches.iter().map(|touch| touch.seen_at).collect();
    let visits = || touches.iter().map(|touch| touch.visit.as_ref());
    let started: Vec<_> = visits().map(|visit| visit.map(|(visit, _)| visit.started_at)).collect();
    let pins: Vec<_> = visits().map(|visit| visit.map(|(visit, _)| write_pins(&visit.pins))).collect();
    let old_started: Vec<_> = visits().map(|visit| visit.map(|(_, old)| old.started_at)).collect();
    let old_pins: Vec<_> = visits().map(|visit| visit.map(|(_, old)| write_pins(&old.pins))).collect();
    let rows = sqlx::query!(
        r#"with touch as (
            select * from unnest($1::text[], $2::uuid[], $3::timestamptz[], $4::timestamptz[], $5::bytea[],
                $6::timestamptz[], $7::bytea[])
                as touch (tenant_id, session_id, seen_at, visit_started_at, pins, old_visit_started_at, old_pins)
        ), locked as (
            select touch.*,
                touch.pins is not null
                    and session.visit_started_at = touch.old_visit_started_at
                    and session.pins = touch.old_pins
                    and (session.checkout_cart_ids is null or session.pins = touch.pins) as is_new_visit
            from session.sessions session
            join touch using (tenant_id, session_id)
            where session.revoked_at is null
            order by session.tenant_id, session.session_id
            for update of session
        )
        update session.sessions session
        set last_seen_at = greatest(session.last_seen_at, locked.seen_at),
            visit_started_at = case when is_new_visit then locked.visit_started_at else session.visit_started_at end,
            pins = case when is_new_visit then locked.pins else session.pins end
        from locked
        where session.tenant_id = locked.tenant_id and session.session_id = locked.session_id
        returning session.tenant_id, session.session_id, is_new_visit as "is_new_visit!""#,
        &tenants,
        &sessions,
        &seen,
        &started as &[Option<Time>],
        &pins as &[Option<Vec<u8>>],
        &old_started as &[Option<Time>],
        &old_pins as &[Option<Vec<u8>>],
    )
    .fetch_all(db)
    .await?;
    let changed = rows.into_iter().filter(|row| row.is_new_visit);
    changed
        .map(|row| {
            let tenant = row
                .tenant_id
                .parse()
                .map_err(|_| corrupt("sessions", "tenant_id", &row.session_id))?;
            Ok((tenant, SessionId::from_uuid(row.session_id)))
        })
        .collect()
}

fn read_pins(bytes: &[u8]) -> Option<Pins> {
    let stored = storage::VisitPins::decode(bytes).ok()?;
    let pin = |stored: storage::VisitPin| {
        let release = Release {
            id: ReleaseId::from_uuid(Uuid::from_slice(&stored.release_id).ok()?),
            version: stored.version,
        };
        let arm = match stored.arm {
            0 => None,
            1 => Some(Arm::Control),
            2 => Some(Arm::Canary),
            _ => return None,
        };
        let arm = match arm {
            None => None,
            Some(arm) => Some((RolloutId::from_uuid(Uuid::from_slice(&stored.rollout_id).ok()?), arm)),
        };
        Some((stored.component.parse().ok()?, Pin { release, arm }))
    };
    stored.pins.into_iter().map(pin).collect()
}

fn write_pins(pins: &Pins) -> Vec<u8> {
    let pin = |(component, pin): (&shared::id::ComponentId, &Pin)| storage::VisitPin {
        component: component.to_string(),
        release_id: pin.release.id.uuid().as_bytes().to_vec(),
        version: pin.release.version.clone(),
        rollout_id: pin
            .arm
            .map(|(rollout, _)| rollout.uuid().as_bytes().to_vec())
            .unwrap_or_default(),
        arm: match pin.arm {
            None => 0,
            Some((_, Arm::Control)) => 1,
            Some((_, Arm::Canary)) => 2,
        },
    };
    storage::VisitPins { pins: pins.iter().map(pin).collect() }.encode_to_vec()
}
