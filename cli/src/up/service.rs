//! One service as a child process: started, waited for, started again when it dies, stopped.
//!
//! Its standard input is a pipe whose other end only we hold, and it stops when that closes, which the kernel does however
//! we end. Its log is a locked file that the child inherits, so that the lock lasts until the child, too, is gone.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::process::{Child, ChildStdin, Command};

use super::restart::Restarts;
use crate::check;
use crate::error::Error;
use crate::stack::{Process, Stack, StackError};
use crate::term;

/// Recovery of the database and migrations take their time; anything beyond this is stuck.
const READY_LIMIT: Duration = Duration::from_mins(1);
const READY_POLL: Duration = Duration::from_millis(25);
/// Above what a service itself allows calls in flight.
const STOP_LIMIT: Duration = Duration::from_secs(30);
const LOCK_POLL: Duration = Duration::from_millis(50);
const TAIL_LINES: usize = 5;

/// A service of the stack.
pub(super) struct Service {
    /// `session` or `release`.
    name: &'static str,
    /// Where it listens; port 0 until the system chose one.
    address: SocketAddr,
    variables: Vec<(&'static str, String)>,
    address_file: PathBuf,
    log: Log,
    running: Option<Running>,
}

struct Running {
    child: Child,
    pid: u32,
    /// Our end of the pipe; `wait` of a child that still had it would close it.
    leash: ChildStdin,
    born: Instant,
}

impl Service {
    /// Takes the log and checks that the port is free; starts nothing.
    pub(super) async fn prepare(
        stack: &Stack,
        name: &'static str,
        listen: SocketAddr,
    ) -> Result<Self, Error> {
        let mut log = Log::take(&stack.path(&format!("{name}.log"))).await?;
        log.clear();
        TcpListener::bind(listen).map_err(|error| {
            Error::Unusable(format!(
                "cannot listen on {listen}: {error}. Stop what uses the port, or choose another with --{name}-listen"
            ))
        })?;
        let address_file = stack.path(&format!("{name}.addr"));
        Ok(Self { name, address: listen, variables: Vec::new(), address_file, log, running: None })
    }

    /// Starts it with these variables and waits until it is serving.
    pub(super) async fn start(
        &mut self,
        variables: Vec<(&'static str, String)>,
    ) -> Result<SocketAddr, Error> {
        self.variables = variables;
        self.spawn()?;
        let began = Instant::now();
        while began.elapsed() < READY_LIMIT {
            if let Some(running) = &mut self.running
                && let Ok(Some(status)) = running.child.try_wait()
            {
                let said = self.log.tail();
                let remedy = remedy(&said);
                let what = format!(
                    "{}-svc did not start; it ended with {status} and said:\n{said}{remedy}",
                    self.name
                );
                // Its own exit code says whether trying again would help.
                return Err(if status.code() == Some(2) {
                    Error::Unusable(what)
                } else {
                    Error::Failed(what)
                });
            }
            if let Some(address) = self.read_address()
                && check::health(address).await.is_ok()
            {
                self.address = address;
                return Ok(address);
            }
            tokio::time::sleep(READY_POLL).await;
        }
        let limit = READY_LIMIT.as_secs();
        Err(Error::Failed(format!(
            "{}-svc was not ready within {limit} s; its log ends with:\n{}",
            self.name,
            self.log.tail()
        )))
    }

    /// The process and where it listens.
    pub(super) fn process(&self) -> Process {
        Process { pid: self.running.as_ref().map_or(0, |running| running.pid), address: self.address }
    }

    /// Starts it again whenever it dies, and tells; ends when that does not help.
    pub(super) async fn keep(&mut self, changed: impl Fn(Process)) -> Error {
        let mut restarts = Restarts::default();
        loop {
            let Some(running) = &mut self.running else { return self.hopeless("it is not running") };
            let status = running.child.wait().await;
            let age = running.born.elapsed();
            // Who wrote no address did not get to listen.
            let lived = if self.read_address().is_some() { age } else { Duration::ZERO };
            self.running = None;
            let how = status.map_or_else(|error| error.to_string(), |status: ExitStatus| status.to_string());
            let Some(delay) = restarts.after(lived) else { return self.hopeless(&how) };
            term::note(format_args!(
                "{}-svc died ({how}); it is started again in {:.1} s",
                self.name,
                delay.as_secs_f64()
            ));
            tokio::time::sleep(delay).await;
            if let Err(error) = self.spawn() {
                return error;
            }
            changed(self.process());
        }
    }

    /// Lets calls in flight finish, for a while.
    pub(super) async fn stop(&mut self) {
        let Some(Running { mut child, leash, .. }) = self.running.take() else { return };
        drop(leash);
        if tokio::time::timeout(STOP_LIMIT, child.wait()).await.is_err() {
            term::note(format_args!(
                "{}-svc did not stop within {} s and is killed",
                self.name,
                STOP_LIMIT.as_secs()
            ));
            let _ = child.kill().await;
        }
    }

    fn spawn(&mut self) -> Result<(), Error> {
        let failed = |error: std::io::Error| Error::Failed(format!("cannot run {}-svc: {error}", self.name));
        // An address of an earlier run would be taken for the new one's; it is missing the first time.
        let _ = std::fs::remove_file(&self.address_file);
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command
            .args(["serve", self.name, "--stop-with-stdin", "--address-file"])
            .arg(&self.address_file)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .env("TANDEM_LISTEN", self.address.to_string())
            // It would go before the file.
            .env_remove("TANDEM_KEYRING_JSON")
            // The log is a file.
            .env("NO_COLOR", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(self.log.share().map_err(failed)?)
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(failed)?;
        let (Some(leash), Some(pid)) = (child.stdin.take(), child.id()) else {
            return Err(failed(std::io::Error::other("it ended at once")));
        };
        self.running = Some(Running { child, pid, leash, born: Instant::now() });
        Ok(())
    }

    fn read_address(&self) -> Option<SocketAddr> {
        std::fs::read_to_string(&self.address_file).ok()?.trim().parse().ok()
    }

    fn hopeless(&mut self, how: &str) -> Error {
        let Self { name, log, .. } = self;
        Error::Failed(format!("{name}-svc dies again and again ({how}); its log ends with:\n{}", log.tail()))
    }
}

/// A log that only one process tree writes to.
struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    async fn take(path: &Path) -> Result<Self, Error> {
        let failed = |error| StackError::Folder(path.to_owned(), error);
        let file = OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(path);
        let file = file.map_err(failed)?;
        wait_for_lock(&file, path).await?;
        Ok(Self { file, path: path.to_owned() })
    }

    fn clear(&mut self) {
        // An old line more does no harm.
        let _ = self.file.set_len(0);
    }

    fn share(&self) -> std::io::Result<File> {
        self.file.try_clone()
    }

    fn tail(&mut self) -> String {
        let mut text = Vec::new();
        let read = self
            .file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.file.read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        if read.is_ok() && !tail.is_empty() { tail } else { format!("(nothing in {})", self.path.display()) }
    }
}

/// Waits until what an earlier run left behind is gone; it was told to stop when that run ended.
pub(super) async fn wait_for_lock(file: &File, path: &Path) -> Result<(), Error> {
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(StackError::Folder(path.to_owned(), error).into()),
            Err(TryLockError::WouldBlock) => {}
        }
        if began.elapsed() > STOP_LIMIT {
            let path = path.display();
            return Err(Error::Unusable(format!("a process of an earlier run still writes {path}: stop it")));
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
}

/// What helps against what a service ended with.
fn remedy(said: &str) -> &'static str {
    // In sqlx's words: a migration was edited, or is one of a later build.
    if said.contains("was previously applied but") {
        "\nThe data is of another build of Tandem: `tandem up --fresh` forgets it, --data-dir names another folder"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use sqlx::migrate::MigrateError;

    use super::*;

    #[test]
    fn data_of_another_build_has_a_way_out() {
        for error in [MigrateError::VersionMismatch(1), MigrateError::VersionMissing(99)] {
            assert!(remedy(&error.to_string()).contains("--fresh"), "{error}");
        }
        assert_eq!(remedy("no space left on device"), "");
    }
}
