//! What reports are made of: enrolments and outcomes added up in batches, so that no request writes a row that others write,
//! and live visits counted by a slow walk.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use shared::id::{ComponentId, TenantId};
use shared::time::Time;
use uuid::Uuid;

use crate::domain::visit::{Pins, Route};
use crate::rpc::App;
use crate::store::signal::scan::{self, Visits};
use crate::store::signal::sum;

/// How often what was written since is added up.
pub const ADD_INTERVAL: Duration = Duration::from_millis(500);
/// Rows in one transaction, and transactions of each kind in one pass.
const ADD_BATCH: i64 = 2000;
const ADD_BATCHES: usize = 20;
/// How often the walk over live visits goes on, and for how long: a twentieth of the time.
pub const SCAN_INTERVAL: Duration = Duration::from_secs(1);
const SCAN_TIME: Duration = Duration::from_millis(50);
/// Sessions in one step.
const SCAN_STEP: i64 = 500;
/// A replica that is silent for so long does not go on with its walk.
const SCAN_LEASE: TimeDelta = TimeDelta::seconds(30);
/// How often kills are read again, besides when one is heard of.
pub const KILLS_INTERVAL: Duration = Duration::from_secs(5);
/// How long sums outlive the reports of them.
const KEPT: TimeDelta = TimeDelta::hours(24);
const FORGET_BATCH: i64 = 1000;

/// Adds up what was written since the last pass.
pub async fn add_up(app: &App) -> sqlx::Result<u64> {
    let mut db = app.db.connection().await?;
    let mut added = 0;
    for _ in 0..ADD_BATCHES {
        let enrolments = sum::add_enrolments(&mut db, ADD_BATCH).await?;
        let redeals = sum::add_redeals(&mut db, ADD_BATCH).await?;
        let outcomes = sum::add_outcomes(&mut db, ADD_BATCH).await?;
        added += (enrolments + redeals + outcomes).unsigned_abs();
        if enrolments.max(redeals).max(outcomes) < ADD_BATCH {
            break;
        }
    }
    Ok(added)
}

/// Forgets sums that nobody asks for.
pub async fn forget_signals(app: &App) -> sqlx::Result<u64> {
    let forgotten =
        sum::forget(&mut *app.db.connection().await?, app.clock.now() - KEPT, FORGET_BATCH).await?;
    Ok(forgotten.unsigned_abs())
}

/// Counts live visits while rollouts are under way.
pub struct Scanner {
    holder: Uuid,
    walk: Mutex<Option<Walk>>,
}

/// The routes of a tenant that have a rollout.
type Rolling = Vec<(ComponentId, Arc<Route>)>;

/// Where a walk is, and what it counted.
struct Walk {
    /// Those that are left; the last one is walked over.
    tenants: Vec<(TenantId, Rolling)>,
    after: Uuid,
    counted: Vec<Visits>,
}

impl Scanner {
    /// Named so while it holds the walk.
    pub fn new(holder: Uuid) -> Self {
        Self { holder, walk: Mutex::new(None) }
    }

    /// Goes on with the walk, or begins the next; says how many rollouts it is done with.
    pub async fn pass(&self, app: &App) -> sqlx::Result<u64> {
        let began = Instant::now();
        let now = app.clock.now();
        // Where the pass does not get to its end, or another replica walks by now, it begins anew.
        let walk = self.walk.lock().unwrap_or_else(PoisonError::into_inner).take();
        let rolling = app.routes.rolling();
        if rolling.is_empty() {
            return Ok(0);
        }
        let mut db = app.db.connection().await?;
        if !scan::hold(&mut db, self.holder, now, now + SCAN_LEASE).await? {
            return Ok(0);
        }
        let mut walk = walk.unwrap_or_else(|| Walk::new(rolling, now));
        while began.elapsed() < SCAN_TIME {
            if !walk.step(&mut db, now).await? {
                scan::save(&mut db, &walk.counted).await?;
                return Ok(walk.counted.len() as u64);
            }
        }
        *self.walk.lock().unwrap_or_else(PoisonError::into_inner) = Some(walk);
        Ok(0)
    }
}

impl Walk {
    fn new(rolling: HashMap<TenantId, Rolling>, began_at: Time) -> Self {
        let none = |tenant: &TenantId, route: &Route| {
            let rollout = route.rollout.as_ref()?.id;
            Some(Visits { tenant: tenant.clone(), rollout, canary: 0, control: 0, counted_at: began_at })
        };
        let routes = rolling
            .iter()
            .flat_map(|(tenant, routes)| routes.iter().map(move |(_, route)| (tenant, route)));
        let counted = routes.filter_map(|(tenant, route)| none(tenant, route)).collect();
        Self { tenants: rolling.into_iter().collect(), after: Uuid::nil(), counted }
    }

    /// False at the end.
    async fn step(&mut self, db: &mut sqlx::PgConnection, now: Time) -> sqlx::Result<bool> {
        let Some((tenant, rolling)) = self.tenants.last() else { return Ok(false) };
        let step = scan::step(db, tenant, self.after, SCAN_STEP, now).await?;
        for (pins, count) in &step.visits {
            for (component, route) in rolling {
                add(&mut self.counted, component, route, pins, *count);
            }
        }
        if step.reached.is_none() {
            self.tenants.pop();
        }
        self.after = step.reached.unwrap_or_default();
        Ok(true)
    }
}

/// By the release alone: a visit from before the rollout is on the old one as those are that it left there.
fn add(counted: &mut [Visits], component: &ComponentId, route: &Route, pins: &Pins, count: i64) {
    let (Some(pin), Some(rollout)) = (pins.get(component), &route.rollout) else { return };
    let Some(visits) = counted.iter_mut().find(|visits| visits.rollout == rollout.id) else { return };
    if pin.release == rollout.release {
        visits.canary += count;
    } else if Some(&pin.release) == route.stable.as_ref() {
        visits.control += count;
    }
}
