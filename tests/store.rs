//! Guards in SQL, on two connections: the database decides races, whatever Rust believed before.

use chrono::TimeDelta;
use futures_util::future::join_all;
use session_svc::domain::session::RevokeReason;
use session_svc::domain::visit::Visit;
use session_svc::store::cart::Place;
use session_svc::store::visit::{self, Beginning, Touch};
use session_svc::store::{cart, revocation, session};
use shared::db::{Db, migrate};
use shared::id::{CartId, SessionId, TenantId};
use shared::serve::Lifecycle;
use sqlx::{Connection as _, PgConnection, Row as _};
use tokio::time::{Duration, timeout};

use crate::harness::shop::{
    add_line, begin_checkout, complete_checkout, create_session, create_touchpoint, session_id, web,
};
use crate::harness::{Database, Stack, workload};

fn tenant() -> TenantId {
    "shop".parse().unwrap()
}

async fn a_session() -> (Stack, SessionId, String) {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    let (session, token) = create_session(&caller).await;
    (stack, session_id(&session), token)
}

#[tokio::test]
async fn a_session_is_revoked_once() {
    let (stack, id, _) = a_session().await;
    let (mut one, mut two) = (stack.database.connect().await, stack.database.connect().await);
    let mut first = one.begin().await.unwrap();
    assert!(
        revocation::revoke(&mut first, &tenant(), id, stack.now(), RevokeReason::Logout)
            .await
            .unwrap()
    );
    let (now, tenant) = (stack.now(), tenant());
    let second = revocation::revoke(&mut two, &tenant, id, now, RevokeReason::Admin);
    tokio::pin!(second);
    assert!(timeout(Duration::from_millis(100), &mut second).await.is_err(), "it waits for the first");
    first.commit().await.unwrap();
    assert!(!second.await.unwrap());
    let stored = session::find(&mut one, &tenant, id).await.unwrap().unwrap();
    assert!(matches!(
        stored.state,
        session_svc::domain::session::State::Revoked { reason: RevokeReason::Logout, .. }
    ));
}

#[tokio::test]
async fn a_session_is_held_until_the_last_of_its_checkouts_ends_in_the_visit_it_was_answered() {
    let (stack, id, _) = a_session().await;
    let mut db = stack.database.connect().await;
    let stored = session::find(&mut db, &tenant(), id).await.unwrap().unwrap().visit;
    let answered = Visit { started_at: stack.now() + TimeDelta::minutes(40), ..stored.clone() };
    let (euros, pounds) =
        (CartId::new(stack.now(), stack.entropy.bytes()), CartId::new(stack.now(), stack.entropy.bytes()));
    for cart in [euros, pounds, euros] {
        assert!(visit::hold(&mut db, &tenant(), id, cart, &stored, &answered).await.unwrap());
    }
    for (cart, is_held) in [(pounds, true), (euros, false)] {
        visit::release_hold(&mut db, &tenant(), id, cart).await.unwrap();
        let session = session::find(&mut db, &tenant(), id).await.unwrap().unwrap();
        assert_eq!((session.in_checkout, &session.visit), (is_held, &answered));
        let to = beginning(answered.clone(), answered.clone());
        assert_eq!(visit::move_visit(&mut db, &tenant(), id, &to, stack.now()).await.unwrap(), !is_held);
    }
    let elsewhere = Visit { started_at: stack.now(), ..answered };
    assert!(
        !visit::hold(&mut db, &tenant(), id, euros, &elsewhere, &elsewhere)
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn the_previous_binary_starts_on_the_schema_of_the_next() {
    let (stack, ..) = a_session().await;
    let mut db = stack.database.connect().await;
    let next =
        "insert into session._sqlx_migrations (version, description, success, checksum, execution_time)
        values (9999, 'of the next', true, ''::bytea, 0)";
    sqlx::raw_sql(next).execute(&mut db).await.unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    migrate(&stack.database.url, &session_svc::MIGRATOR, &stop).await.unwrap();
}

/// A visit in the place of another, decided on as one that nothing holds.
fn beginning(visit: Visit, stored: Visit) -> Beginning {
    Beginning { visit, stored, is_held: false, units: vec![] }
}

/// Whether the visit changed, of a touch whose row is free.
async fn begin(db: &mut PgConnection, touch: &Touch) -> Vec<bool> {
    let begun = visit::begin_visits(db, &[touch], touch.seen_at).await.unwrap();
    begun.into_iter().map(|begun| begun.is_new_visit).collect()
}

#[tokio::test]
async fn a_revoked_session_takes_no_hold_and_no_touch() {
    let (stack, id, _) = a_session().await;
    let mut db = stack.database.connect().await;
    let before = session::find(&mut db, &tenant(), id).await.unwrap().unwrap();
    revocation::revoke(&mut db, &tenant(), id, stack.now(), RevokeReason::Admin)
        .await
        .unwrap();
    let cart = CartId::new(stack.now(), stack.entropy.bytes());
    assert!(
        !visit::hold(&mut db, &tenant(), id, cart, &before.visit, &before.visit)
            .await
            .unwrap()
    );
    let seen_at = stack.now() + TimeDelta::minutes(5);
    let moved = Visit { started_at: seen_at, ..before.visit.clone() };
    let touch = Touch { tenant: tenant(), session: id, seen_at, visit: Some(beginning(moved, before.visit)) };
    assert_eq!(begin(&mut db, &touch).await, [false]);
    visit::touch(&mut db, &[&touch]).await.unwrap();
    assert_eq!(
        session::find(&mut db, &tenant(), id).await.unwrap().unwrap().last_seen_at,
        before.last_seen_at
    );
}

#[tokio::test]
async fn a_late_touch_takes_no_time_back_and_no_visit_it_did_not_know() {
    let (stack, id, _) = a_session().await;
    let mut db = stack.database.connect().await;
    let stored = session::find(&mut db, &tenant(), id).await.unwrap().unwrap().visit;
    let touch = |minutes, visit| Touch {
        tenant: tenant(),
        session: id,
        seen_at: stack.now() + TimeDelta::minutes(minutes),
        visit,
    };
    let next = Visit { started_at: stack.now() + TimeDelta::minutes(40), ..stored.clone() };
    let moved = touch(40, Some(beginning(next.clone(), stored.clone())));
    assert_eq!(begin(&mut db, &moved).await, [true]);
    let other = Visit { started_at: stack.now() + TimeDelta::minutes(35), ..stored.clone() };
    let late = touch(35, Some(beginning(other, stored)));
    assert_eq!(begin(&mut db, &late).await, [false]);
    visit::touch(&mut db, &[&late]).await.unwrap();
    let session = session::find(&mut db, &tenant(), id).await.unwrap().unwrap();
    assert_eq!((session.last_seen_at, session.visit), (next.started_at, next));
}

#[tokio::test]
async fn touches_of_the_same_sessions_never_wait_in_a_circle() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(session_id(&create_session(&caller).await.0));
    }
    let rounds = (0..4).map(|writer| {
        let mut ids = ids.clone();
        if writer % 2 == 1 {
            ids.reverse();
        }
        let (stack, tenant) = (&stack, tenant());
        async move {
            let mut db = stack.database.connect().await;
            // As the service waits: whoever would have to for longer goes row by row.
            sqlx::raw_sql("set lock_timeout = 20").execute(&mut db).await.unwrap();
            for second in 0..25 {
                let seen_at = stack.now() + TimeDelta::seconds(second);
                let touch =
                    |id: &SessionId| Touch { tenant: tenant.clone(), session: *id, seen_at, visit: None };
                let touches: Vec<_> = ids.iter().map(touch).collect();
                let touches: Vec<_> = touches.iter().collect();
                if let Err(error) = visit::touch(&mut db, &touches).await {
                    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
                    assert_eq!(
                        code.as_deref(),
                        Some("55P03"),
                        "it gave up before anybody waited in a circle: {error}"
                    );
                }
            }
        }
    });
    join_all(rounds).await;
}

#[tokio::test]
async fn a_cart_is_written_over_by_nobody_who_read_an_older_one() {
    let (stack, _, token) = a_session().await;
    let caller = stack.caller(&workload("storefront"));
    let seen = add_line(&caller, &token, "85123A", 1).await;
    let mut db = stack.database.connect().await;
    let (group, currency, tenant) = ("web".parse().unwrap(), "EUR".parse().unwrap(), tenant());
    let shopper = seen.shopper_id.parse().unwrap();
    let place = Place { tenant: &tenant, shopper, group: &group, currency };
    let mut stale = cart::find_open(&mut db, &place).await.unwrap().unwrap();
    add_line(&caller, &token, "71053", 1).await;
    stale.version += 1;
    assert!(!cart::update(&mut db, &tenant, &stale).await.unwrap());
    begin_checkout(&caller, &token).await;
    complete_checkout(&caller, &token, "order-1").await;
    let mut ordered = cart::find(&mut db, &tenant, shopper, stale.id).await.unwrap().unwrap();
    ordered.version += 1;
    assert!(!cart::update(&mut db, &tenant, &ordered).await.unwrap(), "an order does not change any more");
}

#[tokio::test]
async fn the_second_open_cart_of_a_shopper_waits_for_the_first_and_is_not_made() {
    let (stack, _, token) = a_session().await;
    let caller = stack.caller(&workload("storefront"));
    let seen = add_line(&caller, &token, "85123A", 1).await;
    let (mut one, mut two) = (stack.database.connect().await, stack.database.connect().await);
    let (tenant, shopper, id) = (tenant(), seen.shopper_id.parse().unwrap(), seen.cart_id.parse().unwrap());
    let made = cart::find(&mut one, &tenant, shopper, id).await.unwrap().unwrap();
    sqlx::query("delete from session.carts").execute(&mut one).await.unwrap();
    let mut first = one.begin().await.unwrap();
    assert!(cart::insert(&mut first, &tenant, &made, made.created_at).await.unwrap());
    let mut other = made.clone();
    other.id = CartId::new(stack.now(), stack.entropy.bytes());
    let second = cart::insert(&mut two, &tenant, &other, other.created_at);
    tokio::pin!(second);
    assert!(timeout(Duration::from_millis(100), &mut second).await.is_err(), "it waits for the first");
    first.commit().await.unwrap();
    assert!(!second.await.unwrap());
}

#[tokio::test]
async fn connections_of_services_limit_what_a_stopped_one_holds() {
    let database = Database::empty();
    let db = Db::new(&database.url, 2, "test").unwrap();
    let mut connection = db.connection().await.unwrap();
    let settings = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"];
    for (setting, value) in settings.iter().zip(["2s", "1s", "1s"]) {
        let found: String = sqlx::query_scalar("select current_setting($1)")
            .bind(setting)
            .fetch_one(&mut *connection)
            .await
            .unwrap();
        assert_eq!(found, value, "{setting}");
    }
}

async fn history(database: &Database) -> Vec<(String, i64)> {
    let mut db: PgConnection = database.connect().await;
    let tables = "select format('%I.%I', schemaname, tablename) as name from pg_tables \
                  where schemaname in ('session', 'release') order by 1";
    let mut history = Vec::new();
    for row in sqlx::query(tables).fetch_all(&mut db).await.unwrap() {
        let name: String = row.get("name");
        let sql = format!("select count(*) from {name}");
        history.push((name, sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut db).await.unwrap()));
    }
    history
}

#[tokio::test]
async fn migrations_run_once_whoever_else_runs_them() {
    let (database, stop) = (Database::empty(), Lifecycle::default().stop);
    let run = async || {
        migrate(&database.url, &session_svc::MIGRATOR, &stop).await?;
        migrate(&database.url, &release_svc::MIGRATOR, &stop).await
    };
    for outcome in futures_util::future::join_all((0..4).map(|_| run())).await {
        outcome.unwrap();
    }
    let after = history(&database).await;
    assert!(after.len() > 10, "{after:?}");
    run().await.unwrap();
    assert_eq!(history(&database).await, after);
}
