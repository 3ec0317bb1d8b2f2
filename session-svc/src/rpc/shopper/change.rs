//! The frame of every change of what shoppers have: who it is of, whether for the first time, and under which lock; and
//! what is said to those who read.

use prost::Message;
use serde_json::Value;
use shared::auth::Caller;
use shared::id::{GroupId, SessionId, ShopperId, TenantId};
use shared::mutation::{Begun, Call, Mutation};
use shared::pb::session as pb;
use shared::pb::session::shopper_selector::Owner;
use shared::status::{Failure, Reason, Refusal};
use shared::time::Time;
use tonic::Request;

use super::Shopper;
use crate::domain::abandonment::CartPolicy;
use crate::domain::visit::Visit;
use crate::rpc::{App, overtaken};
use crate::store;
use crate::store::browsing::Look;
use crate::store::{Unwritten, section};

/// Who reads whose state, and when.
pub(super) struct Reading<T> {
    pub(super) tenant: TenantId,
    pub(super) shopper: Shopper<Option<GroupId>>,
    pub(super) visit: Option<Visit>,
    pub(super) now: Time,
    pub(super) message: T,
}

/// A change that was asked for.
pub(super) struct Change {
    call: Call,
    shopper: Shopper<Option<GroupId>>,
}

/// Whose state, as it is stored and told.
#[derive(Clone)]
pub(super) struct Whose {
    pub(super) tenant: TenantId,
    pub(super) id: ShopperId,
    /// The session that named them.
    pub(super) session: Option<SessionId>,
}

impl Change {
    pub(super) fn whose(&self) -> Whose {
        let tenant = self.call.caller.tenant.clone();
        Whose { tenant, id: self.shopper.id, session: self.shopper.session_id() }
    }

    /// That an article was looked at where they were named.
    pub(super) fn look(&self, at: Time) -> Look {
        let touchpoint = self.shopper.touchpoint();
        let after = touchpoint.map_or(CartPolicy::IDLE_MIN, |it| it.cart_policy.abandoned_after);
        Look { at, touchpoint: touchpoint.map(|it| it.id.clone()), due_at: at + after }
    }
}

impl Whose {
    /// Data of an event that says whose it is about.
    pub(super) fn told(&self, mut data: Value) -> Value {
        data["shopper_id"] = self.id.to_string().into();
        data
    }
}

impl App {
    /// Finds out whose state is to be read, whose session lives.
    pub(super) async fn reading<T>(
        &self,
        request: Request<T>,
        owner: fn(&mut T) -> &mut Option<pb::ShopperSelector>,
    ) -> Result<Reading<T>, Failure> {
        let caller = Caller::of(&request)?;
        let mut message = request.into_inner();
        let now = self.clock.now();
        let shopper = self.shopper_anywhere(&caller, owner(&mut message).take(), now).await?;
        let visit = self.require_live_shopper(&caller.tenant, &shopper, now)?;
        Ok(Reading { tenant: caller.tenant.clone(), shopper, visit, now, message })
    }

    /// Finds out whose state a request is about. What a repetition must equal names the session or the shopper, and holds no
    /// credential.
    pub(super) async fn change<T: Message>(
        &self,
        mut request: Request<T>,
        method: &'static str,
        owner: fn(&mut T) -> &mut Option<pb::ShopperSelector>,
        request_id: fn(&mut T) -> &mut String,
    ) -> Result<(Change, T), Failure> {
        let caller = Caller::of(&request)?;
        let selector = owner(request.get_mut()).take();
        let shopper = self.shopper_anywhere(&caller, selector, self.clock.now()).await?;
        let name = shopper
            .session_id()
            .map_or_else(|| shopper.id.to_string(), |session| session.to_string());
        *owner(request.get_mut()) = Some(pb::ShopperSelector { owner: Some(Owner::SessionToken(name)) });
        let (call, message) = Call::of(request, method, request_id)?;
        Ok((Change { call, shopper }, message))
    }

    /// Begins a change in the name of a shopper whose session lives.
    pub(super) async fn begin_change<T: Message + Default>(
        &self,
        change: Change,
    ) -> Result<Begun<T>, Failure> {
        let Change { call, shopper } = change;
        let tenant = call.caller.tenant.clone();
        // A repetition is answered also where the session has ended; but whoever has a token of before a login shall not be
        // told what the subject has.
        if shopper.has_superseded_token() {
            self.require_live_shopper(&tenant, &shopper, self.clock.now())?;
        }
        let begun = self.begin(call).await?;
        if let Begun::Fresh(work) = &begun {
            self.require_live_shopper(&tenant, &shopper, work.now)?;
        }
        Ok(begun)
    }

    /// As [`App::begin_change`], of what the shopper has themselves: they are locked.
    pub(super) async fn open<T: Message + Default>(&self, change: Change) -> Result<Begun<T>, Failure> {
        let whose = change.whose();
        let mut begun = self.begin_change(change).await?;
        if let Begun::Fresh(work) = &mut begun {
            lock(work, &whose).await?;
        }
        Ok(begun)
    }
}

/// Locks a shopper, whom no login has taken what they have from. Until the transaction ends, none does.
pub(super) async fn lock(work: &mut Mutation, whose: &Whose) -> Result<(), Failure> {
    let Whose { tenant, id, session } = whose;
    let merged_into = store::shopper::lock(&mut work.tx, tenant, *id, work.now).await?;
    match (merged_into, session) {
        (Some(into), None) => {
            let text = "the shopper went into another at a login";
            Err(Refusal::new(Reason::ShopperMerged, text).with("into_shopper_id", into).into())
        }
        (Some(_), Some(_)) => Err(overtaken()),
        // A login that found nothing to take did not lock the shopper, but has the session.
        (None, Some(session)) if !store::session::stays_of(&mut work.tx, tenant, *session, *id).await? => {
            Err(overtaken())
        }
        (None, _) => Ok(()),
    }
}

impl From<Unwritten> for Failure {
    fn from(unwritten: Unwritten) -> Self {
        match unwritten {
            Unwritten::Storage(error) => error.into(),
            Unwritten::TooLarge(error) => Refusal::new(Reason::ShopperLimit, error.to_string())
                .with("limit", "section_bytes")
                .with("max", section::BYTES_MAX)
                .into(),
        }
    }
}
