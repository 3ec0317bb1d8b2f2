//! Approval policies: each change is a version, and where the profile says so it takes two people.

use chrono::TimeDelta;
use shared::auth::Caller;
use shared::db::broken_constraint;
use shared::id::{ApprovalPolicyId, TenantId};
use shared::mutation::{Actor, Begun, Call, Mutation};
use shared::parse::{at_most, duration, etag, etag_of, known, line, parse, required, within};
use shared::pb::release as pb;
use shared::status::{Failure, Reason, Refusal};
use shared::time::to_proto;
use sqlx::PgConnection;
use tonic::Request;

use super::parse_evidence;
use crate::apply::{self, expect_written};
use crate::domain::policy::{ApprovalPolicy, BandRule, Profile, Proposed, Rules, Terms};
use crate::domain::risk::Weights;
use crate::rpc::{App, absent};
use crate::store;
use crate::store::policy::POLICY_KEY;

/// Scope of changes to what a release needs before it may be rolled out.
pub(super) const POLICY_SCOPE: &str = "policy.write";

const FIELD: &str = "approval_policy.rules";
const VALIDITY_MAX: TimeDelta = TimeDelta::days(365);
const REVIEW_DUE_MAX: TimeDelta = TimeDelta::days(30);

/// What people set in an approval policy, and the etag that they send.
struct Asked {
    name: ApprovalPolicyId,
    terms: Terms,
    etag: String,
}

fn parse_policy(policy: Option<pb::ApprovalPolicy>) -> Result<Asked, Refusal> {
    let pb::ApprovalPolicy {
        approval_policy: name,
        profile,
        quorum,
        create_time: _,
        etag,
        rules,
        version: _,
        proposed: _,
    } = required("approval_policy", policy)?;
    let profile = match known("approval_policy.profile", profile)? {
        pb::GovernanceProfile::Starter | pb::GovernanceProfile::Unspecified => Profile::Starter,
        pb::GovernanceProfile::Standard => Profile::Standard,
        pb::GovernanceProfile::Sox => Profile::Sox,
        pb::GovernanceProfile::PciDss => Profile::PciDss,
    };
    let quorum = within("approval_policy.quorum", quorum, 0, 10)?;
    let rules = rules.map_or_else(|| Ok(profile.rules()), parse_rules)?;
    let terms = Terms { profile, quorum, rules };
    terms
        .check()
        .map_err(|error| Refusal::field(format!("{FIELD}.{}", error.field), &error))?;
    Ok(Asked { name: parse("approval_policy.approval_policy", &name)?, terms, etag })
}

fn parse_rules(rules: pb::ApprovalRules) -> Result<Rules, Refusal> {
    let pb::ApprovalRules {
        risk_binding,
        medium_from,
        high_from,
        critical_from,
        bands,
        required_evidence,
        requires_rollback_plan,
        two_people,
        break_glass_review_due,
        editor_groups,
        weights_version,
    } = rules;
    let field = |name: &str| format!("{FIELD}.{name}");
    let score = |name: &str, value, least| {
        let score = within(&field(name), value, i32::from(least), 100)?;
        Ok::<_, Refusal>(u8::try_from(score).unwrap_or(100))
    };
    let medium = score("medium_from", medium_from, 0)?;
    let high = score("high_from", high_from, medium)?;
    let critical = score("critical_from", critical_from, high)?;
    let bands = bands.iter().enumerate().map(|(n, rule)| parse_band(n, rule));
    let bands: Vec<_> = bands.collect::<Result<_, _>>()?;
    let bands = bands
        .try_into()
        .map_err(|_| Refusal::field(field("bands"), "must have 4 elements"))?;
    let required_evidence = parse_evidence(&field("required_evidence"), required_evidence)?;
    at_most(&field("editor_groups"), &editor_groups, 16)?;
    let groups = editor_groups.into_iter().enumerate();
    let groups = groups.map(|(n, group)| line(&format!("{FIELD}.editor_groups[{n}]"), group, 1, 200));
    let due = required(&field("break_glass_review_due"), break_glass_review_due)?;
    let due = secs(&field("break_glass_review_due"), Some(due), TimeDelta::hours(1), REVIEW_DUE_MAX)?;
    let weights = if weights_version == 0 { Weights::default().version() } else { weights_version };
    if Weights::of_version(weights).is_none() {
        return Err(Refusal::field(field("weights_version"), "there are no such weights"));
    }
    Ok(Rules {
        risk_binding,
        thresholds: [medium, high, critical],
        weights_version: weights,
        bands,
        required_evidence,
        requires_rollback_plan,
        two_people,
        review_due_secs: due.unwrap_or_default(),
        editor_groups: groups.collect::<Result<_, _>>()?,
    })
}

fn parse_band(n: usize, rule: &pb::BandRule) -> Result<BandRule, Refusal> {
    let field = |name: &str| format!("{FIELD}.bands[{n}].{name}");
    let quorum = within(&field("quorum"), rule.quorum, 0, 10)?;
    let owners = i32::from(rule.needs_owner) + i32::from(rule.needs_business_owner);
    if quorum < owners {
        return Err(Refusal::field(field("quorum"), format!("must be at least {owners}, an owner each")));
    }
    Ok(BandRule {
        quorum,
        distinct_groups: within(&field("distinct_groups"), rule.distinct_groups, 0, quorum)?,
        needs_owner: rule.needs_owner,
        needs_business_owner: rule.needs_business_owner,
        validity_secs: secs(&field("validity"), rule.validity, TimeDelta::minutes(1), VALIDITY_MAX)?,
    })
}

/// Whole seconds of a duration between these.
fn secs(
    field: &str,
    value: Option<prost_types::Duration>,
    min: TimeDelta,
    max: TimeDelta,
) -> Result<Option<i64>, Refusal> {
    let Some(value) = duration(field, value)? else { return Ok(None) };
    let secs = i64::try_from(value.as_secs()).unwrap_or(i64::MAX);
    if (min.num_seconds()..=max.num_seconds()).contains(&secs) {
        return Ok(Some(secs));
    }
    let text = format!("must be {} s to {} s", min.num_seconds(), max.num_seconds());
    Err(Refusal::field(field, text))
}

const fn profile_to_proto(profile: Profile) -> pb::GovernanceProfile {
    match profile {
        Profile::Starter => pb::GovernanceProfile::Starter,
        Profile::Standard => pb::GovernanceProfile::Standard,
        Profile::Sox => pb::GovernanceProfile::Sox,
        Profile::PciDss => pb::GovernanceProfile::PciDss,
    }
}

impl From<&Rules> for pb::ApprovalRules {
    fn from(rules: &Rules) -> Self {
        let seconds = |seconds| prost_types::Duration { seconds, nanos: 0 };
        let band = |rule: &BandRule| pb::BandRule {
            quorum: rule.quorum,
            distinct_groups: rule.distinct_groups,
            needs_owner: rule.needs_owner,
            needs_business_owner: rule.needs_business_owner,
            validity: rule.validity_secs.map(seconds),
        };
        let [medium, high, critical] = rules.thresholds.map(i32::from);
        Self {
            risk_binding: rules.risk_binding,
            medium_from: medium,
            high_from: high,
            critical_from: critical,
            bands: rules.bands.iter().map(band).collect(),
            required_evidence: rules.required_evidence.iter().map(Into::into).collect(),
            requires_rollback_plan: rules.requires_rollback_plan,
            two_people: rules.two_people,
            break_glass_review_due: Some(seconds(rules.review_due_secs)),
            editor_groups: rules.editor_groups.clone(),
            weights_version: rules.weights_version,
        }
    }
}

impl From<&ApprovalPolicy> for pb::ApprovalPolicy {
    fn from(policy: &ApprovalPolicy) -> Self {
        let proposed = policy.proposed.as_ref().map(|proposed| pb::ProposedApprovalPolicy {
            version: proposed.version,
            profile: profile_to_proto(proposed.terms.profile).into(),
            quorum: proposed.terms.quorum,
            rules: Some((&proposed.terms.rules).into()),
            author: proposed.author.clone(),
            create_time: Some(to_proto(proposed.at)),
        });
        Self {
            approval_policy: policy.name.to_string(),
            profile: profile_to_proto(policy.terms.profile).into(),
            quorum: policy.terms.quorum,
            create_time: Some(to_proto(policy.created_at)),
            etag: etag_of(policy.row_version),
            rules: Some((&policy.terms.rules).into()),
            version: policy.row_version,
            proposed,
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

/// What the caller says of a policy, as a version.
async fn version_by(work: &mut Mutation, version: i64, terms: Terms) -> Result<Proposed, Failure> {
    let author = work.actor.principal.clone();
    let person = apply::person_of(&mut work.tx, &work.actor.tenant, &author).await?;
    Ok(Proposed { version, terms, author, person, at: work.now })
}

impl App {
    pub(super) async fn create_approval_policy(
        &self,
        request: Request<pb::CreateApprovalPolicyRequest>,
    ) -> Result<pb::CreateApprovalPolicyResponse, Failure> {
        let (call, message) = Call::of(request, "CreateApprovalPolicy", |message| &mut message.request_id)?;
        let pb::CreateApprovalPolicyRequest { approval_policy, request_id: _ } = message;
        let Asked { name, terms, etag: _ } = parse_policy(approval_policy)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let exists = || {
            let text = format!("there is an approval policy {name} already");
            Refusal::new(Reason::ApprovalPolicyExists, text)
        };
        if ApprovalPolicy::is_given(&name) {
            return Err(exists().into());
        }
        let policy = ApprovalPolicy {
            name: name.clone(),
            terms: terms.clone(),
            created_at: work.now,
            row_version: 1,
            proposed: None,
        };
        store::policy::insert(&mut work.tx, &work.actor.tenant, &policy)
            .await
            .map_err(|error| match broken_constraint(&error) {
                Some(POLICY_KEY) => exists().into(),
                Some(_) | None => Failure::from(error),
            })?;
        let version = version_by(&mut work, 1, terms).await?;
        store::policy::insert_version(&mut work.tx, &work.actor.tenant, &name, &version, true).await?;
        apply::tell_policy(&mut work.tx, &work.actor, "approval_policy.created", &policy).await?;
        work.answer(pb::CreateApprovalPolicyResponse { approval_policy: Some((&policy).into()) })
            .await
    }

    pub(super) async fn get_approval_policy(
        &self,
        request: Request<pb::GetApprovalPolicyRequest>,
    ) -> Result<pb::GetApprovalPolicyResponse, Failure> {
        let (caller, deadline) = (Caller::of(&request)?, shared::edge::Deadline::of(&request));
        let pb::GetApprovalPolicyRequest { approval_policy, version } = request.into_inner();
        let name = parse("approval_policy", &approval_policy)?;
        let version = within("version", version, 0, i64::MAX)?;
        let tenant: TenantId = caller.tenant.clone();
        let actor = Actor { tenant, principal: caller.principal.clone(), now: self.clock.now() };
        let mut tx = self.db.begin(deadline).await?;
        give_policy(&mut tx, &actor, &name).await?;
        let mut found = store::policy::find(&mut tx, &actor.tenant, &name).await?;
        if version != 0 && found.as_ref().is_some_and(|present| present.row_version != version) {
            found = store::policy::find_version(&mut tx, &actor.tenant, &name, version).await?;
        }
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
        let Asked { name, terms, etag: sent_etag } = parse_policy(approval_policy)?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        give_policy(&mut work.tx, &work.actor, &name).await?;
        let stored = store::policy::lock(&mut work.tx, &work.actor.tenant, &name).await?;
        let stored = stored.ok_or_else(|| no_policy(&name))?;
        work.caller.require_owner(&stored.terms.rules.editor_groups)?;
        etag(&sent_etag, stored.row_version)?;
        let takes_two = stored.takes_two(&terms);
        if takes_two {
            work.caller.require_person()?;
        }
        let next = store::policy::next_version(&mut work.tx, &work.actor.tenant, &stored).await?;
        let version = version_by(&mut work, next, terms.clone()).await?;
        // The policy that every tenant has, and those of older versions of Tandem, come without a first version.
        let (author, at) = ("system".to_owned(), stored.created_at);
        let first = Proposed {
            version: stored.row_version,
            terms: stored.terms.clone(),
            person: author.clone(),
            author,
            at,
        };
        let tenant = &work.actor.tenant;
        store::policy::insert_version(&mut work.tx, tenant, &name, &first, true).await?;
        store::policy::drop_proposed(&mut work.tx, tenant, &name).await?;
        store::policy::insert_version(&mut work.tx, tenant, &name, &version, !takes_two).await?;
        let (policy, kind) = if takes_two {
            (ApprovalPolicy { proposed: Some(version), ..stored }, "approval_policy.proposed")
        } else {
            let policy = ApprovalPolicy { terms, row_version: next, proposed: None, ..stored };
            expect_written(store::policy::update(&mut work.tx, tenant, &policy).await?)?;
            (policy, "approval_policy.updated")
        };
        apply::tell_policy(&mut work.tx, &work.actor, kind, &policy).await?;
        work.answer(pb::UpdateApprovalPolicyResponse { approval_policy: Some((&policy).into()) })
            .await
    }

    pub(super) async fn confirm_approval_policy(
        &self,
        request: Request<pb::ConfirmApprovalPolicyRequest>,
    ) -> Result<pb::ConfirmApprovalPolicyResponse, Failure> {
        let (call, message) = Call::of(request, "ConfirmApprovalPolicy", |message| &mut message.request_id)?;
        let pb::ConfirmApprovalPolicyRequest { approval_policy, version, request_id: _ } = message;
        let name: ApprovalPolicyId = parse("approval_policy", &approval_policy)?;
        let version = within("version", version, 0, i64::MAX)?;
        call.caller.require_person()?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let (tenant, confirmer) = (work.actor.tenant.clone(), work.actor.principal.clone());
        let stored = store::policy::lock(&mut work.tx, &tenant, &name).await?;
        let stored = stored.ok_or_else(|| no_policy(&name))?;
        work.caller.require_owner(&stored.terms.rules.editor_groups)?;
        let proposed = stored.proposed.clone().filter(|proposed| proposed.version == version);
        let proposed = proposed.ok_or_else(|| {
            let text = format!("no version {version} of policy {name} waits for a second person");
            Refusal::new(Reason::ProposalNotPending, text)
        })?;
        let author = [proposed.author.as_str(), proposed.person.as_str()];
        let person = apply::require_another(&mut work.tx, &tenant, author, &confirmer).await?;
        let policy = ApprovalPolicy { terms: proposed.terms, row_version: version, proposed: None, ..stored };
        let is_written =
            store::policy::confirm(&mut work.tx, &tenant, &policy, &confirmer, &person, work.now).await?;
        expect_written(is_written)?;
        expect_written(store::policy::update(&mut work.tx, &tenant, &policy).await?)?;
        apply::tell_policy(&mut work.tx, &work.actor, "approval_policy.updated", &policy).await?;
        work.answer(pb::ConfirmApprovalPolicyResponse { approval_policy: Some((&policy).into()) })
            .await
    }
}
