//! All SQL of session-svc: a function a statement, on a connection that the caller brings.

pub mod attribute;
pub mod cart;
pub mod elevation;
pub mod id_token;
mod lineage;
pub mod purge;
pub mod revocation;
pub mod route;
pub mod section;
pub mod session;
pub mod subject;
pub mod touchpoint;
pub mod visit;

/// What is stored cannot be: names the table, the column and the row.
fn corrupt(table: &str, column: &str, key: &dyn std::fmt::Display) -> sqlx::Error {
    sqlx::Error::Decode(format!("session.{table}.{column} of {key} is corrupt").into())
}
