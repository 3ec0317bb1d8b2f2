//! The visits in `session.sessions`: when a session was seen, on which releases it is, and what holds it there.

use prost::Message as _;
use shared::id::{CartId, ComponentId, ReleaseId, RolloutId, SessionId, TenantId};
use shared::pb::storage;
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::visit::{Arm, Pin, Pins, Release, Unit, Visit};

/// Holds a session for a cart in checkout, in the visit that it is in and on the releases of that visit, which its row may
/// not have yet; false if the session was revoked, is in another visit by now, or would be put on a killed release.
#[tracing::instrument(name = "db.visit.hold", skip_all)]
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
        set checkout_cart_ids = array_append(array_remove(checkout_cart_ids, $3), $3), visit_started_at = $4, pins = $5,
            left_rollout_ids = $8
        where tenant_id = $1 and session_id = $2 and revoked_at is null
            and (visit_started_at = $4 and pins = $5
                or visit_started_at = $6 and pins = $7 and not exists (
                    select from session.kills kill
                    where kill.tenant_id = $1 and position(uuid_send(kill.release_id) in $5) > 0))",
        tenant.as_str(),
        id.uuid(),
        cart.uuid(),
        visit.started_at,
        write_pins(&visit.pins),
        stored.started_at,
        write_pins(&stored.pins),
        write_left(&visit.left) as Option<Vec<Uuid>>,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// As [`hold`], for a caller, until then.
#[tracing::instrument(name = "db.visit.hold_pin", skip_all)]
pub async fn hold_pin(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: SessionId,
    hold: (Time, &str),
    stored: &Visit,
    visit: &Visit,
) -> sqlx::Result<bool> {
    let (until, reason) = hold;
    let done = sqlx::query!(
        "update session.sessions
        set pin_held_until = $3, pin_hold_reason = $9, visit_started_at = $4, pins = $5, left_rollout_ids = $8
        where tenant_id = $1 and session_id = $2 and revoked_at is null
            and (visit_started_at = $4 and pins = $5
                or visit_started_at = $6 and pins = $7 and not exists (
                    select from session.kills kill
                    where kill.tenant_id = $1 and position(uuid_send(kill.release_id) in $5) > 0))",
        tenant.as_str(),
        id.uuid(),
        until,
        visit.started_at,
        write_pins(&visit.pins),
        stored.started_at,
        write_pins(&stored.pins),
        write_left(&visit.left) as Option<Vec<Uuid>>,
        reason,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Lets go of a visit, as far as this cart holds it.
#[tracing::instrument(name = "db.visit.release_hold", skip_all)]
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

/// Lets go of a visit, as far as a caller holds it; false if none does.
#[tracing::instrument(name = "db.visit.release_pin", skip_all)]
pub async fn release_pin(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: SessionId,
    now: Time,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update session.sessions
        set pin_held_until = null, pin_hold_reason = null
        where tenant_id = $1 and session_id = $2 and pin_held_until > $3",
        tenant.as_str(),
        id.uuid(),
        now,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Puts a session that is seen now on other releases, in the visit that it was in or a new one; false if that changed,
/// something holds it that was not known, or one of them was killed.
#[tracing::instrument(name = "db.visit.move_visit", skip_all)]
pub async fn move_visit(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: SessionId,
    to: &Beginning,
    now: Time,
) -> sqlx::Result<bool> {
    let Beginning { visit: to, stored: from, is_held, units: _ } = to;
    let done = sqlx::query!(
        "update session.sessions
        set visit_started_at = $3, pins = $4, left_rollout_ids = $7, last_seen_at = greatest(last_seen_at, $9)
        where tenant_id = $1 and session_id = $2 and visit_started_at = $5 and pins = $6 and revoked_at is null
            and ($8 or checkout_cart_ids is null and (pin_held_until is null or pin_held_until <= $9))
            and not exists (
                select from session.kills kill
                where kill.tenant_id = $1 and position(uuid_send(kill.release_id) in $4) > 0)",
        tenant.as_str(),
        id.uuid(),
        to.started_at,
        write_pins(&to.pins),
        from.started_at,
        write_pins(&from.pins),
        write_left(&to.left) as Option<Vec<Uuid>>,
        is_held,
        now,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// A visit that began, or that moved, and is not written yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    /// As it was answered.
    pub visit: Visit,
    /// The one that it replaces.
    pub stored: Visit,
    /// Whether it was decided on as one that something holds.
    pub is_held: bool,
    /// What was dealt to the session by it.
    pub units: Vec<Unit>,
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
    /// The visit that began; none where nothing but the time changed.
    pub visit: Option<Beginning>,
}

/// Writes when sessions were seen, in the order given, which is that of keys; fails where somebody holds one of them for
/// long. What is revoked, or was seen later, stays.
#[tracing::instrument(name = "db.visit.touch", skip_all, fields(count = touches.len()))]
pub async fn touch(db: &mut PgConnection, touches: &[&Touch]) -> sqlx::Result<()> {
    sqlx::query!(
        "update session.sessions session
        set last_seen_at = touch.seen_at
        from unnest($1::text[], $2::uuid[], $3::timestamptz[]) as touch (tenant_id, session_id, seen_at)
        where session.tenant_id = touch.tenant_id and session.session_id = touch.session_id
            and session.revoked_at is null and session.last_seen_at < touch.seen_at",
        &touches.iter().map(|touch| touch.tenant.as_str().to_owned()).collect::<Vec<_>>(),
        &touches.iter().map(|touch| touch.session.uuid()).collect::<Vec<_>>(),
        &touches.iter().map(|touch| touch.seen_at).collect::<Vec<_>>(),
    )
    .execute(db)
    .await
    .map(drop)
}

/// A session that [`begin_visits`] is done with.
pub struct Begun {
    /// Which of those given.
    pub position: usize,
    /// Whether its visit changed.
    pub is_new_visit: bool,
}

/// As [`touch`], with the visits that began; answers which of those given it is done with. Rows are locked in key order, and
/// a row that somebody holds is left for the next time: it keeps back none but itself.
/// A visit that something holds that was not known, or on a killed release, is not written: whoever sees the session next
/// decides again.
#[tracing::instrument(name = "db.visit.begin", skip_all, fields(count = touches.len()))]
pub async fn begin_visits(db: &mut PgConnection, touches: &[&Touch], now: Time) -> sqlx::Result<Vec<Begun>> {
    let visits = || touches.iter().map(|touch| touch.visit.as_ref());
    let begun = || (1_i64..).zip(visits()).filter_map(|(position, begun)| Some((position, begun?)));
    let leaving = || begun().flat_map(|(at, begun)| begun.visit.left.iter().map(move |left| (at, left)));
    let rows = sqlx::query!(
        r#"with locked as materialized (
            select session.tenant_id, session.session_id, touch.position, touch.seen_at, touch.visit_started_at,
                touch.pins, session.revoked_at is null as is_open,
                session.revoked_at is null
                    and touch.pins is not null
                    and session.visit_started_at = touch.old_visit_started_at
                    and session.pins = touch.old_pins
                    and (touch.is_held or session.pins = touch.pins
                        or session.checkout_cart_ids is null
                            and (session.pin_held_until is null or session.pin_held_until <= $11))
                    and not exists (
                        select from session.kills kill
                        where kill.tenant_id = session.tenant_id
                            and position(uuid_send(kill.release_id) in touch.pins) > 0) as is_new_visit
            from unnest($1::text[], $2::uuid[], $3::timestamptz[], $4::timestamptz[], $5::bytea[], $6::timestamptz[],
                $7::bytea[], $8::boolean[]) with ordinality
                as touch (tenant_id, session_id, seen_at, visit_started_at, pins, old_visit_started_at, old_pins, is_held,
                    position)
            join session.sessions session using (tenant_id, session_id)
            order by session.tenant_id, session.session_id
            for no key update of session skip locked
        ), leaving as materialized (
            select position, array_agg(rollout_id order by place) as left_rollout_ids
            from unnest($9::bigint[], $10::uuid[]) with ordinality as leaving (position, rollout_id, place)
            group by position
        ), written as (
            update session.sessions session
            set last_seen_at = greatest(session.last_seen_at, locked.seen_at),
                visit_started_at =
                    case when is_new_visit then locked.visit_started_at else session.visit_started_at end,
                pins = case when is_new_visit then locked.pins else session.pins end,
                left_rollout_ids =
                    case when is_new_visit then leaving.left_rollout_ids else session.left_rollout_ids end
            from locked left join leaving using (position)
            where session.tenant_id = locked.tenant_id and session.session_id = locked.session_id and is_open
        )
        select position as "position!", is_new_visit as "is_new_visit!" from locked"#,
        &touches.iter().map(|touch| touch.tenant.to_string()).collect::<Vec<_>>(),
        &touches.iter().map(|touch| touch.session.uuid()).collect::<Vec<_>>(),
        &touches.iter().map(|touch| touch.seen_at).collect::<Vec<_>>(),
        &visits().map(|begun| Some(begun?.visit.started_at)).collect::<Vec<_>>() as &[Option<Time>],
        &visits().map(|begun| Some(write_pins(&begun?.visit.pins))).collect::<Vec<_>>() as &[Option<Vec<u8>>],
        &visits().map(|begun| Some(begun?.stored.started_at)).collect::<Vec<_>>() as &[Option<Time>],
        &visits().map(|begun| Some(write_pins(&begun?.stored.pins))).collect::<Vec<_>>() as &[Option<Vec<u8>>],
        &visits().map(|begun| begun.is_some_and(|begun| begun.is_held)).collect::<Vec<_>>(),
        &leaving().map(|(position, _)| position).collect::<Vec<_>>(),
        &leaving().map(|(_, rollout)| rollout.uuid()).collect::<Vec<_>>(),
        now,
    )
    .fetch_all(db)
    .await?;
    let begun = rows.into_iter().filter_map(|row| {
        let position = usize::try_from(row.position - 1).ok()?;
        Some(Begun { position, is_new_visit: row.is_new_visit })
    });
    Ok(begun.collect())
}

/// From the column; `None` if it is corrupt.
pub(super) fn read_pins(bytes: &[u8]) -> Option<Pins> {
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
        Some((stored.component.parse().ok()?, Pin { release, arm, dealt_step: stored.dealt_step }))
    };
    stored.pins.into_iter().map(pin).collect()
}

/// From the column.
pub(super) fn read_left(ids: Option<Vec<Uuid>>) -> Vec<RolloutId> {
    ids.unwrap_or_default().into_iter().map(RolloutId::from_uuid).collect()
}

fn write_left(left: &[RolloutId]) -> Option<Vec<Uuid>> {
    (!left.is_empty()).then(|| left.iter().map(|rollout| rollout.uuid()).collect())
}

/// To the column; equal pins are equal bytes.
pub(super) fn write_pins(pins: &Pins) -> Vec<u8> {
    let pin = |(component, pin): (&ComponentId, &Pin)| storage::VisitPin {
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
        dealt_step: pin.dealt_step,
    };
    storage::VisitPins { pins: pins.iter().map(pin).collect() }.encode_to_vec()
}
