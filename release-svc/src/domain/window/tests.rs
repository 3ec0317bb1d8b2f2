//! Every instant of which people told that others got it wrong, named by the thread that told.

use shared::time::at;

use super::*;

pub(super) fn time(text: &str) -> Time {
    text.parse().unwrap()
}

pub(super) fn days(days: i64) -> TimeDelta {
    TimeDelta::days(days)
}

fn window(effect: Effect, zone: &str, schedule: impl FnOnce(Tz) -> Result<Schedule, BadSchedule>) -> Window {
    let zone: Tz = zone.parse().unwrap();
    let terms = Terms {
        name: "freeze".to_owned(),
        effect,
        actions: vec![Action::Deploy, Action::Expose],
        scope: Scope::default(),
        zone,
        schedule: schedule(zone).unwrap(),
        reason: "why".to_owned(),
        is_peak: false,
    };
    let (created_at, creator) = (at(0), "alice".to_owned());
    Window { id: WindowId::new(at(1), [1; 10]), terms, creator, created_at, deleted_at: None, row_version: 1 }
}

fn freeze(zone: &str, start: &str, end: &str) -> Window {
    window(Effect::Deny, zone, |zone| Schedule::local(zone, start, end))
}

fn allowed(zone: &str, start: &str, end: &str) -> Window {
    window(Effect::Allow, zone, |zone| Schedule::local(zone, start, end))
}

pub(super) fn recurring(effect: Effect, zone: &str, rule: &str, start: &str, hours: i64) -> Window {
    window(effect, zone, |zone| Schedule::recurring(zone, rule, start, TimeDelta::hours(hours)))
}

pub(super) fn numbered(windows: impl IntoIterator<Item = Window>) -> Vec<Window> {
    let windows = windows.into_iter().zip(1_u8..);
    windows
        .map(|(window, n)| Window { id: WindowId::new(at(1), [n; 10]), ..window })
        .collect()
}

fn verdict(windows: &[Window], when: &str) -> Verdict {
    evaluate(windows, &[], time(when), &[Action::Expose], &Target::default())
}

fn is_open(windows: &[Window], when: &str) -> bool {
    verdict(windows, when).blockers.is_empty()
}

fn one(window: &Window, when: &str) -> bool {
    is_open(std::slice::from_ref(window), when)
}

fn spans(window: &Window, from: &str, days: i64) -> Vec<(String, String)> {
    let within = Span { start: time(from), end: time(from) + TimeDelta::days(days) };
    let text = |at: Time| at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    window
        .spans(within)
        .iter()
        .map(|span| (text(span.start), text(span.end)))
        .collect()
}

fn span(start: &str, end: &str) -> (String, String) {
    (start.to_owned(), end.to_owned())
}

#[test]
fn a_skipped_reading_is_taken_as_rfc_5545_takes_it() {
    let night = freeze("America/New_York", "2026-03-08T02:30:00", "2026-03-08T05:00:00");
    assert_eq!(
        spans(&night, "2026-03-08T00:00:00Z", 1),
        [span("2026-03-08T07:30:00Z", "2026-03-08T09:00:00Z")]
    );
    assert!(one(&night, "2026-03-08T07:29:59Z"));
    assert!(!one(&night, "2026-03-08T07:30:00Z"));
    let until = freeze("America/New_York", "2026-03-08T01:00:00", "2026-03-08T02:30:00");
    assert_eq!(
        spans(&until, "2026-03-08T00:00:00Z", 1),
        [span("2026-03-08T06:00:00Z", "2026-03-08T07:30:00Z")]
    );
    // A recurrence counts its duration from what the clock shows then, 03:30.
    let weekly = recurring(Effect::Deny, "America/New_York", "FREQ=WEEKLY", "2026-03-01T02:30", 1);
    assert_eq!(
        spans(&weekly, "2026-03-07T00:00:00Z", 9),
        [
            span("2026-03-08T07:30:00Z", "2026-03-08T08:30:00Z"),
            span("2026-03-15T06:30:00Z", "2026-03-15T07:30:00Z")
        ]
    );
}

#[test]
fn a_freeze_covers_both_of_a_reading_that_is_shown_twice() {
    let covers = |zone: &str, day: &str, first: &str, second: &str| {
        let short = freeze(zone, &format!("{day}T01:30:00"), &format!("{day}T01:31:00"));
        for instant in [first, second] {
            assert!(!one(&short, &format!("{day}T{instant}:00Z")), "{zone} {instant}");
            assert!(!one(&short, &format!("{day}T{instant}:59Z")), "{zone} {instant}");
        }
        assert!(one(&short, &format!("{day}T{second}:59Z").replace(":30:59", ":31:00")));
        let nightly = recurring(Effect::Deny, zone, "FREQ=DAILY", "2026-10-01T01:00:00", 1);
        for instant in [first, second] {
            assert!(!one(&nightly, &format!("{day}T{instant}:00Z")), "{zone} {instant}, nightly");
        }
    };
    covers("America/New_York", "2026-11-01", "05:30", "06:30");
    covers("Europe/London", "2026-10-25", "00:30", "01:30");
}

#[test]
fn what_is_allowed_until_a_reading_that_is_shown_twice_ends_at_the_first() {
    let night = allowed("America/New_York", "2026-10-31T22:00:00", "2026-11-01T01:30:00");
    assert!(one(&night, "2026-11-01T05:29:59Z"));
    assert!(!one(&night, "2026-11-01T05:30:00Z"));
    assert!(!one(&night, "2026-11-01T06:29:59Z"));
}

#[test]
fn a_night_of_eight_hours_ends_at_six_also_when_clocks_are_set() {
    let nightly = recurring(Effect::Deny, "Europe/Berlin", "FREQ=DAILY", "2026-01-01T22:00:00", 8);
    for (evening, morning) in [
        ("2026-03-27T21:00:00Z", "2026-03-28T05:00:00Z"),
        ("2026-03-28T21:00:00Z", "2026-03-29T04:00:00Z"),
        ("2026-10-24T20:00:00Z", "2026-10-25T05:00:00Z"),
    ] {
        let found = spans(&nightly, evening, 1);
        assert!(found.contains(&span(evening, morning)), "{found:?}");
    }
}

#[test]
fn spans_are_half_open() {
    let day = freeze("UTC", "2026-11-27T00:00:00", "2026-11-28T00:00:00");
    assert!(one(&day, "2026-11-26T23:59:59.999999Z"));
    assert!(!one(&day, "2026-11-27T00:00:00Z"));
    assert!(!one(&day, "2026-11-27T23:59:59.999999Z"));
    assert!(one(&day, "2026-11-28T00:00:00Z"));
}

#[test]
fn kargo_1328_a_winter_freeze_comes_every_year_and_ends() {
    let winter = recurring(Effect::Deny, "Europe/Paris", "FREQ=YEARLY", "2025-12-15T00:00:00", 22 * 24);
    let held = verdict(std::slice::from_ref(&winter), "2026-12-24T12:00:00Z");
    assert_eq!(held.blockers[0].until, Some(time("2027-01-05T23:00:00Z")));
    assert_eq!(held.next_open, Some(time("2027-01-05T23:00:00Z")));
    assert!(one(&winter, "2027-01-05T23:00:00Z"));
    assert!(!one(&winter, "2031-12-31T00:00:00Z"));
}

#[test]
fn octopus_9621_a_future_freeze_does_not_block_today() {
    let later = freeze("Australia/Sydney", "2026-12-01T00:00:00", "2026-12-08T00:00:00");
    assert!(one(&later, "2026-11-23T12:00:00Z"));
    // It is the planned instant that counts.
    assert!(!one(&later, "2026-12-01T12:00:00Z"));
    let closes =
        next_close(&[later], &[], time("2026-11-23T12:00:00Z"), &[Action::Deploy], &Target::default());
    assert_eq!(closes, Some(time("2026-11-30T13:00:00Z")));
}

#[test]
fn octopus_9599_a_recurring_freeze_keeps_to_its_hours() {
    let fridays = recurring(Effect::Deny, "Europe/London", "FREQ=WEEKLY;BYDAY=FR", "2026-01-02T16:00:00", 8);
    for (when, open) in [
        ("2026-06-05T14:59:59Z", true),
        ("2026-06-05T15:00:00Z", false),
        ("2026-06-05T22:59:59Z", false),
        ("2026-06-05T23:00:00Z", true),
        ("2026-06-04T18:00:00Z", true),
    ] {
        assert_eq!(one(&fridays, when), open, "{when}");
    }
}

#[test]
fn octopus_8793_a_freeze_of_one_environment_is_not_one_of_another_and_is_lifted_by_itself() {
    let mut eu = freeze("UTC", "2026-11-27T00:00:00", "2026-11-28T00:00:00");
    eu.terms.scope.environments = vec!["prod-eu".to_owned()];
    let now = time("2026-11-27T12:00:00Z");
    let place = |environment| Target {
        component: Some("storefront"),
        environment: Some(environment),
        ..Target::default()
    };
    let subject =
        OverrideSubject::Place { component: "storefront".to_owned(), environment: "prod-eu".to_owned() };
    let lifted = Override {
        id: WindowOverrideId::new(at(2), [2; 10]),
        window: eu.id,
        subject,
        reason: "hotfix".to_owned(),
        creator: "alice".to_owned(),
        span: Span { start: now, end: now + TimeDelta::hours(1) },
    };
    let ask = |overrides: &[Override], at, target: Target| {
        evaluate(std::slice::from_ref(&eu), overrides, at, &[Action::Expose], &target)
    };
    assert!(ask(&[], now, place("prod-us")).blockers.is_empty());
    assert_eq!(ask(&[], now, place("prod-eu")).blockers.len(), 1);
    let passed = ask(std::slice::from_ref(&lifted), now, place("prod-eu"));
    assert_eq!((passed.blockers.len(), passed.overrides.as_slice()), (0, [lifted.id].as_slice()));
    // Neither before it was given, nor after its end, nor for another component.
    let other = Target { component: Some("ledger"), ..place("prod-eu") };
    for (at, target) in [
        (now - TimeDelta::microseconds(1), place("prod-eu")),
        (lifted.span.end, place("prod-eu")),
        (now, other),
    ] {
        assert_eq!(ask(std::slice::from_ref(&lifted), at, target).blockers.len(), 1);
    }
    assert_eq!(
        next_close(
            std::slice::from_ref(&eu),
            std::slice::from_ref(&lifted),
            now,
            &[Action::Expose],
            &place("prod-eu")
        ),
        Some(lifted.span.end)
    );
}

#[test]
fn octopus_9173_the_third_saturday_of_every_month() {
    let third =
        recurring(Effect::Deny, "America/Chicago", "FREQ=MONTHLY;BYDAY=3SA", "2026-01-01T00:00:00", 24);
    for (day, open) in
        [("2026-11-21", false), ("2026-11-14", true), ("2026-12-19", false), ("2026-12-26", true)]
    {
        assert_eq!(one(&third, &format!("{day}T18:00:00Z")), open, "{day}");
    }
}

#[test]
fn octopus_9172_thanksgiving_freezes_north_america_only() {
    let rule = "FREQ=YEARLY;BYMONTH=11;BYDAY=4TH";
    let mut thanksgiving = recurring(Effect::Deny, "America/New_York", rule, "2026-11-01T00:00:00", 96);
    thanksgiving.terms.scope.regions = vec!["na".to_owned()];
    let ask = |region| {
        let target = Target { region, ..Target::default() };
        evaluate(&[thanksgiving.clone()], &[], time("2026-11-27T15:00:00Z"), &[Action::Deploy], &target)
    };
    assert_eq!(ask(Some("na")).next_open, Some(time("2026-11-30T05:00:00Z")));
    assert!(ask(Some("eu")).blockers.is_empty());
    assert!(ask(None).blockers.is_empty());
}

#[test]
fn argo_3204_hours_are_those_of_a_named_zone() {
    for (zone, closes) in [("UTC", "2026-07-01T17:00:00Z"), ("Asia/Kolkata", "2026-07-01T11:30:00Z")] {
        let hours = recurring(Effect::Allow, zone, "FREQ=DAILY", "2026-06-01T09:00:00", 8);
        assert!(!one(&hours, closes), "{zone}");
        let before = time(closes) - TimeDelta::microseconds(1);
        assert!(
            evaluate(&[hours], &[], before, &[Action::Expose], &Target::default())
                .blockers
                .is_empty()
        );
    }
    assert!("Mars/Olympus".parse::<Tz>().is_err());
}

#[test]
fn argo_3831_what_is_shown_is_what_holds() {
    let windows = numbered([
        recurring(Effect::Allow, "UTC", "FREQ=WEEKLY;BYDAY=MO,TU,WE,TH", "2026-01-01T08:00:00", 9),
        freeze("UTC", "2026-11-23T00:00:00", "2026-11-25T00:00:00"),
    ]);
    let held = verdict(&windows, "2026-11-22T12:00:00Z");
    assert_eq!(held.blockers.len(), 1, "the freeze has not begun");
    assert_eq!(held.blockers[0].until, Some(time("2026-11-23T08:00:00Z")));
    // The allowed hours before it ends are denied.
    assert_eq!(held.next_open, Some(time("2026-11-25T08:00:00Z")));
    assert!(is_open(&windows, "2026-11-25T08:00:00Z"));
}

#[test]
fn argo_5590_a_freeze_does_nothing_outside_its_span() {
    let windows = numbered([
        freeze("UTC", "2026-11-23T00:00:00", "2026-11-24T00:00:00"),
        allowed("UTC", "2026-11-23T00:00:00", "2026-12-24T00:00:00"),
    ]);
    assert!(!is_open(&windows, "2026-11-23T12:00:00Z"), "what denies beats what allows");
    assert!(is_open(&windows, "2026-11-24T00:00:00Z"));
    assert!(!is_open(&windows, "2026-12-24T00:00:00Z"), "outside of what is allowed");
}

#[test]
fn keel_1263_no_window_at_all_is_always_and_not_never() {
    assert!(is_open(&[], "2026-11-23T12:00:00Z"));
    let mut schema = allowed("UTC", "2026-01-01T00:00:00", "2026-01-02T00:00:00");
    schema.terms.actions = vec![Action::Schema];
    assert!(one(&schema, "2026-11-23T12:00:00Z"), "another action is not limited by it");
}

#[test]
fn spinnaker_1648_when_it_opens_is_told() {
    let hours = recurring(Effect::Allow, "Europe/Berlin", "FREQ=WEEKLY;BYDAY=TU", "2026-01-01T10:00:00", 2);
    let held = verdict(std::slice::from_ref(&hours), "2026-11-24T11:00:00Z");
    assert_eq!(held.next_open, Some(time("2026-12-01T09:00:00Z")));
    let closes =
        next_close(&[hours], &[], time("2026-12-01T09:00:00Z"), &[Action::Expose], &Target::default());
    assert_eq!(closes, Some(time("2026-12-01T11:00:00Z")));
}

#[test]
fn kargo_6360_what_opens_is_known_to_the_instant_and_not_to_a_poll() {
    let day = freeze("UTC", "2026-11-27T00:00:00", "2026-11-28T00:00:00");
    let opens = verdict(std::slice::from_ref(&day), "2026-11-27T12:34:56.789012Z").next_open;
    assert_eq!(opens, Some(time("2026-11-28T00:00:00Z")));
}

#[test]
fn unleash_6222_what_is_planned_is_checked_for_its_own_time() {
    let holiday = freeze("UTC", "2026-12-24T00:00:00", "2026-12-27T00:00:00");
    assert!(one(&holiday, "2026-12-01T00:00:00Z"), "planned in the open");
    let planned = verdict(std::slice::from_ref(&holiday), "2026-12-25T00:00:00Z");
    assert_eq!(planned.blockers[0].name, "freeze", "for a time that is closed, and by what");
    assert_eq!(planned.next_open, Some(time("2026-12-27T00:00:00Z")));
}

#[test]
fn a_dark_deployment_goes_where_exposure_may_not() {
    let mut activation = freeze("UTC", "2026-11-20T00:00:00", "2026-12-02T00:00:00");
    activation.terms.actions = vec![Action::Expose];
    let ask = |actions: &[Action]| {
        let now = time("2026-11-27T00:00:00Z");
        evaluate(&[activation.clone()], &[], now, actions, &Target::default())
            .blockers
            .len()
    };
    assert_eq!((ask(&[Action::Deploy]), ask(&[Action::Deploy, Action::Expose])), (0, 1));
}

#[test]
fn an_override_of_what_allows_opens_and_closes_nothing() {
    let windows = numbered([
        allowed("UTC", "2026-11-01T00:00:00", "2026-11-02T00:00:00"),
        allowed("UTC", "2026-11-23T00:00:00", "2026-11-24T00:00:00"),
    ]);
    let release = ReleaseId::new(at(0), [3; 10]);
    let target = Target { release: Some(release), ..Target::default() };
    let lifted = |at: Time| Override {
        id: WindowOverrideId::new(at, [2; 10]),
        window: windows[0].id,
        subject: OverrideSubject::Release(release),
        reason: "hotfix".to_owned(),
        creator: "alice".to_owned(),
        span: Span { start: at, end: at + TimeDelta::hours(1) },
    };
    let ask = |when| evaluate(&windows, &[lifted(time(when))], time(when), &[Action::Expose], &target);
    let inside = ask("2026-11-23T12:00:00Z");
    assert_eq!((inside.blockers.len(), inside.overrides.len()), (0, 0));
    let outside = ask("2026-11-25T12:00:00Z");
    assert_eq!((outside.blockers.len(), outside.overrides.len()), (0, 1));
}

#[test]
fn a_peak_is_one_only_while_it_lasts_and_holds_nothing() {
    let mut peak = freeze("UTC", "2026-11-27T00:00:00", "2026-12-01T00:00:00");
    peak.terms = Terms { actions: vec![], is_peak: true, ..peak.terms };
    let during = time("2026-11-28T00:00:00Z");
    assert!(one(&peak, "2026-11-28T00:00:00Z"));
    assert!(is_peak(std::slice::from_ref(&peak), during, &Target::default()));
    assert!(!is_peak(std::slice::from_ref(&peak), during + days(3), &Target::default()));
    assert!(!is_peak(&[peak.deleted(during)], during, &Target::default()));
}

#[test]
fn what_never_opens_is_not_looked_for_without_end() {
    let always = recurring(Effect::Deny, "UTC", "FREQ=DAILY", "2020-01-01T00:00:00", 24);
    let held = verdict(&[always], "2026-11-23T12:00:00Z");
    assert_eq!((held.blockers[0].until, held.next_open), (None, None));
    let past = allowed("UTC", "2020-01-01T00:00:00", "2020-01-02T00:00:00");
    assert_eq!(verdict(&[past], "2026-11-23T12:00:00Z").next_open, None);
}

#[test]
fn senseless_schedules_are_refused_by_field() {
    let zone = Tz::America__New_York;
    let rule = |rule: &str| Schedule::recurring(zone, rule, "2026-01-01T00:00:00", TimeDelta::hours(1));
    for (bad, problem) in [
        ("", "parts such as"),
        ("FREQ=SECONDLY", "more often than once a day"),
        ("FREQ=MINUTELY;INTERVAL=5", "more often than once a day"),
        ("FREQ=DAILY;BYHOUR=1,2;BYMINUTE=0,1,2;BYSECOND=1,2,3", "BYHOUR"),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", "never fires"),
        ("FREQ=DAILY;BYMONTH=2;BYMONTHDAY=31", "never fires"),
        ("FREQ=DAILY;UNTIL=20250101T000000Z", "UNTIL is before the start"),
        ("FREQ=YEARLY;BYMONTH=12;UNTIL=20260301T000000Z", "never fires"),
        ("FREQ=DAILY;UNTIL=20270101", "UNTIL must be in UTC"),
        ("FREQ=DAILY;UNTIL=20270101T000000Z;COUNT=3", "both COUNT and UNTIL"),
        ("FREQ=DAILY;UNTIL=20270101T000000Z;UNTIL=20280101T000000Z", "two UNTIL"),
        ("FREQ=DAILY;COUNT=0", "COUNT must be"),
        ("FREQ=DAILY;COUNT=100000", "COUNT must be"),
        ("FREQ=DAILY;INTERVAL=0", "INTERVAL must be"),
        ("FREQ=DAILY;INTERVAL=65535", "INTERVAL must be"),
        ("FREQ=MONTHLY;BYDAY=THIRDSA", "BYDAY must list"),
        ("FREQ=MONTHLY;BYDAY=0SA", "BYDAY must list"),
        ("FREQ=MONTHLY;BYDAY=9SA", "BYDAY"),
        ("FREQ=WEEKLY;BYDAY=3SA", "only of a month or a year"),
        ("FREQ=DAILY;FREQ=WEEKLY", ""),
        ("FREQ=SOMETIMES", ""),
        ("BYDAY=MO", ""),
        ("FREQ=DAILY\nDTSTART:20260101T000000Z", "recurrence rule such as"),
        ("FREQ=DAILY;BYDAY=\u{1F600}\u{1F600}", "recurrence rule such as"),
        (&"FREQ=DAILY;".repeat(100), "at most 256"),
    ] {
        let error = rule(bad).unwrap_err();
        assert_eq!(error.field, "recurrence.rule", "{bad}");
        assert!(error.problem.contains(problem), "{bad}: {}", error.problem);
    }
    assert!(rule("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29").is_ok());
    assert!(rule("freq=monthly;byday=-1fr;until=20991231T000000Z").is_ok());
    let lasts = |hours| Schedule::recurring(zone, "FREQ=DAILY", "2026-01-01T00:00", TimeDelta::hours(hours));
    for hours in [0, -1, 367 * 24] {
        assert_eq!(lasts(hours).unwrap_err().field, "recurrence.duration");
    }
    for (start, end, field) in [
        ("2026-01-02T00:00:00", "2026-01-02T00:00:00", "local.end"),
        ("2026-01-02T00:00:00", "2026-01-01T00:00:00", "local.end"),
        ("2026-01-01T00:00:00", "2027-06-01T00:00:00", "local.end"),
        ("2026-03-08T02:30:00", "2026-03-08T03:15:00", "local.end"),
        ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00", "local.start"),
        ("2026-02-30T00:00:00", "2026-03-02T00:00:00", "local.start"),
        ("0001-01-01T00:00:00", "2026-03-02T00:00:00", "local.start"),
    ] {
        assert_eq!(Schedule::local(zone, start, end).unwrap_err().field, field, "{start} {end}");
    }
    assert_eq!(Schedule::instants(at(5), at(5)).unwrap_err().field, "instants.start", "1970");
}

#[test]
fn a_rule_that_began_long_ago_fires_on_the_same_days() {
    for rule in ["FREQ=DAILY", "FREQ=WEEKLY;INTERVAL=3;BYDAY=MO,FR;WKST=SU", "FREQ=MONTHLY;BYDAY=MO"] {
        // 2000-01-03 and a thousand times three weeks later are the same place of every interval.
        let found = ["2000-01-03T08:00:00", "2057-07-02T08:00:00"].map(|start| {
            spans(&recurring(Effect::Deny, "Europe/Berlin", rule, start, 2), "2199-06-01T00:00:00Z", 63)
        });
        assert!(found[0].len() >= 5, "{rule}");
        assert_eq!(found[0], found[1], "{rule}");
    }
}
