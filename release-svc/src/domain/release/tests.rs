use std::collections::HashMap;

use proptest::prelude::*;
use shared::id::ApprovalId;
use shared::time::at;

use super::*;
use crate::domain::approval::Owners;
use crate::domain::component::Tier;
use crate::domain::risk::{
    Bands, Calendar, Facts as RiskFacts, Features, Floors, Impact, Prior, Reversibility, Weights, assess,
};
use crate::domain::snapshot::{Commit, People};

const STATES: [&str; 11] = [
    "DRAFT",
    "ASSESSING",
    "PENDING_APPROVAL",
    "APPROVED",
    "ACTIVE",
    "RELEASED",
    "REJECTED",
    "CANCELLED",
    "ABANDONED",
    "ROLLED_BACK",
    "SUPERSEDED",
];
const EVENTS: [&str; 13] = [
    "edit",
    "submit",
    "revise",
    "approve",
    "reject",
    "break glass",
    "cancel",
    "abandon",
    "expose",
    "roll back",
    "supersede",
    "replace",
    "look",
];
const NOWHERE: Standing = Standing { stable_in: 0, under_way_in: 0, is_surpassed: true };

pub(crate) fn draft() -> Release {
    Release {
        id: ReleaseId::new(at(0), [0; 10]),
        component: "storefront".parse().unwrap(),
        version: "1.0".parse().unwrap(),
        revision: 1,
        artifact_digest: None,
        notes: String::new(),
        change: Change::default(),
        author: "i|author".to_owned(),
        editors: Vec::new(),
        created_at: at(0),
        state: State::Draft,
        votes: Vec::new(),
        approval: None,
        quarantine: None,
        row_version: 1,
    }
}

/// Under a STARTER policy with this quorum.
pub(crate) fn submission(quorum: i32) -> Submission {
    Submission {
        submitter: "i|submitter".to_owned(),
        at: at(1),
        quorum,
        band: Band::Low,
        risk: None,
        snapshot: None,
    }
}

fn in_state(name: &str, quorum: i32) -> Release {
    let submission = (name != "DRAFT").then(|| submission(quorum));
    Release { state: State::of(name, submission).unwrap(), ..draft() }
}

/// What is so at this second. MEDIUM, as nothing is known of the component.
fn facts(second: i64, lacking: &[&str]) -> Facts {
    let features = Features::of(&RiskFacts::default());
    let impact =
        Impact { tier: Tier::Two, calendar: Calendar::Normal, reversibility: Reversibility::Redeploy };
    let prior = Prior::of(&[], at(second));
    let floors = Floors::default();
    Facts {
        now: at(second),
        assessment: assess(prior, &features, impact, &Weights::V1, Bands::default(), &floors),
        evidence: Vec::new(),
        lacking_evidence: lacking.iter().map(ToString::to_string).collect(),
        people: people(&["i|author", "i|submitter"]),
        owners: Owners::default(),
        approval_id: ApprovalId::new(at(second), [1; 10]),
    }
}

fn people(known: &[&str]) -> People {
    People::new(
        known
            .iter()
            .map(|name| ((*name).to_owned(), Some((*name).to_owned())))
            .collect(),
    )
}

#[test]
fn each_state_says_what_can_be_done_in_it() {
    let id = draft().id;
    for (state, hint) in [
        ("DRAFT", "submit it first, or cancel it"),
        ("ASSESSING", "it waits for evidence; to change it, revise it"),
        ("PENDING_APPROVAL", "it waits for votes; to change it, revise it"),
        ("APPROVED", "roll it out; to change it, cancel it and make another release"),
        ("ACTIVE", "advance its rollout, or roll that back"),
        ("RELEASED", "roll another release out to replace it"),
        ("REJECTED", "it has ended; make another release"),
        ("CANCELLED", "it has ended; make another release"),
        ("ABANDONED", "it has ended; make another release"),
        ("ROLLED_BACK", "it has ended; make another release"),
        ("SUPERSEDED", "it has ended; make another release"),
    ] {
        let text = in_state(state, 1).wrong_state().to_string();
        assert_eq!(text, format!("release {id} is {state}: {hint}"));
    }
}

fn by(voter: &str, approve: bool, second: i64) -> Vote {
    Vote {
        voter: format!("i|{voter}"),
        person: format!("i|{voter}"),
        groups: Vec::new(),
        band: Band::Low,
        approve,
        reason: "looked at it".to_owned(),
        at: at(second),
        expires_at: Some(at(second + 100)),
    }
}

fn approved_by(voters: &[&str], second: i64) -> Release {
    let quorum = i32::try_from(voters.len()).unwrap();
    voters.iter().fold(in_state("PENDING_APPROVAL", quorum), |release, voter| {
        release.vote(by(voter, true, second), &facts(second, &[])).unwrap().release
    })
}

fn last(decisions: Vec<Decision>) -> Option<Decision> {
    decisions.into_iter().next_back()
}

/// What an event makes of a release; none where it is refused or changes nothing.
fn after(event: &str, release: Release) -> Option<&'static str> {
    let (me, facts) = ("i|editor".to_owned(), facts(2, &[]));
    let decision = match event {
        "edit" => release.edit(me, None, String::new(), Change::default()).ok(),
        "submit" => release.submit(submission(1), &Latest::default()).ok(),
        "revise" => release.revise(me).ok(),
        "approve" => release.vote(by("voter", true, 2), &facts).ok(),
        "reject" => release.vote(by("voter", false, 2), &facts).ok(),
        "break glass" => release.break_glass(BreakGlassId::new(at(2), [3; 10]), at(9), &facts).ok(),
        "cancel" => release.cancel().ok(),
        "abandon" => release.abandon(NOWHERE).ok(),
        "expose" => release.expose(),
        "roll back" => release.settle(NOWHERE, Ending::RolledBack),
        "supersede" => release.settle(NOWHERE, Ending::Superseded),
        "replace" => release.settle(Standing { is_surpassed: false, ..NOWHERE }, Ending::Superseded),
        "look" => last(release.reassess(&facts)),
        _ => panic!("{event}"),
    };
    decision.map(|decision| decision.release.state.name())
}

#[test]
fn every_event_does_in_every_state_what_the_table_says() {
    let table: [(&str, &[(&str, &str)]); 13] = [
        ("edit", &[("DRAFT", "DRAFT")]),
        ("submit", &[("DRAFT", "ASSESSING")]),
        ("revise", &[("ASSESSING", "DRAFT"), ("PENDING_APPROVAL", "DRAFT")]),
        (
            "approve",
            &[
                ("PENDING_APPROVAL", "APPROVED"),
                ("APPROVED", "APPROVED"),
                ("ACTIVE", "ACTIVE"),
                ("RELEASED", "RELEASED"),
            ],
        ),
        ("reject", &[("PENDING_APPROVAL", "REJECTED")]),
        (
            "break glass",
            &[
                ("ASSESSING", "APPROVED"),
                ("PENDING_APPROVAL", "APPROVED"),
                ("APPROVED", "APPROVED"),
                ("ACTIVE", "ACTIVE"),
                ("RELEASED", "RELEASED"),
            ],
        ),
        (
            "cancel",
            &[
                ("DRAFT", "CANCELLED"),
                ("ASSESSING", "CANCELLED"),
                ("PENDING_APPROVAL", "CANCELLED"),
                ("APPROVED", "CANCELLED"),
            ],
        ),
        ("abandon", &[("ACTIVE", "ABANDONED"), ("RELEASED", "ABANDONED")]),
        ("expose", &[("APPROVED", "ACTIVE")]),
        ("roll back", &[("ACTIVE", "ROLLED_BACK"), ("RELEASED", "ROLLED_BACK")]),
        ("supersede", &[("APPROVED", "SUPERSEDED"), ("ACTIVE", "SUPERSEDED"), ("RELEASED", "SUPERSEDED")]),
        ("replace", &[]),
        // APPROVED without an approval is what an older version of Tandem left.
        ("look", &[("ASSESSING", "PENDING_APPROVAL"), ("APPROVED", "PENDING_APPROVAL")]),
    ];
    for (event, transitions) in table {
        for state in STATES {
            let expected = transitions.iter().find(|(from, _)| *from == state).map(|(_, to)| *to);
            assert_eq!(after(event, in_state(state, 1)), expected, "{event} in {state}");
        }
    }
}

#[test]
fn where_a_release_stands_follows_from_where_it_serves() {
    let settle = |state, standing| {
        in_state(state, 0)
            .settle(standing, Ending::RolledBack)
            .map(|decision| decision.release.state.name())
    };
    assert_eq!(settle("ACTIVE", Standing { stable_in: 1, under_way_in: 1, ..NOWHERE }), Some("RELEASED"));
    assert_eq!(settle("RELEASED", Standing { under_way_in: 1, ..NOWHERE }), Some("ACTIVE"));
    let served = in_state("ACTIVE", 0).abandon(Standing { stable_in: 1, ..NOWHERE });
    assert!(matches!(served, Err(AbandonRefused::Exposed(_))));
}

#[test]
fn what_needs_nobodys_vote_is_approved_as_soon_as_its_evidence_stands() {
    let waiting = in_state("ASSESSING", 0);
    assert_eq!(waiting.clone().reassess(&facts(2, &["no TEST_REPORT"])), []);
    let decision = last(waiting.reassess(&facts(2, &[]))).unwrap();
    assert_eq!((decision.from, decision.kind), ("ASSESSING", "release.approved"));
    let approval = decision.release.approval.clone().unwrap();
    assert_eq!((approval.basis, approval.expires_at), (Basis::StandardChange, None));
    let revoked = last(decision.release.reassess(&facts(3, &["no TEST_REPORT"]))).unwrap();
    assert_eq!((revoked.kind, revoked.release.state.name()), ("release.approval_lapsed", "PENDING_APPROVAL"));
}

#[test]
fn an_approval_stands_until_its_first_needed_vote_expires() {
    let approved = approved_by(&["a", "b"], 2);
    assert_eq!(approved.state.name(), "APPROVED");
    assert_eq!(approved.approval.as_ref().unwrap().expires_at, Some(at(102)));
    assert_eq!(approved.clone().reassess(&facts(101, &[])), []);
    let lapsed = last(approved.clone().reassess(&facts(102, &[]))).unwrap();
    assert_eq!((lapsed.kind, lapsed.release.state.name()), ("release.approval_lapsed", "PENDING_APPROVAL"));
    // The same people may look again.
    let once = lapsed.release.vote(by("a", true, 103), &facts(103, &[])).unwrap();
    assert_eq!((once.kind, once.release.votes.len()), ("release.voted", 2));
    let active = approved.expose().unwrap().release;
    let lapsed = last(active.reassess(&facts(102, &[]))).unwrap();
    assert_eq!((lapsed.release.state.name(), lapsed.release.approval), ("ACTIVE", None));
}

#[test]
fn a_vote_taken_back_reopens_the_approval() {
    let release = approved_by(&["a", "b"], 2).withdraw_vote("i|a").unwrap().release;
    assert_eq!(release.state.name(), "APPROVED");
    let lapsed = last(release.reassess(&facts(3, &[]))).unwrap();
    assert_eq!(lapsed.release.state.name(), "PENDING_APPROVAL");
    assert_eq!(lapsed.release.withdraw_vote("i|a"), None);
}

#[test]
fn a_revision_voids_votes_and_its_editor_is_an_author() {
    let voted = in_state("PENDING_APPROVAL", 2)
        .vote(by("a", true, 2), &facts(2, &[]))
        .unwrap()
        .release;
    let revised = voted.revise("i|a".to_owned()).unwrap().release;
    assert_eq!(
        (revised.revision, revised.votes.len(), revised.editors.as_slice()),
        (2, 0, &["i|a".to_owned()][..])
    );
    let again = revised.submit(submission(1), &Latest::default()).unwrap().release;
    let pending = last(again.reassess(&facts(3, &[]))).unwrap().release;
    assert_eq!(pending.vote(by("a", true, 3), &facts(3, &[])), Err(VoteRefused::Own));
}

#[test]
fn committers_are_known_by_their_aliases_or_keep_everybody_waiting() {
    let commit = |author: &str| Commit { sha: "c".to_owned(), author: author.to_owned(), at: at(0) };
    let mut release = in_state("PENDING_APPROVAL", 1);
    release.change.commits = vec![commit("ada@example.com")];
    let vote = |facts: &Facts| release.clone().vote(by("ada", true, 2), facts);
    let unknown = vec!["ada@example.com".to_owned()];
    assert_eq!(vote(&facts(2, &[])), Err(VoteRefused::Unmapped(unknown)));
    let mut names: HashMap<_, _> = ["i|author", "i|submitter"]
        .map(|name| (name.to_owned(), Some(name.to_owned())))
        .into();
    names.insert("ada@example.com".to_owned(), Some("i|ada".to_owned()));
    let known = Facts { people: People::new(names), ..facts(2, &[]) };
    assert_eq!(vote(&known), Err(VoteRefused::Own));
    assert!(release.clone().vote(by("bob", true, 2), &known).is_ok());
}

#[test]
fn a_version_that_came_too_late_and_a_release_without_a_plan_are_not_submitted() {
    let latest = Latest { of_line: Some("1.0.1".parse().unwrap()), of_all: None };
    let refused = draft().submit(submission(0), &latest);
    assert!(matches!(refused, Err(SubmitRefused::Version(_))));
    let policy = crate::domain::policy::ApprovalPolicy {
        name: "standard".parse().unwrap(),
        terms: Terms::of(Profile::Standard, 0),
        created_at: at(0),
        row_version: 1,
        proposed: None,
    };
    let tenant = "shop".parse().unwrap();
    let (snapshot, body) = Snapshot::take(&tenant, &draft(), "i|s", &policy, &People::default()).unwrap();
    assert_eq!(snapshot.digest, Digest::of(&body));
    let submission = Submission { snapshot: Some(snapshot), ..submission(0) };
    let submit = |draft: Release| draft.submit(submission.clone(), &Latest::default());
    assert_eq!(submit(draft()), Err(SubmitRefused::Incomplete("change.rollback_plan")));
    let mut planned = draft();
    planned.change.rollback_plan = "deploy 0.9".to_owned();
    assert_eq!(submit(planned.clone()), Err(SubmitRefused::Incomplete("artifact_digest")));
    planned.artifact_digest = Some(Digest::of(b"image"));
    assert!(submit(planned).is_ok());
}

#[test]
fn quarantine_holds_whatever_else_stands() {
    let approved = approved_by(&["a"], 2);
    assert_eq!(approved.holds(&facts(3, &[])), []);
    let quarantine = Quarantine { reason: "leaks".to_owned(), by: "i|q".to_owned(), at: at(3) };
    let marked = approved.quarantine(quarantine.clone()).unwrap().release;
    let kinds: Vec<_> = marked.holds(&facts(3, &[])).iter().map(|hold| hold.kind.name()).collect();
    assert_eq!(kinds, ["QUARANTINE"]);
    assert_eq!(marked.clone().quarantine(quarantine), None);
    assert_eq!(marked.lift_quarantine().unwrap().release.holds(&facts(3, &[])), []);
}

proptest! {
    #[test]
    fn i5_the_quorum_is_met_by_others_only_and_by_each_once(
        quorum in 1_i32..4,
        voters in proptest::collection::vec(
            prop_oneof![Just("author"), Just("submitter"), Just("a"), Just("b"), Just("c")], 0..12
        ),
    ) {
        let mut release = in_state("PENDING_APPROVAL", quorum);
        for voter in &voters {
            if let Ok(decision) = release.clone().vote(by(voter, true, 2), &facts(2, &[])) {
                release = decision.release;
            }
        }
        let mut others: Vec<_> =
            voters.iter().filter(|voter| !["author", "submitter"].contains(voter)).collect();
        others.sort_unstable();
        others.dedup();
        let needed = usize::try_from(quorum).unwrap();
        prop_assert_eq!(release.state.name() == "APPROVED", others.len() >= needed);
        prop_assert!(release.votes.iter().all(|vote| !["i|author", "i|submitter"].contains(&vote.voter.as_str())));
    }

    #[test]
    fn i13_final_states_stay(state in proptest::sample::select(&STATES[6..]), event in proptest::sample::select(&EVENTS[..])) {
        prop_assert_eq!(after(event, in_state(state, 0)), None);
    }

    #[test]
    fn looking_twice_says_nothing_new(
        state in proptest::sample::select(&STATES[..]), quorum in 0_i32..3, second in 2_i64..300, lacks in any::<bool>(),
    ) {
        let lacking: &[&str] = if lacks { &["no SCAN"] } else { &[] };
        let facts = facts(second, lacking);
        let release = in_state(state, quorum);
        let seen = last(release.clone().reassess(&facts)).map_or(release, |decision| decision.release);
        prop_assert_eq!(seen.reassess(&facts), vec![]);
    }
}
