//! Calls to the services: the way there, the caller's token, and what an error says to a person.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use shared::pb::common::Reason;
use shared::pb::release::approval_service_client::ApprovalServiceClient;
use shared::pb::release::audit_service_client::AuditServiceClient;
use shared::pb::release::catalog_service_client::CatalogServiceClient;
use shared::pb::release::evidence_service_client::EvidenceServiceClient;
use shared::pb::release::release_service_client::ReleaseServiceClient;
use shared::pb::release::rollout_service_client::RolloutServiceClient;
use shared::secret::Secret;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A channel whose calls carry a token.
pub(crate) type Authorized = InterceptedService<Channel, Bearer>;

/// Puts an access token on every call.
#[derive(Clone)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    /// The header for this token.
    pub(crate) fn new(token: &Secret<String>) -> Self {
        let value = format!("Bearer {}", token.expose()).parse().ok();
        Self(value.map(|mut value: MetadataValue<Ascii>| {
            value.set_sensitive(true);
            value
        }))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// A channel that connects with its first call.
pub(crate) fn channel(address: SocketAddr) -> Channel {
    let uri = format!("http://{}", reachable(address));
    // An address always makes a URI.
    let endpoint = Endpoint::from_shared(uri).unwrap_or_else(|_| Endpoint::from_static("http://127.0.0.1"));
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(CALL_TIMEOUT)
        .tcp_nodelay(true)
        .connect_lazy()
}

/// Where a server that listens on `address` can be called from this machine.
pub(crate) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// What commands about releases call of release-svc.
pub(crate) struct ReleaseClients {
    /// Components and policies.
    pub(crate) catalog: CatalogServiceClient<Authorized>,
    /// Releases.
    pub(crate) releases: ReleaseServiceClient<Authorized>,
    /// Votes.
    pub(crate) approvals: ApprovalServiceClient<Authorized>,
    /// Rollouts.
    pub(crate) rollouts: RolloutServiceClient<Authorized>,
    /// What was found out about artifacts.
    pub(crate) evidence: EvidenceServiceClient<Authorized>,
    /// What happened.
    pub(crate) audit: AuditServiceClient<Authorized>,
}

impl ReleaseClients {
    /// Calls release-svc at `address` with this token.
    pub(crate) fn new(address: SocketAddr, token: &Secret<String>) -> Self {
        Self::over(&channel(address), &Bearer::new(token))
    }

    /// Calls it over this channel.
    pub(crate) fn over(channel: &Channel, bearer: &Bearer) -> Self {
        Self {
            catalog: CatalogServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            releases: ReleaseServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            approvals: ApprovalServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            rollouts: RolloutServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            evidence: EvidenceServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            audit: AuditServiceClient::with_interceptor(channel.clone(), bearer.clone()),
        }
    }
}

/// The reason that an error carries; `None` where it is not one of ours.
pub(crate) fn reason(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info()?;
    Reason::from_str_name(&format!("REASON_{}", info.reason))
}

/// The error as a sentence with its reason, and a line for each field or blocker that it names.
pub(crate) fn sentence(status: &Status) -> String {
    let details = status.get_error_details();
    let Some(info) = details.error_info() else {
        let hint = if status.code() == Code::Unavailable { "; does `tandem up` run?" } else { "" };
        return format!("the call failed: {}{hint} ({:?})", status.message(), status.code());
    };
    let mut lines = vec![format!("{} ({})", status.message(), info.reason)];
    // The first one is the message.
    let fields = details
        .bad_request()
        .into_iter()
        .flat_map(|bad| bad.field_violations.iter().skip(1));
    lines.extend(fields.map(|field| format!("  {}: {}", field.field, field.description)));
    let blockers = details
        .precondition_failure()
        .into_iter()
        .flat_map(|failure| &failure.violations)
        .filter(|blocker| blocker.description != status.message());
    lines.extend(
        blockers.map(|blocker| format!("  {} {}: {}", blocker.r#type, blocker.subject, blocker.description)),
    );
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use shared::status::{Blocker, Refusal};

    use super::*;

    #[test]
    fn every_blocker_is_told_and_the_reason_named() {
        let blocker = |kind, description: &str| Blocker {
            kind,
            subject: "storefront".to_owned(),
            description: description.to_owned(),
        };
        let blockers = [blocker("STATE", "is a draft"), blocker("EARLIER_ROLLOUT", "is not finished")];
        let refusal = Refusal::new(Reason::RolloutBlocked, "the rollout is held back").blocked_by(blockers);
        let status = refusal.into_status();
        assert_eq!(reason(&status), Some(Reason::RolloutBlocked));
        assert_eq!(
            sentence(&status),
            "the rollout is held back (ROLLOUT_BLOCKED)\n  STATE storefront: is a draft\n  \
             EARLIER_ROLLOUT storefront: is not finished"
        );
    }

    #[test]
    fn a_field_that_is_wrong_is_told_once() {
        let status = Refusal::field("version", "must be a version").into_status();
        assert_eq!(sentence(&status), "version: must be a version (FIELD_INVALID)");
    }

    #[test]
    fn a_server_on_every_address_is_called_on_loopback() {
        for (listens, called) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.0.0.1:1", "10.0.0.1:1")]
        {
            assert_eq!(reachable(listens.parse().unwrap()), called.parse().unwrap());
        }
    }
}
