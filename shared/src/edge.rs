//! What every call passes through before a service sees it, top to bottom: span, metrics, place, deadline, caller; and on
//! the way out, a reason for every error.
//!
//! The service itself runs in a task of its own, so that a caller who hangs up never drops a transaction midway.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use opentelemetry::KeyValue;
use opentelemetry::metrics::Histogram;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::Instrument as _;

use crate::allowance::Allowances;
use crate::auth::{Authenticator, Caller};
use crate::pb;
use crate::status::{Failure, Reason, Refusal, with_reason};
use crate::telemetry;
use crate::time::Clock;
use crate::tls::{self, Tls};

/// Longest a unary call may take, whatever its caller allows.
const CALL_MAX: Duration = Duration::from_secs(30);
/// Upper bounds of the histogram's buckets, as OpenTelemetry's conventions for rpc advise.
const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// tonic's own timer makes a reply that cannot be given a reason any more; ours fires so much before.
const HEAD_START: Duration = Duration::from_millis(2);

/// When the caller stops waiting.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline of a request that passed the edge.
    pub fn of<T>(request: &tonic::Request<T>) -> Option<Instant> {
        request.extensions().get::<Self>().map(|deadline| deadline.0)
    }
}

/// A method that may be called, and what its caller must hold.
#[derive(Debug, Clone, Copy)]
enum Access {
    /// Everyone may.
    Open,
    /// A caller with the scope may.
    Scope(&'static str),
}

/// A served method whose proto does not say who may call it.
#[derive(Debug, thiserror::Error)]
#[error("the proto of {0} does not say which scope a caller needs; the server does not start")]
pub struct NoScope(pub String);

/// What a server takes at once, and of each caller.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Calls in flight.
    pub in_flight: usize,
    /// Streams open.
    pub streams: usize,
    /// Calls of one caller a second.
    pub caller_rate: NonZeroU32,
}

/// A stream's places, ours and its caller's.
type Places = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// What all calls share.
pub struct Edge {
    methods: HashMap<&'static str, Access>,
    authenticator: Arc<Authenticator>,
    tls: Option<Arc<Tls>>,
    allowances: Allowances,
    clock: Clock,
    places: Arc<Semaphore>,
    stream_methods: HashSet<&'static str>,
    stream_places: Arc<Semaphore>,
    calls: TaskTracker,
    message_max_bytes: usize,
    durations: Histogram<f64>,
}

impl Edge {
    /// The edge of a server of the named services. Fails where a method of theirs has no scope.
    pub fn new(
        services: &[&str],
        authenticator: Arc<Authenticator>,
        tls: Option<Arc<Tls>>,
        clock: Clock,
        limits: Limits,
        message_max_bytes: usize,
        calls: TaskTracker,
    ) -> Result<Self, NoScope> {
        Ok(Self {
            methods: methods(services, pb::METHODS)?,
            authenticator,
            tls,
            allowances: Allowances::new(limits.caller_rate, clock.clone()),
            clock,
            places: Arc::new(Semaphore::new(limits.in_flight)),
            stream_methods: pb::STREAMS.iter().copied().collect(),
            stream_places: Arc::new(Semaphore::new(limits.streams)),
            calls,
            message_max_bytes,
            durations: opentelemetry::global::meter("tandem")
                .f64_histogram("rpc.server.call.duration")
                .with_unit("s")
                .with_boundaries(SECONDS.to_vec())
                .build(),
        })
    }

    /// Lets a call in, or says why not; a stream with the places that it holds until it ends.
    async fn admit(&self, request: &mut Request<Body>) -> Result<Option<Places>, Refusal> {
        let path = request.uri().path();
        let scope = match self.methods.get(path) {
            Some(Access::Scope(scope)) => scope,
            Some(Access::Open) => return Ok(None),
            None => return Err(Refusal::new(Reason::MethodUnknown, "no such method")),
        };
        let is_stream = self.stream_methods.contains(path);
        let caller = self.caller(request).await?;
        let allowance = self.allowances.of(&caller);
        allowance.take_call()?;
        caller.require_scope(scope)?;
        let places = if is_stream {
            let ours = Arc::clone(&self.stream_places).try_acquire_owned().ok();
            let places = ours.zip(allowance.take_stream());
            Some(places.ok_or_else(|| overloaded("too many streams are open, of this caller or of all"))?)
        } else {
            None
        };
        request.extensions_mut().insert(caller);
        Ok(places)
    }

    /// A bearer counts before the connection's certificate.
    async fn caller(&self, request: &mut Request<Body>) -> Result<Arc<Caller>, Refusal> {
        let (header, now) = (request.headers().get(http::header::AUTHORIZATION), self.clock.now());
        if let (None, Some(tls), Some(certificate)) = (header, &self.tls, tls::certificate(request)) {
            return tls.caller(&certificate, now);
        }
        self.authenticator
            .authenticate(header.and_then(|value| value.to_str().ok()), now)
            .await
    }

    async fn call<S>(self: Arc<Self>, mut inner: S, mut request: Request<Body>) -> Response<Body>
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
            + Send
            + 'static,
    {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return overloaded("too many calls in flight").into_status().into_http();
        };
        let allowed = timeout(request.headers())
            .map_or(CALL_MAX, |asked| asked.saturating_sub(HEAD_START).min(CALL_MAX));
        let deadline = Instant::now() + allowed;
        request.extensions_mut().insert(Deadline(deadline));
        let admitted = tokio::time::timeout_at(deadline.into(), self.admit(&mut request)).await;
        let too_late = || {
            let text = "the caller's deadline passed before its token could be verified; nothing happened";
            Err(Refusal::new(Reason::DeadlinePassed, text))
        };
        let stream_places = match admitted.unwrap_or_else(|_| too_late()) {
            Ok(places) => places,
            Err(refusal) => return refusal.into_status().into_http(),
        };
        // The place is taken until the work is done, not until the caller stops waiting for it. Nothing of ours takes so
        // long as the bound: it is for callers who never finish sending.
        let work = async move {
            let _place = place;
            tokio::time::timeout(CALL_MAX, inner.call(request)).await
        };
        let call = self.calls.spawn(work.in_current_span());
        let response = match tokio::time::timeout_at(deadline.into(), call).await {
            Ok(Ok(Ok(Ok(response)))) => response,
            Ok(Err(panic)) => Status::from(Failure::Bug(panic.to_string())).into_http(),
            Ok(Ok(Err(_))) | Err(_) => {
                let text = "the caller's deadline passed; a write may or may not have happened";
                Refusal::new(Reason::DeadlinePassed, text).into_status().into_http()
            }
        };
        match Status::from_header_map(response.headers()) {
            Some(status) if status.code() != Code::Ok => {
                with_reason(status, self.message_max_bytes).into_http()
            }
            _ => match stream_places {
                Some(places) => response.map(|body| Body::new(Stream { body, _places: places })),
                None => response,
            },
        }
    }

    async fn observe<S>(self: Arc<Self>, inner: S, request: Request<Body>) -> Response<Body>
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
            + Send
            + 'static,
    {
        let began = Instant::now();
        let method = self
            .methods
            .get_key_value(request.uri().path())
            .map_or("unknown", |(path, _)| &path[1..]);
        let span = tracing::info_span!(
            target: "shared::rpc",
            "rpc",
            otel.name = method,
            otel.kind = "server",
            otel.status_code = tracing::field::Empty,
            rpc.system.name = "grpc",
            rpc.method = method,
            rpc.response.status_code = tracing::field::Empty,
        );
        telemetry::continue_trace(&span, request.headers());
        let response = Arc::clone(&self).call(inner, request).instrument(span.clone()).await;
        let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
        span.record("rpc.response.status_code", name_of(code));
        if matches!(
            code,
            Code::Internal | Code::Unknown | Code::DataLoss | Code::Unavailable | Code::DeadlineExceeded
        ) {
            span.record("otel.status_code", "ERROR");
        }
        let labels =
            [KeyValue::new("rpc.method", method), KeyValue::new("rpc.response.status_code", name_of(code))];
        self.durations.record(began.elapsed().as_secs_f64(), &labels);
        response
    }
}

fn overloaded(text: &str) -> Refusal {
    Refusal::new(Reason::Overloaded, text).retry_after(Duration::from_millis(100))
}

/// A stream's body. Dropped, be it at its end or because its reader is gone, it gives the places back.
struct Stream {
    body: Body,
    _places: Places,
}

impl http_body::Body for Stream {
    type Data = <Body as http_body::Body>::Data;
    type Error = <Body as http_body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// Who may call what, from the protos' options and, for the foreign services, from the table here.
fn methods(
    services: &[&str],
    known: &[(&'static str, Option<&'static str>)],
) -> Result<HashMap<&'static str, Access>, NoScope> {
    let mut methods = HashMap::from([
        ("/grpc.health.v1.Health/Check", Access::Open),
        ("/grpc.health.v1.Health/Watch", Access::Open),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Access::Open),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Access::Open),
    ]);
    for (path, scope) in known {
        let service = path[1..].split('/').next().unwrap_or_default();
        if services.contains(&service) {
            let scope = scope.ok_or_else(|| NoScope((*path).to_owned()))?;
            methods.insert(*path, Access::Scope(scope));
        }
    }
    Ok(methods)
}

/// As OpenTelemetry's conventions for gRPC name it.
fn name_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// `grpc-timeout`: up to eight digits and a unit (the gRPC over HTTP/2 specification).
fn timeout(headers: &http::HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok().filter(|_| number.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Puts an [`Edge`] around the services.
#[derive(Clone)]
pub struct EdgeLayer(pub Arc<Edge>);

impl<S> Layer<S> for EdgeLayer {
    type Service = EdgeService<S>;

    fn layer(&self, inner: S) -> EdgeService<S> {
        EdgeService { edge: Arc::clone(&self.0), inner }
    }
}

/// The services behind an [`Edge`].
#[derive(Clone)]
pub struct EdgeService<S> {
    edge: Arc<Edge>,
    inner: S,
}

impl<S> Service<Request<Body>> for EdgeService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The clone that was polled ready is the one to call.
        let ready = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, ready);
        let edge = Arc::clone(&self.edge);
        Box::pin(async move { Ok(edge.observe(inner, request).await) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_served_method_without_a_scope_is_refused() {
        let known = [("/a.B/C", Some("x")), ("/a.B/D", None)];
        assert_eq!(methods(&["a.B"], &known).map_err(|error| error.0).err(), Some("/a.B/D".to_owned()));
        assert!(methods(&["a.Other"], &known).is_ok());
    }

    #[test]
    fn every_method_of_ours_has_a_scope() {
        for (path, scope) in pb::METHODS {
            assert!(scope.is_some(), "{path}");
        }
    }

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let read = |text: &str| {
            timeout(&http::HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-timeout"),
                text.parse().unwrap(),
            )]))
        };
        assert_eq!(read("5S"), Some(Duration::from_secs(5)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        for bad in ["", "S", "5", "5x", "-5S", "123456789S"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
