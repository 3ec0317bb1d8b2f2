//! One server as a process of this binary, which stops when its standard input is closed, however we end.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, ChildStdin, Command};
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::Outcome;

const READY_LIMIT: Duration = Duration::from_mins(1);
const READY_POLL: Duration = Duration::from_millis(1);
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// A running server.
pub(crate) struct Server {
    pub(crate) pid: u32,
    pub(crate) address: SocketAddr,
    /// From before it was started until it was serving.
    pub(crate) start: Duration,
    child: Child,
    leash: ChildStdin,
}

/// How to start one.
pub(crate) struct Launch<'a> {
    /// The subcommand.
    pub(crate) command: &'a str,
    /// Names its files in the folder.
    pub(crate) name: String,
    pub(crate) folder: &'a Path,
    pub(crate) variables: Vec<(&'static str, String)>,
    pub(crate) answer: Option<PathBuf>,
}

impl Launch<'_> {
    /// Starts it and waits until it is serving.
    pub(crate) async fn start(self) -> Outcome<Server> {
        let address_file = self.folder.join(format!("{}.addr", self.name));
        let log_file = self.folder.join(format!("{}.log", self.name));
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args([self.command, "--stop-with-stdin", "--listen", "127.0.0.1:0", "--address-file"])
            .arg(&address_file)
            // Nothing that the user has set shall be measured.
            .env_clear()
            .envs(self.variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(File::create(&log_file)?)
            .process_group(0)
            .kill_on_drop(true);
        if let Some(answer) = self.answer {
            command.arg("--answer").arg(answer);
        }
        let began = Instant::now();
        let mut child = command.spawn()?;
        let (leash, pid) = child.stdin.take().zip(child.id()).ok_or("the server ended at once")?;
        while began.elapsed() < READY_LIMIT {
            if let Some(status) = child.try_wait()? {
                let log = std::fs::read_to_string(&log_file)?;
                return Err(format!("{} ended with {status}:\n{log}", self.name).into());
            }
            let written = std::fs::read_to_string(&address_file).ok();
            if let Some(address) = written.and_then(|text| text.trim().parse().ok())
                && is_serving(address).await
            {
                std::fs::remove_file(&address_file)?;
                return Ok(Server { pid, address, start: began.elapsed(), child, leash });
            }
            tokio::time::sleep(READY_POLL).await;
        }
        Err(format!("{} was not ready within {READY_LIMIT:?}", self.name).into())
    }
}

impl Server {
    /// Lets it finish.
    pub(crate) async fn stop(self) -> Outcome<()> {
        let Self { mut child, leash, .. } = self;
        drop(leash);
        tokio::time::timeout(STOP_LIMIT, child.wait()).await??;
        Ok(())
    }
}

async fn is_serving(address: SocketAddr) -> bool {
    let Ok(endpoint) = Endpoint::from_shared(format!("http://{address}")) else { return false };
    let mut health = HealthClient::new(endpoint.connect_lazy());
    let answer = health.check(HealthCheckRequest::default()).await;
    answer.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving)
}
