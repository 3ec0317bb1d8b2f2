//! The release service as a program of its own; `tandem serve release` runs the same.

use std::process::ExitCode;

use clap::Parser;

/// Tandem's release service
#[derive(Parser)]
#[command(version)]
struct Command {
    #[command(flatten)]
    args: release_svc::Args,
}

#[tokio::main]
async fn main() -> ExitCode {
    release_svc::run(Command::parse().args).await
}
