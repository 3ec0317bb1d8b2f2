//! The cart of an anonymous shopper who logs in.

use shared::id::{SessionId, ShopperId};
use shared::mutation::Mutation;
use shared::pb::session as pb;
use shared::status::Failure;

use super::App;
use crate::domain::merge::Strategy;

impl App {
    /// Brings the carts of a shopper who was anonymous until now to the subject's shopper; answers what became of each.
    pub(super) async fn merge_carts(
        &self,
        _work: &mut Mutation,
        _session: SessionId,
        _from: ShopperId,
        _into: ShopperId,
        _strategy: Strategy,
    ) -> Result<Vec<pb::CartMerge>, Failure> {
        Ok(vec![])
    }
}

impl From<pb::MergeStrategy> for Strategy {
    fn from(strategy: pb::MergeStrategy) -> Self {
        match strategy {
            pb::MergeStrategy::Unspecified | pb::MergeStrategy::SumCapped => Self::SumCapped,
            pb::MergeStrategy::Max => Self::Max,
            pb::MergeStrategy::GuestWins => Self::GuestWins,
            pb::MergeStrategy::UseGuest => Self::UseGuest,
            pb::MergeStrategy::KeepExisting => Self::KeepExisting,
            pb::MergeStrategy::GuestIfExistingEmpty => Self::GuestIfExistingEmpty,
            pb::MergeStrategy::None => Self::None,
        }
    }
}
