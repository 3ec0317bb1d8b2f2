//! From the outbox to deliveries: whoever holds the cursor's row goes on where the last one stopped, in one transaction with
//! what it makes of the events. So each event becomes one delivery of each webhook, whoever dies when.

use std::collections::{BTreeSet, HashMap};

use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::Webhooks;
use super::cloud_event::body;
use crate::id::WebhookId;
use crate::outbox::{Stored, parse};
use crate::snapshot::Cursor;
use crate::time::Time;
use crate::watch::is_of;

/// Events a transaction.
const PAGE: i64 = 200;
/// Webhooks of the tenants of a page, at most.
const WEBHOOKS_MAX: i64 = PAGE * super::registration::WEBHOOKS_MAX;

/// Who is to be told.
#[derive(FromRow)]
struct Audience {
    tenant_id: String,
    webhook_id: WebhookId,
    types: Vec<String>,
    created_at: Time,
}

/// Deliveries to be made, by column.
#[derive(Default)]
struct Made<'a> {
    tenants: Vec<&'a str>,
    webhooks: Vec<Uuid>,
    events: Vec<&'a Stored>,
}

impl Webhooks {
    /// Makes deliveries of what happened since the last pass.
    pub(super) async fn fan_out(&self) -> sqlx::Result<u64> {
        let mut made = 0;
        loop {
            let mut tx = self.db.begin(None).await?;
            let Some((cursor, present)) = self.lock_cursor(&mut tx).await? else { return Ok(made) };
            let cursor = if present.base.covers(&cursor.base) {
                cursor
            } else {
                tracing::warn!("the database was restored: webhooks are told of what happens from now on");
                present
            };
            // The purge spares what the cursor has not seen, so nothing is missing.
            let page = self.outbox.read(&mut tx, &cursor, None, PAGE, "").await?;
            // What is left of an earlier page may be nothing; then the cursor goes on all the same.
            if page.events.is_empty() && cursor.page.is_none() {
                return Ok(made);
            }
            made += self.tell(&mut tx, &page.events).await?;
            let is_last = page.is_last;
            self.move_cursor(&mut tx, &page.end(cursor)).await?;
            tx.commit().await?;
            if made > 0 {
                self.nudge.notify_one();
            }
            if is_last {
                return Ok(made);
            }
        }
    }

    /// The cursor, and the present; nothing where another replica has it, or where nobody is to be told.
    async fn lock_cursor(&self, tx: &mut PgConnection) -> sqlx::Result<Option<(Cursor, Cursor)>> {
        let sql = "select position, pg_current_snapshot()::text from {s}.outbox_positions where name = 'fan_out' \
                   and exists (select from {s}.webhooks where disabled_reason is null) for update skip locked";
        let row: Option<(String, String)> = sqlx::query_as(self.sql(sql)).fetch_optional(tx).await?;
        let Some((position, present)) = row else { return Ok(None) };
        let cursor = position.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        Ok(Some((cursor, Cursor::after(parse(&present)?))))
    }

    async fn move_cursor(&self, tx: &mut PgConnection, cursor: &Cursor) -> sqlx::Result<()> {
        sqlx::query(self.sql("update {s}.outbox_positions set position = $1 where name = 'fan_out'"))
            .bind(cursor.to_string())
            .execute(tx)
            .await
            .map(drop)
    }

    /// Where nobody was to be told until now: what happened meanwhile is not for those who come. They come in the same
    /// transaction, and are told of whatever commits after it.
    pub(super) async fn open_audience(&self, tx: &mut PgConnection) -> sqlx::Result<()> {
        let sql = "update {s}.outbox_positions set position = pg_current_snapshot()::text where name = 'fan_out' \
                   and not exists (select from {s}.webhooks where disabled_reason is null)";
        sqlx::query(self.sql(sql)).execute(tx).await.map(drop)
    }

    /// Read after the events: whoever was registered before an event is there.
    async fn audience(&self, tx: &mut PgConnection, events: &[Stored]) -> sqlx::Result<Vec<Audience>> {
        let tenants: BTreeSet<_> = events.iter().map(|event| event.tenant.as_str()).collect();
        let sql = "select tenant_id, webhook_id, types, created_at from {s}.webhooks \
                   where tenant_id = any($1) and disabled_reason is null order by tenant_id, webhook_id limit $2";
        sqlx::query_as(self.sql(sql))
            .bind(tenants.into_iter().collect::<Vec<_>>())
            .bind(WEBHOOKS_MAX)
            .fetch_all(tx)
            .await
    }

    async fn tell(&self, tx: &mut PgConnection, events: &[Stored]) -> sqlx::Result<u64> {
        let audience = self.audience(tx, events).await?;
        let mut of_tenant: HashMap<&str, Vec<&Audience>> = HashMap::new();
        for webhook in &audience {
            of_tenant.entry(&webhook.tenant_id).or_default().push(webhook);
        }
        let mut made = Made::default();
        for event in events {
            let asks =
                |webhook: &&&Audience| is_of(&event.kind, &webhook.types) && webhook.created_at <= event.at;
            for webhook in of_tenant.get(event.tenant.as_str()).into_iter().flatten().filter(asks) {
                made.tenants.push(&webhook.tenant_id);
                made.webhooks.push(webhook.webhook_id.uuid());
                made.events.push(event);
            }
        }
        self.make(tx, &made).await
    }

    /// Writes the deliveries, and opens the lanes that they are the first in. A lane that is there is locked all the same, so
    /// that nobody closes it before these can be seen.
    async fn make(&self, tx: &mut PgConnection, made: &Made<'_>) -> sqlx::Result<u64> {
        if made.events.is_empty() {
            return Ok(0);
        }
        let sql = "with made as (insert into {s}.webhook_deliveries (tenant_id, webhook_id, event_id, kind, subject, \
                   occurred_at, body, trace_parent, state, attempts, created_at) \
                   select *, 'PENDING', 0, $9 from unnest($1::text[], $2::uuid[], $3::bigint[], $4::text[], $5::text[], \
                   $6::timestamptz[], $7::text[], $8::text[]) on conflict do nothing returning tenant_id, webhook_id, subject) \
                   insert into {s}.webhook_lanes as lane (tenant_id, webhook_id, subject, next_attempt_at, claim) \
                   select distinct tenant_id, webhook_id, subject, $9, 0 from made order by tenant_id, webhook_id, subject \
                   on conflict (tenant_id, webhook_id, subject) do update set claim = lane.claim";
        let texts =
            |column: fn(&Stored) -> &str| made.events.iter().map(|event| column(event)).collect::<Vec<_>>();
        let bodies: Vec<_> = made.events.iter().map(|event| body(self.outbox.schema, event)).collect();
        sqlx::query(self.sql(sql))
            .bind(&made.tenants)
            .bind(&made.webhooks)
            .bind(made.events.iter().map(|event| event.id).collect::<Vec<_>>())
            .bind(texts(|event| &event.kind))
            .bind(texts(|event| &event.subject))
            .bind(made.events.iter().map(|event| event.at).collect::<Vec<_>>())
            .bind(bodies)
            .bind(texts(|event| &event.trace_parent))
            .bind(self.clock.now())
            .execute(tx)
            .await?;
        Ok(made.events.len() as u64)
    }
}
