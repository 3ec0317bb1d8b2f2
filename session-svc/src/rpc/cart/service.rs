//! `CartService`: which method answers which rpc.

use shared::pb::session as pb;
use shared::pb::session::cart_service_server::CartService;
use tonic::{Request, Response, Status};

use crate::rpc::App;

#[tonic::async_trait]
impl CartService for App {
    async fn get_cart(
        &self,
        request: Request<pb::GetCartRequest>,
    ) -> Result<Response<pb::GetCartResponse>, Status> {
        Ok(Response::new(self.get_cart(request).await?))
    }

    async fn add_cart_line(
        &self,
        request: Request<pb::AddCartLineRequest>,
    ) -> Result<Response<pb::AddCartLineResponse>, Status> {
        Ok(Response::new(self.add_cart_line(request).await?))
    }

    async fn set_cart_line_quantity(
        &self,
        request: Request<pb::SetCartLineQuantityRequest>,
    ) -> Result<Response<pb::SetCartLineQuantityResponse>, Status> {
        Ok(Response::new(self.set_cart_line_quantity(request).await?))
    }

    async fn remove_cart_line(
        &self,
        request: Request<pb::RemoveCartLineRequest>,
    ) -> Result<Response<pb::RemoveCartLineResponse>, Status> {
        Ok(Response::new(self.remove_cart_line(request).await?))
    }

    async fn move_cart_line(
        &self,
        request: Request<pb::MoveCartLineRequest>,
    ) -> Result<Response<pb::MoveCartLineResponse>, Status> {
        Ok(Response::new(self.move_cart_line(request).await?))
    }

    async fn refresh_cart_prices(
        &self,
        request: Request<pb::RefreshCartPricesRequest>,
    ) -> Result<Response<pb::RefreshCartPricesResponse>, Status> {
        Ok(Response::new(self.refresh_cart_prices(request).await?))
    }

    async fn pin_pricing_context(
        &self,
        request: Request<pb::PinPricingContextRequest>,
    ) -> Result<Response<pb::PinPricingContextResponse>, Status> {
        Ok(Response::new(self.pin_pricing_context(request).await?))
    }

    async fn apply_cart_code(
        &self,
        request: Request<pb::ApplyCartCodeRequest>,
    ) -> Result<Response<pb::ApplyCartCodeResponse>, Status> {
        Ok(Response::new(self.apply_cart_code(request).await?))
    }

    async fn remove_cart_code(
        &self,
        request: Request<pb::RemoveCartCodeRequest>,
    ) -> Result<Response<pb::RemoveCartCodeResponse>, Status> {
        Ok(Response::new(self.remove_cart_code(request).await?))
    }

    async fn discard_cart(
        &self,
        request: Request<pb::DiscardCartRequest>,
    ) -> Result<Response<pb::DiscardCartResponse>, Status> {
        Ok(Response::new(self.discard_cart(request).await?))
    }

    async fn begin_checkout(
        &self,
        request: Request<pb::BeginCheckoutRequest>,
    ) -> Result<Response<pb::BeginCheckoutResponse>, Status> {
        Ok(Response::new(self.begin_checkout(request).await?))
    }

    async fn complete_checkout(
        &self,
        request: Request<pb::CompleteCheckoutRequest>,
    ) -> Result<Response<pb::CompleteCheckoutResponse>, Status> {
        Ok(Response::new(self.complete_checkout(request).await?))
    }

    async fn fail_checkout(
        &self,
        request: Request<pb::FailCheckoutRequest>,
    ) -> Result<Response<pb::FailCheckoutResponse>, Status> {
        Ok(Response::new(self.fail_checkout(request).await?))
    }

    async fn undo_cart_merge(
        &self,
        request: Request<pb::UndoCartMergeRequest>,
    ) -> Result<Response<pb::UndoCartMergeResponse>, Status> {
        Ok(Response::new(self.undo_cart_merge(request).await?))
    }

    async fn set_cart_contact(
        &self,
        request: Request<pb::SetCartContactRequest>,
    ) -> Result<Response<pb::SetCartContactResponse>, Status> {
        Ok(Response::new(self.set_cart_contact(request).await?))
    }

    async fn list_abandoned_carts(
        &self,
        request: Request<pb::ListAbandonedCartsRequest>,
    ) -> Result<Response<pb::ListAbandonedCartsResponse>, Status> {
        Ok(Response::new(self.list_abandoned_carts(request).await?))
    }

    async fn create_cart_recovery(
        &self,
        request: Request<pb::CreateCartRecoveryRequest>,
    ) -> Result<Response<pb::CreateCartRecoveryResponse>, Status> {
        Ok(Response::new(self.create_cart_recovery(request).await?))
    }

    async fn redeem_cart_recovery(
        &self,
        request: Request<pb::RedeemCartRecoveryRequest>,
    ) -> Result<Response<pb::RedeemCartRecoveryResponse>, Status> {
        Ok(Response::new(self.redeem_cart_recovery(request).await?))
    }

    async fn revoke_cart_recoveries(
        &self,
        request: Request<pb::RevokeCartRecoveriesRequest>,
    ) -> Result<Response<pb::RevokeCartRecoveriesResponse>, Status> {
        Ok(Response::new(self.revoke_cart_recoveries(request).await?))
    }
}
