//! What shoppers did lately, as far as they agree to its being remembered.

use serde_json::json;
use shared::mutation::Begun;
use shared::parse::{at_most, duration, known, known_or_default, line};
use shared::pb::session as pb;
use shared::status::{Failure, Refusal};
use shared::time::{Time, from_proto};
use tonic::Request;

use super::browsing;
use super::change::{Reading, lock};
use crate::domain::consent::Purpose;
use crate::domain::history::{DWELL_MAX_MS, ENTRIES_MAX, Entry, looked_at};
use crate::rpc::App;
use crate::rpc::free::free_line;
use crate::store;

const BATCH_MAX: usize = 100;
/// In bytes, so that the fullest history fits into a section.
const REFERENCE_MAX: usize = 256;

impl App {
    pub(super) async fn append_history(
        &self,
        request: Request<pb::AppendHistoryRequest>,
    ) -> Result<pb::AppendHistoryResponse, Failure> {
        let (change, message) = self
            .change(request, "AppendHistory", |m| &mut m.owner, |m| &mut m.request_id)
            .await?;
        let now = self.clock.now();
        let entries = parse_entries(message.entries, now)?;
        let whose = change.whose();
        let look = looked_at(&entries, now).map(|at| change.look(at));
        let mut work = match self.begin_change::<pb::AppendHistoryResponse>(change).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let mut preferences = store::preferences::find(&mut work.tx, &whose.tenant, whose.id).await?;
        // Who never agreed leaves nothing here, not even a row to lock.
        if preferences.consents.grants(Purpose::PERSONALISATION) {
            lock(&mut work, &whose).await?;
            preferences = store::preferences::find(&mut work.tx, &whose.tenant, whose.id).await?;
        }
        let outcome = if preferences.consents.grants(Purpose::PERSONALISATION) {
            let mut history = store::history::find(&mut work.tx, &whose.tenant, whose.id).await?;
            history.add(entries, work.now);
            store::history::update(&mut work.tx, &whose.tenant, whose.id, &history).await?;
            if let Some(look) = look {
                browsing::look(&mut work, &whose.tenant, whose.id, &look, &preferences.consents).await?;
            }
            pb::HistoryOutcome::Kept
        } else {
            pb::HistoryOutcome::NoConsent
        };
        work.answer(pb::AppendHistoryResponse { outcome: outcome.into() }).await
    }

    pub(super) async fn list_history(
        &self,
        request: Request<pb::ListHistoryRequest>,
    ) -> Result<pb::ListHistoryResponse, Failure> {
        let Reading { tenant, shopper, now, message, visit: _ } =
            self.reading(request, |m| &mut m.owner).await?;
        let kind: pb::HistoryKind = known_or_default("kind", message.kind)?;
        let is_asked = |entry: &&Entry| kind == pb::HistoryKind::Unspecified || entry.kind == i32::from(kind);
        let history = store::history::find(&mut *self.db.connection().await?, &tenant, shopper.id).await?;
        let entries = history.newest(now).filter(is_asked).map(Into::into);
        Ok(pb::ListHistoryResponse { entries: entries.take(ENTRIES_MAX).collect() })
    }

    pub(super) async fn clear_history(
        &self,
        request: Request<pb::ClearHistoryRequest>,
    ) -> Result<pb::ClearHistoryResponse, Failure> {
        let (change, _) = self
            .change(request, "ClearHistory", |m| &mut m.owner, |m| &mut m.request_id)
            .await?;
        let whose = change.whose();
        let mut work = match self.open::<pb::ClearHistoryResponse>(change).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        if store::history::clear(&mut work.tx, &whose.tenant, whose.id).await? {
            let data = whose.told(json!({"reason": "ASKED"}));
            work.tell("history.cleared", whose.id.to_string(), data);
        }
        work.answer(pb::ClearHistoryResponse {}).await
    }
}

fn parse_entries(entries: Vec<pb::HistoryEntry>, now: Time) -> Result<Vec<Entry>, Refusal> {
    if entries.is_empty() {
        return Err(Refusal::field("entries", "must have at least one element"));
    }
    at_most("entries", &entries, BATCH_MAX)?;
    let parse = |(n, entry): (usize, pb::HistoryEntry)| parse_entry(&format!("entries[{n}]"), entry, now);
    entries.into_iter().enumerate().map(parse).collect()
}

fn parse_entry(field: &str, entry: pb::HistoryEntry, now: Time) -> Result<Entry, Refusal> {
    let pb::HistoryEntry { kind, r#ref: reference, time, dwell } = entry;
    let kind: pb::HistoryKind = known(&format!("{field}.kind"), kind)?;
    let field_of_ref = format!("{field}.ref");
    // What is searched for is typed by the shopper; the rest are names of the shop's.
    let reference = match kind {
        pb::HistoryKind::Search => free_line(&field_of_ref, reference, 1, REFERENCE_MAX)?,
        pb::HistoryKind::Unspecified
        | pb::HistoryKind::View
        | pb::HistoryKind::Add
        | pb::HistoryKind::Remove
        | pb::HistoryKind::PurchaseIntent => line(&field_of_ref, reference, 1, REFERENCE_MAX)?,
    };
    if reference.len() > REFERENCE_MAX {
        return Err(Refusal::field(field_of_ref, format_args!("must have at most {REFERENCE_MAX} bytes")));
    }
    let at = match time {
        None => now,
        Some(time) => from_proto(time).filter(|at| *at <= now).ok_or_else(|| {
            Refusal::field(format!("{field}.time"), "must be an instant, not in the future")
        })?,
    };
    let dwell = duration(&format!("{field}.dwell"), dwell)?.unwrap_or_default();
    let dwell_ms = i64::try_from(dwell.as_millis()).ok().filter(|dwell| *dwell <= DWELL_MAX_MS);
    let dwell_ms =
        dwell_ms.ok_or_else(|| Refusal::field(format!("{field}.dwell"), "must be at most 24 hours"))?;
    Ok(Entry { kind: kind.into(), reference, at, dwell_ms, newer: vec![] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::history::VIEW;

    #[test]
    fn looking_at_an_article_has_the_number_of_the_enum() {
        assert_eq!(VIEW, pb::HistoryKind::View as i32);
    }
}
