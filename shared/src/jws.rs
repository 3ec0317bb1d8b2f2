//! Signed statements: compact JWS under the ring's Ed25519 keys, that others check offline against our key sets.
//!
//! Each kind has a purpose of keys and a `typ` of its own, so that nobody takes one for another, or any of them for an
//! access token or an ID token.

use jsonwebtoken::jwk::{Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::keyring::{KeyRing, KeyRingError, Purpose};
use crate::secret::Secret;
use crate::status::Failure;
use crate::time::Time;

/// What is stated.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    purpose: Purpose,
    typ: &'static str,
}

/// Who a session is of.
pub const ASSERTION: Kind = Kind { purpose: Purpose::Assertion, typ: "tandem-assertion+jwt" };
/// How far a tenant's audit trail has come.
pub const AUDIT_HEAD: Kind = Kind { purpose: Purpose::AuditHead, typ: "tandem-audit-head+jwt" };

/// What stands before the 32 bytes of an Ed25519 key in PKCS #8 (RFC 8410).
const PKCS8_HEADER: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

impl Kind {
    /// The claims, signed with the key that makes such statements now.
    pub fn sign(self, keys: &KeyRing, now: Time, claims: &impl Serialize) -> Result<Secret<String>, Failure> {
        let id = keys.current(self.purpose, now)?;
        let (_, seed) = keys
            .seeds(self.purpose)
            .find(|(of, _)| *of == id)
            .ok_or(KeyRingError::Missing(self.purpose))?;
        let header =
            Header { typ: Some(self.typ.to_owned()), kid: Some(kid(id)), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, claims, &encoding_key(seed))
            .map(Secret::new)
            .map_err(bug)
    }

    /// The claims of a statement of this kind that a key of the ring signed, whatever times it names; `None` for
    /// anything else.
    pub fn open<T: DeserializeOwned + Clone>(self, keys: &KeyRing, text: &str) -> Result<Option<T>, Failure> {
        let set = self.jwks(keys)?;
        let header = jsonwebtoken::decode_header(text).ok();
        let header = header.filter(|header| header.typ.as_deref() == Some(self.typ));
        let Some(jwk) = header.and_then(|header| set.find(&header.kid?)) else { return Ok(None) };
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        let key = DecodingKey::from_jwk(jwk).map_err(bug)?;
        Ok(jsonwebtoken::decode(text, &key, &validation).ok().map(|checked| checked.claims))
    }

    /// The public keys (RFC 7517): of those that signed, of the one that does, and of those that will, so that whoever
    /// keeps the set knows a key before its first signature.
    pub fn jwks(self, keys: &KeyRing) -> Result<JwkSet, Failure> {
        let public = |(id, seed): (u32, &Secret<[u8; 32]>)| {
            let mut jwk = Jwk::from_encoding_key(&encoding_key(seed), Algorithm::EdDSA).map_err(bug)?;
            jwk.common.key_id = Some(kid(id));
            jwk.common.public_key_use = Some(PublicKeyUse::Signature);
            jwk.common.key_algorithm = Some(KeyAlgorithm::EdDSA);
            Ok(jwk)
        };
        Ok(JwkSet { keys: keys.seeds(self.purpose).map(public).collect::<Result<_, Failure>>()? })
    }
}

/// An Ed25519 seed in PKCS #8.
pub(crate) fn pkcs8(seed: &[u8; 32]) -> Secret<Vec<u8>> {
    Secret::new([&PKCS8_HEADER[..], seed].concat())
}

fn encoding_key(seed: &Secret<[u8; 32]>) -> EncodingKey {
    EncodingKey::from_ed_der(pkcs8(seed.expose()).expose())
}

fn kid(id: u32) -> String {
    format!("k{id}")
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn bug(error: jsonwebtoken::errors::Error) -> Failure {
    Failure::Bug(format!("signed statements: {error}"))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use jsonwebtoken::jwk::ThumbprintHash;
    use serde_json::{Value, json};

    use super::*;
    use crate::secret::Entropy;
    use crate::time::at;

    /// The key of RFC 8037, appendix A.1, which is that of RFC 8032, section 7.1, test 1.
    const D: &str = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";
    const X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

    fn rfc_8037() -> [u8; 32] {
        URL_SAFE_NO_PAD.decode(D).unwrap().try_into().unwrap()
    }

    fn ring(makes_from: &str) -> KeyRing {
        let secret = |bytes: [u8; 32]| STANDARD.encode(bytes);
        let keys = json!({"keys": [
            {"id": 1, "purpose": "token", "secret": secret([1; 32])},
            {"id": 2, "purpose": "cursor", "secret": secret([2; 32])},
            {"id": 3, "purpose": "subject_digest", "secret": secret([3; 32])},
            {"id": 4, "purpose": "assertion", "secret": secret(rfc_8037())},
            {"id": 5, "purpose": "assertion", "secret": secret([5; 32]), "makes_from": makes_from},
            {"id": 6, "purpose": "webhook", "secret": secret([6; 32])},
            {"id": 7, "purpose": "audit_head", "secret": secret([7; 32])},
        ]});
        KeyRing::parse(&keys.to_string()).unwrap()
    }

    #[test]
    fn the_key_of_rfc_8037_has_the_public_key_and_thumbprint_given_there() {
        let set = ASSERTION.jwks(&ring("2030-01-01T00:00:00Z")).unwrap();
        let jwk = &set.keys[0];
        let json = serde_json::to_value(jwk).unwrap();
        let expected =
            json!({"kty": "OKP", "crv": "Ed25519", "x": X, "kid": "k4", "use": "sig", "alg": "EdDSA"});
        assert_eq!(json, expected);
        let thumbprint = jwk.thumbprint(ThumbprintHash::SHA256).unwrap();
        assert_eq!(thumbprint, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }

    #[test]
    fn the_example_of_rfc_8037_gets_the_signature_given_there() {
        let message = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
        let key = encoding_key(&Secret::new(rfc_8037()));
        let signature = jsonwebtoken::crypto::sign(message, &key, Algorithm::EdDSA).unwrap();
        let given = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
        assert_eq!(signature, given);
    }

    #[test]
    fn an_assertion_verifies_with_the_published_key_that_made_it_and_says_what_it_is() {
        let ring = ring("2030-01-01T00:00:00Z");
        let set = ASSERTION.jwks(&ring).unwrap();
        for (now, kid) in [(at(1_893_455_999), "k4"), (at(1_893_456_000), "k5")] {
            let token = ASSERTION.sign(&ring, now, &json!({"sub": "someone"})).unwrap();
            let header = jsonwebtoken::decode_header(token.expose()).unwrap();
            assert_eq!(header.kid.as_deref(), Some(kid));
            assert_eq!(header.typ.as_deref(), Some("tandem-assertion+jwt"));
            assert_eq!(header.alg, Algorithm::EdDSA);
            let mut validation = Validation::new(Algorithm::EdDSA);
            validation.required_spec_claims.clear();
            validation.validate_exp = false;
            for jwk in &set.keys {
                let key = DecodingKey::from_jwk(jwk).unwrap();
                let verified = jsonwebtoken::decode::<Value>(token.expose(), &key, &validation).is_ok();
                assert_eq!(verified, jwk.common.key_id.as_deref() == Some(kid));
            }
        }
    }

    #[test]
    fn every_assertion_key_is_published_and_no_seed() {
        let mut ring = KeyRing::generate(&Entropy::seeded(8));
        let later = ring.rotate(Purpose::Assertion, at(60), &Entropy::seeded(9)).unwrap();
        let set = ASSERTION.jwks(&ring).unwrap();
        assert_eq!(set.keys.len(), 2);
        assert!(set.find(&kid(later)).is_some());
        let text = serde_json::to_string(&set).unwrap();
        for (_, seed) in ring.seeds(Purpose::Assertion) {
            assert!(!text.contains(&URL_SAFE_NO_PAD.encode(seed.expose())));
        }
    }

    #[test]
    fn a_statement_opens_as_what_it_is_and_unchanged() {
        let ring = ring("2030-01-01T00:00:00Z");
        let claims = json!({"seq": 7});
        let head = AUDIT_HEAD.sign(&ring, at(0), &claims).unwrap();
        let assertion = ASSERTION.sign(&ring, at(0), &claims).unwrap();
        let opened = |kind: Kind, text: &str| kind.open::<Value>(&ring, text).unwrap();
        assert_eq!(opened(AUDIT_HEAD, head.expose()), Some(claims));
        assert_eq!(opened(ASSERTION, head.expose()), None);
        assert_eq!(opened(AUDIT_HEAD, assertion.expose()), None);
        let other = AUDIT_HEAD.sign(&ring, at(0), &json!({"seq": 8})).unwrap();
        let (start, _) = other.expose().rsplit_once('.').unwrap();
        let (_, signature) = head.expose().rsplit_once('.').unwrap();
        assert_eq!(opened(AUDIT_HEAD, &format!("{start}.{signature}")), None);
        assert_eq!(opened(AUDIT_HEAD, "nonsense"), None);
    }
}
