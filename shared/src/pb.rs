//! Generated from `proto/`: messages and services by package, descriptors, the scope of every method, and which stream.
//!
//! Only the `rpc` floors, clients and tests speak these types; nothing below `rpc` does, but for `storage`.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::or_fun_call,
    reason = "generated code"
)]

include!(concat!(env!("OUT_DIR"), "/packages.rs"));
include!(concat!(env!("OUT_DIR"), "/redacted.rs"));
include!(concat!(env!("OUT_DIR"), "/methods.rs"));

pub use tandem::common::v1 as common;
pub use tandem::release::v1 as release;
pub use tandem::session::storage::v1 as storage;
pub use tandem::session::v1 as session;

/// The encoded `FileDescriptorSet` of everything above, options included, for reflection.
pub static DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
