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

/// Locks a session for a change of its attributes, and answers a version that none of them ever had; none if it was
/// revoked. A version goes back to nobody when its key is removed, so the highest is kept with the session.
#[tracing::instrument(name = "db.attribute.begin", skip_all)]
pub async fn begin(db: &mut PgConnection, tenant: &TenantId, id: SessionId) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar!(
        r#"update session.sessions
        set attribute_version = coalesce(attribute_version, 0) + 1
        where tenant_id = $1 and session_id = $2 and revoked_at is null
        returning attribute_version as "version!""#,
        tenant.as_str(),
        id.uuid(),
    )
    .fetch_optional(db)
    .await
}

/// Writes those of these keys that are among the attributes of a locked session, and removes the others.
#[tracing::instrument(name = "db.attribute.write", skip_all, fields(count = keys.len()))]
pub async fn write(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: SessionId,
    keys: &[String],
    attributes: &[Attribute],
) -> sqlx::Result<()> {
    let set: Vec<_> = attributes.iter().filter(|attribute| keys.contains(&attribute.key)).collect();
    sqlx::query!(
        "with removed as (
            delete from session.attributes
            where tenant_id = $1 and session_id = $2 and key = any($6) and key <> all($3)
        )
        insert into session.attributes (tenant_id, session_id, key, value, version)
        select $1, $2, key, value, version
        from unnest($3::text[], $4::text[], $5::bigint[]) as attribute (key, value, version)
        on conflict (tenant_id, session_id, key) do update set value = excluded.value, version = excluded.version",
        tenant.as_str(),
        id.uuid(),
        &set.iter().map(|it| it.key.clone()).collect::<Vec<_>>(),
        &set.iter().map(|it| it.value.clone()).collect::<Vec<_>>(),
        &set.iter().map(|it| it.version).collect::<Vec<_>>(),
        keys,
    )
    .execute(db)
    .await
    .map(drop)
}
