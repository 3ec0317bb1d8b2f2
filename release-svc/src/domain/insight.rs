//! How delivery went, folded from what events tell: deployments, what became of them, and what came before and between. A
//! rollback after everyone was exposed is a failed deployment; before that a canary did its work.

use std::collections::{BTreeSet, HashMap, HashSet};

use chrono::TimeDelta;
use shared::id::EnvironmentId;
use shared::time::Time;

mod fact;
mod metrics;
#[cfg(test)]
mod tests;

pub use fact::{Change, Fact, IMPORTED, PastDeployment, Rollout, Stage, stamp};
pub use metrics::{Metrics, Pace, Period, Ratio, Spread};

use crate::domain::rollout::EVERYONE_BPS;

/// What happened to one component in the environments that count.
#[derive(Debug, Default)]
pub struct History {
    deployments: Vec<Deployment>,
    /// When each rollback began.
    rollbacks: Vec<Time>,
    /// When each of those began that ended a canary.
    caught: Vec<Time>,
    /// When each release was approved, and how long it had waited.
    approvals: Vec<(Time, TimeDelta)>,
    waits: Vec<Wait>,
}

/// An approved release that was not rolled out yet.
#[derive(Debug)]
struct Wait {
    release_id: String,
    from: Time,
    /// None while it goes on.
    until: Option<Time>,
}

/// A rollout that reached everyone and ended.
#[derive(Debug)]
struct Deployment {
    /// When it ended.
    at: Time,
    /// From each commit to the end of the first rollout with it; empty for every other one.
    lead_times: Vec<TimeDelta>,
    is_rework: bool,
    failure: Option<Failure>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Failure {
    detected_at: Time,
    recovered_at: Option<Time>,
}

/// One environment while facts are taken in. Deployments go by their place in the history.
#[derive(Default)]
struct Site {
    runs: HashMap<String, Run>,
    /// The deployment of each release that everyone got.
    served: HashMap<String, usize>,
    /// Deployments that failed and that the next success puts right.
    failed: Vec<usize>,
}

/// A rollout while facts are taken in.
#[derive(Default)]
struct Run {
    has_reached_everyone: bool,
    /// It brings back what was there before.
    is_return: bool,
    /// Its deployment, if it was taken back after everyone was exposed.
    failed: Option<usize>,
}

/// A release while facts are taken in.
#[derive(Default)]
struct Candidate {
    change: Change,
    submitted_at: Option<Time>,
    is_approval_awaited: bool,
    /// Its place in `waits`.
    wait: Option<usize>,
}

#[derive(Default)]
struct Fold {
    history: History,
    candidates: HashMap<String, Candidate>,
    sites: HashMap<String, Site>,
    /// Versions that everyone got somewhere.
    delivered: HashSet<String>,
}

impl History {
    /// Takes in facts, each with its time and in any order but for those of one instant; rollouts count in these
    /// environments.
    pub fn of(mut facts: Vec<(Time, Fact)>, environments: &BTreeSet<EnvironmentId>) -> Self {
        facts.sort_by_key(|(at, _)| *at);
        let counts = |name: &str| environments.iter().any(|environment| environment.as_str() == name);
        let mut fold = Fold::default();
        for (at, fact) in facts {
            match fact {
                Fact::Submitted { release_id, change } => {
                    let candidate = fold.candidates.entry(release_id).or_default();
                    candidate.change = change;
                    candidate.submitted_at = Some(at);
                    candidate.is_approval_awaited = true;
                }
                Fact::Approved { release_id } => fold.approve(release_id, at),
                Fact::Ended { release_id } => fold.end_wait(&release_id, at),
                Fact::Rollout { stage, rollout } if counts(&rollout.environment) => {
                    fold.roll(stage, &rollout, at);
                }
                Fact::Imported(past) if counts(&past.environment) => fold.import(past),
                Fact::Rollout { .. } | Fact::Imported(_) => {}
            }
        }
        fold.history
    }

    /// Those of these deployments that did not recover before have now.
    fn recover(&mut self, failed: impl IntoIterator<Item = usize>, at: Time) {
        for index in failed {
            if let Some(failure) = self.deployments.get_mut(index).and_then(|it| it.failure.as_mut()) {
                failure.recovered_at.get_or_insert(at);
            }
        }
    }

    /// When each deployment ended, and whether it failed: what a next one's risk is judged by.
    pub fn outcomes(&self) -> Vec<(Time, bool)> {
        self.deployments
            .iter()
            .map(|deployment| (deployment.at, deployment.failure.is_some()))
            .collect()
    }
}

impl Fold {
    fn approve(&mut self, release_id: String, at: Time) {
        let candidate = self.candidates.entry(release_id.clone()).or_default();
        if std::mem::take(&mut candidate.is_approval_awaited)
            && let Some(submitted_at) = candidate.submitted_at
        {
            self.history.approvals.push((at, at - submitted_at));
        }
        if candidate.wait.is_none() {
            candidate.wait = Some(self.history.waits.len());
            self.history.waits.push(Wait { release_id, from: at, until: None });
        }
    }

    /// Once it is being rolled out, or will not be.
    fn end_wait(&mut self, release_id: &str, at: Time) {
        let wait = self.candidates.get_mut(release_id).and_then(|candidate| candidate.wait.take());
        if let Some(wait) = wait.and_then(|wait| self.history.waits.get_mut(wait)) {
            wait.until.get_or_insert(at);
        }
    }

    fn roll(&mut self, stage: Stage, rollout: &Rollout, at: Time) {
        let site = self.sites.entry(rollout.environment.clone()).or_default();
        let run = site.runs.entry(rollout.id.clone()).or_default();
        match stage {
            Stage::Started => {
                run.has_reached_everyone = rollout.exposure_bps == EVERYONE_BPS;
                run.is_return = site.served.contains_key(&rollout.release_id);
                if run.is_return {
                    self.history.rollbacks.push(at);
                    self.fail(rollout, at);
                }
                self.end_wait(&rollout.release_id, at);
            }
            Stage::Advanced => run.has_reached_everyone |= rollout.exposure_bps == EVERYONE_BPS,
            Stage::Succeeded => {
                if !run.is_return {
                    self.succeed(rollout, at);
                }
                let site = self.sites.entry(rollout.environment.clone()).or_default();
                self.history.recover(std::mem::take(&mut site.failed), at);
            }
            Stage::RollbackStarted if rollout.rollback_of.is_some() => {
                self.history.rollbacks.push(at);
                run.failed = site.served.get(&rollout.release_id).copied();
                let deployed = run.failed.and_then(|index| self.history.deployments.get_mut(index));
                if let Some(deployment) = deployed {
                    deployment
                        .failure
                        .get_or_insert(Failure { detected_at: at, recovered_at: None });
                }
            }
            Stage::RollbackStarted => {
                self.history.rollbacks.push(at);
                // Where it was to bring something back, nothing was deployed.
                if run.has_reached_everyone && !run.is_return {
                    let index = self.history.deployments.len();
                    run.failed = Some(index);
                    site.failed.push(index);
                    let failure = Some(Failure { detected_at: at, recovered_at: None });
                    let is_rework = self.change(rollout).is_some_and(Change::is_rework);
                    self.history
                        .deployments
                        .push(Deployment { at, lead_times: vec![], is_rework, failure });
                } else if !run.is_return {
                    self.history.caught.push(at);
                }
            }
            Stage::RolledBack => self.history.recover(run.failed, at),
        }
    }

    fn change(&self, rollout: &Rollout) -> Option<&Change> {
        self.candidates.get(&rollout.release_id).map(|candidate| &candidate.change)
    }

    /// Everyone has it. What an incident made necessary mends what was there before.
    fn succeed(&mut self, rollout: &Rollout, at: Time) {
        let submitted_at = self
            .candidates
            .get(&rollout.release_id)
            .and_then(|candidate| candidate.submitted_at);
        let is_rework = self.change(rollout).is_some_and(Change::is_rework);
        if is_rework && let Some(submitted_at) = submitted_at {
            self.fail(rollout, submitted_at);
        }
        let is_first = self.delivered.insert(rollout.version.clone());
        let commits = self
            .change(rollout)
            .filter(|_| is_first)
            .map_or(&[][..], |change| &change.commit_times);
        let deployment = Deployment { at, lead_times: lead_times(commits, at), is_rework, failure: None };
        let site = self.sites.entry(rollout.environment.clone()).or_default();
        site.served.insert(rollout.release_id.clone(), self.history.deployments.len());
        self.history.deployments.push(deployment);
    }

    /// What the rollout replaces has failed, if everyone had it by then.
    fn fail(&mut self, rollout: &Rollout, detected_at: Time) {
        let Some(site) = self.sites.get_mut(&rollout.environment) else { return };
        let previous = rollout.previous_release_id.as_ref();
        let Some(&index) = previous.and_then(|previous| site.served.get(previous)) else { return };
        if let Some(deployment) = self.history.deployments.get_mut(index)
            && deployment.at <= detected_at
            && deployment.failure.is_none()
        {
            deployment.failure = Some(Failure { detected_at, recovered_at: None });
            site.failed.push(index);
        }
    }

    fn import(&mut self, past: PastDeployment) {
        let at = past.deployed_at;
        if past.is_rollback {
            self.history.rollbacks.push(at);
            return;
        }
        let is_rework = past.is_rework();
        let is_first = self.delivered.insert(past.version);
        let commits = if is_first { past.commit_times.as_slice() } else { &[] };
        let lead_times = lead_times(commits, at);
        let recovered_at = past.recovered_at;
        let failure = past.failed_at.map(|detected_at| Failure { detected_at, recovered_at });
        self.history.deployments.push(Deployment { at, lead_times, is_rework, failure });
    }
}

/// Clocks of people who commit may be fast, which is no negative wait.
fn lead_times(commits: &[Time], at: Time) -> Vec<TimeDelta> {
    commits.iter().map(|commit| (at - *commit).max(TimeDelta::zero())).collect()
}
