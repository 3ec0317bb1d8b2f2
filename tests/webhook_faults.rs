//! Webhooks beside faults and each other: two replicas send each attempt once, and one that dies keeps nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::TimeDelta;
use shared::pb::common::Webhook;

use crate::harness::hook::{arrived, attempted, by_subject, create_webhook, happens, to};
use crate::harness::{Options, Receiver, Reply, Stack, workload};

#[tokio::test]
async fn two_replicas_send_each_attempt_once() {
    const SUBJECTS: usize = 30;
    let (mut stack, receiver) = (Stack::sessions(), Receiver::start());
    let other = stack.session_svc(&Options::default());
    let caller = stack.caller(&workload("shop-backend"));
    // So that both have something to do.
    receiver.reply(Reply::Late(Duration::from_millis(30)));
    let mut webhooks = vec![];
    for _ in 0..2 {
        webhooks.push(create_webhook(&caller, to(&receiver)).await.webhook.unwrap().webhook_id);
    }
    let mut db = stack.database.connect().await;
    for n in 0..4 {
        for subject in 0..SUBJECTS {
            happens(&stack, &mut db, &format!("cart-{subject}"), n).await;
        }
    }
    for webhook_id in &webhooks {
        attempted(&caller, webhook_id, i32::try_from(4 * SUBJECTS).unwrap()).await;
    }
    assert_eq!(receiver.received().len(), 2 * 4 * SUBJECTS);
    for (subject, numbers) in by_subject(&receiver) {
        assert_eq!(numbers, [0, 1, 2, 3], "{subject}");
    }
    other.stop().await;
    stack.stop_session().await;
}

#[tokio::test]
async fn what_a_dead_replica_was_sending_is_sent_again_when_its_lease_ends() {
    let (mut stack, receiver) = (Stack::sessions(), Receiver::start());
    let caller = stack.caller(&workload("shop-backend"));
    let webhook_id = create_webhook(&caller, to(&receiver)).await.webhook.unwrap().webhook_id;
    receiver.reply_once(Reply::Nothing);
    let mut db = stack.database.connect().await;
    happens(&stack, &mut db, "cart", 1).await;
    happens(&stack, &mut db, "cart", 2).await;
    arrived(&receiver, 1).await;
    // Midway: it never writes down what it did.
    drop(stack.session.take());
    stack.session = Some(stack.session_svc(&Options::default()));
    let caller = stack.caller(&workload("shop-backend"));
    happens(&stack, &mut db, "other", 1).await;
    // The new one works, and leaves alone what another one may be sending.
    attempted(&caller, &webhook_id, 1).await;
    assert_eq!(receiver.received().len(), 2);
    stack.advance(TimeDelta::seconds(30));
    attempted(&caller, &webhook_id, 3).await;
    let ids: Vec<_> = receiver
        .received()
        .into_iter()
        .map(|request| request.headers["webhook-id"].clone())
        .collect();
    assert_eq!((ids.len(), ids.iter().collect::<BTreeSet<_>>().len()), (4, 3));
    assert_eq!(ids[0], ids[2], "the same id, so that the receiver knows it");
    assert_eq!(by_subject(&receiver)["cart"], [1, 2]);
}

#[tokio::test]
async fn a_slow_receiver_does_not_hold_up_another() {
    let (stack, slow, quick) = (Stack::sessions(), Receiver::start(), Receiver::start());
    let caller = stack.caller(&workload("shop-backend"));
    slow.reply(Reply::Nothing);
    create_webhook(&caller, to(&slow)).await;
    let webhook_id = create_webhook(&caller, to(&quick)).await.webhook.unwrap().webhook_id;
    let mut db = stack.database.connect().await;
    for subject in 0..100 {
        happens(&stack, &mut db, &format!("cart-{subject}"), 1).await;
    }
    attempted(&caller, &webhook_id, 100).await;
    assert!(slow.received().len() < 16, "{}", slow.received().len());
}

#[tokio::test]
async fn release_svc_tells_its_receivers_too() {
    let (stack, receiver) = (Stack::releases(), Receiver::start());
    let caller = stack.caller(&workload("ci"));
    let webhook = Webhook { url: receiver.url(), types: vec!["component.".to_owned()], ..Webhook::default() };
    let request =
        shared::pb::common::CreateWebhookRequest { webhook: Some(webhook), request_id: String::new() };
    let made = caller.release_webhooks().create_webhook(request).await.unwrap().into_inner();
    crate::harness::shop::create_catalog(&caller).await;
    arrived(&receiver, 1).await;
    let request = &receiver.received()[0];
    assert!(request.is_signed_with(&made.secret));
    assert!(request.headers["webhook-id"].starts_with("release_"));
    let event = request.event();
    assert_eq!(
        (&event["source"], &event["type"]),
        (&"/tandem/release/shop".into(), &"component.created".into())
    );
}
