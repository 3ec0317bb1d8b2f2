//! Deliveries as they are looked at afterwards: the log, what is delivered again, and what is forgotten.

use chrono::TimeDelta;
use sqlx::{FromRow, PgConnection};

use super::Webhooks;
use crate::id::{TenantId, WebhookId};
use crate::time::Time;

/// From when a delivery was made or replayed.
const RETENTION: TimeDelta = TimeDelta::days(7);
const PURGE_BATCH: i64 = 1000;
/// Deliveries that one request replays.
pub(super) const REPLAY_MAX: i64 = 1000;

/// One event on its way to one webhook.
#[derive(Debug, FromRow)]
pub(super) struct Delivery {
    pub(super) event_id: i64,
    pub(super) kind: String,
    pub(super) subject: String,
    pub(super) occurred_at: Time,
    pub(super) state: String,
    pub(super) attempts: i32,
    pub(super) attempted_at: Option<Time>,
    pub(super) latency_ms: Option<i32>,
    pub(super) http_status: Option<i32>,
    pub(super) error: Option<String>,
    pub(super) excerpt: Option<String>,
}

/// What is to be delivered again.
pub(super) struct Selection {
    /// Empty is all.
    pub(super) events: Vec<i64>,
    pub(super) from: Option<Time>,
    pub(super) until: Option<Time>,
    pub(super) with_delivered: bool,
}

impl Webhooks {
    /// The newest events first, those before `before`.
    pub(super) async fn list_deliveries(
        &self,
        db: &mut PgConnection,
        tenant: &TenantId,
        webhook: WebhookId,
        states: &[String],
        before: i64,
        limit: i64,
    ) -> sqlx::Result<Vec<Delivery>> {
        let sql = "select event_id, kind, subject, occurred_at, state, attempts, attempted_at, latency_ms, http_status, \
                   error, excerpt from {s}.webhook_deliveries where tenant_id = $1 and webhook_id = $2 and event_id < $3 \
                   and (cardinality($4::text[]) = 0 or state = any($4)) order by event_id desc limit $5";
        sqlx::query_as(self.sql(sql))
            .bind(tenant)
            .bind(webhook)
            .bind(before)
            .bind(states)
            .bind(limit)
            .fetch_all(db)
            .await
    }

    /// Makes what is not pending so again, the oldest events first, and says how many. A lane that is there is locked all
    /// the same, so that nobody closes it before these can be seen.
    pub(super) async fn replay(
        &self,
        tx: &mut PgConnection,
        tenant: &TenantId,
        webhook: WebhookId,
        selection: &Selection,
        now: Time,
    ) -> sqlx::Result<i64> {
        let sql = "with again as (select event_id from {s}.webhook_deliveries \
                   where tenant_id = $1 and webhook_id = $2 and state <> 'PENDING' \
                   and case when cardinality($3::bigint[]) = 0 then $6 or state = 'DEAD_LETTERED' else event_id = any($3) end \
                   and ($4::timestamptz is null or occurred_at >= $4) and ($5::timestamptz is null or occurred_at < $5) \
                   order by event_id limit $7 for update), \
                   pending as (update {s}.webhook_deliveries as delivery set state = 'PENDING', attempts = 0, \
                   first_attempted_at = null, created_at = $8 from again where delivery.tenant_id = $1 \
                   and delivery.webhook_id = $2 and delivery.event_id = again.event_id returning delivery.subject), \
                   opened as (insert into {s}.webhook_lanes as lane (tenant_id, webhook_id, subject, next_attempt_at, claim) \
                   select distinct $1, $2, subject, $8, 0 from pending order by subject \
                   on conflict (tenant_id, webhook_id, subject) do update set claim = lane.claim) \
                   select count(*) from pending";
        sqlx::query_scalar(self.sql(sql))
            .bind(tenant)
            .bind(webhook)
            .bind(&selection.events)
            .bind(selection.from)
            .bind(selection.until)
            .bind(selection.with_delivered)
            .bind(REPLAY_MAX)
            .bind(now)
            .fetch_one(tx)
            .await
    }

    /// Forgets old deliveries, and the lanes of webhooks that were deleted.
    pub(super) async fn purge(&self) -> sqlx::Result<u64> {
        let before = self.clock.now() - RETENTION;
        let mut db = self.db.connection().await?;
        let deliveries = "delete from {s}.webhook_deliveries where (tenant_id, webhook_id, event_id) in (\
                          select tenant_id, webhook_id, event_id from {s}.webhook_deliveries \
                          where created_at <= $1 order by created_at limit $2 for update skip locked)";
        let lanes = "delete from {s}.webhook_lanes where (tenant_id, webhook_id, subject) in (\
                     select tenant_id, webhook_id, subject from {s}.webhook_lanes as lane \
                     where not exists (select from {s}.webhooks as webhook where webhook.tenant_id = lane.tenant_id \
                     and webhook.webhook_id = lane.webhook_id) limit $1 for update skip locked)";
        let mut purged = 0;
        loop {
            let done = sqlx::query(self.sql(deliveries))
                .bind(before)
                .bind(PURGE_BATCH)
                .execute(&mut *db)
                .await?;
            purged += done.rows_affected();
            if done.rows_affected() < PURGE_BATCH.unsigned_abs() {
                break;
            }
        }
        let done = sqlx::query(self.sql(lanes)).bind(PURGE_BATCH).execute(&mut *db).await?;
        Ok(purged + done.rows_affected())
    }
}
