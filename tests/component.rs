//! The catalogue: components with owners, environments, approval policies.

use shared::issuer::Grant;
use shared::pb::release as pb;
use tonic::Code;

use crate::harness::shop::{create_component, create_policy, create_release, draft, submission};
use crate::harness::{Answer as _, Caller, Stack, person, workload};

fn start() -> (Stack, Caller) {
    let stack = Stack::releases();
    let caller = stack.caller(&workload("platform"));
    (stack, caller)
}

fn component(name: &str, owner_groups: &[&str]) -> pb::Component {
    let owner_groups = owner_groups.iter().map(ToString::to_string).collect();
    pb::Component { component: name.to_owned(), owner_groups, ..Default::default() }
}

fn creation(component: pb::Component) -> pb::CreateComponentRequest {
    pb::CreateComponentRequest { component: Some(component), request_id: String::new() }
}

fn update(component: pb::Component) -> pb::UpdateComponentRequest {
    pb::UpdateComponentRequest { component: Some(component), request_id: String::new() }
}

#[tokio::test]
async fn a_component_follows_the_starter_policy_unless_it_says_otherwise() {
    let (_stack, caller) = start();
    let created = create_component(&caller, component("storefront", &[])).await;
    assert_eq!(created.approval_policy, "starter");
    let request = pb::GetApprovalPolicyRequest { approval_policy: "starter".to_owned(), version: 0 };
    let starter = caller
        .catalog()
        .get_approval_policy(request)
        .await
        .answer()
        .approval_policy
        .unwrap();
    assert_eq!((starter.profile(), starter.quorum), (pb::GovernanceProfile::Starter, 0));
    let request = pb::GetComponentRequest { component: "storefront".to_owned() };
    assert_eq!(caller.catalog().get_component(request).await.answer().component, Some(created));
    let strict = pb::Component { approval_policy: "strict".to_owned(), ..component("ledger", &[]) };
    let refused = caller.catalog().create_component(creation(strict)).await;
    refused.refused(Code::NotFound, "APPROVAL_POLICY_NOT_FOUND");
}

#[tokio::test]
async fn names_are_taken_once() {
    let (_stack, caller) = start();
    create_component(&caller, component("storefront", &[])).await;
    let again = caller.catalog().create_component(creation(component("storefront", &[]))).await;
    again.refused(Code::AlreadyExists, "COMPONENT_EXISTS");
    let environment = Some(pb::Environment { environment: "prod".to_owned(), ..Default::default() });
    let request = pb::CreateEnvironmentRequest { environment, request_id: String::new() };
    caller.catalog().create_environment(request.clone()).await.answer();
    caller
        .catalog()
        .create_environment(request)
        .await
        .refused(Code::AlreadyExists, "ENVIRONMENT_EXISTS");
    let policy = create_policy(&caller, "strict", 2).await;
    let approval_policy = Some(policy);
    let request = pb::CreateApprovalPolicyRequest { approval_policy, request_id: String::new() };
    let again = caller.catalog().create_approval_policy(request).await;
    again.refused(Code::AlreadyExists, "APPROVAL_POLICY_EXISTS");
}

#[tokio::test]
async fn an_update_asks_for_the_etag_that_was_read() {
    let (_stack, caller) = start();
    let created = create_component(&caller, component("storefront", &[])).await;
    let renamed = pb::Component { display_name: "Storefront".to_owned(), ..created.clone() };
    let updated = caller
        .catalog()
        .update_component(update(renamed.clone()))
        .await
        .answer()
        .component
        .unwrap();
    assert_ne!(updated.etag, created.etag);
    caller
        .catalog()
        .update_component(update(renamed))
        .await
        .refused(Code::Aborted, "ETAG_MISMATCH");
    let policy = create_policy(&caller, "strict", 2).await;
    let request = |policy: pb::ApprovalPolicy| pb::UpdateApprovalPolicyRequest {
        approval_policy: Some(policy),
        request_id: String::new(),
    };
    let stricter = pb::ApprovalPolicy { quorum: 3, ..policy };
    caller
        .catalog()
        .update_approval_policy(request(stricter.clone()))
        .await
        .answer();
    let again = caller.catalog().update_approval_policy(request(stricter)).await;
    again.refused(Code::Aborted, "ETAG_MISMATCH");
}

#[tokio::test]
async fn another_approval_policy_takes_the_scope_of_policies_and_none_keeps_it() {
    let (stack, caller) = start();
    create_policy(&caller, "strict", 2).await;
    let strict = pb::Component { approval_policy: "strict".to_owned(), ..component("storefront", &[]) };
    let writer = Grant { scope: "catalog.write".to_owned(), ..workload("writer") };
    let writer = stack.caller(&writer);
    create_component(&writer, strict.clone()).await;
    for same in [component("storefront", &[]), strict.clone()] {
        let updated = writer.catalog().update_component(update(same)).await.answer().component;
        assert_eq!(updated.unwrap().approval_policy, "strict");
    }
    let lax = pb::Component { approval_policy: "starter".to_owned(), ..strict };
    writer
        .catalog()
        .update_component(update(lax.clone()))
        .await
        .refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
    let updated = caller.catalog().update_component(update(lax)).await.answer().component;
    assert_eq!(updated.unwrap().approval_policy, "starter");
}

#[tokio::test]
async fn only_its_owners_change_and_release_a_component() {
    let (stack, _) = start();
    let member = stack.caller(&Grant { groups: vec!["shop-team".to_owned()], ..person("ada") });
    let other = stack.caller(&Grant { groups: vec!["pay-team".to_owned()], ..person("bob") });
    let refused = (Code::PermissionDenied, "CALLER_NOT_OWNER");
    let owned = component("storefront", &["shop-team", "platform"]);
    other
        .catalog()
        .create_component(creation(owned.clone()))
        .await
        .refused(refused.0, refused.1);
    let created = create_component(&member, owned).await;
    other
        .catalog()
        .update_component(update(created.clone()))
        .await
        .refused(refused.0, refused.1);
    other
        .releases()
        .create_release(draft("1.0"))
        .await
        .refused(refused.0, refused.1);
    let release = create_release(&member, "1.0").await;
    other
        .releases()
        .submit_release(submission(&release))
        .await
        .refused(refused.0, refused.1);
    let cancel = pb::CancelReleaseRequest {
        release_id: release.release_id.clone(),
        reason: "not ours".to_owned(),
        ..Default::default()
    };
    other.releases().cancel_release(cancel).await.refused(refused.0, refused.1);
    // Nobody gives a component away to a group that they are not in, nor takes one over.
    let grabbed = pb::Component { owner_groups: vec!["pay-team".to_owned()], ..created };
    other
        .catalog()
        .update_component(update(grabbed))
        .await
        .refused(refused.0, refused.1);
}

#[tokio::test]
async fn releases_keep_the_quorum_that_they_were_submitted_under() {
    let (_stack, caller) = start();
    let policy = create_policy(&caller, "strict", 2).await;
    let approval_policy = policy.approval_policy.clone();
    create_component(&caller, pb::Component { approval_policy, ..component("storefront", &[]) }).await;
    let release = create_release(&caller, "1.0").await;
    let submitted = crate::harness::shop::submit(&caller, &release).await;
    let approval_policy = Some(pb::ApprovalPolicy { quorum: 0, ..policy });
    let request = pb::UpdateApprovalPolicyRequest { approval_policy, request_id: String::new() };
    caller.catalog().update_approval_policy(request).await.answer();
    let read = crate::harness::shop::get_release(&caller, &release).await;
    assert_eq!((read.quorum, read.state()), (2, pb::ReleaseState::PendingApproval));
    assert_eq!(read, submitted);
}
