//! Who is calling: OAuth 2.0 bearer JWTs (RFC 9068) of configured issuers, verified and turned into a [`Caller`].
//!
//! A key's algorithm is its own, never the token's choice; keys come from the issuer's key set only. Verified tokens are
//! remembered by digest for at most five minutes, and only as long as the keys that verified them are in use.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chrono::TimeDelta;
use jsonwebtoken::errors::ErrorKind;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::allowance::Allowance;
use crate::id::{TenantId, TouchpointId};
use crate::jwks::{self, Http, KeySet, PublicKey, PublicKeys, SourceError};
use crate::secret::sha256;
use crate::status::{Reason, Refusal};
use crate::time::{Clock, Time};

/// How far apart the issuer's clock and ours may be.
const LEEWAY: TimeDelta = TimeDelta::seconds(5);
/// Longest bearer that is looked at.
const TOKEN_MAX_BYTES: usize = 8 * 1024;
const ALL_TENANTS: &str = "*";
/// Reaches every tenant, so only issuers that may speak for all of them can give it.
const SYSTEM_SCOPE: &str = "tandem.system";
const CACHE_TTL: Duration = Duration::from_mins(5);
/// How long to wait for keys that could not be fetched yet.
const KEYS_RETRY: Duration = Duration::from_secs(10);

/// A verified caller.
#[derive(Debug)]
pub struct Caller {
    /// The tenant all its requests are about.
    pub tenant: TenantId,
    /// `issuer|sub`, or `mtls|name` of a client certificate.
    pub principal: String,
    /// Whether a human being is at the other end; only people vote.
    pub is_person: bool,
    scopes: BTreeSet<String>,
    groups: BTreeSet<String>,
    touchpoints: Option<BTreeSet<String>>,
    not_after: Time,
    /// Its principal's, from its first call on.
    pub(crate) allowance: OnceLock<Arc<Allowance>>,
}

impl Caller {
    /// A program that a client certificate names.
    pub(crate) fn workload(
        tenant: TenantId,
        principal: String,
        scopes: BTreeSet<String>,
        groups: BTreeSet<String>,
        touchpoints: Option<BTreeSet<String>>,
        not_after: Time,
    ) -> Self {
        let allowance = OnceLock::new();
        Self { tenant, principal, is_person: false, scopes, groups, touchpoints, not_after, allowance }
    }

    /// The caller of a request that passed the edge.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Arc<Self>, Refusal> {
        let missing = || Refusal::new(Reason::CallerCredentialMissing, "no verified caller");
        request.extensions().get::<Arc<Self>>().cloned().ok_or_else(missing)
    }

    /// Whether the token carries the scope.
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes.contains(scope)
    }

    /// Refuses a caller without the scope.
    pub fn require_scope(&self, scope: &str) -> Result<(), Refusal> {
        if self.has_scope(scope) {
            return Ok(());
        }
        Err(Refusal::new(Reason::CallerScopeMissing, format!("the caller's token lacks scope {scope}"))
            .with("scope", scope))
    }

    /// Groups that the token names, in order.
    pub fn groups(&self) -> Vec<String> {
        self.groups.iter().cloned().collect()
    }

    /// Refuses a caller in none of the groups; no groups ask for nothing.
    pub fn require_owner(&self, owner_groups: &[String]) -> Result<(), Refusal> {
        if owner_groups.is_empty() || owner_groups.iter().any(|group| self.groups.contains(group)) {
            return Ok(());
        }
        let groups = owner_groups.join(", ");
        Err(Refusal::new(Reason::CallerNotOwner, format!("only members of {groups} may do this"))
            .with("owner_groups", groups))
    }

    /// Refuses a caller whose token is limited to other touchpoints.
    pub fn require_touchpoint(&self, touchpoint: &TouchpointId) -> Result<(), Refusal> {
        if self
            .touchpoints
            .as_ref()
            .is_none_or(|allowed| allowed.contains(touchpoint.as_str()))
        {
            return Ok(());
        }
        let text = format!("the caller's token is limited to other touchpoints than {touchpoint}");
        Err(Refusal::new(Reason::CallerTouchpointRefused, text).with("touchpoint", touchpoint))
    }

    /// Whether the token is limited to some touchpoints.
    pub fn is_limited(&self) -> bool {
        self.touchpoints.is_some()
    }

    /// Refuses a caller who is limited to touchpoints.
    pub fn require_unlimited(&self) -> Result<(), Refusal> {
        if self.touchpoints.is_none() {
            return Ok(());
        }
        let text = "a caller whose token is limited to touchpoints may not do this";
        Err(Refusal::new(Reason::CallerTouchpointRefused, text))
    }

    /// Refuses a workload.
    pub fn require_person(&self) -> Result<(), Refusal> {
        if self.is_person {
            return Ok(());
        }
        Err(Refusal::new(Reason::CallerNotAPerson, "only a person may do this"))
    }
}

/// What the configuration says of one issuer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// `iss` of its tokens.
    issuer: String,
    /// One of `aud` of its tokens.
    audience: String,
    /// File with its key set (RFC 7517), relative to the configuration's folder.
    jwks_file: Option<PathBuf>,
    /// URL of its key set. Without either, the key set is discovered (OpenID Connect Discovery).
    jwks_url: Option<String>,
    /// Tenants it may speak for; `*` for all.
    tenants: Vec<String>,
    /// Claim that tells people from workloads, and its value for people.
    #[serde(default = "default_person_claim")]
    person_claim: (String, String),
    /// Values of `typ` that access tokens have.
    #[serde(default = "default_token_types")]
    token_types: Vec<String>,
}

fn default_person_claim() -> (String, String) {
    ("kind".to_owned(), "person".to_owned())
}

fn default_token_types() -> Vec<String> {
    vec!["at+jwt".to_owned(), "application/at+jwt".to_owned()]
}

/// The issuers' configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IssuersError {
    /// The file cannot be read.
    #[error("cannot read {0}: {1}")]
    Read(PathBuf, std::io::Error),
    /// The file is not what it should be.
    #[error("{0}: {1}")]
    Json(PathBuf, serde_json::Error),
    /// Two principals could get one name.
    #[error("{0}: the issuer {1:?} must not contain `|`, nor be `mtls`")]
    Ambiguous(PathBuf, String),
    /// Which of them holds?
    #[error("{0} names the issuer {1:?} twice")]
    Twice(PathBuf, String),
    /// Nobody could call.
    #[error("{0} names no issuer")]
    Empty(PathBuf),
    /// One of them.
    #[error("{0}: issuer {1:?} {2}")]
    Provider(PathBuf, String, &'static str),
    /// The keys of one.
    #[error("{0}: keys of issuer {1:?}: {2}")]
    Keys(PathBuf, String, SourceError),
}

struct Issuer {
    config: IssuerConfig,
    keys: Arc<KeySet>,
}

/// A token that was good.
struct Verified {
    caller: Arc<Caller>,
    set: Arc<KeySet>,
    /// What the set was when it verified the token.
    keys: Arc<PublicKeys>,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: i64,
    #[serde(default)]
    nbf: Option<i64>,
    aud: Audience,
    #[serde(default)]
    scope: String,
    tenant: String,
    #[serde(default)]
    groups: BTreeSet<String>,
    #[serde(default)]
    touchpoints: Option<BTreeSet<String>>,
    #[serde(flatten)]
    other: BTreeMap<String, serde_json::Value>,
}

/// `aud` of a token.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    pub(crate) fn list(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

#[derive(Deserialize)]
struct IssuerClaim {
    iss: String,
}

/// Verifies bearers.
pub struct Authenticator {
    issuers: BTreeMap<String, Issuer>,
    verified: moka::sync::Cache<[u8; 32], Arc<Verified>>,
}

impl Authenticator {
    /// Reads the issuers, and those keys that are in files.
    pub fn open(path: &Path) -> Result<Self, IssuersError> {
        let (folder, http) = (path.parent().unwrap_or_else(|| Path::new(".")), Http::default());
        let mut issuers = BTreeMap::new();
        for config in read_list::<IssuerConfig>(path)? {
            // `issuer|sub` must name one principal only, and `mtls|name` is that of a client certificate.
            if config.issuer.contains('|') || config.issuer == "mtls" {
                return Err(IssuersError::Ambiguous(path.to_owned(), config.issuer));
            }
            let file = config.jwks_file.as_ref().map(|file| folder.join(file));
            let keys = KeySet::open(&config.issuer, file.as_deref(), config.jwks_url.as_deref(), &http);
            let name = config.issuer.clone();
            let keys = keys.map_err(|error| IssuersError::Keys(path.to_owned(), name.clone(), error))?;
            if issuers.insert(name.clone(), Issuer { config, keys }).is_some() {
                return Err(IssuersError::Twice(path.to_owned(), name));
            }
        }
        let verified = moka::sync::Cache::builder()
            .max_capacity(100_000)
            .time_to_live(CACHE_TTL)
            .build();
        Ok(Self { issuers, verified })
    }

    /// Whether callers of this tenant may go by this name: it is of an issuer that may speak for the tenant, or of a
    /// client certificate.
    pub fn admits(&self, principal: &str, tenant: &TenantId) -> bool {
        let Some((issuer, _)) = principal.split_once('|') else { return false };
        let known = self.issuers.get(issuer);
        issuer == "mtls" || known.is_some_and(|known| speaks_for(&known.config.tenants, tenant))
    }

    /// The caller whom an `authorization` header names. Waits only where a token names a key that is not known.
    pub async fn authenticate(&self, header: Option<&str>, now: Time) -> Result<Arc<Caller>, Refusal> {
        let token = header
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or_else(|| {
                Refusal::new(Reason::CallerCredentialMissing, "send `authorization: Bearer <access token>`")
            })?;
        if token.len() > TOKEN_MAX_BYTES {
            return Err(malformed(format!("the access token is longer than {TOKEN_MAX_BYTES} bytes")));
        }
        let digest = sha256(&[token.as_bytes()]);
        // The keys are compared at every look-up: a token that was verified while they were being replaced is no exception.
        if let Some(verified) = self.verified.get(&digest)
            && verified.set.is_current(&verified.keys)
        {
            check_expiry(verified.caller.not_after, now)?;
            return Ok(Arc::clone(&verified.caller));
        }
        let verified = self.verify(token, now).await?;
        let caller = Arc::clone(&verified.caller);
        self.verified.insert(digest, Arc::new(verified));
        Ok(caller)
    }

    /// Keeps every issuer's keys up to date until told to stop, so that a key taken out stops working.
    pub async fn follow(self: Arc<Self>, clock: Clock, stop: CancellationToken) {
        let sets = self.issuers.values().map(|issuer| Arc::clone(&issuer.keys)).collect();
        jwks::follow(sets, clock, stop).await;
    }

    async fn verify(&self, token: &str, now: Time) -> Result<Verified, Refusal> {
        let IssuerClaim { iss } = jsonwebtoken::dangerous::insecure_decode_claims(token)
            .map_err(|_| malformed("the bearer is no JWT with `iss`"))?;
        let header = jsonwebtoken::decode_header(token).map_err(|error| {
            // `none` and algorithms that nobody knows fail here, before a key is looked up.
            if matches!(error.kind(), ErrorKind::Json(_)) {
                Refusal::new(
                    Reason::CallerAlgorithmRefused,
                    "the token's header names no algorithm that is taken",
                )
            } else {
                malformed("the bearer is no JWT")
            }
        })?;
        if header.crit.is_some() {
            return Err(malformed("the token asks for extensions (`crit`), and none is known"));
        }
        let issuer = self.issuers.get(&iss).ok_or_else(|| {
            Refusal::new(Reason::CallerIssuerUnknown, "the token's issuer is not configured")
        })?;
        let kid = header.kid.unwrap_or_default();
        let keys = issuer.keys.having(&kid, now).await;
        let key = keys.get(&kid).ok_or_else(|| {
            if keys.are_missing() {
                Refusal::new(Reason::KeysUnavailable, "the keys of the token's issuer cannot be fetched")
                    .retry_after(KEYS_RETRY)
            } else {
                Refusal::new(Reason::CallerKeyUnknown, "the issuer has no key with the token's `kid`")
            }
        })?;
        let caller = Arc::new(issuer.check(token, key, now)?);
        Ok(Verified { caller, set: Arc::clone(&issuer.keys), keys })
    }
}

impl Issuer {
    /// Expiry and audience are checked by the injected clock and with reasons of their own.
    fn check(&self, token: &str, key: &PublicKey, now: Time) -> Result<Caller, Refusal> {
        let data = key.decode::<Claims>(token).map_err(|error| {
            let text =
                "the token lacks one of the claims sub, exp, aud, tenant, or has one of the wrong type";
            if matches!(error.kind(), ErrorKind::InvalidAlgorithm) {
                Refusal::new(
                    Reason::CallerAlgorithmRefused,
                    "the token is not signed with the key's own algorithm",
                )
            } else if matches!(error.kind(), ErrorKind::Json(_) | ErrorKind::MissingRequiredClaim(_)) {
                malformed(text)
            } else {
                Refusal::new(Reason::CallerSignatureInvalid, "the token's signature does not verify")
            }
        })?;
        let typ = data.header.typ.unwrap_or_default();
        if !self.config.token_types.iter().any(|taken| taken.eq_ignore_ascii_case(&typ)) {
            return Err(malformed(format!(
                "the token's `typ` is not one of {}",
                self.config.token_types.join(", ")
            )));
        }
        self.caller(data.claims, now)
    }

    fn speaks_for_all(&self) -> bool {
        self.config.tenants.iter().any(|allowed| allowed == ALL_TENANTS)
    }

    fn caller(&self, claims: Claims, now: Time) -> Result<Caller, Refusal> {
        let audience = &self.config.audience;
        if !claims.aud.list().contains(audience) {
            let text = format!("the token's audience is not {audience}");
            return Err(Refusal::new(Reason::CallerAudienceWrong, text).with("audience", audience));
        }
        let not_after =
            chrono::DateTime::from_timestamp(claims.exp, 0).ok_or_else(|| malformed("`exp` is no time"))?;
        check_expiry(not_after, now)?;
        if claims.nbf.is_some_and(|nbf| nbf > (now + LEEWAY).timestamp()) {
            return Err(Refusal::new(Reason::CallerCredentialNotYetValid, "the token is not valid yet"));
        }
        let tenant: TenantId = claims.tenant.parse().map_err(|error| malformed(format!("tenant {error}")))?;
        if !speaks_for(&self.config.tenants, &tenant) {
            return Err(Refusal::new(
                Reason::CallerTenantRefused,
                "the token's issuer may not speak for its tenant",
            ));
        }
        // Principals are stored; PostgreSQL takes no NUL.
        if !(1..=255).contains(&claims.sub.len()) || claims.sub.contains(char::is_control) {
            return Err(malformed("`sub` must have 1 to 255 bytes, none of them a control character"));
        }
        let scopes = claims.scope.split_ascii_whitespace();
        let (claim, value) = &self.config.person_claim;
        Ok(Caller {
            tenant,
            principal: format!("{}|{}", self.config.issuer, claims.sub),
            is_person: claims.other.get(claim).and_then(|found| found.as_str()) == Some(value),
            scopes: scopes
                .filter(|scope| self.speaks_for_all() || *scope != SYSTEM_SCOPE)
                .map(str::to_owned)
                .collect(),
            groups: claims.groups,
            touchpoints: claims.touchpoints,
            not_after,
            allowance: OnceLock::new(),
        })
    }
}

/// Whether an issuer of these tenants may speak for this one.
pub(crate) fn speaks_for(tenants: &[String], tenant: &TenantId) -> bool {
    tenants
        .iter()
        .any(|allowed| allowed == ALL_TENANTS || allowed == tenant.as_str())
}

fn check_expiry(not_after: Time, now: Time) -> Result<(), Refusal> {
    if now - LEEWAY < not_after {
        return Ok(());
    }
    Err(Refusal::new(Reason::CallerCredentialExpired, "the access token has expired; get a new one"))
}

fn malformed(text: impl Into<String>) -> Refusal {
    Refusal::new(Reason::CallerCredentialMalformed, text)
}

/// The entries of a configuration file; none at all is a mistake.
pub(crate) fn read_list<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, IssuersError> {
    let text = std::fs::read_to_string(path).map_err(|error| IssuersError::Read(path.to_owned(), error))?;
    let list: Vec<T> =
        serde_json::from_str(&text).map_err(|error| IssuersError::Json(path.to_owned(), error))?;
    if list.is_empty() { Err(IssuersError::Empty(path.to_owned())) } else { Ok(list) }
}

#[cfg(test)]
mod tests;
