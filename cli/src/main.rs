//! The `tandem` command: the local stack, the services themselves, and what operators need. One file per command.

mod approve;
mod audit;
mod check;
mod client;
mod error;
mod executor;
mod history;
mod init;
mod insight;
mod keys;
mod output;
mod percent;
mod release;
mod replay;
mod rollout;
mod seed;
mod serve;
mod ship;
mod stack;
mod term;
mod token;
mod up;

use std::process::ExitCode;

use clap::Parser as _;

/// Sessions that survive releases, and the releases: the local stack, the services, and what operators need
#[derive(clap::Parser)]
#[command(name = "tandem", version, after_help = "Without a command, `tandem up` runs.")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Run the local stack: a private PostgreSQL, both services, and an example to try (the default)
    Up(up::Args),
    /// Run one service
    #[command(subcommand)]
    Serve(Box<serve::Command>),
    /// Print an access token of the local issuer
    Token(token::Args),
    /// Create, submit and roll out a release in one go; run again, it goes on where it stopped. Exits with 3 while the
    /// release waits for approval
    Ship(Box<ship::Args>),
    /// Take a release from draft to approved, and see what keeps it
    #[command(subcommand, after_help = release::EXAMPLES)]
    Release(release::Command),
    /// Vote on releases, as a person
    #[command(subcommand, after_help = approve::EXAMPLES)]
    Approve(approve::Command),
    /// Move a release into an environment step by step, follow it, or take it back
    #[command(subcommand, after_help = rollout::EXAMPLES)]
    Rollout(rollout::Command),
    /// Deploy: run a command for each task that rollouts have for an executor
    Executor(executor::Args),
    /// Sign or check the audit trail of release-svc
    #[command(subcommand)]
    Audit(audit::Command),
    /// Show how delivery of a component goes: DORA's five metrics and what belongs to them
    Insight(insight::Args),
    /// Import what happened before Tandem was there
    #[command(subcommand)]
    History(history::Command),
    /// Drive the running stack with real shop sessions while real releases are rolled out, and check its promises
    Replay(replay::Args),
    /// Make the files that both services need to start: local issuer, key ring, session-svc's token
    Init(init::Args),
    /// Ask a service whether it is healthy
    Check(check::Args),
    /// List, rotate or retire the keys of the key ring
    #[command(subcommand)]
    Keys(keys::Command),
}

#[tokio::main]
async fn main() -> ExitCode {
    // A command line without a command stands for `up`, whose options may still come from variables.
    let command = Cli::parse().command.or_else(|| Cli::parse_from(["tandem", "up"]).command);
    let Some(command) = command else { return ExitCode::SUCCESS };
    let outcome = match command {
        Command::Up(args) => Box::pin(up::run(args)).await,
        Command::Serve(command) => return Box::pin(serve::run(*command)).await,
        Command::Token(args) => token::run(args),
        Command::Ship(args) => Box::pin(ship::run(*args)).await,
        Command::Release(command) => Box::pin(release::run(command)).await,
        Command::Approve(command) => Box::pin(approve::run(command)).await,
        Command::Rollout(command) => Box::pin(rollout::run(command)).await,
        Command::Executor(args) => Box::pin(executor::run(args)).await,
        Command::Audit(command) => Box::pin(audit::run(command)).await,
        Command::Insight(args) => Box::pin(insight::run(args)).await,
        Command::History(command) => Box::pin(history::run(command)).await,
        Command::Replay(args) => match stack::Stack::open(&args.stack) {
            Ok(stack) => return Box::pin(replay::run(args, &stack)).await,
            Err(error) => Err(error.into()),
        },
        Command::Init(args) => init::run(&args),
        Command::Check(args) => check::run(args).await,
        Command::Keys(command) => keys::run(command),
    };
    outcome.unwrap_or_else(|error| {
        term::note(&error);
        error.exit_code()
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
