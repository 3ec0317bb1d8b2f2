//! What a release needs before it may be rolled out, as a team sets it: a profile's rules, or stricter ones. Rules are
//! data, so that a release can carry those that it was submitted under.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use shared::id::ApprovalPolicyId;
use shared::time::Time;

use crate::domain::evidence::{Kind, Requirement};
use crate::domain::risk::{Band, Bands, Weights};

/// The approval policy that every tenant has: profile STARTER, quorum 0.
pub const STARTER_POLICY: &str = "starter";

/// A policy and, where one waits for its second person, the change of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApprovalPolicy {
    pub name: ApprovalPolicyId,
    pub terms: Terms,
    pub created_at: Time,
    /// Its version, too: each change is one.
    pub row_version: i64,
    pub proposed: Option<Proposed>,
}

/// A change that was proposed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposed {
    pub version: i64,
    pub terms: Terms,
    /// `issuer|sub`.
    pub author: String,
    /// The human being that the author is.
    pub person: String,
    pub at: Time,
}

/// All that a policy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    pub profile: Profile,
    /// How many people must approve in whatever band.
    pub quorum: i32,
    pub rules: Rules,
}

/// A named set of governance rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// For a team that begins: any quorum, and risk is advice.
    Starter,
    /// Approval by risk.
    Standard,
    /// For financial reporting: with tests and peer reviews, and policies take two people.
    Sox,
    /// For card data: as SOX, with scans.
    PciDss,
}

/// Rules in the form that they are stored in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Whether approval goes by the band; where not, LOW's rule holds.
    pub risk_binding: bool,
    /// From which scores on a release is MEDIUM, HIGH and CRITICAL.
    pub thresholds: [u8; 3],
    pub weights_version: i32,
    /// In the order of the bands.
    pub bands: [BandRule; 4],
    pub required_evidence: Vec<Requirement>,
    pub requires_rollback_plan: bool,
    /// Whether a second person confirms changes of the policy.
    pub two_people: bool,
    pub review_due_secs: i64,
    /// Who may change the policy; empty leaves it to the scope alone.
    pub editor_groups: Vec<String>,
}

/// What a band asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BandRule {
    pub quorum: i32,
    /// From how many groups, each person standing for another.
    pub distinct_groups: i32,
    pub needs_owner: bool,
    pub needs_business_owner: bool,
    /// How long a vote counts; for ever where there is none.
    pub validity_secs: Option<i64>,
}

/// A rule is below what its profile asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be {least}, as profile {profile} asks for it")]
pub struct BelowFloor {
    pub field: String,
    pub least: String,
    pub profile: &'static str,
}

impl Profile {
    pub const ALL: [Self; 4] = [Self::Starter, Self::Standard, Self::Sox, Self::PciDss];

    /// As on the wire, without its prefix, and in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starter => "STARTER",
            Self::Standard => "STANDARD",
            Self::Sox => "SOX",
            Self::PciDss => "PCI_DSS",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|profile| profile.name() == name)
    }

    /// Its rules: what a policy says that says nothing else, and the least that one of this profile says.
    pub fn rules(self) -> Rules {
        let evidence: &[Kind] = match self {
            Self::Starter | Self::Standard => &[],
            Self::Sox => &[Kind::TestReport, Kind::Review],
            Self::PciDss => &[Kind::TestReport, Kind::Review, Kind::Scan],
        };
        let (is_strict, takes_two) = (self != Self::Starter, matches!(self, Self::Sox | Self::PciDss));
        let required = evidence.iter().map(|kind| Requirement { kind: *kind, suite: String::new() });
        Rules {
            risk_binding: is_strict,
            thresholds: Bands::default().thresholds(),
            weights_version: Weights::V1.version(),
            bands: if is_strict { BY_RISK } else { [BandRule::NONE; 4] },
            required_evidence: required.collect(),
            requires_rollback_plan: is_strict,
            two_people: takes_two,
            review_due_secs: TimeDelta::hours(if self == Self::PciDss { 24 } else { 48 }).num_seconds(),
            editor_groups: Vec::new(),
        }
    }
}

/// LOW, MEDIUM, HIGH and CRITICAL where approval goes by risk.
const BY_RISK: [BandRule; 4] = [
    BandRule { quorum: 0, ..BandRule::valid_for(TimeDelta::days(7)) },
    BandRule { quorum: 1, ..BandRule::valid_for(TimeDelta::hours(72)) },
    BandRule { quorum: 2, distinct_groups: 2, ..BandRule::valid_for(TimeDelta::hours(48)) },
    BandRule {
        quorum: 3,
        needs_owner: true,
        needs_business_owner: true,
        ..BandRule::valid_for(TimeDelta::hours(24))
    },
];

impl BandRule {
    const NONE: Self = Self {
        quorum: 0,
        distinct_groups: 0,
        needs_owner: false,
        needs_business_owner: false,
        validity_secs: None,
    };

    const fn valid_for(validity: TimeDelta) -> Self {
        Self { validity_secs: Some(validity.num_seconds()), ..Self::NONE }
    }

    /// When a vote of this instant stops counting.
    pub fn expiry(&self, at: Time) -> Option<Time> {
        self.validity_secs.map(|secs| at + TimeDelta::seconds(secs))
    }
}

impl Rules {
    pub fn review_due(&self) -> TimeDelta {
        TimeDelta::seconds(self.review_due_secs)
    }

    /// The bands of scores; the usual ones where what is stored makes none.
    pub fn score_bands(&self) -> Bands {
        let [medium, high, critical] = self.thresholds;
        Bands::new(medium, high, critical).unwrap_or_default()
    }
}

impl Terms {
    pub fn of(profile: Profile, quorum: i32) -> Self {
        Self { profile, quorum, rules: profile.rules() }
    }

    /// The band that approval goes by.
    pub const fn band(&self, assessed: Band) -> Band {
        if self.rules.risk_binding { assessed } else { Band::Low }
    }

    /// What is asked for in a band.
    pub fn rule(&self, band: Band) -> BandRule {
        let [low, medium, high, critical] = self.rules.bands;
        let rule = match band {
            Band::Low => low,
            Band::Medium => medium,
            Band::High => high,
            Band::Critical => critical,
        };
        BandRule { quorum: rule.quorum.max(self.quorum), ..rule }
    }

    /// Refuses rules below those of the profile, and names the first of them.
    pub fn check(&self) -> Result<(), BelowFloor> {
        self.reach(&self.profile.rules())
    }

    /// Whether they ask for all that the others ask for.
    pub fn meet(&self, others: &Self) -> bool {
        let editors = &others.rules.editor_groups;
        self.quorum >= others.quorum
            && (editors.is_empty() || *editors == self.rules.editor_groups)
            && self.reach(&others.rules).is_ok()
    }

    fn reach(&self, floor: &Rules) -> Result<(), BelowFloor> {
        let rules = &self.rules;
        let require = |holds: bool, field: &str, least: String| {
            if holds {
                return Ok(());
            }
            Err(BelowFloor { field: field.to_owned(), least, profile: self.profile.name() })
        };
        let flag = |least: bool, is: bool, field: &str| require(is || !least, field, "true".to_owned());
        flag(floor.risk_binding, rules.risk_binding, "risk_binding")?;
        flag(floor.requires_rollback_plan, rules.requires_rollback_plan, "requires_rollback_plan")?;
        flag(floor.two_people, rules.two_people, "two_people")?;
        for ((field, least), is) in ["medium_from", "high_from", "critical_from"]
            .into_iter()
            .zip(floor.thresholds)
            .zip(rules.thresholds)
        {
            let is_free = !floor.risk_binding;
            require(is_free || is <= least, field, format!("at most {least}"))?;
        }
        let most = floor.review_due_secs;
        require(rules.review_due_secs <= most, "break_glass_review_due", format!("at most {most} s"))?;
        for least in &floor.required_evidence {
            let holds = rules.required_evidence.contains(least);
            require(holds, "required_evidence", format!("with {}", least.kind.name()))?;
        }
        for (n, (least, is)) in floor.bands.iter().zip(&rules.bands).enumerate() {
            let field = |name: &str| format!("bands[{n}].{name}");
            flag(least.needs_owner, is.needs_owner, &field("needs_owner"))?;
            flag(least.needs_business_owner, is.needs_business_owner, &field("needs_business_owner"))?;
            let (quorum, groups) = (least.quorum, least.distinct_groups);
            require(is.quorum >= quorum, &field("quorum"), format!("at least {quorum}"))?;
            require(is.distinct_groups >= groups, &field("distinct_groups"), format!("at least {groups}"))?;
            if let Some(most) = least.validity_secs {
                let holds = is.validity_secs.is_some_and(|secs| secs <= most);
                require(holds, &field("validity"), format!("at most {most} s"))?;
            }
        }
        Ok(())
    }
}

impl ApprovalPolicy {
    /// Whether it is the one that every tenant has without making it.
    pub fn is_given(name: &ApprovalPolicyId) -> bool {
        name.as_str() == STARTER_POLICY
    }

    /// Whether a change to these terms takes a second person.
    pub const fn takes_two(&self, asked: &Terms) -> bool {
        self.terms.rules.two_people || asked.rules.two_people
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_meets_its_own_floors_and_starter_asks_for_nothing() {
        for profile in Profile::ALL {
            assert_eq!(Terms::of(profile, 0).check(), Ok(()));
            assert_eq!(Profile::from_name(profile.name()), Some(profile));
            let rules = serde_json::to_string(&profile.rules()).unwrap();
            assert_eq!(serde_json::from_str::<Rules>(&rules).unwrap(), profile.rules());
        }
        let starter = Terms::of(Profile::Starter, 0);
        for band in Band::ALL {
            assert_eq!(starter.band(band), Band::Low);
            assert_eq!(starter.rule(band), BandRule::default());
        }
    }

    #[test]
    fn risk_asks_for_none_one_two_and_three_people_for_ever_shorter() {
        let terms = Terms::of(Profile::Standard, 0);
        let rules = Band::ALL.map(|band| terms.rule(terms.band(band)));
        assert_eq!(rules.map(|rule| rule.quorum), [0, 1, 2, 3]);
        assert_eq!(rules.map(|rule| rule.validity_secs.unwrap() / 3600), [168, 72, 48, 24]);
        assert_eq!(rules.map(|rule| rule.distinct_groups), [0, 0, 2, 0]);
        assert!(rules[3].needs_owner && rules[3].needs_business_owner);
        let stricter = Terms { quorum: 2, ..terms };
        assert_eq!(Band::ALL.map(|band| stricter.rule(band).quorum), [2, 2, 2, 3]);
    }

    #[test]
    fn what_is_below_the_floor_is_named() {
        let below = |profile, change: fn(&mut Rules)| {
            let mut terms = Terms::of(profile, 0);
            change(&mut terms.rules);
            terms.check().err().map(|error| error.field)
        };
        let is = |field: &str| Some(field.to_owned());
        assert_eq!(below(Profile::Standard, |rules| rules.risk_binding = false), is("risk_binding"));
        assert_eq!(below(Profile::Standard, |rules| rules.thresholds[1] = 31), is("high_from"));
        assert_eq!(below(Profile::Standard, |rules| rules.bands[2].quorum = 1), is("bands[2].quorum"));
        let lasting = below(Profile::Standard, |rules| rules.bands[1].validity_secs = None);
        assert_eq!(lasting, is("bands[1].validity"));
        let lonely = below(Profile::Standard, |rules| rules.bands[3].needs_business_owner = false);
        assert_eq!(lonely, is("bands[3].needs_business_owner"));
        assert_eq!(below(Profile::Sox, |rules| rules.two_people = false), is("two_people"));
        assert_eq!(
            below(Profile::PciDss, |rules| drop(rules.required_evidence.pop())),
            is("required_evidence")
        );
        assert_eq!(below(Profile::PciDss, |rules| rules.review_due_secs *= 2), is("break_glass_review_due"));
        assert_eq!(below(Profile::Standard, |rules| rules.bands[1].quorum = 2), None);
        assert_eq!(below(Profile::Starter, |rules| rules.thresholds = [1, 2, 100]), None);
    }
}
