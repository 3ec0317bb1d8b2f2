//! `tandem serve`: one service as a process, configured by flags and variables.

use std::process::ExitCode;

/// Which service.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Run session-svc
    Session(session_svc::Args),
    /// Run release-svc
    Release(release_svc::Args),
}

/// Serves until told to stop.
pub(crate) async fn run(command: Command) -> ExitCode {
    match command {
        Command::Session(args) => session_svc::run(args).await,
        Command::Release(args) => release_svc::run(args).await,
    }
}
