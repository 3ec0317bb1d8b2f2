//! `KillRelease`, `UnkillRelease` and `ListKills`: releases stopped where the visits are, with release-svc or without it.

use std::time::{Duration, Instant};

use serde_json::json;
use shared::auth::Caller;
use shared::id::ReleaseId;
use shared::mutation::{Begun, Call, Mutation};
use shared::page::{self, List};
use shared::parse::{line, parse};
use shared::pb::session as pb;
use shared::status::{Failure, Reason, Refusal};
use shared::time::to_proto;
use tonic::Request;
use uuid::Uuid;

use super::REASON_MAX;
use crate::domain::kill::{KILLS_MAX, Kill};
use crate::rpc::{App, overtaken};
use crate::store;

/// Longer than any transaction of ours may take.
const WRITERS_PATIENCE: Duration = Duration::from_secs(4);
const WRITERS_INTERVAL: Duration = Duration::from_millis(5);

impl App {
    pub(super) async fn kill_release(
        &self,
        request: Request<pb::KillReleaseRequest>,
    ) -> Result<pb::KillReleaseResponse, Failure> {
        let (call, message) = Call::of(request, "KillRelease", |message| &mut message.request_id)?;
        call.caller.require_unlimited()?;
        let pb::KillReleaseRequest { component, release_id, reason, request_id: _ } = message;
        let (component, release) = (parse("component", &component)?, parse("release_id", &release_id)?);
        let reason = line("reason", reason, 1, REASON_MAX)?;
        let answer = match self.begin(call).await? {
            Begun::Fresh(mut work) => {
                let principal = work.actor.principal.clone();
                let kill = Kill { component, release, principal, reason, at: work.now, reported_at: None };
                let kill = Some((&stop(&mut work, kill).await?).into());
                work.answer(pb::KillReleaseResponse { kill }).await?
            }
            Begun::Replayed(before) => before.answer,
        };
        self.load_kills().await?;
        self.outlast_writers().await?;
        Ok(answer)
    }

    pub(super) async fn unkill_release(
        &self,
        request: Request<pb::UnkillReleaseRequest>,
    ) -> Result<pb::UnkillReleaseResponse, Failure> {
        let (call, message) = Call::of(request, "UnkillRelease", |message| &mut message.request_id)?;
        call.caller.require_unlimited()?;
        let pb::UnkillReleaseRequest { release_id, reason, request_id: _ } = message;
        let release = parse("release_id", &release_id)?;
        let reason = line("reason", reason, 1, REASON_MAX)?;
        let mut work: Box<Mutation> = match self.begin(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let tenant = work.actor.tenant.clone();
        let kill = store::kill::delete(&mut work.tx, &tenant, release).await?;
        if let Some(kill) = &kill {
            let data = json!({"component": kill.component.as_str(), "reason": reason});
            work.tell("release.unkilled", release.to_string(), data);
        }
        let kill = kill.as_ref().map(Into::into);
        let answer = work.answer(pb::UnkillReleaseResponse { kill }).await?;
        self.load_kills().await?;
        Ok(answer)
    }

    pub(super) async fn list_kills(
        &self,
        request: Request<pb::ListKillsRequest>,
    ) -> Result<pb::ListKillsResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::ListKillsRequest { page_size, page_token } = request.into_inner();
        let size = page::size(page_size)?;
        let list = List { name: "ListKills", tenant: &caller.tenant, filter: "" };
        let after = list.after(&self.keys, &page_token)?;
        let after = after.map_or(Ok(ReleaseId::from_uuid(Uuid::nil())), |id| parse("page_token", &id))?;
        let mut db = self.db.connection().await?;
        let mut kills = store::kill::list(&mut db, &caller.tenant, after, size + 1).await?;
        let next_page_token =
            list.cut(&self.keys, &mut kills, size, self.clock.now(), |kill| kill.release.to_string())?;
        Ok(pb::ListKillsResponse { kills: kills.iter().map(Into::into).collect(), next_page_token })
    }

    /// Reads what is stopped. Readings come one after the other, so that none takes the place of a later one.
    pub async fn load_kills(&self) -> sqlx::Result<u64> {
        let _reading = self.kills_reading.lock().await;
        let kills = store::kill::all(&mut *self.db.connection().await?).await?;
        let count = kills.len() as u64;
        self.routes.set_killed(kills);
        Ok(count)
    }

    /// Waits until every transaction has ended that writes sessions and may not see a kill which has committed: from then on
    /// nothing is stored that goes against it.
    async fn outlast_writers(&self) -> Result<(), Failure> {
        let began = Instant::now();
        let mut db = self.db.connection().await?;
        let mut writers = store::kill::writers(&mut db).await?;
        while !writers.is_empty() {
            if began.elapsed() > WRITERS_PATIENCE {
                return Err(overtaken());
            }
            tokio::time::sleep(WRITERS_INTERVAL).await;
            writers = store::kill::still_writing(&mut db, &writers).await?;
        }
        Ok(())
    }
}

/// Stops a release; answers the kill that stands.
async fn stop(work: &mut Mutation, kill: Kill) -> Result<Kill, Failure> {
    let tenant = work.actor.tenant.clone();
    if let Some(before) = store::kill::find(&mut work.tx, &tenant, kill.release).await? {
        return Ok(before);
    }
    if store::kill::count(&mut work.tx, &tenant).await? >= KILLS_MAX {
        let text = format!("a tenant may have at most {KILLS_MAX} releases stopped");
        return Err(Refusal::new(Reason::KillLimit, text).with("max", KILLS_MAX).into());
    }
    if !store::kill::insert(&mut work.tx, &tenant, &kill).await? {
        // Somebody else stopped it at the same time.
        let standing = store::kill::find(&mut work.tx, &tenant, kill.release).await?;
        return standing.ok_or_else(overtaken);
    }
    let data = json!({"component": kill.component.as_str(), "reason": kill.reason});
    work.tell("release.killed", kill.release.to_string(), data);
    Ok(kill)
}

impl From<&Kill> for pb::Kill {
    fn from(kill: &Kill) -> Self {
        Self {
            component: kill.component.to_string(),
            release_id: kill.release.to_string(),
            principal: kill.principal.clone(),
            reason: kill.reason.clone(),
            kill_time: Some(to_proto(kill.at)),
            report_time: kill.reported_at.map(to_proto),
        }
    }
}
