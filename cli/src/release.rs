//! `tandem release`: a release from draft to approved, and what keeps it.

use std::fmt::Write as _;
use std::process::ExitCode;

use console::{Style, style};
use shared::pb::release::{
    AbandonReleaseRequest, Blocker, CancelReleaseRequest, CreateReleaseRequest, ExplainReleaseRequest,
    ExplainReleaseResponse, GetReleaseRequest, LiftQuarantineRequest, ListReleasesRequest,
    QuarantineReleaseRequest, Release, ReleaseRef, ReleaseState, ReviseReleaseRequest, Risk,
    SubmitReleaseRequest, UpdateReleaseRequest, get_release_request,
};

use self::change::{Draft, has_change};
use crate::client::ReleaseClients;
use crate::error::Error;
use crate::output::{self, Output, instant, short, table};
use crate::stack::{self, Stack};
use crate::term;
use crate::token::Identity;

mod change;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List releases, newest first
    List(List),
    /// Show a release: where it stands, its risk, its votes
    Show(Named),
    /// Write a draft
    Create(Box<Draft>),
    /// Change a draft; what is not named stays
    Edit(Box<Draft>),
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
            let release = find(&mut named.common.clients(false)?, &named).await?;
            show(&release, named.common.output)?;
        }
        Command::Create(draft) => create(*draft).await?,
        Command::Edit(draft) => edit(*draft).await?,
        Command::Submit(named) => submit(&named).await?,
        Command::Explain { environment, named } => explain(&named, environment.unwrap_or_default()).await?,
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
    let request = ListReleasesRequest {
        component: component.unwrap_or_default(),
        states: states.into_iter().map(Into::into).collect(),
        page_size: limit,
        page_token: String::new(),
    };
    let answer = common.clients(false)?.releases.list_releases(request).await?.into_inner();
    if common.output.json {
        return output::json("tandem.release.v1.ListReleasesResponse", &answer);
    }
    show_releases(&answer.releases);
    if !answer.next_page_token.is_empty() {
        term::note(format_args!("there are more than {limit}; --limit shows more"));
    }
    Ok(())
}

/// A line for each.
pub(crate) fn show_releases(releases: &[Release]) {
    let row = |release: &Release| {
        let for_it = release.votes.iter().filter(|vote| vote.approve).count();
        [
            release.component.clone(),
            release.version.clone(),
            standing(release),
            release.risk.as_ref().map_or_else(|| "-".to_owned(), band),
            format!("{for_it}/{}", release.quorum),
            release.author.clone(),
            instant(release.create_time),
        ]
    };
    let rows: Vec<_> = releases.iter().map(row).collect();
    table(["COMPONENT", "VERSION", "STATE", "RISK", "VOTES", "AUTHOR", "CREATED"], &rows);
}

/// State and quarantine, in the colour of what they mean.
fn standing(release: &Release) -> String {
    let name = short(release.state().as_str_name(), "RELEASE_STATE_");
    let colour = match release.state() {
        ReleaseState::Approved | ReleaseState::Active | ReleaseState::Released => Style::new().green(),
        ReleaseState::Assessing | ReleaseState::PendingApproval => Style::new().yellow(),
        ReleaseState::Rejected | ReleaseState::RolledBack => Style::new().red(),
        ReleaseState::Draft
        | ReleaseState::Cancelled
        | ReleaseState::Abandoned
        | ReleaseState::Superseded
        | ReleaseState::Unspecified => Style::new(),
    };
    let name = colour.apply_to(name);
    if release.quarantine.is_some() {
        format!("{name} {}", style("QUARANTINED").red())
    } else {
        name.to_string()
    }
}

fn band(risk: &Risk) -> String {
    let name = short(risk.band().as_str_name(), "RISK_BAND_");
    format!("{name} {}", risk.score)
}

/// The release of that name.
pub(crate) async fn find(clients: &mut ReleaseClients, named: &Named) -> Result<Release, Error> {
    let (component, version) = (named.component.clone(), named.version.clone());
    let name = Some(get_release_request::Name::Ref(ReleaseRef { component, version }));
    let answer = clients.releases.get_release(GetReleaseRequest { name }).await?;
    Ok(answer.into_inner().release.unwrap_or_default())
}

/// Everything about it that people ask for.
pub(crate) fn show(release: &Release, output: Output) -> Result<(), Error> {
    if output.json {
        return output::json("tandem.release.v1.Release", release);
    }
    let Release { component, version, author, submitter, snapshot_digest, quorum, .. } = release;
    term::say(format_args!("{component} {version}: {}", standing(release)));
    term::say(format_args!("  {} by {author}, {}", release.release_id, instant(release.create_time)));
    if !submitter.is_empty() {
        term::say(format_args!(
            "  revision {} submitted by {submitter}, {}; snapshot {snapshot_digest}",
            release.revision,
            instant(release.submit_time)
        ));
    }
    if let Some(quarantine) = &release.quarantine {
        term::say(format_args!("  quarantined by {}: {}", quarantine.principal, quarantine.reason));
    }
    if let Some(risk) = &release.risk {
        show_risk(risk);
    }
    if let Some(approval) = &release.approval {
        let until = approval.expire_time.map(|time| format!(" until {}", instant(Some(time))));
        term::say(format_args!(
            "  approved ({}) {}{}",
            short(approval.kind().as_str_name(), "APPROVAL_KIND_"),
            instant(approval.approve_time),
            until.unwrap_or_default()
        ));
    }
    if *quorum > 0 || !release.votes.is_empty() {
        term::say(format_args!("  votes, of {quorum} needed:"));
    }
    for vote in &release.votes {
        let said = if vote.approve { style("for").green() } else { style("against").red() };
        let why = if vote.reason.is_empty() { String::new() } else { format!(": {}", vote.reason) };
        term::say(format_args!("    {} {said}, {}{why}", vote.voter, instant(vote.vote_time)));
    }
    Ok(())
}

/// Why it is as risky as it is, the weightiest first.
fn show_risk(risk: &Risk) {
    let advice = if risk.is_binding { "" } else { ", as advice" };
    term::say(format_args!(
        "  risk {}{advice}: likely by {:.0} %, at {:.2} of the worst cost",
        band(risk),
        risk.likelihood * 100.0,
        risk.impact
    ));
    if !risk.floor.is_empty() {
        term::say(format_args!("    not lower, because of {}", risk.floor));
    }
    let mut factors: Vec<_> = risk.factors.iter().filter(|factor| factor.contribution != 0.0).collect();
    factors.sort_by(|a, b| b.contribution.abs().total_cmp(&a.contribution.abs()));
    for factor in factors {
        term::say(format_args!("    {} {:+.2} ({:.2})", factor.name, factor.contribution, factor.value));
    }
}

async fn create(draft: Draft) -> Result<(), Error> {
    let change = draft.change.fill(None)?;
    let Named { component, version, common } = draft.named;
    let request = CreateReleaseRequest {
        component,
        version,
        artifact_digest: draft.artifact_digest.unwrap_or_default(),
        notes: draft.notes.unwrap_or_default(),
        request_id: String::new(),
        change: has_change(&change).then_some(change),
    };
    let answer = common.clients(false)?.releases.create_release(request).await?;
    show(&answer.into_inner().release.unwrap_or_default(), common.output)
}

/// Fails where somebody else changed the draft meanwhile.
async fn edit(draft: Draft) -> Result<(), Error> {
    let mut clients = draft.named.common.clients(false)?;
    let Release { release_id, artifact_digest, notes, change, etag, .. } =
        find(&mut clients, &draft.named).await?;
    let request = UpdateReleaseRequest {
        release_id,
        artifact_digest: draft.artifact_digest.unwrap_or(artifact_digest),
        notes: draft.notes.unwrap_or(notes),
        change: Some(draft.change.fill(change)?),
        etag,
        request_id: String::new(),
    };
    let answer = clients.releases.update_release(request).await?;
    show(&answer.into_inner().release.unwrap_or_default(), draft.named.common.output)
}

async fn submit(named: &Named) -> Result<(), Error> {
    let mut clients = named.common.clients(false)?;
    let Release { release_id, etag, .. } = find(&mut clients, named).await?;
    let request = SubmitReleaseRequest { release_id, etag, request_id: String::new() };
    let answer = clients.releases.submit_release(request).await?;
    show(&answer.into_inner().release.unwrap_or_default(), named.common.output)
}

async fn revise(asked: Reasoned) -> Result<(), Error> {
    let Reasoned { reason, named } = asked;
    let mut clients = named.common.clients(false)?;
    let Release { release_id, etag, .. } = find(&mut clients, &named).await?;
    let request = ReviseReleaseRequest { release_id, reason, etag, request_id: String::new() };
    let answer = clients.releases.revise_release(request).await?;
    show(&answer.into_inner().release.unwrap_or_default(), named.common.output)
}

async fn cancel(asked: Reasoned) -> Result<(), Error> {
    let Reasoned { reason, named } = asked;
    let mut clients = named.common.clients(false)?;
    let Release { release_id, etag, .. } = find(&mut clients, &named).await?;
    let request = CancelReleaseRequest { release_id, reason, etag, request_id: String::new() };
    let answer = clients.releases.cancel_release(request).await?;
    show(&answer.into_inner().release.unwrap_or_default(), named.common.output)
}

async fn abandon(asked: Reasoned) -> Result<(), Error> {
    let Reasoned { reason, named } = asked;
    let mut clients = named.common.clients(false)?;
    let Release { release_id, etag, .. } = find(&mut clients, &named).await?;
    let request = AbandonReleaseRequest { release_id, reason, etag, request_id: String::new() };
    let answer = clients.releases.abandon_release(request).await?;
    show(&answer.into_inner().release.unwrap_or_default(), named.common.output)
}

async fn quarantine(asked: Reasoned) -> Result<(), Error> {
    let Reasoned { reason, named } = asked;
    let mut clients = named.common.clients(false)?;
    let Release { release_id, .. } = find(&mut clients, &named).await?;
    let request = QuarantineReleaseRequest { release_id, reason, request_id: String::new() };
    let answer = clients.releases.quarantine_release(request).await?;
    show(&answer.into_inner().release.unwrap_or_default(), named.common.output)
}

async fn lift(asked: Reasoned) -> Result<(), Error> {
    let Reasoned { reason, named } = asked;
    let mut clients = named.common.clients(true)?;
    let Release { release_id, .. } = find(&mut clients, &named).await?;
    let request = LiftQuarantineRequest { release_id, reason, request_id: String::new() };
    let answer = clients.releases.lift_quarantine(request).await?;
    show(&answer.into_inner().release.unwrap_or_default(), named.common.output)
}

async fn explain(named: &Named, environment: String) -> Result<(), Error> {
    let mut clients = named.common.clients(false)?;
    let Release { release_id, .. } = find(&mut clients, named).await?;
    let request = ExplainReleaseRequest { release_id, environment: environment.clone() };
    let answer = clients.releases.explain_release(request).await?.into_inner();
    if named.common.output.json {
        return output::json("tandem.release.v1.ExplainReleaseResponse", &answer);
    }
    let ExplainReleaseResponse { release, risk, blockers } = answer;
    let release = release.unwrap_or_default();
    let to = if environment.is_empty() { String::new() } else { format!(" to {environment}") };
    let what = format!("{} {} ({})", release.component, release.version, standing(&release));
    if blockers.is_empty() && environment.is_empty() {
        term::say(format_args!(
            "{what}: nothing keeps the release itself. With --environment windows, a stopped line, dependencies and other \
             rollouts are looked at, too."
        ));
    } else if blockers.is_empty() {
        term::say(format_args!("{what}: nothing keeps it from going{to}."));
    } else {
        term::say(format_args!("{what} cannot go{to} yet:"));
    }
    for blocker in &blockers {
        term::say(format_args!("  {}", sentence(blocker)));
    }
    if let Some(risk) = &risk {
        show_risk(risk);
    }
    Ok(())
}

fn sentence(blocker: &Blocker) -> String {
    let Blocker { r#type: kind, subject, description, lifted_by, next_open_time } = blocker;
    let mut text = format!("{kind} {subject}: {description}.");
    if !lifted_by.is_empty() {
        let _ = write!(text, " Lifted by {lifted_by}.");
    }
    if next_open_time.is_some() {
        let _ = write!(text, " Opens {}.", instant(*next_open_time));
    }
    text
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

    #[test]
    fn a_blocker_is_told_in_sentences() {
        let blocker = Blocker {
            r#type: "WINDOW".to_owned(),
            subject: "peak".to_owned(),
            description: "the line is frozen for the peak".to_owned(),
            lifted_by: "whoever has scope window.override".to_owned(),
            next_open_time: Some(prost_types::Timestamp { seconds: 1_795_445_999, nanos: 0 }),
        };
        assert_eq!(
            sentence(&blocker),
            "WINDOW peak: the line is frozen for the peak. Lifted by whoever has scope window.override. Opens \
             2026-11-23 14:59Z."
        );
    }
}
