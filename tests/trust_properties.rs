//! What holds of sessions whatever happens to them and in whatever order: deadlines, revocations, and the graph of tokens.
//! Commands are drawn from a seed, which a failure names.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use shared::pb::session as pb;
use shared::pb::session::{TokenGrade, Verdict};
use shared::time::to_proto;
use tonic::Status;

use crate::harness::shop::{
    add_line, create_session, line, revoke, seconds, validate, validate_strong, validation,
};
use crate::harness::trust::{
    BEYOND_BOUND, authenticate, authentication, elevation, ends_at, get, grade_of, identity, log_in, persist,
    rotate, rotation, set_policy, setting, start, start_with,
};
use crate::harness::{Answer as _, Caller, Options, Stack, reason_of, workload};

const DAY: i64 = 24 * 3600;

fn days(absolute: i64) -> pb::SessionPolicy {
    pb::SessionPolicy {
        idle_timeout: Some(seconds(10 * DAY)),
        absolute_lifetime: Some(seconds(absolute * DAY)),
        ..Default::default()
    }
}

async fn start_again(stack: &mut Stack) -> Caller {
    stack.stop_session().await;
    stack.session = Some(stack.session_svc(&Options::default()));
    stack.caller(&workload("storefront"))
}

#[tokio::test]
async fn nothing_but_an_authentication_moves_an_absolute_deadline() {
    let (mut stack, mut caller) = start_with(days(20)).await;
    for seed in 0..3 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut lifetime = TimeDelta::days(20);
        set_policy(&caller, days(20)).await;
        let (session, mut token) = create_session(&caller).await;
        let mut end = stack.now() + lifetime;
        for step in 0..40 {
            match rng.random_range(0..12) {
                0 => assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active),
                1 => assert_eq!(validate_strong(&caller, &token).await.verdict(), Verdict::Active),
                2 => drop(rotate(&caller, &token).await),
                3 => token = rotate(&caller, &token).await,
                4 => drop(add_line(&caller, &token, "85123A", 1).await),
                5 => {
                    let absolute = rng.random_range(10..60);
                    lifetime = TimeDelta::days(absolute);
                    set_policy(&caller, days(absolute)).await;
                }
                6 => caller = start_again(&mut stack).await,
                7 => {
                    let bound = stack.now() + TimeDelta::days(rng.random_range(5..70));
                    let session_end_time = Some(to_proto(bound));
                    let proved = pb::AssertedIdentity { session_end_time, ..identity("lena", 1) };
                    token = authenticate(&caller, &token, proved).await.1;
                    end = bound.min(stack.now() + lifetime);
                }
                8 => {
                    let request = setting(&token, "colour", "blue");
                    caller.sessions().update_session_attributes(request).await.answer();
                }
                9 => drop(caller.sessions().grant_elevation(elevation(&token)).await.answer()),
                _ => stack.advance(TimeDelta::seconds(rng.random_range(0..7200))),
            }
            assert_eq!(ends_at(&get(&caller, &session).await), end, "seed {seed}, step {step}");
        }
        while end - stack.now() > TimeDelta::days(8) {
            stack.advance(TimeDelta::days(8));
            assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active, "seed {seed}");
        }
        stack.advance(end - stack.now() - TimeDelta::microseconds(1));
        assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Active, "seed {seed}");
        stack.advance(TimeDelta::microseconds(1));
        assert_eq!(validate(&caller, &token).await.verdict(), Verdict::Expired, "seed {seed}");
    }
}

/// How far a revocation has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Open,
    Acknowledged,
    BeyondBound,
}

/// A session that several use while one revokes it.
struct Contended {
    tokens: RefCell<Vec<String>>,
    phase: Cell<Phase>,
    found_active: Cell<u32>,
}

impl Contended {
    fn newest_or_any(&self, rng: &mut StdRng) -> String {
        let tokens = self.tokens.borrow();
        let back = if rng.random_bool(0.7) { 0 } else { rng.random_range(0..tokens.len()) };
        tokens[tokens.len() - 1 - back].clone()
    }

    /// Uses the session until its revocation holds everywhere, and a little longer.
    async fn use_it(&self, replicas: [&Caller; 2], seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut left = 6;
        while left > 0 {
            left -= u32::from(self.phase.get() == Phase::BeyondBound);
            let (token, at) = (self.newest_or_any(&mut rng), rng.random_range(0..2));
            let (caller, before) = (replicas[at], self.phase.get());
            // Only what the other replica remembers may lag behind.
            let may_lag = at == 1 && before < Phase::BeyondBound;
            let lived = match rng.random_range(0..7) {
                n @ 0..=3 => {
                    let is_strong = n == 0;
                    let consistency =
                        if is_strong { pb::Consistency::Strong } else { pb::Consistency::Bounded };
                    let request = validation(&token, consistency);
                    let answer = caller.sessions().validate_session(request).await;
                    let lived = answer.is_ok_and(|answer| answer.into_inner().verdict() == Verdict::Active);
                    lived && (is_strong || !may_lag)
                }
                4 => {
                    let rotated = caller.sessions().rotate_session(rotation(&token)).await;
                    self.keep(rotated.map(|answer| answer.into_inner().session_token))
                }
                5 => {
                    let request = authentication(&token, identity("lena", 1));
                    let answer = caller.sessions().authenticate_session(request).await;
                    self.keep(answer.map(|answer| answer.into_inner().session_token))
                }
                _ => caller.carts().add_cart_line(line(&token, "85123A", 1)).await.is_ok() && !may_lag,
            };
            self.found_active.set(self.found_active.get() + u32::from(lived));
            assert!(!lived || before == Phase::Open, "seed {seed}: it came back");
        }
    }

    fn keep(&self, token: Result<String, Status>) -> bool {
        let is_new = token.is_ok();
        self.tokens.borrow_mut().extend(token);
        is_new
    }
}

#[tokio::test]
async fn no_interleaving_revives_a_revoked_session() {
    let (stack, here) = start().await;
    let replica = stack.session_svc(&Options::default());
    let there = here.at_session(&replica);
    let mut found_active = 0;
    for seed in 0..30 {
        let (session, token) = log_in(&here, "lena").await;
        let contended = Contended {
            tokens: RefCell::new(vec![token]),
            phase: Cell::new(Phase::Open),
            found_active: Cell::new(0),
        };
        let pause = async |millis: u64| tokio::time::sleep(Duration::from_millis(millis)).await;
        let revoking = async {
            pause(5 + seed % 13).await;
            revoke(&here, &session).await;
            contended.phase.set(Phase::Acknowledged);
            pause(10).await;
            stack.advance(BEYOND_BOUND);
            contended.phase.set(Phase::BeyondBound);
        };
        let users = (0..6).map(|user| contended.use_it([&here, &there], seed * 100 + user));
        tokio::join!(revoking, join_all(users));
        found_active += contended.found_active.get();
    }
    assert!(found_active > 100, "sessions were in use: {found_active}");
}

/// What became of one token that was presented.
enum Outcome {
    Rotated { parent: String, child: String },
    Stale,
    Revoked,
    Other,
}

/// Presents a token that was handed out, for a successor or a verdict.
async fn present(caller: &Caller, token: String, action: u32) -> Outcome {
    if action < 4 {
        let rotated = persist(async || caller.sessions().rotate_session(rotation(&token)).await).await;
        return match rotated {
            Ok(answer) => Outcome::Rotated { parent: token, child: answer.session_token },
            Err(status) if grade_of(&status) == "STALE_LINEAGE" => Outcome::Stale,
            Err(status) if reason_of(&status) == "SESSION_REVOKED" => Outcome::Revoked,
            Err(status) => {
                assert_eq!(reason_of(&status), "SESSION_TOKEN_SUPERSEDED", "{status:?}");
                Outcome::Other
            }
        };
    }
    let consistency = if action < 6 { pb::Consistency::Strong } else { pb::Consistency::Bounded };
    let request = validation(&token, consistency);
    let found = persist(async || caller.sessions().validate_session(request.clone()).await)
        .await
        .unwrap();
    match (found.verdict(), found.token_grade()) {
        (Verdict::TokenSuperseded, TokenGrade::StaleLineage) => Outcome::Stale,
        (Verdict::Revoked, _) => Outcome::Revoked,
        (Verdict::Active | Verdict::TokenSuperseded, _) => Outcome::Other,
        other => panic!("{other:?} for a token that was handed out"),
    }
}

#[tokio::test]
async fn the_graph_of_tokens_has_at_most_one_live_leaf() {
    let (stack, here) = start().await;
    let replica = stack.session_svc(&Options::default());
    let replicas = [here.clone(), here.at_session(&replica)];
    let (mut stolen, mut rotated) = (0, 0);
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (_, root) = create_session(&here).await;
        let (mut tokens, mut children) = (vec![root], HashMap::<String, String>::new());
        let mut is_stolen = false;
        for _ in 0..8 {
            let burst: Vec<_> = (0..6)
                .map(|_| {
                    let back = rng.random_range(0..3).min(tokens.len() - 1);
                    let token = tokens[tokens.len() - 1 - back].clone();
                    present(&replicas[rng.random_range(0..2)], token, rng.random_range(0..9))
                })
                .collect();
            let mut is_revoked = false;
            for outcome in join_all(burst).await {
                match outcome {
                    Outcome::Stale => is_stolen = true,
                    Outcome::Revoked => is_revoked = true,
                    Outcome::Other => {}
                    Outcome::Rotated { parent, child } => {
                        let known = children.entry(parent).or_insert_with(|| child.clone());
                        assert_eq!(*known, child, "seed {seed}: a parent has one child");
                        if !tokens.contains(&child) {
                            tokens.push(child);
                        }
                    }
                }
            }
            assert!(is_stolen || !is_revoked, "seed {seed}: it ended, and no token was stale");
            if is_stolen {
                break;
            }
            if rng.random_bool(0.4) {
                stack.advance(TimeDelta::seconds(rng.random_range(0..20)));
            }
        }
        let distinct: HashSet<_> = children.values().collect();
        assert_eq!((distinct.len(), children.len()), (tokens.len() - 1, tokens.len() - 1), "seed {seed}");
        let leaf = tokens.iter().find(|token| !children.contains_key(*token)).unwrap();
        let found = validate_strong(&here, leaf).await;
        if is_stolen {
            assert_eq!(found.verdict(), Verdict::Revoked, "seed {seed}");
        } else {
            let grade = (found.verdict(), found.token_grade());
            assert_eq!(grade, (Verdict::Active, TokenGrade::Current), "seed {seed}");
        }
        for token in tokens.iter().filter(|token| *token != leaf) {
            let grade = validate_strong(&here, token).await.token_grade();
            assert_ne!(grade, TokenGrade::Current, "seed {seed}: two leaves");
        }
        stolen += u32::from(is_stolen);
        rotated += children.len();
    }
    assert!(stolen > 0 && stolen < 20 && rotated > 40, "{stolen} stolen, {rotated} rotated");
}
