//! Tenants: what another tenant has is not there, whatever its id.

use shared::issuer::Grant;
use shared::pb::release as rpb;
use shared::pb::session as pb;
use shared::pb::session::cart_owner::Owner;
use shared::pb::session::revoke_session_request::Target;
use tonic::{Code, Response, Status};

use crate::harness::shop::{
    add_line, create_catalog, create_policy, create_release, create_session, create_touchpoint, owner, ship,
    submit, validate, validation, web,
};
use crate::harness::{Answer as _, Caller, Stack, assert_refused, person, reason_of};

/// What tenant `shop` has.
struct Shop {
    session: pb::Session,
    token: String,
    cart: pb::Cart,
    draft: rpb::Release,
    pending: rpb::Release,
    rollout: rpb::Rollout,
    etag: String,
}

async fn open(caller: &Caller) -> Shop {
    let etag = create_touchpoint(caller, web()).await.etag;
    let (session, token) = create_session(caller).await;
    let cart = add_line(caller, &token, "85123A", 2).await;
    create_catalog(caller).await;
    create_policy(caller, "strict", 1).await;
    ship(caller, "1.0", &[]).await;
    let rollout = ship(caller, "1.1", &[1000]).await;
    let pending = submit(caller, &create_release(caller, "1.2").await).await;
    let draft = create_release(caller, "1.3").await;
    Shop { session, token, cart, draft, pending, rollout, etag }
}

fn outcome<T>(answer: Result<Response<T>, Status>) -> (Code, String) {
    answer
        .err()
        .map_or((Code::Ok, String::new()), |status| (status.code(), reason_of(&status)))
}

type Outcomes = Vec<(&'static str, &'static str, (Code, String))>;

async fn session_svc(caller: &Caller, shop: &Shop) -> Outcomes {
    let Shop { session, cart, etag, .. } = shop;
    let shopper = pb::ShopperRef { shopper_id: cart.shopper_id.clone(), touchpoint_group: "web".to_owned() };
    let owner = Some(pb::CartOwner { owner: Some(Owner::Shopper(shopper)) });
    let (currency_code, line_id) = ("EUR".to_owned(), cart.lines[0].line_id.clone());
    let touchpoint = Some(pb::Touchpoint { etag: etag.clone(), ..web() });
    let reason = pb::CheckoutFailure::Error.into();
    let request_id = String::new();
    let (mut sessions, mut touchpoints, mut carts) =
        (caller.sessions(), caller.touchpoints(), caller.carts());
    vec![
        (
            "GetTouchpoint",
            "TOUCHPOINT_NOT_FOUND",
            outcome(
                touchpoints
                    .get_touchpoint(pb::GetTouchpointRequest { touchpoint: "web".to_owned() })
                    .await,
            ),
        ),
        (
            "UpdateTouchpoint",
            "TOUCHPOINT_NOT_FOUND",
            outcome(
                touchpoints
                    .update_touchpoint(pb::UpdateTouchpointRequest {
                        touchpoint,
                        request_id: request_id.clone(),
                    })
                    .await,
            ),
        ),
        (
            "CreateSession",
            "TOUCHPOINT_NOT_FOUND",
            outcome(
                sessions
                    .create_session(pb::CreateSessionRequest {
                        touchpoint: "web".to_owned(),
                        ..Default::default()
                    })
                    .await,
            ),
        ),
        (
            "ValidateSession",
            "TOUCHPOINT_NOT_FOUND",
            outcome(
                sessions
                    .validate_session(validation(&shop.token, pb::Consistency::Bounded))
                    .await,
            ),
        ),
        (
            "GetSession",
            "SESSION_NOT_FOUND",
            outcome(
                sessions
                    .get_session(pb::GetSessionRequest { session_id: session.session_id.clone() })
                    .await,
            ),
        ),
        (
            "RevokeSession",
            "SESSION_NOT_FOUND",
            outcome(
                sessions
                    .revoke_session(pb::RevokeSessionRequest {
                        target: Some(Target::SessionId(session.session_id.clone())),
                        reason: 2,
                        request_id: request_id.clone(),
                    })
                    .await,
            ),
        ),
        (
            "RevokeSession",
            "SESSION_NOT_FOUND",
            outcome(
                sessions
                    .revoke_session(pb::RevokeSessionRequest {
                        target: Some(Target::SessionToken(shop.token.clone())),
                        reason: 1,
                        request_id: request_id.clone(),
                    })
                    .await,
            ),
        ),
        (
            "GetCart",
            "CART_NOT_FOUND",
            outcome(
                carts
                    .get_cart(pb::GetCartRequest {
                        owner: owner.clone(),
                        currency_code: String::new(),
                        cart_id: cart.cart_id.clone(),
                    })
                    .await,
            ),
        ),
        (
            "SetCartLineQuantity",
            "CART_NOT_FOUND",
            outcome(
                carts
                    .set_cart_line_quantity(pb::SetCartLineQuantityRequest {
                        owner: owner.clone(),
                        currency_code: currency_code.clone(),
                        line_id: line_id.clone(),
                        quantity: 1,
                        request_id: request_id.clone(),
                    })
                    .await,
            ),
        ),
        (
            "RemoveCartLine",
            "CART_NOT_FOUND",
            outcome(
                carts
                    .remove_cart_line(pb::RemoveCartLineRequest {
                        owner: owner.clone(),
                        currency_code: currency_code.clone(),
                        line_id,
                        request_id: request_id.clone(),
                    })
                    .await,
            ),
        ),
        (
            "BeginCheckout",
            "CART_NOT_FOUND",
            outcome(
                carts
                    .begin_checkout(pb::BeginCheckoutRequest {
                        owner: owner.clone(),
                        currency_code: currency_code.clone(),
                        ..Default::default()
                    })
                    .await,
            ),
        ),
        (
            "CompleteCheckout",
            "CART_NOT_FOUND",
            outcome(
                carts
                    .complete_checkout(pb::CompleteCheckoutRequest {
                        owner: owner.clone(),
                        currency_code: currency_code.clone(),
                        order_ref: "o".to_owned(),
                        request_id: request_id.clone(),
                    })
                    .await,
            ),
        ),
        (
            "FailCheckout",
            "CART_NOT_FOUND",
            outcome(
                carts
                    .fail_checkout(pb::FailCheckoutRequest { owner, currency_code, reason, request_id })
                    .await,
            ),
        ),
    ]
}

async fn catalog(caller: &Caller) -> Outcomes {
    let mut catalog = caller.catalog();
    let name = "storefront".to_owned();
    let component = Some(rpb::Component { component: name.clone(), ..Default::default() });
    let own_policy = Some(rpb::Component {
        component: "own".to_owned(),
        approval_policy: "strict".to_owned(),
        ..Default::default()
    });
    let approval_policy = Some(rpb::ApprovalPolicy {
        approval_policy: "strict".to_owned(),
        profile: 1,
        quorum: 0,
        ..Default::default()
    });
    vec![
        (
            "GetComponent",
            "COMPONENT_NOT_FOUND",
            outcome(catalog.get_component(rpb::GetComponentRequest { component: name }).await),
        ),
        (
            "UpdateComponent",
            "COMPONENT_NOT_FOUND",
            outcome(
                catalog
                    .update_component(rpb::UpdateComponentRequest { component, request_id: String::new() })
                    .await,
            ),
        ),
        (
            "CreateComponent",
            "APPROVAL_POLICY_NOT_FOUND",
            outcome(
                catalog
                    .create_component(rpb::CreateComponentRequest {
                        component: own_policy,
                        request_id: String::new(),
                    })
                    .await,
            ),
        ),
        (
            "GetEnvironment",
            "ENVIRONMENT_NOT_FOUND",
            outcome(
                catalog
                    .get_environment(rpb::GetEnvironmentRequest { environment: "local".to_owned() })
                    .await,
            ),
        ),
        (
            "GetApprovalPolicy",
            "APPROVAL_POLICY_NOT_FOUND",
            outcome(
                catalog
                    .get_approval_policy(rpb::GetApprovalPolicyRequest {
                        approval_policy: "strict".to_owned(),
                    })
                    .await,
            ),
        ),
        (
            "UpdateApprovalPolicy",
            "APPROVAL_POLICY_NOT_FOUND",
            outcome(
                catalog
                    .update_approval_policy(rpb::UpdateApprovalPolicyRequest {
                        approval_policy,
                        request_id: String::new(),
                    })
                    .await,
            ),
        ),
    ]
}

async fn releases(caller: &Caller, shop: &Shop) -> Outcomes {
    let (mut releases, mut approvals, mut rollouts) =
        (caller.releases(), caller.approvals(), caller.rollouts());
    let (draft, pending) = (shop.draft.release_id.clone(), shop.pending.release_id.clone());
    let (rollout_id, reason) = (shop.rollout.rollout_id.clone(), "why".to_owned());
    let by_id = Some(rpb::get_release_request::Name::ReleaseId(draft.clone()));
    let by_ref = rpb::ReleaseRef { component: "storefront".to_owned(), version: "1.0".to_owned() };
    let by_ref = Some(rpb::get_release_request::Name::Ref(by_ref));
    vec![
        (
            "CreateRelease",
            "COMPONENT_NOT_FOUND",
            outcome(releases.create_release(crate::harness::shop::draft("9.0")).await),
        ),
        (
            "GetRelease",
            "RELEASE_NOT_FOUND",
            outcome(releases.get_release(rpb::GetReleaseRequest { name: by_id }).await),
        ),
        (
            "GetRelease",
            "RELEASE_NOT_FOUND",
            outcome(releases.get_release(rpb::GetReleaseRequest { name: by_ref }).await),
        ),
        (
            "SubmitRelease",
            "RELEASE_NOT_FOUND",
            outcome(
                releases
                    .submit_release(rpb::SubmitReleaseRequest {
                        release_id: draft.clone(),
                        ..Default::default()
                    })
                    .await,
            ),
        ),
        (
            "CancelRelease",
            "RELEASE_NOT_FOUND",
            outcome(
                releases
                    .cancel_release(rpb::CancelReleaseRequest {
                        release_id: draft,
                        reason: reason.clone(),
                        ..Default::default()
                    })
                    .await,
            ),
        ),
        (
            "ApproveRelease",
            "RELEASE_NOT_FOUND",
            outcome(
                approvals
                    .approve_release(rpb::ApproveReleaseRequest {
                        release_id: pending.clone(),
                        ..Default::default()
                    })
                    .await,
            ),
        ),
        (
            "RejectRelease",
            "RELEASE_NOT_FOUND",
            outcome(
                approvals
                    .reject_release(rpb::RejectReleaseRequest {
                        release_id: pending,
                        reason: reason.clone(),
                        ..Default::default()
                    })
                    .await,
            ),
        ),
        (
            "StartRollout",
            "RELEASE_NOT_FOUND",
            outcome(rollouts.start_rollout(crate::harness::shop::start(&shop.pending, &[])).await),
        ),
        (
            "GetRollout",
            "ROLLOUT_NOT_FOUND",
            outcome(
                rollouts
                    .get_rollout(rpb::GetRolloutRequest { rollout_id: rollout_id.clone() })
                    .await,
            ),
        ),
        (
            "AdvanceRollout",
            "ROLLOUT_NOT_FOUND",
            outcome(
                rollouts
                    .advance_rollout(rpb::AdvanceRolloutRequest {
                        rollout_id: rollout_id.clone(),
                        ..Default::default()
                    })
                    .await,
            ),
        ),
        (
            "RollBackRollout",
            "ROLLOUT_NOT_FOUND",
            outcome(
                rollouts
                    .roll_back_rollout(rpb::RollBackRolloutRequest {
                        rollout_id,
                        reason,
                        request_id: String::new(),
                    })
                    .await,
            ),
        ),
    ]
}

#[tokio::test]
async fn another_tenants_objects_are_not_found_by_any_method() {
    let stack = Stack::pair();
    let shop = open(&stack.caller(&person("ada"))).await;
    let acme = stack.caller(&shared::issuer::Grant { tenant: "acme".to_owned(), ..person("ada") });
    let outcomes =
        [session_svc(&acme, &shop).await, catalog(&acme).await, releases(&acme, &shop).await].concat();
    for (method, reason, found) in outcomes {
        assert_eq!(found, (Code::NotFound, reason.to_owned()), "{method}");
    }
}

#[tokio::test]
async fn another_tenants_token_is_of_no_session_and_lists_are_empty() {
    let stack = Stack::pair();
    let shop = open(&stack.caller(&person("ada"))).await;
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..person("ada") });
    create_touchpoint(&acme, web()).await;
    assert_eq!(validate(&acme, &shop.token).await.verdict(), pb::Verdict::SessionUnknown);
    let request = pb::GetCartRequest {
        owner: owner(&shop.token),
        currency_code: "EUR".to_owned(),
        cart_id: String::new(),
    };
    let status = acme.carts().get_cart(request).await.unwrap_err();
    assert_refused(&status, Code::FailedPrecondition, "SESSION_UNKNOWN");
    assert_eq!(
        acme.sessions()
            .list_sessions(pb::ListSessionsRequest::default())
            .await
            .answer()
            .sessions,
        []
    );
    assert_eq!(
        acme.catalog()
            .list_components(rpb::ListComponentsRequest::default())
            .await
            .answer()
            .components,
        []
    );
    assert_eq!(
        acme.catalog()
            .list_environments(rpb::ListEnvironmentsRequest::default())
            .await
            .answer()
            .environments,
        []
    );
    assert_eq!(
        acme.releases()
            .list_releases(rpb::ListReleasesRequest::default())
            .await
            .answer()
            .releases,
        []
    );
    assert_eq!(
        acme.rollouts()
            .list_rollouts(rpb::ListRolloutsRequest::default())
            .await
            .answer()
            .rollouts,
        []
    );
    // The same names and versions are free.
    create_catalog(&acme).await;
    ship(&acme, "1.0", &[]).await;
}
