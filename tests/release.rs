//! Releases on their way through governance.

use shared::pb::release as pb;
use shared::pb::release::ReleaseState;
use shared::pb::release::get_release_request::Name;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::shop::{
    create_catalog, create_component, create_policy, create_release, draft, get_release, ship,
    start as rollout_of, submission, submit,
};
use crate::harness::{Answer as _, Caller, Stack, person, workload};

/// A `storefront` whose releases need so many approvals.
async fn start(quorum: i32) -> (Stack, Caller) {
    let stack = Stack::releases();
    let author = stack.caller(&person("author"));
    if quorum == 0 {
        create_catalog(&author).await;
    } else {
        let approval_policy = create_policy(&author, "strict", quorum).await.approval_policy;
        let component = "storefront".to_owned();
        create_component(&author, pb::Component { component, approval_policy, ..Default::default() }).await;
    }
    (stack, author)
}

fn approval(release: &pb::Release) -> pb::ApproveReleaseRequest {
    pb::ApproveReleaseRequest { release_id: release.release_id.clone(), ..Default::default() }
}

fn rejection(release: &pb::Release) -> pb::RejectReleaseRequest {
    let (release_id, reason) = (release.release_id.clone(), "the tests fail".to_owned());
    pb::RejectReleaseRequest { release_id, reason, ..Default::default() }
}

fn cancellation(release: &pb::Release) -> pb::CancelReleaseRequest {
    let (release_id, reason) = (release.release_id.clone(), "not needed".to_owned());
    pb::CancelReleaseRequest { release_id, reason, ..Default::default() }
}

const WRONG_STATE: (Code, &str) = (Code::FailedPrecondition, "RELEASE_WRONG_STATE");

#[tokio::test]
async fn under_the_starter_policy_a_submission_is_approved_at_once() {
    let (_stack, author) = start(0).await;
    let draft = create_release(&author, "1.0").await;
    assert_eq!(
        (draft.state(), draft.author.as_str(), &draft.submit_time),
        (ReleaseState::Draft, "tandem-local|author", &None)
    );
    let approved = submit(&author, &draft).await;
    assert_eq!((approved.state(), approved.quorum), (ReleaseState::Approved, 0));
    assert_eq!(approved.votes, []);
    let by_ref = pb::ReleaseRef { component: "storefront".to_owned(), version: "1.0.0".to_owned() };
    let request = pb::GetReleaseRequest { name: Some(Name::Ref(by_ref)) };
    assert_eq!(author.releases().get_release(request).await.answer().release, Some(approved));
}

#[tokio::test]
async fn nobody_votes_on_their_own_release_and_no_machine_votes() {
    let (stack, author) = start(1).await;
    let release = create_release(&author, "1.0").await;
    let submitter = stack.caller(&person("submitter"));
    submit(&submitter, &release).await;
    for own in [&author, &submitter] {
        own.approvals()
            .approve_release(approval(&release))
            .await
            .refused(Code::PermissionDenied, "SOD_VIOLATION");
        own.approvals()
            .reject_release(rejection(&release))
            .await
            .refused(Code::PermissionDenied, "SOD_VIOLATION");
    }
    let machine = stack.caller(&workload("approver"));
    let refused = machine.approvals().approve_release(approval(&release)).await;
    refused.refused(Code::PermissionDenied, "CALLER_NOT_A_PERSON");
    let boss = stack.caller(&person("boss"));
    let approved = boss
        .approvals()
        .approve_release(approval(&release))
        .await
        .answer()
        .release
        .unwrap();
    assert_eq!(approved.state(), ReleaseState::Approved);
    assert_eq!(approved.votes[0].voter, "tandem-local|boss");
}

#[tokio::test]
async fn a_quorum_counts_people_not_votes() {
    let (stack, author) = start(2).await;
    let release = submit(&author, &create_release(&author, "1.0").await).await;
    let boss = stack.caller(&person("boss"));
    let after_one = boss
        .approvals()
        .approve_release(approval(&release))
        .await
        .answer()
        .release
        .unwrap();
    assert_eq!((after_one.state(), after_one.votes.len()), (ReleaseState::PendingApproval, 1));
    boss.approvals()
        .approve_release(approval(&release))
        .await
        .refused(Code::AlreadyExists, "VOTE_EXISTS");
    let other = stack.caller(&person("other"));
    let after_two = other
        .approvals()
        .approve_release(approval(&release))
        .await
        .answer()
        .release
        .unwrap();
    assert_eq!((after_two.state(), after_two.votes.len()), (ReleaseState::Approved, 2));
    let late = stack.caller(&person("late"));
    late.approvals()
        .approve_release(approval(&release))
        .await
        .refused(WRONG_STATE.0, WRONG_STATE.1);
}

#[tokio::test]
async fn two_who_approve_at_once_fill_a_quorum_of_two() {
    let (stack, author) = start(2).await;
    let replica = stack.release_svc(&crate::harness::Options::default());
    let (ada, bob) = (stack.caller(&person("ada")), stack.caller(&person("bob")).at_release(&replica));
    for n in 0..5 {
        let release = submit(&author, &create_release(&author, &format!("1.{n}")).await).await;
        let (mut one, mut two) = (ada.approvals(), bob.approvals());
        let (a, b) =
            tokio::join!(one.approve_release(approval(&release)), two.approve_release(approval(&release)));
        let states = [a, b].map(|answer| answer.answer().release.unwrap().state());
        assert!(states.contains(&ReleaseState::Approved) && states.contains(&ReleaseState::PendingApproval));
        let read = get_release(&author, &release).await;
        assert_eq!((read.state(), read.votes.len()), (ReleaseState::Approved, 2));
    }
}

#[tokio::test]
async fn one_vote_against_ends_a_release() {
    let (stack, author) = start(2).await;
    let release = submit(&author, &create_release(&author, "1.0").await).await;
    let boss = stack.caller(&person("boss"));
    let mut silent = rejection(&release);
    silent.reason.clear();
    boss.approvals()
        .reject_release(silent)
        .await
        .refused(Code::InvalidArgument, "FIELD_INVALID");
    let rejected = boss
        .approvals()
        .reject_release(rejection(&release))
        .await
        .answer()
        .release
        .unwrap();
    assert_eq!(rejected.state(), ReleaseState::Rejected);
    assert_eq!((rejected.votes[0].approve, rejected.votes[0].reason.as_str()), (false, "the tests fail"));
    author
        .releases()
        .submit_release(submission(&release))
        .await
        .refused(WRONG_STATE.0, WRONG_STATE.1);
    author
        .releases()
        .cancel_release(cancellation(&release))
        .await
        .refused(WRONG_STATE.0, WRONG_STATE.1);
    // A version that was voted down stands in nobody's way.
    create_release(&author, "1.0.1").await;
}

#[tokio::test]
async fn of_an_approval_and_a_rejection_at_once_the_rejection_stands_or_comes_too_late() {
    let (stack, author) = start(1).await;
    let (ada, bob) = (stack.caller(&person("ada")), stack.caller(&person("bob")));
    for n in 0..5 {
        let release = submit(&author, &create_release(&author, &format!("1.{n}")).await).await;
        let (mut one, mut two) = (ada.approvals(), bob.approvals());
        let (a, b) =
            tokio::join!(one.approve_release(approval(&release)), two.reject_release(rejection(&release)));
        assert_eq!(u8::from(a.is_ok()) + u8::from(b.is_ok()), 1);
        let state = get_release(&author, &release).await.state();
        assert_eq!(state, if a.is_ok() { ReleaseState::Approved } else { ReleaseState::Rejected });
    }
}

#[tokio::test]
async fn a_release_is_given_up_until_somebody_was_exposed_to_it() {
    let (_stack, author) = start(0).await;
    for (version, submitted) in [("1.0", false), ("1.1", true)] {
        let release = create_release(&author, version).await;
        if submitted {
            submit(&author, &release).await;
        }
        let cancelled = author
            .releases()
            .cancel_release(cancellation(&release))
            .await
            .answer()
            .release
            .unwrap();
        assert_eq!(cancelled.state(), ReleaseState::Cancelled);
        let status = author
            .releases()
            .submit_release(submission(&release))
            .await
            .refused(WRONG_STATE.0, WRONG_STATE.1);
        let violations = status.get_details_precondition_failure().unwrap().violations;
        assert_eq!((violations[0].r#type.as_str(), &violations[0].subject), ("STATE", &release.release_id));
    }
    let shipped = ship(&author, "1.2", &[]).await;
    let release = pb::Release { release_id: shipped.release_id, ..Default::default() };
    author
        .releases()
        .cancel_release(cancellation(&release))
        .await
        .refused(WRONG_STATE.0, WRONG_STATE.1);
}

#[tokio::test]
async fn versions_rise_within_their_line_and_a_new_line_above_all() {
    let (_stack, author) = start(0).await;
    for version in ["1.0", "1.1", "1.1.5", "2.0"] {
        submit(&author, &create_release(&author, version).await).await;
    }
    create_release(&author, "1.1.6").await; // a fix of an old line
    let taken = (Code::AlreadyExists, "RELEASE_EXISTS");
    let too_low = (Code::FailedPrecondition, "RELEASE_VERSION_NOT_GREATER");
    for (version, (code, reason)) in [
        ("1.1.0", taken),
        ("2", (Code::InvalidArgument, "FIELD_INVALID")),
        ("2.0.0", taken),
        ("1.1.4", too_low),
        ("1.2", too_low),
        ("2.0.0-rc.1", too_low),
        ("2.0+build", (Code::InvalidArgument, "FIELD_INVALID")),
    ] {
        author.releases().create_release(draft(version)).await.refused(code, reason);
    }
    create_release(&author, "2.0.1-rc.1").await;
}

#[tokio::test]
async fn a_draft_holds_no_submission_up() {
    let (_stack, author) = start(0).await;
    let drafts = [create_release(&author, "1.0").await, create_release(&author, "1.0.1").await];
    submit(&author, &drafts[0]).await;
    let overtaken = create_release(&author, "1.0.2").await;
    submit(&author, &create_release(&author, "1.0.3").await).await;
    for late in [&drafts[1], &overtaken] {
        author
            .releases()
            .submit_release(submission(late))
            .await
            .refused(Code::FailedPrecondition, "RELEASE_VERSION_NOT_GREATER");
    }
}

#[tokio::test]
async fn of_two_drafts_of_one_version_at_once_one_is_made() {
    let (_stack, author) = start(0).await;
    let (mut one, mut two) = (author.releases(), author.releases());
    let (a, b) = tokio::join!(one.create_release(draft("1.0")), two.create_release(draft("1.0.0")));
    let lost = a.err().xor(b.err()).unwrap();
    crate::harness::assert_refused(&lost, Code::AlreadyExists, "RELEASE_EXISTS");
}

#[tokio::test]
async fn a_transition_asks_for_the_etag_that_was_read() {
    let (stack, author) = start(1).await;
    let draft = create_release(&author, "1.0").await;
    let stale = pb::SubmitReleaseRequest { etag: "v99".to_owned(), ..submission(&draft) };
    author
        .releases()
        .submit_release(stale)
        .await
        .refused(Code::Aborted, "ETAG_MISMATCH");
    let seen = pb::SubmitReleaseRequest { etag: draft.etag.clone(), ..submission(&draft) };
    let submitted = author.releases().submit_release(seen).await.answer().release.unwrap();
    let boss = stack.caller(&person("boss"));
    let stale = pb::ApproveReleaseRequest { etag: draft.etag, ..approval(&submitted) };
    boss.approvals()
        .approve_release(stale)
        .await
        .refused(Code::Aborted, "ETAG_MISMATCH");
    let seen = pb::ApproveReleaseRequest { etag: submitted.etag.clone(), ..approval(&submitted) };
    boss.approvals().approve_release(seen).await.answer();
}

#[tokio::test]
async fn what_is_not_approved_is_not_rolled_out() {
    let (_stack, author) = start(1).await;
    let environment = Some(pb::Environment { environment: "local".to_owned(), ..Default::default() });
    let request = pb::CreateEnvironmentRequest { environment, request_id: String::new() };
    author.catalog().create_environment(request).await.answer();
    let release = submit(&author, &create_release(&author, "1.0").await).await;
    let status = author.rollouts().start_rollout(rollout_of(&release, &[])).await;
    let status = status.refused(Code::FailedPrecondition, "ROLLOUT_BLOCKED");
    let violations = status.get_details_precondition_failure().unwrap().violations;
    assert_eq!((violations.len(), violations[0].r#type.as_str()), (2, "STATE"));
}

#[tokio::test]
async fn what_is_approved_is_superseded_when_everybody_has_a_greater_version_of_its_line() {
    let (_stack, author) = start(0).await;
    let old = submit(&author, &create_release(&author, "1.0").await).await;
    let (_, fix) =
        (submit(&author, &create_release(&author, "2.0.1").await).await, hotfix(&author, "1.0.1").await);
    ship(&author, "2.0.2", &[]).await;
    let states = [get_release(&author, &old).await.state(), get_release(&author, &fix).await.state()];
    assert_eq!(states, [ReleaseState::Approved, ReleaseState::Approved]);
    ship(&author, "2.0.3", &[]).await;
    let by_ref = pb::ReleaseRef { component: "storefront".to_owned(), version: "2.0.1".to_owned() };
    let request = pb::GetReleaseRequest { name: Some(Name::Ref(by_ref)) };
    let passed = author.releases().get_release(request).await.answer().release.unwrap();
    assert_eq!(passed.state(), ReleaseState::Superseded);
}

/// A fix of a line that newer ones have passed.
async fn hotfix(caller: &Caller, version: &str) -> pb::Release {
    let change = pb::Change { hotfix_line: true, ..pb::Change::default() };
    let draft = pb::CreateReleaseRequest { change: Some(change), ..draft(version) };
    let release = caller.releases().create_release(draft).await.answer().release.unwrap();
    submit(caller, &release).await
}

#[tokio::test]
async fn a_hotfix_opens_a_line_below_the_greatest_but_never_falls_behind_its_own() {
    let (_stack, author) = start(0).await;
    for version in ["1.0", "2.0"] {
        submit(&author, &create_release(&author, version).await).await;
    }
    author
        .releases()
        .create_release(draft("1.1"))
        .await
        .refused(Code::FailedPrecondition, "RELEASE_VERSION_NOT_GREATER");
    assert_eq!(hotfix(&author, "1.1").await.state(), ReleaseState::Approved);
    let change = pb::Change { hotfix_line: true, ..pb::Change::default() };
    let stale = pb::CreateReleaseRequest { change: Some(change), ..draft("1.1.0-rc.1") };
    let refused = author.releases().create_release(stale).await;
    refused.refused(Code::FailedPrecondition, "RELEASE_VERSION_NOT_GREATER");
}

#[tokio::test]
async fn a_draft_is_edited_until_it_is_submitted() {
    let (stack, author) = start(1).await;
    let release = create_release(&author, "1.0").await;
    let edit = |notes: &str, etag: &str| pb::UpdateReleaseRequest {
        release_id: release.release_id.clone(),
        notes: notes.to_owned(),
        etag: etag.to_owned(),
        ..pb::UpdateReleaseRequest::default()
    };
    let editor = stack.caller(&person("editor"));
    let edited = editor
        .releases()
        .update_release(edit("faster", &release.etag))
        .await
        .answer()
        .release
        .unwrap();
    assert_eq!(
        (edited.notes.as_str(), edited.editors.as_slice()),
        ("faster", &["tandem-local|editor".to_owned()][..])
    );
    editor
        .releases()
        .update_release(edit("slower", &release.etag))
        .await
        .refused(Code::Aborted, "ETAG_MISMATCH");
    let submitted = submit(&author, &release).await;
    assert!(submitted.snapshot_digest.starts_with("sha256:"));
    editor
        .releases()
        .update_release(edit("slower", ""))
        .await
        .refused(WRONG_STATE.0, WRONG_STATE.1);
}

#[tokio::test]
async fn what_was_exposed_is_abandoned_once_nobody_has_it_and_never_comes_back() {
    let (_stack, author) = start(0).await;
    let environment = Some(pb::Environment { environment: "staging".to_owned(), ..Default::default() });
    let request = pb::CreateEnvironmentRequest { environment, ..Default::default() };
    author.catalog().create_environment(request).await.answer();
    // Staging stays behind, so that what is replaced elsewhere could still come there.
    let first = submit(&author, &create_release(&author, "0.9").await).await;
    let request = pb::StartRolloutRequest { environment: "staging".to_owned(), ..rollout_of(&first, &[]) };
    author.rollouts().start_rollout(request).await.answer();
    let rollout = ship(&author, "1.0", &[]).await;
    let abandonment = pb::AbandonReleaseRequest {
        release_id: rollout.release_id.clone(),
        reason: "the line is closed".to_owned(),
        ..Default::default()
    };
    let served = author.releases().abandon_release(abandonment.clone()).await;
    served.refused(Code::FailedPrecondition, "RELEASE_EXPOSED");
    ship(&author, "1.1", &[]).await;
    let abandoned = author.releases().abandon_release(abandonment).await.answer().release.unwrap();
    assert_eq!((abandoned.state(), abandoned.approval.as_ref()), (ReleaseState::Abandoned, None));
    let again = pb::StartRolloutRequest { environment: "staging".to_owned(), ..rollout_of(&abandoned, &[]) };
    author
        .rollouts()
        .start_rollout(again)
        .await
        .refused(Code::FailedPrecondition, "ROLLOUT_BLOCKED");
}
