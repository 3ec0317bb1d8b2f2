//! `UndoCartMerge`. The subject's cart is locked first, then the one that was merged, which no login looks at any more.

use serde_json::json;
use shared::auth::Caller;
use shared::id::{CartId, ShopperId};
use shared::mutation::{Begun, Call, Mutation};
use shared::parse::parse;
use shared::pb::session as pb;
use shared::replay::Replayed;
use shared::status::{Failure, Reason, Refusal};
use tonic::Request;

use super::convert::cart_to_proto;
use super::{Moment, no_cart};
use crate::domain::cart::{Cart, State};
use crate::domain::merge::{Final, undo};
use crate::rpc::{App, abandonment, overtaken};
use crate::store;
use crate::store::cart::Key;

impl App {
    pub(super) async fn undo_cart_merge(
        &self,
        mut request: Request<pb::UndoCartMergeRequest>,
    ) -> Result<pb::UndoCartMergeResponse, Failure> {
        let caller = Caller::of(&request)?;
        let (tenant, now) = (&caller.tenant, self.clock.now());
        let source_shopper = parse("source_shopper_id", &request.get_ref().source_shopper_id)?;
        let source_id: CartId = parse("source_cart_id", &request.get_ref().source_cart_id)?;
        let owner = request.get_mut().owner.take();
        let shopper = self.shopper(&caller, owner, now).await?;
        let is_live = self.require_live_shopper(tenant, &shopper, now);
        // A repetition is answered also where the session has ended, but not with what a login gave to a subject since.
        let visit = match is_live {
            Err(refused) if shopper.has_superseded_token() => return Err(refused),
            Err(_) => None,
            Ok(visit) => visit,
        };
        let moment = Moment::of(&shopper, visit.as_ref(), now);
        // What a repetition must equal names the shopper, and holds no credential.
        let named = pb::ShopperRef { shopper_id: shopper.id.to_string(), ..Default::default() };
        let owner = pb::shopper_selector::Owner::Shopper(named);
        request.get_mut().owner = Some(pb::ShopperSelector { owner: Some(owner) });
        let (call, _) = Call::of(request, "UndoCartMerge", |message| &mut message.request_id)?;
        let (source, target, left_out) = match self.begin::<pb::UndoCartMergeResponse>(call).await? {
            Begun::Fresh(work) => {
                self.require_live_shopper(tenant, &shopper, work.now)?;
                take_back(work, (source_shopper, source_id), shopper.id, self.entropy.bytes()).await?
            }
            Begun::Replayed(Replayed { answer, .. }) => {
                let mut db = self.db.connection().await?;
                let target_id = parse("target_cart", &answer.target_cart.unwrap_or_default().cart_id)?;
                let source = store::cart::find(&mut db, tenant, source_shopper, source_id).await?;
                let target = store::cart::find(&mut db, tenant, shopper.id, target_id).await?;
                let (source, target) = source.zip(target).ok_or_else(no_cart)?;
                (source, target, answer.left_out_quantity)
            }
        };
        Ok(pb::UndoCartMergeResponse {
            source_cart: Some(cart_to_proto(&source, &moment)),
            target_cart: Some(cart_to_proto(&target, &moment)),
            left_out_quantity: left_out,
        })
    }
}

/// Takes back what the merge of this cart brought to this shopper; answers both carts, and how many units found no room. The
/// shopper who had got it under its id goes on with a cart of a new one, made of `random`.
async fn take_back(
    mut work: Box<Mutation>,
    (source_shopper, source_id): (ShopperId, CartId),
    shopper: ShopperId,
    random: [u8; 10],
) -> Result<(Cart, Cart, i64), Failure> {
    let tenant = work.actor.tenant.clone();
    let source = store::cart::find(&mut work.tx, &tenant, source_shopper, source_id).await?;
    let Some(Cart { state: State::Merged { into, .. }, .. }) = source else { return Err(no_cart().into()) };
    // The one that it went into is not found where it is another shopper's.
    let target = store::cart::lock(&mut work.tx, &tenant, shopper, into)
        .await?
        .ok_or_else(no_cart)?;
    let source = store::cart::lock(&mut work.tx, &tenant, source_shopper, source_id).await?;
    let (mut target, mut source) = (target, source.ok_or_else(no_cart)?);
    let left_out = undo(&mut target, &mut source, work.now)?;
    (source.version, target.version) = (source.version + 1, target.version + 1);
    if !store::cart::update(&mut work.tx, &tenant, &target).await? {
        return Err(overtaken());
    }
    let key = |shopper, cart| Key { tenant: tenant.clone(), shopper, cart };
    let (from, into) = (key(source_shopper, source_id), key(shopper, target.id));
    store::abandonment::take_back_contact(&mut work.tx, &from, &into).await?;
    if target.id == source.id {
        target.id = CartId::new(work.now, random);
        store::cart::rename(&mut work.tx, &into, target.id).await?;
    }
    if !store::cart::reopen(&mut work.tx, &tenant, &source).await? {
        let text = "the anonymous shopper has another open cart by now";
        return Err(Refusal::new(Reason::CartMergeFinal, text)
            .with("problem", "SHOPPER_HAS_CART")
            .into());
    }
    abandonment::recover(&mut work.tx, &work.actor, &mut target).await?;
    let data = json!({"shopper_id": target.shopper.to_string(), "from_cart_id": source.id.to_string()});
    work.tell("cart.lines_unmerged", target.id.to_string(), data);
    let data = json!({
        "shopper_id": source.shopper.to_string(),
        "from_shopper_id": target.shopper.to_string(),
        "from_cart_id": target.id.to_string(),
        "left_out_quantity": left_out,
    });
    work.tell("cart.unmerged", source.id.to_string(), data);
    // Records of requests hold no personal data: which cart, and no more.
    let target_cart = Some(pb::Cart { cart_id: target.id.to_string(), ..pb::Cart::default() });
    let kept = pb::UndoCartMergeResponse { source_cart: None, target_cart, left_out_quantity: left_out };
    work.answer(kept).await?;
    Ok((source, target, left_out))
}

impl From<Final> for Failure {
    fn from(is_final: Final) -> Self {
        let text = is_final.to_string();
        let problem = match is_final {
            Final::State(refused) => return refused.into(),
            Final::WindowOver => "WINDOW_OVER",
            Final::NotRecorded => "NOT_RECORDED",
        };
        Refusal::new(Reason::CartMergeFinal, text).with("problem", problem).into()
    }
}
