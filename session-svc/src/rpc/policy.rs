//! Session and cart policies on the wire. What is unset is the default.

use shared::parse::{duration, known, line, within};
use shared::pb::session as pb;
use shared::status::Refusal;
use shared::time::duration_to_proto;

use crate::domain::abandonment::CartPolicy;
use crate::domain::session::Timeouts;
use crate::domain::touchpoint::{LimitAction, SessionLimit, SessionPolicy};

/// From the wire, checked.
pub(super) fn policy_from_proto(policy: pb::SessionPolicy) -> Result<SessionPolicy, Refusal> {
    let pb::SessionPolicy {
        idle_timeout,
        absolute_lifetime,
        visit_gap,
        staleness_bound,
        outage_bound,
        remember_me,
        level_2_max_age,
        level_3_max_age,
        session_limit,
        rotation_grace,
        allowed_issuers,
    } = policy;
    let or = SessionPolicy::default();
    let span = |name: &str, value, or| Ok::<_, Refusal>(duration(&field(name), value)?.unwrap_or(or));
    let issuer = |issuer| line(&field("allowed_issuers"), issuer, 1, 255);
    let policy = SessionPolicy {
        timeouts: Timeouts {
            idle: span("idle_timeout", idle_timeout, or.timeouts.idle)?,
            absolute: span("absolute_lifetime", absolute_lifetime, or.timeouts.absolute)?,
        },
        remember_me: remember_me.map(remember_me_from_proto).transpose()?,
        visit_gap: span("visit_gap", visit_gap, or.visit_gap)?,
        staleness_bound: span("staleness_bound", staleness_bound, or.staleness_bound)?,
        outage_bound: span("outage_bound", outage_bound, or.outage_bound)?,
        level_2_max_age: span("level_2_max_age", level_2_max_age, or.level_2_max_age)?,
        level_3_max_age: span("level_3_max_age", level_3_max_age, or.level_3_max_age)?,
        session_limit: session_limit.map(limit_from_proto).transpose()?,
        rotation_grace: span("rotation_grace", rotation_grace, or.rotation_grace)?,
        allowed_issuers: allowed_issuers.into_iter().map(issuer).collect::<Result<_, _>>()?,
    };
    let checked = policy.check();
    checked.map_err(|bad| Refusal::field(field(bad.field), bad.problem))
}

fn field(name: &str) -> String {
    format!("touchpoint.session_policy.{name}")
}

/// Neither has a default: whoever remembers says for how long.
fn remember_me_from_proto(remember_me: pb::RememberMe) -> Result<Timeouts, Refusal> {
    let pb::RememberMe { idle_timeout, absolute_lifetime } = remember_me;
    let idle = duration(&field("remember_me.idle_timeout"), idle_timeout)?.unwrap_or_default();
    let absolute = duration(&field("remember_me.absolute_lifetime"), absolute_lifetime)?.unwrap_or_default();
    Ok(Timeouts { idle, absolute })
}

fn limit_from_proto(limit: pb::SessionLimit) -> Result<SessionLimit, Refusal> {
    let pb::SessionLimit { max_sessions, action } = limit;
    let max = within(&field("session_limit.max_sessions"), max_sessions, 1, 1000)?;
    let action = match known(&field("session_limit.action"), action)? {
        pb::SessionLimitAction::EvictLeastRecent => LimitAction::EvictLeastRecent,
        pb::SessionLimitAction::Reject | pb::SessionLimitAction::Unspecified => LimitAction::Reject,
    };
    Ok(SessionLimit { max: u16::try_from(max).unwrap_or(u16::MAX), action })
}

/// To the wire, with the defaults that apply.
pub(super) fn policy_to_proto(policy: &SessionPolicy) -> pb::SessionPolicy {
    let span = |duration| Some(duration_to_proto(duration));
    let limit = |limit: SessionLimit| pb::SessionLimit {
        max_sessions: limit.max.into(),
        action: match limit.action {
            LimitAction::Reject => pb::SessionLimitAction::Reject,
            LimitAction::EvictLeastRecent => pb::SessionLimitAction::EvictLeastRecent,
        }
        .into(),
    };
    pb::SessionPolicy {
        idle_timeout: span(policy.timeouts.idle),
        absolute_lifetime: span(policy.timeouts.absolute),
        visit_gap: span(policy.visit_gap),
        staleness_bound: span(policy.staleness_bound),
        outage_bound: span(policy.outage_bound),
        remember_me: policy.remember_me.map(|timeouts| pb::RememberMe {
            idle_timeout: span(timeouts.idle),
            absolute_lifetime: span(timeouts.absolute),
        }),
        level_2_max_age: span(policy.level_2_max_age),
        level_3_max_age: span(policy.level_3_max_age),
        session_limit: policy.session_limit.map(limit),
        rotation_grace: span(policy.rotation_grace),
        allowed_issuers: policy.allowed_issuers.clone(),
    }
}

/// From the wire, checked.
pub(super) fn cart_policy_from_proto(policy: pb::CartPolicy) -> Result<CartPolicy, Refusal> {
    let pb::CartPolicy { idle_after, abandoned_after, lost_after, checkout_timeout } = policy;
    let field = |name: &str| format!("touchpoint.cart_policy.{name}");
    let span = |name: &str, value, or| Ok::<_, Refusal>(duration(&field(name), value)?.unwrap_or(or));
    let or = CartPolicy::default();
    let or = CartPolicy::new(span("abandoned_after", abandoned_after, or.abandoned_after)?);
    let policy = CartPolicy {
        idle_after: span("idle_after", idle_after, or.idle_after)?,
        abandoned_after: or.abandoned_after,
        lost_after: span("lost_after", lost_after, or.lost_after)?,
        checkout_timeout: span("checkout_timeout", checkout_timeout, or.checkout_timeout)?,
    };
    let checked = policy.check();
    checked.map_err(|bad| Refusal::field(field(bad.field), bad.problem))
}

/// To the wire, with the defaults that apply.
pub(super) fn cart_policy_to_proto(policy: &CartPolicy) -> pb::CartPolicy {
    let span = |duration| Some(duration_to_proto(duration));
    pb::CartPolicy {
        idle_after: span(policy.idle_after),
        abandoned_after: span(policy.abandoned_after),
        lost_after: span(policy.lost_after),
        checkout_timeout: span(policy.checkout_timeout),
    }
}
