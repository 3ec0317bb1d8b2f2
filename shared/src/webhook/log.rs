//! `WebhookService`, the same in both services: what became of deliveries, those that are made again, and trying out.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use tonic::Request;

use super::Webhooks;
use super::cloud_event::{body, ping};
use super::delivery::{Delivery, REPLAY_MAX, Selection};
use super::dispatch::KEY_RETIRED;
use super::rpc::{no_webhook, unlimited};
use super::sender::{Attempt, Message};
use crate::mutation::{Begun, Call};
use crate::page::{self, List};
use crate::parse::{at_most, known, parse};
use crate::pb::common as pb;
use crate::status::{Failure, Reason, Refusal};
use crate::time::{duration_to_proto, from_proto, to_proto};

const EVENTS_MAX: usize = 1000;

impl Webhooks {
    pub(super) async fn try_out(
        &self,
        request: Request<pb::PingWebhookRequest>,
    ) -> Result<pb::PingWebhookResponse, Failure> {
        let caller = unlimited(&request)?;
        let pb::PingWebhookRequest { webhook_id } = request.into_inner();
        let webhook = self.required(&caller.tenant, parse("webhook_id", &webhook_id)?).await?;
        // Held for as long as the receiver takes, so that few calls wait for strangers.
        let Ok(_place) = self.pings.try_acquire() else {
            let refusal = Refusal::new(Reason::Overloaded, "too many webhooks are being tried out");
            return Err(refusal.retry_after(Duration::from_secs(1)).into());
        };
        let (now, id) = (self.clock.now(), webhook.id);
        let old = webhook
            .old_salt
            .as_deref()
            .filter(|_| webhook.old_salt_until.is_some_and(|until| now < until));
        let event = ping(&caller.tenant, id, &caller.principal, now);
        let body = body(self.outbox.schema, &event);
        let message = Message {
            url: &webhook.url,
            id: self.message_id(event.id),
            body: &body,
            trace_parent: &event.trace_parent,
        };
        let attempt = match self.signing_keys(&caller.tenant, id, [Some(&webhook.salt), old]) {
            Some(keys) => self.sender.send(&message, &keys, now).await,
            None => Attempt::failed(now, KEY_RETIRED),
        };
        Ok(pb::PingWebhookResponse { attempt: Some(attempt.into()) })
    }

    pub(super) async fn list_log(
        &self,
        request: Request<pb::ListDeliveriesRequest>,
    ) -> Result<pb::ListDeliveriesResponse, Failure> {
        let caller = unlimited(&request)?;
        let pb::ListDeliveriesRequest { webhook_id, states, page_size, page_token } = request.into_inner();
        at_most("states", &states, 3)?;
        let name = |number: &i32| known("states", *number).map(state_name);
        let states: BTreeSet<_> = states.iter().map(name).collect::<Result<_, _>>()?;
        let states: Vec<_> = states.into_iter().map(str::to_owned).collect();
        let webhook = self.required(&caller.tenant, parse("webhook_id", &webhook_id)?).await?;
        let filter = format!("{} {webhook_id} {}", self.outbox.schema, states.join(" "));
        let list = List { name: "ListDeliveries", tenant: &caller.tenant, filter: &filter };
        let (size, after) = (page::size(page_size)?, list.after(&self.keys, &page_token)?);
        let before = after.map_or(Ok(i64::MAX), |key| parse("page_token", &key))?;
        let mut db = self.db.connection().await?;
        let id = webhook.id;
        let mut rows = self
            .list_deliveries(&mut db, &caller.tenant, id, &states, before, size + 1)
            .await?;
        let key = |delivery: &Delivery| delivery.event_id.to_string();
        let next_page_token = list.cut(&self.keys, &mut rows, size, self.clock.now(), key)?;
        Ok(pb::ListDeliveriesResponse {
            deliveries: rows.into_iter().map(Into::into).collect(),
            next_page_token,
        })
    }

    pub(super) async fn deliver_again(
        &self,
        request: Request<pb::ReplayDeliveriesRequest>,
    ) -> Result<pb::ReplayDeliveriesResponse, Failure> {
        let (call, message) = Call::of(request, "ReplayDeliveries", |message| &mut message.request_id)?;
        call.caller.require_unlimited()?;
        let pb::ReplayDeliveriesRequest {
            webhook_id,
            event_ids,
            start_time,
            end_time,
            include_delivered,
            request_id: _,
        } = message;
        let id = parse("webhook_id", &webhook_id)?;
        at_most("event_ids", &event_ids, EVENTS_MAX)?;
        let instant = |field: &str, time: Option<prost_types::Timestamp>| {
            let instant = |time| from_proto(time).ok_or_else(|| Refusal::field(field, "must be an instant"));
            time.map(instant).transpose()
        };
        let selection = Selection {
            events: event_ids
                .iter()
                .map(|event| parse("event_ids", event))
                .collect::<Result<_, _>>()?,
            from: instant("start_time", start_time)?,
            until: instant("end_time", end_time)?,
            with_delivered: include_delivered,
        };
        let mut work = match self.begin::<pb::ReplayDeliveriesResponse>(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        // Not locked: deliveries come first. Of one that is deleted meanwhile nothing is left to be sent.
        let webhook = self.find(&mut work.tx, &work.actor.tenant, id).await?;
        webhook.ok_or_else(|| no_webhook(id))?;
        let (tenant, now) = (work.actor.tenant.clone(), work.now);
        let replayed = self.replay(&mut work.tx, &tenant, id, &selection, now).await?;
        if replayed > 0 {
            work.tell("webhook.replayed", id.to_string(), json!({"count": replayed}));
        }
        let answer = pb::ReplayDeliveriesResponse {
            replayed: i32::try_from(replayed).unwrap_or(i32::MAX),
            more: replayed == REPLAY_MAX,
        };
        let answer = work.answer(answer).await?;
        self.nudge.notify_one();
        Ok(answer)
    }
}

fn state_name(state: pb::DeliveryState) -> &'static str {
    state.as_str_name().trim_start_matches("DELIVERY_STATE_")
}

impl From<Delivery> for pb::Delivery {
    fn from(delivery: Delivery) -> Self {
        let state = pb::DeliveryState::from_str_name(&format!("DELIVERY_STATE_{}", delivery.state));
        let last_attempt = delivery.attempted_at.map(|at| pb::DeliveryAttempt {
            start_time: Some(to_proto(at)),
            latency: delivery.latency_ms.map(millis),
            http_status: delivery.http_status.unwrap_or(0),
            error: delivery.error.unwrap_or_default(),
            response_excerpt: delivery.excerpt.unwrap_or_default(),
        });
        Self {
            event_id: delivery.event_id.to_string(),
            r#type: delivery.kind,
            subject: delivery.subject,
            occur_time: Some(to_proto(delivery.occurred_at)),
            state: state.unwrap_or_default().into(),
            attempts: delivery.attempts,
            last_attempt,
        }
    }
}

fn millis(latency: i32) -> prost_types::Duration {
    duration_to_proto(Duration::from_millis(latency.unsigned_abs().into()))
}

impl From<Attempt> for pb::DeliveryAttempt {
    fn from(attempt: Attempt) -> Self {
        Self {
            start_time: Some(to_proto(attempt.at)),
            latency: Some(duration_to_proto(attempt.latency)),
            http_status: attempt.status.map_or(0, |status| status.as_u16().into()),
            error: attempt.error.unwrap_or_default(),
            response_excerpt: attempt.excerpt.unwrap_or_default(),
        }
    }
}
