//! What one caller, and all together, may take: beyond it the answer is at once, and says when to try again.

use std::num::NonZeroU32;
use std::time::Duration;

use chrono::TimeDelta;
use shared::edge::Limits;
use shared::pb::common::WatchEventsRequest;
use shared::pb::session::ListTouchpointsRequest;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use crate::harness::{Answer as _, Caller, Options, Stack, Watch, eventually, workload};

fn start(limits: Limits) -> Stack {
    let mut stack = Stack::prepare();
    stack.session = Some(stack.session_svc(&Options { limits, ..Options::default() }));
    stack
}

async fn list(caller: &Caller) -> Result<(), tonic::Status> {
    let request = ListTouchpointsRequest::default();
    caller.touchpoints().list_touchpoints(request).await.map(drop)
}

#[tokio::test]
async fn a_caller_beyond_its_rate_is_told_when_to_come_back_and_others_are_not() {
    let rate = NonZeroU32::new(4).unwrap();
    let stack = start(Limits { caller_rate: rate, ..Options::default().limits });
    let busy = stack.caller(&workload("busy"));
    for _ in 0..4 {
        list(&busy).await.unwrap();
    }
    let refused = |result: Result<(), tonic::Status>| {
        let status = result.map(tonic::Response::new);
        let status = status.refused(Code::ResourceExhausted, "CALLER_RATE_LIMITED");
        let delay = status.get_details_retry_info().unwrap().retry_delay;
        assert_eq!(delay, Some(Duration::from_millis(250)));
    };
    refused(list(&busy).await);
    // Another token, the same principal.
    refused(
        list(&stack.caller(&shared::issuer::Grant { scope: "session.read".into(), ..workload("busy") }))
            .await,
    );
    list(&stack.caller(&workload("quiet"))).await.unwrap();
    let mut health = HealthClient::new(stack.session.as_ref().unwrap().channel.clone());
    health.check(HealthCheckRequest::default()).await.unwrap();
    stack.advance(TimeDelta::milliseconds(250));
    list(&busy).await.unwrap();
    refused(list(&busy).await);
}

#[tokio::test]
async fn streams_have_places_of_their_own() {
    let stack = start(Limits { in_flight: 1, streams: 2, ..Options::default().limits });
    let caller = stack.caller(&workload("watcher"));
    let (first, _second) =
        (Watch::open(caller.session_events()).await, Watch::open(caller.session_events()).await);
    let watch = || Watch::with(caller.session_events(), WatchEventsRequest::default());
    let status = watch().await.map(|_| tonic::Response::new(()));
    let status = status.refused(Code::ResourceExhausted, "OVERLOADED");
    assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
    list(&caller).await.unwrap();
    drop(first);
    eventually("a place", || async { watch().await.ok() }).await;
}

#[tokio::test]
async fn one_caller_does_not_take_every_stream() {
    let stack = start(Options::default().limits);
    let greedy = stack.caller(&workload("greedy"));
    let mut open = Vec::new();
    for _ in 0..100 {
        open.push(Watch::open(greedy.session_events()).await);
    }
    let status = Watch::with(greedy.session_events(), WatchEventsRequest::default()).await;
    status
        .map(|_| tonic::Response::new(()))
        .refused(Code::ResourceExhausted, "OVERLOADED");
    Watch::open(stack.caller(&workload("modest")).session_events()).await;
}
