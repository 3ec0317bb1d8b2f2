//! Letting a subject have one session more: not if it is disabled, and no more than the touchpoint allows.

use std::collections::HashMap;

use serde_json::json;
use shared::id::{SessionId, ShopperId, TenantId};
use shared::mutation::Mutation;
use shared::status::{Failure, Reason, Refusal};
use shared::time::Time;

use super::App;
use crate::domain::session::{RevokeReason, Subject};
use crate::domain::touchpoint::{LimitAction, SessionLimit, Touchpoint};
use crate::store;
use crate::store::subject::{Known, Living};

/// A subject that was let in; its row is locked.
pub(super) struct Admitted {
    pub(super) known: Known,
    /// Sessions that have to end for it.
    pub(super) excess: Vec<SessionId>,
}

impl App {
    /// Locks a subject and says which sessions have to end for another one; `present` is one that it may have already.
    pub(super) async fn admit(
        &self,
        work: &mut Mutation,
        touchpoint: &Touchpoint,
        subject: &Subject,
        digest: &[u8; 32],
        present: Option<SessionId>,
    ) -> Result<Admitted, Failure> {
        if !touchpoint.policy.allows_issuer(&subject.issuer) {
            let text = "the touchpoint lets no subjects of this issuer in";
            return Err(Refusal::new(Reason::IdTokenIssuerRefused, text).into());
        }
        let (tenant, now) = (work.actor.tenant.clone(), work.now);
        let known = store::subject::lock(&mut work.tx, &tenant, digest, now).await?;
        if known.disabled_at.is_some() {
            return Err(Refusal::new(Reason::SubjectDisabled, "the subject is disabled").into());
        }
        let excess = match touchpoint.policy.session_limit {
            Some(limit) => self.excess(work, touchpoint, limit, digest, present).await?,
            None => vec![],
        };
        Ok(Admitted { known, excess })
    }

    /// Sessions of a locked subject that have to end for one more, the one seen least recently first. A session that it has
    /// already is not one more, whatever the limit is by now.
    async fn excess(
        &self,
        work: &mut Mutation,
        touchpoint: &Touchpoint,
        limit: SessionLimit,
        digest: &[u8; 32],
        present: Option<SessionId>,
    ) -> Result<Vec<SessionId>, Failure> {
        let (tenant, now) = (work.actor.tenant.clone(), work.now);
        let seen_after = |is_remembered| {
            let timeouts = touchpoint.policy.timeouts(is_remembered);
            now - timeouts.idle - timeouts.flush_interval()
        };
        let living = Living {
            touchpoint: &touchpoint.id,
            epoch: touchpoint.session_epoch,
            seen_after: seen_after(false),
            remembered_seen_after: seen_after(true),
            now,
        };
        let live = store::subject::live_sessions(&mut work.tx, &tenant, digest, &living).await?;
        let beyond = |count: usize| (count + 1).saturating_sub(limit.max.into());
        if beyond(live.len()) == 0 || live.iter().any(|(id, _)| Some(*id) == present) {
            return Ok(vec![]);
        }
        if limit.action == LimitAction::Reject {
            let text = format!("the subject has {} sessions here, which is all that it may", live.len());
            return Err(Refusal::new(Reason::SessionLimitReached, text).with("max", limit.max).into());
        }
        // What is gone from the touches by the second reading is in the rows.
        let seen = |(id, _): &(SessionId, Time)| Some((*id, self.touches.peek(&tenant, *id)?.seen_at));
        let touches: HashMap<_, _> = live.iter().filter_map(seen).collect();
        let mut live = store::subject::live_sessions(&mut work.tx, &tenant, digest, &living).await?;
        for (id, seen_at) in &mut live {
            *seen_at = touches.get(id).map_or(*seen_at, |touch| (*seen_at).max(*touch));
        }
        live.sort_unstable_by_key(|(id, seen_at)| (*seen_at, *id));
        live.truncate(beyond(live.len()));
        Ok(live.into_iter().map(|(id, _)| id).collect())
    }

    /// Ends sessions of an admitted subject, in key order, after its carts are locked; answers which it ended.
    pub(super) async fn evict(
        &self,
        work: &mut Mutation,
        mut excess: Vec<SessionId>,
    ) -> Result<Vec<SessionId>, Failure> {
        excess.sort();
        let (tenant, now, reason) = (work.actor.tenant.clone(), work.now, RevokeReason::Evicted);
        let mut evicted = vec![];
        for id in excess {
            if store::revocation::revoke(&mut work.tx, &tenant, id, now, reason).await? {
                work.tell("session.revoked", id.to_string(), json!({"reason": reason.name()}));
                evicted.push(id);
            }
        }
        Ok(evicted)
    }

    /// The shopper of an admitted subject: the one it has, or else this one from now on.
    pub(super) async fn shopper_of(
        &self,
        work: &mut Mutation,
        digest: &[u8; 32],
        admitted: &Admitted,
        own: Option<ShopperId>,
    ) -> Result<Option<ShopperId>, Failure> {
        let Some(own) = own else { return Ok(None) };
        if let Some(shopper) = admitted.known.shopper {
            return Ok(Some(shopper));
        }
        let tenant = work.actor.tenant.clone();
        // Whoever is about to delete what nobody has is waited for, or passes by.
        store::shopper::lock_both(&mut work.tx, &tenant, [own, own]).await?;
        store::subject::set_shopper(&mut work.tx, &tenant, digest, own).await?;
        Ok(Some(own))
    }

    /// Here it must hold before the caller hears of it; the feed tells the other replicas.
    pub(super) fn forget(&self, tenant: &TenantId, sessions: &[SessionId]) {
        for id in sessions {
            self.sessions.invalidate(&(tenant.clone(), *id));
        }
    }
}
