//! `WebhookService`, the same in both services: what webhooks there are. What became of deliveries is in `log`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tonic::{Request, Response, Status};

use super::Webhooks;
use super::guard::Unreachable;
use super::registration::{WEBHOOKS_MAX, Webhook, parse_url};
use super::sender::shown;
use crate::auth::Caller;
use crate::id::{TenantId, WebhookId};
use crate::mutation::{Begun, Call, Mutation};
use crate::page::{self, List};
use crate::parse::{at_most, duration, etag, etag_of, line, parse, required};
use crate::pb::common as pb;
use crate::pb::common::webhook_service_server::WebhookService;
use crate::status::{Failure, Reason, Refusal};
use crate::time::to_proto;
use crate::watch::is_of;

const TYPES_MAX: usize = 32;
const OVERLAP: Duration = Duration::from_hours(24);
const OVERLAP_MAX: Duration = Duration::from_hours(7 * 24);
/// For a name to lead somewhere when a webhook is set; one that takes longer is looked up when it is sent.
const RESOLVE_LIMIT: Duration = Duration::from_secs(2);

/// [`Webhooks`] behind the generated trait.
pub struct WebhookRpc(pub Arc<Webhooks>);

/// What people set.
struct Settings {
    url: String,
    types: Vec<String>,
    description: String,
    is_disabled: bool,
    id: String,
    etag: String,
}

pub(super) fn no_webhook(id: WebhookId) -> Refusal {
    Refusal::new(Reason::WebhookNotFound, format!("there is no webhook {id}")).with("webhook_id", id)
}

impl Webhooks {
    async fn settings(&self, webhook: Option<pb::Webhook>) -> Result<Settings, Failure> {
        let pb::Webhook {
            webhook_id,
            url,
            types,
            description,
            disabled,
            disable_reason: _,
            failing_since_time: _,
            old_secret_expire_time: _,
            create_time: _,
            etag,
        } = required("webhook", webhook)?;
        at_most("webhook.types", &types, TYPES_MAX)?;
        let kinds = self.outbox.kinds();
        for (i, wanted) in types.iter().enumerate() {
            if !kinds.iter().any(|(kind, _)| is_of(kind, std::slice::from_ref(wanted))) {
                let field = format!("webhook.types[{i}]");
                return Err(Refusal::field(field, "is the type of no event that ListEventTypes lists").into());
            }
        }
        let description = line("webhook.description", description, 0, 200)?;
        let uri = parse_url(&url).map_err(|problem| Refusal::field("webhook.url", problem))?;
        let resolved = tokio::time::timeout(RESOLVE_LIMIT, self.sender.guard.resolve(&uri)).await;
        match resolved {
            // A name that leads nowhere today may do so tomorrow.
            Ok(Ok(_) | Err(Unreachable::Unknown(_) | Unreachable::Deaf(_))) | Err(_) => {}
            Ok(Err(refused @ (Unreachable::Refused | Unreachable::PlainHttp))) => {
                return Err(Refusal::new(Reason::WebhookTargetRefused, refused.to_string()).into());
            }
        }
        let types = types.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        Ok(Settings { url, types, description, is_disabled: disabled, id: webhook_id, etag })
    }

    pub(super) async fn begin<T: prost::Message + Default>(&self, call: Call) -> Result<Begun<T>, Failure> {
        call.begin(&self.db, self.outbox, self.clock.now()).await
    }

    pub(super) async fn required(&self, tenant: &TenantId, id: WebhookId) -> Result<Webhook, Failure> {
        let mut db = self.db.connection().await?;
        let found = self.find(&mut db, tenant, id).await?;
        Ok(found.ok_or_else(|| no_webhook(id))?)
    }

    pub(super) async fn required_lock(&self, work: &mut Mutation, id: WebhookId) -> Result<Webhook, Failure> {
        let found = self.lock(&mut work.tx, &work.actor.tenant, id).await?;
        Ok(found.ok_or_else(|| no_webhook(id))?)
    }

    /// A secret as it is shown, once.
    fn show_secret(&self, tenant: &TenantId, id: WebhookId, salt: &[u8]) -> Result<String, Failure> {
        let key = self.signing_key(tenant, id, salt);
        key.map(|key| shown(&key))
            .ok_or_else(|| Failure::Bug("the ring lacks the key of a webhook's secret".to_owned()))
    }

    /// The same for a request that was answered before.
    fn show_again(
        &self,
        caller: &Caller,
        webhook: Option<&pb::Webhook>,
        salt: Option<&[u8]>,
    ) -> Result<String, Failure> {
        let broken = || Failure::Bug("a kept answer without a webhook".to_owned());
        let id = webhook.and_then(|webhook| webhook.webhook_id.parse().ok()).ok_or_else(broken)?;
        self.show_secret(&caller.tenant, id, salt.ok_or_else(broken)?)
    }

    async fn create(
        &self,
        request: Request<pb::CreateWebhookRequest>,
    ) -> Result<pb::CreateWebhookResponse, Failure> {
        let (call, message) = Call::of(request, "CreateWebhook", |message| &mut message.request_id)?;
        call.caller.require_unlimited()?;
        let pb::CreateWebhookRequest { webhook, request_id: _ } = message;
        let settings = self.settings(webhook).await?;
        let caller = Arc::clone(&call.caller);
        let mut work = match self.begin::<pb::CreateWebhookResponse>(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => {
                let secret =
                    self.show_again(&caller, before.answer.webhook.as_ref(), before.salt.as_deref())?;
                return Ok(pb::CreateWebhookResponse { secret, ..before.answer });
            }
        };
        let tenant = work.actor.tenant.clone();
        if !self.reserve(&mut work.tx, &tenant).await? {
            let text = format!("a tenant has at most {WEBHOOKS_MAX} webhooks");
            return Err(Refusal::new(Reason::WebhookLimit, text).with("max", WEBHOOKS_MAX).into());
        }
        let webhook = Webhook {
            id: WebhookId::new(work.now, self.entropy.bytes()),
            url: settings.url,
            types: settings.types,
            description: settings.description,
            salt: self.new_salt(work.now)?,
            old_salt: None,
            old_salt_until: None,
            disabled_reason: settings.is_disabled.then(|| "REQUESTED".to_owned()),
            failing_since: None,
            created_at: work.now,
            version: 1,
        };
        self.open_audience(&mut work.tx).await?;
        self.insert(&mut work.tx, &tenant, &webhook).await?;
        tell(&mut work, "webhook.created", &webhook);
        let secret = self.show_secret(&tenant, webhook.id, &webhook.salt)?;
        let answer = pb::CreateWebhookResponse { webhook: Some((&webhook).into()), secret: String::new() };
        let answer = work.answer_without_secret(answer, Some(&webhook.salt)).await?;
        Ok(pb::CreateWebhookResponse { secret, ..answer })
    }

    async fn get(&self, request: Request<pb::GetWebhookRequest>) -> Result<pb::GetWebhookResponse, Failure> {
        let caller = unlimited(&request)?;
        let pb::GetWebhookRequest { webhook_id } = request.into_inner();
        let webhook = self.required(&caller.tenant, parse("webhook_id", &webhook_id)?).await?;
        Ok(pb::GetWebhookResponse { webhook: Some((&webhook).into()) })
    }

    async fn list_page(
        &self,
        request: Request<pb::ListWebhooksRequest>,
    ) -> Result<pb::ListWebhooksResponse, Failure> {
        let caller = unlimited(&request)?;
        let pb::ListWebhooksRequest { page_size, page_token } = request.into_inner();
        let list = List { name: "ListWebhooks", tenant: &caller.tenant, filter: self.outbox.schema };
        let (size, after) = (page::size(page_size)?, list.after(&self.keys, &page_token)?);
        let after = after.map(|after| parse("page_token", &after)).transpose()?;
        let mut db = self.db.connection().await?;
        let mut rows = self.list(&mut db, &caller.tenant, after, size + 1).await?;
        let key = |webhook: &Webhook| webhook.id.to_string();
        let next_page_token = list.cut(&self.keys, &mut rows, size, self.clock.now(), key)?;
        Ok(pb::ListWebhooksResponse { webhooks: rows.iter().map(Into::into).collect(), next_page_token })
    }

    async fn change(
        &self,
        request: Request<pb::UpdateWebhookRequest>,
    ) -> Result<pb::UpdateWebhookResponse, Failure> {
        let (call, message) = Call::of(request, "UpdateWebhook", |message| &mut message.request_id)?;
        call.caller.require_unlimited()?;
        let pb::UpdateWebhookRequest { webhook, request_id: _ } = message;
        let settings = self.settings(webhook).await?;
        let id = parse("webhook.webhook_id", &settings.id)?;
        let mut work = match self.begin::<pb::UpdateWebhookResponse>(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let known = self.required_lock(&mut work, id).await?;
        etag(&settings.etag, known.version)?;
        let disabled_reason = match (settings.is_disabled, known.disabled_reason) {
            (true, reason) => reason.or_else(|| Some("REQUESTED".to_owned())),
            (false, _) => None,
        };
        let webhook = Webhook {
            url: settings.url,
            types: settings.types,
            description: settings.description,
            // Enabled again, it gets its time anew.
            failing_since: known.failing_since.filter(|_| disabled_reason.is_some()),
            disabled_reason,
            version: known.version + 1,
            ..known
        };
        if webhook.disabled_reason.is_none() {
            self.open_audience(&mut work.tx).await?;
        }
        let tenant = work.actor.tenant.clone();
        self.update(&mut work.tx, &tenant, &webhook).await?;
        tell(&mut work, "webhook.updated", &webhook);
        let answer = pb::UpdateWebhookResponse { webhook: Some((&webhook).into()) };
        let answer = work.answer(answer).await?;
        self.nudge.notify_one();
        Ok(answer)
    }

    async fn remove(
        &self,
        request: Request<pb::DeleteWebhookRequest>,
    ) -> Result<pb::DeleteWebhookResponse, Failure> {
        let (call, message) = Call::of(request, "DeleteWebhook", |message| &mut message.request_id)?;
        call.caller.require_unlimited()?;
        let pb::DeleteWebhookRequest { webhook_id, request_id: _ } = message;
        let id: WebhookId = parse("webhook_id", &webhook_id)?;
        let mut work = match self.begin::<pb::DeleteWebhookResponse>(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        if !self.delete(&mut work.tx, &work.actor.tenant, id).await? {
            return Err(no_webhook(id).into());
        }
        work.tell("webhook.deleted", id.to_string(), json!({}));
        work.answer(pb::DeleteWebhookResponse {}).await
    }

    async fn rotate_secret(
        &self,
        request: Request<pb::RotateWebhookSecretRequest>,
    ) -> Result<pb::RotateWebhookSecretResponse, Failure> {
        let (call, message) = Call::of(request, "RotateWebhookSecret", |message| &mut message.request_id)?;
        call.caller.require_unlimited()?;
        let pb::RotateWebhookSecretRequest { webhook_id, overlap, request_id: _ } = message;
        let id = parse("webhook_id", &webhook_id)?;
        let overlap = duration("overlap", overlap)?.unwrap_or(OVERLAP);
        if overlap > OVERLAP_MAX {
            return Err(Refusal::field("overlap", "must be at most 7 days").into());
        }
        let caller = Arc::clone(&call.caller);
        let mut work = match self.begin::<pb::RotateWebhookSecretResponse>(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => {
                let secret =
                    self.show_again(&caller, before.answer.webhook.as_ref(), before.salt.as_deref())?;
                return Ok(pb::RotateWebhookSecretResponse { secret, ..before.answer });
            }
        };
        let known = self.required_lock(&mut work, id).await?;
        let webhook = Webhook {
            salt: self.new_salt(work.now)?,
            old_salt: Some(known.salt),
            old_salt_until: Some(work.now + overlap),
            version: known.version + 1,
            ..known
        };
        let tenant = work.actor.tenant.clone();
        self.update(&mut work.tx, &tenant, &webhook).await?;
        tell(&mut work, "webhook.secret_rotated", &webhook);
        let secret = self.show_secret(&tenant, id, &webhook.salt)?;
        let answer =
            pb::RotateWebhookSecretResponse { webhook: Some((&webhook).into()), secret: String::new() };
        let answer = work.answer_without_secret(answer, Some(&webhook.salt)).await?;
        Ok(pb::RotateWebhookSecretResponse { secret, ..answer })
    }
}

pub(super) fn unlimited<T>(request: &Request<T>) -> Result<Arc<Caller>, Refusal> {
    let caller = Caller::of(request)?;
    caller.require_unlimited()?;
    Ok(caller)
}

fn tell(work: &mut Mutation, kind: &'static str, webhook: &Webhook) {
    let data = json!({"etag": etag_of(webhook.version), "disabled": webhook.disabled_reason.is_some()});
    work.tell(kind, webhook.id.to_string(), data);
}

impl From<&Webhook> for pb::Webhook {
    fn from(webhook: &Webhook) -> Self {
        let reason = webhook.disabled_reason.as_deref().unwrap_or("UNSPECIFIED");
        let reason = pb::WebhookDisableReason::from_str_name(&format!("WEBHOOK_DISABLE_REASON_{reason}"));
        Self {
            webhook_id: webhook.id.to_string(),
            url: webhook.url.clone(),
            types: webhook.types.clone(),
            description: webhook.description.clone(),
            disabled: webhook.disabled_reason.is_some(),
            disable_reason: reason.unwrap_or_default().into(),
            failing_since_time: webhook.failing_since.map(to_proto),
            old_secret_expire_time: webhook.old_salt_until.map(to_proto),
            create_time: Some(to_proto(webhook.created_at)),
            etag: etag_of(webhook.version),
        }
    }
}

#[tonic::async_trait]
impl WebhookService for WebhookRpc {
    async fn create_webhook(
        &self,
        request: Request<pb::CreateWebhookRequest>,
    ) -> Result<Response<pb::CreateWebhookResponse>, Status> {
        Ok(Response::new(self.0.create(request).await?))
    }

    async fn get_webhook(
        &self,
        request: Request<pb::GetWebhookRequest>,
    ) -> Result<Response<pb::GetWebhookResponse>, Status> {
        Ok(Response::new(self.0.get(request).await?))
    }

    async fn list_webhooks(
        &self,
        request: Request<pb::ListWebhooksRequest>,
    ) -> Result<Response<pb::ListWebhooksResponse>, Status> {
        Ok(Response::new(self.0.list_page(request).await?))
    }

    async fn update_webhook(
        &self,
        request: Request<pb::UpdateWebhookRequest>,
    ) -> Result<Response<pb::UpdateWebhookResponse>, Status> {
        Ok(Response::new(self.0.change(request).await?))
    }

    async fn delete_webhook(
        &self,
        request: Request<pb::DeleteWebhookRequest>,
    ) -> Result<Response<pb::DeleteWebhookResponse>, Status> {
        Ok(Response::new(self.0.remove(request).await?))
    }

    async fn rotate_webhook_secret(
        &self,
        request: Request<pb::RotateWebhookSecretRequest>,
    ) -> Result<Response<pb::RotateWebhookSecretResponse>, Status> {
        Ok(Response::new(self.0.rotate_secret(request).await?))
    }

    async fn ping_webhook(
        &self,
        request: Request<pb::PingWebhookRequest>,
    ) -> Result<Response<pb::PingWebhookResponse>, Status> {
        Ok(Response::new(self.0.try_out(request).await?))
    }

    async fn list_deliveries(
        &self,
        request: Request<pb::ListDeliveriesRequest>,
    ) -> Result<Response<pb::ListDeliveriesResponse>, Status> {
        Ok(Response::new(self.0.list_log(request).await?))
    }

    async fn replay_deliveries(
        &self,
        request: Request<pb::ReplayDeliveriesRequest>,
    ) -> Result<Response<pb::ReplayDeliveriesResponse>, Status> {
        Ok(Response::new(self.0.deliver_again(request).await?))
    }
}
