//! Webhooks of a real process: what it was sending when it was killed arrives all the same; and the receiver that the
//! documentation shows takes what comes.

use std::collections::BTreeSet;
use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Duration;

use shared::pb::common::webhook_service_client::WebhookServiceClient;
use shared::pb::common::{CreateWebhookRequest, CreateWebhookResponse, PingWebhookRequest, Webhook};
use shared::pb::session::CreateTouchpointRequest;
use shared::pb::session::Touchpoint;
use shared::pb::session::touchpoint_service_client::TouchpointServiceClient;
use tonic::transport::Channel;

use crate::harness::{Stack, channel, repository};
use crate::process::{self, eventually, free_address, signal};
use crate::receiver::{Receiver, Reply};

/// Of the lease, and for what was waiting behind it.
const LEASE_LIMIT: Duration = Duration::from_secs(75);
const UP_LIMIT: Duration = Duration::from_secs(20);
const BEFORE: usize = 30;
const AFTER: usize = 10;

fn webhooks(stack: &Stack) -> WebhookServiceClient<Channel> {
    WebhookServiceClient::new(channel(stack.session_address()))
}

async fn create(stack: &Stack, url: String) -> CreateWebhookResponse {
    let webhook = Webhook { url, types: vec!["touchpoint.".to_owned()], ..Webhook::default() };
    let request = CreateWebhookRequest { webhook: Some(webhook), request_id: String::new() };
    webhooks(stack)
        .create_webhook(stack.ask(request))
        .await
        .expect("a webhook is made")
        .into_inner()
}

/// Each makes an event about a subject of its own.
async fn create_touchpoint(stack: &Stack, name: &str) {
    let touchpoint = Touchpoint { touchpoint: name.to_owned(), ..Touchpoint::default() };
    let request =
        CreateTouchpointRequest { touchpoint: Some(touchpoint), ..CreateTouchpointRequest::default() };
    let made = eventually(UP_LIMIT, async || {
        let mut client = TouchpointServiceClient::new(channel(stack.session_address()));
        client.create_touchpoint(stack.ask(request.clone())).await.ok()
    });
    assert!(made.await.is_some(), "no touchpoint {name}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_on_its_way_when_session_svc_was_killed_arrives() {
    let (stack, receiver) = (Stack::start("webhook", &[]), Receiver::start());
    // So that some are under way when it happens.
    receiver.reply(Reply::Late(Duration::from_millis(300)));
    let made = create(&stack, receiver.url()).await;
    let mut names = BTreeSet::new();
    for n in 0..BEFORE {
        names.insert(format!("t-{n}"));
        create_touchpoint(&stack, &format!("t-{n}")).await;
    }
    let under_way = eventually(UP_LIMIT, async || (receiver.received().len() >= 5).then_some(()));
    assert_eq!(under_way.await, Some(()), "nothing is sent");
    signal("KILL", stack.running().session);
    receiver.reply(Reply::status("200 OK", ""));
    for n in BEFORE..BEFORE + AFTER {
        names.insert(format!("t-{n}"));
        create_touchpoint(&stack, &format!("t-{n}")).await;
    }
    let subjects = || {
        let subject =
            |request: crate::receiver::Received| request.event()["subject"].as_str().map(str::to_owned);
        receiver.received().into_iter().filter_map(subject).collect::<BTreeSet<_>>()
    };
    let all = eventually(LEASE_LIMIT, async || (subjects() == names).then_some(()));
    assert_eq!(all.await, Some(()), "missing: {:?}", names.difference(&subjects()));
    assert!(receiver.received().iter().all(|request| request.is_signed_with(&made.secret)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_receiver_of_the_documentation_takes_what_is_genuine() {
    if Command::new("python3").arg("--version").output().is_err() {
        process::say("SKIPPED, NOT CHECKED: there is no python3");
        return;
    }
    let stack = Stack::start("receiver", &[]);
    let address = free_address();
    let made = create(&stack, format!("http://{address}/events")).await;
    let docs = process::read(&repository("docs/events.md"));
    let script = docs.split("```python\n").nth(1).and_then(|rest| rest.split("```").next());
    std::fs::write(stack.path("receiver.py"), script.expect("docs/events.md has a receiver"))
        .expect("a file");
    let wrong = made.secret.replace("whsec_", "whsec_AAAA");
    for (secret, status) in [(&wrong, 401), (&made.secret, 204)] {
        let out = File::create(stack.path("receiver.out")).expect("a file");
        let mut command = Command::new("python3");
        command
            .arg(stack.path("receiver.py"))
            .args([secret, &address.port().to_string()]);
        let mut child = stack.folder.spawn(command.stdout(out).stderr(Stdio::null()));
        let webhook_id = made.webhook.clone().expect("a webhook").webhook_id;
        let answered = eventually(UP_LIMIT, async || {
            let ping = PingWebhookRequest { webhook_id: webhook_id.clone() };
            let answer = webhooks(&stack).ping_webhook(stack.ask(ping)).await.expect("a ping");
            answer.into_inner().attempt.filter(|attempt| attempt.http_status != 0)
        });
        assert_eq!(answered.await.map(|attempt| attempt.http_status), Some(status));
        assert_eq!(stack.log("receiver.out").contains("webhook.ping"), status == 204);
        signal("INT", child.id());
        stack.folder.wait(&mut child, UP_LIMIT);
    }
}
