//! Kills and outages under load. Every acknowledged write is there afterwards, nobody is logged out, and what is still
//! alive is not started again.

use std::fs::File;
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::Value;
use shared::pb::session::Verdict;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use crate::harness::{Pids, Stack, channel};
use crate::process::{self, Stopped, eventually, is_running, parent, poll, signal};

/// `up` waits 0.5 s before it starts a service again; recovery of PostgreSQL takes a moment.
const BACK_LIMIT: Duration = Duration::from_secs(20);
/// Time for traffic between the kills; a replay needs less than one to set up.
const PAUSE: Duration = Duration::from_secs(3);
/// Health bears 5 s without PostgreSQL, from when it was last seen, which is a second before it dies at most.
const STILL_SERVING: Duration = Duration::from_millis(3_900);
const TURNS_LIMIT: Duration = Duration::from_secs(6);
const REPLAY_LIMIT: Duration = Duration::from_secs(90);
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

#[test]
fn every_acknowledged_write_survives_kill_9_of_both_services_and_of_postgresql() {
    let stack = Stack::start("kill", &[]);
    let mut replay = Replay::start(&stack, "20s");

    let before = replay.pause();
    signal("KILL", before.session);
    let after = changed(&stack, before, |pids| pids.session);
    assert_eq!(
        (after.release, after.postgres),
        (before.release, before.postgres),
        "only session-svc was killed"
    );

    let before = replay.pause();
    signal("KILL", before.postgres);
    let after = changed(&stack, before, |pids| pids.postgres);
    replay.pause();
    assert_eq!(
        (after.session, after.release),
        (before.session, before.release),
        "PostgreSQL's end is not theirs"
    );
    assert!(is_running(after.session) && is_running(after.release), "a service has died with PostgreSQL");

    let before = replay.pause();
    signal("KILL", before.release);
    let after = changed(&stack, before, |pids| pids.release);
    assert_eq!(
        (after.session, after.postgres),
        (before.session, before.postgres),
        "only release-svc was killed"
    );

    let summary = replay.finish();
    let retries = summary["retries"].as_array().map_or(0, Vec::len);
    assert!(retries > 0, "no call has noticed that anything was killed: {summary}");
}

#[test]
fn service_that_is_told_to_stop_under_load_drains_and_is_started_again() {
    let stack = Stack::start("drain", &[]);
    let mut replay = Replay::start(&stack, "10s");
    for (name, pid) in
        [("session", (|pids| pids.session) as fn(Pids) -> u32), ("release", |pids| pids.release)]
    {
        let before = replay.pause();
        signal("TERM", pid(before));
        changed(&stack, before, pid);
        let log = stack.log(&format!("{name}.log"));
        assert!(
            log.contains("SIGTERM") && log.contains("stopping: no new calls"),
            "{name}-svc heard nothing"
        );
        assert!(!log.contains("given up"), "{name}-svc has cut off calls in flight");
        let told = format!("{name}-svc died (exit status: 0)");
        assert!(stack.log("up.err").contains(&told), "{name}-svc did not end with exit code 0");
    }
    replay.finish();
}

/// What waits begins, what is watched goes on, what is paused stays, and what goes back is back, whoever saw to it before.
#[test]
fn rollouts_are_where_they_were_after_kill_9_of_release_svc_and_go_on() {
    let stack = Stack::start("rollouts", &[]);
    let run = |command: &[&str]| process::run(&mut stack.tandem(command), COMMAND_LIMIT);
    let done = |command: &[&str]| {
        let output = run(command);
        assert!(output.status.success(), "{command:?}: {}", process::said(&output));
    };
    let reach = |state: &str| {
        let newest = || {
            let listed: Value =
                serde_json::from_slice(&run(&["rollout", "list", "storefront", "--json"]).stdout).ok()?;
            Some(listed[0]["state"].as_str()?.trim_start_matches("ROLLOUT_STATE_").to_owned())
        };
        let reached = poll(BACK_LIMIT, || (newest()? == state).then_some(()));
        assert!(reached.is_some(), "it is {:?} and not {state}", newest());
    };
    let kill = || {
        let before = stack.running();
        signal("KILL", before.release);
        changed(&stack, before, |pids| pids.release);
    };
    for version in ["1.1", "1.2"] {
        done(&["release", "create", "storefront", version]);
        done(&["release", "submit", "storefront", version]);
    }
    done(&["rollout", "start", "storefront", "1.1", "--steps", "50%", "--bake", "2s"]);
    run(&["rollout", "start", "storefront", "1.2", "--steps", "50%", "--wait"]);
    reach("WAITING");
    kill();
    reach("RUNNING");
    kill();
    reach("RUNNING");
    done(&["rollout", "pause", "storefront", "--reason", "somebody calls"]);
    kill();
    reach("PAUSED");
    done(&["rollout", "resume", "storefront", "--reason", "it was nothing", "--sub", "alice"]);
    kill();
    reach("RUNNING");
    done(&["rollout", "back", "storefront", "--reason", "loses orders"]);
    kill();
    reach("ROLLED_BACK");
}

/// The watchdog between `up` and PostgreSQL stands still meanwhile, so that `up` hears of the death only afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_away_for_a_while_is_an_outage_and_never_a_verdict() {
    let stack = Stack::start("outage", &[]);
    let session = stack.create_session().await.session_token;
    let before = stack.running();
    let watchdog = Stopped::new(parent(before.postgres));
    signal("KILL", before.postgres);
    let began = Instant::now();

    // A connection that PostgreSQL has not cut yet may answer once more.
    let failed = eventually(Duration::from_secs(2), async || stack.validate(&session).await.err()).await;
    let status = failed.expect("no verdict can be read from a database that is away");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let reason = status.get_details_error_info().map(|info| (info.reason, info.domain));
    assert_eq!(reason, Some(("STORAGE_UNAVAILABLE".to_owned(), "tandem".to_owned())), "{status:?}");
    let status = stack
        .sessions()
        .create_session(stack.ask(web()))
        .await
        .expect_err("nothing can be stored");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");

    while began.elapsed() < STILL_SERVING {
        assert_eq!(health(&stack).await, Ok(ServingStatus::Serving), "{:?} is too early", began.elapsed());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let turned = eventually(TURNS_LIMIT, async || {
        (health(&stack).await == Ok(ServingStatus::NotServing)).then_some(())
    });
    assert_eq!(turned.await, Some(()), "health does not turn NOT_SERVING");
    let status = stack.validate(&session).await.expect_err("it is still away");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");

    drop(watchdog);
    let is_back =
        async || matches!(stack.validate(&session).await, Ok(answer) if answer.verdict() == Verdict::Active);
    let back = eventually(BACK_LIMIT, async || is_back().await.then_some(()));
    assert_eq!(back.await, Some(()), "the session is not back with PostgreSQL");
    let serving =
        eventually(BACK_LIMIT, async || (health(&stack).await == Ok(ServingStatus::Serving)).then_some(()));
    assert_eq!(serving.await, Some(()), "health does not come back");
    let after = changed(&stack, before, |pids| pids.postgres);
    assert_eq!(
        (after.session, after.release),
        (before.session, before.release),
        "a service was started again"
    );
}

fn web() -> shared::pb::session::CreateSessionRequest {
    shared::pb::session::CreateSessionRequest { touchpoint: "web".to_owned(), ..Default::default() }
}

async fn health(stack: &Stack) -> Result<ServingStatus, Code> {
    let mut client = HealthClient::new(channel(stack.session_address()));
    let answer = client.check(HealthCheckRequest::default()).await;
    answer
        .map(|answer| answer.into_inner().status())
        .map_err(|status| status.code())
}

/// Waits until `stack.json` tells of another process, and gives what it tells.
fn changed(stack: &Stack, before: Pids, pid: impl Fn(Pids) -> u32) -> Pids {
    let changed = poll(BACK_LIMIT, || stack.pids().filter(|pids| pid(*pids) != pid(before)));
    changed.expect("what has died is started again")
}

/// `tandem replay` beside the test.
struct Replay<'a> {
    stack: &'a Stack,
    child: Child,
}

impl<'a> Replay<'a> {
    fn start(stack: &'a Stack, duration: &str) -> Self {
        let log = |name| File::create(stack.path(name)).expect("a log can be made");
        let mut command = stack.tandem(&["replay", "--json", "--sessions", "100", "--concurrency", "16"]);
        command
            .args(["--duration", duration])
            .stdout(log("replay.out"))
            .stderr(log("replay.err"));
        let child = stack.folder.spawn(&mut command);
        Self { stack, child }
    }

    /// Lets traffic flow for a while, and tells what runs.
    fn pause(&mut self) -> Pids {
        std::thread::sleep(PAUSE);
        let ended = self.child.try_wait().expect("a child can be waited for");
        assert_eq!(ended, None, "the replay is over before the test is: {}", self.said());
        self.stack.running()
    }

    /// Waits for the end, at which every promise was kept; its summary.
    fn finish(mut self) -> Value {
        let status = self.stack.folder.wait(&mut self.child, REPLAY_LIMIT);
        let code = status.and_then(|status| status.code());
        assert_eq!(code, Some(0), "the replay failed: {}", self.said());
        let summary: Value = serde_json::from_str(&self.stack.log("replay.out")).expect("a summary in JSON");
        for promise in
            ["false_logouts", "version_flips", "checkouts_moved", "orders_missing", "lines_missing"]
        {
            assert_eq!(summary["promises"][promise], 0, "{promise} in {summary}");
        }
        assert!(summary["shop"]["lines"].as_u64() > Some(0), "nothing was bought: {summary}");
        summary
    }

    fn said(&self) -> String {
        format!("{}{}", self.stack.log("replay.out"), self.stack.log("replay.err"))
    }
}
