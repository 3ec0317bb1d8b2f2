//! `tandem keys`: what is in the key ring, and new keys for it. Secrets stay in the file.

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
    let mut ring = parse(file, read(file)?.expose())?;
    let id = ring
        .rotate(purpose, &Entropy::system())
        .map_err(|error| unusable(file, &error))?;
    let json = Secret::new(ring.to_json().map_err(|error| unusable(file, &error))?);
    write_private(file, json.expose().as_bytes()).map_err(|error| unusable(file, &error))?;
    term::say(format_args!("key {id} is new in {}; services use it when started again", file.display()));
    Ok(ExitCode::SUCCESS)
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
    std::fs::read_to_string(file)
        .map(Secret::new)
        .map_err(|error| unusable(file, &error))
}

fn parse(file: &Path, json: &str) -> Result<KeyRing, Error> {
    KeyRing::parse(json).map_err(|error| unusable(file, &error))
}

fn unusable(file: &Path, error: &dyn std::error::Error) -> Error {
    Error::Unusable(format!("{}: {error}", file.display()))
}
