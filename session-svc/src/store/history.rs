//! `session.shoppers`: what shoppers did lately.

use prost::Message as _;
use shared::id::{ShopperId, TenantId};
use shared::pb::storage;
use shared::time::from_micros;
use sqlx::PgConnection;

use super::{Unwritten, corrupt, section};
use crate::domain::history::{Entry, History};

const LAST_OF_CONTENT: u32 = 1;
const LAST_OF_ENTRY: u32 = 4;

/// A shopper's history; empty where none is stored.
#[tracing::instrument(name = "db.history.find", skip_all)]
pub async fn find(db: &mut PgConnection, tenant: &TenantId, shopper: ShopperId) -> sqlx::Result<History> {
    let stored = sqlx::query_scalar!(
        "select history from session.shoppers where tenant_id = $1 and shopper_id = $2",
        tenant.as_str(),
        shopper.uuid(),
    )
    .fetch_optional(db)
    .await?;
    read(stored.flatten().as_deref(), shopper)
}

/// Writes a locked shopper's history.
#[tracing::instrument(name = "db.history.update", skip_all)]
pub async fn update(
    db: &mut PgConnection,
    tenant: &TenantId,
    shopper: ShopperId,
    history: &History,
) -> Result<(), Unwritten> {
    sqlx::query!(
        "update session.shoppers set history = $3
        where tenant_id = $1 and shopper_id = $2 and merged_into_shopper_id is null",
        tenant.as_str(),
        shopper.uuid(),
        write(history)?,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Forgets a locked shopper's history, and what they looked at and left; false if there was none.
#[tracing::instrument(name = "db.history.clear", skip_all)]
pub async fn clear(db: &mut PgConnection, tenant: &TenantId, shopper: ShopperId) -> sqlx::Result<bool> {
    let done = sqlx::query!(
        "update session.shoppers
        set history = null, browsed_at = null, browse_abandoned_at = null, browse_lost_at = null,
            browse_epoch = browse_epoch + case when browse_abandoned_at is null then 0 else 1 end
        where tenant_id = $1 and shopper_id = $2 and history is not null",
        tenant.as_str(),
        shopper.uuid(),
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// What the column holds.
pub(super) fn read(stored: Option<&[u8]>, shopper: ShopperId) -> sqlx::Result<History> {
    let Some(stored) = stored else { return Ok(History::default()) };
    decode(stored).ok_or_else(|| corrupt("shoppers", "history", &shopper))
}

fn decode(stored: &[u8]) -> Option<History> {
    let message = section::open(stored)?;
    let content = storage::HistoryContent::decode(message).ok()?;
    let newer = section::newer_in(message, 1, LAST_OF_ENTRY)?;
    let entry = |(entry, newer): (storage::HistoryEntry, Vec<u8>)| {
        let storage::HistoryEntry { kind, r#ref: reference, at_us, dwell_ms } = entry;
        Entry { kind, reference, at: from_micros(at_us), dwell_ms, newer }
    };
    let entries = content.entries.into_iter().zip(newer).map(entry).collect();
    Some(History::from_stored(entries, section::newer(message, LAST_OF_CONTENT)?))
}

fn write(history: &History) -> Result<Vec<u8>, section::TooLarge> {
    let mut message = vec![];
    for entry in history.stored() {
        let stored = storage::HistoryEntry {
            kind: entry.kind,
            r#ref: entry.reference.clone(),
            at_us: entry.at.timestamp_micros(),
            dwell_ms: entry.dwell_ms,
        };
        section::put(&mut message, 1, &stored, &entry.newer);
    }
    message.extend_from_slice(&history.newer);
    section::seal(message)
}

#[cfg(test)]
mod tests {
    use super::section::last_field;
    use super::*;
    use crate::domain::history::ENTRIES_MAX;
    use shared::time::at;

    #[test]
    fn every_field_is_known() {
        assert_eq!(LAST_OF_CONTENT, last_field("HistoryContent"));
        assert_eq!(LAST_OF_ENTRY, last_field("HistoryEntry"));
    }

    #[test]
    fn the_fullest_history_fits_into_a_section() {
        let entry = |n: usize| Entry {
            kind: 5,
            reference: format!("{n:0256}"),
            at: at(4_000_000_000),
            dwell_ms: i64::MAX,
            newer: vec![],
        };
        let mut history = History::default();
        history.add((0..ENTRIES_MAX).map(entry), at(4_000_000_000));
        assert_eq!(decode(&write(&history).unwrap()), Some(history));
    }
}
