//! What the stack needs before the traffic: the component with its own approval policy, and its place at the touchpoint.

use shared::pb::release::catalog_service_client::CatalogServiceClient;
use shared::pb::release::{
    ApprovalPolicy, Component, CreateApprovalPolicyRequest, CreateComponentRequest, GovernanceProfile,
};
use shared::pb::session::touchpoint_service_client::TouchpointServiceClient;
use shared::pb::session::{GetTouchpointRequest, Touchpoint, UpdateTouchpointRequest};
use shared::secret::Entropy;

use super::TOUCHPOINT;
use super::call::{Caller, Refused, request_id};
use crate::client::Authorized;

/// How often to read a touchpoint anew that someone else changes meanwhile.
const UPDATES_MAX: u32 = 5;

/// Makes the component and its policy of the same name, by which one other person has to approve; keeps those that exist.
pub(crate) async fn component(
    catalog: &CatalogServiceClient<Authorized>,
    name: &str,
    entropy: &Entropy,
    caller: &mut Caller,
) -> Result<(), Refused> {
    let policy = ApprovalPolicy {
        approval_policy: name.to_owned(),
        profile: GovernanceProfile::Starter.into(),
        quorum: 1,
        ..ApprovalPolicy::default()
    };
    let request =
        CreateApprovalPolicyRequest { approval_policy: Some(policy), request_id: request_id(entropy) };
    let create = async |request| catalog.clone().create_approval_policy(request).await;
    made(caller.call("CreateApprovalPolicy", request, create).await, "APPROVAL_POLICY_EXISTS")?;
    let component = Component {
        component: name.to_owned(),
        display_name: format!("{name}, from its public history"),
        approval_policy: name.to_owned(),
        ..Component::default()
    };
    let request = CreateComponentRequest { component: Some(component), request_id: request_id(entropy) };
    let create = async |request| catalog.clone().create_component(request).await;
    made(caller.call("CreateComponent", request, create).await, "COMPONENT_EXISTS")
}

fn made<A>(answer: Result<A, Refused>, exists: &str) -> Result<(), Refused> {
    match answer {
        Err(refused) if refused.reason != exists => Err(refused),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Adds the component to those that visits are pinned to, and leaves the touchpoint as it was otherwise.
pub(crate) async fn touchpoint(
    touchpoints: &TouchpointServiceClient<Authorized>,
    component: &str,
    entropy: &Entropy,
    caller: &mut Caller,
) -> Result<Touchpoint, Refused> {
    let mut updates = 0;
    loop {
        let request = GetTouchpointRequest { touchpoint: TOUCHPOINT.to_owned() };
        let get = async |request| touchpoints.clone().get_touchpoint(request).await;
        let answer = caller.call("GetTouchpoint", request, get).await?;
        let mut touchpoint = answer.touchpoint.unwrap_or_default();
        if touchpoint.components.iter().any(|present| present == component) {
            return Ok(touchpoint);
        }
        touchpoint.components.push(component.to_owned());
        let request =
            UpdateTouchpointRequest { touchpoint: Some(touchpoint), request_id: request_id(entropy) };
        let update = async |request| touchpoints.clone().update_touchpoint(request).await;
        match caller.call("UpdateTouchpoint", request, update).await {
            Err(refused) if refused.reason == "ETAG_MISMATCH" && updates < UPDATES_MAX => updates += 1,
            Err(refused) => return Err(refused),
            Ok(answer) => return Ok(answer.touchpoint.unwrap_or_default()),
        }
    }
}
