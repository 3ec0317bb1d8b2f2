//! Which schedules make sense, and that they are found at any distance.

use shared::time::at;

use super::*;

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
