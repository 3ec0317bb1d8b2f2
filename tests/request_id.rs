//! Request ids: the same one gets the same answer, also when sent at once; and never anybody else's.

use std::fmt::Debug;

use chrono::TimeDelta;
use futures_util::future::join_all;
use shared::issuer::Grant;
use shared::pb::release as rpb;
use shared::pb::session as pb;
use shared::pb::session::revoke_session_request::Target;
use tonic::{Code, Response, Status};
use uuid::Uuid;

use crate::harness::shop::{
    create_catalog, create_policy, create_release, create_session, create_touchpoint, draft, ship, start,
    submission, submit, validate, web,
};
use crate::harness::{Answer as _, Caller, Stack, person, workload};

fn id(n: u128) -> String {
    Uuid::from_u128(n).to_string()
}

/// Sent three times at once and once more it is answered alike; with another body it is refused.
async fn once<T, R>(request: T, other: T, call: impl AsyncFn(T) -> Result<Response<R>, Status>) -> R
where
    T: Clone,
    R: Debug + PartialEq,
{
    let first = join_all((0..3).map(|_| call(request.clone()))).await;
    let again = call(request).await.answer();
    for answer in first {
        assert_eq!(answer.answer(), again);
    }
    call(other).await.refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
    again
}

#[tokio::test]
async fn every_change_of_session_svc_happens_once() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    let request = |display_name: &str| pb::CreateTouchpointRequest {
        touchpoint: Some(pb::Touchpoint { display_name: display_name.to_owned(), ..web() }),
        request_id: id(1),
    };
    let touchpoints = || caller.touchpoints();
    once(request("a"), request("b"), async |request| touchpoints().create_touchpoint(request).await).await;
    let request = |name: &str| pb::UpdateTouchpointRequest {
        touchpoint: Some(pb::Touchpoint { display_name: name.to_owned(), ..web() }),
        request_id: id(1),
    };
    let updated =
        once(request("c"), request("d"), async |request| touchpoints().update_touchpoint(request).await)
            .await;
    assert_eq!(updated.touchpoint.unwrap().etag, "v2", "one update");
    let request = |device: &str| pb::CreateSessionRequest {
        touchpoint: "web".to_owned(),
        device: device.to_owned(),
        request_id: id(1),
        ..Default::default()
    };
    let made = once(request("phone"), request("till"), async |request| {
        caller.sessions().create_session(request).await
    })
    .await;
    assert_eq!(
        validate(&caller, &made.session_token).await.verdict(),
        pb::Verdict::Active,
        "the token is the one"
    );
    let listed = caller
        .sessions()
        .list_sessions(pb::ListSessionsRequest::default())
        .await
        .answer();
    assert_eq!(listed.sessions.len(), 1);
    let request = |reason: pb::RevokeReason| pb::RevokeSessionRequest {
        target: Some(Target::SessionToken(made.session_token.clone())),
        reason: reason.into(),
        request_id: id(1),
    };
    let (logout, other) = (request(pb::RevokeReason::Logout), request(pb::RevokeReason::Admin));
    once(logout, other, async |request| caller.sessions().revoke_session(request).await).await;
}

#[tokio::test]
async fn every_change_of_release_svc_happens_once() {
    let stack = Stack::releases();
    let (caller, boss) = (stack.caller(&person("ada")), stack.caller(&person("boss")));
    let component = |display_name: &str| rpb::CreateComponentRequest {
        component: Some(rpb::Component {
            component: "storefront".to_owned(),
            display_name: display_name.to_owned(),
            ..Default::default()
        }),
        request_id: id(1),
    };
    let catalog = || caller.catalog();
    let made =
        once(component("a"), component("b"), async |request| catalog().create_component(request).await).await;
    let update = |name: &str| rpb::UpdateComponentRequest {
        component: Some(rpb::Component { display_name: name.to_owned(), ..made.component.clone().unwrap() }),
        request_id: id(1),
    };
    once(update("c"), update("d"), async |request| catalog().update_component(request).await).await;
    let environment = |promotion_order| rpb::CreateEnvironmentRequest {
        environment: Some(rpb::Environment {
            environment: "local".to_owned(),
            promotion_order,
            ..Default::default()
        }),
        request_id: id(1),
    };
    once(environment(1), environment(2), async |request| catalog().create_environment(request).await).await;
    let policy = |quorum| rpb::ApprovalPolicy {
        approval_policy: "strict".to_owned(),
        profile: rpb::GovernanceProfile::Starter.into(),
        quorum,
        ..Default::default()
    };
    let create = |quorum| rpb::CreateApprovalPolicyRequest {
        approval_policy: Some(policy(quorum)),
        request_id: id(1),
    };
    once(create(1), create(2), async |request| catalog().create_approval_policy(request).await).await;
    let update = |quorum| rpb::UpdateApprovalPolicyRequest {
        approval_policy: Some(policy(quorum)),
        request_id: id(1),
    };
    once(update(2), update(3), async |request| catalog().update_approval_policy(request).await).await;
    let create = |version: &str| rpb::CreateReleaseRequest { request_id: id(1), ..draft(version) };
    let releases = || caller.releases();
    let made =
        once(create("1.0"), create("1.1"), async |request| releases().create_release(request).await).await;
    let release = made.release.unwrap();
    let submit_with = |etag: &str| rpb::SubmitReleaseRequest {
        etag: etag.to_owned(),
        request_id: id(1),
        ..submission(&release)
    };
    once(submit_with(""), submit_with("v1"), async |request| releases().submit_release(request).await).await;
    let begin = |steps: &[i32]| rpb::StartRolloutRequest { request_id: id(1), ..start(&release, steps) };
    let rollouts = || caller.rollouts();
    once(begin(&[]), begin(&[5]), async |request| rollouts().start_rollout(request).await).await;
    let rollout_id = ship(&caller, "1.1", &[100, 1000]).await.rollout_id;
    let advance = |etag: &str| rpb::AdvanceRolloutRequest {
        rollout_id: rollout_id.clone(),
        etag: etag.to_owned(),
        request_id: id(1),
    };
    let advanced =
        once(advance(""), advance("v1"), async |request| rollouts().advance_rollout(request).await).await;
    assert_eq!(advanced.rollout.unwrap().step, 1, "one step");
    let back = |reason: &str| rpb::RollBackRolloutRequest {
        rollout_id: rollout_id.clone(),
        reason: reason.to_owned(),
        request_id: id(1),
    };
    once(back("slow"), back("ugly"), async |request| rollouts().roll_back_rollout(request).await).await;
    let cancelled = create_release(&caller, "1.2").await.release_id;
    let cancel = |reason: &str| rpb::CancelReleaseRequest {
        release_id: cancelled.clone(),
        reason: reason.to_owned(),
        etag: String::new(),
        request_id: id(1),
    };
    once(cancel("late"), cancel("bad"), async |request| releases().cancel_release(request).await).await;
    votes(&caller, &boss).await;
}

async fn votes(caller: &Caller, boss: &Caller) {
    let component = rpb::Component {
        component: "storefront".to_owned(),
        approval_policy: "strict".to_owned(),
        ..Default::default()
    };
    let request = rpb::UpdateComponentRequest { component: Some(component), request_id: String::new() };
    caller.catalog().update_component(request).await.answer();
    let release_id = submit(caller, &create_release(caller, "1.3").await).await.release_id;
    let approve = |reason: &str| rpb::ApproveReleaseRequest {
        release_id: release_id.clone(),
        reason: reason.to_owned(),
        etag: String::new(),
        request_id: id(1),
        snapshot_digest: String::new(),
    };
    let voted = once(approve("fine"), approve("good"), async |request| {
        boss.approvals().approve_release(request).await
    })
    .await;
    assert_eq!(voted.release.unwrap().votes.len(), 1);
    let release_id = submit(caller, &create_release(caller, "1.4").await).await.release_id;
    let reject = |reason: &str| rpb::RejectReleaseRequest {
        release_id: release_id.clone(),
        reason: reason.to_owned(),
        etag: String::new(),
        request_id: id(1),
        snapshot_digest: String::new(),
    };
    once(reject("bad"), reject("ugly"), async |request| boss.approvals().reject_release(request).await).await;
}

#[tokio::test]
async fn an_id_belongs_to_its_caller_and_its_method() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    let request =
        pb::CreateSessionRequest { touchpoint: "web".to_owned(), request_id: id(1), ..Default::default() };
    let own = caller.sessions().create_session(request.clone()).await.answer();
    let other = stack.caller(&workload("app"));
    let others = other.sessions().create_session(request.clone()).await.answer();
    assert_ne!(own.session_token, others.session_token);
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..workload("storefront") });
    create_touchpoint(&acme, web()).await;
    assert_ne!(acme.sessions().create_session(request).await.answer().session_token, own.session_token);
    let target = Some(Target::SessionToken(own.session_token));
    let request =
        pb::RevokeSessionRequest { target, reason: pb::RevokeReason::Logout.into(), request_id: id(1) };
    caller.sessions().revoke_session(request).await.answer();
}

#[tokio::test]
async fn an_id_is_kept_for_a_day_and_is_free_after_it() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    let request =
        pb::CreateSessionRequest { touchpoint: "web".to_owned(), request_id: id(1), ..Default::default() };
    let first = caller.sessions().create_session(request.clone()).await.answer();
    stack.advance(TimeDelta::hours(24) - TimeDelta::microseconds(1));
    assert_eq!(caller.sessions().create_session(request.clone()).await.answer(), first);
    stack.advance(TimeDelta::microseconds(1));
    assert_ne!(caller.sessions().create_session(request).await.answer().session_token, first.session_token);
}

#[tokio::test]
async fn what_was_refused_leaves_its_id_free() {
    let stack = Stack::releases();
    let caller = stack.caller(&person("ada"));
    let request = rpb::CreateReleaseRequest { request_id: id(1), ..draft("1.0") };
    caller
        .releases()
        .create_release(request.clone())
        .await
        .refused(Code::NotFound, "COMPONENT_NOT_FOUND");
    create_catalog(&caller).await;
    create_policy(&caller, "strict", 1).await;
    caller.releases().create_release(request).await.answer();
}

#[tokio::test]
async fn an_answer_is_repeated_although_what_it_was_about_has_changed() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    let (session, token) = create_session(&caller).await;
    let target = Some(Target::SessionToken(token));
    let request =
        pb::RevokeSessionRequest { target, reason: pb::RevokeReason::Logout.into(), request_id: id(1) };
    let first = caller.sessions().revoke_session(request.clone()).await.answer();
    stack.advance(TimeDelta::hours(23));
    assert_eq!(caller.sessions().revoke_session(request).await.answer(), first);
    assert_eq!(first.session.unwrap().session_id, session.session_id);
}

#[tokio::test]
async fn what_is_no_uuid_is_refused() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    for bad in ["1", "nonsense", "00000000-0000-0000-0000-000000000000", &"a".repeat(1000)] {
        let request = pb::CreateSessionRequest {
            touchpoint: "web".to_owned(),
            request_id: bad.to_owned(),
            ..Default::default()
        };
        caller
            .sessions()
            .create_session(request)
            .await
            .refused(Code::InvalidArgument, "FIELD_INVALID");
    }
}
