//! `SessionService`: which method answers which rpc.

use shared::pb::session as pb;
use shared::pb::session::session_service_server::SessionService;
use tonic::{Request, Response, Status};

use super::App;

#[tonic::async_trait]
impl SessionService for App {
    async fn create_session(
        &self,
        request: Request<pb::CreateSessionRequest>,
    ) -> Result<Response<pb::CreateSessionResponse>, Status> {
        Ok(Response::new(self.create_session(request).await?))
    }

    async fn validate_session(
        &self,
        request: Request<pb::ValidateSessionRequest>,
    ) -> Result<Response<pb::ValidateSessionResponse>, Status> {
        Ok(Response::new(self.validate(request).await?))
    }

    async fn get_session(
        &self,
        request: Request<pb::GetSessionRequest>,
    ) -> Result<Response<pb::GetSessionResponse>, Status> {
        Ok(Response::new(self.get_session(request).await?))
    }

    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Result<Response<pb::ListSessionsResponse>, Status> {
        Ok(Response::new(self.list_sessions(request).await?))
    }

    async fn revoke_session(
        &self,
        request: Request<pb::RevokeSessionRequest>,
    ) -> Result<Response<pb::RevokeSessionResponse>, Status> {
        Ok(Response::new(self.revoke_session(request).await?))
    }

    async fn authenticate_session(
        &self,
        request: Request<pb::AuthenticateSessionRequest>,
    ) -> Result<Response<pb::AuthenticateSessionResponse>, Status> {
        Ok(Response::new(self.authenticate_session(request).await?))
    }

    async fn rotate_session(
        &self,
        request: Request<pb::RotateSessionRequest>,
    ) -> Result<Response<pb::RotateSessionResponse>, Status> {
        Ok(Response::new(self.rotate_session(request).await?))
    }

    async fn revoke_subject_sessions(
        &self,
        request: Request<pb::RevokeSubjectSessionsRequest>,
    ) -> Result<Response<pb::RevokeSubjectSessionsResponse>, Status> {
        Ok(Response::new(self.revoke_subject_sessions(request).await?))
    }

    async fn revoke_touchpoint_sessions(
        &self,
        request: Request<pb::RevokeTouchpointSessionsRequest>,
    ) -> Result<Response<pb::RevokeTouchpointSessionsResponse>, Status> {
        Ok(Response::new(self.revoke_touchpoint_sessions(request).await?))
    }

    async fn revoke_tenant_sessions(
        &self,
        request: Request<pb::RevokeTenantSessionsRequest>,
    ) -> Result<Response<pb::RevokeTenantSessionsResponse>, Status> {
        Ok(Response::new(self.revoke_tenant_sessions(request).await?))
    }

    async fn disable_subject(
        &self,
        request: Request<pb::DisableSubjectRequest>,
    ) -> Result<Response<pb::DisableSubjectResponse>, Status> {
        Ok(Response::new(self.disable_subject(request).await?))
    }

    async fn enable_subject(
        &self,
        request: Request<pb::EnableSubjectRequest>,
    ) -> Result<Response<pb::EnableSubjectResponse>, Status> {
        Ok(Response::new(self.enable_subject(request).await?))
    }

    async fn grant_elevation(
        &self,
        request: Request<pb::GrantElevationRequest>,
    ) -> Result<Response<pb::GrantElevationResponse>, Status> {
        Ok(Response::new(self.grant_elevation(request).await?))
    }

    async fn redeem_elevation(
        &self,
        request: Request<pb::RedeemElevationRequest>,
    ) -> Result<Response<pb::RedeemElevationResponse>, Status> {
        Ok(Response::new(self.redeem_elevation(request).await?))
    }

    async fn update_session_attributes(
        &self,
        request: Request<pb::UpdateSessionAttributesRequest>,
    ) -> Result<Response<pb::UpdateSessionAttributesResponse>, Status> {
        Ok(Response::new(self.update_session_attributes(request).await?))
    }

    async fn issue_assertion(
        &self,
        request: Request<pb::IssueAssertionRequest>,
    ) -> Result<Response<pb::IssueAssertionResponse>, Status> {
        Ok(Response::new(self.issue_assertion(request).await?))
    }

    async fn get_assertion_keys(
        &self,
        request: Request<pb::GetAssertionKeysRequest>,
    ) -> Result<Response<pb::GetAssertionKeysResponse>, Status> {
        Ok(Response::new(self.get_assertion_keys(&request)?))
    }

    async fn report_leaked_token(
        &self,
        request: Request<pb::ReportLeakedTokenRequest>,
    ) -> Result<Response<pb::ReportLeakedTokenResponse>, Status> {
        Ok(Response::new(self.report_leaked_token(request).await?))
    }
}
