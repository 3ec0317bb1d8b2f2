//! The figures of a period, in DORA's words (dora.dev, 2026-01), with what they are made of. What cannot be measured is
//! none, never 0.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use shared::time::Time;

use super::{History, Wait};
use crate::domain::window::Denied;

const DAY: TimeDelta = TimeDelta::days(1);
const WEEK: TimeDelta = TimeDelta::weeks(1);
const MONTH: TimeDelta = TimeDelta::days(30);
/// In a week that counts as one of daily deployments, at least so many days have one.
const DAILY_DAYS: usize = 3;

/// From an instant until before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    pub start: Time,
    pub end: Time,
}

/// Delivery over a period.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    pub change_lead_time: Option<Spread>,
    pub deployments: usize,
    /// None without deployments, as the next one is.
    pub per_day: Option<f64>,
    pub pace: Option<Pace>,
    pub failed_deployment_recovery_time: Option<Spread>,
    pub change_fail_rate: Option<Ratio>,
    pub deployment_rework_rate: Option<Ratio>,
    pub caught_in_canary: usize,
    pub rollbacks: usize,
    pub approval_wait_time: Option<Spread>,
    pub freeze_backlog: Option<usize>,
}

/// Durations in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    pub median: TimeDelta,
    pub p90: TimeDelta,
    pub count: usize,
}

/// A share of something that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ratio {
    pub numerator: usize,
    pub denominator: usize,
}

/// How often, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    Daily,
    Weekly,
    Monthly,
    Rarely,
}

impl Period {
    pub fn has(&self, at: Time) -> bool {
        self.start <= at && at < self.end
    }

    /// The whole spans that it begins with.
    fn whole(&self, span: TimeDelta) -> impl Iterator<Item = Self> {
        let end = self.end;
        std::iter::successors(Some(self.start), move |start| Some(*start + span))
            .map(move |start| Self { start, end: start + span })
            .take_while(move |part| part.end <= end)
    }
}

impl History {
    /// The figures of a period, within which windows denied rollouts.
    pub fn metrics(&self, period: &Period, denied: &Denied) -> Metrics {
        let made: Vec<_> = self.deployments.iter().filter(|deployment| period.has(deployment.at)).collect();
        let times: Vec<_> = made.iter().map(|deployment| deployment.at).collect();
        let failures: Vec<_> = made.iter().filter_map(|deployment| deployment.failure.as_ref()).collect();
        let share = |numerator| (!made.is_empty()).then_some(Ratio { numerator, denominator: made.len() });
        let recoveries = failures
            .iter()
            .filter_map(|failure| Some(failure.recovered_at? - failure.detected_at));
        let waits = self.approvals.iter().filter(|(at, _)| period.has(*at)).map(|(_, wait)| *wait);
        let count = |times: &[Time]| times.iter().filter(|at| period.has(**at)).count();
        Metrics {
            change_lead_time: Spread::of(made.iter().flat_map(|deployment| &deployment.lead_times).copied()),
            deployments: made.len(),
            per_day: per_day(times.len(), period),
            pace: Pace::of(&times, period),
            failed_deployment_recovery_time: Spread::of(recoveries),
            change_fail_rate: share(failures.len()),
            deployment_rework_rate: share(made.iter().filter(|deployment| deployment.is_rework).count()),
            caught_in_canary: count(&self.caught),
            rollbacks: count(&self.rollbacks),
            approval_wait_time: Spread::of(waits),
            freeze_backlog: self.freeze_backlog(period, denied),
        }
    }

    /// How many approved releases waited while they were denied; none where nothing was.
    fn freeze_backlog(&self, period: &Period, denied: &Denied) -> Option<usize> {
        let is_held = |wait: &&Wait| {
            let from = wait.from.max(period.start);
            let until = wait.until.unwrap_or(period.end).min(period.end);
            let denied = denied.to(&wait.release_id);
            denied.iter().any(|span| span.start.max(from) < span.end.min(until))
        };
        (!denied.is_empty()).then(|| self.waits.iter().filter(is_held).count())
    }
}

fn per_day(deployments: usize, period: &Period) -> Option<f64> {
    let deployments = u32::try_from(deployments).ok().filter(|deployments| *deployments > 0)?;
    Some(f64::from(deployments) * DAY.as_seconds_f64() / (period.end - period.start).as_seconds_f64())
}

impl Pace {
    /// Of these deployments, all within the period.
    fn of(times: &[Time], period: &Period) -> Option<Self> {
        let days_of = |week: Period| {
            let days: BTreeSet<_> = times.iter().filter(|at| week.has(**at)).map(Time::date_naive).collect();
            days.len()
        };
        let mut weeks: Vec<_> = period.whole(WEEK).map(days_of).collect();
        weeks.sort_unstable();
        if times.is_empty() || weeks.is_empty() {
            return None;
        }
        // Twice the median, so that it is a whole number.
        let doubled = |sorted: &[usize]| sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2];
        if doubled(&weeks) >= 2 * DAILY_DAYS {
            return Some(Self::Daily);
        }
        if doubled(&weeks) >= 2 {
            return Some(Self::Weekly);
        }
        let mut months: Vec<_> = period
            .whole(MONTH)
            .map(|month| times.iter().filter(|at| month.has(**at)).count())
            .collect();
        months.sort_unstable();
        if months.is_empty() {
            return None;
        }
        Some(if doubled(&months) >= 2 { Self::Monthly } else { Self::Rarely })
    }
}

impl Spread {
    fn of(durations: impl Iterator<Item = TimeDelta>) -> Option<Self> {
        let mut sorted: Vec<_> = durations.collect();
        sorted.sort_unstable();
        let (low, high) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
        let p90 = sorted.get((sorted.len() * 9).div_ceil(10) - 1)?;
        Some(Self { median: *low + (*high - *low) / 2, p90: *p90, count: sorted.len() })
    }
}
