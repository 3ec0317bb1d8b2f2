//! Whatever is asked for, in whatever order and by however many at once: the trail has one event for each transition,
//! without gaps, and tells how every row came to be what it is. Commands are drawn from a seed, which a failure names.

use std::collections::{BTreeSet, HashMap};

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;
use shared::pb::release as pb;
use tonic::{Code, Status};

use crate::audit::{list_all, verify};
use crate::harness::shop::{
    advance, create_catalog, create_component, create_policy, draft, rollback, start, submission,
};
use crate::harness::{Answer as _, Caller, Options, Stack, person};

/// One is approved as it is submitted, the other by a vote.
const COMPONENTS: [&str; 2] = ["storefront", "checkout"];

/// Does this and that, in the name of one person or another.
struct Writer {
    people: Vec<Caller>,
    rng: StdRng,
    refusals: usize,
}

async fn releases(caller: &Caller) -> Vec<pb::Release> {
    let request = pb::ListReleasesRequest { page_size: 1000, ..Default::default() };
    caller.releases().list_releases(request).await.answer().releases
}

async fn rollouts(caller: &Caller) -> Vec<pb::Rollout> {
    let request = pb::ListRolloutsRequest { page_size: 1000, ..Default::default() };
    caller.rollouts().list_rollouts(request).await.answer().rollouts
}

impl Writer {
    fn new(people: Vec<Caller>, seed: u64) -> Self {
        Self { people, rng: StdRng::seed_from_u64(seed), refusals: 0 }
    }

    /// Mostly one that is where the command makes sense; anything else now and then, to be refused.
    fn any<T>(&mut self, mut all: Vec<T>, makes_sense: impl Fn(&T) -> bool) -> Option<T> {
        if self.rng.random_bool(0.7) && all.iter().any(&makes_sense) {
            all.retain(makes_sense);
        }
        let count = all.len();
        (count > 0).then(|| all.swap_remove(self.rng.random_range(0..count)))
    }

    async fn write(&mut self, count: usize) {
        for _ in 0..count {
            if let Err(status) = self.step().await {
                let code = status.code();
                self.refusals +=
                    usize::from(matches!(code, Code::PermissionDenied | Code::FailedPrecondition));
                let is_expected = matches!(
                    code,
                    Code::PermissionDenied | Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted
                );
                assert!(is_expected, "{status:?}");
            }
        }
    }

    async fn step(&mut self) -> Result<(), Status> {
        let who = self.people[self.rng.random_range(0..self.people.len())].clone();
        let command = self.rng.random_range(0..16);
        if command < 3 {
            // Mostly greater than those before.
            let version = releases(&who).await.len() + self.rng.random_range(0..3);
            let version = format!("1.{version}");
            let component = COMPONENTS[self.rng.random_range(0..2)].to_owned();
            let request = pb::CreateReleaseRequest { component, ..draft(&version) };
            return who.releases().create_release(request).await.map(drop);
        }
        if command >= 12 {
            let is_running = |rollout: &pb::Rollout| rollout.state() == pb::RolloutState::Running;
            let Some(rollout) = self.any(rollouts(&who).await, is_running) else { return Ok(()) };
            return if command < 14 {
                who.rollouts().advance_rollout(advance(&rollout)).await.map(drop)
            } else if rollout.state() == pb::RolloutState::Succeeded && self.rng.random_bool(0.9) {
                // Mostly something is there that a canary can be compared with.
                Ok(())
            } else {
                who.rollouts().roll_back_rollout(rollback(&rollout)).await.map(drop)
            };
        }
        let state = match command {
            3..=5 => pb::ReleaseState::Draft,
            6..=8 => pb::ReleaseState::PendingApproval,
            _ => pb::ReleaseState::Approved,
        };
        let makes_sense = |release: &pb::Release| release.state() == state;
        let Some(release) = self.any(releases(&who).await, makes_sense) else { return Ok(()) };
        let (release_id, reason) = (release.release_id.clone(), "because".to_owned());
        match command {
            3 | 4 => who.releases().submit_release(submission(&release)).await.map(drop),
            5 => {
                let request = pb::CancelReleaseRequest { release_id, reason, ..Default::default() };
                who.releases().cancel_release(request).await.map(drop)
            }
            6 | 7 => {
                let request = pb::ApproveReleaseRequest { release_id, ..Default::default() };
                who.approvals().approve_release(request).await.map(drop)
            }
            8 => {
                let request = pb::RejectReleaseRequest { release_id, reason, ..Default::default() };
                who.approvals().reject_release(request).await.map(drop)
            }
            _ => {
                let steps: &[i32] = if self.rng.random_bool(0.3) { &[] } else { &[1000, 5000, 10_000] };
                who.rollouts().start_rollout(start(&release, steps)).await.map(drop)
            }
        }
    }
}

/// Some who write at once, each at one of two replicas.
async fn write(writers: u64, steps: usize, seed: u64) -> (Stack, Caller, usize) {
    let stack = Stack::releases();
    let replica = stack.release_svc(&Options::default());
    let ada = stack.caller(&person("ada"));
    create_catalog(&ada).await;
    create_policy(&ada, "two-eyes", 1).await;
    let component = pb::Component {
        component: COMPONENTS[1].to_owned(),
        approval_policy: "two-eyes".to_owned(),
        ..Default::default()
    };
    create_component(&ada, component).await;
    let people = ["ada", "bob", "eve"].map(|sub| stack.caller(&person(sub)));
    let at = |n: u64, who: &Caller| if n.is_multiple_of(2) { who.clone() } else { who.at_release(&replica) };
    let mut all: Vec<_> = (0..writers)
        .map(|n| Writer::new(people.iter().map(|who| at(n, who)).collect(), seed * 100 + n))
        .collect();
    join_all(all.iter_mut().map(|writer| writer.write(steps))).await;
    (stack, ada, all.iter().map(|writer| writer.refusals).sum())
}

/// State and number of transitions of every object, as the events of this kind tell.
fn replay(events: &[pb::AuditEvent], kind: &str) -> HashMap<String, (String, i64)> {
    let mut told: HashMap<String, (String, i64)> = HashMap::new();
    for event in events.iter().filter(|event| event.kind.starts_with(kind)) {
        let record: Value = serde_json::from_str(&event.record).unwrap();
        let (from, to) = (&record["data"]["from"], record["data"]["to"].as_str().unwrap());
        let before = told.get(&event.subject);
        assert_eq!(from.as_str(), before.map(|(state, _)| state.as_str()), "{event:?}");
        let count = before.map_or(0, |(_, count)| *count) + 1;
        told.insert(event.subject.clone(), (to.to_owned(), count));
    }
    told
}

async fn assert_told(caller: &Caller, refusals: usize, seed: u64) {
    let events = list_all(caller).await;
    let numbers = events.iter().map(|event| event.seq);
    assert!(numbers.eq((1..).take(events.len())), "seed {seed}: gaps");
    assert_eq!(verify(caller, "").await, Ok(i64::try_from(events.len()).unwrap()), "seed {seed}");
    // The etag of a release counts transitions.
    let transitions = |etag: &str| etag[1..].parse::<i64>().unwrap();
    let are = releases(caller).await.into_iter().map(|release| {
        let state = release.state().as_str_name().trim_start_matches("RELEASE_STATE_").to_owned();
        (release.release_id, (state, transitions(&release.etag)))
    });
    assert_eq!(replay(&events, "release."), are.collect(), "seed {seed}");
    let are = rollouts(caller).await.into_iter().map(|rollout| {
        let state = rollout.state().as_str_name().trim_start_matches("ROLLOUT_STATE_").to_owned();
        (rollout.rollout_id, state)
    });
    let told = replay(&events, "rollout.").into_iter().map(|(id, (state, _))| (id, state));
    assert_eq!(told.collect::<HashMap<_, _>>(), are.collect(), "seed {seed}");
    let denied = events.iter().filter(|event| event.verdict() == pb::AuditVerdict::Deny);
    assert_eq!(denied.count(), refusals, "seed {seed}");
}

#[tokio::test]
async fn i11_each_transition_is_one_event_and_the_events_replayed_are_the_rows() {
    let mut kinds = BTreeSet::new();
    for seed in 0..4 {
        let (_stack, caller, refusals) = write(1, 120, seed).await;
        assert!(refusals > 10, "seed {seed}");
        kinds.extend(list_all(&caller).await.into_iter().map(|event| event.kind));
        assert_told(&caller, refusals, seed).await;
    }
    for kind in ["release.superseded", "release.rejected", "rollout.rolled_back", "rollout.advanced"] {
        assert!(kinds.contains(kind), "no seed came to {kind}: {kinds:?}");
    }
}

#[tokio::test]
async fn i11_numbers_have_no_gap_and_the_chain_holds_under_eight_writers_at_two_replicas() {
    for seed in 10..12 {
        let (_stack, caller, refusals) = write(8, 30, seed).await;
        assert_told(&caller, refusals, seed).await;
    }
}

/// A crash midway leaves neither a number nor a lock.
#[tokio::test]
async fn a_transaction_that_ends_without_its_commit_leaves_no_gap_and_holds_nobody_up() {
    let stack = Stack::releases();
    let caller = stack.caller(&person("ada"));
    create_catalog(&caller).await;
    let mut db = stack.database.connect().await;
    let insert = "begin; insert into release.events \
        (tenant_id, kind, subject, principal, occurred_at, data, trace_parent) \
        values ('shop', 'test.counted', 'x', 'system', '2027-01-15T08:00:00Z', '{}', '')";
    sqlx::raw_sql(insert).execute(&mut db).await.unwrap();
    // It has told of something and is not through: nobody waits for it.
    let before = list_all(&caller).await.len();
    caller.releases().create_release(draft("1.0")).await.answer();
    drop(db);
    caller.releases().create_release(draft("1.1")).await.answer();
    let events = list_all(&caller).await;
    assert_eq!((events.len(), events.last().unwrap().seq), (before + 2, i64::try_from(before).unwrap() + 2));
    assert_told(&caller, 0, 0).await;
}
