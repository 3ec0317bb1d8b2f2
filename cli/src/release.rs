//! `tandem release`: a release from draft to approved, and what keeps it.

use std::process::ExitCode;

use shared::pb::release::{
    AbandonReleaseRequest, CancelReleaseRequest, CreateReleaseRequest, GetComponentRequest,
    GetReleaseRequest, LiftQuarantineRequest, ListReleasesRequest, QuarantineReleaseRequest, Release,
    ReleaseRef, ReleaseState, ReviseReleaseRequest, SubmitReleaseRequest, UpdateReleaseRequest,
    get_release_request,
};

use self::change::{Text, Unset, Written};
use self::show::outcome;
use crate::client::ReleaseClients;
use crate::error::Error;
use crate::output::{self, Output};
use crate::stack::{self, Stack};
use crate::term;
use crate::token::Identity;

pub(crate) mod change;
pub(crate) mod explain;
pub(crate) mod show;

/// What people try first.
pub(crate) const EXAMPLES: &str = "\
Examples:
  git log --format='%H %ae %cI' v1.0..v1.1 > commits
  tandem release create storefront 1.1 --commits commits --lines 400 --rollback-plan 'deploy 1.0'
  tandem release edit storefront 1.1 --notes 'A new basket' --no-schema-migration
  tandem release submit storefront 1.1
  tandem release show storefront 1.1
  tandem release explain storefront 1.1 --environment local
  tandem release list storefront --state pending_approval --json
  tandem release revise storefront 1.1 --reason 'a commit was missing'
  tandem release cancel storefront 1.1 --reason 'not this week'
  tandem release abandon storefront 1.0 --reason 'nobody has it any more'
  tandem release quarantine storefront 1.1 --reason 'loses orders'
  tandem release lift storefront 1.1 --reason 'it did not'

Whoever creates, edits or submits a release does not vote on it; --sub says who calls.
See also: `tandem approve`, `tandem ship`, `tandem rollout`.";

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List releases, newest first
    List(List),
    /// Show a release: what it says, its evidence, its risk, its votes, what it waits for, who ended it
    Show(Named),
    /// Write a draft
    Create {
        #[command(flatten)]
        text: Box<Text>,
        #[command(flatten)]
        named: Named,
    },
    /// Change a draft; what is not named stays, what is named as '' goes. Whoever changes it does not vote on it
    Edit {
        #[command(flatten)]
        text: Box<Text>,
        #[command(flatten)]
        unset: Unset,
        #[command(flatten)]
        named: Named,
    },
    /// Hand a draft in
    Submit(Named),
    /// Take a submitted release back to draft; its votes are void
    Revise(Reasoned),
    /// Give up a release that nobody was exposed to
    Cancel(Reasoned),
    /// Give up a release that was exposed and is no more
    Abandon(Reasoned),
    /// Mark a release as bad: nobody new is exposed to it
    Quarantine(Reasoned),
    /// End a quarantine, as a person
    Lift(Reasoned),
    /// Say what keeps a release, and who can lift it
    Explain {
        /// Where it should go; windows, a stopped line, dependencies and other rollouts are looked at only with it [default:
        /// the release alone]
        #[arg(long, value_name = "NAME")]
        environment: Option<String>,
        #[command(flatten)]
        named: Named,
    },
}

/// Which releases.
#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Only this component's
    #[arg(value_name = "NAME")]
    component: Option<String>,
    /// Only those in this state, such as APPROVED; may be given again
    #[arg(long = "state", value_name = "STATE", value_parser = state)]
    states: Vec<ReleaseState>,
    /// At most so many
    #[arg(long, default_value_t = 20, value_name = "COUNT", value_parser = clap::value_parser!(i32).range(1..=1000))]
    limit: i32,
    #[command(flatten)]
    common: Common,
}

/// Which release.
#[derive(Debug, clap::Args)]
pub(crate) struct Named {
    /// The component
    #[arg(value_name = "NAME")]
    pub(crate) component: String,
    /// The version, such as 1.1
    pub(crate) version: String,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Which release, and why.
#[derive(Debug, clap::Args)]
pub(crate) struct Reasoned {
    /// Why
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
    #[command(flatten)]
    pub(crate) named: Named,
}

/// Who asks whom, and how it is answered.
#[derive(Debug, clap::Args)]
pub(crate) struct Common {
    #[command(flatten)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) identity: Identity,
    #[command(flatten)]
    pub(crate) stack: stack::Args,
}

impl Common {
    /// Calls in the name of a workload, or of a person.
    pub(crate) fn clients(&self, is_person: bool) -> Result<ReleaseClients, Error> {
        let stack = Stack::open(&self.stack)?;
        let mut grant = self.identity.grant();
        if is_person {
            "person".clone_into(&mut grant.kind);
        }
        let token = stack.sign(&grant, chrono::TimeDelta::minutes(10))?;
        Ok(ReleaseClients::new(stack.state()?.release.address, &token))
    }
}

fn state(text: &str) -> Result<ReleaseState, String> {
    let name = format!("RELEASE_STATE_{}", text.to_ascii_uppercase());
    ReleaseState::from_str_name(&name)
        .filter(|state| *state != ReleaseState::Unspecified)
        .ok_or_else(|| format!("there is no state {text}"))
}

/// Does it, and shows what came of it.
pub(crate) async fn run(command: Command) -> Result<ExitCode, Error> {
    match command {
        Command::List(list) => show_list(list).await?,
        Command::Show(named) => {
            let mut clients = named.common.clients(false)?;
            let release = find(&mut clients, &named).await?;
            show::page(&mut clients, &release, named.common.output).await?;
        }
        Command::Create { text, named } => create(&text, &named).await?,
        Command::Edit { text, unset, named } => edit(&text, &unset, &named).await?,
        Command::Submit(named) => submit(&named).await?,
        Command::Explain { environment, named } => {
            explain::run(&named, &environment.unwrap_or_default()).await?;
        }
        Command::Revise(asked) => revise(asked).await?,
        Command::Cancel(asked) => cancel(asked).await?,
        Command::Abandon(asked) => abandon(asked).await?,
        Command::Quarantine(asked) => quarantine(asked).await?,
        Command::Lift(asked) => lift(asked).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn show_list(list: List) -> Result<(), Error> {
    let List { component, states, limit, common } = list;
    let component = component.unwrap_or_default();
    let of = if component.is_empty() { "there is" } else { &format!("{component} has") };
    let none = format!("{of} no release{}", if states.is_empty() { "" } else { " in such a state" });
    let request = ListReleasesRequest {
        component: component.clone(),
        states: states.into_iter().map(Into::into).collect(),
        page_size: limit,
        page_token: String::new(),
    };
    let mut clients = common.clients(false)?;
    let answer = clients.releases.list_releases(request).await?.into_inner();
    if answer.releases.is_empty() && !component.is_empty() {
        // Of a component that is not there, the list is empty, too.
        clients.catalog.get_component(GetComponentRequest { component }).await?;
    }
    if common.output.json {
        output::json_list("tandem.release.v1.Release", &answer.releases)?;
    } else {
        show::list(&answer.releases, &none);
    }
    if !answer.next_page_token.is_empty() {
        term::note(format_args!("there are more than {limit}; --limit shows more"));
    }
    Ok(())
}

/// The release of that name.
pub(crate) async fn find(clients: &mut ReleaseClients, named: &Named) -> Result<Release, Error> {
    let (component, version) = (named.component.clone(), named.version.clone());
    let name = Some(get_release_request::Name::Ref(ReleaseRef { component, version }));
    let answer = clients.releases.get_release(GetReleaseRequest { name }).await?;
    Ok(answer.into_inner().release.unwrap_or_default())
}

async fn create(text: &Text, named: &Named) -> Result<(), Error> {
    let Written { artifact_digest, notes, change } = text.fill(Written::default())?;
    let request = CreateReleaseRequest {
        component: named.component.clone(),
        version: named.version.clone(),
        artifact_digest,
        notes,
        request_id: String::new(),
        change: Some(change),
    };
    let mut clients = named.common.clients(false)?;
    let answer = clients.releases.create_release(request).await?;
    outcome(&mut clients, &answer.into_inner().release.unwrap_or_default(), named.common.output).await
}

/// Fails where somebody else changed the draft meanwhile. An edit that changes nothing would still keep its caller from
/// voting.
async fn edit(text: &Text, unset: &Unset, named: &Named) -> Result<(), Error> {
    let mut clients = named.common.clients(false)?;
    let release = find(&mut clients, named).await?;
    let before = Written::from(&release);
    let mut after = text.fill(before.clone())?;
    unset.apply(&mut after.change);
    if after == before {
        return Err(Error::Unusable(
            "that changes nothing; `tandem release edit --help` shows what can be changed".to_owned(),
        ));
    }
    let Written { artifact_digest, notes, change } = after;
    let request = UpdateReleaseRequest {
        release_id: release.release_id,
        artifact_digest,
        notes,
        change: Some(change),
        etag: release.etag,
        request_id: String::new(),
    };
    let answer = clients.releases.update_release(request).await?;
    outcome(&mut clients, &answer.into_inner().release.unwrap_or_default(), named.common.output).await
}

async fn submit(named: &Named) -> Result<(), Error> {
    let mut clients = named.common.clients(false)?;
    let Release { release_id, etag, .. } = find(&mut clients, named).await?;
    let request = SubmitReleaseRequest { release_id, etag, request_id: String::new() };
    let answer = clients.releases.submit_release(request).await?;
    outcome(&mut clients, &answer.into_inner().release.unwrap_or_default(), named.common.output).await
}

async fn revise(asked: Reasoned) -> Result<(), Error> {
    let Reasoned { reason, named } = asked;
    let mut clients = named.common.clients(false)?;
    let Release { release_id, etag, .. } = find(&mut clients, &named).await?;
    let request = ReviseReleaseRequest { release_id, reason, etag, request_id: String::new() };
    let answer = clients.releases.revise_release(request).await?;
    outcome(&mut clients, &answer.into_inner().release.unwrap_or_default(), named.common.output).await
}

async fn cancel(asked: Reasoned) -> Result<(), Error> {
    let Reasoned { reason, named } = asked;
    let mut clients = named.common.clients(false)?;
    let Release { release_id, etag, .. } = find(&mut clients, &named).await?;
    let request = CancelReleaseRequest { release_id, reason, etag, request_id: String::new() };
    let answer = clients.releases.cancel_release(request).await?;
    outcome(&mut clients, &answer.into_inner().release.unwrap_or_default(), named.common.output).await
}

async fn abandon(asked: Reasoned) -> Result<(), Error> {
    let Reasoned { reason, named } = asked;
    let mut clients = named.common.clients(false)?;
    let Release { release_id, etag, .. } = find(&mut clients, &named).await?;
    let request = AbandonReleaseRequest { release_id, reason, etag, request_id: String::new() };
    let answer = clients.releases.abandon_release(request).await?;
    outcome(&mut clients, &answer.into_inner().release.unwrap_or_default(), named.common.output).await
}

async fn quarantine(asked: Reasoned) -> Result<(), Error> {
    let Reasoned { reason, named } = asked;
    let mut clients = named.common.clients(false)?;
    let Release { release_id, .. } = find(&mut clients, &named).await?;
    let request = QuarantineReleaseRequest { release_id, reason, request_id: String::new() };
    let answer = clients.releases.quarantine_release(request).await?;
    outcome(&mut clients, &answer.into_inner().release.unwrap_or_default(), named.common.output).await
}

async fn lift(asked: Reasoned) -> Result<(), Error> {
    let Reasoned { reason, named } = asked;
    let mut clients = named.common.clients(true)?;
    let Release { release_id, .. } = find(&mut clients, &named).await?;
    let request = LiftQuarantineRequest { release_id, reason, request_id: String::new() };
    let answer = clients.releases.lift_quarantine(request).await?;
    outcome(&mut clients, &answer.into_inner().release.unwrap_or_default(), named.common.output).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_named_as_people_see_them() {
        assert_eq!(state("approved"), Ok(ReleaseState::Approved));
        assert_eq!(state("PENDING_APPROVAL"), Ok(ReleaseState::PendingApproval));
        assert!(state("unspecified").is_err() && state("done").is_err());
    }
}
