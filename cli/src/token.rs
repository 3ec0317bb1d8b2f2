//! `tandem token`: an access token of the local issuer, on standard output and nothing else, for a shell to put in place.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use chrono::TimeDelta;
use shared::issuer::Grant;
use shared::pb;

use crate::error::Error;
use crate::stack::{self, Stack};
use crate::term;

/// Scopes that no method names, as they widen what another one allows.
const WIDER: [&str; 3] = ["session.assert", "session.any", "shopper.any"];
/// Only session-svc itself has it.
const SYSTEM: &str = "tandem.system";

/// In whose name a command calls.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Identity {
    /// Who calls
    #[arg(long, default_value = "dev", value_name = "NAME")]
    pub(crate) sub: String,
    /// For which tenant
    #[arg(long, default_value = "shop", value_name = "TENANT")]
    pub(crate) tenant: String,
    /// A group that the caller is in; may be given again
    #[arg(long = "group", value_name = "GROUP")]
    pub(crate) groups: Vec<String>,
}

impl Identity {
    /// Everything that a workload of this name may do.
    pub(crate) fn grant(&self) -> Grant {
        Grant {
            sub: self.sub.clone(),
            tenant: self.tenant.clone(),
            scope: every_scope(),
            groups: self.groups.clone(),
            touchpoints: None,
            kind: "workload".to_owned(),
        }
    }
}

/// Options of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    identity: Identity,
    /// The caller is a person, who may vote, and not a workload
    #[arg(long)]
    person: bool,
    /// Scopes, separated by spaces [default: all but tandem.system]
    #[arg(long, value_name = "SCOPES")]
    scope: Option<String>,
    /// A touchpoint that the caller is limited to; may be given again [default: no limit]
    #[arg(long = "touchpoint", value_name = "TOUCHPOINT")]
    touchpoints: Vec<String>,
    /// How long the token is good, such as 90s, 15m, 1h or 30d
    #[arg(long, default_value = "1h", value_parser = duration, value_name = "TIME")]
    ttl: Duration,
    /// Folder that `tandem init` filled [default: the local stack's]
    #[arg(long, value_name = "FOLDER")]
    issuer: Option<PathBuf>,
    #[command(flatten)]
    stack: stack::Args,
}

/// Prints a token.
pub(crate) fn run(args: Args) -> Result<ExitCode, Error> {
    let mut grant = args.identity.grant();
    if args.person {
        "person".clone_into(&mut grant.kind);
    }
    if let Some(scope) = args.scope {
        require_known(&scope)?;
        grant.scope = scope;
    }
    grant.touchpoints = (!args.touchpoints.is_empty()).then_some(args.touchpoints);
    let lifetime = TimeDelta::from_std(args.ttl).map_err(|error| Error::Unusable(error.to_string()))?;
    let token = match args.issuer {
        Some(folder) => stack::sign(&folder, &grant, lifetime)?,
        None => Stack::open(&args.stack)?.sign(&grant, lifetime)?,
    };
    term::say(token.expose());
    Ok(ExitCode::SUCCESS)
}

/// Every scope that a method asks for, and those that widen them.
fn known_scopes() -> BTreeSet<&'static str> {
    let scopes = pb::METHODS.iter().filter_map(|(_, scope)| *scope);
    scopes.chain(WIDER).collect()
}

/// All of them, but the one between the services.
fn every_scope() -> String {
    let scopes = known_scopes().into_iter().filter(|scope| *scope != SYSTEM);
    scopes.collect::<Vec<_>>().join(" ")
}

/// A misspelt scope would be found only when a call is refused.
fn require_known(scopes: &str) -> Result<(), Error> {
    let known = known_scopes();
    match scopes.split_ascii_whitespace().find(|scope| !known.contains(scope)) {
        None => Ok(()),
        Some(unknown) => {
            let known = Vec::from_iter(known).join(" ");
            Err(Error::Unusable(format!("there is no scope {unknown}; there are: {known}")))
        }
    }
}

/// A whole number and its unit, up to ten years.
pub(crate) fn duration(text: &str) -> Result<Duration, &'static str> {
    const EXPECTED: &str = "must be a number and a unit, such as 90s, 15m, 1h or 30d, and at most 3650d";
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or(EXPECTED)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(EXPECTED),
    };
    let number: u32 = number.parse().map_err(|_| EXPECTED)?;
    let duration = Duration::from_secs(u64::from(number) * seconds);
    if duration <= Duration::from_hours(24 * 3650) { Ok(duration) } else { Err(EXPECTED) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scope_is_of_a_method_or_widens_one_and_none_is_the_systems() {
        let scopes = every_scope();
        for scope in ["session.write", "session.validate", "release.approve", "event.read", "session.any"] {
            assert!(scopes.split(' ').any(|found| found == scope), "{scope} in {scopes}");
        }
        assert!(!scopes.contains(SYSTEM));
    }

    #[test]
    fn a_misspelt_scope_is_named() {
        assert!(require_known("session.write  tandem.system").is_ok());
        let refused = require_known("session.write session.wirte").unwrap_err().to_string();
        assert!(refused.starts_with("there is no scope session.wirte; there are: "), "{refused}");
    }

    #[test]
    fn durations_have_a_unit_and_a_bound() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("1h", 3600), ("30d", 2_592_000)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)));
        }
        for bad in ["", "h", "1", "-1h", "1.5h", "1w", "4000d", "99999999999s", "1ä"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
