//! What an anonymous shopper has but carts, when they log in. Both shoppers are locked before their carts are, and those
//! before the session.

use serde_json::json;
use shared::id::{SessionId, ShopperId, TenantId, WishlistId};
use shared::mutation::Mutation;
use shared::pb::session as pb;
use shared::status::Failure;

use super::change::Whose;
use super::{browsing, preferences};
use crate::domain::abandonment::CartPolicy;
use crate::domain::consent::Purpose;
use crate::domain::preferences::Key;
use crate::domain::wishlist::{Visibility, WISHLISTS_MAX, Wishlist};
use crate::rpc::overtaken;
use crate::store;
use crate::store::Unwritten;
use crate::store::browsing::Look;

/// A login that brings what one shopper has to another.
pub(in crate::rpc) struct Login {
    pub(in crate::rpc) session: SessionId,
    pub(in crate::rpc) from: ShopperId,
    pub(in crate::rpc) into: ShopperId,
}

/// Locks both shoppers, if the anonymous one has more than carts; answers whether that is so.
pub(in crate::rpc) async fn lock(work: &mut Mutation, login: &Login) -> Result<bool, Failure> {
    let (tenant, now, Login { from, into, .. }) = (work.actor.tenant.clone(), work.now, login);
    let locked = store::shopper::lock_both(&mut work.tx, &tenant, [*from, *into]).await?;
    let has_more = locked.contains(from);
    if has_more
        && !locked.contains(into)
        && store::shopper::lock(&mut work.tx, &tenant, *into, now).await?.is_some()
    {
        return Err(overtaken());
    }
    Ok(has_more)
}

/// Brings all of it to the subject's shopper, once [`lock`] and then the session are locked; none where there is nothing.
pub(in crate::rpc) async fn merge(
    work: &mut Mutation,
    login: &Login,
    has_more: bool,
) -> Result<Option<pb::ShopperMerge>, Failure> {
    let (tenant, Login { session, from, into }) = (work.actor.tenant.clone(), login);
    if !has_more {
        // A change that was sent with a token of before may have come between; the next try takes it along. Later ones wait
        // for the session, and find that it is of another shopper.
        let is_late = store::shopper::exists(&mut work.tx, &tenant, *from).await?;
        return if is_late { Err(overtaken()) } else { Ok(None) };
    }
    let whose = Whose { tenant, id: *into, session: Some(*session) };
    let wishlists = merge_wishlists(work, &whose, *from).await?;
    merge_preferences(work, &whose, *from).await?;
    if !store::shopper::set_merged(&mut work.tx, &whose.tenant, *from, *into, work.now).await? {
        return Err(overtaken());
    }
    let data = json!({"into_shopper_id": into.to_string()});
    work.tell("shopper.merged", from.to_string(), data);
    Ok(Some(pb::ShopperMerge {
        source_shopper_id: from.to_string(),
        target_shopper_id: into.to_string(),
        wishlists,
    }))
}

/// Settings and decisions, then history, as the consent that stands now allows.
async fn merge_preferences(work: &mut Mutation, whose: &Whose, from: ShopperId) -> Result<(), Failure> {
    let Whose { tenant, id: into, session } = whose;
    let (Some(session), now) = (*session, work.now) else { return Ok(()) };
    let theirs = store::preferences::find(&mut work.tx, tenant, from).await?;
    let mut own = store::preferences::find(&mut work.tx, tenant, *into).await?;
    let left = store::browsing::find(&mut work.tx, tenant, from).await?;
    if let Some(left) = &left {
        browsing::tell_recovered(work, tenant, from, left, &theirs.consents).await?;
    }
    let set = own.merge(&theirs, session, now);
    let decided = own.consents.merge(&theirs.consents, session);
    if !set.is_empty() || !decided.is_empty() {
        preferences::write(work, whose, &mut own).await?;
    }
    if !set.is_empty() {
        let fields: Vec<_> = set.into_iter().map(Key::name_of).collect();
        let data = whose.told(json!({"fields": fields}));
        work.tell("preferences.changed", into.to_string(), data);
    }
    preferences::tell_consents(work, whose, &decided);
    if own.consents.grants(Purpose::PERSONALISATION) {
        let theirs = store::history::find(&mut work.tx, tenant, from).await?;
        if !theirs.stored().is_empty() {
            let mut history = store::history::find(&mut work.tx, tenant, *into).await?;
            history.add(theirs.stored().iter().cloned(), now);
            store::history::update(&mut work.tx, tenant, *into, &history).await?;
            // Who logs in is there, and may leave again.
            if let Some(left) = left.filter(|left| left.browsing.looked_at.is_some()) {
                let due_at = now + CartPolicy::IDLE_MIN;
                let look = Look { at: now, touchpoint: left.touchpoint, due_at };
                browsing::look(work, tenant, *into, &look, &own.consents).await?;
            }
        }
        return Ok(());
    }
    preferences::forget_without_consent(work, whose, &own).await
}

/// Every list, oldest first.
async fn merge_wishlists(
    work: &mut Mutation,
    whose: &Whose,
    from: ShopperId,
) -> Result<Vec<pb::WishlistMerge>, Failure> {
    let sources = store::wishlist::list(&mut work.tx, &whose.tenant, from).await?;
    if sources.is_empty() {
        return Ok(vec![]);
    }
    let mut targets = store::wishlist::list(&mut work.tx, &whose.tenant, whose.id).await?;
    let mut merges = vec![];
    for mut source in sources {
        let target = bring(work, whose, &mut source, &mut targets).await?;
        let target_wishlist_id = target.as_ref().map(ToString::to_string).unwrap_or_default();
        let left_out = if target == Some(source.id) { 0 } else { source.items.len() };
        let left_out_items = i32::try_from(left_out).unwrap_or(i32::MAX);
        let source_wishlist_id = source.id.to_string();
        if target.is_some() {
            let data = json!({
                "shopper_id": from.to_string(),
                "into_shopper_id": whose.id.to_string(),
                "into_wishlist_id": target_wishlist_id,
                "left_out_items": left_out_items,
            });
            work.tell("wishlist.merged", source_wishlist_id.clone(), data);
        }
        merges.push(pb::WishlistMerge { source_wishlist_id, target_wishlist_id, left_out_items });
    }
    Ok(merges)
}

/// Brings one list to the subject's; answers which it is in, or none where the subject has too many. What finds no room in
/// another list stays in this one.
async fn bring(
    work: &mut Mutation,
    whose: &Whose,
    source: &mut Wishlist,
    targets: &mut Vec<Wishlist>,
) -> Result<Option<WishlistId>, Failure> {
    let tenant = &whose.tenant;
    // What is shown to others takes nothing in, and is taken in by nothing: it would be shown to more than it was.
    let is_same = |target: &&mut Wishlist| {
        target.title.name == source.title.name
            && target.visibility == Visibility::Private
            && source.visibility == Visibility::Private
    };
    if let Some(target) = targets.iter_mut().find(is_same) {
        let (mut merged, mut rest) = (target.clone(), source.clone());
        merged.merge(&mut rest, work.now);
        merged.version += 1;
        match store::wishlist::update(&mut work.tx, tenant, &merged).await {
            Ok(true) => {
                leave(work, tenant, source, rest).await?;
                *target = merged;
                let data = whose.told(json!({"from_wishlist_id": source.id.to_string()}));
                work.tell("wishlist.items_merged", target.id.to_string(), data);
                return Ok(Some(target.id));
            }
            // The two do not fit into one section: they stay two lists.
            Err(Unwritten::TooLarge(_)) => {}
            Ok(false) => return Err(overtaken()),
            Err(error) => return Err(error.into()),
        }
    }
    if targets.len() >= WISHLISTS_MAX {
        return Ok(None);
    }
    let moved = Wishlist { shopper: whose.id, ..source.clone() };
    store::wishlist::insert(&mut work.tx, tenant, &moved).await?;
    if !store::wishlist::delete(&mut work.tx, tenant, source).await? {
        return Err(overtaken());
    }
    targets.push(moved);
    Ok(Some(source.id))
}

/// What is left of a list that went into another.
async fn leave(
    work: &mut Mutation,
    tenant: &TenantId,
    source: &mut Wishlist,
    rest: Wishlist,
) -> Result<(), Failure> {
    let is_done = if rest.items.is_empty() {
        store::wishlist::delete(&mut work.tx, tenant, source).await?
    } else {
        let rest = Wishlist { version: rest.version + 1, ..rest.clone() };
        store::wishlist::update(&mut work.tx, tenant, &rest).await?
    };
    *source = rest;
    is_done.then_some(()).ok_or_else(overtaken)
}
