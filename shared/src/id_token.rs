//! ID tokens of identity providers (OpenID Connect Core 1.0): who somebody is, and how sure the provider is of it.
//!
//! Checked as section 3.1.3.7 says, and stricter where that leaves a choice. Keys come from the configuration only, a
//! key's algorithm from the key; before the signature is checked, nothing is used but the names of issuer and key.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta};
use jsonwebtoken::errors::ErrorKind;
use serde::Deserialize;
use subtle::ConstantTimeEq as _;
use tokio_util::sync::CancellationToken;

use crate::auth::{Audience, IssuersError, read_list, speaks_for};
use crate::id::TenantId;
use crate::jwks::{self, Http, KeySet};
use crate::secret::sha256;
use crate::time::{Clock, Time};

/// How far apart the provider's clock and ours may be.
const LEEWAY: TimeDelta = TimeDelta::seconds(5);
/// Longest token that is looked at.
const TOKEN_MAX_BYTES: usize = 16 * 1024;
/// Longest name in a token (OpenID Connect Core 1.0, section 2, of `sub`).
const NAME_MAX_BYTES: usize = 255;
/// The year 10000, which the wire has no more.
const TIME_END: i64 = 253_402_300_800;
const MAX_AGE_SECS: u32 = 300;
/// More than one factor took part (RFC 8176).
const MFA: &str = "mfa";

/// What the configuration says of one provider, for some tenants.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderConfig {
    /// `iss` of its tokens.
    issuer: String,
    /// Client ids of the tenants' applications.
    audiences: Vec<String>,
    jwks_file: Option<PathBuf>,
    jwks_url: Option<String>,
    /// Tenants whose people it may name; `*` for all.
    tenants: Vec<String>,
    /// How levels of assurance follow from a token.
    #[serde(default = "default_assurance")]
    assurance: Vec<Assurance>,
    /// Age of the oldest token that is taken.
    #[serde(default = "default_max_age")]
    max_age_secs: u32,
}

/// A level, and what each by itself earns it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Assurance {
    level: u8,
    #[serde(default)]
    acr: Vec<String>,
    #[serde(default)]
    amr: Vec<String>,
}

fn default_assurance() -> Vec<Assurance> {
    vec![Assurance { level: 2, acr: Vec::new(), amr: vec![MFA.to_owned()] }]
}

fn default_max_age() -> u32 {
    MAX_AGE_SECS
}

/// What a good token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdToken {
    /// `iss`.
    pub issuer: String,
    /// Who, in the issuer's words.
    pub sub: String,
    /// When the person proved it; where the token does not say, when it was issued.
    pub auth_time: Time,
    /// 1 to 3; the highest level that the configuration finds in the token, and else 1.
    pub assurance_level: u8,
    /// Authentication context class, as the provider names it.
    pub acr: Option<String>,
    /// Authentication methods (RFC 8176).
    pub amr: Vec<String>,
    /// The session at the provider (`sid`), which a logout there names.
    pub upstream_session: Option<String>,
    /// When the session at the provider ends (`session_expiry` of OpenID Connect Enterprise Extensions).
    pub session_expiry: Option<Time>,
    /// When the token is good no more.
    pub expires_at: Time,
    /// SHA-256 of what was signed, so that a token that was used can be known again. The signature is not part of it:
    /// anybody can turn one of ES256 into another that verifies as well.
    pub digest: [u8; 32],
}

/// A token is not taken, or, in the last case, cannot be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(clippy::enum_variant_names, reason = "named as the reasons on the wire")]
pub enum Refused {
    /// Not an ID token, or one that asks for what is not known.
    #[error("the ID token is malformed, or another kind of token")]
    Malformed,
    /// Not in the configuration.
    #[error("the ID token's issuer is not configured")]
    IssuerUnknown,
    /// In the configuration, but for others.
    #[error("the ID token's issuer may not name people of this tenant")]
    TenantRefused,
    /// No such key.
    #[error("the issuer has no key with the ID token's `kid`")]
    KeyUnknown,
    /// No algorithm, or not the key's.
    #[error("the ID token is not signed with the key's own algorithm")]
    AlgorithmRefused,
    /// Somebody else's, or changed.
    #[error("the ID token's signature does not verify")]
    SignatureInvalid,
    /// For other applications, or for others, too.
    #[error("the ID token is not for the applications that are configured, and for them alone")]
    AudienceWrong,
    /// `exp` or the session's end has passed.
    #[error("the ID token, or the session that it speaks of, has expired")]
    Expired,
    /// From the future.
    #[error("the ID token is of a time that has not come")]
    NotYetValid,
    /// It was issued too long ago.
    #[error("the ID token was issued too long ago; authenticate again")]
    TooOld,
    /// Of another authentication.
    #[error("the ID token's nonce is not that of this authentication")]
    NonceWrong,
    /// Our failure, and no fault of the token: the issuer's keys could not be fetched yet.
    #[error("the keys of the ID token's issuer cannot be fetched")]
    KeysUnavailable,
}

#[derive(Deserialize)]
struct IssuerClaim {
    iss: String,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    aud: Audience,
    azp: Option<String>,
    exp: i64,
    iat: i64,
    nbf: Option<i64>,
    auth_time: Option<i64>,
    nonce: Option<String>,
    acr: Option<String>,
    amr: Option<Vec<String>>,
    sid: Option<String>,
    session_expiry: Option<i64>,
}

struct Provider {
    config: ProviderConfig,
    keys: Arc<KeySet>,
}

/// Verifies ID tokens.
pub struct IdentityProviders(Vec<Provider>);

impl IdentityProviders {
    /// Reads the providers, and those keys that are in files.
    pub fn open(path: &Path) -> Result<Self, IssuersError> {
        let (folder, http) = (path.parent().unwrap_or_else(|| Path::new(".")), Http::default());
        let mut providers: Vec<Provider> = Vec::new();
        for config in read_list::<ProviderConfig>(path)? {
            let name = || (path.to_owned(), config.issuer.clone());
            let unusable = |problem| IssuersError::Provider(name().0, name().1, problem);
            config.check().map_err(unusable)?;
            let competes = |other: &Provider| {
                other.config.issuer == config.issuer
                    && other.config.tenants.iter().any(|tenant| config.tenants.contains(tenant))
            };
            if providers.iter().any(competes) {
                return Err(unusable("is named twice for one tenant"));
            }
            let file = config.jwks_file.as_ref().map(|file| folder.join(file));
            let keys = KeySet::open(&config.issuer, file.as_deref(), config.jwks_url.as_deref(), &http)
                .map_err(|error| IssuersError::Keys(name().0, name().1, error))?;
            providers.push(Provider { config, keys });
        }
        Ok(Self(providers))
    }

    /// Keeps every provider's keys up to date until told to stop.
    pub async fn follow(self: Arc<Self>, clock: Clock, stop: CancellationToken) {
        let sets = self.0.iter().map(|provider| Arc::clone(&provider.keys)).collect();
        jwks::follow(sets, clock, stop).await;
    }

    /// What the token says, if it is good for this tenant and the authentication with this nonce. Waits only where it
    /// names a key that is not known.
    pub async fn verify(
        &self,
        tenant: &TenantId,
        token: &str,
        nonce: Option<&str>,
        now: Time,
    ) -> Result<IdToken, Refused> {
        if token.len() > TOKEN_MAX_BYTES {
            return Err(Refused::Malformed);
        }
        let IssuerClaim { iss } =
            jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(|_| Refused::Malformed)?;
        let header = jsonwebtoken::decode_header(token).map_err(|error| {
            // `none` and algorithms that nobody knows fail here.
            let names_no_algorithm = matches!(error.kind(), ErrorKind::Json(_));
            if names_no_algorithm { Refused::AlgorithmRefused } else { Refused::Malformed }
        })?;
        // Access tokens and assertions are signed by the same keys, and say what they are.
        let is_id_token = header.typ.is_none_or(|typ| typ.eq_ignore_ascii_case("JWT"));
        if !is_id_token || header.crit.is_some() {
            return Err(Refused::Malformed);
        }
        let provider = self.provider(&iss, tenant)?;
        let kid = header.kid.unwrap_or_default();
        let keys = provider.keys.having(&kid, now).await;
        let key = keys
            .get(&kid)
            .ok_or_else(|| if keys.are_missing() { Refused::KeysUnavailable } else { Refused::KeyUnknown })?;
        let data = key.decode::<Claims>(token).map_err(|error| {
            if matches!(error.kind(), ErrorKind::InvalidAlgorithm) {
                Refused::AlgorithmRefused
            } else if matches!(error.kind(), ErrorKind::Json(_)) {
                Refused::Malformed
            } else {
                Refused::SignatureInvalid
            }
        })?;
        let signed = token.rsplit_once('.').map_or(token, |(signed, _)| signed);
        provider.config.judge(data.claims, sha256(&[signed.as_bytes()]), nonce, now)
    }

    /// The provider that speaks for the tenant; one that names it goes before one for all.
    fn provider(&self, issuer: &str, tenant: &TenantId) -> Result<&Provider, Refused> {
        let of_issuer = || self.0.iter().filter(|provider| provider.config.issuer == issuer);
        if of_issuer().next().is_none() {
            return Err(Refused::IssuerUnknown);
        }
        let names = |provider: &&Provider| provider.config.tenants.iter().any(|name| name == tenant.as_str());
        of_issuer()
            .find(names)
            .or_else(|| of_issuer().find(|provider| speaks_for(&provider.config.tenants, tenant)))
            .ok_or(Refused::TenantRefused)
    }
}

impl ProviderConfig {
    fn check(&self) -> Result<(), &'static str> {
        if self.audiences.is_empty() {
            return Err("has no audience: name the client ids that its tokens are for");
        }
        if self.assurance.iter().any(|rule| !(1..=3).contains(&rule.level)) {
            return Err("has a level of assurance that is not 1, 2 or 3");
        }
        Ok(())
    }

    /// Of a token whose signature verified.
    fn judge(
        &self,
        claims: Claims,
        digest: [u8; 32],
        nonce: Option<&str>,
        now: Time,
    ) -> Result<IdToken, Refused> {
        self.check_audience(claims.aud.list(), claims.azp.as_ref())?;
        let (expires_at, issued_at) = (time(claims.exp)?, time(claims.iat)?);
        let not_before = claims.nbf.map(time).transpose()?;
        let auth_time = claims.auth_time.map(time).transpose()?;
        let session_expiry = claims.session_expiry.map(time).transpose()?;
        if [Some(expires_at), session_expiry]
            .into_iter()
            .flatten()
            .any(|end| now - LEEWAY >= end)
        {
            return Err(Refused::Expired);
        }
        if [Some(issued_at), not_before, auth_time]
            .into_iter()
            .flatten()
            .any(|from| from > now + LEEWAY)
        {
            return Err(Refused::NotYetValid);
        }
        if now - issued_at > TimeDelta::seconds(self.max_age_secs.into()) {
            return Err(Refused::TooOld);
        }
        let nonce_fits = match (nonce, &claims.nonce) {
            (None, None) => true,
            (Some(expected), Some(found)) => expected.as_bytes().ct_eq(found.as_bytes()).into(),
            (None, Some(_)) | (Some(_), None) => false,
        };
        if !nonce_fits {
            return Err(Refused::NonceWrong);
        }
        let amr = claims.amr.unwrap_or_default();
        let names = [Some(&claims.sub), claims.acr.as_ref(), claims.sid.as_ref()];
        if !names.into_iter().flatten().chain(&amr).all(|name| is_name(name)) {
            return Err(Refused::Malformed);
        }
        Ok(IdToken {
            issuer: self.issuer.clone(),
            sub: claims.sub,
            auth_time: auth_time.unwrap_or(issued_at),
            assurance_level: self.level(claims.acr.as_ref(), &amr),
            acr: claims.acr,
            amr,
            upstream_session: claims.sid,
            session_expiry,
            expires_at,
            digest,
        })
    }

    /// Only for ours; and if for several, or asked for by somebody who says so, asked for by one of ours.
    fn check_audience(&self, audiences: &[String], asked_by: Option<&String>) -> Result<(), Refused> {
        let is_ours = |client: &String| self.audiences.contains(client);
        let asked_by_ours = asked_by.map_or(audiences.len() == 1, is_ours);
        if audiences.is_empty() || !audiences.iter().all(is_ours) || !asked_by_ours {
            return Err(Refused::AudienceWrong);
        }
        Ok(())
    }

    fn level(&self, acr: Option<&String>, amr: &[String]) -> u8 {
        let earned = |rule: &&Assurance| {
            acr.is_some_and(|acr| rule.acr.contains(acr))
                || amr.iter().any(|method| rule.amr.contains(method))
        };
        self.assurance.iter().filter(earned).map(|rule| rule.level).max().unwrap_or(1)
    }
}

fn time(seconds: i64) -> Result<Time, Refused> {
    let in_range = (0..TIME_END).contains(&seconds);
    in_range
        .then(|| DateTime::from_timestamp(seconds, 0))
        .flatten()
        .ok_or(Refused::Malformed)
}

/// What may be stored and shown.
fn is_name(text: &str) -> bool {
    (1..=NAME_MAX_BYTES).contains(&text.len()) && !text.contains(char::is_control)
}

#[cfg(test)]
mod tests;
