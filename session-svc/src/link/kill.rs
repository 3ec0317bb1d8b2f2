//! Which releases were stopped here, told to release-svc until it takes note.
//!
//! Each is told by itself, and beside the reports of rollouts: one that release-svc refuses keeps back no other.

use std::convert::Infallible;

use shared::id::{EnvironmentId, TenantId};
use shared::pb::release as pb;
use shared::time::to_proto;
use tonic::{Code, Request, Status};

use super::{Broken, CALL_LIMIT, Client, INTERVAL};
use crate::domain::kill::Kill;
use crate::rpc::App;
use crate::store;

/// Read at once.
const BATCH: i64 = 100;

/// The kills of one connection.
pub(super) struct Kills<'a> {
    app: &'a App,
    environment: &'a EnvironmentId,
    client: Client,
}

impl<'a> Kills<'a> {
    pub(super) fn new(app: &'a App, environment: &'a EnvironmentId, client: Client) -> Self {
        Self { app, environment, client }
    }

    /// Tells until dropped. What was not taken is told again, after a while.
    pub(super) async fn run(mut self) -> Infallible {
        loop {
            if let Err(broken) = self.pass().await {
                tracing::warn!(reason = %broken, "stopped releases were not told of; they will be");
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    async fn pass(&mut self) -> Result<(), Broken> {
        let mut last = None;
        loop {
            let mut db = self.app.db.connection().await?;
            let kills = store::kill::unreported(&mut db, last.as_ref(), BATCH).await?;
            drop(db);
            for (tenant, kill) in &kills {
                match self.tell(tenant, kill).await {
                    Ok(()) => {
                        let now = self.app.clock.now();
                        let mut db = self.app.db.connection().await?;
                        store::kill::reported(&mut db, tenant, kill.release, now).await?;
                    }
                    Err(status) if status.code() == Code::Unavailable => return Err(status.into()),
                    Err(status) => {
                        let (code, text) = (status.code(), status.message());
                        tracing::error!(%tenant, release = %kill.release, ?code, text, "a kill was not taken");
                    }
                }
            }
            let Some(read_last) = kills.into_iter().next_back() else { return Ok(()) };
            last = Some(read_last);
        }
    }

    async fn tell(&mut self, tenant: &TenantId, kill: &Kill) -> Result<(), Status> {
        let kill = pb::ReleaseKill {
            tenant: tenant.to_string(),
            component: kill.component.to_string(),
            release_id: kill.release.to_string(),
            principal: kill.principal.clone(),
            reason: kill.reason.clone(),
            kill_time: Some(to_proto(kill.at)),
        };
        let environment = self.environment.to_string();
        let mut request = Request::new(pb::ReportKillsRequest { environment, kills: vec![kill] });
        request.set_timeout(CALL_LIMIT);
        self.client.report_kills(request).await.map(drop)
    }
}
