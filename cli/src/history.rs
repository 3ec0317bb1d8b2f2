//! `tandem history import`: deployments of the past, from a file with one JSON object a line. What was imported before is
//! known again, so that the command may be repeated after it was cut off; `docs/insight.md` describes the file.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use chrono::TimeDelta;
use indicatif::{ProgressBar, ProgressStyle};
use shared::pb::release::insight_service_client::InsightServiceClient;
use shared::pb::release::{ImportHistoryRequest, ImportHistoryResponse};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::client::{self, Authorized, Bearer};
use crate::error::Error;
use crate::stack::{self, Stack};
use crate::term;
use crate::token::Identity;

mod line;

/// Records of one call: with 200 commits each it is well below the size that services take.
const BATCH: usize = 100;
/// Calls that fail because the service is away are made again, after twice the delay each time.
const ATTEMPTS: u32 = 5;
const FIRST_DELAY: Duration = Duration::from_millis(250);

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Import deployments, so that figures begin with them; run again, it goes on where it stopped
    Import(Args),
}

/// Options of the import.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One JSON object a line
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The component that was deployed
    #[arg(long, value_name = "NAME")]
    component: String,
    /// Where to
    #[arg(long, value_name = "NAME")]
    environment: String,
    /// Look whether all of it can be imported, and import nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    identity: Identity,
    #[command(flatten)]
    stack: stack::Args,
}

/// Imports.
pub(crate) async fn run(command: Command) -> Result<ExitCode, Error> {
    let Command::Import(args) = command;
    let text = std::fs::read_to_string(&args.file)
        .map_err(|error| Error::Unusable(format!("cannot read {}: {error}", args.file.display())))?;
    let lines =
        line::read(&text).map_err(|error| Error::Unusable(format!("{}:{error}", args.file.display())))?;
    let (lines, concluded) = line::conclude(lines);
    let stack = Stack::open(&args.stack)?;
    let token = stack.sign(&args.identity.grant(), TimeDelta::minutes(10))?;
    let channel = client::channel(stack.state()?.release.address);
    let mut insight = InsightServiceClient::with_interceptor(channel, Bearer::new(&token));
    // Nobody sees it where standard error is no terminal.
    let bar = ProgressBar::new(u64::try_from(lines.len()).unwrap_or(u64::MAX)).with_style(style());
    let mut sum = ImportHistoryResponse::default();
    for batch in lines.chunks(BATCH) {
        let request = ImportHistoryRequest {
            component: args.component.clone(),
            environment: args.environment.clone(),
            records: batch.iter().map(line::Line::to_record).collect(),
            validate_only: args.dry_run,
            request_id: String::new(),
        };
        let answer = import(&mut insight, request).await;
        let answer = answer
            .inspect_err(|_| bar.abandon())
            .map_err(|status| named(&args.file, batch, &status))?;
        sum.imported_count += answer.imported_count;
        sum.known_count += answer.known_count;
        bar.inc(u64::try_from(batch.len()).unwrap_or(u64::MAX));
    }
    bar.finish_and_clear();
    if concluded > 0 {
        term::say(format_args!(
            "{concluded} count as failed, as the next version came within three days and was mostly fixes or reverts"
        ));
    }
    let Args { component, environment, dry_run, .. } = args;
    let done = if dry_run { "would be imported" } else { "imported" };
    let ImportHistoryResponse { imported_count, known_count } = sum;
    term::say(format_args!(
        "{imported_count} deployments of {component} to {environment} {done}; {known_count} were known"
    ));
    Ok(ExitCode::SUCCESS)
}

/// A service that is away for a moment is asked again, which is safe as it takes every record once.
async fn import(
    insight: &mut InsightServiceClient<Authorized>,
    request: ImportHistoryRequest,
) -> Result<ImportHistoryResponse, Status> {
    let mut delay = FIRST_DELAY;
    for _ in 1..ATTEMPTS {
        match insight.import_history(request.clone()).await {
            Err(status) if is_passing(status.code()) => tokio::time::sleep(delay).await,
            outcome => return outcome.map(tonic::Response::into_inner),
        }
        delay *= 2;
    }
    insight.import_history(request).await.map(tonic::Response::into_inner)
}

fn is_passing(code: Code) -> bool {
    [Code::Unavailable, Code::DeadlineExceeded, Code::Aborted, Code::ResourceExhausted].contains(&code)
}

/// The refusal with the line of the file that it is about, and the field's name there, if it is about one.
fn named(file: &Path, batch: &[line::Line], status: &Status) -> Error {
    let details = status.get_details_bad_request();
    let violation = details.and_then(|details| details.field_violations.into_iter().next());
    let told = violation.and_then(|violation| {
        let (number, field) = place(batch, &violation.field)?;
        let why = violation.description;
        // Another record is told by its line, too.
        let why = match why.split_once("records[") {
            Some((before, other)) => {
                format!("{before}line {}", place(batch, &format!("records[{other}.version"))?.0)
            }
            None => why,
        };
        Some(format!(
            "{}:{number}: {field} {why}; nothing of this line's hundred was imported",
            file.display()
        ))
    });
    told.map_or_else(|| status.clone().into(), Error::Failed)
}

/// The line and the field that `records[3].version` stands for.
fn place<'a>(batch: &[line::Line], field: &'a str) -> Option<(usize, &'a str)> {
    let (place, field) = field.strip_prefix("records[")?.split_once("].")?;
    Some((batch.get(place.parse::<usize>().ok()?)?.number, line::key(field)))
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{bar:40} {pos}/{len} deployments, {eta} to go")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use shared::status::Refusal;

    use super::*;

    #[test]
    fn a_refusal_names_the_line_and_the_field_as_the_file_does() {
        let text =
            |version: &str| format!(r#"{{"version":"{version}","released_at":"2026-01-01T00:00:00Z"}}"#);
        let batch = line::read(&format!("{}\n\n{}", text("1"), text("1"))).unwrap();
        for (field, problem, told) in [
            ("records[1].deploy_time", "must be past", "f:3: deployed_at must be past;"),
            ("records[0].commit_times[2]", "must be past", "f:1: commit_times must be past;"),
            (
                "records[1].version",
                "is the same deployment as records[0]",
                "f:3: version is the same deployment as line 1;",
            ),
            ("component", "must be a name", "component: must be a name (FIELD_INVALID)"),
        ] {
            let said =
                named(Path::new("f"), &batch, &Refusal::field(field, problem).into_status()).to_string();
            assert!(said.starts_with(told), "{said}");
        }
    }
}
