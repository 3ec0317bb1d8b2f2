//! Lanes: what is pending for one webhook about one subject. Who leases a lane sends its first delivery; what comes of it
//! is written by the holder of the lease alone, in one transaction with the lane's next turn.

use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::Webhooks;
use super::sender::Attempt;
use crate::id::{TenantId, WebhookId};
use crate::time::Time;

/// Of one webhook, at once.
pub(super) const TURNS: i64 = 8;

/// A lane that is leased.
#[derive(Debug, Clone, FromRow)]
pub(super) struct Lane {
    pub(super) tenant_id: TenantId,
    pub(super) webhook_id: WebhookId,
    pub(super) subject: String,
    /// Names the lease; the same of all that were leased together.
    pub(super) claim: i64,
    /// Since when it was due.
    pub(super) due_at: Time,
}

/// The first delivery of a lane, and where it goes.
#[derive(Debug, FromRow)]
pub(super) struct Head {
    pub(super) tenant_id: TenantId,
    pub(super) webhook_id: WebhookId,
    pub(super) subject: String,
    pub(super) url: String,
    pub(super) salt: Vec<u8>,
    pub(super) old_salt: Option<Vec<u8>>,
    pub(super) old_salt_until: Option<Time>,
    pub(super) failing_since: Option<Time>,
    /// None where nothing is pending.
    pub(super) event_id: Option<i64>,
    pub(super) kind: Option<String>,
    pub(super) body: Option<String>,
    pub(super) trace_parent: Option<String>,
    pub(super) attempts: Option<i32>,
    pub(super) first_attempted_at: Option<Time>,
}

/// What becomes of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Delivered,
    /// To be tried again then.
    Retry(Time),
    DeadLettered,
}

impl Verdict {
    fn state(self) -> &'static str {
        match self {
            Self::Delivered => "DELIVERED",
            Self::Retry(_) => "PENDING",
            Self::DeadLettered => "DEAD_LETTERED",
        }
    }
}

impl Webhooks {
    /// Leases lanes that are due: the longest waiting first, a few of each webhook, none of those that are `busy`.
    pub(super) async fn claim(
        &self,
        db: &mut PgConnection,
        now: Time,
        lease_until: Time,
        busy: &[Uuid],
        limit: i64,
    ) -> sqlx::Result<Vec<Lane>> {
        let sql = "with due as (select lane.* from {s}.webhooks as webhook cross join lateral (\
                   select tenant_id, webhook_id, subject, next_attempt_at from {s}.webhook_lanes \
                   where tenant_id = webhook.tenant_id and webhook_id = webhook.webhook_id and next_attempt_at <= $1 \
                   order by next_attempt_at limit $2 for update skip locked) as lane \
                   where webhook.disabled_reason is null and webhook.webhook_id <> all($3) \
                   order by lane.next_attempt_at limit $4) \
                   update {s}.webhook_lanes as lane set next_attempt_at = $5, claim = pg_current_xact_id()::text::bigint from due \
                   where lane.tenant_id = due.tenant_id and lane.webhook_id = due.webhook_id and lane.subject = due.subject \
                   returning lane.tenant_id, lane.webhook_id, lane.subject, lane.claim, due.next_attempt_at as due_at";
        sqlx::query_as(self.sql(sql))
            .bind(now)
            .bind(TURNS)
            .bind(busy)
            .bind(limit)
            .bind(lease_until)
            .fetch_all(db)
            .await
    }

    /// The first deliveries of leased lanes. A statement of its own: what was settled until the lease began is seen.
    pub(super) async fn heads(&self, db: &mut PgConnection, lanes: &[Lane]) -> sqlx::Result<Vec<Head>> {
        let sql = "select lane.*, webhook.url, webhook.salt, webhook.old_salt, webhook.old_salt_until, \
                   webhook.failing_since, head.* from unnest($1::text[], $2::uuid[], $3::text[]) \
                   as lane (tenant_id, webhook_id, subject) join {s}.webhooks as webhook using (tenant_id, webhook_id) \
                   left join lateral (select event_id, kind, body, trace_parent, attempts, first_attempted_at \
                   from {s}.webhook_deliveries where tenant_id = lane.tenant_id and webhook_id = lane.webhook_id \
                   and subject = lane.subject and state = 'PENDING' order by event_id limit 1) as head on true \
                   where webhook.disabled_reason is null";
        sqlx::query_as(self.sql(sql))
            .bind(lanes.iter().map(|lane| lane.tenant_id.as_str()).collect::<Vec<_>>())
            .bind(lanes.iter().map(|lane| lane.webhook_id.uuid()).collect::<Vec<_>>())
            .bind(lanes.iter().map(|lane| lane.subject.as_str()).collect::<Vec<_>>())
            .fetch_all(db)
            .await
    }

    /// Whether the lease is still held; it stays so until the transaction ends.
    pub(super) async fn holds(&self, tx: &mut PgConnection, head: &Head, claim: i64) -> sqlx::Result<bool> {
        let sql = "select true from {s}.webhook_lanes where tenant_id = $1 and webhook_id = $2 and subject = $3 \
                   and claim = $4 for update";
        let found: Option<bool> = sqlx::query_scalar(self.sql(sql))
            .bind(&head.tenant_id)
            .bind(head.webhook_id)
            .bind(&head.subject)
            .bind(claim)
            .fetch_optional(tx)
            .await?;
        Ok(found.is_some())
    }

    /// Writes how an attempt went, and what becomes of the delivery.
    pub(super) async fn record(
        &self,
        tx: &mut PgConnection,
        head: &Head,
        attempt: &Attempt,
        verdict: Verdict,
    ) -> sqlx::Result<()> {
        let sql = "update {s}.webhook_deliveries set state = $4, attempts = attempts + 1, \
                   first_attempted_at = coalesce(first_attempted_at, $5), attempted_at = $5, latency_ms = $6, \
                   http_status = $7, error = $8, excerpt = $9 \
                   where tenant_id = $1 and webhook_id = $2 and event_id = $3 and state = 'PENDING'";
        sqlx::query(self.sql(sql))
            .bind(&head.tenant_id)
            .bind(head.webhook_id)
            .bind(head.event_id)
            .bind(verdict.state())
            .bind(attempt.at)
            .bind(i32::try_from(attempt.latency.as_millis()).unwrap_or(i32::MAX))
            .bind(attempt.status.map(|status| i32::from(status.as_u16())))
            .bind(&attempt.error)
            .bind(&attempt.excerpt)
            .execute(tx)
            .await
            .map(drop)
    }

    /// Ends the lease: the lane's next turn is then, or the lane is closed where nothing is pending.
    pub(super) async fn release(&self, tx: &mut PgConnection, head: &Head, next: Time) -> sqlx::Result<()> {
        // The lane is locked by now, so whatever was made before can be seen.
        let moved = "update {s}.webhook_lanes as lane set next_attempt_at = $4 where tenant_id = $1 and webhook_id = $2 \
                     and subject = $3 and exists (select from {s}.webhook_deliveries where tenant_id = lane.tenant_id \
                     and webhook_id = lane.webhook_id and subject = lane.subject and state = 'PENDING')";
        let moved = sqlx::query(self.sql(moved))
            .bind(&head.tenant_id)
            .bind(head.webhook_id)
            .bind(&head.subject)
            .bind(next)
            .execute(&mut *tx)
            .await?;
        if moved.rows_affected() > 0 {
            return Ok(());
        }
        let closed =
            "delete from {s}.webhook_lanes where tenant_id = $1 and webhook_id = $2 and subject = $3";
        sqlx::query(self.sql(closed))
            .bind(&head.tenant_id)
            .bind(head.webhook_id)
            .bind(&head.subject)
            .execute(tx)
            .await
            .map(drop)
    }
}
