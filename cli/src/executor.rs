//! `tandem executor`: deploys by running a command for each task. It keeps the lease while the command runs, and stops the
//! command when the task is another's.

mod command;

use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use prost_types::Duration as Span;
use shared::pb::common::Reason;
use shared::pb::release::executor_service_client::ExecutorServiceClient;
use shared::pb::release::{
    LeaseTaskRequest, LeaseTaskResponse, RenewTaskRequest, ReportTaskRequest, Task, TaskKind, TaskOutcome,
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::client::{self, Authorized, Bearer};
use crate::error::Error;
use crate::percent::Percent;
use crate::stack::{self, Stack};
use crate::term;
use crate::token::Identity;
use command::{Ended, Running};

/// How long a task stays ours without a word from us.
const LEASE: Duration = Duration::from_secs(30);
const RENEW_INTERVAL: Duration = Duration::from_secs(5);
/// How long release-svc holds a question for a task; who is told to stop waits for its end.
const WAIT: Duration = Duration::from_secs(3);
/// Between attempts while release-svc is away.
const PAUSE: Duration = Duration::from_secs(2);
/// For how long a report is tried.
const REPORT_LIMIT: Duration = Duration::from_mins(2);
/// A token's life; every call has a new one.
const TOKEN_MINUTES: i64 = 10;

/// Exit code of `--once` where there was nothing to do.
const NOTHING: u8 = 3;

const COMMAND_HELP: &str = "The command to run for each task, which its environment tells of: TANDEM_TASK_ID, \
    TANDEM_TASK_KIND (EXPOSE or RETIRE), TANDEM_COMPONENT, TANDEM_ENVIRONMENT, TANDEM_RELEASE_ID, TANDEM_VERSION, \
    TANDEM_ARTIFACT_DIGEST, TANDEM_EXPOSURE_BPS";

/// Options of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where it deploys
    #[arg(long, value_name = "NAME")]
    environment: String,
    /// A component that it deploys; may be given again [default: all that its groups own]
    #[arg(long = "component", value_name = "NAME")]
    components: Vec<String>,
    /// Do one task and exit: with 1 where it failed, with 3 where there was none
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    identity: Identity,
    #[command(flatten)]
    stack: stack::Args,
    #[arg(last = true, required = true, value_name = "COMMAND", help = COMMAND_HELP)]
    command: Vec<String>,
}

/// A task that is ours.
struct Leased {
    task: Task,
    fencing_token: i64,
}

/// How it went with a task.
enum Attempt {
    Done,
    Failed,
    /// The command was stopped: the task is another's by now, or nobody's.
    Lost,
    /// The same, as we were told to stop.
    Returned,
}

struct Executor {
    args: Args,
    stack: Stack,
    stop: CancellationToken,
}

/// Works until told to stop.
pub(crate) async fn run(args: Args) -> Result<ExitCode, Error> {
    let executor = Executor { stack: Stack::open(&args.stack)?, args, stop: CancellationToken::new() };
    let stop = executor.stop.clone();
    let mut work = pin!(executor.work());
    tokio::select! {
        ended = &mut work => return ended,
        () = shared::serve::stop_signal(false) => stop.cancel(),
    }
    work.await
}

impl Executor {
    async fn work(&self) -> Result<ExitCode, Error> {
        let Args { environment, once, .. } = &self.args;
        term::note(format_args!("waiting for tasks in {environment}"));
        let mut is_away = false;
        while !self.stop.is_cancelled() {
            let leased = match self.lease().await {
                Ok(leased) => leased,
                Err(failure) if *once || !failure.is_passing() => return Err(failure.into()),
                Err(failure) => {
                    if !is_away {
                        term::note(format_args!("{}; trying again", Error::from(failure)));
                    }
                    is_away = true;
                    self.pause().await;
                    continue;
                }
            };
            is_away = false;
            let attempt = match &leased {
                Some(leased) => Some(self.attempt(leased).await?),
                None => None,
            };
            if *once {
                return Ok(match attempt {
                    Some(Attempt::Done) => ExitCode::SUCCESS,
                    Some(Attempt::Failed | Attempt::Lost | Attempt::Returned) => ExitCode::FAILURE,
                    None => ExitCode::from(NOTHING),
                });
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// A client with a new token, where release-svc is now.
    fn client(&self) -> Result<ExecutorServiceClient<Authorized>, Failure> {
        let lifetime = chrono::TimeDelta::minutes(TOKEN_MINUTES);
        let token = self.stack.sign(&self.args.identity.grant(), lifetime)?;
        let channel = client::channel(self.stack.state()?.release.address);
        Ok(ExecutorServiceClient::with_interceptor(channel, Bearer::new(&token)))
    }

    async fn lease(&self) -> Result<Option<Leased>, Failure> {
        let request = LeaseTaskRequest {
            environment: self.args.environment.clone(),
            components: self.args.components.clone(),
            lease: span(LEASE),
            wait: span(WAIT),
        };
        let answer = self.client()?.lease_task(request).await?.into_inner();
        let LeaseTaskResponse { task, fencing_token } = answer;
        Ok(task.map(|task| Leased { task, fencing_token }))
    }

    /// Runs the command for a task, and says how it went.
    async fn attempt(&self, leased: &Leased) -> Result<Attempt, Error> {
        let (task_id, began) = (&leased.task.task_id, Instant::now());
        if self.stop.is_cancelled() {
            return self.give_back(leased, "the executor stops").await;
        }
        term::note(format_args!("{task_id}: {}", describe(&leased.task)));
        let mut running = match Running::start(&self.args.command, &variables(&leased.task)) {
            Ok(running) => running,
            Err(error) => {
                // That is not the release's fault.
                let message = format!("cannot run {}: {error}", self.args.command[0]);
                self.give_back(leased, &message).await?;
                return Err(Error::Unusable(message));
            }
        };
        let Ended { is_success, how, last_words } = tokio::select! {
            ended = running.wait() => ended,
            why = self.keep(leased) => {
                term::note(format_args!("{task_id}: {why}; the command is stopped"));
                running.stop().await;
                return Ok(Attempt::Lost);
            }
            () = self.stop.cancelled() => {
                running.stop().await;
                return self.give_back(leased, "the executor stops").await;
            }
        };
        let (outcome, attempt, message) = if is_success {
            (TaskOutcome::Done, Attempt::Done, last_words)
        } else {
            (TaskOutcome::Failed, Attempt::Failed, format!("{how}: {last_words}"))
        };
        if !self.report(leased, outcome, &message).await? {
            return Ok(Attempt::Lost);
        }
        term::note(format_args!("{task_id}: {how} after {:.1} s", began.elapsed().as_secs_f64()));
        Ok(attempt)
    }

    async fn give_back(&self, leased: &Leased, why: &str) -> Result<Attempt, Error> {
        if self.report(leased, TaskOutcome::Returned, why).await? {
            term::note(format_args!("{}: given back: {why}", leased.task.task_id));
        }
        Ok(Attempt::Returned)
    }

    /// Renews the lease until it is lost; says why it is.
    async fn keep(&self, leased: &Leased) -> String {
        let mut renewed_at = Instant::now();
        loop {
            sleep(RENEW_INTERVAL).await;
            let request = RenewTaskRequest {
                task_id: leased.task.task_id.clone(),
                fencing_token: leased.fencing_token,
                lease: span(LEASE),
            };
            let asked_at = Instant::now();
            let renewed = match self.client() {
                Ok(mut client) => client.renew_task(request).await.map_err(Failure::from),
                Err(failure) => Err(failure),
            };
            match renewed {
                Ok(_) => renewed_at = asked_at,
                Err(failure) if !failure.is_passing() => return Error::from(failure).to_string(),
                // Somebody else may have it from then on.
                Err(failure) if renewed_at.elapsed() + RENEW_INTERVAL >= LEASE => {
                    return format!("the lease could not be renewed in time: {}", Error::from(failure));
                }
                Err(_) => {}
            }
        }
    }

    /// Tells how an attempt ended; says whether it still mattered.
    async fn report(&self, leased: &Leased, outcome: TaskOutcome, message: &str) -> Result<bool, Error> {
        let request = ReportTaskRequest {
            task_id: leased.task.task_id.clone(),
            fencing_token: leased.fencing_token,
            outcome: outcome.into(),
            message: command::tail(message),
        };
        let began = Instant::now();
        loop {
            let reported = match self.client() {
                Ok(mut client) => client.report_task(request.clone()).await.map_err(Failure::from),
                Err(failure) => Err(failure),
            };
            match reported {
                Ok(_) => return Ok(true),
                Err(Failure::Call(status)) if client::reason(&status) == Some(Reason::TaskLeaseLost) => {
                    term::note(format_args!("{}: {}", leased.task.task_id, status.message()));
                    return Ok(false);
                }
                Err(failure) if !failure.is_passing() || began.elapsed() >= REPORT_LIMIT => {
                    return Err(failure.into());
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    async fn pause(&self) {
        tokio::select! {
            () = sleep(PAUSE) => {}
            () = self.stop.cancelled() => {}
        }
    }
}

/// A call that did not do what was asked.
enum Failure {
    Call(Status),
    Stack(stack::StackError),
}

impl Failure {
    /// Whether it may go by itself: release-svc is away, or busy.
    fn is_passing(&self) -> bool {
        match self {
            Self::Call(status) => matches!(
                status.code(),
                Code::Unavailable
                    | Code::DeadlineExceeded
                    | Code::Cancelled
                    | Code::Aborted
                    | Code::ResourceExhausted
                    | Code::Unknown
            ),
            Self::Stack(error) => matches!(error, stack::StackError::NotRunning(_)),
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Call(status)
    }
}

impl From<stack::StackError> for Failure {
    fn from(error: stack::StackError) -> Self {
        Self::Stack(error)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Call(status) => status.into(),
            Failure::Stack(error) => error.into(),
        }
    }
}

fn span(duration: Duration) -> Option<Span> {
    Span::try_from(duration).ok()
}

fn kind_name(task: &Task) -> &'static str {
    task.kind().as_str_name().trim_start_matches("TASK_KIND_")
}

fn describe(task: &Task) -> String {
    let Task { component, version, exposure_bps, .. } = task;
    match task.kind() {
        TaskKind::Expose => format!("{component} {version} for {} of visits", Percent(*exposure_bps)),
        TaskKind::Retire => format!("retire {component} {version}"),
        TaskKind::Unspecified => format!("{component} {version}: unknown to this version of tandem"),
    }
}

/// What a command is told of its task.
fn variables(task: &Task) -> [(&'static str, String); 8] {
    [
        ("TANDEM_TASK_ID", task.task_id.clone()),
        ("TANDEM_TASK_KIND", kind_name(task).to_owned()),
        ("TANDEM_COMPONENT", task.component.clone()),
        ("TANDEM_ENVIRONMENT", task.environment.clone()),
        ("TANDEM_RELEASE_ID", task.release_id.clone()),
        ("TANDEM_VERSION", task.version.clone()),
        ("TANDEM_ARTIFACT_DIGEST", task.artifact_digest.clone()),
        ("TANDEM_EXPOSURE_BPS", task.exposure_bps.to_string()),
    ]
}
