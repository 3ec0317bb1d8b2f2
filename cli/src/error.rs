//! Why a command failed, in sentences for a person, and the exit code that goes with it.

use std::process::ExitCode;

use shared::config::Problems;
use shared::postgres;
use tonic::Status;

use crate::client;
use crate::stack::StackError;

/// A command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// What was asked cannot work as it is; a script should not try again.
    #[error("{0}")]
    Unusable(String),
    /// It went wrong on the way.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// 2 for what has to be put right first, 1 for the rest.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Unusable(_) => ExitCode::from(2),
            Self::Failed(_) => ExitCode::FAILURE,
        }
    }
}

impl From<StackError> for Error {
    fn from(error: StackError) -> Self {
        Self::Unusable(error.to_string())
    }
}

impl From<Problems> for Error {
    fn from(problems: Problems) -> Self {
        Self::Unusable(problems.to_string())
    }
}

impl From<postgres::Error> for Error {
    fn from(error: postgres::Error) -> Self {
        let cause = std::error::Error::source(&error).map(|cause| format!(" ({cause})"));
        Self::Unusable(format!("{error}{}", cause.unwrap_or_default()))
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Failed(client::sentence(&status))
    }
}
