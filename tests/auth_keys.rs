//! Where the keys of issuers come from: files, URLs and discovery, rotated, missing, or changed on the way.

use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tonic::Code;

use crate::auth::{claims, header, key, list_with, other_key, start, write_issuer};
use crate::harness::{Answer as _, Caller, Options, Stack, Web, assert_refused, workload};

/// The key's public half, as issuers publish it.
fn key_set(key: &EncodingKey, kid: &str) -> String {
    let mut jwk = Jwk::from_encoding_key(key, Algorithm::EdDSA).unwrap();
    jwk.common.key_id = Some(kid.to_owned());
    serde_json::to_string(&JwkSet { keys: vec![jwk] }).unwrap()
}

fn start_with(keys: &Value) -> (Stack, Caller) {
    let mut stack = Stack::prepare();
    write_issuer(&stack, keys);
    stack.session = Some(stack.session_svc(&Options::default()));
    let caller = stack.caller(&workload("reader"));
    (stack, caller)
}

/// The service may have asked for its keys before they were there.
async fn once_fetched(stack: &Stack, caller: &Caller, token: &str) {
    if let Err(status) = list_with(caller, token).await {
        assert_refused(&status, Code::Unavailable, "KEYS_UNAVAILABLE");
        stack.advance(chrono::TimeDelta::seconds(11));
        list_with(caller, token).await.answer();
    }
}

#[tokio::test]
async fn a_rotated_key_is_picked_up_and_a_removed_one_stops_working() {
    let (stack, caller) = start();
    let (key, next) = (key(&stack), other_key(&stack));
    let old_token = encode(&header(), &claims(&json!({})), &key).unwrap();
    let new_token =
        encode(&Header { kid: Some("next".to_owned()), ..header() }, &claims(&json!({})), &next).unwrap();
    list_with(&caller, &old_token).await.answer();
    list_with(&caller, &new_token)
        .await
        .refused(Code::Unauthenticated, "CALLER_KEY_UNKNOWN");
    std::fs::write(stack.folder().join("jwks.json"), key_set(&next, "next")).unwrap();
    // The file was read a moment ago, for a key that it did not have; nobody makes us read it for every bad token.
    list_with(&caller, &new_token)
        .await
        .refused(Code::Unauthenticated, "CALLER_KEY_UNKNOWN");
    stack.advance(chrono::TimeDelta::seconds(61));
    list_with(&caller, &new_token).await.answer();
    list_with(&caller, &old_token)
        .await
        .refused(Code::Unauthenticated, "CALLER_KEY_UNKNOWN");
}

#[tokio::test]
async fn keys_at_a_url_are_fetched_again_for_one_that_is_not_known() {
    let web = Web::start();
    let (stack, caller) = start_with(&json!({"issuer": "tandem-local", "jwks_url": web.url("/keys")}));
    let (key, next) = (key(&stack), other_key(&stack));
    web.put("/keys", &key_set(&key, "local"));
    let old_token = encode(&header(), &claims(&json!({})), &key).unwrap();
    let new_token =
        encode(&Header { kid: Some("next".to_owned()), ..header() }, &claims(&json!({})), &next).unwrap();
    once_fetched(&stack, &caller, &old_token).await;
    web.put("/keys", &key_set(&next, "next"));
    list_with(&caller, &old_token).await.answer();
    stack.advance(chrono::TimeDelta::seconds(61));
    list_with(&caller, &new_token).await.answer();
    list_with(&caller, &old_token)
        .await
        .refused(Code::Unauthenticated, "CALLER_KEY_UNKNOWN");
    // What cannot be fetched any more changes nothing.
    web.put_head("/keys", "503 Service Unavailable", "");
    let asked = web.asked("/keys");
    stack.advance(chrono::TimeDelta::seconds(61));
    list_with(&caller, &old_token)
        .await
        .refused(Code::Unauthenticated, "CALLER_KEY_UNKNOWN");
    assert!(web.asked("/keys") > asked, "nobody asked again");
    list_with(&caller, &new_token).await.answer();
}

#[tokio::test]
async fn keys_are_discovered_where_the_issuers_name_says() {
    let web = Web::start();
    let issuer = web.url("/shop");
    let (stack, caller) = start_with(&json!({"issuer": issuer}));
    let key = key(&stack);
    let token = encode(&header(), &claims(&json!({"iss": issuer})), &key).unwrap();
    web.put("/keys", &key_set(&key, "local"));
    let discovered = |issuer: &str| json!({"issuer": issuer, "jwks_uri": web.url("/keys")}).to_string();
    let path = "/shop/.well-known/openid-configuration";
    for other in [web.url("/shop/"), web.url("/other"), "https://id.example.com".to_owned()] {
        web.put(path, &discovered(&other));
        stack.advance(chrono::TimeDelta::seconds(11));
        list_with(&caller, &token).await.refused(Code::Unavailable, "KEYS_UNAVAILABLE");
    }
    assert_eq!(web.asked("/keys"), 0);
    web.put(path, &discovered(&issuer));
    stack.advance(chrono::TimeDelta::seconds(11));
    list_with(&caller, &token).await.answer();
}

#[tokio::test]
async fn keys_that_cannot_be_fetched_make_no_token_bad() {
    let web = Web::start();
    let (stack, caller) = start_with(&json!({"issuer": "tandem-local", "jwks_url": web.url("/keys")}));
    let key = key(&stack);
    let token = encode(&header(), &claims(&json!({})), &key).unwrap();
    let set = key_set(&key, "local");
    web.put("/elsewhere", &set);
    let redirect = format!("302 Found\r\nlocation: {}", web.url("/elsewhere"));
    let long = format!("{set}{}", " ".repeat(256 * 1024));
    for (head, body) in [("404 Not Found", &*set), (&*redirect, ""), ("200 OK", "<html>"), ("200 OK", &*long)]
    {
        web.put_head("/keys", head, body);
        stack.advance(chrono::TimeDelta::seconds(11));
        list_with(&caller, &token).await.refused(Code::Unavailable, "KEYS_UNAVAILABLE");
    }
    assert_eq!(web.asked("/elsewhere"), 0, "a redirect was followed");
    web.put("/keys", &set);
    stack.advance(chrono::TimeDelta::seconds(11));
    list_with(&caller, &token).await.answer();
}

#[test]
fn issuers_whose_keys_could_be_changed_on_the_way_are_refused() {
    let stack = Stack::prepare();
    let open = |keys: Value| {
        write_issuer(&stack, &keys);
        shared::auth::Authenticator::open(&stack.folder().join("issuers.json")).map(|_| ())
    };
    for bad in [
        json!({"issuer": "tandem-local", "jwks_url": "http://id.example.com/keys"}),
        json!({"issuer": "tandem-local", "jwks_url": "https://id.example.com/keys", "jwks_file": "jwks.json"}),
        json!({"issuer": "tandem-local", "jwks_file": "missing.json"}),
        json!({"issuer": "tandem-local"}),
        json!({"issuer": "http://id.example.com"}),
    ] {
        let text = open(bad.clone()).expect_err("it is unusable").to_string();
        assert!(text.contains("issuers.json") && text.contains(bad["issuer"].as_str().unwrap()), "{text}");
    }
    open(json!({"issuer": "https://id.example.com"})).expect("nothing is fetched at the start");
}
