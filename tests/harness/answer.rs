//! What tests say about answers: it came, it was refused and why, it comes about before long.

use std::time::Duration;

use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;

/// An answer of a client.
pub(crate) trait Answer<T> {
    /// It came.
    fn answer(self) -> T;
    /// It was refused so; the status for whoever wants to see more of it.
    fn refused(self, code: Code, reason: &str) -> Status;
}

impl<T: std::fmt::Debug> Answer<T> for Result<Response<T>, Status> {
    #[track_caller]
    fn answer(self) -> T {
        match self {
            Ok(response) => response.into_inner(),
            Err(status) => panic!("refused with {}", shown(&status)),
        }
    }

    #[track_caller]
    fn refused(self, code: Code, reason: &str) -> Status {
        match self {
            Ok(response) => panic!("not refused: {:?}", response.into_inner()),
            Err(status) => {
                assert_refused(&status, code, reason);
                status
            }
        }
    }
}

/// The status has this code, and this reason of ours.
#[track_caller]
pub(crate) fn assert_refused(status: &Status, code: Code, reason: &str) {
    let info = status
        .get_details_error_info()
        .unwrap_or_else(|| panic!("no reason in {}", shown(status)));
    let found = (status.code(), info.reason.as_str(), info.domain.as_str());
    assert_eq!(found, (code, reason, "tandem"), "{}", status.message());
}

/// The reason of a status; empty where it has none.
pub(crate) fn reason_of(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

fn shown(status: &Status) -> String {
    format!("{:?} {} ({})", status.code(), reason_of(status), status.message())
}

/// Asks until there is something; for what other tasks bring about, which no clock of ours decides.
#[track_caller]
pub(crate) fn eventually<T, F>(what: &'static str, mut probe: impl FnMut() -> F) -> impl Future<Output = T>
where
    F: Future<Output = Option<T>>,
{
    let caller = std::panic::Location::caller();
    async move {
        for _ in 0..1000 {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
        panic!("{caller}: {what} did not come about within 15 s");
    }
}
