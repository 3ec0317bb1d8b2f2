//! Elevations are good once: for many who redeem at the same time, for whoever asks again, and beside a revocation.

use futures_util::future::join_all;
use shared::issuer::Grant;
use shared::pb::session as pb;
use tonic::Code;
use uuid::Uuid;

use crate::elevation::{grant, granted, log_in, redeem, redemption, rotate, start};
use crate::harness::shop::{create_session, revoke};
use crate::harness::{Answer as _, Options, eventually, workload};

/// Those that wait have read the elevation as good when the first may go on.
#[tokio::test]
async fn of_many_that_redeem_at_once_on_two_replicas_one_succeeds() {
    const EACH: usize = 5;
    let (stack, caller) = start().await;
    let replica = stack.session_svc(&Options::default());
    let other = caller.at_session(&replica);
    let (_, token) = create_session(&caller).await;
    let elevation = granted(&caller, &token).await;
    let mut holder = stack.database.connect().await;
    sqlx::raw_sql("begin; select 1 from session.elevations for update")
        .execute(&mut holder)
        .await
        .unwrap();
    let rivals = (0..EACH).flat_map(|_| [&caller, &other]);
    let rivals = rivals.map(|rival| redeem(rival, redemption(&elevation)));
    let let_go = async {
        let mut db = stack.database.connect().await;
        // Two connections are enough for a race; who comes later meets its outcome.
        let waiting = "select count(*) > 1 from pg_stat_activity
                       where wait_event_type = 'Lock' and datname = current_database()";
        while !sqlx::query_scalar::<_, bool>(waiting).fetch_one(&mut db).await.unwrap() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        sqlx::raw_sql("commit").execute(&mut holder).await.unwrap();
    };
    let (outcomes, ()) = tokio::join!(join_all(rivals), let_go);
    let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len()), (1, 2 * EACH - 1));
    for refused in lost {
        refused.refused(Code::FailedPrecondition, "ELEVATION_REDEEMED");
    }
}

/// The redemption has seen the session live, and waits for its elevation.
#[tokio::test]
async fn a_revocation_is_not_acknowledged_while_a_redemption_goes_by_the_session() {
    let (stack, caller) = start().await;
    let (session, token) = create_session(&caller).await;
    let elevation = granted(&caller, &token).await;
    let mut holder = stack.database.connect().await;
    sqlx::raw_sql("begin; select 1 from session.elevations for update")
        .execute(&mut holder)
        .await
        .unwrap();
    let waiting = async |count: i64| {
        eventually("that they wait", || async {
            let mut db = stack.database.connect().await;
            let waiting = "select count(*) = $1 from pg_stat_activity
                           where wait_event_type = 'Lock' and datname = current_database()";
            let query = sqlx::query_scalar::<_, bool>(waiting).bind(count);
            query.fetch_one(&mut db).await.unwrap().then_some(())
        })
        .await;
    };
    let revocation = async {
        waiting(1).await;
        revoke(&caller, &session).await
    };
    let let_go = async {
        waiting(2).await;
        sqlx::raw_sql("commit").execute(&mut holder).await.unwrap();
    };
    let (redeemed, ..) = tokio::join!(redeem(&caller, redemption(&elevation)), revocation, let_go);
    redeemed.answer();
}

#[tokio::test]
async fn a_repeated_request_gets_the_same_answer_whatever_became_of_the_session() {
    let (_stack, caller) = start().await;
    let (session, token) = create_session(&caller).await;
    let token = log_in(&caller, &token, 1).await;
    let request_id = Uuid::from_u128(1).to_string();
    let ask = pb::GrantElevationRequest { request_id: request_id.clone(), ..grant(&token) };
    let answers = join_all((0..3).map(async |_| caller.sessions().grant_elevation(ask.clone()).await)).await;
    let first = caller.sessions().grant_elevation(ask.clone()).await.answer();
    for answer in answers {
        assert_eq!(answer.answer(), first);
    }
    let next = rotate(&caller, &token).await;
    let with_next = pb::GrantElevationRequest { session_token: next, ..ask.clone() };
    assert_eq!(caller.sessions().grant_elevation(with_next).await.answer(), first, "it is the session's");
    let other = pb::GrantElevationRequest { detail: "all of it".to_owned(), ..ask.clone() };
    caller
        .sessions()
        .grant_elevation(other)
        .await
        .refused(Code::AlreadyExists, "REQUEST_ID_REUSED");

    let use_up = pb::RedeemElevationRequest { request_id, ..redemption(&first.elevation_token) };
    let answers = join_all((0..3).map(|_| redeem(&caller, use_up.clone()))).await;
    let redeemed = redeem(&caller, use_up.clone()).await.answer();
    assert!(redeemed.session.as_ref().unwrap().subject.is_some());
    for answer in answers {
        assert_eq!(answer.answer(), redeemed);
    }
    let second = granted(&caller, &token).await;
    let other = pb::RedeemElevationRequest { elevation_token: second, ..use_up.clone() };
    redeem(&caller, other).await.refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
    let other_id =
        pb::RedeemElevationRequest { request_id: Uuid::from_u128(2).to_string(), ..use_up.clone() };
    redeem(&caller, other_id)
        .await
        .refused(Code::FailedPrecondition, "ELEVATION_REDEEMED");
    revoke(&caller, &session).await;
    assert_eq!(redeem(&caller, use_up).await.answer(), redeemed);
    assert_eq!(caller.sessions().grant_elevation(ask).await.answer(), first);
}

#[tokio::test]
async fn a_repetition_is_for_callers_of_the_touchpoint_only() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let elevation = granted(&caller, &token).await;
    let ask =
        pb::RedeemElevationRequest { request_id: Uuid::from_u128(1).to_string(), ..redemption(&elevation) };
    redeem(&caller, ask.clone()).await.answer();
    let limited = Grant { touchpoints: Some(vec!["pos".to_owned()]), ..workload("storefront") };
    redeem(&stack.caller(&limited), ask)
        .await
        .refused(Code::PermissionDenied, "CALLER_TOUCHPOINT_REFUSED");
}
