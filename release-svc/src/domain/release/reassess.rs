//! What the facts of the moment make of a release that was submitted: its band, whether its approval stands, and what it
//! waits for. Correctness does not wait for anybody to look: whoever exposes it asks here first, in the same transaction.

use std::collections::BTreeSet;

use shared::id::ApprovalId;
use shared::time::Time;

use super::{Decision, Release, Risk, State, Submission};
use crate::domain::approval::{Approval, Basis, Lack, Owners, Vote, counting, lacks, lapses_at};
use crate::domain::blocker::{Blocker, Kind};
use crate::domain::evidence::Evidence;
use crate::domain::risk::{Assessment, Band};
use crate::domain::snapshot::People;

/// How a blocker begins that names committers who are nobody.
pub const UNKNOWN_COMMITTERS: &str = "nobody knows who committed as ";

/// What is so now, beside the release itself.
#[derive(Debug, Clone)]
pub struct Facts {
    pub now: Time,
    pub assessment: Assessment,
    /// All that is known of the artifact, what came last first, without reviews by its authors.
    pub evidence: Vec<Evidence>,
    /// Evidence that is asked for and does not stand on the artifact, a phrase each.
    pub lacking_evidence: Vec<String>,
    pub people: People,
    pub owners: Owners,
    /// For an approval that comes about.
    pub approval_id: ApprovalId,
}

impl Release {
    /// Everything that follows, one transition after the other. Asked again with the same facts it says nothing.
    pub fn reassess(self, facts: &Facts) -> Vec<Decision> {
        let mut decisions = Vec::new();
        let mut release = self;
        // A band, then an approval that lapses, then the next one.
        for _ in 0..3 {
            let Some(decision) = release.clone().step(facts) else { break };
            release = decision.release.clone();
            decisions.push(decision);
        }
        decisions
    }

    fn step(self, facts: &Facts) -> Option<Decision> {
        let is_open = matches!(self.state, State::Assessing(_) | State::PendingApproval(_));
        if !is_open && !self.state.is_cleared() {
            return None;
        }
        let submission = self.state.submission()?;
        let terms = submission.terms();
        let band = terms.band(facts.assessment.band);
        if band != submission.band {
            let risk = Some(Risk::from(&facts.assessment));
            let submission = Submission { band, quorum: terms.rule(band).quorum, risk, ..submission.clone() };
            let state = self.with_submission(submission);
            return Some(self.passed_to(state, "release.reassessed"));
        }
        if self.approval.is_some() {
            return if self.is_standing(facts) { None } else { Some(self.lapse()) };
        }
        if let Some(decision) = self.clone().approve(facts) {
            return Some(decision);
        }
        match &self.state {
            State::Assessing(submission) if facts.lacking_evidence.is_empty() => {
                let submission = submission.clone();
                Some(self.passed_to(State::PendingApproval(submission), "release.assessed"))
            }
            // An older version of Tandem approved it, by rules that it does not meet now.
            State::Approved(_) => Some(self.lapse()),
            State::Draft
            | State::Assessing(_)
            | State::PendingApproval(_)
            | State::Active(_)
            | State::Released(_)
            | State::Rejected(_)
            | State::Cancelled(_)
            | State::Abandoned(_)
            | State::RolledBack(_)
            | State::Superseded(_) => None,
        }
    }

    /// Approves it, if it has all that it needs.
    pub(super) fn approve(self, facts: &Facts) -> Option<Decision> {
        if !facts.lacking_evidence.is_empty() {
            return None;
        }
        let submission = self.state.submission()?;
        let rule = submission.terms().rule(submission.band);
        let kind = if self.state.is_cleared() { "release.approval_renewed" } else { "release.approved" };
        if rule.quorum == 0 {
            return self.approved_on(Basis::StandardChange, rule.expiry(facts.now), kind, facts);
        }
        let (authors, band) = (self.authors(&facts.people), submission.band);
        let votes = counting(&self.votes, &authors, &facts.people, band, facts.now);
        let is_known = facts.people.unmapped(&self.identities(&submission.submitter)).is_empty();
        if !is_known || !lacks(&rule, &votes, &facts.owners).is_empty() {
            return None;
        }
        let expires_at = lapses_at(&rule, &votes, &facts.owners);
        self.approved_on(Basis::Votes, expires_at, kind, facts)
    }

    pub(super) fn approved_on(
        self,
        basis: Basis,
        expires_at: Option<Time>,
        kind: &'static str,
        facts: &Facts,
    ) -> Option<Decision> {
        let submission = self.state.submission()?.clone();
        let approval =
            Approval { id: facts.approval_id, basis, band: submission.band, at: facts.now, expires_at };
        let state = if self.state.is_cleared() { self.state.clone() } else { State::Approved(submission) };
        Some(self.passed_under(state, Some(approval), kind))
    }

    /// Whether the approval that it has is still good.
    fn is_standing(&self, facts: &Facts) -> bool {
        let (Some(approval), Some(submission)) = (&self.approval, self.state.submission()) else {
            return false;
        };
        let rule = submission.terms().rule(submission.band);
        let is_in_time = approval.expires_at.is_none_or(|expiry| facts.now < expiry);
        let has_votes = || {
            let votes = counting(
                &self.votes,
                &self.authors(&facts.people),
                &facts.people,
                submission.band,
                facts.now,
            );
            lacks(&rule, &votes, &facts.owners).is_empty()
        };
        is_in_time
            && match approval.basis {
                Basis::BreakGlass(_) => true,
                Basis::StandardChange => facts.lacking_evidence.is_empty() && rule.quorum == 0,
                Basis::Votes => {
                    facts.lacking_evidence.is_empty() && approval.band >= submission.band && has_votes()
                }
            }
    }

    /// Ends its approval: it waits again, or, where somebody is exposed, goes no further.
    pub fn lapse(self) -> Decision {
        let state = match &self.state {
            State::Approved(submission) => State::PendingApproval(submission.clone()),
            State::Draft
            | State::Assessing(_)
            | State::PendingApproval(_)
            | State::Active(_)
            | State::Released(_)
            | State::Rejected(_)
            | State::Cancelled(_)
            | State::Abandoned(_)
            | State::RolledBack(_)
            | State::Superseded(_) => self.state.clone(),
        };
        self.passed_under(state, None, "release.approval_lapsed")
    }

    /// The human beings who wrote it, by the aliases of now and of when it was handed in, and the names that they go by.
    pub fn authors(&self, people: &People) -> BTreeSet<String> {
        let submission = self.state.submission();
        let submitter = submission.map_or(self.author.as_str(), |submission| submission.submitter.as_str());
        let frozen = submission.and_then(|submission| submission.snapshot.as_ref());
        let mut authors = frozen.map(|snapshot| snapshot.authors.clone()).unwrap_or_default();
        for identity in self.identities(submitter) {
            authors.extend(people.person(&identity).map(str::to_owned));
            authors.insert(identity);
        }
        authors
    }

    /// Whether it waits for votes, be it for the first time or as its approval is gone, and this one would bring it nearer
    /// to its approval.
    pub fn would_count(&self, vote: &Vote, facts: &Facts) -> bool {
        let Facts { people, owners, .. } = facts;
        let is_lapsed = self.state.is_cleared() && self.approval.is_none();
        if !is_lapsed && !matches!(self.state, State::PendingApproval(_)) {
            return false;
        }
        let Some(submission) = self.state.submission() else { return false };
        let (rule, band) = (submission.terms().rule(submission.band), submission.band);
        let authors = self.authors(people);
        let lacks_by =
            |votes: &[Vote]| lacks(&rule, &counting(votes, &authors, people, band, vote.at), owners);
        let with_it = [self.votes.as_slice(), std::slice::from_ref(vote)].concat();
        rule.quorum > 0
            && people.unmapped(&self.identities(&submission.submitter)).is_empty()
            && lacks_by(&with_it) != lacks_by(&self.votes)
    }

    /// What keeps it from its first exposure somewhere, but for its state.
    pub fn holds(&self, facts: &Facts) -> Vec<Blocker> {
        let mut holds: Vec<_> = self.quarantine_hold().into_iter().collect();
        if self.approval.is_none() {
            holds.extend(self.evidence_holds(facts));
            holds.extend(self.approval_holds(facts));
        }
        holds
    }

    /// What keeps a rollout of it that began under this approval from its next step. That votes expired does not: what is under
    /// way was approved when it began. A break-glass holds only while it stands.
    pub fn holds_under(&self, began: Option<&Approval>, facts: &Facts) -> Vec<Blocker> {
        let mut holds: Vec<_> = self.quarantine_hold().into_iter().collect();
        let Some(began) = began.filter(|_| self.approval.is_none()) else { return holds };
        holds.extend(self.evidence_holds(facts));
        let band = self.state.submission().map_or(Band::Low, |submission| submission.band);
        if band > began.band || matches!(began.basis, Basis::BreakGlass(_)) {
            holds.extend(self.approval_holds(facts));
        }
        holds
    }

    /// Its state, where that keeps it.
    pub fn state_hold(&self) -> Option<Blocker> {
        let (id, state) = (self.id, self.state.name());
        let lifted_by = match &self.state {
            State::Draft => "its submission",
            State::Assessing(_) => "the evidence that its policy asks for",
            State::PendingApproval(_) => "its approval",
            State::Approved(_) | State::Active(_) | State::Released(_) => return None,
            State::Rejected(_)
            | State::Cancelled(_)
            | State::Abandoned(_)
            | State::RolledBack(_)
            | State::Superseded(_) => "another release, as this one has ended",
        };
        let text = format!("release {id} is {state}; only what is approved is rolled out");
        Some(self.blocker(Kind::State, text, lifted_by.to_owned()))
    }

    fn quarantine_hold(&self) -> Option<Blocker> {
        let quarantine = self.quarantine.as_ref()?;
        let text = format!("{} quarantined it: {}", quarantine.by, quarantine.reason);
        Some(self.blocker(Kind::Quarantine, text, "a person with scope release.quarantine".to_owned()))
    }

    fn evidence_holds(&self, facts: &Facts) -> Vec<Blocker> {
        let blocker = |lacking: &String| {
            let lifted_by = "whoever submits it with scope evidence.write".to_owned();
            self.blocker(Kind::Evidence, lacking.clone(), lifted_by)
        };
        facts.lacking_evidence.iter().map(blocker).collect()
    }

    fn approval_holds(&self, facts: &Facts) -> Vec<Blocker> {
        let Some(submission) = self.state.submission() else { return Vec::new() };
        let rule = submission.terms().rule(submission.band);
        let band = submission.band.name();
        let votes =
            counting(&self.votes, &self.authors(&facts.people), &facts.people, submission.band, facts.now);
        let sentence = |lack: &Lack| match lack {
            Lack::People { given, needed } => (
                format!("{given} of {needed} people approved it, as {band} asks for"),
                "people with scope release.approve who did not write it".to_owned(),
            ),
            Lack::Groups { given, needed } => (
                format!("those who approved it stand for {given} of {needed} groups, as {band} asks for"),
                "people of other groups".to_owned(),
            ),
            Lack::Owner(groups) => no_one_of("owner", band, groups),
            Lack::BusinessOwner(groups) => no_one_of("business owner", band, groups),
        };
        let lacking = lacks(&rule, &votes, &facts.owners);
        let mut sentences: Vec<_> = lacking.iter().map(sentence).collect();
        let unmapped = facts.people.unmapped(&self.identities(&submission.submitter));
        if rule.quorum > 0 && !unmapped.is_empty() {
            let text = format!("{UNKNOWN_COMMITTERS}{}", unmapped.join(", "));
            sentences.push((text, "whoever sets an identity alias with scope policy.write".to_owned()));
        }
        let blocker = |(text, lifted_by)| self.blocker(Kind::Approval, text, lifted_by);
        sentences.into_iter().map(blocker).collect()
    }

    fn blocker(&self, kind: Kind, description: String, lifted_by: String) -> Blocker {
        Blocker { kind, subject: self.id.to_string(), description, lifted_by, next_open: None }
    }

    fn with_submission(&self, submission: Submission) -> State {
        State::of(self.state.name(), Some(submission)).unwrap_or_else(|| self.state.clone())
    }
}

fn no_one_of(role: &str, band: &str, groups: &[String]) -> (String, String) {
    let lifted_by = if groups.is_empty() {
        format!("a change of the component, which names no {role} groups")
    } else {
        format!("a member of {}", groups.join(", "))
    };
    (format!("no {role} of the component is among those who approved it, as {band} asks for"), lifted_by)
}
