//! Approval policies.

use shared::auth::Caller;
use shared::db::broken_constraint;
use shared::id::{ApprovalPolicyId, TenantId};
use shared::mutation::{Actor, Begun, Call};
use shared::parse::{etag, etag_of, known, parse, required, within};
use shared::pb::release as pb;
use shared::status::{Failure, Reason, Refusal};
use shared::time::{Time, to_proto};
use sqlx::PgConnection;
use tonic::Request;

use crate::apply::{self, expect_written};
use crate::domain::policy::{ApprovalPolicy, Profile};
use crate::rpc::{App, absent};
use crate::store;
use crate::store::policy::POLICY_KEY;

/// Scope of changes to what a release needs before it may be rolled out.
pub(super) const POLICY_SCOPE: &str = "policy.write";

/// What people set in an approval policy.
fn parse_policy(policy: Option<pb::ApprovalPolicy>) -> Result<(ApprovalPolicy, String), Refusal> {
    let pb::ApprovalPolicy { approval_policy: name, profile, quorum, create_time: _, etag } =
        required("approval_policy", policy)?;
    let profile = match known("approval_policy.profile", profile)? {
        pb::GovernanceProfile::Starter | pb::GovernanceProfile::Unspecified => Profile::Starter,
    };
    let policy = ApprovalPolicy {
        name: parse("approval_policy.approval_policy", &name)?,
        profile,
        quorum: within("approval_policy.quorum", quorum, 0, 10)?,
        created_at: Time::default(),
        row_version: 1,
    };
    Ok((policy, etag))
}

impl From<&ApprovalPolicy> for pb::ApprovalPolicy {
    fn from(policy: &ApprovalPolicy) -> Self {
        let profile = match policy.profile {
            Profile::Starter => pb::GovernanceProfile::Starter,
        };
        Self {
            approval_policy: policy.name.to_string(),
            profile: profile.into(),
            quorum: policy.quorum,
            create_time: Some(to_proto(policy.created_at)),
            etag: etag_of(policy.row_version),
        }
    }
}

/// Makes the policy that every tenant has when it is first asked for.
pub(super) async fn give_policy(
    db: &mut PgConnection,
    actor: &Actor,
    name: &ApprovalPolicyId,
) -> Result<(), Failure> {
    let Actor { tenant, now, .. } = actor;
    if !ApprovalPolicy::is_given(name) || !store::policy::insert_starter(db, tenant, *now).await? {
        return Ok(());
    }
    if let Some(policy) = store::policy::find(db, tenant, name).await? {
        apply::tell_policy(db, actor, "approval_policy.created", &policy).await?;
    }
    Ok(())
}

pub(super) fn no_policy(name: &ApprovalPolicyId) -> Refusal {
    absent(Reason::ApprovalPolicyNotFound, "approval policy", name)
}

impl App {
    pub(super) async fn create_approval_policy(
        &self,
        request: Request<pb::CreateApprovalPolicyRequest>,
    ) -> Result<pb::CreateApprovalPolicyResponse, Failure> {
        let (call, message) = Call::of(request, "CreateApprovalPolicy", |message| &mut message.request_id)?;
        let pb::CreateApprovalPolicyRequest { approval_policy, request_id: _ } = message;
        let (policy, _) = parse_policy(approval_policy)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let exists = || {
            let text = format!("there is an approval policy {} already", policy.name);
            Refusal::new(Reason::ApprovalPolicyExists, text)
        };
        if ApprovalPolicy::is_given(&policy.name) {
            return Err(exists().into());
        }
        let policy = ApprovalPolicy { created_at: work.now, ..policy.clone() };
        store::policy::insert(&mut work.tx, &work.actor.tenant, &policy)
            .await
            .map_err(|error| match broken_constraint(&error) {
                Some(POLICY_KEY) => exists().into(),
                Some(_) | None => Failure::from(error),
            })?;
        apply::tell_policy(&mut work.tx, &work.actor, "approval_policy.created", &policy).await?;
        work.answer(pb::CreateApprovalPolicyResponse { approval_policy: Some((&policy).into()) })
            .await
    }

    pub(super) async fn get_approval_policy(
        &self,
        request: Request<pb::GetApprovalPolicyRequest>,
    ) -> Result<pb::GetApprovalPolicyResponse, Failure> {
        let (caller, deadline) = (Caller::of(&request)?, shared::edge::Deadline::of(&request));
        let pb::GetApprovalPolicyRequest { approval_policy } = request.into_inner();
        let name = parse("approval_policy", &approval_policy)?;
        let tenant: TenantId = caller.tenant.clone();
        let actor = Actor { tenant, principal: caller.principal.clone(), now: self.clock.now() };
        let mut tx = self.db.begin(deadline).await?;
        give_policy(&mut tx, &actor, &name).await?;
        let found = store::policy::find(&mut tx, &actor.tenant, &name).await?;
        tx.commit().await?;
        let found = found.ok_or_else(|| no_policy(&name))?;
        Ok(pb::GetApprovalPolicyResponse { approval_policy: Some((&found).into()) })
    }

    pub(super) async fn update_approval_policy(
        &self,
        request: Request<pb::UpdateApprovalPolicyRequest>,
    ) -> Result<pb::UpdateApprovalPolicyResponse, Failure> {
        let (call, message) = Call::of(request, "UpdateApprovalPolicy", |message| &mut message.request_id)?;
        let pb::UpdateApprovalPolicyRequest { approval_policy, request_id: _ } = message;
        let (asked, sent_etag) = parse_policy(approval_policy)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let tenant = &work.actor.tenant;
        give_policy(&mut work.tx, &work.actor, &asked.name).await?;
        let stored = store::policy::lock(&mut work.tx, tenant, &asked.name).await?;
        let stored = stored.ok_or_else(|| no_policy(&asked.name))?;
        etag(&sent_etag, stored.row_version)?;
        let policy =
            ApprovalPolicy { created_at: stored.created_at, row_version: stored.row_version + 1, ..asked };
        expect_written(store::policy::update(&mut work.tx, tenant, &policy).await?)?;
        apply::tell_policy(&mut work.tx, &work.actor, "approval_policy.updated", &policy).await?;
        work.answer(pb::UpdateApprovalPolicyResponse { approval_policy: Some((&policy).into()) })
            .await
    }
}
