//! `RotateSession`: a new token for the old one, the same one however often it is asked for.

use shared::auth::Caller;
use shared::id::TenantId;
use shared::pb::session as pb;
use shared::status::Failure;
use shared::time::Time;
use tonic::Request;

use super::convert::session_to_proto;
use super::live::{Seen, unknown};
use super::{App, overtaken};
use crate::domain::lineage::{Child, Grade, Lineage, Presented};
use crate::domain::token::{SessionToken, TokenHash};
use crate::domain::touchpoint::Touchpoint;

/// A rotation loses only to another write of the same session.
const ATTEMPTS: u32 = 4;

impl App {
    pub(super) async fn rotate_session(
        &self,
        request: Request<pb::RotateSessionRequest>,
    ) -> Result<pb::RotateSessionResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::RotateSessionRequest { session_token } = request.into_inner();
        let now = self.clock.now();
        let presented = SessionToken::parse(&session_token).map_err(|_| unknown())?;
        for _ in 0..ATTEMPTS {
            let (mut seen, touchpoint) = self.session_of(&caller, &session_token, now).await?;
            let touchpoint = &touchpoint.value;
            let Some(successor) =
                self.successor(&caller.tenant, &mut seen, &presented, touchpoint, now).await?
            else {
                continue;
            };
            return Ok(pb::RotateSessionResponse {
                session: Some(session_to_proto(&seen.session, touchpoint, now)),
                session_token: successor.expose(),
            });
        }
        Err(overtaken())
    }

    /// What replaces the token that was presented; `None` if another write of the session came first.
    async fn successor(
        &self,
        tenant: &TenantId,
        seen: &mut Seen,
        presented: &SessionToken,
        touchpoint: &Touchpoint,
        now: Time,
    ) -> Result<Option<SessionToken>, Failure> {
        let hash = presented.hash();
        // Whoever lost a race may have what won it: it is what the same parent got before.
        let has_lost = seen.presented == Presented::Superseded(Grade::Race);
        if has_lost && is_parent(&seen.session.lineage, hash) {
            seen.session.standing(touchpoint, now)?;
        } else {
            self.require_live(tenant, seen, touchpoint, now)?;
        }
        let lineage = &seen.session.lineage;
        let (salt, expected) = if let Some(parent) =
            lineage.parent.as_ref().filter(|parent| parent.hash == hash)
        {
            (parent.salt.clone(), lineage.current)
        } else if let Some(child) = &lineage.child {
            (child.salt.clone(), child.hash)
        } else {
            let salt = self.new_salt()?;
            let child = self.child_token(tenant, presented, &salt)?;
            let next = Child { hash: child.hash(), salt, issued_at: now };
            let next = Lineage { child: Some(next.into()), ..lineage.clone() };
            let is_written = self.write_lineage(tenant, &seen.session, &next, "session.rotated", now).await?;
            return Ok(is_written.then_some(child));
        };
        let child = self.child_token(tenant, presented, &salt)?;
        if child.hash() != expected {
            return Err(Failure::Bug("a derived token is not the one that was handed out".to_owned()));
        }
        Ok(Some(child))
    }
}

fn is_parent(lineage: &Lineage, hash: TokenHash) -> bool {
    lineage.parent.as_ref().is_some_and(|parent| parent.hash == hash)
}
