//! Changes of freeze windows that take two people, where a component follows a policy that does.

use prost_types::value::Kind;
use shared::pb::release as pb;
use shared::pb::release::{GovernanceProfile as Profile, WindowEffect};
use tonic::Code;

use crate::harness::govern::govern;
use crate::harness::shop::set_alias;
use crate::harness::{Answer as _, Caller, Options, Watch, person, reason_of, workload};
use crate::window::{
    about_storefront, create_window, creation, deletion, evaluate, freeze, lift, today, update,
};

fn confirmation(window: &pb::Window) -> pb::ConfirmWindowRequest {
    let version = window.proposed.as_ref().map_or(1, |proposed| proposed.version);
    pb::ConfirmWindowRequest { window_id: window.window_id.clone(), version, ..Default::default() }
}

async fn confirm(caller: &Caller, window: &pb::Window) -> pb::Window {
    caller
        .windows()
        .confirm_window(confirmation(window))
        .await
        .answer()
        .window
        .unwrap()
}

async fn change(caller: &Caller, window: pb::Window) -> pb::Window {
    caller.windows().update_window(update(window)).await.answer().window.unwrap()
}

async fn get(caller: &Caller, window: &pb::Window) -> pb::Window {
    let request = pb::GetWindowRequest { window_id: window.window_id.clone() };
    caller.windows().get_window(request).await.answer().window.unwrap()
}

/// The present window over tomorrow only.
fn tomorrow(window: &pb::Window) -> pb::Window {
    let schedule = freeze("2027-01-16T00:00:00", "2027-01-17T00:00:00").schedule;
    pb::Window { schedule, ..window.clone() }
}

fn allowing(window: pb::Window) -> pb::Window {
    pb::Window { effect: WindowEffect::Allow.into(), ..window }
}

async fn is_open(caller: &Caller) -> bool {
    evaluate(caller, about_storefront()).await.is_open
}

#[tokio::test]
async fn one_person_freezes_and_two_change_the_freeze() {
    let (stack, author) = govern(Profile::Sox).await;
    let made = create_window(&author, today()).await;
    assert_eq!((&made.proposed, made.is_pending, is_open(&author).await), (&None, false, false));
    let machine = stack.caller(&workload("pipeline"));
    let refused = machine.windows().update_window(update(tomorrow(&made))).await;
    refused.refused(Code::PermissionDenied, "CALLER_NOT_A_PERSON");
    let refused = machine.windows().delete_window(deletion(&made)).await;
    refused.refused(Code::PermissionDenied, "CALLER_NOT_A_PERSON");
    let waits = change(&author, tomorrow(&made)).await;
    let proposed = waits.proposed.clone().unwrap();
    assert_eq!((&waits.schedule, waits.etag != made.etag), (&made.schedule, true));
    assert_eq!(proposed.window.unwrap().schedule, tomorrow(&made).schedule);
    assert_eq!((proposed.author, is_open(&author).await), (made.creator.clone(), false));
    assert_eq!(get(&author, &made).await, waits);
    let listed = author.windows().list_windows(pb::ListWindowsRequest::default()).await.answer();
    assert_eq!(listed.windows, std::slice::from_ref(&waits));
    // Neither its author, under whatever name, nor a machine confirms it.
    let own = author.windows().confirm_window(confirmation(&waits)).await;
    own.refused(Code::PermissionDenied, "SOD_VIOLATION");
    let second_self = stack.caller(&person("author-2"));
    let who = |name: &str| made.creator.replace("author", name);
    set_alias(&author, &who("author-2"), &made.creator).await;
    let own = second_self.windows().confirm_window(confirmation(&waits)).await;
    own.refused(Code::PermissionDenied, "SOD_VIOLATION");
    let refused = machine.windows().confirm_window(confirmation(&waits)).await;
    refused.refused(Code::PermissionDenied, "CALLER_NOT_A_PERSON");
    let boss = stack.caller(&person("boss"));
    let mut events = Watch::open(author.release_events()).await;
    let done = confirm(&boss, &waits).await;
    assert_eq!((&done.schedule, &done.proposed), (&tomorrow(&made).schedule, &None));
    assert!(is_open(&author).await);
    let told = events.next_of("window.updated").await;
    assert_eq!(told.principal, who("boss"));
    assert_eq!(told.data.unwrap().fields["proposer"], Kind::StringValue(made.creator).into());
    let again = boss.windows().confirm_window(confirmation(&waits)).await;
    again.refused(Code::FailedPrecondition, "PROPOSAL_NOT_PENDING");
}

#[tokio::test]
async fn a_later_proposal_takes_the_place_of_an_earlier_one() {
    let (stack, author) = govern(Profile::PciDss).await;
    let boss = stack.caller(&person("boss"));
    let made = create_window(&author, today()).await;
    let mut events = Watch::open(author.release_events()).await;
    let first = change(&author, tomorrow(&made)).await;
    let told = events.next_of("window.proposed").await.data.unwrap();
    assert_eq!(told.fields["change"], Kind::StringValue("UPDATE".to_owned()).into());
    // Who read it before does not overwrite what was proposed since.
    let stale = boss.windows().update_window(update(tomorrow(&made))).await;
    stale.refused(Code::Aborted, "ETAG_MISMATCH");
    let second = boss.windows().delete_window(deletion(&made)).await.answer().window.unwrap();
    let told = events.next_of("window.proposed").await.data.unwrap();
    assert_eq!(told.fields["change"], Kind::StringValue("DELETE".to_owned()).into());
    let proposed = second.proposed.clone().unwrap();
    assert_eq!((proposed.window, proposed.deletion_reason.as_str()), (None, "over early"));
    assert_eq!((second.delete_time, is_open(&author).await), (None, false));
    let stale = boss.windows().confirm_window(confirmation(&first)).await;
    stale.refused(Code::FailedPrecondition, "PROPOSAL_NOT_PENDING");
    // It is the boss's now.
    let own = boss.windows().confirm_window(confirmation(&second)).await;
    own.refused(Code::PermissionDenied, "SOD_VIOLATION");
    let done = confirm(&author, &second).await;
    assert!(done.delete_time.is_some() && is_open(&author).await);
    let gone = author.windows().confirm_window(confirmation(&second)).await;
    gone.refused(Code::NotFound, "WINDOW_NOT_FOUND");
}

#[tokio::test]
async fn what_allows_more_waits_and_holds_nothing_meanwhile() {
    let (stack, author) = govern(Profile::Sox).await;
    let boss = stack.caller(&person("boss"));
    // The first one only forbids: before it everything was allowed.
    let first = create_window(&author, allowing(tomorrow(&today()))).await;
    assert!(!first.is_pending && !is_open(&author).await);
    let machine = stack.caller(&workload("pipeline"));
    let refused = machine.windows().create_window(creation(allowing(today()))).await;
    refused.refused(Code::PermissionDenied, "CALLER_NOT_A_PERSON");
    let second = create_window(&author, allowing(today())).await;
    assert!(second.is_pending && second.delete_time.is_none());
    assert!(!is_open(&author).await);
    let listed = author.windows().list_windows(pb::ListWindowsRequest::default()).await.answer();
    assert_eq!(listed.windows.len(), 2);
    let refused = boss
        .windows()
        .override_window(lift(&second, stack.now() + chrono::TimeDelta::hours(1)))
        .await;
    refused.refused(Code::NotFound, "WINDOW_NOT_FOUND");
    // It goes on waiting under other terms, and its last author does not confirm it.
    let renamed = change(&boss, pb::Window { name: "hotfixes".to_owned(), ..second }).await;
    assert!(renamed.is_pending && renamed.name == "hotfixes");
    let own = boss.windows().confirm_window(confirmation(&renamed)).await;
    own.refused(Code::PermissionDenied, "SOD_VIOLATION");
    let done = confirm(&author, &renamed).await;
    assert!(!done.is_pending && is_open(&author).await);
    // One that waits goes at once.
    let third = create_window(&author, allowing(today())).await;
    let gone = author.windows().delete_window(deletion(&third)).await.answer().window.unwrap();
    assert!(gone.delete_time.is_some() && !gone.is_pending && gone.proposed.is_none());
}

#[tokio::test]
async fn of_two_who_confirm_at_once_one_does() {
    let (stack, author) = govern(Profile::Sox).await;
    let replica = stack.release_svc(&Options::default());
    let here = stack.caller(&person("boss"));
    let there = stack.caller(&person("chief")).at_release(&replica);
    for _ in 0..5 {
        let waits = change(&author, tomorrow(&create_window(&author, today()).await)).await;
        let (mut one, mut other) = (here.windows(), there.windows());
        let outcomes = tokio::join!(
            one.confirm_window(confirmation(&waits)),
            other.confirm_window(confirmation(&waits))
        );
        let refused = match outcomes {
            (Ok(_), Err(status)) | (Err(status), Ok(_)) => status,
            both => panic!("{both:?}"),
        };
        assert_eq!(reason_of(&refused), "PROPOSAL_NOT_PENDING");
    }
}

#[tokio::test]
async fn policies_that_no_component_follows_ask_for_nobody() {
    let (_stack, author) = govern(Profile::Standard).await;
    let policy = crate::harness::govern::policy("unused", Profile::Sox);
    crate::harness::govern::create(&author, policy).await;
    let made = create_window(&author, today()).await;
    let changed = change(&author, tomorrow(&made)).await;
    assert_eq!((&changed.schedule, &changed.proposed), (&tomorrow(&made).schedule, &None));
}
