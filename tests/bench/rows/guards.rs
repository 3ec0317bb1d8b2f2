//! How often guards of rollouts err, and how much harm it takes until they speak, in simulated rollouts. The random numbers
//! are the same in every run.

use std::fmt::Write as _;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use release_svc::domain::guard::{
    self, ALPHA, BETA, Estimate, Kind, Peaks, Rule, StepCounts, Tally, Verdict,
};

use crate::Outcome;
use crate::page::{self, Bound, Section, count, figure};
use crate::stand::Stand;

/// Simulated rollouts of each kind.
const RUNS: u64 = 2_000;
/// Of those whose every look is estimated as well.
const WHOLE_RUNS: u64 = 500;
/// Failures of a rollout whose canary is no worse.
const FAILURES: u64 = 2_000;
/// Failures without an alarm after which a harmful one is given up.
const FAILURES_MAX: u64 = 20_000;
/// The canary's share in basis points, its true ratio, and the failures until HARM that were expected in the design.
const HARMFUL: [(i32, f64, u64); 8] = [
    (5_000, 1.5, 236),
    (5_000, 2.0, 78),
    (5_000, 3.0, 36),
    (1_000, 1.5, 569),
    (1_000, 2.0, 167),
    (1_000, 3.0, 50),
    (100, 2.0, 1_338),
    (100, 3.0, 413),
];
/// The steps of a whole rollout: the canary's share, and how often units fail meanwhile.
const STEPS: [(i32, f64); 3] = [(100, 0.02), (1_000, 0.04), (5_000, 0.01)];
/// Looks at each step, and units that come between two.
const LOOKS: u64 = 40;
const UNITS: u64 = 500;

pub(super) async fn guards(stand: &Stand) -> Outcome<Section> {
    let plan = stand.plan;
    tokio::task::spawn_blocking(move || measure(plan.scaled(RUNS), plan.scaled(WHOLE_RUNS))).await?
}

fn measure(runs: u64, whole_runs: u64) -> Outcome<Section> {
    let rule = Rule::new(Kind::Failure, None, None)?;
    let mut rng = StdRng::seed_from_u64(6);
    let mut verdicts = vec![];
    let mut limit = |what: String, share: f64, at_most: f64| {
        verdicts.push(page::Verdict::value(&what, share * 100.0, "%", Bound::AtMost(at_most * 100.0)));
    };
    for canary_bps in [1_000, 5_000] {
        let peaks: Vec<_> = (0..runs).map(|_| peak(rule, canary_bps, &mut rng)).collect();
        for alpha in [0.05, ALPHA] {
            let alarms = share(&peaks, |ln_harm| *ln_harm >= -f64::ln(alpha));
            limit(format!("false alarms at alpha {alpha}, canary {} %", canary_bps / 100), alarms, alpha);
        }
    }
    let no_worse: Vec<_> = (0..whole_runs).map(|_| Whole::run(rule, 1.0, &mut rng)).collect();
    let unacceptable: Vec<_> = (0..whole_runs).map(|_| Whole::run(rule, 1.25, &mut rng)).collect();
    limit("whole rollouts, no worse: HARM".into(), share(&no_worse, |run| run.harm), ALPHA);
    limit(
        "whole rollouts, no worse: units called unbalanced".into(),
        share(&no_worse, |run| run.mismatch),
        0.01,
    );
    limit("whole rollouts, unacceptable: SAFE".into(), share(&unacceptable, |run| run.safe), BETA);
    let missed = "interval ever misses";
    limit(
        format!("whole rollouts, no worse: the difference's {missed}"),
        share(&no_worse, |run| run.difference),
        0.05,
    );
    limit(format!("whole rollouts, no worse: the ratio's {missed}"), share(&no_worse, |run| run.ratio), 0.05);
    limit(
        format!("whole rollouts, unacceptable: the ratio's {missed}"),
        share(&unacceptable, |run| run.ratio),
        0.05,
    );

    let mut body = "| canary | failures, times control's | median failures until HARM | 10 % to 90 % | by the design |\n\
                    |---|---|---|---|---|\n"
        .to_owned();
    for (canary_bps, ratio, expected) in HARMFUL {
        let mut found: Vec<_> = (0..runs).map(|_| detection(rule, canary_bps, ratio, &mut rng)).collect();
        found.sort_unstable();
        let at = |tenths: usize| found[(found.len() * tenths / 10).min(found.len() - 1)];
        let (least, median, most) = (at(1), at(5), at(9));
        let percent = canary_bps / 100;
        writeln!(body, "| {percent} % | {ratio} | {median} | {least} to {most} | {expected} |")?;
        let what = format!("median failures until HARM, canary {percent} %, ratio {ratio}, by the design");
        verdicts.push(page::Verdict::value(
            &what,
            real(median) / real(expected),
            "times",
            Bound::AtMost(1.15),
        ));
    }
    let safe = share(&no_worse, |run| run.safe) * 100.0;
    verdicts.push(page::Verdict::remark(format!(
        "whole rollouts that are no worse are SAFE at some look in {} %",
        figure(safe)
    )));
    Ok(Section {
        title: "Guards of rollouts",
        goal: "a canary that is no worse is called HARM in at most alpha of all rollouts, however often one looks, and harm \
               is found in about the failures that the design says",
        method: format!(
            "Simulated: {} rollouts a line, {} failures each where the canary is no worse, with a look after every failure; then \
             {} whole rollouts of three steps (canary 1 %, 10 %, 50 %) in which 2 %, 4 % and 1 % of the units fail, with {LOOKS} \
             looks at each, {UNITS} units apart, one kind with as many failures in the canary and one with a quarter more, which \
             is unacceptable. Failures are those of both arms together; alpha is {ALPHA} where nothing else is said.",
            count(runs),
            count(FAILURES),
            count(whole_runs)
        ),
        body,
        verdicts,
    })
}

/// Of the runs, those of which something holds.
fn share<T>(runs: &[T], holds: impl Fn(&T) -> bool) -> f64 {
    real(runs.iter().filter(|run| holds(run)).count() as u64) / real(runs.len() as u64)
}

#[expect(clippy::cast_precision_loss, reason = "small counts")]
fn real(count: u64) -> f64 {
    count as f64
}

/// Evidence of harm after each failure, for ever.
fn looks(rule: Rule, canary_bps: i32, ratio: f64, rng: &mut StdRng) -> impl Iterator<Item = f64> {
    let odds = ratio * f64::from(canary_bps) / f64::from(10_000 - canary_bps);
    let mut step = StepCounts { canary_bps, canary: Tally::default(), control: Tally::default() };
    std::iter::repeat_with(move || {
        let is_canary = rng.random_bool(odds / (1.0 + odds));
        let arm = if is_canary { &mut step.canary } else { &mut step.control };
        arm.events += 1;
        rule.ln_harm(&[step])
    })
}

/// The greatest evidence of harm at any look, of a canary that is no worse.
fn peak(rule: Rule, canary_bps: i32, rng: &mut StdRng) -> f64 {
    looks(rule, canary_bps, 1.0, rng)
        .take(usize::try_from(FAILURES).unwrap_or(usize::MAX))
        .fold(0.0, f64::max)
}

/// Failures until HARM.
fn detection(rule: Rule, canary_bps: i32, ratio: f64, rng: &mut StdRng) -> u64 {
    (1..FAILURES_MAX)
        .zip(looks(rule, canary_bps, ratio, rng))
        .find(|(_, ln_harm)| *ln_harm >= -ALPHA.ln())
        .map_or(FAILURES_MAX, |(failures, _)| failures)
}

/// What ever held at a look of a whole rollout.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "errors that have nothing to do with each other")]
struct Whole {
    harm: bool,
    safe: bool,
    mismatch: bool,
    /// Its interval misses; of use only where the arms are alike, else steps differ in it.
    difference: bool,
    ratio: bool,
}

impl Whole {
    fn run(rule: Rule, true_ratio: f64, rng: &mut StdRng) -> Self {
        let (mut counts, mut peaks, mut ever) = (vec![], Peaks::default(), Self::default());
        for (canary_bps, rate) in STEPS {
            let mut step = StepCounts { canary_bps, canary: Tally::default(), control: Tally::default() };
            for _ in 0..LOOKS {
                for _ in 0..UNITS {
                    let is_canary = rng.random_bool(f64::from(canary_bps) / 10_000.0);
                    let (arm, ratio) =
                        if is_canary { (&mut step.canary, true_ratio) } else { (&mut step.control, 1.0) };
                    arm.units += 1;
                    arm.events += u64::from(rng.random_bool(rate * ratio));
                }
                let now: Vec<_> = counts.iter().copied().chain([step]).collect();
                let judgement = rule.judge(ALPHA, &now, peaks);
                peaks = judgement.peaks;
                ever.harm |= judgement.verdict == Verdict::Harm;
                ever.safe |= judgement.verdict == Verdict::Safe;
                ever.mismatch |= peaks.is_mismatch();
                if let Some(Estimate { difference, ratio, .. }) = guard::estimate(&now) {
                    ever.difference |= difference.low > 0.0 || difference.high < 0.0;
                    ever.ratio |= ratio.is_some_and(|it| it.low > true_ratio || it.high < true_ratio);
                }
            }
            counts.push(step);
        }
        ever
    }
}
