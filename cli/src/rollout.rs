//! `tandem rollout`: a release on its way into an environment. Each command names the rollout itself, or a component for its
//! newest one that is not final.

use std::process::ExitCode;
use std::time::Duration;

use shared::pb::release::{
    AdvanceRolloutRequest, GetComponentRequest, GetReleaseRequest, GetRolloutRequest, GetRolloutResponse,
    LiftHoldRequest, ListRolloutsRequest, PauseRolloutRequest, ReleaseRef, ResolveRolloutRequest,
    ResumeRolloutRequest, RollBackRolloutRequest, Rollout, RolloutState, SkipStepRequest,
    get_release_request,
};
use shared::time::Clock;

use crate::client::ReleaseClients;
use crate::error::Error;
use crate::output::{self, Output};
use crate::release::{Common, explain};
use crate::ship::{self, ENVIRONMENT};
use crate::term;

pub(crate) mod plan;
mod show;
mod watch;

/// What people try first.
pub(crate) const EXAMPLES: &str = "\
Examples:
  tandem rollout start storefront 1.1 --steps 10%,50% --bake 10m --guard checkout --guard slow:pause
  tandem rollout watch storefront
  tandem rollout show storefront
  tandem rollout pause storefront --reason 'somebody calls about it'
  tandem rollout resume storefront --reason 'it was something else' --sub alice
  tandem rollout advance storefront
  tandem rollout skip storefront --reason 'urgent, and watched by hand'
  tandem rollout back storefront --reason 'loses orders'
  tandem rollout list storefront --state rolled_back --json
  tandem rollout resolve rlo_01a2069747dc7d6282a6459e52cdca40 --reason 'that host is off' --sub alice

NAME is a rollout's `rlo_...`, or a component: its newest rollout that visits may be on, else one that waits, else the last
that succeeded or was rolled back.
See also: `tandem ship`, which starts one; `tandem release explain`.";

/// How long session services are waited for to confirm a rollback.
const CONFIRM_LIMIT: Duration = Duration::from_secs(10);
const CONFIRM_POLL: Duration = Duration::from_millis(200);

/// What brought a release to everyone, or was taken back.
const CAME_ABOUT: [RolloutState; 2] = [RolloutState::Succeeded, RolloutState::RolledBack];

/// States that something comes after.
pub(crate) const NOT_FINAL: [RolloutState; 6] = [
    RolloutState::Waiting,
    RolloutState::Running,
    RolloutState::Paused,
    RolloutState::Draining,
    RolloutState::RollingBack,
    RolloutState::RollbackFailed,
];

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Begin to expose visits to an approved release
    Start(Box<Start>),
    /// List rollouts, newest first
    List(List),
    /// Show where it stands: its plan, visits, guards, and what holds its next step back
    Show(Which),
    /// Follow it to its end; exits with 0 if it succeeds, with 1 if it ends in any other way
    Watch(Which),
    /// Go to the next step
    Advance(Which),
    /// Go to the next step without waiting for the time and the guards of this one
    Skip(Reasoned),
    /// Keep it at its exposure
    Pause(Reasoned),
    /// Go on with a paused one, as a person; after harm, as one who had no part in the release
    Resume(Reasoned),
    /// Take exposure to 0, whatever state it is in; what has succeeded is taken back, too
    #[command(visible_alias = "rollback")]
    Back(Reasoned),
    /// Say, as a person, that a rollback that failed is done
    Resolve(Reasoned),
    /// Let releases begin, as a person, that were made before the last rollback
    Lift(Reasoned),
}

/// What to start.
#[derive(Debug, clap::Args)]
pub(crate) struct Start {
    /// The release, `rel_...`, or its component
    #[arg(value_name = "RELEASE|NAME")]
    release: String,
    /// Its version, such as 1.1, after a component
    version: Option<String>,
    /// Where to
    #[arg(long, default_value = ENVIRONMENT, value_name = "NAME")]
    environment: String,
    #[command(flatten)]
    plan: plan::Plan,
    /// Wait for what holds it back instead of being refused
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    common: Common,
}

/// Which rollouts.
#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Only this component's
    #[arg(value_name = "NAME")]
    component: Option<String>,
    /// Only in this environment
    #[arg(long, value_name = "NAME")]
    environment: Option<String>,
    /// Only those in this state, such as PAUSED; may be given again
    #[arg(long = "state", value_name = "STATE", value_parser = state)]
    states: Vec<RolloutState>,
    /// At most so many
    #[arg(long, default_value_t = 20, value_name = "COUNT", value_parser = clap::value_parser!(i32).range(1..=1000))]
    limit: i32,
    #[command(flatten)]
    common: Common,
}

/// Which rollout.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// The rollout, `rlo_...`, or its component
    name: String,
    /// Where the component's is
    #[arg(long, default_value = ENVIRONMENT, value_name = "NAME")]
    environment: String,
    #[command(flatten)]
    common: Common,
}

/// Which rollout, and why.
#[derive(Debug, clap::Args)]
pub(crate) struct Reasoned {
    /// Why
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    which: Which,
}

fn state(text: &str) -> Result<RolloutState, String> {
    let name = format!("ROLLOUT_STATE_{}", text.to_ascii_uppercase());
    RolloutState::from_str_name(&name)
        .filter(|state| *state != RolloutState::Unspecified)
        .ok_or_else(|| format!("there is no state {text}"))
}

/// Does it, and shows what came of it.
pub(crate) async fn run(command: Command) -> Result<ExitCode, Error> {
    match command {
        Command::Start(asked) => start(*asked).await?,
        Command::List(list) => show_list(list).await?,
        Command::Show(which) => show_one(&which).await?,
        Command::Watch(which) => return watch::run(&which).await,
        Command::Advance(which) => advance(&which).await?,
        Command::Skip(asked) => skip(asked).await?,
        Command::Pause(asked) => pause(asked).await?,
        Command::Resume(asked) => resume(asked).await?,
        Command::Back(asked) => back(asked).await?,
        Command::Resolve(asked) => resolve(asked).await?,
        Command::Lift(asked) => lift(asked).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn start(asked: Start) -> Result<(), Error> {
    let Start { release, version, environment, plan, wait, common } = asked;
    let mut clients = common.clients(false)?;
    let release_id = match version {
        Some(version) => {
            let name = Some(get_release_request::Name::Ref(ReleaseRef { component: release, version }));
            let answer = clients.releases.get_release(GetReleaseRequest { name }).await?;
            answer.into_inner().release.unwrap_or_default().release_id
        }
        None if release.starts_with("rel_") => release,
        None => {
            let text = format!("say which version: `tandem rollout start {release} VERSION`");
            return Err(Error::Unusable(text));
        }
    };
    let request = plan.request(release_id, environment, wait);
    let answer = clients.rollouts.start_rollout(request).await?;
    plan.tell_own();
    outcome(&answer.into_inner().rollout.unwrap_or_default(), common.output)
}

async fn show_list(list: List) -> Result<(), Error> {
    let List { component, environment, states, limit, common } = list;
    let component = component.unwrap_or_default();
    let of = if component.is_empty() { "there is" } else { &format!("{component} has") };
    let is_narrowed = environment.is_some() || !states.is_empty();
    let none = format!("{of} no rollout{}", if is_narrowed { " of that kind" } else { "" });
    let request = ListRolloutsRequest {
        component: component.clone(),
        environment: environment.unwrap_or_default(),
        states: states.into_iter().map(Into::into).collect(),
        page_size: limit,
        page_token: String::new(),
    };
    let mut clients = common.clients(false)?;
    let answer = clients.rollouts.list_rollouts(request).await?.into_inner();
    if answer.rollouts.is_empty() && !component.is_empty() {
        // Of a component that is not there, the list is empty, too.
        clients.catalog.get_component(GetComponentRequest { component }).await?;
    }
    if common.output.json {
        output::json_list("tandem.release.v1.Rollout", &answer.rollouts)?;
    } else {
        show::list(&answer.rollouts, &none);
    }
    if !answer.next_page_token.is_empty() {
        term::note(format_args!("there are more than {limit}; --limit shows more"));
    }
    Ok(())
}

/// The rollout of that id, or the component's newest one of which anything can be done: one that visits may be on, else one
/// that waits, else the last that came about.
async fn find(clients: &mut ReleaseClients, which: &Which) -> Result<Rollout, Error> {
    let Which { name, environment, common: _ } = which;
    if name.starts_with("rlo_") {
        return Ok(get(clients, name).await?.rollout.unwrap_or_default());
    }
    let (waiting, under_way) = NOT_FINAL.split_at(1);
    for states in [under_way, waiting, &CAME_ABOUT, &[]] {
        if let Some(rollout) = ship::newest_rollout(clients, name, environment, states).await? {
            return Ok(rollout);
        }
    }
    let request = GetComponentRequest { component: name.clone() };
    clients.catalog.get_component(request).await?;
    Err(Error::Failed(format!("{name} has no rollout in {environment}")))
}

async fn get(clients: &mut ReleaseClients, rollout_id: &str) -> Result<GetRolloutResponse, Error> {
    let request = GetRolloutRequest { rollout_id: rollout_id.to_owned() };
    Ok(clients.rollouts.get_rollout(request).await?.into_inner())
}

async fn show_one(which: &Which) -> Result<(), Error> {
    let mut clients = which.common.clients(false)?;
    let Rollout { rollout_id, .. } = find(&mut clients, which).await?;
    let answer = get(&mut clients, &rollout_id).await?;
    if which.common.output.json {
        return output::json("tandem.release.v1.GetRolloutResponse", &answer);
    }
    let GetRolloutResponse { rollout, report } = answer;
    let (rollout, report) = (rollout.unwrap_or_default(), report.unwrap_or_default());
    for line in show::lines(&rollout, &report, Clock::system().now()) {
        term::say(line);
    }
    if rollout.state() == RolloutState::Waiting {
        let blockers = explain::ask(&mut clients, &rollout.release_id, &rollout.environment)
            .await?
            .blockers;
        if !blockers.is_empty() {
            term::say("  waits, because");
        }
        for blocker in &blockers {
            term::say(format_args!("    {}", explain::sentence(blocker, &rollout.release_id)));
        }
    }
    Ok(())
}

/// The etag keeps two of these from going two steps.
async fn advance(which: &Which) -> Result<(), Error> {
    let mut clients = which.common.clients(false)?;
    let Rollout { rollout_id, etag, .. } = find(&mut clients, which).await?;
    let request = AdvanceRolloutRequest { rollout_id, etag, request_id: String::new() };
    let answer = clients.rollouts.advance_rollout(request).await?;
    outcome(&answer.into_inner().rollout.unwrap_or_default(), which.common.output)
}

async fn skip(asked: Reasoned) -> Result<(), Error> {
    let Reasoned { reason, which } = asked;
    let mut clients = which.common.clients(false)?;
    let Rollout { rollout_id, etag, .. } = find(&mut clients, &which).await?;
    let request = SkipStepRequest { rollout_id, reason, etag, request_id: String::new() };
    let answer = clients.rollouts.skip_step(request).await?;
    outcome(&answer.into_inner().rollout.unwrap_or_default(), which.common.output)
}

async fn pause(asked: Reasoned) -> Result<(), Error> {
    let Reasoned { reason, which } = asked;
    let mut clients = which.common.clients(false)?;
    let Rollout { rollout_id, .. } = find(&mut clients, &which).await?;
    let request = PauseRolloutRequest { rollout_id, reason, request_id: String::new() };
    let answer = clients.rollouts.pause_rollout(request).await?;
    outcome(&answer.into_inner().rollout.unwrap_or_default(), which.common.output)
}

async fn resume(asked: Reasoned) -> Result<(), Error> {
    let Reasoned { reason, which } = asked;
    let mut clients = which.common.clients(true)?;
    let Rollout { rollout_id, etag, .. } = find(&mut clients, &which).await?;
    let request = ResumeRolloutRequest { rollout_id, reason, etag, request_id: String::new() };
    let answer = clients.rollouts.resume_rollout(request).await?;
    outcome(&answer.into_inner().rollout.unwrap_or_default(), which.common.output)
}

async fn resolve(asked: Reasoned) -> Result<(), Error> {
    let Reasoned { reason, which } = asked;
    let mut clients = which.common.clients(true)?;
    let Rollout { rollout_id, .. } = find(&mut clients, &which).await?;
    let request = ResolveRolloutRequest { rollout_id, reason, request_id: String::new() };
    let answer = clients.rollouts.resolve_rollout(request).await?;
    outcome(&answer.into_inner().rollout.unwrap_or_default(), which.common.output)
}

async fn lift(asked: Reasoned) -> Result<(), Error> {
    let Reasoned { reason, which } = asked;
    let mut clients = which.common.clients(true)?;
    let Rollout { rollout_id, .. } = find(&mut clients, &which).await?;
    let request = LiftHoldRequest { rollout_id, reason, request_id: String::new() };
    let answer = clients.rollouts.lift_hold(request).await?.into_inner();
    if which.common.output.json {
        return output::json("tandem.release.v1.LiftHoldResponse", &answer);
    }
    let Rollout { component, environment, .. } = answer.rollout.unwrap_or_default();
    let held = if answer.lifted { "is not held any more" } else { "was not held" };
    term::say(format_args!("{component} {held} in {environment}"));
    Ok(())
}

/// Waits a moment for session services to confirm it. What was taken back before it is told, and what does not hold any more.
async fn back(asked: Reasoned) -> Result<(), Error> {
    let Reasoned { reason, which } = asked;
    let mut clients = which.common.clients(false)?;
    let Rollout { rollout_id, .. } = find(&mut clients, &which).await?;
    let request = RollBackRolloutRequest { rollout_id, reason, request_id: String::new() };
    let mut answer = clients.rollouts.roll_back_rollout(request).await?.into_inner();
    let mut rollout = answer.rollout.take().unwrap_or_default();
    let began = tokio::time::Instant::now();
    while rollout.state() == RolloutState::RollingBack && began.elapsed() < CONFIRM_LIMIT {
        tokio::time::sleep(CONFIRM_POLL).await;
        rollout = get(&mut clients, &rollout.rollout_id).await?.rollout.unwrap_or_default();
    }
    let is_confirmed = rollout.state() != RolloutState::RollingBack;
    if which.common.output.json {
        answer.rollout = Some(rollout);
        output::json("tandem.release.v1.RollBackRolloutResponse", &answer)?;
    } else {
        for before in &answer.cascaded {
            term::say(format_args!("before it: {}", show::sentence(before)));
        }
        term::say(show::sentence(&rollout));
        for warning in &answer.warnings {
            term::note(format_args!("note: {warning}"));
        }
    }
    if is_confirmed {
        return Ok(());
    }
    Err(Error::Failed(format!(
        "exposure is 0, but that was not confirmed within {} s; `tandem rollout watch` tells when it is",
        CONFIRM_LIMIT.as_secs()
    )))
}

/// Where it stands after a command.
fn outcome(rollout: &Rollout, output: Output) -> Result<(), Error> {
    if output.json {
        return output::json("tandem.release.v1.Rollout", rollout);
    }
    term::say(show::sentence(rollout));
    Ok(())
}
