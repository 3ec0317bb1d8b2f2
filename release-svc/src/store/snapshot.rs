//! Snapshots of what was submitted. Their table takes no changes.

use std::collections::HashMap;

use serde_json::to_string;
use shared::id::{ApprovalPolicyId, ReleaseId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{corrupt, policy};
use crate::domain::policy::Terms;
use crate::domain::release::Release;
use crate::domain::snapshot::{Digest, Snapshot};

struct Row {
    release_id: ReleaseId,
    digest: Vec<u8>,
    approval_policy: ApprovalPolicyId,
    policy_version: i64,
    profile: String,
    quorum: i32,
    rules: Option<String>,
    identities: Vec<String>,
    authors: Vec<String>,
}

/// The snapshots of the present revisions.
#[tracing::instrument(name = "db.snapshot.list", skip_all)]
pub(super) async fn list(
    db: &mut PgConnection,
    tenant: &TenantId,
    releases: &[Uuid],
) -> sqlx::Result<HashMap<ReleaseId, Snapshot>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select snapshot.release_id as "release_id: ReleaseId", digest,
            approval_policy as "approval_policy: ApprovalPolicyId", policy_version, profile, snapshot.quorum, rules,
            identities, authors
        from release.snapshots snapshot
        join release.releases release using (tenant_id, release_id, revision)
        where tenant_id = $1 and release_id = any($2)
        limit cardinality($2)"#,
        tenant.as_str(),
        releases,
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            let broken = |column| corrupt("snapshots", column, &row.release_id);
            let snapshot = Snapshot {
                digest: Digest::from_bytes(&row.digest),
                policy: row.approval_policy,
                policy_version: row.policy_version,
                terms: policy::terms(&row.profile, row.quorum, row.rules.as_deref())
                    .ok_or_else(|| broken("rules"))?,
                identities: row.identities,
                authors: row.authors.into_iter().collect(),
            };
            Ok((row.release_id, snapshot))
        })
        .collect()
}

/// Freezes what is handed in.
#[tracing::instrument(name = "db.snapshot.insert", skip_all)]
pub async fn insert(
    db: &mut PgConnection,
    tenant: &TenantId,
    release: &Release,
    snapshot: &Snapshot,
    body: &[u8],
    at: Time,
) -> sqlx::Result<()> {
    let Terms { profile, quorum, rules } = &snapshot.terms;
    let authors: Vec<_> = snapshot.authors.iter().cloned().collect();
    sqlx::query!(
        "insert into release.snapshots
            (tenant_id, release_id, revision, body, digest, approval_policy, policy_version, profile, quorum, rules,
            identities, authors, taken_at)
        values ($1, $2, $3, $4, sha256($4), $5, $6, $7, $8, $9, $10, $11, $12)",
        tenant.as_str(),
        release.id.uuid(),
        release.revision,
        body,
        snapshot.policy.as_str(),
        snapshot.policy_version,
        profile.name(),
        quorum,
        to_string(rules).map_err(|error| sqlx::Error::Encode(error.into()))?,
        &snapshot.identities,
        &authors,
        at,
    )
    .execute(db)
    .await?;
    Ok(())
}
