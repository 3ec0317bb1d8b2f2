//! Changes of windows that wait for their second person, and whether any has to.

use serde_json::{from_str, to_string};
use shared::id::{TenantId, WindowId};
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

use super::corrupt;
use crate::domain::policy::Profile;
use crate::domain::window::{Change, Proposed, Record, Window};

struct Row {
    window_id: WindowId,
    version: i64,
    change: String,
    terms: Option<String>,
    reason: Option<String>,
    author: String,
    author_person: String,
    proposed_at: Time,
}

impl TryFrom<Row> for Proposed {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let id = row.window_id;
        let broken = |column| corrupt("window_proposals", column, &id);
        let change = match (row.change.as_str(), row.terms, row.reason) {
            ("CREATE", None, None) => Change::Creation,
            ("UPDATE", Some(terms), None) => {
                let record: Record = from_str(&terms).map_err(|_| broken("terms"))?;
                Change::Update(Box::new(record.try_into().map_err(|_| broken("terms"))?))
            }
            ("DELETE", None, Some(reason)) => Change::Deletion { reason },
            _ => return Err(broken("change")),
        };
        Ok(Self { change, author: row.author, person: row.author_person, at: row.proposed_at })
    }
}

/// Keeps the change that waits, in the place of the one before it.
#[tracing::instrument(name = "db.window_proposal.replace", skip_all)]
pub async fn replace(
    db: &mut PgConnection,
    tenant: &TenantId,
    window: &Window,
    proposed: &Proposed,
) -> sqlx::Result<()> {
    let Proposed { change, author, person, at } = proposed;
    let (change, terms, reason) = match change {
        Change::Creation => ("CREATE", None, None),
        Change::Update(terms) => ("UPDATE", Some(to_string(&Record::from(&**terms))), None),
        Change::Deletion { reason } => ("DELETE", None, Some(reason)),
    };
    sqlx::query!(
        "insert into release.window_proposals
            (tenant_id, window_id, version, change, terms, reason, author, author_person, proposed_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        on conflict (tenant_id, window_id) do update
        set version = excluded.version, change = excluded.change, terms = excluded.terms, reason = excluded.reason,
            author = excluded.author, author_person = excluded.author_person, proposed_at = excluded.proposed_at",
        tenant.as_str(),
        window.id.uuid(),
        window.row_version,
        change,
        terms.transpose().map_err(|error| sqlx::Error::Encode(error.into()))?,
        reason,
        author,
        person,
        at,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The same windows, each with the change of its present version that waits.
#[tracing::instrument(name = "db.window_proposal.put_on", skip_all)]
pub(super) async fn put_on(
    db: &mut PgConnection,
    tenant: &TenantId,
    mut windows: Vec<Window>,
) -> sqlx::Result<Vec<Window>> {
    let ids: Vec<Uuid> = windows.iter().map(|window| window.id.uuid()).collect();
    let rows = sqlx::query_as!(
        Row,
        r#"select window_id as "window_id: WindowId", version, change, terms, reason, author, author_person, proposed_at
        from release.window_proposals
        where tenant_id = $1 and window_id = any($2)
        limit cardinality($2)"#,
        tenant.as_str(),
        &ids,
    )
    .fetch_all(db)
    .await?;
    for row in rows {
        let of = windows
            .iter_mut()
            .find(|window| (window.id, window.row_version) == (row.window_id, row.version));
        if let Some(window) = of {
            window.proposed = Some(row.try_into()?);
        }
    }
    Ok(windows)
}

/// Whether windows take two people: some component follows a policy that does.
#[tracing::instrument(name = "db.window_proposal.takes_two", skip_all)]
pub async fn takes_two(db: &mut PgConnection, tenant: &TenantId) -> sqlx::Result<bool> {
    let profiles = Profile::ALL.into_iter().filter(|profile| profile.rules().two_people);
    let profiles: Vec<_> = profiles.map(|profile| profile.name().to_owned()).collect();
    sqlx::query_scalar!(
        r#"select exists (
            select from release.components
            join release.approval_policies using (tenant_id, approval_policy)
            where tenant_id = $1 and coalesce((rules::jsonb ->> 'two_people')::boolean, profile = any($2))
        ) as "takes_two!""#,
        tenant.as_str(),
        &profiles,
    )
    .fetch_one(db)
    .await
}
