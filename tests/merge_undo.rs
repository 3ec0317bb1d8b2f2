//! Taking a merge back: both carts are as they were, as far as the shopper left them so, within a day and once.

use chrono::TimeDelta;
use futures_util::future::join_all;
use shared::pb::session as pb;
use shared::pb::session::{CartState, MergeStrategy};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::carts::{contact, reachable};
use crate::harness::shop::{
    add_line, begin_checkout, cart_of, complete_checkout, create_session, create_touchpoint, fill, get_cart,
    known_device, line, log_in, owner, quantities, request_id, shopper, web,
};
use crate::harness::{Answer as _, Caller, Stack, Watch, assert_refused, workload};

/// A subject with two articles logs in on a device with two, one of them the same.
struct Merged {
    stack: Stack,
    caller: Caller,
    /// Of the login.
    token: String,
    /// The subject's cart before, and the anonymous one.
    before: pb::Cart,
    guests: pb::Cart,
}

impl Merged {
    async fn by(strategy: MergeStrategy, mine: &[(&str, i32)]) -> Self {
        let stack = Stack::sessions();
        let caller = stack.caller(&workload("storefront"));
        create_touchpoint(&caller, web()).await;
        let known = known_device(&caller, "ann").await;
        fill(&caller, &known, mine).await;
        let before = get_cart(&caller, &known).await;
        let (_, token) = create_session(&caller).await;
        fill(&caller, &token, &[("both", 3), ("guest", 4)]).await;
        let guests = get_cart(&caller, &token).await;
        let done = log_in(&caller, &token, "ann", strategy).await;
        assert_eq!(done.cart_merges[0].source_shopper_id, guests.shopper_id);
        Self { stack, caller, token: done.session_token, before, guests }
    }

    fn undo(&self) -> pb::UndoCartMergeRequest {
        pb::UndoCartMergeRequest {
            owner: Some(owner(&self.token)),
            source_shopper_id: self.guests.shopper_id.clone(),
            source_cart_id: self.guests.cart_id.clone(),
            request_id: String::new(),
        }
    }

    /// Is told that the merge stands, and why.
    async fn stands(&self, problem: &str) {
        let request =
            pb::UndoCartMergeRequest { owner: Some(shopper(&self.before.shopper_id)), ..self.undo() };
        let status = self.caller.carts().undo_cart_merge(request).await;
        let status = status.refused(Code::FailedPrecondition, "CART_MERGE_FINAL");
        assert_eq!(status.get_details_error_info().unwrap().metadata["problem"], problem);
    }
}

const MINE: &[(&str, i32)] = &[("both", 5), ("mine", 1)];

#[tokio::test]
async fn every_merge_is_taken_back() {
    for strategy in
        [MergeStrategy::SumCapped, MergeStrategy::Max, MergeStrategy::GuestWins, MergeStrategy::UseGuest]
    {
        let merged = Merged::by(strategy, MINE).await;
        let Merged { caller, token, before, guests, .. } = &merged;
        let mut events = Watch::open(caller.session_events()).await;
        let answer = caller.carts().undo_cart_merge(merged.undo()).await.answer();
        let (source, target) = (answer.source_cart.unwrap(), answer.target_cart.unwrap());
        assert_eq!((quantities(&target), answer.left_out_quantity), (MINE.to_vec(), 0), "{strategy:?}");
        assert_eq!((&target.cart_id, target.state()), (&before.cart_id, CartState::Active));
        assert_eq!(
            (&source.cart_id, source.state(), &source.lines),
            (&guests.cart_id, CartState::Active, &guests.lines)
        );
        assert_eq!((get_cart(caller, token).await, cart_of(caller, guests).await), (target, source));
        assert_eq!(events.next_of("cart.lines_unmerged").await.subject, before.cart_id);
        assert_eq!(events.next_of("cart.unmerged").await.subject, guests.cart_id);
        let again = caller.carts().undo_cart_merge(merged.undo()).await;
        again.refused(Code::NotFound, "CART_NOT_FOUND");
    }
}

#[tokio::test]
async fn a_cart_that_only_changed_its_shopper_goes_back() {
    let merged = Merged::by(MergeStrategy::SumCapped, &[]).await;
    let Merged { caller, token, guests, .. } = &merged;
    add_line(caller, token, "since", 2).await;
    let answer = caller.carts().undo_cart_merge(merged.undo()).await.answer();
    assert_eq!(quantities(&answer.target_cart.unwrap()), [("since", 2)]);
    assert_eq!(answer.source_cart.unwrap().lines, guests.lines);
}

#[tokio::test]
async fn what_the_shopper_did_since_stays() {
    let merged = Merged::by(MergeStrategy::SumCapped, MINE).await;
    let Merged { caller, token, .. } = &merged;
    let after = get_cart(caller, token).await;
    let of = |sku: &str| after.lines.iter().find(|line| line.sku == sku).unwrap().line_id.clone();
    fill(caller, token, &[("both", 10), ("since", 1)]).await;
    let (owner, currency_code) = (Some(owner(token)), "EUR".to_owned());
    let request = pb::RemoveCartLineRequest {
        owner: owner.clone(),
        currency_code: currency_code.clone(),
        line_id: of("mine"),
        request_id: String::new(),
    };
    caller.carts().remove_cart_line(request).await.answer();
    let request = pb::SetCartLineQuantityRequest {
        owner,
        currency_code,
        line_id: of("guest"),
        quantity: 6,
        request_id: String::new(),
    };
    caller.carts().set_cart_line_quantity(request).await.answer();
    let target = caller
        .carts()
        .undo_cart_merge(merged.undo())
        .await
        .answer()
        .target_cart
        .unwrap();
    assert_eq!(quantities(&target), [("both", 15), ("guest", 2), ("since", 1)]);
}

#[tokio::test]
async fn a_repetition_is_answered_with_the_carts_as_they_are() {
    let merged = Merged::by(MergeStrategy::SumCapped, MINE).await;
    let Merged { caller, token, .. } = &merged;
    let request = pb::UndoCartMergeRequest { request_id: request_id(1), ..merged.undo() };
    let first = caller.carts().undo_cart_merge(request.clone()).await.answer();
    assert_eq!(caller.carts().undo_cart_merge(request.clone()).await.answer(), first);
    let now = add_line(caller, token, "since", 1).await;
    let again = caller.carts().undo_cart_merge(request.clone()).await.answer();
    assert_eq!((again.source_cart, again.target_cart), (first.source_cart, Some(now)));
    let other = pb::UndoCartMergeRequest { source_cart_id: merged.before.cart_id.clone(), ..request };
    caller
        .carts()
        .undo_cart_merge(other)
        .await
        .refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
}

#[tokio::test]
async fn a_merge_stands_after_a_day_or_where_the_shopper_went_on() {
    let merged = Merged::by(MergeStrategy::SumCapped, MINE).await;
    // Somebody entered a cart for the anonymous shopper meanwhile.
    let request =
        pb::AddCartLineRequest { owner: Some(shopper(&merged.guests.shopper_id)), ..line("", "new", 1) };
    merged.caller.carts().add_cart_line(request).await.answer();
    merged.stands("SHOPPER_HAS_CART").await;
    assert_eq!(
        quantities(&get_cart(&merged.caller, &merged.token).await),
        [("both", 8), ("guest", 4), ("mine", 1)]
    );
    merged.stack.advance(TimeDelta::hours(24));
    merged.stands("WINDOW_OVER").await;
}

#[tokio::test]
async fn a_cart_that_is_paid_or_ordered_gives_nothing_back() {
    let merged = Merged::by(MergeStrategy::SumCapped, MINE).await;
    let Merged { caller, token, .. } = &merged;
    begin_checkout(caller, token).await;
    for state in ["CHECKOUT", "ORDERED"] {
        let status = caller.carts().undo_cart_merge(merged.undo()).await;
        let status = status.refused(Code::FailedPrecondition, "CART_WRONG_STATE");
        assert_eq!(status.get_details_error_info().unwrap().metadata["state"], state);
        if state == "CHECKOUT" {
            complete_checkout(caller, token, "order-1").await;
        }
    }
    assert_eq!(cart_of(caller, &merged.guests).await.state(), CartState::Merged);
}

#[tokio::test]
async fn nobody_takes_back_what_went_into_anothers_cart() {
    let merged = Merged::by(MergeStrategy::SumCapped, MINE).await;
    let caller = &merged.caller;
    let other = known_device(caller, "bob").await;
    add_line(caller, &other, "own", 1).await;
    let request = pb::UndoCartMergeRequest { owner: Some(owner(&other)), ..merged.undo() };
    caller
        .carts()
        .undo_cart_merge(request)
        .await
        .refused(Code::NotFound, "CART_NOT_FOUND");
    let request =
        pb::UndoCartMergeRequest { source_shopper_id: merged.before.shopper_id.clone(), ..merged.undo() };
    let not_merged = pb::UndoCartMergeRequest { source_cart_id: merged.before.cart_id.clone(), ..request };
    caller
        .carts()
        .undo_cart_merge(not_merged)
        .await
        .refused(Code::NotFound, "CART_NOT_FOUND");
}

#[tokio::test]
async fn of_many_who_take_a_merge_back_one_does_and_no_addition_is_lost() {
    let merged = Merged::by(MergeStrategy::SumCapped, MINE).await;
    let Merged { caller, token, .. } = &merged;
    let undo = async {
        let all = (0..4).map(|_| {
            let (caller, request) = (caller.clone(), merged.undo());
            async move { caller.carts().undo_cart_merge(request).await }
        });
        let (done, refused): (Vec<_>, Vec<_>) = join_all(all).await.into_iter().partition(Result::is_ok);
        assert_eq!(done.len(), 1);
        for status in refused.into_iter().filter_map(Result::err) {
            // Who looked before the first was done finds the cart open again under the lock.
            if status.code() != Code::NotFound {
                assert_refused(&status, Code::FailedPrecondition, "CART_WRONG_STATE");
            }
        }
    };
    let adds = join_all((0..8).map(|_| add_line(caller, token, "both", 1)));
    tokio::join!(undo, adds);
    assert_eq!(quantities(&get_cart(caller, token).await), [("both", 13), ("mine", 1)]);
}

#[tokio::test]
async fn the_anonymous_cart_goes_on_for_whoever_may_name_its_shopper() {
    let merged = Merged::by(MergeStrategy::SumCapped, MINE).await;
    let caller = &merged.caller;
    caller.carts().undo_cart_merge(merged.undo()).await.answer();
    let request =
        pb::AddCartLineRequest { owner: Some(shopper(&merged.guests.shopper_id)), ..line("", "guest", 1) };
    let guests = caller.carts().add_cart_line(request).await.answer().cart.unwrap();
    assert_eq!(
        (&guests.cart_id, quantities(&guests)),
        (&merged.guests.cart_id, vec![("both", 3), ("guest", 5)])
    );
}

#[tokio::test]
async fn whoever_got_a_cart_under_its_id_goes_on_with_one_of_another() {
    let merged = Merged::by(MergeStrategy::SumCapped, &[]).await;
    let Merged { caller, token, guests, .. } = &merged;
    let moved = get_cart(caller, token).await;
    assert_eq!(moved.cart_id, guests.cart_id);
    let request = pb::CreateCartRecoveryRequest {
        shopper_id: moved.shopper_id.clone(),
        cart_id: moved.cart_id.clone(),
        ..Default::default()
    };
    let recovery = caller.carts().create_cart_recovery(request).await.answer().recovery_token;
    add_line(caller, token, "since", 2).await;
    let request = pb::UndoCartMergeRequest { request_id: request_id(1), ..merged.undo() };
    let answer = caller.carts().undo_cart_merge(request.clone()).await.answer();
    let (source, target) = (answer.source_cart.unwrap(), answer.target_cart.unwrap());
    assert_eq!((&source.cart_id, source.state()), (&guests.cart_id, CartState::Active));
    assert_ne!(target.cart_id, guests.cart_id, "one id is one cart");
    assert_eq!(get_cart(caller, token).await, target);
    let again = caller.carts().undo_cart_merge(request).await.answer();
    assert_eq!(again.target_cart, Some(target.clone()));
    // A link that was sent meanwhile opens the subject's.
    let request = pb::RedeemCartRecoveryRequest {
        recovery_token: recovery,
        session_token: token.clone(),
        ..Default::default()
    };
    let opened = caller.carts().redeem_cart_recovery(request).await.answer().cart.unwrap();
    assert_eq!((opened.cart_id, opened.lines), (target.cart_id, target.lines));
}

#[tokio::test]
async fn how_one_shopper_may_be_written_to_does_not_stay_with_the_other() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    for (mine, said_since) in [(MINE, false), (&[], false), (MINE, true)] {
        let known = known_device(&caller, "ann").await;
        fill(&caller, &known, mine).await;
        let (_, token) = create_session(&caller).await;
        let guests = add_line(&caller, &token, "guest", 1).await;
        caller.carts().set_cart_contact(contact(&token, reachable(true))).await.answer();
        let done = log_in(&caller, &token, "ann", MergeStrategy::SumCapped).await;
        let token = done.session_token;
        if said_since {
            caller
                .carts()
                .set_cart_contact(contact(&token, reachable(false)))
                .await
                .answer();
        }
        let undo = pb::UndoCartMergeRequest {
            owner: Some(owner(&token)),
            source_shopper_id: guests.shopper_id.clone(),
            source_cart_id: guests.cart_id.clone(),
            request_id: String::new(),
        };
        let answer = caller.carts().undo_cart_merge(undo).await.answer();
        let mut db = stack.database.connect().await;
        let mut channels = async |cart: Option<pb::Cart>| -> Vec<String> {
            let cart = cart.unwrap();
            sqlx::query_scalar(
                "select contact_channels from session.carts where shopper_id = $1 and state = 'ACTIVE'",
            )
            .bind(cart.shopper_id[4..].parse::<uuid::Uuid>().unwrap())
            .fetch_one(&mut db)
            .await
            .unwrap()
        };
        assert_eq!(channels(answer.source_cart).await, ["EMAIL"]);
        let expected: &[&str] = if said_since { &["EMAIL"] } else { &[] };
        assert_eq!(channels(answer.target_cart).await, expected);
        let discard = pb::DiscardCartRequest {
            owner: Some(owner(&token)),
            currency_code: "EUR".to_owned(),
            ..Default::default()
        };
        caller.carts().discard_cart(discard).await.answer();
    }
}
