//! The example of the local stack: tenant `shop`, touchpoint `web`, component `storefront`, its release 1.0 for everyone
//! in environment `local`. Made through the services' own methods where it is missing; what was changed since stays.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use shared::pb::common::Reason;
use shared::pb::release::{
    AssignmentPolicy, Component, CreateComponentRequest, CreateEnvironmentRequest, Environment,
};
use shared::pb::session::session_service_client::SessionServiceClient;
use shared::pb::session::touchpoint_service_client::TouchpointServiceClient;
use shared::pb::session::{
    CreateSessionRequest, CreateTouchpointRequest, GetTouchpointRequest, ReleasePin, RevokeReason,
    RevokeSessionRequest, Touchpoint, ValidateSessionRequest, revoke_session_request,
};
use shared::secret::Secret;
use tonic::{Response, Status};

use crate::client::{self, Bearer, ReleaseClients};
use crate::error::Error;
use crate::release::change::Text;
use crate::ship::{self, ENVIRONMENT, Plan, Shipped};

const TOUCHPOINT: &str = "web";
const COMPONENT: &str = "storefront";
const VERSION: &str = "1.0";
/// How long a route takes at most from release-svc to session-svc before people are told.
const ROUTE_LIMIT: Duration = Duration::from_secs(15);
const ROUTE_POLL: Duration = Duration::from_millis(50);

/// Makes what is missing, and waits until sessions are pinned to it.
pub(crate) async fn run(
    session: SocketAddr,
    release: SocketAddr,
    token: &Secret<String>,
    note: impl Fn(&str),
) -> Result<(), Error> {
    let is_routed = make_release(&mut ReleaseClients::new(release, token)).await?;
    let is_carried = make_touchpoint(session, token).await?;
    if is_routed && is_carried && !wait_for_route(session, token).await? {
        note(&format!(
            "session-svc did not hear of a release of {COMPONENT} within {} s; session.log says why",
            ROUTE_LIMIT.as_secs()
        ));
    }
    Ok(())
}

/// Whether visits can be pinned to a release now.
async fn make_release(clients: &mut ReleaseClients) -> Result<bool, Error> {
    let environment = Environment {
        environment: ENVIRONMENT.to_owned(),
        display_name: "This machine".to_owned(),
        ..Environment::default()
    };
    let request = CreateEnvironmentRequest { environment: Some(environment), request_id: String::new() };
    unless(Reason::EnvironmentExists, clients.catalog.create_environment(request).await)?;
    let component = Component {
        component: COMPONENT.to_owned(),
        display_name: "Storefront".to_owned(),
        approval_policy: "starter".to_owned(),
        ..Component::default()
    };
    let request = CreateComponentRequest { component: Some(component), request_id: String::new() };
    unless(Reason::ComponentExists, clients.catalog.create_component(request).await)?;
    // What the environment serves is not the example's business any more.
    if ship::newest_rollout(clients, COMPONENT, ENVIRONMENT, &ship::EXPOSED)
        .await?
        .is_some()
    {
        return Ok(true);
    }
    let plan = Plan {
        component: COMPONENT.to_owned(),
        version: VERSION.to_owned(),
        environment: ENVIRONMENT.to_owned(),
        text: Text::of_notes("The first release."),
        steps: Vec::new(),
        assignment: AssignmentPolicy::NewVisits,
        guards: Vec::new(),
        bake: None,
    };
    match ship::ship(clients, &plan, |_| {}).await? {
        Shipped::Rollout(..) => Ok(true),
        Shipped::Waits(_) | Shipped::Ended(_) => Ok(false),
    }
}

/// Whether it carries the component, which someone may have changed since it was made.
async fn make_touchpoint(session: SocketAddr, token: &Secret<String>) -> Result<bool, Error> {
    let touchpoint = Touchpoint {
        touchpoint: TOUCHPOINT.to_owned(),
        display_name: "Web shop".to_owned(),
        components: vec![COMPONENT.to_owned()],
        has_shoppers: true,
        ..Touchpoint::default()
    };
    let mut client = TouchpointServiceClient::with_interceptor(client::channel(session), Bearer::new(token));
    let request = CreateTouchpointRequest { touchpoint: Some(touchpoint), request_id: String::new() };
    unless(Reason::TouchpointExists, client.create_touchpoint(request).await)?;
    let request = GetTouchpointRequest { touchpoint: TOUCHPOINT.to_owned() };
    let stored = client
        .get_touchpoint(request)
        .await?
        .into_inner()
        .touchpoint
        .unwrap_or_default();
    Ok(stored.components.iter().any(|component| component == COMPONENT))
}

/// Whether a session got pinned within the limit. Looks with one of its own, which it ends again.
async fn wait_for_route(session: SocketAddr, token: &Secret<String>) -> Result<bool, Error> {
    let mut client = SessionServiceClient::with_interceptor(client::channel(session), Bearer::new(token));
    let request = CreateSessionRequest {
        touchpoint: TOUCHPOINT.to_owned(),
        device: "tandem up".to_owned(),
        ..CreateSessionRequest::default()
    };
    let created = client.create_session(request).await?.into_inner();
    let session_token = created.session_token;
    let mut pins = created.pins;
    let began = Instant::now();
    let is_pinned = |pins: &[ReleasePin]| pins.iter().any(|pin| pin.component == COMPONENT);
    while !is_pinned(&pins) && began.elapsed() < ROUTE_LIMIT {
        tokio::time::sleep(ROUTE_POLL).await;
        let request = ValidateSessionRequest {
            session_token: session_token.clone(),
            touchpoint: TOUCHPOINT.to_owned(),
            ..ValidateSessionRequest::default()
        };
        pins = client.validate_session(request).await?.into_inner().pins;
    }
    let request = RevokeSessionRequest {
        target: Some(revoke_session_request::Target::SessionToken(session_token)),
        reason: RevokeReason::Logout.into(),
        request_id: String::new(),
    };
    client.revoke_session(request).await?;
    Ok(is_pinned(&pins))
}

/// What exists already is as good as made.
fn unless<T>(exists: Reason, outcome: Result<Response<T>, Status>) -> Result<(), Error> {
    match outcome {
        Err(status) if client::reason(&status) != Some(exists) => Err(status.into()),
        _ => Ok(()),
    }
}
