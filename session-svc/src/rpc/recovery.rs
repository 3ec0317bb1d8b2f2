//! Recoveries: tokens that open one cart once, and never log anyone in. Locked in this order: carts, the recovery, then the
//! session that opens it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use shared::auth::Caller;
use shared::mutation::{Begun, Call, Mutation};
use shared::parse::{known_or_default, parse};
use shared::pb::session as pb;
use shared::pb::session::RecoveryOutcome;
use shared::pb::session::shopper_selector::Owner;
use shared::status::{Failure, Reason, Refusal};
use shared::time::to_proto;
use tonic::Request;

use super::cart::convert::cart_to_proto;
use super::cart::{Moment, no_cart};
use super::convert::parse_ttl;
use super::live::name_session;
use super::shopper::Shopper;
use super::{App, abandonment, merge, overtaken};
use crate::domain::cart::{self, Cart, State};
use crate::domain::merge::{InCheckout, Strategy};
use crate::domain::recovery::{End, OPEN_MAX, Refused};
use crate::domain::token::RecoveryToken;
use crate::store;
use crate::store::cart::Key;

const TTL_DEFAULT: Duration = Duration::from_hours(7 * 24);
const TTL_MAX: Duration = Duration::from_hours(30 * 24);

impl App {
    pub(super) async fn create_cart_recovery(
        &self,
        request: Request<pb::CreateCartRecoveryRequest>,
    ) -> Result<pb::CreateCartRecoveryResponse, Failure> {
        let (call, message) = Call::of(request, "CreateCartRecovery", |message| &mut message.request_id)?;
        let pb::CreateCartRecoveryRequest { shopper_id, cart_id, ttl, request_id: _ } = message;
        call.caller.require_unlimited()?;
        let (tenant, shopper, cart) =
            (call.caller.tenant.clone(), parse("shopper_id", &shopper_id)?, parse("cart_id", &cart_id)?);
        let ttl = parse_ttl(ttl, TTL_DEFAULT, TTL_MAX)?;
        let mut work = match self.begin::<pb::CreateCartRecoveryResponse>(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => {
                let salt = before.salt.unwrap_or_default();
                let recovery_token = self.recovery_token(&tenant, shopper, &salt)?.expose();
                return Ok(pb::CreateCartRecoveryResponse { recovery_token, ..before.answer });
            }
        };
        let key = Key { tenant, shopper, cart };
        let cart = locked_cart(&mut work, &key).await?;
        require_open(&cart)?;
        if cart.lines.is_empty() {
            return Err(cart::Refused::Empty.into());
        }
        if store::recovery::count_open(&mut work.tx, &key, work.now).await? >= OPEN_MAX {
            return Err(cart::Refused::Limit { limit: "recoveries", max: OPEN_MAX }.into());
        }
        let salt = self.new_salt()?;
        let token = self.recovery_token(&key.tenant, shopper, &salt)?;
        let expires_at = work.now + ttl;
        store::recovery::insert(&mut work.tx, &key.tenant, &token, cart.id, expires_at).await?;
        let data = json!({"shopper_id": shopper.to_string(), "abandoned": cart.abandonment.raised.is_some()});
        work.tell("cart.recovery_created", cart.id.to_string(), data);
        let expire_time = Some(to_proto(expires_at));
        let kept = pb::CreateCartRecoveryResponse { recovery_token: String::new(), expire_time };
        let kept = work.answer_without_secret(kept, Some(&salt)).await?;
        Ok(pb::CreateCartRecoveryResponse { recovery_token: token.expose(), ..kept })
    }

    pub(super) async fn revoke_cart_recoveries(
        &self,
        request: Request<pb::RevokeCartRecoveriesRequest>,
    ) -> Result<pb::RevokeCartRecoveriesResponse, Failure> {
        let (call, message) = Call::of(request, "RevokeCartRecoveries", |message| &mut message.request_id)?;
        let pb::RevokeCartRecoveriesRequest { shopper_id, cart_id, request_id: _ } = message;
        call.caller.require_unlimited()?;
        let tenant = call.caller.tenant.clone();
        let key =
            Key { tenant, shopper: parse("shopper_id", &shopper_id)?, cart: parse("cart_id", &cart_id)? };
        let mut work = match self.begin(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        locked_cart(&mut work, &key).await?;
        let count = store::recovery::revoke_all(&mut work.tx, &key, work.now).await?;
        if count > 0 {
            let data = json!({"shopper_id": key.shopper.to_string(), "count": count});
            work.tell("cart.recoveries_revoked", key.cart.to_string(), data);
        }
        let revoked_count = i32::try_from(count).unwrap_or(i32::MAX);
        work.answer(pb::RevokeCartRecoveriesResponse { revoked_count }).await
    }

    pub(super) async fn redeem_cart_recovery(
        &self,
        mut request: Request<pb::RedeemCartRecoveryRequest>,
    ) -> Result<pb::RedeemCartRecoveryResponse, Failure> {
        let caller = Caller::of(&request)?;
        let text = std::mem::take(&mut request.get_mut().recovery_token);
        let token = RecoveryToken::parse(&text).ok();
        // What a repetition must equal names token and session, and is no credential.
        let name = token.as_ref().map(|token| URL_SAFE_NO_PAD.encode(token.hash().bytes()));
        request.get_mut().recovery_token = name.unwrap_or_default();
        let session_token = name_session(&mut request.get_mut().session_token);
        let (call, message) = Call::of(request, "RedeemCartRecovery", |message| &mut message.request_id)?;
        let strategy: pb::MergeStrategy = known_or_default("merge_strategy", message.merge_strategy)?;
        if strategy == pb::MergeStrategy::None {
            return Err(Refusal::field("merge_strategy", "must not be NONE").into());
        }
        let token = token.ok_or_else(unknown)?;
        let owner = pb::ShopperSelector { owner: Some(Owner::SessionToken(session_token)) };
        let shopper = self.shopper(&caller, Some(owner), self.clock.now()).await?;
        // Whoever has a token of before a login shall not be told what the subject has.
        if shopper.has_superseded_token() {
            self.require_live_shopper(&caller.tenant, &shopper, self.clock.now())?;
        }
        let work = match self.begin::<pb::RedeemCartRecoveryResponse>(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => return self.repeat_recovery(&caller, &shopper, before.answer).await,
        };
        let visit = self.require_live_shopper(&caller.tenant, &shopper, work.now)?;
        let moment = Moment::of(&shopper, visit.as_ref(), work.now);
        self.redeem(work, &token, (&shopper, &moment), strategy.into()).await
    }

    /// Opens the cart, and uses the token up for it. Whether it is good is looked at before anything is locked, so that a
    /// token that somebody made up locks nothing; that it still is, its write says.
    async fn redeem(
        &self,
        mut work: Box<Mutation>,
        token: &RecoveryToken,
        (shopper, moment): (&Shopper, &Moment),
        strategy: Strategy,
    ) -> Result<pb::RedeemCartRecoveryResponse, Failure> {
        let (tenant, now, owner) = (work.actor.tenant.clone(), work.now, token.shopper_id());
        let recovery = store::recovery::find(&mut work.tx, &tenant, token).await?.ok_or_else(unknown)?;
        let id = recovery.cart(now)?;
        let mut carts = store::cart::lock_all_open(&mut work.tx, &tenant, [owner, shopper.id]).await?;
        let at = carts.iter().position(|cart| cart.shopper == owner && cart.id == id);
        let Some(mut cart) = at.map(|at| carts.swap_remove(at)) else {
            let recovery = store::recovery::find(&mut work.tx, &tenant, token).await?.ok_or_else(unknown)?;
            recovery.cart(now)?;
            let ended = store::cart::find(&mut work.tx, &tenant, owner, id).await?.ok_or_else(unknown)?;
            return Err(cart::Refused::WrongState(ended.state.name()).into());
        };
        if cart.group != shopper.group {
            return Err(unknown().into());
        }
        if !store::recovery::end(&mut work.tx, &tenant, token, End::Redeemed, now).await? {
            // Somebody else did, since it was read.
            return Err(Refused::Redeemed.into());
        }
        let subjects = store::subject::owned(&mut work.tx, &[(&tenant, owner)]).await?;
        let (cart, outcome) = if owner == shopper.id {
            self.come_back(&mut work, &mut cart).await?;
            (cart, RecoveryOutcome::Opened)
        } else if subjects.is_empty() {
            let is_there = |other: &Cart| other.group == cart.group && other.currency == cart.currency;
            let target = carts.into_iter().find(|other| other.shopper == shopper.id && is_there(other));
            bring(&mut work, cart, target, shopper, strategy).await?
        } else if shopper.is_anonymous() {
            (cart, RecoveryOutcome::Shown)
        } else {
            let text = "the cart is another subject's than the session's";
            return Err(Refusal::new(Reason::CartRecoverySubjectDiffers, text).into());
        };
        let data = json!({
            "shopper_id": owner.to_string(),
            "by_shopper_id": shopper.id.to_string(),
            "session_id": shopper.session_id().map(|id| id.to_string()),
            "outcome": outcome.as_str_name(),
        });
        work.tell("cart.recovery_redeemed", id.to_string(), data);
        let kept = pb::Cart {
            cart_id: cart.id.to_string(),
            shopper_id: cart.shopper.to_string(),
            ..pb::Cart::default()
        };
        work.answer(pb::RedeemCartRecoveryResponse { cart: Some(kept), outcome: outcome.into() })
            .await?;
        Ok(pb::RedeemCartRecoveryResponse {
            cart: Some(cart_to_proto(&cart, moment)),
            outcome: outcome.into(),
        })
    }

    /// The shopper opened their own cart, which is a change of theirs.
    async fn come_back(&self, work: &mut Mutation, cart: &mut Cart) -> Result<(), Failure> {
        cart.updated_at = work.now;
        cart.version += 1;
        if !store::cart::update(&mut work.tx, &work.actor.tenant, cart).await? {
            return Err(overtaken());
        }
        abandonment::recover(&mut work.tx, &work.actor, cart).await?;
        Ok(())
    }

    /// The answer given before, with the cart as it is now.
    async fn repeat_recovery(
        &self,
        caller: &Caller,
        shopper: &Shopper,
        before: pb::RedeemCartRecoveryResponse,
    ) -> Result<pb::RedeemCartRecoveryResponse, Failure> {
        let kept = before.cart.unwrap_or_default();
        let (owner, id) = (parse("shopper_id", &kept.shopper_id)?, parse("cart_id", &kept.cart_id)?);
        let moment = Moment::of(shopper, None, self.clock.now());
        let mut db = self.db.connection().await?;
        let cart = store::cart::find(&mut db, &caller.tenant, owner, id)
            .await?
            .ok_or_else(no_cart)?;
        Ok(pb::RedeemCartRecoveryResponse {
            cart: Some(cart_to_proto(&cart, &moment)),
            outcome: before.outcome,
        })
    }
}

/// Brings the cart of a shopper whom no subject has to the session's shopper, as a login does. A checkout under way is not
/// taken to another device.
async fn bring(
    work: &mut Mutation,
    mut cart: Cart,
    target: Option<Cart>,
    shopper: &Shopper,
    strategy: Strategy,
) -> Result<(Cart, RecoveryOutcome), Failure> {
    let tenant = work.actor.tenant.clone();
    if matches!(cart.state, State::Checkout { .. }) {
        return Err(InCheckout(cart.id).into());
    }
    if let Some(session) = shopper.session_id()
        && !store::session::stays_of(&mut work.tx, &tenant, session, shopper.id).await?
    {
        return Err(overtaken());
    }
    let (_, into, _) = merge::bring(work, &tenant, &mut cart, target, shopper.id, strategy).await?;
    let Some(into) = into else {
        return Ok((cart, RecoveryOutcome::Shown));
    };
    let brought = store::cart::find(&mut work.tx, &tenant, shopper.id, into).await?;
    Ok((brought.ok_or_else(overtaken)?, RecoveryOutcome::Opened))
}

/// The cart, in whatever state, locked.
async fn locked_cart(work: &mut Mutation, key: &Key) -> Result<Cart, Failure> {
    let missing = || no_cart().with("cart_id", key.cart);
    if !store::recovery::lock_cart(&mut work.tx, key).await? {
        return Err(missing().into());
    }
    let cart = store::cart::find(&mut work.tx, &key.tenant, key.shopper, key.cart).await?;
    Ok(cart.ok_or_else(missing)?)
}

fn require_open(cart: &Cart) -> Result<(), cart::Refused> {
    if cart.state.is_open() { Ok(()) } else { Err(cart::Refused::WrongState(cart.state.name())) }
}

fn unknown() -> Refusal {
    Refusal::new(Reason::CartRecoveryUnknown, "the token is of no recovery of a cart that is kept here")
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let reason = match refused {
            Refused::Redeemed => Reason::CartRecoveryRedeemed,
            Refused::Revoked => Reason::CartRecoveryRevoked,
            Refused::Expired => Reason::CartRecoveryExpired,
        };
        Refusal::new(reason, refused.to_string()).into()
    }
}
