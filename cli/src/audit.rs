//! `tandem audit`: signs how far the audit trail of release-svc has come, and checks it, also against a head that was kept.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use shared::pb::release::audit_service_client::AuditServiceClient;
use shared::pb::release::{GetAuditHeadRequest, VerifyAuditRequest};

use crate::client::{Authorized, Bearer, channel};
use crate::error::Error;
use crate::stack::{self, Stack};
use crate::term;
use crate::token::Identity;

/// What to do with the trail.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Print the signed head, to be kept where nobody who can write to the database gets at it
    Head(Args),
    /// Check every event that is kept. Fails at the first that was changed, taken out, moved or cut off
    Verify {
        /// A head that `tandem audit head` printed before, which the trail must go through
        #[arg(long, value_name = "FILE")]
        head: Option<PathBuf>,
        #[command(flatten)]
        args: Args,
    },
}

/// Whose trail, and where.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    identity: Identity,
    #[command(flatten)]
    stack: stack::Args,
}

/// Does it.
pub(crate) async fn run(command: Command) -> Result<ExitCode, Error> {
    match command {
        Command::Head(args) => {
            let answer = client(&args)?.get_audit_head(GetAuditHeadRequest {}).await?;
            term::say(answer.into_inner().signed_head);
            Ok(ExitCode::SUCCESS)
        }
        Command::Verify { head, args } => {
            let head = head.as_deref().map(read).transpose()?.unwrap_or_default();
            verify(&mut client(&args)?, &args.identity.tenant, &head).await
        }
    }
}

fn client(args: &Args) -> Result<AuditServiceClient<Authorized>, Error> {
    let stack = Stack::open(&args.stack)?;
    let token = stack.sign(&args.identity.grant(), chrono::TimeDelta::minutes(10))?;
    let address = stack.state()?.release.address;
    Ok(AuditServiceClient::with_interceptor(channel(address), Bearer::new(&token)))
}

fn read(file: &Path) -> Result<String, Error> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|error| Error::Unusable(format!("{}: {error}", file.display())))?;
    Ok(text.trim().to_owned())
}

/// Asks piece by piece, up to the end that the trail had at the first.
async fn verify(
    client: &mut AuditServiceClient<Authorized>,
    tenant: &str,
    head: &str,
) -> Result<ExitCode, Error> {
    let (mut from_seq, mut to_seq, mut checked, mut first_seq) = (0, 0, 0, 0);
    loop {
        let request = VerifyAuditRequest { from_seq, to_seq, signed_head: head.to_owned() };
        let answer = client.verify_audit(request).await?.into_inner();
        checked += answer.checked_count;
        if let Some(broken) = answer.first_break {
            return Err(Error::Failed(format!(
                "the trail is broken at event {}: {} ({checked} events before it hold)",
                broken.seq, broken.description
            )));
        }
        if answer.head_seq == 0 {
            // A trail that was to be checked and is not there is no trail that holds.
            return Err(Error::Failed(format!(
                "tenant {tenant} has no events; --tenant says whose trail to check"
            )));
        }
        if to_seq == 0 {
            (to_seq, first_seq) = (answer.head_seq, answer.first_seq);
        }
        from_seq = answer.next_seq;
        if from_seq == 0 {
            break;
        }
        term::note(format_args!("{checked} events hold, up to {} of {to_seq}", from_seq - 1));
    }
    if first_seq > 1 {
        term::note(format_args!(
            "the trail begins with event {first_seq}: the ones before were purged, or cut off"
        ));
    }
    let signed = if head.is_empty() { "" } else { ", and go through the signed head" };
    term::say(format_args!("{checked} events hold{signed}"));
    Ok(ExitCode::SUCCESS)
}
