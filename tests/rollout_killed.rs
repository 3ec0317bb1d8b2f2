//! release-svc is killed, in every state of a rollout and between any two things that it writes: the rollout is before or
//! after a transition, nothing happens twice, and whoever comes next goes on.

use chrono::TimeDelta;
use shared::pb::release as pb;
use shared::pb::release::{RolloutState, StepPhase};
use sqlx::AssertSqlSafe;

use crate::harness::fleet::{At, Fleet};
use crate::harness::shop::roll_back;
use crate::harness::{Answer as _, eventually};

const BAKE: TimeDelta = TimeDelta::minutes(10);

/// Where it stands; its phase where it is RUNNING.
fn place(rollout: &pb::Rollout) -> String {
    if rollout.state() == RolloutState::Running {
        return format!("{:?}", rollout.phase());
    }
    format!("{:?}", rollout.state())
}

/// Kills release-svc; the rollout is what it was.
async fn survive(fleet: &mut Fleet, rollout: &pb::Rollout) -> pb::Rollout {
    let before = fleet.get(rollout).await;
    fleet.kill();
    let after = fleet.get(rollout).await;
    assert_eq!(after, before);
    after
}

/// Does what the rollout waits for.
async fn serve(fleet: &Fleet, rollout: &pb::Rollout) {
    match (rollout.state(), rollout.phase()) {
        (RolloutState::Waiting, _) => fleet.stack.advance(TimeDelta::hours(16)),
        (RolloutState::Running, StepPhase::Deploying) => drop(fleet.work(rollout).await),
        (RolloutState::Running, StepPhase::Exposing) | (RolloutState::RollingBack, _) => {
            fleet.confirm(rollout).await;
        }
        (RolloutState::Running, _) => fleet.stack.advance(BAKE),
        (RolloutState::Paused, _) => {
            let (rollout_id, reason) = (rollout.rollout_id.clone(), "we are back".to_owned());
            let request = pb::ResumeRolloutRequest { rollout_id, reason, ..Default::default() };
            fleet.author.rollouts().resume_rollout(request).await.answer();
        }
        (RolloutState::Draining, _) => drop(fleet.drain(rollout).await),
        (RolloutState::RollbackFailed, _) => {
            let (rollout_id, reason) = (rollout.rollout_id.clone(), "the node is gone".to_owned());
            let request = pb::ResolveRolloutRequest { rollout_id, reason, ..Default::default() };
            fleet.author.rollouts().resolve_rollout(request).await.answer();
        }
        (state, _) => panic!("nothing is waited for in {state:?}"),
    }
}

/// Takes a rollout to its end, killing release-svc wherever it stands; says where that was.
async fn kill_everywhere(fleet: &mut Fleet, rollout: pb::Rollout) -> Vec<String> {
    let mut places = Vec::new();
    let mut seen = rollout;
    loop {
        seen = survive(fleet, &seen).await;
        places.push(place(&seen));
        if seen.end_time.is_some() {
            break;
        }
        // In the second step somebody pauses it.
        if seen.phase() == StepPhase::Baking && places.iter().filter(|it| *it == "Baking").count() == 2 {
            let paused = fleet.pause(&seen).await;
            seen = survive(fleet, &paused).await;
            places.push(place(&seen));
        }
        serve(fleet, &seen).await;
        let before = seen.clone();
        seen = eventually("the rollout to go on", || async {
            let found = fleet.get(&before).await;
            (found != before).then_some(found)
        })
        .await;
    }
    fleet.assert_told_once(&seen).await;
    fleet.assert_trail_holds().await;
    places
}

#[tokio::test]
async fn a_rollout_goes_on_to_its_end_though_release_svc_is_killed_in_every_state() {
    let mut fleet = Fleet::start(Some(BAKE)).await;
    let rollout = fleet.bring("shop", At::Waiting).await;
    let places = kill_everywhere(&mut fleet, rollout.clone()).await;
    let one_step = ["Deploying", "Exposing", "Baking"];
    let expected = [&["Waiting"], &one_step[..], &one_step, &["Paused", "Baking"]].concat();
    assert_eq!(places, [&expected[..], &["Draining", "Succeeded"]].concat());
    let ended = fleet.get(&rollout).await;
    assert_eq!((ended.exposure_bps, ended.step), (10_000, 1));
}

#[tokio::test]
async fn a_rollback_ends_though_release_svc_is_killed_before_it_is_confirmed_and_after() {
    let mut fleet = Fleet::start(Some(BAKE)).await;
    let rollout = fleet.bring("shop", At::RollingBack).await;
    let back = fleet.finish(&rollout, At::RollingBack).await;
    assert_eq!(kill_everywhere(&mut fleet, back).await, ["RollingBack", "RolledBack"]);
    assert_eq!(fleet.get(&rollout).await.exposure_bps, 0);
}

#[tokio::test]
async fn a_rollback_that_failed_is_ended_by_a_person_though_release_svc_is_killed() {
    let mut fleet = Fleet::start(Some(BAKE)).await;
    let rollout = fleet.bring("shop", At::RollbackFailed).await;
    let failed = fleet.finish(&rollout, At::RollbackFailed).await;
    assert_eq!(kill_everywhere(&mut fleet, failed).await, ["RollbackFailed", "RolledBack"]);
}

#[tokio::test]
async fn what_was_rolled_out_and_is_taken_back_goes_on_though_release_svc_is_killed() {
    let mut fleet = Fleet::start(Some(BAKE)).await;
    let mut rollout = fleet.bring("shop", At::Baking).await;
    for _ in 0..4 {
        serve(&fleet, &rollout).await;
        let before = rollout.clone();
        rollout = eventually("the rollout to go on", || async {
            let found = fleet.get(&before).await;
            (found != before).then_some(found)
        })
        .await;
    }
    assert_eq!(rollout.state(), RolloutState::Draining);
    rollout = fleet.drain(&rollout).await;
    let back = roll_back(&fleet.author, &rollout).await;
    assert_eq!(kill_everywhere(&mut fleet, back).await, ["RollingBack", "RolledBack"]);
    assert_eq!(survive(&mut fleet, &rollout).await, rollout, "it has succeeded, once");
}

/// Counts what is written, in whichever transaction, and from the nth on lets nobody write: whose turn it is dies.
struct Crash<'a>(&'a Fleet);

impl<'a> Crash<'a> {
    const TABLES: [&'static str; 6] = ["rollouts", "routes", "events", "releases", "approvals", "tasks"];

    async fn prepare(fleet: &'a Fleet) -> Self {
        let counted = "create sequence public.written; create table public.last_write (n bigint not null);
            insert into public.last_write values (1000000);
            create function public.die() returns trigger language plpgsql as $$
                begin
                    if nextval('public.written') >= (select n from public.last_write) then
                        perform pg_terminate_backend(pg_backend_pid());
                        perform pg_sleep(60);
                    end if;
                    return null;
                end
            $$;";
        // At a statement, and as the transaction commits.
        let triggers = Self::TABLES.map(|table| {
            format!(
                "create trigger die before insert or update or delete on release.{table}
                    for each statement execute function public.die();
                create constraint trigger die_last after insert or update or delete on release.{table}
                    deferrable initially deferred for each row execute function public.die();"
            )
        });
        let sql = counted.to_owned() + &triggers.concat();
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut fleet.stack.database.connect().await)
            .await
            .unwrap();
        Self(fleet)
    }

    async fn from(&self, n: i64) {
        let sql = format!("update public.last_write set n = {n}; select setval('public.written', 1, false)");
        let mut db = self.0.stack.database.connect().await;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut db).await.unwrap();
    }

    /// Everything that a transition writes.
    async fn everything(&self) -> String {
        let mut db = self.0.stack.database.connect().await;
        let mut all = String::new();
        for table in Self::TABLES {
            let sql = format!(
                "select coalesce(string_agg(t::text, ' ' order by t::text), '') from release.{table} t"
            );
            let text: String = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut db).await.unwrap();
            all.push_str(&text);
        }
        all
    }

    /// Until somebody died, or the rollout is where it was going.
    async fn has_arrived(&self, rollout: &pb::Rollout, there: &str, n: i64) -> bool {
        eventually("a crash or its end", || async {
            if place(&self.0.get(rollout).await) == there {
                return Some(true);
            }
            let written = "select case when is_called then last_value else 0 end from public.written";
            (self.0.stack.database.count(written).await >= n).then_some(false)
        })
        .await
    }
}

/// Lets release-svc crash at each thing that it writes as it takes a rollout from here to there.
async fn crash_on_the_way(from: At, begin: impl AsyncFn(&Fleet, &pb::Rollout), there: &str) {
    let fleet = Fleet::start(Some(BAKE)).await;
    let rollout = fleet.bring("shop", from).await;
    let rollout = fleet.finish(&rollout, from).await;
    let crash = Crash::prepare(&fleet).await;
    crash.from(1).await;
    begin(&fleet, &rollout).await;
    let before = crash.everything().await;
    let mut n = 1;
    while !crash.has_arrived(&rollout, there, n).await {
        assert_eq!(crash.everything().await, before, "crashed at write {n}");
        n += 1;
        crash.from(n).await;
    }
    // The rollout, its event, and their commit.
    assert!(n > 4, "{n}");
    crash.from(1_000_000).await;
    fleet.assert_told_once(&rollout).await;
    fleet.assert_trail_holds().await;
    let mut seen = fleet.get(&rollout).await;
    while seen.end_time.is_none() {
        serve(&fleet, &seen).await;
        let before = seen;
        seen = eventually("the rollout to go on", || async {
            let found = fleet.get(&before).await;
            (found != before).then_some(found)
        })
        .await;
    }
    fleet.assert_told_once(&rollout).await;
}

#[tokio::test]
async fn a_crash_as_it_begins_leaves_it_waiting() {
    crash_on_the_way(At::Waiting, async |fleet, _| fleet.stack.advance(TimeDelta::hours(16)), "Deploying")
        .await;
}

#[tokio::test]
async fn a_crash_as_session_services_act_on_it_leaves_it_exposing() {
    crash_on_the_way(At::Exposing, async |fleet, rollout| fleet.confirm(rollout).await, "Baking").await;
}

#[tokio::test]
async fn a_crash_between_steps_leaves_it_in_the_step_before() {
    crash_on_the_way(At::Baking, async |fleet, _| fleet.stack.advance(BAKE), "Deploying").await;
}

#[tokio::test]
async fn a_crash_as_a_rollback_is_confirmed_leaves_it_rolling_back() {
    crash_on_the_way(At::RollingBack, async |fleet, rollout| fleet.confirm(rollout).await, "RolledBack")
        .await;
}

#[tokio::test]
async fn a_crash_as_a_rollback_fails_leaves_it_rolling_back() {
    let late = async |fleet: &Fleet, _: &pb::Rollout| fleet.stack.advance(TimeDelta::minutes(15));
    crash_on_the_way(At::RollingBack, late, "RollbackFailed").await;
}
