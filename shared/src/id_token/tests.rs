use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use super::*;
use crate::jws::pkcs8;
use crate::secret::Entropy;
use crate::time::at;

const NOW: i64 = 1_800_000_000;
const ISSUER: &str = "https://id.example.com/shop";
/// What stands before the 32 bytes of a P-256 key in PKCS #8 without its public half (RFC 5915).
const P256_HEADER: [u8; 35] = [
    0x30, 0x41, 2, 1, 0, 0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 3, 1, 7, 4, 0x27, 0x30, 0x25, 2, 1, 1, 4, 0x20,
];
/// The order of P-256 (FIPS 186-4, D.1.2.3).
const P256_ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa,
    0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

fn ed25519(seed: u64) -> EncodingKey {
    EncodingKey::from_ed_der(pkcs8(&Entropy::seeded(seed).bytes()).expose())
}

fn p256(seed: u64) -> EncodingKey {
    EncodingKey::from_ec_der(&[&P256_HEADER[..], &Entropy::seeded(seed).bytes::<32>()].concat())
}

fn jwk(key: &EncodingKey, algorithm: Algorithm, kid: &str) -> Jwk {
    let mut jwk = Jwk::from_encoding_key(key, algorithm).unwrap();
    jwk.common.key_id = Some(kid.to_owned());
    jwk
}

/// One provider with keys `ed` and `ec`, configured as usual but for this.
fn open(name: &str, changed: &Value) -> Result<IdentityProviders, IssuersError> {
    let folder = std::env::temp_dir().join(format!("tandem-id-token-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let keys = vec![jwk(&ed25519(1), Algorithm::EdDSA, "ed"), jwk(&p256(2), Algorithm::ES256, "ec")];
    std::fs::write(folder.join("keys.json"), serde_json::to_vec(&JwkSet { keys }).unwrap()).unwrap();
    let config = json!({
        "issuer": ISSUER, "audiences": ["web", "app"], "jwks_file": "keys.json", "tenants": ["shop"],
    });
    let changed = changed.as_array().map_or_else(|| std::slice::from_ref(changed), Vec::as_slice);
    let configs: Vec<_> = changed.iter().map(|one| with(&config, one)).collect();
    let file = folder.join("providers.json");
    std::fs::write(&file, serde_json::to_vec(&configs).unwrap()).unwrap();
    let opened = IdentityProviders::open(&file);
    std::fs::remove_dir_all(&folder).unwrap();
    opened
}

/// The object with these members; null takes one away.
fn with(object: &Value, changed: &Value) -> Value {
    let mut object = object.clone();
    for (name, value) in changed.as_object().unwrap() {
        object[name] = value.clone();
    }
    object.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    object
}

fn claims(changed: &Value) -> Value {
    let good =
        json!({"iss": ISSUER, "sub": "alice", "aud": "web", "exp": NOW + 300, "iat": NOW - 10, "nonce": "n"});
    with(&good, changed)
}

fn header(kid: &str, algorithm: Algorithm) -> Header {
    Header { kid: Some(kid.to_owned()), ..Header::new(algorithm) }
}

fn sign(changed: &Value) -> String {
    encode(&header("ed", Algorithm::EdDSA), &claims(changed), &ed25519(1)).unwrap()
}

async fn verify(providers: &IdentityProviders, token: &str) -> Result<IdToken, Refused> {
    providers.verify(&"shop".parse().unwrap(), token, Some("n"), at(NOW)).await
}

#[tokio::test]
async fn a_good_token_says_who_when_and_how() {
    let providers = open("good", &json!({})).unwrap();
    let token = sign(&json!({
        "auth_time": NOW - 60, "acr": "urn:example:loa", "amr": ["pwd", "mfa"], "sid": "s-1",
        "session_expiry": NOW + 28800,
    }));
    let signed = token.rsplit_once('.').unwrap().0;
    let expected = IdToken {
        issuer: ISSUER.to_owned(),
        sub: "alice".to_owned(),
        auth_time: at(NOW - 60),
        assurance_level: 2,
        acr: Some("urn:example:loa".to_owned()),
        amr: vec!["pwd".to_owned(), "mfa".to_owned()],
        upstream_session: Some("s-1".to_owned()),
        session_expiry: Some(at(NOW + 28800)),
        expires_at: at(NOW + 300),
        digest: sha256(&[signed.as_bytes()]),
    };
    assert_eq!(verify(&providers, &token).await, Ok(expected));
    let bare = verify(&providers, &sign(&json!({}))).await.unwrap();
    assert_eq!((bare.auth_time, bare.assurance_level), (at(NOW - 10), 1));
    assert_eq!((bare.acr, bare.amr, bare.upstream_session, bare.session_expiry), (None, vec![], None, None));
}

#[tokio::test]
async fn every_wrong_claim_has_its_reason_and_its_edge() {
    use Refused::{AudienceWrong, Expired, IssuerUnknown, Malformed, NonceWrong, NotYetValid, TooOld};
    let providers = open("claims", &json!({})).unwrap();
    let long = "a".repeat(256);
    let refused = [
        (json!({"iss": "https://id.example.com"}), IssuerUnknown),
        (json!({"iss": format!("{ISSUER}/")}), IssuerUnknown),
        (json!({"iss": null}), Malformed),
        (json!({"sub": null}), Malformed),
        (json!({"sub": ""}), Malformed),
        (json!({"sub": long}), Malformed),
        (json!({"sub": "a\u{0}b"}), Malformed),
        (json!({"sub": 7}), Malformed),
        (json!({"acr": "a\nb"}), Malformed),
        (json!({"amr": ["pwd", ""]}), Malformed),
        (json!({"amr": "mfa"}), Malformed),
        (json!({"sid": long}), Malformed),
        (json!({"aud": null}), Malformed),
        (json!({"aud": []}), AudienceWrong),
        (json!({"aud": "elsewhere"}), AudienceWrong),
        (json!({"aud": ["web", "elsewhere"], "azp": "web"}), AudienceWrong),
        (json!({"aud": ["web", "app"]}), AudienceWrong),
        (json!({"aud": ["web", "app"], "azp": "elsewhere"}), AudienceWrong),
        (json!({"aud": "web", "azp": "elsewhere"}), AudienceWrong),
        (json!({"exp": null}), Malformed),
        (json!({"exp": "soon"}), Malformed),
        (json!({"exp": i64::MAX}), Malformed),
        (json!({"exp": TIME_END}), Malformed),
        (json!({"exp": NOW - 5}), Expired),
        (json!({"session_expiry": NOW - 5}), Expired),
        (json!({"iat": null}), Malformed),
        (json!({"iat": NOW + 6}), NotYetValid),
        (json!({"iat": -1}), Malformed),
        (json!({"iat": NOW - 301}), TooOld),
        (json!({"nbf": NOW + 6}), NotYetValid),
        (json!({"auth_time": NOW + 6}), NotYetValid),
        (json!({"nonce": null}), NonceWrong),
        (json!({"nonce": "other"}), NonceWrong),
        (json!({"nonce": ""}), NonceWrong),
    ];
    for (changed, reason) in refused {
        assert_eq!(verify(&providers, &sign(&changed)).await, Err(reason), "{changed}");
    }
    for changed in [
        json!({"sub": "a".repeat(255)}),
        json!({"aud": ["app"]}),
        json!({"aud": ["web", "app"], "azp": "app"}),
        json!({"exp": NOW - 4}),
        json!({"exp": TIME_END - 1}),
        json!({"session_expiry": NOW - 4}),
        json!({"iat": NOW + 5, "nbf": NOW + 5, "auth_time": NOW + 5}),
        json!({"iat": NOW - 300}),
    ] {
        assert!(verify(&providers, &sign(&changed)).await.is_ok(), "{changed}");
    }
}

#[tokio::test]
async fn a_nonce_that_nobody_asked_for_is_of_another_authentication() {
    let providers = open("nonce", &json!({})).unwrap();
    let shop = "shop".parse().unwrap();
    let without = sign(&json!({"nonce": null}));
    assert!(providers.verify(&shop, &without, None, at(NOW)).await.is_ok());
    let refused = providers.verify(&shop, &sign(&json!({})), None, at(NOW)).await;
    assert_eq!(refused, Err(Refused::NonceWrong));
}

#[tokio::test]
async fn no_signature_but_the_providers_is_taken() {
    use Refused::{AlgorithmRefused, KeyUnknown, Malformed, SignatureInvalid};
    let providers = open("signature", &json!({})).unwrap();
    let (good, key, other) = (claims(&json!({})), ed25519(1), ed25519(9));
    let ed = header("ed", Algorithm::EdDSA);
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let x = serde_json::to_value(jwk(&key, Algorithm::EdDSA, "ed")).unwrap()["x"]
        .as_str()
        .unwrap()
        .to_owned();
    let hs256 = |secret: &[u8]| {
        encode(&header("ed", Algorithm::HS256), &good, &EncodingKey::from_secret(secret)).unwrap()
    };
    let own = Header { jwk: Some(jwk(&other, Algorithm::EdDSA, "ed")), ..ed.clone() };
    let linked = Header {
        jku: Some("https://evil.example/keys".to_owned()),
        x5u: Some("https://evil.example/chain".to_owned()),
        x5c: Some(vec!["AAAA".to_owned()]),
        ..ed.clone()
    };
    let typed = |typ: &str| encode(&Header { typ: Some(typ.to_owned()), ..ed.clone() }, &good, &key).unwrap();
    let signed = sign(&json!({}));
    let parts: Vec<_> = signed.split('.').collect();
    let none = part(&json!({"alg": "none", "kid": "ed"}));
    let critical = Header { crit: Some(vec!["exp".to_owned()]), ..ed.clone() };
    let cases = [
        (String::new(), Malformed),
        ("a.b.c".to_owned(), Malformed),
        (format!("{signed}.{}", parts[2]), Malformed),
        (format!("{signed}{}", "A".repeat(TOKEN_MAX_BYTES)), Malformed),
        (format!("{none}.{}.", parts[1]), AlgorithmRefused),
        (format!("{none}.{}.{}", parts[1], parts[2]), AlgorithmRefused),
        (hs256(&URL_SAFE_NO_PAD.decode(&x).unwrap()), AlgorithmRefused),
        (hs256(x.as_bytes()), AlgorithmRefused),
        (encode(&header("ed", Algorithm::ES256), &good, &p256(2)).unwrap(), AlgorithmRefused),
        (encode(&header("ec", Algorithm::EdDSA), &good, &key).unwrap(), AlgorithmRefused),
        (encode(&header("ec", Algorithm::ES256), &good, &p256(9)).unwrap(), SignatureInvalid),
        (encode(&ed, &good, &other).unwrap(), SignatureInvalid),
        (encode(&own, &good, &other).unwrap(), SignatureInvalid),
        (encode(&linked, &good, &other).unwrap(), SignatureInvalid),
        (encode(&header("mine", Algorithm::EdDSA), &good, &other).unwrap(), KeyUnknown),
        (encode(&Header { kid: None, ..ed.clone() }, &good, &key).unwrap(), KeyUnknown),
        (typed("at+jwt"), Malformed),
        (typed("tandem-assertion+jwt"), Malformed),
        (typed("logout+jwt"), Malformed),
        (encode(&critical, &good, &key).unwrap(), Malformed),
    ];
    for (token, reason) in cases {
        assert_eq!(verify(&providers, &token).await, Err(reason), "{token}");
    }
    let untyped = Header { typ: None, ..ed };
    // What a header says of keys is ignored, not believed and not refused.
    for good in
        [signed.clone(), encode(&untyped, &good, &key).unwrap(), encode(&linked, &good, &key).unwrap()]
    {
        assert!(verify(&providers, &good).await.is_ok(), "{good}");
    }
}

#[tokio::test]
async fn no_character_of_payload_or_signature_can_be_changed() {
    let providers = open("changed", &json!({})).unwrap();
    let ec = encode(&header("ec", Algorithm::ES256), &claims(&json!({})), &p256(2)).unwrap();
    for token in [sign(&json!({})), ec] {
        assert!(verify(&providers, &token).await.is_ok());
        let payload = token.find('.').unwrap() + 1;
        for i in (payload..token.len()).filter(|i| token.as_bytes()[*i] != b'.') {
            for bit in [1, 2] {
                let mut changed = token.clone().into_bytes();
                changed[i] ^= bit;
                let changed = String::from_utf8(changed).unwrap();
                assert!(verify(&providers, &changed).await.is_err(), "{i}: {changed}");
            }
        }
        for cut in payload..token.len() {
            assert!(verify(&providers, &token[..cut]).await.is_err(), "{cut}");
        }
    }
}

/// ECDSA's weakness: (r, -s) verifies wherever (r, s) does.
#[tokio::test]
async fn a_token_with_the_twin_of_its_signature_is_the_same_token() {
    let providers = open("twin", &json!({})).unwrap();
    let token = encode(&header("ec", Algorithm::ES256), &claims(&json!({})), &p256(2)).unwrap();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let mut signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let mut borrow = 0;
    for (s, n) in signature[32..].iter_mut().zip(P256_ORDER).rev() {
        let difference = i16::from(n) - i16::from(*s) - borrow;
        borrow = i16::from(difference < 0);
        *s = u8::try_from(difference.rem_euclid(256)).unwrap();
    }
    let twin = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
    assert_ne!(twin, token);
    let digests =
        [verify(&providers, &token).await.unwrap().digest, verify(&providers, &twin).await.unwrap().digest];
    assert_eq!(digests[0], digests[1]);
}

#[tokio::test]
async fn assurance_is_what_the_configuration_finds() {
    let by_rule = json!({"assurance": [
        {"level": 3, "acr": ["urn:example:high"]}, {"level": 2, "acr": ["urn:example:some"], "amr": ["hwk", "mfa"]},
    ]});
    let (usual, ruled) = (open("usual", &json!({})).unwrap(), open("ruled", &by_rule).unwrap());
    for (said, by_default, by_rules) in [
        (json!({}), 1, 1),
        (json!({"amr": ["pwd"]}), 1, 1),
        (json!({"amr": ["pwd", "otp", "mfa"]}), 2, 2),
        (json!({"amr": ["hwk"]}), 1, 2),
        (json!({"acr": "urn:example:some"}), 1, 2),
        (json!({"acr": "urn:example:high", "amr": ["mfa"]}), 2, 3),
        (json!({"acr": "urn:example:HIGH"}), 1, 1),
    ] {
        let token = sign(&said);
        let level = async |providers| verify(providers, &token).await.unwrap().assurance_level;
        assert_eq!((level(&usual).await, level(&ruled).await), (by_default, by_rules), "{said}");
    }
}

#[tokio::test]
async fn a_provider_names_people_of_its_tenants_only_each_with_applications_of_its_own() {
    let two = json!([
        {"tenants": ["*"], "audiences": ["all"]}, {"tenants": ["shop"], "audiences": ["shop"]},
    ]);
    let (usual, two) = (open("tenants", &json!({})).unwrap(), open("two", &two).unwrap());
    let verify = async |providers: &IdentityProviders, tenant: &str, aud: &str| {
        let token = sign(&json!({"aud": aud}));
        providers
            .verify(&tenant.parse().unwrap(), &token, Some("n"), at(NOW))
            .await
            .map(|_| ())
    };
    assert_eq!(verify(&usual, "acme", "web").await, Err(Refused::TenantRefused));
    for (tenant, aud, expected) in [
        ("shop", "shop", Ok(())),
        ("shop", "all", Err(Refused::AudienceWrong)),
        ("acme", "all", Ok(())),
        ("acme", "shop", Err(Refused::AudienceWrong)),
    ] {
        assert_eq!(verify(&two, tenant, aud).await, expected, "{tenant} {aud}");
    }
}

#[tokio::test]
async fn keys_that_cannot_be_fetched_are_no_fault_of_the_token() {
    // Nobody listens there.
    let away = json!({"jwks_file": null, "jwks_url": "http://127.0.0.1:1/keys"});
    let providers = open("away", &away).unwrap();
    assert_eq!(verify(&providers, &sign(&json!({}))).await, Err(Refused::KeysUnavailable));
}

#[test]
fn configurations_that_cannot_be_meant_are_refused() {
    for (i, bad) in [
        json!({"audiences": []}),
        json!({"assurance": [{"level": 4, "amr": ["mfa"]}]}),
        json!({"assurance": [{"level": 0, "amr": ["mfa"]}]}),
        json!({"jwks_url": "https://id.example.com/keys"}),
        json!({"jwks_file": "missing.json"}),
        json!({"jwks_file": null, "issuer": "id.example.com"}),
        json!({"max_age": 300}),
        json!([{}, {"tenants": ["acme", "shop"]}]),
        json!([]),
    ]
    .iter()
    .enumerate()
    {
        let error = open(&format!("bad-{i}"), bad).err().unwrap_or_else(|| panic!("{bad} is taken"));
        assert!(error.to_string().contains("providers.json"), "{error}");
    }
}
