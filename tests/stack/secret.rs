//! Secrets stay where they belong: what was issued in a run is in no log at the finest level, in no telemetry, and in no
//! column of the database.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::Value;
use shared::pb::common::webhook_service_client::WebhookServiceClient;
use shared::pb::common::{CreateWebhookRequest, Money, PingWebhookRequest, Webhook};
use shared::pb::session::shopper_selector::Owner;
use shared::pb::session::wishlist_share::Share;
use shared::pb::session::{
    AddCartLineRequest, CreateCartRecoveryRequest, CreateSessionRequest, CreateWishlistRequest,
    GetSharedWishlistRequest, GrantElevationRequest, IssueAssertionRequest, NoteWishlistInterestRequest,
    RedeemCartRecoveryRequest, RedeemElevationRequest, RevokeReason, RevokeSessionRequest,
    ShareWishlistRequest, ShopperSelector, WishlistShare, revoke_session_request,
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::harness::{Stack, channel};
use crate::observed::Observed;
use crate::process::{self, said};

const REPLAY_LIMIT: Duration = Duration::from_mins(1);
/// Text that is a secret wherever it is seen, also of those that others have made: a session token, an elevation token, a
/// recovery token, a wishlist's share token, a webhook's secret, and an access token or assertion with its signature.
const SHAPES: [(&str, usize); 6] =
    [("tds_", 40), ("tde_", 40), ("tdr_", 40), ("tdw_", 40), ("whsec_", 40), ("eyJ", 100)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_in_no_log_no_telemetry_and_no_column() {
    let stack = Observed::stack();
    let mut secrets = vec![Secret::of("an access token", stack.token())];
    secrets.extend(use_sessions(&stack).await);
    secrets.extend(mistakes(&stack).await);
    secrets.extend(use_webhook(&stack).await);
    let mut replay = stack.tandem(&["replay", "--sessions", "20", "--duration", "3s"]);
    let replay = process::run(&mut replay, REPLAY_LIMIT);
    assert!(replay.status.success(), "{}", said(&replay));
    secrets.extend(files(&stack));

    // What the calls above have caused is exported and written by then.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let logs = ["up.err", "session.log", "release.log", "postgres/postgres.log"];
    let mut places: Vec<_> = logs.map(|name| (name.to_owned(), stack.log(name))).into();
    places.push(("the replay's output".to_owned(), said(&replay)));
    places.push(("telemetry".to_owned(), stack.collected()));
    for (name, text) in &places[1..3] {
        assert!(text.contains("TRACE"), "{name} is not at the finest level");
    }
    places.extend(tables(&stack).await);
    for (place, text) in &places {
        for secret in &secrets {
            assert!(!secret.is_in(text), "{} is in {place}", secret.what);
        }
        for (begin, length) in SHAPES {
            assert_eq!(shaped(text, begin, length), None, "something of the shape of a secret is in {place}");
        }
    }
}

/// A webhook that signs something for nobody.
async fn use_webhook(stack: &Stack) -> [Secret; 2] {
    let mut client = WebhookServiceClient::new(channel(stack.session_address()));
    let webhook = Webhook { url: "http://127.0.0.1:9/".to_owned(), disabled: true, ..Webhook::default() };
    let request = CreateWebhookRequest { webhook: Some(webhook), request_id: String::new() };
    let made = client
        .create_webhook(stack.ask(request))
        .await
        .expect("a webhook is made")
        .into_inner();
    let webhook_id = made.webhook.map(|webhook| webhook.webhook_id).unwrap_or_default();
    client
        .ping_webhook(stack.ask(PingWebhookRequest { webhook_id }))
        .await
        .expect("a ping");
    let key = STANDARD.decode(&made.secret["whsec_".len()..]).expect("base64");
    [Secret::of("a webhook's secret", &made.secret), Secret::of_bytes("what signs for a webhook", &key)]
}

/// Every way in which a session token goes over the wire.
async fn use_sessions(stack: &Stack) -> Vec<Secret> {
    let mut secrets = Vec::new();
    for request_id in ["", "0b9b7e4e-5f0e-4d3c-9c53-1d2b8f3f6a11"] {
        let request = CreateSessionRequest {
            touchpoint: "web".to_owned(),
            device: "a test".to_owned(),
            request_id: request_id.to_owned(),
            ..CreateSessionRequest::default()
        };
        let created = stack
            .sessions()
            .create_session(stack.ask(request))
            .await
            .expect("a session is made");
        let token = created.into_inner().session_token;
        stack.validate(&token).await.expect("the call is answered");
        secrets.push(Secret::of("a session token", &token));
        let bytes = URL_SAFE_NO_PAD.decode(&token["tds_".len()..]).expect("base64");
        // Version and id before it, a checksum after it, are no secrets.
        secrets.push(Secret::of_bytes("a session's secret", &bytes[17..bytes.len() - 4]));
        secrets.extend(use_grants(stack, &token, request_id).await);
        secrets.extend(use_recovery(stack, &token, request_id).await);
        secrets.push(share_wishlist(stack, &token, request_id).await);
        let request = RevokeSessionRequest {
            target: Some(revoke_session_request::Target::SessionToken(token)),
            reason: RevokeReason::Logout.into(),
            request_id: String::new(),
        };
        stack
            .sessions()
            .revoke_session(stack.ask(request))
            .await
            .expect("the session is revoked");
    }
    secrets
}

/// What a session can be given.
async fn use_grants(stack: &Stack, token: &str, request_id: &str) -> Vec<Secret> {
    let (action, detail) =
        ("payment.create".to_owned(), "120.00 EUR to FR7630006000011234567890189".to_owned());
    let kept_nowhere = Secret::of("the detail of an elevation", &detail);
    let request = GrantElevationRequest {
        session_token: token.to_owned(),
        action: action.clone(),
        detail: detail.clone(),
        request_id: request_id.to_owned(),
        ..GrantElevationRequest::default()
    };
    let granted = stack.sessions().grant_elevation(stack.ask(request)).await;
    let elevation_token = granted.expect("leave is granted").into_inner().elevation_token;
    let elevation = Secret::of("an elevation token", &elevation_token);
    let request =
        RedeemElevationRequest { elevation_token, action, detail, request_id: request_id.to_owned() };
    let redeemed = stack.sessions().redeem_elevation(stack.ask(request)).await;
    redeemed.expect("leave is used up");
    let request = IssueAssertionRequest {
        session_token: token.to_owned(),
        audience: "payments".to_owned(),
        ..IssueAssertionRequest::default()
    };
    let issued = stack.sessions().issue_assertion(stack.ask(request)).await;
    let assertion = issued.expect("an assertion is issued").into_inner().assertion;
    vec![elevation, kept_nowhere, Secret::of("an assertion", &assertion)]
}

/// Leave to open a cart, used up and used again.
async fn use_recovery(stack: &Stack, token: &str, request_id: &str) -> Vec<Secret> {
    let owner = ShopperSelector { owner: Some(Owner::SessionToken(token.to_owned())) };
    let add = AddCartLineRequest {
        owner: Some(owner),
        sku: "85123A".to_owned(),
        quantity: 1,
        unit_price: Some(Money { currency_code: "EUR".to_owned(), minor_units: 255 }),
        ..AddCartLineRequest::default()
    };
    let added = stack.carts().add_cart_line(stack.ask(add)).await;
    let cart = added.expect("a line is added").into_inner().cart.unwrap_or_default();
    let request = CreateCartRecoveryRequest {
        shopper_id: cart.shopper_id,
        cart_id: cart.cart_id,
        request_id: request_id.to_owned(),
        ..CreateCartRecoveryRequest::default()
    };
    let created = stack.carts().create_cart_recovery(stack.ask(request)).await;
    let recovery_token = created.expect("a recovery is made").into_inner().recovery_token;
    let request = RedeemCartRecoveryRequest {
        recovery_token: recovery_token.clone(),
        session_token: token.to_owned(),
        ..RedeemCartRecoveryRequest::default()
    };
    let redeemed = stack.carts().redeem_cart_recovery(stack.ask(request.clone())).await;
    redeemed.expect("the recovery is used up");
    let again = stack.carts().redeem_cart_recovery(stack.ask(request)).await;
    assert!(again.is_err(), "a recovery is good once");
    vec![Secret::of("a recovery token", &recovery_token)]
}

/// What guests are shown a wishlist by.
async fn share_wishlist(stack: &Stack, token: &str, request_id: &str) -> Secret {
    let owner = || Some(ShopperSelector { owner: Some(Owner::SessionToken(token.to_owned())) });
    let (name, request_id) = ("Birthday".to_owned(), request_id.to_owned());
    let request = CreateWishlistRequest {
        owner: owner(),
        name,
        request_id: request_id.clone(),
        ..CreateWishlistRequest::default()
    };
    let made = stack.shoppers().create_wishlist(stack.ask(request)).await;
    let wishlist_id = made
        .expect("a wishlist is made")
        .into_inner()
        .wishlist
        .unwrap_or_default()
        .wishlist_id;
    let request = ShareWishlistRequest {
        owner: owner(),
        wishlist_id,
        request_id: request_id.clone(),
        ..ShareWishlistRequest::default()
    };
    let shared = stack.shoppers().share_wishlist(stack.ask(request)).await;
    let share_token = shared.expect("it is shared").into_inner().share_token;
    let share = WishlistShare { share: Some(Share::ShareToken(share_token.clone())) };
    let request = GetSharedWishlistRequest { share: Some(share.clone()), guest: owner() };
    let seen = stack.shoppers().get_shared_wishlist(stack.ask(request)).await;
    seen.expect("it is shown");
    let request = NoteWishlistInterestRequest {
        share: Some(share),
        guest: owner(),
        sku: "85123A".to_owned(),
        quantity: 1,
        request_id,
        ..NoteWishlistInterestRequest::default()
    };
    let noted = stack.shoppers().note_wishlist_interest(stack.ask(request)).await;
    assert!(noted.is_err(), "nothing is on the list");
    Secret::of("a share token", &share_token)
}

/// Secrets where they do not belong, and bad ones, come back as errors.
async fn mistakes(stack: &Stack) -> Vec<Secret> {
    let narrow = stack.sign(&["--scope", "session.validate", "--sub", "mallory"]);
    let expired = stack.sign(&["--ttl", "0s"]);
    let token = stack.create_session().await.session_token;
    for access in [&narrow, &expired] {
        let _ = stack.validate_as(access, &token).await;
        let _ = stack.validate_as(access, access).await;
    }
    let mut broken = narrow.clone();
    broken.truncate(broken.len() - 4);
    assert!(stack.validate_as(&broken, &token).await.is_err(), "a broken signature is taken");
    let misplaced = CreateSessionRequest { touchpoint: token.clone(), ..CreateSessionRequest::default() };
    assert!(stack.sessions().create_session(stack.ask(misplaced)).await.is_err(), "a token is no touchpoint");
    let tokens = [("an access token of little scope", narrow), ("an expired access token", expired)];
    let mut secrets: Vec<_> = tokens.iter().map(|(what, token)| Secret::of(what, token)).collect();
    secrets.push(Secret::of("a session token", &token));
    secrets
}

/// Keys and tokens that lie in the stack's folder.
fn files(stack: &Stack) -> Vec<Secret> {
    let mut secrets = vec![Secret::of("session-svc's access token", stack.log("session-svc.token").trim())];
    let pem = stack.log("issuer/issuer-key.pem");
    let key: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = STANDARD.decode(&key).expect("base64");
    secrets.push(Secret::of("the issuer's key", &key));
    secrets.push(Secret::of_bytes("the issuer's key", &der[der.len() - 32..]));
    let ring: Value = serde_json::from_str(&stack.log("keyring.json")).expect("JSON");
    for key in ring["keys"].as_array().expect("keys") {
        let secret = STANDARD.decode(key["secret"].as_str().expect("a secret")).expect("base64");
        secrets.push(Secret::of_bytes("a key of the ring", &secret));
    }
    assert!(secrets.len() >= 6, "not all secrets were found");
    secrets
}

/// Every row of every table of ours as PostgreSQL prints it, bytes in hexadecimal.
async fn tables(stack: &Stack) -> Vec<(String, String)> {
    let mut db = PgConnection::connect(&stack.database_url())
        .await
        .expect("the stack's PostgreSQL");
    let names = "select format('%I.%I', schemaname, tablename) from pg_tables \
                 where schemaname not in ('pg_catalog', 'information_schema') order by 1";
    let names: Vec<String> = sqlx::query_scalar(names).fetch_all(&mut db).await.expect("tables");
    assert!(names.iter().any(|name| name.ends_with(".sessions")), "no sessions among {names:?}");
    let mut tables = Vec::new();
    for name in names {
        let rows = format!("select coalesce(string_agg(t::text, e'\\n'), '') from {name} t");
        let text: String = sqlx::query_scalar(AssertSqlSafe(rows)).fetch_one(&mut db).await.expect("rows");
        tables.push((format!("table {name}"), text));
    }
    tables
}

/// A secret in all the forms in which it might show.
struct Secret {
    what: String,
    forms: Vec<String>,
}

impl Secret {
    fn of(what: &str, text: &str) -> Self {
        assert!(text.len() >= 32, "{what} is not what it should be");
        Self { what: what.to_owned(), forms: vec![text.to_owned(), hex(text.as_bytes())] }
    }

    fn of_bytes(what: &str, bytes: &[u8]) -> Self {
        assert_eq!(bytes.len(), 32, "{what} is not what it should be");
        let list = bytes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        // The ends of base64 depend on what stands beside it.
        let shifted = |padding: usize| {
            let text = URL_SAFE_NO_PAD.encode([&vec![0; padding], bytes].concat());
            text[4..text.len() - 4].to_owned()
        };
        let forms = vec![hex(bytes), list, STANDARD.encode(bytes), shifted(0), shifted(1), shifted(2)];
        Self { what: what.to_owned(), forms }
    }

    fn is_in(&self, text: &str) -> bool {
        self.forms.iter().any(|form| text.contains(form.as_str()))
    }
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

/// A word that begins so and is so long, cut so that the message does not tell it.
fn shaped(text: &str, begin: &str, length: usize) -> Option<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let words = text.match_indices(begin).map(|(at, _)| &text[at..]);
    let mut words = words.map(|rest| rest.split(|c| !is_part(c)).next().unwrap_or_default());
    words
        .find(|word| word.len() >= length)
        .map(|word| format!("{}...", &word[..begin.len() + 6]))
}
