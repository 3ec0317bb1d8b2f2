//! What a release changes, and the snapshot that submission takes of it: the bytes that people approve, their digest, who
//! wrote them, and the terms they were handed in under.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use shared::id::{ApprovalPolicyId, TenantId};
use shared::time::Time;

use crate::domain::policy::{ApprovalPolicy, Terms};
use crate::domain::release::Release;
use crate::domain::risk::Reversibility;

/// What people say of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Change {
    pub commits: Vec<Commit>,
    /// Added, changed and deleted.
    pub changed_lines: u32,
    pub components_touched: Vec<String>,
    pub has_schema_migration: bool,
    pub touches_config: bool,
    #[serde(serialize_with = "write_reversibility", deserialize_with = "read_reversibility")]
    pub reversibility: Reversibility,
    pub rollback_plan: String,
    pub ticket: String,
    pub work_items: Vec<String>,
    /// Whether it follows from something that happened in production.
    pub is_unplanned: bool,
    pub incident: Option<String>,
    /// Whether its version has to follow those of its own line only.
    pub is_hotfix: bool,
}

/// One commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    pub sha: String,
    /// As the committer is known where the commit was made.
    pub author: String,
    pub at: Time,
}

/// A SHA-256, `sha256:...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest(String);

/// The text is no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be `sha256:` and 64 lower-case hexadecimal digits")]
pub struct MalformedDigest;

/// What stays as it was handed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub digest: Digest,
    pub policy: ApprovalPolicyId,
    pub policy_version: i64,
    pub terms: Terms,
    /// Who wrote it, as the release names them.
    pub identities: Vec<String>,
    /// The human beings among them, by the aliases of then.
    pub authors: BTreeSet<String>,
}

/// Which human being an identity is of, for those that were asked about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct People(HashMap<String, Option<String>>);

impl Default for Change {
    fn default() -> Self {
        Self {
            commits: Vec::new(),
            changed_lines: 0,
            components_touched: Vec::new(),
            has_schema_migration: false,
            touches_config: false,
            reversibility: Reversibility::Redeploy,
            rollback_plan: String::new(),
            ticket: String::new(),
            work_items: Vec::new(),
            is_unplanned: false,
            incident: None,
            is_hotfix: false,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn write_reversibility<S: Serializer>(kind: &Reversibility, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(kind.name())
}

fn read_reversibility<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Reversibility, D::Error> {
    let name = String::deserialize(deserializer)?;
    Reversibility::from_name(&name).ok_or_else(|| serde::de::Error::custom("unknown reversibility"))
}

impl People {
    pub const fn new(people: HashMap<String, Option<String>>) -> Self {
        Self(people)
    }

    pub fn person(&self, identity: &str) -> Option<&str> {
        self.0.get(identity).and_then(Option::as_deref)
    }

    /// Those whom nobody knows, in order.
    pub fn unmapped(&self, identities: &[String]) -> Vec<String> {
        let unknown: BTreeSet<_> = identities
            .iter()
            .filter(|identity| self.person(identity).is_none())
            .cloned()
            .collect();
        unknown.into_iter().collect()
    }
}

/// The bytes of a snapshot, as JSON with its members in this order.
#[derive(Serialize)]
struct Body<'a> {
    format: &'static str,
    tenant: &'a str,
    release_id: String,
    revision: i32,
    component: &'a str,
    version: &'a str,
    artifact_digest: Option<&'a str>,
    notes: &'a str,
    change: &'a Change,
    author: &'a str,
    submitter: &'a str,
    editors: &'a [String],
    approval_policy: &'a str,
    approval_policy_version: i64,
}

impl Snapshot {
    /// Freezes a draft that this person hands in; with the bytes that the digest is of.
    pub fn take(
        tenant: &TenantId,
        release: &Release,
        submitter: &str,
        policy: &ApprovalPolicy,
        people: &People,
    ) -> Result<(Self, Vec<u8>), serde_json::Error> {
        let body = Body {
            format: "tandem.release.snapshot/1",
            tenant: tenant.as_str(),
            release_id: release.id.to_string(),
            revision: release.revision,
            component: release.component.as_str(),
            version: release.version.as_str(),
            artifact_digest: release.artifact_digest.as_ref().map(Digest::as_str),
            notes: &release.notes,
            change: &release.change,
            author: &release.author,
            submitter,
            editors: &release.editors,
            approval_policy: policy.name.as_str(),
            approval_policy_version: policy.row_version,
        };
        let bytes = serde_json::to_vec(&body)?;
        let identities = release.identities(submitter);
        let authors = identities
            .iter()
            .filter_map(|identity| people.person(identity))
            .map(str::to_owned);
        let snapshot = Self {
            digest: Digest::of(&bytes),
            policy: policy.name.clone(),
            policy_version: policy.row_version,
            terms: policy.terms.clone(),
            authors: authors.collect(),
            identities,
        };
        Ok((snapshot, bytes))
    }
}

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_bytes(&Sha256::digest(bytes))
    }

    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut text = "sha256:".to_owned();
        for byte in bytes {
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = MalformedDigest;

    fn from_str(text: &str) -> Result<Self, MalformedDigest> {
        let hex = text.strip_prefix("sha256:").ok_or(MalformedDigest)?;
        let is_digest = hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if is_digest { Ok(Self(text.to_owned())) } else { Err(MalformedDigest) }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_lower_case_sha256() {
        let hash = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of(b"abc").as_str(), hash); // FIPS 180-2, B.1
        assert!(hash.parse::<Digest>().is_ok());
        for bad in ["", "sha256:", "0a", &"0a".repeat(32), &format!("sha256:{}", "0A".repeat(32))] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_change_reads_back_what_it_writes_and_nothing_is_a_plain_one() {
        let change = Change {
            commits: vec![Commit {
                sha: "c0ffee".to_owned(),
                author: "ada".to_owned(),
                at: shared::time::at(1),
            }],
            reversibility: Reversibility::Irreversible,
            incident: Some("INC-1".to_owned()),
            ..Change::default()
        };
        let text = serde_json::to_string(&change).unwrap();
        assert_eq!(serde_json::from_str::<Change>(&text).unwrap(), change);
        assert_eq!(serde_json::from_str::<Change>("{}").unwrap(), Change::default());
    }
}
