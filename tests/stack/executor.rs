//! `tandem executor` with a real command: it deploys, stops what is not wanted any more, and gives back what it cannot end.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use shared::pb::release::executor_service_client::ExecutorServiceClient;
use shared::pb::release::{
    CreateEnvironmentRequest, Environment, ListRolloutsRequest, ListTasksRequest, RolloutState, Task,
    TaskState,
};

use crate::harness::{Stack, channel, repository};
use crate::process::{self, eventually, is_running, poll, said};

const LIMIT: Duration = Duration::from_secs(30);

/// Deploys into a folder: a file for each version that runs. It never ends while there is a file `slow`.
const DEPLOY: &str = r#"
set -eu
cd "$1"
case $TANDEM_TASK_KIND in
EXPOSE)
    if [ -e slow ]; then
        echo $$ > pid.new
        mv pid.new pid
        sleep 300
    fi
    echo "$TANDEM_TASK_ID $TANDEM_COMPONENT $TANDEM_ENVIRONMENT $TANDEM_RELEASE_ID $TANDEM_EXPOSURE_BPS" > "running-$TANDEM_VERSION"
    echo "$TANDEM_VERSION runs" >&2
    ;;
RETIRE) rm -f "running-$TANDEM_VERSION" ;;
esac
"#;

struct Edge {
    stack: Stack,
    /// What deploys there.
    deploy: Vec<OsString>,
}

impl Edge {
    /// A stack with an environment that needs an executor. What it deploys with is told the stack's folder last.
    async fn start(name: &str, deploy: &[&OsStr]) -> Self {
        let stack = Stack::start(name, &[]);
        let environment = Environment {
            environment: "edge".to_owned(),
            needs_executor: Some(true),
            ..Environment::default()
        };
        let request = CreateEnvironmentRequest {
            environment: Some(environment),
            ..CreateEnvironmentRequest::default()
        };
        let made = stack.catalog().create_environment(stack.ask(request)).await;
        made.expect("an environment is made");
        let deploy = deploy.iter().copied().chain([stack.folder.path.as_os_str()]);
        Self { deploy: deploy.map(ToOwned::to_owned).collect(), stack }
    }

    fn executor(&self, options: &[&str]) -> std::process::Command {
        let mut command = self.stack.tandem(&["executor", "--environment", "edge"]);
        command.args(options).arg("--").args(&self.deploy);
        command
    }

    fn spawn(&self) -> Child {
        self.stack.folder.spawn(&mut self.executor(&[]))
    }

    /// Its exit code.
    fn once(&self) -> Option<i32> {
        process::run(&mut self.executor(&["--once"]), LIMIT).status.code()
    }

    fn tandem(&self, arguments: &[&str]) {
        let output = process::run(&mut self.stack.tandem(arguments), LIMIT);
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    }

    fn ship(&self, version: &str) {
        self.tandem(&["ship", "storefront", version, "--environment", "edge"]);
    }

    /// Waits until the newest rollout is there.
    async fn reaches(&self, state: RolloutState) {
        let newest = async || {
            let request = ListRolloutsRequest { environment: "edge".to_owned(), ..Default::default() };
            let answer = self.stack.rollouts().list_rollouts(self.stack.ask(request)).await;
            let rollouts = answer.expect("rollouts are listed").into_inner().rollouts;
            (rollouts.first()?.state() == state).then_some(())
        };
        eventually(LIMIT, newest).await.expect("the rollout comes that far");
    }

    async fn newest_task(&self) -> Task {
        let mut client = ExecutorServiceClient::new(channel(self.stack.release_address()));
        let answer = client.list_tasks(self.stack.ask(ListTasksRequest::default())).await;
        answer.expect("tasks are listed").into_inner().tasks.remove(0)
    }

    fn running(&self, version: &str) -> Option<String> {
        fs::read_to_string(self.stack.path(&format!("running-{version}"))).ok()
    }

    /// The process of a command that has begun.
    fn slow_pid(&self) -> u32 {
        let pid = poll(LIMIT, || fs::read_to_string(self.stack.path("pid")).ok()).expect("the command runs");
        fs::remove_file(self.stack.path("pid")).expect("it is there");
        pid.trim().parse().expect("a process")
    }
}

#[tokio::test]
async fn a_command_deploys_and_is_stopped_when_nobody_needs_it_any_more() {
    let deploy = ["sh", "-c", DEPLOY, "deploy"].map(OsStr::new);
    let edge = Edge::start("executor", &deploy).await;
    let mut executor = edge.spawn();
    edge.ship("1.0");
    edge.reaches(RolloutState::Succeeded).await;
    let task = edge.newest_task().await;
    let told = format!("{} storefront edge {} 10000\n", task.task_id, task.release_id);
    assert_eq!(edge.running("1.0"), Some(told));
    assert_eq!((task.state(), task.message.as_str()), (TaskState::Done, "1.0 runs"));

    let slow = edge.stack.path("slow");
    fs::write(&slow, "").expect("a file is written");
    edge.ship("1.1");
    let pid = edge.slow_pid();
    edge.tandem(&["rollout", "back", "storefront", "--environment", "edge", "--reason", "it burns"]);
    edge.reaches(RolloutState::RolledBack).await;
    poll(LIMIT, || (!is_running(pid)).then_some(())).expect("the command is stopped");
    let retired = async || (edge.newest_task().await.state() == TaskState::Done).then_some(());
    eventually(LIMIT, retired).await.expect("what it may have begun is retired");
    assert_eq!(edge.running("1.1"), None);

    edge.ship("1.2");
    let pid = edge.slow_pid();
    process::signal("TERM", executor.id());
    let status = edge.stack.folder.wait(&mut executor, LIMIT).expect("the executor stops");
    assert!(status.success() && !is_running(pid), "{status}");
    let task = edge.newest_task().await;
    assert_eq!((task.state(), task.version.as_str(), task.attempts), (TaskState::Queued, "1.2", 1));

    fs::remove_file(&slow).expect("it is there");
    assert_eq!(edge.once(), Some(0));
    edge.reaches(RolloutState::Succeeded).await;
    assert!(edge.running("1.0").is_some() && edge.running("1.2").is_some());
    assert_eq!(edge.once(), Some(3), "1.0 is what 1.2 goes back to");
}

/// The example of a server and of a script that deploys it.
struct Example {
    edge: Edge,
}

impl Example {
    async fn start() -> Self {
        let server = Path::new(env!("CARGO_BIN_EXE_tandem")).with_file_name("examples/storefront");
        assert!(server.exists(), "`cargo build -p tandem --example storefront` makes {}", server.display());
        let script = repository("cli/examples/deploy.sh");
        Self { edge: Edge::start("deploy", &[script.as_os_str(), server.as_os_str()]).await }
    }

    /// What the script keeps of a version.
    fn kept(&self, version: &str, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.edge.stack.path(&format!("{version}/{name}"))).ok();
        text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// The process that is to run a version, which does not outlive the test.
    fn pid(&self, version: &str) -> u32 {
        let pid = self.kept(version, "pid").expect("it runs").parse().expect("a process");
        self.edge.stack.folder.adopt(pid);
        pid
    }

    /// What a version answers to a browser.
    fn answer(&self, version: &str) -> Option<String> {
        let mut server = TcpStream::connect(self.kept(version, "address")?).ok()?;
        let request = "GET / HTTP/1.1\r\nHost: storefront\r\nConnection: close\r\n\r\n";
        server.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        server.read_to_string(&mut answer).ok()?;
        answer.lines().last().map(ToOwned::to_owned)
    }

    fn assert_running(&self, versions: &[&str]) {
        for version in versions {
            assert_eq!(self.answer(version), Some(format!("storefront {version}")));
        }
    }

    /// Waits until a version is gone with its process.
    fn is_retired(&self, version: &str, pid: u32) {
        let is_gone = || (self.kept(version, "pid").is_none() && !is_running(pid)).then_some(());
        poll(LIMIT, is_gone).unwrap_or_else(|| panic!("{version} is not retired"));
    }

    /// The script alone, as it would be run for a task a second time.
    fn deploy(&self, kind: &str, version: &str) {
        let [script, arguments @ ..] = &self.edge.deploy[..] else { panic!("there is a command") };
        let mut command = Command::new(script);
        command
            .args(arguments)
            .env("TANDEM_TASK_KIND", kind)
            .env("TANDEM_VERSION", version);
        let output = process::run(&mut command, LIMIT);
        assert!(output.status.success(), "{}", said(&output));
    }
}

#[tokio::test]
async fn example_runs_two_versions_side_by_side_and_retires_what_nobody_is_on() {
    let example = Example::start().await;
    let edge = &example.edge;
    let mut executor = edge.spawn();
    edge.ship("1.0");
    edge.reaches(RolloutState::Succeeded).await;
    let first = example.pid("1.0");

    edge.tandem(&["ship", "storefront", "1.1", "--environment", "edge", "--canary", "50%"]);
    poll(LIMIT, || example.answer("1.1")).expect("the canary is deployed");
    let canary = example.pid("1.1");
    example.assert_running(&["1.0", "1.1"]);
    edge.tandem(&["rollout", "back", "storefront", "--environment", "edge", "--reason", "it burns"]);
    edge.reaches(RolloutState::RolledBack).await;
    example.is_retired("1.1", canary);
    example.assert_running(&["1.0"]);

    edge.ship("1.2");
    edge.reaches(RolloutState::Succeeded).await;
    let second = example.pid("1.2");
    example.assert_running(&["1.0", "1.2"]);
    edge.ship("1.3");
    edge.reaches(RolloutState::Succeeded).await;
    let third = example.pid("1.3");
    example.is_retired("1.0", first);
    example.assert_running(&["1.2", "1.3"]);

    process::signal("TERM", executor.id());
    let status = edge.stack.folder.wait(&mut executor, LIMIT).expect("the executor stops");
    assert!(status.success(), "{status}");
    example.deploy("EXPOSE", "1.3");
    assert_eq!(example.pid("1.3"), third, "it runs already");
    example.assert_running(&["1.2", "1.3"]);
    for (version, pid) in [("1.2", second), ("1.3", third), ("1.3", third)] {
        example.deploy("RETIRE", version);
        example.is_retired(version, pid);
    }
}
