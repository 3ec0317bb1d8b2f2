//! The identity providers of a test: their keys, and the ID tokens that they sign.

use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use shared::issuer::LocalIssuer;
use shared::pb::session as pb;
use shared::pb::session::authenticate_session_request::Proof;

use super::{Options, Stack};

/// Names people of tenant `shop`, as the subjects of `trust::subject`.
pub(crate) const PROVIDER: &str = "https://id.example";
/// Does so, too.
pub(crate) const OTHER_PROVIDER: &str = "https://staff.example";
/// Names people of another tenant only.
pub(crate) const FOREIGN_PROVIDER: &str = "https://elsewhere.example";
/// The key that signs unless a test says otherwise.
pub(crate) const KEY: &str = "first";
/// What every ID token of a test is for.
pub(crate) const NONCE: &str = "n-0S6_WzA2Mj";
const CLIENT: &str = "web-client";
const KEY_SET_FILE: &str = "id-keys.json";

impl Stack {
    /// session-svc by itself, with all three providers, which share one set of keys.
    pub(crate) fn with_providers() -> Self {
        let mut stack = Self::prepare();
        stack.publish_id_keys(&[KEY]);
        let provider = |issuer: &str, tenant: &str| json!({"issuer": issuer, "audiences": [CLIENT], "jwks_file": KEY_SET_FILE, "tenants": [tenant]});
        let providers = json!([
            provider(PROVIDER, "shop"),
            provider(OTHER_PROVIDER, "shop"),
            provider(FOREIGN_PROVIDER, "acme")
        ]);
        let file = stack.folder().join("providers.json");
        std::fs::write(&file, providers.to_string()).unwrap();
        let options = Options { identity_providers: Some(file), ..Options::default() };
        stack.session = Some(stack.session_svc(&options));
        stack
    }

    /// Makes these the providers' keys.
    pub(crate) fn publish_id_keys(&self, kids: &[&str]) {
        let jwk = |kid: &&str| {
            let mut jwk = Jwk::from_encoding_key(&self.id_key(kid), Algorithm::EdDSA).unwrap();
            jwk.common.key_id = Some((*kid).to_owned());
            jwk
        };
        let keys = JwkSet { keys: kids.iter().map(jwk).collect() };
        std::fs::write(self.folder().join(KEY_SET_FILE), serde_json::to_vec(&keys).unwrap()).unwrap();
    }

    /// The providers' key of this name, made with its first use.
    pub(crate) fn id_key(&self, kid: &str) -> EncodingKey {
        let folder = self.folder().join("id-keys").join(kid);
        std::fs::create_dir_all(&folder).unwrap();
        LocalIssuer::open(&folder, &self.entropy).unwrap();
        EncodingKey::from_ed_pem(&std::fs::read(folder.join("issuer-key.pem")).unwrap()).unwrap()
    }

    /// What a good ID token of `lena` says now, but for these members; null takes one away.
    pub(crate) fn id_claims(&self, changed: &Value) -> Value {
        let now = self.now().timestamp();
        let mut claims = json!({
            "iss": PROVIDER, "sub": "lena", "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": NONCE,
            "jti": format!("{:x?}", self.entropy.bytes::<8>()),
        });
        for (name, value) in changed.as_object().unwrap() {
            claims[name] = value.clone();
        }
        claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        claims
    }

    /// An ID token that says so.
    pub(crate) fn id_token(&self, changed: &Value) -> String {
        self.id_token_of(KEY, changed)
    }

    /// The same, signed with another key of the providers'.
    pub(crate) fn id_token_of(&self, kid: &str, changed: &Value) -> String {
        encode(&id_header(kid, Algorithm::EdDSA), &self.id_claims(changed), &self.id_key(kid)).unwrap()
    }
}

/// The header of an ID token.
pub(crate) fn id_header(kid: &str, algorithm: Algorithm) -> Header {
    Header { kid: Some(kid.to_owned()), ..Header::new(algorithm) }
}

/// Logs a session in by an ID token of this nonce.
pub(crate) fn login(token: &str, id_token: &str, nonce: &str) -> pb::AuthenticateSessionRequest {
    let proof = pb::IdTokenProof { id_token: id_token.to_owned(), nonce: nonce.to_owned() };
    pb::AuthenticateSessionRequest {
        session_token: token.to_owned(),
        proof: Some(Proof::IdToken(proof)),
        ..Default::default()
    }
}
