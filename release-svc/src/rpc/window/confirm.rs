//! Changes of windows: put into force, or proposed until a second person does where windows take two people. Events carry
//! all that a window says, and so are its earlier versions.

use serde_json::{Value, json};
use shared::id::WindowId;
use shared::mutation::{Begun, Call, Mutation};
use shared::parse::{parse, within};
use shared::pb::release as pb;
use shared::status::{Failure, Reason, Refusal};
use tonic::Request;

use super::{admit, live};
use crate::apply::{self, expect_written};
use crate::domain::window::{Change, Proposed, Record, Terms, Window};
use crate::rpc::App;
use crate::store;

/// What a change comes to.
fn told(window: &Window, change: &Change) -> Value {
    let mut told = match change {
        Change::Creation => json!(Record::from(&window.terms)),
        Change::Update(terms) => json!(Record::from(&**terms)),
        Change::Deletion { reason } => json!({ "name": window.terms.name, "reason": reason }),
    };
    told["window_id"] = window.id.to_string().into();
    told
}

/// Tells of a change that is in force, and of who proposed it where somebody else did.
pub(super) fn tell_changed(work: &mut Mutation, window: &Window, change: &Change, proposer: Option<String>) {
    let kind = match change {
        Change::Creation => "window.created",
        Change::Update(_) => "window.updated",
        Change::Deletion { .. } => "window.deleted",
    };
    let mut told = told(window, change);
    told["proposer"] = proposer.into();
    work.tell(kind, window.id.to_string(), told);
}

/// Whether a new window with these terms takes a second person.
pub(super) async fn opens_more(work: &mut Mutation, terms: &Terms) -> Result<bool, Failure> {
    let live = store::window::list_live(&mut work.tx, &work.actor.tenant, work.now).await?;
    Ok(terms.open_more(&live) && takes_two(work).await?)
}

async fn takes_two(work: &mut Mutation) -> sqlx::Result<bool> {
    store::window_proposal::takes_two(&mut work.tx, &work.actor.tenant).await
}

/// The change, as the caller proposes it.
pub(super) async fn proposed(work: &mut Mutation, change: Change) -> Result<Proposed, Failure> {
    work.caller.require_person()?;
    let author = work.actor.principal.clone();
    let person = apply::person_of(&mut work.tx, &work.actor.tenant, &author).await?;
    Ok(Proposed { change, author, person, at: work.now })
}

/// Keeps the change of a window that is written, and tells of it.
pub(super) async fn propose(
    work: &mut Mutation,
    window: &Window,
    proposed: &Proposed,
) -> Result<(), Failure> {
    store::window_proposal::replace(&mut work.tx, &work.actor.tenant, window, proposed).await?;
    let mut told = told(window, &proposed.change);
    told["change"] = match proposed.change {
        Change::Creation => "CREATE",
        Change::Update(_) => "UPDATE",
        Change::Deletion { .. } => "DELETE",
    }
    .into();
    work.tell("window.proposed", window.id.to_string(), told);
    Ok(())
}

/// Changes a window, or proposes to where that takes two people. One that waits itself goes on waiting under its new terms,
/// and is deleted at once.
pub(super) async fn change(work: &mut Mutation, window: Window, change: Change) -> Result<Window, Failure> {
    if window.is_pending()
        && let Change::Update(terms) = change
    {
        return offer(work, Window { terms: *terms, ..window }, Change::Creation).await;
    }
    if !window.is_pending() && takes_two(work).await? {
        return offer(work, window, change).await;
    }
    let window = window.changed(change.clone(), work.now);
    expect_written(store::window::update(&mut work.tx, &work.actor.tenant, &window).await?)?;
    tell_changed(work, &window, &change, None);
    Ok(window)
}

async fn offer(work: &mut Mutation, window: Window, change: Change) -> Result<Window, Failure> {
    let proposed = proposed(work, change).await?;
    let window = window.with_proposal(proposed.clone());
    expect_written(store::window::update(&mut work.tx, &work.actor.tenant, &window).await?)?;
    propose(work, &window, &proposed).await?;
    Ok(window)
}

impl App {
    pub(super) async fn confirm_window(
        &self,
        request: Request<pb::ConfirmWindowRequest>,
    ) -> Result<pb::ConfirmWindowResponse, Failure> {
        let (call, message) = Call::of(request, "ConfirmWindow", |message| &mut message.request_id)?;
        let pb::ConfirmWindowRequest { window_id, version, request_id: _ } = message;
        let id: WindowId = parse("window_id", &window_id)?;
        let version = within("version", version, 0, i64::MAX)?;
        call.caller.require_person()?;
        let mut work = match self.begin(call).await? {
            Begun::Fresh(mutation) => mutation,
            Begun::Replayed(before) => return Ok(before.answer),
        };
        let (tenant, confirmer) = (work.actor.tenant.clone(), work.actor.principal.clone());
        store::calendar::lock(&mut work.tx, &tenant).await?;
        let mut stored = live(&mut work, id).await?;
        let proposed = stored.proposed.take().filter(|_| stored.row_version == version);
        let proposed = proposed.ok_or_else(|| {
            let text = format!("no change of window {id} waits for a second person in version {version}");
            Refusal::new(Reason::ProposalNotPending, text)
        })?;
        let author = [proposed.author.as_str(), proposed.person.as_str()];
        apply::require_another(&mut work.tx, &tenant, author, &confirmer).await?;
        let Proposed { change, author, .. } = proposed;
        let window = stored.changed(change.clone(), work.now);
        if window.is_live() {
            admit(&mut work, &window).await?;
        }
        expect_written(store::window::update(&mut work.tx, &tenant, &window).await?)?;
        tell_changed(&mut work, &window, &change, Some(author));
        work.answer(pb::ConfirmWindowResponse { window: Some((&window).into()) }).await
    }
}
