//! `UpdateSessionAttributes`: what an application keeps with a session, changed key by key, all of it or nothing.

use std::collections::HashSet;

use serde_json::json;
use shared::auth::Caller;
use shared::mutation::{Begun, Call};
use shared::parse::at_most;
use shared::pb::session as pb;
use shared::status::{Failure, Reason, Refusal};
use tonic::Request;

use super::App;
use crate::domain::attribute::{self, Attribute, CHANGES_MAX, Change, Refused, VALUE_MAX};
use crate::domain::session::Ended;
use crate::store;

impl App {
    pub(super) async fn update_session_attributes(
        &self,
        mut request: Request<pb::UpdateSessionAttributesRequest>,
    ) -> Result<pb::UpdateSessionAttributesResponse, Failure> {
        let caller = Caller::of(&request)?;
        let token = std::mem::take(&mut request.get_mut().session_token);
        let (seen, touchpoint) = self.session_of(&caller, &token, self.clock.now()).await?;
        let (tenant, id) = (&caller.tenant, seen.session.id);
        // What a repetition must equal names the session, and holds no credential.
        request.get_mut().session_token = id.to_string();
        let (call, message) =
            Call::of(request, "UpdateSessionAttributes", |message| &mut message.request_id)?;
        let changes = parse_changes(message.changes)?;
        let mut work = match self.begin::<pb::UpdateSessionAttributesResponse>(call).await? {
            Begun::Fresh(work) => work,
            Begun::Replayed(before) => {
                let now = store::attribute::list(&mut *self.db.connection().await?, tenant, id).await?;
                return Ok(with_values(before.answer, &changes, &now));
            }
        };
        self.require_live(tenant, &seen, &touchpoint.value, work.now)?;
        let version = store::attribute::begin(&mut work.tx, tenant, id).await?.ok_or(Ended::Revoked)?;
        let before = store::attribute::list(&mut work.tx, tenant, id).await?;
        let after = attribute::change(before, changes, version)?;
        if !after.keys.is_empty() {
            store::attribute::write(&mut work.tx, tenant, id, &after.keys, &after.attributes).await?;
            let data = json!({"keys": after.keys});
            work.tell("session.attributes_changed", id.to_string(), data);
        }
        let attributes: Vec<pb::Attribute> = after.attributes.into_iter().map(Into::into).collect();
        // Records of requests hold no personal data, which values may be.
        let without_value = |it: &pb::Attribute| pb::Attribute { value: String::new(), ..it.clone() };
        let kept = attributes.iter().map(without_value).collect();
        work.answer(pb::UpdateSessionAttributesResponse { attributes: kept }).await?;
        Ok(pb::UpdateSessionAttributesResponse { attributes })
    }
}

/// A kept answer with its values again: those of the request, which is the same, and those that still stand. A key that
/// came from elsewhere and has changed since is left out.
fn with_values(
    kept: pb::UpdateSessionAttributesResponse,
    changes: &[Change],
    now: &[Attribute],
) -> pb::UpdateSessionAttributesResponse {
    let value_of = |then: &pb::Attribute| {
        let asked = changes.iter().find(|change| change.key == then.key);
        let stands = now.iter().find(|it| it.key == then.key && it.version == then.version);
        asked
            .and_then(|change| change.value.clone())
            .or_else(|| Some(stands?.value.clone()))
    };
    let whole = |then: pb::Attribute| Some(pb::Attribute { value: value_of(&then)?, ..then });
    pb::UpdateSessionAttributesResponse {
        attributes: kept.attributes.into_iter().filter_map(whole).collect(),
    }
}

fn parse_changes(changes: Vec<pb::AttributeChange>) -> Result<Vec<Change>, Refusal> {
    at_most("changes", &changes, CHANGES_MAX)?;
    let mut keys = HashSet::new();
    let parse = |(n, change): (usize, pb::AttributeChange)| {
        let bad = |field, problem: &str| Err(Refusal::field(format!("changes[{n}].{field}"), problem));
        let pb::AttributeChange { key, value, expected_version: expected } = change;
        if !attribute::is_key(&key) {
            return bad("key", "must be 1 to 64 letters, digits, `.`, `_` or `-`");
        }
        if !keys.insert(key.clone()) {
            return bad("key", "must not be there twice");
        }
        if value
            .as_ref()
            .is_some_and(|value| value.len() > VALUE_MAX || value.contains('\0'))
        {
            return bad("value", "must have at most 16384 bytes and no NUL");
        }
        if expected.is_some_and(|version| version < 0) {
            return bad("expected_version", "must not be negative");
        }
        Ok(Change { key, value, expected })
    };
    changes.into_iter().enumerate().map(parse).collect()
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused {
            Refused::Version { key, version } => Refusal::new(Reason::AttributeChanged, text)
                .with("key", key)
                .with("version", version),
            Refused::Keys { max } => Refusal::new(Reason::AttributeLimit, text)
                .with("limit", "keys")
                .with("max", max),
            Refused::TotalBytes { max } => Refusal::new(Reason::AttributeLimit, text)
                .with("limit", "total_bytes")
                .with("max", max),
        }
        .into()
    }
}
