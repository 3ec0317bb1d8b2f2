//! `cargo bench -p tests`: measures what the services promise of their speed, and what guards of rollouts find, and writes
//! docs/benchmarks.md.
//!
//! Needs Linux, and a machine with nothing else to do. The servers that it measures are processes of this binary.

mod client;
mod collector;
mod cpu;
mod load;
mod machine;
mod page;
mod pgbench;
mod population;
mod postgres;
mod release;
mod rounds;
mod rows;
mod serve;
mod server;
mod shop;
mod shopper;
mod stand;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum as _};

use rows::Row;
use stand::{Plan, Stand, note};

/// Whatever went wrong, told on the page or on stderr; nothing here is handled.
type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Measures the services and the guards of rollouts, and writes the page of it
#[derive(Parser)]
#[command(name = "figures", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    serve: Option<serve::Command>,
    /// Which rows [default: all]
    #[arg(long, value_delimiter = ',')]
    rows: Vec<Row>,
    /// Rounds of each comparison
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of a run
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// How long the memory row keeps up its load
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// Hundredth-size data, to try the tool
    #[arg(long)]
    quick: bool,
    /// Also with 5 M sessions
    #[arg(long)]
    large: bool,
    /// The page [default: docs/benchmarks.md of the repository]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Where PostgreSQL's files are put meanwhile [default: the system's folder for temporary files]
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// As PostgreSQL's own setting
    #[arg(long, default_value = "1GB")]
    shared_buffers: String,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(command) = cli.serve {
        return Box::pin(serve::run(command)).await;
    }
    // Stopped midway, it still removes what it made.
    let outcome = tokio::select! {
        outcome = Box::pin(measure(cli)) => outcome,
        () = shared::serve::stop_signal(false) => Err("stopped; no page was written".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Measures row by row; one that fails is told on the page, and makes the whole run fail in the end.
async fn measure(cli: Cli) -> Outcome<()> {
    let plan = Plan {
        rounds: cli.rounds.max(1),
        time: Duration::from_secs_f64(cli.seconds),
        quick: cli.quick,
        large: cli.large,
        soak: Duration::from_secs_f64(cli.minutes * 60.0),
    };
    let out = cli
        .out
        .unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/benchmarks.md").into());
    let all = Row::value_variants();
    let rows = if cli.rows.is_empty() { all } else { &cli.rows };
    let stand = Stand::open(plan, cli.folder, &cli.shared_buffers).await?;
    let mut sections = vec![];
    for row in rows {
        note(&row.name());
        let section = Box::pin(row.run(&stand))
            .await
            .map_err(|error| format!("{}: {error}", row.name()).into());
        if let Err(error) = &section {
            note(&format!("  {error}"));
        }
        sections.push(section);
    }
    page::write(&out, &stand, &sections).await?;
    stand.close().await;
    note(&format!("wrote {}", out.display()));
    sections.into_iter().try_for_each(|section| section.map(drop))
}
