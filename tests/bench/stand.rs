//! What every row stands on: a PostgreSQL of its own, a token issuer, a collector, and how long to measure.

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use shared::config::variable;
use shared::issuer::{Grant, ISSUERS_FILE, LocalIssuer, write_private};
use shared::keyring::KeyRing;
use shared::secret::Entropy;
use shared::time::Clock;
use tokio::task::JoinSet;
use tonic::metadata::{Ascii, MetadataValue};

use crate::Outcome;
use crate::collector::collector;
use crate::postgres::Database;
use crate::server::{Launch, Server};

const KEYRING_FILE: &str = "keyring.json";
const SCOPES: &str = "session.write session.validate session.read session.assert session.any touchpoint.write cart.write \
                      event.read catalog.write release.write release.read rollout.write rollout.read";
/// What session services ask release-svc with.
const SYSTEM_SCOPE: &str = "tandem.system";

/// How much to measure.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    /// Of one run.
    pub(crate) time: Duration,
    /// Hundredth-size data, to try the tool.
    pub(crate) quick: bool,
    /// Also with 5 M sessions.
    pub(crate) large: bool,
    /// How long the memory row keeps up its load.
    pub(crate) soak: Duration,
}

impl Plan {
    pub(crate) fn warm_up(self) -> Duration {
        self.time / 2
    }

    /// So many rows or calls; fewer in a quick run.
    pub(crate) fn scaled(self, count: u64) -> u64 {
        if self.quick { (count / 100).max(10) } else { count }
    }
}

/// All of it.
pub(crate) struct Stand {
    pub(crate) plan: Plan,
    pub(crate) database: Database,
    pub(crate) folder: Folder,
    issuer: LocalIssuer,
    clock: Clock,
    collector: SocketAddr,
    _collecting: JoinSet<()>,
    launched: AtomicU32,
}

/// A folder that goes when this is dropped.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Stand {
    /// Starts PostgreSQL and the collector.
    pub(crate) async fn open(plan: Plan, parent: Option<PathBuf>, shared_buffers: &str) -> Outcome<Self> {
        let parent = parent.unwrap_or_else(std::env::temp_dir);
        let folder = Folder(parent.join(format!("tandem-bench-{}", std::process::id())));
        // Run as root, PostgreSQL is another user, who has to pass through.
        std::fs::DirBuilder::new().mode(0o711).create(&folder.0)?;
        let issuer = LocalIssuer::open(&folder.0, &Entropy::system())?;
        let keys = KeyRing::generate(&Entropy::system()).to_json()?;
        write_private(&folder.0.join(KEYRING_FILE), keys.as_bytes())?;
        let (address, collecting) = collector().await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(collecting);
        let database = Database::start(&folder.0, shared_buffers).await?;
        Ok(Self {
            plan,
            database,
            folder,
            issuer,
            clock: Clock::system(),
            collector: address,
            _collecting: tasks,
            launched: AtomicU32::new(0),
        })
    }

    /// Stops PostgreSQL.
    pub(crate) async fn close(self) {
        self.database.server.stop().await;
    }

    /// PostgreSQL's first process.
    pub(crate) fn postgres(&self) -> u32 {
        self.database.server.pid()
    }

    /// Starts session-svc.
    pub(crate) async fn session_svc(&self, url: &str) -> Outcome<Server> {
        self.launch("serve-session", url, None).await
    }

    /// Starts release-svc.
    pub(crate) async fn release_svc(&self, url: &str) -> Outcome<Server> {
        self.launch("serve-release", url, None).await
    }

    /// Starts session-svc, which goes by the routes of a release-svc.
    pub(crate) async fn session_svc_beside(&self, release_svc: &Server, url: &str) -> Outcome<Server> {
        let token_file = self.folder.0.join("system.token");
        write_private(&token_file, self.token("tandem", "session-svc", SYSTEM_SCOPE)?.as_bytes())?;
        let mut variables = self.variables(url);
        variables.push(("TANDEM_RELEASE_URL", format!("http://{}", release_svc.address)));
        variables.push(("TANDEM_RELEASE_TOKEN_FILE", token_file.to_string_lossy().into_owned()));
        self.start("serve-session", variables, None).await
    }

    /// Starts a server of this binary on a database.
    pub(crate) async fn launch(&self, command: &str, url: &str, answer: Option<PathBuf>) -> Outcome<Server> {
        self.start(command, self.variables(url), answer).await
    }

    fn variables(&self, url: &str) -> Vec<(&'static str, String)> {
        let in_folder = |name: &str| self.folder.0.join(name).to_string_lossy().into_owned();
        vec![
            ("PATH", variable("PATH").unwrap_or_default()),
            ("DATABASE_URL", url.to_owned()),
            ("TANDEM_ISSUERS", in_folder(ISSUERS_FILE)),
            ("TANDEM_KEYRING", in_folder(KEYRING_FILE)),
            ("TANDEM_ENVIRONMENT", "bench".to_owned()),
            // Checked with every call, and never reached.
            ("TANDEM_CALLER_RATE", "10000000".to_owned()),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", self.collector)),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio".to_owned()),
            ("OTEL_TRACES_SAMPLER_ARG", "0.01".to_owned()),
            ("NO_COLOR", "1".to_owned()),
        ]
    }

    async fn start(
        &self,
        command: &str,
        variables: Vec<(&'static str, String)>,
        answer: Option<PathBuf>,
    ) -> Outcome<Server> {
        let name = format!("{command}-{}", self.launched.fetch_add(1, Ordering::Relaxed));
        Launch { command, name, folder: &self.folder.0, variables, answer }
            .start()
            .await
    }

    /// `authorization` of a program of this tenant.
    pub(crate) fn bearer(&self, tenant: &str, sub: &str) -> Outcome<MetadataValue<Ascii>> {
        Ok(format!("Bearer {}", self.token(tenant, sub, SCOPES)?).parse()?)
    }

    /// `authorization` of a session service.
    pub(crate) fn system_bearer(&self, sub: &str) -> Outcome<MetadataValue<Ascii>> {
        Ok(format!("Bearer {}", self.token("tandem", sub, SYSTEM_SCOPE)?).parse()?)
    }

    fn token(&self, tenant: &str, sub: &str, scope: &str) -> Outcome<String> {
        let grant = Grant {
            sub: sub.to_owned(),
            tenant: tenant.to_owned(),
            scope: scope.to_owned(),
            groups: vec![],
            touchpoints: None,
            kind: "workload".to_owned(),
        };
        let token = self
            .issuer
            .sign(&grant, self.clock.now(), TimeDelta::days(1), &Entropy::system())?;
        Ok(token.expose().clone())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What the watchdog still removes, it removes.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[expect(clippy::print_stderr, reason = "for the person who waits")]
pub(crate) fn note(line: &str) {
    eprintln!("{line}");
}
