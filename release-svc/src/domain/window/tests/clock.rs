//! What wall clocks show when they are set.

use super::*;

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
