//! A release on its way through governance. What was submitted never changes but in state and votes; final states stay.

use std::fmt;
use std::str::FromStr;

use shared::id::{ComponentId, ReleaseId};
use shared::time::Time;

use crate::domain::version::{Latest, NotGreater, Version};

/// One version of one component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    pub id: ReleaseId,
    pub component: ComponentId,
    pub version: Version,
    pub artifact_digest: Option<Digest>,
    pub notes: String,
    /// `issuer|sub`.
    pub author: String,
    pub created_at: Time,
    pub state: State,
    /// Oldest first.
    pub votes: Vec<Vote>,
    pub row_version: i64,
}

/// Where a release stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Draft,
    PendingApproval(Submission),
    Approved(Submission),
    Active(Submission),
    Released(Submission),
    Rejected(Submission),
    Cancelled(Option<Submission>),
    RolledBack(Submission),
    Superseded(Submission),
}

/// How a release was handed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    /// `issuer|sub`.
    pub submitter: String,
    pub at: Time,
    /// Approvals it needs, as its policy said then.
    pub quorum: i32,
}

/// One person's say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vote {
    /// `issuer|sub`.
    pub voter: String,
    pub approve: bool,
    pub reason: String,
    pub at: Time,
}

/// An artifact's SHA-256, `sha256:...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest(String);

/// The text is no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be `sha256:` and 64 lower-case hexadecimal digits")]
pub struct MalformedDigest;

/// A transition: the release after it, the name of the state before it, and what its event is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub release: Release,
    pub from: &'static str,
    pub kind: &'static str,
}

/// The release is in a state that does not allow it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("release {id} is {state}")]
pub struct WrongState {
    pub id: ReleaseId,
    pub state: &'static str,
}

/// Why a release cannot be submitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitRefused {
    #[error(transparent)]
    State(#[from] WrongState),
    #[error(transparent)]
    Version(#[from] NotGreater),
}

/// Why a vote does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VoteRefused {
    #[error("nobody votes on a release that they wrote or submitted")]
    Own,
    #[error(transparent)]
    State(#[from] WrongState),
    #[error("{0} voted on this release already")]
    Again(String),
}

/// In how many environments a release is what everyone gets, in how many it is being rolled out or back, and whether
/// every environment that has its component serves a greater version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    pub stable_in: i64,
    pub under_way_in: i64,
    pub is_surpassed: bool,
}

/// What became of a release in an environment that has it no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    RolledBack,
    Superseded,
}

impl State {
    /// As on the wire and in the database.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Draft => "DRAFT",
            Self::PendingApproval(_) => "PENDING_APPROVAL",
            Self::Approved(_) => "APPROVED",
            Self::Active(_) => "ACTIVE",
            Self::Released(_) => "RELEASED",
            Self::Rejected(_) => "REJECTED",
            Self::Cancelled(_) => "CANCELLED",
            Self::RolledBack(_) => "ROLLED_BACK",
            Self::Superseded(_) => "SUPERSEDED",
        }
    }

    pub const fn submission(&self) -> Option<&Submission> {
        match self {
            Self::Draft | Self::Cancelled(None) => None,
            Self::PendingApproval(submission)
            | Self::Approved(submission)
            | Self::Active(submission)
            | Self::Released(submission)
            | Self::Rejected(submission)
            | Self::Cancelled(Some(submission))
            | Self::RolledBack(submission)
            | Self::Superseded(submission) => Some(submission),
        }
    }

    /// Whether it may be rolled out.
    pub const fn is_cleared(&self) -> bool {
        match self {
            Self::Approved(_) | Self::Active(_) | Self::Released(_) => true,
            Self::Draft
            | Self::PendingApproval(_)
            | Self::Rejected(_)
            | Self::Cancelled(_)
            | Self::RolledBack(_)
            | Self::Superseded(_) => false,
        }
    }
}

impl Release {
    /// Hands a draft in. `latest` leaves drafts out.
    pub fn submit(
        self,
        submitter: String,
        quorum: i32,
        latest: &Latest,
        now: Time,
    ) -> Result<Decision, SubmitRefused> {
        if self.state != State::Draft {
            return Err(self.wrong_state().into());
        }
        latest.admit(&self.version)?;
        let submission = Submission { submitter, at: now, quorum };
        Ok(self.passed_to(State::PendingApproval(submission), "release.submitted"))
    }

    /// Approves what needs nobody's approval: a standard change.
    pub fn approve_standard_change(self) -> Option<Decision> {
        match &self.state {
            State::PendingApproval(submission) if submission.quorum == 0 => {
                let submission = submission.clone();
                Some(self.passed_to(State::Approved(submission), "release.approved"))
            }
            State::PendingApproval(_)
            | State::Draft
            | State::Approved(_)
            | State::Active(_)
            | State::Released(_)
            | State::Rejected(_)
            | State::Cancelled(_)
            | State::RolledBack(_)
            | State::Superseded(_) => None,
        }
    }

    /// Counts a vote: one against ends the release, the one that fills the quorum approves it.
    pub fn vote(mut self, vote: Vote) -> Result<Decision, VoteRefused> {
        let submission = self.state.submission().cloned();
        let is_submitter = submission.as_ref().is_some_and(|by| by.submitter == vote.voter);
        if self.author == vote.voter || is_submitter {
            return Err(VoteRefused::Own);
        }
        let (State::PendingApproval(_), Some(submission)) = (&self.state, submission) else {
            return Err(self.wrong_state().into());
        };
        if self.votes.iter().any(|earlier| earlier.voter == vote.voter) {
            return Err(VoteRefused::Again(vote.voter));
        }
        let is_against = !vote.approve;
        self.votes.push(vote);
        let approvals = self.votes.iter().filter(|vote| vote.approve).count();
        let needed = usize::try_from(submission.quorum).unwrap_or(usize::MAX);
        Ok(if is_against {
            self.passed_to(State::Rejected(submission), "release.rejected")
        } else if approvals >= needed {
            self.passed_to(State::Approved(submission), "release.approved")
        } else {
            self.passed_to(State::PendingApproval(submission), "release.voted")
        })
    }

    /// Gives up what nobody was exposed to.
    pub fn cancel(self) -> Result<Decision, WrongState> {
        match &self.state {
            State::Draft | State::PendingApproval(_) | State::Approved(_) => {
                let submission = self.state.submission().cloned();
                Ok(self.passed_to(State::Cancelled(submission), "release.cancelled"))
            }
            State::Active(_)
            | State::Released(_)
            | State::Rejected(_)
            | State::Cancelled(_)
            | State::RolledBack(_)
            | State::Superseded(_) => Err(self.wrong_state()),
        }
    }

    /// Takes in that a rollout exposes it. What serves everyone somewhere stays RELEASED.
    pub fn expose(self) -> Option<Decision> {
        match &self.state {
            State::Approved(submission) => {
                let submission = submission.clone();
                Some(self.passed_to(State::Active(submission), "release.activated"))
            }
            State::Draft
            | State::PendingApproval(_)
            | State::Active(_)
            | State::Released(_)
            | State::Rejected(_)
            | State::Cancelled(_)
            | State::RolledBack(_)
            | State::Superseded(_) => None,
        }
    }

    /// Takes in where it stands after a rollout of it, or of its successor, ended. Nothing where that changes nothing:
    /// what was replaced can still be rolled out until every environment is past it.
    pub fn settle(self, standing: Standing, ending: Ending) -> Option<Decision> {
        let (State::Active(submission) | State::Released(submission)) = &self.state else { return None };
        let submission = submission.clone();
        let (to, kind) = match (standing, ending) {
            (Standing { stable_in: 1.., .. }, _) => (State::Released(submission), "release.released"),
            (Standing { under_way_in: 1.., .. }, _) => (State::Active(submission), "release.activated"),
            (_, Ending::RolledBack) => (State::RolledBack(submission), "release.rolled_back"),
            (Standing { is_surpassed: true, .. }, Ending::Superseded) => {
                (State::Superseded(submission), "release.superseded")
            }
            (Standing { is_surpassed: false, .. }, Ending::Superseded) => return None,
        };
        (to != self.state).then(|| self.passed_to(to, kind))
    }

    fn passed_to(self, state: State, kind: &'static str) -> Decision {
        let from = self.state.name();
        Decision { release: Self { state, row_version: self.row_version + 1, ..self }, from, kind }
    }

    fn wrong_state(&self) -> WrongState {
        WrongState { id: self.id, state: self.state.name() }
    }
}

impl Digest {
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
    use proptest::prelude::*;
    use shared::time::at;

    use super::*;

    const STATES: [&str; 9] = [
        "DRAFT",
        "PENDING_APPROVAL",
        "APPROVED",
        "ACTIVE",
        "RELEASED",
        "REJECTED",
        "CANCELLED",
        "ROLLED_BACK",
        "SUPERSEDED",
    ];
    const FINAL: [&str; 4] = ["REJECTED", "CANCELLED", "ROLLED_BACK", "SUPERSEDED"];

    fn draft() -> Release {
        Release {
            id: ReleaseId::new(at(0), [0; 10]),
            component: "storefront".parse().unwrap(),
            version: "1.0".parse().unwrap(),
            artifact_digest: None,
            notes: String::new(),
            author: "author".to_owned(),
            created_at: at(0),
            state: State::Draft,
            votes: Vec::new(),
            row_version: 1,
        }
    }

    fn in_state(name: &str, quorum: i32) -> Release {
        let submission = Submission { submitter: "submitter".to_owned(), at: at(1), quorum };
        let state = match name {
            "DRAFT" => State::Draft,
            "PENDING_APPROVAL" => State::PendingApproval(submission),
            "APPROVED" => State::Approved(submission),
            "ACTIVE" => State::Active(submission),
            "RELEASED" => State::Released(submission),
            "REJECTED" => State::Rejected(submission),
            "CANCELLED" => State::Cancelled(Some(submission)),
            "ROLLED_BACK" => State::RolledBack(submission),
            "SUPERSEDED" => State::Superseded(submission),
            _ => panic!("{name}"),
        };
        assert_eq!(state.name(), name);
        Release { state, ..draft() }
    }

    fn by(voter: &str, approve: bool) -> Vote {
        Vote { voter: voter.to_owned(), approve, reason: "looked at it".to_owned(), at: at(2) }
    }

    const NOWHERE: Standing = Standing { stable_in: 0, under_way_in: 0, is_surpassed: true };

    /// What an event makes of a release; none where it is refused or changes nothing.
    fn after(event: &str, release: Release) -> Option<&'static str> {
        let decision = match event {
            "submit" => release.submit("submitter".to_owned(), 1, &Latest::default(), at(1)).ok(),
            "approve" => release.vote(by("voter", true)).ok(),
            "reject" => release.vote(by("voter", false)).ok(),
            "cancel" => release.cancel().ok(),
            "expose" => release.expose(),
            "roll back" => release.settle(NOWHERE, Ending::RolledBack),
            "supersede" => release.settle(NOWHERE, Ending::Superseded),
            "replace" => release.settle(Standing { is_surpassed: false, ..NOWHERE }, Ending::Superseded),
            "serve" => {
                release.settle(Standing { stable_in: 1, under_way_in: 1, ..NOWHERE }, Ending::RolledBack)
            }
            "go on" => release.settle(Standing { under_way_in: 1, ..NOWHERE }, Ending::RolledBack),
            _ => panic!("{event}"),
        };
        decision.map(|decision| decision.release.state.name())
    }

    #[test]
    fn every_event_does_in_every_state_what_the_table_says() {
        let table: [(&str, &[(&str, &str)]); 10] = [
            ("submit", &[("DRAFT", "PENDING_APPROVAL")]),
            ("approve", &[("PENDING_APPROVAL", "APPROVED")]),
            ("reject", &[("PENDING_APPROVAL", "REJECTED")]),
            (
                "cancel",
                &[("DRAFT", "CANCELLED"), ("PENDING_APPROVAL", "CANCELLED"), ("APPROVED", "CANCELLED")],
            ),
            ("expose", &[("APPROVED", "ACTIVE")]),
            ("roll back", &[("ACTIVE", "ROLLED_BACK"), ("RELEASED", "ROLLED_BACK")]),
            ("supersede", &[("ACTIVE", "SUPERSEDED"), ("RELEASED", "SUPERSEDED")]),
            ("replace", &[]),
            ("serve", &[("ACTIVE", "RELEASED")]),
            ("go on", &[("RELEASED", "ACTIVE")]),
        ];
        for (event, transitions) in table {
            for state in STATES {
                let expected = transitions.iter().find(|(from, _)| *from == state).map(|(_, to)| *to);
                assert_eq!(after(event, in_state(state, 1)), expected, "{event} in {state}");
            }
        }
    }

    #[test]
    fn a_transition_counts_and_tells_where_it_came_from() {
        let decision = draft().submit("s".to_owned(), 0, &Latest::default(), at(9)).unwrap();
        assert_eq!((decision.from, decision.release.row_version), ("DRAFT", 2));
        let approved = decision.release.approve_standard_change().unwrap();
        assert_eq!(approved.release.state.name(), "APPROVED");
        assert_eq!(in_state("PENDING_APPROVAL", 1).approve_standard_change(), None);
    }

    #[test]
    fn a_version_that_came_too_late_is_not_submitted() {
        let latest = Latest { of_line: Some("1.0.1".parse().unwrap()), of_all: None };
        let refused = draft().submit("s".to_owned(), 0, &latest, at(1));
        assert!(matches!(refused, Err(SubmitRefused::Version(_))));
    }

    #[test]
    fn nobody_votes_twice() {
        let once = in_state("PENDING_APPROVAL", 2).vote(by("voter", true)).unwrap();
        assert_eq!((once.kind, once.release.state.name()), ("release.voted", "PENDING_APPROVAL"));
        let twice = once.release.vote(by("voter", true));
        assert_eq!(twice, Err(VoteRefused::Again("voter".to_owned())));
    }

    #[test]
    fn digests_are_lower_case_sha256() {
        assert!(format!("sha256:{}", "0a".repeat(32)).parse::<Digest>().is_ok());
        for bad in ["", "sha256:", "0a", &"0a".repeat(32), &format!("sha256:{}", "0A".repeat(32))] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn the_quorum_is_met_by_others_only_and_by_each_once(
            quorum in 1_i32..4,
            voters in proptest::collection::vec(
                prop_oneof![Just("author"), Just("submitter"), Just("a"), Just("b"), Just("c")], 0..12
            ),
        ) {
            let mut release = in_state("PENDING_APPROVAL", quorum);
            for voter in &voters {
                if let Ok(decision) = release.clone().vote(by(voter, true)) {
                    release = decision.release;
                }
            }
            let mut others: Vec<_> =
                voters.iter().filter(|voter| !["author", "submitter"].contains(voter)).collect();
            others.sort_unstable();
            others.dedup();
            let needed = usize::try_from(quorum).unwrap();
            prop_assert_eq!(release.state.name() == "APPROVED", others.len() >= needed);
            prop_assert!(release.votes.iter().all(|vote| !["author", "submitter"].contains(&vote.voter.as_str())));
        }

        #[test]
        fn final_states_stay(
            from in proptest::sample::select(FINAL.as_slice()),
            event in proptest::sample::select(vec![
                "submit", "approve", "reject", "cancel", "expose", "roll back", "supersede", "replace", "serve",
                "go on",
            ]),
        ) {
            prop_assert_eq!(after(event, in_state(from, 0)), None);
        }
    }
}
