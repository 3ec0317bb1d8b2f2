//! What becomes of shoppers by time alone: who looked at articles and took none is abandoned, then lost; and what belongs to
//! nobody known is deleted in time. As in `abandonment` nothing here waits, and looking late loses nothing.

use chrono::TimeDelta;
use shared::time::Time;

use super::abandonment::{CartPolicy, Next};

/// As events name what was left.
pub const KIND: &str = "BROWSE";
/// For so long after the last change a shopper is kept whom no subject has.
pub const ANONYMOUS_KEPT: TimeDelta = TimeDelta::days(90);
/// For so long what a login left of a shopper is kept.
pub const MERGED_KEPT: TimeDelta = TimeDelta::days(30);
/// Filling a cart touches no shopper: while the flag is up, it is looked for after as long as the flag has been up, within
/// these.
const RETURN_LOOKS: (TimeDelta, TimeDelta) = (TimeDelta::minutes(10), TimeDelta::hours(6));

/// What a shopper looked at and left: a flag, as that of a cart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Browsing {
    /// Rises when the flag is lowered. It is raised at most once in each.
    pub epoch: i32,
    /// When they last looked at an article; none where something came of it.
    pub looked_at: Option<Time>,
    /// The flag.
    pub raised: Option<Raised>,
}

/// A flag that is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raised {
    /// Since when.
    pub at: Time,
    /// Since when the shopper is lost, if they are.
    pub lost_at: Option<Time>,
}

/// Something that is due of a shopper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// They took something: what they looked at before is not left any more, and the flag comes down if it is up.
    Taken,
    /// They are gone: the flag goes up.
    Abandoned,
    /// They are lost.
    Lost,
}

/// Whose a shopper is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nobody's who is known.
    Anonymous,
    /// A subject's.
    Owned,
    /// A login emptied it.
    Merged {
        /// Tokens of wishlists may still be in use that name it.
        is_named: bool,
    },
}

/// What [`look`] finds besides what was looked at.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    /// Whose the shopper is.
    pub standing: Standing,
    /// When anything of theirs was last changed.
    pub active_at: Time,
    /// Whether an open cart of theirs has a line that is not saved for later.
    pub has_lines: bool,
    /// When they last ordered.
    pub ordered_at: Option<Time>,
}

/// What is due of a shopper by now, in the order that it happened in, and when to look again.
pub fn look(browsing: &Browsing, around: &Circumstances, policy: &CartPolicy, now: Time) -> (Vec<Due>, Next) {
    let (end, (due, next)) = match around.standing {
        Standing::Merged { is_named: true } => return (vec![], Next::At(now + MERGED_KEPT)),
        Standing::Merged { is_named: false } => (Some(around.active_at + MERGED_KEPT), (vec![], None)),
        Standing::Anonymous => {
            (Some(around.active_at + ANONYMOUS_KEPT), look_at_browsing(browsing, around, policy, now))
        }
        Standing::Owned => (None, look_at_browsing(browsing, around, policy, now)),
    };
    if end.is_some_and(|end| end <= now) {
        return (due, Next::Delete);
    }
    let idle = end.unwrap_or(now + ANONYMOUS_KEPT);
    (due, Next::At(next.map_or(idle, |next| next.min(idle))))
}

fn look_at_browsing(
    browsing: &Browsing,
    around: &Circumstances,
    policy: &CartPolicy,
    now: Time,
) -> (Vec<Due>, Option<Time>) {
    let Some(looked_at) = browsing.looked_at else { return (vec![], None) };
    if around.has_lines || around.ordered_at.is_some_and(|at| at >= looked_at) {
        return (vec![Due::Taken], None);
    }
    let (abandoned_at, lost_at) = (looked_at + policy.abandoned_after, looked_at + policy.lost_after);
    let mut due = vec![];
    let up_for = match browsing.raised {
        Some(Raised { lost_at: Some(_), .. }) => return (due, None),
        Some(raised) => now - raised.at,
        None if now < abandoned_at => return (due, Some(abandoned_at)),
        None => {
            due.push(Due::Abandoned);
            TimeDelta::zero()
        }
    };
    if lost_at <= now {
        due.push(Due::Lost);
        return (due, None);
    }
    let (least, most) = RETURN_LOOKS;
    (due, Some(lost_at.min(now + up_for.clamp(least, most))))
}

#[cfg(test)]
mod tests {
    use super::{Due::*, *};
    use proptest::prelude::*;
    use shared::time::at;

    const MIN: i64 = 60;
    const HOUR: i64 = 60 * MIN;
    const DAYS: i64 = 24 * HOUR;
    const GUEST: Circumstances = Circumstances {
        standing: Standing::Anonymous,
        active_at: Time::UNIX_EPOCH,
        has_lines: false,
        ordered_at: None,
    };
    const OWNED: Circumstances = Circumstances { standing: Standing::Owned, ..GUEST };

    /// Looked at something at 0.
    fn seen() -> Browsing {
        Browsing { epoch: 1, looked_at: Some(at(0)), raised: None }
    }

    fn gone(raised_at: i64, lost_at: Option<i64>) -> Browsing {
        Browsing { raised: Some(Raised { at: at(raised_at), lost_at: lost_at.map(at) }), ..seen() }
    }

    #[test]
    fn what_is_due_and_when_to_look_again() {
        let nothing = Browsing { looked_at: None, ..seen() };
        let filled = Circumstances { has_lines: true, ..GUEST };
        let ordered = |seconds| Circumstances { ordered_at: Some(at(seconds)), ..GUEST };
        let table = [
            ("nothing", nothing, GUEST, HOUR, vec![], 90 * DAYS),
            ("nothing of a subject's", nothing, OWNED, HOUR, vec![], 90 * DAYS + HOUR),
            ("not yet", seen(), GUEST, HOUR - 1, vec![], HOUR),
            ("gone", seen(), GUEST, HOUR, vec![Abandoned], HOUR + 10 * MIN),
            ("gone once", gone(HOUR, None), GUEST, HOUR + 10 * MIN, vec![], HOUR + 20 * MIN),
            ("gone for a while", gone(HOUR, None), GUEST, 3 * HOUR, vec![], 5 * HOUR),
            ("gone for long", gone(HOUR, None), GUEST, DAYS, vec![], DAYS + 6 * HOUR),
            ("almost lost", gone(HOUR, None), GUEST, 30 * DAYS - 1, vec![], 30 * DAYS),
            ("lost", gone(HOUR, None), GUEST, 30 * DAYS, vec![Lost], 90 * DAYS),
            ("lost once", gone(HOUR, Some(30 * DAYS)), OWNED, 31 * DAYS, vec![], 121 * DAYS),
            ("nobody looked for long", seen(), OWNED, 31 * DAYS, vec![Abandoned, Lost], 121 * DAYS),
            ("a cart", seen(), filled, MIN, vec![Taken], 90 * DAYS),
            ("a cart instead", seen(), filled, HOUR, vec![Taken], 90 * DAYS),
            ("back for a cart", gone(HOUR, None), filled, 2 * HOUR, vec![Taken], 90 * DAYS),
            ("an order", seen(), ordered(MIN), HOUR, vec![Taken], 90 * DAYS),
            ("an order before", seen(), ordered(-1), HOUR, vec![Abandoned], HOUR + 10 * MIN),
        ];
        for (name, browsing, around, now, due, next) in table {
            let expected = (due, Next::At(at(next)));
            assert_eq!(look(&browsing, &around, &CartPolicy::default(), at(now)), expected, "{name}");
        }
    }

    #[test]
    fn who_is_kept_and_for_how_long() {
        let merged = |is_named| Standing::Merged { is_named };
        let table = [
            (Standing::Anonymous, 90 * DAYS - 1, Next::At(at(90 * DAYS))),
            (Standing::Anonymous, 90 * DAYS, Next::Delete),
            (Standing::Owned, 900 * DAYS, Next::At(at(990 * DAYS))),
            (merged(false), 30 * DAYS - 1, Next::At(at(30 * DAYS))),
            (merged(false), 30 * DAYS, Next::Delete),
            (merged(true), 300 * DAYS, Next::At(at(330 * DAYS))),
        ];
        for (standing, now, next) in table {
            let around = Circumstances { standing, ..GUEST };
            let lost = gone(HOUR, Some(30 * DAYS));
            assert_eq!(look(&lost, &around, &CartPolicy::default(), at(now)), (vec![], next), "{standing:?}");
        }
    }

    proptest! {
        /// However late and however often someone looks, each thing comes once, and in the end the row goes.
        #[test]
        fn looking_again_when_told_to_sees_everything_once(delays in proptest::collection::vec(0_i64..40 * DAYS, 0..20)) {
            let (mut browsing, mut now, mut told) = (seen(), at(0), vec![]);
            let mut delays = delays.into_iter();
            loop {
                let (due, next) = look(&browsing, &GUEST, &CartPolicy::default(), now);
                for due in due {
                    told.push(due);
                    let before = browsing.raised.map_or(now, |raised| raised.at);
                    browsing.raised = Some(Raised { at: before, lost_at: (due == Lost).then_some(now) });
                }
                match next {
                    Next::Delete => break,
                    Next::At(next) => {
                        prop_assert!(next > now, "no busy loop");
                        now = next + TimeDelta::seconds(delays.next().unwrap_or(0));
                    }
                }
            }
            prop_assert_eq!(told, vec![Abandoned, Lost]);
        }
    }
}
