//! What components need of each other: constraints that are refused, cycles that are named, rollouts that are held back,
//! and rollbacks that take others along.

use chrono::TimeDelta;
use shared::pb::release as pb;
use shared::pb::release::{RolloutMode, RolloutState};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::shop::{advance, create_catalog, create_component, get_rollout, rollback};
use crate::harness::{Answer as _, Caller, ENVIRONMENT, Options, Stack, eventually, person, reason_of};

pub(crate) fn need(on: &str, environment: &str, constraint: &str) -> pb::Dependency {
    pb::Dependency {
        component: on.to_owned(),
        environment: environment.to_owned(),
        constraint: constraint.to_owned(),
    }
}

pub(crate) fn needing(component: &str, dependencies: Vec<pb::Dependency>) -> pb::UpdateComponentRequest {
    let component =
        Some(pb::Component { component: component.to_owned(), dependencies, ..Default::default() });
    pb::UpdateComponentRequest { component, ..Default::default() }
}

/// Says what a component needs; answers the warnings.
async fn set_needs(caller: &Caller, component: &str, needs: Vec<pb::Dependency>) -> Vec<String> {
    caller
        .catalog()
        .update_component(needing(component, needs))
        .await
        .answer()
        .warnings
}

/// An approved release.
pub(crate) async fn approved(caller: &Caller, component: &str, version: &str) -> String {
    let request = pb::CreateReleaseRequest {
        component: component.to_owned(),
        version: version.to_owned(),
        ..Default::default()
    };
    let release_id = caller
        .releases()
        .create_release(request)
        .await
        .answer()
        .release
        .unwrap()
        .release_id;
    let request = pb::SubmitReleaseRequest { release_id: release_id.clone(), ..Default::default() };
    caller.releases().submit_release(request).await.answer();
    release_id
}

pub(crate) fn start_of(release_id: &str, environment: &str, steps: &[i32]) -> pb::StartRolloutRequest {
    pb::StartRolloutRequest {
        release_id: release_id.to_owned(),
        environment: environment.to_owned(),
        step_exposures_bps: steps.to_vec(),
        ..Default::default()
    }
}

async fn try_ship(
    caller: &Caller,
    component: &str,
    version: &str,
    steps: &[i32],
) -> Result<pb::Rollout, Status> {
    let release = approved(caller, component, version).await;
    let started = caller.rollouts().start_rollout(start_of(&release, ENVIRONMENT, steps)).await?;
    Ok(started.into_inner().rollout.unwrap())
}

pub(crate) async fn ship(caller: &Caller, component: &str, version: &str, steps: &[i32]) -> pb::Rollout {
    try_ship(caller, component, version, steps).await.unwrap()
}

pub(crate) async fn start(components: &[&str]) -> (Stack, Caller) {
    let stack = Stack::releases();
    let caller = stack.caller(&person("ada"));
    create_catalog(&caller).await;
    for component in components {
        let component = pb::Component { component: (*component).to_owned(), ..Default::default() };
        create_component(&caller, component).await;
    }
    (stack, caller)
}

#[track_caller]
pub(crate) fn assert_blocked(status: &Status, expected: &[(&str, &str, &str)]) {
    assert_eq!((status.code(), reason_of(status).as_str()), (Code::FailedPrecondition, "ROLLOUT_BLOCKED"));
    let violations = status.get_details_precondition_failure().unwrap().violations;
    let found = violations.iter().map(|it| {
        let (why, _who) = it.description.split_once("; lifted by ").unwrap();
        (it.r#type.as_str(), it.subject.as_str(), why)
    });
    assert_eq!(found.collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn dependencies_that_make_no_sense_are_refused() {
    let (_stack, caller) = start(&["pay", "shop"]).await;
    let many = (0..65).map(|n| need(&format!("c{n}"), "", "*")).collect();
    for bad in [
        vec![need("shop", "", "*")],
        vec![need("shop", "local", "^1")],
        vec![need("pay", "", ">2, <1")],
        vec![need("pay", "", ">=2"), need("pay", "local", "<2")],
        vec![need("pay", "", "1"), need("pay", "", "1")],
        vec![need("pay", "", "")],
        vec![need("pay", "", "latest")],
        vec![need("Pay", "", "*")],
        vec![need("pay", "No", "*")],
        many,
    ] {
        let refused = caller.catalog().update_component(needing("shop", bad)).await;
        refused.refused(Code::InvalidArgument, "FIELD_INVALID");
    }
    let unknown = caller
        .catalog()
        .update_component(needing("shop", vec![need("stock", "", "*")]))
        .await;
    unknown.refused(Code::NotFound, "COMPONENT_NOT_FOUND");
    let nowhere = caller
        .catalog()
        .update_component(needing("shop", vec![need("pay", "mars", "*")]))
        .await;
    nowhere.refused(Code::NotFound, "ENVIRONMENT_NOT_FOUND");
    let request = pb::GetComponentRequest { component: "shop".to_owned() };
    assert_eq!(
        caller
            .catalog()
            .get_component(request)
            .await
            .answer()
            .component
            .unwrap()
            .dependencies,
        []
    );
}

#[tokio::test]
async fn dependencies_are_kept_in_order_and_replaced_as_a_whole() {
    let (_stack, caller) = start(&["pay", "ledger"]).await;
    let dependencies = vec![need("pay", "local", "^1.2"), need("pay", "", ">=1"), need("ledger", "", "*")];
    let component = pb::Component { component: "shop".to_owned(), dependencies, ..Default::default() };
    let created = create_component(&caller, component).await;
    let sorted = [need("ledger", "", "*"), need("pay", "", ">=1"), need("pay", "local", "^1.2")];
    assert_eq!(created.dependencies, sorted);
    let listed = caller
        .catalog()
        .list_components(pb::ListComponentsRequest::default())
        .await
        .answer();
    let shop = listed.components.iter().find(|it| it.component == "shop");
    assert_eq!(shop, Some(&created));
    set_needs(&caller, "shop", vec![need("pay", "", "^2")]).await;
    let request = pb::GetComponentRequest { component: "shop".to_owned() };
    let read = caller.catalog().get_component(request).await.answer().component.unwrap();
    assert_eq!(read.dependencies, [need("pay", "", "^2")]);
}

#[tokio::test]
async fn a_cycle_is_refused_and_named() {
    let (_stack, caller) = start(&["a", "b", "c"]).await;
    set_needs(&caller, "a", vec![need("b", "", "*")]).await;
    set_needs(&caller, "b", vec![need("c", "local", "*")]).await;
    let status = caller.catalog().update_component(needing("c", vec![need("a", "", "*")])).await;
    let status = status.refused(Code::FailedPrecondition, "DEPENDENCY_CYCLE");
    assert_eq!(status.message(), "c would depend on itself: c -> a -> b -> c");
    let metadata = status.get_details_error_info().unwrap().metadata;
    assert_eq!((metadata["cycle"].as_str(), metadata["environment"].as_str()), ("c,a,b,c", "local"));
}

/// Neither change names what the other does, so that no row of theirs is the same.
#[tokio::test]
async fn of_two_changes_that_make_a_cycle_together_one_is_made() {
    let (stack, caller) = start(&[]).await;
    let replica = stack.release_svc(&Options::default());
    let (mut here, mut there) = (caller.catalog(), caller.at_release(&replica).catalog());
    for n in 0..10 {
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| format!("{name}{n}"));
        for name in [&a, &b, &c, &d] {
            create_component(&caller, pb::Component { component: name.clone(), ..Default::default() }).await;
        }
        set_needs(&caller, &a, vec![need(&b, "", "*")]).await;
        set_needs(&caller, &c, vec![need(&d, "", "*")]).await;
        let (one, two) = tokio::join!(
            here.update_component(needing(&b, vec![need(&c, "", "*")])),
            there.update_component(needing(&d, vec![need(&a, "", "*")])),
        );
        let refused: Vec<_> = [one.err(), two.err()].into_iter().flatten().collect();
        assert_eq!(refused.iter().map(reason_of).collect::<Vec<_>>(), ["DEPENDENCY_CYCLE"], "{n}");
    }
}

#[tokio::test]
async fn a_component_waits_for_what_it_needs() {
    let (_stack, caller) = start(&["pay", "shop"]).await;
    set_needs(&caller, "shop", vec![need("pay", "local", "^2")]).await;
    let status = try_ship(&caller, "shop", "1.0", &[]).await.unwrap_err();
    assert_blocked(&status, &[("DEPENDENCY", "pay", "shop needs pay ^2, and pay is not there in local")]);
    ship(&caller, "pay", "1.0", &[]).await;
    let canary = ship(&caller, "pay", "2.0", &[1000]).await;
    let status = try_ship(&caller, "shop", "1.1", &[]).await.unwrap_err();
    assert_blocked(&status, &[("DEPENDENCY", "pay", "shop needs pay ^2, and pay is 1.0 in local")]);
    caller.rollouts().advance_rollout(advance(&canary)).await.answer();
    caller.rollouts().advance_rollout(advance(&canary)).await.answer();
    ship(&caller, "shop", "1.2", &[]).await;
}

#[tokio::test]
async fn what_somebody_needs_is_not_taken_from_under_them() {
    let (_stack, caller) = start(&["pay", "shop"]).await;
    set_needs(&caller, "shop", vec![need("pay", "", "^1")]).await;
    ship(&caller, "pay", "1.0", &[]).await;
    let early = ship(&caller, "pay", "2.0", &[1000]).await;
    let status = try_ship(&caller, "shop", "1.0", &[]).await.unwrap_err();
    assert_blocked(&status, &[("DEPENDENCY", "pay", "shop needs pay ^1, and pay is 2.0 in local")]);
    caller.rollouts().roll_back_rollout(rollback(&early)).await.answer();
    ship(&caller, "shop", "1.1", &[]).await;
    let status = try_ship(&caller, "pay", "2.1", &[1000]).await.unwrap_err();
    let blocker = ("DEPENDENCY", "shop", "shop needs pay ^1, and pay is 2.1 in local");
    assert_blocked(&status, &[blocker]);
    // Looser first, and tighter again while it is on its way.
    set_needs(&caller, "shop", vec![need("pay", "", ">=1")]).await;
    let canary = ship(&caller, "pay", "2.2", &[1000]).await;
    let warnings = set_needs(&caller, "shop", vec![need("pay", "", "^1")]).await;
    assert_eq!(warnings, ["shop needs pay ^1, and pay is 2.2 in local"]);
    let status = caller.rollouts().advance_rollout(advance(&canary)).await.unwrap_err();
    assert_blocked(&status, &[("DEPENDENCY", "shop", "shop needs pay ^1, and pay is 2.2 in local")]);
    caller.rollouts().roll_back_rollout(rollback(&canary)).await.answer();
}

#[tokio::test]
async fn a_rollback_takes_dependants_along_and_warns_of_those_that_stay() {
    let (_stack, caller) = start(&["ledger", "pay", "shop", "desk"]).await;
    for component in ["ledger", "pay", "shop", "desk"] {
        ship(&caller, component, "1.0", &[]).await;
    }
    let ledger = ship(&caller, "ledger", "2.0", &[1000]).await;
    let pay = ship(&caller, "pay", "2.0", &[1000]).await;
    let shop = ship(&caller, "shop", "2.0", &[1000]).await;
    set_needs(&caller, "pay", vec![need("ledger", "", "^2")]).await;
    set_needs(&caller, "shop", vec![need("pay", "", "^2")]).await;
    set_needs(&caller, "desk", vec![need("ledger", "", "^2")]).await;
    let answer = caller.rollouts().roll_back_rollout(rollback(&ledger)).await.answer();
    let cascaded: Vec<_> = answer.cascaded.iter().map(|it| (it.rollout_id.as_str(), it.state())).collect();
    assert_eq!(
        cascaded,
        [
            (shop.rollout_id.as_str(), RolloutState::RolledBack),
            (pay.rollout_id.as_str(), RolloutState::RolledBack)
        ]
    );
    assert_eq!(answer.rollout.unwrap().state(), RolloutState::RolledBack);
    assert_eq!(
        answer.warnings,
        [
            "desk needs ledger ^2, and ledger is 1.0 in local",
            "pay needs ledger ^2, and ledger is 1.0 in local",
            "shop needs pay ^2, and pay is 1.0 in local",
        ]
    );
    let reason = get_rollout(&caller, &pay).await.rollback_reason;
    assert_eq!(reason, format!("ledger 2.0 is rolled back ({})", ledger.rollout_id));
    let again = caller.rollouts().roll_back_rollout(rollback(&ledger)).await.answer();
    assert_eq!((again.cascaded, again.warnings), (vec![], Vec::<String>::new()));
}

#[tokio::test]
async fn a_rollback_after_success_takes_along_what_came_since() {
    let (stack, caller) = start(&["ledger", "pay", "shop", "desk"]).await;
    for component in ["ledger", "pay", "shop", "desk"] {
        ship(&caller, component, "1.0", &[]).await;
    }
    stack.advance(TimeDelta::seconds(1));
    let ledger = ship(&caller, "ledger", "2.0", &[]).await;
    stack.advance(TimeDelta::seconds(1));
    set_needs(&caller, "pay", vec![need("ledger", "", "^2")]).await;
    set_needs(&caller, "desk", vec![need("ledger", "", "^2")]).await;
    let pay = ship(&caller, "pay", "2.0", &[]).await;
    set_needs(&caller, "shop", vec![need("pay", "", "^2")]).await;
    let shop = ship(&caller, "shop", "2.0", &[1000]).await;
    let answer = caller.rollouts().roll_back_rollout(rollback(&ledger)).await.answer();
    let cascaded: Vec<_> = answer
        .cascaded
        .iter()
        .map(|it| (it.component.as_str(), it.mode(), it.state()))
        .collect();
    let back = RolloutState::RolledBack;
    assert_eq!(cascaded, [("shop", RolloutMode::Forward, back), ("pay", RolloutMode::Rollback, back)]);
    assert_eq!(answer.cascaded[0].rollout_id, shop.rollout_id);
    assert_eq!(answer.cascaded[1].rollback_of, pay.rollout_id);
    let taken = answer.rollout.unwrap();
    assert_eq!((taken.mode(), &taken.rollback_of), (RolloutMode::Rollback, &ledger.rollout_id));
    // What was there before ledger 2.0 stays; so does what pay goes back to, for which nobody has changed what it needs.
    assert_eq!(
        answer.warnings,
        [
            "desk needs ledger ^2, and ledger is 1.0 in local",
            "pay needs ledger ^2, and ledger is 1.0 in local",
            "shop needs pay ^2, and pay is 1.0 in local",
        ]
    );
}

#[tokio::test]
async fn a_plan_says_the_order_and_what_would_not_fit() {
    let (_stack, caller) = start(&["ledger", "pay", "shop", "desk"]).await;
    ship(&caller, "ledger", "1.0", &[]).await;
    ship(&caller, "desk", "1.0", &[]).await;
    set_needs(&caller, "desk", vec![need("ledger", "", "^1")]).await;
    set_needs(&caller, "pay", vec![need("ledger", "", ">=2")]).await;
    set_needs(&caller, "shop", vec![need("pay", "", "^3")]).await;
    let ledger = approved(&caller, "ledger", "2.0").await;
    let pay = approved(&caller, "pay", "3.0").await;
    let shop = approved(&caller, "shop", "1.0").await;
    let plan = |ids: &[&String]| pb::PlanRolloutsRequest {
        release_ids: ids.iter().map(ToString::to_string).collect(),
        environment: ENVIRONMENT.to_owned(),
    };
    let answer = caller.rollouts().plan_rollouts(plan(&[&shop, &pay, &ledger])).await.answer();
    let waves: Vec<_> = answer.waves.into_iter().map(|wave| wave.release_ids).collect();
    assert_eq!(waves, [[ledger.clone()], [pay.clone()], [shop.clone()]]);
    let found: Vec<_> = answer.conflicts.iter().map(|it| it.description.as_str()).collect();
    assert_eq!(found, ["desk needs ledger ^1, and ledger is 2.0"]);
    let answer = caller.rollouts().plan_rollouts(plan(&[&shop])).await.answer();
    let conflict = pb::DependencyConflict {
        component: "shop".to_owned(),
        dependency: "pay".to_owned(),
        constraint: "^3".to_owned(),
        found_version: String::new(),
        description: "shop needs pay ^3, and pay is not there".to_owned(),
    };
    assert_eq!(answer.conflicts, [conflict]);
    let older = approved(&caller, "pay", "3.1").await;
    let both = caller.rollouts().plan_rollouts(plan(&[&pay, &older])).await;
    both.refused(Code::InvalidArgument, "FIELD_INVALID");
    let unknown = caller
        .rollouts()
        .plan_rollouts(plan(&[&format!("rel_{}", "0".repeat(32))]))
        .await;
    unknown.refused(Code::NotFound, "RELEASE_NOT_FOUND");
}

#[tokio::test]
async fn a_dependant_that_comes_up_while_a_rollback_waits_for_locks_goes_back_with_it() {
    let (stack, caller) = start(&["pay", "shop"]).await;
    for component in ["pay", "shop"] {
        ship(&caller, component, "1.0", &[]).await;
    }
    let pay = ship(&caller, "pay", "2.0", &[1000]).await;
    let shop = ship(&caller, "shop", "2.0", &[1000]).await;
    let mut holder = stack.database.connect().await;
    sqlx::raw_sql("begin; select from release.components where component = 'pay' for no key update")
        .execute(&mut holder)
        .await
        .unwrap();
    let let_go = async {
        let waiting = "select count(*) from pg_locks join pg_stat_activity using (pid)
            where not granted and datname = current_database()";
        eventually("a rollback that waits", || async {
            (stack.database.count(waiting).await > 0).then_some(())
        })
        .await;
        let begin_to_need =
            "insert into release.dependencies (tenant_id, component, depends_on, version_constraint)
            values ('shop', 'shop', 'pay', '^2'); commit";
        sqlx::raw_sql(begin_to_need).execute(&mut holder).await.unwrap();
    };
    let mut rollouts = caller.rollouts();
    let (answer, ()) = tokio::join!(rollouts.roll_back_rollout(rollback(&pay)), let_go);
    let answer = answer.answer();
    let cascaded: Vec<_> = answer.cascaded.iter().map(|it| it.rollout_id.as_str()).collect();
    assert_eq!(cascaded, [shop.rollout_id.as_str()]);
    assert_eq!(answer.warnings, ["shop needs pay ^2, and pay is 1.0 in local"]);
}
