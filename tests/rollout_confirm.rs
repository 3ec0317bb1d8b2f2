//! Exposure 0 is reached once every session service that may put visits on a release acts on it. Here the tests are the
//! session services.

use chrono::TimeDelta;
use shared::pb::release as pb;
use shared::pb::release::{RolloutMode, RolloutState};
use uuid::Uuid;

use crate::harness::shop::{get_rollout, roll_back, rollback, ship};
use crate::harness::{Answer as _, Caller, ENVIRONMENT, Stack, eventually, system};
use crate::rollout_control::start;

/// A session service.
struct Replica {
    caller: Caller,
    id: String,
}

impl Replica {
    fn new(stack: &Stack, number: u128) -> Self {
        Self { caller: stack.caller(&system("session-svc")), id: Uuid::from_u128(number).to_string() }
    }

    /// Reads the routes once: what they are, and their epoch.
    async fn look(&self) -> (String, pb::Route) {
        let request =
            pb::WatchRoutesRequest { environment: ENVIRONMENT.to_owned(), replica_id: self.id.clone() };
        let mut stream = self.caller.routing().watch_routes(request).await.answer();
        let first = stream.message().await.unwrap().unwrap();
        let Some(pb::watch_routes_response::Message::Snapshot(snapshot)) = first.message else {
            panic!("{:?}", first.message)
        };
        (first.table_epoch, snapshot.routes.into_iter().next().unwrap())
    }

    /// Acts on the present route, and says so.
    async fn apply(&self) {
        let (table_epoch, pb::Route { tenant, component, revision, .. }) = self.look().await;
        let request = pb::ReportAppliedRequest {
            environment: ENVIRONMENT.to_owned(),
            replica_id: self.id.clone(),
            table_epoch,
            routes: vec![pb::AppliedRoute { tenant, component, revision }],
        };
        self.caller.routing().report_applied(request).await.answer();
    }
}

async fn state(caller: &Caller, rollout: &pb::Rollout) -> RolloutState {
    get_rollout(caller, rollout).await.state()
}

#[tokio::test]
async fn what_everyone_got_is_taken_back_only_once_all_who_were_there_before_have_said_so() {
    let (stack, caller) = start().await;
    let brought = ship(&caller, "1.1", &[]).await;
    let (quiet, other, gone) = (Replica::new(&stack, 1), Replica::new(&stack, 2), Replica::new(&stack, 3));
    gone.look().await;
    stack.advance(TimeDelta::minutes(6));
    // Both were heard of within the lease, but longer before the rollback than any clock is off.
    quiet.look().await;
    other.look().await;
    stack.advance(TimeDelta::minutes(1));
    let back = roll_back(&caller, &brought).await;
    assert_eq!((back.mode(), back.state()), (RolloutMode::Rollback, RolloutState::RollingBack));
    other.apply().await;
    assert_eq!(state(&caller, &back).await, RolloutState::RollingBack);
    quiet.apply().await;
    assert_eq!(state(&caller, &back).await, RolloutState::RolledBack);
}

#[tokio::test]
async fn who_never_knew_of_a_rollout_need_not_confirm_its_end() {
    let (stack, caller) = start().await;
    Replica::new(&stack, 1).look().await;
    stack.advance(TimeDelta::minutes(1));
    let rollout = ship(&caller, "1.1", &[1000]).await;
    assert_eq!(roll_back(&caller, &rollout).await.state(), RolloutState::RolledBack);
}

#[tokio::test]
async fn a_rollback_and_what_went_back_before_it_are_confirmed_each() {
    let (stack, caller) = start().await;
    let lower = ship(&caller, "1.1", &[]).await;
    let replica = Replica::new(&stack, 1);
    replica.look().await;
    let upper = ship(&caller, "1.2", &[1000]).await;
    let answer = caller.rollouts().roll_back_rollout(rollback(&lower)).await.answer();
    let back = answer.rollout.unwrap();
    for rollout in [&back, &upper] {
        assert_eq!(state(&caller, rollout).await, RolloutState::RollingBack);
    }
    replica.apply().await;
    for rollout in [&back, &upper] {
        eventually("the end of both", || async {
            (state(&caller, rollout).await == RolloutState::RolledBack).then_some(())
        })
        .await;
    }
}
