//! `tandem rollout watch`: a rollout as it goes, until it is final. On a terminal it is redrawn in place, elsewhere each
//! change is a line.

use std::process::ExitCode;
use std::time::Duration;

use console::{Term, truncate_str};
use shared::pb::common::Reason;
use shared::pb::release::{RolloutState, WatchRolloutRequest, WatchRolloutResponse};
use shared::time::Clock;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tonic::{Code, Status, Streaming};

use super::{Which, find, show};
use crate::client;
use crate::error::Error;
use crate::output;
use crate::term;

/// For how long a service that went away is asked again.
const PATIENCE: Duration = Duration::from_mins(1);
const RETRY: Duration = Duration::from_secs(1);
/// Times in the view go on though nothing happens.
const REDRAW: Duration = Duration::from_secs(1);

/// Follows it to its end; only success is a success.
pub(super) async fn run(which: &Which) -> Result<ExitCode, Error> {
    let mut clients = which.common.clients(false)?;
    let rollout_id = find(&mut clients, which).await?.rollout_id;
    let mut view = View::new(which.common.output.json);
    let mut heard = Instant::now();
    loop {
        // A watch may last longer than a token.
        let mut rollouts = which.common.clients(false)?.rollouts;
        let request = WatchRolloutRequest { rollout_id: rollout_id.clone() };
        let end = match rollouts.watch_rollout(request).await {
            Ok(answer) => follow(answer.into_inner(), &mut view, &mut heard).await?,
            Err(status) => Err(status),
        };
        match end {
            Ok(RolloutState::Succeeded) => return Ok(ExitCode::SUCCESS),
            Ok(_) => return Ok(ExitCode::FAILURE),
            Err(status) if may_pass(&status) && heard.elapsed() < PATIENCE => sleep(RETRY).await,
            Err(status) => return Err(status.into()),
        }
    }
}

/// Shows what comes; the final state, or why nothing more comes.
async fn follow(
    mut stream: Streaming<WatchRolloutResponse>,
    view: &mut View,
    heard: &mut Instant,
) -> Result<Result<RolloutState, Status>, Error> {
    let mut tick = interval(REDRAW);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            answer = stream.message() => match answer {
                Ok(Some(response)) => {
                    *heard = Instant::now();
                    let rollout = response.rollout.clone().unwrap_or_default();
                    let is_final = rollout.end_time.is_some();
                    view.take(response)?;
                    if is_final {
                        view.end(&show::sentence(&rollout));
                        return Ok(Ok(rollout.state()));
                    }
                }
                Ok(None) => return Ok(Err(Status::unavailable("the service ended the watch"))),
                Err(status) => return Ok(Err(status)),
            },
            _ = tick.tick() => {
                *heard = Instant::now();
                view.redraw();
            }
        }
    }
}

/// Whether to ask again: the service says so or is away, or the way there broke, which tells no reason of ours.
fn may_pass(status: &Status) -> bool {
    let reason = client::reason(status);
    status.code() == Code::Unavailable || reason.is_none_or(|reason| reason == Reason::ReaderTooSlow)
}

/// What whoever looks has before them.
enum View {
    /// The last answer, and how many lines of the terminal it takes.
    Terminal {
        term: Term,
        shown: Option<Box<WatchRolloutResponse>>,
        height: usize,
    },
    /// The last line.
    Lines(String),
    Json,
}

impl View {
    fn new(is_json: bool) -> Self {
        // What is redrawn appears at once.
        let term = Term::buffered_stdout();
        match (is_json, term.is_term()) {
            (true, _) => Self::Json,
            (false, true) => Self::Terminal { term, shown: None, height: 0 },
            (false, false) => Self::Lines(String::new()),
        }
    }

    fn take(&mut self, response: WatchRolloutResponse) -> Result<(), Error> {
        match self {
            Self::Json => output::json_line("tandem.release.v1.WatchRolloutResponse", &response)?,
            Self::Lines(last) => {
                let WatchRolloutResponse { rollout, report } = response;
                let line = show::line(&rollout.unwrap_or_default(), &report.unwrap_or_default());
                // Some of what is told changes nothing that a line has.
                if *last != line {
                    term::say(format_args!("{} {line}", Clock::system().now().format("%H:%M:%SZ")));
                    *last = line;
                }
            }
            Self::Terminal { shown, .. } => {
                *shown = Some(Box::new(response));
                self.redraw();
            }
        }
        Ok(())
    }

    /// Lines are cut to the terminal, as one that it wraps would be cleared in part only.
    fn redraw(&mut self) {
        let Self::Terminal { term, shown: Some(response), height } = self else { return };
        let WatchRolloutResponse { rollout, report } = response.as_ref().clone();
        let (rollout, report) = (rollout.unwrap_or_default(), report.unwrap_or_default());
        let lines = show::lines(&rollout, &report, Clock::system().now());
        let (rows, width) = term.size();
        let fitting = usize::from(rows).saturating_sub(1).min(lines.len());
        // Where nobody looks any more, there is nothing to draw.
        let _ = term.clear_last_lines(*height);
        for line in &lines[..fitting] {
            let _ = term.write_line(&truncate_str(line, width.into(), "…"));
        }
        let _ = term.flush();
        *height = fitting;
    }

    /// The last word to people; a view may have cut it.
    fn end(&self, sentence: &str) {
        if !matches!(self, Self::Json) {
            term::say(sentence);
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::status::Refusal;

    use super::*;

    #[test]
    fn what_the_service_refuses_is_not_asked_again() {
        let of = |reason| Refusal::new(reason, "no").into_status();
        for status in [
            Status::unknown("the connection broke"),
            of(Reason::ShuttingDown),
            of(Reason::StorageUnavailable),
            of(Reason::ReaderTooSlow),
        ] {
            assert!(may_pass(&status), "{status:?}");
        }
        for reason in [Reason::RolloutNotFound, Reason::CallerNotOwner] {
            assert!(!may_pass(&of(reason)), "{reason:?}");
        }
    }
}
