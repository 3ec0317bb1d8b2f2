//! Sessions added, many at once, with what they become by their first visit.

use std::collections::HashSet;

use shared::id::{ShopperId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::session::Session;
use crate::domain::visit::{Arm, Unit};
use crate::store::visit;

/// A session to be added.
pub struct New<'a> {
    /// Whose.
    pub tenant: &'a TenantId,
    /// The session.
    pub session: &'a Session,
    /// Of its subject.
    pub subject_digest: Option<&'a [u8; 32]>,
    /// What it becomes by its first visit.
    pub units: &'a [Unit],
}

/// Adds some, in one statement, with what they become; answers which of them. Their epoch is the touchpoint's at that
/// moment, so that none made after a revocation is revoked by it. One that would be on a killed release is not added.
#[tracing::instrument(name = "db.session.insert", skip_all, fields(count = sessions.len()))]
pub async fn insert(db: &mut PgConnection, sessions: &[New<'_>]) -> sqlx::Result<Vec<bool>> {
    let columns = || sessions.iter().map(|new| new.session);
    let identities = || columns().map(|session| session.identity.as_ref());
    let authentications = || identities().map(|identity| identity.map(|identity| &identity.authentication));
    let units = || sessions.iter().flat_map(|new| new.units.iter().map(|unit| (new.session, unit)));
    let added = sqlx::query_scalar!(
        r#"with added as (
            insert into session.sessions (tenant_id, session_id, touchpoint_id, token_hash, epoch, shopper_id, subject_digest,
                subject_issuer, subject_sub, authenticated_at, assurance_level, is_remembered, device, place, created_at,
                last_seen_at, absolute_deadline, visit_started_at, pins)
            select tenant_id, session_id, touchpoint_id, token_hash, touchpoint.session_epoch, shopper_id,
                subject_digest, subject_issuer, subject_sub, authenticated_at, assurance_level, is_remembered, device, place,
                session.created_at, session.created_at, absolute_deadline, session.created_at, pins
            from unnest($1::text[], $2::uuid[], $3::text[], $4::bytea[], $5::uuid[], $6::bytea[], $7::text[],
                $8::text[], $9::timestamptz[], $10::smallint[], $11::boolean[], $12::text[], $13::text[],
                $14::timestamptz[], $15::timestamptz[], $16::bytea[])
                as session (tenant_id, session_id, touchpoint_id, token_hash, shopper_id, subject_digest,
                    subject_issuer, subject_sub, authenticated_at, assurance_level, is_remembered, device, place, created_at,
                    absolute_deadline, pins)
            join session.touchpoints touchpoint using (tenant_id, touchpoint_id)
            where not exists (
                select from session.kills kill
                where kill.tenant_id = session.tenant_id and position(uuid_send(kill.release_id) in session.pins) > 0)
            returning tenant_id, session_id, created_at
        ), enrolled as (
            insert into session.enrolments (tenant_id, session_id, rollout_id, step, is_canary, enrolled_at)
            select added.tenant_id, session_id, rollout_id, step, is_canary, added.created_at
            from unnest($17::uuid[], $18::uuid[], $19::integer[], $20::boolean[])
                as unit (session_id, rollout_id, step, is_canary)
            join added using (session_id)
            on conflict do nothing
        )
        select session_id as "session_id!" from added"#,
        &sessions.iter().map(|new| new.tenant.to_string()).collect::<Vec<_>>(),
        &columns().map(|session| session.id.uuid()).collect::<Vec<_>>(),
        &columns().map(|session| session.touchpoint.to_string()).collect::<Vec<_>>(),
        &columns().map(|session| session.lineage.current.bytes().to_vec()).collect::<Vec<_>>(),
        &columns().map(|session| session.shopper.map(ShopperId::uuid)).collect::<Vec<_>>() as &[Option<Uuid>],
        &sessions.iter().map(|new| new.subject_digest.map(|digest| digest.to_vec())).collect::<Vec<_>>()
            as &[Option<Vec<u8>>],
        &identities().map(|identity| Some(identity?.subject.issuer.clone())).collect::<Vec<_>>()
            as &[Option<String>],
        &identities().map(|identity| Some(identity?.subject.sub.clone())).collect::<Vec<_>>() as &[Option<String>],
        &authentications().map(|done| Some(done?.at)).collect::<Vec<_>>() as &[Option<Time>],
        &authentications().map(|done| Some(done?.level.number())).collect::<Vec<_>>() as &[Option<i16>],
        &columns().map(|session| session.is_remembered).collect::<Vec<_>>(),
        &columns().map(|session| session.device.clone()).collect::<Vec<_>>() as &[Option<String>],
        &columns().map(|session| session.place.clone()).collect::<Vec<_>>() as &[Option<String>],
        &columns().map(|session| session.created_at).collect::<Vec<_>>(),
        &columns().map(|session| session.absolute_deadline).collect::<Vec<_>>(),
        &columns().map(|session| visit::write_pins(&session.visit.pins)).collect::<Vec<_>>(),
        &units().map(|(session, _)| session.id.uuid()).collect::<Vec<_>>(),
        &units().map(|(_, unit)| unit.rollout.uuid()).collect::<Vec<_>>(),
        &units().map(|(_, unit)| unit.step).collect::<Vec<_>>(),
        &units().map(|(_, unit)| unit.arm == Arm::Canary).collect::<Vec<_>>(),
    )
    .fetch_all(db)
    .await?;
    let added: HashSet<_> = added.into_iter().collect();
    Ok(columns().map(|session| added.contains(&session.id.uuid())).collect())
}
