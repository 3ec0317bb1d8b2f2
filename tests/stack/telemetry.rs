//! What a collector that knows nothing of Tandem is told over OTLP: a caller's trace from its call through both services
//! to SQL, and the measure of every call.

use std::collections::HashMap;
use std::time::Duration;

use shared::pb::release::{
    AdvanceRolloutRequest, Component, CreateComponentRequest, CreateReleaseRequest, StartRolloutRequest,
    SubmitReleaseRequest,
};
use shared::pb::session::CreateSessionRequest;

use crate::observed::Observed;
use crate::process::eventually;

/// Exporters send every 0.2 to 0.5 s; the machine may be busy.
const COLLECTED_LIMIT: Duration = Duration::from_secs(15);
/// The caller's own span.
const CALLER: &str = "00f067aa0ba902b7";
const SESSION: &str = "session-svc";
const RELEASE: &str = "release-svc";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trace_of_a_rollout_goes_from_its_caller_through_both_services_to_sql() {
    let stack = Observed::stack();
    if !stack.is_collected {
        return;
    }
    let started = format!("{:032x}", 0x51a7_u128 << 64 | u128::from(std::process::id()));
    let advanced = format!("{:032x}", 0xad7a_u128 << 64 | u128::from(std::process::id()));
    // One after the other: of two changes of a route that come together, session-svc is told the later one only.
    let rollout = start_canary(&stack, &started).await;
    assert_traced_through_the_pair(&stack, &started, "StartRollout", "db.rollout.insert").await;
    advance(&stack, rollout, &advanced).await;
    assert_traced_through_the_pair(&stack, &advanced, "AdvanceRollout", "db.rollout.update").await;
}

async fn assert_traced_through_the_pair(stack: &Observed, trace: &str, method: &str, write: &str) {
    let method = format!("tandem.release.v1.RolloutService/{method}");
    let report = "tandem.release.v1.RoutingService/ReportApplied";
    let expected = [
        [(RELEASE, method.as_str()), (RELEASE, write)],
        [(RELEASE, method.as_str()), (SESSION, "routes.apply")],
        [(SESSION, "routes.apply"), (SESSION, "db.route.save")],
        [(RELEASE, method.as_str()), (RELEASE, report)],
        [(SESSION, "routes.report"), (RELEASE, report)],
        [(RELEASE, report), (RELEASE, "db.route_applied")],
    ];
    assert_traced(stack, trace, &method, &expected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trace_of_a_session_goes_from_its_caller_to_its_insert() {
    let stack = Observed::stack();
    if !stack.is_collected {
        return;
    }
    let trace = format!("{:032x}", 0x5e55_u128 << 64 | u128::from(std::process::id()));
    let request = CreateSessionRequest { touchpoint: "web".to_owned(), ..CreateSessionRequest::default() };
    let answer = stack
        .sessions()
        .create_session(stack.ask_in(&trace_parent(&trace), request))
        .await;
    answer.expect("a session is made");
    let method = "tandem.session.v1.SessionService/CreateSession";
    assert_traced(&stack, &trace, method, &[[(SESSION, method), (SESSION, "db.session.insert")]]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_both_services_are_measured() {
    let stack = Observed::stack();
    if !stack.is_collected {
        return;
    }
    stack.create_session().await;
    let measured = |service: &str, method: &str| {
        let text = stack.collected();
        let mut blocks = text.split("ResourceMetrics #").skip(1);
        blocks.any(|block| {
            let parts = [format!("service.name: Str({service})"), format!("Str({method})")];
            block.contains("rpc.server.call.duration")
                && parts.iter().all(|part| block.contains(part.as_str()))
        })
    };
    for (service, method) in [
        (SESSION, "tandem.session.v1.SessionService/CreateSession"),
        (RELEASE, "tandem.release.v1.CatalogService/CreateComponent"),
    ] {
        let seen = eventually(COLLECTED_LIMIT, async || measured(service, method).then_some(())).await;
        assert_eq!(seen, Some(()), "no duration of {method} of {service}");
    }
}

/// A first release for everyone, then a canary.
async fn start_canary(stack: &Observed, trace: &str) -> String {
    let component = Component {
        component: "traced".to_owned(),
        approval_policy: "starter".to_owned(),
        ..Component::default()
    };
    let request = CreateComponentRequest { component: Some(component), request_id: String::new() };
    let made = stack.catalog().create_component(stack.ask(request)).await;
    made.expect("a component is made");
    start(stack, "1.0", &[], "").await;
    start(stack, "1.1", &[1_000, 5_000], &trace_parent(trace)).await
}

async fn advance(stack: &Observed, rollout_id: String, trace: &str) {
    let request = AdvanceRolloutRequest { rollout_id, ..AdvanceRolloutRequest::default() };
    let advanced = stack
        .rollouts()
        .advance_rollout(stack.ask_in(&trace_parent(trace), request))
        .await;
    advanced.expect("the rollout is advanced");
}

async fn start(stack: &Observed, version: &str, steps: &[i32], trace_parent: &str) -> String {
    let request = CreateReleaseRequest {
        component: "traced".to_owned(),
        version: version.to_owned(),
        ..CreateReleaseRequest::default()
    };
    let release = stack
        .releases()
        .create_release(stack.ask(request))
        .await
        .expect("a release is made");
    let release_id = release.into_inner().release.unwrap_or_default().release_id;
    let request = SubmitReleaseRequest { release_id: release_id.clone(), ..SubmitReleaseRequest::default() };
    stack
        .releases()
        .submit_release(stack.ask(request))
        .await
        .expect("the release is submitted");
    let request = StartRolloutRequest {
        release_id,
        environment: "local".to_owned(),
        step_exposures_bps: steps.to_vec(),
        ..StartRolloutRequest::default()
    };
    let request =
        if trace_parent.is_empty() { stack.ask(request) } else { stack.ask_in(trace_parent, request) };
    let rollout = stack.rollouts().start_rollout(request).await.expect("the rollout is started");
    rollout.into_inner().rollout.unwrap_or_default().rollout_id
}

fn trace_parent(trace: &str) -> String {
    format!("00-{trace}-{CALLER}-01")
}

/// Waits until the trace has the method's span right below the caller's and each second of a pair below its first.
async fn assert_traced(stack: &Observed, trace: &str, method: &str, pairs: &[[(&str, &str); 2]]) {
    let missing = || {
        let spans = spans(&stack.collected(), trace);
        let is_root = |span: &Span| span.name == method && span.parent == CALLER;
        let mut missing: Vec<_> = pairs
            .iter()
            .filter(|[above, below]| !is_below(&spans, *above, *below))
            .collect();
        let root = [(CALLER, ""), ("", method)];
        if !spans.values().any(is_root) {
            missing.push(&root);
        }
        (format!("{missing:?}"), missing.is_empty(), spans)
    };
    eventually(COLLECTED_LIMIT, async || missing().1.then_some(())).await;
    let (missing, is_complete, spans) = missing();
    assert!(is_complete, "trace {trace} lacks {missing}; it has {spans:#?}");
}

/// Whether a span of the second name is somewhere below one of the first, each of its service.
fn is_below(spans: &HashMap<String, Span>, above: (&str, &str), below: (&str, &str)) -> bool {
    let is =
        |span: &Span, (service, name): (&str, &str)| span.service == service && span.name.starts_with(name);
    spans.values().filter(|span| is(span, below)).any(|span| {
        let mut ancestors = std::iter::successors(spans.get(&span.parent), |span| spans.get(&span.parent));
        ancestors.any(|ancestor| is(ancestor, above))
    })
}

#[derive(Debug, Default, Clone)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
    service: String,
}

/// The spans of one trace by their id, read off the collector's text.
fn spans(text: &str, trace: &str) -> HashMap<String, Span> {
    let mut service = "";
    let mut all: Vec<Span> = Vec::new();
    for line in text.lines() {
        let (key, value) = line.trim().split_once(':').unwrap_or_default();
        let (key, value) = (key.trim_end(), value.trim());
        match key {
            "-> service.name" => service = value.trim_start_matches("Str(").trim_end_matches(')'),
            "Trace ID" => {
                all.push(Span { trace: value.to_owned(), service: service.to_owned(), ..Span::default() });
            }
            "ID" | "Parent ID" | "Name" => {
                let Some(span) = all.last_mut() else { continue };
                let field = match key {
                    "ID" => &mut span.id,
                    "Parent ID" => &mut span.parent,
                    _ => &mut span.name,
                };
                value.clone_into(field);
            }
            _ => {}
        }
    }
    all.into_iter()
        .filter(|span| span.trace == trace)
        .map(|span| (span.id.clone(), span))
        .collect()
}
