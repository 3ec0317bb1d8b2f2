//! What governance goes by: who people are, what stands on the artifact, what the component is, the calendar and the past.
//! Each is a fact of now, so that a release moves when it changes.

use chrono::TimeDelta;
use shared::pb::release as pb;
use shared::pb::release::{
    EvidenceKind, GovernanceProfile as Profile, ReleaseAction, ReleaseState, RiskBand,
};
use shared::time::to_proto;
use tonic::Code;

use crate::approval::pending;
use crate::evidence::{digest, submit_evidence, test_report};
use crate::harness::govern::{
    Size, approval, approve, blockers, change, create, explain, govern, hand_in, member, policy, quarantine,
};
use crate::harness::shop::{
    advance, advance_rollout, create_component, get_release, set_alias, start as rollout_of,
};
use crate::harness::{Answer as _, Caller, ENVIRONMENT, Stack, person, workload};
use crate::window::{create_window, today};

const BOB: &str = "tandem-local|bob";
/// That of every draft of `change`.
const ARTIFACT: u8 = 10;

async fn update_component(caller: &Caller, component: pb::Component) {
    let request = pb::UpdateComponentRequest { component: Some(component), ..Default::default() };
    caller.catalog().update_component(request).await.answer();
}

fn storefront() -> pb::Component {
    pb::Component { component: "storefront".to_owned(), ..Default::default() }
}

fn review(reviewer: &str, author: &str) -> pb::Evidence {
    let (reviewer, authors) = (reviewer.to_owned(), vec![author.to_owned()]);
    pb::Evidence {
        kind: EvidenceKind::Review.into(),
        review: Some(pb::Review { reviewer, authors }),
        ..test_report(ARTIFACT, "", true)
    }
}

async fn score(caller: &Caller, release: &pb::Release) -> i32 {
    explain(caller, release).await.risk.unwrap().score
}

#[tokio::test]
async fn a_committer_under_another_name_does_not_approve_their_own_work() {
    let (stack, author) = govern(Profile::Standard).await;
    let release = hand_in(&author, change("1.0", Size::Small, &["Bob@Example.com"])).await;
    let bob = stack.caller(&person("bob"));
    let refused = bob.approvals().approve_release(approval(&release)).await;
    refused.refused(Code::FailedPrecondition, "COMMITTER_UNMAPPED");
    set_alias(&author, "bob@example.com", BOB).await;
    let refused = bob.approvals().approve_release(approval(&release)).await;
    refused.refused(Code::PermissionDenied, "SOD_VIOLATION");
    let boss = stack.caller(&person("boss"));
    assert_eq!(approve(&boss, &release).await.state(), ReleaseState::Approved);
}

#[tokio::test]
async fn two_accounts_of_one_person_are_one_vote() {
    let (stack, author) = govern(Profile::Standard).await;
    let release = hand_in(&author, change("1.0", Size::Large, &[])).await;
    set_alias(&author, "tandem-local|bob-admin", BOB).await;
    let bob = member(&stack, "bob", &["dev"]);
    let admin = member(&stack, "bob-admin", &["ops"]);
    approve(&bob, &release).await;
    let refused = admin.approvals().approve_release(approval(&release)).await;
    refused.refused(Code::AlreadyExists, "VOTE_EXISTS");
}

#[tokio::test]
async fn a_vote_counts_no_more_once_its_voter_turns_out_to_be_an_author() {
    let (stack, author) = govern(Profile::Standard).await;
    let release = hand_in(&author, change("1.0", Size::Large, &[])).await;
    approve(&member(&stack, "bob", &["dev"]), &release).await;
    set_alias(&author, BOB, "tandem-local|author").await;
    let ops = member(&stack, "ops", &["ops"]);
    assert_eq!(approve(&ops, &release).await.state(), ReleaseState::PendingApproval);
    let approved = approve(&member(&stack, "carol", &["dev"]), &release).await;
    assert_eq!(approved.state(), ReleaseState::Approved);
}

#[tokio::test]
async fn an_author_takes_no_review_of_a_colleague_away() {
    let (stack, author) = govern(Profile::Sox).await;
    let release = hand_in(&author, change("1.0", Size::Small, &[])).await;
    let pipeline = stack.caller(&workload("pipeline"));
    submit_evidence(&pipeline, test_report(ARTIFACT, "unit", true)).await;
    let failed = pb::EvidenceOutcome::Failed.into();
    let against = pb::Evidence { outcome: failed, ..review(BOB, "tandem-local|author") };
    submit_evidence(&pipeline, against).await;
    submit_evidence(&author, review("tandem-local|author", "somebody-else")).await;
    assert_eq!(get_release(&author, &release).await.state(), ReleaseState::Assessing);
    submit_evidence(&pipeline, review(BOB, "tandem-local|author")).await;
    submit_evidence(&author, review("tandem-local|author", "somebody-else")).await;
    assert_eq!(get_release(&author, &release).await.state(), ReleaseState::PendingApproval);
}

#[tokio::test]
async fn a_release_waits_for_the_evidence_of_its_policy_and_again_when_it_is_revoked() {
    let (stack, author) = govern(Profile::Sox).await;
    let release = hand_in(&author, change("1.0", Size::Small, &[])).await;
    let state = async || get_release(&author, &release).await.state();
    assert_eq!(state().await, ReleaseState::Assessing);
    // Of another artifact, and by the author: neither counts.
    submit_evidence(&author, test_report(ARTIFACT + 1, "unit", true)).await;
    submit_evidence(&author, review("tandem-local|author", "somebody-else")).await;
    assert_eq!(state().await, ReleaseState::Assessing);
    let tests = submit_evidence(&author, test_report(ARTIFACT, "unit", true)).await;
    assert_eq!(state().await, ReleaseState::Assessing);
    let pipeline = stack.caller(&workload("pipeline"));
    submit_evidence(&pipeline, review(BOB, "tandem-local|author")).await;
    assert_eq!(state().await, ReleaseState::PendingApproval);
    let boss = stack.caller(&person("boss"));
    assert_eq!(approve(&boss, &release).await.state(), ReleaseState::Approved);
    let revocation = pb::RevokeEvidenceRequest {
        evidence_id: tests.evidence_id,
        reason: "of another commit".to_owned(),
        ..Default::default()
    };
    author.evidence().revoke_evidence(revocation).await.answer();
    let refused = author.rollouts().start_rollout(rollout_of(&release, &[])).await;
    refused.refused(Code::FailedPrecondition, "ROLLOUT_BLOCKED");
    assert_eq!(
        blockers(&author, &release)
            .await
            .iter()
            .filter(|kind| *kind == "EVIDENCE")
            .count(),
        1
    );
    // It has the votes that it needs, and waits for nobody's.
    assert_eq!(get_release(&author, &release).await.state(), ReleaseState::PendingApproval);
    assert_eq!(pending(&stack.caller(&person("carol"))).await, [""; 0]);
}

#[tokio::test]
async fn what_a_component_is_moves_the_risk_of_its_releases() {
    let (_stack, author) = govern(Profile::Standard).await;
    let release = hand_in(&author, change("1.0", Size::Large, &[])).await;
    let second = score(&author, &release).await;
    update_component(
        &author,
        pb::Component { tier: pb::ComponentTier::ComponentTier4.into(), ..storefront() },
    )
    .await;
    let fourth = score(&author, &release).await;
    update_component(
        &author,
        pb::Component { tier: pb::ComponentTier::ComponentTier1.into(), ..storefront() },
    )
    .await;
    let first = score(&author, &release).await;
    assert!(fourth < second && second < first, "{fourth} {second} {first}");
}

#[tokio::test]
async fn the_owners_of_a_component_and_the_business_can_approve_what_is_critical() {
    let (stack, author) = govern(Profile::Standard).await;
    let owners = |name: &str| vec![name.to_owned()];
    let release = hand_in(&author, change("1.0", Size::Huge, &[])).await;
    let owned = pb::Component {
        owner_groups: owners("shop-team"),
        business_owner_groups: owners("trading"),
        ..storefront()
    };
    let team = member(&stack, "lead", &["shop-team"]);
    update_component(&team, owned).await;
    approve(&team, &release).await;
    approve(&member(&stack, "trader", &["trading"]), &release).await;
    let approved = approve(&member(&stack, "ops", &["ops"]), &release).await;
    assert_eq!(approved.state(), ReleaseState::Approved);
}

#[tokio::test]
async fn a_peak_raises_the_risk_while_it_lasts() {
    let (stack, author) = govern(Profile::Standard).await;
    let release = hand_in(&author, change("1.0", Size::Small, &[])).await;
    assert_eq!(release.risk.as_ref().unwrap().band(), RiskBand::Medium);
    let quiet = score(&author, &release).await;
    let peak = pb::Window { actions: vec![], is_peak: true, ..today() };
    create_window(&author, peak).await;
    let busy = score(&author, &release).await;
    assert!(busy > quiet, "{quiet} {busy}");
    stack.advance(TimeDelta::days(2));
    assert_eq!(score(&author, &release).await, quiet);
}

#[tokio::test]
async fn a_past_that_was_imported_is_what_the_prior_begins_with() {
    let (stack, author) = govern(Profile::Standard).await;
    let release = hand_in(&author, change("1.0", Size::Large, &[])).await;
    let unknown = score(&author, &release).await;
    let deployed = |hours| Some(to_proto(stack.now() - TimeDelta::hours(hours)));
    let past = |n: i64| pb::PastDeployment {
        version: format!("0.{n}.0"),
        deploy_time: deployed(10 + n),
        failure_time: deployed(10 + n),
        recovery_time: deployed(9 + n),
        ..Default::default()
    };
    let request = pb::ImportHistoryRequest {
        component: "storefront".to_owned(),
        environment: ENVIRONMENT.to_owned(),
        records: (1..=20).map(past).collect(),
        ..Default::default()
    };
    author.insight().import_history(request).await.answer();
    let failing = score(&author, &release).await;
    assert!(failing > unknown, "{unknown} {failing}");
}

#[tokio::test]
async fn an_environment_asks_for_evidence_of_its_own() {
    let (_stack, author) = govern(Profile::Starter).await;
    let scan = pb::EvidenceRequirement { kind: "SCAN".to_owned(), suite: "sast".to_owned() };
    let requirements = pb::EnvironmentRequirements { required_evidence: vec![scan], ..Default::default() };
    let environment = pb::Environment {
        environment: ENVIRONMENT.to_owned(),
        requirements: Some(requirements),
        ..Default::default()
    };
    let request = pb::UpdateEnvironmentRequest { environment: Some(environment), ..Default::default() };
    author.catalog().update_environment(request).await.answer();
    let release = hand_in(&author, change("1.0", Size::Small, &[])).await;
    assert_eq!(blockers(&author, &release).await, ["EVIDENCE"]);
    let refused = author.rollouts().start_rollout(rollout_of(&release, &[])).await;
    refused.refused(Code::FailedPrecondition, "ROLLOUT_BLOCKED");
    let scan = pb::Evidence { kind: EvidenceKind::Scan.into(), ..test_report(ARTIFACT, "sast", true) };
    assert_eq!(submit_evidence(&author, scan).await.artifact_digest, digest(ARTIFACT));
    author.rollouts().start_rollout(rollout_of(&release, &[])).await.answer();
}

#[tokio::test]
async fn explain_says_what_the_next_step_is_held_by_and_nothing_else() {
    let (stack, author) = govern(Profile::Standard).await;
    let boss = stack.caller(&person("boss"));
    let first = hand_in(&author, change("1.0", Size::Small, &[])).await;
    approve(&boss, &first).await;
    author.rollouts().start_rollout(rollout_of(&first, &[])).await.answer();
    let second = hand_in(&author, change("1.1", Size::Small, &[])).await;
    approve(&boss, &second).await;
    let started = author.rollouts().start_rollout(rollout_of(&second, &[100])).await;
    let rollout = started.answer().rollout.unwrap();
    assert_eq!(blockers(&author, &second).await, [""; 0]);
    // Votes count for 72 hours; what began under them goes on.
    stack.advance(TimeDelta::hours(73));
    assert_eq!(blockers(&author, &second).await, [""; 0]);
    let release_id = second.release_id.clone();
    let anywhere = pb::ExplainReleaseRequest { release_id, environment: String::new() };
    let elsewhere = author.releases().explain_release(anywhere).await.answer().blockers;
    assert_eq!(elsewhere.iter().map(|blocker| blocker.r#type.as_str()).collect::<Vec<_>>(), ["APPROVAL"]);
    // What serves everyone, and whose approval expired, too, goes nowhere from there.
    assert_eq!(blockers(&author, &first).await, ["STATE"]);
    let reason = "an incident".to_owned();
    let stop = pb::StopTheLineRequest { reason: reason.clone(), ..Default::default() };
    boss.windows().stop_the_line(stop).await.answer();
    assert_eq!(blockers(&author, &second).await, ["LINE"]);
    let refused = author.rollouts().advance_rollout(advance(&rollout)).await;
    refused.refused(Code::FailedPrecondition, "LINE_STOPPED");
    let resume = pb::ResumeTheLineRequest { reason, ..Default::default() };
    boss.windows().resume_the_line(resume).await.answer();
    advance_rollout(&author, &rollout).await;
    // Everyone sees it: the last step exposes nobody more.
    boss.releases().quarantine_release(quarantine(&second)).await.answer();
    assert_eq!(blockers(&author, &second).await, [""; 0]);
    advance_rollout(&author, &rollout).await;
    assert_eq!(blockers(&author, &second).await, ["STATE"]);
}

/// Whether windows hold a release of `storefront`, which is of this tier and kind in region `eu`.
async fn is_held(scope: pb::WindowScope, actions: &[ReleaseAction], kind: pb::ComponentKind) -> bool {
    let stack = Stack::releases();
    let caller = stack.caller(&person("ada"));
    let approval_policy = create(&caller, policy("free", Profile::Starter)).await.approval_policy;
    let tier = pb::ComponentTier::ComponentTier3.into();
    let component = pb::Component { approval_policy, tier, kind: kind.into(), ..storefront() };
    create_component(&caller, component).await;
    let environment = pb::Environment {
        environment: ENVIRONMENT.to_owned(),
        region: "eu".to_owned(),
        ..Default::default()
    };
    let request = pb::CreateEnvironmentRequest { environment: Some(environment), ..Default::default() };
    caller.catalog().create_environment(request).await.answer();
    let actions = actions.iter().map(|action| (*action).into()).collect();
    create_window(&caller, pb::Window { scope: Some(scope), actions, ..today() }).await;
    let release = hand_in(&caller, change("1.0", Size::Small, &[])).await;
    let explained = blockers(&caller, &release).await == ["WINDOW"];
    let refused = caller.rollouts().start_rollout(rollout_of(&release, &[])).await.is_err();
    assert_eq!(explained, refused);
    refused
}

#[tokio::test]
async fn windows_reach_what_is_of_their_tier_region_and_kind_only() {
    let both = [ReleaseAction::Deploy, ReleaseAction::Expose];
    let tiers = |tier: pb::ComponentTier| pb::WindowScope { tiers: vec![tier.into()], ..Default::default() };
    let regions = |name: &str| pb::WindowScope { regions: vec![name.to_owned()], ..Default::default() };
    let service = pb::ComponentKind::Service;
    assert!(is_held(tiers(pb::ComponentTier::ComponentTier3), &both, service).await);
    assert!(!is_held(tiers(pb::ComponentTier::ComponentTier1), &both, service).await);
    assert!(is_held(regions("eu"), &both, service).await);
    assert!(!is_held(regions("us"), &both, service).await);
    let schema = [ReleaseAction::Schema];
    assert!(is_held(pb::WindowScope::default(), &schema, pb::ComponentKind::Schema).await);
    assert!(!is_held(pb::WindowScope::default(), &schema, service).await);
}

#[tokio::test]
async fn what_waits_while_a_window_denies_it_is_the_freeze_backlog() {
    let (stack, author) = govern(Profile::Starter).await;
    create_window(&author, today()).await;
    hand_in(&author, change("1.0", Size::Small, &[])).await;
    stack.advance(TimeDelta::hours(1));
    let request = pb::GetDeliveryMetricsRequest { component: "storefront".to_owned(), ..Default::default() };
    let metrics = author.insight().get_delivery_metrics(request).await.answer().metrics.unwrap();
    assert_eq!(metrics.freeze_backlog, Some(1));
}
