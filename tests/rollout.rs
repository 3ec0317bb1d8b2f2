//! Rollouts as release-svc runs them, and what it tells session services: here the test is one.

use std::time::Duration;

use chrono::TimeDelta;
use shared::pb::release as pb;
use shared::pb::release::watch_routes_response::Message;
use shared::pb::release::{ReleaseState, RolloutState};
use tonic::{Code, Streaming};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::harness::shop::{
    advance, advance_rollout, create_catalog, create_release, get_release, get_rollout, roll_back, rollback,
    ship, start as rollout_of, submit,
};
use crate::harness::{
    Answer as _, Caller, ENVIRONMENT, Options, Stack, assert_refused, eventually, person, system,
};

async fn start() -> (Stack, Caller) {
    let stack = Stack::releases();
    let caller = stack.caller(&person("ada"));
    create_catalog(&caller).await;
    (stack, caller)
}

async fn release_state(caller: &Caller, rollout: &pb::Rollout) -> ReleaseState {
    let release = pb::Release { release_id: rollout.release_id.clone(), ..Default::default() };
    get_release(caller, &release).await.state()
}

async fn rolled_back(caller: &Caller, rollout: &pb::Rollout) {
    eventually("the end of the rollback", || async {
        (get_rollout(caller, rollout).await.state() == RolloutState::RolledBack).then_some(())
    })
    .await;
}

/// A session service that does nothing but watch.
struct Replica {
    caller: Caller,
    id: String,
    epoch: String,
    stream: Streaming<pb::WatchRoutesResponse>,
}

impl Replica {
    async fn open(stack: &Stack, n: u128) -> (Self, Vec<pb::Route>) {
        let (caller, id) = (stack.caller(&system("session-svc")), Uuid::from_u128(n).to_string());
        let request = pb::WatchRoutesRequest { environment: ENVIRONMENT.to_owned(), replica_id: id.clone() };
        let mut stream = caller.routing().watch_routes(request).await.answer();
        let first = stream.message().await.unwrap().unwrap();
        let Some(Message::Snapshot(snapshot)) = first.message else { panic!("{first:?}") };
        (Self { caller, id, epoch: first.table_epoch, stream }, snapshot.routes)
    }

    async fn next(&mut self) -> pb::Route {
        loop {
            let message = tokio::time::timeout(Duration::from_secs(15), self.stream.message());
            let response = message.await.expect("a route within 15 s").unwrap().unwrap();
            assert!(response.exposure_lease.is_some(), "every message renews the lease");
            if let Some(Message::Route(route)) = response.message {
                return route;
            }
        }
    }

    async fn report(&self, epoch: &str, revision: i64) {
        self.report_of(&["shop"], epoch, revision).await;
    }

    async fn report_of(&self, tenants: &[&str], epoch: &str, revision: i64) {
        let applied = tenants.iter().map(|tenant| pb::AppliedRoute {
            tenant: (*tenant).to_owned(),
            component: "storefront".to_owned(),
            revision,
        });
        let request = pb::ReportAppliedRequest {
            environment: ENVIRONMENT.to_owned(),
            replica_id: self.id.clone(),
            table_epoch: epoch.to_owned(),
            routes: applied.collect(),
        };
        self.caller.routing().report_applied(request).await.answer();
    }
}

#[tokio::test]
async fn a_first_release_goes_to_everyone_at_once() {
    let (_stack, caller) = start().await;
    let rollout = ship(&caller, "1.0", &[100, 1000]).await;
    assert_eq!((rollout.state(), rollout.exposure_bps), (RolloutState::Succeeded, 10_000));
    assert_eq!(
        (rollout.step_exposures_bps.as_slice(), rollout.previous_version.as_str()),
        ([10_000].as_slice(), "")
    );
    assert_eq!(release_state(&caller, &rollout).await, ReleaseState::Released);
}

#[tokio::test]
async fn a_rollout_goes_step_by_step_and_supersedes_what_it_replaces() {
    let (_stack, caller) = start().await;
    let first = ship(&caller, "1.0", &[]).await;
    let rollout = ship(&caller, "1.1", &[1000, 5000]).await;
    assert_eq!((rollout.state(), rollout.step, rollout.exposure_bps), (RolloutState::Running, 0, 1000));
    assert_eq!(rollout.step_exposures_bps, [1000, 5000, 10_000]);
    assert_eq!((rollout.previous_version.as_str(), &rollout.previous_release_id), ("1.0", &first.release_id));
    assert_eq!(release_state(&caller, &rollout).await, ReleaseState::Active);
    for (state, step, exposure) in [
        (RolloutState::Running, 1, 5000),
        (RolloutState::Running, 2, 10_000),
        (RolloutState::Succeeded, 2, 10_000),
    ] {
        let next = advance_rollout(&caller, &rollout).await;
        assert_eq!((next.state(), next.step, next.exposure_bps), (state, step, exposure));
    }
    assert_eq!(release_state(&caller, &rollout).await, ReleaseState::Released);
    assert_eq!(release_state(&caller, &first).await, ReleaseState::Superseded);
    let refused = caller.rollouts().advance_rollout(advance(&rollout)).await;
    refused.refused(Code::FailedPrecondition, "ROLLOUT_WRONG_STATE");
}

#[tokio::test]
async fn a_release_is_superseded_when_every_environment_is_past_it() {
    let (_stack, caller) = start().await;
    let environment = Some(pb::Environment { environment: "staging".to_owned(), ..Default::default() });
    let request = pb::CreateEnvironmentRequest { environment, request_id: String::new() };
    caller.catalog().create_environment(request).await.answer();
    let to_staging = async |release: &pb::Release| {
        let request =
            pb::StartRolloutRequest { environment: "staging".to_owned(), ..rollout_of(release, &[10_000]) };
        let rollout = caller.rollouts().start_rollout(request).await.answer().rollout.unwrap();
        if rollout.state() == RolloutState::Running {
            advance_rollout(&caller, &rollout).await;
        }
    };
    let state = async |release| get_release(&caller, release).await.state();
    let old = ship(&caller, "1.0", &[]).await;
    let first = submit(&caller, &create_release(&caller, "1.1").await).await;
    to_staging(&first).await;
    let second = submit(&caller, &create_release(&caller, "1.2").await).await;
    to_staging(&second).await;
    // Nobody is served 1.1 now, but 1.0 is still out there, where 1.1 can go.
    assert_eq!(state(&first).await, ReleaseState::Released);
    let rollout = caller.rollouts().start_rollout(rollout_of(&second, &[10_000])).await;
    advance_rollout(&caller, &rollout.answer().rollout.unwrap()).await;
    assert_eq!(state(&first).await, ReleaseState::Superseded);
    assert_eq!(state(&second).await, ReleaseState::Released);
    assert_eq!(release_state(&caller, &old).await, ReleaseState::Superseded);
}

#[tokio::test]
async fn steps_that_make_no_sense_are_refused() {
    let (_stack, caller) = start().await;
    ship(&caller, "1.0", &[]).await;
    let release = submit(&caller, &create_release(&caller, "1.1").await).await;
    let too_many: Vec<i32> = (1..=33).collect();
    for steps in [&[0][..], &[-1], &[10_001], &[500, 500], &[500, 100], &[i32::MIN], &too_many] {
        let refused = caller.rollouts().start_rollout(rollout_of(&release, steps)).await;
        refused.refused(Code::InvalidArgument, "FIELD_INVALID");
    }
    let elsewhere =
        pb::StartRolloutRequest { environment: "nowhere".to_owned(), ..rollout_of(&release, &[]) };
    caller
        .rollouts()
        .start_rollout(elsewhere)
        .await
        .refused(Code::NotFound, "ENVIRONMENT_NOT_FOUND");
}

#[tokio::test]
async fn everything_that_holds_a_rollout_back_is_listed_at_once() {
    let (_stack, caller) = start().await;
    ship(&caller, "1.0", &[]).await;
    let running = ship(&caller, "1.1", &[1000]).await;
    let draft = create_release(&caller, "1.2").await;
    let status = caller.rollouts().start_rollout(rollout_of(&draft, &[])).await;
    let status = status.refused(Code::FailedPrecondition, "ROLLOUT_BLOCKED");
    let blockers = status.get_details_precondition_failure().unwrap().violations;
    let blockers: Vec<_> = blockers.iter().map(|b| (b.r#type.as_str(), b.subject.as_str())).collect();
    assert_eq!(
        blockers,
        [("STATE", draft.release_id.as_str()), ("EARLIER_ROLLOUT", running.rollout_id.as_str())]
    );
}

#[tokio::test]
async fn of_two_rollouts_started_at_once_one_runs() {
    let (stack, caller) = start().await;
    let replica = stack.release_svc(&Options::default());
    ship(&caller, "1.0", &[]).await;
    let one = submit(&caller, &create_release(&caller, "1.1").await).await;
    let two = submit(&caller, &create_release(&caller, "1.2").await).await;
    let (mut here, mut there) = (caller.rollouts(), caller.at_release(&replica).rollouts());
    let (a, b) = tokio::join!(
        here.start_rollout(rollout_of(&one, &[1000])),
        there.start_rollout(rollout_of(&two, &[1000]))
    );
    let lost = a.err().xor(b.err()).unwrap();
    assert_refused(&lost, Code::FailedPrecondition, "ROLLOUT_BLOCKED");
}

#[tokio::test]
async fn two_who_advance_what_they_saw_advance_it_once() {
    let (stack, caller) = start().await;
    let replica = stack.release_svc(&Options::default());
    ship(&caller, "1.0", &[]).await;
    let rollout = ship(&caller, "1.1", &[1000, 5000]).await;
    let seen = pb::AdvanceRolloutRequest { etag: rollout.etag.clone(), ..advance(&rollout) };
    let (mut here, mut there) = (caller.rollouts(), caller.at_release(&replica).rollouts());
    let (a, b) = tokio::join!(here.advance_rollout(seen.clone()), there.advance_rollout(seen));
    let lost = a.err().xor(b.err()).unwrap();
    assert_refused(&lost, Code::Aborted, "ETAG_MISMATCH");
    assert_eq!(get_rollout(&caller, &rollout).await.step, 1);
}

#[tokio::test]
async fn a_rollback_that_nobody_has_to_confirm_ends_at_once_and_again_changes_nothing() {
    let (_stack, caller) = start().await;
    let first = ship(&caller, "1.0", &[]).await;
    let rollout = ship(&caller, "1.1", &[1000]).await;
    let back = roll_back(&caller, &rollout).await;
    assert_eq!((back.state(), back.exposure_bps), (RolloutState::RolledBack, 0));
    assert_eq!(back.rollback_reason, "too many errors");
    assert_eq!(release_state(&caller, &rollout).await, ReleaseState::RolledBack);
    assert_eq!(release_state(&caller, &first).await, ReleaseState::Released);
    let other = pb::RollBackRolloutRequest { reason: "again".to_owned(), ..rollback(&rollout) };
    assert_eq!(caller.rollouts().roll_back_rollout(other).await.answer().rollout, Some(back));
    let refused = caller.rollouts().advance_rollout(advance(&rollout)).await;
    refused.refused(Code::FailedPrecondition, "ROLLOUT_WRONG_STATE");
}

#[tokio::test]
async fn a_rollback_is_over_when_every_session_service_says_so() {
    let (stack, caller) = start().await;
    ship(&caller, "1.0", &[]).await;
    let (mut one, snapshot) = Replica::open(&stack, 1).await;
    let (two, _) = Replica::open(&stack, 2).await;
    assert_eq!((snapshot.len(), snapshot[0].revision), (1, 2));
    let rollout = ship(&caller, "1.1", &[1000]).await;
    let exposed = one.next().await;
    assert_eq!(exposed.rollout.as_ref().map(|rollout| rollout.exposure_bps), Some(1000));
    assert_eq!(roll_back(&caller, &rollout).await.state(), RolloutState::RollingBack);
    let withdrawn = one.next().await;
    assert_eq!(withdrawn.withdrawn_release_ids, [rollout.release_id.as_str()]);
    assert!(withdrawn.revision > exposed.revision);
    one.report(&one.epoch, exposed.revision).await;
    one.report("another epoch", withdrawn.revision).await;
    two.report(&two.epoch, withdrawn.revision).await;
    assert_eq!(get_rollout(&caller, &rollout).await.state(), RolloutState::RollingBack);
    // A revision that was never made confirms nothing.
    one.report(&one.epoch, withdrawn.revision + 7).await;
    assert_eq!(get_rollout(&caller, &rollout).await.state(), RolloutState::RollingBack);
    one.report(&one.epoch, withdrawn.revision).await;
    rolled_back(&caller, &rollout).await;
    assert_eq!(one.next().await.rollout, None);
}

#[tokio::test]
async fn while_a_watch_opens_no_rollback_ends() {
    let (stack, caller) = start().await;
    ship(&caller, "1.0", &[]).await;
    let (mut replica, _) = Replica::open(&stack, 1).await;
    let rollout = ship(&caller, "1.1", &[1000]).await;
    replica.next().await;
    let mut opening = stack.database.connect().await;
    let enter = "begin; select pg_advisory_xact_lock_shared(hashtextextended('release.watch local', 0))";
    sqlx::raw_sql(enter).execute(&mut opening).await.unwrap();
    roll_back(&caller, &rollout).await;
    let withdrawn = replica.next().await;
    replica.report(&replica.epoch, withdrawn.revision).await;
    tokio::time::sleep(Duration::from_millis(2500)).await; // a pass of the worker goes by
    assert_eq!(get_rollout(&caller, &rollout).await.state(), RolloutState::RollingBack);
    sqlx::raw_sql("commit").execute(&mut opening).await.unwrap();
    rolled_back(&caller, &rollout).await;
}

#[tokio::test]
async fn a_locked_component_holds_up_no_other_tenants_rollback() {
    let (stack, caller) = start().await;
    let other = stack.caller(&shared::issuer::Grant { tenant: "acme".to_owned(), ..person("zoe") });
    create_catalog(&other).await;
    let (replica, _) = Replica::open(&stack, 1).await;
    let mut rollouts = Vec::new();
    for tenant in [&other, &caller] {
        ship(tenant, "1.0", &[]).await;
        let rollout = ship(tenant, "1.1", &[1000]).await;
        assert_eq!(roll_back(tenant, &rollout).await.state(), RolloutState::RollingBack);
        rollouts.push(rollout);
    }
    let mut busy = stack.database.connect().await;
    let lock = "begin; select from release.components where tenant_id = 'acme' for update";
    sqlx::raw_sql(lock).execute(&mut busy).await.unwrap();
    replica.report_of(&["acme", "shop"], &replica.epoch, 4).await;
    rolled_back(&caller, &rollouts[1]).await;
    assert_eq!(get_rollout(&other, &rollouts[0]).await.state(), RolloutState::RollingBack);
    sqlx::raw_sql("commit").execute(&mut busy).await.unwrap();
    rolled_back(&other, &rollouts[0]).await;
}

#[tokio::test]
async fn a_session_service_that_went_away_is_waited_for_as_long_as_its_lease() {
    let (stack, caller) = start().await;
    ship(&caller, "1.0", &[]).await;
    let (gone, _) = Replica::open(&stack, 1).await;
    let rollout = ship(&caller, "1.1", &[1000]).await;
    drop(gone);
    assert_eq!(roll_back(&caller, &rollout).await.state(), RolloutState::RollingBack);
    stack.advance(TimeDelta::seconds(309)); // the lease, and what it may be renewed after
    tokio::time::sleep(Duration::from_millis(2500)).await; // a pass of the worker goes by
    assert_eq!(get_rollout(&caller, &rollout).await.state(), RolloutState::RollingBack);
    stack.advance(TimeDelta::seconds(2));
    rolled_back(&caller, &rollout).await;
}

#[tokio::test]
async fn routes_are_told_of_every_tenant_and_of_one_environment() {
    let (stack, caller) = start().await;
    ship(&caller, "1.0", &[]).await;
    let (mut replica, _) = Replica::open(&stack, 1).await;
    let other = stack.caller(&shared::issuer::Grant { tenant: "acme".to_owned(), ..person("zoe") });
    create_catalog(&other).await;
    let environment = Some(pb::Environment { environment: "staging".to_owned(), ..Default::default() });
    let request = pb::CreateEnvironmentRequest { environment, request_id: String::new() };
    other.catalog().create_environment(request).await.answer();
    let release = submit(&other, &create_release(&other, "7.0").await).await;
    let elsewhere =
        pb::StartRolloutRequest { environment: "staging".to_owned(), ..rollout_of(&release, &[]) };
    other.rollouts().start_rollout(elsewhere).await.answer();
    other.rollouts().start_rollout(rollout_of(&release, &[])).await.answer();
    let route = replica.next().await;
    assert_eq!((route.tenant.as_str(), route.component.as_str()), ("acme", "storefront"));
    assert_eq!(route.stable.map(|stable| stable.version), Some("7.0".to_owned()));
    assert_eq!(route.revision, 2, "staging told nothing");
}
