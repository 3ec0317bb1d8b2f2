//! The scan that counts live visits by the releases that they are on: in key order and small steps, by one replica at a
//! time, which holds a lease on it. There is no index by when sessions were seen, as that would make every touch write it.

use shared::id::{RolloutId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::visit::Pins;
use crate::store::{corrupt, visit};

/// Counts read at once.
const PAGE: i64 = 10_000;

/// Takes the scan, or keeps it; false while another replica has it.
#[tracing::instrument(name = "db.scan.hold", skip_all)]
pub async fn hold(db: &mut PgConnection, holder: Uuid, now: Time, until: Time) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update session.signal_source
        set scan_holder = $1, scan_held_until = $3
        where scan_holder is null or scan_holder = $1 or scan_held_until <= $2",
        holder,
        now,
        until,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// What one step of the scan found.
#[derive(Debug)]
pub struct Step {
    /// Live visits on the same releases, and how many.
    pub visits: Vec<(Pins, i64)>,
    /// Where it got to; none at the tenant's end.
    pub reached: Option<Uuid>,
}

/// Counts the live visits among a tenant's next sessions. Alive is a visit that was seen within its touchpoint's gap, and one
/// that something holds, for as long as its session may live.
#[tracing::instrument(name = "db.scan.step", skip_all)]
pub async fn step(
    db: &mut PgConnection,
    tenant: &TenantId,
    after: Uuid,
    limit: i64,
    now: Time,
) -> sqlx::Result<Step> {
    let rows = sqlx::query!(
        r#"with page as materialized (
            select tenant_id, session_id, touchpoint_id, epoch, is_remembered, last_seen_at, absolute_deadline, pins,
                checkout_cart_ids, pin_held_until, revoked_at
            from session.sessions
            where tenant_id = $1 and session_id > $2
            order by session_id
            limit $3
        ), live as (
            select page.pins
            from page
            join session.touchpoints touchpoint using (tenant_id, touchpoint_id)
            where page.revoked_at is null and page.absolute_deadline > $4 and page.epoch >= touchpoint.session_epoch
                and page.last_seen_at > $4::timestamptz - make_interval(secs => case
                    when page.checkout_cart_ids is null and (page.pin_held_until is null or page.pin_held_until <= $4)
                    then touchpoint.visit_gap_secs
                    when page.is_remembered
                    then coalesce(touchpoint.remember_idle_timeout_secs, touchpoint.idle_timeout_secs)
                    else touchpoint.idle_timeout_secs end)
        )
        select pins as "pins?", count(*) as "count!", null::uuid as reached, null::bigint as seen from live group by pins
        union all
        select null, 0, (select session_id from page order by session_id desc limit 1), (select count(*) from page)"#,
        tenant.as_str(),
        after,
        limit,
        now,
    )
    .fetch_all(db)
    .await?;
    let mut found = Step { visits: vec![], reached: None };
    for row in rows {
        match row.pins {
            Some(pins) => {
                // One that cannot be read shall not keep the others from being counted.
                if let Some(pins) = visit::read_pins(&pins) {
                    found.visits.push((pins, row.count));
                } else {
                    tracing::error!(%tenant, "pins that cannot be read are not counted");
                }
            }
            None => found.reached = row.reached.filter(|_| row.seen == Some(limit)),
        }
    }
    Ok(found)
}

/// Live visits of a rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visits {
    /// Whose.
    pub tenant: TenantId,
    /// Of which rollout.
    pub rollout: RolloutId,
    /// On its release.
    pub canary: i64,
    /// On the one that it replaces.
    pub control: i64,
    /// When the scan began.
    pub counted_at: Time,
}

/// Keeps what a scan found, unless a later one's is there.
#[tracing::instrument(name = "db.scan.save", skip_all)]
pub async fn save(db: &mut PgConnection, visits: &[Visits]) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into session.visit_counts as known (tenant_id, rollout_id, canary, control, counted_at)
        select tenant_id, rollout_id, canary, control, counted_at
        from unnest($1::text[], $2::uuid[], $3::bigint[], $4::bigint[], $5::timestamptz[])
            as found (tenant_id, rollout_id, canary, control, counted_at)
        on conflict (tenant_id, rollout_id) do update
        set canary = excluded.canary, control = excluded.control, counted_at = excluded.counted_at
        where known.counted_at < excluded.counted_at",
        &visits.iter().map(|visits| visits.tenant.to_string()).collect::<Vec<_>>(),
        &visits.iter().map(|visits| visits.rollout.uuid()).collect::<Vec<_>>(),
        &visits.iter().map(|visits| visits.canary).collect::<Vec<_>>(),
        &visits.iter().map(|visits| visits.control).collect::<Vec<_>>(),
        &visits.iter().map(|visits| visits.counted_at).collect::<Vec<_>>(),
    )
    .execute(db)
    .await
    .map(drop)
}

/// What the last scans found.
pub async fn list(db: &mut PgConnection) -> sqlx::Result<Vec<Visits>> {
    let mut visits = vec![];
    loop {
        let read = page(db, visits.last()).await?;
        if read.is_empty() {
            return Ok(visits);
        }
        visits.extend(read);
    }
}

/// Those after one of them.
#[tracing::instrument(name = "db.scan.list", skip_all)]
async fn page(db: &mut PgConnection, after: Option<&Visits>) -> sqlx::Result<Vec<Visits>> {
    let rows = sqlx::query!(
        "select tenant_id, rollout_id, canary, control, counted_at
        from session.visit_counts
        where $1::text is null or (tenant_id, rollout_id) > ($1, $2::uuid)
        order by tenant_id, rollout_id
        limit $3",
        after.map(|visits| visits.tenant.as_str()),
        after.map(|visits| visits.rollout.uuid()),
        PAGE,
    )
    .fetch_all(db)
    .await?;
    let mut visits = Vec::with_capacity(rows.len());
    for row in rows {
        let bad = || corrupt("visit_counts", "tenant_id", &row.rollout_id);
        visits.push(Visits {
            tenant: row.tenant_id.parse().map_err(|_| bad())?,
            rollout: RolloutId::from_uuid(row.rollout_id),
            canary: row.canary,
            control: row.control,
            counted_at: row.counted_at,
        });
    }
    Ok(visits)
}
