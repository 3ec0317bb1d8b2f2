//! The purge of what ended long ago: what goes and what stays, who walks and from where; and that no verdict hangs on it.

use chrono::TimeDelta;
use serde_json::json;
use shared::pb::session as pb;
use shared::pb::session::Verdict;
use shared::time::to_proto;
use sqlx::{Connection as _, PgConnection};
use tonic::Code;
use uuid::Uuid;

use crate::harness::identity::{NONCE, login};
use crate::harness::shop::{
    create_session, create_touchpoint, revoke, seconds, session_id, validate_strong, web,
};
use crate::harness::trust::{authenticate, elevation, identity, rotate, setting, short};
use crate::harness::{Answer as _, Caller, Options, Stack, eventually, workload};

/// For so long an ended session can be told from one that never was.
const RETENTION: TimeDelta = TimeDelta::hours(24);
/// From the end of one walk to the next.
const PAUSE: TimeDelta = TimeDelta::seconds(61);

/// Logs each step of the walk: what it deleted and how long that took, and where it got to. A step is slow.
const LOG: &str = "
    create table public.deletions (deleted bigint, began timestamptz, ended timestamptz);
    create function public.log_deletion() returns trigger language plpgsql as $$
    declare began timestamptz := clock_timestamp();
    begin
        perform pg_sleep(0.05);
        insert into public.deletions select count(*), began, clock_timestamp() from gone;
        return null;
    end $$;
    create trigger log_deletion after delete on session.sessions
        referencing old table as gone for each statement execute function public.log_deletion();
    create table public.positions (n bigint generated always as identity, session_id uuid);
    create function public.log_position() returns trigger language plpgsql as $$
    begin
        insert into public.positions (session_id) values (new.session_id);
        return null;
    end $$;
    create trigger log_position after update on session.purge_walk
        for each row execute function public.log_position()";

async fn start(policy: pb::SessionPolicy) -> (Stack, Caller) {
    let stack = Stack::with_providers();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, pb::Touchpoint { session_policy: Some(policy), ..web() }).await;
    (stack, caller)
}

/// Waits until a walk that began by the present clock has reached the end.
async fn walked(stack: &Stack) {
    let mut db = stack.database.connect().await;
    let done = "select exists (select from session.purge_walk where completed_at >= $1)";
    let db = tokio::sync::Mutex::new(&mut db);
    eventually("a walk", || async {
        let mut db = db.lock().await;
        let done = sqlx::query_scalar(done).bind(stack.now()).fetch_one(&mut **db).await.unwrap();
        Some(()).filter(|()| done)
    })
    .await;
}

/// As many copies of the only session there is, before it in the walk's order and numbered.
async fn copies(db: &mut PgConnection, count: i32) {
    let copy = "insert into session.sessions (tenant_id, session_id, touchpoint_id, token_hash, created_at,
            last_seen_at, absolute_deadline, visit_started_at, pins)
        select tenant_id, ('01000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, touchpoint_id, token_hash,
            created_at, last_seen_at, absolute_deadline, visit_started_at, pins
        from session.sessions, generate_series(1, $1) n";
    sqlx::query(copy).bind(count).execute(db).await.unwrap();
}

fn copy(n: u128) -> Uuid {
    let base: Uuid = "01000000-0000-7000-8000-000000000000".parse().unwrap();
    // Numbered in decimal digits.
    Uuid::from_u128(base.as_u128() + u128::from_str_radix(&n.to_string(), 16).unwrap())
}

/// Whether it can still be read.
async fn is_there(caller: &Caller, session: &pb::Session) -> bool {
    let request = pb::GetSessionRequest { session_id: session.session_id.clone() };
    match caller.sessions().get_session(request).await {
        Ok(_) => true,
        Err(status) => {
            crate::harness::assert_refused(&status, Code::NotFound, "SESSION_NOT_FOUND");
            false
        }
    }
}

#[tokio::test]
async fn what_ended_a_day_ago_goes_with_all_that_belongs_to_it_and_nothing_else() {
    let (hour, day) = (seconds(3600), seconds(24 * 3600));
    let (stack, caller) = start(pb::SessionPolicy {
        idle_timeout: Some(hour),
        absolute_lifetime: Some(day),
        remember_me: Some(pb::RememberMe {
            idle_timeout: Some(day),
            absolute_lifetime: Some(seconds(90 * 86_400)),
        }),
        ..Default::default()
    })
    .await;
    create_touchpoint(&caller, pb::Touchpoint { touchpoint: "app".to_owned(), ..web() }).await;
    let create = async |touchpoint: &str, remember_me| {
        let touchpoint = touchpoint.to_owned();
        let request = pb::CreateSessionRequest { touchpoint, remember_me, ..Default::default() };
        let made = caller.sessions().create_session(request).await.answer();
        let (session, token) = (made.session.unwrap(), made.session_token);
        caller
            .sessions()
            .update_session_attributes(setting(&token, "colour", "blue"))
            .await
            .answer();
        caller.sessions().grant_elevation(elevation(&token)).await.answer();
        (session, token)
    };
    let ends = Some(to_proto(stack.now() + TimeDelta::minutes(10)));
    let over = create("web", false).await;
    let until = pb::AssertedIdentity { session_end_time: ends, ..identity("lena", 1) };
    authenticate(&caller, &over.1, until).await;
    let (idle, revoked) = (create("web", false).await, create("web", false).await);
    revoke(&caller, &revoked.0).await;
    let by_epoch = create("app", false).await;
    let request = pb::RevokeTouchpointSessionsRequest {
        touchpoint: "app".to_owned(),
        reason: pb::RevokeReason::Admin.into(),
        ..Default::default()
    };
    caller.sessions().revoke_touchpoint_sessions(request).await.answer();
    let remembered = create("web", true).await;
    // The idle one ends an hour and a second after its last use.
    let purged_at = stack.now() + TimeDelta::seconds(3601) + RETENTION;
    stack.advance(TimeDelta::hours(1));
    let (lately_idle, lately_revoked) = (create("web", false).await, create("web", false).await);
    stack.advance(TimeDelta::hours(1));
    revoke(&caller, &lately_revoked.0).await;
    let lately_by_epoch = create("app", false).await;
    stack.advance(purged_at - stack.now());
    let live = create("web", false).await;
    walked(&stack).await;
    for (gone, what) in [(&over, "over"), (&revoked, "revoked"), (&by_epoch, "revoked with all")] {
        assert!(!is_there(&caller, &gone.0).await, "{what}");
    }
    assert!(is_there(&caller, &idle.0).await, "it ended a day ago to the second");
    stack.advance(PAUSE);
    walked(&stack).await;
    assert!(!is_there(&caller, &idle.0).await);
    for (kept, what) in [
        (&lately_idle, "idle lately"),
        (&lately_revoked, "revoked lately"),
        (&lately_by_epoch, "idle lately, too"),
        (&remembered, "remembered"),
        (&live, "live"),
    ] {
        assert!(is_there(&caller, &kept.0).await, "{what}");
    }
    for table in ["select count(*) from session.attributes", "select count(*) from session.elevations"] {
        assert_eq!(stack.database.count(table).await, 5, "{table}");
    }
}

#[tokio::test]
async fn whether_a_session_lives_is_never_asked_of_the_purge() {
    let (stack, caller) = start(short()).await;
    let (_, first) = create_session(&caller).await;
    let token = rotate(&caller, &first).await;
    assert_eq!(validate_strong(&caller, &token).await.verdict(), Verdict::Active);
    // Somebody else walks, and gets nowhere.
    let mut db = stack.database.connect().await;
    eventually("the walk's row", || async {
        let rows = stack.database.count("select count(*) from session.purge_walk").await;
        Some(()).filter(|()| rows == 1)
    })
    .await;
    let mut walk = db.begin().await.unwrap();
    sqlx::query("select from session.purge_walk for update")
        .execute(&mut *walk)
        .await
        .unwrap();
    for hours in [1, 24, 1000] {
        stack.advance(TimeDelta::hours(hours));
        for token in [&first, &token] {
            assert_eq!(validate_strong(&caller, token).await.verdict(), Verdict::Expired, "{hours} h");
        }
    }
    walk.rollback().await.unwrap();
    walked(&stack).await;
    for token in [&first, &token] {
        assert_eq!(validate_strong(&caller, token).await.verdict(), Verdict::SessionUnknown);
    }
}

#[tokio::test]
async fn a_row_that_somebody_holds_keeps_back_itself_alone() {
    let (stack, caller) = start(short()).await;
    let (held, free) = (create_session(&caller).await.0, create_session(&caller).await.0);
    let mut db = stack.database.connect().await;
    let mut lock = db.begin().await.unwrap();
    sqlx::query("select from session.sessions where session_id = $1 for key share")
        .bind(session_id(&held).uuid())
        .execute(&mut *lock)
        .await
        .unwrap();
    stack.advance(RETENTION + TimeDelta::hours(1));
    walked(&stack).await;
    assert!(is_there(&caller, &held).await && !is_there(&caller, &free).await);
    lock.rollback().await.unwrap();
    stack.advance(PAUSE);
    walked(&stack).await;
    assert!(!is_there(&caller, &held).await);
}

#[tokio::test]
async fn a_step_looks_at_five_hundred_sessions_dead_or_alive() {
    let (stack, caller) = start(short()).await;
    stack.advance(RETENTION);
    create_session(&caller).await;
    walked(&stack).await;
    let mut db = stack.database.connect().await;
    copies(&mut db, 1200).await;
    sqlx::raw_sql(LOG).execute(&mut db).await.unwrap();
    stack.advance(PAUSE);
    // They are idle by then, and not dead for long.
    walked(&stack).await;
    let positions: Vec<Uuid> = sqlx::query_scalar("select session_id from public.positions order by n")
        .fetch_all(&mut db)
        .await
        .unwrap();
    assert_eq!(positions, [copy(500), copy(1000), Uuid::nil()]);
    assert_eq!(stack.database.count("select count(*) from session.sessions").await, 1201);
}

#[tokio::test]
async fn a_walk_goes_on_where_a_killed_service_left_it() {
    let (mut stack, caller) = start(short()).await;
    create_session(&caller).await;
    walked(&stack).await;
    let mut db = stack.database.connect().await;
    copies(&mut db, 6000).await;
    sqlx::raw_sql(LOG).execute(&mut db).await.unwrap();
    stack.advance(RETENTION + TimeDelta::hours(1));
    eventually("some steps", || async {
        let steps = stack.database.count("select count(*) from public.positions").await;
        Some(()).filter(|()| steps >= 3)
    })
    .await;
    drop(stack.session.take());
    let position: Uuid = sqlx::query_scalar("select session_id from session.purge_walk")
        .fetch_one(&mut db)
        .await
        .unwrap();
    let left = stack.database.count("select count(*) from session.sessions").await;
    assert!(position >= copy(1500) && left > 1, "it was killed midway: {position}, {left}");
    // Dead, too, and behind it.
    let late = "update session.sessions set session_id = $1 where session_id = $2";
    sqlx::query(late).bind(copy(1)).bind(copy(6000)).execute(&mut db).await.unwrap();
    stack.session = Some(stack.session_svc(&Options::default()));
    walked(&stack).await;
    let found: Vec<Uuid> = sqlx::query_scalar("select session_id from session.sessions")
        .fetch_all(&mut db)
        .await
        .unwrap();
    assert_eq!(found, [copy(1)], "a walk does not begin anew");
    stack.advance(PAUSE);
    walked(&stack).await;
    assert_eq!(stack.database.count("select count(*) from session.sessions").await, 0);
    let (steps, deleted): (i64, i64) = sqlx::query_as(
        "select count(*) filter (where deleted > 500), sum(deleted)::bigint from public.deletions",
    )
    .fetch_one(&mut db)
    .await
    .unwrap();
    assert_eq!((steps, deleted), (0, 6001));
}

#[tokio::test]
async fn of_two_replicas_one_walks() {
    let (stack, caller) = start(short()).await;
    let _other = stack.session_svc(&Options::default());
    create_session(&caller).await;
    walked(&stack).await;
    let mut db = stack.database.connect().await;
    copies(&mut db, 5000).await;
    sqlx::raw_sql(LOG).execute(&mut db).await.unwrap();
    stack.advance(RETENTION + TimeDelta::hours(1));
    walked(&stack).await;
    let (steps, deleted): (i64, i64) =
        sqlx::query_as("select count(*), sum(deleted)::bigint from public.deletions")
            .fetch_one(&mut db)
            .await
            .unwrap();
    assert_eq!((steps, deleted), (11, 5001), "no step was done twice");
    let overlapping = "select count(*) from public.deletions a, public.deletions b
        where a.ctid < b.ctid and a.began < b.ended and b.began < a.ended";
    assert_eq!(stack.database.count(overlapping).await, 0);
}

#[tokio::test]
async fn who_finds_another_walking_does_the_rest_of_the_work() {
    let (stack, caller) = start(short()).await;
    let (session, token) = create_session(&caller).await;
    let id_token = stack.id_token(&json!({}));
    caller
        .sessions()
        .authenticate_session(login(&token, &id_token, NONCE))
        .await
        .answer();
    let id_tokens = "select count(*) from session.id_tokens";
    assert_eq!(stack.database.count(id_tokens).await, 1);
    walked(&stack).await;
    let mut db = stack.database.connect().await;
    let mut walk = db.begin().await.unwrap();
    sqlx::query("select from session.purge_walk for update")
        .execute(&mut *walk)
        .await
        .unwrap();
    stack.advance(RETENTION + TimeDelta::hours(1));
    eventually("the end of a used ID token", || async {
        let rows = stack.database.count(id_tokens).await;
        Some(()).filter(|()| rows == 0)
    })
    .await;
    assert!(is_there(&caller, &session).await, "another walks");
    walk.rollback().await.unwrap();
    walked(&stack).await;
    assert!(!is_there(&caller, &session).await);
}

#[tokio::test]
async fn a_used_id_token_is_known_as_long_as_it_could_be_used_again() {
    let (stack, caller) = start(pb::SessionPolicy::default()).await;
    let (_, token) = create_session(&caller).await;
    let id_token = stack.id_token(&json!({}));
    let mut token = caller
        .sessions()
        .authenticate_session(login(&token, &id_token, NONCE))
        .await
        .answer()
        .session_token;
    // Good for 300 s and 5 s of leeway.
    for _ in 0..2 {
        stack.advance(TimeDelta::seconds(150));
        walked(&stack).await;
        let again = caller.sessions().authenticate_session(login(&token, &id_token, NONCE)).await;
        again.refused(Code::FailedPrecondition, "ID_TOKEN_REPLAYED");
        token = rotate(&caller, &token).await;
        validate_strong(&caller, &token).await;
    }
    stack.advance(TimeDelta::seconds(5));
    let again = caller.sessions().authenticate_session(login(&token, &id_token, NONCE)).await;
    again.refused(Code::FailedPrecondition, "ID_TOKEN_EXPIRED");
}

#[tokio::test]
async fn answers_to_requests_go_after_a_day() {
    let (mut stack, caller) = start(pb::SessionPolicy::default()).await;
    let create = async |n| {
        let request_id = Uuid::from_u128(n).to_string();
        let request =
            pb::CreateSessionRequest { touchpoint: "web".to_owned(), request_id, ..Default::default() };
        caller.sessions().create_session(request).await.answer()
    };
    let first = create(1).await;
    stack.advance(TimeDelta::hours(1));
    create(2).await;
    stack.advance(RETENTION - TimeDelta::minutes(61));
    assert_eq!(create(1).await, first, "a day is not over yet");
    stack.advance(TimeDelta::minutes(30));
    // A service looks when it starts, and then every minute.
    stack.stop_session().await;
    stack.session = Some(stack.session_svc(&Options::default()));
    eventually("the end of one answer", || async {
        let rows = stack.database.count("select count(*) from session.requests").await;
        Some(()).filter(|()| rows < 2)
    })
    .await;
    let left =
        "select count(*) from session.requests where request_id = '00000000-0000-0000-0000-000000000002'";
    assert_eq!(stack.database.count(left).await, 1);
}
