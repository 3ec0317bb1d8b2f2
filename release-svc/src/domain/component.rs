//! What is released and where it runs: the catalogue, which people write.

use chrono::{SecondsFormat, TimeDelta};
use shared::id::{ApprovalPolicyId, ComponentId, EnvironmentId};
use shared::time::Time;

use crate::domain::evidence;
use crate::domain::version::Version;

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
    /// For how long it must have served everyone there; whole seconds.
    pub min_bake: TimeDelta,
    pub evidence: Vec<evidence::Requirement>,
}

/// How a release served everyone in an environment, the last time that it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stay {
    pub since: Time,
    /// By what version and when; none while it serves.
    pub replaced: Option<(Version, Time)>,
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
    /// Whether they ask for all that the others do.
    fn meet(&self, others: &Self) -> bool {
        self.requires_promotion >= others.requires_promotion
            && self.min_bake >= others.min_bake
            && others.evidence.iter().all(|required| self.evidence.contains(required))
    }

    /// What keeps a version from an environment, by how it stayed in those before it, and until when where that is known; of
    /// several one is enough.
    pub fn promotion_hold(
        &self,
        version: &Version,
        before: &[(EnvironmentId, Option<Stay>)],
        now: Time,
    ) -> Option<(String, Option<Time>)> {
        if !self.requires_promotion || before.is_empty() {
            return None;
        }
        let names: Vec<_> = before.iter().map(|(name, _)| name.as_str()).collect();
        let names = names.join(" or ");
        let mut stays = before.iter().filter_map(|(_, stay)| stay.as_ref()).peekable();
        let was_there = stays.peek().is_some();
        match stays.filter_map(|stay| stay.ripe_at(version, self.min_bake)).min() {
            None if was_there => {
                let text = format!(
                    "the release was taken out of {names} again, by an older one or too early, and must succeed there anew"
                );
                Some((text, None))
            }
            None => Some((format!("the release must succeed in {names} first"), None)),
            Some(ripe_at) if now < ripe_at => {
                let until = ripe_at.to_rfc3339_opts(SecondsFormat::Secs, true);
                Some((format!("the release must be a success in {names} until {until}"), Some(ripe_at)))
            }
            Some(_) => None,
        }
    }
}

impl Stay {
    /// When the version is baked that stayed so. It is not where it was replaced before; and where an older version
    /// took its place somebody went back, which speaks against it however long that took.
    fn ripe_at(&self, version: &Version, min_bake: TimeDelta) -> Option<Time> {
        let ripe_at = self.since + min_bake;
        let is_good = |(next, at): &(Version, Time)| next > version && ripe_at <= *at;
        self.replaced.as_ref().is_none_or(is_good).then_some(ripe_at)
    }
}

impl Environment {
    /// Whether it asks for all that the other one does. Where promotion is asked for, its place says from where.
    pub fn asks_no_less(&self, other: &Self) -> bool {
        let is_in_place =
            self.promotion_order == other.promotion_order || !other.requirements.requires_promotion;
        is_in_place && self.requirements.meet(&other.requirements)
    }

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
            let stay = |seconds| Stay { since: at(seconds), replaced: None };
            let place = |name: &str, seconds: Option<i64>| (name.parse().unwrap(), seconds.map(stay));
            [place("staging-east", east), place("staging-west", west)]
        };
        let version = "1.1.0".parse().unwrap();
        let hold = |before: &[_], now| requirements.promotion_hold(&version, before, at(now));
        assert_eq!(hold(&[], 0), None);
        let text = "the release must succeed in staging-east or staging-west first";
        assert_eq!(hold(&before(None, None), 0), Some((text.to_owned(), None)));
        let text = "the release must be a success in staging-east or staging-west until 1970-01-01T00:01:40Z";
        assert_eq!(hold(&before(Some(90), Some(40)), 99), Some((text.to_owned(), Some(at(100)))));
        assert_eq!(hold(&before(Some(90), Some(40)), 100), None);
        let lax = Requirements { requires_promotion: false, ..requirements.clone() };
        assert_eq!(lax.promotion_hold(&version, &before(None, None), at(0)), None);
    }

    #[test]
    fn an_environment_asks_no_less_if_no_requirement_falls_and_promotion_stays_in_place() {
        let suite =
            |suite: &str| evidence::Requirement { kind: evidence::Kind::TestReport, suite: suite.to_owned() };
        let environment = |promotion_order, requires_promotion, bake, suites: &[&str]| Environment {
            name: "production".parse().unwrap(),
            display_name: String::new(),
            promotion_order,
            region: None,
            is_production: true,
            requirements: Requirements {
                requires_promotion,
                min_bake: TimeDelta::seconds(bake),
                evidence: suites.iter().map(|name| suite(name)).collect(),
            },
            needs_executor: false,
            created_at: at(0),
            row_version: 1,
        };
        let strict = environment(2, true, 60, &["a", "b"]);
        for (changed, asks_no_less) in [
            (strict.clone(), true),
            (environment(2, true, 61, &["b", "a", "c"]), true),
            (environment(2, true, 59, &["a", "b"]), false),
            (environment(2, false, 60, &["a", "b"]), false),
            (environment(2, true, 60, &["a"]), false),
            (environment(1, true, 60, &["a", "b"]), false),
        ] {
            assert_eq!(changed.asks_no_less(&strict), asks_no_less, "{changed:?}");
        }
        let lax = environment(2, false, 0, &[]);
        assert!(environment(1, false, 0, &[]).asks_no_less(&lax) && strict.asks_no_less(&lax));
    }

    #[test]
    fn what_was_replaced_has_baked_if_it_stayed_and_made_way_for_a_newer_version() {
        let requirements =
            Requirements { requires_promotion: true, min_bake: TimeDelta::seconds(60), evidence: vec![] };
        let version: Version = "1.1.0".parse().unwrap();
        let until = |version: &str, second| Some((version.parse().unwrap(), at(second)));
        for (replaced, now, may_go) in [
            (None, 99, false),
            (None, 100, true),
            (until("1.2.0", 100), 100, true),
            (until("1.2.0", 99), 99, false),
            (until("1.2.0", 99), 1000, false),
            (until("1.0.0", 99), 1000, false),
            (until("1.0.0", 900), 1000, false),
            (until("1.1.0-rc.1", 900), 1000, false),
        ] {
            let before = [("staging".parse().unwrap(), Some(Stay { since: at(40), replaced }))];
            let hold = requirements.promotion_hold(&version, &before, at(now));
            assert_eq!(hold.is_none(), may_go, "{before:?} at {now}: {hold:?}");
        }
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
