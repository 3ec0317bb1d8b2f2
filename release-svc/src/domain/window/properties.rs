//! What holds of any windows.

use proptest::prelude::*;

use super::tests::{days, numbered, recurring, time};
use super::*;

/// A weekly window of a random day, hour and length in a zone that sets its clocks.
fn weekly() -> impl Strategy<Value = Window> {
    let zones = ["UTC", "America/New_York", "Europe/London", "Asia/Kolkata", "Australia/Lord_Howe"];
    (0..5_usize, 1_u32..28, 0_u32..24, 0_u32..60, 1_i64..72, any::<bool>()).prop_map(
        move |(zone, day, hour, minute, hours, denies)| {
            let start = format!("2026-09-{day:02}T{hour:02}:{minute:02}:00");
            let effect = if denies { Effect::Deny } else { Effect::Allow };
            recurring(effect, zones[zone], "FREQ=WEEKLY", &start, hours)
        },
    )
}

/// Whether the wall clock says that the window holds: some reading within a week before, this long ago, began it.
fn holds_by_clock(window: &Window, now: Time) -> bool {
    let Schedule::Recurring(recurrence) = &window.terms.schedule else { panic!("not recurring") };
    let zone = window.terms.zone;
    let reading = now.with_timezone(&zone).naive_local();
    let starts = (0..20).map(|week| recurrence.start + TimeDelta::weeks(week));
    let mut near = starts.filter(|start| (days(-1)..days(5)).contains(&(reading - *start)));
    near.any(|start| {
        let bounds = |local: chrono::NaiveDateTime| {
            // Minute by minute, as a person would: the first and the last instant that shows it, or the first later one.
            let around = local.and_utc() - TimeDelta::hours(15);
            let shows = |minute: i64| {
                let at = around + TimeDelta::minutes(minute);
                (at.with_timezone(&zone).naive_local() == local).then_some(at)
            };
            let first = (0..30 * 60).find_map(shows);
            let last = (0..30 * 60).rev().find_map(shows);
            first.zip(last)
        };
        // Weeks whose start or end is skipped are told apart in tests of their own.
        let (Some((first, _)), Some((end, last))) = (bounds(start), bounds(start + recurrence.duration))
        else {
            return window.terms.spans(instant(now)).iter().any(|span| span.contains(now));
        };
        let end = if window.terms.effect == Effect::Deny { last } else { end };
        first <= now && now < end
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn an_evaluation_equals_a_look_at_every_minute(
        windows in proptest::collection::vec(weekly(), 0..4),
        minute in 0_i64..(70 * 24 * 60),
    ) {
        let windows = numbered(windows);
        let now = time("2026-09-28T00:00:00Z") + TimeDelta::minutes(minute);
        let (denying, allowing): (Vec<_>, Vec<_>) =
            windows.iter().partition(|window| window.terms.effect == Effect::Deny);
        let is_open = !denying.iter().any(|window| holds_by_clock(window, now))
            && (allowing.is_empty() || allowing.iter().any(|window| holds_by_clock(window, now)));
        let verdict = evaluate(&windows, &[], now, &[Action::Expose], &Target::default());
        prop_assert_eq!(verdict.blockers.is_empty(), is_open, "{} {:?}", now, windows);
    }

    #[test]
    fn what_opens_next_is_open_and_was_closed_just_before(
        windows in proptest::collection::vec(weekly(), 1..5),
        minute in 0_i64..(70 * 24 * 60),
    ) {
        let windows = numbered(windows);
        let now = time("2026-09-28T00:00:00Z") + TimeDelta::minutes(minute);
        let ask = |at| evaluate(&windows, &[], at, &[Action::Expose], &Target::default());
        let just = TimeDelta::microseconds(1);
        let verdict = ask(now);
        if verdict.blockers.is_empty() {
            prop_assert_eq!(verdict.next_open, None);
            if let Some(close) = next_close(&windows, &[], now, &[Action::Expose], &Target::default()) {
                prop_assert!(close > now);
                prop_assert!(!ask(close).blockers.is_empty() && ask(close - just).blockers.is_empty());
            }
        } else if let Some(open) = verdict.next_open {
            prop_assert!(open > now);
            prop_assert!(ask(open).blockers.is_empty() && !ask(open - just).blockers.is_empty());
            // And nothing between.
            let minutes = (open - now).num_minutes();
            for minute in (0..minutes).step_by(29) {
                prop_assert!(!ask(now + TimeDelta::minutes(minute)).blockers.is_empty());
            }
        }
    }

    #[test]
    fn no_rule_however_odd_panics_or_hangs(text in "[A-Z0-9=;,+-]{0,60}", parts in proptest::collection::vec(
        prop_oneof![
            Just("FREQ=DAILY"), Just("FREQ=YEARLY"), Just("FREQ=MONTHLY"), Just("FREQ=WEEKLY"), Just("BYDAY=-5SU"),
            Just("BYSETPOS=-366"), Just("BYWEEKNO=53,-53"), Just("BYYEARDAY=366"), Just("BYMONTHDAY=31,-31"),
            Just("BYMONTH=2"), Just("COUNT=1000"), Just("INTERVAL=1000"), Just("UNTIL=22001231T235959Z"), Just("WKST=SU"),
        ], 0..6,
    )) {
        for rule in [text, parts.join(";")] {
            let parsed = Schedule::recurring(Tz::Europe__London, &rule, "2000-02-29T01:30", TimeDelta::hours(2));
            if let Ok(schedule) = parsed {
                let start = time("2199-01-01T00:00:00Z");
                let within = Span { start, end: start + HORIZON };
                let found = schedule.spans(Tz::Europe__London, End::Last, within);
                prop_assert!(found.iter().all(|span| span.start < span.end));
                prop_assert!(found.windows(2).all(|pair| pair[0].end < pair[1].start));
            }
        }
    }
}
