//! Settings of release-svc.

use shared::config::{Problems, ServiceArgs, ServiceConfig};

const LISTEN: &str = "127.0.0.1:50052";

/// Flags and variables as text.
#[derive(Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub service: ServiceArgs,
    /// PostgreSQL of this service, where it is not the one of --database-url
    #[arg(long, env = "TANDEM_RELEASE_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub release_database_url: Option<String>,
}

/// Settings that make sense.
pub struct Config {
    pub service: ServiceConfig,
}

impl Args {
    /// Parses everything and reports everything that is wrong.
    pub fn parse(self) -> Result<Config, Problems> {
        let mut problems = Problems::default();
        let service = self.service.parse(LISTEN, self.release_database_url, &mut problems);
        problems.check(service.map(|service| Config { service }))
    }
}
