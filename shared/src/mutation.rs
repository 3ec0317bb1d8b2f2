//! The frame of every mutation: who asks, until when, and whether for the first time; then one instant and one
//! transaction, at whose end the answer is kept for whoever asks again.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use prost::Message;
use serde_json::Value;
use tonic::Request;

use crate::auth::Caller;
use crate::db::{Db, Tx};
use crate::edge::Deadline;
use crate::id::TenantId;
use crate::outbox::{Event, Outbox};
use crate::replay::{Replay, Replayed};
use crate::status::{Failure, Refusal};
use crate::telemetry;
use crate::time::Time;

/// Longer than any name or id of ours.
const NAME_MAX: usize = 128;

/// What was asked for by a mutation, for whoever put an empty one into its request's extensions. A method that leaves it
/// empty changes nothing.
#[derive(Debug, Clone, Default)]
pub struct Asked(Arc<OnceLock<(&'static str, Option<String>)>>);

impl Asked {
    /// The method's name, and the name of what it is about.
    pub fn get(&self) -> Option<(&'static str, Option<&str>)> {
        self.0.get().map(|(method, name)| (*method, name.as_deref()))
    }
}

/// The name of what a request is about: its first field, or that field's first field where it is an object; no address. A name never
/// begins with a line feed, as an encoded message does whose first field is set.
fn name_in(encoded: &[u8]) -> Option<String> {
    let mut rest = encoded.strip_prefix(b"\n")?;
    let len = usize::try_from(prost::encoding::decode_varint(&mut rest).ok()?).ok()?;
    let field = rest.get(..len)?;
    if field.starts_with(b"\n") {
        return name_in(field);
    }
    let is_name =
        field.len() <= NAME_MAX && field.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'@');
    is_name.then(|| String::from_utf8_lossy(field).into_owned())
}

/// A mutation that was asked for.
#[derive(Debug)]
pub struct Call {
    /// By whom.
    pub caller: Arc<Caller>,
    deadline: Option<Instant>,
    replay: Replay,
}

impl Call {
    /// Takes the request's id out: what is left is what a repetition must equal.
    pub fn of<T: Message>(
        request: Request<T>,
        method: &'static str,
        request_id: fn(&mut T) -> &mut String,
    ) -> Result<(Self, T), Refusal> {
        let (caller, deadline) = (Caller::of(&request)?, Deadline::of(&request));
        let asked = request.extensions().get::<Asked>().cloned();
        let mut message = request.into_inner();
        if let Some(Asked(asked)) = asked {
            asked.get_or_init(|| (method, name_in(&message.encode_to_vec())));
        }
        let id = std::mem::take(request_id(&mut message));
        let replay = Replay::new(&caller, method, &id, &message)?;
        Ok((Self { caller, deadline, replay }, message))
    }

    /// Whether an answer is to be kept.
    pub fn has_request_id(&self) -> bool {
        self.replay.is_asked()
    }

    /// Begins the transaction and claims the request's id in it, first thing.
    pub async fn begin<T: Message + Default>(
        self,
        db: &Db,
        outbox: &'static Outbox,
        now: Time,
    ) -> Result<Begun<T>, Failure> {
        let Self { caller, deadline, replay } = self;
        let mut tx = db.begin(deadline).await?;
        if let Some(replayed) = replay.claim(outbox, &mut tx, now).await? {
            return Ok(Begun::Replayed(replayed));
        }
        let actor = Actor { tenant: caller.tenant.clone(), principal: caller.principal.clone(), now };
        Ok(Begun::Fresh(Box::new(Mutation { caller, actor, now, tx, events: vec![], replay, outbox })))
    }
}

/// A mutation, or what it was answered before.
pub enum Begun<T> {
    /// To be done.
    Fresh(Box<Mutation>),
    /// Done.
    Replayed(Replayed<T>),
}

/// A mutation under way.
pub struct Mutation {
    /// By whom.
    pub caller: Arc<Caller>,
    /// The same, as events name them.
    pub actor: Actor,
    /// At which instant.
    pub now: Time,
    /// In which transaction.
    pub tx: Tx,
    events: Vec<Event>,
    replay: Replay,
    outbox: &'static Outbox,
}

impl Mutation {
    /// Will append an event of the caller's, with the answer. By then the change has locked its row, so that one row's
    /// events are in order.
    pub fn tell(&mut self, kind: &'static str, subject: String, data: Value) {
        self.events.push(self.actor.event(kind, subject, data));
    }

    /// Keeps the answer for a repetition, and commits.
    pub async fn answer<T: Message>(self: Box<Self>, answer: T) -> Result<T, Failure> {
        self.answer_without_secret(answer, None).await
    }

    /// As [`Mutation::answer`], for an answer whose secret was taken out; `salt` is what it is derived again from.
    pub async fn answer_without_secret<T: Message>(
        mut self: Box<Self>,
        answer: T,
        salt: Option<&[u8]>,
    ) -> Result<T, Failure> {
        self.outbox.append_all(&mut self.tx, &self.events).await?;
        self.replay.record(self.outbox, &mut self.tx, &answer, salt).await?;
        self.tx.commit().await?;
        Ok(answer)
    }
}

/// Who acts, for whom, and when.
#[derive(Debug, Clone)]
pub struct Actor {
    /// For whom.
    pub tenant: TenantId,
    /// `issuer|sub`, or `system`.
    pub principal: String,
    /// When.
    pub now: Time,
}

impl Actor {
    /// Something that it did.
    pub fn event(&self, kind: &'static str, subject: String, data: Value) -> Event {
        let (tenant, principal) = (self.tenant.clone(), self.principal.clone());
        let trace_parent = telemetry::trace_parent();
        Event { tenant, kind, subject, principal, at: self.now, data, trace_parent }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::release::{Component, CreateComponentRequest, SubmitReleaseRequest};

    #[test]
    fn what_a_request_is_about_is_its_first_field_or_that_of_the_object_in_it() {
        let submit = |release_id: &str| SubmitReleaseRequest {
            release_id: release_id.to_owned(),
            etag: "v1".to_owned(),
            ..Default::default()
        };
        let create = |component: &str| CreateComponentRequest {
            component: Some(Component {
                component: component.to_owned(),
                display_name: "Shop".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let name = |message: Vec<u8>| name_in(&message);
        assert_eq!(name(submit("rel_1").encode_to_vec()).as_deref(), Some("rel_1"));
        assert_eq!(name(create("storefront").encode_to_vec()).as_deref(), Some("storefront"));
        for bad in ["", "a b", "\n", "\n\n\n", "\u{0}", "f\u{fc}r", &"x".repeat(129)] {
            assert_eq!(name(submit(bad).encode_to_vec()), None, "{bad:?}");
        }
        assert_eq!(name(create("").encode_to_vec()), None);
    }
}
