//! I10: wherever a component is exposed, what the environment serves of what it needs will do, whatever is started,
//! advanced, rolled back and changed, two things at once, on two replicas. What was said with a warning is the exception.
//!
//! The model knows of versions their first number only, and reads what is served from the tables.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use shared::pb::release as pb;
use sqlx::{PgConnection, Row as _};
use tonic::Status;

use crate::dependency::{approved, need, needing, start_of};
use crate::harness::shop::{advance, create_component, rollback};
use crate::harness::{Answer as _, Caller, Options, Stack, person, reason_of};

const COMPONENTS: usize = 4;
const ENVIRONMENTS: [&str; 2] = ["prod", "staging"];
/// Each with the first numbers that meet it.
const CONSTRAINTS: [(&str, &[u32]); 5] =
    [("*", &[1, 2, 3]), ("^1", &[1]), ("^2", &[2]), (">=2", &[2, 3]), ("<3", &[1, 2])];
const SEEDS: u64 = 3;
const ROUNDS: usize = 40;

/// Who needs what, where.
type Pair = (String, String, String);

enum Command {
    Start { release_id: String, environment: &'static str },
    Advance(pb::Rollout),
    RollBack(pb::Rollout),
    Need { component: String, needs: Vec<pb::Dependency> },
}

/// What came of commands, so that a test of nothing is noticed.
#[derive(Default, Debug)]
struct Tally {
    blocked: usize,
    exposed: usize,
    warned: usize,
    cascaded: usize,
    cycles: usize,
}

fn first_number(version: &str) -> u32 {
    version.split('.').next().unwrap().parse().unwrap()
}

fn is_met(constraint: &str, version: &str) -> bool {
    CONSTRAINTS
        .iter()
        .any(|(text, met)| *text == constraint && met.contains(&first_number(version)))
}

/// Every pair that does not hold where it ought to.
async fn unmet(db: &mut PgConnection) -> BTreeSet<Pair> {
    let rows = sqlx::query(
        "select component, environment, stable_semver,
            case when exposure_bps > 0 then rollout_semver end as canary_semver
        from release.routes where stable_semver is not null or exposure_bps > 0",
    );
    let rows = rows.fetch_all(&mut *db).await.unwrap();
    let served: BTreeMap<(String, String), (Option<String>, Option<String>)> = rows
        .iter()
        .map(|row| ((row.get(0), row.get(1)), (row.get(2), row.get(3))))
        .collect();
    let edges = sqlx::query(
        "select component, depends_on, environment, version_constraint from release.dependencies",
    );
    let mut unmet = BTreeSet::new();
    for edge in edges.fetch_all(db).await.unwrap() {
        let (component, on): (String, String) = (edge.get(0), edge.get(1));
        let (place, constraint): (Option<String>, String) = (edge.get(2), edge.get(3));
        for (at, environment) in served.keys() {
            if *at != component || place.as_ref().is_some_and(|place| place != environment) {
                continue;
            }
            let found = served.get(&(on.clone(), environment.clone()));
            let will_do = |version: &Option<String>| version.as_ref().map(|it| is_met(&constraint, it));
            let stable = found.and_then(|found| will_do(&found.0)).unwrap_or(false);
            let canary = found.and_then(|found| will_do(&found.1)).unwrap_or(true);
            if !stable || !canary {
                unmet.insert((component.clone(), on.clone(), environment.clone()));
            }
        }
    }
    unmet
}

async fn running(caller: &Caller) -> Vec<pb::Rollout> {
    let request = pb::ListRolloutsRequest {
        states: vec![pb::RolloutState::Running.into()],
        page_size: 1000,
        ..Default::default()
    };
    caller.rollouts().list_rollouts(request).await.answer().rollouts
}

/// Draws a command; `patch` makes its versions new ones.
async fn draw(rng: &mut StdRng, caller: &Caller, seed: u64, patch: &mut u32) -> Command {
    let name = |n: usize| format!("s{seed}-c{n}");
    let running = running(caller).await;
    match (rng.random_range(0..10), running.choose(rng)) {
        (0..3, Some(rollout)) => Command::Advance(rollout.clone()),
        (3, Some(rollout)) => Command::RollBack(rollout.clone()),
        (4 | 5, _) => {
            let drawn = (0..rng.random_range(0..3)).map(|_| {
                let on = name(rng.random_range(0..COMPONENTS));
                let environment = *["", ENVIRONMENTS[0], ENVIRONMENTS[1]].choose(rng).unwrap();
                ((on, environment), CONSTRAINTS.choose(rng).unwrap().0)
            });
            let drawn: BTreeMap<_, _> = drawn.collect();
            let needs = drawn.into_iter().map(|((on, place), constraint)| need(&on, place, constraint));
            Command::Need { component: name(rng.random_range(0..COMPONENTS)), needs: needs.collect() }
        }
        _ => {
            *patch += 1;
            let component = name(rng.random_range(0..COMPONENTS));
            let version = format!("{}.0.{patch}", rng.random_range(1..=3));
            let release_id = approved(caller, &component, &version).await;
            Command::Start { release_id, environment: ENVIRONMENTS.choose(rng).unwrap() }
        }
    }
}

/// Carries a command out; the pairs that it was warned of.
async fn run(caller: &Caller, command: &Command, tally: &mut Tally) -> BTreeSet<Pair> {
    let mut rollouts = caller.rollouts();
    let refused: Status = match command {
        Command::Start { release_id, environment } => {
            match rollouts.start_rollout(start_of(release_id, environment, &[1000, 5000])).await {
                Ok(_) => {
                    tally.exposed += 1;
                    return BTreeSet::new();
                }
                Err(status) => status,
            }
        }
        Command::Advance(rollout) => match rollouts.advance_rollout(advance(rollout)).await {
            Ok(_) => {
                tally.exposed += 1;
                return BTreeSet::new();
            }
            Err(status) => status,
        },
        Command::RollBack(rollout) => match rollouts.roll_back_rollout(rollback(rollout)).await {
            Ok(answer) => {
                tally.cascaded += answer.into_inner().cascaded.len();
                return BTreeSet::new();
            }
            // It has succeeded meanwhile; nothing else stands in the way.
            Err(status) => {
                assert_eq!(reason_of(&status), "ROLLOUT_WRONG_STATE", "{status:?}");
                return BTreeSet::new();
            }
        },
        Command::Need { component, needs } => {
            match caller.catalog().update_component(needing(component, needs.clone())).await {
                Ok(answer) => {
                    let warnings = answer.into_inner().warnings;
                    tally.warned += warnings.len();
                    return warnings.iter().map(|text| pair(text)).collect();
                }
                Err(status) => status,
            }
        }
    };
    match reason_of(&refused).as_str() {
        "ROLLOUT_BLOCKED" => tally.blocked += 1,
        "DEPENDENCY_CYCLE" => tally.cycles += 1,
        "ROLLOUT_WRONG_STATE" | "FIELD_INVALID" => {}
        // Not a deadlock, nor a wait that was too long.
        "CONCURRENT_CHANGE" => assert!(refused.message().contains("just changed"), "{refused:?}"),
        _ => panic!("{refused:?}"),
    }
    BTreeSet::new()
}

/// Of a sentence such as `shop needs pay ^2, and pay is 1.0 in prod`.
fn pair(warning: &str) -> Pair {
    let mut words = warning.split(' ');
    let component = words.next().unwrap().to_owned();
    let on = words.nth(1).unwrap().to_owned();
    (component, on, words.next_back().unwrap().to_owned())
}

async fn start() -> (Stack, Caller) {
    let stack = Stack::releases();
    let caller = stack.caller(&person("ada"));
    for environment in ENVIRONMENTS {
        let environment = pb::Environment { environment: environment.to_owned(), ..Default::default() };
        let request = pb::CreateEnvironmentRequest { environment: Some(environment), ..Default::default() };
        caller.catalog().create_environment(request).await.answer();
    }
    (stack, caller)
}

#[tokio::test]
async fn i10_what_is_exposed_finds_what_it_needs() {
    let (stack, caller) = start().await;
    let replica = stack.release_svc(&Options::default());
    let there = caller.at_release(&replica);
    let mut db = stack.database.connect().await;
    let mut tally = Tally::default();
    for seed in 0..SEEDS {
        let (mut rng, mut patch) = (StdRng::seed_from_u64(seed), 0);
        for n in 0..COMPONENTS {
            let component = format!("s{seed}-c{n}");
            create_component(&caller, pb::Component { component: component.clone(), ..Default::default() })
                .await;
            // A line below the last is open only if it was opened before.
            for line in 1..=3 {
                approved(&caller, &component, &format!("{line}.0.0")).await;
            }
        }
        for round in 0..ROUNDS {
            let before = unmet(&mut db).await;
            let one = draw(&mut rng, &caller, seed, &mut patch).await;
            let two = draw(&mut rng, &caller, seed, &mut patch).await;
            let (mut here_tally, mut there_tally) = (Tally::default(), Tally::default());
            let (warned, also_warned) =
                tokio::join!(run(&caller, &one, &mut here_tally), run(&there, &two, &mut there_tally));
            for part in [here_tally, there_tally] {
                tally.blocked += part.blocked;
                tally.exposed += part.exposed;
                tally.warned += part.warned;
                tally.cascaded += part.cascaded;
                tally.cycles += part.cycles;
            }
            let after = unmet(&mut db).await;
            let unsaid: Vec<_> = after
                .iter()
                .filter(|pair| {
                    !before.contains(*pair) && !warned.contains(*pair) && !also_warned.contains(*pair)
                })
                .collect();
            assert!(unsaid.is_empty(), "seed {seed}, round {round}: {unsaid:?}");
        }
    }
    let Tally { blocked, exposed, warned, cascaded, cycles } = tally;
    assert!(
        blocked > 10 && exposed > 30 && warned > 0 && cycles > 0,
        "{blocked} {exposed} {warned} {cascaded} {cycles}"
    );
}
