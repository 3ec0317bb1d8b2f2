//! All SQL of session-svc: a function a statement, on a connection that the caller brings.

pub mod abandonment;
pub mod attribute;
pub mod browsing;
pub mod cart;
pub mod context;
pub mod elevation;
pub mod history;
pub mod id_token;
pub mod kill;
mod lineage;
pub mod preferences;
pub mod purge;
pub mod recovery;
pub mod revocation;
pub mod route;
pub mod section;
pub mod session;
pub mod shopper;
pub mod signal;
pub mod subject;
pub mod touchpoint;
pub mod visit;
pub mod wishlist;

/// Why a section was not written.
#[derive(Debug, thiserror::Error)]
pub enum Unwritten {
    /// It is larger than stored.
    #[error(transparent)]
    TooLarge(#[from] section::TooLarge),
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] sqlx::Error),
}

/// What is stored cannot be: names the table, the column and the row.
fn corrupt(table: &str, column: &str, key: &dyn std::fmt::Display) -> sqlx::Error {
    sqlx::Error::Decode(format!("session.{table}.{column} of {key} is corrupt").into())
}
