//! What most tests begin with, in one line each: a touchpoint, a session, a cart line, a release on its way.

use prost_types::Duration;
use shared::id::SessionId;
use shared::pb::common::Money;
use shared::pb::release as rpb;
use shared::pb::session as pb;
use shared::pb::session::shopper_selector::Owner;

use super::{Answer as _, Caller, ENVIRONMENT};

/// Touchpoint `web`, which carries component `storefront`.
pub(crate) fn web() -> pb::Touchpoint {
    pb::Touchpoint {
        touchpoint: "web".to_owned(),
        components: vec!["storefront".to_owned()],
        has_shoppers: true,
        ..pb::Touchpoint::default()
    }
}

pub(crate) fn seconds(seconds: i64) -> Duration {
    Duration { seconds, nanos: 0 }
}

pub(crate) async fn create_touchpoint(caller: &Caller, touchpoint: pb::Touchpoint) -> pb::Touchpoint {
    let request = pb::CreateTouchpointRequest { touchpoint: Some(touchpoint), ..Default::default() };
    caller
        .touchpoints()
        .create_touchpoint(request)
        .await
        .answer()
        .touchpoint
        .unwrap()
}

/// A session at `web`, and its token.
pub(crate) async fn create_session(caller: &Caller) -> (pb::Session, String) {
    let created = create_session_with_pins(caller).await;
    (created.session.unwrap(), created.session_token)
}

pub(crate) async fn create_session_with_pins(caller: &Caller) -> pb::CreateSessionResponse {
    let request = pb::CreateSessionRequest { touchpoint: "web".to_owned(), ..Default::default() };
    caller.sessions().create_session(request).await.answer()
}

/// The verdict at `web`, from memory where that will do.
pub(crate) async fn validate(caller: &Caller, token: &str) -> pb::ValidateSessionResponse {
    validate_as(caller, token, pb::Consistency::Bounded).await
}

/// The verdict at `web`, read from the database.
pub(crate) async fn validate_strong(caller: &Caller, token: &str) -> pb::ValidateSessionResponse {
    validate_as(caller, token, pb::Consistency::Strong).await
}

pub(crate) fn validation(token: &str, consistency: pb::Consistency) -> pb::ValidateSessionRequest {
    pb::ValidateSessionRequest {
        session_token: token.to_owned(),
        touchpoint: "web".to_owned(),
        consistency: consistency.into(),
        ..Default::default()
    }
}

async fn validate_as(
    caller: &Caller,
    token: &str,
    consistency: pb::Consistency,
) -> pb::ValidateSessionResponse {
    caller
        .sessions()
        .validate_session(validation(token, consistency))
        .await
        .answer()
}

pub(crate) async fn revoke(caller: &Caller, session: &pb::Session) -> pb::Session {
    let request = pb::RevokeSessionRequest {
        target: Some(pb::revoke_session_request::Target::SessionId(session.session_id.clone())),
        reason: pb::RevokeReason::Admin.into(),
        ..Default::default()
    };
    caller.sessions().revoke_session(request).await.answer().session.unwrap()
}

pub(crate) fn session_id(session: &pb::Session) -> SessionId {
    session.session_id.parse().unwrap()
}

/// The version and the arm that a visit of `storefront` is pinned to.
pub(crate) fn pin(pins: &[pb::ReleasePin]) -> (&str, pb::Arm) {
    let pin = pins.iter().find(|pin| pin.component == "storefront");
    pin.map_or(("", pb::Arm::Unspecified), |pin| (pin.version.as_str(), pin.arm()))
}

pub(crate) fn owner(token: &str) -> pb::ShopperSelector {
    pb::ShopperSelector { owner: Some(Owner::SessionToken(token.to_owned())) }
}

pub(crate) fn euros(minor_units: i64) -> Money {
    Money { currency_code: "EUR".to_owned(), minor_units }
}

/// So many more of an article at 2.55 EUR.
pub(crate) fn line(token: &str, sku: &str, quantity: i32) -> pb::AddCartLineRequest {
    pb::AddCartLineRequest {
        owner: Some(owner(token)),
        sku: sku.to_owned(),
        quantity,
        unit_price: Some(euros(255)),
        ..pb::AddCartLineRequest::default()
    }
}

pub(crate) async fn add_line(caller: &Caller, token: &str, sku: &str, quantity: i32) -> pb::Cart {
    caller
        .carts()
        .add_cart_line(line(token, sku, quantity))
        .await
        .answer()
        .cart
        .unwrap()
}

/// The articles of a cart that are not saved for later, with their quantities.
pub(crate) fn quantities(cart: &pb::Cart) -> Vec<(&str, i32)> {
    let lines = cart.lines.iter().filter(|line| !line.saved_for_later);
    let mut quantities: Vec<_> = lines.map(|line| (line.sku.as_str(), line.quantity)).collect();
    quantities.sort_unstable();
    quantities
}

pub(crate) async fn get_cart(caller: &Caller, token: &str) -> pb::Cart {
    let request = pb::GetCartRequest {
        owner: Some(owner(token)),
        currency_code: "EUR".to_owned(),
        cart_id: String::new(),
    };
    caller.carts().get_cart(request).await.answer().cart.unwrap()
}

/// A cart of any shopper, by its id.
pub(crate) async fn cart_of(caller: &Caller, cart: &pb::Cart) -> pb::Cart {
    let request = pb::GetCartRequest {
        owner: Some(shopper(&cart.shopper_id)),
        currency_code: String::new(),
        cart_id: cart.cart_id.clone(),
    };
    caller.carts().get_cart(request).await.answer().cart.unwrap()
}

/// A shopper at `web` without a session.
pub(crate) fn shopper(shopper_id: &str) -> pb::ShopperSelector {
    let (shopper_id, touchpoint_group) = (shopper_id.to_owned(), "web".to_owned());
    pb::ShopperSelector { owner: Some(Owner::Shopper(pb::ShopperRef { shopper_id, touchpoint_group })) }
}

/// A login by the caller's word, which brings the cart along so.
pub(crate) fn login(token: &str, sub: &str, strategy: pb::MergeStrategy) -> pb::AuthenticateSessionRequest {
    let subject = pb::Subject { issuer: "https://id.example".to_owned(), sub: sub.to_owned() };
    let asserted = pb::AssertedIdentity { subject: Some(subject), level: 1, ..Default::default() };
    pb::AuthenticateSessionRequest {
        session_token: token.to_owned(),
        proof: Some(pb::authenticate_session_request::Proof::Asserted(asserted)),
        merge_strategy: strategy.into(),
        ..Default::default()
    }
}

pub(crate) async fn log_in(
    caller: &Caller,
    token: &str,
    sub: &str,
    strategy: pb::MergeStrategy,
) -> pb::AuthenticateSessionResponse {
    caller
        .sessions()
        .authenticate_session(login(token, sub, strategy))
        .await
        .answer()
}

/// A device that this subject is logged in on, which makes its shopper the subject's; its token.
pub(crate) async fn known_device(caller: &Caller, sub: &str) -> String {
    let (_, token) = create_session(caller).await;
    log_in(caller, &token, sub, pb::MergeStrategy::Unspecified).await.session_token
}

pub(crate) async fn fill(caller: &Caller, token: &str, articles: &[(&str, i32)]) {
    for (sku, quantity) in articles {
        add_line(caller, token, sku, *quantity).await;
    }
}

/// The `n`th request id.
pub(crate) fn request_id(n: u128) -> String {
    uuid::Uuid::from_u128(n).to_string()
}

pub(crate) fn checkout(token: &str) -> pb::BeginCheckoutRequest {
    pb::BeginCheckoutRequest {
        owner: Some(owner(token)),
        currency_code: "EUR".to_owned(),
        ..Default::default()
    }
}

pub(crate) async fn begin_checkout(caller: &Caller, token: &str) -> pb::Cart {
    caller.carts().begin_checkout(checkout(token)).await.answer().cart.unwrap()
}

pub(crate) fn completion(token: &str, order_ref: &str) -> pb::CompleteCheckoutRequest {
    pb::CompleteCheckoutRequest {
        owner: Some(owner(token)),
        currency_code: "EUR".to_owned(),
        order_ref: order_ref.to_owned(),
        request_id: String::new(),
    }
}

pub(crate) async fn complete_checkout(caller: &Caller, token: &str, order_ref: &str) -> pb::Cart {
    caller
        .carts()
        .complete_checkout(completion(token, order_ref))
        .await
        .answer()
        .cart
        .unwrap()
}

/// Component `storefront` and the environment that the tests' session services serve.
pub(crate) async fn create_catalog(caller: &Caller) {
    let component = rpb::Component { component: "storefront".to_owned(), ..Default::default() };
    create_component(caller, component).await;
    let environment = rpb::Environment { environment: ENVIRONMENT.to_owned(), ..Default::default() };
    let request = rpb::CreateEnvironmentRequest { environment: Some(environment), ..Default::default() };
    caller.catalog().create_environment(request).await.answer();
}

pub(crate) async fn create_component(caller: &Caller, component: rpb::Component) -> rpb::Component {
    let request = rpb::CreateComponentRequest { component: Some(component), ..Default::default() };
    caller.catalog().create_component(request).await.answer().component.unwrap()
}

/// Says whose an alias is.
pub(crate) async fn set_alias(caller: &Caller, alias: &str, person: &str) -> rpb::IdentityAlias {
    let (alias, person) = (alias.to_owned(), person.to_owned());
    let identity_alias = Some(rpb::IdentityAlias { alias, person, create_time: None });
    let request = rpb::SetIdentityAliasRequest { identity_alias, ..Default::default() };
    caller
        .catalog()
        .set_identity_alias(request)
        .await
        .answer()
        .identity_alias
        .unwrap()
}

/// Approval policy `two-eyes` or any other, with this quorum.
pub(crate) async fn create_policy(caller: &Caller, name: &str, quorum: i32) -> rpb::ApprovalPolicy {
    let approval_policy = rpb::ApprovalPolicy {
        approval_policy: name.to_owned(),
        profile: rpb::GovernanceProfile::Starter.into(),
        quorum,
        ..Default::default()
    };
    let request =
        rpb::CreateApprovalPolicyRequest { approval_policy: Some(approval_policy), ..Default::default() };
    caller
        .catalog()
        .create_approval_policy(request)
        .await
        .answer()
        .approval_policy
        .unwrap()
}

pub(crate) fn draft(version: &str) -> rpb::CreateReleaseRequest {
    let (component, version) = ("storefront".to_owned(), version.to_owned());
    rpb::CreateReleaseRequest { component, version, ..Default::default() }
}

pub(crate) async fn create_release(caller: &Caller, version: &str) -> rpb::Release {
    create_release_as(caller, draft(version)).await
}

pub(crate) async fn create_release_as(caller: &Caller, draft: rpb::CreateReleaseRequest) -> rpb::Release {
    caller.releases().create_release(draft).await.answer().release.unwrap()
}

pub(crate) fn submission(release: &rpb::Release) -> rpb::SubmitReleaseRequest {
    rpb::SubmitReleaseRequest { release_id: release.release_id.clone(), ..Default::default() }
}

pub(crate) async fn submit(caller: &Caller, release: &rpb::Release) -> rpb::Release {
    caller
        .releases()
        .submit_release(submission(release))
        .await
        .answer()
        .release
        .unwrap()
}

pub(crate) async fn get_release(caller: &Caller, release: &rpb::Release) -> rpb::Release {
    let name = rpb::get_release_request::Name::ReleaseId(release.release_id.clone());
    let request = rpb::GetReleaseRequest { name: Some(name) };
    caller.releases().get_release(request).await.answer().release.unwrap()
}

pub(crate) fn start(release: &rpb::Release, steps: &[i32]) -> rpb::StartRolloutRequest {
    rpb::StartRolloutRequest {
        release_id: release.release_id.clone(),
        environment: ENVIRONMENT.to_owned(),
        step_exposures_bps: steps.to_vec(),
        ..Default::default()
    }
}

/// A release of this version, approved as a standard change, and its rollout.
pub(crate) async fn ship(caller: &Caller, version: &str, steps: &[i32]) -> rpb::Rollout {
    ship_to(caller, version, steps, rpb::AssignmentPolicy::NewVisits).await
}

pub(crate) async fn ship_to(
    caller: &Caller,
    version: &str,
    steps: &[i32],
    policy: rpb::AssignmentPolicy,
) -> rpb::Rollout {
    let release = submit(caller, &create_release(caller, version).await).await;
    let request = rpb::StartRolloutRequest { assignment_policy: policy.into(), ..start(&release, steps) };
    caller.rollouts().start_rollout(request).await.answer().rollout.unwrap()
}

pub(crate) async fn get_rollout(caller: &Caller, rollout: &rpb::Rollout) -> rpb::Rollout {
    let request = rpb::GetRolloutRequest { rollout_id: rollout.rollout_id.clone() };
    caller.rollouts().get_rollout(request).await.answer().rollout.unwrap()
}

pub(crate) fn advance(rollout: &rpb::Rollout) -> rpb::AdvanceRolloutRequest {
    rpb::AdvanceRolloutRequest { rollout_id: rollout.rollout_id.clone(), ..Default::default() }
}

pub(crate) async fn advance_rollout(caller: &Caller, rollout: &rpb::Rollout) -> rpb::Rollout {
    caller
        .rollouts()
        .advance_rollout(advance(rollout))
        .await
        .answer()
        .rollout
        .unwrap()
}

pub(crate) fn rollback(rollout: &rpb::Rollout) -> rpb::RollBackRolloutRequest {
    rpb::RollBackRolloutRequest {
        rollout_id: rollout.rollout_id.clone(),
        reason: "too many errors".to_owned(),
        ..Default::default()
    }
}

pub(crate) async fn roll_back(caller: &Caller, rollout: &rpb::Rollout) -> rpb::Rollout {
    caller
        .rollouts()
        .roll_back_rollout(rollback(rollout))
        .await
        .answer()
        .rollout
        .unwrap()
}
