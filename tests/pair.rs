//! The pair at work: what becomes of visits decides about the release that they are on, and nobody's cart pays for it.

use shared::pb::release as rpb;
use shared::pb::release::RolloutState;
use shared::pb::session as pb;
use shared::pb::session::{Arm, Verdict};

use crate::harness::shop::{
    add_line, begin_checkout, create_session_with_pins, get_cart, owner, pin, validate,
};
use crate::harness::{Answer as _, Caller};
use crate::rollout_control::{reaches, ship_by};
use crate::routing::start;

/// Half of the visits, watched by whether checkouts fail.
async fn canary(caller: &Caller) -> rpb::Rollout {
    let guards = vec![rpb::Guard { name: "checkout".to_owned(), ..Default::default() }];
    let plan = rpb::RolloutPlan { guards, ..Default::default() };
    let rollout = ship_by(caller, "1.1", &[5000], plan).await;
    // Visits are dealt to the arms once the link has told of it.
    crate::harness::eventually("a visit on the canary", || async {
        let created = create_session_with_pins(caller).await;
        (pin(&created.pins).1 == Arm::Canary).then_some(())
    })
    .await;
    rollout
}

async fn fail_checkout(caller: &Caller, token: &str) {
    let request = pb::FailCheckoutRequest {
        owner: Some(owner(token)),
        currency_code: "EUR".to_owned(),
        reason: pb::CheckoutFailure::PaymentDeclined.into(),
        request_id: String::new(),
    };
    caller.carts().fail_checkout(request).await.answer();
}

#[tokio::test]
async fn checkouts_that_fail_on_the_canary_take_it_back_and_nobody_loses_a_cart_or_a_login() {
    let (_stack, caller) = start().await;
    let rollout = canary(&caller).await;
    let mut visits = Vec::new();
    for _ in 0..48 {
        let created = create_session_with_pins(&caller).await;
        let arm = pin(&created.pins).1;
        add_line(&caller, &created.session_token, "85123A", 1).await;
        begin_checkout(&caller, &created.session_token).await;
        visits.push((created.session_token, arm));
    }
    let canaries: Vec<_> = visits.iter().filter(|visit| visit.1 == Arm::Canary).collect();
    // The last of them is in the middle of its checkout all the while.
    let (open, failing) = canaries.split_last().unwrap();
    for (token, _) in failing {
        fail_checkout(&caller, token).await;
    }
    let back = reaches(&caller, &rollout, RolloutState::RolledBack).await;
    assert!(back.rollback_reason.starts_with("guard checkout found harm"), "{}", back.rollback_reason);
    for (token, _) in &visits {
        let seen = validate(&caller, token).await;
        assert_eq!(seen.verdict(), Verdict::Active);
        assert_eq!(pin(&seen.pins).0, if *token == open.0 { "1.1" } else { "1.0" });
        assert_eq!(get_cart(&caller, token).await.lines.len(), 1);
    }
}

#[tokio::test]
async fn a_release_that_is_killed_where_the_visits_are_is_rolled_back() {
    let (_stack, caller) = start().await;
    let rollout = canary(&caller).await;
    let request = pb::KillReleaseRequest {
        component: "storefront".to_owned(),
        release_id: rollout.release_id.clone(),
        reason: "prices are wrong".to_owned(),
        ..Default::default()
    };
    caller.visits().kill_release(request).await.answer();
    let back = reaches(&caller, &rollout, RolloutState::RolledBack).await;
    assert!(back.rollback_reason.ends_with("prices are wrong"), "{}", back.rollback_reason);
}
