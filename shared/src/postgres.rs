//! The private PostgreSQL of `cargo run` and `cargo test`, for a machine where nothing is set up.
//!
//! It is found or fetched (`find`, `fetch`), keeps its files in one folder (`folder`), listens on a
//! unix socket that only its owner can reach, and dies with the process that started it: a shell
//! script stands between the two and stops the server when our end of a pipe is closed, which the
//! kernel does however we end. Nothing here knows what the databases hold.

mod fetch;
mod find;
mod folder;

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::Duration;

use tokio::sync::watch;

use self::find::Found;
use self::folder::{Folder, User};

/// The superuser of every private cluster; the socket trusts whoever can reach it.
const SUPERUSER: &str = "tandem";
/// Names the socket's file; nothing listens on TCP.
const PORT: u16 = 5432;
/// Recovery after a crash can take a while; anything beyond this is stuck.
const START_LIMIT: Duration = Duration::from_mins(1);
/// Above what the watchdog itself allows a server to take.
const STOP_LIMIT: Duration = Duration::from_secs(35);
const POLL: Duration = Duration::from_millis(5);
const WATCHDOG: &str = include_str!("postgres/watchdog.sh");

/// Where a private PostgreSQL comes from, where it lives, and what it promises.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Holds the cluster (`data`), its socket and its log.
    pub folder: PathBuf,
    /// Whether a commit survives a power failure; tests do without.
    pub durable: bool,
    /// Whether the folder goes when the server stops, however it stops. Started as root, the user who
    /// removes it is another, so it should lie in the system's folder for temporary files.
    pub temporary: bool,
    /// The programs' folder if the user names one (`TANDEM_PG_BIN`): then no other is looked at.
    pub bin: Option<PathBuf>,
    /// The value of `PATH`, where PostgreSQL, `python3` and `npm` are looked for.
    pub path: Option<OsString>,
    /// Whether a missing PostgreSQL may be fetched.
    pub fetch: bool,
    /// Keeps what was fetched. As root, every user must be able to enter it.
    pub cache: PathBuf,
}

/// A running private PostgreSQL. Dropping it stops the server soon after; [`Postgres::stop`] waits.
#[derive(Debug)]
pub struct Postgres {
    pid: u32,
    socket: PathBuf,
    /// Removed by [`Postgres::stop`] in case the watchdog may not.
    temporary: Option<PathBuf>,
    gone: watch::Receiver<bool>,
    /// Our end of the watchdog's pipe.
    leash: ChildStdin,
}

/// Why there is no private PostgreSQL; each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing installed, nothing fetched.
    #[error(
        "no PostgreSQL {} or newer was found{tried}; install it (`apt-get install postgresql`, `brew install postgresql`), {fetch}, or set DATABASE_URL to a server of yours",
        find::OLDEST
    )]
    Missing {
        /// What was tried to get one, and how it failed.
        tried: String,
        /// What would allow it to be fetched.
        fetch: &'static str,
    },
    /// Only older ones.
    #[error(
        "{found} is too old; Tandem needs {} or newer: install that, {fetch}, or set DATABASE_URL to a server of yours",
        find::OLDEST
    )]
    TooOld {
        /// Version and place.
        found: String,
        /// What would allow a newer one to be fetched.
        fetch: &'static str,
    },
    /// The folder that the user named.
    #[error("TANDEM_PG_BIN is {}, which has no working `postgres` and `initdb`: correct it or drop it", .0.display())]
    NoPrograms(PathBuf),
    /// The cluster needs programs of its own major version.
    #[error("the cluster in {} was made by PostgreSQL {major}, which is not found any more: install that version, or remove the folder to start afresh", folder.display())]
    OtherMajor {
        /// The cluster's folder.
        folder: PathBuf,
        /// Of the cluster.
        major: u32,
    },
    /// The folder, or something in it, cannot be used.
    #[error("cannot use {} for PostgreSQL: make it writable or choose another folder", path.display())]
    Folder {
        /// What could not be made, opened or changed.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The user that root becomes would not get there.
    #[error("PostgreSQL does not run as root, and user {uid}, as which it runs instead, may not enter {}: choose a folder outside it", path.display())]
    Closed {
        /// The user.
        uid: u32,
        /// The ancestor that keeps it out.
        path: PathBuf,
    },
    /// Root uses no folder in which another user can plant links.
    #[error("{} belongs to user {owner}: run as that user, or choose another folder", path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Another server has the folder.
    #[error("PostgreSQL in {} is already run by another tandem (process {pid}): stop that one, or choose another folder", folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// The server's process, as far as it is known.
        pid: String,
    },
    /// `initdb` failed.
    #[error("`initdb` could not make a cluster in {}; it said:\n{tail}", folder.display())]
    Init {
        /// The folder.
        folder: PathBuf,
        /// The end of its output.
        tail: String,
    },
    /// The server ended before it was ready.
    #[error("PostgreSQL stopped while starting; {} ends with:\n{tail}", log.display())]
    Stopped {
        /// The log.
        log: PathBuf,
        /// Its end.
        tail: String,
    },
    /// The server was not ready in time.
    #[error("PostgreSQL did not start within {} s; {} ends with:\n{tail}", START_LIMIT.as_secs(), log.display())]
    Slow {
        /// The log.
        log: PathBuf,
        /// Its end.
        tail: String,
    },
    /// The shell could not be run.
    #[error("cannot run /bin/sh, which watches over PostgreSQL")]
    Shell(#[source] io::Error),
}

impl Postgres {
    /// Starts a server and waits until it accepts connections. `log` hears what takes long.
    pub async fn start(settings: Settings, log: impl Fn(&str) + Send + 'static) -> Result<Self, Error> {
        let start = tokio::task::spawn_blocking(move || Self::start_blocking(&settings, &log));
        match start.await {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// The same without a runtime, and none is needed afterwards: for a static shared by tests.
    pub fn start_blocking(settings: &Settings, log: &dyn Fn(&str)) -> Result<Self, Error> {
        let user = User::of_server(&settings.folder);
        let programs = find::find(settings, user, log)?;
        let folder = Folder::prepare(settings, user, log)?;
        if folder.fresh {
            log(&format!(
                "making a PostgreSQL {} cluster in {}",
                programs.version,
                settings.folder.display()
            ));
        }
        let mut child = watchdog(settings, &programs, &folder, user).map_err(Error::Shell)?;
        let (Some(mut leash), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both are pipes")
        };
        let gone = reap(child).map_err(Error::Shell)?;
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        if folder.fresh {
            if lines.next().is_none() {
                let tail = folder.log_tail();
                return Err(Error::Init { folder: folder.path, tail });
            }
            folder.adopt_cluster(settings.durable)?;
            // A watchdog that is gone is noticed on the next line.
            leash.write_all(b"\n").ok();
        }
        let pid = lines.next().and_then(|line| line.parse().ok());
        let Some(pid) = pid else {
            return Err(folder.stopped());
        };
        await_ready(&folder, pid, &gone)?;
        Ok(Self {
            pid,
            socket: folder.socket,
            temporary: settings.temporary.then_some(folder.path),
            gone,
            leash,
        })
    }

    /// Where to connect for `database`, which need not exist yet (`postgres` always does).
    pub fn url(&self, database: &str) -> String {
        url(&self.socket, database)
    }

    /// The server's first process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends when the server has died by itself, so that the caller can start it again.
    pub async fn wait(&mut self) {
        // The sender is only dropped after it has sent.
        self.gone.wait_for(|gone| *gone).await.ok();
    }

    /// Stops the server: connections are cut, transactions rolled back. Harsher after 10 seconds.
    pub async fn stop(mut self) {
        drop(self.leash);
        let gone = self.gone.wait_for(|gone| *gone);
        tokio::time::timeout(STOP_LIMIT, gone).await.ok();
        if let Some(folder) = self.temporary {
            fs::remove_dir_all(folder).ok();
        }
    }
}

fn watchdog(settings: &Settings, programs: &Found, folder: &Folder, user: Option<User>) -> io::Result<Child> {
    let yes_no = |yes: bool| if yes { "yes" } else { "no" };
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", WATCHDOG, "tandem-postgres"])
        .args([&programs.bin, &folder.path, &folder.socket])
        .args([yes_no(settings.durable), yes_no(settings.temporary)])
        .args(server_options(settings.durable, &folder.socket))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(folder.log.try_clone()?)
        .current_dir("/")
        .process_group(0)
        .env("LC_ALL", "C");
    // Clients' variables, which initdb and postgres would follow, and systemd's, to which Debian's
    // build would report itself ready in the name of our own service.
    for name in ["PGDATA", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGOPTIONS", "NOTIFY_SOCKET"] {
        command.env_remove(name);
    }
    folder::run_as(&mut command, user);
    command.spawn()
}

/// Given on the command line, so that they hold for a cluster of any age.
fn server_options(durable: bool, socket: &Path) -> Vec<String> {
    // The value is a list, in which quotes keep commas and spaces.
    let socket = socket.to_string_lossy().replace('"', "\"\"");
    let mut options = vec![
        "listen_addresses=".to_owned(),
        format!("unix_socket_directories=\"{socket}\""),
        "unix_socket_permissions=0700".to_owned(),
        format!("port={PORT}"),
        "max_connections=200".to_owned(),
        "shared_buffers=128MB".to_owned(),
        "logging_collector=off".to_owned(),
        "log_destination=stderr".to_owned(),
        "log_checkpoints=off".to_owned(),
        "log_timezone=UTC".to_owned(),
        "timezone=UTC".to_owned(),
        "jit=off".to_owned(),
    ];
    let promises: &[&str] = if durable {
        &["fsync=on", "full_page_writes=on", "synchronous_commit=on", "max_wal_size=2GB"]
    } else {
        &[
            "fsync=off",
            "full_page_writes=off",
            "synchronous_commit=off",
            "wal_level=minimal",
            "max_wal_senders=0",
            "checkpoint_timeout=1h",
        ]
    };
    options.extend(promises.iter().map(ToString::to_string));
    options.into_iter().flat_map(|option| ["-c".to_owned(), option]).collect()
}

/// Waits for the watchdog on a thread, so that [`Postgres::wait`] works in any runtime, or in none.
fn reap(mut child: Child) -> io::Result<watch::Receiver<bool>> {
    let (tell, gone) = watch::channel(false);
    thread::Builder::new().name("postgres-watchdog".to_owned()).spawn(move || {
        child.wait().ok();
        tell.send_replace(true);
    })?;
    Ok(gone)
}

fn await_ready(folder: &Folder, pid: u32, gone: &watch::Receiver<bool>) -> Result<(), Error> {
    let polls = START_LIMIT.as_millis() / POLL.as_millis();
    for _ in 0..polls {
        if folder
            .server()
            .is_some_and(|server| server.pid == pid.to_string() && server.is_ready())
        {
            return Ok(());
        }
        if *gone.borrow() {
            return Err(folder.stopped());
        }
        thread::sleep(POLL);
    }
    Err(Error::Slow { log: folder.log_path(), tail: folder.log_tail() })
}

fn url(socket: &Path, database: &str) -> String {
    let (database, host) = (percent_encode(database), percent_encode(&socket.to_string_lossy()));
    format!("postgres://{SUPERUSER}@localhost/{database}?host={host}&port={PORT}")
}

fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_encodes_what_a_path_or_name_may_hold() {
        assert_eq!(
            url(Path::new("/tmp/a b&c/sö%"), "my db?x"),
            "postgres://tandem@localhost/my%20db%3Fx?host=%2Ftmp%2Fa%20b%26c%2Fs%C3%B6%25&port=5432"
        );
    }

    #[test]
    fn socket_folder_is_quoted_in_the_list_of_socket_folders() {
        let options = server_options(true, Path::new("/tmp/a, \"b\""));
        assert!(options.contains(&"unix_socket_directories=\"/tmp/a, \"\"b\"\"\"".to_owned()));
    }
}
