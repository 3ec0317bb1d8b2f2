//! End-to-end tests of both services, in process and over gRPC: one binary, so that it links once and its tests share one
//! PostgreSQL.

#[cfg(test)]
mod assertion;
#[cfg(test)]
mod attribute;
#[cfg(test)]
mod auth;
#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod cart;
#[cfg(test)]
mod component;
#[cfg(test)]
mod elevation;
#[cfg(test)]
mod event;
#[cfg(test)]
mod failover;
#[cfg(test)]
mod floors;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod isolation;
#[cfg(test)]
mod leak;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod page;
#[cfg(test)]
mod release;
#[cfg(test)]
mod request_id;
#[cfg(test)]
mod rollout;
#[cfg(test)]
mod routing;
#[cfg(test)]
mod session;
#[cfg(test)]
mod store;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod touchpoint;
