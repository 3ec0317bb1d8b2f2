//! `session.shoppers`: how shoppers like things, and what they consent to.

use prost::Message as _;
use shared::id::{SessionId, ShopperId, TenantId};
use shared::pb::storage;
use shared::time::{Time, from_micros};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Unwritten, corrupt, section};
use crate::domain::consent::{Consents, Decision, Purpose};
use crate::domain::preferences::{Preferences, Setting};

const LAST_OF_CONTENT: u32 = 2;
const LAST_OF_PREFERENCE: u32 = 4;
const LAST_OF_DECISION: u32 = 5;

/// A shopper's preferences and consent; empty, with version 0, where none are stored.
#[tracing::instrument(name = "db.preferences.find", skip_all)]
pub async fn find(db: &mut PgConnection, tenant: &TenantId, shopper: ShopperId) -> sqlx::Result<Preferences> {
    let row = sqlx::query!(
        "select preferences, preferences_version, preferences_updated_at
        from session.shoppers
        where tenant_id = $1 and shopper_id = $2",
        tenant.as_str(),
        shopper.uuid(),
    )
    .fetch_optional(db)
    .await?;
    let Some(row) = row else { return Ok(Preferences::default()) };
    read(row.preferences.as_deref(), row.preferences_version, row.preferences_updated_at, shopper)
}

/// Writes those of a locked shopper, of version `preferences.version - 1`; false if they have another.
#[tracing::instrument(name = "db.preferences.update", skip_all)]
pub async fn update(
    db: &mut PgConnection,
    tenant: &TenantId,
    shopper: ShopperId,
    preferences: &Preferences,
) -> Result<bool, Unwritten> {
    let done = sqlx::query!(
        "update session.shoppers
        set preferences = $3, preferences_version = $4, preferences_updated_at = $5, marketing_consent = $6
        where tenant_id = $1 and shopper_id = $2 and preferences_version = $4::bigint - 1
            and merged_into_shopper_id is null",
        tenant.as_str(),
        shopper.uuid(),
        write(preferences)?,
        preferences.version,
        preferences.updated_at,
        preferences.consents.on(Purpose::MARKETING).map(|decision| decision.is_granted),
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// What the columns hold.
pub(super) fn read(
    stored: Option<&[u8]>,
    version: i64,
    updated_at: Option<Time>,
    shopper: ShopperId,
) -> sqlx::Result<Preferences> {
    let Some(stored) = stored else { return Ok(Preferences { version, ..Preferences::default() }) };
    let preferences = decode(stored).ok_or_else(|| corrupt("shoppers", "preferences", &shopper))?;
    Ok(Preferences { updated_at, version, ..preferences })
}

fn decode(stored: &[u8]) -> Option<Preferences> {
    let message = section::open(stored)?;
    let content = storage::PreferencesContent::decode(message).ok()?;
    let session = |bytes: &[u8]| match bytes {
        [] => Some(None),
        bytes => Some(Some(SessionId::from_uuid(Uuid::from_slice(bytes).ok()?))),
    };
    let setting = |(stored, newer): (storage::Preference, Vec<u8>)| {
        let storage::Preference { key, values, set_at_us, session_id } = stored;
        Some(Setting { key, values, set_at: from_micros(set_at_us), session: session(&session_id)?, newer })
    };
    let decision = |(stored, newer): (storage::ConsentDecision, Vec<u8>)| {
        let storage::ConsentDecision { purpose, granted, policy_version, decided_at_us, session_id } = stored;
        let (purpose, at, session) = (Purpose(purpose), from_micros(decided_at_us), session(&session_id)?);
        Some(Decision { purpose, is_granted: granted, policy_version, at, session, newer })
    };
    let of_settings = section::newer_in(message, 1, LAST_OF_PREFERENCE)?;
    let of_decisions = section::newer_in(message, 2, LAST_OF_DECISION)?;
    let settings = content.preferences.into_iter().zip(of_settings).map(setting);
    let decisions = content.consent_decisions.into_iter().zip(of_decisions).map(decision);
    Some(Preferences {
        settings: settings.collect::<Option<_>>()?,
        consents: Consents::from_stored(decisions.collect::<Option<_>>()?),
        newer: section::newer(message, LAST_OF_CONTENT)?,
        ..Preferences::default()
    })
}

fn write(preferences: &Preferences) -> Result<Vec<u8>, section::TooLarge> {
    let session = |id: Option<SessionId>| id.map(|id| id.uuid().as_bytes().to_vec()).unwrap_or_default();
    let mut message = vec![];
    for setting in &preferences.settings {
        let stored = storage::Preference {
            key: setting.key,
            values: setting.values.clone(),
            set_at_us: setting.set_at.timestamp_micros(),
            session_id: session(setting.session),
        };
        section::put(&mut message, 1, &stored, &setting.newer);
    }
    for decision in preferences.consents.decisions() {
        let stored = storage::ConsentDecision {
            purpose: decision.purpose.0,
            granted: decision.is_granted,
            policy_version: decision.policy_version.clone(),
            decided_at_us: decision.at.timestamp_micros(),
            session_id: session(decision.session),
        };
        section::put(&mut message, 2, &stored, &decision.newer);
    }
    message.extend_from_slice(&preferences.newer);
    section::seal(message)
}

#[cfg(test)]
mod tests {
    use super::section::last_field;
    use super::*;

    #[test]
    fn every_field_is_known() {
        assert_eq!(LAST_OF_CONTENT, last_field("PreferencesContent"));
        assert_eq!(LAST_OF_PREFERENCE, last_field("Preference"));
        assert_eq!(LAST_OF_DECISION, last_field("ConsentDecision"));
    }
}
