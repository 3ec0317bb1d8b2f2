//! Environments that ask for success in the one before: how long a release has to stay there, and who says which one that is.

use chrono::TimeDelta;
use shared::issuer::Grant;
use shared::pb::release as pb;
use tonic::{Code, Response, Status};

use crate::dependency::{approved, assert_blocked, ship, start, start_of};
use crate::harness::shop::seconds;
use crate::harness::{Answer as _, Caller, ENVIRONMENT, workload};

fn environment(
    name: &str,
    promotion_order: i32,
    requirements: Option<pb::EnvironmentRequirements>,
) -> pb::CreateEnvironmentRequest {
    let environment =
        pb::Environment { environment: name.to_owned(), promotion_order, requirements, ..Default::default() };
    pb::CreateEnvironmentRequest { environment: Some(environment), ..Default::default() }
}

/// `prod`, which asks for an hour in the environment before it.
async fn create_prod(caller: &Caller) {
    let requirements = pb::EnvironmentRequirements {
        requires_promotion: true,
        min_bake: Some(seconds(3600)),
        required_evidence: vec![],
    };
    let prod = environment("prod", 10, Some(requirements));
    caller.catalog().create_environment(prod).await.answer();
}

async fn roll_out(
    caller: &Caller,
    release: &str,
    environment: &str,
) -> Result<Response<pb::StartRolloutResponse>, Status> {
    caller.rollouts().start_rollout(start_of(release, environment, &[])).await
}

#[tokio::test]
async fn a_release_is_promoted_once_it_has_succeeded_and_baked() {
    let (stack, caller) = start(&["pay"]).await;
    create_prod(&caller).await;
    ship(&caller, "pay", "1.0", &[]).await;
    let release = approved(&caller, "pay", "1.1").await;
    let status = roll_out(&caller, &release, "prod").await.unwrap_err();
    assert_blocked(&status, &[("STATE", &release, "the release must succeed in local first")]);
    roll_out(&caller, &release, ENVIRONMENT).await.answer();
    stack.advance(TimeDelta::seconds(3599));
    let refused = roll_out(&caller, &release, "prod").await;
    refused.refused(Code::FailedPrecondition, "ROLLOUT_BLOCKED");
    stack.advance(TimeDelta::seconds(1));
    roll_out(&caller, &release, "prod").await.answer();
}

#[tokio::test]
async fn a_release_bakes_while_it_serves_everyone_and_going_back_undoes_it() {
    let (stack, caller) = start(&["pay"]).await;
    create_prod(&caller).await;
    caller
        .catalog()
        .create_environment(environment("spare", 20, None))
        .await
        .answer();
    let [first, second, third, fourth] = [
        approved(&caller, "pay", "1.0").await,
        approved(&caller, "pay", "1.1").await,
        approved(&caller, "pay", "1.2").await,
        approved(&caller, "pay", "1.3").await,
    ];
    roll_out(&caller, &first, "spare").await.answer();
    for (release, minutes) in [(&first, 120), (&second, 59), (&third, 60), (&fourth, 120), (&first, 120)] {
        roll_out(&caller, release, ENVIRONMENT).await.answer();
        stack.advance(TimeDelta::minutes(minutes));
    }
    let text =
        "the release was taken out of local again, by an older one or too early, and must succeed there anew";
    // Replaced too early, and by an older one.
    for release in [&second, &fourth] {
        let status = roll_out(&caller, release, "prod").await.unwrap_err();
        assert_blocked(&status, &[("STATE", release, text)]);
    }
    roll_out(&caller, &third, "prod").await.answer();
}

#[tokio::test]
async fn who_says_where_a_release_has_to_be_first_takes_the_scope_of_policies() {
    let (stack, caller) = start(&["pay"]).await;
    create_prod(&caller).await;
    ship(&caller, "pay", "1.0", &[]).await;
    let writer = stack.caller(&Grant { scope: "catalog.write".to_owned(), ..workload("writer") });
    for order in [0, 9] {
        let refused = writer.catalog().create_environment(environment("lax", order, None)).await;
        refused.refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
    }
    writer
        .catalog()
        .create_environment(environment("beside", 10, None))
        .await
        .answer();
    caller.catalog().create_environment(environment("next", 9, None)).await.answer();
    // It counts once it serves the component.
    stack.advance(TimeDelta::hours(1));
    let [early, late] = [approved(&caller, "pay", "1.1").await, approved(&caller, "pay", "1.2").await];
    for (release, place) in [(&early, ENVIRONMENT), (&late, "next")] {
        roll_out(&caller, release, place).await.answer();
    }
    stack.advance(TimeDelta::hours(1));
    let status = roll_out(&caller, &early, "prod").await.unwrap_err();
    assert_blocked(&status, &[("STATE", &early, "the release must succeed in next first")]);
    roll_out(&caller, &late, "prod").await.answer();
}
