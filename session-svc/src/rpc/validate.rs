//! Whose token this is and whether it is still good: the verdict of `ValidateSession`, and what every rpc that names a
//! session by its token asks first.
//!
//! Memory may only ever say that a session lives, in the visit and on the releases it knows; everything else is read from
//! the database before it is said, so that no replica logs out, or moves out of a checkout, whom another one saw.

use std::sync::Arc;

use shared::auth::Caller;
use shared::id::TenantId;
use shared::parse::{known_or_default, parse};
use shared::pb::session as pb;
use shared::status::{Failure, Reason, Refusal, is_away};
use shared::time::{Time, to_proto};
use tonic::Request;

use super::session::{pins_to_proto, session_to_proto};
use super::{App, Found, is_within, overtaken};
use crate::OUTBOX;
use crate::cache::Entry;
use crate::domain::session::{Ended, Session};
use crate::domain::token::SessionToken;
use crate::domain::touchpoint::Touchpoint;
use crate::domain::visit::{self, Visit};
use crate::store;
use crate::store::session::Touch;
use crate::workers::pinned;

/// A move loses only to another write of the same session; after so many the caller tries again.
const MOVE_ATTEMPTS: u32 = 4;

/// What `ValidateSession` calls it.
fn verdict_of(ended: Ended) -> pb::Verdict {
    match ended {
        Ended::Idle => pb::Verdict::IdleExpired,
        Ended::Lifetime => pb::Verdict::Expired,
        Ended::Revoked => pb::Verdict::Revoked,
    }
}

fn unknown() -> Refusal {
    Refusal::new(Reason::SessionUnknown, "the session token is of no live session")
}

/// A session as it is seen here, and the visit that its row has.
pub(super) struct Seen {
    pub(super) session: Session,
    pub(super) stored: Visit,
    fresh_as_of: Time,
    degraded: bool,
}

impl Seen {
    /// `touch` is what was not written yet when the reading was sent.
    fn new(mut session: Session, touch: Option<&Touch>, fresh_as_of: Time) -> Self {
        let stored = session.visit.clone();
        if let Some(touch) = touch {
            touch.overlay(&mut session);
        }
        Self { session, stored, fresh_as_of, degraded: false }
    }
}

impl App {
    /// The verdict on a token that was presented at a touchpoint.
    pub(super) async fn validate(
        &self,
        request: Request<pb::ValidateSessionRequest>,
    ) -> Result<pb::ValidateSessionResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::ValidateSessionRequest { session_token, touchpoint, consistency } = request.into_inner();
        let touchpoint = parse("touchpoint", &touchpoint)?;
        let consistency: pb::Consistency = known_or_default("consistency", consistency)?;
        caller.require_touchpoint(&touchpoint)?;
        let (now, strong) = (self.clock.now(), consistency == pb::Consistency::Strong);
        let mut at = self.required_touchpoint(&caller.tenant, &touchpoint, strong, now).await?;
        let Ok(token) = SessionToken::parse(&session_token) else {
            return Ok(verdict(pb::Verdict::SessionUnknown, now, false));
        };
        for attempt in 0..MOVE_ATTEMPTS {
            let strong = strong || attempt > 0;
            let found = self.session(&caller.tenant, &token, &at, strong, now).await?;
            let Some((seen, mut visit)) = found else {
                return Ok(verdict(pb::Verdict::SessionUnknown, now, false));
            };
            let (fresh_as_of, degraded) =
                (seen.fresh_as_of.min(at.fresh_as_of), seen.degraded || at.degraded);
            if seen.session.touchpoint != touchpoint {
                return Ok(verdict(pb::Verdict::WrongTouchpoint, fresh_as_of, degraded));
            }
            let policy = &at.entry.value.policy;
            match seen.session.standing(policy, now) {
                Ok(()) => {}
                // The policy may have changed, too; nobody is logged out by an old one.
                Err(Ended::Idle) if at.fresh_as_of < now => {
                    at = self.required_touchpoint(&caller.tenant, &touchpoint, true, now).await?;
                    continue;
                }
                Err(why) => return Ok(verdict(verdict_of(why), fresh_as_of, degraded)),
            }
            let moves =
                visit.pins != seen.session.visit.pins && visit.started_at == seen.session.visit.started_at;
            if moves && seen.degraded {
                // A checkout may have begun that is not known here.
                visit = seen.session.visit.clone();
            } else if moves && !self.move_visit(&caller.tenant, &seen, &visit, now).await? {
                continue;
            }
            let begun =
                (visit.started_at != seen.session.visit.started_at).then(|| (visit.clone(), seen.stored));
            self.touches.note(&caller.tenant, seen.session.id, now, begun);
            let session = Session { visit, last_seen_at: seen.session.last_seen_at.max(now), ..seen.session };
            return Ok(pb::ValidateSessionResponse {
                session: Some(session_to_proto(&session, policy, now)),
                pins: pins_to_proto(&session.visit.pins),
                ..verdict(pb::Verdict::Active, fresh_as_of, degraded)
            });
        }
        Err(overtaken())
    }

    /// The session of a token, read from the database, with its touchpoint. Whether it lives is not asked yet.
    pub(super) async fn session_of(
        &self,
        caller: &Caller,
        token: &str,
        now: Time,
    ) -> Result<(Seen, Arc<Entry<Touchpoint>>), Failure> {
        let token = SessionToken::parse(token).map_err(|_| unknown())?;
        let tenant = &caller.tenant;
        let touch = self.touches.peek(tenant, token.session_id());
        let session = store::session::find(&mut *self.db.connection().await?, tenant, token.session_id())
            .await?
            .filter(|session| session.token_hash == token.hash())
            .ok_or_else(unknown)?;
        let seen = Seen::new(session, touch.as_ref(), now);
        caller.require_touchpoint(&seen.session.touchpoint)?;
        let touchpoint = self
            .required_touchpoint(tenant, &seen.session.touchpoint, false, now)
            .await?
            .entry;
        Ok((seen, touchpoint))
    }

    /// Refuses a session that does not live. Counts as activity, and so may begin a visit, but moves none: nobody would be
    /// told. Answers the visit that it is in.
    pub(super) fn require_live(
        &self,
        tenant: &TenantId,
        seen: &Seen,
        touchpoint: &Touchpoint,
        now: Time,
    ) -> Result<Visit, Ended> {
        let session = &seen.session;
        session.standing(&touchpoint.policy, now)?;
        let visit = self.visit(tenant, session, touchpoint, now);
        let begins = visit.started_at != session.visit.started_at;
        self.touches
            .note(tenant, session.id, now, begins.then(|| (visit.clone(), seen.stored.clone())));
        Ok(if begins { visit } else { session.visit.clone() })
    }

    /// The session of a token with what was seen of it since it was read, and the visit that it is in if it lives; `None` if
    /// there is none, or the secret is not its.
    async fn session(
        &self,
        tenant: &TenantId,
        token: &SessionToken,
        at: &Found<Touchpoint>,
        strong: bool,
        now: Time,
    ) -> Result<Option<(Seen, Visit)>, Failure> {
        let (touchpoint, id) = (&at.entry.value, token.session_id());
        let key = (tenant.clone(), id);
        let touch = self.touches.peek(tenant, id);
        let known = self.sessions.get(&key).and_then(|entry| {
            let seen = Seen::new(entry.value.clone(), touch.as_ref(), self.fresh_as_of(&entry));
            let session = &seen.session;
            let is_good = session.token_hash == token.hash()
                && session.touchpoint == touchpoint.id
                && session.standing(&touchpoint.policy, now).is_ok();
            let visit = is_good.then(|| self.visit(tenant, session, touchpoint, now))?;
            Some((seen, visit))
        });
        if let Some((seen, visit)) = &known
            && !strong
            && is_within(seen.fresh_as_of, now, touchpoint.policy.staleness_bound)
            && *visit == seen.session.visit
        {
            return Ok(known);
        }
        let ticket = self.sessions.ticket(&key);
        let read = async { store::session::find(&mut *self.db.connection().await?, tenant, id).await };
        match (read.await, known) {
            (Ok(None), _) => Ok(None),
            (Ok(Some(session)), _) if session.token_hash != token.hash() => Ok(None),
            (Ok(Some(session)), _) => {
                self.sessions
                    .insert(&key, ticket, Arc::new(Entry { value: session.clone(), sent_at: now }));
                let seen = Seen::new(session, touch.as_ref(), now);
                let visit = self.visit(tenant, &seen.session, touchpoint, now);
                Ok(Some((seen, visit)))
            }
            (Err(error), Some((seen, visit)))
                if !strong
                    && is_away(&error)
                    && is_within(seen.fresh_as_of, now, touchpoint.policy.outage_bound) =>
            {
                Ok(Some((Seen { degraded: true, ..seen }, visit)))
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    /// The visit that a live session is in now: a new one after a gap, or the present one on what it may be served. A
    /// checkout holds the releases, however long the payment takes.
    fn visit(&self, tenant: &TenantId, session: &Session, touchpoint: &Touchpoint, now: Time) -> Visit {
        let is_new = now >= session.last_seen_at + touchpoint.policy.visit_gap;
        let (before, in_checkout) = (&session.visit, session.in_checkout);
        self.routes.with(tenant, &touchpoint.components, now, |routing| Visit {
            started_at: if is_new { now } else { before.started_at },
            pins: if is_new && !in_checkout {
                visit::begin(session.id, &before.pins, routing)
            } else {
                visit::keep(session.id, &before.pins, in_checkout, routing)
            },
        })
    }

    /// Moves a running visit to other releases, at once and only if no checkout was begun meanwhile; false if something
    /// else came first.
    async fn move_visit(
        &self,
        tenant: &TenantId,
        seen: &Seen,
        next: &Visit,
        now: Time,
    ) -> Result<bool, Failure> {
        let id = seen.session.id;
        let mut tx = self.db.begin(None).await?;
        if !store::session::move_visit(&mut tx, tenant, id, &seen.stored, next).await? {
            return Ok(false);
        }
        OUTBOX.append(&mut tx, &pinned(tenant, id, now)).await?;
        tx.commit().await?;
        self.touches.moved(tenant, id);
        self.sessions.invalidate(&(tenant.clone(), id));
        Ok(true)
    }
}

fn verdict(verdict: pb::Verdict, fresh_as_of: Time, degraded: bool) -> pb::ValidateSessionResponse {
    let fresh_as_of = Some(to_proto(fresh_as_of));
    pb::ValidateSessionResponse {
        verdict: verdict.into(),
        session: None,
        pins: vec![],
        fresh_as_of,
        degraded,
    }
}
