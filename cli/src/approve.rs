//! `tandem approve`: what people are asked for. Every command calls in the name of a person.

use std::process::ExitCode;

use shared::pb::release::{
    ApproveReleaseRequest, BreakGlass, BreakGlassVerdict, GetReleaseRequest, ListBreakGlassesRequest,
    ListPendingForMeRequest, RejectReleaseRequest, Release, ReviewBreakGlassRequest, UseBreakGlassRequest,
    WithdrawVoteRequest, get_release_request,
};

use crate::client::ReleaseClients;
use crate::error::Error;
use crate::output::{self, Output, instant, short, table};
use crate::release::show::{self, outcome};
use crate::release::{Common, Named, Reasoned, find};
use crate::term;

/// What people try first.
pub(crate) const EXAMPLES: &str = "\
Examples:
  tandem approve pending --sub alice
  tandem approve release storefront 1.1 --sub alice --group payments --reason 'read the diff'
  tandem approve reject storefront 1.1 --sub alice --reason 'no test of the refund'
  tandem approve withdraw storefront 1.1 --sub alice
  tandem approve break-glass storefront 1.1 --sub ada --reason 'checkout is down'
  tandem approve debts
  tandem approve review bgl_01a2069747dc7d6282a6459e52cdca40 accepted --sub alice --reason 'right'

Each is a person's word: --sub says whose, --group for whom they stand.
See also: `tandem release show`, for what there is to vote on.";

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the releases that wait for your vote, oldest first
    Pending(Common),
    /// Vote for a release
    Release {
        /// What you looked at
        #[arg(long, default_value = "", value_name = "TEXT", hide_default_value = true)]
        reason: String,
        #[command(flatten)]
        named: Named,
    },
    /// Vote against a release, which ends it
    Reject(Reasoned),
    /// Take your vote back
    Withdraw {
        /// Why
        #[arg(long, default_value = "", value_name = "TEXT", hide_default_value = true)]
        reason: String,
        #[command(flatten)]
        named: Named,
    },
    /// Approve a release alone; somebody else reviews that later
    BreakGlass(Reasoned),
    /// List uses of break-glass, newest first
    Debts {
        /// Reviewed ones, too
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Say whether a use of break-glass was right
    Review {
        /// Which, `bgl_...`
        #[arg(value_name = "ID")]
        break_glass: String,
        /// Whether it was right
        #[arg(value_enum)]
        verdict: Verdict,
        /// Why
        #[arg(long, value_name = "TEXT")]
        reason: String,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Verdict {
    /// It was right
    Accepted,
    /// It was not
    Violation,
}

/// At most so many of a page.
const LISTED_MAX: i32 = 200;
/// Pages are asked for until there are so many.
const LISTED_ENOUGH: usize = 200;

/// Does it, and shows what came of it.
pub(crate) async fn run(command: Command) -> Result<ExitCode, Error> {
    match command {
        Command::Pending(common) => pending(&common).await?,
        Command::Release { reason, named } => approve(&named, reason).await?,
        Command::Reject(asked) => reject(asked).await?,
        Command::Withdraw { reason, named } => withdraw(&named, reason).await?,
        Command::BreakGlass(asked) => break_glass(asked).await?,
        Command::Debts { all, common } => debts(all, &common).await?,
        Command::Review { break_glass, verdict, reason, common } => {
            review(break_glass, verdict, reason, &common).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn pending(common: &Common) -> Result<(), Error> {
    let mut clients = common.clients(true)?;
    let (mut releases, mut page_token) = (Vec::new(), String::new());
    // Pages may be short, even empty, before the last one.
    while releases.len() < LISTED_ENOUGH {
        let request = ListPendingForMeRequest { page_size: LISTED_MAX, page_token };
        let page = clients.approvals.list_pending_for_me(request).await?.into_inner();
        releases.extend(page.releases);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    note_more(&page_token);
    if common.output.json {
        return output::json_list("tandem.release.v1.Release", &releases);
    }
    show::list(&releases, "nothing waits for your vote");
    Ok(())
}

/// Says that a list was cut off, where there is a page after it.
fn note_more(page_token: &str) {
    if !page_token.is_empty() {
        term::note("there are more than are shown");
    }
}

/// The snapshot keeps the vote from falling on a revision that comes meanwhile.
async fn approve(named: &Named, reason: String) -> Result<(), Error> {
    let mut clients = named.common.clients(true)?;
    let Release { release_id, snapshot_digest, .. } = find(&mut clients, named).await?;
    let request =
        ApproveReleaseRequest { release_id, reason, snapshot_digest, ..ApproveReleaseRequest::default() };
    let answer = clients.approvals.approve_release(request).await?;
    outcome(&mut clients, &answer.into_inner().release.unwrap_or_default(), named.common.output).await
}

async fn reject(asked: Reasoned) -> Result<(), Error> {
    let Reasoned { reason, named } = asked;
    let mut clients = named.common.clients(true)?;
    let Release { release_id, snapshot_digest, .. } = find(&mut clients, &named).await?;
    let request =
        RejectReleaseRequest { release_id, reason, snapshot_digest, ..RejectReleaseRequest::default() };
    let answer = clients.approvals.reject_release(request).await?;
    outcome(&mut clients, &answer.into_inner().release.unwrap_or_default(), named.common.output).await
}

async fn withdraw(named: &Named, reason: String) -> Result<(), Error> {
    let mut clients = named.common.clients(true)?;
    let Release { release_id, .. } = find(&mut clients, named).await?;
    let request = WithdrawVoteRequest { release_id, reason, request_id: String::new() };
    let answer = clients.approvals.withdraw_vote(request).await?;
    outcome(&mut clients, &answer.into_inner().release.unwrap_or_default(), named.common.output).await
}

async fn break_glass(asked: Reasoned) -> Result<(), Error> {
    let Reasoned { reason, named } = asked;
    let mut clients = named.common.clients(true)?;
    let Release { release_id, etag, .. } = find(&mut clients, &named).await?;
    let request = UseBreakGlassRequest { release_id, reason, etag, request_id: String::new() };
    let answer = clients.approvals.use_break_glass(request).await?.into_inner();
    show_debt(&mut clients, &answer.break_glass.unwrap_or_default(), named.common.output).await
}

async fn review(
    break_glass_id: String,
    verdict: Verdict,
    reason: String,
    common: &Common,
) -> Result<(), Error> {
    let verdict = match verdict {
        Verdict::Accepted => BreakGlassVerdict::Accepted,
        Verdict::Violation => BreakGlassVerdict::Violation,
    };
    let verdict = verdict.into();
    let request = ReviewBreakGlassRequest { break_glass_id, verdict, reason, request_id: String::new() };
    let mut clients = common.clients(true)?;
    let answer = clients.approvals.review_break_glass(request).await?.into_inner();
    show_debt(&mut clients, &answer.break_glass.unwrap_or_default(), common.output).await
}

async fn debts(all: bool, common: &Common) -> Result<(), Error> {
    let request =
        ListBreakGlassesRequest { open_only: !all, page_size: LISTED_MAX, page_token: String::new() };
    let mut clients = common.clients(true)?;
    let page = clients.approvals.list_break_glasses(request).await?.into_inner();
    note_more(&page.next_page_token);
    let debts = page.break_glasses;
    if common.output.json {
        return output::json_list("tandem.release.v1.BreakGlass", &debts);
    }
    let mut rows = Vec::new();
    for debt in &debts {
        let Release { component, version, .. } = release_of(&mut clients, debt).await?;
        rows.push([
            debt.break_glass_id.clone(),
            component,
            version,
            short(debt.state().as_str_name(), "BREAK_GLASS_STATE_").to_owned(),
            debt.principal.clone(),
            instant(debt.due_time),
            debt.reason.clone(),
        ]);
    }
    let none = if all { "nobody ever broke the glass" } else { "no use of break-glass waits for a review" };
    table(["ID", "COMPONENT", "VERSION", "STATE", "BY", "DUE", "REASON"], &rows, none);
    Ok(())
}

/// The release that the glass was broken for.
async fn release_of(clients: &mut ReleaseClients, debt: &BreakGlass) -> Result<Release, Error> {
    let name = Some(get_release_request::Name::ReleaseId(debt.release_id.clone()));
    let answer = clients.releases.get_release(GetReleaseRequest { name }).await?;
    Ok(answer.into_inner().release.unwrap_or_default())
}

async fn show_debt(clients: &mut ReleaseClients, debt: &BreakGlass, output: Output) -> Result<(), Error> {
    if output.json {
        return output::json("tandem.release.v1.BreakGlass", debt);
    }
    let Release { component, version, .. } = release_of(clients, debt).await?;
    let state = short(debt.state().as_str_name(), "BREAK_GLASS_STATE_");
    let BreakGlass { break_glass_id, principal, reviewer, review_reason, .. } = debt;
    let whose = format!("{break_glass_id}: {principal} broke the glass for {component} {version}");
    if reviewer.is_empty() {
        term::say(format_args!("{whose}; {state}, due {}", instant(debt.due_time)));
    } else {
        term::say(format_args!("{whose}; {state} by {reviewer}: {review_reason}"));
    }
    Ok(())
}
