//! The canary that a replay breaks: the one that is under way, or one of its own, and how its rollout goes from there.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use serde::Serialize;
use shared::pb::release::{
    ArmReport, AssignmentPolicy, GetRolloutResponse, GuardMode, GuardReport, ListReleasesRequest,
    RollbackPolicy, Rollout, RolloutState,
};
use shared::time::from_proto;

use crate::client::ReleaseClients;
use crate::error::Error;
use crate::percent::Percent;
use crate::release::change::Text;
use crate::rollout::{NOT_FINAL, plan};
use crate::ship::{self, ENVIRONMENT, Plan, Shipped};
use crate::term;

/// What is shipped, and what the guard watches.
pub(super) const COMPONENT: &str = "storefront";
const GUARD: &str = "checkout";
/// With as many visits on either release, a guard needs the fewest failures.
const SHARE: Percent = Percent(5_000);
/// Enough to find the newest version among.
const RELEASES: i32 = 1_000;

/// How it went.
#[derive(Debug, Default, Serialize)]
pub(super) struct Course {
    pub(super) component: String,
    pub(super) version: String,
    pub(super) previous_version: String,
    /// Failures on the new release that the guard had counted when it was sure, or by the end if it never was.
    pub(super) on_canary: u64,
    /// Those on the old one.
    pub(super) on_control: u64,
    /// Whether the guard said HARM.
    pub(super) is_harm: bool,
    /// Open checkouts that it left in place, on both releases.
    pub(super) open_checkouts: u64,
    /// From then until exposure 0 was confirmed.
    pub(super) rolled_back_seconds: Option<f64>,
}

/// The rollout under way, if it can be broken; else one that is started now.
pub(super) async fn find_or_ship(clients: &mut ReleaseClients) -> Result<Rollout, Error> {
    if let Some(rollout) = ship::newest_rollout(clients, COMPONENT, ENVIRONMENT, &NOT_FINAL).await? {
        return usable(rollout);
    }
    let version = next_version(clients).await?;
    let plan = Plan {
        component: COMPONENT.to_owned(),
        version: version.clone(),
        environment: ENVIRONMENT.to_owned(),
        text: Text::of_notes("Breaks checkouts, for a replay."),
        steps: vec![SHARE.0],
        assignment: AssignmentPolicy::NewVisits,
        guards: vec![plan::guard(GUARD).map_err(Error::Failed)?],
        bake: None,
    };
    match ship::ship(clients, &plan, term::note).await? {
        Shipped::Rollout(rollout, _) => usable(rollout),
        Shipped::Waits(_) => Err(Error::Failed(format!(
            "{COMPONENT} {version} waits for approval: `tandem ship {COMPONENT} {version}` says for which; then ship it with \
             --canary {SHARE} --guard {GUARD}"
        ))),
        Shipped::Ended(_) => Err(Error::Failed(format!("{COMPONENT} {version} has ended before"))),
    }
}

/// The one after the greatest minor version.
async fn next_version(clients: &mut ReleaseClients) -> Result<String, Error> {
    let request = ListReleasesRequest {
        component: COMPONENT.to_owned(),
        page_size: RELEASES,
        ..ListReleasesRequest::default()
    };
    let releases = clients.releases.list_releases(request).await?.into_inner().releases;
    let newest = releases.iter().filter_map(|release| minor(&release.version)).max();
    let (major, minor) = newest.unwrap_or_default();
    Ok(format!("{major}.{}", minor + 1))
}

/// Major and minor of a version.
fn minor(version: &str) -> Option<(u64, u64)> {
    let mut numbers = version.split(['.', '-']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// A rollout of which only some visits are on the new release, and that a guard takes back.
fn usable(rollout: Rollout) -> Result<Rollout, Error> {
    let Rollout { component, version, environment, exposure_bps, .. } = &rollout;
    let is_watched = rollout.plan.iter().flat_map(|plan| &plan.guards).any(|guard| {
        let mode = guard.mode();
        guard.name == GUARD && matches!(mode, GuardMode::Rollback | GuardMode::Unspecified)
    });
    let ends_visits = rollout
        .plan
        .as_ref()
        .is_some_and(|plan| plan.rollback_policy() == RollbackPolicy::End);
    let problem = if !is_watched {
        format!("has no guard `{GUARD}` that takes it back")
    } else if ends_visits {
        "ends visits when it goes back, open checkout or not".to_owned()
    } else if rollout.state() != RolloutState::Running || *exposure_bps >= 10_000 {
        let state = rollout.state().as_str_name().trim_start_matches("ROLLOUT_STATE_");
        format!("is {state}, with {} % of visits", exposure_bps / 100)
    } else {
        return Ok(rollout);
    };
    Err(Error::Unusable(format!(
        "{component} {version} is under way in {environment} and cannot be broken, as it {problem}: take it back \
         (`tandem rollout back {component} --reason 'a look around'`), and this command ships one that can"
    )))
}

impl Course {
    /// Of a rollout that has just been looked at for the first time.
    pub(super) fn new(rollout: &Rollout) -> Self {
        let Rollout { component, version, previous_version, .. } = rollout.clone();
        Self { component, version, previous_version, ..Self::default() }
    }

    /// Takes in how the rollout stands; whether that is final. What the guard counts later has no part in its finding.
    pub(super) fn sees(&mut self, GetRolloutResponse { rollout, report }: GetRolloutResponse) -> bool {
        let rollout = rollout.unwrap_or_default();
        let guards = report.map(|report| report.guards).unwrap_or_default();
        let is_it = |report: &&GuardReport| report.guard.as_ref().is_some_and(|guard| guard.name == GUARD);
        if let Some(report) = guards.iter().find(is_it)
            && !self.is_harm
        {
            let outcomes = |arm: Option<&ArmReport>| {
                u64::try_from(arm.map_or(0, |arm| arm.outcomes)).unwrap_or_default()
            };
            self.on_canary = outcomes(report.canary.as_ref());
            self.on_control = outcomes(report.control.as_ref());
        }
        let harm = rollout.harms.iter().find(|harm| harm.guard == GUARD);
        self.is_harm = harm.is_some();
        if rollout.state() == RolloutState::RolledBack {
            let found = harm.and_then(|harm| harm.find_time).and_then(from_proto);
            let ended = rollout.end_time.and_then(from_proto);
            let took = ended.zip(found).and_then(|(ended, found)| (ended - found).to_std().ok());
            self.rolled_back_seconds = took.as_ref().map(Duration::as_secs_f64);
        }
        rollout.end_time.is_some()
    }

    /// Whether the guard found the harm, and the rollout went back for it.
    pub(super) fn is_good(&self) -> bool {
        self.is_harm && self.rolled_back_seconds.is_some()
    }

    /// What the guard has counted, for people who wait.
    pub(super) fn so_far(&self) -> String {
        let Self { component, version, previous_version, on_canary, on_control, is_harm, .. } = self;
        let harm = if *is_harm { ": HARM" } else { "" };
        format!("{component}: {on_canary} failures on {version}, {on_control} on {previous_version}{harm}")
    }
}

impl Display for Course {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let no = if self.is_harm { "" } else { "no " };
        write!(f, "{no}HARM after {} failures; ", self.on_canary + self.on_control)?;
        match self.rolled_back_seconds {
            Some(seconds) => write!(f, "rolled back in {seconds:.1} s"),
            None => f.write_str("not rolled back"),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;
    use shared::pb::release::{Guard, RolloutHarm, RolloutPlan, RolloutReport};

    use super::*;

    fn rollout(mode: GuardMode, state: RolloutState) -> Rollout {
        let guard = Guard { name: GUARD.to_owned(), mode: mode.into(), ..Guard::default() };
        let plan = Some(RolloutPlan { guards: vec![guard], ..RolloutPlan::default() });
        Rollout { plan, state: state.into(), exposure_bps: 1_000, ..Rollout::default() }
    }

    fn counted(rollout: Rollout, on_canary: i64, on_control: i64) -> GetRolloutResponse {
        let arm = |outcomes| Some(ArmReport { units: 100, outcomes });
        let guard = rollout.plan.clone().unwrap_or_default().guards.pop();
        let report =
            GuardReport { guard, canary: arm(on_canary), control: arm(on_control), ..Default::default() };
        let report = Some(RolloutReport { guards: vec![report], ..RolloutReport::default() });
        GetRolloutResponse { rollout: Some(rollout), report }
    }

    #[test]
    fn only_a_canary_that_its_guard_takes_back_can_be_broken() {
        assert!(usable(rollout(GuardMode::Rollback, RolloutState::Running)).is_ok());
        for (mode, state) in [
            (GuardMode::Pause, RolloutState::Running),
            (GuardMode::Observe, RolloutState::Running),
            (GuardMode::Rollback, RolloutState::Paused),
            (GuardMode::Rollback, RolloutState::RollingBack),
        ] {
            assert!(usable(rollout(mode, state)).is_err(), "{mode:?} {state:?}");
        }
        let mut ends = rollout(GuardMode::Rollback, RolloutState::Running);
        ends.plan.get_or_insert_default().set_rollback_policy(RollbackPolicy::End);
        assert!(usable(ends).is_err());
        let everyone =
            Rollout { exposure_bps: 10_000, ..rollout(GuardMode::Rollback, RolloutState::Running) };
        assert!(usable(everyone).is_err());
    }

    #[test]
    fn failures_count_until_harm_and_the_way_back_from_there() {
        let running = rollout(GuardMode::Rollback, RolloutState::Running);
        let mut course = Course::new(&running);
        assert!(!course.sees(counted(running.clone(), 3, 1)));
        assert_eq!(course.to_string(), "no HARM after 4 failures; not rolled back");
        let found = Timestamp { seconds: 10, nanos: 0 };
        let harm = RolloutHarm { guard: GUARD.to_owned(), find_time: Some(found), ..RolloutHarm::default() };
        let mut back = Rollout { harms: vec![harm], ..running };
        back.set_state(RolloutState::RollingBack);
        assert!(!course.sees(counted(back.clone(), 9, 1)) && !course.is_good());
        back.set_state(RolloutState::RolledBack);
        back.end_time = Some(Timestamp { seconds: 11, nanos: 240_000_000 });
        assert!(course.sees(counted(back, 12, 2)) && course.is_good());
        assert_eq!(course.to_string(), "HARM after 10 failures; rolled back in 1.2 s");
    }

    #[test]
    fn a_rollback_by_hand_is_no_finding() {
        let back = rollout(GuardMode::Rollback, RolloutState::RolledBack);
        let mut course = Course::new(&back);
        course.sees(counted(back, 1, 0));
        assert!(!course.is_good());
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(
            ["1.9", "1.10.2", "2.0.0-rc.1", "x"].map(minor),
            [Some((1, 9)), Some((1, 10)), Some((2, 0)), None]
        );
    }
}
