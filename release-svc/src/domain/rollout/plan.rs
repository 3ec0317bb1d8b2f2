//! What a rollout goes by: its steps, for how long each is watched, and what happens when nobody can tell. Fixed at its
//! start.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use super::EVERYONE_BPS;
use crate::domain::component::Environment;
use crate::domain::guard::Guards;

/// Most steps that may be asked for.
pub const STEPS_MAX: usize = 32;

/// What a rollout goes by besides its steps.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Plan {
    /// How long each step is watched at least; none leaves going on to people.
    #[serde(with = "seconds", skip_serializing_if = "Option::is_none")]
    pub min_bake: Option<TimeDelta>,
    /// How long a step may take at most.
    #[serde(with = "seconds", skip_serializing_if = "Option::is_none")]
    pub step_deadline: Option<TimeDelta>,
    pub at_deadline: AtDeadline,
    pub guards: Guards,
    pub rollback_policy: RollbackPolicy,
    /// How long visits on the old release are waited for at the end.
    #[serde(with = "seconds", skip_serializing_if = "Option::is_none")]
    pub drain_deadline: Option<TimeDelta>,
    /// Whether no steps were asked for: once everyone gets it, there is nothing to wait for.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub at_once: bool,
    /// Whether an executor makes room for each step.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub needs_executor: bool,
}

/// What happens when a step reaches its deadline without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AtDeadline {
    #[default]
    Pause,
    Advance,
    RollBack,
}

/// What happens to visits on a release that is rolled back. Their state is kept in each case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RollbackPolicy {
    /// They stay on it to their end.
    Finish,
    /// They move with their next call, held ones once nothing holds them.
    #[default]
    Migrate,
    /// They end with their next call, whatever holds them.
    End,
}

/// Exposures in basis points, rising to everyone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Steps(Vec<i32>);

/// The numbers are no steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSteps {
    #[error("must have at most {STEPS_MAX} elements")]
    TooMany,
    #[error("must be 1 to {EVERYONE_BPS} each")]
    OutOfRange,
    #[error("must rise from step to step")]
    NotRising,
}

impl Plan {
    /// As the environment has it deployed when a rollout begins there.
    #[must_use]
    pub fn deployed_by(self, environment: &Environment) -> Self {
        Self { needs_executor: environment.needs_executor, ..self }
    }

    /// Whether a step that everyone sees has nothing left to be waited for.
    pub const fn waits_for_nothing(&self) -> bool {
        self.min_bake.is_none() && self.drain_deadline.is_none() && !self.needs_executor
    }
}

impl Steps {
    /// The steps asked for, with everyone as the last; none where none were asked for.
    pub fn asked(mut exposures: Vec<i32>) -> Result<Option<Self>, BadSteps> {
        if exposures.len() > STEPS_MAX {
            return Err(BadSteps::TooMany);
        }
        if exposures.iter().any(|bps| !(1..=EVERYONE_BPS).contains(bps)) {
            return Err(BadSteps::OutOfRange);
        }
        if exposures.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(BadSteps::NotRising);
        }
        match exposures.last() {
            None => return Ok(None),
            Some(&EVERYONE_BPS) => {}
            Some(_) => exposures.push(EVERYONE_BPS),
        }
        Ok(Some(Self(exposures)))
    }

    /// Everyone in one step.
    pub fn at_once() -> Self {
        Self(vec![EVERYONE_BPS])
    }

    /// Those that were stored.
    pub const fn stored(exposures: Vec<i32>) -> Self {
        Self(exposures)
    }

    pub fn as_slice(&self) -> &[i32] {
        &self.0
    }

    /// Share of visits of a step; nobody's, past the last.
    pub fn exposure_bps(&self, step: usize) -> i32 {
        self.0.get(step).copied().unwrap_or(0)
    }

    pub const fn is_last(&self, step: usize) -> bool {
        step + 1 >= self.0.len()
    }
}

/// Spans as whole seconds.
mod seconds {
    use chrono::TimeDelta;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::ref_option, reason = "as serde calls it")]
    pub(super) fn serialize<S: Serializer>(
        span: &Option<TimeDelta>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        span.map(|span| span.num_seconds()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<TimeDelta>, D::Error> {
        Ok(Option::<i64>::deserialize(deserializer)?.map(TimeDelta::seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_rise_to_everyone() {
        let asked = |steps: &[i32]| Steps::asked(steps.to_vec()).map(|steps| steps.map(|steps| steps.0));
        assert_eq!(asked(&[]), Ok(None));
        assert_eq!(asked(&[1000]), Ok(Some(vec![1000, EVERYONE_BPS])));
        assert_eq!(asked(&[1, EVERYONE_BPS]), Ok(Some(vec![1, EVERYONE_BPS])));
        assert_eq!(asked(&[0]), Err(BadSteps::OutOfRange));
        assert_eq!(asked(&[10_001]), Err(BadSteps::OutOfRange));
        assert_eq!(asked(&[500, 500]), Err(BadSteps::NotRising));
        assert_eq!(asked(&(1..=33).collect::<Vec<_>>()), Err(BadSteps::TooMany));
    }

    #[test]
    fn a_plan_reads_back_what_it_writes_and_nothing_is_a_plain_one() {
        let plan = Plan {
            min_bake: Some(TimeDelta::minutes(5)),
            at_deadline: AtDeadline::RollBack,
            rollback_policy: RollbackPolicy::End,
            needs_executor: true,
            ..Plan::default()
        };
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
        assert_eq!(serde_json::from_str::<Plan>("{}").unwrap(), Plan::default());
    }
}
