//! Releases under governance that asks for something: a policy by risk, a component that follows it, drafts of this or that
//! risk, and people who vote.

use shared::issuer::Grant;
use shared::pb::release as pb;
use shared::time::to_proto;

use super::shop::{create_component, create_release_as, draft};
use super::{Answer as _, Caller, ENVIRONMENT, Stack, at, person};

/// How much a draft changes, and hence its band where nothing is known of the component.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Size {
    /// MEDIUM.
    Small,
    /// HIGH.
    Large,
    /// CRITICAL.
    Huge,
}

/// A policy of this profile, with what it says by itself.
pub(crate) fn policy(name: &str, profile: pb::GovernanceProfile) -> pb::ApprovalPolicy {
    pb::ApprovalPolicy { approval_policy: name.to_owned(), profile: profile.into(), ..Default::default() }
}

pub(crate) async fn create(caller: &Caller, policy: pb::ApprovalPolicy) -> pb::ApprovalPolicy {
    let request = pb::CreateApprovalPolicyRequest { approval_policy: Some(policy), ..Default::default() };
    caller
        .catalog()
        .create_approval_policy(request)
        .await
        .answer()
        .approval_policy
        .unwrap()
}

/// `storefront` under a policy of this profile, the environment that session services serve, and its author.
pub(crate) async fn govern(profile: pb::GovernanceProfile) -> (Stack, Caller) {
    let stack = Stack::releases();
    let author = stack.caller(&person("author"));
    let approval_policy = create(&author, policy("by-risk", profile)).await.approval_policy;
    let component = "storefront".to_owned();
    create_component(&author, pb::Component { component, approval_policy, ..Default::default() }).await;
    let environment = pb::Environment { environment: ENVIRONMENT.to_owned(), ..Default::default() };
    let request = pb::CreateEnvironmentRequest { environment: Some(environment), ..Default::default() };
    author.catalog().create_environment(request).await.answer();
    (stack, author)
}

/// A draft that any policy takes, by these committers.
pub(crate) fn change(version: &str, size: Size, committers: &[&str]) -> pb::CreateReleaseRequest {
    let commit = |author: &&str| pb::Commit {
        sha: "c0ffee".to_owned(),
        author: (*author).to_owned(),
        commit_time: Some(to_proto(at(super::START - 86_400))),
    };
    let (changed_lines, is_huge) = match size {
        Size::Small => (10, false),
        Size::Large => (1000, false),
        Size::Huge => (10_000, true),
    };
    let touched = if is_huge { 5 } else { 0 };
    let change = pb::Change {
        commits: committers.iter().map(commit).collect(),
        changed_lines,
        components_touched: (0..touched).map(|n| format!("component-{n}")).collect(),
        has_schema_migration: is_huge,
        has_config_change: is_huge,
        rollback_plan: "deploy the release before it".to_owned(),
        ..pb::Change::default()
    };
    let artifact_digest = format!("sha256:{}", "0a".repeat(32));
    pb::CreateReleaseRequest { artifact_digest, change: Some(change), ..draft(version) }
}

/// Drafted and submitted.
pub(crate) async fn hand_in(caller: &Caller, draft: pb::CreateReleaseRequest) -> pb::Release {
    super::shop::submit(caller, &create_release_as(caller, draft).await).await
}

/// Someone in these groups.
pub(crate) fn member(stack: &Stack, name: &str, groups: &[&str]) -> Caller {
    let groups = groups.iter().map(ToString::to_string).collect();
    stack.caller(&Grant { groups, ..person(name) })
}

pub(crate) fn approval(release: &pb::Release) -> pb::ApproveReleaseRequest {
    pb::ApproveReleaseRequest { release_id: release.release_id.clone(), ..Default::default() }
}

pub(crate) async fn approve(caller: &Caller, release: &pb::Release) -> pb::Release {
    caller
        .approvals()
        .approve_release(approval(release))
        .await
        .answer()
        .release
        .unwrap()
}

pub(crate) fn rejection(release: &pb::Release) -> pb::RejectReleaseRequest {
    let (release_id, reason) = (release.release_id.clone(), "the tests fail".to_owned());
    pb::RejectReleaseRequest { release_id, reason, ..Default::default() }
}

pub(crate) fn withdrawal(release: &pb::Release) -> pb::WithdrawVoteRequest {
    pb::WithdrawVoteRequest { release_id: release.release_id.clone(), ..Default::default() }
}

pub(crate) fn revision(release: &pb::Release) -> pb::ReviseReleaseRequest {
    let (release_id, reason) = (release.release_id.clone(), "one more fix".to_owned());
    pb::ReviseReleaseRequest { release_id, reason, ..Default::default() }
}

pub(crate) async fn revise(caller: &Caller, release: &pb::Release) -> pb::Release {
    caller
        .releases()
        .revise_release(revision(release))
        .await
        .answer()
        .release
        .unwrap()
}

pub(crate) fn emergency(release: &pb::Release) -> pb::UseBreakGlassRequest {
    let (release_id, reason) = (release.release_id.clone(), "payments are down".to_owned());
    pb::UseBreakGlassRequest { release_id, reason, ..Default::default() }
}

pub(crate) fn quarantine(release: &pb::Release) -> pb::QuarantineReleaseRequest {
    let (release_id, reason) = (release.release_id.clone(), "it leaks".to_owned());
    pb::QuarantineReleaseRequest { release_id, reason, ..Default::default() }
}

pub(crate) async fn explain(caller: &Caller, release: &pb::Release) -> pb::ExplainReleaseResponse {
    let (release_id, environment) = (release.release_id.clone(), ENVIRONMENT.to_owned());
    caller
        .releases()
        .explain_release(pb::ExplainReleaseRequest { release_id, environment })
        .await
        .answer()
}

/// Kinds of what keeps a release.
pub(crate) async fn blockers(caller: &Caller, release: &pb::Release) -> Vec<String> {
    explain(caller, release)
        .await
        .blockers
        .into_iter()
        .map(|blocker| blocker.r#type)
        .collect()
}
