//! Letting a subject have one session more: not if it is disabled, and no more than the touchpoint allows.

use serde_json::json;
use shared::id::{SessionId, ShopperId, TenantId};
use shared::mutation::Mutation;
use shared::status::{Failure, Reason, Refusal};

use super::App;
use crate::domain::session::{RevokeReason, Subject};
use crate::domain::touchpoint::{LimitAction, Touchpoint};
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
        let Some(limit) = touchpoint.policy.session_limit else {
            return Ok(Admitted { known, excess: vec![] });
        };
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
        let mut others = store::subject::live_sessions(&mut work.tx, &tenant, digest, &living).await?;
        others.retain(|id| Some(*id) != present);
        let excess = (others.len() + 1).saturating_sub(limit.max.into());
        if excess > 0 && limit.action == LimitAction::Reject {
            let text = format!("the subject has {} sessions here, which is all that it may", others.len());
            return Err(Refusal::new(Reason::SessionLimitReached, text).with("max", limit.max).into());
        }
        others.truncate(excess);
        Ok(Admitted { known, excess: others })
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
            if store::session::revoke(&mut work.tx, &tenant, id, now, reason).await? {
                work.tell("session.revoked", id.to_string(), json!({"reason": reason.name()}))
                    .await?;
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
