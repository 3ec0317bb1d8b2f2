//! What holds of releases whatever people do with them, in whatever order, at whichever replica and whenever: the
//! invariants of governance, each looked for in the database after each command. Commands are drawn from a seed, which a
//! failure names.

use std::collections::HashMap;

use chrono::TimeDelta;
use prost::Message;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use shared::issuer::Grant;
use shared::pb::release as pb;
use shared::pb::release::GovernanceProfile as Profile;
use sqlx::{PgConnection, Row as _};
use tonic::{Response, Status};

use crate::harness::govern::{
    Size, approval, change, emergency, govern, quarantine, rejection, revision, withdrawal,
};
use crate::harness::shop::{advance, request_id, rollback, start, submission};
use crate::harness::{Caller, Options, Service, Stack, person, reason_of, workload};

const SEEDS: u64 = 2;
const COMMANDS: usize = 60;
const PEOPLE: [(&str, &str); 5] =
    [("author", "dev"), ("committer", "dev"), ("cid", "dev"), ("dan", "ops"), ("eve", "business")];

/// Something that somebody does.
#[derive(Debug, Clone)]
enum Command {
    Create(pb::CreateReleaseRequest),
    Submit(pb::SubmitReleaseRequest),
    Revise(pb::ReviseReleaseRequest),
    Approve(pb::ApproveReleaseRequest),
    Reject(pb::RejectReleaseRequest),
    Withdraw(pb::WithdrawVoteRequest),
    BreakGlass(pb::UseBreakGlassRequest),
    Review(pb::ReviewBreakGlassRequest),
    Quarantine(pb::QuarantineReleaseRequest),
    Lift(pb::LiftQuarantineRequest),
    Cancel(pb::CancelReleaseRequest),
    Abandon(pb::AbandonReleaseRequest),
    Start(pb::StartRolloutRequest),
    Advance(pb::AdvanceRolloutRequest),
    RollBack(pb::RollBackRolloutRequest),
    Get(pb::GetReleaseRequest),
}

/// The answer's bytes, or why there is none.
type Outcome = Result<Vec<u8>, String>;

fn outcome<T: Message>(answer: Result<Response<T>, Status>) -> Outcome {
    answer
        .map(|answer| answer.into_inner().encode_to_vec())
        .map_err(|status| reason_of(&status))
}

async fn perform(caller: &Caller, command: Command) -> Outcome {
    match command {
        Command::Create(request) => outcome(caller.releases().create_release(request).await),
        Command::Submit(request) => outcome(caller.releases().submit_release(request).await),
        Command::Revise(request) => outcome(caller.releases().revise_release(request).await),
        Command::Approve(request) => outcome(caller.approvals().approve_release(request).await),
        Command::Reject(request) => outcome(caller.approvals().reject_release(request).await),
        Command::Withdraw(request) => outcome(caller.approvals().withdraw_vote(request).await),
        Command::BreakGlass(request) => outcome(caller.approvals().use_break_glass(request).await),
        Command::Review(request) => outcome(caller.approvals().review_break_glass(request).await),
        Command::Quarantine(request) => outcome(caller.releases().quarantine_release(request).await),
        Command::Lift(request) => outcome(caller.releases().lift_quarantine(request).await),
        Command::Cancel(request) => outcome(caller.releases().cancel_release(request).await),
        Command::Abandon(request) => outcome(caller.releases().abandon_release(request).await),
        Command::Start(request) => outcome(caller.rollouts().start_rollout(request).await),
        Command::Advance(request) => outcome(caller.rollouts().advance_rollout(request).await),
        Command::RollBack(request) => outcome(caller.rollouts().roll_back_rollout(request).await),
        Command::Get(request) => outcome(caller.releases().get_release(request).await),
    }
}

/// Two replicas, people at both, and what they have made so far.
struct World {
    stack: Stack,
    callers: Vec<Caller>,
    _replica: Service,
    db: PgConnection,
    rng: StdRng,
    releases: Vec<pb::Release>,
    rollouts: Vec<pb::Rollout>,
    break_glasses: Vec<String>,
    requests: u128,
}

impl World {
    async fn new(seed: u64) -> Self {
        let (stack, _) = govern(Profile::Standard).await;
        let replica = stack.release_svc(&Options::default());
        let mut callers = Vec::new();
        for (name, group) in PEOPLE {
            let caller = stack.caller(&Grant { groups: vec![group.to_owned()], ..person(name) });
            callers.extend([caller.at_release(&replica), caller]);
        }
        callers.push(stack.caller(&workload("machine")));
        let db = stack.database.connect().await;
        let rng = StdRng::seed_from_u64(seed);
        let (releases, rollouts, break_glasses) = (vec![], vec![], vec![]);
        Self { stack, callers, _replica: replica, db, rng, releases, rollouts, break_glasses, requests: 0 }
    }

    fn draw(&mut self) -> Command {
        self.requests += 1;
        let request_id = request_id(self.requests);
        let Some(release) = self.releases.choose(&mut self.rng).cloned() else {
            return self.create(request_id);
        };
        let (release_id, reason) = (release.release_id.clone(), "because".to_owned());
        let rollout = self.rollouts.choose(&mut self.rng).cloned().unwrap_or_default();
        match self.rng.random_range(0..34) {
            0..3 => self.create(request_id),
            3..7 => Command::Submit(pb::SubmitReleaseRequest { request_id, ..submission(&release) }),
            7 => Command::Revise(pb::ReviseReleaseRequest { request_id, ..revision(&release) }),
            8..16 => Command::Approve(pb::ApproveReleaseRequest { request_id, ..approval(&release) }),
            16 => Command::Reject(pb::RejectReleaseRequest { request_id, ..rejection(&release) }),
            17 => Command::Withdraw(pb::WithdrawVoteRequest { request_id, ..withdrawal(&release) }),
            18..20 => Command::BreakGlass(pb::UseBreakGlassRequest { request_id, ..emergency(&release) }),
            20 => {
                let break_glass_id = self.break_glasses.choose(&mut self.rng).cloned().unwrap_or_default();
                let verdict = self.rng.random_range(1..3);
                Command::Review(pb::ReviewBreakGlassRequest { break_glass_id, verdict, reason, request_id })
            }
            21 => Command::Quarantine(pb::QuarantineReleaseRequest { request_id, ..quarantine(&release) }),
            22 => Command::Lift(pb::LiftQuarantineRequest { release_id, reason, request_id }),
            23 => Command::Cancel(pb::CancelReleaseRequest {
                release_id,
                reason,
                request_id,
                ..Default::default()
            }),
            24 => Command::Abandon(pb::AbandonReleaseRequest {
                release_id,
                reason,
                request_id,
                ..Default::default()
            }),
            25..29 => Command::Start(pb::StartRolloutRequest { request_id, ..start(&release, &[100, 1000]) }),
            29..31 => Command::Advance(pb::AdvanceRolloutRequest { request_id, ..advance(&rollout) }),
            31 => Command::RollBack(pb::RollBackRolloutRequest { request_id, ..rollback(&rollout) }),
            _ => {
                let name = Some(pb::get_release_request::Name::ReleaseId(release_id));
                Command::Get(pb::GetReleaseRequest { name })
            }
        }
    }

    fn create(&mut self, request_id: String) -> Command {
        let size = *[Size::Small, Size::Small, Size::Large].choose(&mut self.rng).unwrap();
        let version = format!("1.{}", self.requests);
        let draft = change(&version, size, &["tandem-local|committer"]);
        Command::Create(pb::CreateReleaseRequest { request_id, ..draft })
    }

    /// Somebody, at one of the replicas.
    fn anybody(&mut self) -> Caller {
        self.callers.choose(&mut self.rng).unwrap().clone()
    }

    /// Keeps what a command made, for the next ones.
    fn learn(&mut self, command: &Command, outcome: &Outcome) {
        let Ok(bytes) = outcome else { return };
        if let Command::Create(_) = command {
            let made = pb::CreateReleaseResponse::decode(bytes.as_slice()).unwrap();
            self.releases.push(made.release.unwrap());
        } else if let Command::Start(_) = command {
            let made = pb::StartRolloutResponse::decode(bytes.as_slice()).unwrap();
            self.rollouts.push(made.rollout.unwrap());
        } else if let Command::BreakGlass(_) = command {
            let made = pb::UseBreakGlassResponse::decode(bytes.as_slice()).unwrap();
            self.break_glasses.push(made.break_glass.unwrap().break_glass_id);
        }
    }

    /// One command of anybody's; now and then time passes first.
    async fn step(&mut self) -> (Caller, Command, Outcome) {
        if self.rng.random_range(0..6) == 0 {
            let hours = self.rng.random_range(1..40);
            self.stack.advance(TimeDelta::hours(hours));
        }
        let (caller, command) = (self.anybody(), self.draw());
        let outcome = perform(&caller, command.clone()).await;
        self.learn(&command, &outcome);
        (caller, command, outcome)
    }

    /// How many rows a statement finds that say that something is wrong; `$1` is now.
    async fn wrong(&mut self, sql: &'static str) -> i64 {
        let now = self.stack.now();
        sqlx::query_scalar(sql).bind(now).fetch_one(&mut self.db).await.unwrap()
    }
}

/// Draws commands from each seed; after each, nothing must be wrong.
async fn nothing_is_wrong(sql: &'static str) {
    for seed in 0..SEEDS {
        let mut world = World::new(seed).await;
        let mut successes = 0;
        for _ in 0..COMMANDS {
            let (_, command, outcome) = world.step().await;
            successes += usize::from(outcome.is_ok());
            assert_eq!(world.wrong(sql).await, 0, "seed {seed}: {command:#?}");
        }
        assert!(successes > COMMANDS / 4, "seed {seed}: only {successes} commands did something");
    }
}

/// Text of a table's rows by key, to see what changes.
async fn rows(db: &mut PgConnection, sql: &'static str) -> HashMap<String, String> {
    let rows = sqlx::query(sql).fetch_all(db).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[tokio::test]
async fn i1_a_snapshot_never_changes() {
    const SNAPSHOTS: &str = "select release_id || '/' || revision, encode(digest, 'hex') || encode(body, 'hex') from release.snapshots";
    let mut world = World::new(1).await;
    let mut before = HashMap::new();
    for _ in 0..COMMANDS {
        let _ = world.step().await;
        let now = rows(&mut world.db, SNAPSHOTS).await;
        for (key, text) in &before {
            assert_eq!(now.get(key), Some(text), "{key}");
        }
        before = now;
    }
    assert!(!before.is_empty());
    // Not even by hand.
    for sql in [
        "update release.snapshots set body = 'other', digest = sha256('other')",
        "delete from release.snapshots",
        "update release.releases set notes = 'other' where state <> 'DRAFT'",
        "update release.releases set revision = revision + 2",
    ] {
        let refused = sqlx::query(sql).execute(&mut world.db).await.unwrap_err();
        assert_eq!(refused.as_database_error().unwrap().code().as_deref(), Some("23001"), "{sql}");
    }
}

#[tokio::test]
async fn i4_every_exposure_began_under_an_approval_of_that_snapshot_that_stood() {
    nothing_is_wrong(
        "select count(*) from release.rollouts rollout
        left join release.approvals approval using (tenant_id, approval_id)
        left join release.snapshots snapshot
            on snapshot.tenant_id = approval.tenant_id and snapshot.release_id = approval.release_id
            and snapshot.revision = approval.revision
        where (approval.release_id = rollout.release_id and snapshot.digest is not null
            and approval.approved_at <= started_at and coalesce(approval.expires_at > started_at, true)
            and coalesce(approval.ended_at >= started_at, true)) is not true or started_at > $1",
    )
    .await;
}

#[tokio::test]
async fn i4_every_approval_by_votes_had_the_people_that_its_band_asks_for() {
    nothing_is_wrong(
        "select count(*) from release.approvals approval
        where kind = 'VOTES' and approved_at <= $1 and
            case band when 'LOW' then 0 when 'MEDIUM' then 1 when 'HIGH' then 2 else 3 end > (
                select count(distinct person) from release.votes vote
                where vote.tenant_id = approval.tenant_id and vote.release_id = approval.release_id
                    and vote.revision = approval.revision and vote.approve and voted_at <= approved_at
                    and coalesce(vote.expires_at > approved_at, true)
                    and coalesce(vote.ended_at >= approved_at, true)
            )",
    )
    .await;
}

#[tokio::test]
async fn i5_nobody_approves_what_they_wrote_and_each_person_counts_once() {
    nothing_is_wrong(
        "select count(*) from release.votes vote
        join release.releases release using (tenant_id, release_id)
        left join release.snapshots snapshot
            on snapshot.tenant_id = vote.tenant_id and snapshot.release_id = vote.release_id
            and snapshot.revision = vote.revision
        where voted_at > $1 or person like '%|machine' or (snapshot.authors || snapshot.identities) && array[voter, person]
            or release.author = person
            or (ended_at is null and exists (
                select from release.votes other
                where other.release_id = vote.release_id and other.revision = vote.revision
                    and other.person = vote.person and other.ended_at is null and other.vote_id <> vote.vote_id))",
    )
    .await;
}

#[tokio::test]
async fn i12_the_same_request_gives_the_same_answer_and_no_second_event() {
    const EVENTS: &str = "select count(*) from release.events where occurred_at <= $1";
    for seed in 0..SEEDS {
        let mut world = World::new(seed).await;
        for _ in 0..COMMANDS {
            let (caller, command, outcome) = world.step().await;
            let events = world.wrong(EVENTS).await;
            if outcome.is_ok() && !matches!(command, Command::Get(_)) {
                assert_eq!(perform(&caller, command.clone()).await, outcome, "seed {seed}: {command:?}");
                assert_eq!(world.wrong(EVENTS).await, events, "seed {seed}: {command:?}");
            }
        }
    }
}

#[tokio::test]
async fn i13_what_has_ended_stays_as_it_ended() {
    const STATES: &str = "select release_id::text, state from release.releases";
    const FINAL: [&str; 5] = ["REJECTED", "CANCELLED", "ABANDONED", "ROLLED_BACK", "SUPERSEDED"];
    for seed in 0..SEEDS {
        let mut world = World::new(seed).await;
        let mut before = HashMap::new();
        for _ in 0..COMMANDS {
            let (_, command, _) = world.step().await;
            let now = rows(&mut world.db, STATES).await;
            for (id, state) in before
                .iter()
                .filter(|(_, state): &(_, &String)| FINAL.contains(&state.as_str()))
            {
                assert_eq!(now.get(id), Some(state), "seed {seed}: {command:?}");
            }
            before = now;
        }
        assert!(before.values().any(|state| FINAL.contains(&state.as_str())), "seed {seed}");
    }
}

#[tokio::test]
async fn i14_votes_that_expired_or_were_voided_never_count() {
    const APPROVED: &str = "select count(*) from release.approvals approval
        join release.releases release using (tenant_id, release_id, revision)
        where kind = 'VOTES' and ended_at is null and state = 'APPROVED' and (
            coalesce(expires_at <= $1, false) or quorum > (
                select count(distinct person) from release.votes vote
                where vote.release_id = release.release_id and vote.revision = release.revision and vote.approve
                    and vote.ended_at is null and coalesce(vote.expires_at > $1, true)))";
    for seed in 0..SEEDS {
        let mut world = World::new(seed).await;
        for _ in 0..COMMANDS {
            let (_, command, _) = world.step().await;
            // What a look finds is what anybody who exposes it finds.
            for release in world.releases.clone() {
                let name = Some(pb::get_release_request::Name::ReleaseId(release.release_id));
                perform(&world.callers[0].clone(), Command::Get(pb::GetReleaseRequest { name }))
                    .await
                    .unwrap();
            }
            assert_eq!(world.wrong(APPROVED).await, 0, "seed {seed}: {command:?}");
        }
    }
}

#[tokio::test]
async fn i19_what_is_quarantined_gains_no_exposure() {
    const EXPOSURES: &str = "select rollout_id::text, exposure_bps::text from release.rollouts
        join release.releases using (tenant_id, release_id) where quarantined_at is not null";
    for seed in 0..SEEDS {
        let mut world = World::new(seed).await;
        let mut before: HashMap<String, String> = HashMap::new();
        for _ in 0..COMMANDS {
            let (_, command, _) = world.step().await;
            let now = rows(&mut world.db, EXPOSURES).await;
            let bps = |text: &String| text.parse::<i32>().unwrap();
            let gained = |(id, was): (&String, &String)| now.get(id).is_some_and(|is| bps(is) > bps(was));
            assert!(!before.iter().any(gained), "seed {seed}: {command:?}");
            let is_new = |id: &&String| !before.contains_key(*id);
            assert!(
                !matches!(command, Command::Start(_)) || !now.keys().any(|id| is_new(&id)),
                "seed {seed}"
            );
            before = now;
        }
    }
}

#[tokio::test]
async fn i20_nobody_breaks_glass_while_a_review_of_theirs_is_overdue() {
    nothing_is_wrong(
        "select count(*) from release.break_glasses debt
        join release.break_glasses next using (tenant_id, person)
        where next.used_at >= debt.due_at and coalesce(debt.reviewed_at > next.used_at, true) and next.used_at <= $1",
    )
    .await;
}

#[tokio::test]
async fn i21_another_tenant_sees_and_changes_nothing() {
    let mut world = World::new(3).await;
    let acme = world.stack.caller(&Grant { tenant: "acme".to_owned(), ..person("author") });
    for _ in 0..COMMANDS {
        let (_, command, _) = world.step().await;
        let refused = perform(&acme, command.clone()).await.unwrap_err();
        assert!(refused.ends_with("_NOT_FOUND") || refused == "FIELD_INVALID", "{command:?}: {refused}");
    }
    let pending = acme
        .approvals()
        .list_pending_for_me(pb::ListPendingForMeRequest::default())
        .await;
    assert_eq!(pending.unwrap().into_inner().releases, []);
    let used = acme
        .approvals()
        .list_break_glasses(pb::ListBreakGlassesRequest::default())
        .await;
    assert_eq!(used.unwrap().into_inner().break_glasses, []);
    let foreign = "select count(*) from release.releases where tenant_id <> 'shop' and created_at <= $1";
    assert_eq!(world.wrong(foreign).await, 0);
}
