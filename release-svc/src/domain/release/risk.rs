//! How risky a release was found, as it is kept: what made the score stays readable when the formula has gone on.

use serde::{Deserialize, Serialize};

use crate::domain::risk::{Assessment, Floor};

/// How risky it was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Risk {
    pub score: u8,
    /// Its name.
    pub band: String,
    pub likelihood: f64,
    pub impact: f64,
    /// Name, value, weight, contribution.
    pub factors: Vec<(String, f64, f64, f64)>,
    /// Name, choice, value.
    pub multipliers: Vec<(String, String, f64)>,
    pub floor: Option<String>,
    pub weights_version: i32,
}

impl From<&Assessment> for Risk {
    fn from(assessment: &Assessment) -> Self {
        let factors = assessment.factors.iter();
        let multipliers = assessment.multipliers.iter();
        Self {
            score: assessment.score,
            band: assessment.band.name().to_owned(),
            likelihood: assessment.likelihood,
            impact: assessment.impact,
            factors: factors
                .map(|f| (f.name.to_owned(), f.value, f.weight, f.contribution))
                .collect(),
            multipliers: multipliers.map(|m| (m.name.to_owned(), m.choice.to_owned(), m.value)).collect(),
            floor: assessment.floor.map(|floor| floor_name(floor).to_owned()),
            weights_version: assessment.weights_version,
        }
    }
}

const fn floor_name(floor: Floor) -> &'static str {
    match floor {
        Floor::IrreversibleStep => "IRREVERSIBLE_STEP",
        Floor::DataScope(scope) => scope.name(),
    }
}
