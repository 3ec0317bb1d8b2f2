//! `session.sessions.lineage` beside `token_hash`.

use prost::Message as _;
use shared::pb::storage;
use shared::pb::storage::token_lineage as stored;
use shared::time::from_micros;

use crate::domain::lineage::{Ancestor, Child, Lineage, Parent};
use crate::domain::token::TokenHash;

/// From the two columns; `None` if they are corrupt.
pub(super) fn read(current: &[u8], lineage: Option<&[u8]>) -> Option<Lineage> {
    let current = hash(current)?;
    let Some(bytes) = lineage else { return Some(Lineage::new(current)) };
    let storage::TokenLineage { parent, child, ancestors, orphans } =
        storage::TokenLineage::decode(bytes).ok()?;
    let parent = match parent {
        None => None,
        Some(stored::Parent { token_hash, salt, replaced_at_us, superseded_at_us }) => Some(Parent {
            hash: hash(&token_hash)?,
            salt,
            replaced_at: from_micros(replaced_at_us),
            superseded_at: from_micros(superseded_at_us),
        }),
    };
    let child = match child {
        None => None,
        Some(stored::Child { token_hash, salt, issued_at_us }) => {
            Some(Child { hash: hash(&token_hash)?, salt, issued_at: from_micros(issued_at_us) })
        }
    };
    let ancestor = |ancestor: stored::Ancestor| {
        let superseded_at = from_micros(ancestor.superseded_at_us);
        Some(Ancestor { hash: ancestor.token_hash.try_into().ok()?, superseded_at })
    };
    let ancestors = ancestors.into_iter().map(ancestor).collect::<Option<_>>()?;
    let orphans = orphans.into_iter().map(|hash| hash.try_into().ok()).collect::<Option<_>>()?;
    Some(Lineage { current, parent: parent.map(Box::new), child: child.map(Box::new), ancestors, orphans })
}

/// To the column; null for a session's first token. Equal lineages are equal bytes.
pub(super) fn write(lineage: &Lineage) -> Option<Vec<u8>> {
    let Lineage { current, parent, child, ancestors, orphans } = lineage;
    if *lineage == Lineage::new(*current) {
        return None;
    }
    let ancestor = |ancestor: &Ancestor| stored::Ancestor {
        token_hash: ancestor.hash.to_vec(),
        superseded_at_us: ancestor.superseded_at.timestamp_micros(),
    };
    let parent = parent.as_ref().map(|parent| stored::Parent {
        token_hash: parent.hash.bytes().to_vec(),
        salt: parent.salt.clone(),
        replaced_at_us: parent.replaced_at.timestamp_micros(),
        superseded_at_us: parent.superseded_at.timestamp_micros(),
    });
    let child = child.as_ref().map(|child| stored::Child {
        token_hash: child.hash.bytes().to_vec(),
        salt: child.salt.clone(),
        issued_at_us: child.issued_at.timestamp_micros(),
    });
    let ancestors = ancestors.iter().map(ancestor).collect();
    let orphans = orphans.iter().map(|hash| hash.to_vec()).collect();
    Some(storage::TokenLineage { parent, child, ancestors, orphans }.encode_to_vec())
}

fn hash(bytes: &[u8]) -> Option<TokenHash> {
    bytes.try_into().ok().map(TokenHash::from_stored)
}
