//! Tasks of executors: made and given up with the transition of a rollout that asks for it, and changed as executors work at
//! them.

use serde_json::json;
use shared::id::{ReleaseId, TaskId};
use shared::mutation::Actor;
use shared::secret::sha256;
use shared::status::Failure;
use sqlx::PgConnection;

use super::{expect_written, tell};
use crate::domain::rollout::Rollout;
use crate::domain::task::{Decision, Idle, Kind, New, Order, Task};
use crate::store;

/// A change of a task.
pub(crate) async fn task(db: &mut PgConnection, actor: &Actor, decision: &Decision) -> Result<(), Failure> {
    expect_written(store::task::update(db, &actor.tenant, decision).await?)?;
    match decision.kind {
        Some(kind) => tell_task(db, actor, kind, &decision.task, Some(decision.from)).await,
        None => Ok(()),
    }
}

/// What a rollout's transition means to executors.
pub(super) async fn follow(db: &mut PgConnection, actor: &Actor, rollout: &Rollout) -> Result<(), Failure> {
    if Order::is_void(rollout) {
        cancel(db, actor, rollout, rollout.release.id, Kind::Expose).await?;
    }
    match Order::of(rollout) {
        Some(Order::Expose { release, exposure_bps }) => {
            // What is needed again is not to be retired.
            cancel(db, actor, rollout, release, Kind::Retire).await?;
            make(db, actor, rollout, Kind::Expose, (release, exposure_bps), None).await
        }
        Some(Order::RetireOwn) => {
            let idle = Some(Idle::of_own(rollout, actor.now));
            make(db, actor, rollout, Kind::Retire, (rollout.release.id, 0), idle).await
        }
        Some(Order::RetireBefore(previous)) => retire_before(db, actor, rollout, previous).await,
        None => Ok(()),
    }
}

async fn retire_before(
    db: &mut PgConnection,
    actor: &Actor,
    rollout: &Rollout,
    previous: ReleaseId,
) -> Result<(), Failure> {
    let (tenant, Rollout { component, environment, .. }) = (&actor.tenant, rollout);
    let brought = store::rollout::live::find_exposing(db, tenant, component, environment, previous).await?;
    let Some(id) = brought else { return Ok(()) };
    let brought = store::rollout::find(db, tenant, id).await?;
    match brought.as_ref().and_then(|brought| Some((brought, brought.previous.as_ref()?))) {
        Some((brought, before)) if before.id != rollout.release.id => {
            let idle = Some(Idle::of_replaced(brought));
            make(db, actor, rollout, Kind::Retire, (before.id, 0), idle).await
        }
        _ => Ok(()),
    }
}

/// Makes a task, unless the rollout's step has it already.
async fn make(
    db: &mut PgConnection,
    actor: &Actor,
    rollout: &Rollout,
    kind: Kind,
    (release, exposure_bps): (ReleaseId, i32),
    idle: Option<Idle>,
) -> Result<(), Failure> {
    let (tenant, now) = (&actor.tenant, actor.now);
    // Drawn from what there can be only one of, so that no chance is needed this far down.
    let drawn = sha256(&[rollout.id.uuid().as_bytes(), kind.name().as_bytes(), &rollout.step.to_be_bytes()]);
    let mut random = [0; 10];
    random.copy_from_slice(&drawn[..10]);
    let new = New { id: TaskId::new(now, random), kind, release, exposure_bps, idle, now };
    if !store::task::insert(db, tenant, rollout, &new).await? {
        return Ok(());
    }
    let made = store::task::lock(db, tenant, new.id).await?;
    let made = made.ok_or_else(|| Failure::Bug(format!("task {} was made and is not there", new.id)))?;
    tell_task(db, actor, "task.created", &made, None).await
}

async fn cancel(
    db: &mut PgConnection,
    actor: &Actor,
    rollout: &Rollout,
    release: ReleaseId,
    kind: Kind,
) -> Result<(), Failure> {
    let tenant = &actor.tenant;
    for id in store::task::list_open(db, tenant, &rollout.environment, release, kind).await? {
        let open = store::task::lock(db, tenant, id).await?;
        if let Some(decision) = open.and_then(|open| open.cancel(actor.now)) {
            task(db, actor, &decision).await?;
        }
    }
    Ok(())
}

/// Without what executors say, which may be anything.
async fn tell_task(
    db: &mut PgConnection,
    actor: &Actor,
    kind: &'static str,
    task: &Task,
    from: Option<&str>,
) -> Result<(), Failure> {
    let data = json!({
        "task_id": task.id.to_string(),
        "kind": task.kind.name(),
        "component": task.component.as_str(),
        "environment": task.environment.as_str(),
        "rollout_id": task.rollout.to_string(),
        "step": task.step,
        "release_id": task.release.to_string(),
        "version": task.version,
        "exposure_bps": task.exposure_bps,
        "from": from,
        "to": task.state.name(),
        "executor": task.executor,
        "attempts": task.token,
        "failures": task.failures,
    });
    Ok(tell(db, actor, kind, task.id.to_string(), data).await?)
}
