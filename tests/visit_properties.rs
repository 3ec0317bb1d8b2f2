//! What holds of visits whatever becomes of the rollouts that they are on, by the numbers of the invariants: two replicas of
//! either service, rollouts that are started, taken further and back, and clocks that jump. Everything is drawn from a
//! seed, which a failure names.

use std::collections::{BTreeMap, BTreeSet};

use chrono::TimeDelta;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
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

/// A session and what it was seen on.
struct Visitor {
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

    fn caller(&mut self) -> Caller {
        self.callers.choose(&mut self.rng).unwrap().clone()
    }

    async fn step(&mut self) {
        let caller = self.caller();
        match self.rng.random_range(0..20) {
            0..5 => self.come(&caller).await,
            5..14 => self.return_to(&caller).await,
            14..17 => self.roll_on(&caller).await,
            17 => self.roll_back(&caller).await,
            18 => self.stack.advance(TimeDelta::minutes(self.rng.random_range(1..8))),
            _ => self.restart(),
        }
    }

    /// A new session.
    async fn come(&mut self, caller: &Caller) {
        let created = create_session_with_pins(caller).await;
        let (id, token) = (session_id(created.session.as_ref().unwrap()), created.session_token);
        self.visitors.push(Visitor { id, token, canary: None, left: BTreeSet::new() });
        self.see(self.visitors.len() - 1, &created.pins);
    }

    /// A call of a session, at whichever replica.
    async fn return_to(&mut self, caller: &Caller) {
        if self.visitors.is_empty() {
            return;
        }
        let n = self.rng.random_range(0..self.visitors.len());
        self.see_again(caller, n).await;
    }

    async fn see_again(&mut self, caller: &Caller, n: usize) {
        let seen = validate_strong(caller, &self.visitors[n].token).await;
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

    /// One replica of each service is killed, and comes back where it was.
    fn restart(&mut self) {
        let (session, release) = self.replicas.take().unwrap();
        let (session_at, release_at) = (session.address, release.address);
        drop((session, release));
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
        let caller = world.caller();
        world.roll_back(&caller).await;
        for n in 0..world.visitors.len() {
            world.see_again(&caller, n).await;
        }
        canaries += world.canaries;
        taken_off += world.taken_off;
    }
    assert!(canaries > 10 && taken_off > 3, "{canaries} on a canary, {taken_off} taken off");
}
