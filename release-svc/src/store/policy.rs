//! Approval policies.

use shared::id::{ApprovalPolicyId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;

use super::corrupt;
use crate::domain::policy::{ApprovalPolicy, Profile, STARTER_POLICY};

/// A constraint that callers' input may break.
pub const POLICY_KEY: &str = "approval_policies_pkey";

struct Row {
    approval_policy: ApprovalPolicyId,
    profile: String,
    quorum: i32,
    created_at: Time,
    version: i64,
}

impl TryFrom<Row> for ApprovalPolicy {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        let Row { approval_policy: name, profile, quorum, created_at, version } = row;
        let profile = match profile.as_str() {
            "STARTER" => Profile::Starter,
            _ => return Err(corrupt("approval_policies", "profile", &name)),
        };
        Ok(Self { name, profile, quorum, created_at, row_version: version })
    }
}

const fn profile_name(profile: Profile) -> &'static str {
    match profile {
        Profile::Starter => "STARTER",
    }
}

#[tracing::instrument(name = "db.approval_policy.insert", skip_all)]
pub async fn insert(db: &mut PgConnection, tenant: &TenantId, policy: &ApprovalPolicy) -> sqlx::Result<()> {
    let ApprovalPolicy { name, profile, quorum, created_at, row_version } = policy;
    sqlx::query!(
        "insert into release.approval_policies
            (tenant_id, approval_policy, profile, quorum, created_at, version)
        values ($1, $2, $3, $4, $5, $6)",
        tenant.as_str(),
        name.as_str(),
        profile_name(*profile),
        quorum,
        created_at,
        row_version,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Makes the policy that every tenant has; false where it was made before.
#[tracing::instrument(name = "db.approval_policy.insert_starter", skip_all)]
pub async fn insert_starter(db: &mut PgConnection, tenant: &TenantId, now: Time) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "insert into release.approval_policies
            (tenant_id, approval_policy, profile, quorum, created_at, version)
        values ($1, $2, 'STARTER', 0, $3, 1)
        on conflict (tenant_id, approval_policy) do nothing",
        tenant.as_str(),
        STARTER_POLICY,
        now,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

#[tracing::instrument(name = "db.approval_policy.find", skip_all)]
pub async fn find(
    db: &mut PgConnection,
    tenant: &TenantId,
    name: &ApprovalPolicyId,
) -> sqlx::Result<Option<ApprovalPolicy>> {
    let row = sqlx::query_as!(
        Row,
        r#"select approval_policy as "approval_policy: ApprovalPolicyId", profile, quorum, created_at, version
        from release.approval_policies
        where tenant_id = $1 and approval_policy = $2"#,
        tenant.as_str(),
        name.as_str(),
    )
    .fetch_optional(db)
    .await?;
    row.map(TryInto::try_into).transpose()
}

#[tracing::instrument(name = "db.approval_policy.lock", skip_all)]
pub async fn lock(
    db: &mut PgConnection,
    tenant: &TenantId,
    name: &ApprovalPolicyId,
) -> sqlx::Result<Option<ApprovalPolicy>> {
    let row = sqlx::query_as!(
        Row,
        r#"select approval_policy as "approval_policy: ApprovalPolicyId", profile, quorum, created_at, version
        from release.approval_policies
        where tenant_id = $1 and approval_policy = $2
        for no key update"#,
        tenant.as_str(),
        name.as_str(),
    )
    .fetch_optional(db)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// Writes the rules of the version before this one.
#[tracing::instrument(name = "db.approval_policy.update", skip_all)]
pub async fn update(db: &mut PgConnection, tenant: &TenantId, policy: &ApprovalPolicy) -> sqlx::Result<bool> {
    let ApprovalPolicy { name, profile, quorum, created_at: _, row_version } = policy;
    let done = sqlx::query!(
        "update release.approval_policies
        set profile = $3, quorum = $4, version = $5
        where tenant_id = $1 and approval_policy = $2 and version + 1 = $5",
        tenant.as_str(),
        name.as_str(),
        profile_name(*profile),
        quorum,
        row_version,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}
