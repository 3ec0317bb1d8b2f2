//! What keeps governance from being walked around: by looking at what was written down instead of at what is so, by changing
//! what a freeze is about, under another name, and by breaking the glass again.

use chrono::TimeDelta;
use shared::pb::release as pb;
use shared::pb::release::GovernanceProfile as Profile;
use shared::pb::release::ReleaseState;
use tonic::Code;

use crate::approval::pending;
use crate::break_glass::{break_glass, review};
use crate::harness::govern::{Size, approve, change, emergency, govern, hand_in, revise};
use crate::harness::shop::{get_release, seconds, set_alias, start, submit};
use crate::harness::{Answer as _, Caller, ENVIRONMENT, person};
use crate::window::{create_window, today, update};
use crate::window_hold::{commit, someone_waits};

async fn environment(caller: &Caller) -> pb::Environment {
    let request = pb::GetEnvironmentRequest { environment: ENVIRONMENT.to_owned() };
    caller.catalog().get_environment(request).await.answer().environment.unwrap()
}

fn environment_of(environment: pb::Environment) -> pb::UpdateEnvironmentRequest {
    pb::UpdateEnvironmentRequest { environment: Some(environment), ..Default::default() }
}

fn component_of(component: pb::Component) -> pb::UpdateComponentRequest {
    pb::UpdateComponentRequest { component: Some(component), ..Default::default() }
}

fn storefront(tier: pb::ComponentTier) -> pb::Component {
    pb::Component { component: "storefront".to_owned(), tier: tier.into(), ..Default::default() }
}

#[tokio::test]
async fn what_lapsed_unnoticed_waits_for_votes() {
    let (stack, author) = govern(Profile::Standard).await;
    let boss = stack.caller(&person("boss"));
    let served = hand_in(&author, change("0.9", Size::Small, &[])).await;
    approve(&boss, &served).await;
    author.rollouts().start_rollout(start(&served, &[])).await.answer();
    let exposed = hand_in(&author, change("1.0", Size::Small, &[])).await;
    approve(&boss, &exposed).await;
    author.rollouts().start_rollout(start(&exposed, &[100])).await.answer();
    let approved = hand_in(&author, change("1.1", Size::Small, &[])).await;
    approve(&boss, &approved).await;
    assert_eq!(pending(&boss).await, [""; 0]);
    stack.advance(TimeDelta::hours(72));
    // Nobody has looked at either.
    assert_eq!(pending(&boss).await, ["1.0", "1.1"]);
    assert_eq!(pending(&author).await, [""; 0]);
    assert_eq!(approve(&boss, &exposed).await.state(), ReleaseState::Active);
    assert_eq!(pending(&boss).await, ["1.1"]);
}

#[tokio::test]
async fn what_serves_everyone_everywhere_waits_for_nobody() {
    let (stack, author) = govern(Profile::Standard).await;
    let boss = stack.caller(&person("boss"));
    let release = hand_in(&author, change("1.0", Size::Small, &[])).await;
    approve(&boss, &release).await;
    author.rollouts().start_rollout(start(&release, &[])).await.answer();
    stack.advance(TimeDelta::hours(72));
    assert_eq!(pending(&boss).await, [""; 0]);
    let elsewhere = pb::Environment { environment: "elsewhere".to_owned(), ..Default::default() };
    let request = pb::CreateEnvironmentRequest { environment: Some(elsewhere), ..Default::default() };
    author.catalog().create_environment(request).await.answer();
    assert_eq!(pending(&boss).await, ["1.0"]);
}

#[tokio::test]
async fn a_band_that_rose_unnoticed_waits_for_votes() {
    let (stack, author) = govern(Profile::Standard).await;
    let boss = stack.caller(&person("boss"));
    let component = author
        .catalog()
        .update_component(component_of(storefront(pb::ComponentTier::ComponentTier4)))
        .await
        .answer();
    let release = hand_in(&author, change("1.0", Size::Large, &[])).await;
    assert_eq!(get_release(&author, &release).await.state(), ReleaseState::Approved);
    assert_eq!(pending(&boss).await, [""; 0]);
    let tier = pb::ComponentTier::ComponentTier1.into();
    let raised = pb::Component { tier, ..component.component.unwrap() };
    author.catalog().update_component(component_of(raised)).await.answer();
    assert_eq!(pending(&boss).await, ["1.0"]);
}

#[tokio::test]
async fn nobody_takes_out_of_a_freeze_alone_what_two_people_hold_in_it() {
    for (profile, is_free) in [(Profile::Sox, false), (Profile::Standard, true)] {
        let (_stack, author) = govern(profile).await;
        let request = pb::Environment { region: "eu".to_owned(), ..environment(&author).await };
        author.catalog().update_environment(environment_of(request)).await.answer();
        let scope = |tier: pb::ComponentTier, region: &str| pb::WindowScope {
            tiers: vec![tier.into()],
            regions: vec![region.to_owned()],
            ..Default::default()
        };
        let window = pb::Window { scope: Some(scope(pb::ComponentTier::ComponentTier2, "eu")), ..today() };
        create_window(&author, window).await;
        let moved = pb::Environment { region: "us".to_owned(), ..environment(&author).await };
        let moved = author.catalog().update_environment(environment_of(moved)).await;
        let raised = component_of(storefront(pb::ComponentTier::ComponentTier1));
        let raised = author.catalog().update_component(raised).await;
        if is_free {
            moved.answer();
            raised.answer();
        } else {
            moved.refused(Code::FailedPrecondition, "APPROVAL_POLICY_LAXER");
            raised.refused(Code::FailedPrecondition, "APPROVAL_POLICY_LAXER");
            // What no window is about is free.
            let named = pb::Environment { display_name: "shop".to_owned(), ..environment(&author).await };
            author.catalog().update_environment(environment_of(named)).await.answer();
        }
    }
}

#[tokio::test]
async fn nobody_makes_an_environment_ask_for_less_alone_where_policies_take_two() {
    for (profile, is_free) in [(Profile::Sox, false), (Profile::Standard, true)] {
        let (_stack, author) = govern(profile).await;
        let requirements = |bake| pb::EnvironmentRequirements {
            requires_promotion: true,
            min_bake: Some(seconds(bake)),
            ..Default::default()
        };
        let asking = |stored: pb::Environment, bake| {
            environment_of(pb::Environment { requirements: Some(requirements(bake)), ..stored })
        };
        let strict = asking(environment(&author).await, 3600);
        author.catalog().update_environment(strict).await.answer();
        let laxer = asking(environment(&author).await, 60);
        let laxer = author.catalog().update_environment(laxer).await;
        if is_free {
            laxer.answer();
        } else {
            laxer.refused(Code::FailedPrecondition, "APPROVAL_POLICY_LAXER");
        }
    }
}

/// An alias that is set between proposal and confirmation makes the second person the first one.
#[tokio::test]
async fn who_becomes_the_proposer_afterwards_is_no_second_person() {
    let (stack, author) = govern(Profile::Sox).await;
    let (one, other) = ("tandem-local|author", "tandem-local|other");
    let second_self = stack.caller(&person("other"));
    let made = create_window(&author, today()).await;
    let renamed = pb::Window { name: "later".to_owned(), ..made };
    let waits = author.windows().update_window(update(renamed)).await.answer().window.unwrap();
    let policy = pb::ApprovalPolicy { quorum: 1, ..crate::harness::govern::policy("by-risk", Profile::Sox) };
    let request = pb::UpdateApprovalPolicyRequest { approval_policy: Some(policy), ..Default::default() };
    let proposed = author.catalog().update_approval_policy(request).await.answer();
    let proposed = proposed.approval_policy.unwrap().proposed.unwrap();
    let release = hand_in(&author, change("1.0", Size::Small, &[])).await;
    let third = stack.caller(&person("third"));
    let used = break_glass(&third, &release).await.break_glass.unwrap();

    set_alias(&author, one, other).await;
    set_alias(&author, "tandem-local|third", other).await;
    let version = waits.proposed.unwrap().version;
    let request = pb::ConfirmWindowRequest { window_id: waits.window_id, version, ..Default::default() };
    let own = second_self.windows().confirm_window(request).await;
    own.refused(Code::PermissionDenied, "SOD_VIOLATION");
    let approval_policy = "by-risk".to_owned();
    let request =
        pb::ConfirmApprovalPolicyRequest { approval_policy, version: proposed.version, ..Default::default() };
    let own = second_self.catalog().confirm_approval_policy(request).await;
    own.refused(Code::PermissionDenied, "SOD_VIOLATION");
    let accepted = review(&used, pb::BreakGlassVerdict::Accepted);
    let own = second_self.approvals().review_break_glass(accepted).await;
    own.refused(Code::PermissionDenied, "SOD_VIOLATION");
    // Nor does another name make a debt somebody else's.
    stack.advance(TimeDelta::hours(48));
    let next = hand_in(&author, change("1.1", Size::Small, &[])).await;
    let refused = second_self.approvals().use_break_glass(emergency(&next)).await;
    refused.refused(Code::FailedPrecondition, "BREAK_GLASS_REVIEW_OVERDUE");
}

#[tokio::test]
async fn a_violation_ends_every_break_glass_on_the_release_and_a_revision_opens_none() {
    let (stack, author) = govern(Profile::Standard).await;
    let (boss, chief) = (stack.caller(&person("boss")), stack.caller(&person("chief")));
    let release = hand_in(&author, change("1.0", Size::Large, &[])).await;
    let first = break_glass(&author, &release).await.break_glass.unwrap();
    stack.advance(TimeDelta::hours(48));
    assert_eq!(get_release(&author, &release).await.state(), ReleaseState::PendingApproval);
    // What was used first is still under review when somebody else approves alone, too.
    break_glass(&chief, &release).await;
    let violation = review(&first, pb::BreakGlassVerdict::Violation);
    boss.approvals().review_break_glass(violation).await.answer();
    let ended = get_release(&author, &release).await;
    assert_eq!((ended.state(), ended.approval), (ReleaseState::PendingApproval, None));
    let revised = submit(&author, &revise(&author, &release).await).await;
    for again in [&author, &boss, &chief] {
        let refused = again.approvals().use_break_glass(emergency(&revised)).await;
        refused.refused(Code::FailedPrecondition, "BREAK_GLASS_REVIEWED");
    }
}

/// Somebody makes the environment ask for more and has not committed yet: whoever starts a rollout waits, and meets it.
#[tokio::test]
async fn an_environment_stays_as_it_is_while_exposure_grows_in_it() {
    let (stack, author) = govern(Profile::Starter).await;
    let release = hand_in(&author, change("1.0", Size::Small, &[])).await;
    let mut changing = stack.database.connect().await;
    let change = "begin; update release.environments set required_evidence = '{SCAN}', version = version + 1";
    sqlx::raw_sql(change).execute(&mut changing).await.unwrap();
    let mut rollouts = author.rollouts();
    let (started, ()) = tokio::join!(rollouts.start_rollout(start(&release, &[])), async {
        someone_waits(&stack).await;
        commit(&mut changing).await;
    });
    started.refused(Code::FailedPrecondition, "ROLLOUT_BLOCKED");
}
