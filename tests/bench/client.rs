//! The calls that load is made of: one process that calls over a few connections, as a tenant of a population or another.

use std::net::SocketAddr;
use std::sync::Arc;

use shared::pb::session as pb;
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
    clients: Arc<[SessionServiceClient<Channel>]>,
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
        let mut clients = vec![];
        for _ in 0..CONNECTIONS {
            clients.push(SessionServiceClient::new(connect(server.address).await?));
        }
        Ok(Self { pid: server.pid, clients: clients.into(), population: Arc::clone(population) })
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
        self.make(turn, None).await
    }

    /// Makes a session of somebody, which is an event.
    pub(crate) async fn create_bound(&self, turn: Turn) -> Outcome<()> {
        let subject = pb::Subject { issuer: "bench".to_owned(), sub: format!("{:016x}", turn.number) };
        self.make(turn, Some(subject)).await
    }

    async fn make(&self, turn: Turn, subject: Option<pb::Subject>) -> Outcome<()> {
        let request = pb::CreateSessionRequest {
            touchpoint: TOUCHPOINT.to_owned(),
            subject,
            ..pb::CreateSessionRequest::default()
        };
        self.client(turn).create_session(self.request(turn.number, request)).await?;
        Ok(())
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
        self.clients[turn.worker % self.clients.len()].clone()
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
