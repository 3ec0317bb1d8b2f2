//! `tandem check`: whether a service is healthy, by gRPC's health protocol. The image's health check.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::client;
use crate::error::Error;

const TIMEOUT: Duration = Duration::from_secs(2);

/// Options of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The service's address, IP:PORT; 0.0.0.0 and [::] stand for this machine
    #[arg(env = "TANDEM_LISTEN")]
    address: SocketAddr,
}

/// Asks the service.
pub(crate) async fn run(args: Args) -> Result<ExitCode, Error> {
    let Args { address } = args;
    health(address)
        .await
        .map_err(|why| Error::Failed(format!("{address} is not serving: {why}")))?;
    Ok(ExitCode::SUCCESS)
}

/// Whether the whole server is serving, and if not, why.
pub(crate) async fn health(address: SocketAddr) -> Result<(), String> {
    let mut health = HealthClient::new(client::channel(address));
    let answer = tokio::time::timeout(TIMEOUT, health.check(HealthCheckRequest::default())).await;
    let answer = answer.map_err(|_| format!("no answer within {} s", TIMEOUT.as_secs()))?;
    match answer.map(|answer| answer.into_inner().status()) {
        Ok(ServingStatus::Serving) => Ok(()),
        Ok(status) => Err(format!("it says {}", status.as_str_name())),
        Err(status) => Err(status.message().to_owned()),
    }
}
