//! `tandem executor` with a real command: it deploys, stops what is not wanted any more, and gives back what it cannot end.

use std::fs;
use std::process::Child;
use std::time::Duration;

use shared::pb::release::executor_service_client::ExecutorServiceClient;
use shared::pb::release::{
    CreateEnvironmentRequest, Environment, ListRolloutsRequest, ListTasksRequest, RolloutState, Task,
    TaskState,
};

use crate::harness::{Stack, channel};
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
}

impl Edge {
    /// A stack with an environment that needs an executor.
    async fn start() -> Self {
        let stack = Stack::start("executor", &[]);
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
        fs::write(stack.path("deploy.sh"), DEPLOY).expect("a file is written");
        Self { stack }
    }

    fn executor(&self, options: &[&str]) -> std::process::Command {
        let script = self.stack.path("deploy.sh");
        let mut command = self.stack.tandem(&["executor", "--environment", "edge"]);
        command
            .args(options)
            .args(["--", "sh"])
            .arg(script)
            .arg(&self.stack.folder.path);
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
    let edge = Edge::start().await;
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
