//! One request to one receiver: signed, followed nowhere, and bounded in time and size.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt as _, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use sha2::Sha256;

use super::guard::{Connector, Guard};
use crate::jwks::chain;
use crate::secret::Secret;
use crate::time::Time;

/// From the look-up of the name to the end of the answer.
pub(super) const LIMIT: Duration = Duration::from_secs(10);
const ANSWER_MAX_BYTES: usize = 64 * 1024;
const EXCERPT_CHARS: usize = 256;
const ERROR_CHARS: usize = 256;

/// What signs: shown as `whsec_` and base64.
pub(super) type SigningKey = Secret<[u8; 32]>;

/// Posts to receivers.
pub(super) struct Sender {
    pub(super) guard: Arc<Guard>,
    client: Client<HttpsConnector<Connector>, Full<Bytes>>,
}

/// What is posted.
pub(super) struct Message<'a> {
    pub(super) url: &'a str,
    /// The same with every attempt; unique among all that the receiver gets from one service.
    pub(super) id: String,
    pub(super) body: &'a str,
    pub(super) trace_parent: &'a str,
}

/// How it went.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) at: Time,
    pub(super) latency: Duration,
    pub(super) status: Option<StatusCode>,
    /// None when it was delivered.
    pub(super) error: Option<String>,
    pub(super) excerpt: Option<String>,
    pub(super) retry_after: Option<TimeDelta>,
}

impl Sender {
    pub(super) fn new(guard: Guard) -> Self {
        let guard = Arc::new(guard);
        let connector = HttpsConnectorBuilder::new()
            .with_webpki_roots()
            .https_or_http() // which of them is decided by the guard
            .enable_http1()
            .wrap_connector(Connector(Arc::clone(&guard)));
        // Every request looks its receiver up anew.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Self { guard, client }
    }

    /// Posts once. Whatever happens is an outcome.
    pub(super) async fn send(&self, message: &Message<'_>, keys: &[SigningKey], now: Time) -> Attempt {
        let began = Instant::now();
        let mut attempt = match request(message, keys, now) {
            Ok(request) => self.exchange(request, now, began).await,
            Err(error) => Attempt::failed(now, &error),
        };
        attempt.latency = began.elapsed();
        attempt
    }

    async fn exchange(&self, request: Request<Full<Bytes>>, now: Time, began: Instant) -> Attempt {
        let response = match tokio::time::timeout(LIMIT, self.client.request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Attempt::failed(now, &chain(&error)),
            Err(_) => return Attempt::failed(now, &format!("no answer within {} s", LIMIT.as_secs())),
        };
        let (head, body) = response.into_parts();
        // The head has decided; the rest is for people, and as much of it as comes in time.
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(LIMIT.saturating_sub(began.elapsed()), read(body, &mut answer)).await;
        let error = (!head.status.is_success()).then(|| {
            let redirected = if head.status.is_redirection() { "; redirects are not followed" } else { "" };
            format!("answered {}{redirected}", head.status)
        });
        Attempt {
            excerpt: error.is_some().then(|| excerpt(&answer)),
            error,
            retry_after: retry_after(&head.headers, now),
            status: Some(head.status),
            ..Attempt::failed(now, "")
        }
    }
}

impl Attempt {
    pub(super) fn failed(at: Time, error: &str) -> Self {
        let error = error.chars().take(ERROR_CHARS).collect();
        Self {
            at,
            latency: Duration::ZERO,
            status: None,
            error: Some(error),
            excerpt: None,
            retry_after: None,
        }
    }
}

fn request(message: &Message<'_>, keys: &[SigningKey], now: Time) -> Result<Request<Full<Bytes>>, String> {
    let timestamp = now.timestamp();
    let signatures: Vec<_> = keys.iter().map(|key| sign(key, &message.id, timestamp, message.body)).collect();
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(message.url)
        .header(header::CONTENT_TYPE, "application/cloudevents+json; charset=utf-8")
        .header(header::USER_AGENT, concat!("tandem/", env!("CARGO_PKG_VERSION")))
        .header("webhook-id", &message.id)
        .header("webhook-timestamp", timestamp)
        .header("webhook-signature", signatures.join(" "));
    if !message.trace_parent.is_empty() {
        request = request.header("traceparent", message.trace_parent);
    }
    let body = Full::new(Bytes::copy_from_slice(message.body.as_bytes()));
    request.body(body).map_err(|error| error.to_string())
}

/// A signature as Standard Webhooks has it: HMAC-SHA256 of id, timestamp and body.
fn sign(key: &SigningKey, id: &str, timestamp: i64, body: &str) -> String {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.expose()) else { return String::new() };
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body.as_bytes());
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

/// As receivers configure it.
pub(super) fn shown(key: &SigningKey) -> String {
    format!("whsec_{}", STANDARD.encode(key.expose()))
}

async fn read(mut body: impl Body<Data = Bytes> + Unpin, into: &mut Vec<u8>) {
    while let Some(Ok(frame)) = body.frame().await {
        let data = frame.into_data().unwrap_or_default();
        let room = ANSWER_MAX_BYTES.saturating_sub(into.len());
        into.extend_from_slice(&data[..data.len().min(room)]);
        if into.len() == ANSWER_MAX_BYTES {
            return;
        }
    }
}

fn excerpt(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer)
        .chars()
        .filter(|c| !c.is_control())
        .take(EXCERPT_CHARS)
        .collect()
}

/// RFC 9110, section 10.2.3: seconds, or a date.
fn retry_after(headers: &HeaderMap, now: Time) -> Option<TimeDelta> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(TimeDelta::seconds(seconds.into()));
    }
    let date = DateTime::parse_from_rfc2822(text).ok()?;
    Some(date.to_utc() - now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::at;

    #[test]
    fn signatures_are_those_of_the_specifications_vector() {
        // Standard Webhooks' libraries test theirs with this one; its key is shorter than ours, and HMAC pads both.
        let key = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let mut padded = [0; 32];
        padded[..key.len()].copy_from_slice(&key);
        let body = r#"{"test": 2432232314}"#;
        let signature = sign(&Secret::new(padded), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let headers = |text: &str| HeaderMap::from_iter([(header::RETRY_AFTER, text.parse().unwrap())]);
        let now = at(784_111_777 - 60);
        for (text, seconds) in
            [("120", Some(120)), ("Sun, 06 Nov 1994 08:49:37 GMT", Some(60)), ("soon", None)]
        {
            assert_eq!(retry_after(&headers(text), now), seconds.map(TimeDelta::seconds), "{text}");
        }
    }

    #[test]
    fn what_a_receiver_says_is_cut_and_cleaned() {
        let answer = format!("a\r\n\u{1b}[31m{}", "ä".repeat(1000));
        assert_eq!(excerpt(answer.as_bytes()), format!("a[31m{}", "ä".repeat(EXCERPT_CHARS - 5)));
    }
}
