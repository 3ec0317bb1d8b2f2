//! What reports are made of: enrolments and outcomes added up in batches, so that no request writes a row that others write,
//! and live visits counted by a slow walk.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use shared::id::TenantId;
use shared::time::Time;
use uuid::Uuid;

use crate::domain::signal::Counted;
use crate::domain::visit::Arm;
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

/// Counts live visits while rollouts are under way, or their last visits are waited for.
pub struct Scanner {
    holder: Uuid,
    walk: Mutex<Option<Walk>>,
}

/// Where a walk is, and what it counted.
struct Walk {
    /// Those that are left; the last one is walked over.
    tenants: Vec<(TenantId, Vec<(Counted, Visits)>)>,
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
        let asked = app.routes.counted();
        // A replica that release-svc is not heard by may walk for rollouts that are over; it leaves the walk to another one.
        if asked.is_empty() || !app.routes.view(now).may_expose() {
            return Ok(0);
        }
        let mut db = app.db.connection().await?;
        if !scan::hold(&mut db, self.holder, now, now + SCAN_LEASE).await? {
            return Ok(0);
        }
        let mut walk = walk.unwrap_or_else(|| Walk::new(asked, now));
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
    fn new(asked: HashMap<TenantId, Vec<Counted>>, began_at: Time) -> Self {
        let begin = |(tenant, asked): (TenantId, Vec<Counted>)| {
            let none = |counted: Counted| {
                let (tenant, rollout) = (tenant.clone(), counted.rollout);
                (counted, Visits { tenant, rollout, canary: 0, control: 0, counted_at: began_at })
            };
            let asked = asked.into_iter().map(none).collect();
            (tenant, asked)
        };
        Self { tenants: asked.into_iter().map(begin).collect(), after: Uuid::nil(), counted: vec![] }
    }

    /// False at the end.
    async fn step(&mut self, db: &mut sqlx::PgConnection, now: Time) -> sqlx::Result<bool> {
        let Some((tenant, asked)) = self.tenants.last_mut() else { return Ok(false) };
        let step = scan::step(db, tenant, self.after, SCAN_STEP, now).await?;
        for (pins, count) in &step.visits {
            for (counted, visits) in &mut *asked {
                match counted.side(pins) {
                    Some(Arm::Canary) => visits.canary += count,
                    Some(Arm::Control) => visits.control += count,
                    None => {}
                }
            }
        }
        if step.reached.is_none() {
            self.counted.extend(asked.drain(..).map(|(_, visits)| visits));
            self.tenants.pop();
        }
        self.after = step.reached.unwrap_or_default();
        Ok(true)
    }
}
