//! The local token issuer: one Ed25519 key in a folder, and access tokens signed with it. For the local stack and the
//! tests; in production an identity provider does this.

use std::io::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

use crate::jws::pkcs8;
use crate::secret::{Entropy, Secret};
use crate::time::Time;

/// `iss` of its tokens.
pub const ISSUER: &str = "tandem-local";
/// `aud` of its tokens.
pub const AUDIENCE: &str = "tandem";
const KEY_FILE: &str = "issuer-key.pem";
const JWKS_FILE: &str = "jwks.json";
/// The configuration that services read; see `TANDEM_ISSUERS`.
pub const ISSUERS_FILE: &str = "issuers.json";

/// The issuer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// Its folder.
    #[error("cannot use the issuer's key in {0}: {1}")]
    File(std::path::PathBuf, std::io::Error),
    /// Its key.
    #[error("the issuer's key cannot be used: {0}")]
    Key(#[from] jsonwebtoken::errors::Error),
    /// Its configuration.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// Who a token is for and what it allows.
#[derive(Debug, Clone, Serialize)]
pub struct Grant {
    /// Who.
    pub sub: String,
    /// For which tenant.
    pub tenant: String,
    /// Scopes, separated by spaces.
    pub scope: String,
    /// Groups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Touchpoints it is limited to; all where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub touchpoints: Option<Vec<String>>,
    /// `person`, or anything else for a workload.
    pub kind: String,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    iat: i64,
    exp: i64,
    jti: String,
    #[serde(flatten)]
    grant: &'a Grant,
}

/// Signs tokens.
pub struct LocalIssuer {
    key: EncodingKey,
}

impl LocalIssuer {
    /// The issuer of a folder; its key and the services' `issuers.json` are made where they are missing.
    pub fn open(folder: &Path, entropy: &Entropy) -> Result<Self, IssuerError> {
        let failed = |error| IssuerError::File(folder.to_owned(), error);
        let key_file = folder.join(KEY_FILE);
        if !key_file.try_exists().map_err(failed)? {
            let der = pkcs8(&entropy.bytes());
            let pem = format!(
                "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
                STANDARD.encode(der.expose())
            );
            write_private(&key_file, pem.as_bytes()).map_err(failed)?;
        }
        let key = EncodingKey::from_ed_pem(&std::fs::read(&key_file).map_err(failed)?)?;
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::EdDSA)?;
        jwk.common.key_id = Some("local".to_owned());
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        let jwks = serde_json::to_vec_pretty(&JwkSet { keys: vec![jwk] })?;
        let issuers = serde_json::json!([{
            "issuer": ISSUER, "audience": AUDIENCE, "jwks_file": JWKS_FILE, "tenants": ["*"]
        }]);
        for (name, content) in [(JWKS_FILE, jwks), (ISSUERS_FILE, serde_json::to_vec_pretty(&issuers)?)] {
            let path = folder.join(name);
            if !path.try_exists().map_err(failed)? {
                write_private(&path, &content).map_err(failed)?;
            }
        }
        Ok(Self { key })
    }

    /// An access token (RFC 9068) that is good for `lifetime` from `now` on.
    pub fn sign(
        &self,
        grant: &Grant,
        now: Time,
        lifetime: chrono::TimeDelta,
        entropy: &Entropy,
    ) -> Result<Secret<String>, IssuerError> {
        let jti = URL_SAFE_NO_PAD.encode(entropy.bytes::<12>());
        let (iat, exp) = (now.timestamp(), (now + lifetime).timestamp());
        let claims = Claims { iss: ISSUER, aud: AUDIENCE, iat, exp, jti, grant };
        let header = Header {
            typ: Some("at+jwt".to_owned()),
            kid: Some("local".to_owned()),
            ..Header::new(Algorithm::EdDSA)
        };
        Ok(Secret::new(jsonwebtoken::encode(&header, &claims, &self.key)?))
    }
}

/// Writes a file that only its owner can read, all of it or nothing.
pub fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let partial = path.with_extension("partial");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&partial)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(partial, path)
}
