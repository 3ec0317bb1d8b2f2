//! What both services stand on: generated code and plumbing. No business noun but typed ids.

#![warn(missing_docs)]

pub mod allowance;
pub mod auth;
pub mod config;
pub mod db;
pub mod edge;
pub mod feed;
pub mod id;
pub mod id_token;
#[cfg(feature = "local")]
pub mod issuer;
mod json;
pub mod jwks;
pub mod jws;
pub mod keyring;
pub mod keys;
pub mod mutation;
pub mod outbox;
pub mod page;
pub mod parse;
pub mod pb;
#[cfg(feature = "local")]
pub mod postgres;
pub mod replay;
pub mod retention;
pub mod secret;
pub mod serve;
pub mod snapshot;
pub mod status;
pub mod telemetry;
pub mod time;
pub mod tls;
pub mod watch;
pub mod webhook;
pub mod worker;

/// A call allocates some fifty times; with the system's allocator that is a fifth of a cached validation.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
