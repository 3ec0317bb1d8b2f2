//! One answer a request id (AIP-155): the same (tenant, principal, method, id, body) answers alike for 24 hours.
//!
//! The key is claimed first thing in the transaction that makes the change, so of two that run at once the second waits
//! and then reads the first's answer; what failed leaves no record. Records hold no secret: the salt of a derived one
//! stands beside the answer, from which the secret was taken out.

use chrono::TimeDelta;
use prost::Message;
use uuid::Uuid;

use crate::auth::Caller;
use crate::db::Tx;
use crate::outbox::{Outbox, RequestKey};
use crate::secret::sha256;
use crate::status::{Failure, Reason, Refusal};
use crate::time::Time;

/// For how long a request id is remembered.
pub const RETENTION: TimeDelta = TimeDelta::hours(24);

/// A request that may have been made before.
#[derive(Debug)]
pub struct Replay(Option<(RequestKey, [u8; 32])>);

/// An answer given before, and the salt of the secret that it carried.
#[derive(Debug)]
pub struct Replayed<T> {
    /// The answer, without its secret.
    pub answer: T,
    /// What to derive the secret again from.
    pub salt: Option<Vec<u8>>,
}

impl Replay {
    /// `body` is the request without its id and without credentials. An empty id asks for nothing.
    pub fn new(
        caller: &Caller,
        method: &'static str,
        request_id: &str,
        body: &impl Message,
    ) -> Result<Self, Refusal> {
        let Some(request_id) = parse_request_id(request_id)? else { return Ok(Self(None)) };
        let key = RequestKey {
            tenant: caller.tenant.clone(),
            principal: caller.principal.clone(),
            method,
            request_id,
        };
        Ok(Self(Some((key, sha256(&[&body.encode_to_vec()])))))
    }

    /// Whether the request has an id.
    pub fn is_asked(&self) -> bool {
        self.0.is_some()
    }

    /// The answer given before, if there is one; otherwise the id is this transaction's.
    pub async fn claim<T: Message + Default>(
        &self,
        outbox: &Outbox,
        tx: &mut Tx,
        now: Time,
    ) -> Result<Option<Replayed<T>>, Failure> {
        let Some((key, body_hash)) = &self.0 else { return Ok(None) };
        if outbox.claim(tx, key, body_hash, now, now - RETENTION).await? {
            return Ok(None);
        }
        // The purge may take the record between the two statements; then the caller asks again.
        let Some((hash, Some(answer), salt)) = outbox.answered(tx, key).await? else {
            return Err(
                Refusal::new(Reason::ConcurrentChange, "the request id just expired; try again").into()
            );
        };
        if hash != body_hash {
            return Err(reused(key.request_id).into());
        }
        let answer = T::decode(answer.as_slice())
            .map_err(|error| Failure::Bug(format!("answer of request {}: {error}", key.request_id)))?;
        Ok(Some(Replayed { answer, salt }))
    }

    /// Keeps the answer for the next who asks.
    pub async fn record(
        &self,
        outbox: &Outbox,
        tx: &mut Tx,
        answer: &impl Message,
        salt: Option<&[u8]>,
    ) -> Result<(), Failure> {
        if let Some((key, _)) = &self.0 {
            outbox.record(tx, key, &answer.encode_to_vec(), salt).await?;
        }
        Ok(())
    }
}

/// The id, if one was given.
pub fn parse_request_id(text: &str) -> Result<Option<Uuid>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    match Uuid::try_parse(text) {
        Ok(id) if !id.is_nil() => Ok(Some(id)),
        _ => Err(Refusal::field("request_id", "must be a UUID other than zero")),
    }
}

/// The id was used for something else.
pub fn reused(request_id: Uuid) -> Refusal {
    Refusal::new(Reason::RequestIdReused, "this request_id was used with another body")
        .with("request_id", request_id)
}
