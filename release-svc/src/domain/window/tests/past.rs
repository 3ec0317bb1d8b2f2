//! Windows as they stood, read out of their events.

use serde_json::{Value, json};
use shared::time::at;

use super::*;

const HOUR: i64 = 3600;

fn hours(hours: i64) -> Time {
    at(hours * HOUR)
}

fn window_id(n: u8) -> String {
    WindowId::new(at(1), [n; 10]).to_string()
}

fn override_id(n: u8) -> String {
    WindowOverrideId::new(at(1), [n; 10]).to_string()
}

/// What the event of this kind told, and when.
fn told(kind: &str, hour: i64, data: &Value) -> (Time, Told) {
    (hours(hour), Told::read(kind, data).unwrap().unwrap())
}

/// A freeze between these hours, as its event tells of it.
fn says(n: u8, from: i64, until: i64) -> Value {
    let mut terms = freeze("UTC", "2027-01-01T00:00", "2027-01-02T00:00").terms;
    terms.schedule = Schedule::Instants(Span { start: hours(from), end: hours(until) });
    let mut data = serde_json::to_value(Record::from(&terms)).unwrap();
    data["window_id"] = window_id(n).into();
    data
}

fn place() -> Target<'static> {
    Target { component: Some("storefront"), environment: Some("prod"), ..Target::default() }
}

/// The hours that were denied to a release of the first four days, in order.
fn denied_to(release: &str, told: Vec<(Time, Told)>, live: Vec<Window>) -> Vec<(i64, i64)> {
    let within = Span { start: hours(0), end: hours(96) };
    let denied = Past::of(told, live).denied(&[Action::Deploy, Action::Expose], &[place()], within);
    let hour = |time: Time| time.timestamp() / HOUR;
    denied
        .to(release)
        .iter()
        .map(|span| (hour(span.start), hour(span.end)))
        .collect()
}

fn denied(told: Vec<(Time, Told)>) -> Vec<(i64, i64)> {
    denied_to("rel_other", told, vec![])
}

#[test]
fn a_window_denies_from_when_it_was_made_until_it_was_changed_or_deleted() {
    let created = |hour, from, until| told("window.created", hour, &says(1, from, until));
    let updated = |hour, from, until| told("window.updated", hour, &says(1, from, until));
    let deleted = |hour| told("window.deleted", hour, &json!({ "window_id": window_id(1) }));
    for (told, expected) in [
        (vec![], vec![]),
        (vec![created(-9, 10, 20)], vec![(10, 20)]),
        // What was made while it was over already, or half over, denied nothing before.
        (vec![created(30, 10, 20)], vec![]),
        (vec![created(15, 10, 20)], vec![(15, 20)]),
        // A deletion ends it, before, during or after.
        (vec![created(-9, 10, 20), deleted(5)], vec![]),
        (vec![created(-9, 10, 20), deleted(15)], vec![(10, 15)]),
        (vec![created(-9, 10, 20), deleted(40)], vec![(10, 20)]),
        // A change rewrites nothing before it.
        (vec![created(-9, 10, 20), updated(40, 50, 60)], vec![(10, 20), (50, 60)]),
        (vec![created(-9, 10, 20), updated(15, 10, 18), updated(17, 10, 30)], vec![(10, 30)]),
        (vec![created(-9, 10, 20), updated(15, 0, 12)], vec![(10, 15)]),
        // The clock of whoever changed it was behind that of whoever made it.
        (vec![created(15, 10, 30), updated(12, 13, 20)], vec![(15, 20)]),
        (vec![created(-9, -5, 2), told("window.created", 0, &says(2, 90, 200))], vec![(0, 2), (90, 96)]),
    ] {
        assert_eq!(denied(told.clone()), expected, "{told:?}");
    }
}

#[test]
fn only_what_denies_such_a_thing_counts() {
    let shown = |change: fn(&mut Value)| {
        let mut data = says(1, 10, 20);
        change(&mut data);
        denied(vec![told("window.created", -9, &data)])
    };
    assert_eq!(shown(|_| {}), [(10, 20)]);
    assert_eq!(shown(|data| data["effect"] = "ALLOW".into()), []);
    assert_eq!(shown(|data| data["actions"] = json!(["SCHEMA"])), []);
    assert_eq!(shown(|data| data["components"] = json!(["ledger"])), []);
    assert_eq!(shown(|data| data["environments"] = json!(["prod"])), [(10, 20)]);
}

#[test]
fn what_was_overridden_was_not_denied_while_it_held() {
    let lifted = |n, window, hour, ends: i64, subject: Value| {
        let mut data = json!({ "window_override_id": override_id(n), "window_id": window_id(window), "ends_at": hours(ends),
            "component": null, "environment": null, "release_id": null });
        data.as_object_mut().unwrap().extend(subject.as_object().unwrap().clone());
        told("window.overridden", hour, &data)
    };
    let ended =
        |n, hour| told("window.override_ended", hour, &json!({ "window_override_id": override_id(n) }));
    let release = ReleaseId::new(at(1), [9; 10]).to_string();
    let here = json!({ "component": "storefront", "environment": "prod" });
    let elsewhere = json!({ "component": "storefront", "environment": "staging" });
    let for_release = json!({ "release_id": release });
    let freeze = || told("window.created", -9, &says(1, 10, 20));
    let both = || vec![freeze(), told("window.created", -8, &says(2, 12, 18))];
    let with = |mut told: Vec<_>, more: Vec<_>| {
        told.extend(more);
        told
    };
    for (told, of_release, of_others) in [
        (with(vec![freeze()], vec![lifted(1, 1, 12, 14, elsewhere)]), vec![(10, 20)], vec![(10, 20)]),
        (
            with(vec![freeze()], vec![lifted(1, 1, 12, 14, here.clone())]),
            vec![(10, 12), (14, 20)],
            vec![(10, 12), (14, 20)],
        ),
        (
            with(vec![freeze()], vec![lifted(1, 1, 8, 14, for_release.clone())]),
            vec![(14, 20)],
            vec![(10, 20)],
        ),
        // Another window denied it all the same.
        (with(both(), vec![lifted(1, 1, 8, 24, for_release.clone())]), vec![(12, 18)], vec![(10, 20)]),
        (
            with(both(), vec![lifted(1, 1, 8, 24, for_release), lifted(2, 2, 9, 24, here.clone())]),
            vec![],
            vec![(10, 20)],
        ),
        // What was taken back held no longer.
        (
            with(vec![freeze()], vec![lifted(1, 1, 12, 16, here), ended(1, 14)]),
            vec![(10, 12), (14, 20)],
            vec![(10, 12), (14, 20)],
        ),
    ] {
        assert_eq!(denied_to(&release, told.clone(), vec![]), of_release, "{told:?}");
        assert_eq!(denied(told.clone()), of_others, "{told:?}");
    }
}

#[test]
fn a_live_window_whose_events_are_gone_has_stood_since_it_was_made() {
    let mut window = freeze("UTC", "2027-01-01T00:00", "2027-01-02T00:00");
    window.terms.schedule = Schedule::Instants(Span { start: hours(10), end: hours(44) });
    window = Window { id: WindowId::new(at(1), [1; 10]), created_at: hours(12), ..window };
    let live = |told| denied_to("rel_other", told, vec![window.clone()]);
    assert_eq!(live(vec![]), [(12, 44)]);
    assert_eq!(live(vec![told("window.updated", 30, &says(1, 0, 40))]), [(30, 40)]);
}

#[test]
fn a_window_is_read_as_it_was_told_and_nonsense_is_not_read() {
    for window in [
        recurring(Effect::Allow, "America/New_York", "FREQ=MONTHLY;BYDAY=3SA", "2027-01-01T22:00", 8),
        allowed("Europe/London", "2027-01-15T00:00", "2027-01-16T00:00"),
    ] {
        let mut data = serde_json::to_value(Record::from(&window.terms)).unwrap();
        data["window_id"] = window.id.to_string().into();
        let read = Told::read("window.updated", &data).unwrap();
        assert_eq!(read, Some(Told::Set(window.id, Box::new(window.terms))));
    }
    for (field, nonsense) in [
        ("window_id", json!("wnd_1")),
        ("effect", json!("PERHAPS")),
        ("actions", json!(["WALK"])),
        ("time_zone", json!("Mars/Olympus")),
        ("ends_at", json!(null)),
        ("is_peak", json!("yes")),
    ] {
        let mut data = says(1, 10, 20);
        data[field] = nonsense;
        assert!(Told::read("window.created", &data).is_err(), "{field}");
    }
    assert_eq!(Told::read("line.stopped", &json!({})).unwrap(), None);
    assert!(Told::read("window.overridden", &json!({ "window_id": window_id(1) })).is_err());
}
