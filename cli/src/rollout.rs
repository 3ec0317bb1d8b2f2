//! `tandem rollout`: moves a component's newest rollout on, or takes it back.

use std::process::ExitCode;
use std::time::Duration;

use shared::pb::release::{
    AdvanceRolloutRequest, GetRolloutRequest, RollBackRolloutRequest, Rollout, RolloutState,
};

use crate::client::ReleaseClients;
use crate::error::Error;
use crate::percent::Percent;
use crate::ship::{self, ENVIRONMENT};
use crate::stack::{self, Stack};
use crate::term;
use crate::token::Identity;

/// How long session services are waited for to confirm a rollback.
const CONFIRM_LIMIT: Duration = Duration::from_secs(10);
const CONFIRM_POLL: Duration = Duration::from_millis(200);

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Go to the next step
    Advance(Args),
    /// Take exposure to 0; visits with an open checkout stay until it ends
    Rollback {
        /// Why
        #[arg(long, default_value = "by hand", value_name = "TEXT")]
        reason: String,
        #[command(flatten)]
        args: Args,
    },
    /// Show where it stands
    Show(Args),
}

/// Which rollout: the component's newest in the environment.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The component
    #[arg(value_name = "NAME")]
    component: String,
    /// Where
    #[arg(long, default_value = ENVIRONMENT, value_name = "NAME")]
    environment: String,
    #[command(flatten)]
    identity: Identity,
    #[command(flatten)]
    stack: stack::Args,
}

/// Does it, and shows where the rollout stands then.
pub(crate) async fn run(command: Command) -> Result<ExitCode, Error> {
    let (Command::Advance(args) | Command::Rollback { args, .. } | Command::Show(args)) = &command;
    let stack = Stack::open(&args.stack)?;
    let token = stack.sign(&args.identity.grant(), chrono::TimeDelta::minutes(10))?;
    let mut clients = ReleaseClients::new(stack.state()?.release.address, &token);
    let rollout = newest(&mut clients, args).await?;
    let rollout = match &command {
        Command::Show(_) => rollout,
        Command::Advance(_) => advance(&mut clients, rollout).await?,
        Command::Rollback { reason, .. } => roll_back(&mut clients, rollout, reason).await?,
    };
    show(&rollout);
    if matches!(command, Command::Rollback { .. }) && rollout.state() == RolloutState::RollingBack {
        return Err(Error::Failed(format!(
            "exposure is 0, but that was not confirmed within {} s; `tandem rollout show` tells when it is",
            CONFIRM_LIMIT.as_secs()
        )));
    }
    Ok(ExitCode::SUCCESS)
}

async fn newest(clients: &mut ReleaseClients, args: &Args) -> Result<Rollout, Error> {
    let Args { component, environment, .. } = args;
    ship::newest_rollout(clients, component, environment, &[])
        .await?
        .ok_or_else(|| Error::Failed(format!("{component} has no rollout in {environment}")))
}

/// The etag keeps two of these from going two steps.
async fn advance(clients: &mut ReleaseClients, rollout: Rollout) -> Result<Rollout, Error> {
    let Rollout { rollout_id, etag, .. } = rollout;
    let request = AdvanceRolloutRequest { rollout_id, etag, request_id: String::new() };
    let answer = clients.rollouts.advance_rollout(request).await?;
    Ok(answer.into_inner().rollout.unwrap_or_default())
}

async fn roll_back(clients: &mut ReleaseClients, rollout: Rollout, reason: &str) -> Result<Rollout, Error> {
    let rollout_id = rollout.rollout_id;
    let request = RollBackRolloutRequest {
        rollout_id: rollout_id.clone(),
        reason: reason.to_owned(),
        request_id: String::new(),
    };
    let answer = clients.rollouts.roll_back_rollout(request).await?;
    let mut rollout = answer.into_inner().rollout.unwrap_or_default();
    let began = std::time::Instant::now();
    while rollout.state() == RolloutState::RollingBack && began.elapsed() < CONFIRM_LIMIT {
        tokio::time::sleep(CONFIRM_POLL).await;
        let request = GetRolloutRequest { rollout_id: rollout_id.clone() };
        rollout = clients
            .rollouts
            .get_rollout(request)
            .await?
            .into_inner()
            .rollout
            .unwrap_or_default();
    }
    Ok(rollout)
}

fn show(rollout: &Rollout) {
    let Rollout { component, environment, version, previous_version, .. } = rollout;
    let what = format!("{component} {version} in {environment}");
    let before = if previous_version.is_empty() { "nothing" } else { previous_version };
    match rollout.state() {
        RolloutState::Running => {
            let steps: Vec<_> =
                rollout.step_exposures_bps.iter().map(|bps| Percent(*bps).to_string()).collect();
            let share = match Percent(rollout.exposure_bps) {
                everyone @ Percent(10_000) => format!("{everyone} of visits, to be advanced once more"),
                share => format!("{share} of visits, the rest on {before}"),
            };
            term::say(format_args!("{what}: {share} (step {} of {})", rollout.step + 1, steps.join(", ")));
        }
        RolloutState::Succeeded => term::say(format_args!("{what}: on every new visit")),
        RolloutState::RollingBack => term::say(format_args!(
            "{what}: rolled back to {before} ({}); not every session service has confirmed it yet",
            rollout.rollback_reason
        )),
        RolloutState::RolledBack => term::say(format_args!(
            "{what}: rolled back to {before} ({}); no new visit gets it; visits with an open checkout keep it until that ends",
            rollout.rollback_reason
        )),
        RolloutState::Unspecified => term::say(format_args!("{what}: unknown to this version of tandem")),
    }
}
