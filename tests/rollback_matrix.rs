//! Nothing refuses a way back: from every state, and whatever stands in the way of going on. A test is of one hindrance, and
//! every state is a component of its own in it.

use chrono::TimeDelta;
use shared::pb::release as pb;
use shared::pb::release::{RolloutMode, RolloutState, TaskState};
use sqlx::Row as _;
use tonic::Code;

use crate::harness::Answer as _;
use crate::harness::fleet::{At, EVERYWHERE, Fleet};
use crate::harness::govern::{blockers, quarantine};
use crate::harness::shop::{advance, get_release, rollback};
use crate::window::{create_window, today};

/// What stands in the way of going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hindrance {
    Freeze,
    StoppedLine,
    ExpiredApproval,
    /// With whatever task there is.
    DeadExecutor,
    /// A component whose rollout is under way needs the version that goes.
    Dependant,
    QuarantinedPrevious,
    StaleEtag,
}

/// A rollout in a state, and that of what depends on it.
struct Cell {
    at: At,
    rollout: pb::Rollout,
    dependant: Option<pb::Rollout>,
}

/// What a rollback answers in this state, and where that leads once session services have confirmed it.
const fn expected(at: At) -> (RolloutState, RolloutState) {
    match at {
        At::Waiting | At::Cancelled => (RolloutState::Cancelled, RolloutState::Cancelled),
        At::Deploying
        | At::Exposing
        | At::Baking
        | At::Paused
        | At::Draining
        | At::Succeeded
        | At::RollingBack => (RolloutState::RollingBack, RolloutState::RolledBack),
        At::RollbackFailed => (RolloutState::RollbackFailed, RolloutState::RollbackFailed),
        At::RolledBack => (RolloutState::RolledBack, RolloutState::RolledBack),
        At::Superseded => (RolloutState::Superseded, RolloutState::Superseded),
    }
}

/// Whether a rollback in this state takes visits away from the release.
const fn is_exposing(at: At) -> bool {
    matches!(at, At::Deploying | At::Exposing | At::Baking | At::Paused | At::Draining | At::Succeeded)
}

impl Cell {
    async fn bring(fleet: &Fleet, at: At, hindrance: Hindrance) -> Self {
        let component = format!("{at:?}-{hindrance:?}").to_lowercase();
        let rollout = fleet.bring(&component, at).await;
        let dependant = if hindrance == Hindrance::Dependant {
            let name = format!("{component}-dependant");
            let dependant = fleet.bring(&name, At::Baking).await;
            let constraint = ">=1.1".to_owned();
            let need = pb::Dependency { component, environment: String::new(), constraint };
            let component =
                Some(pb::Component { component: name, dependencies: vec![need], ..Default::default() });
            let request = pb::UpdateComponentRequest { component, ..Default::default() };
            fleet.author.catalog().update_component(request).await.answer();
            Some(dependant)
        } else {
            None
        };
        Self { at, rollout, dependant }
    }

    /// It goes back, to where it should, and the release before serves everyone.
    async fn goes_back(&self, fleet: &Fleet, hindrance: Hindrance) {
        let name = &self.rollout.component;
        let answer = fleet.author.rollouts().roll_back_rollout(rollback(&self.rollout)).await;
        let answer = answer.map(tonic::Response::into_inner);
        let answer = answer.unwrap_or_else(|status| panic!("{name} was refused: {status:?}"));
        let back = answer.rollout.unwrap();
        let (answered, ended) = expected(self.at);
        assert_eq!((back.state(), back.exposure_bps), (answered, 0), "{name}");
        let taken_back = if self.at == At::Succeeded { self.rollout.rollout_id.as_str() } else { "" };
        assert_eq!(back.rollback_of, taken_back, "{name}");
        assert_eq!(back.mode() == RolloutMode::Rollback, self.at == At::Succeeded, "{name}");
        let cascaded: Vec<_> = answer.cascaded.iter().map(|rollout| &rollout.rollout_id).collect();
        let dependants = self.dependant.iter().filter(|_| is_exposing(self.at));
        assert_eq!(cascaded, dependants.map(|dependant| &dependant.rollout_id).collect::<Vec<_>>(), "{name}");
        let warns = answer.warnings.iter().any(|warning| warning.contains("is quarantined"));
        let quarantined = hindrance == Hindrance::QuarantinedPrevious;
        assert_eq!(warns, quarantined && is_exposing(self.at), "{name}");
        if answered != ended {
            fleet.confirm(&back).await;
        }
        let back = fleet.reaches(&back, ended).await;
        assert_eq!(back.exposure_bps, 0, "{name}");
        self.serves_the_one_before(fleet).await;
    }

    async fn serves_the_one_before(&self, fleet: &Fleet) {
        let name = &self.rollout.component;
        let mut db = fleet.stack.database.connect().await;
        let sql = "select stable_semver, coalesce(exposure_bps, 0) as exposure_bps from release.routes
            where component = $1";
        let row = sqlx::query(sql).bind(name).fetch_one(&mut db).await.unwrap();
        let served: (String, i32) = (row.get("stable_semver"), row.get("exposure_bps"));
        assert_eq!(served, ("1.0".to_owned(), 0), "{name}");
        if let Some(dependant) = self.dependant.as_ref().filter(|_| is_exposing(self.at)) {
            let dependant = fleet.get(dependant).await;
            assert_eq!((dependant.state(), dependant.exposure_bps), (RolloutState::RollingBack, 0), "{name}");
        }
    }
}

/// Puts the hindrance in everyone's way, and sees that it is there.
async fn hinder(fleet: &Fleet, cells: &[Cell], hindrance: Hindrance) {
    let Fleet { author, boss, .. } = fleet;
    let release = |id: &str| pb::Release { release_id: id.to_owned(), ..Default::default() };
    let waiting = cells.iter().find(|cell| cell.at == At::Waiting).unwrap();
    let waiting = release(&waiting.rollout.release_id);
    match hindrance {
        Hindrance::Freeze => {
            create_window(author, today()).await;
            assert_eq!(blockers(author, &waiting).await, ["WINDOW", "WINDOW"]);
        }
        Hindrance::StoppedLine => {
            let stop = pb::StopTheLineRequest { reason: "fire".to_owned(), ..Default::default() };
            author.windows().stop_the_line(stop).await.answer();
            assert!(blockers(author, &waiting).await.contains(&"LINE".to_owned()));
        }
        Hindrance::ExpiredApproval => {
            fleet.stack.advance(TimeDelta::hours(73));
            for cell in cells {
                let found = get_release(author, &release(&cell.rollout.release_id)).await;
                assert_eq!(found.approval, None, "{}", cell.rollout.component);
            }
        }
        Hindrance::DeadExecutor => {
            for cell in cells {
                let is_leased = fleet.lease(&cell.rollout.component).await.is_some();
                assert_eq!(is_leased, matches!(cell.at, At::Deploying | At::Paused), "{:?}", cell.at);
            }
        }
        Hindrance::Dependant => {}
        Hindrance::QuarantinedPrevious => {
            for cell in cells {
                let before = cell.rollout.previous_release_id.as_str();
                if !before.is_empty() {
                    boss.releases().quarantine_release(quarantine(&release(before))).await.answer();
                }
            }
        }
        Hindrance::StaleEtag => {
            for cell in cells {
                let request =
                    pb::AdvanceRolloutRequest { etag: "v4711".to_owned(), ..advance(&cell.rollout) };
                let refused = author.rollouts().advance_rollout(request).await;
                refused.refused(Code::Aborted, "ETAG_MISMATCH");
            }
        }
    }
}

/// Of what was taken back, no executor makes room for anything any more.
async fn assert_nobody_works(fleet: &Fleet, cells: &[Cell]) {
    let states = [TaskState::Queued, TaskState::Leased].map(Into::into).to_vec();
    let request = pb::ListTasksRequest { states, page_size: 1000, ..Default::default() };
    let open = fleet.author.executors().list_tasks(request).await.answer().tasks;
    for cell in cells {
        let mut of_it = open.iter().filter(|task| task.release_id == cell.rollout.release_id);
        assert!(of_it.all(|task| task.kind() == pb::TaskKind::Retire), "{open:?}");
    }
}

async fn every_state_goes_back(hindrance: Hindrance) {
    let fleet = Fleet::start(None).await;
    let mut cells = Vec::new();
    for at in EVERYWHERE {
        cells.push(Cell::bring(&fleet, at, hindrance).await);
    }
    hinder(&fleet, &cells, hindrance).await;
    for cell in &cells {
        fleet.finish(&cell.rollout, cell.at).await;
    }
    for cell in &cells {
        cell.goes_back(&fleet, hindrance).await;
    }
    assert_nobody_works(&fleet, &cells).await;
    for cell in &cells {
        fleet.assert_told_once(&cell.rollout).await;
    }
    fleet.assert_trail_holds().await;
}

#[tokio::test]
async fn every_state_goes_back_in_a_freeze() {
    every_state_goes_back(Hindrance::Freeze).await;
}

#[tokio::test]
async fn every_state_goes_back_while_the_line_is_stopped() {
    every_state_goes_back(Hindrance::StoppedLine).await;
}

#[tokio::test]
async fn every_state_goes_back_after_its_approval_expired() {
    every_state_goes_back(Hindrance::ExpiredApproval).await;
}

#[tokio::test]
async fn every_state_goes_back_though_an_executor_died_with_its_task() {
    every_state_goes_back(Hindrance::DeadExecutor).await;
}

#[tokio::test]
async fn every_state_goes_back_after_the_rollout_of_what_needs_it() {
    every_state_goes_back(Hindrance::Dependant).await;
}

#[tokio::test]
async fn every_state_goes_back_to_what_is_quarantined() {
    every_state_goes_back(Hindrance::QuarantinedPrevious).await;
}

#[tokio::test]
async fn every_state_goes_back_whoever_changed_it_meanwhile() {
    every_state_goes_back(Hindrance::StaleEtag).await;
}
