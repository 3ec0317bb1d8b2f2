//! All SQL of release-svc: a function a statement, on a connection that the caller brings.
//!
//! Rows are locked in this order: component; the release that a rollout starts with; rollout; route; the releases that
//! the transition means something to. As the component comes first, everything about one component happens in one
//! transaction at a time, and the order of the rest cannot deadlock. Each guard of the domain is a condition of the
//! write, too; a write that finds its row changed says `false`.

pub mod approval;
pub mod break_glass;
pub mod component;
pub mod policy;
pub mod release;
pub mod rollout;
pub mod route;
pub mod snapshot;

/// What is stored cannot be: names the table, the column and the row.
fn corrupt(table: &str, column: &str, key: &dyn std::fmt::Display) -> sqlx::Error {
    sqlx::Error::Decode(format!("release.{table}.{column} of {key} is corrupt").into())
}
