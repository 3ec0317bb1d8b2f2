//! Approval policies: profiles, floors, versions, and changes that take two people.

use shared::pb::release as pb;
use shared::pb::release::GovernanceProfile as Profile;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::govern::{Size, change, create, govern, hand_in, member, policy};
use crate::harness::shop::get_release;
use crate::harness::{Answer as _, Caller, Stack, person, workload};

/// Makes rules laxer.
type Lower = fn(&mut pb::ApprovalRules);

fn update(policy: pb::ApprovalPolicy) -> pb::UpdateApprovalPolicyRequest {
    pb::UpdateApprovalPolicyRequest { approval_policy: Some(policy), ..Default::default() }
}

async fn update_policy(caller: &Caller, policy: pb::ApprovalPolicy) -> pb::ApprovalPolicy {
    caller
        .catalog()
        .update_approval_policy(update(policy))
        .await
        .answer()
        .approval_policy
        .unwrap()
}

fn confirmation(policy: &pb::ApprovalPolicy) -> pb::ConfirmApprovalPolicyRequest {
    let version = policy.proposed.as_ref().map_or(1, |proposed| proposed.version);
    let approval_policy = policy.approval_policy.clone();
    pb::ConfirmApprovalPolicyRequest { approval_policy, version, ..Default::default() }
}

async fn get(caller: &Caller, version: i64) -> pb::ApprovalPolicy {
    let request = pb::GetApprovalPolicyRequest { approval_policy: "by-risk".to_owned(), version };
    caller
        .catalog()
        .get_approval_policy(request)
        .await
        .answer()
        .approval_policy
        .unwrap()
}

#[tokio::test]
async fn a_policy_says_what_its_profile_says_and_never_less() {
    let (_stack, author) = govern(Profile::Standard).await;
    let standard = get(&author, 0).await;
    let rules = standard.rules.clone().unwrap();
    assert_eq!(rules.bands.iter().map(|band| band.quorum).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(rules.risk_binding && rules.requires_rollback_plan && !rules.two_people);
    let below: [(&str, Lower); 6] = [
        ("risk_binding", |rules| rules.risk_binding = false),
        ("high_from", |rules| rules.high_from = 31),
        ("bands[2].quorum", |rules| (rules.bands[2].quorum, rules.bands[2].distinct_groups) = (1, 1)),
        ("bands[3].validity", |rules| rules.bands[3].validity = None),
        ("break_glass_review_due", |rules| rules.break_glass_review_due.as_mut().unwrap().seconds = 172_801),
        ("bands", |rules| rules.bands.truncate(3)),
    ];
    for (field, lower) in below {
        let mut asked = standard.clone();
        lower(asked.rules.as_mut().unwrap());
        let refused = author.catalog().update_approval_policy(update(asked)).await;
        let status = refused.refused(Code::InvalidArgument, "FIELD_INVALID");
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, format!("approval_policy.rules.{field}"));
    }
    let mut stricter = standard.clone();
    stricter.rules.as_mut().unwrap().bands[1].quorum = 2;
    assert_eq!(update_policy(&author, stricter.clone()).await.rules, stricter.rules);
    let mut pci = policy("cards", Profile::PciDss);
    pci.rules = standard.rules;
    let request = pb::CreateApprovalPolicyRequest { approval_policy: Some(pci), ..Default::default() };
    author
        .catalog()
        .create_approval_policy(request)
        .await
        .refused(Code::InvalidArgument, "FIELD_INVALID");
}

#[tokio::test]
async fn releases_keep_the_version_that_they_were_submitted_under() {
    let (_stack, author) = govern(Profile::Standard).await;
    let before = hand_in(&author, change("1.0", Size::Small, &[])).await;
    assert_eq!(
        (before.approval_policy.as_str(), before.approval_policy_version, before.quorum),
        ("by-risk", 1, 1)
    );
    let first = get(&author, 0).await;
    let second = update_policy(&author, pb::ApprovalPolicy { quorum: 3, ..first.clone() }).await;
    assert_eq!((second.version, second.etag == first.etag), (2, false));
    assert_eq!(get_release(&author, &before).await.quorum, 1);
    let after = hand_in(&author, change("1.1", Size::Small, &[])).await;
    assert_eq!((after.approval_policy_version, after.quorum), (2, 3));
    assert_eq!((get(&author, 1).await.quorum, get(&author, 2).await.quorum), (0, 3));
    let request = pb::GetApprovalPolicyRequest { approval_policy: "by-risk".to_owned(), version: 9 };
    let refused = author.catalog().get_approval_policy(request).await;
    refused.refused(Code::NotFound, "APPROVAL_POLICY_NOT_FOUND");
}

#[tokio::test]
async fn where_the_profile_says_so_a_change_takes_two_people() {
    let (stack, author) = govern(Profile::Sox).await;
    let present = get(&author, 0).await;
    let softer = policy("by-risk", Profile::Starter);
    let machine = stack.caller(&workload("pipeline"));
    machine
        .catalog()
        .update_approval_policy(update(softer.clone()))
        .await
        .refused(Code::PermissionDenied, "CALLER_NOT_A_PERSON");
    let proposed = update_policy(&author, softer).await;
    assert_eq!((proposed.profile(), proposed.version), (Profile::Sox, 1));
    assert_eq!(proposed.proposed.as_ref().unwrap().profile(), Profile::Starter);
    assert_eq!(get(&author, 0).await.rules, present.rules);
    let confirm = async |caller: &Caller, policy| {
        let answer = caller.catalog().confirm_approval_policy(confirmation(policy)).await;
        answer.map(|answer| answer.into_inner().approval_policy.unwrap())
    };
    let own = author.catalog().confirm_approval_policy(confirmation(&proposed)).await;
    own.refused(Code::PermissionDenied, "SOD_VIOLATION");
    // A second proposal takes the place of the first, which nobody can confirm any more.
    let second = update_policy(&author, pb::ApprovalPolicy { quorum: 4, ..present }).await;
    let boss = stack.caller(&person("boss"));
    let stale = boss.catalog().confirm_approval_policy(confirmation(&proposed)).await;
    stale.refused(Code::FailedPrecondition, "PROPOSAL_NOT_PENDING");
    let confirmed = confirm(&boss, &second).await.unwrap();
    assert_eq!((confirmed.quorum, confirmed.version, confirmed.proposed), (4, 3, None));
    let again = boss.catalog().confirm_approval_policy(confirmation(&second)).await;
    again.refused(Code::FailedPrecondition, "PROPOSAL_NOT_PENDING");
}

async fn get_of(caller: &Caller, name: &str) -> pb::ApprovalPolicy {
    let request = pb::GetApprovalPolicyRequest { approval_policy: name.to_owned(), version: 0 };
    caller
        .catalog()
        .get_approval_policy(request)
        .await
        .answer()
        .approval_policy
        .unwrap()
}

#[tokio::test]
async fn one_person_does_not_take_a_component_out_of_what_takes_two() {
    let (_stack, author) = govern(Profile::Sox).await;
    create(&author, policy("free", Profile::Starter)).await;
    create(&author, policy("cards", Profile::PciDss)).await;
    let move_to = async |name: &str| {
        let (component, approval_policy) = ("storefront".to_owned(), name.to_owned());
        let component = Some(pb::Component { component, approval_policy, ..Default::default() });
        let request = pb::UpdateComponentRequest { component, ..Default::default() };
        author.catalog().update_component(request).await
    };
    // One that takes two people to change as well, but asks nobody.
    let mut idle = policy("idle", Profile::Starter);
    let rules = get_of(&author, "free").await.rules.unwrap();
    idle.rules = Some(pb::ApprovalRules { two_people: true, ..rules });
    create(&author, idle).await;
    for laxer in ["free", "idle"] {
        move_to(laxer).await.refused(Code::FailedPrecondition, "APPROVAL_POLICY_LAXER");
    }
    let component = "storefront".to_owned();
    let lower =
        pb::Component { component, tier: pb::ComponentTier::ComponentTier4.into(), ..Default::default() };
    let request = pb::UpdateComponentRequest { component: Some(lower), ..Default::default() };
    let refused = author.catalog().update_component(request).await;
    refused.refused(Code::FailedPrecondition, "APPROVAL_POLICY_LAXER");
    move_to("cards").await.answer();
    move_to("by-risk")
        .await
        .refused(Code::FailedPrecondition, "APPROVAL_POLICY_LAXER");
}

#[tokio::test]
async fn of_two_who_confirm_at_once_one_does() {
    let (stack, author) = govern(Profile::Sox).await;
    let replica = stack.release_svc(&crate::harness::Options::default());
    let (ada, bob) = (stack.caller(&person("ada")), stack.caller(&person("bob")).at_release(&replica));
    for quorum in 1..4 {
        let present = get(&author, 0).await;
        let proposed = update_policy(&author, pb::ApprovalPolicy { quorum, ..present }).await;
        let (mut one, mut two) = (ada.catalog(), bob.catalog());
        let (a, b) = tokio::join!(
            one.confirm_approval_policy(confirmation(&proposed)),
            two.confirm_approval_policy(confirmation(&proposed))
        );
        assert_eq!(u8::from(a.is_ok()) + u8::from(b.is_ok()), 1);
        assert_eq!(get(&author, 0).await.quorum, quorum);
    }
}

#[tokio::test]
async fn only_its_editors_change_a_policy() {
    let stack = Stack::releases();
    let editor = member(&stack, "editor", &["risk"]);
    let created = create(&editor, policy("by-risk", Profile::Standard)).await;
    let mut closed = created.clone();
    closed.rules.as_mut().unwrap().editor_groups = vec!["risk".to_owned()];
    let closed = update_policy(&editor, closed).await;
    let stranger = stack.caller(&person("stranger"));
    let refused = stranger.catalog().update_approval_policy(update(closed.clone())).await;
    refused.refused(Code::PermissionDenied, "CALLER_NOT_OWNER");
    update_policy(&editor, closed).await;
}
