//! `session-svc`.

use std::process::ExitCode;

use clap::Parser;

/// Tandem's session service: sessions, carts and the releases that visits are pinned to
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    args: session_svc::Args,
}

#[tokio::main]
async fn main() -> ExitCode {
    session_svc::run(Cli::parse().args).await
}
