//! Whose state a request is about, named by a session's token or by id; and `ShopperService`, the state that all of a
//! tenant's touchpoints share.
//!
//! Locks are taken in this order: subject, shoppers, carts, sessions. A change of anything here locks its shopper first.

use std::sync::Arc;

use shared::auth::Caller;
use shared::id::{GroupId, SessionId, ShopperId, TenantId};
use shared::parse::{optional, parse, required};
use shared::pb::session as pb;
use shared::pb::session::shopper_selector::Owner;
use shared::status::{Failure, Reason, Refusal};
use shared::time::Time;

use super::App;
use super::live::Seen;
use crate::cache::Entry;
use crate::domain::abandonment::CartPolicy;
use crate::domain::lineage::Presented;
use crate::domain::touchpoint::Touchpoint;
use crate::domain::visit::Visit;

pub(crate) mod browsing;
mod change;
mod context;
mod convert;
mod history;
mod interest;
pub(super) mod merge;
mod preferences;
mod service;
mod share;
mod wishlist;

/// Whose state, and, for carts, at which touchpoints.
pub(super) struct Shopper<G = GroupId> {
    pub(super) id: ShopperId,
    pub(super) group: G,
    /// The session that named it, and its touchpoint; whether it lives is not asked yet.
    pub(super) named_by: Option<(Seen, Arc<Entry<Touchpoint>>)>,
}

impl<G> Shopper<G> {
    pub(super) fn session_id(&self) -> Option<SessionId> {
        self.named_by.as_ref().map(|(seen, _)| seen.session.id)
    }

    /// Whether nobody is logged in to the session that named it.
    pub(super) fn is_anonymous(&self) -> bool {
        self.named_by.as_ref().is_some_and(|(seen, _)| seen.session.identity.is_none())
    }

    /// Where it was named.
    pub(super) fn touchpoint(&self) -> Option<&Touchpoint> {
        self.named_by.as_ref().map(|(_, touchpoint)| &touchpoint.value)
    }

    /// When a cart that it makes now may be due for the first time.
    pub(super) fn first_look(&self, now: Time) -> Time {
        now + self
            .touchpoint()
            .map_or(CartPolicy::IDLE_MIN, |touchpoint| touchpoint.cart_policy.idle_after)
    }

    pub(super) fn has_superseded_token(&self) -> bool {
        let seen = self.named_by.as_ref().map(|(seen, _)| seen.presented);
        matches!(seen, Some(Presented::Superseded(_)))
    }
}

impl App {
    /// The shopper that a request about carts names.
    pub(super) async fn shopper(
        &self,
        caller: &Caller,
        owner: Option<pb::ShopperSelector>,
        now: Time,
    ) -> Result<Shopper, Failure> {
        in_group(self.shopper_anywhere(caller, owner, now).await?)
    }

    /// The same, by a session that may be known from memory, for at most its touchpoint's staleness bound.
    pub(super) async fn known_shopper(
        &self,
        caller: &Caller,
        owner: Option<pb::ShopperSelector>,
        now: Time,
    ) -> Result<Shopper, Failure> {
        match required("owner", required("owner", owner)?.owner)? {
            Owner::SessionToken(token) => {
                in_group(of_session(self.known_session_of(caller, &token, now).await?)?)
            }
            Owner::Shopper(named) => in_group(by_id(caller, named)?),
        }
    }

    /// The shopper that a request names; by id without a group, too.
    pub(super) async fn shopper_anywhere(
        &self,
        caller: &Caller,
        owner: Option<pb::ShopperSelector>,
        now: Time,
    ) -> Result<Shopper<Option<GroupId>>, Failure> {
        match required("owner", required("owner", owner)?.owner)? {
            Owner::SessionToken(token) => of_session(self.session_of(caller, &token, now).await?),
            Owner::Shopper(named) => by_id(caller, named),
        }
    }

    /// Refuses a shopper whose session does not live; answers the visit that it is in.
    pub(super) fn require_live_shopper<G>(
        &self,
        tenant: &TenantId,
        shopper: &Shopper<G>,
        now: Time,
    ) -> Result<Option<Visit>, Failure> {
        let Some((seen, touchpoint)) = &shopper.named_by else { return Ok(None) };
        self.require_live(tenant, seen, &touchpoint.value, now).map(Some)
    }
}

fn of_session(named_by: (Seen, Arc<Entry<Touchpoint>>)) -> Result<Shopper<Option<GroupId>>, Failure> {
    let (seen, touchpoint) = &named_by;
    let text = "the session's touchpoint has no shoppers";
    let id = seen.session.shopper;
    let id = id.ok_or_else(|| Refusal::new(Reason::SessionHasNoShopper, text))?;
    Ok(Shopper { id, group: Some(touchpoint.value.group.clone()), named_by: Some(named_by) })
}

fn by_id(caller: &Caller, named: pb::ShopperRef) -> Result<Shopper<Option<GroupId>>, Failure> {
    let pb::ShopperRef { shopper_id, touchpoint_group } = named;
    caller.require_scope("shopper.any")?;
    caller.require_unlimited()?;
    let id = parse("owner.shopper.shopper_id", &shopper_id)?;
    let group = optional("owner.shopper.touchpoint_group", &touchpoint_group)?;
    Ok(Shopper { id, group, named_by: None })
}

fn in_group(shopper: Shopper<Option<GroupId>>) -> Result<Shopper, Failure> {
    let Shopper { id, group, named_by } = shopper;
    let group = required("owner.shopper.touchpoint_group", group)?;
    Ok(Shopper { id, group, named_by })
}
