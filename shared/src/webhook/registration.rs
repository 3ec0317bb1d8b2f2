//! Webhooks as they are registered, and their secrets: derived from a salt with a key of the ring whenever they are used,
//! so that the database holds none.

use http::Uri;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};

use super::Webhooks;
use super::sender::SigningKey;
use crate::id::{TenantId, WebhookId};
use crate::keyring::Purpose;
use crate::secret::Secret;
use crate::status::Failure;
use crate::time::Time;

/// Of one tenant.
pub(super) const WEBHOOKS_MAX: i64 = 32;
const URL_MAX_BYTES: usize = 2000;
/// Random bytes of a salt, after the key's id.
const SALT: usize = 16;

/// A receiver.
#[derive(Debug, Clone, FromRow)]
pub(super) struct Webhook {
    #[sqlx(rename = "webhook_id")]
    pub(super) id: WebhookId,
    pub(super) url: String,
    pub(super) types: Vec<String>,
    pub(super) description: String,
    pub(super) salt: Vec<u8>,
    pub(super) old_salt: Option<Vec<u8>>,
    pub(super) old_salt_until: Option<Time>,
    pub(super) disabled_reason: Option<String>,
    pub(super) failing_since: Option<Time>,
    pub(super) created_at: Time,
    pub(super) version: i64,
}

/// A URL that events can be posted to, as far as can be seen from it.
pub(super) fn parse_url(text: &str) -> Result<Uri, &'static str> {
    const EXPECTED: &str =
        "must be an https URL of at most 2,000 characters, without user, password and fragment";
    let uri: Uri = text.parse().map_err(|_| EXPECTED)?;
    let is_http = matches!(uri.scheme_str(), Some("https" | "http"));
    let has_user = uri.authority().is_none_or(|authority| authority.as_str().contains('@'));
    let is_odd = text.len() > URL_MAX_BYTES || text.contains('#') || uri.host().is_none_or(str::is_empty);
    if is_http && !has_user && !is_odd { Ok(uri) } else { Err(EXPECTED) }
}

impl Webhooks {
    /// What a new secret is derived from.
    pub(super) fn new_salt(&self, now: Time) -> Result<Vec<u8>, Failure> {
        let key = self.keys.load().current(Purpose::Webhook, now)?;
        Ok([&key.to_be_bytes()[..], &self.entropy.bytes::<SALT>()].concat())
    }

    /// The secret of a salt; `None` if the ring's key was retired.
    pub(super) fn signing_key(&self, tenant: &TenantId, id: WebhookId, salt: &[u8]) -> Option<SigningKey> {
        let key = u32::from_be_bytes(*salt.first_chunk()?);
        let schema = self.outbox.schema.as_bytes();
        let uuid = id.uuid();
        let parts: [&[u8]; 4] = [schema, tenant.as_str().as_bytes(), uuid.as_bytes(), salt];
        self.keys.load().mac(Purpose::Webhook, key, &parts).map(Secret::new)
    }

    /// Makes room for one more of the tenant's; false if there is none. Held until the transaction ends.
    pub(super) async fn reserve(&self, tx: &mut PgConnection, tenant: &TenantId) -> sqlx::Result<bool> {
        sqlx::query("select pg_advisory_xact_lock(hashtextextended($1, 0))")
            .bind(format!("{}.webhooks {tenant}", self.outbox.schema))
            .execute(&mut *tx)
            .await?;
        let count: i64 =
            sqlx::query_scalar(self.sql("select count(*) from {s}.webhooks where tenant_id = $1"))
                .bind(tenant)
                .fetch_one(tx)
                .await?;
        Ok(count < WEBHOOKS_MAX)
    }

    fn select(&self, which: &'static str) -> AssertSqlSafe<String> {
        let columns = "webhook_id, url, types, description, salt, old_salt, old_salt_until, disabled_reason, failing_since, \
                       created_at, version";
        AssertSqlSafe(format!("select {columns} from {}.webhooks {which}", self.outbox.schema))
    }

    pub(super) async fn insert(
        &self,
        tx: &mut PgConnection,
        tenant: &TenantId,
        webhook: &Webhook,
    ) -> sqlx::Result<()> {
        let sql = "insert into {s}.webhooks (tenant_id, webhook_id, url, types, description, salt, disabled_reason, \
                   created_at, version) values ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
        sqlx::query(self.sql(sql))
            .bind(tenant)
            .bind(webhook.id)
            .bind(&webhook.url)
            .bind(&webhook.types)
            .bind(&webhook.description)
            .bind(&webhook.salt)
            .bind(&webhook.disabled_reason)
            .bind(webhook.created_at)
            .bind(webhook.version)
            .execute(tx)
            .await
            .map(drop)
    }

    pub(super) async fn find(
        &self,
        db: &mut PgConnection,
        tenant: &TenantId,
        id: WebhookId,
    ) -> sqlx::Result<Option<Webhook>> {
        sqlx::query_as(self.select("where tenant_id = $1 and webhook_id = $2"))
            .bind(tenant)
            .bind(id)
            .fetch_optional(db)
            .await
    }

    /// As `find`, and nobody else changes it until the transaction ends.
    pub(super) async fn lock(
        &self,
        tx: &mut PgConnection,
        tenant: &TenantId,
        id: WebhookId,
    ) -> sqlx::Result<Option<Webhook>> {
        sqlx::query_as(self.select("where tenant_id = $1 and webhook_id = $2 for update"))
            .bind(tenant)
            .bind(id)
            .fetch_optional(tx)
            .await
    }

    /// Writes what can change; the row is locked.
    pub(super) async fn update(
        &self,
        tx: &mut PgConnection,
        tenant: &TenantId,
        webhook: &Webhook,
    ) -> sqlx::Result<()> {
        let sql = "update {s}.webhooks set url = $3, types = $4, description = $5, salt = $6, old_salt = $7, \
                   old_salt_until = $8, disabled_reason = $9, failing_since = $10, version = $11 \
                   where tenant_id = $1 and webhook_id = $2";
        sqlx::query(self.sql(sql))
            .bind(tenant)
            .bind(webhook.id)
            .bind(&webhook.url)
            .bind(&webhook.types)
            .bind(&webhook.description)
            .bind(&webhook.salt)
            .bind(&webhook.old_salt)
            .bind(webhook.old_salt_until)
            .bind(&webhook.disabled_reason)
            .bind(webhook.failing_since)
            .bind(webhook.version)
            .execute(tx)
            .await
            .map(drop)
    }

    /// Whether there was one. What waits for it is found by nobody, and purged.
    pub(super) async fn delete(
        &self,
        tx: &mut PgConnection,
        tenant: &TenantId,
        id: WebhookId,
    ) -> sqlx::Result<bool> {
        let done = sqlx::query(self.sql("delete from {s}.webhooks where tenant_id = $1 and webhook_id = $2"))
            .bind(tenant)
            .bind(id)
            .execute(tx)
            .await?;
        Ok(done.rows_affected() == 1)
    }

    pub(super) async fn list(
        &self,
        db: &mut PgConnection,
        tenant: &TenantId,
        after: Option<WebhookId>,
        limit: i64,
    ) -> sqlx::Result<Vec<Webhook>> {
        let page =
            "where tenant_id = $1 and ($2::uuid is null or webhook_id > $2) order by webhook_id limit $3";
        sqlx::query_as(self.select(page))
            .bind(tenant)
            .bind(after)
            .bind(limit)
            .fetch_all(db)
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_http_with_a_host_and_nothing_hidden() {
        for good in ["https://example.com", "https://example.com:8443/a?b=c", "http://[fd00::1]/x"] {
            assert!(parse_url(good).is_ok(), "{good}");
        }
        let long = format!("https://example.com/{}", "a".repeat(URL_MAX_BYTES));
        for bad in [
            "",
            "example.com",
            "/path",
            "ftp://example.com",
            "https://",
            "https:///path",
            "https://user@example.com",
            "https://a:b@example.com",
            "https://example.com/#x",
            "https://exa mple.com",
            "javascript:alert(1)",
            &long,
        ] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
    }
}
