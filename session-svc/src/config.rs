//! Settings of session-svc.

use std::path::PathBuf;

use shared::config::{Problems, ServiceArgs, ServiceConfig};
use shared::id::EnvironmentId;
use shared::id_token::IdentityProviders;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use uuid::Uuid;

use crate::link::LinkConfig;

const LISTEN: &str = "127.0.0.1:50051";
const ASSERTION_ISSUER: &str = "tandem";

/// Flags and variables.
#[derive(Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(crate) service: ServiceArgs,
    /// PostgreSQL of session-svc alone; goes before `DATABASE_URL`
    #[arg(long, env = "TANDEM_SESSION_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    session_database_url: Option<String>,
    /// The environment that this session-svc serves; release-svc's routes of it decide what visits see
    #[arg(long, env = "TANDEM_ENVIRONMENT", value_name = "NAME")]
    environment: Option<String>,
    /// JSON file that names the identity providers whose ID tokens log subjects in (docs/configuration.md)
    #[arg(long, env = "TANDEM_IDENTITY_PROVIDERS", value_name = "FILE")]
    identity_providers: Option<String>,
    /// Who issues assertions, as their `iss` names it before `/` and the tenant [default: tandem]
    #[arg(long, env = "TANDEM_ASSERTION_ISSUER", value_name = "NAME")]
    assertion_issuer: Option<String>,
    /// Address of release-svc, http://host:port or https://host:port; without it visits are pinned by the last known routes, or not at all
    #[arg(long, env = "TANDEM_RELEASE_URL", value_name = "URL")]
    release_url: Option<String>,
    /// PEM file with the authorities of release-svc's certificate [default: Mozilla's roots]
    #[arg(long, env = "TANDEM_RELEASE_CA", value_name = "FILE")]
    release_ca: Option<String>,
    /// File with session-svc's access token for release-svc (scope tandem.system), read for every connection
    #[arg(long, env = "TANDEM_RELEASE_TOKEN_FILE", value_name = "FILE")]
    release_token_file: Option<String>,
    /// UUID that no other running replica has, and that this one keeps when it is started again, so that a rollback
    /// does not wait for what it was before [default: a new one with every start]
    #[arg(long, env = "TANDEM_REPLICA_ID", value_name = "UUID")]
    replica_id: Option<String>,
}

/// [`Args`], parsed.
pub struct Config {
    /// What both services have.
    pub service: ServiceConfig,
    /// The environment that it serves.
    pub environment: EnvironmentId,
    /// Whose ID tokens log subjects in.
    pub identity_providers: Option<IdentityProviders>,
    /// What `iss` of its assertions begins with.
    pub assertion_issuer: String,
    /// The way to release-svc.
    pub link: Option<LinkConfig>,
}

impl Args {
    /// Parses everything, or says everything that is wrong.
    pub fn parse(self) -> Result<Config, Problems> {
        let mut problems = Problems::default();
        let service = self.service.parse(LISTEN, self.session_database_url, &mut problems);
        let environment = problems.required("TANDEM_ENVIRONMENT", self.environment.as_deref());
        let providers: Option<PathBuf> =
            problems.optional("TANDEM_IDENTITY_PROVIDERS", self.identity_providers.as_deref());
        let identity_providers = providers.and_then(|path| {
            let opened = IdentityProviders::open(&path);
            opened.map_err(|error| problems.add("TANDEM_IDENTITY_PROVIDERS", error)).ok()
        });
        let assertion_issuer = self.assertion_issuer.unwrap_or_else(|| ASSERTION_ISSUER.to_owned());
        let is_odd = |c: char| c.is_control() || c.is_whitespace();
        if assertion_issuer.is_empty() || assertion_issuer.ends_with('/') || assertion_issuer.contains(is_odd)
        {
            problems.add(
                "TANDEM_ASSERTION_ISSUER",
                "must be a name or a URL, without spaces or a `/` at its end",
            );
        }
        let endpoint: Option<Endpoint> = problems.optional("TANDEM_RELEASE_URL", self.release_url.as_deref());
        let endpoint =
            endpoint.and_then(|endpoint| secure(endpoint, self.release_ca.as_deref(), &mut problems));
        let token_file: Option<PathBuf> = match endpoint {
            Some(_) => problems.required("TANDEM_RELEASE_TOKEN_FILE", self.release_token_file.as_deref()),
            None => None,
        };
        let replica_id: Option<Uuid> = problems.optional("TANDEM_REPLICA_ID", self.replica_id.as_deref());
        let link = endpoint.zip(token_file).map(|(endpoint, token_file)| LinkConfig {
            endpoint,
            token_file,
            replica_id,
        });
        problems.check(service.zip(environment).map(|(service, environment)| Config {
            service,
            environment,
            identity_providers,
            assertion_issuer,
            link,
        }))
    }
}

/// TLS where the address says so, by the authorities of the file or else by Mozilla's roots.
fn secure(endpoint: Endpoint, ca: Option<&str>, problems: &mut Problems) -> Option<Endpoint> {
    if endpoint.uri().scheme_str() != Some("https") {
        if ca.is_some() {
            problems.add("TANDEM_RELEASE_CA", "needs a TANDEM_RELEASE_URL that begins with https://");
        }
        return Some(endpoint);
    }
    let pem = ca.map(std::fs::read).transpose();
    let pem = pem.map_err(|error| problems.add("TANDEM_RELEASE_CA", error)).ok()?;
    with_tls(endpoint, pem)
        .map_err(|error| problems.add("TANDEM_RELEASE_CA", error))
        .ok()
}

/// An endpoint whose certificate is checked against these authorities, or else against Mozilla's roots.
pub fn with_tls(endpoint: Endpoint, ca: Option<Vec<u8>>) -> Result<Endpoint, tonic::transport::Error> {
    let tls = ClientTlsConfig::new();
    endpoint.tls_config(match ca {
        Some(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
        None => tls.with_webpki_roots(),
    })
}
