//! Two replicas: what one is told reaches the other by the feed before long, and by the staleness bound in any case. How
//! long the feed took is printed.

use std::time::Instant;

use chrono::TimeDelta;
use shared::pb::session as pb;
use shared::pb::session::{SessionLimitAction, TokenGrade, ValidateSessionResponse, Verdict};
use shared::time::from_proto;
use tonic::Code;

use crate::harness::shop::{add_line, create_session, line, revoke, seconds, validate};
use crate::harness::trust::{
    BEYOND_BOUND, FLUSH, IDLE, authenticate, disabling, identity, limited, log_in, logout_everywhere, rotate,
    set_policy, short, start_with,
};
use crate::harness::{Answer as _, Caller, Options, Service, Stack, eventually};

/// A session that both replicas of a stack are asked for.
struct Pair {
    stack: Stack,
    here: Caller,
    there: Caller,
    session: pb::Session,
    token: String,
    _replica: Service,
}

impl Pair {
    async fn start(policy: pb::SessionPolicy) -> Self {
        let (stack, here) = start_with(policy).await;
        let replica = stack.session_svc(&Options::default());
        let there = here.at_session(&replica);
        let (session, token) = log_in(&here, "lena").await;
        Self { stack, here, there, session, token, _replica: replica }
    }

    async fn asked_there(&self) -> ValidateSessionResponse {
        validate(&self.there, &self.token).await
    }
}

/// The other replica, which remembers the session, sees the change: once while only the feed can tell it, and once as soon
/// as its memory is older than the bound, whatever the feed does.
async fn reaches(
    what: &str,
    policy: pb::SessionPolicy,
    prepare: impl AsyncFn(&Pair),
    change: impl AsyncFn(&Pair),
    is_seen: impl Fn(&ValidateSessionResponse) -> bool,
) {
    for by_bound in [false, true] {
        let pair = Pair::start(policy.clone()).await;
        prepare(&pair).await;
        let before = pair.asked_there().await;
        assert!(before.verdict() == Verdict::Active && !is_seen(&before), "{before:?}");
        change(&pair).await;
        let began = Instant::now();
        if by_bound {
            pair.stack.advance(BEYOND_BOUND);
            let after = pair.asked_there().await;
            assert!(is_seen(&after), "{what}: {after:?}");
        } else {
            eventually("the feed", async || is_seen(&pair.asked_there().await).then_some(())).await;
            eprintln!("{what} was seen by the other replica after {:?}", began.elapsed());
        }
    }
}

async fn nothing(_: &Pair) {}

fn is_revoked(answer: &ValidateSessionResponse) -> bool {
    answer.verdict() == Verdict::Revoked
}

#[tokio::test]
async fn a_revocation_of_one_session_reaches_the_other_replica() {
    let change = async |pair: &Pair| drop(revoke(&pair.here, &pair.session).await);
    reaches("a revocation", pb::SessionPolicy::default(), nothing, change, is_revoked).await;
}

#[tokio::test]
async fn a_revocation_of_one_session_ends_its_carts_changes_at_the_other_replica() {
    for (policy, by_bound) in [
        (pb::SessionPolicy::default(), false),
        (pb::SessionPolicy::default(), true),
        (pb::SessionPolicy { staleness_bound: Some(seconds(0)), ..Default::default() }, false),
    ] {
        let reads_always = policy.staleness_bound.is_some();
        let pair = Pair::start(policy).await;
        add_line(&pair.there, &pair.token, "sku-1", 1).await;
        revoke(&pair.here, &pair.session).await;
        if by_bound {
            pair.stack.advance(BEYOND_BOUND);
        }
        let change = async || pair.there.carts().add_cart_line(line(&pair.token, "sku-2", 1)).await;
        let refused = if by_bound || reads_always {
            change().await
        } else {
            eventually("the feed", async || Some(change().await).filter(Result::is_err)).await
        };
        refused.refused(Code::FailedPrecondition, "SESSION_REVOKED");
    }
}

#[tokio::test]
async fn a_revocation_of_a_subject_reaches_the_other_replica() {
    let change = async |pair: &Pair| {
        let request = logout_everywhere(&pair.token, false);
        pair.here.sessions().revoke_subject_sessions(request).await.answer();
    };
    reaches("a subject's revocation", pb::SessionPolicy::default(), nothing, change, is_revoked).await;
}

#[tokio::test]
async fn an_epoch_of_a_touchpoint_reaches_the_other_replica() {
    let change = async |pair: &Pair| {
        let request = pb::RevokeTouchpointSessionsRequest {
            touchpoint: "web".to_owned(),
            reason: pb::RevokeReason::Compromised.into(),
            ..Default::default()
        };
        pair.here.sessions().revoke_touchpoint_sessions(request).await.answer();
    };
    reaches("a touchpoint's epoch", pb::SessionPolicy::default(), nothing, change, is_revoked).await;
}

#[tokio::test]
async fn an_epoch_of_the_tenant_reaches_the_other_replica() {
    let change = async |pair: &Pair| {
        let reason = pb::RevokeReason::Compromised.into();
        let request = pb::RevokeTenantSessionsRequest { reason, ..Default::default() };
        pair.here.sessions().revoke_tenant_sessions(request).await.answer();
    };
    reaches("the tenant's epoch", pb::SessionPolicy::default(), nothing, change, is_revoked).await;
}

#[tokio::test]
async fn a_disabled_subject_reaches_the_other_replica() {
    let change = async |pair: &Pair| {
        pair.here.sessions().disable_subject(disabling("lena")).await.answer();
    };
    reaches("a disabled subject", pb::SessionPolicy::default(), nothing, change, is_revoked).await;
}

#[tokio::test]
async fn an_eviction_reaches_the_other_replica() {
    let policy = limited(1, SessionLimitAction::EvictLeastRecent);
    let change = async |pair: &Pair| drop(log_in(&pair.here, "lena").await);
    reaches("an eviction", policy, nothing, change, is_revoked).await;
}

#[tokio::test]
async fn a_changed_policy_reaches_the_other_replica() {
    let change = async |pair: &Pair| set_policy(&pair.here, short()).await;
    let is_seen = |answer: &ValidateSessionResponse| {
        let session = answer.session.as_ref().unwrap();
        let deadline = from_proto(session.idle_deadline.unwrap()).unwrap();
        deadline - from_proto(session.last_seen_time.unwrap()).unwrap() == IDLE + FLUSH
    };
    reaches("a changed policy", pb::SessionPolicy::default(), nothing, change, is_seen).await;
}

#[tokio::test]
async fn the_first_use_of_a_rotated_token_reaches_the_other_replica() {
    let prepare = async |pair: &Pair| {
        rotate(&pair.here, &pair.token).await;
        // Beyond the grace: from now on only the successor's first use ends the token.
        pair.stack.advance(TimeDelta::seconds(31));
    };
    let change = async |pair: &Pair| {
        let successor = rotate(&pair.here, &pair.token).await;
        assert_eq!(validate(&pair.here, &successor).await.verdict(), Verdict::Active);
    };
    let is_seen = |answer: &ValidateSessionResponse| {
        (answer.verdict(), answer.token_grade()) == (Verdict::TokenSuperseded, TokenGrade::Race)
    };
    reaches("a token's first use", pb::SessionPolicy::default(), prepare, change, is_seen).await;
}

#[tokio::test]
async fn an_authentication_reaches_the_other_replica() {
    let change = async |pair: &Pair| drop(authenticate(&pair.here, &pair.token, identity("lena", 2)).await);
    let is_seen = |answer: &ValidateSessionResponse| answer.token_grade() == TokenGrade::Orphan;
    reaches("an authentication", pb::SessionPolicy::default(), nothing, change, is_seen).await;
}

#[tokio::test]
async fn a_session_that_one_replica_made_is_known_to_the_other_at_once() {
    let pair = Pair::start(pb::SessionPolicy::default()).await;
    for _ in 0..20 {
        let (_, token) = create_session(&pair.here).await;
        assert_eq!(validate(&pair.there, &token).await.verdict(), Verdict::Active);
        let (_, token) = authenticate(&pair.there, &token, identity("max", 1)).await;
        assert_eq!(validate(&pair.here, &token).await.verdict(), Verdict::Active);
        let successor = rotate(&pair.here, &token).await;
        assert_eq!(validate(&pair.there, &successor).await.verdict(), Verdict::Active);
    }
}
