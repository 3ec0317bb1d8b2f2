//! Tenants: what another tenant has is not there, by whatever method and with whatever id it is asked for.

use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MessageDescriptor, MethodDescriptor, Value};
use shared::issuer::Grant;
use shared::pb::common::{CreateWebhookRequest, Webhook};
use shared::pb::release as rpb;
use shared::pb::session as pb;
use shared::time::at;
use tonic::Code;

use crate::evidence::{submit_evidence, test_report};
use crate::harness::govern::{emergency, hand_in};
use crate::harness::shop::{
    add_line, create_catalog, create_component, create_policy, create_release, create_session,
    create_touchpoint, draft, known_device, log_in, owner, set_alias, ship, start, submit, validate, web,
};
use crate::harness::{Answer as _, Caller, START, Stack, person, raw, reason_of};
use crate::history::{append, list, view};
use crate::preferences::{consent, get_preferences, set_locale};
use crate::shopper_context::context_of;
use crate::window::{create_window, freeze, lift};
use crate::wishlist::{add_item, create_wishlist, list_wishlists, shopper};

/// Methods that name nothing of another tenant's by id: they make something, list, watch, or go by token or subject, which
/// `asvs_token` looks at.
const NAMING_NOTHING: &[&str] = &[
    "AuthenticateSession",
    "RotateSession",
    "RevokeSubjectSessions",
    "RevokeTenantSessions",
    "DisableSubject",
    "EnableSubject",
    "GrantElevation",
    "RedeemElevation",
    "UpdateSessionAttributes",
    "IssueAssertion",
    "GetAssertionKeys",
    "ReportLeakedToken",
    "CreateTouchpoint",
    "ListTouchpoints",
    "ListSessions",
    "KillRelease",
    "UnkillRelease",
    "ListKills",
    "AddCartLine",
    "ApplyCartCode",
    "PinPricingContext",
    "SetCartContact",
    "ListAbandonedCarts",
    "RedeemCartRecovery",
    "GetShopperContext",
    "CreateWishlist",
    "ListWishlists",
    "GetSharedWishlist",
    "NoteWishlistInterest",
    "GetPreferences",
    "UpdatePreferences",
    "UpdateConsent",
    "ListConsentDecisions",
    "AppendHistory",
    "ListHistory",
    "ClearHistory",
    "ListComponents",
    "CreateEnvironment",
    "ListEnvironments",
    "SetIdentityAlias",
    "ListIdentityAliases",
    "CreateApprovalPolicy",
    "ListReleases",
    "ListEvidence",
    "ListPendingForMe",
    "ListBreakGlasses",
    "ListRollouts",
    "ListTasks",
    "ListAudit",
    "GetAuditHead",
    "VerifyAudit",
    "GetAuditKeys",
    "WatchEvents",
    "ListEventTypes",
    "CreateWebhook",
    "ListWebhooks",
    "WatchRoutes",
    "CreateWindow",
    "ListWindows",
    "ListWindowOverrides",
    "StopTheLine",
    "ResumeTheLine",
    // These two do, in messages with more to them than is filled in here; `window` looks at them.
    "UpdateWindow",
    "OverrideWindow",
];
/// Serves every tenant, and says so.
const OF_THE_SYSTEM: &str = "tandem.release.v1.RoutingService";

/// What tenant `shop` has, by the name of the field that it goes into.
async fn open(caller: &Caller) -> Vec<(&'static str, String)> {
    create_touchpoint(caller, web()).await;
    let token = known_device(caller, "ann").await;
    let cart = add_line(caller, &token, "85123A", 2).await;
    let session = validate(caller, &token).await.session.unwrap();
    let (_, anonymous) = create_session(caller).await;
    let guests = add_line(caller, &anonymous, "85123A", 1).await;
    log_in(caller, &anonymous, "ann", pb::MergeStrategy::SumCapped).await;
    let wishlist = create_wishlist(caller, &token, "Birthday").await;
    add_item(caller, &token, &wishlist, "71053").await;
    create_catalog(caller).await;
    create_policy(caller, "strict", 1).await;
    set_alias(caller, "ada-l", "https://id.example|ada").await;
    ship(caller, "1.0", &[]).await;
    let rollout = ship(caller, "1.1", &[1000]).await;
    let draft = create_release(caller, "1.2").await;
    let evidence = submit_evidence(caller, test_report(1, "unit", true)).await;
    // Nobody is there, which is for whoever pings it to find out.
    let url = "http://127.0.0.1:9/events".to_owned();
    let webhook = CreateWebhookRequest {
        webhook: Some(Webhook { url: url.clone(), disabled: true, ..Webhook::default() }),
        ..CreateWebhookRequest::default()
    };
    let webhook = caller.release_webhooks().create_webhook(webhook).await.answer().webhook;
    let webhook = webhook.unwrap().webhook_id;
    let window = create_window(caller, freeze("2030-01-01T00:00:00", "2030-01-02T00:00:00")).await;
    let lifted = caller.windows().override_window(lift(&window, at(START + 3600))).await.answer();
    let lifted = lifted.window_override.unwrap().window_override_id;
    vec![
        ("touchpoint", "web".to_owned()),
        ("touchpoint_group", "web".to_owned()),
        ("session_id", session.session_id),
        ("session_token", token),
        ("shopper_id", cart.shopper_id),
        ("cart_id", cart.cart_id),
        ("wishlist_id", wishlist.wishlist_id),
        ("line_id", cart.lines[0].line_id.clone()),
        ("source_shopper_id", guests.shopper_id),
        ("source_cart_id", guests.cart_id),
        ("catalogue_version", "v1".to_owned()),
        ("code", "SUMMER".to_owned()),
        ("currency_code", "EUR".to_owned()),
        ("sku", "71053".to_owned()),
        ("order_ref", "order-1".to_owned()),
        ("component", "storefront".to_owned()),
        ("environment", "local".to_owned()),
        ("approval_policy", "strict".to_owned()),
        ("alias", "ada-l".to_owned()),
        ("release_id", draft.release_id),
        ("evidence_id", evidence.evidence_id),
        ("artifact_digest", evidence.artifact_digest),
        ("suite", evidence.suite),
        ("break_glass_id", break_glass_of(caller).await),
        ("version", "9.0".to_owned()),
        ("rollout_id", rollout.rollout_id),
        ("task_id", task_of(caller).await),
        ("reason", "because".to_owned()),
        ("guard", "checkout".to_owned()),
        ("webhook_id", webhook),
        ("window_id", window.window_id),
        ("window_override_id", lifted),
        ("url", url),
    ]
}

/// A task of an executor.
async fn task_of(caller: &Caller) -> String {
    let environment = rpb::Environment {
        environment: "deployed".to_owned(),
        needs_executor: Some(true),
        ..rpb::Environment::default()
    };
    let request = rpb::CreateEnvironmentRequest { environment: Some(environment), ..Default::default() };
    caller.catalog().create_environment(request).await.answer();
    let release = submit(caller, &create_release(caller, "1.3").await).await;
    let request = rpb::StartRolloutRequest { environment: "deployed".to_owned(), ..start(&release, &[]) };
    caller.rollouts().start_rollout(request).await.answer();
    let tasks = caller
        .executors()
        .list_tasks(rpb::ListTasksRequest::default())
        .await
        .answer()
        .tasks;
    tasks[0].task_id.clone()
}

/// That somebody approved a release alone.
async fn break_glass_of(caller: &Caller) -> String {
    let strict = rpb::Component {
        component: "ledger".to_owned(),
        approval_policy: "strict".to_owned(),
        ..rpb::Component::default()
    };
    create_component(caller, strict).await;
    let draft = rpb::CreateReleaseRequest { component: "ledger".to_owned(), ..draft("1.0") };
    let release = hand_in(caller, draft).await;
    let used = caller.approvals().use_break_glass(emergency(&release)).await.answer();
    used.break_glass.unwrap().break_glass_id
}

/// A message that is all right but for whose things it names.
fn fill(descriptor: &MessageDescriptor, has: &[(&str, String)]) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    for field in descriptor.fields() {
        // Of two ways to name something, the one by id.
        let by_token =
            field.containing_oneof().is_some() && ["session_token", "own_session"].contains(&field.name());
        let is_optional = ["session_policy", "cart_policy", "ref", "rules", "counts", "review", "statement"]
            .contains(&field.name());
        if by_token || field.is_list() || is_optional {
            continue;
        }
        let known = has.iter().find(|(name, _)| *name == field.name());
        match (field.kind(), known) {
            (Kind::Message(inner), _)
                if inner.full_name().starts_with("tandem.") && inner.name() != "Subject" =>
            {
                message.set_field(&field, Value::Message(fill(&inner, has)));
            }
            (Kind::String, Some((_, text))) => message.set_field(&field, Value::String(text.clone())),
            (Kind::Enum(_), _) => message.set_field(&field, Value::EnumNumber(1)),
            (Kind::Int32, _) if field.name() != "page_size" => message.set_field(&field, Value::I32(1)),
            _ => {}
        }
    }
    message
}

fn methods() -> Vec<MethodDescriptor> {
    let pool = DescriptorPool::decode(shared::pb::DESCRIPTORS).unwrap();
    let ours = pool.services().filter(|service| service.full_name().starts_with("tandem."));
    let methods = ours.flat_map(|service| service.methods().collect::<Vec<_>>());
    let names_something = |method: &MethodDescriptor| {
        !NAMING_NOTHING.contains(&method.name()) && method.parent_service().full_name() != OF_THE_SYSTEM
    };
    methods.filter(names_something).collect()
}

async fn outcome(caller: &Caller, method: &MethodDescriptor, has: &[(&str, String)]) -> (Code, String) {
    use prost::Message as _;
    let service = method.parent_service();
    let is_session = service.package_name() == "tandem.session.v1";
    let channel = if is_session { caller.session_channel() } else { caller.release_channel() };
    let path = format!("/{}/{}", service.full_name(), method.name());
    let answer = raw::call(channel, &path, fill(&method.input(), has).encode_to_vec()).await;
    answer
        .err()
        .map_or((Code::Ok, String::new()), |status| (status.code(), reason_of(&status)))
}

#[tokio::test]
async fn another_tenants_objects_are_not_found_by_any_method() {
    let stack = Stack::pair();
    let shop = stack.caller(&person("ada"));
    let has = open(&shop).await;
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..person("ada") });
    let methods = methods();
    assert!(methods.len() > 25, "{}", methods.len());
    for method in &methods {
        let (code, reason) = outcome(&acme, method, &has).await;
        assert_eq!(code, Code::NotFound, "{} {reason}", method.full_name());
        assert!(reason.ends_with("_NOT_FOUND"), "{} {reason}", method.full_name());
    }
    // The same messages of the tenant itself find what they name.
    for method in &methods {
        let (code, reason) = outcome(&shop, method, &has).await;
        assert!(
            code != Code::NotFound && reason != "FIELD_INVALID",
            "{} {code:?} {reason}",
            method.full_name()
        );
    }
}

#[tokio::test]
async fn another_tenants_token_is_of_no_session_and_lists_are_empty() {
    let stack = Stack::pair();
    let has = open(&stack.caller(&person("ada"))).await;
    let token = &has.iter().find(|(name, _)| *name == "session_token").unwrap().1;
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..person("ada") });
    create_touchpoint(&acme, web()).await;
    assert_eq!(validate(&acme, token).await.verdict(), pb::Verdict::SessionUnknown);
    let request = pb::GetCartRequest {
        owner: Some(owner(token)),
        currency_code: "EUR".to_owned(),
        cart_id: String::new(),
    };
    acme.carts()
        .get_cart(request)
        .await
        .refused(Code::FailedPrecondition, "SESSION_UNKNOWN");
    let sessions = acme.sessions().list_sessions(pb::ListSessionsRequest::default()).await;
    assert_eq!(sessions.answer().sessions, []);
    let components = acme.catalog().list_components(rpb::ListComponentsRequest::default()).await;
    assert_eq!(components.answer().components, []);
    let environments = acme.catalog().list_environments(rpb::ListEnvironmentsRequest::default()).await;
    assert_eq!(environments.answer().environments, []);
    let releases = acme.releases().list_releases(rpb::ListReleasesRequest::default()).await;
    assert_eq!(releases.answer().releases, []);
    let rollouts = acme.rollouts().list_rollouts(rpb::ListRolloutsRequest::default()).await;
    assert_eq!(rollouts.answer().rollouts, []);
    // The same names and versions are free.
    create_catalog(&acme).await;
    ship(&acme, "1.0", &[]).await;
}

/// What a shopper has is read and changed under the tenant's own key, so that the same id is another shopper elsewhere.
#[tokio::test]
async fn another_tenants_shopper_is_another_shopper() {
    let stack = Stack::sessions();
    let shop = stack.caller(&person("ada"));
    create_touchpoint(&shop, web()).await;
    let (session, token) = create_session(&shop).await;
    let mine = || shopper(&session.shopper_id);
    create_wishlist(&shop, &token, "Birthday").await;
    set_locale(&shop, mine(), "de").await;
    consent(&shop, mine(), true).await;
    append(&shop, mine(), vec![view("lamp")]).await;
    let acme = stack.caller(&Grant { tenant: "acme".to_owned(), ..person("ada") });
    let none = pb::GetShopperContextResponse {
        shopper_id: session.shopper_id.clone(),
        preferences: Some(pb::Preferences { etag: "v0".to_owned(), ..Default::default() }),
        ..Default::default()
    };
    assert_eq!(context_of(&acme, mine()).await, none);
    assert_eq!((list_wishlists(&acme, mine()).await, list(&acme, mine()).await), (vec![], vec![]));
    set_locale(&acme, mine(), "fr").await;
    consent(&acme, mine(), false).await;
    assert_eq!(get_preferences(&shop, mine()).await.preferences.unwrap().locale, "de");
    assert_eq!(list(&shop, mine()).await.len(), 1);
    let request = pb::ListWishlistsRequest { owner: Some(owner(&token)) };
    let status = acme.shoppers().list_wishlists(request).await;
    status.refused(Code::FailedPrecondition, "SESSION_UNKNOWN");
}
