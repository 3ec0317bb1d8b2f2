//! History: kept with consent only, short and young, and gone when it is asked to be.

use chrono::TimeDelta;
use prost_types::{Duration, Timestamp};
use shared::pb::session as pb;
use shared::pb::session::{HistoryKind, HistoryOutcome};
use shared::time::to_proto;
use tonic::Code;
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::harness::shop::{owner, seconds, validate_strong};
use crate::harness::trust::log_in;
use crate::harness::{Answer as _, Caller, Watch};
use crate::preferences::consent;
use crate::wishlist::{shopper, start};

pub(crate) fn view(reference: &str) -> pb::HistoryEntry {
    entry(HistoryKind::View, reference)
}

fn entry(kind: HistoryKind, reference: &str) -> pb::HistoryEntry {
    pb::HistoryEntry { kind: kind.into(), r#ref: reference.to_owned(), ..Default::default() }
}

fn appending(owner: pb::ShopperSelector, entries: Vec<pb::HistoryEntry>) -> pb::AppendHistoryRequest {
    pb::AppendHistoryRequest { owner: Some(owner), entries, request_id: String::new() }
}

pub(crate) async fn append(
    caller: &Caller,
    owner: pb::ShopperSelector,
    entries: Vec<pb::HistoryEntry>,
) -> HistoryOutcome {
    caller
        .shoppers()
        .append_history(appending(owner, entries))
        .await
        .answer()
        .outcome()
}

pub(crate) async fn list(caller: &Caller, owner: pb::ShopperSelector) -> Vec<pb::HistoryEntry> {
    let request = pb::ListHistoryRequest { owner: Some(owner), ..Default::default() };
    caller.shoppers().list_history(request).await.answer().entries
}

pub(crate) fn refs(entries: &[pb::HistoryEntry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.r#ref.as_str()).collect()
}

#[tokio::test]
async fn without_consent_nothing_is_kept_and_with_its_end_all_is_gone() {
    let (_stack, caller, token) = start().await;
    let mut events = Watch::open(caller.session_events()).await;
    assert_eq!(append(&caller, owner(&token), vec![view("lamp")]).await, HistoryOutcome::NoConsent);
    assert_eq!(list(&caller, owner(&token)).await, []);
    consent(&caller, owner(&token), true).await;
    assert_eq!(list(&caller, owner(&token)).await, [], "what was not kept does not come back");
    assert_eq!(append(&caller, owner(&token), vec![view("lamp"), view("rug")]).await, HistoryOutcome::Kept);
    assert_eq!(list(&caller, owner(&token)).await.len(), 2);
    consent(&caller, owner(&token), false).await;
    assert_eq!(list(&caller, owner(&token)).await, []);
    assert_eq!(append(&caller, owner(&token), vec![view("lamp")]).await, HistoryOutcome::NoConsent);
    consent(&caller, owner(&token), true).await;
    assert_eq!(list(&caller, owner(&token)).await, []);
    // Appending raises no events, so that the next ones are these.
    let mut kinds = vec![];
    for _ in 0..4 {
        kinds.push(events.next().await.r#type);
    }
    assert_eq!(kinds, ["consent.changed", "consent.changed", "history.cleared", "consent.changed"]);
}

#[tokio::test]
async fn the_same_thing_within_half_an_hour_is_one_entry() {
    let (stack, caller, token) = start().await;
    consent(&caller, owner(&token), true).await;
    let dwelling = |kind, dwell| pb::HistoryEntry { dwell: Some(seconds(dwell)), ..entry(kind, "lamp") };
    let first = stack.now();
    append(&caller, owner(&token), vec![dwelling(HistoryKind::View, 5)]).await;
    stack.advance(TimeDelta::minutes(20));
    let batch = vec![dwelling(HistoryKind::View, 7), dwelling(HistoryKind::Add, 0)];
    append(&caller, owner(&token), batch).await;
    let second = stack.now();
    let kept = list(&caller, owner(&token)).await;
    let expected = |kind, at, dwell| pb::HistoryEntry { time: Some(to_proto(at)), ..dwelling(kind, dwell) };
    assert_eq!(kept, [expected(HistoryKind::Add, second, 0), expected(HistoryKind::View, second, 12)]);
    // What an app reports late goes where it belongs.
    let late = pb::HistoryEntry { time: Some(to_proto(first)), ..view("rug") };
    append(&caller, owner(&token), vec![late]).await;
    assert_eq!(refs(&list(&caller, owner(&token)).await), ["lamp", "lamp", "rug"]);
    let views = pb::ListHistoryRequest { owner: Some(owner(&token)), kind: HistoryKind::View.into() };
    assert_eq!(refs(&caller.shoppers().list_history(views).await.answer().entries), ["lamp", "rug"]);
}

#[tokio::test]
async fn the_last_200_of_90_days_are_kept() {
    let (stack, caller, token) = start().await;
    consent(&caller, owner(&token), true).await;
    for batch in 0..3 {
        let views = (0..100).map(|n| view(&format!("{batch}-{n:03}"))).collect();
        append(&caller, owner(&token), views).await;
        stack.advance(TimeDelta::seconds(1));
    }
    let kept = list(&caller, owner(&token)).await;
    assert_eq!(kept.len(), 200);
    assert!(kept.iter().all(|entry| !entry.r#ref.starts_with('0')));
    // The session ends; the shopper is still known by id.
    let mine = shopper(&validated_shopper(&caller, &token).await);
    stack.advance(TimeDelta::days(45));
    append(&caller, mine.clone(), vec![view("newer")]).await;
    assert_eq!(list(&caller, mine.clone()).await.len(), 200);
    stack.advance(TimeDelta::days(45));
    assert_eq!(refs(&list(&caller, mine.clone()).await), ["newer"]);
    stack.advance(TimeDelta::days(45));
    assert_eq!(list(&caller, mine).await, []);
}

async fn validated_shopper(caller: &Caller, token: &str) -> String {
    validate_strong(caller, token).await.session.unwrap().shopper_id
}

#[tokio::test]
async fn it_is_cleared_by_one_call_and_is_no_part_of_a_verdict() {
    let (_stack, caller, token) = start().await;
    consent(&caller, owner(&token), true).await;
    append(&caller, owner(&token), vec![view("a-very-private-lamp")]).await;
    let verdict = validate_strong(&caller, &token).await;
    assert!(!format!("{verdict:?}").contains("lamp"));
    let mut events = Watch::open(caller.session_events()).await;
    let request =
        pb::ClearHistoryRequest { owner: Some(owner(&token)), request_id: Uuid::from_u128(1).to_string() };
    caller.shoppers().clear_history(request.clone()).await.answer();
    assert_eq!(list(&caller, owner(&token)).await, []);
    // Repeated, it forgets nothing that came since.
    append(&caller, owner(&token), vec![view("rug")]).await;
    caller.shoppers().clear_history(request).await.answer();
    assert_eq!(refs(&list(&caller, owner(&token)).await), ["rug"]);
    let event = events.next_of("history.cleared").await;
    assert!(!format!("{event:?}").contains("lamp"));
    let again = pb::ClearHistoryRequest { owner: Some(owner(&token)), request_id: String::new() };
    caller.shoppers().clear_history(again.clone()).await.answer();
    caller.shoppers().clear_history(again).await.answer();
    consent(&caller, owner(&token), false).await;
    assert_eq!(events.next().await.r#type, "history.cleared");
    assert_eq!(events.next().await.r#type, "consent.changed", "where there is nothing, nothing is cleared");
}

#[tokio::test]
async fn bad_entries_are_refused_with_their_field_named() {
    let (stack, caller, token) = start().await;
    consent(&caller, owner(&token), true).await;
    let future = to_proto(stack.now() + TimeDelta::seconds(1));
    let timed = |time| pb::HistoryEntry { time: Some(time), ..view("lamp") };
    let dwelling =
        |seconds, nanos| pb::HistoryEntry { dwell: Some(Duration { seconds, nanos }), ..view("lamp") };
    let table = [
        ("kind", entry(HistoryKind::Unspecified, "lamp")),
        ("kind", pb::HistoryEntry { kind: 99, ..view("lamp") }),
        ("ref", view("")),
        ("ref", view("a\u{0}b")),
        ("ref", view(&"x".repeat(257))),
        ("ref", view(&"\u{1f381}".repeat(65))),
        ("ref", entry(HistoryKind::Search, "4111 1111 1111 1111")),
        ("time", timed(future)),
        ("time", timed(Timestamp { seconds: i64::MAX, nanos: 0 })),
        ("dwell", dwelling(-1, 0)),
        ("dwell", dwelling(86_401, 0)),
        ("dwell", dwelling(i64::MAX, 0)),
        ("dwell", dwelling(0, -1)),
    ];
    for (field, bad) in table {
        let shown = format!("{bad:?}");
        let request = appending(owner(&token), vec![view("fine"), bad]);
        let status = caller.shoppers().append_history(request).await;
        let status = status.refused(Code::InvalidArgument, "FIELD_INVALID");
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, format!("entries[1].{field}"), "{shown}");
    }
    for entries in [vec![], vec![view("lamp"); 101]] {
        let status = caller.shoppers().append_history(appending(owner(&token), entries)).await;
        let status = status.refused(Code::InvalidArgument, "FIELD_INVALID");
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "entries");
    }
    let listing = pb::ListHistoryRequest { owner: Some(owner(&token)), kind: 99 };
    caller
        .shoppers()
        .list_history(listing)
        .await
        .refused(Code::InvalidArgument, "FIELD_INVALID");
    assert_eq!(list(&caller, owner(&token)).await, [], "all of a call or nothing");
    // An article's number may look like a card's.
    append(&caller, owner(&token), vec![view("4111111111111111")]).await;
    assert_eq!(list(&caller, owner(&token)).await.len(), 1);
}

#[tokio::test]
async fn a_call_with_a_request_id_adds_its_dwell_once() {
    let (_stack, caller, token) = start().await;
    consent(&caller, owner(&token), true).await;
    let view = pb::HistoryEntry { dwell: Some(seconds(5)), ..view("lamp") };
    let request = pb::AppendHistoryRequest {
        request_id: Uuid::from_u128(1).to_string(),
        ..appending(owner(&token), vec![view.clone()])
    };
    for _ in 0..3 {
        let answer = caller.shoppers().append_history(request.clone()).await.answer();
        assert_eq!(answer.outcome(), HistoryOutcome::Kept);
    }
    assert_eq!(list(&caller, owner(&token)).await[0].dwell, Some(seconds(5)));
    let other = pb::AppendHistoryRequest { entries: vec![view.clone(), view], ..request };
    caller
        .shoppers()
        .append_history(other)
        .await
        .refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
}

#[tokio::test]
async fn the_devices_of_a_subject_share_one_history() {
    let (_stack, caller, _) = start().await;
    let (_, phone) = log_in(&caller, "ann").await;
    let (_, laptop) = log_in(&caller, "ann").await;
    consent(&caller, owner(&phone), true).await;
    append(&caller, owner(&laptop), vec![view("lamp")]).await;
    assert_eq!(refs(&list(&caller, owner(&phone)).await), ["lamp"]);
    consent(&caller, owner(&laptop), false).await;
    assert_eq!(list(&caller, owner(&phone)).await, []);
}
