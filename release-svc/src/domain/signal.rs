//! What session services counted of a rollout, as its guards read it.

use std::collections::BTreeMap;

use crate::domain::guard::{GUARDS_MAX, Guard, Guards, Judgement, Peaks, StepCounts, Tally, Verdict};
use crate::domain::rollout::control::Watched;
use crate::domain::rollout::{Rollout, STEPS_MAX};

/// One count: of units where there is no guard, else of the guard's outcomes, each unit once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    pub step: usize,
    pub is_canary: bool,
    pub guard: Option<String>,
    pub number: u64,
}

/// Most counts of a rollout: of each step, with everyone's behind those that were asked for, and each arm the units and each
/// guard's outcomes.
pub const COUNTS_MAX: usize = (STEPS_MAX + 1) * 2 * (GUARDS_MAX + 1);

/// What a rollout is counted by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    pub steps: usize,
    pub guards: Guards,
}

impl Scope {
    /// Whether a count of this step and guard, or of units where there is none, belongs to it.
    pub fn has(&self, step: usize, guard: Option<&str>) -> bool {
        let is_named = |name: &str| self.guards.as_slice().iter().any(|guard| guard.name.as_str() == name);
        step < self.steps && guard.is_none_or(is_named)
    }
}

/// A guard, with what it makes of the counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    pub guard: Guard,
    pub counts: Vec<StepCounts>,
    pub judgement: Judgement,
    /// Its part of the chance of a false HARM.
    pub alpha: f64,
}

/// What every guard of a rollout makes of the counts and of what was found before, in the plan's order.
pub fn read(rollout: &Rollout, counts: &[Count]) -> Vec<Reading> {
    let readings = rollout.plan.guards.with_alpha().map(|(guard, alpha)| {
        let counts = of_guard(rollout, counts, guard);
        let is_found = rollout.harms.iter().any(|harm| harm.guard == guard.name.as_str());
        let before = Peaks::of_found(is_found.then_some(alpha), rollout.mismatched_at.is_some());
        let judgement = guard.rule.judge(alpha, &counts, before);
        Reading { guard: guard.clone(), counts, judgement, alpha }
    });
    readings.collect()
}

fn of_guard(rollout: &Rollout, counts: &[Count], guard: &Guard) -> Vec<StepCounts> {
    let mut steps: BTreeMap<usize, (Tally, Tally)> = BTreeMap::new();
    for Count { step, is_canary, guard: of, number } in counts {
        let (canary, control) = steps.entry(*step).or_default();
        let tally = if *is_canary { canary } else { control };
        match of {
            None => tally.units += number,
            Some(of) if of == guard.name.as_str() => tally.events += number,
            Some(_) => {}
        }
    }
    let steps = steps.into_iter().map(|(step, (canary, control))| StepCounts {
        canary_bps: rollout.steps.exposure_bps(step),
        canary,
        control,
    });
    steps.collect()
}

impl From<&Reading> for Watched {
    fn from(reading: &Reading) -> Self {
        let is_mismatch = reading.judgement.peaks.is_mismatch();
        let has_data = reading.counts.iter().any(|step| step.canary.units + step.control.units > 0);
        Self {
            guard: reading.guard.name.to_string(),
            mode: reading.guard.mode,
            verdict: reading.judgement.verdict,
            is_mismatch,
            has_data,
            finding: finding(reading, is_mismatch),
        }
    }
}

/// The figures as a sentence without a full stop.
fn finding(reading: &Reading, is_mismatch: bool) -> String {
    let sum = |of: fn(&StepCounts) -> Tally| {
        let all = reading.counts.iter().map(of);
        all.fold(Tally::default(), |sum, tally| Tally {
            units: sum.units + tally.units,
            events: sum.events + tally.events,
        })
    };
    let (canary, control) = (sum(|step| step.canary), sum(|step| step.control));
    let text = format!(
        "{} of {} visits on the new release, {} of {} on the old one",
        canary.events, canary.units, control.events, control.units
    );
    match reading.judgement.verdict {
        _ if is_mismatch => format!("visits are not dealt to the releases as planned ({text})"),
        Verdict::Harm => format!("{text}; p = {:.1e}", reading.judgement.p_value()),
        Verdict::Safe | Verdict::Inconclusive => text,
    }
}

#[cfg(test)]
mod tests;
