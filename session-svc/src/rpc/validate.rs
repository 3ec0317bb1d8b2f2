//! Whose token this is and whether it is still good: the verdict of `ValidateSession`.
//!
//! Memory may only ever say that a session lives, in the visit and on the releases it knows; everything else is read from
//! the database before it is said, so that no replica logs out, or moves out of a checkout, whom another one saw.

use std::sync::Arc;

use shared::auth::Caller;
use shared::id::TenantId;
use shared::parse::{known_or_default, parse};
use shared::pb::session as pb;
use shared::status::{Failure, is_away};
use shared::time::{Time, duration_to_proto, to_proto};
use tonic::Request;

use super::convert::{parse_requirement, pins_to_proto, session_to_proto};
use super::live::Seen;
use super::{App, Found, is_within, overtaken};
use crate::OUTBOX;
use crate::cache::Entry;
use crate::domain::assurance::{Lacking, Requirement};
use crate::domain::lineage::{Grade, Presented};
use crate::domain::session::{Ended, Session};
use crate::domain::token::SessionToken;
use crate::domain::touchpoint::Touchpoint;
use crate::domain::visit::{self, Visit};
use crate::store;
use crate::workers::pinned;

/// A write loses only to another write of the same session; after so many the caller tries again.
const ATTEMPTS: u32 = 4;

/// What `ValidateSession` calls it.
fn verdict_of(ended: Ended) -> pb::Verdict {
    match ended {
        Ended::Idle => pb::Verdict::IdleExpired,
        Ended::Lifetime => pb::Verdict::Expired,
        Ended::Revoked => pb::Verdict::Revoked,
    }
}

impl App {
    /// The verdict on a token that was presented at a touchpoint.
    pub(super) async fn validate(
        &self,
        request: Request<pb::ValidateSessionRequest>,
    ) -> Result<pb::ValidateSessionResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::ValidateSessionRequest {
            session_token,
            touchpoint,
            consistency,
            required_assurance,
            max_authentication_age,
            include_attributes,
        } = request.into_inner();
        let touchpoint = parse("touchpoint", &touchpoint)?;
        let consistency: pb::Consistency = known_or_default("consistency", consistency)?;
        let requirement = parse_requirement(required_assurance, max_authentication_age)?;
        caller.require_touchpoint(&touchpoint)?;
        let (now, strong) = (self.clock.now(), consistency == pb::Consistency::Strong);
        let at = self.required_touchpoint(&caller.tenant, &touchpoint, strong, now).await?;
        let Ok(token) = SessionToken::parse(&session_token) else {
            return Ok(verdict(pb::Verdict::SessionUnknown, now, false));
        };
        let answer = self.judge(&caller.tenant, &token, at, &requirement, strong, now).await?;
        if !include_attributes || answer.verdict() != pb::Verdict::Active {
            return Ok(answer);
        }
        let mut db = self.db.connection().await?;
        let attributes = store::attribute::list(&mut db, &caller.tenant, token.session_id()).await?;
        Ok(pb::ValidateSessionResponse {
            attributes: attributes.into_iter().map(Into::into).collect(),
            ..answer
        })
    }

    async fn judge(
        &self,
        tenant: &TenantId,
        token: &SessionToken,
        mut at: Found<Touchpoint>,
        requirement: &Requirement,
        strong: bool,
        now: Time,
    ) -> Result<pb::ValidateSessionResponse, Failure> {
        for attempt in 0..ATTEMPTS {
            let found = self.session(tenant, token, &at, strong || attempt > 0, now).await?;
            let Some((mut seen, mut visit)) = found else {
                return Ok(verdict(pb::Verdict::SessionUnknown, now, false));
            };
            let touchpoint = &at.entry.value;
            let (fresh_as_of, degraded) =
                (seen.fresh_as_of.min(at.fresh_as_of), seen.degraded || at.degraded);
            if seen.session.touchpoint != touchpoint.id {
                return Ok(verdict(pb::Verdict::WrongTouchpoint, fresh_as_of, degraded));
            }
            match seen.session.standing(touchpoint, now) {
                Ok(()) => {}
                // The policy may have changed, too; nobody is logged out by an old one.
                Err(Ended::Idle) if at.fresh_as_of < now => {
                    let id = touchpoint.id.clone();
                    at = self.required_touchpoint(tenant, &id, true, now).await?;
                    continue;
                }
                Err(why) => return Ok(verdict(verdict_of(why), fresh_as_of, degraded)),
            }
            match seen.presented {
                Presented::Superseded(grade) => {
                    self.end_stale(tenant, &seen.session, grade, now).await?;
                    return Ok(superseded(grade, fresh_as_of, degraded));
                }
                Presented::Child if !self.use_child(tenant, &mut seen.session, now).await? => continue,
                Presented::Child | Presented::Current { .. } | Presented::InGrace | Presented::Unknown => {}
            }
            let moves =
                visit.pins != seen.session.visit.pins && visit.started_at == seen.session.visit.started_at;
            if moves && seen.degraded {
                // A checkout may have begun that is not known here.
                visit = seen.session.visit.clone();
            } else if moves && !self.move_visit(tenant, &seen, &visit, now).await? {
                continue;
            }
            let begun =
                (visit.started_at != seen.session.visit.started_at).then(|| (visit.clone(), seen.stored));
            self.touches.note(tenant, seen.session.id, now, begun);
            let session = Session { visit, last_seen_at: seen.session.last_seen_at.max(now), ..seen.session };
            let answer = match requirement.check(session.identity.as_ref(), &touchpoint.policy, now) {
                Ok(()) => active(&session, seen.presented, touchpoint, fresh_as_of, now),
                Err(lacking) => lacks(lacking, requirement, &session, touchpoint, now),
            };
            return Ok(pb::ValidateSessionResponse {
                fresh_as_of: Some(to_proto(fresh_as_of)),
                degraded,
                ..answer
            });
        }
        Err(overtaken())
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
        let (touchpoint, id, hash) = (&at.entry.value, token.session_id(), token.hash());
        let grace = touchpoint.policy.rotation_grace;
        let key = (tenant.clone(), id);
        let touch = self.touches.peek(tenant, id);
        let known = self.sessions.get(&key).and_then(|entry| {
            let presented = entry.value.lineage.grade(hash, grace, now);
            let works = matches!(presented, Presented::Current { .. } | Presented::InGrace);
            if !works || entry.value.touchpoint != touchpoint.id {
                return None;
            }
            let fresh_as_of = self.fresh_as_of(&entry);
            let seen = Seen::new(entry.value.clone(), presented, touch.as_ref(), fresh_as_of);
            let lives = seen.session.standing(touchpoint, now).is_ok();
            let visit = lives.then(|| self.visit(tenant, &seen.session, touchpoint, now))?;
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
            (Ok(Some(session)), _) => {
                let presented = session.lineage.grade(hash, grace, now);
                if presented == Presented::Unknown {
                    return Ok(None);
                }
                self.sessions
                    .insert(&key, ticket, Arc::new(Entry { value: session.clone(), sent_at: now }));
                let seen = Seen::new(session, presented, touch.as_ref(), now);
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
    pub(super) fn visit(
        &self,
        tenant: &TenantId,
        session: &Session,
        touchpoint: &Touchpoint,
        now: Time,
    ) -> Visit {
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
    let advice = match verdict {
        pb::Verdict::Unspecified | pb::Verdict::Active => pb::Advice::Unspecified,
        pb::Verdict::SessionUnknown
        | pb::Verdict::IdleExpired
        | pb::Verdict::Expired
        | pb::Verdict::Revoked
        | pb::Verdict::TokenSuperseded => pb::Advice::CreateSession,
        pb::Verdict::WrongTouchpoint => pb::Advice::UseOtherTouchpoint,
        pb::Verdict::AssuranceTooLow | pb::Verdict::AuthenticationTooOld => pb::Advice::StepUp,
    };
    pb::ValidateSessionResponse {
        verdict: verdict.into(),
        fresh_as_of: Some(to_proto(fresh_as_of)),
        degraded,
        advice: advice.into(),
        ..pb::ValidateSessionResponse::default()
    }
}

fn superseded(grade: Grade, fresh_as_of: Time, degraded: bool) -> pb::ValidateSessionResponse {
    let answer = verdict(pb::Verdict::TokenSuperseded, fresh_as_of, degraded);
    let (grade, advice) = match grade {
        Grade::Race => (pb::TokenGrade::Race, pb::Advice::UseNewToken),
        Grade::Orphan => (pb::TokenGrade::Orphan, pb::Advice::CreateSession),
        Grade::StaleLineage => (pb::TokenGrade::StaleLineage, pb::Advice::CreateSession),
    };
    pb::ValidateSessionResponse { token_grade: grade.into(), advice: advice.into(), ..answer }
}

fn active(
    session: &Session,
    presented: Presented,
    touchpoint: &Touchpoint,
    fresh_as_of: Time,
    now: Time,
) -> pb::ValidateSessionResponse {
    let has_successor = matches!(presented, Presented::Current { has_child: true } | Presented::InGrace);
    let grade = if has_successor { pb::TokenGrade::Replaced } else { pb::TokenGrade::Current };
    pb::ValidateSessionResponse {
        session: Some(session_to_proto(session, touchpoint, now)),
        pins: pins_to_proto(&session.visit.pins),
        token_grade: grade.into(),
        stale_time: Some(to_proto(fresh_as_of + touchpoint.policy.staleness_bound)),
        ..verdict(pb::Verdict::Active, fresh_as_of, false)
    }
}

/// Says what to reach, and nothing of who is logged in.
fn lacks(
    lacking: Lacking,
    requirement: &Requirement,
    session: &Session,
    touchpoint: &Touchpoint,
    now: Time,
) -> pb::ValidateSessionResponse {
    let done = session.identity.as_ref().map(|identity| &identity.authentication);
    let step_up = pb::StepUp {
        required_assurance: requirement.level.map_or(0, |level| level.number().into()),
        max_authentication_age: requirement.max_age.map(duration_to_proto),
        assurance: done.map_or(0, |done| done.level_at(&touchpoint.policy, now).0.number().into()),
        authenticate_time: done.map(|done| to_proto(done.at)),
    };
    let found = match lacking {
        Lacking::Level => pb::Verdict::AssuranceTooLow,
        Lacking::Age => pb::Verdict::AuthenticationTooOld,
    };
    pb::ValidateSessionResponse { step_up: Some(step_up), ..verdict(found, now, false) }
}
