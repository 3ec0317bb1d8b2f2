//! Showing wishlists to others: who gets a token, and for how long it is good.

use serde_json::{Value, json};
use shared::id::TenantId;
use shared::mutation::Mutation;
use shared::pb::session as pb;
use shared::status::Failure;
use tonic::Request;

use super::interest::lock_shown;
use crate::domain::token::WishlistToken;
use crate::domain::wishlist::{Share, Visibility, Wishlist};
use crate::rpc::{App, overtaken};
use crate::store;
use crate::store::wishlist::Shown;

impl App {
    pub(super) async fn share_wishlist(
        &self,
        request: Request<pb::ShareWishlistRequest>,
    ) -> Result<pb::ShareWishlistResponse, Failure> {
        let (change, message) = self
            .change(request, "ShareWishlist", |m| &mut m.owner, |m| &mut m.request_id)
            .await?;
        let pb::ShareWishlistRequest { wishlist_id, is_public, owner: _, request_id: _ } = message;
        let whose = change.whose();
        let decide = |list: &mut Wishlist, now| {
            let share = match self.share_token(&whose.tenant, list) {
                Some((share, _)) => share,
                None => self.new_share(&whose.tenant, list)?,
            };
            let shown: fn(Share) -> Visibility =
                if is_public { Visibility::Public } else { Visibility::Shared };
            list.visibility = shown(share);
            list.updated_at = now;
            Ok(json!({"visibility": list.visibility.name()}))
        };
        let list = self.change_wishlist(change, &wishlist_id, "wishlist.shared", decide).await?;
        // A repetition finds none where the list is private again.
        let token = self.share_token(&whose.tenant, &list).map(|(_, token)| token.expose());
        Ok(pb::ShareWishlistResponse {
            wishlist: Some((&list).into()),
            share_token: token.unwrap_or_default(),
        })
    }

    pub(super) async fn unshare_wishlist(
        &self,
        request: Request<pb::UnshareWishlistRequest>,
    ) -> Result<pb::UnshareWishlistResponse, Failure> {
        let (change, message) = self
            .change(request, "UnshareWishlist", |m| &mut m.owner, |m| &mut m.request_id)
            .await?;
        let pb::UnshareWishlistRequest { wishlist_id, owner: _, request_id: _ } = message;
        let decide = |list: &mut Wishlist, now| {
            list.visibility = Visibility::Private;
            list.updated_at = now;
            Ok(json!({}))
        };
        let list = self.change_wishlist(change, &wishlist_id, "wishlist.unshared", decide).await?;
        Ok(pb::UnshareWishlistResponse { wishlist: Some((&list).into()) })
    }

    /// Makes the list of a share token private that was found where it should not be; false if no list has it.
    pub(in crate::rpc) async fn unshare_leaked(
        &self,
        work: &mut Mutation,
        token: &WishlistToken,
        mut data: Value,
    ) -> Result<bool, Failure> {
        let Some(mut list) = lock_shown(work, token.shopper_id(), Shown::By(token.hash())).await? else {
            return Ok(false);
        };
        list.visibility = Visibility::Private;
        list.version += 1;
        let tenant = work.actor.tenant.clone();
        if !store::wishlist::update(&mut work.tx, &tenant, &list).await? {
            return Err(overtaken());
        }
        data["shopper_id"] = list.shopper.to_string().into();
        work.tell("wishlist.unshared", list.id.to_string(), data);
        Ok(true)
    }

    /// The token of a list that is shared; none, too, where the ring has not the key any more that it was derived with.
    fn share_token(&self, tenant: &TenantId, list: &Wishlist) -> Option<(Share, WishlistToken)> {
        let share = list.visibility.share()?;
        let token = self.wishlist_token(tenant, list.shopper, list.id, &share.salt).ok()?;
        Some((share.clone(), token))
    }

    fn new_share(&self, tenant: &TenantId, list: &Wishlist) -> Result<Share, Failure> {
        let salt = self.new_salt()?;
        let hash = self.wishlist_token(tenant, list.shopper, list.id, &salt)?.hash();
        Ok(Share { hash, salt })
    }
}
