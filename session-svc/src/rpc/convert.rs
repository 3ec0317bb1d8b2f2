//! Sessions on the wire.

use std::time::Duration;

use shared::id::ComponentId;
use shared::parse::{duration, known, line, within};
use shared::pb::session as pb;
use shared::status::Refusal;
use shared::time::{Time, to_proto};

use crate::domain::assurance::{Level, Requirement};
use crate::domain::session::{Ended, Identity, RevokeReason, Session, Subject};
use crate::domain::touchpoint::{SessionPolicy, Touchpoint};
use crate::domain::visit::{Arm, Pin, Pins};

/// As it stands at `now`.
pub(super) fn session_to_proto(session: &Session, at: &Touchpoint, now: Time) -> pb::Session {
    session_to_proto_if_seen(session, session.last_seen_at, at, now)
}

/// As it stands at `now`, if it was last seen then.
pub(super) fn session_to_proto_if_seen(
    session: &Session,
    last_seen_at: Time,
    at: &Touchpoint,
    now: Time,
) -> pb::Session {
    let state = match session.standing_if_seen(last_seen_at, at, now) {
        Ok(()) => pb::SessionState::Active,
        Err(Ended::Idle) => pb::SessionState::IdleExpired,
        Err(Ended::Lifetime) => pb::SessionState::Expired,
        Err(Ended::Revoked) => pb::SessionState::Revoked,
    };
    let revocation = session.revocation(at);
    let reason = revocation.map_or(pb::RevokeReason::Unspecified, |(_, reason)| reason_to_proto(reason));
    let identity = session.identity.as_ref();
    pb::Session {
        session_id: session.id.to_string(),
        touchpoint: session.touchpoint.to_string(),
        shopper_id: session.shopper.map(|shopper| shopper.to_string()).unwrap_or_default(),
        subject: identity.map(|identity| subject_to_proto(identity.subject.clone())),
        state: state.into(),
        create_time: Some(to_proto(session.created_at)),
        last_seen_time: Some(to_proto(last_seen_at)),
        idle_deadline: Some(to_proto(session.idle_deadline_if_seen(last_seen_at, at))),
        absolute_deadline: Some(to_proto(session.absolute_deadline)),
        visit_start_time: Some(to_proto(session.visit.started_at)),
        device: session.device.clone().unwrap_or_default(),
        revoke_reason: reason.into(),
        revoke_time: revocation.map(|(at, _)| to_proto(at)),
        assurance: identity.map(|identity| assurance_to_proto(identity, &at.policy, now)),
        place: session.place.clone().unwrap_or_default(),
        remember_me: session.is_remembered,
        is_current: false,
    }
}

fn assurance_to_proto(identity: &Identity, policy: &SessionPolicy, now: Time) -> pb::Assurance {
    let done = &identity.authentication;
    let (level, level_end) = done.level_at(policy, now);
    pb::Assurance {
        level: level.number().into(),
        authenticate_time: Some(to_proto(done.at)),
        level_end_time: level_end.map(to_proto),
        acr: done.acr.clone().unwrap_or_default(),
        amr: done.amr.clone(),
    }
}

/// What may be kept to answer a repetition with: records of requests hold no personal data.
pub(super) fn without_person(session: &pb::Session) -> pb::Session {
    let (device, place) = (String::new(), String::new());
    pb::Session { subject: None, device, place, ..session.clone() }
}

/// By component.
pub(super) fn pins_to_proto(pins: &Pins) -> Vec<pb::ReleasePin> {
    let pin = |(component, pin): (&ComponentId, &Pin)| pb::ReleasePin {
        component: component.to_string(),
        version: pin.release.version.clone(),
        release_id: pin.release.id.to_string(),
        arm: match pin.arm {
            None => pb::Arm::Unspecified,
            Some((_, Arm::Control)) => pb::Arm::Control,
            Some((_, Arm::Canary)) => pb::Arm::Canary,
        }
        .into(),
        rollout_id: pin.arm.map(|(rollout, _)| rollout.to_string()).unwrap_or_default(),
    };
    pins.iter().map(pin).collect()
}

pub(super) fn subject_to_proto(subject: Subject) -> pb::Subject {
    let Subject { issuer, sub } = subject;
    pb::Subject { issuer, sub }
}

pub(super) fn parse_subject(field: &str, subject: pb::Subject) -> Result<Subject, Refusal> {
    let pb::Subject { issuer, sub } = subject;
    let issuer = line(&format!("{field}.issuer"), issuer, 1, 255)?;
    Ok(Subject { issuer, sub: line(&format!("{field}.sub"), sub, 1, 255)? })
}

/// A reason that a caller may give; the others are ours.
pub(super) fn parse_reason(reason: i32) -> Result<RevokeReason, Refusal> {
    match known("reason", reason)? {
        pb::RevokeReason::Logout => Ok(RevokeReason::Logout),
        pb::RevokeReason::Admin => Ok(RevokeReason::Admin),
        pb::RevokeReason::Compromised => Ok(RevokeReason::Compromised),
        pb::RevokeReason::CredentialChanged => Ok(RevokeReason::CredentialChanged),
        pb::RevokeReason::Unspecified
        | pb::RevokeReason::Evicted
        | pb::RevokeReason::SubjectDisabled
        | pb::RevokeReason::StaleLineage
        | pb::RevokeReason::Leaked => {
            let problem = "must be LOGOUT, ADMIN, COMPROMISED or CREDENTIAL_CHANGED";
            Err(Refusal::field("reason", problem))
        }
    }
}

fn reason_to_proto(reason: RevokeReason) -> pb::RevokeReason {
    match reason {
        RevokeReason::Logout => pb::RevokeReason::Logout,
        RevokeReason::Admin => pb::RevokeReason::Admin,
        RevokeReason::Compromised => pb::RevokeReason::Compromised,
        RevokeReason::Evicted => pb::RevokeReason::Evicted,
        RevokeReason::SubjectDisabled => pb::RevokeReason::SubjectDisabled,
        RevokeReason::CredentialChanged => pb::RevokeReason::CredentialChanged,
        RevokeReason::StaleLineage => pb::RevokeReason::StaleLineage,
        RevokeReason::Leaked => pb::RevokeReason::Leaked,
    }
}

/// What a caller asks of an authentication.
pub(super) fn parse_requirement(
    required_assurance: i32,
    max_authentication_age: Option<prost_types::Duration>,
) -> Result<Requirement, Refusal> {
    let level = within("required_assurance", required_assurance, 0, 3)?;
    let max_age = duration("max_authentication_age", max_authentication_age)?;
    Ok(Requirement { level: Level::from_number(level), max_age: max_age.map(bounded) })
}

/// For how long something is to be good: at least a second, in whole microseconds.
pub(super) fn parse_ttl(
    ttl: Option<prost_types::Duration>,
    default: Duration,
    max: Duration,
) -> Result<Duration, Refusal> {
    let Some(ttl) = duration("ttl", ttl)? else { return Ok(default) };
    if !(Duration::from_secs(1)..=max).contains(&ttl) {
        return Err(Refusal::field("ttl", format_args!("must be 1 to {} seconds", max.as_secs())));
    }
    Ok(Duration::new(ttl.as_secs(), ttl.subsec_micros() * 1000))
}

/// No authentication lies back further, and no instant that is computed with it overflows.
fn bounded(age: Duration) -> Duration {
    age.min(Duration::from_hours(24 * 366 * 100))
}
