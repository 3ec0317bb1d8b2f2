//! Changes of windows that take two people. What forbids more takes one: who sees danger freezes at once.

use shared::time::Time;

use super::{Action, Effect, Target, Terms, Window};

/// A change that waits for its second person. It is of the window's present version: whatever else happens to the window
/// ends it.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposed {
    pub change: Change,
    /// `issuer|sub`.
    pub author: String,
    /// The human being that the author is.
    pub person: String,
    pub at: Time,
}

/// What would become of a window.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// It is new, stored as if it were deleted, and would hold.
    Creation,
    Update(Box<Terms>),
    Deletion {
        reason: String,
    },
}

impl Terms {
    /// Whether more would be allowed once they hold beside these windows. What denies never allows more, and neither does
    /// what allows an action that was open at all times until then.
    pub fn open_more(&self, live: &[Window]) -> bool {
        let allows = |terms: &Self| terms.effect == Effect::Allow;
        let shares = |other: &Window| self.actions.iter().any(|action| other.terms.actions.contains(action));
        allows(self) && live.iter().any(|other| allows(&other.terms) && shares(other))
    }
}

/// A live window that would hold less once something that is seen so, and does these actions, is seen otherwise and does
/// those: one that would not hold it any more, or one that would allow it beside another.
pub fn looser<'a>(
    live: &'a [Window],
    from: (&Target, &[Action]),
    to: (&Target, &[Action]),
) -> Option<&'a Window> {
    let holds = |window: &Window, (target, actions): (&Target, &[Action])| {
        let terms = &window.terms;
        terms.actions.iter().any(|action| actions.contains(action)) && terms.scope.may_cover(target)
    };
    let was_allowed = |window: &Window| {
        live.iter().any(|other| {
            let shares = other.terms.actions.iter().any(|action| window.terms.actions.contains(action));
            other.id != window.id && other.terms.effect == Effect::Allow && shares && holds(other, from)
        })
    };
    live.iter().find(|window| match (holds(window, from), holds(window, to)) {
        (true, holds_still) => !holds_still,
        (false, true) => window.terms.effect == Effect::Allow && was_allowed(window),
        (false, false) => false,
    })
}

impl Window {
    /// Whether it is new and waits for its second person itself.
    pub fn is_pending(&self) -> bool {
        matches!(self.proposed, Some(Proposed { change: Change::Creation, .. }))
    }

    /// Whether it can be changed: deleted ones cannot.
    pub fn is_live(&self) -> bool {
        self.deleted_at.is_none() || self.is_pending()
    }

    /// The same, with a change that waits for its second person.
    #[must_use]
    pub fn with_proposal(self, proposed: Proposed) -> Self {
        Self { row_version: self.row_version + 1, proposed: Some(proposed), ..self }
    }

    /// As it is once this change is in force.
    #[must_use]
    pub fn changed(self, change: Change, now: Time) -> Self {
        let row_version = self.row_version + 1;
        let window = Self { row_version, proposed: None, ..self };
        match change {
            Change::Creation => Self { deleted_at: None, ..window },
            Change::Update(terms) => Self { terms: *terms, ..window },
            Change::Deletion { .. } => Self { deleted_at: Some(now), ..window },
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::time::at;

    use super::super::Terms;
    use super::super::tests::recurring;
    use super::*;

    fn nightly(effect: Effect) -> Window {
        recurring(effect, "UTC", "FREQ=DAILY", "2027-01-01T22:00:00", 8)
    }

    fn proposed(change: Change) -> Proposed {
        Proposed { change, author: "idp|ada".to_owned(), person: "idp|ada.b".to_owned(), at: at(5) }
    }

    #[test]
    fn only_what_allows_beside_what_allows_opens_more() {
        let (denies, allows) = (nightly(Effect::Deny), nightly(Effect::Allow));
        let mut schema = allows.clone();
        schema.terms.actions = vec![Action::Schema];
        for (window, live, opens) in [
            (&denies, vec![], false),
            (&denies, vec![&allows, &denies], false),
            (&allows, vec![], false),
            (&allows, vec![&denies, &schema], false),
            (&allows, vec![&schema, &allows], true),
        ] {
            let live: Vec<_> = live.into_iter().cloned().collect();
            assert_eq!(window.terms.open_more(&live), opens, "{live:?}");
        }
    }

    #[test]
    fn what_leaves_a_window_or_enters_one_that_allows_beside_another_is_freer() {
        let window = |effect, n: u8, actions: &[Action], tier: &str| {
            let mut window = nightly(effect);
            window.id = shared::id::WindowId::new(at(0), [n; 10]);
            window.terms.actions = actions.to_vec();
            window.terms.scope.tiers = vec![tier.to_owned()];
            window
        };
        let all = &Action::ALL[..];
        let freeze = window(Effect::Deny, 1, all, "TIER_1");
        let schema = window(Effect::Deny, 2, &[Action::Schema], "TIER_1");
        let allows = window(Effect::Allow, 3, all, "TIER_2");
        let other = window(Effect::Allow, 4, all, "TIER_1");
        let seen = |tier: &'static str| Target { tier: Some(tier), ..Target::default() };
        let (one, two, usual) = (seen("TIER_1"), seen("TIER_2"), &[Action::Deploy, Action::Expose][..]);
        for (live, from, to, is_looser) in [
            (vec![&freeze], (&one, all), (&two, all), true),
            (vec![&freeze], (&two, all), (&one, all), false),
            (vec![&freeze], (&one, all), (&one, usual), false),
            (vec![&schema], (&one, all), (&one, usual), true),
            (vec![&allows], (&two, all), (&one, all), true),
            (vec![&allows], (&one, all), (&two, all), false),
            (vec![&allows, &other], (&one, all), (&two, all), true),
            // What is not known of it may be as the window says.
            (vec![&freeze], (&Target::default(), all), (&one, all), false),
            (vec![&freeze], (&Target::default(), all), (&two, all), true),
        ] {
            let live: Vec<_> = live.into_iter().cloned().collect();
            assert_eq!(looser(&live, from, to).is_some(), is_looser, "{from:?} to {to:?}");
        }
    }

    #[test]
    fn a_proposal_changes_nothing_until_it_is_confirmed() {
        let window = nightly(Effect::Deny);
        let terms = Terms { name: "other".to_owned(), ..window.terms.clone() };
        let reason = "over".to_owned();
        for (change, deleted_at, name) in [
            (Change::Creation, None, "freeze"),
            (Change::Update(Box::new(terms)), None, "other"),
            (Change::Deletion { reason }, Some(at(9)), "freeze"),
        ] {
            let waits = window.clone().with_proposal(proposed(change.clone()));
            assert_eq!((&waits.terms, waits.deleted_at, waits.row_version), (&window.terms, None, 2));
            let done = waits.changed(change, at(9));
            assert_eq!((done.deleted_at, done.terms.name.as_str(), done.row_version), (deleted_at, name, 3));
            assert_eq!(done.proposed, None);
        }
    }
}
