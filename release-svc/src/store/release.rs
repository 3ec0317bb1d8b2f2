//! Releases and the votes on them.

use std::collections::HashMap;

use shared::id::{ComponentId, ReleaseId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;

use super::corrupt;
use crate::domain::release::{Decision, Digest, Release, Standing, State, Submission, Vote};
use crate::domain::version::{Latest, Version};

/// A component has each version once.
pub const VERSION_KEY: &str = "releases_semver_key";
/// A person votes once.
pub const VOTE_KEY: &str = "votes_pkey";
/// More votes than the largest quorum and the one against cannot be.
const VOTES_MAX: i64 = 16;

struct Row {
    release_id: ReleaseId,
    seq: i64,
    component: ComponentId,
    semver: String,
    state: String,
    artifact_digest: Option<String>,
    notes: String,
    author: String,
    submitter: Option<String>,
    submitted_at: Option<Time>,
    quorum: Option<i32>,
    created_at: Time,
    version: i64,
}

struct VoteRow {
    release_id: ReleaseId,
    voter: String,
    approve: bool,
    reason: String,
    voted_at: Time,
}

fn state_of(name: &str, submission: Option<Submission>) -> Option<State> {
    Some(match (name, submission) {
        ("DRAFT", None) => State::Draft,
        ("PENDING_APPROVAL", Some(submission)) => State::PendingApproval(submission),
        ("APPROVED", Some(submission)) => State::Approved(submission),
        ("ACTIVE", Some(submission)) => State::Active(submission),
        ("RELEASED", Some(submission)) => State::Released(submission),
        ("REJECTED", Some(submission)) => State::Rejected(submission),
        ("CANCELLED", submission) => State::Cancelled(submission),
        ("ROLLED_BACK", Some(submission)) => State::RolledBack(submission),
        ("SUPERSEDED", Some(submission)) => State::Superseded(submission),
        _ => return None,
    })
}

impl Row {
    fn into_release(self, votes: Vec<Vote>) -> sqlx::Result<Release> {
        let id = self.release_id;
        let broken = |column| corrupt("releases", column, &id);
        let submission = match (self.submitter, self.submitted_at, self.quorum) {
            (Some(submitter), Some(at), Some(quorum)) => Some(Submission { submitter, at, quorum }),
            (None, None, None) => None,
            (_, _, _) => return Err(broken("submitter")),
        };
        let digest = self.artifact_digest.map(|text| text.parse()).transpose();
        Ok(Release {
            id,
            component: self.component,
            version: self.semver.parse().map_err(|_| broken("semver"))?,
            artifact_digest: digest.map_err(|_| broken("artifact_digest"))?,
            notes: self.notes,
            author: self.author,
            created_at: self.created_at,
            state: state_of(&self.state, submission).ok_or_else(|| broken("state"))?,
            votes,
            row_version: self.version,
        })
    }
}

impl From<VoteRow> for Vote {
    fn from(row: VoteRow) -> Self {
        let VoteRow { release_id: _, voter, approve, reason, voted_at: at } = row;
        Self { voter, approve, reason, at }
    }
}

/// A new draft.
#[tracing::instrument(name = "db.release.insert", skip_all)]
pub async fn insert(db: &mut PgConnection, tenant: &TenantId, release: &Release) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into release.releases
            (tenant_id, release_id, component, semver, semver_key, state, artifact_digest, notes, author, created_at, version)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        tenant.as_str(),
        release.id.uuid(),
        release.component.as_str(),
        release.version.as_str(),
        release.version.order_key(),
        release.state.name(),
        release.artifact_digest.as_ref().map(Digest::as_str),
        release.notes,
        release.author,
        release.created_at,
        release.row_version,
    )
    .execute(db)
    .await?;
    Ok(())
}

#[tracing::instrument(name = "db.release.find", skip_all)]
pub async fn find(db: &mut PgConnection, tenant: &TenantId, id: ReleaseId) -> sqlx::Result<Option<Release>> {
    let row = sqlx::query_as!(
        Row,
        r#"select release_id as "release_id: ReleaseId", seq, component as "component: ComponentId", semver, state,
            artifact_digest, notes, author, submitter, submitted_at, quorum, created_at, version
        from release.releases
        where tenant_id = $1 and release_id = $2"#,
        tenant.as_str(),
        id.uuid(),
    )
    .fetch_optional(&mut *db)
    .await?;
    with_votes(db, tenant, row).await
}

#[tracing::instrument(name = "db.release.find_version", skip_all)]
pub async fn find_version(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: &ComponentId,
    version: &Version,
) -> sqlx::Result<Option<Release>> {
    let row = sqlx::query_as!(
        Row,
        r#"select release_id as "release_id: ReleaseId", seq, component as "component: ComponentId", semver, state,
            artifact_digest, notes, author, submitter, submitted_at, quorum, created_at, version
        from release.releases
        where tenant_id = $1 and component = $2 and semver_key = $3"#,
        tenant.as_str(),
        component.as_str(),
        version.order_key(),
    )
    .fetch_optional(&mut *db)
    .await?;
    with_votes(db, tenant, row).await
}

#[tracing::instrument(name = "db.release.lock", skip_all)]
pub async fn lock(db: &mut PgConnection, tenant: &TenantId, id: ReleaseId) -> sqlx::Result<Option<Release>> {
    let row = sqlx::query_as!(
        Row,
        r#"select release_id as "release_id: ReleaseId", seq, component as "component: ComponentId", semver, state,
            artifact_digest, notes, author, submitter, submitted_at, quorum, created_at, version
        from release.releases
        where tenant_id = $1 and release_id = $2
        for no key update"#,
        tenant.as_str(),
        id.uuid(),
    )
    .fetch_optional(&mut *db)
    .await?;
    with_votes(db, tenant, row).await
}

/// Newest first, beginning before `before`, each with what the next page begins before. Empty filters select all.
#[tracing::instrument(name = "db.release.list", skip_all)]
pub async fn list(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: Option<&ComponentId>,
    states: &[String],
    before: i64,
    limit: i64,
) -> sqlx::Result<Vec<(i64, Release)>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select release_id as "release_id: ReleaseId", seq, component as "component: ComponentId", semver, state,
            artifact_digest, notes, author, submitter, submitted_at, quorum, created_at, version
        from release.releases
        where tenant_id = $1
            and ($2::text is null or component = $2)
            and (cardinality($3::text[]) = 0 or state = any($3))
            and seq < $4
        order by seq desc
        limit $5"#,
        tenant.as_str(),
        component.map(ComponentId::as_str),
        states,
        before,
        limit,
    )
    .fetch_all(&mut *db)
    .await?;
    let ids: Vec<_> = rows.iter().map(|row| row.release_id).collect();
    let mut votes = votes(db, tenant, &ids).await?;
    rows.into_iter()
        .map(|row| {
            let votes = votes.remove(&row.release_id).unwrap_or_default();
            Ok((row.seq, row.into_release(votes)?))
        })
        .collect()
}

/// The greatest versions of a component but for those that were rejected or cancelled: of all, and of the line of
/// `version`. Drafts count where somebody asks for a new version, not where one of them is submitted.
#[tracing::instrument(name = "db.release.latest", skip_all)]
pub async fn latest(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: &ComponentId,
    version: &Version,
    with_drafts: bool,
) -> sqlx::Result<Latest> {
    let row = sqlx::query!(
        r#"with counted as (
            select semver, semver_key
            from release.releases
            where tenant_id = $1 and component = $2
                and state not in ('REJECTED', 'CANCELLED')
                and ($4 or state <> 'DRAFT')
        )
        select
            (select semver from counted where starts_with(semver_key, $3) order by semver_key desc limit 1) as of_line,
            (select semver from counted order by semver_key desc limit 1) as of_all"#,
        tenant.as_str(),
        component.as_str(),
        version.line_key(),
        with_drafts,
    )
    .fetch_one(db)
    .await?;
    let parse = |text: Option<String>| {
        text.map(|text| text.parse().map_err(|_| corrupt("releases", "semver", component)))
            .transpose()
    };
    Ok(Latest { of_line: parse(row.of_line)?, of_all: parse(row.of_all)? })
}

/// In how many environments it is stable, in how many it is being rolled out or back, and whether all environments with
/// the component serve a greater version.
#[tracing::instrument(name = "db.release.standing", skip_all)]
pub async fn standing(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: &ComponentId,
    id: ReleaseId,
) -> sqlx::Result<Standing> {
    sqlx::query_as!(
        Standing,
        r#"select
            (select count(*) from release.routes
                where tenant_id = $1 and component = $2 and stable_release_id = $3) as "stable_in!",
            (select count(*) from release.rollouts
                where tenant_id = $1 and component = $2 and release_id = $3
                    and state in ('RUNNING', 'ROLLING_BACK')) as "under_way_in!",
            not exists (
                select
                from release.routes route
                join release.releases stable
                    on stable.tenant_id = route.tenant_id and stable.release_id = route.stable_release_id
                join release.releases this on this.tenant_id = route.tenant_id and this.release_id = $3
                where route.tenant_id = $1 and route.component = $2 and stable.semver_key <= this.semver_key
            ) as "is_surpassed!""#,
        tenant.as_str(),
        component.as_str(),
        id.uuid(),
    )
    .fetch_one(db)
    .await
}

/// Releases of a component that are RELEASED but stable in no environment any more.
#[tracing::instrument(name = "db.release.list_replaced", skip_all)]
pub async fn list_replaced(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: &ComponentId,
    limit: i64,
) -> sqlx::Result<Vec<ReleaseId>> {
    sqlx::query_scalar!(
        r#"select release_id as "release_id: ReleaseId"
        from release.releases this
        where tenant_id = $1 and component = $2 and state = 'RELEASED'
            and not exists (
                select
                from release.routes route
                where route.tenant_id = $1 and route.component = $2 and route.stable_release_id = this.release_id
            )
        order by semver_key
        limit $3"#,
        tenant.as_str(),
        component.as_str(),
        limit,
    )
    .fetch_all(db)
    .await
}

/// Carries a transition out, if the release still is where it was when it was decided.
#[tracing::instrument(name = "db.release.update", skip_all)]
pub async fn update(db: &mut PgConnection, tenant: &TenantId, decision: &Decision) -> sqlx::Result<bool> {
    let Decision { release, from, kind: _ } = decision;
    let submission = release.state.submission();
    let done = sqlx::query!(
        "update release.releases
        set state = $4, submitter = $5, submitted_at = $6, quorum = $7, version = $8
        where tenant_id = $1 and release_id = $2 and state = $3 and version + 1 = $8
            and state not in ('REJECTED', 'CANCELLED', 'ROLLED_BACK', 'SUPERSEDED')",
        tenant.as_str(),
        release.id.uuid(),
        from,
        release.state.name(),
        submission.map(|submission| submission.submitter.as_str()),
        submission.map(|submission| submission.at),
        submission.map(|submission| submission.quorum),
        release.row_version,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Writes a vote down, if the release waits for votes and the voter neither wrote nor submitted it.
#[tracing::instrument(name = "db.vote.insert", skip_all)]
pub async fn insert_vote(
    db: &mut PgConnection,
    tenant: &TenantId,
    release: ReleaseId,
    vote: &Vote,
) -> sqlx::Result<bool> {
    let Vote { voter, approve, reason, at } = vote;
    let done = sqlx::query!(
        "insert into release.votes (tenant_id, release_id, voter, approve, reason, voted_at)
        select tenant_id, release_id, $3, $4, $5, $6
        from release.releases
        where tenant_id = $1 and release_id = $2
            and state = 'PENDING_APPROVAL' and author <> $3 and submitter <> $3",
        tenant.as_str(),
        release.uuid(),
        voter,
        approve,
        reason,
        at,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

async fn with_votes(
    db: &mut PgConnection,
    tenant: &TenantId,
    row: Option<Row>,
) -> sqlx::Result<Option<Release>> {
    let Some(row) = row else { return Ok(None) };
    let mut votes = votes(db, tenant, &[row.release_id]).await?;
    let votes = votes.remove(&row.release_id).unwrap_or_default();
    row.into_release(votes).map(Some)
}

#[tracing::instrument(name = "db.vote.list", skip_all)]
async fn votes(
    db: &mut PgConnection,
    tenant: &TenantId,
    releases: &[ReleaseId],
) -> sqlx::Result<HashMap<ReleaseId, Vec<Vote>>> {
    let ids: Vec<_> = releases.iter().map(|id| id.uuid()).collect();
    let limit = VOTES_MAX * i64::try_from(ids.len()).unwrap_or(0);
    let rows = sqlx::query_as!(
        VoteRow,
        r#"select release_id as "release_id: ReleaseId", voter, approve, reason, voted_at
        from release.votes
        where tenant_id = $1 and release_id = any($2)
        order by voted_at, voter
        limit $3"#,
        tenant.as_str(),
        &ids,
        limit,
    )
    .fetch_all(db)
    .await?;
    let mut votes: HashMap<_, Vec<_>> = HashMap::new();
    for row in rows {
        votes.entry(row.release_id).or_default().push(row.into());
    }
    Ok(votes)
}
