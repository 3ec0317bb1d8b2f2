//! What holds of windows, by subject. Here is how tests make and ask them.

use shared::time::at;

use super::*;

mod clock;
mod past;
mod schedule;
mod threads;
mod verdict;

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
    let id = WindowId::new(at(1), [1; 10]);
    Window { id, terms, creator, created_at, deleted_at: None, row_version: 1, proposed: None }
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
        .terms
        .spans(within)
        .iter()
        .map(|span| (text(span.start), text(span.end)))
        .collect()
}

fn span(start: &str, end: &str) -> (String, String) {
    (start.to_owned(), end.to_owned())
}
