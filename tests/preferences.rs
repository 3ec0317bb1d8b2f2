//! Preferences and consent: what may be set, changed field by field, known on every device, and told of without its
//! values.

use chrono::TimeDelta;
use futures_util::future::join_all;
use prost_types::FieldMask;
use prost_types::value::Kind;
use shared::pb::session as pb;
use shared::time::to_proto;
use tonic::Code;
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::harness::shop::{create_session, owner};
use crate::harness::trust::log_in;
use crate::harness::{Answer as _, Caller, Watch};
use crate::wishlist::{shopper, start};

pub(crate) fn setting(
    owner: pb::ShopperSelector,
    preferences: pb::Preferences,
    fields: &[&str],
) -> pb::UpdatePreferencesRequest {
    let paths = fields.iter().map(|field| (*field).to_owned()).collect();
    pb::UpdatePreferencesRequest {
        owner: Some(owner),
        preferences: Some(preferences),
        update_mask: Some(FieldMask { paths }),
        ..Default::default()
    }
}

pub(crate) async fn set_locale(caller: &Caller, owner: pb::ShopperSelector, locale: &str) -> pb::Preferences {
    let preferences = pb::Preferences { locale: locale.to_owned(), ..Default::default() };
    let request = setting(owner, preferences, &["locale"]);
    caller
        .shoppers()
        .update_preferences(request)
        .await
        .answer()
        .preferences
        .unwrap()
}

pub(crate) async fn get_preferences(
    caller: &Caller,
    owner: pb::ShopperSelector,
) -> pb::GetPreferencesResponse {
    let request = pb::GetPreferencesRequest { owner: Some(owner) };
    caller.shoppers().get_preferences(request).await.answer()
}

pub(crate) fn consenting(
    owner: pb::ShopperSelector,
    purpose: pb::ConsentPurpose,
    granted: bool,
) -> pb::UpdateConsentRequest {
    let policy_version = "2026-11".to_owned();
    let decision = pb::ConsentDecision { purpose: purpose.into(), granted, policy_version };
    pb::UpdateConsentRequest { owner: Some(owner), decisions: vec![decision], ..Default::default() }
}

/// Agrees to PERSONALISATION, or does not.
pub(crate) async fn consent(
    caller: &Caller,
    owner: pb::ShopperSelector,
    granted: bool,
) -> pb::UpdateConsentResponse {
    let request = consenting(owner, pb::ConsentPurpose::Personalisation, granted);
    caller.shoppers().update_consent(request).await.answer()
}

fn id(n: u128) -> String {
    Uuid::from_u128(n).to_string()
}

fn all() -> pb::Preferences {
    pb::Preferences {
        locale: "DE-ch".to_owned(),
        currency_code: "CHF".to_owned(),
        country_code: "CH".to_owned(),
        store_id: "zrh-1".to_owned(),
        time_zone: "Europe/Zurich".to_owned(),
        theme: pb::Theme::Dark.into(),
        accessibility_needs: vec![3, 1, 3],
        notification_channels: vec![3],
        ..Default::default()
    }
}

const FIELDS: [&str; 8] = [
    "locale",
    "currency_code",
    "country_code",
    "store_id",
    "time_zone",
    "theme",
    "accessibility_needs",
    "notification_channels",
];

#[tokio::test]
async fn fields_are_set_and_cleared_one_by_one() {
    let (stack, caller, token) = start().await;
    let mut events = Watch::open(caller.session_events()).await;
    let nothing = get_preferences(&caller, owner(&token)).await;
    let none = pb::Preferences { etag: "v0".to_owned(), ..Default::default() };
    assert_eq!((nothing.preferences, nothing.consents), (Some(none), vec![]));
    let request = setting(owner(&token), all(), &FIELDS);
    let set = caller
        .shoppers()
        .update_preferences(request)
        .await
        .answer()
        .preferences
        .unwrap();
    let expected = pb::Preferences {
        locale: "de-CH".to_owned(),
        accessibility_needs: vec![1, 3],
        update_time: Some(to_proto(stack.now())),
        etag: "v1".to_owned(),
        ..all()
    };
    assert_eq!(set, expected);
    // Only what the mask names, whatever else is there; an empty value clears.
    stack.advance(TimeDelta::seconds(1));
    let given =
        pb::Preferences { locale: "fr".to_owned(), currency_code: "EUR".to_owned(), ..Default::default() };
    let request = setting(owner(&token), given, &["locale", "theme", "notification_channels"]);
    let set = caller
        .shoppers()
        .update_preferences(request.clone())
        .await
        .answer()
        .preferences
        .unwrap();
    let expected = pb::Preferences {
        locale: "fr".to_owned(),
        theme: 0,
        notification_channels: vec![],
        update_time: Some(to_proto(stack.now())),
        etag: "v2".to_owned(),
        ..expected
    };
    assert_eq!(set, expected);
    // What changes nothing is no change.
    stack.advance(TimeDelta::seconds(1));
    let again = caller
        .shoppers()
        .update_preferences(request)
        .await
        .answer()
        .preferences
        .unwrap();
    assert_eq!(again, expected);
    assert_eq!(get_preferences(&caller, owner(&token)).await.preferences, Some(expected));
    for count in [8, 3] {
        let event = events.next_of("preferences.changed").await;
        let data = event.data.unwrap();
        let Some(Kind::ListValue(fields)) = &data.fields["fields"].kind else { panic!("{data:?}") };
        assert_eq!(fields.values.len(), count);
        let told = format!("{data:?}");
        assert!(!told.contains("CHF") && !told.contains("zrh-1") && !told.contains("Zurich"), "{told}");
    }
}

#[tokio::test]
async fn bad_values_are_refused_with_their_field_named() {
    let (_stack, caller, token) = start().await;
    let text = |field: &str, value: &str| {
        let (value, mut given) = (value.to_owned(), pb::Preferences::default());
        match field {
            "locale" => given.locale = value,
            "currency_code" => given.currency_code = value,
            "country_code" => given.country_code = value,
            "store_id" => given.store_id = value,
            _ => given.time_zone = value,
        }
        given
    };
    let long = "x".repeat(65);
    let texts = [
        ("locale", "de_CH"),
        ("locale", "not a tag"),
        ("locale", "de-CH\u{0}"),
        ("locale", "-"),
        ("currency_code", "eur"),
        ("currency_code", "EURO"),
        ("country_code", "ch"),
        ("country_code", "CHE"),
        ("country_code", "XX"),
        ("store_id", "a\nb"),
        ("store_id", "4111 1111 1111 1111"),
        ("store_id", &long),
        ("time_zone", "Europe/Atlantis"),
        ("time_zone", "+01:00"),
        ("time_zone", "europe/zurich"),
    ];
    let mut table: Vec<_> = texts.map(|(field, value)| (field, text(field, value))).into();
    table.push(("theme", pb::Preferences { theme: 9, ..Default::default() }));
    for needs in [vec![0], vec![99], vec![1; 17]] {
        table.push((
            "accessibility_needs",
            pb::Preferences { accessibility_needs: needs, ..Default::default() },
        ));
    }
    table.push((
        "notification_channels",
        pb::Preferences { notification_channels: vec![-1], ..Default::default() },
    ));
    for (field, given) in table {
        let shown = format!("{given:?}");
        let status = caller
            .shoppers()
            .update_preferences(setting(owner(&token), given, &[field]))
            .await;
        let status = status.refused(Code::InvalidArgument, "FIELD_INVALID");
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, format!("preferences.{field}"), "{shown}");
    }
    for mask in [&[][..], &["etag"], &["update_time"], &["no_such"], &["locale", ""], &["locale"; 17]] {
        let status = caller.shoppers().update_preferences(setting(owner(&token), all(), mask)).await;
        let status = status.refused(Code::InvalidArgument, "FIELD_INVALID");
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "update_mask", "{mask:?}");
    }
    let none = get_preferences(&caller, owner(&token)).await.preferences.unwrap();
    assert_eq!(none.etag, "v0", "nothing of it was set");
}

#[tokio::test]
async fn two_tabs_that_set_different_fields_lose_none_and_a_stale_etag_is_refused() {
    let (_stack, caller, token) = start().await;
    join_all(FIELDS.map(|field| {
        let request = setting(owner(&token), all(), &[field]);
        let mut shoppers = caller.shoppers();
        async move { shoppers.update_preferences(request).await.answer() }
    }))
    .await;
    let seen = get_preferences(&caller, owner(&token)).await.preferences.unwrap();
    assert_eq!((&*seen.etag, &*seen.locale, seen.theme()), ("v8", "de-CH", pb::Theme::Dark));
    assert_eq!((&*seen.time_zone, seen.notification_channels.len()), ("Europe/Zurich", 1));
    let with_etag = |locale: &str, etag: &str| {
        let given =
            pb::Preferences { locale: locale.to_owned(), etag: etag.to_owned(), ..Default::default() };
        setting(owner(&token), given, &["locale"])
    };
    caller.shoppers().update_preferences(with_etag("it", "v8")).await.answer();
    let status = caller.shoppers().update_preferences(with_etag("rm", "v8")).await;
    status.refused(Code::Aborted, "ETAG_MISMATCH");
    let request = consenting(owner(&token), pb::ConsentPurpose::Marketing, true);
    let stale = pb::UpdateConsentRequest { etag: "v8".to_owned(), ..request.clone() };
    caller
        .shoppers()
        .update_consent(stale)
        .await
        .refused(Code::Aborted, "ETAG_MISMATCH");
    let fresh = pb::UpdateConsentRequest { etag: "v9".to_owned(), ..request };
    assert_eq!(caller.shoppers().update_consent(fresh).await.answer().etag, "v10");
}

#[tokio::test]
async fn a_change_with_a_request_id_happens_once() {
    let (_stack, caller, token) = start().await;
    let request = |locale: &str| {
        let given = pb::Preferences { locale: locale.to_owned(), ..Default::default() };
        let request = setting(owner(&token), given, &["locale"]);
        pb::UpdatePreferencesRequest { request_id: id(1), ..request }
    };
    caller.shoppers().update_preferences(request("de")).await.answer();
    let now = set_locale(&caller, owner(&token), "fr").await;
    let again = caller.shoppers().update_preferences(request("de")).await.answer();
    assert_eq!(again.preferences, Some(now), "as it is now");
    let status = caller.shoppers().update_preferences(request("it")).await;
    status.refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
    let grant = |granted| {
        let request = consenting(owner(&token), pb::ConsentPurpose::Analytics, granted);
        pb::UpdateConsentRequest { request_id: id(2), ..request }
    };
    let first = caller.shoppers().update_consent(grant(true)).await.answer();
    assert_eq!(caller.shoppers().update_consent(grant(true)).await.answer(), first);
    caller
        .shoppers()
        .update_consent(grant(false))
        .await
        .refused(Code::AlreadyExists, "REQUEST_ID_REUSED");
}

#[tokio::test]
async fn what_was_decided_is_remembered_and_the_last_of_it_stands() {
    let (stack, caller, token) = start().await;
    let mut events = Watch::open(caller.session_events()).await;
    let mut expected = vec![];
    for (granted, version) in [(true, "1"), (true, "1"), (true, "2"), (false, "2")] {
        stack.advance(TimeDelta::seconds(1));
        let mut request = consenting(owner(&token), pb::ConsentPurpose::Marketing, granted);
        request.decisions[0].policy_version = version.to_owned();
        caller.shoppers().update_consent(request).await.answer();
        let decided = pb::Consent {
            purpose: pb::ConsentPurpose::Marketing.into(),
            granted,
            policy_version: version.to_owned(),
            decide_time: Some(to_proto(stack.now())),
        };
        // Whoever agrees to the same again has agreed already.
        if expected
            .last()
            .is_none_or(|last: &pb::Consent| (last.granted, &*last.policy_version) != (granted, version))
        {
            expected.push(decided);
        }
    }
    assert_eq!(expected.len(), 3);
    let listing = pb::ListConsentDecisionsRequest { owner: Some(owner(&token)) };
    let log = caller.shoppers().list_consent_decisions(listing).await.answer().decisions;
    assert_eq!(log, expected);
    assert_eq!(get_preferences(&caller, owner(&token)).await.consents, expected[2..]);
    for decided in &expected {
        let event = events.next_of("consent.changed").await;
        let fields = event.data.unwrap().fields;
        assert_eq!(fields["granted"].kind, Some(Kind::BoolValue(decided.granted)));
        assert_eq!(fields["purpose"].kind, Some(Kind::StringValue("MARKETING".to_owned())));
        assert_eq!(fields["policy_version"].kind, Some(Kind::StringValue(decided.policy_version.clone())));
    }
    let decision = |purpose, policy_version: &str| pb::ConsentDecision {
        purpose,
        granted: true,
        policy_version: policy_version.to_owned(),
    };
    for (field, decisions) in [
        ("decisions", vec![]),
        ("decisions", vec![decision(1, "1"); 17]),
        ("decisions[0].purpose", vec![decision(0, "1")]),
        ("decisions[0].purpose", vec![decision(9, "1")]),
        ("decisions[1].purpose", vec![decision(1, "1"), decision(1, "2")]),
        ("decisions[0].policy_version", vec![decision(1, "")]),
        ("decisions[0].policy_version", vec![decision(1, "a\u{7f}")]),
    ] {
        let request =
            pb::UpdateConsentRequest { owner: Some(owner(&token)), decisions, ..Default::default() };
        let status = caller.shoppers().update_consent(request).await;
        let status = status.refused(Code::InvalidArgument, "FIELD_INVALID");
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, field);
    }
}

#[tokio::test]
async fn the_devices_of_a_subject_see_each_others_changes_with_the_next_call() {
    let (_stack, caller, _) = start().await;
    let (session, phone) = log_in(&caller, "ann").await;
    let (_, laptop) = log_in(&caller, "ann").await;
    let (_, strangers) = create_session(&caller).await;
    for (one, other, locale) in [(&phone, &laptop, "de"), (&laptop, &phone, "fr")] {
        let set = set_locale(&caller, owner(one), locale).await;
        assert_eq!(get_preferences(&caller, owner(other)).await.preferences, Some(set));
    }
    let by_id = get_preferences(&caller, shopper(&session.shopper_id)).await;
    assert_eq!(by_id.preferences.unwrap().locale, "fr");
    assert_eq!(get_preferences(&caller, owner(&strangers)).await.preferences.unwrap().locale, "");
}
