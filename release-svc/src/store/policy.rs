//! Approval policies, and every version that they had or were meant to have.

use serde_json::{from_str, to_string};
use shared::id::{ApprovalPolicyId, TenantId};
use shared::time::Time;
use sqlx::PgConnection;

use super::corrupt;
use crate::domain::policy::{ApprovalPolicy, Profile, Proposed, STARTER_POLICY, Terms};

/// A constraint that callers' input may break.
pub const POLICY_KEY: &str = "approval_policies_pkey";

struct Row {
    approval_policy: ApprovalPolicyId,
    profile: String,
    quorum: i32,
    rules: Option<String>,
    created_at: Time,
    version: i64,
}

struct VersionRow {
    version: i64,
    profile: String,
    quorum: i32,
    rules: Option<String>,
    author: String,
    author_person: String,
    created_at: Time,
}

/// What the columns of a policy say; None where they make no sense.
pub(super) fn terms(profile: &str, quorum: i32, rules: Option<&str>) -> Option<Terms> {
    let profile = Profile::from_name(profile)?;
    match rules {
        None => Some(Terms::of(profile, quorum)),
        Some(rules) => Some(Terms { profile, quorum, rules: from_str(rules).ok()? }),
    }
}

fn rules_of(terms: &Terms) -> sqlx::Result<String> {
    to_string(&terms.rules).map_err(|error| sqlx::Error::Encode(error.into()))
}

impl Row {
    fn with(self, proposed: Option<VersionRow>) -> sqlx::Result<ApprovalPolicy> {
        let Self { approval_policy: name, profile, quorum, rules, created_at, version } = self;
        let broken = || corrupt("approval_policies", "rules", &name);
        let read = |row: VersionRow| -> sqlx::Result<Proposed> {
            let terms = terms(&row.profile, row.quorum, row.rules.as_deref()).ok_or_else(broken)?;
            let (author, person, at) = (row.author, row.author_person, row.created_at);
            Ok(Proposed { version: row.version, terms, author, person, at })
        };
        let proposed = proposed.map(read).transpose()?;
        let terms = terms(&profile, quorum, rules.as_deref()).ok_or_else(broken)?;
        Ok(ApprovalPolicy { name, terms, created_at, row_version: version, proposed })
    }
}

/// A new policy.
#[tracing::instrument(name = "db.approval_policy.insert", skip_all)]
pub async fn insert(db: &mut PgConnection, tenant: &TenantId, policy: &ApprovalPolicy) -> sqlx::Result<()> {
    let ApprovalPolicy { name, terms, created_at, row_version, proposed: _ } = policy;
    sqlx::query!(
        "insert into release.approval_policies
            (tenant_id, approval_policy, profile, quorum, rules, created_at, version)
        values ($1, $2, $3, $4, $5, $6, $7)",
        tenant.as_str(),
        name.as_str(),
        terms.profile.name(),
        terms.quorum,
        rules_of(terms)?,
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
        r#"select approval_policy as "approval_policy: ApprovalPolicyId", profile, quorum, rules, created_at, version
        from release.approval_policies
        where tenant_id = $1 and approval_policy = $2"#,
        tenant.as_str(),
        name.as_str(),
    )
    .fetch_optional(&mut *db)
    .await?;
    let Some(row) = row else { return Ok(None) };
    row.with(proposed(db, tenant, name).await?).map(Some)
}

#[tracing::instrument(name = "db.approval_policy.lock", skip_all)]
pub async fn lock(
    db: &mut PgConnection,
    tenant: &TenantId,
    name: &ApprovalPolicyId,
) -> sqlx::Result<Option<ApprovalPolicy>> {
    let row = sqlx::query_as!(
        Row,
        r#"select approval_policy as "approval_policy: ApprovalPolicyId", profile, quorum, rules, created_at, version
        from release.approval_policies
        where tenant_id = $1 and approval_policy = $2
        for no key update"#,
        tenant.as_str(),
        name.as_str(),
    )
    .fetch_optional(&mut *db)
    .await?;
    let Some(row) = row else { return Ok(None) };
    row.with(proposed(db, tenant, name).await?).map(Some)
}

async fn proposed(
    db: &mut PgConnection,
    tenant: &TenantId,
    name: &ApprovalPolicyId,
) -> sqlx::Result<Option<VersionRow>> {
    sqlx::query_as!(
        VersionRow,
        "select version, profile, quorum, rules, author, author_person, created_at
        from release.approval_policy_versions
        where tenant_id = $1 and approval_policy = $2 and state = 'PROPOSED'",
        tenant.as_str(),
        name.as_str(),
    )
    .fetch_optional(db)
    .await
}

/// What a policy said in a version that was in force.
#[tracing::instrument(name = "db.approval_policy.find_version", skip_all)]
pub async fn find_version(
    db: &mut PgConnection,
    tenant: &TenantId,
    name: &ApprovalPolicyId,
    version: i64,
) -> sqlx::Result<Option<ApprovalPolicy>> {
    let row = sqlx::query_as!(
        Row,
        r#"select approval_policy as "approval_policy: ApprovalPolicyId", profile, quorum, rules, created_at, version
        from release.approval_policy_versions
        where tenant_id = $1 and approval_policy = $2 and version = $3 and state = 'IN_FORCE'"#,
        tenant.as_str(),
        name.as_str(),
        version,
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| row.with(None)).transpose()
}

/// The version after all that there were, also those that came to nothing.
#[tracing::instrument(name = "db.approval_policy.next_version", skip_all)]
pub async fn next_version(
    db: &mut PgConnection,
    tenant: &TenantId,
    policy: &ApprovalPolicy,
) -> sqlx::Result<i64> {
    let last = sqlx::query_scalar!(
        "select max(version)
        from release.approval_policy_versions
        where tenant_id = $1 and approval_policy = $2",
        tenant.as_str(),
        policy.name.as_str(),
    )
    .fetch_one(db)
    .await?;
    Ok(last.map_or(policy.row_version, |last| last.max(policy.row_version)) + 1)
}

/// Keeps a version that is not kept yet: one that is, or was, in force, or one that was proposed.
#[tracing::instrument(name = "db.approval_policy.insert_version", skip_all)]
pub async fn insert_version(
    db: &mut PgConnection,
    tenant: &TenantId,
    name: &ApprovalPolicyId,
    version: &Proposed,
    is_in_force: bool,
) -> sqlx::Result<()> {
    let Proposed { version, terms, author, person, at } = version;
    sqlx::query!(
        "insert into release.approval_policy_versions
            (tenant_id, approval_policy, version, profile, quorum, rules, state, author, author_person, created_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
        on conflict (tenant_id, approval_policy, version) do nothing",
        tenant.as_str(),
        name.as_str(),
        version,
        terms.profile.name(),
        terms.quorum,
        rules_of(terms)?,
        if is_in_force { "IN_FORCE" } else { "PROPOSED" },
        author,
        person,
        at,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Drops the change that waits for its second person, if one does.
#[tracing::instrument(name = "db.approval_policy.drop_proposed", skip_all)]
pub async fn drop_proposed(
    db: &mut PgConnection,
    tenant: &TenantId,
    name: &ApprovalPolicyId,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update release.approval_policy_versions
        set state = 'DROPPED'
        where tenant_id = $1 and approval_policy = $2 and state = 'PROPOSED'",
        tenant.as_str(),
        name.as_str(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Puts the change that waits for its second person into force, if that is another than its author.
#[tracing::instrument(name = "db.approval_policy.confirm", skip_all)]
pub async fn confirm(
    db: &mut PgConnection,
    tenant: &TenantId,
    policy: &ApprovalPolicy,
    confirmer: &str,
    person: &str,
    now: Time,
) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update release.approval_policy_versions
        set state = 'IN_FORCE', confirmer = $4, confirmed_at = $6
        where tenant_id = $1 and approval_policy = $2 and version = $3 and state = 'PROPOSED'
            and author not in ($4, $5) and author_person not in ($4, $5)",
        tenant.as_str(),
        policy.name.as_str(),
        policy.row_version,
        confirmer,
        person,
        now,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Writes what a later version says.
#[tracing::instrument(name = "db.approval_policy.update", skip_all)]
pub async fn update(db: &mut PgConnection, tenant: &TenantId, policy: &ApprovalPolicy) -> sqlx::Result<bool> {
    let ApprovalPolicy { name, terms, created_at: _, row_version, proposed: _ } = policy;
    let done = sqlx::query!(
        "update release.approval_policies
        set profile = $3, quorum = $4, rules = $5, version = $6
        where tenant_id = $1 and approval_policy = $2 and version < $6",
        tenant.as_str(),
        name.as_str(),
        terms.profile.name(),
        terms.quorum,
        rules_of(terms)?,
        row_version,
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}
