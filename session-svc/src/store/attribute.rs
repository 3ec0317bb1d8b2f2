//! `session.attributes`.

use shared::id::{SessionId, TenantId};
use sqlx::PgConnection;

use crate::domain::attribute::Attribute;

/// A session's attributes, by key.
#[tracing::instrument(name = "db.attribute.list", skip_all)]
pub async fn list(db: &mut PgConnection, tenant: &TenantId, id: SessionId) -> sqlx::Result<Vec<Attribute>> {
    sqlx::query_as!(
        Attribute,
        r#"select key, value, version
        from session.attributes
        where tenant_id = $1 and session_id = $2
        order by key collate "C"
        "#,
        tenant.as_str(),
        id.uuid(),
    )
    .fetch_all(db)
    .await
}
