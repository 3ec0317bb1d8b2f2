//! `tandem keys`: what is in the key ring, and new keys for it. Secrets stay in the file.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Deserialize;
use shared::issuer::write_private;
use shared::keyring::{KeyRing, Purpose};
use shared::secret::{Entropy, Secret};

use crate::error::Error;
use crate::stack::{self, Stack};
use crate::term;

/// What to do with the key ring.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Add a key that makes what is new; older keys go on checking what they made
    Rotate {
        /// What the key is for
        #[arg(long)]
        purpose: Rotating,
        #[command(flatten)]
        ring: Ring,
    },
    /// List the keys, without their secrets
    List {
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
}

impl From<Rotating> for Purpose {
    fn from(purpose: Rotating) -> Self {
        match purpose {
            Rotating::Token => Self::Token,
            Rotating::Cursor => Self::Cursor,
        }
    }
}

/// The file's form, without the secrets.
#[derive(Deserialize)]
struct Listing {
    keys: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    id: u32,
    purpose: Purpose,
}

/// Does it.
pub(crate) fn run(command: Command) -> Result<ExitCode, Error> {
    match command {
        Command::Rotate { purpose, ring } => rotate(purpose.into(), &ring.file()?),
        Command::List { ring } => list(&ring.file()?),
    }
}

impl Ring {
    fn file(self) -> Result<PathBuf, Error> {
        self.keyring.map_or_else(|| Ok(Stack::open(&self.stack)?.keyring()), Ok)
    }
}

fn rotate(purpose: Purpose, file: &Path) -> Result<ExitCode, Error> {
    // Where it is a link, what it points to is replaced.
    let target = fs::canonicalize(file).map_err(|error| unusable(file, &error))?;
    let lock = lock_folder(&target).map_err(|error| unusable(file, &error))?;
    let id = add_key(purpose, &target)?;
    drop(lock);
    term::say(format_args!("key {id} is new in {}; services use it when started again", file.display()));
    Ok(ExitCode::SUCCESS)
}

fn add_key(purpose: Purpose, file: &Path) -> Result<u32, Error> {
    let mut ring = parse(file, read(file)?.expose())?;
    let id = ring
        .rotate(purpose, &Entropy::system())
        .map_err(|error| unusable(file, &error))?;
    let json = Secret::new(ring.to_json().map_err(|error| unusable(file, &error))?);
    replace(file, json.expose().as_bytes()).map_err(|error| unusable(file, &error))?;
    Ok(id)
}

/// Makes a rotation wait for another one. The folder is locked, as the file itself is replaced.
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

fn list(file: &Path) -> Result<ExitCode, Error> {
    let json = read(file)?;
    let ring = parse(file, json.expose())?;
    let listing: Listing = serde_json::from_str(json.expose()).map_err(|error| unusable(file, &error))?;
    for Listed { id, purpose } in listing.keys {
        let is_current = ring.current(purpose).is_ok_and(|current| current == id);
        let role = if is_current { "makes and checks" } else { "checks" };
        term::say(format_args!("{id:>4}  {:<15} {role}", name(purpose)));
    }
    Ok(ExitCode::SUCCESS)
}

fn name(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Token => "token",
        Purpose::Cursor => "cursor",
        Purpose::SubjectDigest => "subject-digest",
    }
}

fn read(file: &Path) -> Result<Secret<String>, Error> {
    fs::read_to_string(file)
        .map(Secret::new)
        .map_err(|error| unusable(file, &error))
}

fn parse(file: &Path, json: &str) -> Result<KeyRing, Error> {
    KeyRing::parse(json).map_err(|error| unusable(file, &error))
}

fn unusable(file: &Path, error: &dyn std::error::Error) -> Error {
    Error::Unusable(format!("{}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn rotations_at_once_all_count_and_keep_the_mode() {
        let folder = std::env::temp_dir().join(format!("tandem-keys-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let file = folder.join("keyring.json");
        stack::make_keyring(&file).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let count = || {
            let listing: Listing = serde_json::from_str(read(&file).unwrap().expose()).unwrap();
            listing.keys.len()
        };
        let before = count();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| rotate(Purpose::Token, &file).unwrap());
            }
        });
        assert_eq!(count(), before + 8);
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "something is left beside the ring");
        fs::remove_dir_all(&folder).unwrap();
    }
}
