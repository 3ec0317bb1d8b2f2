//! The rows of the page. One more is one more file, one more name here, and its line in [`Row::run`].

use clap::ValueEnum;

use crate::Outcome;
use crate::page::Section;
use crate::stand::Stand;

mod authenticate;
mod cart;
mod create;
mod growth;
mod guards;
mod lone;
mod memory;
mod purge;
mod revocation;
mod rollouts;
mod shop_sessions;
mod space;
mod start;
mod validate;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Row {
    ValidateCached,
    ValidateStrong,
    Create,
    Cart,
    Authenticate,
    Lone,
    Revocation,
    Growth,
    Purge,
    Space,
    Memory,
    Start,
    Guards,
    ShopSessions,
    Rollouts,
}

impl Row {
    /// As it is asked for.
    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Measures it.
    pub(crate) async fn run(self, stand: &Stand) -> Outcome<Section> {
        match self {
            Self::ValidateCached => validate::cached(stand).await,
            Self::ValidateStrong => validate::strong(stand).await,
            Self::Create => create::create(stand).await,
            Self::Cart => cart::cart(stand).await,
            Self::Authenticate => authenticate::authenticate(stand).await,
            Self::Lone => lone::lone(stand).await,
            Self::Revocation => revocation::revocation(stand).await,
            Self::Growth => growth::growth(stand).await,
            Self::Purge => purge::purge(stand).await,
            Self::Space => space::space(stand).await,
            Self::Memory => memory::memory(stand).await,
            Self::Start => start::start(stand).await,
            Self::Guards => guards::guards(stand).await,
            Self::ShopSessions => shop_sessions::shop_sessions(stand).await,
            Self::Rollouts => rollouts::rollouts(stand).await,
        }
    }
}
