use serde_json::{Value, json};

use super::*;

#[test]
fn keys_reach_us_by_https_or_without_leaving_the_machine() {
    for good in ["https://id.example.com/keys", "http://127.0.0.1:1/", "http://[::1]:1/", "http://localhost/"]
    {
        assert!(safe(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        "/keys",
        "tandem-local/.well-known/openid-configuration",
        "http://id.example.com/keys",
        "http://localhost.example.com/",
        "http://127.0.0.1@id.example.com/",
        "ftp://127.0.0.1/",
        "file:///keys",
    ] {
        assert!(safe(bad).is_err(), "{bad}");
    }
}

#[test]
fn only_keys_that_check_signatures_and_are_safe_are_taken_each_for_one_algorithm() {
    let okp = |extra: Value| {
        let x = URL_SAFE_NO_PAD.encode([7; 32]);
        merge(json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": "k"}), &extra)
    };
    let rsa = |bits: usize, extra: Value| {
        let n = URL_SAFE_NO_PAD.encode(vec![0x80; bits / 8]);
        merge(json!({"kty": "RSA", "n": n, "e": "AQAB", "kid": "k"}), &extra)
    };
    let ec = |curve: &str| {
        let x = URL_SAFE_NO_PAD.encode([7; 32]);
        json!({"kty": "EC", "crv": curve, "x": x, "y": x, "kid": "k"})
    };
    let short = URL_SAFE_NO_PAD.encode([&[0; 16][..], &[0x80; 240]].concat());
    let cases = [
        (okp(json!({})), Some(Algorithm::EdDSA)),
        (okp(json!({"use": "sig", "alg": "EdDSA", "key_ops": ["verify"]})), Some(Algorithm::EdDSA)),
        (ec("P-256"), Some(Algorithm::ES256)),
        (rsa(2048, json!({})), Some(Algorithm::RS256)),
        (rsa(4096, json!({"alg": "RS256"})), Some(Algorithm::RS256)),
        (rsa(2040, json!({})), None),
        (rsa(2048, json!({"n": short})), None),
        (rsa(2048, json!({"alg": "PS256"})), None),
        (rsa(2048, json!({"alg": "RSA-OAEP"})), None),
        (okp(json!({"use": "enc"})), None),
        (okp(json!({"key_ops": ["sign"]})), None),
        (okp(json!({"kid": null})), None),
        (ec("P-384"), None),
        (json!({"kty": "oct", "k": "c2VjcmV0", "kid": "k"}), None),
        (json!({"kty": "NEW", "kid": "k"}), None),
        (json!({"kty": "RSA", "kid": "k"}), None),
    ];
    for (jwk, algorithm) in cases {
        // Beside a good one, which none of them spoils.
        let set = json!({"keys": [jwk, okp(json!({"kid": "good"}))]}).to_string().into_bytes();
        let keys = PublicKeys::parse(set).unwrap();
        assert_eq!(keys.get("k").map(|key| key.algorithm), algorithm, "{jwk}");
        assert!(keys.get("good").is_some());
    }
    for bad in ["", "[]", "{}", r#"{"keys": {}}"#] {
        assert!(PublicKeys::parse(bad.into()).is_err(), "{bad}");
    }
}

/// Of RFC 7515, appendices A.2 and A.3.
#[test]
fn the_examples_of_rfc_7515_verify_each_with_its_key_only() {
    let set = json!({"keys": [
        {"kid": "rsa", "kty": "RSA", "e": "AQAB", "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"},
        {"kid": "ec", "kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
    ]});
    let payload =
        "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let tokens = [
        (
            "rsa",
            format!(
                "eyJhbGciOiJSUzI1NiJ9.{payload}.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
            ),
        ),
        (
            "ec",
            format!(
                "eyJhbGciOiJFUzI1NiJ9.{payload}.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
            ),
        ),
    ];
    let keys = PublicKeys::parse(set.to_string().into_bytes()).unwrap();
    for (kid, token) in tokens {
        let decoded = |kid| keys.get(kid).unwrap().decode::<Value>(&token);
        assert_eq!(decoded(kid).unwrap().claims["iss"], "joe");
        assert!(decoded(if kid == "ec" { "rsa" } else { "ec" }).is_err());
    }
}

fn merge(mut jwk: Value, extra: &Value) -> Value {
    jwk.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    jwk
}
