//! The example of the local stack: tenant `shop`, touchpoint `web`, component `storefront`, its release 1.0 for everyone
//! in environment `local`. Made through the services' own methods where it is missing; what was changed since stays.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use shared::pb::common::Reason;
use shared::pb::release::{
    AssignmentPolicy, Component, CreateComponentRequest, CreateEnvironmentRequest, Environment, ReleaseState,
};
use shared::pb::session::session_service_client::SessionServiceClient;
use shared::pb::session::touchpoint_service_client::TouchpointServiceClient;
use shared::pb::session::{
    CreateSessionRequest, CreateTouchpointRequest, RevokeReason, RevokeSessionRequest, Touchpoint,
    ValidateSessionRequest, revoke_session_request,
};
use shared::secret::Secret;
use tonic::{Response, Status};

use crate::client::{self, Bearer, ReleaseClients};
use crate::error::Error;
use crate::ship::{self, ENVIRONMENT, Plan, Shipped};

const TOUCHPOINT: &str = "web";
const COMPONENT: &str = "storefront";
const VERSION: &str = "1.0";
/// How long a route takes at most from release-svc to session-svc before something is wrong.
const ROUTE_LIMIT: Duration = Duration::from_secs(15);
const ROUTE_POLL: Duration = Duration::from_millis(50);

/// Makes what is missing, and waits until sessions are pinned to it.
pub(crate) async fn run(
    session: SocketAddr,
    release: SocketAddr,
    token: &Secret<String>,
) -> Result<(), Error> {
    let is_routed = make_release(&mut ReleaseClients::new(release, token)).await?;
    make_touchpoint(session, token).await?;
    if is_routed { wait_for_route(session, token).await } else { Ok(()) }
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
    let plan = Plan {
        component: COMPONENT.to_owned(),
        version: VERSION.to_owned(),
        environment: ENVIRONMENT.to_owned(),
        notes: "The first release.".to_owned(),
        steps: Vec::new(),
        assignment: AssignmentPolicy::NewVisits,
    };
    match ship::ship(clients, &plan, |_| {}).await? {
        Shipped::Rollout(..) => Ok(true),
        Shipped::Waits(_) => Ok(false),
        // A newer one took its place.
        Shipped::Ended(release) => Ok(release.state() == ReleaseState::Superseded),
    }
}

async fn make_touchpoint(session: SocketAddr, token: &Secret<String>) -> Result<(), Error> {
    let touchpoint = Touchpoint {
        touchpoint: TOUCHPOINT.to_owned(),
        display_name: "Web shop".to_owned(),
        components: vec![COMPONENT.to_owned()],
        has_shoppers: true,
        ..Touchpoint::default()
    };
    let mut client = TouchpointServiceClient::with_interceptor(client::channel(session), Bearer::new(token));
    let request = CreateTouchpointRequest { touchpoint: Some(touchpoint), request_id: String::new() };
    unless(Reason::TouchpointExists, client.create_touchpoint(request).await)
}

/// Looks with a session of its own, which it ends again.
async fn wait_for_route(session: SocketAddr, token: &Secret<String>) -> Result<(), Error> {
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
    while !pins.iter().any(|pin| pin.component == COMPONENT) {
        if began.elapsed() > ROUTE_LIMIT {
            return Err(Error::Failed(format!(
                "session-svc did not hear of {COMPONENT} {VERSION} within {} s; session.log says why",
                ROUTE_LIMIT.as_secs()
            )));
        }
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
    Ok(())
}

/// What exists already is as good as made.
fn unless<T>(exists: Reason, outcome: Result<Response<T>, Status>) -> Result<(), Error> {
    match outcome {
        Err(status) if client::reason(&status) != Some(exists) => Err(status.into()),
        _ => Ok(()),
    }
}
