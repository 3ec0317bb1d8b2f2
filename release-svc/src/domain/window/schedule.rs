//! When a window holds: between two instants, between two readings of a wall clock, or again and again (RFC 5545).
//!
//! Recurrences are counted on the wall clock of the window's zone, as if it had no daylight saving time, and only then
//! brought to instants: so it is here, and nowhere else, that a reading which a zone skips or repeats gets its meaning.

use std::fmt::Write as _;

use chrono::{
    DateTime, Datelike as _, Days, MappedLocalTime, NaiveDateTime, Offset as _, TimeDelta, TimeZone as _,
};
use chrono_tz::{GapInfo, Tz};
use rrule::{Frequency, NWeekday, RRule, RRuleSet, Unvalidated};
use shared::time::Time;

/// Longest span, and longest time that a search looks ahead by.
const SPAN_MAX: TimeDelta = TimeDelta::days(366);
const SPAN_MIN: TimeDelta = TimeDelta::minutes(1);
const YEARS: std::ops::RangeInclusive<i32> = 2000..=2200;
const RULE_MAX_BYTES: usize = 256;
const COUNT_MAX: u32 = 1000;
const INTERVAL_MAX: u16 = 1000;
/// Within this long from its start a rule must fire.
const FIRST_WITHIN: Days = Days::new(3660);
/// More than a zone's offsets are apart, so that nothing near the edges of a search is missed.
const SLACK: TimeDelta = TimeDelta::days(2);
/// How readings of a wall clock are written.
const LOCAL: &str = "%Y-%m-%dT%H:%M:%S";
const LOCAL_SHORT: &str = "%Y-%m-%dT%H:%M";
const UNTIL: &str = "%Y%m%dT%H%M%SZ";

/// From an instant until just before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub start: Time,
    pub end: Time,
}

/// When a window holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Schedule {
    Instants(Span),
    /// Readings of the wall clock.
    Local {
        start: NaiveDateTime,
        end: NaiveDateTime,
    },
    Recurring(Box<Recurrence>),
}

/// A span that begins again and again, at most once a day.
#[derive(Debug, Clone, PartialEq)]
pub struct Recurrence {
    /// As it was written.
    pub text: String,
    /// Not before this reading of the wall clock, and at this time of day.
    pub start: NaiveDateTime,
    /// On the wall clock: a night from 22:00 for 8 hours ends at 06:00 also when clocks are set.
    pub duration: TimeDelta,
    /// Without its end.
    rule: RRule<Unvalidated>,
    /// The last instant at which it may begin.
    until: Option<Time>,
}

/// Which of the instants at which a wall clock shows the same is meant by the end of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    First,
    Last,
}

/// The schedule makes no sense, in this field and how.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct BadSchedule {
    pub field: &'static str,
    pub problem: String,
}

fn bad(field: &'static str, problem: impl Into<String>) -> BadSchedule {
    BadSchedule { field, problem: problem.into() }
}

impl Span {
    pub fn contains(&self, at: Time) -> bool {
        self.start <= at && at < self.end
    }
}

impl Schedule {
    /// Between two instants.
    pub fn instants(start: Time, end: Time) -> Result<Self, BadSchedule> {
        in_range("instants.start", start.year())?;
        long_enough("instants.end", end - start)?;
        Ok(Self::Instants(Span { start, end }))
    }

    /// Between two readings of the wall clock.
    pub fn local(zone: Tz, start: &str, end: &str) -> Result<Self, BadSchedule> {
        let (start, end) = (parse_local("local.start", start)?, parse_local("local.end", end)?);
        let (first, _) = read(zone, start);
        // In the zone, as a reading that is skipped may come after a later one.
        long_enough("local.end", read(zone, end).0 - first)?;
        Ok(Self::Local { start, end })
    }

    /// Again and again, at most once a day, if it ever does.
    pub fn recurring(zone: Tz, rule: &str, start: &str, duration: TimeDelta) -> Result<Self, BadSchedule> {
        let start = parse_local("recurrence.start", start)?;
        long_enough("recurrence.duration", duration)?;
        let recurrence = Recurrence::parse(rule, start, duration)?;
        let within = start.checked_add_days(FIRST_WITHIN).unwrap_or(start);
        let first = recurrence.starts(start, within).next();
        if first.is_none_or(|first| !recurrence.begins(read(zone, first).0)) {
            return Err(bad("recurrence.rule", "never fires within ten years of its start"));
        }
        Ok(Self::Recurring(Box::new(recurrence)))
    }

    /// What [`Schedule::local`] or [`Schedule::recurring`] took before, from its parts; none if they are corrupt.
    pub fn stored(parts: Parts) -> Option<Self> {
        let Parts { starts_at, ends_at, local_start, local_end, rule, duration } = parts;
        match (starts_at.zip(ends_at), local_start, local_end, rule.zip(duration)) {
            (Some((start, end)), None, None, None) => Some(Self::Instants(Span { start, end })),
            (None, Some(start), Some(end), None) => Some(Self::Local { start, end }),
            (None, Some(start), None, Some((rule, duration))) => Recurrence::parse(&rule, start, duration)
                .ok()
                .map(Box::new)
                .map(Self::Recurring),
            _ => None,
        }
    }

    /// Its parts, as they are stored.
    pub fn parts(&self) -> Parts {
        match self {
            Self::Instants(Span { start, end }) => {
                Parts { starts_at: Some(*start), ends_at: Some(*end), ..Parts::default() }
            }
            Self::Local { start, end } => {
                Parts { local_start: Some(*start), local_end: Some(*end), ..Parts::default() }
            }
            Self::Recurring(recurrence) => Parts {
                local_start: Some(recurrence.start),
                rule: Some(recurrence.text.clone()),
                duration: Some(recurrence.duration),
                ..Parts::default()
            },
        }
    }

    /// From when on it never holds again; none if it may always come again.
    pub fn over_at(&self, zone: Tz) -> Option<Time> {
        match self {
            Self::Instants(span) => Some(span.end),
            Self::Local { end, .. } => Some(read(zone, *end).1),
            Self::Recurring(recurrence) => recurrence.until.map(|until| until + recurrence.duration + SLACK),
        }
    }

    /// The spans that touch `within`, in order. Those that overlap or meet are one. What begins before `within` may be cut
    /// at its front.
    pub fn spans(&self, zone: Tz, end: End, within: Span) -> Vec<Span> {
        let ends_at = |(first, last)| match end {
            End::First => first,
            End::Last => last,
        };
        let spans = match self {
            Self::Instants(span) => vec![*span],
            Self::Local { start, end } => {
                vec![Span { start: read(zone, *start).0, end: ends_at(read(zone, *end)) }]
            }
            Self::Recurring(recurrence) => {
                let from = local(zone, within.start) - recurrence.duration - SLACK;
                let starts = recurrence.starts(from, local(zone, within.end) + SLACK);
                let spans = starts.map(|start| {
                    let (first, _) = read(zone, start);
                    // The duration counts from what the clock shows then, which is not what was written where that is
                    // skipped.
                    Span { start: first, end: ends_at(read(zone, local(zone, first) + recurrence.duration)) }
                });
                spans.filter(|span| recurrence.begins(span.start)).collect()
            }
        };
        let touching = spans
            .into_iter()
            .filter(|span| span.start < within.end && within.start < span.end);
        merged(touching)
    }
}

/// A schedule taken apart. Those that a kind of schedule has not are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts {
    pub starts_at: Option<Time>,
    pub ends_at: Option<Time>,
    pub local_start: Option<NaiveDateTime>,
    pub local_end: Option<NaiveDateTime>,
    pub rule: Option<String>,
    pub duration: Option<TimeDelta>,
}

impl Recurrence {
    fn parse(text: &str, start: NaiveDateTime, duration: TimeDelta) -> Result<Self, BadSchedule> {
        let problem = |problem: &str| bad("recurrence.rule", problem);
        let is_plain = |c: u8| c.is_ascii_alphanumeric() || b"=;,+-".contains(&c);
        if text.len() > RULE_MAX_BYTES || !text.bytes().all(is_plain) {
            return Err(problem(
                "must be a recurrence rule such as FREQ=MONTHLY;BYDAY=3SA, of at most 256 characters",
            ));
        }
        let (mut until, mut rest) = (None, String::new());
        for part in text.split(';') {
            match part.split_once('=') {
                Some((key, value)) if key.eq_ignore_ascii_case("UNTIL") => {
                    let time = NaiveDateTime::parse_from_str(value, UNTIL);
                    let time = time.map_err(|_| problem("UNTIL must be in UTC, such as 20261231T235959Z"))?;
                    if until.replace(time.and_utc()).is_some() {
                        return Err(problem("has two UNTIL"));
                    }
                }
                Some((key, value)) => {
                    if key.eq_ignore_ascii_case("BYDAY") && !value.split(',').all(is_weekday) {
                        return Err(problem(
                            "BYDAY must list days such as MO or, of a month or year, 3SA or -1FR",
                        ));
                    }
                    let _ = write!(rest, "{key}={value};");
                }
                None => return Err(problem("must be parts such as FREQ=WEEKLY, with `;` between them")),
            }
        }
        let rule: RRule<Unvalidated> =
            rest.parse().map_err(|error: rrule::RRuleError| problem(&error.to_string()))?;
        check(&rule, until.is_some()).map_err(problem)?;
        let valid = rule.clone().validate(start.and_utc().with_timezone(&rrule::Tz::UTC));
        valid.map_err(|error| problem(&error.to_string()))?;
        if until.is_some_and(|until| until.naive_utc() + SLACK < start) {
            return Err(problem("UNTIL is before the start"));
        }
        Ok(Self { text: text.to_owned(), start, duration, rule, until })
    }

    /// Whether it may still begin then.
    fn begins(&self, at: Time) -> bool {
        self.until.is_none_or(|until| at <= until)
    }

    /// The readings of the wall clock at which it begins, of those in a range, in order. Looks only at days near the range
    /// where the rule does not count, at those of few years, or at [`COUNT_MAX`] of them.
    fn starts(&self, from: NaiveDateTime, to: NaiveDateTime) -> impl Iterator<Item = NaiveDateTime> {
        let interval = i64::from(self.rule.get_interval());
        let stride = match self.rule.get_freq() {
            _ if self.rule.get_count().is_some() => None,
            Frequency::Daily => Some(interval),
            Frequency::Weekly => Some(7 * interval),
            Frequency::Yearly
            | Frequency::Monthly
            | Frequency::Hourly
            | Frequency::Minutely
            | Frequency::Secondly => None,
        };
        // The same days come out of a rule that begins whole intervals later.
        let skipped = stride.map_or(0, |days| (from - self.start).num_days().max(0) / days * days);
        let start = self.start + TimeDelta::days(skipped);
        let utc = |local: NaiveDateTime| local.and_utc().with_timezone(&rrule::Tz::UTC);
        let days = self.rule.clone().until(utc(to)).build(utc(start));
        // It is refused where it would end before it begins; other faults were found when it was parsed.
        let days = days.ok().map(RRuleSet::limit);
        let starts = days.into_iter().flat_map(|days| days.into_iter().collect::<Vec<_>>());
        starts
            .map(|day| day.naive_utc())
            .filter(move |start| from <= *start && *start <= to)
    }
}

/// What a rule may not have, beyond what RFC 5545 forbids.
fn check(rule: &RRule<Unvalidated>, has_until: bool) -> Result<(), &'static str> {
    let is_nth = |day: &NWeekday| matches!(day, NWeekday::Nth(..));
    match rule.get_freq() {
        Frequency::Hourly | Frequency::Minutely | Frequency::Secondly => {
            return Err(
                "must not fire more often than once a day: FREQ must be DAILY, WEEKLY, MONTHLY or YEARLY",
            );
        }
        Frequency::Daily | Frequency::Weekly if rule.get_by_weekday().iter().any(is_nth) => {
            return Err("BYDAY may count days, such as 3SA, only of a month or a year");
        }
        Frequency::Daily | Frequency::Weekly | Frequency::Monthly | Frequency::Yearly => {}
    }
    if !rule.get_by_hour().is_empty() || !rule.get_by_minute().is_empty() || !rule.get_by_second().is_empty()
    {
        return Err("must not have BYHOUR, BYMINUTE or BYSECOND: the start says the time of day");
    }
    if has_until && rule.get_count().is_some() {
        return Err("must not have both COUNT and UNTIL");
    }
    if rule.get_count().is_some_and(|count| !(1..=COUNT_MAX).contains(&count)) {
        return Err("COUNT must be 1 to 1000");
    }
    if !(1..=INTERVAL_MAX).contains(&rule.get_interval()) {
        return Err("INTERVAL must be 1 to 1000");
    }
    Ok(())
}

/// The parser takes any prefix of a day for none.
fn is_weekday(text: &str) -> bool {
    let (nth, day) = text.split_at(text.len().saturating_sub(2));
    let is_day = ["MO", "TU", "WE", "TH", "FR", "SA", "SU"]
        .iter()
        .any(|known| known.eq_ignore_ascii_case(day));
    is_day && (nth.is_empty() || nth.parse().is_ok_and(|nth: i16| nth != 0))
}

fn in_range(field: &'static str, year: i32) -> Result<(), BadSchedule> {
    if YEARS.contains(&year) {
        return Ok(());
    }
    Err(bad(field, format!("must be of the years {} to {}", YEARS.start(), YEARS.end())))
}

fn long_enough(field: &'static str, length: TimeDelta) -> Result<(), BadSchedule> {
    if (SPAN_MIN..=SPAN_MAX).contains(&length) {
        return Ok(());
    }
    Err(bad(field, "must make the window 1 minute to 366 days long"))
}

/// A reading of the wall clock from its text, with or without seconds.
fn parse_local(field: &'static str, text: &str) -> Result<NaiveDateTime, BadSchedule> {
    let parsed = NaiveDateTime::parse_from_str(text, LOCAL);
    let parsed = parsed.or_else(|_| NaiveDateTime::parse_from_str(text, LOCAL_SHORT));
    let local = parsed
        .map_err(|_| bad(field, "must be a local time such as 2026-11-27T00:00:00, without an offset"))?;
    in_range(field, local.year())?;
    Ok(local)
}

/// The text of a reading of the wall clock.
pub fn local_text(local: NaiveDateTime) -> String {
    local.format(LOCAL).to_string()
}

/// What the zone's wall clock shows.
fn local(zone: Tz, at: Time) -> NaiveDateTime {
    at.with_timezone(&zone).naive_local()
}

/// The first and the last instant at which the zone's wall clock shows this. Of a reading that is skipped, the instant that
/// RFC 5545 (3.3.5) takes it for: as if the clock had not been set.
fn read(zone: Tz, local: NaiveDateTime) -> (Time, Time) {
    match zone.from_local_datetime(&local) {
        MappedLocalTime::Single(at) => (at.to_utc(), at.to_utc()),
        MappedLocalTime::Ambiguous(one, other) => (one.min(other).to_utc(), one.max(other).to_utc()),
        MappedLocalTime::None => {
            let before = GapInfo::new(&local, &zone).and_then(|gap| gap.begin);
            let offset = before.map_or(0, |(_, offset)| offset.fix().local_minus_utc());
            let at: DateTime<_> = (local - TimeDelta::seconds(offset.into())).and_utc();
            (at, at)
        }
    }
}

/// Spans in order of their starts, of which those that overlap or meet are one.
pub(super) fn merged(spans: impl IntoIterator<Item = Span>) -> Vec<Span> {
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
            Some(_) | None => merged.push(span),
        }
    }
    merged
}
