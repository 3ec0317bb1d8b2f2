//! The audit trail: what binds an event to the one before it, and where a trail is broken.
//!
//! The database links events as they commit; here the same is computed again from what is stored.

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use shared::id::TenantId;
use shared::time::Time;

/// SHA-256.
pub type Hash = [u8; 32];

/// Before the first event.
pub const NOTHING: Hash = [0; 32];

/// An event with its place in the trail.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub seq: i64,
    pub kind: String,
    pub subject: String,
    pub principal: String,
    pub at: Time,
    pub verdict: String,
    pub trace_parent: String,
    /// JSON.
    pub data: String,
    /// The bytes that are hashed.
    pub record: String,
    /// As it is stored, whatever its length.
    pub hash: Vec<u8>,
}

/// How far a trail has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    pub seq: i64,
    pub hash: Hash,
}

/// Where a trail begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The last event that the purge deleted.
    pub purged: Link,
    /// The last event.
    pub head: Link,
}

/// Where a trail is broken, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Break {
    pub seq: i64,
    pub fault: Fault,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("there is no event with this number")]
    Missing,
    #[error("the record says that it is number {0}'s")]
    Reordered(i64),
    #[error("record and hash do not belong together, or not after the hash before")]
    Edited,
    #[error("column {0} does not say what the record says")]
    ColumnDiffers(&'static str),
    #[error("the trail does not end as the note of its end says")]
    HeadDiffers,
    #[error("the signed head has another hash, or is of an event after the last")]
    SignedHeadDiffers,
}

/// The hash of an event. Every part but the tenant has a fixed length, and the tenant's stands before it, so that no two
/// lists of parts give the same bytes.
pub fn link(previous: &Hash, tenant: &TenantId, seq: i64, record: &str) -> Hash {
    let tenant = tenant.as_str().as_bytes();
    let hash = Sha256::new()
        .chain_update(previous)
        .chain_update((tenant.len() as u64).to_be_bytes())
        .chain_update(tenant)
        .chain_update(seq.to_be_bytes())
        .chain_update(Sha256::digest(record));
    hash.finalize().into()
}

/// Goes from `last` through the entries after it; answers how far that is.
pub fn follow(tenant: &TenantId, last: Link, entries: &[Entry]) -> Result<Link, Break> {
    entries.iter().try_fold(last, |last, entry| {
        let seq = last.seq + 1;
        let broken = |fault| Break { seq, fault };
        if entry.seq != seq {
            return Err(broken(Fault::Missing));
        }
        let Ok(record) = serde_json::from_str::<Value>(&entry.record) else {
            return Err(broken(Fault::Edited));
        };
        if let Some(other) = record["seq"].as_i64().filter(|other| *other != seq) {
            return Err(broken(Fault::Reordered(other)));
        }
        let hash = link(&last.hash, tenant, seq, &entry.record);
        if entry.hash != hash {
            return Err(broken(Fault::Edited));
        }
        match differing(tenant, entry, &record) {
            Some(column) => Err(broken(Fault::ColumnDiffers(column))),
            None => Ok(Link { seq, hash }),
        }
    })
}

/// The first column that does not say what the record says.
fn differing(tenant: &TenantId, entry: &Entry, record: &Value) -> Option<&'static str> {
    let at = record["occurred_at"].as_str().and_then(|at| at.parse::<Time>().ok());
    let data = serde_json::from_str::<Value>(&entry.data).ok();
    [
        ("tenant_id", record["tenant"] == tenant.as_str()),
        ("kind", record["kind"] == entry.kind.as_str()),
        ("subject", record["subject"] == entry.subject.as_str()),
        ("principal", record["principal"] == entry.principal.as_str()),
        ("occurred_at", at == Some(entry.at)),
        ("verdict", record["verdict"] == entry.verdict.as_str()),
        ("trace_parent", record["trace_parent"] == entry.trace_parent.as_str()),
        ("data", data.as_ref() == record.get("data")),
    ]
    .into_iter()
    .find_map(|(column, is_same)| (!is_same).then_some(column))
}

#[cfg(test)]
mod tests {
    use shared::time::at;

    use super::*;

    fn shop() -> TenantId {
        "shop".parse().unwrap()
    }

    fn trail(count: i64) -> Vec<Entry> {
        let mut last = NOTHING;
        (1..=count)
            .map(|seq| {
                let subject = format!("rel_{seq}");
                let record = serde_json::json!({
                    "tenant": "shop", "seq": seq, "kind": "release.created", "subject": subject, "principal": "ada",
                    "occurred_at": "2027-01-15T08:00:00.000000Z", "verdict": "ALLOW", "trace_parent": "",
                    "data": {"n": seq},
                })
                .to_string();
                last = link(&last, &shop(), seq, &record);
                Entry {
                    seq,
                    kind: "release.created".to_owned(),
                    subject,
                    principal: "ada".to_owned(),
                    at: at(1_800_000_000),
                    verdict: "ALLOW".to_owned(),
                    trace_parent: String::new(),
                    data: format!("{{\"n\": {seq}}}"),
                    record,
                    hash: last.to_vec(),
                }
            })
            .collect()
    }

    const START: Link = Link { seq: 0, hash: NOTHING };

    fn fault_of(change: impl FnOnce(&mut Vec<Entry>)) -> Option<(i64, Fault)> {
        let mut entries = trail(5);
        change(&mut entries);
        let broken = follow(&shop(), START, &entries).err();
        broken.map(|broken| (broken.seq, broken.fault))
    }

    #[test]
    fn a_trail_is_followed_in_one_piece_or_in_several() {
        let entries = trail(5);
        let end = follow(&shop(), START, &entries).unwrap();
        assert_eq!((end.seq, end.hash.to_vec()), (5, entries[4].hash.clone()));
        let middle = follow(&shop(), START, &entries[..2]).unwrap();
        assert_eq!(follow(&shop(), middle, &entries[2..]), Ok(end));
        let acme = follow(&"acme".parse().unwrap(), START, &entries);
        assert_eq!(acme, Err(Break { seq: 1, fault: Fault::Edited }));
    }

    #[test]
    fn the_first_break_is_told_and_how() {
        assert_eq!(fault_of(|_| ()), None);
        assert_eq!(fault_of(|trail| drop(trail.remove(2))), Some((3, Fault::Missing)));
        let edited = |trail: &mut Vec<Entry>| trail[1].record = trail[1].record.replace("ada", "eve");
        assert_eq!(fault_of(edited), Some((2, Fault::Edited)));
        assert_eq!(fault_of(|trail| trail[3].hash[0] ^= 1), Some((4, Fault::Edited)));
        assert_eq!(fault_of(|trail| trail[3].hash.truncate(31)), Some((4, Fault::Edited)));
        let swapped = |trail: &mut Vec<Entry>| {
            trail.swap(1, 2);
            (trail[1].seq, trail[2].seq) = (2, 3);
        };
        assert_eq!(fault_of(swapped), Some((2, Fault::Reordered(3))));
    }

    type Change = fn(&mut Entry);

    #[test]
    fn every_column_is_held_to_the_record() {
        let columns: [(&str, Change); 7] = [
            ("kind", |entry| entry.kind.push('x')),
            ("subject", |entry| entry.subject.push('x')),
            ("principal", |entry| entry.principal.push('x')),
            ("occurred_at", |entry| entry.at = at(1_800_000_001)),
            ("verdict", |entry| entry.verdict = "DENY".to_owned()),
            ("trace_parent", |entry| entry.trace_parent.push('x')),
            ("data", |entry| entry.data = "{\"n\": 0}".to_owned()),
        ];
        for (column, change) in columns {
            let fault = fault_of(|trail| change(&mut trail[4]));
            assert_eq!(fault, Some((5, Fault::ColumnDiffers(column))));
        }
    }
}
