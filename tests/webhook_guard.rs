//! Where webhooks do not go: private addresses, plain http, redirects; and how little of an answer is waited for or read.

use std::time::{Duration, Instant};

use shared::pb::common::{
    CreateWebhookRequest, DeliveryState, PingWebhookRequest, UpdateWebhookRequest, Webhook,
};
use tonic::Code;

use crate::harness::hook::{attempted, create_webhook, deliveries, happens, to};
use crate::harness::{Answer as _, Options, Receiver, Reply, Stack, eventually, workload};

/// What a service has that nobody configured otherwise.
fn strict() -> Options {
    Options { webhook_networks: shared::webhook::Networks::default(), ..Options::default() }
}

#[tokio::test]
async fn a_private_address_is_refused_however_it_is_written() {
    let mut stack = Stack::prepare();
    stack.session = Some(stack.session_svc(&strict()));
    let caller = stack.caller(&workload("shop-backend"));
    let refused = [
        "https://127.0.0.1/",
        "https://localhost:8443/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[fd00:ec2::254]/",
        "https://2130706433/",
        "https://0x7f.1/",
        "http://127.0.0.1/",
        "http://1.1.1.1/",
    ];
    for url in refused {
        let webhook = Some(Webhook { url: url.to_owned(), ..Webhook::default() });
        let request = CreateWebhookRequest { webhook, request_id: String::new() };
        let answer = caller.webhooks().create_webhook(request).await;
        let status = answer.refused(Code::FailedPrecondition, "WEBHOOK_TARGET_REFUSED");
        assert!(!status.message().contains("127.0.0.1"), "{}", status.message());
    }
    let public = Webhook { url: "https://1.1.1.1/events".to_owned(), ..Webhook::default() };
    let made = create_webhook(&caller, public).await.webhook.unwrap();
    let moved = Webhook { url: "https://192.168.1.1/".to_owned(), ..made };
    let request = UpdateWebhookRequest { webhook: Some(moved), request_id: String::new() };
    let answer = caller.webhooks().update_webhook(request).await;
    answer.refused(Code::FailedPrecondition, "WEBHOOK_TARGET_REFUSED");
}

#[tokio::test]
async fn an_address_that_turns_private_is_not_connected_to() {
    let (mut stack, receiver) = (Stack::sessions(), Receiver::start());
    let caller = stack.caller(&workload("shop-backend"));
    let url = receiver.url().replace("127.0.0.1", "localhost");
    let made = create_webhook(&caller, Webhook { url, ..to(&receiver) }).await.webhook.unwrap();
    stack.stop_session().await;
    stack.session = Some(stack.session_svc(&strict()));
    let caller = stack.caller(&workload("shop-backend"));
    let mut db = stack.database.connect().await;
    happens(&stack, &mut db, "cart", 1).await;
    let [delivery] = &attempted(&caller, &made.webhook_id, 1).await[..] else { panic!() };
    let attempt = delivery.last_attempt.as_ref().unwrap();
    assert!(attempt.error.contains("may not be sent to"), "{attempt:?}");
    assert_eq!((delivery.state(), receiver.received().len()), (DeliveryState::Pending, 0));
    let ping = PingWebhookRequest { webhook_id: made.webhook_id };
    let attempt = caller.webhooks().ping_webhook(ping).await.answer().attempt.unwrap();
    assert!(attempt.error.contains("may not be sent to"), "{attempt:?}");
    assert_eq!(receiver.received().len(), 0);
}

#[tokio::test]
async fn a_redirect_is_a_failure_and_leads_nowhere() {
    let (stack, receiver, elsewhere) = (Stack::sessions(), Receiver::start(), Receiver::start());
    let caller = stack.caller(&workload("shop-backend"));
    let made = create_webhook(&caller, to(&receiver)).await.webhook.unwrap();
    let location = elsewhere.url();
    receiver.reply(Reply::status(&format!("307 Temporary Redirect\r\nlocation: {location}"), ""));
    let mut db = stack.database.connect().await;
    happens(&stack, &mut db, "cart", 1).await;
    let [delivery] = &attempted(&caller, &made.webhook_id, 1).await[..] else { panic!() };
    let attempt = delivery.last_attempt.as_ref().unwrap();
    assert_eq!((attempt.http_status, delivery.state()), (307, DeliveryState::Pending));
    assert!(attempt.error.contains("redirects are not followed"), "{}", attempt.error);
    assert_eq!((receiver.received().len(), elsewhere.received().len()), (1, 0));
}

/// The one test that waits: for an answer that does not come, which no clock of ours decides.
#[tokio::test]
async fn silent_and_endless_answers_end_in_time_and_leave_an_excerpt() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("shop-backend"));
    let replies = [
        (Reply::Nothing, DeliveryState::Pending, "no answer within 10 s", 0),
        (Reply::Endless("500 Oops"), DeliveryState::Pending, "answered 500", 256),
        (Reply::Endless("200 OK"), DeliveryState::Delivered, "", 0),
    ];
    let mut webhooks = vec![];
    for (reply, state, error, excerpt) in replies {
        let receiver = Receiver::start();
        receiver.reply(reply);
        let made = create_webhook(&caller, to(&receiver)).await.webhook.unwrap();
        webhooks.push((receiver, made.webhook_id, state, error, excerpt));
    }
    let (began, mut db) = (Instant::now(), stack.database.connect().await);
    happens(&stack, &mut db, "cart", 1).await;
    for (_receiver, webhook_id, state, error, excerpt) in &webhooks {
        let delivery = eventually("an attempt", || async {
            let delivery = deliveries(&caller, webhook_id).await.pop()?;
            (delivery.attempts == 1).then_some(delivery)
        });
        let delivery = delivery.await;
        let attempt = delivery.last_attempt.clone().unwrap();
        assert_eq!(delivery.state(), *state, "{attempt:?}");
        assert!(
            attempt.error.starts_with(error) && attempt.error.is_empty() == error.is_empty(),
            "{attempt:?}"
        );
        assert_eq!(attempt.response_excerpt.len(), *excerpt);
        assert!(began.elapsed() < Duration::from_secs(14), "{:?}", began.elapsed());
    }
}
