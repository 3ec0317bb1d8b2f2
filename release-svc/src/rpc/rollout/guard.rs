//! Guards and what they say, as on the wire.

use shared::parse::known_or_default;
use shared::pb::release as pb;
use shared::status::Refusal;

use crate::domain::guard::{
    Guard, Guards, Judgement, Kind, Mode, Name, Rule, StepCounts, Tally, Verdict, estimate,
};
use crate::domain::signal::Reading;

/// The guard whose outcomes are orders; those of others are failures where nothing else is said.
const PURCHASE: &str = "purchase";

impl From<&Guard> for pb::Guard {
    fn from(Guard { name, rule, mode, weight }: &Guard) -> Self {
        let mode = match mode {
            Mode::Observe => pb::GuardMode::Observe,
            Mode::Pause => pb::GuardMode::Pause,
            Mode::Rollback => pb::GuardMode::Rollback,
        };
        Self {
            name: name.to_string(),
            outcome: kind_to_proto(rule.kind()).into(),
            mode: mode.into(),
            tolerated_ratio_bps: rule.tolerated_bps(),
            unacceptable_ratio_bps: rule.unacceptable_bps(),
            weight: i32::try_from(*weight).unwrap_or(i32::MAX),
        }
    }
}

pub(in crate::rpc) const fn kind_to_proto(kind: Kind) -> pb::OutcomeKind {
    match kind {
        Kind::Failure => pb::OutcomeKind::Failure,
        Kind::Success => pb::OutcomeKind::Success,
    }
}

/// Guards as asked for.
pub(super) fn parse(guards: Vec<pb::Guard>) -> Result<Guards, Refusal> {
    let guards = guards.into_iter().enumerate().map(|(at, guard)| parse_one(at, guard));
    Guards::new(guards.collect::<Result<_, _>>()?).map_err(|error| Refusal::field("plan.guards", error))
}

fn parse_one(at: usize, guard: pb::Guard) -> Result<Guard, Refusal> {
    let pb::Guard { name, outcome, mode, tolerated_ratio_bps, unacceptable_ratio_bps, weight } = guard;
    let field = |name: &str| format!("plan.guards[{at}].{name}");
    let name: Name = shared::parse::parse(&field("name"), &name)?;
    let kind = match known_or_default(&field("outcome"), outcome)? {
        pb::OutcomeKind::Unspecified if name.as_str() == PURCHASE => Kind::Success,
        pb::OutcomeKind::Unspecified | pb::OutcomeKind::Failure => Kind::Failure,
        pb::OutcomeKind::Success => Kind::Success,
    };
    let mode = match known_or_default(&field("mode"), mode)? {
        pb::GuardMode::Observe => Mode::Observe,
        pb::GuardMode::Pause => Mode::Pause,
        pb::GuardMode::Unspecified | pb::GuardMode::Rollback => Mode::Rollback,
    };
    let asked = |bps: i32| (bps != 0).then_some(bps);
    let rule = Rule::new(kind, asked(tolerated_ratio_bps), asked(unacceptable_ratio_bps));
    let rule = rule.map_err(|error| Refusal::field(field("tolerated_ratio_bps"), error))?;
    let weight = u32::try_from(asked(weight).unwrap_or(1));
    let weight = weight.map_err(|_| Refusal::field(field("weight"), "must be 1 or more"))?;
    Ok(Guard { name, rule, mode, weight })
}

impl From<&Reading> for pb::GuardReport {
    fn from(Reading { guard, counts, judgement, alpha }: &Reading) -> Self {
        let verdict = match judgement.verdict {
            Verdict::Harm => pb::Verdict::Harm,
            _ if judgement.peaks.is_mismatch() => pb::Verdict::SampleRatioMismatch,
            Verdict::Safe => pb::Verdict::Safe,
            Verdict::Inconclusive => pb::Verdict::Inconclusive,
        };
        let difference = estimate(counts).map(|estimate| estimate.difference);
        Self {
            guard: Some(guard.into()),
            verdict: verdict.into(),
            control: Some(arm(counts, |step| step.control)),
            canary: Some(arm(counts, |step| step.canary)),
            difference: difference.map(|interval| interval.estimate),
            difference_low: difference.map(|interval| interval.low),
            difference_high: difference.map(|interval| interval.high),
            harm_p_value: Judgement::p_value(judgement),
            harm_alpha: *alpha,
            safe_p_value: (-judgement.ln_safe).exp().min(1.0),
        }
    }
}

fn arm(counts: &[StepCounts], of: fn(&StepCounts) -> Tally) -> pb::ArmReport {
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    pb::ArmReport {
        units: number(counts.iter().map(|step| of(step).units).sum()),
        outcomes: number(counts.iter().map(|step| of(step).events).sum()),
    }
}
