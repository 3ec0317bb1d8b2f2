//! Events beside the change they tell of, and requests that were answered: the statements that both services run, each on
//! its own schema.
//!
//! Ids are drawn before commit, so reading on from the last id would skip what commits late. Reading goes on from the
//! last *snapshot* instead: a row is new when the snapshot did not see its transaction.

use serde_json::Value;
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use crate::id::TenantId;
use crate::snapshot::{Cursor, Malformed, Snapshot};
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
    /// W3C trace context of the request that caused it.
    pub trace_parent: String,
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

/// A kind of events: its name, `noun.past_tense`, and what happened, as a sentence.
pub type Kind = (&'static str, &'static str);

/// The statements on one schema, and the kinds of its events. Make it with [`crate::outbox!`].
pub struct Outbox {
    #[doc(hidden)]
    pub schema: &'static str,
    #[doc(hidden)]
    pub kinds: &'static [Kind],
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
    #[doc(hidden)]
    pub lock_purged: &'static str,
    #[doc(hidden)]
    pub purge_events: &'static str,
    #[doc(hidden)]
    pub note_purged: &'static str,
}

/// The [`Outbox`] of a schema, with these [`Kind`]s beside those of webhooks.
#[macro_export]
macro_rules! outbox {
    ($schema:literal, $kinds:expr) => {
        $crate::outbox::Outbox {
            schema: $schema,
            kinds: $kinds,
            append: concat!(
                "insert into ", $schema, ".events (tenant_id, kind, subject, principal, occurred_at, data, trace_parent) ",
                "select tenant_id, kind, subject, principal, occurred_at, data, trace_parent ",
                "from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::text[]) with ordinality ",
                "as event (tenant_id, kind, subject, principal, occurred_at, data, trace_parent, position) order by position"
            ),
            // One snapshot serves the position and the rows: a statement sees what its snapshot sees. The first bound follows
            // from the second; without it, on a table that has no statistics yet, the whole index is read.
            read: concat!(
                "with at as (select coalesce($2::text::pg_snapshot, pg_current_snapshot()) as snapshot) ",
                "select at.snapshot::text as snapshot, (select position from ", $schema, ".outbox_positions ",
                "where name = 'purge' and cluster = $6) as purged, event.* from at left join lateral (",
                "select event_id, xid::text as xid, tenant_id, kind, subject, principal, occurred_at, data, trace_parent from ",
                $schema, ".events ",
                "where xid >= pg_snapshot_xmin($1::text::pg_snapshot) ",
                "and (xid >= pg_snapshot_xmax($1::text::pg_snapshot) or xid = any(array(select pg_snapshot_xip($1::text::pg_snapshot)))) ",
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
            // The setting tells the trail of release-svc that it is the purge that deletes.
            lock_purged: concat!(
                "select position, cluster, set_config('", $schema, ".purge', 'on', true) from ",
                $schema, ".outbox_positions where name = 'purge' for update skip locked"
            ),
            // In the order of the feed's index; nothing goes that webhooks were not told of.
            purge_events: concat!(
                "with oldest as (select tenant_id, event_id, xid, occurred_at from ", $schema, ".events ",
                "order by xid, event_id limit $2), ",
                "deleted as (delete from ", $schema, ".events as event using oldest, ", $schema, ".outbox_positions as told ",
                "where event.tenant_id = oldest.tenant_id and event.event_id = oldest.event_id and oldest.occurred_at <= $1 ",
                "and told.name = 'fan_out' ",
                "and (pg_visible_in_snapshot(oldest.xid, split_part(told.position, '/', 1)::pg_snapshot) ",
                "or not exists (select from ", $schema, ".webhooks where disabled_reason is null)) returning event.xid) ",
                "select count(*), max(xid)::text, pg_current_snapshot()::text from deleted"
            ),
            note_purged: concat!(
                "update ", $schema, ".outbox_positions set position = $1, cluster = $2 where name = 'purge'"
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
        let unlisted = || events.iter().map(|event| event.kind).find(|kind| !self.tells_of(kind));
        debug_assert_eq!(unlisted(), None, "the service's `kinds.rs` lists what it tells of");
        let texts = |column: fn(&Event) -> String| events.iter().map(column).collect::<Vec<_>>();
        sqlx::query(self.append)
            .bind(texts(|event| event.tenant.to_string()))
            .bind(texts(|event| event.kind.to_owned()))
            .bind(texts(|event| event.subject.clone()))
            .bind(texts(|event| event.principal.clone()))
            .bind(events.iter().map(|event| event.at).collect::<Vec<_>>())
            .bind(texts(|event| event.data.to_string()))
            .bind(texts(|event| event.trace_parent.clone()))
            .execute(db)
            .await?;
        Ok(())
    }

    /// Every kind of event, by name.
    pub fn kinds(&self) -> Vec<Kind> {
        let mut kinds = [self.kinds, crate::webhook::KINDS].concat();
        kinds.sort_unstable();
        kinds
    }

    /// Whether there is such a kind; tests have theirs.
    fn tells_of(&self, kind: &str) -> bool {
        kind.starts_with("test.")
            || self.kinds.iter().chain(crate::webhook::KINDS).any(|(name, _)| *name == kind)
    }

    /// The next events after `cursor`, by id, at most `limit`. `cluster` names the database, so that only what was deleted
    /// in this one counts.
    pub(crate) async fn read(
        &self,
        db: &mut PgConnection,
        cursor: &Cursor,
        tenant: Option<&TenantId>,
        limit: i64,
        cluster: &str,
    ) -> sqlx::Result<Page> {
        let (upto, after) = match &cursor.page {
            Some((upto, id)) => (Some(upto.to_string()), *id),
            None => (None, i64::MIN),
        };
        let rows = sqlx::query(self.read)
            .bind(cursor.base.to_string())
            .bind(upto)
            .bind(after)
            .bind(tenant.map(TenantId::as_str))
            .bind(limit)
            .bind(cluster)
            .fetch_all(db)
            .await?;
        let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let upto = parse(first.try_get("snapshot")?)?;
        let purged = first.try_get::<Option<&str>, _>("purged")?.map(parse).transpose()?;
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
        let is_last = i64::try_from(events.len()).unwrap_or(limit) < limit;
        Ok(Page { upto, purged, events, is_last })
    }

    /// Deletes events that happened until `before`, at most `limit` of them and the oldest first, and writes down what a
    /// reader must have seen from now on. Says how many; `None` where another replica is at it.
    pub(crate) async fn purge_events(
        &self,
        tx: &mut PgConnection,
        before: Time,
        limit: i64,
        cluster: &str,
    ) -> sqlx::Result<Option<i64>> {
        let locked: Option<(Option<String>, Option<String>, String)> =
            sqlx::query_as(self.lock_purged).fetch_optional(&mut *tx).await?;
        let Some((earlier, of, _)) = locked else { return Ok(None) };
        let (count, last, present): (i64, Option<String>, String) = sqlx::query_as(self.purge_events)
            .bind(before)
            .bind(limit)
            .fetch_one(&mut *tx)
            .await?;
        let Some(last) = last else { return Ok(Some(count)) };
        let last: u64 = last.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        // What was deleted in another database says nothing about this one's.
        let earlier = earlier.filter(|_| of.as_deref() == Some(cluster));
        let earlier = earlier.as_deref().map(parse).transpose()?.map_or(0, |earlier| earlier.last());
        let purged = parse(&present)?.up_to(last.max(earlier));
        sqlx::query(self.note_purged)
            .bind(purged.to_string())
            .bind(cluster)
            .execute(tx)
            .await?;
        Ok(Some(count))
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

/// What one snapshot shows beyond a cursor.
#[derive(Debug)]
pub(crate) struct Page {
    /// The snapshot.
    pub(crate) upto: Snapshot,
    /// Sees all that was deleted before.
    purged: Option<Snapshot>,
    /// By id.
    pub(crate) events: Vec<Stored>,
    /// Whether that is all that it shows.
    pub(crate) is_last: bool,
}

impl Page {
    /// Whether nothing is missing between the cursor and the page: no commit was lost, and nothing deleted unseen.
    pub(crate) fn follows(&self, cursor: &Cursor) -> bool {
        self.upto.covers(&cursor.base) && self.purged.as_ref().is_none_or(|purged| cursor.base.covers(purged))
    }

    /// The position after it.
    pub(crate) fn end(&self, cursor: Cursor) -> Cursor {
        match self.events.last() {
            Some(event) if !self.is_last => {
                Cursor { base: cursor.base, page: Some((self.upto.clone(), event.id)) }
            }
            _ => Cursor::after(self.upto.clone()),
        }
    }
}

pub(crate) fn parse(snapshot: &str) -> sqlx::Result<Snapshot> {
    snapshot.parse().map_err(|error: Malformed| sqlx::Error::Decode(error.into()))
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
