//! The local stack's folder: what is in it, who may use it, and how other commands find the services that run.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use shared::config;
use shared::issuer::{Grant, ISSUERS_FILE, IssuerError, LocalIssuer, write_private};
use shared::keyring::{KeyRing, KeyRingError};
use shared::secret::{Entropy, Secret};
use shared::time::Clock;

/// Which stack.
#[derive(Debug, Clone, clap::Args)]
#[group(skip)] // clap names a group after the type, and commands have an `Args` of their own
pub(crate) struct Args {
    /// Folder of the local stack [default: /var/lib/tandem as root, else ~/.local/share/tandem]
    #[arg(long, env = "TANDEM_DATA_DIR", value_name = "FOLDER")]
    pub(crate) data_dir: Option<PathBuf>,
}

/// The folder cannot be used as asked; each says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StackError {
    /// No place to keep anything.
    #[error("HOME is not set: name a folder with --data-dir")]
    NoHome,
    /// The folder, or something in it.
    #[error("cannot use {}: {}. Make it usable, or choose another folder with --data-dir", .0.display(), .1)]
    Folder(PathBuf, io::Error),
    /// One `up` a folder.
    #[error("a stack already runs in {}: stop it, or choose another folder with --data-dir", .0.display())]
    Taken(PathBuf),
    /// Nothing to call.
    #[error("no stack runs in {}: start one with `tandem up`, or name its folder with --data-dir", .0.display())]
    NotRunning(PathBuf),
    /// Written by another version, or by someone else.
    #[error("{} is not what `tandem up` writes: {}", .0.display(), .1)]
    State(PathBuf, serde_json::Error),
    /// The local issuer.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    /// The key ring.
    #[error(transparent)]
    Keys(#[from] KeyRingError),
}

/// The local stack, running or not.
#[derive(Debug)]
pub(crate) struct Stack {
    folder: PathBuf,
    /// Whether commands that shall find it again must name it.
    is_named: bool,
    is_root: bool,
}

/// What runs, as `stack.json` tells while it does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    /// `tandem up` itself.
    pub(crate) pid: u32,
    /// The private PostgreSQL's first process; none where the user has a database.
    pub(crate) postgres_pid: Option<u32>,
    /// session-svc.
    pub(crate) session: Process,
    /// release-svc.
    pub(crate) release: Process,
}

/// One service.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Its process.
    pub(crate) pid: u32,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

/// Held while `up` runs.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "the lock lasts as long as the file is open")] File);

impl Stack {
    /// The stack of a folder, which need not exist yet.
    pub(crate) fn open(args: &Args) -> Result<Self, StackError> {
        let is_root = is_root();
        let folder = match &args.data_dir {
            Some(folder) => folder.clone(),
            None if is_root => "/var/lib/tandem".into(),
            None => below_home("XDG_DATA_HOME", ".local/share").ok_or(StackError::NoHome)?,
        };
        let folder = std::path::absolute(&folder).map_err(|error| StackError::Folder(folder, error))?;
        Ok(Self { folder, is_named: args.data_dir.is_some(), is_root })
    }

    /// Something in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The folder, where a command has to name it to find this stack.
    pub(crate) fn name(&self) -> Option<&Path> {
        self.is_named.then_some(self.folder.as_path())
    }

    /// What `issuers.json` of the services is.
    pub(crate) fn issuers(&self) -> PathBuf {
        self.path("issuer").join(ISSUERS_FILE)
    }

    /// The key ring of the services.
    pub(crate) fn keyring(&self) -> PathBuf {
        self.path("keyring.json")
    }

    /// session-svc's own token.
    pub(crate) fn session_token(&self) -> PathBuf {
        self.path("session-svc.token")
    }

    /// Where a fetched PostgreSQL is kept. Root's has to be where PostgreSQL's user gets to.
    pub(crate) fn cache(&self) -> Result<PathBuf, StackError> {
        if self.is_root {
            return Ok("/var/cache/tandem".into());
        }
        below_home("XDG_CACHE_HOME", ".cache").ok_or(StackError::NoHome)
    }

    /// Makes the folder where it is missing, and takes it.
    pub(crate) fn lock(&self) -> Result<Lock, StackError> {
        let failed = |error| StackError::Folder(self.folder.clone(), error);
        // PostgreSQL's user passes through root's; what is in it is closed to others, each by itself.
        let mode = if self.is_root { 0o711 } else { 0o700 };
        if !self.folder.is_dir() {
            DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(&self.folder)
                .and_then(|()| fs::set_permissions(&self.folder, Permissions::from_mode(mode)))
                .map_err(failed)?;
        }
        let lock = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(self.path("lock"))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Lock(lock)),
            Err(TryLockError::WouldBlock) => Err(StackError::Taken(self.folder.clone())),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Removes everything that was kept, and nothing that is not the stack's.
    pub(crate) fn forget(&self, _lock: &Lock) -> Result<(), StackError> {
        for name in ["postgres", "issuer", "keyring.json", "session-svc.token", "replica-id", "stack.json"] {
            let path = self.path(name);
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StackError::Folder(path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the issuer and the key ring where they are missing.
    pub(crate) fn make_keys(&self, _lock: &Lock) -> Result<(), StackError> {
        let folder = self.path("issuer");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|error| StackError::Folder(folder.clone(), error))?;
        LocalIssuer::open(&folder, &Entropy::system())?;
        make_keyring(&self.keyring())
    }

    /// Names the one session-svc of this folder to release-svc, also when it is started again.
    pub(crate) fn replica_id(&self, _lock: &Lock) -> Result<String, StackError> {
        let path = self.path("replica-id");
        match fs::read_to_string(&path) {
            Ok(id) => Ok(id),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let id = uuid::Builder::from_random_bytes(Entropy::system().bytes())
                    .into_uuid()
                    .to_string();
                write_private(&path, id.as_bytes()).map_err(|error| StackError::Folder(path, error))?;
                Ok(id)
            }
            Err(error) => Err(StackError::Folder(path, error)),
        }
    }

    /// Signs a token as the stack's issuer does.
    pub(crate) fn sign(&self, grant: &Grant, lifetime: TimeDelta) -> Result<Secret<String>, StackError> {
        let folder = self.path("issuer");
        if !folder.is_dir() {
            return Err(StackError::NotRunning(self.folder.clone()));
        }
        sign(&folder, grant, lifetime)
    }

    /// What runs.
    pub(crate) fn state(&self) -> Result<State, StackError> {
        let path = self.path("stack.json");
        let json = fs::read(&path).map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                StackError::NotRunning(self.folder.clone())
            } else {
                StackError::Folder(path.clone(), error)
            }
        })?;
        serde_json::from_slice(&json).map_err(|error| StackError::State(path, error))
    }

    /// Tells other commands what runs.
    pub(crate) fn publish(&self, state: &State) -> Result<(), StackError> {
        let path = self.path("stack.json");
        let json =
            serde_json::to_vec_pretty(state).map_err(|error| StackError::State(path.clone(), error))?;
        write_private(&path, &json).map_err(|error| StackError::Folder(path, error))
    }

    /// Tells them that nothing does.
    pub(crate) fn unpublish(&self) {
        // It is missing where the start did not come that far.
        let _ = fs::remove_file(self.path("stack.json"));
    }
}

/// A key ring in a file; one that exists is kept, and gets the keys that an earlier version did not know.
pub(crate) fn make_keyring(path: &Path) -> Result<(), StackError> {
    let (failed, entropy) = (|error| StackError::Folder(path.to_owned(), error), Entropy::system());
    let ring = if path.exists() {
        let json = Secret::new(fs::read_to_string(path).map_err(failed)?);
        let mut ring = KeyRing::read(json.expose())?;
        if !ring.add_later(&entropy) {
            return Ok(());
        }
        ring
    } else {
        KeyRing::generate(&entropy)
    };
    let json = Secret::new(ring.to_json()?);
    write_private(path, json.expose().as_bytes()).map_err(failed)
}

/// Signs a token as the issuer of a folder does.
pub(crate) fn sign(issuer: &Path, grant: &Grant, lifetime: TimeDelta) -> Result<Secret<String>, StackError> {
    let entropy = Entropy::system();
    let issuer = LocalIssuer::open(issuer, &entropy)?;
    Ok(issuer.sign(grant, Clock::system().now(), lifetime, &entropy)?)
}

/// The token with which session-svc reads every tenant's routes, written to a file.
pub(crate) fn write_session_token(issuer: &Path, file: &Path, lifetime: TimeDelta) -> Result<(), StackError> {
    let grant = Grant {
        sub: "session-svc".to_owned(),
        tenant: "tandem".to_owned(),
        scope: "tandem.system".to_owned(),
        groups: Vec::new(),
        touchpoints: None,
        kind: "workload".to_owned(),
    };
    let token = sign(issuer, &grant, lifetime)?;
    write_private(file, token.expose().as_bytes()).map_err(|error| StackError::Folder(file.to_owned(), error))
}

fn below_home(variable: &str, below: &str) -> Option<PathBuf> {
    let folder = config::variable(variable).map(PathBuf::from);
    // Relative ones are to be ignored (XDG base directory specification).
    let folder = folder.filter(|folder| folder.is_absolute());
    let folder = folder.or_else(|| config::variable("HOME").map(|home| Path::new(&home).join(below)));
    folder.map(|folder| folder.join("tandem"))
}

/// std knows no user ids; the program is in POSIX.
fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}
