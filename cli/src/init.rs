//! `tandem init`: the files that both services need to start, made where they are missing; session-svc's token is signed
//! anew each time. For a deployment without an identity provider of its own, such as docker-compose.yml.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use chrono::TimeDelta;
use shared::issuer::{ISSUERS_FILE, LocalIssuer};
use shared::secret::Entropy;

use crate::error::Error;
use crate::stack::{self, StackError};
use crate::term;

const KEYRING_FILE: &str = "keyring.json";
const TOKEN_FILE: &str = "session-svc.token";
const TOKEN_LIFETIME: TimeDelta = TimeDelta::days(365);

/// Options of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder to fill; it may exist, and what is in it is kept, but for session-svc's token, which is renewed
    #[arg(long, value_name = "FOLDER")]
    folder: PathBuf,
}

/// Fills the folder.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    let folder = args.folder.as_path();
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| unusable(folder, &error))?;
    LocalIssuer::open(folder, &Entropy::system()).map_err(StackError::from)?;
    stack::make_keyring(&folder.join(KEYRING_FILE))?;
    let token = folder.join(TOKEN_FILE);
    stack::write_session_token(folder, &token, TOKEN_LIFETIME)?;
    for name in ["issuer-key.pem", "jwks.json", ISSUERS_FILE, KEYRING_FILE, TOKEN_FILE] {
        let path = folder.join(name);
        fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(|error| unusable(&path, &error))?;
    }
    term::say(format_args!("{} has what both services need", folder.display()));
    Ok(ExitCode::SUCCESS)
}

fn unusable(path: &Path, error: &std::io::Error) -> Error {
    Error::Unusable(format!("cannot use {}: {error}", path.display()))
}
