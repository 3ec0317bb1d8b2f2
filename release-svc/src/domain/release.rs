//! A release on its way through governance. What was submitted never changes but in state, votes, approval and risk; a
//! revision makes a draft of it again, and final states stay. What the facts of the moment make of it is `reassess`.

use std::collections::BTreeSet;

use shared::id::{BreakGlassId, ComponentId, ReleaseId};
use shared::time::Time;

use crate::domain::approval::{Approval, Basis, Vote, VoteRefused};
use crate::domain::policy::{Profile, Terms};
use crate::domain::risk::Band;
use crate::domain::snapshot::{Change, Digest, Snapshot};
use crate::domain::version::{Latest, NotGreater, Version};

mod reassess;
mod risk;

pub use reassess::{Facts, UNKNOWN_COMMITTERS};
pub use risk::Risk;

/// One version of one component.
#[derive(Debug, Clone, PartialEq)]
pub struct Release {
    pub id: ReleaseId,
    pub component: ComponentId,
    pub version: Version,
    /// Which draft of it this is, from 1.
    pub revision: i32,
    pub artifact_digest: Option<Digest>,
    pub notes: String,
    pub change: Change,
    /// `issuer|sub`.
    pub author: String,
    /// Who changed the draft beside the author.
    pub editors: Vec<String>,
    pub created_at: Time,
    pub state: State,
    /// Of this revision, oldest first, without those that were taken back.
    pub votes: Vec<Vote>,
    /// The one that stood when it was last looked at.
    pub approval: Option<Approval>,
    pub quarantine: Option<Quarantine>,
    pub row_version: i64,
}

/// Where a release stands.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    Draft,
    Assessing(Submission),
    PendingApproval(Submission),
    Approved(Submission),
    Active(Submission),
    Released(Submission),
    Rejected(Submission),
    Cancelled(Option<Submission>),
    Abandoned(Submission),
    RolledBack(Submission),
    Superseded(Submission),
}

/// How a release was handed in.
#[derive(Debug, Clone, PartialEq)]
pub struct Submission {
    /// `issuer|sub`.
    pub submitter: String,
    pub at: Time,
    /// People that must approve it, in its band.
    pub quorum: i32,
    /// The band that its approval goes by.
    pub band: Band,
    /// As of when the band last changed; none where an older version of Tandem took it in.
    pub risk: Option<Risk>,
    /// None where an older version of Tandem took it in.
    pub snapshot: Option<Snapshot>,
}

/// That somebody marked it as bad.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantine {
    pub reason: String,
    /// `issuer|sub`.
    pub by: String,
    pub at: Time,
}

/// A transition: the release after it, the names of the state and the id of the approval before it, and what its event is
/// called.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    pub release: Release,
    pub from: &'static str,
    pub was_approved: Option<Approval>,
    pub kind: &'static str,
}

/// The release is in a state that does not allow it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("release {id} is {state}: {hint}")]
pub struct WrongState {
    pub id: ReleaseId,
    pub state: &'static str,
    /// What to do instead.
    pub hint: &'static str,
}

/// Why a release cannot be submitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitRefused {
    #[error(transparent)]
    State(#[from] WrongState),
    #[error(transparent)]
    Version(#[from] NotGreater),
    #[error("the approval policy asks for {0}")]
    Incomplete(&'static str),
}

/// Why a release cannot be abandoned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AbandonRefused {
    #[error(transparent)]
    State(#[from] WrongState),
    #[error("somebody is exposed to release {0}; roll it back, or roll out another one, first")]
    Exposed(ReleaseId),
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
            Self::Assessing(_) => "ASSESSING",
            Self::PendingApproval(_) => "PENDING_APPROVAL",
            Self::Approved(_) => "APPROVED",
            Self::Active(_) => "ACTIVE",
            Self::Released(_) => "RELEASED",
            Self::Rejected(_) => "REJECTED",
            Self::Cancelled(_) => "CANCELLED",
            Self::Abandoned(_) => "ABANDONED",
            Self::RolledBack(_) => "ROLLED_BACK",
            Self::Superseded(_) => "SUPERSEDED",
        }
    }

    /// What can be done with it, for whoever tried something else.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Draft => "submit it first, or cancel it",
            Self::Assessing(_) => "it waits for evidence; to change it, revise it",
            Self::PendingApproval(_) => "it waits for votes; to change it, revise it",
            Self::Approved(_) => "roll it out; to change it, cancel it and make another release",
            Self::Active(_) => "advance its rollout, or roll that back",
            Self::Released(_) => "roll another release out to replace it",
            Self::Rejected(_)
            | Self::Cancelled(_)
            | Self::Abandoned(_)
            | Self::RolledBack(_)
            | Self::Superseded(_) => "it has ended; make another release",
        }
    }

    /// The state of that name; None where it does not go with a submission, or without one.
    pub fn of(name: &str, submission: Option<Submission>) -> Option<Self> {
        Some(match (name, submission) {
            ("DRAFT", None) => Self::Draft,
            ("ASSESSING", Some(submission)) => Self::Assessing(submission),
            ("PENDING_APPROVAL", Some(submission)) => Self::PendingApproval(submission),
            ("APPROVED", Some(submission)) => Self::Approved(submission),
            ("ACTIVE", Some(submission)) => Self::Active(submission),
            ("RELEASED", Some(submission)) => Self::Released(submission),
            ("REJECTED", Some(submission)) => Self::Rejected(submission),
            ("CANCELLED", submission) => Self::Cancelled(submission),
            ("ABANDONED", Some(submission)) => Self::Abandoned(submission),
            ("ROLLED_BACK", Some(submission)) => Self::RolledBack(submission),
            ("SUPERSEDED", Some(submission)) => Self::Superseded(submission),
            _ => return None,
        })
    }

    pub const fn submission(&self) -> Option<&Submission> {
        match self {
            Self::Draft | Self::Cancelled(None) => None,
            Self::Assessing(submission)
            | Self::PendingApproval(submission)
            | Self::Approved(submission)
            | Self::Active(submission)
            | Self::Released(submission)
            | Self::Rejected(submission)
            | Self::Cancelled(Some(submission))
            | Self::Abandoned(submission)
            | Self::RolledBack(submission)
            | Self::Superseded(submission) => Some(submission),
        }
    }

    /// Whether votes on it mean something: it was handed in, and nothing has ended it.
    pub const fn takes_votes(&self) -> bool {
        matches!(self, Self::Assessing(_) | Self::PendingApproval(_)) || self.is_cleared()
    }

    /// Whether nothing comes after it.
    pub const fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Rejected(_)
                | Self::Cancelled(_)
                | Self::Abandoned(_)
                | Self::RolledBack(_)
                | Self::Superseded(_)
        )
    }

    /// Whether it may be rolled out, where an approval stands.
    pub const fn is_cleared(&self) -> bool {
        matches!(self, Self::Approved(_) | Self::Active(_) | Self::Released(_))
    }
}

impl Submission {
    /// What it is approved by.
    pub fn terms(&self) -> Terms {
        match &self.snapshot {
            Some(snapshot) => snapshot.terms.clone(),
            None => Terms::of(Profile::Starter, self.quorum),
        }
    }
}

impl Release {
    /// What it is approved by; a draft by nothing yet.
    pub fn terms(&self) -> Terms {
        let submission = self.state.submission();
        submission.map_or_else(|| Terms::of(Profile::Starter, 0), Submission::terms)
    }

    /// Everybody who wrote it, as it names them.
    pub fn identities(&self, submitter: &str) -> Vec<String> {
        let committers = self.change.commits.iter().map(|commit| commit.author.as_str());
        let people = [self.author.as_str(), submitter];
        let all = people
            .into_iter()
            .chain(self.editors.iter().map(String::as_str))
            .chain(committers);
        all.collect::<BTreeSet<_>>().into_iter().map(str::to_owned).collect()
    }

    /// Changes a draft.
    pub fn edit(
        self,
        editor: String,
        artifact_digest: Option<Digest>,
        notes: String,
        change: Change,
    ) -> Result<Decision, WrongState> {
        if self.state != State::Draft {
            return Err(self.wrong_state());
        }
        let edited = Self { artifact_digest, notes, change, ..self }.with_editor(editor);
        Ok(edited.passed_to(State::Draft, "release.updated"))
    }

    /// Hands a draft in. `latest` leaves drafts out.
    pub fn submit(self, submission: Submission, latest: &Latest) -> Result<Decision, SubmitRefused> {
        if self.state != State::Draft {
            return Err(self.wrong_state().into());
        }
        latest.admit(&self.version)?;
        let rules = submission.terms().rules;
        if rules.requires_rollback_plan && self.change.rollback_plan.trim().is_empty() {
            return Err(SubmitRefused::Incomplete("change.rollback_plan"));
        }
        let is_about_artifact = rules.risk_binding || !rules.required_evidence.is_empty();
        if is_about_artifact && self.artifact_digest.is_none() {
            return Err(SubmitRefused::Incomplete("artifact_digest"));
        }
        Ok(self.passed_to(State::Assessing(submission), "release.submitted"))
    }

    /// Makes a draft of it again, which is handed in and voted on anew.
    pub fn revise(self, editor: String) -> Result<Decision, WrongState> {
        if !matches!(self.state, State::Assessing(_) | State::PendingApproval(_)) {
            return Err(self.wrong_state());
        }
        let revised = Self { votes: Vec::new(), ..self }.with_editor(editor);
        let mut decision = revised.passed_to(State::Draft, "release.revised");
        decision.release.revision += 1;
        Ok(decision)
    }

    fn with_editor(mut self, editor: String) -> Self {
        if editor != self.author && !self.editors.contains(&editor) {
            self.editors.push(editor);
        }
        self
    }

    /// Counts a vote: one against ends the release; one for that completes what is asked for approves it.
    pub fn vote(mut self, vote: Vote, facts: &Facts) -> Result<Decision, VoteRefused> {
        let authors = self.authors(&facts.people);
        if authors.contains(&vote.person) || authors.contains(&vote.voter) {
            return Err(VoteRefused::Own);
        }
        let is_renewal = self.state.is_cleared() && self.approval.is_none() && vote.approve;
        if !is_renewal && !matches!(self.state, State::PendingApproval(_)) {
            return Err(self.wrong_state().into());
        }
        let Some(submission) = self.state.submission().cloned() else {
            return Err(self.wrong_state().into());
        };
        let unmapped = facts.people.unmapped(&self.identities(&submission.submitter));
        if vote.approve && !unmapped.is_empty() {
            return Err(VoteRefused::Unmapped(unmapped));
        }
        if self
            .votes
            .iter()
            .any(|other| other.person == vote.person && other.counts(vote.band, vote.at))
        {
            return Err(VoteRefused::Again(vote.voter));
        }
        self.votes.retain(|other| other.person != vote.person);
        let is_against = !vote.approve;
        self.votes.push(vote);
        if is_against {
            return Ok(self.passed_to(State::Rejected(submission), "release.rejected"));
        }
        if let Some(decision) = self.clone().approve(facts) {
            return Ok(decision);
        }
        let state = self.state.clone();
        Ok(self.passed_to(state, "release.voted"))
    }

    /// Takes a vote back, if this person has one. What that leaves short is for [`Release::reassess`].
    pub fn withdraw_vote(mut self, person: &str) -> Option<Decision> {
        let count = self.votes.len();
        self.votes.retain(|vote| vote.person != person || !vote.approve);
        let state = self.state.clone();
        (self.votes.len() < count).then(|| self.passed_to(state, "release.vote_withdrawn"))
    }

    /// Approves it on one person's word, until the review of that is due.
    pub fn break_glass(self, id: BreakGlassId, due_at: Time, facts: &Facts) -> Result<Decision, WrongState> {
        let is_open = matches!(self.state, State::Assessing(_) | State::PendingApproval(_));
        if !is_open && (!self.state.is_cleared() || self.approval.is_some()) {
            return Err(self.wrong_state());
        }
        let kind = "release.break_glass_used";
        let decision = self.clone().approved_on(Basis::BreakGlass(id), Some(due_at), kind, facts);
        decision.ok_or_else(|| self.wrong_state())
    }

    /// Gives up what nobody was exposed to.
    pub fn cancel(self) -> Result<Decision, WrongState> {
        match &self.state {
            State::Draft | State::Assessing(_) | State::PendingApproval(_) | State::Approved(_) => {
                let submission = self.state.submission().cloned();
                Ok(self.passed_to(State::Cancelled(submission), "release.cancelled"))
            }
            State::Active(_)
            | State::Released(_)
            | State::Rejected(_)
            | State::Cancelled(_)
            | State::Abandoned(_)
            | State::RolledBack(_)
            | State::Superseded(_) => Err(self.wrong_state()),
        }
    }

    /// Gives up what was exposed and is no more.
    pub fn abandon(self, standing: Standing) -> Result<Decision, AbandonRefused> {
        let (State::Active(submission) | State::Released(submission)) = &self.state else {
            return Err(self.wrong_state().into());
        };
        if standing.stable_in > 0 || standing.under_way_in > 0 {
            return Err(AbandonRefused::Exposed(self.id));
        }
        let submission = submission.clone();
        Ok(self.passed_to(State::Abandoned(submission), "release.abandoned"))
    }

    /// Marks it as bad. None where it is.
    pub fn quarantine(self, quarantine: Quarantine) -> Option<Decision> {
        let state = self.state.clone();
        let release = Self { quarantine: Some(quarantine), ..self.clone() };
        self.quarantine
            .is_none()
            .then(|| release.passed_to(state, "release.quarantined"))
    }

    /// Marks it as bad no more. None where it is not.
    pub fn lift_quarantine(self) -> Option<Decision> {
        let state = self.state.clone();
        let release = Self { quarantine: None, ..self.clone() };
        self.quarantine
            .is_some()
            .then(|| release.passed_to(state, "release.quarantine_lifted"))
    }

    /// Takes in that a rollout exposes it. What serves everyone somewhere stays RELEASED.
    pub fn expose(self) -> Option<Decision> {
        let State::Approved(submission) = &self.state else { return None };
        let submission = submission.clone();
        Some(self.passed_to(State::Active(submission), "release.activated"))
    }

    /// Takes in where it stands after a rollout of it, or of its successor, ended. Nothing where that changes nothing:
    /// what was replaced can still be rolled out until every environment is past it. What is approved and was never
    /// exposed is past it, too, unless it mends an old line.
    pub fn settle(self, standing: Standing, ending: Ending) -> Option<Decision> {
        if let State::Approved(submission) = &self.state {
            let is_past = ending == Ending::Superseded && standing.is_surpassed && !self.change.is_hotfix;
            let submission = submission.clone();
            return is_past.then(|| self.passed_to(State::Superseded(submission), "release.superseded"));
        }
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

    /// An approval ends where the release can be rolled out no more.
    fn passed_to(self, state: State, kind: &'static str) -> Decision {
        let approval = self.approval.clone().filter(|_| state.is_cleared());
        self.passed_under(state, approval, kind)
    }

    fn passed_under(self, state: State, approval: Option<Approval>, kind: &'static str) -> Decision {
        let (from, was_approved) = (self.state.name(), self.approval.clone());
        let release = Self { state, approval, row_version: self.row_version + 1, ..self };
        Decision { release, from, was_approved, kind }
    }

    pub fn wrong_state(&self) -> WrongState {
        WrongState { id: self.id, state: self.state.name(), hint: self.state.hint() }
    }
}

#[cfg(test)]
pub(crate) mod tests;
