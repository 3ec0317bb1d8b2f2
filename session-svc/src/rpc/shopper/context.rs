//! `GetShopperContext`: all that a recommender or a page needs, of one instant.

use shared::auth::Caller;
use shared::parse::within;
use shared::pb::session as pb;
use shared::status::Failure;
use tonic::Request;

use super::change::Reading;
use super::convert::standing_to_proto;
use crate::domain::consent::Purpose;
use crate::domain::history::ENTRIES_MAX;
use crate::rpc::App;
use crate::rpc::cart::Moment;
use crate::rpc::cart::convert::cart_to_proto;
use crate::store;
use crate::store::context::Context;

const HISTORY_DEFAULT: usize = 20;

impl App {
    pub(super) async fn get_shopper_context(
        &self,
        request: Request<pb::GetShopperContextRequest>,
    ) -> Result<pb::GetShopperContextResponse, Failure> {
        Caller::of(&request)?.require_scope("cart.read")?;
        let Reading { tenant, shopper, visit, now, message } =
            self.reading(request, |m| &mut m.owner).await?;
        let history_size = match within("history_size", message.history_size, 0, 200)? {
            0 => HISTORY_DEFAULT,
            size => usize::try_from(size).unwrap_or(ENTRIES_MAX),
        };
        let group = shopper.group.as_ref();
        let mut db = self.db.connection().await?;
        let Context { carts, wishlists, preferences, history } =
            store::context::find(&mut db, &tenant, shopper.id, group).await?;
        let moment = Moment::of(&shopper, visit.as_ref(), now);
        let may_show = preferences.consents.grants(Purpose::PERSONALISATION);
        let recent = history.newest(now).take(if may_show { history_size } else { 0 });
        Ok(pb::GetShopperContextResponse {
            shopper_id: shopper.id.to_string(),
            carts: carts.iter().map(|cart| cart_to_proto(cart, &moment)).collect(),
            wishlists: wishlists.iter().map(Into::into).collect(),
            preferences: Some((&preferences).into()),
            consents: standing_to_proto(&preferences.consents),
            history: recent.map(Into::into).collect(),
        })
    }
}
