//! Touchpoints and what their policy does to sessions.

use chrono::TimeDelta;
use shared::pb::session as pb;
use shared::pb::session::Verdict;
use tonic::Code;

use crate::harness::shop::{create_session, create_touchpoint, seconds, validate, web};
use crate::harness::{Answer as _, Caller, Options, Stack, eventually, workload};

async fn start() -> (Stack, Caller, pb::Touchpoint) {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("platform"));
    let touchpoint = create_touchpoint(&caller, web()).await;
    (stack, caller, touchpoint)
}

fn update(touchpoint: pb::Touchpoint) -> pb::UpdateTouchpointRequest {
    pb::UpdateTouchpointRequest { touchpoint: Some(touchpoint), request_id: String::new() }
}

#[tokio::test]
async fn defaults_are_shown() {
    let (_stack, caller, created) = start().await;
    let policy = pb::SessionPolicy {
        idle_timeout: Some(seconds(1800)),
        absolute_lifetime: Some(seconds(86_400)),
        visit_gap: Some(seconds(1800)),
        staleness_bound: Some(seconds(1)),
        outage_bound: Some(seconds(0)),
        remember_me: None,
        level_2_max_age: Some(seconds(86_400)),
        level_3_max_age: Some(seconds(43_200)),
        session_limit: None,
        rotation_grace: Some(seconds(30)),
        allowed_issuers: vec![],
    };
    assert_eq!((created.group.as_str(), &created.session_policy), ("web", &Some(policy)));
    let request = pb::GetTouchpointRequest { touchpoint: "web".to_owned() };
    assert_eq!(caller.touchpoints().get_touchpoint(request).await.answer().touchpoint, Some(created));
}

#[tokio::test]
async fn a_name_is_taken_once() {
    let (_stack, caller, _) = start().await;
    let request = pb::CreateTouchpointRequest { touchpoint: Some(web()), ..Default::default() };
    caller
        .touchpoints()
        .create_touchpoint(request)
        .await
        .refused(Code::AlreadyExists, "TOUCHPOINT_EXISTS");
}

#[tokio::test]
async fn an_update_asks_for_the_etag_that_was_read() {
    let (_stack, caller, created) = start().await;
    let renamed = pb::Touchpoint { display_name: "Web shop".to_owned(), ..created.clone() };
    let updated = caller
        .touchpoints()
        .update_touchpoint(update(renamed.clone()))
        .await
        .answer()
        .touchpoint
        .unwrap();
    assert_ne!(updated.etag, created.etag);
    caller
        .touchpoints()
        .update_touchpoint(update(renamed.clone()))
        .await
        .refused(Code::Aborted, "ETAG_MISMATCH");
    let regardless = pb::Touchpoint { etag: String::new(), ..renamed };
    caller.touchpoints().update_touchpoint(update(regardless)).await.answer();
    let elsewhere = pb::Touchpoint { touchpoint: "nowhere".to_owned(), etag: String::new(), ..created };
    caller
        .touchpoints()
        .update_touchpoint(update(elsewhere))
        .await
        .refused(Code::NotFound, "TOUCHPOINT_NOT_FOUND");
}

#[tokio::test]
async fn of_two_updates_of_what_was_read_one_stands() {
    let (_stack, caller, created) = start().await;
    let named = |name: &str| update(pb::Touchpoint { display_name: name.to_owned(), ..created.clone() });
    let (mut one, mut two) = (caller.touchpoints(), caller.touchpoints());
    let (a, b) = tokio::join!(one.update_touchpoint(named("a")), two.update_touchpoint(named("b")));
    assert_eq!(u8::from(a.is_ok()) + u8::from(b.is_ok()), 1, "{a:?} {b:?}");
    let lost = a.err().xor(b.err()).unwrap();
    assert_eq!(lost.code(), Code::Aborted, "{lost:?}");
}

#[tokio::test]
async fn a_shorter_idle_timeout_holds_for_live_sessions_on_every_replica_and_moves_no_absolute_deadline() {
    let (stack, caller, created) = start().await;
    let replica = stack.session_svc(&Options::default());
    let other = caller.at_session(&replica);
    let (before, token) = create_session(&caller).await;
    assert_eq!(validate(&other, &token).await.verdict(), Verdict::Active);
    let session_policy = Some(pb::SessionPolicy {
        idle_timeout: Some(seconds(60)),
        absolute_lifetime: Some(seconds(3600)),
        ..created.session_policy.unwrap()
    });
    caller
        .touchpoints()
        .update_touchpoint(update(pb::Touchpoint { session_policy, ..created }))
        .await
        .answer();
    let after = eventually("the policy", || async {
        let session = validate(&other, &token).await.session.unwrap();
        (session.idle_deadline != before.idle_deadline).then_some(session)
    })
    .await;
    assert_eq!(after.absolute_deadline, before.absolute_deadline);
    stack.advance(TimeDelta::seconds(62));
    for caller in [&caller, &other] {
        assert_eq!(validate(caller, &token).await.verdict(), Verdict::IdleExpired);
    }
}

#[tokio::test]
async fn policies_that_contradict_themselves_name_the_field() {
    let (_stack, caller, _) = start().await;
    let duration = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    let base = pb::SessionPolicy::default;
    let cases = [
        ("idle_timeout", pb::SessionPolicy { idle_timeout: duration(59, 0), ..base() }),
        ("idle_timeout", pb::SessionPolicy { idle_timeout: duration(-60, 0), ..base() }),
        ("idle_timeout", pb::SessionPolicy { idle_timeout: duration(i64::MIN, i32::MIN), ..base() }),
        ("idle_timeout", pb::SessionPolicy { idle_timeout: duration(60, 1), ..base() }),
        ("absolute_lifetime", pb::SessionPolicy { absolute_lifetime: duration(60, 0), ..base() }),
        (
            "absolute_lifetime",
            pb::SessionPolicy { absolute_lifetime: duration(i64::MAX, 999_999_999), ..base() },
        ),
        ("visit_gap", pb::SessionPolicy { visit_gap: duration(86_401, 0), ..base() }),
        ("staleness_bound", pb::SessionPolicy { staleness_bound: duration(61, 0), ..base() }),
        ("staleness_bound", pb::SessionPolicy { staleness_bound: duration(0, 1), ..base() }),
        ("outage_bound", pb::SessionPolicy { outage_bound: duration(3601, 0), ..base() }),
    ];
    for (field, policy) in cases {
        let touchpoint =
            pb::Touchpoint { touchpoint: "new".to_owned(), session_policy: Some(policy), ..web() };
        let request = pb::CreateTouchpointRequest { touchpoint: Some(touchpoint), ..Default::default() };
        let refused = caller.touchpoints().create_touchpoint(request).await;
        let status = refused.refused(Code::InvalidArgument, "FIELD_INVALID");
        assert!(status.message().contains(field), "{field}: {}", status.message());
    }
}

#[tokio::test]
async fn touchpoints_of_a_group_share_carts() {
    let (_stack, caller, _) = start().await;
    let app = pb::Touchpoint { touchpoint: "app".to_owned(), group: "web".to_owned(), ..web() };
    assert_eq!(create_touchpoint(&caller, app).await.group, "web");
    let request = pb::CreateSessionRequest { touchpoint: "app".to_owned(), ..Default::default() };
    let token = caller.sessions().create_session(request).await.answer().session_token;
    let cart = crate::harness::shop::add_line(&caller, &token, "85123A", 1).await;
    assert_eq!(cart.touchpoint_group, "web");
}
