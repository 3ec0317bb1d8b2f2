//! What was found out about artifacts. It is about one digest and no other, and never changes but that it is revoked; a
//! later report of the same suite takes the place of an earlier one.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use shared::id::{ComponentId, EvidenceId};
use shared::time::Time;

use crate::domain::snapshot::Digest;

/// A rehearsal says something of a rollback for so long.
const REHEARSAL_COUNTS: TimeDelta = TimeDelta::days(30);

/// One report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    pub id: EvidenceId,
    pub component: ComponentId,
    pub artifact_digest: Digest,
    pub kind: Kind,
    /// Which tests or scan; may be empty for the other kinds.
    pub suite: String,
    pub has_passed: bool,
    pub counts: Counts,
    pub url: String,
    pub summary: String,
    /// Of a REVIEW.
    pub review: Option<Review>,
    /// Of the statement that came with it, which nobody has checked.
    pub statement_type: Option<String>,
    /// `issuer|sub`.
    pub producer: String,
    pub produced_at: Time,
    pub submitted_at: Time,
    pub revocation: Option<Revocation>,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Kind {
    TestReport,
    Review,
    Scan,
    RollbackRehearsal,
}

/// How many of what was tried passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub passed: i32,
    pub failed: i32,
    pub skipped: i32,
}

/// Who looked at whose work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Review {
    reviewer: String,
    authors: Vec<String>,
}

/// Nobody reviews what they wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must not be one of the authors")]
pub struct OwnWork;

/// Why it counts no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// `issuer|sub`.
    pub by: String,
    pub at: Time,
    pub reason: String,
}

/// It was revoked before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("evidence {0} was revoked before")]
pub struct AlreadyRevoked(pub EvidenceId);

/// Evidence that is asked for, in the form that it is stored in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Requirement {
    pub kind: Kind,
    /// Empty asks that there is a suite of the kind, and that none of them failed.
    pub suite: String,
}

/// How far an artifact has what is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    pub passed: Vec<Requirement>,
    pub missing: Vec<Requirement>,
    pub failed: Vec<Requirement>,
}

/// What `evidence` says of the artifact. It is in the order of lists: what came last first.
pub fn standing(artifact: &Digest, required: &[Requirement], evidence: &[Evidence]) -> Standing {
    let counting = counting(artifact, evidence);
    let mut standing = Standing::default();
    for requirement in required {
        let mut answers = counting.values().filter(|evidence| requirement.asks_for(evidence)).peekable();
        let list = if answers.peek().is_none() {
            &mut standing.missing
        } else if answers.all(|evidence| evidence.has_passed) {
            &mut standing.passed
        } else {
            &mut standing.failed
        };
        list.push(requirement.clone());
    }
    standing
}

/// Whether a rollback of the artifact was exercised lately. `evidence` is in the order of lists.
pub fn is_rehearsed(artifact: &Digest, evidence: &[Evidence], now: Time) -> bool {
    counting(artifact, evidence).values().any(|evidence| {
        evidence.kind == Kind::RollbackRehearsal
            && evidence.has_passed
            && now < evidence.produced_at + REHEARSAL_COUNTS
    })
}

/// The last report of each suite, of those that are not revoked.
fn counting<'a>(artifact: &Digest, evidence: &'a [Evidence]) -> BTreeMap<(Kind, &'a str), &'a Evidence> {
    let mut counting: BTreeMap<_, &Evidence> = BTreeMap::new();
    let standing = evidence
        .iter()
        .filter(|one| one.artifact_digest == *artifact && one.revocation.is_none());
    for one in standing {
        let last = counting.entry((one.kind, one.suite.as_str())).or_insert(one);
        if one.produced_at > last.produced_at {
            *last = one;
        }
    }
    counting
}

impl Evidence {
    /// Counts no more from now on.
    pub fn revoke(self, revocation: Revocation) -> Result<Self, AlreadyRevoked> {
        match self.revocation {
            None => Ok(Self { revocation: Some(revocation), ..self }),
            Some(_) => Err(AlreadyRevoked(self.id)),
        }
    }
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::TestReport, Self::Review, Self::Scan, Self::RollbackRehearsal];

    /// As in the database and in events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TestReport => "TEST_REPORT",
            Self::Review => "REVIEW",
            Self::Scan => "SCAN",
            Self::RollbackRehearsal => "ROLLBACK_REHEARSAL",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether there are many of it, so that each has to say which it is.
    pub const fn needs_suite(self) -> bool {
        match self {
            Self::TestReport | Self::Scan => true,
            Self::Review | Self::RollbackRehearsal => false,
        }
    }
}

impl Review {
    pub fn new(reviewer: String, authors: Vec<String>) -> Result<Self, OwnWork> {
        if authors.contains(&reviewer) {
            return Err(OwnWork);
        }
        Ok(Self { reviewer, authors })
    }

    pub fn reviewer(&self) -> &str {
        &self.reviewer
    }

    pub fn authors(&self) -> &[String] {
        &self.authors
    }
}

impl Requirement {
    fn asks_for(&self, evidence: &Evidence) -> bool {
        self.kind == evidence.kind && (self.suite.is_empty() || self.suite == evidence.suite)
    }
}

#[cfg(test)]
mod tests {
    use shared::time::at;

    use super::*;

    const DAY: i64 = 86_400;

    fn digest(n: u8) -> Digest {
        format!("sha256:{}", format!("{n:02x}").repeat(32)).parse().unwrap()
    }

    /// A report about artifact 1 that was made when it was handed in.
    fn report(kind: Kind, suite: &str, has_passed: bool, time: i64) -> Evidence {
        Evidence {
            id: EvidenceId::new(at(time), [0; 10]),
            component: "storefront".parse().unwrap(),
            artifact_digest: digest(1),
            kind,
            suite: suite.to_owned(),
            has_passed,
            counts: Counts::default(),
            url: String::new(),
            summary: String::new(),
            review: None,
            statement_type: None,
            producer: "ci".to_owned(),
            produced_at: at(time),
            submitted_at: at(time),
            revocation: None,
        }
    }

    fn tests(has_passed: bool, time: i64) -> Evidence {
        report(Kind::TestReport, "unit", has_passed, time)
    }

    fn revoked(evidence: Evidence) -> Evidence {
        let revocation = Revocation { by: "boss".to_owned(), at: at(99), reason: "wrong commit".to_owned() };
        evidence.revoke(revocation).unwrap()
    }

    fn required(kind: Kind, suite: &str) -> Requirement {
        Requirement { kind, suite: suite.to_owned() }
    }

    /// `passed`, `missing` or `failed`.
    fn verdict(requirement: Requirement, evidence: &[Evidence]) -> &'static str {
        let standing = standing(&digest(1), &[requirement], evidence);
        let is_complete = standing.missing.is_empty() && standing.failed.is_empty();
        assert_eq!(is_complete, !standing.passed.is_empty());
        match (standing.passed.len(), standing.missing.len(), standing.failed.len()) {
            (1, 0, 0) => "passed",
            (0, 1, 0) => "missing",
            (0, 0, 1) => "failed",
            _ => panic!("{standing:?}"),
        }
    }

    #[test]
    fn the_last_report_of_a_suite_counts_unless_it_is_revoked() {
        let elsewhere = Evidence { artifact_digest: digest(2), ..tests(true, 9) };
        let late = Evidence { submitted_at: at(9), ..tests(false, 1) };
        // What came last first.
        for (evidence, expected) in [
            (vec![], "missing"),
            (vec![tests(true, 1)], "passed"),
            (vec![tests(false, 2), tests(true, 1)], "failed"),
            (vec![tests(true, 2), tests(false, 1)], "passed"),
            (vec![late, tests(true, 2)], "passed"),
            (vec![tests(true, 1), tests(false, 1)], "passed"),
            (vec![revoked(tests(false, 2)), tests(true, 1)], "passed"),
            (vec![revoked(tests(true, 2)), tests(false, 1)], "failed"),
            (vec![revoked(tests(true, 1))], "missing"),
            (vec![elsewhere.clone()], "missing"),
            (vec![elsewhere, tests(false, 1)], "failed"),
            (vec![report(Kind::TestReport, "e2e", true, 1)], "missing"),
            (vec![report(Kind::Scan, "unit", true, 1)], "missing"),
        ] {
            assert_eq!(verdict(required(Kind::TestReport, "unit"), &evidence), expected, "{evidence:?}");
        }
    }

    #[test]
    fn a_kind_without_a_suite_asks_for_one_at_least_and_that_none_failed() {
        let e2e = |has_passed| report(Kind::TestReport, "e2e", has_passed, 5);
        for (evidence, expected) in [
            (vec![report(Kind::Review, "", true, 1)], "missing"),
            (vec![e2e(true)], "passed"),
            (vec![e2e(true), tests(true, 1)], "passed"),
            (vec![e2e(true), tests(false, 1)], "failed"),
            (vec![e2e(true), tests(true, 2), tests(false, 1)], "passed"),
        ] {
            assert_eq!(verdict(required(Kind::TestReport, ""), &evidence), expected, "{evidence:?}");
        }
    }

    #[test]
    fn each_requirement_stands_for_itself() {
        let asked = [
            required(Kind::TestReport, "unit"),
            required(Kind::Scan, "licences"),
            required(Kind::Review, ""),
        ];
        let evidence = [report(Kind::Review, "", false, 2), tests(true, 1)];
        let [unit, licences, review] = asked.clone();
        let expected = Standing { passed: vec![unit], missing: vec![licences], failed: vec![review] };
        assert_eq!(standing(&digest(1), &asked, &evidence), expected);
        assert_eq!(standing(&digest(1), &[], &[]), Standing::default());
    }

    #[test]
    fn a_rehearsal_counts_for_30_days() {
        let rehearsal = |has_passed, time| report(Kind::RollbackRehearsal, "", has_passed, time);
        for (evidence, now, expected) in [
            (vec![], 0, false),
            (vec![rehearsal(true, 0)], 30 * DAY - 1, true),
            (vec![rehearsal(true, 0)], 30 * DAY, false),
            (vec![rehearsal(false, 1), rehearsal(true, 0)], DAY, false),
            (vec![revoked(rehearsal(true, 0))], DAY, false),
            (vec![report(Kind::Review, "", true, 0)], DAY, false),
        ] {
            assert_eq!(is_rehearsed(&digest(1), &evidence, at(now)), expected, "{evidence:?}");
        }
        assert!(!is_rehearsed(&digest(2), &[rehearsal(true, 0)], at(1)));
    }

    #[test]
    fn nothing_is_revoked_twice_and_nobody_reviews_their_own_work() {
        let evidence = revoked(tests(true, 1));
        let again = evidence.revocation.clone().unwrap();
        assert_eq!(evidence.clone().revoke(again), Err(AlreadyRevoked(evidence.id)));
        let (ann, bob) = ("ann".to_owned(), "bob".to_owned());
        assert_eq!(Review::new(ann.clone(), vec![bob.clone(), ann.clone()]), Err(OwnWork));
        assert!(Review::new(ann, vec![bob]).is_ok());
        for kind in Kind::ALL {
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
