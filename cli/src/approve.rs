//! `tandem approve`: what people are asked for. Every command calls in the name of a person.

use std::process::ExitCode;

use shared::pb::release::{
    ApproveReleaseRequest, BreakGlass, BreakGlassVerdict, ListBreakGlassesRequest, ListPendingForMeRequest,
    RejectReleaseRequest, Release, ReviewBreakGlassRequest, UseBreakGlassRequest, WithdrawVoteRequest,
};

use crate::error::Error;
use crate::output::{self, instant, short, table};
use crate::release::{Common, Named, Reasoned, find, show, show_releases};
use crate::term;

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

/// At most so many of a list.
const LISTED_MAX: i32 = 200;

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
            let verdict = match verdict {
                Verdict::Accepted => BreakGlassVerdict::Accepted,
                Verdict::Violation => BreakGlassVerdict::Violation,
            };
            let request = ReviewBreakGlassRequest {
                break_glass_id: break_glass,
                verdict: verdict.into(),
                reason,
                request_id: String::new(),
            };
            let answer = common.clients(true)?.approvals.review_break_glass(request).await?.into_inner();
            show_debt(&answer.break_glass.unwrap_or_default(), &common)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn pending(common: &Common) -> Result<(), Error> {
    let request = ListPendingForMeRequest { page_size: LISTED_MAX, page_token: String::new() };
    let answer = common.clients(true)?.approvals.list_pending_for_me(request).await?.into_inner();
    if common.output.json {
        return output::json("tandem.release.v1.ListPendingForMeResponse", &answer);
    }
    if answer.releases.is_empty() {
        term::say("nothing waits for your vote");
    } else {
        show_releases(&answer.releases);
    }
    Ok(())
}

/// The snapshot keeps the vote from falling on a revision that comes meanwhile.
async fn approve(named: &Named, reason: String) -> Result<(), Error> {
    let mut clients = named.common.clients(true)?;
    let Release { release_id, snapshot_digest, .. } = find(&mut clients, named).await?;
    let request =
        ApproveReleaseRequest { release_id, reason, snapshot_digest, ..ApproveReleaseRequest::default() };
    let answer = clients.approvals.approve_release(request).await?;
    show(&answer.into_inner().release.unwrap_or_default(), named.common.output)
}

async fn reject(asked: Reasoned) -> Result<(), Error> {
    let Reasoned { reason, named } = asked;
    let mut clients = named.common.clients(true)?;
    let Release { release_id, snapshot_digest, .. } = find(&mut clients, &named).await?;
    let request =
        RejectReleaseRequest { release_id, reason, snapshot_digest, ..RejectReleaseRequest::default() };
    let answer = clients.approvals.reject_release(request).await?;
    show(&answer.into_inner().release.unwrap_or_default(), named.common.output)
}

async fn withdraw(named: &Named, reason: String) -> Result<(), Error> {
    let mut clients = named.common.clients(true)?;
    let Release { release_id, .. } = find(&mut clients, named).await?;
    let request = WithdrawVoteRequest { release_id, reason, request_id: String::new() };
    let answer = clients.approvals.withdraw_vote(request).await?;
    show(&answer.into_inner().release.unwrap_or_default(), named.common.output)
}

async fn break_glass(asked: Reasoned) -> Result<(), Error> {
    let Reasoned { reason, named } = asked;
    let mut clients = named.common.clients(true)?;
    let Release { release_id, etag, .. } = find(&mut clients, &named).await?;
    let request = UseBreakGlassRequest { release_id, reason, etag, request_id: String::new() };
    let answer = clients.approvals.use_break_glass(request).await?.into_inner();
    show_debt(&answer.break_glass.unwrap_or_default(), &named.common)
}

async fn debts(all: bool, common: &Common) -> Result<(), Error> {
    let request =
        ListBreakGlassesRequest { open_only: !all, page_size: LISTED_MAX, page_token: String::new() };
    let answer = common.clients(true)?.approvals.list_break_glasses(request).await?.into_inner();
    if common.output.json {
        return output::json("tandem.release.v1.ListBreakGlassesResponse", &answer);
    }
    let row = |debt: &BreakGlass| {
        [
            debt.break_glass_id.clone(),
            debt.release_id.clone(),
            short(debt.state().as_str_name(), "BREAK_GLASS_STATE_").to_owned(),
            debt.principal.clone(),
            instant(debt.due_time),
            debt.reason.clone(),
        ]
    };
    let rows: Vec<_> = answer.break_glasses.iter().map(row).collect();
    table(["ID", "RELEASE", "STATE", "BY", "DUE", "REASON"], &rows);
    Ok(())
}

fn show_debt(debt: &BreakGlass, common: &Common) -> Result<(), Error> {
    if common.output.json {
        return output::json("tandem.release.v1.BreakGlass", debt);
    }
    let state = short(debt.state().as_str_name(), "BREAK_GLASS_STATE_");
    let BreakGlass { break_glass_id, release_id, principal, .. } = debt;
    term::say(format_args!(
        "{break_glass_id}: {principal} broke the glass for {release_id}; {state}, due {}",
        instant(debt.due_time)
    ));
    Ok(())
}
