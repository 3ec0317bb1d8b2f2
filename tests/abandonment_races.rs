//! Abandonment under races: replicas that work at once and are killed, and shoppers who come back at the same moment.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
use rand::{RngExt as _, SeedableRng as _};
use shared::id::CartId;
use shared::pb::session as pb;
use shared::time::at;
use sqlx::Connection as _;

use crate::abandonment::start;
use crate::harness::carts::{HOUR, add, kinds, looked, see};
use crate::harness::shop::{add_line, create_session};
use crate::harness::{Caller, Options, START, eventually, workload};

/// So many carts of shoppers of their own.
async fn carts(caller: &Caller, count: usize) -> Vec<pb::Cart> {
    let made = stream::iter(0..count).map(|_| async {
        let (_, token) = create_session(caller).await;
        add_line(caller, &token, "85123A", 1).await
    });
    made.buffered(8).collect().await
}

/// Every writing of events takes a while, so that a replica that is killed while it works is so mostly between its first write
/// and its commit.
#[tokio::test]
async fn replicas_that_are_killed_at_random_tell_of_each_cart_once_an_epoch() {
    const CARTS: usize = 250;
    let (mut stack, caller) = start().await;
    let mut all = carts(&caller, CARTS).await;
    let slow = "create function public.slow() returns trigger language plpgsql as $$
            begin perform pg_sleep(0.03); return null; end $$;
        create trigger slow after insert on session.events for each statement execute function public.slow()";
    sqlx::raw_sql(slow).execute(&mut stack.database.connect().await).await.unwrap();
    let mut random = rand::rngs::StdRng::seed_from_u64(7);
    let mut killed = 0;
    for epoch in 1..=3 {
        stack.stop_session().await;
        stack.advance(HOUR);
        let mut replicas =
            vec![stack.session_svc(&Options::default()), stack.session_svc(&Options::default())];
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(random.random_range(5..120))).await;
            // Dropped, it stops where it is, without a word to anyone.
            let victim = random.random_range(0..replicas.len());
            drop(replicas.swap_remove(victim));
            killed += 1;
            replicas.push(stack.session_svc(&Options::default()));
        }
        stack.session = replicas.pop();
        let caller = stack.caller(&workload("storefront"));
        looked(&stack).await;
        // Half of them come back, from which on they are in another epoch than the others.
        let back = CARTS / 2 / epoch;
        for cart in &mut all[..back] {
            *cart = add(&caller, cart, 1).await;
        }
    }
    assert_eq!(killed, 30);
    let mut db = stack.database.connect().await;
    let told = "select subject, data::json->>'epoch', kind, count(*) from session.events
        where kind in ('cart.abandoned', 'cart.recovered') group by 1, 2, 3";
    let told: Vec<(String, String, String, i64)> = sqlx::query_as(told).fetch_all(&mut db).await.unwrap();
    assert!(told.iter().all(|(.., count)| *count == 1), "each once");
    let mut abandoned: BTreeMap<&str, usize> = BTreeMap::new();
    for (subject, _, kind, _) in &told {
        if kind == "cart.abandoned" {
            *abandoned.entry(subject).or_default() += 1;
        }
    }
    for (position, cart) in all.iter().enumerate() {
        let came_back = (1..=2).filter(|epoch| position < CARTS / 2 / epoch).count();
        assert_eq!(abandoned.get(cart.cart_id.as_str()), Some(&(1 + came_back)), "{position}");
    }
}

/// The worker has raised the flag and not committed yet: the shopper's change waits, and then lowers it.
#[tokio::test]
async fn a_change_that_waits_for_the_flag_lowers_it() {
    let (stack, caller) = start().await;
    let cart = carts(&caller, 1).await.remove(0);
    let slow = "create function public.slow() returns trigger language plpgsql as $$
            begin
                if new.kind = 'cart.abandoned' then perform pg_sleep(0.3); end if;
                return new;
            end $$;
        create trigger slow before insert on session.events for each row execute function public.slow()";
    sqlx::raw_sql(slow).execute(&mut stack.database.connect().await).await.unwrap();
    stack.advance(HOUR);
    eventually("that the worker is midway", async || {
        let sleeping = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'
            and datname = current_database()";
        (stack.database.count(sleeping).await == 1).then_some(())
    })
    .await;
    let back = add(&caller, &cart, 1).await;
    assert_eq!(back.abandonment.unwrap().epoch, 2);
    assert_eq!(kinds(&stack, &cart).await, ["cart.abandoned", "cart.recovered"]);
}

/// A change has written the cart and not committed yet: the worker goes by it, and finds it as it is then.
#[tokio::test]
async fn a_flag_is_not_raised_over_a_change_under_way() {
    let (stack, caller) = start().await;
    let (cart, other) = (carts(&caller, 1).await.remove(0), carts(&caller, 1).await.remove(0));
    let mut holder = stack.database.connect().await;
    let mut change = holder.begin().await.unwrap();
    let id: CartId = cart.cart_id.parse().unwrap();
    sqlx::query("update session.carts set updated_at = $1, version = version + 1 where cart_id = $2")
        .bind(stack.now() + HOUR)
        .bind(id)
        .execute(&mut *change)
        .await
        .unwrap();
    stack.advance(HOUR);
    let is_told = async || (!kinds(&stack, &other).await.is_empty()).then_some(());
    eventually("the other cart", is_told).await;
    change.commit().await.unwrap();
    looked(&stack).await;
    assert_eq!(kinds(&stack, &cart).await, [""; 0]);
    assert_eq!(kinds(&stack, &other).await, ["cart.abandoned"]);
}

#[tokio::test]
async fn a_change_of_a_line_moves_no_index() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    for _ in 0..40 {
        add_line(&caller, &token, "85123A", 1).await;
    }
    let db = tokio::sync::Mutex::new(stack.database.connect().await);
    let (updated, within) = eventually("the counters", || async {
        let counted = "select n_tup_upd, n_tup_hot_upd from pg_stat_all_tables
            where schemaname = 'session' and relname = 'carts'";
        let (updated, within): (i64, i64) =
            sqlx::query_as(counted).fetch_one(&mut *db.lock().await).await.unwrap();
        (updated >= 40).then_some((updated, within))
    })
    .await;
    assert_eq!(within, updated, "each found room beside its row, and left every index");
}

/// As carts are that an earlier binary made: due at once, and of no touchpoint.
#[tokio::test]
async fn carts_of_an_earlier_binary_are_seen_to_and_one_that_cannot_be_read_keeps_back_no_other() {
    let (stack, caller) = start().await;
    let all = carts(&caller, 3).await;
    let mut db = stack.database.connect().await;
    let before = "update session.carts set due_at = default, touchpoint_id = null";
    sqlx::query(before).execute(&mut db).await.unwrap();
    looked(&stack).await;
    let broken = "update session.carts set content = '\\xffff', due_at = default where cart_id = $1";
    let id: CartId = all[1].cart_id.parse().unwrap();
    sqlx::query(broken).bind(id).execute(&mut db).await.unwrap();
    stack.advance(HOUR);
    looked(&stack).await;
    let told: Vec<_> = join_all(all.iter().map(|cart| kinds(&stack, cart))).await;
    assert_eq!(told, [vec!["cart.abandoned"], vec![], vec!["cart.abandoned"]]);
    assert_eq!(see(&caller, &all[0]).await.abandonment.unwrap().abandon_time.unwrap().seconds, START + 3600);
    let due: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("select due_at from session.carts where cart_id = $1")
            .bind(id)
            .fetch_one(&mut db)
            .await
            .unwrap();
    assert_eq!(due, at(START + 3600) + TimeDelta::hours(24));
}
