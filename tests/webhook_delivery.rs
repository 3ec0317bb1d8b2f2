//! Deliveries: signed `CloudEvents`, in order per subject, tried again and given up, replayed, and stopped where the receiver
//! says so. The clock is moved; nobody waits.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use serde_json::json;
use shared::pb::common::{
    DeliveryState, ListDeliveriesRequest, ReplayDeliveriesRequest, ReplayDeliveriesResponse,
    UpdateWebhookRequest, Webhook, WebhookDisableReason,
};
use shared::time::{Time, to_proto};

use crate::harness::hook::{
    KIND, arrived, attempted, attempts, by_subject, create_webhook, deliveries, event, get_webhook, happens,
    to,
};
use crate::harness::{Answer as _, Caller, Receiver, Reply, Stack, Watch, eventually, workload};

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

async fn start() -> (Stack, Caller, Receiver, String, String) {
    let (stack, receiver) = (Stack::sessions(), Receiver::start());
    let caller = stack.caller(&workload("shop-backend"));
    let made = create_webhook(&caller, to(&receiver)).await;
    let webhook_id = made.webhook.unwrap().webhook_id;
    (stack, caller, receiver, webhook_id, made.secret)
}

async fn next_attempt_at(stack: &Stack) -> Time {
    let mut db = stack.database.connect().await;
    let sql = "select next_attempt_at from session.webhook_lanes";
    sqlx::query_scalar(sql).fetch_one(&mut db).await.unwrap()
}

async fn replay(caller: &Caller, request: ReplayDeliveriesRequest) -> ReplayDeliveriesResponse {
    caller.webhooks().replay_deliveries(request).await.answer()
}

#[tokio::test]
async fn an_event_arrives_as_a_signed_cloud_event_with_its_trace() {
    let (stack, caller, receiver, webhook_id, secret) = start().await;
    let mut db = stack.database.connect().await;
    let sql = "insert into session.events (tenant_id, kind, subject, principal, occurred_at, data, trace_parent) \
               values ($1, $2, 'crt_1', 'idp|ada', $3, '{\"n\": 1}', $4) returning event_id";
    // Another tenant's, and one that nobody asked for.
    for (tenant, kind) in [("acme", KIND), ("shop", "cart.merged"), ("shop", KIND)] {
        sqlx::query(sql)
            .bind(tenant)
            .bind(kind)
            .bind(stack.now())
            .bind(TRACE)
            .execute(&mut db)
            .await
            .unwrap();
    }
    let delivered = attempted(&caller, &webhook_id, 1).await;
    let [request] = &receiver.received()[..] else { panic!("{:?}", receiver.received()) };
    assert!(request.is_signed_with(&secret) && request.path == "/events");
    let header = |name: &str| request.headers[name].as_str();
    assert_eq!(header("content-type"), "application/cloudevents+json; charset=utf-8");
    assert_eq!(header("webhook-timestamp"), stack.now().timestamp().to_string());
    assert_eq!(header("traceparent"), TRACE);
    let id = &delivered[0].event_id;
    assert_eq!(header("webhook-id"), format!("session_{id}"));
    let expected = json!({
        "specversion": "1.0",
        "id": id,
        "source": "/tandem/session/shop",
        "type": KIND,
        "subject": "crt_1",
        "time": "2027-01-15T08:00:00.000000Z",
        "datacontenttype": "application/json",
        "data": {"n": 1},
        "principal": "idp|ada",
        "traceparent": TRACE,
    });
    assert_eq!(request.event(), expected);
    assert_eq!(delivered[0].state(), DeliveryState::Delivered);
    let attempt = delivered[0].last_attempt.as_ref().unwrap();
    assert_eq!((attempt.http_status, attempt.error.as_str()), (200, ""));
}

#[tokio::test]
async fn events_of_a_subject_come_in_order_though_each_fails_at_first() {
    const SUBJECTS: usize = 5;
    const EVENTS: usize = 6;
    let (stack, caller, receiver, webhook_id, _) = start().await;
    receiver.reply(Reply::FirstTime("503 Service Unavailable"));
    let mut db = stack.database.connect().await;
    for n in 0..EVENTS {
        for subject in 0..SUBJECTS {
            happens(&stack, &mut db, &format!("cart-{subject}"), n).await;
        }
    }
    for round in 0..EVENTS {
        // Every subject's turn has failed, and the ones behind it wait.
        let so_far =
            attempted(&caller, &webhook_id, i32::try_from(SUBJECTS * (2 * round + 1)).unwrap()).await;
        let pending = so_far
            .iter()
            .filter(|delivery| delivery.state() == DeliveryState::Pending)
            .count();
        assert_eq!(pending, SUBJECTS * (EVENTS - round));
        stack.advance(TimeDelta::seconds(10));
    }
    let all = attempted(&caller, &webhook_id, i32::try_from(SUBJECTS * 2 * EVENTS).unwrap()).await;
    assert!(all.iter().all(|delivery| delivery.state() == DeliveryState::Delivered));
    let in_order: Vec<_> = (0..EVENTS as u64).collect();
    let expected: BTreeMap<_, _> = (0..SUBJECTS)
        .map(|subject| (format!("cart-{subject}"), in_order.clone()))
        .collect();
    assert_eq!(by_subject(&receiver), expected);
}

#[tokio::test]
async fn after_a_day_of_failures_a_delivery_is_a_dead_letter_and_can_be_replayed() {
    let (stack, caller, receiver, webhook_id, _) = start().await;
    let mut watch = Watch::open(caller.session_events()).await;
    receiver.reply(Reply::status("500 Oops", "no"));
    let began = stack.now();
    let mut db = stack.database.connect().await;
    happens(&stack, &mut db, "cart", 1).await;
    let mut attempts = 0;
    loop {
        attempts += 1;
        let [delivery] = &attempted(&caller, &webhook_id, attempts).await[..] else { panic!() };
        if delivery.state() == DeliveryState::DeadLettered {
            break;
        }
        let wait = next_attempt_at(&stack).await - stack.now();
        assert!(wait >= TimeDelta::seconds(1) && wait <= TimeDelta::hours(4), "{wait}");
        stack.advance(wait);
    }
    assert_eq!(stack.now() - began, TimeDelta::hours(24), "the last attempt is a day after the first");
    assert!((8..60).contains(&attempts), "{attempts}");
    let told = watch.next_of("webhook.dead_lettered").await;
    assert_eq!((told.subject.as_str(), told.principal.as_str()), (webhook_id.as_str(), "system"));
    assert!(get_webhook(&caller, &webhook_id).await.failing_since_time.is_some());

    receiver.reply(Reply::status("204 No Content", ""));
    let request = ReplayDeliveriesRequest {
        webhook_id: webhook_id.clone(),
        request_id: "7f8a2c7e-4b0e-4c55-9a38-2f4f7c0f5a11".to_owned(),
        ..ReplayDeliveriesRequest::default()
    };
    assert_eq!(replay(&caller, request.clone()).await.replayed, 1);
    let [delivery] = &attempted(&caller, &webhook_id, 1).await[..] else { panic!() };
    assert_eq!(delivery.state(), DeliveryState::Delivered);
    assert_eq!(replay(&caller, request).await.replayed, 1, "the same answer, and nothing done");
    assert_eq!(get_webhook(&caller, &webhook_id).await.failing_since_time, None);
    let bodies: Vec<_> = receiver.received().into_iter().map(|request| request.body).collect();
    assert!(bodies.iter().all(|body| *body == bodies[0]), "the same bytes each time");
}

#[tokio::test]
async fn a_span_of_time_or_some_events_are_delivered_again() {
    let (stack, caller, receiver, webhook_id, _) = start().await;
    let (began, mut db) = (stack.now(), stack.database.connect().await);
    for n in 0..6 {
        happens(&stack, &mut db, "cart", n).await;
        arrived(&receiver, n + 1).await;
        stack.advance(TimeDelta::minutes(1));
    }
    let all = attempted(&caller, &webhook_id, 6).await;
    let selection = ReplayDeliveriesRequest { webhook_id: webhook_id.clone(), ..Default::default() };
    assert_eq!(replay(&caller, selection.clone()).await.replayed, 0, "there is no dead letter");
    let span = ReplayDeliveriesRequest {
        start_time: Some(to_proto(began + TimeDelta::minutes(1))),
        end_time: Some(to_proto(began + TimeDelta::minutes(4))),
        include_delivered: true,
        ..selection.clone()
    };
    let answer = replay(&caller, span).await;
    assert_eq!((answer.replayed, answer.more), (3, false));
    arrived(&receiver, 9).await;
    attempted(&caller, &webhook_id, 6).await;
    let event_ids = vec![all[0].event_id.clone(), all[5].event_id.clone(), "0".to_owned()];
    assert_eq!(
        replay(&caller, ReplayDeliveriesRequest { event_ids, ..selection })
            .await
            .replayed,
        2
    );
    arrived(&receiver, 11).await;
    let numbers = receiver
        .received()
        .iter()
        .map(|request| request.event()["data"]["n"].as_u64())
        .collect::<Vec<_>>();
    assert_eq!(numbers[6..], [1, 2, 3, 0, 5].map(Some));
}

#[tokio::test]
async fn retry_after_is_kept_to_but_not_for_ever() {
    let (stack, caller, receiver, webhook_id, _) = start().await;
    let mut db = stack.database.connect().await;
    for header in ["3600", "864000"] {
        receiver.reply_once(Reply::status(&format!("429 Too Many\r\nretry-after: {header}"), ""));
    }
    happens(&stack, &mut db, "cart", 1).await;
    for (attempt, wait) in [(1, TimeDelta::hours(1)), (2, TimeDelta::hours(4))] {
        attempted(&caller, &webhook_id, attempt).await;
        assert_eq!(next_attempt_at(&stack).await - stack.now(), wait);
        stack.advance(wait);
    }
    attempted(&caller, &webhook_id, 3).await;
}

#[tokio::test]
async fn a_receiver_that_is_gone_gets_nothing_until_it_is_enabled_again() {
    let (stack, caller, receiver, webhook_id, _) = start().await;
    let mut watch = Watch::open(caller.session_events()).await;
    receiver.reply_once(Reply::status("410 Gone", ""));
    let mut db = stack.database.connect().await;
    happens(&stack, &mut db, "cart", 1).await;
    let told = watch.next_of("webhook.disabled").await;
    let reason = told.data.unwrap().fields["reason"].kind.clone().unwrap();
    assert_eq!(reason, prost_types::value::Kind::StringValue("GONE".to_owned()));
    let webhook = get_webhook(&caller, &webhook_id).await;
    assert_eq!((webhook.disabled, webhook.disable_reason()), (true, WebhookDisableReason::Gone));
    // Missed: nobody is told of it.
    happens(&stack, &mut db, "cart", 2).await;
    stack.advance(TimeDelta::hours(1));
    let enabled = UpdateWebhookRequest {
        webhook: Some(Webhook { disabled: false, ..webhook }),
        request_id: String::new(),
    };
    caller.webhooks().update_webhook(enabled).await.answer();
    happens(&stack, &mut db, "cart", 3).await;
    attempted(&caller, &webhook_id, 3).await;
    let numbers: Vec<_> = by_subject(&receiver).remove("cart").unwrap();
    assert_eq!(numbers, [1, 3]);
}

#[tokio::test]
async fn five_days_of_nothing_but_failures_disable_a_webhook() {
    let (stack, caller, receiver, webhook_id, _) = start().await;
    receiver.reply(Reply::status("500 Oops", ""));
    let began = stack.now();
    let mut db = stack.database.connect().await;
    for n in 0..10 {
        happens(&stack, &mut db, "cart", n).await;
    }
    let mut so_far = 0;
    while !get_webhook(&caller, &webhook_id).await.disabled {
        // A dead letter makes way for the next delivery at once.
        so_far = attempts(&attempted(&caller, &webhook_id, so_far + 1).await);
        stack.advance((next_attempt_at(&stack).await - stack.now()).max(TimeDelta::zero()));
    }
    assert!(stack.now() - began >= TimeDelta::days(5) && stack.now() - began < TimeDelta::days(6));
    let webhook = get_webhook(&caller, &webhook_id).await;
    assert_eq!(webhook.disable_reason(), WebhookDisableReason::Failing);
    let dead = deliveries(&caller, &webhook_id).await;
    let dead = dead
        .iter()
        .filter(|delivery| delivery.state() == DeliveryState::DeadLettered)
        .count();
    assert!((4..=5).contains(&dead), "{dead}");
}

#[tokio::test]
async fn eight_writers_events_arrive_once_each_and_in_order() {
    const EVENTS: usize = 40;
    let (stack, caller, receiver, webhook_id, _) = start().await;
    let write = async |writer: usize| {
        let mut db = stack.database.connect().await;
        for n in 0..EVENTS {
            let mut tx = sqlx::Connection::begin(&mut db).await.unwrap();
            let event = event(&stack, &format!("writer-{writer}"), n);
            session_svc::OUTBOX.append(&mut tx, &event).await.unwrap();
            if n % 7 == writer {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            tx.commit().await.unwrap();
        }
    };
    futures_util::future::join_all((0..8).map(write)).await;
    attempted(&caller, &webhook_id, i32::try_from(8 * EVENTS).unwrap()).await;
    assert_eq!(receiver.received().len(), 8 * EVENTS);
    for (writer, numbers) in by_subject(&receiver) {
        assert_eq!(numbers, (0..EVENTS as u64).collect::<Vec<_>>(), "{writer}");
    }
}

/// The cursor may end exactly where a page does.
#[tokio::test]
async fn many_events_of_one_transaction_arrive_and_so_does_the_next() {
    let (stack, caller, receiver, webhook_id, _) = start().await;
    let mut db = stack.database.connect().await;
    let events: Vec<_> = (0..200).map(|n| event(&stack, &format!("cart-{n}"), n)).collect();
    session_svc::OUTBOX.append_all(&mut db, &events).await.unwrap();
    attempted(&caller, &webhook_id, 200).await;
    happens(&stack, &mut db, "the next", 0).await;
    attempted(&caller, &webhook_id, 201).await;
    assert_eq!(by_subject(&receiver).len(), 201);
}

#[tokio::test]
async fn the_log_is_narrowed_by_state_and_comes_in_pages_and_is_forgotten_after_a_week() {
    let (stack, caller, receiver, webhook_id, _) = start().await;
    let mut db = stack.database.connect().await;
    for n in 0..5 {
        receiver.reply_once(Reply::status(if n % 2 == 0 { "200 OK" } else { "400 Bad" }, "what?"));
        happens(&stack, &mut db, &format!("cart-{n}"), n).await;
        attempted(&caller, &webhook_id, i32::try_from(n + 1).unwrap()).await;
    }
    let failed = ListDeliveriesRequest {
        webhook_id: webhook_id.clone(),
        states: vec![DeliveryState::Pending.into()],
        page_size: 1,
        page_token: String::new(),
    };
    let first = caller.webhooks().list_deliveries(failed.clone()).await.answer();
    let next = ListDeliveriesRequest { page_token: first.next_page_token, ..failed };
    let last = caller.webhooks().list_deliveries(next).await.answer();
    assert_eq!(last.next_page_token, "");
    for (page, subject) in [(&first.deliveries, "cart-3"), (&last.deliveries, "cart-1")] {
        let attempt = page[0].last_attempt.as_ref().unwrap();
        assert_eq!((page.len(), page[0].subject.as_str()), (1, subject));
        assert_eq!((attempt.http_status, attempt.response_excerpt.as_str()), (400, "what?"));
        assert!(attempt.error.contains("400") && attempt.latency.is_some());
    }
    let kept = stack.database.count("select count(*) from session.webhook_deliveries").await;
    assert_eq!(kept, 5);
    // Nothing waits any more: a delivery that is being tried is left to the next pass.
    stack.advance(TimeDelta::hours(1));
    attempted(&caller, &webhook_id, 7).await;
    stack.advance(TimeDelta::days(7));
    // The pass comes once a minute; a new replica begins with one.
    let replica = stack.session_svc(&crate::harness::Options::default());
    eventually("nothing is left", || async {
        let left = stack.database.count("select count(*) from session.webhook_deliveries").await;
        (left == 0).then_some(())
    })
    .await;
    replica.stop().await;
}
