//! `VisitService`: which method answers which rpc.

use shared::pb::session as pb;
use shared::pb::session::visit_service_server::VisitService;
use tonic::{Request, Response, Status};

use crate::rpc::App;

#[tonic::async_trait]
impl VisitService for App {
    async fn hold_pin(
        &self,
        request: Request<pb::HoldPinRequest>,
    ) -> Result<Response<pb::HoldPinResponse>, Status> {
        Ok(Response::new(self.hold_pin(request).await?))
    }

    async fn release_pin(
        &self,
        request: Request<pb::ReleasePinRequest>,
    ) -> Result<Response<pb::ReleasePinResponse>, Status> {
        Ok(Response::new(self.release_pin(request).await?))
    }

    async fn record_outcome(
        &self,
        request: Request<pb::RecordOutcomeRequest>,
    ) -> Result<Response<pb::RecordOutcomeResponse>, Status> {
        Ok(Response::new(self.record_outcome(request).await?))
    }

    async fn kill_release(
        &self,
        request: Request<pb::KillReleaseRequest>,
    ) -> Result<Response<pb::KillReleaseResponse>, Status> {
        Ok(Response::new(self.kill_release(request).await?))
    }

    async fn unkill_release(
        &self,
        request: Request<pb::UnkillReleaseRequest>,
    ) -> Result<Response<pb::UnkillReleaseResponse>, Status> {
        Ok(Response::new(self.unkill_release(request).await?))
    }

    async fn list_kills(
        &self,
        request: Request<pb::ListKillsRequest>,
    ) -> Result<Response<pb::ListKillsResponse>, Status> {
        Ok(Response::new(self.list_kills(request).await?))
    }
}
