//! Wishlists, as their owners change and read them.

use serde_json::{Value, json};
use shared::id::{ShopperId, TenantId, WishlistId};
use shared::mutation::Begun;
use shared::parse::{at_most, etag, known, known_or_default, line, parse, within};
use shared::pb::common::Money;
use shared::pb::session as pb;
use shared::status::{Failure, Reason, Refusal};
use shared::time::Time;
use tonic::Request;

use super::change::{Change, Reading};
use crate::domain::cart::{QUANTITY_MAX, UNIT_PRICE_MAX};
use crate::domain::wishlist::{Item, ItemChange, Refused, Title, Visibility, WISHLISTS_MAX, Wishlist};
use crate::rpc::free::{free_line, free_text};
use crate::rpc::{App, overtaken};
use crate::store;

const NAME_MAX: usize = 100;
const NOTE_MAX: usize = 500;
/// More than there are kinds; each counts once.
const NOTIFICATIONS_MAX: usize = 16;

impl App {
    pub(super) async fn create_wishlist(
        &self,
        request: Request<pb::CreateWishlistRequest>,
    ) -> Result<pb::CreateWishlistResponse, Failure> {
        let (change, message) = self
            .change(request, "CreateWishlist", |m| &mut m.owner, |m| &mut m.request_id)
            .await?;
        let pb::CreateWishlistRequest { name, hide_guests, owner: _, request_id: _ } = message;
        let name = free_line("name", name, 1, NAME_MAX)?;
        let whose = change.whose();
        let mut work = match self.open::<pb::CreateWishlistResponse>(change).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => {
                let id = before.answer.wishlist.unwrap_or_default().wishlist_id;
                let wishlist = self.wishlist(&whose.tenant, whose.id, parse("wishlist_id", &id)?).await?;
                return Ok(pb::CreateWishlistResponse { wishlist: Some((&wishlist).into()) });
            }
        };
        if store::wishlist::count(&mut work.tx, &whose.tenant, whose.id).await? >= WISHLISTS_MAX {
            return Err(Refused::Limit { limit: "wishlists", max: WISHLISTS_MAX }.into());
        }
        let list = Wishlist {
            id: WishlistId::new(work.now, self.entropy.bytes()),
            shopper: whose.id,
            title: Title { name, hides_guests: hide_guests, newer: vec![] },
            visibility: Visibility::Private,
            items: vec![],
            newer: vec![],
            created_at: work.now,
            updated_at: work.now,
            version: 1,
        };
        store::wishlist::insert(&mut work.tx, &whose.tenant, &list).await?;
        work.tell("wishlist.created", list.id.to_string(), whose.told(json!({})));
        // Records of requests hold nothing personal: what a repetition is answered is read then.
        let name = pb::Wishlist { wishlist_id: list.id.to_string(), ..pb::Wishlist::default() };
        work.answer(pb::CreateWishlistResponse { wishlist: Some(name) }).await?;
        Ok(pb::CreateWishlistResponse { wishlist: Some((&list).into()) })
    }

    pub(super) async fn get_wishlist(
        &self,
        request: Request<pb::GetWishlistRequest>,
    ) -> Result<pb::GetWishlistResponse, Failure> {
        let Reading { tenant, shopper, message, .. } = self.reading(request, |m| &mut m.owner).await?;
        let wishlist = self
            .wishlist(&tenant, shopper.id, parse("wishlist_id", &message.wishlist_id)?)
            .await?;
        Ok(pb::GetWishlistResponse { wishlist: Some((&wishlist).into()) })
    }

    pub(super) async fn list_wishlists(
        &self,
        request: Request<pb::ListWishlistsRequest>,
    ) -> Result<pb::ListWishlistsResponse, Failure> {
        let Reading { tenant, shopper, .. } = self.reading(request, |m| &mut m.owner).await?;
        let lists =
            store::wishlist::summarise(&mut *self.db.connection().await?, &tenant, shopper.id).await?;
        Ok(pb::ListWishlistsResponse { wishlists: lists.iter().map(Into::into).collect() })
    }

    pub(super) async fn update_wishlist(
        &self,
        request: Request<pb::UpdateWishlistRequest>,
    ) -> Result<pb::UpdateWishlistResponse, Failure> {
        let (change, message) = self
            .change(request, "UpdateWishlist", |m| &mut m.owner, |m| &mut m.request_id)
            .await?;
        let pb::UpdateWishlistRequest { wishlist_id, name, hide_guests, etag: seen, owner: _, request_id: _ } =
            message;
        let name = name.map(|name| free_line("name", name, 1, NAME_MAX)).transpose()?;
        let decide = |list: &mut Wishlist, now| {
            etag(&seen, list.version)?;
            list.title.name = name.unwrap_or_else(|| std::mem::take(&mut list.title.name));
            list.title.hides_guests = hide_guests.unwrap_or(list.title.hides_guests);
            list.updated_at = now;
            Ok(json!({}))
        };
        let wishlist = self.change_wishlist(change, &wishlist_id, "wishlist.updated", decide).await?;
        Ok(pb::UpdateWishlistResponse { wishlist: Some((&wishlist).into()) })
    }

    pub(super) async fn add_wishlist_item(
        &self,
        request: Request<pb::AddWishlistItemRequest>,
    ) -> Result<pb::AddWishlistItemResponse, Failure> {
        let (change, message) = self
            .change(request, "AddWishlistItem", |m| &mut m.owner, |m| &mut m.request_id)
            .await?;
        let wishlist_id = message.wishlist_id.clone();
        let item = parse_item(message, self.clock.now())?;
        let decide = |list: &mut Wishlist, now| {
            let data = json!({"sku": item.sku});
            list.add(item, now)?;
            Ok(data)
        };
        let wishlist = self
            .change_wishlist(change, &wishlist_id, "wishlist.item_added", decide)
            .await?;
        Ok(pb::AddWishlistItemResponse { wishlist: Some((&wishlist).into()) })
    }

    pub(super) async fn update_wishlist_item(
        &self,
        request: Request<pb::UpdateWishlistItemRequest>,
    ) -> Result<pb::UpdateWishlistItemResponse, Failure> {
        let (change, message) = self
            .change(request, "UpdateWishlistItem", |m| &mut m.owner, |m| &mut m.request_id)
            .await?;
        let pb::UpdateWishlistItemRequest {
            wishlist_id,
            sku,
            desired_quantity,
            priority,
            note,
            notify_on,
            etag: seen,
            owner: _,
            request_id: _,
        } = message;
        let sku = line("sku", sku, 1, 64)?;
        let quantity = |quantity| within("desired_quantity", quantity, 1, QUANTITY_MAX);
        let item = ItemChange {
            desired_quantity: desired_quantity.map(quantity).transpose()?,
            priority: priority.map(parse_priority).transpose()?,
            note: note.map(|note| free_text("note", note, NOTE_MAX)).transpose()?,
            notify_on: notify_on
                .map(|all| parse_notifications("notify_on.values", all.values))
                .transpose()?,
        };
        let decide = |list: &mut Wishlist, now| {
            etag(&seen, list.version)?;
            list.change(&sku, item, now)?;
            Ok(json!({"sku": sku}))
        };
        let wishlist = self
            .change_wishlist(change, &wishlist_id, "wishlist.item_updated", decide)
            .await?;
        Ok(pb::UpdateWishlistItemResponse { wishlist: Some((&wishlist).into()) })
    }

    pub(super) async fn remove_wishlist_item(
        &self,
        request: Request<pb::RemoveWishlistItemRequest>,
    ) -> Result<pb::RemoveWishlistItemResponse, Failure> {
        let (change, message) = self
            .change(request, "RemoveWishlistItem", |m| &mut m.owner, |m| &mut m.request_id)
            .await?;
        let pb::RemoveWishlistItemRequest { wishlist_id, sku, owner: _, request_id: _ } = message;
        let sku = line("sku", sku, 1, 64)?;
        let decide = |list: &mut Wishlist, now| {
            list.remove(&sku, now)?;
            Ok(json!({"sku": sku}))
        };
        let wishlist = self
            .change_wishlist(change, &wishlist_id, "wishlist.item_removed", decide)
            .await?;
        Ok(pb::RemoveWishlistItemResponse { wishlist: Some((&wishlist).into()) })
    }

    pub(super) async fn delete_wishlist(
        &self,
        request: Request<pb::DeleteWishlistRequest>,
    ) -> Result<pb::DeleteWishlistResponse, Failure> {
        let (change, message) = self
            .change(request, "DeleteWishlist", |m| &mut m.owner, |m| &mut m.request_id)
            .await?;
        let pb::DeleteWishlistRequest { wishlist_id, etag: seen, owner: _, request_id: _ } = message;
        let (id, whose) = (parse("wishlist_id", &wishlist_id)?, change.whose());
        let mut work = match self.open::<pb::DeleteWishlistResponse>(change).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let list = store::wishlist::find(&mut work.tx, &whose.tenant, whose.id, id).await?;
        let list = list.ok_or_else(|| no_wishlist().with("wishlist_id", id))?;
        etag(&seen, list.version)?;
        if !store::wishlist::delete(&mut work.tx, &whose.tenant, &list).await? {
            return Err(overtaken());
        }
        work.tell("wishlist.deleted", id.to_string(), whose.told(json!({})));
        work.answer(pb::DeleteWishlistResponse {}).await
    }

    /// Makes one change of a list, once; answers the list after it.
    pub(super) async fn change_wishlist(
        &self,
        change: Change,
        id: &str,
        kind: &'static str,
        decide: impl FnOnce(&mut Wishlist, Time) -> Result<Value, Failure> + Send,
    ) -> Result<Wishlist, Failure> {
        let (id, whose) = (parse("wishlist_id", id)?, change.whose());
        let Begun::Fresh(mut work) = self.open::<()>(change).await? else {
            return self.wishlist(&whose.tenant, whose.id, id).await;
        };
        let list = store::wishlist::find(&mut work.tx, &whose.tenant, whose.id, id).await?;
        let mut list = list.ok_or_else(|| no_wishlist().with("wishlist_id", id))?;
        let data = decide(&mut list, work.now)?;
        list.version += 1;
        if !store::wishlist::update(&mut work.tx, &whose.tenant, &list).await? {
            return Err(overtaken());
        }
        work.tell(kind, id.to_string(), whose.told(data));
        work.answer(()).await?;
        Ok(list)
    }

    async fn wishlist(
        &self,
        tenant: &TenantId,
        shopper: ShopperId,
        id: WishlistId,
    ) -> Result<Wishlist, Failure> {
        let list = store::wishlist::find(&mut *self.db.connection().await?, tenant, shopper, id).await?;
        Ok(list.ok_or_else(|| no_wishlist().with("wishlist_id", id))?)
    }
}

fn parse_item(message: pb::AddWishlistItemRequest, now: Time) -> Result<Item, Refusal> {
    let pb::AddWishlistItemRequest {
        sku,
        desired_quantity,
        priority,
        note,
        price,
        notify_on,
        owner: _,
        wishlist_id: _,
        request_id: _,
    } = message;
    let price = price.map(|Money { currency_code, minor_units }| {
        let currency = parse("price.currency_code", &currency_code)?;
        Ok::<_, Refusal>((currency, within("price.minor_units", minor_units, 0, UNIT_PRICE_MAX)?))
    });
    let note = free_text("note", note, NOTE_MAX)?;
    Ok(Item {
        sku: line("sku", sku, 1, 64)?,
        desired_quantity: within("desired_quantity", desired_quantity, 0, QUANTITY_MAX)?.max(1),
        priority: parse_priority(priority)?,
        noted_at: (!note.is_empty()).then_some(now),
        note,
        price: price.transpose()?,
        added_at: now,
        notify_on: parse_notifications("notify_on", notify_on)?,
        guests: vec![],
        newer: vec![],
    })
}

fn parse_priority(number: i32) -> Result<i32, Refusal> {
    let priority: pb::WishlistPriority = known_or_default("priority", number)?;
    let is_given = priority != pb::WishlistPriority::Unspecified;
    Ok(if is_given { number } else { pb::WishlistPriority::Normal.into() })
}

fn parse_notifications(field: &str, mut numbers: Vec<i32>) -> Result<Vec<i32>, Refusal> {
    at_most(field, &numbers, NOTIFICATIONS_MAX)?;
    for number in &numbers {
        known::<pb::WishlistNotification>(field, *number)?;
    }
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

/// No such list, or none that this name shows.
pub(super) fn no_wishlist() -> Refusal {
    Refusal::new(Reason::WishlistNotFound, "there is no such wishlist")
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused {
            Refused::NoSuchItem => Refusal::new(Reason::WishlistItemNotFound, text),
            Refused::Taken { open } => {
                Refusal::new(Reason::WishlistItemTaken, text).with("open_quantity", open)
            }
            Refused::Limit { limit, max } => {
                Refusal::new(Reason::WishlistLimit, text).with("limit", limit).with("max", max)
            }
        }
        .into()
    }
}
