//! How a stack ends, what is left of it, and what the next start finds.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use shared::pb::session::{CreateSessionRequest, Verdict};
use tokio::runtime::Builder;

use crate::harness::{Pids, STOP_LIMIT, Stack};
use crate::process::{self, is_running, poll};

/// After a kill nobody waits for anybody.
const GONE_LIMIT: Duration = Duration::from_secs(8);
/// Calls in flight may take 20 s; there are none.
const FROZEN_LIMIT: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_start_keeps_the_data_and_fresh_forgets_it() {
    let mut stack = Stack::start("kept", &[]);
    let session = stack.create_session().await;
    let first = stack.running();

    let order = watch_order(first);
    assert_eq!(stack.interrupt().code(), Some(0), "Ctrl-C is no failure");
    assert!(order.join().expect("it only looks"), "PostgreSQL was stopped before the services");
    assert_nothing_left(&stack, first);
    for name in ["session.log", "release.log"] {
        let log = stack.log(name);
        assert!(log.contains("stopping: no new calls") && !log.contains("given up"), "{name} did not drain");
    }
    let log = stack.log("postgres/postgres.log");
    assert!(log.contains("database system is shut down"), "PostgreSQL was not shut down cleanly");

    stack.up(&[]);
    let again = stack.validate(&session.session_token).await.expect("the call is answered");
    assert_eq!(again.verdict(), Verdict::Active, "the session did not outlive a restart");
    assert_eq!(again.pins.first().map(|pin| pin.version.as_str()), Some("1.0"), "its visit lost its release");
    let second = stack.running();
    assert_eq!(stack.interrupt().code(), Some(0), "Ctrl-C is no failure");
    assert_nothing_left(&stack, second);

    stack.up(&["--fresh"]);
    let forgotten = stack.validate(&session.session_token).await;
    // A token that the new issuer signs is needed to ask.
    let status = forgotten.expect_err("the keys of the first run are forgotten");
    assert_eq!(status.code(), tonic::Code::Unauthenticated, "{status:?}");
    let stranger = stack.sign(&[]);
    let forgotten = stack
        .validate_as(&stranger, &session.session_token)
        .await
        .expect("the call is answered");
    assert_eq!(forgotten.verdict(), Verdict::SessionUnknown, "--fresh has kept a session");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_up_leaves_neither_services_nor_postgresql_and_loses_nothing() {
    let mut stack = Stack::start("killed", &[]);
    let session = stack.create_session().await;
    let pids = stack.running();

    stack.kill();
    poll(GONE_LIMIT, || left(&stack, pids).is_empty().then_some(()));
    assert_eq!(left(&stack, pids), Vec::<String>::new(), "left {GONE_LIMIT:?} after SIGKILL of `up`");

    stack.up(&[]);
    let again = stack.validate(&session.session_token).await.expect("the call is answered");
    assert_eq!(again.verdict(), Verdict::Active, "an acknowledged session is lost");
    assert_eq!(stack.interrupt().code(), Some(0), "Ctrl-C is no failure");
}

/// It is suspended, say, or behind a cable that was pulled.
#[test]
fn caller_that_has_frozen_holds_up_no_stop() {
    let mut stack = Stack::start("frozen", &[]);
    let frozen = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut caller = frozen.block_on(async { stack.sessions() });
    let request = CreateSessionRequest { touchpoint: "web".to_owned(), ..CreateSessionRequest::default() };
    frozen
        .block_on(caller.create_session(stack.ask(request)))
        .expect("a session is made");
    // From here on nothing runs there, though the connection is open.
    let began = Instant::now();
    assert_eq!(stack.interrupt().code(), Some(0), "Ctrl-C is no failure");
    assert!(began.elapsed() < FROZEN_LIMIT, "it took {:?}", began.elapsed());
}

/// Looks at who is left until PostgreSQL is gone: nobody who uses it may be.
fn watch_order(pids: Pids) -> JoinHandle<bool> {
    std::thread::spawn(move || {
        poll(STOP_LIMIT, || (!is_running(pids.postgres)).then_some(()));
        !is_running(pids.session) && !is_running(pids.release)
    })
}

/// `up` has waited for all of it, so there is nothing to wait for.
fn assert_nothing_left(stack: &Stack, pids: Pids) {
    assert_eq!(left(stack, pids), Vec::<String>::new(), "left after `up` has ended");
    assert!(!stack.path("stack.json").exists(), "stack.json tells of a stack that is gone");
    let said = process::read(&stack.path("up.err"));
    assert!(!said.contains("died") && !said.contains("is killed"), "not everyone stopped when told to");
}

fn left(stack: &Stack, pids: Pids) -> Vec<String> {
    let Pids { up, postgres, session, release } = pids;
    let named = [("up", up), ("postgres", postgres), ("session-svc", session), ("release-svc", release)];
    let mut left: Vec<_> = named
        .iter()
        .filter(|(_, pid)| is_running(*pid))
        .map(|(name, _)| (*name).to_owned())
        .collect();
    if stack.path("postgres/socket/.s.PGSQL.5432").exists() {
        left.push("PostgreSQL's socket".to_owned());
    }
    left
}
