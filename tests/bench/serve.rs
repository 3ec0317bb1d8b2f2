//! The servers that are measured, each a process of this binary: session-svc and release-svc as users run them, and beside it the same rpc
//! behind the same layers that does nothing, or asks PostgreSQL once a call.

use std::path::PathBuf;
use std::process::ExitCode;

use prost::Message;
use shared::auth::Caller;
use shared::config::{Problems, ServiceArgs, ServiceConfig};
use shared::db::Db;
use shared::pb::session as pb;
use shared::pb::session::cart_service_server::{CartService, CartServiceServer};
use shared::pb::session::session_service_server::{SessionService, SessionServiceServer};
use shared::serve::{self, Lifecycle, MESSAGE_MAX_BYTES, ServeError, Served};
use shared::time::{Clock, Time, to_proto};
use tonic::codec::CompressionEncoding::Gzip;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use session_svc::domain::token::{SessionToken, TokenHash};

/// A server of this binary.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// session-svc
    #[command(name = "serve-session", hide = true)]
    Session(session_svc::Args),
    /// release-svc
    #[command(name = "serve-release", hide = true)]
    Release(release_svc::Args),
    /// `ValidateSession` answers the same every time
    #[command(name = "serve-constant", hide = true)]
    Constant(Args),
    /// `ValidateSession` reads one row every time
    #[command(name = "serve-one-query", hide = true)]
    OneQuery(Args),
    /// `SetCartLineQuantity` answers the same every time
    #[command(name = "serve-constant-cart", hide = true)]
    ConstantCart(Args),
}

/// Settings of the servers to compare with.
#[derive(Clone, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    service: ServiceArgs,
    /// File with an encoded answer of session-svc's, to give as it is or with what was read
    #[arg(long)]
    answer: PathBuf,
}

/// Serves until told to stop.
pub(crate) async fn run(command: Command) -> ExitCode {
    match command {
        Command::Session(args) => session_svc::run(args).await,
        Command::Release(args) => release_svc::run(args).await,
        Command::Constant(args) => compared(args, |_| None).await,
        Command::OneQuery(args) => compared(args, |db| Some(db.clone())).await,
        Command::ConstantCart(args) => {
            with_answer(args, &["tandem.session.v1.CartService"], |answer, _, _| {
                let service =
                    CartServiceServer::new(OneCart(answer)).max_decoding_message_size(MESSAGE_MAX_BYTES);
                Routes::new(service.accept_compressed(Gzip).send_compressed(Gzip))
            })
            .await
        }
    }
}

/// Serves `ValidateSession`; it reads if `reading` gives it where.
async fn compared(args: Args, reading: fn(&Db) -> Option<Db>) -> ExitCode {
    with_answer(args, &["tandem.session.v1.SessionService"], move |answer, db, clock| {
        let compared = Compared { answer, db: reading(db), clock: clock.clone() };
        let service = SessionServiceServer::new(compared).max_decoding_message_size(MESSAGE_MAX_BYTES);
        Routes::new(service.accept_compressed(Gzip).send_compressed(Gzip))
    })
    .await
}

/// Serves the one service that is made of the answer in the file.
async fn with_answer<A: Message + Default>(
    args: Args,
    services: &'static [&'static str],
    make: impl Fn(A, &Db, &Clock) -> Routes,
) -> ExitCode {
    let mut problems = Problems::default();
    let config = args.service.clone().parse("127.0.0.1:0", None, &mut problems);
    let answer = std::fs::read(&args.answer)
        .map_err(|error| problems.add("--answer", error))
        .ok();
    let answer =
        answer.and_then(|bytes| A::decode(&*bytes).map_err(|error| problems.add("--answer", error)).ok());
    let config = problems.check(config.zip(answer));
    serve::run("session-svc", &args.service, config, async |(config, answer), lifecycle: &Lifecycle| {
        let (db, clock) = (
            Db::new(config.database_url.expose(), config.database_connections, "compared")?,
            Clock::system(),
        );
        let routes = make(answer, &db, &clock);
        serve_compared(config, services, routes, db, clock, lifecycle).await
    })
    .await
}

async fn serve_compared(
    config: ServiceConfig,
    services: &'static [&'static str],
    routes: Routes,
    db: Db,
    clock: Clock,
    lifecycle: &Lifecycle,
) -> Result<(), ServeError> {
    let listener = serve::listen(config.listen, config.address_file.as_deref()).await?;
    let served = Served {
        services,
        routes,
        authenticator: config.authenticator.into(),
        keys: config.keys.into(),
        tls: config.tls,
        clock,
        db,
        reflection: config.reflection,
        limits: config.limits,
        drain: config.drain,
    };
    serve::serve(served, listener, lifecycle).await
}

/// Answers `ValidateSession`, and nothing else.
struct Compared {
    answer: pb::ValidateSessionResponse,
    /// Where to read, if it reads.
    db: Option<Db>,
    clock: Clock,
}

/// What a validation reads of a session's row, in the order of the columns below.
type Row =
    (Uuid, String, Vec<u8>, Option<Uuid>, Option<String>, Time, Time, Time, Time, Vec<u8>, Option<Time>);

const SELECT: &str =
    "select session_id, touchpoint_id, token_hash, shopper_id, subject_sub, created_at, last_seen_at,
        absolute_deadline, visit_started_at, pins, revoked_at
    from session.sessions
    where tenant_id = $1 and session_id = $2";

impl Compared {
    /// One plain query by primary key, on a connection of the pool, with no cache, no batch and no write.
    async fn read(
        &self,
        db: &Db,
        request: Request<pb::ValidateSessionRequest>,
    ) -> Result<pb::ValidateSessionResponse, Status> {
        let failed = |error: sqlx::Error| Status::internal(error.to_string());
        let caller = Caller::of(&request).map_err(|_| Status::internal("no caller"))?;
        let token = SessionToken::parse(&request.into_inner().session_token)
            .map_err(|error| Status::internal(error.to_string()))?;
        let mut connection = db.connection().await.map_err(failed)?;
        let row: Option<Row> = sqlx::query_as(SELECT)
            .bind(caller.tenant.as_str())
            .bind(token.session_id().uuid())
            .fetch_optional(&mut *connection)
            .await
            .map_err(failed)?;
        drop(connection);
        let (id, touchpoint, hash, shopper, _, created, seen, deadline, visit, _, revoked) =
            row.ok_or_else(|| Status::internal("no such session"))?;
        let hash = <[u8; 32]>::try_from(hash).map(TokenHash::from_stored);
        if revoked.is_some() || hash.ok() != Some(token.hash()) {
            return Err(Status::internal("a session that is not the token's"));
        }
        let mut answer = self.answer.clone();
        answer.fresh_as_of = Some(to_proto(self.clock.now()));
        if let Some(session) = &mut answer.session {
            session.session_id = shared::id::SessionId::from_uuid(id).to_string();
            session.touchpoint = touchpoint;
            session.shopper_id = shopper
                .map(|shopper| shared::id::ShopperId::from_uuid(shopper).to_string())
                .unwrap_or_default();
            session.create_time = Some(to_proto(created));
            session.last_seen_time = Some(to_proto(seen));
            session.absolute_deadline = Some(to_proto(deadline));
            session.visit_start_time = Some(to_proto(visit));
        }
        Ok(answer)
    }
}

/// A service with one rpc, and the rpcs that are not compared. The whole of it, as the attribute has to see every method.
macro_rules! compare {
    (
        impl $service:ident for $server:ident;
        async fn $compared:ident(&$self:ident, $sent:ident: $asked:ident) -> $answered:ident $body:block
        $($rpc:ident($request:ident) -> $answer:ident;)+
    ) => {
        #[tonic::async_trait]
        impl $service for $server {
            async fn $compared(
                &$self,
                $sent: Request<pb::$asked>,
            ) -> Result<Response<pb::$answered>, Status> $body

            $(async fn $rpc(&self, _: Request<pb::$request>) -> Result<Response<pb::$answer>, Status> {
                Err(Status::unimplemented("only one rpc is compared"))
            })+
        }
    };
}

compare! {
    impl SessionService for Compared;
    async fn validate_session(&self, request: ValidateSessionRequest) -> ValidateSessionResponse {
        Ok(Response::new(match &self.db {
            None => self.answer.clone(),
            Some(db) => self.read(db, request).await?,
        }))
    }
    create_session(CreateSessionRequest) -> CreateSessionResponse;
    get_session(GetSessionRequest) -> GetSessionResponse;
    list_sessions(ListSessionsRequest) -> ListSessionsResponse;
    revoke_session(RevokeSessionRequest) -> RevokeSessionResponse;
    authenticate_session(AuthenticateSessionRequest) -> AuthenticateSessionResponse;
    rotate_session(RotateSessionRequest) -> RotateSessionResponse;
    revoke_subject_sessions(RevokeSubjectSessionsRequest) -> RevokeSubjectSessionsResponse;
    revoke_touchpoint_sessions(RevokeTouchpointSessionsRequest) -> RevokeTouchpointSessionsResponse;
    revoke_tenant_sessions(RevokeTenantSessionsRequest) -> RevokeTenantSessionsResponse;
    disable_subject(DisableSubjectRequest) -> DisableSubjectResponse;
    enable_subject(EnableSubjectRequest) -> EnableSubjectResponse;
    grant_elevation(GrantElevationRequest) -> GrantElevationResponse;
    redeem_elevation(RedeemElevationRequest) -> RedeemElevationResponse;
    update_session_attributes(UpdateSessionAttributesRequest) -> UpdateSessionAttributesResponse;
    issue_assertion(IssueAssertionRequest) -> IssueAssertionResponse;
    get_assertion_keys(GetAssertionKeysRequest) -> GetAssertionKeysResponse;
    report_leaked_token(ReportLeakedTokenRequest) -> ReportLeakedTokenResponse;
}

/// Answers `SetCartLineQuantity`, and nothing else.
struct OneCart(pb::SetCartLineQuantityResponse);

compare! {
    impl CartService for OneCart;
    async fn set_cart_line_quantity(&self, _request: SetCartLineQuantityRequest) -> SetCartLineQuantityResponse {
        Ok(Response::new(self.0.clone()))
    }
    get_cart(GetCartRequest) -> GetCartResponse;
    add_cart_line(AddCartLineRequest) -> AddCartLineResponse;
    move_cart_line(MoveCartLineRequest) -> MoveCartLineResponse;
    refresh_cart_prices(RefreshCartPricesRequest) -> RefreshCartPricesResponse;
    remove_cart_line(RemoveCartLineRequest) -> RemoveCartLineResponse;
    pin_pricing_context(PinPricingContextRequest) -> PinPricingContextResponse;
    apply_cart_code(ApplyCartCodeRequest) -> ApplyCartCodeResponse;
    remove_cart_code(RemoveCartCodeRequest) -> RemoveCartCodeResponse;
    begin_checkout(BeginCheckoutRequest) -> BeginCheckoutResponse;
    complete_checkout(CompleteCheckoutRequest) -> CompleteCheckoutResponse;
    fail_checkout(FailCheckoutRequest) -> FailCheckoutResponse;
    discard_cart(DiscardCartRequest) -> DiscardCartResponse;
    undo_cart_merge(UndoCartMergeRequest) -> UndoCartMergeResponse;
    set_cart_contact(SetCartContactRequest) -> SetCartContactResponse;
    list_abandoned_carts(ListAbandonedCartsRequest) -> ListAbandonedCartsResponse;
    create_cart_recovery(CreateCartRecoveryRequest) -> CreateCartRecoveryResponse;
    redeem_cart_recovery(RedeemCartRecoveryRequest) -> RedeemCartRecoveryResponse;
    revoke_cart_recoveries(RevokeCartRecoveriesRequest) -> RevokeCartRecoveriesResponse;
}
