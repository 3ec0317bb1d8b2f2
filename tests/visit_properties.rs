//! What holds of visits whatever becomes of the rollouts that they are on, by the numbers of the invariants: two replicas of
//! either service, rollouts that are started, taken further and back, and clocks that jump. Everything is drawn from a
//! seed, which a failure names.

use std::collections::{BTreeMap, BTreeSet};

use chrono::TimeDelta;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use session_svc::domain::visit::bucket;
use shared::id::SessionId;
use shared::pb::release as rpb;
use shared::pb::release::{AssignmentPolicy, RolloutState};
use shared::pb::session as pb;
use shared::pb::session::{Arm, Verdict};

use crate::harness::shop::{
    advance, create_release, create_session_with_pins, rollback, session_id, start as rollout_of, submit,
    validate_strong,
};
use crate::harness::{Answer as _, Caller, Options, Service, Stack, reason_of};
use crate::routing::start;

const SEEDS: u64 = 3;
const ROUNDS: usize = 80;

/// A session and what it was seen on. It calls one replica only: what a visit begins with is written with others, a moment
/// after it was answered.
struct Visitor {
    /// Index of the caller of that replica.
    at: usize,
    id: SessionId,
    token: String,
    /// The rollout whose canary it is on, and the release.
    canary: Option<(String, String)>,
    /// Rollouts whose canary it was taken off.
    left: BTreeSet<String>,
}

struct World {
    stack: Stack,
    /// Callers of the replicas of session-svc, each with one of release-svc.
    callers: [Caller; 2],
    replicas: Option<(Service, Service)>,
    rng: StdRng,
    visitors: Vec<Visitor>,
    /// Rollouts by id, and the highest exposure that each was asked for.
    exposures: BTreeMap<String, i32>,
    under_way: Option<rpb::Rollout>,
    versions: usize,
    canaries: usize,
    taken_off: usize,
}

impl World {
    async fn begin(seed: u64) -> Self {
        let (stack, caller) = start().await;
        let release = stack.release_svc(&Options::default());
        let session = stack.session_svc(&Options { release: Some(release.address), ..Options::default() });
        let there = caller.at_session(&session).at_release(&release);
        Self {
            callers: [caller, there],
            replicas: Some((session, release)),
            stack,
            rng: StdRng::seed_from_u64(seed),
            visitors: vec![],
            exposures: BTreeMap::new(),
            under_way: None,
            versions: 0,
            canaries: 0,
            taken_off: 0,
        }
    }

    async fn step(&mut self) {
        let at = self.rng.random_range(0..2);
        let caller = self.callers[at].clone();
        match self.rng.random_range(0..20) {
            0..5 => self.come(at).await,
            5..14 => self.come_back().await,
            14..17 => self.roll_on(&caller).await,
            17 => self.roll_back(&caller).await,
            18 => self.stack.advance(TimeDelta::minutes(self.rng.random_range(1..8))),
            _ => self.restart().await,
        }
    }

    /// A new session.
    async fn come(&mut self, at: usize) {
        let created = create_session_with_pins(&self.callers[at]).await;
        let (id, token) = (session_id(created.session.as_ref().unwrap()), created.session_token);
        self.visitors
            .push(Visitor { at, id, token, canary: None, left: BTreeSet::new() });
        self.see(self.visitors.len() - 1, &created.pins);
    }

    /// A call of one of the sessions.
    async fn come_back(&mut self) {
        if !self.visitors.is_empty() {
            let n = self.rng.random_range(0..self.visitors.len());
            self.see_again(n).await;
        }
    }

    async fn see_again(&mut self, n: usize) {
        let Visitor { at, token, .. } = &self.visitors[n];
        let seen = validate_strong(&self.callers[*at], token).await;
        if seen.verdict() == Verdict::Active {
            self.see(n, &seen.pins);
        }
    }

    fn see(&mut self, n: usize, pins: &[pb::ReleasePin]) {
        let visitor = &mut self.visitors[n];
        let pin = pins.first().expect("something is served");
        if pin.arm() == Arm::Canary {
            let rollout = &pin.rollout_id;
            // I9: by the hash of the session, and the share that was asked for.
            let exposure = self.exposures.get(rollout).copied().unwrap_or(0);
            let dealt = i32::try_from(bucket(rollout, visitor.id)).unwrap();
            assert!(dealt < exposure, "{dealt} on {rollout}, which {exposure} see");
            // I8: nobody comes back.
            assert!(!visitor.left.contains(rollout), "back on {rollout}");
            self.canaries += 1;
            visitor.canary = Some((rollout.clone(), pin.release_id.clone()));
        } else if let Some((rollout, _)) = visitor.canary.take_if(|(_, release)| *release != pin.release_id) {
            self.taken_off += 1;
            visitor.left.insert(rollout);
        }
    }

    /// Starts a rollout, or takes it a step further.
    async fn roll_on(&mut self, caller: &Caller) {
        let answer = if let Some(rollout) = &self.under_way {
            let exposure = self.exposures.get_mut(&rollout.rollout_id).unwrap();
            *exposure = if *exposure == 2000 { 6000 } else { 10_000 };
            caller
                .rollouts()
                .advance_rollout(advance(rollout))
                .await
                .map(|it| it.into_inner().rollout)
        } else {
            self.versions += 1;
            let release =
                submit(caller, &create_release(caller, &format!("1.{}", self.versions)).await).await;
            let policy = if self.rng.random_bool(0.5) {
                AssignmentPolicy::NewVisits
            } else {
                AssignmentPolicy::AllSessions
            };
            let request = rpb::StartRolloutRequest {
                assignment_policy: policy.into(),
                ..rollout_of(&release, &[2000, 6000])
            };
            caller.rollouts().start_rollout(request).await.map(|it| it.into_inner().rollout)
        };
        match answer {
            Ok(rollout) => {
                let rollout = rollout.unwrap();
                self.exposures.entry(rollout.rollout_id.clone()).or_insert(2000);
                self.under_way = Some(rollout).filter(|it| it.state() == RolloutState::Running);
            }
            // Not every replica has said yet that the one before is gone.
            Err(status) => assert_eq!(reason_of(&status), "ROLLOUT_BLOCKED", "{status:?}"),
        }
    }

    async fn roll_back(&mut self, caller: &Caller) {
        if let Some(rollout) = self.under_way.take() {
            caller.rollouts().roll_back_rollout(rollback(&rollout)).await.answer();
        }
    }

    /// One release-svc is killed, and comes back where it was; the session-svc that follows it is told to stop, as visits that
    /// have just begun are not written at once.
    async fn restart(&mut self) {
        // It answers, so that it is not stopped as it starts.
        self.come(1).await;
        let (session, release) = self.replicas.take().unwrap();
        let (session_at, release_at) = (session.address, release.address);
        drop(release);
        session.stop().await;
        let options = Options { listen: release_at, ..Options::default() };
        let release = self.stack.release_svc(&options);
        let options = Options { listen: session_at, release: Some(release_at), ..Options::default() };
        let session = self.stack.session_svc(&options);
        self.callers[1] = self.callers[0].at_session(&session).at_release(&release);
        self.replicas = Some((session, release));
    }
}

#[tokio::test]
async fn i8_i9_arms_are_dealt_by_the_hash_and_nobody_comes_back_to_a_canary() {
    let (mut canaries, mut taken_off) = (0, 0);
    for seed in 0..SEEDS {
        eprintln!("seed {seed}");
        let mut world = World::begin(seed).await;
        for _ in 0..ROUNDS {
            world.step().await;
        }
        // Whoever is left on a canary that went is seen to be taken off it.
        let caller = world.callers[0].clone();
        world.roll_back(&caller).await;
        for n in 0..world.visitors.len() {
            world.see_again(n).await;
        }
        canaries += world.canaries;
        taken_off += world.taken_off;
    }
    assert!(canaries > 10 && taken_off > 3, "{canaries} on a canary, {taken_off} taken off");
}
