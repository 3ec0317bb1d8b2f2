//! Attributes: an application's own few words about a session, changed by compare-and-set.

use futures_util::future::join_all;
use prost_types::value::Kind;
use shared::issuer::Grant;
use shared::pb::session as pb;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::harness::shop::{create_session, create_touchpoint, revoke, validation, web};
use crate::harness::{Answer as _, Caller, Options, Stack, Watch, workload};

async fn start() -> (Stack, Caller, String) {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    let (_, token) = create_session(&caller).await;
    (stack, caller, token)
}

fn set(key: &str, value: &str, expected_version: Option<i64>) -> pb::AttributeChange {
    pb::AttributeChange { key: key.to_owned(), value: Some(value.to_owned()), expected_version }
}

fn remove(key: &str, expected_version: Option<i64>) -> pb::AttributeChange {
    pb::AttributeChange { key: key.to_owned(), value: None, expected_version }
}

fn request(token: &str, changes: &[pb::AttributeChange]) -> pb::UpdateSessionAttributesRequest {
    pb::UpdateSessionAttributesRequest {
        session_token: token.to_owned(),
        changes: changes.to_vec(),
        request_id: String::new(),
    }
}

async fn change(
    caller: &Caller,
    token: &str,
    changes: &[pb::AttributeChange],
) -> Result<Response<pb::UpdateSessionAttributesResponse>, Status> {
    caller.sessions().update_session_attributes(request(token, changes)).await
}

async fn changed(caller: &Caller, token: &str, changes: &[pb::AttributeChange]) -> Vec<pb::Attribute> {
    change(caller, token, changes).await.answer().attributes
}

/// As a validation shows them.
async fn shown(caller: &Caller, token: &str) -> Vec<pb::Attribute> {
    let request = pb::ValidateSessionRequest {
        include_attributes: true,
        ..validation(token, pb::Consistency::Bounded)
    };
    caller.sessions().validate_session(request).await.answer().attributes
}

fn pairs(attributes: &[pb::Attribute]) -> Vec<(&str, &str)> {
    attributes.iter().map(|it| (it.key.as_str(), it.value.as_str())).collect()
}

fn version_of(attributes: &[pb::Attribute], key: &str) -> i64 {
    attributes.iter().find(|it| it.key == key).unwrap().version
}

#[tokio::test]
async fn attributes_are_shown_as_they_were_changed() {
    let (_stack, caller, token) = start().await;
    assert_eq!(shown(&caller, &token).await, []);
    let first = changed(&caller, &token, &[set("step", "2", Some(0)), set("Zone", "", None)]).await;
    assert_eq!(pairs(&first), [("Zone", ""), ("step", "2")], "by key");
    assert_eq!(shown(&caller, &token).await, first);
    let next = changed(&caller, &token, &[set("step", "3", None), remove("nothing", None)]).await;
    assert_eq!(version_of(&next, "Zone"), version_of(&first, "Zone"));
    assert!(version_of(&next, "step") > version_of(&first, "step"));
    let last = changed(&caller, &token, &[remove("Zone", None)]).await;
    assert_eq!(pairs(&last), [("step", "3")]);
    assert_eq!(shown(&caller, &token).await, last);
    assert_eq!(changed(&caller, &token, &[]).await, last, "no change is none");
    let (_, other) = create_session(&caller).await;
    assert_eq!(shown(&caller, &other).await, [], "each session has its own");
}

#[tokio::test]
async fn a_stale_version_changes_nothing_at_all() {
    let (_stack, caller, token) = start().await;
    let first = changed(&caller, &token, &[set("a", "1", None)]).await;
    let seen = version_of(&first, "a");
    let second = changed(&caller, &token, &[set("a", "2", Some(seen))]).await;
    for (stale, version) in [
        (set("a", "3", Some(seen)), version_of(&second, "a")),
        (set("a", "3", Some(0)), version_of(&second, "a")),
        (remove("a", Some(seen)), version_of(&second, "a")),
        (set("c", "3", Some(seen)), 0),
    ] {
        let key = stale.key.clone();
        let status = change(&caller, &token, &[set("b", "1", None), stale])
            .await
            .refused(Code::Aborted, "ATTRIBUTE_CHANGED");
        let metadata = status.get_details_error_info().unwrap().metadata;
        assert_eq!((&metadata["key"], &metadata["version"]), (&key, &version.to_string()));
    }
    assert_eq!(shown(&caller, &token).await, second, "not b either");
}

#[tokio::test]
async fn a_version_is_never_given_twice_although_the_clock_stands_still() {
    let (_stack, caller, token) = start().await;
    let mut seen = 0;
    for value in ["1", "2", "3"] {
        let made = changed(&caller, &token, &[set("a", value, Some(0))]).await;
        assert!(version_of(&made, "a") > seen);
        seen = version_of(&made, "a");
        changed(&caller, &token, &[remove("a", Some(seen))]).await;
    }
}

#[tokio::test]
async fn of_many_that_change_a_key_at_once_on_two_replicas_one_succeeds() {
    let (stack, caller, token) = start().await;
    let replica = stack.session_svc(&Options::default());
    let other = caller.at_session(&replica);
    let mut version = 0;
    for _ in 0..5 {
        let changes = [set("turn", "taken", Some(version))];
        let rivals = (0..4).flat_map(|_| [&caller, &other]);
        let outcomes = join_all(rivals.map(|rival| change(rival, &token, &changes))).await;
        let (mut won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
        assert_eq!((won.len(), lost.len()), (1, 7));
        for refused in lost {
            refused.refused(Code::Aborted, "ATTRIBUTE_CHANGED");
        }
        version = version_of(&won.pop().unwrap().answer().attributes, "turn");
    }
}

#[tokio::test]
async fn two_that_change_different_keys_at_once_both_succeed() {
    let (_stack, caller, token) = start().await;
    let keys: Vec<_> = (0..8).map(|n| format!("key{n}")).collect();
    let changes = keys
        .iter()
        .map(async |key| change(&caller, &token, &[set(key, "x", Some(0))]).await);
    for outcome in join_all(changes).await {
        outcome.answer();
    }
    assert_eq!(shown(&caller, &token).await.len(), keys.len());
}

#[tokio::test]
async fn bad_changes_name_their_field() {
    let (_stack, caller, token) = start().await;
    let good = || set("good", "x", None);
    let cases = [
        ("changes[1].key", vec![good(), set("", "x", None)]),
        ("changes[0].key", vec![set(&"k".repeat(65), "x", None)]),
        ("changes[0].key", vec![set("a b", "x", None)]),
        ("changes[0].key", vec![set("a\0", "x", None)]),
        ("changes[0].key", vec![remove("ключ", None)]),
        ("changes[2].key", vec![good(), set("b", "x", None), remove("good", None)]),
        ("changes[0].value", vec![set("a", &"v".repeat(16 * 1024 + 1), None)]),
        ("changes[0].value", vec![set("a", "x\0y", None)]),
        ("changes[0].expected_version", vec![set("a", "x", Some(-1))]),
        ("changes", (0..65).map(|n| set(&format!("k{n}"), "x", None)).collect()),
    ];
    for (field, changes) in cases {
        let status = change(&caller, &token, &changes)
            .await
            .refused(Code::InvalidArgument, "FIELD_INVALID");
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, field);
    }
    assert_eq!(shown(&caller, &token).await, []);
    let most: Vec<_> = (0..64).map(|n| set(&format!("k{n}"), "x", None)).collect();
    assert_eq!(changed(&caller, &token, &most).await.len(), 64);
}

#[tokio::test]
async fn keys_and_values_are_bounded_together() {
    let (_stack, caller, token) = start().await;
    let value = "v".repeat(16 * 1024 - 1);
    let full: Vec<_> = ["a", "b", "c", "d"].map(|key| set(key, &value, None)).into();
    let full = changed(&caller, &token, &full).await;
    let status = change(&caller, &token, &[set("e", "", None)])
        .await
        .refused(Code::ResourceExhausted, "ATTRIBUTE_LIMIT");
    let metadata = status.get_details_error_info().unwrap().metadata;
    assert_eq!((metadata["limit"].as_str(), metadata["max"].as_str()), ("total_bytes", "65536"));
    assert_eq!(shown(&caller, &token).await, full);
    changed(&caller, &token, &[set("e", "", None), remove("a", None)]).await;
}

#[tokio::test]
async fn keys_are_bounded_in_number() {
    let (_stack, caller, token) = start().await;
    for part in 0..4 {
        let changes: Vec<_> = (0..64).map(|n| set(&format!("{part}.{n}"), "", None)).collect();
        changed(&caller, &token, &changes).await;
    }
    let status = change(&caller, &token, &[set("e", "", None)])
        .await
        .refused(Code::ResourceExhausted, "ATTRIBUTE_LIMIT");
    let metadata = status.get_details_error_info().unwrap().metadata;
    assert_eq!((metadata["limit"].as_str(), metadata["max"].as_str()), ("keys", "256"));
    let traded = changed(&caller, &token, &[set("e", "", None), remove("0.0", None)]).await;
    assert_eq!(traded.len(), 256);
}

#[tokio::test]
async fn only_a_live_sessions_holder_changes_its_attributes() {
    let (stack, caller, token) = start().await;
    let changes = [set("a", "1", None)];
    for bad in ["", "nonsense", &token.replace("tds_", "tde_")] {
        change(&caller, bad, &changes)
            .await
            .refused(Code::FailedPrecondition, "SESSION_UNKNOWN");
    }
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..workload("storefront") });
    change(&acme, &token, &changes)
        .await
        .refused(Code::FailedPrecondition, "SESSION_UNKNOWN");
    let till = stack.caller(&Grant { touchpoints: Some(vec!["pos".to_owned()]), ..workload("till") });
    change(&till, &token, &changes)
        .await
        .refused(Code::PermissionDenied, "CALLER_TOUCHPOINT_REFUSED");
    let (session, ended) = create_session(&caller).await;
    revoke(&caller, &session).await;
    change(&caller, &ended, &changes)
        .await
        .refused(Code::FailedPrecondition, "SESSION_REVOKED");
}

#[tokio::test]
async fn a_repeated_request_is_answered_alike_and_changes_nothing_more() {
    let (stack, caller, token) = start().await;
    let first = changed(&caller, &token, &[set("other", "private", None)]).await;
    let ask = pb::UpdateSessionAttributesRequest {
        request_id: Uuid::from_u128(1).to_string(),
        ..request(&token, &[set("a", "1", Some(0))])
    };
    let send = async |ask: &pb::UpdateSessionAttributesRequest| {
        caller.sessions().update_session_attributes(ask.clone()).await
    };
    let answers = join_all((0..3).map(|_| send(&ask))).await;
    let answer = send(&ask).await.answer();
    assert_eq!(pairs(&answer.attributes), [("a", "1"), ("other", "private")]);
    for again in answers {
        assert_eq!(again.answer(), answer);
    }
    let reused = pb::UpdateSessionAttributesRequest { changes: vec![set("a", "2", Some(0))], ..ask.clone() };
    send(&reused).await.refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
    let next = [set("a", "2", None), set("other", "newer", Some(version_of(&first, "other")))];
    changed(&caller, &token, &next).await;
    let repeated = send(&ask).await.answer().attributes;
    assert_eq!(repeated, [answer.attributes[0].clone()], "nothing that came later");
    let mut db = stack.database.connect().await;
    let kept = "select string_agg(encode(answer, 'escape'), '') from session.requests";
    let kept: String = sqlx::query_scalar(kept).fetch_one(&mut db).await.unwrap();
    assert!(kept.contains("other") && !kept.contains("private"), "{kept}");
}

#[tokio::test]
async fn the_event_names_the_keys_only() {
    let (_stack, caller, token) = start().await;
    let mut watch = Watch::open(caller.session_events()).await;
    changed(&caller, &token, &[remove("nothing", None)]).await;
    changed(&caller, &token, &[set("b", "private", None), set("a", "1", None), remove("c", None)]).await;
    let event = watch.next_of("session.attributes_changed").await;
    let names = ["a", "b"].map(|key| Kind::StringValue(key.to_owned()).into());
    let keys = Kind::ListValue(prost_types::ListValue { values: names.into() }).into();
    assert_eq!(event.data.unwrap().fields, [("keys".to_owned(), keys)].into());
}
