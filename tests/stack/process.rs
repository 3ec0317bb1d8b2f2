//! Processes and folders that never outlive the test, however it ends.

use std::fs::{self, DirBuilder};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use shared::config;

/// What a developer may have set, and a test must not see.
const CLEARED: [&str; 24] = [
    "DATABASE_URL",
    "TANDEM_SESSION_DATABASE_URL",
    "TANDEM_RELEASE_DATABASE_URL",
    "TANDEM_CALLER_RATE",
    "TANDEM_DATABASE_CONNECTIONS",
    "TANDEM_DATA_DIR",
    "TANDEM_DRAIN_SECONDS",
    "TANDEM_EVENT_RETENTION_HOURS",
    "TANDEM_IN_FLIGHT_MAX",
    "TANDEM_ISSUERS",
    "TANDEM_KEYRING",
    "TANDEM_KEYRING_JSON",
    "TANDEM_LISTEN",
    "TANDEM_LOG",
    "TANDEM_LOG_FORMAT",
    "TANDEM_STREAMS_MAX",
    "TANDEM_TLS_CERT",
    "TANDEM_TLS_KEY",
    "TANDEM_TLS_CLIENT_CA",
    "TANDEM_TLS_CALLERS",
    "TANDEM_WEBHOOK_ALLOW_PRIVATE",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
];
const POLL: Duration = Duration::from_millis(20);
/// Reads `+PID` and `-PID`; when its input ends, by whatever signal the test has ended, it ends what is left, the last
/// first, and removes the folder.
const GUARD: &str = r#"
pids=
while read -r line; do
    pid=${line#?}
    case $line in
    +*) pids="$pid $pids" ;;
    -*) pids=$(for each in $pids; do [ "$each" = "$pid" ] || echo "$each"; done) ;;
    esac
done
for pid in $pids; do
    kill -s INT "$pid" || continue
    polls=0
    while [ "$polls" -lt 400 ] && kill -s 0 "$pid"; do
        sleep 0.1
        polls=$((polls + 1))
    done
    kill -s KILL "$pid"
done
polls=0
until rm -rf "$1" || [ "$polls" -ge 50 ]; do
    sleep 0.1
    polls=$((polls + 1))
done
"#;

/// A folder for temporary files, and the processes that live from it.
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    /// Our end of the guard's pipe.
    leash: Mutex<Option<ChildStdin>>,
    guard: Mutex<Child>,
}

impl Folder {
    /// PostgreSQL's user can pass through it, which matters where the test runs as root.
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tandem-{}-{name}", std::process::id()));
        DirBuilder::new()
            .mode(0o711)
            .create(&path)
            .expect("a new folder for temporary files");
        let mut guard = Command::new("/bin/sh")
            .args(["-c", GUARD, "tandem-test-guard"])
            .arg(&path)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("/bin/sh runs");
        let leash = Mutex::new(guard.stdin.take());
        Self { path, leash, guard: Mutex::new(guard) }
    }

    /// Runs a process of its own group, which gets SIGINT when the test ends, however it ends.
    pub(crate) fn spawn(&self, command: &mut Command) -> Child {
        let child = command.stdin(Stdio::null()).process_group(0).spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        self.tell('+', child.id());
        child
    }

    /// Waits for the end of a process that was spawned here; kills it when that takes too long.
    pub(crate) fn wait(&self, child: &mut Child, limit: Duration) -> Option<ExitStatus> {
        let status = poll(limit, || child.try_wait().expect("a child can be waited for"));
        if status.is_none() {
            signal("KILL", child.id());
            let _ = child.wait();
        }
        self.tell('-', child.id());
        status
    }

    /// Ends this process with the test, too, however it ends. A process that has ended by then is no matter.
    pub(crate) fn adopt(&self, pid: u32) {
        self.tell('+', pid);
    }

    fn tell(&self, change: char, pid: u32) {
        let mut leash = self.leash.lock().expect("nobody panics here");
        writeln!(leash.as_mut().expect("held until dropped"), "{change}{pid}").expect("the guard listens");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Ok(leash) = self.leash.get_mut() {
            *leash = None;
        }
        if let Ok(guard) = self.guard.get_mut() {
            let _ = guard.wait();
        }
    }
}

/// The command under test, which sees no settings but those that it is given.
pub(crate) fn tandem() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
    for name in CLEARED {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command, limit: Duration) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (mut out, mut err) = (child.stdout.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
    let read = std::thread::spawn(move || {
        let mut stdout = Vec::new();
        let _ = out.read_to_end(&mut stdout);
        stdout
    });
    let other = std::thread::spawn(move || {
        let mut stderr = Vec::new();
        let _ = err.read_to_end(&mut stderr);
        stderr
    });
    let status = poll(limit, || child.try_wait().expect("a child can be waited for"));
    if status.is_none() {
        signal_group("KILL", child.id());
        let _ = child.wait();
    }
    let (stdout, stderr) = (read.join().unwrap_or_default(), other.join().unwrap_or_default());
    let Some(status) = status else {
        panic!("{command:?} did not end within {limit:?}:\n{}", String::from_utf8_lossy(&stderr))
    };
    Output { status, stdout, stderr }
}

/// What a command printed, both streams.
pub(crate) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Asks until there is an answer.
pub(crate) fn poll<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    loop {
        let answer = ask();
        if answer.is_some() || began.elapsed() > limit {
            return answer;
        }
        std::thread::sleep(POLL);
    }
}

/// The same between other things that have to go on.
pub(crate) async fn eventually<T>(limit: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    loop {
        let answer = ask().await;
        if answer.is_some() || began.elapsed() > limit {
            return answer;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Sends a signal; a process that is gone already is none the worse for it.
pub(crate) fn signal(name: &str, pid: u32) {
    let _ = Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .stderr(Stdio::null())
        .status();
}

/// A process that stands still, for as long as this lives.
pub(crate) struct Stopped(u32);

impl Stopped {
    pub(crate) fn new(pid: u32) -> Self {
        signal("STOP", pid);
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal("CONT", self.0);
    }
}

fn signal_group(name: &str, pid: u32) {
    let _ = Command::new("kill")
        .args(["-s", name, "--", &format!("-{pid}")])
        .stderr(Stdio::null())
        .status();
}

/// Whether a process runs; one that is dead and not yet buried does not.
pub(crate) fn is_running(pid: u32) -> bool {
    let state = ps("stat=", pid);
    !state.is_empty() && !state.starts_with('Z')
}

/// The process that started this one.
pub(crate) fn parent(pid: u32) -> u32 {
    ps("ppid=", pid).parse().expect("a running process has a parent")
}

fn ps(column: &str, pid: u32) -> String {
    let output = Command::new("ps")
        .args(["-o", column, "-p", &pid.to_string()])
        .output()
        .expect("ps runs");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// std knows no user ids; the program is in POSIX.
pub(crate) fn is_root() -> bool {
    Command::new("id").arg("-u").output().expect("id runs").stdout.trim_ascii() == b"0"
}

/// An address whose port is free now and which the system gives to nobody who does not ask for it, so that a service
/// that was killed finds it free again.
pub(crate) fn free_address() -> SocketAddr {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 10_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test processes side by side begin at different places.
    let begin = u16::try_from(std::process::id() * 37 % u32::from(COUNT)).unwrap_or(0);
    (0..COUNT)
        .map(|_| FIRST + (begin + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT)
        .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .find(|address| TcpListener::bind(address).is_ok())
        .expect("one port of ten thousand is free")
}

/// A file's text; empty where there is none.
pub(crate) fn read(path: &Path) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// A tool that only some machines have, named by a variable; a test that needs it says so and passes without.
pub(crate) fn tool(variable: &str) -> Option<PathBuf> {
    let tool = config::variable(variable).map(PathBuf::from);
    if tool.is_none() {
        say(&format!("SKIPPED, NOT CHECKED: {variable} names no program"));
    }
    tool
}

#[expect(clippy::print_stderr, reason = "for the person who runs the tests")]
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}
