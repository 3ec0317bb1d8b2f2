//! `ShopperService`: which method answers which rpc.

use shared::pb::session as pb;
use shared::pb::session::shopper_service_server::ShopperService;
use tonic::{Request, Response, Status};

use crate::rpc::App;

#[tonic::async_trait]
impl ShopperService for App {
    async fn get_shopper_context(
        &self,
        request: Request<pb::GetShopperContextRequest>,
    ) -> Result<Response<pb::GetShopperContextResponse>, Status> {
        Ok(Response::new(self.get_shopper_context(request).await?))
    }

    async fn create_wishlist(
        &self,
        request: Request<pb::CreateWishlistRequest>,
    ) -> Result<Response<pb::CreateWishlistResponse>, Status> {
        Ok(Response::new(self.create_wishlist(request).await?))
    }

    async fn get_wishlist(
        &self,
        request: Request<pb::GetWishlistRequest>,
    ) -> Result<Response<pb::GetWishlistResponse>, Status> {
        Ok(Response::new(self.get_wishlist(request).await?))
    }

    async fn list_wishlists(
        &self,
        request: Request<pb::ListWishlistsRequest>,
    ) -> Result<Response<pb::ListWishlistsResponse>, Status> {
        Ok(Response::new(self.list_wishlists(request).await?))
    }

    async fn update_wishlist(
        &self,
        request: Request<pb::UpdateWishlistRequest>,
    ) -> Result<Response<pb::UpdateWishlistResponse>, Status> {
        Ok(Response::new(self.update_wishlist(request).await?))
    }

    async fn add_wishlist_item(
        &self,
        request: Request<pb::AddWishlistItemRequest>,
    ) -> Result<Response<pb::AddWishlistItemResponse>, Status> {
        Ok(Response::new(self.add_wishlist_item(request).await?))
    }

    async fn update_wishlist_item(
        &self,
        request: Request<pb::UpdateWishlistItemRequest>,
    ) -> Result<Response<pb::UpdateWishlistItemResponse>, Status> {
        Ok(Response::new(self.update_wishlist_item(request).await?))
    }

    async fn remove_wishlist_item(
        &self,
        request: Request<pb::RemoveWishlistItemRequest>,
    ) -> Result<Response<pb::RemoveWishlistItemResponse>, Status> {
        Ok(Response::new(self.remove_wishlist_item(request).await?))
    }

    async fn share_wishlist(
        &self,
        request: Request<pb::ShareWishlistRequest>,
    ) -> Result<Response<pb::ShareWishlistResponse>, Status> {
        Ok(Response::new(self.share_wishlist(request).await?))
    }

    async fn unshare_wishlist(
        &self,
        request: Request<pb::UnshareWishlistRequest>,
    ) -> Result<Response<pb::UnshareWishlistResponse>, Status> {
        Ok(Response::new(self.unshare_wishlist(request).await?))
    }

    async fn get_shared_wishlist(
        &self,
        request: Request<pb::GetSharedWishlistRequest>,
    ) -> Result<Response<pb::GetSharedWishlistResponse>, Status> {
        Ok(Response::new(self.get_shared_wishlist(request).await?))
    }

    async fn note_wishlist_interest(
        &self,
        request: Request<pb::NoteWishlistInterestRequest>,
    ) -> Result<Response<pb::NoteWishlistInterestResponse>, Status> {
        Ok(Response::new(self.note_wishlist_interest(request).await?))
    }

    async fn delete_wishlist(
        &self,
        request: Request<pb::DeleteWishlistRequest>,
    ) -> Result<Response<pb::DeleteWishlistResponse>, Status> {
        Ok(Response::new(self.delete_wishlist(request).await?))
    }

    async fn get_preferences(
        &self,
        request: Request<pb::GetPreferencesRequest>,
    ) -> Result<Response<pb::GetPreferencesResponse>, Status> {
        Ok(Response::new(self.get_preferences(request).await?))
    }

    async fn update_preferences(
        &self,
        request: Request<pb::UpdatePreferencesRequest>,
    ) -> Result<Response<pb::UpdatePreferencesResponse>, Status> {
        Ok(Response::new(self.update_preferences(request).await?))
    }

    async fn update_consent(
        &self,
        request: Request<pb::UpdateConsentRequest>,
    ) -> Result<Response<pb::UpdateConsentResponse>, Status> {
        Ok(Response::new(self.update_consent(request).await?))
    }

    async fn list_consent_decisions(
        &self,
        request: Request<pb::ListConsentDecisionsRequest>,
    ) -> Result<Response<pb::ListConsentDecisionsResponse>, Status> {
        Ok(Response::new(self.list_consent_decisions(request).await?))
    }

    async fn append_history(
        &self,
        request: Request<pb::AppendHistoryRequest>,
    ) -> Result<Response<pb::AppendHistoryResponse>, Status> {
        Ok(Response::new(self.append_history(request).await?))
    }

    async fn list_history(
        &self,
        request: Request<pb::ListHistoryRequest>,
    ) -> Result<Response<pb::ListHistoryResponse>, Status> {
        Ok(Response::new(self.list_history(request).await?))
    }

    async fn clear_history(
        &self,
        request: Request<pb::ClearHistoryRequest>,
    ) -> Result<Response<pb::ClearHistoryResponse>, Status> {
        Ok(Response::new(self.clear_history(request).await?))
    }
}
