//! The invariants of rollouts, by their numbers, as the trail of transitions shows them.

use std::collections::{BTreeMap, BTreeSet};

use chrono::TimeDelta;
use serde_json::Value;
use shared::pb::release as pb;
use shared::pb::release::{RolloutMode, RolloutState};
use shared::time::{Time, from_proto};
use sqlx::Row as _;

use crate::audit::list_all;
use crate::harness::fleet::Fleet;

/// For how long steps are watched, where they are.
pub(crate) const BAKE: TimeDelta = TimeDelta::minutes(10);

/// By rollout, arm and guard.
pub(crate) type Counts = BTreeMap<(String, bool, String), i64>;

/// A transition, as the trail tells it.
struct Told {
    kind: String,
    rollout: String,
    principal: String,
    at: Time,
    data: Value,
}

impl Told {
    fn of(event: &pb::AuditEvent) -> Self {
        let record: Value = serde_json::from_str(&event.record).unwrap();
        Self {
            kind: event.kind.clone(),
            rollout: event.subject.clone(),
            principal: event.principal.clone(),
            at: from_proto(event.occur_time.unwrap()).unwrap(),
            data: record["data"].clone(),
        }
    }

    fn text(&self, name: &str) -> &str {
        self.data[name].as_str().unwrap_or_default()
    }

    fn number(&self, name: &str) -> i64 {
        self.data[name].as_i64().unwrap()
    }

    fn is_forward(&self) -> bool {
        self.text("mode") == "FORWARD"
    }

    /// Whether visits may be on the release because of it.
    fn is_exposing(&self) -> bool {
        ["RUNNING", "PAUSED", "DRAINING"].contains(&self.text("to"))
    }

    fn is_under_way(&self) -> bool {
        self.is_exposing() || ["ROLLING_BACK", "ROLLBACK_FAILED"].contains(&self.text("to"))
    }
}

/// Every invariant that the trail shows; the kinds of what was told.
pub(crate) async fn assert_trail(fleet: &Fleet, rollouts: &[pb::Rollout]) -> BTreeSet<String> {
    fleet.assert_trail_holds().await;
    let events = list_all(&fleet.author).await;
    let of_rollouts = events.iter().filter(|event| event.kind.starts_with("rollout."));
    let (told, beside): (Vec<_>, Vec<_>) =
        of_rollouts.map(Told::of).partition(|told| told.data["to"].is_string());
    i2_at_most_one_is_under_way_and_one_waits(&told);
    routes_rise(&told);
    for rollout in rollouts {
        fleet.assert_told_once(rollout).await;
        let of_it: Vec<_> = told.iter().filter(|told| told.rollout == rollout.rollout_id).collect();
        each_follows_the_one_before(&of_it, rollout);
        i3_exposure_rises_to_its_step_and_goes_back_for_good(&of_it, rollout);
        no_step_is_skipped_without_a_reason(&of_it, rollout);
        let of_beside = beside.iter().filter(|told| told.rollout == rollout.rollout_id);
        i15_harm_is_told_once_and_stays_and_a_person_without_part_clears_it(&of_it, of_beside, rollout);
    }
    told.into_iter().chain(beside).map(|told| told.kind).collect()
}

fn i2_at_most_one_is_under_way_and_one_waits(told: &[Told]) {
    let mut now: BTreeMap<&str, BTreeMap<&str, &Told>> = BTreeMap::new();
    for next in told.iter().filter(|told| told.is_forward()) {
        let here = now.entry(next.text("component")).or_default();
        here.insert(&next.rollout, next);
        let under_way = here.values().filter(|told| told.is_under_way()).count();
        let waiting = here.values().filter(|told| told.text("to") == "WAITING").count();
        assert!(under_way <= 1 && waiting <= 1, "{under_way} under way, {waiting} wait: {:?}", next.data);
    }
}

/// What session services are told is a revision of its own, and none comes twice.
fn routes_rise(told: &[Told]) {
    let (mut revisions, mut exposures) = (BTreeMap::new(), BTreeMap::new());
    for next in told {
        let (revision, exposure) = (next.number("route_revision"), next.number("exposure_bps"));
        let before = revisions.insert(next.text("component"), revision).unwrap_or(0);
        assert!((before..=before + 1).contains(&revision), "after {before}: {:?}", next.data);
        let exposed = exposures.insert(&next.rollout, exposure).unwrap_or(0);
        assert!(exposure == exposed || revision > before, "{:?}", next.data);
    }
}

fn each_follows_the_one_before(told: &[&Told], rollout: &pb::Rollout) {
    let mut state = None;
    for next in told {
        assert_eq!(next.data["from"].as_str(), state, "{:?}", next.data);
        state = next.data["to"].as_str();
    }
    let is = rollout.state().as_str_name().trim_start_matches("ROLLOUT_STATE_");
    assert_eq!(state, Some(is), "{rollout:?}");
}

fn i3_exposure_rises_to_its_step_and_goes_back_for_good(told: &[&Told], rollout: &pb::Rollout) {
    let mut before = 0;
    let mut goes_back = rollout.mode() == RolloutMode::Rollback;
    for next in told {
        goes_back |= next.text("to") == "ROLLING_BACK";
        let exposure = next.number("exposure_bps");
        let step = usize::try_from(next.number("step")).unwrap();
        let of_step = next.is_exposing().then(|| rollout.step_exposures_bps[step].into());
        if goes_back {
            assert_eq!(exposure, 0, "{:?}", next.data);
        } else {
            assert!(exposure >= before && exposure <= of_step.unwrap_or(10_000), "{:?}", next.data);
        }
        assert!(exposure <= before || !next.text("approval_id").is_empty(), "{:?}", next.data);
        before = exposure;
    }
}

/// Without a reason, a step that is to be watched was, and one that is not is left by a person.
fn no_step_is_skipped_without_a_reason(told: &[&Told], rollout: &pb::Rollout) {
    let is_watched = rollout.plan.as_ref().is_some_and(|plan| plan.min_bake.is_some());
    for (before, next) in told.iter().zip(&told[1..]) {
        let steps = next.number("step") - before.number("step");
        assert_eq!(steps, i64::from(next.kind == "rollout.advanced"), "{:?}", next.data);
        if next.kind == "rollout.advanced" && next.text("reason").is_empty() {
            let was_watched = before.text("phase") == "BAKING" && next.at - before.at >= BAKE;
            let is_by_a_person = next.principal != "system";
            assert!(if is_watched { was_watched } else { is_by_a_person }, "{:?}", next.data);
        }
    }
}

fn i15_harm_is_told_once_and_stays_and_a_person_without_part_clears_it<'a>(
    told: &[&Told],
    beside: impl Iterator<Item = &'a Told>,
    rollout: &pb::Rollout,
) {
    let harms = beside.filter(|told| told.kind == "rollout.harm_found");
    let guards: Vec<_> = harms.map(|told| told.text("guard")).collect();
    let found: Vec<_> = rollout.harms.iter().map(|harm| harm.guard.as_str()).collect();
    assert_eq!(guards, found, "{rollout:?}");
    for harm in &rollout.harms {
        let is_by_another = harm.cleared_by.ends_with("|boss") && !harm.clear_reason.is_empty();
        assert!(harm.cleared_by.is_empty() || is_by_another, "{harm:?}");
        let at = from_proto(harm.find_time.unwrap()).unwrap();
        let until = harm.clear_time.map_or(Time::MAX_UTC, |time| from_proto(time).unwrap());
        let went_on = told.iter().find(|told| {
            let is_later = at < told.at && told.at < until;
            is_later
                && ["rollout.advanced", "rollout.exposed", "rollout.resumed"].contains(&told.kind.as_str())
        });
        assert!(went_on.is_none(), "{:?}", went_on.map(|told| &told.data));
    }
}

/// What is known of the newer epoch is the highest that was told, whatever came late, twice or less.
pub(crate) async fn assert_counts(fleet: &Fleet, sent: &Counts, known: &Counts, rollouts: &[pb::Rollout]) {
    let mut db = fleet.stack.database.connect().await;
    let sql = "select 'rlo_' || replace(rollout_id::text, '-', '') as rollout, is_canary, guard, count
        from release.signal_counts where source_epoch = '2'";
    let rows = sqlx::query(sql).fetch_all(&mut db).await.unwrap();
    let stored: Counts = rows
        .iter()
        .map(|row| ((row.get("rollout"), row.get("is_canary"), row.get("guard")), row.get("count")))
        .collect();
    for (of, count) in &stored {
        assert!(sent.get(of).is_some_and(|sent| count <= sent), "{of:?} is {count}");
    }
    // Of guards that the plan lacks nothing is counted.
    let is_counted = |id: &str, guard: &str| {
        let states = [RolloutState::Running, RolloutState::Paused];
        let of_it = rollouts.iter().find(|rollout| rollout.rollout_id == id).unwrap();
        let mut guards = of_it.plan.iter().flat_map(|plan| &plan.guards);
        states.contains(&of_it.state()) && (guard.is_empty() || guards.any(|it| it.name == guard))
    };
    for (of, count) in known.iter().filter(|((id, _, guard), _)| is_counted(id, guard)) {
        assert!(stored.get(of).is_some_and(|stored| stored >= count), "{of:?} was told to be {count}");
    }
}
