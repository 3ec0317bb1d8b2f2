//! What a rule refused is told of like what happened: around all services, so that no method can forget it.
//!
//! It is written after the mutation's own transaction is gone, in one of its own. Callers get their error whether or not
//! that worked; and as each event takes a call, they cannot write faster than they may call.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderMap, Request, Response};
use serde_json::json;
use shared::auth::Caller;
use shared::mutation::{Actor, Asked};
use tonic::{Code, Status};
use tonic_types::{ErrorInfo, StatusExt as _};
use tower::{Layer, Service};

use super::App;
use crate::OUTBOX;

/// Puts [`Denials`] around services.
#[derive(Clone)]
pub(super) struct DenialLayer(pub Arc<App>);

impl<S> Layer<S> for DenialLayer {
    type Service = Denials<S>;

    fn layer(&self, inner: S) -> Denials<S> {
        Denials { app: Arc::clone(&self.0), inner }
    }
}

/// Services whose refusals are told of.
#[derive(Clone)]
pub(super) struct Denials<S> {
    app: Arc<App>,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Denials<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = Infallible, Future: Send + 'static>,
    R: Send,
{
    type Response = Response<R>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let asked = Asked::default();
        request.extensions_mut().insert(asked.clone());
        let caller = request.extensions().get::<Arc<Caller>>().cloned();
        let (app, answering) = (Arc::clone(&self.app), self.inner.call(request));
        Box::pin(async move {
            let response = answering.await?;
            if let (Some(caller), Some((method, name))) = (caller, asked.get())
                && let Some(why) = refused(response.headers())
                && let Err(error) = tell(&app, &caller, method, name, why).await
            {
                tracing::warn!(method, %error, "a refusal is not in the audit trail");
            }
            Ok(response)
        })
    }
}

/// Why a rule refused it; not what was malformed, absent or too late.
fn refused(headers: &HeaderMap) -> Option<ErrorInfo> {
    let status = Status::from_header_map(headers)?;
    let is_ruled = matches!(status.code(), Code::PermissionDenied | Code::FailedPrecondition);
    is_ruled.then(|| status.get_details_error_info()).flatten()
}

/// What an error may say beside its reason that is no text of the caller's and names no person.
const TOLD: [&str; 12] = [
    "break_glass_id",
    "cycle",
    "environment",
    "etag",
    "last_version",
    "max",
    "owner_groups",
    "release_id",
    "revision",
    "scope",
    "state",
    "webhook_id",
];

/// The error's text is left out: it may repeat what the caller typed.
async fn tell(
    app: &App,
    caller: &Caller,
    method: &'static str,
    name: Option<&str>,
    ErrorInfo { reason, mut metadata, .. }: ErrorInfo,
) -> sqlx::Result<()> {
    metadata.retain(|key, _| TOLD.contains(&key.as_str()));
    let data = json!({ "method": method, "reason": reason, "metadata": metadata });
    let (tenant, principal) = (caller.tenant.clone(), caller.principal.clone());
    let actor = Actor { tenant, principal, now: app.clock.now() };
    let event = actor.event("audit.denied", name.unwrap_or(method).to_owned(), data);
    let mut tx = app.db.begin(None).await?;
    OUTBOX.append(&mut tx, &event).await?;
    tx.commit().await
}
