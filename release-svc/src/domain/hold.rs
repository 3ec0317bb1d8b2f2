//! What a rollback leaves behind: releases that were made before it may have what it was for, and pipelines start things again
//! by themselves, so none of them begins in that environment until a person says so. What is made afterwards is not held.

use chrono::SecondsFormat;
use shared::id::{ComponentId, EnvironmentId, RolloutId};
use shared::time::Time;

use crate::domain::blocker::{Blocker, Kind};
use crate::domain::release::Release;
use crate::domain::rollout::Rollout;

/// A component that was rolled back in an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    pub component: ComponentId,
    pub environment: EnvironmentId,
    /// The rollout that went back, or took back.
    pub rollout: RolloutId,
    /// Of the release that was rolled back.
    pub version: String,
    pub since: Time,
}

impl Hold {
    /// What a rollout leaves behind that goes back.
    pub fn of(rollout: &Rollout, now: Time) -> Self {
        Self {
            component: rollout.component.clone(),
            environment: rollout.environment.clone(),
            rollout: rollout.id,
            version: rollout.release.version.clone(),
            since: now,
        }
    }

    /// How it holds a release back, unless that was made afterwards.
    pub fn blocker(&self, release: &Release) -> Option<Blocker> {
        let Self { component, environment, rollout, version, since } = self;
        (release.created_at < *since).then(|| Blocker {
            kind: Kind::Hold,
            subject: rollout.to_string(),
            description: format!(
                "{component} {version} was rolled back in {environment} at {}, after {} was made",
                since.to_rfc3339_opts(SecondsFormat::Secs, true),
                release.version
            ),
            lifted_by: "LiftHold by a person, or a release made since".to_owned(),
            next_open: None,
        })
    }
}
