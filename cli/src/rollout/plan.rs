//! What a rollout goes by, as people say it: steps, times, guards, and what happens when nobody can tell.

use std::time::Duration;

use shared::pb::release::{
    AssignmentPolicy, DeadlineAction, Guard, GuardMode, RollbackPolicy, RolloutPlan, StartRolloutRequest,
};

use crate::percent::Percent;
use crate::ship;
use crate::token::duration;

/// How a new release reaches its visits.
#[derive(Debug, clap::Args)]
pub(super) struct Plan {
    /// Share of visits at each step before everyone, such as 10% or 1%,10%,50% [default: everyone at once]
    #[arg(long, value_name = "SHARES", value_delimiter = ',')]
    steps: Vec<Percent>,
    /// Move running visits, too, as they are seen while the rollout runs, except those with an open checkout
    #[arg(long)]
    all_sessions: bool,
    /// Watch each step for so long, such as 10m, and then go on by itself [default: every step is advanced by hand]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    bake: Option<Duration>,
    /// Longest that a step may take [default: no end]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    deadline: Option<Duration>,
    /// What happens then
    #[arg(long, value_enum, default_value = "pause", value_name = "WHAT")]
    at_deadline: AtDeadline,
    /// What must not get worse: `checkout`, `purchase` or an outcome of your own, with what happens when it does
    /// (`:rollback`, `:pause` or `:observe`) [default: rollback]; may be given again
    #[arg(long = "guard", value_name = "NAME[:MODE]", value_parser = guard)]
    guards: Vec<Guard>,
    /// What happens to visits on the new release when it is rolled back
    #[arg(long, value_enum, default_value = "migrate", value_name = "WHAT")]
    on_rollback: OnRollback,
    /// At the end, wait so long for visits on the old release [default: not at all]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    drain: Option<Duration>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum AtDeadline {
    /// A person decides
    Pause,
    /// It goes on, unless a guard found harm
    Advance,
    /// It is rolled back
    RollBack,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum OnRollback {
    /// They stay on it to their end
    Finish,
    /// They move with their next call, held ones later
    Migrate,
    /// They end with their next call, held or not
    End,
}

impl Plan {
    /// The request for this release.
    pub(super) fn request(&self, release_id: String, environment: String, wait: bool) -> StartRolloutRequest {
        let assignment_policy =
            if self.all_sessions { AssignmentPolicy::AllSessions } else { AssignmentPolicy::NewVisits };
        StartRolloutRequest {
            release_id,
            environment,
            step_exposures_bps: self.steps.iter().map(|share| share.0).collect(),
            assignment_policy: assignment_policy.into(),
            plan: Some(self.in_full()),
            wait,
            request_id: String::new(),
        }
    }

    /// Says which guards are nobody's but the caller's.
    pub(super) fn tell_own(&self) {
        ship::tell_own(&self.guards);
    }

    fn in_full(&self) -> RolloutPlan {
        let at_deadline = match self.at_deadline {
            AtDeadline::Pause => DeadlineAction::Pause,
            AtDeadline::Advance => DeadlineAction::Advance,
            AtDeadline::RollBack => DeadlineAction::RollBack,
        };
        let rollback_policy = match self.on_rollback {
            OnRollback::Finish => RollbackPolicy::Finish,
            OnRollback::Migrate => RollbackPolicy::Migrate,
            OnRollback::End => RollbackPolicy::End,
        };
        RolloutPlan {
            step_deadline: self.deadline.map(span),
            at_deadline: at_deadline.into(),
            rollback_policy: rollback_policy.into(),
            drain_deadline: self.drain.map(span),
            ..watching(&self.guards, self.bake)
        }
    }
}

/// A plan that only watches; the rest is the service's default.
pub(crate) fn watching(guards: &[Guard], bake: Option<Duration>) -> RolloutPlan {
    RolloutPlan { min_bake: bake.map(span), guards: guards.to_vec(), ..RolloutPlan::default() }
}

/// `NAME` or `NAME:MODE`. What a name may be, the service says.
pub(crate) fn guard(text: &str) -> Result<Guard, String> {
    let (name, mode) = text.split_once(':').unwrap_or((text, "rollback"));
    let mode = match mode {
        "observe" => GuardMode::Observe,
        "pause" => GuardMode::Pause,
        "rollback" => GuardMode::Rollback,
        other => return Err(format!("a guard does `observe`, `pause` or `rollback`, not `{other}`")),
    };
    if name.is_empty() {
        return Err("must be a name, such as checkout, or a name and a mode, such as slow:pause".to_owned());
    }
    Ok(Guard { name: name.to_owned(), mode: mode.into(), ..Guard::default() })
}

/// What [`duration`] reads fits in.
fn span(time: Duration) -> prost_types::Duration {
    prost_types::Duration { seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), nanos: 0 }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        plan: Plan,
    }

    fn asked(line: &str) -> StartRolloutRequest {
        let words = std::iter::once("start").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).unwrap();
        line.plan.request("rel_1".to_owned(), "prod".to_owned(), true)
    }

    #[test]
    fn a_plan_is_what_the_line_says() {
        let request = asked(
            "--steps 10%,50% --bake 10m --deadline 1h --at-deadline roll-back --guard checkout --guard slow:pause \
             --on-rollback end --drain 30m --all-sessions",
        );
        assert_eq!(request.step_exposures_bps, [1000, 5000]);
        assert_eq!(request.assignment_policy(), AssignmentPolicy::AllSessions);
        assert!(request.wait);
        let plan = request.plan.unwrap();
        let spans = [plan.min_bake, plan.step_deadline, plan.drain_deadline];
        assert_eq!(spans.map(|span| span.unwrap().seconds), [600, 3600, 1800]);
        assert_eq!(plan.at_deadline(), DeadlineAction::RollBack);
        assert_eq!(plan.rollback_policy(), RollbackPolicy::End);
        let guards: Vec<_> = plan.guards.iter().map(|guard| (guard.name.as_str(), guard.mode())).collect();
        assert_eq!(guards, [("checkout", GuardMode::Rollback), ("slow", GuardMode::Pause)]);
    }

    #[test]
    fn without_options_it_goes_to_everyone_and_waits_for_nothing() {
        let request = asked("");
        assert_eq!(request.step_exposures_bps, Vec::<i32>::new());
        let plan = request.plan.unwrap();
        assert_eq!((plan.min_bake, plan.step_deadline, plan.drain_deadline), (None, None, None));
        assert_eq!(plan.at_deadline(), DeadlineAction::Pause);
        assert_eq!(plan.rollback_policy(), RollbackPolicy::Migrate);
    }

    #[test]
    fn what_is_no_guard_is_refused() {
        for bad in ["", ":pause", "slow:", "slow:stop", "slow:pause:x"] {
            assert!(guard(bad).is_err(), "{bad}");
        }
    }
}
