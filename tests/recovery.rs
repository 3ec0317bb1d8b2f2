//! Recovery tokens: each opens one cart once and logs nobody in, and whatever is no such token opens nothing.

use futures_util::future::join_all;
use shared::issuer::Grant;
use shared::pb::session as pb;
use shared::pb::session::{CartState, LeakOutcome, MergeStrategy, RecoveryOutcome};
use tonic::{Code, Response, Status};
use uuid::Uuid;

use crate::abandonment::start;
use crate::harness::carts::{DAY, HOUR, kinds, pass, see};
use crate::harness::shop::{
    add_line, begin_checkout, create_session, create_touchpoint, get_cart, seconds, validate, web,
};
use crate::harness::trust::{authenticate, elevation, identity};
use crate::harness::{Answer as _, Caller, Watch, workload};

fn creation(cart: &pb::Cart) -> pb::CreateCartRecoveryRequest {
    pb::CreateCartRecoveryRequest {
        shopper_id: cart.shopper_id.clone(),
        cart_id: cart.cart_id.clone(),
        ..pb::CreateCartRecoveryRequest::default()
    }
}

async fn created(caller: &Caller, cart: &pb::Cart) -> String {
    caller
        .carts()
        .create_cart_recovery(creation(cart))
        .await
        .answer()
        .recovery_token
}

fn redemption(recovery: &str, session: &str) -> pb::RedeemCartRecoveryRequest {
    pb::RedeemCartRecoveryRequest {
        recovery_token: recovery.to_owned(),
        session_token: session.to_owned(),
        ..pb::RedeemCartRecoveryRequest::default()
    }
}

async fn redeem(
    caller: &Caller,
    recovery: &str,
    session: &str,
) -> Result<Response<pb::RedeemCartRecoveryResponse>, Status> {
    caller.carts().redeem_cart_recovery(redemption(recovery, session)).await
}

/// A cart that was abandoned, and the token of its session, which has timed out.
async fn abandoned(stack: &crate::harness::Stack, caller: &Caller) -> (pb::Cart, String) {
    let (_, token) = create_session(caller).await;
    let cart = add_line(caller, &token, "85123A", 2).await;
    pass(stack, HOUR).await;
    (cart, token)
}

fn skus(cart: &pb::Cart) -> Vec<(&str, i32)> {
    cart.lines.iter().map(|line| (line.sku.as_str(), line.quantity)).collect()
}

#[tokio::test]
async fn another_device_gets_an_anonymous_cart_and_is_not_logged_in() {
    let (stack, caller) = start().await;
    let (cart, _) = abandoned(&stack, &caller).await;
    let recovery = created(&caller, &cart).await;
    assert!(recovery.starts_with("tdr_") && recovery.len() == 75);
    let (_, device) = create_session(&caller).await;
    let answer = redeem(&caller, &recovery, &device).await.answer();
    assert_eq!(answer.outcome(), RecoveryOutcome::Opened);
    let here = get_cart(&caller, &device).await;
    assert_eq!((answer.cart.as_ref(), skus(&here)), (Some(&here), vec![("85123A", 2)]));
    assert_eq!((here.cart_id.as_str(), here.abandonment.unwrap().epoch), (cart.cart_id.as_str(), 2));
    assert_eq!(see(&caller, &cart).await.state(), CartState::Merged);
    assert_eq!(kinds(&stack, &cart).await, ["cart.abandoned", "cart.recovered"]);
    assert_eq!(validate(&caller, &device).await.session.unwrap().subject, None);
    redeem(&caller, &recovery, &device)
        .await
        .refused(Code::FailedPrecondition, "CART_RECOVERY_REDEEMED");
}

#[tokio::test]
async fn a_cart_that_is_there_and_the_recovered_one_become_one_by_the_strategy() {
    let (stack, caller) = start().await;
    let (cart, _) = abandoned(&stack, &caller).await;
    let (_, device) = create_session(&caller).await;
    let there = add_line(&caller, &device, "85123A", 3).await;
    let recovery = created(&caller, &cart).await;
    let none = pb::RedeemCartRecoveryRequest {
        merge_strategy: MergeStrategy::None.into(),
        ..redemption(&recovery, &device)
    };
    caller
        .carts()
        .redeem_cart_recovery(none)
        .await
        .refused(Code::InvalidArgument, "FIELD_INVALID");
    let keep = pb::RedeemCartRecoveryRequest {
        merge_strategy: MergeStrategy::KeepExisting.into(),
        ..redemption(&recovery, &device)
    };
    let shown = caller.carts().redeem_cart_recovery(keep).await.answer();
    assert_eq!((shown.outcome(), skus(&shown.cart.unwrap())), (RecoveryOutcome::Shown, vec![("85123A", 2)]));
    let answer = redeem(&caller, &created(&caller, &cart).await, &device).await.answer();
    let here = answer.cart.unwrap();
    assert_eq!((&here.cart_id, skus(&here)), (&there.cart_id, vec![("85123A", 5)]));
    let merged = see(&caller, &cart).await;
    assert_eq!((merged.state(), &merged.merged_into_cart_id), (CartState::Merged, &there.cart_id));
}

#[tokio::test]
async fn the_shoppers_own_device_opens_the_cart_where_it_is() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let (_, token) = authenticate(&caller, &token, identity("lena", 1)).await;
    let cart = add_line(&caller, &token, "85123A", 2).await;
    pass(&stack, HOUR).await;
    let recovery = created(&caller, &cart).await;
    let (_, phone) = create_session(&caller).await;
    let (_, phone) = authenticate(&caller, &phone, identity("lena", 1)).await;
    let answer = redeem(&caller, &recovery, &phone).await.answer();
    let opened = answer.cart.clone().unwrap();
    assert_eq!((answer.outcome(), &opened.cart_id), (RecoveryOutcome::Opened, &cart.cart_id));
    assert_eq!(opened, get_cart(&caller, &phone).await);
    assert_eq!(kinds(&stack, &cart).await, ["cart.abandoned", "cart.recovered"]);
}

#[tokio::test]
async fn a_subjects_cart_is_only_shown_until_they_log_in_and_never_to_another_subject() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let (_, token) = authenticate(&caller, &token, identity("lena", 1)).await;
    let cart = add_line(&caller, &token, "85123A", 2).await;
    pass(&stack, HOUR).await;
    let recovery = created(&caller, &cart).await;
    let (_, other) = create_session(&caller).await;
    let (_, other) = authenticate(&caller, &other, identity("max", 1)).await;
    redeem(&caller, &recovery, &other)
        .await
        .refused(Code::FailedPrecondition, "CART_RECOVERY_SUBJECT_DIFFERS");
    assert_eq!(get_cart(&caller, &other).await.lines, []);
    let (_, device) = create_session(&caller).await;
    let before = see(&caller, &cart).await;
    let answer = redeem(&caller, &recovery, &device).await.answer();
    assert_eq!((answer.outcome(), answer.cart.as_ref()), (RecoveryOutcome::Shown, Some(&before)));
    assert_eq!(see(&caller, &cart).await, before, "it is where it was, and still abandoned");
    assert_eq!(get_cart(&caller, &device).await.lines, []);
    let (_, device) = authenticate(&caller, &device, identity("lena", 1)).await;
    assert_eq!(get_cart(&caller, &device).await.cart_id, cart.cart_id);
}

#[tokio::test]
async fn of_many_that_redeem_at_once_one_does() {
    let (stack, caller) = start().await;
    let (cart, _) = abandoned(&stack, &caller).await;
    let recovery = created(&caller, &cart).await;
    let devices = join_all((0..8).map(|_| create_session(&caller))).await;
    let redeemed = join_all(devices.iter().map(|(_, device)| redeem(&caller, &recovery, device))).await;
    let (done, refused): (Vec<_>, Vec<_>) = redeemed.into_iter().partition(Result::is_ok);
    assert_eq!((done.len(), refused.len()), (1, 7));
    for refused in refused {
        refused.refused(Code::FailedPrecondition, "CART_RECOVERY_REDEEMED");
    }
    let mut lines = 0;
    for (_, device) in &devices {
        lines += get_cart(&caller, device).await.lines.len();
    }
    assert_eq!(lines, 1);
}

#[tokio::test]
async fn what_is_no_such_token_opens_nothing_and_uses_nothing_up() {
    let (stack, caller) = start().await;
    let (cart, _) = abandoned(&stack, &caller).await;
    let recovery = created(&caller, &cart).await;
    let (session, device) = create_session(&caller).await;
    let granted = caller
        .sessions()
        .grant_elevation(elevation(&device))
        .await
        .answer()
        .elevation_token;
    let mut bad =
        vec![String::new(), "tdr_".to_owned(), "nonsense".to_owned(), device.clone(), granted.clone()];
    bad.extend([
        recovery.replace("tdr_", "tds_"),
        device.replace("tds_", "tdr_"),
        granted.replace("tde_", "tdr_"),
    ]);
    bad.extend([format!("{recovery}A"), format!(" {recovery}"), recovery.to_uppercase()]);
    bad.extend((0..recovery.len()).map(|len| recovery[..len].to_owned()));
    for at in 0..recovery.len() {
        let mut flipped = recovery.clone().into_bytes();
        flipped[at] ^= 1;
        bad.extend(String::from_utf8(flipped));
    }
    for bad in bad {
        redeem(&caller, &bad, &device)
            .await
            .refused(Code::FailedPrecondition, "CART_RECOVERY_UNKNOWN");
    }
    // Well made, with a secret that nobody gave out.
    let guess = session_svc::domain::token::RecoveryToken::new(cart.shopper_id.parse().unwrap(), [7; 32]);
    redeem(&caller, &guess.expose(), &device)
        .await
        .refused(Code::FailedPrecondition, "CART_RECOVERY_UNKNOWN");
    // Nor does it stand for anything else.
    for other in [&recovery, &recovery.replace("tdr_", "tds_")] {
        assert_eq!(validate(&caller, other).await.verdict(), pb::Verdict::SessionUnknown);
        redeem(&caller, &recovery, other)
            .await
            .refused(Code::FailedPrecondition, "SESSION_UNKNOWN");
    }
    create_touchpoint(&caller, pb::Touchpoint { touchpoint: "app".to_owned(), ..web() }).await;
    let request = pb::CreateSessionRequest { touchpoint: "app".to_owned(), ..Default::default() };
    let elsewhere = caller.sessions().create_session(request).await.answer().session_token;
    redeem(&caller, &recovery, &elsewhere)
        .await
        .refused(Code::FailedPrecondition, "CART_RECOVERY_UNKNOWN");
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..workload("storefront") });
    create_touchpoint(&acme, web()).await;
    let (_, theirs) = create_session(&acme).await;
    redeem(&acme, &recovery, &theirs)
        .await
        .refused(Code::FailedPrecondition, "CART_RECOVERY_UNKNOWN");
    crate::harness::shop::revoke(&caller, &session).await;
    redeem(&caller, &recovery, &device)
        .await
        .refused(Code::FailedPrecondition, "SESSION_REVOKED");
    let (_, device) = create_session(&caller).await;
    redeem(&caller, &recovery, &device).await.answer();
}

#[tokio::test]
async fn a_recovery_ends_with_its_time_by_revocation_and_when_it_leaked() {
    let (stack, caller) = start().await;
    let (cart, _) = abandoned(&stack, &caller).await;
    let (_, device) = create_session(&caller).await;
    let brief = pb::CreateCartRecoveryRequest { ttl: Some(seconds(60)), ..creation(&cart) };
    let brief = caller.carts().create_cart_recovery(brief).await.answer().recovery_token;
    let week = created(&caller, &cart).await;
    let report = pb::ReportLeakedTokenRequest {
        token: created(&caller, &cart).await,
        found_at: "a forum".to_owned(),
        request_id: String::new(),
    };
    let mut watch = Watch::open(caller.session_events()).await;
    for outcome in [LeakOutcome::Ended, LeakOutcome::NotLive] {
        let answer = caller.sessions().report_leaked_token(report.clone()).await.answer();
        assert_eq!(answer.outcome(), outcome);
    }
    assert_eq!(watch.next_of("cart.recovery_leaked").await.subject, cart.cart_id);
    redeem(&caller, &report.token, &device)
        .await
        .refused(Code::FailedPrecondition, "CART_RECOVERY_REVOKED");
    pass(&stack, chrono::TimeDelta::seconds(60)).await;
    redeem(&caller, &brief, &device)
        .await
        .refused(Code::FailedPrecondition, "CART_RECOVERY_EXPIRED");
    let request = pb::RevokeCartRecoveriesRequest {
        shopper_id: cart.shopper_id.clone(),
        cart_id: cart.cart_id.clone(),
        request_id: String::new(),
    };
    for count in [1, 0] {
        let answer = caller.carts().revoke_cart_recoveries(request.clone()).await.answer();
        assert_eq!(answer.revoked_count, count);
    }
    redeem(&caller, &week, &device)
        .await
        .refused(Code::FailedPrecondition, "CART_RECOVERY_REVOKED");
    let other = pb::RevokeCartRecoveriesRequest { cart_id: cart.shopper_id.replace("shp", "crt"), ..request };
    caller
        .carts()
        .revoke_cart_recoveries(other)
        .await
        .refused(Code::NotFound, "CART_NOT_FOUND");
    let week = created(&caller, &cart).await;
    pass(&stack, DAY * 7).await;
    let (_, device) = create_session(&caller).await;
    redeem(&caller, &week, &device)
        .await
        .refused(Code::FailedPrecondition, "CART_RECOVERY_EXPIRED");
}

#[tokio::test]
async fn only_an_open_cart_with_lines_is_recovered_and_no_checkout_is_taken_away() {
    let (stack, caller) = start().await;
    let (_, token) = create_session(&caller).await;
    let cart = add_line(&caller, &token, "85123A", 2).await;
    let recovery = created(&caller, &cart).await;
    begin_checkout(&caller, &token).await;
    let (_, device) = create_session(&caller).await;
    redeem(&caller, &recovery, &device)
        .await
        .refused(Code::FailedPrecondition, "CART_WRONG_STATE");
    let opened = redeem(&caller, &recovery, &token).await.answer();
    assert_eq!(opened.cart.unwrap().state(), CartState::Checkout, "at home it is seen as it is");
    let late = created(&caller, &cart).await;
    crate::harness::shop::complete_checkout(&caller, &token, "order-1").await;
    redeem(&caller, &late, &device)
        .await
        .refused(Code::FailedPrecondition, "CART_WRONG_STATE");
    let refused = caller.carts().create_cart_recovery(creation(&cart)).await;
    refused.refused(Code::FailedPrecondition, "CART_WRONG_STATE");
    let (_, token) = create_session(&caller).await;
    let emptied = add_line(&caller, &token, "85123A", 2).await;
    let remove = pb::RemoveCartLineRequest {
        owner: Some(crate::harness::shop::owner(&token)),
        currency_code: "EUR".to_owned(),
        line_id: emptied.lines[0].line_id.clone(),
        request_id: String::new(),
    };
    caller.carts().remove_cart_line(remove).await.answer();
    let refused = caller.carts().create_cart_recovery(creation(&emptied)).await;
    refused.refused(Code::FailedPrecondition, "CART_EMPTY");
    let add = add_line(&caller, &token, "85123A", 2).await;
    for _ in 0..16 {
        created(&caller, &add).await;
    }
    let refused = caller.carts().create_cart_recovery(creation(&add)).await;
    refused.refused(Code::ResourceExhausted, "CART_LIMIT");
    pass(&stack, DAY * 7).await;
    created(&caller, &add).await;
}

#[tokio::test]
async fn a_repeated_request_gets_the_same_answer_and_no_row_holds_the_token() {
    let (stack, caller) = start().await;
    let (cart, _) = abandoned(&stack, &caller).await;
    let request_id = Uuid::from_u128(1).to_string();
    let ask = pb::CreateCartRecoveryRequest { request_id: request_id.clone(), ..creation(&cart) };
    let first = caller.carts().create_cart_recovery(ask.clone()).await.answer();
    assert_eq!(caller.carts().create_cart_recovery(ask.clone()).await.answer(), first);
    let other = pb::CreateCartRecoveryRequest { ttl: Some(seconds(5)), ..ask };
    caller
        .carts()
        .create_cart_recovery(other)
        .await
        .refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
    let (_, device) = create_session(&caller).await;
    let use_up = pb::RedeemCartRecoveryRequest { request_id, ..redemption(&first.recovery_token, &device) };
    let opened = caller.carts().redeem_cart_recovery(use_up.clone()).await.answer();
    let more = add_line(&caller, &device, "71053", 1).await;
    let again = caller.carts().redeem_cart_recovery(use_up.clone()).await.answer();
    assert_eq!((again.outcome, again.cart), (opened.outcome, Some(more)), "with the cart as it is now");
    let second = created(&caller, &get_cart(&caller, &device).await).await;
    let other = pb::RedeemCartRecoveryRequest { recovery_token: second, ..use_up };
    caller
        .carts()
        .redeem_cart_recovery(other)
        .await
        .refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
    let rows = stack.database.dump().await;
    assert!(rows.contains("cart.recovery_created"));
    assert!(!rows.contains(&first.recovery_token[4..]) && !rows.contains(&first.recovery_token[30..60]));
}

#[tokio::test]
async fn recoveries_are_made_by_those_who_may_and_bad_input_names_its_field() {
    let (stack, caller) = start().await;
    let (cart, _) = abandoned(&stack, &caller).await;
    let till = stack.caller(&Grant { touchpoints: Some(vec!["web".to_owned()]), ..workload("till") });
    let refused = till.carts().create_cart_recovery(creation(&cart)).await;
    refused.refused(Code::PermissionDenied, "CALLER_TOUCHPOINT_REFUSED");
    let shop = stack.caller(&Grant { scope: "cart.write shopper.any".to_owned(), ..workload("shop") });
    let refused = shop.carts().create_cart_recovery(creation(&cart)).await;
    refused.refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..workload("storefront") });
    let refused = acme.carts().create_cart_recovery(creation(&cart)).await;
    refused.refused(Code::NotFound, "CART_NOT_FOUND");
    let ttl = |s, nanos| Some(prost_types::Duration { seconds: s, nanos });
    for (field, bad) in [
        ("shopper_id", pb::CreateCartRecoveryRequest { shopper_id: "shp_1".to_owned(), ..creation(&cart) }),
        ("cart_id", pb::CreateCartRecoveryRequest { cart_id: String::new(), ..creation(&cart) }),
        ("ttl", pb::CreateCartRecoveryRequest { ttl: ttl(0, 0), ..creation(&cart) }),
        ("ttl", pb::CreateCartRecoveryRequest { ttl: ttl(30 * 86_400, 1), ..creation(&cart) }),
        ("ttl", pb::CreateCartRecoveryRequest { ttl: ttl(-1, 0), ..creation(&cart) }),
        ("request_id", pb::CreateCartRecoveryRequest { request_id: "1".to_owned(), ..creation(&cart) }),
    ] {
        let refused = caller.carts().create_cart_recovery(bad).await;
        let status = refused.refused(Code::InvalidArgument, "FIELD_INVALID");
        assert!(status.message().starts_with(field), "{}", status.message());
    }
}
