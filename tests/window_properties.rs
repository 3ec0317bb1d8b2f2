//! What holds of freeze windows whatever is done and in whatever order, by the numbers of the invariants. Commands are drawn
//! from a seed, which a failure names, and go to two replicas; what is read to check them is the database.

use chrono::TimeDelta;
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use shared::pb::release as pb;
use shared::pb::release::RolloutState;
use shared::time::Time;
use sqlx::Row as _;
use tonic::Code;

use crate::harness::shop::{
    advance, create_catalog, create_release, get_rollout, rollback, start as rollout_of, submit,
};
use crate::harness::{Answer as _, Caller, Options, Service, Stack, person, reason_of};
use crate::window::{create_window, freeze, lift};

/// Commands a seed.
const COMMANDS: usize = 60;

/// Two replicas, and what commands have made of them.
struct World {
    _replica: Service,
    stack: Stack,
    here: Caller,
    there: Caller,
    windows: Vec<pb::Window>,
    rollout: Option<pb::Rollout>,
    versions: usize,
    refused: usize,
}

/// A window of a few hours that begins within a day.
fn some_window(rng: &mut StdRng, now: Time) -> pb::Window {
    let start = now + TimeDelta::minutes(rng.random_range(-120..600));
    let end = start + TimeDelta::minutes(rng.random_range(30..360));
    let text = |at: Time| at.format("%Y-%m-%dT%H:%M:%S").to_string();
    // In January London's clock is UTC.
    freeze(&text(start), &text(end))
}

impl World {
    async fn begin() -> Self {
        let stack = Stack::releases();
        let replica = stack.release_svc(&Options::default());
        let here = stack.caller(&person("ada"));
        let there = here.at_release(&replica);
        create_catalog(&here).await;
        let first = submit(&here, &create_release(&here, "0.1").await).await;
        here.rollouts().start_rollout(rollout_of(&first, &[])).await.answer();
        Self {
            stack,
            here,
            there,
            _replica: replica,
            windows: vec![],
            rollout: None,
            versions: 0,
            refused: 0,
        }
    }

    fn caller(&self, rng: &mut StdRng) -> &Caller {
        if rng.random_bool(0.5) { &self.here } else { &self.there }
    }

    async fn step(&mut self, rng: &mut StdRng) {
        let caller = self.caller(rng).clone();
        match rng.random_range(0..10) {
            0 => self
                .windows
                .push(create_window(&caller, some_window(rng, self.stack.now())).await),
            1 => drop(self.delete(&caller, rng).await),
            2 => self.lift(&caller, rng).await,
            3 | 4 => self.stack.advance(TimeDelta::minutes(rng.random_range(1..120))),
            5 => self.roll_back(&caller).await,
            _ => self.increase(&caller, rng).await,
        }
    }

    async fn delete(&mut self, caller: &Caller, rng: &mut StdRng) -> Option<()> {
        let n = rng.random_range(0..=self.windows.len());
        let window = (n < self.windows.len()).then(|| self.windows.remove(n))?;
        let (window_id, reason) = (window.window_id, "no more".to_owned());
        let request = pb::DeleteWindowRequest { window_id, reason, ..Default::default() };
        caller.windows().delete_window(request).await.answer();
        Some(())
    }

    async fn lift(&self, caller: &Caller, rng: &mut StdRng) {
        if let Some(window) = self.windows.last() {
            let until = self.stack.now() + TimeDelta::minutes(rng.random_range(1..90));
            caller.windows().override_window(lift(window, until)).await.answer();
        }
    }

    /// Starts a rollout or takes it a step further, while somebody may be making a window.
    async fn increase(&mut self, caller: &Caller, rng: &mut StdRng) {
        let outcome = match &self.rollout {
            None => {
                self.versions += 1;
                let version = format!("1.{}", self.versions);
                let release = submit(caller, &create_release(caller, &version).await).await;
                let request = rollout_of(&release, &[100, 500, 1000, 5000]);
                caller
                    .rollouts()
                    .start_rollout(request)
                    .await
                    .map(|answer| answer.into_inner().rollout)
            }
            Some(rollout) if rng.random_bool(0.3) => {
                let other = self.caller(rng).clone();
                let window = some_window(rng, self.stack.now());
                let request = advance(rollout);
                let mut rollouts = caller.rollouts();
                let (advanced, made) =
                    tokio::join!(rollouts.advance_rollout(request), create_window(&other, window),);
                self.windows.push(made);
                advanced.map(|answer| answer.into_inner().rollout)
            }
            Some(rollout) => {
                let request = advance(rollout);
                caller
                    .rollouts()
                    .advance_rollout(request)
                    .await
                    .map(|answer| answer.into_inner().rollout)
            }
        };
        match outcome {
            Ok(rollout) => self.rollout = rollout.filter(|rollout| rollout.state() == RolloutState::Running),
            Err(status) => {
                assert_eq!(reason_of(&status), "ROLLOUT_WINDOW_CLOSED", "{status:?}");
                self.refused += 1;
            }
        }
    }

    async fn roll_back(&mut self, caller: &Caller) {
        if let Some(rollout) = self.rollout.take() {
            caller.rollouts().roll_back_rollout(rollback(&rollout)).await.answer();
            assert_eq!(get_rollout(caller, &rollout).await.exposure_bps, 0);
        }
    }
}

/// Increases that were committed while a freeze that was committed before them lasted, without naming an override of it.
/// Events are in the order of commits as far as their locks order them, which those of one calendar do.
async fn trespasses(stack: &Stack) -> Vec<String> {
    let mut db = stack.database.connect().await;
    let trespasses = "
        with told as (
            select event_id as id, kind, subject, occurred_at as at, data::jsonb as data
            from release.events
            where tenant_id = 'shop'
        ),
        increases as (
            select * from told where kind in ('rollout.started', 'rollout.advanced')
        ),
        freezes as (
            select made.id as made, gone.id as gone, made.subject,
                (made.data ->> 'local_start')::timestamp at time zone 'Europe/London' as begins,
                (made.data ->> 'local_end')::timestamp at time zone 'Europe/London' as ends
            from told made
            left join told gone on gone.kind = 'window.deleted' and gone.subject = made.subject
            where made.kind = 'window.created'
        )
        select increase.id::text || ' in ' || frozen.subject as trespass
        from increases increase
        join freezes frozen on frozen.made < increase.id and (frozen.gone is null or frozen.gone > increase.id)
            and frozen.begins <= increase.at and increase.at < frozen.ends
        where not exists (
            select from told lifted
            where lifted.kind = 'window.overridden' and lifted.subject = frozen.subject and lifted.id < increase.id
                and increase.data -> 'window_override_ids' ? (lifted.data ->> 'window_override_id')
                and increase.at < (lifted.data ->> 'ends_at')::timestamptz
        )";
    let rows = sqlx::query(trespasses).fetch_all(&mut db).await.unwrap();
    rows.iter().map(|row| row.get("trespass")).collect()
}

#[tokio::test]
async fn i6_no_increase_commits_inside_a_freeze_without_an_override_of_it() {
    let (mut refused, mut raised, mut lifted) = (0, 0, 0);
    for seed in 0..4 {
        let mut world = World::begin().await;
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..COMMANDS {
            world.step(&mut rng).await;
        }
        assert_eq!(trespasses(&world.stack).await, Vec::<String>::new(), "seed {seed}");
        let advanced = "select count(*) from release.events where kind = 'rollout.advanced'";
        let by_override = "select count(*) from release.events
            where kind like 'rollout.%' and data::jsonb -> 'window_override_ids' <> '[]'";
        refused += world.refused;
        raised += world.stack.database.count(advanced).await;
        lifted += world.stack.database.count(by_override).await;
    }
    assert!(
        refused > 0 && raised > 0 && lifted > 0,
        "refused {refused}, raised {raised}, by overrides {lifted}"
    );
}

#[tokio::test]
async fn i7_a_decrease_works_whatever_is_frozen_or_stopped() {
    for seed in 10..13 {
        let mut world = World::begin().await;
        let mut rng = StdRng::seed_from_u64(seed);
        while world.rollout.is_none() {
            world.step(&mut rng).await;
        }
        let now = world.stack.now();
        let frozen = (0..3).map(|_| {
            let span = |at: Time| at.format("%Y-%m-%dT%H:%M:%S").to_string();
            freeze(&span(now - TimeDelta::hours(1)), &span(now + TimeDelta::hours(9)))
        });
        join_all(frozen.map(|window| create_window(&world.there, window))).await;
        let request = pb::StopTheLineRequest { reason: "all hands".to_owned(), ..Default::default() };
        world.there.windows().stop_the_line(request).await.answer();
        let rollout = world.rollout.clone().unwrap();
        let refused = world.here.rollouts().advance_rollout(advance(&rollout)).await;
        refused.refused(Code::FailedPrecondition, "ROLLOUT_BLOCKED");
        let caller = world.caller(&mut rng).clone();
        world.roll_back(&caller).await;
    }
}
