//! Public keys of issuers: key sets (RFC 7517) from a file, from a URL, or from where OpenID Connect Discovery says.
//!
//! A set is read again now and then, and when a token names a key that it lacks, at most once a minute. What cannot be
//! read changes nothing. A key's algorithm follows from the key, never from a token.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use chrono::TimeDelta;
use futures_util::future::join_all;
use http::Uri;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, TokenData, Validation};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::time::{Clock, Time};

const FILE_INTERVAL: TimeDelta = TimeDelta::minutes(1);
const URL_INTERVAL: TimeDelta = TimeDelta::minutes(5);
/// For a key that the set lacks: nobody makes us read it for every bad token.
const UNKNOWN_INTERVAL: TimeDelta = TimeDelta::minutes(1);
/// While no set was read yet.
const RETRY_INTERVAL: TimeDelta = TimeDelta::seconds(10);
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// For all that one reading fetches.
const FETCH_LIMIT: Duration = Duration::from_secs(5);
const BODY_MAX_BYTES: usize = 256 * 1024;
/// Shorter ones are no longer safe (RFC 7518, section 3.3).
const RSA_MIN_BITS: usize = 2048;
const DISCOVERY_PATH: &str = "/.well-known/openid-configuration";

/// The configuration of a key set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Which of them?
    #[error("jwks_file and jwks_url are both given")]
    Both,
    /// Anybody on the way could change the keys.
    #[error("{0:?} is no https URL; plain http is for loopback addresses only")]
    Url(String),
    /// The file.
    #[error("cannot read {0}: {1}")]
    Read(PathBuf, std::io::Error),
    /// Its content.
    #[error("{0}: {1}")]
    Json(PathBuf, serde_json::Error),
}

/// Why a set could not be read just now; for the log.
type Cause = Box<dyn Error + Send + Sync>;

#[derive(Debug)]
enum Source {
    File(PathBuf),
    Url(Uri),
    Discovery(Uri),
}

/// A key and the one algorithm that it is for.
pub struct PublicKey {
    algorithm: Algorithm,
    key: DecodingKey,
}

/// One reading of a key set.
#[derive(Default)]
pub struct PublicKeys {
    by_kid: BTreeMap<String, PublicKey>,
    /// What they were read from; none until something was.
    text: Option<Vec<u8>>,
}

/// An issuer's keys, kept up to date.
pub struct KeySet {
    issuer: String,
    source: Source,
    http: Http,
    keys: ArcSwap<PublicKeys>,
    /// When the source was last read; held while it is.
    read_at: Mutex<Option<Time>>,
    tasks: TaskTracker,
}

/// Fetches small documents. Follows no redirect; checks certificates against Mozilla's roots.
#[derive(Clone)]
pub struct Http(Client<HttpsConnector<HttpConnector>, Empty<Bytes>>);

#[derive(Deserialize)]
struct SetForm {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Discovered {
    issuer: String,
    jwks_uri: String,
}

impl PublicKey {
    /// The token's content, if this key signed it. Nothing but the signature is checked.
    pub fn decode<T: DeserializeOwned>(&self, token: &str) -> jsonwebtoken::errors::Result<TokenData<T>> {
        let mut validation = Validation::new(self.algorithm);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        jsonwebtoken::decode(token, &self.key, &validation)
    }
}

impl PublicKeys {
    /// Reads the JSON form. Keys that are for other purposes or algorithms, or unsafe, are left out.
    fn parse(text: Vec<u8>) -> Result<Self, serde_json::Error> {
        let set: SetForm = serde_json::from_slice(&text)?;
        let jwks = set.keys.into_iter().filter_map(|jwk| serde_json::from_value::<Jwk>(jwk).ok());
        let by_kid = jwks.filter_map(|jwk| Some((jwk.common.key_id.clone()?, usable(&jwk)?)));
        Ok(Self { by_kid: by_kid.collect(), text: Some(text) })
    }

    /// The key of that name.
    pub fn get(&self, kid: &str) -> Option<&PublicKey> {
        self.by_kid.get(kid)
    }

    /// Whether no set could be read yet, so that an unknown key says nothing about a token.
    pub fn are_missing(&self) -> bool {
        self.text.is_none()
    }
}

/// A key that checks signatures by an algorithm that we take.
fn usable(jwk: &Jwk) -> Option<PublicKey> {
    let algorithm = if let AlgorithmParameters::RSA(rsa) = &jwk.algorithm {
        (bits(&rsa.n)? >= RSA_MIN_BITS).then_some(Algorithm::RS256)
    } else if let AlgorithmParameters::EllipticCurve(ec) = &jwk.algorithm {
        (ec.curve == EllipticCurve::P256).then_some(Algorithm::ES256)
    } else if let AlgorithmParameters::OctetKeyPair(okp) = &jwk.algorithm {
        (okp.curve == EllipticCurve::Ed25519).then_some(Algorithm::EdDSA)
    } else {
        None
    }?;
    let common = &jwk.common;
    let is_for_us = common
        .public_key_use
        .as_ref()
        .is_none_or(|usage| *usage == PublicKeyUse::Signature)
        && common
            .key_operations
            .as_ref()
            .is_none_or(|all| all.contains(&KeyOperations::Verify))
        && common.key_algorithm.is_none_or(|named| named == KeyAlgorithm::from(algorithm));
    let key = DecodingKey::from_jwk(jwk).ok().filter(|_| is_for_us)?;
    Some(PublicKey { algorithm, key })
}

/// Of a number in base64url.
fn bits(number: &str) -> Option<usize> {
    let bytes = URL_SAFE_NO_PAD.decode(number).ok()?;
    let first = bytes.iter().position(|byte| *byte != 0)?;
    Some((bytes.len() - first) * 8 - bytes[first].leading_zeros() as usize)
}

impl KeySet {
    /// The keys of an issuer. A file is read now and must be usable; a URL may be out of reach, and is fetched when it
    /// can be. Where neither is given, the issuer's name says where to discover the URL.
    pub fn open(
        issuer: &str,
        file: Option<&Path>,
        url: Option<&str>,
        http: &Http,
    ) -> Result<Arc<Self>, SourceError> {
        let mut keys = PublicKeys::default();
        let source = match (file, url) {
            (Some(_), Some(_)) => return Err(SourceError::Both),
            (Some(path), None) => {
                let text = std::fs::read(path).map_err(|error| SourceError::Read(path.to_owned(), error))?;
                keys = PublicKeys::parse(text).map_err(|error| SourceError::Json(path.to_owned(), error))?;
                warn_if_empty(issuer, &keys);
                Source::File(path.to_owned())
            }
            (None, Some(url)) => Source::Url(safe(url)?),
            (None, None) => {
                let url = format!("{}{DISCOVERY_PATH}", issuer.trim_end_matches('/'));
                Source::Discovery(safe(&url)?)
            }
        };
        Ok(Arc::new(Self {
            issuer: issuer.to_owned(),
            source,
            http: http.clone(),
            keys: ArcSwap::from_pointee(keys),
            read_at: Mutex::new(None),
            tasks: TaskTracker::new(),
        }))
    }

    /// Whether these keys are the ones in use.
    pub fn is_current(&self, keys: &Arc<PublicKeys>) -> bool {
        Arc::ptr_eq(&self.keys.load(), keys)
    }

    /// The keys in use, read again if they lack this one and were not a moment ago.
    pub async fn having(self: &Arc<Self>, kid: &str, now: Time) -> Arc<PublicKeys> {
        let keys = self.keys.load_full();
        if keys.get(kid).is_some() {
            return keys;
        }
        let wait = if keys.are_missing() { RETRY_INTERVAL } else { UNKNOWN_INTERVAL };
        if self.read_at.try_lock().is_ok_and(|at| is_within(*at, now, wait)) {
            return keys;
        }
        // In a task of its own, so that a caller who gives up does not stop others from getting the keys.
        let set = Arc::clone(self);
        let _ = self.tasks.spawn(async move { set.read_unless_within(wait, now).await }).await;
        self.keys.load_full()
    }

    async fn read_unless_within(&self, wait: TimeDelta, now: Time) {
        let mut read_at = self.read_at.lock().await;
        if is_within(*read_at, now, wait) {
            return;
        }
        *read_at = Some(now);
        let known = self.keys.load_full();
        let read = tokio::time::timeout(FETCH_LIMIT, self.read());
        let keys = match read.await.unwrap_or_else(|_| Err("took too long".into())) {
            Ok(text) if known.text.as_ref() == Some(&text) => return,
            Ok(text) => PublicKeys::parse(text).map_err(Cause::from),
            Err(cause) => Err(cause),
        };
        match keys {
            Ok(keys) => {
                warn_if_empty(&self.issuer, &keys);
                self.keys.store(Arc::new(keys));
                tracing::info!(issuer = self.issuer, "key set changed");
            }
            Err(cause) => {
                let cause = chain(&*cause);
                tracing::warn!(issuer = self.issuer, cause, "key set unusable; the keys known go on working");
            }
        }
    }

    async fn read(&self) -> Result<Vec<u8>, Cause> {
        match &self.source {
            Source::File(path) => Ok(tokio::fs::read(path).await?),
            Source::Url(url) => self.http.get(url).await,
            Source::Discovery(url) => {
                let Discovered { issuer, jwks_uri } = serde_json::from_slice(&self.http.get(url).await?)?;
                // To the byte, or one issuer could hand out another's keys.
                if issuer != self.issuer {
                    return Err(format!("{url} is of another issuer, {issuer:?}").into());
                }
                self.http.get(&safe(&jwks_uri)?).await
            }
        }
    }

    fn interval(&self) -> TimeDelta {
        match self.source {
            _ if self.keys.load().are_missing() => RETRY_INTERVAL,
            Source::File(_) => FILE_INTERVAL,
            Source::Url(_) | Source::Discovery(_) => URL_INTERVAL,
        }
    }
}

/// Reads each of the sets again when it is time, until told to stop.
pub async fn follow(sets: Vec<Arc<KeySet>>, clock: Clock, stop: CancellationToken) {
    let passes = async {
        loop {
            let now = clock.now();
            join_all(sets.iter().map(|set| set.read_unless_within(set.interval(), now))).await;
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = passes => {}
    }
}

impl Default for Http {
    fn default() -> Self {
        let connector = HttpsConnectorBuilder::new()
            .with_webpki_roots()
            .https_or_http() // which of them is decided by `safe`
            .enable_http1()
            .build();
        // The next request is minutes away.
        Self(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector))
    }
}

impl Http {
    async fn get(&self, url: &Uri) -> Result<Vec<u8>, Cause> {
        let response = self.0.get(url.clone()).await?;
        if response.status() != http::StatusCode::OK {
            return Err(format!("{url} answered {}; redirects are not followed", response.status()).into());
        }
        let body = Limited::new(response.into_body(), BODY_MAX_BYTES).collect().await?;
        Ok(body.to_bytes().into())
    }
}

/// A URL whose answer nobody on the way can change.
fn safe(url: &str) -> Result<Uri, SourceError> {
    let is_safe = |uri: &Uri| {
        let host = uri.host()?;
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let is_local = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
        Some(uri.scheme_str()? == "https" || (uri.scheme_str()? == "http" && is_local))
    };
    let uri = url.parse().ok().filter(|uri| is_safe(uri) == Some(true));
    uri.ok_or_else(|| SourceError::Url(url.to_owned()))
}

fn is_within(at: Option<Time>, now: Time, wait: TimeDelta) -> bool {
    at.is_some_and(|at| now - at < wait)
}

fn warn_if_empty(issuer: &str, keys: &PublicKeys) {
    if keys.by_kid.is_empty() {
        tracing::warn!(issuer, "the key set has no key that can be used; no token of the issuer is good");
    }
}

/// An error with all its sources, as libraries leave them out of the text.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let cause = error.source().map(|source| format!(": {}", chain(source)));
    format!("{error}{}", cause.unwrap_or_default())
}

#[cfg(test)]
mod tests;
