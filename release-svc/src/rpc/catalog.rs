//! `CatalogService`: components, environments, approval policies and identity aliases.

use std::collections::BTreeSet;

use shared::parse::{at_most, line};
use shared::pb::release as pb;
use shared::pb::release::catalog_service_server::CatalogService;
use shared::status::Refusal;
use tonic::{Request, Response, Status};

use super::App;
use crate::domain::evidence::{Kind, Requirement};

mod care;
mod component;
mod dependency;
mod environment;
mod identity;
mod policy;

/// Evidence that is asked for, each once.
fn parse_evidence(field: &str, asked: Vec<pb::EvidenceRequirement>) -> Result<Vec<Requirement>, Refusal> {
    at_most(field, &asked, 32)?;
    let mut seen = BTreeSet::new();
    let parse = |(n, asked): (usize, pb::EvidenceRequirement)| {
        let field = format!("{field}[{n}]");
        let pb::EvidenceRequirement { kind, suite } = asked;
        let kind = Kind::from_name(&kind).ok_or_else(|| {
            let names = Kind::ALL.map(Kind::name).join(", ");
            Refusal::field(format!("{field}.kind"), format!("must be one of {names}"))
        })?;
        let requirement = Requirement { kind, suite: line(&format!("{field}.suite"), suite, 0, 100)? };
        if !seen.insert(requirement.clone()) {
            return Err(Refusal::field(field, "is there twice"));
        }
        Ok(requirement)
    };
    asked.into_iter().enumerate().map(parse).collect()
}

impl From<&Requirement> for pb::EvidenceRequirement {
    fn from(Requirement { kind, suite }: &Requirement) -> Self {
        Self { kind: kind.name().to_owned(), suite: suite.clone() }
    }
}

#[tonic::async_trait]
impl CatalogService for App {
    async fn create_component(
        &self,
        request: Request<pb::CreateComponentRequest>,
    ) -> Result<Response<pb::CreateComponentResponse>, Status> {
        Ok(Response::new(self.create_component(request).await?))
    }

    async fn get_component(
        &self,
        request: Request<pb::GetComponentRequest>,
    ) -> Result<Response<pb::GetComponentResponse>, Status> {
        Ok(Response::new(self.get_component(request).await?))
    }

    async fn list_components(
        &self,
        request: Request<pb::ListComponentsRequest>,
    ) -> Result<Response<pb::ListComponentsResponse>, Status> {
        Ok(Response::new(self.list_components(request).await?))
    }

    async fn update_component(
        &self,
        request: Request<pb::UpdateComponentRequest>,
    ) -> Result<Response<pb::UpdateComponentResponse>, Status> {
        Ok(Response::new(self.update_component(request).await?))
    }

    async fn create_environment(
        &self,
        request: Request<pb::CreateEnvironmentRequest>,
    ) -> Result<Response<pb::CreateEnvironmentResponse>, Status> {
        Ok(Response::new(self.create_environment(request).await?))
    }

    async fn get_environment(
        &self,
        request: Request<pb::GetEnvironmentRequest>,
    ) -> Result<Response<pb::GetEnvironmentResponse>, Status> {
        Ok(Response::new(self.get_environment(request).await?))
    }

    async fn list_environments(
        &self,
        request: Request<pb::ListEnvironmentsRequest>,
    ) -> Result<Response<pb::ListEnvironmentsResponse>, Status> {
        Ok(Response::new(self.list_environments(request).await?))
    }

    async fn update_environment(
        &self,
        request: Request<pb::UpdateEnvironmentRequest>,
    ) -> Result<Response<pb::UpdateEnvironmentResponse>, Status> {
        Ok(Response::new(self.update_environment(request).await?))
    }

    async fn set_identity_alias(
        &self,
        request: Request<pb::SetIdentityAliasRequest>,
    ) -> Result<Response<pb::SetIdentityAliasResponse>, Status> {
        Ok(Response::new(self.set_identity_alias(request).await?))
    }

    async fn delete_identity_alias(
        &self,
        request: Request<pb::DeleteIdentityAliasRequest>,
    ) -> Result<Response<pb::DeleteIdentityAliasResponse>, Status> {
        Ok(Response::new(self.delete_identity_alias(request).await?))
    }

    async fn list_identity_aliases(
        &self,
        request: Request<pb::ListIdentityAliasesRequest>,
    ) -> Result<Response<pb::ListIdentityAliasesResponse>, Status> {
        Ok(Response::new(self.list_identity_aliases(request).await?))
    }

    async fn create_approval_policy(
        &self,
        request: Request<pb::CreateApprovalPolicyRequest>,
    ) -> Result<Response<pb::CreateApprovalPolicyResponse>, Status> {
        Ok(Response::new(self.create_approval_policy(request).await?))
    }

    async fn get_approval_policy(
        &self,
        request: Request<pb::GetApprovalPolicyRequest>,
    ) -> Result<Response<pb::GetApprovalPolicyResponse>, Status> {
        Ok(Response::new(self.get_approval_policy(request).await?))
    }

    async fn update_approval_policy(
        &self,
        request: Request<pb::UpdateApprovalPolicyRequest>,
    ) -> Result<Response<pb::UpdateApprovalPolicyResponse>, Status> {
        Ok(Response::new(self.update_approval_policy(request).await?))
    }

    async fn confirm_approval_policy(
        &self,
        request: Request<pb::ConfirmApprovalPolicyRequest>,
    ) -> Result<Response<pb::ConfirmApprovalPolicyResponse>, Status> {
        Ok(Response::new(self.confirm_approval_policy(request).await?))
    }
}
