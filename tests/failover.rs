//! Another database under the same name: nothing that was learnt of the one before goes on.

use std::time::Duration;

use shared::pb::common::WatchEventsRequest;
use shared::pb::release::WatchRoutesRequest;
use shared::pb::release::watch_routes_response::Message;
use shared::pb::session as pb;
use shared::pb::session::Verdict;
use tonic::Code;

use crate::harness::shop::{create_session, create_touchpoint, validate, validation, web};
use crate::harness::{
    Answer as _, Database, ENVIRONMENT, Stack, Watch, assert_refused, eventually, reason_of, system, workload,
};

#[tokio::test]
async fn caches_and_watches_end_with_the_database_they_are_of() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    let (_, token) = create_session(&caller).await;
    let mut watch = Watch::open(caller.session_events()).await;
    assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active);

    let other = Database::migrated();
    stack.database.replace_with(&other).await;
    // The clock stands still: what is cached would be fresh for good.
    let status = eventually("the end of what was cached", || async {
        let request = validation(&token, pb::Consistency::Bounded);
        let status = caller.sessions().validate_session(request).await.err()?;
        (reason_of(&status) != "STORAGE_UNAVAILABLE").then_some(status)
    });
    assert_refused(&status.await, Code::NotFound, "TOUCHPOINT_NOT_FOUND");
    let ended = watch.try_next().await.unwrap_err();
    assert_refused(&ended, Code::FailedPrecondition, "RESUME_TOKEN_EXPIRED");
    let request = WatchEventsRequest { resume_token: watch.token, ..Default::default() };
    let refused = caller.session_events().watch_events(request).await;
    refused.refused(Code::FailedPrecondition, "RESUME_TOKEN_EXPIRED");

    let mut watch = Watch::open(caller.session_events()).await;
    create_touchpoint(&caller, web()).await;
    assert_eq!(watch.next().await.r#type, "touchpoint.created", "the feed goes on");
}

#[tokio::test]
async fn session_services_are_sent_every_route_anew() {
    let stack = Stack::releases();
    let caller = stack.caller(&system("session-svc"));
    let request = WatchRoutesRequest {
        environment: ENVIRONMENT.to_owned(),
        replica_id: "00000000-0000-4000-8000-000000000001".to_owned(),
    };
    let open = async || caller.routing().watch_routes(request.clone()).await;
    let mut routes = open().await.answer();
    let first = routes.message().await.unwrap().unwrap();
    assert!(matches!(first.message, Some(Message::Snapshot(_))), "{first:?}");

    let other = Database::migrated();
    stack.database.replace_with(&other).await;
    let anew = async {
        loop {
            match routes.message().await {
                Ok(Some(next)) if matches!(next.message, Some(Message::Snapshot(_))) => return next,
                Ok(_) => {}
                // A sign of life could not be written down, as the database was away: as good an end.
                Err(_) => routes = eventually("a stream", || async { open().await.ok() }).await.into_inner(),
            }
        }
    };
    let anew = tokio::time::timeout(Duration::from_secs(15), anew)
        .await
        .expect("every route before long");
    assert_ne!(anew.table_epoch, first.table_epoch);
}
