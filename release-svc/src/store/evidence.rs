//! Evidence.

use shared::id::{ComponentId, EvidenceId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;

use super::corrupt;
use crate::domain::evidence::{Counts, Evidence, Kind, Review, Revocation};
use crate::domain::snapshot::Digest;

/// What a list is narrowed to.
pub struct Filter<'a> {
    pub component: Option<&'a ComponentId>,
    pub artifact_digest: Option<&'a Digest>,
    /// Names; empty for all.
    pub kinds: &'a [String],
    /// Leaves out what is revoked, and all but the last of a kind and suite for an artifact.
    pub counting_only: bool,
}

struct Row {
    evidence_id: EvidenceId,
    seq: i64,
    component: ComponentId,
    artifact_digest: String,
    kind: String,
    suite: String,
    passed: bool,
    count_passed: i32,
    count_failed: i32,
    count_skipped: i32,
    url: String,
    summary: String,
    reviewer: Option<String>,
    authors: Option<Vec<String>>,
    statement_type: Option<String>,
    producer: String,
    produced_at: Time,
    submitted_at: Time,
    revoker: Option<String>,
    revoked_at: Option<Time>,
    revoke_reason: Option<String>,
}

impl TryFrom<Row> for Evidence {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let id = row.evidence_id;
        let broken = |column| corrupt("evidence", column, &id);
        let review = match (row.reviewer, row.authors) {
            (Some(reviewer), Some(authors)) => {
                Some(Review::new(reviewer, authors).map_err(|_| broken("reviewer"))?)
            }
            (None, None) => None,
            (_, _) => return Err(broken("authors")),
        };
        let revocation = match (row.revoker, row.revoked_at, row.revoke_reason) {
            (Some(by), Some(at), Some(reason)) => Some(Revocation { by, at, reason }),
            (None, None, None) => None,
            (_, _, _) => return Err(broken("revoker")),
        };
        Ok(Self {
            id,
            component: row.component,
            artifact_digest: row.artifact_digest.parse().map_err(|_| broken("artifact_digest"))?,
            kind: Kind::from_name(&row.kind).ok_or_else(|| broken("kind"))?,
            suite: row.suite,
            has_passed: row.passed,
            counts: Counts { passed: row.count_passed, failed: row.count_failed, skipped: row.count_skipped },
            url: row.url,
            summary: row.summary,
            review,
            statement_type: row.statement_type,
            producer: row.producer,
            produced_at: row.produced_at,
            submitted_at: row.submitted_at,
            revocation,
        })
    }
}

/// New evidence, and its statement if it has one.
#[tracing::instrument(name = "db.evidence.insert", skip_all)]
pub async fn insert(
    db: &mut PgConnection,
    tenant: &TenantId,
    evidence: &Evidence,
    statement: Option<&[u8]>,
) -> sqlx::Result<()> {
    let Counts { passed, failed, skipped } = evidence.counts;
    sqlx::query!(
        "insert into release.evidence
            (tenant_id, evidence_id, component, artifact_digest, kind, suite, passed, count_passed, count_failed,
            count_skipped, url, summary, reviewer, authors, statement_type, statement, producer, produced_at,
            submitted_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)",
        tenant.as_str(),
        evidence.id.uuid(),
        evidence.component.as_str(),
        evidence.artifact_digest.as_str(),
        evidence.kind.name(),
        evidence.suite,
        evidence.has_passed,
        passed,
        failed,
        skipped,
        evidence.url,
        evidence.summary,
        evidence.review.as_ref().map(Review::reviewer),
        evidence.review.as_ref().map(Review::authors) as Option<&[String]>,
        evidence.statement_type,
        statement,
        evidence.producer,
        evidence.produced_at,
        evidence.submitted_at,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// How many there are about an artifact of a component.
#[tracing::instrument(name = "db.evidence.count", skip_all)]
pub async fn count(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: &ComponentId,
    artifact: &Digest,
) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "count!"
        from release.evidence
        where tenant_id = $1 and component = $2 and artifact_digest = $3"#,
        tenant.as_str(),
        component.as_str(),
        artifact.as_str(),
    )
    .fetch_one(db)
    .await
}

#[tracing::instrument(name = "db.evidence.find", skip_all)]
pub async fn find(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: EvidenceId,
) -> sqlx::Result<Option<Evidence>> {
    let row = sqlx::query_as!(
        Row,
        r#"select evidence_id as "evidence_id: EvidenceId", seq, component as "component: ComponentId",
            artifact_digest, kind, suite, passed, count_passed, count_failed, count_skipped, url, summary, reviewer,
            authors, statement_type, producer, produced_at, submitted_at, revoker, revoked_at, revoke_reason
        from release.evidence
        where tenant_id = $1 and evidence_id = $2"#,
        tenant.as_str(),
        id.uuid(),
    )
    .fetch_optional(db)
    .await?;
    row.map(Evidence::try_from).transpose()
}

/// The bytes of the statement that came with it.
#[tracing::instrument(name = "db.evidence.find_statement", skip_all)]
pub async fn find_statement(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: EvidenceId,
) -> sqlx::Result<Option<Vec<u8>>> {
    let statement = sqlx::query_scalar!(
        "select statement from release.evidence where tenant_id = $1 and evidence_id = $2",
        tenant.as_str(),
        id.uuid(),
    )
    .fetch_optional(db)
    .await?;
    Ok(statement.flatten())
}

/// What came last first, beginning before `before`, each with what the next page begins before.
#[tracing::instrument(name = "db.evidence.list", skip_all)]
pub async fn list(
    db: &mut PgConnection,
    tenant: &TenantId,
    filter: Filter<'_>,
    before: i64,
    limit: i64,
) -> sqlx::Result<Vec<(i64, Evidence)>> {
    let Filter { component, artifact_digest, kinds, counting_only } = filter;
    let rows = sqlx::query_as!(
        Row,
        r#"select evidence_id as "evidence_id: EvidenceId", seq, component as "component: ComponentId",
            artifact_digest, kind, suite, passed, count_passed, count_failed, count_skipped, url, summary, reviewer,
            authors, statement_type, producer, produced_at, submitted_at, revoker, revoked_at, revoke_reason
        from release.evidence this
        where tenant_id = $1
            and ($2::text is null or component = $2)
            and ($3::text is null or artifact_digest = $3)
            and (cardinality($4::text[]) = 0 or kind = any($4))
            and (not $5 or revoked_at is null and not exists (
                select
                from release.evidence later
                where later.tenant_id = $1 and later.component = this.component
                    and later.artifact_digest = this.artifact_digest
                    and later.kind = this.kind and later.suite = this.suite
                    and (later.produced_at, later.seq) > (this.produced_at, this.seq)
                    and later.revoked_at is null
            ))
            and seq < $6
        order by seq desc
        limit $7"#,
        tenant.as_str(),
        component.map(ComponentId::as_str),
        artifact_digest.map(Digest::as_str),
        kinds,
        counting_only,
        before,
        limit,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(|row| Ok((row.seq, row.try_into()?))).collect()
}

/// Writes a revocation down, if there was none.
#[tracing::instrument(name = "db.evidence.revoke", skip_all)]
pub async fn revoke(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: EvidenceId,
    revocation: &Revocation,
) -> sqlx::Result<bool> {
    let Revocation { by, at, reason } = revocation;
    let done = sqlx::query!(
        "update release.evidence
        set revoker = $3, revoked_at = $4, revoke_reason = $5
        where tenant_id = $1 and evidence_id = $2 and revoked_at is null",
        tenant.as_str(),
        id.uuid(),
        by,
        at,
        reason,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}
