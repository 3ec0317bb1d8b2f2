//! Webhooks as they are registered: what is taken, what is shown, and that a secret is shown once.

use prost_types::Duration;
use shared::issuer::Grant;
use shared::pb::common::{
    CreateWebhookRequest, DeleteWebhookRequest, GetWebhookRequest, ListWebhooksRequest, PingWebhookRequest,
    ReplayDeliveriesRequest, RotateWebhookSecretRequest, UpdateWebhookRequest, Webhook, WebhookDisableReason,
};
use tonic::Code;

use crate::harness::hook::{KIND, arrived, create_webhook, get_webhook, happens, to};
use crate::harness::{Answer as _, Caller, Receiver, Reply, Stack, Watch, workload};

const ID: &str = "7f8a2c7e-4b0e-4c55-9a38-2f4f7c0f5a11";

async fn update(caller: &Caller, webhook: Webhook) -> Webhook {
    let request = UpdateWebhookRequest { webhook: Some(webhook), request_id: String::new() };
    caller.webhooks().update_webhook(request).await.answer().webhook.unwrap()
}

#[tokio::test]
async fn a_webhook_is_what_was_asked_for_until_it_is_deleted() {
    let (stack, receiver) = (Stack::sessions(), Receiver::start());
    let caller = stack.caller(&workload("shop-backend"));
    let mut watch = Watch::open(caller.session_events()).await;
    let asked = Webhook {
        types: vec!["session.revoked".to_owned(), "cart.".to_owned(), "cart.".to_owned()],
        description: "the ERP".to_owned(),
        ..to(&receiver)
    };
    let made = create_webhook(&caller, asked).await.webhook.unwrap();
    assert!(made.webhook_id.starts_with("whk_"), "{made:?}");
    assert_eq!(made.types, ["cart.", "session.revoked"]);
    assert_eq!((made.description.as_str(), made.disabled, made.etag.as_str()), ("the ERP", false, "v1"));
    assert_eq!(get_webhook(&caller, &made.webhook_id).await, made);
    let event = watch.next_of("webhook.created").await;
    assert_eq!(
        (event.subject, event.principal.as_str()),
        (made.webhook_id.clone(), "tandem-local|shop-backend")
    );

    let changed = update(&caller, Webhook { disabled: true, types: vec![], ..made.clone() }).await;
    assert_eq!((changed.etag.as_str(), changed.disabled, changed.types.len()), ("v2", true, 0));
    assert_eq!(changed.disable_reason(), WebhookDisableReason::Requested);
    let stale = UpdateWebhookRequest { webhook: Some(made.clone()), request_id: String::new() };
    caller
        .webhooks()
        .update_webhook(stale)
        .await
        .refused(Code::Aborted, "ETAG_MISMATCH");

    let delete = DeleteWebhookRequest { webhook_id: made.webhook_id.clone(), request_id: ID.to_owned() };
    caller.webhooks().delete_webhook(delete.clone()).await.answer();
    caller.webhooks().delete_webhook(delete).await.answer();
    let get = GetWebhookRequest { webhook_id: made.webhook_id };
    caller
        .webhooks()
        .get_webhook(get)
        .await
        .refused(Code::NotFound, "WEBHOOK_NOT_FOUND");
    watch.next_of("webhook.deleted").await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let (stack, receiver) = (Stack::sessions(), Receiver::start());
    let caller = stack.caller(&workload("shop-backend"));
    let good = to(&receiver);
    let bad = [
        ("webhook", None),
        ("webhook.url", Some(Webhook { url: "ftp://example.com".to_owned(), ..good.clone() })),
        ("webhook.url", Some(Webhook { url: "https://u:p@example.com".to_owned(), ..good.clone() })),
        ("webhook.types", Some(Webhook { types: vec![KIND.to_owned(); 33], ..good.clone() })),
        (
            "webhook.types[1]",
            Some(Webhook { types: vec!["cart.".into(), "cart.burnt".into()], ..good.clone() }),
        ),
        ("webhook.types[0]", Some(Webhook { types: vec![String::new()], ..good.clone() })),
        ("webhook.description", Some(Webhook { description: "a\u{7}b".to_owned(), ..good.clone() })),
    ];
    for (field, webhook) in bad {
        let request = CreateWebhookRequest { webhook, request_id: String::new() };
        let status = caller.webhooks().create_webhook(request).await;
        let status = status.refused(Code::InvalidArgument, "FIELD_INVALID");
        assert!(status.message().starts_with(&format!("{field}: ")), "{field}: {}", status.message());
    }
    let limited = stack.caller(&Grant { touchpoints: Some(vec!["web".to_owned()]), ..workload("pos") });
    let request = CreateWebhookRequest { webhook: Some(good.clone()), request_id: String::new() };
    let refused = limited.webhooks().create_webhook(request.clone()).await;
    refused.refused(Code::PermissionDenied, "CALLER_TOUCHPOINT_REFUSED");
    let webhook_id = create_webhook(&caller, good).await.webhook.unwrap().webhook_id;
    let week = Duration { seconds: 7 * 24 * 3600 + 1, nanos: 0 };
    let rotate = RotateWebhookSecretRequest {
        webhook_id: webhook_id.clone(),
        overlap: Some(week),
        ..Default::default()
    };
    caller
        .webhooks()
        .rotate_webhook_secret(rotate)
        .await
        .refused(Code::InvalidArgument, "FIELD_INVALID");
    let replay =
        ReplayDeliveriesRequest { webhook_id, event_ids: vec!["x".to_owned()], ..Default::default() };
    caller
        .webhooks()
        .replay_deliveries(replay)
        .await
        .refused(Code::InvalidArgument, "FIELD_INVALID");
}

#[tokio::test]
async fn a_tenant_has_so_many_webhooks_also_when_they_are_made_at_once() {
    let (stack, receiver) = (Stack::sessions(), Receiver::start());
    let caller = stack.caller(&workload("shop-backend"));
    let create = || {
        let request = CreateWebhookRequest { webhook: Some(to(&receiver)), request_id: String::new() };
        let mut client = caller.webhooks();
        async move { client.create_webhook(request).await }
    };
    let all = futures_util::future::join_all((0..40).map(|_| create())).await;
    let (made, refused): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
    assert_eq!((made.len(), refused.len()), (32, 8));
    for one in refused {
        one.refused(Code::ResourceExhausted, "WEBHOOK_LIMIT");
    }
    let mut seen = vec![];
    let mut page_token = String::new();
    loop {
        let request = ListWebhooksRequest { page_size: 15, page_token };
        let page = caller.webhooks().list_webhooks(request).await.answer();
        seen.extend(page.webhooks.into_iter().map(|webhook| webhook.webhook_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert!(seen.is_sorted() && seen.len() == 32, "{seen:?}");
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..workload("shop-backend") });
    create_webhook(&acme, to(&receiver)).await;
}

#[tokio::test]
async fn a_repeated_request_gets_the_same_secret_and_the_database_has_none() {
    let (stack, receiver) = (Stack::sessions(), Receiver::start());
    let caller = stack.caller(&workload("shop-backend"));
    let create = CreateWebhookRequest { webhook: Some(to(&receiver)), request_id: ID.to_owned() };
    let first = caller.webhooks().create_webhook(create.clone()).await.answer();
    let second = caller.webhooks().create_webhook(create).await.answer();
    assert_eq!((first.webhook.as_ref(), &first.secret), (second.webhook.as_ref(), &second.secret));
    assert!(first.secret.starts_with("whsec_") && first.secret.len() == 50, "{}", first.secret.len());
    assert!(!format!("{first:?}").contains(&first.secret));
    let webhook_id = first.webhook.unwrap().webhook_id;
    let rotate = RotateWebhookSecretRequest { webhook_id, request_id: ID.to_owned(), ..Default::default() };
    let rotated = caller.webhooks().rotate_webhook_secret(rotate.clone()).await.answer();
    let again = caller.webhooks().rotate_webhook_secret(rotate).await.answer();
    assert_eq!((&rotated.secret, rotated.webhook), (&again.secret, again.webhook));
    assert_ne!(rotated.secret, first.secret);
    let everything = stack.database.dump().await;
    for secret in [first.secret, rotated.secret] {
        assert!(!everything.contains(&secret) && !everything.contains(&secret["whsec_".len()..]));
    }
}

#[tokio::test]
async fn both_secrets_sign_until_the_overlap_ends() {
    let (stack, receiver) = (Stack::sessions(), Receiver::start());
    let caller = stack.caller(&workload("shop-backend"));
    let made = create_webhook(&caller, to(&receiver)).await;
    let webhook_id = made.webhook.unwrap().webhook_id;
    let overlap = Some(Duration { seconds: 3600, nanos: 0 });
    let rotate = RotateWebhookSecretRequest { webhook_id, overlap, request_id: String::new() };
    let rotated = caller.webhooks().rotate_webhook_secret(rotate).await.answer();
    let expires = rotated.webhook.unwrap().old_secret_expire_time.unwrap();
    assert_eq!(expires.seconds, stack.now().timestamp() + 3600);
    let mut db = stack.database.connect().await;
    for (n, is_over) in [(0, false), (1, true)] {
        happens(&stack, &mut db, "cart", n).await;
        arrived(&receiver, n + 1).await;
        let request = &receiver.received()[n];
        assert_eq!(request.headers["webhook-signature"].split(' ').count(), if is_over { 1 } else { 2 });
        assert!(request.is_signed_with(&rotated.secret));
        assert_eq!(request.is_signed_with(&made.secret), !is_over);
        stack.advance(chrono::TimeDelta::hours(1));
    }
}

#[tokio::test]
async fn a_ping_tells_how_the_receiver_answered_and_counts_for_nothing() {
    let (stack, receiver) = (Stack::sessions(), Receiver::start());
    let caller = stack.caller(&workload("shop-backend"));
    let made = create_webhook(&caller, Webhook { disabled: true, ..to(&receiver) }).await;
    let webhook_id = made.webhook.unwrap().webhook_id;
    let ping = async || {
        let request = PingWebhookRequest { webhook_id: webhook_id.clone() };
        caller.webhooks().ping_webhook(request).await.answer().attempt.unwrap()
    };
    let attempt = ping().await;
    assert_eq!((attempt.http_status, attempt.error.as_str()), (200, ""));
    let request = &receiver.received()[0];
    assert!(request.is_signed_with(&made.secret));
    let event = request.event();
    assert_eq!((&event["type"], &event["subject"]), (&"webhook.ping".into(), &webhook_id.as_str().into()));
    receiver.reply(Reply::status("500 Oops", "the queue is full"));
    let attempt = ping().await;
    assert_eq!(attempt.http_status, 500);
    assert_eq!(attempt.response_excerpt, "the queue is full");
    drop(receiver);
    let attempt = ping().await;
    assert!(attempt.http_status == 0 && attempt.error.contains("onnect"), "{attempt:?}");
    assert_eq!(get_webhook(&caller, &webhook_id).await.failing_since_time, None);
}
