//! A replica that stands still in the middle of a transaction: it holds nobody up.

use std::net::SocketAddr;
use std::process::Child;
use std::time::{Duration, Instant};

use shared::pb::session::revoke_session_request::Target;
use shared::pb::session::session_service_client::SessionServiceClient;
use shared::pb::session::{RevokeReason, RevokeSessionRequest, RevokeSessionResponse, SessionState, Verdict};
use sqlx::{Connection as _, PgConnection};
use tonic::{Code, Status};

use crate::harness::{Stack, channel};
use crate::process::{self, Stopped, eventually};

/// What a caller of ours waits for an answer, and `Stack::ask` asks for.
const DEADLINE: Duration = Duration::from_secs(5);
const UP_LIMIT: Duration = Duration::from_secs(30);

/// The connection of a service that waits for a row.
const WAITING: &str = "select pid from pg_stat_activity where application_name = 'session-svc' \
                       and wait_event_type = 'Lock'";
/// Whether a connection waits for its client, in a transaction.
const IDLE: &str = "select true from pg_stat_activity where pid = $1 and state = 'idle in transaction'";

/// One more session-svc on the stack's database.
struct Replica<'a> {
    stack: &'a Stack,
    child: Child,
    address: SocketAddr,
}

impl<'a> Replica<'a> {
    fn start(stack: &'a Stack) -> Self {
        let address = process::free_address();
        let log = std::fs::File::create(stack.path("replica.log")).expect("a log can be made");
        let mut command = stack.tandem(&["serve", "session"]);
        command
            .env("TANDEM_LISTEN", address.to_string())
            .env("TANDEM_SESSION_DATABASE_URL", stack.database_url())
            .env("TANDEM_ISSUERS", stack.path("issuer/issuers.json"))
            .env("TANDEM_KEYRING", stack.path("keyring.json"))
            .env("TANDEM_ENVIRONMENT", "local")
            .stderr(log);
        Self { stack, child: stack.folder.spawn(&mut command), address }
    }

    async fn revoke(&self, session_token: &str) -> Result<RevokeSessionResponse, Status> {
        let mut client = SessionServiceClient::new(channel(self.address));
        let request = self.stack.ask(logout(session_token));
        Ok(client.revoke_session(request).await?.into_inner())
    }
}

impl Drop for Replica<'_> {
    fn drop(&mut self) {
        process::signal("INT", self.child.id());
        self.stack.folder.wait(&mut self.child, DEADLINE);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_stands_still_in_a_transaction_holds_nobody_up() {
    let stack = Stack::start("stalled", &[]);
    let token = stack.create_session().await.session_token;
    let replica = Replica::start(&stack);
    let is_up = async || replica.revoke("nonsense").await.ok().map(drop);
    assert_eq!(eventually(UP_LIMIT, is_up).await, Some(()), "{}", stack.log("replica.log"));

    let url = stack.database_url();
    let mut lock = PgConnection::connect(&url).await.expect("the test's own connection");
    let mut observer = PgConnection::connect(&url).await.expect("another one");
    let mut held = lock.begin().await.expect("a transaction");
    let row = "select from session.sessions for update";
    sqlx::query(row).execute(&mut *held).await.expect("the row is free");
    // The first replica waits for the row, and stands still before it gets it: from then on it holds the row itself.
    let mut sessions = stack.sessions();
    let first = sessions.revoke_session(stack.ask(logout(&token)));
    let meanwhile = async {
        let waiting = async || sqlx::query_scalar(WAITING).fetch_optional(&mut observer).await.ok().flatten();
        let pid: i32 = eventually(DEADLINE, waiting).await.expect("it waits for the row");
        let stopped = Stopped::new(stack.running().session);
        held.rollback().await.expect("the row is given back");
        let idle = async || {
            sqlx::query_scalar(IDLE)
                .bind(pid)
                .fetch_optional(&mut observer)
                .await
                .ok()
                .flatten()
        };
        assert_eq!(eventually(DEADLINE, idle).await, Some(true), "it does not hold the row");

        let began = Instant::now();
        let ended = loop {
            match replica.revoke(&token).await {
                Err(status) if status.code() == Code::Aborted && began.elapsed() < DEADLINE => {}
                other => break other,
            }
        };
        assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
        drop(stopped);
        ended.expect("it is ended within the deadline").session.expect("it is told")
    };
    let (first, session) = tokio::join!(first, meanwhile);
    assert_eq!(session.state(), SessionState::Revoked);
    assert!(first.is_err(), "its transaction was ended, and it says so: {first:?}");
    let answer = eventually(DEADLINE, async || stack.validate(&token).await.ok()).await;
    assert_eq!(answer.expect("a verdict").verdict(), Verdict::Revoked);
}

fn logout(session_token: &str) -> RevokeSessionRequest {
    RevokeSessionRequest {
        target: Some(Target::SessionToken(session_token.to_owned())),
        reason: RevokeReason::Logout.into(),
        ..RevokeSessionRequest::default()
    }
}
