//! Break-glass: approving alone, the review that it owes, and quarantine, which nothing breaks.

use chrono::TimeDelta;
use release_svc::domain::break_glass::BreakGlass;
use shared::id::BreakGlassId;
use shared::pb::release as pb;
use shared::pb::release::GovernanceProfile as Profile;
use shared::pb::release::ReleaseState;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::govern::{Size, approve, blockers, change, emergency, govern, hand_in, quarantine};
use crate::harness::shop::{advance, get_release, roll_back, rollback, start};
use crate::harness::{Answer as _, Caller, person, workload};

pub(crate) fn review(used: &pb::BreakGlass, verdict: pb::BreakGlassVerdict) -> pb::ReviewBreakGlassRequest {
    pb::ReviewBreakGlassRequest {
        break_glass_id: used.break_glass_id.clone(),
        verdict: verdict.into(),
        reason: "looked at the incident".to_owned(),
        request_id: String::new(),
    }
}

pub(crate) async fn break_glass(caller: &Caller, release: &pb::Release) -> pb::UseBreakGlassResponse {
    caller.approvals().use_break_glass(emergency(release)).await.answer()
}

async fn list(caller: &Caller, open_only: bool) -> Vec<pb::BreakGlass> {
    let request = pb::ListBreakGlassesRequest { open_only, ..Default::default() };
    caller.approvals().list_break_glasses(request).await.answer().break_glasses
}

#[tokio::test]
async fn one_person_approves_alone_and_owes_a_review() {
    let (stack, author) = govern(Profile::Sox).await;
    let release = hand_in(&author, change("1.0", Size::Huge, &[])).await;
    assert_eq!(release.state(), ReleaseState::Assessing);
    let machine = stack.caller(&workload("pipeline"));
    let refused = machine.approvals().use_break_glass(emergency(&release)).await;
    refused.refused(Code::PermissionDenied, "CALLER_NOT_A_PERSON");
    let used = break_glass(&author, &release).await;
    let approval = used.release.as_ref().unwrap().approval.clone().unwrap();
    let used = used.break_glass.unwrap();
    assert_eq!(
        (approval.kind(), &approval.break_glass_id),
        (pb::ApprovalKind::BreakGlass, &used.break_glass_id)
    );
    assert_eq!((used.state(), &approval.expire_time), (pb::BreakGlassState::UnderReview, &used.due_time));
    let rollout = author
        .rollouts()
        .start_rollout(start(&release, &[]))
        .await
        .answer()
        .rollout
        .unwrap();
    assert_eq!(rollout.approval_id, approval.approval_id);
    let own = author
        .approvals()
        .review_break_glass(review(&used, pb::BreakGlassVerdict::Accepted))
        .await;
    own.refused(Code::PermissionDenied, "SOD_VIOLATION");
    let boss = stack.caller(&person("boss"));
    let accepted = review(&used, pb::BreakGlassVerdict::Accepted);
    let reviewed = boss
        .approvals()
        .review_break_glass(accepted.clone())
        .await
        .answer()
        .break_glass
        .unwrap();
    assert_eq!(
        (reviewed.state(), reviewed.reviewer.as_str()),
        (pb::BreakGlassState::Accepted, "tandem-local|boss")
    );
    let again = boss.approvals().review_break_glass(accepted).await;
    again.refused(Code::FailedPrecondition, "BREAK_GLASS_REVIEWED");
    assert_eq!((list(&boss, true).await, list(&boss, false).await), (vec![], vec![reviewed]));
}

#[tokio::test]
async fn i20_an_overdue_review_blocks_the_next_break_glass_until_it_is_done() {
    let (stack, author) = govern(Profile::Standard).await;
    let boss = stack.caller(&person("boss"));
    let first = hand_in(&author, change("1.0", Size::Large, &[])).await;
    let used = break_glass(&author, &first).await.break_glass.unwrap();
    // A debt that is not due yet blocks nothing.
    break_glass(&author, &hand_in(&author, change("1.1", Size::Large, &[])).await).await;
    stack.advance(TimeDelta::hours(48));
    assert_eq!(
        list(&author, true).await.iter().map(pb::BreakGlass::state).collect::<Vec<_>>(),
        [pb::BreakGlassState::Overdue, pb::BreakGlassState::Overdue]
    );
    let third = hand_in(&author, change("1.2", Size::Large, &[])).await;
    let refused = author.approvals().use_break_glass(emergency(&third)).await;
    refused.refused(Code::FailedPrecondition, "BREAK_GLASS_REVIEW_OVERDUE");
    // It blocks that person only, and what it approved stands no more.
    break_glass(&boss, &third).await;
    assert_eq!(get_release(&author, &first).await.state(), ReleaseState::PendingApproval);
    for open in list(&boss, true).await {
        if open.principal == used.principal {
            let request = review(&open, pb::BreakGlassVerdict::Violation);
            boss.approvals().review_break_glass(request).await.answer();
        }
    }
    break_glass(&author, &hand_in(&author, change("1.3", Size::Large, &[])).await).await;
}

#[tokio::test]
async fn what_was_a_violation_approves_nothing_any_more() {
    let (stack, author) = govern(Profile::Standard).await;
    let release = hand_in(&author, change("1.0", Size::Large, &[])).await;
    let used = break_glass(&author, &release).await.break_glass.unwrap();
    let boss = stack.caller(&person("boss"));
    boss.approvals()
        .review_break_glass(review(&used, pb::BreakGlassVerdict::Violation))
        .await
        .answer();
    assert_eq!(get_release(&author, &release).await.state(), ReleaseState::PendingApproval);
    // Nor does it when it is used again, by whomever.
    for again in [&author, &boss] {
        let refused = again.approvals().use_break_glass(emergency(&release)).await;
        let status = refused.refused(Code::FailedPrecondition, "BREAK_GLASS_REVIEWED");
        let named = &status.get_details_error_info().unwrap().metadata["break_glass_id"];
        assert_eq!(*named, used.break_glass_id);
    }
}

#[tokio::test]
async fn the_database_takes_no_second_break_glass_after_a_violation() {
    let (stack, author) = govern(Profile::Standard).await;
    let release = hand_in(&author, change("1.0", Size::Large, &[])).await;
    let used = break_glass(&author, &release).await.break_glass.unwrap();
    let boss = stack.caller(&person("boss"));
    let violation = review(&used, pb::BreakGlassVerdict::Violation);
    boss.approvals().review_break_glass(violation).await.answer();
    let mut db = stack.database.connect().await;
    let (tenant, id) = ("shop".parse().unwrap(), used.break_glass_id.parse().unwrap());
    let stored = release_svc::store::break_glass::find(&mut db, &tenant, id)
        .await
        .unwrap()
        .unwrap();
    for revision in [1, 2] {
        let id = BreakGlassId::new(stack.now(), stack.entropy.bytes());
        let next = BreakGlass { id, revision, review: None, ..stored.clone() };
        let inserted = release_svc::store::break_glass::insert(&mut db, &tenant, &next).await.unwrap();
        assert!(!inserted, "revision {revision}");
    }
}

#[tokio::test]
async fn a_rollout_that_began_by_a_violation_goes_no_further() {
    let (stack, author) = govern(Profile::Standard).await;
    let boss = stack.caller(&person("boss"));
    let first = hand_in(&author, change("1.0", Size::Small, &[])).await;
    approve(&boss, &first).await;
    author.rollouts().start_rollout(start(&first, &[])).await.answer();
    let second = hand_in(&author, change("1.1", Size::Large, &[])).await;
    let used = break_glass(&author, &second).await.break_glass.unwrap();
    let started = author.rollouts().start_rollout(start(&second, &[100, 1000])).await;
    let rollout = started.answer().rollout.unwrap();
    let violation = review(&used, pb::BreakGlassVerdict::Violation);
    boss.approvals().review_break_glass(violation).await.answer();
    let advanced = author.rollouts().advance_rollout(advance(&rollout)).await;
    advanced.refused(Code::FailedPrecondition, "ROLLOUT_BLOCKED");
}

#[tokio::test]
async fn a_rollback_onto_what_is_quarantined_goes_on_and_warns() {
    let (stack, author) = govern(Profile::Starter).await;
    let first = hand_in(&author, change("1.0", Size::Small, &[])).await;
    author.rollouts().start_rollout(start(&first, &[])).await.answer();
    let second = hand_in(&author, change("1.1", Size::Small, &[])).await;
    let started = author.rollouts().start_rollout(start(&second, &[100])).await;
    let rollout = started.answer().rollout.unwrap();
    let boss = stack.caller(&person("boss"));
    boss.releases().quarantine_release(quarantine(&first)).await.answer();
    let back = author.rollouts().roll_back_rollout(rollback(&rollout)).await.answer();
    assert_eq!(back.rollout.unwrap().state(), pb::RolloutState::RolledBack);
    assert!(back.warnings.iter().any(|warning| warning.contains("is quarantined")), "{:?}", back.warnings);
}

#[tokio::test]
async fn i19_a_quarantined_release_gains_no_exposure_and_can_always_lose_it() {
    let (stack, author) = govern(Profile::Standard).await;
    let boss = stack.caller(&person("boss"));
    let first = hand_in(&author, change("1.0", Size::Small, &[])).await;
    approve(&boss, &first).await;
    author.rollouts().start_rollout(start(&first, &[])).await.answer();
    let second = hand_in(&author, change("1.1", Size::Small, &[])).await;
    approve(&boss, &second).await;
    let rollout = author
        .rollouts()
        .start_rollout(start(&second, &[100]))
        .await
        .answer()
        .rollout
        .unwrap();
    let marked = boss
        .releases()
        .quarantine_release(quarantine(&second))
        .await
        .answer()
        .release
        .unwrap();
    assert_eq!(marked.quarantine.unwrap().principal, "tandem-local|boss");
    author
        .rollouts()
        .advance_rollout(advance(&rollout))
        .await
        .refused(Code::FailedPrecondition, "ROLLOUT_BLOCKED");
    assert_eq!(blockers(&author, &second).await, ["QUARANTINE"]);
    let (release_id, reason) = (second.release_id.clone(), "the leak was elsewhere".to_owned());
    let lift = || pb::LiftQuarantineRequest {
        release_id: release_id.clone(),
        reason: reason.clone(),
        ..Default::default()
    };
    let machine = stack.caller(&workload("pipeline"));
    machine
        .releases()
        .lift_quarantine(lift())
        .await
        .refused(Code::PermissionDenied, "CALLER_NOT_A_PERSON");
    boss.releases().lift_quarantine(lift()).await.answer();
    for _ in 0..2 {
        author.rollouts().advance_rollout(advance(&rollout)).await.answer();
    }
    let third = hand_in(&author, change("1.2", Size::Small, &[])).await;
    approve(&boss, &third).await;
    let rollout = author
        .rollouts()
        .start_rollout(start(&third, &[100]))
        .await
        .answer()
        .rollout
        .unwrap();
    boss.releases().quarantine_release(quarantine(&third)).await.answer();
    roll_back(&author, &rollout).await;
}
