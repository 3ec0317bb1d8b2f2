//! What people set in a window, flat: as its events and proposals carry it, and as its columns hold it. It is all of it, so
//! that events are the history of a window.

use chrono::{NaiveDateTime, TimeDelta};
use serde::{Deserialize, Serialize};
use shared::time::Time;

use super::{Action, Effect, Parts, Schedule, Scope, Terms};

/// The settings of a window by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub name: String,
    pub effect: String,
    pub actions: Vec<String>,
    pub tiers: Vec<String>,
    pub components: Vec<String>,
    pub environments: Vec<String>,
    pub regions: Vec<String>,
    pub time_zone: String,
    pub starts_at: Option<Time>,
    pub ends_at: Option<Time>,
    pub local_start: Option<NaiveDateTime>,
    pub local_end: Option<NaiveDateTime>,
    pub rule: Option<String>,
    pub duration_secs: Option<i64>,
    pub reason: String,
    pub is_peak: bool,
}

/// A record makes no sense, in this field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} makes no sense")]
pub struct Corrupt(pub &'static str);

impl From<&Terms> for Record {
    fn from(terms: &Terms) -> Self {
        let Terms { name, effect, actions, scope, zone, schedule, reason, is_peak } = terms.clone();
        let Scope { tiers, components, environments, regions } = scope;
        let Parts { starts_at, ends_at, local_start, local_end, rule, duration } = schedule.parts();
        Self {
            name,
            effect: effect.name().to_owned(),
            actions: actions.iter().map(|action| action.name().to_owned()).collect(),
            tiers,
            components,
            environments,
            regions,
            time_zone: zone.name().to_owned(),
            starts_at,
            ends_at,
            local_start,
            local_end,
            rule,
            duration_secs: duration.map(|duration| duration.num_seconds()),
            reason,
            is_peak,
        }
    }
}

impl TryFrom<Record> for Terms {
    type Error = Corrupt;

    fn try_from(record: Record) -> Result<Self, Corrupt> {
        let Record {
            name,
            effect,
            actions,
            tiers,
            components,
            environments,
            regions,
            time_zone,
            starts_at,
            ends_at,
            local_start,
            local_end,
            rule,
            duration_secs,
            reason,
            is_peak,
        } = record;
        let effect = [Effect::Deny, Effect::Allow].into_iter().find(|known| known.name() == effect);
        let action = |name: &String| Action::ALL.into_iter().find(|action| action.name() == *name);
        let actions: Option<_> = actions.iter().map(action).collect();
        let duration = duration_secs.map(TimeDelta::seconds);
        let parts = Parts { starts_at, ends_at, local_start, local_end, rule, duration };
        Ok(Self {
            name,
            effect: effect.ok_or(Corrupt("effect"))?,
            actions: actions.ok_or(Corrupt("actions"))?,
            scope: Scope { tiers, components, environments, regions },
            zone: time_zone.parse().map_err(|_| Corrupt("time_zone"))?,
            schedule: Schedule::stored(parts).ok_or(Corrupt("rule"))?,
            reason,
            is_peak,
        })
    }
}
