//! Routes off the wire, and what is told of them once they are acted on.

use shared::id::{ComponentId, ReleaseId, RolloutId, TenantId};
use shared::parse;
use shared::pb::release as pb;
use shared::status::{Failure, Refusal};

use crate::domain::visit::{Release, Rollout, Route};
use crate::routes::Key;

/// A route as it was sent.
pub(super) struct Parsed {
    pub(super) tenant: TenantId,
    pub(super) component: ComponentId,
    pub(super) route: Route,
    trace_parent: String,
}

/// A route that is acted on, and the trace of the request that made it.
pub(super) struct Applied {
    pub(super) route: pb::AppliedRoute,
    pub(super) trace_parent: String,
}

impl Parsed {
    pub(super) fn key(&self) -> Key {
        (self.tenant.clone(), self.component.clone())
    }

    pub(super) fn trace_parent(&self) -> &str {
        &self.trace_parent
    }

    pub(super) fn applied(self) -> Applied {
        let route = pb::AppliedRoute {
            tenant: self.tenant.to_string(),
            component: self.component.to_string(),
            revision: self.route.revision,
        };
        Applied { route, trace_parent: self.trace_parent }
    }
}

/// A route that makes no sense, and whose it is, if that can be told.
pub(super) struct Unread {
    pub(super) key: Option<Key>,
    pub(super) why: String,
}

pub(super) fn parse(route: pb::Route) -> Result<Parsed, Unread> {
    let key = || Some((route.tenant.parse().ok()?, route.component.parse().ok()?));
    let key = key();
    parsed(route).map_err(|refusal| Unread { key, why: Failure::from(refusal).to_string() })
}

fn parsed(route: pb::Route) -> Result<Parsed, Refusal> {
    let pb::Route {
        tenant,
        component,
        revision,
        stable,
        rollout,
        withdrawn_release_ids,
        ended_release_ids,
        trace_parent,
    } = route;
    let releases = |field, ids: &[String]| {
        ids.iter()
            .map(|id| parse::parse(field, id))
            .collect::<Result<Vec<ReleaseId>, _>>()
    };
    Ok(Parsed {
        tenant: parse::parse("tenant", &tenant)?,
        component: parse::parse("component", &component)?,
        route: Route {
            revision,
            stable: stable.map(parse_release).transpose()?,
            rollout: rollout.map(parse_rollout).transpose()?,
            withdrawn: releases("withdrawn_release_ids", &withdrawn_release_ids)?,
            ended: releases("ended_release_ids", &ended_release_ids)?,
        },
        trace_parent,
    })
}

fn parse_release(release: pb::RoutedRelease) -> Result<Release, Refusal> {
    Ok(Release { id: parse::parse("release_id", &release.release_id)?, version: release.version })
}

fn parse_rollout(rollout: pb::RoutedRollout) -> Result<Rollout, Refusal> {
    let pb::RoutedRollout { rollout_id, release, exposure_bps, salt, assignment_policy, step, guards } =
        rollout;
    let exposure = parse::within("exposure_bps", exposure_bps, 0, 10_000)?;
    Ok(Rollout {
        id: parse::parse::<RolloutId>("rollout_id", &rollout_id)?,
        release: parse_release(parse::required("release", release)?)?,
        exposure_bps: u32::try_from(exposure).unwrap_or(0),
        salt,
        is_all_sessions: assignment_policy == i32::from(pb::AssignmentPolicy::AllSessions),
        step,
        guards: guards.into_iter().map(|guard| guard.name).collect(),
    })
}
