//! What delivery is measured by, read out of events: the same rows that are the audit trail, so that a figure cannot tell
//! another story than the evidence.

use chrono::SecondsFormat;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use shared::time::Time;

/// The event of a deployment of the past.
pub const IMPORTED: &str = "history.deployment_imported";

/// Something that happened to a component. Ids are as the events spell them; they are only compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// A release was handed in, perhaps again.
    Submitted { release_id: String, change: Change },
    /// It may be rolled out.
    Approved { release_id: String },
    /// It will not be rolled out.
    Ended { release_id: String },
    /// A rollout went on.
    Rollout { stage: Stage, rollout: Rollout },
    /// It was deployed before anybody wrote it down here.
    Imported(PastDeployment),
}

/// What a release is made of, as far as its submission tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Change {
    #[serde(default)]
    pub commit_times: Vec<Time>,
    #[serde(default)]
    pub is_unplanned: bool,
    pub incident: Option<String>,
}

/// What a rollout did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Started,
    Advanced,
    Succeeded,
    RollbackStarted,
    RolledBack,
}

/// A rollout as it was then.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Rollout {
    #[serde(rename = "rollout_id")]
    pub id: String,
    pub environment: String,
    pub release_id: String,
    pub version: String,
    /// What it replaces.
    pub previous_release_id: Option<String>,
    pub exposure_bps: i32,
    /// The one that it takes back.
    #[serde(default)]
    pub rollback_of: Option<String>,
}

/// A deployment of the past, as it is kept in its event. It says itself what became of it: nothing is concluded from its
/// neighbours, which may be of other lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastDeployment {
    pub component: String,
    pub environment: String,
    pub version: String,
    #[serde(serialize_with = "fixed")]
    pub deployed_at: Time,
    pub commit_times: Vec<Time>,
    pub author_count: i32,
    pub lines_added: i32,
    pub lines_deleted: i32,
    pub files_changed: i32,
    /// It brought an earlier version back.
    pub is_rollback: bool,
    pub failed_at: Option<Time>,
    /// Never without a failure.
    pub recovered_at: Option<Time>,
    pub is_unplanned: bool,
    pub incident: Option<String>,
}

#[derive(Deserialize)]
struct Release {
    release_id: String,
    #[serde(default)]
    change: Change,
}

/// An instant in a form whose byte order is the order of time, for the index.
fn fixed<S: Serializer>(time: &Time, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&stamp(*time))
}

/// The same as text.
pub fn stamp(time: Time) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

impl Fact {
    /// What the event of this kind, at this instant, tells, and when that was. None where it tells of something else.
    pub fn read(kind: &str, at: Time, data: Value) -> serde_json::Result<Option<(Time, Self)>> {
        let stage = match kind {
            "rollout.started" => Stage::Started,
            "rollout.advanced" | "rollout.exposed" => Stage::Advanced,
            "rollout.succeeded" => Stage::Succeeded,
            "rollout.rollback_started" => Stage::RollbackStarted,
            "rollout.rolled_back" => Stage::RolledBack,
            IMPORTED => {
                let past: PastDeployment = serde_json::from_value(data)?;
                return Ok(Some((past.deployed_at, Self::Imported(past))));
            }
            "release.submitted"
            | "release.approved"
            | "release.cancelled"
            | "release.rejected"
            | "release.superseded"
            | "release.approval_lapsed"
            | "release.revised" => {
                let Release { release_id, change } = serde_json::from_value(data)?;
                let fact = match kind {
                    "release.submitted" => Self::Submitted { release_id, change },
                    "release.approved" => Self::Approved { release_id },
                    _ => Self::Ended { release_id },
                };
                return Ok(Some((at, fact)));
            }
            _ => return Ok(None),
        };
        Ok(Some((at, Self::Rollout { stage, rollout: serde_json::from_value(data)? })))
    }
}

impl Change {
    /// Nobody had planned it, and an incident made it necessary.
    pub fn is_rework(&self) -> bool {
        self.is_unplanned && self.incident.is_some()
    }
}

impl PastDeployment {
    /// What it is known by: a version is deployed once to an environment, but may be brought back there more than once.
    pub fn key(&self) -> String {
        let Self { component, environment, version, deployed_at, is_rollback, .. } = self;
        let place = format!("{component}/{environment}/{version}");
        if *is_rollback { format!("{place}@{}", stamp(*deployed_at)) } else { place }
    }

    /// Nobody had planned it, and an incident made it necessary.
    pub fn is_rework(&self) -> bool {
        self.is_unplanned && self.incident.is_some()
    }
}
