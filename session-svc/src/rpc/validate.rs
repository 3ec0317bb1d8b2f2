//! Whose token this is and whether it is still good: the verdict of `ValidateSession`, and what every rpc that names a
//! session by its token asks first.
//!
//! Memory may only ever say that a session lives, within the visit it knows; everything else is read from the database
//! before it is said, so that no replica logs out whom another one saw.

use std::sync::Arc;

use shared::auth::Caller;
use shared::id::TenantId;
use shared::pb::session as pb;
use shared::status::{Failure, Reason, Refusal, is_away};
use shared::time::{Time, to_proto};

use super::session_service::{pins_to_proto, session_to_proto};
use super::{App, Found, ended, is_within, no_touchpoint};
use crate::cache::Entry;
use crate::domain::session::{Ended, Session};
use crate::domain::token::SessionToken;
use crate::domain::touchpoint::Touchpoint;
use crate::domain::visit::{self, Visit};
use crate::store;

/// Why a token does not get its session.
pub enum Refused {
    /// No such session, or not its secret.
    Unknown,
    /// Its session, but not any more.
    Ended(Ended),
}

impl Refused {
    /// As an rpc other than `ValidateSession` answers it.
    pub fn into_refusal(self) -> Refusal {
        match self {
            Self::Unknown => Refusal::new(Reason::SessionUnknown, "the session token is of no live session"),
            Self::Ended(why) => ended(why),
        }
    }

    fn verdict(&self) -> pb::Verdict {
        match self {
            Self::Unknown => pb::Verdict::SessionUnknown,
            Self::Ended(Ended::Idle) => pb::Verdict::IdleExpired,
            Self::Ended(Ended::Lifetime) => pb::Verdict::Expired,
            Self::Ended(Ended::Revoked) => pb::Verdict::Revoked,
        }
    }
}

impl App {
    /// The verdict on a token that was presented at a touchpoint.
    pub async fn validate(
        &self,
        caller: &Caller,
        request: pb::ValidateSessionRequest,
    ) -> Result<pb::ValidateSessionResponse, Failure> {
        let pb::ValidateSessionRequest { session_token, touchpoint, consistency } = request;
        let touchpoint = shared::parse::parse("touchpoint", &touchpoint)?;
        let consistency: pb::Consistency = shared::parse::known_or_default("consistency", consistency)?;
        if session_token.is_empty() {
            return Err(Refusal::field("session_token", "is required").into());
        }
        caller.require_touchpoint(&touchpoint)?;
        let (now, strong) = (self.clock.now(), consistency == pb::Consistency::Strong);
        let at = self
            .touchpoint(&caller.tenant, &touchpoint, strong, now)
            .await?
            .ok_or_else(|| no_touchpoint(&touchpoint))?;
        let Ok(token) = SessionToken::parse(&session_token) else {
            return Ok(verdict(pb::Verdict::SessionUnknown, now, false));
        };
        let Some(found) = self.session(&caller.tenant, &token, &at, strong, now).await? else {
            return Ok(verdict(pb::Verdict::SessionUnknown, now, false));
        };
        let (fresh_as_of, degraded) = (found.fresh_as_of.min(at.fresh_as_of), found.degraded || at.degraded);
        let mut session = found.entry.value.clone();
        if session.touchpoint != touchpoint {
            return Ok(verdict(pb::Verdict::WrongTouchpoint, fresh_as_of, degraded));
        }
        let policy = &at.entry.value.policy;
        if let Err(why) = session.standing(policy, now) {
            return Ok(verdict(Refused::Ended(why).verdict(), fresh_as_of, degraded));
        }
        self.see(&caller.tenant, &mut session, &at.entry.value, now);
        Ok(pb::ValidateSessionResponse {
            session: Some(session_to_proto(&session, policy, now)),
            pins: pins_to_proto(&session.visit.pins),
            ..verdict(pb::Verdict::Active, fresh_as_of, degraded)
        })
    }

    /// The live session of a token, read from the database, with its touchpoint; counts as activity.
    pub async fn live_session(
        &self,
        caller: &Caller,
        token: &str,
        now: Time,
    ) -> Result<(Session, Arc<Entry<Touchpoint>>), Failure> {
        let token = SessionToken::parse(token).map_err(|_| Refused::Unknown.into_refusal())?;
        let tenant = &caller.tenant;
        let touch = self.touches.peek(tenant, token.session_id());
        let mut session = store::session::find(&mut *self.db.connection().await?, tenant, token.session_id())
            .await?
            .filter(|session| session.token_hash == token.hash())
            .ok_or_else(|| Refused::Unknown.into_refusal())?;
        if let Some(touch) = touch {
            touch.overlay(&mut session);
        }
        caller.require_touchpoint(&session.touchpoint)?;
        let touchpoint = self.required_touchpoint(tenant, &session.touchpoint, false, now).await?.entry;
        session.standing(&touchpoint.value.policy, now).map_err(ended)?;
        self.see(tenant, &mut session, &touchpoint.value, now);
        Ok((session, touchpoint))
    }

    /// The session of a token with what was seen of it since it was read; `None` if there is none, or the secret is not
    /// its.
    async fn session(
        &self,
        tenant: &TenantId,
        token: &SessionToken,
        at: &Found<Touchpoint>,
        strong: bool,
        now: Time,
    ) -> Result<Option<Found<Session>>, Failure> {
        let policy = &at.entry.value.policy;
        let key = (tenant.clone(), token.session_id());
        let touch = self.touches.peek(tenant, token.session_id());
        let known = self.sessions.get(&key).map(|entry| {
            let mut session = entry.value.clone();
            if let Some(touch) = &touch {
                touch.overlay(&mut session);
            }
            let is_good = session.token_hash == token.hash()
                && session.standing(policy, now).is_ok()
                && session.touchpoint == at.entry.value.id
                && now < session.last_seen_at + policy.visit_gap;
            let fresh_as_of = self.fresh_as_of(&entry);
            (
                is_good,
                Found {
                    entry: Arc::new(Entry { value: session, sent_at: entry.sent_at }),
                    fresh_as_of,
                    degraded: false,
                },
            )
        });
        if let Some((true, found)) = &known
            && !strong
            && is_within(found.fresh_as_of, now, policy.staleness_bound)
        {
            return Ok(known.map(|(_, found)| found));
        }
        let ticket = self.sessions.ticket(&key);
        let read = async {
            store::session::find(&mut *self.db.connection().await?, tenant, token.session_id()).await
        };
        match read.await {
            Ok(None) => Ok(None),
            Ok(Some(session)) if session.token_hash != token.hash() => Ok(None),
            Ok(Some(mut session)) => {
                self.sessions
                    .insert(&key, ticket, Arc::new(Entry { value: session.clone(), sent_at: now }));
                if let Some(touch) = &touch {
                    touch.overlay(&mut session);
                }
                Ok(Some(Found {
                    entry: Arc::new(Entry { value: session, sent_at: now }),
                    fresh_as_of: now,
                    degraded: false,
                }))
            }
            Err(error) if is_away(&error) => match known {
                Some((true, found)) if is_within(found.fresh_as_of, now, policy.outage_bound) => {
                    Ok(Some(Found { degraded: true, ..found }))
                }
                _ => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Notes that a live session was seen now, and brings its visit up to date: a new one after a gap, or the present one
    /// on what it may be served.
    fn see(&self, tenant: &TenantId, session: &mut Session, touchpoint: &Touchpoint, now: Time) {
        let is_new = now >= session.last_seen_at + touchpoint.policy.visit_gap;
        let (before, in_checkout) = (&session.visit, session.checkout.is_some());
        let next = self.routes.with(tenant, &touchpoint.components, now, |routing| {
            // A checkout holds the releases, however long the payment takes.
            let pins = if is_new && !in_checkout {
                visit::begin(session.id, &before.pins, routing)
            } else {
                visit::keep(session.id, &before.pins, in_checkout, routing)
            };
            Visit { started_at: if is_new { now } else { before.started_at }, pins }
        });
        let changed = (next != session.visit).then(|| (next.clone(), session.visit.clone()));
        self.touches.note(tenant, session.id, now, changed);
        session.visit = next;
        session.last_seen_at = session.last_seen_at.max(now);
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
