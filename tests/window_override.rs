//! Overrides of freeze windows, listed and taken back.

use chrono::TimeDelta;
use prost_types::value::Kind;
use shared::issuer::Grant;
use shared::pb::release as pb;
use shared::time::to_proto;
use tonic::Code;

use crate::harness::shop::{create_release, request_id, start as rollout_of, submit};
use crate::harness::{Answer as _, Caller, Watch, person, workload};
use crate::window::{about_storefront, create_window, deletion, evaluate, lift, start, today};

async fn lift_for(caller: &Caller, request: pb::OverrideWindowRequest) -> pb::WindowOverride {
    caller
        .windows()
        .override_window(request)
        .await
        .answer()
        .window_override
        .unwrap()
}

fn ending(lifted: &pb::WindowOverride) -> pb::EndWindowOverrideRequest {
    let (window_override_id, reason) = (lifted.window_override_id.clone(), "the fix was wrong".to_owned());
    pb::EndWindowOverrideRequest { window_override_id, reason, ..Default::default() }
}

async fn list(caller: &Caller, window_id: &str, show_ended: bool) -> Vec<pb::WindowOverride> {
    let window_id = window_id.to_owned();
    let request = pb::ListWindowOverridesRequest { window_id, show_ended, ..Default::default() };
    caller.windows().list_window_overrides(request).await.answer().window_overrides
}

#[tokio::test]
async fn who_lifted_what_is_listed_newest_first() {
    let (stack, caller) = start().await;
    let (window, other) = (create_window(&caller, today()).await, create_window(&caller, today()).await);
    let mut made = Vec::new();
    for hours in 1..=3 {
        stack.advance(TimeDelta::seconds(1));
        let window = if hours == 2 { &other } else { &window };
        made.insert(0, lift_for(&caller, lift(window, stack.now() + TimeDelta::hours(hours))).await);
    }
    assert_eq!(list(&caller, "", false).await, made);
    assert_eq!(list(&caller, &other.window_id, false).await, [made[1].clone()]);
    let mut request = pb::ListWindowOverridesRequest { page_size: 2, ..Default::default() };
    let page = caller.windows().list_window_overrides(request.clone()).await.answer();
    assert_eq!(page.window_overrides, made[..2]);
    request.page_token = page.next_page_token;
    let rest = caller.windows().list_window_overrides(request.clone()).await.answer();
    assert_eq!((rest.window_overrides.as_slice(), rest.next_page_token.as_str()), (&made[2..], ""));
    let of_another = pb::ListWindowOverridesRequest { show_ended: true, ..request };
    let refused = caller.windows().list_window_overrides(of_another).await;
    refused.refused(Code::InvalidArgument, "PAGE_TOKEN_INVALID");
    let request = pb::ListWindowOverridesRequest { window_id: "wnd_1".to_owned(), ..Default::default() };
    let refused = caller.windows().list_window_overrides(request).await;
    refused.refused(Code::InvalidArgument, "FIELD_INVALID");
    // Those that are over on request, and nobody else's ever.
    stack.advance(TimeDelta::minutes(90));
    assert_eq!(list(&caller, "", false).await, made[..2]);
    assert_eq!(list(&caller, "", true).await, made);
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..person("ada") });
    assert_eq!(list(&acme, "", true).await, []);
}

#[tokio::test]
async fn an_override_that_is_taken_back_holds_no_longer() {
    let (stack, caller) = start().await;
    let window = create_window(&caller, today()).await;
    let lifted = lift_for(&caller, lift(&window, stack.now() + TimeDelta::hours(4))).await;
    stack.advance(TimeDelta::hours(1));
    assert!(evaluate(&caller, about_storefront()).await.is_open);
    let powerless = stack.caller(&Grant { scope: "window.write window.read".to_owned(), ..person("bob") });
    let refused = powerless.windows().end_window_override(ending(&lifted)).await;
    refused.refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
    let mut events = Watch::open(caller.release_events()).await;
    // It only forbids, so anybody may who may override, a machine, too.
    let machine = stack.caller(&workload("watchdog"));
    let request = pb::EndWindowOverrideRequest { request_id: request_id(7), ..ending(&lifted) };
    let answer = machine.windows().end_window_override(request.clone()).await.answer();
    assert_eq!(machine.windows().end_window_override(request).await.answer(), answer);
    let ended = answer.window_override.unwrap();
    assert_eq!(ended.end_time, Some(to_proto(stack.now())));
    assert!(ended.ender.ends_with("watchdog"), "{ended:?}");
    assert_eq!(ended.end_reason, "the fix was wrong");
    let told = events.next_of("window.override_ended").await.data.unwrap();
    assert_eq!(told.fields["reason"], Kind::StringValue("the fix was wrong".to_owned()).into());
    let id = Kind::StringValue(lifted.window_override_id.clone()).into();
    assert_eq!(told.fields["window_override_id"], id);
    assert!(!evaluate(&caller, about_storefront()).await.is_open);
    let release = submit(&caller, &create_release(&caller, "1.0").await).await;
    let closed = caller.rollouts().start_rollout(rollout_of(&release, &[])).await;
    closed.refused(Code::FailedPrecondition, "ROLLOUT_WINDOW_CLOSED");
    assert_eq!(list(&caller, "", false).await, []);
    assert_eq!(list(&caller, "", true).await, std::slice::from_ref(&ended));
    // Again, or later, changes nothing, also of a window that is deleted.
    caller.windows().delete_window(deletion(&window)).await.answer();
    stack.advance(TimeDelta::hours(9));
    let again = caller.windows().end_window_override(ending(&lifted)).await.answer();
    assert_eq!(again.window_override, Some(ended));
}

#[tokio::test]
async fn an_override_is_taken_back_at_once_and_by_its_tenant_only() {
    let (stack, caller) = start().await;
    let window = create_window(&caller, today()).await;
    let lifted = lift_for(&caller, lift(&window, stack.now() + TimeDelta::hours(24))).await;
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..person("ada") });
    let refused = acme.windows().end_window_override(ending(&lifted)).await;
    refused.refused(Code::NotFound, "WINDOW_OVERRIDE_NOT_FOUND");
    for bad in [
        pb::EndWindowOverrideRequest { reason: String::new(), ..ending(&lifted) },
        pb::EndWindowOverrideRequest { window_override_id: window.window_id.clone(), ..ending(&lifted) },
    ] {
        let refused = caller.windows().end_window_override(bad).await;
        refused.refused(Code::InvalidArgument, "FIELD_INVALID");
    }
    let ended = caller.windows().end_window_override(ending(&lifted)).await.answer();
    let ended = ended.window_override.unwrap();
    assert_eq!((ended.end_time, ended.create_time), (lifted.create_time, lifted.create_time));
    assert!(!evaluate(&caller, about_storefront()).await.is_open);
}
