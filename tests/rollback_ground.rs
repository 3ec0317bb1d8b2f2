//! What was rolled out with success is taken back with all that stands on it: what needs it goes back first, whoever owns
//! it, and the answer names it.

use shared::issuer::Grant;
use shared::pb::release as pb;
use shared::pb::release::{RolloutMode, RolloutState};

use crate::dependency::{need, needing, ship, start};
use crate::harness::shop::{create_component, get_rollout, rollback};
use crate::harness::{Answer as _, Caller, Stack, person};

/// `ground` 1.1 for everyone, after 1.0, and somebody else's `house` on it, of which 1.0 serves everyone; `steps` are those
/// of its 1.1.
async fn build(steps: &[i32]) -> (Stack, Caller, pb::Rollout, pb::Rollout) {
    let (stack, caller) = start(&["ground"]).await;
    let builder = stack.caller(&Grant { groups: vec!["builders".to_owned()], ..person("bob") });
    let owner_groups = vec!["builders".to_owned()];
    let house = pb::Component { component: "house".to_owned(), owner_groups, ..Default::default() };
    create_component(&builder, house).await;
    ship(&caller, "ground", "1.0", &[]).await;
    ship(&builder, "house", "1.0", &[]).await;
    let ground = ship(&caller, "ground", "1.1", &[]).await;
    let house = ship(&builder, "house", "1.1", steps).await;
    let mut request = needing("house", vec![need("ground", "", ">=1.1")]);
    let component = request.component.as_mut().unwrap();
    component.owner_groups = vec!["builders".to_owned()];
    assert_eq!(builder.catalog().update_component(request).await.answer().warnings, Vec::<String>::new());
    (stack, caller, ground, house)
}

#[tokio::test]
async fn a_rollout_on_it_that_is_under_way_goes_back_first() {
    let (_stack, caller, ground, house) = build(&[1000]).await;
    assert_eq!(house.state(), RolloutState::Running);
    let answer = caller.rollouts().roll_back_rollout(rollback(&ground)).await.answer();
    let back = answer.rollout.unwrap();
    assert_eq!((back.state(), &back.rollback_of), (RolloutState::RolledBack, &ground.rollout_id));
    let cascaded: Vec<_> = answer.cascaded.iter().map(|it| (it.rollout_id.as_str(), it.state())).collect();
    assert_eq!(cascaded, [(house.rollout_id.as_str(), RolloutState::RolledBack)]);
    let house = get_rollout(&caller, &house).await;
    assert_eq!((house.state(), house.exposure_bps), (RolloutState::RolledBack, 0));
}

#[tokio::test]
async fn a_rollout_on_it_that_has_succeeded_is_taken_back_first() {
    let (_stack, caller, ground, house) = build(&[]).await;
    assert_eq!(house.state(), RolloutState::Succeeded);
    let answer = caller.rollouts().roll_back_rollout(rollback(&ground)).await.answer();
    let back = answer.rollout.unwrap();
    assert_eq!((back.state(), &back.rollback_of), (RolloutState::RolledBack, &ground.rollout_id));
    let cascaded: Vec<_> = answer
        .cascaded
        .iter()
        .map(|it| (it.component.as_str(), it.mode(), it.rollback_of.as_str(), it.state()))
        .collect();
    let house = (house.rollout_id.as_str(), RolloutState::RolledBack);
    assert_eq!(cascaded, [("house", RolloutMode::Rollback, house.0, house.1)]);
}

/// A row that is corrupt, or of a newer version, keeps nothing from going back but itself.
#[tokio::test]
async fn what_stands_on_it_and_cannot_be_read_is_named_and_stays() {
    let plan = "update release.rollouts set plan = '{\"guards\":7}' where component = 'house'";
    // This version's schema has no such scope.
    let scope = "alter table release.components drop constraint components_data_scopes_check; \
                 update release.components set data_scopes = '{NEWER}' where component = 'house'";
    for (newer, steps, stays) in [(plan, &[1000][..], true), (plan, &[], true), (scope, &[1000], false)] {
        let (stack, caller, ground, _) = build(steps).await;
        sqlx::raw_sql(newer).execute(&mut stack.database.connect().await).await.unwrap();
        let answer = caller.rollouts().roll_back_rollout(rollback(&ground)).await.answer();
        assert_eq!(answer.rollout.unwrap().state(), RolloutState::RolledBack);
        assert_eq!(answer.cascaded.is_empty(), stays, "{:?}", answer.cascaded);
        let named = |text: &String| text.starts_with("house cannot be read in ");
        assert_eq!(answer.warnings.iter().any(named), stays, "{:?}", answer.warnings);
    }
}

#[tokio::test]
async fn what_is_under_way_on_top_of_it_and_cannot_be_read_is_named_and_goes_on() {
    let (stack, caller, ground, _) = build(&[]).await;
    ship(&caller, "ground", "1.2", &[1000]).await;
    let newer = "update release.rollouts set plan = '{\"guards\":7}' \
                 where component = 'ground' and state = 'RUNNING'; \
                 alter table release.releases disable trigger user; \
                 update release.releases set change = '7' where component = 'ground' and semver = '1.1'";
    sqlx::raw_sql(newer).execute(&mut stack.database.connect().await).await.unwrap();
    let answer = caller.rollouts().roll_back_rollout(rollback(&ground)).await.answer();
    let back = answer.rollout.unwrap();
    assert_eq!((back.mode(), &back.rollback_of), (RolloutMode::Rollback, &ground.rollout_id));
    // Its own release cannot be settled, so that the end of the rollback is left to others; nobody gets it any more.
    assert_eq!((back.state(), back.exposure_bps), (RolloutState::RollingBack, 0));
    let named = |text: &String| text.starts_with("what is under way of ground in ");
    assert!(answer.warnings.iter().any(named), "{:?}", answer.warnings);
}
