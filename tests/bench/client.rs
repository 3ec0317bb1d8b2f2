//! The calls that load is made of: one process that calls over a few connections, as a tenant of a population or another.

use std::net::SocketAddr;
use std::sync::Arc;

use shared::pb::common::Money;
use shared::pb::session as pb;
use shared::pb::session::cart_service_client::CartServiceClient;
use shared::pb::session::session_service_client::SessionServiceClient;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use crate::Outcome;
use crate::load::Turn;
use crate::population::{Population, TOUCHPOINT, id_of, token_of};
use crate::server::Server;

const CONNECTIONS: usize = 8;

/// A caller of one server.
#[derive(Clone)]
pub(crate) struct Client {
    /// The server's process.
    pub(crate) pid: u32,
    channels: Arc<[Channel]>,
    pub(crate) population: Arc<Population>,
}

/// A connection of its own.
pub(crate) async fn connect(address: SocketAddr) -> Outcome<Channel> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?
        .tcp_nodelay(true)
        .connect()
        .await?)
}

impl Client {
    /// Connects.
    pub(crate) async fn new(server: &Server, population: &Arc<Population>) -> Outcome<Self> {
        let mut channels = vec![];
        for _ in 0..CONNECTIONS {
            channels.push(connect(server.address).await?);
        }
        Ok(Self { pid: server.pid, channels: channels.into(), population: Arc::clone(population) })
    }

    /// Validates a session of the population, which must live.
    pub(crate) async fn validate(&self, turn: Turn, consistency: pb::Consistency) -> Outcome<()> {
        let answer = self.verdict(turn, consistency).await?;
        if answer.verdict() == pb::Verdict::Active {
            Ok(())
        } else {
            Err(format!("session {} is {:?}", turn.number % self.population.count, answer.verdict()).into())
        }
    }

    /// Validates a session of the population.
    pub(crate) async fn verdict(
        &self,
        turn: Turn,
        consistency: pb::Consistency,
    ) -> Outcome<pb::ValidateSessionResponse> {
        let number = turn.number % self.population.count;
        let request = self.request(
            number,
            pb::ValidateSessionRequest {
                session_token: token_of(number).expose(),
                touchpoint: TOUCHPOINT.to_owned(),
                consistency: consistency.into(),
                ..pb::ValidateSessionRequest::default()
            },
        );
        Ok(self.client(turn).validate_session(request).await?.into_inner())
    }

    /// Makes an anonymous session.
    pub(crate) async fn create(&self, turn: Turn) -> Outcome<()> {
        self.make(turn, None).await.map(drop)
    }

    /// Makes a session of somebody, which is an event.
    pub(crate) async fn create_bound(&self, turn: Turn) -> Outcome<()> {
        self.make(turn, Some(subject(turn.number))).await.map(drop)
    }

    /// Makes a session of somebody who has a cart from then on; again somebody, if it is asked for twice.
    pub(crate) async fn create_with_cart(&self, turn: Turn) -> Outcome<()> {
        let made = self.make(turn, Some(subject(turn.number))).await?;
        self.add_line(turn, made.session_token, "own").await.map(drop)
    }

    /// Puts one of an article into the cart of a session; answers the cart.
    pub(crate) async fn add_line(&self, turn: Turn, session_token: String, sku: &str) -> Outcome<pb::Cart> {
        let owner = pb::shopper_selector::Owner::SessionToken(session_token);
        let request = pb::AddCartLineRequest {
            owner: Some(pb::ShopperSelector { owner: Some(owner) }),
            sku: sku.to_owned(),
            quantity: 1,
            unit_price: Some(Money { currency_code: "EUR".to_owned(), minor_units: 1_000 }),
            ..pb::AddCartLineRequest::default()
        };
        let mut carts = CartServiceClient::new(self.channel(turn));
        let answer = carts.add_cart_line(self.request(turn.number, request)).await?.into_inner();
        answer.cart.ok_or_else(|| "no cart in the answer".into())
    }

    /// Sets the quantity of a line in the cart of a session of the population.
    pub(crate) async fn set_line(&self, turn: Turn, line_id: &str) -> Outcome<()> {
        let (count, most) = (self.population.count, 1_000);
        let number = turn.number % count;
        let owner = pb::shopper_selector::Owner::SessionToken(token_of(number).expose());
        let request = pb::SetCartLineQuantityRequest {
            owner: Some(pb::ShopperSelector { owner: Some(owner) }),
            currency_code: "EUR".to_owned(),
            line_id: line_id.to_owned(),
            quantity: i32::try_from(turn.number / count % most)? + 1,
            ..pb::SetCartLineQuantityRequest::default()
        };
        let mut carts = CartServiceClient::new(self.channel(turn));
        carts.set_cart_line_quantity(self.request(number, request)).await?;
        Ok(())
    }

    /// Logs an anonymous session of the population in; says how many carts were merged.
    pub(crate) async fn authenticate(&self, turn: Turn, who: u64) -> Outcome<usize> {
        let asserted =
            pb::AssertedIdentity { subject: Some(subject(who)), level: 1, ..pb::AssertedIdentity::default() };
        let request = pb::AuthenticateSessionRequest {
            session_token: token_of(turn.number).expose(),
            proof: Some(pb::authenticate_session_request::Proof::Asserted(asserted)),
            merge_strategy: pb::MergeStrategy::SumCapped.into(),
            ..pb::AuthenticateSessionRequest::default()
        };
        let request = self.request(turn.number, request);
        Ok(self
            .client(turn)
            .authenticate_session(request)
            .await?
            .into_inner()
            .cart_merges
            .len())
    }

    async fn make(&self, turn: Turn, subject: Option<pb::Subject>) -> Outcome<pb::CreateSessionResponse> {
        let request = pb::CreateSessionRequest {
            touchpoint: TOUCHPOINT.to_owned(),
            subject,
            ..pb::CreateSessionRequest::default()
        };
        let request = self.request(turn.number, request);
        Ok(self.client(turn).create_session(request).await?.into_inner())
    }

    /// Revokes a session of the population.
    pub(crate) async fn revoke(&self, turn: Turn) -> Outcome<()> {
        let number = turn.number % self.population.count;
        let request = self.request(
            number,
            pb::RevokeSessionRequest {
                target: Some(pb::revoke_session_request::Target::SessionId(id_of(number).to_string())),
                reason: pb::RevokeReason::Admin.into(),
                request_id: String::new(),
            },
        );
        self.client(turn).revoke_session(request).await?;
        Ok(())
    }

    fn client(&self, turn: Turn) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(self.channel(turn))
    }

    fn channel(&self, turn: Turn) -> Channel {
        self.channels[turn.worker % self.channels.len()].clone()
    }

    /// With the bearer token of the session's tenant.
    fn request<T>(&self, number: u64, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("authorization", self.population.bearer(number).clone());
        request
    }
}

fn subject(number: u64) -> pb::Subject {
    pb::Subject { issuer: "bench".to_owned(), sub: format!("{number:016x}") }
}
