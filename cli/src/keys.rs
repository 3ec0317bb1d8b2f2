//! `tandem keys`: what is in the key ring, new keys for it, and the end of old ones. Secrets stay in the file.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use chrono::SecondsFormat;
use shared::issuer::write_private;
use shared::keyring::{KeyRing, KeyRingError, Purpose, Role};
use shared::secret::{Entropy, Secret};
use shared::time::{Clock, Time};

use crate::error::Error;
use crate::stack::{self, Stack};
use crate::term;
use crate::token::duration;

/// What to do with the key ring.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Add a key that makes what is new after a while; older keys go on checking what they made. Services take the
    /// changed file in while they run
    Rotate {
        /// What the key is for
        #[arg(long)]
        purpose: Rotating,
        /// When it begins to make, such as 90s, 15m or 1h from now: time for the file to reach every replica
        #[arg(long = "in", default_value = "2m", value_parser = duration, value_name = "TIME")]
        delay: Duration,
        #[command(flatten)]
        ring: Ring,
    },
    /// List the keys, without their secrets
    List {
        #[command(flatten)]
        ring: Ring,
    },
    /// Take a key out that makes no more; what it made is good no longer
    Retire {
        /// Which key, as `tandem keys list` names it
        #[arg(long, value_name = "N")]
        id: u32,
        #[command(flatten)]
        ring: Ring,
    },
}

/// Which key ring.
#[derive(Debug, clap::Args)]
pub(crate) struct Ring {
    /// File with the key ring [default: the local stack's]
    #[arg(long, env = "TANDEM_KEYRING", value_name = "FILE")]
    keyring: Option<PathBuf>,
    #[command(flatten)]
    stack: stack::Args,
}

/// Purposes whose keys can be replaced; the subject-digest key names people for ever.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Rotating {
    /// Session tokens and other secrets in answers
    Token,
    /// Page and resume tokens
    Cursor,
    /// Signed assertions
    Assertion,
    /// Secrets of webhooks
    Webhook,
    /// Signed heads of audit trails
    AuditHead,
}

impl From<Rotating> for Purpose {
    fn from(purpose: Rotating) -> Self {
        match purpose {
            Rotating::Token => Self::Token,
            Rotating::Cursor => Self::Cursor,
            Rotating::Assertion => Self::Assertion,
            Rotating::Webhook => Self::Webhook,
            Rotating::AuditHead => Self::AuditHead,
        }
    }
}

/// Does it.
pub(crate) fn run(command: Command) -> Result<ExitCode, Error> {
    let now = Clock::system().now();
    match command {
        Command::Rotate { purpose, delay, ring } => rotate(purpose.into(), now + delay, &ring.file()?),
        Command::List { ring } => list(&ring.file()?, now),
        Command::Retire { id, ring } => retire(id, &ring.file()?, now),
    }
}

impl Ring {
    fn file(self) -> Result<PathBuf, Error> {
        self.keyring.map_or_else(|| Ok(Stack::open(&self.stack)?.keyring()), Ok)
    }
}

fn rotate(purpose: Purpose, makes_from: Time, file: &Path) -> Result<ExitCode, Error> {
    let id = change(file, |ring| ring.rotate(purpose, makes_from, &Entropy::system()))?;
    let from = makes_from.to_rfc3339_opts(SecondsFormat::Secs, true);
    term::say(format_args!(
        "key {id} is new in {} and makes from {from}; by then every replica must have the file",
        file.display()
    ));
    Ok(ExitCode::SUCCESS)
}

fn retire(id: u32, file: &Path, now: Time) -> Result<ExitCode, Error> {
    let purpose = change(file, |ring| ring.retire(id, now))?;
    let lost = match purpose {
        Purpose::Token => "a request of its time can no longer be repeated by its request_id; sessions go on",
        Purpose::Cursor => {
            "its page and resume tokens are refused: lists begin anew, and watches read the objects again"
        }
        Purpose::Assertion => "its assertions are refused by whoever reads the key set from now on",
        Purpose::Webhook => "secrets of webhooks that were made in its time sign nothing more",
        Purpose::AuditHead => "audit heads that it signed can no longer be checked by the service",
        Purpose::SubjectDigest => "its subjects are strangers",
    };
    term::say(format_args!("key {id} is no longer in {}; {lost}", file.display()));
    Ok(ExitCode::SUCCESS)
}

/// Changes the ring in its file, one change at a time.
fn change<T>(file: &Path, change: impl FnOnce(&mut KeyRing) -> Result<T, KeyRingError>) -> Result<T, Error> {
    let failed = |error: &dyn std::error::Error| unusable(file, error);
    // Where it is a link, what it points to is replaced.
    let target = fs::canonicalize(file).map_err(|error| failed(&error))?;
    let lock = lock_folder(&target).map_err(|error| failed(&error))?;
    let mut ring = read(&target)?;
    let outcome = change(&mut ring).map_err(|error| failed(&error))?;
    let json = Secret::new(ring.to_json().map_err(|error| failed(&error))?);
    replace(&target, json.expose().as_bytes()).map_err(|error| failed(&error))?;
    drop(lock);
    Ok(outcome)
}

/// Makes a change wait for another one. The folder is locked, as the file itself is replaced.
fn lock_folder(file: &Path) -> io::Result<File> {
    let folder = File::open(file.parent().unwrap_or_else(|| Path::new("/")))?;
    folder.lock()?;
    Ok(folder)
}

/// Replaces the file, all of it or nothing, by one of the same owner and mode.
fn replace(file: &Path, content: &[u8]) -> io::Result<()> {
    let before = fs::metadata(file)?;
    let new = file.with_extension("new");
    let replaced = write_private(&new, content)
        .and_then(|()| chown(&new, Some(before.uid()), Some(before.gid())))
        .and_then(|()| fs::set_permissions(&new, before.permissions()))
        .and_then(|()| fs::rename(&new, file));
    if replaced.is_err() {
        let _ = fs::remove_file(&new);
    }
    replaced
}

fn list(file: &Path, now: Time) -> Result<ExitCode, Error> {
    for (id, purpose, role) in read(file)?.roles(now) {
        let role = match role {
            Role::Checks => "checks".to_owned(),
            Role::MakesFrom(from) => {
                format!("checks, makes from {}", from.to_rfc3339_opts(SecondsFormat::Secs, true))
            }
            Role::Makes => "makes and checks".to_owned(),
        };
        term::say(format_args!("{id:>4}  {:<15} {role}", name(purpose)));
    }
    Ok(ExitCode::SUCCESS)
}

fn name(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Token => "token",
        Purpose::Cursor => "cursor",
        Purpose::SubjectDigest => "subject-digest",
        Purpose::Assertion => "assertion",
        Purpose::Webhook => "webhook",
        Purpose::AuditHead => "audit-head",
    }
}

/// The ring, also one that lacks a key, which a rotation then adds.
fn read(file: &Path) -> Result<KeyRing, Error> {
    let json = fs::read_to_string(file)
        .map(Secret::new)
        .map_err(|error| unusable(file, &error))?;
    KeyRing::read(json.expose()).map_err(|error| unusable(file, &error))
}

fn unusable(file: &Path, error: &dyn std::error::Error) -> Error {
    Error::Unusable(format!("{}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use shared::time::at;

    use super::*;

    #[test]
    fn rotations_at_once_all_count_and_keep_the_mode() {
        let (folder, file) = made("rotations");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let count = || read(&file).unwrap().roles(at(0)).count();
        let before = count();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| rotate(Purpose::Token, at(120), &file).unwrap());
            }
        });
        assert_eq!(count(), before + 8);
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "something is left beside the ring");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_key_that_makes_is_not_retired_and_the_one_before_is() {
        let (folder, file) = made("retired");
        let first = read(&file).unwrap().current(Purpose::Assertion, at(0)).unwrap();
        rotate(Purpose::Assertion, at(120), &file).unwrap();
        assert!(retire(first, &file, at(119)).is_err());
        retire(first, &file, at(120)).unwrap();
        assert!(read(&file).unwrap().roles(at(120)).all(|(id, ..)| id != first));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_local_ring_of_an_earlier_version_gets_what_it_lacks_once() {
        let (folder, file) = made("earlier");
        let mut ring: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        ring["keys"].as_array_mut().unwrap().retain(|key| key["purpose"] != "assertion");
        fs::write(&file, ring.to_string()).unwrap();
        stack::make_keyring(&file).unwrap();
        let made = fs::read_to_string(&file).unwrap();
        KeyRing::parse(&made).unwrap();
        stack::make_keyring(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), made);
        fs::remove_dir_all(&folder).unwrap();
    }

    fn made(name: &str) -> (PathBuf, PathBuf) {
        let folder = std::env::temp_dir().join(format!("tandem-keys-{name}-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let file = folder.join("keyring.json");
        stack::make_keyring(&file).unwrap();
        (folder, file)
    }
}
