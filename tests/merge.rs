//! Logging in with a cart: what becomes of it by each strategy, and that nothing which was put into it meanwhile is lost.

use std::time::Duration;

use futures_util::future::join_all;
use prost_types::value::Kind;
use shared::id::ShopperId;
use shared::pb::session as pb;
use shared::pb::session::{CartMergeOutcome, CartState, MergeStrategy};
use sqlx::PgConnection;
use tokio::sync::watch;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::shop::{
    add_line, begin_checkout, cart_of, complete_checkout, create_session, create_touchpoint, fill, get_cart,
    known_device, line, log_in, login, owner, quantities, request_id as id, validate, web,
};
use crate::harness::{Answer as _, Caller, Options, Stack, Watch, assert_refused, reason_of, workload};

async fn start() -> (Stack, Caller) {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    (stack, caller)
}

fn units(cart: &pb::Cart) -> i32 {
    cart.lines.iter().map(|line| line.quantity).sum()
}

#[tokio::test]
async fn the_first_login_of_a_subject_keeps_shopper_and_cart() {
    let (_stack, caller) = start().await;
    let (session, token) = create_session(&caller).await;
    let cart = add_line(&caller, &token, "85123A", 2).await;
    let done = log_in(&caller, &token, "ann", MergeStrategy::SumCapped).await;
    assert_eq!((done.session.unwrap().shopper_id, done.cart_merges), (session.shopper_id, vec![]));
    assert_eq!(get_cart(&caller, &done.session_token).await, cart);
}

#[tokio::test]
async fn carts_of_two_devices_add_up() {
    let (_stack, caller) = start().await;
    let known = known_device(&caller, "ann").await;
    fill(&caller, &known, &[("a", 2), ("b", 999_999)]).await;
    let before = get_cart(&caller, &known).await;
    let (_, token) = create_session(&caller).await;
    fill(&caller, &token, &[("a", 3), ("b", 4), ("c", 5)]).await;
    let guests = get_cart(&caller, &token).await;
    let mut events = Watch::open(caller.session_events()).await;
    let done = log_in(&caller, &token, "ann", MergeStrategy::Unspecified).await;
    let merge = pb::CartMerge {
        source_cart_id: guests.cart_id.clone(),
        target_cart_id: before.cart_id.clone(),
        currency_code: "EUR".to_owned(),
        left_out_quantity: 3,
        outcome: CartMergeOutcome::Merged.into(),
        source_shopper_id: guests.shopper_id.clone(),
        touchpoint_group: "web".to_owned(),
    };
    assert_eq!(done.cart_merges, [merge]);
    let after = get_cart(&caller, &done.session_token).await;
    assert_eq!(quantities(&after), [("a", 5), ("b", 1_000_000), ("c", 5)]);
    assert_eq!((&after.cart_id, &after.shopper_id), (&before.cart_id, &before.shopper_id));
    assert_ne!(after.etag, before.etag);
    assert_eq!(get_cart(&caller, &known).await, after);
    let ended = cart_of(&caller, &guests).await;
    assert_eq!((ended.state(), &ended.merged_into_cart_id), (CartState::Merged, &after.cart_id));
    assert_eq!(ended.lines, guests.lines, "what was merged can still be seen");
    assert_eq!(events.next_of("cart.lines_merged").await.subject, after.cart_id);
    let merged = events.next_of("cart.merged").await;
    assert_eq!(merged.subject, guests.cart_id);
    let told = merged.data.unwrap().fields;
    let text = |value: &str| Kind::StringValue(value.to_owned());
    let expected = [
        ("shopper_id", text(&guests.shopper_id)),
        ("into_shopper_id", text(&after.shopper_id)),
        ("into_cart_id", text(&after.cart_id)),
        ("strategy", text("SUM_CAPPED")),
        ("left_out_quantity", Kind::NumberValue(3.0)),
    ];
    for (field, value) in expected {
        assert_eq!(told[field].kind, Some(value), "{field}");
    }
}

#[tokio::test]
async fn every_strategy_does_as_it_says() {
    type Articles = &'static [(&'static str, i32)];
    const GUESTS: Articles = &[("both", 3), ("guest", 4)];
    const MINE: Articles = &[("both", 5), ("mine", 1)];
    let table: [(MergeStrategy, Articles, Articles, bool); 8] = [
        (MergeStrategy::SumCapped, MINE, &[("both", 8), ("guest", 4), ("mine", 1)], true),
        (MergeStrategy::Max, MINE, &[("both", 5), ("guest", 4), ("mine", 1)], true),
        (MergeStrategy::GuestWins, MINE, &[("both", 3), ("guest", 4), ("mine", 1)], true),
        (MergeStrategy::UseGuest, MINE, GUESTS, true),
        (MergeStrategy::KeepExisting, MINE, MINE, false),
        (MergeStrategy::GuestIfExistingEmpty, MINE, MINE, false),
        (MergeStrategy::GuestIfExistingEmpty, &[], GUESTS, true),
        (MergeStrategy::None, MINE, MINE, false),
    ];
    let (_stack, caller) = start().await;
    for (n, (strategy, mine, expected, is_merged)) in table.into_iter().enumerate() {
        let sub = format!("subject-{n}");
        let known = known_device(&caller, &sub).await;
        // An emptied cart is one all the same.
        let emptied = add_line(&caller, &known, "emptied", 1).await;
        let remove = pb::RemoveCartLineRequest {
            owner: Some(owner(&known)),
            currency_code: "EUR".to_owned(),
            line_id: emptied.lines[0].line_id.clone(),
            request_id: String::new(),
        };
        caller.carts().remove_cart_line(remove).await.answer();
        fill(&caller, &known, mine).await;
        let before = get_cart(&caller, &known).await;
        let (_, token) = create_session(&caller).await;
        fill(&caller, &token, GUESTS).await;
        let guests = get_cart(&caller, &token).await;
        let done = log_in(&caller, &token, &sub, strategy).await;
        let after = get_cart(&caller, &done.session_token).await;
        assert_eq!(quantities(&after), expected, "{strategy:?}");
        assert_eq!(after.cart_id, before.cart_id, "{strategy:?}");
        let ended = cart_of(&caller, &guests).await;
        if is_merged {
            assert_eq!(done.cart_merges[0].target_cart_id, before.cart_id, "{strategy:?}");
            assert_eq!(ended.merged_into_cart_id, before.cart_id, "{strategy:?}");
        } else {
            assert_eq!((&done.cart_merges[0].target_cart_id[..], &after, &ended), ("", &before, &guests));
            assert_eq!(done.cart_merges[0].outcome(), CartMergeOutcome::KeptApart);
        }
    }
}

#[tokio::test]
async fn a_subject_without_a_cart_gets_the_anonymous_one_under_its_id() {
    let (_stack, caller) = start().await;
    let known = known_device(&caller, "ann").await;
    let mine = add_line(&caller, &known, "85123A", 1).await;
    let (_, token) = create_session(&caller).await;
    let euros = add_line(&caller, &token, "85123A", 2).await;
    let mut request = line(&token, "71053", 4);
    request.unit_price.as_mut().unwrap().currency_code = "USD".to_owned();
    let dollars = caller.carts().add_cart_line(request.clone()).await.answer().cart.unwrap();
    let mut done = log_in(&caller, &token, "ann", MergeStrategy::SumCapped).await;
    // They come in the order of their keys, which are drawn.
    done.cart_merges.sort_by_key(|merge| merge.currency_code.clone());
    let went: Vec<_> = done
        .cart_merges
        .iter()
        .map(|merge| (&merge.currency_code[..], &merge.source_cart_id, &merge.target_cart_id))
        .collect();
    assert_eq!(went, [("EUR", &euros.cart_id, &mine.cart_id), ("USD", &dollars.cart_id, &dollars.cart_id)]);
    let outcomes: Vec<_> = done.cart_merges.iter().map(pb::CartMerge::outcome).collect();
    assert_eq!(outcomes, [CartMergeOutcome::Merged, CartMergeOutcome::Moved], "kept apart, and said so");
    assert_eq!(quantities(&get_cart(&caller, &known).await), [("85123A", 3)]);
    request.owner = Some(owner(&known));
    let after = caller.carts().add_cart_line(request).await.answer().cart.unwrap();
    assert_eq!((&after.cart_id, quantities(&after)), (&dollars.cart_id, vec![("71053", 8)]));
    assert_eq!(after.shopper_id, mine.shopper_id);
    let ended = cart_of(&caller, &dollars).await;
    assert_eq!((ended.state(), &ended.merged_into_cart_id), (CartState::Merged, &dollars.cart_id));
}

#[tokio::test]
async fn a_cart_that_changes_its_shopper_stays_in_checkout() {
    let (_stack, caller) = start().await;
    known_device(&caller, "ann").await;
    let (_, token) = create_session(&caller).await;
    add_line(&caller, &token, "85123A", 2).await;
    let paying = begin_checkout(&caller, &token).await;
    let done = log_in(&caller, &token, "ann", MergeStrategy::SumCapped).await;
    let ordered = complete_checkout(&caller, &done.session_token, "order-1").await;
    assert_eq!((&ordered.cart_id, ordered.state()), (&paying.cart_id, CartState::Ordered));
}

#[tokio::test]
async fn a_login_that_would_change_what_is_being_paid_is_refused_as_a_whole() {
    let (_stack, caller) = start().await;
    let known = known_device(&caller, "ann").await;
    add_line(&caller, &known, "85123A", 1).await;
    let (session, token) = create_session(&caller).await;
    add_line(&caller, &token, "85123A", 2).await;
    for paying in [&known, &token] {
        let cart = begin_checkout(&caller, paying).await;
        let refused = caller
            .sessions()
            .authenticate_session(login(&token, "ann", MergeStrategy::SumCapped))
            .await;
        let status = refused.refused(Code::FailedPrecondition, "CART_WRONG_STATE");
        let metadata = status.get_details_error_info().unwrap().metadata;
        assert_eq!((&metadata["state"][..], &metadata["cart_id"]), ("CHECKOUT", &cart.cart_id));
        let found = validate(&caller, &token).await.session.unwrap();
        assert_eq!((found.shopper_id, found.subject), (session.shopper_id.clone(), None));
        assert_eq!(quantities(&get_cart(&caller, &token).await), [("85123A", 2)]);
        assert_eq!(quantities(&get_cart(&caller, &known).await), [("85123A", 1)]);
        let fail = pb::FailCheckoutRequest {
            owner: Some(owner(paying)),
            currency_code: "EUR".to_owned(),
            reason: pb::CheckoutFailure::Cancelled.into(),
            request_id: String::new(),
        };
        caller.carts().fail_checkout(fail).await.answer();
    }
    let done = log_in(&caller, &token, "ann", MergeStrategy::SumCapped).await;
    assert_eq!(quantities(&get_cart(&caller, &done.session_token).await), [("85123A", 3)]);
}

#[tokio::test]
async fn a_change_of_either_cart_is_not_made_again_after_the_login() {
    let (_stack, caller) = start().await;
    let known = known_device(&caller, "ann").await;
    let mine = pb::AddCartLineRequest { request_id: id(1), ..line(&known, "85123A", 1) };
    let line_id = caller.carts().add_cart_line(mine.clone()).await.answer().line_id;
    let (_, token) = create_session(&caller).await;
    let guests = pb::AddCartLineRequest { request_id: id(2), ..line(&token, "85123A", 2) };
    caller.carts().add_cart_line(guests.clone()).await.answer();
    let done = log_in(&caller, &token, "ann", MergeStrategy::SumCapped).await;
    for again in [mine, pb::AddCartLineRequest { owner: Some(owner(&done.session_token)), ..guests.clone() }]
    {
        let answer = caller.carts().add_cart_line(again).await.answer();
        assert_eq!(quantities(&answer.cart.unwrap()), [("85123A", 3)]);
        assert_eq!(answer.line_id, line_id, "the line that its units are in");
    }
    // Who knew the token of before the login may know the request, and is told nothing of the subject's cart.
    let refused = caller.carts().add_cart_line(guests).await;
    refused.refused(Code::FailedPrecondition, "SESSION_TOKEN_SUPERSEDED");
}

#[tokio::test]
async fn a_change_of_the_subjects_last_order_is_not_made_again_in_the_cart_of_the_login() {
    let (_stack, caller) = start().await;
    let known = known_device(&caller, "ann").await;
    let add = pb::AddCartLineRequest { request_id: id(1), ..line(&known, "85123A", 2) };
    caller.carts().add_cart_line(add.clone()).await.answer();
    begin_checkout(&caller, &known).await;
    complete_checkout(&caller, &known, "order-1").await;
    let (_, token) = create_session(&caller).await;
    add_line(&caller, &token, "71053", 1).await;
    log_in(&caller, &token, "ann", MergeStrategy::SumCapped).await;
    let after = caller.carts().add_cart_line(add).await.answer().cart.unwrap();
    assert_eq!(quantities(&after), [("71053", 1)]);
}

#[tokio::test]
async fn nothing_of_the_subject_stays_on_the_device_after_the_logout() {
    let (_stack, caller) = start().await;
    let known = known_device(&caller, "ann").await;
    add_line(&caller, &known, "85123A", 2).await;
    let session = validate(&caller, &known).await.session.unwrap();
    let request = pb::RevokeSessionRequest {
        target: Some(pb::revoke_session_request::Target::SessionToken(known)),
        reason: pb::RevokeReason::Logout.into(),
        request_id: String::new(),
    };
    caller.sessions().revoke_session(request).await.answer();
    let (anonymous, token) = create_session(&caller).await;
    assert_ne!(anonymous.shopper_id, session.shopper_id);
    let empty = get_cart(&caller, &token).await;
    assert_eq!((empty.cart_id.as_str(), empty.lines.len()), ("", 0));
}

/// Adds one unit and does not rest until that is acknowledged, if need be with the token that the login gave.
async fn add_surely(caller: &Caller, tokens: &mut watch::Receiver<String>, sku: &str, request_id: String) {
    for _ in 0..100 {
        let token = tokens.borrow().clone();
        let request = pb::AddCartLineRequest { request_id: request_id.clone(), ..line(&token, sku, 1) };
        match caller.carts().add_cart_line(request).await {
            Ok(_) => return,
            Err(status) if status.code() == Code::Aborted => tokio::task::yield_now().await,
            Err(status) => {
                assert_eq!(reason_of(&status), "SESSION_TOKEN_SUPERSEDED", "{status:?}");
                tokens.wait_for(|now| *now != token).await.unwrap();
            }
        }
    }
    panic!("100 attempts were in vain");
}

async fn log_in_surely(caller: &Caller, request: &pb::AuthenticateSessionRequest) -> String {
    for _ in 0..100 {
        match caller.sessions().authenticate_session(request.clone()).await {
            Ok(done) => return done.into_inner().session_token,
            Err(status) => assert_eq!(status.code(), Code::Aborted, "{status:?}"),
        }
    }
    panic!("100 attempts were in vain");
}

/// Three tabs add while the shopper logs in, at another replica and with or without a cart on the other device.
async fn nothing_is_lost(has_cart_before: bool) {
    let (stack, caller) = start().await;
    let replica = stack.session_svc(&Options::default());
    let other = caller.at_session(&replica);
    for round in 0..30_u128 {
        let sub = format!("subject-{round}");
        let known = known_device(&caller, &sub).await;
        let mut expected = 3 * 4;
        if round % 2 == 0 {
            add_line(&caller, &known, "mine", 1).await;
            expected += 1;
        }
        let (_, token) = create_session(&caller).await;
        if has_cart_before {
            add_line(&caller, &token, "shared", 1).await;
            expected += 1;
        }
        let (new, tokens) = watch::channel(token.clone());
        let tabs = (0..3_u128).map(|tab| {
            let (caller, mut tokens) = (caller.clone(), tokens.clone());
            async move {
                for n in 0..4 {
                    add_surely(&caller, &mut tokens, "shared", id(1 + round * 100 + tab * 10 + n)).await;
                }
            }
        });
        let request = login(&token, &sub, MergeStrategy::SumCapped);
        let login = async {
            tokio::time::sleep(Duration::from_micros(u64::try_from(round).unwrap() * 400)).await;
            new.send(log_in_surely(&other, &request).await).unwrap();
        };
        tokio::join!(join_all(tabs), login);
        let token = tokens.borrow().clone();
        assert_eq!(units(&get_cart(&caller, &token).await), expected, "round {round}");
    }
}

#[tokio::test]
async fn what_is_added_while_the_shopper_logs_in_is_in_the_subjects_cart() {
    nothing_is_lost(true).await;
}

#[tokio::test]
async fn a_first_line_added_while_the_shopper_logs_in_is_in_the_subjects_cart() {
    nothing_is_lost(false).await;
}

/// Until so many statements like this one wait for a lock.
async fn waiting(db: &mut PgConnection, statement: &str, count: i64) {
    let sql = "select count(*) from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock' and query like $1";
    for _ in 0..400 {
        let found: i64 = sqlx::query_scalar(sql).bind(statement).fetch_one(&mut *db).await.unwrap();
        if found == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("{count} statements like {statement} did not come to wait");
}

/// An addition and a login that queue up for a row in this order, as it is locked by `lock`; what became of the addition,
/// and what is in the subject's cart then.
async fn queue(is_login_first: bool, has_cart_before: bool) -> (Result<(), Status>, i32) {
    let (lock, statement) = if has_cart_before {
        ("select from session.carts where shopper_id = $1 for update", "%from session.carts%for update%")
    } else {
        ("select from session.sessions where shopper_id = $1 for update", "%and shopper_id = $3%for %")
    };
    let (stack, caller) = start().await;
    known_device(&caller, "ann").await;
    let (session, token) = create_session(&caller).await;
    if has_cart_before {
        add_line(&caller, &token, "before", 1).await;
    }
    let mut holder = stack.database.connect().await;
    sqlx::query("begin").execute(&mut holder).await.unwrap();
    let shopper = session.shopper_id.parse::<ShopperId>().unwrap().uuid();
    sqlx::query(lock).bind(shopper).execute(&mut holder).await.unwrap();
    let (mut first, mut both) = (stack.database.connect().await, stack.database.connect().await);
    let first = async { waiting(&mut first, statement, 1).await };
    let add = async { caller.carts().add_cart_line(line(&token, "first", 1)).await.map(drop) };
    let log_in = log_in(&caller, &token, "ann", MergeStrategy::SumCapped);
    let release = async {
        waiting(&mut both, statement, 2).await;
        sqlx::query("rollback").execute(&mut holder).await.unwrap();
    };
    let (added, done) = if is_login_first {
        let (added, done, ()) = tokio::join!(
            async {
                first.await;
                add.await
            },
            log_in,
            release
        );
        (added, done)
    } else {
        let (added, done, ()) = tokio::join!(
            add,
            async {
                first.await;
                log_in.await
            },
            release
        );
        (added, done)
    };
    (added, units(&get_cart(&caller, &done.session_token).await))
}

#[tokio::test]
async fn an_addition_before_the_login_is_merged_and_one_after_it_is_sent_again() {
    for (has_cart_before, before) in [(true, 1), (false, 0)] {
        let (added, units) = queue(false, has_cart_before).await;
        added.unwrap();
        assert_eq!(units, before + 1);
        let (added, units) = queue(true, has_cart_before).await;
        assert_refused(&added.unwrap_err(), Code::Aborted, "CONCURRENT_CHANGE");
        assert_eq!(units, before);
    }
}
