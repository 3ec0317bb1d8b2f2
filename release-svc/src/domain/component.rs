//! What is released and where it runs: the catalogue, which people write.

use chrono::{SecondsFormat, TimeDelta};
use shared::id::{ApprovalPolicyId, ComponentId, EnvironmentId};
use shared::time::Time;

/// A deployable thing that is released on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    pub name: ComponentId,
    pub display_name: String,
    /// Empty leaves it to the scopes alone.
    pub owner_groups: Vec<String>,
    /// Who answers for it to the business.
    pub business_owner_groups: Vec<String>,
    pub approval_policy: ApprovalPolicyId,
    pub tier: Tier,
    pub kind: Kind,
    /// Sorted, each once.
    pub data_scopes: Vec<DataScope>,
    pub created_at: Time,
    pub row_version: i64,
}

/// Where components run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    pub name: EnvironmentId,
    pub display_name: String,
    /// Lowest first.
    pub promotion_order: i32,
    /// What freeze windows can be limited to.
    pub region: Option<String>,
    /// Whether real people are served.
    pub is_production: bool,
    pub requirements: Requirements,
    /// Whether rollouts that begin here wait for an executor at each step.
    pub needs_executor: bool,
    pub created_at: Time,
    pub row_version: i64,
}

/// What a release needs before it may be rolled out in an environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requirements {
    /// Whether it must have succeeded in the environment before.
    pub requires_promotion: bool,
    /// For how long it must have been a success there; whole seconds.
    pub min_bake: TimeDelta,
    pub evidence: Vec<EvidenceRequirement>,
}

/// Evidence that must stand on a release's artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvidenceRequirement {
    /// As on the wire.
    pub kind: String,
    /// None takes any suite of the kind.
    pub suite: Option<String>,
}

/// How much hangs on a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Checkout, payment, ledger.
    One,
    /// Order, stock, dispatch.
    Two,
    /// Account, search.
    Three,
    /// For the company's own people.
    Four,
}

/// What a component handles that laws and contracts protect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DataScope {
    Card,
    Ledger,
    Personal,
}

/// What a component is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Service,
    App,
    MlModel,
    MobileApp,
    Schema,
}

impl Component {
    /// Whether both ask the same of their releases.
    pub fn asks_as(&self, other: &Self) -> bool {
        self.approval_policy == other.approval_policy
            && self.tier == other.tier
            && self.business_owner_groups == other.business_owner_groups
            && self.data_scopes == other.data_scopes
            && self.kind == other.kind
    }

    /// Whether its releases need as much care as those of the other one.
    pub fn needs_care_of(&self, other: &Self) -> bool {
        self.tier <= other.tier
            && other.data_scopes.iter().all(|scope| self.data_scopes.contains(scope))
            && self.business_owner_groups == other.business_owner_groups
    }
}

impl Requirements {
    /// What keeps a release from an environment, by when it succeeded in those before it; of several one is enough.
    pub fn promotion_hold(&self, before: &[(EnvironmentId, Option<Time>)], now: Time) -> Option<String> {
        if !self.requires_promotion || before.is_empty() {
            return None;
        }
        let baked_at = before.iter().filter_map(|(_, succeeded_at)| *succeeded_at).min();
        let names: Vec<_> = before.iter().map(|(name, _)| name.as_str()).collect();
        let names = names.join(" or ");
        match baked_at.map(|succeeded_at| succeeded_at + self.min_bake) {
            None => Some(format!("the release must succeed in {names} first")),
            Some(ripe_at) if now < ripe_at => {
                let ripe_at = ripe_at.to_rfc3339_opts(SecondsFormat::Secs, true);
                Some(format!("the release must be a success in {names} until {ripe_at}"))
            }
            Some(_) => None,
        }
    }
}

impl Environment {
    /// Whether both ask the same of releases.
    pub fn asks_as(&self, other: &Self) -> bool {
        self.is_production == other.is_production
            && self.requirements == other.requirements
            && self.promotion_order == other.promotion_order
            && self.region == other.region
    }
}

impl Tier {
    const ALL: [Self; 4] = [Self::One, Self::Two, Self::Three, Self::Four];

    /// As in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::One => "TIER_1",
            Self::Two => "TIER_2",
            Self::Three => "TIER_3",
            Self::Four => "TIER_4",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tier| tier.name() == name)
    }
}

impl DataScope {
    const ALL: [Self; 3] = [Self::Card, Self::Ledger, Self::Personal];

    /// As in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Card => "CARD",
            Self::Ledger => "LEDGER",
            Self::Personal => "PERSONAL",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.name() == name)
    }
}

impl Kind {
    const ALL: [Self; 5] = [Self::Service, Self::App, Self::MlModel, Self::MobileApp, Self::Schema];

    /// As in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "SERVICE",
            Self::App => "APP",
            Self::MlModel => "ML_MODEL",
            Self::MobileApp => "MOBILE_APP",
            Self::Schema => "SCHEMA",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use shared::time::at;

    use super::*;

    #[test]
    fn a_release_bakes_where_it_succeeded_first() {
        let requirements =
            Requirements { requires_promotion: true, min_bake: TimeDelta::seconds(60), evidence: vec![] };
        let before = |east: Option<i64>, west: Option<i64>| {
            let place = |name: &str, seconds: Option<i64>| (name.parse().unwrap(), seconds.map(at));
            [place("staging-east", east), place("staging-west", west)]
        };
        let hold = |before: &[_], now| requirements.promotion_hold(before, at(now));
        assert_eq!(hold(&[], 0), None);
        let text = "the release must succeed in staging-east or staging-west first";
        assert_eq!(hold(&before(None, None), 0).as_deref(), Some(text));
        let text = "the release must be a success in staging-east or staging-west until 1970-01-01T00:01:40Z";
        assert_eq!(hold(&before(Some(90), Some(40)), 99).as_deref(), Some(text));
        assert_eq!(hold(&before(Some(90), Some(40)), 100), None);
        let lax = Requirements { requires_promotion: false, ..requirements.clone() };
        assert_eq!(lax.promotion_hold(&before(None, None), at(0)), None);
    }

    #[test]
    fn names_are_read_back() {
        for tier in Tier::ALL {
            assert_eq!(Tier::from_name(tier.name()), Some(tier));
        }
        for kind in Kind::ALL {
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
        }
        for scope in DataScope::ALL {
            assert_eq!(DataScope::from_name(scope.name()), Some(scope));
        }
    }
}
