//! How shoppers like things, and what they consent to.

use prost_types::FieldMask;
use serde_json::json;
use shared::mutation::{Begun, Mutation};
use shared::parse::{at_most, etag, etag_of, known, known_or_default, line, required};
use shared::pb::session as pb;
use shared::status::{Failure, Refusal};
use tonic::Request;

use super::change::{Reading, Whose};
use super::convert::standing_to_proto;
use crate::domain::consent::{Decision, Purpose};
use crate::domain::preferences::{Key, Preferences, country, currency, locale, time_zone};
use crate::rpc::free::free_line;
use crate::rpc::{App, overtaken};
use crate::store;

const STORE_MAX: usize = 64;
const POLICY_VERSION_MAX: usize = 64;
/// More than there are values of any of these enums.
const LIST_MAX: usize = 16;

impl App {
    pub(super) async fn get_preferences(
        &self,
        request: Request<pb::GetPreferencesRequest>,
    ) -> Result<pb::GetPreferencesResponse, Failure> {
        let Reading { tenant, shopper, .. } = self.reading(request, |m| &mut m.owner).await?;
        let preferences =
            store::preferences::find(&mut *self.db.connection().await?, &tenant, shopper.id).await?;
        let consents = standing_to_proto(&preferences.consents);
        Ok(pb::GetPreferencesResponse { preferences: Some((&preferences).into()), consents })
    }

    pub(super) async fn update_preferences(
        &self,
        request: Request<pb::UpdatePreferencesRequest>,
    ) -> Result<pb::UpdatePreferencesResponse, Failure> {
        let (change, message) = self
            .change(request, "UpdatePreferences", |m| &mut m.owner, |m| &mut m.request_id)
            .await?;
        let pb::UpdatePreferencesRequest { preferences, update_mask, owner: _, request_id: _ } = message;
        let given = required("preferences", preferences)?;
        let set = parse_settings(&given, required("update_mask", update_mask)?)?;
        let whose = change.whose();
        let Begun::Fresh(mut work) = self.open::<()>(change).await? else {
            let mut db = self.db.connection().await?;
            let preferences = store::preferences::find(&mut db, &whose.tenant, whose.id).await?;
            return Ok(pb::UpdatePreferencesResponse { preferences: Some((&preferences).into()) });
        };
        let mut preferences = store::preferences::find(&mut work.tx, &whose.tenant, whose.id).await?;
        etag(&given.etag, preferences.version)?;
        let now = work.now;
        let changed = set.into_iter().filter_map(|(name, key, values)| {
            preferences.set(key, values, now, whose.session).then_some(name)
        });
        let changed: Vec<_> = changed.collect();
        if !changed.is_empty() {
            write(&mut work, &whose, &mut preferences).await?;
            // Which, not what: values are personal.
            let data = whose.told(json!({"fields": changed}));
            work.tell("preferences.changed", whose.id.to_string(), data);
        }
        work.answer(()).await?;
        Ok(pb::UpdatePreferencesResponse { preferences: Some((&preferences).into()) })
    }

    pub(super) async fn update_consent(
        &self,
        request: Request<pb::UpdateConsentRequest>,
    ) -> Result<pb::UpdateConsentResponse, Failure> {
        let (change, message) = self
            .change(request, "UpdateConsent", |m| &mut m.owner, |m| &mut m.request_id)
            .await?;
        let pb::UpdateConsentRequest { decisions, etag: seen, owner: _, request_id: _ } = message;
        let decided = parse_decisions(decisions)?;
        let whose = change.whose();
        let answer = |preferences: &Preferences| pb::UpdateConsentResponse {
            consents: standing_to_proto(&preferences.consents),
            etag: etag_of(preferences.version),
        };
        let Begun::Fresh(mut work) = self.open::<()>(change).await? else {
            let mut db = self.db.connection().await?;
            return Ok(answer(&store::preferences::find(&mut db, &whose.tenant, whose.id).await?));
        };
        let mut preferences = store::preferences::find(&mut work.tx, &whose.tenant, whose.id).await?;
        etag(&seen, preferences.version)?;
        let mut made = vec![];
        for (purpose, is_granted, policy_version) in decided {
            let (at, session) = (work.now, whose.session);
            let decision = Decision { purpose, is_granted, policy_version, at, session, newer: vec![] };
            if preferences.consents.decide(decision.clone()) {
                made.push(decision);
            }
        }
        if !made.is_empty() {
            write(&mut work, &whose, &mut preferences).await?;
            tell_consents(&mut work, &whose, &made);
            forget_without_consent(&mut work, &whose, &preferences).await?;
        }
        work.answer(()).await?;
        Ok(answer(&preferences))
    }

    pub(super) async fn list_consent_decisions(
        &self,
        request: Request<pb::ListConsentDecisionsRequest>,
    ) -> Result<pb::ListConsentDecisionsResponse, Failure> {
        let Reading { tenant, shopper, .. } = self.reading(request, |m| &mut m.owner).await?;
        let preferences =
            store::preferences::find(&mut *self.db.connection().await?, &tenant, shopper.id).await?;
        let decisions = preferences.consents.decisions().iter().map(Into::into).collect();
        Ok(pb::ListConsentDecisionsResponse { decisions })
    }
}

/// Writes the next version of a locked shopper's preferences.
pub(super) async fn write(
    work: &mut Mutation,
    whose: &Whose,
    preferences: &mut Preferences,
) -> Result<(), Failure> {
    preferences.version += 1;
    let is_written = store::preferences::update(&mut work.tx, &whose.tenant, whose.id, preferences).await?;
    is_written.then_some(()).ok_or_else(overtaken)
}

/// An event a decision.
pub(super) fn tell_consents(work: &mut Mutation, whose: &Whose, made: &[Decision]) {
    for decision in made {
        let data = json!({
            "purpose": purpose_name(decision.purpose),
            "granted": decision.is_granted,
            "policy_version": decision.policy_version,
        });
        work.tell("consent.changed", whose.id.to_string(), whose.told(data));
    }
}

/// History is there with consent only.
pub(super) async fn forget_without_consent(
    work: &mut Mutation,
    whose: &Whose,
    preferences: &Preferences,
) -> Result<(), Failure> {
    if !preferences.consents.grants(Purpose::PERSONALISATION)
        && store::history::clear(&mut work.tx, &whose.tenant, whose.id).await?
    {
        let data = whose.told(json!({"reason": "CONSENT_WITHDRAWN"}));
        work.tell("history.cleared", whose.id.to_string(), data);
    }
    Ok(())
}

fn purpose_name(purpose: Purpose) -> String {
    let known = pb::ConsentPurpose::try_from(purpose.0);
    known.map_or_else(
        |_| purpose.0.to_string(),
        |known| known.as_str_name().trim_start_matches("CONSENT_PURPOSE_").to_owned(),
    )
}

/// The fields that the mask names, each with its key and its values.
fn parse_settings(
    given: &pb::Preferences,
    mask: FieldMask,
) -> Result<Vec<(String, Key, Vec<String>)>, Refusal> {
    if mask.paths.is_empty() {
        return Err(Refusal::field("update_mask", "must name at least one field"));
    }
    at_most("update_mask", &mask.paths, LIST_MAX)?;
    let parse = |path: String| {
        let (key, values) = parse_setting(given, &path)?;
        Ok((path, key, values))
    };
    mask.paths.into_iter().map(parse).collect()
}

fn parse_setting(given: &pb::Preferences, path: &str) -> Result<(Key, Vec<String>), Refusal> {
    let unknown = || Refusal::field("update_mask", format_args!("{path:?} is no field that can be set"));
    let key = Key::ALL.into_iter().find(|key| key.name() == path).ok_or_else(unknown)?;
    let field = format!("preferences.{path}");
    let bad = |problem: &dyn std::fmt::Display| Refusal::field(&field, problem);
    let one = |text: &str, read: &dyn Fn(&str) -> Result<String, Refusal>| {
        let value = Some(text).filter(|text| !text.is_empty()).map(read).transpose()?;
        Ok::<_, Refusal>(value.into_iter().collect())
    };
    let values = match key {
        Key::Locale => one(&given.locale, &|text| locale(text).map_err(|problem| bad(&problem))),
        Key::Currency => one(&given.currency_code, &|text| currency(text).map_err(|problem| bad(&problem))),
        Key::Country => one(&given.country_code, &|text| country(text).map_err(|problem| bad(&problem))),
        Key::Store => one(&given.store_id, &|text| free_line(&field, text.to_owned(), 1, STORE_MAX)),
        Key::TimeZone => one(&given.time_zone, &|text| time_zone(text).map_err(|problem| bad(&problem))),
        Key::Theme => {
            let theme: pb::Theme = known_or_default(&field, given.theme)?;
            let is_set = theme != pb::Theme::Unspecified;
            Ok(is_set.then(|| given.theme.to_string()).into_iter().collect())
        }
        Key::AccessibilityNeeds => numbers::<pb::AccessibilityNeed>(&field, &given.accessibility_needs),
        Key::NotificationChannels => numbers::<pb::NotificationChannel>(&field, &given.notification_channels),
    };
    Ok((key, values?))
}

/// Values of an enum, each once, as they are stored.
fn numbers<T: TryFrom<i32> + Default + PartialEq>(
    field: &str,
    numbers: &[i32],
) -> Result<Vec<String>, Refusal> {
    at_most(field, numbers, LIST_MAX)?;
    for number in numbers {
        known::<T>(field, *number)?;
    }
    let mut once = numbers.to_vec();
    once.sort_unstable();
    once.dedup();
    Ok(once.iter().map(i32::to_string).collect())
}

fn parse_decisions(decisions: Vec<pb::ConsentDecision>) -> Result<Vec<(Purpose, bool, String)>, Refusal> {
    if decisions.is_empty() {
        return Err(Refusal::field("decisions", "must have at least one element"));
    }
    at_most("decisions", &decisions, LIST_MAX)?;
    let mut parsed: Vec<(Purpose, bool, String)> = vec![];
    for (n, decision) in decisions.into_iter().enumerate() {
        let pb::ConsentDecision { purpose, granted, policy_version } = decision;
        let field = |name| format!("decisions[{n}].{name}");
        let purpose: pb::ConsentPurpose = known(&field("purpose"), purpose)?;
        let purpose = Purpose(purpose.into());
        if parsed.iter().any(|(other, ..)| *other == purpose) {
            return Err(Refusal::field(field("purpose"), "must not be there twice"));
        }
        let version = line(&field("policy_version"), policy_version, 1, POLICY_VERSION_MAX)?;
        parsed.push((purpose, granted, version));
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_numbers_of_the_fields_and_purposes_those_of_the_enum() {
        let descriptors = shared::pb::DESCRIPTORS;
        let set: prost_types::FileDescriptorSet = prost::Message::decode(descriptors).unwrap();
        let messages = set.file.into_iter().filter(|file| file.package() == "tandem.session.v1");
        let preferences = messages
            .flat_map(|file| file.message_type)
            .find(|message| message.name() == "Preferences")
            .unwrap();
        for field in preferences.field {
            match parse_setting(&pb::Preferences::default(), field.name()) {
                Ok((key, values)) => {
                    assert_eq!((key as i32, values.len()), (field.number(), 0), "{}", field.name());
                }
                Err(_) => assert!(["update_time", "etag"].contains(&field.name()), "{}", field.name()),
            }
        }
        assert_eq!(Purpose::PERSONALISATION.0, pb::ConsentPurpose::Personalisation as i32);
        assert_eq!(Purpose::MARKETING.0, pb::ConsentPurpose::Marketing as i32);
    }
}
