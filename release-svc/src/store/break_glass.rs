//! Uses of break-glass and their reviews.

use shared::id::{BreakGlassId, ReleaseId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;

use super::corrupt;
use crate::domain::break_glass::{BreakGlass, Review, Verdict};

struct Row {
    break_glass_id: BreakGlassId,
    seq: i64,
    release_id: ReleaseId,
    revision: i32,
    principal: String,
    person: String,
    reason: String,
    used_at: Time,
    due_at: Time,
    verdict: Option<String>,
    reviewer: Option<String>,
    reviewer_person: Option<String>,
    review_reason: Option<String>,
    reviewed_at: Option<Time>,
    version: i64,
}

impl TryFrom<Row> for BreakGlass {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let id = row.break_glass_id;
        let review =
            match (row.verdict, row.reviewer, row.reviewer_person, row.review_reason, row.reviewed_at) {
                (Some(verdict), Some(reviewer), Some(person), Some(reason), Some(at)) => {
                    let verdict = Verdict::ALL.into_iter().find(|known| known.name() == verdict);
                    let verdict = verdict.ok_or_else(|| corrupt("break_glasses", "verdict", &id))?;
                    Some(Review { verdict, reviewer, person, reason, at })
                }
                _ => None,
            };
        Ok(Self {
            id,
            release: row.release_id,
            revision: row.revision,
            principal: row.principal,
            person: row.person,
            reason: row.reason,
            used_at: row.used_at,
            due_at: row.due_at,
            review,
            row_version: row.version,
        })
    }
}

/// A new one, unless one on the release was a violation.
#[tracing::instrument(name = "db.break_glass.insert", skip_all)]
pub async fn insert(db: &mut PgConnection, tenant: &TenantId, used: &BreakGlass) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "insert into release.break_glasses
            (tenant_id, break_glass_id, release_id, revision, principal, person, reason, used_at, due_at, version)
        select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10
        where not exists (
            select
            from release.break_glasses
            where tenant_id = $1 and release_id = $3 and verdict = 'VIOLATION'
        )",
        tenant.as_str(),
        used.id.uuid(),
        used.release.uuid(),
        used.revision,
        used.principal,
        used.person,
        used.reason,
        used.used_at,
        used.due_at,
        used.row_version,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// One on a release that was a violation.
#[tracing::instrument(name = "db.break_glass.find_violation", skip_all)]
pub async fn find_violation(
    db: &mut PgConnection,
    tenant: &TenantId,
    release: ReleaseId,
) -> sqlx::Result<Option<BreakGlassId>> {
    sqlx::query_scalar!(
        r#"select break_glass_id as "break_glass_id: BreakGlassId"
        from release.break_glasses
        where tenant_id = $1 and release_id = $2 and verdict = 'VIOLATION'
        limit 1"#,
        tenant.as_str(),
        release.uuid(),
    )
    .fetch_optional(db)
    .await
}

/// One that is overdue, of this person, by the aliases of then or of now, or of this caller while they went by another name.
#[tracing::instrument(name = "db.break_glass.find_overdue", skip_all)]
pub async fn find_overdue(
    db: &mut PgConnection,
    tenant: &TenantId,
    (person, principal): (&str, &str),
    now: Time,
) -> sqlx::Result<Option<BreakGlassId>> {
    sqlx::query_scalar!(
        r#"select break_glass_id as "break_glass_id: BreakGlassId"
        from release.break_glasses
        where tenant_id = $1 and verdict is null and due_at <= $4
            and (
                person in ($2, $3) or principal in ($2, $3)
                or exists (
                    select
                    from release.identity_aliases alias
                    where alias.tenant_id = $1 and alias.alias = principal and alias.person = $2
                )
            )
        order by due_at
        limit 1"#,
        tenant.as_str(),
        person,
        principal,
        now,
    )
    .fetch_optional(db)
    .await
}

#[tracing::instrument(name = "db.break_glass.find", skip_all)]
pub async fn find(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: BreakGlassId,
) -> sqlx::Result<Option<BreakGlass>> {
    let row = sqlx::query_as!(
        Row,
        r#"select break_glass_id as "break_glass_id: BreakGlassId", seq, release_id as "release_id: ReleaseId", revision,
            principal, person, reason, used_at, due_at, verdict, reviewer, reviewer_person, review_reason, reviewed_at,
            version
        from release.break_glasses
        where tenant_id = $1 and break_glass_id = $2"#,
        tenant.as_str(),
        id.uuid(),
    )
    .fetch_optional(db)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// Newest first, beginning before `before`, each with what the next page begins before.
#[tracing::instrument(name = "db.break_glass.list", skip_all)]
pub async fn list(
    db: &mut PgConnection,
    tenant: &TenantId,
    open_only: bool,
    before: i64,
    limit: i64,
) -> sqlx::Result<Vec<(i64, BreakGlass)>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select break_glass_id as "break_glass_id: BreakGlassId", seq, release_id as "release_id: ReleaseId", revision,
            principal, person, reason, used_at, due_at, verdict, reviewer, reviewer_person, review_reason, reviewed_at,
            version
        from release.break_glasses
        where tenant_id = $1 and (not $2 or verdict is null) and seq < $3
        order by seq desc
        limit $4"#,
        tenant.as_str(),
        open_only,
        before,
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(|row| Ok((row.seq, row.try_into()?))).collect()
}

/// Writes a review down, if nobody was faster.
#[tracing::instrument(name = "db.break_glass.review", skip_all)]
pub async fn review(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: BreakGlassId,
    review: &Review,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update release.break_glasses
        set verdict = $3, reviewer = $4, reviewer_person = $5, review_reason = $6, reviewed_at = $7, version = version + 1
        where tenant_id = $1 and break_glass_id = $2 and verdict is null",
        tenant.as_str(),
        id.uuid(),
        review.verdict.name(),
        review.reviewer,
        review.person,
        review.reason,
        review.at,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}
