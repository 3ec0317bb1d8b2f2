//! Freeze windows as callers make, change and ask them. The clock begins on 2027-01-15 at 08:00 UTC.

use chrono::TimeDelta;
use shared::pb::release as pb;
use shared::pb::release::window::Schedule;
use shared::pb::release::window_override::Subject;
use shared::pb::release::{ReleaseAction, WindowEffect};
use shared::time::{Time, to_proto};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::shop::{
    create_catalog, create_release, request_id, seconds, start as rollout_of, submit,
};
use crate::harness::{Answer as _, Caller, ENVIRONMENT, Stack, person};

const TODAY: (&str, &str) = ("2027-01-15T00:00:00", "2027-01-16T00:00:00");

pub(crate) async fn start() -> (Stack, Caller) {
    let stack = Stack::releases();
    let caller = stack.caller(&person("ada"));
    create_catalog(&caller).await;
    (stack, caller)
}

/// A window that denies every deployment and exposure between two readings of London's clock.
pub(crate) fn freeze(start: &str, end: &str) -> pb::Window {
    let span = pb::LocalSpan { start: start.to_owned(), end: end.to_owned() };
    pb::Window {
        name: "winter freeze".to_owned(),
        effect: WindowEffect::Deny.into(),
        actions: vec![ReleaseAction::Deploy.into(), ReleaseAction::Expose.into()],
        time_zone: "Europe/London".to_owned(),
        schedule: Some(Schedule::Local(span)),
        reason: "peak trading".to_owned(),
        ..Default::default()
    }
}

pub(crate) fn today() -> pb::Window {
    freeze(TODAY.0, TODAY.1)
}

fn recurring(rule: &str, start: &str, hours: i64) -> pb::Window {
    let duration = Some(seconds(hours * 3600));
    let recurrence = pb::Recurrence { rule: rule.to_owned(), start: start.to_owned(), duration };
    pb::Window { schedule: Some(Schedule::Recurrence(recurrence)), ..today() }
}

pub(crate) fn creation(window: pb::Window) -> pb::CreateWindowRequest {
    pb::CreateWindowRequest { window: Some(window), request_id: String::new() }
}

pub(crate) fn update(window: pb::Window) -> pb::UpdateWindowRequest {
    pb::UpdateWindowRequest { window: Some(window), request_id: String::new() }
}

pub(crate) fn deletion(window: &pb::Window) -> pb::DeleteWindowRequest {
    let (window_id, reason) = (window.window_id.clone(), "over early".to_owned());
    pb::DeleteWindowRequest { window_id, reason, ..Default::default() }
}

pub(crate) async fn create_window(caller: &Caller, window: pb::Window) -> pb::Window {
    caller.windows().create_window(creation(window)).await.answer().window.unwrap()
}

/// Lifts a window for `storefront` where the tests' session services are.
pub(crate) fn lift(window: &pb::Window, until: Time) -> pb::OverrideWindowRequest {
    let place = pb::WindowPlace { component: "storefront".to_owned(), environment: ENVIRONMENT.to_owned() };
    let window_override = pb::WindowOverride {
        window_id: window.window_id.clone(),
        subject: Some(Subject::Place(place)),
        reason: "payments fail".to_owned(),
        end_time: Some(to_proto(until)),
        ..Default::default()
    };
    pb::OverrideWindowRequest { window_override: Some(window_override), request_id: String::new() }
}

pub(crate) async fn evaluate(
    caller: &Caller,
    request: pb::EvaluateWindowsRequest,
) -> pb::EvaluateWindowsResponse {
    caller.windows().evaluate_windows(request).await.answer()
}

pub(crate) fn about_storefront() -> pb::EvaluateWindowsRequest {
    let (component, environment) = ("storefront".to_owned(), ENVIRONMENT.to_owned());
    pb::EvaluateWindowsRequest { component, environment, ..Default::default() }
}

fn time(text: &str) -> Time {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_window_is_kept_as_it_was_made_changed_by_its_etag_and_after_its_deletion() {
    let (_stack, caller) = start().await;
    let mut asked = recurring("FREQ=MONTHLY;BYDAY=3SA", "2027-01-01T22:00:00", 8);
    asked.scope = Some(pb::WindowScope {
        tiers: vec![pb::ComponentTier::ComponentTier1.into()],
        components: vec!["storefront".to_owned()],
        environments: vec![ENVIRONMENT.to_owned()],
        regions: vec!["emea".to_owned()],
    });
    let made = create_window(&caller, asked.clone()).await;
    let (window_id, creator) = (made.window_id.clone(), made.creator.clone());
    let expected =
        pb::Window { window_id, creator, create_time: made.create_time, etag: "v1".to_owned(), ..asked };
    assert_eq!(made, expected);
    let request = || pb::GetWindowRequest { window_id: made.window_id.clone() };
    assert_eq!(caller.windows().get_window(request()).await.answer().window, Some(made.clone()));
    let changed = pb::Window { name: "third Saturdays".to_owned(), ..made.clone() };
    let changed = caller.windows().update_window(update(changed)).await.answer().window.unwrap();
    assert_eq!((changed.name.as_str(), changed.etag.as_str()), ("third Saturdays", "v2"));
    let stale = caller.windows().update_window(update(made.clone())).await;
    stale.refused(Code::Aborted, "ETAG_MISMATCH");
    let stale = pb::DeleteWindowRequest { etag: made.etag.clone(), ..deletion(&made) };
    caller
        .windows()
        .delete_window(stale)
        .await
        .refused(Code::Aborted, "ETAG_MISMATCH");
    let deleted = caller.windows().delete_window(deletion(&made)).await.answer().window.unwrap();
    assert!(deleted.delete_time.is_some());
    assert_eq!(caller.windows().get_window(request()).await.answer().window, Some(deleted.clone()));
    let again = caller.windows().delete_window(deletion(&made)).await;
    again.refused(Code::NotFound, "WINDOW_NOT_FOUND");
    let again = pb::Window { etag: String::new(), ..changed };
    caller
        .windows()
        .update_window(update(again))
        .await
        .refused(Code::NotFound, "WINDOW_NOT_FOUND");
    let list = async |show_deleted| {
        let request = pb::ListWindowsRequest { show_deleted, ..Default::default() };
        caller.windows().list_windows(request).await.answer().windows
    };
    assert_eq!((list(false).await, list(true).await), (vec![], vec![deleted]));
}

#[tokio::test]
async fn windows_come_in_pages_newest_first() {
    let (stack, caller) = start().await;
    let mut made = Vec::new();
    for day in 1..=5 {
        stack.advance(TimeDelta::seconds(1));
        let window = freeze(&format!("2027-02-0{day}T00:00"), &format!("2027-02-0{day}T01:00"));
        made.insert(0, create_window(&caller, window).await);
    }
    let mut request = pb::ListWindowsRequest { page_size: 2, ..Default::default() };
    let mut found = Vec::new();
    loop {
        let page = caller.windows().list_windows(request.clone()).await.answer();
        found.extend(page.windows);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(found, made);
    request.show_deleted = true;
    caller
        .windows()
        .list_windows(request)
        .await
        .refused(Code::InvalidArgument, "PAGE_TOKEN_INVALID");
}

#[tokio::test]
async fn senseless_windows_are_refused_by_field() {
    let (stack, caller) = start().await;
    let instants = |start: i64, end: i64| {
        let at = |seconds| Some(to_proto(stack.now() + TimeDelta::seconds(seconds)));
        let span = pb::InstantSpan { start: at(start), end: at(end) };
        pb::Window { schedule: Some(Schedule::Instants(span)), ..today() }
    };
    let scoped = |scope| pb::Window { scope: Some(scope), ..today() };
    let names = |names: Vec<String>| pb::WindowScope { regions: names, ..Default::default() };
    for (window, field) in [
        (pb::Window { time_zone: String::new(), ..today() }, "window.time_zone"),
        (pb::Window { time_zone: "Mars/Olympus".to_owned(), ..today() }, "window.time_zone"),
        (pb::Window { time_zone: "+01:00".to_owned(), ..today() }, "window.time_zone"),
        (pb::Window { name: String::new(), ..today() }, "window.name"),
        (pb::Window { reason: String::new(), ..today() }, "window.reason"),
        (pb::Window { effect: 0, ..today() }, "window.effect"),
        (pb::Window { effect: 7, ..today() }, "window.effect"),
        (pb::Window { actions: vec![], ..today() }, "window.actions"),
        (pb::Window { actions: vec![9], ..today() }, "window.actions"),
        (pb::Window { schedule: None, ..today() }, "window.schedule"),
        (freeze(TODAY.1, TODAY.0), "window.local.end"),
        (freeze("tomorrow", TODAY.1), "window.local.start"),
        (instants(60, 60), "window.instants.end"),
        (instants(0, 400 * 24 * 3600), "window.instants.end"),
        (recurring("FREQ=SECONDLY", TODAY.0, 1), "window.recurrence.rule"),
        (recurring("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", TODAY.0, 1), "window.recurrence.rule"),
        (recurring("FREQ=DAILY;COUNT=2;UNTIL=20280101T000000Z", TODAY.0, 1), "window.recurrence.rule"),
        (recurring("FREQ=DAILY", TODAY.0, 0), "window.recurrence.duration"),
        (recurring("FREQ=DAILY", TODAY.0, -5), "window.recurrence.duration"),
        (recurring("FREQ=DAILY", TODAY.0, i64::MAX / 3600), "window.recurrence.duration"),
        (recurring("FREQ=DAILY", "2027-01-15", 1), "window.recurrence.start"),
        (scoped(names(vec!["EMEA".to_owned()])), "window.scope.regions[0]"),
        (scoped(names(vec!["emea".to_owned(); 101])), "window.scope.regions"),
        (scoped(pb::WindowScope { tiers: vec![0], ..Default::default() }), "window.scope.tiers"),
    ] {
        let status = caller.windows().create_window(creation(window.clone())).await;
        let status = status.refused(Code::InvalidArgument, "FIELD_INVALID");
        let found = status.get_details_bad_request().unwrap().field_violations.remove(0).field;
        assert_eq!(found, field, "{window:?}");
    }
    for (scope, reason) in [
        (
            pb::WindowScope { components: vec!["typo".to_owned()], ..Default::default() },
            "COMPONENT_NOT_FOUND",
        ),
        (
            pb::WindowScope { environments: vec!["typo".to_owned()], ..Default::default() },
            "ENVIRONMENT_NOT_FOUND",
        ),
    ] {
        let refused = caller.windows().create_window(creation(scoped(scope))).await;
        refused.refused(Code::NotFound, reason);
    }
}

#[tokio::test]
async fn what_evaluate_windows_says_is_what_rollouts_meet() {
    let (stack, caller) = start().await;
    let open = evaluate(&caller, about_storefront()).await;
    assert!(open.is_open && open.blockers.is_empty() && open.next_close_time.is_none());
    let elsewhere = pb::WindowScope { regions: vec!["apac".to_owned()], ..Default::default() };
    create_window(&caller, pb::Window { scope: Some(elsewhere), ..today() }).await;
    let nights = pb::Window {
        time_zone: "America/New_York".to_owned(),
        is_peak: true,
        ..recurring("FREQ=DAILY", "2027-01-01T20:00:00", 10)
    };
    let nights = create_window(&caller, nights).await;
    let closed = evaluate(&caller, about_storefront()).await;
    assert!(!closed.is_open && closed.is_peak);
    // 08:00 UTC is 03:00 in New York.
    let [window] = closed.windows.as_slice() else { panic!("{closed:?}") };
    assert_eq!((&window.window_id, window.effect()), (&nights.window_id, WindowEffect::Deny));
    assert_eq!(window.local_time, "2027-01-15T03:00:00-05:00");
    assert_eq!(window.local_until, "2027-01-15T06:00:00-05:00");
    let opens = time("2027-01-15T11:00:00Z");
    assert_eq!((closed.next_open_time, window.until_time), (Some(to_proto(opens)), Some(to_proto(opens))));
    let release = submit(&caller, &create_release(&caller, "1.0").await).await;
    let refused = caller.rollouts().start_rollout(rollout_of(&release, &[])).await;
    refused.refused(Code::FailedPrecondition, "ROLLOUT_WINDOW_CLOSED");
    let later = pb::EvaluateWindowsRequest { time: Some(to_proto(opens)), ..about_storefront() };
    let later = evaluate(&caller, later).await;
    let evening = time("2027-01-16T01:00:00Z");
    assert!(later.is_open && !later.is_peak);
    assert_eq!(later.next_close_time, Some(to_proto(evening)));
    let schema = vec![ReleaseAction::Schema.into()];
    assert!(
        evaluate(&caller, pb::EvaluateWindowsRequest { actions: schema, ..about_storefront() })
            .await
            .is_open
    );
    stack.advance(opens - stack.now());
    caller.rollouts().start_rollout(rollout_of(&release, &[])).await.answer();
    for (request, code, reason) in [
        (
            pb::EvaluateWindowsRequest { component: "typo".to_owned(), ..about_storefront() },
            Code::NotFound,
            "COMPONENT_NOT_FOUND",
        ),
        (
            pb::EvaluateWindowsRequest { environment: "typo".to_owned(), ..about_storefront() },
            Code::NotFound,
            "ENVIRONMENT_NOT_FOUND",
        ),
        (
            pb::EvaluateWindowsRequest { actions: vec![8], ..about_storefront() },
            Code::InvalidArgument,
            "FIELD_INVALID",
        ),
        (
            pb::EvaluateWindowsRequest { time: Some(to_proto(Time::MAX_UTC)), ..about_storefront() },
            Code::InvalidArgument,
            "FIELD_INVALID",
        ),
    ] {
        caller.windows().evaluate_windows(request).await.refused(code, reason);
    }
}

#[tokio::test]
async fn what_was_allowed_for_a_while_is_not_allowed_afterwards() {
    let (stack, caller) = start().await;
    let effect = WindowEffect::Allow.into();
    create_window(&caller, pb::Window { effect, ..today() }).await;
    assert!(evaluate(&caller, about_storefront()).await.is_open);
    stack.advance(TimeDelta::days(2));
    assert!(!evaluate(&caller, about_storefront()).await.is_open);
    let release = create_release(&caller, "1.0").await;
    let release = submit(&caller, &release).await;
    let refused = caller.rollouts().start_rollout(rollout_of(&release, &[])).await;
    refused.refused(Code::FailedPrecondition, "ROLLOUT_WINDOW_CLOSED");
}

#[tokio::test]
async fn a_tenant_has_no_more_windows_than_are_looked_at() {
    let (_stack, caller) = start().await;
    for _ in 0..200 {
        create_window(&caller, today()).await;
    }
    // What is over counts no more.
    create_window(&caller, freeze("2026-12-24T00:00:00", "2026-12-27T00:00:00")).await;
    let refused = caller.windows().create_window(creation(today())).await;
    refused.refused(Code::ResourceExhausted, "WINDOW_LIMIT");
    let held = evaluate(&caller, about_storefront()).await;
    assert_eq!(held.windows.len(), 200);
}

#[tokio::test]
async fn a_repeated_request_makes_one_window() {
    let (_stack, caller) = start().await;
    let request = pb::CreateWindowRequest { request_id: request_id(7), ..creation(today()) };
    let once = caller.windows().create_window(request.clone()).await.answer();
    assert_eq!(caller.windows().create_window(request).await.answer(), once);
    let all = caller.windows().list_windows(pb::ListWindowsRequest::default()).await.answer();
    assert_eq!(all.windows.len(), 1);
}
