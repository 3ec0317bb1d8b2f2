//! Releases that are stopped where the visits are: at once, at every replica, with release-svc or without it.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::TimeDelta;
use session_svc::domain::lineage::Lineage;
use session_svc::domain::session::{Session, State};
use session_svc::domain::token::TokenHash;
use session_svc::domain::visit::{Pin, Pins, Release, Visit};
use session_svc::store::session::create::{self, New};
use session_svc::store::visit::{self, Beginning, Touch};
use shared::id::{CartId, ReleaseId, SessionId, TenantId};
use shared::issuer::Grant;
use shared::pb::session as pb;
use shared::pb::session::Arm;
use shared::time::to_proto;
use sqlx::Connection as _;
use tonic::Code;
use uuid::Uuid;

use crate::harness::router::{Router, moving, release, rolling, rollout_id};
use crate::harness::shop::{
    add_line, begin_checkout, complete_checkout, create_session, create_session_with_pins, create_touchpoint,
    get_cart, pin, request_id, web,
};
use crate::harness::{Answer as _, Caller, Options, Stack, eventually, person};
use crate::visit::{served, start};

fn killing(n: u128) -> pb::KillReleaseRequest {
    pb::KillReleaseRequest {
        component: "storefront".to_owned(),
        release_id: release(n).release_id,
        reason: "it burns".to_owned(),
        request_id: String::new(),
    }
}

pub(crate) async fn kill(caller: &Caller, n: u128) -> pb::Kill {
    caller.visits().kill_release(killing(n)).await.answer().kill.unwrap()
}

pub(crate) async fn unkill(caller: &Caller, n: u128) -> Option<pb::Kill> {
    let request = pb::UnkillReleaseRequest {
        release_id: release(n).release_id,
        reason: "put out".to_owned(),
        request_id: String::new(),
    };
    caller.visits().unkill_release(request).await.answer().kill
}

async fn kills(caller: &Caller) -> Vec<pb::Kill> {
    caller.visits().list_kills(pb::ListKillsRequest::default()).await.answer().kills
}

#[tokio::test]
async fn a_killed_release_lets_go_of_everyone_at_every_replica_and_nobody_comes_back_in_its_rollout() {
    let (stack, router, caller) = start().await;
    let replica = stack.session_svc(&router.linked());
    let other = caller.at_session(&replica);
    router.send_to(2, moving(rolling(10_000, &[]))).await;
    let (browsing, paying) = (create_session(&caller).await.1, create_session(&caller).await.1);
    let cart = add_line(&caller, &paying, "85123A", 3).await;
    begin_checkout(&caller, &paying).await;
    for token in [&browsing, &paying] {
        assert_eq!(served(&other, token).await.1, Arm::Canary);
    }
    let killed = kill(&caller, 1).await;
    assert_eq!((killed.component.as_str(), killed.kill_time), ("storefront", Some(to_proto(stack.now()))));
    // Here at once, a checkout or not; there before long.
    for token in [&browsing, &paying] {
        assert_eq!(served(&caller, token).await, ("1.0".to_owned(), Arm::Control));
    }
    assert_eq!(pin(&create_session_with_pins(&caller).await.pins).0, "1.0");
    eventually("the other replica", || async {
        (pin(&create_session_with_pins(&other).await.pins).0 == "1.0").then_some(())
    })
    .await;
    assert_eq!(get_cart(&caller, &paying).await.lines, cart.lines);
    complete_checkout(&caller, &paying, "order-1").await;
    // Once more is the same one.
    stack.advance(TimeDelta::seconds(5));
    assert_eq!(kill(&other, 1).await.kill_time, killed.kill_time);
    assert_eq!(unkill(&caller, 1).await.unwrap().kill_time, killed.kill_time);
    assert_eq!((unkill(&caller, 1).await, kills(&caller).await), (None, vec![]));
    let events = "select count(*) from session.events where kind in ('release.killed', 'release.unkilled')";
    assert_eq!(stack.database.count(events).await, 2);
    assert_eq!(pin(&create_session_with_pins(&caller).await.pins).0, "1.1");
    stack.advance(TimeDelta::minutes(6));
    for token in [&browsing, &paying] {
        assert_eq!(served(&caller, token).await, ("1.0".to_owned(), Arm::Control), "as I8 says");
    }
}

#[tokio::test]
async fn where_nothing_else_can_be_served_a_kill_takes_the_pin_away() {
    let (_stack, _router, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    kill(&caller, 0).await;
    assert_eq!(served(&caller, &token).await, (String::new(), Arm::Unspecified));
    assert_eq!(create_session_with_pins(&caller).await.pins, []);
    unkill(&caller, 0).await;
    assert_eq!(served(&caller, &token).await.0, "1.0");
}

#[tokio::test]
async fn a_kill_works_while_release_svc_is_away_and_is_reported_once_when_it_is_back() {
    let mut stack = Stack::sessions();
    let caller = stack.caller(&person("ada"));
    create_touchpoint(&caller, web()).await;
    let killed = kill(&caller, 1).await;
    assert_eq!((killed.report_time, kills(&caller).await), (None, vec![killed.clone()]));
    stack.stop_session().await;
    let router = Router::start(&stack).await;
    stack.session = Some(stack.session_svc(&router.linked()));
    let caller = stack.caller(&person("ada"));
    // It was kept.
    router.send(rolling(10_000, &[])).await;
    assert_eq!(pin(&create_session_with_pins(&caller).await.pins).0, "1.0");
    eventually("the report", || async { kills(&caller).await[0].report_time }).await;
    let told = router.kills();
    assert_eq!(told.len(), 1);
    assert_eq!((&told[0].release_id, &told[0].reason), (&killed.release_id, &killed.reason));
    assert_eq!((&told[0].principal, told[0].kill_time), (&killed.principal, killed.kill_time));
    drop(router);
}

#[tokio::test]
async fn a_kill_that_release_svc_refuses_keeps_back_nothing_else_and_is_told_again() {
    let (stack, router, caller) = start().await;
    router.refuse_kills(Some(release(7)));
    for n in [7, 8] {
        kill(&caller, n).await;
        stack.advance(TimeDelta::seconds(1));
    }
    let report_time = |n| {
        let (caller, of) = (&caller, release(n).release_id);
        async move { kills(caller).await.into_iter().find(|kill| kill.release_id == of)?.report_time }
    };
    eventually("the later one", || report_time(8)).await;
    router.send(rolling(10_000, &[])).await;
    create_session(&caller).await;
    router.told_of(rollout_id(9), &[(0, true, "", 1)]).await;
    assert_eq!((report_time(7).await, router.kills().len()), (None, 1));
    router.refuse_kills(None);
    eventually("the one that was refused", || report_time(7)).await;
    assert_eq!(router.kills().len(), 2);
}

#[tokio::test]
async fn a_kill_is_refused_with_what_is_wrong_with_it() {
    let stack = Stack::sessions();
    let caller = stack.caller(&person("ada"));
    let wrong = [
        pb::KillReleaseRequest { component: "Shop".to_owned(), ..killing(1) },
        pb::KillReleaseRequest { release_id: "1.0".to_owned(), ..killing(1) },
        pb::KillReleaseRequest { reason: String::new(), ..killing(1) },
        pb::KillReleaseRequest { request_id: "1".to_owned(), ..killing(1) },
    ];
    for request in wrong {
        let refused = caller.visits().kill_release(request).await;
        refused.refused(Code::InvalidArgument, "FIELD_INVALID");
    }
    let limited = Grant { touchpoints: Some(vec!["web".to_owned()]), ..person("bob") };
    let reader = Grant { scope: "session.read".to_owned(), ..person("bob") };
    for (who, reason) in [(limited, "CALLER_TOUCHPOINT_REFUSED"), (reader, "CALLER_SCOPE_MISSING")] {
        let caller = stack.caller(&who);
        let refused = caller.visits().kill_release(killing(1)).await;
        refused.refused(Code::PermissionDenied, reason);
    }
    let once = pb::KillReleaseRequest { request_id: request_id(1), ..killing(1) };
    let first = caller.visits().kill_release(once.clone()).await.answer();
    assert_eq!(caller.visits().kill_release(once.clone()).await.answer(), first);
    let other = pb::KillReleaseRequest { reason: "other".to_owned(), ..once };
    let reused = caller.visits().kill_release(other).await;
    reused.refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
    let fill = "insert into session.kills (tenant_id, release_id, component_id, principal, reason, killed_at) \
                select 'shop', gen_random_uuid(), 'storefront', 'x|y', 'many', '2030-01-01' from generate_series(1, 999)";
    sqlx::query(fill).execute(&mut stack.database.connect().await).await.unwrap();
    caller
        .visits()
        .kill_release(killing(2))
        .await
        .refused(Code::ResourceExhausted, "KILL_LIMIT");
    // What is stopped already is answered all the same.
    kill(&caller, 1).await;
    let mut seen = BTreeSet::new();
    let mut page_token = String::new();
    loop {
        let page = pb::ListKillsRequest { page_size: 300, page_token };
        let page = caller.visits().list_kills(page).await.answer();
        seen.extend(page.kills.into_iter().map(|kill| kill.release_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen.len(), 1000);
}

/// A visit of a session on the `n`th release.
fn on(n: u128) -> Visit {
    let release = Release { id: ReleaseId::from_uuid(Uuid::from_u128(n)), version: format!("1.{n}") };
    let pins = Pins::from([("storefront".parse().unwrap(), Pin { release, arm: None, dealt_step: None })]);
    Visit { pins, ..Visit::default() }
}

fn session_on(stack: &Stack, id: u8, n: u128) -> Session {
    let now = stack.now();
    Session {
        id: SessionId::new(now, [id; 10]),
        touchpoint: "web".parse().unwrap(),
        lineage: Lineage::new(TokenHash::from_stored([id; 32])),
        epoch: 0,
        shopper: None,
        identity: None,
        is_remembered: false,
        device: None,
        place: None,
        created_at: now,
        last_seen_at: now,
        absolute_deadline: now + TimeDelta::hours(1),
        visit: Visit { started_at: now, ..on(n) },
        in_checkout: false,
        held_until: None,
        state: State::Open,
    }
}

/// One connection stores a visit on a release and has not committed yet when another kills the release: the kill waits for it
/// to be over, and nothing that puts a session on the release is stored afterwards, whatever else a replica knows.
#[tokio::test]
async fn i18_after_a_kill_no_assignment_of_the_release_commits() {
    let stack = Stack::sessions_with(&Options::default());
    let caller = stack.caller(&person("ada"));
    create_touchpoint(&caller, web()).await;
    let tenant: TenantId = "shop".parse().unwrap();
    let add = async |db: &mut sqlx::PgConnection, session: &Session| {
        let new = New { tenant: &tenant, session, subject_digest: None, units: &[] };
        create::insert(db, &[new]).await.unwrap()
    };
    let (mut early, mut late) = (stack.database.connect().await, stack.database.connect().await);
    let (first, second) = (session_on(&stack, 1, 1), session_on(&stack, 2, 2));
    assert_eq!(add(&mut late, &second).await, [true]);
    let mut tx = early.begin().await.unwrap();
    assert_eq!(add(&mut tx, &first).await, [true]);
    let mut killing = Box::pin(kill(&caller, 1));
    let waits = tokio::time::timeout(Duration::from_millis(500), &mut killing).await;
    assert!(waits.is_err(), "the kill answers before what it cannot see is over");
    tx.commit().await.unwrap();
    killing.await;

    assert_eq!(add(&mut late, &session_on(&stack, 3, 1)).await, [false]);
    let (stored, id) = (second.visit.clone(), second.id);
    let killed = Visit { started_at: stack.now() + TimeDelta::minutes(9), ..on(1) };
    let next = Beginning { visit: killed.clone(), stored: stored.clone(), is_held: true, units: vec![] };
    let now = stack.now();
    assert!(!visit::move_visit(&mut late, &tenant, id, &next, now).await.unwrap());
    let cart = CartId::new(now, [1; 10]);
    assert!(!visit::hold(&mut late, &tenant, id, cart, &stored, &killed).await.unwrap());
    let until = (now + TimeDelta::hours(1), "why");
    assert!(!visit::hold_pin(&mut late, &tenant, id, until, &stored, &killed).await.unwrap());
    let touch = Touch { tenant: tenant.clone(), session: id, seen_at: now, visit: Some(next) };
    let begun = visit::begin_visits(&mut late, &[&touch], now).await.unwrap();
    assert!(begun.len() == 1 && !begun[0].is_new_visit);
    // Another release goes through the same door.
    let other = Visit { pins: on(3).pins, ..killed };
    assert!(visit::hold(&mut late, &tenant, id, cart, &stored, &other).await.unwrap());
}

/// The kill comes without its event here, so that no feed tells of it.
#[tokio::test]
async fn a_replica_that_has_not_heard_of_a_kill_stores_nothing_against_it() {
    let (stack, router, caller) = start().await;
    let (_, running) = create_session(&caller).await;
    router.send(moving(rolling(10_000, &[]))).await;
    let kill = "insert into session.kills (tenant_id, release_id, component_id, principal, reason, killed_at) \
                values ('shop', $1, 'storefront', 'x|y', 'elsewhere', '2030-01-01')";
    let kill = sqlx::query(kill).bind(Uuid::from_u128(1));
    kill.execute(&mut stack.database.connect().await).await.unwrap();
    assert_eq!(served(&caller, &running).await.0, "1.0");
    assert_eq!(pin(&create_session_with_pins(&caller).await.pins).0, "1.0");
}
