//! Sessions named by their token in other rpcs than `ValidateSession`: read from the database, or for carts recalled, then
//! either live or a refusal that says what to do.

use std::sync::Arc;

use serde_json::json;
use shared::auth::Caller;
use shared::db::Tx;
use shared::id::{SessionId, TenantId};
use shared::mutation::Mutation;
use shared::status::{Failure, Reason, Refusal};
use shared::time::Time;

use super::{App, is_within, no_touchpoint, overtaken};
use crate::OUTBOX;
use crate::cache::{Entry, Ticket};
use crate::domain::assurance::{Lacking, Requirement};
use crate::domain::lineage::{Grade, Lineage, Presented};
use crate::domain::session::{RevokeReason, Session};
use crate::domain::token::SessionToken;
use crate::domain::touchpoint::Touchpoint;
use crate::domain::visit::{Next, Unit, Visit};
use crate::known::Known;
use crate::store;
use crate::store::session::Loaded;
use crate::store::signal::Deal;
use crate::store::visit::{Beginning, Touch};
use crate::workers::system;

/// A session as it is seen here, and the visit that its row has.
pub(super) struct Seen {
    pub(super) session: Session,
    pub(super) stored: Visit,
    pub(super) presented: Presented,
    pub(super) fresh_as_of: Time,
    pub(super) degraded: bool,
}

impl Seen {
    /// `touch` is what was not written yet when the reading was sent.
    pub(super) fn new(
        mut session: Session,
        presented: Presented,
        touch: Option<&Touch>,
        fresh_as_of: Time,
    ) -> Self {
        let stored = session.visit.clone();
        if let Some(touch) = touch {
            touch.overlay(&mut session);
        }
        Self { session, stored, presented, fresh_as_of, degraded: false }
    }
}

/// A write loses only to another write of the same session.
const ATTEMPTS: u32 = 4;

impl App {
    /// The session of a token, with its touchpoint. Whether it lives is not asked yet; but what the token's being shown
    /// means for the session's tokens is written by then, so that no caller has to write it within a transaction.
    pub(super) async fn session_of(
        &self,
        caller: &Caller,
        token: &str,
        now: Time,
    ) -> Result<(Seen, Arc<Entry<Touchpoint>>), Failure> {
        let token = SessionToken::parse(token).map_err(|_| unknown())?;
        let tenant = &caller.tenant;
        let key = (tenant.clone(), token.session_id());
        for _ in 0..ATTEMPTS {
            let touch = self.touches.peek(tenant, token.session_id());
            let ticket = self.sessions.ticket(&key);
            let loaded = self.loads.ask(key.clone()).await?;
            let Loaded { session, .. } = loaded.ok_or_else(unknown)?;
            let touchpoint = self.required_touchpoint(tenant, &session.touchpoint, false, now).await?.entry;
            let presented = session.lineage.grade(token.hash(), touchpoint.value.policy.rotation_grace, now);
            if presented == Presented::Unknown {
                return Err(unknown().into());
            }
            caller.require_touchpoint(&session.touchpoint)?;
            let mut seen = Seen::new(session, presented, touch.as_ref(), now);
            self.remember(&key, ticket, &seen, now);
            if seen.session.standing(&touchpoint.value, now).is_ok() {
                match presented {
                    Presented::Child if !self.use_child(tenant, &mut seen.session, now).await? => continue,
                    Presented::Child => seen.presented = Presented::Current { has_child: false },
                    Presented::Superseded(Grade::StaleLineage)
                        if !self.end_stale(tenant, &seen.session, now).await? =>
                    {
                        continue;
                    }
                    Presented::Superseded(_)
                    | Presented::Current { .. }
                    | Presented::InGrace
                    | Presented::Unknown => {}
                }
            }
            return Ok((seen, touchpoint));
        }
        Err(overtaken())
    }

    /// As [`App::session_of`], from memory where that may say that the session lives, in its visit; for what may be as stale as
    /// the touchpoint lets a validation be.
    pub(super) async fn known_session_of(
        &self,
        caller: &Caller,
        token: &str,
        now: Time,
    ) -> Result<(Seen, Arc<Entry<Touchpoint>>), Failure> {
        match self.recall_live(caller, token, now) {
            Some((seen, touchpoint)) => {
                caller.require_touchpoint(&seen.session.touchpoint)?;
                Ok((seen, touchpoint))
            }
            None => Box::pin(self.session_of(caller, token, now)).await,
        }
    }

    fn recall_live(&self, caller: &Caller, token: &str, now: Time) -> Option<(Seen, Arc<Entry<Touchpoint>>)> {
        let token = SessionToken::parse(token).ok()?;
        let entry = self.sessions.get(&(caller.tenant.clone(), token.session_id()))?;
        let (known, session) = (&entry.value, &entry.value.session);
        let at = self.touchpoints.get(&(caller.tenant.clone(), session.touchpoint.clone()))?;
        let (touchpoint, last_seen_at) = (&at.value, known.last_seen_at());
        let fresh_as_of = self.fresh_as_of(&entry).min(self.fresh_as_of(&at));
        let presented = session.lineage.grade(token.hash(), touchpoint.policy.rotation_grace, now);
        let lives = is_within(fresh_as_of, now, touchpoint.policy.staleness_bound)
            && matches!(presented, Presented::Current { .. } | Presented::InGrace)
            && session.standing_if_seen(last_seen_at, touchpoint, now).is_ok()
            && now < last_seen_at + touchpoint.policy.visit_gap;
        if !lives {
            return None;
        }
        let session = Session { last_seen_at, ..session.clone() };
        Some((Seen { session, stored: known.stored().clone(), presented, fresh_as_of, degraded: false }, at))
    }

    /// Keeps what was read of a session.
    pub(super) fn remember(&self, key: &(TenantId, SessionId), ticket: Ticket, seen: &Seen, now: Time) {
        let known = self.sessions.get(key);
        if !known.is_some_and(|known| known.value.renew(&seen.session, &seen.stored)) {
            let known = Known::new(seen.session.clone(), seen.stored.clone());
            self.sessions
                .insert(key, ticket, Arc::new(Entry { value: known, sent_at: now }));
        }
    }

    /// Refuses a session that does not live, or a token of it that is superseded. Counts as activity, and so may begin a
    /// visit, but moves none: nobody would be told. Answers the visit that it is in.
    pub(super) fn require_live(
        &self,
        tenant: &TenantId,
        seen: &Seen,
        touchpoint: &Touchpoint,
        now: Time,
    ) -> Result<Visit, Failure> {
        seen.session.standing(touchpoint, now)?;
        match seen.presented {
            Presented::Current { .. } | Presented::InGrace => {}
            Presented::Superseded(grade) => return Err(grade.into()),
            // It came to live only now, by a change of the policy.
            Presented::Child => return Err(overtaken()),
            Presented::Unknown => return Err(unknown().into()),
        }
        let session = &seen.session;
        let Next { visit, units } = self.visit(tenant, session, touchpoint, now);
        let begins = visit.started_at != session.visit.started_at;
        let (stored, is_held) = (|| seen.stored.clone(), session.is_held(now));
        let begun = begins.then(|| Beginning { visit: visit.clone(), stored: stored(), is_held, units });
        self.touches.note(tenant, session.id, now, begun);
        Ok(if begins { visit } else { session.visit.clone() })
    }

    /// Writes what was dealt to a session by the visit that is being written in the place of `stored`, and by those before it
    /// that were not. What was dealt by a visit that another replica has replaced is nothing that anybody saw.
    pub(super) async fn enrol(
        &self,
        tx: &mut Tx,
        (tenant, session): (&TenantId, SessionId),
        stored: &Visit,
        units: &[Unit],
        at: Time,
    ) -> sqlx::Result<()> {
        let begun = self.touches.peek(tenant, session).and_then(|touch| touch.visit);
        let begun = begun.filter(|begun| begun.stored == *stored);
        let pending = begun.map(|begun| begun.units).unwrap_or_default();
        let deals = pending.iter().chain(units).map(|unit| Deal { tenant, session, unit, at });
        store::signal::enrol(tx, &deals.collect::<Vec<_>>()).await
    }

    /// The live session of a token.
    pub(super) async fn live_session(
        &self,
        caller: &Caller,
        token: &str,
        now: Time,
    ) -> Result<(Session, Arc<Entry<Touchpoint>>), Failure> {
        let (seen, touchpoint) = self.session_of(caller, token, now).await?;
        let visit = self.require_live(&caller.tenant, &seen, &touchpoint.value, now)?;
        let last_seen_at = seen.session.last_seen_at.max(now);
        Ok((Session { last_seen_at, visit, ..seen.session }, touchpoint))
    }

    /// The session of an id, if there is one, with its touchpoint, as the mutation's transaction sees them. Whether it lives
    /// is not asked yet.
    pub(super) async fn session_in(
        &self,
        work: &mut Mutation,
        id: SessionId,
    ) -> Result<Option<(Session, Touchpoint)>, Failure> {
        let tenant = work.actor.tenant.clone();
        let touch = self.touches.peek(&tenant, id);
        let Some(mut session) = store::session::find(&mut work.tx, &tenant, id).await? else {
            return Ok(None);
        };
        if let Some(touch) = touch {
            touch.overlay(&mut session);
        }
        let touchpoint = store::touchpoint::find(&mut work.tx, &tenant, &session.touchpoint).await?;
        let touchpoint = touchpoint.ok_or_else(|| no_touchpoint(&session.touchpoint))?;
        Ok(Some((session, touchpoint)))
    }

    /// The first use of a token that was handed out: from now on its parent is on its way out. False if another write of
    /// the session came first.
    pub(super) async fn use_child(
        &self,
        tenant: &TenantId,
        session: &mut Session,
        now: Time,
    ) -> Result<bool, Failure> {
        let used = session.lineage.clone().use_child(now);
        if !self.write_lineage(tenant, session, &used, "session.token_used", now).await? {
            return Ok(false);
        }
        session.lineage = used;
        Ok(true)
    }

    /// Writes where a session's tokens stand; false if another write of the session came first.
    pub(super) async fn write_lineage(
        &self,
        tenant: &TenantId,
        session: &Session,
        next: &Lineage,
        kind: &'static str,
        now: Time,
    ) -> Result<bool, Failure> {
        let id = session.id;
        let mut tx = self.db.begin(None).await?;
        if !store::session::replace_lineage(&mut tx, tenant, id, &session.lineage, next).await? {
            return Ok(false);
        }
        OUTBOX
            .append(&mut tx, &system(tenant, kind, id.to_string(), json!({}), now))
            .await?;
        tx.commit().await?;
        self.sessions.invalidate(&(tenant.clone(), id));
        Ok(true)
    }

    /// Revokes the session of a token that was, or whose successor was, stolen; false if another write of the session came
    /// first.
    pub(super) async fn end_stale(
        &self,
        tenant: &TenantId,
        session: &Session,
        now: Time,
    ) -> Result<bool, Failure> {
        let mut tx = self.db.begin(None).await?;
        if !store::revocation::revoke_stale(&mut tx, tenant, session, now).await? {
            return Ok(false);
        }
        let data = json!({"reason": RevokeReason::StaleLineage.name()});
        let event = system(tenant, "session.revoked", session.id.to_string(), data, now);
        OUTBOX.append(&mut tx, &event).await?;
        tx.commit().await?;
        self.sessions.invalidate(&(tenant.clone(), session.id));
        Ok(true)
    }
}

/// Takes a session's token out of a request, and leaves in its place which session it is of.
pub(super) fn name_session(token: &mut String) -> String {
    let id = SessionToken::parse(token).map(|token| token.session_id().to_string());
    std::mem::replace(token, id.unwrap_or_default())
}

/// No session has this token.
pub(super) fn unknown() -> Refusal {
    Refusal::new(Reason::SessionUnknown, "the session token is of no live session")
        .with("advice", "CREATE_SESSION")
}

/// Refuses a session whose authentication will not do.
pub(super) fn require(
    requirement: &Requirement,
    session: &Session,
    touchpoint: &Touchpoint,
    now: Time,
) -> Result<(), Refusal> {
    let met = requirement.check(session.identity.as_deref(), &touchpoint.policy, now);
    met.map_err(|lacking| {
        let reason = match lacking {
            Lacking::Level => Reason::SessionAssuranceTooLow,
            Lacking::Age => Reason::SessionAuthenticationTooOld,
        };
        let refusal = Refusal::new(reason, lacking.to_string()).with("advice", "STEP_UP");
        match requirement.level {
            Some(level) => refusal.with("required_assurance", level.number()),
            None => refusal,
        }
    })
}

impl From<Grade> for Failure {
    fn from(grade: Grade) -> Self {
        let (name, advice) = match grade {
            Grade::Race => ("RACE", "USE_NEW_TOKEN"),
            Grade::Orphan => ("ORPHAN", "CREATE_SESSION"),
            Grade::StaleLineage => ("STALE_LINEAGE", "CREATE_SESSION"),
        };
        Refusal::new(Reason::SessionTokenSuperseded, grade.to_string())
            .with("grade", name)
            .with("advice", advice)
            .into()
    }
}

impl From<crate::domain::attribute::Attribute> for shared::pb::session::Attribute {
    fn from(attribute: crate::domain::attribute::Attribute) -> Self {
        let crate::domain::attribute::Attribute { key, value, version } = attribute;
        Self { key, value, version }
    }
}
