//! Votes, and when they are enough: how many people, of which groups, none of whom wrote the release, and for how long.

use std::collections::BTreeSet;

use shared::id::{ApprovalId, BreakGlassId};
use shared::time::Time;

use crate::domain::policy::BandRule;
use crate::domain::release::WrongState;
use crate::domain::risk::Band;
use crate::domain::snapshot::People;

/// One person's say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vote {
    /// `issuer|sub`.
    pub voter: String,
    /// The human being that the voter is.
    pub person: String,
    /// The voter's groups then.
    pub groups: Vec<String>,
    /// What the release was in; the vote counts up to it.
    pub band: Band,
    pub approve: bool,
    pub reason: String,
    pub at: Time,
    pub expires_at: Option<Time>,
}

/// That a release had all that it needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    pub id: ApprovalId,
    pub basis: Basis,
    pub band: Band,
    pub at: Time,
    pub expires_at: Option<Time>,
}

/// What an approval rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// It needs nobody's vote.
    StandardChange,
    Votes,
    BreakGlass(BreakGlassId),
}

/// Groups whose members a release may need the votes of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owners {
    pub groups: Vec<String>,
    pub business_groups: Vec<String>,
}

/// What votes are short of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    People { given: usize, needed: usize },
    Groups { given: usize, needed: usize },
    Owner(Vec<String>),
    BusinessOwner(Vec<String>),
}

/// Why a vote does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VoteRefused {
    #[error("nobody votes on a release that they wrote, edited, submitted or committed to")]
    Own,
    #[error(transparent)]
    State(#[from] WrongState),
    #[error("{0} voted on this release already; WithdrawVote takes that back")]
    Again(String),
    #[error("nobody knows who committed as {}; only then can a vote be known to be another person's", .0.join(", "))]
    Unmapped(Vec<String>),
}

impl Vote {
    /// Whether it still speaks for or against a release in this band.
    pub fn counts(&self, band: Band, now: Time) -> bool {
        self.band >= band && self.expires_at.is_none_or(|expiry| now < expiry)
    }
}

impl Basis {
    /// As on the wire, without its prefix, and in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::StandardChange => "STANDARD_CHANGE",
            Self::Votes => "VOTES",
            Self::BreakGlass(_) => "BREAK_GLASS",
        }
    }
}

/// Approvals that count: of people who did not write it, one of each, for a band as high as this. Who a voter is goes by the
/// aliases of then and of now.
pub fn counting<'a>(
    votes: &'a [Vote],
    authors: &BTreeSet<String>,
    people: &People,
    band: Band,
    now: Time,
) -> Vec<&'a Vote> {
    let mut seen = BTreeSet::new();
    let mut counting = Vec::new();
    for vote in votes.iter().filter(|vote| vote.approve && vote.counts(band, now)) {
        let names = [Some(vote.person.as_str()), Some(vote.voter.as_str()), people.person(&vote.voter)];
        let is_known = |name: &&str| authors.contains(*name) || seen.contains(name);
        if !names.into_iter().flatten().any(|name| is_known(&name)) {
            counting.push(vote);
        }
        seen.extend(names.into_iter().flatten());
    }
    counting
}

/// What these approvals, of a person each, are short of.
pub fn lacks(rule: &BandRule, votes: &[&Vote], owners: &Owners) -> Vec<Lack> {
    let count = |number: i32| usize::try_from(number).unwrap_or(0);
    let mut lacks = Vec::new();
    let (given, needed) = (votes.len(), count(rule.quorum));
    if given < needed {
        lacks.push(Lack::People { given, needed });
    }
    let groups: BTreeSet<_> = votes.iter().flat_map(|vote| &vote.groups).collect();
    let groups: Vec<_> = groups.into_iter().map(std::slice::from_ref).collect();
    let (given, needed) = (seated(&groups, votes), count(rule.distinct_groups));
    if given < needed {
        lacks.push(Lack::Groups { given, needed });
    }
    let has_owner = !rule.needs_owner || seated(&[owners.groups.as_slice()], votes) == 1;
    if !has_owner {
        lacks.push(Lack::Owner(owners.groups.clone()));
    }
    // Another person than the owner, where both are asked for.
    let seats = [owners.business_groups.as_slice(), owners.groups.as_slice()];
    let seats = &seats[..if rule.needs_owner && has_owner { 2 } else { 1 }];
    if rule.needs_business_owner && seated(seats, votes) < seats.len() {
        lacks.push(Lack::BusinessOwner(owners.business_groups.clone()));
    }
    lacks
}

/// When these approvals stop being enough, one after another.
pub fn lapses_at(rule: &BandRule, votes: &[&Vote], owners: &Owners) -> Option<Time> {
    let expiries: BTreeSet<_> = votes.iter().filter_map(|vote| vote.expires_at).collect();
    expiries.into_iter().find(|expiry| {
        let left: Vec<_> = votes
            .iter()
            .copied()
            .filter(|vote| vote.expires_at.is_none_or(|other| other > *expiry))
            .collect();
        !lacks(rule, &left, owners).is_empty()
    })
}

/// How many of the seats, each for the groups that it names, can be filled with a person of their own at once.
fn seated(seats: &[&[String]], votes: &[&Vote]) -> usize {
    let mut taken: Vec<Option<usize>> = vec![None; votes.len()];
    (0..seats.len())
        .filter(|seat| seat_one(*seat, seats, votes, &mut taken, &mut vec![false; votes.len()]))
        .count()
}

/// Seats somebody, moving others to other seats where that makes room (Kuhn's algorithm).
fn seat_one(
    seat: usize,
    seats: &[&[String]],
    votes: &[&Vote],
    taken: &mut [Option<usize>],
    asked: &mut [bool],
) -> bool {
    for person in 0..votes.len() {
        if asked[person] || !votes[person].groups.iter().any(|group| seats[seat].contains(group)) {
            continue;
        }
        asked[person] = true;
        let is_free = match taken[person] {
            None => true,
            Some(other) => seat_one(other, seats, votes, taken, asked),
        };
        if is_free {
            taken[person] = Some(seat);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use shared::time::at;

    use super::*;

    fn vote(voter: &str, groups: &[&str], hours: i64) -> Vote {
        Vote {
            voter: voter.to_owned(),
            person: voter.to_owned(),
            groups: groups.iter().map(ToString::to_string).collect(),
            band: Band::High,
            approve: true,
            reason: String::new(),
            at: at(0),
            expires_at: Some(at(hours * 3600)),
        }
    }

    fn owners() -> Owners {
        let group = |name: &str| vec![name.to_owned()];
        Owners { groups: group("owners"), business_groups: group("business") }
    }

    fn short_of(rule: BandRule, votes: &[Vote]) -> Vec<&'static str> {
        let votes: Vec<_> = votes.iter().collect();
        let name = |lack: &Lack| match lack {
            Lack::People { .. } => "people",
            Lack::Groups { .. } => "groups",
            Lack::Owner(_) => "owner",
            Lack::BusinessOwner(_) => "business owner",
        };
        lacks(&rule, &votes, &owners()).iter().map(name).collect()
    }

    #[test]
    fn two_groups_take_two_people_who_stand_for_another_one_each() {
        let rule = BandRule { quorum: 2, distinct_groups: 2, ..BandRule::default() };
        for (groups, short) in [
            ([&["dev"][..], &["dev"][..]], &["groups"][..]),
            ([&["dev", "ops"], &["dev"]], &[]),
            ([&["dev"], &["dev", "ops"]], &[]),
            ([&["dev", "ops"], &[]], &["groups"]),
        ] {
            let votes = [vote("a", groups[0], 1), vote("b", groups[1], 1)];
            assert_eq!(short_of(rule, &votes), short, "{groups:?}");
        }
        assert_eq!(short_of(rule, &[vote("a", &["dev", "ops"], 1)]), ["people", "groups"]);
    }

    #[test]
    fn an_owner_and_a_business_owner_are_two_people() {
        let rule =
            BandRule { quorum: 3, needs_owner: true, needs_business_owner: true, ..BandRule::default() };
        let all = |groups: [&[&str]; 3]| {
            [vote("a", groups[0], 1), vote("b", groups[1], 1), vote("c", groups[2], 1)]
        };
        assert_eq!(short_of(rule, &all([&["owners"], &["business"], &[]])), [""; 0]);
        assert_eq!(short_of(rule, &all([&["owners", "business"], &["owners"], &[]])), [""; 0]);
        assert_eq!(short_of(rule, &all([&["owners", "business"], &[], &[]])), ["business owner"]);
        assert_eq!(short_of(rule, &all([&["business"], &["business"], &[]])), ["owner"]);
        assert_eq!(short_of(rule, &all([&[], &[], &[]])), ["owner", "business owner"]);
    }

    #[test]
    fn approvals_lapse_with_the_vote_that_leaves_too_few() {
        let rule = BandRule { quorum: 2, ..BandRule::default() };
        let votes = [vote("a", &[], 1), vote("b", &[], 3), vote("c", &[], 2)];
        let votes: Vec<_> = votes.iter().collect();
        assert_eq!(lapses_at(&rule, &votes, &owners()), Some(at(2 * 3600)));
        let lasting = Vote { expires_at: None, ..votes[0].clone() };
        assert_eq!(lapses_at(&rule, &[&lasting, &lasting], &owners()), None);
    }

    #[test]
    fn votes_count_until_they_expire_up_to_their_band_and_for_others_only() {
        let votes = [vote("a", &[], 1), vote("b", &[], 2)];
        let count = |authors: &[&str], band, seconds| {
            let authors = authors.iter().map(ToString::to_string).collect();
            counting(&votes, &authors, &People::default(), band, at(seconds)).len()
        };
        assert_eq!(count(&[], Band::High, 3599), 2);
        assert_eq!(count(&[], Band::High, 3600), 1);
        assert_eq!(count(&[], Band::Critical, 0), 0);
        assert_eq!(count(&["a"], Band::Low, 0), 1);
    }
}
