//! Approval by risk: who may vote, how many and of which groups, for how long, and what each vote is for.

use chrono::TimeDelta;
use shared::issuer::Grant;
use shared::pb::release as pb;
use shared::pb::release::GovernanceProfile as Profile;
use shared::pb::release::ReleaseState;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::govern::{
    Size, approval, approve, blockers, change, explain, govern, hand_in, member, rejection, revise,
    withdrawal,
};
use crate::harness::shop::{get_release, request_id, roll_back, set_alias, start, submit};
use crate::harness::{Answer as _, Caller, Options, person, workload};

pub(crate) async fn pending(caller: &Caller) -> Vec<String> {
    let request = pb::ListPendingForMeRequest::default();
    let pending = caller.approvals().list_pending_for_me(request).await.answer();
    pending.releases.into_iter().map(|release| release.version).collect()
}

#[tokio::test]
async fn the_band_says_how_many_people_and_of_which_groups() {
    let (stack, author) = govern(Profile::Standard).await;
    let [dev, other, ops] = [("dev", "dev"), ("other", "dev"), ("ops", "ops")]
        .map(|(name, group)| member(&stack, name, &[group]));
    let small = hand_in(&author, change("1.0", Size::Small, &[])).await;
    assert_eq!((small.state(), small.quorum), (ReleaseState::PendingApproval, 1));
    let risk = small.risk.clone().unwrap();
    assert_eq!((risk.band(), risk.is_binding, risk.weights_version), (pb::RiskBand::Medium, true, 1));
    assert_eq!(approve(&dev, &small).await.state(), ReleaseState::Approved);

    let large = hand_in(&author, change("1.1", Size::Large, &[])).await;
    assert_eq!((large.quorum, large.risk.as_ref().unwrap().band()), (2, pb::RiskBand::High));
    approve(&dev, &large).await;
    assert_eq!(approve(&other, &large).await.state(), ReleaseState::PendingApproval);
    let sentences: Vec<_> = explain(&author, &large)
        .await
        .blockers
        .into_iter()
        .map(|b| b.description)
        .collect();
    assert!(sentences.iter().any(|text| text.contains("1 of 2 groups")), "{sentences:?}");
    let approved = approve(&ops, &large).await;
    assert_eq!(
        (approved.state(), approved.votes[2].groups.as_slice()),
        (ReleaseState::Approved, &["ops".to_owned()][..])
    );

    let huge = hand_in(&author, change("1.2", Size::Huge, &[])).await;
    assert_eq!((huge.quorum, huge.risk.as_ref().unwrap().band()), (3, pb::RiskBand::Critical));
    for caller in [&dev, &other, &ops] {
        approve(caller, &huge).await;
    }
    // The component names no owners, so nobody can stand for them.
    assert_eq!(get_release(&author, &huge).await.state(), ReleaseState::PendingApproval);
    assert_eq!(blockers(&author, &huge).await, ["STATE", "APPROVAL", "APPROVAL"]);
}

#[tokio::test]
async fn who_wrote_it_under_whatever_name_does_not_approve_it() {
    let (stack, author) = govern(Profile::Standard).await;
    let (editor, submitter) = (stack.caller(&person("editor")), stack.caller(&person("submitter")));
    let draft = change("1.0", Size::Small, &["tandem-local|committer"]);
    let release = author.releases().create_release(draft.clone()).await.answer().release.unwrap();
    let edit = pb::UpdateReleaseRequest {
        release_id: release.release_id.clone(),
        artifact_digest: draft.artifact_digest,
        change: draft.change,
        ..pb::UpdateReleaseRequest::default()
    };
    editor.releases().update_release(edit).await.answer();
    let release = submit(&submitter, &release).await;
    let committer = stack.caller(&person("committer"));
    for own in [&author, &editor, &submitter, &committer] {
        own.approvals()
            .approve_release(approval(&release))
            .await
            .refused(Code::PermissionDenied, "SOD_VIOLATION");
        own.approvals()
            .reject_release(rejection(&release))
            .await
            .refused(Code::PermissionDenied, "SOD_VIOLATION");
        assert_eq!(pending(own).await, [""; 0]);
    }
    let machine = stack.caller(&workload("approver"));
    let refused = machine.approvals().approve_release(approval(&release)).await;
    refused.refused(Code::PermissionDenied, "CALLER_NOT_A_PERSON");
    let boss = stack.caller(&person("boss"));
    assert_eq!(pending(&boss).await, ["1.0"]);
    assert_eq!(approve(&boss, &release).await.state(), ReleaseState::Approved);
    assert_eq!(pending(&boss).await, [""; 0]);
}

#[tokio::test]
async fn an_unmapped_committer_keeps_everybody_from_approving_and_is_named() {
    let (stack, author) = govern(Profile::Standard).await;
    let release = hand_in(&author, change("1.0", Size::Small, &["ada@example.com"])).await;
    let boss = stack.caller(&person("boss"));
    let refused = boss.approvals().approve_release(approval(&release)).await;
    let status = refused.refused(Code::FailedPrecondition, "COMMITTER_UNMAPPED");
    assert_eq!(status.get_details_error_info().unwrap().metadata["committers"], "ada@example.com");
    let said = explain(&author, &release).await.blockers;
    assert!(said.iter().any(|blocker| blocker.description.contains("ada@example.com")), "{said:?}");
    // To say no takes no such proof.
    let rejected = boss
        .approvals()
        .reject_release(rejection(&release))
        .await
        .answer()
        .release
        .unwrap();
    assert_eq!(rejected.state(), ReleaseState::Rejected);
}

#[tokio::test]
async fn an_approval_expires_by_the_clock_and_its_voter_may_look_again() {
    let (stack, author) = govern(Profile::Standard).await;
    let boss = stack.caller(&person("boss"));
    let release = hand_in(&author, change("1.0", Size::Small, &[])).await;
    let approved = approve(&boss, &release).await;
    let expiry = approved.approval.as_ref().unwrap().expire_time.unwrap().seconds;
    assert_eq!(expiry, (stack.now() + TimeDelta::hours(72)).timestamp());
    boss.approvals()
        .approve_release(approval(&release))
        .await
        .refused(Code::FailedPrecondition, "RELEASE_WRONG_STATE");
    stack.advance(TimeDelta::hours(72));
    let refused = author.rollouts().start_rollout(start(&release, &[])).await;
    let status = refused.refused(Code::FailedPrecondition, "ROLLOUT_BLOCKED");
    let kinds: Vec<_> = status
        .get_details_precondition_failure()
        .unwrap()
        .violations
        .into_iter()
        .map(|v| v.r#type)
        .collect();
    assert_eq!(kinds, ["STATE", "APPROVAL"]);
    let lapsed = get_release(&author, &release).await;
    assert_eq!((lapsed.state(), &lapsed.approval), (ReleaseState::PendingApproval, &None));
    let again = approve(&boss, &release).await;
    assert_eq!((again.state(), again.votes.len()), (ReleaseState::Approved, 1));
    let rollout = author
        .rollouts()
        .start_rollout(start(&release, &[]))
        .await
        .answer()
        .rollout
        .unwrap();
    assert_eq!(rollout.approval_id, again.approval.unwrap().approval_id);
}

#[tokio::test]
async fn what_is_exposed_goes_on_when_its_approval_expires_but_goes_nowhere_else_until_renewed() {
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
    stack.advance(TimeDelta::hours(73));
    crate::harness::shop::advance_rollout(&author, &rollout).await;
    let environment = Some(pb::Environment { environment: "prod-2".to_owned(), ..Default::default() });
    let request = pb::CreateEnvironmentRequest { environment, ..Default::default() };
    author.catalog().create_environment(request).await.answer();
    let elsewhere = || pb::StartRolloutRequest { environment: "prod-2".to_owned(), ..start(&second, &[]) };
    author
        .rollouts()
        .start_rollout(elsewhere())
        .await
        .refused(Code::FailedPrecondition, "ROLLOUT_BLOCKED");
    let renewed = approve(&boss, &second).await;
    assert_eq!((renewed.state(), renewed.approval.is_some()), (ReleaseState::Active, true));
    author.rollouts().start_rollout(elsewhere()).await.answer();
}

#[tokio::test]
async fn a_vote_is_for_one_revision_and_its_digest() {
    let (stack, author) = govern(Profile::Standard).await;
    let boss = stack.caller(&person("boss"));
    let first = hand_in(&author, change("1.0", Size::Large, &[])).await;
    approve(&member(&stack, "dev", &["dev"]), &first).await;
    let draft = revise(&author, &first).await;
    assert_eq!((draft.state(), draft.revision, draft.votes.len()), (ReleaseState::Draft, 2, 0));
    boss.approvals()
        .approve_release(approval(&first))
        .await
        .refused(Code::FailedPrecondition, "RELEASE_WRONG_STATE");
    let second = submit(&author, &draft).await;
    assert_eq!((second.state(), second.votes.len()), (ReleaseState::PendingApproval, 0));
    assert_ne!(second.snapshot_digest, first.snapshot_digest);
    for stale in [
        pb::ApproveReleaseRequest { snapshot_digest: first.snapshot_digest.clone(), ..approval(&first) },
        pb::ApproveReleaseRequest { etag: first.etag.clone(), ..approval(&second) },
    ] {
        boss.approvals()
            .approve_release(stale)
            .await
            .refused(Code::Aborted, "ETAG_MISMATCH");
    }
    let request =
        pb::ApproveReleaseRequest { snapshot_digest: second.snapshot_digest.clone(), ..approval(&first) };
    boss.approvals().approve_release(request).await.answer();
}

#[tokio::test]
async fn a_vote_can_be_taken_back_and_given_again() {
    let (stack, author) = govern(Profile::Standard).await;
    let boss = stack.caller(&person("boss"));
    let release = hand_in(&author, change("1.0", Size::Small, &[])).await;
    let nothing = boss.approvals().withdraw_vote(withdrawal(&release)).await;
    nothing.refused(Code::NotFound, "VOTE_NOT_FOUND");
    approve(&boss, &release).await;
    let withdrawn = boss
        .approvals()
        .withdraw_vote(withdrawal(&release))
        .await
        .answer()
        .release
        .unwrap();
    assert_eq!((withdrawn.state(), withdrawn.votes.len()), (ReleaseState::PendingApproval, 0));
    assert_eq!(approve(&boss, &release).await.state(), ReleaseState::Approved);
}

#[tokio::test]
async fn a_risen_band_reopens_the_approval_at_the_next_look() {
    let (stack, author) = govern(Profile::Standard).await;
    let [boss, dev, ops] = [("boss", "lead"), ("dev", "dev"), ("ops", "ops")]
        .map(|(name, group)| member(&stack, name, &[group]));
    let first = hand_in(&author, change("1.0", Size::Small, &[])).await;
    approve(&boss, &first).await;
    author.rollouts().start_rollout(start(&first, &[])).await.answer();
    let (bad, waiting) = (
        hand_in(&author, change("1.1", Size::Small, &[])).await,
        hand_in(&author, change("1.2", Size::Small, &[])).await,
    );
    approve(&boss, &bad).await;
    assert_eq!(approve(&boss, &waiting).await.state(), ReleaseState::Approved);
    let rollout = author
        .rollouts()
        .start_rollout(start(&bad, &[100]))
        .await
        .answer()
        .rollout
        .unwrap();
    roll_back(&author, &rollout).await;
    // One rollback this week makes the next release riskier.
    let reopened = get_release(&author, &waiting).await;
    assert_eq!((reopened.state(), reopened.quorum), (ReleaseState::PendingApproval, 2));
    assert_eq!(reopened.risk.as_ref().unwrap().band(), pb::RiskBand::High);
    // The vote for MEDIUM counts no more; whoever gave it looks again.
    approve(&dev, &waiting).await;
    assert_eq!(get_release(&author, &waiting).await.state(), ReleaseState::PendingApproval);
    assert_eq!(approve(&ops, &waiting).await.state(), ReleaseState::Approved);
}

#[tokio::test]
async fn evidence_that_is_asked_for_comes_before_votes() {
    let (stack, author) = govern(Profile::Sox).await;
    let release = hand_in(&author, change("1.0", Size::Small, &[])).await;
    assert_eq!(release.state(), ReleaseState::Assessing);
    let boss = stack.caller(&person("boss"));
    boss.approvals()
        .approve_release(approval(&release))
        .await
        .refused(Code::FailedPrecondition, "RELEASE_WRONG_STATE");
    assert_eq!(blockers(&author, &release).await, ["STATE", "EVIDENCE", "EVIDENCE", "APPROVAL"]);
    assert_eq!(revise(&author, &release).await.state(), ReleaseState::Draft);
}

#[tokio::test]
async fn the_same_human_being_counts_once_whoever_is_faster() {
    let (stack, author) = govern(Profile::Standard).await;
    let replica = stack.release_svc(&Options::default());
    let grant = Grant { groups: vec!["dev".to_owned()], ..person("ada") };
    let (here, there) = (stack.caller(&grant), stack.caller(&grant).at_release(&replica));
    for n in 0..5 {
        let release = hand_in(&author, change(&format!("1.{n}"), Size::Large, &[])).await;
        let (mut one, mut two) = (here.approvals(), there.approvals());
        let (a, b) =
            tokio::join!(one.approve_release(approval(&release)), two.approve_release(approval(&release)));
        assert_eq!(u8::from(a.is_ok()) + u8::from(b.is_ok()), 1);
        a.and(b).refused(Code::AlreadyExists, "VOTE_EXISTS");
        assert_eq!(get_release(&author, &release).await.votes.len(), 1);
    }
}

#[tokio::test]
async fn of_a_vote_and_a_revision_at_once_no_vote_slips_onto_what_nobody_read() {
    let (stack, author) = govern(Profile::Standard).await;
    let replica = stack.release_svc(&Options::default());
    let boss = stack.caller(&person("boss")).at_release(&replica);
    for n in 0..5 {
        let release = hand_in(&author, change(&format!("1.{n}"), Size::Small, &[])).await;
        let (mut one, mut two) = (author.releases(), boss.approvals());
        let request = crate::harness::govern::revision(&release);
        let vote = pb::ApproveReleaseRequest {
            snapshot_digest: release.snapshot_digest.clone(),
            ..approval(&release)
        };
        let (a, b) = tokio::join!(one.revise_release(request), two.approve_release(vote));
        assert_eq!(u8::from(a.is_ok()) + u8::from(b.is_ok()), 1, "{a:?} {b:?}");
        let read = get_release(&author, &release).await;
        assert_eq!(
            (read.state() == ReleaseState::Approved, read.votes.len()),
            (b.is_ok(), usize::from(b.is_ok()))
        );
    }
}

#[tokio::test]
async fn i12_a_vote_that_is_sent_again_counts_once_and_another_body_is_refused() {
    let (stack, author) = govern(Profile::Standard).await;
    let boss = stack.caller(&person("boss"));
    let release = hand_in(&author, change("1.0", Size::Large, &[])).await;
    let request = pb::ApproveReleaseRequest { request_id: request_id(1), ..approval(&release) };
    let first = boss.approvals().approve_release(request.clone()).await.answer();
    assert_eq!(boss.approvals().approve_release(request.clone()).await.answer(), first);
    let other = pb::ApproveReleaseRequest { reason: "again".to_owned(), ..request };
    boss.approvals()
        .approve_release(other)
        .await
        .refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
    assert_eq!(get_release(&author, &release).await.votes.len(), 1);
}

#[tokio::test]
async fn what_waits_for_a_person_is_what_their_vote_brings_nearer() {
    let (stack, author) = govern(Profile::Standard).await;
    let ada = member(&stack, "ada", &["dev"]);
    let boss = member(&stack, "boss", &["ops"]);
    let both = ["Ada@Example.com", "github|ada"];
    let first = hand_in(&author, change("1.0", Size::Small, &both)).await;
    // Nobody is known to be another person than these; an issuer that may not call is nobody's.
    let refused = boss.approvals().approve_release(approval(&first)).await;
    let status = refused.refused(Code::FailedPrecondition, "COMMITTER_UNMAPPED");
    let named = &status.get_details_error_info().unwrap().metadata["committers"];
    assert_eq!(named, "Ada@Example.com, github|ada");
    assert_eq!((pending(&ada).await, pending(&boss).await), (vec![], vec![]));
    for name in ["ada@example.com", "github|ada"] {
        set_alias(&author, name, "tandem-local|ada").await;
    }
    assert_eq!((pending(&ada).await, pending(&boss).await), (vec![], vec!["1.0".to_owned()]));
    let refused = ada.approvals().approve_release(approval(&first)).await;
    refused.refused(Code::PermissionDenied, "SOD_VIOLATION");
    approve(&boss, &first).await;
    // Two people of two groups: a third one of the first group changes nothing.
    let second = hand_in(&author, change("1.1", Size::Large, &[])).await;
    for name in ["cid", "dan"] {
        let dev = member(&stack, name, &["dev"]);
        assert_eq!(pending(&dev).await, ["1.1"]);
        approve(&dev, &second).await;
        assert_eq!(pending(&dev).await, [""; 0]);
    }
    assert_eq!((pending(&ada).await, pending(&boss).await), (vec![], vec!["1.1".to_owned()]));
}
