//! A pass of the controller, run by hand where release-svc is away: what it costs, and in which order it goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use release_svc::rpc::App;
use release_svc::{OUTBOX, workers};
use shared::auth::Authenticator;
use shared::db::Db;
use shared::feed::Feed;
use shared::issuer::ISSUERS_FILE;
use shared::keys::Keys;
use shared::pb::release as pb;
use shared::pb::release::{GuardMode, RolloutState};
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::span;

use crate::harness::shop::{
    create_component, create_release, create_release_as, draft, start as rollout_of, submit,
};
use crate::harness::{Answer as _, Caller, Stack};
use crate::rollout_control::{baked, ship_by, start};
use crate::rollout_signal::{counts, guarded, tell, told};
use crate::window::{create_window, today};

/// Counts statements, each of which has a span of its own.
struct Statements(Arc<AtomicUsize>);

impl tracing::Subscriber for Statements {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        if span.metadata().name().starts_with("db.") {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// What release-svc works with.
fn app(stack: &Stack) -> App {
    let db = Db::new(&stack.database.url, 4, "controller").unwrap();
    App {
        feed: Arc::new(Feed::new(&OUTBOX, db.clone())),
        db,
        keys: Arc::new(Keys::open(&stack.keyring()).unwrap()),
        authenticator: Arc::new(Authenticator::open(&stack.folder().join(ISSUERS_FILE)).unwrap()),
        clock: stack.clock.clone(),
        entropy: stack.entropy.clone(),
        stop: CancellationToken::new(),
        calls: TaskTracker::new(),
    }
}

/// Transitions and statements of a pass.
async fn pass(app: &App) -> (u64, usize) {
    let statements = Arc::new(AtomicUsize::new(0));
    let _guard = tracing::subscriber::set_default(Statements(Arc::clone(&statements)));
    let moves = workers::control_rollouts(app).await.unwrap();
    (moves, statements.load(Ordering::Relaxed))
}

/// As many environments more, each with the running rollout that `local` has, and its counts; these come before all others.
async fn copy_rollout(db: &mut PgConnection, copies: i32) {
    let sql = format!(
        "create temp table copies as select n, lpad(to_hex(n), 32, '0')::uuid as id from generate_series(1, {copies}) n;
        insert into release.environments
        select (jsonb_populate_record(known, jsonb_build_object('environment', 'e' || n, 'promotion_order', n))).*
        from release.environments known, copies
        where known.environment = 'local';
        insert into release.rollouts overriding system value
        select (jsonb_populate_record(
            known, jsonb_build_object('environment', 'e' || n, 'rollout_id', id, 'seq', 1000 + n))).*
        from release.rollouts known, copies
        where known.state = 'RUNNING';
        insert into release.routes
        select (jsonb_populate_record(known, jsonb_build_object('environment', 'e' || n, 'rollout_id', id))).*
        from release.routes known, copies;
        insert into release.signal_sources
        select (jsonb_populate_record(known, jsonb_build_object('environment', 'e' || n))).*
        from release.signal_sources known, copies;
        insert into release.signal_counts
        select (jsonb_populate_record(known, jsonb_build_object('rollout_id', id))).*
        from release.signal_counts known, copies"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(db).await.unwrap();
}

#[tokio::test]
async fn rollouts_that_have_nothing_to_do_cost_as_many_statements_as_one() {
    let (mut stack, caller) = start().await;
    let rollout = guarded(&caller, GuardMode::Rollback).await;
    tell(&stack, told(&rollout, ("a", "1"), counts([100, 900], [5, 40]))).await;
    stack.stop_release().await;
    let app = app(&stack);
    let one = pass(&app).await;
    copy_rollout(&mut stack.database.connect().await, 150).await;
    let began = Instant::now();
    assert_eq!(pass(&app).await, one);
    eprintln!("a pass over 151 rollouts took {:?}", began.elapsed());
}

#[tokio::test]
async fn what_is_held_back_is_left_alone_until_that_may_have_lifted() {
    let (mut stack, caller) = start().await;
    create_window(&caller, today()).await;
    let release = submit(&caller, &create_release(&caller, "1.1").await).await;
    let request = pb::StartRolloutRequest { wait: true, ..rollout_of(&release, &[1000]) };
    let rollout = caller.rollouts().start_rollout(request).await.answer().rollout.unwrap();
    assert_eq!(rollout.state(), RolloutState::Waiting);
    stack.stop_release().await;
    let app = app(&stack);
    pass(&app).await;
    let (_, quiet) = pass(&app).await;
    stack.advance(TimeDelta::seconds(14));
    assert_eq!(pass(&app).await, (0, quiet));
    // Some things lift with time.
    stack.advance(TimeDelta::seconds(1));
    assert!(pass(&app).await.1 > quiet);
    assert_eq!(pass(&app).await, (0, quiet));
    // Others as something happens.
    let happens = "
        insert into release.events (tenant_id, kind, subject, principal, occurred_at, data, trace_parent)
        values ($1, 'webhook.created', 's', 'p', $2, '{}', '')";
    let mut db = stack.database.connect().await;
    for (tenant, is_ours) in [("other", false), ("shop", true)] {
        sqlx::query(happens)
            .bind(tenant)
            .bind(stack.now())
            .execute(&mut db)
            .await
            .unwrap();
        assert_eq!(pass(&app).await.1 > quiet, is_ours, "{tenant}");
        assert_eq!(pass(&app).await, (0, quiet));
    }
    // And what is known to lift at an instant is looked at in that instant.
    stack.advance(TimeDelta::days(1));
    assert!(pass(&app).await.0 > 0);
}

#[tokio::test]
async fn a_rollout_that_cannot_be_read_keeps_no_other_from_going_on() {
    let (mut stack, caller) = start().await;
    ship_by(&caller, "1.1", &[1000], baked()).await;
    let mut db = stack.database.connect().await;
    // More than are looked at together.
    copy_rollout(&mut db, 250).await;
    let wallet = ship_wallet(&caller).await;
    stack.stop_release().await;
    let newer = "update release.rollouts set plan = '{\"guards\":7}' where component = 'storefront'";
    sqlx::query(newer).execute(&mut db).await.unwrap();
    stack.advance(TimeDelta::minutes(10));
    assert!(pass(&app(&stack)).await.0 > 0);
    assert_eq!(step_of(&mut db, &wallet).await, 1);
}

async fn step_of(db: &mut PgConnection, rollout: &pb::Rollout) -> i32 {
    let id = rollout.rollout_id.trim_start_matches("rlo_").to_owned();
    let sql = "select step from release.rollouts where rollout_id = $1::uuid";
    sqlx::query_scalar(sql).bind(id).fetch_one(db).await.unwrap()
}

async fn ship_wallet(caller: &Caller) -> pb::Rollout {
    create_component(caller, pb::Component { component: "wallet".to_owned(), ..Default::default() }).await;
    let of_wallet = |version| pb::CreateReleaseRequest { component: "wallet".to_owned(), ..draft(version) };
    let mut rollouts = Vec::new();
    for (version, plan) in [("1.0", pb::RolloutPlan::default()), ("1.1", baked())] {
        let release = submit(caller, &create_release_as(caller, of_wallet(version)).await).await;
        let request = pb::StartRolloutRequest { plan: Some(plan), ..rollout_of(&release, &[1000]) };
        let rollout = caller.rollouts().start_rollout(request).await.answer().rollout.unwrap();
        rollouts.push(rollout);
    }
    rollouts.pop().unwrap()
}

#[tokio::test]
async fn what_somebody_has_locked_holds_no_other_rollout_up() {
    let (mut stack, caller) = start().await;
    ship_by(&caller, "1.1", &[1000], baked()).await;
    let mut holder = stack.database.connect().await;
    copy_rollout(&mut holder, 7).await;
    let wallet = ship_wallet(&caller).await;
    stack.stop_release().await;
    let lock = "begin; select from release.components where component = 'storefront' for update";
    sqlx::raw_sql(lock).execute(&mut holder).await.unwrap();
    stack.advance(TimeDelta::minutes(10));
    let (app, began) = (app(&stack), Instant::now());
    let (moves, _) = pass(&app).await;
    // Each of the eight would have waited for a second.
    assert!(moves > 0 && began.elapsed() < Duration::from_secs(4), "{moves} after {:?}", began.elapsed());
    assert_eq!(step_of(&mut stack.database.connect().await, &wallet).await, 1);
    drop(holder);
    assert!(pass(&app).await.0 >= 8);
}
