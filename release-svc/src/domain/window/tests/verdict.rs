//! Actions, overrides and peaks.

use shared::time::at;

use super::*;

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
        ending: None,
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
    assert!(!is_peak(&[Window { deleted_at: Some(during), ..peak }], during, &Target::default()));
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
fn an_override_that_ends_by_a_clock_behind_its_makers_never_held() {
    let lifted = Override {
        id: WindowOverrideId::new(at(1), [1; 10]),
        window: WindowId::new(at(1), [1; 10]),
        subject: OverrideSubject::Place {
            component: "storefront".to_owned(),
            environment: "prod".to_owned(),
        },
        reason: "hotfix".to_owned(),
        creator: "i|ada".to_owned(),
        span: Span { start: at(10), end: at(20) },
        ending: None,
    };
    let ending = Ending { ender: "i|bob".to_owned(), reason: "done".to_owned() };
    for (ended_at, end) in [(9, 10), (15, 15), (30, 20)] {
        let ended = lifted.clone().ended(at(ended_at), ending.clone());
        assert_eq!(ended.span, Span { start: at(10), end: at(end) });
    }
}
