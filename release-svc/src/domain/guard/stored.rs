//! Guards as the plan of a rollout keeps them.

use serde::{Deserialize, Serialize};

use super::{Guard, Guards, Kind, Mode, Rule};

/// One guard.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Stored {
    name: String,
    kind: Kind,
    tolerated_bps: i32,
    unacceptable_bps: i32,
    mode: Mode,
    weight: u32,
}

impl From<Guards> for Vec<Stored> {
    fn from(guards: Guards) -> Self {
        let stored = |Guard { name, rule, mode, weight }| Stored {
            name: String::from(name),
            kind: rule.kind(),
            tolerated_bps: rule.tolerated_bps(),
            unacceptable_bps: rule.unacceptable_bps(),
            mode,
            weight,
        };
        guards.0.into_iter().map(stored).collect()
    }
}

impl TryFrom<Vec<Stored>> for Guards {
    type Error = String;

    fn try_from(stored: Vec<Stored>) -> Result<Self, String> {
        let guard = |Stored { name, kind, tolerated_bps, unacceptable_bps, mode, weight }: Stored| {
            let name = name.parse().map_err(|error: super::BadName| error.to_string())?;
            let rule = Rule::new(kind, Some(tolerated_bps), Some(unacceptable_bps));
            Ok(Guard { name, rule: rule.map_err(|error| error.to_string())?, mode, weight })
        };
        let guards = stored.into_iter().map(guard).collect::<Result<_, String>>()?;
        Self::new(guards).map_err(|error| error.to_string())
    }
}
