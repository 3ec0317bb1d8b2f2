//! Someone with an access token, and a client for everything that can be called.

use shared::pb::common::event_service_client::EventServiceClient;
use shared::pb::common::webhook_service_client::WebhookServiceClient;
use shared::pb::release::approval_service_client::ApprovalServiceClient;
use shared::pb::release::audit_service_client::AuditServiceClient;
use shared::pb::release::catalog_service_client::CatalogServiceClient;
use shared::pb::release::evidence_service_client::EvidenceServiceClient;
use shared::pb::release::executor_service_client::ExecutorServiceClient;
use shared::pb::release::insight_service_client::InsightServiceClient;
use shared::pb::release::release_service_client::ReleaseServiceClient;
use shared::pb::release::rollout_service_client::RolloutServiceClient;
use shared::pb::release::routing_service_client::RoutingServiceClient;
use shared::pb::release::window_service_client::WindowServiceClient;
use shared::pb::session::cart_service_client::CartServiceClient;
use shared::pb::session::session_service_client::SessionServiceClient;
use shared::pb::session::shopper_service_client::ShopperServiceClient;
use shared::pb::session::touchpoint_service_client::TouchpointServiceClient;
use shared::pb::session::visit_service_client::VisitServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::Service;

/// A channel that shows a token.
pub(crate) type Authorized = InterceptedService<Channel, Bearer>;

/// Shows a token with every call; or none.
#[derive(Clone)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.0 {
            request.metadata_mut().insert("authorization", header.clone());
        }
        Ok(request)
    }
}

/// Someone who calls.
#[derive(Clone)]
pub(crate) struct Caller {
    bearer: Bearer,
    session: Option<Channel>,
    release: Option<Channel>,
}

macro_rules! clients {
    ($($name:ident: $client:ident of $service:ident;)+) => {$(
        pub(crate) fn $name(&self) -> $client<Authorized> {
            $client::new(self.channel(self.$service.as_ref()))
        }
    )+};
}

impl Caller {
    pub(crate) fn new(token: &str, session: Option<Channel>, release: Option<Channel>) -> Self {
        let header = format!("Bearer {token}").parse().unwrap();
        Self { bearer: Bearer(Some(header)), session, release }
    }

    /// The same with another `authorization`, or with none.
    pub(crate) fn with_header(&self, header: Option<&str>) -> Self {
        Self { bearer: Bearer(header.map(|header| header.parse().unwrap())), ..self.clone() }
    }

    /// The same, calling another replica of session-svc.
    pub(crate) fn at_session(&self, replica: &Service) -> Self {
        Self { session: Some(replica.channel.clone()), ..self.clone() }
    }

    /// The same, calling another replica of release-svc.
    pub(crate) fn at_release(&self, replica: &Service) -> Self {
        Self { release: Some(replica.channel.clone()), ..self.clone() }
    }

    clients! {
        sessions: SessionServiceClient of session;
        touchpoints: TouchpointServiceClient of session;
        carts: CartServiceClient of session;
        shoppers: ShopperServiceClient of session;
        visits: VisitServiceClient of session;
        session_events: EventServiceClient of session;
        webhooks: WebhookServiceClient of session;
        catalog: CatalogServiceClient of release;
        releases: ReleaseServiceClient of release;
        approvals: ApprovalServiceClient of release;
        evidence: EvidenceServiceClient of release;
        rollouts: RolloutServiceClient of release;
        executors: ExecutorServiceClient of release;
        routing: RoutingServiceClient of release;
        audit: AuditServiceClient of release;
        insight: InsightServiceClient of release;
        windows: WindowServiceClient of release;
        release_events: EventServiceClient of release;
        release_webhooks: WebhookServiceClient of release;
    }

    /// The channel to session-svc, for what has no typed client.
    pub(crate) fn session_channel(&self) -> Authorized {
        self.channel(self.session.as_ref())
    }

    /// The channel to release-svc, for what has no typed client.
    pub(crate) fn release_channel(&self) -> Authorized {
        self.channel(self.release.as_ref())
    }

    fn channel(&self, service: Option<&Channel>) -> Authorized {
        let channel = service.expect("the test started this service").clone();
        InterceptedService::new(channel, self.bearer.clone())
    }
}
