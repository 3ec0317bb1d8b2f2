//! The release history: every release is entered by one person, approved by another, and rolled out in steps under the
//! traffic; one is rolled back by hand.
//!
//! What to do next is read off the release's state, so that a run goes on where one before it stopped.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use indicatif::ProgressBar;
use shared::pb::release::approval_service_client::ApprovalServiceClient;
use shared::pb::release::release_service_client::ReleaseServiceClient;
use shared::pb::release::rollout_service_client::RolloutServiceClient;
use shared::pb::release::{
    AdvanceRolloutRequest, ApproveReleaseRequest, AssignmentPolicy, CreateReleaseRequest,
    ListReleasesRequest, ListRolloutsRequest, Release, ReleaseState, RollBackRolloutRequest, Rollout,
    RolloutState, StartRolloutRequest, SubmitReleaseRequest,
};
use shared::secret::Entropy;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ENVIRONMENT;
use super::call::{Caller, PATIENCE, Refused, request_id};
use super::data::{Data, ReleaseFacts};
use super::moves;
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
            let answer = moves::rollout(&self.rollouts, &rollout.rollout_id, caller).await?;
            rollout = answer.rollout.unwrap_or_default();
        }
        Ok(rollout)
    }
}
