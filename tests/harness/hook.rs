//! Sentences about webhooks: something happens, it was attempted so often, it is delivered.

use std::collections::BTreeMap;

use serde_json::json;
use shared::outbox::Event;
use shared::pb::common::{
    CreateWebhookRequest, CreateWebhookResponse, Delivery, GetWebhookRequest, ListDeliveriesRequest, Webhook,
};
use sqlx::PgConnection;

use super::{Answer as _, Caller, Receiver, Stack, eventually};

/// What the webhooks of these tests ask for.
pub(crate) const KIND: &str = "cart.line_set";

/// A webhook that asks for [`KIND`] only.
pub(crate) fn to(receiver: &Receiver) -> Webhook {
    Webhook { url: receiver.url(), types: vec![KIND.to_owned()], ..Webhook::default() }
}

pub(crate) async fn create_webhook(caller: &Caller, webhook: Webhook) -> CreateWebhookResponse {
    let request = CreateWebhookRequest { webhook: Some(webhook), request_id: String::new() };
    caller.webhooks().create_webhook(request).await.answer()
}

pub(crate) async fn get_webhook(caller: &Caller, webhook_id: &str) -> Webhook {
    let request = GetWebhookRequest { webhook_id: webhook_id.to_owned() };
    caller.webhooks().get_webhook(request).await.answer().webhook.unwrap()
}

/// The newest first.
pub(crate) async fn deliveries(caller: &Caller, webhook_id: &str) -> Vec<Delivery> {
    let request = ListDeliveriesRequest {
        webhook_id: webhook_id.to_owned(),
        page_size: 1000,
        ..ListDeliveriesRequest::default()
    };
    caller.webhooks().list_deliveries(request).await.answer().deliveries
}

/// All attempts that were written down.
pub(crate) fn attempts(deliveries: &[Delivery]) -> i32 {
    deliveries.iter().map(|delivery| delivery.attempts).sum()
}

/// Until so many attempts are written down.
pub(crate) async fn attempted(caller: &Caller, webhook_id: &str, times: i32) -> Vec<Delivery> {
    eventually("so many attempts", || async {
        let deliveries = deliveries(caller, webhook_id).await;
        (attempts(&deliveries) >= times).then_some(deliveries)
    })
    .await
}

/// Until so many requests came.
pub(crate) async fn arrived(receiver: &Receiver, count: usize) {
    eventually("so many requests", || async { (receiver.received().len() >= count).then_some(()) }).await;
}

/// Something that happens to a subject of tenant `shop`, counted by `n`.
pub(crate) fn event(stack: &Stack, subject: &str, n: usize) -> Event {
    Event {
        tenant: "shop".parse().unwrap(),
        kind: KIND,
        subject: subject.to_owned(),
        principal: "system".to_owned(),
        at: stack.now(),
        data: json!({"n": n}),
        trace_parent: String::new(),
    }
}

/// It happens, in a transaction of its own.
pub(crate) async fn happens(stack: &Stack, db: &mut PgConnection, subject: &str, n: usize) {
    session_svc::OUTBOX.append(db, &event(stack, subject, n)).await.unwrap();
}

/// What came of each subject, in the order in which it came; what came again is left out.
pub(crate) fn by_subject(receiver: &Receiver) -> BTreeMap<String, Vec<u64>> {
    let mut came: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for request in receiver.received() {
        let event = request.event();
        let (subject, n) =
            (event["subject"].as_str().unwrap().to_owned(), event["data"]["n"].as_u64().unwrap());
        let numbers = came.entry(subject).or_default();
        if !numbers.contains(&n) {
            numbers.push(n);
        }
    }
    came
}
