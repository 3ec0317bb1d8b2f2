//! The release history: every release is entered by one person, approved by another, and rolled out in steps under the
//! traffic; one is rolled back by hand.
//!
//! What to do next is read off the release's state, so that a run goes on where one before it stopped.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use indicatif::ProgressBar;
use shared::pb::release::approval_service_client::ApprovalServiceClient;
use shared::pb::release::release_service_client::ReleaseServiceClient;
use shared::pb::release::rollout_service_client::RolloutServiceClient;
use shared::pb::release::{
    AdvanceRolloutRequest, ApproveReleaseRequest, AssignmentPolicy, CreateReleaseRequest, GetRolloutRequest,
    ListReleasesRequest, ListRolloutsRequest, Release, ReleaseState, RollBackRolloutRequest, Rollout,
    RolloutState, StartRolloutRequest, SubmitReleaseRequest,
};
use shared::pb::session::Arm;
use shared::secret::Entropy;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ENVIRONMENT;
use super::call::{Caller, PATIENCE, Refused, request_id};
use super::data::{Data, ReleaseFacts};
use super::report::{Move, Promises};
use crate::client::Authorized;

/// Exposure of each step, in basis points.
const STEPS_BPS: [i32; 3] = [1_000, 5_000, 10_000];
/// The step from which the one rollback by hand is made.
const ROLLBACK_STEP: i32 = 1;
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Everyone who releases.
pub(crate) struct History {
    /// In the name of the author.
    pub(crate) releases: ReleaseServiceClient<Authorized>,
    /// In the name of the author.
    pub(crate) rollouts: RolloutServiceClient<Authorized>,
    /// In the name of someone else.
    pub(crate) approvals: ApprovalServiceClient<Authorized>,
    pub(crate) component: &'static str,
    pub(crate) data: Arc<Data>,
    /// How long a step lasts.
    pub(crate) bake: Duration,
    /// Of the traffic.
    pub(crate) bar: ProgressBar,
    pub(crate) entropy: Entropy,
    /// The traffic has ended: what is under way is completed without delay, and nothing more begun.
    pub(crate) stop: CancellationToken,
}

impl History {
    /// Goes through the history until it or the traffic ends.
    pub(crate) async fn run(&self, caller: &mut Caller) {
        if let Err(refused) = self.enter_all(caller).await {
            caller.tally.failed(refused);
        }
    }

    /// Enters the first release where there is none, and rolls it out to everyone, so that visits are pinned to it.
    pub(crate) async fn begin(&self, caller: &mut Caller) -> Result<(), Refused> {
        let known = self.known(caller).await?;
        match (known.is_empty(), self.data.releases.first()) {
            (true, Some(facts)) => self.enter(facts, caller).await,
            (true, None) | (false, _) => Ok(()),
        }
    }

    async fn enter_all(&self, caller: &mut Caller) -> Result<(), Refused> {
        let known = self.known(caller).await?;
        if let Some(newest) = known.first() {
            self.complete(newest.clone(), caller).await?;
        }
        let versions: HashSet<_> = known.iter().map(|release| release.version.as_str()).collect();
        let releases = &self.data.releases;
        let last = releases.iter().rposition(|facts| versions.contains(facts.version.as_str()));
        for facts in releases.iter().skip(last.map_or(0, |last| last + 1)) {
            if self.stop.is_cancelled() {
                break;
            }
            match self.enter(facts, caller).await {
                Err(refused) if refused.reason == "RELEASE_VERSION_NOT_GREATER" => {
                    caller.tally.releases.refused += 1;
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// The component's releases, newest first.
    async fn known(&self, caller: &mut Caller) -> Result<Vec<Release>, Refused> {
        let request = ListReleasesRequest {
            component: self.component.to_owned(),
            page_size: 1_000,
            ..ListReleasesRequest::default()
        };
        let list = async |request| self.releases.clone().list_releases(request).await;
        Ok(caller.call("ListReleases", request, list).await?.releases)
    }

    async fn enter(&self, facts: &ReleaseFacts, caller: &mut Caller) -> Result<(), Refused> {
        let request = CreateReleaseRequest {
            component: self.component.to_owned(),
            version: facts.version.clone(),
            artifact_digest: String::new(),
            notes: facts.notes(),
            request_id: request_id(&self.entropy),
            change: None,
        };
        let create = async |request| self.releases.clone().create_release(request).await;
        let release = caller.call("CreateRelease", request, create).await?.release;
        caller.tally.releases.entered += 1;
        self.complete(release.unwrap_or_default(), caller).await
    }

    /// Brings a release from wherever it stands to its end.
    async fn complete(&self, mut release: Release, caller: &mut Caller) -> Result<(), Refused> {
        loop {
            release = match release.state() {
                ReleaseState::Draft => self.submit(release, caller).await?,
                ReleaseState::PendingApproval => self.approve(release, caller).await?,
                ReleaseState::Approved => {
                    let rollout = self.start(release, caller).await?;
                    return self.roll(rollout, caller).await;
                }
                ReleaseState::Active => {
                    return match self.unfinished(&release, caller).await? {
                        Some(rollout) => self.roll(rollout, caller).await,
                        None => Ok(()),
                    };
                }
                ReleaseState::Unspecified
                | ReleaseState::Released
                | ReleaseState::Rejected
                | ReleaseState::Assessing
                | ReleaseState::Cancelled
                | ReleaseState::Abandoned
                | ReleaseState::RolledBack
                | ReleaseState::Superseded => return Ok(()),
            };
        }
    }

    async fn submit(&self, draft: Release, caller: &mut Caller) -> Result<Release, Refused> {
        let request = SubmitReleaseRequest {
            release_id: draft.release_id,
            etag: draft.etag,
            request_id: request_id(&self.entropy),
        };
        let submit = async |request| self.releases.clone().submit_release(request).await;
        let answer = caller.call("SubmitRelease", request, submit).await?;
        Ok(answer.release.unwrap_or_default())
    }

    async fn approve(&self, submitted: Release, caller: &mut Caller) -> Result<Release, Refused> {
        let request = ApproveReleaseRequest {
            release_id: submitted.release_id,
            reason: "read the notes".to_owned(),
            etag: submitted.etag,
            request_id: request_id(&self.entropy),
            snapshot_digest: submitted.snapshot_digest,
        };
        let approve = async |request| self.approvals.clone().approve_release(request).await;
        let answer = caller.call("ApproveRelease", request, approve).await?;
        caller.tally.releases.approved += 1;
        Ok(answer.release.unwrap_or_default())
    }

    async fn start(&self, approved: Release, caller: &mut Caller) -> Result<Rollout, Refused> {
        let request = StartRolloutRequest {
            release_id: approved.release_id,
            environment: ENVIRONMENT.to_owned(),
            step_exposures_bps: STEPS_BPS.to_vec(),
            assignment_policy: AssignmentPolicy::NewVisits.into(),
            request_id: request_id(&self.entropy),
            ..StartRolloutRequest::default()
        };
        let start = async |request| self.rollouts.clone().start_rollout(request).await;
        let answer = caller.call("StartRollout", request, start).await?;
        Ok(answer.rollout.unwrap_or_default())
    }

    async fn unfinished(&self, release: &Release, caller: &mut Caller) -> Result<Option<Rollout>, Refused> {
        let request = ListRolloutsRequest {
            component: self.component.to_owned(),
            environment: ENVIRONMENT.to_owned(),
            states: vec![RolloutState::Running.into(), RolloutState::RollingBack.into()],
            ..ListRolloutsRequest::default()
        };
        let list = async |request| self.rollouts.clone().list_rollouts(request).await;
        let rollouts = caller.call("ListRollouts", request, list).await?.rollouts;
        Ok(rollouts.into_iter().find(|rollout| rollout.release_id == release.release_id))
    }

    /// Step by step to everyone, or back.
    async fn roll(&self, mut rollout: Rollout, caller: &mut Caller) -> Result<(), Refused> {
        loop {
            let percent = rollout.exposure_bps / 100;
            self.bar
                .set_message(format!("{} {} at {percent} %", rollout.component, rollout.version));
            rollout = match rollout.state() {
                // Whoever pauses one has the next step refused.
                RolloutState::Running | RolloutState::Paused => {
                    tokio::select! {
                        () = tokio::time::sleep(self.bake) => {}
                        () = self.stop.cancelled() => {}
                    }
                    if rollout.step == ROLLBACK_STEP && self.is_to_be_taken_back(caller) {
                        self.roll_back(rollout, caller).await?
                    } else {
                        self.advance(rollout, caller).await?
                    }
                }
                RolloutState::RollingBack | RolloutState::RollbackFailed => {
                    self.confirmed(rollout, caller).await?
                }
                RolloutState::Succeeded => {
                    caller.tally.releases.rolled_out += 1;
                    return Ok(());
                }
                RolloutState::RolledBack => {
                    caller.tally.releases.rolled_back += 1;
                    return Ok(());
                }
                // Its plan has no such state, and nobody else waits for it.
                RolloutState::Waiting
                | RolloutState::Draining
                | RolloutState::Cancelled
                | RolloutState::Superseded
                | RolloutState::Unspecified => return Ok(()),
            };
        }
    }

    /// The first one that comes to its second step in the second half of the traffic is.
    fn is_to_be_taken_back(&self, caller: &Caller) -> bool {
        let is_second_half = self.bar.position() * 2 >= self.bar.length().unwrap_or(u64::MAX);
        is_second_half && !self.stop.is_cancelled() && caller.tally.releases.rolled_back == 0
    }

    async fn advance(&self, rollout: Rollout, caller: &mut Caller) -> Result<Rollout, Refused> {
        let request = AdvanceRolloutRequest {
            rollout_id: rollout.rollout_id,
            etag: rollout.etag,
            request_id: request_id(&self.entropy),
        };
        let advance = async |request| self.rollouts.clone().advance_rollout(request).await;
        let answer = caller.call("AdvanceRollout", request, advance).await?;
        Ok(answer.rollout.unwrap_or_default())
    }

    async fn roll_back(&self, rollout: Rollout, caller: &mut Caller) -> Result<Rollout, Refused> {
        let request = RollBackRolloutRequest {
            rollout_id: rollout.rollout_id,
            reason: "the replay takes one release back".to_owned(),
            request_id: request_id(&self.entropy),
        };
        let roll_back = async |request| self.rollouts.clone().roll_back_rollout(request).await;
        let answer = caller.call("RollBackRollout", request, roll_back).await?;
        Ok(answer.rollout.unwrap_or_default())
    }

    /// Waits until every session service has confirmed that nobody is exposed.
    async fn confirmed(&self, mut rollout: Rollout, caller: &mut Caller) -> Result<Rollout, Refused> {
        let begin = Instant::now();
        while rollout.end_time.is_none() {
            if self.stop.is_cancelled() && begin.elapsed() > PATIENCE {
                return Err(Refused {
                    method: "RollBackRollout",
                    reason: "NOT_CONFIRMED".to_owned(),
                    message: "exposure 0 was not confirmed in time".to_owned(),
                });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
            rollout = self.rollout(&rollout.rollout_id, caller).await?;
        }
        Ok(rollout)
    }

    async fn rollout(&self, rollout_id: &str, caller: &mut Caller) -> Result<Rollout, Refused> {
        let request = GetRolloutRequest { rollout_id: rollout_id.to_owned() };
        let get = async |request| self.rollouts.clone().get_rollout(request).await;
        Ok(caller.call("GetRollout", request, get).await?.rollout.unwrap_or_default())
    }

    /// Says which changes of a visit's release had to be, and counts those that broke a promise. Answers how many visits a
    /// rollback moved.
    pub(crate) async fn explain(&self, caller: &mut Caller) -> u64 {
        let mut by_rollback = 0;
        let mut rollouts = BTreeMap::new();
        for (moved, count) in std::mem::take(&mut caller.tally.moves) {
            for pin in [Some(&moved.from), moved.to.as_ref()].into_iter().flatten() {
                if pin.rollout_id.is_empty() || rollouts.contains_key(&pin.rollout_id) {
                    continue;
                }
                match self.rollout(&pin.rollout_id, caller).await {
                    Ok(rollout) => _ = rollouts.insert(pin.rollout_id.clone(), rollout),
                    Err(refused) => caller.tally.failed(refused),
                }
            }
            match Cause::of(&moved, &rollouts) {
                Cause::Rollback => by_rollback += count,
                Cause::Assignment => {}
                Cause::None => broken(&moved, count, &mut caller.tally.promises),
            }
        }
        by_rollback
    }
}

/// Why a visit's release changed.
#[derive(Debug, PartialEq, Eq)]
enum Cause {
    /// It was taken back.
    Rollback,
    /// A rollout that asks for running visits took it in.
    Assignment,
    /// Nothing that may be.
    None,
}

impl Cause {
    fn of(moved: &Move, rollouts: &BTreeMap<String, Rollout>) -> Self {
        let Move { from, to: Some(to), in_checkout: false, .. } = moved else { return Self::None };
        let left = rollouts.get(&from.rollout_id).map(Rollout::state);
        let is_back = matches!(
            left,
            Some(RolloutState::RollingBack | RolloutState::RollbackFailed | RolloutState::RolledBack)
        );
        let entered = rollouts.get(&to.rollout_id).map(Rollout::assignment_policy);
        if is_back && from.arm == Arm::Canary && to.arm != Arm::Canary {
            Self::Rollback
        } else if entered == Some(AssignmentPolicy::AllSessions) && to.rollout_id != from.rollout_id {
            Self::Assignment
        } else {
            Self::None
        }
    }
}

fn broken(moved: &Move, count: u64, promises: &mut Promises) {
    let Move { component, from, to, in_checkout } = moved;
    let (counted, kind) = if *in_checkout {
        (&mut promises.checkouts_moved, "moved in checkout")
    } else {
        (&mut promises.version_flips, "flipped")
    };
    *counted += count;
    let to = to
        .as_ref()
        .map_or_else(|| "nothing".to_owned(), |to| format!("{} {:?}", to.version, to.arm));
    promises
        .list(format!("{kind}: {count} visits of {component} from {} {:?} to {to}", from.version, from.arm));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::report::Pin;

    fn pin(arm: Arm, rollout_id: &str) -> Pin {
        let (version, release_id) = (format!("{arm:?}"), format!("{arm:?}"));
        Pin { version, arm, release_id, rollout_id: rollout_id.to_owned() }
    }

    fn rollouts(state: RolloutState, policy: AssignmentPolicy) -> BTreeMap<String, Rollout> {
        let rollout = Rollout { state: state.into(), assignment_policy: policy.into(), ..Rollout::default() };
        BTreeMap::from([("rlo_1".to_owned(), rollout)])
    }

    fn moved(from: Arm, to: Arm, in_checkout: bool) -> Move {
        let (from, to) = (pin(from, "rlo_1"), Some(pin(to, "rlo_1")));
        Move { component: "storefront".to_owned(), from, to, in_checkout }
    }

    #[test]
    fn only_a_rollback_moves_a_visit_and_none_in_checkout() {
        use AssignmentPolicy::NewVisits;
        let back = rollouts(RolloutState::RolledBack, NewVisits);
        let running = rollouts(RolloutState::Running, NewVisits);
        for (from, to, in_checkout, rollouts, cause) in [
            (Arm::Canary, Arm::Control, false, &back, Cause::Rollback),
            (Arm::Canary, Arm::Control, true, &back, Cause::None),
            (Arm::Canary, Arm::Control, false, &running, Cause::None),
            (Arm::Control, Arm::Canary, false, &back, Cause::None),
            (Arm::Control, Arm::Canary, false, &running, Cause::None),
        ] {
            assert_eq!(Cause::of(&moved(from, to, in_checkout), rollouts), cause, "{from:?} {to:?}");
        }
    }

    #[test]
    fn a_rollout_of_all_sessions_may_take_running_visits_in() {
        let all = rollouts(RolloutState::Running, AssignmentPolicy::AllSessions);
        let mut enters = moved(Arm::Unspecified, Arm::Canary, false);
        enters.from.rollout_id = String::new();
        assert_eq!(Cause::of(&enters, &all), Cause::Assignment);
        assert_eq!(Cause::of(&moved(Arm::Control, Arm::Canary, false), &all), Cause::None);
    }
}
