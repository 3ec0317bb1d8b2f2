//! Votes, and the approvals that they make.

use std::collections::HashMap;

use shared::id::{ApprovalId, BreakGlassId, ReleaseId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

use super::corrupt;
use crate::domain::approval::{Approval, Basis, Vote};
use crate::domain::release::Release;
use crate::domain::risk::Band;

/// Each human being votes once.
pub const VOTE_KEY: &str = "votes_person_key";
/// Votes of one release that are read at most: far more than a quorum.
const VOTES_MAX: i64 = 100;

struct VoteRow {
    release_id: ReleaseId,
    voter: String,
    person: String,
    groups: Vec<String>,
    band: String,
    approve: bool,
    reason: String,
    voted_at: Time,
    expires_at: Option<Time>,
}

struct Row {
    approval_id: ApprovalId,
    release_id: ReleaseId,
    kind: String,
    band: String,
    break_glass_id: Option<BreakGlassId>,
    approved_at: Time,
    expires_at: Option<Time>,
}

impl TryFrom<Row> for Approval {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let id = row.approval_id;
        let basis = match (row.kind.as_str(), row.break_glass_id) {
            ("STANDARD_CHANGE", None) => Basis::StandardChange,
            ("VOTES", None) => Basis::Votes,
            ("BREAK_GLASS", Some(id)) => Basis::BreakGlass(id),
            _ => return Err(corrupt("approvals", "kind", &id)),
        };
        let band = Band::from_name(&row.band).ok_or_else(|| corrupt("approvals", "band", &id))?;
        Ok(Self { id, basis, band, at: row.approved_at, expires_at: row.expires_at })
    }
}

/// Votes on the present revisions that were not taken back, oldest first.
#[tracing::instrument(name = "db.vote.list", skip_all)]
pub(super) async fn votes(
    db: &mut PgConnection,
    tenant: &TenantId,
    releases: &[Uuid],
) -> sqlx::Result<HashMap<ReleaseId, Vec<Vote>>> {
    let limit = VOTES_MAX * i64::try_from(releases.len()).unwrap_or(0);
    let rows = sqlx::query_as!(
        VoteRow,
        r#"select release_id as "release_id: ReleaseId", voter, coalesce(person, voter) as "person!", groups, vote.band,
            approve, reason, voted_at, expires_at
        from release.votes vote
        join release.releases release using (tenant_id, release_id, revision)
        where tenant_id = $1 and release_id = any($2) and ended_at is null
        order by voted_at, voter
        limit $3"#,
        tenant.as_str(),
        releases,
        limit,
    )
    .fetch_all(db)
    .await?;
    let mut votes: HashMap<_, Vec<_>> = HashMap::new();
    for row in rows {
        let VoteRow { release_id, voter, person, groups, band, approve, reason, voted_at: at, expires_at } =
            row;
        let band = Band::from_name(&band).ok_or_else(|| corrupt("votes", "band", &release_id))?;
        let vote = Vote { voter, person, groups, band, approve, reason, at, expires_at };
        votes.entry(release_id).or_default().push(vote);
    }
    Ok(votes)
}

/// Writes a vote down, if the release's present revision takes votes and the voter is none of those who wrote it. One of
/// the same person that counts no more makes room for it.
#[tracing::instrument(name = "db.vote.insert", skip_all)]
pub async fn insert_vote(
    db: &mut PgConnection,
    tenant: &TenantId,
    release: &Release,
    vote: &Vote,
    id: Uuid,
) -> sqlx::Result<bool> {
    let Vote { voter, person, groups, band, approve, reason, at, expires_at } = vote;
    end_vote(db, tenant, release, person, Some(vote), "REPLACED", *at).await?;
    let done = sqlx::query!(
        "insert into release.votes
            (tenant_id, release_id, vote_id, revision, voter, person, groups, band, approve, reason, voted_at, expires_at)
        select tenant_id, release_id, $3, revision, $4, $5, $6, $7, $8, $9, $10, $11
        from release.releases release
        where tenant_id = $1 and release_id = $2 and revision = $12
            and state in ('PENDING_APPROVAL', 'ACTIVE', 'RELEASED', 'APPROVED')
            and author not in ($4, $5) and submitter not in ($4, $5)
            and not exists (
                select
                from release.snapshots snapshot
                where snapshot.tenant_id = $1 and snapshot.release_id = $2 and snapshot.revision = release.revision
                    and (authors || identities) && array[$4, $5]
            )",
        tenant.as_str(),
        release.id.uuid(),
        id,
        voter,
        person,
        groups,
        band.name(),
        approve,
        reason,
        at,
        *expires_at,
        release.revision,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Ends what a person said of the present revision; with `next`, only what counts no more beside that.
#[tracing::instrument(name = "db.vote.end", skip_all)]
pub async fn end_vote(
    db: &mut PgConnection,
    tenant: &TenantId,
    release: &Release,
    person: &str,
    next: Option<&Vote>,
    by: &'static str,
    now: Time,
) -> sqlx::Result<bool> {
    let lower: Vec<_> = match next {
        Some(next) => Band::ALL
            .iter()
            .filter(|band| **band < next.band)
            .map(|band| band.name().to_owned())
            .collect(),
        None => Band::ALL.iter().map(|band| band.name().to_owned()).collect(),
    };
    let done = sqlx::query!(
        "update release.votes
        set ended_at = $5, ended_by = $6
        where tenant_id = $1 and release_id = $2 and revision = $3 and coalesce(person, voter) = $4 and ended_at is null
            and (band = any($7) or expires_at <= $5)",
        tenant.as_str(),
        release.id.uuid(),
        release.revision,
        person,
        now,
        by,
        &lower,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Ends every vote on a release, as it is revised.
#[tracing::instrument(name = "db.vote.invalidate", skip_all)]
pub async fn invalidate_votes(
    db: &mut PgConnection,
    tenant: &TenantId,
    release: ReleaseId,
    now: Time,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update release.votes
        set ended_at = $3, ended_by = 'INVALIDATED'
        where tenant_id = $1 and release_id = $2 and ended_at is null",
        tenant.as_str(),
        release.uuid(),
        now,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The approvals that were found standing when their releases were last looked at.
#[tracing::instrument(name = "db.approval.list", skip_all)]
pub(super) async fn standing(
    db: &mut PgConnection,
    tenant: &TenantId,
    releases: &[Uuid],
) -> sqlx::Result<HashMap<ReleaseId, Approval>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select approval_id as "approval_id: ApprovalId", release_id as "release_id: ReleaseId", kind, band,
            break_glass_id as "break_glass_id: BreakGlassId", approved_at, expires_at
        from release.approvals
        where tenant_id = $1 and release_id = any($2) and ended_at is null
        limit cardinality($2)"#,
        tenant.as_str(),
        releases,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(|row| Ok((row.release_id, row.try_into()?))).collect()
}

/// An approval, also one that ended.
#[tracing::instrument(name = "db.approval.find", skip_all)]
pub async fn find(
    db: &mut PgConnection,
    tenant: &TenantId,
    id: ApprovalId,
) -> sqlx::Result<Option<Approval>> {
    let row = sqlx::query_as!(
        Row,
        r#"select approval_id as "approval_id: ApprovalId", release_id as "release_id: ReleaseId", kind, band,
            break_glass_id as "break_glass_id: BreakGlassId", approved_at, expires_at
        from release.approvals
        where tenant_id = $1 and approval_id = $2"#,
        tenant.as_str(),
        id.uuid(),
    )
    .fetch_optional(db)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// Ends an approval.
#[tracing::instrument(name = "db.approval.end", skip_all)]
pub async fn end(db: &mut PgConnection, tenant: &TenantId, id: ApprovalId, now: Time) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update release.approvals
        set ended_at = $3
        where tenant_id = $1 and approval_id = $2 and ended_at is null",
        tenant.as_str(),
        id.uuid(),
        now,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// A new approval.
#[tracing::instrument(name = "db.approval.insert", skip_all)]
pub async fn insert(
    db: &mut PgConnection,
    tenant: &TenantId,
    release: &Release,
    approval: &Approval,
) -> sqlx::Result<()> {
    let break_glass = match approval.basis {
        Basis::BreakGlass(id) => Some(id.uuid()),
        Basis::StandardChange | Basis::Votes => None,
    };
    sqlx::query!(
        "insert into release.approvals
            (tenant_id, approval_id, release_id, revision, kind, band, break_glass_id, approved_at, expires_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        tenant.as_str(),
        approval.id.uuid(),
        release.id.uuid(),
        release.revision,
        approval.basis.name(),
        approval.band.name(),
        break_glass,
        approval.at,
        approval.expires_at,
    )
    .execute(db)
    .await?;
    Ok(())
}
