//! What holds of rollouts whatever is asked for, reported and killed, in whatever order, by the numbers of the invariants.
//! Commands are drawn from a seed, which a failure names, and go to two replicas at once, one of which is killed now and
//! then. What came of it is read from the trail.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use shared::pb::release as pb;
use shared::pb::release::{GuardMode, RolloutState, TaskOutcome};
use shared::time::duration_to_proto;
use tokio::task::yield_now;
use tonic::{Code, Status};

use crate::harness::fleet::{At, Fleet};
use crate::harness::govern::{Size, approval, change, hand_in, member};
use crate::harness::shop::{advance, rollback, seconds, start};
use crate::harness::{Answer as _, Caller, ENVIRONMENT, Options, Service, eventually, reason_of};
use crate::rollout_control::resume;
use crate::rollout_trail::{BAKE, Counts, assert_counts, assert_trail};

const SEEDS: u64 = 8;
const ROUNDS: usize = 16;
/// Commands at once.
const AT_ONCE: usize = 3;
const COMPONENTS: [&str; 2] = ["shop", "pay"];

#[derive(Debug)]
enum Command {
    Start(pb::StartRolloutRequest),
    Approve(pb::Rollout),
    Advance(pb::Rollout),
    Skip(pb::Rollout),
    Pause(pb::Rollout),
    Resume(pb::Rollout),
    RollBack(pb::Rollout),
    Work(&'static str, TaskOutcome),
    Confirm(pb::Rollout),
    Tell(pb::ReportSignalsRequest),
}

/// Who asks one of the replicas.
struct Callers {
    author: Caller,
    boss: Caller,
    /// One of the two.
    either: Caller,
    service: Caller,
}

/// Two replicas, and what session services have counted.
struct World {
    fleet: Fleet,
    /// Enough for any band that comes up.
    voters: [Caller; 3],
    there: Option<Service>,
    rng: StdRng,
    versions: usize,
    sent: Counts,
    /// Those that were answered.
    known: Counts,
}

impl World {
    async fn begin(seed: u64) -> Self {
        let fleet = Fleet::start(None).await;
        for component in COMPONENTS {
            fleet.bring(component, At::Baking).await;
        }
        // An epoch is past once another one came after it.
        fleet.service.routing().report_signals(report("1", vec![])).await.answer();
        let there = Some(fleet.stack.release_svc(&Options::default()));
        let (sent, known) = (Counts::new(), Counts::new());
        let groups = ["ops", "design", "finance"];
        let voters = groups.map(|group| member(&fleet.stack, &format!("of-{group}"), &[group]));
        Self { fleet, voters, there, rng: StdRng::seed_from_u64(seed), versions: 1, sent, known }
    }

    async fn rollouts(&self) -> Vec<pb::Rollout> {
        let request = pb::ListRolloutsRequest { page_size: 1000, ..Default::default() };
        self.fleet.author.rollouts().list_rollouts(request).await.answer().rollouts
    }

    async fn draw(&mut self, rollouts: &[pb::Rollout]) -> Command {
        // Mostly one that something can be done with.
        let live: Vec<_> = rollouts.iter().filter(|rollout| rollout.end_time.is_none()).collect();
        let any = match live.choose(&mut self.rng) {
            Some(rollout) if self.rng.random_bool(0.9) => (*rollout).clone(),
            _ => rollouts.choose(&mut self.rng).unwrap().clone(),
        };
        match self.rng.random_range(0..20) {
            0..3 => self.draw_start().await,
            3 => Command::Approve(any),
            4 => Command::Advance(any),
            5 => Command::Skip(any),
            6 => Command::Pause(any),
            7 => Command::Resume(any),
            8 => Command::RollBack(any),
            9..14 => {
                let is_done = self.rng.random_bool(0.8);
                let outcome = if is_done { TaskOutcome::Done } else { TaskOutcome::Failed };
                Command::Work(COMPONENTS.choose(&mut self.rng).unwrap(), outcome)
            }
            14..18 => Command::Confirm(any),
            _ => self.draw_report(&any),
        }
    }

    /// A release, mostly approved, that starts or waits.
    async fn draw_start(&mut self) -> Command {
        self.versions += 1;
        let component = (*COMPONENTS.choose(&mut self.rng).unwrap()).to_owned();
        let version = format!("1.{}", self.versions);
        let draft = pb::CreateReleaseRequest { component, ..change(&version, Size::Small, &[]) };
        let release = hand_in(&self.fleet.author, draft).await;
        if self.rng.random_bool(0.7) {
            self.vote(&release).await;
        }
        let mode = if self.rng.random_bool(0.5) { GuardMode::Pause } else { GuardMode::Rollback };
        let guard = pb::Guard { name: "checkout".to_owned(), mode: mode.into(), ..Default::default() };
        let min_bake = self.rng.random_bool(0.8).then(|| duration_to_proto(BAKE.to_std().unwrap()));
        let drain_deadline = self.rng.random_bool(0.5).then(|| seconds(3600));
        let plan = pb::RolloutPlan { guards: vec![guard], min_bake, drain_deadline, ..Default::default() };
        let steps = start(&release, &[1000, 5000]);
        Command::Start(pb::StartRolloutRequest { plan: Some(plan), wait: true, ..steps })
    }

    /// Everyone approves it who has not yet, as far as it takes.
    async fn vote(&self, release: &pb::Release) {
        for voter in &self.voters {
            if let Err(status) = voter.approvals().approve_release(approval(release)).await {
                let reasons = ["RELEASE_WRONG_STATE", "VOTE_EXISTS"];
                assert!(reasons.contains(&reason_of(&status).as_str()), "{status:?}");
            }
        }
    }

    /// Counts that are good, bad or sure, in this epoch or the one before, more or less than before, in any order, and the
    /// whole of it twice.
    fn draw_report(&mut self, rollout: &pb::Rollout) -> Command {
        let rng = &mut self.rng;
        let good = ([100, 900], [5, 40]);
        let (units, failures) =
            [good, ([100, 900], [20, 40]), ([100_000, 900_000], [1000, 9000])][rng.random_range(0..3)];
        let fewer = rng.random_range(1..=3);
        let mut counts = Vec::new();
        for (guard, arms) in [("", units), ("checkout", failures)] {
            for (is_canary, count) in [(true, arms[0]), (false, arms[1])] {
                let of = |count| pb::SignalCount { step: 0, is_canary, guard: guard.to_owned(), count };
                counts.extend([of(count / fewer), of(count / 4)]);
            }
        }
        counts.rotate_left(rng.random_range(0..8));
        let (tenant, rollout_id) = ("shop".to_owned(), rollout.rollout_id.clone());
        let signals = pb::RolloutSignals { tenant, rollout_id, counts, visits: None };
        let epoch = if rng.random_bool(0.8) { "2" } else { "1" };
        Command::Tell(report(epoch, vec![signals.clone(), signals]))
    }

    /// Some commands at once, as one of the replicas may be killed; then the clock may jump.
    async fn round(&mut self, tally: &mut BTreeMap<String, usize>) {
        let rollouts = self.rollouts().await;
        let there = self.there.take().unwrap();
        let mut commands = Vec::new();
        for _ in 0..AT_ONCE {
            let command = self.draw(&rollouts).await;
            if let Command::Tell(report) = &command {
                merge(&mut self.sent, report);
            }
            let is_there = self.rng.random_bool(0.5);
            let at = |caller: &Caller| if is_there { caller.at_release(&there) } else { caller.clone() };
            let Fleet { author, boss, service, .. } = &self.fleet;
            let either = if self.rng.random_bool(0.5) { author } else { boss };
            let callers =
                Callers { author: at(author), boss: at(boss), either: at(either), service: at(service) };
            commands.push((command, callers, is_there));
        }
        let kills = self.rng.random_bool(0.25);
        let course = self.rng.random_range(0..3000);
        let running = join_all(commands.iter().map(|(command, who, _)| run(&self.fleet, who, command)));
        let killing = async {
            for _ in 0..course {
                yield_now().await;
            }
            if kills {
                drop(there);
                return self.fleet.stack.release_svc(&Options::default());
            }
            there
        };
        let (outcomes, there) = tokio::join!(running, killing);
        for (outcome, (command, _, is_there)) in outcomes.into_iter().zip(&commands) {
            let noted = match outcome {
                Ok(()) => "done".to_owned(),
                Err(status) if *is_there && kills && is_cut(&status) => "cut".to_owned(),
                Err(status) => reason_of(&status),
            };
            let is_refusal = ["ROLLOUT_BLOCKED", "ROLLOUT_WRONG_STATE", "SOD_VIOLATION"];
            let of_approval = ["RELEASE_WRONG_STATE", "VOTE_EXISTS", "CONCURRENT_CHANGE"];
            let is_expected = ["done", "cut"].iter().chain(&is_refusal).chain(&of_approval);
            assert!(is_expected.into_iter().any(|it| *it == noted), "{noted}: {command:?}");
            let is_forward =
                !matches!(command, Command::RollBack(_) | Command::Confirm(_) | Command::Tell(_));
            assert!(is_forward || ["done", "cut"].contains(&noted.as_str()), "{noted}: {command:?}");
            if let (Command::Tell(report), "done") = (command, noted.as_str()) {
                merge(&mut self.known, report);
            }
            *tally.entry(noted).or_default() += 1;
        }
        self.there = Some(there);
        if self.rng.random_bool(0.5) {
            self.fleet.stack.advance(TimeDelta::minutes(self.rng.random_range(0..20)));
        }
    }

    /// I17: what waits begins, once nothing is in its way. I7: all that is exposed can go back first.
    async fn let_go(&self) {
        for rollout in self.rollouts().await.iter().filter(|rollout| rollout.end_time.is_none()) {
            if rollout.state() != RolloutState::Waiting {
                self.end(rollout).await;
            }
        }
        for waiting in self.rollouts().await.iter().filter(|it| it.state() == RolloutState::Waiting) {
            let release_id = waiting.release_id.clone();
            self.vote(&pb::Release { release_id, ..Default::default() }).await;
            // Made before the last rollback, it is a person's to let go.
            let (rollout_id, reason) = (waiting.rollout_id.clone(), "it is another one".to_owned());
            let request = pb::LiftHoldRequest { rollout_id, reason, ..Default::default() };
            self.fleet.boss.rollouts().lift_hold(request).await.answer();
            eventually("what waits to begin", || async {
                (self.fleet.get(waiting).await.state() != RolloutState::Waiting).then_some(())
            })
            .await;
        }
    }

    /// Takes a rollout back; where its rollback has failed, a person ends it.
    async fn end(&self, rollout: &pb::Rollout) {
        let back = self.fleet.author.rollouts().roll_back_rollout(rollback(rollout)).await;
        let back = back.answer().rollout.unwrap();
        assert_eq!(back.exposure_bps, 0);
        self.fleet.confirm(&back).await;
        if back.state() == RolloutState::RollbackFailed {
            let (rollout_id, reason) = (back.rollout_id.clone(), "we have looked".to_owned());
            let request = pb::ResolveRolloutRequest { rollout_id, reason, ..Default::default() };
            self.fleet.boss.rollouts().resolve_rollout(request).await.answer();
        }
        self.fleet.reaches(&back, RolloutState::RolledBack).await;
    }
}

/// Whether a replica was killed before it answered.
fn is_cut(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled)
        && reason_of(status).is_empty()
}

fn report(epoch: &str, rollouts: Vec<pb::RolloutSignals>) -> pb::ReportSignalsRequest {
    pb::ReportSignalsRequest {
        environment: ENVIRONMENT.to_owned(),
        source_id: "sessions".to_owned(),
        source_epoch: epoch.to_owned(),
        rollouts,
    }
}

/// The highest counts of the newer epoch.
fn merge(counts: &mut Counts, report: &pb::ReportSignalsRequest) {
    for signals in report.rollouts.iter().filter(|_| report.source_epoch == "2") {
        for count in &signals.counts {
            let of = (signals.rollout_id.clone(), count.is_canary, count.guard.clone());
            let most = counts.entry(of).or_default();
            *most = (*most).max(count.count);
        }
    }
}

async fn run(fleet: &Fleet, who: &Callers, command: &Command) -> Result<(), Status> {
    let named = |rollout: &pb::Rollout| (rollout.rollout_id.clone(), "because".to_owned());
    let mut rollouts = who.either.rollouts();
    match command {
        Command::Start(request) => who.author.rollouts().start_rollout(request.clone()).await.map(drop),
        Command::Approve(rollout) => {
            let release = pb::Release { release_id: rollout.release_id.clone(), ..Default::default() };
            who.boss.approvals().approve_release(approval(&release)).await.map(drop)
        }
        Command::Advance(rollout) => rollouts.advance_rollout(advance(rollout)).await.map(drop),
        Command::Skip(rollout) => {
            let (rollout_id, reason) = named(rollout);
            let request = pb::SkipStepRequest { rollout_id, reason, ..Default::default() };
            rollouts.skip_step(request).await.map(drop)
        }
        Command::Pause(rollout) => {
            let (rollout_id, reason) = named(rollout);
            let request = pb::PauseRolloutRequest { rollout_id, reason, ..Default::default() };
            rollouts.pause_rollout(request).await.map(drop)
        }
        Command::Resume(rollout) => rollouts.resume_rollout(resume(rollout)).await.map(drop),
        Command::RollBack(rollout) => rollouts.roll_back_rollout(rollback(rollout)).await.map(drop),
        Command::Work(component, outcome) => work(who, component, *outcome).await,
        Command::Confirm(rollout) => {
            let request = fleet.applied(rollout).await;
            who.service.routing().report_applied(request).await.map(drop)
        }
        Command::Tell(report) => who.service.routing().report_signals(report.clone()).await.map(drop),
    }
}

/// Does the next task, if there is one. I16: not with the token of whoever had it before.
async fn work(who: &Callers, component: &str, outcome: TaskOutcome) -> Result<(), Status> {
    let (environment, components) = (ENVIRONMENT.to_owned(), vec![component.to_owned()]);
    let request = pb::LeaseTaskRequest { environment, components, ..Default::default() };
    let leased = who.author.executors().lease_task(request).await?.into_inner();
    let Some(task) = leased.task else { return Ok(()) };
    let report = |fencing_token| pb::ReportTaskRequest {
        task_id: task.task_id.clone(),
        fencing_token,
        outcome: outcome.into(),
        message: String::new(),
    };
    let stale = who.author.executors().report_task(report(leased.fencing_token - 1)).await;
    let stale = stale.expect_err("a stale token");
    if reason_of(&stale) != "TASK_LEASE_LOST" {
        return Err(stale);
    }
    match who.author.executors().report_task(report(leased.fencing_token)).await {
        // A rollback has taken the task away.
        Err(status) if reason_of(&status) == "TASK_LEASE_LOST" => Ok(()),
        reported => reported.map(drop),
    }
}

#[tokio::test]
async fn i2_i3_i7_i15_i16_i17_hold_of_rollouts_whatever_is_done_and_whoever_is_killed() {
    let (mut tally, mut kinds) = (BTreeMap::new(), BTreeMap::new());
    for seed in 0..SEEDS {
        eprintln!("seed {seed}");
        let mut world = World::begin(seed).await;
        for _ in 0..ROUNDS {
            world.round(&mut tally).await;
        }
        assert_counts(&world.fleet, &world.sent, &world.known, &world.rollouts().await).await;
        world.let_go().await;
        for kind in assert_trail(&world.fleet, &world.rollouts().await).await {
            *kinds.entry(kind).or_insert(0) += 1;
        }
    }
    for kind in ["waiting", "advanced", "paused", "resumed", "rollback_started", "rolled_back", "succeeded"] {
        assert!(kinds.contains_key(&format!("rollout.{kind}")), "{kind}: {kinds:?}");
    }
    for outcome in ["done", "cut", "ROLLOUT_WRONG_STATE"] {
        assert!(tally.contains_key(outcome), "{outcome}: {tally:?}");
    }
}
