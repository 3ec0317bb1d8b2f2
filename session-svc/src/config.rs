//! Settings of session-svc.

use std::path::PathBuf;

use shared::config::{Problems, ServiceArgs, ServiceConfig};
use shared::id::EnvironmentId;
use tonic::transport::Endpoint;
use uuid::Uuid;

use crate::link::LinkConfig;

const LISTEN: &str = "127.0.0.1:50051";

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
    /// Address of release-svc, http://host:port; without it visits are pinned by the last known routes, or not at all
    #[arg(long, env = "TANDEM_RELEASE_URL", value_name = "URL")]
    release_url: Option<String>,
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
    /// The way to release-svc.
    pub link: Option<LinkConfig>,
}

impl Args {
    /// Parses everything, or says everything that is wrong.
    pub fn parse(self) -> Result<Config, Problems> {
        let mut problems = Problems::default();
        let service = self.service.parse(LISTEN, self.session_database_url, &mut problems);
        let environment = problems.required("TANDEM_ENVIRONMENT", self.environment.as_deref());
        let endpoint: Option<Endpoint> = problems.optional("TANDEM_RELEASE_URL", self.release_url.as_deref());
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
            link,
        }))
    }
}
