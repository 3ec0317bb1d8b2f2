//! How risky a release is: the likelihood that it fails times what a failure would cost, as a score of 0 to 100 with
//! every factor that made it. The same facts give the same score; docs/governance.md says where the numbers come from.

use chrono::TimeDelta;
use shared::time::Time;

use crate::domain::component::{DataScope, Tier};

/// Deployments that count half after this long.
const HALF_LIFE: TimeDelta = TimeDelta::days(90);
/// Fewer earlier lead times than this say nothing of what is fast.
const LEAD_TIMES_MIN: usize = 10;

/// What is known of a change.
#[expect(clippy::struct_excessive_bools, reason = "facts that have nothing to do with each other")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Facts {
    /// Added, changed and deleted.
    pub changed_lines: u32,
    pub services_touched: u32,
    /// Production deployments of this component by its author.
    pub author_deployments: u32,
    pub has_schema_migration: bool,
    pub has_config_change: bool,
    /// Open ones, and those of the last 7 days.
    pub recent_incidents: u32,
    /// See [`is_hurried`].
    pub is_hurried: bool,
    pub suites_required: u32,
    /// Of those that are required, on this artifact.
    pub suites_passed: u32,
    /// Whether its rollback was exercised lately.
    pub is_rehearsed: bool,
}

/// The facts as numbers from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Features(ByFeature);

/// A number for each feature.
#[derive(Debug, Clone, Copy, PartialEq)]
struct ByFeature {
    size: f64,
    spread: f64,
    novelty: f64,
    schema: f64,
    config: f64,
    recent: f64,
    hurry: f64,
    evidence: f64,
    rehearsed: f64,
}

/// How often releases of a component failed, as a probability between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prior(f64);

/// What each feature adds to the log-odds of failure. A version's numbers never change: what was assessed by them can be
/// assessed again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    version: i32,
    by_feature: ByFeature,
}

/// What a failure would cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Impact {
    pub tier: Tier,
    pub calendar: Calendar,
    pub reversibility: Reversibility,
}

/// What time of the business year it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calendar {
    Normal,
    /// Peak trading, or the close of a quarter.
    Peak,
}

/// How a release is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reversibility {
    /// A step of it cannot be.
    Irreversible,
    Redeploy,
    VariantSwitch,
}

/// How much care a release needs, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Band {
    Low,
    Medium,
    High,
    Critical,
}

/// From which score on a release is in a band; below the first it is LOW.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bands {
    medium: u8,
    high: u8,
    critical: u8,
}

/// The numbers are no bands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must not fall from band to band, nor be above 100")]
pub struct BadBands;

/// What keeps a band up, however low the score is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Floor {
    IrreversibleStep,
    DataScope(DataScope),
}

/// The floors of a release.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Floors {
    pub has_irreversible_step: bool,
    /// Of its component.
    pub data_scopes: Vec<DataScope>,
}

/// A score and all that it is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Assessment {
    /// 0 to 100.
    pub score: u8,
    pub band: Band,
    /// That it fails, between 0 and 1.
    pub likelihood: f64,
    pub impact: f64,
    /// The prior first. Their contributions add up to the log-odds of `likelihood`.
    pub factors: Vec<Factor>,
    /// They multiply to `impact`.
    pub multipliers: [Multiplier; 3],
    /// What the band is there for, where the score alone would give a lower one.
    pub floor: Option<Floor>,
    pub weights_version: i32,
}

/// One reason for a likelihood.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Factor {
    pub name: &'static str,
    /// 0 to 1.
    pub value: f64,
    pub weight: f64,
    /// To the log-odds.
    pub contribution: f64,
}

/// One reason for an impact.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Multiplier {
    pub name: &'static str,
    /// What it stands for, such as `TIER_1`.
    pub choice: &'static str,
    pub value: f64,
}

/// Assesses a release.
pub fn assess(
    prior: Prior,
    features: &Features,
    impact: Impact,
    weights: &Weights,
    bands: Bands,
    floors: &Floors,
) -> Assessment {
    let factors = factors(prior, features, weights);
    let log_odds: f64 = factors.iter().map(|factor| factor.contribution).sum();
    let likelihood = 1.0 / (1.0 + (-log_odds).exp());
    let multipliers = impact.multipliers();
    let impact = multipliers.iter().map(|multiplier| multiplier.value).product();
    let score = score(likelihood, impact);
    let band = bands.of(score);
    let floor = floors.highest().filter(|floor| floor.band() > band);
    Assessment {
        score,
        band: floor.map_or(band, Floor::band),
        likelihood,
        impact,
        factors,
        multipliers,
        floor,
        weights_version: weights.version,
    }
}

/// How far predictions were from what happened: the mean squared error of likelihoods (Brier, 1950), 0 at best. None
/// where nothing was predicted.
pub fn brier(predictions: &[(f64, bool)]) -> Option<f64> {
    let errors = predictions
        .iter()
        .map(|(likelihood, has_failed)| (likelihood - degree(*has_failed)).powi(2));
    (!predictions.is_empty()).then(|| errors.sum::<f64>() / count(predictions.len()))
}

/// Whether a change was faster than nine tenths of the component's earlier ones.
pub fn is_hurried(lead_time: TimeDelta, earlier: &[TimeDelta]) -> bool {
    let as_fast = earlier.iter().filter(|other| **other <= lead_time).count();
    earlier.len() >= LEAD_TIMES_MIN && as_fast * 10 < earlier.len()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number of 0 to 100")]
fn score(likelihood: f64, impact: f64) -> u8 {
    (200.0 * likelihood * impact).round().clamp(0.0, 100.0) as u8
}

fn factors(prior: Prior, features: &Features, weights: &Weights) -> Vec<Factor> {
    let prior = Factor { name: "prior", value: prior.0, weight: 1.0, contribution: prior.log_odds() };
    let weighed = features.0.named().into_iter().zip(weights.by_feature.named());
    let weighed = weighed.map(|((name, value), (_, weight))| Factor {
        name,
        value,
        weight,
        contribution: weight * value,
    });
    std::iter::once(prior).chain(weighed).collect()
}

/// Of `whole`, at most all; nothing where there is no whole.
fn share(part: u32, whole: u32) -> f64 {
    if whole == 0 { 0.0 } else { (f64::from(part) / f64::from(whole)).min(1.0) }
}

fn degree(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

impl ByFeature {
    fn named(&self) -> [(&'static str, f64); 9] {
        let Self { size, spread, novelty, schema, config, recent, hurry, evidence, rehearsed } = *self;
        [
            ("size", size),
            ("spread", spread),
            ("novelty", novelty),
            ("schema", schema),
            ("config", config),
            ("recent", recent),
            ("hurry", hurry),
            ("evidence", evidence),
            ("rehearsed", rehearsed),
        ]
    }
}

impl Features {
    pub fn of(facts: &Facts) -> Self {
        Self(ByFeature {
            size: ((1.0 + f64::from(facts.changed_lines)).log10() / 4.0).min(1.0),
            spread: share(facts.services_touched, 5),
            novelty: 1.0 - share(facts.author_deployments, 10),
            schema: degree(facts.has_schema_migration),
            config: degree(facts.has_config_change),
            recent: share(facts.recent_incidents, 2),
            hurry: degree(facts.is_hurried),
            evidence: share(facts.suites_passed, facts.suites_required),
            rehearsed: degree(facts.is_rehearsed),
        })
    }
}

impl Prior {
    /// `deployments` to production: when, and whether it failed. One without history fails once in ten.
    pub fn of(deployments: &[(Time, bool)], now: Time) -> Self {
        let half_life = HALF_LIFE.as_seconds_f64();
        let weight = |at: Time| 0.5_f64.powf((now - at).as_seconds_f64().max(0.0) / half_life);
        let all: f64 = deployments.iter().map(|(at, _)| weight(*at)).sum();
        let failed: f64 = deployments
            .iter()
            .map(|(at, has_failed)| weight(*at) * degree(*has_failed))
            .sum();
        Self((failed + 2.0) / (all + 20.0))
    }

    fn log_odds(self) -> f64 {
        (self.0 / (1.0 - self.0)).ln()
    }
}

impl Weights {
    pub const V1: Self = Self {
        version: 1,
        by_feature: ByFeature {
            size: 0.9,
            spread: 0.8,
            novelty: 0.6,
            schema: 0.7,
            config: 0.5,
            recent: 0.5,
            hurry: 0.4,
            evidence: -0.8,
            rehearsed: -0.4,
        },
    };

    pub const fn of_version(version: i32) -> Option<Self> {
        match version {
            1 => Some(Self::V1),
            _ => None,
        }
    }

    pub const fn version(&self) -> i32 {
        self.version
    }
}

impl Default for Weights {
    fn default() -> Self {
        Self::V1
    }
}

impl Impact {
    fn multipliers(self) -> [Multiplier; 3] {
        let tier = match self.tier {
            Tier::One => 1.0,
            Tier::Two => 0.7,
            Tier::Three => 0.4,
            Tier::Four => 0.15,
        };
        let calendar = match self.calendar {
            Calendar::Peak => 1.5,
            Calendar::Normal => 1.0,
        };
        let reversibility = match self.reversibility {
            Reversibility::Irreversible => 1.3,
            Reversibility::Redeploy => 1.0,
            Reversibility::VariantSwitch => 0.6,
        };
        [
            Multiplier { name: "tier", choice: self.tier.name(), value: tier },
            Multiplier { name: "calendar", choice: self.calendar.name(), value: calendar },
            Multiplier { name: "reversibility", choice: self.reversibility.name(), value: reversibility },
        ]
    }
}

impl Calendar {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "NORMAL",
            Self::Peak => "PEAK",
        }
    }
}

impl Reversibility {
    const ALL: [Self; 3] = [Self::Irreversible, Self::Redeploy, Self::VariantSwitch];

    /// As in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Irreversible => "IRREVERSIBLE",
            Self::Redeploy => "REDEPLOY",
            Self::VariantSwitch => "VARIANT_SWITCH",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl Band {
    pub const ALL: [Self; 4] = [Self::Low, Self::Medium, Self::High, Self::Critical];

    /// As in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Low => "LOW",
            Self::Medium => "MEDIUM",
            Self::High => "HIGH",
            Self::Critical => "CRITICAL",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|band| band.name() == name)
    }
}

impl Bands {
    pub const fn new(medium: u8, high: u8, critical: u8) -> Result<Self, BadBands> {
        if medium <= high && high <= critical && critical <= 100 {
            Ok(Self { medium, high, critical })
        } else {
            Err(BadBands)
        }
    }

    pub const fn of(self, score: u8) -> Band {
        if score >= self.critical {
            Band::Critical
        } else if score >= self.high {
            Band::High
        } else if score >= self.medium {
            Band::Medium
        } else {
            Band::Low
        }
    }

    /// From which score on a release is MEDIUM, HIGH and CRITICAL.
    pub const fn thresholds(self) -> [u8; 3] {
        [self.medium, self.high, self.critical]
    }
}

impl Default for Bands {
    fn default() -> Self {
        Self { medium: 10, high: 30, critical: 60 }
    }
}

impl Floor {
    /// The lowest that a release with it can be in.
    pub const fn band(self) -> Band {
        match self {
            Self::IrreversibleStep => Band::High,
            Self::DataScope(_) => Band::Medium,
        }
    }
}

impl Floors {
    fn highest(&self) -> Option<Floor> {
        if self.has_irreversible_step {
            return Some(Floor::IrreversibleStep);
        }
        self.data_scopes.first().copied().map(Floor::DataScope)
    }
}

#[cfg(test)]
mod tests;
