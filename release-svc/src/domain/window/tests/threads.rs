//! Every instant of which people told that others got it wrong, named by the thread that told.

use shared::time::at;

use super::*;

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
        ending: None,
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
