//! The carts of an anonymous shopper who logs in. Locked in this order: carts, then the session that logs in; the subject
//! is locked already.

use serde_json::json;
use shared::id::{CartId, SessionId, ShopperId, TenantId};
use shared::mutation::Mutation;
use shared::pb::session as pb;
use shared::status::{Failure, Reason, Refusal};
use sqlx::Connection as _;

use super::{App, abandonment, overtaken};
use crate::domain::cart::{Cart, State};
use crate::domain::merge::{InCheckout, Merge, Outcome, Strategy, merge};
use crate::store;
use crate::store::cart::{Key, Place};

/// How often a login looks for carts that were made meanwhile.
const LOOKS_MAX: usize = 3;

impl App {
    /// Brings the carts of a shopper who was anonymous until now to the subject's shopper, who is locked; answers what became
    /// of each. Where the subject has no open cart of the group and currency, it gets the anonymous one under the same id;
    /// where it has, the two are merged. Either way the anonymous one ends and points to where it went.
    pub(super) async fn merge_carts(
        &self,
        work: &mut Mutation,
        session: SessionId,
        from: ShopperId,
        into: ShopperId,
        strategy: Strategy,
    ) -> Result<Vec<pb::CartMerge>, Failure> {
        let tenant = work.actor.tenant.clone();
        let carts = lock_carts(work, &tenant, session, from, into).await?;
        let (mut targets, sources): (Vec<_>, Vec<_>) =
            carts.into_iter().partition(|cart| cart.shopper == into);
        let mut merges = vec![];
        for mut source in sources {
            let is_there = |cart: &Cart| cart.group == source.group && cart.currency == source.currency;
            let target = targets.iter().position(is_there).map(|at| targets.swap_remove(at));
            let (outcome, id, left_out) = bring(work, &tenant, &mut source, target, into, strategy).await?;
            merges.push(pb::CartMerge {
                source_cart_id: source.id.to_string(),
                target_cart_id: id.map(|id| id.to_string()).unwrap_or_default(),
                currency_code: source.currency.as_str().to_owned(),
                left_out_quantity: left_out,
                outcome: outcome.into(),
                source_shopper_id: from.to_string(),
                touchpoint_group: source.group.to_string(),
            });
        }
        Ok(merges)
    }
}

/// Locks every open cart of both shoppers, and the session, so that no change that was sent with a token of before makes a
/// cart that nobody looks at any more: it comes first and is seen here, or it waits and then finds that it was overtaken.
/// Where there is a new one, the session is let go of and everything locked again, in the same order.
async fn lock_carts(
    work: &mut Mutation,
    tenant: &TenantId,
    session: SessionId,
    from: ShopperId,
    into: ShopperId,
) -> Result<Vec<Cart>, Failure> {
    for _ in 0..LOOKS_MAX {
        let carts = store::cart::lock_all_open(&mut work.tx, tenant, [from, into]).await?;
        let seen = carts.iter().filter(|cart| cart.shopper == from).count();
        let mut attempt = work.tx.begin().await?;
        if !store::session::lock_of(&mut attempt, tenant, session, from).await? {
            return Err(overtaken());
        }
        if store::cart::count_open(&mut attempt, tenant, from).await? == seen {
            attempt.commit().await?;
            return Ok(carts);
        }
        attempt.rollback().await?;
    }
    Err(overtaken())
}

/// Brings one cart to the subject's shopper; answers what was done, where it is now and how much was left out. To abandoned
/// carts that it ends or changes their shopper came back.
pub(super) async fn bring(
    work: &mut Mutation,
    tenant: &TenantId,
    source: &mut Cart,
    target: Option<Cart>,
    into: ShopperId,
    strategy: Strategy,
) -> Result<(pb::CartMergeOutcome, Option<CartId>, i64), Failure> {
    if strategy == Strategy::None {
        return Ok((pb::CartMergeOutcome::KeptApart, None, 0));
    }
    let place = Place { tenant, shopper: into, group: &source.group.clone(), currency: source.currency };
    let target = match target {
        Some(target) => Some(target),
        None if hand_over(work, &place, source).await? => None,
        // Another device of the subject made it at the same time and has committed.
        None => Some(store::cart::lock_open(&mut work.tx, &place).await?.ok_or_else(overtaken)?),
    };
    let (outcome, id, left_out) = match target {
        None => {
            let merge = Some(Box::new(Merge::handing_over(source, work.now)));
            source.state = State::Merged { into: source.id, merge };
            source.updated_at = work.now;
            (pb::CartMergeOutcome::Moved, source.id, 0)
        }
        Some(mut target) => {
            let (changed_at, had_goods) = (target.updated_at, target.has_goods());
            let left_out = match merge(&mut target, source, strategy, work.now)? {
                Outcome::Merged { left_out } => left_out,
                Outcome::KeptApart => return Ok((pb::CartMergeOutcome::KeptApart, None, 0)),
                Outcome::OtherStore => return Ok((pb::CartMergeOutcome::OtherStore, None, 0)),
            };
            target.version += 1;
            write(work, tenant, &target).await?;
            if target.has_goods() && !had_goods {
                let key = Key { tenant: tenant.clone(), shopper: target.shopper, cart: target.id };
                store::abandonment::put_off(&mut work.tx, &[key], work.now).await?;
            }
            if target.updated_at != changed_at {
                abandonment::recover(&mut work.tx, &work.actor, &mut target).await?;
            }
            let data = json!({"shopper_id": into.to_string(), "from_cart_id": source.id.to_string()});
            work.tell("cart.lines_merged", target.id.to_string(), data);
            (pb::CartMergeOutcome::Merged, target.id, left_out)
        }
    };
    source.version += 1;
    write(work, tenant, source).await?;
    let key = |shopper, cart| Key { tenant: tenant.clone(), shopper, cart };
    let (from, to) = (key(source.shopper, source.id), key(into, id));
    store::abandonment::bring_contact(&mut work.tx, &from, &to).await?;
    let data = json!({
        "shopper_id": source.shopper.to_string(),
        "into_shopper_id": into.to_string(),
        "into_cart_id": id.to_string(),
        "strategy": strategy.name(),
        "left_out_quantity": left_out,
    });
    work.tell("cart.merged", source.id.to_string(), data);
    abandonment::recover(&mut work.tx, &work.actor, source).await?;
    Ok((outcome, Some(id), left_out))
}

/// Gives the shopper the cart as it is, which knows the request ids of the shopper's last cart from then on, as every new
/// cart does; false if the shopper has one by now. The shopper is part of the key, so it is a row of its own, which is
/// looked at at once.
async fn hand_over(work: &mut Mutation, place: &Place<'_>, source: &Cart) -> Result<bool, Failure> {
    let mut cart = Cart { shopper: place.shopper, updated_at: work.now, ..source.clone() };
    // That of the row it was is told of.
    cart.abandonment.recover(work.now);
    if let Some(last) = store::cart::find_last_ended(&mut work.tx, place).await? {
        cart.remember_all(&last.applied);
    }
    Ok(store::cart::insert(&mut work.tx, place.tenant, &cart, work.now).await?)
}

/// Writes a locked cart.
async fn write(work: &mut Mutation, tenant: &TenantId, cart: &Cart) -> Result<(), Failure> {
    let is_written = store::cart::update(&mut work.tx, tenant, cart).await?;
    is_written.then_some(()).ok_or_else(overtaken)
}

impl From<InCheckout> for Failure {
    fn from(refused: InCheckout) -> Self {
        Refusal::new(Reason::CartWrongState, refused.to_string())
            .with("state", "CHECKOUT")
            .with("cart_id", refused.0)
            .into()
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
