//! One stack that several tests share: it logs everything that it can, and tells an independent collector of telemetry
//! what it does where there is one.

use std::fs::File;
use std::net::TcpStream;
use std::ops::Deref;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::Duration;

use crate::harness::Stack;
use crate::process::{self, free_address, poll, tool};

/// What the collector prints.
const COLLECTED: &str = "collector.out";

/// The shared stack, as one test sees it.
pub(crate) struct Observed {
    stack: &'static Stack,
    /// Whether there is a collector.
    pub(crate) is_collected: bool,
}

impl Observed {
    /// The stack, started by whoever comes first.
    pub(crate) fn stack() -> Self {
        static SHARED: OnceLock<(Stack, Option<Child>)> = OnceLock::new();
        let (stack, collector) = SHARED.get_or_init(start);
        Self { stack, is_collected: collector.is_some() }
    }

    /// Everything that the collector has printed so far.
    pub(crate) fn collected(&self) -> String {
        self.log(COLLECTED)
    }
}

impl Deref for Observed {
    type Target = Stack;

    fn deref(&self) -> &Stack {
        self.stack
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell();
        }
    }
}

/// The stack and its collector, which the stack's folder ends with itself.
fn start() -> (Stack, Option<Child>) {
    let (grpc, http) = (free_address(), free_address());
    let variables = [
        ("TANDEM_LOG", "trace".to_owned()),
        // Without a collector there, what is exported is dropped.
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{grpc}")),
        ("OTEL_BSP_SCHEDULE_DELAY", "200".to_owned()),
        ("OTEL_METRIC_EXPORT_INTERVAL", "500".to_owned()),
    ];
    let mut stack = Stack::prepare("observed", &variables);
    let collector = tool("TANDEM_TEST_ROTEL").map(|rotel| {
        let out = File::create(stack.path(COLLECTED)).expect("a log can be made");
        let err = out.try_clone().expect("a log can be shared");
        let mut command = Command::new(rotel);
        command.args(["start", "--exporter", "blackhole", "--debug-log-verbosity", "detailed"]);
        command.args(["--debug-log", "traces", "--debug-log", "metrics"]);
        command.args(["--otlp-grpc-endpoint", &grpc.to_string(), "--otlp-http-endpoint", &http.to_string()]);
        command.arg("--pid-file").arg(stack.path("collector.pid"));
        let collector = stack.folder.spawn(command.stdout(out).stderr(err));
        let is_open = poll(Duration::from_secs(20), || TcpStream::connect(grpc).ok());
        assert!(
            is_open.is_some(),
            "the collector does not listen: {}",
            process::read(&stack.path(COLLECTED))
        );
        collector
    });
    stack.up(&[]);
    (stack, collector)
}
