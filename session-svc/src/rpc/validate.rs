//! Whose token this is and whether it is still good: the verdict of `ValidateSession`.
//!
//! Memory may only ever say that a session lives, in the visit and on the releases it knows; everything else is read from
//! the database before it is said, so that no replica logs out, or moves out of a checkout, whom another one saw.

use shared::auth::Caller;
use shared::id::{SessionId, TenantId};
use shared::parse::{known_or_default, parse};
use shared::pb::session as pb;
use shared::status::{Failure, is_away};
use shared::time::{Time, duration_to_proto, to_proto};
use tonic::Request;

use super::convert::{parse_requirement, pins_to_proto, session_to_proto_if_seen};
use super::live::Seen;
use super::{App, Found, is_within, overtaken};
use crate::OUTBOX;
use crate::domain::assurance::{Lacking, Requirement};
use crate::domain::lineage::{Grade, Presented};
use crate::domain::session::{Ended, Session};
use crate::domain::token::{SessionToken, TokenHash};
use crate::domain::touchpoint::Touchpoint;
use crate::domain::visit::{self, Next};
use crate::known::Known;
use crate::store;
use crate::store::session::Loaded;
use crate::store::visit::Beginning;
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

/// What is asked: whose token this is, and what else must hold.
struct Asked<'a> {
    tenant: &'a TenantId,
    session: SessionId,
    hash: TokenHash,
    requirement: Requirement,
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
        let at = self.remembered_touchpoint(&caller.tenant, &touchpoint, now).await?;
        let Ok(token) = SessionToken::parse(&session_token) else {
            return Ok(verdict(pb::Verdict::SessionUnknown, now, false));
        };
        let asked =
            Asked { tenant: &caller.tenant, session: token.session_id(), hash: token.hash(), requirement };
        let remembered = if strong { None } else { self.recall(&asked, &at, now) };
        let answer = match remembered {
            Some(answer) => answer,
            // Boxed, so that the answer from memory moves no room for it about.
            None => Box::pin(self.judge(&asked, at, strong, now)).await?,
        };
        if include_attributes && answer.verdict() == pb::Verdict::Active {
            return Box::pin(self.with_attributes(&asked, answer)).await;
        }
        Ok(answer)
    }

    async fn with_attributes(
        &self,
        asked: &Asked<'_>,
        answer: pb::ValidateSessionResponse,
    ) -> Result<pb::ValidateSessionResponse, Failure> {
        let mut db = self.db.connection().await?;
        let attributes = store::attribute::list(&mut db, asked.tenant, asked.session).await?;
        Ok(pb::ValidateSessionResponse {
            attributes: attributes.into_iter().map(Into::into).collect(),
            ..answer
        })
    }

    /// The verdict from memory, without a lock or a statement; `None` unless it is that the session lives, in the visit and
    /// on the releases that are known here.
    fn recall(
        &self,
        asked: &Asked<'_>,
        at: &Found<Touchpoint>,
        now: Time,
    ) -> Option<pb::ValidateSessionResponse> {
        let touchpoint = &at.entry.value;
        let entry = self.sessions.get(&(asked.tenant.clone(), asked.session))?;
        let (known, session) = (&entry.value, &entry.value.session);
        let fresh_as_of = self.fresh_as_of(&entry).min(at.fresh_as_of);
        let presented = session.lineage.grade(asked.hash, touchpoint.policy.rotation_grace, now);
        let last_seen_at = known.last_seen_at();
        let lives = is_within(fresh_as_of, now, touchpoint.policy.staleness_bound)
            && matches!(presented, Presented::Current { .. } | Presented::InGrace)
            && session.touchpoint == touchpoint.id
            && session.standing_if_seen(last_seen_at, touchpoint, now).is_ok()
            && now < last_seen_at + touchpoint.policy.visit_gap;
        if !lives || !known.may_be_told() || !self.stays(asked.tenant, known, touchpoint, now) {
            return None;
        }
        if known.see(now) {
            self.touches.note(asked.tenant, asked.session, now, None);
        }
        Some(answer(session, last_seen_at.max(now), presented, touchpoint, asked, fresh_as_of, now))
    }

    /// Whether a running visit is still on the releases that it should be on.
    fn stays(&self, tenant: &TenantId, known: &Known, touchpoint: &Touchpoint, now: Time) -> bool {
        let routes = self.routes.view(now);
        let (session, is_held) = (&known.session, known.session.is_held(now));
        // None comes round to an old value within the life of an entry.
        let state = (routes.number << 21) ^ (u64::from(is_held) << 20) ^ touchpoint.version.unsigned_abs();
        if known.is_routed_by(state) {
            return true;
        }
        let stays = routes.with(tenant, &touchpoint.components, |routing| {
            visit::next(session.id, &session.visit, false, is_held, now, routing).visit == session.visit
        });
        if stays {
            known.routed_by(state);
        }
        stays
    }

    /// The verdict from the database, or, while that is away, from memory within the outage bound.
    async fn judge(
        &self,
        asked: &Asked<'_>,
        mut at: Found<Touchpoint>,
        strong: bool,
        now: Time,
    ) -> Result<pb::ValidateSessionResponse, Failure> {
        let tenant = asked.tenant;
        for _ in 0..ATTEMPTS {
            let mut seen = match self.read(asked, &mut at, now).await {
                Ok(Some(seen)) => seen,
                Ok(None) => return Ok(verdict(pb::Verdict::SessionUnknown, now, false)),
                Err(Failure::Storage(error)) if !strong && is_away(&error) => {
                    self.recall_degraded(asked, &at, now).ok_or(error)?
                }
                Err(error) => return Err(error),
            };
            let touchpoint = &at.entry.value;
            let (fresh_as_of, degraded) = (seen.fresh_as_of.min(at.fresh_as_of), seen.degraded);
            if seen.session.touchpoint != touchpoint.id {
                return Ok(verdict(pb::Verdict::WrongTouchpoint, fresh_as_of, degraded));
            }
            if let Err(why) = seen.session.standing(touchpoint, now) {
                return Ok(verdict(verdict_of(why), fresh_as_of, degraded));
            }
            match seen.presented {
                Presented::Superseded(Grade::StaleLineage)
                    if !self.end_stale(tenant, &seen.session, now).await? =>
                {
                    continue;
                }
                Presented::Superseded(grade) => return Ok(superseded(grade, fresh_as_of, degraded)),
                Presented::Child if !self.use_child(tenant, &mut seen.session, now).await? => continue,
                Presented::Unknown => return Ok(verdict(pb::Verdict::SessionUnknown, now, degraded)),
                Presented::Child | Presented::Current { .. } | Presented::InGrace => {}
            }
            let before = &seen.session.visit;
            let Next { mut visit, units } = self.visit(tenant, &seen.session, touchpoint, now);
            let begins = visit.started_at != before.started_at;
            let moves = !begins && visit.pins != before.pins;
            let is_dealt = visit.is_dealt_beyond(&seen.stored);
            let (stored, is_held) = (seen.stored, seen.session.is_held(now));
            let next = Beginning { visit: visit.clone(), stored, is_held, units };
            if (moves || is_dealt) && !seen.degraded {
                if !self.move_visit(tenant, asked.session, &next, now).await? {
                    continue;
                }
                self.touches.note(tenant, asked.session, now, None);
            } else {
                if moves {
                    // A checkout may have begun that is not known here.
                    visit = before.clone();
                }
                self.touches.note(tenant, asked.session, now, begins.then_some(next));
            }
            if begins {
                self.sessions.invalidate(&(tenant.clone(), asked.session));
            }
            let last_seen_at = seen.session.last_seen_at.max(now);
            let session = Session { visit, ..seen.session };
            let answer = answer(&session, last_seen_at, seen.presented, touchpoint, asked, fresh_as_of, now);
            return Ok(pb::ValidateSessionResponse { degraded, ..answer });
        }
        Err(overtaken())
    }

    /// The session of a token as it is now, with its touchpoint as it is now; `None` if there is none, or the secret is not
    /// its.
    #[tracing::instrument(name = "session.read", skip_all)]
    async fn read(
        &self,
        asked: &Asked<'_>,
        at: &mut Found<Touchpoint>,
        now: Time,
    ) -> Result<Option<Seen>, Failure> {
        let key = (asked.tenant.clone(), asked.session);
        let touch = self.touches.peek(asked.tenant, asked.session);
        let ticket = self.sessions.ticket(&key);
        let Some(Loaded { session, touchpoint_version, session_epoch }) = self.loads.ask(key.clone()).await?
        else {
            return Ok(None);
        };
        let known = &at.entry.value;
        if session.touchpoint == known.id {
            if (known.version, known.session_epoch) == (touchpoint_version, session_epoch) {
                at.fresh_as_of = at.fresh_as_of.max(now);
            } else {
                let id = known.id.clone();
                *at = self.required_touchpoint(asked.tenant, &id, true, now).await?;
            }
        }
        let grace = at.entry.value.policy.rotation_grace;
        let presented = session.lineage.grade(asked.hash, grace, now);
        if presented == Presented::Unknown {
            return Ok(None);
        }
        let seen = Seen::new(session, presented, touch.as_ref(), now);
        self.remember(&key, ticket, &seen, now);
        Ok(Some(seen))
    }

    /// What was last known of the session of a token, if that is not too long ago.
    fn recall_degraded(&self, asked: &Asked<'_>, at: &Found<Touchpoint>, now: Time) -> Option<Seen> {
        let entry = self.sessions.get(&(asked.tenant.clone(), asked.session))?;
        let (known, policy) = (&entry.value, &at.entry.value.policy);
        let session = Session { last_seen_at: known.last_seen_at(), ..known.session.clone() };
        let presented = session.lineage.grade(asked.hash, policy.rotation_grace, now);
        let fresh_as_of = self.fresh_as_of(&entry);
        // Memory may only ever say that a session lives.
        let is_good = is_within(fresh_as_of.min(at.fresh_as_of), now, policy.outage_bound)
            && matches!(presented, Presented::Current { .. } | Presented::InGrace)
            && session.touchpoint == at.entry.value.id
            && session.standing(&at.entry.value, now).is_ok();
        let stored = known.stored().clone();
        is_good.then_some(Seen { session, stored, presented, fresh_as_of, degraded: true })
    }

    /// The visit that a live session is in now: a new one after a gap, or the present one on what it may be served. A
    /// checkout holds the releases, however long the payment takes.
    pub(super) fn visit(
        &self,
        tenant: &TenantId,
        session: &Session,
        touchpoint: &Touchpoint,
        now: Time,
    ) -> Next {
        let is_over = now >= session.last_seen_at + touchpoint.policy.visit_gap;
        let (before, is_held) = (&session.visit, session.is_held(now));
        self.routes.view(now).with(tenant, &touchpoint.components, |routing| {
            visit::next(session.id, before, is_over, is_held, now, routing)
        })
    }

    /// Puts a visit on other releases, at once and only if nothing began to hold it meanwhile; false if something else came
    /// first.
    async fn move_visit(
        &self,
        tenant: &TenantId,
        id: SessionId,
        next: &Beginning,
        now: Time,
    ) -> Result<bool, Failure> {
        let mut tx = self.db.begin(None).await?;
        if !store::visit::move_visit(&mut tx, tenant, id, next, now).await? {
            drop(tx);
            // Perhaps one of the releases was killed, and that is not known here yet.
            self.load_kills().await?;
            return Ok(false);
        }
        self.enrol(&mut tx, (tenant, id), &next.stored, &next.units, now).await?;
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

/// What to say of a session that lives.
fn answer(
    session: &Session,
    last_seen_at: Time,
    presented: Presented,
    touchpoint: &Touchpoint,
    asked: &Asked<'_>,
    fresh_as_of: Time,
    now: Time,
) -> pb::ValidateSessionResponse {
    if let Err(lacking) = asked.requirement.check(session.identity.as_deref(), &touchpoint.policy, now) {
        return lacks(lacking, &asked.requirement, session, touchpoint, fresh_as_of, now);
    }
    let has_successor = matches!(presented, Presented::Current { has_child: true } | Presented::InGrace);
    let grade = if has_successor { pb::TokenGrade::Replaced } else { pb::TokenGrade::Current };
    pb::ValidateSessionResponse {
        session: Some(session_to_proto_if_seen(session, last_seen_at, touchpoint, now)),
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
    fresh_as_of: Time,
    now: Time,
) -> pb::ValidateSessionResponse {
    let done = session.identity.as_deref().map(|identity| &identity.authentication);
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
    pb::ValidateSessionResponse { step_up: Some(step_up), ..verdict(found, fresh_as_of, false) }
}
