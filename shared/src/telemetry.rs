//! Traces and metrics over OTLP, logs on stderr, and the W3C trace context that ties them together.
//!
//! The standard `OTEL_*` variables configure the exporters; without an endpoint nothing is exported. Nothing here ever
//! sees a message's content: spans carry ids and codes only.

use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry::{Context, global};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry};

use crate::config::LogFormat;

/// What must be flushed before the process ends.
#[derive(Debug, Default)]
pub struct Guard {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
}

/// Telemetry cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The OTLP settings make no sense.
    #[error("the OTEL_* settings cannot be used: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// The filter makes no sense.
    #[error("the log filter cannot be used: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Done before in this process.
    #[error("telemetry is set up already")]
    Twice,
}

/// Sets up logs, and traces and metrics where an OTLP endpoint is configured. Needs a running tokio.
pub fn init(
    service: &'static str,
    filter: EnvFilter,
    format: LogFormat,
    otlp: bool,
) -> Result<Guard, TelemetryError> {
    global::set_text_map_propagator(TraceContextPropagator::new());
    let mut guard = Guard::default();
    let resource = opentelemetry_sdk::Resource::builder().with_service_name(service).build();
    let spans = if otlp {
        let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().build()?;
        let traces = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_batch_exporter(exporter)
            .build();
        let exporter = opentelemetry_otlp::MetricExporter::builder().with_tonic().build()?;
        let metrics = SdkMeterProvider::builder()
            .with_resource(resource)
            .with_periodic_exporter(exporter)
            .build();
        global::set_meter_provider(metrics.clone());
        let layer = tracing_opentelemetry::layer().with_tracer(traces.tracer("tandem"));
        guard = Guard { traces: Some(traces), metrics: Some(metrics) };
        // The exporter's own calls must not be traced, or they would trace themselves for ever.
        Some(layer.with_filter(EnvFilter::try_new("off,shared=trace,session_svc=trace,release_svc=trace")?))
    } else {
        None
    };
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let logs = match format {
        LogFormat::Text => logs.with_target(false).boxed(),
        LogFormat::Json => logs.json().flatten_event(true).boxed(),
    };
    let subscriber = Registry::default().with(spans).with(logs.with_filter(filter));
    tracing::subscriber::set_global_default(subscriber).map_err(|_| TelemetryError::Twice)?;
    Ok(guard)
}

impl Guard {
    /// Sends what is buffered. Blocks for some seconds at most.
    pub fn flush(self) {
        if let Some(traces) = self.traces
            && let Err(error) = traces.shutdown()
        {
            tracing::warn!(%error, "traces not flushed");
        }
        if let Some(metrics) = self.metrics
            && let Err(error) = metrics.shutdown()
        {
            tracing::warn!(%error, "metrics not flushed");
        }
    }
}

/// Makes the caller's trace context, if there is one, the parent of `span`.
pub fn continue_trace(span: &Span, headers: &http::HeaderMap) {
    if !headers.contains_key("traceparent") {
        return;
    }
    let parent = global::get_text_map_propagator(|propagator| propagator.extract(&HeaderExtractor(headers)));
    // Fails only where no traces are collected.
    let _ = span.set_parent(parent);
}

/// Makes a `traceparent` that came another way the parent of `span`.
pub fn continue_from(span: &Span, trace_parent: &str) {
    let mut headers = http::HeaderMap::new();
    if let Ok(value) = trace_parent.parse() {
        headers.insert("traceparent", value);
        continue_trace(span, &headers);
    }
}

/// Passes the current trace context on with an outgoing call; an interceptor for tonic clients.
#[expect(clippy::unnecessary_wraps, reason = "the shape of an interceptor")]
pub fn pass_on(mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
    let context = Span::current().context();
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut MetadataInjector(request.metadata_mut()));
    });
    Ok(request)
}

/// The current trace context as a `traceparent`; empty where there is none.
pub fn trace_parent() -> String {
    let context: Context = Span::current().context();
    let span = context.span();
    let span = span.span_context();
    if !span.is_valid() {
        return String::new();
    }
    format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8())
}

/// The current trace's id; empty where there is none.
pub fn current_trace_id() -> String {
    let context = Span::current().context();
    let span = context.span();
    let span = span.span_context();
    if span.is_valid() { span.trace_id().to_string() } else { String::new() }
}

struct HeaderExtractor<'a>(&'a http::HeaderMap);

impl Extractor for HeaderExtractor<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

struct MetadataInjector<'a>(&'a mut tonic::metadata::MetadataMap);

impl Injector for MetadataInjector<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) =
            (tonic::metadata::MetadataKey::from_bytes(key.as_bytes()), value.parse())
        {
            self.0.insert(key, value);
        }
    }
}
