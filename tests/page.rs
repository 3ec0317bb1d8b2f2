//! Pages: every object once, in a stable order, whatever is added in between; and tokens that fit one list only.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use shared::issuer::{Grant, write_private};
use shared::keyring::{KeyRing, Purpose};
use shared::pb::release as rpb;
use shared::pb::session as pb;
use tonic::{Code, Response, Status};

use crate::harness::shop::{create_component, create_release, create_session, create_touchpoint, draft, web};
use crate::harness::{Answer as _, Caller, Stack, assert_refused, eventually, workload};

/// Reads all pages; between two of them `between` happens.
async fn read_all<R>(
    size: i32,
    page: impl AsyncFn(i32, String) -> Result<Response<R>, Status>,
    take: impl Fn(R) -> (Vec<String>, String),
    between: impl AsyncFn(usize),
) -> Vec<String>
where
    R: std::fmt::Debug,
{
    let (mut names, mut token) = (Vec::new(), String::new());
    for n in 0.. {
        let (found, next) = take(page(size, token).await.answer());
        assert!(found.len() <= usize::try_from(size).unwrap());
        names.extend(found);
        if next.is_empty() {
            break;
        }
        between(n).await;
        token = next;
    }
    names
}

async fn sessions(
    caller: &Caller,
    page_size: i32,
    page_token: String,
) -> Result<Response<pb::ListSessionsResponse>, Status> {
    let request = pb::ListSessionsRequest { page_size, page_token, ..Default::default() };
    caller.sessions().list_sessions(request).await
}

async fn releases(
    caller: &Caller,
    page_size: i32,
    page_token: String,
) -> Result<Response<rpb::ListReleasesResponse>, Status> {
    let request = rpb::ListReleasesRequest { page_size, page_token, ..Default::default() };
    caller.releases().list_releases(request).await
}

async fn components(
    caller: &Caller,
    page_size: i32,
    page_token: String,
) -> Result<Response<rpb::ListComponentsResponse>, Status> {
    caller
        .catalog()
        .list_components(rpb::ListComponentsRequest { page_size, page_token })
        .await
}

#[tokio::test]
async fn sessions_are_read_once_each_while_others_are_made() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    let mut made = Vec::new();
    for _ in 0..120 {
        stack.advance(chrono::TimeDelta::milliseconds(1));
        made.push(create_session(&caller).await.0.session_id);
    }
    let page = async |size, token| sessions(&caller, size, token).await;
    let take = |page: pb::ListSessionsResponse| {
        (page.sessions.into_iter().map(|session| session.session_id).collect(), page.next_page_token)
    };
    let between = async |_| {
        stack.advance(chrono::TimeDelta::milliseconds(1));
        create_session(&caller).await;
    };
    let read = read_all(17, page, take, between).await;
    assert_eq!(read.iter().collect::<BTreeSet<_>>().len(), read.len(), "none twice");
    assert_eq!(read[..120], made, "oldest first, all of them");
    for (size, expected) in [(0, 50), (1, 1), (1000, 120), (i32::MAX, 120)] {
        let listed = sessions(&caller, size, String::new()).await.answer().sessions.len();
        assert!(listed >= expected && (listed == expected || size >= 1000), "{size}: {listed}");
    }
}

#[tokio::test]
async fn releases_are_read_newest_first_and_components_by_name() {
    let stack = Stack::releases();
    let caller = stack.caller(&workload("ci"));
    let mut names = Vec::new();
    for n in 0..120 {
        let component = format!("c-{:03}", (n * 7) % 120);
        create_component(&caller, rpb::Component { component: component.clone(), ..Default::default() })
            .await;
        names.push(component);
    }
    names.sort();
    let page = async |size, token| components(&caller, size, token).await;
    let take = |page: rpb::ListComponentsResponse| {
        (page.components.into_iter().map(|component| component.component).collect(), page.next_page_token)
    };
    // Before what was read, so that an offset would repeat one.
    let between = async |n| {
        let component = rpb::Component { component: format!("a-{n}"), ..Default::default() };
        create_component(&caller, component).await;
    };
    assert_eq!(read_all(40, page, take, between).await, names);
    let mut ids = Vec::new();
    for component in &names[..60] {
        let request = rpb::CreateReleaseRequest { component: component.clone(), ..draft("1.0") };
        ids.push(
            caller
                .releases()
                .create_release(request)
                .await
                .answer()
                .release
                .unwrap()
                .release_id,
        );
    }
    ids.reverse();
    let page = async |size, token| releases(&caller, size, token).await;
    let take = |page: rpb::ListReleasesResponse| {
        (page.releases.into_iter().map(|release| release.release_id).collect(), page.next_page_token)
    };
    let between = async |n: usize| {
        let request = rpb::CreateReleaseRequest { component: names[60 + n].clone(), ..draft("1.0") };
        caller.releases().create_release(request).await.answer();
    };
    assert_eq!(read_all(11, page, take, between).await, ids);
}

#[tokio::test]
async fn a_token_fits_its_list_its_filter_and_its_tenant() {
    let stack = Stack::pair();
    let caller = stack.caller(&workload("storefront"));
    create_touchpoint(&caller, web()).await;
    create_component(&caller, rpb::Component { component: "storefront".to_owned(), ..Default::default() })
        .await;
    for n in 0..3 {
        create_session(&caller).await;
        create_release(&caller, &format!("1.{n}")).await;
    }
    let of_sessions = sessions(&caller, 1, String::new()).await.answer().next_page_token;
    let of_releases = releases(&caller, 1, String::new()).await.answer().next_page_token;
    let invalid = (Code::InvalidArgument, "PAGE_TOKEN_INVALID");
    for token in ["nonsense", &of_releases, &of_sessions[1..], &"A".repeat(500)] {
        sessions(&caller, 1, token.to_owned()).await.refused(invalid.0, invalid.1);
    }
    releases(&caller, 1, of_sessions.clone()).await.refused(invalid.0, invalid.1);
    components(&caller, 1, of_releases.clone()).await.refused(invalid.0, invalid.1);
    let filtered = pb::ListSessionsRequest {
        include_ended: true,
        page_token: of_sessions.clone(),
        ..Default::default()
    };
    caller.sessions().list_sessions(filtered).await.refused(invalid.0, invalid.1);
    let filtered = rpb::ListReleasesRequest {
        component: "storefront".to_owned(),
        page_token: of_releases.clone(),
        ..Default::default()
    };
    caller.releases().list_releases(filtered).await.refused(invalid.0, invalid.1);
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..workload("storefront") });
    sessions(&acme, 1, of_sessions).await.refused(invalid.0, invalid.1);
    releases(&acme, 1, of_releases).await.refused(invalid.0, invalid.1);
}

#[tokio::test]
async fn no_list_takes_a_negative_size() {
    let stack = Stack::pair();
    let caller = stack.caller(&workload("storefront"));
    let bad = (Code::InvalidArgument, "FIELD_INVALID");
    for page_size in [-1, i32::MIN] {
        sessions(&caller, page_size, String::new()).await.refused(bad.0, bad.1);
        releases(&caller, page_size, String::new()).await.refused(bad.0, bad.1);
        components(&caller, page_size, String::new()).await.refused(bad.0, bad.1);
        let request = pb::ListTouchpointsRequest { page_size, ..Default::default() };
        caller.touchpoints().list_touchpoints(request).await.refused(bad.0, bad.1);
        let request = rpb::ListEnvironmentsRequest { page_size, ..Default::default() };
        caller.catalog().list_environments(request).await.refused(bad.0, bad.1);
        let request = rpb::ListRolloutsRequest { page_size, ..Default::default() };
        caller.rollouts().list_rollouts(request).await.refused(bad.0, bad.1);
    }
}

#[tokio::test]
async fn a_running_service_takes_a_new_key_in_and_forgets_a_retired_one() {
    let stack = Stack::sessions();
    let caller = stack.caller(&workload("reader"));
    for touchpoint in ["web", "pos"] {
        create_touchpoint(&caller, pb::Touchpoint { touchpoint: touchpoint.to_owned(), ..web() }).await;
    }
    let page = async |page_token: &str| {
        let request = pb::ListTouchpointsRequest { page_size: 1, page_token: page_token.to_owned() };
        caller.touchpoints().list_touchpoints(request).await
    };
    let change = |change: &dyn Fn(&mut KeyRing) -> u32| {
        let mut ring = KeyRing::parse(&std::fs::read_to_string(stack.keyring()).unwrap()).unwrap();
        let id = change(&mut ring);
        write_private(&stack.keyring(), ring.to_json().unwrap().as_bytes()).unwrap();
        id
    };
    let old = page("").await.answer().next_page_token;
    let key = change(&|ring| ring.rotate(Purpose::Cursor, stack.now(), &stack.entropy).unwrap());
    eventually("a token of the new key", async || {
        let token = URL_SAFE_NO_PAD.decode(page("").await.answer().next_page_token).unwrap();
        token.starts_with(&key.to_be_bytes()).then_some(())
    })
    .await;
    assert_eq!(page(&old).await.answer().touchpoints.len(), 1);
    let retired = URL_SAFE_NO_PAD.decode(&old).unwrap()[..4].try_into().unwrap();
    change(&|ring| ring.retire(u32::from_be_bytes(retired), stack.now()).map(|_| key).unwrap());
    let refused = eventually("the end of the old key", async || page(&old).await.err()).await;
    assert_refused(&refused, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
}
