//! Bad input: whatever a caller sends, the answer says what is wrong with it; no message brings a bug to light.

use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, MethodDescriptor, Value,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use shared::pb;
use shared::pb::session::CreateSessionRequest;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::caller::Authorized;
use crate::harness::shop::{create_catalog, create_session, create_touchpoint, ship, web};
use crate::harness::trust::{elevation, log_in};
use crate::harness::{Answer as _, Caller, Stack, person, raw, reason_of, system};

/// Messages of noise a method, and of fields filled with what breaks things.
const NOISE: usize = 25;
const HOSTILE: usize = 60;

async fn start() -> (Stack, Caller, Caller) {
    let stack = Stack::pair();
    let caller = stack.caller(&person("mallory"));
    create_touchpoint(&caller, web()).await;
    create_catalog(&caller).await;
    let system = stack.caller(&system("mallory"));
    (stack, caller, system)
}

fn methods() -> Vec<MethodDescriptor> {
    let pool = DescriptorPool::decode(pb::DESCRIPTORS).unwrap();
    let ours = pool.services().filter(|service| service.full_name().starts_with("tandem."));
    ours.flat_map(|service| service.methods().collect::<Vec<_>>()).collect()
}

fn path(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

/// Those who answer the method, to a caller who may call it.
fn channels(caller: &Caller, system: &Caller, path: &str) -> Vec<Authorized> {
    match path {
        _ if path.starts_with("/tandem.session.") => vec![caller.session_channel()],
        _ if path.contains("RoutingService") => vec![system.release_channel()],
        _ if path.starts_with("/tandem.release.") => vec![caller.release_channel()],
        _ => vec![caller.session_channel(), caller.release_channel()],
    }
}

/// A refusal that a caller can act on.
fn assert_told(path: &str, status: &Status, sent: &dyn std::fmt::Debug) {
    let info = status.get_details_error_info();
    let is_told = info
        .as_ref()
        .is_some_and(|info| info.domain == "tandem" && !info.reason.is_empty());
    let is_bug = matches!(
        status.code(),
        Code::Internal | Code::Unknown | Code::DataLoss | Code::Unavailable | Code::DeadlineExceeded
    );
    assert!(is_told && !is_bug, "{path}: {status:?} for {sent:?}");
}

#[tokio::test]
async fn noise_is_never_a_bug() {
    let (_stack, caller, system) = start().await;
    let mut rng = StdRng::seed_from_u64(1);
    for method in methods() {
        let path = path(&method);
        for channel in channels(&caller, &system, &path) {
            for _ in 0..NOISE {
                let mut noise = vec![0; rng.random_range(0..200)];
                rng.fill_bytes(&mut noise);
                if let Err(status) = raw::call(channel.clone(), &path, noise.clone()).await {
                    assert_told(&path, &status, &noise);
                }
            }
        }
    }
}

#[tokio::test]
async fn hostile_fields_are_never_a_bug() {
    let (stack, caller, system) = start().await;
    let (session, token) = create_session(&caller).await;
    let rollout = ship(&caller, "1.0", &[]).await;
    let real = [session.session_id, session.shopper_id, token, rollout.rollout_id, rollout.release_id];
    let mut rng = StdRng::seed_from_u64(2);
    for method in methods() {
        let path = path(&method);
        for channel in channels(&caller, &system, &path) {
            for _ in 0..HOSTILE {
                let message = hostile(&method.input(), &mut rng, &real, 0);
                if let Err(status) = raw::call(channel.clone(), &path, message.encode_to_vec()).await {
                    assert_told(&path, &status, &message);
                }
            }
        }
    }
    drop(stack);
}

fn hostile(descriptor: &MessageDescriptor, rng: &mut StdRng, real: &[String], depth: u32) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    for field in descriptor.fields() {
        if rng.random_bool(0.25) || depth > 4 {
            continue;
        }
        let value = if field.is_map() {
            let mut pair = |_| (MapKey::String(text(rng, real)), Value::String(text(rng, real)));
            Value::Map((0..40).map(&mut pair).collect())
        } else if field.is_list() {
            let count = *[0, 1, 3, 40, 1001].choose(rng).unwrap();
            Value::List((0..count).map(|_| hostile_value(&field, rng, real, depth)).collect())
        } else {
            hostile_value(&field, rng, real, depth)
        };
        message.set_field(&field, value);
    }
    message
}

fn hostile_value(field: &FieldDescriptor, rng: &mut StdRng, real: &[String], depth: u32) -> Value {
    let int = *[0, 1, -1, 2, 10_000, i64::from(i32::MAX), i64::from(i32::MIN), i64::MAX, i64::MIN]
        .choose(rng)
        .unwrap();
    #[expect(clippy::cast_possible_truncation, reason = "any number will do")]
    let small = int as i32;
    match field.kind() {
        Kind::Message(message) => Value::Message(hostile(&message, rng, real, depth + 1)),
        Kind::Enum(_) => Value::EnumNumber(*[0, 1, 2, 99, -1, i32::MAX, i32::MIN].choose(rng).unwrap()),
        Kind::Int32 => Value::I32(small),
        Kind::Int64 => Value::I64(int),
        Kind::Bool => Value::Bool(rng.random_bool(0.5)),
        Kind::String => Value::String(text(rng, real)),
        Kind::Bytes => Value::Bytes(text(rng, real).into_bytes().into()),
        Kind::Double
        | Kind::Float
        | Kind::Uint32
        | Kind::Uint64
        | Kind::Sint32
        | Kind::Sint64
        | Kind::Fixed32
        | Kind::Fixed64
        | Kind::Sfixed32
        | Kind::Sfixed64 => panic!("{}: nothing hostile for its type yet", field.full_name()),
    }
}

fn text(rng: &mut StdRng, real: &[String]) -> String {
    let fixed = [
        "",
        " ",
        "web",
        "storefront",
        "local",
        "starter",
        "1.0",
        "EUR",
        "\0",
        "a\0b",
        "\u{202e}evil",
        "ä",
        "💥",
        "'; drop table session.sessions; --",
        "%s%n",
        "../../etc/passwd",
        "ses_",
        "rel_zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz",
        "00000000-0000-0000-0000-000000000001",
        "99999999999999999999.0.0",
        "1.0.0-0.00",
        "sha256:",
        "v1",
        "-1",
        "null",
    ];
    match rng.random_range(0..10) {
        0 => "x".repeat(*[64, 65, 256, 1001, 17_000].choose(rng).unwrap()),
        1 => (0..rng.random_range(1..80)).map(|_| rng.random::<char>()).collect(),
        2..5 => real.choose(rng).unwrap().clone(),
        _ => (*fixed.choose(rng).unwrap()).to_owned(),
    }
}

#[tokio::test]
async fn bytes_that_are_no_message_are_undecodable_on_every_method() {
    let (_stack, caller, system) = start().await;
    for method in methods() {
        let path = path(&method);
        for channel in channels(&caller, &system, &path) {
            // A field that ends before its length, and a tag that no field has.
            for bytes in [vec![0x0a, 0xff, 0xff, 0xff, 0x0f], vec![0x0a, 0x7f, 1], vec![0x00], vec![0xff; 11]]
            {
                let refused = raw::call(channel.clone(), &path, bytes).await;
                refused.refused(Code::InvalidArgument, "REQUEST_UNDECODABLE");
            }
        }
    }
}

#[tokio::test]
async fn five_megabytes_are_too_large_on_every_method() {
    let (_stack, caller, system) = start().await;
    let device = "x".repeat(5 * 1024 * 1024);
    let large = CreateSessionRequest { touchpoint: device, ..Default::default() }.encode_to_vec();
    for method in methods() {
        let path = path(&method);
        for channel in channels(&caller, &system, &path) {
            let status = raw::call(channel, &path, large.clone())
                .await
                .refused(Code::ResourceExhausted, "REQUEST_TOO_LARGE");
            assert_eq!(status.get_details_error_info().unwrap().metadata["limit_bytes"], "1048576", "{path}");
        }
    }
}

/// Every string field that holds an id or a name, set to what is none.
#[tokio::test]
async fn malformed_ids_and_unknown_enums_name_their_field() {
    let (_stack, caller, system) = start().await;
    let (_, token) = log_in(&caller, "lena").await;
    let granted = caller
        .sessions()
        .grant_elevation(elevation(&token))
        .await
        .answer()
        .elevation_token;
    let ids = [
        "session_id",
        "shopper_id",
        "cart_id",
        "line_id",
        "release_id",
        "rollout_id",
        "replica_id",
        "request_id",
    ];
    let names = ["touchpoint", "component", "environment", "approval_policy"];
    let mut tried = 0;
    for method in methods() {
        let (input, path) = (method.input(), path(&method));
        for field in input.fields() {
            let is_named = ids.contains(&field.name()) || names.contains(&field.name());
            let is_text = matches!(field.kind(), Kind::String) && !field.is_list() && is_named;
            let value = if matches!(field.kind(), Kind::Enum(_)) {
                let unknown = Value::EnumNumber(99);
                if field.is_list() { Value::List(vec![unknown]) } else { unknown }
            } else if is_text {
                Value::String("Not An Id".to_owned())
            } else {
                continue;
            };
            let mut message = DynamicMessage::new(input.clone());
            // Of the token itself nothing is to be said.
            for (name, token) in [("session_token", &token), ("elevation_token", &granted)] {
                if input.get_field_by_name(name).is_some() {
                    message.set_field_by_name(name, Value::String(token.clone()));
                }
            }
            message.set_field(&field, value);
            for channel in channels(&caller, &system, &path) {
                let status = raw::call(channel, &path, message.encode_to_vec()).await;
                let status = status.refused(Code::InvalidArgument, "FIELD_INVALID");
                let violations = status.get_details_bad_request().unwrap().field_violations;
                assert!(
                    !violations.is_empty() && !violations[0].description.is_empty(),
                    "{path} {}",
                    field.name()
                );
                tried += 1;
            }
        }
    }
    assert!(tried > 40, "{tried}");
}

#[tokio::test]
async fn numbers_out_of_range_name_their_field() {
    let (_stack, caller, _) = start().await;
    let (_, token) = create_session(&caller).await;
    for quantity in [0, -1, 1_000_001, i32::MIN, i32::MAX] {
        let request =
            pb::session::AddCartLineRequest { quantity, ..crate::harness::shop::line(&token, "85123A", 1) };
        let status = caller
            .carts()
            .add_cart_line(request)
            .await
            .refused(Code::InvalidArgument, "FIELD_INVALID");
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "quantity");
    }
    for minor_units in [-1, i64::MIN, i64::MAX, 10_000_000_001] {
        let unit_price = Some(crate::harness::shop::euros(minor_units));
        let request =
            pb::session::AddCartLineRequest { unit_price, ..crate::harness::shop::line(&token, "85123A", 1) };
        caller
            .carts()
            .add_cart_line(request)
            .await
            .refused(Code::InvalidArgument, "FIELD_INVALID");
    }
    for currency in ["", "eur", "EURO", "E R", "€€€"] {
        let mut request = crate::harness::shop::line(&token, "85123A", 1);
        currency.clone_into(&mut request.unit_price.as_mut().unwrap().currency_code);
        let status = caller.carts().add_cart_line(request).await.unwrap_err();
        assert_eq!((status.code(), reason_of(&status).as_str()), (Code::InvalidArgument, "FIELD_INVALID"));
    }
}
