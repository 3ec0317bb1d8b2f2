//! Events beside the change they tell of, and requests that were answered: the statements that both services run, each on
//! its own schema.
//!
//! Ids are drawn before commit, so reading on from the last id would skip what commits late. Reading goes on from the
//! last *snapshot* instead: a row is new when the snapshot did not see its transaction.

use serde_json::Value;
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use crate::id::TenantId;
use crate::time::Time;

/// Something that happened.
#[derive(Debug, Clone)]
pub struct Event {
    /// Whose.
    pub tenant: TenantId,
    /// `noun.past_tense`.
    pub kind: &'static str,
    /// Id of what it happened to.
    pub subject: String,
    /// `issuer|sub`, or `system`.
    pub principal: String,
    /// When.
    pub at: Time,
    /// The rest; never a secret, never personal data.
    pub data: Value,
}

/// An event as it was stored.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Place in the order of one subject's events.
    pub id: i64,
    /// The transaction that wrote it.
    pub xid: u64,
    /// Whose.
    pub tenant: TenantId,
    /// `noun.past_tense`.
    pub kind: String,
    /// Id of what it happened to.
    pub subject: String,
    /// `issuer|sub`, or `system`.
    pub principal: String,
    /// When.
    pub at: Time,
    /// The rest.
    pub data: Value,
    /// W3C trace context of the request that caused it.
    pub trace_parent: String,
}

/// The statements on one schema. Make it with [`crate::outbox!`].
pub struct Outbox {
    #[doc(hidden)]
    pub schema: &'static str,
    #[doc(hidden)]
    pub append: &'static str,
    #[doc(hidden)]
    pub read: &'static str,
    #[doc(hidden)]
    pub claim: &'static str,
    #[doc(hidden)]
    pub answered: &'static str,
    #[doc(hidden)]
    pub record: &'static str,
    #[doc(hidden)]
    pub purge: &'static str,
}

/// The [`Outbox`] of a schema.
#[macro_export]
macro_rules! outbox {
    ($schema:literal) => {
        $crate::outbox::Outbox {
            schema: $schema,
            append: concat!(
                "insert into ", $schema, ".events (tenant_id, kind, subject, principal, occurred_at, data, trace_parent) ",
                "select tenant_id, kind, subject, principal, occurred_at, data, $7 ",
                "from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[]) with ordinality ",
                "as event (tenant_id, kind, subject, principal, occurred_at, data, position) order by position"
            ),
            // One snapshot serves the position and the rows: a statement sees what its snapshot sees.
            read: concat!(
                "with at as (select coalesce($2::text::pg_snapshot, pg_current_snapshot()) as snapshot) ",
                "select at.snapshot::text as snapshot, event.* from at left join lateral (",
                "select event_id, xid::text as xid, tenant_id, kind, subject, principal, occurred_at, data, trace_parent from ",
                $schema, ".events ",
                "where (xid >= pg_snapshot_xmax($1::text::pg_snapshot) or xid = any(array(select pg_snapshot_xip($1::text::pg_snapshot)))) ",
                "and pg_visible_in_snapshot(xid, at.snapshot) and event_id > $3 ",
                "and ($4::text is null or tenant_id = $4) order by event_id limit $5) event on true order by event_id"
            ),
            claim: concat!(
                "insert into ", $schema, ".requests (tenant_id, principal, method, request_id, body_hash, created_at) ",
                "values ($1, $2, $3, $4, $5, $6) on conflict (tenant_id, principal, method, request_id) do update ",
                "set body_hash = excluded.body_hash, created_at = excluded.created_at, answer = null, salt = null ",
                "where ", $schema, ".requests.created_at <= $7"
            ),
            answered: concat!(
                "select body_hash, answer, salt from ", $schema, ".requests ",
                "where tenant_id = $1 and principal = $2 and method = $3 and request_id = $4"
            ),
            record: concat!(
                "update ", $schema, ".requests set answer = $5, salt = $6 ",
                "where tenant_id = $1 and principal = $2 and method = $3 and request_id = $4"
            ),
            purge: concat!(
                "delete from ", $schema, ".requests where (tenant_id, principal, method, request_id) in (",
                "select tenant_id, principal, method, request_id from ", $schema, ".requests ",
                "where created_at <= $1 order by created_at limit $2 for update skip locked)"
            ),
        }
    };
}

impl Outbox {
    /// Writes an event in the transaction of its change, after the change has locked its row.
    pub async fn append(&self, db: &mut PgConnection, event: &Event) -> sqlx::Result<()> {
        self.append_all(db, std::slice::from_ref(event)).await
    }

    /// As [`Outbox::append`], for many in one statement, in their order.
    pub async fn append_all(&self, db: &mut PgConnection, events: &[Event]) -> sqlx::Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        let texts = |column: fn(&Event) -> String| events.iter().map(column).collect::<Vec<_>>();
        sqlx::query(self.append)
            .bind(texts(|event| event.tenant.to_string()))
            .bind(texts(|event| event.kind.to_owned()))
            .bind(texts(|event| event.subject.clone()))
            .bind(texts(|event| event.principal.clone()))
            .bind(events.iter().map(|event| event.at).collect::<Vec<_>>())
            .bind(texts(|event| event.data.to_string()))
            .bind(crate::telemetry::trace_parent())
            .execute(db)
            .await?;
        Ok(())
    }

    /// Events that `base` did not see and `upto` (or the present) does, after `after`, by id; and what `upto` was.
    pub(crate) async fn read(
        &self,
        db: &mut PgConnection,
        base: &str,
        upto: Option<&str>,
        after: i64,
        tenant: Option<&TenantId>,
        limit: i64,
    ) -> sqlx::Result<(String, Vec<Stored>)> {
        let rows = sqlx::query(self.read)
            .bind(base)
            .bind(upto)
            .bind(after)
            .bind(tenant.map(TenantId::as_str))
            .bind(limit)
            .fetch_all(db)
            .await?;
        let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let snapshot = first.try_get("snapshot")?;
        let mut events = Vec::with_capacity(rows.len());
        for row in &rows {
            let Some(id) = row.try_get::<Option<i64>, _>("event_id")? else { break };
            let column =
                |error: &dyn std::fmt::Display| sqlx::Error::Decode(format!("event {id}: {error}").into());
            events.push(Stored {
                id,
                xid: row.try_get::<String, _>("xid")?.parse().map_err(|error| column(&error))?,
                tenant: row.try_get("tenant_id")?,
                kind: row.try_get("kind")?,
                subject: row.try_get("subject")?,
                principal: row.try_get("principal")?,
                at: row.try_get("occurred_at")?,
                data: serde_json::from_str(row.try_get("data")?).map_err(|error| column(&error))?,
                trace_parent: row.try_get("trace_parent")?,
            });
        }
        Ok((snapshot, events))
    }

    /// Forgets requests that were answered before `before`; says how many.
    pub async fn purge_requests(&self, db: &mut PgConnection, before: Time, limit: i64) -> sqlx::Result<u64> {
        Ok(sqlx::query(self.purge)
            .bind(before)
            .bind(limit)
            .execute(db)
            .await?
            .rows_affected())
    }
}

/// What a request's record is found by.
#[derive(Debug, Clone)]
pub(crate) struct RequestKey {
    pub(crate) tenant: TenantId,
    pub(crate) principal: String,
    pub(crate) method: &'static str,
    pub(crate) request_id: Uuid,
}

impl Outbox {
    /// Takes the key for this transaction; false when it is taken by one that committed after `expired_before`. Waits
    /// for one that is under way.
    pub(crate) async fn claim(
        &self,
        db: &mut PgConnection,
        key: &RequestKey,
        body_hash: &[u8],
        now: Time,
        expired_before: Time,
    ) -> sqlx::Result<bool> {
        let done = sqlx::query(self.claim)
            .bind(key.tenant.as_str())
            .bind(&key.principal)
            .bind(key.method)
            .bind(key.request_id)
            .bind(body_hash)
            .bind(now)
            .bind(expired_before)
            .execute(db)
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// `(body_hash, answer, salt)` of a request that was answered.
    pub(crate) async fn answered(
        &self,
        db: &mut PgConnection,
        key: &RequestKey,
    ) -> sqlx::Result<Option<(Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>)>> {
        sqlx::query_as(self.answered)
            .bind(key.tenant.as_str())
            .bind(&key.principal)
            .bind(key.method)
            .bind(key.request_id)
            .fetch_optional(db)
            .await
    }

    /// Keeps the answer, and the salt of a secret in it.
    pub(crate) async fn record(
        &self,
        db: &mut PgConnection,
        key: &RequestKey,
        answer: &[u8],
        salt: Option<&[u8]>,
    ) -> sqlx::Result<()> {
        sqlx::query(self.record)
            .bind(key.tenant.as_str())
            .bind(&key.principal)
            .bind(key.method)
            .bind(key.request_id)
            .bind(answer)
            .bind(salt)
            .execute(db)
            .await?;
        Ok(())
    }
}
