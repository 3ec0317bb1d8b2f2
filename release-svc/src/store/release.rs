//! Releases.

use std::collections::HashMap;

use serde_json::{from_str, to_string};
use shared::id::{ComponentId, ReleaseId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;

use super::{approval, corrupt, snapshot};
use crate::domain::release::{Decision, Quarantine, Release, Standing, State, Submission};
use crate::domain::risk::Band;
use crate::domain::snapshot::{Digest, Snapshot};
use crate::domain::version::Version;

pub mod version;

/// A component has each version once.
pub const VERSION_KEY: &str = "releases_semver_key";

struct Row {
    release_id: ReleaseId,
    seq: i64,
    component: ComponentId,
    semver: String,
    state: String,
    revision: i32,
    artifact_digest: Option<String>,
    notes: String,
    change: String,
    author: String,
    editors: Vec<String>,
    submitter: Option<String>,
    submitted_at: Option<Time>,
    quorum: Option<i32>,
    band: Option<String>,
    risk: Option<String>,
    quarantine_reason: Option<String>,
    quarantined_by: Option<String>,
    quarantined_at: Option<Time>,
    created_at: Time,
    version: i64,
}

impl Row {
    fn submission(&self, snapshot: Option<Snapshot>) -> sqlx::Result<Option<Submission>> {
        let broken = |column| corrupt("releases", column, &self.release_id);
        let (Some(submitter), Some(at), Some(quorum)) = (&self.submitter, self.submitted_at, self.quorum)
        else {
            return Ok(None);
        };
        let band = self.band.as_deref().map_or(Some(Band::Low), Band::from_name);
        let risk = self.risk.as_deref().map(from_str).transpose();
        Ok(Some(Submission {
            submitter: submitter.clone(),
            at,
            quorum,
            band: band.ok_or_else(|| broken("band"))?,
            risk: risk.map_err(|_| broken("risk"))?,
            snapshot,
        }))
    }

    fn into_release(self, of: &mut Details) -> sqlx::Result<Release> {
        let id = self.release_id;
        let broken = |column| corrupt("releases", column, &id);
        let submission = self.submission(of.snapshots.remove(&id))?;
        let state = State::of(&self.state, submission).ok_or_else(|| broken("state"))?;
        let digest = self.artifact_digest.map(|text| text.parse()).transpose();
        let quarantine = self.quarantine_reason.zip(self.quarantined_by).zip(self.quarantined_at);
        Ok(Release {
            id,
            component: self.component,
            version: self.semver.parse().map_err(|_| broken("semver"))?,
            revision: self.revision,
            artifact_digest: digest.map_err(|_| broken("artifact_digest"))?,
            notes: self.notes,
            change: from_str(&self.change).map_err(|_| broken("change"))?,
            author: self.author,
            editors: self.editors,
            created_at: self.created_at,
            state,
            votes: of.votes.remove(&id).unwrap_or_default(),
            approval: of.approvals.remove(&id),
            quarantine: quarantine.map(|((reason, by), at)| Quarantine { reason, by, at }),
            row_version: self.version,
        })
    }
}

/// What other tables say of releases.
struct Details {
    snapshots: HashMap<ReleaseId, Snapshot>,
    votes: HashMap<ReleaseId, Vec<crate::domain::approval::Vote>>,
    approvals: HashMap<ReleaseId, crate::domain::approval::Approval>,
}

impl Details {
    async fn of(db: &mut PgConnection, tenant: &TenantId, rows: &[Row]) -> sqlx::Result<Self> {
        let ids: Vec<_> = rows.iter().map(|row| row.release_id.uuid()).collect();
        Ok(Self {
            snapshots: snapshot::list(db, tenant, &ids).await?,
            votes: approval::votes(db, tenant, &ids).await?,
            approvals: approval::standing(db, tenant, &ids).await?,
        })
    }
}

async fn whole(db: &mut PgConnection, tenant: &TenantId, row: Option<Row>) -> sqlx::Result<Option<Release>> {
    let Some(row) = row else { return Ok(None) };
    let mut details = Details::of(db, tenant, std::slice::from_ref(&row)).await?;
    row.into_release(&mut details).map(Some)
}

/// A new draft.
#[tracing::instrument(name = "db.release.insert", skip_all)]
pub async fn insert(db: &mut PgConnection, tenant: &TenantId, release: &Release) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into release.releases
            (tenant_id, release_id, component, semver, semver_key, state, artifact_digest, notes, change, author,
            created_at, version)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        tenant.as_str(),
        release.id.uuid(),
        release.component.as_str(),
        release.version.as_str(),
        release.version.order_key(),
        release.state.name(),
        release.artifact_digest.as_ref().map(Digest::as_str),
        release.notes,
        change_of(release)?,
        release.author,
        release.created_at,
        release.row_version,
    )
    .execute(db)
    .await?;
    Ok(())
}

fn change_of(release: &Release) -> sqlx::Result<String> {
    to_string(&release.change).map_err(|error| sqlx::Error::Encode(error.into()))
}

#[tracing::instrument(name = "db.release.find", skip_all)]
pub async fn find(db: &mut PgConnection, tenant: &TenantId, id: ReleaseId) -> sqlx::Result<Option<Release>> {
    let row = sqlx::query_as!(
        Row,
        r#"select release_id as "release_id: ReleaseId", seq, component as "component: ComponentId", semver, state, revision,
            artifact_digest, notes, change, author, editors, submitter, submitted_at, quorum, band, risk, quarantine_reason,
            quarantined_by, quarantined_at, created_at, version
        from release.releases
        where tenant_id = $1 and release_id = $2"#,
        tenant.as_str(),
        id.uuid(),
    )
    .fetch_optional(&mut *db)
    .await?;
    whole(db, tenant, row).await
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
        r#"select release_id as "release_id: ReleaseId", seq, component as "component: ComponentId", semver, state, revision,
            artifact_digest, notes, change, author, editors, submitter, submitted_at, quorum, band, risk, quarantine_reason,
            quarantined_by, quarantined_at, created_at, version
        from release.releases
        where tenant_id = $1 and component = $2 and semver_key = $3"#,
        tenant.as_str(),
        component.as_str(),
        version.order_key(),
    )
    .fetch_optional(&mut *db)
    .await?;
    whole(db, tenant, row).await
}

#[tracing::instrument(name = "db.release.lock", skip_all)]
pub async fn lock(db: &mut PgConnection, tenant: &TenantId, id: ReleaseId) -> sqlx::Result<Option<Release>> {
    let row = sqlx::query_as!(
        Row,
        r#"select release_id as "release_id: ReleaseId", seq, component as "component: ComponentId", semver, state, revision,
            artifact_digest, notes, change, author, editors, submitter, submitted_at, quorum, band, risk, quarantine_reason,
            quarantined_by, quarantined_at, created_at, version
        from release.releases
        where tenant_id = $1 and release_id = $2
        for no key update"#,
        tenant.as_str(),
        id.uuid(),
    )
    .fetch_optional(&mut *db)
    .await?;
    whole(db, tenant, row).await
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
        r#"select release_id as "release_id: ReleaseId", seq, component as "component: ComponentId", semver, state, revision,
            artifact_digest, notes, change, author, editors, submitter, submitted_at, quorum, band, risk, quarantine_reason,
            quarantined_by, quarantined_at, created_at, version
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
    let mut details = Details::of(db, tenant, &rows).await?;
    rows.into_iter()
        .map(|row| Ok((row.seq, row.into_release(&mut details)?)))
        .collect()
}

/// Releases that may wait for votes, whatever was made of them when they were last looked at, but for those that these
/// names wrote, and those that serve everyone everywhere; oldest first, beginning after `after`, each with what the next
/// page begins after. What they wait for now is for the domain to say.
#[tracing::instrument(name = "db.release.list_pending", skip_all)]
pub async fn list_pending(
    db: &mut PgConnection,
    tenant: &TenantId,
    names: &[String],
    after: i64,
    limit: i64,
) -> sqlx::Result<Vec<(i64, Release)>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select release_id as "release_id: ReleaseId", seq, component as "component: ComponentId", semver, state, revision,
            artifact_digest, notes, change, author, editors, submitter, submitted_at, quorum, band, risk, quarantine_reason,
            quarantined_by, quarantined_at, created_at, version
        from release.releases release
        where tenant_id = $1 and seq > $3
            and state in ('ASSESSING', 'PENDING_APPROVAL', 'APPROVED', 'ACTIVE', 'RELEASED')
            and (
                state <> 'RELEASED'
                or exists (
                    select
                    from release.environments environment
                    where environment.tenant_id = $1 and not exists (
                        select
                        from release.routes route
                        where route.tenant_id = $1 and route.component = release.component
                            and route.environment = environment.environment
                            and route.stable_release_id = release.release_id
                    )
                )
            )
            and not author = any($2) and not coalesce(submitter = any($2), false) and not editors && $2
            and not exists (
                select
                from release.snapshots snapshot
                where snapshot.tenant_id = $1 and snapshot.release_id = release.release_id
                    and snapshot.revision = release.revision and (authors && $2 or identities && $2)
            )
        order by seq
        limit $4"#,
        tenant.as_str(),
        names,
        after,
        limit,
    )
    .fetch_all(&mut *db)
    .await?;
    let mut details = Details::of(db, tenant, &rows).await?;
    rows.into_iter()
        .map(|row| Ok((row.seq, row.into_release(&mut details)?)))
        .collect()
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
                    and state in ('RUNNING', 'PAUSED', 'DRAINING', 'ROLLING_BACK', 'ROLLBACK_FAILED')) as "under_way_in!",
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

/// Releases of a component that are RELEASED but stable in no environment any more, and those that are APPROVED but that a
/// greater version of their line, which just succeeded, came before.
#[tracing::instrument(name = "db.release.list_replaced", skip_all)]
pub async fn list_replaced(
    db: &mut PgConnection,
    tenant: &TenantId,
    component: &ComponentId,
    succeeded: ReleaseId,
    limit: i64,
) -> sqlx::Result<Vec<ReleaseId>> {
    sqlx::query_scalar!(
        r#"select this.release_id as "release_id: ReleaseId"
        from release.releases this
        join release.releases next on next.tenant_id = this.tenant_id and next.release_id = $3
        where this.tenant_id = $1 and this.component = $2
            and (this.state = 'RELEASED' or (this.state = 'APPROVED' and this.semver_key < next.semver_key
                and left(this.semver_key, 42) = left(next.semver_key, 42)))
            and not exists (
                select
                from release.routes route
                where route.tenant_id = $1 and route.component = $2 and route.stable_release_id = this.release_id
            )
        order by this.semver_key
        limit $4"#,
        tenant.as_str(),
        component.as_str(),
        succeeded.uuid(),
        limit,
    )
    .fetch_all(db)
    .await
}

/// Carries a transition out, if the release still is where it was when it was decided.
#[tracing::instrument(name = "db.release.update", skip_all)]
pub async fn update(db: &mut PgConnection, tenant: &TenantId, decision: &Decision) -> sqlx::Result<bool> {
    let Decision { release, from, .. } = decision;
    let submission = release.state.submission();
    let (quarantine, risk) = (release.quarantine.as_ref(), submission.and_then(|of| of.risk.as_ref()));
    let risk = risk
        .map(to_string)
        .transpose()
        .map_err(|error| sqlx::Error::Encode(error.into()))?;
    let done = sqlx::query!(
        "update release.releases
        set state = $4, submitter = $5, submitted_at = $6, quorum = $7, version = $8, revision = $9, artifact_digest = $10,
            notes = $11, change = $12, editors = $13, band = $14, risk = $15, quarantine_reason = $16, quarantined_by = $17,
            quarantined_at = $18
        where tenant_id = $1 and release_id = $2 and state = $3 and version + 1 = $8
            and (state = $4 or state not in ('REJECTED', 'CANCELLED', 'ABANDONED', 'ROLLED_BACK', 'SUPERSEDED'))",
        tenant.as_str(),
        release.id.uuid(),
        from,
        release.state.name(),
        submission.map(|submission| submission.submitter.as_str()),
        submission.map(|submission| submission.at),
        submission.map(|submission| submission.quorum),
        release.row_version,
        release.revision,
        release.artifact_digest.as_ref().map(Digest::as_str),
        release.notes,
        change_of(release)?,
        &release.editors,
        submission.map(|submission| submission.band.name()),
        risk,
        quarantine.map(|quarantine| quarantine.reason.as_str()),
        quarantine.map(|quarantine| quarantine.by.as_str()),
        quarantine.map(|quarantine| quarantine.at),
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}
