//! Wishlists as guests see them, and who of the guests buys what.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use shared::auth::Caller;
use shared::id::{SessionId, ShopperId};
use shared::mutation::{Begun, Mutation};
use shared::parse::{line, parse, required, within};
use shared::pb::session as pb;
use shared::pb::session::wishlist_share;
use shared::status::{Failure, Refusal};
use tonic::Request;

use super::change::Whose;
use super::convert::shared_to_proto;
use super::wishlist::no_wishlist;
use crate::domain::cart::QUANTITY_MAX;
use crate::domain::token::WishlistToken;
use crate::domain::wishlist::{Guest, Wishlist};
use crate::rpc::free::free_line;
use crate::rpc::{App, overtaken};
use crate::store;
use crate::store::wishlist::Shown;

const NAME_MAX: usize = 80;

impl App {
    pub(super) async fn get_shared_wishlist(
        &self,
        request: Request<pb::GetSharedWishlistRequest>,
    ) -> Result<pb::GetSharedWishlistResponse, Failure> {
        let caller = Caller::of(&request)?;
        let pb::GetSharedWishlistRequest { share, guest } = request.into_inner();
        let (owner, shown) = parse_share(share.as_ref())?;
        let guest = match guest {
            None => None,
            guest => {
                let now = self.clock.now();
                let guest = self.shopper_anywhere(&caller, guest, now).await?;
                self.require_live_shopper(&caller.tenant, &guest, now)?;
                Some((guest.id, guest.session_id()))
            }
        };
        let mut db = self.db.connection().await?;
        let list = store::wishlist::find_shown(&mut db, &caller.tenant, owner, shown).await?;
        let list = list.ok_or_else(no_wishlist)?;
        Ok(pb::GetSharedWishlistResponse { wishlist: Some(shared_to_proto(&list, guest)) })
    }

    pub(super) async fn note_wishlist_interest(
        &self,
        mut request: Request<pb::NoteWishlistInterestRequest>,
    ) -> Result<pb::NoteWishlistInterestResponse, Failure> {
        let (owner, shown) = parse_share(request.get_ref().share.as_ref())?;
        // What a repetition must equal names the list, and holds no credential.
        request.get_mut().share = Some(without_secret(owner, shown));
        let (change, message) = self
            .change(request, "NoteWishlistInterest", |m| &mut m.guest, |m| &mut m.request_id)
            .await?;
        let pb::NoteWishlistInterestRequest { sku, quantity, guest_name, share: _, guest: _, request_id: _ } =
            message;
        let sku = line("sku", sku, 1, 64)?;
        let quantity = within("quantity", quantity, 0, QUANTITY_MAX)?;
        let name = free_line("guest_name", guest_name, 0, NAME_MAX)?;
        let Whose { tenant, id, session } = change.whose();
        let Begun::Fresh(mut work) = self.begin_change::<()>(change).await? else {
            let mut db = self.db.connection().await?;
            let list = store::wishlist::find_shown(&mut db, &tenant, owner, shown).await?;
            return Ok(answer(&list.ok_or_else(no_wishlist)?, id, session));
        };
        let mut list = lock_shown(&mut work, owner, shown).await?.ok_or_else(no_wishlist)?;
        let guest = Guest { shopper: id, session, quantity, name, noted_at: work.now, newer: vec![] };
        list.note_interest(&sku, guest)?;
        list.version += 1;
        if !store::wishlist::update(&mut work.tx, &tenant, &list).await? {
            return Err(overtaken());
        }
        // Not who: the owner may not want to know, and what is told of is told to many.
        let data = json!({"shopper_id": list.shopper.to_string(), "sku": sku, "quantity": quantity});
        work.tell("wishlist.interest_noted", list.id.to_string(), data);
        work.answer(()).await?;
        Ok(answer(&list, id, session))
    }
}

/// The list that is shown under this name, with its owner locked.
pub(super) async fn lock_shown(
    work: &mut Mutation,
    named: ShopperId,
    shown: Shown,
) -> Result<Option<Wishlist>, Failure> {
    let tenant = work.actor.tenant.clone();
    let Some(list) = store::wishlist::find_shown(&mut work.tx, &tenant, named, shown).await? else {
        return Ok(None);
    };
    if store::shopper::lock(&mut work.tx, &tenant, list.shopper, work.now)
        .await?
        .is_some()
    {
        // A login took the list elsewhere meanwhile.
        return Err(overtaken());
    }
    Ok(store::wishlist::find_shown(&mut work.tx, &tenant, list.shopper, shown).await?)
}

fn answer(list: &Wishlist, guest: ShopperId, session: Option<SessionId>) -> pb::NoteWishlistInterestResponse {
    pb::NoteWishlistInterestResponse { wishlist: Some(shared_to_proto(list, Some((guest, session)))) }
}

/// Whose list, and how it is named. Whatever is no token of this kind shows no list.
fn parse_share(share: Option<&pb::WishlistShare>) -> Result<(ShopperId, Shown), Refusal> {
    let share = required("share", share.and_then(|share| share.share.as_ref()))?;
    match share {
        wishlist_share::Share::ShareToken(text) => {
            let token = WishlistToken::parse(text).map_err(|_| no_wishlist())?;
            Ok((token.shopper_id(), Shown::By(token.hash())))
        }
        wishlist_share::Share::PublicWishlist(pb::PublicWishlist { shopper_id, wishlist_id }) => {
            let owner = parse("share.public_wishlist.shopper_id", shopper_id)?;
            Ok((owner, Shown::Public(parse("share.public_wishlist.wishlist_id", wishlist_id)?)))
        }
    }
}

fn without_secret(owner: ShopperId, shown: Shown) -> pb::WishlistShare {
    let name = match shown {
        Shown::By(hash) => URL_SAFE_NO_PAD.encode(hash.bytes()),
        Shown::Public(id) => id.to_string(),
    };
    let named = pb::PublicWishlist { shopper_id: owner.to_string(), wishlist_id: name };
    pb::WishlistShare { share: Some(wishlist_share::Share::PublicWishlist(named)) }
}
