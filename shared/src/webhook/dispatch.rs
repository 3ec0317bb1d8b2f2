//! Sends what is due, and decides what becomes of it: a success ends a delivery, a failure is tried again with exponential
//! backoff and full jitter for 24 hours and then dead-lettered.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use chrono::TimeDelta;
use http::StatusCode;
use opentelemetry::KeyValue;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument as _;
use uuid::Uuid;

use super::Webhooks;
use super::lane::{Head, TURNS, Verdict};
use super::registration::Webhook;
use super::sender::{Attempt, LIMIT, Message, SigningKey};
use crate::id::{TenantId, WebhookId};
use crate::mutation::Actor;
use crate::telemetry;
use crate::time::Time;

/// Longer than an attempt and what is written of it take.
const LEASE: TimeDelta = TimeDelta::seconds(30);
const _: () = assert!(LEASE.num_seconds().unsigned_abs() > 2 * LIMIT.as_secs());
/// The first wait is at most so long, each further one three times as much, up to the longest.
const WAIT: TimeDelta = TimeDelta::seconds(10);
const WAIT_MAX: TimeDelta = TimeDelta::hours(4);
/// From the first attempt to the last.
const GIVE_UP: TimeDelta = TimeDelta::hours(24);
/// Why nothing can be signed.
pub(super) const KEY_RETIRED: &str = "the key that the secret hangs on was retired; rotate the secret";
/// Of nothing but failures.
const DISABLE: TimeDelta = TimeDelta::days(5);

/// A place among the requests under way.
struct Turn {
    webhooks: Arc<Webhooks>,
    webhook: WebhookId,
    _slot: OwnedSemaphorePermit,
}

impl Turn {
    fn take(webhooks: &Arc<Webhooks>, webhook: WebhookId, slot: OwnedSemaphorePermit) -> Self {
        *webhooks.busy().entry(webhook).or_default() += 1;
        Self { webhooks: Arc::clone(webhooks), webhook, _slot: slot }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut busy = self.webhooks.busy();
        if let Some(count) = busy.get_mut(&self.webhook) {
            *count -= 1;
            if *count == 0 {
                busy.remove(&self.webhook);
            }
        }
        // The lane's next delivery may be due, and there is room again.
        self.webhooks.nudge.notify_one();
    }
}

impl Webhooks {
    fn busy(&self) -> std::sync::MutexGuard<'_, HashMap<WebhookId, i64>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what is due while there is room; does not wait for the answers.
    pub(super) async fn dispatch(self: &Arc<Self>) -> sqlx::Result<u64> {
        let mut sent = 0;
        loop {
            let free = i64::try_from(self.slots.available_permits()).unwrap_or(0);
            if free == 0 {
                return Ok(sent);
            }
            let now = self.clock.now();
            let taken = |(id, count): (&WebhookId, &i64)| (*count >= TURNS).then_some(id.uuid());
            let busy: Vec<Uuid> = self.busy().iter().filter_map(taken).collect();
            let mut db = self.db.connection().await?;
            let lanes = self.claim(&mut db, now, now + LEASE, &busy, free).await?;
            let longest = lanes.iter().map(|lane| now - lane.due_at).max().unwrap_or_default();
            self.lag
                .store(longest.num_microseconds().unwrap_or(i64::MAX), Ordering::Relaxed);
            let Some(claim) = lanes.first().map(|lane| lane.claim) else { return Ok(sent) };
            let heads = self.heads(&mut db, &lanes).await?;
            drop(db);
            for head in heads {
                let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else { return Ok(sent) };
                let turn = Turn::take(self, head.webhook_id, slot);
                self.tasks.spawn(async move { turn.webhooks.take_turn(&head, claim).await });
                sent += 1;
            }
        }
    }

    async fn take_turn(&self, head: &Head, claim: i64) {
        let span = tracing::info_span!(
            "webhook.deliver",
            webhook = %head.webhook_id,
            event = head.event_id,
            attempt = head.attempts
        );
        telemetry::continue_from(&span, head.trace_parent.as_deref().unwrap_or_default());
        let turn = async {
            let attempt = self.attempt(head).await;
            if let Err(error) = self.settle(head, claim, attempt.as_ref()).await {
                tracing::warn!(%error, "attempt not written down; it is made again when its lease ends");
            }
        };
        turn.instrument(span).await;
    }

    /// Posts the first delivery of the lane, if there is one.
    async fn attempt(&self, head: &Head) -> Option<Attempt> {
        let (Some(event), Some(body)) = (head.event_id, &head.body) else { return None };
        let now = self.clock.now();
        let old = head
            .old_salt
            .as_deref()
            .filter(|_| head.old_salt_until.is_some_and(|until| now < until));
        let salts = [Some(head.salt.as_slice()), old];
        let Some(keys) = self.signing_keys(&head.tenant_id, head.webhook_id, salts) else {
            return Some(Attempt::failed(now, KEY_RETIRED));
        };
        let message = Message {
            url: &head.url,
            id: self.message_id(event),
            body,
            trace_parent: head.trace_parent.as_deref().unwrap_or_default(),
        };
        Some(self.sender.send(&message, &keys, now).await)
    }

    pub(super) fn message_id(&self, event: i64) -> String {
        format!("{}_{event}", self.outbox.schema)
    }

    pub(super) fn signing_keys(
        &self,
        tenant: &TenantId,
        webhook: WebhookId,
        salts: [Option<&[u8]>; 2],
    ) -> Option<Vec<SigningKey>> {
        salts
            .into_iter()
            .flatten()
            .map(|salt| self.signing_key(tenant, webhook, salt))
            .collect()
    }

    /// Writes what came of a turn, if the lease is still held.
    async fn settle(&self, head: &Head, claim: i64, attempt: Option<&Attempt>) -> sqlx::Result<()> {
        let now = self.clock.now();
        let mut tx = self.db.begin(None).await?;
        if !self.holds(&mut tx, head, claim).await? {
            tracing::warn!("the lease ended before the attempt did");
            return Ok(());
        }
        let mut next = now;
        if let Some(attempt) = attempt {
            let verdict = self.judge(head, attempt, now);
            self.record(&mut tx, head, attempt, verdict).await?;
            if let Verdict::Retry(at) = verdict {
                next = at;
            }
            if verdict == Verdict::DeadLettered {
                self.tell_dead_lettered(&mut tx, head, now).await?;
            }
            self.note(&mut tx, head, attempt, now).await?;
            self.count(verdict);
        }
        self.release(&mut tx, head, next).await?;
        tx.commit().await
    }

    fn judge(&self, head: &Head, attempt: &Attempt, now: Time) -> Verdict {
        if attempt.error.is_none() {
            return Verdict::Delivered;
        }
        let first = head.first_attempted_at.unwrap_or(attempt.at);
        let last = first + GIVE_UP;
        if now >= last {
            return Verdict::DeadLettered;
        }
        let failures = head.attempts.unwrap_or(0);
        let wait = backoff(failures, u64::from_be_bytes(self.entropy.bytes()));
        let asked = attempt.retry_after.unwrap_or_default().min(WAIT_MAX);
        Verdict::Retry((now + wait.max(asked)).min(last))
    }

    /// What a failure or success says about the webhook. Nothing is written where it says nothing new.
    async fn note(
        &self,
        tx: &mut sqlx::PgConnection,
        head: &Head,
        attempt: &Attempt,
        now: Time,
    ) -> sqlx::Result<()> {
        let is_failure = attempt.error.is_some();
        let is_gone = attempt.status == Some(StatusCode::GONE);
        let is_late = head.failing_since.is_some_and(|since| now - since >= DISABLE);
        if head.failing_since.is_some() == is_failure && !is_gone && !is_late {
            return Ok(());
        }
        let Some(webhook) = self.lock(tx, &head.tenant_id, head.webhook_id).await? else { return Ok(()) };
        let failing_since = if is_failure { webhook.failing_since.or(Some(attempt.at)) } else { None };
        let is_late = failing_since.is_some_and(|since| now - since >= DISABLE);
        let disabled = match (is_gone, is_late) {
            (true, _) => Some("GONE"),
            (false, true) => Some("FAILING"),
            (false, false) => None,
        };
        let disabled = disabled.filter(|_| webhook.disabled_reason.is_none());
        let version = webhook.version + i64::from(disabled.is_some());
        let disabled_reason = disabled.map(str::to_owned).or_else(|| webhook.disabled_reason.clone());
        let webhook = Webhook { disabled_reason, failing_since, version, ..webhook };
        self.update(tx, &head.tenant_id, &webhook).await?;
        let Some(reason) = disabled else { return Ok(()) };
        let event = system(head, now).event(
            "webhook.disabled",
            head.webhook_id.to_string(),
            json!({"reason": reason}),
        );
        self.outbox.append(tx, &event).await
    }

    /// Not about what tells of webhooks itself: dead letters about dead letters would never end.
    async fn tell_dead_lettered(
        &self,
        tx: &mut sqlx::PgConnection,
        head: &Head,
        now: Time,
    ) -> sqlx::Result<()> {
        let kind = head.kind.as_deref().unwrap_or_default();
        if kind.starts_with("webhook.") {
            return Ok(());
        }
        let event_id = head.event_id.unwrap_or_default().to_string();
        let data = json!({"event_id": event_id, "type": kind, "subject": head.subject});
        let event = system(head, now).event("webhook.dead_lettered", head.webhook_id.to_string(), data);
        self.outbox.append(tx, &event).await
    }

    fn count(&self, verdict: Verdict) {
        let outcome = match verdict {
            Verdict::Delivered => "delivered",
            Verdict::Retry(_) => "failed",
            Verdict::DeadLettered => "dead_lettered",
        };
        self.attempts.add(1, &[KeyValue::new("outcome", outcome)]);
    }
}

fn system(head: &Head, now: Time) -> Actor {
    Actor { tenant: head.tenant_id.clone(), principal: "system".to_owned(), now }
}

/// Anything from a second to the longest wait after so many failures before: receivers that failed together are not called
/// together again.
fn backoff(failures: i32, random: u64) -> TimeDelta {
    let growth = 3_i32.saturating_pow(failures.clamp(0, 19).unsigned_abs());
    let longest = WAIT.checked_mul(growth).unwrap_or(WAIT_MAX).min(WAIT_MAX);
    let millis = longest.num_milliseconds().unsigned_abs();
    let wait = i64::try_from(random % millis).unwrap_or(0);
    TimeDelta::milliseconds(wait.max(1000))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn waits_grow_threefold_to_four_hours_and_never_vanish(failures in 0_i32..1000, random: u64) {
            let wait = backoff(failures, random);
            let longest = WAIT.num_seconds() * 3_i64.pow(failures.min(10).unsigned_abs());
            prop_assert!(wait >= TimeDelta::seconds(1));
            prop_assert!(wait <= TimeDelta::seconds(longest).min(WAIT_MAX));
        }
    }

    #[test]
    fn jitter_is_full() {
        let millis = |random| backoff(3, random).num_milliseconds();
        assert_eq!((millis(0), millis(150_000), millis(269_999)), (1000, 150_000, 269_999));
    }
}
