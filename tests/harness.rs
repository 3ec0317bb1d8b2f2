//! What every test stands on: both services in process on one database, one fake clock and one seed; callers with
//! tokens of a local issuer; and the sentences that tests are written in.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use chrono::TimeDelta;
use shared::auth::Authenticator;
use shared::config::ServiceConfig;
use shared::edge::Limits;
use shared::id_token::IdentityProviders;
use shared::issuer::{Grant, ISSUERS_FILE, LocalIssuer};
use shared::keyring::KeyRing;
use shared::keys::Keys;
use shared::pb;
use shared::secret::{Entropy, Secret};
use shared::serve::{Lifecycle, ServeError};
use shared::time::{Clock, Time, at};
use shared::tls::{Tls, TlsFiles};
use shared::webhook::Networks;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint};

pub(crate) mod answer;
pub(crate) mod caller;
pub(crate) mod carts;
pub(crate) mod database;
pub(crate) mod fleet;
pub(crate) mod govern;
pub(crate) mod hook;
pub(crate) mod identity;
pub(crate) mod raw;
pub(crate) mod receiver;
pub(crate) mod router;
pub(crate) mod shop;
pub(crate) mod trust;
pub(crate) mod watch;
pub(crate) mod web;

pub(crate) use answer::{Answer, assert_refused, eventually, reason_of};
pub(crate) use caller::Caller;
pub(crate) use database::Database;
pub(crate) use receiver::{Receiver, Reply};
pub(crate) use watch::Watch;
pub(crate) use web::Web;

/// When every test begins.
pub(crate) const START: i64 = 1_800_000_000;
/// The environment that every session-svc serves.
pub(crate) const ENVIRONMENT: &str = "local";
/// What `iss` of every assertion begins with.
pub(crate) const ASSERTION_ISSUER: &str = "https://sessions.example";
const KEYRING_FILE: &str = "keyring.json";
/// More than any test calls while the clock stands still.
const CALLER_RATE: NonZeroU32 = NonZeroU32::new(10_000_000).unwrap();

/// The services of one test, and all they share. Dropped, nothing of it is left.
pub(crate) struct Stack {
    pub(crate) session: Option<Service>,
    pub(crate) release: Option<Service>,
    pub(crate) database: Database,
    pub(crate) clock: Clock,
    pub(crate) entropy: Entropy,
    issuer: LocalIssuer,
    folder: Folder,
}

/// How a service is started where it matters.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) limits: Limits,
    pub(crate) drain: Duration,
    /// Another address than any free one.
    pub(crate) listen: SocketAddr,
    /// Another database than the test's own.
    pub(crate) database_url: Option<String>,
    /// Where session-svc finds release-svc, and the authority of its certificate if it has one.
    pub(crate) release: Option<SocketAddr>,
    pub(crate) release_ca: Option<String>,
    pub(crate) tls: Option<TlsFiles>,
    /// The file that names them, if session-svc takes ID tokens.
    pub(crate) identity_providers: Option<PathBuf>,
    pub(crate) event_retention: Option<TimeDelta>,
    /// Private networks that webhooks may go to.
    pub(crate) webhook_networks: Networks,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: Limits { in_flight: 1024, streams: 2000, caller_rate: CALLER_RATE },
            drain: Duration::from_secs(5),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            database_url: None,
            release: None,
            release_ca: None,
            tls: None,
            identity_providers: None,
            event_retention: None,
            webhook_networks: "127.0.0.0/8".parse().unwrap(),
        }
    }
}

/// A running service, on a thread of its own.
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    pub(crate) channel: Channel,
    lifecycle: Lifecycle,
    /// Dropped, it takes the service down midway.
    leash: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    outcome: Option<oneshot::Receiver<Result<(), ServeError>>>,
}

impl Service {
    fn start<F>(
        listener: std::net::TcpListener,
        serve: impl FnOnce(TcpListener, Lifecycle) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), ServeError>>,
    {
        let address = listener.local_addr().unwrap();
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        let lifecycle = Lifecycle::default();
        let run = lifecycle.clone();
        let (leash, cut) = oneshot::channel::<()>();
        let (ended, outcome) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    outcome = Box::pin(serve(listener, run)) => drop(ended.send(outcome)),
                    _ = cut => {}
                }
            });
        });
        Self { address, channel, lifecycle, leash: Some(leash), thread: Some(thread), outcome: Some(outcome) }
    }

    /// Stops it as SIGTERM does, and waits until it has.
    pub(crate) async fn stop(mut self) {
        self.tell_to_stop();
        self.outcome.take().unwrap().await.unwrap().unwrap();
    }

    /// As [`Service::stop`] without waiting.
    pub(crate) fn tell_to_stop(&self) {
        self.lifecycle.stop.cancel();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.leash.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the service's thread failed the test already, by what it did not answer.
            let _ = thread.join();
        }
    }
}

impl Stack {
    /// A database and an issuer, and no service yet.
    pub(crate) fn prepare() -> Self {
        let (folder, entropy) = (Folder::new(), Entropy::seeded(42));
        let keys = KeyRing::generate(&entropy).to_json().unwrap();
        std::fs::write(folder.0.join(KEYRING_FILE), keys).unwrap();
        Self {
            session: None,
            release: None,
            database: Database::migrated(),
            clock: Clock::fake(at(START)),
            issuer: LocalIssuer::open(&folder.0, &entropy).unwrap(),
            entropy,
            folder,
        }
    }

    /// session-svc by itself.
    pub(crate) fn sessions() -> Self {
        Self::sessions_with(&Options::default())
    }

    /// The same with these options.
    pub(crate) fn sessions_with(options: &Options) -> Self {
        let mut stack = Self::prepare();
        stack.session = Some(stack.session_svc(options));
        stack
    }

    /// release-svc by itself.
    pub(crate) fn releases() -> Self {
        let mut stack = Self::prepare();
        stack.release = Some(stack.release_svc(&Options::default()));
        stack
    }

    /// Both, linked.
    pub(crate) fn pair() -> Self {
        let mut stack = Self::releases();
        stack.session = Some(stack.session_svc(&stack.linked()));
        stack
    }

    /// How to start a session-svc that follows release-svc.
    pub(crate) fn linked(&self) -> Options {
        Options { release: self.release.as_ref().map(|release| release.address), ..Options::default() }
    }

    /// One more session-svc on the same database.
    pub(crate) fn session_svc(&self, options: &Options) -> Service {
        let link = options.release.map(|address| {
            let token_file = self.folder.0.join("session-svc.token");
            std::fs::write(&token_file, self.token(&system("session-svc"))).unwrap();
            let endpoint = match &options.release_ca {
                None => Endpoint::from_shared(format!("http://{address}")).unwrap(),
                Some(pem) => {
                    let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
                    session_svc::config::with_tls(endpoint, Some(pem.clone().into_bytes())).unwrap()
                }
            };
            session_svc::link::LinkConfig { endpoint, token_file, replica_id: None }
        });
        let config = session_svc::Config {
            service: self.config(options),
            environment: ENVIRONMENT.parse().unwrap(),
            identity_providers: options
                .identity_providers
                .as_deref()
                .map(|file| IdentityProviders::open(file).unwrap()),
            assertion_issuer: ASSERTION_ISSUER.to_owned(),
            link,
        };
        let (clock, entropy) = (self.clock.clone(), self.entropy.clone());
        Service::start(listen(options.listen), async move |listener, lifecycle| {
            session_svc::serve(config, listener, clock, entropy, &lifecycle).await
        })
    }

    /// One more release-svc on the same database.
    pub(crate) fn release_svc(&self, options: &Options) -> Service {
        let config = release_svc::Config { service: self.config(options) };
        let (clock, entropy) = (self.clock.clone(), self.entropy.clone());
        Service::start(listen(options.listen), async move |listener, lifecycle| {
            release_svc::serve(config, listener, clock, entropy, &lifecycle).await
        })
    }

    fn config(&self, options: &Options) -> ServiceConfig {
        ServiceConfig {
            listen: options.listen,
            database_url: Secret::new(
                options.database_url.clone().unwrap_or_else(|| self.database.url.clone()),
            ),
            database_connections: 16,
            authenticator: Authenticator::open(&self.folder.0.join(ISSUERS_FILE)).unwrap(),
            tls: options.tls.clone().map(|files| Tls::open(files).unwrap()),
            keys: Keys::open(&self.keyring()).unwrap(),
            reflection: true,
            limits: options.limits,
            drain: options.drain,
            event_retention: options.event_retention,
            webhook_networks: options.webhook_networks.clone(),
            stop_with_stdin: false,
            address_file: None,
        }
    }

    /// Takes session-svc away.
    pub(crate) async fn stop_session(&mut self) {
        self.session.take().unwrap().stop().await;
    }

    /// Takes release-svc away; answers where it was.
    pub(crate) async fn stop_release(&mut self) -> SocketAddr {
        let release = self.release.take().unwrap();
        let address = release.address;
        release.stop().await;
        address
    }

    /// Someone who calls the services that run now.
    pub(crate) fn caller(&self, grant: &Grant) -> Caller {
        let channel = |service: &Option<Service>| service.as_ref().map(|service| service.channel.clone());
        Caller::new(&self.token(grant), channel(&self.session), channel(&self.release))
    }

    /// An access token for a year.
    pub(crate) fn token(&self, grant: &Grant) -> String {
        let signed = self.issuer.sign(grant, self.clock.now(), TimeDelta::days(365), &self.entropy);
        signed.unwrap().expose().clone()
    }

    /// Where the issuer keeps its files.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder.0
    }

    /// The services' key ring.
    pub(crate) fn keyring(&self) -> PathBuf {
        self.folder.0.join(KEYRING_FILE)
    }

    /// Moves the clock on.
    pub(crate) fn advance(&self, by: TimeDelta) {
        self.clock.advance(by);
    }

    pub(crate) fn now(&self) -> Time {
        self.clock.now()
    }
}

/// Takes the port; calls wait from then on.
fn listen(address: SocketAddr) -> std::net::TcpListener {
    let socket = if address.port() == 0 { std::net::TcpListener::bind(address) } else { bind_again(address) };
    let listener = socket.unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

/// A port that was used a moment ago.
fn bind_again(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(64)?.into_std()
}

/// A program of tenant `shop` that may do everything.
pub(crate) fn workload(sub: &str) -> Grant {
    let mut scopes: Vec<_> = pb::METHODS
        .iter()
        .filter_map(|(_, scope)| *scope)
        .filter(|scope| *scope != SYSTEM)
        .collect();
    scopes.extend(["session.assert", "session.any", "shopper.any"]);
    scopes.sort_unstable();
    scopes.dedup();
    Grant {
        sub: sub.to_owned(),
        tenant: "shop".to_owned(),
        scope: scopes.join(" "),
        groups: vec![],
        touchpoints: None,
        kind: "workload".to_owned(),
    }
}

/// A human being of tenant `shop` who may do everything.
pub(crate) fn person(sub: &str) -> Grant {
    Grant { kind: "person".to_owned(), ..workload(sub) }
}

/// A session-svc, as release-svc knows it.
pub(crate) fn system(sub: &str) -> Grant {
    Grant { scope: SYSTEM.to_owned(), ..workload(sub) }
}

const SYSTEM: &str = "tandem.system";

/// A folder for a test's files.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let n = MADE.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tandem-test-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
