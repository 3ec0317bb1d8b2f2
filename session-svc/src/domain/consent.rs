//! What shoppers agreed to: a log of decisions that is only added to, of which the last on each purpose stands.

use shared::id::SessionId;
use shared::time::Time;

/// Decisions that are kept; the oldest that do not stand any more go first.
pub const DECISIONS_MAX: usize = 100;

/// What data may be used for, by its number in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Purpose(pub i32);

impl Purpose {
    /// Remembering what somebody looked at. History is kept only with consent to it.
    pub const PERSONALISATION: Self = Self(2);
    /// Being written to about what they left.
    pub const MARKETING: Self = Self(3);
}

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// On what.
    pub purpose: Purpose,
    /// Whether they agreed.
    pub is_granted: bool,
    /// The version of the text that they were shown.
    pub policy_version: String,
    /// When.
    pub at: Time,
    /// The session that it was made in, if it was in one.
    pub session: Option<SessionId>,
    /// Fields that a newer build gave it.
    pub newer: Vec<u8>,
}

/// All that is known of a shopper's decisions, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Consents(Vec<Decision>);

impl Consents {
    /// As it was stored.
    pub fn from_stored(decisions: Vec<Decision>) -> Self {
        Self(decisions)
    }

    /// Every decision, in the order they were written down.
    pub fn decisions(&self) -> &[Decision] {
        &self.0
    }

    /// The decision on a purpose that stands.
    pub fn on(&self, purpose: Purpose) -> Option<&Decision> {
        self.0.iter().rfind(|decision| decision.purpose == purpose)
    }

    /// Whether they agree to a purpose. Nobody does who never said so.
    pub fn grants(&self, purpose: Purpose) -> bool {
        self.on(purpose).is_some_and(|decision| decision.is_granted)
    }

    /// The decisions that stand, by purpose.
    pub fn standing(&self) -> Vec<&Decision> {
        let mut standing: Vec<_> = self
            .0
            .iter()
            .filter(|decision| self.on(decision.purpose) == Some(decision))
            .collect();
        standing.sort_by_key(|decision| decision.purpose);
        standing.dedup_by_key(|decision| decision.purpose);
        standing
    }

    /// Writes a decision down; false if the same on the same text stands already.
    pub fn decide(&mut self, decision: Decision) -> bool {
        let is_same = |standing: &Decision| {
            standing.is_granted == decision.is_granted && standing.policy_version == decision.policy_version
        };
        if self.on(decision.purpose).is_some_and(is_same) {
            return false;
        }
        self.0.push(decision);
        while self.0.len() > DECISIONS_MAX {
            let is_past = |decision: &Decision| self.on(decision.purpose) != Some(decision);
            let Some(oldest) = self.0.iter().position(is_past) else { break };
            self.0.remove(oldest);
        }
        true
    }

    /// Takes over what a shopper who logs in decided: on what these say nothing about, and later than these in the session
    /// that logs in. Answers what was taken over.
    pub fn merge(&mut self, theirs: &Self, session: SessionId) -> Vec<Decision> {
        let wins =
            |decision: &Decision, own: &Decision| decision.session == Some(session) && decision.at > own.at;
        let standing = theirs.standing();
        let taken = standing
            .into_iter()
            .filter(|decision| self.on(decision.purpose).is_none_or(|own| wins(decision, own)));
        let mut taken: Vec<_> = taken.cloned().collect();
        taken.retain(|decision| self.decide(decision.clone()));
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shared::time::at;

    fn session(n: u8) -> SessionId {
        SessionId::new(at(0), [n; 10])
    }

    fn decision(purpose: i32, is_granted: bool, seconds: i64, in_session: Option<u8>) -> Decision {
        Decision {
            purpose: Purpose(purpose),
            is_granted,
            policy_version: "1".to_owned(),
            at: at(seconds),
            session: in_session.map(session),
            newer: vec![],
        }
    }

    fn consents(decisions: impl IntoIterator<Item = Decision>) -> Consents {
        let mut consents = Consents::default();
        for decision in decisions {
            consents.decide(decision);
        }
        consents
    }

    #[test]
    fn the_last_decision_on_each_purpose_stands() {
        let consents =
            consents([decision(3, true, 1, None), decision(2, true, 2, None), decision(3, false, 3, None)]);
        let standing: Vec<_> = consents
            .standing()
            .into_iter()
            .map(|it| (it.purpose.0, it.is_granted))
            .collect();
        assert_eq!(standing, [(2, true), (3, false)]);
        assert!(consents.grants(Purpose::PERSONALISATION));
        assert!(!consents.grants(Purpose(3)) && !consents.grants(Purpose(1)));
        assert_eq!(consents.decisions().len(), 3, "what does not stand is remembered");
    }

    #[test]
    fn the_same_decision_on_the_same_text_is_none() {
        let mut consents = consents([decision(2, true, 1, None)]);
        assert!(!consents.decide(decision(2, true, 2, None)));
        assert!(consents.decide(Decision { policy_version: "2".to_owned(), ..decision(2, true, 3, None) }));
    }

    #[test]
    fn a_login_takes_over_what_was_decided_in_it_since() {
        // Mine, theirs, and what stands then.
        let table = [
            (None, decision(2, true, 5, None), true),
            (Some(decision(2, false, 1, None)), decision(2, true, 5, Some(1)), true),
            (Some(decision(2, true, 1, None)), decision(2, false, 5, Some(1)), false),
            (Some(decision(2, false, 1, None)), decision(2, true, 5, None), false),
            (Some(decision(2, false, 1, None)), decision(2, true, 5, Some(2)), false),
            // Withdrawn on another device after it was given on this one.
            (Some(decision(2, false, 9, Some(2))), decision(2, true, 5, Some(1)), false),
        ];
        for (mine, theirs, expected) in table {
            let mut merged = consents(mine.clone());
            merged.merge(&consents([theirs.clone()]), session(1));
            assert_eq!(merged.grants(Purpose(2)), expected, "{mine:?} {theirs:?}");
            let once = merged.clone();
            assert_eq!(merged.merge(&consents([theirs]), session(1)), []);
            assert_eq!(merged, once);
        }
    }

    proptest! {
        #[test]
        fn the_log_is_bounded_and_forgets_nothing_that_stands(decided in proptest::collection::vec((1..8, any::<bool>()), 0..400)) {
            let (mut consents, mut last) = (Consents::default(), std::collections::BTreeMap::new());
            for (n, (purpose, is_granted)) in (0..).zip(decided) {
                consents.decide(decision(purpose, is_granted, n, None));
                last.insert(purpose, is_granted);
                prop_assert!(consents.decisions().len() <= DECISIONS_MAX);
                prop_assert!(consents.decisions().is_sorted_by_key(|decision| decision.at));
            }
            let standing: Vec<_> = consents.standing().into_iter().map(|it| (it.purpose.0, it.is_granted)).collect();
            prop_assert_eq!(standing, last.into_iter().collect::<Vec<_>>());
        }
    }
}
