//! Visits to a shop whose front end runs in releases.

use std::sync::Arc;

use shared::pb::common::Money;
use shared::pb::session as pb;
use shared::pb::session::cart_service_client::CartServiceClient;
use shared::pb::session::session_service_client::SessionServiceClient;
use shared::pb::session::touchpoint_service_client::TouchpointServiceClient;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use crate::Outcome;
use crate::client::connect;
use crate::population::TOUCHPOINT;
use crate::release::TENANT;
use crate::server::Server;
use crate::stand::Stand;

const CONNECTIONS: usize = 4;

/// The front end of a shop, for everyone who comes.
#[derive(Clone)]
pub(crate) struct Storefront {
    channels: Arc<[Channel]>,
    bearer: MetadataValue<Ascii>,
}

impl Storefront {
    /// Connects, and makes the touchpoint, which carries this component.
    pub(crate) async fn open(stand: &Stand, server: &Server, component: &str) -> Outcome<Self> {
        let mut channels = vec![];
        for _ in 0..CONNECTIONS {
            channels.push(connect(server.address).await?);
        }
        let storefront = Self { channels: channels.into(), bearer: stand.bearer(TENANT, "storefront")? };
        let touchpoint = pb::Touchpoint {
            touchpoint: TOUCHPOINT.to_owned(),
            components: vec![component.to_owned()],
            has_shoppers: true,
            ..pb::Touchpoint::default()
        };
        let request = pb::CreateTouchpointRequest { touchpoint: Some(touchpoint), request_id: String::new() };
        let mut touchpoints = TouchpointServiceClient::new(storefront.channel(0));
        touchpoints.create_touchpoint(storefront.request(request)).await?;
        Ok(storefront)
    }

    /// Somebody comes, for the first time.
    pub(crate) async fn visit(&self, worker: usize) -> Outcome<pb::CreateSessionResponse> {
        let request = pb::CreateSessionRequest {
            touchpoint: TOUCHPOINT.to_owned(),
            ..pb::CreateSessionRequest::default()
        };
        let mut sessions = SessionServiceClient::new(self.channel(worker));
        Ok(sessions.create_session(self.request(request)).await?.into_inner())
    }

    /// Who has this session buys one article.
    pub(crate) async fn buy(&self, worker: usize, session_token: &str, order: u64) -> Outcome<()> {
        let owner = pb::shopper_selector::Owner::SessionToken(session_token.to_owned());
        let owner = Some(pb::ShopperSelector { owner: Some(owner) });
        let currency_code = "EUR".to_owned();
        let mut carts = CartServiceClient::new(self.channel(worker));
        let request = pb::AddCartLineRequest {
            owner: owner.clone(),
            sku: "sku".to_owned(),
            quantity: 1,
            unit_price: Some(Money { currency_code: currency_code.clone(), minor_units: 1_000 }),
            ..pb::AddCartLineRequest::default()
        };
        carts.add_cart_line(self.request(request)).await?;
        let request = pb::BeginCheckoutRequest {
            owner: owner.clone(),
            currency_code: currency_code.clone(),
            ..pb::BeginCheckoutRequest::default()
        };
        carts.begin_checkout(self.request(request)).await?;
        let order_ref = format!("order-{order}");
        let request =
            pb::CompleteCheckoutRequest { owner, currency_code, order_ref, request_id: String::new() };
        carts.complete_checkout(self.request(request)).await?;
        Ok(())
    }

    fn channel(&self, worker: usize) -> Channel {
        self.channels[worker % self.channels.len()].clone()
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.bearer.clone());
        request
    }
}
