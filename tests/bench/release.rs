//! The calls that a rollout takes of release-svc.

use std::sync::Arc;
use std::time::Duration;

use shared::pb::release as pb;
use shared::pb::release::catalog_service_client::CatalogServiceClient;
use shared::pb::release::release_service_client::ReleaseServiceClient;
use shared::pb::release::rollout_service_client::RolloutServiceClient;
use shared::time::duration_to_proto;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use crate::Outcome;
use crate::client::connect;
use crate::server::Server;
use crate::stand::Stand;

/// The one that the stand's session services serve.
pub(crate) const ENVIRONMENT: &str = "bench";
/// Whose everything is.
pub(crate) const TENANT: &str = "shop";
const CONNECTIONS: usize = 4;

/// A program that ships releases.
#[derive(Clone)]
pub(crate) struct Pipeline {
    channels: Arc<[Channel]>,
    bearer: MetadataValue<Ascii>,
}

impl Pipeline {
    /// Connects, and makes the environment.
    pub(crate) async fn open(stand: &Stand, server: &Server) -> Outcome<Self> {
        let mut channels = vec![];
        for _ in 0..CONNECTIONS {
            channels.push(connect(server.address).await?);
        }
        let pipeline = Self { channels: channels.into(), bearer: stand.bearer(TENANT, "pipeline")? };
        let environment = pb::Environment { environment: ENVIRONMENT.to_owned(), ..Default::default() };
        let request = pb::CreateEnvironmentRequest { environment: Some(environment), ..Default::default() };
        pipeline.catalog(0).create_environment(pipeline.request(request)).await?;
        Ok(pipeline)
    }

    pub(crate) async fn create_component(&self, worker: usize, name: String) -> Outcome<()> {
        let component = pb::Component { component: name, ..Default::default() };
        let request = pb::CreateComponentRequest { component: Some(component), ..Default::default() };
        self.catalog(worker).create_component(self.request(request)).await?;
        Ok(())
    }

    /// Answers the release's id.
    pub(crate) async fn create_release(
        &self,
        worker: usize,
        component: String,
        version: String,
    ) -> Outcome<String> {
        let request = pb::CreateReleaseRequest { component, version, ..Default::default() };
        let answer = self.releases(worker).create_release(self.request(request)).await?.into_inner();
        Ok(answer.release.ok_or("no release in the answer")?.release_id)
    }

    pub(crate) async fn submit(&self, worker: usize, release_id: String) -> Outcome<()> {
        let request = pb::SubmitReleaseRequest { release_id, ..Default::default() };
        self.releases(worker).submit_release(self.request(request)).await?;
        Ok(())
    }

    pub(crate) async fn start(
        &self,
        worker: usize,
        release_id: String,
        step_exposures_bps: Vec<i32>,
        plan: pb::RolloutPlan,
    ) -> Outcome<pb::Rollout> {
        let request = pb::StartRolloutRequest {
            release_id,
            environment: ENVIRONMENT.to_owned(),
            step_exposures_bps,
            plan: Some(plan),
            ..Default::default()
        };
        let answer = self.rollouts(worker).start_rollout(self.request(request)).await?.into_inner();
        answer.rollout.ok_or_else(|| "no rollout in the answer".into())
    }

    /// The way from nothing to a rollout.
    pub(crate) async fn ship(
        &self,
        component: &str,
        version: &str,
        steps: Vec<i32>,
        plan: pb::RolloutPlan,
    ) -> Outcome<pb::Rollout> {
        let release = self.create_release(0, component.to_owned(), version.to_owned()).await?;
        self.submit(0, release.clone()).await?;
        self.start(0, release, steps, plan).await
    }

    pub(crate) async fn rollout(&self, worker: usize, rollout_id: String) -> Outcome<pb::GetRolloutResponse> {
        let request = pb::GetRolloutRequest { rollout_id };
        Ok(self.rollouts(worker).get_rollout(self.request(request)).await?.into_inner())
    }

    pub(crate) async fn roll_back(&self, worker: usize, rollout_id: String) -> Outcome<()> {
        let reason = "measured".to_owned();
        let request = pb::RollBackRolloutRequest { rollout_id, reason, ..Default::default() };
        self.rollouts(worker).roll_back_rollout(self.request(request)).await?;
        Ok(())
    }

    pub(crate) async fn explain(&self, worker: usize, release_id: String) -> Outcome<()> {
        let environment = ENVIRONMENT.to_owned();
        let request = pb::ExplainReleaseRequest { release_id, environment };
        self.releases(worker).explain_release(self.request(request)).await?;
        Ok(())
    }

    /// A page of a component's.
    pub(crate) async fn list(&self, worker: usize, component: String) -> Outcome<()> {
        let request = pb::ListReleasesRequest { component, ..Default::default() };
        self.releases(worker).list_releases(self.request(request)).await?;
        Ok(())
    }

    fn catalog(&self, worker: usize) -> CatalogServiceClient<Channel> {
        CatalogServiceClient::new(self.channel(worker))
    }

    fn releases(&self, worker: usize) -> ReleaseServiceClient<Channel> {
        ReleaseServiceClient::new(self.channel(worker))
    }

    fn rollouts(&self, worker: usize) -> RolloutServiceClient<Channel> {
        RolloutServiceClient::new(self.channel(worker))
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

/// A plan whose steps are watched for longer than anything is measured.
pub(crate) fn watched_by(guard: &str) -> pb::RolloutPlan {
    let guard = pb::Guard { name: guard.to_owned(), ..Default::default() };
    pb::RolloutPlan {
        min_bake: Some(duration_to_proto(Duration::from_hours(24))),
        guards: vec![guard],
        ..Default::default()
    }
}
