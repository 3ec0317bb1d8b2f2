//! Other names of people.

use std::collections::HashMap;

use shared::id::TenantId;
use shared::time::Time;
use sqlx::PgConnection;

use super::corrupt;
use crate::domain::identity::{Alias, IdentityAlias, Person, is_principal};

struct Row {
    alias: String,
    person: String,
    created_at: Time,
}

impl TryFrom<Row> for IdentityAlias {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        // The alias itself may be an address, which errors do not tell of.
        let broken = |column| corrupt("identity_aliases", column, &row.person);
        Ok(Self {
            alias: row.alias.parse().map_err(|_| broken("alias"))?,
            person: row.person.parse().map_err(|_| broken("person"))?,
            created_at: row.created_at,
        })
    }
}

/// Makes whoever else changes aliases of the tenant wait until this transaction ends.
#[tracing::instrument(name = "db.identity.lock_all", skip_all)]
pub async fn lock_all(db: &mut PgConnection, tenant: &TenantId) -> sqlx::Result<()> {
    sqlx::query!(
        "select pg_advisory_xact_lock(hashtextextended('release.identity ' || $1, 0))",
        tenant.as_str(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The person that each name stands for: whose alias it is, else itself if it is an `issuer|sub`, else nobody.
#[tracing::instrument(name = "db.identity.persons", skip_all)]
pub async fn persons(
    db: &mut PgConnection,
    tenant: &TenantId,
    names: &[String],
) -> sqlx::Result<HashMap<String, Option<String>>> {
    let folded: Vec<_> = names.iter().map(|name| Alias::folded(name)).collect();
    let rows = sqlx::query!(
        "select alias, person
        from release.identity_aliases
        where tenant_id = $1 and alias = any($2)
        limit cardinality($2)",
        tenant.as_str(),
        &folded,
    )
    .fetch_all(db)
    .await?;
    let known: HashMap<_, _> = rows.into_iter().map(|row| (row.alias, row.person)).collect();
    let person = |(name, folded): (&String, String)| {
        let itself = || is_principal(name).then(|| name.clone());
        (name.clone(), known.get(&folded).cloned().or_else(itself))
    };
    Ok(names.iter().zip(folded).map(person).collect())
}

/// Whether somebody has an alias under this name.
#[tracing::instrument(name = "db.identity.has_alias", skip_all)]
pub async fn has_alias(db: &mut PgConnection, tenant: &TenantId, person: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (
            select from release.identity_aliases where tenant_id = $1 and person = $2
        ) as "has_alias!""#,
        tenant.as_str(),
        person,
    )
    .fetch_one(db)
    .await
}

/// Makes an alias, or gives it to another person.
#[tracing::instrument(name = "db.identity.upsert", skip_all)]
pub async fn upsert(db: &mut PgConnection, tenant: &TenantId, alias: &IdentityAlias) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into release.identity_aliases (tenant_id, alias, person, created_at)
        values ($1, $2, $3, $4)
        on conflict (tenant_id, alias) do update set person = excluded.person, created_at = excluded.created_at",
        tenant.as_str(),
        alias.alias.as_str(),
        alias.person.as_str(),
        alias.created_at,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Forgets an alias; answers what it was.
#[tracing::instrument(name = "db.identity.delete", skip_all)]
pub async fn delete(
    db: &mut PgConnection,
    tenant: &TenantId,
    alias: &Alias,
) -> sqlx::Result<Option<IdentityAlias>> {
    let row = sqlx::query_as!(
        Row,
        "delete from release.identity_aliases
        where tenant_id = $1 and alias = $2
        returning alias, person, created_at",
        tenant.as_str(),
        alias.as_str(),
    )
    .fetch_optional(db)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// By alias, beginning after `after`, all or one person's.
#[tracing::instrument(name = "db.identity.list", skip_all)]
pub async fn list(
    db: &mut PgConnection,
    tenant: &TenantId,
    person: Option<&Person>,
    after: &str,
    limit: i64,
) -> sqlx::Result<Vec<IdentityAlias>> {
    let rows = sqlx::query_as!(
        Row,
        "select alias, person, created_at
        from release.identity_aliases
        where tenant_id = $1 and ($2::text is null or person = $2) and alias > $3
        order by alias
        limit $4",
        tenant.as_str(),
        person.map(Person::as_str),
        after,
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}
