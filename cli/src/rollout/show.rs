//! How a rollout looks to people: a sentence of where it stands, a line of a list, and everything that it goes by and waits
//! for.

use chrono::TimeDelta;
use console::Style;
use shared::pb::release::{
    ArmReport, DeadlineAction, Guard, GuardMode, GuardReport, PauseCause, RollbackPolicy, Rollout,
    RolloutPause, RolloutPlan, RolloutReport, RolloutState, StepPhase, Verdict,
};
use shared::time::{Time, from_proto};

use crate::output::{columns, instant, short, table};
use crate::percent::Percent;
use crate::release::explain;

/// A line for each, or that sentence where there is none.
pub(super) fn list(rollouts: &[Rollout], none: &str) {
    let row = |rollout: &Rollout| {
        [
            rollout.rollout_id.clone(),
            rollout.component.clone(),
            rollout.version.clone(),
            rollout.environment.clone(),
            colour(rollout.state()).apply_to(state(rollout)).to_string(),
            Percent(rollout.exposure_bps).to_string(),
            rollout.starter.clone(),
            instant(rollout.start_time),
        ]
    };
    let rows: Vec<_> = rollouts.iter().map(row).collect();
    let head = ["ID", "COMPONENT", "VERSION", "ENVIRONMENT", "STATE", "EXPOSURE", "BY", "STARTED"];
    table(head, &rows, none);
}

/// Where it stands.
pub(super) fn sentence(rollout: &Rollout) -> String {
    let Rollout { component, environment, version, rollback_reason: why, .. } = rollout;
    let what = format!("{component} {version} in {environment}");
    let before = previous(rollout);
    match rollout.state() {
        RolloutState::Waiting => format!("{what}: waits for {}", rollout.waiting_for.join(", ")),
        RolloutState::Running => format!("{what}: {}", share(rollout)),
        RolloutState::Paused => {
            let pause = rollout.pause.clone().unwrap_or_default();
            format!("{what}: paused at {}, by {}: {}", share(rollout), pause.principal, pause.reason)
        }
        RolloutState::Draining => {
            format!("{what}: on every new visit; visits on {before} are waited for")
        }
        RolloutState::Succeeded => format!("{what}: on every new visit"),
        RolloutState::RollingBack => {
            format!("{what}: rolled back to {before} ({why}); not every session service has confirmed it yet")
        }
        RolloutState::RollbackFailed => format!(
            "{what}: rolled back to {before} ({why}), but not every session service has confirmed it in time; see to them, \
             then `tandem rollout resolve`"
        ),
        RolloutState::RolledBack => {
            let left = match rollout.plan.as_ref().map(RolloutPlan::rollback_policy) {
                Some(RollbackPolicy::Finish) => "visits on it stay to their end",
                Some(RollbackPolicy::End) => "visits on it end with their next call",
                Some(RollbackPolicy::Unspecified | RollbackPolicy::Migrate) | None => {
                    "visits with an open checkout keep it until that ends"
                }
            };
            format!("{what}: rolled back to {before} ({why}); no new visit gets it; {left}")
        }
        RolloutState::Cancelled => format!("{what}: given up before anybody was exposed ({why})"),
        RolloutState::Superseded => {
            format!("{what}: {} took its place while it waited", rollout.superseded_by)
        }
        RolloutState::Unspecified => format!("{what}: unknown to this version of tandem"),
    }
}

/// Share of visits, and which step that is.
fn share(rollout: &Rollout) -> String {
    let steps: Vec<_> = rollout.step_exposures_bps.iter().map(|bps| Percent(*bps).to_string()).collect();
    let goes_on = rollout.plan.as_ref().is_some_and(|plan| plan.min_bake.is_some());
    let rest = match rollout.exposure_bps {
        10_000 if goes_on || rollout.state() == RolloutState::Paused => String::new(),
        10_000 => ", to be advanced once more".to_owned(),
        _ => format!(", the rest on {}", previous(rollout)),
    };
    let exposure = Percent(rollout.exposure_bps);
    format!("{exposure} of visits{rest} (step {} of {})", rollout.step + 1, steps.join(", "))
}

fn previous(rollout: &Rollout) -> &str {
    match (rollout.previous_version.as_str(), rollout.state()) {
        ("", RolloutState::Waiting) => "-",
        ("", _) => "nothing",
        (version, _) => version,
    }
}

/// Everything about it that helps to decide whether it goes on.
pub(super) fn lines(rollout: &Rollout, report: &RolloutReport, now: Time) -> Vec<String> {
    let mut lines = vec![sentence(rollout)];
    let mut tell = |line: String| lines.push(format!("  {line}"));
    let state = colour(rollout.state()).apply_to(state(rollout));
    tell(format!("{state}{}", phase(rollout, now)));
    let Rollout { rollout_id, starter, start_time, rollback_of, .. } = rollout;
    tell(format!("{rollout_id} by {starter}, {}", instant(*start_time)));
    if !rollback_of.is_empty() {
        tell(format!("takes back {rollback_of}"));
    }
    let plan = rollout.plan.as_ref().map(goes_by).unwrap_or_default();
    if !plan.is_empty() {
        tell(format!("plan: {}", plan.join("; ")));
    }
    for harm in &rollout.harms {
        tell(format!("HARM, {}: {}: {}", instant(harm.find_time), harm.guard, harm.finding));
        if !harm.cleared_by.is_empty() {
            let when = instant(harm.clear_time);
            tell(format!("  cleared by {}, {when}: {}", harm.cleared_by, harm.clear_reason));
        }
    }
    let visits = visits(rollout, report);
    if !visits.is_empty() {
        let counted = report.visits.iter().find_map(|count| count.count_time);
        let what = if rollout.end_time.is_some() { "visits when last counted" } else { "live visits" };
        tell(format!("{what}: {visits} (counted {})", instant(counted)));
    }
    for line in guards(rollout, report) {
        tell(line);
    }
    let is_running = rollout.state() == RolloutState::Running;
    let counted = |arm: Option<ArmReport>| arm.is_some_and(|arm| arm.units > 0);
    let is_counted = |guard: &GuardReport| counted(guard.canary) || counted(guard.control);
    if is_running && !report.guards.is_empty() && !report.guards.iter().any(is_counted) {
        let what = &rollout.component;
        tell(format!(
            "no visit was counted yet: only those count that begin at a touchpoint with {what} among its components"
        ));
    }
    let goes_on = rollout.plan.as_ref().is_some_and(|plan| plan.min_bake.is_some());
    if is_running && !goes_on && report.blockers.is_empty() && rollout.phase() == StepPhase::Baking {
        tell("waits for a person: `tandem rollout advance`".to_owned());
    }
    if !report.blockers.is_empty() {
        tell("waits, because".to_owned());
    }
    for blocker in &report.blockers {
        tell(format!("  {}", explain::sentence(blocker, rollout_id)));
    }
    lines
}

/// The same in one line, without what changes by itself.
pub(super) fn line(rollout: &Rollout, report: &RolloutReport) -> String {
    let steps = rollout.step_exposures_bps.len();
    let phase = match rollout.phase() {
        StepPhase::Unspecified => String::new(),
        phase @ (StepPhase::Deploying | StepPhase::Exposing | StepPhase::Baking) => {
            format!(" {}", short(phase.as_str_name(), "STEP_PHASE_"))
        }
    };
    let reasons = match rollout.waiting_for.join(", ") {
        none if none.is_empty() => none,
        reasons => format!(" for {reasons}"),
    };
    let mut parts = vec![
        format!("{}{phase}{reasons}", state(rollout)),
        format!("step {} of {steps}", rollout.step + 1),
        format!("exposure {}", Percent(rollout.exposure_bps)),
    ];
    let visits = visits(rollout, report);
    if !visits.is_empty() {
        parts.push(format!("visits {visits}"));
    }
    for guard in &report.guards {
        let (new, old) = (rate(guard.canary), rate(guard.control));
        let (verdict, p) = (verdict(guard.verdict()), p_value(guard.harm_p_value));
        parts.push(format!("{} {verdict} {new} against {old}, p {p}", name(guard)));
    }
    if !report.blockers.is_empty() {
        let kinds: Vec<_> = report.blockers.iter().map(|blocker| blocker.r#type.as_str()).collect();
        parts.push(format!("held by {}", kinds.join(", ")));
    }
    parts.join("; ")
}

fn state(rollout: &Rollout) -> &'static str {
    short(rollout.state().as_str_name(), "ROLLOUT_STATE_")
}

/// What it is at, and since when.
fn phase(rollout: &Rollout, now: Time) -> String {
    let phase = match rollout.phase() {
        StepPhase::Unspecified => "",
        StepPhase::Deploying => ": an executor makes room",
        StepPhase::Exposing => ": session services are told",
        StepPhase::Baking => ": the step is watched",
    };
    let cause = match rollout.pause.as_ref().map(RolloutPause::cause) {
        Some(PauseCause::Harm) => {
            " (HARM; whoever resumes it had no part in the release, and clears the guard)".to_owned()
        }
        Some(cause) => format!(" ({})", short(cause.as_str_name(), "PAUSE_CAUSE_")),
        None => String::new(),
    };
    let since = rollout.phase_start_time.and_then(from_proto);
    let since = since.filter(|_| rollout.end_time.is_none());
    let since = since.map(|since| format!(", for {}", span(now.signed_duration_since(since))));
    format!("{phase}{cause}{}", since.unwrap_or_default())
}

/// What was asked for, but for the steps.
fn goes_by(plan: &RolloutPlan) -> Vec<String> {
    let of = |span: Option<prost_types::Duration>| span.map(|it| self::span(TimeDelta::seconds(it.seconds)));
    let deadline = |limit| {
        let then = match plan.at_deadline() {
            DeadlineAction::Unspecified | DeadlineAction::Pause => "pauses",
            DeadlineAction::Advance => "goes on",
            DeadlineAction::RollBack => "goes back",
        };
        format!("{then} after {limit} of a step")
    };
    let said = [
        of(plan.min_bake).map(|bake| format!("each step is watched for {bake}")),
        of(plan.step_deadline).map(deadline),
        of(plan.drain_deadline).map(|drain| format!("old visits are waited for up to {drain}")),
    ];
    said.into_iter().flatten().collect()
}

/// Hours, minutes and seconds that there are.
fn span(time: TimeDelta) -> String {
    let seconds = time.num_seconds().max(0);
    let parts = [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let said = parts.iter().filter(|(count, _)| *count > 0);
    let said: Vec<_> = said.map(|(count, unit)| format!("{count}{unit}")).collect();
    if said.is_empty() { "0s".to_owned() } else { said.join(" ") }
}

fn visits(rollout: &Rollout, report: &RolloutReport) -> String {
    let of = |release_id: &str| {
        if release_id == rollout.release_id { rollout.version.as_str() } else { previous(rollout) }
    };
    let counts = report.visits.iter();
    let counts: Vec<_> = counts
        .map(|count| format!("{} on {}", count.visits, of(&count.release_id)))
        .collect();
    counts.join(", ")
}

/// A table of what guards say; nothing where there are none.
fn guards(rollout: &Rollout, report: &RolloutReport) -> Vec<String> {
    if report.guards.is_empty() {
        return Vec::new();
    }
    let row = |guard: &GuardReport| {
        let colour = match guard.verdict() {
            Verdict::Harm => Style::new().red(),
            Verdict::Safe => Style::new().green(),
            Verdict::SampleRatioMismatch => Style::new().yellow(),
            Verdict::Unspecified | Verdict::Inconclusive => Style::new(),
        };
        [
            name(guard).to_owned(),
            mode(guard.guard.as_ref()).to_owned(),
            colour.apply_to(verdict(guard.verdict())).to_string(),
            rate(guard.control),
            rate(guard.canary),
            difference(guard),
            format!("{}, HARM at {}", p_value(guard.harm_p_value), p_value(guard.harm_alpha)),
            format!("{}, SAFE at 0.05", p_value(guard.safe_p_value)),
        ]
    };
    let rows: Vec<_> = report.guards.iter().map(row).collect();
    let head = [
        "GUARD",
        "DOES",
        "SAYS",
        previous(rollout),
        &rollout.version,
        "DIFFERENCE",
        "P OF HARM",
        "P OF SAFETY",
    ];
    columns(head, &rows)
}

fn name(report: &GuardReport) -> &str {
    report.guard.as_ref().map_or("-", |guard| &guard.name)
}

fn mode(guard: Option<&Guard>) -> &'static str {
    match guard.map(Guard::mode) {
        Some(GuardMode::Observe) => "observe",
        Some(GuardMode::Pause) => "pause",
        Some(GuardMode::Unspecified | GuardMode::Rollback) | None => "rollback",
    }
}

fn verdict(verdict: Verdict) -> &'static str {
    short(verdict.as_str_name(), "VERDICT_")
}

/// Visits with an outcome, of all that count.
fn rate(arm: Option<ArmReport>) -> String {
    let ArmReport { units, outcomes } = arm.unwrap_or_default();
    if units == 0 {
        return "no visits".to_owned();
    }
    // Counts of visits are far below where a double leaves out numbers.
    #[expect(clippy::cast_precision_loss, reason = "see above")]
    let share = outcomes as f64 / units as f64 * 100.0;
    format!("{outcomes} of {units} ({share:.2}%)")
}

/// In percentage points, with the bounds that hold whenever one looks.
fn difference(report: &GuardReport) -> String {
    let points = |share: f64| format!("{:+.2}", share * 100.0);
    let GuardReport { difference, difference_low, difference_high, .. } = report;
    match (difference, difference_low, difference_high) {
        (Some(estimate), Some(low), Some(high)) => {
            format!("{} ({} to {}) points", points(*estimate), points(*low), points(*high))
        }
        _ => "-".to_owned(),
    }
}

/// Small ones are told apart, as what counts is how small they are.
fn p_value(p: f64) -> String {
    if p < 0.0001 { "<0.0001".to_owned() } else { format!("{p:.4}") }
}

fn colour(state: RolloutState) -> Style {
    match state {
        RolloutState::Running | RolloutState::Draining | RolloutState::Succeeded => Style::new().green(),
        RolloutState::Waiting | RolloutState::Paused | RolloutState::RollingBack => Style::new().yellow(),
        RolloutState::RolledBack | RolloutState::RollbackFailed => Style::new().red(),
        RolloutState::Cancelled | RolloutState::Superseded | RolloutState::Unspecified => Style::new(),
    }
}

#[cfg(test)]
mod tests;
