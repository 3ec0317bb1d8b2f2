//! `tandem up`: the local stack, in the foreground until it is told to stop. A service or PostgreSQL that dies is started
//! again by itself; if this process dies, however it does, the others stop.

mod database;
pub(crate) mod hints;
mod restart;
mod service;

use std::fs::File;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::TimeDelta;
use shared::config;

use self::database::Database;
use self::hints::Shell;
use self::service::Service;
use crate::error::Error;
use crate::seed;
use crate::ship::ENVIRONMENT;
use crate::stack::{self, Lock, Stack, State};
use crate::term::{self, Step};
use crate::token::Identity;

/// Variables that name a database of the user's: for both services, and for one each.
const DATABASE_URL: &str = "DATABASE_URL";
const LOOPBACK: &str = "127.0.0.0/8,::1/128";
const SERVICE_URLS: [&str; 2] = ["TANDEM_SESSION_DATABASE_URL", "TANDEM_RELEASE_DATABASE_URL"];
/// session-svc reads its token again with every connection.
const TOKEN_LIFETIME: TimeDelta = TimeDelta::days(30);
/// Much more often than needed, as a suspended machine's timers stand still.
const TOKEN_RENEWAL: Duration = Duration::from_hours(1);

/// Options of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Forget the data and the keys of earlier runs first
    #[arg(long)]
    fresh: bool,
    /// Fail where no PostgreSQL is installed, instead of fetching one
    #[arg(long)]
    no_fetch: bool,
    /// Where session-svc listens; port 0 lets the system choose
    #[arg(long, default_value = "127.0.0.1:50051", value_name = "ADDRESS")]
    session_listen: SocketAddr,
    /// Where release-svc listens; port 0 lets the system choose
    #[arg(long, default_value = "127.0.0.1:50052", value_name = "ADDRESS")]
    release_listen: SocketAddr,
    #[command(flatten)]
    stack: stack::Args,
}

/// What was started so far, to be stopped in any case.
#[derive(Default)]
struct Running {
    database: Option<Database>,
    release: Option<Service>,
    session: Option<Service>,
}

/// Runs the stack.
pub(crate) async fn run(args: Args) -> Result<ExitCode, Error> {
    let stack = Stack::open(&args.stack)?;
    if args.fresh && !is_private() {
        let names = format!("{DATABASE_URL}, {} or {}", SERVICE_URLS[0], SERVICE_URLS[1]);
        return Err(Error::Unusable(format!(
            "--fresh deletes nothing in a database of yours: drop --fresh, or unset {names}"
        )));
    }
    let lock = stack.lock()?;
    // What a run that was killed left behind names processes that are gone.
    stack.unpublish();
    let mut running = Running::default();
    let outcome = tokio::select! {
        () = shared::serve::stop_signal(false) => {
            term::note("stopping");
            Ok(ExitCode::SUCCESS)
        }
        error = start_and_keep(&args, &stack, &lock, &mut running) => Err(error),
    };
    running.stop().await;
    stack.unpublish();
    outcome
}

/// Whether all data is ours.
fn is_private() -> bool {
    SERVICE_URLS
        .into_iter()
        .chain([DATABASE_URL])
        .all(|name| config::variable(name).is_none())
}

/// Ends only when something does not work.
async fn start_and_keep(args: &Args, stack: &Stack, lock: &Lock, running: &mut Running) -> Error {
    match start(args, stack, lock, running).await {
        Ok(()) => running.keep(stack).await,
        Err(error) => error,
    }
}

async fn start(args: &Args, stack: &Stack, lock: &Lock, running: &mut Running) -> Result<(), Error> {
    let release = Service::prepare(stack, "release", args.release_listen).await?;
    let session = Service::prepare(stack, "session", args.session_listen).await?;
    if args.fresh {
        forget(stack, lock).await?;
    }
    stack.make_keys(lock)?;
    write_token(stack)?;
    let own = config::variable(DATABASE_URL).is_some()
        || SERVICE_URLS.into_iter().all(|name| config::variable(name).is_some());
    if !own {
        let step = Step::begin("starting PostgreSQL");
        let database = Database::start(stack, !args.no_fetch, step.notes()).await?;
        running.database = Some(database);
        step.done("PostgreSQL is up");
    }
    let url = running
        .database
        .as_ref()
        .map(|database| (DATABASE_URL, database.url().to_owned()));
    let mut common = vec![
        ("TANDEM_ISSUERS", stack.issuers().to_string_lossy().into_owned()),
        ("TANDEM_KEYRING", stack.keyring().to_string_lossy().into_owned()),
        ("TANDEM_REFLECTION", "true".to_owned()),
        // So that a receiver can be tried out on the same machine.
        (
            "TANDEM_WEBHOOK_ALLOW_PRIVATE",
            config::variable("TANDEM_WEBHOOK_ALLOW_PRIVATE").unwrap_or_else(|| LOOPBACK.to_owned()),
        ),
    ];
    common.extend(url);

    let step = Step::begin("starting release-svc");
    let release_address = running.release.insert(release).start(common.clone()).await?;
    step.done(format_args!("release-svc is serving on {release_address}"));

    let step = Step::begin("starting session-svc");
    common.extend([
        ("TANDEM_ENVIRONMENT", ENVIRONMENT.to_owned()),
        ("TANDEM_RELEASE_URL", format!("http://{}", crate::client::reachable(release_address))),
        ("TANDEM_RELEASE_TOKEN_FILE", stack.session_token().to_string_lossy().into_owned()),
        ("TANDEM_REPLICA_ID", stack.replica_id(lock)?),
    ]);
    let session_address = running.session.insert(session).start(common).await?;
    step.done(format_args!("session-svc is serving on {session_address}"));

    let step = Step::begin("entering the example");
    let identity = Identity { sub: "dev".to_owned(), tenant: "shop".to_owned(), groups: Vec::new() };
    let token = stack.sign(&identity.grant(), TimeDelta::minutes(10))?;
    seed::run(session_address, release_address, &token, step.notes()).await?;
    step.done("tenant shop, touchpoint web, component storefront 1.0");

    if let Some(state) = running.state() {
        stack.publish(&state)?;
    }
    term::say(format_args!(
        "\nTandem is up; Ctrl-C stops it, and the next start keeps the data. In another terminal:\n\n{}\n",
        Shell::new(stack, &identity).first_steps(session_address)
    ));
    Ok(())
}

/// Waits for the PostgreSQL of an earlier run, which may still be stopping, and removes everything.
async fn forget(stack: &Stack, lock: &Lock) -> Result<(), Error> {
    let path = stack.path("postgres/postgres.log");
    if let Ok(log) = File::open(&path) {
        service::wait_for_lock(&log, &path).await?;
    }
    Ok(stack.forget(lock)?)
}

fn write_token(stack: &Stack) -> Result<(), Error> {
    Ok(stack::write_session_token(&stack.path("issuer"), &stack.session_token(), TOKEN_LIFETIME)?)
}

impl Running {
    fn state(&self) -> Option<State> {
        Some(State {
            pid: std::process::id(),
            postgres_pid: self.database.as_ref().and_then(Database::pid),
            session: self.session.as_ref()?.process(),
            release: self.release.as_ref()?.process(),
        })
    }

    /// Starts again what dies, and tells other commands; ends when that does not help.
    async fn keep(&mut self, stack: &Stack) -> Error {
        let state = Mutex::new(self.state());
        let change = |change: &dyn Fn(&mut State)| {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(state) = state.as_mut() {
                change(state);
                if let Err(error) = stack.publish(state) {
                    term::note(error);
                }
            }
        };
        let Self { database, release: Some(release), session: Some(session) } = self else {
            return Error::Failed("the services were not started".to_owned());
        };
        let keep_database = async {
            match database {
                Some(database) => database.keep(|pid| change(&|state| state.postgres_pid = Some(pid))).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            error = keep_database => error,
            error = release.keep(|process| change(&|state| state.release = process)) => error,
            error = session.keep(|process| change(&|state| state.session = process)) => error,
            error = renew_token(stack) => error,
        }
    }

    /// The services first, so that calls in flight can finish.
    async fn stop(self) {
        let Self { database, release, session } = self;
        let stop = async |service: Option<Service>| {
            if let Some(mut service) = service {
                service.stop().await;
            }
        };
        tokio::join!(stop(session), stop(release));
        if let Some(mut database) = database {
            database.stop().await;
        }
    }
}

async fn renew_token(stack: &Stack) -> Error {
    loop {
        tokio::time::sleep(TOKEN_RENEWAL).await;
        if let Err(error) = write_token(stack) {
            return error;
        }
    }
}
