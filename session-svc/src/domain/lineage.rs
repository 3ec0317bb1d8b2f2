//! The tokens of one session, one after another. A token is replaced by asking for a child, which its holder may never
//! get, or get twice: so the same parent always gets the same child, and works until the child is first used, and for
//! the touchpoint's grace in any case. What is presented later is graded.
//!
//! Rotation with proof of receipt: RFC 9700 §4.14.2 asks for detection of reuse, not for logging out whose second tab was
//! slower.

use std::time::Duration;

use shared::time::Time;

use super::token::TokenHash;

/// Ancestors and orphans that are known again. Older ones are of no session.
const REMEMBERED: usize = 32;

/// Where a session's tokens stand. At most one of them has no successor that is in use: there is one leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    /// The token in use.
    pub current: TokenHash,
    /// What it replaced.
    pub parent: Option<Box<Parent>>,
    /// What will replace it.
    pub child: Option<Box<Child>>,
    /// What its parent replaced, and so on, oldest first.
    pub ancestors: Vec<Ancestor>,
    /// What authentications replaced, oldest first.
    pub orphans: Vec<[u8; 16]>,
}

/// The token before the one in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// The token.
    pub hash: TokenHash,
    /// What its child's secret is derived from, with its own.
    pub salt: Vec<u8>,
    /// When the child was handed out first.
    pub replaced_at: Time,
    /// When the child was first used.
    pub superseded_at: Time,
}

/// A token that was handed out and not used yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// The token.
    pub hash: TokenHash,
    /// What its secret is derived from, with its parent's.
    pub salt: Vec<u8>,
    /// When it was handed out first.
    pub issued_at: Time,
}

/// A token whose child has a child in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ancestor {
    /// The token.
    pub hash: [u8; 16],
    /// When its child was first used.
    pub superseded_at: Time,
}

/// What a secret that was presented is to its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presented {
    /// The token in use; `has_child` if a successor was handed out.
    Current {
        /// Whether it should be given up.
        has_child: bool,
    },
    /// The successor that was handed out, for the first time.
    Child,
    /// The token before, within its grace.
    InGrace,
    /// Good for nothing any more.
    Superseded(Grade),
    /// None of the session's.
    Unknown,
}

/// How bad it is that a superseded token is presented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Grade {
    /// Its successor has just come into use: requests of one device overtook each other.
    #[error("the token's successor has just come into use")]
    Race,
    /// An authentication cut it off: whoever has it is not who is logged in, or missed the answer.
    #[error("an authentication replaced the token")]
    Orphan,
    /// Its successor has long been in use, so one of the two is in wrong hands.
    #[error("the token's successor has long been in use: the session was revoked")]
    StaleLineage,
}

impl Lineage {
    /// Of a session's first token.
    pub fn new(current: TokenHash) -> Self {
        Self { current, parent: None, child: None, ancestors: vec![], orphans: vec![] }
    }

    /// What the token with this hash is. Compares in constant time, the likely ones first.
    pub fn grade(&self, hash: TokenHash, grace: Duration, now: Time) -> Presented {
        if self.current == hash {
            return Presented::Current { has_child: self.child.is_some() };
        }
        if self.child.as_ref().is_some_and(|child| child.hash == hash) {
            return Presented::Child;
        }
        if let Some(parent) = self.parent.as_ref().filter(|parent| parent.hash == hash) {
            if now < parent.replaced_at + grace {
                return Presented::InGrace;
            }
            return Presented::Superseded(late(parent.superseded_at, grace, now));
        }
        let short = hash.short();
        if let Some(ancestor) = self.ancestors.iter().find(|ancestor| ancestor.hash == short) {
            return Presented::Superseded(late(ancestor.superseded_at, grace, now));
        }
        if self.orphans.contains(&short) {
            return Presented::Superseded(Grade::Orphan);
        }
        Presented::Unknown
    }

    /// The child comes into use. Unchanged where there is none.
    #[must_use]
    pub fn use_child(mut self, now: Time) -> Self {
        let Some(child) = self.child.take() else { return self };
        self.ancestors.extend(
            self.parent
                .take()
                .map(|parent| Ancestor { hash: parent.hash.short(), superseded_at: parent.superseded_at }),
        );
        keep_last(&mut self.ancestors);
        let (salt, replaced_at) = (child.salt, child.issued_at);
        self.parent = Some(Box::new(Parent { hash: self.current, salt, replaced_at, superseded_at: now }));
        self.current = child.hash;
        self
    }

    /// An authentication replaces every token there is by `current`: privilege changes have no grace (ASVS 7.2.4).
    #[must_use]
    pub fn cut_off(mut self, current: TokenHash) -> Self {
        let ancestors = self.ancestors.iter().map(|ancestor| ancestor.hash);
        let parent = self.parent.iter().map(|parent| parent.hash.short());
        let child = self.child.iter().map(|child| child.hash.short());
        self.orphans
            .extend(ancestors.chain(parent).chain([self.current.short()]).chain(child));
        keep_last(&mut self.orphans);
        Self { current, parent: None, child: None, ancestors: vec![], orphans: self.orphans }
    }
}

fn late(superseded_at: Time, grace: Duration, now: Time) -> Grade {
    if now < superseded_at + grace { Grade::Race } else { Grade::StaleLineage }
}

fn keep_last<T>(list: &mut Vec<T>) {
    list.drain(..list.len().saturating_sub(REMEMBERED));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shared::time::at;

    const GRACE: Duration = Duration::from_secs(30);

    fn hash(n: u8) -> TokenHash {
        TokenHash::from_stored([n; 32])
    }

    fn ask_for_child(lineage: Lineage, n: u8, now: Time) -> Lineage {
        let child = lineage
            .child
            .unwrap_or_else(|| Box::new(Child { hash: hash(n), salt: vec![n], issued_at: now }));
        Lineage { child: Some(child), ..lineage }
    }

    #[test]
    fn a_parent_works_until_its_child_is_used_however_long_that_takes() {
        let lineage = ask_for_child(Lineage::new(hash(1)), 2, at(0));
        assert_eq!(lineage.grade(hash(1), GRACE, at(86_400)), Presented::Current { has_child: true });
        assert_eq!(lineage.grade(hash(2), GRACE, at(86_400)), Presented::Child);
    }

    #[test]
    fn a_parent_is_graded_by_how_long_its_child_has_been_in_use() {
        let quick = ask_for_child(Lineage::new(hash(1)), 2, at(0)).use_child(at(1));
        assert_eq!(quick.grade(hash(2), GRACE, at(1)), Presented::Current { has_child: false });
        assert_eq!(quick.grade(hash(1), GRACE, at(29)), Presented::InGrace);
        assert_eq!(quick.grade(hash(1), GRACE, at(30)), Presented::Superseded(Grade::Race));
        assert_eq!(quick.grade(hash(1), GRACE, at(31)), Presented::Superseded(Grade::StaleLineage));
        let slow = ask_for_child(Lineage::new(hash(1)), 2, at(0)).use_child(at(500));
        assert_eq!(slow.grade(hash(1), GRACE, at(529)), Presented::Superseded(Grade::Race));
        assert_eq!(slow.grade(hash(1), GRACE, at(530)), Presented::Superseded(Grade::StaleLineage));
    }

    #[test]
    fn an_ancestor_is_graded_by_its_own_child() {
        let two = ask_for_child(Lineage::new(hash(1)), 2, at(0)).use_child(at(1));
        let three = ask_for_child(two, 3, at(2)).use_child(at(3));
        assert_eq!(three.grade(hash(1), GRACE, at(30)), Presented::Superseded(Grade::Race));
        assert_eq!(three.grade(hash(1), GRACE, at(31)), Presented::Superseded(Grade::StaleLineage));
    }

    #[test]
    fn an_authentication_makes_orphans_of_all() {
        let two = ask_for_child(Lineage::new(hash(1)), 2, at(0)).use_child(at(1));
        let cut = ask_for_child(two, 3, at(2)).cut_off(hash(4));
        for n in 1..=3 {
            assert_eq!(cut.grade(hash(n), GRACE, at(2)), Presented::Superseded(Grade::Orphan), "{n}");
        }
        assert_eq!(cut.grade(hash(4), GRACE, at(2)), Presented::Current { has_child: false });
        assert_eq!(cut.grade(hash(5), GRACE, at(2)), Presented::Unknown);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Rotate,
        Use,
        Authenticate,
        Wait(i64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Rotate),
            3 => Just(Step::Use),
            1 => Just(Step::Authenticate),
            2 => (0_i64..60).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Whatever happens, one token is the newest: only it, or its unused child, can be asked for another.
        #[test]
        fn there_is_at_most_one_live_leaf(steps in proptest::collection::vec(step(), 0..60)) {
            let (mut lineage, mut now, mut last) = (Lineage::new(hash(0)), 0, 0_u8);
            for step in steps {
                match step {
                    Step::Rotate => {
                        last += u8::from(lineage.child.is_none());
                        lineage = ask_for_child(lineage, last, at(now));
                    }
                    Step::Use => lineage = lineage.use_child(at(now)),
                    Step::Authenticate => {
                        last += 1;
                        lineage = lineage.cut_off(hash(last));
                    }
                    Step::Wait(seconds) => now += seconds,
                }
                let grades: Vec<_> = (0..=last).map(|n| lineage.grade(hash(n), GRACE, at(now))).collect();
                let currents = grades.iter().filter(|grade| matches!(grade, Presented::Current { .. }));
                let children = grades.iter().filter(|grade| matches!(grade, Presented::Child));
                prop_assert_eq!(currents.count(), 1);
                prop_assert!(children.count() <= 1);
                // The newest token is the leaf, and nothing newer than what is in use works but it.
                let is_leaf =
                    matches!(grades[usize::from(last)], Presented::Current { has_child: false } | Presented::Child);
                prop_assert!(is_leaf);
            }
        }
    }
}
