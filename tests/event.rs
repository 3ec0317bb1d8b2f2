//! Events: every one of them, in order per subject, whoever else holds a transaction open.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use shared::id::TenantId;
use shared::issuer::Grant;
use shared::outbox::Event;
use shared::pb::common::WatchEventsRequest;
use sqlx::{Acquire as _, PgConnection};
use tonic::Code;

use crate::harness::shop::{add_line, create_catalog, create_session, create_touchpoint, revoke, ship, web};
use crate::harness::{Answer as _, Caller, Database, Options, Stack, Watch, workload};

const WRITERS: usize = 8;
const EVENTS: i64 = 200;

fn event(stack: &Stack, subject: &str, n: i64) -> Event {
    Event {
        tenant: "shop".parse::<TenantId>().unwrap(),
        kind: "test.counted",
        subject: subject.to_owned(),
        principal: "system".to_owned(),
        at: stack.now(),
        data: json!({"n": n}),
        trace_parent: String::new(),
    }
}

async fn append(stack: &Stack, db: &mut PgConnection, subject: &str, n: i64) {
    session_svc::OUTBOX.append(db, &event(stack, subject, n)).await.unwrap();
}

/// Writes events of one subject, each in a transaction of its own, some of which stay open for a while.
async fn write(stack: &Stack, writer: usize) {
    let mut db = stack.database.connect().await;
    for n in 0..EVENTS {
        let mut tx = db.begin().await.unwrap();
        append(stack, &mut tx, &format!("writer-{writer}"), n).await;
        if n % 17 == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        tx.commit().await.unwrap();
    }
}

/// Opens a transaction that has an id, and leaves it so.
async fn idle(database: &Database) -> PgConnection {
    let mut db = database.connect().await;
    sqlx::raw_sql("begin; select pg_current_xact_id()")
        .execute(&mut db)
        .await
        .unwrap();
    db
}

#[tokio::test]
async fn a_watcher_who_reconnects_misses_nothing_of_eight_writers_beside_idle_transactions() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("reader"));
    let elsewhere = Database::empty();
    let _held = (idle(&elsewhere).await, idle(&stack.database).await);
    let mut late = stack.database.connect().await;
    let mut late = late.begin().await.unwrap();
    append(&stack, &mut late, "late", 0).await;
    let mut watch = Watch::open(caller.session_events()).await;
    let reading = async {
        let mut seen: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        let mut ids = BTreeSet::new();
        let expected = WRITERS * usize::try_from(EVENTS).unwrap();
        for n in 1.. {
            let event = watch.next().await;
            // At least once: what comes again is known by its id.
            if ids.insert(event.event_id) {
                let counted = event.data.unwrap().fields["n"].kind.clone();
                let Some(prost_types::value::Kind::NumberValue(number)) = counted else {
                    panic!("{counted:?}")
                };
                #[expect(clippy::cast_possible_truncation, reason = "a small whole number")]
                seen.entry(event.subject).or_default().push(number as i64);
            }
            if ids.len() == expected {
                break;
            }
            if n % 50 == 0 {
                let request = WatchEventsRequest { resume_token: watch.token.clone(), ..Default::default() };
                watch = Watch::with(caller.session_events(), request).await.unwrap();
            }
        }
        seen
    };
    let writing = futures_util::future::join_all((0..WRITERS).map(|writer| write(&stack, writer)));
    let (seen, _) = tokio::join!(reading, writing);
    assert_eq!(seen.len(), WRITERS);
    for (subject, numbers) in seen {
        assert_eq!(numbers, (0..EVENTS).collect::<Vec<_>>(), "{subject}");
    }
    // Its id is smaller than all of those, and it commits only now.
    late.commit().await.unwrap();
    assert_eq!(watch.next().await.subject, "late");
}

#[tokio::test]
async fn a_token_of_before_a_long_silence_goes_on_there() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("reader"));
    let token = Watch::open(caller.session_events()).await.token;
    let mut db = stack.database.connect().await;
    // More than the feed reads at once.
    for n in 0..1200 {
        append(&stack, &mut db, "pages", n).await;
    }
    let request = WatchEventsRequest { resume_token: token, ..Default::default() };
    let mut watch = Watch::with(caller.session_events(), request).await.unwrap();
    let mut last = 0;
    for _ in 0..1200 {
        let id: i64 = watch.next().await.event_id.parse().unwrap();
        assert!(id > last, "{id} after {last}");
        last = id;
    }
}

#[tokio::test]
async fn tokens_of_others_are_refused_and_those_of_another_database_have_expired() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("reader"));
    let token = Watch::open(caller.session_events()).await.token;
    let with = async |caller: &Caller, resume_token: &str| {
        let request = WatchEventsRequest { resume_token: resume_token.to_owned(), ..Default::default() };
        caller.session_events().watch_events(request).await
    };
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..workload("reader") });
    let invalid = (Code::InvalidArgument, "RESUME_TOKEN_INVALID");
    with(&acme, &token).await.refused(invalid.0, invalid.1);
    let mut flipped = token.clone().into_bytes();
    flipped[40] = if flipped[40] == b'A' { b'B' } else { b'A' };
    let flipped = String::from_utf8(flipped).unwrap();
    for garbage in ["nonsense", &flipped, &token[..20], &"A".repeat(4000), "ä"] {
        with(&caller, garbage).await.refused(invalid.0, invalid.1);
    }
    let elsewhere = Database::migrated();
    let options = Options { database_url: Some(elsewhere.url.clone()), ..Options::default() };
    let service = stack.session_svc(&options);
    let refused = with(&caller.at_session(&service), &token).await;
    refused.refused(Code::FailedPrecondition, "RESUME_TOKEN_EXPIRED");
    drop(service);
}

#[tokio::test]
async fn a_watch_is_narrowed_by_type_and_subject_and_never_shows_another_tenants() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    let filtered = async |types: &[&str], subject: &str| {
        let request = WatchEventsRequest {
            types: types.iter().map(ToString::to_string).collect(),
            subject: subject.to_owned(),
            ..Default::default()
        };
        Watch::with(caller.session_events(), request).await.unwrap()
    };
    let mut carts = filtered(&["cart."], "").await;
    let mut revocations = filtered(&["session.revoked", "touchpoint.created"], "").await;
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..workload("storefront") });
    create_touchpoint(&acme, web()).await;
    create_touchpoint(&caller, web()).await;
    let (session, token) = create_session(&caller).await;
    let cart = add_line(&caller, &token, "85123A", 2).await;
    let mut of_cart = filtered(&[], &cart.cart_id).await;
    add_line(&caller, &token, "85123A", 1).await;
    revoke(&caller, &session).await;
    let added = carts.next().await;
    assert_eq!((added.r#type.as_str(), &added.subject), ("cart.line_added", &cart.cart_id));
    assert_eq!(added.principal, "tandem-local|storefront");
    assert_eq!(revocations.next().await.subject, "web");
    assert_eq!(revocations.next().await.subject, session.session_id);
    assert_eq!(of_cart.next().await.subject, cart.cart_id);
    for bad in [vec!["cart.".to_owned(); 33], vec!["cart".to_owned()], vec![String::new()]] {
        let bad = WatchEventsRequest { types: bad, ..Default::default() };
        let refused = caller.session_events().watch_events(bad).await;
        refused.refused(Code::InvalidArgument, "FIELD_INVALID");
    }
}

#[tokio::test]
async fn every_transition_of_a_release_is_told_in_order() {
    let stack = Stack::releases();
    let caller = stack.caller(&workload("ci"));
    let mut watch = Watch::open(caller.release_events()).await;
    create_catalog(&caller).await;
    ship(&caller, "1.0", &[]).await;
    let mut told = Vec::new();
    while told.last().is_none_or(|kind| kind != "release.released") {
        told.push(watch.next().await.r#type);
    }
    let expected = [
        "approval_policy.created",
        "component.created",
        "environment.created",
        "release.created",
        "release.submitted",
        "release.approved",
        "rollout.started",
        "release.activated",
        "rollout.succeeded",
        "release.released",
    ];
    assert_eq!(told, expected);
}
