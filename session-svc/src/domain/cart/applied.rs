//! Changes that a cart remembers by their ids, so that each is made once.

use shared::id::LineId;
use uuid::Uuid;

use super::Cart;

/// Request ids that a cart remembers.
const REQUESTS_MAX: usize = 64;

/// A change that was made, by the id it came with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The request's id.
    pub request_id: Uuid,
    /// First half of the hash of method and body.
    pub body_hash: [u8; 16],
    /// The line that it was about.
    pub line: Option<LineId>,
    /// What a newer release stored with it.
    pub newer: Vec<u8>,
}

impl Cart {
    /// The change that came with this id, if it is remembered.
    pub fn applied(&self, request_id: Uuid) -> Option<&Applied> {
        self.applied.iter().find(|applied| applied.request_id == request_id)
    }

    /// Remembers a change, and forgets the oldest beyond 64.
    pub fn remember(&mut self, applied: Applied) {
        self.applied.push(applied);
        let excess = self.applied.len().saturating_sub(REQUESTS_MAX);
        self.applied.drain(..excess);
    }

    /// Remembers the changes of another cart beside its own. Of too many, the newest of each stay, so that neither cart
    /// forgets all of them.
    pub fn remember_all(&mut self, theirs: &[Applied]) {
        let own = std::mem::take(&mut self.applied);
        let of_age = |age| [theirs.iter().rev().nth(age), own.iter().rev().nth(age)];
        let newest = (0..REQUESTS_MAX).flat_map(of_age).flatten().take(REQUESTS_MAX);
        self.applied = newest.cloned().collect();
        self.applied.reverse();
    }
}
