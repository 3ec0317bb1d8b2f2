//! What freeze windows and a stopped line hold back, what lifts them, and that they cannot open between the question and the
//! act. The clock begins on 2027-01-15 at 08:00 UTC.

use chrono::TimeDelta;
use prost_types::ListValue;
use prost_types::value::Kind;
use shared::issuer::Grant;
use shared::pb::release as pb;
use shared::pb::release::RolloutState;
use shared::time::to_proto;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::shop::{
    advance, create_catalog, create_release, roll_back, ship, start as rollout_of, submit,
};
use crate::harness::{Answer as _, Options, Stack, Watch, assert_refused, eventually, person, workload};
use crate::window::{
    about_storefront, create_window, creation, deletion, evaluate, lift, start, today, update,
};

/// Type and subject of everything that holds back.
fn blockers(status: &Status) -> Vec<(String, String)> {
    let violations = status.get_details_precondition_failure().unwrap().violations;
    violations
        .into_iter()
        .map(|blocker| (blocker.r#type, blocker.subject))
        .collect()
}

fn stop(reason: &str) -> pb::StopTheLineRequest {
    pb::StopTheLineRequest { reason: reason.to_owned(), request_id: String::new() }
}

fn resume(reason: &str) -> pb::ResumeTheLineRequest {
    pb::ResumeTheLineRequest { reason: reason.to_owned(), request_id: String::new() }
}

#[tokio::test]
async fn a_freeze_holds_starts_and_advances_back_and_no_rollback() {
    let (stack, caller) = start().await;
    ship(&caller, "1.0", &[]).await;
    let rollout = ship(&caller, "1.1", &[1000, 5000]).await;
    let window = create_window(&caller, today()).await;
    let held = vec![("WINDOW".to_owned(), window.window_id.clone())];
    let status = caller.rollouts().advance_rollout(advance(&rollout)).await;
    let status = status.refused(Code::FailedPrecondition, "ROLLOUT_WINDOW_CLOSED");
    assert_eq!(blockers(&status), held);
    let text = &status.get_details_precondition_failure().unwrap().violations[0].description;
    assert!(text.contains("winter freeze") && text.contains("2027-01-16T00:00:00"), "{text}");
    let next = submit(&caller, &create_release(&caller, "1.2").await).await;
    let status = caller.rollouts().start_rollout(rollout_of(&next, &[])).await;
    let status = status.refused(Code::FailedPrecondition, "ROLLOUT_BLOCKED");
    assert_eq!(
        blockers(&status),
        [("EARLIER_ROLLOUT".to_owned(), rollout.rollout_id.clone()), held[0].clone()]
    );
    assert_eq!(roll_back(&caller, &rollout).await.state(), RolloutState::RolledBack);
    let closed = caller.rollouts().start_rollout(rollout_of(&next, &[])).await;
    closed.refused(Code::FailedPrecondition, "ROLLOUT_WINDOW_CLOSED");
    stack.advance(TimeDelta::hours(16));
    caller.rollouts().start_rollout(rollout_of(&next, &[])).await.answer();
}

#[tokio::test]
async fn a_person_lifts_a_window_for_one_thing_and_a_while_and_the_rollout_says_so() {
    let (stack, caller) = start().await;
    ship(&caller, "1.0", &[]).await;
    let rollout = ship(&caller, "1.1", &[1000, 5000]).await;
    let window = create_window(&caller, today()).await;
    let until = stack.now() + TimeDelta::hours(2);
    let robot = stack.caller(&workload("robot"));
    let refused = robot.windows().override_window(lift(&window, until)).await;
    refused.refused(Code::PermissionDenied, "CALLER_NOT_A_PERSON");
    let powerless = stack.caller(&Grant { scope: "window.write window.read".to_owned(), ..person("bob") });
    let refused = powerless.windows().override_window(lift(&window, until)).await;
    refused.refused(Code::PermissionDenied, "CALLER_SCOPE_MISSING");
    for end in [stack.now(), stack.now() + TimeDelta::hours(24) + TimeDelta::seconds(1)] {
        let refused = caller.windows().override_window(lift(&window, end)).await;
        refused.refused(Code::InvalidArgument, "FIELD_INVALID");
    }
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..person("ada") });
    create_catalog(&acme).await;
    let refused = acme.windows().override_window(lift(&window, until)).await;
    refused.refused(Code::NotFound, "WINDOW_NOT_FOUND");
    let refused = acme.windows().update_window(update(window.clone())).await;
    refused.refused(Code::NotFound, "WINDOW_NOT_FOUND");
    let mut events = Watch::open(caller.release_events()).await;
    let lifted = caller
        .windows()
        .override_window(lift(&window, until))
        .await
        .answer()
        .window_override
        .unwrap();
    let told = events.next_of("window.overridden").await.data.unwrap();
    assert_eq!(told.fields["reason"], Kind::StringValue("payments fail".to_owned()).into());
    let allowed = evaluate(&caller, about_storefront()).await;
    assert!(allowed.is_open);
    assert_eq!(allowed.window_override_ids, [lifted.window_override_id.as_str()]);
    assert_eq!(allowed.next_close_time, Some(to_proto(until)));
    caller.rollouts().advance_rollout(advance(&rollout)).await.answer();
    let told = events.next_of("rollout.advanced").await.data.unwrap();
    let ids = ListValue { values: vec![Kind::StringValue(lifted.window_override_id).into()] };
    assert_eq!(told.fields["window_override_ids"], Kind::ListValue(ids).into());
    stack.advance(TimeDelta::hours(2));
    let closed = caller.rollouts().advance_rollout(advance(&rollout)).await;
    closed.refused(Code::FailedPrecondition, "ROLLOUT_WINDOW_CLOSED");
}

#[tokio::test]
async fn a_stopped_line_halts_every_increase_and_no_decrease() {
    let (stack, caller) = start().await;
    let replica = stack.release_svc(&Options::default());
    ship(&caller, "1.0", &[]).await;
    let rollout = ship(&caller, "1.1", &[1000, 5000]).await;
    let mut events = Watch::open(caller.release_events()).await;
    let stopped = caller
        .windows()
        .stop_the_line(stop("fire in the data centre"))
        .await
        .answer()
        .line
        .unwrap();
    assert!(stopped.is_stopped);
    events.next_of("line.stopped").await;
    // Again changes nothing, not even the reason.
    let again = caller.windows().stop_the_line(stop("me too")).await.answer().line;
    assert_eq!(again, Some(stopped.clone()));
    let there = caller.at_release(&replica);
    let status = there.rollouts().advance_rollout(advance(&rollout)).await;
    let status = status.refused(Code::FailedPrecondition, "LINE_STOPPED");
    assert_eq!(blockers(&status), [("LINE".to_owned(), "line".to_owned())]);
    let verdict = evaluate(&caller, about_storefront()).await;
    assert_eq!((verdict.is_open, verdict.line), (false, Some(stopped)));
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..person("ada") });
    create_catalog(&acme).await;
    ship(&acme, "1.0", &[]).await;
    assert_eq!(roll_back(&there, &rollout).await.state(), RolloutState::RolledBack);
    let resumed = caller.windows().resume_the_line(resume("out")).await.answer().line.unwrap();
    assert!(!resumed.is_stopped);
    events.next_of("line.resumed").await;
    ship(&caller, "1.2", &[1000]).await;
    caller
        .windows()
        .stop_the_line(stop(""))
        .await
        .refused(Code::InvalidArgument, "FIELD_INVALID");
}

#[tokio::test]
async fn no_window_opens_between_the_question_and_the_act() {
    let (stack, caller) = start().await;
    ship(&caller, "1.0", &[]).await;
    let rollout = ship(&caller, "1.1", &[1000, 5000]).await;
    // Somebody raises exposure and has not committed yet: a new window waits for them.
    let mut raising = stack.database.connect().await;
    let share = "begin; select from release.calendars where tenant_id = 'shop' for share";
    sqlx::raw_sql(share).execute(&mut raising).await.unwrap();
    let mut windows = caller.windows();
    let (made, ()) = tokio::join!(windows.create_window(creation(today())), async {
        someone_waits(&stack).await;
        // Others who raise it go on meanwhile, as they share it.
        commit(&mut raising).await;
    });
    made.answer();
    // Somebody stops the line and has not committed yet: whoever raises exposure waits for it, and then meets it.
    let mut stopping = stack.database.connect().await;
    let stop = "begin; update release.calendars set stopped_at = now(), stopper = 'x', stop_reason = 'y'";
    sqlx::raw_sql(stop).execute(&mut stopping).await.unwrap();
    let mut rollouts = caller.rollouts();
    let (advanced, ()) = tokio::join!(rollouts.advance_rollout(advance(&rollout)), async {
        someone_waits(&stack).await;
        commit(&mut stopping).await;
    });
    let status = advanced.unwrap_err();
    assert_refused(&status, Code::FailedPrecondition, "ROLLOUT_BLOCKED");
    let kinds: Vec<_> = blockers(&status).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["LINE", "WINDOW"]);
}

/// Both at once, again and again: whoever is first, an increase never commits after the window did, and nobody deadlocks.
#[tokio::test]
async fn increases_and_edits_of_windows_do_not_deadlock() {
    let (stack, caller) = start().await;
    let replica = stack.release_svc(&Options::default());
    ship(&caller, "1.0", &[]).await;
    let rollout = ship(&caller, "1.1", &(1..=30).map(|step| step * 100).collect::<Vec<_>>()).await;
    let there = caller.at_release(&replica);
    for _ in 0..8 {
        let (mut here, mut rollouts) = (there.windows(), caller.rollouts());
        let (made, advanced) =
            tokio::join!(here.create_window(creation(today())), rollouts.advance_rollout(advance(&rollout)),);
        let window = made.answer().window.unwrap();
        if let Err(status) = advanced {
            assert_refused(&status, Code::FailedPrecondition, "ROLLOUT_WINDOW_CLOSED");
        }
        let refused = caller.rollouts().advance_rollout(advance(&rollout)).await;
        refused.refused(Code::FailedPrecondition, "ROLLOUT_WINDOW_CLOSED");
        let (mut here, mut rollouts) = (there.windows(), caller.rollouts());
        let (deleted, advanced) =
            tokio::join!(here.delete_window(deletion(&window)), rollouts.advance_rollout(advance(&rollout)),);
        deleted.answer();
        if let Err(status) = advanced {
            assert_refused(&status, Code::FailedPrecondition, "ROLLOUT_WINDOW_CLOSED");
        }
        caller.rollouts().advance_rollout(advance(&rollout)).await.answer();
    }
}

pub(crate) async fn commit(db: &mut sqlx::PgConnection) {
    sqlx::raw_sql("commit").execute(db).await.unwrap();
}

/// Comes back when a statement on the test's database waits for a row that another one has locked.
pub(crate) async fn someone_waits(stack: &Stack) {
    let waiting = "select count(*) from pg_locks join pg_stat_activity using (pid)
        where not granted and datname = current_database()";
    eventually("a lock that is waited for", || async {
        (stack.database.count(waiting).await > 0).then_some(())
    })
    .await;
}
