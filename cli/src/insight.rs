//! `tandem insight`: how delivery of one component goes, as a table for people or as JSON for programs.

use std::process::ExitCode;

use chrono::{DateTime, NaiveDate, NaiveTime, SecondsFormat, TimeDelta};
use serde_json::{Value, json};
use shared::pb::common::Reason;
use shared::pb::release::insight_service_client::InsightServiceClient;
use shared::pb::release::{
    DeliveryMetrics, DeploymentFrequency, DeploymentPace, GetDeliveryMetricsRequest, Ratio, Spread,
};
use shared::time::{Time, from_proto, to_proto};

use crate::client::{self, Authorized, Bearer};
use crate::error::Error;
use crate::stack::{self, Stack};
use crate::term;
use crate::token::Identity;

/// The first of the ever longer periods in which deployments are looked for.
const FIRST_LOOK_DAYS: i64 = 90;

type Insight = InsightServiceClient<Authorized>;

/// Options of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The component
    #[arg(value_name = "NAME")]
    component: String,
    /// From when on, such as 2026-01-31 or 2026-01-31T09:00:00Z [default: 90 days before the end]
    #[arg(long, value_parser = instant, value_name = "TIME")]
    since: Option<Time>,
    /// Until before when [default: now]
    #[arg(long, value_parser = instant, value_name = "TIME")]
    until: Option<Time>,
    /// An environment that counts; may be given again [default: all that are production]
    #[arg(long = "environment", value_name = "NAME")]
    environments: Vec<String>,
    /// Print JSON: durations in seconds, null for what cannot be measured
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    identity: Identity,
    #[command(flatten)]
    stack: stack::Args,
}

/// Asks, and prints.
pub(crate) async fn run(args: Args) -> Result<ExitCode, Error> {
    let stack = Stack::open(&args.stack)?;
    let token = stack.sign(&args.identity.grant(), TimeDelta::minutes(10))?;
    let channel = client::channel(stack.state()?.release.address);
    let mut insight = InsightServiceClient::with_interceptor(channel, Bearer::new(&token));
    let request = GetDeliveryMetricsRequest {
        component: args.component,
        start_time: args.since.map(to_proto),
        end_time: args.until.map(to_proto),
        environments: args.environments,
    };
    let answer = insight.get_delivery_metrics(request.clone()).await?.into_inner();
    let metrics = answer.metrics.unwrap_or_default();
    if args.json {
        term::say(json_of(&metrics));
        return Ok(ExitCode::SUCCESS);
    }
    print(&metrics);
    if deployments(&metrics) == 0
        && let Some(start) = metrics.start_time.and_then(from_proto)
    {
        match newest_before(&mut insight, &request, start).await? {
            Earlier::On(day) => {
                term::note(format_args!(
                    "the newest deployment before it was on {day}: --since {day} shows it"
                ));
            }
            Earlier::None => {
                term::note("no earlier deployment is known either; `tandem history import` enters past ones");
            }
            Earlier::Unknown => term::note("too much happened since to look for an earlier deployment"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn deployments(metrics: &DeliveryMetrics) -> i64 {
    metrics.deployment_frequency.map_or(0, |frequency| frequency.deployments)
}

/// What is known of deployments before an instant.
enum Earlier {
    /// The newest was on that day.
    On(NaiveDate),
    None,
    /// More happened than is looked at.
    Unknown,
}

/// Looks for the newest deployment before an instant by asking about longer and then shorter periods that end there.
async fn newest_before(
    insight: &mut Insight,
    request: &GetDeliveryMetricsRequest,
    end: Time,
) -> Result<Earlier, Error> {
    let day = |days| end.date_naive() - TimeDelta::days(days);
    // Deployments are never older.
    let longest = (end - DateTime::UNIX_EPOCH).num_days().max(FIRST_LOOK_DAYS);
    let (mut none, mut some) = (-1, FIRST_LOOK_DAYS);
    loop {
        match is_any(insight, request, day(some), end).await? {
            Some(true) => break,
            Some(false) if some == longest => return Ok(Earlier::None),
            Some(false) => {}
            None => return Ok(Earlier::Unknown),
        }
        (none, some) = (some, (some * 2).min(longest));
    }
    while some - none > 1 {
        let days = i64::midpoint(none, some);
        match is_any(insight, request, day(days), end).await? {
            Some(true) => some = days,
            Some(false) => none = days,
            None => return Ok(Earlier::Unknown),
        }
    }
    Ok(Earlier::On(day(some)))
}

/// Whether there are deployments from a day on. None where so much happened that the period is refused.
async fn is_any(
    insight: &mut Insight,
    request: &GetDeliveryMetricsRequest,
    day: NaiveDate,
    end: Time,
) -> Result<Option<bool>, Error> {
    let start = day.and_time(NaiveTime::MIN).and_utc();
    if start >= end {
        return Ok(Some(false));
    }
    let (start_time, end_time) = (Some(to_proto(start)), Some(to_proto(end)));
    let request = GetDeliveryMetricsRequest { start_time, end_time, ..request.clone() };
    match insight.get_delivery_metrics(request).await {
        Ok(answer) => Ok(Some(deployments(&answer.into_inner().metrics.unwrap_or_default()) > 0)),
        Err(status) if client::reason(&status) == Some(Reason::FieldInvalid) => Ok(None),
        Err(status) => Err(status.into()),
    }
}

/// A day, which begins at midnight UTC, or an instant.
fn instant(text: &str) -> Result<Time, &'static str> {
    if let Ok(day) = text.parse::<NaiveDate>() {
        return Ok(day.and_time(NaiveTime::MIN).and_utc());
    }
    DateTime::parse_from_rfc3339(text)
        .map(|time| time.to_utc())
        .map_err(|_| "must be a day such as 2026-01-31 or an instant such as 2026-01-31T09:00:00Z")
}

fn time(time: Option<prost_types::Timestamp>) -> String {
    let time = time.and_then(from_proto).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

#[expect(clippy::cast_precision_loss, reason = "durations of years keep their microseconds")]
fn seconds(duration: Option<prost_types::Duration>) -> f64 {
    let duration = duration.unwrap_or_default();
    duration.seconds as f64 + f64::from(duration.nanos) / 1e9
}

const fn pace(frequency: &DeploymentFrequency) -> Option<&'static str> {
    // An unknown number is one of a newer service.
    match frequency.pace {
        number if number == DeploymentPace::Daily as i32 => Some("daily"),
        number if number == DeploymentPace::Weekly as i32 => Some("weekly"),
        number if number == DeploymentPace::Monthly as i32 => Some("monthly"),
        number if number == DeploymentPace::Rarely as i32 => Some("less than monthly"),
        _ => None,
    }
}

fn json_of(metrics: &DeliveryMetrics) -> Value {
    let spread = |spread: &Option<Spread>| {
        spread.as_ref().map(|spread| {
            json!({
                "median_seconds": seconds(spread.median),
                "p90_seconds": seconds(spread.p90),
                "count": spread.count,
            })
        })
    };
    let ratio = |ratio: &Option<Ratio>| {
        ratio
            .as_ref()
            .map(|ratio| json!({ "numerator": ratio.numerator, "denominator": ratio.denominator }))
    };
    let frequency = metrics.deployment_frequency.unwrap_or_default();
    json!({
        "component": metrics.component,
        "environments": metrics.environments,
        "start_time": time(metrics.start_time),
        "end_time": time(metrics.end_time),
        "change_lead_time": spread(&metrics.change_lead_time),
        "deployment_frequency": {
            "deployments": frequency.deployments,
            "per_day": frequency.per_day,
            "per_week": frequency.per_week,
            "pace": pace(&frequency),
        },
        "failed_deployment_recovery_time": spread(&metrics.failed_deployment_recovery_time),
        "change_fail_rate": ratio(&metrics.change_fail_rate),
        "deployment_rework_rate": ratio(&metrics.deployment_rework_rate),
        "caught_in_canary": metrics.caught_in_canary,
        "rollbacks": metrics.rollbacks,
        "approval_wait_time": spread(&metrics.approval_wait_time),
        "freeze_backlog": metrics.freeze_backlog,
    })
}

fn print(metrics: &DeliveryMetrics) {
    let DeliveryMetrics { component, environments, .. } = metrics;
    let (start, end) = (time(metrics.start_time), time(metrics.end_time));
    term::say(format_args!("{component} in {} from {start} until {end}\n", environments.join(", ")));
    let rows = rows(metrics);
    let width = rows.iter().map(|(_, value, _)| value.chars().count()).max().unwrap_or(0);
    for (name, value, meaning) in rows {
        term::say(format_args!("{name:<31}  {value:<width$}  {meaning}"));
    }
}

/// Each figure, and what it means.
fn rows(metrics: &DeliveryMetrics) -> Vec<(&'static str, String, &'static str)> {
    let none = || "nothing to measure".to_owned();
    let frequency = metrics.deployment_frequency.unwrap_or_default();
    let often = match (frequency.per_week, pace(&frequency)) {
        (None, _) => "no deployment".to_owned(),
        (Some(per_week), None) => format!("{per_week:.1} a week, {} in all", frequency.deployments),
        (Some(per_week), Some(pace)) => {
            format!("{pace}: {per_week:.1} a week, {} in all", frequency.deployments)
        }
    };
    let recovery = metrics.failed_deployment_recovery_time.as_ref();
    vec![
        (
            "change lead time",
            metrics.change_lead_time.as_ref().map_or_else(none, |it| spread(it, "commits")),
            "from a commit to the first rollout that succeeded with it",
        ),
        ("deployment frequency", often, "rollouts that reached everyone; rollbacks are none"),
        (
            "failed deployment recovery time",
            recovery.map_or_else(none, |it| spread(it, "failures")),
            "from the failure to the end of its rollback or to its fix",
        ),
        (
            "change fail rate",
            metrics.change_fail_rate.as_ref().map_or_else(none, share),
            "deployments rolled back or mended at once",
        ),
        (
            "deployment rework rate",
            metrics.deployment_rework_rate.as_ref().map_or_else(none, share),
            "unplanned deployments that an incident made necessary",
        ),
        (
            "caught in canary",
            metrics.caught_in_canary.to_string(),
            "taken back before everyone had them; no failures",
        ),
        ("rollbacks", metrics.rollbacks.to_string(), "begun, those of canaries included"),
        (
            "approval wait time",
            metrics
                .approval_wait_time
                .as_ref()
                .map_or_else(none, |it| spread(it, "approvals")),
            "from submission to approval",
        ),
        (
            "freeze backlog",
            metrics.freeze_backlog.map_or_else(none, |count| count.to_string()),
            "approved releases that waited for the end of a freeze",
        ),
    ]
}

fn spread(spread: &Spread, what: &str) -> String {
    let [median, p90] = [spread.median, spread.p90].map(|it| span(seconds(it)));
    format!("{median} (p90 {p90}, {} {what})", spread.count)
}

#[expect(clippy::cast_precision_loss, reason = "nobody has that many deployments")]
fn share(ratio: &Ratio) -> String {
    let Ratio { numerator, denominator } = ratio;
    format!("{:.1} % ({numerator} of {denominator})", *numerator as f64 * 100.0 / *denominator as f64)
}

/// In the largest unit of which there is at least one.
fn span(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 60.0 => format!("{seconds:.0} s"),
        seconds if seconds < 3600.0 => format!("{:.1} min", seconds / 60.0),
        seconds if seconds < 86_400.0 => format!("{:.1} h", seconds / 3600.0),
        seconds => format!("{:.1} d", seconds / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_instants_are_understood() {
        for (text, seconds) in [("1970-01-02", 86_400), ("1970-01-01T01:00:00+01:00", 0)] {
            assert_eq!(instant(text).map(|time| time.timestamp()), Ok(seconds), "{text}");
        }
        for bad in ["", "yesterday", "2026-13-01", "2026-01-01T09:00"] {
            assert!(instant(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_measured_is_told_so_and_is_null() {
        let metrics = DeliveryMetrics {
            deployment_frequency: Some(DeploymentFrequency::default()),
            ..Default::default()
        };
        let values: Vec<_> = rows(&metrics).into_iter().map(|(_, value, _)| value).collect();
        let none = "nothing to measure";
        assert_eq!(values, [none, "no deployment", none, none, none, "0", "0", none, none]);
        assert_eq!(json_of(&metrics)["change_fail_rate"], Value::Null);
        assert_eq!(json_of(&metrics)["deployment_frequency"]["pace"], Value::Null);
    }

    #[test]
    fn figures_are_told_with_what_they_are_made_of() {
        let second = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let spread = Spread { median: second(5400), p90: second(180_000), count: 7 };
        assert_eq!(super::spread(&spread, "commits"), "1.5 h (p90 2.1 d, 7 commits)");
        assert_eq!(share(&Ratio { numerator: 1, denominator: 8 }), "12.5 % (1 of 8)");
        assert_eq!((span(59.0), span(90.0)), ("59 s".to_owned(), "1.5 min".to_owned()));
    }
}
