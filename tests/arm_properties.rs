//! What holds of the arms of sessions whichever replica they ask and whatever becomes of one, by the numbers of the
//! invariants. What happens is drawn from a seed, which a failure names.

use chrono::TimeDelta;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use session_svc::domain::visit::bucket;
use shared::id::SessionId;
use shared::pb::session as pb;
use shared::pb::session::{Arm, Verdict};
use shared::time::{Time, from_proto};
use sqlx::Row as _;
use tonic::Code;

use crate::harness::router::{Router, moving, rolling, with_rollout};
use crate::harness::shop::{create_session, create_session_with_pins, pin, validate_strong};
use crate::harness::{Caller, Service, Stack, assert_refused};
use crate::signal::record;
use crate::visit::{by_token, hold, start};

const SESSIONS: usize = 10;
/// Of these some are there before the rollout is.
const EARLY: usize = 3;
const TURNS: usize = 60;

/// A session, and which arm it was on whenever it was asked for.
struct Shopper {
    token: String,
    is_canary: Vec<bool>,
    /// On which arm, and until when.
    held: Option<(bool, Time)>,
}

/// Two replicas that follow a rollout, and the sessions that ask them.
struct World {
    replica: Option<Service>,
    stack: Stack,
    router: Router,
    here: Caller,
    there: Caller,
    moves: bool,
    exposures: Vec<i32>,
    shoppers: Vec<Shopper>,
}

impl World {
    async fn begin(moves: bool, exposure_bps: i32) -> Self {
        let (stack, router, here) = start().await;
        let replica = stack.session_svc(&router.linked());
        let there = here.at_session(&replica);
        let (exposures, shoppers) = (vec![exposure_bps], vec![]);
        let replica = Some(replica);
        let mut world = Self { replica, stack, router, here, there, moves, exposures, shoppers };
        for n in 0..SESSIONS {
            if n == EARLY {
                world.tell().await;
            }
            let (_, token) = create_session(&world.here).await;
            world.shoppers.push(Shopper { token, is_canary: vec![], held: None });
        }
        world
    }

    /// Both replicas learn where the rollout is, and that release-svc is there.
    async fn tell(&self) {
        let step = self.exposures.len() - 1;
        let route = with_rollout(rolling(self.exposures[step], &["slow"]), |rollout| {
            rollout.step = i32::try_from(step).unwrap();
        });
        self.router.send_to(2, if self.moves { moving(route) } else { route }).await;
    }

    fn some_replica(&self, rng: &mut StdRng) -> Caller {
        if rng.random_bool(0.5) { self.here.clone() } else { self.there.clone() }
    }

    /// As the row has it, as what a replica remembers of another one's write may be a second old.
    async fn call(&mut self, n: usize, caller: &Caller) {
        let shopper = &mut self.shoppers[n];
        let seen = validate_strong(caller, &shopper.token).await;
        assert_eq!(seen.verdict(), Verdict::Active);
        let is_canary = pin(&seen.pins).1 == Arm::Canary;
        if let Some((held_on, _)) = shopper.held.filter(|(_, until)| self.stack.now() < *until) {
            assert_eq!(is_canary, held_on, "what is held stays where it is");
        }
        shopper.is_canary.push(is_canary);
    }

    async fn hold(&mut self, n: usize, caller: &Caller) {
        let answer = caller.visits().hold_pin(hold(by_token(&self.shoppers[n].token), 120)).await;
        match answer.map(tonic::Response::into_inner) {
            Ok(pb::HoldPinResponse { pins, hold_end_time }) => {
                let until = from_proto(hold_end_time.unwrap()).unwrap();
                self.shoppers[n].held = Some((pin(&pins).1 == Arm::Canary, until));
            }
            Err(status) => assert_refused(&status, Code::Aborted, "CONCURRENT_CHANGE"),
        }
    }

    async fn call_all(&mut self, caller: &Caller) {
        for n in 0..SESSIONS {
            self.call(n, caller).await;
        }
    }

    /// The second replica is gone midway, with what it had not written; another one comes.
    async fn replace(&mut self) {
        drop(self.replica.take());
        let replica = self.stack.session_svc(&self.router.linked());
        self.there = self.here.at_session(&replica);
        self.replica = Some(replica);
        self.tell().await;
    }

    /// release-svc is not heard of for longer than the lease: nobody new goes to the canary, and nobody leaves it.
    async fn cut(&mut self, rng: &mut StdRng) {
        let caller = self.some_replica(rng);
        self.call_all(&caller).await;
        self.router.fall_silent(true);
        self.stack.advance(TimeDelta::minutes(6));
        for n in 0..SESSIONS {
            let caller = self.some_replica(rng);
            self.call(n, &caller).await;
            let [.., before, after] = self.shoppers[n].is_canary[..] else { panic!("asked for once") };
            assert_eq!(before, after, "without the lease everyone stays");
        }
        for caller in [&self.here, &self.there] {
            assert_ne!(pin(&create_session_with_pins(caller).await.pins).1, Arm::Canary);
        }
        self.router.fall_silent(false);
        self.tell().await;
    }

    async fn turn(&mut self, rng: &mut StdRng) {
        let (n, caller) = (rng.random_range(0..SESSIONS), self.some_replica(rng));
        match rng.random_range(0..20) {
            0..=9 => self.call(n, &caller).await,
            10 | 11 => self.hold(n, &caller).await,
            12 => drop(record(&caller, &self.shoppers[n].token, "slow").await),
            13 | 14 => {
                self.stack.advance(TimeDelta::minutes(rng.random_range(1..5)));
                self.tell().await;
            }
            15 | 16 => {
                let more = rng.random_range(0..2500);
                self.exposures
                    .push((self.exposures[self.exposures.len() - 1] + more).min(10_000));
                self.tell().await;
            }
            17 => self.cut(rng).await,
            _ => self.replace().await,
        }
    }

    /// Step, arm and session of everything that was dealt, and of every outcome.
    async fn dealt(&self) -> Vec<(usize, bool, SessionId)> {
        let dealt = "select step, is_canary, session_id from session.enrolments \
                     union all select step, is_canary, session_id from session.redeals \
                     union all select step, is_canary, session_id from session.outcomes";
        let rows = sqlx::query(dealt)
            .fetch_all(&mut self.stack.database.connect().await)
            .await
            .unwrap();
        rows.iter()
            .map(|row| {
                let step: i32 = row.get("step");
                (
                    usize::try_from(step).unwrap(),
                    row.get("is_canary"),
                    SessionId::from_uuid(row.get("session_id")),
                )
            })
            .collect()
    }
}

async fn run(seed: u64) -> World {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = World::begin(seed % 2 == 1, rng.random_range(500..3000)).await;
    for _ in 0..TURNS {
        world.turn(&mut rng).await;
    }
    let here = world.here.clone();
    world.call_all(&here).await;
    world
}

/// Nothing here takes the canary back until the end, so up to then nobody may leave it; and who leaves it then does not come
/// back.
#[tokio::test]
async fn i8_no_session_goes_from_a_canary_to_control_and_back_though_replicas_die_and_release_svc_is_away() {
    let mut exposed = 0;
    for seed in 0..6 {
        let mut world = run(seed).await;
        for shopper in &world.shoppers {
            assert!(shopper.is_canary.is_sorted(), "seed {seed}: {:?}", shopper.is_canary);
        }
        let were: Vec<_> = world
            .shoppers
            .iter()
            .map(|shopper| shopper.is_canary.ends_with(&[true]))
            .collect();
        exposed += were.iter().filter(|was| **was).count();
        crate::kill::kill(&world.here, 1).await;
        let (here, there) = (world.here.clone(), world.there.clone());
        world.shoppers.iter_mut().for_each(|shopper| shopper.held = None);
        world.call_all(&here).await;
        crate::kill::unkill(&world.here, 1).await;
        for caller in [&there, &here] {
            world.stack.advance(TimeDelta::minutes(4));
            world.tell().await;
            for n in (0..SESSIONS).filter(|n| were[*n]) {
                world.call(n, caller).await;
                assert!(world.shoppers[n].is_canary.ends_with(&[false]), "seed {seed}: it came back");
            }
        }
    }
    assert!(exposed > 0, "the seeds expose nobody");
}

#[tokio::test]
async fn i9_every_unit_and_every_outcome_is_counted_under_the_arm_that_the_hash_deals_in_its_step() {
    let (mut redealt, mut outcomes) = (0, 0);
    for seed in [101, 102, 103] {
        let world = run(seed).await;
        let dealt = world.dealt().await;
        assert!(!dealt.is_empty());
        for (step, is_canary, session) in dealt {
            let exposure_bps = u32::try_from(world.exposures[step]).unwrap();
            assert_eq!(is_canary, bucket("salt", session) < exposure_bps, "seed {seed}, step {step}");
        }
        redealt += world.stack.database.count("select count(*) from session.redeals").await;
        outcomes += world.stack.database.count("select count(*) from session.outcomes").await;
    }
    assert!(redealt > 0 && outcomes > 0, "{redealt} {outcomes}");
}
