use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;

use super::*;
use crate::jws::pkcs8;
use crate::time::at;

#[tokio::test]
async fn a_token_that_was_verified_while_the_keys_were_replaced_is_not_remembered() {
    let folder = std::env::temp_dir().join(format!("tandem-auth-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let write_set = |keys: &[&EncodingKey]| {
        let jwk = |key: &&EncodingKey| {
            let mut jwk = Jwk::from_encoding_key(key, Algorithm::EdDSA).unwrap();
            jwk.common.key_id = Some("k".to_owned());
            jwk
        };
        let set = JwkSet { keys: keys.iter().map(jwk).collect() };
        std::fs::write(folder.join("jwks.json"), serde_json::to_vec(&set).unwrap()).unwrap();
    };
    let key = EncodingKey::from_ed_der(pkcs8(&[1; 32]).expose());
    write_set(&[&key]);
    let issuers = json!([{"issuer": "i", "audience": "a", "jwks_file": "jwks.json", "tenants": ["*"]}]);
    std::fs::write(folder.join("issuers.json"), issuers.to_string()).unwrap();
    let authenticator = Authenticator::open(&folder.join("issuers.json")).unwrap();
    let claims = json!({"iss": "i", "aud": "a", "sub": "s", "tenant": "shop", "exp": 9000});
    let header =
        Header { typ: Some("at+jwt".to_owned()), kid: Some("k".to_owned()), ..Header::new(Algorithm::EdDSA) };
    let token = jsonwebtoken::encode(&header, &claims, &key).unwrap();
    let bearer = format!("Bearer {token}");
    let verified = authenticator.verify(&token, at(0)).await.unwrap();
    write_set(&[]);
    // A key that is not known makes the set be read again.
    authenticator.issuers["i"].keys.having("other", at(0)).await;
    authenticator.verified.insert(sha256(&[token.as_bytes()]), Arc::new(verified));
    let refused = authenticator.authenticate(Some(&bearer), at(0)).await.unwrap_err();
    assert!(format!("{refused:?}").contains("CallerKeyUnknown"), "{refused:?}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn names_of_other_issuers_or_tenants_are_nobody_s() {
    let folder = std::env::temp_dir().join(format!("tandem-admits-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("jwks.json"), json!({"keys": []}).to_string()).unwrap();
    let issuer = |name, tenants: &[&str]| json!({"issuer": name, "audience": "a", "jwks_file": "jwks.json", "tenants": tenants});
    let issuers = json!([issuer("all", &["*"]), issuer("acme", &["acme"])]);
    std::fs::write(folder.join("issuers.json"), issuers.to_string()).unwrap();
    let authenticator = Authenticator::open(&folder.join("issuers.json")).unwrap();
    let tenant = "shop".parse().unwrap();
    for (name, expected) in [
        ("all|ada", true),
        ("mtls|ci", true),
        ("acme|ada", false),
        ("other|ada", false),
        ("all", false),
        ("ada@example.com", false),
    ] {
        assert_eq!(authenticator.admits(name, &tenant), expected, "{name}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
