//! All SQL of release-svc: a function a statement, on a connection that the caller brings.
//!
//! Rows are locked in this order: components, by name; then of one component, which one transaction at a time has: a release,
//! a rollout, the tenant's calendar, which whoever raises exposure shares, the route, the releases that the transition means
//! something to, tasks of executors, which those who work at them lock alone. Whoever exposes more of a component locks those that it needs, too, in one statement; whoever rolls one
//! back, those that go back before it; whoever changes what one needs, those that it will need, and then all dependencies
//! of the tenant. Whoever changes a window, an override or the line locks the calendar alone. The tenant's audit head comes
//! after all of these: the database itself locks it when a transaction commits that tells of something. Each guard of the
//! domain is a condition of the write, too; a write that finds its row changed says `false`.

pub mod approval;
pub mod audit;
pub mod break_glass;
pub mod calendar;
pub mod component;
pub mod dependency;
pub mod environment;
pub mod evidence;
pub mod hold;
pub mod identity;
pub mod insight;
pub mod observed;
pub mod policy;
pub mod release;
pub mod rollout;
pub mod route;
pub mod signal;
pub mod snapshot;
pub mod task;
pub mod window;
pub mod window_override;
pub mod window_proposal;

/// What is stored cannot be: names the table, the column and the row.
fn corrupt(table: &str, column: &str, key: &dyn std::fmt::Display) -> sqlx::Error {
    sqlx::Error::Decode(format!("release.{table}.{column} of {key} is corrupt").into())
}
