//! What is released and where it runs: the catalogue, which people write.

use shared::id::{ApprovalPolicyId, ComponentId, EnvironmentId};
use shared::time::Time;

/// A deployable thing that is released on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    pub name: ComponentId,
    pub display_name: String,
    /// Empty leaves it to the scopes alone.
    pub owner_groups: Vec<String>,
    pub approval_policy: ApprovalPolicyId,
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
    pub created_at: Time,
    pub row_version: i64,
}

/// How much hangs on a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataScope {
    Card,
    Ledger,
    Personal,
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
