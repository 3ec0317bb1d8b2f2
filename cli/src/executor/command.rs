//! A command that runs, in a process group of its own, so that it is stopped with all that it started. Its standard error is
//! passed on, and its last words are kept.

use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// How long a command that is told to stop has for it.
const GRACE: Duration = Duration::from_secs(5);
/// How long its last words are waited for: what it left running may keep the stream open for ever.
const LAST_WORDS: Duration = Duration::from_millis(200);
const LINES_MAX: usize = 10;
const CHARS_MAX: usize = 1000;

/// A command that runs.
pub(super) struct Running {
    child: Child,
    /// Its process group, too.
    pid: Option<u32>,
    lines: Arc<Mutex<VecDeque<String>>>,
    reader: TaskTracker,
}

/// How it ended.
pub(super) struct Ended {
    pub(super) is_success: bool,
    /// As a person says it.
    pub(super) how: String,
    /// The last lines of its standard error.
    pub(super) last_words: String,
}

impl Running {
    /// Runs a program with its arguments.
    pub(super) fn start(command: &[String], variables: &[(&'static str, String)]) -> std::io::Result<Self> {
        let (program, arguments) = command
            .split_first()
            .ok_or_else(|| std::io::Error::other("there is no command"))?;
        let mut child = Command::new(program)
            .args(arguments)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let (lines, reader) = (Arc::default(), TaskTracker::new());
        if let Some(stderr) = child.stderr.take() {
            reader.spawn(pass_on(stderr, Arc::clone(&lines)));
        }
        reader.close();
        Ok(Self { pid: child.id(), child, lines, reader })
    }

    /// Waits for its end. What it left running goes on.
    pub(super) async fn wait(&mut self) -> Ended {
        let status = self.child.wait().await;
        let _ = timeout(LAST_WORDS, self.reader.wait()).await;
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let last_words = lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
        match status {
            Ok(status) => Ended { is_success: status.success(), how: told(status), last_words },
            Err(error) => Ended { is_success: false, how: error.to_string(), last_words },
        }
    }

    /// Stops it, gently at first.
    pub(super) async fn stop(&mut self) {
        self.signal("TERM").await;
        if timeout(GRACE, self.child.wait()).await.is_err() {
            self.signal("KILL").await;
            let _ = self.child.wait().await;
        }
    }

    /// std sends none; the program is in POSIX.
    async fn signal(&self, name: &str) {
        if let Some(pid) = self.pid {
            let mut kill = Command::new("kill");
            let _ = kill
                .args(["-s", name, "--", &format!("-{pid}")])
                .stderr(Stdio::null())
                .status()
                .await;
        }
    }
}

fn told(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => "done".to_owned(),
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

async fn pass_on(stderr: ChildStderr, lines: Arc<Mutex<VecDeque<String>>>) {
    let (mut reader, mut ours) = (BufReader::new(stderr), tokio::io::stderr());
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
        // Nobody may be listening any more.
        let _ = ours.write_all(&line).await;
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
        if lines.len() > LINES_MAX {
            lines.pop_front();
        }
        drop(lines);
        line.clear();
    }
}

/// The end of a text, as much as a report takes of it: without control characters, such as those that colour it.
pub(super) fn tail(text: &str) -> String {
    let plain = text.chars().filter(|char| *char == '\n' || !char.is_control());
    let plain: Vec<_> = plain.collect();
    let tail: String = plain[plain.len().saturating_sub(CHARS_MAX)..].iter().collect();
    tail.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_takes_the_end_of_a_long_text_without_colours() {
        assert_eq!(tail("\u{1b}[31mno room\u{1b}[0m\r\n\n"), "[31mno room[0m");
        let long = format!("{}{}", "a".repeat(5000), "ü".repeat(999));
        assert_eq!(tail(&long), format!("a{}", "ü".repeat(999)));
        assert_eq!(tail("\n \n"), "");
    }
}
