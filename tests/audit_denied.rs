//! What a rule refused is in the audit trail, and nothing else that went wrong; and lists find what they are asked for.

use chrono::TimeDelta;
use prost_reflect::{DescriptorPool, Kind};
use serde_json::{Value, json};
use shared::issuer::Grant;
use shared::pb::release as pb;
use shared::pb::release::GovernanceProfile;
use shared::time::to_proto;
use tonic::Code;

use crate::audit::{list, list_all, verify};
use crate::harness::govern::{Size, change, govern, hand_in};
use crate::harness::shop::{
    create_catalog, create_component, create_policy, create_release, draft, set_alias, submission, submit,
};
use crate::harness::{Answer as _, Caller, Stack, person, workload};

const DENIED: &str = "audit.denied";

async fn denied(caller: &Caller) -> Vec<pb::AuditEvent> {
    list(caller, pb::ListAuditRequest { verdict: pb::AuditVerdict::Deny.into(), ..Default::default() }).await
}

fn data(event: &pb::AuditEvent) -> Value {
    serde_json::from_str::<Value>(&event.record).unwrap()["data"].clone()
}

fn approval(release: &pb::Release) -> pb::ApproveReleaseRequest {
    pb::ApproveReleaseRequest { release_id: release.release_id.clone(), ..Default::default() }
}

/// Component `storefront` under a policy that asks for one approval, and a release of `ada`'s that waits for it.
async fn waiting(stack: &Stack) -> (Caller, pb::Release) {
    let ada = stack.caller(&person("ada"));
    create_policy(&ada, "two-eyes", 1).await;
    let component = pb::Component {
        component: "storefront".to_owned(),
        approval_policy: "two-eyes".to_owned(),
        ..Default::default()
    };
    create_component(&ada, component).await;
    let release = submit(&ada, &create_release(&ada, "1.0").await).await;
    (ada, release)
}

#[tokio::test]
async fn what_a_rule_refused_is_told_of_with_who_what_and_why() {
    let stack = Stack::releases();
    let (ada, release) = waiting(&stack).await;
    let own = ada.approvals().approve_release(approval(&release)).await;
    own.refused(Code::PermissionDenied, "SOD_VIOLATION");
    let robot = stack.caller(&workload("robot"));
    let voted = robot.approvals().approve_release(approval(&release)).await;
    voted.refused(Code::PermissionDenied, "CALLER_NOT_A_PERSON");
    let again = ada.releases().submit_release(submission(&release)).await;
    again.refused(Code::FailedPrecondition, "RELEASE_WRONG_STATE");
    let lower = ada.releases().create_release(draft("0.9")).await;
    lower.refused(Code::FailedPrecondition, "RELEASE_VERSION_NOT_GREATER");

    let told = denied(&ada).await;
    let found: Vec<_> = told
        .iter()
        .map(|event| {
            let (_, sub) = event.principal.split_once('|').unwrap();
            let data = data(event);
            let text = |field: &str| data[field].as_str().unwrap().to_owned();
            assert_eq!((event.kind.as_str(), event.verdict()), (DENIED, pb::AuditVerdict::Deny));
            (sub.to_owned(), event.subject.clone(), text("method"), text("reason"))
        })
        .collect();
    let row = |sub: &str, subject: &str, method: &str, reason: &str| {
        (sub.to_owned(), subject.to_owned(), method.to_owned(), reason.to_owned())
    };
    let id = release.release_id.as_str();
    let expected = [
        row("ada", id, "ApproveRelease", "SOD_VIOLATION"),
        row("robot", id, "ApproveRelease", "CALLER_NOT_A_PERSON"),
        row("ada", id, "SubmitRelease", "RELEASE_WRONG_STATE"),
        row("ada", "storefront", "CreateRelease", "RELEASE_VERSION_NOT_GREATER"),
    ];
    assert_eq!(found, expected);
    assert_eq!(data(&told[2])["metadata"], json!({"state": "PENDING_APPROVAL"}));
    assert_eq!(verify(&ada, "").await, Ok(told[3].seq));
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..person("ada") });
    assert_eq!(list_all(&acme).await, []);
}

#[tokio::test]
async fn bad_input_and_what_is_absent_or_late_is_no_denial() {
    let stack = Stack::releases();
    let (ada, release) = waiting(&stack).await;
    let bob = stack.caller(&person("bob"));
    let absent = pb::ApproveReleaseRequest { release_id: "rel_x".to_owned(), ..Default::default() };
    bob.approvals()
        .approve_release(absent)
        .await
        .refused(Code::InvalidArgument, "FIELD_INVALID");
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..person("bob") });
    acme.approvals()
        .approve_release(approval(&release))
        .await
        .refused(Code::NotFound, "RELEASE_NOT_FOUND");
    let late = pb::ApproveReleaseRequest { etag: "v99".to_owned(), ..approval(&release) };
    bob.approvals()
        .approve_release(late)
        .await
        .refused(Code::Aborted, "ETAG_MISMATCH");
    let narrow = stack.caller(&Grant { scope: "release.read".to_owned(), ..person("bob") });
    narrow
        .approvals()
        .approve_release(approval(&release))
        .await
        .refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
    ada.releases()
        .create_release(draft("1.0"))
        .await
        .refused(Code::AlreadyExists, "RELEASE_EXISTS");
    assert_eq!(denied(&ada).await, []);
    assert_eq!(denied(&acme).await, []);
}

#[tokio::test]
async fn a_caller_gets_the_error_also_where_it_cannot_be_told_of() {
    let stack = Stack::releases();
    let (ada, release) = waiting(&stack).await;
    let mut db = stack.database.connect().await;
    let forbid = "alter table release.events add constraint none_denied check (kind <> 'audit.denied')";
    sqlx::raw_sql(forbid).execute(&mut db).await.unwrap();
    let own = ada.approvals().approve_release(approval(&release)).await;
    own.refused(Code::PermissionDenied, "SOD_VIOLATION");
    assert_eq!(denied(&ada).await, []);
}

#[tokio::test]
async fn events_are_found_by_subject_kind_principal_verdict_and_time() {
    let stack = Stack::releases();
    let ada = stack.caller(&person("ada"));
    create_catalog(&ada).await;
    let release = create_release(&ada, "1.0").await;
    stack.advance(TimeDelta::hours(1));
    let noon = Some(to_proto(stack.now()));
    let bob = stack.caller(&person("bob"));
    submit(&bob, &release).await;
    bob.releases()
        .submit_release(submission(&release))
        .await
        .refused(Code::FailedPrecondition, "RELEASE_WRONG_STATE");
    let kinds = async |filter: pb::ListAuditRequest| {
        let events = list(&ada, pb::ListAuditRequest { page_size: 1, ..filter }).await;
        events.into_iter().map(|event| event.kind).collect::<Vec<_>>()
    };
    let all = pb::ListAuditRequest::default;
    let (created, submitted, approved) = ("release.created", "release.submitted", "release.approved");
    let by_subject = pb::ListAuditRequest { subject: release.release_id.clone(), ..all() };
    assert_eq!(kinds(by_subject).await, [created, submitted, approved, DENIED]);
    let by_kind = pb::ListAuditRequest { kinds: vec![approved.to_owned(), created.to_owned()], ..all() };
    assert_eq!(kinds(by_kind).await, [created, approved]);
    let bob = list_all(&ada).await.pop().unwrap().principal;
    let by_principal = pb::ListAuditRequest { principal: bob, ..all() };
    assert_eq!(kinds(by_principal).await, [submitted, approved, DENIED]);
    let allowed = pb::ListAuditRequest { verdict: pb::AuditVerdict::Allow.into(), start_time: noon, ..all() };
    assert_eq!(kinds(allowed).await, [submitted, approved]);
    let before = pb::ListAuditRequest { end_time: noon, subject: release.release_id.clone(), ..all() };
    assert_eq!(kinds(before).await, [created]);
    let bad = pb::ListAuditRequest { verdict: 9, ..all() };
    ada.audit()
        .list_audit(bad)
        .await
        .refused(Code::InvalidArgument, "FIELD_INVALID");
    let page = ada
        .audit()
        .list_audit(pb::ListAuditRequest { page_size: 1, ..all() })
        .await
        .answer();
    let other = pb::ListAuditRequest { subject: "x".to_owned(), page_token: page.next_page_token, ..all() };
    ada.audit()
        .list_audit(other)
        .await
        .refused(Code::InvalidArgument, "PAGE_TOKEN_INVALID");
}

#[tokio::test]
async fn no_address_gets_into_the_trail() {
    let (stack, author) = govern(GovernanceProfile::Standard).await;
    let release = hand_in(&author, change("1.0", Size::Small, &["ada@example.com"])).await;
    let boss = stack.caller(&person("boss"));
    let refused = boss.approvals().approve_release(approval(&release)).await;
    refused.refused(Code::FailedPrecondition, "COMMITTER_UNMAPPED");
    set_alias(&author, "tandem-local|ada-admin", "tandem-local|ada").await;
    let (alias, person) = ("ada@example.com".to_owned(), "tandem-local|ada-admin".to_owned());
    let alias = Some(pb::IdentityAlias { alias, person, create_time: None });
    let request = pb::SetIdentityAliasRequest { identity_alias: alias, ..Default::default() };
    let chained = author.catalog().set_identity_alias(request).await;
    chained.refused(Code::FailedPrecondition, "IDENTITY_ALIAS_CHAINED");
    let told = denied(&author).await;
    assert_eq!(told.len(), 2);
    assert!(told.iter().all(|event| !event.record.contains("example.com")), "{told:?}");
}

/// Refusals are filed under the first field of the request, or of the object in it.
#[test]
fn the_first_field_of_every_change_names_what_it_is_about() {
    let pool = DescriptorPool::decode(shared::pb::DESCRIPTORS).unwrap();
    let served =
        |name: &str| name.starts_with("tandem.release.v1.") || name == "tandem.common.v1.WebhookService";
    let services = pool.services().filter(|service| served(service.full_name()));
    let methods: Vec<_> = services.flat_map(|service| service.methods().collect::<Vec<_>>()).collect();
    let changes = methods
        .iter()
        .filter(|method| method.input().get_field_by_name("request_id").is_some());
    let mut count = 0;
    for method in changes {
        let first = method.input().get_field(1).unwrap();
        let kind = first.kind();
        let named = kind
            .as_message()
            .map_or_else(|| first.clone(), |object| object.get_field(1).unwrap());
        assert!(named.kind() == Kind::String && !named.is_list(), "{}", method.full_name());
        count += 1;
    }
    assert!(count > 10, "{count}");
}
