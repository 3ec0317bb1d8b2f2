//! The folder of a private PostgreSQL: who owns it, who has it locked, where its socket fits.
//!
//! The log is the lock. Watchdog and server write to the very file that we opened and locked, so it
//! stays locked until the last of them is gone, even if we, or they, were killed. As root, the folder
//! itself stays root's and only what the server needs is given away: else the server's user could put
//! a link in the place of a file that root opens.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::thread;
use std::time::Duration;

use super::{Error, PORT, Settings};

/// The least of the limits of unix systems on a socket's path is 104 bytes with the final zero.
const SOCKET_PATH_LIMIT: usize = 103;
/// How long a server that is still leaving is waited for, and how long one that is not.
const LEAVING_LIMIT: Duration = Duration::from_secs(30);
const LOCKED_LIMIT: Duration = Duration::from_secs(1);
const LOCK_POLL: Duration = Duration::from_millis(50);
const TAIL_LINES: usize = 8;

/// As whom the server runs when we are root, as which it refuses to.
#[derive(Debug, Clone, Copy)]
pub(super) struct User {
    uid: u32,
    gid: u32,
}

/// A folder that is ours: locked, with a socket folder, and with a cluster or an empty `data.new`.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    pub(super) socket: PathBuf,
    pub(super) log: File,
    /// Where this start's part of the log begins.
    log_start: u64,
    /// Whether the cluster is yet to be made.
    pub(super) fresh: bool,
}

/// What a server says of itself in `postmaster.pid`.
pub(super) struct Server {
    pub(super) pid: String,
    socket: PathBuf,
    state: String,
}

impl User {
    /// None unless we are root. An existing cluster keeps its owner: a user `postgres` may have
    /// come with an installation since.
    pub(super) fn of_server(folder: &Path) -> Option<Self> {
        if id(&["-u"]) != Some(0) {
            return None;
        }
        let owner = fs::symlink_metadata(folder.join("data")).ok();
        let owner = owner.map(|meta| Self { uid: meta.uid(), gid: meta.gid() });
        let named = |name| Some(Self { uid: id(&["-u", name])?, gid: id(&["-g", name])? });
        owner.or_else(|| named("postgres")).or_else(|| named("nobody"))
    }

    /// The nearest ancestor of `path` that the user may not enter.
    fn kept_out_by(self, path: &Path) -> Option<PathBuf> {
        let enters = |dir: &Path| {
            fs::metadata(dir).is_ok_and(|meta| {
                let mode = meta.mode();
                let owner = meta.uid() == self.uid && mode & 0o100 != 0;
                let group = meta.gid() == self.gid && mode & 0o010 != 0;
                owner || group || mode & 0o001 != 0
            })
        };
        path.ancestors().skip(1).find(|dir| !enters(dir)).map(Path::to_owned)
    }

    /// Refuses a path that the user could not reach.
    pub(super) fn must_reach(self, path: &Path) -> Result<(), Error> {
        match self.kept_out_by(path) {
            Some(path) => Err(Error::Closed { uid: self.uid, path }),
            None => Ok(()),
        }
    }
}

/// Drops root's user and, as std does with it, root's groups.
pub(super) fn run_as(command: &mut Command, user: Option<User>) {
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
}

/// std knows no user ids; the program is in POSIX.
fn id(args: &[&str]) -> Option<u32> {
    let output = Command::new("id").args(args).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// The major version of the cluster in `folder`, if there is one.
pub(super) fn cluster_major(folder: &Path) -> Option<u32> {
    fs::read_to_string(folder.join("data/PG_VERSION")).ok()?.trim().parse().ok()
}

impl Folder {
    /// Makes what is missing and takes the lock.
    pub(super) fn prepare(
        settings: &Settings,
        user: Option<User>,
        say: &dyn Fn(&str),
    ) -> Result<Self, Error> {
        let path = std::path::absolute(&settings.folder).map_err(at(&settings.folder))?;
        // Through root's folder the server's user passes; others find nothing open inside.
        let mode = if user.is_some() { 0o711 } else { 0o700 };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(at(parent))?;
        }
        if settings.temporary {
            // What a watchdog that may not write to the parent left of an earlier one; only if empty.
            fs::remove_dir(&path).ok();
        }
        match DirBuilder::new().mode(mode).create(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            created => created.map_err(at(&path))?,
        }
        if let Some(user) = user {
            user.must_reach(&path)?;
            let owner = fs::symlink_metadata(&path).map_err(at(&path))?.uid();
            if owner != 0 {
                return Err(Error::Foreign { path, owner });
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(at(&path))?;
        }
        let (log, log_start) = lock(&path, say)?;
        let fresh = !path.join("data").exists();
        if fresh {
            empty_dir(&path.join("data.new"), user)?;
        }
        let socket = socket_folder(&path, user)?;
        if settings.temporary
            && let Some(user) = user
        {
            chown(&path, Some(user.uid), Some(user.gid)).map_err(at(&path))?;
        }
        let folder = Self { path, socket, log, log_start, fresh };
        folder.drop_stale_pid()?;
        Ok(folder)
    }

    /// Puts the finished cluster in its place.
    pub(super) fn adopt_cluster(&self, durable: bool) -> Result<(), Error> {
        let data = self.path.join("data");
        fs::rename(self.path.join("data.new"), &data).map_err(at(&data))?;
        if durable {
            File::open(&self.path).and_then(|dir| dir.sync_all()).map_err(at(&self.path))?;
        }
        Ok(())
    }

    pub(super) fn server(&self) -> Option<Server> {
        Server::read(&self.path)
    }

    pub(super) fn log_path(&self) -> PathBuf {
        log_path(&self.path)
    }

    pub(super) fn stopped(&self) -> Error {
        Error::Stopped { log: self.log_path(), tail: self.log_tail() }
    }

    /// The last lines that this start wrote.
    pub(super) fn log_tail(&self) -> String {
        let mut text = Vec::new();
        let mut log = &self.log;
        log.seek(SeekFrom::Start(self.log_start))
            .and_then(|_| log.read_to_end(&mut text))
            .ok();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// After a crash the process id in `postmaster.pid` may be another program's by now, at which
    /// PostgreSQL refuses to start. We hold the lock, so only a server started by hand could be
    /// behind it, and that one answers at its socket.
    fn drop_stale_pid(&self) -> Result<(), Error> {
        let Some(server) = self.server() else {
            return Ok(());
        };
        if UnixStream::connect(&server.socket).is_ok() {
            return Err(Error::InUse { folder: self.path.clone(), pid: server.pid });
        }
        let file = self.path.join("data/postmaster.pid");
        fs::remove_file(&file).map_err(at(&file))
    }
}

impl Server {
    fn read(folder: &Path) -> Option<Self> {
        let text = fs::read_to_string(folder.join("data/postmaster.pid")).ok()?;
        let line = |n| text.lines().nth(n).unwrap_or_default().trim();
        let socket = Path::new(line(4)).join(format!(".s.PGSQL.{}", line(3)));
        Some(Self { pid: line(0).to_owned(), socket, state: line(7).to_owned() })
    }

    pub(super) fn is_ready(&self) -> bool {
        self.state == "ready"
    }
}

/// Opens and locks the log; the second value is its length so far.
fn lock(folder: &Path, say: &dyn Fn(&str)) -> Result<(File, u64), Error> {
    let path = log_path(folder);
    let log = OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(&path);
    let log = log.map_err(at(&path))?;
    let mut waited = Duration::ZERO;
    loop {
        match log.try_lock() {
            Ok(()) => {
                let length = log.metadata().map_err(at(&path))?.len();
                return Ok((log, length));
            }
            Err(TryLockError::Error(e)) => return Err(at(&path)(e)),
            Err(TryLockError::WouldBlock) => {}
        }
        let server = Server::read(folder);
        let leaving = server.as_ref().is_none_or(|server| server.state == "stopping");
        if waited >= if leaving { LEAVING_LIMIT } else { LOCKED_LIMIT } {
            let pid = server.map_or_else(|| "unknown".to_owned(), |server| server.pid);
            return Err(Error::InUse { folder: folder.to_owned(), pid });
        }
        if waited == LOCKED_LIMIT {
            say("waiting for the previous PostgreSQL to stop");
        }
        thread::sleep(LOCK_POLL);
        waited += LOCK_POLL;
    }
}

/// `socket` in the folder, or, where its path would be too long for a socket, a folder of a name
/// that nobody can have made before us.
fn socket_folder(folder: &Path, user: Option<User>) -> Result<PathBuf, Error> {
    let usual = folder.join("socket");
    if fits_socket(&usual) {
        empty_dir(&usual, user)?;
        return Ok(usual);
    }
    let temp = std::env::temp_dir();
    let parent = if fits_socket(&temp.join("tandem-1234567-12")) { &temp } else { Path::new("/tmp") };
    let mut n = 0;
    loop {
        let path = parent.join(format!("tandem-{}-{n}", process::id()));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return give(&path, user).map(|()| path),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => n += 1,
            Err(e) => return Err(at(&path)(e)),
        }
    }
}

/// A path that is no UTF-8 has no place in a URL, so it counts as too long.
fn fits_socket(folder: &Path) -> bool {
    let socket = folder.join(format!(".s.PGSQL.{PORT}"));
    socket.to_str().is_some_and(|path| path.len() <= SOCKET_PATH_LIMIT)
}

fn empty_dir(path: &Path, user: Option<User>) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        removed => removed.map_err(at(path))?,
    }
    DirBuilder::new().mode(0o700).create(path).map_err(at(path))?;
    give(path, user)
}

fn give(path: &Path, user: Option<User>) -> Result<(), Error> {
    user.map_or(Ok(()), |user| chown(path, Some(user.uid), Some(user.gid)))
        .map_err(at(path))
}

fn log_path(folder: &Path) -> PathBuf {
    folder.join("postgres.log")
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Folder { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::find::tests::Scratch;

    #[test]
    fn long_path_puts_the_socket_elsewhere() {
        let scratch = Scratch::new("long-path");
        let deep = scratch.0.join("x".repeat(100));
        fs::create_dir(&deep).unwrap();
        let socket = socket_folder(&deep, None).unwrap();
        assert!(fits_socket(&socket) && !socket.starts_with(&deep));
        assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o700);
        fs::remove_dir(socket).unwrap();
    }

    #[test]
    fn closed_ancestor_is_named() {
        let scratch = Scratch::new("closed");
        let closed = scratch.0.join("closed");
        DirBuilder::new().mode(0o700).create(&closed).unwrap();
        let stranger = User { uid: 54321, gid: 54321 };
        assert_eq!(stranger.kept_out_by(&closed.join("a/b")).unwrap(), closed.join("a"));
        fs::create_dir(closed.join("a")).unwrap();
        assert_eq!(stranger.kept_out_by(&closed.join("a/b")).unwrap(), closed);
    }

    #[test]
    fn pid_file_of_a_dead_server_is_dropped_and_one_that_answers_is_respected() {
        let scratch = Scratch::new("pid-file");
        let path = scratch.0.clone();
        fs::create_dir(path.join("data")).unwrap();
        let pid_file = path.join("data/postmaster.pid");
        let text = format!("1\n/data\n0\n5432\n{}\n\n0 0\nready   \n", path.display());
        fs::write(&pid_file, text).unwrap();
        let (log, log_start) = lock(&path, &|_| {}).unwrap();
        let folder = Folder { socket: path.clone(), path, log, log_start, fresh: false };
        assert!(folder.server().unwrap().is_ready());

        let socket = scratch.0.join(".s.PGSQL.5432");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(matches!(folder.drop_stale_pid(), Err(Error::InUse { .. })));
        drop(listener);
        folder.drop_stale_pid().unwrap();
        assert!(!pid_file.exists());
    }
}
