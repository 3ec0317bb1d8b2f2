//! Sums of how rollouts go: how long they are kept, and under which name they are told.

use chrono::TimeDelta;
use session_svc::store::signal::sum::{Stretch, Sum, counts, forget, forget_units};
use session_svc::store::signal::{scan, source};
use shared::pb::session::{Arm, Verdict};
use uuid::Uuid;

use crate::harness::router::{Router, moving, rolling, rollout_id, stable, with_rollout};
use crate::harness::shop::{create_session, validate};
use crate::harness::{Stack, eventually};
use crate::signal::record;
use crate::visit::{served, start};

#[tokio::test]
async fn of_a_rollout_that_ended_nothing_is_told_any_more_and_in_a_day_nothing_is_known() {
    let (stack, router, caller) = start().await;
    router.send(rolling(10_000, &[])).await;
    create_session(&caller).await;
    router.told_of(rollout_id(9), &[(0, true, "", 1)]).await;
    let ended = "select count(*) from session.signal_counts where ended_at is not null";
    // Not while it is under way here.
    router.end(rollout_id(9));
    create_session(&caller).await;
    router.told_of(rollout_id(9), &[(0, true, "", 2)]).await;
    assert_eq!(stack.database.count(ended).await, 0);
    router.send(stable()).await;
    eventually("its end", || async { (stack.database.count(ended).await == 1).then_some(()) }).await;
    let mut db = stack.database.connect().await;
    forget(&mut db, stack.now(), 10).await.unwrap();
    assert_eq!(stack.database.count(ended).await, 1, "not before its time");
    forget(&mut db, stack.now() + TimeDelta::seconds(1), 10).await.unwrap();
    assert_eq!(stack.database.count("select count(*) from session.signal_counts").await, 0);
}

#[tokio::test]
async fn a_database_keeps_its_name_and_begins_an_epoch_when_it_is_restored_elsewhere() {
    let stack = Stack::prepare();
    let mut db = stack.database.connect().await;
    let (drawn, now) = (Uuid::from_u128(1), stack.now());
    let first = source(&mut db, "here", drawn, now).await.unwrap();
    let later = now + TimeDelta::seconds(1);
    let again = source(&mut db, "here", Uuid::from_u128(2), later).await.unwrap();
    assert_eq!((first.id, &first), (drawn, &again));
    let restored = source(&mut db, "there", Uuid::from_u128(3), later).await.unwrap();
    assert_eq!(restored.id, drawn);
    assert!(restored.epoch > first.epoch);
}

#[tokio::test]
async fn reports_name_the_environment_and_the_database() {
    let (stack, router, caller) = start().await;
    let replica = stack.session_svc(&router.linked());
    router.send_to(2, rolling(10_000, &[])).await;
    create_session(&caller).await;
    router.told_of(rollout_id(9), &[(0, true, "", 1)]).await;
    drop(replica);
    let reports = router.reports();
    let names = |report: &shared::pb::release::ReportSignalsRequest| {
        (report.environment.clone(), report.source_id.clone(), report.source_epoch.clone())
    };
    assert!(reports.iter().all(|report| names(report) == names(&reports[0])));
    assert_eq!(reports[0].environment, "local");
}

/// What is left of a rollout goes with the walk over sessions once its sums are gone, though the sessions stay; of another one
/// nothing does.
#[tokio::test]
async fn what_sessions_were_dealt_goes_when_the_sums_of_its_rollout_are_gone() {
    let (stack, router, caller) = start().await;
    router.send(moving(rolling(1, &["slow"]))).await;
    let (_, token) = create_session(&caller).await;
    router
        .send(with_rollout(moving(rolling(10_000, &["slow"])), |rollout| rollout.step = 1))
        .await;
    assert_eq!(served(&caller, &token).await.1, Arm::Canary);
    assert!(record(&caller, &token, "slow").await);
    router
        .told_of(rollout_id(9), &[(0, false, "", 1), (1, true, "", 1), (1, true, "slow", 1)])
        .await;
    let rows = "select (select count(*) from session.enrolments) + (select count(*) from session.redeals) \
                + (select count(*) from session.outcomes)";
    let mut db = stack.database.connect().await;
    let all = Stretch { after: ("", Uuid::nil()), until: None };
    assert_eq!((forget_units(&mut db, &all, 10).await.unwrap(), stack.database.count(rows).await), (0, 3));
    let other = "insert into session.enrolments (tenant_id, session_id, rollout_id, step, is_canary, enrolled_at) \
                 select tenant_id, session_id, gen_random_uuid(), 0, true, enrolled_at from session.enrolments";
    sqlx::query(other).execute(&mut db).await.unwrap();
    router.end(rollout_id(9));
    router.send(stable()).await;
    let ended = "select count(*) from session.signal_counts where ended_at is not null";
    eventually("its end", || async { (stack.database.count(ended).await == 3).then_some(()) }).await;
    forget(&mut db, stack.now() + TimeDelta::seconds(1), 10).await.unwrap();
    stack.advance(TimeDelta::seconds(61));
    eventually("the walk", || async { (stack.database.count(rows).await == 1).then_some(()) }).await;
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);
}

/// More than are read at once.
#[tokio::test]
async fn no_sum_is_left_out_however_many_there_are() {
    let stack = Stack::prepare();
    let mut db = stack.database.connect().await;
    let fill = "insert into session.signal_counts (tenant_id, rollout_id, step, is_canary, guard, count) \
                select 'shop', md5((n / 2000)::text)::uuid, n % 10, n % 20 < 10, 'g' || n, n from generate_series(1, 20000) n";
    sqlx::query(fill).execute(&mut db).await.unwrap();
    let fill = "insert into session.visit_counts (tenant_id, rollout_id, canary, control, counted_at) \
                select 'shop', md5(n::text)::uuid, n, 0, now() from generate_series(1, 10001) n";
    sqlx::query(fill).execute(&mut db).await.unwrap();
    let counts = counts(&mut db).await.unwrap();
    assert_eq!((counts.len(), counts.iter().map(|sum| sum.count).sum::<i64>()), (20_000, 200_010_000));
    let key = |sum: &Sum| (sum.rollout.uuid(), sum.step, sum.is_canary, sum.guard.clone());
    assert!(counts.is_sorted_by_key(key));
    let visits = scan::list(&mut db).await.unwrap();
    assert_eq!(visits.iter().map(|visits| visits.canary).sum::<i64>(), 50_015_001);
}

/// Who holds the walk over visits, once somebody does.
async fn walker(stack: &Stack) -> Uuid {
    let held = "select scan_holder from session.signal_source where scan_held_until > $1";
    eventually("somebody who walks", async || {
        let mut db = stack.database.connect().await;
        sqlx::query_scalar(held)
            .bind(stack.now())
            .fetch_optional(&mut db)
            .await
            .unwrap()
    })
    .await
}

/// It may walk for rollouts that are over, of which it has not heard.
#[tokio::test]
async fn a_replica_that_does_not_hear_of_release_svc_leaves_the_walk_to_another_one() {
    let (stack, cut_off, caller) = start().await;
    cut_off.send(rolling(10_000, &[])).await;
    create_session(&caller).await;
    let first = walker(&stack).await;
    let router = Router::start(&stack).await;
    let _replica = stack.session_svc(&router.linked());
    router.send(rolling(10_000, &[])).await;
    cut_off.fall_silent(true);
    stack.advance(TimeDelta::minutes(6));
    // Whoever comes first after the lease of the one before has it.
    for _ in 0..5 {
        stack.advance(TimeDelta::minutes(1));
        assert_ne!(walker(&stack).await, first);
    }
}
