//! A running stack: started, called, stopped, and its logs told where a test fails.

use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;
use shared::pb::release::catalog_service_client::CatalogServiceClient;
use shared::pb::release::release_service_client::ReleaseServiceClient;
use shared::pb::release::rollout_service_client::RolloutServiceClient;
use shared::pb::session::cart_service_client::CartServiceClient;
use shared::pb::session::session_service_client::SessionServiceClient;
use shared::pb::session::shopper_service_client::ShopperServiceClient;
use shared::pb::session::{
    Consistency, CreateSessionRequest, CreateSessionResponse, ValidateSessionRequest, ValidateSessionResponse,
};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::process::{self, Folder, poll};

/// Where no PostgreSQL is installed, one is fetched first.
const UP_LIMIT: Duration = Duration::from_mins(3);
/// Above what `up` allows services and PostgreSQL.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(40);
const COMMAND_LIMIT: Duration = Duration::from_secs(20);
const TAIL_LINES: usize = 25;
const LOGS: [&str; 5] = ["up.out", "up.err", "session.log", "release.log", "postgres/postgres.log"];

/// What `up` prints last.
const IS_UP: &str = "Tandem is up";

/// A stack of a test's own.
pub(crate) struct Stack {
    pub(crate) folder: Folder,
    listen: [SocketAddr; 2],
    variables: Vec<(&'static str, String)>,
    up: Option<Child>,
    token: OnceLock<String>,
}

/// What `stack.json` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pids {
    pub(crate) up: u32,
    pub(crate) postgres: u32,
    pub(crate) session: u32,
    pub(crate) release: u32,
}

impl Stack {
    /// Starts one and waits until it is up.
    pub(crate) fn start(name: &str, variables: &[(&'static str, String)]) -> Self {
        let mut stack = Self::prepare(name, variables);
        stack.up(&[]);
        stack
    }

    /// A folder and ports for one.
    pub(crate) fn prepare(name: &str, variables: &[(&'static str, String)]) -> Self {
        let folder = Folder::new(name);
        let listen = [process::free_address(), process::free_address()];
        Self { folder, listen, variables: variables.to_vec(), up: None, token: OnceLock::new() }
    }

    /// Runs `up` in the folder, again if it has run there before.
    pub(crate) fn up(&mut self, options: &[&str]) {
        assert!(self.up.is_none(), "it runs already");
        let [out, err] = ["up.out", "up.err"].map(|name| self.log_file(name));
        let mut command = self.up_command();
        command.args(options).stdout(out).stderr(err);
        let up = self.up.insert(self.folder.spawn(&mut command));
        let out = self.folder.path.join("up.out");
        let is_up = poll(UP_LIMIT, || {
            let ended = up
                .try_wait()
                .expect("a child can be waited for")
                .map(|status| Err(status.to_string()));
            ended.or_else(|| process::read(&out).contains(IS_UP).then_some(Ok(())))
        });
        let is_up = is_up.unwrap_or_else(|| Err(format!("no word of it after {UP_LIMIT:?}")));
        assert_eq!(is_up, Ok(()), "the stack is not up");
    }

    /// `tandem up` with what this stack is started with.
    pub(crate) fn up_command(&self) -> Command {
        let mut command = self.tandem(&["up"]);
        let [session, release] = self.listen.map(|address| address.to_string());
        command.args(["--session-listen", &session, "--release-listen", &release]);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// A command that finds this stack.
    pub(crate) fn tandem(&self, arguments: &[&str]) -> Command {
        let mut command = process::tandem();
        command.args(arguments).env("TANDEM_DATA_DIR", &self.folder.path);
        command
    }

    /// A fresh access token.
    pub(crate) fn sign(&self, options: &[&str]) -> String {
        let output = process::run(self.tandem(&["token"]).args(options), COMMAND_LIMIT);
        assert!(output.status.success(), "tandem token: {}", process::said(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The access token of [`Stack::ask`].
    pub(crate) fn token(&self) -> &str {
        self.token.get_or_init(|| self.sign(&[]))
    }

    /// A call in the name of `dev`, who may do everything.
    pub(crate) fn ask<T>(&self, message: T) -> Request<T> {
        ask_as(self.token(), message)
    }

    /// The same as part of a trace of the caller's.
    pub(crate) fn ask_in<T>(&self, trace_parent: &str, message: T) -> Request<T> {
        let mut request = self.ask(message);
        request
            .metadata_mut()
            .insert("traceparent", trace_parent.parse().expect("a header"));
        request
    }

    pub(crate) const fn session_address(&self) -> SocketAddr {
        self.listen[0]
    }

    pub(crate) const fn release_address(&self) -> SocketAddr {
        self.listen[1]
    }

    pub(crate) fn sessions(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(channel(self.listen[0]))
    }

    pub(crate) fn carts(&self) -> CartServiceClient<Channel> {
        CartServiceClient::new(channel(self.listen[0]))
    }

    pub(crate) fn shoppers(&self) -> ShopperServiceClient<Channel> {
        ShopperServiceClient::new(channel(self.listen[0]))
    }

    pub(crate) fn catalog(&self) -> CatalogServiceClient<Channel> {
        CatalogServiceClient::new(channel(self.listen[1]))
    }

    pub(crate) fn releases(&self) -> ReleaseServiceClient<Channel> {
        ReleaseServiceClient::new(channel(self.listen[1]))
    }

    pub(crate) fn rollouts(&self) -> RolloutServiceClient<Channel> {
        RolloutServiceClient::new(channel(self.listen[1]))
    }

    /// A session of touchpoint `web`.
    pub(crate) async fn create_session(&self) -> CreateSessionResponse {
        let request =
            CreateSessionRequest { touchpoint: "web".to_owned(), ..CreateSessionRequest::default() };
        let answer = self.sessions().create_session(self.ask(request)).await;
        answer.expect("a session is made").into_inner()
    }

    /// What the database, not a cache, says of a session.
    pub(crate) async fn validate(&self, session_token: &str) -> Result<ValidateSessionResponse, Status> {
        self.validate_as(self.token(), session_token).await
    }

    /// The same, asked with this access token.
    pub(crate) async fn validate_as(
        &self,
        access_token: &str,
        session_token: &str,
    ) -> Result<ValidateSessionResponse, Status> {
        let request = ValidateSessionRequest {
            session_token: session_token.to_owned(),
            touchpoint: "web".to_owned(),
            consistency: Consistency::Strong.into(),
            ..ValidateSessionRequest::default()
        };
        Ok(self
            .sessions()
            .validate_session(ask_as(access_token, request))
            .await?
            .into_inner())
    }

    /// What runs; `None` when `up` does not say that anything does.
    pub(crate) fn pids(&self) -> Option<Pids> {
        let state: Value = serde_json::from_str(&process::read(&self.path("stack.json"))).ok()?;
        let pid = |pid: &Value| u32::try_from(pid.as_u64()?).ok();
        Some(Pids {
            up: pid(&state["pid"])?,
            postgres: pid(&state["postgres_pid"])?,
            session: pid(&state["session"]["pid"])?,
            release: pid(&state["release"]["pid"])?,
        })
    }

    /// The same, of a stack that is up.
    pub(crate) fn running(&self) -> Pids {
        self.pids().expect("stack.json tells what runs")
    }

    /// Something in the stack's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path.join(name)
    }

    /// The private PostgreSQL's only database.
    pub(crate) fn database_url(&self) -> String {
        let socket = self.path("postgres/socket");
        format!("postgres://tandem@localhost/tandem?host={}&port=5432", socket.display())
    }

    /// The text of a log, all of it.
    pub(crate) fn log(&self, name: &str) -> String {
        process::read(&self.path(name))
    }

    /// Ctrl-C.
    pub(crate) fn interrupt(&mut self) -> ExitStatus {
        let mut up = self.up.take().expect("it runs");
        process::signal("INT", up.id());
        self.folder.wait(&mut up, STOP_LIMIT).expect("up ends after SIGINT")
    }

    /// `up` is gone without a chance to tell anyone.
    pub(crate) fn kill(&mut self) {
        let mut up = self.up.take().expect("it runs");
        process::signal("KILL", up.id());
        self.folder.wait(&mut up, STOP_LIMIT).expect("nothing survives SIGKILL");
    }

    /// The ends of all logs.
    pub(crate) fn tell(&self) {
        for name in LOGS {
            let text = self.log(name);
            // The finest levels drown everything that a person looks for.
            let is_coarse = |line: &&str| !["TRACE", "DEBUG"].iter().any(|level| line.contains(level));
            let lines: Vec<_> = text.lines().filter(is_coarse).collect();
            let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
            process::say(&format!("--- {name} ends with\n{}", tail.join("\n")));
        }
    }

    /// An earlier run's is kept beside.
    fn log_file(&self, name: &str) -> File {
        let path = self.path(name);
        let _ = std::fs::rename(&path, path.with_extension("before"));
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .expect("a log can be made")
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell();
        }
        if let Some(mut up) = self.up.take() {
            process::signal("INT", up.id());
            self.folder.wait(&mut up, STOP_LIMIT);
        }
    }
}

fn ask_as<T>(access_token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let bearer: MetadataValue<Ascii> = format!("Bearer {access_token}").parse().expect("a header");
    request.metadata_mut().insert("authorization", bearer);
    request.set_timeout(Duration::from_secs(5));
    request
}

/// A connection for one call or a few; a service that was killed leaves none behind.
pub(crate) fn channel(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address makes a URI");
    endpoint.connect_timeout(Duration::from_secs(2)).connect_lazy()
}

/// Where a file of the repository is.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
