//! Approving alone, as a debt: somebody else reviews it until it is due, and whoever lets that pass does it no more.

use std::collections::BTreeSet;

use shared::id::{BreakGlassId, ReleaseId};
use shared::time::Time;

use crate::domain::identity::is_by;

/// That somebody approved a release alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakGlass {
    pub id: BreakGlassId,
    pub release: ReleaseId,
    pub revision: i32,
    /// `issuer|sub`.
    pub principal: String,
    /// The human being that the principal is.
    pub person: String,
    pub reason: String,
    pub used_at: Time,
    pub due_at: Time,
    pub review: Option<Review>,
    pub row_version: i64,
}

/// What somebody else says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Review {
    pub verdict: Verdict,
    /// `issuer|sub`.
    pub reviewer: String,
    /// The human being that the reviewer is.
    pub person: String,
    pub reason: String,
    pub at: Time,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    Violation,
}

/// Where its review stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    UnderReview,
    Overdue,
    Reviewed(Verdict),
}

/// Why a review does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReviewRefused {
    #[error("nobody reviews their own break-glass, or one on a release that they wrote")]
    Own,
    #[error("break-glass {0} was reviewed")]
    Again(BreakGlassId),
}

impl Verdict {
    pub const ALL: [Self; 2] = [Self::Accepted, Self::Violation];

    /// As on the wire, without its prefix, and in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "ACCEPTED",
            Self::Violation => "VIOLATION",
        }
    }
}

impl BreakGlass {
    pub fn state(&self, now: Time) -> State {
        match &self.review {
            Some(review) => State::Reviewed(review.verdict),
            None if now < self.due_at => State::UnderReview,
            None => State::Overdue,
        }
    }

    /// Takes in what somebody says who neither used it nor wrote the release. `person` is whom its principal stands for
    /// now.
    pub fn review(
        self,
        review: Review,
        person: &str,
        authors: &BTreeSet<String>,
    ) -> Result<Self, ReviewRefused> {
        let is_own = is_by([&self.principal, &self.person, person], [&review.reviewer, &review.person]);
        if is_own || authors.contains(&review.reviewer) || authors.contains(&review.person) {
            return Err(ReviewRefused::Own);
        }
        if self.review.is_some() {
            return Err(ReviewRefused::Again(self.id));
        }
        Ok(Self { review: Some(review), row_version: self.row_version + 1, ..self })
    }
}

#[cfg(test)]
mod tests {
    use shared::time::at;

    use super::*;

    fn used() -> BreakGlass {
        BreakGlass {
            id: BreakGlassId::new(at(1), [1; 10]),
            release: ReleaseId::new(at(0), [0; 10]),
            revision: 1,
            principal: "i|ada".to_owned(),
            person: "ada".to_owned(),
            reason: "payments are down".to_owned(),
            used_at: at(1),
            due_at: at(100),
            review: None,
            row_version: 1,
        }
    }

    fn by(reviewer: &str, person: &str) -> Review {
        let (reviewer, person) = (reviewer.to_owned(), person.to_owned());
        Review { verdict: Verdict::Violation, reviewer, person, reason: "could wait".to_owned(), at: at(2) }
    }

    #[test]
    fn it_is_overdue_from_its_due_time_until_it_is_reviewed() {
        assert_eq!(used().state(at(99)), State::UnderReview);
        assert_eq!(used().state(at(100)), State::Overdue);
        let reviewed = used().review(by("i|bob", "bob"), "ada", &BTreeSet::new()).unwrap();
        assert_eq!(reviewed.state(at(100)), State::Reviewed(Verdict::Violation));
        let again = reviewed.clone().review(by("i|eve", "eve"), "ada", &BTreeSet::new());
        assert_eq!(again, Err(ReviewRefused::Again(reviewed.id)));
    }

    #[test]
    fn neither_who_used_it_nor_who_wrote_the_release_reviews_it() {
        let authors = BTreeSet::from(["carol".to_owned()]);
        let later = "ada|later";
        for (reviewer, person) in
            [("i|ada", "ada"), ("other|ada", "ada"), ("i|carol", "carol"), ("i|dan", later)]
        {
            assert_eq!(used().review(by(reviewer, person), later, &authors), Err(ReviewRefused::Own));
        }
    }
}
